//! What is owed S3, as the sum of a journal's records. Pure; the oracle in its tests are the writer's own extents.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::record::{
    BaseObject, Begun, CopiedFrom, Deleting, Doomed, FileId, IntentId, Kept, Moving, Place, Record, Run,
};
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::s3::{Attributes, Condition, Part, Upload};
use crate::write::{Extents, Sum, Sums, What};

/// Runs in one record of a checkpoint: some 100 KiB.
const RUNS_PER_RECORD: usize = 4096;
/// Objects of a rename in one record; it holds so many of the longest keys.
const MOVING_PER_RECORD: usize = 1_000;
/// Uploads whose beginning was not heard of, of which the oldest are forgotten: they have no parts, and cost nothing.
const STARTING_MAX: usize = 1_000;
/// Sums in one record of a checkpoint.
const SUMS_PER_RECORD: usize = 4096;
/// Attempts to save that may have succeeded unheard; older ones have long ended.
const SAVING_MAX: usize = 4;

/// Something that S3 is owed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owed {
    /// A file that S3 does not have as it was here.
    File(Box<OwedFile>),
    /// An upload that nothing is to become of: to be aborted. That S3 does not know it any more is as good.
    Upload(OwedUpload),
    /// An upload that may have been begun then, and that nobody knows the id of.
    Unheard { id: IntentId, place: Place, at: SystemTime },
    /// Keys below a prefix that were on their way.
    Rename(Box<OwedRename>),
    /// A key that was being deleted.
    Delete(Deleting),
}

/// A file that S3 does not have as it was here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwedFile {
    pub file: FileId,
    pub place: Place,
    pub base: Option<BaseObject>,
    /// What its commit expects to replace.
    pub expects: Condition,
    pub attributes: Attributes,
    pub written_at: SystemTime,
    /// Name in the staging directory.
    pub staging: String,
    /// Bytes that it has to have at least. What the journal has itself is put there when it is opened.
    pub staged_len: u64,
    /// Exactly as the writer had them.
    pub extents: Extents,
    /// Where runs are copied from, by number. Not all of them need be in use.
    pub copies: Vec<CopiedFrom>,
    /// What the staging file has to be.
    pub sums: Sums,
    /// Pieces of it that were being written over: what they were until then.
    pub overwriting: Vec<Sum>,
    /// Number of the latest change, and of the latest that S3 has.
    pub stamp: u64,
    pub saved: u64,
    /// `close()` returned for everything up to this stamp, on the promise that it is on the local disk.
    pub acknowledged: Option<u64>,
    /// Objects that were about to be made, and of everything up to which stamp; the latest last.
    pub saving: Vec<(u64, BaseObject)>,
    /// Where S3 has this in its place, it was replaced, and nothing of it is owed.
    pub replacing: Option<BaseObject>,
    /// The upload under way, if its target is the file's place still.
    pub upload: Option<OwedUpload>,
    /// The machine went down after changes that were never acknowledged: what the staging file has of them may be
    /// anything. Not to be uploaded without asking.
    pub suspect: bool,
    /// Why the bytes are not all there: never to be uploaded.
    pub damage: Option<String>,
}

/// The rename of a directory that was begun, or about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwedRename {
    pub id: IntentId,
    /// Prefixes.
    pub from: Place,
    pub to: Place,
    /// What there was to move, by what is below the prefix.
    pub objects: BTreeMap<String, Moving>,
    /// Otherwise nothing has moved.
    pub begun: bool,
}

/// An upload in parts that was not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwedUpload {
    pub file: FileId,
    pub upload: Upload,
    /// Parts whose bytes are the file's still, by their numbers.
    pub parts: BTreeMap<u16, SentPart>,
}

/// A part that S3 holds, and which bytes it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentPart {
    pub part: Part,
    pub range: ByteRange,
    pub stamp: u64,
}

/// Where a frame of the segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameAt {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A step of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Record(Record),
    /// Bytes of a file, to be copied from a frame that has them.
    Bytes {
        file: FileId,
        range: ByteRange,
        from: FrameAt,
    },
}

