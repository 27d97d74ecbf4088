//! What an endpoint can really do, found out by what it does.
//!
//! Some servers answer 200 to a condition and ignore it, so a status proves nothing: each probe asks for something
//! that has to fail, and looks at what became of the object. It writes to scratch keys of its own and takes them away
//! again, whatever happened.
//!
//! Owns: the probes, their verdicts, and keeping them per endpoint and bucket. Never runs by itself: [`CapabilityCache`]
//! is asked before the first write that needs to know, and by `pailfs sessions check`.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use serde::{Deserialize, Serialize};

use super::store::Store;
use super::types::*;
use crate::base::{ByteRange, Clock, ETag, private};
use crate::error::{Error, Kind, Result};

/// How long a verdict is believed. Servers are upgraded, and seldom.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The same where the identity was not allowed to find out, or the server answered nonsense: either may be mended.
const LIFETIME_OF_DOUBT: Duration = Duration::from_secs(5 * 60);
const FILE_NAME: &str = "capabilities.json";
/// More than there is of 10,000 buckets.
const KEPT_MAX_BYTES: u64 = 16 << 20;
/// What the scratch keys of a probe begin with, below the prefix that is probed. Listings of a mount leave them out.
pub const SCRATCH: &str = ".pailfs-probe-";
/// Deletes of a probe's own keys under way at once.
const DELETES_AT_ONCE: usize = 8;
/// An ETag that no object has.
const WRONG_ETAG: &str = "0123456789abcdef0123456789abcdef";

/// What became of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It does what S3 documents.
    Works,
    /// It answers success and does not do it.
    Ignored,
    /// It answers that it does not offer it.
    Refused,
    /// The identity may not ask.
    Denied,
    /// Not probed, or the answer tells nothing.
    #[default]
    Unknown,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Works => "works",
            Self::Ignored => "ignored",
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
        })
    }
}

/// How much to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What a mount has to know: conditions, and how the server lists.
    Writes,
    /// Everything in the table.
    Full,
}

/// The verdicts on one bucket of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    pub put_if_none_match: Verdict,
    pub put_if_match: Verdict,
    pub complete_if_none_match: Verdict,
    pub complete_if_match: Verdict,
    pub copy_source_if_match: Verdict,
    pub copy_if_none_match: Verdict,
    pub copy_if_match: Verdict,
    pub delete_if_match: Verdict,
    pub upload_part_copy: Verdict,
    pub batch_delete: Verdict,
    pub batch_delete_if_match: Verdict,
    pub checksums: Verdict,
    pub tagging: Verdict,
    pub versioning: Verdict,
    pub list_order: Verdict,
    pub start_after_with_delimiter: Verdict,
    /// It refused parts of different sizes. No probe asks, because parts have 5 MiB at least.
    pub equal_parts: bool,
}

impl Capabilities {
    /// Amazon's own S3 keeps what it documents.
    pub fn of_aws() -> Self {
        let works = Verdict::Works;
        Self {
            put_if_none_match: works,
            put_if_match: works,
            complete_if_none_match: works,
            complete_if_match: works,
            copy_source_if_match: works,
            copy_if_none_match: works,
            copy_if_match: works,
            delete_if_match: works,
            upload_part_copy: works,
            batch_delete: works,
            batch_delete_if_match: works,
            checksums: works,
            tagging: works,
            versioning: works,
            list_order: works,
            start_after_with_delimiter: works,
            equal_parts: false,
        }
    }

    /// Name, verdict and meaning of each capability, in the order of the fields.
    pub fn table(&self) -> Vec<(&'static str, Verdict, &'static str)> {
        vec![
            ("conditional put, new object", self.put_if_none_match, "two clients cannot both create a key"),
            ("conditional put, same version", self.put_if_match, "no update is lost between clients"),
            ("conditional complete, new object", self.complete_if_none_match, "the same for large files"),
            ("conditional complete, same version", self.complete_if_match, "the same for large files"),
            ("conditional copy, source", self.copy_source_if_match, "a rename moves the version it found"),
            ("conditional copy, new object", self.copy_if_none_match, "a rename never overwrites unseen"),
            ("conditional copy, same version", self.copy_if_match, "a rename replaces the version it found"),
            ("conditional delete", self.delete_if_match, "a rename never deletes a newer version"),
            ("copying parts", self.upload_part_copy, "a small change to a large file moves few bytes"),
            ("batch delete", self.batch_delete, "1,000 keys in a request"),
            ("batch delete, same version", self.batch_delete_if_match, "and none of a newer version"),
            ("checksums", self.checksums, "damaged uploads are refused"),
            ("tagging", self.tagging, "object tags"),
            ("versioning", self.versioning, "object versions"),
            ("listing order", self.list_order, "listings stream; without it large ones are sorted first"),
            ("start-after with delimiter", self.start_after_with_delimiter, "listings can begin anywhere"),
        ]
    }

    /// Whether there is a verdict on every condition, one way or the other.
    fn conditions_are_known(&self) -> bool {
        let conditional = |name: &str| name.starts_with("conditional");
        let known = |verdict| !matches!(verdict, Verdict::Denied | Verdict::Unknown);
        self.table().into_iter().all(|(name, verdict, _)| !conditional(name) || known(verdict))
    }

