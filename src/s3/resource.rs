//! Buckets and objects as things, after boto3's resource interface, over any [`Store`].
//!
//! A [`Bucket`] and an [`Object`] are names with a client: making one asks nothing, and copies of one are cheap.
//! Every method that asks S3 fails with what [`Store`] says of its request.
//!
//! ```
//! use std::sync::Arc;
//! use pailfs::base::{ByteRange, SystemClock};
//! use pailfs::s3::{Attributes, Bucket, Condition, MemStore};
//! use pailfs::stats::Stats;
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! // With a server it is `session.bucket("photos")`; this one is in memory.
//! let store = Arc::new(MemStore::new(Arc::new(SystemClock), Arc::new(Stats::default())));
//! let photos = Bucket::over(store, "photos");
//! photos.create().await?;
//! photos.set_versioning(true).await?;
//!
//! let cat = photos.object("2026/cat.jpg");
//! let attributes = Attributes {
//!     content_type: Some("image/jpeg".into()),
//!     metadata: [("owner".into(), "ann".into())].into(),
//!     ..Attributes::default()
//! };
//! let first = cat.put_with("meow", attributes, Condition::Absent).await?;
//!
//! let info = cat.head().await?;
//! assert_eq!((info.size, info.etag), (4, first.etag));
//! assert_eq!(info.attributes.metadata["owner"], "ann");
//! assert_eq!(cat.get(ByteRange::new(1, 3)).await?.bytes().await?, "eo");
//!
//! cat.put("purr").await?;
//! cat.copy_to(&photos.object("2026/copy.jpg")).await?;
//! let old = cat.version(first.version_id.as_deref().unwrap());
//! assert_eq!(old.bytes().await?, "meow");
//! assert_eq!(cat.versions().await?.len(), 2);
//!
//! let keys: Vec<String> = photos.objects("2026/").await?.into_iter().map(|o| o.key).collect();
//! assert_eq!(keys, ["2026/cat.jpg", "2026/copy.jpg"]);
//! cat.delete().await?;
//! assert!(cat.head().await.unwrap_err().is_not_found());
//! # Ok::<_, pailfs::error::Error>(()) }).unwrap();
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::session::Session;
use super::store::Store;
use super::types::*;
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};

impl Session {
    /// The bucket `name`: boto3's resource view. Asks nothing yet; its region is found out when it is needed.
    pub fn bucket(&self, name: &str) -> Bucket {
        Bucket::of(self.clone(), name)
    }
}

/// A bucket by its name, whether or not it exists.
#[derive(Clone)]
pub struct Bucket {
    name: Arc<str>,
    reached: Arc<Reached>,
}

/// How a bucket is reached: through a client at hand, or through the session's client for the bucket's own region,
/// found out when it is first needed.
struct Reached {
    session: Option<Session>,
    store: OnceCell<Arc<dyn Store>>,
}

/// An object by its key, whether or not it exists; perhaps one version of it.
#[derive(Clone)]
pub struct Object {
    bucket: Bucket,
    key: Arc<str>,
    version_id: Option<Arc<str>>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.name)
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Object(s3://{}/{})", self.bucket.name, self.key)
    }
}

impl Bucket {
    /// The bucket `name` as `store` reaches it.
    pub fn over(store: Arc<dyn Store>, name: &str) -> Self {
        let reached = Reached { session: None, store: OnceCell::new_with(Some(store)) };
        Self { name: Arc::from(name), reached: Arc::new(reached) }
    }

