//! How long things took: counts in fixed buckets, and what can be told from them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds. Three to a decade: the true figure is at most two and a half times as far
/// away as the bounds around it, which is enough to tell a disk from a network, and a network from one that retries.
pub const BOUNDS_MICROS: [u64; 18] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000, 20_000_000, 60_000_000,
];
/// One more for what took longer than the last bound.
const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// Durations, counted. Two relaxed additions for each.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

impl Histogram {
    pub fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub fn value(&self) -> Distribution {
        Distribution {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed)),
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
        }
    }
}

/// What was counted up to some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Of each bucket its own, not those of the ones before it.
    buckets: [u64; BUCKETS],
    sum_micros: u64,
}

impl Distribution {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_micros as f64 / 1e6
    }

    /// Bounds in seconds and how many were no longer than that; the count of all belongs to no bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut below = 0;
        BOUNDS_MICROS.iter().zip(&self.buckets).map(move |(bound, count)| {
            below += count;
            (*bound as f64 / 1e6, below)
        })
    }

    /// The time that this share of them was done in, in seconds: within a bucket they are taken to be spread evenly.
    /// `None` where nothing was counted. What is beyond the last bound is told as that bound.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.count() as f64;
        let (mut below, mut from) = (0, 0);
        for (count, to) in self.buckets.iter().zip(BOUNDS_MICROS) {
            if *count > 0 && (below + count) as f64 >= rank {
                let within = ((rank - below as f64) / *count as f64).clamp(0.0, 1.0);
                return Some((from as f64 + within * (to - from) as f64) / 1e6);
            }
            below += count;
            from = to;
        }
        (self.count() > 0).then_some(from as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bounds_grow() {
        assert!(BOUNDS_MICROS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket_and_what_is_longer_than_all_is_counted() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 60_000_000, 60_000_001, u64::MAX] {
            histogram.add(Duration::from_micros(micros));
        }
        let value = histogram.value();
        let cumulative: Vec<u64> = value.cumulative().map(|(_, count)| count).collect();
        assert_eq!((cumulative[0], cumulative[1], cumulative[17], value.count()), (2, 3, 4, 6));
        assert_eq!(value.quantile(1.0), Some(60.0));
    }

    #[test]
    fn nothing_has_no_quantile_and_one_is_within_its_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.value().quantile(0.5), None);
        histogram.add(Duration::from_millis(7));
        let half = histogram.value().quantile(0.5).unwrap();
        assert!((0.005..=0.01).contains(&half), "{half}");
        assert!((histogram.value().sum_seconds() - 0.007).abs() < 1e-9);
    }

    proptest! {
        /// A quantile lies in the bucket that the exact one lies in.
        #[test]
        fn quantiles_are_right_up_to_their_bucket(
            mut micros in proptest::collection::vec(0u64..80_000_000, 1..200),
            share in 0.01f64..1.0,
        ) {
            let histogram = Histogram::default();
            for micros in &micros {
                histogram.add(Duration::from_micros(*micros));
            }
            let value = histogram.value();
            micros.sort_unstable();
            let at = (share * micros.len() as f64).ceil() as usize;
            let exact = micros[at.clamp(1, micros.len()) - 1];
            let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < exact);
            let from = if bucket == 0 { 0 } else { BOUNDS_MICROS[bucket - 1] } as f64 / 1e6;
            let to = BOUNDS_MICROS.get(bucket).map_or(60.0, |to| *to as f64 / 1e6);
            let found = value.quantile(share).unwrap();
            prop_assert!(found >= from - 1e-9 && found <= to + 1e-9, "{found} is not in {from}..={to}");
            prop_assert_eq!(value.count(), micros.len() as u64);
            prop_assert!(value.cumulative().map(|(_, n)| n).is_sorted());
        }
    }
}
