//! Copying ranges between files without moving their bytes.
//!
//! What S3 has of the source becomes a run of the target that says of which object it is, at which version: nothing
//! moves before the target is saved, and then the server copies. What is only here is copied here.
//!
//! Such a run is right as long as its object is there. Whoever replaces, moves or removes an object on this mount has
//! what is copied from it fetched first ([`Fs::settle_copies`]), and while an object is being copied from, it stays:
//! a copy holds the source's name, its volume's names, and the turn of its commits. Another client is not held back:
//! then reads of the run and the target's save fail `Stale`, and the rest of the target is kept.

use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;

use super::file::{Copied, File, MATERIALISE_STEP, Taken, require_all_of};
use super::{Fs, TELLING, lock};
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::read::{Cursor, Object};
use crate::s3::{GetRequest, read_all, watch};
use crate::tree::VolumeId;
use crate::write::journal::{CopiedFrom, Record};
use crate::write::{Base, Staging, Sum, What};

/// Bytes copied here in one call; the program asks for the rest.
const STAGED_MAX: u64 = 64 << 20;
/// How much of them is in memory.
const STAGED_STEP: u64 = 1 << 20;
/// Runs of one file that may be copied from other objects: reading and saving ask for each of them.
const COPIES_MAX: usize = 256;

/// Files that may have runs of other objects, with a name or without.
#[derive(Debug, Default)]
pub(super) struct Copies(Mutex<Vec<Weak<File>>>);

impl Copies {
    fn add(&self, file: &Arc<File>) {
        let mut files = lock(&self.0);
        if !files.iter().any(|known| Weak::ptr_eq(known, &Arc::downgrade(file))) {
            files.push(Arc::downgrade(file));
        }
    }

    /// Those that have some still.
    fn files(&self) -> Vec<Arc<File>> {
        let mut files = lock(&self.0);
        files.retain(|file| file.upgrade().is_some_and(|file| !lock(&file.state).copies.is_empty()));
        files.iter().filter_map(Weak::upgrade).collect()
    }
}

/// A run of the source: where its bytes come from, and where they go.
struct Run {
    what: What,
    from: ByteRange,
    to: ByteRange,
}

