//! The S3 API through the SDK: [`Store`] for a server.
//!
//! Owns: what each request says, and what its answer means.
//! Does not own: how requests are sent and repeated (`client`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    BucketLocationConstraint, BucketVersioningStatus, ChecksumMode, CompletedMultipartUpload, CompletedPart,
    CreateBucketConfiguration, Delete, EncodingType, MetadataDirective, ObjectCannedAcl, ObjectIdentifier,
    OptionalObjectAttributes, ServerSideEncryption, StorageClass, Tag, Tagging, TaggingDirective,
    VersioningConfiguration,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt;
use md5::{Digest, Md5};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{CRC64, Client, MD5};
use crate::base::{ByteRange, ETag, hex};
use crate::error::{Error, Kind, Result};
use crate::s3::beside::asked_for;
use crate::s3::checksum::{is_of_body, whole_checksum};
use crate::s3::customer_key::CustomerKey;
use crate::s3::failure::{error_of, refuses_checksum, time_of};
use crate::s3::patience;
use crate::s3::payload::Payload;
use crate::s3::store::Store;
use crate::s3::types::*;

/// Bodies below this are small requests: the network takes them at once.
const WATCHED_FROM_BYTES: u64 = 1 << 20;
/// A body that sends nothing for this long, while somebody waits for it, has stalled.
const BODY_STALL: Duration = Duration::from_secs(20);
/// Single deletes under way at once where a server refuses DeleteObjects.
const SINGLE_DELETES_IN_FLIGHT: usize = 16;

/// More pages than any list has that is read to its end and is not a listing of objects.
const PAGES_MAX: usize = 10_000;

/// Pages that are read one after the other, whatever the server says: each begins where none began before.
#[derive(Default)]
struct Turns(HashSet<u64>);

impl Turns {
    fn turn_to(&mut self, next: impl std::hash::Hash) -> Result<()> {
        let mut hash = DefaultHasher::new();
        next.hash(&mut hash);
        if self.0.len() >= PAGES_MAX || !self.0.insert(hash.finish()) {
            return Err(Error::new(Kind::Corrupt, "the pages of a list go in circles"));
        }
        Ok(())
    }
}

/// The ETag S3 gives an object that one Put made: the MD5 of its bytes.
pub fn content_etag(body: &[u8]) -> ETag {
    ETag::new(&hex(&Md5::digest(body)))
}

/// The ETag S3 gives an object of these parts: the MD5 of their MD5s, and their number.
pub fn multipart_etag(parts: &[Part]) -> ETag {
    let mut hash = Md5::new();
    for part in parts {
        for pair in part.etag.as_str().as_bytes().chunks(2) {
            let byte = std::str::from_utf8(pair).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
            hash.update([byte.unwrap_or(0)]);
        }
    }
    ETag::new(&format!("{}-{}", hex(&hash.finalize()), parts.len()))
}

/// Sets the right header of a checksum on a Put or UploadPart.
macro_rules! add_checksum {
    ($request:expr, $checksum:expr) => {
        match $checksum {
            None => $request,
            Some(Checksum { algorithm, value }) => match algorithm {
                ChecksumAlgorithm::Crc64Nvme => $request.checksum_crc64_nvme(value),
                ChecksumAlgorithm::Crc32 => $request.checksum_crc32(value),
                ChecksumAlgorithm::Crc32c => $request.checksum_crc32_c(value),
                ChecksumAlgorithm::Sha1 => $request.checksum_sha1(value),
                ChecksumAlgorithm::Sha256 => $request.checksum_sha256(value),
                ChecksumAlgorithm::Md5 => $request.content_md5(value),
            },
        }
    };
}

/// A refusal that may be about what was asked for beside the bytes says what that was, and by which option.
fn explained(error: Error, attributes: &Attributes) -> Error {
    let may_be = matches!(error.kind(), Kind::InvalidArgument | Kind::Unsupported | Kind::AccessDenied);
    match asked_for(attributes).filter(|_| may_be) {
        Some(asked) => error.and(&format!("the request asked for {asked}")),
        None => error,
    }
}

fn http_date(text: &str) -> Option<aws_smithy_types::DateTime> {
    aws_smithy_types::DateTime::from_str(text, aws_smithy_types::date_time::Format::HttpDate).ok()
}

/// Collects whatever checksums an answer carries.
macro_rules! checksums_in {
    ($answer:expr) => {
        [
            ($answer.checksum_crc64_nvme(), ChecksumAlgorithm::Crc64Nvme),
            ($answer.checksum_crc32(), ChecksumAlgorithm::Crc32),
            ($answer.checksum_crc32_c(), ChecksumAlgorithm::Crc32c),
            ($answer.checksum_sha1(), ChecksumAlgorithm::Sha1),
            ($answer.checksum_sha256(), ChecksumAlgorithm::Sha256),
        ]
        .into_iter()
        .filter_map(|(value, algorithm)| Some(Checksum { algorithm, value: value?.to_owned() }))
        .collect::<Vec<_>>()
    };
}

/// Puts our attributes on a Put, Copy or Create.
macro_rules! add_attributes {
    ($request:expr, $attributes:expr) => {{
        let a: &Attributes = $attributes;
        $request
            .set_content_type(a.content_type.clone())
            .set_cache_control(a.cache_control.clone())
            .set_content_encoding(a.content_encoding.clone())
            .set_content_disposition(a.content_disposition.clone())
            .set_content_language(a.content_language.clone())
            .set_expires(a.expires.as_deref().and_then(http_date))
            .set_metadata((!a.metadata.is_empty()).then(|| a.metadata.clone().into_iter().collect()))
            .set_tagging((!a.tags.is_empty()).then(|| tag_header(&a.tags)))
    }};
}

