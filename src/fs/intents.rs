//! What takes more than a moment with names is written down before it is begun; where the mount is killed in between, the
//! next one finishes it.
//!
//! A delete that is answered before S3 has heard of it, or that takes a file with it that S3 was still owed, is known by
//! its key and the version that was seen. The next mount asks what is there: that very version is deleted, under a
//! condition as ever; anything else was written since, and stays.

use std::sync::Arc;

use futures::StreamExt;

use super::deletes::Doomed as Buried;
use super::file::Held;
use super::owed::TakenUp;
use super::volume::Volume;
use super::{Fs, lock};
use crate::base::ETag;
use crate::error::{Error, Kind, Result};
use crate::tree::DirPlace;
use crate::write::journal::{Deleting, Doomed, IntentId, Journal, Record};

/// Objects of deletes that an earlier mount left that are asked for at once.
const QUESTIONS_IN_FLIGHT: usize = 64;

/// A delete that is waited for. It has ended when this is dropped, however; a process that is killed drops nothing.
pub(super) struct Intent {
    journal: Arc<Journal>,
    id: IntentId,
}

impl Drop for Intent {
    fn drop(&mut self) {
        self.journal.end(Record::Deleted { id: self.id });
    }
}

impl Fs {
    /// Writes down a delete that is answered before S3 has heard of it. `None` where nothing is written down.
    pub(super) fn intend_delete(
        &self,
        volume: &Volume,
        key: &str,
        etag: Option<&ETag>,
    ) -> Result<Option<IntentId>> {
        let Some(journal) = &self.options.journal else { return Ok(None) };
        if etag.is_none() {
            return Err(Error::new(
                Kind::Unsupported,
                "the next mount could not tell which version was meant",
            ));
        }
        let doomed = Doomed { key: key.to_owned(), etag: etag.cloned(), file: None };
        intend(journal, volume, doomed).map(Some)
    }

    /// A delete that is to be written down with another change, or not at all. `None` where nothing is written down.
    pub(super) fn to_be_deleted(&self, volume: &Volume, key: &str, etag: &ETag) -> Option<Deleting> {
        let journal = self.options.journal.as_ref()?;
        let doomed = Doomed { key: key.to_owned(), etag: Some(etag.clone()), file: None };
        Some(delete_of(journal, volume, doomed))
    }

    /// Writes down that a file that S3 is owed is about to lose its name, and S3 the object there is of it. In between
    /// the file would come back, and find that its object is gone.
    pub(super) fn intend_unlink(
        &self,
        volume: &Volume,
        key: &str,
        etag: Option<&ETag>,
        held: Option<&Held>,
    ) -> Option<Intent> {
        let line = lock(&held?.file().state).owing.line.clone()?;
        let doomed = Doomed { key: key.to_owned(), etag: etag.cloned(), file: Some(line.file) };
        match intend(&line.journal, volume, doomed) {
            Ok(id) => Some(Intent { journal: line.journal, id }),
            // A full disk does not keep names from going.
            Err(error) => {
                tracing::debug!(key, error = %error.report(), "a removal could not be written down");
                None
            }
        }
    }

    /// Goes on with what an earlier mount was deleting: the names are gone from here, and their objects on their way.
    /// What cannot be asked for now stays in the journal.
    pub(super) async fn take_up_deletes(self: &Arc<Self>, deletes: Vec<Deleting>, taken: &mut TakenUp) {
        let questions = deletes.into_iter().map(async |delete| {
            let name = format!("s3://{}/{}", delete.bucket, delete.doomed.key);
            let answer = self.take_up_delete(delete).await;
            if let Err(error) = &answer {
                tracing::error!(
                    name, error = %error.report(),
                    "a removed file is there again: the mount that removed it was killed, and this one cannot"
                );
            }
            answer
        });
        let mut answers = futures::stream::iter(questions).buffer_unordered(QUESTIONS_IN_FLIGHT);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(goes) => taken.removals += usize::from(goes),
                Err(_) => taken.unfinished += 1,
            }
        }
    }

    /// Whether the object is there still, and on its way.
    async fn take_up_delete(self: &Arc<Self>, delete: Deleting) -> Result<bool> {
        let Deleting { id, bucket, doomed } = delete;
        let (volume_id, volume) = self.within(self.known_volume(&bucket, &doomed.key)).await?;
        let (key, done) = (&doomed.key, Record::Deleted { id });
        match self.within(volume.store.head(&bucket, key, None)).await {
            Err(error) if error.is_not_found() => {
                self.owe_no_more(done);
                return Ok(false);
            }
            Ok(info) if Some(&info.etag) == doomed.etag.as_ref() => {}
            Ok(_) => {
                tracing::warn!(
                    key,
                    "a file was removed by a mount that was killed then, and another client has written it since: it stays"
                );
                self.owe_no_more(done);
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        let (parent, name, dir) = {
            let mut tree = self.tree();
            let (parent, name) = self.plant_dirs(&mut tree, volume_id, &volume, key)?;
            let DirPlace::In { dir, .. } = tree.dir_place(parent)? else {
                return Err(Error::new(Kind::Internal, "an object outside of a bucket"));
            };
            tree.pin(parent);
            (parent, name, dir)
        };
        let buried = Buried { parent, name, dir, key: doomed.key, etag: doomed.etag, intent: Some(id) };
        self.remove_again(volume_id, &volume, buried).await;
        self.tree().unpin(parent);
        Ok(true)
    }
}

fn intend(journal: &Journal, volume: &Volume, doomed: Doomed) -> Result<IntentId> {
    let delete = delete_of(journal, volume, doomed);
    let id = delete.id;
    journal.append(&Record::Deleting(delete))?;
    Ok(id)
}

fn delete_of(journal: &Journal, volume: &Volume, doomed: Doomed) -> Deleting {
    Deleting { id: IntentId(journal.fresh_id()), bucket: volume.bucket.clone(), doomed }
}
