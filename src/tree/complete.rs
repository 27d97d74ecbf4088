//! Directories that were listed to their end: a name that was not in the listing is absent.
//!
//! Owns: the names of each such listing, as hashes, for as long as an absence is believed. Bounded: at [`NAMES_MAX`] over
//! all directories no further listing is kept.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Ino;
use super::keys::Name;
use super::listing::hash_of;

/// Over all directories, at eight bytes each.
const NAMES_MAX: usize = 500_000;

#[derive(Debug)]
pub(super) struct Complete {
    dirs: HashMap<Ino, Known>,
    /// How long an absence is believed.
    ttl: Duration,
}

#[derive(Debug)]
struct Known {
    /// Hashes, in order.
    names: Vec<u64>,
    /// When the first page was asked for.
    asked: Instant,
}

impl Complete {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { dirs: HashMap::new(), ttl }
    }

    /// A directory has these names, hashed and in order, and no others, as was asked for at `asked`.
    pub(super) fn add(&mut self, dir: Ino, names: Vec<u64>, asked: Instant, now: Instant) {
        let ttl = self.ttl;
        self.dirs.retain(|_, known| now < known.asked + ttl);
        let kept: usize = self.dirs.values().map(|known| known.names.len() + 1).sum();
        if kept + names.len() < NAMES_MAX {
            self.dirs.insert(dir, Known { names, asked });
        }
    }

    /// A name is changed here: from now on what is known of it is kept elsewhere.
    pub(super) fn leave(&mut self, dir: Ino, name: &Name) {
        if let Some(known) = self.dirs.get_mut(&dir) {
            let hash = hash_of(name);
            if let Err(at) = known.names.binary_search(&hash) {
                known.names.insert(at, hash);
            }
        }
    }

    /// Until when a name is absent because its directory was listed to its end without it.
    pub(super) fn lacks_until(&self, dir: Ino, name: &Name) -> Option<Instant> {
        let known = self.dirs.get(&dir)?;
        // An escape may stand for something beside a name that was listed.
        let lacks = !name.as_str().contains("%~") && known.names.binary_search(&hash_of(name)).is_err();
        lacks.then_some(known.asked + self.ttl)
    }

    pub(super) fn forget(&mut self, dir: Ino) {
        self.dirs.remove(&dir);
    }

    /// Keeps what stays, by when it is believed no longer.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(Instant) -> bool) {
        let ttl = self.ttl;
        self.dirs.retain(|_, known| stays(known.asked + ttl));
    }
}
