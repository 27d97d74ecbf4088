//! A bound on bytes held at once, handed out as grants that give themselves back.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One permit stands for this many bytes, so that a semaphore's 2^29 permits cover 2 TiB.
const UNIT_BYTES: u64 = 4096;

/// A number of bytes that may be held at once.
#[derive(Clone, Debug)]
pub struct Budget {
    permits: Arc<Semaphore>,
    limit_bytes: u64,
}

/// A share of a budget; dropping it gives the bytes back.
#[derive(Debug)]
pub struct Grant {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    pub fn new(limit_bytes: u64) -> Self {
        let units = limit_bytes.div_ceil(UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS as u64 >> 1);
        Self {
            permits: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX >> 4))),
            limit_bytes,
        }
    }

    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes nobody holds now.
    pub fn free_bytes(&self) -> u64 {
        self.permits.available_permits() as u64 * UNIT_BYTES
    }

    /// Waits for `bytes`. A request for more than the whole budget waits for all of it, so that
    /// one oversized caller is served alone instead of never.
    pub async fn take(&self, bytes: u64) -> Grant {
        let permit = Arc::clone(&self.permits)
            .acquire_many_owned(self.units(bytes))
            .await
            .expect("a budget's semaphore is never closed");
        Grant { _permit: permit }
    }

    /// Takes `bytes` if they are free now.
    pub fn try_take(&self, bytes: u64) -> Option<Grant> {
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(Grant { _permit: permit })
    }

    fn units(&self, bytes: u64) -> u32 {
        let most = self.limit_bytes.div_ceil(UNIT_BYTES).max(1);
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
}
