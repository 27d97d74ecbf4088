//! Whether an endpoint answers at all.
//!
//! Each request may wait for as long as `--timeout` says. Where none is answered, that many seconds for each of a row of
//! requests is no bound at all: the kernel lets one change of a directory wait for the other, and a program opens the next
//! file after the last one failed. So an endpoint that has said nothing of use for a whole timeout is silent: what is
//! asked of it fails at once, while one request a second looks whether it is back.
//!
//! Owns: when an endpoint is silent, and what its requests are told then.
//! Does not own: what is sent, and who looks (`client`).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::{Error, Kind};

/// How long after it was found silent requests wait for the first look, which finds an endpoint that came back at that very moment.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// What one endpoint's requests came to of late.
#[derive(Debug, Default)]
pub(super) struct Silence {
    state: Mutex<State>,
    /// A look ended.
    looked: Notify,
}

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    /// Since when there have been requests under way, and nothing of use was answered.
    since: Option<Instant>,
    /// Answers of use so far.
    heard: u64,
    /// The latest failure.
    why: Option<(Kind, String)>,
    silent: Option<Silent>,
}

#[derive(Debug)]
struct Silent {
    since: Instant,
    found: Instant,
    looked: bool,
}

impl Silence {
    /// Waits for as long as it takes to know whether anything can be asked now; at once, mostly.
    pub(super) async fn admits(&self) -> Result<(), Error> {
        let looked = self.looked.notified();
        let first_look =
            self.state().silent.as_ref().filter(|silent| !silent.looked).map(|silent| silent.found);
        if let Some(found) = first_look {
            // Whatever it came to is in the state.
            let _ = tokio::time::timeout_at(found + FIRST_LOOK, looked).await;
        }
        let state = self.state();
        let Some(silent) = &state.silent else { return Ok(()) };
        let (kind, why) = match &state.why {
            Some((kind, why)) => (*kind, format!(" ({why})")),
            // Nothing failed yet: who asked gave up first.
            None => (Kind::TimedOut, String::new()),
        };
        let seconds = silent.since.elapsed().as_secs();
        let told = format!(
            "the endpoint has answered nothing for {seconds} s{why}; it is asked every second whether it is back"
        );
        Err(Error::new(kind, told))
    }

    /// A request is under way from now on, until it [ends](Self::ends).
    pub(super) fn begins(&self) {
        let mut state = self.state();
        if state.under_way == 0 && state.silent.is_none() {
            // Silence in which nobody asked is none.
            state.since = None;
        }
        state.under_way += 1;
        state.since.get_or_insert_with(Instant::now);
    }

    /// S3 answered, and that it cannot answer is no answer. Returns how long it was silent, if it was.
    pub(super) fn hears(&self) -> Option<Duration> {
        let mut state = self.state();
        state.heard += 1;
        state.since = (state.under_way > 0).then(Instant::now);
        let silent = state.silent.take();
        drop(state);
        self.looked.notify_waiters();
        silent.map(|silent| silent.since.elapsed())
    }

    /// A request failed in a way that may pass.
    pub(super) fn fails(&self, error: &Error) {
        self.state().why = Some((error.kind(), error.message().to_owned()));
    }

    /// A request is over, answered or not. Whether the endpoint is silent from now on, because there was nothing else
    /// for `patience`.
    pub(super) fn ends(&self, patience: Duration) -> bool {
        let mut state = self.state();
        state.under_way -= 1;
        let Some(since) = state.since.filter(|_| state.silent.is_none()) else { return false };
        // Who waits for a request began to wait a moment before it.
        let is_silent = since.elapsed() >= patience.mul_f64(0.9);
        if is_silent {
            state.silent = Some(Silent { since, found: Instant::now(), looked: false });
        }
        is_silent
    }

    /// Somebody looked, and that is over. Whether it is silent still.
    pub(super) fn was_looked_at(&self) -> bool {
        let mut state = self.state();
        if let Some(silent) = &mut state.silent {
            silent.looked = true;
        }
        let is_silent = state.silent.is_some();
        drop(state);
        self.looked.notify_waiters();
        is_silent
    }

    /// Answers of use so far.
    pub(super) fn heard(&self) -> u64 {
        self.state().heard
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a failure says nothing but that the endpoint cannot answer at the moment.
pub(super) fn is_no_answer(kind: Kind) -> bool {
    matches!(kind, Kind::Unreachable | Kind::TimedOut | Kind::Throttled | Kind::Server)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn refused() -> Error {
        Error::new(Kind::Unreachable, "connection refused")
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    /// Has fallen silent.
    async fn silent() -> Silence {
        let silence = Silence::default();
        silence.begins();
        pass(60).await;
        silence.fails(&refused());
        assert!(silence.ends(PATIENCE));
        silence
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_is_silent_when_requests_heard_nothing_for_the_whole_timeout() {
        let silence = silent().await;
        assert!(silence.was_looked_at());
        pass(5).await;
        let told = silence.admits().await.unwrap_err();
        assert_eq!(told.kind(), Kind::Unreachable);
        assert!(told.message().contains("nothing for 65 s (connection refused)"), "{told}");
        assert_eq!(silence.hears(), Some(Duration::from_secs(65)));
        assert!(silence.admits().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gave_up_first_left_no_reason_to_tell() {
        let silence = Silence::default();
        silence.begins();
        pass(60).await;
        assert!(silence.ends(PATIENCE));
        let told = silence.admits().await.unwrap_err();
        assert!(told.kind() == Kind::TimedOut && told.message().contains(" s; it is asked"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_any_request_is_a_sign_of_life() {
        let silence = Silence::default();
        silence.begins();
        silence.begins();
        pass(50).await;
        assert_eq!(silence.hears(), None);
        assert!(!silence.ends(PATIENCE), "the one that was answered");
        pass(10).await;
        silence.fails(&refused());
        assert!(!silence.ends(PATIENCE), "the other one");
        assert!(silence.admits().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_only_while_somebody_asks() {
        let silence = Silence::default();
        for _ in 0..10 {
            silence.begins();
            pass(10).await;
            silence.fails(&refused());
            assert!(!silence.ends(PATIENCE));
            pass(100).await;
        }
        // One after the other without a gap is one silence.
        silence.begins();
        for _ in 0..6 {
            silence.begins();
            pass(10).await;
            let is_silent = silence.ends(PATIENCE);
            assert_eq!(is_silent, silence.admits_now().is_err());
        }
        assert!(silence.admits_now().is_err());
    }

    /// An endpoint that came back just when it was given up refuses nobody.
    #[tokio::test(start_paused = true)]
    async fn who_asks_before_the_first_look_waits_for_it() {
        let silence = silent().await;
        let (admitted, ()) = tokio::join!(silence.admits(), async {
            pass(1).await;
            silence.hears();
        });
        admitted.unwrap();
        silence.begins();
        pass(60).await;
        assert!(silence.ends(PATIENCE));
        let begun = Instant::now();
        let (admitted, ()) = tokio::join!(silence.admits(), async {
            pass(1).await;
            assert!(silence.was_looked_at());
        });
        admitted.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        // And nobody waits for the looks after it.
        silence.admits().await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }

    impl Silence {
        fn admits_now(&self) -> Result<(), ()> {
            if self.state().silent.is_some() { Err(()) } else { Ok(()) }
        }
    }
}
