//! The requests behind removed names: each volume's queue of deletes (`deletes`, which has the rules) is filled and sent
//! here, and what S3 answers is told to the tree.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::deletes::{Doomed, Next, Queue};
use super::volume::Volume;
use super::{Fs, lock};
use crate::base::ETag;
use crate::error::{Error, Kind, Result};
use crate::s3::DeleteKey;
use crate::tree::keys::{DirKey, Name};
use crate::tree::{Ino, VolumeId};
use crate::write::delete_objects;
use crate::write::journal::{IntentId, Record};

/// An object whose name is removed.
pub(super) struct Removed<'a> {
    pub(super) parent: Ino,
    pub(super) name: &'a Name,
    pub(super) ino: Ino,
    pub(super) dir: &'a DirKey,
    pub(super) key: &'a str,
    pub(super) etag: Option<ETag>,
}

impl Removed<'_> {
    fn doomed(&self, intent: Option<IntentId>) -> Doomed {
        Doomed {
            parent: self.parent,
            name: self.name.clone(),
            dir: self.dir.clone(),
            key: self.key.to_owned(),
            etag: self.etag.clone(),
            intent,
        }
    }
}

impl Fs {
    /// Takes a name away now and its object a little later, if names are being removed in a row; `false` where the
    /// caller has to wait for S3. The caller holds the name and shares the namespace.
    pub(super) async fn remove_later(
        self: &Arc<Self>,
        id: VolumeId,
        volume: &Arc<Volume>,
        removed: &Removed<'_>,
    ) -> bool {
        let mut changes = volume.deletes.changes.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let now = self.clock.now();
                let queue = volume.deletes.queue();
                if !queue.is_run(now) {
                    return false;
                }
                if !queue.is_full() {
                    let Ok(intent) = self.intend_delete(volume, removed.key, removed.etag.as_ref()) else {
                        return false;
                    };
                    self.orphan(removed.ino, None);
                    self.bury(id, volume, queue, removed.doomed(intent));
                    return true;
                }
            }
            // The sender lives as long as the volume.
            let _ = changes.changed().await;
        }
    }

    /// The same of an object whose name is gone already, whether names are being removed in a row or not.
    pub(super) async fn remove_again(self: &Arc<Self>, id: VolumeId, volume: &Arc<Volume>, doomed: Doomed) {
        let mut changes = volume.deletes.changes.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let queue = volume.deletes.queue();
                if !queue.is_full() {
                    return self.bury(id, volume, queue, doomed);
                }
            }
            let _ = changes.changed().await;
        }
    }

    fn bury(
        self: &Arc<Self>,
        id: VolumeId,
        volume: &Arc<Volume>,
        mut queue: MutexGuard<'_, Queue>,
        doomed: Doomed,
    ) {
        self.tree().bury(doomed.parent, &doomed.name);
        lock(&self.siblings).changed(id, &doomed.key);
        let due = Instant::now() + self.options.delete_wait;
        let begin = queue.push(doomed, self.clock.now(), due.into_std());
        let is_full = queue.is_full();
        drop(queue);
        if begin {
            let worker = Worker { fs: Arc::clone(self), id, volume: Arc::clone(volume), done: false };
            tokio::spawn(worker.work());
        } else if is_full {
            volume.deletes.changes.send_replace(());
        }
    }

    /// Waits, as long as an operation may, until no delete of the volume is left.
    pub(super) async fn drain(&self, volume: &Volume) -> Result<()> {
        let drained = async {
            volume.deletes.drained().await;
            Ok(())
        };
        self.within(drained).await
    }

    /// Before a name is made: waits, as long as an operation may, until no delete of its key is under way.
    pub(super) async fn settle(&self, volume: &Volume, dir: Ino, key: &str) -> Result<()> {
        volume.deletes.queue().makes(dir);
        let settled = async {
            volume.deletes.settled(key).await;
            Ok(())
        };
        self.within(settled).await
    }

    /// Waits until no delete is left in any volume, however long it takes.
    pub(super) async fn drain_all(&self) {
        let volumes: Vec<_> = self.volumes.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        futures::future::join_all(volumes.iter().map(|volume| volume.deletes.drained())).await;
    }

    /// Deletes a batch and says what became of each.
    async fn delete_batch(&self, volume: &Volume, batch: Vec<Doomed>) -> Vec<(Doomed, Result<()>)> {
        let lost = self.keep_dirs(volume, &batch).await;
        let (staying, going): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|doomed| lost.contains_key(&doomed.parent));
        let keys: Vec<DeleteKey> = going
            .iter()
            .map(|doomed| DeleteKey { key: doomed.key.clone(), etag: doomed.etag.clone() })
            .collect();
        let answers = match keys.is_empty() {
            true => Vec::new(),
            false => delete_objects(&volume.store, &volume.bucket, keys, volume.honoured().await).await,
        };
        let mut outcomes: Vec<_> = going.into_iter().zip(answers).collect();
        outcomes.extend(staying.into_iter().filter_map(|doomed| {
            let error = lost.get(&doomed.parent)?.duplicate();
            Some((doomed, Err(error)))
        }));
        outcomes
    }

    /// Sees to it that the directories of a batch stay; those that it could not be done for, and why.
    async fn keep_dirs(&self, volume: &Volume, batch: &[Doomed]) -> HashMap<Ino, Error> {
        let dirs: HashMap<Ino, &DirKey> = batch.iter().map(|doomed| (doomed.parent, &doomed.dir)).collect();
        let mut lost = HashMap::new();
        for (parent, dir) in dirs {
            if volume.deletes.queue().is_closing(parent) {
                continue;
            }
            if let Err(error) = self.keep_dir(volume, parent, dir).await {
                lost.insert(parent, error);
            }
        }
        lost
    }

    /// S3 has answered for these names.
    fn deleted(&self, id: VolumeId, volume: &Volume, outcomes: Vec<(Doomed, Result<()>)>) {
        let now = self.clock.now();
        let mut batch = Vec::with_capacity(outcomes.len());
        for (doomed, outcome) in outcomes {
            let gone = outcome.is_ok();
            if let Err(error) = outcome {
                self.came_back(volume, &doomed, error);
            }
            // Before anything is made under the name again.
            if let Some(id) = doomed.intent {
                self.owe_no_more(Record::Deleted { id });
            }
            self.tree().unbury(doomed.parent, &doomed.name, gone, now);
            lock(&self.siblings).changed(id, &doomed.key);
            batch.push(doomed);
        }
        self.pass_news();
        volume.deletes.queue().answered(&batch);
        volume.deletes.changes.send_replace(());
    }

    fn came_back(&self, volume: &Volume, doomed: &Doomed, error: Error) {
        let key = &doomed.key;
        if error.kind() == Kind::Stale {
            // As if it had been made after the old one was removed, so it is nobody's failure.
            volume.deletes.queue().broke();
            tracing::warn!(
                key,
                "another client changed a file while it was removed here; the new version stays"
            );
            return;
        }
        tracing::warn!(key, error = %error.report(), "a removed file could not be deleted; it is there again");
        if volume.deletes.queue().failed(doomed.parent, error) {
            // Until somebody is told, by this inode.
            self.tree().pin(doomed.parent);
        }
    }

    /// Why names of the directory came back, told once.
    pub(super) fn take_failure(&self, volume: &Volume, dir: Ino) -> Option<Error> {
        let failure = volume.deletes.queue().take_failure(dir)?;
        self.tree().unpin(dir);
        Some(failure)
    }
}

