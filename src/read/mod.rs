//! Bytes out: blocks in memory, blocks on their way, and what to ask for ahead of a reader.
//!
//! Owns: the block caches in memory and on disk, the requests in flight, the read-ahead window's arithmetic.
//! Does not own: which version a handle reads (`fs` says it in every [`Object`]), or bytes not yet in S3.
//!
//! Guarantees to callers
//! - Bytes answered are of exactly the version asked for: every GET carries `If-Match`, the answer's ETag is
//!   compared, and the ETag is part of every cache key.
//! - A block is shared only when all of it has arrived.
//! - Two readers of one missing block cause one GET.
//! - A reader that goes away takes nothing from others, and no waiter outlives its fetch: a fetch that fails or
//!   dies wakes them all.
//! - Blocks, requests and bytes in flight are bounded by [`ReadSettings`] and the budget.

mod blocks;
mod disk;
mod fetch;
mod window;

pub use disk::{DiskCache, DiskLimits};
pub use window::Window;

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::base::{Budget, ByteRange, ETag};
use crate::error::{Error, Kind, Result};
use crate::s3::Store;
use crate::stats::Stats;
use fetch::Fetcher;

/// Unit of the cache in bytes. Small enough that a random read fetches little more than it asked for, large
/// enough that the table of a 1 GiB cache stays small.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// How often a block is asked for anew when its fetch was given up before it began.
const ASK_AGAIN_MAX: u32 = 8;

/// Identity of cached bytes: stale data cannot be served by mistake, because its ETag is another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// Which bucket of the mount.
    pub volume: u32,
    pub key: Arc<str>,
    pub etag: ETag,
}

/// One version of an object, and where to get it.
#[derive(Clone)]
pub struct Object {
    pub id: ObjectId,
    pub bucket: Arc<str>,
    /// Where the bucket is: an endpoint, or "aws". Blocks of an object without an origin stay in memory.
    pub origin: Arc<str>,
    /// Length of the object in bytes.
    pub size: u64,
    store: Arc<dyn Store>,
}

impl Object {
    pub fn new(id: ObjectId, bucket: Arc<str>, size: u64, store: Arc<dyn Store>) -> Self {
        Self { id, bucket, origin: Arc::from(""), size, store }
    }

    #[must_use]
    pub fn from_origin(mut self, origin: Arc<str>) -> Self {
        self.origin = origin;
        self
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("id", &self.id).field("size", &self.size).finish_non_exhaustive()
    }
}

/// Bounds of reading.
#[derive(Clone, Copy, Debug)]
pub struct ReadSettings {
    /// Bytes of blocks kept.
    pub cache_bytes: u64,
    /// The furthest a sequential reader is read ahead of, in bytes.
    pub window_max_bytes: u64,
    /// The most one GET asks for, in bytes.
    pub get_max_bytes: u64,
    /// GETs under way at once, over all files.
    pub gets_max: usize,
}

impl Default for ReadSettings {
    fn default() -> Self {
        Self { cache_bytes: 128 << 20, window_max_bytes: 32 << 20, get_max_bytes: 8 << 20, gets_max: 64 }
    }
}

/// Reads objects through the block cache; one for each mount.
#[derive(Clone)]
pub struct Reader {
    fetcher: Arc<Fetcher>,
    settings: ReadSettings,
    disk: Option<Arc<DiskCache>>,
    stats: Arc<Stats>,
}

impl Reader {
    /// Has to be called inside a tokio runtime: fetches are its tasks. `budget` bounds the bytes in flight. Blocks
    /// are looked for on `disk` before S3 is asked for them, and kept there.
    pub fn new(
        settings: ReadSettings,
        budget: Budget,
        disk: Option<Arc<DiskCache>>,
        stats: Arc<Stats>,
    ) -> Self {
        // A window that memory cannot hold would push out its own blocks before they are read.
        let window_max_bytes =
            settings.window_max_bytes.min(settings.cache_bytes / 4).min(budget.limit_bytes());
        let settings = ReadSettings { window_max_bytes, ..settings };
        Self { fetcher: Fetcher::new(settings, budget, disk.clone()), settings, disk, stats }
    }

    /// The bytes of a range if all of it is in memory; the window moves on and reads ahead as it needs to.
    pub fn cached(&self, object: &Object, window: &Mutex<Window>, range: ByteRange) -> Option<Vec<Bytes>> {
        let found = self.fetcher.cached(&object.id, block_indices(range))?;
        self.stats.block_hits.add(found.len() as u64);
        self.read_ahead(object, window, range);
        Some(cut(found, range))
    }

    /// Reads a range, clipped to the object. Slices of blocks, in order, without a copy.
    ///
    /// `Stale` where the object is no longer this version.
    pub async fn read(
        &self,
        object: &Object,
        window: &Mutex<Window>,
        range: ByteRange,
    ) -> Result<Vec<Bytes>> {
        let Some(range) = ByteRange::new(range.start(), range.end().min(object.size)) else {
            return Ok(Vec::new());
        };
        let (blocks, missing) = self.fetcher.want(object, block_indices(range));
        self.stats.block_misses.add(missing);
        self.stats.block_hits.add(blocks.len() as u64 - missing);
        self.read_ahead(object, window, range);
        let mut found = Vec::with_capacity(blocks.len());
        for (index, block) in block_indices(range).zip(blocks) {
            found.push(match block.bytes().await? {
                Some(bytes) => bytes,
                None => self.ask_again(object, index).await?,
            });
        }
        Ok(cut(found, range))
    }

    /// A block whose fetch was given up by whoever began it.
    async fn ask_again(&self, object: &Object, index: u64) -> Result<Bytes> {
        for _ in 0..ASK_AGAIN_MAX {
            let (blocks, _) = self.fetcher.want(object, index..index + 1);
            for block in blocks {
                if let Some(bytes) = block.bytes().await? {
                    return Ok(bytes);
                }
            }
        }
        Err(Error::new(Kind::Internal, "fetches of a block ended without an answer"))
    }

    /// A local file with all of the object's bytes, where the cache on disk has it whole and verified.
    pub async fn whole(&self, object: &Object) -> Option<std::fs::File> {
        let (disk, object) = (self.disk.clone()?, object.clone());
        tokio::task::spawn_blocking(move || disk.whole(&object)).await.ok().flatten()
    }

    /// Drops every block in memory.
    pub fn drop_all(&self) {
        self.fetcher.drop_all();
    }

    fn read_ahead(&self, object: &Object, window: &Mutex<Window>, range: ByteRange) {
        let ahead = window.lock().unwrap_or_else(std::sync::PoisonError::into_inner).advance(
            range,
            object.size,
            self.settings.window_max_bytes,
        );
        if let Some(ahead) = ahead {
            self.fetcher.prefetch(object, block_indices(ahead));
        }
    }
}

fn block_indices(range: ByteRange) -> std::ops::Range<u64> {
    range.start() / BLOCK_BYTES..range.end().div_ceil(BLOCK_BYTES)
}

/// Cuts whole blocks, the first of which holds the range's first byte, to the range.
fn cut(mut blocks: Vec<Bytes>, range: ByteRange) -> Vec<Bytes> {
    let skip = usize::try_from(range.start() % BLOCK_BYTES).unwrap_or(0);
    let mut left = usize::try_from(range.len()).unwrap_or(usize::MAX);
    for (i, block) in blocks.iter_mut().enumerate() {
        let from = if i == 0 { skip.min(block.len()) } else { 0 };
        let to = from.saturating_add(left).min(block.len());
        *block = block.slice(from..to);
        left -= block.len();
    }
    blocks
}

#[cfg(test)]
mod tests;
