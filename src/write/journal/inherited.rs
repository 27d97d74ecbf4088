//! Debts of other directories that this one takes over.
//!
//! ```text
//! DIR/
//!   inherited-N/       another directory as it was, with its segments and staging files; perhaps with such of its own
//! ```
//!
//! Invariants
//! 1. One rename makes another directory this one's, so at any moment its debts are owed in one place, under the one
//!    lock that keeps others out of that place.
//! 2. N is above every segment that there was. What `inherited-N` owes is in every segment above N, from its first
//!    record on; below that it is owed beside what the segments say. So a directory is garbage once such a segment counts,
//!    and nothing is owed twice or not at all, whenever the process ends.
//! 3. Its staging files get a second name, among this directory's own, before such a segment is begun, and keep their
//!    first: an attempt that was cut short has changed nothing, and the next one does it anew.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::ledger::Ledger;
use super::log::{self, DiskDir, Replayed, replay};
use super::{STAGING_NAME, in_dir, lock_of, require_private, restore_inlined};
use crate::base::private;
use crate::error::Result;

const PREFIX: &str = "inherited-";

/// A directory that is in another one, and owed beside it.
pub(super) struct Inherited {
    pub(super) staging: PathBuf,
    pub(super) replayed: Replayed,
    /// What its staging files are called in the other one begins with this.
    prefix: String,
}

/// What the segments of a directory say, and what is owed beside it. Changes nothing.
pub(super) fn replay_all(dir: &Path, boot: u64) -> Result<(Replayed, Vec<Inherited>)> {
    let mut own = replay(&DiskDir(dir.to_owned()), boot).map_err(|error| in_dir(dir, error))?;
    let mut beside = Vec::new();
    for (number, path) in numbered(dir)? {
        own.last_number = own.last_number.max(number);
        if own.number() > number {
            continue;
        }
        // Whoever could put it there could say what is to be saved.
        require_private(&path)?;
        let (replayed, further) = replay_all(&path, boot)?;
        let prefix = format!("{number:x}-");
        beside.extend(further.into_iter().map(|further| {
            let prefix = format!("{prefix}{}", further.prefix);
            Inherited { prefix, ..further }
        }));
        beside.push(Inherited { staging: path.join(STAGING_NAME), replayed, prefix });
    }
    Ok((own, beside))
}

/// Makes another directory this one's, if no mount holds it and it owes something; whether it was.
pub(super) fn take(dir: &Path, other: &Path, boot: u64) -> Result<bool> {
    let Some(_lock) = lock_of(other)? else { return Ok(false) };
    require_private(other)?;
    let (replayed, beside) = replay_all(other, boot)?;
    let owes = |ledger: &Ledger| !ledger.owed().is_empty();
    if !owes(&replayed.ledger) && !beside.iter().any(|beside| owes(&beside.replayed.ledger)) {
        return Ok(false);
    }
    require_private(&other.join(STAGING_NAME))?;
    require_links(dir, other)?;
    let segments = log::numbers(&DiskDir(dir.to_owned()))?;
    let number = segments.into_iter().chain(numbered(dir)?.into_iter().map(|(number, _)| number)).max();
    let name = format!("{PREFIX}{:08}", number.unwrap_or(0) + 1);
    fs::rename(other, dir.join(name))?;
    sync_dir(dir)?;
    other.parent().map_or(Ok(()), sync_dir)?;
    Ok(true)
}

/// Without second names for files nothing could be taken over once it is here.
fn require_links(dir: &Path, other: &Path) -> Result<()> {
    let trial = dir.join(format!("{PREFIX}trial"));
    let made = fs::hard_link(other.join(super::LOCK_NAME), &trial);
    if made.as_ref().is_err_and(|error| error.kind() != ErrorKind::AlreadyExists) {
        return Ok(made?);
    }
    Ok(fs::remove_file(trial)?)
}

impl Inherited {
    /// Puts what is owed there to what is owed in the directory whose staging files are in `staging`. It counts from the
    /// next segment on.
    pub(super) fn into(self, own: &mut Ledger, staging: &Path) -> Result<()> {
        let Self { staging: there, replayed, prefix } = self;
        restore_inlined(&there, &replayed)?;
        for (name, ..) in replayed.ledger.inlined() {
            private::open_to_read(&there.join(name))?.sync_data()?;
        }
        let mut ledger = replayed.ledger;
        ledger.inherited();
        for name in ledger.staging() {
            let here = staging.join(format!("{prefix}{name}"));
            // By an attempt that was cut short.
            absent(fs::remove_file(&here))?;
            // One that should be there is missed when what is owed is looked at.
            absent(fs::hard_link(there.join(name), here))?;
        }
        own.take_over(ledger, &prefix);
        Ok(())
    }
}

/// The names of staging files are on the disk.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    Ok(fs::File::open(dir)?.sync_all()?)
}

/// Removes the directories that a segment of this number has everything of.
pub(super) fn remove_done(dir: &Path, number: u64) {
    let done = numbered(dir).unwrap_or_default().into_iter().filter(|(of, _)| *of < number);
    for (_, path) in done {
        if let Err(error) = fs::remove_dir_all(&path) {
            // It takes room until the next mount tries again.
            tracing::warn!(dir = %path.display(), %error, "a directory that was taken over cannot be removed");
        }
    }
}

/// The directories that are in this one, in their order.
fn numbered(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| in_dir(dir, error.into()))? {
        let entry = entry.map_err(|error| in_dir(dir, error.into()))?;
        // Not a link either, which is nothing that was taken over.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort();
    Ok(found)
}

fn absent(answer: io::Result<()>) -> io::Result<()> {
    match answer {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}
