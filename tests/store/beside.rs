//! What is beside an object's bytes and nobody reads: class, encryption, tags, and what a copy does with them.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use pailfs::base::ByteRange;
use pailfs::error::Kind;
use pailfs::s3::{Again, Attributes, CopyRequest, Encryption, KeyPlace, PartSource, Session};

use crate::harness::{self, Server};
use crate::{Deviation, Outcome, Place, ensure, same};

pub async fn a_storage_class_comes_back(at: Place) -> Outcome {
    put(&at, "k", &cold()).await?;
    same!(class_of(&at, "k").await?, cold().storage_class, "class");
    let page = at.store.list(at.list_request("")).await?;
    same!(page.objects[0].storage_class, cold().storage_class, "class in a listing");
    Ok(())
}

pub async fn an_upload_takes_its_class(at: Place) -> Outcome {
    upload(&at, "k", cold()).await?;
    same!(class_of(&at, "k").await?, cold().storage_class, "class");
    Ok(())
}

pub async fn a_copy_takes_the_class_it_is_told(at: Place) -> Outcome {
    put(&at, "k", &cold()).await?;
    copy(&at, "plain", Again::default()).await?;
    let class = class_of(&at, "plain").await?;
    ensure!(class.as_deref().is_none_or(|class| class == "STANDARD"), "the copy has the class {class:?}");
    copy(&at, "cold", Again::of(&cold())).await?;
    same!(class_of(&at, "cold").await?, cold().storage_class, "class");
    Ok(())
}

pub async fn encryption_comes_back(at: Place) -> Outcome {
    put(&at, "k", &encrypted()).await?;
    same!(key_of(&at, "k").await?, Some(KEY.to_owned()), "key of the object");
    upload(&at, "parts", encrypted()).await?;
    same!(key_of(&at, "parts").await?, Some(KEY.to_owned()), "key of the upload");
    Ok(())
}

pub async fn a_copy_takes_the_encryption_it_is_told(at: Place) -> Outcome {
    put(&at, "k", &encrypted()).await?;
    copy(&at, "plain", Again::default()).await?;
    same!(key_of(&at, "plain").await?, None, "key of a copy without one");
    copy(&at, "copy", Again::of(&encrypted())).await?;
    same!(key_of(&at, "copy").await?, Some(KEY.to_owned()), "key of a copy");
    Ok(())
}

pub async fn tags_are_counted(at: Place) -> Outcome {
    at.put("plain", "x").await?;
    put(&at, "k", &tagged()).await?;
    upload(&at, "parts", tagged()).await?;
    for (key, count) in [("plain", 0), ("k", 2), ("parts", 2)] {
        same!(at.store.head(&at.bucket, key, None).await?.tag_count, count, "tags of {key}");
        same!(at.store.get(at.get_request(key)).await?.info.tag_count, count, "tags of {key} with its bytes");
    }
    same!(at.store.tags(&at.bucket, "parts").await?, tagged().tags, "tags");
    Ok(())
}

pub async fn a_copy_keeps_tags(at: Place) -> Outcome {
    put(&at, "k", &tagged()).await?;
    copy(&at, "copy", Again::of(&cold())).await?;
    same!(at.store.tags(&at.bucket, "copy").await?, tagged().tags, "tags");
    Ok(())
}

pub async fn expiry_and_redirect_come_back(at: Place) -> Outcome {
    let sent = Attributes {
        expires: Some("Wed, 21 Oct 2026 07:28:00 GMT".to_owned()),
        redirect: Some("/elsewhere".to_owned()),
        ..Attributes::default()
    };
    put(&at, "k", &sent).await?;
    let got = at.store.head(&at.bucket, "k", None).await?.attributes;
    same!((got.expires, got.redirect), (sent.expires, sent.redirect), "expiry and redirect");
    Ok(())
}

const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/0f1e2d3c-0000-4000-8000-000000000000";

fn cold() -> Attributes {
    Attributes { storage_class: Some("STANDARD_IA".to_owned()), ..Attributes::default() }
}

fn encrypted() -> Attributes {
    let kms = Encryption::Kms { key_id: Some(KEY.to_owned()), bucket_key: None, twice: false };
    Attributes { encryption: Some(kms), ..Attributes::default() }
}

fn tagged() -> Attributes {
    let tags = [("team", "a b"), ("cost+center", "1=2/3")];
    Attributes {
        tags: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Attributes::default()
    }
}

async fn put(at: &Place, key: &str, attributes: &Attributes) -> Outcome {
    let mut request = at.put_request(key, "bytes");
    request.attributes = attributes.clone();
    at.store.put(request).await?;
    Ok(())
}

async fn upload(at: &Place, key: &str, attributes: Attributes) -> Outcome {
    let upload = at.store.create_upload(&at.bucket, key, attributes).await?;
    let part = at.store.upload_part(&upload, 1, "bytes".into(), None).await?;
    at.store.complete_upload(&upload, vec![part], Default::default()).await?;
    Ok(())
}

/// Copies `k`.
async fn copy(at: &Place, to: &str, again: Again) -> Outcome {
    let request = CopyRequest {
        source_bucket: at.bucket.clone(),
        source_key: "k".to_owned(),
        bucket: at.bucket.clone(),
        key: to.to_owned(),
        size: 5,
        again,
        ..CopyRequest::default()
    };
    at.store.copy(request).await?;
    Ok(())
}

async fn class_of(at: &Place, key: &str) -> Result<Option<String>, Deviation> {
    Ok(at.store.head(&at.bucket, key, None).await?.attributes.storage_class)
}

