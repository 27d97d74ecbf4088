//! The cache's directory: files of object versions, their accounting, and room for more.
//!
//! ```text
//! DIR/                    0700, of the user who mounts
//!   v1/                   the format's version; another version is another directory
//!     usage               bytes by shard, under its own lock
//!     00 .. ff/           shards
//!       HASH.index        header and marks
//!       HASH.data         the bytes at their own offsets
//! ```
//!
//! Locks, all of them flock(2), so that they hold between processes and end with them; in this order:
//! 1. a shard: shared while something in it is being written, exclusive (and only ever tried) to take things away;
//! 2. the usage file, for as long as it takes to read and write it.
//!
//! Readers take none: a block is good if its mark says so, whatever happens around it. The bytes of a version
//! never change, so that two writers of one block write the same.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use rand::seq::SliceRandom;
use rustix::fs::Advice;

use super::index::{BLOCK_BYTES, FORMAT, MARK_BYTES, Place, SHARDS, decode_marks, on_disk};
use super::usage::{Candidate, USAGE_BYTES, Usage, victims};
use crate::base::{ByteRange, private};
use crate::error::{Error, Kind, Result};
use crate::stats::Stats;

/// Candidates that a choice of what goes is made among. Redis finds ten enough for close to true LRU.
const SAMPLE_MIN: usize = 32;
/// How much more than is asked for is made free at once, as a share of the limit: making room costs a look at
/// directories, and this way few writes pay it.
const SLACK_SHARE: u64 = 64;
/// How often room is made for one write before it is given up: others take what was made free.
const ROOM_ROUNDS_MAX: u32 = 16;
/// How often the count is looked at where a writer is in the middle of changing it.
const USAGE_LOOKS_MAX: u32 = 4;
/// A version's time of use is written down when it is older than this.
const USE_NOTED_EVERY: Duration = Duration::from_secs(60);

/// The files of a version, open for reading.
pub(super) struct Opened {
    index: File,
    data: File,
    /// Inode of the data file.
    pub(super) inode: u64,
}

/// What a look for blocks found.
pub(super) struct Found {
    /// As long as the blocks asked for; what is not good in it means nothing.
    pub(super) bytes: BytesMut,
    /// The good blocks, in runs.
    pub(super) good: Vec<Range<u64>>,
    /// Whether a block was there and was not what its mark says.
    pub(super) corrupt: bool,
}

/// Whole blocks next to each other.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Index of the first block.
    pub(super) first: u64,
    pub(super) bytes: Bytes,
}

/// Files of the cache. All of it blocks.
pub(super) struct Files {
    root: PathBuf,
    limit_bytes: u64,
    stats: Arc<Stats>,
    fresh_names: AtomicU64,
}

impl Files {
    /// Opens or makes the directory; looks at nothing in it. Refuses one that others can write or own, because
    /// what is in it is taken for the bucket's.
    pub(super) fn open(dir: &Path, limit_bytes: u64, stats: Arc<Stats>) -> Result<Self> {
        let root = dir.join(format!("v{FORMAT}"));
        for dir in [dir, &root] {
            private::make_dir(dir).map_err(|error| cannot_use(dir, error))?;
        }
        Ok(Self { root, limit_bytes, stats, fresh_names: AtomicU64::new(0) })
    }

    /// Opens a version for reading; `None` where nothing of it is here.
    pub(super) fn open_version(&self, place: &Place, now: SystemTime) -> io::Result<Option<Opened>> {
        let Some((index, _)) = self.marks(place, 0..0)? else { return Ok(None) };
        let Some(data) = open_to_read(&self.data_path(place))? else {
            // Marks without bytes would keep the bytes from being written again.
            self.remove(place);
            return Ok(None);
        };
        note_use(&index, now);
        let inode = data.metadata()?.ino();
        Ok(Some(Opened { index, data, inode }))
    }

