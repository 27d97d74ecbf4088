//! The bytes of one open file: one lineage of content, shared by every handle on it.
//!
//! A file is opened from one version of its object and stays with it. Writes on this mount are seen by every
//! handle at once; a commit moves all of them to the new version together. When another client replaces the
//! object, the next `open` starts a new `File` and old handles keep the old one, so no handle ever mixes two
//! versions.

mod ahead;
mod copied;
mod held;
mod reading;
mod saving;

use ahead::Ahead;
pub(super) use copied::Copied;
pub(super) use held::{Held, MATERIALISE_STEP};
pub(super) use reading::Source;
pub use saving::Pending;
pub(super) use saving::{PendingAttributes, over_another_base, typed};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::Bytes;

use super::{Durability, Fs, lock};
use crate::base::{ByteRange, ETag, Turn, format_bytes};
use crate::error::{Error, Kind, Result};
use crate::read::{Object, ObjectId};
use crate::s3::limits::OBJECT_MAX;
use crate::s3::{Attributes, Condition, Metadata, ObjectInfo, Progress};
use crate::tree::Ino;
use crate::tree::posix::{self, Posix};
use crate::write::journal::{BaseObject, Begun, FileId, OwedFile, Place, Record};
use crate::write::{
    Extents, Layout, Line, PartRule, Parts, SINGLE_PUT_MAX, Segment, Staging, Sum, What, full_parts,
};

use super::volume::Volume;

#[derive(Debug)]
pub(super) struct File {
    pub(super) ino: Ino,
    pub(super) state: Mutex<State>,
    /// Held by the one commit under way, by whoever takes the file's name or gives it another, and by whoever copies
    /// from its object.
    pub(super) commit: Arc<tokio::sync::Mutex<()>>,
    /// Of that commit: who waits for it waits as long as it moves.
    pub(super) progress: Arc<Progress>,
    /// Shared by parts that leave while the file is written; a commit has it alone.
    sending: tokio::sync::RwLock<()>,
    /// Parts that were told to leave, and how many of them have, or will not.
    told: AtomicU64,
    ended: tokio::sync::watch::Sender<u64>,
    /// What has left.
    parts: Arc<Parts>,
}

#[derive(Debug)]
pub(super) struct State {
    /// The object that unchanged bytes come from.
    pub(super) object: Option<Object>,
    pub(super) extents: Extents,
    /// Other objects that runs are copied from, by number.
    pub(super) copies: Vec<Copied>,
    pub(super) staging: Option<Arc<Staging>>,
    /// Number of the latest change, and of the latest that S3 has.
    stamp: u64,
    saved_stamp: u64,
    /// What the next commit expects to replace.
    expects: Condition,
    /// What is stored beside the bytes, kept through a rewrite.
    attributes: Attributes,
    written_at: SystemTime,
    ahead: Ahead,
    pub(super) owing: Owing,
    /// Open handles, and those of them that may write.
    handles: u32,
    writers: u32,
    /// Its object is an empty one that claims its name for it (O_EXCL); it was never saved.
    claimed: bool,
    /// Staging has the bytes of the object too, because its name is about to go: nothing is read from S3.
    fetched: bool,
    /// The name is gone: nothing of this file goes to S3 any more.
    orphan: bool,
    /// Another client won: the version these handles read is gone.
    lost: bool,
    /// Whether what is stored beside the bytes is known: not of a file that was opened by a listing's word.
    described: bool,
    /// Whether bytes of this version were answered, so that no other may take its place.
    answered: bool,
    /// A background task is trying to save it.
    retrying: bool,
    /// Its turn at the gate, until somebody waits for that.
    behind: Option<Turn>,
    /// How many wait for a save of it.
    awaited: u32,
    last_error: Option<String>,
    /// Attempts to change what is beside its bytes alone, of which nobody heard: up to which change, and how.
    described_as: Vec<(u64, Metadata)>,
}