impl Fs {
    /// copy_file_range(2): copies up to `len` bytes from one open file to another, each with the place in it, and
    /// returns how many; 0 at the end of the source.
    ///
    /// `Unsupported` and `CrossDevice` say that reading and writing will do it.
    pub async fn copy_range(self: &Arc<Self>, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u64> {
        let (source, target) = (self.handles.file(from.0)?, self.handles.file(to.0)?);
        if !target.write {
            return Err(Error::new(Kind::BadHandle, "not open for writing"));
        }
        let (source, target) = (&source.file, &target.file);
        let copying = self.copy_between((source, from.1), (target, to.1), len);
        // The source may be on its way to S3.
        let copied =
            watch(&source.progress, self.options.timeout + TELLING, copying).await.unwrap_or_else(|| {
                let seconds = self.options.timeout.as_secs_f32();
                Err(Error::new(Kind::TimedOut, format!("nothing moved for {seconds} s")))
            })?;
        self.tree().clear_mtime(target.ino);
        Ok(copied)
    }

    async fn copy_between(
        self: &Arc<Self>,
        from: (&Arc<File>, u64),
        to: (&Arc<File>, u64),
        len: u64,
    ) -> Result<u64> {
        let (source, target) = (from.0, to.0);
        let Some(link) = self.tree().link_of(source.ino) else {
            return Err(by_hand("the source has no name"));
        };
        let _name = self.turns.take(link.0, &link.1).await;
        if self.tree().link_of(source.ino).as_ref() != Some(&link) {
            return Err(by_hand("the source was moved"));
        }
        let id = self.volume_of(source)?;
        let (volume, target_volume) = (self.volume(id)?, self.volume(self.volume_of(target)?)?);
        if volume.reach != target_volume.reach {
            return Err(Error::new(
                Kind::CrossDevice,
                "the buckets belong to different sessions or endpoints",
            ));
        }
        // It has its name to itself, so this is where it stays.
        let shared = self.share_file(source).await?;
        let _turn = source.commit.lock().await;
        self.make_sure(source).await?;
        let Some((runs, object, staging)) = runs(source, from.1, to.1, len)? else { return Ok(0) };
        if Arc::ptr_eq(source, target) && overlap(&runs) {
            return Err(Error::new(Kind::InvalidArgument, "a file's range cannot be copied over itself"));
        }
        // A version that another one took the place of is gone, or about to be.
        let object = object.filter(|object| object.id.volume == id.0 && *object.id.key == *shared.key);
        let mut done = 0;
        for run in &runs {
            let copied = match (run.what, &object, &staging) {
                (What::Base, Some(object), _) => self.take_over(target, run, object)?,
                (What::Staged(_), _, Some(staging)) if done < STAGED_MAX => {
                    self.copy_here(target, run, staging)?
                }
                (What::Zero(_), _, _) => target.copy_hole(self, run.to)?,
                _ => 0,
            };
            done += copied;
            if copied < run.to.len() {
                break;
            }
        }
        if done == 0 { Err(by_hand("the source is not in S3 yet")) } else { Ok(done) }
    }

    fn volume_of(&self, file: &File) -> Result<VolumeId> {
        self.tree().object_place(file.ino).map(|(id, _)| id).map_err(|_| by_hand("the file has no name"))
    }

    /// A file opened by a listing's word is asked for before it is copied from, as it would be before it is read.
    async fn make_sure(&self, source: &Arc<File>) -> Result<()> {
        let Some(id) = source.object_id() else { return Ok(()) };
        if source.renewable(&id).is_some() {
            let volume = self.volume(VolumeId(id.volume))?;
            let info = match volume.store.head(&volume.bucket, &id.key, None).await {
                Err(error) if error.is_not_found() => {
                    return Err(Error::new(Kind::Stale, "the object was removed by another client"));
                }
                answer => answer?,
            };
            if info.etag == id.etag {
                source.described(&volume, &info, None);
            } else {
                self.renew(source, &id).await?;
            }
        }
        // From here on the handles stay with this version.
        let _ = source.object_id().is_none_or(|id| source.confirm(self, &id));
        Ok(())
    }

    /// The target has a run of the object from now on.
    fn take_over(&self, target: &Arc<File>, run: &Run, object: &Object) -> Result<u64> {
        let shift = run.from.start().wrapping_sub(run.to.start());
        let copied = Copied { object: object.clone(), shift };
        let len = target.take_over(self, run.to, copied)?;
        // Nobody looks for it while the source is held. A file without copies would not be kept here.
        self.copies.add(target);
        Ok(len)
    }

    /// Bytes that are only here are copied here.
    fn copy_here(self: &Arc<Self>, target: &Arc<File>, run: &Run, staging: &Staging) -> Result<u64> {
        let len = run.from.len().min(STAGED_MAX);
        let mut done = 0;
        while let Some(step) = ByteRange::at(run.from.start() + done, (len - done).min(STAGED_STEP)) {
            // What was let go of is in S3 when the source is saved; a disk that is short is waited for by a write.
            let Some(bytes) = staging.bytes(step)? else { break };
            let at = run.to.start() + done;
            match target.write(self, Some(at), &bytes)? {
                Taken::Here(parts) => self.send_ahead(target, parts),
                Taken::NeedsRoom | Taken::NeedsCommit => break,
            }
            done += step.len();
        }
        Ok(done)
    }

    /// A file that an earlier mount left with runs of other objects.
    pub(super) fn watch_copies(&self, file: &Arc<File>) {
        if !lock(&file.state).copies.is_empty() {
            self.copies.add(file);
        }
    }

    /// Reads a run that is copied from another object.
    pub(super) async fn read_copied(
        &self,
        copies: &[Copied],
        number: u32,
        cursor: &Cursor,
        range: ByteRange,
    ) -> Result<Vec<Bytes>> {
        let (copied, range) = place(copies, number, range)?;
        self.reader.read(&copied.object, cursor, range).await
    }

    /// Objects of these keys are about to be replaced or removed here: what other files have of them is fetched. The
    /// caller holds whatever keeps more from being copied (see above).
    ///
    /// `but` has no need of it: its own commit replaces the object with what is copied from it.
    pub(super) async fn settle_copies(
        &self,
        volume: VolumeId,
        is_going: impl Fn(&str) -> bool,
        but: Option<&Arc<File>>,
    ) -> Result<()> {
        let is_other = |file: &Arc<File>| but.is_none_or(|but| !Arc::ptr_eq(but, file));
        let mut fetched = false;
        for file in self.copies.files().iter().filter(|file| is_other(file)) {
            for (number, copied, run) in file.copied_runs() {
                if copied.object.id.volume == volume.0 && is_going(&copied.object.id.key) {
                    self.fetch_copied(file, number, &copied, run).await?;
                    fetched = true;
                }
            }
        }
        // What was acknowledged as a copy of the object is not lost with the machine's power once the object is gone.
        if let (true, Some(journal)) = (fetched, &self.options.journal) {
            journal.sync().await?;
        }
        Ok(())
    }

    async fn fetch_copied(&self, file: &File, number: u32, copied: &Copied, run: ByteRange) -> Result<()> {
        let object = &copied.object;
        let mut at = run.start();
        while let Some(step) = ByteRange::new(at, (at + MATERIALISE_STEP).min(run.end())) {
            let range = ByteRange::at(step.start().wrapping_add(copied.shift), step.len());
            let request = GetRequest {
                bucket: object.bucket.to_string(),
                key: object.id.key.to_string(),
                range,
                if_match: Some(object.id.etag.clone()),
                ..GetRequest::default()
            };
            let (info, bytes) = match read_all(&**object.store(), request, step.len()).await {
                // Another client was first: there is nothing left to fetch.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Stale) => return Ok(()),
                answer => answer?,
            };
            if info.etag != object.id.etag {
                return Ok(());
            }
            require_all_of(step, &bytes)?;
            file.stage_copied(self, number, step, &bytes)?;
            at = step.end();
        }
        Ok(())
    }
}

impl File {
    /// Takes over a run of an object; 0 where it has too many already.
    fn take_over(&self, fs: &Fs, range: ByteRange, copied: Copied) -> Result<u64> {
        let mut state = self.current()?;
        if state.needs_commit(range) {
            return Ok(0);
        }
        let same = |known: &Copied| known.object.id == copied.object.id && known.shift == copied.shift;
        let number = match state.copies.iter().position(same) {
            Some(known) => known,
            None if state.copies.len() >= COPIES_MAX => return Ok(0),
            None => state.copies.len(),
        };
        let copy = u32::try_from(number).map_err(|_| Error::new(Kind::Internal, "too many copies"))?;
        let from = CopiedFrom { object: fs.base_of(&copied.object), shift: copied.shift };
        let noted = |file, stamp, at| Record::Copied { file, range, stamp, at, number: copy, from };
        let stamp = state.change(fs, self.ino, range.end(), noted)?;
        self.note_uploads(&state);
        if number == state.copies.len() {
            state.copies.push(copied);
        }
        state.extents.copy(range, stamp, copy);
        Ok(range.len())
    }