/// The sum of the records so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    files: BTreeMap<FileId, Entry>,
    /// By their files, in the order they were begun.
    uploads: BTreeMap<FileId, Vec<OwedUpload>>,
    starting: BTreeMap<IntentId, (Place, SystemTime)>,
    renames: BTreeMap<IntentId, OwedRename>,
    deletes: BTreeMap<IntentId, Deleting>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// With the present values of everything that changes.
    begun: Begun,
    extents: Extents,
    /// By number. They stay as long as the file does, so that a number never means another one.
    copies: Vec<CopiedFrom>,
    acknowledged: Option<u64>,
    /// What was about to be made, the latest last.
    saving: Vec<(u64, BaseObject)>,
    /// What was about to take its place.
    replacing: Option<BaseObject>,
    suspect: bool,
    /// What the staging file has to be, wherever it was written.
    sums: Sums,
    /// Pieces of those runs that are being written over, and what they were until then.
    overwriting: Vec<Sum>,
    /// Start of a run whose bytes are in the journal -> its end and the frame. All of it is staged.
    inlined: BTreeMap<u64, (u64, FrameAt)>,
}

impl Ledger {
    /// Whether the record makes sense now. Nothing that does not may be written down.
    pub(super) fn admit(&self, record: &Record) -> Result<()> {
        match record {
            Record::Begun(begun) => {
                let known = self.files.get(&begun.file);
                require(known.is_none_or(Entry::is_saved), "a file with changes was begun again")?;
                require(is_plain_name(&begun.staging), "a staging file outside of its directory")?;
                require(begun.saved <= begun.stamp, "more is saved than was changed")
            }
            Record::Wrote { file, range, stamp, .. } | Record::Zeroed { file, range, stamp, .. } => {
                require(is_range(*range), "an empty range")?;
                self.newer(*file, *stamp)
            }
            Record::Inlined { file, range, stamp, bytes, .. } => {
                require(is_range(*range), "an empty range")?;
                require(range.len() == bytes.len() as u64, "other bytes than the range has")?;
                self.newer(*file, *stamp)
            }
            Record::Cut { file, len, stamp, .. } => {
                require(*len < u64::MAX, "a length that no file has")?;
                self.newer(*file, *stamp)
            }
            Record::Copied { file, range, stamp, number, from, .. } => {
                require(is_range(*range), "an empty range")?;
                require(from.has(*range), "a copy of more than the object has")?;
                let copies = &self.entry(*file)?.copies;
                let is_next = index(*number) == copies.len();
                let same = copies.get(index(*number)).map_or(is_next, |known| known == from);
                require(same, "a copy under the number of another")?;
                self.newer(*file, *stamp)
            }
            Record::Fetched { file, range, number, .. } => {
                require(is_range(*range), "an empty range")?;
                let known = index(*number) < self.entry(*file)?.copies.len();
                require(known, "bytes of a copy that was not made")
            }
            Record::Described { file, stamp, .. } => self.newer(*file, *stamp),
            Record::Moved { file, .. }
            | Record::Replacing { file, .. }
            | Record::Overwriting { file, .. }
            | Record::Sums { file, .. }
            | Record::MadeWrong { file, .. } => self.entry(*file).map(drop),
            Record::Starting { .. }
            | Record::Started { .. }
            | Record::Uploading { .. }
            | Record::Unsent { .. }
            | Record::UploadEnded { .. }
            | Record::Gone { .. }
            | Record::Renaming { .. }
            | Record::Renamed { .. }
            | Record::Deleting(_)
            | Record::Deleted { .. } => Ok(()),
            Record::Sent { file, range, .. } => {
                require(is_range(*range), "an empty range")?;
                require(self.uploads.contains_key(file), "a part of no upload")
            }
            Record::Saved { file, stamp, object } => {
                let entry = self.entry(*file)?;
                require(
                    (entry.begun.saved..=entry.begun.stamp).contains(stamp),
                    "a change was saved that is none",
                )?;
                require(entry.saved_bytes_end(*stamp) <= object.size, "more bytes were saved than S3 has")
            }
            Record::Saving { file, stamp, .. } => {
                let entry = self.entry(*file)?;
                require(*stamp <= entry.begun.stamp, "a change is being saved that is none")
            }
            Record::Acknowledged { file, stamp } => {
                let entry = self.entry(*file)?;
                require(*stamp <= entry.begun.stamp, "a change was acknowledged that is none")
            }
            Record::Kept(kept) => {
                require(!self.files.contains_key(&kept.begun.file), "a file is kept twice")?;
                require(is_plain_name(&kept.begun.staging), "a staging file outside of its directory")
            }
            Record::KeptCopy { file, .. } => {
                require(self.entry(*file)?.extents.is_empty(), "a copy after runs that may be of it")
            }
            Record::Runs { file, runs } => {
                let entry = self.entry(*file)?;
                let mut end = entry.extents.len();
                for run in runs {
                    let segment = run.segment().filter(|segment| segment.range.start() == end);
                    let Some(segment) = segment else { return Err(nonsense("a run out of order")) };
                    if let What::Copied(_, number) = segment.what {
                        let from = entry.copies.get(index(number));
                        require(from.is_some_and(|from| from.has(segment.range)), "a run of no copy")?;
                    }
                    end = segment.range.end();
                }
                Ok(())
            }
            Record::KeptBytes { file, range, bytes } => {
                require(is_range(*range), "an empty range")?;
                require(range.len() == bytes.len() as u64, "other bytes than the range has")?;
                let segments = self.entry(*file)?.extents.segments(*range);
                let staged = |what| matches!(what, What::Staged(_));
                let covered: u64 = segments.iter().filter(|s| staged(s.what)).map(|s| s.range.len()).sum();
                require(covered == range.len(), "bytes of a file that are not staged")
            }
            Record::Checkpointed { .. } => Err(nonsense("a checkpoint ends that never began")),
        }
    }

