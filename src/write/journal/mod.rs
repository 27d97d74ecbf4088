//! The journal: what a mount owes S3, on the local disk, so that no crash makes it forget.
//!
//! Owns: the state directory with its segments, its lock, and which staging files there have to be.
//! Does not own: the bytes in the staging files, which their writer puts there; what becomes of what is owed.
//!
//! ```text
//! DIR/                 0700
//!   lock               flock(2), held by the mount; says who it is
//!   journal-N          the segment with the highest number has everything
//!   journal.new        a segment that is being begun
//!   staging/           a file's written bytes at their own offsets
//!   inherited-N/       another such directory, which is being taken over
//! ```
//!
//! What its user does, in this order
//! 1. [`Record::Begun`], before the first change of a file; ids from [`Journal::fresh_id`].
//! 2. Of a change: the bytes into the staging file, then the record with their sums, then the answer to the program. All
//!    under the lock that orders the file's changes, so that stamps reach the journal in their order. Before bytes are
//!    written over that the file has already: [`Record::Overwriting`].
//! 3. Of an acknowledgement: `fdatasync` of the staging file (unless everything in it was inlined), then
//!    [`Record::Acknowledged`], then [`Journal::sync`], then the answer.
//! 4. Before an object goes that a file has copied runs of: their bytes into the staging file and `fdatasync`, then
//!    [`Record::Fetched`], then [`Journal::sync`]. Until then the object is the only place that has them.
//! 5. [`Record::Saved`] once S3 answered 200. Where nothing newer is there the file is forgotten, and begins anew with
//!    the next change.
//!
//! Guarantees
//! 1. What was appended survives the process; what was synced survives the machine. A record that failed was not
//!    appended, unless the disk would not take it back either and the process ended before the next one.
//! 2. What is owed after a crash is the sum of a prefix of the records, with everything synced in it. After a kill it
//!    is all of them.
//! 3. Damage is an error that names the file; it never makes the list of what is owed shorter. Only a torn tail is
//!    dropped, which nobody was promised.
//! 4. A file whose bytes are not all there is owed as damaged, and stays until [`Record::Gone`].
//!    One whose bytes may not be what was written, because the machine went down before they were acknowledged and their
//!    sums cannot tell, says so.
//! 5. What another directory owes is taken over as a whole or not at all, and is owed in one of them at any moment.
//! 6. On the disk the journal takes at most 16 MiB, or twice what was owed at its last checkpoint if that is more (some
//!    400 bytes for a file, 200 for a copy, 30 for a run, and what is inlined); and that again while a new segment is
//!    begun.
//!
//! An append is one write(2) into the page cache. Once in 16 MiB of them (160,000 writes; a hundredth of a second) it also
//! begins a new segment and waits for the disk.

mod check;
mod inherited;
mod ledger;
mod log;
#[cfg(test)]
mod mem;
mod record;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use self::check::{Look, check};
use self::inherited::{Inherited, remove_done, replay_all, sync_dir};
use self::log::{DiskDir, Log, Replayed};
use crate::base::private;
use crate::error::{Error, Kind, Result};

pub(super) use ledger::remember;
pub use ledger::{Owed, OwedFile, OwedRename, OwedUpload, SentPart};
pub use record::{
    BaseObject, Begun, CopiedFrom, Deleting, Doomed, FileId, IntentId, Kept, Moving, Place, Record, Run,
};

/// A segment is not replaced before it has this length: a checkpoint costs two syncs, and with 160,000 records between
/// two of them that is nothing, while reading so much at the next start takes a fraction of a second.
const SEGMENT_BYTES: u64 = 16 << 20;
const LOCK_NAME: &str = "lock";
const STAGING_NAME: &str = "staging";

