//! A bound on bytes held at once, handed out as grants that give themselves back.
//!
//! One budget serves everybody who holds bytes: reads in flight, blocks that are kept, uploads. Who keeps bytes only
//! because nobody else wanted them waits for [`Budget::pressed`] and lets go of what others ask for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// One permit stands for this many bytes, so that a semaphore's 2^29 permits cover 2 TiB.
const UNIT_BYTES: u64 = 4096;

/// A number of bytes that may be held at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    permits: Arc<Semaphore>,
    limit_bytes: u64,
    /// The most that one request gets.
    single_max_bytes: u64,
    /// What those who wait ask for.
    wanted_bytes: AtomicU64,
    pressure: Notify,
}

/// A share of a budget; dropping it gives the bytes back.
#[derive(Debug)]
pub struct Grant {
    permit: OwnedSemaphorePermit,
}

impl Grant {
    /// Takes a part off this grant, as a grant of its own; all of it where it is not larger.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Self {
        let units = usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        let units = units.min(self.permit.num_permits());
        let permit = self.permit.split(units).expect("a grant holds what it was asked to split");
        Self { permit }
    }

    /// Takes another grant of the same budget in.
    pub fn merge(&mut self, other: Self) {
        self.permit.merge(other.permit);
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
                pressure: Notify::new(),
            }),
        }
    }

    pub fn limit_bytes(&self) -> u64 {
        self.inner.limit_bytes
    }

    /// Bytes nobody holds now.
    pub fn free_bytes(&self) -> u64 {
        self.inner.permits.available_permits() as u64 * UNIT_BYTES
    }

    /// Bytes that waiters lack.
    pub fn wanted_bytes(&self) -> u64 {
        self.inner.wanted_bytes.load(Ordering::Relaxed).saturating_sub(self.free_bytes())
    }

    /// Waits for `bytes`. A request for more than the whole budget waits for all of it, so that
    /// one oversized caller is served alone instead of never.
    pub async fn take(&self, bytes: u64) -> Grant {
        if let Some(grant) = self.try_take(bytes) {
            return grant;
        }
        let bytes = u64::from(self.units(bytes)) * UNIT_BYTES;
        self.inner.wanted_bytes.fetch_add(bytes, Ordering::Relaxed);
        let _wanting = Wanting(&self.inner, bytes);
        self.inner.pressure.notify_one();
        let permit = Arc::clone(&self.inner.permits)
            .acquire_many_owned(self.units(bytes))
            .await
            .expect("a budget's semaphore is never closed");
        Grant { permit }
    }

    /// Takes `bytes` if they are free now.
    pub fn try_take(&self, bytes: u64) -> Option<Grant> {
        let permit = Arc::clone(&self.inner.permits).try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(Grant { permit })
    }

    /// Waits until somebody has to wait for bytes.
    pub async fn pressed(&self) {
        self.inner.pressure.notified().await;
    }

    fn units(&self, bytes: u64) -> u32 {
        let most = self.inner.single_max_bytes.div_ceil(UNIT_BYTES).max(1);
        u32::try_from(bytes.div_ceil(UNIT_BYTES).clamp(1, most)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
