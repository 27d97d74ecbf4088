//! The disk that bytes are staged on is full, at every step of what a program does.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::harness::block_on;
use crate::harness::mount::{Mounted, wait_for};
use crate::semantics::{SEEN, pattern};
use crate::writing::{SmallDisk, on_small_disk};

const MIB: usize = 1 << 20;

/// What takes all the room that a disk has left, until it goes.
struct Ballast(PathBuf);

impl Ballast {
    /// Leaves so many bytes, or next to none.
    fn but(disk: &SmallDisk, left: u64) -> Self {
        let path = Path::new(disk.path()).join("ballast");
        let file = File::create(&path).unwrap();
        let of = rustix::fs::fstatvfs(&file).unwrap();
        let room = (of.f_bavail * of.f_frsize).saturating_sub(left);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, room).unwrap();
        Self(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Open,
    Write(usize, usize),
    Append(usize),
    Cut(usize),
    Grow(usize),
    Punch(usize, usize),
    /// From another object, on the server.
    Copy(usize, usize, usize),
    Sync,
    Rename,
    Close,
}

/// A large object is changed in most ways, and saved in between: parts are copied and uploaded.
const STEPS: [Step; 16] = [
    Step::Open,
    Step::Write(5, 100_000),
    Step::Write(16 * MIB, 300_000),
    Step::Sync,
    Step::Append(200_000),
    Step::Copy(1000, 2 * MIB, 3 * MIB),
    Step::Cut(16 * MIB + 5),
    Step::Sync,
    Step::Grow(17 * MIB),
    Step::Punch(9 * MIB, MIB),
    Step::Write(9 * MIB + 7, 50_000),
    Step::Rename,
    Step::Write(0, 10),
    Step::Close,
    Step::Open,
    Step::Append(1),
];

/// A file of the mount and the byte array that it has to be.
struct World<'a> {
    m: &'a Mounted,
    dir: String,
    names: [&'static str; 2],
    file: Option<File>,
    bytes: Vec<u8>,
    source: &'a [u8],
    /// Everything it ever was: S3 has one of these.
    history: Vec<Vec<u8>>,
}

impl World<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.m.at(format!("{}/{name}", self.dir))
    }

    fn set(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.bytes);
        self.history.push(self.bytes.clone());
    }

    fn write(&mut self, at: usize, mut bytes: &[u8]) -> io::Result<()> {
        let mut at = at;
        while !bytes.is_empty() {
            // What it says it took, it took.
            let took = self.file.as_ref().unwrap().write_at(bytes, at as u64)?;
            self.set(|file| {
                file.resize(file.len().max(at + took), 0);
                file[at..at + took].copy_from_slice(&bytes[..took]);
            });
            (bytes, at) = (&bytes[took..], at + took);
        }
        Ok(())
    }

    fn take(&mut self, number: usize, step: Step) -> io::Result<()> {
        let new = |len| pattern(len, 40 + number as u8);
        match step {
            Step::Open => {
                let path = self.path(self.names[0]);
                self.file = Some(OpenOptions::new().read(true).write(true).open(path)?);
            }
            Step::Write(at, len) => self.write(at, &new(len))?,
            Step::Append(len) => self.write(self.bytes.len(), &new(len))?,
            Step::Cut(len) | Step::Grow(len) => {
                self.file.as_ref().unwrap().set_len(len as u64)?;
                self.set(|file| file.resize(len, 0));
            }
            Step::Punch(at, len) => {
                let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(self.file.as_ref().unwrap(), hole, at as u64, len as u64)?;
                self.set(|file| file[at..at + len].fill(0));
            }
            Step::Copy(from, to, len) => {
                let source = File::open(self.m.at("source"))?;
                let (mut at, mut place) = (from as u64, to as u64);
                while at < (from + len) as u64 {
                    let (left, file) = (from + len - at as usize, self.file.as_ref().unwrap());
                    let took =
                        rustix::fs::copy_file_range(&source, Some(&mut at), file, Some(&mut place), left)?;
                    assert!(took > 0);
                    let (bytes, place) = (&self.source[at as usize - took..at as usize], place as usize);
                    self.set(|file| {
                        file.resize(file.len().max(place), 0);
                        file[place - took..place].copy_from_slice(bytes);
                    });
                }
            }
            Step::Sync => self.file.as_ref().unwrap().sync_all()?,
            Step::Rename => {
                fs::rename(self.path(self.names[0]), self.path(self.names[1]))?;
                self.names.reverse();
            }
            Step::Close => self.file = None,
        }
        Ok(())
    }

    /// Everything is readable, and S3 has nothing short.
    fn check(&self, context: &str) {
        if let Some(file) = &self.file {
            let len = file.metadata().unwrap().len();
            assert_eq!(len, self.bytes.len() as u64, "{context}");
            let mut read = vec![0; self.bytes.len()];
            file.read_exact_at(&mut read, 0).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(read == self.bytes, "{context}: it reads other bytes");
        }
        let key = format!("{}/{}", self.dir, self.names[0]);
        let object = block_on(self.m.place.get(&key)).unwrap();
        assert!(self.history.iter().any(|was| *was == object), "{context}: S3 has {} bytes", object.len());
    }
}

