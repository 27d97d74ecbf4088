//! What delimiter-less listings have shown of ranges of keys, for as long as that is believed. Pure.
//!
//! A page of such a listing covers a range of keys completely: from where it was asked to begin, to its last key or
//! to the end of the prefix. Directories whose keys all lie in covered ranges are known as a whole, down to the
//! names they do not have.
//!
//! Owns: the ranges, and which directories changed here since they were asked for.
//! Guarantees: an answer is never older than the TTL, and never older than a change made here in that directory.
//! Memory is bounded by [`KEYS_MAX`]; the oldest range goes first.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::keys::{DirKey, Name};
use super::{Facts, Found, Marked, Marker, VolumeId};
use crate::s3::{ListPage, ListedObject};

/// Keys that are kept.
pub const KEYS_MAX: usize = 65_536;
/// Memory of each: its facts, and a key of 40 characters and an ETag of 32.
pub const KEY_BYTES: usize = 200;
/// Directories changed here that are kept apart; with more, everything known is forgotten.
const CHANGED_MAX: usize = 4_096;

/// Keys from `start` up to, and without, `end`; `None` has no end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: String,
    pub end: Option<String>,
}

impl Span {
    /// Every key that begins with `prefix`, which is empty or ends with `/`.
    pub fn of_prefix(prefix: &str) -> Self {
        // `0` is the byte after `/`.
        let end = prefix.strip_suffix('/').map(|above| format!("{above}0"));
        Self { start: prefix.to_owned(), end }
    }

    pub fn contains(&self, key: &str) -> bool {
        self.start.as_str() <= key && self.end.as_ref().is_none_or(|end| key < end.as_str())
    }

    fn overlaps(&self, other: &Self) -> bool {
        let begins_in = |a: &Self, b: &Self| a.end.as_ref().is_none_or(|end| b.start < *end);
        begins_in(self, other) && begins_in(other, self)
    }
}

/// The least string after `key`.
pub fn after(key: &str) -> String {
    format!("{key}\0")
}

/// What is known of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything, as of when the oldest of it was asked for.
    Whole {
        page: ListPage,
        asked: Instant,
    },
    /// Its beginning.
    Begun,
    Unknown,
}

/// Ranges of keys, and what is in them.
#[derive(Debug)]
pub struct Ahead {
    /// By volume and first key; no two of them overlap.
    ranges: BTreeMap<(VolumeId, String), Range>,
    keys: usize,
    /// Directories in which something changed here, and with which number; `true` for everything below as well.
    changed: HashMap<(VolumeId, String), (u64, bool)>,
    /// What was asked for before this change is not believed.
    changes_forgotten: u64,
    ttl: Duration,
}

#[derive(Debug)]
struct Range {
    end: Option<String>,
    objects: Vec<ListedObject>,
    /// When it was asked for, and after which change.
    asked: Instant,
    number: u64,
}

impl Ahead {
    pub fn new(ttl: Duration) -> Self {
        Self { ranges: BTreeMap::new(), keys: 0, changed: HashMap::new(), changes_forgotten: 0, ttl }
    }

    /// Takes what a listing said of all keys of a span, in ascending order. `number` is of the last change made here
    /// when it was asked for.
    pub fn feed(
        &mut self,
        volume: VolumeId,
        span: Span,
        objects: Vec<ListedObject>,
        asked: Instant,
        number: u64,
        now: Instant,
    ) {
        debug_assert!(objects.iter().all(|object| span.contains(&object.key)), "a key outside of its span");
        let ttl = self.ttl;
        self.drop_ranges(|id, known, range| {
            now >= range.asked + ttl || id == volume && known.overlaps(&span)
        });
        if number < self.changes_forgotten || now >= asked + self.ttl || objects.len() > KEYS_MAX {
            return;
        }
        self.keys += objects.len();
        self.ranges.insert((volume, span.start), Range { end: span.end, objects, asked, number });
        while self.keys > KEYS_MAX {
            let oldest = self.ranges.iter().min_by_key(|(_, range)| range.asked).map(|(at, _)| at.clone());
            let Some(oldest) = oldest else { break };
            if let Some(range) = self.ranges.remove(&oldest) {
                self.keys -= range.objects.len();
            }
        }
    }

