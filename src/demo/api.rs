//! S3's operations over a [`Store`]: each takes its input apart, asks the store, and dresses the answer.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::StreamBody;
use md5::{Digest, Md5};
use s3s::dto::{self, CopySource, ETagCondition, StreamingBlob, Timestamp};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, TrailingHeaders, s3_error};

use super::convert::{
    Encoding, attributes, checksum, checksum_fields, etag, failure, head_output, header_condition, hits,
    our_etag, our_tags, page_size, tag_set, timestamp, write_condition,
};
use super::encryption::{CustomerKey, customer_key, source_key};
use super::synthetic::{SYNTHETIC, Synthetic};
use crate::base::{ByteRange, Clock, ETag};
use crate::error::{Error, Kind};
use crate::s3::{
    Again, Attributes, BucketInfo, Checksum, Condition, CopyRequest, DeleteKey, DeleteRequest, GetOutput,
    GetRequest, ListPage, ListRequest, ListVersionsRequest, ListedObject, ObjectInfo, Part, PartSource,
    PutRequest, Store, Upload, Versioning, VersionsPage, require_equal, whole_checksum,
};

/// Marks a request whose conditions a fault rule takes away. Not done on the headers, which are signed.
#[derive(Clone, Copy)]
pub(super) struct IgnoreConditions;

/// Marks a request whose parts have to be of one size.
#[derive(Clone, Copy)]
pub(super) struct EqualParts;

pub(super) struct Api {
    pub(super) store: Arc<dyn Store>,
    pub(super) region: String,
    pub(super) clock: Arc<dyn Clock>,
    /// MD5s of the customers' keys of uploads, by their ids.
    pub(super) upload_keys: Mutex<HashMap<String, String>>,
    /// What the bucket of made-up objects has, where there is one.
    pub(super) synthetic: Option<Synthetic>,
}

/// S3's limit for one Put or part.
const BODY_MAX_BYTES: usize = 5 << 30;
/// A read that needs two looks at an object starts again when a write came between them.
const READ_ATTEMPTS_MAX: usize = 8;
const DELETE_MAX_KEYS: usize = 1000;

type Answer<T> = S3Result<S3Response<T>>;

fn ok<T>(output: T) -> Answer<T> {
    Ok(S3Response::new(output))
}

#[async_trait::async_trait]
impl S3 for Api {
    async fn list_buckets(&self, _: S3Request<dto::ListBucketsInput>) -> Answer<dto::ListBucketsOutput> {
        let buckets = self.store.list_buckets().await.map_err(fail)?;
        let buckets = buckets.into_iter().map(|bucket| dto::Bucket {
            bucket_region: Some(bucket.region.unwrap_or_else(|| self.region.clone())),
            creation_date: bucket.created.map(timestamp),
            name: Some(bucket.name),
        });
        ok(dto::ListBucketsOutput {
            buckets: Some(buckets.collect()),
            owner: Some(owner()),
            ..dto::ListBucketsOutput::default()
        })
    }

    async fn head_bucket(&self, req: S3Request<dto::HeadBucketInput>) -> Answer<dto::HeadBucketOutput> {
        let bucket = self.bucket(&req.input.bucket).await.map_err(fail)?;
        ok(dto::HeadBucketOutput {
            bucket_region: Some(bucket.region.unwrap_or_else(|| self.region.clone())),
            ..dto::HeadBucketOutput::default()
        })
    }

    async fn create_bucket(&self, req: S3Request<dto::CreateBucketInput>) -> Answer<dto::CreateBucketOutput> {
        let input = req.input;
        let region = input.create_bucket_configuration.and_then(|asked| asked.location_constraint);
        let region = region.as_ref().map(dto::BucketLocationConstraint::as_str);
        match self.store.create_bucket(&input.bucket, region).await {
            Ok(()) => ok(dto::CreateBucketOutput { location: Some(format!("/{}", input.bucket)) }),
            Err(error) if error.kind() == Kind::AlreadyExists => Err(s3_error!(
                BucketAlreadyOwnedByYou,
                "Your previous request to create the named bucket succeeded and you already own it."
            )),
            Err(error) => Err(fail(error)),
        }
    }

    async fn delete_bucket(&self, req: S3Request<dto::DeleteBucketInput>) -> Answer<dto::DeleteBucketOutput> {
        self.store.delete_bucket(&req.input.bucket).await.map_err(fail)?;
        ok(dto::DeleteBucketOutput::default())
    }

    async fn get_bucket_versioning(
        &self,
        req: S3Request<dto::GetBucketVersioningInput>,
    ) -> Answer<dto::GetBucketVersioningOutput> {
        let status = match self.store.versioning(&req.input.bucket).await.map_err(fail)? {
            Versioning::Never => None,
            Versioning::Enabled => Some(dto::BucketVersioningStatus::ENABLED),
            Versioning::Suspended => Some(dto::BucketVersioningStatus::SUSPENDED),
        };
        ok(dto::GetBucketVersioningOutput {
            status: status.map(dto::BucketVersioningStatus::from_static),
            ..dto::GetBucketVersioningOutput::default()
        })
    }

    async fn put_bucket_versioning(
        &self,
        req: S3Request<dto::PutBucketVersioningInput>,
    ) -> Answer<dto::PutBucketVersioningOutput> {
        let input = req.input;
        let status = input.versioning_configuration.status;
        let enabled = match status.as_ref().map(dto::BucketVersioningStatus::as_str) {
            Some(dto::BucketVersioningStatus::ENABLED) => true,
            Some(dto::BucketVersioningStatus::SUSPENDED) => false,
            _ => return Err(s3_error!(MalformedXML, "Status is Enabled or Suspended")),
        };
        self.store.set_versioning(&input.bucket, enabled).await.map_err(fail)?;
        ok(dto::PutBucketVersioningOutput::default())
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<dto::GetBucketLocationInput>,
    ) -> Answer<dto::GetBucketLocationOutput> {
        let bucket = self.bucket(&req.input.bucket).await.map_err(fail)?;
        let region = bucket.region.unwrap_or_else(|| self.region.clone());
        // The oldest region has no name here.
        let location = (region != "us-east-1").then(|| dto::BucketLocationConstraint::from(region));
        ok(dto::GetBucketLocationOutput { location_constraint: location })
    }

