//! Files that are opened in the order of their keys: which comes next, and what a listing said of it. Pure.
//!
//! Owns: pages of listings, for as long as the metadata TTL lets them be believed, and who is reading through them.
//! Does not own: names and inodes (`tree`). A page is by key, because a walk goes on in the next directory.
//!
//! A local change of a key takes it out of every page, and out of those that were asked for before the change and
//! arrive after it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::ETag;
use crate::s3::ListedObject;
use crate::tree::VolumeId;

/// Pages kept; a page is one request's answer, up to 1,000 keys of some 150 bytes.
const PAGES_MAX: usize = 32;
/// Readers in order that are told apart.
const WALKERS: usize = 4;
/// An open this many keys further than the one before is still in order: a program may pass some files over.
const SKIP_MAX: usize = 4;
/// Opens in order before anything is fetched ahead.
const SHOWN_AFTER: u32 = 2;
/// Files fetched ahead of a reader in order: at 20 ms a round trip this is 3,000 files a second.
const FILES_AHEAD_MAX: usize = 64;
/// Changes of keys that are remembered for pages on their way.
const CHANGES_MAX: usize = 4096;

/// What a listing said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) etag: ETag,
}

/// Number of the latest local change when a listing was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(u64);

#[derive(Debug)]
pub(super) struct Siblings {
    ttl: Duration,
    /// Newest last.
    pages: VecDeque<Page>,
    /// Most recent first.
    walkers: Vec<Walker>,
    changes: VecDeque<(u64, VolumeId, String)>,
    last_change: u64,
    /// Changes up to this number are no longer in `changes`.
    forgotten: u64,
}

#[derive(Debug)]
struct Page {
    volume: VolumeId,
    /// In the order of their keys.
    objects: Vec<Listed>,
    at: Instant,
}

/// Somebody who opens files in order.
#[derive(Clone, Debug)]
struct Walker {
    volume: VolumeId,
    last: String,
    in_order: u32,
    /// Whether it has gone on from one directory into the next.
    crosses: bool,
    /// Everything up to this key was fetched ahead.
    fetched_to: Option<String>,
    /// When a listing of what comes next was last asked for.
    listed_at: Option<Instant>,
}

/// What to do ahead of a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    pub(super) fetch: Vec<Listed>,
    /// Ask for the keys after this one, because what is known of them ends or grows old.
    pub(super) list_after: Option<String>,
}

