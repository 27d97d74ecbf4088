//! One object: bytes, ranges, attributes, keys, deletion, checksums.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use pailfs::base::{ByteRange, Clock, ETag, SystemClock};
use pailfs::error::Kind;
use pailfs::s3::{Attributes, Checksum, ChecksumAlgorithm, DeleteKey};

use crate::{Outcome, Place, ensure, refused, same};

const FOX: &[u8] = b"the quick brown pail";

/// Checksums of `FOX`, computed by other programs.
const CHECKSUMS: [(ChecksumAlgorithm, &str); 6] = [
    (ChecksumAlgorithm::Crc64Nvme, "s0WNgudwnPU="),
    (ChecksumAlgorithm::Crc32, "wRMuCw=="),
    (ChecksumAlgorithm::Crc32c, "Vu5KOA=="),
    (ChecksumAlgorithm::Sha1, "EKR5KvOLbCF1v1r0bVQMIVF4iRM="),
    (ChecksumAlgorithm::Sha256, "JmwFZa3mqC26FbtwtmqkdPHy3t3Lm/tD9DDUwgsJBUk="),
    (ChecksumAlgorithm::Md5, "4ugpMTJPAvfbxAdWrX7hLg=="),
];

/// Legal keys that file systems, XML, URLs and string escapes each have trouble with.
pub const ODD_KEYS: &[&str] = &[
    "a//b",
    "/leading",
    "trailing/",
    "./dot",
    "../dots",
    "a/./b",
    "a/../b",
    "up/..",
    "here/.",
    " leading space",
    "trailing space ",
    "tab\t",
    "line\nbreak",
    "carriage\rreturn",
    "control\u{1}",
    "delete\u{7f}",
    "quotes\"'`",
    "back\\slash",
    "per%20cent%2F",
    "plus+sign",
    "question?mark=1",
    "hash#mark",
    "amp&ersand",
    "<xml>",
    "&amp;",
    "star*",
    "colon:semi;comma,",
    "~tilde$dollar@at!bang",
    "[brackets]{braces}(round)|^",
    "é",
    "e\u{301}",
    "名前",
    "🪣",
    "\u{feff}mark",
];

pub async fn put_then_get_returns_the_bytes(at: Place) -> Outcome {
    let body = pattern(1 << 20);
    at.put("dir/file", body.clone()).await?;
    ensure!(at.get("dir/file").await? == body, "other bytes came back");
    Ok(())
}

pub async fn a_presigned_address_shows_the_object_to_anybody(at: Place) -> Outcome {
    let keys = ["plain", "dir/a b+c&d=é?#%20~'*"];
    for key in keys {
        at.put(key, FOX).await?;
        let url = at.store.presigned(&at.bucket, key, Duration::from_secs(60)).await?;
        let answer = plain_get(&url).await.map_err(|error| crate::Deviation(format!("{url}: {error}")))?;
        ensure!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("quick brown pail"),
            "{key}: {answer}"
        );
        // It is good for that object alone.
        let other = url.replacen(&url[url.len() - 4..], "0000", 1);
        let answer =
            plain_get(&other).await.map_err(|error| crate::Deviation(format!("{other}: {error}")))?;
        ensure!(!answer.ends_with("quick brown pail"), "{key}: a wrong signature was taken");
    }
    Ok(())
}