    async fn head_object(&self, req: S3Request<dto::HeadObjectInput>) -> Answer<dto::HeadObjectOutput> {
        let look = Look::from_head(&req);
        let info = self.head(&look).await.map_err(fail)?;
        look.check(&info)?;
        let span = look.span(&info)?;
        let mut output = head_output(&info, look.checksums && span.is_none());
        let mut response = S3Response::new(dto::HeadObjectOutput::default());
        if let Some(span) = span {
            output.content_length = i64::try_from(span.len()).ok();
            output.content_range = Some(content_range(span.start(), span.len(), info.size));
            response.status = Some(StatusCode::PARTIAL_CONTENT);
        }
        response.headers = tag_count(&info);
        response.output = output;
        Ok(response)
    }

    async fn get_object(&self, req: S3Request<dto::GetObjectInput>) -> Answer<dto::GetObjectOutput> {
        let look = Look::from_get(&req);
        for _ in 0..READ_ATTEMPTS_MAX {
            match self.read(&look).await {
                Err(error) if error.kind() == Kind::Stale => {}
                Err(error) => return Err(fail(error)),
                Ok(Err(answer)) => return Err(answer),
                Ok(Ok(output)) => return ok(output),
            }
        }
        Err(s3_error!(ConditionalRequestConflict, "The object changes faster than it can be read"))
    }

    async fn put_object(&self, req: S3Request<dto::PutObjectInput>) -> Answer<dto::PutObjectOutput> {
        let conditions = !ignores_conditions(&req.extensions);
        let (mut input, headers, trailers) = (req.input, req.headers, req.trailing_headers);
        let condition = match conditions {
            true => write_condition(input.if_match.as_ref(), input.if_none_match.as_ref())?,
            false => Condition::Any,
        };
        let attributes = attributes!(input);
        let received = receive(
            input.body.take(),
            input.content_length,
            input.content_md5.as_deref(),
            &headers,
            trailers,
        )
        .await?;
        let request = PutRequest {
            bucket: input.bucket,
            key: input.key,
            body: received.body,
            attributes,
            condition,
            checksum: received.checksum.clone(),
        };
        let written = self.store.put(request).await.map_err(fail)?;
        let sums = checksum_fields(received.checksum.as_slice());
        ok(dto::PutObjectOutput {
            checksum_crc32: sums.checksum_crc32,
            checksum_crc32c: sums.checksum_crc32c,
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_sha1: sums.checksum_sha1,
            checksum_sha256: sums.checksum_sha256,
            checksum_type: sums.checksum_type,
            e_tag: Some(etag(&written.etag)),
            version_id: written.version_id,
            ..dto::PutObjectOutput::default()
        })
    }

    async fn delete_object(&self, req: S3Request<dto::DeleteObjectInput>) -> Answer<dto::DeleteObjectOutput> {
        let conditions = !ignores_conditions(&req.extensions);
        let input = req.input;
        let condition = match input.if_match.filter(|_| conditions) {
            None => Condition::Any,
            Some(ETagCondition::ETag(tag)) => Condition::Matches(our_etag(&tag)),
            Some(ETagCondition::Any) => {
                Condition::Matches(self.store.head(&input.bucket, &input.key, None).await.map_err(fail)?.etag)
            }
        };
        let request =
            DeleteRequest { bucket: input.bucket, key: input.key, version_id: input.version_id, condition };
        let deleted = self.store.delete(request).await.map_err(fail)?;
        ok(dto::DeleteObjectOutput {
            delete_marker: deleted.delete_marker.then_some(true),
            version_id: deleted.version_id,
            ..dto::DeleteObjectOutput::default()
        })
    }

    async fn delete_objects(
        &self,
        req: S3Request<dto::DeleteObjectsInput>,
    ) -> Answer<dto::DeleteObjectsOutput> {
        let conditions = !ignores_conditions(&req.extensions);
        let dto::DeleteObjectsInput { bucket, mut delete, .. } = req.input;
        if !conditions {
            delete.objects.iter_mut().for_each(|object| object.e_tag = None);
        }
        if delete.objects.is_empty() || delete.objects.len() > DELETE_MAX_KEYS {
            return Err(s3_error!(MalformedXML, "A delete names 1 to 1,000 objects"));
        }
        let quiet = delete.quiet.unwrap_or(false);
        let plain = delete.objects.iter().all(|object| object.version_id.is_none());
        let outcomes = match plain {
            true => self.delete_keys(&bucket, delete.objects).await?,
            false => self.delete_each(&bucket, delete.objects).await,
        };
        let mut output = dto::DeleteObjectsOutput::default();
        for outcome in outcomes {
            match outcome {
                Ok(deleted) if !quiet => output.deleted.get_or_insert_default().push(deleted),
                Ok(_) => {}
                Err(error) => output.errors.get_or_insert_default().push(error),
            }
        }
        ok(output)
    }

