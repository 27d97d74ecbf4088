//! Deletes that go together: names removed in a row on this mount, as `rm -r` removes them.
//!
//! Owns: the objects of removed names from their removal until S3 has answered, and what failed of them until
//! somebody is told. Does not own: the names, which are buried in the tree meanwhile; a delete that is waited for
//! (`names`), which only has its key noted here; the requests (`removals`).
//!
//! One delete after the other is a round trip each, and whoever removes names waits for each before the next. So the
//! first ones of a row are waited for, and later ones, of files that nobody has open, wait here a moment for company
//! (`queue`). Guarantees:
//! 1. a name in here is gone for everybody on this mount, whatever a listing says, until its delete was answered;
//! 2. a name whose delete failed is there again, the log says so, and its directory's next rmdir or fsync does;
//! 3. a delete deletes the version that the mount knew, or nothing, where the server can tell;
//! 4. nothing is made under a key, and no directory moves, while the key waits or is on its way;
//! 5. what was not answered when the process dies is in the journal, and goes with the next mount; without a journal the
//!    name is there again then.

mod queue;

use std::sync::{Mutex, MutexGuard};

use tokio::sync::watch;

use super::lock;
use crate::tree::Ino;

pub(super) use queue::{Doomed, Leaving, Next, Queue};

/// The deletes of one volume.
#[derive(Debug, Default)]
pub(super) struct Deletes {
    queue: Mutex<Queue>,
    /// Changes whenever something in the queue does that somebody may wait for.
    pub(super) changes: watch::Sender<()>,
}

impl Deletes {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Keys that are about to go.
    pub(super) fn leaving(&self) -> Leaving {
        self.queue().leaving()
    }

    /// Notes a key that is about to go by a request of its own, or all keys that begin with it.
    pub(super) fn note(&self, key: &str, below: bool) -> Noted<'_> {
        self.queue().leaves(key, below);
        Noted { deletes: self, key: key.to_owned() }
    }

    /// Notes a directory that is to go when it is empty: nobody need keep it.
    pub(super) fn close(&self, dir: Ino) -> Closing<'_> {
        self.queue().closes(dir);
        Closing { deletes: self, dir }
    }

    /// A delete in `dir` that was waited for has ended; it was begun at `begun`.
    pub(super) fn ended(
        &self,
        dir: Ino,
        succeeded: bool,
        begun: std::time::Instant,
        now: std::time::Instant,
    ) {
        let mut queue = self.queue();
        match succeeded {
            true => queue.succeeded(dir, begun, now),
            false => queue.broke(),
        }
    }

    /// An emptied directory was removed.
    pub(super) fn removed_dir(&self, begun: std::time::Instant, now: std::time::Instant) {
        self.queue().went_on(begun, now);
    }

    /// Waits until everything that is in here now was answered. Every request has an end, so this has.
    pub(super) async fn drained(&self) {
        let number = self.queue().hurry();
        self.until(|queue| queue.is_done(number)).await;
    }

    /// Waits until the key is not about to go.
    pub(super) async fn settled(&self, key: &str) {
        if self.queue().holds(key) {
            self.queue().hurry();
            self.until(|queue| !queue.holds(key)).await;
        }
    }

    async fn until(&self, is_so: impl Fn(&Queue) -> bool) {
        let mut changes = self.changes.subscribe();
        self.changes.send_replace(());
        while !is_so(&self.queue()) {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }
}

pub(super) struct Noted<'a> {
    deletes: &'a Deletes,
    key: String,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.deletes.queue().has_left(&self.key);
    }
}

pub(super) struct Closing<'a> {
    deletes: &'a Deletes,
    dir: Ino,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.deletes.queue().has_closed(self.dir);
    }
}
