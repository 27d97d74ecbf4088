//! The upload in parts of one file, as far as it got.
//!
//! Parts leave while a file is still being written, and those that S3 has outlive a commit that failed: the next one
//! sends what lacks. A part counts only for the very bytes that it was sent with, which its stamp tells.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::journal::{BaseObject, FileId, IntentId, Journal, Place, Record, remember};
use crate::base::{ByteRange, ETag};
use crate::error::{Error, Result};
use crate::s3::{Attributes, Part, Store, Upload};

/// Where the journal has a file.
#[derive(Clone, Debug)]
pub struct Line {
    pub journal: Arc<Journal>,
    pub file: FileId,
}

impl Line {
    /// Writes down what happened to the file.
    pub fn append(&self, record: impl FnOnce(FileId) -> Record) -> Result<()> {
        self.journal.append(&record(self.file))
    }

    /// Begins an upload in parts so that it is known of, or can be found, whatever becomes of the answer and of us.
    pub(super) async fn begin_upload(
        &self,
        store: &Arc<dyn Store>,
        place: Place,
        attributes: Attributes,
        at: SystemTime,
    ) -> Result<Upload> {
        let id = IntentId(self.journal.fresh_id());
        let Place { bucket, key } = place.clone();
        self.note(Record::Starting { id, place, at });
        let created = store.create_upload(&bucket, &key, attributes).await;
        if let Ok(upload) = &created {
            self.note(Record::Uploading { file: self.file, upload: upload.clone() });
        }
        if !created.as_ref().is_err_and(Error::may_have_happened) {
            self.journal.end(Record::Started { id });
        }
        created
    }

    /// What cannot be written down is aborted or found out by the next mount; nothing is lost.
    pub(super) fn note(&self, record: Record) {
        if let Err(error) = self.journal.append(&record) {
            tracing::warn!(error = %error.report(), "an upload could not be written down");
        }
    }
}

/// Shared by those who send parts ahead of a commit, and the commit, which has it alone.
#[derive(Default)]
pub struct Parts {
    begun: Mutex<Option<Begun>>,
    line: Mutex<Option<Line>>,
    completed: Mutex<Option<Upload>>,
    saving: Mutex<Vec<(u64, BaseObject)>>,
    /// An object that an attempt of ours made of other bytes than were sent.
    wrong: Mutex<Option<ETag>>,
    beginning: tokio::sync::Mutex<()>,
}

struct Begun {
    store: Arc<dyn Store>,
    upload: Upload,
    attributes: Attributes,
    /// By number.
    sent: BTreeMap<u16, Sent>,
    /// By the process before this one.
    resumed: bool,
}

#[derive(Clone, Debug)]
struct Sent {
    range: ByteRange,
    /// Of the latest change that is in it.
    stamp: u64,
    part: Part,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("held", &self.held()).finish_non_exhaustive()
    }
}

impl Parts {
    /// Whoever finds no upload begins one; the others wait for it.
    pub(super) async fn beginning(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.beginning.lock().await
    }

