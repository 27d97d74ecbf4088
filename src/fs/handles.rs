//! Open handles by number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use super::dirs::DirHandle;
use super::io::FileHandle;
use crate::error::{Error, Kind, Result};

/// What a handle number stands for.
#[derive(Clone)]
enum Handle {
    File(Arc<FileHandle>),
    Dir(Arc<DirHandle>),
}

/// The table of open handles. Numbers are never used twice.
#[derive(Default)]
pub(super) struct Handles {
    table: RwLock<HashMap<u64, Handle>>,
    last: AtomicU64,
}

impl Handles {
    pub(super) fn add_file(&self, handle: FileHandle) -> u64 {
        self.add(Handle::File(Arc::new(handle)))
    }

    pub(super) fn add_dir(&self, handle: DirHandle) -> u64 {
        self.add(Handle::Dir(Arc::new(handle)))
    }

    fn add(&self, handle: Handle) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(number, handle);
        number
    }

    pub(super) fn file(&self, number: u64) -> Result<Arc<FileHandle>> {
        match self.get(number) {
            Some(Handle::File(handle)) => Ok(handle),
            _ => Err(Error::new(Kind::BadHandle, "no such open file")),
        }
    }

    pub(super) fn dir(&self, number: u64) -> Result<Arc<DirHandle>> {
        match self.get(number) {
            Some(Handle::Dir(handle)) => Ok(handle),
            _ => Err(Error::new(Kind::BadHandle, "no such open directory")),
        }
    }

    /// Forgets a number, which was a file's.
    pub(super) fn remove_file(&self, number: u64) -> Option<Arc<FileHandle>> {
        match self.remove(number)? {
            Handle::File(handle) => Some(handle),
            Handle::Dir(_) => None,
        }
    }

    /// Forgets a number, which was a directory's.
    pub(super) fn remove_dir(&self, number: u64) -> Option<Arc<DirHandle>> {
        match self.remove(number)? {
            Handle::Dir(handle) => Some(handle),
            Handle::File(_) => None,
        }
    }

    fn remove(&self, number: u64) -> Option<Handle> {
        self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&number)
    }

    /// Those of files, and those of directories.
    pub(super) fn counts(&self) -> (u64, u64) {
        let table = self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let files = table.values().filter(|handle| matches!(handle, Handle::File(_))).count() as u64;
        (files, table.len() as u64 - files)
    }

    fn get(&self, number: u64) -> Option<Handle> {
        self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(&number).cloned()
    }
}
