//! Pages of a LIST, asked for ahead of whoever takes them; those of a large directory in shards side by side.
//!
//! Guarantees: pages come in the order of keys, whoever asked for them, and together they say what one listing from
//! beginning to end says. Where a shard ends, its listing has gone on for a bit: what that showed has to be what
//! the next shard begins with. If not, the listing goes on from there without shards.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::future::try_join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

use super::lock;
use super::volume::Volume;
use crate::base::Clock;
use crate::error::{Error, Kind, Result};
use crate::s3::{ListPage, ListRequest, Store};
use crate::stats::Stats;
use crate::tree::split::{self, SHARDS_MAX, Split};

/// Pages that are here and not yet taken, of a listing by itself, with one more on its way: enough that the network
/// never waits for the reader's side of things, and little if the reader goes away.
const READY_MAX: usize = 2;
/// The same of a shard, which waits for the shards before it: 16 of them are 128,000 entries.
const SHARD_READY_MAX: usize = 8;
/// Full pages after which a directory counts as large. Dividing it costs some twenty requests more, and as many round
/// trips as three pages take.
const PAGES_MIN: u32 = 10;
/// Pages of one shard after which it counts as large.
const SHARD_PAGES_MIN: u32 = 10;
/// Shards of one listing in all, where the one being read is divided again.
const SHARDS_KEPT_MAX: usize = 24;
/// Pages after a search that found nothing to divide, before the next.
const SPLIT_PAUSE_PAGES: u32 = 64;
/// Keys of an answer to "what comes after this".
const PROBE_KEYS: u16 = 1;

/// A page, and when it was asked for.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) list: ListPage,
    pub(super) asked: Instant,
}

/// How a large directory may be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharding {
    /// By itself: the server does not begin listings where it is told to.
    Never,
    /// The server groups what lies below directories, wherever a listing begins.
    Grouped,
    /// Some servers lose a directory when a grouped listing begins in the middle, so what lies below directories is
    /// listed too, and left out here.
    Whole,
}

/// What a listing needs to ask its questions.
pub(super) struct Asker {
    store: Arc<dyn Store>,
    bucket: String,
    prefix: String,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
}

/// The pages of one LIST in their order. While one is being used the next are on their way. Dropping it stops that.
pub(super) struct Pages {
    asker: Arc<Asker>,
    /// One that is here already, and the only one.
    here: Option<Page>,
    /// In order; the first is being read.
    shards: VecDeque<Shard>,
    sharding: Sharding,
    /// Whether shards did not fit together.
    torn: bool,
    search: Search,
    /// The end of the shard before the first: what is beyond it.
    seam: Option<Page>,
    /// The last key or prefix passed on.
    passed: Option<String>,
    /// Some of the keys seen.
    sample: Vec<String>,
    made: u64,
    shards_free: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
}

enum Search {
    /// After this many pages of the first shard.
    After(u32),
    Running(Searching),
}

/// A search on its way; dropping it stops that.
struct Searching(JoinHandle<Result<Vec<String>>>);

