//! What a mount holds at one time: gauges, for whoever shows them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Fs, lock};
use crate::base::{Load, Pool};
use crate::read::DiskUse;
use crate::write::Staging;

/// How long local disks are waited for; one that hangs is told of as it was last.
const DISKS_WAIT: Duration = Duration::from_millis(500);

/// Plain figures, none of which S3 was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Bytes in memory by what holds them.
    pub memory: Vec<(&'static str, u64)>,
    /// What all of them may be.
    pub memory_budget_bytes: u64,
    pub disk_cache: Option<DiskUse>,
    /// Of local disks, where they have said so.
    pub staging_used_bytes: Option<u64>,
    pub staging_free_bytes: Option<u64>,
    pub file_handles: u64,
    pub dir_handles: u64,
    pub open_files: u64,
    pub inodes: u64,
    pub transfers: Load,
}

/// What local disks said last.
#[derive(Default)]
pub(super) struct Disks {
    is_asked: AtomicBool,
    last: Mutex<Answer>,
}

#[derive(Clone, Copy, Default)]
struct Answer {
    cache: Option<DiskUse>,
    used_bytes: Option<u64>,
    free_bytes: Option<u64>,
}

impl Fs {
    /// A look at what there is now.
    pub async fn view(self: &Arc<Self>) -> View {
        self.ask_disks().await;
        let Answer { cache, used_bytes, free_bytes } = *lock(&self.disks.last);
        let budget = &self.lanes.budget;
        let kept = self.reader.kept_bytes();
        let mut memory = vec![
            ("read_cache", kept),
            ("reads", budget.held_bytes(Pool::Reads).saturating_sub(kept)),
            ("uploads", budget.held_bytes(Pool::Uploads)),
            ("names", budget.held_bytes(Pool::Names)),
            ("listings", budget.held_bytes(Pool::Listings)),
            ("staging", budget.held_bytes(Pool::Staging)),
            ("idle", budget.held_bytes(Pool::Idle)),
        ];
        let mut memory_budget_bytes = budget.limit_bytes();
        if let Some(disk) = self.reader.disk() {
            let (held, max) = disk.queue_bytes();
            memory.push(("disk_queue", held));
            memory_budget_bytes += max;
        }
        let (file_handles, dir_handles) = self.handles.counts();
        View {
            memory,
            memory_budget_bytes,
            disk_cache: cache,
            staging_used_bytes: used_bytes,
            staging_free_bytes: free_bytes,
            file_handles,
            dir_handles,
            open_files: lock(&self.files).all().count() as u64,
            inodes: self.inodes() as u64,
            transfers: self.lanes.gate.load(),
        }
    }

    /// Asks the local disks what they hold, one question at a time.
    async fn ask_disks(self: &Arc<Self>) {
        if self.disks.is_asked.swap(true, Ordering::Acquire) {
            return;
        }
        let fs = Arc::clone(self);
        let asked = tokio::task::spawn_blocking(move || {
            let files: Vec<_> = lock(&fs.files).all().cloned().collect();
            let staged: Vec<Arc<Staging>> = files.iter().filter_map(|file| file.staging()).collect();
            let answer = Answer {
                cache: fs.reader.disk().map(|disk| disk.usage()),
                used_bytes: Some(staged.iter().map(|staging| staging.used_bytes()).sum()),
                free_bytes: fs.disk.free_bytes(),
            };
            *lock(&fs.disks.last) = answer;
            fs.disks.is_asked.store(false, Ordering::Release);
        });
        let _ = tokio::time::timeout(DISKS_WAIT, asked).await;
    }
}
