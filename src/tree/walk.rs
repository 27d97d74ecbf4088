//! Recognises whoever walks through directories in the order of a listing, and says what to list ahead of them. Pure.
//!
//! A walk is recognised by a directory whose first subdirectory is opened after it was listed, or by several
//! subdirectories opened in ascending order. From there on one delimiter-less LIST, from the walker's place to the
//! end of the walk's root, is read page by page, a few pages ahead of the walker and no more, so that what
//! it showed is still fresh when it is used. When the walker stops, so does this; when the walker comes by
//! later, or past where the listing is, it begins anew there.
//!
//! One page after the other is one round trip after the other, and a walker is often faster than that. So where a
//! walk is certain and much is to come, the listing goes on in two lanes: one from where it is, and one from a
//! subdirectory some pages further, which the listing of a directory above has named. A lane ends where the next one
//! begins; what its last page shows beyond that is left to the next.
//!
//! GNU `cp -r` opens subdirectories in the order of their inode numbers, so that the next one is anywhere in the listing. Of
//! such a walk all below one directory is listed, as far as a walk is listed ahead at all, and again when that is old.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::Ino;
use super::VolumeId;
use super::ahead::{Span, after, parent};
use super::numbers::Way;

/// Directories whose children are watched.
const SEEN_MAX: usize = 256;
/// Subdirectories of each that are kept, to begin lanes at.
pub const DIRS_MAX: usize = 64;
/// Walks served at once.
const WALKS_MAX: usize = 4;
/// Subdirectories opened in order before that counts as a walk.
const IN_ORDER_MIN: u32 = 3;
/// Pages beyond the one the walker is in: 8,000 keys, which a fast walker uses up within half a second.
const PAGES_AHEAD_MAX: usize = 8;
/// Directories answered, and how many pages ahead they are worth before a page has been passed. Whoever has opened
/// sixteen directories in order goes on with the seventeenth.
const SHOWN: [(u32, usize); 3] = [(1, 1), (4, 2), (16, 4)];
/// Lanes of one walk.
const LANES_MAX: usize = 2;
/// Pages from one lane's place to the beginning of the next. Each lane costs half a page that two of them show.
const LANE_PAGES: usize = 4;
/// Pages that have to be left for another lane to be worth it.
const LANE_LEFT_MIN: usize = 3;
/// Entries before the first directory, on the way down from the root, that are listed once more rather than begin in
/// the middle: beginning at the beginning is what every server can do.
const BEFORE_MAX: usize = 200;
/// Directories let pass before another try, after tries that were of no use.
const PAUSE_MAX: u32 = 64;

/// The next page to ask for: of a listing of `prefix` without a delimiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub volume: VolumeId,
    pub prefix: String,
    pub start_after: Option<String>,
    pub continuation: Option<String>,
    /// Number of the question, to tell questions apart.
    pub serial: u64,
    walk: u64,
    from: String,
}

impl Ask {
    /// What an answer whose last key is `last` says something of; `None` for the last page.
    pub fn span(&self, last: Option<&str>) -> Span {
        let end = last.map_or_else(|| Span::of_prefix(&self.prefix).end, |last| Some(after(last)));
        Span { start: self.from.clone(), end }
    }
}

/// How far the listing of a directory is known that is being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Nothing,
    All,
    /// All of it, but more than half the time that is believed has passed.
    OldAlready,
}

/// What the directories opened so far have in common.
#[derive(Debug)]
pub struct Walks {
    seen: LruCache<(VolumeId, String), Seen>,
    walks: Vec<Walk>,
    made: u64,
    asked: u64,
}

/// A directory that was opened, and how its subdirectories were since.
#[derive(Debug, Default)]
struct Seen {
    /// Some of its subdirectories, evenly spread and in order, the first among them.
    dirs: Vec<String>,
    /// Entries before the first directory.
    before: usize,
    last: Option<String>,
    in_order: u32,
    /// The same by their numbers.
    last_number: Option<Ino>,
    by_number: u32,
}

