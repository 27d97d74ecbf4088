//! The bytes of a range of a file, from wherever each run of them is: in memory, or step by step where they are many.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use super::extents::{RUN_END_BYTES, What};
use super::staging::Staging;
use crate::base::crc::{crc64, joined, of_zeros};
use crate::base::{Budget, ByteRange, ETag};
use crate::error::{Error, Kind, Result};
use crate::s3::{Body, GetRequest, Payload, Store, read_all};

/// A part of up to so many bytes is read before it is sent. Larger ones are read while they are sent, so that the size of
/// a part says nothing of the memory that it takes.
const WHOLE_MAX_BYTES: u64 = 64 << 20;
/// Then a step at a time. Steps end where runs of written bytes do, so that what is read for one is held to the sum of a
/// whole run.
const STEP_BYTES: u64 = RUN_END_BYTES;

/// The memory that takes: a step that the connection has, and the next one.
const HELD_BYTES: u64 = 2 * STEP_BYTES;

/// The object that unchanged bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    pub bucket: String,
    pub key: String,
    pub etag: ETag,
}

/// Another object that a run of bytes is copied from.
#[derive(Clone)]
pub struct Origin {
    pub object: Base,
    /// Its length in bytes.
    pub size: u64,
    /// What to add to a place in the file for the place in the object; it wraps.
    pub shift: u64,
    /// Where the object is, which may be another region than the file's.
    pub store: Arc<dyn Store>,
}

impl Origin {
    /// Where a range of the file is in the object.
    pub fn range(&self, range: ByteRange) -> Option<ByteRange> {
        ByteRange::at(range.start().wrapping_add(self.shift), range.len())
    }

    /// Fails `Stale` where it is another version by now, or gone.
    pub async fn require_there(&self) -> Result<()> {
        let gone = || Error::new(Kind::Stale, "another client replaced what is being copied");
        match self.store.head(&self.object.bucket, &self.object.key, None).await {
            Ok(info) if info.etag == self.object.etag => Ok(()),
            Ok(_) => Err(gone()),
            Err(error) if error.is_not_found() => Err(gone()),
            Err(error) => Err(error),
        }
    }
}

/// Where the bytes of a range are.
pub(super) struct Source {
    /// In order.
    pub(super) runs: Vec<(ByteRange, What)>,
    pub(super) store: Arc<dyn Store>,
    pub(super) base: Option<Base>,
    pub(super) copies: Vec<Origin>,
    pub(super) staging: Option<Arc<Staging>>,
}

impl Source {
    /// What is to be sent of a range, and its sum: of written bytes the one that was taken when they were written. As long
    /// as it is there it holds the memory that it takes to send it.
    pub(super) async fn payload(self, range: ByteRange, budget: &Budget) -> Result<(Payload, u64)> {
        if range.len() <= WHOLE_MAX_BYTES {
            let (bytes, crc) = self.read(range, budget).await?;
            return Ok((bytes.into(), crc));
        }
        let grant = budget.take(HELD_BYTES).await;
        let (mut sums, mut crc) = (Vec::new(), 0);
        for step in steps(range) {
            let of_step = self.sum(step).await?;
            crc = joined(crc, of_step, step.len());
            sums.push((step, of_step));
        }
        let source = Arc::new(self);
        let open = move || -> Body {
            let _held = &grant;
            let source = Arc::clone(&source);
            Box::pin(futures::stream::iter(sums.clone()).then(move |(step, sum)| {
                let source = Arc::clone(&source);
                async move {
                    let mut bytes = vec![0; index(step.len())];
                    let is = source.fill(&mut bytes, step).await?;
                    if is == sum { Ok(bytes.into()) } else { Err(changed(step)) }
                }
            }))
        };
        Ok((Payload::in_steps(range.len(), open), crc))
    }

    /// The bytes of a range in memory, and their sum.
    pub(super) async fn read(&self, range: ByteRange, budget: &Budget) -> Result<(Bytes, u64)> {
        let length = usize::try_from(range.len())
            .map_err(|_| Error::new(Kind::TooLarge, "the part does not fit in memory"))?;
        let mut buffer = budget.buffer(length).await;
        let crc = self.fill(&mut buffer, range).await?;
        Ok((Bytes::from_owner(buffer), crc))
    }

