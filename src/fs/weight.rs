//! What names take of the mount's memory.
//!
//! Names cannot be refused: the kernel refers to them, or a program is in the middle of a directory. So they are taken
//! out of the one budget as they come, and bytes that are kept because nobody else wanted them give way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{Fs, lock};
use crate::base::{Grant, Pool};

/// Memory of a line in the window of an open directory: a name of 40 characters, its key and its facts.
const LINE_BYTES: u64 = 250;
/// What is taken or given back at once; less than that is not accounted for.
const STEP_BYTES: u64 = 256 << 10;

/// The names' share of the budget.
#[derive(Default)]
pub(super) struct Weight {
    /// Lines in the windows of open directories.
    lines: Arc<AtomicU64>,
    held_bytes: AtomicU64,
    held: Mutex<Option<Grant>>,
}

/// The lines in the window of one open directory.
pub(super) struct Counted {
    count: AtomicU64,
    all: Arc<AtomicU64>,
}

impl Counted {
    pub(super) fn set(&self, count: usize) {
        let count = count as u64;
        let before = self.count.swap(count, Ordering::Relaxed);
        self.all.fetch_add(count, Ordering::Relaxed);
        self.all.fetch_sub(before, Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Weight {
    pub(super) fn window(&self) -> Counted {
        Counted { count: AtomicU64::new(0), all: Arc::clone(&self.lines) }
    }
}

impl Fs {
    /// Takes memory for the names there are now, or gives back what they do not need any more.
    pub(super) fn weigh_names(&self) {
        let tree = self.tree().weight_bytes();
        let lines = self.weight.lines.load(Ordering::Relaxed) * LINE_BYTES;
        // However many there are, half of the memory is left to bytes.
        let bytes = (tree + lines).min(self.lanes.budget.limit_bytes() / 2);
        if bytes.abs_diff(self.weight.held_bytes.load(Ordering::Relaxed)) < STEP_BYTES {
            return;
        }
        let mut held = lock(&self.weight.held);
        let held_bytes = self.weight.held_bytes.load(Ordering::Relaxed);
        let held_now = match &mut *held {
            Some(grant) if bytes < held_bytes => {
                drop(grant.split(held_bytes - bytes));
                bytes
            }
            // Where all is on its way, this is done once some of it is here.
            held => match self.reader.spare(bytes.saturating_sub(held_bytes)) {
                Some(more) => {
                    let more = more.held_for(Pool::Names);
                    match held {
                        Some(held) => held.merge(more),
                        None => *held = Some(more),
                    }
                    bytes
                }
                None => held_bytes,
            },
        };
        self.weight.held_bytes.store(held_now, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::base::{ManualClock, SystemClock};
    use crate::fs::{Options, Root, Volume};
    use crate::s3::{MemStore, PutRequest, Store};
    use crate::tree::ROOT;

    #[tokio::test]
    async fn names_take_memory_as_they_come_and_give_it_back() {
        let store = MemStore::new(Arc::new(SystemClock), Arc::default()).with_bucket("bucket");
        for i in 0..6_000 {
            let key = format!("name-{i:05}");
            store.put(PutRequest { bucket: "bucket".into(), key, ..PutRequest::default() }).await.unwrap();
        }
        let root = Root::Volume(Volume::new("bucket", "", Arc::new(store) as Arc<dyn Store>));
        let options = Options { memory_limit: 64 << 20, ttl: Duration::from_secs(1), ..Options::default() };
        let fs = Fs::new(root, options, Arc::new(ManualClock::new()), Arc::default()).unwrap();
        let free = || fs.lanes.budget.free_bytes();
        let before = free();

        let fh = fs.opendir(ROOT).unwrap();
        let mut known = Vec::new();
        let mut take = |entry: &crate::fs::DirEntry| {
            known.extend(entry.ino);
            true
        };
        fs.readdir(fh, 0, true, &mut take).await.unwrap();
        assert_eq!(known.len(), 6_000);
        let window = fs.weight.lines.load(Ordering::Relaxed);
        assert!((1_000..6_000).contains(&window), "{window} lines");
        let held = before - free();
        assert!(fs.lanes.budget.held_bytes(Pool::Names) <= held, "what is more is pages of the listing");
        assert!(fs.lanes.budget.held_bytes(Pool::Names) >= 6_000 * 300);
        assert!((6_000 * 300..=6_000 * 1_200).contains(&held), "{held} bytes for 6,000 names");

        fs.releasedir(fh);
        assert_eq!(fs.weight.lines.load(Ordering::Relaxed), 0);
        let closed = before - free();
        assert!(closed < held, "{closed} bytes once the directory is closed");
        for ino in known {
            fs.forget(ino, 1);
        }
        let left = before - free();
        // They are remembered for a while, without inodes.
        assert!(left < closed && left <= 6_000 * 350, "{left} bytes once the kernel has forgotten them");
    }

    #[tokio::test]
    async fn however_many_names_there_are_half_of_the_memory_is_left() {
        let root = Root::Volume(Volume::new(
            "bucket",
            "",
            Arc::new(MemStore::new(Arc::new(SystemClock), Arc::default())) as Arc<dyn Store>,
        ));
        let fs = Fs::new(root, Options::default(), Arc::new(ManualClock::new()), Arc::default()).unwrap();
        let windows: Vec<_> = (0..1_000).map(|_| fs.weight.window()).collect();
        for window in &windows {
            window.set(1_000_000);
        }
        fs.weigh_names();
        let limit = fs.lanes.budget.limit_bytes();
        assert_eq!(fs.lanes.budget.free_bytes(), limit / 2);
        drop(windows);
        fs.weigh_names();
        assert_eq!(fs.lanes.budget.free_bytes(), limit);
    }
}