async fn key_of(at: &Place, key: &str) -> Result<Option<String>, Deviation> {
    Ok(match at.store.head(&at.bucket, key, None).await?.attributes.encryption {
        Some(Encryption::Kms { key_id, .. }) => key_id,
        _ => None,
    })
}

/// A client of the place's server that encrypts with a key of its own, as 32 bytes of a file say.
async fn with_key(at: &Place, byte: u8) -> Place {
    let endpoint = at.server.endpoint().expect("the server runs").expect("the server is a process");
    let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
    file.write_all(&[byte; 32]).expect("a file can be written");
    let session = Session::builder()
        .endpoint_url(&endpoint.url)
        .credentials(&endpoint.access, &endpoint.secret, None)
        .region(&endpoint.region)
        .sse_customer_key(KeyPlace::File(file.path().to_owned()))
        .build()
        .await
        .expect("the key is one");
    Place { store: Arc::new(session.client()), ..at.clone() }
}

/// Everything that a mount asks of objects which are encrypted with a key of its own, beside others that are not.
pub async fn what_one_key_encrypts_no_other_reads(at: Place) -> Outcome {
    if at.server == Server::Mem {
        return Err(Deviation("it takes no keys".to_owned()));
    }
    let mine = with_key(&at, 1).await;
    let body = vec![7u8; 6 << 20];
    mine.put("k", body.clone()).await?;
    ensure!(mine.get("k").await? == body, "other bytes came back");
    let head = mine.store.head(&at.bucket, "k", None).await?;
    same!(head.size, 6 << 20, "size");
    ensure!(
        matches!(head.attributes.encryption, Some(Encryption::Customer { .. })),
        "it is encrypted with {:?}",
        head.attributes.encryption
    );
    ensure!(at.get("k").await.is_err(), "it was read without a key");
    ensure!(with_key(&at, 2).await.get("k").await.is_err(), "it was read with another key");

    let request = |from: &str, to: &str| CopyRequest {
        source_bucket: at.bucket.clone(),
        source_key: from.to_owned(),
        bucket: at.bucket.clone(),
        key: to.to_owned(),
        size: 6 << 20,
        ..CopyRequest::default()
    };
    mine.store.copy(request("k", "copy")).await?;
    ensure!(mine.get("copy").await? == body, "other bytes came back of the copy");
    ensure!(at.get("copy").await.is_err(), "the copy was read without a key");

    // What was there before is read as it is, and encrypted when it is copied.
    at.put("plain", "plain").await?;
    same!(mine.get("plain").await?, "plain", "bytes of what no key encrypts");
    same!(mine.store.head(&at.bucket, "plain", None).await?.size, 5, "its size");
    mine.store.copy(request("plain", "plain copy")).await?;
    same!(mine.get("plain copy").await?, "plain", "bytes of its copy");
    ensure!(at.get("plain copy").await.is_err(), "its copy was read without a key");

    let upload = mine.store.create_upload(&at.bucket, "parts", Attributes::default()).await?;
    let range = ByteRange::new(0, 5 << 20).expect("not empty");
    let source =
        PartSource { bucket: at.bucket.clone(), key: "k".to_owned(), range, if_match: Some(head.etag) };
    let first = mine.store.upload_part_copy(&upload, 1, source).await?;
    let last = mine.store.upload_part(&upload, 2, "end".into(), None).await?;
    same!(mine.store.list_parts(&upload).await?.len(), 2, "parts");
    mine.store.complete_upload(&upload, vec![first, last], Default::default()).await?;
    let parts = mine.get("parts").await?;
    ensure!(
        parts.len() == (5 << 20) + 3 && parts.ends_with(b"\x07end"),
        "other bytes came back of the parts"
    );
    ensure!(at.get("parts").await.is_err(), "the parts were read without a key");
    Ok(())
}

/// A server tells nothing of a class it does not know, but for the option that asked for it.
#[test]
fn a_refusal_names_the_option() {
    let Some(store) = Server::Demo.store_or_say("a_refusal_names_the_option") else { return };
    harness::block_on(async {
        let place = Place::make(Server::Demo, store).await.unwrap();
        let odd = Attributes { storage_class: Some("LUKEWARM".to_owned()), ..Attributes::default() };
        let mut put = place.put_request("k", "bytes");
        put.attributes = odd.clone();
        let copy = CopyRequest {
            source_bucket: place.bucket.clone(),
            source_key: "there".to_owned(),
            bucket: place.bucket.clone(),
            key: "k".to_owned(),
            again: Again::of(&odd),
            ..CopyRequest::default()
        };
        place.put("there", "x").await.unwrap();
        let refusals = BTreeMap::from([
            ("put", place.store.put(put).await.unwrap_err()),
            ("upload", place.store.create_upload(&place.bucket, "k", odd).await.unwrap_err()),
            ("copy", place.store.copy(copy).await.unwrap_err()),
        ]);
        for (what, error) in refusals {
            assert_eq!(error.kind(), Kind::InvalidArgument, "{what}: {}", error.report());
            let told = error.report();
            assert!(told.contains("LUKEWARM (--storage-class)"), "{what}: {told}");
        }
        place.remove().await;
    });
}

#[test]
fn a_key_is_not_sent_where_others_can_hear_it() {
    harness::block_on(async {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 32]).unwrap();
        let session = |url: &str| {
            Session::builder()
                .endpoint_url(url)
                .credentials("a", "b", None)
                .sse_customer_key(KeyPlace::File(file.path().to_owned()))
                .build()
        };
        let error = session("http://s3.example.com").await.unwrap_err();
        assert!(error.report().contains("https"), "{}", error.report());
        assert!(session("https://s3.example.com").await.is_ok());
    });
}
