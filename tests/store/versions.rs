//! Versions, delete markers and tags.

use std::collections::BTreeMap;

use pailfs::error::{Kind, Result};
use pailfs::s3::{Condition, CopyRequest, ListVersionsRequest, ObjectVersion, Versioning};

use crate::{Outcome, Place, ensure, refused, same};

pub async fn versioning_is_switched_on_and_off(at: Place) -> Outcome {
    same!(at.store.versioning(&at.bucket).await?, Versioning::Never, "versioning at first");
    at.store.set_versioning(&at.bucket, true).await?;
    same!(at.store.versioning(&at.bucket).await?, Versioning::Enabled, "versioning once on");
    at.store.set_versioning(&at.bucket, false).await?;
    same!(at.store.versioning(&at.bucket).await?, Versioning::Suspended, "versioning once off");
    Ok(())
}

pub async fn versions_are_listed_newest_first(at: Place) -> Outcome {
    let ids = three_versions(&at).await?;
    let versions = list(&at, "").await?;
    same!(
        versions.iter().map(|version| version.version_id.clone()).collect::<Vec<_>>(),
        newest_first(&ids),
        "ids"
    );
    same!(
        versions.iter().map(|version| version.is_latest).collect::<Vec<_>>(),
        [true, false, false],
        "latest"
    );
    same!(versions.iter().map(|version| version.size).collect::<Vec<_>>(), [5, 3, 3], "sizes");
    ensure!(versions.iter().all(|version| !version.is_delete_marker && version.key == "k"), "{versions:?}");
    Ok(())
}

pub async fn an_old_version_reads_by_its_id(at: Place) -> Outcome {
    let ids = three_versions(&at).await?;
    for (id, wanted) in ids.iter().zip(["one", "two", "three"]) {
        let mut request = at.get_request("k");
        request.version_id = Some(id.clone());
        let output = at.store.get(request).await?;
        same!(output.info.version_id.as_deref(), Some(id.as_str()), "version id of get");
        same!(output.bytes().await?, wanted, "bytes");
        let head = at.store.head(&at.bucket, "k", Some(id)).await?;
        same!((head.size, head.version_id.as_ref()), (wanted.len() as u64, Some(id)), "size and id of head");
    }
    same!(at.get("k").await?, "three", "newest bytes");
    Ok(())
}

pub async fn a_delete_leaves_a_marker_and_the_versions(at: Place) -> Outcome {
    let ids = three_versions(&at).await?;
    let deleted = at.delete("k").await?;
    ensure!(deleted.delete_marker, "the answer names no marker: {deleted:?}");
    refused("a get", at.get("k").await, &[Kind::NotFound])?;
    refused("a head", at.store.head(&at.bucket, "k", None).await, &[Kind::NotFound])?;
    same!(at.keys().await?, Vec::<String>::new(), "keys");
    let versions = list(&at, "").await?;
    same!(versions.len(), 4, "versions");
    let marker = &versions[0];
    ensure!(marker.is_delete_marker && marker.is_latest && marker.size == 0, "{marker:?}");
    same!(Some(marker.version_id.as_str()), deleted.version_id.as_deref(), "id of the marker");
    let mut request = at.get_request("k");
    request.version_id = Some(ids[2].clone());
    same!(at.store.get(request).await?.bytes().await?, "three", "bytes by id");
    Ok(())
}

pub async fn deleting_the_marker_brings_the_object_back(at: Place) -> Outcome {
    three_versions(&at).await?;
    let marker = at.delete("k").await?.version_id;
    let mut request = at.delete_request("k");
    request.version_id = marker;
    at.store.delete(request).await?;
    same!(at.get("k").await?, "three", "bytes");
    same!(list(&at, "").await?.len(), 3, "versions");
    Ok(())
}

pub async fn deleting_a_version_removes_only_it(at: Place) -> Outcome {
    let ids = three_versions(&at).await?;
    let mut request = at.delete_request("k");
    request.version_id = Some(ids[2].clone());
    at.store.delete(request).await?;
    same!(at.get("k").await?, "two", "bytes");
    let left: Vec<String> = list(&at, "").await?.into_iter().map(|version| version.version_id).collect();
    same!(left, [ids[1].clone(), ids[0].clone()], "versions left");
    refused("a head", at.store.head(&at.bucket, "k", Some(&ids[2])).await, &[Kind::NotFound])?;
    Ok(())
}

pub async fn an_old_version_is_copied_by_its_id(at: Place) -> Outcome {
    let ids = three_versions(&at).await?;
    let request = CopyRequest {
        source_bucket: at.bucket.clone(),
        source_key: "k".into(),
        source_version_id: Some(ids[0].clone()),
        bucket: at.bucket.clone(),
        key: "k".into(),
        ..CopyRequest::default()
    };
    let written = at.store.copy(request).await?;
    same!(at.get("k").await?, "one", "bytes");
    let versions = list(&at, "").await?;
    same!(versions.len(), 4, "versions");
    same!(Some(&versions[0].version_id), written.version_id.as_ref(), "id of the newest");
    Ok(())
}

