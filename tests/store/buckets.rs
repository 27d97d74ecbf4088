//! Buckets, regions and identities.

use pailfs::error::Kind;

use crate::harness::Endpoint;
use crate::harness::bucket::fresh_name;
use crate::{Deviation, Outcome, Place, ensure, refused, same};

pub async fn a_made_bucket_is_listed(at: Place) -> Outcome {
    let buckets = at.store.list_buckets().await?;
    ensure!(
        buckets.iter().any(|bucket| bucket.name == at.bucket),
        "it is not among {} buckets",
        buckets.len()
    );
    same!(at.store.head_bucket(&at.bucket).await?.name, at.bucket, "name");
    Ok(())
}

pub async fn a_bucket_made_twice_exists_already(at: Place) -> Outcome {
    refused("the second", at.store.create_bucket(&at.bucket, None).await, &[Kind::AlreadyExists])?;
    Ok(())
}

pub async fn a_bucket_with_objects_is_not_deleted(at: Place) -> Outcome {
    at.put("k", "bytes").await?;
    refused("the delete", at.store.delete_bucket(&at.bucket).await, &[Kind::NotEmpty])?;
    same!(at.get("k").await?, "bytes", "bytes");
    Ok(())
}

pub async fn a_deleted_bucket_is_gone(at: Place) -> Outcome {
    at.store.delete_bucket(&at.bucket).await?;
    refused("a head", at.store.head_bucket(&at.bucket).await, &[Kind::NoSuchBucket])?;
    refused("a second delete", at.store.delete_bucket(&at.bucket).await, &[Kind::NoSuchBucket])?;
    let buckets = at.store.list_buckets().await?;
    ensure!(buckets.iter().all(|bucket| bucket.name != at.bucket), "it is still listed");
    Ok(())
}

pub async fn a_missing_bucket_is_told_from_a_missing_key(at: Place) -> Outcome {
    let gone = Place { bucket: fresh_name(), ..at };
    refused("a head of the bucket", gone.store.head_bucket(&gone.bucket).await, &[Kind::NoSuchBucket])?;
    refused("a listing", gone.keys().await, &[Kind::NoSuchBucket])?;
    refused("a get", gone.get("k").await, &[Kind::NoSuchBucket])?;
    refused("a put", gone.put("k", "bytes").await, &[Kind::NoSuchBucket])?;
    // The answer to HEAD has no body, and so no code.
    refused("a head", gone.store.head(&gone.bucket, "k", None).await, &[Kind::NoSuchBucket, Kind::NotFound])?;
    Ok(())
}

pub async fn head_bucket_tells_the_region(at: Place) -> Outcome {
    let wanted = endpoint(&at).map_or("us-east-1".to_owned(), |endpoint| endpoint.region);
    same!(at.store.head_bucket(&at.bucket).await?.region, Some(wanted), "region");
    Ok(())
}

pub async fn a_wrong_secret_is_told(at: Place) -> Outcome {
    let mut endpoint = endpoint(&at).ok_or_else(|| Deviation("it takes no keys".into()))?;
    endpoint.secret = format!("{}x", endpoint.secret);
    let result = endpoint.client().await.list(at.list_request("")).await;
    refused("the listing", result, &[Kind::Credentials, Kind::AccessDenied])?;
    Ok(())
}

pub async fn an_unknown_access_key_is_told(at: Place) -> Outcome {
    let mut endpoint = endpoint(&at).ok_or_else(|| Deviation("it takes no keys".into()))?;
    endpoint.access = "GK000000000000000000000000".into();
    let result = endpoint.client().await.list(at.list_request("")).await;
    refused("the listing", result, &[Kind::Credentials, Kind::AccessDenied])?;
    Ok(())
}

/// Where the server listens; none where it is in this process.
fn endpoint(at: &Place) -> Option<Endpoint> {
    at.server.endpoint().expect("a test on it is running").cloned()
}