/// Sends what is in a volume's queue until nothing is.
struct Worker {
    fs: Arc<Fs>,
    id: VolumeId,
    volume: Arc<Volume>,
    done: bool,
}

impl Worker {
    async fn work(mut self) {
        let (fs, volume) = (Arc::clone(&self.fs), Arc::clone(&self.volume));
        let mut sending = FuturesUnordered::new();
        let mut changes = volume.deletes.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let next = volume.deletes.queue().next(Instant::now().into_std());
            let due = match next {
                Next::Send(batch) => {
                    // There is room again.
                    volume.deletes.changes.send_replace(());
                    sending.push(fs.delete_batch(&volume, batch));
                    continue;
                }
                Next::At(due) => Some(due.into()),
                Next::Wait => None,
                Next::Done => {
                    self.done = true;
                    return;
                }
            };
            let pause = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(outcomes) = sending.next() => fs.deleted(self.id, &volume, outcomes),
                _ = changes.changed() => {}
                () = pause => {}
            }
        }
    }
}

/// Where it ended too early, by a defect, nobody may wait for ever, and no name may stay hidden.
impl Drop for Worker {
    fn drop(&mut self) {
        // Somebody else may have begun since.
        if self.done {
            return;
        }
        let mut left = self.volume.deletes.queue().abandon();
        if !std::thread::panicking() {
            // The process ends before all were sent, and the next one will.
            left.iter_mut().for_each(|doomed| doomed.intent = None);
        }
        let failed = |doomed| (doomed, Err(Error::new(Kind::Internal, "deleting has ended too early")));
        self.fs.deleted(self.id, &self.volume, left.into_iter().map(failed).collect());
    }
}