/// GET by nobody, without any client of S3.
async fn plain_get(url: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = tokio::net::TcpStream::connect(host).await?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub async fn put_replaces_what_was_there(at: Place) -> Outcome {
    at.put("k", "first and longer").await?;
    at.put("k", "second").await?;
    same!(at.get("k").await?, "second", "bytes");
    same!(at.store.head(&at.bucket, "k", None).await?.size, 6, "size");
    Ok(())
}

pub async fn an_empty_object_reads_as_empty(at: Place) -> Outcome {
    at.put("k", "").await?;
    let output = at.store.get(at.get_request("k")).await?;
    same!((output.info.size, output.offset, output.length), (0, 0, 0), "size, offset, length");
    same!(output.bytes().await?, "", "bytes");
    Ok(())
}

pub async fn head_tells_size_etag_and_time(at: Place) -> Outcome {
    let written = at.put("k", FOX).await?;
    let head = at.store.head(&at.bucket, "k", None).await?;
    same!((head.key.as_str(), head.size), ("k", FOX.len() as u64), "key and size");
    same!(head.etag, written.etag, "etag");
    let now = SystemClock.wall();
    let apart = now.duration_since(head.last_modified).or_else(|_| head.last_modified.duration_since(now));
    ensure!(apart.is_ok_and(|apart| apart < Duration::from_secs(300)), "time: {:?}", head.last_modified);
    let got = at.store.get(at.get_request("k")).await?.info;
    same!(
        (got.size, &got.etag, got.last_modified),
        (head.size, &head.etag, head.last_modified),
        "what get tells"
    );
    Ok(())
}

pub async fn other_bytes_have_another_etag(at: Place) -> Outcome {
    let first = at.put("k", "one").await?.etag;
    let second = at.put("k", "two").await?.etag;
    ensure!(first != second, "both have {first}");
    same!(at.store.head(&at.bucket, "k", None).await?.etag, second, "etag");
    Ok(())
}

pub async fn a_missing_key_is_not_found(at: Place) -> Outcome {
    refused("head", at.store.head(&at.bucket, "gone", None).await, &[Kind::NotFound])?;
    let error = refused("get", at.get("gone").await, &[Kind::NotFound])?;
    same!(error.code(), Some("NoSuchKey"), "code");
    Ok(())
}

pub async fn a_range_returns_exactly_its_bytes(at: Place) -> Outcome {
    let body = pattern(3 << 20);
    at.put("k", body.clone()).await?;
    for (start, end) in [(0, 1), (0, 3 << 20), (1, 4096), (1 << 20, (1 << 20) + 1), ((3 << 20) - 1, 3 << 20)]
    {
        let mut request = at.get_request("k");
        request.range = ByteRange::new(start, end);
        let output = at.store.get(request).await?;
        same!((output.offset, output.length), (start, end - start), "offset and length");
        same!(output.info.size, 3 << 20, "size of the whole");
        ensure!(
            output.bytes().await? == slice(&body, start, end),
            "other bytes came back for {start}..{end}"
        );
    }
    Ok(())
}

pub async fn a_range_past_the_end_is_cut_short(at: Place) -> Outcome {
    at.put("k", FOX).await?;
    let mut request = at.get_request("k");
    request.range = ByteRange::new(16, 1 << 40);
    let output = at.store.get(request).await?;
    same!((output.info.size, output.offset, output.length), (20, 16, 4), "size, offset, length");
    same!(output.bytes().await?, "pail", "bytes");
    Ok(())
}

pub async fn a_range_after_the_end_is_invalid(at: Place) -> Outcome {
    at.put("k", FOX).await?;
    let mut request = at.get_request("k");
    request.range = ByteRange::new(20, 21);
    let error = refused("the range", at.store.get(request).await, &[Kind::InvalidRange])?;
    same!(error.status(), Some(416), "status");
    Ok(())
}

pub async fn a_range_of_an_empty_object_is_invalid(at: Place) -> Outcome {
    at.put("k", "").await?;
    let mut request = at.get_request("k");
    request.range = ByteRange::new(0, 1);
    refused("the range", at.store.get(request).await, &[Kind::InvalidRange])?;
    Ok(())
}

pub async fn get_if_match_the_current_etag_returns_the_bytes(at: Place) -> Outcome {
    let written = at.put("k", FOX).await?;
    let mut request = at.get_request("k");
    request.if_match = Some(written.etag);
    same!(at.store.get(request).await?.bytes().await?, FOX, "bytes");
    Ok(())
}

pub async fn get_if_match_another_etag_is_stale(at: Place) -> Outcome {
    let old = at.put("k", "old").await?.etag;
    at.put("k", "new").await?;
    let mut request = at.get_request("k");
    request.if_match = Some(old);
    request.range = ByteRange::new(0, 2);
    refused("the old etag", at.store.get(request).await, &[Kind::Stale])?;
    Ok(())
}

pub async fn attributes_come_back(at: Place) -> Outcome {
    let mut request = at.put_request("k", FOX);
    request.attributes = attributes();
    at.store.put(request).await?;
    same_attributes(&at.store.head(&at.bucket, "k", None).await?.attributes, &attributes())?;
    same_attributes(&at.store.get(at.get_request("k")).await?.info.attributes, &attributes())
}

pub async fn metadata_values_come_back_as_they_are(at: Place) -> Outcome {
    let values = [
        "",
        "plain",
        "a b  c",
        "%20%zz",
        "=?utf-8?q?x?=",
        "{\"json\":\"yes\"}",
        "a,b;c",
        "\"quoted\"",
        "1700000000.000000001",
    ];
    let mut request = at.put_request("k", FOX);
    for (n, value) in values.iter().enumerate() {
        request.attributes.metadata.insert(format!("value-{n}"), (*value).to_owned());
    }
    let sent = request.attributes.metadata.clone();
    at.store.put(request).await?;
    same!(at.store.head(&at.bucket, "k", None).await?.attributes.metadata, sent, "metadata");
    Ok(())
}

pub async fn odd_keys_are_kept(at: Place) -> Outcome {
    let long = "l".repeat(1024);
    let component = format!("component/{}", "c".repeat(300));
    let keys: Vec<&str> = ODD_KEYS.iter().copied().chain([long.as_str(), component.as_str()]).collect();
    let (mut unkept, mut told) = (Vec::new(), Vec::new());
    for (n, key) in keys.iter().enumerate() {
        let body = format!("body {n}");
        if at.put(key, body.clone()).await.is_err() {
            unkept.push(*key);
        }
    }
    for (n, key) in keys.iter().enumerate() {
        let body = format!("body {n}");
        match at.get(key).await {
            Ok(bytes) if bytes == body => told.push((*key).to_owned()),
            _ if unkept.contains(key) => {}
            _ => unkept.push(key),
        }
    }
    let unkept: Vec<String> = unkept.into_iter().map(shortened).collect();
    ensure!(unkept.is_empty(), "not kept: {unkept:?}");
    let listed: BTreeSet<String> = at.keys().await?.into_iter().collect();
    let unlisted: Vec<String> =
        told.iter().filter(|key| !listed.contains(*key)).map(|key| shortened(key)).collect();
    ensure!(unlisted.is_empty(), "not listed: {unlisted:?}");
    same!(listed.len(), keys.len(), "keys listed");
    Ok(())
}

pub async fn a_key_beside_its_own_children_is_kept(at: Place) -> Outcome {
    at.put("a", "file").await?;
    at.put("a/", "marker").await?;
    at.put("a/1", "child").await?;
    same!(at.get("a").await?, "file", "bytes of a");
    same!(at.get("a/").await?, "marker", "bytes of a/");
    same!(at.get("a/1").await?, "child", "bytes of a/1");
    same!(at.keys().await?, ["a", "a/", "a/1"], "keys");
    at.delete("a/").await?;
    same!(at.keys().await?, ["a", "a/1"], "keys after the marker went");
    Ok(())
}

pub async fn delete_removes(at: Place) -> Outcome {
    at.put("k", FOX).await?;
    at.put("k2", FOX).await?;
    at.delete("k").await?;
    refused("a get", at.get("k").await, &[Kind::NotFound])?;
    same!(at.keys().await?, ["k2"], "keys");
    Ok(())
}

pub async fn delete_of_a_missing_key_succeeds(at: Place) -> Outcome {
    let deleted = at.delete("gone").await?;
    ensure!(!deleted.delete_marker, "a marker in a bucket without versions");
    Ok(())
}

fn any(keys: &[String]) -> Vec<DeleteKey> {
    keys.iter().map(DeleteKey::any).collect()
}

pub async fn delete_many_removes_a_thousand(at: Place) -> Outcome {
    let keys: Vec<String> = (0..1000).map(|n| format!("many/{n:04}")).collect();
    put_all(&at, &keys[..900]).await?;
    at.put("stays", "").await?;
    // The last hundred are not there, which is not an error.
    let answers = at.store.delete_many(&at.bucket, any(&keys)).await?;
    same!(answers.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), keys, "keys answered");
    for (_, answer) in answers {
        answer?;
    }
    same!(at.keys().await?, ["stays"], "keys");
    Ok(())
}