impl Siblings {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            pages: VecDeque::new(),
            walkers: Vec::new(),
            changes: VecDeque::new(),
            last_change: 0,
            forgotten: 0,
        }
    }

    /// Before a listing is asked for.
    pub(super) fn asking(&self) -> Moment {
        Moment(self.last_change)
    }

    /// Takes objects of a listing that was asked for at `moment` and answered now. Their order is checked: a server
    /// that lists out of order is of no use here.
    pub(super) fn learn<'a>(
        &mut self,
        volume: VolumeId,
        objects: impl Iterator<Item = &'a ListedObject>,
        moment: Moment,
        now: Instant,
    ) {
        if self.ttl.is_zero() || moment.0 < self.forgotten {
            return;
        }
        let changed =
            |key: &str| self.changes.iter().any(|(n, v, k)| *n > moment.0 && *v == volume && k == key);
        let objects: Vec<Listed> = objects
            .filter(|object| !object.key.ends_with('/') && !changed(&object.key))
            .filter(|object| {
                !crate::s3::is_archived(object.storage_class.as_deref(), object.restored == Some(true))
            })
            .map(|o| Listed { key: o.key.clone(), size: o.size, etag: o.etag.clone() })
            .collect();
        if objects.is_empty() || !objects.is_sorted_by(|a, b| a.key < b.key) {
            return;
        }
        if self.pages.len() >= PAGES_MAX {
            self.pages.pop_front();
        }
        self.pages.push_back(Page { volume, objects, at: now });
    }

    /// What a listing said of a key less than the TTL ago.
    pub(super) fn listed(&self, volume: VolumeId, key: &str, now: Instant) -> Option<&Listed> {
        self.fresh(volume, now).find_map(|page| {
            let at = page.objects.binary_search_by(|object| object.key.as_str().cmp(key)).ok()?;
            page.objects.get(at)
        })
    }

    /// The key changed here.
    pub(super) fn changed(&mut self, volume: VolumeId, key: &str) {
        self.last_change += 1;
        if self.changes.len() >= CHANGES_MAX {
            self.forgotten = self.changes.pop_front().map_or(self.forgotten, |(number, ..)| number);
        }
        self.changes.push_back((self.last_change, volume, key.to_owned()));
        for page in self.pages.iter_mut().filter(|page| page.volume == volume) {
            if let Ok(at) = page.objects.binary_search_by(|object| object.key.as_str().cmp(key)) {
                page.objects.remove(at);
            }
        }
    }

    /// Lets go of what is believed no longer.
    pub(super) fn let_go_of_expired(&mut self, now: Instant) {
        let ttl = self.ttl;
        self.pages.retain(|page| now < page.at + ttl);
    }

    /// Many keys changed here at once.
    pub(super) fn changed_all(&mut self) {
        self.last_change += 1;
        self.forgotten = self.last_change;
        self.changes.clear();
        self.pages.clear();
        self.walkers.clear();
    }

    /// A file was opened for reading. Says what to fetch ahead of whoever reads through files in order.
    pub(super) fn opened(&mut self, volume: VolumeId, key: &str, now: Instant) -> Ahead {
        let mut walker = self.take_walker(volume, key, now);
        let mut ahead = Ahead::default();
        if walker.in_order >= SHOWN_AFTER {
            ahead = self.ahead_of(&mut walker, now);
        }
        self.walkers.insert(0, walker);
        self.walkers.truncate(WALKERS);
        ahead
    }

    fn take_walker(&mut self, volume: VolumeId, key: &str, now: Instant) -> Walker {
        let follows = |walker: &Walker| {
            walker.volume == volume
                && walker.last.as_str() < key
                && self.after(volume, &walker.last, now).take(SKIP_MAX).any(|next| next.0.key == key)
        };
        let same = |walker: &Walker| walker.volume == volume && walker.last == key;
        match self.walkers.iter().position(|walker| same(walker) || follows(walker)) {
            Some(at) => {
                let mut walker = self.walkers.remove(at);
                if walker.last != key {
                    walker.in_order += 1;
                    walker.crosses |= dir_of(&walker.last) != dir_of(key);
                    walker.last = key.to_owned();
                }
                walker
            }
            None => Walker {
                volume,
                last: key.to_owned(),
                in_order: 0,
                crosses: false,
                fetched_to: None,
                listed_at: None,
            },
        }
    }

    fn ahead_of(&self, walker: &mut Walker, now: Instant) -> Ahead {
        let files = (walker.in_order as usize * 4).min(FILES_AHEAD_MAX);
        let mut fetch = Vec::new();
        let mut known = 0;
        let mut grows_old = false;
        for (next, at) in self.after(walker.volume, &walker.last, now).take(files) {
            if !walker.crosses && dir_of(&next.key) != dir_of(&walker.last) {
                // What this reader does in the next directory is not known yet.
                known = files;
                break;
            }
            known += 1;
            grows_old |= now.saturating_duration_since(at) > self.ttl / 2;
            if walker.fetched_to.as_deref().is_none_or(|to| next.key.as_str() > to) {
                fetch.push(next.clone());
            }
        }
        // In batches, so that the search for what comes next is not made for every file.
        if fetch.len() < files / 4 && known == files {
            fetch.clear();
        }
        if let Some(last) = fetch.last() {
            walker.fetched_to = Some(last.key.clone());
        }
        // At most twice in a TTL: at the end of a bucket there is nothing more to know.
        let lately = walker.listed_at.is_some_and(|at| now.saturating_duration_since(at) <= self.ttl / 2);
        let lists = (known < files || grows_old) && !lately;
        if lists {
            walker.listed_at = Some(now);
        }
        Ahead { fetch, list_after: lists.then(|| walker.last.clone()) }
    }

    /// Keys after this one, as fresh pages know them, in order, each with the time of its page.
    fn after<'a>(
        &'a self,
        volume: VolumeId,
        key: &str,
        now: Instant,
    ) -> impl Iterator<Item = (&'a Listed, Instant)> {
        let mut heads: Vec<(std::slice::Iter<'a, Listed>, Instant)> = self
            .fresh(volume, now)
            .map(|page| {
                let from = page.objects.partition_point(|object| object.key.as_str() <= key);
                (page.objects[from..].iter(), page.at)
            })
            .collect();
        let mut last: Option<&'a str> = None;
        std::iter::from_fn(move || {
            loop {
                // Newest first, so that of two pages with the same key the newer one is heard.
                let (next, head) = heads
                    .iter_mut()
                    .filter_map(|head| Some((head.0.as_slice().first()?, head)))
                    .min_by(|a, b| a.0.key.cmp(&b.0.key))?;
                head.0.next();
                if last.is_none_or(|last| next.key.as_str() > last) {
                    last = Some(&next.key);
                    return Some((next, head.1));
                }
            }
        })
    }

    /// Pages that may be believed, newest first.
    fn fresh(&self, volume: VolumeId, now: Instant) -> impl Iterator<Item = &Page> {
        let ttl = self.ttl;
        self.pages
            .iter()
            .rev()
            .filter(move |page| page.volume == volume && now.saturating_duration_since(page.at) < ttl)
    }
}