    async fn copy_object(&self, req: S3Request<dto::CopyObjectInput>) -> Answer<dto::CopyObjectOutput> {
        let conditions = !ignores_conditions(&req.extensions);
        let (input, headers) = (req.input, req.headers);
        let source = Source::of(&input.copy_source)?;
        let condition = match conditions {
            true => write_condition(
                header_condition(&headers, "if-match")?.as_ref(),
                header_condition(&headers, "if-none-match")?.as_ref(),
            )?,
            false => Condition::Any,
        };
        let found = source.head(&*self.store).await.map_err(fail)?;
        source_key!(input).opens(found.attributes.encryption.as_ref())?;
        if conditions {
            SourceConditions {
                if_match: input.copy_source_if_match.as_ref(),
                if_none_match: input.copy_source_if_none_match.as_ref(),
                if_modified_since: input.copy_source_if_modified_since.as_ref(),
                if_unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
            }
            .check(&found)?;
        }
        let pinned = input.copy_source_if_match.as_ref().filter(|_| conditions);
        let (attributes, again) = self.copied_attributes(&input, &source, &found).await?;
        let request = CopyRequest {
            source_bucket: source.bucket,
            source_key: source.key,
            source_version_id: source.version_id,
            source_if_match: pinned.map(|_| found.etag.clone()),
            size: 0,
            bucket: input.bucket,
            key: input.key,
            condition,
            attributes,
            again,
        };
        let written = self.store.copy(request).await.map_err(fail)?;
        ok(dto::CopyObjectOutput {
            copy_object_result: Some(dto::CopyObjectResult {
                e_tag: Some(etag(&written.etag)),
                last_modified: Some(timestamp(self.clock.wall())),
                ..dto::CopyObjectResult::default()
            }),
            copy_source_version_id: found.version_id,
            version_id: written.version_id,
            ..dto::CopyObjectOutput::default()
        })
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<dto::ListObjectsV2Input>,
    ) -> Answer<dto::ListObjectsV2Output> {
        let input = req.input;
        let encoding = Encoding::of(input.encoding_type.as_ref())?;
        let max_keys = page_size(input.max_keys)?;
        let page = self
            .page(ListRequest {
                bucket: input.bucket.clone(),
                prefix: input.prefix.clone().unwrap_or_default(),
                delimiter: input.delimiter.clone().filter(|delimiter| !delimiter.is_empty()),
                start_after: input.start_after.clone().filter(|key| !key.is_empty()),
                continuation: input.continuation_token.clone(),
                max_keys: Some(max_keys),
            })
            .await?;
        let with_owner = input.fetch_owner.unwrap_or(false);
        let count = page.objects.len() + page.common_prefixes.len();
        ok(dto::ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(encoding.text(input.prefix.as_deref().unwrap_or(""))),
            max_keys: Some(max_keys.into()),
            key_count: i32::try_from(count).ok(),
            continuation_token: input.continuation_token,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next,
            contents: contents(page.objects, encoding, with_owner),
            common_prefixes: common_prefixes(&page.common_prefixes, encoding),
            delimiter: input.delimiter.map(|text| encoding.text(&text)),
            encoding_type: encoding.echo(),
            start_after: input.start_after.map(|text| encoding.text(&text)),
            ..dto::ListObjectsV2Output::default()
        })
    }

    async fn list_objects(&self, req: S3Request<dto::ListObjectsInput>) -> Answer<dto::ListObjectsOutput> {
        let input = req.input;
        let encoding = Encoding::of(input.encoding_type.as_ref())?;
        let max_keys = page_size(input.max_keys)?;
        let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
        let marker = input.marker.clone().filter(|marker| !marker.is_empty());
        let prefix = input.prefix.clone().unwrap_or_default();
        let page = self
            .page(ListRequest {
                bucket: input.bucket.clone(),
                start_after: marker.map(|marker| after_marker(marker, &prefix, delimiter.as_deref())),
                prefix,
                delimiter: delimiter.clone(),
                continuation: None,
                max_keys: Some(max_keys),
            })
            .await?;
        let last = page
            .objects
            .last()
            .map(|object| &object.key)
            .into_iter()
            .chain(page.common_prefixes.last())
            .max()
            .filter(|_| page.next.is_some());
        ok(dto::ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(encoding.text(input.prefix.as_deref().unwrap_or(""))),
            marker: Some(encoding.text(input.marker.as_deref().unwrap_or(""))),
            max_keys: Some(max_keys.into()),
            is_truncated: Some(page.next.is_some()),
            next_marker: last.filter(|_| delimiter.is_some()).map(|key| encoding.text(key)),
            common_prefixes: common_prefixes(&page.common_prefixes, encoding),
            contents: contents(page.objects, encoding, true),
            delimiter: input.delimiter.map(|text| encoding.text(&text)),
            encoding_type: encoding.echo(),
            ..dto::ListObjectsOutput::default()
        })
    }

    async fn list_object_versions(
        &self,
        req: S3Request<dto::ListObjectVersionsInput>,
    ) -> Answer<dto::ListObjectVersionsOutput> {
        let input = req.input;
        let encoding = Encoding::of(input.encoding_type.as_ref())?;
        let max_keys = page_size(input.max_keys)?;
        let page = self
            .versions_page(ListVersionsRequest {
                bucket: input.bucket.clone(),
                prefix: input.prefix.clone().unwrap_or_default(),
                delimiter: input.delimiter.clone().filter(|delimiter| !delimiter.is_empty()),
                key_marker: input.key_marker.clone().filter(|marker| !marker.is_empty()),
                version_id_marker: input.version_id_marker.clone().filter(|marker| !marker.is_empty()),
                max_keys: Some(max_keys),
            })
            .await?;
        let mut output = dto::ListObjectVersionsOutput {
            name: Some(input.bucket),
            prefix: Some(encoding.text(input.prefix.as_deref().unwrap_or(""))),
            key_marker: Some(encoding.text(input.key_marker.as_deref().unwrap_or(""))),
            version_id_marker: Some(input.version_id_marker.unwrap_or_default()),
            max_keys: Some(max_keys.into()),
            is_truncated: Some(page.next.is_some()),
            common_prefixes: common_prefixes(&page.common_prefixes, encoding),
            delimiter: input.delimiter.map(|text| encoding.text(&text)),
            encoding_type: encoding.echo(),
            ..dto::ListObjectVersionsOutput::default()
        };
        if let Some((key, version)) = page.next {
            output.next_key_marker = Some(encoding.text(&key));
            output.next_version_id_marker = version;
        }
        for version in page.versions {
            let key = Some(encoding.text(&version.key));
            let last_modified = Some(timestamp(version.last_modified));
            if version.is_delete_marker {
                output.delete_markers.get_or_insert_default().push(dto::DeleteMarkerEntry {
                    is_latest: Some(version.is_latest),
                    key,
                    last_modified,
                    owner: Some(owner()),
                    version_id: Some(version.version_id),
                });
            } else {
                output.versions.get_or_insert_default().push(dto::ObjectVersion {
                    e_tag: Some(etag(&version.etag)),
                    is_latest: Some(version.is_latest),
                    key,
                    last_modified,
                    owner: Some(owner()),
                    size: i64::try_from(version.size).ok(),
                    storage_class: Some(dto::ObjectVersionStorageClass::from_static("STANDARD")),
                    version_id: Some(version.version_id),
                    ..dto::ObjectVersion::default()
                });
            }
        }
        ok(output)
    }

    async fn get_object_tagging(
        &self,
        req: S3Request<dto::GetObjectTaggingInput>,
    ) -> Answer<dto::GetObjectTaggingOutput> {
        let input = req.input;
        self.only_current(&input.bucket, &input.key, input.version_id.as_deref()).await?;
        let tags = self.store.tags(&input.bucket, &input.key).await.map_err(fail)?;
        ok(dto::GetObjectTaggingOutput { tag_set: tag_set(tags), version_id: input.version_id })
    }

    async fn put_object_tagging(
        &self,
        req: S3Request<dto::PutObjectTaggingInput>,
    ) -> Answer<dto::PutObjectTaggingOutput> {
        let input = req.input;
        self.only_current(&input.bucket, &input.key, input.version_id.as_deref()).await?;
        let tags = our_tags(&input.tagging.tag_set)?;
        self.store.set_tags(&input.bucket, &input.key, tags).await.map_err(fail)?;
        ok(dto::PutObjectTaggingOutput { version_id: input.version_id })
    }

    async fn delete_object_tagging(
        &self,
        req: S3Request<dto::DeleteObjectTaggingInput>,
    ) -> Answer<dto::DeleteObjectTaggingOutput> {
        let input = req.input;
        self.only_current(&input.bucket, &input.key, input.version_id.as_deref()).await?;
        self.store.set_tags(&input.bucket, &input.key, Default::default()).await.map_err(fail)?;
        ok(dto::DeleteObjectTaggingOutput { version_id: input.version_id })
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<dto::CreateMultipartUploadInput>,
    ) -> Answer<dto::CreateMultipartUploadOutput> {
        let input = req.input;
        let attributes = attributes!(input);
        let key = customer_key!(input).checked()?;
        let upload = self.store.create_upload(&input.bucket, &input.key, attributes).await.map_err(fail)?;
        if let Some(md5) = key {
            self.keys().insert(upload.upload_id.clone(), md5);
        }
        ok(dto::CreateMultipartUploadOutput {
            bucket: Some(upload.bucket),
            key: Some(upload.key),
            upload_id: Some(upload.upload_id),
            checksum_algorithm: input.checksum_algorithm,
            checksum_type: input.checksum_type,
            ..dto::CreateMultipartUploadOutput::default()
        })
    }

    async fn upload_part(&self, req: S3Request<dto::UploadPartInput>) -> Answer<dto::UploadPartOutput> {
        let (mut input, headers, trailers) = (req.input, req.headers, req.trailing_headers);
        let number = part_number(input.part_number)?;
        let received = receive(
            input.body.take(),
            input.content_length,
            input.content_md5.as_deref(),
            &headers,
            trailers,
        )
        .await?;
        let key = customer_key!(input);
        let upload = Upload { bucket: input.bucket, key: input.key, upload_id: input.upload_id };
        self.check_key(&upload, &key)?;
        let part = self
            .store
            .upload_part(&upload, number, received.body.into(), received.checksum.clone())
            .await
            .map_err(fail)?;
        let sums = checksum_fields(received.checksum.as_slice());
        ok(dto::UploadPartOutput {
            checksum_crc32: sums.checksum_crc32,
            checksum_crc32c: sums.checksum_crc32c,
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_sha1: sums.checksum_sha1,
            checksum_sha256: sums.checksum_sha256,
            e_tag: Some(etag(&part.etag)),
            ..dto::UploadPartOutput::default()
        })
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<dto::UploadPartCopyInput>,
    ) -> Answer<dto::UploadPartCopyOutput> {
        let conditions = !ignores_conditions(&req.extensions);
        let input = req.input;
        let number = part_number(input.part_number)?;
        let source = Source::of(&input.copy_source)?;
        let found = source.head(&*self.store).await.map_err(fail)?;
        source_key!(input).opens(found.attributes.encryption.as_ref())?;
        if conditions {
            SourceConditions {
                if_match: input.copy_source_if_match.as_ref(),
                if_none_match: input.copy_source_if_none_match.as_ref(),
                if_modified_since: input.copy_source_if_modified_since.as_ref(),
                if_unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
            }
            .check(&found)?;
        }
        let range = copy_range(input.copy_source_range.as_deref(), found.size)?;
        let key = customer_key!(input);
        let upload = Upload { bucket: input.bucket, key: input.key, upload_id: input.upload_id };
        self.check_key(&upload, &key)?;
        let part = self.copy_part(&upload, number, source, range, &found).await.map_err(fail)?;
        ok(dto::UploadPartCopyOutput {
            copy_part_result: Some(dto::CopyPartResult {
                e_tag: Some(etag(&part.etag)),
                last_modified: Some(timestamp(self.clock.wall())),
                ..dto::CopyPartResult::default()
            }),
            copy_source_version_id: found.version_id,
            ..dto::UploadPartCopyOutput::default()
        })
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> Answer<dto::CompleteMultipartUploadOutput> {
        let conditions = !ignores_conditions(&req.extensions);
        let equal_parts = req.extensions.get::<EqualParts>().is_some();
        let input = req.input;
        let condition = match conditions {
            true => write_condition(input.if_match.as_ref(), input.if_none_match.as_ref())?,
            false => Condition::Any,
        };
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        if named.is_empty() {
            return Err(s3_error!(MalformedXML, "You must specify at least one part"));
        }
        let upload = Upload { bucket: input.bucket, key: input.key, upload_id: input.upload_id };
        let mut parts = Vec::with_capacity(named.len());
        let held = self.store.list_parts(&upload).await.map_err(fail)?;
        for part in named {
            let number = part_number(part.part_number.unwrap_or(0))?;
            let tag = part.e_tag.as_ref().map(our_etag).unwrap_or_else(|| ETag::new(""));
            let held = held.iter().find(|held| held.number == number);
            parts.push(Part {
                number,
                etag: tag,
                size: held.map_or(0, |held| held.size),
                checksum: held.and_then(|held| held.checksum.clone()),
            });
        }
        if equal_parts {
            require_equal(&parts).map_err(fail)?;
        }
        let whole = whole_checksum(&parts);
        let said = input.checksum_crc64nvme.as_ref();
        if said.zip(whole.as_ref()).is_some_and(|(said, whole)| *said != whole.value) {
            return Err(s3_error!(BadDigest, "The checksum is not that of the parts"));
        }
        let written = self.store.complete_upload(&upload, parts, condition).await.map_err(fail)?;
        let sums = checksum_fields(written.checksum.as_slice());
        self.keys().remove(&upload.upload_id);
        ok(dto::CompleteMultipartUploadOutput {
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_type: sums.checksum_type,
            location: Some(format!("/{}/{}", upload.bucket, upload.key)),
            bucket: Some(upload.bucket),
            key: Some(upload.key),
            e_tag: Some(etag(&written.etag)),
            version_id: written.version_id,
            ..dto::CompleteMultipartUploadOutput::default()
        })
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<dto::AbortMultipartUploadInput>,
    ) -> Answer<dto::AbortMultipartUploadOutput> {
        let input = req.input;
        let upload = Upload { bucket: input.bucket, key: input.key, upload_id: input.upload_id };
        self.store.abort_upload(&upload).await.map_err(fail)?;
        self.keys().remove(&upload.upload_id);
        ok(dto::AbortMultipartUploadOutput::default())
    }

    async fn list_parts(&self, req: S3Request<dto::ListPartsInput>) -> Answer<dto::ListPartsOutput> {
        let input = req.input;
        let max_parts = page_size(input.max_parts)?;
        let marker = input.part_number_marker.unwrap_or(0);
        let upload = Upload { bucket: input.bucket, key: input.key, upload_id: input.upload_id };
        let mut parts = self.store.list_parts(&upload).await.map_err(fail)?;
        parts.retain(|part| i32::from(part.number) > marker);
        parts.sort_by_key(|part| part.number);
        let truncated = parts.len() > usize::from(max_parts);
        parts.truncate(max_parts.into());
        let last = parts.last().map(|part| i32::from(part.number));
        let parts = parts.into_iter().map(|part| {
            let sums = checksum_fields(part.checksum.as_slice());
            dto::Part {
                checksum_crc32: sums.checksum_crc32,
                checksum_crc32c: sums.checksum_crc32c,
                checksum_crc64nvme: sums.checksum_crc64nvme,
                checksum_sha1: sums.checksum_sha1,
                checksum_sha256: sums.checksum_sha256,
                e_tag: Some(etag(&part.etag)),
                part_number: Some(part.number.into()),
                size: i64::try_from(part.size).ok(),
                ..dto::Part::default()
            }
        });
        ok(dto::ListPartsOutput {
            bucket: Some(upload.bucket),
            key: Some(upload.key),
            upload_id: Some(upload.upload_id),
            is_truncated: Some(truncated),
            max_parts: Some(max_parts.into()),
            part_number_marker: Some(marker),
            next_part_number_marker: Some(last.unwrap_or(marker)),
            parts: Some(parts.collect()),
            initiator: Some(dto::Initiator { id: owner().id, display_name: None }),
            owner: Some(owner()),
            storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
            ..dto::ListPartsOutput::default()
        })
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<dto::ListMultipartUploadsInput>,
    ) -> Answer<dto::ListMultipartUploadsOutput> {
        let input = req.input;
        let encoding = Encoding::of(input.encoding_type.as_ref())?;
        let max_uploads = page_size(input.max_uploads)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
        let listed = self.store.list_uploads(&input.bucket, &prefix).await.map_err(fail)?;
        let mut initiated = HashMap::new();
        let mut uploads = Vec::with_capacity(listed.len());
        for unfinished in listed {
            initiated.extend(unfinished.initiated.map(|at| (unfinished.upload.upload_id.clone(), at)));
            uploads.push(unfinished.upload);
        }
        uploads.sort_by(|a, b| (&a.key, &a.upload_id).cmp(&(&b.key, &b.upload_id)));
        if let Some(marker) = input.key_marker.as_ref().filter(|marker| !marker.is_empty()) {
            let id = input.upload_id_marker.as_ref().filter(|id| !id.is_empty());
            uploads.retain(|upload| {
                upload.key > *marker || (upload.key == *marker && id.is_some_and(|id| upload.upload_id > *id))
            });
        }
        let mut groups = BTreeSet::new();
        if let Some(delimiter) = &delimiter {
            uploads.retain(|upload| match group(&upload.key, &prefix, delimiter) {
                Some(group) => {
                    groups.insert(group);
                    false
                }
                None => true,
            });
        }
        let truncated = uploads.len() > usize::from(max_uploads);
        uploads.truncate(max_uploads.into());
        let mut output = dto::ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: Some(encoding.text(&prefix)),
            delimiter: delimiter.map(|text| encoding.text(&text)),
            key_marker: Some(encoding.text(input.key_marker.as_deref().unwrap_or(""))),
            upload_id_marker: Some(input.upload_id_marker.unwrap_or_default()),
            max_uploads: Some(max_uploads.into()),
            is_truncated: Some(truncated),
            common_prefixes: common_prefixes(&groups.into_iter().collect::<Vec<_>>(), encoding),
            encoding_type: encoding.echo(),
            ..dto::ListMultipartUploadsOutput::default()
        };
        if let Some(last) = uploads.last().filter(|_| truncated) {
            output.next_key_marker = Some(encoding.text(&last.key));
            output.next_upload_id_marker = Some(last.upload_id.clone());
        }
        let uploads = uploads.into_iter().map(|upload| dto::MultipartUpload {
            key: Some(encoding.text(&upload.key)),
            initiated: initiated.get(&upload.upload_id).map(|at| timestamp(*at)),
            upload_id: Some(upload.upload_id),
            initiator: Some(dto::Initiator { id: owner().id, display_name: None }),
            owner: Some(owner()),
            storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
            ..dto::MultipartUpload::default()
        });
        output.uploads = Some(uploads.collect());
        ok(output)
    }
}

