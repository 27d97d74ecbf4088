//! Pages of LIST to the entries of one directory, streaming. Pure.
//!
//! S3 lists bytes, so `a`, `a-x`, `a.txt` come before `a/`: whether the object `a` shows as `a` or, beside a
//! directory of that name, as `a%~f` is known only when the listing has passed `a/`. Such objects are held back
//! until then; each held one is a prefix of the next, so there are never many.
//!
//! A listing is data from a stranger: keys outside of the prefix are dropped, a token that repeats is an error,
//! and a server that lists out of order is found out. From there on nothing is shown until the end, when the
//! rest comes sorted, and no name is shown twice.
//!
//! What is kept does not grow with the directory, as long as the server is known to list in order.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::keys::{DirKey, Name, Place, Shown};
use super::{Found, Marked};
use crate::error::{Error, Kind, Result};
use crate::s3::{ListPage, ListedObject, SCRATCH};

/// Pages in a row without a new entry before a listing counts as endless. S3 may send a few where many keys were
/// deleted.
const EMPTY_PAGES_MAX: u32 = 1_000;
/// Names shown that are kept, as eight bytes each, of a server whose order is not known: enough to find out.
const SHOWN_MAX: usize = 1 << 18;

/// One line of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Name,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    File(ListedObject),
    Dir,
}

/// What a page made known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ready {
    pub entries: Vec<Entry>,
    /// How many of the entries there are up to a key after which a listing can begin anew and show the rest.
    pub mark: Option<(usize, String)>,
}

/// How far a server's order is to be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By bytes, as S3 documents.
    Known,
    /// It has to show.
    Unknown,
    /// Something else: everything is sorted here.
    Other,
}

/// A listing as far as its pages have come.
#[derive(Debug)]
pub struct Listing {
    dir: DirKey,
    /// Keys up to this one were shown before.
    after: Option<String>,
    /// Objects whose directory may still come, each a prefix of the next.
    held: Vec<ListedObject>,
    /// The greatest key or prefix seen.
    reached: Option<String>,
    /// What came since the order broke.
    unsorted: Option<Vec<Item>>,
    /// Its keys, as eight bytes each: pages in circles bring nothing else.
    collected: Option<HashSet<u64>>,
    /// The last directory shown that stands for the piece of a component: the keys of each are contiguous.
    chunk: Option<Name>,
    /// Whether it was the last name shown, so more of its keys may come.
    in_chunk: bool,
    /// Names shown, while the order has to show.
    shown: Option<HashSet<u64>>,
    marker: Option<ListedObject>,
    token: Option<String>,
    empty_pages: u32,
    foreign_keys: u64,
    done: bool,
}

#[derive(Clone, Debug)]
enum Item {
    Object(ListedObject),
    Prefix(String),
}

impl Item {
    fn key(&self) -> &str {
        match self {
            Self::Object(object) => &object.key,
            Self::Prefix(prefix) => prefix,
        }
    }
}

impl Listing {
    /// A listing of `dir`, to be fed the pages of a LIST with its prefix and the delimiter `/`. Keys up to `after`
    /// are passed over.
    pub fn new(dir: DirKey, order: Order, after: Option<String>) -> Self {
        Self {
            dir,
            after,
            held: Vec::new(),
            reached: None,
            unsorted: (order == Order::Other).then(Vec::new),
            collected: (order == Order::Other).then(HashSet::new),
            chunk: None,
            in_chunk: false,
            shown: (order != Order::Known).then(HashSet::new),
            marker: None,
            token: None,
            empty_pages: 0,
            foreign_keys: 0,
            done: false,
        }
    }

