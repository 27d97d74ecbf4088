//! Recognises whoever walks through directories in the order of a listing, and says what to list ahead of them. Pure.
//!
//! A walk is recognised by a directory whose first subdirectory is opened after it was listed, or by several
//! subdirectories opened in ascending order. From there on one delimiter-less LIST, from the walker's place to the
//! end of the walk's root, is read page by page, a few pages ahead of the walker and no more, so that what
//! it showed is still fresh when it is used. When the walker stops, so does this; when the walker comes by
//! later, or past where the listing is, it begins anew there.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::VolumeId;
use super::ahead::{Span, after, parent};

/// Directories whose children are watched.
const SEEN_MAX: usize = 256;
/// Walks served at once.
const WALKS_MAX: usize = 4;
/// Subdirectories opened in order before that counts as a walk.
const IN_ORDER_MIN: u32 = 3;
/// Pages beyond the one the walker is in: 6,000 keys, which a fast walker uses up within half a second.
const PAGES_AHEAD_MAX: usize = 6;
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
    /// What an answer whose last key is `last` covers; `None` for the last page.
    pub fn span(&self, last: Option<&str>) -> Span {
        match last {
            Some(last) => Span { start: self.from.clone(), end: Some(after(last)) },
            None => Span { start: self.from.clone(), end: Span::of_prefix(&self.prefix).end },
        }
    }
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
    first_dir: Option<String>,
    /// Entries before the first directory.
    before: usize,
    last: Option<String>,
    in_order: u32,
}

#[derive(Debug)]
struct Walk {
    id: u64,
    volume: VolumeId,
    root: String,
    /// The directory opened last.
    position: String,
    /// Where the pages end that the walker has not passed, in order.
    pages: Vec<Option<String>>,
    next: Next,
    asking: Option<u64>,
    ahead: usize,
    /// Directories answered since the listing began.
    hits: u32,
    pause: u32,
    let_pass: u32,
    used: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    From { key: String, start_after: Option<String> },
    Token { key: String, token: String },
    End,
}

impl Default for Walks {
    fn default() -> Self {
        let seen = LruCache::new(NonZeroUsize::new(SEEN_MAX).unwrap_or(NonZeroUsize::MIN));
        Self { seen, walks: Vec::new(), made: 0, asked: 0 }
    }
}

impl Walks {
    /// A directory was listed to its end: its first subdirectory, and how many entries came before that.
    pub fn listed(&mut self, volume: VolumeId, dir: &str, first_dir: Option<String>, before: usize) {
        let seen = self.seen.get_or_insert_mut((volume, dir.to_owned()), Seen::default);
        (seen.first_dir, seen.before) = (first_dir, before);
    }

    /// A directory is being opened, and its listing is `known` here or not. Returns what to ask for now.
    /// `may_begin` says whether a listing may begin in the middle, at this directory.
    pub fn opened(&mut self, volume: VolumeId, dir: &str, known: bool, may_begin: bool) -> Option<Ask> {
        self.seen.get_or_insert_mut((volume, dir.to_owned()), Seen::default);
        let recognised = self.is_in_order(volume, dir);
        self.made += 1;
        let used = self.made;
        let of_walk = |walk: &&mut Walk| walk.volume == volume && walk.holds(dir);
        let walk = self.walks.iter_mut().filter(of_walk).max_by_key(|walk| walk.root.len());
        let Some(walk) = walk else {
            return if recognised && !known { self.begin(volume, dir, may_begin) } else { None };
        };
        walk.used = used;
        if known {
            walk.advance(dir);
            return self.ask(volume, dir);
        }
        if walk.asking.is_some() || dir < walk.position.as_str() && !recognised {
            return None;
        }
        if walk.is_within(dir) && !recognised {
            // Cut by the end of a page, and the walker is too slow for the next to have been asked for.
            return self.ask(volume, dir);
        }
        if walk.let_pass > 0 {
            walk.let_pass -= 1;
            return None;
        }
        walk.pause = if walk.hits == 0 { (walk.pause * 2 + 1).min(PAUSE_MAX) } else { 0 };
        walk.let_pass = walk.pause;
        let start = self.start_of(volume, dir, may_begin)?;
        let (root, next) = start;
        let walk = self.walks.iter_mut().filter(of_walk).max_by_key(|walk| walk.root.len())?;
        walk.root = root;
        walk.restart(dir, next);
        self.ask(volume, dir)
    }

    /// A directory was answered from what was listed ahead, after its opener waited for that.
    pub fn served(&mut self, volume: VolumeId, dir: &str) -> Option<Ask> {
        let of_walk = |walk: &&mut Walk| walk.volume == volume && walk.holds(dir);
        self.walks.iter_mut().filter(of_walk).max_by_key(|walk| walk.root.len())?.advance(dir);
        self.ask(volume, dir)
    }