/// The journal of one mount, in its state directory.
pub struct Journal {
    dir: PathBuf,
    log: Arc<Log>,
    /// Ends that the disk has not taken yet. They go before the next record.
    ends: Mutex<Vec<Record>>,
    next_id: AtomicU64,
    /// Held by the one sync under way.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Keeps others out as long as it is open.
    _lock: File,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Journal {
    /// Takes the directory for the mount that `mounted` describes, and tells what the one before it owes.
    ///
    /// What is owed is in this journal too: it goes on under the same ids. Staging files of what is not owed are
    /// removed, and bytes that only the journal has are put into theirs. Blocks.
    pub fn open(dir: &Path, mounted: &str) -> Result<(Self, Vec<Owed>)> {
        Self::open_with(dir, mounted, &[])
    }

    /// The same, with what is owed in those of `others` that no mount holds: it is owed here from now on, under other ids.
    /// One that cannot be taken over stays as it is.
    pub fn open_with(dir: &Path, mounted: &str, others: &[PathBuf]) -> Result<(Self, Vec<Owed>)> {
        let staging = dir.join(STAGING_NAME);
        let lock = take_lock(dir, mounted)?;
        make_private(&staging)?;
        let boot = boot();
        for other in others {
            match inherited::take(dir, other, boot) {
                Ok(true) => tracing::info!(other = %other.display(), "what is owed there is taken over"),
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    other = %other.display(), error = %error.report(),
                    "what is owed there stays there; see `pailfs recover`"
                ),
            }
        }
        let (mut replayed, beside) = replay_all(dir, boot)?;
        if replayed.torn_bytes > 0 {
            let bytes = replayed.torn_bytes;
            tracing::info!(dir = %dir.display(), bytes, "the journal's last record was not written whole");
        }
        restore_inlined(&staging, &replayed).map_err(|error| in_dir(dir, error))?;
        if !beside.is_empty() {
            let make_own = |beside: Inherited| beside.into(&mut replayed.ledger, &staging);
            let made = beside.into_iter().try_for_each(make_own).and_then(|()| sync_dir(&staging));
            made.map_err(|error| in_dir(dir, error))?;
        }
        let disk = Arc::new(DiskDir(dir.to_owned()));
        let log = Log::begin(disk, replayed, boot, SEGMENT_BYTES).map_err(|error| in_dir(dir, error))?;
        remove_done(dir, log.number());
        log.with_ledger(|ledger| remove_orphans(&staging, &ledger.staging().collect()));
        let (owed, last_id) = log.with_ledger(|ledger| (ledger.owed(), ledger.last_id()));
        let journal = Self {
            dir: dir.to_owned(),
            log: Arc::new(log),
            ends: Mutex::default(),
            next_id: AtomicU64::new(last_id + 1),
            turn: Arc::default(),
            _lock: lock,
        };
        Ok((journal, inspected(&staging, owed, Look::AtDoubtful)))
    }

