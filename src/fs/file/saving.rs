//! Putting a file into S3: as it is when that begins, under the condition that nobody was first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::copied::{Copied, lost_source};
use super::{File, State};
use crate::base::{ByteRange, ETag, Turn};
use crate::error::{Details, Error, Kind, Result};
use crate::fs::claims::Shared;
use crate::fs::volume::Volume;
use crate::fs::{Fs, OnConflict, PosixMode, lock};
use crate::s3::{Attributes, Condition, Metadata, ObjectInfo, is_archived, watch};
use crate::tree::posix::{self, Posix};
use crate::tree::{Facts, Ino, VolumeId, xattrs};
use crate::write::journal::Record;
use crate::write::{Base, Conditions, Job, Origin, SINGLE_PUT_MAX, Segment, What, upload};

/// Another request was changing the same key: how often and how soon to try again.
const CONFLICT_RETRIES: u32 = 4;
const CONFLICT_PAUSE: Duration = Duration::from_millis(100);
/// Failed commits of closed files are tried again after this long, doubling up to the maximum.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// The same where the endpoint did not answer: it comes back at some moment, and while it is silent asking costs no request.
const RETRY_UNANSWERED_MAX: Duration = Duration::from_secs(10);
/// How often a conflict copy is written again because its file was written meanwhile.
const COPY_ROUNDS_MAX: u32 = 8;
/// After a request that failed for want of an answer, S3 may still say whether it was done.
const TIDY_WAIT: Duration = Duration::from_secs(3);

/// Attempts to change what is beside a file's bytes that are remembered until one is heard of.
const DESCRIBED_MAX: usize = 8;

/// A file that S3 does not have yet as it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Below the mount's root.
    pub path: String,
    /// Bytes not in S3 yet.
    pub bytes: u64,
    /// Of these, what S3 has in parts of an upload that is not completed.
    pub sent_bytes: u64,
    pub last_error: Option<String>,
}

/// A file whose bytes S3 has, and that what is said beside them is about to change.
#[derive(Clone, Debug)]
pub(in crate::fs) struct PendingAttributes {
    /// The version of its object.
    pub(in crate::fs) of: ETag,
    /// The latest change.
    pub(in crate::fs) stamp: u64,
    pub(in crate::fs) attributes: Attributes,
}

/// Somebody waits for a save of the file, as long as this lives.
struct Awaited<'a>(&'a File);

impl<'a> Awaited<'a> {
    fn new(file: &'a File) -> Self {
        lock(&file.state).awaited += 1;
        Self(file)
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).awaited -= 1;
    }
}

/// What became of a save.
enum Saved {
    Here,
    /// Nothing: the file was renamed while it waited.
    Elsewhere,
}

impl Fs {
    /// Puts the file into S3 as it is now, unless S3 has it already.
    ///
    /// `Ok` means that every byte written before the call is an object. On failure every byte stays
    /// readable here; a lost race keeps them in a conflict copy and fails `Stale`.
    pub(in crate::fs) async fn commit(&self, file: &Arc<File>) -> Result<()> {
        let _awaited = Awaited::new(file);
        let behind = lock(&file.state).behind.take();
        if let Some(turn) = behind {
            self.lanes.gate.promote(&turn);
        }
        self.commit_in_time(file).await
    }

    /// The same, whether anybody waits for it or not.
    async fn commit_in_time(&self, file: &Arc<File>) -> Result<()> {
        let mut pause = CONFLICT_PAUSE;
        let mut result = self.commit_once(file).await;
        for _ in 0..CONFLICT_RETRIES {
            if !matches!(&result, Err(error) if error.kind() == Kind::Conflict) {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            result = self.commit_once(file).await;
        }
        lock(&file.state).last_error = result.as_ref().err().map(Error::report);
        // Whoever waits for room looks again.
        self.left.notify_waiters();
        result
    }

    async fn commit_once(&self, file: &Arc<File>) -> Result<()> {
        if !file.is_dirty() {
            return Ok(());
        }
        let mut saved = Saved::Elsewhere;
        while let Saved::Elsewhere = saved {
            let shared = match self.share_file(file).await {
                // Its name is being removed here; or it was saved meanwhile, and nobody needed its inode any more.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Stale) => {
                    let _turn = file.commit.lock().await;
                    return if file.is_dirty() { Err(error) } else { Ok(()) };
                }
                shared => shared?,
            };
            // The silence in which the rename of a directory was waited for is a part of this.
            let silence =
                (self.options.timeout + TIDY_WAIT).saturating_sub(shared.claim.quiet).max(TIDY_WAIT);
            let turn = Box::pin(self.commit_in_turn(file, &shared));
            let saving = watch(&file.progress, silence, turn).await;
            saved = saving.unwrap_or_else(|| {
                let seconds = self.options.timeout.as_secs_f32();
                Err(Error::new(Kind::TimedOut, format!("nothing moved for {seconds} s")))
            })?;
        }
        Ok(())
    }