    /// Those of the blocks `indices` that are here and good, read into `room` made for all of them; `None` where none
    /// is. A version with a bad block goes as a whole, since its file may be in the kernel's hands and is never
    /// changed in place.
    pub(super) fn read(
        &self,
        place: &Place,
        version: &Opened,
        indices: Range<u64>,
        room: impl FnOnce(usize) -> BytesMut,
    ) -> io::Result<Option<Found>> {
        let Some(marks) = read_marks(&version.index, place, indices.clone())? else { return Ok(None) };
        let here = runs_of(&marks, |mark| *mark != 0);
        if here.is_empty() {
            return Ok(None);
        }
        let offset = |block: usize| {
            let at = (block as u64 * BLOCK_BYTES).min(place.size - indices.start * BLOCK_BYTES);
            usize::try_from(at).unwrap_or(usize::MAX)
        };
        let mut bytes = room(offset(marks.len()));
        let mut good = Vec::new();
        let mut bad = 0;
        for run in here {
            let (from, first) = (offset(run.start), indices.start + run.start as u64);
            let part = &mut bytes[from..offset(run.end)];
            let read = read_full(&version.data, part, first * BLOCK_BYTES)?;
            let right = good_blocks(place, first, &part[..read], &marks[run.clone()]);
            for good_run in runs_of(&right, |good| *good) {
                good.push(first + good_run.start as u64..first + good_run.end as u64);
            }
            bad += run.len() - right.iter().filter(|good| **good).count();
        }
        let corrupt = bad > 0;
        if corrupt {
            self.remove(place);
        }
        Ok(Some(Found { bytes, good, corrupt }))
    }

    /// Writes what is not here yet of these runs, as far as room can be made. Returns bytes written.
    pub(super) fn write(&self, place: &Place, runs: &[Run]) -> io::Result<u64> {
        let dir = self.shard_path(place.shard);
        make_shard(&dir)?;
        let missing = self.missing(place, runs)?;
        let Some(needed) = self.needed(place, &missing)? else { return Ok(0) };
        let Some(_writing) = self.reserve(place, &dir, needed)? else { return Ok(0) };
        // In this order: who finds marks without a file of bytes takes them away.
        let data = self.data_for_writing(place)?;
        let index = self.index_for_writing(place)?;
        for run in &missing {
            data.write_all_at(&run.bytes, run.first * BLOCK_BYTES)?;
            // After the bytes: a mark whose bytes never arrived does not fit them, so nothing needs a sync.
            let block = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
            let marks: Vec<u8> = (run.first..)
                .zip(run.bytes.chunks(block))
                .flat_map(|(index, block)| place.mark(index, block).to_le_bytes())
                .collect();
            index.write_all_at(&marks, place.mark_offset(run.first))?;
        }
        Ok(missing.iter().map(|run| run.bytes.len() as u64).sum())
    }

    /// The data file of a version, with its metadata. What of it is there is not looked at.
    pub(super) fn data(&self, place: &Place, now: SystemTime) -> io::Result<Option<(File, fs::Metadata)>> {
        let Some((index, _)) = self.marks(place, 0..0)? else { return Ok(None) };
        note_use(&index, now);
        let Some(data) = open_to_read(&self.data_path(place))? else { return Ok(None) };
        let metadata = data.metadata()?;
        Ok((metadata.len() == place.size).then_some((data, metadata)))
    }

    /// Takes a version away. Its bytes stay counted until its shard is looked at next, which errs on the side of
    /// the limit. Who has its file open reads on.
    pub(super) fn remove(&self, place: &Place) {
        for path in [self.index_path(place), self.data_path(place)] {
            // What cannot be removed is found bad again, and never served.
            let _ = fs::remove_file(path);
        }
    }

    /// The index file and the marks of some blocks; `None` where the version is not here.
    fn marks(&self, place: &Place, indices: Range<u64>) -> io::Result<Option<(File, Vec<u64>)>> {
        let Some(index) = open_to_read(&self.index_path(place))? else { return Ok(None) };
        if !has_header(&index, place)? {
            return Ok(None);
        }
        Ok(read_marks(&index, place, indices)?.map(|marks| (index, marks)))
    }

    /// Those parts of the runs that are not here.
    fn missing(&self, place: &Place, runs: &[Run]) -> io::Result<Vec<Run>> {
        let mut missing = Vec::new();
        for run in runs {
            let count = (run.bytes.len() as u64).div_ceil(BLOCK_BYTES);
            match self.marks(place, run.first..run.first + count)? {
                Some((_, marks)) => missing.extend(without_marks(run, &marks)),
                None => missing.push(run.clone()),
            }
        }
        Ok(missing)
    }

