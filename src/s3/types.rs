//! What is said to S3 and what it answers, in our own words. No SDK type appears here, so everything
//! above `s3` and both implementations of [`Store`](super::Store) share this vocabulary.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::SystemTime;

use bytes::Bytes;
use futures::Stream;
use serde::{Deserialize, Serialize};

use crate::base::{ByteRange, ETag};
use crate::error::{Error, Kind, Result};

/// User metadata: lower-case names without the `x-amz-meta-` prefix.
pub type Metadata = BTreeMap<String, String>;

/// A bucket as listings and `HeadBucket` know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketInfo {
    pub name: String,
    pub region: Option<String>,
    pub created: Option<SystemTime>,
}

/// When a write or delete may take effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Whatever is there.
    #[default]
    Any,
    /// Nothing is there: `If-None-Match: *`.
    Absent,
    /// Exactly this version is there: `If-Match: "etag"`.
    Matches(ETag),
}

/// A checksum of the bytes sent, base64 as S3's headers carry it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    pub algorithm: ChecksumAlgorithm,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    Crc64Nvme,
    Crc32,
    Crc32c,
    Sha1,
    Sha256,
    /// `Content-MD5`: checked on arrival, not stored. For servers that refuse the others.
    Md5,
}

/// What is stored beside an object's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub content_type: Option<String>,
    pub cache_control: Option<String>,
    pub content_encoding: Option<String>,
    pub content_disposition: Option<String>,
    pub content_language: Option<String>,
    /// An HTTP date.
    #[serde(default)]
    pub expires: Option<String>,
    /// Where a website sends who asks for the object.
    #[serde(default)]
    pub redirect: Option<String>,
    pub storage_class: Option<String>,
    pub metadata: Metadata,
    pub tags: BTreeMap<String, String>,
    /// A canned ACL (`private`, `public-read`, ...), for servers that keep ACLs.
    pub acl: Option<String>,
    #[serde(default)]
    pub encryption: Option<Encryption>,
}

/// How S3 encrypts an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encryption {
    /// With keys of S3 alone: SSE-S3. Nobody has to ask Amazon's for it.
    S3,
    Kms {
        /// `None` is the account's own for S3.
        key_id: Option<String>,
        /// One key for the bucket in place of one for each object; `None` leaves it to the bucket.
        bucket_key: Option<bool>,
        /// Twice: `aws:kms:dsse`.
        twice: bool,
    },
    /// With a key that is sent along: SSE-C. The session has it, so that nothing is to be said here.
    Customer { key_md5: String },
}

impl Encryption {
    /// Whether an object's ETag tells nothing of its bytes.
    pub fn hides_bytes(&self) -> bool {
        matches!(self, Self::Kms { .. } | Self::Customer { .. })
    }

    /// Whether somebody chose a key for this object.
    pub(super) fn is_chosen(&self) -> bool {
        matches!(self, Self::Kms { .. })
    }
}

/// What a copy never takes from its source: it is said again, or lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    pub storage_class: Option<String>,
    pub encryption: Option<Encryption>,
    pub acl: Option<String>,
    /// Where a website sends who asks for the object.
    pub redirect: Option<String>,
}

impl Again {
    /// The part of all attributes that this is.
    pub fn of(attributes: &Attributes) -> Self {
        Self {
            storage_class: attributes.storage_class.clone(),
            encryption: attributes.encryption.clone(),
            acl: attributes.acl.clone(),
            redirect: attributes.redirect.clone(),
        }
    }

    /// Lays this over attributes that were found.
    pub fn lay_over(self, found: Attributes) -> Attributes {
        Attributes {
            storage_class: self.storage_class,
            encryption: self.encryption,
            acl: self.acl,
            redirect: self.redirect,
            ..found
        }
    }
}

/// One object as HEAD and GET tell it; LIST leaves what it does not know empty.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectInfo {
    pub key: String,
    /// Length of the whole object in bytes.
    pub size: u64,
    pub etag: ETag,
    pub last_modified: SystemTime,
    pub version_id: Option<String>,
    /// Without tags and ACL, which have requests of their own.
    pub attributes: Attributes,
    /// How many tags it has; 0 as well where the server does not tell.
    pub tag_count: u32,
    /// `ongoing-request="..."` of `x-amz-restore`, where the object is or was archived.
    pub restore: Option<String>,
    /// Stored checksums of the whole object.
    pub checksums: Vec<Checksum>,
}

/// One object as LIST tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    pub key: String,
    pub size: u64,
    pub etag: ETag,
    pub last_modified: SystemTime,
    pub storage_class: Option<String>,
    /// Whether an archived object is restored for now (`OptionalObjectAttributes=RestoreStatus`).
    pub restored: Option<bool>,
}

/// Storage classes whose bytes cannot be read before a restore.
pub fn is_archived(storage_class: Option<&str>, restored: bool) -> bool {
    matches!(storage_class, Some("GLACIER" | "DEEP_ARCHIVE")) && !restored
}

#[derive(Clone, Debug, Default)]
pub struct GetRequest {
    pub bucket: String,
    pub key: String,
    /// `None` for the whole object.
    pub range: Option<ByteRange>,
    pub if_match: Option<ETag>,
    pub version_id: Option<String>,
    /// Asks for the stored checksums as well, which an answer of a whole object carries.
    pub checksum: bool,
}

