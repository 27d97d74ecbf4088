//! Who may change which keys of a volume while directories are being renamed.
//!
//! The rename of a directory moves every key below two prefixes, object by object, and nothing may change there
//! meanwhile. The rest of the volume is none of its business: it goes on. So whatever changes keys claims them first:
//! 1. a change of one name shares its key with other changes, which have locks of their own among each other;
//! 2. the rename of a directory has what is below both its names alone;
//! 3. who comes later waits for the claims before it that are in its way, so that nobody is passed by for ever;
//! 4. a claim is waited for as long as something of those in its way moves, and what was waited in silence counts: who
//!    waits for a silent server in two places does not wait twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::lock;
use crate::s3::{Progress, watch_all};

/// Keys that a claim is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    Key(String),
    /// Every key that begins with this, which ends with `/`.
    Below(String),
}

impl Spot {
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Key(one), Self::Key(other)) => one == other,
            (Self::Key(key), Self::Below(dir)) | (Self::Below(dir), Self::Key(key)) => key.starts_with(dir),
            (Self::Below(one), Self::Below(other)) => one.starts_with(other) || other.starts_with(one),
        }
    }
}

/// The claims on one volume's keys, those that wait among them.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    claims: Mutex<Claims>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Claims {
    /// In the order in which they came.
    by_turn: BTreeMap<u64, Claimed>,
    next: u64,
    /// How many of them are not shared.
    alone: usize,
}

#[derive(Debug)]
struct Claimed {
    spots: Vec<Spot>,
    alone: bool,
    /// What moves for its holder.
    progress: Arc<Progress>,
    /// When something last moved for those in its way that are done.
    heard: Instant,
}

impl Claims {
    fn push(&mut self, claimed: Claimed) -> u64 {
        let turn = self.next;
        self.next += 1;
        self.alone += usize::from(claimed.alone);
        self.by_turn.insert(turn, claimed);
        turn
    }

    fn remove(&mut self, turn: u64) {
        let Some(gone) = self.by_turn.remove(&turn) else { return };
        self.alone -= usize::from(gone.alone);
        let last = gone.progress.last().max(gone.heard);
        for (_, later) in self.by_turn.range_mut(turn..) {
            if later.is_kept_by(&gone) {
                later.heard = later.heard.max(last);
            }
        }
    }

    /// The claims that one has to wait for.
    fn before(&self, turn: u64) -> impl Iterator<Item = &Claimed> {
        let claimed = self.by_turn.get(&turn).filter(|_| self.alone > 0);
        self.by_turn
            .range(..turn)
            .map(|(_, earlier)| earlier)
            .filter(move |earlier| claimed.is_some_and(|claimed| claimed.is_kept_by(earlier)))
    }

    /// When something last moved for whoever is or was in the way of a claim.
    fn last(&self, turn: u64) -> Option<Instant> {
        let heard = self.by_turn.get(&turn)?.heard;
        self.before(turn).map(|claimed| claimed.progress.last().max(claimed.heard)).chain([heard]).max()
    }
}

impl Claimed {
    fn is_kept_by(&self, earlier: &Self) -> bool {
        let meets = |spot: &Spot| earlier.spots.iter().any(|other| spot.overlaps(other));
        (self.alone || earlier.alone) && self.spots.iter().any(meets)
    }
}

/// Keys that nobody moves, or changes, as long as this is there.
#[derive(Debug)]
pub(super) struct Claim {
    namespace: Arc<Namespace>,
    turn: u64,
    /// How long nothing had moved when it was got.
    pub(super) quiet: Duration,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.namespace.claims).remove(self.turn);
        self.namespace.released.notify_waiters();
    }
}

impl Namespace {
    /// `None` where nothing in the way of the claim moved for so long.
    pub(super) async fn claim(
        self: &Arc<Self>,
        spots: Vec<Spot>,
        alone: bool,
        progress: &Arc<Progress>,
        silence: Duration,
    ) -> Option<Claim> {
        let claimed = Claimed { spots, alone, progress: Arc::clone(progress), heard: Instant::now() };
        let turn = lock(&self.claims).push(claimed);
        let mut claim = Claim { namespace: Arc::clone(self), turn, quiet: Duration::ZERO };
        if self.is_first(turn) {
            return Some(claim);
        }
        let waiting = async {
            loop {
                let released = self.released.notified();
                if self.is_first(turn) {
                    return;
                }
                released.await;
            }
        };
        let last = || lock(&self.claims).last(turn).unwrap_or_else(Instant::now);
        watch_all(last, silence, waiting).await?;
        claim.quiet = last().elapsed();
        Some(claim)
    }