    async fn commit_in_turn(&self, file: &Arc<File>, shared: &Shared) -> Result<Saved> {
        let _turn = file.commit.lock().await;
        file.all_told_have_left().await;
        // What is leaving has left; nothing more leaves until this is done.
        let _alone = file.sent_all().await;
        if !file.is_dirty() {
            return Ok(Saved::Here);
        }
        if !self.is_at(file, shared)? {
            return Ok(Saved::Elsewhere);
        }
        let Shared { id, volume, key, .. } = shared;
        let id = *id;
        // The object that this commit replaces may be what others are copied from.
        self.settle_copies(id, |of| of == key, Some(file)).await?;
        let honoured = volume.honoured().await;
        let (job, expects, stamp) = {
            let mut state = lock(&file.state);
            self.date(file, &mut state);
            let expects = match self.options.on_conflict {
                OnConflict::Overwrite => Condition::Any,
                OnConflict::KeepBoth | OnConflict::Fail => state.expects.clone(),
            };
            (self.job(file, &state, volume, key, expects.clone(), honoured), expects, state.stamp)
        };
        // What the process before this one began it with is not written down.
        let resumed = file.parts.is_resumed(&job.bucket, &job.key);
        self.carry_of(file.ino, &job.attributes.metadata).await?;
        let len = job.len;
        let origins: Vec<Origin> = job.origins().cloned().collect();
        if job.only_described().is_some() {
            file.describes(stamp, &job.attributes.metadata);
        }
        match upload(&job).await {
            Ok(written) => {
                let sent = match resumed {
                    true => there(volume, key, &job.attributes).await,
                    false => job.attributes.clone(),
                };
                let behind = self.committed(file, id, volume, key, len, stamp, &written.etag, &sent);
                // What was said beside its bytes while parts left goes behind them.
                Ok(if behind { Saved::Elsewhere } else { Saved::Here })
            }
            Err(error) => {
                if let Some(gone) = lost_source(&origins, &error).await {
                    return Err(file.without_source(&gone, error));
                }
                if !lost_race(volume, key, &expects, &error).await {
                    return Err(error);
                }
                match self.landed(file, id, volume, key).await {
                    Ok(true) => {
                        let told = "an earlier save had succeeded";
                        return Err(Error::new(Kind::Conflict, told).with_source(error));
                    }
                    Ok(false) => {}
                    // Whose the object is shows at the next try.
                    Err(unknown) => {
                        tracing::warn!(key, error = %unknown.report(), "who was first cannot be told yet");
                        let told = format!(
                            "s3://{}/{key} is another version now; what was written here will be kept beside it, \
                             unless it is an earlier save of this mount",
                            volume.bucket
                        );
                        return Err(Error::new(Kind::Stale, told).with_source(error));
                    }
                }
                if job.only_described().is_some() && file.forgets_description(stamp) {
                    // As if they had been changed just before: the other client's object has its own.
                    tracing::info!(key, error = %error.report(), "another client replaced the object whose attributes were changed");
                    self.let_go(file);
                    return Ok(Saved::Here);
                }
                if !job.has_gone() {
                    return Err(self.keep_as_conflict_copy(file, volume, key, error).await);
                }
                self.stats.conflicts.add(1);
                let copy = self.conflict_key(key);
                let sent = job.attributes.clone();
                let (written, told) = self.swap_with_conflict(job, volume, &copy, error).await?;
                self.committed(file, id, volume, key, len, stamp, &written.etag, &sent);
                tracing::debug!(key, copy, "another client was first; its version is in the copy");
                Err(told)
            }
        }
    }