    /// Fills a buffer with a range, whatever was in it; returns the sum.
    async fn fill(&self, buffer: &mut [u8], range: ByteRange) -> Result<u64> {
        let mut crc = 0;
        for (run, what) in self.runs(range)? {
            let from = run.start() - range.start();
            let target = &mut buffer[index(from)..index(from + run.len())];
            let of_run = match (what, &self.staging) {
                (What::Zero(_), _) => {
                    target.fill(0);
                    of_zeros(run.len())
                }
                (What::Staged(_), Some(staging)) => {
                    staging.read_whole(target, run.start())?.ok_or_else(without)?
                }
                _ => {
                    self.fetch(run, what, target).await?;
                    crc64(target)
                }
            };
            crc = joined(crc, of_run, run.len());
        }
        Ok(crc)
    }

    /// The sum of a range. What was written is not read for it, but for runs that go on beyond the range; what an object
    /// has is, and is read once more when it is sent.
    async fn sum(&self, range: ByteRange) -> Result<u64> {
        let mut crc = 0;
        for (run, what) in self.runs(range)? {
            let of_run = match (what, &self.staging) {
                (What::Zero(_), _) => of_zeros(run.len()),
                (What::Staged(_), Some(staging)) => staging.sum(run)?.ok_or_else(without)?,
                _ => {
                    let mut buffer = vec![0u8; index(run.len())];
                    self.fetch(run, what, &mut buffer).await?;
                    crc64(&buffer)
                }
            };
            crc = joined(crc, of_run, run.len());
        }
        Ok(crc)
    }

    /// The runs of a range. Written ones side by side are one: they were written at different times, and are held to their
    /// sums together.
    fn runs(&self, range: ByteRange) -> Result<Vec<(ByteRange, What)>> {
        let from = self.runs.partition_point(|(run, _)| run.end() <= range.start());
        let within = self.runs[from..].iter().map_while(|(run, what)| Some((run.intersect(range)?, *what)));
        let (mut runs, mut at): (Vec<(ByteRange, What)>, _) = (Vec::new(), range.start());
        for (run, what) in within.take_while(|(run, _)| run.start() == std::mem::replace(&mut at, run.end()))
        {
            match runs.last_mut() {
                Some((last, What::Staged(_))) if matches!(what, What::Staged(_)) => {
                    *last = ByteRange::new(last.start(), run.end()).unwrap_or(run);
                }
                _ => runs.push((run, what)),
            }
        }
        if runs.last().is_none_or(|(last, _)| last.end() < range.end()) {
            return Err(Error::new(Kind::Internal, "no source is known of some bytes"));
        }
        Ok(runs)
    }

    /// Fills `target` with a run that an object has.
    async fn fetch(&self, run: ByteRange, what: What, target: &mut [u8]) -> Result<()> {
        let (store, object, range) = match (what, &self.base) {
            (What::Base, Some(base)) => (&self.store, base, run),
            (What::Copied(_, copy), _) => {
                let origin = self.copies.get(copy as usize).ok_or_else(without)?;
                (&origin.store, &origin.object, origin.range(run).ok_or_else(without)?)
            }
            _ => return Err(without()),
        };
        let request = GetRequest {
            bucket: object.bucket.clone(),
            key: object.key.clone(),
            range: Some(range),
            if_match: Some(object.etag.clone()),
            ..GetRequest::default()
        };
        let (info, bytes) = read_all(&**store, request, range.len()).await?;
        if info.etag != object.etag {
            return Err(Error::new(Kind::Stale, "another client changed the object"));
        }
        if bytes.len() != target.len() {
            return Err(Error::new(Kind::Corrupt, format!("asked for {range}, got {} bytes", bytes.len())));
        }
        target.copy_from_slice(&bytes);
        Ok(())
    }
}

/// The steps of a range.
fn steps(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        let step = ByteRange::new(at, range.end().min((at / STEP_BYTES + 1) * STEP_BYTES))?;
        at = step.end();
        Some(step)
    })
}

fn without() -> Error {
    Error::new(Kind::Internal, "a run of bytes without its source")
}

/// A program wrote into a part while it was being sent: S3 would refuse it.
fn changed(step: ByteRange) -> Error {
    Error::new(Kind::Conflict, format!("bytes {step} of the file changed while they were being sent"))
}