/// What the journal has of a file, while S3 lacks something of it.
#[derive(Debug, Default)]
pub(super) struct Owing {
    pub(super) line: Option<Line>,
    /// Name of the staging file.
    pub(super) staging: Option<String>,
    /// The latest change whose bytes are in the staging file alone, and up to which one it was synced.
    staged: u64,
    synced: u64,
}

/// Bytes of a file up to here are in the journal too, where a sync of it is waited for: what is copied costs less than a sync
/// of another file.
const INLINED_MAX: u64 = 64 << 10;

/// How often, in bytes written, the disk is looked at.
const CHECK_BYTES: u64 = 4 << 20;

impl State {
    /// The parts that became full by the latest write.
    fn leaving(&mut self, layout: impl Fn(u64) -> Layout) -> Vec<(u16, ByteRange)> {
        let len = self.extents.len();
        if self.ahead.layout.is_none() && self.ahead.saved > 0 && len >= self.ahead.asked + CHECK_BYTES {
            self.ahead.asked = len;
            self.ahead.behind_object(layout(len));
        }
        self.ahead.in_order = self.extents.staged_until(self.ahead.in_order);
        if self.ahead.stopped || self.orphan || self.ahead.in_order <= SINGLE_PUT_MAX {
            return Vec::new();
        }
        let layout = *self.ahead.layout.get_or_insert_with(|| layout(len));
        if !layout.reaches(len) {
            // All of it goes again, in larger parts, when it is saved.
            self.ahead.stopped = true;
            return Vec::new();
        }
        let (number, start) = self.ahead.next;
        let full = full_parts(layout, number, start, self.ahead.in_order);
        if let Some((number, range)) = full.last() {
            self.ahead.next = (number + 1, range.end());
        }
        full
    }

    /// Whether bytes behind `start` were let go, so that S3 has to have the file before they change.
    pub(super) fn has_gone(&self, start: u64) -> bool {
        self.staging.as_ref().is_some_and(|staging| staging.gone_until() > start)
    }

    /// Whether S3 has to have the file before a range of it changes: bytes in or behind it were let go, or some were and
    /// the file would outgrow the parts that they are in.
    pub(super) fn needs_commit(&self, range: ByteRange) -> bool {
        self.has_gone(range.start()) || self.outgrows(range.end())
    }

    /// Whether the file would not fit any more into the parts that bytes of it are in alone.
    pub(super) fn outgrows(&self, len: u64) -> bool {
        self.has_gone(0) && self.ahead.layout.is_some_and(|layout| !layout.reaches(len))
    }

    /// How large the parts of its next upload are.
    fn layout(&self, rule: &PartRule) -> Layout {
        let len = self.extents.len();
        match self.ahead.layout {
            // What has left counts.
            Some(layout @ Layout::Equal(_)) if layout.reaches(len) => layout,
            Some(Layout::Growing(sizes)) if rule.is_equal() && self.has_gone(0) => sizes.equal_from_growing(),
            _ => rule.layout(len),
        }
    }

    fn is_saved(&self) -> bool {
        self.stamp == self.saved_stamp
    }

    fn may_be_renewed(&self, asked: &ObjectId) -> bool {
        let same = self.object.as_ref().is_some_and(|object| object.id == *asked);
        same && !self.described && !self.answered && !self.fetched && self.is_saved() && !self.orphan
    }

    /// A change up to `end` is written down, and about to be recorded under the stamp that this answers.
    pub(super) fn change(
        &mut self,
        fs: &Fs,
        ino: Ino,
        end: u64,
        record: impl FnOnce(FileId, u64, SystemTime) -> Record,
    ) -> Result<u64> {
        self.require_current()?;
        require_fits(end)?;
        // A time that was set was that of other bytes.
        if posix::says_mtime(&self.attributes.metadata) {
            let mut attributes = self.attributes.clone();
            posix::forget_mtime(&mut attributes.metadata);
            self.describe(fs, ino, attributes)?;
        }
        let (stamp, at) = (self.stamp + 1, fs.clock.wall());
        fs.note(ino, self, |file| record(file, stamp, at))?;
        self.stamp = stamp;
        self.written_at = at;
        Ok(stamp)
    }

