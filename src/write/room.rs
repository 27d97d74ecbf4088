//! Where written bytes are staged, and whether there is room for more.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{MemfdFlags, fstat, memfd_create, statvfs};

use crate::base::{Budget, ByteRange, Grant, Pool};
use crate::error::{Error, Kind, Result};

/// Of the file system that bytes are staged on, this much is left to others: a twentieth, within bounds.
const RESERVE_SHARE: u64 = 20;
const RESERVE_MIN_BYTES: u64 = 16 << 20;
const RESERVE_MAX_BYTES: u64 = 1 << 30;
/// What memory is given out in.
const PAGE_BYTES: u64 = 4096;

/// Where bytes are staged.
#[derive(Debug)]
pub struct Room(Place);

#[derive(Debug)]
enum Place {
    Disk { dir: PathBuf, reserve_bytes: Option<u64> },
    Memory(Arc<Memory>),
}

/// Bytes of a budget that staged ones may hold.
#[derive(Debug)]
struct Memory {
    budget: Budget,
    max_bytes: u64,
    used_bytes: AtomicU64,
}

impl Room {
    /// Of the directory's file system so much is left to others; a twentieth, within bounds, unless something is said.
    pub fn on_disk(dir: &Path, reserve_bytes: Option<u64>) -> Self {
        Self(Place::Disk { dir: dir.to_owned(), reserve_bytes })
    }

    /// In memory, out of the budget that everything else in memory has too, up to so much of it.
    pub fn in_memory(budget: Budget, max_bytes: u64) -> Self {
        let budget = budget.held_for(Pool::Staging);
        Self(Place::Memory(Arc::new(Memory { budget, max_bytes, used_bytes: AtomicU64::new(0) })))
    }

    pub fn is_memory(&self) -> bool {
        matches!(self.0, Place::Memory(_))
    }

    /// Whether what is free is for others, or is soon needed: time to let go of what S3 has.
    pub fn is_short(&self) -> bool {
        match &self.0 {
            Place::Memory(memory) => memory.used_bytes.load(Ordering::Relaxed) > memory.max_bytes / 2,
            Place::Disk { dir, reserve_bytes } => {
                disk(dir, *reserve_bytes).is_some_and(|(free, reserve)| free < reserve)
            }
        }
    }

    /// How much can be written before that is so; `None` where the disk does not say. May wait for the disk.
    pub fn free_bytes(&self) -> Option<u64> {
        match &self.0 {
            Place::Memory(memory) => {
                Some((memory.max_bytes / 2).saturating_sub(memory.used_bytes.load(Ordering::Relaxed)))
            }
            Place::Disk { dir, reserve_bytes } => {
                let (free, reserve) = disk(dir, *reserve_bytes)?;
                Some(free.saturating_sub(reserve))
            }
        }
    }

    /// Waits until whoever keeps memory only because nobody else wanted it has let go of enough for one write, or that long.
    pub async fn press(&self, bytes: u64, wait: Duration) {
        if let Place::Memory(memory) = &self.0 {
            let _ = tokio::time::timeout(wait, memory.budget.take(bytes + 2 * PAGE_BYTES)).await;
        }
    }

    /// A new file without a name, and what counts its bytes.
    pub(super) fn file(&self) -> Result<(File, Option<Held>)> {
        let staged = |error: std::io::Error| Error::from(error).on("stage", "", "");
        match &self.0 {
            Place::Disk { dir, .. } => Ok((tempfile::tempfile_in(dir).map_err(staged)?, None)),
            Place::Memory(memory) => {
                let file = memfd_create("pailfs-staging", MemfdFlags::CLOEXEC);
                let file = file.map_err(|errno| staged(errno.into()))?;
                let held = Held { memory: Arc::clone(memory), grant: None, bytes: 0 };
                Ok((File::from(file), Some(held)))
            }
        }
    }
}

