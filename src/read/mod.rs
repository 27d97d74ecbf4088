//! Bytes out: runs in memory, runs on their way, and what to ask for ahead of a reader.
//!
//! Owns: the caches of bytes in memory and on disk, the requests in flight, the read-ahead window's arithmetic.
//! Does not own: which version a handle reads (`fs` says it in every [`Object`]), or bytes not yet in S3.
//!
//! Guarantees to callers
//! - Bytes answered are of exactly the version asked for: every GET carries `If-Match`, the answer's ETag is
//!   compared, and the ETag is part of every cache key.
//! - Bytes are shared as they arrive. Where the server stores a checksum of all that one request brings, which is so
//!   for a small object, they are shared once it was found right.
//! - Two readers of the same missing bytes cause one GET.
//! - A random reader fetches what it asks for and no more; a reader in order is read ahead of, by as much as it needs
//!   in order not to wait.
//! - A reader that goes away takes nothing from others, and no waiter outlives its fetch: a fetch that fails or
//!   dies wakes them all.
//! - Bytes in memory and in flight are bounded by the budget, requests by the gate.

mod disk;
mod fetch;
mod segments;
mod window;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::base::{Budget, ByteRange, ETag, Gate, Grant, Priority};
use crate::error::{Error, Kind, Result};
use crate::s3::Store;
use crate::stats::Stats;
pub use disk::{DiskCache, DiskLimits, DiskUse, Fetching};
use fetch::{Block, Fetcher};
use segments::Piece;
use window::{Advice, PART_MAX, Share, Window};

/// How often bytes are asked for anew when their fetch was given up before it began.
const ASK_AGAIN_MAX: u32 = 8;
/// The furthest one reader is read ahead of. At 90 MB/s per connection and 8 MiB a request this keeps 16 connections
/// busy, which is more than two cores can empty; twice as much gained nothing.
const WINDOW_MAX_BYTES: u64 = 128 << 20;
/// The furthest all readers are read ahead of, together: enough to keep every request of the gate busy with half a part.
const WINDOWS_MAX_BYTES: u64 = 256 << 20;
/// Bytes are kept and answered in pieces of at most this size, which is that of the kernel's largest request.
const PIECE_BYTES: u64 = 1 << 20;
/// The largest file that is fetched whole before it is opened.
pub const SMALL_FILE_MAX: u64 = 1 << 20;

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
    /// Where the bucket is: an endpoint, or "aws". Bytes of an object without an origin stay in memory.
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

/// Reads objects through the cache; one for each mount.
#[derive(Clone)]
pub struct Reader {
    fetcher: Arc<Fetcher>,
    /// Gives memory back while others lack it.
    _keeper: Arc<Keeper>,
    budget: Budget,
    /// Readers that are read far ahead of.
    active: Arc<AtomicUsize>,
    stats: Arc<Stats>,
}

struct Keeper(tokio::task::AbortHandle);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where one handle reads, and how far ahead of it was asked for.
pub struct Cursor {
    window: Mutex<Window>,
    active: Arc<AtomicUsize>,
    is_active: AtomicBool,
}