/// T24: the write that finds no room is told `ENOSPC`, at whichever step, and nothing else happens: what was taken before
/// is there, S3's object is an old one or the whole new one, and when there is room again all goes on.
#[test]
fn t24_a_disk_that_is_full_at_any_step_stops_that_step_alone() {
    let Some((m, disk)) = on_small_disk("full-at-any-step") else { return };
    let (old, source) = (pattern(16 * MIB + 9, 31), pattern(8 * MIB, 32));
    block_on(m.place.put("source", source.clone())).unwrap();
    let mut stopped = 0;
    for full_at in 0..STEPS.len() {
        let dir = format!("{full_at:02}");
        fs::create_dir(m.at(&dir)).unwrap();
        block_on(m.place.put(&format!("{dir}/f"), old.clone())).unwrap();
        // A directory that was made just now is known to be empty, for as long as an absent name is believed.
        assert!(wait_for(SEEN, || m.at(format!("{dir}/f")).exists()));
        let mut world = World {
            m: &m,
            dir,
            names: ["f", "g"],
            file: None,
            bytes: old.clone(),
            source: &source,
            history: vec![old.clone()],
        };
        for (number, step) in STEPS.into_iter().enumerate() {
            let ballast = (number == full_at).then(|| Ballast::but(&disk, 0));
            let context = format!("full at {full_at}, step {number}, {step:?}");
            let answer = world.take(number, step);
            if let Err(error) = &answer {
                let no_space = Some(rustix::io::Errno::NOSPC.raw_os_error());
                assert!(ballast.is_some() && error.raw_os_error() == no_space, "{context}: {error}");
                stopped += 1;
            }
            if ballast.is_some() {
                world.check(&context);
            }
            drop(ballast);
            if answer.is_err() {
                world.take(number, step).unwrap_or_else(|error| panic!("{context}, again: {error}"));
            }
        }
        world.file.as_ref().unwrap().sync_all().unwrap();
        world.file = None;
        let key = format!("{}/g", world.dir);
        assert!(block_on(m.place.get(&key)).unwrap() == world.bytes, "full at {full_at}");
    }
    assert!(stopped >= 4, "the disk was never full: {stopped}");
    let keys = block_on(m.place.keys()).unwrap();
    assert_eq!(keys.len(), 1 + 2 * STEPS.len(), "{keys:?}");
    drop(m);
    drop(disk);
}