    /// Other attributes go beside the bytes.
    fn describe(&mut self, fs: &Fs, ino: Ino, attributes: Attributes) -> Result<()> {
        let stamp = self.stamp + 1;
        fs.note(ino, self, |file| Record::Described {
            file,
            attributes: Box::new(attributes.clone()),
            stamp,
        })?;
        self.stamp = stamp;
        self.attributes = attributes;
        Ok(())
    }

    fn require_current(&self) -> Result<()> {
        if self.lost {
            return Err(Error::new(Kind::Stale, "another client replaced the file; open it again"));
        }
        Ok(())
    }

    /// The staging file, made if there is none.
    pub(super) fn staging_in(&mut self, fs: &Fs) -> Result<Arc<Staging>> {
        if let Some(staging) = &self.staging {
            return Ok(Arc::clone(staging));
        }
        let fresh = Arc::new(fs.new_staging(self)?);
        self.staging = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    /// Puts bytes into the staging file. Returns what it has to be there, for whoever writes down that they are.
    pub(super) fn stage(&mut self, fs: &Fs, data: &[u8], offset: u64) -> Result<Vec<Sum>> {
        let staging = self.staging_in(fs)?;
        let Some(change) = staging.change(data, offset)? else { return Ok(Vec::new()) };
        let line = self.owing.line.as_ref();
        // If the process ends now, these may be the old bytes or the new ones, and either is right.
        if let Some(line) = line.filter(|_| !change.was().is_empty()) {
            line.append(|file| Record::Overwriting { file, was: change.was().to_vec() })?;
        }
        match staging.write(&change) {
            Ok(()) => Ok(change.into_sums()),
            Err((error, sums)) => {
                if let Some(line) = line.filter(|_| !sums.is_empty()) {
                    line.append(|file| Record::Sums { file, sums })?;
                }
                Err(error)
            }
        }
    }

    /// Whether the journal has the bytes of a write too, so that an acknowledgement syncs it alone: of small files that are
    /// acknowledged on the disk, where nothing was written before.
    fn may_inline(&self, fs: &Fs, range: ByteRange) -> bool {
        let fresh = || self.staging.as_ref().is_none_or(|staging| staging.has_nothing_of(range));
        fs.options.durability == Durability::Journal
            && range.end() <= INLINED_MAX
            && fresh()
            && fs.options.journal.as_ref().is_some_and(|journal| journal.takes_inlined(range.len()))
    }

    /// Nothing points into the staging file any more.
    fn drop_staging(&mut self) {
        if let Some(staging) = self.staging.take() {
            staging.remove();
        }
        self.owing.staging = None;
    }

    /// The file as the journal has to know it before its first change.
    pub(super) fn begun(&self, place: Place, staging: String, base: Option<BaseObject>) -> Begun {
        Begun {
            file: FileId(0),
            place,
            base,
            expects: self.expects.clone(),
            attributes: self.attributes.clone(),
            written_at: self.written_at,
            staging,
            stamp: self.stamp,
            saved: self.saved_stamp,
        }
    }

    /// The object that its unchanged bytes come from.
    pub(super) fn base(&self) -> Option<&Object> {
        self.object.as_ref()
    }

    pub(super) fn expected(&self) -> &Condition {
        &self.expects
    }

    pub(super) fn is_orphan(&self) -> bool {
        self.orphan
    }

    /// Whether S3 has all of it, or is to have nothing of it.
    pub(super) fn owes_nothing(&self) -> bool {
        self.is_saved() || self.orphan || self.lost
    }

    /// The staging file, where an acknowledgement has to sync it.
    pub(super) fn to_sync(&self) -> Option<Arc<Staging>> {
        self.staging.clone().filter(|_| self.owing.staged > self.owing.synced)
    }

    /// The staging file was synced when this was the latest change.
    pub(super) fn was_synced(&mut self, stamp: u64) {
        self.owing.synced = self.owing.synced.max(stamp);
    }

    pub(super) fn latest(&self) -> (u64, Option<Arc<Staging>>) {
        (self.stamp, self.staging.clone())
    }

    /// Where the bytes of a range come from.
    pub(super) fn segments(&self, range: ByteRange) -> Vec<Segment> {
        let mut segments = self.extents.segments(range);
        if self.fetched {
            for segment in segments.iter_mut().filter(|segment| segment.what == What::Base) {
                segment.what = What::Staged(self.saved_stamp);
            }
        }
        segments
    }

    fn all_segments(&self) -> Vec<Segment> {
        ByteRange::new(0, self.extents.len()).map_or_else(Vec::new, |whole| self.segments(whole))
    }
}

impl File {
    /// A file made here: nothing of it is in S3.
    pub(super) fn new(ino: Ino, expects: Condition, attributes: Attributes, now: SystemTime) -> Self {
        Self::with(ino, None, expects, attributes, 1, now)
    }

