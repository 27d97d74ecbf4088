//! Blocks on their way to the disk: a bounded queue that is filled without waiting and emptied by threads.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::read::{Object, ObjectId};

/// The most that one turn of a thread takes out of the queue, in bytes: one large write instead of many small ones,
/// and not so much that the other thread is left without.
const TURN_BYTES: u64 = 8 << 20;

/// A block to write.
struct Job {
    object: Object,
    index: u64,
    block: Bytes,
}

/// The queue. Blocks count until they are written, not until a thread has taken them.
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

/// Blocks of one object for one write. They count until this is dropped.
pub(super) struct Turn<'a> {
    behind: &'a Behind,
    pub(super) object: Object,
    pub(super) blocks: Vec<(u64, Bytes)>,
}

impl Behind {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { queue: Mutex::default(), changed: Condvar::new(), limit_bytes }
    }

    /// Takes a block if there is room for it. Never waits.
    pub(super) fn offer(&self, object: &Object, index: u64, block: &Bytes) -> bool {
        let mut queue = self.lock();
        let len = block.len() as u64;
        if queue.closed || queue.bytes + len > self.limit_bytes {
            return false;
        }
        queue.bytes += len;
        queue.jobs.push_back(Job { object: object.clone(), index, block: block.clone() });
        drop(queue);
        self.changed.notify_one();
        true
    }

    /// Waits for the next blocks to write; `None` when there will be no more.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(first) = queue.jobs.pop_front() {
                let (object, blocks) = queue.gather(first);
                return Some(Turn { behind: self, object, blocks });
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets go of what waits, and ends the threads.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let waiting: u64 = queue.jobs.drain(..).map(|job| job.block.len() as u64).sum();
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
    fn gather(&mut self, first: Job) -> (Object, Vec<(u64, Bytes)>) {
        let id: ObjectId = first.object.id.clone();
        let mut bytes = first.block.len() as u64;
        let mut blocks = vec![(first.index, first.block)];
        let mut others = VecDeque::with_capacity(self.jobs.len());
        for job in self.jobs.drain(..) {
            if bytes < TURN_BYTES && job.object.id == id {
                bytes += job.block.len() as u64;
                blocks.push((job.index, job.block));
            } else {
                others.push_back(job);
            }
        }
        self.jobs = others;
        blocks.sort_by_key(|(index, _)| *index);
        (first.object, blocks)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.behind.lock();
        queue.bytes -= self.blocks.iter().map(|(_, block)| block.len() as u64).sum::<u64>();
        drop(queue);
        self.behind.changed.notify_all();
    }
}
