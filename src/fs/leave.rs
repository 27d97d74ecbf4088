//! Parts of a file leave for S3 while it is still being written, and a local disk that is short gets back what S3 has.
//!
//! A part leaves once it is full and everything before it was written without a gap. It counts at the commit if nothing
//! was written into it since. What S3 has stays on the local disk too, for readers and for conflict copies, until the
//! disk is short: then it is let go of, and whoever wants to read or change such bytes commits the file first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::file::{File, Taken, over_another_base};
use super::volume::Volume;
use super::{Fs, lock};
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::s3::{Condition, Written, tell};
use crate::write::{Base, Job, Target, abandon, copy_object, send_ahead, upload};

/// Parts that leave ahead of a commit at once, over all files.
pub(super) const LEAVING_MAX: usize = 16;
/// How often a write waits for room that others take.
const ROOM_ROUNDS_MAX: u32 = 8;
/// How often our bytes take the place of another client's before that is given up.
const SWAPS_MAX: u32 = 4;

impl Fs {
    /// Takes bytes if that needs no wait; `None` where it does.
    pub fn write_now(self: &Arc<Self>, fh: u64, offset: u64, data: &[u8]) -> Option<Result<()>> {
        let (file, offset) = match self.writable(fh, offset) {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        match self.take(&file, offset, data) {
            Ok(Taken::Here(_)) => Some(Ok(())),
            Ok(Taken::NeedsRoom | Taken::NeedsCommit) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Takes bytes into staging; they are in S3 after a successful flush or fsync.
    ///
    /// `NoSpace` where the local disk is full and nothing of what it holds can be let go of.
    pub async fn write(self: &Arc<Self>, fh: u64, offset: u64, data: &[u8]) -> Result<()> {
        let (file, offset) = self.writable(fh, offset)?;
        let began = tokio::time::Instant::now();
        let mut rounds = 0;
        while rounds < ROOM_ROUNDS_MAX {
            match self.take(&file, offset, data)? {
                Taken::Here(_) => return Ok(()),
                Taken::NeedsCommit => self.commit(&file).await?,
                Taken::NeedsRoom => {
                    let moved = self.make_room(data.len() as u64).await;
                    file.room_was_made();
                    // Memory is small, and others that wait for it may have been faster.
                    if moved && self.disk.is_memory() && began.elapsed() < self.options.timeout {
                        continue;
                    }
                }
            }
            rounds += 1;
        }
        Err(Error::new(Kind::NoSpace, "the disk that written bytes are staged on is full"))
    }

    fn take(self: &Arc<Self>, file: &Arc<File>, offset: Option<u64>, data: &[u8]) -> Result<Taken> {
        let taken = file.write(self, offset, data)?;
        if let Taken::Here(parts) = &taken {
            self.tree().clear_mtime(file.ino);
            self.stats.bytes_written.add(data.len() as u64);
            self.send_ahead(file, parts.clone());
        }
        Ok(taken)
    }

    /// Parts that are full leave, each when it is its turn.
    pub(super) fn send_ahead(self: &Arc<Self>, file: &Arc<File>, parts: Vec<(u16, ByteRange)>) {
        for part in parts {
            self.send_when_free(file, part);
        }
    }

    fn send_when_free(self: &Arc<Self>, file: &Arc<File>, part: (u16, ByteRange)) {
        let leaving = Leaving::new(self, file);
        self.reader.runtime().spawn(async move {
            let Leaving { fs, file } = &leaving;
            let Ok(_slot) = fs.leaving_slots.acquire().await else { return };
            // A commit that waits for it waits as long as it moves.
            tell(&file.progress, fs.send_part(file, part)).await;
        });
    }

    async fn send_part(&self, file: &Arc<File>, part: (u16, ByteRange)) {
        let _sending = file.sending().await;
        let Some(job) = self.part_job(file, part) else { return };
        match send_ahead(&job, part).await {
            Ok(()) => self.stats.parts_ahead.add(1),
            Err(error) => {
                tracing::debug!(key = job.key, error = %error.report(), "a part could not leave early");
                file.stop_leaving();
            }
        }
        if self.disk.is_short() {
            file.let_go_of_sent();
        }
    }

    /// An upload of one part, of a file that still wants it to leave.
    fn part_job(&self, file: &Arc<File>, part: (u16, ByteRange)) -> Option<Job> {
        let (id, key) = self.tree().saving_place(file.ino).ok()?;
        let volume = self.volume(id).ok()?;
        self.job_of_part(file, &volume, &key, part)
    }

    /// Waits until there is room again for a write, or nothing that is staged can be let go of. Whether anything moved.
    async fn make_room(&self, bytes: u64) -> bool {
        let mut moved = false;
        self.hurry.notify_waiters();
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            let files: Vec<Arc<File>> = lock(&self.files).all().cloned().collect();
            let freed = files.iter().filter(|file| file.let_go_of_sent()).count();
            // Memory is given back by files that are saved, too.
            let saving = || self.disk.is_memory() && files.iter().any(|file| file.commit.try_lock().is_err());
            let busy = self.leaving.load(Ordering::Relaxed) > 0 || saving();
            moved |= freed > 0;
            if freed > 0 || !self.disk.is_short() || !busy {
                break;
            }
            if tokio::time::timeout(self.options.timeout, left).await.is_err() {
                break;
            }
            moved = true;
            if self.disk.is_memory() {
                break;
            }
        }
        self.disk.press(bytes, self.options.timeout).await;
        moved
    }

    /// Nobody will complete the upload of a file whose name is gone.
    pub(super) fn abandon_parts(&self, file: &Arc<File>) {
        let file = Arc::clone(file);
        self.reader.runtime().spawn(async move {
            let _alone = file.sent_all().await;
            abandon(file.parts()).await;
        });
    }

    /// Another client was first, and of what was written here some is in parts alone, which can become no other object
    /// than this one. So the other client's version moves to the conflict copy.
    pub(super) async fn swap_with_conflict(
        &self,
        mut job: Job,
        volume: &Volume,
        copy: &str,
        mut cause: Error,
    ) -> Result<(Written, Error)> {
        let segments = std::mem::take(&mut job.segments);
        for _ in 0..SWAPS_MAX {
            let theirs = match volume.store.head(&volume.bucket, &job.key, None).await {
                Ok(info) => Some(info),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
            if let Some(theirs) = &theirs {
                let source =
                    Base { bucket: volume.bucket.clone(), key: job.key.clone(), etag: theirs.etag.clone() };
                let (store, bucket) = (&volume.store, &volume.bucket);
                let again = volume.new_objects.moved(&theirs.attributes, true);
                let target = Target {
                    bucket,
                    key: copy,
                    condition: Condition::Any,
                    attributes: None,
                    again,
                    sizes: volume.copy_sizes,
                    noted: self.noted(),
                };
                let moved = copy_object(store, store, &source, theirs.size, target).await?;
                job.base = Some(Base { key: copy.to_owned(), etag: moved.etag, ..source });
            }
            // The version that what was written here was written over is gone.
            job.segments = over_another_base(&segments, theirs.as_ref().map_or(0, |theirs| theirs.size));
            job.condition = theirs.map_or(Condition::Absent, |theirs| Condition::Matches(theirs.etag));
            match upload(&job).await {
                Ok(written) => {
                    let told = format!(
                        "another client changed s3://{}/{} first; its version is in {copy}, and what was written \
                         here has the name",
                        volume.bucket, job.key
                    );
                    return Ok((written, Error::new(Kind::Stale, told).with_source(cause)));
                }
                Err(error) if matches!(error.kind(), Kind::AlreadyExists | Kind::Stale) => cause = error,
                Err(error) => return Err(error),
            }
        }
        Err(cause)
    }
}

/// A part that is to leave; when it has, or will not, those who wait for room look again, and a commit goes on.
struct Leaving {
    fs: Arc<Fs>,
    file: Arc<File>,
}

impl Leaving {
    fn new(fs: &Arc<Fs>, file: &Arc<File>) -> Self {
        fs.leaving.fetch_add(1, Ordering::Relaxed);
        file.tell_to_leave();
        Self { fs: Arc::clone(fs), file: Arc::clone(file) }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.fs.leaving.fetch_sub(1, Ordering::Relaxed);
        self.file.has_left();
        self.fs.left.notify_waiters();
    }
}
