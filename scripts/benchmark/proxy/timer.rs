//! Waiting to a fraction of a millisecond, which the runtime's own timer does not: its ticks are milliseconds and it
//! rounds up, and half a tick is 2 % of a 20 ms delay.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Waits shorter than this cost more than they are worth.
const WORTH_WAITING: Duration = Duration::from_micros(100);

/// A timer of the kernel's for one waiter at a time.
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Deprecated for types whose descriptor may change under it; an OwnedFd's does not.
        #[allow(deprecated)]
        Ok(Self(AsyncFd::new(timer)?))
    }

    pub async fn sleep(&self, time: Duration) -> io::Result<()> {
        if time < WORTH_WAITING {
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec::try_from(time).map_err(io::Error::other)?;
        timerfd_settime(
            self.0.get_ref(),
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value },
        )?;
        loop {
            let mut ready = self.0.readable().await?;
            let mut expirations = [0; 8];
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut expirations)?)) {
                Ok(read) => {
                    // It will not be readable again before it is set again.
                    ready.clear_ready();
                    return read.map(drop);
                }
                Err(_would_block) => {}
            }
        }
    }
}

/// Time since some instant in the past.
pub fn now() -> Duration {
    of_clock(ClockId::Monotonic)
}

/// Processor time of this process, its own and the kernel's on its behalf.
pub fn cpu() -> Duration {
    of_clock(ClockId::ProcessCPUTime)
}

fn of_clock(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}