pub async fn every_page_size_gives_the_same_versions(at: Place) -> Outcome {
    at.store.set_versioning(&at.bucket, true).await?;
    for key in ["a", "a/1", "b", "a", "b", "a"] {
        at.put(key, key).await?;
    }
    at.delete("b").await?;
    let whole: Vec<_> = list(&at, "").await?.into_iter().map(|v| (v.key, v.version_id)).collect();
    let keys: Vec<&str> = whole.iter().map(|(key, _)| key.as_str()).collect();
    same!(keys, ["a", "a", "a", "a/1", "b", "b", "b"], "keys");
    for size in 1..=8 {
        let mut request = ListVersionsRequest {
            bucket: at.bucket.clone(),
            max_keys: Some(size),
            ..ListVersionsRequest::default()
        };
        let mut got = Vec::new();
        for _ in 0..=whole.len() {
            let page = at.store.list_versions(request.clone()).await?;
            ensure!(page.versions.len() <= usize::from(size), "a page of {} by {size}", page.versions.len());
            got.extend(page.versions.into_iter().map(|v| (v.key, v.version_id)));
            let Some((key, id)) = page.next else { break };
            (request.key_marker, request.version_id_marker) = (Some(key), id);
        }
        same!(got, whole, "versions by pages of {size}");
    }
    Ok(())
}

pub async fn versions_are_grouped_by_a_delimiter(at: Place) -> Outcome {
    at.store.set_versioning(&at.bucket, true).await?;
    for key in ["dir/a", "dir/b/c", "dir/b/c", "top", "dir/a"] {
        at.put(key, key).await?;
    }
    let request = ListVersionsRequest {
        bucket: at.bucket.clone(),
        prefix: "dir/".into(),
        delimiter: Some("/".into()),
        ..ListVersionsRequest::default()
    };
    let page = at.store.list_versions(request).await?;
    same!(page.versions.iter().map(|v| v.key.as_str()).collect::<Vec<_>>(), ["dir/a", "dir/a"], "keys");
    same!(page.common_prefixes, ["dir/b/"], "prefixes");
    Ok(())
}

pub async fn a_create_over_a_marker_succeeds(at: Place) -> Outcome {
    three_versions(&at).await?;
    at.delete("k").await?;
    let mut request = at.put_request("k", "again");
    request.condition = Condition::Absent;
    at.store.put(request).await?;
    same!(at.get("k").await?, "again", "bytes");
    let mut request = at.put_request("k", "too late");
    request.condition = Condition::Absent;
    refused("a second create", at.store.put(request).await, &[Kind::AlreadyExists])?;
    Ok(())
}

pub async fn tags_come_back(at: Place) -> Outcome {
    at.put("k", "bytes").await?;
    same!(at.store.tags(&at.bucket, "k").await?, BTreeMap::new(), "tags at first");
    let etag = at.store.head(&at.bucket, "k", None).await?.etag;
    at.store.set_tags(&at.bucket, "k", tags()).await?;
    same!(at.store.tags(&at.bucket, "k").await?, tags(), "tags");
    same!(at.store.head(&at.bucket, "k", None).await?.etag, etag, "etag");
    at.store.set_tags(&at.bucket, "k", BTreeMap::new()).await?;
    same!(at.store.tags(&at.bucket, "k").await?, BTreeMap::new(), "tags once taken off");
    Ok(())
}

pub async fn tags_of_a_put_come_back(at: Place) -> Outcome {
    let mut request = at.put_request("k", "bytes");
    request.attributes.tags = tags();
    at.store.put(request).await?;
    same!(at.store.tags(&at.bucket, "k").await?, tags(), "tags");
    Ok(())
}

pub async fn tags_of_a_missing_key_are_not_found(at: Place) -> Outcome {
    refused("the question", at.store.tags(&at.bucket, "gone").await, &[Kind::NotFound])?;
    Ok(())
}

/// Three versions of `k` in a bucket that keeps them: their ids, oldest first.
async fn three_versions(at: &Place) -> Result<Vec<String>, crate::Deviation> {
    at.store.set_versioning(&at.bucket, true).await?;
    let mut ids = Vec::new();
    for body in ["one", "two", "three"] {
        let written = at.put("k", body).await?;
        let Some(id) = written.version_id else {
            return Err(crate::Deviation("a put in a versioned bucket names no version".into()));
        };
        ids.push(id);
    }
    Ok(ids)
}

async fn list(at: &Place, prefix: &str) -> Result<Vec<ObjectVersion>> {
    let request = ListVersionsRequest {
        bucket: at.bucket.clone(),
        prefix: prefix.into(),
        ..ListVersionsRequest::default()
    };
    Ok(at.store.list_versions(request).await?.versions)
}

fn newest_first(ids: &[String]) -> Vec<String> {
    ids.iter().rev().cloned().collect()
}

fn tags() -> BTreeMap<String, String> {
    [("team", "storage"), ("a b", "c+d=e"), ("empty", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}
