//! Runs on their way to the disk: a bounded queue that threads empty, and how long it may hold up who fills it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::files::Run;
use crate::base::{Budget, Clock, Grant, Pool};
use crate::read::{Object, ObjectId};

/// The most that one turn of a thread takes out of the queue, in bytes: one large write instead of many small ones,
/// and not so much that the other thread is left without.
const TURN_BYTES: u64 = 8 << 20;
/// And the most in parts of the queue, because its room is free again when all of a turn is written.
const TURN_PART: u64 = 4;
/// How many times as long as without a disk fetches may take for the disk's sake. A disk that has a quarter of the
/// network's speed gets all that is read once; one that is slower costs its readers no more than this.
const SLOWDOWN_MAX: u32 = 4;
/// What may be waited before there was a network to wait for, and what is saved up at most: disks and schedulers have
/// their moments.
const SAVED_MAX: Duration = Duration::from_secs(3);
/// A disk that has not begun or ended a turn for this long is not waited for: it hangs, or is of no use to a reader.
const STALL: Duration = Duration::from_secs(3);

/// What fetches may still be held up for, by how long the network has held them up. Pure.
///
/// It is one account for all of them. Several that wait at once may overdraw it, which those that come later make up.
#[derive(Debug)]
struct Patience {
    saved: Duration,
    owed: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { saved: SAVED_MAX, owed: Duration::ZERO }
    }

    /// What may be waited now.
    fn left(&self) -> Duration {
        self.saved.saturating_sub(self.owed).min(STALL)
    }

    fn waited_for_network(&mut self, time: Duration) {
        let earned = time.saturating_mul(SLOWDOWN_MAX - 1);
        let paid = self.owed.min(earned);
        self.owed -= paid;
        self.saved = (self.saved + (earned - paid)).min(SAVED_MAX);
    }

    fn waited_for_disk(&mut self, time: Duration) {
        let paid = self.saved.min(time);
        self.saved -= paid;
        self.owed += time - paid;
    }
}

/// A fetch, as the disk sees it: since when it has waited for the network.
#[derive(Debug)]
pub struct Fetching {
    since: Instant,
}

impl Fetching {
    pub(super) fn begins(now: Instant) -> Self {
        Self { since: now }
    }
}

/// A run to write.
struct Job {
    object: Object,
    run: Run,
    /// The memory that it holds, which may be more than its own bytes.
    room: Grant,
}

/// The queue. Runs count until they are written, not until a thread has taken them.
pub(super) struct Behind {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Memory for what waits.
    room: Budget,
    clock: Arc<dyn Clock>,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// When a thread last took something or was done with it, or found nothing to take.
    moved_at: Instant,
    patience: Patience,
    closed: bool,
}

/// Runs of one object for one write. They count until this is dropped.
pub(super) struct Turn<'a> {
    behind: &'a Behind,
    bytes: u64,
    rooms: Vec<Grant>,
    pub(super) object: Object,
    pub(super) runs: Vec<Run>,
}

impl Behind {
    pub(super) fn new(limit_bytes: u64, clock: Arc<dyn Clock>) -> Self {
        let queue =
            Queue { jobs: VecDeque::new(), moved_at: clock.now(), patience: Patience::new(), closed: false };
        Self { queue: Mutex::new(queue), changed: Condvar::new(), room: Budget::new(limit_bytes), clock }
    }

    /// Memory of runs that wait or are being written.
    pub(super) fn held_bytes(&self) -> u64 {
        self.room.held_bytes(Pool::Reads)
    }

    /// Takes a run as soon as there is room for the memory it holds; `false` where that takes too long.
    pub(super) async fn offer(
        &self,
        object: &Object,
        run: Run,
        held_bytes: u64,
        fetching: &mut Fetching,
    ) -> bool {
        let now = self.clock.now();
        let left = {
            let mut queue = self.lock();
            queue.patience.waited_for_network(now.duration_since(fetching.since));
            let stalled = now.duration_since(queue.moved_at) >= STALL;
            if stalled { Duration::ZERO } else { queue.patience.left() }
        };
        fetching.since = now;
        if held_bytes > self.room.limit_bytes() {
            return false;
        }
        let room = match self.room.try_take(held_bytes) {
            Some(room) => Some(room),
            None if left.is_zero() => None,
            None => {
                let room = tokio::time::timeout(left, self.room.take(held_bytes)).await;
                fetching.since = self.clock.now();
                self.lock().patience.waited_for_disk(fetching.since.duration_since(now));
                room.ok()
            }
        };
        room.is_some_and(|room| self.push(Job { object: object.clone(), run, room }))
    }

    fn push(&self, job: Job) -> bool {
        let mut queue = self.lock();
        if queue.closed {
            return false;
        }
        if queue.jobs.is_empty() {
            queue.moved_at = self.clock.now();
        }
        queue.jobs.push_back(job);
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
                queue.moved_at = self.clock.now();
                return Some(queue.gather(first, self));
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets go of what waits, and ends the threads.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.jobs.clear();
        drop(queue);
        self.changed.notify_all();
    }

    /// Waits until nothing is on its way; `false` at the deadline.
    #[cfg(test)]
    pub(super) fn settled(&self, deadline: Duration) -> bool {
        let waiting = |_: &mut Queue| self.room.free_bytes() < self.room.limit_bytes();
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
            Turn { behind, bytes: 0, rooms: Vec::new(), object: first.object.clone(), runs: Vec::new() };
        turn.add(first);
        let most = TURN_BYTES.min(behind.room.limit_bytes() / TURN_PART);
        let mut others = VecDeque::with_capacity(self.jobs.len());
        for job in self.jobs.drain(..) {
            if turn.bytes < most && job.object.id == id {
                turn.add(job);
            } else {
                others.push_back(job);
            }
        }
        self.jobs = others;
        turn.runs.sort_by_key(|run| run.first);
        turn
    }
}