#[derive(Debug)]
struct Walk {
    id: u64,
    volume: VolumeId,
    way: Way,
    root: String,
    /// The directory opened last.
    position: String,
    /// In order and without gaps, from where the walker is to the end of the root. Never empty.
    lanes: Vec<Lane>,
    ahead: usize,
    /// Directories answered since the listing began.
    hits: u32,
    pause: u32,
    let_pass: u32,
    used: u64,
}

/// A part of a walk's listing, which is read from its beginning to its end.
#[derive(Debug)]
struct Lane {
    start: String,
    /// Where the next lane begins; `None` for the last.
    end: Option<String>,
    /// How far it has come, by how many pages.
    reached: String,
    answered: usize,
    /// Where the pages end that the walker has not passed, in order.
    pages: Vec<Option<String>>,
    next: Next,
    asking: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    From(Option<String>),
    Token(String),
    End,
}

impl Default for Walks {
    fn default() -> Self {
        let seen = LruCache::new(NonZeroUsize::new(SEEN_MAX).unwrap_or(NonZeroUsize::MIN));
        Self { seen, walks: Vec::new(), made: 0, asked: 0 }
    }
}

impl Walks {
    /// A directory was listed to its end: some of its subdirectories in order, the first among them, and how many
    /// entries came before that.
    pub fn listed(&mut self, volume: VolumeId, dir: &str, dirs: Vec<String>, before: usize) {
        debug_assert!(dirs.len() <= DIRS_MAX, "{} directories are kept of one", dirs.len());
        let seen = self.seen.get_or_insert_mut((volume, dir.to_owned()), Seen::default);
        (seen.dirs, seen.before) = (dirs, before);
    }

    /// A directory is being opened, and how far its listing is known here. Returns what to ask for now.
    /// `may_begin` says whether a listing may begin in the middle, at this directory.
    pub fn opened(
        &mut self,
        volume: VolumeId,
        dir: &str,
        number: Ino,
        known: Known,
        may_begin: bool,
    ) -> Vec<Ask> {
        self.seen.get_or_insert_mut((volume, dir.to_owned()), Seen::default);
        let way = self.way_of(volume, dir, number);
        self.made += 1;
        let used = self.made;
        let Some(at) = self.walk_of(volume, dir) else {
            let Some(way) = way.filter(|_| known == Known::Nothing) else { return Vec::new() };
            return match self.start_of(volume, dir, way, may_begin) {
                Some((root, lane)) => self.begin(volume, dir, way, root, lane),
                None => Vec::new(),
            };
        };
        let walk = &mut self.walks[at];
        walk.used = used;
        let by_number = walk.way == Way::Numbers;
        if known != Known::Nothing {
            walk.advance(dir);
            if by_number && known == Known::OldAlready && walk.lanes.iter().all(Lane::is_read) {
                // Once more, before anybody has to wait.
                let lane = Lane::new(walk.root.clone(), None);
                walk.restart(dir, lane);
            }
            return self.ask(at);
        }
        let is_behind = !by_number && dir < walk.position.as_str();
        if walk.lane_of(dir).asking.is_some() || is_behind && way.is_none() {
            return Vec::new();
        }
        if by_number && way != Some(Way::Keys) && !walk.lanes.iter().all(Lane::is_read) {
            // Further on than the listing, or further than it goes.
            return self.ask(at);
        }
        if walk.lane_of(dir).is_within(dir) && way.is_none() {
            // Cut by the end of a page, and the walker is too slow for the next to have been asked for.
            return self.ask(at);
        }
        let Some(way) = way.or((!by_number).then_some(Way::Keys)) else { return Vec::new() };
        if walk.let_pass > 0 {
            walk.let_pass -= 1;
            return Vec::new();
        }
        walk.pause = if walk.hits == 0 { (walk.pause * 2 + 1).min(PAUSE_MAX) } else { 0 };
        walk.let_pass = walk.pause;
        let Some((root, lane)) = self.start_of(volume, dir, way, may_begin) else { return Vec::new() };
        let walk = &mut self.walks[at];
        (walk.root, walk.way) = (root, way);
        walk.restart(dir, lane);
        self.ask(at)
    }

