//! Turns at names, or at other keys: one operation at a time on each, and unrelated ones never wait for one another.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

use super::lock;
use crate::tree::Ino;
use crate::tree::keys::Name;

/// A name of a directory.
type Of = (Ino, Name);
type Waiting = Arc<tokio::sync::Mutex<()>>;

/// The names that operations are at work on or wait for.
pub(super) struct Turns<K = Of>(Mutex<HashMap<K, Waiting>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Held by the operation whose turn it is, and by each that waits for one.
pub(super) struct Turn<'a, K: Eq + Hash = Of> {
    turns: &'a Turns<K>,
    of: K,
    waiting: Waiting,
    held: Option<OwnedMutexGuard<()>>,
}

impl<K: Clone + Eq + Hash> Turns<K> {
    pub(super) async fn take_key(&self, of: K) -> Turn<'_, K> {
        let waiting = Arc::clone(lock(&self.0).entry(of.clone()).or_default());
        // Made before it waits, which may be given up.
        let mut turn = Turn { turns: self, of, waiting, held: None };
        turn.held = Some(Arc::clone(&turn.waiting).lock_owned().await);
        turn
    }
}

impl Turns {
    pub(super) async fn take(&self, parent: Ino, name: &Name) -> Turn<'_> {
        self.take_key((parent, name.clone())).await
    }

    /// The same of two names, in an order that cannot deadlock; one where they are the same.
    pub(super) async fn take_two(
        &self,
        one: (Ino, &Name),
        two: (Ino, &Name),
    ) -> (Turn<'_>, Option<Turn<'_>>) {
        let (first, second) = (one.min(two), one.max(two));
        let turn = self.take(first.0, first.1).await;
        if first == second {
            return (turn, None);
        }
        (turn, Some(self.take(second.0, second.1).await))
    }
}

impl<K: Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        self.held = None;
        // Whoever joins does so under this lock: this one's and the table's are the last.
        let mut turns = lock(&self.turns.0);
        if Arc::strong_count(&self.waiting) == 2 {
            turns.remove(&self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::ffi::OsStr;

    fn name(text: &str) -> Name {
        Name::parse(OsStr::new(text)).unwrap()
    }

    #[test]
    fn one_name_is_one_operation_s_at_a_time_and_others_never_wait() {
        let turns = Turns::default();
        let (a, b) = (name("a"), name("b"));
        let held = turns.take(Ino(1), &a).now_or_never().unwrap();
        let others: Vec<Name> = (0..1_000).map(|number| name(&format!("n{number}"))).collect();
        let more: Vec<_> =
            others.iter().map(|name| turns.take(Ino(1), name).now_or_never().unwrap()).collect();
        drop(turns.take(Ino(2), &a).now_or_never().unwrap());
        let mut waiting = Box::pin(turns.take(Ino(1), &a));
        let mut last = Box::pin(turns.take_two((Ino(1), &b), (Ino(1), &a)));
        assert!((&mut waiting).now_or_never().is_none());
        assert!((&mut last).now_or_never().is_none());
        drop(held);
        drop((&mut waiting).now_or_never().expect("in their order"));
        assert!(turns.take(Ino(1), &a).now_or_never().is_none(), "it has gone to who waited before");
        let (_, second) = (&mut last).now_or_never().expect("nobody has it");
        assert!(second.is_some());
        drop((second, more));
        assert!(lock(&turns.0).is_empty(), "nothing is kept of what is done or was given up");
    }

    #[test]
    fn two_that_are_the_same_are_one_turn() {
        let turns = Turns::default();
        let a = name("a");
        let (first, second) = turns.take_two((Ino(1), &a), (Ino(1), &a)).now_or_never().unwrap();
        assert!(second.is_none());
        drop(first);
        assert!(lock(&turns.0).is_empty());
    }
}
