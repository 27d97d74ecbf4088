//! Pages of a LIST, asked for ahead of whoever takes them; those of a large directory in shards side by side.
//!
//! Guarantees: pages come in the order of keys, whoever asked for them, and together they say what one listing from
//! beginning to end says. Where a shard ends, its listing has gone on for a bit: what that showed has to be what
//! the next shard begins with. If not, the listing goes on from there without shards.
//!
//! Only the next few shards are listed; the others are two strings until their turn comes. How many is told by the time
//! that the reader takes for a page: pages that wait long are of no use, because what they say is believed for a moment
//! only. And pages that wait are bytes of the mount's one budget: where memory is short there are fewer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

use super::lock;
use super::volume::Volume;
use crate::base::{Budget, Clock, Gate, Grant, Priority, Turn};
use crate::error::{Error, Kind, Result};
use crate::s3::{ListPage, ListRequest, Store};
use crate::stats::Stats;
use crate::tree::split::{self, SHARDS_MAX, Split};

/// Pages of a listing by itself that are on their way or here and not yet taken: enough that the network never waits for
/// the reader's side of things, and little if the reader goes away.
const READY_MAX: usize = 2;
/// The same of a shard, which waits for the shards before it: numbers often divide into tens of pages, and one shows
/// where the tenth ends.
const SHARD_READY_MAX: usize = 11;
/// Memory of a page of 1,000 names of 40 characters. One that is on its way takes twice as much for a moment, as it came
/// and as it is read; most wait.
const PAGE_BYTES: u64 = 288 << 10;
/// Shards listed at once, the one being read among them. With six, a server of two cores answered the one that the reader
/// waited for so late that what the others had ready was too old.
const RUNNING_MAX: usize = 3;
/// Full pages after which a directory counts as large. Dividing it costs some fifteen small requests more.
const PAGES_MIN: u32 = 3;
/// Pages of one shard after which it counts as large.
const SHARD_PAGES_MIN: u32 = 12;
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
    gate: Gate,
}

/// How long what a listing said is shown, of the time that it is believed for: an eighth is left to whoever asks for the
/// attributes of the names that they were just shown.
pub(super) fn shown_for(ttl: Duration) -> Duration {
    ttl * 7 / 8
}

/// Room for pages that are asked for before they are wanted, over the whole mount.
#[derive(Clone)]
pub(super) struct Room {
    /// Shards that may be added.
    shards: Arc<Semaphore>,
    /// The part of the memory that pages may take at most, so that bytes of files have the rest.
    share: Budget,
    memory: Spare,
    /// How long a page is believed.
    ttl: Duration,
}

/// Gives memory that nobody needs more than a guess does.
pub(super) type Spare = Arc<dyn Fn(u64) -> Option<Grant> + Send + Sync>;

/// What pages hold of the mount's memory, and of the part of it that is theirs.
struct Held {
    _share: Grant,
    _memory: Grant,
}

impl Room {
    /// Pages take up to half of `limit_bytes`, out of `memory`.
    pub(super) fn new(shards_max: usize, limit_bytes: u64, memory: Spare, ttl: Duration) -> Self {
        let share = Budget::new(limit_bytes / 2);
        Self { shards: Arc::new(Semaphore::new(shards_max)), share, memory, ttl }
    }

    /// Memory for one page, until it is dropped.
    pub(super) fn for_page(&self) -> Option<impl Sized + use<>> {
        self.for_pages(1)
    }

    fn for_pages(&self, count: usize) -> Option<Held> {
        let bytes = count as u64 * PAGE_BYTES;
        let is_too_much = bytes > self.share.limit_bytes();
        let share = if is_too_much { None } else { self.share.try_take(bytes) }?;
        Some(Held { _share: share, _memory: (self.memory)(bytes)? })
    }

