//! The journal's segments on disk: appended to, synced together, begun anew with a checkpoint.
//!
//! Invariants
//! 1. `journal-N` has its name only once its checkpoint is on the disk. What is called otherwise never counted.
//! 2. Of the segments, the one with the highest number has everything; the others are waiting to be removed, which
//!    happens only after the directory was synced.
//! 3. Nothing is appended to a segment that the disk did not take (a failed sync: the kernel may have dropped the pages
//!    and will not say so again) or that may have a successor (a failed rename). The next append or sync begins a new
//!    one from what is in memory, or fails.
//! 4. Frames are written at the end of the last whole one: what is left of one that failed is written over, and is no
//!    frame anywhere else.
//! 5. A segment is at most twice its checkpoint, or `segment_bytes` if that is more; so the whole is bounded by what is
//!    owed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::ledger::{FrameAt, Ledger, Step};
use super::naming;
use super::record::{
    HEADER_BYTES, Record, decode, encode, header, index_of, read_header, synced_by_later_frames,
};
use crate::base::{ByteRange, private};
use crate::error::{Error, Kind, Result};

/// The name a segment is written under.
const UNFINISHED: &str = "journal.new";
/// Bytes of files that the journal itself has, at most: a segment of 16 MiB has them and the records besides.
const INLINED_MAX_BYTES: u64 = 8 << 20;
/// Bytes of a checkpoint that are written at once.
const CHECKPOINT_STEP_BYTES: usize = 1 << 20;

/// A file of the journal. Its two implementations are the disk's and the tests' that knows what was synced.
pub(super) trait LogFile: Send + Sync {
    /// All of it or an error, after which any part of it may be there.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// What was written before survives a power loss.
    fn sync(&self) -> io::Result<()>;
}

/// The directory of such files.
pub(super) trait LogDir: Send + Sync {
    fn names(&self) -> io::Result<Vec<String>>;
    /// An empty file, whatever was there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;
    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names survive a power loss.
    fn sync(&self) -> io::Result<()>;
}

/// What a directory of segments says.
pub(super) struct Replayed {
    pub(super) ledger: Ledger,
    /// The segment it is from.
    source: Option<Source>,
    /// The highest number of a segment, whole or not, or whatever else the next one has to be above.
    pub(super) last_number: u64,
    /// Bytes at the end that were not written whole, and whether good frames were among them.
    pub(super) torn_bytes: u64,
}

/// A segment to read from.
#[derive(Clone)]
struct Source {
    number: u64,
    file: Arc<dyn LogFile>,
}

/// Reads the newest segment that counts, and changes nothing. `boot` names this run of the machine.
pub(super) fn replay(dir: &dyn LogDir, boot: u64) -> Result<Replayed> {
    let numbers = numbers(dir)?;
    let last_number = numbers.last().copied().unwrap_or(0);
    for number in numbers.iter().rev() {
        let name = name_of(*number);
        let data = dir.read(&name)?;
        let whole = read_segment(&data, *number, boot).map_err(|error| {
            Error::new(error.kind(), format!("the journal {name} cannot be used")).with_source(error)
        })?;
        if let Some((ledger, torn_bytes)) = whole {
            let source = Source { number: *number, file: dir.open(&name)? };
            return Ok(Replayed { ledger, source: Some(source), last_number, torn_bytes });
        }
    }
    match numbers.last() {
        Some(number) => {
            let told = format!("the journal {} ends before its checkpoint does", name_of(*number));
            Err(Error::new(Kind::Corrupt, told))
        }
        None => Ok(Replayed { ledger: Ledger::default(), source: None, last_number, torn_bytes: 0 }),
    }
}