    /// A file made here, whose name an empty object keeps, its metadata beside it.
    pub(super) fn claimed(ino: Ino, object: Object, attributes: Attributes, now: SystemTime) -> Self {
        let file = Self::of_object(ino, object, attributes, now);
        lock(&file.state).claimed = true;
        file
    }

    /// A file as S3 has it.
    pub(super) fn of_object(ino: Ino, object: Object, attributes: Attributes, now: SystemTime) -> Self {
        let expects = Condition::Matches(object.id.etag.clone());
        Self::with(ino, Some(object), expects, attributes, 0, now)
    }

    /// A file as a listing describes it: without what is stored beside the bytes.
    pub(super) fn listed(ino: Ino, object: Object, now: SystemTime) -> Self {
        let file = Self::of_object(ino, object, Attributes::default(), now);
        lock(&file.state).described = false;
        file
    }

    /// S3 was asked about the version that the file is of: it is there, and this is stored beside its bytes. `asked_at` is the
    /// latest change when that was, if the file was open then: another client may have changed what is beside the same bytes
    /// since it was opened, and this mount since it was asked.
    pub(super) fn described(&self, volume: &Volume, info: &ObjectInfo, asked_at: Option<u64>) {
        let mut state = lock(&self.state);
        let newer = state.is_saved() && asked_at == Some(state.stamp);
        if !std::mem::replace(&mut state.described, true) || newer {
            let before = std::mem::take(&mut state.attributes.tags);
            state.attributes = volume.new_objects.rewritten(info.attributes.clone());
            // Only who is about to write asks for tags.
            if info.tag_count > 0 && state.attributes.tags.is_empty() {
                state.attributes.tags = before;
            }
        }
    }

    /// Bytes of this version are about to be answered, so the handles stay with it; `false` where another version has
    /// taken its place since they were asked for.
    pub(super) fn confirm(&self, fs: &Fs, answered: &ObjectId) -> bool {
        let (first, same) = {
            let mut state = lock(&self.state);
            let first = !std::mem::replace(&mut state.answered, true);
            (first, state.object.as_ref().is_none_or(|object| object.id == *answered))
        };
        if first {
            self.hold(fs);
        }
        same
    }

    /// The kernel has bytes of this version, and answers with them.
    pub(super) fn is_in_kernel(&self) {
        lock(&self.state).answered = true;
    }

    /// Keeps its inode to the version that its handles read, now that one was opened or closed, or bytes were answered or
    /// saved.
    pub(super) fn hold(&self, fs: &Fs) {
        let state = lock(&self.state);
        let stays = state.handles > 0 && state.is_saved() && !state.orphan;
        let version = state.object.as_ref().filter(|_| stays && (state.described || state.answered));
        // Under the file's lock, so that the last word is the right one.
        fs.tree().hold(self.ino, version.map(|object| object.id.etag.clone()));
    }

    /// The file's size by the word of the listing it was opened by, as long as no byte of it was answered.
    pub(super) fn renewable(&self, asked: &ObjectId) -> Option<u64> {
        let state = lock(&self.state);
        state.may_be_renewed(asked).then(|| state.extents.len())
    }