pub async fn delete_many_takes_odd_keys(at: Place) -> Outcome {
    let keys = ["amp&", "<xml>", "per%20cent", "plus+", "quote\"", "é", " space", "a//b"]
        .map(str::to_owned)
        .to_vec();
    put_all(&at, &keys).await?;
    for (_, answer) in at.store.delete_many(&at.bucket, any(&keys)).await? {
        answer?;
    }
    same!(at.keys().await?, Vec::<String>::new(), "keys");
    Ok(())
}

/// What servers do with the versions of a batch is found out by a probe before it is relied on.
pub async fn delete_many_deletes_the_named_versions_alone(at: Place) -> Outcome {
    let old = at.put("changed", "old").await?.etag;
    at.put("changed", "newer").await?;
    let same = at.put("same", FOX).await?.etag;
    at.put("any", FOX).await?;
    let entry = |key: &str, etag: Option<ETag>| DeleteKey { key: key.to_owned(), etag };
    let keys = vec![
        entry("changed", Some(old.clone())),
        entry("same", Some(same)),
        entry("gone", Some(old)),
        DeleteKey::any("any"),
    ];
    let answers = at.store.delete_many(&at.bucket, keys).await?;
    let mut answers = answers.into_iter().map(|(_, answer)| answer);
    let mut next = || answers.next().unwrap_or(Ok(()));
    let (changed, same, _gone, any) = (next(), next(), next(), next());
    refused("the delete of another version", changed, &[Kind::Stale])?;
    same?;
    any?;
    same!(at.keys().await?, ["changed"], "keys");
    same!(at.get("changed").await?, "newer", "bytes");
    Ok(())
}