impl Api {
    /// One attempt at a GET. The outer error is the store's, the inner one an answer decided here.
    async fn read(&self, look: &Look) -> Result<S3Result<dto::GetObjectOutput>, Error> {
        let mut request = GetRequest {
            bucket: look.bucket.clone(),
            key: look.key.clone(),
            range: None,
            if_match: None,
            version_id: look.version_id.clone(),
            checksum: false,
        };
        let mut partial = false;
        if look.needs_head() {
            let info = self.head(look).await?;
            if let Err(answer) = look.check(&info) {
                return Ok(Err(answer));
            }
            request.range = match look.span(&info) {
                Ok(span) => span,
                Err(answer) => return Ok(Err(answer)),
            };
            partial = request.range.is_some();
            request.if_match = Some(info.etag);
        }
        let found = self.get(request).await?;
        if let Err(answer) = look.customer_key.opens(found.info.attributes.encryption.as_ref()) {
            return Ok(Err(answer));
        }
        let head = head_output(&found.info, look.checksums && !partial);
        let length = found.length;
        let range = partial.then(|| content_range(found.offset, length, found.info.size));
        let frames = found.body.map(|chunk| chunk.map(http_body::Frame::data));
        let body = s3s::Body::http_body_unsync(StreamBody::new(frames));
        Ok(Ok(dto::GetObjectOutput {
            accept_ranges: head.accept_ranges,
            body: Some(StreamingBlob::from(body)),
            cache_control: head.cache_control,
            checksum_crc32: head.checksum_crc32,
            checksum_crc32c: head.checksum_crc32c,
            checksum_crc64nvme: head.checksum_crc64nvme,
            checksum_sha1: head.checksum_sha1,
            checksum_sha256: head.checksum_sha256,
            checksum_type: head.checksum_type,
            content_disposition: head.content_disposition,
            content_encoding: head.content_encoding,
            content_language: head.content_language,
            content_length: i64::try_from(length).ok(),
            content_range: range,
            content_type: head.content_type,
            e_tag: head.e_tag,
            last_modified: head.last_modified,
            metadata: head.metadata,
            bucket_key_enabled: head.bucket_key_enabled,
            expires: head.expires,
            restore: head.restore,
            server_side_encryption: head.server_side_encryption,
            sse_customer_algorithm: head.sse_customer_algorithm,
            sse_customer_key_md5: head.sse_customer_key_md5,
            ssekms_key_id: head.ssekms_key_id,
            storage_class: head.storage_class,
            website_redirect_location: head.website_redirect_location,
            tag_count: i32::try_from(found.info.tag_count).ok().filter(|count| *count > 0),
            version_id: head.version_id,
            ..dto::GetObjectOutput::default()
        }))
    }