    /// Goes on with the newest version; `false` where bytes of the other one were answered meanwhile.
    fn renew(&self, from: &ObjectId, object: Object, attributes: Attributes) -> bool {
        let mut state = lock(&self.state);
        if !state.may_be_renewed(from) {
            return false;
        }
        state.extents = Extents::of_base(object.size);
        state.expects = Condition::Matches(object.id.etag.clone());
        state.ahead = Ahead::of_object(object.size);
        state.object = Some(object);
        state.attributes = attributes;
        state.described = true;
        true
    }

    /// A file as an earlier mount left it: nobody has it open, and S3 lacks something of it.
    pub(super) fn owed(
        ino: Ino,
        owed: OwedFile,
        object: Option<Object>,
        copies: Vec<Copied>,
        staging: Staging,
        line: Line,
        layout: Option<Layout>,
    ) -> Self {
        let file = Self::with(ino, object, owed.expects, owed.attributes, owed.stamp, owed.written_at);
        {
            let mut state = lock(&file.state);
            state.extents = owed.extents;
            state.saved_stamp = owed.saved;
            state.copies = copies;
            state.staging = Some(Arc::new(staging));
            state.ahead.stopped = true;
            state.ahead.layout = layout;
            state.owing =
                Owing { line: Some(line), staging: Some(owed.staging), staged: owed.stamp, synced: 0 };
            file.note_uploads(&state);
        }
        file
    }

    fn with(
        ino: Ino,
        object: Option<Object>,
        expects: Condition,
        attributes: Attributes,
        stamp: u64,
        now: SystemTime,
    ) -> Self {
        let size = object.as_ref().map_or(0, |object| object.size);
        Self {
            ino,
            state: Mutex::new(State {
                extents: Extents::of_base(size),
                object,
                copies: Vec::new(),
                staging: None,
                stamp,
                saved_stamp: 0,
                expects,
                attributes,
                written_at: now,
                ahead: Ahead::of_object(size),
                owing: Owing::default(),
                handles: 0,
                writers: 0,
                claimed: false,
                fetched: false,
                orphan: false,
                lost: false,
                described: true,
                answered: false,
                retrying: false,
                behind: None,
                awaited: 0,
                last_error: None,
                described_as: Vec::new(),
            }),
            commit: Arc::default(),
            progress: Arc::default(),
            sending: tokio::sync::RwLock::default(),
            told: AtomicU64::new(0),
            ended: tokio::sync::watch::Sender::new(0),
            parts: Arc::default(),
        }
    }

    /// One more handle.
    pub(super) fn opened(&self, writable: bool) {
        let mut state = lock(&self.state);
        state.handles += 1;
        state.writers += u32::from(writable);
    }

    /// One handle less; whether it was the last.
    pub(super) fn closed(&self, writable: bool) -> bool {
        let mut state = lock(&self.state);
        state.handles = state.handles.saturating_sub(1);
        state.writers = state.writers.saturating_sub(u32::from(writable));
        // Its maker was told that the empty file is in S3.
        state.claimed &= !state.is_saved();
        state.handles == 0
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.state).handles > 0
    }

    /// Whether S3 lacks something that has to get there.
    pub(super) fn is_dirty(&self) -> bool {
        let state = lock(&self.state);
        !state.is_saved() && !state.orphan && !state.lost
    }

    /// Whether `stat` answers of it as it is here.
    pub(super) fn is_unsaved(&self) -> bool {
        let state = lock(&self.state);
        !state.is_saved() || state.orphan
    }

    /// What `stat` answers of it, where that differs from what S3 has.
    pub(super) fn unsaved(&self) -> Option<Unsaved> {
        let state = lock(&self.state);
        (!state.is_saved() || state.orphan).then(|| Unsaved {
            len: state.extents.len(),
            written_at: state.written_at,
            posix: Arc::new(Posix::of(&state.attributes.metadata)),
            nameless: state.orphan,
        })
    }