    /// What to answer to a save that failed so. Where this mount took the object, its bytes are here by now, and the next
    /// try has them.
    pub(super) fn without_source(&self, gone: &Base, cause: Error) -> Error {
        let told = format!(
            "another client replaced s3://{}/{} before the copy of it was saved; copy it again",
            gone.bucket, gone.key
        );
        let is_needed = self.copied_runs().iter().any(|(_, copied, _)| copied.origin().object == *gone);
        Error::new(if is_needed { Kind::Stale } else { Kind::Conflict }, told).with_source(cause)
    }

    fn copy_hole(&self, fs: &Fs, range: ByteRange) -> Result<u64> {
        let mut state = self.current()?;
        if state.needs_commit(range) {
            return Ok(0);
        }
        if range.end() > state.extents.len() {
            let cut = |file, stamp, at| Record::Cut { file, len: range.end(), stamp, at };
            let stamp = state.change(fs, self.ino, range.end(), cut)?;
            self.note_uploads(&state);
            state.extents.truncate(range.end(), stamp);
        }
        self.zero(fs, &mut state, range)?;
        Ok(range.len())
    }

    /// Runs that are copied from other objects, as long as nobody has fetched them.
    fn copied_runs(&self) -> Vec<(u32, Copied, ByteRange)> {
        let state = lock(&self.state);
        let runs = state.extents.all().into_iter().filter_map(|segment| match segment.what {
            What::Copied(_, number) => {
                let copied = state.copies.get(number as usize)?.clone();
                Some((number, copied, segment.range))
            }
            _ => None,
        });
        runs.collect()
    }

