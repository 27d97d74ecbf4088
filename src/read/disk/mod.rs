//! Blocks on a local disk: they survive the mount, and every mount of the host shares them.
//!
//! Owns: the cache directory, the threads that write into it, and the judgement of when a disk is no use.
//! Does not own: which version is wanted (the caller says it in every [`Object`]), nor blocks in memory.
//!
//! Guarantees to callers
//! - A block answered is of exactly the version asked for (origin, bucket, key, ETag and size are all compared) and
//!   has the checksum it was written with. Whatever is damaged, torn, shortened or missing is a miss.
//! - Nothing here fails a read: a disk that fails is left alone for a while, and one that hangs is not waited for.
//! - [`DiskCache::keep`] holds up fetches by no more than a multiple of the time that the network takes: what was read
//!   once is here soon after, unless the disk is much slower than the network. What finds no room is not kept.
//! - The limit holds over all processes that fill the directory: bytes are reserved before they are written.
//! - Opening looks at nothing, however much there is.
//! - A file that was handed out as [`whole`](DiskCache::whole) is never changed; it may lose its name.

mod behind;
mod files;
mod health;
mod index;
mod usage;
mod verified;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::Object;
use crate::base::{ByteRange, Clock};
use crate::error::Result;
use crate::stats::Stats;
pub use behind::Fetching;
use behind::{Behind, Turn};
use files::{Files, Opened, Run};
use health::Health;
use index::{BLOCK_BYTES, Place};
use verified::{DataFile, Verified};

/// Threads that write. One keeps up with a fast network; two, with a disk that answers late.
const WRITERS: usize = 2;
/// How long a reader waits for the disk before it asks S3: longer than a slow disk with a full window of read-ahead
/// before it takes, and much shorter than an operation may.
const DISK_WAIT: Duration = Duration::from_secs(10);
/// Pieces that were read and not taken yet.
const FOUND_MAX: usize = 2;
/// The most that is read to verify a file when it is opened, in bytes: a hundredth of a second or so.
const VERIFY_AT_OPEN_BYTES: u64 = 32 << 20;
/// Blocks that are verified at once.
const VERIFY_STEP_BLOCKS: u64 = (4 << 20) / BLOCK_BYTES;

/// Bounds of the cache.
#[derive(Clone, Copy, Debug)]
pub struct DiskLimits {
    /// Bytes on disk, over all processes that use the directory.
    pub disk_bytes: u64,
    /// Bytes in memory that wait to be written.
    pub behind_bytes: u64,
}

/// How much the cache has and may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Of all processes that use the directory; `None` before the first write, where nobody has counted yet.
    pub used_bytes: Option<u64>,
    pub limit_bytes: u64,
}

/// The cache on disk of one mount.
pub struct DiskCache(Arc<Shared>);

/// What the disk has of a piece.
#[derive(Debug)]
pub struct Found {
    pub piece: ByteRange,
    /// As long as the piece; what is not in `parts` means nothing.
    pub bytes: BytesMut,
    /// In order, apart from each other.
    pub parts: Vec<ByteRange>,
    corrupt: bool,
}

/// Pieces as they come from the disk, in order; those of which it has nothing are left out.
pub struct Look {
    found: mpsc::Receiver<Found>,
    shared: Arc<Shared>,
}

impl Look {
    /// The next piece; `None` when there are no more, or the disk takes too long.
    pub async fn next(&mut self) -> Option<Found> {
        match tokio::time::timeout(DISK_WAIT, self.found.recv()).await {
            Ok(found) => found,
            Err(_) => {
                let shared = &self.shared;
                shared.failed(&shared.reading, "reading", &io::Error::from(io::ErrorKind::TimedOut));
                None
            }
        }
    }
}

struct Shared {
    files: Files,
    limits: DiskLimits,
    behind: Behind,
    verified: Mutex<Verified>,
    /// Apart, because a full disk can be read and a read-only one too.
    reading: Mutex<Health>,
    writing: Mutex<Health>,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
}