    /// Takes from `before` what only a full probe asks for, where this one did not.
    fn fill_in(&mut self, before: &Self) {
        self.equal_parts |= before.equal_parts;
        for (mine, theirs) in [
            (&mut self.upload_part_copy, before.upload_part_copy),
            (&mut self.batch_delete, before.batch_delete),
            (&mut self.checksums, before.checksums),
            (&mut self.tagging, before.tagging),
            (&mut self.versioning, before.versioning),
            (&mut self.list_order, before.list_order),
            (&mut self.start_after_with_delimiter, before.start_after_with_delimiter),
        ] {
            if *mine == Verdict::Unknown {
                *mine = theirs;
            }
        }
    }

    /// Whether a conditional Put, Complete, Copy and Delete can be relied on, and one of a key in a batch.
    pub fn conditions(&self) -> [bool; 5] {
        let works = |verdicts: &[Verdict]| verdicts.iter().all(|v| *v == Verdict::Works);
        [
            works(&[self.put_if_none_match, self.put_if_match]),
            works(&[self.complete_if_none_match, self.complete_if_match]),
            works(&[self.copy_source_if_match, self.copy_if_none_match, self.copy_if_match]),
            works(&[self.delete_if_match]),
            works(&[self.batch_delete_if_match]),
        ]
    }
}

/// What a probe found out, and in what state it left the bucket.
#[derive(Clone, Debug, Default)]
pub struct Probed {
    pub capabilities: Capabilities,
    /// Why not everything was asked.
    pub stopped: Option<String>,
    /// Keys that could not be taken away again, with their versions.
    pub left: Vec<String>,
}

/// Probes a bucket under `prefix`, and takes away what it wrote. An error means that nothing was found out.
pub async fn probe(store: &dyn Store, bucket: &str, prefix: &str, depth: Depth) -> Result<Probed> {
    let scratch = Scratch::new(store, bucket, prefix);
    let found = match scratch.may_clean().await {
        Ok(None) => scratch.run(depth).await.map(|capabilities| (capabilities, None)),
        // Without a way back nothing is written.
        Ok(Some(why)) => {
            let capabilities = Capabilities { delete_if_match: Verdict::Denied, ..Capabilities::default() };
            Ok((capabilities, Some(why)))
        }
        Err(error) => Err(error),
    };
    let left = scratch.clean().await;
    if !left.is_empty() {
        tracing::warn!(bucket, left = left.join(", "), "a probe left objects behind");
    }
    found.map(|(capabilities, stopped)| Probed { capabilities, stopped, left })
}

/// Keys of one probe, side by side: a directory of them would outlive them on some servers.
pub(super) struct Scratch<'a> {
    store: &'a dyn Store,
    bucket: &'a str,
    root: String,
    /// Every key and version that was made.
    made: Mutex<BTreeSet<(String, Option<String>)>>,
    /// A delete leaves a marker. That versions have names proves nothing: Garage gives some and keeps none.
    keeps_versions: AtomicBool,
}

impl<'a> Scratch<'a> {
    pub(super) fn new(store: &'a dyn Store, bucket: &'a str, prefix: &str) -> Self {
        let root = format!("{prefix}{SCRATCH}{:016x}.", rand::random::<u64>());
        Self { store, bucket, root, made: Mutex::default(), keeps_versions: AtomicBool::new(false) }
    }
}