    /// Something in this directory changed here. Its parents may have begun or ceased to be directories by that.
    /// `deep` says that everything below may be different.
    pub fn touch(&mut self, volume: VolumeId, dir: &str, deep: bool, number: u64) {
        if self.changed.len() >= CHANGED_MAX {
            self.forget_all(number);
            return;
        }
        // The piece of a component has its keys among those of the directory it is in.
        let (mut at, deep) = match dir.rfind('/') {
            _ if ends_well(dir) => (dir, deep),
            Some(slash) => (&dir[..=slash], true),
            None => ("", true),
        };
        self.note(volume, at, deep, number);
        while let Some(above) = parent(at) {
            self.note(volume, above, false, number);
            at = above;
        }
    }

    /// Forgets everything, and believes nothing that was asked for before this change.
    pub fn forget_all(&mut self, number: u64) {
        self.ranges.clear();
        self.keys = 0;
        self.changed.clear();
        self.changes_forgotten = number;
    }

    /// Forgets ranges that were asked for when they may no longer be believed.
    pub fn retain(&mut self, mut stays: impl FnMut(Instant) -> bool) {
        self.drop_ranges(|_, _, range| !stays(range.asked));
    }

    /// Forgets what is known of a volume: its server is not to be relied on.
    pub fn forget_volume(&mut self, volume: VolumeId) {
        self.drop_ranges(|id, _, _| id == volume);
    }

    /// Whether nothing is known, so that changes need not be noted unless something is on its way.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Nothing is on its way: no change need be kept for it.
    pub fn settle(&mut self) {
        if self.ranges.is_empty() {
            self.changed.clear();
        }
    }

    /// Keys in memory.
    pub fn len(&self) -> usize {
        self.keys
    }

    /// What a LIST of this directory, with the delimiter `/`, would have said.
    pub fn extent(&self, volume: VolumeId, dir: &str, now: Instant) -> Extent {
        let span = Span::of_prefix(dir);
        let mut page = ListPage::default();
        let mut oldest: Option<Instant> = None;
        let mut at = span.start.clone();
        loop {
            let Some((start, range)) = self.range_at(volume, &at, now) else {
                return if oldest.is_some() { Extent::Begun } else { Extent::Unknown };
            };
            if self.is_changed(volume, dir, range.number) {
                return Extent::Unknown;
            }
            debug_assert!(*start <= *at);
            oldest = Some(oldest.map_or(range.asked, |oldest| oldest.min(range.asked)));
            roll_up(&range.objects, &span, &mut page);
            match (&range.end, &span.end) {
                (Some(reached), Some(end)) if reached < end => at.clone_from(reached),
                (Some(reached), None) => at.clone_from(reached),
                _ => break,
            }
        }
        match oldest {
            Some(asked) => Extent::Whole { page, asked },
            None => Extent::Unknown,
        }
    }

    /// What a name stands for, and when that was asked for; `None` where it is not known.
    pub fn find(
        &self,
        volume: VolumeId,
        dir: &DirKey,
        name: &Name,
        now: Instant,
    ) -> Option<(Option<Found>, Instant)> {
        // An escape may say something of several keys; S3 is asked for those.
        if name.as_str().contains("%~") || !ends_well(dir.prefix()) {
            return None;
        }
        let key = dir.object_key(name).ok()?;
        let below_end = format!("{key}0");
        let below = Span { start: format!("{key}/"), end: Some(below_end.clone()) };
        let (_, range) = self.range_at(volume, &key, now)?;
        if self.is_changed(volume, dir.prefix(), range.number) {
            return None;
        }
        let from = range.objects.partition_point(|object| object.key < key);
        let object = range.objects.get(from).filter(|object| object.key == key);
        let first = range.objects.partition_point(|object| object.key < below.start);
        let first = range.objects.get(first).filter(|object| below.contains(&object.key));
        let found = match (first, object) {
            (Some(first), _) => {
                let marker = match first.key == below.start {
                    true => Marked::Yes(Marker::listed(first.last_modified)),
                    false => Marked::No,
                };
                Some(Found::Dir { marker })
            }
            // Keys below it may still come.
            _ if range.end.as_ref().is_some_and(|end| *end < below_end) => return None,
            (None, Some(object)) => Some(Found::File(Facts::from(object))),
            (None, None) => None,
        };
        Some((found, range.asked))
    }