impl DiskCache {
    /// Opens or makes the cache in `dir`. Refuses a directory that other users could put bytes into.
    pub fn open(
        dir: &Path,
        limits: DiskLimits,
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            files: Files::open(dir, limits.disk_bytes, Arc::clone(&stats))?,
            limits,
            behind: Behind::new(limits.behind_bytes, Arc::clone(&clock)),
            verified: Mutex::new(Verified::new()),
            reading: Mutex::default(),
            writing: Mutex::default(),
            clock,
            stats,
        });
        for _ in 0..WRITERS {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("disk-cache".to_owned()).spawn(move || {
                while let Some(turn) = shared.behind.take() {
                    shared.write(&turn);
                }
            })?;
        }
        Ok(Arc::new(Self(shared)))
    }

    /// How much it has and may have. May wait for the disk.
    pub fn usage(&self) -> DiskUse {
        DiskUse { used_bytes: self.0.files.used_bytes(), limit_bytes: self.0.limits.disk_bytes }
    }

    /// Bytes in memory that wait to be written, and the most they may be.
    pub fn queue_bytes(&self) -> (u64, u64) {
        (self.0.behind.held_bytes(), self.0.limits.behind_bytes)
    }

    /// Looks for what is here of each of these pieces, which follow on each other, without waiting for long. Bytes are
    /// read into `room` made for a piece of which there is something. Has to be called inside a tokio runtime.
    pub fn look(
        &self,
        object: &Object,
        pieces: Vec<ByteRange>,
        room: impl Fn(usize) -> BytesMut + Send + 'static,
    ) -> Look {
        let (tell, found) = mpsc::channel(FOUND_MAX);
        if self.0.may(&self.0.reading) {
            let (shared, wanted) = (Arc::clone(&self.0), object.clone());
            tokio::task::spawn_blocking(move || {
                shared.look(&wanted, &pieces, room, |piece| tell.blocking_send(piece).is_ok());
            });
        }
        Look { found, shared: Arc::clone(&self.0) }
    }

    /// For a fetch that begins now.
    pub fn fetching(&self) -> Fetching {
        Fetching::begins(self.0.clock.now())
    }

    /// Writes the whole blocks among these bytes some time soon, if there is room for them on the disk, and in the
    /// queue before fetches have waited for the disk for too long.
    pub async fn keep(&self, object: &Object, start: u64, bytes: &Bytes, fetching: &mut Fetching) {
        let shared = &self.0;
        if object.size > shared.limits.disk_bytes || !shared.may(&shared.writing) {
            return;
        }
        let Some(run) = whole_blocks(object.size, start, bytes) else { return };
        if !shared.behind.offer(object, run, bytes.len() as u64, fetching).await {
            shared.stats.disk_dropped.add(1);
        }
    }

    /// A file with all of the object's bytes, if each of its blocks is here and was found good by this process. What
    /// little is not verified yet is verified now. Blocks.
    pub fn whole(&self, object: &Object) -> Option<File> {
        let place = Place::of(object)?;
        let shared = &self.0;
        if !shared.may(&shared.reading) {
            return None;
        }
        let answer = shared.files.data(&place, shared.clock.wall());
        let (data, metadata) = shared.judge(&shared.reading, "reading", answer)??;
        let file = DataFile { inode: metadata.ino(), modified: metadata.modified().ok()? };
        let missing = lock(&shared.verified).missing(&place.name, file, place.blocks());
        let left: u64 = missing.iter().map(|run| run.end - run.start).sum();
        if left * BLOCK_BYTES > VERIFY_AT_OPEN_BYTES {
            return None;
        }
        if !missing.is_empty() {
            let version = shared.open(&place)?;
            for run in &missing {
                let mut at = run.start;
                while at < run.end {
                    let step = at..(at + VERIFY_STEP_BLOCKS).min(run.end);
                    let found = shared.verify(&place, &version, step.clone(), BytesMut::zeroed)?;
                    if found.good != [step.clone()] {
                        return None;
                    }
                    at = step.end;
                }
            }
        }
        // Asked again, because the blocks that are good now may be of another file than the one opened above.
        let whole = missing.is_empty()
            || lock(&shared.verified).missing(&place.name, file, place.blocks()).is_empty();
        whole.then_some(data)
    }

    #[cfg(test)]
    fn settle(&self) {
        assert!(self.0.behind.settled(Duration::from_secs(60)), "blocks are still on their way to the disk");
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.0.behind.close();
    }
}

impl Shared {
    /// Tells of each piece of which something is here; `tell` says whether anybody still wants to know.
    fn look(
        &self,
        object: &Object,
        pieces: &[ByteRange],
        room: impl Fn(usize) -> BytesMut,
        mut tell: impl FnMut(Found) -> bool,
    ) {
        let mut version = Place::of(object).and_then(|place| Some((self.open(&place)?, place)));
        if let Some(((version, _), (first, last))) = version.as_ref().zip(pieces.first().zip(pieces.last()))
            && let Some(all) = ByteRange::new(first.start(), last.end())
        {
            version.expect(all);
        }
        let mut lacking = false;
        for (number, piece) in pieces.iter().enumerate() {
            let found =
                version.as_ref().and_then(|(version, place)| self.piece(place, version, *piece, &room));
            // It is gone, and under its name there may be another one by now.
            version.take_if(|_| found.as_ref().is_some_and(|found| found.corrupt));
            let bytes: u64 = found.iter().flat_map(|found| &found.parts).map(|part| part.len()).sum();
            self.stats.disk_bytes_read.add(bytes);
            lacking |= bytes < piece.len();
            // Counted before it is told, so that whoever has read to the end finds it counted.
            if number + 1 == pieces.len() {
                let count = if lacking { &self.stats.disk_misses } else { &self.stats.disk_hits };
                count.add(1);
            }
            if found.is_some_and(|found| !tell(found)) {
                return;
            }
        }
    }

