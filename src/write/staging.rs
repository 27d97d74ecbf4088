//! Written bytes on local disk until S3 has them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};

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

/// A sparse local file, holding a file's written bytes at their own offsets.
///
/// Without a name it vanishes with the process; with one it stays until it is removed, whatever becomes of the process.
/// Reads and writes touch the page cache and, at worst, the local disk; they never wait for the network.
#[derive(Debug)]
pub struct Staging {
    file: File,
    path: Option<PathBuf>,
    /// Start and end of what was let go, because S3 has it in a part.
    gone: Mutex<BTreeMap<u64, u64>>,
}

impl Staging {
    /// Opens a new staging file without a name in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(|e| Error::from(e).on("stage", "", ""))?;
        Ok(Self { file, path: None, gone: Mutex::default() })
    }

    /// Opens one with a name, new or as an earlier process left it.
    pub fn named(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(|e| Error::from(e).on("stage", "", ""))?;
        Ok(Self { file, path: Some(path), gone: Mutex::default() })
    }

    /// Takes the name away. What has it open reads on.
    pub fn remove(&self) {
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a staging file that nothing needs cannot be removed");
        }
    }

    /// Waits until its bytes are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::from)
    }

    /// Nothing of it is needed any more: the disk gets all of it back.
    pub fn clear(&self) -> Result<()> {
        let mut gone = self.lock();
        gone.clear();
        self.file.set_len(0).map_err(Error::from)
    }

    /// The first hole in a range, up to the next byte that is there. What was written has none but where it was let go of.
    pub fn hole(&self, range: ByteRange) -> Result<Option<ByteRange>> {
        let io = |errno: rustix::io::Errno| Error::from(std::io::Error::from(errno));
        let start = match seek(&self.file, SeekFrom::Hole(range.start())) {
            // Past the end of the file there is nothing.
            Err(rustix::io::Errno::NXIO) => return Ok(Some(range)),
            at => at.map_err(io)?,
        };
        let end = match seek(&self.file, SeekFrom::Data(start)) {
            Err(rustix::io::Errno::NXIO) => u64::MAX,
            at => at.map_err(io)?,
        };
        Ok(ByteRange::new(start, end).and_then(|hole| hole.intersect(range)))
    }

    /// What an earlier process let go of.
    pub fn was_let_go(&self, range: ByteRange) {
        self.lock().insert(range.start(), range.end());
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
    fn a_named_one_stays_and_its_holes_show_what_was_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::named(dir.path(), "s").unwrap();
        staging.write(&[7; 3 << 20], 0).unwrap();
        staging.let_go(ByteRange::new(1 << 20, 2 << 20).unwrap()).unwrap();
        drop(staging);
        let staging = Staging::named(dir.path(), "s").unwrap();
        let whole = ByteRange::new(0, 3 << 20).unwrap();
        let hole = staging.hole(whole).unwrap();
        assert_eq!(hole, ByteRange::new(1 << 20, 2 << 20));
        staging.was_let_go(hole.unwrap());
        assert_eq!(staging.bytes(whole).unwrap(), None);
        assert_eq!(staging.hole(ByteRange::new(0, 1 << 20).unwrap()).unwrap(), None);
        let beyond = ByteRange::new(3 << 20, 4 << 20).unwrap();
        assert_eq!(staging.hole(beyond).unwrap(), Some(beyond));
        staging.remove();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

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