/// Says again what a copy would not take from its source; what is made anew has to say it too.
macro_rules! add_again {
    ($request:expr, $again:expr, $key:expr) => {{
        let again: &Again = $again;
        let request = $request
            .set_storage_class(again.storage_class.as_deref().map(StorageClass::from))
            .set_acl(again.acl.as_deref().map(ObjectCannedAcl::from))
            .set_website_redirect_location(again.redirect.clone());
        // What is encrypted with the session's key is encrypted with no other.
        match ($key, &again.encryption) {
            (Some(key), _) => add_key!(request, Some(key)),
            (None, Some(Encryption::S3)) => request.server_side_encryption(ServerSideEncryption::Aes256),
            (None, Some(Encryption::Kms { key_id, bucket_key, twice })) => request
                .server_side_encryption(match twice {
                    true => ServerSideEncryption::AwsKmsDsse,
                    false => ServerSideEncryption::AwsKms,
                })
                .set_ssekms_key_id(key_id.clone())
                .set_bucket_key_enabled(*bucket_key),
            (None, Some(Encryption::Customer { .. }) | None) => request,
        }
    }};
}

/// Sends the session's key along.
macro_rules! add_key {
    ($request:expr, $key:expr) => {{
        let key: Option<&CustomerKey> = $key;
        $request
            .set_sse_customer_algorithm(key.map(|_| CustomerKey::ALGORITHM.to_owned()))
            .set_sse_customer_key(key.map(|key| key.reveal().to_owned()))
            .set_sse_customer_key_md5(key.map(|key| key.md5().to_owned()))
    }};
}

/// The same for the source of a copy.
macro_rules! add_source_key {
    ($request:expr, $key:expr) => {{
        let key: Option<&CustomerKey> = $key;
        $request
            .set_copy_source_sse_customer_algorithm(key.map(|_| CustomerKey::ALGORITHM.to_owned()))
            .set_copy_source_sse_customer_key(key.map(|key| key.reveal().to_owned()))
            .set_copy_source_sse_customer_key_md5(key.map(|key| key.md5().to_owned()))
    }};
}

/// Reads our attributes from a GET's or HEAD's answer.
macro_rules! info_from {
    ($answer:expr, $key:expr, $size:expr) => {
        ObjectInfo {
            key: $key.to_owned(),
            size: $size,
            etag: ETag::new(
                $answer.e_tag().ok_or_else(|| Error::new(Kind::Corrupt, "the answer has no ETag"))?,
            ),
            last_modified: time_of($answer.last_modified()),
            version_id: $answer.version_id().filter(|id| *id != "null").map(str::to_owned),
            attributes: Attributes {
                content_type: $answer.content_type().map(str::to_owned),
                cache_control: $answer.cache_control().map(str::to_owned),
                content_encoding: $answer.content_encoding().map(str::to_owned),
                content_disposition: $answer.content_disposition().map(str::to_owned),
                content_language: $answer.content_language().map(str::to_owned),
                storage_class: $answer.storage_class().map(|class| class.as_str().to_owned()),
                metadata: $answer
                    .metadata()
                    .map(|m| m.iter().map(|(k, v)| (k.to_ascii_lowercase(), v.clone())).collect())
                    .unwrap_or_default(),
                expires: $answer.expires_string().map(str::to_owned),
                redirect: $answer.website_redirect_location().map(str::to_owned),
                tags: BTreeMap::new(),
                acl: None,
                encryption: match ($answer.server_side_encryption(), $answer.sse_customer_key_md5()) {
                    (_, Some(md5)) => Some(Encryption::Customer { key_md5: md5.to_owned() }),
                    (Some(ServerSideEncryption::Aes256), _) => Some(Encryption::S3),
                    (Some(kms @ (ServerSideEncryption::AwsKms | ServerSideEncryption::AwsKmsDsse)), _) => {
                        Some(Encryption::Kms {
                            key_id: $answer.ssekms_key_id().map(str::to_owned),
                            bucket_key: $answer.bucket_key_enabled(),
                            twice: *kms == ServerSideEncryption::AwsKmsDsse,
                        })
                    }
                    _ => None,
                },
            },
            tag_count: $answer.tag_count().and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            restore: $answer.restore().map(str::to_owned),
            checksums: checksums_in!($answer),
        }
    };
}

#[async_trait]
impl Store for Client {
    async fn list_buckets(&self) -> Result<Vec<BucketInfo>> {
        let mut buckets = Vec::new();
        let (mut token, mut pages): (Option<String>, _) = (None, Turns::default());
        loop {
            let answer = self
                .call("ListBuckets", "", "", &Condition::Any, |s3| {
                    s3.list_buckets().set_continuation_token(token.clone()).send()
                })
                .await?;
            buckets.extend(answer.buckets().iter().filter_map(|bucket| {
                Some(BucketInfo {
                    name: bucket.name()?.to_owned(),
                    region: bucket.bucket_region().map(str::to_owned),
                    created: bucket.creation_date().map(|t| time_of(Some(t))),
                })
            }));
            match answer.continuation_token().map(str::to_owned) {
                Some(next) => {
                    pages.turn_to(&next).map_err(|error| error.on("ListBuckets", "", ""))?;
                    token = Some(next);
                }
                None => return Ok(buckets),
            }
        }
    }

    async fn head_bucket(&self, bucket: &str) -> Result<BucketInfo> {
        let answer = self
            .call("HeadBucket", bucket, "", &Condition::Any, |s3| s3.head_bucket().bucket(bucket).send())
            .await;
        match answer {
            Ok(answer) => Ok(BucketInfo {
                name: bucket.to_owned(),
                region: answer.bucket_region().map(str::to_owned),
                created: None,
            }),
            Err(error) if error.is_not_found() => {
                let status = error.status();
                Err(Error::new(Kind::NoSuchBucket, "no such bucket")
                    .with_answer(status, error.request_id(), error.host_id())
                    .on("HeadBucket", bucket, ""))
            }
            Err(error) => Err(error),
        }
    }

    async fn create_bucket(&self, bucket: &str, region: Option<&str>) -> Result<()> {
        let own = self.region();
        let region = region.unwrap_or(&own);
        // us-east-1 is the one region that is not named.
        let place = (region != "us-east-1").then(|| {
            CreateBucketConfiguration::builder()
                .location_constraint(BucketLocationConstraint::from(region))
                .build()
        });
        self.call("CreateBucket", bucket, "", &Condition::Any, |s3| {
            s3.create_bucket().bucket(bucket).set_create_bucket_configuration(place.clone()).send()
        })
        .await
        .map(drop)
    }