    fn synthetic(&self, bucket: &str) -> Option<Synthetic> {
        self.synthetic.filter(|_| bucket == SYNTHETIC)
    }

    async fn bucket(&self, name: &str) -> Result<BucketInfo, Error> {
        match self.synthetic(name) {
            Some(made) => Ok(made.bucket(&self.region)),
            None => self.store.head_bucket(name).await,
        }
    }

    async fn head(&self, look: &Look) -> Result<ObjectInfo, Error> {
        match self.synthetic(&look.bucket) {
            Some(made) => made.head(&look.key),
            None => self.store.head(&look.bucket, &look.key, look.version_id.as_deref()).await,
        }
    }

    async fn get(&self, request: GetRequest) -> Result<GetOutput, Error> {
        match self.synthetic(&request.bucket) {
            Some(made) => made.get(&request),
            None => self.store.get(request).await,
        }
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.upload_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Parts are encrypted as it was said when their upload began.
    fn check_key(&self, upload: &Upload, key: &CustomerKey) -> S3Result<()> {
        if self.keys().get(&upload.upload_id) == key.checked()?.as_ref() {
            return Ok(());
        }
        Err(s3_error!(
            InvalidRequest,
            "The multipart upload initiate requested encryption. Subsequent part requests must include the \
             appropriate encryption parameters."
        ))
    }

    async fn page(&self, request: ListRequest) -> S3Result<ListPage> {
        if request.max_keys == Some(0) {
            self.bucket(&request.bucket).await.map_err(fail)?;
            return Ok(ListPage::default());
        }
        match self.synthetic(&request.bucket) {
            Some(made) => made.list(&request).map_err(fail),
            None => self.store.list(request).await.map_err(fail),
        }
    }

    async fn versions_page(&self, request: ListVersionsRequest) -> S3Result<VersionsPage> {
        if request.max_keys == Some(0) {
            self.store.head_bucket(&request.bucket).await.map_err(fail)?;
            return Ok(VersionsPage::default());
        }
        self.store.list_versions(request).await.map_err(fail)
    }

    async fn delete_keys(
        &self,
        bucket: &str,
        objects: Vec<dto::ObjectIdentifier>,
    ) -> S3Result<Vec<Result<dto::DeletedObject, dto::Error>>> {
        let entry = |object: dto::ObjectIdentifier| {
            let etag = object.e_tag.as_ref().map(our_etag);
            DeleteKey { key: object.key, etag }
        };
        let keys = objects.into_iter().map(entry).collect();
        let outcomes = self.store.delete_many(bucket, keys).await.map_err(fail)?;
        let outcomes = outcomes.into_iter().map(|(key, outcome)| match outcome {
            Ok(()) => Ok(dto::DeletedObject { key: Some(key), ..dto::DeletedObject::default() }),
            Err(error) => Err(delete_error(key, None, error)),
        });
        Ok(outcomes.collect())
    }

    async fn delete_each(
        &self,
        bucket: &str,
        objects: Vec<dto::ObjectIdentifier>,
    ) -> Vec<Result<dto::DeletedObject, dto::Error>> {
        let mut outcomes = Vec::with_capacity(objects.len());
        for object in objects {
            let request = DeleteRequest {
                bucket: bucket.to_owned(),
                key: object.key.clone(),
                version_id: object.version_id.clone(),
                condition: object
                    .e_tag
                    .as_ref()
                    .map_or(Condition::Any, |tag| Condition::Matches(our_etag(tag))),
            };
            outcomes.push(match self.store.delete(request).await {
                Ok(deleted) => Ok(dto::DeletedObject {
                    delete_marker: deleted.delete_marker.then_some(true),
                    delete_marker_version_id: deleted.version_id.filter(|_| deleted.delete_marker),
                    key: Some(object.key),
                    version_id: object.version_id,
                }),
                Err(error) => Err(delete_error(object.key, object.version_id, error)),
            });
        }
        outcomes
    }

    /// What the copy's attributes become, `None` where they are the source's, and what it never takes from there.
    async fn copied_attributes(
        &self,
        input: &dto::CopyObjectInput,
        source: &Source,
        found: &ObjectInfo,
    ) -> S3Result<(Option<Attributes>, Again)> {
        let asks_replace = |directive: Option<&str>| match directive {
            None | Some("COPY") => Ok(false),
            Some("REPLACE") => Ok(true),
            Some(_) => Err(s3_error!(InvalidArgument, "A directive is COPY or REPLACE")),
        };
        let metadata = asks_replace(input.metadata_directive.as_ref().map(dto::MetadataDirective::as_str))?;
        let tags = asks_replace(input.tagging_directive.as_ref().map(dto::TaggingDirective::as_str))?;
        let onto_itself = source.bucket == input.bucket && source.key == input.key;
        let named = attributes!(*input);
        let again = Again::of(&named);
        if onto_itself && source.version_id.is_none() && !metadata && again == Again::default() {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without \
                 changing the object's metadata, storage class, website redirect location or encryption \
                 attributes."
            ));
        }
        if !metadata && !tags {
            return Ok((None, again));
        }
        let mut attributes =
            if metadata { named.clone() } else { again.clone().lay_over(found.attributes.clone()) };
        attributes.tags = if tags {
            named.tags
        } else {
            self.store.tags(&source.bucket, &source.key).await.map_err(fail)?
        };
        Ok((Some(attributes), again))
    }

    /// An older version travels through here, because the store copies parts of the current one alone.
    async fn copy_part(
        &self,
        upload: &Upload,
        number: u16,
        source: Source,
        range: ByteRange,
        found: &ObjectInfo,
    ) -> Result<Part, Error> {
        if source.version_id.is_none() {
            let source = PartSource {
                bucket: source.bucket,
                key: source.key,
                range,
                if_match: Some(found.etag.clone()),
            };
            return self.store.upload_part_copy(upload, number, source).await;
        }
        let request = GetRequest {
            bucket: source.bucket,
            key: source.key,
            range: Some(range),
            if_match: None,
            version_id: source.version_id,
            checksum: false,
        };
        let body = self.store.get(request).await?.bytes().await?;
        self.store.upload_part(upload, number, body.into(), None).await
    }

    /// The store knows tags of current versions.
    async fn only_current(&self, bucket: &str, key: &str, version_id: Option<&str>) -> S3Result<()> {
        let Some(version_id) = version_id else { return Ok(()) };
        let current = self.store.head(bucket, key, None).await.map_err(fail)?.version_id;
        if current.as_deref() == Some(version_id) {
            return Ok(());
        }
        Err(s3_error!(NotImplemented, "Tags of versions that are not current are not kept here"))
    }
}