impl Cursor {
    /// Leaves its share to others: a reader at the end needs none, however long its file stays open.
    fn rest(&self) {
        if self.is_active.swap(false, Ordering::Relaxed) {
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Reader {
    /// Has to be called inside a tokio runtime: fetches are its tasks. `budget` bounds the bytes in memory and in
    /// flight, `gate` the requests. Runs are looked for on `disk` before S3 is asked for them, and kept there.
    pub fn new(gate: Gate, budget: Budget, disk: Option<Arc<DiskCache>>, stats: Arc<Stats>) -> Self {
        let fetcher = Fetcher::new(gate, budget.clone(), disk);
        let keeper = tokio::spawn(Fetcher::yield_memory(budget.clone(), Arc::downgrade(&fetcher)));
        Self {
            fetcher,
            _keeper: Arc::new(Keeper(keeper.abort_handle())),
            budget,
            active: Arc::default(),
            stats,
        }
    }

    /// Where its tasks run.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.fetcher.runtime()
    }

    /// Bytes in memory that are here, beside those on their way.
    pub fn kept_bytes(&self) -> u64 {
        self.fetcher.kept_bytes()
    }

    /// A number that changes whenever bytes are read, and whenever some come.
    pub fn reads(&self) -> u64 {
        self.fetcher.reads()
    }

    /// The cache on disk, if there is one.
    pub fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.fetcher.disk()
    }

    /// Memory for somebody else's guess, from what is free or was read already.
    pub fn spare(&self, bytes: u64) -> Option<Grant> {
        self.fetcher.spare(bytes)
    }

    /// A reader that has read nothing yet.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            window: Mutex::default(),
            active: Arc::clone(&self.active),
            is_active: AtomicBool::new(false),
        }
    }

    /// The bytes of a range if they are in memory in one piece; the window moves on and reads ahead as it needs to.
    pub fn cached(&self, object: &Object, cursor: &Cursor, range: ByteRange) -> Option<Bytes> {
        let found = self.fetcher.cached(&object.id, range)?;
        self.stats.read_hits.add(1);
        let advice = self.advise(object, cursor, range, false);
        self.read_ahead(object, cursor, &advice);
        Some(found)
    }

    /// Reads a range, clipped to the object. Slices, in order.
    ///
    /// `Stale` where the object is no longer this version.
    pub async fn read(&self, object: &Object, cursor: &Cursor, range: ByteRange) -> Result<Vec<Bytes>> {
        let Some(range) = ByteRange::new(range.start(), range.end().min(object.size)) else {
            return Ok(Vec::new());
        };
        let found = self.fetcher.look(&object.id, range);
        let waits = found.iter().any(|piece| match piece {
            Piece::Here(_) => false,
            Piece::Coming(part, flight) => !flight.has(*part),
            Piece::Gap(_) => true,
        });
        if waits {
            self.stats.read_waits.add(1)
        } else {
            self.stats.read_hits.add(1)
        }
        let advice = self.advise(object, cursor, range, waits);
        let blocks = self.fetcher.demand(object, found, &advice);
        self.read_ahead(object, cursor, &advice);
        let mut slices = Vec::with_capacity(blocks.len());
        for block in blocks {
            match block {
                Block::Here(bytes) => slices.push(bytes),
                Block::Coming(part, flight) => match flight.bytes(part).await? {
                    Some(bytes) => slices.push(bytes),
                    None => slices.extend(self.ask_again(object, part).await?),
                },
            }
        }
        Ok(slices)
    }

    /// Fetches a whole small object that is likely to be opened soon; `false` where there is no memory for it now.
    pub fn fetch_ahead(&self, object: &Object) -> bool {
        match ByteRange::new(0, object.size) {
            Some(whole) => self.fetcher.prefetch(object, whole, SMALL_FILE_MAX, Priority::Guess).is_none(),
            None => true,
        }
    }

    /// Whether all of a small object is in memory or on its way.
    pub fn is_coming(&self, object: &Object) -> bool {
        ByteRange::new(0, object.size).is_none_or(|whole| self.fetcher.is_coming(&object.id, whole))
    }

    /// Nobody has the object open any more: what was fetched ahead of its readers may go first.
    pub fn retire(&self, object: &ObjectId) {
        self.fetcher.retire(object);
    }

    /// A local file with all of the object's bytes, where the cache on disk has it whole and verified.
    pub async fn whole(&self, object: &Object) -> Option<std::fs::File> {
        let (disk, object) = (Arc::clone(self.fetcher.disk()?), object.clone());
        tokio::task::spawn_blocking(move || disk.whole(&object)).await.ok().flatten()
    }

    /// Drops every byte in memory.
    pub fn drop_all(&self) {
        self.fetcher.drop_all();
    }

    /// Bytes whose fetch was given up by whoever began it.
    async fn ask_again(&self, object: &Object, part: ByteRange) -> Result<Vec<Bytes>> {
        'asking: for _ in 0..ASK_AGAIN_MAX {
            let found = self.fetcher.look(&object.id, part);
            let advice = Advice { ahead: Vec::new(), part: PART_MAX };
            let mut slices = Vec::new();
            for block in self.fetcher.demand(object, found, &advice) {
                match block {
                    Block::Here(bytes) => slices.push(bytes),
                    Block::Coming(part, flight) => match flight.bytes(part).await? {
                        Some(bytes) => slices.push(bytes),
                        None => continue 'asking,
                    },
                }
            }
            return Ok(slices);
        }
        Err(Error::new(Kind::Internal, "fetches of the same bytes ended without an answer"))
    }

    fn advise(&self, object: &Object, cursor: &Cursor, range: ByteRange, waits: bool) -> Advice {
        // Everybody who is read far ahead of has an equal share of half of the memory.
        let readers = self.active.load(Ordering::Relaxed).max(1) as u64;
        let bytes = (self.budget.limit_bytes() / 2).min(WINDOWS_MAX_BYTES) / readers;
        let share = Share { bytes: bytes.clamp(window::FIRST_BYTES, WINDOW_MAX_BYTES), readers };
        let advice = lock(&cursor.window).advance(range, object.size, share, waits);
        let far = advice.ahead.iter().any(|ahead| ahead.len() > window::FIRST_BYTES);
        if range.end() >= object.size {
            cursor.rest();
        } else if far && !cursor.is_active.swap(true, Ordering::Relaxed) {
            self.active.fetch_add(1, Ordering::Relaxed);
        }
        advice
    }

    fn read_ahead(&self, object: &Object, cursor: &Cursor, advice: &Advice) {
        for ahead in &advice.ahead {
            if let Some(stopped) = self.fetcher.prefetch(object, *ahead, advice.part, Priority::Ahead) {
                lock(&cursor.window).pressed(stopped);
                return;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
