//! Reading an open file: what was written here first, then its object, in one version.

use std::sync::Arc;

use bytes::Bytes;

use super::File;
use super::copied::Copied;
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::fs::{Fs, lock};
use crate::read::{Cursor, Object, ObjectId};
use crate::s3::ObjectInfo;
use crate::tree::{Ino, VolumeId};
use crate::write::{Segment, Staging, What};

/// How often a read follows its file to the next version that this mount makes.
const READ_ROUNDS_MAX: u32 = 8;

/// How to answer a read.
pub(in crate::fs) enum Source {
    /// All of it is this version of the object, up to this length.
    Object(Object),
    /// Runs of bytes, each from its own source.
    Mixed {
        segments: Vec<Segment>,
        object: Option<Object>,
        copies: Vec<Copied>,
        staging: Option<Arc<Staging>>,
    },
}

impl Source {
    fn object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            Self::Mixed { object, .. } => object.as_ref(),
        }
    }

    /// How many runs are copied from other objects.
    fn copied(&self) -> usize {
        match self {
            Self::Object(_) => 0,
            Self::Mixed { segments, .. } => {
                segments.iter().filter(|segment| matches!(segment.what, What::Copied(..))).count()
            }
        }
    }
}

impl File {
    /// Where the bytes of a range come from now; `None` past the end.
    pub(in crate::fs) fn source(&self, offset: u64, len: u64) -> Result<Option<(ByteRange, Source)>> {
        let state = lock(&self.state);
        if state.lost {
            return Err(Error::new(Kind::Stale, "another client replaced the file; open it again"));
        }
        let end = offset.saturating_add(len).min(state.extents.len());
        let Some(range) = ByteRange::new(offset, end) else { return Ok(None) };
        let source = match &state.object {
            Some(object) if state.is_saved() && !state.orphan && !state.fetched => {
                Source::Object(object.clone())
            }
            object => {
                let segments = state.segments(range);
                let of_object = segments.iter().any(|segment| segment.what == What::Base);
                let object = object.clone().filter(|_| of_object);
                let copies = state.copies.clone();
                Source::Mixed { segments, object, copies, staging: state.staging.clone() }
            }
        };
        Ok(Some((range, source)))
    }
}

impl Fs {
    /// Reads a range of an open file. Slices, in order; fewer bytes only at the end of the file.
    pub(in crate::fs) async fn read_file(
        &self,
        file: &Arc<File>,
        cursor: &Cursor,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Bytes>> {
        let mut asked = (None, 0);
        let mut failure = None;
        // A commit or rename on this mount may replace an object between the two steps; then the bytes are
        // in the new one, or here. Where it is the same still, another client replaced it.
        for _ in 0..READ_ROUNDS_MAX {
            let Some((range, source)) = file.source(offset, len)? else { return Ok(Vec::new()) };
            let from = source.object().map(|object| object.id.clone());
            let copied = source.copied();
            if failure.is_some() && asked == (from.clone(), copied) {
                break;
            }
            let whole = matches!(source, Source::Object(_));
            match (self.read_source(source, cursor, range).await, &from) {
                (Err(error), from) if matches!(error.kind(), Kind::NotFound | Kind::Stale) => {
                    if let Some(from) = from {
                        self.renew(file, from).await?;
                        self.hear_of_saves(file).await?;
                    }
                    failure = Some(error);
                }
                (Ok(slices), Some(from)) if whole && !file.confirm(self, from) => drop(slices),
                (Ok(Some(slices)), _) => return Ok(slices),
                // S3 has to have the file before what was let go can be read.
                (Ok(None), _) => Box::pin(self.commit(file)).await?,
                (Err(error), _) => return Err(error),
            }
            asked = (from, copied);
        }
        Err(match failure {
            Some(error) if !error.is_not_found() => error,
            _ => Error::new(Kind::Stale, "the object was removed by another client"),
        })
    }

    /// Where a save of this mount has replaced the object and nobody has heard of it, because its answer is on its way or
    /// was lost, the file goes on from there.
    async fn hear_of_saves(&self, file: &Arc<File>) -> Result<()> {
        if !file.has_attempts() {
            return Ok(());
        }
        loop {
            let shared = self.share_file(file).await?;
            let _turn = file.commit.lock().await;
            if self.is_at(file, &shared)? {
                return self.landed(file, shared.id, &shared.volume, &shared.key).await.map(drop);
            }
        }
    }

    /// A file that was opened by a listing's word goes on with the newest version, if there was a newer one.
    pub(in crate::fs) async fn renew(&self, file: &File, from: &ObjectId) -> Result<()> {
        let Some(size) = file.renewable(from) else { return Ok(()) };
        let volume = self.volume(VolumeId(from.volume))?;
        let info = match volume.store.head(&volume.bucket, &from.key, None).await {
            Err(error) if error.is_not_found() => return Ok(()),
            answer => answer?,
        };
        let object = volume.object(from.volume, &from.key, info.etag.clone(), info.size);
        if file.renew(from, object, volume.new_objects.rewritten(info.attributes.clone())) {
            file.hold(self);
            self.renewed(file.ino, &info);
            // The kernel would end every read at the old size. A smaller one it learns from the short answer, but
            // only if its attributes are left alone until then.
            if info.size > size {
                self.news.tell(file.ino).await;
            }
        }
        Ok(())
    }

    /// What is believed of the name, and what the kernel has of it, is of an older version.
    fn renewed(&self, ino: Ino, info: &ObjectInfo) {
        lock(&self.pages).pop(&ino);
        self.tree().expire(ino);
        let place = self.tree().object_place(ino);
        if let Ok((id, key)) = place {
            lock(&self.siblings).changed(id, &key);
        }
        tracing::debug!(
            key = info.key,
            "a file was replaced since it was listed; reading the newest version"
        );
    }

    /// `None` where some of it was let go here and is in no object yet.
    async fn read_source(
        &self,
        source: Source,
        cursor: &Cursor,
        range: ByteRange,
    ) -> Result<Option<Vec<Bytes>>> {
        let (segments, object, copies, staging) = match source {
            Source::Object(object) => return self.reader.read(&object, cursor, range).await.map(Some),
            Source::Mixed { segments, object, copies, staging } => (segments, object, copies, staging),
        };
        let mut slices = Vec::with_capacity(segments.len());
        for segment in segments {
            match (segment.what, &object, &staging) {
                (What::Staged(_), _, Some(staging)) => match staging.bytes(segment.range)? {
                    Some(bytes) => slices.push(Bytes::from(bytes)),
                    None => return Ok(None),
                },
                (What::Base, Some(object), _) => {
                    slices.extend(self.reader.read(object, cursor, segment.range).await?);
                }
                (What::Copied(_, copy), _, _) => {
                    slices.extend(self.read_copied(&copies, copy, cursor, segment.range).await?);
                }
                (What::Zero(_), _, _) => slices.push(zeros(segment.range.len())),
                _ => return Err(Error::new(Kind::Internal, "a run of bytes without its source")),
            }
        }
        Ok(Some(slices))
    }
}

fn zeros(len: u64) -> Bytes {
    // A kernel read is at most 1 MiB, so one static run of zeros serves them all.
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    match usize::try_from(len) {
        Ok(len) if len <= ZEROS.len() => Bytes::from_static(&ZEROS[..len]),
        Ok(len) => Bytes::from(vec![0; len]),
        Err(_) => Bytes::new(),
    }
}