    /// What writing these runs occupies; `None` where there is nothing to write.
    fn needed(&self, place: &Place, missing: &[Run]) -> io::Result<Option<u64>> {
        if missing.is_empty() {
            return Ok(None);
        }
        let blocks: u64 = missing.iter().map(|run| on_disk(run.bytes.len() as u64)).sum();
        if fs::exists(self.index_path(place))? {
            return Ok(Some(blocks));
        }
        // A file whose blocks come in any order may need a block for the list of its extents.
        let extents = if place.blocks() > 1 { on_disk(1) } else { 0 };
        Ok(Some(blocks + on_disk(place.index_len()) + extents))
    }

    /// Counts bytes before they are written, making room where there is none. While the shard's handle that is
    /// returned is held, nobody takes stock of the shard. `None` where no room could be made.
    fn reserve(&self, place: &Place, dir: &Path, bytes: u64) -> io::Result<Option<File>> {
        if bytes > self.limit_bytes {
            return Ok(None);
        }
        for _ in 0..ROOM_ROUNDS_MAX {
            let shard = File::open(dir)?;
            shard.lock_shared()?;
            let over = self.with_usage(|usage| {
                let over = (usage.total() + bytes).saturating_sub(self.limit_bytes);
                if over == 0 {
                    usage.add(place.shard, bytes);
                }
                over
            })?;
            if over == 0 {
                return Ok(Some(shard));
            }
            drop(shard);
            if !self.make_room(over + self.limit_bytes / SLACK_SHARE, &place.name)? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Takes away what was not used for long, out of a sample; whether the count has shrunk.
    fn make_room(&self, wanted: u64, spared: &str) -> io::Result<bool> {
        let mut numbers: Vec<usize> = (0..SHARDS).collect();
        numbers.shuffle(&mut rand::rng());
        let mut sample = Vec::new();
        let mut held = Vec::new();
        for number in numbers {
            if sample.len() >= SAMPLE_MIN && held.iter().map(|(_, _, bytes)| bytes).sum::<u64>() >= wanted {
                break;
            }
            let path = self.shard_path(number);
            let Some(shard) = open_shard(&path)? else { continue };
            match shard.try_lock() {
                Ok(()) => {}
                // Something is being written into it.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            remove_leftovers(&path)?;
            let content = take_stock(number, &path)?;
            held.push((number, shard, content.iter().map(|candidate| candidate.bytes).sum()));
            sample.extend(content);
        }
        let gone = victims(sample, wanted, spared);
        for victim in &gone {
            let shard = self.shard_path(victim.shard);
            for ending in ["index", "data"] {
                absent_is_none(fs::remove_file(shard.join(format!("{}.{ending}", victim.name))))?;
            }
            if let Some((_, _, bytes)) = held.iter_mut().find(|(number, ..)| *number == victim.shard) {
                *bytes -= victim.bytes;
            }
        }
        self.stats.disk_evictions.add(gone.len() as u64);
        self.with_usage(|usage| {
            let before = usage.total();
            for (number, _, bytes) in &held {
                usage.set(*number, *bytes);
            }
            usage.total() < before
        })
    }

    /// Changes the count under its lock. Where there is none, or it is damaged, everything is counted: that is not
    /// at the start, but before the first write.
    fn with_usage<T>(&self, change: impl FnOnce(&mut Usage) -> T) -> io::Result<T> {
        let path = self.root.join("usage");
        let file = open_own(&path, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
        file.lock()?;
        let mut bytes = vec![0; USAGE_BYTES];
        let known = file.read_exact_at(&mut bytes, 0).ok().and_then(|()| Usage::decode(&bytes));
        let mut usage = match known {
            Some(usage) => usage,
            None => self.count_everything()?,
        };
        let answer = change(&mut usage);
        file.write_all_at(&usage.encode(), 0)?;
        Ok(answer)
    }

    /// What is counted, by whichever process counted last; `None` where nobody has. Takes no lock, so a writer may be
    /// seen in the middle: then it is looked at again.
    pub(super) fn used_bytes(&self) -> Option<u64> {
        let file = open_to_read(&self.root.join("usage")).ok()??;
        let mut bytes = vec![0; USAGE_BYTES];
        (0..USAGE_LOOKS_MAX).find_map(|_| {
            file.read_exact_at(&mut bytes, 0).ok()?;
            Some(Usage::decode(&bytes)?.total())
        })
    }

    fn count_everything(&self) -> io::Result<Usage> {
        let mut usage = Usage::EMPTY;
        for number in 0..SHARDS {
            let path = self.shard_path(number);
            if absent_is_none(is_shard(&path))? != Some(true) {
                continue;
            }
            let content = absent_is_none(take_stock(number, &path))?;
            usage.set(number, content.unwrap_or_default().iter().map(|candidate| candidate.bytes).sum());
        }
        Ok(usage)
    }

    /// The index file, made whole under another name so that nobody sees half of a header.
    fn index_for_writing(&self, place: &Place) -> io::Result<File> {
        let path = self.index_path(place);
        let mut changed = OpenOptions::new();
        changed.read(true).write(true);
        if let Some(index) = absent_is_none(open_own(&path, &changed))?
            && has_header(&index, place)?
        {
            return Ok(index);
        }
        let number = self.fresh_names.fetch_add(1, Ordering::Relaxed);
        let fresh = path.with_extension(format!("{}-{number}.new", std::process::id()));
        let index = private::create(&fresh)?;
        index.set_len(place.index_len())?;
        index.write_all_at(&place.header, 0)?;
        let linked = fs::hard_link(&fresh, &path);
        if linked.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists) {
            // Another process was first, or something that is no index of this version lies there.
            let theirs = open_own(&path, &changed)?;
            if !has_header(&theirs, place)? {
                fs::rename(&fresh, &path)?;
                return Ok(index);
            }
            fs::remove_file(&fresh)?;
            return Ok(theirs);
        }
        let removed = fs::remove_file(&fresh);
        linked.and(removed).map(|()| index)
    }

    fn data_for_writing(&self, place: &Place) -> io::Result<File> {
        let path = self.data_path(place);
        let open = || open_own(&path, OpenOptions::new().write(true).create(true).truncate(false));
        let mut data = open()?;
        if data.metadata()?.len() > place.size {
            // No file of ours; who has it open keeps it as it is.
            fs::remove_file(&path)?;
            data = open()?;
        }
        if data.metadata()?.len() < place.size {
            data.set_len(place.size)?;
        }
        Ok(data)
    }

    fn shard_path(&self, shard: usize) -> PathBuf {
        self.root.join(format!("{shard:02x}"))
    }

    fn index_path(&self, place: &Place) -> PathBuf {
        self.shard_path(place.shard).join(format!("{}.index", place.name))
    }

    fn data_path(&self, place: &Place) -> PathBuf {
        self.shard_path(place.shard).join(format!("{}.data", place.name))
    }
}

/// What a shard holds: each version with what its files occupy, those that an interrupted writer left among them.
fn take_stock(shard: usize, path: &Path) -> io::Result<Vec<Candidate>> {
    let mut content: std::collections::HashMap<String, Candidate> = Default::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Some(metadata) = absent_is_none(entry.metadata())? else { continue };
        let file_name = entry.file_name();
        let Some((name, ending)) = file_name.to_str().and_then(|name| name.split_once('.')) else { continue };
        let used_at = metadata.modified()?;
        let bytes = metadata.blocks() * 512;
        let candidate = content.entry(name.to_owned()).or_insert_with(|| Candidate {
            shard,
            name: name.to_owned(),
            used_at,
            bytes: 0,
        });
        candidate.bytes += bytes;
        // The index file's time is the time of use.
        if ending == "index" {
            candidate.used_at = used_at;
        }
    }
    Ok(content.into_values().collect())
}

/// Removes index files that their makers never finished. Nobody may be writing into the shard.
fn remove_leftovers(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "new") {
            absent_is_none(fs::remove_file(path))?;
        }
    }
    Ok(())
}

