//! What exists, as far as we know: names, keys and inodes.
//!
//! Owns: the inode table, what S3 said of each name and until when to believe it, names known to be
//! absent, which names changed here while a request was on its way, and what was listed ahead of walks.
//! Does not own: bytes (`read`, `write`), open handles (`fs`), or any request: everything here is pure,
//! and time is an argument. The codecs of what user metadata carries live here too: [`posix`] and [`xattrs`].
//!
//! Invariants
//! 1. Parent links form a tree with [`ROOT`] at its top. An inode stores its parent and its name; keys are
//!    computed, so renaming a directory relinks one node.
//! 2. No two nodes have one inode number at a time. It follows from the path that the node was made at, so that it is the
//!    same in every mount; a node that is dropped leaves it to the next one of that path.
//! 3. A node lives while the kernel counts lookups of it, a handle is open on it, or a child lives.
//! 4. An answer that was asked for before a local change of the same name never overrules that change
//!    (see [`Ticket`]).
//! 5. A name is either a child node, a remembered fact or a remembered absence, never two of them.

pub mod ahead;
mod changes;
mod complete;
mod inodes;
pub mod keys;
pub mod lines;
pub mod listing;
mod news;
pub(crate) mod numbers;
mod outlook;
pub mod posix;
pub mod split;
pub mod walk;
pub mod xattrs;

pub use changes::Ticket;
pub use inodes::{Listed, Tree};
pub use news::Invalidation;
pub use outlook::{Opening, Outlook};

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::base::ETag;
use crate::s3::{ListedObject, Metadata, ObjectInfo};
use keys::DirKey;
use posix::{FileType, Posix};

/// An inode number, as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// The mount's root.
pub const ROOT: Ino = Ino(1);

/// A bucket and prefix of this mount, by its place in the mount's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(pub u32);

/// What S3 says an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub size: u64,
    /// `None` while the file exists only here.
    pub etag: Option<ETag>,
    pub mtime: SystemTime,
    /// When S3 says that the object was made; `None` as long as it has not said so of one that was made here.
    pub modified: Option<SystemTime>,
    /// Otherwise when this mount saved it, by its own clock, if that is known.
    pub saved_at: Option<SystemTime>,
    pub archived: bool,
    /// What its metadata says of POSIX attributes: `None` where only a listing was asked, which does not tell.
    pub posix: Option<Arc<Posix>>,
}

impl Facts {
    /// What S3 has is now this, of a file whose attributes are known.
    pub fn made_here(size: u64, etag: Option<ETag>, mtime: SystemTime, posix: Arc<Posix>) -> Self {
        Self { size, etag, mtime, modified: None, saved_at: None, archived: false, posix: Some(posix) }
    }

    /// Takes over what was known of the same object and these facts do not tell.
    fn keep(&mut self, old: &Self) {
        // Another client may have changed what is beside the bytes since they were saved here.
        let near = |saved: SystemTime, dated: SystemTime| {
            dated <= saved + inodes::DATING_DELAY && saved <= dated + inodes::DATING_DELAY
        };
        let ours = match (old.modified, old.saved_at, self.modified) {
            (None, Some(saved), Some(dated)) => near(saved, dated),
            _ => true,
        };
        if self.posix.is_none() && ours && self.is_as_dated(old) {
            self.posix.clone_from(&old.posix);
        }
    }

    /// Whether these are of the same object, metadata included. A copy of one onto itself has the same bytes and another
    /// date; HEAD dates in whole seconds, and many servers' LIST more finely.
    fn is_as_dated(&self, old: &Self) -> bool {
        let second = |at: Option<SystemTime>| {
            at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|since| since.as_secs())
        };
        // What was made here is dated when it is first seen.
        let dated = old.modified.is_none() || second(old.modified) == second(self.modified);
        self.etag == old.etag && dated
    }
}

/// What is known of a directory's marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    pub modified: SystemTime,
    /// `None` where it was not asked for.
    pub posix: Option<Arc<Posix>>,
    /// Whether it says that what is in the directory may have attributes of its own.
    pub carries: bool,
}

impl Marker {
    /// One of which no more is known than that it is there.
    pub fn listed(modified: SystemTime) -> Self {
        Self { modified, posix: None, carries: false }
    }

    /// Whether what it says was asked for, and is of one that is no older than what a listing shows. HEAD dates in whole
    /// seconds.
    pub fn tells(&self, listed: SystemTime) -> bool {
        self.posix.is_some() && listed < self.modified + Duration::from_secs(1)
    }

    /// One that a listing shows and S3 has no object of: some servers keep a marker as a directory. It says nothing.
    #[must_use]
    pub fn without_object(self) -> Self {
        Self::with(&Metadata::new(), self.modified)
    }

