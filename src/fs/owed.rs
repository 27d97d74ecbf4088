//! What this mount owes S3 is written down before it is answered, and taken up again by the next mount.
//!
//! A file has a line in the journal from its first change until S3 has all of it, or nobody wants it any more. Each
//! change goes into the staging file first and then into the journal, under the file's lock, and then it is answered: so
//! a process that is killed loses none that was.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::file::{Copied, File, State, typed};
use super::volume::Volume;
use super::{Fs, lock};
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::read::Object;
use crate::s3::{Condition, Part, Unfinished};
use crate::tree::keys::{Name, path_of};
use crate::tree::posix::Posix;
use crate::tree::{DirPlace, Entry, Facts, Found, Ino, Marked, ROOT, Tree, VolumeId};
use crate::write::journal::{
    BaseObject, Begun, Deleting, FileId, IntentId, Owed, OwedFile, OwedRename, OwedUpload, Place, Record,
    SentPart,
};
use crate::write::{Line, Noted, Staging, Sums, What};

/// An upload without a part after so long is nobody's any more: who begins one sends parts within minutes.
const UPLOAD_QUIET: Duration = Duration::from_secs(3600);
/// Unfinished uploads of one key and time that are looked at.
const CANDIDATES_MAX: usize = 16;
/// S3 refuses requests of who is further from its time than this.
const CLOCKS_APART: Duration = Duration::from_secs(15 * 60);

/// What became of what an earlier mount owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenUp {
    /// Files that are here as they were.
    pub files: usize,
    /// Files of which the bytes are not all there, or that have no place here now; they stay where they are.
    pub kept: usize,
    /// Directories whose rename was finished, and objects that stay under their old names, because another client has
    /// changed them since.
    pub renames: usize,
    pub left: usize,
    /// Removed names whose objects are on their way.
    pub removals: usize,
    /// Renames and removals that S3 could not be asked for now.
    pub unfinished: usize,
}

impl std::ops::AddAssign for TakenUp {
    fn add_assign(&mut self, more: Self) {
        let Self { files, kept, renames, left, removals, unfinished } = more;
        self.files += files;
        self.kept += kept;
        self.renames += renames;
        self.left += left;
        self.removals += removals;
        self.unfinished += unfinished;
    }
}

impl Fs {
    /// Writes a change down, under the lock of the file that it is of. Nothing is owed of a file without a name.
    pub(super) fn note(
        &self,
        ino: Ino,
        state: &mut State,
        change: impl FnOnce(FileId) -> Record,
    ) -> Result<()> {
        match self.line_of(ino, state)? {
            Some(line) => line.append(change),
            None => Ok(()),
        }
    }

    /// The file's line, begun if it has none.
    fn line_of(&self, ino: Ino, state: &mut State) -> Result<Option<Line>> {
        let Some(journal) = &self.options.journal else { return Ok(None) };
        if state.owing.line.is_some() || state.is_orphan() {
            return Ok(state.owing.line.clone());
        }
        let Ok(place) = self.place_of(ino) else { return Ok(None) };
        let line = Line { journal: Arc::clone(journal), file: FileId(journal.fresh_id()) };
        let staging = self.staging_name(state);
        let base = state.base().map(|object| self.base_of(object));
        let begun = state.begun(place, staging, base);
        line.append(|file| Record::Begun(Box::new(Begun { file, ..begun })))?;
        state.owing.line = Some(line.clone());
        Ok(Some(line))
    }

    /// A file that was made, and may not have a line yet, is about to take another's name: from now on it is owed, so that what
    /// it replaces does not come back where the process ends before anything is written.
    pub(super) fn note_made(&self, file: &File) -> Result<()> {
        self.line_of(file.ino, &mut lock(&file.state)).map(drop)
    }

    /// The name of the file's staging file, which need not be there yet.
    fn staging_name(&self, state: &mut State) -> String {
        let fresh = || self.options.journal.as_ref().map_or(0, |journal| journal.fresh_id());
        state.owing.staging.get_or_insert_with(|| format!("{:x}", fresh())).clone()
    }

