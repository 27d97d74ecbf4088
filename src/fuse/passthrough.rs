//! How the kernel has each inode open, and which inodes it reads by itself.
//!
//! The kernel knows two ways of serving an inode: through its page cache, by asking us, and straight from a backing
//! file. It refuses to mix them: while any handle is backed, every other open of the inode has to name the same
//! backing file, and while any handle is cached, none may be backed (EIO to whoever opens). So the way is chosen here,
//! for the inode, and kept as long as it has handles. The count here is never behind the kernel's: a handle counts
//! from before our answer until after the kernel's release.
//!
//! ```text
//!                 a reader's open, whole file at hand
//!     no handles ------------------------------------> Backed: readers of this version join in,
//!         |                                            anybody else is sent to another inode (ESTALE)
//!         '--- any other open ---> Cached: everybody joins in
//! ```
//! A handle that writes is never backed, not even beside readers that are: a shared mapping of it would write into
//! the backing file.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackingId, ReplyOpen};

use crate::fs::Version;
use crate::tree::Ino;

/// The kernel's handles on the inodes of one mount.
#[derive(Default)]
pub(super) struct Passthrough {
    modes: Mutex<Modes<Version, Arc<BackingId>>>,
    enabled: AtomicBool,
}

/// Which inode serves an open.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<B> {
    Cached,
    Backed(B),
    /// This inode cannot: the name needs another one.
    Elsewhere,
}

impl Passthrough {
    /// The kernel offers it.
    pub(super) fn enable(&self) {
        self.enabled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Counts a handle that goes through the page cache; `None` where the inode is backed.
    pub(super) fn cached(self: &Arc<Self>, ino: Ino) -> Option<Counted> {
        self.lock().open_cached(ino).then(|| Counted { all: Arc::clone(self), ino, kept: false })
    }

    /// Counts a reader's handle on this version, backed by `file` if nothing speaks against it.
    pub(super) fn reader(
        &self,
        reply: &ReplyOpen,
        ino: Ino,
        version: Option<&Version>,
        file: Option<std::fs::File>,
    ) -> Answer<Arc<BackingId>> {
        self.lock().open_reader(ino, version, || {
            let refused = match reply.open_backing(file?) {
                Ok(backing) => return Some(Arc::new(backing)),
                Err(error) => error,
            };
            tracing::debug!(error = %refused, "the kernel does not take a backing file; going on without");
            self.enabled.store(false, Ordering::Relaxed);
            None
        })
    }

    /// The kernel has released a handle.
    pub(super) fn released(&self, ino: Ino) {
        self.lock().closed(ino);
    }

    fn lock(&self) -> MutexGuard<'_, Modes<Version, Arc<BackingId>>> {
        self.modes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle that counts. Unless it is kept, for the kernel to release, it ends with this.
pub(super) struct Counted {
    all: Arc<Passthrough>,
    ino: Ino,
    kept: bool,
}

impl Counted {
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.kept {
            self.all.released(self.ino);
        }
    }
}

/// Handles by inode. Pure: what a version and a backing are does not matter.
#[derive(Debug)]
struct Modes<V, B>(HashMap<Ino, Open<V, B>>);

#[derive(Debug)]
struct Open<V, B> {
    handles: u32,
    backed: Option<(V, B)>,
}

impl<V, B> Default for Modes<V, B> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<V: Clone + PartialEq, B: Clone> Modes<V, B> {
    fn open_cached(&mut self, ino: Ino) -> bool {
        let open = self.0.entry(ino).or_insert(Open { handles: 0, backed: None });
        let can = open.backed.is_none();
        open.handles += u32::from(can);
        can
    }

    fn open_reader(&mut self, ino: Ino, version: Option<&V>, back: impl FnOnce() -> Option<B>) -> Answer<B> {
        match self.0.get_mut(&ino) {
            Some(Open { handles, backed: Some((of, backing)) }) => {
                if version != Some(of) {
                    return Answer::Elsewhere;
                }
                *handles += 1;
                Answer::Backed(backing.clone())
            }
            Some(open) => {
                open.handles += 1;
                Answer::Cached
            }
            None => {
                let backed = version.cloned().zip(version.and_then(|_| back()));
                let answer = backed.as_ref().map_or(Answer::Cached, |(_, b)| Answer::Backed(b.clone()));
                self.0.insert(ino, Open { handles: 1, backed });
                answer
            }
        }
    }

    fn closed(&mut self, ino: Ino) {
        let Some(open) = self.0.get_mut(&ino) else { return };
        open.handles -= 1;
        if open.handles == 0 {
            self.0.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write,
        Read { version: Option<u8>, whole: bool },
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Write),
            (proptest::option::of(0u8..2), any::<bool>())
                .prop_map(|(version, whole)| Step::Read { version, whole }),
            Just(Step::Close),
        ]
    }

    proptest! {
        /// The kernel's rule: handles of an inode are all cached, or all backed by one file of one version.
        #[test]
        fn ways_are_never_mixed(steps in proptest::collection::vec(step(), 0..60)) {
            let ino = Ino(7);
            let mut modes: Modes<u8, u32> = Modes::default();
            let mut backings = 0;
            // What each open handle was told: a backing and its version, or the cache.
            let mut handles: Vec<Option<(u32, u8)>> = Vec::new();
            for step in steps {
                match step {
                    Step::Write => {
                        let backed = handles.iter().any(Option::is_some);
                        prop_assert_eq!(modes.open_cached(ino), !backed);
                        if !backed {
                            handles.push(None);
                        }
                    }
                    Step::Read { version, whole } => {
                        let answer = modes.open_reader(ino, version.as_ref(), || {
                            backings += 1;
                            whole.then_some(backings)
                        });
                        match answer {
                            Answer::Cached => handles.push(None),
                            Answer::Backed(backing) => handles.push(version.map(|v| (backing, v))),
                            Answer::Elsewhere => prop_assert!(handles.iter().any(Option::is_some)),
                        }
                    }
                    Step::Close => {
                        if handles.pop().is_some() {
                            modes.closed(ino);
                        }
                    }
                }
                prop_assert!(handles.windows(2).all(|two| two[0] == two[1]), "{:?}", handles);
                prop_assert_eq!(modes.0.get(&ino).map_or(0, |open| open.handles as usize), handles.len());
            }
        }
    }
}
