//! A bound on bytes held at once, handed out as grants that give themselves back.
//!
//! One budget serves everybody who holds bytes: reads in flight, blocks that are kept, uploads. Who keeps bytes only
//! because nobody else wanted them waits for [`Budget::pressed`] and lets go of what others ask for. Who holds bytes for as
//! long as a network likes has a [share](Budget::share_for), so that something is left to those who cannot wait for it.
//!
//! [`Buffer`]s that are done with stay with the budget for whoever wants one next, until anybody else wants their bytes:
//! memory that the kernel hands out anew is cleared and mapped page by page, which is up to a quarter of what it costs to
//! send the parts of a large file.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// One permit stands for this many bytes, so that a semaphore's 2^29 permits cover 2 TiB.
const UNIT_BYTES: u64 = 4096;
/// Smaller buffers are not kept: the allocator has their memory at hand.
const IDLE_MIN_BYTES: usize = 1 << 20;
/// What buffers that nobody has take at most, as a share of the budget.
const IDLE_SHARE: u64 = 8;
/// A buffer serves whoever wants at least so much of it, as a share.
const IDLE_USE: usize = 2;

/// What bytes of a budget are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Bytes that were read or are on their way to a reader.
    Reads,
    /// Bytes on their way to S3.
    Uploads,
    /// What names take.
    Names,
    /// Pages of listings that wait.
    Listings,
    /// Written bytes that wait for their upload in memory.
    Staging,
    /// Buffers that nobody has.
    Idle,
}

impl Pool {
    pub const ALL: [Self; 6] =
        [Self::Reads, Self::Uploads, Self::Names, Self::Listings, Self::Staging, Self::Idle];
}

/// A number of bytes that may be held at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    inner: Arc<Inner>,
    /// What is taken here is for this.
    pool: Pool,
    /// Where no more may be held for it than that.
    share: Option<Share>,
}

/// A part of a budget.
#[derive(Clone, Debug)]
struct Share {
    permits: Arc<Semaphore>,
    units: u64,
}

#[derive(Debug)]
struct Inner {
    permits: Arc<Semaphore>,
    limit_bytes: u64,
    /// The most that one request gets.
    single_max_bytes: u64,
    /// What those who wait ask for.
    wanted_bytes: AtomicU64,
    held: Arc<Held>,
    pressure: Notify,
    /// Buffers that nobody has, the one used last at the back.
    idle: Mutex<VecDeque<Memory>>,
    /// Buffers that were done with.
    used: AtomicU64,
}

/// Permits that are held, by [`Pool`].
#[derive(Debug, Default)]
struct Held([AtomicU64; Pool::ALL.len()]);

impl Held {
    fn of(&self, pool: Pool) -> &AtomicU64 {
        &self.0[pool as usize]
    }
}

/// Memory with its share of the budget.
#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    grant: Grant,
}

/// Memory for bytes, in a budget. It goes back there when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    /// There until it is dropped.
    memory: Option<Memory>,
    len: usize,
    inner: Arc<Inner>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory.bytes[..self.len])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.bytes[..self.len])
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.inner.keep(memory);
        }
    }
}

/// A share of a budget; dropping it gives the bytes back.
#[derive(Debug)]
pub struct Grant {
    permit: OwnedSemaphorePermit,
    /// Of the share that its pool has.
    share: Option<OwnedSemaphorePermit>,
    held: Arc<Held>,
    pool: Pool,
}

impl Grant {
    fn new(permit: OwnedSemaphorePermit, share: Option<OwnedSemaphorePermit>, budget: &Budget) -> Self {
        let held = Arc::clone(&budget.inner.held);
        held.of(budget.pool).fetch_add(permit.num_permits() as u64, Ordering::Relaxed);
        Self { permit, share, held, pool: budget.pool }
    }

    /// From now on its bytes are held for something else.
    #[must_use]
    pub fn held_for(mut self, pool: Pool) -> Self {
        if self.pool != pool {
            self.share = None;
        }
        let permits = self.permit.num_permits() as u64;
        self.held.of(self.pool).fetch_sub(permits, Ordering::Relaxed);
        self.held.of(pool).fetch_add(permits, Ordering::Relaxed);
        self.pool = pool;
        self
    }