    /// Adds a record that was admitted, which is or will be in this frame.
    pub(super) fn apply(&mut self, record: &Record, frame: FrameAt) {
        match record {
            Record::Begun(begun) => {
                let extents = Extents::of_base(begun.base.as_ref().map_or(0, |base| base.size));
                self.files.insert(begun.file, Entry::new((**begun).clone(), extents));
            }
            Record::Wrote { file, range, stamp, at, sums } => {
                self.change(*file, *stamp, *at, *range, |entry| {
                    entry.extents.write(*range, *stamp);
                    if sums.is_empty() {
                        entry.sums.forget(*range);
                    }
                    entry.summed(sums);
                });
            }
            Record::Overwriting { file, was } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.overwriting(was);
                }
            }
            Record::Sums { file, sums } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.summed(sums);
                }
            }
            Record::MadeWrong { file, etag } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.saving.retain(|(_, object)| object.etag != *etag);
                    entry.begun.expects = Condition::Matches(etag.clone());
                }
            }
            Record::Inlined { file, range, stamp, at, .. } => {
                self.change(*file, *stamp, *at, *range, |entry| {
                    entry.extents.write(*range, *stamp);
                    // They are put there when the journal is opened.
                    entry.sums.forget(*range);
                    entry.inlined.insert(range.start(), (range.end(), frame));
                });
            }
            Record::Cut { file, len, stamp, at } => {
                // Beyond the length of a file that grows there is nothing.
                let Some(beyond) = ByteRange::new(*len, u64::MAX) else { return };
                self.change(*file, *stamp, *at, beyond, |entry| {
                    entry.extents.truncate(*len, *stamp);
                    if *len == 0 {
                        // The staging file may have been emptied.
                        entry.sums.clear();
                        entry.overwriting.clear();
                    }
                });
            }
            Record::Copied { file, range, stamp, at, number, from } => {
                self.change(*file, *stamp, *at, *range, |entry| {
                    if index(*number) == entry.copies.len() {
                        entry.copies.push(from.clone());
                    }
                    entry.extents.copy(*range, *stamp, *number);
                });
            }
            // No change: whatever is known of these bytes is true still.
            Record::Fetched { file, range, number, sums } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.extents.fetched(*range, *number);
                    entry.summed(sums);
                }
            }
            Record::Zeroed { file, range, stamp, at } => {
                self.change(*file, *stamp, *at, *range, |entry| entry.extents.punch(*range, *stamp));
            }
            Record::Described { file, attributes, stamp } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.begun.attributes = (**attributes).clone();
                    entry.begun.stamp = *stamp;
                }
            }
            Record::Moved { file, place, base, expects, over, leaves } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.begun.place = place.clone();
                    entry.begun.base = base.clone();
                    entry.begun.expects = expects.clone();
                }
                self.files.retain(|id, _| id == file || !over.contains(id));
                if let Some(leaves) = leaves {
                    self.deletes.insert(leaves.id, (**leaves).clone());
                }
            }
            Record::Replacing { file, by } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.replacing.clone_from(by);
                }
            }
            Record::Starting { id, place, at } => {
                self.starting.insert(*id, (place.clone(), *at));
                if self.starting.len() > STARTING_MAX {
                    self.starting.pop_first();
                }
            }
            Record::Started { id } => {
                self.starting.remove(id);
            }
            Record::Uploading { file, upload } => {
                let fresh = OwedUpload { file: *file, upload: upload.clone(), parts: BTreeMap::new() };
                self.uploads.entry(*file).or_default().push(fresh);
            }
            Record::Sent { file, part, range, stamp } => {
                // A change that came before it is in no part, though the part was on its way.
                let newest = self.files.get(file).map_or(0, |entry| entry.extents.newest(*range).0);
                if newest > *stamp {
                    return;
                }
                if let Some(upload) = self.latest_upload(*file) {
                    let sent = SentPart { part: part.clone(), range: *range, stamp: *stamp };
                    upload.parts.insert(part.number, sent);
                }
            }
            Record::Unsent { file, number } => {
                if let Some(upload) = self.latest_upload(*file) {
                    upload.parts.remove(number);
                }
            }
            Record::UploadEnded { file, upload_id } => {
                if let Some(uploads) = self.uploads.get_mut(file) {
                    uploads.retain(|upload| upload.upload.upload_id != *upload_id);
                    if uploads.is_empty() {
                        self.uploads.remove(file);
                    }
                }
            }
            Record::Saving { file, stamp, object } => {
                if let Some(entry) = self.files.get_mut(file) {
                    remember(&mut entry.saving, (*stamp, object.clone()));
                }
            }
            Record::Saved { file, stamp, object } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.saved(*stamp, object);
                    if entry.is_saved() {
                        self.files.remove(file);
                    }
                }
            }
            Record::Acknowledged { file, stamp } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.acknowledged = entry.acknowledged.max(Some(*stamp));
                }
            }
            Record::Gone { file } => {
                self.files.remove(file);
            }
            Record::Renaming { id, from, to, objects, begun } => {
                let rename = self.renames.entry(*id).or_insert_with(|| OwedRename {
                    id: *id,
                    from: from.clone(),
                    to: to.clone(),
                    objects: BTreeMap::new(),
                    begun: false,
                });
                rename.objects.extend(objects.iter().map(|moving| (moving.rest.clone(), moving.clone())));
                rename.begun |= begun;
            }
            Record::Renamed { id } => {
                self.renames.remove(id);
            }
            Record::Deleting(deleting) => {
                self.deletes.insert(deleting.id, deleting.clone());
            }
            Record::Deleted { id } => {
                self.deletes.remove(id);
            }
            Record::Kept(kept) => {
                let mut entry = Entry::new(kept.begun.clone(), Extents::default());
                entry.acknowledged = kept.acknowledged;
                entry.suspect = kept.suspect;
                self.files.insert(kept.begun.file, entry);
            }
            Record::KeptCopy { file, from } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.copies.push(from.clone());
                }
            }
            Record::Runs { file, runs } => {
                if let Some(entry) = self.files.get_mut(file) {
                    for segment in runs.iter().filter_map(|run| run.segment()) {
                        entry.extents.push(segment);
                    }
                }
            }
            Record::KeptBytes { file, range, .. } => {
                if let Some(entry) = self.files.get_mut(file) {
                    entry.inlined.insert(range.start(), (range.end(), frame));
                }
            }
            Record::Checkpointed { .. } => {}
        }
    }

    /// Everything that is owed now.
    pub(super) fn owed(&self) -> Vec<Owed> {
        let mut owed = Vec::new();
        let mut uploads = self.uploads.clone();
        for (file, entry) in self.files.iter().filter(|(_, entry)| !entry.is_saved()) {
            let mine = uploads.get_mut(file).and_then(|of_file| {
                of_file.pop_if(|latest| {
                    let place = &entry.begun.place;
                    latest.upload.bucket == place.bucket && latest.upload.key == place.key
                })
            });
            owed.push(Owed::File(Box::new(entry.owed(mine))));
        }
        owed.extend(uploads.into_values().flatten().map(Owed::Upload));
        owed.extend(self.starting.iter().map(|(id, (place, at))| Owed::Unheard {
            id: *id,
            place: place.clone(),
            at: *at,
        }));
        owed.extend(self.renames.values().map(|rename| Owed::Rename(Box::new(rename.clone()))));
        owed.extend(self.deletes.values().cloned().map(Owed::Delete));
        owed
    }

    /// The ledger as records: applied to an empty one, they make an equal one.
    pub(super) fn checkpoint(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (file, entry) in &self.files {
            let kept =
                Kept { begun: entry.begun.clone(), acknowledged: entry.acknowledged, suspect: entry.suspect };
            steps.push(Step::Record(Record::Kept(Box::new(kept))));
            let copies = entry.copies.iter().cloned();
            steps.extend(copies.map(|from| Step::Record(Record::KeptCopy { file: *file, from })));
            let saving = entry.saving.iter().cloned();
            steps.extend(
                saving.map(|(stamp, object)| Step::Record(Record::Saving { file: *file, stamp, object })),
            );
            if entry.replacing.is_some() {
                steps.push(Step::Record(Record::Replacing { file: *file, by: entry.replacing.clone() }));
            }
            for runs in entry.extents.all().chunks(RUNS_PER_RECORD) {
                let runs = runs.iter().map(|segment| Run::from(*segment)).collect();
                steps.push(Step::Record(Record::Runs { file: *file, runs }));
            }
            for sums in entry.sums.all().chunks(SUMS_PER_RECORD) {
                steps.push(Step::Record(Record::Sums { file: *file, sums: sums.to_vec() }));
            }
            if !entry.overwriting.is_empty() {
                let was = entry.overwriting.clone();
                steps.push(Step::Record(Record::Overwriting { file: *file, was }));
            }
            steps.extend(entry.inlined().map(|(range, from)| Step::Bytes { file: *file, range, from }));
        }
        for upload in self.uploads.values().flatten() {
            let file = upload.file;
            steps.push(Step::Record(Record::Uploading { file, upload: upload.upload.clone() }));
            steps.extend(upload.parts.values().map(|sent| {
                let SentPart { part, range, stamp } = sent.clone();
                Step::Record(Record::Sent { file, part, range, stamp })
            }));
        }
        steps.extend(self.starting.iter().map(|(id, (place, at))| {
            Step::Record(Record::Starting { id: *id, place: place.clone(), at: *at })
        }));
        for rename in self.renames.values() {
            let objects: Vec<Moving> = rename.objects.values().cloned().collect();
            let records = renaming(rename.id, &rename.from, &rename.to, objects, rename.begun);
            steps.extend(records.into_iter().map(Step::Record));
        }
        steps.extend(self.deletes.values().cloned().map(Record::Deleting).map(Step::Record));
        steps
    }

    /// The process that wrote this is gone, and with it who had files open that nothing is owed of.
    pub(super) fn inherited(&mut self) {
        self.files.retain(|_, entry| !entry.is_saved());
    }

    /// Everything that another directory owes is owed here as well, under numbers of its own. Its staging files are here,
    /// with `prefix` before their names, and on the disk; so is what its journal had itself.
    pub(super) fn take_over(&mut self, other: Self, prefix: &str) {
        let above = self.last_id();
        let file = |id: FileId| FileId(id.0 + above);
        let intent = |id: IntentId| IntentId(id.0 + above);
        let Self { files, uploads, starting, renames, deletes } = other;
        self.files.extend(files.into_iter().map(|(id, mut entry)| {
            entry.begun.file = file(id);
            entry.begun.staging.insert_str(0, prefix);
            entry.inlined.clear();
            (file(id), entry)
        }));
        self.uploads.extend(uploads.into_iter().map(|(id, mut of_file)| {
            of_file.iter_mut().for_each(|upload| upload.file = file(upload.file));
            (file(id), of_file)
        }));
        self.starting.extend(starting.into_iter().map(|(id, begun)| (intent(id), begun)));
        while self.starting.len() > STARTING_MAX {
            self.starting.pop_first();
        }
        self.renames.extend(
            renames.into_iter().map(|(id, rename)| (intent(id), OwedRename { id: intent(id), ..rename })),
        );
        self.deletes.extend(deletes.into_values().map(|Deleting { id, bucket, doomed }| {
            let doomed = Doomed { file: doomed.file.map(file), ..doomed };
            (intent(id), Deleting { id: intent(id), bucket, doomed })
        }));
    }

    /// The machine went down since: what was not acknowledged may not be on its disk.
    pub(super) fn rebooted(&mut self) {
        for entry in self.files.values_mut() {
            entry.suspect |= entry.acknowledged.is_none_or(|stamp| stamp < entry.begun.stamp);
        }
    }

    /// Runs of bytes that the journal has itself: the staging file's name, the run, and where.
    pub(super) fn inlined(&self) -> impl Iterator<Item = (&str, ByteRange, FrameAt)> {
        self.files.values().flat_map(|entry| {
            entry.inlined().map(|(range, frame)| (entry.begun.staging.as_str(), range, frame))
        })
    }

    /// Names of the staging files in use.
    pub(super) fn staging(&self) -> impl Iterator<Item = &str> {
        self.files.values().map(|entry| entry.begun.staging.as_str())
    }

    /// The largest number in use for a file or an intent.
    pub(super) fn last_id(&self) -> u64 {
        let files = self.files.keys().chain(self.uploads.keys()).map(|id| id.0);
        let intents =
            self.renames.keys().chain(self.deletes.keys()).chain(self.starting.keys()).map(|id| id.0);
        files.chain(intents).max().unwrap_or(0)
    }

    /// A change of a file's bytes in `range`: what was known of the bytes there is not true any more.
    fn change(
        &mut self,
        file: FileId,
        stamp: u64,
        at: SystemTime,
        range: ByteRange,
        change: impl FnOnce(&mut Entry),
    ) {
        for upload in self.uploads.get_mut(&file).into_iter().flatten() {
            upload.parts.retain(|_, sent| sent.range.intersect(range).is_none());
        }
        let Some(entry) = self.files.get_mut(&file) else { return };
        let old_len = entry.extents.len();
        entry.forget_inlined(range);
        change(entry);
        entry.begun.stamp = stamp;
        entry.begun.written_at = at;
        // What is between the old end and the change is as new; and the whole may have been joined with the run before,
        // whose bytes have the newer stamp as well then.
        let first = range.start().min(old_len);
        let from = entry.extents.run_at(first).map_or(first, |run| run.start());
        for upload in self.uploads.get_mut(&file).into_iter().flatten() {
            upload.parts.retain(|_, sent| {
                sent.range.end() <= from || entry.extents.newest(sent.range).0 <= sent.stamp
            });
        }
    }

    fn latest_upload(&mut self, file: FileId) -> Option<&mut OwedUpload> {
        self.uploads.get_mut(&file)?.last_mut()
    }

    fn entry(&self, file: FileId) -> Result<&Entry> {
        self.files.get(&file).ok_or_else(|| nonsense("a file that was not begun"))
    }

    fn newer(&self, file: FileId, stamp: u64) -> Result<()> {
        require(stamp > self.entry(file)?.begun.stamp, "a change that is not the newest")
    }
}

