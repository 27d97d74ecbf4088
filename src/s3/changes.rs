//! Changes of an in-memory S3 as values, and a log of them that outlives the process.
//!
//! The model has no clock and no chance in it, so repeating its changes in order makes it again, ids included.
//!
//! A record is `header length (u32), body length (u64), CRC-64 of both (u64), header (JSON), body`, big-endian.
//! Records are only ever appended; a torn last one is cut off at the next start.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::model::Model;
use super::types::*;
use crate::error::{Error, Kind, Result};

const LOG_NAME: &str = "changes.log";
const HEAD_BYTES: usize = 4 + 8 + 8;
/// A longer header or body is no record of ours.
const HEADER_MAX: u32 = 8 << 20;
const BODY_MAX: u64 = 6 << 30;

/// One change that worked. A body travels beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Change {
    CreateBucket(String, Option<String>),
    DeleteBucket(String),
    SetVersioning(String, bool),
    Put(PutRequest),
    Delete(DeleteRequest),
    Copy(CopyRequest),
    SetTags(String, String, BTreeMap<String, String>),
    CreateUpload(String, String, Attributes),
    UploadPart(Upload, u16, Option<Checksum>),
    UploadPartCopy(Upload, u16, PartSource),
    CompleteUpload(Upload, Vec<Part>, Condition),
    AbortUpload(Upload),
}

/// What a change is answered.
pub(super) enum Done {
    Nothing,
    Written(Written),
    Deleted(Deleted),
    Upload(Upload),
    Part(Part),
}

impl Done {
    pub(super) fn written(self) -> Result<Written> {
        if let Self::Written(written) = self { Ok(written) } else { Err(mixed_up()) }
    }
    pub(super) fn deleted(self) -> Result<Deleted> {
        if let Self::Deleted(deleted) = self { Ok(deleted) } else { Err(mixed_up()) }
    }
    pub(super) fn upload(self) -> Result<Upload> {
        if let Self::Upload(upload) = self { Ok(upload) } else { Err(mixed_up()) }
    }
    pub(super) fn part(self) -> Result<Part> {
        if let Self::Part(part) = self { Ok(part) } else { Err(mixed_up()) }
    }
}

fn mixed_up() -> Error {
    Error::new(Kind::Internal, "a change was answered as if it were another")
}

impl Change {
    pub(super) fn apply(self, model: &mut Model, body: Bytes, now: SystemTime) -> Result<Done> {
        Ok(match self {
            Self::CreateBucket(name, region) => {
                model.create_bucket(&name, region.as_deref(), now)?;
                Done::Nothing
            }
            Self::DeleteBucket(name) => {
                model.delete_bucket(&name)?;
                Done::Nothing
            }
            Self::SetVersioning(name, enabled) => {
                model.set_versioning(&name, enabled)?;
                Done::Nothing
            }
            Self::Put(request) => Done::Written(model.put(PutRequest { body, ..request }, now)?),
            Self::Delete(request) => Done::Deleted(model.delete(&request, now)?),
            Self::Copy(request) => Done::Written(model.copy(request, now)?),
            Self::SetTags(bucket, key, tags) => {
                model.set_tags(&bucket, &key, tags)?;
                Done::Nothing
            }
            Self::CreateUpload(bucket, key, attributes) => {
                Done::Upload(model.create_upload(&bucket, &key, attributes, now)?)
            }
            Self::UploadPart(upload, number, checksum) => {
                Done::Part(model.upload_part(&upload, number, body, checksum)?)
            }
            Self::UploadPartCopy(upload, number, source) => {
                Done::Part(model.upload_part_copy(&upload, number, &source)?)
            }
            Self::CompleteUpload(upload, parts, condition) => {
                Done::Written(model.complete_upload(&upload, &parts, &condition, now)?)
            }
            Self::AbortUpload(upload) => {
                model.abort_upload(&upload)?;
                Done::Nothing
            }
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    at: SystemTime,
    change: Change,
}

/// The log of one directory, held by one process.
pub(super) struct Log {
    file: File,
}

impl Log {
    /// Opens the log, gives every whole record to `replay`, and cuts off what is torn.
    pub(super) fn open(dir: &Path, mut replay: impl FnMut(Change, Bytes, SystemTime)) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(LOG_NAME);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::new(Kind::Local, format!("another process keeps its objects in {}", dir.display()))
        })?;
        let mut whole = 0;
        {
            let mut reader = BufReader::new(&file);
            while let Some((header, body, length)) = next_record(&mut reader)? {
                replay(header.change, body, header.at);
                whole += length;
            }
        }
        if file.metadata()?.len() > whole {
            tracing::warn!(path = %path.display(), "the end of the log was torn, and is dropped");
            file.set_len(whole)?;
        }
        file.seek(SeekFrom::Start(whole))?;
        Ok(Self { file })
    }