    /// Why its last save failed.
    pub(super) fn last_error(&self) -> Option<String> {
        lock(&self.state).last_error.clone()
    }

    /// Changes what goes beside its bytes; S3 hears of it at the next commit, like of any other change.
    pub(super) fn describe(&self, fs: &Fs, change: impl FnOnce(&mut Attributes) -> Result<()>) -> Result<()> {
        let mut state = self.current()?;
        let mut attributes = state.attributes.clone();
        change(&mut attributes)?;
        if attributes == state.attributes {
            return Ok(());
        }
        state.describe(fs, self.ino, attributes)
    }

    /// Whether nobody's close will save it.
    pub(super) fn has_no_writer(&self) -> bool {
        lock(&self.state).writers == 0
    }

    /// Its staging file, if there is one.
    pub(super) fn staging(&self) -> Option<Arc<Staging>> {
        lock(&self.state).staging.clone()
    }

    /// The version a clean file is of.
    pub(super) fn etag(&self) -> Option<ETag> {
        let state = lock(&self.state);
        state.object.as_ref().filter(|_| !state.lost).map(|o| o.id.etag.clone())
    }

    /// The object, where all of the file is in it.
    pub(super) fn clean_object(&self) -> Option<Object> {
        let state = lock(&self.state);
        let clean = state.is_saved() && !state.orphan && !state.lost;
        state.object.clone().filter(|_| clean)
    }

    /// The object that its unchanged bytes come from.
    pub(super) fn object_id(&self) -> Option<ObjectId> {
        lock(&self.state).object.as_ref().map(|object| object.id.clone())
    }

    /// Whether S3 has an object that this file replaces or is.
    pub(super) fn has_object(&self) -> bool {
        lock(&self.state).expects != Condition::Absent
    }

    /// Takes bytes; no offset appends.
    pub(super) fn write(&self, fs: &Fs, offset: Option<u64>, data: &[u8]) -> Result<Taken> {
        let mut state = self.current()?;
        let offset = offset.unwrap_or(state.extents.len());
        let Some(range) = ByteRange::at(offset, data.len() as u64) else {
            return Ok(Taken::Here(Vec::new()));
        };
        require_fits(range.end())?;
        if state.needs_commit(range) {
            return Ok(Taken::NeedsCommit);
        }
        state.ahead.unchecked += range.len();
        if state.ahead.unchecked >= CHECK_BYTES {
            if fs.disk.is_short() {
                return Ok(Taken::NeedsRoom);
            }
            state.ahead.unchecked = 0;
        }
        let mut inlined = state.may_inline(fs, range);
        let written = state.stage(fs, data, offset).and_then(|sums| {
            let wrote = |file, stamp, at| match inlined {
                true => Record::Inlined { file, range, stamp, at, bytes: Bytes::copy_from_slice(data) },
                false => Record::Wrote { file, range, stamp, at, sums },
            };
            state.change(fs, self.ino, range.end(), wrote)
        });
        let stamp = match written {
            Err(error) if error.kind() == Kind::NoSpace => return Ok(Taken::NeedsRoom),
            stamp => stamp?,
        };
        inlined &= state.owing.line.is_some();
        if !inlined {
            state.owing.staged = stamp;
        }
        self.note_uploads(&state);
        state.extents.write(range, stamp);
        Ok(Taken::Here(state.leaving(|len| fs.layout_of(self.ino, len))))
    }

    /// Writes once more, after room was made for it as far as that could be done.
    pub(super) fn room_was_made(&self) {
        lock(&self.state).ahead.unchecked = 0;
    }

