//! Renames of directories that are under way, for whoever looks how far they are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Fs, lock};

/// Renames that are told of; what is begun beside so many goes on without a word.
const TOLD_MAX: usize = 32;
/// Where nobody has counted yet.
const UNKNOWN: u64 = u64::MAX;

/// A rename of a directory that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renaming {
    /// `s3://BUCKET/PREFIX/`
    pub from: String,
    pub to: String,
    /// How many objects it has; `None` while they are listed.
    pub objects: Option<u64>,
    /// How many of them are under the new name too; the old ones are deleted after the last.
    pub copied: u64,
    pub time: Duration,
}

#[derive(Default)]
pub(super) struct Renames(Arc<Mutex<Vec<Arc<Counts>>>>);

struct Counts {
    from: String,
    to: String,
    objects: AtomicU64,
    copied: AtomicU64,
    begun: Instant,
}

/// A rename is under way as long as this lives.
pub(super) struct Moving {
    counts: Arc<Counts>,
    all: Arc<Mutex<Vec<Arc<Counts>>>>,
}

impl Renames {
    pub(super) fn begin(&self, from: &str, to: &str, now: Instant) -> Moving {
        let counts = Arc::new(Counts {
            from: from.to_owned(),
            to: to.to_owned(),
            objects: AtomicU64::new(UNKNOWN),
            copied: AtomicU64::new(0),
            begun: now,
        });
        let mut all = lock(&self.0);
        if all.len() < TOLD_MAX {
            all.push(Arc::clone(&counts));
        }
        Moving { counts, all: Arc::clone(&self.0) }
    }
}

impl Moving {
    pub(super) fn listed(&self, objects: usize) {
        self.counts.objects.store(objects as u64, Ordering::Relaxed);
    }

    /// One more.
    pub(super) fn copied(&self) {
        self.counts.copied.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        lock(&self.all).retain(|counts| !Arc::ptr_eq(counts, &self.counts));
    }
}

impl Fs {
    /// The renames of directories that are under way, the oldest first.
    pub fn renaming(&self) -> Vec<Renaming> {
        let now = self.clock.now();
        let told = |counts: &Arc<Counts>| {
            let objects = counts.objects.load(Ordering::Relaxed);
            Renaming {
                from: counts.from.clone(),
                to: counts.to.clone(),
                objects: (objects != UNKNOWN).then_some(objects),
                copied: counts.copied.load(Ordering::Relaxed),
                time: now.saturating_duration_since(counts.begun),
            }
        };
        lock(&self.renames.0).iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Clock, SystemClock};

    #[test]
    fn a_bounded_number_of_renames_is_told_of_while_they_last() {
        let renames = Renames::default();
        let many: Vec<_> =
            (0..100).map(|n| renames.begin(&format!("{n}"), "to", SystemClock.now())).collect();
        many[0].listed(3);
        many[0].copied();
        {
            let told = lock(&renames.0);
            assert_eq!(told.len(), TOLD_MAX);
            assert_eq!((told[0].from.as_str(), told[0].copied.load(Ordering::Relaxed)), ("0", 1));
        }
        drop(many);
        assert!(lock(&renames.0).is_empty());
    }
}