    async fn delete_bucket(&self, bucket: &str) -> Result<()> {
        self.call("DeleteBucket", bucket, "", &Condition::Any, |s3| s3.delete_bucket().bucket(bucket).send())
            .await
            .map(drop)
    }

    async fn versioning(&self, bucket: &str) -> Result<Versioning> {
        let answer = self
            .call("GetBucketVersioning", bucket, "", &Condition::Any, |s3| {
                s3.get_bucket_versioning().bucket(bucket).send()
            })
            .await?;
        Ok(match answer.status() {
            Some(BucketVersioningStatus::Enabled) => Versioning::Enabled,
            Some(BucketVersioningStatus::Suspended) => Versioning::Suspended,
            _ => Versioning::Never,
        })
    }

    async fn set_versioning(&self, bucket: &str, enabled: bool) -> Result<()> {
        let status =
            if enabled { BucketVersioningStatus::Enabled } else { BucketVersioningStatus::Suspended };
        let wanted = VersioningConfiguration::builder().status(status).build();
        self.call("PutBucketVersioning", bucket, "", &Condition::Any, |s3| {
            s3.put_bucket_versioning().bucket(bucket).versioning_configuration(wanted.clone()).send()
        })
        .await
        .map(drop)
    }

    async fn head(&self, bucket: &str, key: &str, version_id: Option<&str>) -> Result<ObjectInfo> {
        let answer = self
            .with_key(|sse| {
                self.call("HeadObject", bucket, key, &Condition::Any, move |s3| {
                    let head = s3
                        .head_object()
                        .bucket(bucket)
                        .key(key)
                        .checksum_mode(ChecksumMode::Enabled)
                        .set_version_id(version_id.map(str::to_owned))
                        .set_request_payer(self.payer());
                    add_key!(head, sse).send()
                })
            })
            .await?;
        let size = length_of(answer.content_length()).map_err(|e| e.on("HeadObject", bucket, key))?;
        Ok(info_from!(answer, key, size))
    }

    async fn get(&self, request: GetRequest) -> Result<GetOutput> {
        let condition = request.if_match.clone().map_or(Condition::Any, Condition::Matches);
        let (bucket, key, checksum) = (&request.bucket, &request.key, request.checksum);
        let (asked, under) = (&request, &condition);
        let answer = self
            .with_key(|sse| {
                self.call("GetObject", bucket, key, under, move |s3| {
                    let get = s3
                        .get_object()
                        .bucket(bucket)
                        .key(key)
                        .set_range(asked.range.map(ByteRange::header))
                        .set_if_match(asked.if_match.as_ref().map(ETag::quoted))
                        .set_version_id(asked.version_id.clone())
                        .set_request_payer(self.payer());
                    add_key!(get, sse)
                        .customize()
                        .mutate_request(move |http| {
                            // As a header, because the SDK would check the body itself, once more.
                            if checksum {
                                http.headers_mut().insert("x-amz-checksum-mode", "ENABLED");
                            }
                        })
                        .send()
                })
            })
            .await?;
        let on = |error: Error| error.on("GetObject", bucket, key);
        let length = length_of(answer.content_length()).map_err(on)?;
        let (offset, size) = match (answer.content_range(), request.range) {
            (Some(range), _) => content_range(range).map_err(on)?,
            // The whole object: fine if that is what the range was.
            (None, Some(range)) if range.start() > 0 || length > range.len() => {
                return Err(on(Error::new(Kind::Corrupt, "the server ignored the range")));
            }
            (None, _) => (0, length),
        };
        // What begins elsewhere, or is longer, is not what was asked for; what is shorter ends with the object.
        if let Some(range) = request.range
            && (offset != range.start() || offset.checked_add(length) != Some(range.end().min(size)))
        {
            let got = format!("asked for {range}, got {length} bytes at {offset} of {size}");
            return Err(on(Error::new(Kind::Corrupt, got)));
        }
        let info = info_from!(answer, key, size);
        if request.if_match.as_ref().is_some_and(|etag| *etag != info.etag) {
            // A server that ignores If-Match.
            return Err(on(Error::new(Kind::Stale, "the object was replaced by another client")));
        }
        let stats = Arc::clone(&self.inner.stats);
        let name = (bucket.clone(), key.clone());
        let body = futures::stream::unfold(Some(answer.body), move |body| {
            let (stats, name) = (Arc::clone(&stats), name.clone());
            async move {
                let mut body = body?;
                // The deadline runs only while somebody waits: a slow reader is not a stalled server.
                match tokio::time::timeout(BODY_STALL, body.next()).await {
                    Ok(None) => None,
                    Ok(Some(Ok(chunk))) => {
                        stats.bytes_received.add(chunk.len() as u64);
                        patience::moved();
                        Some((Ok(chunk), Some(body)))
                    }
                    Ok(Some(Err(error))) => {
                        let error = Error::new(Kind::Unreachable, "the body broke off").with_source(error);
                        Some((Err(error.on("GetObject", &name.0, &name.1)), None))
                    }
                    Err(_) => {
                        let error = Error::new(Kind::TimedOut, "the body stalled");
                        Some((Err(error.on("GetObject", &name.0, &name.1)), None))
                    }
                }
            }
        });
        Ok(GetOutput { info, offset, length, body: Box::pin(body) })
    }

