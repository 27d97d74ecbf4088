//! The lines of an open directory that are kept, and how any cookie given out finds its place again. Pure.
//!
//! A directory may have a million names, so only a window of them is kept, with marks: how many lines there are up
//! to a key after which a listing can begin anew. A cookie says which line it follows by number and by name: the
//! number finds the window or the mark, and the name finds the line, though another client may have put
//! others before it meanwhile.

use std::collections::VecDeque;
use std::time::Instant;

use super::Found;
use super::keys::{Name, Place};
use super::listing::{Merged, hash_of};

/// Lines kept behind the reader, who may go back a little.
const BEHIND_MIN: u64 = 1_024;
/// Lines after its number that a name is looked for in before it counts as gone.
const MOVED_MAX: u64 = 1_024;
/// Lines kept in all before those behind the reader go; one page is up to 1,000.
const KEPT_MAX: usize = 4_096;
/// Marks kept; with more, every second one goes.
const MARKS_MAX: usize = 512;
/// Cookies are positive as signed numbers: 32 bits of the line's number and 31 of its name's hash.
const HASH_BITS: u32 = 31;

/// One line of a directory, and when the request was sent that told of it.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: Name,
    pub found: Found,
    pub asked: Instant,
}

impl Line {
    fn cookie(&self, number: u64) -> u64 {
        (number + 1) << HASH_BITS | short_hash(&self.name)
    }
}

/// Where a listing begins that shows the lines from a number on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    number: u64,
    /// `None` from the beginning.
    pub after: Option<String>,
    /// How far names that are not in the listing have been shown.
    pub reached: Option<Place>,
}

/// Where reading goes on after a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// At this line, if there is one.
    At(u64),
    /// Before the window: list again from here, and ask once more.
    Before(Mark),
    /// Read on, and ask once more; at the end of the directory there is nothing.
    Ahead,
}

/// A window of lines.
#[derive(Debug, Default)]
pub struct Lines {
    first: u64,
    lines: VecDeque<Line>,
    marks: Vec<Mark>,
}

impl Lines {
    /// Takes what the listing shows next.
    pub fn extend(&mut self, merged: Merged, asked: Instant) {
        if let Some((count, after, reached)) = merged.mark {
            let number = self.end() + count as u64;
            if self.marks.last().is_none_or(|last| last.number < number) {
                self.marks.push(Mark { number, after: Some(after), reached });
            }
            if self.marks.len() > MARKS_MAX {
                let mut keep = false;
                self.marks.retain(|_| {
                    keep = !keep;
                    keep
                });
            }
        }
        self.lines.extend(merged.lines.into_iter().map(|(name, found)| Line { name, found, asked }));
    }

    /// The line and its cookie.
    pub fn get(&self, number: u64) -> Option<(&Line, u64)> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.lines.get(at).map(|line| (line, line.cookie(number)))
    }

    /// So many lines from a number on, or as many as there are.
    pub fn ahead(&mut self, number: u64, count: usize) -> Vec<&mut Line> {
        let skipped = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        skipped.map_or_else(Vec::new, |at| self.lines.iter_mut().skip(at).take(count).collect())
    }

    /// The number that the next line will have.
    pub fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    /// Where reading goes on after the line of a cookie. `complete` says that no line is to come.
    pub fn position(&self, cookie: u64, complete: bool) -> Position {
        let Some(number) = (cookie >> HASH_BITS).checked_sub(1) else { return Position::At(0) };
        if number < self.first {
            return Position::Before(self.mark_before(number));
        }
        let hash = cookie & ((1 << HASH_BITS) - 1);
        let is_it = |number: u64| self.get(number).is_some_and(|(line, _)| short_hash(&line.name) == hash);
        if is_it(number) {
            return Position::At(number + 1);
        }
        // Listed anew, it may be further on by the names that were added before it.
        if number + MOVED_MAX >= self.end() && !complete {
            let is_here = (self.first..self.end()).any(is_it);
            if !is_here {
                return Position::Ahead;
            }
        }
        // Listed anew, and another client added or removed names before it.
        let others = (self.first..self.end()).filter(|other| is_it(*other));
        match others.min_by_key(|other| other.abs_diff(number)) {
            Some(moved) => Position::At(moved + 1),
            None => Position::At(number),
        }
    }

    /// Lets go of lines that the reader at `number` is unlikely to come back to.
    pub fn trim(&mut self, number: u64) {
        while self.lines.len() > KEPT_MAX && self.first + BEHIND_MIN < number {
            self.lines.pop_front();
            self.first += 1;
        }
    }

    /// The last place up to a line where a listing can begin anew.
    pub fn mark_before(&self, number: u64) -> Mark {
        self.marks.iter().rev().find(|mark| mark.number <= number).cloned().unwrap_or_default()
    }

    /// The last place where a listing can begin anew.
    pub fn last_mark(&self) -> Mark {
        self.marks.last().cloned().unwrap_or_default()
    }

    /// Starts again at a mark.
    pub fn restart(&mut self, mark: &Mark) {
        self.first = mark.number;
        self.lines.clear();
        self.marks.retain(|known| known.number <= mark.number);
    }

    /// Lines in memory.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