impl Scratch<'_> {
    /// Whether what is written can be taken away again; why not, if so. Deletes a key that was never there.
    pub(super) async fn may_clean(&self) -> Result<Option<String>> {
        let denied = |error: Error| match error.kind() {
            Kind::AccessDenied => Ok(Some(format!("the identity may not delete: {}", error.message()))),
            _ => told_by(error).map(|_| None),
        };
        let marker = match self.delete("first", Condition::Any).await {
            Ok(deleted) => deleted.version_id.filter(|_| deleted.delete_marker),
            Err(error) => return denied(error),
        };
        // Where versions are kept that left a delete marker, which only another permission takes away.
        let Some(marker) = marker else { return Ok(None) };
        match self.delete_version(&self.key("first"), Some(marker)).await {
            Ok(()) => Ok(None),
            Err(error) => denied(error),
        }
    }

    async fn run(&self, depth: Depth) -> Result<Capabilities> {
        // The first write tells whether there is anything to find out.
        match self.put("first", "x", Condition::Any).await {
            Err(error) if error.kind() == Kind::AccessDenied => return Ok(denied()),
            answer => answer?,
        };
        let (put, complete, copy, delete, batch) = futures::join!(
            self.conditional_put(),
            self.conditional_complete(),
            self.conditional_copy(),
            self.conditional_delete(),
            self.conditional_batch_delete(),
        );
        let mut found = Capabilities { delete_if_match: verdict(delete)?, ..Capabilities::default() };
        found.batch_delete_if_match = verdict(batch)?;
        [found.put_if_none_match, found.put_if_match] = each(put)?;
        [found.complete_if_none_match, found.complete_if_match] = each(complete)?;
        [found.copy_source_if_match, found.copy_if_none_match, found.copy_if_match] = each(copy)?;
        [found.list_order, found.start_after_with_delimiter] = each(self.listing().await)?;
        if depth == Depth::Full {
            let (part_copy, batch, checksums, tagging, versioning) = futures::join!(
                self.part_copy(),
                self.batch_delete(),
                self.checksums(),
                self.tagging(),
                self.versioning(),
            );
            found.upload_part_copy = verdict(part_copy)?;
            found.batch_delete = verdict(batch)?;
            found.checksums = verdict(checksums)?;
            found.tagging = verdict(tagging)?;
            found.versioning = verdict(versioning)?;
        }
        Ok(found)
    }

    async fn conditional_put(&self) -> Result<[Verdict; 2]> {
        let now = self.put("put", "1", Condition::Any).await?.etag;
        let absent = self.put("put", "2", Condition::Absent).await;
        let absent = self.has_to_fail(absent.map(drop), "put", &now).await?;
        let now = self.put("put", "3", Condition::Any).await?.etag;
        let matches = self.put("put", "4", wrong()).await;
        let matches = self.has_to_fail(matches.map(drop), "put", &now).await?;
        let right = self.put("put", "5", Condition::Matches(now)).await;
        Ok([absent, unless_the_right_one_fails(matches, right.map(drop))?])
    }

    async fn conditional_complete(&self) -> Result<[Verdict; 2]> {
        let now = self.put("complete", "1", Condition::Any).await?.etag;
        let absent = self.complete("complete", Condition::Absent).await;
        let absent = self.has_to_fail(absent, "complete", &now).await?;
        let now = self.put("complete", "2", Condition::Any).await?.etag;
        let matches = self.complete("complete", wrong()).await;
        let matches = self.has_to_fail(matches, "complete", &now).await?;
        let now = self.put("complete", "3", Condition::Any).await?.etag;
        let right = self.complete("complete", Condition::Matches(now)).await;
        Ok([absent, unless_the_right_one_fails(matches, right)?])
    }

    async fn conditional_copy(&self) -> Result<[Verdict; 3]> {
        let source = self.put("copy-source", "1", Condition::Any).await?.etag;
        let now = self.put("copy", "2", Condition::Any).await?.etag;
        let copy = |if_match: ETag, condition| CopyRequest {
            source_bucket: self.bucket.to_owned(),
            source_key: self.key("copy-source"),
            source_if_match: Some(if_match),
            bucket: self.bucket.to_owned(),
            key: self.key("copy"),
            condition,
            ..CopyRequest::default()
        };
        let copy = async |if_match, condition| {
            let written = self.store.copy(copy(if_match, condition)).await?;
            self.made("copy", written.version_id);
            Ok(())
        };
        let stale = copy(ETag::new(WRONG_ETAG), Condition::Any).await;
        let stale = self.has_to_fail(stale, "copy", &now).await?;
        let now = self.put("copy", "3", Condition::Any).await?.etag;
        let absent = copy(source.clone(), Condition::Absent).await;
        let absent = self.has_to_fail(absent, "copy", &now).await?;
        let right = copy(source.clone(), Condition::Any).await;
        let stale = unless_the_right_one_fails(stale, right)?;
        let now = self.put("copy", "4", Condition::Any).await?.etag;
        let matches = copy(source.clone(), wrong()).await;
        let matches = self.has_to_fail(matches, "copy", &now).await?;
        let now = self.put("copy", "5", Condition::Any).await?.etag;
        let right = copy(source, Condition::Matches(now)).await;
        Ok([stale, absent, unless_the_right_one_fails(matches, right)?])
    }

    async fn conditional_delete(&self) -> Result<Verdict> {
        let now = self.put("delete", "1", Condition::Any).await?.etag;
        let stale = self.delete("delete", wrong()).await;
        let stale = self.has_to_fail(stale.map(drop), "delete", &now).await?;
        let right = self.delete("delete", Condition::Matches(now)).await;
        unless_the_right_one_fails(stale, right.map(drop))
    }

    /// One key of the wrong version and one of the right one, in one request.
    async fn conditional_batch_delete(&self) -> Result<Verdict> {
        let stays = self.put("batch-stays", "1", Condition::Any).await?.etag;
        let goes = self.put("batch-goes", "2", Condition::Any).await?.etag;
        let entry = |name, etag| DeleteKey { key: self.key(name), etag: Some(etag) };
        let batch = vec![entry("batch-stays", ETag::new(WRONG_ETAG)), entry("batch-goes", goes)];
        let mut answers = self.store.delete_many(self.bucket, batch).await?.into_iter();
        let mut next = || answers.next().map_or(Ok(()), |(_, answer)| answer);
        let (wrong, right) = (next(), next());
        let wrong = match self.has_to_fail(wrong, "batch-stays", &stays).await {
            // Answered as a failure, and gone all the same.
            Err(error) if error.is_not_found() => Verdict::Ignored,
            told => told?,
        };
        let right = match right {
            Ok(()) if self.is_there("batch-goes").await? => {
                Err(Error::new(Kind::Unsupported, "it is still there"))
            }
            answer => answer,
        };
        unless_the_right_one_fails(wrong, right)
    }

    async fn part_copy(&self) -> Result<Verdict> {
        // S3 copies a range only of an object over 5 MiB.
        const SIZE: usize = (5 << 20) + 16;
        let source = PutRequest {
            bucket: self.bucket.to_owned(),
            key: self.key("part-source"),
            body: Bytes::from([vec![b'a'; SIZE - 4], b"tail".to_vec()].concat()),
            ..PutRequest::default()
        };
        self.put_request(source).await?;
        let upload = self.store.create_upload(self.bucket, &self.key("part"), Attributes::default()).await?;
        let source = PartSource {
            bucket: self.bucket.to_owned(),
            key: self.key("part-source"),
            range: ByteRange::new(SIZE as u64 - 6, SIZE as u64)
                .ok_or_else(|| Error::new(Kind::Internal, "an empty range"))?,
            if_match: None,
        };
        let part = match self.store.upload_part_copy(&upload, 1, source).await {
            Ok(part) => part,
            Err(error) => {
                let _ = self.store.abort_upload(&upload).await;
                return Err(error);
            }
        };
        let written = self.store.complete_upload(&upload, vec![part], Condition::Any).await?;
        self.made("part", written.version_id);
        let copied = self.get("part").await?;
        Ok(if copied == "aatail" { Verdict::Works } else { Verdict::Ignored })
    }

    async fn batch_delete(&self) -> Result<Verdict> {
        self.put("batch-1", "1", Condition::Any).await?;
        self.put("batch-2", "2", Condition::Any).await?;
        let keys = vec![DeleteKey::any(self.key("batch-1")), DeleteKey::any(self.key("batch-2"))];
        for (_, result) in self.store.delete_many(self.bucket, keys).await? {
            result?;
        }
        Ok(if self.is_there("batch-1").await? || self.is_there("batch-2").await? {
            Verdict::Ignored
        } else {
            Verdict::Works
        })
    }

    async fn checksums(&self) -> Result<Verdict> {
        let right = Bytes::from_static(b"right");
        let request = |body: &Bytes| PutRequest {
            bucket: self.bucket.to_owned(),
            key: self.key("checksum"),
            body: body.clone(),
            checksum: Some(super::checksum_of(&right)),
            ..PutRequest::default()
        };
        match self.put_request(request(&right)).await {
            Ok(_) => {}
            Err(error) if error.kind() == Kind::InvalidArgument => return Ok(Verdict::Refused),
            Err(error) => return Err(error),
        }
        Ok(match self.put_request(request(&Bytes::from_static(b"wrong"))).await {
            Ok(_) => Verdict::Ignored,
            Err(error) if error.kind().is_transient() && error.kind() != Kind::Corrupt => return Err(error),
            Err(_) => Verdict::Works,
        })
    }

    async fn tagging(&self) -> Result<Verdict> {
        self.put("tagged", "1", Condition::Any).await?;
        let tags = std::collections::BTreeMap::from([("pailfs".to_owned(), "probe".to_owned())]);
        self.store.set_tags(self.bucket, &self.key("tagged"), tags.clone()).await?;
        let kept = self.store.tags(self.bucket, &self.key("tagged")).await?;
        Ok(if kept == tags { Verdict::Works } else { Verdict::Ignored })
    }

    /// Asks for the state alone: turning versioning on is not a probe's to do.
    async fn versioning(&self) -> Result<Verdict> {
        self.store.versioning(self.bucket).await?;
        let request = ListVersionsRequest {
            bucket: self.bucket.to_owned(),
            prefix: self.key("first"),
            ..ListVersionsRequest::default()
        };
        let page = self.store.list_versions(request).await?;
        Ok(if page.versions.is_empty() { Verdict::Ignored } else { Verdict::Works })
    }

    async fn listing(&self) -> Result<[Verdict; 2]> {
        // `-` sorts before `/`, so byte order is not the order of a walk.
        let names = ["order/a", "order/a-x", "order/a/1"];
        for put in join_all(names.map(|name| self.put(name, "", Condition::Any))).await {
            put?;
        }
        let request = |start_after, delimiter| ListRequest {
            bucket: self.bucket.to_owned(),
            prefix: self.key("order/"),
            start_after,
            delimiter,
            ..ListRequest::default()
        };
        let all = self.store.list(request(None, None)).await?;
        let order: Vec<String> = all.objects.into_iter().map(|object| object.key).collect();
        let in_order = order == names.map(|name| self.key(name));
        let after = Some(self.key("order/a"));
        let page = self.store.list(request(after, Some("/".to_owned()))).await?;
        let objects: Vec<String> = page.objects.into_iter().map(|object| object.key).collect();
        let begun = objects == [self.key("order/a-x")] && page.common_prefixes == [self.key("order/a/")];
        let told = |right| if right { Verdict::Works } else { Verdict::Ignored };
        Ok([told(in_order), told(begun)])
    }

    // ---- the pieces

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    async fn put(&self, name: &str, body: &'static str, condition: Condition) -> Result<Written> {
        let request = PutRequest {
            bucket: self.bucket.to_owned(),
            key: self.key(name),
            body: body.into(),
            condition,
            ..PutRequest::default()
        };
        self.put_request(request).await
    }

    pub(super) async fn put_request(&self, request: PutRequest) -> Result<Written> {
        let key = request.key.clone();
        let answer = self.store.put(request).await;
        // Without an answer it may be there all the same.
        self.note(key, answer.as_ref().ok().and_then(|written| written.version_id.clone()));
        answer
    }

    async fn delete(&self, name: &str, condition: Condition) -> Result<Deleted> {
        let request = DeleteRequest {
            bucket: self.bucket.to_owned(),
            key: self.key(name),
            version_id: None,
            condition,
        };
        let deleted = self.store.delete(request).await?;
        if deleted.delete_marker {
            self.keeps_versions.store(true, Ordering::Relaxed);
            self.made(name, deleted.version_id.clone());
        }
        Ok(deleted)
    }

    async fn delete_version(&self, key: &str, version_id: Option<String>) -> Result<()> {
        let request = DeleteRequest {
            bucket: self.bucket.to_owned(),
            key: key.to_owned(),
            version_id: version_id.clone(),
            condition: Condition::Any,
        };
        match self.store.delete(request).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => {
                self.lock().remove(&(key.to_owned(), version_id));
                Ok(())
            }
        }
    }

    /// Remembers what has to be taken away.
    fn made(&self, name: &str, version_id: Option<String>) {
        self.note(self.key(name), version_id);
    }

    fn note(&self, key: String, version_id: Option<String>) {
        self.lock().insert((key, version_id));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(String, Option<String>)>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, name: &str) -> Result<Bytes> {
        let request =
            GetRequest { bucket: self.bucket.to_owned(), key: self.key(name), ..GetRequest::default() };
        self.store.get(request).await?.bytes().await
    }

    async fn is_there(&self, name: &str) -> Result<bool> {
        match self.store.head(self.bucket, &self.key(name), None).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn complete(&self, name: &str, condition: Condition) -> Result<()> {
        let upload = self.store.create_upload(self.bucket, &self.key(name), Attributes::default()).await?;
        let result = async {
            let part = self.store.upload_part(&upload, 1, "part".into(), None).await?;
            self.store.complete_upload(&upload, vec![part], condition).await
        }
        .await;
        match result {
            Ok(written) => {
                self.made(name, written.version_id);
                Ok(())
            }
            Err(error) => {
                let _ = self.store.abort_upload(&upload).await;
                Err(error)
            }
        }
    }

    /// The verdict on a request that had to fail and leave the object as it was.
    async fn has_to_fail(&self, answer: Result<()>, name: &str, before: &ETag) -> Result<Verdict> {
        match answer {
            Ok(()) => Ok(Verdict::Ignored),
            Err(error) if matches!(error.kind(), Kind::Stale | Kind::AlreadyExists | Kind::NotFound) => {
                // A server may complain and do it all the same.
                let now = self.store.head(self.bucket, &self.key(name), None).await?.etag;
                Ok(if now == *before { Verdict::Works } else { Verdict::Ignored })
            }
            Err(error) => told_by(error),
        }
    }

    /// Takes everything away that a probe made, and names what it could not.
    pub(super) async fn clean(&self) -> Vec<String> {
        let keeps_versions = self.keeps_versions.load(Ordering::Relaxed);
        let mut left = Vec::new();
        for upload in self.store.list_uploads(self.bucket, &self.root).await.unwrap_or_default() {
            match self.store.abort_upload(&upload.upload).await {
                Err(error) if !error.is_not_found() => {
                    left.push(format!("{} (an upload)", upload.upload.key))
                }
                _ => {}
            }
        }
        // What is there is known from the answers; a listing knows of those that were lost too.
        let listed = self.listed(keeps_versions).await;
        let mut made = self.lock().clone();
        if keeps_versions && listed.is_err() {
            // The answer to a batch does not name the delete markers it made.
            let batch = made.iter().filter(|(key, _)| key.contains(".batch-"));
            left.extend(batch.map(|(key, _)| format!("{key} (its delete marker)")));
        }
        made.extend(listed.unwrap_or_default());
        if keeps_versions {
            // A key without its version would get one more delete marker.
            made.retain(|(_, version)| version.is_some());
        } else {
            made = made.into_iter().map(|(key, _)| (key, None)).collect();
        }
        // SeaweedFS keeps the directories of keys that are gone, until their markers are deleted too.
        let nested = made.iter().any(|(key, _)| key[self.root.len()..].contains('/'));
        left.extend(self.remove(made).await);
        for dir in ["order/a/", "order/"].iter().filter(|_| nested && !keeps_versions) {
            let _ = self.delete_version(&self.key(dir), None).await;
        }
        // A delete may leave a marker without a word where versioning is suspended, and SeaweedFS then says that it
        // deleted the marker and keeps it.
        let rest = self.listed(true).await.unwrap_or_default();
        if !rest.is_empty() {
            self.remove(rest.into_iter().collect()).await;
            let still = self.listed(true).await.unwrap_or_default();
            left.extend(still.into_iter().map(|(key, version)| what_stays(key, version)));
            left.sort();
            left.dedup();
        }
        left
    }

    /// Deletes these keys and versions; returns what stays.
    async fn remove(&self, made: BTreeSet<(String, Option<String>)>) -> Vec<String> {
        let mut left = Vec::new();
        let mut deletes = futures::stream::iter(made)
            .map(async |(key, version)| {
                let answer = self.delete_version(&key, version.clone()).await;
                (key, version, answer)
            })
            .buffer_unordered(DELETES_AT_ONCE);
        while let Some((key, version, answer)) = deletes.next().await {
            match answer {
                // What could not be made is not there either.
                Err(error) if !matches!(error.kind(), Kind::NotFound | Kind::NoSuchBucket) => {
                    tracing::debug!(key, error = %error.report(), "a probe's object stays");
                    left.push(what_stays(key, version));
                }
                _ => {}
            }
        }
        left
    }

    async fn listed(&self, versions: bool) -> Result<Vec<(String, Option<String>)>> {
        let (bucket, prefix) = (self.bucket.to_owned(), self.root.clone());
        if !versions {
            let request = ListRequest { bucket, prefix, ..ListRequest::default() };
            let page = self.store.list(request).await?;
            return Ok(page.objects.into_iter().map(|object| (object.key, None)).collect());
        }
        let request = ListVersionsRequest { bucket, prefix, ..ListVersionsRequest::default() };
        let page = self.store.list_versions(request).await?;
        Ok(page.versions.into_iter().map(|version| (version.key, Some(version.version_id))).collect())
    }
}