    /// Takes a part off this grant, as a grant of its own; all of it where it is not larger.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Self {
        let units = usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        let units = units.min(self.permit.num_permits());
        let permit = self.permit.split(units).expect("a grant holds what it was asked to split");
        let share = self.share.as_mut().and_then(|share| share.split(units.min(share.num_permits())));
        // They are counted already.
        Self { permit, share, held: Arc::clone(&self.held), pool: self.pool }
    }

    /// Takes another grant of the same budget in.
    pub fn merge(&mut self, other: Self) {
        let mut other = other.held_for(self.pool);
        let all = other.permit.split(other.permit.num_permits());
        self.permit.merge(all.expect("a grant holds what it holds"));
        match (&mut self.share, other.share.take()) {
            (Some(share), Some(more)) => share.merge(more),
            (none, more) => *none = none.take().or(more),
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.held.of(self.pool).fetch_sub(self.permit.num_permits() as u64, Ordering::Relaxed);
    }
}

/// What one waiter asks for, for as long as it waits.
struct Wanting<'a>(&'a Inner, u64);

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.wanted_bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Budget {
    pub fn new(limit_bytes: u64) -> Self {
        Self::beside(limit_bytes, 0)
    }

    /// A budget of which somebody may hold so much until others have been served: no request waits for that.
    pub fn beside(limit_bytes: u64, held_bytes: u64) -> Self {
        let units = limit_bytes.div_ceil(UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS as u64 >> 1);
        Self {
            inner: Arc::new(Inner {
                permits: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX >> 4))),
                limit_bytes,
                single_max_bytes: limit_bytes.saturating_sub(held_bytes),
                wanted_bytes: AtomicU64::new(0),
                held: Arc::default(),
                pressure: Notify::new(),
                idle: Mutex::default(),
                used: AtomicU64::new(0),
            }),
            pool: Pool::Reads,
            share: None,
        }
    }

    /// The same budget, for whoever holds its bytes for this. A new one is for reads.
    #[must_use]
    pub fn held_for(&self, pool: Pool) -> Self {
        Self { inner: Arc::clone(&self.inner), pool, share: None }
    }

    /// The same, where all who have this one or a clone of it hold so many bytes at most.
    #[must_use]
    pub fn share_for(&self, pool: Pool, bytes: u64) -> Self {
        let units = (bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS as u64 >> 1);
        let permits = Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX >> 4)));
        Self { inner: Arc::clone(&self.inner), pool, share: Some(Share { permits, units }) }
    }

    /// Bytes that are held for this now.
    pub fn held_bytes(&self, pool: Pool) -> u64 {
        self.inner.held.of(pool).load(Ordering::Relaxed) * UNIT_BYTES
    }

    pub fn limit_bytes(&self) -> u64 {
        self.inner.limit_bytes
    }

    /// The most that one request gets.
    pub fn single_max_bytes(&self) -> u64 {
        self.inner.single_max_bytes
    }

    /// Bytes nobody holds now.
    pub fn free_bytes(&self) -> u64 {
        // Under the lock, so that a buffer that changes hands is counted once.
        let idle = self.inner.idle();
        self.inner.permits.available_permits() as u64 * UNIT_BYTES + idle_bytes(&idle)
    }

    /// Bytes that waiters lack.
    pub fn wanted_bytes(&self) -> u64 {
        self.inner.wanted_bytes.load(Ordering::Relaxed).saturating_sub(self.free_bytes())
    }

    /// Waits for `bytes`. A request for more than the whole budget waits for all of it, so that
    /// one oversized caller is served alone instead of never.
    pub async fn take(&self, bytes: u64) -> Grant {
        let share = self.of_share(bytes).await;
        self.take_beside(share, bytes).await
    }

    /// So much of the share, where there is one.
    async fn of_share(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.share.as_ref()?.permits);
        Some(
            permits.acquire_many_owned(self.units(bytes)).await.expect("a share's semaphore is never closed"),
        )
    }

    async fn take_beside(&self, share: Option<OwnedSemaphorePermit>, bytes: u64) -> Grant {
        if let Some(permit) = self.try_acquire(bytes) {
            return Grant::new(permit, share, self);
        }
        let bytes = u64::from(self.units(bytes)) * UNIT_BYTES;
        self.inner.wanted_bytes.fetch_add(bytes, Ordering::Relaxed);
        let _wanting = Wanting(&self.inner, bytes);
        // From here on none is kept.
        self.inner.idle().clear();
        self.inner.pressure.notify_one();
        let permit = Arc::clone(&self.inner.permits)
            .acquire_many_owned(self.units(bytes))
            .await
            .expect("a budget's semaphore is never closed");
        Grant::new(permit, share, self)
    }

    /// Takes `bytes` if they are free now.
    pub fn try_take(&self, bytes: u64) -> Option<Grant> {
        let share = match &self.share {
            Some(share) => Some(Arc::clone(&share.permits).try_acquire_many_owned(self.units(bytes)).ok()?),
            None => None,
        };
        Some(Grant::new(self.try_acquire(bytes)?, share, self))
    }

    fn try_acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = self.units(bytes);
        loop {
            if let Ok(permit) = Arc::clone(&self.inner.permits).try_acquire_many_owned(units) {
                return Some(permit);
            }
            self.inner.idle().pop_front()?;
        }
    }

    /// Waits for a buffer of `len` bytes. What is in it is whatever was there before: its user writes all of it.
    pub async fn buffer(&self, len: usize) -> Buffer {
        let mut share = self.of_share(len as u64).await;
        let memory = match self.inner.idle_of(len).filter(|memory| self.has_room_for(memory, &mut share)) {
            Some(Memory { bytes, grant }) => {
                let mut grant = grant.held_for(self.pool);
                grant.share = share;
                Memory { bytes, grant }
            }
            None => {
                let grant = self.take_beside(share, len as u64).await;
                Memory { bytes: vec![0; len], grant }
            }
        };
        Buffer { memory: Some(memory), len, inner: Arc::clone(&self.inner) }
    }

    /// Takes what a buffer has more than was asked for into the share, if it has room for that.
    fn has_room_for(&self, memory: &Memory, share: &mut Option<OwnedSemaphorePermit>) -> bool {
        let (Some(of), Some(share)) = (&self.share, share) else { return true };
        let more = memory.grant.permit.num_permits().saturating_sub(share.num_permits());
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let more = Arc::clone(&of.permits).try_acquire_many_owned(more);
        more.map(|more| share.merge(more)).is_ok()
    }

    /// How many buffers were done with so far.
    pub fn used_buffers(&self) -> u64 {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// Lets go of buffers that nobody has.
    pub fn let_go(&self) {
        self.inner.idle().clear();
    }

    /// Waits until somebody has to wait for bytes.
    pub async fn pressed(&self) {
        self.inner.pressure.notified().await;
    }

    fn units(&self, bytes: u64) -> u32 {
        let most = self.inner.single_max_bytes.div_ceil(UNIT_BYTES).max(1);
        let most = self.share.as_ref().map_or(most, |share| share.units.min(most));
        u32::try_from(bytes.div_ceil(UNIT_BYTES).clamp(1, most)).unwrap_or(u32::MAX)
    }
}