    /// The bucket `name` of a session; asks nothing yet.
    pub(super) fn of(session: Session, name: &str) -> Self {
        let reached = Reached { session: Some(session), store: OnceCell::new() };
        Self { name: Arc::from(name), reached: Arc::new(reached) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client that serves this bucket, in its own region. `NoSuchBucket` where that cannot be found out.
    pub async fn store(&self) -> Result<Arc<dyn Store>> {
        let found = self.reached.store.get_or_try_init(|| async {
            match &self.reached.session {
                Some(session) => Ok(session.store_for(&self.name).await?.0),
                None => Err(Error::new(Kind::Internal, "a bucket without a client")),
            }
        });
        found.await.cloned()
    }

    /// A client to make the bucket with, or to ask whether it is there: one that needs no bucket.
    fn maker(&self) -> Result<Arc<dyn Store>> {
        match (&self.reached.session, self.reached.store.get()) {
            (_, Some(store)) => Ok(Arc::clone(store)),
            (Some(session), None) => Ok(Arc::new(session.client())),
            (None, None) => Err(Error::new(Kind::Internal, "a bucket without a client")),
        }
    }

    /// The object `key`; asks nothing.
    pub fn object(&self, key: &str) -> Object {
        Object { bucket: self.clone(), key: Arc::from(key), version_id: None }
    }

    /// Makes the bucket in its client's region. `AlreadyExists` where it does.
    pub async fn create(&self) -> Result<()> {
        self.maker()?.create_bucket(&self.name, None).await
    }

    /// Makes the bucket in a region.
    pub async fn create_in(&self, region: &str) -> Result<()> {
        self.maker()?.create_bucket(&self.name, Some(region)).await
    }

    /// Removes the bucket. `NotEmpty` unless it is.
    pub async fn delete(&self) -> Result<()> {
        self.store().await?.delete_bucket(&self.name).await
    }

    /// Whether the bucket exists; an error where that cannot be found out.
    pub async fn exists(&self) -> Result<bool> {
        match self.maker()?.head_bucket(&self.name).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::NoSuchBucket => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where the bucket is; `None` where the server does not tell.
    pub async fn region(&self) -> Result<Option<String>> {
        Ok(self.store().await?.head_bucket(&self.name).await?.region)
    }

    pub async fn versioning(&self) -> Result<Versioning> {
        self.store().await?.versioning(&self.name).await
    }

    /// Switches versioning on, or suspends it.
    pub async fn set_versioning(&self, enabled: bool) -> Result<()> {
        self.store().await?.set_versioning(&self.name, enabled).await
    }

    /// One page of a listing, for listings that do not fit in memory; `request.bucket` is set here.
    pub async fn list(&self, request: ListRequest) -> Result<ListPage> {
        self.store().await?.list(ListRequest { bucket: self.name.to_string(), ..request }).await
    }

    /// Every object whose key begins with `prefix`, all pages of it.
    pub async fn objects(&self, prefix: &str) -> Result<Vec<ListedObject>> {
        let mut objects = Vec::new();
        let mut continuation = None;
        loop {
            let request = ListRequest {
                prefix: prefix.to_owned(),
                continuation: continuation.clone(),
                ..ListRequest::default()
            };
            let page = self.list(request).await?;
            objects.extend(page.objects);
            match page.next {
                None => return Ok(objects),
                next if next == continuation => {
                    return Err(Error::new(Kind::Corrupt, "the listing repeats its continuation token"));
                }
                next => continuation = next,
            }
        }
    }

    /// Every version and delete marker of every key that begins with `prefix`, newest first within a key.
    pub async fn versions(&self, prefix: &str) -> Result<Vec<ObjectVersion>> {
        let mut versions = Vec::new();
        let mut next: Option<(String, Option<String>)> = None;
        loop {
            let (key_marker, version_id_marker) = match next.clone() {
                Some((key, version)) => (Some(key), version),
                None => (None, None),
            };
            let request = ListVersionsRequest {
                bucket: self.name.to_string(),
                prefix: prefix.to_owned(),
                key_marker,
                version_id_marker,
                ..ListVersionsRequest::default()
            };
            let page = self.store().await?.list_versions(request).await?;
            versions.extend(page.versions);
            match page.next {
                None => return Ok(versions),
                again if again == next => {
                    return Err(Error::new(Kind::Corrupt, "the listing repeats its marker"));
                }
                more => next = more,
            }
        }
    }
}

impl Object {
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// The version this object is pinned to.
    pub fn version_id(&self) -> Option<&str> {
        self.version_id.as_deref()
    }

    /// One version of this object, for `get`, `head`, `copy_to` and `delete`.
    #[must_use]
    pub fn version(&self, version_id: &str) -> Self {
        Self { version_id: Some(Arc::from(version_id)), ..self.clone() }
    }

    /// The object's bytes, or a range of them; a range's end past the object's is cut. `NotFound`, `Archived`, or
    /// `InvalidRange` where the range begins past the end.
    pub async fn get(&self, range: Option<ByteRange>) -> Result<GetOutput> {
        let request = GetRequest {
            bucket: self.bucket.name.to_string(),
            key: self.key.to_string(),
            range,
            if_match: None,
            version_id: self.version_id.as_deref().map(str::to_owned),
            checksum: false,
        };
        self.bucket.store().await?.get(request).await
    }

    /// All of the object's bytes, in memory.
    pub async fn bytes(&self) -> Result<Bytes> {
        self.get(None).await?.bytes().await
    }

    /// Size, ETag, version ID, time, metadata and the other attributes.
    pub async fn head(&self) -> Result<ObjectInfo> {
        self.bucket.store().await?.head(&self.bucket.name, &self.key, self.version_id.as_deref()).await
    }

    /// Makes or replaces the object, with default attributes.
    pub async fn put(&self, body: impl Into<Bytes>) -> Result<Written> {
        self.put_with(body, Attributes::default(), Condition::Any).await
    }

    /// Makes or replaces the object under a condition. `AlreadyExists` where `Absent` failed, `Stale` where
    /// `Matches` did.
    pub async fn put_with(
        &self,
        body: impl Into<Bytes>,
        attributes: Attributes,
        condition: Condition,
    ) -> Result<Written> {
        let request = PutRequest {
            bucket: self.bucket.name.to_string(),
            key: self.key.to_string(),
            body: body.into(),
            attributes,
            condition,
            checksum: None,
        };
        self.bucket.store().await?.put(request).await
    }

    /// Copies this object on the server with its metadata and tags; storage class, encryption and ACL are what a new
    /// object's are. Both have to be reached by one session.
    pub async fn copy_to(&self, target: &Self) -> Result<Written> {
        let request = CopyRequest {
            source_bucket: self.bucket.name.to_string(),
            source_key: self.key.to_string(),
            source_version_id: self.version_id.as_deref().map(str::to_owned),
            // It is not asked for, and may be this much.
            size: super::limits::SINGLE_MAX,
            bucket: target.bucket.name.to_string(),
            key: target.key.to_string(),
            ..CopyRequest::default()
        };
        target.bucket.store().await?.copy(request).await
    }

    /// Removes the object; in a versioned bucket its place is taken by a delete marker, unless a version was
    /// named. What is not there is removed already.
    pub async fn delete(&self) -> Result<Deleted> {
        let request = DeleteRequest {
            bucket: self.bucket.name.to_string(),
            key: self.key.to_string(),
            version_id: self.version_id.as_deref().map(str::to_owned),
            condition: Condition::Any,
        };
        self.bucket.store().await?.delete(request).await
    }

    /// Every version and delete marker of this key, newest first.
    pub async fn versions(&self) -> Result<Vec<ObjectVersion>> {
        let mut versions = self.bucket.versions(&self.key).await?;
        versions.retain(|version| *version.key == *self.key);
        Ok(versions)
    }

    pub async fn tags(&self) -> Result<BTreeMap<String, String>> {
        self.bucket.store().await?.tags(&self.bucket.name, &self.key).await
    }

    /// Replaces all tags.
    pub async fn set_tags(&self, tags: BTreeMap<String, String>) -> Result<()> {
        self.bucket.store().await?.set_tags(&self.bucket.name, &self.key, tags).await
    }
}
