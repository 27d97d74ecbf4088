//! How fast bytes move: over the last seconds, from figures that only grow. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often the figures are noted.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// A rate is that of so long.
const OVER: Duration = Duration::from_secs(5);

/// Figures at some times, the oldest first.
#[derive(Debug)]
pub(super) struct Rates<const N: usize>(VecDeque<(Instant, [u64; N])>);

impl<const N: usize> Rates<N> {
    pub(super) fn new(now: Instant, figures: [u64; N]) -> Self {
        Self([(now, figures)].into())
    }

    /// Notes what the figures are now.
    pub(super) fn note(&mut self, now: Instant, figures: [u64; N]) {
        // One at least that old stays, so that there is always something to compare with.
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= OVER) {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= EVERY / 2) {
            self.0.push_back((now, figures));
        }
    }

    /// Over how many seconds, and how much in each.
    pub(super) fn now(&self, now: Instant, figures: [u64; N]) -> (f64, [f64; N]) {
        let old_enough = self.0.iter().rev().find(|(at, _)| now.saturating_duration_since(*at) >= OVER);
        let Some((at, before)) = old_enough.or(self.0.front()) else { return (0.0, [0.0; N]) };
        let seconds = now.saturating_duration_since(*at).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, [0.0; N]);
        }
        (seconds, std::array::from_fn(|n| figures[n].saturating_sub(before[n]) as f64 / seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Clock, SystemClock};

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let begun = SystemClock.now();
        let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        let mut rates = Rates::new(begun, [0]);
        assert_eq!(rates.now(begun, [0]), (0.0, [0.0]));
        assert_eq!(rates.now(at(2.0), [10]), (2.0, [5.0]), "it was mounted two seconds ago");
        for second in 1..=100 {
            rates.note(at(f64::from(second)), [10 * second as u64]);
        }
        assert_eq!(rates.now(at(100.0), [1000]), (5.0, [10.0]));
        // It stands still.
        assert_eq!(rates.now(at(105.0), [1000]), (5.0, [0.0]));
        assert!(rates.0.len() <= 8, "{} are kept", rates.0.len());
    }

    #[test]
    fn after_a_sleep_of_the_machine_the_rate_is_that_of_all_the_time() {
        let begun = SystemClock.now();
        let rates = Rates::new(begun, [0]);
        assert_eq!(rates.now(begun + Duration::from_secs(100), [500]), (100.0, [5.0]));
    }
}
