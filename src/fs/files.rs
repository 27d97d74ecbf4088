//! The table of open files.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::file::File;
use crate::tree::Ino;

/// The open files, and those that S3 lacks something of.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Of each inode, the one that an open gets.
    current: HashMap<Ino, Arc<File>>,
    /// Those whose place another one took while a handle might still write to them. They count as much: what is
    /// written to them is saved, or kept in a conflict copy.
    displaced: Vec<Arc<File>>,
    /// Those without a name, as long as handles have them open: `stat` of such a handle is about one of these.
    orphans: HashMap<Ino, Weak<File>>,
}

impl Files {
    pub(super) fn get(&self, ino: Ino) -> Option<&Arc<File>> {
        self.current.get(&ino)
    }

    /// The same, or what an inode without a name was last.
    pub(super) fn known(&self, ino: Ino) -> Option<Arc<File>> {
        self.get(ino).cloned().or_else(|| self.orphans.get(&ino)?.upgrade())
    }

    pub(super) fn is_current(&self, file: &Arc<File>) -> bool {
        self.current.get(&file.ino).is_some_and(|current| Arc::ptr_eq(current, file))
    }

    /// From now on an open of its inode gets this one.
    pub(super) fn put(&mut self, file: Arc<File>) {
        if let Some(old) = self.current.insert(file.ino, file) {
            self.displace(old);
        }
    }

    /// No open gets this one any more.
    pub(super) fn take_place(&mut self, file: &Arc<File>) {
        if self.is_current(file) {
            self.current.remove(&file.ino);
            self.displace(Arc::clone(file));
        }
    }

    /// Takes out a file that is closed and saved.
    pub(super) fn drop_unused(&mut self, file: &Arc<File>) {
        if is_used(file) {
            return;
        }
        if self.is_current(file) {
            self.current.remove(&file.ino);
        }
        self.displaced.retain(|other| !Arc::ptr_eq(other, file));
    }

    /// Takes out every file of an inode that has no name any more, whichever version it is of.
    pub(super) fn orphan(&mut self, ino: Ino) -> Vec<Arc<File>> {
        let mut taken: Vec<_> = self.displaced.extract_if(.., |file| file.ino == ino).collect();
        taken.extend(self.current.remove(&ino));
        self.orphans.retain(|_, file| file.strong_count() > 0);
        if let Some(last) = taken.last() {
            self.orphans.insert(ino, Arc::downgrade(last));
        }
        taken
    }

    /// What opens get.
    pub(super) fn current(&self) -> impl Iterator<Item = &Arc<File>> {
        self.current.values()
    }

    /// Every file, whether an open gets it or not.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<File>> {
        self.current.values().chain(&self.displaced)
    }

    fn displace(&mut self, file: Arc<File>) {
        if is_used(&file) {
            self.displaced.push(file);
        }
    }
}

fn is_used(file: &File) -> bool {
    file.is_open() || file.is_dirty()
}