impl Inner {
    /// A buffer that nobody has and that is not much larger than that.
    fn idle_of(&self, len: usize) -> Option<Memory> {
        let mut idle = self.idle();
        let fits = |memory: &Memory| (len..=len.saturating_mul(IDLE_USE)).contains(&memory.bytes.len());
        let at = idle.iter().rposition(fits)?;
        idle.remove(at)
    }

    /// Keeps memory for the next one who wants a buffer, as long as nobody waits for its bytes.
    fn keep(&self, memory: Memory) {
        if memory.bytes.len() < IDLE_MIN_BYTES {
            return;
        }
        self.used.fetch_add(1, Ordering::Relaxed);
        let Memory { bytes, grant } = memory;
        let memory = Memory { bytes, grant: grant.held_for(Pool::Idle) };
        let mut idle = self.idle();
        idle.push_back(memory);
        while idle_bytes(&idle) > self.limit_bytes / IDLE_SHARE {
            idle.pop_front();
        }
        if self.wanted_bytes.load(Ordering::Relaxed) > 0 {
            idle.clear();
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Memory>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn idle_bytes(idle: &VecDeque<Memory>) -> u64 {
    idle.iter().map(|memory| memory.grant.permit.num_permits() as u64 * UNIT_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const MIB: usize = 1 << 20;

    fn buffer(budget: &Budget, len: usize) -> Buffer {
        budget.buffer(len).now_or_never().expect("there is room")
    }

    #[test]
    fn a_buffer_s_memory_serves_the_next_one_of_about_its_size() {
        let budget = Budget::new(64 << 20);
        let mut first = buffer(&budget, 4 * MIB);
        first.fill(7);
        assert_eq!(budget.free_bytes(), 60 << 20);
        drop(first);
        assert_eq!(budget.free_bytes(), 64 << 20, "it is anybody's");
        let large = buffer(&budget, 5 * MIB);
        assert!(large.iter().all(|byte| *byte == 0), "too large for it");
        let small = buffer(&budget, MIB);
        assert!(small.iter().all(|byte| *byte == 0), "too small to use that much");
        let about = buffer(&budget, 3 * MIB);
        assert_eq!(about.len(), 3 * MIB);
        assert!(about.iter().all(|byte| *byte == 7));
        assert_eq!(budget.free_bytes(), (64 - 5 - 1 - 4) << 20, "it holds what it did");
    }

    #[test]
    fn what_nobody_has_is_a_bounded_share_of_the_budget() {
        let budget = Budget::new(64 << 20);
        let many: Vec<Buffer> = (0..10).map(|_| buffer(&budget, 2 * MIB)).collect();
        let small: Vec<Buffer> = (0..10).map(|_| buffer(&budget, MIB / 2)).collect();
        drop((many, small));
        assert_eq!(budget.inner.idle().len(), 4, "an eighth");
        assert_eq!(budget.free_bytes(), 64 << 20);
    }

    #[tokio::test]
    async fn whoever_wants_bytes_gets_those_of_buffers_that_nobody_has() {
        let budget = Budget::new(16 << 20);
        drop(buffer(&budget, 2 * MIB));
        let all = budget.try_take(16 << 20).expect("all of it is free");
        let next = budget.buffer(2 * MIB);
        tokio::pin!(next);
        assert!(next.as_mut().now_or_never().is_none());
        drop(all);
        let next = next.await;
        let waiting = budget.take(16 << 20);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(next);
        drop(waiting.now_or_never().expect("it is not kept from who waits"));
        drop(buffer(&budget, 2 * MIB));
        assert!(budget.take(15 << 20).now_or_never().is_some());
    }

    #[test]
    fn a_grant_gives_its_bytes_back() {
        let budget = Budget::new(64 << 10);
        let all = budget.try_take(64 << 10).expect("the budget is free");
        assert!(budget.try_take(1).is_none());
        drop(all);
        assert_eq!(budget.free_bytes(), 64 << 10);
        assert!(budget.try_take(1 << 30).is_some(), "an oversized request gets the whole budget");
    }

    #[test]
    fn no_request_waits_for_what_is_held_until_others_are_served() {
        let budget = Budget::beside(64 << 10, 16 << 10);
        let held = budget.try_take(16 << 10).unwrap();
        assert!(budget.try_take(1 << 30).is_some(), "an oversized request gets the rest");
        drop(held);
        assert_eq!(budget.free_bytes(), 64 << 10);
    }

    #[test]
    fn a_part_of_a_grant_is_given_back_alone() {
        let budget = Budget::new(64 << 10);
        let mut all = budget.try_take(64 << 10).unwrap();
        let part = all.split(16 << 10);
        drop(all);
        assert_eq!(budget.free_bytes(), 48 << 10);
        let mut part = part;
        drop(part.split(1 << 30));
        assert_eq!(budget.free_bytes(), 64 << 10);
    }

    #[test]
    fn what_was_merged_is_given_back_together() {
        let budget = Budget::new(64 << 10);
        let mut one = budget.try_take(16 << 10).unwrap();
        one.merge(budget.try_take(32 << 10).unwrap());
        assert_eq!(budget.free_bytes(), 16 << 10);
        drop(one.split(40 << 10));
        assert_eq!(budget.free_bytes(), 56 << 10);
        drop(one);
        assert_eq!(budget.free_bytes(), 64 << 10);
    }

    #[test]
    fn what_is_held_is_known_by_what_it_is_held_for() {
        let budget = Budget::new(64 << 20);
        let uploads = budget.held_for(Pool::Uploads);
        let held = || Pool::ALL.map(|pool| budget.held_bytes(pool) >> 10);
        let mut read = budget.try_take(16 << 10).unwrap();
        let sent = buffer(&uploads, 2 * MIB);
        assert_eq!(held(), [16, 2 << 10, 0, 0, 0, 0]);
        let part = read.split(8 << 10);
        assert_eq!(held()[0], 16, "who splits takes nothing");
        let mut names = part.held_for(Pool::Names);
        assert_eq!(held(), [8, 2 << 10, 8, 0, 0, 0]);
        names.merge(read);
        assert_eq!(held(), [0, 2 << 10, 16, 0, 0, 0]);
        drop(sent);
        assert_eq!(held(), [0, 0, 16, 0, 0, 2 << 10], "nobody has the buffer");
        let again = buffer(&uploads, 2 * MIB);
        assert_eq!(held(), [0, 2 << 10, 16, 0, 0, 0]);
        drop((again, names));
        let all = budget.try_take(64 << 20).unwrap();
        assert_eq!(held(), [64 << 10, 0, 0, 0, 0, 0]);
        drop(all);
        assert_eq!(held(), [0; 6]);
    }

    #[tokio::test]
    async fn whoever_has_a_share_leaves_the_rest_to_others() {
        let budget = Budget::new(64 << 20);
        let uploads = budget.share_for(Pool::Uploads, 48 << 20);
        let first = uploads.take(40 << 20).now_or_never().expect("there is room");
        assert!(uploads.try_take(9 << 20).is_none(), "however much is free beside it");
        let next = uploads.buffer(16 * MIB);
        tokio::pin!(next);
        assert!(next.as_mut().now_or_never().is_none());
        assert_eq!(budget.wanted_bytes(), 0, "nobody else is asked to give way for it");
        drop(budget.try_take(24 << 20).expect("the rest is for others"));
        drop(first);
        let next = next.now_or_never().expect("its share is free");
        let mut second = uploads.try_take(32 << 20).unwrap();
        assert!(uploads.try_take(1).is_none());
        // A buffer that nobody has is of no share, and the next one that is of its memory is again.
        drop(next);
        let again = buffer(&uploads, 16 * MIB);
        assert!(uploads.try_take(1).is_none());
        drop(second.split(8 << 20));
        second.merge(uploads.try_take(8 << 20).unwrap());
        assert!(uploads.try_take(1).is_none());
        let names = second.held_for(Pool::Names);
        assert!(uploads.try_take(1 << 30).is_none() && uploads.try_take(16 << 20).is_some());
        drop((names, again));
        assert_eq!(budget.held_bytes(Pool::Idle), 0, "too large to be kept");
        drop(buffer(&budget, 8 * MIB));
        let first = uploads.try_take(42 << 20).unwrap();
        let small = buffer(&uploads, 5 * MIB);
        assert_eq!(
            budget.held_bytes(Pool::Uploads),
            47 << 20,
            "one that has more than its share has room for is not taken"
        );
        drop((first, small));
        assert!(uploads.try_take(1 << 30).is_some(), "an oversized request gets the whole share");
    }

    #[tokio::test]
    async fn whoever_keeps_bytes_hears_of_those_who_wait() {
        let budget = Budget::new(64 << 10);
        let kept = budget.try_take(64 << 10).unwrap();
        let keeper = budget.clone();
        let keeping = tokio::spawn(async move {
            keeper.pressed().await;
            assert_eq!(keeper.wanted_bytes(), 8 << 10);
            drop(kept);
        });
        let taken = budget.take(8 << 10).await;
        keeping.await.unwrap();
        assert_eq!(budget.wanted_bytes(), 0);
        drop(taken);
    }
}