    /// A directory was answered from what was listed ahead, after its opener waited for that.
    pub fn served(&mut self, volume: VolumeId, dir: &str) -> Vec<Ask> {
        let Some(at) = self.walk_of(volume, dir) else { return Vec::new() };
        self.walks[at].advance(dir);
        self.ask(at)
    }

    /// The question whose answer may tell of a directory, if one is on its way.
    pub fn coming(&self, volume: VolumeId, dir: &str) -> Option<u64> {
        let walk = &self.walks[self.walk_of(volume, dir)?];
        // A walk that has not served anybody is a guess, and nobody waits for a guess that began with them.
        (walk.position != dir || walk.hits > 0).then_some(walk.lane_of(dir).asking).flatten()
    }

    /// An answer came: where it ends, and the token of the next. Returns what to ask for next.
    pub fn answered(&mut self, ask: &Ask, last: Option<&str>, token: Option<String>) -> Vec<Ask> {
        let Some(at) = self.walks.iter().position(|walk| walk.id == ask.walk) else { return Vec::new() };
        let walk = &mut self.walks[at];
        let Some(lane) = walk.lanes.iter_mut().find(|lane| lane.asking == Some(ask.serial)) else {
            return Vec::new();
        };
        lane.asking = None;
        let end = lane.cut(ask.span(last)).end;
        let is_done = end.is_none() || end == lane.end || lane.next == Next::End;
        lane.next = token.filter(|_| !is_done).map_or(Next::End, Next::Token);
        lane.answered += 1;
        if let Some(end) = &end {
            lane.reached.clone_from(end);
        }
        lane.pages.push(end);
        let position = walk.position.clone();
        walk.pass(&position);
        self.ask(at)
    }

    /// The part of an answer whose last key is `last` that is not another lane's. `None` where nobody waits for it any
    /// more: what it says may have been told by a later one.
    pub fn taken_of(&self, ask: &Ask, last: Option<&str>) -> Option<Span> {
        let walk = self.walks.iter().find(|walk| walk.id == ask.walk)?;
        let lane = walk.lanes.iter().find(|lane| lane.asking == Some(ask.serial))?;
        Some(lane.cut(ask.span(last)))
    }

    /// The question has ended. If no answer came, so has the walk.
    pub fn ended(&mut self, ask: &Ask) {
        let is_asked = |lane: &Lane| lane.asking == Some(ask.serial);
        self.walks.retain(|walk| !walk.lanes.iter().any(is_asked));
    }

    /// Walks of this volume are not to be served any more.
    pub fn forget_volume(&mut self, volume: VolumeId) {
        self.walks.retain(|walk| walk.volume != volume);
    }

    /// The walk that a directory is in: the one with the nearest root.
    fn walk_of(&self, volume: VolumeId, dir: &str) -> Option<usize> {
        let here = |at: &usize| self.walks[*at].volume == volume && self.walks[*at].holds(dir);
        (0..self.walks.len()).filter(here).max_by_key(|at| self.walks[*at].root.len())
    }

    /// Notes that a subdirectory is opened; tells which way a walk goes, if that is one's.
    fn way_of(&mut self, volume: VolumeId, dir: &str, number: Ino) -> Option<Way> {
        let above = parent(dir)?;
        let seen = self.seen.get_mut(&(volume, above.to_owned()))?;
        let ascending = seen.last.as_deref().is_none_or(|last| last < dir);
        seen.in_order = if ascending { seen.in_order + 1 } else { 1 };
        seen.last = Some(dir.to_owned());
        let ascending = seen.last_number.is_none_or(|last| last < number);
        seen.by_number = if ascending { seen.by_number + 1 } else { 1 };
        seen.last_number = Some(number);
        if seen.by_number >= IN_ORDER_MIN && seen.by_number > seen.in_order {
            return Some(Way::Numbers);
        }
        let is_first = seen.dirs.first().is_some_and(|first| first == dir);
        (seen.in_order >= IN_ORDER_MIN || is_first).then_some(Way::Keys)
    }