/// Within a buffer that was just made to that length.
#[allow(clippy::cast_possible_truncation)]
fn index(offset: u64) -> usize {
    offset as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Budget, Gate, SystemClock};
    use crate::s3::{Attributes, Condition, MemStore, PutRequest, checksum_of};
    use crate::write::{Conditions, Extents, Job, Lanes, Layout, Room, send_ahead, upload};
    use futures::TryStreamExt;

    const MIB: u64 = 1 << 20;
    /// Larger than what is read as a whole.
    const PART: u64 = WHOLE_MAX_BYTES + 3 * MIB;

    /// Each page another.
    fn pattern(len: u64) -> Bytes {
        let mut bytes = vec![0; index(len)];
        for (at, page) in (0u64..).zip(bytes.chunks_mut(4096)) {
            page.fill(at.to_le_bytes()[0] ^ 0x5a);
            let (number, end) = (at.to_le_bytes(), page.len().min(8));
            page[..end].copy_from_slice(&number[..end]);
        }
        bytes.into()
    }

    fn write(staging: &Staging, data: &[u8], offset: u64) {
        for (at, piece) in (offset..).step_by(1 << 20).zip(data.chunks(1 << 20)) {
            let change = staging.change(piece, at).unwrap().unwrap();
            staging.write(&change).unwrap();
        }
    }

    /// A file of two large parts and a rest: written bytes, a hole, and what two objects have.
    struct Case {
        store: Arc<MemStore>,
        job: Job,
        expected: Vec<u8>,
    }

    async fn case(budget: &Budget) -> Case {
        let store = Arc::new(MemStore::new(Arc::new(SystemClock), Arc::default()).with_bucket("bucket"));
        let len = 2 * PART + 7 * MIB;
        let object = pattern(len);
        for key in ["base", "other"] {
            let body = if key == "base" { object.clone() } else { object.slice(..(20 * MIB) as usize) };
            let request =
                PutRequest { bucket: "bucket".into(), key: key.into(), body, ..PutRequest::default() };
            store.put(request).await.unwrap();
        }
        let staging = Arc::new(Staging::new(&Room::on_disk(&std::env::temp_dir(), Some(0))).unwrap());
        let mut extents = Extents::of_base(len);
        let mut expected = object.to_vec();
        let written = pattern(50 * MIB + 24);
        for (stamp, at) in [(1, 0), (2, 60 * MIB + 5), (3, 2 * PART - MIB)] {
            let data = &written[..(6 * MIB + 3) as usize * if at == 0 { 8 } else { 1 }];
            write(&staging, data, at);
            extents.write(ByteRange::at(at, data.len() as u64).unwrap(), stamp);
            expected[at as usize..][..data.len()].copy_from_slice(data);
        }
        let hole = ByteRange::at(40 * MIB + 77, 15 * MIB).unwrap();
        extents.zero(hole, 4);
        expected[index(hole.start())..index(hole.end())].fill(0);
        let copied = ByteRange::at(90 * MIB + 1, 10 * MIB).unwrap();
        extents.copy(copied, 5, 0);
        expected[index(copied.start())..index(copied.end())]
            .copy_from_slice(&object[index(3 * MIB)..index(13 * MIB)]);
        let of = |key: &str, etag| Base { bucket: "bucket".into(), key: key.into(), etag };
        let base = of("base", store.head("bucket", "base", None).await.unwrap().etag);
        let other = Origin {
            object: of("other", store.head("bucket", "other", None).await.unwrap().etag),
            size: 20 * MIB,
            shift: (3 * MIB).wrapping_sub(copied.start()),
            store: store.clone(),
        };
        let job = Job {
            store: store.clone(),
            bucket: "bucket".into(),
            key: "f".into(),
            attributes: Attributes::default(),
            condition: Condition::Any,
            honoured: Conditions::NONE,
            len,
            stamp: 9,
            begun_at: std::time::SystemTime::UNIX_EPOCH,
            segments: extents.all(),
            base: Some(base),
            base_size: 0,
            copies: vec![other],
            staging: Some(staging),
            parts: Arc::default(),
            layout: Layout::Equal(PART),
            rule: Arc::default(),
            lanes: Lanes::new(budget.clone(), Gate::new(64, || 0)),
        };
        Case { store, job, expected }
    }

    fn part(number: u64) -> ByteRange {
        ByteRange::at((number - 1) * PART, PART).unwrap()
    }

    #[tokio::test]
    async fn large_parts_take_little_memory_however_large_they_are() {
        let budget = Budget::new(1 << 30);
        let Case { store, job, expected } = case(&budget).await;
        let answers = store.hold("UploadPart");
        let sending = tokio::spawn(async move { upload(&job).await.map(drop) });
        let all_are_sent = || store.calls().iter().filter(|call| **call == "UploadPart").count() == 3;
        while !all_are_sent() {
            tokio::task::yield_now().await;
        }
        let held = budget.limit_bytes() - budget.free_bytes();
        assert_eq!(
            held,
            2 * 2 * STEP_BYTES + 7 * MIB,
            "of each large part two steps, and the rest as a whole"
        );
        answers.add_permits(3);
        sending.await.unwrap().unwrap();
        let got = store.get(GetRequest { bucket: "bucket".into(), key: "f".into(), ..GetRequest::default() });
        assert!(got.await.unwrap().bytes().await.unwrap() == expected);
    }

    #[tokio::test]
    async fn a_large_part_is_read_in_small_steps_and_its_sum_is_known_before() {
        let Case { job, expected, store } = case(&Budget::new(1 << 30)).await;
        let range = part(1);
        let (payload, crc) = job.source(range).payload(range, &job.lanes.budget).await.unwrap();
        assert_eq!(crc, crc64(&expected[..index(PART)]));
        store.clear_calls();
        let steps: Vec<usize> = payload_steps(&payload).await.unwrap();
        assert!(steps.iter().all(|step| *step <= index(STEP_BYTES)), "{steps:?}");
        assert_eq!(steps.iter().sum::<usize>(), index(PART));
        // What is written here costs no request, and no reading for its sum.
        let staged = ByteRange::new(0, 16 * MIB).unwrap();
        store.clear_calls();
        assert_eq!(job.source(staged).sum(staged).await.unwrap(), crc64(&expected[..index(16 * MIB)]));
        assert!(store.calls().is_empty());
    }

    async fn payload_steps(payload: &Payload) -> Result<Vec<usize>> {
        payload.steps().map_ok(|step| step.len()).try_collect().await
    }

    /// A program that writes into what is being sent has it sent again, as it is then.
    #[tokio::test]
    async fn what_is_written_into_a_large_part_while_it_is_sent_is_noticed() {
        let Case { job, mut expected, .. } = case(&Budget::new(1 << 30)).await;
        let staging = job.staging.clone().unwrap();
        let range = part(1);
        let (payload, _) = job.source(range).payload(range, &job.lanes.budget).await.unwrap();
        write(&staging, b"later", 10 * MIB);
        expected[index(10 * MIB)..][..5].copy_from_slice(b"later");
        assert_eq!(payload.bytes().await.unwrap_err().kind(), Kind::Conflict);
        let (payload, crc) = job.source(range).payload(range, &job.lanes.budget).await.unwrap();
        assert_eq!(crc, crc64(&expected[..index(PART)]));
        assert!(payload.bytes().await.unwrap() == expected[..index(PART)]);
    }

    #[tokio::test]
    async fn what_the_disk_damaged_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::named(dir.path(), "s", crate::write::Sums::default()).unwrap();
        write(&staging, &pattern(PART), 0);
        let Case { job, .. } = case(&Budget::new(1 << 30)).await;
        let segments = vec![crate::write::Segment { range: part(1), what: What::Staged(3) }];
        let job = Job { segments, staging: Some(Arc::new(staging)), ..job };
        let (payload, _) = job.source(part(1)).payload(part(1), &job.lanes.budget).await.unwrap();
        let file = std::fs::File::options().write(true).open(dir.path().join("s")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 20 * MIB).unwrap();
        let steps = payload.steps().collect::<Vec<_>>().await;
        let kinds = steps.iter().map(|step| step.as_ref().err().map(Error::kind)).take(3);
        assert_eq!(kinds.collect::<Vec<_>>(), [None, None, Some(Kind::Local)]);
    }

    #[tokio::test]
    async fn a_large_part_that_left_ahead_counts() {
        let Case { job, store, expected } = case(&Budget::new(1 << 30)).await;
        let segments = vec![crate::write::Segment { range: part(1), what: What::Staged(3) }];
        let staging = Arc::new(Staging::new(&Room::on_disk(&std::env::temp_dir(), Some(0))).unwrap());
        write(&staging, &expected[..index(PART)], 0);
        let job = Job { segments, staging: Some(staging), len: PART, ..job };
        send_ahead(&job, (1, part(1))).await.unwrap();
        upload(&job).await.unwrap();
        assert_eq!(store.calls().iter().filter(|call| **call == "UploadPart").count(), 1);
        let info = store.head("bucket", "f", None).await.unwrap();
        assert_eq!(info.checksums, [checksum_of(&expected[..index(PART)])]);
    }
}