    /// One that S3 was asked for.
    pub fn described(info: &ObjectInfo) -> Self {
        Self::with(&info.attributes.metadata, info.last_modified)
    }

    /// One that has this metadata.
    pub fn with(metadata: &Metadata, modified: SystemTime) -> Self {
        let posix = Posix::of(metadata);
        let carries = !posix.is_empty() || metadata.contains_key(posix::CARRIES);
        Self { modified, posix: Some(Arc::new(posix)), carries }
    }
}

impl From<&ListedObject> for Facts {
    fn from(object: &ListedObject) -> Self {
        Self {
            size: object.size,
            etag: Some(object.etag.clone()),
            mtime: object.last_modified,
            modified: Some(object.last_modified),
            saved_at: None,
            archived: crate::s3::is_archived(object.storage_class.as_deref(), object.restored == Some(true)),
            posix: None,
        }
    }
}

impl From<&ObjectInfo> for Facts {
    fn from(object: &ObjectInfo) -> Self {
        let restored = object.restore.as_deref().is_some_and(|r| r.contains("ongoing-request=\"false\""));
        Self {
            size: object.size,
            etag: Some(object.etag.clone()),
            mtime: object.last_modified,
            modified: Some(object.last_modified),
            saved_at: None,
            archived: crate::s3::is_archived(object.attributes.storage_class.as_deref(), restored),
            posix: Some(Arc::new(Posix::of(&object.attributes.metadata))),
        }
    }
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    File(Facts),
    Dir { marker: Marked },
}

/// What is known of a directory having a marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marked {
    /// A listing of the directory above does not show it.
    Unseen,
    /// There is none.
    No,
    Yes(Marker),
}

impl Marked {
    pub fn marker(&self) -> Option<&Marker> {
        match self {
            Self::Yes(marker) => Some(marker),
            Self::Unseen | Self::No => None,
        }
    }

    /// Whether there is no more to be known of it than this.
    pub fn is_told(&self) -> bool {
        match self {
            Self::Unseen => false,
            Self::No => true,
            Self::Yes(marker) => marker.posix.is_some(),
        }
    }
}

impl Found {
    /// Whether this is a symbolic link, and what has its name now is another thing.
    fn leads_elsewhere(&self, now: &Self) -> bool {
        let (Self::File(old), Self::File(new)) = (self, now) else { return false };
        let is_link = old.posix.as_ref().is_some_and(|posix| posix.file_type == Some(FileType::Symlink));
        let target = |facts: &Facts| facts.posix.as_ref().and_then(|posix| posix.target.clone());
        is_link && (old.etag != new.etag || (new.posix.is_some() && target(old) != target(new)))
    }
}

/// An inode as `fs` needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub ino: Ino,
    pub found: Found,
    /// What chmod, chown and utimens said on this mount and nobody else hears of.
    pub changes: AttrChanges,
    /// Of a directory: when something came into it or left it here.
    pub changed_at: Option<SystemTime>,
    /// When it was given another name here.
    pub renamed_at: Option<SystemTime>,
    pub believed: Believed,
}

/// How long what is known of an inode may be answered without asking S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Believed {
    /// It is this mount's own word.
    Always,
    Until(Instant),
    /// The next question goes to S3.
    No,
}

impl Believed {
    /// For how much longer, of at most `ttl`.
    pub fn left(self, now: Instant, ttl: Duration) -> Duration {
        match self {
            Self::Always => ttl,
            Self::Until(until) => until.saturating_duration_since(now).min(ttl),
            Self::No => Duration::ZERO,
        }
    }
}

impl Entry {
    pub fn is_dir(&self) -> bool {
        matches!(self.found, Found::Dir { .. })
    }
}

/// Attributes set on this mount; `None` is the mount's default or what S3 says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttrChanges {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<SystemTime>,
    pub mtime: Option<SystemTime>,
}

impl AttrChanges {
    /// Lays `newer` over what was said before.
    pub fn merge(&mut self, newer: Self) {
        self.mode = newer.mode.or(self.mode);
        self.uid = newer.uid.or(self.uid);
        self.gid = newer.gid.or(self.gid);
        self.atime = newer.atime.or(self.atime);
        self.mtime = newer.mtime.or(self.mtime);
    }
}

/// Where a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirPlace {
    /// The root of a mount of several buckets: its children are volumes.
    Buckets,
    In {
        volume: VolumeId,
        dir: DirKey,
    },
}

/// What the tree knows about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    Is(Entry),
    Absent,
    /// Ask S3.
    Unknown,
}
