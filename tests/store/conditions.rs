//! Writes and deletes that may only take effect under a condition.

use bytes::Bytes;
use futures::future::join_all;
use pailfs::base::ETag;
use pailfs::error::{Kind, Result};
use pailfs::s3::{Attributes, Condition, CopyRequest, Written};

use crate::objects::no_etag;
use crate::{Outcome, Place, ensure, refused, same};

/// S3 says 409 instead of 412 where two conditional writes of one key overlap.
const LOST_CREATE: &[Kind] = &[Kind::AlreadyExists, Kind::Conflict];
const LOST_REPLACE: &[Kind] = &[Kind::Stale, Kind::Conflict];

pub async fn a_create_makes_a_new_key(at: Place) -> Outcome {
    put_if(&at, "k", "new", Condition::Absent).await?;
    same!(at.get("k").await?, "new", "bytes");
    Ok(())
}

pub async fn a_create_over_an_object_is_refused(at: Place) -> Outcome {
    at.put("k", "old").await?;
    refused("the create", put_if(&at, "k", "new", Condition::Absent).await, &[Kind::AlreadyExists])?;
    same!(at.get("k").await?, "old", "bytes");
    Ok(())
}

pub async fn of_eight_racing_creators_one_wins(at: Place) -> Outcome {
    let bodies: Vec<String> = (0..8).map(|n| format!("creator {n}")).collect();
    let race = bodies.iter().map(|body| put_if(&at, "k", body.clone(), Condition::Absent));
    one_winner(&at, &bodies, join_all(race).await, LOST_CREATE).await
}

pub async fn a_replace_of_the_named_version_succeeds(at: Place) -> Outcome {
    let old = at.put("k", "old").await?.etag;
    let new = put_if(&at, "k", "new", Condition::Matches(old)).await?.etag;
    same!(at.store.head(&at.bucket, "k", None).await?.etag, new, "etag");
    same!(at.get("k").await?, "new", "bytes");
    Ok(())
}

pub async fn a_replace_of_another_version_is_stale(at: Place) -> Outcome {
    let old = at.put("k", "old").await?.etag;
    at.put("k", "between").await?;
    refused("the replace", put_if(&at, "k", "new", Condition::Matches(old)).await, &[Kind::Stale])?;
    same!(at.get("k").await?, "between", "bytes");
    Ok(())
}

pub async fn a_replace_of_a_missing_key_is_refused(at: Place) -> Outcome {
    let result = put_if(&at, "k", "new", Condition::Matches(no_etag())).await;
    // S3 says 404; others say 412.
    refused("the replace", result, &[Kind::NotFound, Kind::Stale])?;
    refused("a get", at.get("k").await, &[Kind::NotFound])?;
    Ok(())
}

pub async fn of_eight_racing_replacers_one_wins(at: Place) -> Outcome {
    let old = at.put("k", "old").await?.etag;
    let bodies: Vec<String> = (0..8).map(|n| format!("replacer {n}")).collect();
    let race = bodies.iter().map(|body| put_if(&at, "k", body.clone(), Condition::Matches(old.clone())));
    one_winner(&at, &bodies, join_all(race).await, LOST_REPLACE).await
}

pub async fn a_completion_may_create(at: Place) -> Outcome {
    complete_if(&at, "k", "new", Condition::Absent).await?;
    same!(at.get("k").await?, "new", "bytes");
    Ok(())
}

pub async fn a_completion_over_an_object_is_refused(at: Place) -> Outcome {
    at.put("k", "old").await?;
    let result = complete_if(&at, "k", "new", Condition::Absent).await;
    refused("the completion", result, &[Kind::AlreadyExists])?;
    same!(at.get("k").await?, "old", "bytes");
    Ok(())
}

pub async fn a_completion_over_the_named_version_succeeds(at: Place) -> Outcome {
    let old = at.put("k", "old").await?.etag;
    complete_if(&at, "k", "new", Condition::Matches(old)).await?;
    same!(at.get("k").await?, "new", "bytes");
    Ok(())
}

pub async fn a_completion_over_another_version_is_stale(at: Place) -> Outcome {
    let old = at.put("k", "old").await?.etag;
    at.put("k", "between").await?;
    refused("the completion", complete_if(&at, "k", "new", Condition::Matches(old)).await, &[Kind::Stale])?;
    same!(at.get("k").await?, "between", "bytes");
    Ok(())
}