fn what_stays(key: String, version: Option<String>) -> String {
    match version {
        Some(version) => format!("{key} (version {version})"),
        None => key,
    }
}

fn wrong() -> Condition {
    Condition::Matches(ETag::new(WRONG_ETAG))
}

fn denied() -> Capabilities {
    let d = Verdict::Denied;
    Capabilities {
        put_if_none_match: d,
        put_if_match: d,
        complete_if_none_match: d,
        complete_if_match: d,
        copy_if_none_match: d,
        copy_if_match: d,
        delete_if_match: d,
        ..Capabilities::default()
    }
}

/// What a failure says of the server; a failing network says nothing of it.
fn told_by(error: Error) -> Result<Verdict> {
    match error.kind() {
        Kind::Unsupported | Kind::InvalidArgument => Ok(Verdict::Refused),
        Kind::AccessDenied => Ok(Verdict::Denied),
        Kind::Unreachable | Kind::TimedOut | Kind::Throttled | Kind::Credentials => Err(error),
        _ => Ok(Verdict::Unknown),
    }
}

/// A server that refuses the wrong version and the right one too is of no use.
fn unless_the_right_one_fails(verdict: Verdict, right: Result<()>) -> Result<Verdict> {
    match right {
        Ok(()) => Ok(verdict),
        Err(error) => match told_by(error)? {
            Verdict::Unknown => Ok(Verdict::Refused),
            told => Ok(told),
        },
    }
}

