//! Uploads in parts.

use std::time::Duration;

use bytes::Bytes;
use pailfs::base::{ByteRange, Clock, SystemClock};
use pailfs::error::{Error, Kind, Result};
use pailfs::s3::{
    Attributes, Checksum, ChecksumAlgorithm, Condition, Part, PartSource, Payload, Upload, Written,
};

use crate::objects::{attributes, pattern, same_attributes, slice};
use crate::{Outcome, Place, ensure, refused, same};

const PART: u64 = pailfs::s3::limits::PART_MIN;

pub async fn three_parts_become_one_object(at: Place) -> Outcome {
    let body = pattern(2 * (5 << 20) + 12345);
    let len = body.len() as u64;
    let upload = start(&at, "dir/big").await?;
    let mut parts = Vec::new();
    for (number, from) in (1..).zip([0, PART, 2 * PART]) {
        parts.push(send(&at, &upload, number, slice(&body, from, (from + PART).min(len))).await?);
    }
    let written = complete(&at, &upload, parts).await?;
    let head = at.store.head(&at.bucket, "dir/big", None).await?;
    same!((head.size, &head.etag), (len, &written.etag), "size and etag");
    for (from, to) in [(0, 10), (PART - 5, PART + 5), (2 * PART - 1, 2 * PART + 1), (len - 10, len)] {
        let mut request = at.get_request("dir/big");
        request.range = ByteRange::new(from, to);
        request.if_match = Some(written.etag.clone());
        let bytes = at.store.get(request).await?.bytes().await?;
        ensure!(bytes == slice(&body, from, to), "other bytes at {from}..{to}");
    }
    ensure!(at.get("dir/big").await? == body, "other bytes came back");
    Ok(())
}

pub async fn attributes_of_an_upload_come_back(at: Place) -> Outcome {
    let upload = at.store.create_upload(&at.bucket, "k", attributes()).await?;
    let part = send(&at, &upload, 1, "bytes").await?;
    complete(&at, &upload, vec![part]).await?;
    same_attributes(&at.store.head(&at.bucket, "k", None).await?.attributes, &attributes())
}

pub async fn parts_count_by_number_not_by_arrival(at: Place) -> Outcome {
    let body = pattern(5 << 20);
    let upload = start(&at, "k").await?;
    let tail = send(&at, &upload, 7, "tail").await?;
    let head = send(&at, &upload, 3, body.clone()).await?;
    complete(&at, &upload, vec![head, tail]).await?;
    let got = at.get("k").await?;
    ensure!(
        got.len() == body.len() + 4 && got.starts_with(&body) && got.ends_with(b"tail"),
        "{} bytes",
        got.len()
    );
    Ok(())
}

pub async fn a_part_sent_again_replaces_the_first(at: Place) -> Outcome {
    let upload = start(&at, "k").await?;
    send(&at, &upload, 1, "first").await?;
    let again = send(&at, &upload, 1, "again").await?;
    complete(&at, &upload, vec![again]).await?;
    same!(at.get("k").await?, "again", "bytes");
    Ok(())
}

pub async fn nothing_shows_before_completion(at: Place) -> Outcome {
    at.put("old", "old").await?;
    let (fresh, over) = (start(&at, "fresh").await?, start(&at, "old").await?);
    send(&at, &fresh, 1, "bytes").await?;
    send(&at, &over, 1, "bytes").await?;
    same!(at.keys().await?, ["old"], "keys");
    same!(at.get("old").await?, "old", "bytes");
    refused("a head", at.store.head(&at.bucket, "fresh", None).await, &[Kind::NotFound])?;
    Ok(())
}

pub async fn list_parts_tells_what_arrived(at: Place) -> Outcome {
    let upload = start(&at, "k").await?;
    same!(at.store.list_parts(&upload).await?, vec![], "parts at first");
    let tail = send(&at, &upload, 9, "tail").await?;
    let head = send(&at, &upload, 2, pattern(5 << 20)).await?;
    let parts = at.store.list_parts(&upload).await?;
    let told: Vec<_> = parts.iter().map(|part| (part.number, part.size, part.etag.clone())).collect();
    same!(told, vec![(2, PART, head.etag), (9, 4, tail.etag)], "parts");
    complete(&at, &upload, parts).await?;
    same!(at.store.head(&at.bucket, "k", None).await?.size, PART + 4, "size");
    Ok(())
}