/// What is free of a directory's file system, and what of that is left to others.
fn disk(dir: &Path, reserve_bytes: Option<u64>) -> Option<(u64, u64)> {
    let disk = statvfs(dir).ok()?;
    let usual = (disk.f_blocks * disk.f_frsize / RESERVE_SHARE).clamp(RESERVE_MIN_BYTES, RESERVE_MAX_BYTES);
    Some((disk.f_bavail * disk.f_frsize, reserve_bytes.unwrap_or(usual)))
}

/// The memory that one staging file takes.
#[derive(Debug)]
pub(super) struct Held {
    memory: Arc<Memory>,
    grant: Option<Grant>,
    bytes: u64,
}

impl Held {
    /// Makes sure of the memory that a write may take; `NoSpace` where it is not to be had now.
    pub(super) fn reserve(&mut self, range: ByteRange) -> Result<()> {
        let first = range.start() / PAGE_BYTES;
        let bytes = (range.end().div_ceil(PAGE_BYTES) - first) * PAGE_BYTES;
        let full = || Error::new(Kind::NoSpace, "the memory for written bytes is used up");
        if self.memory.used_bytes.load(Ordering::Relaxed) + bytes > self.memory.max_bytes {
            return Err(full());
        }
        let grant = self.memory.budget.try_take(bytes).ok_or_else(full)?;
        match &mut self.grant {
            Some(all) => all.merge(grant),
            none => *none = Some(grant),
        }
        self.memory.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        Ok(())
    }

    /// Gives back what the file does not take after all.
    pub(super) fn settle(&mut self, file: &File) {
        let Ok(stat) = fstat(file) else { return };
        let takes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let surplus = self.bytes.saturating_sub(takes.div_ceil(PAGE_BYTES) * PAGE_BYTES);
        if let Some(grant) = self.grant.as_mut().filter(|_| surplus > 0) {
            drop(grant.split(surplus));
            self.bytes -= surplus;
            self.memory.used_bytes.fetch_sub(surplus, Ordering::Relaxed);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::Staging;

    fn write(staging: &Staging, data: &[u8], offset: u64) -> Result<()> {
        let change = staging.change(data, offset)?.unwrap();
        staging.write(&change).map_err(|(error, _)| error)
    }

    #[test]
    fn memory_is_counted_by_the_page_and_given_back() {
        let budget = Budget::new(1 << 20);
        let room = Room::in_memory(budget.clone(), 256 << 10);
        let staging = Staging::new(&room).unwrap();
        let held = || (1 << 20) - budget.free_bytes();
        write(&staging, b"x", 5).unwrap();
        assert_eq!(held(), 4096);
        write(&staging, b"y", 6).unwrap();
        assert_eq!(held(), 4096, "the same page");
        write(&staging, &[1; 128 << 10], 4096).unwrap();
        assert_eq!((held(), room.is_short(), room.free_bytes()), (132 << 10, true, Some(0)));
        assert_eq!(write(&staging, &[1; 128 << 10], 1 << 20).unwrap_err().kind(), Kind::NoSpace);
        assert_eq!(held(), 132 << 10, "nothing is left of what failed");
        assert!(staging.let_go(ByteRange::new(0, 132 << 10).unwrap()).unwrap());
        assert_eq!((held(), room.is_short(), room.free_bytes()), (0, false, Some(128 << 10)));
        write(&staging, &[1; 128 << 10], 1 << 20).unwrap();
        let other = Staging::new(&room).unwrap();
        write(&other, &[1; 128 << 10], 0).unwrap();
        assert_eq!(write(&other, b"z", 1 << 20).unwrap_err().kind(), Kind::NoSpace, "they share it");
        drop(staging);
        write(&other, b"z", 1 << 20).unwrap();
        drop(other);
        assert_eq!(budget.free_bytes(), 1 << 20);
    }

    #[test]
    fn it_takes_nothing_that_others_hold() {
        let budget = Budget::new(64 << 10);
        let room = Room::in_memory(budget.clone(), 64 << 10);
        let staging = Staging::new(&room).unwrap();
        let others = budget.try_take(60 << 10).unwrap();
        assert_eq!(write(&staging, &[1; 8 << 10], 0).unwrap_err().kind(), Kind::NoSpace);
        drop(others);
        write(&staging, &[1; 8 << 10], 0).unwrap();
    }
}