    /// A new staging file for a file, with a name where one process hands it on to the next.
    pub(super) fn new_staging(&self, state: &mut State) -> Result<Staging> {
        match &self.options.journal {
            Some(journal) => {
                Staging::named(&journal.staging_dir(), &self.staging_name(state), Sums::default())
            }
            None => Staging::new(&self.disk),
        }
    }

    /// Files at or below an inode have another place, or replace something else, from now on; nothing is owed any more of
    /// what had the name of a file that was moved. What had claimed its old name goes with it.
    pub(super) fn note_moves(&self, moved: Ino, over: &[FileId], leaves: Option<Deleting>) {
        let Some(journal) = &self.options.journal else { return };
        let mut leaves = leaves.map(Box::new);
        let files: Vec<Arc<File>> = lock(&self.files).all().cloned().collect();
        for file in files {
            let state = lock(&file.state);
            let Some(line) = state.owing.line.clone() else { continue };
            if !self.tree().is_within(file.ino, moved) {
                continue;
            }
            let Ok(place) = self.place_of(file.ino) else { continue };
            let base = state.base().map(|object| self.base_of(object));
            let expects = state.expected().clone();
            let over = over.to_vec();
            let leaves = if file.ino == moved { leaves.take() } else { None };
            let noted = line.append(|file| Record::Moved { file, place, base, expects, over, leaves });
            if let Err(error) = noted {
                // The next mount would save it under its old name, where it is no less whole.
                tracing::warn!(error = %error.report(), "a rename could not be written down");
            }
        }
        // Nothing was written of the file yet, so it has no line.
        if let Some(alone) = leaves
            && let Err(error) = journal.append(&Record::Deleting(*alone))
        {
            // Killed within this moment, the mount leaves an empty file under the old name.
            tracing::warn!(error = %error.report(), "a rename could not be written down");
        }
    }

    fn place_of(&self, ino: Ino) -> Result<Place> {
        let place = self.tree().saving_place(ino);
        let (id, key) = place?;
        Ok(Place { bucket: self.volume(id)?.bucket.clone(), key })
    }

    pub(super) fn base_of(&self, object: &Object) -> BaseObject {
        let place = Place { bucket: object.bucket.to_string(), key: object.id.key.to_string() };
        BaseObject { place, etag: object.id.etag.clone(), size: object.size, checksum: None }
    }

    /// `close()` has returned, so what was written is on the local disk and stays owed until S3 has it.
    pub(super) async fn acknowledge(&self, file: &Arc<File>) -> Result<()> {
        let (line, staging, stamp) = {
            let mut state = lock(&file.state);
            if state.owes_nothing() {
                return Ok(());
            }
            let Some(line) = self.line_of(file.ino, &mut state)? else { return Ok(()) };
            file.note_uploads(&state);
            (line, state.to_sync(), state.latest().0)
        };
        if let Some(staging) = staging {
            let synced = tokio::task::spawn_blocking(move || staging.sync()).await;
            synced.map_err(|e| Error::new(Kind::Internal, "a sync broke off").with_source(e))??;
            lock(&file.state).was_synced(stamp);
        }
        {
            // It may have been saved meanwhile, and have no line any more.
            let state = lock(&file.state);
            match &state.owing.line {
                Some(now) if now.file == line.file => {
                    line.append(|file| Record::Acknowledged { file, stamp })?;
                }
                _ => return Ok(()),
            }
        }
        line.journal.sync().await
    }

