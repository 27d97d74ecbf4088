//! S3 as a pure state machine: what a request does to buckets, and what it is answered.
//!
//! No I/O, no clock, no lock: time is an argument, ids come from a counter. It is what [`MemStore`](super::MemStore)
//! and through it the demo server answer from. It can be mistaken about S3, which is why `tests/store` runs the same
//! promises over servers that we did not write; a belief proved wrong is fixed here.

mod listing;
mod uploads;

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use bytes::Bytes;

use super::types::*;
use super::{content_etag, limits};
use crate::base::{ByteRange, ETag};
use crate::error::{Error, Kind, Result};

/// All buckets of one account.
#[derive(Clone, Debug)]
pub struct Model {
    region: String,
    buckets: BTreeMap<String, Bucket>,
    next_id: u64,
}

#[derive(Clone, Debug)]
struct Bucket {
    region: String,
    created: SystemTime,
    versioning: Versioning,
    /// Oldest first within a key; never empty.
    keys: BTreeMap<String, Vec<Version>>,
    uploads: HashMap<String, uploads::Pending>,
}

/// One version of a key; without an object it is a delete marker.
#[derive(Clone, Debug)]
struct Version {
    id: Option<String>,
    at: SystemTime,
    object: Option<Stored>,
}

#[derive(Clone, Debug)]
struct Stored {
    body: Bytes,
    etag: ETag,
    attributes: Attributes,
    checksums: Vec<Checksum>,
    restored: bool,
}

impl Model {
    pub fn new(region: &str) -> Self {
        Self { region: region.to_owned(), buckets: BTreeMap::new(), next_id: 1 }
    }

    // ---- buckets

    pub fn list_buckets(&self) -> Vec<BucketInfo> {
        self.buckets
            .iter()
            .map(|(name, bucket)| BucketInfo {
                name: name.clone(),
                region: Some(bucket.region.clone()),
                created: Some(bucket.created),
            })
            .collect()
    }

    pub fn head_bucket(&self, name: &str) -> Result<BucketInfo> {
        let bucket = self.bucket(name)?;
        Ok(BucketInfo {
            name: name.to_owned(),
            region: Some(bucket.region.clone()),
            created: Some(bucket.created),
        })
    }

    pub fn create_bucket(&mut self, name: &str, region: Option<&str>, now: SystemTime) -> Result<()> {
        let legal = (3..=63).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
        if !legal {
            return Err(refused(
                Kind::InvalidArgument,
                400,
                "InvalidBucketName",
                "the bucket's name is not legal",
            ));
        }
        if self.buckets.contains_key(name) {
            return Err(refused(
                Kind::AlreadyExists,
                409,
                "BucketAlreadyOwnedByYou",
                "you have this bucket already",
            ));
        }
        let bucket = Bucket {
            region: region.unwrap_or(&self.region).to_owned(),
            created: now,
            versioning: Versioning::Never,
            keys: BTreeMap::new(),
            uploads: HashMap::new(),
        };
        self.buckets.insert(name.to_owned(), bucket);
        Ok(())
    }

    pub fn delete_bucket(&mut self, name: &str) -> Result<()> {
        if !self.bucket(name)?.keys.is_empty() {
            return Err(refused(Kind::NotEmpty, 409, "BucketNotEmpty", "the bucket is not empty"));
        }
        self.buckets.remove(name);
        Ok(())
    }

    pub fn versioning(&self, name: &str) -> Result<Versioning> {
        Ok(self.bucket(name)?.versioning)
    }

    pub fn set_versioning(&mut self, name: &str, enabled: bool) -> Result<()> {
        self.bucket_mut(name)?.versioning = if enabled { Versioning::Enabled } else { Versioning::Suspended };
        Ok(())
    }

    // ---- objects

    pub fn head(&self, bucket: &str, key: &str, version_id: Option<&str>) -> Result<ObjectInfo> {
        let (version, object) = self.bucket(bucket)?.find(key, version_id)?;
        Ok(version.info(key, object))
    }