impl Drop for Searching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A piece of the listing.
struct Shard {
    ready: mpsc::Receiver<Result<Page>>,
    /// Taken out of `ready` already.
    taken: VecDeque<Result<Page>>,
    /// It ends with this.
    end: Option<String>,
    /// Whether it lists what is below directories.
    is_whole: bool,
    /// For the task: the same as `end`.
    stop: Arc<Mutex<Option<String>>>,
    pages: u32,
    task: AbortHandle,
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asker {
    pub(super) fn new(volume: &Volume, prefix: &str, clock: &Arc<dyn Clock>, stats: &Arc<Stats>) -> Self {
        Self {
            store: Arc::clone(&volume.store),
            bucket: volume.bucket.clone(),
            prefix: prefix.to_owned(),
            clock: Arc::clone(clock),
            stats: Arc::clone(stats),
        }
    }

    fn request(&self, is_whole: bool) -> ListRequest {
        ListRequest {
            bucket: self.bucket.clone(),
            prefix: self.prefix.clone(),
            delimiter: (!is_whole).then(|| "/".to_owned()),
            ..ListRequest::default()
        }
    }

    /// Asks for pages, one after the other, until one goes beyond `stop`.
    fn list(self: &Arc<Self>, request: ListRequest, end: Option<String>, room: usize) -> Shard {
        let (sender, ready) = mpsc::channel(room);
        let stop = Arc::new(Mutex::new(end.clone()));
        let (asker, until) = (Arc::clone(self), Arc::clone(&stop));
        let is_whole = request.delimiter.is_none();
        let mut request = request;
        // A listing that was told where to begin has to go forward from there.
        let mut reached = request.start_after.clone();
        let task = tokio::spawn(async move {
            loop {
                let asked = asker.clock.now();
                let answer = asker.store.list(request.clone()).await;
                let answer = answer.and_then(|page| match &reached {
                    Some(reached) if !goes_on_after(&page, reached) => {
                        Err(Error::new(Kind::Corrupt, "a listing does not begin where it was told to"))
                    }
                    _ => Ok(page),
                });
                let (next, last) = match &answer {
                    Ok(page) => (page.next.clone(), last_of(page).map(str::to_owned)),
                    Err(_) => (None, None),
                };
                let is_beyond = match (&*lock(&until), &last) {
                    (Some(end), Some(last)) => last > end,
                    _ => false,
                };
                if is_whole || reached.is_some() {
                    reached = last.or(reached);
                }
                let jump = answer.as_ref().ok().and_then(|page| asker.jump(page, is_whole));
                // A token that repeats is whoever takes the page's to complain of.
                let repeats = next.is_some() && next == request.continuation;
                let sent = sender.send(answer.map(|list| Page { list, asked })).await;
                if sent.is_err() || next.is_none() || repeats || is_beyond {
                    return;
                }
                (request.start_after, request.continuation) =
                    if jump.is_some() { (jump, None) } else { (None, next) };
            }
        });
        let task = task.abort_handle();
        Shard { ready, taken: VecDeque::new(), end, is_whole, stop, pages: 0, task }
    }

    /// Where to go on after a page that has nothing but keys of one directory below.
    fn jump(&self, page: &ListPage, is_whole: bool) -> Option<String> {
        let (first, last) = (page.objects.first()?, page.objects.last()?);
        let group = self.group_of(&first.key)?;
        (is_whole && self.group_of(&last.key) == Some(group)).then(|| format!("{group}{}", char::MAX))
    }

    /// The directory right below the prefix that a key is in.
    fn group_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        let slash = key.strip_prefix(&self.prefix)?.find('/')?;
        Some(&key[..=self.prefix.len() + slash])
    }

    /// What a grouped listing would have said.
    fn grouped(&self, page: ListPage, passed: Option<&str>) -> ListPage {
        let mut grouped = ListPage { next: page.next, ..ListPage::default() };
        for object in page.objects {
            match self.group_of(&object.key) {
                None => grouped.objects.push(object),
                Some(group) => {
                    let last = grouped.common_prefixes.last().map(String::as_str).or(passed);
                    if last != Some(group) {
                        grouped.common_prefixes.push(group.to_owned());
                    }
                }
            }
        }
        grouped
    }

    /// Looks for strings that divide what comes after `reached`.
    async fn search(self: Arc<Self>, mut split: Split) -> Result<Vec<String>> {
        loop {
            let probes = split.probes();
            if probes.is_empty() {
                return Ok(split.points());
            }
            let asked = probes.into_iter().map(async |start_after| {
                let request = ListRequest {
                    start_after: Some(start_after),
                    max_keys: Some(PROBE_KEYS),
                    ..self.request(true)
                };
                self.stats.shard_probes.add(1);
                let page = self.store.list(request).await?;
                let first = page.objects.into_iter().next().map(|object| object.key);
                Ok::<_, Error>(first.filter(|key| key.starts_with(&self.prefix)))
            });
            split.answers(try_join_all(asked).await?);
        }
    }
}

impl Pages {
    /// A listing from the beginning, or after a key. One that is known to be large is divided soon.
    pub(super) fn start(
        asker: Asker,
        start_after: Option<String>,
        sharding: Sharding,
        is_large: bool,
        shards_free: &Arc<Semaphore>,
    ) -> Self {
        let asker = Arc::new(asker);
        let is_whole = sharding == Sharding::Whole && start_after.is_some();
        let request = ListRequest { start_after, ..asker.request(is_whole) };
        let first = asker.list(request, None, READY_MAX);
        let search = Search::After(if is_large { 1 } else { PAGES_MIN });
        Self { shards: [first].into(), search, ..Self::new(asker, sharding, shards_free) }
    }