pub async fn list_uploads_tells_the_unfinished(at: Place) -> Outcome {
    let (first, second) = (start(&at, "dir/a").await?, start(&at, "dir/b c&d").await?);
    let done = start(&at, "dir/done").await?;
    start(&at, "other").await?;
    let part = send(&at, &done, 1, "x").await?;
    complete(&at, &done, vec![part]).await?;
    let listed = at.store.list_uploads(&at.bucket, "dir/").await?;
    // Where a server tells when, it is not to come; moto says 2010.
    let soon = SystemClock.wall() + Duration::from_secs(3600);
    for begun in listed.iter().filter_map(|unfinished| unfinished.initiated) {
        ensure!(begun < soon, "begun {begun:?}");
    }
    let mut told: Vec<_> = listed.into_iter().map(|unfinished| unfinished.upload).collect();
    told.sort_by(|a, b| a.key.cmp(&b.key));
    same!(told, vec![first, second], "uploads");
    Ok(())
}

pub async fn an_aborted_upload_is_gone(at: Place) -> Outcome {
    let upload = start(&at, "k").await?;
    let part = send(&at, &upload, 1, "bytes").await?;
    at.store.abort_upload(&upload).await?;
    same!(at.store.list_uploads(&at.bucket, "").await?, vec![], "uploads");
    refused("a part", send(&at, &upload, 2, "more").await, &[Kind::NotFound])?;
    refused("the completion", complete(&at, &upload, vec![part]).await, &[Kind::NotFound])?;
    refused("a head", at.store.head(&at.bucket, "k", None).await, &[Kind::NotFound])?;
    Ok(())
}

pub async fn a_small_part_before_the_last_is_refused(at: Place) -> Outcome {
    let upload = start(&at, "k").await?;
    let parts = vec![send(&at, &upload, 1, "small").await?, send(&at, &upload, 2, "tail").await?];
    let error = refused("the completion", complete(&at, &upload, parts).await, &[Kind::InvalidArgument])?;
    same!(error.code(), Some("EntityTooSmall"), "code");
    Ok(())
}

pub async fn a_part_with_another_etag_is_refused(at: Place) -> Outcome {
    let upload = start(&at, "k").await?;
    let mut part = send(&at, &upload, 1, "bytes").await?;
    part.etag = crate::objects::no_etag();
    let error =
        refused("the completion", complete(&at, &upload, vec![part]).await, &[Kind::InvalidArgument])?;
    same!(error.code(), Some("InvalidPart"), "code");
    refused("a head", at.store.head(&at.bucket, "k", None).await, &[Kind::NotFound])?;
    Ok(())
}

pub async fn a_part_with_a_wrong_checksum_is_refused(at: Place) -> Outcome {
    let upload = start(&at, "k").await?;
    // CRC-64/NVME of "the quick brown pail".
    let wrong = Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value: "s0WNgudwnPU=".into() };
    let result = at.store.upload_part(&upload, 1, "other bytes".into(), Some(wrong)).await;
    refused("the part", result, &[Kind::Corrupt, Kind::InvalidArgument])?;
    Ok(())
}

/// Bytes that are not in memory, in pieces of any size, read each time that they are sent.
fn in_steps(body: &Bytes, fails_at: Option<usize>) -> Payload {
    let bytes = body.clone();
    Payload::in_steps(body.len() as u64, move || {
        let mut steps: Vec<Result<Bytes>> = Vec::new();
        for (step, from) in (0..bytes.len()).step_by(700_001).enumerate() {
            if fails_at == Some(step) {
                steps.push(Err(Error::new(Kind::Local, "the disk is damaged")));
                break;
            }
            steps.push(Ok(bytes.slice(from..bytes.len().min(from + 700_001))));
        }
        Box::pin(futures::stream::iter(steps))
    })
}