fn dir_of(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    const TTL: Duration = Duration::from_secs(1);
    const V: VolumeId = VolumeId(0);

    fn now() -> Instant {
        crate::base::Clock::now(&crate::base::SystemClock)
    }

    fn object(key: &str) -> ListedObject {
        ListedObject {
            key: key.to_owned(),
            size: 10,
            etag: ETag::new(key),
            last_modified: SystemTime::UNIX_EPOCH,
            storage_class: None,
            restored: None,
        }
    }

    fn learn(siblings: &mut Siblings, keys: &[String], now: Instant) {
        let objects: Vec<_> = keys.iter().map(|key| object(key)).collect();
        let moment = siblings.asking();
        siblings.learn(V, objects.iter(), moment, now);
    }

    fn names(dir: &str, n: usize) -> Vec<String> {
        (0..n).map(|i| format!("{dir}/f{i:03}")).collect()
    }

    #[test]
    fn who_opens_files_in_order_has_the_next_ones_fetched_once() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let keys = names("d", 200);
        learn(&mut siblings, &keys, now);
        let mut fetched = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            let ahead = siblings.opened(V, key, now);
            assert!(i >= 2 || ahead.fetch.is_empty(), "two opens in order show it");
            fetched.extend(ahead.fetch.into_iter().map(|listed| listed.key));
            assert!(i < 4 || i == 199 || fetched.last().unwrap() > key, "{key} was not fetched ahead");
        }
        assert_eq!(fetched, keys[3..], "each once");
    }

    #[test]
    fn who_opens_files_here_and_there_has_nothing_fetched() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let keys = names("d", 200);
        learn(&mut siblings, &keys, now);
        for i in 0..100 {
            assert_eq!(siblings.opened(V, &keys[(i * 77) % 200], now), Ahead::default());
        }
    }

    #[test]
    fn two_walks_side_by_side_are_told_apart() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let (a, b) = (names("a", 50), names("b", 50));
        learn(&mut siblings, &a, now);
        learn(&mut siblings, &b, now);
        let mut fetched = 0;
        for (a, b) in a.iter().zip(&b) {
            fetched += siblings.opened(V, a, now).fetch.len() + siblings.opened(V, b, now).fetch.len();
        }
        assert!(fetched >= 90, "{fetched}");
    }

    #[test]
    fn a_walk_is_followed_into_the_next_directory_once_it_has_gone_there() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let (a, b, c) = (names("a", 10), names("b", 10), names("c", 10));
        for keys in [&a, &b, &c] {
            learn(&mut siblings, keys, now);
        }
        let mut fetched = Vec::new();
        for key in a.iter().chain(&b[..1]) {
            fetched.extend(siblings.opened(V, key, now).fetch.into_iter().map(|l| l.key));
        }
        assert!(fetched.iter().any(|key| key == "b/f009") && !fetched.contains(&"b/f000".to_owned()));
        assert!(fetched.iter().any(|key| key.starts_with("c/")), "from now on across directories");
    }

    #[test]
    fn what_is_known_grows_old_and_is_asked_for_again_once() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let keys = names("d", 500);
        learn(&mut siblings, &keys, now);
        for key in &keys[..20] {
            assert_eq!(siblings.opened(V, key, now).list_after, None);
        }
        let later = now + TTL * 3 / 4;
        assert_eq!(siblings.opened(V, &keys[20], later).list_after.as_deref(), Some("d/f020"));
        assert_eq!(siblings.opened(V, &keys[21], later).list_after, None, "it is on its way");
        learn(&mut siblings, &keys[21..], later);
        assert!(siblings.listed(V, "d/f100", now + TTL * 3 / 2).is_some());
        assert!(siblings.listed(V, "d/f000", now + TTL * 3 / 2).is_none(), "too old");
        assert_eq!(siblings.opened(V, &keys[22], later).list_after, None);
    }

    #[test]
    fn a_change_here_is_not_undone_by_a_listing_that_was_asked_for_before() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let keys = names("d", 10);
        let asked = siblings.asking();
        siblings.changed(V, "d/f003");
        let objects: Vec<_> = keys.iter().map(|key| object(key)).collect();
        siblings.learn(V, objects.iter(), asked, now);
        assert!(siblings.listed(V, "d/f003", now).is_none());
        assert!(siblings.listed(V, "d/f004", now).is_some());
        siblings.changed(V, "d/f004");
        assert!(siblings.listed(V, "d/f004", now).is_none());
        let asked = siblings.asking();
        for i in 0..=CHANGES_MAX {
            siblings.changed(V, &format!("x{i}"));
        }
        siblings.learn(V, objects.iter(), asked, now);
        assert!(siblings.listed(V, "d/f003", now).is_none(), "too many changes to tell");
    }

    #[test]
    fn a_listing_out_of_order_is_of_no_use() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        learn(&mut siblings, &["a".into(), "a/1".into(), "a-x".into()], now);
        assert!(siblings.listed(V, "a", now).is_none());
    }
}