impl Entry {
    fn new(begun: Begun, extents: Extents) -> Self {
        Self {
            begun,
            extents,
            copies: Vec::new(),
            acknowledged: None,
            saving: Vec::new(),
            replacing: None,
            suspect: false,
            sums: Sums::default(),
            overwriting: Vec::new(),
            inlined: BTreeMap::new(),
        }
    }

    fn is_saved(&self) -> bool {
        self.begun.saved == self.begun.stamp
    }

    /// What the runs are is known.
    fn summed(&mut self, sums: &[Sum]) {
        self.sums.put(sums);
        self.overwriting.retain(|piece| sums.iter().all(|sum| sum.range.intersect(piece.range).is_none()));
    }

    /// What these pieces are is not.
    fn overwriting(&mut self, was: &[Sum]) {
        for piece in was {
            let runs = self.sums.overlapping(piece.range);
            let is_within = runs.iter().all(|run| run.range.intersect(piece.range) == Some(piece.range));
            let is_alone = self.overwriting.iter().all(|open| open.range.intersect(piece.range).is_none());
            if is_within && is_alone {
                self.overwriting.push(*piece);
            } else {
                // Of the rest of the run nothing can be told either.
                self.sums.forget(piece.range);
                self.overwriting.retain(|open| open.range.intersect(piece.range).is_none());
            }
        }
    }

