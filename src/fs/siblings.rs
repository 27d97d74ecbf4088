//! Files that are opened in an order: which comes next, and what a listing said of it. Pure.
//!
//! There are two orders. Most programs go by names, which is the order of keys. GNU `cp -r` goes through each directory by
//! inode numbers, because on a disk that is where files lie; here those follow from names, so that order is known too.
//!
//! Owns: pages of listings, for as long as the metadata TTL lets them be believed, and who is reading through them.
//! Does not own: names and inodes (`tree`). A page is by key, because a walk goes on in the next directory.
//!
//! A local change of a key takes it out of every page, and out of those that were asked for before the change and
//! arrive after it.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::ETag;
use crate::s3::ListedObject;
use crate::tree::keys::DirKey;
use crate::tree::numbers::{Way, steps};
use crate::tree::{Ino, VolumeId};

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
    /// Their places in the order of numbers, and where in `objects` each is; made when somebody goes by that.
    by_number: OnceCell<Vec<(Steps, usize)>>,
    at: Instant,
    /// Every key from the first to the last is in it, those of subdirectories too.
    is_flat: bool,
}

/// A place in the order of numbers.
type Steps = Box<[u64]>;

/// The directory that stands for a volume, which its numbers follow from.
#[derive(Clone, Debug)]
pub(super) struct Top {
    pub(super) ino: Ino,
    pub(super) dir: DirKey,
}

impl Page {
    fn by_number(&self, top: &Top) -> &[(Steps, usize)] {
        self.by_number.get_or_init(|| {
            let places = self.objects.iter().enumerate();
            let mut places: Vec<_> = places
                .filter_map(|(at, object)| Some((steps(top.ino, &top.dir, &object.key)?, at)))
                .collect();
            places.sort_unstable();
            places
        })
    }
}

/// Where a key is in one of the orders.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place<'a> {
    Key(Cow<'a, str>),
    Steps(Cow<'a, [u64]>),
}

impl<'a> Place<'a> {
    fn of(key: &'a str, way: Way, top: &Top) -> Option<Self> {
        Some(match way {
            Way::Keys => Self::Key(key.into()),
            Way::Numbers => Self::Steps(Cow::Owned(steps(top.ino, &top.dir, key)?.into_vec())),
        })
    }
}

/// What a reader comes to next.
struct Next<'a> {
    place: Place<'a>,
    object: &'a Listed,
    /// When what is known of it was asked for.
    at: Instant,
}

/// The rest of a page, in one of the orders.
struct Rest<'a> {
    page: &'a Page,
    way: Way,
    from: usize,
}

impl<'a> Rest<'a> {
    fn after(page: &'a Page, way: Way, place: &Place<'_>, top: &Top) -> Self {
        let from = match place {
            Place::Key(key) => page.objects.partition_point(|object| *object.key <= **key),
            Place::Steps(steps) => page.by_number(top).partition_point(|(at, _)| **at <= **steps),
        };
        Self { page, way, from }
    }

    fn first(&self) -> Option<Next<'a>> {
        let page = self.page;
        let (place, object) = match self.way {
            Way::Keys => {
                let object = page.objects.get(self.from)?;
                (Place::Key(Cow::Borrowed(&*object.key)), object)
            }
            Way::Numbers => {
                let (steps, at) = page.by_number.get()?.get(self.from)?;
                (Place::Steps(Cow::Borrowed(&**steps)), page.objects.get(*at)?)
            }
        };
        Some(Next { place, object, at: page.at })
    }
}

/// Somebody who opens files in order.
#[derive(Clone, Debug)]
struct Walker {
    volume: VolumeId,
    last: String,
    way: Way,
    in_order: u32,
    /// Whether it has gone on from one directory into the next.
    crosses: bool,
    /// Everything up to this key, in its order, was fetched ahead.
    fetched_to: Option<String>,
    /// When a listing of what comes next was last asked for.
    listed_at: Option<Instant>,
}

