//! The one trait that stands for S3.
//!
//! Two implementations: [`Client`](super::Client) speaks to a server through the SDK, and
//! [`MemStore`](super::MemStore) answers from the pure model. `tests/store` holds both, and servers
//! that we did not write, to the same promises.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::payload::Payload;
use super::types::*;
use crate::error::{Error, Kind, Result};

/// How often a body that broke off is asked for again.
const AGAIN_MAX: u32 = 3;

/// The S3 API as the rest of the house needs it.
///
/// Promises to callers:
/// - errors carry a [`Kind`](crate::error::Kind) and, where S3 answered, its code and request id;
/// - transient failures have been retried already, with backoff, within a budget;
/// - a call ends within the client's deadline for its size, so no wait is unbounded;
/// - a condition in a request is sent as such; whether the server honours it is
///   [`Capabilities`](super::Capabilities)' to know.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn list_buckets(&self) -> Result<Vec<BucketInfo>>;
    /// The bucket's region, or `NoSuchBucket` / `AccessDenied`.
    async fn head_bucket(&self, bucket: &str) -> Result<BucketInfo>;
    /// `AlreadyExists` where it does. `None` makes it in the client's own region.
    async fn create_bucket(&self, bucket: &str, region: Option<&str>) -> Result<()>;
    /// `NotEmpty` where it is not.
    async fn delete_bucket(&self, bucket: &str) -> Result<()>;
    async fn versioning(&self, bucket: &str) -> Result<Versioning>;
    async fn set_versioning(&self, bucket: &str, enabled: bool) -> Result<()>;

    async fn head(&self, bucket: &str, key: &str, version_id: Option<&str>) -> Result<ObjectInfo>;
    /// `Stale` where `if_match` is another version; `InvalidRange` where the range begins past the end.
    async fn get(&self, request: GetRequest) -> Result<GetOutput>;
    /// `AlreadyExists` where the condition was `Absent` and failed, `Stale` where it was `Matches`.
    async fn put(&self, request: PutRequest) -> Result<Written>;
    /// Deleting what is not there succeeds, as in S3, unless a condition was given.
    async fn delete(&self, request: DeleteRequest) -> Result<Deleted>;
    /// Deletes up to 1,000 keys in one request; the answer has one entry per key, in order. A key that is not there
    /// is deleted; one that is another version than its entry names fails `Stale` by itself.
    async fn delete_many(&self, bucket: &str, keys: Vec<DeleteKey>) -> Result<Vec<(String, Result<()>)>>;
    /// Up to 5 GiB, on the server.
    async fn copy(&self, request: CopyRequest) -> Result<Written>;
    async fn list(&self, request: ListRequest) -> Result<ListPage>;
    async fn list_versions(&self, request: ListVersionsRequest) -> Result<VersionsPage>;
    async fn tags(&self, bucket: &str, key: &str) -> Result<std::collections::BTreeMap<String, String>>;
    async fn set_tags(
        &self,
        bucket: &str,
        key: &str,
        tags: std::collections::BTreeMap<String, String>,
    ) -> Result<()>;

    /// An address that anybody may GET the object from for so long, or as long as the session's credentials are good. No
    /// request is sent, and nobody asks whether the object is there.
    async fn presigned(&self, bucket: &str, key: &str, valid: Duration) -> Result<String>;

    async fn create_upload(&self, bucket: &str, key: &str, attributes: Attributes) -> Result<Upload>;
    /// Fails with what reading the body failed for, where that did.
    async fn upload_part(
        &self,
        upload: &Upload,
        number: u16,
        body: Payload,
        checksum: Option<Checksum>,
    ) -> Result<Part>;
    /// The part's size is the range's; `Stale` where the source is another version.
    async fn upload_part_copy(&self, upload: &Upload, number: u16, source: PartSource) -> Result<Part>;
    async fn complete_upload(
        &self,
        upload: &Upload,
        parts: Vec<Part>,
        condition: Condition,
    ) -> Result<Written>;
    async fn abort_upload(&self, upload: &Upload) -> Result<()>;
    async fn list_parts(&self, upload: &Upload) -> Result<Vec<Part>>;
    /// Unfinished uploads under a prefix.
    async fn list_uploads(&self, bucket: &str, prefix: &str) -> Result<Vec<Unfinished>>;
}

/// All bytes of an answer, `most` of them, and what they are of. What broke off under way is asked for again: a client's own
/// attempts end where the answer begins. `TooLarge` where more are announced.
pub async fn read_all(store: &dyn Store, request: GetRequest, most: u64) -> Result<(ObjectInfo, Bytes)> {
    let mut again = 0;
    loop {
        let answer = store.get(request.clone()).await?;
        if answer.length > most {
            let told =
                format!("the answer is {} bytes, and {most} are the most that were asked for", answer.length);
            return Err(Error::new(Kind::TooLarge, told));
        }
        let info = answer.info.clone();
        match answer.bytes().await {
            Err(error) if error.kind().is_transient() && again < AGAIN_MAX => again += 1,
            bytes => return Ok((info, bytes?)),
        }
    }
}