impl Opened {
    /// These bytes are read next: all of them are on their way from the disk while the first are looked at.
    pub(super) fn expect(&self, range: ByteRange) {
        let len = std::num::NonZeroU64::new(range.len());
        let _ = rustix::fs::fadvise(&self.data, range.start(), len, Advice::WillNeed);
    }
}

/// The marks of some blocks; `None` where the index file was shortened.
fn read_marks(index: &File, place: &Place, indices: Range<u64>) -> io::Result<Option<Vec<u64>>> {
    let count = usize::try_from(indices.end - indices.start).unwrap_or(0);
    let mut bytes = vec![0; count * MARK_BYTES];
    match index.read_exact_at(&mut bytes, place.mark_offset(indices.start)) {
        Ok(()) => Ok(Some(decode_marks(&bytes))),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads until the buffer is full or the file ends; returns how much.
fn read_full(data: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match data.read_at(&mut buffer[len..], at + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Which blocks are what their marks say; of what the file lacks there is nothing.
fn good_blocks(place: &Place, first: u64, bytes: &[u8], marks: &[u64]) -> Vec<bool> {
    let blocks = bytes.chunks(usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX));
    let checked = (first..).zip(blocks).zip(marks);
    checked.map(|((index, block), mark)| place.mark(index, block) == *mark).collect()
}

/// Where the items are that `wanted` says yes to, in runs.
fn runs_of<T>(items: &[T], wanted: impl Fn(&T) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for at in (0..items.len()).filter(|at| wanted(&items[*at])) {
        match runs.last_mut() {
            Some(run) if run.end == at => run.end += 1,
            _ => runs.push(Range { start: at, end: at + 1 }),
        }
    }
    runs
}

/// The parts of a run whose blocks have no mark.
fn without_marks(run: &Run, marks: &[u64]) -> Vec<Run> {
    let at =
        |block: usize| usize::try_from(block as u64 * BLOCK_BYTES).unwrap_or(usize::MAX).min(run.bytes.len());
    let missing = runs_of(marks, |mark| *mark == 0).into_iter();
    missing
        .map(|part| Run {
            first: run.first + part.start as u64,
            bytes: run.bytes.slice(at(part.start)..at(part.end)),
        })
        .collect()
}

fn has_header(index: &File, place: &Place) -> io::Result<bool> {
    let mut header = vec![0; place.header.len()];
    match index.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(header == place.header),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes down that a version was used, if the last note is old.
fn note_use(index: &File, now: SystemTime) {
    let noted = index.metadata().and_then(|metadata| metadata.modified());
    let old = noted.is_ok_and(|noted| now.duration_since(noted).is_ok_and(|age| age >= USE_NOTED_EVERY));
    if old {
        // A version that looks unused for longer than it is goes a little early.
        let _ = index.set_modified(now);
    }
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a file of the cache. What else has its name is taken away: nothing of the cache is lost with it.
fn open_own(path: &Path, options: &OpenOptions) -> io::Result<File> {
    match private::open(path, options) {
        Err(error) if private::is_refusal(&error) => {
            fs::remove_file(path)?;
            private::open(path, options)
        }
        opened => opened,
    }
}

/// `None` where it is not there, or something else is in the place of its shard: that goes when a shard is made.
fn open_to_read(path: &Path) -> io::Result<Option<File>> {
    let is_no_shard = || path.parent().is_some_and(|shard| is_shard(shard).is_ok_and(|is| !is));
    match open_own(path, OpenOptions::new().read(true)) {
        Err(error) if error.kind() == ErrorKind::NotADirectory && is_no_shard() => Ok(None),
        opened => absent_is_none(opened),
    }
}

fn make_shard(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made,
    }
    if is_shard(dir)? {
        return Ok(());
    }
    fs::remove_file(dir)?;
    DirBuilder::new().mode(0o700).create(dir)
}

/// Whether it is a directory of ours, and no link to one: files are made and removed in it.
fn is_shard(dir: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(dir)?;
    Ok(metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw())
}

fn open_shard(dir: &Path) -> io::Result<Option<File>> {
    match absent_is_none(is_shard(dir))? {
        Some(true) => absent_is_none(File::open(dir)),
        _ => Ok(None),
    }
}

fn cannot_use(dir: &Path, error: io::Error) -> Error {
    let dir = dir.display();
    if private::is_refusal(&error) {
        let what = format!(
            "the cache directory {dir} is not used, as what is in it would be taken for a bucket's: {error}"
        );
        return Error::new(Kind::InvalidArgument, what);
    }
    Error::new(Kind::Local, format!("cannot use the cache directory {dir}")).with_source(error)
}