/// What GET and HEAD ask.
struct Look {
    bucket: String,
    key: String,
    version_id: Option<String>,
    range: Option<dto::Range>,
    part_number: Option<i32>,
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
    if_modified_since: Option<Timestamp>,
    if_unmodified_since: Option<Timestamp>,
    checksums: bool,
    customer_key: CustomerKey,
}

/// The two inputs share these fields, but no type.
macro_rules! look {
    ($req:expr) => {{
        let conditions = !ignores_conditions(&$req.extensions);
        let input = &$req.input;
        Look {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            version_id: input.version_id.clone(),
            range: input.range,
            part_number: input.part_number,
            if_match: input.if_match.clone().filter(|_| conditions),
            if_none_match: input.if_none_match.clone().filter(|_| conditions),
            if_modified_since: input.if_modified_since.clone().filter(|_| conditions),
            if_unmodified_since: input.if_unmodified_since.clone().filter(|_| conditions),
            customer_key: customer_key!(input),
            checksums: input.checksum_mode.as_ref().is_some_and(|mode| mode.as_str() == "ENABLED"),
        }
    }};
}

impl Look {
    fn from_head(req: &S3Request<dto::HeadObjectInput>) -> Self {
        look!(req)
    }

    fn from_get(req: &S3Request<dto::GetObjectInput>) -> Self {
        look!(req)
    }

