//! Extended attributes: `user.NAME` in the object's metadata, and `user.s3.*`, which shows what S3 knows of an object.
//!
//! The second kind is not listed, so that a tool which copies every attribute it sees copies none of them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::Fs;
use super::describe::no_room;
use crate::error::{Error, Kind, Result};
use crate::s3::{Attributes, Encryption, ObjectInfo};
use crate::tree::xattrs::{self, Refusal};
use crate::tree::{AttrChanges, DirPlace, Ino, VolumeId};
use crate::write::head_with_tags;

/// Of everything that a program may ask for, this is answered.
const NAMESPACE: &str = "user.";
const S3: &str = "user.s3.";
/// `user.s3.meta.NAME` is the metadata `x-amz-meta-NAME` as it is.
const PLAIN: &str = "meta.";
/// How long an address is good that is shown to whoever may read the file.
const URL_VALID: Duration = Duration::from_secs(3600);

/// Whether a value may or has to be there before it is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replaces {
    #[default]
    Either,
    /// `XATTR_CREATE`
    Nothing,
    /// `XATTR_REPLACE`
    Something,
}

impl Fs {
    /// The answer, where no object has to be looked at for it.
    pub fn getxattr_now(&self, name: &str) -> Option<Error> {
        // The kernel asks for `security.capability` before it writes, and `ls -l` for ACLs.
        match name.starts_with(NAMESPACE) {
            true => None,
            false if is_acl(name) => Some(unsupported()),
            false => Some(absent()),
        }
    }

    pub async fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>> {
        if let Some(error) = self.getxattr_now(name) {
            return Err(error);
        }
        let Some(name_of_s3) = name.strip_prefix(S3) else {
            let attributes = self.attributes_of(ino).await?;
            return xattrs::get(&attributes.metadata, name).ok_or_else(absent);
        };
        if name_of_s3 == "last_error" {
            let told = self.open_file(ino).and_then(|file| file.last_error());
            return told.map(String::into_bytes).ok_or_else(absent);
        }
        if name_of_s3 == "url" {
            return self.presigned(ino).await.map(String::into_bytes);
        }
        if is_writable(name_of_s3)
            && let Some(attributes) = self.unsaved_attributes(ino)
        {
            return of_attributes(&attributes, name_of_s3).map(String::into_bytes).ok_or_else(absent);
        }
        let info = self.info_of(ino).await?.ok_or_else(absent)?;
        of_object(&info, name_of_s3).map(String::into_bytes).ok_or_else(absent)
    }

    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<String>> {
        Ok(xattrs::names(&self.attributes_of(ino).await?.metadata))
    }

    pub async fn setxattr(
        self: &Arc<Self>,
        ino: Ino,
        name: &str,
        value: &[u8],
        replaces: Replaces,
    ) -> Result<()> {
        let refuse_by = |has: bool| match (replaces, has) {
            (Replaces::Nothing, true) => {
                Err(Error::new(Kind::AlreadyExists, "the extended attribute is there"))
            }
            (Replaces::Something, false) => Err(absent()),
            _ => Ok(()),
        };
        self.change_xattrs(ino, name, |attributes| match name.strip_prefix(S3) {
            Some(name) => {
                refuse_by(of_attributes(attributes, name).is_some())?;
                let value = std::str::from_utf8(value).map_err(|_| {
                    Error::new(Kind::InvalidArgument, "S3 keeps text there, and this is none")
                })?;
                set_of_s3(attributes, name, Some(value))
            }
            None => {
                refuse_by(xattrs::get(&attributes.metadata, name).is_some())?;
                xattrs::set(&mut attributes.metadata, name, value).map_err(refused)
            }
        })
        .await
    }

    pub async fn removexattr(self: &Arc<Self>, ino: Ino, name: &str) -> Result<()> {
        self.change_xattrs(ino, name, |attributes| match name.strip_prefix(S3) {
            Some(name) => {
                of_attributes(attributes, name).ok_or_else(absent)?;
                set_of_s3(attributes, name, None)
            }
            None if xattrs::remove(&mut attributes.metadata, name) => Ok(()),
            None => Err(absent()),
        })
        .await
    }