/// What to do ahead of a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    pub(super) fetch: Vec<Listed>,
    /// To be listed, because what is known of it ends or grows old.
    pub(super) list: Option<Range>,
}

/// Keys that a reader comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// Those after this one.
    After(String),
    /// All of a directory, by its prefix.
    Directory(String),
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

    /// Takes objects of a listing that was asked for at `moment`, which is `now`. Their order is checked: a server that
    /// lists out of order is of no use here. `is_flat` says that the listing was not grouped.
    pub(super) fn learn<'a>(
        &mut self,
        volume: VolumeId,
        objects: impl Iterator<Item = &'a ListedObject>,
        is_flat: bool,
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
        let (Some(first), Some(last)) = (objects.first(), objects.last()) else { return };
        let has_both = |page: &Page| {
            page.objects.first().is_some_and(|object| object.key <= first.key)
                && page.objects.last().is_some_and(|object| object.key >= last.key)
        };
        // A directory that was listed ahead with others is in the page that it came in.
        let is_told = self.fresh(volume, now).any(|page| page.is_flat && page.at >= now && has_both(page));
        if is_told || !objects.is_sorted_by(|a, b| a.key < b.key) {
            return;
        }
        if self.pages.len() >= PAGES_MAX {
            self.pages.pop_front();
        }
        self.pages.push_back(Page { volume, objects, by_number: OnceCell::new(), at: now, is_flat });
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
                page.by_number.take();
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
    pub(super) fn opened(&mut self, volume: VolumeId, key: &str, top: &Top, now: Instant) -> Ahead {
        let mut walker = self.take_walker(volume, key, top, now);
        let mut ahead = Ahead::default();
        if walker.in_order >= SHOWN_AFTER {
            ahead = self.ahead_of(&mut walker, top, now);
        }
        self.walkers.insert(0, walker);
        self.walkers.truncate(WALKERS);
        ahead
    }

    fn take_walker(&mut self, volume: VolumeId, key: &str, top: &Top, now: Instant) -> Walker {
        let found = self.walkers.iter().enumerate().find_map(|(at, walker)| {
            let is_here = walker.volume == volume;
            if is_here && walker.last == key {
                return Some((at, walker.way));
            }
            let ways = match (walker.way, walker.in_order < SHOWN_AFTER) {
                (way, false) => [Some(way), None],
                (Way::Keys, true) => [Some(Way::Keys), Some(Way::Numbers)],
                (Way::Numbers, true) => [Some(Way::Numbers), Some(Way::Keys)],
            };
            let leads = |way: &Way| {
                self.after(walker, *way, top, now).take(SKIP_MAX).any(|next| next.object.key == key)
            };
            Some((at, ways.into_iter().flatten().filter(|_| is_here).find(leads)?))
        });
        let Some((at, way)) = found else {
            return Walker {
                volume,
                last: key.to_owned(),
                way: Way::Keys,
                in_order: 0,
                crosses: false,
                fetched_to: None,
                listed_at: None,
            };
        };
        let mut walker = self.walkers.remove(at);
        if walker.last != key {
            walker.in_order = if walker.way == way { walker.in_order + 1 } else { 1 };
            walker.way = way;
            walker.crosses |= dir_of(&walker.last) != dir_of(key);
            walker.last = key.to_owned();
        }
        walker
    }

    fn ahead_of(&self, walker: &mut Walker, top: &Top, now: Instant) -> Ahead {
        let files = (walker.in_order as usize * 4).min(FILES_AHEAD_MAX);
        let mut fetch = Vec::new();
        let mut known = 0;
        let (mut grows_old, mut leaves) = (false, false);
        let fetched_to = walker.fetched_to.as_deref().and_then(|to| Place::of(to, walker.way, top));
        for Next { place, object: next, at } in self.after(walker, walker.way, top, now).take(files) {
            leaves |= dir_of(&next.key) != dir_of(&walker.last);
            if !walker.crosses && leaves {
                // What this reader does in the next directory is not known yet.
                known = files;
                break;
            }
            known += 1;
            // By numbers the next directory is anywhere in the order of keys; whoever enters it lists it.
            let counts = walker.way == Way::Keys || !leaves;
            grows_old |= counts && now.saturating_duration_since(at) > self.ttl / 2;
            if fetched_to.as_ref().is_none_or(|to| place > *to) {
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
        let lists = (grows_old || (known < files && walker.way == Way::Keys)) && !lately;
        if lists {
            walker.listed_at = Some(now);
        }
        let range = || match walker.way {
            Way::Keys => Range::After(walker.last.clone()),
            Way::Numbers => Range::Directory(dir_of(&walker.last).to_owned()),
        };
        Ahead { fetch, list: lists.then(range) }
    }

    /// What a reader comes to if it goes this way, as far as fresh pages know it.
    fn after<'a>(
        &'a self,
        walker: &Walker,
        way: Way,
        top: &Top,
        now: Instant,
    ) -> impl Iterator<Item = Next<'a>> + use<'a> {
        let place = Place::of(&walker.last, way, top);
        let rest = |place: &Place<'_>| {
            self.fresh(walker.volume, now).map(|page| Rest::after(page, way, place, top)).collect()
        };
        let mut pages: Vec<Rest<'a>> = place.as_ref().map(rest).unwrap_or_default();
        let mut last: Option<Place<'a>> = None;
        std::iter::from_fn(move || {
            loop {
                // Newest first, so that of two pages with the same key the newer one is heard.
                let firsts = pages.iter_mut().filter_map(|rest| Some((rest.first()?, rest)));
                let (next, rest) = firsts.min_by(|a, b| a.0.place.cmp(&b.0.place))?;
                rest.from += 1;
                if last.as_ref().is_none_or(|last| next.place > *last) {
                    last = Some(next.place.clone());
                    return Some(next);
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

/// The prefix of the directory that a key is in.
fn dir_of(key: &str) -> &str {
    &key[..key.rfind('/').map_or(0, |slash| slash + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ROOT;
    use std::time::SystemTime;

    const TTL: Duration = Duration::from_secs(1);
    const V: VolumeId = VolumeId(0);

    fn now() -> Instant {
        crate::base::Clock::now(&crate::base::SystemClock)
    }

    fn top() -> Top {
        Top { ino: ROOT, dir: DirKey::root("") }
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
        siblings.learn(V, objects.iter(), false, moment, now);
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
            let ahead = siblings.opened(V, key, &top(), now);
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
            assert_eq!(siblings.opened(V, &keys[(i * 77) % 200], &top(), now), Ahead::default());
        }
    }

    /// Keys as GNU `cp -r` comes to them.
    fn by_number(keys: &[String]) -> Vec<String> {
        let mut keys = keys.to_vec();
        keys.sort_by_key(|key| steps(ROOT, &DirKey::root(""), key).unwrap());
        keys
    }

    #[test]
    fn who_goes_by_inode_numbers_has_the_next_ones_fetched_once_too() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let keys: Vec<String> = ["d", "e", "d/sub"].iter().flat_map(|dir| names(dir, 60)).collect();
        let mut sorted = keys.clone();
        sorted.sort();
        learn(&mut siblings, &sorted, now);
        let mut fetched = Vec::new();
        let opened = by_number(&keys);
        let mut missed = 0;
        for (i, key) in opened.iter().enumerate() {
            let ahead = siblings.opened(V, key, &top(), now);
            assert!(i >= 2 || ahead.fetch.is_empty(), "two opens in order show it");
            fetched.extend(ahead.fetch.into_iter().map(|listed| listed.key));
            missed += usize::from(opened.get(i + 1).is_some_and(|next| !fetched.contains(next)));
        }
        assert!(missed <= 5, "{missed} were not fetched ahead");
        let mut once = fetched.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), fetched.len(), "each once");
    }

    #[test]
    fn a_large_directory_that_is_read_by_number_is_listed_again_before_what_is_known_is_old() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let keys = names("d", 500);
        learn(&mut siblings, &keys, now);
        let opened = by_number(&keys);
        for key in &opened[..20] {
            assert_eq!(siblings.opened(V, key, &top(), now).list, None);
        }
        let later = now + TTL * 3 / 4;
        let all = Some(Range::Directory("d/".to_owned()));
        assert_eq!(siblings.opened(V, &opened[20], &top(), later).list, all);
        assert_eq!(siblings.opened(V, &opened[21], &top(), later).list, None, "it is on its way");
    }

    #[test]
    fn a_page_that_another_one_has_whole_is_not_kept_twice() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let objects: Vec<_> = ["a/1", "a/2", "b/1"].iter().map(|key| object(key)).collect();
        let moment = siblings.asking();
        siblings.learn(V, objects.iter(), true, moment, now);
        siblings.learn(V, objects[..2].iter(), false, moment, now);
        assert_eq!(siblings.pages.len(), 1);
        siblings.learn(V, objects[..2].iter(), false, moment, now + TTL / 2);
        assert_eq!(siblings.pages.len(), 2, "it is newer");
    }

    #[test]
    fn two_walks_side_by_side_are_told_apart() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let (a, b) = (names("a", 50), names("b", 50));
        learn(&mut siblings, &a, now);
        learn(&mut siblings, &b, now);
        let mut fetched = 0;
        for (a, b) in a.iter().zip(&b) {
            fetched += siblings.opened(V, a, &top(), now).fetch.len()
                + siblings.opened(V, b, &top(), now).fetch.len();
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
            fetched.extend(siblings.opened(V, key, &top(), now).fetch.into_iter().map(|l| l.key));
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
            assert_eq!(siblings.opened(V, key, &top(), now).list, None);
        }
        let later = now + TTL * 3 / 4;
        let from_here = Some(Range::After("d/f020".to_owned()));
        assert_eq!(siblings.opened(V, &keys[20], &top(), later).list, from_here);
        assert_eq!(siblings.opened(V, &keys[21], &top(), later).list, None, "it is on its way");
        learn(&mut siblings, &keys[21..], later);
        assert!(siblings.listed(V, "d/f100", now + TTL * 3 / 2).is_some());
        assert!(siblings.listed(V, "d/f000", now + TTL * 3 / 2).is_none(), "too old");
        assert_eq!(siblings.opened(V, &keys[22], &top(), later).list, None);
    }

    #[test]
    fn a_change_here_is_not_undone_by_a_listing_that_was_asked_for_before() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        let keys = names("d", 10);
        let asked = siblings.asking();
        siblings.changed(V, "d/f003");
        let objects: Vec<_> = keys.iter().map(|key| object(key)).collect();
        siblings.learn(V, objects.iter(), false, asked, now);
        assert!(siblings.listed(V, "d/f003", now).is_none());
        assert!(siblings.listed(V, "d/f004", now).is_some());
        siblings.changed(V, "d/f004");
        assert!(siblings.listed(V, "d/f004", now).is_none());
        let asked = siblings.asking();
        for i in 0..=CHANGES_MAX {
            siblings.changed(V, &format!("x{i}"));
        }
        siblings.learn(V, objects.iter(), false, asked, now);
        assert!(siblings.listed(V, "d/f003", now).is_none(), "too many changes to tell");
    }

    #[test]
    fn a_listing_out_of_order_is_of_no_use() {
        let (mut siblings, now) = (Siblings::new(TTL), now());
        learn(&mut siblings, &["a".into(), "a/1".into(), "a-x".into()], now);
        assert!(siblings.listed(V, "a", now).is_none());
    }
}