    /// What a shard beside the one being read takes.
    fn for_shard(&self) -> Option<Place> {
        let permit = Arc::clone(&self.shards).try_acquire_owned().ok()?;
        let held = self.for_pages(SHARD_READY_MAX)?;
        Some(Place { _permit: Some(permit), _held: Some(held), ready_max: SHARD_READY_MAX })
    }

    /// What the shard being read takes: where there is no memory, one page ahead.
    fn for_reader(&self) -> Place {
        let held = self.for_pages(READY_MAX);
        let ready_max = if held.is_some() { READY_MAX } else { 1 };
        Place { _permit: None, _held: held, ready_max }
    }
}

/// A share of the room.
struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    _held: Option<Held>,
    ready_max: usize,
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
    /// Some of the keys seen, spread over the first pages.
    sample: Vec<String>,
    /// Pages passed on.
    read: u32,
    made: u64,
    /// When a page was last passed on, and how long the reader takes for one.
    passed_at: Option<Instant>,
    pace: Option<Duration>,
    room: Room,
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
    /// It begins after this.
    start: Option<String>,
    /// It ends with this.
    end: Option<String>,
    /// Pages read of it.
    pages: u32,
    /// Taken out of `ready` already.
    taken: VecDeque<Result<Page>>,
    /// `None` until its turn comes.
    run: Option<Run>,
}

/// A piece that is being listed.
struct Run {
    ready: mpsc::Receiver<Result<Page>>,
    /// Whether it lists what is below directories.
    is_whole: bool,
    /// For the task: the same as the shard's end.
    stop: Arc<Mutex<Option<String>>>,
    task: AbortHandle,
    place: Place,
    /// Of all its requests.
    turn: Turn,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shard {
    fn new(start: Option<String>, end: Option<String>) -> Self {
        Self { start, end, pages: 0, taken: VecDeque::new(), run: None }
    }

    /// Takes what is here out of the channel.
    fn take_ready(&mut self) {
        while let Some(Ok(page)) = self.run.as_mut().map(|run| run.ready.try_recv()) {
            self.taken.push_back(page);
        }
    }
}

impl Asker {
    pub(super) fn new(
        volume: &Volume,
        prefix: &str,
        clock: &Arc<dyn Clock>,
        stats: &Arc<Stats>,
        gate: &Gate,
    ) -> Self {
        Self {
            store: Arc::clone(&volume.store),
            bucket: volume.bucket.clone(),
            prefix: prefix.to_owned(),
            clock: Arc::clone(clock),
            stats: Arc::clone(stats),
            gate: gate.clone(),
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
    fn list(self: &Arc<Self>, request: ListRequest, end: Option<String>, place: Place) -> Run {
        let (sender, ready) = mpsc::channel(place.ready_max);
        let stop = Arc::new(Mutex::new(end));
        let (asker, until) = (Arc::clone(self), Arc::clone(&stop));
        let is_whole = request.delimiter.is_none();
        let mut request = request;
        // A listing that was told where to begin has to go forward from there.
        let mut reached = request.start_after.clone();
        let turn = Turn::default();
        let asking = turn.clone();
        let task = tokio::spawn(async move {
            loop {
                // A place for the answer comes first, so that no more is held than there is room for.
                let Ok(place) = sender.reserve().await else { return };
                let pass = asker.gate.enter(&asking, Priority::Guess).await;
                let asked = asker.clock.now();
                let answer = asker.store.list(request.clone()).await;
                pass.done();
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
                place.send(answer.map(|list| Page { list, asked }));
                if next.is_none() || repeats || is_beyond {
                    return;
                }
                (request.start_after, request.continuation) =
                    if jump.is_some() { (jump, None) } else { (None, next) };
            }
        });
        Run { ready, is_whole, stop, task: task.abort_handle(), place, turn }
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
                let pass = self.gate.enter(&Turn::default(), Priority::Guess).await;
                self.stats.shard_probes.add(1);
                let page = self.store.list(request).await;
                pass.done();
                let first = page?.objects.into_iter().next().map(|object| object.key);
                Ok::<_, Error>(first.filter(|key| key.starts_with(&self.prefix)))
            });
            split.answers(try_join_all(asked).await?);
        }
    }
}