    async fn put(&self, request: PutRequest) -> Result<Written> {
        let request = &request;
        let (bucket, key) = (&request.bucket, &request.key);
        let size = request.body.len() as u64;
        let (answer, sent) = self
            .with_checksum(&request.body.clone().into(), request.checksum.clone(), |checksum| async move {
                let sent = &checksum;
                let answer = self.call("PutObject", bucket, key, &request.condition, |s3| {
                    let put = s3
                        .put_object()
                        .bucket(bucket)
                        .key(key)
                        .set_if_none_match(if_none_match(&request.condition))
                        .set_if_match(if_match(&request.condition))
                        .set_request_payer(self.payer())
                        .body(ByteStream::from(request.body.clone()));
                    let put = add_attributes!(put, &request.attributes);
                    let put = add_again!(put, &Again::of(&request.attributes), self.customer_key());
                    let put = add_checksum!(put, sent.clone()).customize();
                    let put = if self.signs_body(sent) { put } else { put.disable_payload_signing() };
                    if size < WATCHED_FROM_BYTES {
                        return put.send();
                    }
                    put.config_override(Self::no_deadline()).send()
                });
                Ok((answer.await?, checksum))
            })
            .await
            .map_err(|error| explained(error, &request.attributes))?;
        let mut written =
            written(answer.e_tag(), answer.version_id()).map_err(|e| e.on("PutObject", bucket, key))?;
        written.checksum = crc64_in(answer.checksum_crc64_nvme()).or_else(|| {
            let is_md5 = self.etag_is_md5(bucket, &written.etag, sent?, answer.server_side_encryption());
            is_md5.then(|| Checksum { algorithm: ChecksumAlgorithm::Md5, value: String::new() })
        });
        Ok(written)
    }

    async fn delete(&self, request: DeleteRequest) -> Result<Deleted> {
        if request.condition == Condition::Absent {
            return Err(Error::new(Kind::InvalidArgument, "a delete cannot demand absence"));
        }
        let answer = self
            .call("DeleteObject", &request.bucket, &request.key, &request.condition, |s3| {
                s3.delete_object()
                    .bucket(&request.bucket)
                    .key(&request.key)
                    .set_version_id(request.version_id.clone())
                    .set_if_match(if_match(&request.condition))
                    .set_request_payer(self.payer())
                    .send()
            })
            .await?;
        Ok(Deleted {
            version_id: answer.version_id().map(str::to_owned),
            delete_marker: answer.delete_marker().unwrap_or(false),
        })
    }

    async fn delete_many(&self, bucket: &str, keys: Vec<DeleteKey>) -> Result<Vec<(String, Result<()>)>> {
        // XML has no way to name the others.
        let (named, odd): (Vec<_>, Vec<_>) = keys.iter().cloned().partition(|entry| fits_xml(&entry.key));
        let is_refused =
            |error: &Error| error.kind() == Kind::Unsupported || refuses_checksum(error) || wants_md5(error);
        let with_md5 = self.inner.deletes_with_md5.load(Ordering::Relaxed);
        let answer = match self.delete_named(bucket, &named, with_md5).await {
            Err(error) if is_refused(&error) && !with_md5 => {
                let answer = self.delete_named(bucket, &named, true).await;
                if answer.is_ok() && !self.inner.deletes_with_md5.swap(true, Ordering::Relaxed) {
                    tracing::info!(error = %error.report(), "the endpoint wants Content-MD5 with DeleteObjects");
                }
                answer
            }
            answer => answer,
        };
        let (mut failed, mut again) = match answer {
            Err(error) if is_refused(&error) => (HashMap::new(), named),
            answer => answer?,
        };
        again.extend(odd);
        for (key, result) in self.delete_one_by_one(bucket, again).await {
            if let Err(error) = result {
                failed.insert(key, error);
            }
        }
        Ok(keys
            .into_iter()
            .map(|entry| {
                let result = failed.remove(&entry.key).map_or(Ok(()), Err);
                (entry.key, result)
            })
            .collect())
    }

    async fn copy(&self, request: CopyRequest) -> Result<Written> {
        let (bucket, key) = (&request.bucket, &request.key);
        let source =
            copy_source(&request.source_bucket, &request.source_key, request.source_version_id.as_deref());
        // Either side's condition may fail; the target's `Absent` is the only one that means "exists".
        let condition = match (&request.condition, &request.source_if_match) {
            (Condition::Any, Some(etag)) => Condition::Matches(etag.clone()),
            (condition, _) => condition.clone(),
        };
        let (asked, under, source) = (&request, &condition, &source);
        let again = &asked.attributes.as_ref().map_or_else(|| asked.again.clone(), Again::of);
        let answer = self
            .with_key(|sse| {
                self.call("CopyObject", bucket, key, under, move |s3| {
                    let copy = s3
                        .copy_object()
                        .bucket(bucket)
                        .key(key)
                        .copy_source(source)
                        .set_copy_source_if_match(asked.source_if_match.as_ref().map(ETag::quoted))
                        .set_if_none_match(if_none_match(&asked.condition))
                        .set_if_match(if_match(&asked.condition))
                        .set_request_payer(self.payer());
                    let copy = match &asked.attributes {
                        None => copy,
                        Some(attributes) => add_attributes!(copy, attributes)
                            .metadata_directive(MetadataDirective::Replace)
                            .tagging_directive(TaggingDirective::Replace),
                    };
                    let copy = add_source_key!(add_again!(copy, again, self.customer_key()), sse);
                    copy.customize().config_override(self.copy_deadline(asked.size)).send()
                })
            })
            .await
            .map_err(|error| {
                explained(error, &again.clone().lay_over(asked.attributes.clone().unwrap_or_default()))
            })?;
        let result = answer.copy_object_result();
        written(result.and_then(|r| r.e_tag()), answer.version_id())
            .map_err(|e| e.on("CopyObject", bucket, key))
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let bucket = &request.bucket;
        let answer = self
            .call("ListObjectsV2", bucket, &request.prefix, &Condition::Any, |s3| {
                s3.list_objects_v2()
                    .bucket(bucket)
                    .prefix(&request.prefix)
                    .set_delimiter(request.delimiter.clone())
                    .set_start_after(request.start_after.clone())
                    .set_continuation_token(request.continuation.clone())
                    .set_max_keys(request.max_keys.map(i32::from))
                    .encoding_type(EncodingType::Url)
                    .optional_object_attributes(OptionalObjectAttributes::RestoreStatus)
                    .set_request_payer(self.payer())
                    .send()
            })
            .await?;
        let encoded = answer.encoding_type() == Some(&EncodingType::Url);
        let on = |error: Error| error.on("ListObjectsV2", bucket, &request.prefix);
        let mut objects = Vec::with_capacity(answer.contents().len());
        for object in answer.contents() {
            let Some(key) = object.key() else { continue };
            let restored = object.restore_status().map(|s| !s.is_restore_in_progress().unwrap_or(true));
            objects.push(ListedObject {
                key: decoded(key, encoded).map_err(on)?,
                size: length_of(object.size()).map_err(on)?,
                etag: ETag::new(object.e_tag().unwrap_or("")),
                last_modified: time_of(object.last_modified()),
                storage_class: object.storage_class().map(|class| class.as_str().to_owned()),
                restored,
            });
        }
        let mut common_prefixes = Vec::with_capacity(answer.common_prefixes().len());
        for prefix in answer.common_prefixes().iter().filter_map(|p| p.prefix()) {
            common_prefixes.push(decoded(prefix, encoded).map_err(on)?);
        }
        let more = answer.is_truncated() == Some(true);
        let next = answer.next_continuation_token().filter(|_| more).map(str::to_owned);
        if more && next.is_none() {
            return Err(on(Error::new(Kind::Corrupt, "the listing is cut off without a continuation token")));
        }
        Ok(ListPage { objects, common_prefixes, next })
    }