    fn needs_head(&self) -> bool {
        self.range.is_some()
            || self.part_number.is_some()
            || self.if_match.is_some()
            || self.if_none_match.is_some()
            || self.if_modified_since.is_some()
            || self.if_unmodified_since.is_some()
    }

    /// In the order of precedence that HTTP gives the four conditions.
    fn check(&self, info: &ObjectInfo) -> S3Result<()> {
        self.customer_key.opens(info.attributes.encryption.as_ref())?;
        let unmodified = self.if_unmodified_since.as_ref().is_none_or(|time| seconds(info) <= *time);
        let holds = match &self.if_match {
            Some(wanted) => hits(wanted, &info.etag),
            None => unmodified,
        };
        if !holds {
            return Err(precondition_failed());
        }
        let modified = self.if_modified_since.as_ref().is_none_or(|time| seconds(info) > *time);
        let fresh = match &self.if_none_match {
            Some(known) => !hits(known, &info.etag),
            None => modified,
        };
        if fresh { Ok(()) } else { Err(not_modified(info)) }
    }

    /// The bytes asked for; `None` for all of them.
    fn span(&self, info: &ObjectInfo) -> S3Result<Option<ByteRange>> {
        match (self.part_number, &self.range) {
            (None, None) => Ok(None),
            (Some(1), None) if !info.etag.as_str().contains('-') => Ok(ByteRange::new(0, info.size)),
            (Some(_), _) => {
                Err(s3_error!(NotImplemented, "Objects are not read by part number here; ask for a range"))
            }
            (None, Some(range)) => {
                let span = range.check(info.size).map_err(|_| invalid_range(info.size))?;
                Ok(Some(ByteRange::new(span.start, span.end).ok_or_else(|| invalid_range(info.size))?))
            }
        }
    }
}

/// Where a copy comes from.
struct Source {
    bucket: String,
    key: String,
    version_id: Option<String>,
}

impl Source {
    fn of(source: &CopySource) -> S3Result<Self> {
        match source {
            CopySource::Bucket { bucket, key, version_id } => Ok(Self {
                bucket: bucket.to_string(),
                key: key.to_string(),
                version_id: version_id.as_ref().map(ToString::to_string),
            }),
            _ => Err(s3_error!(NotImplemented, "A copy's source is a bucket and a key")),
        }
    }

    async fn head(&self, store: &dyn Store) -> Result<ObjectInfo, Error> {
        store.head(&self.bucket, &self.key, self.version_id.as_deref()).await
    }
}

struct SourceConditions<'a> {
    if_match: Option<&'a ETagCondition>,
    if_none_match: Option<&'a ETagCondition>,
    if_modified_since: Option<&'a Timestamp>,
    if_unmodified_since: Option<&'a Timestamp>,
}

impl SourceConditions<'_> {
    fn check(&self, info: &ObjectInfo) -> S3Result<()> {
        let matched = match self.if_match {
            Some(wanted) => hits(wanted, &info.etag),
            None => self.if_unmodified_since.is_none_or(|time| seconds(info) <= *time),
        };
        let fresh = match self.if_none_match {
            Some(known) => !hits(known, &info.etag),
            None => self.if_modified_since.is_none_or(|time| seconds(info) > *time),
        };
        if matched && fresh { Ok(()) } else { Err(precondition_failed()) }
    }
}