    fn begin(&mut self, volume: VolumeId, dir: &str, way: Way, root: String, lane: Lane) -> Vec<Ask> {
        if self.walks.len() >= WALKS_MAX
            && let Some(oldest) = (0..self.walks.len()).min_by_key(|at| self.walks[*at].used)
        {
            self.walks.swap_remove(oldest);
        }
        self.made += 1;
        self.walks.push(Walk {
            id: self.made,
            volume,
            way,
            root,
            position: dir.to_owned(),
            lanes: vec![lane],
            ahead: ahead_at_first(way),
            hits: 0,
            pause: 0,
            let_pass: 0,
            used: self.made,
        });
        self.ask(self.walks.len() - 1)
    }

    /// The root of the walk that has come to `dir`, and where its listing begins.
    fn start_of(&mut self, volume: VolumeId, dir: &str, way: Way, may_begin: bool) -> Option<(String, Lane)> {
        let mut root = parent(dir)?.to_owned();
        if way == Way::Numbers {
            let lane = Lane::new(root.clone(), None);
            return Some((root, lane));
        }
        let mut child = dir.to_owned();
        let mut before = Some(0);
        loop {
            let seen = self.seen.peek(&(volume, root.clone()))?;
            before = before
                .filter(|_| seen.dirs.first() == Some(&child))
                .map(|before| before + seen.before)
                .filter(|before| *before <= BEFORE_MAX);
            let above = parent(&root).map(str::to_owned);
            let walked = above.as_ref().and_then(|above| self.seen.peek(&(volume, above.clone())));
            match (above, walked) {
                (Some(above), Some(seen)) if seen.last.as_ref() == Some(&root) => {
                    child = std::mem::replace(&mut root, above);
                }
                _ => break,
            }
        }
        if before.is_some() {
            let lane = Lane::new(root.clone(), None);
            return Some((root, lane));
        }
        may_begin.then(|| (root, Lane::at(dir)))
    }

    /// The next questions of a walk, as far as it is time for them.
    fn ask(&mut self, at: usize) -> Vec<Ask> {
        let lane = self.lane_further_on(&self.walks[at]);
        let Some(walk) = self.walks.get_mut(at) else { return Vec::new() };
        if let Some(lane) = lane {
            if let Some(last) = walk.lanes.last_mut() {
                last.end = Some(lane.start.clone());
            }
            walk.lanes.push(lane);
        }
        let mut asks = Vec::new();
        let first = walk.lanes.iter().position(|lane| lane.next != Next::End);
        for number in 0..walk.lanes.len() {
            let under_way: usize = walk.lanes.iter().map(Lane::under_way).sum();
            let lane = &mut walk.lanes[number];
            // The lane that the walker is in never waits for those further on.
            let is_next = first == Some(number) && lane.pages.len() <= walk.ahead.min(1);
            if lane.asking.is_some() || (under_way > walk.ahead && !is_next) {
                continue;
            }
            let (start_after, continuation) = match &lane.next {
                Next::From(start_after) => (start_after.clone(), None),
                Next::Token(token) => (None, Some(token.clone())),
                Next::End => continue,
            };
            self.asked += 1;
            lane.asking = Some(self.asked);
            asks.push(Ask {
                volume: walk.volume,
                prefix: walk.root.clone(),
                start_after,
                continuation,
                serial: self.asked,
                walk: walk.id,
                from: lane.reached.clone(),
            });
        }
        asks
    }