    async fn change_xattrs(
        self: &Arc<Self>,
        ino: Ino,
        name: &str,
        change: impl Fn(&mut Attributes) -> Result<()>,
    ) -> Result<()> {
        if !name.starts_with(NAMESPACE) {
            return Err(unsupported());
        }
        self.require_writable(ino)?;
        let is_dir = self.tree().entry(ino)?.is_dir();
        match is_dir {
            true => self.describe_dir(ino, AttrChanges::default(), change).await,
            false => self.describe_file(ino, AttrChanges::default(), change).await,
        }
    }

    /// What is, or is about to be, beside an object's bytes; nothing of a directory without a marker.
    async fn attributes_of(&self, ino: Ino) -> Result<Attributes> {
        if let Some(attributes) = self.unsaved_attributes(ino) {
            return Ok(attributes);
        }
        Ok(self.info_of(ino).await?.map(|info| info.attributes).unwrap_or_default())
    }

    fn unsaved_attributes(&self, ino: Ino) -> Option<Attributes> {
        let file = self.open_file(ino).filter(|file| file.unsaved().is_some())?;
        Some(file.attributes())
    }

    /// Where anybody can fetch the object from, for a while.
    async fn presigned(&self, ino: Ino) -> Result<String> {
        let is_in_s3 =
            self.open_file(ino).map_or_else(|| !self.tree().is_local(ino), |file| file.has_object());
        let (id, key) = self.object_of_any(ino)?.filter(|_| is_in_s3).ok_or_else(absent)?;
        let volume = self.volume(id)?;
        self.within(volume.store.presigned(&volume.bucket, &key, URL_VALID)).await
    }