    /// The question whose answer may tell of a directory, if one is on its way.
    pub fn coming(&self, volume: VolumeId, dir: &str) -> Option<u64> {
        let walk = self.walks.iter().filter(|walk| walk.volume == volume && walk.holds(dir));
        let walk = walk.max_by_key(|walk| walk.root.len())?;
        // A walk that has not served anybody is a guess, and nobody waits for a guess that began with them.
        (walk.position != dir || walk.hits > 0).then_some(walk.asking).flatten()
    }

    /// An answer came: where it ends, and the token of the next. Returns what to ask for next.
    pub fn answered(&mut self, ask: &Ask, last: Option<&str>, token: Option<String>) -> Option<Ask> {
        let walk = self.walks.iter_mut().find(|walk| walk.id == ask.walk)?;
        if walk.asking != Some(ask.serial) {
            return None;
        }
        walk.asking = None;
        let end = ask.span(last).end;
        walk.next = match (token, &end) {
            (Some(token), Some(end)) => Next::Token { key: end.clone(), token },
            _ => Next::End,
        };
        walk.pages.push(end);
        let position = walk.position.clone();
        walk.pass(&position);
        let (volume, position) = (walk.volume, position);
        self.ask(volume, &position)
    }

    /// The question has ended. If no answer came, so has the walk.
    pub fn ended(&mut self, ask: &Ask) {
        self.walks.retain(|walk| walk.asking != Some(ask.serial));
    }

    /// Walks of this volume are not to be served any more.
    pub fn forget_volume(&mut self, volume: VolumeId) {
        self.walks.retain(|walk| walk.volume != volume);
    }

    /// Notes that a subdirectory is opened; tells whether that is the way of a walk.
    fn is_in_order(&mut self, volume: VolumeId, dir: &str) -> bool {
        let Some(above) = parent(dir) else { return false };
        let Some(seen) = self.seen.get_mut(&(volume, above.to_owned())) else { return false };
        let ascending = seen.last.as_deref().is_none_or(|last| last < dir);
        seen.in_order = if ascending { seen.in_order + 1 } else { 1 };
        seen.last = Some(dir.to_owned());
        seen.in_order >= IN_ORDER_MIN || seen.first_dir.as_deref() == Some(dir)
    }

    fn begin(&mut self, volume: VolumeId, dir: &str, may_begin: bool) -> Option<Ask> {
        let (root, next) = self.start_of(volume, dir, may_begin)?;
        if self.walks.len() >= WALKS_MAX {
            let oldest = (0..self.walks.len()).min_by_key(|i| self.walks[*i].used)?;
            self.walks.swap_remove(oldest);
        }
        self.made += 1;
        self.walks.push(Walk {
            id: self.made,
            volume,
            root,
            position: dir.to_owned(),
            pages: Vec::new(),
            next,
            asking: None,
            ahead: 0,
            hits: 0,
            pause: 0,
            let_pass: 0,
            used: self.made,
        });
        self.ask(volume, dir)
    }

    /// The root of the walk that has come to `dir`, and where its listing begins.
    fn start_of(&mut self, volume: VolumeId, dir: &str, may_begin: bool) -> Option<(String, Next)> {
        let mut root = parent(dir)?.to_owned();
        let mut child = dir.to_owned();
        let mut before = Some(0);
        loop {
            let seen = self.seen.peek(&(volume, root.clone()))?;
            before = before
                .filter(|_| seen.first_dir.as_ref() == Some(&child))
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
            let next = Next::From { key: root.clone(), start_after: None };
            return Some((root, next));
        }
        if !may_begin {
            return None;
        }
        let start = dir.trim_end_matches('/').to_owned();
        Some((root, Next::From { key: after(&start), start_after: Some(start) }))
    }

    /// The next question of the walk at `dir`, if it is time for it.
    fn ask(&mut self, volume: VolumeId, dir: &str) -> Option<Ask> {
        let of_walk = |walk: &&mut Walk| walk.volume == volume && walk.holds(dir);
        let walk = self.walks.iter_mut().filter(of_walk).max_by_key(|walk| walk.root.len())?;
        if walk.asking.is_some() || walk.pages.len() > walk.ahead {
            return None;
        }
        let (from, start_after, continuation) = match &walk.next {
            Next::From { key, start_after } => (key.clone(), start_after.clone(), None),
            Next::Token { key, token } => (key.clone(), None, Some(token.clone())),
            Next::End => return None,
        };
        self.asked += 1;
        walk.asking = Some(self.asked);
        Some(Ask {
            volume,
            prefix: walk.root.clone(),
            start_after,
            continuation,
            serial: self.asked,
            walk: walk.id,
            from,
        })
    }
}