    /// Puts fetched bytes beside whatever was written meanwhile.
    fn stage_copied(&self, fs: &Fs, number: u32, range: ByteRange, bytes: &[u8]) -> Result<()> {
        let mut state = lock(&self.state);
        let mut sums: Vec<Sum> = Vec::new();
        for segment in state.extents.segments(range) {
            if matches!(segment.what, What::Copied(_, of) if of == number) {
                let from = usize::try_from(segment.range.start() - range.start()).unwrap_or(0);
                let len = usize::try_from(segment.range.len()).unwrap_or(0);
                let Some(bytes) = bytes.get(from..from + len) else {
                    return Err(Error::new(Kind::Corrupt, "the answer is shorter than what was asked for"));
                };
                sums.extend(state.stage(fs, bytes, segment.range.start())?);
            }
        }
        // What was acknowledged as a copy is on the disk before it counts as staged.
        if let Some(line) = state.owing.line.clone() {
            if let Some(staging) = state.latest().1 {
                staging.sync()?;
            }
            line.append(|file| Record::Fetched { file, range, number, sums })?;
        }
        state.extents.fetched(range, number);
        Ok(())
    }
}

/// What a range of the source is made of and where each run goes; `None` at its end.
#[allow(clippy::type_complexity)]
fn runs(
    source: &File,
    from: u64,
    to: u64,
    len: u64,
) -> Result<Option<(Vec<Run>, Option<Object>, Option<Arc<Staging>>)>> {
    let state = source.current()?;
    let end = from.saturating_add(len).min(state.extents.len());
    let Some(range) = ByteRange::new(from, end) else { return Ok(None) };
    let runs = state.segments(range).into_iter().filter_map(|segment| {
        let at = to.checked_add(segment.range.start() - from)?;
        Some(Run { what: segment.what, from: segment.range, to: ByteRange::at(at, segment.range.len())? })
    });
    Ok(Some((runs.collect(), state.object.clone(), state.staging.clone())))
}

/// Whether what is copied and where it goes have bytes in common.
fn overlap(runs: &[Run]) -> bool {
    let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return false };
    first.from.start() < last.to.end() && first.to.start() < last.from.end()
}

fn place(copies: &[Copied], number: u32, range: ByteRange) -> Result<(&Copied, ByteRange)> {
    let copied = copies.get(number as usize);
    copied
        .and_then(|copied| {
            Some((copied, ByteRange::at(range.start().wrapping_add(copied.shift), range.len())?))
        })
        .ok_or_else(|| Error::new(Kind::Internal, "a copied run of bytes without its source"))
}

fn by_hand(why: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{why}; it is copied by reading and writing"))
}
