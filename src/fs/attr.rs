//! What `stat` answers, and what it would answer of something that says nothing of itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Fs, PosixMode, lock};
use crate::error::Result;
use crate::tree::posix::{FileType, Posix};
use crate::tree::{AttrChanges, Entry, Found, Ino};

/// Attributes of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub file_type: FileType,
    /// Bytes.
    pub size: u64,
    pub mtime: SystemTime,
    pub atime: SystemTime,
    pub ctime: SystemTime,
    /// Permission bits.
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    /// 0 of an open file whose name is gone; otherwise 1, which says of a directory that its subdirectories were not counted.
    pub nlink: u32,
    /// Of a device.
    pub rdev: u32,
    /// How long this may be believed from now on: the metadata TTL less the age of what S3 said.
    pub ttl: Duration,
}

impl Attr {
    pub fn is_dir(&self) -> bool {
        self.file_type == FileType::Directory
    }
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
    /// Whether who cuts the file takes its set-user-ID and set-group-ID away by that.
    pub drops_privileges: bool,
}

impl SetAttr {
    /// What they change of something that is so now.
    fn changes(&self, now: &Attr) -> AttrChanges {
        // As Linux does it for local files: a new owner of a file gets it without the old one's privileges.
        let drops = self.uid.is_some() || self.gid.is_some() || self.drops_privileges;
        let mode = self.mode.or_else(|| drops.then(|| without_privileges(now)).flatten());
        AttrChanges { mode, uid: self.uid, gid: self.gid, atime: self.atime, mtime: self.mtime }
    }
}

/// Permissions without set-user-ID, and set-group-ID where that is one, if that makes a difference.
fn without_privileges(attr: &Attr) -> Option<u32> {
    let of_group = attr.perm & 0o010 != 0;
    let perm = attr.perm & if of_group { !0o6000 } else { !0o4000 };
    (attr.file_type == FileType::Regular && perm != attr.perm).then_some(u32::from(perm))
}

/// Who makes something, and with which permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maker {
    /// Permission bits, less the umask.
    pub mode: u32,
    /// User and group; `None` is the mount's own.
    pub owner: Option<(u32, u32)>,
}

impl Maker {
    /// The mount's owner.
    pub fn of_mode(mode: u32) -> Self {
        Self { mode, owner: None }
    }

    /// The same where the mount alone remembers it.
    pub(super) fn remembered(self) -> AttrChanges {
        let (uid, gid) = self.owner.unzip();
        AttrChanges { mode: Some(self.mode & 0o7777), uid, gid, ..AttrChanges::default() }
    }
}

/// A directory's size: a fixed figure, since a listing has none.
const DIR_SIZE: u64 = 4096;
/// Group and set-group-ID of a directory go to what is made in it.
const SET_GID: u16 = 0o2000;

impl Fs {
    /// The attributes of an entry: what S3 said, under what was written and set here.
    pub(super) fn attr_of(&self, entry: &Entry) -> Attr {
        let is_file = !entry.is_dir();
        let open = is_file.then(|| lock(&self.files).known(entry.ino)).flatten();
        let unsaved = open.and_then(|file| file.unsaved());
        // What was unsaved when the entry was read may have been saved since, and then the entry is of the version before.
        let read_again = (is_file && unsaved.is_none()).then(|| self.tree().entry(entry.ino).ok()).flatten();
        let entry = read_again.as_ref().unwrap_or(entry);
        let nameless = unsaved.as_ref().is_some_and(|unsaved| unsaved.nameless);
        let ttl = self.options.ttl;
        let left = entry.believed.left(self.clock.now(), ttl);
        let (size, dated, posix, ttl) = match (&entry.found, unsaved) {
            (Found::Dir { marker }, _) => {
                let marker = marker.marker();
                let dated = marker.map_or(self.mounted_at, |marker| marker.modified);
                (DIR_SIZE, dated, marker.and_then(|marker| marker.posix.clone()), left)
            }
            // What is written here and not saved is nobody else's.
            (Found::File(_), Some(unsaved)) => (unsaved.len, unsaved.written_at, Some(unsaved.posix), ttl),
            (Found::File(facts), None) => (facts.size, facts.mtime, facts.posix.clone(), left),
        };
        let said = match self.options.posix {
            PosixMode::Off => Arc::default(),
            _ => posix.unwrap_or_default(),
        };
        let file_type = match (is_file, said.file_type) {
            (false, _) => FileType::Directory,
            // What has a file's key is no directory, whatever it says.
            (true, None | Some(FileType::Directory)) => FileType::Regular,
            (true, Some(file_type)) => file_type,
        };
        let changes = &entry.changes;
        let set_mode = changes.mode.and_then(|mode| u16::try_from(mode & 0o7777).ok());
        let mtime = changes.mtime.or(said.mtime).unwrap_or(dated);
        // A directory's own time is that of its marker until something comes into it or leaves it.
        let mtime = entry.changed_at.map_or(mtime, |at| at.max(mtime));
        let ctime = match (said.ctime, said.mtime) {
            (Some(ctime), Some(_)) => ctime,
            // The bytes are newer than what was said of them.
            (Some(ctime), None) => ctime.max(mtime),
            (None, Some(_)) => dated,
            (None, None) => mtime,
        };
        let touched = entry.changed_at.max(entry.renamed_at);
        Attr {
            ino: entry.ino,
            file_type,
            size: said.target.as_ref().map_or(size, |target| target.len() as u64),
            mtime,
            atime: changes.atime.or(said.atime).unwrap_or(mtime),
            ctime: touched.map_or(ctime, |at| at.max(ctime)),
            perm: set_mode.or(said.perm).unwrap_or_else(|| self.usual_perm(file_type)),
            uid: changes.uid.or(said.uid).unwrap_or(self.options.uid),
            gid: changes.gid.or(said.gid).unwrap_or(self.options.gid),
            nlink: u32::from(!nameless),
            rdev: said.rdev.unwrap_or(0),
            ttl,
        }
    }