    /// A listing that is here already.
    pub(super) fn here(asker: Asker, page: Page, shards_free: &Arc<Semaphore>) -> Self {
        Self { here: Some(page), ..Self::new(Arc::new(asker), Sharding::Never, shards_free) }
    }

    fn new(asker: Arc<Asker>, sharding: Sharding, shards_free: &Arc<Semaphore>) -> Self {
        Self {
            asker,
            here: None,
            shards: VecDeque::new(),
            sharding,
            torn: false,
            search: Search::After(PAGES_MIN),
            seam: None,
            passed: None,
            sample: Vec::new(),
            made: 0,
            shards_free: Arc::clone(shards_free),
            permits: Vec::new(),
        }
    }

    /// The next page; `None` after the last and after a failure. May be given up at any time.
    pub(super) async fn next(&mut self) -> Option<Result<Page>> {
        if let Some(page) = self.here.take() {
            return Some(Ok(page));
        }
        loop {
            let first = self.shards.front_mut()?;
            if first.taken.is_empty() {
                let page = first.ready.recv().await?;
                first.taken.push_back(page);
            }
            // From here on nothing waits.
            self.take_points().await;
            let first = self.shards.front_mut()?;
            let page = match first.taken.pop_front()? {
                Ok(page) => page,
                Err(error) => match self.seam.take() {
                    // Where the shard before it ended, the listing can go on without it.
                    Some(seam) if error.kind() == Kind::Corrupt => return self.mend(seam).map(Ok),
                    _ => {
                        self.shards.clear();
                        return Some(Err(error));
                    }
                },
            };
            first.pages += 1;
            if let Some(page) = self.fit(page) {
                return Some(Ok(page));
            }
        }
    }

    /// Whether shards did not fit together, so the server is not to be relied on for them.
    pub(super) fn is_torn(&self) -> bool {
        self.torn
    }

    /// A page of the first shard in its place among all.
    fn fit(&mut self, page: Page) -> Option<Page> {
        let Page { list, asked } = page;
        let is_whole = self.shards.front()?.is_whole;
        let mut list = if is_whole { self.asker.grouped(list, self.passed.as_deref()) } else { list };
        if let Some(seam) = self.seam.take() {
            match split::agree(seam.list.clone(), &list) {
                Some(rest) if last_of(&rest).is_some() => self.seam = Some(Page { list: rest, ..seam }),
                Some(_) => {}
                None => return self.mend(seam),
            }
        }
        let first = self.shards.front()?;
        let (pages, end) = (first.pages, first.end.clone());
        if let Some(end) = end {
            let (here, beyond) = split::cut(list, &end);
            list = here;
            let is_done = last_of(&beyond).is_some() || beyond.next.is_none();
            if is_done {
                self.shards.pop_front();
                self.permits.pop();
                self.seam = Some(Page { list: beyond, asked });
                if let Search::After(pages) = &mut self.search {
                    *pages = (*pages).max(SHARD_PAGES_MIN);
                }
            }
            self.made += 1;
            // Whoever takes the pages wants to know that more is to come.
            list.next = Some(format!("shard {}", self.made));
        } else if list.next.is_none() {
            self.shards.clear();
        } else if self.made > 0 {
            self.made += 1;
            list.next = Some(format!("shard {}", self.made));
        }
        if let Some(last) = last_of(&list) {
            self.passed = Some(last.to_owned());
        }
        if list.next.is_some() {
            self.look_for_points(&list, pages);
        }
        Some(Page { list, asked })
    }

    /// Goes on by the token of the shard that ended, without shards.
    fn mend(&mut self, seam: Page) -> Option<Page> {
        tracing::debug!(prefix = self.asker.prefix, "shards of a listing do not fit together");
        self.torn = true;
        self.sharding = Sharding::Never;
        let is_whole = self.shards.front()?.is_whole;
        self.shards.clear();
        self.permits.clear();
        let Page { mut list, asked } = seam;
        if let Some(token) = list.next.take() {
            let request = ListRequest { continuation: Some(token), ..self.asker.request(is_whole) };
            self.shards.push_back(self.asker.list(request, None, READY_MAX));
            self.made += 1;
            list.next = Some(format!("shard {}", self.made));
        }
        if let Some(last) = last_of(&list) {
            self.passed = Some(last.to_owned());
        }
        Some(Page { list, asked })
    }

