//! Written bytes on local disk until S3 has them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};

/// Of the file system that bytes are staged on, this much is left to others: a twentieth, within bounds.
const RESERVE_SHARE: u64 = 20;
const RESERVE_MIN_BYTES: u64 = 16 << 20;
const RESERVE_MAX_BYTES: u64 = 1 << 30;

/// Where bytes are staged, and whether there is room for more.
#[derive(Debug)]
pub struct Room {
    dir: PathBuf,
    reserve_bytes: Option<u64>,
}

impl Room {
    /// Of the directory's file system so much is left to others; a twentieth, within bounds, unless something is said.
    pub fn new(dir: &Path, reserve_bytes: Option<u64>) -> Self {
        Self { dir: dir.to_owned(), reserve_bytes }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether what is free is for others.
    pub fn is_short(&self) -> bool {
        let Ok(disk) = statvfs(&self.dir) else { return false };
        let usual =
            (disk.f_blocks * disk.f_frsize / RESERVE_SHARE).clamp(RESERVE_MIN_BYTES, RESERVE_MAX_BYTES);
        let reserve = self.reserve_bytes.unwrap_or(usual);
        disk.f_bavail * disk.f_frsize < reserve
    }
}

/// A sparse local file without a name, holding a file's written bytes at their own offsets.
///
/// It vanishes with the process. Reads and writes touch the page cache and, at worst, the local disk; they
/// never wait for the network.
#[derive(Debug)]
pub struct Staging {
    file: File,
    /// Start and end of what was let go, because S3 has it in a part.
    gone: Mutex<BTreeMap<u64, u64>>,
}

impl Staging {
    /// Opens a new staging file in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(|e| Error::from(e).on("stage", "", ""))?;
        Ok(Self { file, gone: Mutex::default() })
    }

    /// Writes all of `data`, or says `NoSpace`.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        debug_assert!(!self.is_gone(offset, offset + data.len() as u64), "S3 has to have it first");
        self.file.write_all_at(data, offset).map_err(Error::from)
    }

    /// Fills `buffer` from `offset`; what was never written reads as zeros. `false` where some of it was let go.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<bool> {
        let gone = self.lock();
        if overlaps(&gone, offset, offset + buffer.len() as u64) {
            return Ok(false);
        }
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => {
                    buffer[filled..].fill(0);
                    break;
                }
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// Reads a range into a new buffer; `None` where some of it was let go.
    pub fn bytes(&self, range: ByteRange) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; usize::try_from(range.len()).map_err(|_| too_large())?];
        Ok(self.read(&mut buffer, range.start())?.then_some(buffer))
    }

    /// Gives the disk back what S3 has; whether that was anything.
    pub fn let_go(&self, range: ByteRange) -> Result<bool> {
        let mut gone = self.lock();
        if gone.get(&range.start()) == Some(&range.end()) {
            return Ok(false);
        }
        // Nobody reads it from here on, whatever becomes of the hole.
        gone.insert(range.start(), range.end());
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, hole, range.start(), range.len()).map_err(std::io::Error::from)?;
        Ok(true)
    }

    /// S3 has an object with all that was let go: nothing points there any more.
    pub fn forget_gone(&self) {
        self.lock().clear();
    }

    fn is_gone(&self, start: u64, end: u64) -> bool {
        overlaps(&self.lock(), start, end)
    }

    /// The end of what was let go; 0 where nothing was.
    pub fn gone_until(&self) -> u64 {
        self.lock().last_key_value().map_or(0, |(_, end)| *end)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn overlaps(gone: &BTreeMap<u64, u64>, start: u64, end: u64) -> bool {
    gone.range(..end).next_back().is_some_and(|(_, gone_end)| *gone_end > start)
}

fn too_large() -> Error {
    Error::new(Kind::TooLarge, "the range does not fit in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_let_go_is_not_read_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(dir.path()).unwrap();
        staging.write(&[7; 100], 0).unwrap();
        staging.write(&[8; 100], 8192).unwrap();
        assert!(staging.let_go(ByteRange::at(0, 4096).unwrap()).unwrap());
        assert!(!staging.let_go(ByteRange::at(0, 4096).unwrap()).unwrap(), "once");
        for (at, len, there) in [(0, 1, false), (4000, 4192, false), (4096, 4096, true), (8190, 102, true)] {
            let bytes = staging.bytes(ByteRange::at(at, len).unwrap()).unwrap();
            assert_eq!(bytes.is_some(), there, "{len} at {at}");
        }
        assert_eq!(staging.gone_until(), 4096);
        assert_eq!(staging.bytes(ByteRange::at(8190, 3).unwrap()).unwrap(), Some(vec![0, 0, 8]));
    }
}
