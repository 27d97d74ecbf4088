//! How many requests may be under way at once, who goes first, and how a server that says "slow down" is heeded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Who asks, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A program waits for it.
    Demand,
    /// Bytes on their way out.
    Write,
    /// The same, which nobody waits for yet.
    Behind,
    /// A guess of what a reader reads next.
    Ahead,
    /// A guess of which file or directory comes next.
    Guess,
}

const PRIORITIES: usize = 5;
/// A server that throttles still gets this many requests at once.
const LIMIT_MIN: usize = 4;

/// A bound on requests that carry bytes or are guesses. Cheap to clone.
///
/// The bound is halved when the server throttles, at most once for all requests that were under way then, and grows
/// by one for each whole bound of requests that went well.
#[derive(Clone)]
pub struct Gate {
    state: Arc<Mutex<State>>,
    /// How often the server has said to slow down so far.
    throttled: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    limit: usize,
    limit_max: usize,
    under_way: usize,
    waiting: [VecDeque<Waiter>; PRIORITIES],
    /// Of the request that was let through last.
    last_number: u64,
    went_well: usize,
    /// Requests up to this number began before the latest halving.
    halved_at: u64,
}

/// Who asks, for one request or for one after the other: to be moved ahead once it becomes urgent, whether it waits at
/// the gate by then or not.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    urgency: Arc<AtomicU8>,
}

/// A program waits for it.
const URGENT: u8 = 1;
/// It is small, and a program waits for it: it waits for no bytes of others.
const AT_ONCE: u8 = 2;

type Waiter = (Turn, oneshot::Sender<Pass>);

/// Requests of a gate at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub under_way: usize,
    pub limit: usize,
    pub waiting: usize,
}

/// Leave to send one request; dropping it lets the next one go.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    number: u64,
    /// What was heard before.
    throttled: u64,
}

impl Gate {
    /// At most so many requests. `throttled` tells how often the server has said to slow down so far.
    pub fn new(limit_max: usize, throttled: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let limit = limit_max.max(1);
        Self {
            state: Arc::new(Mutex::new(State {
                limit,
                limit_max: limit,
                under_way: 0,
                waiting: Default::default(),
                last_number: 0,
                went_well: 0,
                halved_at: 0,
            })),
            throttled: Arc::new(throttled),
        }
    }

    /// Waits for leave to send a request; whose turn was promoted goes with [`Priority::Demand`].
    pub async fn enter(&self, turn: &Turn, priority: Priority) -> Pass {
        let waiting = {
            let mut state = self.lock();
            let urgency = turn.urgency.load(Ordering::Relaxed);
            if state.under_way < state.limit || urgency == AT_ONCE {
                let number = state.begin();
                return self.pass(number);
            }
            let priority = if urgency == URGENT { Priority::Demand } else { priority };
            let (sender, waiting) = oneshot::channel();
            state.waiting[priority as usize].push_back((turn.clone(), sender));
            waiting
        };
        match waiting.await {
            Ok(pass) => pass,
            // The gate outlives its queue, so this is never seen; one request more does no harm.
            Err(_) => {
                let number = self.lock().begin();
                self.pass(number)
            }
        }
    }

    /// Somebody waits for what is asked for at this turn.
    pub fn promote(&self, turn: &Turn) {
        let mut state = self.lock();
        if let Some(waiter) = state.hurry(turn, URGENT) {
            state.waiting[Priority::Demand as usize].push_back(waiter);
        }
    }

    /// Somebody waits for what is asked for at this turn, and it is so small that it goes at once, beyond the bound if need
    /// be: a name does not wait until the bytes of others are here.
    pub fn wave_through(&self, turn: &Turn) {
        let (number, sender) = {
            let mut state = self.lock();
            let Some((_, sender)) = state.hurry(turn, AT_ONCE) else { return };
            (state.begin(), sender)
        };
        let _ = sender.send(self.pass(number));
    }

    /// How much of it is used.
    pub fn load(&self) -> Load {
        let state = self.lock();
        Load {
            under_way: state.under_way,
            limit: state.limit,
            waiting: state.waiting.iter().map(VecDeque::len).sum(),
        }
    }

    /// The most requests under way now.
    pub fn limit(&self) -> usize {
        self.lock().limit
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, number: u64) -> Pass {
        Pass { gate: self.clone(), number, throttled: (self.throttled)() }
    }

    /// Lets waiters go as far as the bound allows.
    fn admit(&self) {
        loop {
            let (number, sender) = {
                let mut state = self.lock();
                if state.under_way >= state.limit {
                    return;
                }
                let Some((_, sender)) = state.waiting.iter_mut().find_map(VecDeque::pop_front) else {
                    return;
                };
                (state.begin(), sender)
            };
            // Who does not listen any more gives its pass back at once, by dropping it here.
            let _ = sender.send(self.pass(number));
        }
    }
}

impl State {
    /// Makes a turn urgent; takes it out of the queue, if it waits. Under the lock, so that whoever is about to enter either
    /// is found in the queue or sees it.
    fn hurry(&mut self, turn: &Turn, urgency: u8) -> Option<Waiter> {
        turn.urgency.fetch_max(urgency, Ordering::Relaxed);
        let is_it = |(other, _): &Waiter| Arc::ptr_eq(&other.urgency, &turn.urgency);
        self.waiting.iter_mut().find_map(|queue| queue.remove(queue.iter().position(is_it)?))
    }