    /// Takes the next page; returns what is ready to be shown. The last page is the one without a token.
    pub fn page(&mut self, page: ListPage) -> Result<Ready> {
        if page.next.is_some() && page.next == self.token {
            return Err(Error::new(Kind::Corrupt, "the listing repeats its continuation token"));
        }
        let mut items: Vec<Item> = page
            .objects
            .into_iter()
            .map(Item::Object)
            .chain(page.common_prefixes.into_iter().map(Item::Prefix))
            .collect();
        let received = items.len();
        items.retain(|item| self.belongs(item));
        self.foreign_keys += (received - items.len()) as u64;
        // Where the order does not tell, what came before does.
        let has_new = match &mut self.collected {
            Some(collected) => {
                let known = collected.len();
                collected.extend(items.iter().map(|item| hash_of(item.key())));
                collected.len() > known
            }
            None => !items.is_empty(),
        };
        self.empty_pages = if has_new { 0 } else { self.empty_pages + 1 };
        if self.empty_pages > EMPTY_PAGES_MAX {
            return Err(Error::new(Kind::Corrupt, "the listing goes on without listing anything new"));
        }
        items.sort_by(|a, b| a.key().cmp(b.key()));
        items.dedup_by(|a, b| a.key() == b.key());
        self.token = page.next;
        self.done = self.token.is_none();

        let went_back = match (items.first(), &self.reached) {
            (Some(first), Some(reached)) => first.key() <= reached.as_str(),
            _ => false,
        };
        if went_back && self.unsorted.is_none() {
            if self.shown.as_ref().is_none_or(|shown| shown.len() >= SHOWN_MAX) {
                return Err(Error::new(Kind::Corrupt, "the server lists out of order"));
            }
            self.unsorted = Some(self.held.drain(..).map(Item::Object).collect());
            self.collected = Some(HashSet::new());
        }
        if let Some(last) = items.last() {
            self.reached = Some(last.key().to_owned());
        }
        if let Some(after) = &self.after {
            items.retain(|item| item.key() > after.as_str());
        }
        let ready = match &mut self.unsorted {
            None => items,
            Some(unsorted) => {
                if has_new {
                    unsorted.extend(items);
                }
                if !self.done {
                    return Ok(Ready::default());
                }
                let mut all = std::mem::take(unsorted);
                all.sort_by(|a, b| a.key().cmp(b.key()));
                all.dedup_by(|a, b| a.key() == b.key());
                all
            }
        };
        let mut out = Ready::default();
        let mut passed: Option<String> = None;
        for item in ready {
            let key = item.key().to_owned();
            self.pass(item, &mut out.entries);
            if self.in_chunk {
                // A listing that begins here would show the chunk once more.
            } else if let (1, Some(before)) = (self.held.len(), &passed)
                && self.held[0].key == key
            {
                out.mark = Some((out.entries.len(), before.clone()));
            } else if self.held.is_empty() {
                out.mark = Some((out.entries.len(), key.clone()));
            }
            passed = Some(key);
        }
        if self.unsorted.is_some() {
            out.mark = None;
        }
        if self.done {
            while let Some(object) = self.held.pop() {
                self.show_object(object, false, &mut out.entries);
            }
        }
        Ok(out)
    }

    /// The pages so far were not what they seemed, and the listing is to be fed again from its beginning: nothing
    /// more is shown until its end, and then what was not shown yet. `false` where too much was shown already.
    pub fn start_over(&mut self) -> bool {
        if self.shown.as_ref().is_none_or(|shown| shown.len() >= SHOWN_MAX) {
            return false;
        }
        self.unsorted = Some(Vec::new());
        self.collected = Some(HashSet::new());
        self.held.clear();
        (self.reached, self.token) = (None, None);
        true
    }

    /// Whether the last page was taken.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the server lists out of byte order.
    pub fn is_disordered(&self) -> bool {
        self.unsorted.is_some()
    }

    /// The directory's own marker object, once it was listed.
    pub fn marker(&self) -> Option<&ListedObject> {
        self.marker.as_ref()
    }

    /// Keys the server sent that were not asked for.
    pub fn foreign_keys(&self) -> u64 {
        self.foreign_keys
    }

