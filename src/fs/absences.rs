//! One LIST in place of many questions for names that are not there.
//!
//! Whoever copies files into a directory looks for each name first, and each of them is two requests and a round trip.
//! After a few in a row the directory is listed, and answers for all of its names as long as an absent name is
//! believed. One of more than a page is not listed for that.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::lock;
use crate::tree::Ino;

/// Names in a row that S3 did not have, before their directory is listed.
const ABSENT_MIN: i64 = 2;
/// Names that are asked for one by one after a listing that was of no use.
const PAUSE: i64 = 500;
/// They are in a row if no more than this many times the TTL of an absent name is between them.
const ROW_TTLS: u32 = 8;
/// Directories that are watched.
const DIRS_MAX: usize = 256;

/// What was looked for in vain, by directory.
pub(super) struct Absences(Mutex<LruCache<Ino, Row>>);

struct Row {
    /// Negative for as long as the directory is not worth listing.
    count: i64,
    last: Instant,
    is_listed: bool,
}

/// Leave to list a directory; nobody else has it meanwhile.
pub(super) struct Turn<'a> {
    absences: &'a Absences,
    dir: Ino,
    is_of_use: bool,
}

impl Default for Absences {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(DIRS_MAX).unwrap_or(NonZeroUsize::MIN))))
    }
}

impl Absences {
    /// S3 was asked for a name of this directory, and has none.
    pub(super) fn note(&self, dir: Ino, now: Instant, ttl: Duration) {
        let mut rows = lock(&self.0);
        let row = rows.get_or_insert_mut(dir, || Row { count: 0, last: now, is_listed: false });
        if now > row.last + ttl * ROW_TTLS {
            row.count = row.count.min(0);
        }
        row.count += 1;
        row.last = now;
    }

    /// Whether a directory is to be listed now, before one more name of it is asked for.
    pub(super) fn turn(&self, dir: Ino, now: Instant, ttl: Duration) -> Option<Turn<'_>> {
        let mut rows = lock(&self.0);
        let row = rows.get_mut(&dir)?;
        let is_time = row.count >= ABSENT_MIN && !row.is_listed && now <= row.last + ttl * ROW_TTLS;
        if !is_time || ttl.is_zero() {
            return None;
        }
        (row.is_listed, row.last) = (true, now);
        Some(Turn { absences: self, dir, is_of_use: false })
    }
}

impl Turn<'_> {
    /// The directory answers for its names now.
    pub(super) fn was_of_use(mut self) {
        self.is_of_use = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut rows = lock(&self.absences.0);
        if let Some(row) = rows.get_mut(&self.dir) {
            row.is_listed = false;
            if !self.is_of_use {
                row.count = -PAUSE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_listed_once_for_names_in_a_row_and_left_alone_where_that_was_of_no_use() {
        let (absences, dir, ttl) = (Absences::default(), Ino(7), Duration::from_secs(1));
        let now = crate::base::Clock::now(&crate::base::ManualClock::new());
        assert!(absences.turn(dir, now, ttl).is_none());
        absences.note(dir, now, ttl);
        assert!(absences.turn(dir, now, ttl).is_none(), "one name is no row");
        absences.note(dir, now + ttl * 9, ttl);
        assert!(absences.turn(dir, now + ttl * 9, ttl).is_none(), "long after the first");
        absences.note(dir, now + ttl * 10, ttl);
        let later = now + ttl * 11;
        assert!(absences.turn(dir, later, Duration::ZERO).is_none(), "nothing would be believed");
        let turn = absences.turn(dir, later, ttl).expect("two in a row");
        assert!(absences.turn(dir, later, ttl).is_none(), "somebody lists it already");
        turn.was_of_use();
        let turn = absences.turn(dir, later + ttl, ttl).expect("the row goes on");
        drop(turn);
        for _ in 0..PAUSE {
            absences.note(dir, later, ttl);
            assert!(absences.turn(dir, later, ttl).is_none());
        }
        absences.note(dir, later, ttl);
        absences.note(dir, later, ttl);
        assert!(absences.turn(dir, later, ttl).is_some());
    }
}
