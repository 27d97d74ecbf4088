//! When a failing disk is left alone, and for how long. Pure.

use std::time::{Duration, Instant};

/// Failures in a row after which the disk is left alone: one may be chance, several are a dying or full disk.
const FAILURES_MAX: u32 = 4;
/// How long it is left alone, doubling up to the maximum as long as it does not recover.
const REST_FIRST: Duration = Duration::from_secs(10);
const REST_MAX: Duration = Duration::from_secs(600);

/// ```text
///          success                      FAILURES_MAX failures in a row
///   Well <---------- Well, n failures ---------------------------------> Resting until t
///    ^                                                                      | t is over
///    '------- success ------- one more try: a failure doubles the rest <----'
/// ```
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: u32,
    rests: u32,
    resting_until: Option<Instant>,
}

impl Health {
    /// Whether the disk may be used now.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        self.resting_until.is_none_or(|until| until <= now)
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Returns for how long the disk is left alone, where that begins now.
    pub(super) fn failed(&mut self, now: Instant) -> Option<Duration> {
        if !self.is_usable(now) {
            // Begun before the rest did.
            return None;
        }
        self.failures += 1;
        if self.failures < FAILURES_MAX && self.rests == 0 {
            return None;
        }
        let rest = REST_FIRST.saturating_mul(1 << self.rests.min(16)).min(REST_MAX);
        self.rests += 1;
        self.failures = 0;
        self.resting_until = Some(now + rest);
        Some(rest)
    }

    /// Whether it has been left alone before and has not recovered since.
    pub(super) fn is_known_to_fail(&self) -> bool {
        self.rests > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Clock, ManualClock};

    #[test]
    fn a_few_failures_in_a_row_are_followed_by_longer_and_longer_rests() {
        let clock = ManualClock::new();
        let mut health = Health::default();
        for _ in 1..FAILURES_MAX {
            assert_eq!(health.failed(clock.now()), None);
            assert!(health.is_usable(clock.now()));
        }
        assert_eq!(health.failed(clock.now()), Some(REST_FIRST));
        assert!(!health.is_known_to_fail());
        assert_eq!(health.failed(clock.now()), None, "what was on its way does not count");
        assert!(!health.is_usable(clock.now()));
        clock.advance(REST_FIRST);
        assert!(health.is_usable(clock.now()));
        assert_eq!(health.failed(clock.now()), Some(REST_FIRST * 2), "one more try is enough");
        assert!(health.is_known_to_fail());
        for _ in 0..20 {
            clock.advance(REST_MAX);
            assert!(health.failed(clock.now()).is_some_and(|rest| rest <= REST_MAX));
        }
    }

    #[test]
    fn failures_that_are_not_in_a_row_are_forgiven() {
        let clock = ManualClock::new();
        let mut health = Health::default();
        for _ in 0..100 {
            assert_eq!(health.failed(clock.now()), None);
            health.succeeded();
        }
    }
}
