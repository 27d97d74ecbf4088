//! Programs that run from the mount.
//!
//! Linux keeps everybody from writing to a file that is executed, but for an open that cuts it and does not write
//! (`O_RDONLY | O_TRUNC`): with FUSE_ATOMIC_O_TRUNC that has cut it by the time it is refused.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::tree::Ino;

/// In the flags of an open by `execve`, as the kernel has it; programs cannot ask for it.
pub(super) const FMODE_EXEC: i32 = 0x20;

/// Handles that the kernel executes from, until it releases them.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<u64, Ino>>);

impl Running {
    pub(super) fn begins(&self, fh: u64, ino: Ino) {
        self.lock().insert(fh, ino);
    }

    pub(super) fn ended(&self, fh: u64) {
        self.lock().remove(&fh);
    }

    pub(super) fn is(&self, ino: Ino) -> bool {
        self.lock().values().any(|running| *running == ino)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Ino>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