    /// Takes up what an earlier mount owed. Directories that it was renaming are where they were to go; names that it
    /// removed are gone; its files are here as they were, and on their way to S3.
    pub async fn take_up(self: &Arc<Self>, owed: Vec<Owed>) -> TakenUp {
        let mut taken = TakenUp::default();
        let (mut files, mut renames, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
        for owed in owed {
            match owed {
                Owed::File(file) => files.push(*file),
                Owed::Upload(upload) => self.end_upload(upload),
                Owed::Unheard { id, place, at } => self.end_unheard(id, place, at).await,
                Owed::Rename(rename) => renames.push(*rename),
                Owed::Delete(delete) => deletes.push(delete),
            }
        }
        // In their order: one may go on with what the one before it has moved.
        for rename in renames {
            self.take_up_rename(rename, &mut files, &mut taken).await;
        }
        let removed: HashSet<FileId> = deletes.iter().filter_map(|delete| delete.doomed.file).collect();
        // Before their deletes are done, and forgotten: whoever goes on from a kill in between would bring the files back.
        for file in files.extract_if(.., |file| removed.contains(&file.file)) {
            self.drop_file(file);
        }
        self.take_up_deletes(deletes, &mut taken).await;
        for file in files {
            if self.was_replaced(&file).await {
                self.drop_file(file);
                continue;
            }
            let name = format!("s3://{}/{}", file.place.bucket, file.place.key);
            match self.take_up_file(file).await {
                Ok(()) => taken.files += 1,
                Err(error) => {
                    taken.kept += 1;
                    tracing::error!(
                        name, error = %error.report(),
                        "what an earlier mount owed is kept, and not saved; see `pailfs recover`"
                    );
                }
            }
        }
        taken
    }

    async fn take_up_rename(
        self: &Arc<Self>,
        rename: OwedRename,
        files: &mut [OwedFile],
        taken: &mut TakenUp,
    ) {
        let (id, from) = (rename.id, format!("s3://{}/{}", rename.from.bucket, rename.from.key));
        let begun = rename.begun;
        let finished = match self.finish_rename(rename).await {
            Ok(finished) => finished,
            Err(error) => {
                taken.unfinished += 1;
                tracing::error!(
                    from, error = %error.report(),
                    "a directory is under two names: the mount that renamed it was killed, and this one cannot go on yet; \
                     the next one or `pailfs recover` will"
                );
                return;
            }
        };
        for file in files.iter_mut() {
            if finished.take_along(file) {
                // It went to a key that the file does not have any more.
                if let Some(upload) = file.upload.take() {
                    self.end_upload(upload);
                }
                self.owe_no_more(Record::Moved {
                    file: file.file,
                    place: file.place.clone(),
                    base: file.base.clone(),
                    expects: file.expects.clone(),
                    over: Vec::new(),
                    leaves: None,
                });
            }
        }
        self.owe_no_more(Record::Renamed { id });
        taken.renames += usize::from(begun);
        taken.left += finished.left();
    }

    /// This is owed no more.
    pub(super) fn owe_no_more(&self, record: Record) {
        if let Some(journal) = &self.options.journal {
            journal.end(record);
        }
    }

    /// Where an upload that is begun beside a file's own is written down.
    pub(super) fn noted(&self) -> Noted<'_> {
        self.options.journal.as_ref().map(|journal| (journal, self.clock.wall()))
    }

    /// Whether the rename of another file to this one's name, which an earlier mount was killed in, was done in S3.
    async fn was_replaced(&self, owed: &OwedFile) -> bool {
        let Some(by) = owed.replacing.as_ref().filter(|by| by.place == owed.place) else { return false };
        let asking = async {
            let (_, volume) = self.known_volume(&by.place.bucket, &by.place.key).await?;
            volume.store.head(&by.place.bucket, &by.place.key, None).await
        };
        match self.within(asking).await {
            Ok(info) => by.is(&info),
            Err(error) => {
                // Then it is kept, beside what took its place if need be.
                tracing::debug!(key = by.place.key, error = %error.report(), "what took its place is not known");
                false
            }
        }
    }

    /// Lines of the files of an inode.
    pub(super) fn owed_of(&self, ino: Ino) -> Vec<FileId> {
        let files: Vec<Arc<File>> = lock(&self.files).all().filter(|file| file.ino == ino).cloned().collect();
        files.iter().filter_map(|file| Some(lock(&file.state).owing.line.as_ref()?.file)).collect()
    }

    /// A file whose name was being removed, or is another's.
    fn drop_file(self: &Arc<Self>, owed: OwedFile) {
        if let Some(upload) = owed.upload {
            self.end_upload(upload);
        }
        self.owe_no_more(Record::Gone { file: owed.file });
        if let Some(journal) = &self.options.journal
            && let Err(error) = std::fs::remove_file(journal.staging_dir().join(&owed.staging))
        {
            // It goes with the next mount, where there is one.
            tracing::debug!(%error, "a staging file that nothing needs was not removed");
        }
    }

