//! The rate of one direction of a connection. Pure: time is an argument, counted from any fixed instant.

use std::time::Duration;

/// A chunk that is late for reasons of the machine may be made up for by at most this much.
const CATCH_UP: Duration = Duration::from_millis(2);

/// Says when each chunk may go, so that bytes pass at a rate and in no burst.
#[derive(Debug)]
pub struct Pace {
    /// 0 is unlimited.
    bytes_per_second: u64,
    /// When what was sent so far has passed.
    passed: Duration,
}

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, passed: Duration::ZERO }
    }

    /// A message begins: time in which nothing was sent is not saved up.
    pub fn begin(&mut self, now: Duration) {
        self.passed = self.passed.max(now);
    }

    /// How long to wait before these bytes, which are at hand now, have passed.
    pub fn wait_for(&mut self, bytes: usize, now: Duration) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.passed = self.passed.max(now.saturating_sub(CATCH_UP)) + takes;
        self.passed.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn bytes_pass_at_the_rate_however_they_are_cut() {
        for chunk in [1000, 7_000, 100_000] {
            let (mut pace, mut now, mut sent) = (Pace::new(1_000_000), 5 * MS, 0);
            pace.begin(now);
            while sent < 1_000_000 {
                now += pace.wait_for(chunk, now);
                sent += chunk;
            }
            let expected = Duration::from_secs_f64(sent as f64 / 1e6) + 5 * MS;
            assert!(now.abs_diff(expected) < MS, "{chunk}: {now:?}, expected {expected:?}");
        }
    }

    #[test]
    fn a_pause_saves_nothing_up_and_lateness_is_made_up_for_within_bounds() {
        let mut pace = Pace::new(1_000_000);
        pace.begin(Duration::ZERO);
        assert_eq!(pace.wait_for(1000, Duration::ZERO), MS);
        pace.begin(100 * MS);
        assert_eq!(pace.wait_for(1000, 100 * MS), MS);
        // One millisecond late: the next chunk comes at its own time.
        assert_eq!(pace.wait_for(2000, 102 * MS), MS);
        // A second late: only what CATCH_UP allows.
        assert_eq!(pace.wait_for(3000, 1103 * MS), MS);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        assert_eq!(Pace::new(0).wait_for(usize::MAX, MS), Duration::ZERO);
    }
}