    async fn list_versions(&self, request: ListVersionsRequest) -> Result<VersionsPage> {
        let bucket = &request.bucket;
        let answer = self
            .call("ListObjectVersions", bucket, &request.prefix, &Condition::Any, |s3| {
                s3.list_object_versions()
                    .bucket(bucket)
                    .prefix(&request.prefix)
                    .set_delimiter(request.delimiter.clone())
                    .set_key_marker(request.key_marker.clone())
                    .set_version_id_marker(request.version_id_marker.clone())
                    .set_max_keys(request.max_keys.map(i32::from))
                    .encoding_type(EncodingType::Url)
                    .set_request_payer(self.payer())
                    .send()
            })
            .await?;
        let encoded = answer.encoding_type() == Some(&EncodingType::Url);
        let on = |error: Error| error.on("ListObjectVersions", bucket, &request.prefix);
        let mut versions = Vec::new();
        for version in answer.versions() {
            versions.push(ObjectVersion {
                key: decoded(version.key().unwrap_or(""), encoded).map_err(on)?,
                version_id: version.version_id().unwrap_or("null").to_owned(),
                is_latest: version.is_latest().unwrap_or(false),
                is_delete_marker: false,
                size: length_of(version.size()).map_err(on)?,
                etag: ETag::new(version.e_tag().unwrap_or("")),
                last_modified: time_of(version.last_modified()),
            });
        }
        for marker in answer.delete_markers() {
            versions.push(ObjectVersion {
                key: decoded(marker.key().unwrap_or(""), encoded).map_err(on)?,
                version_id: marker.version_id().unwrap_or("null").to_owned(),
                is_latest: marker.is_latest().unwrap_or(false),
                is_delete_marker: true,
                size: 0,
                etag: ETag::new(""),
                last_modified: time_of(marker.last_modified()),
            });
        }
        // The answer keeps versions and markers apart; a key's history is one, newest first.
        versions.sort_by(|a, b| {
            a.key.cmp(&b.key).then(b.is_latest.cmp(&a.is_latest)).then(b.last_modified.cmp(&a.last_modified))
        });
        let mut common_prefixes = Vec::new();
        for prefix in answer.common_prefixes().iter().filter_map(|p| p.prefix()) {
            common_prefixes.push(decoded(prefix, encoded).map_err(on)?);
        }
        let next = match answer.next_key_marker().filter(|_| answer.is_truncated() == Some(true)) {
            Some(key) => {
                Some((decoded(key, encoded).map_err(on)?, answer.next_version_id_marker().map(str::to_owned)))
            }
            None => None,
        };
        Ok(VersionsPage { versions, common_prefixes, next })
    }

    async fn tags(&self, bucket: &str, key: &str) -> Result<BTreeMap<String, String>> {
        let answer = self
            .call("GetObjectTagging", bucket, key, &Condition::Any, |s3| {
                s3.get_object_tagging().bucket(bucket).key(key).set_request_payer(self.payer()).send()
            })
            .await?;
        Ok(answer.tag_set().iter().map(|tag| (tag.key().to_owned(), tag.value().to_owned())).collect())
    }

    async fn set_tags(&self, bucket: &str, key: &str, tags: BTreeMap<String, String>) -> Result<()> {
        let set = tags.iter().filter_map(|(k, v)| Tag::builder().key(k).value(v).build().ok()).collect();
        let tagging = Tagging::builder()
            .set_tag_set(Some(set))
            .build()
            .map_err(|error| Error::new(Kind::InvalidArgument, error.to_string()))?;
        self.call("PutObjectTagging", bucket, key, &Condition::Any, |s3| {
            s3.put_object_tagging()
                .bucket(bucket)
                .key(key)
                .tagging(tagging.clone())
                .set_request_payer(self.payer())
                .send()
        })
        .await
        .map(drop)
    }

    async fn presigned(&self, bucket: &str, key: &str, valid: Duration) -> Result<String> {
        let unsupported = |why: &str| Error::new(Kind::Unsupported, why).on("presign", bucket, key);
        if self.inner.credentials.is_none() {
            return Err(unsupported("the session asks anonymously, so it can sign nothing"));
        }
        if self.inner.settings.customer_key.is_some() {
            return Err(unsupported(
                "whoever reads what a customer's key encrypts has to send the key, which no address holds",
            ));
        }
        let valid = PresigningConfig::expires_in(valid)
            .map_err(|error| Error::new(Kind::InvalidArgument, error.to_string()))?;
        let get = self.sdk().get_object().bucket(bucket).key(key).set_request_payer(self.payer());
        let presigned = get
            .presigned(valid)
            .await
            .map_err(|error| error_of(error, &Condition::Any).on("presign", bucket, key))?;
        if presigned.headers().next().is_some() {
            return Err(unsupported("the request needs headers, which no address holds"));
        }
        Ok(presigned.uri().to_owned())
    }