pub async fn delete_many_takes_keys_that_xml_cannot_hold(at: Place) -> Outcome {
    let keys = ["a\u{1}b", "c\td", "e\rf", "g\nh"].map(str::to_owned).to_vec();
    let mut there = Vec::new();
    for key in keys {
        // Not every server takes them.
        if at.put(&key, "").await.is_ok() {
            there.push(key);
        }
    }
    for (_, answer) in at.store.delete_many(&at.bucket, any(&there)).await? {
        answer?;
    }
    same!(at.keys().await?, Vec::<String>::new(), "keys");
    Ok(())
}

pub async fn right_checksums_are_accepted(at: Place) -> Outcome {
    for (algorithm, value) in CHECKSUMS {
        let mut request = at.put_request("k", FOX);
        request.checksum = Some(Checksum { algorithm, value: value.to_owned() });
        let written = at.store.put(request).await;
        ensure!(written.is_ok(), "{algorithm:?} was refused: {written:?}");
        same!(at.get("k").await?, FOX, "bytes");
    }
    Ok(())
}

pub async fn wrong_checksums_are_refused(at: Place) -> Outcome {
    let mut taken = Vec::new();
    for (algorithm, value) in CHECKSUMS {
        let mut request = at.put_request("k", "other bytes");
        request.checksum = Some(Checksum { algorithm, value: value.to_owned() });
        match at.store.put(request).await {
            Ok(_) => taken.push(algorithm),
            Err(error) => {
                let told = matches!(error.kind(), Kind::Corrupt | Kind::InvalidArgument);
                ensure!(told, "{algorithm:?} failed with {:?}: {}", error.kind(), error.report());
            }
        }
    }
    ensure!(taken.is_empty(), "taken: {taken:?}");
    refused("a get", at.get("k").await, &[Kind::NotFound])?;
    Ok(())
}

pub async fn a_stored_checksum_is_told(at: Place) -> Outcome {
    for (algorithm, value) in
        CHECKSUMS.into_iter().filter(|(algorithm, _)| *algorithm != ChecksumAlgorithm::Md5)
    {
        let sent = Checksum { algorithm, value: value.to_owned() };
        let mut request = at.put_request("k", FOX);
        request.checksum = Some(sent.clone());
        at.store.put(request).await?;
        let told = at.store.head(&at.bucket, "k", None).await?.checksums;
        ensure!(told.contains(&sent), "{algorithm:?} is not told: {told:?}");
    }
    Ok(())
}

pub async fn errors_carry_code_status_and_request_id(at: Place) -> Outcome {
    let error = refused("a get", at.get("gone").await, &[Kind::NotFound])?;
    same!(error.code(), Some("NoSuchKey"), "code");
    same!(error.status(), Some(404), "status");
    ensure!(error.request_id().is_some_and(|id| !id.is_empty()), "no request id: {error:?}");
    ensure!(error.to_string().contains(&at.bucket), "the bucket is not named: {error}");
    Ok(())
}

/// Bytes that differ at every offset that matters: neither a block nor a part repeats.
pub fn pattern(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

pub fn slice(body: &Bytes, start: u64, end: u64) -> Bytes {
    let at = |offset| usize::try_from(offset).expect("a test body fits in memory");
    body.slice(at(start)..at(end))
}

/// An ETag that no object has.
pub fn no_etag() -> ETag {
    ETag::new("\"00000000000000000000000000000000\"")
}

/// Every attribute that S3 keeps beside the bytes and returns with them.
pub fn attributes() -> Attributes {
    Attributes {
        content_type: Some("text/x-pail".into()),
        cache_control: Some("max-age=60".into()),
        content_encoding: Some("x-pail".into()),
        content_disposition: Some("attachment; filename=\"pail\"".into()),
        content_language: Some("en".into()),
        metadata: [("mode", "33188"), ("mtime", "1700000000.000000001"), ("with-dash", "yes")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Attributes::default()
    }
}

/// Compares what `attributes` sets; a server may tell more (a storage class, say).
pub fn same_attributes(got: &Attributes, wanted: &Attributes) -> Outcome {
    same!(got.content_type, wanted.content_type, "content type");
    same!(got.cache_control, wanted.cache_control, "cache control");
    same!(got.content_encoding, wanted.content_encoding, "content encoding");
    same!(got.content_disposition, wanted.content_disposition, "content disposition");
    same!(got.content_language, wanted.content_language, "content language");
    same!(got.metadata, wanted.metadata, "metadata");
    Ok(())
}

/// Puts every key, its own name as its body, some at a time.
pub async fn put_all<K: AsRef<str>>(at: &Place, keys: &[K]) -> Outcome {
    stream::iter(keys.iter().map(|key| at.put(key.as_ref(), key.as_ref().to_owned())))
        .buffer_unordered(16)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(())
}

fn shortened(key: &str) -> String {
    if key.len() <= 40 { key.to_owned() } else { format!("{}... of {} bytes", &key[..12], key.len()) }
}