    fn is_first(&self, turn: u64) -> bool {
        lock(&self.claims).before(turn).next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn key(key: &str) -> Vec<Spot> {
        vec![Spot::Key(key.to_owned())]
    }

    fn below(dirs: &[&str]) -> Vec<Spot> {
        dirs.iter().map(|dir| Spot::Below((*dir).to_owned())).collect()
    }

    fn begin(
        namespace: &Arc<Namespace>,
        spots: Vec<Spot>,
        alone: bool,
    ) -> impl Future<Output = Option<Claim>> + use<> {
        let namespace = Arc::clone(namespace);
        async move { namespace.claim(spots, alone, &Arc::default(), LONG).await }
    }

    fn now(waiting: &mut std::pin::Pin<Box<impl Future<Output = Option<Claim>>>>) -> Option<Option<Claim>> {
        futures::FutureExt::now_or_never(waiting.as_mut())
    }

    #[test]
    fn what_is_below_a_directory_overlaps_what_is_above_and_below_it_and_nothing_else() {
        let dir = |prefix: &str| Spot::Below(prefix.to_owned());
        let file = |key: &str| Spot::Key(key.to_owned());
        let meets = |one: &Spot, other: &Spot| {
            assert_eq!(one.overlaps(other), other.overlaps(one));
            one.overlaps(other)
        };
        assert!(meets(&dir("a/b/"), &dir("a/b/")) && meets(&dir("a/b/"), &dir("a/")));
        assert!(meets(&dir("a/"), &file("a/b")) && meets(&dir("a/"), &file("a/")));
        assert!(
            !meets(&dir("a/"), &file("a"))
                && !meets(&dir("a/"), &file("ab"))
                && !meets(&dir("a/"), &dir("ab/"))
        );
        assert!(meets(&file("a"), &file("a")) && !meets(&file("a"), &file("a/b")));
    }

    #[tokio::test]
    async fn a_rename_keeps_out_what_is_below_its_names_and_nobody_else() {
        let namespace = Arc::new(Namespace::default());
        let saving = begin(&namespace, key("d/f"), false).await.unwrap();
        let mut renaming = Box::pin(begin(&namespace, below(&["d/", "e/"]), true));
        assert!(now(&mut renaming).is_none(), "a save is under way below it");
        // Not below it, or not after it.
        let _elsewhere = begin(&namespace, key("f"), false).await.unwrap();
        let mut later = Box::pin(begin(&namespace, key("e/g"), false));
        assert!(now(&mut later).is_none(), "who comes later does not pass by");
        drop(saving);
        let renaming = now(&mut renaming).unwrap().unwrap();
        assert!(now(&mut later).is_none());
        drop(renaming);
        assert!(now(&mut later).unwrap().is_some());
        let claims = lock(&namespace.claims);
        assert_eq!((claims.by_turn.len(), claims.alone), (1, 0), "of those that were dropped nothing stays");
    }

    #[tokio::test]
    async fn who_gives_up_is_in_nobody_s_way() {
        let namespace = Arc::new(Namespace::default());
        let _saving = begin(&namespace, key("d/f"), false).await.unwrap();
        let mut renaming = Box::pin(begin(&namespace, below(&["d/"]), true));
        assert!(now(&mut renaming).is_none());
        let mut later = Box::pin(begin(&namespace, key("d/g"), false));
        assert!(now(&mut later).is_none());
        drop(renaming);
        assert!(now(&mut later).unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_waited_for_while_its_holder_moves_and_silence_is_counted_once() {
        const SILENCE: Duration = Duration::from_secs(10);
        let namespace = Arc::new(Namespace::default());
        let holder = Arc::<Progress>::default();
        let renaming = namespace.claim(below(&["d/"]), true, &holder, SILENCE).await.unwrap();
        let moving = async {
            for _ in 0..3 {
                tokio::time::sleep(SILENCE * 8 / 10).await;
                holder.moved();
            }
            tokio::time::sleep(SILENCE * 6 / 10).await;
            drop(renaming);
        };
        let begun = Instant::now();
        let mine = Arc::default();
        let (_, claim) = tokio::join!(moving, namespace.claim(key("d/f"), false, &mine, SILENCE));
        assert_eq!(begun.elapsed(), SILENCE * 3);
        let quiet = claim.unwrap().quiet;
        assert_eq!(quiet, SILENCE * 6 / 10, "since the holder moved last");

        let _silent = namespace.claim(below(&["e/"]), true, &holder, SILENCE).await.unwrap();
        let begun = Instant::now();
        assert!(namespace.claim(key("e/f"), false, &Arc::default(), SILENCE).await.is_none());
        assert_eq!(begun.elapsed(), SILENCE);
    }
}