impl Walk {
    /// The walker was served at `dir`.
    fn advance(&mut self, dir: &str) {
        self.hits += 1;
        if dir < self.position.as_str() {
            return;
        }
        dir.clone_into(&mut self.position);
        let before = self.pages.len();
        self.pass(dir);
        if self.ahead == 0 || self.pages.len() < before {
            self.ahead = (self.ahead * 2).clamp(1, PAGES_AHEAD_MAX);
        }
    }

    fn holds(&self, dir: &str) -> bool {
        dir.len() > self.root.len() && dir.starts_with(&self.root)
    }

    fn pass(&mut self, dir: &str) {
        self.pages.retain(|end| end.as_ref().is_none_or(|end| dir < end.as_str()));
    }

    /// Whether the listing has come to `dir` and has not gone past its end.
    fn is_within(&self, dir: &str) -> bool {
        match self.pages.last() {
            Some(Some(end)) => Span::of_prefix(dir).contains(end),
            _ => false,
        }
    }

    fn restart(&mut self, dir: &str, next: Next) {
        dir.clone_into(&mut self.position);
        self.pages.clear();
        self.next = next;
        self.asking = None;
        self.ahead = 0;
        self.hits = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId(0);

    #[test]
    fn a_walk_is_recognised_by_its_first_step_and_listed_from_the_beginning() {
        let mut walks = Walks::default();
        assert_eq!(walks.opened(VOLUME, "", false, true), None);
        walks.listed(VOLUME, "", Some("a/".into()), 3);
        let ask = walks.opened(VOLUME, "a/", false, true).unwrap();
        assert_eq!((ask.prefix.as_str(), &ask.start_after, &ask.continuation), ("", &None, &None));
        assert_eq!(walks.coming(VOLUME, "a/"), None, "nobody waits for a guess");
        assert_eq!(walks.coming(VOLUME, "a/b/"), Some(ask.serial));
        // The walk has not come by yet: one page will do.
        assert_eq!(walks.answered(&ask, Some("c/9"), Some("token".into())), None);
        let next = walks.opened(VOLUME, "a/b/", true, true).unwrap();
        assert_eq!(next.continuation.as_deref(), Some("token"));
        assert_eq!(next.span(Some("d/1")), Span { start: after("c/9"), end: Some(after("d/1")) });
    }

    #[test]
    fn a_walk_in_the_middle_begins_there_if_a_listing_may() {
        for may_begin in [true, false] {
            let mut walks = Walks::default();
            walks.opened(VOLUME, "p/", false, true);
            walks.listed(VOLUME, "p/", Some("p/a/".into()), 0);
            assert_eq!(walks.opened(VOLUME, "p/k/", false, may_begin), None);
            assert_eq!(walks.opened(VOLUME, "p/m/", false, may_begin), None);
            let ask = walks.opened(VOLUME, "p/o/", false, may_begin);
            assert_eq!(ask.is_some(), may_begin);
            if let Some(ask) = ask {
                assert_eq!((ask.prefix.as_str(), ask.start_after.as_deref()), ("p/", Some("p/o")));
            }
        }
    }

    #[test]
    fn no_more_than_a_few_pages_are_listed_ahead_and_directories_at_random_are_no_walk() {
        let mut walks = Walks::default();
        walks.opened(VOLUME, "", false, true);
        walks.listed(VOLUME, "", Some("000/".into()), 0);
        let mut ask = walks.opened(VOLUME, "000/", false, true);
        let (mut pages, mut most) = (0, 0);
        for dir in 1..900 {
            // Each page has ten directories.
            while let Some(asked) = ask {
                pages += 1;
                ask = walks.answered(
                    &asked,
                    Some(&format!("{:03}/z", pages * 10 - 1)),
                    Some(pages.to_string()),
                );
            }
            let name = format!("{dir:03}/");
            ask = walks.opened(VOLUME, &name, dir < pages * 10, true);
            most = most.max(pages - dir / 10);
        }
        assert!(most <= PAGES_AHEAD_MAX + 1, "{most} pages ahead");
        let mut walks = Walks::default();
        walks.opened(VOLUME, "", false, true);
        walks.listed(VOLUME, "", Some("000/".into()), 0);
        for dir in [500, 300, 700, 200, 600, 100] {
            assert_eq!(walks.opened(VOLUME, &format!("{dir}/"), false, true), None);
        }
    }
}