/// The numbers of all segments, in their order.
pub(super) fn numbers(dir: &dyn LogDir) -> Result<Vec<u64>> {
    let mut numbers: Vec<u64> = dir.names()?.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The sum of a segment and the length of its torn tail; `None` where it ends before its checkpoint does.
fn read_segment(data: &[u8], number: u64, boot: u64) -> Result<Option<(Ledger, u64)>> {
    let Some(written_in) = read_header(data, number)? else { return Ok(None) };
    // 0 is a machine that does not tell: it may have been down.
    let same_boot = written_in == boot && boot != 0;
    let mut ledger = Ledger::default();
    let mut records = 0;
    let mut complete = false;
    let mut at = HEADER_BYTES as u64;
    while index_of(at) < data.len() {
        let Some(frame) = decode(&data[index_of(at)..], number, at)? else {
            require_torn(data, number, at, same_boot)?;
            break;
        };
        match frame.record {
            Record::Checkpointed { records: counted } if !complete && counted == records => complete = true,
            record => {
                let place = FrameAt { offset: at, len: frame.len };
                ledger.admit(&record).map_err(|error| {
                    let told = format!("what it says at byte {at} does not fit what it said before");
                    Error::new(Kind::Corrupt, told).with_source(error)
                })?;
                ledger.apply(&record, place);
            }
        }
        records += 1;
        at += frame.len;
    }
    if !same_boot {
        ledger.rebooted();
    }
    Ok(complete.then_some((ledger, data.len() as u64 - at)))
}

/// Tells a tail that was never written whole from damage.
///
/// While the machine is up, a tail is torn only at its end. When it goes down, pages that were not synced may be missing
/// before others that are there; but none below what a later frame says was synced.
fn require_torn(data: &[u8], number: u64, at: u64, same_boot: bool) -> Result<()> {
    match synced_by_later_frames(data, number, at) {
        Some(synced) if same_boot || synced > at => {
            Err(Error::new(Kind::Corrupt, format!("it is damaged at byte {at}, and good after it")))
        }
        _ => Ok(()),
    }
}

impl Replayed {
    /// The number of the segment it is from.
    pub(super) fn number(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| source.number)
    }

    /// The bytes of a frame that the ledger points to.
    pub(super) fn bytes(&self, range: ByteRange, from: FrameAt) -> Result<Bytes> {
        let source = self.source.as_ref().ok_or_else(lost_bytes)?;
        source.bytes(range, from)
    }
}

impl Source {
    fn bytes(&self, range: ByteRange, from: FrameAt) -> Result<Bytes> {
        let mut buffer = vec![0; index_of(from.len)];
        self.file.read_at(&mut buffer, from.offset)?;
        let frame = decode(&buffer, self.number, from.offset)?.ok_or_else(lost_bytes)?;
        let (Record::Inlined { range: whole, bytes, .. } | Record::KeptBytes { range: whole, bytes, .. }) =
            frame.record
        else {
            return Err(lost_bytes());
        };
        if whole.intersect(range) != Some(range) {
            return Err(lost_bytes());
        }
        Ok(bytes.slice(index_of(range.start() - whole.start())..index_of(range.end() - whole.start())))
    }
}

fn lost_bytes() -> Error {
    Error::new(Kind::Corrupt, "bytes in the journal are not what was written")
}

/// The journal that is being written.
pub(super) struct Log {
    dir: Arc<dyn LogDir>,
    boot: u64,
    segment_bytes: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    ledger: Ledger,
    segment: Segment,
    /// The highest number that was ever tried.
    last_number: u64,
    /// Records appended, and how many of them are on the disk.
    appended: u64,
    synced: u64,
    /// Syncs of files, for tests and counters.
    syncs: u64,
}

struct Segment {
    source: Source,
    /// The end of its last whole frame, and how much is on the disk.
    len: u64,
    synced_len: u64,
    /// Length at which the next one begins.
    full_len: u64,
    /// `false`: invariant 3.
    usable: bool,
    /// Its name is on the disk. Until then the older ones stay.
    settled: bool,
    /// Bytes of files in it, and how many of them it began with.
    inlined: u64,
    began_inlined: u64,
    /// Records it began with.
    began_with: u64,
}

impl Log {
    /// Goes on from what was replayed, in a segment of its own.
    pub(super) fn begin(
        dir: Arc<dyn LogDir>,
        replayed: Replayed,
        boot: u64,
        segment_bytes: u64,
    ) -> Result<Self> {
        let Replayed { mut ledger, source, last_number, .. } = replayed;
        ledger.inherited();
        let segment = Segment::none(source);
        let mut inner = Inner { ledger, segment, last_number, appended: 0, synced: 0, syncs: 0 };
        rotate(&*dir, boot, segment_bytes, &mut inner)?;
        Ok(Self { dir, boot, segment_bytes, inner: Mutex::new(inner) })
    }

