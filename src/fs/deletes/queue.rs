//! Which deletes wait for company, which go together, and what is known of them until S3 has answered. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::base::ETag;
use crate::error::Error;
use crate::s3::limits;
use crate::tree::Ino;
use crate::tree::keys::{DirKey, Name};
use crate::write::journal::IntentId;

/// So many deletes in a row were waited for before later ones of the row are not: a program that removes a file or two
/// is told of each what S3 said, and `rm -r` pays two round trips for it.
const RUN_FROM: u32 = 2;
/// A row ends when nothing is removed for so long. Between two directories `rm -r` lists one.
const RUN_GAP: Duration = Duration::from_millis(250);
/// Batches under way at once. S3 takes about 0.3 s for 1,000 keys, so this is some 13,000 deletes a second.
const BATCHES_MAX: usize = 4;
/// Directories of which a failure is kept until somebody asks.
const FAILED_MAX: usize = 1_000;

/// A name that is gone from this mount, and its object, which is about to go.
#[derive(Clone, Debug)]
pub(in crate::fs) struct Doomed {
    pub(in crate::fs) parent: Ino,
    pub(in crate::fs) name: Name,
    pub(in crate::fs) dir: DirKey,
    pub(in crate::fs) key: String,
    /// The version it was when its name was removed.
    pub(in crate::fs) etag: Option<ETag>,
    /// Where the journal has it.
    pub(in crate::fs) intent: Option<IntentId>,
}

/// The deletes of one volume.
#[derive(Debug, Default)]
pub(in crate::fs) struct Queue {
    /// In the order they came.
    waiting: Vec<(u64, Doomed)>,
    /// When the first of them has waited long enough.
    due: Option<Instant>,
    /// By key.
    sending: HashMap<String, (u64, Doomed)>,
    batches: usize,
    /// Number of the latest delete, and of the latest that somebody waits for.
    last: u64,
    hurried: u64,
    /// Whether a task sends what is here.
    worked: bool,
    /// Deletes in a row that succeeded, when the latest did, and in which directory.
    in_a_row: u32,
    latest: Option<Instant>,
    row_dir: Option<Ino>,
    /// Keys and, with `true`, prefixes that go by requests of their own.
    leaving: Vec<(String, bool)>,
    /// Directories that are to go when they are empty.
    closing: Vec<Ino>,
    /// Of each directory, why names came back, until somebody is told.
    failed: HashMap<Ino, Error>,
}

/// What to do now.
#[derive(Debug)]
pub(in crate::fs) enum Next {
    Send(Vec<Doomed>),
    /// Nothing until then, or until something changes.
    At(Instant),
    /// Nothing until something changes.
    Wait,
    /// Nothing is left, and nobody works any more.
    Done,
}

impl Queue {
    // ---- the row

    /// Whether names are being removed in a row, so that the next one need not wait for its answer.
    pub(in crate::fs) fn is_run(&self, now: Instant) -> bool {
        self.in_a_row >= RUN_FROM && self.goes_on(now)
    }

    fn goes_on(&self, now: Instant) -> bool {
        self.latest.is_some_and(|latest| now.saturating_duration_since(latest) <= RUN_GAP)
    }

    /// One in `dir` that was waited for has succeeded; it was begun at `begun`.
    pub(in crate::fs) fn succeeded(&mut self, dir: Ino, begun: Instant, now: Instant) {
        self.in_a_row = if self.goes_on(begun) { self.in_a_row.saturating_add(1) } else { 1 };
        (self.latest, self.row_dir) = (Some(now), Some(dir));
    }

    /// A name is being made in a directory. Who removes it all makes nothing there, so if it is where the row is,
    /// this is no row but somebody's temporary files.
    pub(in crate::fs) fn makes(&mut self, dir: Ino) {
        if self.row_dir == Some(dir) {
            self.broke();
        }
    }

    /// Something else of the same row has taken its time from `begun` on: an emptied directory was removed.
    pub(in crate::fs) fn went_on(&mut self, begun: Instant, now: Instant) {
        if self.goes_on(begun) {
            self.latest = Some(now);
        }
    }

    /// From now on each is waited for, so that whoever removes names is told.
    pub(in crate::fs) fn broke(&mut self) {
        self.in_a_row = 0;
    }

    // ---- the queue

    pub(in crate::fs) fn is_full(&self) -> bool {
        self.waiting.len() >= limits::KEYS_PER_REQUEST
    }

    /// Adds one of a row, which may wait until `due`; whether somebody has to begin working.
    #[must_use]
    pub(in crate::fs) fn push(&mut self, doomed: Doomed, now: Instant, due: Instant) -> bool {
        self.last += 1;
        (self.latest, self.row_dir) = (Some(now), Some(doomed.parent));
        self.due.get_or_insert(due);
        self.waiting.push((self.last, doomed));
        !std::mem::replace(&mut self.worked, true)
    }