    /// Permissions of what says nothing of them.
    fn usual_perm(&self, file_type: FileType) -> u16 {
        match file_type {
            FileType::Directory => self.options.dir_mode,
            FileType::Symlink => 0o777,
            _ => self.options.file_mode,
        }
    }

    /// Attributes of something that is about to be made in a directory, as far as they have to be stored: not those of a
    /// file or directory that looks as it would by itself. `None` where the mount stores nothing of anything.
    pub(super) fn posix_of_new(&self, parent: Ino, file_type: FileType, made: Maker) -> Option<Posix> {
        if self.options.posix == PosixMode::Off {
            return None;
        }
        let above = self.tree().entry(parent).ok().map(|entry| self.attr_of(&entry));
        let inherits = above.filter(|above| above.perm & SET_GID != 0);
        let (uid, gid) = made.owner.unwrap_or((self.options.uid, self.options.gid));
        let gid = inherits.map_or(gid, |above| above.gid);
        let mut perm = u16::try_from(made.mode & 0o7777).unwrap_or_default();
        if inherits.is_some() && file_type == FileType::Directory {
            perm |= SET_GID;
        }
        let usual = matches!(file_type, FileType::Regular | FileType::Directory)
            && perm == self.usual_perm(file_type)
            && (uid, gid) == (self.options.uid, self.options.gid);
        if usual && self.options.posix != PosixMode::Full {
            return Some(Posix::default());
        }
        Some(Posix {
            file_type: Some(file_type),
            perm: Some(perm),
            uid: Some(uid),
            gid: Some(gid),
            ..Posix::default()
        })
    }

    /// All that has to be stored of something for it to look as it does, `now` and by what its metadata says at last, but
    /// for these changes. `dated` is its time where S3 will give it another.
    pub(super) fn posix_changed(
        &self,
        now: &Attr,
        said: &Posix,
        changes: AttrChanges,
        dated: Option<SystemTime>,
    ) -> Posix {
        let mode = changes.mode.and_then(|mode| u16::try_from(mode & 0o7777).ok());
        Posix {
            file_type: Some(now.file_type),
            perm: Some(mode.or(said.perm).unwrap_or(now.perm)),
            uid: Some(changes.uid.or(said.uid).unwrap_or(now.uid)),
            gid: Some(changes.gid.or(said.gid).unwrap_or(now.gid)),
            mtime: changes.mtime.or(said.mtime).or(dated),
            atime: changes.atime.or(said.atime),
            ctime: Some(self.clock.wall()),
            rdev: said.rdev,
            target: None,
        }
    }

    /// Somebody without the right to keep them writes to a file that has set-user-ID or set-group-ID.
    pub async fn drop_privileges(self: &Arc<Self>, ino: Ino) -> Result<()> {
        self.setattr(ino, None, SetAttr { drops_privileges: true, ..SetAttr::default() }).await.map(drop)
    }

    /// Changes attributes. What `--posix` says is kept in S3; otherwise they live as long as the mount remembers the file.
    pub async fn setattr(self: &Arc<Self>, ino: Ino, fh: Option<u64>, set: SetAttr) -> Result<Attr> {
        self.require_writable(ino)?;
        if let Some(size) = set.size {
            self.truncate(ino, fh, size).await?;
        }
        let entry = self.tree().entry(ino)?;
        let changes = set.changes(&self.attr_of(&entry));
        if changes != AttrChanges::default() {
            self.change_attributes(ino, changes).await?;
        }
        let entry = self.tree().entry(ino)?;
        Ok(self.attr_of(&entry))
    }
}