    fn belongs(&self, item: &Item) -> bool {
        let Some(rest) = item.key().strip_prefix(self.dir.prefix()) else { return false };
        // Another mount may be finding out what the server does; that comes and goes within a second.
        if rest.starts_with(SCRATCH) {
            return false;
        }
        match item {
            Item::Object(_) => !rest.contains('/'),
            Item::Prefix(_) => rest.find('/').is_some_and(|at| at + 1 == rest.len()),
        }
    }

    /// The listing reaches this item: whatever could not be told before it can be told now.
    fn pass(&mut self, item: Item, out: &mut Vec<Entry>) {
        while let Some(object) = self.held.pop_if(|object| is_passed(&object.key, item.key())) {
            self.show_object(object, false, out);
        }
        match item {
            Item::Object(object) => {
                if Some(object.key.as_str()) == self.dir.marker_key() {
                    self.marker = Some(object.clone());
                    if object.size == 0 {
                        return;
                    }
                }
                self.held.push(object);
            }
            Item::Prefix(prefix) => {
                let rest = prefix[self.dir.prefix().len()..].trim_end_matches('/').to_owned();
                self.show(&rest, false, What::Dir, out);
                let beside = &prefix[..prefix.len() - 1];
                if let Some(object) = self.held.pop_if(|object| object.key == beside) {
                    self.show_object(object, true, out);
                }
            }
        }
    }

    fn show_object(&mut self, object: ListedObject, beside_dir: bool, out: &mut Vec<Entry>) {
        let rest = object.key[self.dir.prefix().len()..].to_owned();
        self.show(&rest, beside_dir, What::File(object), out);
    }

    fn show(&mut self, rest: &str, beside_dir: bool, what: What, out: &mut Vec<Entry>) {
        let entry = match self.dir.show(rest, beside_dir) {
            Some(Shown::As(name)) => Entry { name, what },
            Some(Shown::Inside(name)) => Entry { name, what: What::Dir },
            None => return,
        };
        self.in_chunk =
            entry.what == What::Dir && matches!(self.dir.show(rest, false), Some(Shown::Inside(_)));
        if self.in_chunk {
            if self.chunk.as_ref() == Some(&entry.name) {
                return;
            }
            self.chunk = Some(entry.name.clone());
        }
        match &mut self.shown {
            Some(shown) if shown.len() < SHOWN_MAX || self.unsorted.is_some() => {
                if shown.insert(hash_of(&entry.name)) {
                    out.push(entry);
                }
            }
            _ => out.push(entry),
        }
    }
}