    /// Nobody completes it any more.
    fn end_upload(self: &Arc<Self>, owed: OwedUpload) {
        let Some(volume) = self.volume_with(&owed.upload.bucket, &owed.upload.key) else { return };
        let fs = Arc::clone(self);
        self.reader.runtime().spawn(async move {
            match fs.within(volume.1.store.abort_upload(&owed.upload)).await {
                Err(error) if !error.is_not_found() => {
                    tracing::warn!(key = owed.upload.key, error = %error.report(), "an upload was left behind");
                }
                _ => fs.owe_no_more(Record::UploadEnded { file: owed.file, upload_id: owed.upload.upload_id }),
            }
        });
    }

    /// The process ended between S3's answer to CreateMultipartUpload and its note of the id, or before S3 was asked.
    ///
    /// Nothing that S3 tells of an upload says who began it, so that it was we is concluded: it is of the very key, it was
    /// begun when we were about to, it has no part, as one whose id nobody heard cannot, and another client's would have
    /// some by now; and it is the only one that this is true of. Otherwise it stays: without parts it costs nothing.
    async fn end_unheard(self: &Arc<Self>, id: IntentId, place: Place, at: SystemTime) {
        let quiet = (at + UPLOAD_QUIET).duration_since(self.clock.wall()).unwrap_or_default();
        let fs = Arc::downgrade(self);
        let ending = async move {
            tokio::time::sleep(quiet).await;
            let Some(fs) = fs.upgrade() else { return };
            match fs.within(fs.abort_unheard(&place, at)).await {
                Ok(()) => fs.owe_no_more(Record::Started { id }),
                Err(error) => {
                    let key = place.key;
                    tracing::debug!(key, error = %error.report(), "an upload may have been left behind");
                }
            }
        };
        match quiet.is_zero() {
            true => ending.await,
            false => drop(self.reader.runtime().spawn(ending)),
        }
    }