    fn range_at(&self, volume: VolumeId, key: &str, now: Instant) -> Option<(&str, &Range)> {
        let upto = (volume, key.to_owned());
        let ((id, start), range) = self.ranges.range(..=upto).next_back()?;
        let holds = *id == volume && range.end.as_ref().is_none_or(|end| key < end.as_str());
        (holds && now < range.asked + self.ttl).then_some((start.as_str(), range))
    }

    fn is_changed(&self, volume: VolumeId, dir: &str, asked: u64) -> bool {
        if self.changed.is_empty() {
            return false;
        }
        let newer = |dir: &str| {
            let (number, deep) = self.changed.get(&(volume, dir.to_owned()))?;
            (*number > asked).then_some(*deep)
        };
        if newer(dir).is_some() {
            return true;
        }
        let mut at = dir;
        while let Some(above) = parent(at) {
            if newer(above) == Some(true) {
                return true;
            }
            at = above;
        }
        false
    }

    fn note(&mut self, volume: VolumeId, dir: &str, deep: bool, number: u64) {
        let (newest, is_deep) = self.changed.entry((volume, dir.to_owned())).or_insert((number, deep));
        *newest = number;
        *is_deep |= deep;
    }

    fn drop_ranges(&mut self, mut goes: impl FnMut(VolumeId, &Span, &Range) -> bool) {
        let mut dropped = 0;
        self.ranges.retain(|(id, start), range| {
            let span = Span { start: start.clone(), end: range.end.clone() };
            let keep = !goes(*id, &span, range);
            if !keep {
                dropped += range.objects.len();
            }
            keep
        });
        self.keys -= dropped;
    }
}

/// The directory above, down to the top of the bucket.
pub fn parent(dir: &str) -> Option<&str> {
    let trimmed = dir.strip_suffix('/')?;
    Some(trimmed.rfind('/').map_or("", |at| &dir[..=at]))
}

/// Whether keys of this directory are a span: not where it stands for the piece of a component.
pub fn ends_well(dir: &str) -> bool {
    dir.is_empty() || dir.ends_with('/')
}

fn roll_up(objects: &[ListedObject], span: &Span, page: &mut ListPage) {
    let mut at = objects.partition_point(|object| object.key < span.start);
    while let Some(object) = objects.get(at).filter(|object| span.contains(&object.key)) {
        let rest = &object.key[span.start.len()..];
        let Some(slash) = rest.find('/') else {
            page.objects.push(object.clone());
            at += 1;
            continue;
        };
        let common = &object.key[..=span.start.len() + slash];
        if page.common_prefixes.last().map(String::as_str) != Some(common) {
            page.common_prefixes.push(common.to_owned());
        }
        let below = Span::of_prefix(common);
        at += objects[at..].partition_point(|object| below.contains(&object.key));
    }
}

/// Whether a page holds keys of `prefix` alone, in order, from `span`'s start on. A server that does not send such
/// pages cannot be listed ahead.
pub fn is_sound(objects: &[ListedObject], prefix: &str, span: &Span) -> bool {
    objects.iter().all(|object| object.key.starts_with(prefix) && span.contains(&object.key))
        && objects.is_sorted_by(|a, b| a.key < b.key)
}

/// Whether a page in byte order is in no other: the order of a walk through a tree puts `a/1` before `a-x`.
pub fn shows_byte_order(objects: &[ListedObject]) -> bool {
    objects.windows(2).any(|pair| {
        let differing = pair[0].key.bytes().zip(pair[1].key.bytes()).find(|(a, b)| a != b);
        differing.is_some_and(|(a, b)| a < b'/' && b == b'/')
    })
}