struct Received {
    body: Bytes,
    checksum: Option<Checksum>,
}

/// Takes a body in and checks its length and `Content-MD5`; the other checksums are the store's to check.
async fn receive(
    body: Option<StreamingBlob>,
    length: Option<i64>,
    content_md5: Option<&str>,
    headers: &HeaderMap,
    trailers: Option<TrailingHeaders>,
) -> S3Result<Received> {
    let length = length.and_then(|length| usize::try_from(length).ok());
    if length.is_some_and(|length| length > BODY_MAX_BYTES) {
        return Err(s3_error!(EntityTooLarge));
    }
    let mut bytes = BytesMut::with_capacity(length.unwrap_or(0));
    if let Some(mut body) = body {
        while let Some(chunk) = body.next().await {
            let chunk =
                chunk.map_err(|error| s3_error!(IncompleteBody, "The body did not arrive: {error}"))?;
            if bytes.len() + chunk.len() > BODY_MAX_BYTES {
                return Err(s3_error!(EntityTooLarge));
            }
            bytes.extend_from_slice(&chunk);
        }
    }
    if length.is_some_and(|length| length != bytes.len()) {
        return Err(s3_error!(IncompleteBody, "The body has {} bytes, not those announced", bytes.len()));
    }
    if let Some(expected) = content_md5 {
        let actual = base64::engine::general_purpose::STANDARD.encode(Md5::digest(&bytes));
        if actual != expected.trim() {
            return Err(s3_error!(
                BadDigest,
                "The Content-MD5 you specified did not match what we received."
            ));
        }
    }
    let trailing = trailers.and_then(|trailers| trailers.read(checksum)).flatten();
    Ok(Received { body: bytes.freeze(), checksum: trailing.or_else(|| checksum(headers)) })
}

fn ignores_conditions(extensions: &http::Extensions) -> bool {
    extensions.get::<IgnoreConditions>().is_some()
}

fn fail(error: Error) -> S3Error {
    failure(&error)
}

fn precondition_failed() -> S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

fn not_modified(info: &ObjectInfo) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    error.set_status_code(StatusCode::NOT_MODIFIED);
    if let Ok(value) = HeaderValue::from_str(&info.etag.quoted()) {
        error.set_headers(HeaderMap::from_iter([(http::header::ETAG, value)]));
    }
    error
}

fn invalid_range(size: u64) -> S3Error {
    let mut error = s3_error!(InvalidRange, "The requested range is not satisfiable");
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        headers.insert(http::header::CONTENT_RANGE, value);
    }
    error.set_headers(headers);
    error
}

/// An object's time as its header tells it: whole seconds.
fn seconds(info: &ObjectInfo) -> Timestamp {
    let since = info.last_modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    timestamp(std::time::UNIX_EPOCH + std::time::Duration::from_secs(since.as_secs()))
}

fn content_range(offset: u64, length: u64, size: u64) -> String {
    format!("bytes {offset}-{}/{size}", (offset + length).saturating_sub(1))
}

fn tag_count(info: &ObjectInfo) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if info.tag_count > 0 {
        headers.insert("x-amz-tagging-count", HeaderValue::from(info.tag_count));
    }
    headers
}

fn part_number(number: i32) -> S3Result<u16> {
    u16::try_from(number)
        .ok()
        .filter(|number| (1..=10_000).contains(number))
        .ok_or_else(|| s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000"))
}

/// `bytes=first-last`, or the whole source. Unlike GET, nothing is clamped.
fn copy_range(text: Option<&str>, size: u64) -> S3Result<ByteRange> {
    let range = match text {
        None => ByteRange::new(0, size),
        Some(text) => match dto::Range::parse(text) {
            Ok(dto::Range::Int { first, last: Some(last) }) => ByteRange::new(first, last + 1),
            _ => return Err(s3_error!(InvalidArgument, "x-amz-copy-source-range is bytes=first-last")),
        },
    };
    range.filter(|range| range.end() <= size).ok_or_else(|| {
        s3_error!(InvalidArgument, "Range specified is not valid for source object of size: {size}")
    })
}

/// Where version 1 of the listing goes on. A marker that is a common prefix stands for all keys under it.
fn after_marker(marker: String, prefix: &str, delimiter: Option<&str>) -> String {
    let stands_for_group = delimiter
        .and_then(|delimiter| group(&marker, prefix, delimiter))
        .is_some_and(|group| group == marker);
    if stands_for_group { format!("{marker}{}", char::MAX) } else { marker }
}

/// The common prefix a key falls into.
fn group(key: &str, prefix: &str, delimiter: &str) -> Option<String> {
    let rest = key.strip_prefix(prefix)?;
    let end = prefix.len() + rest.find(delimiter)? + delimiter.len();
    Some(key[..end].to_owned())
}

fn contents(objects: Vec<ListedObject>, encoding: Encoding, with_owner: bool) -> Option<Vec<dto::Object>> {
    let objects = objects.into_iter().map(|object| dto::Object {
        e_tag: Some(etag(&object.etag)),
        key: Some(encoding.text(&object.key)),
        last_modified: Some(timestamp(object.last_modified)),
        owner: with_owner.then(owner),
        restore_status: object.restored.map(|restored| dto::RestoreStatus {
            is_restore_in_progress: Some(!restored),
            restore_expiry_date: None,
        }),
        size: i64::try_from(object.size).ok(),
        storage_class: Some(dto::ObjectStorageClass::from(
            object.storage_class.unwrap_or_else(|| "STANDARD".to_owned()),
        )),
        ..dto::Object::default()
    });
    Some(objects.collect())
}

fn common_prefixes(prefixes: &[String], encoding: Encoding) -> Option<Vec<dto::CommonPrefix>> {
    let prefixes = prefixes.iter().map(|prefix| dto::CommonPrefix { prefix: Some(encoding.text(prefix)) });
    Some(prefixes.collect())
}

fn delete_error(key: String, version_id: Option<String>, error: Error) -> dto::Error {
    let answer = failure(&error);
    dto::Error {
        code: Some(answer.code().as_str().to_owned()),
        key: Some(key),
        message: Some(error.message().to_owned()),
        version_id,
    }
}

fn owner() -> dto::Owner {
    dto::Owner { display_name: Some("pailfs".to_owned()), id: Some("pailfs-demo".to_owned()) }
}