    fn inlined(&self) -> impl Iterator<Item = (ByteRange, FrameAt)> {
        self.inlined.iter().filter_map(|(start, (end, frame))| Some((ByteRange::new(*start, *end)?, *frame)))
    }

    /// The end of what comes from S3 once everything up to `stamp` is there.
    fn saved_bytes_end(&self, stamp: u64) -> u64 {
        let saved = |what| match what {
            What::Base => true,
            What::Staged(at) | What::Zero(at) | What::Copied(at, _) => at <= stamp,
        };
        self.extents.all().iter().filter(|s| saved(s.what)).map(|s| s.range.end()).max().unwrap_or(0)
    }

    fn saved(&mut self, stamp: u64, object: &BaseObject) {
        self.extents.clear(stamp, object.size);
        self.begun.saved = stamp;
        self.saving.retain(|(at, _)| *at > stamp);
        self.begun.expects = Condition::Matches(object.etag.clone());
        self.begun.base = Some(object.clone());
        // What S3 has need not be here as well.
        for run in self.extents.all().iter().filter(|run| !matches!(run.what, What::Staged(_))) {
            self.forget_inlined(run.range);
        }
    }

    /// What the journal has of these bytes is not what they are.
    fn forget_inlined(&mut self, range: ByteRange) {
        let overlapping: Vec<(u64, (u64, FrameAt))> = self
            .inlined
            .range(..range.end())
            .rev()
            .take_while(|(_, (end, _))| *end > range.start())
            .map(|(start, run)| (*start, *run))
            .collect();
        for (start, (end, frame)) in overlapping {
            self.inlined.remove(&start);
            if start < range.start() {
                self.inlined.insert(start, (range.start(), frame));
            }
            if end > range.end() {
                self.inlined.insert(range.end(), (end, frame));
            }
        }
    }