    /// Takes what is to be sent now.
    pub(in crate::fs) fn next(&mut self, now: Instant) -> Next {
        let Some(due) = self.due else {
            if self.batches > 0 {
                return Next::Wait;
            }
            self.worked = false;
            return Next::Done;
        };
        let hurried = self.waiting.first().is_some_and(|(number, _)| *number <= self.hurried);
        // What comes while a batch is on its way goes with the next one, unless somebody waits for it.
        let at_once = hurried || self.is_full();
        match self.batches {
            0 if at_once || now >= due => Next::Send(self.take(now)),
            0 => Next::At(due),
            under_way if at_once && under_way < BATCHES_MAX => Next::Send(self.take(now)),
            _ => Next::Wait,
        }
    }

    fn take(&mut self, now: Instant) -> Vec<Doomed> {
        let taken = self.waiting.len().min(limits::KEYS_PER_REQUEST);
        let batch: Vec<(u64, Doomed)> = self.waiting.drain(..taken).collect();
        self.due = (!self.waiting.is_empty()).then_some(now);
        self.batches += 1;
        self.sending.extend(batch.iter().map(|sent| (sent.1.key.clone(), sent.clone())));
        batch.into_iter().map(|(_, doomed)| doomed).collect()
    }

    /// A batch was answered.
    pub(in crate::fs) fn answered(&mut self, batch: &[Doomed]) {
        self.batches = self.batches.saturating_sub(1);
        for doomed in batch {
            self.sending.remove(&doomed.key);
        }
    }

    /// Whoever worked here ends before its time: takes out all there is.
    pub(in crate::fs) fn abandon(&mut self) -> Vec<Doomed> {
        (self.worked, self.batches, self.due) = (false, 0, None);
        let sending = self.sending.drain().map(|(_, sent)| sent.1);
        sending.chain(self.waiting.drain(..).map(|(_, doomed)| doomed)).collect()
    }

    /// Nothing that is here now waits for company any more; returns the number of the latest.
    pub(in crate::fs) fn hurry(&mut self) -> u64 {
        self.hurried = self.last;
        self.last
    }

    /// Whether everything up to a number was answered.
    pub(in crate::fs) fn is_done(&self, number: u64) -> bool {
        self.waiting.first().is_none_or(|(first, _)| *first > number)
            && self.sending.values().all(|(sent, _)| *sent > number)
    }

    /// Whether the key is to be deleted, or being deleted.
    pub(in crate::fs) fn holds(&self, key: &str) -> bool {
        self.sending.contains_key(key) || self.waiting.iter().any(|(_, doomed)| doomed.key == key)
    }

    // ---- what else is to go

    /// Keys that are about to go, and make no directory.
    pub(in crate::fs) fn leaving(&self) -> Leaving {
        let waiting = self.waiting.iter().map(|(_, doomed)| doomed.key.clone());
        Leaving { keys: waiting.chain(self.sending.keys().cloned()).collect(), also: self.leaving.clone() }
    }

    pub(in crate::fs) fn leaves(&mut self, key: &str, below: bool) {
        self.leaving.push((key.to_owned(), below));
    }

    pub(in crate::fs) fn has_left(&mut self, key: &str) {
        if let Some(at) = self.leaving.iter().position(|(leaving, _)| leaving == key) {
            self.leaving.swap_remove(at);
        }
    }

    pub(in crate::fs) fn closes(&mut self, dir: Ino) {
        self.closing.push(dir);
    }

    pub(in crate::fs) fn has_closed(&mut self, dir: Ino) {
        if let Some(at) = self.closing.iter().position(|closing| *closing == dir) {
            self.closing.swap_remove(at);
        }
    }

    pub(in crate::fs) fn is_closing(&self, dir: Ino) -> bool {
        self.closing.contains(&dir)
    }

    // ---- failures

    /// A name of the directory came back; whether it is the first that is to be told.
    pub(in crate::fs) fn failed(&mut self, dir: Ino, error: Error) -> bool {
        self.broke();
        let first = self.failed.len() < FAILED_MAX && !self.failed.contains_key(&dir);
        if first {
            self.failed.insert(dir, error);
        }
        first
    }

    /// Why names of the directory came back, told once.
    pub(in crate::fs) fn take_failure(&mut self, dir: Ino) -> Option<Error> {
        self.failed.remove(&dir)
    }
}

/// Keys that are about to go.
#[derive(Debug)]
pub(in crate::fs) struct Leaving {
    keys: std::collections::HashSet<String>,
    also: Vec<(String, bool)>,
}

impl Leaving {
    pub(in crate::fs) fn contains(&self, key: &str) -> bool {
        let is_it = |(other, below): &(String, bool)| match below {
            true => key.starts_with(other.as_str()),
            false => key == other,
        };
        self.keys.contains(key) || self.also.iter().any(is_it)
    }

