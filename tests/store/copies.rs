//! Copies made by the server.

use pailfs::error::{Kind, Result};
use pailfs::s3::{Attributes, CopyRequest, Written};

use crate::objects::{attributes, pattern, same_attributes};
use crate::{Outcome, Place, ensure, refused, same};

pub async fn a_copy_keeps_bytes_and_attributes(at: Place) -> Outcome {
    let body = pattern(1 << 20);
    put_source(&at, body.clone()).await?;
    let written = copy(&at, &at, "source", "dir/target", None).await?;
    let head = at.store.head(&at.bucket, "dir/target", None).await?;
    same!((head.size, &head.etag), (1 << 20, &written.etag), "size and etag");
    same_attributes(&head.attributes, &attributes())?;
    ensure!(at.get("dir/target").await? == body, "other bytes came back");
    ensure!(at.get("source").await? == body, "the source changed");
    Ok(())
}

pub async fn a_copy_replaces_attributes(at: Place) -> Outcome {
    put_source(&at, "bytes").await?;
    copy(&at, &at, "source", "target", Some(other_attributes())).await?;
    same_attributes(&at.store.head(&at.bucket, "target", None).await?.attributes, &other_attributes())?;
    same_attributes(&at.store.head(&at.bucket, "source", None).await?.attributes, &attributes())
}

pub async fn a_copy_to_itself_replaces_attributes(at: Place) -> Outcome {
    put_source(&at, "bytes").await?;
    let written = copy(&at, &at, "source", "source", Some(other_attributes())).await?;
    let head = at.store.head(&at.bucket, "source", None).await?;
    same_attributes(&head.attributes, &other_attributes())?;
    same!(head.etag, written.etag, "etag");
    same!(at.get("source").await?, "bytes", "bytes");
    Ok(())
}

pub async fn a_copy_goes_across_buckets(at: Place) -> Outcome {
    put_source(&at, "bytes").await?;
    let other = at.beside().await?;
    copy(&at, &other, "source", "target", None).await?;
    same!(other.get("target").await?, "bytes", "bytes");
    same_attributes(&other.store.head(&other.bucket, "target", None).await?.attributes, &attributes())?;
    other.remove().await;
    Ok(())
}

pub async fn a_copy_takes_odd_keys(at: Place) -> Outcome {
    for key in ["a b", "plus+", "per%20cent", "question?mark", "hash#", "amp&", "é", "名前/🪣", "quote\"'"]
    {
        at.put(key, key).await?;
        let target = format!("copy of {key}");
        let copied = copy(&at, &at, key, &target, None).await;
        ensure!(copied.is_ok(), "{key:?}: {copied:?}");
        same!(at.get(&target).await?, key, "bytes");
    }
    Ok(())
}

pub async fn a_copy_of_a_missing_key_is_not_found(at: Place) -> Outcome {
    let error = refused("the copy", copy(&at, &at, "gone", "target", None).await, &[Kind::NotFound])?;
    same!(error.code(), Some("NoSuchKey"), "code");
    Ok(())
}

async fn put_source(at: &Place, body: impl Into<bytes::Bytes>) -> Result<Written> {
    let mut request = at.put_request("source", body);
    request.attributes = attributes();
    at.store.put(request).await
}

async fn copy(
    from: &Place,
    to: &Place,
    source: &str,
    target: &str,
    attributes: Option<Attributes>,
) -> Result<Written> {
    let request = CopyRequest {
        source_bucket: from.bucket.clone(),
        source_key: source.to_owned(),
        bucket: to.bucket.clone(),
        key: target.to_owned(),
        attributes,
        ..CopyRequest::default()
    };
    to.store.copy(request).await
}

fn other_attributes() -> Attributes {
    Attributes {
        content_type: Some("text/x-other".into()),
        metadata: [("only".to_owned(), "this".to_owned())].into(),
        ..Attributes::default()
    }
}
