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

use bytes::Bytes;

use super::Object;
use crate::base::{ByteRange, Clock};
use crate::error::Result;
use crate::stats::Stats;
pub use behind::Fetching;
use behind::{Behind, Turn};
use files::{Files, Run};
use health::Health;
use index::{BLOCK_BYTES, Place};
use verified::{DataFile, Verified};

/// Threads that write. One keeps up with a fast network; two, with a disk that answers late.
const WRITERS: usize = 2;
/// How long a reader waits for the disk before it asks S3: longer than a slow disk with a full window of read-ahead
/// before it takes, and much shorter than an operation may.
const DISK_WAIT: Duration = Duration::from_secs(10);
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

/// The cache on disk of one mount.
pub struct DiskCache(Arc<Shared>);

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

    /// The bytes of a range from its begin on, as far as they are here; without waiting for long. Has to be called
    /// inside a tokio runtime.
    pub async fn look(&self, object: &Object, range: ByteRange) -> Bytes {
        if !self.0.may(&self.0.reading) {
            return Bytes::new();
        }
        let (shared, wanted) = (Arc::clone(&self.0), object.clone());
        let reading = tokio::task::spawn_blocking(move || shared.read(&wanted, range));
        match tokio::time::timeout(DISK_WAIT, reading).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(_panic)) => Bytes::new(),
            Err(_) => {
                self.0.failed(&self.0.reading, "reading", &io::Error::from(io::ErrorKind::TimedOut));
                Bytes::new()
            }
        }
    }

    /// The same, however long it takes.
    pub fn read(&self, object: &Object, range: ByteRange) -> Bytes {
        self.0.read(object, range)
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
        for run in &missing {
            let mut at = run.start;
            while at < run.end {
                let step = at..(at + VERIFY_STEP_BLOCKS).min(run.end);
                let wanted = (step.end * BLOCK_BYTES).min(place.size) - step.start * BLOCK_BYTES;
                if shared.verify(&place, step.clone())?.len() as u64 != wanted {
                    return None;
                }
                at = step.end;
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
    fn read(&self, object: &Object, range: ByteRange) -> Bytes {
        let found = self.blocks_around(object, range).unwrap_or_default();
        let skip = usize::try_from(range.start() % BLOCK_BYTES).unwrap_or(0).min(found.len());
        let end = usize::try_from(range.len()).unwrap_or(usize::MAX).saturating_add(skip).min(found.len());
        let bytes = Bytes::from(found).slice(skip..end);
        let all = bytes.len() as u64 == range.len();
        if all {
            self.stats.disk_hits.add(1)
        } else {
            self.stats.disk_misses.add(1)
        }
        self.stats.disk_bytes_read.add(bytes.len() as u64);
        bytes
    }

    fn blocks_around(&self, object: &Object, range: ByteRange) -> Option<Vec<u8>> {
        if !self.may(&self.reading) {
            return None;
        }
        let indices = range.start() / BLOCK_BYTES..range.end().min(object.size).div_ceil(BLOCK_BYTES);
        self.verify(&Place::of(object)?, indices)
    }

    /// Reads blocks up to the first that lacks, and remembers that they are good.
    fn verify(&self, place: &Place, indices: Range<u64>) -> Option<Vec<u8>> {
        let answer = self.files.read(place, indices.clone(), self.clock.wall());
        let found = self.judge(&self.reading, "reading", answer)?;
        if found.corrupt {
            self.stats.disk_corrupt.add(1);
            tracing::warn!(name = place.name, "a damaged file in the cache directory was removed");
        }
        let good = (found.bytes.len() as u64).div_ceil(BLOCK_BYTES);
        lock(&self.verified).note(&place.name, found.data_inode, indices.start..indices.start + good);
        Some(found.bytes)
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
