//! What `stat` answers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Fs, lock};
use crate::error::Result;
use crate::tree::{AttrChanges, Entry, Found, Ino};

/// Attributes of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
    pub mtime: SystemTime,
    pub atime: SystemTime,
    pub ctime: SystemTime,
    /// Permission bits.
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    /// How long this may be believed from now on: the metadata TTL less the age of what S3 said.
    pub ttl: Duration,
}

/// What `chmod`, `chown`, `utimens` and `truncate` ask for; `None` leaves a thing as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SystemTime>,
    pub mtime: Option<SystemTime>,
}

impl SetAttr {
    pub(super) fn changes(&self) -> AttrChanges {
        AttrChanges { mode: self.mode, uid: self.uid, gid: self.gid, atime: self.atime, mtime: self.mtime }
    }
}

/// A directory's size: a fixed figure, since a listing has none.
const DIR_SIZE: u64 = 4096;

impl Fs {
    /// The attributes of an entry: what S3 said, under what was written and set here.
    pub(super) fn attr_of(&self, entry: &Entry) -> Attr {
        let is_file = !entry.is_dir();
        let open = is_file.then(|| lock(&self.files).known(entry.ino)).flatten();
        let unsaved = open.and_then(|file| file.unsaved());
        // What was unsaved when the entry was read may have been saved since, and then the entry is of the version before.
        let read_again = (is_file && unsaved.is_none()).then(|| self.tree().entry(entry.ino).ok()).flatten();
        let entry = read_again.as_ref().unwrap_or(entry);
        let ttl = self.options.ttl;
        let left = entry.believed.left(self.clock.now(), ttl);
        let (is_dir, size, mtime, ttl) = match (&entry.found, unsaved) {
            (Found::Dir { marker }, _) => (true, DIR_SIZE, marker.unwrap_or(self.mounted_at), left),
            // What is written here and not saved is nobody else's.
            (Found::File(_), Some((len, written_at))) => (false, len, written_at, ttl),
            (Found::File(facts), None) => (false, facts.size, facts.mtime, left),
        };
        let mtime = entry.changes.mtime.unwrap_or(mtime);
        let default_mode = if is_dir { self.options.dir_mode } else { self.options.file_mode };
        let perm = entry
            .changes
            .mode
            .map_or(default_mode, |mode| u16::try_from(mode & 0o7777).unwrap_or(default_mode));
        Attr {
            ino: entry.ino,
            is_dir,
            size,
            mtime,
            atime: entry.changes.atime.unwrap_or(mtime),
            ctime: mtime,
            perm,
            uid: entry.changes.uid.unwrap_or(self.options.uid),
            gid: entry.changes.gid.unwrap_or(self.options.gid),
            ttl,
        }
    }

    /// Changes attributes. Mode, owner and times live as long as the mount remembers the file; size is S3's.
    pub async fn setattr(self: &Arc<Self>, ino: Ino, fh: Option<u64>, set: SetAttr) -> Result<Attr> {
        self.require_writable(ino)?;
        if let Some(size) = set.size {
            self.truncate(ino, fh, size).await?;
        }
        let entry = self.tree().change_attrs(ino, set.changes())?;
        Ok(self.attr_of(&entry))
    }
}