    /// Writes a record behind the others. It survives this process, and a power loss after the next sync.
    pub(super) fn append(&self, record: &Record) -> Result<()> {
        let inner = &mut *self.lock();
        inner.ledger.admit(record)?;
        if !inner.segment.usable {
            self.rotate(inner)?;
        }
        let segment = &mut inner.segment;
        let frame = encode(record, segment.source.number, segment.len, segment.synced_len)?;
        if let Err(error) = segment.source.file.write_at(&frame, segment.len) {
            // Should the process end now, a record that failed is not to be there.
            let _ = segment.source.file.truncate(segment.len);
            return Err(error.into());
        }
        let place = FrameAt { offset: segment.len, len: frame.len() as u64 };
        segment.len += place.len;
        if let Record::Inlined { bytes, .. } = record {
            segment.inlined += bytes.len() as u64;
        }
        let full = segment.len >= segment.full_len;
        inner.ledger.apply(record, place);
        inner.appended += 1;
        if full && let Err(error) = self.rotate(inner) {
            // The record is where it belongs; a full disk may well have room a little later.
            tracing::warn!(error = %error.report(), "the journal could not begin a new segment");
            inner.segment.full_len = inner.segment.len + self.segment_bytes / 4;
        }
        Ok(())
    }

    /// Whether so many bytes of a file may be in the journal too. What of those that are is in S3 by now is known when a
    /// new segment is begun, so that is done where it may well be half of them.
    pub(super) fn takes_inlined(&self, bytes: u64) -> bool {
        let inner = &mut *self.lock();
        let fits = |segment: &Segment| segment.inlined + bytes <= INLINED_MAX_BYTES;
        if !fits(&inner.segment)
            && inner.segment.began_inlined <= INLINED_MAX_BYTES / 2
            && let Err(error) = self.rotate(inner)
        {
            tracing::debug!(error = %error.report(), "the journal could not begin a new segment");
            return false;
        }
        fits(&inner.segment)
    }

    /// Records appended so far.
    pub(super) fn appended(&self) -> u64 {
        self.lock().appended
    }

    /// How many of them are on the disk.
    pub(super) fn synced(&self) -> u64 {
        self.lock().synced
    }

    /// Syncs of files so far.
    pub(super) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The number of the segment that is being written.
    pub(super) fn number(&self) -> u64 {
        self.lock().segment.source.number
    }

    /// Reads the ledger.
    pub(super) fn with_ledger<T>(&self, read: impl FnOnce(&Ledger) -> T) -> T {
        read(&self.lock().ledger)
    }

    /// Everything appended before is on the disk. Blocks; one at a time.
    pub(super) fn sync(&self) -> Result<()> {
        let (file, number, appended, len) = {
            let inner = &mut *self.lock();
            if inner.synced == inner.appended {
                return Ok(());
            }
            if !inner.segment.usable {
                return self.rotate(inner);
            }
            settle(&*self.dir, inner)?;
            inner.syncs += 1;
            let source = &inner.segment.source;
            (Arc::clone(&source.file), source.number, inner.appended, inner.segment.len)
        };
        // Without the lock: appends go on meanwhile.
        let answer = file.sync();
        let inner = &mut *self.lock();
        if inner.segment.source.number != number {
            // A new segment has taken over all there was; its name has to be on the disk as well.
            return settle(&*self.dir, inner);
        }
        match answer {
            Ok(()) => {
                inner.segment.synced_len = inner.segment.synced_len.max(len);
                inner.synced = inner.synced.max(appended);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the disk did not take the journal; writing it anew");
                inner.segment.usable = false;
                self.rotate(inner)
            }
        }
    }