    /// Cuts or grows the file; `false` where S3 has to have it before, because bytes before its new end were let go.
    pub(super) fn truncate(&self, fs: &Fs, len: u64) -> Result<bool> {
        let mut state = self.current()?;
        if len == state.extents.len() {
            return Ok(true);
        }
        require_fits(len)?;
        if len > 0 && (state.has_gone(len) || state.outgrows(len)) {
            return Ok(false);
        }
        let stamp =
            state.change(fs, self.ino, len, |file, stamp, at| Record::Cut { file, len, stamp, at })?;
        self.note_uploads(&state);
        state.extents.truncate(len, stamp);
        state.ahead.cut(len);
        if len == 0
            && let Some(staging) = &state.staging
        {
            // Nothing points into it, whatever of it was let go. A commit under way may still read from it.
            match self.commit.try_lock() {
                Ok(_turn) => staging.clear()?,
                Err(_) => staging.forget_gone(),
            }
        }
        Ok(true)
    }

    /// Waits for a turn to send a part ahead of a commit.
    pub(super) async fn sending(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.sending.read().await
    }

    /// Waits until every part that is leaving has left, and keeps others from it.
    pub(super) async fn sent_all(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.sending.write().await
    }

    /// Nothing leaves ahead of the next commit any more.
    pub(super) fn stop_leaving(&self) {
        lock(&self.state).ahead.stopped = true;
    }

    /// One more part is told to leave.
    pub(super) fn tell_to_leave(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    /// One that was told to has left, or will not.
    pub(super) fn has_left(&self) {
        self.ended.send_modify(|ended| *ended += 1);
    }

    /// Waits until as many parts have left, or will not, as were told to by now: they are on their way without a gap
    /// between them, where a commit would wait for those under way before it sends the others.
    pub(super) async fn all_told_have_left(&self) {
        let told = self.told.load(Ordering::Relaxed);
        // The file itself has the sender.
        let _ = self.ended.subscribe().wait_for(|ended| *ended >= told).await;
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Gives the disk back what S3 has in parts; whether that was anything.
    pub(super) fn let_go_of_sent(&self) -> bool {
        let held = self.parts.held();
        let state = lock(&self.state);
        let Some(staging) = &state.staging else { return false };
        let mut freed = false;
        for (range, sent, _) in held {
            let (newest, all_written_here) = state.extents.newest(range);
            if all_written_here && newest <= sent {
                freed |= staging.let_go(range).unwrap_or(false);
            }
        }
        freed
    }

    /// The file as it is, unless another client's version is all there is.
    pub(super) fn current(&self) -> Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        state.require_current()?;
        Ok(state)
    }

    /// Its uploads are written down where its changes are.
    pub(super) fn note_uploads(&self, state: &State) {
        self.parts.note_in(state.owing.line.clone());
    }

    pub(super) fn is_orphan(&self) -> bool {
        lock(&self.state).orphan
    }

    pub(super) fn attributes(&self) -> Attributes {
        lock(&self.state).attributes.clone()
    }

    /// Nothing is owed of it any more, or nobody will be told.
    fn let_go_of_line(&self, state: &mut State) {
        if let Some(line) = state.owing.line.take()
            && let Err(error) = line.append(|file| Record::Gone { file })
        {
            // The next mount finds a file that nobody wants, and keeps it.
            tracing::warn!(error = %error.report(), "what became of a file could not be written down");
        }
    }

    /// Its name is about to be this object's, or is not after all: what is to become of it if this process ends meanwhile.
    pub(super) fn replacing(&self, by: Option<BaseObject>) {
        let state = lock(&self.state);
        if let Some(line) = &state.owing.line
            && let Err(error) = line.append(|file| Record::Replacing { file, by })
        {
            // Then the next mount keeps it beside what took its place.
            tracing::warn!(error = %error.report(), "what takes a file's place could not be written down");
        }
    }

    /// The object has another key and ETag now: a rename on this mount.
    pub(super) fn moved(&self, fs: &Fs, volume: u32, store: &Volume, key: &str, etag: &ETag) {
        {
            let mut state = lock(&self.state);
            if let Some(object) = &mut state.object {
                *object = store.object(volume, key, etag.clone(), object.size);
                state.expects = Condition::Matches(etag.clone());
            }
        }
        self.hold(fs);
    }

    /// What the next commit replaces.
    pub(super) fn expects(&self) -> Condition {
        lock(&self.state).expects.clone()
    }

    /// The next commit replaces this version: the file took the name of an object that is still there. The one under its
    /// old name may be given up.
    pub(super) fn replaces(&self, expects: Condition, gives_up: bool) {
        let mut state = lock(&self.state);
        state.expects = expects;
        if gives_up {
            state.object = None;
            state.claimed = false;
        }
    }
}

/// A file as `stat` answers of it before S3 has it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsaved {
    pub(super) len: u64,
    pub(super) written_at: SystemTime,
    pub(super) posix: Arc<Posix>,
    /// Its name is gone.
    pub(super) nameless: bool,
}