    /// One request more is under way; its number.
    fn begin(&mut self) -> u64 {
        self.under_way += 1;
        self.last_number += 1;
        self.last_number
    }
}

impl Pass {
    /// The request was answered.
    pub fn done(self) {
        let throttled = (self.gate.throttled)() > self.throttled;
        self.settle(throttled);
    }

    fn settle(self, throttled: bool) {
        let mut state = self.gate.lock();
        if throttled {
            if self.number > state.halved_at {
                state.limit = (state.limit / 2).max(LIMIT_MIN.min(state.limit_max));
                state.halved_at = state.last_number;
                state.went_well = 0;
            }
            return;
        }
        state.went_well += 1;
        if state.went_well >= state.limit {
            state.went_well = 0;
            state.limit = (state.limit + 1).min(state.limit_max);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.lock().under_way -= 1;
        self.gate.admit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_most_urgent_goes_first_and_may_become_so_later() {
        let gate = Gate::new(1, || 0);
        let first = gate.enter(&Turn::default(), Priority::Guess).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let ask = async |name: &'static str, priority| {
            let (gate, order) = (gate.clone(), Arc::clone(&order));
            let turn = Turn::default();
            let asked = turn.clone();
            let mut waiting = Box::pin(async move {
                let _pass = gate.enter(&asked, priority).await;
                order.lock().unwrap().push(name);
            });
            assert!(futures::poll!(waiting.as_mut()).is_pending());
            (turn, waiting)
        };
        let (_, ahead) = ask("ahead", Priority::Ahead).await;
        let (guess, promoted) = ask("guess", Priority::Guess).await;
        let (_, demand) = ask("demand", Priority::Demand).await;
        gate.promote(&guess);
        drop(first);
        futures::join!(ahead, promoted, demand);
        assert_eq!(*order.lock().unwrap(), ["demand", "guess", "ahead"]);
    }

    #[tokio::test]
    async fn what_became_urgent_before_it_came_to_the_gate_goes_first() {
        let gate = Gate::new(1, || 0);
        let first = gate.enter(&Turn::default(), Priority::Demand).await;
        let (ahead, urgent) = (Turn::default(), Turn::default());
        gate.promote(&urgent);
        let mut ahead = Box::pin(gate.enter(&ahead, Priority::Ahead));
        assert!(futures::poll!(ahead.as_mut()).is_pending());
        let mut guess = Box::pin(gate.enter(&urgent, Priority::Guess));
        assert!(futures::poll!(guess.as_mut()).is_pending());
        drop(first);
        assert!(futures::poll!(ahead.as_mut()).is_pending());
        assert!(futures::poll!(guess.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn what_is_waved_through_goes_beyond_the_bound() {
        let gate = Gate::new(1, || 0);
        let bytes = gate.enter(&Turn::default(), Priority::Demand).await;
        let turn = Turn::default();
        let mut name = Box::pin(gate.enter(&turn, Priority::Guess));
        assert!(futures::poll!(name.as_mut()).is_pending());
        gate.wave_through(&turn);
        drop(name.await);
        drop(gate.enter(&turn, Priority::Guess).await);
        let other = Turn::default();
        let mut other = Box::pin(gate.enter(&other, Priority::Demand));
        assert!(futures::poll!(other.as_mut()).is_pending(), "nobody else profits");
        drop(bytes);
        assert!(futures::poll!(other.as_mut()).is_ready());
        drop(other);
        assert_eq!(gate.lock().under_way, 0);
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_takes_no_place() {
        let gate = Gate::new(1, || 0);
        let first = gate.enter(&Turn::default(), Priority::Demand).await;
        {
            let turn = Turn::default();
            let mut gone = Box::pin(gate.enter(&turn, Priority::Demand));
            assert!(futures::poll!(gone.as_mut()).is_pending());
        }
        drop(first);
        drop(gate.enter(&Turn::default(), Priority::Guess).await);
        assert_eq!(gate.lock().under_way, 0);
    }

    #[tokio::test]
    async fn throttling_halves_the_bound_once_and_success_opens_it_again() {
        let gate = Gate::new(64, || 0);
        let mut passes = Vec::new();
        for _ in 0..20 {
            passes.push(gate.enter(&Turn::default(), Priority::Demand).await);
        }
        for pass in passes {
            pass.settle(true);
        }
        assert_eq!(gate.limit(), 32, "one burst counts once");
        gate.enter(&Turn::default(), Priority::Demand).await.settle(true);
        assert_eq!(gate.limit(), 16);
        for _ in 0..1_000 {
            gate.enter(&Turn::default(), Priority::Demand).await.settle(false);
        }
        assert!(gate.limit() > 32, "{}", gate.limit());
        for _ in 0..20 {
            gate.enter(&Turn::default(), Priority::Demand).await.settle(true);
        }
        assert_eq!(gate.limit(), LIMIT_MIN);
    }
}