    /// What is owed in a directory that no mount holds, without taking it over, and whether the bytes are what was written.
    /// Reads all of them. Blocks.
    pub fn look(dir: &Path) -> Result<Vec<Owed>> {
        match private::check_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            checked => checked.map_err(|error| cannot_use(dir, error))?,
        }
        let path = dir.join(LOCK_NAME);
        let lock = match private::open_to_read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            lock => lock.map_err(naming(&path)).map_err(|error| in_dir(dir, error.into()))?,
        };
        lock.try_lock_shared().map_err(|error| refused(dir, error))?;
        if !is_lock_of(dir, &lock)? {
            return Ok(Vec::new());
        }
        let (own, beside) = replay_all(dir, boot())?;
        let mut owed = inspected(&dir.join(STAGING_NAME), own.ledger.owed(), Look::AtAll);
        for Inherited { staging, replayed, .. } in beside {
            owed.extend(inspected(&staging, replayed.ledger.owed(), Look::AtAll));
        }
        Ok(owed)
    }

    /// Writes a record down. It survives this process from now on, and a power loss from the next [`sync`](Self::sync) on.
    ///
    /// On failure the record was not appended, and the journal is as it was: `Internal` where it makes no sense,
    /// `NoSpace` and `Local` where the disk did not take it.
    pub fn append(&self, record: &Record) -> Result<()> {
        self.append_ends(&mut self.ends.lock().unwrap_or_else(PoisonError::into_inner))?;
        self.log.append(record)
    }

    /// Whether so many bytes of a file may be written down with the change that wrote them: [`Record::Inlined`].
    pub fn takes_inlined(&self, bytes: u64) -> bool {
        self.log.takes_inlined(bytes)
    }

    /// Writes down that these objects are about to move, and returns once that is on the disk.
    pub async fn begin_rename(&self, from: &Place, to: &Place, objects: Vec<Moving>) -> Result<IntentId> {
        let id = IntentId(self.fresh_id());
        let appended =
            ledger::renaming(id, from, to, objects, true).iter().try_for_each(|record| self.append(record));
        let begun = match appended {
            Ok(()) => self.sync().await,
            failed => failed,
        };
        begun.map(|()| id).inspect_err(|_| self.end(Record::Renamed { id }))
    }

    /// Writes down that something has come to its end. Where the disk does not take that now it goes before the next
    /// record, so that nothing is begun in the place of what seems to be under way still.
    pub fn end(&self, record: Record) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.push(record);
        if let Err(error) = self.append_ends(&mut ends) {
            tracing::warn!(error = %error.report(), "the journal could not be written");
        }
    }

    fn append_ends(&self, ends: &mut Vec<Record>) -> Result<()> {
        while let Some(record) = ends.first() {
            match self.log.append(record) {
                // What makes no sense never will.
                Err(error) if error.kind() != Kind::Internal => return Err(error),
                _ => drop(ends.remove(0)),
            }
        }
        Ok(())
    }

    /// Returns once everything appended before the call is on the disk. All who wait together are served by one sync.
    pub async fn sync(&self) -> Result<()> {
        let wanted = self.log.appended();
        if self.log.synced() >= wanted {
            return Ok(());
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if self.log.synced() >= wanted {
            return Ok(());
        }
        let log = Arc::clone(&self.log);
        let syncing = tokio::task::spawn_blocking(move || {
            // Ends with the sync, even if nobody waits for it any more.
            let _turn = turn;
            log.sync()
        });
        syncing.await.map_err(|e| Error::new(Kind::Internal, "a sync broke off").with_source(e))?
    }

    /// A number that no file or intent in the journal has.
    pub fn fresh_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Where staging files are.
    pub fn staging_dir(&self) -> PathBuf {
        self.dir.join(STAGING_NAME)
    }

    /// What is owed now.
    pub fn owed(&self) -> Vec<Owed> {
        self.log.with_ledger(|ledger| ledger.owed())
    }

    /// Syncs of the journal since it was opened.
    pub fn syncs(&self) -> u64 {
        self.log.syncs()
    }
}

/// Makes a directory if it is not there.
fn make_private(dir: &Path) -> Result<()> {
    private::make_dir(dir).map_err(|error| cannot_use(dir, error))
}

fn cannot_use(dir: &Path, error: std::io::Error) -> Error {
    if private::is_refusal(&error) {
        let told = format!(
            "the state directory {} has to be a directory that only its user may write to: {error}",
            dir.display()
        );
        return Error::new(Kind::InvalidArgument, told);
    }
    Error::new(Kind::Local, format!("cannot use the state directory {}", dir.display())).with_source(error)
}

/// Refuses a directory that other users could put bytes into, because they would go to S3 as the mounter's.
fn require_private(dir: &Path) -> Result<()> {
    private::check_dir(dir).map_err(|error| cannot_use(dir, error))
}

/// Says of which file somebody else may have made something, where that is why it is not used.
fn naming(path: &Path) -> impl Fn(std::io::Error) -> std::io::Error {
    move |error| match private::is_refusal(&error) {
        true => std::io::Error::new(error.kind(), format!("{}: {error}", path.display())),
        false => error,
    }
}