    fn rotate(&self, inner: &mut Inner) -> Result<()> {
        rotate(&*self.dir, self.boot, self.segment_bytes, inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segment {
    /// Before the first one: nothing may be appended.
    fn none(source: Option<Source>) -> Self {
        let source = source.unwrap_or_else(|| Source { number: 0, file: Arc::new(Nothing) });
        Self {
            source,
            len: 0,
            synced_len: 0,
            full_len: 0,
            usable: false,
            settled: true,
            inlined: 0,
            began_inlined: 0,
            began_with: 0,
        }
    }
}

/// Begins a new segment with all that is owed. Where it fails before its name changed, everything is as it was.
fn rotate(dir: &dyn LogDir, boot: u64, segment_bytes: u64, inner: &mut Inner) -> Result<()> {
    inner.last_number += 1;
    let number = inner.last_number;
    inner.syncs += 1;
    let written = write_checkpoint(dir, boot, number, inner);
    let (file, ledger, len, inlined) = written.inspect_err(|_| {
        // It takes room that may be lacking. Under this name it means nothing, and the next one replaces it.
        let _ = dir.remove(UNFINISHED);
    })?;
    if let Err(error) = dir.rename(UNFINISHED, &name_of(number)) {
        // It may have its name all the same, and would be taken for the newest.
        inner.segment.usable = false;
        return Err(error.into());
    }
    debug_assert_eq!(ledger.checkpoint().len(), inner.ledger.checkpoint().len(), "nothing got lost");
    inner.ledger = ledger;
    inner.segment = Segment {
        source: Source { number, file },
        len,
        synced_len: len,
        full_len: segment_bytes.max(len.saturating_mul(2)),
        usable: true,
        settled: false,
        inlined,
        began_inlined: inlined,
        began_with: inner.appended,
    };
    settle(dir, inner)
}

/// Writes and syncs a segment under its first name. Returns the ledger that points into it, its length, and how many bytes
/// of files it has.
fn write_checkpoint(
    dir: &dyn LogDir,
    boot: u64,
    number: u64,
    inner: &Inner,
) -> Result<(Arc<dyn LogFile>, Ledger, u64, u64)> {
    let file = dir.create(UNFINISHED)?;
    let mut ledger = Ledger::default();
    let mut pending = header(number, boot);
    let (mut written, mut inlined) = (0u64, 0u64);
    let mut records = 0;
    for step in inner.ledger.checkpoint() {
        let record = match step {
            Step::Record(record) => record,
            Step::Bytes { file, range, from } => {
                inlined += range.len();
                Record::KeptBytes { file, range, bytes: inner.segment.source.bytes(range, from)? }
            }
        };
        let offset = written + pending.len() as u64;
        let frame = encode(&record, number, offset, 0)?;
        ledger.admit(&record)?;
        ledger.apply(&record, FrameAt { offset, len: frame.len() as u64 });
        pending.extend(frame);
        records += 1;
        if pending.len() >= CHECKPOINT_STEP_BYTES {
            file.write_at(&pending, written)?;
            written += pending.len() as u64;
            pending.clear();
        }
    }
    let end = Record::Checkpointed { records };
    pending.extend(encode(&end, number, written + pending.len() as u64, 0)?);
    file.write_at(&pending, written)?;
    file.sync()?;
    Ok((file, ledger, written + pending.len() as u64, inlined))
}

/// The segment's name is on the disk, and with it all it began with; the older ones may go.
fn settle(dir: &dyn LogDir, inner: &mut Inner) -> Result<()> {
    if inner.segment.settled {
        return Ok(());
    }
    dir.sync()?;
    inner.segment.settled = true;
    inner.synced = inner.synced.max(inner.segment.began_with);
    let current = inner.segment.source.number;
    // What cannot be removed does no harm but to the room it takes, and goes with the next segment.
    for name in dir.names().unwrap_or_default() {
        if number_of(&name).is_some_and(|number| number < current) {
            let _ = dir.remove(&name);
        }
    }
    Ok(())
}

fn name_of(number: u64) -> String {
    format!("journal-{number:08}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("journal-")?.parse().ok().filter(|number| name_of(*number) == name)
}

/// A directory of the file system.
pub(super) struct DiskDir(pub(super) PathBuf);

impl DiskDir {
    fn open_own(&self, name: &str) -> io::Result<File> {
        let path = self.0.join(name);
        private::open_to_read(&path).map_err(naming(&path))
    }
}

impl LogDir for DiskDir {
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.0)?;
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
        names.collect()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(private::create(&self.0.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(self.open_own(name)?))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_own(name)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

impl LogFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Before there is a segment.
struct Nothing;

impl LogFile for Nothing {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}