    async fn abort_unheard(&self, place: &Place, at: SystemTime) -> Result<()> {
        let (_, volume) = self.known_volume(&place.bucket, &place.key).await?;
        let apart = self.options.timeout + CLOCKS_APART;
        let is_then = |begun: SystemTime| begun + CLOCKS_APART >= at && begun <= at + apart;
        let listed = volume.store.list_uploads(&place.bucket, &place.key).await?;
        // Read after the listing: whatever it shows of this mount is in there.
        let known =
            self.options.journal.as_ref().map_or_else(HashSet::new, |journal| uploads_of(journal.owed()));
        let candidates = listed.into_iter().filter(|unfinished| {
            unfinished.upload.key == place.key
                && unfinished.initiated.is_some_and(is_then)
                && !known.contains(&unfinished.upload.upload_id)
        });
        let mut empty = Vec::new();
        for Unfinished { upload, .. } in candidates.take(CANDIDATES_MAX) {
            if volume.store.list_parts(&upload).await?.is_empty() {
                empty.push(upload);
            }
        }
        let [upload] = &empty[..] else { return Ok(()) };
        match volume.store.abort_upload(upload).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Of the upload that a file's parts are in, only what S3 has still goes on: a rule of the bucket may have aborted it,
    /// and then the file begins anew.
    async fn look_at_parts(&self, volume: &Volume, owed: &mut OwedFile) {
        let Some(upload) = &mut owed.upload else { return };
        let key = upload.upload.key.clone();
        match self.within(volume.store.list_parts(&upload.upload)).await {
            Ok(parts) => {
                let is_there = |sent: &SentPart| parts.iter().any(|part| is_same_part(part, &sent.part));
                let lost: Vec<u16> = upload
                    .parts
                    .values()
                    .filter(|sent| !is_there(sent))
                    .map(|sent| sent.part.number)
                    .collect();
                for number in lost {
                    upload.parts.remove(&number);
                    self.owe_no_more(Record::Unsent { file: owed.file, number });
                }
            }
            Err(error) if error.is_not_found() => {
                // It may have been completed, and the object is what its parts were in.
                let place = &owed.place;
                let object = self.within(volume.store.head(&place.bucket, &place.key, None)).await.ok();
                if object.is_some_and(|info| owed.saving.iter().any(|(_, made)| made.etag == info.etag)) {
                    return;
                }
                tracing::info!(key, "the upload that an earlier mount began is gone; its file is sent anew");
                let upload_id = upload.upload.upload_id.clone();
                self.owe_no_more(Record::UploadEnded { file: owed.file, upload_id });
                owed.upload = None;
            }
            // It is heard when the file is saved.
            Err(error) => tracing::debug!(key, error = %error.report(), "its parts cannot be asked for now"),
        }
    }

    async fn take_up_file(self: &Arc<Self>, mut owed: OwedFile) -> Result<()> {
        let Some(journal) = self.options.journal.clone() else { return Ok(()) };
        if let Some(damage) = &owed.damage {
            return Err(Error::new(Kind::Corrupt, format!("its bytes are not all there: {damage}")));
        }
        if owed.suspect {
            let told = "the machine went down before the bytes were on its disk; they may be anything";
            return Err(Error::new(Kind::Corrupt, told));
        }
        let (id, volume) = self.known_volume(&owed.place.bucket, &owed.place.key).await?;
        let staging = Staging::named(&journal.staging_dir(), &owed.staging, owed.sums.clone())?;
        self.look_at_parts(&volume, &mut owed).await;
        let (upload, saving, key) = (owed.upload.clone(), owed.saving.clone(), owed.place.key.clone());
        find_what_was_let_go(&staging, &owed)?;
        let ino = self.plant(id, &volume, &owed)?;
        let object = owed.base.as_ref().map(|base| self.object_of_base(id, &volume, base));
        let copies: Vec<Copied> = owed
            .copies
            .iter()
            .map(|from| Copied::new(self.object_of_base(id, &volume, &from.object), from.shift))
            .collect();
        let line = Line { journal, file: owed.file };
        let sent = upload.iter().flat_map(|upload| &upload.parts);
        let layout = volume.part_rule.sizes().of_sent(sent.map(|(number, sent)| (*number, sent.range)));
        let file = Arc::new(File::owed(ino, owed, object, copies, staging, line, layout));
        if let Some(upload) = upload {
            let sent = upload.parts.into_values().map(|sent| (sent.range, sent.stamp, sent.part)).collect();
            file.parts().resume(
                Arc::clone(&volume.store),
                upload.upload,
                typed(&file.attributes(), &key),
                sent,
            );
        }
        file.parts().resume_saving(saving);
        self.watch_copies(&file);
        lock(&self.files).put(Arc::clone(&file));
        // The process may have ended between S3's answer and its note of it. If S3 cannot be asked now, the next save is.
        if let Err(error) = self.within(self.landed(&file, id, &volume, &key)).await {
            tracing::debug!(key, error = %error.report(), "what an earlier attempt made is not known yet");
        }
        // The pin goes when it is saved.
        self.save_in_background(file, Duration::ZERO);
        Ok(())
    }

    /// The file's name in the tree, with the directories above it, and a pin: other files, which are saved meanwhile, take
    /// directories that they alone had along when they go.
    fn plant(&self, id: VolumeId, volume: &Volume, owed: &OwedFile) -> Result<Ino> {
        let facts = Facts {
            size: owed.extents.len(),
            etag: owed.base.as_ref().map(|base| base.etag.clone()),
            mtime: owed.written_at,
            modified: None,
            saved_at: None,
            archived: false,
            posix: Some(Arc::new(Posix::of(&owed.attributes.metadata))),
        };
        let is_new = owed.expects == Condition::Absent;
        let mut tree = self.tree();
        let (parent, name) = self.plant_dirs(&mut tree, id, volume, &owed.place.key)?;
        if let Some(other) = tree.child(parent, &name) {
            require_kind(&tree.entry(other)?, false)?;
            // Two mounts have written a file of this name. It is saved there too, and who is first has the name.
            tree.leave_name(other);
        }
        let ino = tree.create(parent, &name, Found::File(facts), is_new, self.clock.now())?.ino;
        tree.pin(ino);
        Ok(ino)
    }

    /// The directories above a key, in the tree, and the name that it has in the last of them.
    pub(super) fn plant_dirs(
        &self,
        tree: &mut Tree,
        id: VolumeId,
        volume: &Volume,
        key: &str,
    ) -> Result<(Ino, Name)> {
        let no_path = || Error::new(Kind::NotFound, "the key has no path in this mount");
        let mut names = path_of(&volume.dir_key(), key).ok_or_else(no_path)?;
        let last = names.pop().ok_or_else(no_path)?;
        let now = self.clock.now();
        let top = std::iter::once(ROOT).chain(tree.buckets().into_iter().map(|(_, ino)| ino));
        let is_top =
            |ino: &Ino| matches!(tree.dir_place(*ino), Ok(DirPlace::In { volume, .. }) if volume == id);
        let mut at = top.collect::<Vec<_>>().into_iter().find(is_top).ok_or_else(no_path)?;
        for name in &names {
            at = match tree.child(at, name) {
                Some(ino) => {
                    require_kind(&tree.entry(ino)?, true)?;
                    ino
                }
                None => tree.create(at, name, Found::Dir { marker: Marked::Unseen }, false, now)?.ino,
            };
        }
        Ok((at, last))
    }

    /// The volume of a bucket that an earlier mount of the same source knew.
    pub(super) async fn known_volume(&self, bucket: &str, key: &str) -> Result<(VolumeId, Arc<Volume>)> {
        if self.buckets.is_some() {
            self.ask_bucket(&Name::parse(bucket.as_ref())?).await?;
        }
        self.volume_with(bucket, key)
            .ok_or_else(|| Error::new(Kind::NotFound, "no bucket of this mount has it"))
    }

    /// The volume that has a key, or else one of its bucket.
    fn volume_with(&self, bucket: &str, key: &str) -> Option<(VolumeId, Arc<Volume>)> {
        let volumes = self.volumes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let of_bucket = || (0..).zip(volumes.iter()).filter(|(_, volume)| volume.bucket == bucket);
        let found = of_bucket().find(|(_, volume)| key.starts_with(&volume.prefix)).or(of_bucket().next());
        found.map(|(id, volume)| (VolumeId(id), Arc::clone(volume)))
    }

    /// An object of the same session and endpoint as the volume.
    fn object_of_base(&self, id: VolumeId, volume: &Arc<Volume>, base: &BaseObject) -> Object {
        let (id, volume) =
            self.volume_with(&base.place.bucket, &base.place.key).unwrap_or((id, Arc::clone(volume)));
        volume.object(id.0, &base.place.key, base.etag.clone(), base.size)
    }
}

/// Of two mounts one may have written a file, and the other below a directory of the same name. One of them waits for the
/// next mount: S3 takes both.
fn require_kind(entry: &Entry, is_dir: bool) -> Result<()> {
    if entry.is_dir() == is_dir {
        return Ok(());
    }
    let told =
        "what is owed of a file and of a directory of the same name is saved by one mount after the other";
    Err(Error::new(Kind::AlreadyExists, told))
}

fn is_same_part(one: &Part, other: &Part) -> bool {
    (one.number, &one.etag, one.size) == (other.number, &other.etag, other.size)
}

/// Every upload that is known.
fn uploads_of(owed: Vec<Owed>) -> HashSet<String> {
    let uploads = owed.into_iter().filter_map(|owed| match owed {
        Owed::File(file) => Some(file.upload?.upload.upload_id),
        Owed::Upload(upload) => Some(upload.upload.upload_id),
        _ => None,
    });
    uploads.collect()
}

/// Where the staging file has holes in what was written, the bytes were let go of, and are in a part of the upload.
fn find_what_was_let_go(staging: &Staging, owed: &OwedFile) -> Result<()> {
    for run in owed.extents.all().iter().filter(|run| matches!(run.what, What::Staged(_))) {
        let mut at = run.range.start();
        while let Some(rest) = ByteRange::new(at, run.range.end()) {
            let Some(hole) = staging.hole(rest)? else { break };
            let parts = owed.upload.iter().flat_map(|upload| upload.parts.values());
            let Some(part) = parts.map(|sent| sent.range).find(|part| part.intersect(hole).is_some()) else {
                return Err(Error::new(Kind::Corrupt, format!("the bytes {hole} are nowhere")));
            };
            staging.was_let_go(part);
            at = part.end();
        }
    }
    Ok(())
}