    /// What S3 says of the object of a file, or of a directory's marker.
    async fn info_of(&self, ino: Ino) -> Result<Option<ObjectInfo>> {
        let Some((id, key)) = self.object_of_any(ino)? else { return Ok(None) };
        let volume = self.volume(id)?;
        match self.within(head_with_tags(&*volume.store, &volume.bucket, &key)).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn object_of_any(&self, ino: Ino) -> Result<Option<(VolumeId, String)>> {
        let tree = self.tree();
        if !tree.entry(ino)?.is_dir() {
            return tree.object_place(ino).map(Some);
        }
        Ok(match tree.dir_place(ino)? {
            DirPlace::In { volume, dir } => dir.marker_key().map(|key| (volume, key.to_owned())),
            DirPlace::Buckets => None,
        })
    }
}

/// What can be set, of what S3 has beside an object's bytes.
fn is_writable(name: &str) -> bool {
    let headers = [
        "content_type",
        "cache_control",
        "content_encoding",
        "content_disposition",
        "content_language",
        "expires",
        "storage_class",
        "tags",
    ];
    headers.contains(&name) || name.starts_with(PLAIN)
}

fn of_attributes(attributes: &Attributes, name: &str) -> Option<String> {
    match name {
        "content_type" => attributes.content_type.clone(),
        "cache_control" => attributes.cache_control.clone(),
        "content_encoding" => attributes.content_encoding.clone(),
        "content_disposition" => attributes.content_disposition.clone(),
        "content_language" => attributes.content_language.clone(),
        "expires" => attributes.expires.clone(),
        "storage_class" => attributes.storage_class.clone(),
        "tags" => (!attributes.tags.is_empty()).then(|| tags_text(&attributes.tags)),
        _ => attributes.metadata.get(name.strip_prefix(PLAIN)?).cloned(),
    }
}

fn of_object(info: &ObjectInfo, name: &str) -> Option<String> {
    match name {
        "etag" => Some(info.etag.as_str().to_owned()),
        "version_id" => info.version_id.clone(),
        // S3 says nothing of the usual class.
        "storage_class" => {
            Some(info.attributes.storage_class.clone().unwrap_or_else(|| "STANDARD".to_owned()))
        }
        "restore" => info.restore.clone(),
        "checksums" => {
            let mut text = String::new();
            for sum in &info.checksums {
                let _ = writeln!(text, "{:?}={}", sum.algorithm, sum.value);
            }
            (!text.is_empty()).then(|| text.trim_end().to_owned())
        }
        "sse" => info.attributes.encryption.as_ref().map(|encryption| match encryption {
            Encryption::S3 => "AES256".to_owned(),
            Encryption::Kms { key_id, twice, .. } => {
                let algorithm = if *twice { "aws:kms:dsse" } else { "aws:kms" };
                key_id.as_ref().map_or_else(|| algorithm.to_owned(), |key| format!("{algorithm} {key}"))
            }
            Encryption::Customer { key_md5 } => format!("customer {key_md5}"),
        }),
        _ => of_attributes(&info.attributes, name),
    }
}

fn set_of_s3(attributes: &mut Attributes, name: &str, value: Option<&str>) -> Result<()> {
    let text = value.map(str::to_owned);
    if value.is_some_and(|value| value.bytes().any(|b| b.is_ascii_control())) {
        return Err(Error::new(Kind::InvalidArgument, "a header has no control characters"));
    }
    match name {
        "content_type" => attributes.content_type = text,
        "cache_control" => attributes.cache_control = text,
        "content_encoding" => attributes.content_encoding = text,
        "content_disposition" => attributes.content_disposition = text,
        "content_language" => attributes.content_language = text,
        "expires" => attributes.expires = text,
        "storage_class" => attributes.storage_class = text.filter(|class| class != "STANDARD"),
        "tags" => attributes.tags = tags_of(value.unwrap_or_default())?,
        _ => match name.strip_prefix(PLAIN).filter(|name| is_metadata_name(name)) {
            Some(name) => match text {
                Some(text) => drop(attributes.metadata.insert(name.to_owned(), text)),
                None => drop(attributes.metadata.remove(name)),
            },
            None => {
                let told = format!("user.s3.{name} cannot be set");
                return Err(Error::new(Kind::NotPermitted, told));
            }
        },
    }
    Ok(())
}

/// A header's name in lower case, as S3 keeps it.
fn is_metadata_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

/// `k=v&k2=v2`, as S3's own header has tags.
fn tags_text(tags: &std::collections::BTreeMap<String, String>) -> String {
    let mut text = form_urlencoded::Serializer::new(String::new());
    text.extend_pairs(tags).finish()
}

fn tags_of(text: &str) -> Result<std::collections::BTreeMap<String, String>> {
    let tags: std::collections::BTreeMap<String, String> =
        form_urlencoded::parse(text.as_bytes()).into_owned().filter(|(name, _)| !name.is_empty()).collect();
    // S3's limits.
    let fits = tags.len() <= 10
        && tags.iter().all(|(name, value)| name.chars().count() <= 128 && value.chars().count() <= 256);
    if !fits {
        let told = "an object has at most 10 tags, of 128 characters, with values of 256";
        return Err(Error::new(Kind::InvalidArgument, told));
    }
    Ok(tags)
}

fn refused(refusal: Refusal) -> Error {
    let (kind, told) = match refusal {
        Refusal::NotUser => return unsupported(),
        Refusal::BadName => (Kind::InvalidArgument, "this is no name of an extended attribute"),
        Refusal::TooBig => (Kind::AttributeTooLarge, "S3 keeps at most 2 KB of metadata with an object"),
        Refusal::NoRoom => return no_room(),
        Refusal::NotUnderstood => {
            (Kind::Corrupt, "the object has extended attributes in a form that is not known here")
        }
    };
    Error::new(kind, told)
}

fn is_acl(name: &str) -> bool {
    name.starts_with("system.posix_acl_")
}

fn absent() -> Error {
    Error::new(Kind::NoAttribute, "no such extended attribute")
}

fn unsupported() -> Error {
    Error::new(Kind::Unsupported, "only extended attributes of users are kept")
}