    /// Starts to look for a way to divide what is to come, where it seems to be much.
    fn look_for_points(&mut self, list: &ListPage, pages: u32) {
        if self.sample.len() < 64 {
            let step = (list.objects.len() / 16).max(1);
            self.sample.extend(list.objects.iter().step_by(step).map(|object| object.key.clone()));
        }
        let Search::After(min) = self.search else { return };
        let groups = self.sharding == Sharding::Whole && !list.common_prefixes.is_empty();
        if self.sharding == Sharding::Never || groups || pages < min || self.shards.len() >= SHARDS_MAX {
            return;
        }
        let (Some(reached), Some(first)) = (&self.passed, self.shards.front()) else { return };
        let sample = self.sample.iter().map(String::as_str);
        let split = Split::new(&self.asker.prefix, reached, sample, first.end.clone());
        let search = tokio::spawn(Arc::clone(&self.asker).search(split));
        self.search = Search::Running(Searching(search));
    }

    /// Takes what a search has found, if it has ended, and lists in shards from there on.
    async fn take_points(&mut self) {
        let Search::Running(search) = &mut self.search else { return };
        if !search.0.is_finished() {
            return;
        }
        // It has ended, so this does not wait. A search that failed is one that found nothing.
        let points = (&mut search.0).await.ok().and_then(Result::ok).unwrap_or_default();
        let pages = self.shards.front().map_or(0, |first| first.pages);
        self.search = Search::After(pages + SPLIT_PAUSE_PAGES);
        self.divide(points);
    }

    /// Divides the first shard at these strings, as far as it has not come past them.
    fn divide(&mut self, mut points: Vec<String>) {
        let room = SHARDS_KEPT_MAX.saturating_sub(self.shards.len());
        let Some(first) = self.shards.front_mut() else { return };
        while let Ok(page) = first.ready.try_recv() {
            first.taken.push_back(page);
        }
        let fetched = first.taken.iter().filter_map(|page| last_of(&page.as_ref().ok()?.list));
        let fetched = fetched.chain(self.passed.as_deref()).max().unwrap_or_default().to_owned();
        let end = first.end.clone();
        points.retain(|point| *point > fetched && end.as_ref().is_none_or(|end| point < end));
        points.truncate(room);
        let mut permits = Vec::new();
        while permits.len() < points.len() {
            let Ok(permit) = Arc::clone(&self.shards_free).try_acquire_owned() else { break };
            permits.push(permit);
        }
        points.truncate(permits.len());
        let Some(start) = points.first() else { return };
        self.asker.stats.shards.add(points.len() as u64);
        first.end = Some(start.clone());
        *lock(&first.stop) = Some(start.clone());
        for (i, start) in points.iter().enumerate() {
            let shard_end = points.get(i + 1).cloned().or_else(|| end.clone());
            let request = ListRequest {
                start_after: Some(start.clone()),
                ..self.asker.request(self.sharding == Sharding::Whole)
            };
            self.shards.insert(i + 1, self.asker.list(request, shard_end, SHARD_READY_MAX));
        }
        self.permits.append(&mut permits);
    }
}

/// Whether everything in a page comes after a key, and in order.
fn goes_on_after(page: &ListPage, reached: &str) -> bool {
    let objects = page.objects.iter().map(|object| object.key.as_str());
    let prefixes = page.common_prefixes.iter().map(String::as_str);
    objects.clone().chain(prefixes.clone()).all(|key| key > reached)
        && objects.is_sorted_by(|a, b| a < b)
        && prefixes.is_sorted_by(|a, b| a < b)
}