/// The journal is begun anew at 16 MiB, for which a full disk has no room: the write hears of it, and goes on when there is.
#[test]
fn a_full_disk_when_the_journal_is_begun_anew_loses_no_write() {
    let Some((m, disk)) = on_small_disk("full-journal") else { return };
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.at("f")).unwrap();
    let mut bytes = vec![0; 50_000];
    file.write_all_at(&bytes, 0).unwrap();
    let journal_bytes = || {
        let mut found = 0;
        let mut dirs = vec![PathBuf::from(disk.path())];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                match entry.metadata() {
                    Ok(of) if of.is_dir() => dirs.push(entry.path()),
                    Ok(of) if name.starts_with("journal-") => found += of.len(),
                    _ => {}
                }
            }
        }
        found
    };
    const BEGUN_ANEW_AT: u64 = 16 << 20;
    let (mut ballast, mut stopped, mut before) = (None, 0, journal_bytes());
    let mut begun_anew = false;
    // In an order in which no two writes become one.
    for round in 0..250_000usize {
        let (at, byte) = (round * 7_919 % bytes.len(), [round as u8 | 1]);
        if round % 512 == 0 {
            let now = journal_bytes();
            begun_anew = now < before;
            before = now;
            if begun_anew {
                break;
            }
            // Room for what is appended until then, and for no second one.
            if now > BEGUN_ANEW_AT - (1 << 20) && ballast.is_none() && stopped == 0 {
                ballast = Some(Ballast::but(&disk, BEGUN_ANEW_AT - now + (8 << 10)));
            }
        }
        if let Err(error) = file.write_all_at(&byte, at as u64) {
            let no_space = Some(rustix::io::Errno::NOSPC.raw_os_error());
            assert!(ballast.is_some() && error.raw_os_error() == no_space, "{round}: {error}");
            assert!(journal_bytes() >= BEGUN_ANEW_AT, "it found no room for a record");
            // Nor has the next one room, until there is some.
            let again = file.write_all_at(&byte, at as u64).unwrap_err();
            assert_eq!(again.raw_os_error(), no_space, "{round}");
            drop(ballast.take());
            stopped += 1;
            file.write_all_at(&byte, at as u64).unwrap();
        }
        bytes[at] = byte[0];
    }
    assert!(begun_anew && stopped == 1, "begun anew: {begun_anew}, stopped {stopped} times");
    let mut read = vec![0; bytes.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == bytes);
    file.sync_all().unwrap();
    assert!(block_on(m.place.get("f")).unwrap() == bytes);
    drop(file);
    drop(m);
    drop(disk);
}

/// A copy that is larger than what the disk has left streams, or hears of it: either way S3 has all of it or nothing.
#[test]
fn a_copy_onto_a_disk_with_little_room_is_whole_or_refused() {
    let Some((m, disk)) = on_small_disk("little-room") else { return };
    let bytes = pattern(50 * MIB, 33);
    for left in [24 * MIB, 6 * MIB, MIB, 0] {
        let name = format!("f{left}");
        let ballast = Ballast::but(&disk, left as u64);
        let copied = fs::write(m.at(&name), &bytes);
        let object = block_on(async { m.place.get(&name).await.ok() });
        match &copied {
            Ok(()) => assert!(object.is_some_and(|object| object == bytes), "{left}"),
            Err(error) => {
                let no_space = Some(rustix::io::Errno::NOSPC.raw_os_error());
                assert_eq!(error.raw_os_error(), no_space, "{left}: {error}");
                // The program has closed what it could write of it, and heard that it is not all.
                let object = object.map_or(0, |object| {
                    assert!(bytes.starts_with(&object), "{left}");
                    object.len()
                });
                let shown = fs::metadata(m.at(&name)).map_or(0, |of| of.len() as usize);
                assert!(object == 0 || object == shown, "{left}: {object} bytes in S3, {shown} here");
            }
        }
        assert!(left < 24 * MIB || copied.is_ok(), "there is room for the parts that are on their way");
        drop(ballast);
        fs::write(m.at(&name), &bytes).unwrap();
        assert!(block_on(m.place.get(&name)).unwrap() == bytes, "{left}");
        fs::remove_file(m.at(&name)).unwrap();
    }
    drop(m);
    drop(disk);
}