    async fn create_upload(&self, bucket: &str, key: &str, attributes: Attributes) -> Result<Upload> {
        let answer = self
            .call("CreateMultipartUpload", bucket, key, &Condition::Any, |s3| {
                let create =
                    s3.create_multipart_upload().bucket(bucket).key(key).set_request_payer(self.payer());
                let create = add_attributes!(create, &attributes);
                let create = add_again!(create, &Again::of(&attributes), self.customer_key());
                let create = match self.inner.checksums.load(Ordering::Relaxed) {
                    CRC64 => create
                        .checksum_algorithm(aws_sdk_s3::types::ChecksumAlgorithm::Crc64Nvme)
                        .checksum_type(aws_sdk_s3::types::ChecksumType::FullObject),
                    _ => create,
                };
                create.send()
            })
            .await;
        let answer = match answer {
            Err(error)
                if refuses_checksum(&error) && self.inner.checksums.load(Ordering::Relaxed) == CRC64 =>
            {
                self.inner.checksums.fetch_max(MD5, Ordering::Relaxed);
                tracing::warn!(error = %error.report(), "the endpoint refuses a checksum; sending Content-MD5 from now on");
                return self.create_upload(bucket, key, attributes).await;
            }
            answer => answer.map_err(|error| explained(error, &attributes))?,
        };
        let upload_id = answer.upload_id().ok_or_else(|| {
            Error::new(Kind::Corrupt, "the answer has no upload id").on("CreateMultipartUpload", bucket, key)
        })?;
        Ok(Upload { bucket: bucket.to_owned(), key: key.to_owned(), upload_id: upload_id.to_owned() })
    }

    async fn upload_part(
        &self,
        upload: &Upload,
        number: u16,
        body: Payload,
        checksum: Option<Checksum>,
    ) -> Result<Part> {
        let size = body.len();
        let sending = self
            .with_checksum(&body, checksum, |checksum| {
                let body = body.clone();
                async move {
                    let (body, checksum) = (&body, &checksum);
                    let answer = self
                        .call("UploadPart", &upload.bucket, &upload.key, &Condition::Any, |s3| {
                            let part = s3
                                .upload_part()
                                .bucket(&upload.bucket)
                                .key(&upload.key)
                                .upload_id(&upload.upload_id)
                                .part_number(i32::from(number))
                                .set_request_payer(self.payer())
                                .body(ByteStream::new(body.for_sdk()));
                            let part = add_checksum!(part, checksum.clone());
                            let part = add_key!(part, self.customer_key()).customize();
                            let part =
                                if self.signs_body(checksum) { part } else { part.disable_payload_signing() };
                            let could_be_read = !body.has_failed();
                            async move {
                                if !could_be_read {
                                    return Err(SdkError::construction_failure("the body cannot be read"));
                                }
                                part.config_override(Self::no_deadline()).send().await
                            }
                        })
                        .await?;
                    Ok((answer, checksum.clone()))
                }
            })
            .await;
        let (answer, sent) = match (sending, body.failure()) {
            (Err(_), Some(error)) => return Err(error.on("UploadPart", &upload.bucket, &upload.key)),
            (sending, _) => sending?,
        };
        let etag = answer.e_tag().ok_or_else(|| {
            Error::new(Kind::Corrupt, "the answer has no ETag").on("UploadPart", &upload.bucket, &upload.key)
        })?;
        let checksum = crc64_in(answer.checksum_crc64_nvme())
            .or_else(|| sent.filter(|c| c.algorithm != ChecksumAlgorithm::Md5));
        Ok(Part { number, etag: ETag::new(etag), size, checksum })
    }

    async fn upload_part_copy(&self, upload: &Upload, number: u16, source: PartSource) -> Result<Part> {
        let from = copy_source(&source.bucket, &source.key, None);
        let condition = source.if_match.clone().map_or(Condition::Any, Condition::Matches);
        let (source, from, under) = (&source, &from, &condition);
        let answer = self
            .with_key(|sse| {
                self.call("UploadPartCopy", &upload.bucket, &upload.key, under, move |s3| {
                    let part = s3
                        .upload_part_copy()
                        .bucket(&upload.bucket)
                        .key(&upload.key)
                        .upload_id(&upload.upload_id)
                        .part_number(i32::from(number))
                        .copy_source(from)
                        .copy_source_range(source.range.header())
                        .set_copy_source_if_match(source.if_match.as_ref().map(ETag::quoted))
                        .set_request_payer(self.payer());
                    add_source_key!(add_key!(part, self.customer_key()), sse)
                        .customize()
                        .config_override(self.copy_deadline(source.range.len()))
                        .send()
                })
            })
            .await?;
        let on = |error: Error| error.on("UploadPartCopy", &upload.bucket, &upload.key);
        let result =
            answer.copy_part_result().ok_or_else(|| on(Error::new(Kind::Corrupt, "the answer is empty")))?;
        let etag = result.e_tag().ok_or_else(|| on(Error::new(Kind::Corrupt, "the answer has no ETag")))?;
        let checksum = checksums_in!(result).into_iter().next();
        Ok(Part { number, etag: ETag::new(etag), size: source.range.len(), checksum })
    }