/// Makes the directory if it is not there, and keeps others out of it.
fn take_lock(dir: &Path, mounted: &str) -> Result<File> {
    let mut lock = loop {
        make_private(dir)?;
        let path = dir.join(LOCK_NAME);
        let opened =
            private::open(&path, OpenOptions::new().read(true).write(true).create(true).truncate(false));
        let lock = match opened {
            // Another mount has just taken the directory over.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            lock => lock.map_err(naming(&path)).map_err(|error| in_dir(dir, error.into()))?,
        };
        lock.try_lock().map_err(|error| refused(dir, error))?;
        if is_lock_of(dir, &lock)? {
            break lock;
        }
    };
    let told = format!("{}\n{mounted}\n", std::process::id());
    // For people only: on a full disk the lock holds all the same.
    let written = lock.set_len(0).and_then(|()| lock.write_all(told.as_bytes()));
    if let Err(error) = written {
        tracing::debug!(%error, "the lock does not say whose it is");
    }
    Ok(lock)
}

/// The lock of a directory that is there and that nobody holds.
fn lock_of(dir: &Path) -> Result<Option<File>> {
    let path = dir.join(LOCK_NAME);
    let lock = match private::open(&path, OpenOptions::new().read(true).write(true)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        lock => lock.map_err(naming(&path))?,
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        locked => locked.map_err(|error| refused(dir, error))?,
    }
    Ok(is_lock_of(dir, &lock)?.then_some(lock))
}

/// Whether a lock that was taken is the directory's still: another mount may have taken the directory over.
fn is_lock_of(dir: &Path, lock: &File) -> Result<bool> {
    let held = lock.metadata().map_err(|error| in_dir(dir, error.into()))?;
    match fs::symlink_metadata(dir.join(LOCK_NAME)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(in_dir(dir, error.into())),
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
    }
}

fn refused(dir: &Path, error: TryLockError) -> Error {
    match error {
        TryLockError::Error(error) => in_dir(dir, error.into()),
        TryLockError::WouldBlock => {
            let holder = fs::read_to_string(dir.join(LOCK_NAME)).unwrap_or_default();
            let mut lines = holder.lines();
            let pid = lines.next().unwrap_or("unknown");
            let mounted = lines.next().unwrap_or("something");
            let told = format!(
                "the state directory {} is in use by process {pid}, which mounts {mounted}",
                dir.display()
            );
            Error::new(Kind::Conflict, told)
        }
    }
}

/// Names the directory.
fn in_dir(dir: &Path, error: Error) -> Error {
    let told = format!("in the state directory {}: {}", dir.display(), error.message());
    Error::new(error.kind(), told).with_source(error)
}

/// Bytes that only the journal is sure to have go where all others are. It keeps them until S3 has them, so this needs
/// no sync.
fn restore_inlined(staging: &Path, replayed: &Replayed) -> Result<()> {
    for (name, range, from) in replayed.ledger.inlined() {
        let bytes = replayed.bytes(range, from)?;
        let path = staging.join(name);
        let opened = private::open(&path, OpenOptions::new().write(true).create(true).truncate(false));
        let file = opened.map_err(naming(&path))?;
        file.write_all_at(&bytes, range.start())?;
    }
    Ok(())
}

fn remove_orphans(staging: &Path, named: &HashSet<&str>) {
    let Ok(entries) = fs::read_dir(staging) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_none_or(|name| !named.contains(name))
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(?name, %error, "a staging file that nothing needs cannot be removed");
        }
    }
}

/// What is owed, with what is wrong about the bytes.
fn inspected(staging: &Path, mut owed: Vec<Owed>, look: Look) -> Vec<Owed> {
    for owed in &mut owed {
        if let Owed::File(file) = owed {
            check(staging, file, look);
        }
    }
    owed
}

/// Names this run of the machine; 0 where it does not tell.
fn boot() -> u64 {
    fs::read("/proc/sys/kernel/random/boot_id")
        .map_or(0, |id| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &id))
}

#[cfg(test)]
mod tests;
