//! What a mount lets go of when nobody asks it for anything.
//!
//! Memory is used for as long as it is of use: bytes that were read stay until others are wanted, names until the kernel has
//! forgotten them, what a listing said until something else is listed. So a mount that nobody uses any more would keep what
//! its busiest minute took. It is looked at now and then, and gives back
//! - bytes that were read, and buffers of parts: when no bytes came or went since the look before;
//! - what was remembered of names and is not believed any more, and the names of files above a small share of the memory:
//!   when nothing asked for a name since then;
//! - to the kernel, what the allocator keeps of both, and whenever the process has more than its limit.

use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::{Fs, lock};
use crate::base::allocator;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What has not changed for so many looks rests. What a program reads again after that time, the kernel mostly has.
const LOOKS: u32 = 5;
/// How long the kernel has to forget some names before it is told of more.
const FORGETTING: Duration = Duration::from_millis(10);
/// How often it may have forgotten none, before it is told of no more.
const FORGETS_NONE_MAX: u32 = 300;

/// Counts whatever is asked of names.
#[derive(Default)]
pub(super) struct Asked(AtomicU64);

impl Asked {
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Notices when a number has ceased to change.
#[derive(Debug, Default)]
struct Rest {
    last: Option<u64>,
    /// Looks since it changed.
    looks: u32,
}

impl Rest {
    /// Whether the number has not changed for some looks, and this is the first one that finds it so.
    fn begins(&mut self, number: u64) -> bool {
        let is_same = self.last.replace(number) == Some(number);
        self.looks = if is_same { self.looks.saturating_add(1) } else { 0 };
        self.looks == LOOKS
    }

    fn is_noticed(&self) -> bool {
        self.looks >= LOOKS
    }
}

/// Looks at the mount as long as there is one.
pub(super) async fn watch(fs: Weak<Fs>) {
    let (mut bytes, mut names) = (Rest::default(), Rest::default());
    // When some of what is remembered grows too old.
    let mut expires: Option<Instant> = None;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(asked) = fs.upgrade().map(|fs| fs.asked.value()) else { return };
        let rests = names.begins(asked);
        if rests {
            have_names_forgotten(&fs, asked).await;
        }
        let Some(fs) = fs.upgrade() else { return };
        let mut gives_back = false;
        if bytes.begins(fs.reader.reads() + fs.lanes.budget.used_buffers()) {
            fs.reader.drop_all();
            fs.lanes.budget.let_go();
            gives_back = true;
        }
        if rests || names.is_noticed() && expires.is_some_and(|at| at <= fs.clock.now()) {
            expires = fs.let_go_of_expired();
            gives_back = true;
        }
        if gives_back || allocator::resident_bytes().is_some_and(|bytes| bytes > fs.options.memory_limit) {
            // It may take a while, and holds locks of the allocator's alone.
            let _ = tokio::task::spawn_blocking(allocator::give_back).await;
        }
    }
}

/// Has the kernel told of names to forget, until few are left or somebody asks for more than was asked for.
async fn have_names_forgotten(fs: &Weak<Fs>, asked: u64) {
    let with_bytes = fs.upgrade().map(|fs| fs.files_with_bytes()).unwrap_or_default();
    let (mut least, mut forgets_none) = (usize::MAX, 0);
    while forgets_none < FORGETS_NONE_MAX {
        {
            // Nobody is kept from ending the mount meanwhile.
            let Some(fs) = fs.upgrade().filter(|fs| fs.asked.value() == asked) else { return };
            if !fs.have_more_forgotten_at_rest(&with_bytes) {
                return;
            }
            let inodes = fs.inodes();
            forgets_none = if inodes < least { 0 } else { forgets_none + 1 };
            least = least.min(inodes);
        }
        tokio::time::sleep(FORGETTING).await;
    }
}