    /// Where attributes are asked for, the time of the bytes goes with them, so that they keep it to the nanosecond. What
    /// leaves in parts has said what is beside it before its last byte was written.
    fn date(&self, file: &File, state: &mut State) {
        let is_put = !file.parts.has_begun() && state.extents.len() <= SINGLE_PUT_MAX;
        if !is_put || posix::says_mtime(&state.attributes.metadata) {
            return;
        }
        let parent = self.tree().link_of(file.ino).map(|(parent, _)| parent);
        if parent.is_some_and(|parent| self.asks_for_times(parent)) {
            let dated = Posix { mtime: Some(state.written_at), ..Posix::default() };
            let mut metadata = state.attributes.metadata.clone();
            posix::write(&mut metadata, &dated);
            if xattrs::fits(&metadata) {
                state.attributes.metadata = metadata;
            }
        }
    }

    /// Whether whoever lists a directory asks for what is beside the bytes of its files.
    pub(in crate::fs) fn asks_for_times(&self, dir: Ino) -> bool {
        match self.options.posix {
            PosixMode::Off => false,
            PosixMode::Full => true,
            PosixMode::Auto => self.tree().carries(dir) == Some(true),
        }
    }

    /// Whether what is in S3 is what this mount, or the one before it, made and was not told of. Then the file goes on
    /// from there.
    pub(in crate::fs) async fn landed(
        &self,
        file: &Arc<File>,
        id: VolumeId,
        volume: &Volume,
        key: &str,
    ) -> Result<bool> {
        if !file.has_attempts() {
            return Ok(false);
        }
        let info = match volume.store.head(&volume.bucket, key, None).await {
            Err(error) if error.is_not_found() => return Ok(false),
            answer => answer?,
        };
        let landed = file
            .parts
            .landed(|made| made.is(&info) && made.place.bucket == volume.bucket && made.place.key == key);
        let landed = landed.map(|(stamp, _)| stamp).or_else(|| file.landed_description(&info));
        let Some(stamp) = landed else { return Ok(false) };
        if file.etag().as_ref() == Some(&info.etag) {
            return Ok(false);
        }
        tracing::info!(key, "what an earlier attempt saved is there");
        let sent = Attributes { metadata: info.attributes.metadata, ..typed(&file.attributes(), key) };
        self.committed(file, id, volume, key, info.size, stamp, &info.etag, &sent);
        Ok(true)
    }

    /// S3 has everything up to `stamp`, and `sent` beside the bytes. Whether that is less than what it is to have there: then
    /// it is one more change.
    #[allow(clippy::too_many_arguments)]
    pub(in crate::fs) fn committed(
        &self,
        file: &Arc<File>,
        id: VolumeId,
        volume: &Volume,
        key: &str,
        len: u64,
        stamp: u64,
        etag: &ETag,
        sent: &Attributes,
    ) -> bool {
        self.stats.commits.add(1);
        let object = volume.object(id.0, key, etag.clone(), len);
        let (before, clean, behind) = {
            let mut state = lock(&file.state);
            let before = state.object.as_ref().map(|o| o.id.etag.clone());
            let behind = typed(&state.attributes, key) != *sent;
            if behind && state.stamp == stamp {
                // Before the journal hears that what was before it is saved.
                let attributes = state.attributes.clone();
                if let Err(error) = state.describe(self, file.ino, attributes) {
                    state.stamp += 1;
                    tracing::warn!(key, error = %error.report(), "that attributes are yet to be saved could not be written down");
                }
            }
            state.extents.clear(stamp, len);
            if let Some(line) = &state.owing.line {
                let object = self.base_of(&object);
                if let Err(error) = line.append(|file| Record::Saved { file, stamp, object }) {
                    // The next mount finds by its ETag that the object is ours.
                    tracing::warn!(key, error = %error.report(), "that a file was saved could not be written down");
                }
            }
            file.parts.saved();
            state.object = Some(object);
            state.saved_stamp = stamp;
            state.described_as.clear();
            state.claimed = false;
            state.fetched = false;
            let left = len.min(state.extents.len());
            state.ahead.saved(left);
            if let Some(staging) = &state.staging {
                staging.forget_gone();
            }
            state.expects = Condition::Matches(etag.clone());
            let archived = is_archived(state.attributes.storage_class.as_deref(), false);
            let clean = state.is_saved();
            if clean {
                // Nothing points into them any more.
                state.drop_staging();
                state.copies.clear();
                state.owing.line = None;
            }
            // Before anybody sees the file saved: who opens it asks S3 then, and compares with what the tree says.
            let posix = Arc::new(Posix::of(&sent.metadata));
            let facts = Facts {
                archived,
                saved_at: Some(self.clock.wall()),
                ..Facts::made_here(len, Some(etag.clone()), state.written_at, posix)
            };
            self.tree().committed(file.ino, facts, self.clock.now());
            (before, clean, behind)
        };
        file.hold(self);
        lock(&self.siblings).changed(id, key);
        if clean {
            // The kernel's pages hold what was written through it, over pages of the version before.
            let mut pages = lock(&self.pages);
            if pages.get(&file.ino).cloned() == before {
                pages.put(file.ino, etag.clone());
            } else {
                pages.pop(&file.ino);
            }
        }
        behind
    }

