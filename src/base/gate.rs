//! How many requests may be under way at once, who goes first, and how a server that says "slow down" is heeded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Who asks, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A program waits for it.
    Demand,
    /// Bytes on their way out.
    Write,
    /// A guess of what a reader reads next.
    Ahead,
    /// A guess of which file comes next.
    Guess,
}

const PRIORITIES: usize = 4;
/// A server that throttles still gets this many requests at once.
const LIMIT_MIN: usize = 4;

/// A bound on requests under way. Cheap to clone.
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
    waiting: [VecDeque<(u64, oneshot::Sender<Pass>)>; PRIORITIES],
    last_number: u64,
    went_well: usize,
    /// Requests up to this number began before the latest halving.
    halved_at: u64,
}

/// A place in the queue of a [`Gate`], to be moved ahead when it becomes urgent.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

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

    /// Draws a ticket for one request.
    pub fn ticket(&self) -> Ticket {
        let mut state = self.lock();
        state.last_number += 1;
        Ticket(state.last_number)
    }

    /// Waits for leave to send the request of a ticket.
    pub async fn enter(&self, ticket: Ticket, priority: Priority) -> Pass {
        let waiting = {
            let mut state = self.lock();
            if state.under_way < state.limit {
                state.under_way += 1;
                return self.pass(ticket.0);
            }
            let (sender, waiting) = oneshot::channel();
            state.waiting[priority as usize].push_back((ticket.0, sender));
            waiting
        };
        match waiting.await {
            Ok(pass) => pass,
            // The gate outlives its queue, so this is never seen; one request more does no harm.
            Err(_) => {
                self.lock().under_way += 1;
                self.pass(ticket.0)
            }
        }
    }

    /// Somebody waits for this request now.
    pub fn promote(&self, ticket: Ticket) {
        let mut state = self.lock();
        for priority in 1..PRIORITIES {
            if let Some(at) = state.waiting[priority].iter().position(|(number, _)| *number == ticket.0)
                && let Some(waiter) = state.waiting[priority].remove(at)
            {
                state.waiting[Priority::Demand as usize].push_back(waiter);
                return;
            }
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
                let Some(next) = state.waiting.iter_mut().find_map(VecDeque::pop_front) else { return };
                state.under_way += 1;
                next
            };
            // Who does not listen any more gives its pass back at once, by dropping it here.
            let _ = sender.send(self.pass(number));
        }
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
        let first = gate.enter(gate.ticket(), Priority::Guess).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let ask = async |name: &'static str, priority| {
            let (gate, order) = (gate.clone(), Arc::clone(&order));
            let ticket = gate.ticket();
            let mut waiting = Box::pin(async move {
                let _pass = gate.enter(ticket, priority).await;
                order.lock().unwrap().push(name);
            });
            assert!(futures::poll!(waiting.as_mut()).is_pending());
            (ticket, waiting)
        };
        let (_, ahead) = ask("ahead", Priority::Ahead).await;
        let (guess, promoted) = ask("guess", Priority::Guess).await;
        let (_, demand) = ask("demand", Priority::Demand).await;
        gate.promote(guess);
        drop(first);
        futures::join!(ahead, promoted, demand);
        assert_eq!(*order.lock().unwrap(), ["demand", "guess", "ahead"]);
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_takes_no_place() {
        let gate = Gate::new(1, || 0);
        let first = gate.enter(gate.ticket(), Priority::Demand).await;
        {
            let mut gone = Box::pin(gate.enter(gate.ticket(), Priority::Demand));
            assert!(futures::poll!(gone.as_mut()).is_pending());
        }
        drop(first);
        drop(gate.enter(gate.ticket(), Priority::Guess).await);
        assert_eq!(gate.lock().under_way, 0);
    }

    #[tokio::test]
    async fn throttling_halves_the_bound_once_and_success_opens_it_again() {
        let gate = Gate::new(64, || 0);
        let mut passes = Vec::new();
        for _ in 0..20 {
            passes.push(gate.enter(gate.ticket(), Priority::Demand).await);
        }
        for pass in passes {
            pass.settle(true);
        }
        assert_eq!(gate.limit(), 32, "one burst counts once");
        gate.enter(gate.ticket(), Priority::Demand).await.settle(true);
        assert_eq!(gate.limit(), 16);
        for _ in 0..1_000 {
            gate.enter(gate.ticket(), Priority::Demand).await.settle(false);
        }
        assert!(gate.limit() > 32, "{}", gate.limit());
        for _ in 0..20 {
            gate.enter(gate.ticket(), Priority::Demand).await.settle(true);
        }
        assert_eq!(gate.limit(), LIMIT_MIN);
    }
}
