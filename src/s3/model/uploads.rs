//! Uploads in parts.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

use super::{Model, Stored, check_key, check_metadata, precondition_failed, refused, verified};
use crate::error::{Error, Kind, Result};
use crate::s3::limits;
use crate::s3::types::*;
use crate::s3::{content_etag, multipart_etag};

#[derive(Clone, Debug)]
pub(super) struct Pending {
    key: String,
    attributes: Attributes,
    initiated: SystemTime,
    parts: BTreeMap<u16, (Part, Bytes)>,
}

impl Model {
    pub fn create_upload(
        &mut self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
        now: SystemTime,
    ) -> Result<Upload> {
        check_key(key)?;
        check_metadata(&attributes)?;
        self.bucket(bucket)?;
        let upload_id = self.fresh_id("u");
        let pending = Pending { key: key.to_owned(), attributes, initiated: now, parts: BTreeMap::new() };
        self.bucket_mut(bucket)?.uploads.insert(upload_id.clone(), pending);
        Ok(Upload { bucket: bucket.to_owned(), key: key.to_owned(), upload_id })
    }

    pub fn upload_part(
        &mut self,
        upload: &Upload,
        number: u16,
        body: Bytes,
        checksum: Option<Checksum>,
    ) -> Result<Part> {
        if number == 0 || number > limits::PARTS_MAX {
            return Err(refused(
                Kind::InvalidArgument,
                400,
                "InvalidArgument",
                "part numbers go from 1 to 10,000",
            ));
        }
        self.pending(upload)?;
        let checksum = verified(checksum, &body)?.into_iter().next();
        let etag = content_etag(&body);
        let part = Part { number, etag, size: body.len() as u64, checksum };
        self.pending_mut(upload)?.parts.insert(number, (part.clone(), body));
        Ok(part)
    }

    pub fn upload_part_copy(&mut self, upload: &Upload, number: u16, source: &PartSource) -> Result<Part> {
        let body = {
            let (_, object) = self.bucket(&source.bucket)?.find(&source.key, None)?;
            if source.if_match.as_ref().is_some_and(|etag| *etag != object.etag) {
                return Err(precondition_failed(Kind::Stale));
            }
            if is_archived(object.attributes.storage_class.as_deref(), object.restored) {
                return Err(refused(Kind::Archived, 403, "InvalidObjectState", "the source is archived"));
            }
            if source.range.end() > object.body.len() as u64 {
                return Err(refused(
                    Kind::InvalidRange,
                    416,
                    "InvalidRange",
                    "the range ends past the source's end",
                ));
            }
            object.body.slice(super::index(source.range.start())..super::index(source.range.end()))
        };
        self.upload_part(upload, number, body, None)
    }

    pub fn complete_upload(
        &mut self,
        upload: &Upload,
        parts: &[Part],
        condition: &Condition,
        now: SystemTime,
    ) -> Result<Written> {
        let (body, attributes) = {
            let pending = self.pending(upload)?;
            if parts.is_empty() {
                return Err(refused(
                    Kind::InvalidArgument,
                    400,
                    "MalformedXML",
                    "an object has at least one part",
                ));
            }
            if parts.windows(2).any(|pair| pair[0].number >= pair[1].number) {
                return Err(refused(
                    Kind::InvalidArgument,
                    400,
                    "InvalidPartOrder",
                    "parts have to be in order",
                ));
            }
            let mut body = BytesMut::new();
            for (i, wanted) in parts.iter().enumerate() {
                let held = pending.parts.get(&wanted.number).filter(|(held, _)| held.etag == wanted.etag);
                let (_, bytes) = held.ok_or_else(|| {
                    refused(Kind::InvalidArgument, 400, "InvalidPart", "a part is missing or another")
                })?;
                if i + 1 < parts.len() && (bytes.len() as u64) < limits::PART_MIN {
                    return Err(refused(
                        Kind::InvalidArgument,
                        400,
                        "EntityTooSmall",
                        "only the last part may be under 5 MiB",
                    ));
                }
                body.extend_from_slice(bytes);
            }
            (body.freeze(), pending.attributes.clone())
        };
        self.bucket(&upload.bucket)?.check(&upload.key, condition)?;
        let object = Stored {
            etag: self.etag_of(&attributes, multipart_etag(parts)),
            checksums: vec![crate::s3::checksum_of(&body)],
            body,
            attributes,
            restored: false,
        };
        let written = self.store(&upload.bucket, &upload.key, object, now)?;
        self.bucket_mut(&upload.bucket)?.uploads.remove(&upload.upload_id);
        Ok(written)
    }

    pub fn abort_upload(&mut self, upload: &Upload) -> Result<()> {
        self.pending(upload)?;
        self.bucket_mut(&upload.bucket)?.uploads.remove(&upload.upload_id);
        Ok(())
    }

    pub fn list_parts(&self, upload: &Upload) -> Result<Vec<Part>> {
        Ok(self.pending(upload)?.parts.values().map(|(part, _)| part.clone()).collect())
    }

    pub fn list_uploads(&self, bucket: &str, prefix: &str) -> Result<Vec<Unfinished>> {
        let mut uploads: Vec<Unfinished> = self
            .bucket(bucket)?
            .uploads
            .iter()
            .filter(|(_, pending)| pending.key.starts_with(prefix))
            .map(|(id, pending)| {
                let (bucket, key, upload_id) = (bucket.to_owned(), pending.key.clone(), id.clone());
                Unfinished { upload: Upload { bucket, key, upload_id }, initiated: Some(pending.initiated) }
            })
            .collect();
        uploads
            .sort_by(|a, b| (&a.upload.key, &a.upload.upload_id).cmp(&(&b.upload.key, &b.upload.upload_id)));
        Ok(uploads)
    }

    fn pending(&self, upload: &Upload) -> Result<&Pending> {
        let pending = self.bucket(&upload.bucket)?.uploads.get(&upload.upload_id);
        pending.filter(|pending| pending.key == upload.key).ok_or_else(no_such_upload)
    }

    fn pending_mut(&mut self, upload: &Upload) -> Result<&mut Pending> {
        self.bucket_mut(&upload.bucket)?.uploads.get_mut(&upload.upload_id).ok_or_else(no_such_upload)
    }
}

fn no_such_upload() -> Error {
    refused(Kind::NotFound, 404, "NoSuchUpload", "no such upload")
}