fn last_of(page: &ListPage) -> Option<&str> {
    let object = page.objects.last().map(|object| object.key.as_str());
    object.max(page.common_prefixes.last().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use crate::base::SystemClock;
    use crate::s3::{Listing, MemStore, PutRequest};

    const BUCKET: &str = "bucket";

    async fn store(keys: &BTreeSet<String>, listing: Listing) -> Arc<MemStore> {
        let store = MemStore::new(Arc::new(SystemClock), Arc::default()).with_bucket(BUCKET);
        for key in keys {
            let request = PutRequest { bucket: BUCKET.into(), key: key.clone(), ..PutRequest::default() };
            store.put(request).await.unwrap();
        }
        store.list_like(listing);
        Arc::new(store)
    }

    fn asker(store: &Arc<MemStore>, prefix: &str) -> Asker {
        let volume = Volume::new(BUCKET, "", Arc::clone(store) as Arc<dyn Store>);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Asker::new(&volume, prefix, &clock, &Arc::default())
    }

    /// What all pages say, in their order.
    async fn all(mut pages: Pages) -> Vec<String> {
        let mut keys = Vec::new();
        let mut more = true;
        while let Some(page) = pages.next().await {
            let page = page.unwrap().list;
            let mut of_page: Vec<String> = page.objects.into_iter().map(|object| object.key).collect();
            of_page.extend(page.common_prefixes);
            of_page.sort();
            keys.extend(of_page);
            more = page.next.is_some();
        }
        assert!(!more, "the last page says that more is to come");
        keys
    }

    fn naive(keys: &BTreeSet<String>, prefix: &str) -> Vec<String> {
        let grouped = keys.iter().filter_map(|key| {
            let rest = key.strip_prefix(prefix)?;
            Some(rest.find('/').map_or(key.as_str(), |slash| &key[..=prefix.len() + slash]))
        });
        let grouped: BTreeSet<&str> = grouped.collect();
        grouped.into_iter().map(str::to_owned).collect()
    }

    proptest! {
        #[test]
        fn shards_at_any_points_say_what_one_listing_says(
            keys in proptest::collection::btree_set("[!-0a]{1,4}", 1..60),
            points in proptest::collection::btree_set("[!-.0a]{1,3}", 0..8),
            prefix in prop_oneof![Just(""), Just("a/")],
            page_max in 1u16..8,
            is_whole in any::<bool>(),
            start_after_drops in any::<bool>(),
            later in 0usize..4,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(async {
                let listing = Listing { page_max: Some(page_max), start_after_drops, ..Listing::default() };
                let store = store(&keys, listing).await;
                let sharding = if is_whole { Sharding::Whole } else { Sharding::Grouped };
                let free = Arc::new(Semaphore::new(32));
                let mut pages = Pages::start(asker(&store, prefix), None, sharding, false, &free);
                let mut first = Vec::new();
                for _ in 0..later {
                    let Some(page) = pages.next().await else { break };
                    let page = page.unwrap().list;
                    let mut of_page: Vec<String> = page.objects.into_iter().map(|o| o.key).collect();
                    of_page.extend(page.common_prefixes);
                    of_page.sort();
                    first.extend(of_page);
                    if page.next.is_none() {
                        return first;
                    }
                }
                pages.divide(points.iter().map(|point| format!("{prefix}{point}")).collect());
                first.extend(all(pages).await);
                assert_eq!(free.available_permits(), 32, "every permit comes back");
                first
            });
            prop_assert_eq!(found, naive(&keys, prefix));
        }
    }

    #[test]
    fn a_shard_far_ahead_of_the_reader_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let keys: BTreeSet<String> = (0..400).map(|i| format!("{i:03}")).collect();
            let store = store(&keys, Listing { page_max: Some(2), ..Listing::default() }).await;
            let free = Arc::new(Semaphore::new(32));
            let mut pages = Pages::start(asker(&store, ""), None, Sharding::Grouped, false, &free);
            pages.next().await.unwrap().unwrap();
            pages.divide(vec!["1".into(), "2".into(), "3".into()]);
            for _ in 0..10_000 {
                tokio::task::yield_now().await;
            }
            let asked = store.calls().iter().filter(|call| **call == "ListObjectsV2").count();
            let first_shard = 1 + 2 * (READY_MAX + 1);
            assert!(asked <= first_shard + 3 * (SHARD_READY_MAX + 1), "{asked} pages of 200");
            assert_eq!(all(pages).await.len(), 398);
        });
    }
}