    /// Another lane, where it is worth it. How many pages are left is told by how many subdirectories a page has held
    /// so far, of that directory above the walker where it makes most.
    fn lane_further_on(&self, walk: &Walk) -> Option<Lane> {
        let last = walk.lanes.last()?;
        let is_certain =
            walk.ahead >= LANES_MAX && last.answered > 0 && last.next != Next::End && walk.way == Way::Keys;
        if !is_certain || walk.lanes.len() >= LANES_MAX {
            return None;
        }
        let mut most: Option<(usize, &str)> = None;
        let mut dir = walk.position.as_str();
        while let Some(above) = parent(dir).filter(|above| above.starts_with(&walk.root)) {
            dir = above;
            let Some(seen) = self.seen.peek(&(walk.volume, dir.to_owned())) else { continue };
            let from = seen.dirs.partition_point(|dir| *dir < last.start);
            let to = seen.dirs.partition_point(|dir| *dir < last.reached);
            let (passed, to_come) = (to - from, &seen.dirs[to..]);
            let Some(pages) = (to_come.len() * last.answered).checked_div(passed) else { continue };
            let further = (LANE_PAGES * passed / last.answered).min(to_come.len() / 2);
            if pages >= LANE_LEFT_MIN
                && most.is_none_or(|(most, _)| most < pages)
                && let Some(dir) = to_come.get(further)
            {
                most = Some((pages, dir));
            }
        }
        let lane = Lane::at(most?.1);
        (lane.start > last.reached).then_some(lane)
    }
}

/// Pages that a walk is worth before it has come by.
fn ahead_at_first(way: Way) -> usize {
    match way {
        Way::Keys => 0,
        // The next directory may be in any of them.
        Way::Numbers => SHOWN[SHOWN.len() - 1].1,
    }
}

impl Walk {
    /// The walker was served at `dir`.
    fn advance(&mut self, dir: &str) {
        self.hits += 1;
        if let Some((_, ahead)) = SHOWN.iter().rev().find(|(hits, _)| self.hits >= *hits) {
            self.ahead = self.ahead.max(*ahead);
        }
        if self.way == Way::Numbers || dir < self.position.as_str() {
            return;
        }
        dir.clone_into(&mut self.position);
        let pages = |walk: &Self| walk.lanes.iter().map(|lane| lane.pages.len()).sum::<usize>();
        let before = pages(self);
        self.pass(dir);
        if pages(self) < before {
            self.ahead = (self.ahead * 2).min(PAGES_AHEAD_MAX);
        }
    }

    fn holds(&self, dir: &str) -> bool {
        dir.len() > self.root.len() && dir.starts_with(&self.root)
    }

    /// Lets go of pages, and of lanes, that the walker has come past.
    fn pass(&mut self, dir: &str) {
        if self.way == Way::Numbers {
            return;
        }
        for lane in &mut self.lanes {
            lane.pages.retain(|end| end.as_ref().is_none_or(|end| dir < end.as_str()));
            if lane.end.as_ref().is_some_and(|end| end.as_str() <= dir) {
                lane.next = Next::End;
            }
        }
        // One that is being asked for counts as a lane until its answer is here, so there are never more questions.
        while self.lanes.len() > 1 && self.lanes[0].is_used_up() {
            self.lanes.remove(0);
        }
    }

    /// The lane that a directory's keys are in.
    fn lane_of(&self, dir: &str) -> &Lane {
        let after = self.lanes.partition_point(|lane| lane.start.as_str() <= dir);
        &self.lanes[after.saturating_sub(1)]
    }

    fn restart(&mut self, dir: &str, lane: Lane) {
        dir.clone_into(&mut self.position);
        self.lanes = vec![lane];
        self.ahead = ahead_at_first(self.way);
        self.hits = 0;
    }
}

impl Lane {
    fn new(start: String, start_after: Option<String>) -> Self {
        Self {
            reached: start.clone(),
            start,
            end: None,
            answered: 0,
            pages: Vec::new(),
            next: Next::From(start_after),
            asking: None,
        }
    }

    /// One that begins with a directory, and with what has its place between an object of that name and it.
    fn at(dir: &str) -> Self {
        let start_after = dir.trim_end_matches('/').to_owned();
        Self::new(after(&start_after), Some(start_after))
    }