/// Bytes of an object as they arrive.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// Memory that is taken for a body before it arrives.
const ANNOUNCED_MAX: usize = 32 << 20;

/// An answer to GET: what the object is, which bytes these are, and the bytes.
pub struct GetOutput {
    pub info: ObjectInfo,
    /// Offset of the first byte of `body`.
    pub offset: u64,
    /// Length of `body` in bytes, as announced.
    pub length: u64,
    pub body: Body,
}

impl GetOutput {
    /// Collects the body and checks its length against what was announced.
    pub async fn bytes(self) -> Result<Bytes> {
        use futures::StreamExt;
        let length = usize::try_from(self.length)
            .map_err(|_| Error::new(Kind::TooLarge, "the body does not fit in memory"))?;
        let mut body = self.body;
        let Some(first) = body.next().await else {
            return if length == 0 { Ok(Bytes::new()) } else { Err(short_body(0, length)) };
        };
        let first = first?;
        if first.len() == length {
            return Ok(first);
        }
        // What was announced takes no memory before it is here.
        let mut all = Vec::with_capacity(length.min(ANNOUNCED_MAX));
        all.extend_from_slice(&first);
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            if all.len() + chunk.len() > length {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("the body is longer than the announced {length} bytes"),
                ));
            }
            all.extend_from_slice(&chunk);
        }
        if all.len() != length {
            return Err(short_body(all.len(), length));
        }
        Ok(all.into())
    }
}

fn short_body(got: usize, announced: usize) -> Error {
    Error::new(Kind::Corrupt, format!("the body ended after {got} of {announced} bytes"))
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PutRequest {
    pub bucket: String,
    pub key: String,
    #[serde(skip)]
    pub body: Bytes,
    pub attributes: Attributes,
    pub condition: Condition,
    pub checksum: Option<Checksum>,
}

/// What a Put, Copy or Complete made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub etag: ETag,
    pub version_id: Option<String>,
    /// What S3 answered of all its bytes, where it did. `Md5` says that the ETag is one.
    pub checksum: Option<Checksum>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DeleteRequest {
    pub bucket: String,
    pub key: String,
    pub version_id: Option<String>,
    /// `Absent` makes no sense here and is refused.
    pub condition: Condition,
}

/// One key of a batch of deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteKey {
    pub key: String,
    /// Deletes this version or nothing; `None` whatever is there.
    pub etag: Option<ETag>,
}

impl DeleteKey {
    /// Whatever version is there.
    pub fn any(key: impl Into<String>) -> Self {
        Self { key: key.into(), etag: None }
    }

    pub(super) fn condition(&self) -> Condition {
        self.etag.clone().map_or(Condition::Any, Condition::Matches)
    }
}

/// What a delete did, in a versioned bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// The version removed, or the delete marker made.
    pub version_id: Option<String>,
    pub delete_marker: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CopyRequest {
    pub source_bucket: String,
    pub source_key: String,
    pub source_version_id: Option<String>,
    pub source_if_match: Option<ETag>,
    pub bucket: String,
    pub key: String,
    /// As far as it is known: a copy inside the server is given time by its size.
    pub size: u64,
    /// At the target.
    pub condition: Condition,
    /// `None` keeps the source's headers, metadata and tags; `Some` replaces all of them, and `again` does not count.
    pub attributes: Option<Attributes>,
    #[serde(default)]
    pub again: Again,
}

#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    pub bucket: String,
    pub prefix: String,
    /// `Some("/")` groups what lies below into common prefixes.
    pub delimiter: Option<String>,
    /// Only keys after this one, in byte order.
    pub start_after: Option<String>,
    pub continuation: Option<String>,
    /// At most 1,000, S3's own page.
    pub max_keys: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    pub objects: Vec<ListedObject>,
    /// Each ends with the delimiter.
    pub common_prefixes: Vec<String>,
    /// `Some` where there is more.
    pub next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion {
    pub key: String,
    pub version_id: String,
    pub is_latest: bool,
    /// A delete marker has no bytes: `size` is 0 and `etag` empty.
    pub is_delete_marker: bool,
    pub size: u64,
    pub etag: ETag,
    pub last_modified: SystemTime,
}

#[derive(Clone, Debug, Default)]
pub struct ListVersionsRequest {
    pub bucket: String,
    pub prefix: String,
    pub delimiter: Option<String>,
    pub key_marker: Option<String>,
    pub version_id_marker: Option<String>,
    pub max_keys: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionsPage {
    /// Newest first within a key.
    pub versions: Vec<ObjectVersion>,
    pub common_prefixes: Vec<String>,
    /// Key and version id to go on from.
    pub next: Option<(String, Option<String>)>,
}

/// Versioning state of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Versioning {
    #[default]
    Never,
    Enabled,
    Suspended,
}

/// An upload in parts: where it goes and the id S3 gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Upload {
    pub bucket: String,
    pub key: String,
    pub upload_id: String,
}

/// An upload that was neither completed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    pub upload: Upload,
    /// By the server's clock, where it tells.
    pub initiated: Option<SystemTime>,
}

/// A part that S3 holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// 1 to 10,000.
    pub number: u16,
    pub etag: ETag,
    pub size: u64,
    pub checksum: Option<Checksum>,
}

/// A range of an existing object that becomes a part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartSource {
    pub bucket: String,
    pub key: String,
    pub range: ByteRange,
    pub if_match: Option<ETag>,
}
