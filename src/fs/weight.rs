//! What names take of the mount's memory.
//!
//! Names cannot be refused: the kernel refers to them, or a program is in the middle of a directory. So they are taken
//! out of the one budget as they come, and bytes that are kept because nobody else wanted them give way.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{Fs, lock};
use crate::base::{Grant, Pool};
use crate::tree::{Ino, Invalidation};

/// Memory of a line in the window of an open directory: a name of 40 characters, its key and its facts.
const LINE_BYTES: u64 = 250;
/// What is taken or given back at once; less than that is not accounted for.
const STEP_BYTES: u64 = 256 << 10;
/// The part of the memory that names may take before the kernel is told to forget some: it has not before the next ones come.
const NAMES_SHARE: u64 = 4;
/// The same when nobody asks for anything.
const NAMES_AT_REST_SHARE: u64 = 16;
/// What a name takes, about.
const FORGOTTEN_BYTES: u64 = 500;

/// The names' share of the budget.
#[derive(Default)]
pub(super) struct Weight {
    /// Lines in the windows of open directories.
    lines: Arc<AtomicU64>,
    held_bytes: Arc<AtomicU64>,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    grant: Option<Grant>,
    /// What the names there are now need.
    wanted_bytes: u64,
    /// Whether some of it is being waited for.
    waits: bool,
}

impl Held {
    fn add(&mut self, more: Grant) {
        let more = more.held_for(Pool::Names);
        match &mut self.grant {
            Some(grant) => grant.merge(more),
            none => *none = Some(more),
        }
    }
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
        let tree = with_holes(lock(&self.tree).weight_bytes());
        self.have_names_forgotten(tree, NAMES_SHARE, |_| true);
        let lines = self.weight.lines.load(Ordering::Relaxed) * LINE_BYTES;
        // However many there are, half of the memory is left to bytes, beside what may be staged there.
        let bytes = (tree + lines).min(self.lanes.budget.single_max_bytes() / 2);
        if bytes.abs_diff(self.weight.held_bytes.load(Ordering::Relaxed)) < STEP_BYTES {
            return;
        }
        let mut held = lock(&self.weight.held);
        held.wanted_bytes = bytes;
        let held_bytes = self.weight.held_bytes.load(Ordering::Relaxed);
        let held_now = match &mut held.grant {
            Some(grant) if bytes < held_bytes => {
                drop(grant.split(held_bytes - bytes));
                bytes
            }
            _ => match self.reader.spare(bytes.saturating_sub(held_bytes)) {
                Some(more) => {
                    held.add(more);
                    bytes
                }
                None => {
                    self.wait_for_weight(&mut held, bytes - held_bytes);
                    held_bytes
                }
            },
        };
        self.weight.held_bytes.store(held_now, Ordering::Relaxed);
    }

    /// The kernel keeps names for as long as it has memory for them, and each takes some of ours. Above their share it is told
    /// to forget those of files that it has known for longest. Says whether there may be more of them.
    fn have_names_forgotten(&self, tree_bytes: u64, share: u64, may_go: impl Fn(Ino) -> bool) -> bool {
        let surplus = tree_bytes.saturating_sub(self.lanes.budget.limit_bytes() / share);
        let count = usize::try_from(surplus / FORGOTTEN_BYTES).unwrap_or(usize::MAX).min(self.news.room());
        if count == 0 {
            return surplus >= FORGOTTEN_BYTES;
        }
        let oldest = lock(&self.tree).oldest(count, may_go);
        let is_all = oldest.is_empty();
        for (parent, name) in oldest {
            if self.news.pass(Invalidation::Entry { parent, name }).is_none() {
                break;
            }
        }
        !is_all
    }

    /// Files whose bytes the kernel may have.
    pub(super) fn files_with_bytes(&self) -> HashSet<Ino> {
        lock(&self.pages).iter().map(|(ino, _)| *ino).collect()
    }

    /// Nobody asks for anything: the kernel is told to forget more names, those of files whose bytes it has excepted. It would
    /// ask for the others anew in any case, since it believes none for longer than the TTL. Says whether there are more of
    /// them.
    pub(super) fn have_more_forgotten_at_rest(&self, with_bytes: &HashSet<Ino>) -> bool {
        // What is remembered of those that were forgotten goes next.
        let tree_bytes = with_holes(self.inodes() as u64 * FORGOTTEN_BYTES);
        self.have_names_forgotten(tree_bytes, NAMES_AT_REST_SHARE, |ino| !with_bytes.contains(&ino))
    }

    /// Where all is on its way, the names there are already have the next bytes that come free: what is on its way after
    /// that waits for them.
    fn wait_for_weight(&self, held: &mut Held, bytes: u64) {
        if std::mem::replace(&mut held.waits, true) {
            return;
        }
        let (held, held_bytes) = (Arc::clone(&self.weight.held), Arc::clone(&self.weight.held_bytes));
        let budget = self.lanes.budget.held_for(Pool::Names);
        self.reader.runtime().spawn(async move {
            let more = budget.take(bytes).await;
            let mut held = lock(&held);
            held.waits = false;
            held.add(more);
            // Some may have been forgotten meanwhile.
            let now = held_bytes.load(Ordering::Relaxed) + bytes;
            let surplus = now.saturating_sub(held.wanted_bytes);
            if let Some(grant) = &mut held.grant {
                drop(grant.split(surplus));
            }
            held_bytes.store(now - surplus, Ordering::Relaxed);
        });
    }
}

