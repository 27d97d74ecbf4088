//! Files whose bytes are in a local file, which the kernel may then read by itself.
//!
//! While it does, nothing here sees the reads. So an inode that is read that way must not be written: who wants to
//! write gets another inode under the same name ([`Fs::detach`]), and the old one keeps the version it was opened at.

use super::{Fs, lock};
use crate::base::{ETag, Passthrough};
use crate::error::{Error, Kind, Result};
use crate::tree::{Ino, VolumeId};

/// Which bytes a file without unsaved changes has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    etag: ETag,
    size: u64,
}

impl Fs {
    /// The version an open file is of; `None` where S3 lacks something of it.
    pub fn version(&self, fh: u64) -> Option<Version> {
        let object = self.handles.file(fh).ok()?.file.clean_object()?;
        Some(Version { etag: object.id.etag, size: object.size })
    }

    /// A local file with the bytes of an open file, where there is one and the kernel may read it; and the version it
    /// has, since the open file may be of another by the time it is used.
    pub async fn backing(&self, fh: u64) -> Option<(Version, std::fs::File)> {
        let object = self.handles.file(fh).ok()?.file.clean_object()?;
        let allowed = match self.options.passthrough {
            Passthrough::Never => false,
            Passthrough::ReadOnly => self.volume(VolumeId(object.id.volume)).ok()?.read_only,
            Passthrough::Always => true,
        };
        if !allowed {
            return None;
        }
        let file = self.reader.whole(&object).await?;
        Some((Version { etag: object.id.etag, size: object.size }, file))
    }

    /// Takes the name from an inode, which lives on in its handles. The next lookup of the name makes another inode.
    pub fn detach(&self, ino: Ino) -> Result<()> {
        match self.open_file(ino) {
            // It would never be saved.
            Some(file) if file.unsaved().is_some() => {
                return Err(Error::new(Kind::Conflict, "the file is being saved"));
            }
            Some(file) => self.let_go(&file),
            None => self.unlink_inode(ino),
        }
        lock(&self.pages).pop(&ino);
        Ok(())
    }
}
