//! Making what is neither a file nor a directory: symbolic links, FIFOs and sockets; and the object of any new name.
//!
//! A symbolic link is an object whose bytes are where it leads, as s3fs has it; a FIFO or socket is an empty one. What they
//! are, only their metadata says.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;

use super::names::{At, require_new_name};
use super::{Attr, Fs, Maker, PosixMode, lock};
use crate::error::{Error, Kind, Result};
use crate::s3::{Attributes, Condition, GetRequest, Metadata, PutRequest, Written, read_all};
use crate::tree::keys::Name;
use crate::tree::posix::{self, FileType, Posix};
use crate::tree::{Facts, Found, Ino, xattrs};

/// The longest path that Linux follows, in bytes.
const TARGET_MAX: u64 = 4096;

impl Fs {
    /// Makes a symbolic link. It is in S3 when this returns.
    pub async fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, made: Maker) -> Result<Attr> {
        let target = Bytes::copy_from_slice(target.as_bytes());
        if target.len() as u64 >= TARGET_MAX {
            return Err(Error::new(Kind::NameTooLong, "the link leads to a path that is too long"));
        }
        let made = Maker { mode: 0o777, ..made };
        self.make(parent, name, FileType::Symlink, target, made).await
    }

    /// Makes a FIFO or socket.
    pub async fn mknod(&self, parent: Ino, name: &OsStr, file_type: FileType, made: Maker) -> Result<Attr> {
        match file_type {
            FileType::Fifo | FileType::Socket => self.make(parent, name, file_type, Bytes::new(), made).await,
            _ => Err(Error::new(Kind::NotPermitted, "devices cannot be made on this mount")),
        }
    }

    async fn make(
        &self,
        parent: Ino,
        name: &OsStr,
        file_type: FileType,
        body: Bytes,
        made: Maker,
    ) -> Result<Attr> {
        if self.options.posix == PosixMode::Off {
            let told =
                "with --posix=off nothing says what an object is, so there are only files and directories";
            return Err(Error::new(Kind::NotPermitted, told));
        }
        let name = Name::parse(name)?;
        self.require_writable(parent)?;
        let (id, volume, dir) = self.dir_in_volume(parent)?;
        require_new_name(&dir, &name)?;
        let _turn = self.turns.take(parent, &name).await;
        self.settle(&volume, parent, &dir.object_key(&name)?).await?;
        if self.within(self.resolve(parent, &name)).await?.is_some() {
            return Err(Error::new(Kind::AlreadyExists, "file exists"));
        }
        let now = self.clock.wall();
        let posix =
            Posix { mtime: Some(now), ..self.posix_of_new(parent, file_type, made).unwrap_or_default() };
        let mut attributes = volume.new_objects.placeholder();
        // A guess by the name would be of a file's bytes.
        attributes.content_type = Some("application/octet-stream".to_owned());
        posix::write(&mut attributes.metadata, &posix);
        let at = At { parent, name: name.clone(), id, volume, dir };
        let (at, _shared) = self.share(at, At::key).await?;
        let (key, size) = (at.dir.object_key(&name)?, body.len() as u64);
        let written = self.put_new(&at, &key, body, attributes).await?;
        let saved_at = Some(self.clock.wall());
        let facts = Facts { saved_at, ..Facts::made_here(size, Some(written.etag), now, Arc::new(posix)) };
        let entry = {
            let mut tree = self.tree();
            let entry = tree.create(parent, &name, Found::File(facts), false, self.clock.now())?;
            tree.changed_dir(parent, Some(now));
            tree.looked_up(entry.ino);
            entry
        };
        lock(&self.siblings).changed(id, &key);
        Ok(self.attr_of(&entry))
    }

    /// Puts the object of a name that nobody has, on any host, or fails `AlreadyExists`, as far as the server can tell. Its
    /// directory says first that there are attributes in it, if it has any. The caller shares the name's keys.
    pub(super) async fn put_new(
        &self,
        at: &At,
        key: &str,
        body: Bytes,
        mut attributes: Attributes,
    ) -> Result<Written> {
        self.within(self.carry_for(at.parent, &attributes.metadata)).await?;
        let is_known = at.volume.honoured().await.put;
        if is_known && !posix::says_mtime(&attributes.metadata) {
            sign(&mut attributes.metadata);
        }
        let (metadata, size) = (attributes.metadata.clone(), body.len() as u64);
        let request = PutRequest {
            bucket: at.volume.bucket.clone(),
            key: key.to_owned(),
            body,
            attributes,
            condition: if is_known { Condition::Absent } else { Condition::Any },
            checksum: None,
        };
        let answer = self.within(at.volume.store.put(request)).await;
        if !matches!(&answer, Err(error) if error.kind() == Kind::AlreadyExists) {
            return answer;
        }
        // A request whose answer was lost is sent again, and finds what it made.
        match self.within(at.volume.store.head(&at.volume.bucket, key, None)).await {
            Ok(info) if info.size == size && info.attributes.metadata == metadata => {
                Ok(Written { etag: info.etag, version_id: info.version_id, checksum: None })
            }
            _ => {
                // It is another client's, and shows from now on.
                self.tree().forget_name(at.parent, &at.name);
                answer
            }
        }
    }

    /// Where a symbolic link leads.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let entry = self.tree().entry(ino)?;
        let Found::File(facts) = &entry.found else { return Err(no_link()) };
        let said = facts.posix.clone().unwrap_or_default();
        if said.file_type != Some(FileType::Symlink) {
            return Err(no_link());
        }
        let (id, key) = self.tree().object_place(ino)?;
        let volume = self.volume(id)?;
        if let Some(target) = &said.target {
            let target = path_from(Bytes::copy_from_slice(target));
            return target.map_err(|error| error.on("readlink", &volume.bucket, &key));
        }
        if facts.size >= TARGET_MAX {
            return Err(too_long().on("readlink", &volume.bucket, &key));
        }
        let request = GetRequest {
            bucket: volume.bucket.clone(),
            key: key.clone(),
            if_match: facts.etag.clone(),
            ..GetRequest::default()
        };
        let read = self.within(read_all(&*volume.store, request, TARGET_MAX - 1)).await;
        match read {
            Err(error) if error.kind() == Kind::TooLarge => {
                Err(too_long().on("readlink", &volume.bucket, &key))
            }
            read => path_from(read?.1).map_err(|error| error.on("readlink", &volume.bucket, &key)),
        }
    }
}

/// A target that a program here could have given to a link: to the kernel a path ends at the first NUL, and to whoever reads it
/// elsewhere it does not.
fn path_from(target: Bytes) -> Result<Bytes> {
    if target.len() as u64 >= TARGET_MAX {
        return Err(too_long());
    }
    if target.is_empty() || target.contains(&0) {
        let told = "the object says that it is a symbolic link, and no path is in it";
        return Err(Error::new(Kind::Corrupt, told));
    }
    Ok(target)
}

fn too_long() -> Error {
    Error::new(Kind::Corrupt, "the object says that it is a symbolic link, and is longer than any path")
}

/// Says which request makes an object, where nothing else that it says is its alone.
fn sign(metadata: &mut Metadata) {
    let mut signed = metadata.clone();
    signed.insert(posix::MADE.to_owned(), format!("{:016x}", rand::random::<u64>()));
    if xattrs::fits(&signed) {
        *metadata = signed;
    }
}

fn no_link() -> Error {
    Error::new(Kind::InvalidArgument, "not a symbolic link")
}