pub async fn a_copy_of_the_named_version_succeeds(at: Place) -> Outcome {
    let etag = at.put("source", "bytes").await?.etag;
    copy_if(&at, Some(etag), Condition::Any).await?;
    same!(at.get("target").await?, "bytes", "bytes");
    Ok(())
}

pub async fn a_copy_of_another_version_is_stale(at: Place) -> Outcome {
    let old = at.put("source", "old").await?.etag;
    at.put("source", "new").await?;
    refused("the copy", copy_if(&at, Some(old), Condition::Any).await, &[Kind::Stale])?;
    refused("a get", at.get("target").await, &[Kind::NotFound])?;
    Ok(())
}

pub async fn a_copy_may_create(at: Place) -> Outcome {
    at.put("source", "bytes").await?;
    copy_if(&at, None, Condition::Absent).await?;
    same!(at.get("target").await?, "bytes", "bytes");
    Ok(())
}

pub async fn a_copy_over_an_object_is_refused(at: Place) -> Outcome {
    at.put("source", "new").await?;
    at.put("target", "old").await?;
    refused("the copy", copy_if(&at, None, Condition::Absent).await, &[Kind::AlreadyExists])?;
    same!(at.get("target").await?, "old", "bytes");
    Ok(())
}

pub async fn a_copy_over_another_version_is_stale(at: Place) -> Outcome {
    at.put("source", "new").await?;
    let old = at.put("target", "old").await?.etag;
    at.put("target", "between").await?;
    refused("the copy", copy_if(&at, None, Condition::Matches(old)).await, &[Kind::Stale])?;
    same!(at.get("target").await?, "between", "bytes");
    Ok(())
}

pub async fn a_delete_of_the_named_version_succeeds(at: Place) -> Outcome {
    let etag = at.put("k", "bytes").await?.etag;
    delete_if(&at, Condition::Matches(etag)).await?;
    refused("a get", at.get("k").await, &[Kind::NotFound])?;
    Ok(())
}

pub async fn a_delete_of_another_version_is_stale(at: Place) -> Outcome {
    let old = at.put("k", "old").await?.etag;
    at.put("k", "new").await?;
    refused("the delete", delete_if(&at, Condition::Matches(old)).await, &[Kind::Stale])?;
    same!(at.get("k").await?, "new", "bytes");
    Ok(())
}

pub async fn a_delete_may_not_ask_for_absence(at: Place) -> Outcome {
    at.put("k", "bytes").await?;
    refused("the delete", delete_if(&at, Condition::Absent).await, &[Kind::InvalidArgument])?;
    same!(at.get("k").await?, "bytes", "bytes");
    Ok(())
}

async fn put_if(at: &Place, key: &str, body: impl Into<Bytes>, condition: Condition) -> Result<Written> {
    let mut request = at.put_request(key, body);
    request.condition = condition;
    at.store.put(request).await
}

/// An upload of one small part, which is the last and so may be small.
async fn complete_if(at: &Place, key: &str, body: &'static str, condition: Condition) -> Result<Written> {
    let upload = at.store.create_upload(&at.bucket, key, Attributes::default()).await?;
    let part = at.store.upload_part(&upload, 1, body.into(), None).await?;
    at.store.complete_upload(&upload, vec![part], condition).await
}

async fn copy_if(at: &Place, source_if_match: Option<ETag>, condition: Condition) -> Result<Written> {
    let request = CopyRequest {
        source_bucket: at.bucket.clone(),
        source_key: "source".into(),
        source_if_match,
        bucket: at.bucket.clone(),
        key: "target".into(),
        condition,
        ..CopyRequest::default()
    };
    at.store.copy(request).await
}

async fn delete_if(at: &Place, condition: Condition) -> Result<()> {
    let mut request = at.delete_request("k");
    request.condition = condition;
    at.store.delete(request).await.map(drop)
}

/// Exactly one request succeeded, its bytes are there, and the others were told that they lost.
async fn one_winner(at: &Place, bodies: &[String], results: Vec<Result<Written>>, lost: &[Kind]) -> Outcome {
    let winners: Vec<&String> =
        bodies.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(body, _)| body).collect();
    ensure!(winners.len() == 1, "{} of 8 won", winners.len());
    same!(at.get("k").await?, *winners[0], "bytes");
    for result in results.into_iter().filter(Result::is_err) {
        refused("a loser", result, lost)?;
    }
    Ok(())
}