    /// What of a span is not the next lane's, which may have begun since it was asked for.
    fn cut(&self, span: Span) -> Span {
        let end = match (span.end, &self.end) {
            (Some(end), Some(lane)) => Some(end.min(lane.clone())),
            (end, lane) => end.or_else(|| lane.clone()),
        };
        Span { end, ..span }
    }

    /// Whether its end has come.
    fn is_read(&self) -> bool {
        self.next == Next::End && self.asking.is_none()
    }

    fn under_way(&self) -> usize {
        self.pages.len() + usize::from(self.asking.is_some())
    }

    fn is_used_up(&self) -> bool {
        self.next == Next::End && self.pages.is_empty() && self.asking.is_none()
    }

    /// Whether the listing has come to `dir` and has not gone past its end.
    fn is_within(&self, dir: &str) -> bool {
        match self.pages.last() {
            Some(Some(end)) => Span::of_prefix(dir).contains(end),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ROOT;
    use super::super::keys::DirKey;
    use super::super::numbers::steps;
    use super::*;

    const VOLUME: VolumeId = VolumeId(0);

    fn number(dir: &str) -> Ino {
        let steps = steps(ROOT, &DirKey::root(""), &format!("{dir}x")).unwrap();
        steps.len().checked_sub(2).map_or(ROOT, |last| Ino(steps[last]))
    }

    fn known_if(known: bool) -> Known {
        if known { Known::All } else { Known::Nothing }
    }

    #[test]
    fn a_walk_by_inode_numbers_has_all_below_its_directory_listed_and_again_when_that_is_old() {
        let mut walks = Walks::default();
        let mut dirs: Vec<String> = (0..40).map(|n| format!("q/{n:02}/")).collect();
        walks.opened(VOLUME, "q/", number("q/"), Known::Nothing, true);
        walks.listed(VOLUME, "q/", dirs.clone(), 0);
        dirs.sort_by_key(|dir| number(dir));
        assert!(dirs[0] != "q/00/" && !dirs[..3].is_sorted(), "the third shows it");
        assert_eq!(walks.opened(VOLUME, &dirs[0], number(&dirs[0]), Known::Nothing, true), []);
        assert_eq!(walks.opened(VOLUME, &dirs[1], number(&dirs[1]), Known::Nothing, true), []);
        let mut asks = walks.opened(VOLUME, &dirs[2], number(&dirs[2]), Known::Nothing, true);
        assert_eq!(
            (asks[0].prefix.as_str(), &asks[0].start_after, &asks[0].continuation),
            ("q/", &None, &None)
        );
        let mut pages = 0;
        for dir in &dirs[3..29] {
            // Two pages have all of them.
            while let Some(ask) = asks.pop() {
                pages += 1;
                let (last, token) =
                    if pages == 1 { ("q/20/9", Some("token".into())) } else { ("q/39/9", None) };
                asks.extend(walks.answered(&ask, Some(last).filter(|_| token.is_some()), token));
            }
            let known = dir.as_str() < "q/20/" || pages == 2;
            asks.extend(walks.opened(VOLUME, dir, number(dir), known_if(known), true));
        }
        assert_eq!((pages, asks.len()), (2, 0), "and no more");
        let again = walks.opened(VOLUME, &dirs[29], number(&dirs[29]), Known::OldAlready, true);
        assert_eq!((again.len(), again[0].start_after.as_ref()), (1, None), "before anybody has to wait");
        assert_eq!(walks.answered(&again[0], None, None), []);
        let again = walks.opened(VOLUME, &dirs[30], number(&dirs[30]), Known::Nothing, true).pop().unwrap();
        assert_eq!((again.prefix.as_str(), &again.start_after, &again.continuation), ("q/", &None, &None));
    }

    #[test]
    fn a_walk_by_inode_numbers_through_more_than_is_listed_ahead_asks_for_it_once() {
        let mut walks = Walks::default();
        let mut dirs: Vec<String> = (0..1000).map(|n| format!("q/{n:03}/")).collect();
        walks.opened(VOLUME, "q/", number("q/"), Known::Nothing, true);
        walks.listed(VOLUME, "q/", vec!["q/000/".into()], 0);
        dirs.sort_by_key(|dir| number(dir));
        let (mut asks, mut pages) = (Vec::new(), 0);
        for dir in &dirs {
            // Each page has ten directories.
            let known = dir.as_str() < format!("q/{:03}/", pages * 10).as_str();
            asks.extend(walks.opened(VOLUME, dir, number(dir), known_if(known), true));
            while let Some(ask) = asks.pop() {
                pages += 1;
                let last = format!("q/{:03}/9", pages * 10 - 1);
                asks.extend(walks.answered(&ask, Some(&last), Some(pages.to_string())));
            }
        }
        assert!((1..=PAGES_AHEAD_MAX + 1).contains(&pages), "{pages}");
        // And is in nobody's way who goes by names there later.
        let by_name = (500..510).map(|n| format!("q/{n:03}/"));
        let asks: Vec<Ask> =
            by_name.flat_map(|dir| walks.opened(VOLUME, &dir, number(&dir), Known::Nothing, true)).collect();
        assert!(asks.first().is_some_and(|ask| ask.start_after.as_deref() >= Some("q/50")), "{asks:?}");
    }

    #[test]
    fn a_walk_is_recognised_by_its_first_step_and_listed_from_the_beginning() {
        let mut walks = Walks::default();
        assert!(walks.opened(VOLUME, "", number(""), Known::Nothing, true).is_empty());
        walks.listed(VOLUME, "", vec!["a/".into()], 3);
        let ask = walks.opened(VOLUME, "a/", number("a/"), Known::Nothing, true).pop().unwrap();
        assert_eq!((ask.prefix.as_str(), &ask.start_after, &ask.continuation), ("", &None, &None));
        assert_eq!(walks.coming(VOLUME, "a/"), None, "nobody waits for a guess");
        assert_eq!(walks.coming(VOLUME, "a/b/"), Some(ask.serial));
        // The walk has not come by yet: one page will do.
        assert_eq!(walks.answered(&ask, Some("c/9"), Some("token".into())), []);
        let next = walks.opened(VOLUME, "a/b/", number("a/b/"), Known::All, true).pop().unwrap();
        assert_eq!(next.continuation.as_deref(), Some("token"));
        assert_eq!(next.span(Some("d/1")), Span { start: after("c/9"), end: Some(after("d/1")) });
    }

    #[test]
    fn a_walk_in_the_middle_begins_there_if_a_listing_may() {
        for may_begin in [true, false] {
            let mut walks = Walks::default();
            walks.opened(VOLUME, "p/", number("p/"), Known::Nothing, true);
            walks.listed(VOLUME, "p/", vec!["p/a/".into()], 0);
            assert_eq!(walks.opened(VOLUME, "p/k/", number("p/k/"), Known::Nothing, may_begin), []);
            assert_eq!(walks.opened(VOLUME, "p/m/", number("p/m/"), Known::Nothing, may_begin), []);
            let ask = walks.opened(VOLUME, "p/o/", number("p/o/"), Known::Nothing, may_begin).pop();
            assert_eq!(ask.is_some(), may_begin);
            if let Some(ask) = ask {
                assert_eq!((ask.prefix.as_str(), ask.start_after.as_deref()), ("p/", Some("p/o")));
            }
        }
    }

    #[test]
    fn no_more_than_a_few_pages_are_listed_ahead_and_directories_at_random_are_no_walk() {
        let mut walks = Walks::default();
        walks.opened(VOLUME, "", number(""), Known::Nothing, true);
        walks.listed(VOLUME, "", vec!["000/".into()], 0);
        let mut asks = walks.opened(VOLUME, "000/", number("000/"), Known::Nothing, true);
        let (mut pages, mut most) = (0, 0);
        for dir in 1..900 {
            // Each page has ten directories.
            while let Some(asked) = asks.pop() {
                pages += 1;
                let last = format!("{:03}/z", pages * 10 - 1);
                asks = walks.answered(&asked, Some(&last), Some(pages.to_string()));
            }
            let name = format!("{dir:03}/");
            asks = walks.opened(VOLUME, &name, number(&name), known_if(dir < pages * 10), true);
            most = most.max(pages - dir / 10);
        }
        assert!(most <= PAGES_AHEAD_MAX + 1, "{most} pages ahead");
        let mut walks = Walks::default();
        walks.opened(VOLUME, "", number(""), Known::Nothing, true);
        walks.listed(VOLUME, "", vec!["000/".into()], 0);
        for dir in [500, 300, 700, 200, 600, 100] {
            assert_eq!(
                walks.opened(VOLUME, &format!("{dir}/"), number(&format!("{dir}/")), Known::Nothing, true),
                []
            );
        }
    }

    /// A walker through `count` directories of ten keys, on a server whose pages have a hundred. Answers come in
    /// rounds: all that was asked for at once is answered at once. Returns the rounds, the pages, and the most of them
    /// that the walker had not come to.
    fn walk_through(count: usize, names_known: bool) -> (usize, usize, usize) {
        let name = |dir: usize| format!("{dir:05}/");
        let mut walks = Walks::default();
        walks.opened(VOLUME, "", number(""), Known::Nothing, true);
        let every = if names_known { count.div_ceil(DIRS_MAX) } else { count };
        walks.listed(VOLUME, "", (0..count).step_by(every).map(name).collect(), 0);
        let mut asks = walks.opened(VOLUME, &name(0), number(&name(0)), Known::Nothing, true);
        let mut known = vec![false; count];
        let (mut at, mut rounds, mut pages, mut most) = (0, 0, 0, 0);
        while at < count {
            rounds += 1;
            assert!(!asks.is_empty(), "nothing is on its way at {at}");
            assert!(asks.len() <= LANES_MAX);
            let mut next = Vec::new();
            for ask in asks {
                pages += 1;
                // A token is the number of the directory that the page begins with.
                let from = match (&ask.continuation, &ask.start_after) {
                    (Some(token), _) => token.parse().unwrap(),
                    (_, Some(dir)) => dir.parse().unwrap(),
                    _ => 0,
                };
                let to = count.min(from + 10);
                let last = (to < count).then(|| format!("{}9", name(to - 1)));
                // The walker may be past all that the rest of a lane could tell.
                let span = walks.taken_of(&ask, last.as_deref());
                for (dir, known) in known.iter_mut().enumerate().take(to).skip(from) {
                    let key = format!("{}9", name(dir));
                    let is_taken = span.as_ref().is_some_and(|span| span.contains(&key));
                    assert!(!(is_taken && *known), "{dir} is taken twice");
                    *known |= is_taken;
                }
                next.extend(walks.answered(&ask, last.as_deref(), last.as_ref().map(|_| to.to_string())));
            }
            most = most.max(known.iter().skip(at).filter(|known| **known).count().div_ceil(10));
            while at < count && known[at] {
                next.extend(walks.opened(VOLUME, &name(at), number(&name(at)), Known::All, true));
                at += 1;
            }
            asks = next;
        }
        (rounds, pages, most)
    }

    #[test]
    fn a_walk_that_is_certain_is_listed_in_two_lanes() {
        for count in [100, 500, 1_000] {
            let (rounds, pages, most) = walk_through(count, true);
            let full = count / 10;
            println!("{full} pages: {rounds} rounds, {pages} asked, {most} ahead");
            assert!(rounds <= full * 2 / 3 + 1, "{rounds} rounds for {full} pages");
            assert!(pages <= full + full / 4 + 2, "{pages} asked for {full}");
            assert!(most <= PAGES_AHEAD_MAX + 2, "{most} pages ahead");
        }
        // Nothing is known of what lies ahead: one page after the other.
        let (rounds, pages, _) = walk_through(1_000, false);
        assert_eq!((rounds, pages), (100, 100));
        // A few pages are not worth it.
        assert_eq!(walk_through(30, true).1, 3);
    }
}