    /// The object's facts, the offset of the first byte, and the bytes.
    pub fn get(&self, request: &GetRequest) -> Result<(ObjectInfo, u64, Bytes)> {
        let bucket = self.bucket(&request.bucket)?;
        let (version, object) = bucket.find(&request.key, request.version_id.as_deref())?;
        if request.if_match.as_ref().is_some_and(|etag| *etag != object.etag) {
            return Err(precondition_failed(Kind::Stale));
        }
        if is_archived(object.attributes.storage_class.as_deref(), object.restored) {
            return Err(refused(Kind::Archived, 403, "InvalidObjectState", "the object is archived"));
        }
        let info = version.info(&request.key, object);
        let size = object.body.len() as u64;
        let range = match request.range {
            None => ByteRange::new(0, size),
            Some(range) if range.start() >= size => {
                return Err(refused(
                    Kind::InvalidRange,
                    416,
                    "InvalidRange",
                    "the range begins past the end",
                ));
            }
            Some(range) => range.intersect(ByteRange::new(0, size).unwrap_or(range)),
        };
        Ok(match range {
            Some(range) => (info, range.start(), object.body.slice(index(range.start())..index(range.end()))),
            None => (info, 0, Bytes::new()),
        })
    }

    pub fn put(&mut self, request: PutRequest, now: SystemTime) -> Result<Written> {
        check_key(&request.key)?;
        check_metadata(&request.attributes)?;
        self.bucket(&request.bucket)?.check(&request.key, &request.condition)?;
        let checksums = verified(request.checksum, &request.body)?;
        let object = Stored {
            etag: self.etag_of(&request.attributes, content_etag(&request.body)),
            body: request.body,
            attributes: request.attributes,
            checksums,
            restored: false,
        };
        self.store(&request.bucket, &request.key, object, now)
    }

    pub fn delete(&mut self, request: &DeleteRequest, now: SystemTime) -> Result<Deleted> {
        let bucket = self.bucket(&request.bucket)?;
        match &request.condition {
            Condition::Any => {}
            Condition::Absent => {
                return Err(refused(
                    Kind::InvalidArgument,
                    400,
                    "InvalidRequest",
                    "a delete cannot demand absence",
                ));
            }
            condition => bucket.check(&request.key, condition)?,
        }
        if let Some(id) = &request.version_id {
            return Ok(self.bucket_mut(&request.bucket)?.delete_version(&request.key, id));
        }
        let id = self.fresh_id("v");
        Ok(self.bucket_mut(&request.bucket)?.delete_current(&request.key, id, now))
    }

    pub fn copy(&mut self, request: CopyRequest, now: SystemTime) -> Result<Written> {
        check_key(&request.key)?;
        let source = {
            let bucket = self.bucket(&request.source_bucket)?;
            let (_, object) = bucket.find(&request.source_key, request.source_version_id.as_deref())?;
            object.clone()
        };
        if request.source_if_match.as_ref().is_some_and(|etag| *etag != source.etag) {
            return Err(precondition_failed(Kind::Stale));
        }
        if is_archived(source.attributes.storage_class.as_deref(), source.restored) {
            return Err(refused(Kind::Archived, 403, "InvalidObjectState", "the source is archived"));
        }
        if source.body.len() as u64 > limits::SINGLE_MAX {
            return Err(refused(
                Kind::InvalidArgument,
                400,
                "InvalidRequest",
                "the source is larger than 5 GiB",
            ));
        }
        let itself = request.source_bucket == request.bucket
            && request.source_key == request.key
            && request.source_version_id.is_none();
        if itself && request.attributes.is_none() && request.again == Again::default() {
            return Err(refused(
                Kind::InvalidArgument,
                400,
                "InvalidRequest",
                "a copy onto itself has to change something",
            ));
        }
        self.bucket(&request.bucket)?.check(&request.key, &request.condition)?;
        let attributes = request.attributes.unwrap_or_else(|| request.again.lay_over(source.attributes));
        check_metadata(&attributes)?;
        // A copy is stored in one piece, whatever its source was.
        let object = Stored {
            etag: self.etag_of(&attributes, content_etag(&source.body)),
            body: source.body,
            attributes,
            checksums: source.checksums,
            restored: false,
        };
        self.store(&request.bucket, &request.key, object, now)
    }