    /// The end of what only the staging file has.
    fn staged_len(&self) -> u64 {
        let staged = self.extents.all().into_iter().rev().filter(|run| matches!(run.what, What::Staged(_)));
        for run in staged.map(|run| run.range) {
            let mut end = run.end();
            // What is inlined is staged, so it can only take the whole run away, or its end.
            while end > run.start()
                && let Some((start, (inlined_end, _))) = self.inlined.range(..end).next_back()
                && *inlined_end >= end
            {
                end = *start;
            }
            if end > run.start() {
                return end;
            }
        }
        0
    }

    fn owed(&self, upload: Option<OwedUpload>) -> OwedFile {
        let begun = self.begun.clone();
        OwedFile {
            file: begun.file,
            place: begun.place,
            base: begun.base,
            expects: begun.expects,
            attributes: begun.attributes,
            written_at: begun.written_at,
            staging: begun.staging,
            staged_len: self.staged_len(),
            extents: self.extents.clone(),
            copies: self.copies.clone(),
            sums: self.sums.clone(),
            overwriting: self.overwriting.clone(),
            stamp: begun.stamp,
            saved: begun.saved,
            acknowledged: self.acknowledged,
            saving: self.saving.clone(),
            replacing: self.replacing.clone(),
            upload,
            suspect: self.suspect,
            damage: None,
        }
    }
}