fn short_hash(name: &Name) -> u64 {
    hash_of(name) & ((1 << HASH_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::base::{Clock, SystemClock};
    use crate::tree::Marked;
    use crate::tree::keys::DirKey;

    /// The lines `from..to` of a directory of numbers, with a mark after the last.
    fn page(from: u64, to: u64) -> Merged {
        let dir = DirKey::root("");
        let name = |n: u64| Name::parse(format!("{n:09}").as_ref()).unwrap();
        let lines = (from..to).map(|n| (name(n), Found::Dir { marker: Marked::Unseen })).collect();
        let last = name(to - 1);
        Merged { lines, mark: Some(((to - from) as usize, format!("{:09}", to - 1), Some(dir.place(&last)))) }
    }

    #[test]
    fn a_million_lines_keep_a_window_and_a_few_marks() {
        let now = SystemClock.now();
        let mut lines = Lines::default();
        for n in 0..1_000 {
            lines.extend(page(n * 1_000, (n + 1) * 1_000), now);
            for at in n * 1_000..(n + 1) * 1_000 {
                assert!(lines.get(at).is_some());
                lines.trim(at + 1);
            }
        }
        assert!(lines.len() <= KEPT_MAX + 1_000 && lines.marks.len() <= MARKS_MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]
        #[test]
        fn a_cookie_leads_to_the_line_after_its_own(
            cookies in proptest::collection::vec(0u64..20_000, 1..10),
            inserted in 0u64..3,
        ) {
            let now = SystemClock.now();
            let mut lines = Lines::default();
            let mut given = Vec::new();
            for n in 0..20 {
                lines.extend(page(n * 1_000, (n + 1) * 1_000), now);
                for at in n * 1_000..(n + 1) * 1_000 {
                    given.push(lines.get(at).unwrap().1);
                    lines.trim(at + 1);
                }
            }
            prop_assert!(given.iter().all(|cookie| *cookie > 2 && *cookie < 1 << 63));
            for of in cookies {
                loop {
                    match lines.position(given[of as usize], lines.end() >= 20_000) {
                        Position::At(at) => {
                            let next = lines.get(at).map(|(line, _)| line.name.as_str().to_owned());
                            prop_assert_eq!(next, (of + 1 < 20_000).then(|| format!("{:09}", of + 1)));
                            break;
                        }
                        Position::Before(mark) => {
                            prop_assert!(mark.number <= of);
                            lines.restart(&mark);
                            // Another client has added names before the line meanwhile.
                            if inserted > 0 && mark.number < of {
                                let name = |n| Name::parse(format!("{:09}x{n}", mark.number).as_ref()).unwrap();
                                let new = (0..inserted).map(|n| (name(n), Found::Dir { marker: Marked::Unseen })).collect();
                                lines.extend(Merged { lines: new, mark: None }, now);
                            }
                            lines.extend(page(mark.number, 20_000), now);
                        }
                        Position::Ahead => prop_assert!(false, "every line is here"),
                    }
                }
            }
        }
    }
}