    fn piece(
        &self,
        place: &Place,
        version: &Opened,
        piece: ByteRange,
        room: impl Fn(usize) -> BytesMut,
    ) -> Option<Found> {
        let indices = piece.start() / BLOCK_BYTES..piece.end().min(place.size).div_ceil(BLOCK_BYTES);
        let blocks = |run: Range<u64>| {
            ByteRange::new(run.start * BLOCK_BYTES, (run.end * BLOCK_BYTES).min(place.size))
        };
        let around = blocks(indices.clone())?;
        let aligned = around == piece;
        let room = |len| if aligned { room(len) } else { BytesMut::zeroed(len) };
        let found = self.verify(place, version, indices, room)?;
        let mut bytes = found.bytes;
        if !aligned {
            let offset = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
            bytes.advance(offset(piece.start() - around.start()));
            bytes.truncate(offset(piece.len()));
        }
        let parts = found.good.into_iter().filter_map(|run| blocks(run)?.intersect(piece)).collect();
        Some(Found { piece, bytes, parts, corrupt: found.corrupt })
    }

    fn open(&self, place: &Place) -> Option<Opened> {
        if !self.may(&self.reading) {
            return None;
        }
        let answer = self.files.open_version(place, self.clock.wall());
        self.judge(&self.reading, "reading", answer)?
    }

    /// Reads those blocks that are here, and remembers which are good.
    fn verify(
        &self,
        place: &Place,
        version: &Opened,
        indices: Range<u64>,
        room: impl FnOnce(usize) -> BytesMut,
    ) -> Option<files::Found> {
        let answer = self.files.read(place, version, indices, room);
        let found = self.judge(&self.reading, "reading", answer)??;
        if found.corrupt {
            self.stats.disk_corrupt.add(1);
            tracing::warn!(name = place.name, "a damaged file in the cache directory was removed");
        }
        lock(&self.verified).note(&place.name, version.inode, found.good.iter().cloned().flatten());
        Some(found)
    }

    fn write(&self, turn: &Turn<'_>) {
        if !self.may(&self.writing) {
            return;
        }
        let Some(place) = Place::of(&turn.object) else { return };
        let answer = self.files.write(&place, &turn.runs);
        if let Some(written) = self.judge(&self.writing, "writing", answer) {
            self.stats.disk_bytes_written.add(written);
        }
    }

    fn may(&self, health: &Mutex<Health>) -> bool {
        lock(health).is_usable(self.clock.now())
    }

    /// What a file operation says of the disk. Files that come and go while we look say nothing.
    fn judge<T>(&self, health: &Mutex<Health>, doing: &'static str, answer: io::Result<T>) -> Option<T> {
        match answer {
            Ok(value) => {
                lock(health).succeeded();
                Some(value)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.failed(health, doing, &error);
                None
            }
        }
    }

    fn failed(&self, health: &Mutex<Health>, doing: &'static str, error: &io::Error) {
        self.stats.disk_errors.add(1);
        let (rest, known) = {
            let mut health = lock(health);
            let rest = health.failed(self.clock.now());
            (rest, health.is_known_to_fail())
        };
        match rest {
            Some(rest) if !known => {
                let seconds = rest.as_secs();
                tracing::warn!(%error, doing, seconds, "the cache directory fails; going on without it for a while");
            }
            _ => tracing::debug!(%error, doing, "the cache directory fails"),
        }
    }
}

/// The whole blocks among bytes at `start` of an object; its last one may be short.
fn whole_blocks(size: u64, start: u64, bytes: &Bytes) -> Option<Run> {
    let end = start + bytes.len() as u64;
    let first = start.div_ceil(BLOCK_BYTES);
    let last = if end == size { size } else { end / BLOCK_BYTES * BLOCK_BYTES };
    let blocks = ByteRange::new(first * BLOCK_BYTES, last)?;
    let offset = |at: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
    Some(Run { first, bytes: bytes.slice(offset(blocks.start())..offset(blocks.end())) })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