impl Turn<'_> {
    fn add(&mut self, job: Job) {
        self.bytes += job.run.bytes.len() as u64;
        self.rooms.push(job.room);
        self.runs.push(job.run);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // The bytes go before their room does, and both before anybody is told.
        self.runs.clear();
        self.rooms.clear();
        self.behind.lock().moved_at = self.behind.clock.now();
        self.behind.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ETag, ManualClock, SystemClock};
    use crate::s3::MemStore;
    use bytes::Bytes;
    use proptest::prelude::*;

    const LIMIT: u64 = 64 << 10;

    fn object() -> Object {
        let id = ObjectId { volume: 0, key: "k".into(), etag: ETag::new("e") };
        let store = MemStore::new(Arc::new(SystemClock), Arc::default());
        Object::new(id, "bucket".into(), 1 << 30, Arc::new(store))
    }

    fn run() -> Run {
        Run { first: 0, bytes: Bytes::from_static(&[7; 4096]) }
    }

    /// A queue with no room left.
    async fn full() -> (Arc<ManualClock>, Behind, Fetching) {
        let clock = Arc::new(ManualClock::new());
        let behind = Behind::new(LIMIT, clock.clone());
        let mut fetching = Fetching::begins(clock.now());
        assert!(behind.offer(&object(), run(), LIMIT, &mut fetching).await);
        (clock, behind, fetching)
    }

    proptest! {
        /// Whatever the network and the disk take, the whole is slower by no more than the bound and what was saved up.
        #[test]
        fn the_disk_slows_fetches_by_no_more_than_its_bound(
            chunks in proptest::collection::vec((0u64..100, 0u64..2000), 1..50),
            at_once in 1u32..4,
        ) {
            let mut patience = Patience::new();
            let (mut network, mut disk) = (Duration::ZERO, Duration::ZERO);
            for (arrives, room) in chunks.into_iter().map(|(a, b)| (Duration::from_millis(a), Duration::from_millis(b))) {
                patience.waited_for_network(arrives);
                network += arrives;
                let waits = room.min(patience.left());
                for _ in 0..at_once {
                    patience.waited_for_disk(waits);
                    disk += waits;
                }
                let bound = network * (SLOWDOWN_MAX - 1) + SAVED_MAX + STALL * (at_once - 1);
                prop_assert!(disk <= bound, "{disk:?} for {network:?}");
            }
        }

        /// A disk with a quarter of the network's speed gets everything, however unevenly both go on.
        #[test]
        fn a_disk_of_a_quarter_of_the_speed_gets_everything(
            chunks in proptest::collection::vec((0u64..100, 0u64..300), 1..50),
        ) {
            let mut patience = Patience::new();
            let (mut network, mut disk, mut ahead) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
            for (arrives, wished) in chunks.into_iter().map(|(a, b)| (Duration::from_millis(a), Duration::from_millis(b))) {
                patience.waited_for_network(arrives);
                network += arrives;
                ahead = ahead.max(network * (SLOWDOWN_MAX - 1) - disk);
                let waits = wished.min(network * (SLOWDOWN_MAX - 1) - disk).min(SAVED_MAX);
                if waits > patience.left() {
                    prop_assert!(ahead > SAVED_MAX, "out of patience, and it never had too much");
                    break;
                }
                patience.waited_for_disk(waits);
                disk += waits;
            }
        }
    }

    #[tokio::test]
    async fn a_run_waits_for_room_and_gets_it() {
        let (_clock, behind, mut fetching) = full().await;
        let (object, waits) = (object(), tokio::sync::oneshot::channel());
        let offers = async {
            let mut offer = Box::pin(behind.offer(&object, run(), LIMIT, &mut fetching));
            assert!(futures::poll!(offer.as_mut()).is_pending());
            waits.0.send(()).unwrap();
            offer.await
        };
        let writes = async {
            waits.1.await.unwrap();
            drop(behind.take());
        };
        assert!(futures::join!(offers, writes).0);
        assert_eq!(behind.take().unwrap().runs.len(), 1);
    }

    #[tokio::test]
    async fn a_disk_that_hangs_is_not_waited_for_nor_one_that_has_cost_too_much() {
        let (clock, behind, mut fetching) = full().await;
        let o = object();
        let waits = async |fetching: &mut Fetching| {
            futures::poll!(Box::pin(behind.offer(&o, run(), 4096, fetching))).is_pending()
        };
        assert!(waits(&mut fetching).await);
        behind.lock().patience.waited_for_disk(SAVED_MAX);
        assert!(!waits(&mut fetching).await);
        clock.advance(STALL / 2);
        assert!(waits(&mut fetching).await, "the network has taken its time meanwhile");
        clock.advance(STALL / 2);
        assert!(!waits(&mut fetching).await, "it has not moved");
        assert!(!behind.offer(&o, run(), LIMIT + 1, &mut fetching).await, "there never is that much room");
    }

    #[tokio::test]
    async fn closing_lets_go_of_all_that_waits() {
        let (_clock, behind, mut fetching) = full().await;
        behind.close();
        assert!(behind.settled(Duration::ZERO));
        assert!(!behind.offer(&object(), run(), 4096, &mut fetching).await);
        assert!(behind.take().is_none());
    }
}
