//! Written bytes on local disk, or in memory, until S3 has them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use super::room::{Held, Room};
use super::sums::{Sum, Sums};
use crate::base::crc::{crc64, joined};
use crate::base::{ByteRange, private};
use crate::error::{Error, Kind, Result};

/// A sparse local file, holding a file's written bytes at their own offsets.
///
/// Without a name it vanishes with the process; with one it stays until it is removed, whatever becomes of the process.
/// Reads and writes touch the page cache and, at worst, the local disk; they never wait for the network.
///
/// Of every run of bytes it knows the sum that was taken when they were written, and what it gives out to be sent is
/// held to it.
#[derive(Debug)]
pub struct Staging {
    file: File,
    path: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// What its bytes have to be.
    sums: Sums,
    /// Start and end of what was let go, because S3 has it in a part.
    gone: BTreeMap<u64, u64>,
    /// How often its bytes changed. Whoever read without the lock meanwhile may have read either.
    changes: u64,
    /// The memory that they take, where that is where they are.
    held: Option<Held>,
}

impl Known {
    /// Gives back memory that the file does not take any more.
    fn settle(&mut self, file: &File) {
        if let Some(held) = &mut self.held {
            held.settle(file);
        }
    }
}

/// Bytes that are about to be written.
#[derive(Debug)]
pub struct Change<'a> {
    data: &'a [u8],
    range: ByteRange,
    /// Of the bytes that they replace.
    was: Vec<Sum>,
    /// Of the runs that they become, or become part of.
    sums: Vec<Sum>,
}

impl Change<'_> {
    /// What it replaces: as long as it is being written, nobody knows what is there.
    pub fn was(&self) -> &[Sum] {
        &self.was
    }

    /// The sums of the runs that it touches, once it is written.
    pub fn into_sums(self) -> Vec<Sum> {
        self.sums
    }
}

/// What came of a read without the lock.
enum Attempt {
    /// The bytes are what was written; their sum, if it was asked for.
    Good(u64),
    /// This run is not.
    Bad(ByteRange),
    /// Of these bytes no sum is known.
    Unknown(ByteRange),
}

impl Staging {
    /// Opens a new staging file without a name.
    pub fn new(room: &Room) -> Result<Self> {
        let (file, held) = room.file()?;
        Ok(Self { file, path: None, known: Mutex::new(Known { held, ..Known::default() }) })
    }

    /// Opens one with a name, new or as an earlier process left it, with what it has to be.
    pub fn named(dir: &Path, name: &str, sums: Sums) -> Result<Self> {
        let path = dir.join(name);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = private::open(&path, &options).map_err(|error| {
            let told = format!("cannot stage in {}: {error}", path.display());
            Error::from(error).and(&told).on("stage", "", "")
        })?;
        Ok(Self { file, path: Some(path), known: Mutex::new(Known { sums, ..Known::default() }) })
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

    /// Whether nothing was written into a range, as far as sums tell.
    pub fn has_nothing_of(&self, range: ByteRange) -> bool {
        self.lock().sums.overlapping(range).is_empty()
    }

    /// What it takes where it is. May wait for the disk.
    pub fn used_bytes(&self) -> u64 {
        rustix::fs::fstat(&self.file).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Waits until its bytes are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::from)
    }

    /// Nothing of it is needed any more: the disk gets all of it back.
    pub fn clear(&self) -> Result<()> {
        let mut known = self.lock();
        known.gone.clear();
        known.sums.clear();
        known.changes += 1;
        let cleared = self.file.set_len(0).map_err(Error::from);
        known.settle(&self.file);
        cleared
    }

    /// The first hole in a range, up to the next byte that is there. What was written has none but where it was let go of.
    pub fn hole(&self, range: ByteRange) -> Result<Option<ByteRange>> {
        hole_in(&self.file, range).map_err(Error::from)
    }

