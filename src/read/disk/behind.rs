//! Runs on their way to the disk: a bounded queue that is filled without waiting and emptied by threads.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::files::Run;
use crate::read::{Object, ObjectId};

/// The most that one turn of a thread takes out of the queue, in bytes: one large write instead of many small ones,
/// and not so much that the other thread is left without.
const TURN_BYTES: u64 = 8 << 20;

/// A run to write.
struct Job {
    object: Object,
    run: Run,
    /// Memory that it holds, which may be more than its own bytes.
    held_bytes: u64,
}

/// The queue. Runs count until they are written, not until a thread has taken them.
pub(super) struct Behind {
    queue: Mutex<Queue>,
    changed: Condvar,
    limit_bytes: u64,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    bytes: u64,
    closed: bool,
}

/// Runs of one object for one write. They count until this is dropped.
pub(super) struct Turn<'a> {
    behind: &'a Behind,
    held_bytes: u64,
    pub(super) object: Object,
    pub(super) runs: Vec<Run>,
}

impl Behind {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { queue: Mutex::default(), changed: Condvar::new(), limit_bytes }
    }

    /// Takes a run if there is room for the memory it holds. Never waits.
    pub(super) fn offer(&self, object: &Object, run: Run, held_bytes: u64) -> bool {
        let mut queue = self.lock();
        if queue.closed || queue.bytes + held_bytes > self.limit_bytes {
            return false;
        }
        queue.bytes += held_bytes;
        queue.jobs.push_back(Job { object: object.clone(), run, held_bytes });
        drop(queue);
        self.changed.notify_one();
        true
    }

    /// Waits for the next runs to write; `None` when there will be no more.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(first) = queue.jobs.pop_front() {
                return Some(queue.gather(first, self));
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets go of what waits, and ends the threads.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let waiting: u64 = queue.jobs.drain(..).map(|job| job.held_bytes).sum();
        queue.bytes -= waiting;
        drop(queue);
        self.changed.notify_all();
    }

    /// Waits until nothing is on its way; `false` at the deadline.
    #[cfg(test)]
    pub(super) fn settled(&self, deadline: std::time::Duration) -> bool {
        let waiting = |queue: &mut Queue| queue.bytes > 0;
        let waited = self.changed.wait_timeout_while(self.lock(), deadline, waiting);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Everything of one object, in order, up to a turn's worth. Several GETs of an object land mixed up.
    fn gather<'a>(&mut self, first: Job, behind: &'a Behind) -> Turn<'a> {
        let id: ObjectId = first.object.id.clone();
        let mut turn =
            Turn { behind, held_bytes: first.held_bytes, object: first.object, runs: vec![first.run] };
        let mut others = VecDeque::with_capacity(self.jobs.len());
        for job in self.jobs.drain(..) {
            if turn.held_bytes < TURN_BYTES && job.object.id == id {
                turn.held_bytes += job.held_bytes;
                turn.runs.push(job.run);
            } else {
                others.push_back(job);
            }
        }
        self.jobs = others;
        turn.runs.sort_by_key(|run| run.first);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.behind.lock();
        queue.bytes -= self.held_bytes;
        drop(queue);
        self.behind.changed.notify_all();
    }
}