fn verdict(answer: Result<Verdict>) -> Result<Verdict> {
    answer.or_else(told_by)
}

fn each<const N: usize>(answer: Result<[Verdict; N]>) -> Result<[Verdict; N]> {
    answer.or_else(|error| told_by(error).map(|verdict| [verdict; N]))
}

/// Keeps verdicts per endpoint and bucket, in memory and, where a directory is given, on disk: for a day, or for
/// minutes where something the write path needs could not be found out.
pub struct CapabilityCache {
    file: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    cells: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Kept>>>>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    at: SystemTime,
    capabilities: Capabilities,
}

impl CapabilityCache {
    pub fn new(dir: Option<&Path>, clock: Arc<dyn Clock>) -> Self {
        Self { file: dir.map(|dir| dir.join(FILE_NAME)), clock, cells: Mutex::default() }
    }

    /// The verdicts on `bucket` at `endpoint`; whoever asks first probes for all.
    pub async fn get_or_probe(
        &self,
        endpoint: &str,
        bucket: &str,
        probe: impl Future<Output = Result<Capabilities>>,
    ) -> Result<Capabilities> {
        let key = format!("{endpoint} {bucket}");
        let cell = {
            let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(cells.entry(key.clone()).or_default())
        };
        let mut cell = cell.lock().await;
        if let Some(kept) = cell.as_ref().filter(|kept| self.is_recent(kept)) {
            return Ok(kept.capabilities.clone());
        }
        let found = match self.read().remove(&key).filter(|kept| self.is_recent(kept)) {
            Some(kept) => kept,
            None => self.keep(endpoint, bucket, &probe.await?),
        };
        Ok(cell.insert(found).capabilities.clone())
    }