/// What became of bytes that a program writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are here; these parts are full now.
    Here(Vec<(u16, ByteRange)>),
    /// The disk is short.
    NeedsRoom,
    /// They go over bytes that were let go.
    NeedsCommit,
}

/// No object is longer.
pub(super) fn require_fits(len: u64) -> Result<()> {
    if len > OBJECT_MAX {
        let told = format!("S3's largest object is {}", format_bytes(OBJECT_MAX));
        return Err(Error::new(Kind::TooLarge, told));
    }
    Ok(())
}

impl Fs {
    /// Whether the inode has bytes or a length that S3 does not have, or that are no object's any more.
    pub(super) fn has_unsaved(&self, ino: Ino) -> bool {
        lock(&self.files).known(ino).is_some_and(|file| file.is_unsaved())
    }

    pub(super) fn open_file(&self, ino: Ino) -> Option<Arc<File>> {
        lock(&self.files).get(ino).cloned()
    }

    /// Whether a file that S3 lacks something of is this inode or below it.
    pub(super) fn has_dirty_within(&self, ino: Ino) -> bool {
        let dirty: Vec<Ino> = lock(&self.files).all().filter(|f| f.is_dirty()).map(|f| f.ino).collect();
        self.is_any_within(dirty, ino)
    }

    /// The same of files that an open of their names would get: they keep the names from going. One whose place a newer
    /// version took does not.
    pub(super) fn keeps_its_name(&self, ino: Ino) -> bool {
        let dirty: Vec<Ino> = lock(&self.files).current().filter(|f| f.is_dirty()).map(|f| f.ino).collect();
        self.is_any_within(dirty, ino)
    }

    fn is_any_within(&self, files: Vec<Ino>, ino: Ino) -> bool {
        let tree = self.tree();
        files.into_iter().any(|file| tree.is_within(file, ino))
    }

    /// The parts of a file of at least this length.
    fn layout_of(&self, ino: Ino, len: u64) -> Layout {
        let place = self.tree().saving_place(ino);
        let volume = place.and_then(|(id, _)| self.volume(id));
        volume.map_or_else(|_| PartRule::default().layout(len), |volume| volume.part_rule.layout(len))
    }

    /// Nobody gets at this content any more but through handles it is open on.
    pub(super) fn let_go(&self, file: &Arc<File>) {
        lock(&self.pages).pop(&file.ino);
        let current = {
            let mut files = lock(&self.files);
            let current = files.is_current(file);
            files.take_place(file);
            current
        };
        // Another version that was opened since has the name.
        if current {
            self.unlink_inode(file.ino);
        }
    }

    /// Takes an inode from its name here; S3 still has what the name stands for.
    pub(super) fn unlink_inode(&self, ino: Ino) {
        let mut tree = self.tree();
        if let Some((parent, name)) = tree.link_of(ino) {
            tree.remove(parent, &name, self.clock.now());
            tree.forget_name(parent, &name);
        }
    }

    /// Forgets a file that is closed and saved.
    pub(super) fn drop_if_unused(&self, file: &Arc<File>) {
        lock(&self.files).drop_unused(file);
    }
}

/// The server said that the object ends before its size, which its version fixes.
pub(super) fn require_all_of(range: ByteRange, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 == range.len() {
        return Ok(());
    }
    Err(Error::new(Kind::Corrupt, format!("asked for {range}, got {} bytes", bytes.len())))
}