/// Eight bytes that stand for a name, or a key.
pub fn hash_of(name: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// What a page made known, with what was done here: `newer` are the children that changed here since the listing
/// was asked for, or exist only here, and `overruled` tells the names that such a change hides. Each of `newer`
/// is shown where a listing would show it; `reached` is how far that has come. One that comes into being behind
/// that is not shown: whoever reads the directory has passed its place.
pub fn merge(
    dir: &DirKey,
    ready: Ready,
    newer: Vec<(Name, Found)>,
    overruled: impl Fn(&Name) -> bool,
    reached: &mut Option<Place>,
    done: bool,
) -> Merged {
    let up_to = if done { None } else { ready.entries.last().map(|last| dir.place(&last.name)) };
    let mut ours: Vec<(Place, Name, Found)> =
        newer.into_iter().map(|(name, found)| (dir.place(&name), name, found)).collect();
    ours.retain(|(place, ..)| {
        reached.as_ref().is_none_or(|reached| place > reached)
            && (done || up_to.as_ref().is_some_and(|up_to| place <= up_to))
    });
    ours.sort_by(|a, b| a.0.cmp(&b.0));
    let mut ours = ours.into_iter().peekable();
    let mut out = Merged::default();
    for (i, entry) in ready.entries.into_iter().enumerate() {
        if let Some((count, key)) = &ready.mark
            && *count == i
        {
            out.mark = Some((out.lines.len(), key.clone(), reached.clone()));
        }
        if ours.peek().is_some() || ready.mark.as_ref().is_some_and(|(count, _)| *count == i + 1) {
            let place = dir.place(&entry.name);
            while let Some((_, name, found)) = ours.next_if(|(at, ..)| *at <= place) {
                out.lines.push((name, found));
            }
            *reached = Some(place);
        }
        if !overruled(&entry.name) {
            let found = match entry.what {
                What::File(object) => Found::File((&object).into()),
                What::Dir => Found::Dir { marker: Marked::Unseen },
            };
            out.lines.push((entry.name, found));
        }
    }
    if let Some((count, key)) = ready.mark
        && out.mark.is_none()
        && count > 0
    {
        out.mark = Some((out.lines.len(), key, reached.clone()));
    }
    out.lines.extend(ours.map(|(_, name, found)| (name, found)));
    if let Some(up_to) = up_to {
        *reached = Some(up_to);
    }
    out
}

/// Lines of a directory as they are shown, and where among them a listing may begin anew: after how many, the key
/// to begin after, and how far what was done here has been shown by then.
#[derive(Debug, Default)]
pub struct Merged {
    pub lines: Vec<(Name, Found)>,
    pub mark: Option<(usize, String, Option<Place>)>,
}

/// Whether `KEY/` can no longer come once the listing is at `at`.
fn is_passed(key: &str, at: &str) -> bool {
    match at.strip_prefix(key) {
        Some(rest) => rest.as_bytes().first().is_some_and(|b| *b > b'/'),
        None => true,
    }
}

/// Everything one level below a directory, from a whole listing: the naive way, to compare with.
#[cfg(test)]
pub(crate) fn entries_of(all: &[ListedObject], dir: &DirKey) -> std::collections::BTreeMap<String, bool> {
    use std::collections::{BTreeMap, BTreeSet};
    let mut dirs = BTreeSet::new();
    let mut files = BTreeSet::new();
    for object in all {
        let Some(rest) = object.key.strip_prefix(dir.prefix()) else { continue };
        match rest.split_once('/') {
            Some((component, _)) => {
                dirs.insert(component.to_owned());
            }
            None if rest.is_empty() && dir.marker_key() == Some(object.key.as_str()) && object.size == 0 => {}
            None => {
                files.insert(rest.to_owned());
            }
        }
    }
    let mut names = BTreeMap::new();
    let mut add = |shown: Option<Shown>, is_dir: bool| match shown {
        Some(Shown::As(name)) => {
            names.insert(name.as_str().to_owned(), is_dir);
        }
        Some(Shown::Inside(name)) => {
            names.insert(name.as_str().to_owned(), true);
        }
        None => {}
    };
    for component in &dirs {
        add(dir.show(component, false), true);
    }
    for component in &files {
        add(dir.show(component, dirs.contains(component)), false);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ETag;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::SystemTime;

    fn object(key: &str, size: u64) -> ListedObject {
        ListedObject {
            key: key.to_owned(),
            size,
            etag: ETag::new("e"),
            last_modified: SystemTime::UNIX_EPOCH,
            storage_class: None,
            restored: None,
        }
    }

    /// What a server's LIST with a delimiter says, in byte order.
    fn items(keys: &BTreeSet<String>, prefix: &str) -> Vec<Item> {
        let mut out: Vec<Item> = Vec::new();
        for key in keys.iter().filter(|k| k.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            match rest.find('/') {
                Some(at) => {
                    let common = format!("{prefix}{}", &rest[..=at]);
                    if out.last().map(Item::key) != Some(common.as_str()) {
                        out.push(Item::Prefix(common));
                    }
                }
                None => out.push(Item::Object(object(key, key.len() as u64 % 2))),
            }
        }
        out
    }

    fn run(items: Vec<Item>, cuts: &[usize], dir: &DirKey) -> (BTreeMap<String, bool>, Vec<Name>, bool) {
        let mut listing = Listing::new(dir.clone(), Order::Unknown, None);
        let mut names = BTreeMap::new();
        let mut order = Vec::new();
        let mut pages: Vec<Vec<Item>> = vec![Vec::new()];
        for (i, item) in items.into_iter().enumerate() {
            if cuts.contains(&i) {
                pages.push(Vec::new());
            }
            pages.last_mut().unwrap().push(item);
        }
        let count = pages.len();
        for (i, page) in pages.into_iter().enumerate() {
            let mut list = ListPage { next: (i + 1 < count).then(|| i.to_string()), ..ListPage::default() };
            for item in page {
                match item {
                    Item::Object(object) => list.objects.push(object),
                    Item::Prefix(prefix) => list.common_prefixes.push(prefix),
                }
            }
            for entry in listing.page(list).unwrap().entries {
                let before = names.insert(entry.name.as_str().to_owned(), entry.what == What::Dir);
                assert!(before.is_none(), "{:?} was shown twice", entry.name);
                order.push(entry.name);
            }
        }
        assert!(listing.is_done());
        (names, order, listing.is_disordered())
    }

    fn keys() -> impl Strategy<Value = BTreeSet<String>> {
        proptest::collection::btree_set("[!\"#$%&'()*+,./0a-]{1,4}", 1..30)
    }

    fn naive(keys: &BTreeSet<String>, dir: &DirKey) -> BTreeMap<String, bool> {
        let all: Vec<ListedObject> = keys.iter().map(|k| object(k, k.len() as u64 % 2)).collect();
        entries_of(&all, dir)
    }

    proptest! {
        #[test]
        fn any_cut_into_pages_shows_what_the_naive_way_shows(
            keys in keys(),
            cuts in proptest::collection::vec(1usize..30, 0..8),
            prefix in prop_oneof![Just(""), Just("a/"), Just("./")],
        ) {
            let dir = DirKey::root(prefix);
            let whole = run(items(&keys, prefix), &[], &dir);
            let paged = run(items(&keys, prefix), &cuts, &dir);
            prop_assert_eq!(&paged.0, &naive(&keys, &dir));
            prop_assert_eq!(&paged.1, &whole.1, "the order does not depend on the pages");
            prop_assert!(!paged.2);
        }

        #[test]
        fn a_server_out_of_order_loses_no_name(
            keys in keys(),
            cuts in proptest::collection::vec(1usize..30, 0..8),
        ) {
            let dir = DirKey::root("");
            // The order of a tree walk: `a`, `a/1`, `a-x`.
            let mut walked = items(&keys, "");
            walked.sort_by_key(|item| item.key().replace('/', "\0"));
            let (names, _, disordered) = run(walked, &cuts, &dir);
            let expected = naive(&keys, &dir);
            if disordered {
                for name in expected.keys() {
                    let marked = [name.as_str(), "%~f"].concat();
                    let reachable = names.contains_key(name) || names.contains_key(&marked);
                    prop_assert!(reachable || name.ends_with("%~f"), "{} is lost", name);
                }
            } else {
                prop_assert_eq!(names, expected);
            }
        }
    }

    /// Keys of any sort: inside of the prefix `d/` and outside, that climb, that are empty, too long, or hardly keys.
    fn any_key() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "(d/){0,2}[ab./%~-]{0,6}/?",
            2 => "d/(\\.\\./|/|\\./){1,4}[a\0\n]?",
            1 => any::<String>(),
            1 => (250usize..3_000).prop_map(|n| format!("d/{}", "x".repeat(n))),
        ]
    }

    fn any_page() -> impl Strategy<Value = ListPage> {
        let objects = proptest::collection::vec((any_key(), any::<u64>()), 0..12);
        let prefixes = proptest::collection::vec(any_key(), 0..6);
        let next = proptest::option::weighted(0.9, "[a-c]");
        (objects, prefixes, next).prop_map(|(objects, common_prefixes, next)| ListPage {
            objects: objects.into_iter().map(|(key, size)| object(&key, size)).collect(),
            common_prefixes,
            next,
        })
    }

    proptest! {
        #[test]
        fn whatever_a_server_lists_names_are_names_and_none_is_shown_twice(
            pages in proptest::collection::vec(any_page(), 1..12),
            order in proptest::sample::select(vec![Order::Known, Order::Unknown, Order::Other]),
            prefix in proptest::sample::select(vec!["", "d/", "d/d/"]),
            after in proptest::option::of(any_key()),
        ) {
            let mut listing = Listing::new(DirKey::root(prefix), order, after);
            let mut shown = HashSet::new();
            for page in pages {
                if listing.is_done() {
                    break;
                }
                let Ok(ready) = listing.page(page) else { break };
                let count = ready.entries.len();
                prop_assert!(ready.mark.is_none_or(|(at, _)| at <= count));
                for entry in ready.entries {
                    let again = Name::parse(std::ffi::OsStr::new(entry.name.as_str())).ok();
                    prop_assert_eq!(again.as_ref(), Some(&entry.name));
                    prop_assert!(shown.insert(entry.name.clone()), "{:?} came twice", entry.name);
                }
            }
        }
    }

    /// Pages that repeat what came before are no progress, in whatever order a server lists.
    #[test]
    fn pages_in_circles_come_to_an_end() {
        for order in [Order::Known, Order::Unknown, Order::Other] {
            let mut listing = Listing::new(DirKey::root(""), order, None);
            let page = |n: usize| ListPage {
                objects: vec![object(["a", "b"][n % 2], 1)],
                next: Some(["t", "u"][n % 2].to_owned()),
                ..ListPage::default()
            };
            let failed = (0..2_000).find_map(|n| listing.page(page(n)).err());
            assert_eq!(failed.map(|error| error.kind()), Some(Kind::Corrupt), "{order:?}");
        }
    }

    #[test]
    fn an_object_beside_a_directory_keeps_a_path_of_its_own() {
        let keys: BTreeSet<String> = ["a", "a-x", "a.txt", "a/1"].map(String::from).into();
        let (names, _, _) = run(items(&keys, ""), &[1, 2, 3], &DirKey::root(""));
        let expected = [("a", true), ("a%~f", false), ("a-x", false), ("a.txt", false)];
        assert_eq!(names, expected.map(|(n, d)| (n.to_owned(), d)).into());
    }

    #[test]
    fn a_repeated_token_and_an_endless_listing_are_errors() {
        let mut listing = Listing::new(DirKey::root(""), Order::Unknown, None);
        let page = |token: &str| ListPage { next: Some(token.to_owned()), ..ListPage::default() };
        listing.page(page("t")).unwrap();
        assert_eq!(listing.page(page("t")).unwrap_err().kind(), Kind::Corrupt);
        let mut listing = Listing::new(DirKey::root(""), Order::Unknown, None);
        let failed = (0..2_000).find_map(|i| listing.page(page(&i.to_string())).err());
        assert_eq!(failed.unwrap().kind(), Kind::Corrupt);
    }

    #[test]
    fn keys_that_were_not_asked_for_are_dropped() {
        let mut listing = Listing::new(DirKey::root("p/"), Order::Unknown, None);
        let page = ListPage {
            objects: vec![object("q/x", 1), object("p/ok", 1), object("p/deep/x", 1)],
            common_prefixes: vec!["other/".into(), "p/d/".into()],
            next: None,
        };
        let names: Vec<_> =
            listing.page(page).unwrap().entries.into_iter().map(|e| e.name.as_str().to_owned()).collect();
        assert_eq!(names, ["d", "ok"]);
        assert_eq!(listing.foreign_keys(), 3);
    }
}