pub async fn a_part_that_is_read_while_it_is_sent_has_the_same_bytes(at: Place) -> Outcome {
    let body = pattern((6 << 20) + 17);
    let upload = start(&at, "k").await?;
    let checksum = pailfs::s3::checksum_of(&body);
    let first = at.store.upload_part(&upload, 1, in_steps(&body, None), Some(checksum)).await?;
    let second = at.store.upload_part(&upload, 2, in_steps(&body, None), None).await?;
    same!((first.size, second.size), (body.len() as u64, body.len() as u64), "sizes");
    same!(first.etag, second.etag, "etags of the same bytes");
    complete(&at, &upload, vec![first, second]).await?;
    ensure!(at.get("k").await? == [body.clone(), body].concat(), "other bytes came back");
    Ok(())
}

pub async fn a_part_that_cannot_be_read_fails_with_what_reading_it_failed_for(at: Place) -> Outcome {
    let body = pattern((6 << 20) + 17);
    let upload = start(&at, "k").await?;
    let checksum = pailfs::s3::checksum_of(&body);
    for step in [0, 3] {
        let sent =
            at.store.upload_part(&upload, 1, in_steps(&body, Some(step)), Some(checksum.clone())).await;
        refused("the part", sent, &[Kind::Local])?;
    }
    // Not by the same number: Garage may take a moment to forget what broke off.
    let part = at.store.upload_part(&upload, 2, in_steps(&body, None), Some(checksum)).await?;
    complete(&at, &upload, vec![part]).await?;
    ensure!(at.get("k").await? == body, "other bytes came back");
    Ok(())
}

pub async fn a_range_of_an_object_becomes_a_part(at: Place) -> Outcome {
    let body = pattern(6 << 20);
    let etag = at.put("so urce+%é", body.clone()).await?.etag;
    let upload = start(&at, "k").await?;
    let from = 1000;
    let source = PartSource {
        bucket: at.bucket.clone(),
        key: "so urce+%é".into(),
        range: ByteRange::new(from, from + PART).expect("it is not empty"),
        if_match: Some(etag),
    };
    let head = at.store.upload_part_copy(&upload, 1, source).await?;
    same!(head.size, PART, "size of the part");
    let tail = send(&at, &upload, 2, "tail").await?;
    complete(&at, &upload, vec![head, tail]).await?;
    let got = at.get("k").await?;
    let wanted = slice(&body, from, from + PART);
    ensure!(
        got.len() == wanted.len() + 4 && got.starts_with(&wanted) && got.ends_with(b"tail"),
        "{} bytes",
        got.len()
    );
    Ok(())
}

pub async fn a_part_of_another_version_is_stale(at: Place) -> Outcome {
    let old = at.put("source", "old bytes").await?.etag;
    at.put("source", "new bytes").await?;
    let upload = start(&at, "k").await?;
    let source = PartSource {
        bucket: at.bucket.clone(),
        key: "source".into(),
        range: ByteRange::new(0, 9).expect("it is not empty"),
        if_match: Some(old),
    };
    refused("the part", at.store.upload_part_copy(&upload, 1, source).await, &[Kind::Stale])?;
    Ok(())
}

pub async fn a_part_of_a_missing_object_is_not_found(at: Place) -> Outcome {
    let upload = start(&at, "k").await?;
    let source = PartSource {
        bucket: at.bucket.clone(),
        key: "gone".into(),
        range: ByteRange::new(0, 9).expect("it is not empty"),
        if_match: None,
    };
    refused("the part", at.store.upload_part_copy(&upload, 1, source).await, &[Kind::NotFound])?;
    Ok(())
}

async fn start(at: &Place, key: &str) -> Result<Upload> {
    at.store.create_upload(&at.bucket, key, Attributes::default()).await
}

async fn send(at: &Place, upload: &Upload, number: u16, body: impl Into<Bytes>) -> Result<Part> {
    at.store.upload_part(upload, number, Payload::from(body), None).await
}

async fn complete(at: &Place, upload: &Upload, parts: Vec<Part>) -> Result<Written> {
    at.store.complete_upload(upload, parts, Condition::Any).await
}