    pub fn tags(&self, bucket: &str, key: &str) -> Result<BTreeMap<String, String>> {
        Ok(self.bucket(bucket)?.find(key, None)?.1.attributes.tags.clone())
    }

    pub fn set_tags(&mut self, bucket: &str, key: &str, tags: BTreeMap<String, String>) -> Result<()> {
        self.current_mut(bucket, key)?.attributes.tags = tags;
        Ok(())
    }

    /// The canned ACL that an object was made with.
    pub fn acl(&self, bucket: &str, key: &str) -> Result<Option<String>> {
        Ok(self.bucket(bucket)?.find(key, None)?.1.attributes.acl.clone())
    }

    /// Brings an archived object back for reading.
    pub fn restore(&mut self, bucket: &str, key: &str) -> Result<()> {
        self.current_mut(bucket, key)?.restored = true;
        Ok(())
    }

    // ---- within

    fn bucket(&self, name: &str) -> Result<&Bucket> {
        self.buckets.get(name).ok_or_else(no_such_bucket)
    }

    fn bucket_mut(&mut self, name: &str) -> Result<&mut Bucket> {
        self.buckets.get_mut(name).ok_or_else(no_such_bucket)
    }

    fn current_mut(&mut self, bucket: &str, key: &str) -> Result<&mut Stored> {
        let versions = self.bucket_mut(bucket)?.keys.get_mut(key);
        versions.and_then(|v| v.last_mut()).and_then(|v| v.object.as_mut()).ok_or_else(no_such_key)
    }

    fn fresh_id(&mut self, prefix: &str) -> String {
        self.next_id += 1;
        format!("{prefix}{:016x}", self.next_id)
    }

    /// The tag of an object that KMS or its owner has the key of tells nothing of its bytes.
    fn etag_of(&mut self, attributes: &Attributes, of_bytes: ETag) -> ETag {
        match attributes.encryption.as_ref().is_some_and(Encryption::hides_bytes) {
            true => content_etag(self.fresh_id("e").as_bytes()),
            false => of_bytes,
        }
    }

    fn store(&mut self, bucket: &str, key: &str, object: Stored, now: SystemTime) -> Result<Written> {
        let id = self.fresh_id("v");
        let etag = object.etag.clone();
        let checksum = object.checksums.first().filter(|sum| crate::s3::is_of_body(sum)).cloned();
        let bucket = self.bucket_mut(bucket)?;
        let id = bucket.add(key, Version { id: Some(id), at: now, object: Some(object) });
        Ok(Written { etag, version_id: id, checksum })
    }
}

impl Bucket {
    /// The version asked for, or the current one, with its object.
    fn find(&self, key: &str, version_id: Option<&str>) -> Result<(&Version, &Stored)> {
        let versions = self.keys.get(key).ok_or_else(no_such_key)?;
        let version = match version_id {
            None => versions.last(),
            Some(id) => Some(
                versions
                    .iter()
                    .find(|v| v.id.as_deref().unwrap_or("null") == id)
                    .ok_or_else(|| refused(Kind::NotFound, 404, "NoSuchVersion", "no such version"))?,
            ),
        };
        let version = version.ok_or_else(no_such_key)?;
        let object = version.object.as_ref().ok_or_else(no_such_key)?;
        Ok((version, object))
    }

    /// Whether a write of the key may take place.
    fn check(&self, key: &str, condition: &Condition) -> Result<()> {
        let current = self.find(key, None).ok().map(|(_, object)| &object.etag);
        match (condition, current) {
            (Condition::Absent, Some(_)) => Err(precondition_failed(Kind::AlreadyExists)),
            (Condition::Matches(_), None) => Err(no_such_key()),
            (Condition::Matches(etag), Some(now)) if etag != now => Err(precondition_failed(Kind::Stale)),
            _ => Ok(()),
        }
    }

