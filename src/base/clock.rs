//! Time as an input, so that tests never wait for it.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time, for expiry and deadlines.
    fn now(&self) -> Instant;
    /// Wall-clock time, for what users see.
    fn wall(&self) -> SystemTime;
}

/// The machine's own clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    // The one place that reads the clock.
    #[allow(clippy::disallowed_methods)]
    fn now(&self) -> Instant {
        Instant::now()
    }
    #[allow(clippy::disallowed_methods)]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Instant, SystemTime)>);

impl ManualClock {
    pub fn new() -> Self {
        Self(Mutex::new((SystemClock.now(), SystemClock.wall())))
    }

    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock().expect("no code panics while it holds this lock");
        now.0 += by;
        now.1 += by;
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.0.lock().expect("no code panics while it holds this lock").0
    }
    fn wall(&self) -> SystemTime {
        self.0.lock().expect("no code panics while it holds this lock").1
    }
}