    /// What is known now, by whoever asked before, without waiting for an answer that is on its way.
    pub fn known(&self, endpoint: &str, bucket: &str) -> Option<Capabilities> {
        let cell = {
            let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            cells.get(&format!("{endpoint} {bucket}")).cloned()
        };
        let found =
            cell.and_then(|cell| cell.try_lock().ok()?.as_ref().map(|kept| kept.capabilities.clone()));
        found.or_else(|| self.kept(endpoint, bucket))
    }

    /// The verdicts that were found before, if any: nothing is asked.
    pub fn kept(&self, endpoint: &str, bucket: &str) -> Option<Capabilities> {
        let kept = self.read().remove(&format!("{endpoint} {bucket}"))?;
        self.is_recent(&kept).then_some(kept.capabilities)
    }

    fn is_recent(&self, kept: &Kept) -> bool {
        let lifetime = if kept.capabilities.conditions_are_known() { LIFETIME } else { LIFETIME_OF_DOUBT };
        self.clock.wall().duration_since(kept.at).is_ok_and(|age| age < lifetime)
    }

    /// A file that is missing or damaged is an empty one: everything in it can be found out again.
    fn read(&self) -> HashMap<String, Kept> {
        let Some(file) = &self.file else { return HashMap::new() };
        let mut text = Vec::new();
        let read =
            private::open_to_read(file).and_then(|file| file.take(KEPT_MAX_BYTES).read_to_end(&mut text));
        if read.is_err() {
            return HashMap::new();
        }
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::debug!(file = %file.display(), %error, "the kept capabilities cannot be read");
            HashMap::new()
        })
    }

    /// Keeps what was found out just now. What was not asked this time is still what it was.
    fn keep(&self, endpoint: &str, bucket: &str, found: &Capabilities) -> Kept {
        let key = format!("{endpoint} {bucket}");
        let mut all = self.read();
        all.retain(|_, kept| self.is_recent(kept) || kept.capabilities.equal_parts);
        let mut fresh = Kept { at: self.clock.wall(), capabilities: found.clone() };
        if let Some(before) = all.remove(&key) {
            fresh.capabilities.fill_in(&before.capabilities);
        }
        all.insert(key, fresh.clone());
        self.write(&all);
        fresh
    }

    /// Keeps the answer to a probe that somebody else asked for.
    pub fn learn(&self, endpoint: &str, bucket: &str, found: &Capabilities) {
        self.keep(endpoint, bucket, found);
    }

    /// Whether the parts of an upload have to be of one size: known of Cloudflare R2 by its name, and of others since they
    /// said so, however long ago.
    pub fn wants_equal_parts(&self, endpoint: &str, bucket: &str) -> bool {
        let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
        let host = host.split(['/', ':']).next().unwrap_or_default();
        let learned = || self.read().remove(&format!("{endpoint} {bucket}"));
        host.to_ascii_lowercase().ends_with(".r2.cloudflarestorage.com")
            || learned().is_some_and(|kept| kept.capabilities.equal_parts)
    }

    /// Keeps that parts have to be of one size, beside what else is known.
    pub fn learn_equal_parts(&self, endpoint: &str, bucket: &str) {
        let mut all = self.read();
        let fresh = || Kept { at: self.clock.wall(), capabilities: Capabilities::default() };
        let kept = all.entry(format!("{endpoint} {bucket}")).or_insert_with(fresh);
        kept.capabilities.equal_parts = true;
        self.write(&all);
    }

    fn write(&self, all: &HashMap<String, Kept>) {
        let Some(file) = &self.file else { return };
        // Its file is made for its owner alone, and replaces the old one whole.
        let written = || -> std::io::Result<()> {
            let dir = file.parent().unwrap_or_else(|| Path::new("."));
            private::make_dir(dir)?;
            let mut fresh = tempfile::NamedTempFile::new_in(dir)?;
            std::io::Write::write_all(&mut fresh, &serde_json::to_vec_pretty(all)?)?;
            fresh.persist(file)?;
            Ok(())
        };
        if let Err(error) = written() {
            tracing::debug!(file = %file.display(), %error, "the capabilities are not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ManualClock, SystemClock};
    use crate::s3::MemStore;
    use crate::stats::Stats;

    fn store() -> MemStore {
        MemStore::new(Arc::new(SystemClock), Arc::new(Stats::default())).with_bucket("bucket")
    }

    async fn is_empty(store: &MemStore) -> bool {
        let request = ListRequest { bucket: "bucket".into(), ..ListRequest::default() };
        store.list(request).await.unwrap().objects.is_empty()
            && store.list_uploads("bucket", "").await.unwrap().is_empty()
    }

    #[tokio::test]
    async fn an_honest_server_does_everything_and_is_left_clean() {
        let store = store();
        let found = probe(&store, "bucket", "p/", Depth::Full).await.unwrap();
        assert_eq!(found.capabilities, Capabilities::of_aws());
        assert!(found.left.is_empty() && found.stopped.is_none());
        assert!(is_empty(&store).await);
    }

    #[tokio::test]
    async fn what_was_never_made_is_not_told_to_be_left() {
        let store = store();
        let scratch = Scratch::new(&store, "none", "");
        assert_eq!(scratch.put("first", "x", Condition::Any).await.unwrap_err().kind(), Kind::NoSuchBucket);
        assert_eq!(scratch.clean().await, [""; 0]);
    }

    #[tokio::test]
    async fn a_server_that_lies_is_found_out() {
        let store = store();
        store.ignore_conditions(true);
        let found = probe(&store, "bucket", "", Depth::Writes).await.unwrap().capabilities;
        assert_eq!(found.conditions(), [false; 5]);
        assert_eq!(found.put_if_none_match, Verdict::Ignored);
        assert_eq!(found.delete_if_match, Verdict::Ignored);
        assert_eq!(found.upload_part_copy, Verdict::Unknown, "not asked for");
        assert_eq!(found.list_order, Verdict::Works);
        assert!(is_empty(&store).await);
    }

    #[test]
    fn that_parts_have_to_be_equal_is_known_by_name_or_once_it_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new());
        let cache = || CapabilityCache::new(Some(dir.path()), clock.clone());
        for (endpoint, wants) in [
            ("https://0123.r2.cloudflarestorage.com", true),
            ("https://0123.eu.R2.cloudflarestorage.com:443/", true),
            ("https://r2.cloudflarestorage.com.example.org", false),
            ("http://127.0.0.1:9000", false),
        ] {
            assert_eq!(cache().wants_equal_parts(endpoint, "b"), wants, "{endpoint}");
        }
        cache().learn_equal_parts("http://h", "b");
        clock.advance(LIFETIME * 3);
        cache().learn(
            "http://h",
            "b",
            &Capabilities { checksums: Verdict::Works, ..Capabilities::default() },
        );
        assert!(cache().wants_equal_parts("http://h", "b"));
        assert!(!cache().wants_equal_parts("http://h", "other"));
    }

    #[tokio::test]
    async fn a_bucket_that_keeps_versions_keeps_none_of_a_probe() {
        for enabled in [true, false] {
            let store = store();
            store.set_versioning("bucket", true).await.unwrap();
            store.set_versioning("bucket", enabled).await.unwrap();
            let found = probe(&store, "bucket", "p/", Depth::Full).await.unwrap();
            assert_eq!(found.capabilities, Capabilities::of_aws());
            let request = ListVersionsRequest { bucket: "bucket".into(), ..ListVersionsRequest::default() };
            let left = store.list_versions(request).await.unwrap().versions;
            assert!(left.is_empty() && found.left.is_empty(), "{enabled}: {left:?} {:?}", found.left);
        }
    }

    #[tokio::test]
    async fn nothing_is_written_where_nothing_can_be_taken_away() {
        let store = store();
        store.fail_nth(1, Kind::AccessDenied, crate::s3::When::Before);
        let found = probe(&store, "bucket", "", Depth::Full).await.unwrap();
        assert_eq!(found.capabilities.delete_if_match, Verdict::Denied);
        assert_eq!(found.capabilities.put_if_match, Verdict::Unknown, "not asked");
        assert!(found.stopped.unwrap().contains("may not delete") && found.left.is_empty());
        assert!(!store.calls().contains(&"PutObject"), "{:?}", store.calls());

        // Where only versions may not be deleted, one delete marker shows it, and is named.
        store.set_versioning("bucket", true).await.unwrap();
        store.fail_nth(2, Kind::AccessDenied, crate::s3::When::Before);
        let found = probe(&store, "bucket", "", Depth::Full).await.unwrap();
        assert!(found.stopped.is_some());
    }

    #[tokio::test]
    async fn a_failing_network_is_no_verdict_and_leaves_nothing() {
        for n in 1..40 {
            let store = store();
            store.fail_nth(n, Kind::Unreachable, crate::s3::When::After);
            let _ = probe(&store, "bucket", "", Depth::Full).await;
            store.fail_nth(u64::MAX, Kind::Unreachable, crate::s3::When::Before);
            let request = ListRequest { bucket: "bucket".into(), ..ListRequest::default() };
            assert!(store.list(request).await.unwrap().objects.is_empty(), "request {n}");
        }
    }

    #[tokio::test]
    async fn verdicts_are_asked_for_once_and_kept_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new());
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let probe = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok(Capabilities::of_aws())
        };
        let count = || asked.load(Ordering::Relaxed);
        let cache = CapabilityCache::new(Some(dir.path()), clock.clone());
        let (a, b) =
            tokio::join!(cache.get_or_probe("e", "b", probe()), cache.get_or_probe("e", "b", probe()));
        assert_eq!(a.unwrap(), b.unwrap());
        assert_eq!(count(), 1);
        cache.get_or_probe("e", "other", probe()).await.unwrap();
        assert_eq!(count(), 2);
        // Another process reads the file; after a day it asks again.
        let later = CapabilityCache::new(Some(dir.path()), clock.clone());
        later.get_or_probe("e", "b", probe()).await.unwrap();
        assert_eq!(count(), 2);
        // What could not be found out is asked again soon, by the same process and by others.
        let denied = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok(denied())
        };
        cache.get_or_probe("e", "denied", denied()).await.unwrap();
        later.get_or_probe("e", "denied", denied()).await.unwrap();
        assert_eq!(count(), 3);
        clock.advance(LIFETIME_OF_DOUBT);
        cache.get_or_probe("e", "denied", denied()).await.unwrap();
        assert_eq!(count(), 4);
        cache.get_or_probe("e", "b", probe()).await.unwrap();
        assert_eq!(count(), 4);
        // Half a probe does not make what a whole one found out unknown.
        cache.learn("e", "half", &Capabilities::of_aws());
        let half = Capabilities { list_order: Verdict::Unknown, ..Capabilities::of_aws() };
        cache.learn("e", "half", &half);
        assert_eq!(cache.kept("e", "half"), Some(Capabilities::of_aws()));
        clock.advance(LIFETIME * 2);
        let next_day = CapabilityCache::new(Some(dir.path()), clock.clone());
        next_day.get_or_probe("e", "b", probe()).await.unwrap();
        assert_eq!(count(), 5);
        // Somebody's link is not what was kept, and what it leads to is nobody's business.
        let (file, elsewhere) = (dir.path().join(FILE_NAME), dir.path().join("elsewhere"));
        std::fs::rename(&file, &elsewhere).unwrap();
        let before = std::fs::read(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        let linked = CapabilityCache::new(Some(dir.path()), clock.clone());
        linked.get_or_probe("e", "b", probe()).await.unwrap();
        assert_eq!(count(), 6);
        assert_eq!(std::fs::read(&elsewhere).unwrap(), before);
        assert!(std::fs::symlink_metadata(&file).unwrap().is_file());
        std::fs::write(dir.path().join(FILE_NAME), b"{ damaged").unwrap();
        let damaged = CapabilityCache::new(Some(dir.path()), clock);
        damaged.get_or_probe("e", "b", probe()).await.unwrap();
        assert_eq!(count(), 7);
    }
}