/// What names take with the holes between them: those that went were among those that stay. Of `find` over 1,000,000 names
/// there is a third more.
fn with_holes(bytes: u64) -> u64 {
    bytes + bytes / 3
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::Duration;

    use crate::base::{Clock, ManualClock, SystemClock};
    use crate::fs::{Options, Root, Volume};
    use crate::s3::{MemStore, PutRequest, Store};
    use crate::tree::ROOT;

    /// A bucket of so many names, on a mount of 64 MiB.
    pub(in crate::fs) async fn of_names(count: usize) -> (Arc<Fs>, Arc<ManualClock>) {
        let store = MemStore::new(Arc::new(SystemClock), Arc::default()).with_bucket("bucket");
        for i in 0..count {
            let key = format!("name-{i:05}");
            store.put(PutRequest { bucket: "bucket".into(), key, ..PutRequest::default() }).await.unwrap();
        }
        let root = Root::Volume(Volume::new("bucket", "", Arc::new(store) as Arc<dyn Store>));
        let options = Options { memory_limit: 64 << 20, ttl: Duration::from_secs(1), ..Options::default() };
        let clock = Arc::new(ManualClock::new());
        (Fs::new(root, options, Arc::clone(&clock) as Arc<dyn Clock>, Arc::default()).unwrap(), clock)
    }

    #[tokio::test]
    async fn names_take_memory_as_they_come_and_give_it_back() {
        let (fs, _) = of_names(6_000).await;
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
        assert!(left < closed && left <= 6_000 * 450, "{left} bytes once the kernel has forgotten them");
    }

    #[tokio::test]
    async fn of_many_names_the_kernel_is_told_to_forget_the_oldest() {
        let (fs, _) = of_names(30_000).await;
        let mut news = fs.news().unwrap();
        let fh = fs.opendir(ROOT).unwrap();
        let (mut cookie, mut inos, mut most) = (0, std::collections::HashMap::new(), 0);
        let mut told = 0;
        // As the kernel does: some at a time, and what it is told to forget it forgets.
        for round in 0.. {
            let mut left = 500;
            let mut taken = Vec::new();
            let mut take = |entry: &crate::fs::DirEntry| {
                if left == 0 {
                    return false;
                }
                left -= 1;
                taken.push((entry.cookie, entry.name.clone(), entry.ino));
                true
            };
            fs.readdir(fh, cookie, true, &mut take).await.unwrap();
            if taken.is_empty() {
                break;
            }
            cookie = taken.last().map_or(cookie, |(cookie, ..)| *cookie);
            inos.extend(taken.into_iter().map(|(_, name, ino)| (name, ino)));
            most = most.max(fs.tree().len());
            while let Ok(crate::fs::News { what: Invalidation::Entry { name, .. }, .. }) = news.try_recv() {
                if told == 0 {
                    assert_eq!(name.as_str(), "name-00000", "the oldest, in round {round}");
                }
                told += 1;
                fs.forget(inos[&name].unwrap(), 1);
            }
        }
        assert_eq!(inos.len(), 30_000);
        assert!(told > 5_000 && most < 24_000, "{told} were forgotten, and there were {most} at most");
    }

    /// Uploads hold their memory for as long as the network takes.
    #[tokio::test]
    async fn names_find_memory_beside_uploads() {
        let (fs, _) = of_names(6_000).await;
        let uploads: Vec<Grant> = std::iter::from_fn(|| fs.lanes.budget.try_take(1 << 20)).collect();
        assert!(uploads.len() >= 20, "{} MiB", uploads.len());
        let fh = fs.opendir(ROOT).unwrap();
        fs.readdir(fh, 0, true, &mut |_| true).await.unwrap();
        let held = fs.lanes.budget.held_bytes(Pool::Names);
        assert!(held >= 6_000 * 600, "{held} bytes for 6,000 names");
        fs.releasedir(fh);
    }

    #[tokio::test]
    async fn names_that_came_while_all_was_taken_have_the_next_bytes() {
        let root = Root::Volume(Volume::new(
            "bucket",
            "",
            Arc::new(MemStore::new(Arc::new(SystemClock), Arc::default())) as Arc<dyn Store>,
        ));
        let fs = Fs::new(root, Options::default(), Arc::new(ManualClock::new()), Arc::default()).unwrap();
        let budget = &fs.lanes.budget.held_for(Pool::Reads);
        let limit = budget.limit_bytes();
        let mut uploads = budget.try_take(limit).unwrap();
        let window = fs.weight.window();
        window.set(40_000);
        fs.weigh_names();
        let held = || fs.weight.held_bytes.load(Ordering::Relaxed);
        assert_eq!(held(), 0);
        tokio::task::yield_now().await;
        // Of what is waited for, what is not needed any more is given back.
        window.set(20_000);
        fs.weigh_names();
        drop(uploads.split(limit / 4));
        let next = budget.take(limit / 8).await;
        tokio::task::yield_now().await;
        let needed = 20_000 * LINE_BYTES..20_000 * LINE_BYTES + STEP_BYTES;
        assert!(needed.contains(&held()), "{} bytes are held", held());
        drop((uploads, next));
        assert!(needed.contains(&(limit - budget.free_bytes())), "{} bytes are free", budget.free_bytes());
        drop(window);
        fs.weigh_names();
        assert_eq!(budget.free_bytes(), limit);
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
