//! Whether a server does with new objects what a mount asks for, found out with one of them.
//!
//! A server that refuses says so at the first save, which is late; one that takes what it does not know, and forgets it,
//! never would: bytes that were to be encrypted would not be, and nobody hear of it.

use super::beside::NewObjects;
use super::capability::Scratch;
use super::store::Store;
use super::types::{Encryption, ObjectInfo, PutRequest};
use crate::error::{Error, Kind, Result};

/// Makes an object under `prefix` as it is asked for, looks whether it is so, and takes it away.
///
/// ACLs are sent and not looked at. Where what is made could not be taken away nothing is tried.
pub async fn try_new_objects(
    store: &dyn Store,
    bucket: &str,
    prefix: &str,
    wanted: &NewObjects,
) -> Result<()> {
    let scratch = Scratch::new(store, bucket, prefix);
    if let Some(why) = scratch.may_clean().await? {
        tracing::warn!(bucket, "what new objects are to get was not tried: {why}");
        return Ok(());
    }
    let key = scratch.key("objects");
    let answer = async {
        let request = PutRequest {
            bucket: bucket.to_owned(),
            key: key.clone(),
            attributes: wanted.file(),
            ..PutRequest::default()
        };
        scratch.put_request(request).await?;
        let found = store.head(bucket, &key, None).await?;
        let tags = match found.tag_count {
            // Not every server counts them.
            0 if !wanted.tags.is_empty() => {
                store.tags(bucket, &key).await.is_ok_and(|tags| tags == wanted.tags)
            }
            count => count as usize == wanted.tags.len(),
        };
        Ok::<_, Error>(forgotten(wanted, &found, tags))
    }
    .await;
    let left = scratch.clean().await;
    if !left.is_empty() {
        tracing::warn!(bucket, left = left.join(", "), "a trial left objects behind");
    }
    match answer? {
        None => Ok(()),
        Some(what) => {
            let told = format!("the server takes {what} and keeps nothing of it");
            Err(Error::new(Kind::Unsupported, told).on("PutObject", bucket, &key))
        }
    }
}

/// What was asked for and is not there, with its option.
fn forgotten(wanted: &NewObjects, found: &ObjectInfo, tags: bool) -> Option<&'static str> {
    let class = |class: &Option<String>| class.clone().filter(|class| class != "STANDARD");
    let encrypted = match (&wanted.encryption, &found.attributes.encryption) {
        (None, _) => true,
        (Some(Encryption::Kms { .. }), Some(Encryption::Kms { .. })) => true,
        (Some(Encryption::S3), Some(_)) => true,
        (Some(_), _) => false,
    };
    if !encrypted {
        return Some("the encryption of --sse");
    }
    if wanted.storage_class.is_some()
        && class(&wanted.storage_class) != class(&found.attributes.storage_class)
    {
        return Some("the class of --storage-class");
    }
    (!tags).then_some("the tags of --tag")
}