    async fn complete_upload(
        &self,
        upload: &Upload,
        parts: Vec<Part>,
        condition: Condition,
    ) -> Result<Written> {
        let listed = parts.iter().map(|part| {
            let done = CompletedPart::builder().part_number(i32::from(part.number)).e_tag(part.etag.quoted());
            match &part.checksum {
                Some(Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value }) => {
                    done.checksum_crc64_nvme(value).build()
                }
                Some(Checksum { algorithm: ChecksumAlgorithm::Crc32, value }) => {
                    done.checksum_crc32(value).build()
                }
                Some(Checksum { algorithm: ChecksumAlgorithm::Crc32c, value }) => {
                    done.checksum_crc32_c(value).build()
                }
                _ => done.build(),
            }
        });
        let size = parts.iter().map(|part| part.size).sum();
        // S3 holds what it put together to this, and makes no object of anything else.
        let takes_it = self.inner.checksums.load(Ordering::Relaxed) == CRC64;
        let whole = whole_checksum(&parts).filter(|_| takes_it);
        let list = CompletedMultipartUpload::builder().set_parts(Some(listed.collect())).build();
        let complete = |whole: Option<Checksum>| {
            let (list, condition) = (&list, &condition);
            self.call("CompleteMultipartUpload", &upload.bucket, &upload.key, condition, move |s3| {
                let complete = s3
                    .complete_multipart_upload()
                    .bucket(&upload.bucket)
                    .key(&upload.key)
                    .upload_id(&upload.upload_id)
                    .multipart_upload(list.clone())
                    .set_if_none_match(if_none_match(condition))
                    .set_if_match(if_match(condition))
                    .set_request_payer(self.payer());
                let complete = match &whole {
                    Some(sum) => complete
                        .checksum_crc64_nvme(&sum.value)
                        .checksum_type(aws_sdk_s3::types::ChecksumType::FullObject),
                    None => complete,
                };
                add_key!(complete, self.customer_key())
                    .customize()
                    .config_override(self.copy_deadline(size))
                    .send()
            })
        };
        let answer = match complete(whole.clone()).await {
            // A server that knows checksums of parts alone.
            Err(error) if whole.is_some() && refuses_checksum(&error) => complete(None).await,
            answer => answer,
        };
        match answer {
            Ok(answer) => {
                let written = written(answer.e_tag(), answer.version_id())
                    .map_err(|e| e.on("CompleteMultipartUpload", &upload.bucket, &upload.key))?;
                Ok(Written { checksum: crc64_in(answer.checksum_crc64_nvme()), ..written })
            }
            // Some servers answer 200 in a form that the SDK cannot read: the object tells what happened.
            Err(error) if error.kind() == Kind::Corrupt && error.status() == Some(200) => {
                match self.head(&upload.bucket, &upload.key, None).await {
                    Ok(info) if info.etag == multipart_etag(&parts) => {
                        Ok(Written { etag: info.etag, version_id: info.version_id, checksum: None })
                    }
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        self.call("AbortMultipartUpload", &upload.bucket, &upload.key, &Condition::Any, |s3| {
            s3.abort_multipart_upload()
                .bucket(&upload.bucket)
                .key(&upload.key)
                .upload_id(&upload.upload_id)
                .set_request_payer(self.payer())
                .send()
        })
        .await
        .map(drop)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        let (mut marker, mut pages): (Option<String>, _) = (None, Turns::default());
        loop {
            let answer = self
                .call("ListParts", &upload.bucket, &upload.key, &Condition::Any, |s3| {
                    let list = s3
                        .list_parts()
                        .bucket(&upload.bucket)
                        .key(&upload.key)
                        .upload_id(&upload.upload_id)
                        .set_part_number_marker(marker.clone())
                        .set_request_payer(self.payer());
                    add_key!(list, self.customer_key()).send()
                })
                .await?;
            for part in answer.parts() {
                parts.push(Part {
                    number: u16::try_from(part.part_number().unwrap_or(0)).unwrap_or(0),
                    etag: ETag::new(part.e_tag().unwrap_or("")),
                    size: length_of(part.size())?,
                    checksum: checksums_in!(part).into_iter().next(),
                });
            }
            match answer.next_part_number_marker().filter(|_| answer.is_truncated() == Some(true)) {
                Some(next) => {
                    let on = |error: Error| error.on("ListParts", &upload.bucket, &upload.key);
                    pages.turn_to(next).map_err(on)?;
                    marker = Some(next.to_owned());
                }
                None => return Ok(parts),
            }
        }
    }

    async fn list_uploads(&self, bucket: &str, prefix: &str) -> Result<Vec<Unfinished>> {
        let mut uploads = Vec::new();
        let mut marker: (Option<String>, Option<String>) = (None, None);
        let mut pages = Turns::default();
        loop {
            let answer = self
                .call("ListMultipartUploads", bucket, prefix, &Condition::Any, |s3| {
                    s3.list_multipart_uploads()
                        .bucket(bucket)
                        .prefix(prefix)
                        .set_key_marker(marker.0.clone())
                        .set_upload_id_marker(marker.1.clone())
                        .encoding_type(EncodingType::Url)
                        .send()
                })
                .await?;
            let encoded = answer.encoding_type() == Some(&EncodingType::Url);
            for upload in answer.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
                let (bucket, upload_id) = (bucket.to_owned(), id.to_owned());
                uploads.push(Unfinished {
                    upload: Upload { bucket, key: decoded(key, encoded)?, upload_id },
                    initiated: upload.initiated().map(|at| time_of(Some(at))),
                });
            }
            let key_marker = answer.next_key_marker().map(|key| decoded(key, encoded)).transpose()?;
            let next = (key_marker, answer.next_upload_id_marker().map(str::to_owned));
            if answer.is_truncated() != Some(true) || next.0.is_none() {
                return Ok(uploads);
            }
            pages.turn_to(&next).map_err(|error| error.on("ListMultipartUploads", bucket, prefix))?;
            marker = next;
        }
    }
}

impl Client {
    /// One DeleteObjects: what it failed for, and the keys that are worth another try, by themselves: the answer to the
    /// batch was a success, so nobody has tried those again yet.
    async fn delete_named(
        &self,
        bucket: &str,
        keys: &[DeleteKey],
        with_md5: bool,
    ) -> Result<(HashMap<String, Error>, Vec<DeleteKey>)> {
        if keys.is_empty() {
            return Ok((HashMap::new(), Vec::new()));
        }
        let identifiers = keys.iter().filter_map(|entry| {
            let etag = entry.etag.as_ref().map(ETag::quoted);
            ObjectIdentifier::builder().key(&entry.key).set_e_tag(etag).build().ok()
        });
        let batch = Delete::builder()
            .set_objects(Some(identifiers.collect()))
            .quiet(true)
            .build()
            .map_err(|error| Error::new(Kind::InvalidArgument, error.to_string()))?;
        let answer = self
            .call("DeleteObjects", bucket, "", &Condition::Any, |s3| {
                s3.delete_objects()
                    .bucket(bucket)
                    .delete(batch.clone())
                    .set_request_payer(self.payer())
                    .customize()
                    .mutate_request(move |request| {
                        if with_md5 {
                            use_md5(request);
                        }
                    })
                    .send()
            })
            .await?;
        let mut failed = HashMap::new();
        let mut again = Vec::new();
        let entries: HashMap<&str, &DeleteKey> =
            keys.iter().map(|entry| (entry.key.as_str(), entry)).collect();
        for told in answer.errors() {
            let Some(entry) = told.key().and_then(|key| entries.get(key)) else {
                let why = format!("a failed delete of a key that was not asked for: {:?}", told.key());
                return Err(Error::new(Kind::Corrupt, why).on("DeleteObjects", bucket, ""));
            };
            let kind = match told.code() {
                Some("NoSuchKey") => continue,
                Some("AccessDenied") => Kind::AccessDenied,
                Some("PreconditionFailed") => Kind::Stale,
                Some("MethodNotAllowed" | "NotImplemented") => Kind::Unsupported,
                // It may work by itself, and if not, its own answer tells more.
                _ => {
                    again.push((*entry).clone());
                    continue;
                }
            };
            let error = Error::new(kind, told.message().unwrap_or("the key was not deleted"))
                .with_code(told.code().unwrap_or("Unknown"))
                .on("DeleteObjects", bucket, &entry.key);
            failed.insert(entry.key.clone(), error);
        }
        Ok((failed, again))
    }