    pub(in crate::fs) fn len(&self) -> usize {
        self.keys.len() + self.also.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::tree::ROOT;
    use proptest::prelude::*;
    use std::ffi::OsStr;

    fn doomed(number: usize) -> Doomed {
        Doomed {
            parent: ROOT,
            name: Name::parse(OsStr::new("x")).unwrap(),
            dir: DirKey::root(""),
            key: format!("{number}"),
            etag: None,
            intent: None,
        }
    }

    const WAIT: Duration = Duration::from_millis(20);

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_third_of_a_row_need_not_wait_and_a_pause_or_a_failure_ends_the_row() {
        let (mut queue, now) = (Queue::default(), start());
        assert!(!queue.is_run(now));
        queue.succeeded(ROOT, now, now);
        assert!(!queue.is_run(now));
        queue.succeeded(ROOT, now, now + RUN_GAP);
        let now = now + RUN_GAP;
        assert!(queue.is_run(now + RUN_GAP));
        assert!(!queue.is_run(now + RUN_GAP * 2));
        queue.went_on(now, now + RUN_GAP * 9);
        assert!(queue.is_run(now + RUN_GAP * 10));
        assert!(queue.failed(ROOT, Error::new(Kind::AccessDenied, "no")));
        assert!(!queue.failed(ROOT, Error::new(Kind::Server, "no")));
        assert!(!queue.is_run(now + RUN_GAP * 10));
        assert_eq!(queue.take_failure(ROOT).unwrap().kind(), Kind::AccessDenied);
        assert!(queue.take_failure(ROOT).is_none(), "told once");
        // After a pause a row begins anew, and after a name was made where it is.
        let later = now + RUN_GAP * 99;
        queue.succeeded(ROOT, later, later);
        assert!(!queue.is_run(later));
        queue.succeeded(ROOT, later, later);
        queue.makes(Ino(7));
        assert!(queue.is_run(later));
        queue.makes(ROOT);
        assert!(!queue.is_run(later));
    }

    #[test]
    fn a_delete_waits_for_others_no_longer_than_it_may() {
        let (mut queue, now) = (Queue::default(), start());
        assert!(queue.push(doomed(0), now, now + WAIT), "somebody has to work");
        assert!(!queue.push(doomed(1), now, now + WAIT * 2));
        assert!(matches!(queue.next(now + WAIT / 2), Next::At(at) if at == now + WAIT));
        let Next::Send(batch) = queue.next(now + WAIT) else { panic!("it is time") };
        assert_eq!(batch.len(), 2);
        // One that comes meanwhile goes when the batch was answered.
        assert!(!queue.push(doomed(2), now, now + WAIT * 2));
        assert!(matches!(queue.next(now + WAIT * 9), Next::Wait));
        assert!(queue.holds("1") && queue.holds("2") && !queue.holds("3"));
        queue.answered(&batch);
        assert!(!queue.holds("1"));
        let Next::Send(batch) = queue.next(now + WAIT * 9) else { panic!("it is time") };
        queue.answered(&batch);
        assert!(matches!(queue.next(now + WAIT * 9), Next::Done));
        assert!(queue.push(doomed(3), now, now + WAIT), "nobody works any more");
    }

    proptest! {
        #[test]
        fn everything_is_sent_once_in_order_and_within_bounds(
            steps in proptest::collection::vec((0u8..6, 0usize..400), 1..60),
        ) {
            let (mut queue, mut now) = (Queue::default(), start());
            let (mut pushed, mut sent, mut flying) = (0, Vec::new(), Vec::new());
            let mut hurried = 0;
            for (step, many) in steps {
                match step {
                    0..=2 => for _ in 0..many {
                        if !queue.is_full() {
                            let _ = queue.push(doomed(pushed), now, now + WAIT);
                            pushed += 1;
                        }
                    },
                    3 => now += WAIT,
                    4 => { hurried = queue.hurry(); prop_assert_eq!(hurried, pushed as u64); }
                    _ => if !flying.is_empty() {
                        let batch: Vec<Doomed> = flying.remove(many % flying.len());
                        queue.answered(&batch);
                    },
                }
                while let Next::Send(batch) = queue.next(now) {
                    prop_assert!((1..=limits::KEYS_PER_REQUEST).contains(&batch.len()));
                    sent.extend(batch.iter().map(|doomed| doomed.key.clone()));
                    flying.push(batch);
                }
                prop_assert!(flying.len() <= BATCHES_MAX);
                prop_assert!(sent.len() as u64 >= hurried || flying.len() == BATCHES_MAX);
                let answered = sent.len() - flying.iter().map(Vec::len).sum::<usize>();
                prop_assert_eq!(queue.is_done(pushed as u64), answered == pushed);
            }
            prop_assert!(sent.iter().enumerate().all(|(at, key)| *key == at.to_string()));
            let left = queue.abandon();
            prop_assert_eq!(left.len() + sent.len() - flying.iter().map(Vec::len).sum::<usize>(), pushed);
        }
    }
}