/// The records of a rename; the last of them says whether it has begun.
pub(in crate::write) fn renaming(
    id: IntentId,
    from: &Place,
    to: &Place,
    mut objects: Vec<Moving>,
    begun: bool,
) -> Vec<Record> {
    let mut records = Vec::new();
    loop {
        let rest = objects.split_off(objects.len().min(MOVING_PER_RECORD));
        let begun = begun && rest.is_empty();
        records.push(Record::Renaming { id, from: from.clone(), to: to.clone(), objects, begun });
        if rest.is_empty() {
            return records;
        }
        objects = rest;
    }
}

/// One more attempt to save.
pub(in crate::write) fn remember<T>(saving: &mut Vec<T>, latest: T) {
    if saving.len() >= SAVING_MAX {
        saving.remove(0);
    }
    saving.push(latest);
}

/// A name is one component, so that no record leads out of the directory.
fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// What was read from JSON may be one that [`ByteRange::new`] would not make.
fn is_range(range: ByteRange) -> bool {
    range.start() < range.end()
}

fn require(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(nonsense(otherwise)) }
}

fn nonsense(what: &str) -> Error {
    Error::new(Kind::Internal, format!("the journal was told of {what}"))
}

#[cfg(test)]
impl Ledger {
    /// Without where in the segment bytes are, which is another place after every checkpoint.
    pub(super) fn without_places(mut self) -> Self {
        for entry in self.files.values_mut() {
            for (_, frame) in entry.inlined.values_mut() {
                *frame = FrameAt { offset: 0, len: 0 };
            }
        }
        self
    }
}
