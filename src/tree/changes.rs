//! Which names changed here while questions to S3 were on their way: an answer may be older than a change.
//!
//! Owns: the numbers of changes, and what each changed name has left. Bounded: a change is kept while a question that may
//! be older is on its way, and where [`KEPT_MAX`] are kept all of them are forgotten; then nobody knows what changed
//! since an earlier question ([`Changes::forgot`]).

use std::collections::{BTreeMap, HashMap};

use super::keys::Name;
use super::{Found, Ino};

/// A directory may be left open for days.
const KEPT_MAX: usize = 100_000;

/// Proof of when a request to S3 was asked, to be shown with its answer.
///
/// An answer may predate a local change made after the question, so such names are left alone.
/// Every ticket goes back through [`Tree::end`](super::Tree::end).
#[derive(Debug)]
#[must_use = "a ticket that never ends keeps every later change in memory"]
pub struct Ticket(u64);

impl Ticket {
    /// Number of the latest change when it was drawn.
    pub(super) fn number(&self) -> u64 {
        self.0
    }
}

#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Number of the latest.
    made: u64,
    /// The latest of each name, by directory.
    kept: HashMap<Ino, HashMap<Name, Change>>,
    /// Names in `kept`.
    names: usize,
    /// Those up to this number are no longer in `kept`, whoever may ask.
    forgotten: u64,
    /// Questions on their way, by the number of the latest change at their start.
    tickets: BTreeMap<u64, usize>,
}

/// The latest change here of a name.
#[derive(Debug)]
pub(super) struct Change {
    number: u64,
    /// What the name stood for when its inode was dropped: a listing asked for before the change lacks it.
    pub(super) left: Option<Found>,
}

impl Changes {
    /// Draws a ticket before a request is sent.
    pub(super) fn begin(&mut self) -> Ticket {
        *self.tickets.entry(self.made).or_default() += 1;
        Ticket(self.made)
    }

    /// Takes a ticket back. Whether no question is on its way any more.
    pub(super) fn end(&mut self, ticket: Ticket) -> bool {
        let oldest = self.tickets.keys().next().copied();
        if let Some(count) = self.tickets.get_mut(&ticket.0) {
            *count -= 1;
            if *count == 0 {
                self.tickets.remove(&ticket.0);
            }
        }
        let next = self.tickets.keys().next().copied();
        match next {
            None => self.kept.clear(),
            // As long as the oldest question is out, every change since is kept.
            Some(_) if next == oldest => return false,
            Some(oldest) => self.kept.retain(|_, names| {
                names.retain(|_, change| change.number > oldest);
                !names.is_empty()
            }),
        }
        self.names = self.kept.values().map(HashMap::len).sum();
        next.is_none()
    }

    /// A name is changed.
    pub(super) fn note(&mut self, dir: Ino, name: &Name) {
        self.made += 1;
        if self.names >= KEPT_MAX {
            self.kept.clear();
            self.names = 0;
            self.forgotten = self.made;
        }
        if self.is_asked() {
            let change = Change { number: self.made, left: None };
            if self.kept.entry(dir).or_default().insert(name.clone(), change).is_none() {
                self.names += 1;
            }
        }
    }

    /// The inode of a name was dropped, which had stood for this.
    pub(super) fn left(&mut self, dir: Ino, name: &Name, found: &Found) {
        if let Some(change) = self.kept.get_mut(&dir).and_then(|names| names.get_mut(name)) {
            change.left = Some(found.clone());
        }
    }

    /// Number of the latest change.
    pub(super) fn number(&self) -> u64 {
        self.made
    }

    /// Whether a question is on its way.
    pub(super) fn is_asked(&self) -> bool {
        !self.tickets.is_empty()
    }

    /// Whether there may have been changes since that are not kept.
    pub(super) fn forgot(&self, ticket: &Ticket) -> bool {
        ticket.0 < self.forgotten
    }

    /// The change of a name since, if there is one and it is kept.
    pub(super) fn of(&self, dir: Ino, name: &Name, ticket: &Ticket) -> Option<&Change> {
        self.kept.get(&dir)?.get(name).filter(|change| change.number > ticket.0)
    }

    /// Those in a directory since.
    pub(super) fn in_dir<'a>(
        &'a self,
        dir: Ino,
        ticket: &Ticket,
    ) -> impl Iterator<Item = (&'a Name, &'a Change)> + use<'a> {
        let since = ticket.0;
        self.kept.get(&dir).into_iter().flatten().filter(move |(_, change)| change.number > since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    const DIR: Ino = Ino(7);

    fn name(number: usize) -> Name {
        Name::parse(OsStr::new(&number.to_string())).unwrap()
    }

    fn since(changes: &Changes, ticket: &Ticket) -> usize {
        changes.in_dir(DIR, ticket).count()
    }

    #[test]
    fn a_change_is_kept_as_long_as_a_question_may_be_older() {
        let mut changes = Changes::default();
        changes.note(DIR, &name(0));
        let first = changes.begin();
        changes.note(DIR, &name(1));
        let second = changes.begin();
        changes.note(DIR, &name(2));
        assert_eq!((since(&changes, &first), since(&changes, &second)), (2, 1));
        assert!(changes.of(DIR, &name(1), &first).is_some() && changes.of(DIR, &name(1), &second).is_none());
        assert!(!changes.end(first));
        assert_eq!(
            (changes.names, since(&changes, &second)),
            (1, 1),
            "nobody can ask for the first any more"
        );
        assert!(changes.end(second));
        changes.note(DIR, &name(3));
        assert!(changes.kept.is_empty() && !changes.is_asked());
    }

    #[test]
    fn of_a_name_the_latest_change_counts() {
        let mut changes = Changes::default();
        let first = changes.begin();
        changes.note(DIR, &name(1));
        let second = changes.begin();
        changes.left(DIR, &name(1), &Found::Dir { marker: super::super::Marked::No });
        assert!(changes.of(DIR, &name(1), &first).is_some_and(|change| change.left.is_some()));
        changes.note(DIR, &name(1));
        let latest = changes.of(DIR, &name(1), &second).unwrap();
        assert!(latest.left.is_none(), "it was made again");
        assert_eq!(changes.names, 1);
        changes.end(first);
        assert_eq!(since(&changes, &second), 1);
        changes.end(second);
    }

    #[test]
    fn too_many_changes_are_forgotten_and_whoever_asked_before_is_told() {
        let mut changes = Changes::default();
        let before = changes.begin();
        for number in 0..=KEPT_MAX {
            assert!(!changes.forgot(&before), "{number}");
            changes.note(DIR, &name(number));
            assert!(changes.names <= KEPT_MAX);
        }
        assert!(changes.forgot(&before));
        let after = changes.begin();
        assert!(!changes.forgot(&after));
        changes.end(before);
        changes.end(after);
    }
}
