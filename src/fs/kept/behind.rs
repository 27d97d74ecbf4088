//! Answers on their way to the disk: a bounded queue that one thread empties. What finds no room in it is not kept.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::page::Identity;

/// Memory for what is not written yet: some 8,000 answers, which is what the fastest of servers gives in a second.
const BEHIND_BYTES: usize = 1 << 20;

pub(super) struct Answer {
    pub(super) identity: Identity,
    pub(super) value: Box<[u8]>,
}

impl Answer {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.value.len()
    }
}

/// The queue. Answers count until they are written, not until the thread has taken them.
#[derive(Default)]
pub(super) struct Behind {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Answer>,
    held_bytes: usize,
    is_closed: bool,
}

/// All that waited. It counts until this is dropped.
pub(super) struct Turn<'a> {
    behind: &'a Behind,
    bytes: usize,
    pub(super) answers: Vec<Answer>,
}

impl Behind {
    /// Whether there was room.
    pub(super) fn offer(&self, answer: Answer) -> bool {
        let mut queue = self.lock();
        let bytes = answer.bytes();
        if queue.is_closed || queue.held_bytes + bytes > BEHIND_BYTES {
            return false;
        }
        queue.held_bytes += bytes;
        queue.waiting.push(answer);
        drop(queue);
        self.changed.notify_all();
        true
    }

    /// Waits for answers; `None` when there will be no more.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        let waits = |queue: &mut Queue| queue.waiting.is_empty() && !queue.is_closed;
        let mut queue = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        let answers = mem::take(&mut queue.waiting);
        drop(queue);
        let bytes = answers.iter().map(Answer::bytes).sum();
        // Not `then_some`: a turn locks the queue when it goes.
        (!answers.is_empty()).then(|| Turn { behind: self, bytes, answers })
    }

    /// Waits until nothing is on its way; `false` where that takes too long.
    pub(super) fn settle(&self, patience: Duration) -> bool {
        let waited =
            self.changed.wait_timeout_while(self.lock(), patience, |queue: &mut Queue| queue.held_bytes > 0);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Takes no more, waits like [`settle`](Self::settle), and lets go of what waits by then.
    pub(super) fn close(&self, patience: Duration) {
        self.lock().is_closed = true;
        self.changed.notify_all();
        if !self.settle(patience) {
            let mut queue = self.lock();
            let gone = mem::take(&mut queue.waiting);
            queue.held_bytes -= gone.iter().map(Answer::bytes).sum::<usize>();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // The memory goes before anybody is told of its room.
        self.answers = Vec::new();
        self.behind.lock().held_bytes -= self.bytes;
        self.behind.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ETag;
    use std::time::UNIX_EPOCH;

    fn answer(len: usize) -> Answer {
        let identity = Identity::new("b", "k", &ETag::new("e"), UNIX_EPOCH);
        Answer { identity, value: vec![0; len].into() }
    }

    /// As many as there is room for.
    fn fill(behind: &Behind) -> usize {
        (0..BEHIND_BYTES).take_while(|_| behind.offer(answer(1000))).count()
    }

    #[test]
    fn what_is_not_written_yet_has_a_bound_in_bytes_and_the_rest_is_refused() {
        let behind = Behind::default();
        let count = fill(&behind);
        assert!((BEHIND_BYTES / 1100..=BEHIND_BYTES / 1000).contains(&count), "{count}");
        let turn = behind.take().unwrap();
        assert_eq!(turn.answers.len(), count);
        assert!(!behind.offer(answer(1000)), "taken is not written");
        assert!(!behind.settle(Duration::ZERO));
        drop(turn);
        assert!(behind.settle(Duration::ZERO));
        assert_eq!(fill(&behind), count);
    }

    #[test]
    fn what_waits_when_it_is_closed_is_taken_and_then_no_more() {
        let behind = Behind::default();
        assert!(behind.offer(answer(1)));
        std::thread::scope(|scope| {
            let closes = scope.spawn(|| behind.close(Duration::from_secs(60)));
            assert_eq!(behind.take().unwrap().answers.len(), 1);
            assert!(behind.take().is_none());
            closes.join().unwrap();
        });
        assert!(!behind.offer(answer(1)));
    }

    #[test]
    fn a_thread_that_hangs_is_not_waited_for_for_ever() {
        let behind = Behind::default();
        assert!(behind.offer(answer(1)));
        let turn = behind.take().unwrap();
        assert!(behind.offer(answer(1)));
        behind.close(Duration::from_millis(1));
        drop(turn);
        assert!(behind.take().is_none(), "what had waited is let go of");
        assert!(behind.settle(Duration::ZERO));
    }
}