impl Fs {
    /// Says when there is more to let go of.
    fn let_go_of_expired(&self) -> Option<Instant> {
        let now = self.clock.now();
        lock(&self.siblings).let_go_of_expired(now);
        let next = lock(&self.tree).let_go_of_expired(now);
        self.weigh_names();
        next
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::sync::{Arc, Mutex};

    use super::super::weight::tests::of_names;
    use super::*;
    use crate::base::Pool;
    use crate::fs::{News, OpenFlags};
    use crate::tree::{Ino, Invalidation, ROOT};

    const READ: OpenFlags =
        OpenFlags { write: false, truncate: false, append: false, exclusive: false, direct: false };

    /// What the kernel knows once it has listed the root.
    async fn listed(fs: &Arc<Fs>) -> HashMap<String, Ino> {
        let mut known = HashMap::new();
        let fh = fs.opendir(ROOT).unwrap();
        let mut take = |entry: &crate::fs::DirEntry| {
            known.extend(entry.ino.map(|ino| (entry.name.as_str().to_owned(), ino)));
            true
        };
        fs.readdir(fh, 0, true, &mut take).await.unwrap();
        fs.releasedir(fh);
        known
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_are_believed_no_longer_go_when_nobody_asks_for_any() {
        let (fs, clock) = of_names(6_000).await;
        for ino in listed(&fs).await.into_values() {
            fs.forget(ino, 1);
        }
        let held = || fs.lanes.budget.held_bytes(Pool::Names);
        assert!(held() >= 6_000 * 300, "{} bytes", held());
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(4)).await;
            fs.getattr(ROOT).await.unwrap();
        }
        assert!(held() >= 6_000 * 300, "somebody asks");
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(held() >= 6_000 * 300, "they are believed");
        clock.advance(Duration::from_secs(2));
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(held(), 0);
        assert_eq!(fs.inodes(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_kernel_forgets_names_when_nobody_asks_for_any_but_of_files_whose_bytes_it_has() {
        let (fs, clock) = of_names(6_000).await;
        let mut news = fs.news().unwrap();
        let known = Arc::new(Mutex::new(listed(&fs).await));
        let read: HashSet<String> = (0..100).map(|n| format!("name-{n:05}")).collect();
        for name in &read {
            let ino = lock(&known)[name];
            let opened = fs.open(ino, READ).await.unwrap();
            fs.release(opened.fh);
        }
        clock.advance(Duration::from_secs(2));
        let (kernel, names) = (Arc::clone(&fs), Arc::clone(&known));
        let kernel = tokio::spawn(async move {
            while let Some(News { what, .. }) = news.recv().await {
                let Invalidation::Entry { name, .. } = what else { continue };
                let ino = lock(&names).remove(name.as_str()).unwrap();
                kernel.forget(ino, 1);
            }
        });
        tokio::time::sleep(Duration::from_secs(20)).await;
        kernel.abort();
        let left = lock(&known);
        assert!((2_000..4_000).contains(&left.len()), "{} names", left.len());
        assert!(read.iter().all(|name| left.contains_key(name)), "what was read stays");
        assert!(fs.lanes.budget.held_bytes(Pool::Names) <= fs.lanes.budget.limit_bytes() / 14);
    }

    #[tokio::test(start_paused = true)]
    async fn buffers_of_parts_go_when_nobody_writes_for_a_while() {
        let (fs, _) = of_names(0).await;
        let budget = &fs.lanes.budget;
        for _ in 0..5 {
            drop(budget.buffer(2 << 20).await);
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert_eq!(budget.held_bytes(Pool::Idle), 2 << 20, "the next one wants it");
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(budget.held_bytes(Pool::Idle), 0);
    }

    #[test]
    fn rest_is_noticed_once() {
        let mut rest = Rest::default();
        let mut after = |number| (0..20).find(|_| rest.begins(number));
        assert_eq!(after(1), Some(5));
        assert_eq!(after(1), None);
        assert_eq!(after(2), Some(5), "and again when it has changed");
    }
}