    /// Adds a version as the bucket's versioning says; returns the id it got.
    fn add(&mut self, key: &str, mut version: Version) -> Option<String> {
        if self.versioning != Versioning::Enabled {
            version.id = None;
        }
        let id = version.id.clone();
        let versions = self.keys.entry(key.to_owned()).or_default();
        if id.is_none() {
            // The null version is replaced; versions with an id stay.
            versions.retain(|old| old.id.is_some());
        }
        versions.push(version);
        id
    }

    fn delete_current(&mut self, key: &str, id: String, now: SystemTime) -> Deleted {
        if self.versioning == Versioning::Never {
            self.keys.remove(key);
            return Deleted::default();
        }
        let id = self.add(key, Version { id: Some(id), at: now, object: None });
        Deleted { version_id: Some(id.unwrap_or_else(|| "null".to_owned())), delete_marker: true }
    }

    fn delete_version(&mut self, key: &str, id: &str) -> Deleted {
        let mut marker = false;
        if let Some(versions) = self.keys.get_mut(key) {
            versions.retain(|version| {
                let same = version.id.as_deref().unwrap_or("null") == id;
                marker |= same && version.object.is_none();
                !same
            });
            if versions.is_empty() {
                self.keys.remove(key);
            }
        }
        Deleted { version_id: Some(id.to_owned()), delete_marker: marker }
    }
}

impl Version {
    fn info(&self, key: &str, object: &Stored) -> ObjectInfo {
        let archived = is_archived(object.attributes.storage_class.as_deref(), false);
        ObjectInfo {
            key: key.to_owned(),
            size: object.body.len() as u64,
            etag: object.etag.clone(),
            last_modified: self.at,
            version_id: self.id.clone(),
            // Tags and ACLs have requests of their own.
            attributes: Attributes { tags: BTreeMap::new(), acl: None, ..object.attributes.clone() },
            tag_count: u32::try_from(object.attributes.tags.len()).unwrap_or(u32::MAX),
            restore: (archived && object.restored).then(|| "ongoing-request=\"false\"".to_owned()),
            checksums: object.checksums.clone(),
        }
    }
}

/// The checksum S3 keeps of a body: the one that was sent, if it is right, else its own CRC-64/NVME.
fn verified(given: Option<Checksum>, body: &Bytes) -> Result<Vec<Checksum>> {
    let own = || super::checksum_of(body);
    let Some(given) = given else { return Ok(vec![own()]) };
    if given.algorithm.of(body) != given.value {
        return Err(refused(Kind::Corrupt, 400, "BadDigest", "the checksum does not match the body"));
    }
    Ok(vec![if given.algorithm == ChecksumAlgorithm::Md5 { own() } else { given }])
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > limits::KEY_MAX {
        return Err(refused(Kind::NameTooLong, 400, "KeyTooLongError", "a key has 1 to 1,024 bytes"));
    }
    Ok(())
}

fn check_metadata(attributes: &Attributes) -> Result<()> {
    let bytes: usize = attributes.metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > limits::METADATA_MAX {
        return Err(refused(
            Kind::InvalidArgument,
            400,
            "MetadataTooLarge",
            "user metadata has at most 2,048 bytes",
        ));
    }
    Ok(())
}

fn refused(kind: Kind, status: u16, code: &str, message: &str) -> Error {
    Error::s3(kind, code, message).with_answer(Some(status), None, None)
}

fn precondition_failed(kind: Kind) -> Error {
    refused(kind, 412, "PreconditionFailed", "a condition of the request did not hold")
}

fn no_such_key() -> Error {
    refused(Kind::NotFound, 404, "NoSuchKey", "no such key")
}

fn no_such_bucket() -> Error {
    refused(Kind::NoSuchBucket, 404, "NoSuchBucket", "no such bucket")
}

/// Within a body that is in memory.
#[allow(clippy::cast_possible_truncation)]
fn index(offset: u64) -> usize {
    offset as usize
}

#[cfg(test)]
mod tests;