    /// Uploads are written down there from now on.
    pub fn note_in(&self, line: Option<Line>) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }

    /// Where uploads are written down.
    pub(super) fn line(&self) -> Option<Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An upload of this object is under way from now on.
    pub(super) fn begin(&self, store: Arc<dyn Store>, upload: Upload, attributes: Attributes) {
        *self.lock() = Some(Begun { store, upload, attributes, sent: BTreeMap::new(), resumed: false });
    }

    /// An upload of this object that the process before this one began goes on: S3 has these parts, with everything up to the
    /// stamps in them. That it was begun with these attributes is a guess.
    pub fn resume(
        &self,
        store: Arc<dyn Store>,
        upload: Upload,
        attributes: Attributes,
        sent: Vec<(ByteRange, u64, Part)>,
    ) {
        let sent = sent.into_iter().map(|(range, stamp, part)| (part.number, Sent { range, stamp, part }));
        *self.lock() = Some(Begun { store, upload, attributes, sent: sent.collect(), resumed: true });
    }

    /// The upload under way, if it is of this object.
    pub(super) fn upload(&self, bucket: &str, key: &str, attributes: &Attributes) -> Option<Upload> {
        let begun = self.lock();
        let begun = begun.as_ref()?;
        let same = begun.upload.bucket == bucket && begun.upload.key == key;
        (same && begun.attributes == *attributes).then(|| begun.upload.clone())
    }

    /// Whether an upload in parts is under way.
    pub fn has_begun(&self) -> bool {
        self.lock().is_some()
    }

    /// What the upload under way of this object was begun with, where S3 has parts of it.
    pub fn attributes(&self, bucket: &str, key: &str) -> Option<Attributes> {
        let begun = self.lock();
        let begun = begun.as_ref().filter(|begun| !begun.sent.is_empty())?;
        let same = begun.upload.bucket == bucket && begun.upload.key == key;
        same.then(|| begun.attributes.clone())
    }

    /// Whether that was before this process, so that what it was begun with may be another thing.
    pub fn is_resumed(&self, bucket: &str, key: &str) -> bool {
        let begun = self.lock();
        let same = |begun: &Begun| begun.upload.bucket == bucket && begun.upload.key == key;
        begun.as_ref().is_some_and(|begun| begun.resumed && same(begun))
    }

    /// S3 has this part, with everything up to `stamp` in it.
    pub(super) fn sent(&self, range: ByteRange, stamp: u64, part: Part) {
        self.note(|file| Record::Sent { file, part: part.clone(), range, stamp });
        if let Some(begun) = &mut *self.lock() {
            begun.sent.insert(part.number, Sent { range, stamp, part });
        }
    }

    /// The part that S3 has of a range in which nothing is newer than `newest`.
    pub(super) fn find(&self, number: u16, range: ByteRange, newest: u64) -> Option<Part> {
        let begun = self.lock();
        let sent = begun.as_ref()?.sent.get(&number)?;
        (sent.range == range && sent.stamp >= newest).then(|| sent.part.clone())
    }

    /// What S3 has, and up to which stamp.
    pub fn held(&self) -> Vec<(ByteRange, u64, Part)> {
        let begun = self.lock();
        let sent = begun.iter().flat_map(|begun| begun.sent.values());
        sent.map(|sent| (sent.range, sent.stamp, sent.part.clone())).collect()
    }

    /// This object is about to be made, of everything up to `stamp`.
    pub(super) fn saving(&self, stamp: u64, object: BaseObject) {
        self.note(|file| Record::Saving { file, stamp, object: object.clone() });
        remember(&mut self.attempts(), (stamp, object));
    }

    /// S3 made that object, and it is not what was sent: it does not count as saved, and the next attempt replaces it.
    pub(super) fn made_wrong(&self, etag: &ETag) {
        self.note(|file| Record::MadeWrong { file, etag: etag.clone() });
        self.attempts().retain(|(_, object)| object.etag != *etag);
        *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(etag.clone());
        // Of an upload that became it nothing is left to complete.
        if let Some((_, upload)) = self.take() {
            self.ended(&upload);
        }
    }

    /// The object to replace, if an attempt made a wrong one.
    pub(super) fn wrong(&self) -> Option<ETag> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an earlier process was about to make.
    pub fn resume_saving(&self, saving: Vec<(u64, BaseObject)>) {
        *self.attempts() = saving;
    }

    /// The attempt to save that S3 shows to have succeeded, though nobody was told.
    pub fn landed(&self, is_there: impl Fn(&BaseObject) -> bool) -> Option<(u64, BaseObject)> {
        self.attempts().iter().rev().find(|(_, object)| is_there(object)).cloned()
    }

    /// Whether there was an attempt of which nobody heard that it succeeded.
    pub fn has_attempts(&self) -> bool {
        !self.attempts().is_empty()
    }

    fn attempts(&self) -> MutexGuard<'_, Vec<(u64, BaseObject)>> {
        self.saving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The upload became an object. The journal hears of it when it has been told of the object: until then the parts are
    /// how the next mount finds out that it was we who made it.
    pub(super) fn completed(&self) {
        let completed = self.take().map(|(_, upload)| upload);
        *self.completed.lock().unwrap_or_else(PoisonError::into_inner) = completed;
    }

    /// The journal knows the object.
    pub fn saved(&self) {
        self.attempts().clear();
        *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let completed = self.completed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(upload) = completed {
            self.ended(&upload);
        }
    }

    /// S3 knows the upload no more.
    pub(super) fn ended(&self, upload: &Upload) {
        self.note(|file| Record::UploadEnded { file, upload_id: upload.upload_id.clone() });
    }

    fn note(&self, record: impl FnOnce(FileId) -> Record) {
        if let Some(line) = self.line() {
            line.note(record(line.file));
        }
    }

    /// Takes the upload, to abort it or because it was completed.
    pub(super) fn take(&self) -> Option<(Arc<dyn Store>, Upload)> {
        self.lock().take().map(|begun| (begun.store, begun.upload))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