/// Whether byte order and the order of a walk through a tree agree on where this directory is.
pub fn is_plain(dir: &str) -> bool {
    dir.bytes().all(|byte| byte >= b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::SystemTime;

    use proptest::prelude::*;

    use crate::base::{Clock, ETag, SystemClock};

    const VOLUME: VolumeId = VolumeId(0);
    const TTL: Duration = Duration::from_secs(10);

    fn object(key: &str) -> ListedObject {
        ListedObject {
            key: key.to_owned(),
            size: 1,
            etag: ETag::new("e"),
            last_modified: SystemTime::UNIX_EPOCH,
            storage_class: None,
            restored: None,
        }
    }

    /// What a server's LIST with a delimiter says.
    fn naive(keys: &BTreeSet<String>, dir: &str) -> (Vec<String>, Vec<String>) {
        let (mut objects, mut prefixes) = (Vec::new(), BTreeSet::new());
        for key in keys {
            let Some(rest) = key.strip_prefix(dir) else { continue };
            match rest.find('/') {
                Some(slash) => drop(prefixes.insert(key[..=dir.len() + slash].to_owned())),
                None => objects.push(key.clone()),
            }
        }
        (objects, prefixes.into_iter().collect())
    }

    proptest! {
        #[test]
        fn whatever_pages_came_a_directory_is_known_as_it_is_or_not_at_all(
            keys in proptest::collection::btree_set("[!-0a]{1,5}", 0..40),
            pages in proptest::collection::vec((0usize..40, 1usize..10), 0..8),
            touched in proptest::option::of((0usize..40, any::<bool>())),
        ) {
            let now = SystemClock.now();
            let mut ahead = Ahead::new(TTL);
            let all: Vec<&String> = keys.iter().collect();
            for (from, len) in pages {
                let from = from.min(all.len());
                let to = (from + len).min(all.len());
                let start = from.checked_sub(1).map_or(String::new(), |before| after(all[before]));
                let end = (to < all.len() && to > from).then(|| after(all[to - 1]));
                if to == from && to < all.len() {
                    continue;
                }
                let objects = all[from..to].iter().map(|key| object(key)).collect();
                ahead.feed(VOLUME, Span { start, end }, objects, now, 1, now);
            }
            let dirs: BTreeSet<String> = keys
                .iter()
                .flat_map(|key| key.match_indices('/').map(|(at, _)| key[..=at].to_owned()).collect::<Vec<_>>())
                .chain(["".to_owned(), "b/".to_owned()])
                .collect();
            let touched = touched.map(|(at, deep)| (dirs.iter().nth(at % dirs.len()).unwrap(), deep));
            if let Some((dir, deep)) = touched {
                ahead.touch(VOLUME, dir, deep, 2);
            }
            for dir in &dirs {
                match ahead.extent(VOLUME, dir, now) {
                    Extent::Whole { page, .. } => {
                        let objects: Vec<String> = page.objects.into_iter().map(|o| o.key).collect();
                        prop_assert_eq!((objects, page.common_prefixes), naive(&keys, dir));
                        if let Some((touched, deep)) = touched {
                            prop_assert!(!touched.starts_with(dir.as_str()), "{} changed", dir);
                            prop_assert!(!(deep && dir.starts_with(touched.as_str())), "{} changed", dir);
                        }
                        prop_assert_eq!(ahead.extent(VOLUME, dir, now + TTL), Extent::Unknown);
                    }
                    Extent::Begun | Extent::Unknown => {}
                }
            }
            for name in ["a", "!", "0", "a!", "a0"] {
                let parsed = Name::parse(name.as_ref()).unwrap();
                if let Some((found, _)) = ahead.find(VOLUME, &DirKey::root(""), &parsed, now) {
                    let below = format!("{name}/");
                    let is_dir = keys.iter().any(|key| key.starts_with(&below));
                    match found {
                        Some(Found::Dir { .. }) => prop_assert!(is_dir),
                        Some(Found::File(_)) => prop_assert!(!is_dir && keys.contains(name)),
                        None => prop_assert!(!is_dir && !keys.contains(name)),
                    }
                }
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let mut ahead = Ahead::new(TTL);
        let now = SystemClock.now();
        for page in 0..100u32 {
            let objects: Vec<_> = (0..1_000).map(|i| object(&format!("{page:03}/{i:04}"))).collect();
            let span = Span::of_prefix(&format!("{page:03}/"));
            let asked = now + Duration::from_millis(page.into());
            ahead.feed(VOLUME, span, objects, asked, 1, asked);
        }
        assert!(ahead.len() <= KEYS_MAX);
        assert_eq!(ahead.extent(VOLUME, "000/", now), Extent::Unknown);
        assert!(matches!(ahead.extent(VOLUME, "099/", now), Extent::Whole { .. }));
    }
}