    /// Where a conflict copy goes. No other one of this mount is there: two files of one name may lose at once.
    fn conflict_key(&self, key: &str) -> String {
        let now = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let after = |last: u64| now.max(last.saturating_add(1));
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let last = self.last_conflict.fetch_update(set, get, |last| Some(after(last))).unwrap_or(0);
        conflict_key(key, &self.options.host, after(last))
    }

    /// Another client was first: its object stays, and the bytes written here go beside it.
    async fn keep_as_conflict_copy(
        &self,
        file: &Arc<File>,
        volume: &Volume,
        key: &str,
        cause: Error,
    ) -> Error {
        self.stats.conflicts.add(1);
        if self.options.on_conflict == OnConflict::Fail {
            {
                let mut state = lock(&file.state);
                state.lost = true;
                file.let_go_of_line(&mut state);
            }
            self.let_go(file);
            let told = format!(
                "another client changed s3://{}/{key} first; what was written here is dropped, as \
                 --on-conflict=fail says",
                volume.bucket
            );
            return Error::new(Kind::Stale, told).with_source(cause);
        }
        let copy = self.conflict_key(key);
        let mut copied = false;
        for _ in 0..COPY_ROUNDS_MAX {
            let stamp = match self.write_conflict_copy(file, volume, key, &copy).await {
                Ok(stamp) => stamp,
                Err(error) => {
                    tracing::error!(key, error = %error.report(), "a conflict copy could not be written yet");
                    break;
                }
            };
            let mut state = lock(&file.state);
            // What was written meanwhile belongs into the copy too.
            copied = state.stamp == stamp;
            state.lost = copied;
            if copied {
                file.let_go_of_line(&mut state);
                break;
            }
        }
        if !copied {
            let told = format!(
                "another client changed s3://{}/{key} first; the bytes written here are kept and tried again",
                volume.bucket
            );
            return Error::new(Kind::Stale, told).with_source(cause);
        }
        self.let_go(file);
        tracing::debug!(key, copy, "another client was first; the bytes written here are in the copy");
        let told = format!(
            "another client changed s3://{}/{key} first; the bytes written here are in {copy}",
            volume.bucket
        );
        Error::new(Kind::Stale, told).with_source(cause)
    }