    /// What an earlier process let go of.
    pub fn was_let_go(&self, range: ByteRange) {
        let mut known = self.lock();
        known.sums.forget(range);
        known.gone.insert(range.start(), range.end());
    }

    /// Takes the sums of bytes that are about to be written. One change at a time: it is written or given up before the
    /// next one.
    pub fn change<'a>(&self, data: &'a [u8], offset: u64) -> Result<Option<Change<'a>>> {
        let Some(range) = ByteRange::at(offset, data.len() as u64) else { return Ok(None) };
        let changed = self.lock().sums.changed_by(range);
        let was = changed.into_iter().map(|(piece, known)| match known {
            Some(crc) => Ok(Sum { range: piece, crc }),
            None => self.sum_of(piece),
        });
        let was = was.collect::<Result<Vec<Sum>>>()?;
        let sums = self.lock().sums.after(range, data, &was);
        Ok(Some(Change { data, range, was, sums }))
    }

    /// Writes all of a change, or says `NoSpace`; then bytes that it was to replace may be either, and what their runs are
    /// now is answered too.
    pub fn write(&self, change: &Change<'_>) -> Result<(), (Error, Vec<Sum>)> {
        debug_assert!(!self.is_gone(change.range), "S3 has to have it first");
        let known = &mut *self.lock();
        if let Some(held) = &mut known.held {
            held.reserve(change.range).map_err(|error| (error, Vec::new()))?;
        }
        known.changes += 1;
        let written = self.file.write_all_at(change.data, change.range.start());
        known.settle(&self.file);
        match written {
            Ok(()) => {
                known.sums.put(&change.sums);
                Ok(())
            }
            Err(error) => {
                let mut sums = Vec::new();
                for was in &change.was {
                    match self.raw(was.range) {
                        Ok(bytes) => {
                            let is = known.sums.after(was.range, &bytes, std::slice::from_ref(was));
                            known.sums.put(&is);
                            sums.extend(is);
                        }
                        Err(_) => known.sums.forget(was.range),
                    }
                }
                Err((Error::from(error).and("written bytes wait for S3 on the local disk"), sums))
            }
        }
    }

    /// Fills `buffer` from `offset`; what was never written reads as zeros. `false` where some of it was let go. Of runs
    /// that are read as a whole it is made sure that they are what was written.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<bool> {
        let Some(range) = ByteRange::at(offset, buffer.len() as u64) else { return Ok(true) };
        let whole = |sums: Vec<Sum>| {
            let inside = |sum: &Sum| sum.range.intersect(range) == Some(sum.range);
            sums.into_iter().filter(inside).collect::<Vec<Sum>>()
        };
        let attempt = |buffer: &mut [u8], sums: &[Sum]| {
            self.fill(buffer, offset)?;
            let bad = sums.iter().find(|sum| crc64(slice(buffer, range, sum.range)) != sum.crc);
            Ok(bad.map_or(Attempt::Good(0), |sum| Attempt::Bad(sum.range)))
        };
        self.try_twice(range, buffer, false, whole, attempt).map(|done| done.is_some())
    }

    /// The same of bytes that are to be sent: all of them are what was written, or it fails. Returns the sum of the range,
    /// which is that of the sums taken then.
    pub fn read_whole(&self, buffer: &mut [u8], offset: u64) -> Result<Option<u64>> {
        let Some(range) = ByteRange::at(offset, buffer.len() as u64) else { return Ok(Some(0)) };
        let attempt = |buffer: &mut [u8], sums: &[Sum]| self.fill_whole(buffer, range, sums);
        self.try_twice(range, buffer, true, |sums| sums, attempt)
    }

    /// The sum of bytes that are to be sent, as it was taken when they were written; `None` where some of them were let
    /// go. Read are only runs that go on beyond the range.
    pub fn sum(&self, range: ByteRange) -> Result<Option<u64>> {
        let sums = {
            let known = self.lock();
            if overlaps(&known.gone, range) {
                return Ok(None);
            }
            known.sums.overlapping(range)
        };
        let (mut at, mut crc) = (range.start(), 0);
        for sum in sums {
            let Some(piece) = sum.range.intersect(range).filter(|piece| piece.start() == at) else { break };
            let of_piece = if piece == sum.range {
                sum.crc
            } else {
                let mut buffer = vec![0; index(piece.len())];
                let Some(of_piece) = self.read_whole(&mut buffer, at)? else { return Ok(None) };
                of_piece
            };
            crc = joined(crc, of_piece, piece.len());
            at = piece.end();
        }
        self.judge(ByteRange::new(at, range.end()).map_or(Attempt::Good(crc), Attempt::Unknown))
    }

    /// Reads without the lock, so that nobody waits for the disk; and once more with it where something else was written
    /// meanwhile, unless all bytes were held to sums and found good.
    fn try_twice(
        &self,
        range: ByteRange,
        buffer: &mut [u8],
        all_are_held: bool,
        choose: impl Fn(Vec<Sum>) -> Vec<Sum>,
        attempt: impl Fn(&mut [u8], &[Sum]) -> Result<Attempt>,
    ) -> Result<Option<u64>> {
        let (sums, changes) = {
            let known = self.lock();
            if overlaps(&known.gone, range) {
                return Ok(None);
            }
            (choose(known.sums.overlapping(range)), known.changes)
        };
        let first = attempt(buffer, &sums)?;
        let known = self.lock();
        if known.changes == changes || (all_are_held && matches!(first, Attempt::Good(_))) {
            return self.judge(first);
        }
        if overlaps(&known.gone, range) {
            return Ok(None);
        }
        let sums = choose(known.sums.overlapping(range));
        let second = attempt(buffer, &sums)?;
        self.judge(second)
    }

    fn judge(&self, attempt: Attempt) -> Result<Option<u64>> {
        let told = match attempt {
            Attempt::Good(crc) => return Ok(Some(crc)),
            Attempt::Bad(range) => {
                format!("the local disk damaged what was written: bytes {range} of the file differ")
            }
            Attempt::Unknown(range) => format!("no sum is known of bytes {range} of the file"),
        };
        let path = self.path.as_ref().map_or(String::new(), |path| format!(" ({})", path.display()));
        Err(Error::new(Kind::Local, told + &path))
    }

    fn fill_whole(&self, buffer: &mut [u8], range: ByteRange, sums: &[Sum]) -> Result<Attempt> {
        let (mut at, mut crc) = (range.start(), 0);
        for sum in sums {
            let Some(piece) = sum.range.intersect(range).filter(|piece| piece.start() == at) else { break };
            let target = slice_mut(buffer, range, piece);
            let (is, of_piece) = if piece == sum.range {
                self.fill(target, at)?;
                let is = crc64(target);
                (is, is)
            } else {
                let whole = self.raw(sum.range)?;
                target.copy_from_slice(slice(&whole, sum.range, piece));
                (crc64(&whole), crc64(target))
            };
            if is != sum.crc {
                return Ok(Attempt::Bad(sum.range));
            }
            crc = joined(crc, of_piece, piece.len());
            at = piece.end();
        }
        Ok(ByteRange::new(at, range.end()).map_or(Attempt::Good(crc), Attempt::Unknown))
    }

    /// The sum of what is there.
    fn sum_of(&self, range: ByteRange) -> Result<Sum> {
        Ok(Sum::of(range, &self.raw(range)?))
    }

    fn raw(&self, range: ByteRange) -> Result<Vec<u8>> {
        let mut buffer = vec![0; usize::try_from(range.len()).map_err(|_| too_large())?];
        self.fill(&mut buffer, range.start())?;
        Ok(buffer)
    }

    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        fill(&self.file, buffer, offset).map_err(Error::from)
    }

    /// Reads a range into a new buffer; `None` where some of it was let go.
    pub fn bytes(&self, range: ByteRange) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; usize::try_from(range.len()).map_err(|_| too_large())?];
        Ok(self.read(&mut buffer, range.start())?.then_some(buffer))
    }

    /// Gives the disk back what S3 has; whether that was anything. A run that goes on beyond it stays whole.
    pub fn let_go(&self, range: ByteRange) -> Result<bool> {
        let known = &mut *self.lock();
        let (mut start, mut end) = (range.start(), range.end());
        for run in known.sums.overlapping(range).iter().map(|sum| sum.range) {
            if run.start() < range.start() {
                start = run.end();
            } else if run.end() > range.end() {
                end = run.start();
            }
        }
        let Some(range) = ByteRange::new(start, end) else { return Ok(false) };
        if known.gone.get(&range.start()) == Some(&range.end()) {
            return Ok(false);
        }
        // Nobody reads it from here on, whatever becomes of the hole.
        known.gone.insert(range.start(), range.end());
        known.sums.forget(range);
        known.changes += 1;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = fallocate(&self.file, hole, range.start(), range.len());
        known.settle(&self.file);
        punched.map_err(std::io::Error::from)?;
        Ok(true)
    }

    /// S3 has an object with all that was let go: nothing points there any more.
    pub fn forget_gone(&self) {
        self.lock().gone.clear();
    }

    fn is_gone(&self, range: ByteRange) -> bool {
        overlaps(&self.lock().gone, range)
    }

    /// The end of what was let go; 0 where nothing was.
    pub fn gone_until(&self) -> u64 {
        self.lock().gone.last_key_value().map_or(0, |(_, end)| *end)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first hole in a range of a file.
pub(super) fn hole_in(file: &File, range: ByteRange) -> std::io::Result<Option<ByteRange>> {
    let start = match seek(file, SeekFrom::Hole(range.start())) {
        // Past the end of the file there is nothing.
        Err(rustix::io::Errno::NXIO) => return Ok(Some(range)),
        at => at?,
    };
    let end = match seek(file, SeekFrom::Data(start)) {
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        at => at?,
    };
    Ok(ByteRange::new(start, end).and_then(|hole| hole.intersect(range)))
}

/// Fills a buffer; what was never written reads as zeros.
pub(super) fn fill(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => {
                buffer[filled..].fill(0);
                break;
            }
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Of the bytes of a range, those of a piece of it.
fn slice(buffer: &[u8], range: ByteRange, piece: ByteRange) -> &[u8] {
    &buffer[index(piece.start() - range.start())..index(piece.end() - range.start())]
}

fn slice_mut(buffer: &mut [u8], range: ByteRange, piece: ByteRange) -> &mut [u8] {
    &mut buffer[index(piece.start() - range.start())..index(piece.end() - range.start())]
}

/// Within a buffer that is in memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn overlaps(gone: &BTreeMap<u64, u64>, range: ByteRange) -> bool {
    gone.range(..range.end()).next_back().is_some_and(|(_, gone_end)| *gone_end > range.start())
}

fn too_large() -> Error {
    Error::new(Kind::TooLarge, "the range does not fit in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    fn write(staging: &Staging, data: &[u8], offset: u64) {
        let change = staging.change(data, offset).unwrap().unwrap();
        staging.write(&change).unwrap();
    }

    fn read_whole(staging: &Staging, range: ByteRange) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; index(range.len())];
        let sum = staging.read_whole(&mut buffer, range.start())?;
        assert!(sum.is_none_or(|sum| sum == crc64(&buffer)));
        Ok(sum.map(|_| buffer))
    }

    #[test]
    fn a_link_in_the_place_of_a_named_one_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("victim"), "mine").unwrap();
        std::os::unix::fs::symlink("victim", dir.path().join("s")).unwrap();
        let error = Staging::named(dir.path(), "s", Sums::default()).unwrap_err();
        assert!(error.message().contains("symbolic link") && error.message().contains("/s"), "{error}");
        assert_eq!(std::fs::read(dir.path().join("victim")).unwrap(), b"mine");
    }

    #[test]
    fn a_named_one_stays_and_its_holes_show_what_was_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::named(dir.path(), "s", Sums::default()).unwrap();
        write(&staging, &vec![7; 24 << 20], 0);
        staging.let_go(range(8 * MIB, 16 * MIB)).unwrap();
        drop(staging);
        let staging = Staging::named(dir.path(), "s", Sums::default()).unwrap();
        let whole = range(0, 24 * MIB);
        let hole = staging.hole(whole).unwrap();
        assert_eq!(hole, ByteRange::new(8 * MIB, 16 * MIB));
        staging.was_let_go(hole.unwrap());
        assert_eq!(staging.bytes(whole).unwrap(), None);
        assert_eq!(staging.hole(range(0, 8 * MIB)).unwrap(), None);
        let beyond = range(24 * MIB, 25 * MIB);
        assert_eq!(staging.hole(beyond).unwrap(), Some(beyond));
        staging.remove();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_byte_that_the_disk_changed_is_never_given_out_to_be_sent() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::named(dir.path(), "s", Sums::default()).unwrap();
        write(&staging, b"0123456789", 5);
        write(&staging, b"ab", 8);
        write(&staging, b"cdefgh", 12);
        assert_eq!(read_whole(&staging, range(5, 18)).unwrap().unwrap(), b"012ab56cdefgh");
        assert_eq!(read_whole(&staging, range(7, 11)).unwrap().unwrap(), b"2ab5");
        let error = read_whole(&staging, range(4, 18)).unwrap_err();
        assert!(error.message().contains("no sum is known of bytes 4..18"), "{error}");
        let disk = File::options().write(true).open(dir.path().join("s")).unwrap();
        disk.write_all_at(b"X", 16).unwrap();
        for wanted in [range(5, 18), range(5, 7), range(16, 17)] {
            let error = read_whole(&staging, wanted).unwrap_err();
            assert_eq!(error.kind(), Kind::Local);
            assert!(error.message().contains("bytes 5..18"), "{error}");
        }
        assert!(staging.bytes(range(5, 18)).is_err(), "nor read, where all of the run is");
        // What is written over it does not hide it, unless it is all of it.
        write(&staging, b"..", 5);
        assert!(read_whole(&staging, range(5, 18)).is_err());
        write(&staging, b"everything new", 5);
        assert_eq!(read_whole(&staging, range(5, 19)).unwrap().unwrap(), b"everything new");
    }

    #[test]
    fn a_run_that_goes_on_beyond_what_is_let_go_stays() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(&Room::on_disk(dir.path(), None)).unwrap();
        write(&staging, &vec![7; 20 << 20], 0);
        assert!(staging.let_go(range(0, 10 * MIB)).unwrap());
        assert!(!staging.let_go(range(0, 10 * MIB)).unwrap(), "once");
        assert_eq!(staging.gone_until(), 8 * MIB);
        assert!(read_whole(&staging, range(8 * MIB, 20 * MIB)).unwrap().is_some());
        assert!(!staging.let_go(range(17 * MIB, 18 * MIB)).unwrap());
    }

    #[test]
    fn whoever_reads_while_it_is_written_gets_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(&Room::on_disk(dir.path(), None)).unwrap();
        write(&staging, &vec![0; 256 << 10], 0);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..200u32 {
                    write(&staging, &vec![round as u8; 64 << 10], u64::from(round % 4) << 16);
                }
            });
            while !writer.is_finished() {
                assert!(read_whole(&staging, range(0, 256 << 10)).unwrap().is_some());
                assert!(staging.bytes(range(0, 256 << 10)).unwrap().is_some());
            }
        });
    }

    #[test]
    fn what_was_let_go_is_not_read_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(&Room::on_disk(dir.path(), None)).unwrap();
        write(&staging, &[7; 100], 0);
        write(&staging, &[8; 100], 8192);
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