    async fn delete_one_by_one(&self, bucket: &str, keys: Vec<DeleteKey>) -> Vec<(String, Result<()>)> {
        futures::stream::iter(keys)
            .map(|entry| async move {
                let request = DeleteRequest {
                    bucket: bucket.to_owned(),
                    condition: entry.condition(),
                    key: entry.key.clone(),
                    version_id: None,
                };
                let result = match self.delete(request).await {
                    Err(error) if error.is_not_found() => Ok(()),
                    deleted => deleted.map(drop),
                };
                (entry.key, result)
            })
            .buffered(SINGLE_DELETES_IN_FLIGHT)
            .collect()
            .await
    }
}

/// Whether XML 1.0 can hold a key.
fn fits_xml(key: &str) -> bool {
    key.chars()
        .all(|c| !matches!(c, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}'))
}

/// Replaces the checksum of a request whose body is in memory by Content-MD5, which the SDK knows nothing of.
fn use_md5(request: &mut HttpRequest) {
    let Some(md5) = request.body().bytes().map(|body| BASE64.encode(Md5::digest(body))) else { return };
    let theirs: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("x-amz-checksum-") || name == "x-amz-sdk-checksum-algorithm")
        .collect();
    let headers = request.headers_mut();
    for name in theirs {
        headers.remove(name);
    }
    headers.insert("content-md5", md5);
}

/// A server that takes DeleteObjects only with Content-MD5, which the SDK no longer sends.
fn wants_md5(error: &Error) -> bool {
    error.message().to_ascii_lowercase().contains("content-md5") || error.code() == Some("MissingContentMD5")
}

fn if_none_match(condition: &Condition) -> Option<String> {
    (*condition == Condition::Absent).then(|| "*".to_owned())
}

fn if_match(condition: &Condition) -> Option<String> {
    match condition {
        Condition::Matches(etag) => Some(etag.quoted()),
        _ => None,
    }
}

fn written(etag: Option<&str>, version_id: Option<&str>) -> Result<Written> {
    let etag = etag.ok_or_else(|| Error::new(Kind::Corrupt, "the answer has no ETag"))?;
    Ok(Written {
        etag: ETag::new(etag),
        version_id: version_id.filter(|id| *id != "null").map(str::to_owned),
        checksum: None,
    })
}

/// What a server answers of the whole body; a checksum of checksums tells nothing of it.
fn crc64_in(answered: Option<&str>) -> Option<Checksum> {
    let sum = Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value: answered?.to_owned() };
    is_of_body(&sum).then_some(sum)
}

fn length_of(length: Option<i64>) -> Result<u64> {
    u64::try_from(length.unwrap_or(0)).map_err(|_| Error::new(Kind::Corrupt, "a negative length"))
}

/// First byte and size of the whole from `bytes 0-9/100`.
fn content_range(text: &str) -> Result<(u64, u64)> {
    let parsed = text.strip_prefix("bytes ").and_then(|rest| {
        let (range, size) = rest.split_once('/')?;
        let (start, _) = range.split_once('-')?;
        Some((start.parse().ok()?, size.parse().ok()?))
    });
    parsed.ok_or_else(|| Error::new(Kind::Corrupt, format!("a Content-Range of {text:?}")))
}

/// A key of a listing. The server says whether it encoded them, as forms are: a space is `+`.
fn decoded(text: &str, encoded: bool) -> Result<String> {
    if !encoded {
        return Ok(text.to_owned());
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Error::new(Kind::Corrupt, format!("a listed key is not UTF-8: {text}")))
}

/// Everything but what a path may hold as it is.
const COPY_SOURCE: AsciiSet =
    NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

fn copy_source(bucket: &str, key: &str, version_id: Option<&str>) -> String {
    let key = utf8_percent_encode(key, &COPY_SOURCE);
    match version_id {
        Some(version) => format!("{bucket}/{key}?versionId={version}"),
        None => format!("{bucket}/{key}"),
    }
}

fn tag_header(tags: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = tags
        .iter()
        .map(|(k, v)| {
            format!(
                "{}={}",
                utf8_percent_encode(k, NON_ALPHANUMERIC),
                utf8_percent_encode(v, NON_ALPHANUMERIC)
            )
        })
        .collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_listings_are_decoded_only_where_the_server_encoded_them() {
        assert_eq!(decoded("a+b%2Bc%0A", true).unwrap(), "a b+c\n");
        assert_eq!(decoded("a+b%2B", false).unwrap(), "a+b%2B");
        assert_eq!(decoded("%FF", true).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn a_content_range_tells_offset_and_size() {
        assert_eq!(content_range("bytes 5-9/100").unwrap(), (5, 100));
        assert!(content_range("5-9/100").is_err());
    }

    #[test]
    fn copy_sources_keep_slashes_and_encode_the_rest() {
        assert_eq!(copy_source("b", "a/b c?+é", Some("v")), "b/a/b%20c%3F%2B%C3%A9?versionId=v");
    }
}