    /// Writes the copy; returns the stamp of the latest change in it.
    ///
    /// Where the version the bytes were written over is gone, what was not written here is taken from the
    /// version that won.
    async fn write_conflict_copy(&self, file: &File, volume: &Volume, key: &str, copy: &str) -> Result<u64> {
        let (mut job, stamp) = {
            let state = lock(&file.state);
            let job = self.job(file, &state, volume, copy, Condition::Any, Conditions::NONE);
            (Job { parts: Arc::default(), ..job }, state.stamp)
        };
        let reads_base = job.segments.iter().any(|segment| segment.what == What::Base);
        if reads_base && let Some(base) = &mut job.base {
            let current = match volume.store.head(&volume.bucket, key, None).await {
                Ok(info) => Some(info),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
            if current.as_ref().is_none_or(|info| info.etag != base.etag) {
                let size = current.as_ref().map_or(0, |info| info.size);
                job.segments = over_another_base(&job.segments, size);
            }
            if let Some(info) = current {
                // Not where the base was, if a directory above was renamed since it was replaced.
                *base = Base { bucket: volume.bucket.clone(), key: key.to_owned(), etag: info.etag };
            }
        }
        upload(&job).await?;
        Ok(stamp)
    }

    /// An upload of one part of a file that still wants it to leave.
    pub(in crate::fs) fn job_of_part(
        &self,
        file: &File,
        volume: &Volume,
        key: &str,
        (number, range): (u16, ByteRange),
    ) -> Option<Job> {
        let state = lock(&file.state);
        // A save may have come first.
        let is_due = state.ahead.layout.is_some_and(|layout| layout.part_at(range.start()).0 == number);
        let goes = is_due && !state.ahead.stopped && !state.orphan && !state.lost;
        if !goes || !state.extents.newest(range).1 {
            return None;
        }
        let job = self.job(file, &state, volume, key, Condition::Any, Conditions::NONE);
        Some(Job { segments: state.segments(range), ..job })
    }

    /// An upload of the file as it is now.
    fn job(
        &self,
        file: &File,
        state: &State,
        volume: &Volume,
        key: &str,
        condition: Condition,
        honoured: Conditions,
    ) -> Job {
        Job {
            store: Arc::clone(&volume.store),
            bucket: volume.bucket.clone(),
            key: key.to_owned(),
            attributes: file
                .parts
                .attributes(&volume.bucket, key)
                .unwrap_or_else(|| typed(&state.attributes, key)),
            condition,
            honoured,
            len: state.extents.len(),
            stamp: state.stamp,
            begun_at: self.clock.wall(),
            segments: state.all_segments(),
            base: state.object.as_ref().map(|object| Base {
                bucket: object.bucket.to_string(),
                key: object.id.key.to_string(),
                etag: object.id.etag.clone(),
            }),
            base_size: state.object.as_ref().map_or(0, |object| object.size),
            copies: state.copies.iter().map(Copied::origin).collect(),
            staging: state.staging.clone(),
            parts: Arc::clone(&file.parts),
            layout: state.layout(&volume.part_rule),
            rule: Arc::clone(&volume.part_rule),
            lanes: state.behind.as_ref().map_or_else(|| self.lanes.clone(), |turn| self.lanes.behind(turn)),
        }
    }

    /// Saves a closed file in the background, after a while, until it is saved. The caller's pin on the inode goes with it.
    pub(in crate::fs) fn save_in_background(self: &Arc<Self>, file: Arc<File>, after: Duration) {
        let tried = {
            let mut state = lock(&file.state);
            if std::mem::replace(&mut state.retrying, true) {
                drop(state);
                self.tree().unpin(file.ino);
                return;
            }
            state.last_error.is_some()
        };
        let (fs, hurry) = (Arc::downgrade(self), Arc::clone(&self.hurry));
        tokio::spawn(async move {
            let mut pause = RETRY_FIRST;
            // Pages of a shared mapping may arrive after the last close: those were never tried.
            if !tried && !after.is_zero() {
                let _ = tokio::time::timeout(after, hurry.notified()).await;
            }
            let mut wait = tried;
            while file.is_dirty() {
                if std::mem::replace(&mut wait, true) {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                let Some(fs) = fs.upgrade() else { return };
                let Ok(_turn) = fs.saving.acquire().await else { return };
                {
                    let mut state = lock(&file.state);
                    state.behind = (state.awaited == 0).then(Turn::default);
                }
                if let Err(error) = fs.commit_in_time(&file).await {
                    if matches!(error.kind(), Kind::Unreachable | Kind::TimedOut) {
                        pause = pause.min(RETRY_UNANSWERED_MAX);
                    }
                    fs.tell_unsaved(file.ino, &error, file.is_dirty().then_some(pause));
                }
            }
            {
                let mut state = lock(&file.state);
                state.retrying = false;
                state.behind = None;
            }
            if let Some(fs) = fs.upgrade() {
                fs.drop_if_unused(&file);
                fs.tree().unpin(file.ino);
            }
        });
    }

    /// Logs one attempt that failed with nobody waiting for it, and when the next one is.
    fn tell_unsaved(&self, ino: Ino, error: &Error, next: Option<Duration>) {
        let place = self.whereabouts(ino, None);
        let Details { request, bucket, key, code, status, request_id } = error.details();
        let (path, bucket, key) =
            (place.path, bucket.or(place.bucket.as_deref()), key.or(place.key.as_deref()));
        let next_try_s = next.map(|next| next.as_secs_f64());
        let told =
            if next.is_some() { "still not in S3; trying again" } else { "not saved under its own name" };
        tracing::warn!(
            op = "save",
            path,
            request,
            bucket,
            key,
            code,
            status,
            request_id,
            next_try_s,
            error = error.report(),
            "{told}"
        );
    }

    /// Commits every file that S3 lacks something of; the first failure is returned after all were tried. Names that were
    /// removed are gone from S3 too, or here again.
    pub async fn flush_all(&self) -> Result<()> {
        let files: Vec<Arc<File>> = lock(&self.files).all().filter(|f| f.is_dirty()).cloned().collect();
        let drained = self.drain_all();
        let first = self.commit_all(&files).await;
        drained.await;
        first
    }

    /// Commits files that are closed, in a directory, and not in S3 yet; as [`Fs::flush_all`] does.
    pub(in crate::fs) async fn flush_closed_in(&self, dir: Ino) -> Result<()> {
        let mut files: Vec<Arc<File>> = lock(&self.files).current().cloned().collect();
        files.retain(|file| file.is_dirty() && !file.is_open());
        let is_in_it =
            |file: &Arc<File>| self.tree().link_of(file.ino).is_some_and(|(parent, _)| parent == dir);
        files.retain(is_in_it);
        self.commit_all(&files).await
    }

    /// The first failure is returned after all were tried.
    async fn commit_all(&self, files: &[Arc<File>]) -> Result<()> {
        use futures::{FutureExt, StreamExt};
        let mut first = Ok(());
        // Boxed, because the compiler cannot see otherwise that the whole may move between threads.
        let commits: Vec<_> = files.iter().map(|file| self.commit(file).boxed()).collect();
        let mut commits = futures::stream::iter(commits).buffer_unordered(8);
        while let Some(result) = commits.next().await {
            if first.is_ok() {
                first = result;
            }
        }
        first
    }

    /// Files that S3 lacks something of.
    pub fn pending(&self) -> Vec<Pending> {
        let files: Vec<Arc<File>> = lock(&self.files).all().filter(|f| f.is_dirty()).cloned().collect();
        files
            .iter()
            .map(|file| {
                let held = file.parts.held();
                let (bytes, sent_bytes, last_error) = {
                    let state = lock(&file.state);
                    let sent = held.iter().filter(|(range, sent, _)| {
                        let (newest, all_written_here) = state.extents.newest(*range);
                        all_written_here && newest <= *sent
                    });
                    let sent_bytes = sent.map(|(range, ..)| range.len()).sum();
                    (state.extents.dirty_bytes(), sent_bytes, state.last_error.clone())
                };
                let path = self
                    .tree()
                    .path_of(file.ino)
                    .unwrap_or_else(|| super::super::whereabouts::UNLINKED.to_owned());
                Pending { path, bytes, sent_bytes, last_error }
            })
            .collect()
    }
}

impl File {
    /// What waits to be changed beside its bytes, where S3 lacks nothing else of it.
    pub(in crate::fs) fn only_described(&self) -> Option<PendingAttributes> {
        if self.has_attempts() {
            return None;
        }
        let state = lock(&self.state);
        let object = state.object.as_ref().filter(|_| !state.is_saved() && !state.orphan && !state.lost)?;
        let whole = ByteRange::new(0, object.size)?;
        let same = state.all_segments() == [Segment { range: whole, what: What::Base }];
        (same && state.extents.len() == object.size).then(|| PendingAttributes {
            of: object.id.etag.clone(),
            stamp: state.stamp,
            attributes: state.attributes.clone(),
        })
    }

    /// Whether its object is nothing but the place for what was written since, which nobody was told is in S3.
    pub(in crate::fs) fn is_only_claimed(&self) -> bool {
        if self.has_attempts() {
            return false;
        }
        let state = lock(&self.state);
        state.claimed && !state.is_saved() && !state.orphan && !state.lost
    }

    /// Its object is about to get this beside its bytes, which stay as they are.
    fn describes(&self, stamp: u64, metadata: &Metadata) {
        let mut state = lock(&self.state);
        if state.described_as.len() >= DESCRIBED_MAX {
            state.described_as.remove(0);
        }
        state.described_as.push((stamp, metadata.clone()));
    }

    /// Up to which change such an attempt saved it, if that is what S3 has there. The ETag tells nothing: that of an object
    /// which was uploaded in parts is another one afterwards.
    fn landed_description(&self, there: &ObjectInfo) -> Option<u64> {
        let state = lock(&self.state);
        let same_bytes = state.object.as_ref().is_some_and(|object| object.size == there.size);
        let attempts = state.described_as.iter().rev().filter(|_| same_bytes);
        attempts
            .into_iter()
            .find(|(_, metadata)| *metadata == there.attributes.metadata)
            .map(|(stamp, _)| *stamp)
    }

    /// Whether there was an attempt to save it of which nobody heard that it succeeded.
    pub(in crate::fs) fn has_attempts(&self) -> bool {
        self.parts.has_attempts() || !lock(&self.state).described_as.is_empty()
    }

    /// Lets go of a change of attributes up to a stamp that another client's object has overtaken; `false` where
    /// something else is to be saved.
    fn forgets_description(&self, stamp: u64) -> bool {
        let mut state = lock(&self.state);
        let only = state.stamp == stamp;
        if only {
            state.saved_stamp = stamp;
            state.lost = true;
            self.let_go_of_line(&mut state);
            // An earlier mount may have left one, with nothing in it.
            state.drop_staging();
        }
        only
    }
}

/// What is beside the bytes of an object that was just made, as far as it can be told; `hoped` is what was asked for.
async fn there(volume: &Volume, key: &str, hoped: &Attributes) -> Attributes {
    let told = volume.store.head(&volume.bucket, key, None).await;
    // Nothing, if that fails: then it is said once more.
    let metadata = told.map(|info| info.attributes.metadata).unwrap_or_default();
    Attributes { metadata, ..hoped.clone() }
}

/// Whether a commit failed because another client was first. AWS answers 404 where an object that was to be replaced
/// is gone; so does it for an upload or a part's source that is.
async fn lost_race(volume: &Volume, key: &str, expects: &Condition, error: &Error) -> bool {
    match (error.kind(), expects) {
        (Kind::AlreadyExists | Kind::Stale, _) => true,
        (Kind::NotFound, Condition::Matches(expected)) => {
            match volume.store.head(&volume.bucket, key, None).await {
                Ok(info) => info.etag != *expected,
                Err(error) => error.is_not_found(),
            }
        }
        _ => false,
    }
}

/// The same runs where only the first `size` bytes of the base are there; the rest of them are zeros.
pub(in crate::fs) fn over_another_base(segments: &[Segment], size: u64) -> Vec<Segment> {
    let mut runs = Vec::with_capacity(segments.len() + 1);
    for segment in segments {
        if segment.what != What::Base {
            runs.push(*segment);
            continue;
        }
        let (start, end) = (segment.range.start(), segment.range.end());
        let cut = size.clamp(start, end);
        runs.extend(ByteRange::new(start, cut).map(|range| Segment { range, what: What::Base }));
        runs.extend(ByteRange::new(cut, end).map(|range| Segment { range, what: What::Zero(0) }));
    }
    runs
}

/// What is stored beside the bytes; a new object's type is what its name says.
pub(in crate::fs) fn typed(attributes: &Attributes, key: &str) -> Attributes {
    let guess = || mime_guess::from_path(key).first_raw().map(str::to_owned);
    let content_type = attributes.content_type.clone().or_else(guess);
    Attributes { content_type, ..attributes.clone() }
}

/// `dir/NAME.conflict-HOST-MILLISECONDS`, within S3's limits.
fn conflict_key(key: &str, host: &str, millis: u64) -> String {
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(32).collect();
    let suffix = format!(".conflict-{host}-{millis}");
    let (dir, name) = key.rsplit_once('/').map_or(("", key), |(dir, name)| (dir, name));
    let room = 255usize.saturating_sub(suffix.len());
    let mut end = name.len().min(room);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let separator = if dir.is_empty() && !key.starts_with('/') { "" } else { "/" };
    format!("{dir}{separator}{}{suffix}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_copy_stays_in_its_directory_and_within_a_name() {
        let at = 5000;
        assert_eq!(conflict_key("a/b.txt", "h_1", at), "a/b.txt.conflict-h1-5000");
        assert_eq!(conflict_key("b", "h", at), "b.conflict-h-5000");
        let long = conflict_key(&format!("d/{}", "é".repeat(127)), "h", at);
        assert!(long.len() <= 257 && long.starts_with("d/é"));
    }
}