    pub(super) fn append(&mut self, change: &Change, body: &Bytes, at: SystemTime) -> Result<()> {
        let header = serde_json::to_vec(&Header { at, change: change.clone() })
            .map_err(|error| Error::new(Kind::Internal, "a change cannot be written").with_source(error))?;
        let mut record = Vec::with_capacity(HEAD_BYTES + header.len() + body.len());
        record.extend_from_slice(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_be_bytes());
        record.extend_from_slice(&(body.len() as u64).to_be_bytes());
        record.extend_from_slice(&checksum(&header, body).to_be_bytes());
        record.extend_from_slice(&header);
        record.extend_from_slice(body);
        // One write, so that a full disk or a crash tears this record and no other.
        let before = self.file.stream_position()?;
        if let Err(error) = self.file.write_all(&record) {
            self.file.set_len(before)?;
            self.file.seek(SeekFrom::Start(before))?;
            return Err(error.into());
        }
        Ok(())
    }
}

/// The next whole record and its length; `None` at the end, or where the rest is torn.
fn next_record(reader: &mut impl Read) -> Result<Option<(Header, Bytes, u64)>> {
    let mut head = [0; HEAD_BYTES];
    if !fill(reader, &mut head)? {
        return Ok(None);
    }
    let header_length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let mut wide = [0; 8];
    wide.copy_from_slice(&head[4..12]);
    let body_length = u64::from_be_bytes(wide);
    wide.copy_from_slice(&head[12..20]);
    let expected = u64::from_be_bytes(wide);
    if header_length > HEADER_MAX || body_length > BODY_MAX {
        return Ok(None);
    }
    let mut header = vec![0; header_length as usize];
    let mut body = vec![0; usize::try_from(body_length).unwrap_or(0)];
    if !fill(reader, &mut header)? || !fill(reader, &mut body)? || checksum(&header, &body) != expected {
        return Ok(None);
    }
    let Ok(parsed) = serde_json::from_slice(&header) else { return Ok(None) };
    let length = HEAD_BYTES as u64 + u64::from(header_length) + body_length;
    Ok(Some((parsed, body.into(), length)))
}

/// Fills the buffer; `false` where the file ends before.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn checksum(header: &[u8], body: &[u8]) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(header);
    digest.update(body);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::SystemClock;
    use crate::s3::{MemStore, Store};
    use crate::stats::Stats;

    fn open(dir: &Path) -> Result<MemStore> {
        MemStore::open_dir(dir, "us-east-1", Arc::new(SystemClock), Arc::new(Stats::default()))
    }

    fn put(key: &str, body: &'static str) -> PutRequest {
        PutRequest { bucket: "bucket".into(), key: key.into(), body: body.into(), ..PutRequest::default() }
    }

    #[tokio::test]
    async fn what_was_stored_is_there_again_and_a_torn_end_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (first, version) = {
            let store = open(dir.path()).unwrap();
            assert_eq!(open(dir.path()).unwrap_err().kind(), Kind::Local, "one process at a time");
            store.create_bucket("bucket", None).await.unwrap();
            store.set_versioning("bucket", true).await.unwrap();
            let first = store.put(put("k", "one")).await.unwrap();
            store.put(put("k", "two")).await.unwrap();
            let upload = store.create_upload("bucket", "parts", Attributes::default()).await.unwrap();
            let part = store.upload_part(&upload, 1, "part".into(), None).await.unwrap();
            store.complete_upload(&upload, vec![part], Condition::Absent).await.unwrap();
            (first.etag, first.version_id)
        };
        let log = dir.path().join(LOG_NAME);
        let whole = std::fs::metadata(&log).unwrap().len();
        OpenOptions::new().append(true).open(&log).unwrap().write_all(b"\0\0\0\x10torn").unwrap();
        let store = open(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(&log).unwrap().len(), whole);
        assert_eq!(store.head("bucket", "k", version.as_deref()).await.unwrap().etag, first);
        let parts = GetRequest { bucket: "bucket".into(), key: "parts".into(), ..GetRequest::default() };
        assert_eq!(store.get(parts).await.unwrap().bytes().await.unwrap(), "part");
        store.put(put("after", "x")).await.unwrap();
        drop(store);
        assert!(open(dir.path()).unwrap().head("bucket", "after", None).await.is_ok());
    }
}