impl Pages {
    /// A listing from the beginning, or after a key.
    pub(super) fn start(asker: Asker, start_after: Option<String>, sharding: Sharding, room: &Room) -> Self {
        let mut pages = Self::new(Arc::new(asker), sharding, room);
        pages.shards.push_back(Shard::new(start_after, None));
        pages.start_first();
        pages
    }

    /// A listing that is here already.
    pub(super) fn here(asker: Asker, page: Page, room: &Room) -> Self {
        Self { here: Some(page), ..Self::new(Arc::new(asker), Sharding::Never, room) }
    }

    fn new(asker: Arc<Asker>, sharding: Sharding, room: &Room) -> Self {
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
            read: 0,
            made: 0,
            passed_at: None,
            pace: None,
            room: room.clone(),
        }
    }

    /// The next page; `None` after the last and after a failure. May be given up at any time.
    pub(super) async fn next(&mut self) -> Option<Result<Page>> {
        if let Some(page) = self.here.take() {
            return Some(Ok(page));
        }
        self.note_pace();
        loop {
            self.wait().await?;
            // From here on nothing waits.
            self.renew_first();
            let first = self.shards.front_mut()?;
            let page = match first.taken.pop_front() {
                None => continue,
                Some(Ok(page)) => page,
                Some(Err(error)) => match self.seam.take() {
                    // Where the shard before it ended, the listing can go on without it.
                    Some(seam) if error.kind() == Kind::Corrupt => return self.mend(seam).map(Ok),
                    _ => {
                        self.shards.clear();
                        return Some(Err(error));
                    }
                },
            };
            first.pages += 1;
            self.read += 1;
            let page = self.fit(page);
            self.start_more();
            if let Some(page) = page {
                self.passed_at = Some(self.asker.clock.now());
                return Some(Ok(page));
            }
        }
    }

    /// Waits for a page of the first shard, or for points to divide it at, whichever is here first. `None` where nothing
    /// is to come.
    async fn wait(&mut self) -> Option<()> {
        let first = self.shards.front_mut()?;
        let ready = &mut first.run.as_mut()?.ready;
        let found = match &mut self.search {
            // A search that failed is one that found nothing.
            Search::Running(search) => tokio::select! {
                biased;
                found = &mut search.0 => Some(found.ok().and_then(Result::ok).unwrap_or_default()),
                page = ready.recv(), if first.taken.is_empty() => {
                    first.taken.push_back(page?);
                    None
                }
                () = std::future::ready(()), if !first.taken.is_empty() => None,
            },
            Search::After(_) => {
                if first.taken.is_empty() {
                    first.taken.push_back(ready.recv().await?);
                }
                None
            }
        };
        if let Some(points) = found {
            let pause = if points.is_empty() { SPLIT_PAUSE_PAGES } else { SHARD_PAGES_MIN };
            self.search = Search::After(first.pages + pause);
            self.divide(points);
        }
        Some(())
    }

    /// The reader is done with a page.
    fn note_pace(&mut self) {
        let Some(passed_at) = self.passed_at.take() else { return };
        let took = self.asker.clock.now().saturating_duration_since(passed_at);
        self.pace = Some(self.pace.map_or(took, |pace| (pace * 3 + took) / 4));
    }

    /// How many shards are listed at once: what they have ready is wanted before it is too old.
    fn running_max(&self) -> usize {
        let pace = self.pace.unwrap_or_default();
        if self.room.ttl.is_zero() || pace.is_zero() {
            return RUNNING_MAX;
        }
        // A little sooner than that, because pages do not come as evenly as that.
        let pages = (shown_for(self.room.ttl) * 5 / 6).as_nanos() / pace.as_nanos();
        let shards = usize::try_from(pages).unwrap_or(usize::MAX) / SHARD_READY_MAX;
        shards.clamp(1, RUNNING_MAX)
    }

    /// Whether a page will be too old to be shown before the reader is done with it.
    fn is_too_old(&self, page: &Page) -> bool {
        let done = self.asker.clock.now() + self.pace.unwrap_or_default();
        !self.room.ttl.is_zero() && done >= page.asked + shown_for(self.room.ttl)
    }

    fn request_of(&self, shard: &Shard) -> ListRequest {
        let is_whole = self.sharding == Sharding::Whole && shard.start.is_some();
        ListRequest { start_after: shard.start.clone(), ..self.asker.request(is_whole) }
    }

    /// The first shard is to be read now: it is listed whatever room there is, and somebody waits for it.
    fn start_first(&mut self) {
        if let Some(first) = self.shards.front().filter(|first| first.run.is_none()) {
            let request = self.request_of(first);
            let run = self.asker.list(request, first.end.clone(), self.room.for_reader());
            if let Some(first) = self.shards.front_mut() {
                first.run = Some(run);
            }
        }
        if let Some(run) = self.shards.front().and_then(|first| first.run.as_ref()) {
            self.asker.gate.wave_through(&run.turn);
        }
    }

    /// Lists the first shard once more from where it was read to, if what waits of it has waited for too long.
    fn renew_first(&mut self) {
        let Some(first) = self.shards.front() else { return };
        let is_ahead = first.run.as_ref().is_some_and(|run| run.place.ready_max > READY_MAX);
        let page = first.taken.front().and_then(|page| page.as_ref().ok());
        if !is_ahead || !page.is_some_and(|page| self.is_too_old(page)) {
            return;
        }
        // In the middle of a directory below, or of what two shards both show, a listing does not begin well.
        let passed = self.passed.clone().filter(|passed| !passed.ends_with('/') && self.seam.is_none());
        let Some(first) = self.shards.front_mut() else { return };
        match passed {
            _ if first.pages == 0 => {}
            Some(passed) => first.start = Some(passed),
            None => return,
        }
        // What it had goes first, so that its room may be used again.
        first.run = None;
        first.taken.clear();
        self.start_first();
    }

    /// Starts the shards whose turn it is, as far as there is room.
    fn start_more(&mut self) {
        for at in 1..self.shards.len().min(self.running_max()) {
            if self.shards[at].run.is_some() {
                continue;
            }
            let Some(place) = self.room.for_shard() else { return };
            let request = self.request_of(&self.shards[at]);
            let end = self.shards[at].end.clone();
            self.shards[at].run = Some(self.asker.list(request, end, place));
        }
    }

    /// Whether shards did not fit together, so the server is not to be relied on for them.
    pub(super) fn is_torn(&self) -> bool {
        self.torn
    }

    /// A page of the first shard in its place among all.
    fn fit(&mut self, page: Page) -> Option<Page> {
        let Page { list, asked } = page;
        let is_whole = self.shards.front()?.run.as_ref()?.is_whole;
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
                self.seam = Some(Page { list: beyond, asked });
                // What was looked for in the one before is of no use in this.
                self.search = Search::After(SHARD_PAGES_MIN);
                self.start_first();
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
        let is_whole = self.shards.front()?.run.as_ref()?.is_whole;
        self.shards.clear();
        let Page { mut list, asked } = seam;
        if let Some(token) = list.next.take() {
            let request = ListRequest { continuation: Some(token), ..self.asker.request(is_whole) };
            let run = self.asker.list(request, None, self.room.for_reader());
            self.shards.push_back(Shard { run: Some(run), ..Shard::new(None, None) });
            self.start_first();
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
        // Whoever reads slowly is served by one page after the other.
        let Search::After(min) = self.search else { return };
        if self.running_max() < 2 {
            return;
        }
        let groups = self.sharding == Sharding::Whole && !list.common_prefixes.is_empty();
        if self.sharding == Sharding::Never || groups || pages < min || self.shards.len() >= SHARDS_MAX {
            return;
        }
        let (Some(reached), Some(first)) = (&self.passed, self.shards.front()) else { return };
        let sample = self.sample.iter().map(String::as_str);
        let split = Split::new(&self.asker.prefix, reached, sample, first.end.clone(), self.read);
        let search = tokio::spawn(Arc::clone(&self.asker).search(split));
        self.search = Search::Running(Searching(search));
    }

    /// Divides the first shard at these strings, as far as it has not come past them.
    fn divide(&mut self, mut points: Vec<String>) {
        let room = SHARDS_KEPT_MAX.saturating_sub(self.shards.len());
        let Some(first) = self.shards.front_mut() else { return };
        first.take_ready();
        let fetched = first.taken.iter().filter_map(|page| last_of(&page.as_ref().ok()?.list));
        let fetched = fetched.chain(self.passed.as_deref()).max().unwrap_or_default().to_owned();
        let end = first.end.clone();
        points.retain(|point| *point > fetched && end.as_ref().is_none_or(|end| point < end));
        points.truncate(room);
        let Some(start) = points.first() else { return };
        self.asker.stats.shards.add(points.len() as u64);
        first.end = Some(start.clone());
        if let Some(run) = &first.run {
            *lock(&run.stop) = Some(start.clone());
        }
        for (i, start) in points.iter().enumerate() {
            let shard_end = points.get(i + 1).cloned().or_else(|| end.clone());
            self.shards.insert(i + 1, Shard::new(Some(start.clone()), shard_end));
        }
        self.start_more();
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
        Asker::new(&volume, prefix, &clock, &Arc::default(), &Gate::new(64, || 0))
    }

    fn room(memory: u64) -> (Room, Budget) {
        let budget = Budget::new(memory);
        let spare = budget.clone();
        let spare: Spare = Arc::new(move |bytes| spare.try_take(bytes));
        (Room::new(32, memory, spare, Duration::from_secs(1)), budget)
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
                let (free, budget) = room(256 << 20);
                let mut pages = Pages::start(asker(&store, prefix), None, sharding, &free);
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
                assert_eq!(free.shards.available_permits(), 32, "every permit comes back");
                assert_eq!(budget.free_bytes(), 256 << 20, "and all memory");
                first
            });
            prop_assert_eq!(found, naive(&keys, prefix));
        }
    }

    #[test]
    fn shards_far_ahead_of_the_reader_wait_and_are_fewer_where_memory_is_short() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let shard = SHARD_READY_MAX as u64 * PAGE_BYTES;
        let reader = READY_MAX as u64 * PAGE_BYTES;
        // The other half is for bytes of files.
        for (memory, shards) in
            [(100 * shard, 2), (2 * (reader + shard), 1), (2 * reader, 0), (PAGE_BYTES, 0)]
        {
            runtime.block_on(async {
                let keys: BTreeSet<String> = (0..400).map(|i| format!("{i:03}")).collect();
                let store = store(&keys, Listing { page_max: Some(2), ..Listing::default() }).await;
                let (free, budget) = room(memory);
                let mut pages = Pages::start(asker(&store, ""), None, Sharding::Grouped, &free);
                pages.next().await.unwrap().unwrap();
                pages.divide(vec!["1".into(), "2".into(), "3".into()]);
                for _ in 0..10_000 {
                    tokio::task::yield_now().await;
                }
                let held = memory.next_multiple_of(4 << 10) - budget.free_bytes();
                assert!(held <= memory / 2 + (4 << 10), "{held} of {memory} bytes");
                let asked = store.calls().iter().filter(|call| **call == "ListObjectsV2").count();
                assert!(asked <= 1 + 2 * READY_MAX + shards * SHARD_READY_MAX, "{asked} pages of 200");
                assert!(asked > shards * SHARD_READY_MAX, "{asked} pages with {shards} shards");
                assert_eq!(all(pages).await.len(), 398);
            });
        }
    }
}
