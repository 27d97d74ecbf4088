//! Every moment at which a mount can be killed, one by one: around each change of S3, and between any two records of the
//! journal.
//!
//! A scenario is a situation and an operation, both of them [`Step`]s, and a tree that each step changes as it should. The
//! operation runs once. At each moment of it S3 and the state directory are copied, and a new mount begins on every copy: it
//! has to show the tree before the step under way or the one after it, and S3 has to be that once everything is saved.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use pailfs::base::{Clock, SystemClock};
use pailfs::error::{Error, Kind, Result};
use pailfs::fs::{Durability, FileType, Maker, OpenFlags, Replaces, SetAttr};
use pailfs::s3::{Condition, MemStore, Store, When};
use pailfs::tree::Ino;
use pailfs::write::journal::Owed;

use crate::client::{BUCKET, Client, READ, REWRITE, WRITE, until};
use crate::crash::{FRAME_MARK, bytes, runtime, segment};
use crate::harness::setting;

const MIB: usize = 1 << 20;
/// Two parts and a rest.
const LARGE: usize = 2 * PART + MIB;
const PART: usize = 8 * MIB;
/// Nothing takes so long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(20);
const TAG: &str = "user.tag";

fn date() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

// ---- what there is to do

/// What a program does, or another client.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Another client's object.
    Put(&'static str, &'static str),
    /// One that was uploaded in parts.
    PutLarge(&'static str),
    /// A new file, opened. Handles go by the name that the file had then.
    Create(&'static str),
    /// The same with `O_EXCL`.
    Claim(&'static str),
    Open(&'static str),
    OpenToRewrite(&'static str),
    Write(&'static str, u64, &'static str),
    /// Until two parts have left.
    WriteLarge(&'static str),
    Cut(&'static str, u64),
    Fsync(&'static str),
    Close(&'static str),
    /// All of a file over the beginning of an open one.
    Copy(&'static str, &'static str),
    /// By path.
    Truncate(&'static str, u64),
    Chmod(&'static str, u32),
    /// Of its time, to [`date`].
    Date(&'static str),
    Tag(&'static str),
    Rename(&'static str, &'static str),
    Unlink(&'static str),
    Mkdir(&'static str),
    Rmdir(&'static str),
    Symlink(&'static str, &'static str),
    Fifo(&'static str),
    /// Everything is saved.
    Flush,
}

use Step::*;

#[derive(Clone, Copy)]
struct Situation {
    name: &'static str,
    steps: &'static [Step],
    /// Whether there is a file `d/f` then, and an open handle on it.
    is_there: bool,
    is_open: bool,
}

const fn absent(name: &'static str, steps: &'static [Step]) -> Situation {
    Situation { name, steps, is_there: false, is_open: false }
}

const fn closed(name: &'static str, steps: &'static [Step]) -> Situation {
    Situation { name, steps, is_there: true, is_open: false }
}

const fn open(name: &'static str, steps: &'static [Step]) -> Situation {
    Situation { name, steps, is_there: true, is_open: true }
}

/// Of the file `d/f`; `d` is there, and `d/other`.
const SITUATIONS: &[Situation] = &[
    absent("absent", &[]),
    absent(
        "its delete is of a row",
        &[
            Put("row-1", "x"),
            Put("row-2", "x"),
            Put("d/f", "gone"),
            Unlink("row-1"),
            Unlink("row-2"),
            Unlink("d/f"),
        ],
    ),
    closed("in S3", &[Put("d/f", "stored")]),
    closed("owed", &[Create("d/f"), Write("d/f", 0, "owed"), Close("d/f")]),
    closed("owed over an object", &[Put("d/f", "stored"), Open("d/f"), Write("d/f", 2, "OW"), Close("d/f")]),
    closed("claimed and written", &[Claim("d/f"), Write("d/f", 0, "owed"), Close("d/f")]),
    closed("claimed, empty", &[Claim("d/f"), Close("d/f")]),
    closed("described", &[Put("d/f", "stored"), Chmod("d/f", 0o640)]),
    open("open, made", &[Create("d/f")]),
    open("open, written over an object", &[Put("d/f", "stored"), Open("d/f"), Write("d/f", 2, "WR")]),
];

/// More of them, which go the ways of those: they are tried where the environment has `ALL_WINDOWS`.
const MORE: &[Situation] = &[
    closed("owed, empty", &[Create("d/f"), Close("d/f")]),
    closed(
        "described and owed",
        &[Put("d/f", "stored"), Open("d/f"), Write("d/f", 2, "OW"), Close("d/f"), Chmod("d/f", 0o640)],
    ),
    closed(
        "made again after its delete in a row",
        &[
            Put("row-1", "x"),
            Put("row-2", "x"),
            Put("d/f", "gone"),
            Unlink("row-1"),
            Unlink("row-2"),
            Unlink("d/f"),
            Create("d/f"),
            Write("d/f", 0, "owed"),
            Close("d/f"),
        ],
    ),
    closed(
        "renamed over an object, owed",
        &[Put("d/f", "stored"), Create("new"), Write("new", 0, "owed"), Close("new"), Rename("new", "d/f")],
    ),
    closed("copied from another", &[Create("d/f"), Copy("d/other", "d/f"), Close("d/f")]),
    open("open, written", &[Create("d/f"), Write("d/f", 0, "written")]),
    open("open, claimed", &[Claim("d/f")]),
    open("open, claimed and written", &[Claim("d/f"), Write("d/f", 0, "written")]),
    open(
        "open, saved and written",
        &[Create("d/f"), Write("d/f", 0, "written"), Fsync("d/f"), Write("d/f", 2, "IT")],
    ),
];

/// The same of large files, which take their time: only with operations that do something else with parts.
const LARGE_ONES: &[Situation] = &[
    closed("in S3, in parts", &[PutLarge("d/f")]),
    open("open, with parts in S3", &[Create("d/f"), WriteLarge("d/f")]),
    open("open, claimed, with parts in S3", &[Claim("d/f"), WriteLarge("d/f")]),
];

#[derive(Clone, Copy)]
struct Operation {
    name: &'static str,
    needs: Needs,
    steps: &'static [Step],
}

#[derive(Clone, Copy, PartialEq)]
enum Needs {
    Nothing,
    Absent,
    There,
    Open,
}

const fn operation(name: &'static str, needs: Needs, steps: &'static [Step]) -> Operation {
    Operation { name, needs, steps }
}

const CONTENTS: &[Operation] = &[
    operation("create", Needs::Absent, &[Create("d/f"), Write("d/f", 0, "created"), Close("d/f")]),
    operation("create, empty", Needs::Absent, &[Create("d/f"), Close("d/f")]),
    operation("create with O_EXCL", Needs::Absent, &[Claim("d/f"), Write("d/f", 0, "created"), Close("d/f")]),
    operation("create with O_EXCL, empty", Needs::Absent, &[Claim("d/f"), Close("d/f")]),
    operation("rewrite", Needs::There, &[OpenToRewrite("d/f"), Write("d/f", 0, "rewritten"), Close("d/f")]),
    operation(
        "write into",
        Needs::There,
        &[Open("d/f"), Write("d/f", 1, "into"), Write("d/f", 9, "end"), Close("d/f")],
    ),
    operation(
        "write, fsync, write",
        Needs::There,
        &[Open("d/f"), Write("d/f", 1, "into"), Fsync("d/f"), Write("d/f", 2, "more"), Close("d/f")],
    ),
    operation("write on", Needs::Open, &[Write("d/f", 1, "into"), Fsync("d/f"), Close("d/f")]),
    operation("cut", Needs::Open, &[Cut("d/f", 2), Close("d/f")]),
    operation("close", Needs::Open, &[Close("d/f")]),
    operation("truncate", Needs::There, &[Truncate("d/f", 2)]),
    operation("truncate to nothing", Needs::There, &[Truncate("d/f", 0)]),
    operation("grow", Needs::There, &[Truncate("d/f", 12)]),
    operation("copy into another", Needs::There, &[Create("g"), Copy("d/f", "g"), Close("g")]),
    operation(
        "copy into another, and remove",
        Needs::There,
        &[Create("g"), Copy("d/f", "g"), Close("g"), Unlink("d/f")],
    ),
    operation("copy another into it", Needs::There, &[Open("d/f"), Copy("d/other", "d/f"), Close("d/f")]),
];

const ATTRIBUTES: &[Operation] = &[
    operation("chmod", Needs::There, &[Chmod("d/f", 0o600)]),
    operation("utimes", Needs::There, &[Date("d/f")]),
    operation("setxattr", Needs::There, &[Tag("d/f")]),
    operation(
        "chmod and write",
        Needs::There,
        &[Chmod("d/f", 0o600), Open("d/f"), Write("d/f", 1, "into"), Close("d/f")],
    ),
    operation("chmod of the directory", Needs::Nothing, &[Chmod("d", 0o700)]),
    operation("utimes of the directory", Needs::Nothing, &[Date("d")]),
    operation("setxattr of the directory", Needs::Nothing, &[Tag("d")]),
];

const NAMES: &[Operation] = &[
    operation("unlink", Needs::There, &[Unlink("d/f")]),
    operation(
        "unlink in a row",
        Needs::There,
        &[
            Put("row-3", "x"),
            Put("row-4", "x"),
            Put("row-5", "x"),
            Unlink("row-3"),
            Unlink("row-4"),
            Unlink("d/f"),
            Unlink("row-5"),
        ],
    ),
    operation(
        "unlink and create",
        Needs::There,
        &[Unlink("d/f"), Create("d/f"), Write("d/f", 0, "again"), Close("d/f")],
    ),
    operation(
        "unlink and claim",
        Needs::There,
        &[Unlink("d/f"), Claim("d/f"), Write("d/f", 0, "again"), Close("d/f")],
    ),
    operation("unlink all, and rmdir", Needs::There, &[Unlink("d/f"), Unlink("d/other"), Rmdir("d")]),
    operation("mkdir and rmdir", Needs::Nothing, &[Mkdir("d/sub"), Rmdir("d/sub")]),
    operation("mkdir in its place", Needs::Absent, &[Mkdir("d/f")]),
    operation("symlink", Needs::Absent, &[Symlink("d/f", "other"), Unlink("d/f")]),
    operation("mknod", Needs::Absent, &[Fifo("d/f"), Rename("d/f", "d/g")]),
    operation("rename", Needs::There, &[Rename("d/f", "g")]),
    operation("rename and back", Needs::There, &[Rename("d/f", "g"), Rename("g", "d/f")]),
    operation("rename and write", Needs::Open, &[Rename("d/f", "g"), Write("d/f", 1, "into"), Close("d/f")]),
    operation("rename onto an object", Needs::There, &[Put("g", "target"), Rename("d/f", "g")]),
    operation(
        "rename onto an owed file",
        Needs::There,
        &[Create("g"), Write("g", 0, "target"), Close("g"), Rename("d/f", "g")],
    ),
    operation(
        "rename onto a file owed over an object",
        Needs::There,
        &[Put("g", "target"), Open("g"), Write("g", 0, "TAR"), Close("g"), Rename("d/f", "g")],
    ),
    operation(
        "rename onto a file owed over the same bytes",
        Needs::There,
        &[Put("g", "stored"), Open("g"), Write("g", 0, "STO"), Close("g"), Rename("d/f", "g")],
    ),
    operation(
        "rename onto a claimed file",
        Needs::There,
        &[Claim("g"), Write("g", 0, "target"), Close("g"), Rename("d/f", "g")],
    ),
    operation(
        "rename onto a claimed and open file",
        Needs::There,
        &[Claim("g"), Write("g", 0, "target"), Rename("d/f", "g"), Close("g")],
    ),
    operation(
        "rename onto a described file",
        Needs::There,
        &[Put("g", "target"), Chmod("g", 0o600), Rename("d/f", "g")],
    ),
    operation("rename of another onto it", Needs::There, &[Rename("d/other", "d/f")]),
    operation(
        "rename of an owed one onto it",
        Needs::There,
        &[Create("g"), Write("g", 0, "source"), Close("g"), Rename("g", "d/f")],
    ),
    operation(
        "rename of a claimed one onto it",
        Needs::There,
        &[Claim("g"), Write("g", 0, "source"), Close("g"), Rename("g", "d/f")],
    ),
];

const DIRECTORIES: &[Operation] = &[
    operation("rename of the directory", Needs::Nothing, &[Rename("d", "e")]),
    operation("rename of the directory and back", Needs::Nothing, &[Rename("d", "e"), Rename("e", "d")]),
    operation("rename of the directory onto an empty one", Needs::Nothing, &[Mkdir("e"), Rename("d", "e")]),
    operation(
        "rename of the directory, and write",
        Needs::Open,
        &[Rename("d", "e"), Write("d/f", 1, "into"), Close("d/f")],
    ),
    operation("rename of the directory, and unlink", Needs::There, &[Rename("d", "e"), Unlink("e/f")]),
];

// ---- what there should be

#[derive(Clone, PartialEq)]
struct Node {
    file_type: FileType,
    bytes: Vec<u8>,
    mode: u32,
    dated: bool,
    tagged: bool,
    /// It was made, and never written to or closed.
    only_made: bool,
}

impl Node {
    fn of(file_type: FileType, mode: u32, bytes: Vec<u8>) -> Self {
        Self { file_type, bytes, mode, dated: false, tagged: false, only_made: false }
    }

    fn file(bytes: impl Into<Vec<u8>>) -> Self {
        Self::of(FileType::Regular, 0o644, bytes.into())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes.resize(self.bytes.len().max(at + bytes.len()), 0);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.changed();
    }

    fn changed(&mut self) {
        (self.only_made, self.dated) = (false, false);
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file_type, bytes, mode, dated, tagged, only_made } = self;
        write!(f, "{file_type:?} {mode:o}")?;
        match bytes.len() {
            0 => Ok(()),
            1..100 => write!(f, " {:?}", String::from_utf8_lossy(bytes)),
            len => write!(f, " {len} bytes, CRC {:x}", crc_of(bytes)),
        }?;
        let flags = [(dated, "dated"), (tagged, "tagged"), (only_made, "only made")];
        flags.iter().filter(|(is, _)| **is).try_for_each(|(_, what)| write!(f, ", {what}"))
    }
}

fn crc_of(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// By path.
type Nodes = BTreeMap<String, Node>;

/// The file system as it should be, and which file each handle is on.
#[derive(Clone, Default)]
struct Tree {
    nodes: Nodes,
    handles: BTreeMap<&'static str, String>,
}

impl Tree {
    fn of_handle(&mut self, handle: &str) -> Option<&mut Node> {
        self.nodes.get_mut(self.handles.get(handle)?)
    }

    fn node(&mut self, path: &str) -> &mut Node {
        self.nodes.get_mut(path).unwrap_or_else(|| panic!("{path} is there"))
    }

    fn opened(&mut self, path: &'static str, node: impl FnOnce() -> Node) -> &mut Node {
        self.handles.insert(path, path.to_owned());
        self.nodes.entry(path.to_owned()).or_insert_with(node)
    }

    fn forget(&mut self, path: &str) {
        self.nodes.remove(path);
        self.handles.retain(|_, of| of != path);
    }

    fn apply(&mut self, step: Step) {
        match step {
            Put(path, bytes) => drop(self.nodes.insert(path.into(), Node::file(bytes))),
            PutLarge(path) => drop(self.nodes.insert(path.into(), Node::file(bytes(LARGE, 1)))),
            Create(path) => self.opened(path, || Node { only_made: true, ..Node::file("") }).bytes.clear(),
            Claim(path) => drop(self.opened(path, || Node::file(""))),
            Open(path) => drop(self.opened(path, || Node::file(""))),
            OpenToRewrite(path) => {
                let node = self.opened(path, || Node::file(""));
                if !std::mem::take(&mut node.bytes).is_empty() {
                    node.changed();
                }
            }
            Write(handle, at, text) => {
                self.of_handle(handle).into_iter().for_each(|node| node.put(at as usize, text.as_bytes()));
            }
            WriteLarge(handle) => {
                self.of_handle(handle).into_iter().for_each(|node| node.put(0, &bytes(LARGE, 1)));
            }
            Cut(handle, len) => self.of_handle(handle).into_iter().for_each(|node| {
                node.bytes.resize(len as usize, 0);
                node.changed();
            }),
            Fsync(handle) => self.of_handle(handle).into_iter().for_each(|node| node.only_made = false),
            Close(handle) => {
                self.of_handle(handle).into_iter().for_each(|node| node.only_made = false);
                self.handles.remove(handle);
            }
            Copy(from, to) => {
                let bytes = self.node(from).bytes.clone();
                self.of_handle(to).expect("it is open").put(0, &bytes);
            }
            Truncate(path, len) => {
                let node = self.node(path);
                node.bytes.resize(len as usize, 0);
                node.changed();
            }
            Chmod(path, mode) => self.node(path).mode = mode,
            Date(path) => self.node(path).dated = true,
            Tag(path) => self.node(path).tagged = true,
            Rename(from, to) => {
                let below = format!("{from}/");
                let moved = |path: &str| match path.strip_prefix(&below) {
                    Some(rest) => Some(format!("{to}/{rest}")),
                    None => (path == from).then(|| to.to_owned()),
                };
                self.handles.retain(|_, path| path != to);
                let paths: Vec<String> =
                    self.nodes.keys().filter(|path| moved(path).is_some()).cloned().collect();
                for path in paths {
                    let node = self.nodes.remove(&path).expect("it was there");
                    self.nodes.insert(moved(&path).expect("it moves"), node);
                }
                self.handles
                    .values_mut()
                    .for_each(|path| *path = moved(path).unwrap_or_else(|| path.clone()));
            }
            Unlink(path) | Rmdir(path) => self.forget(path),
            Mkdir(path) => {
                drop(self.nodes.insert(path.into(), Node::of(FileType::Directory, 0o755, Vec::new())))
            }
            Symlink(path, target) => {
                drop(self.nodes.insert(path.into(), Node::of(FileType::Symlink, 0o777, target.into())));
            }
            Fifo(path) => drop(self.nodes.insert(path.into(), Node::of(FileType::Fifo, 0o644, Vec::new()))),
            Flush => self.nodes.values_mut().for_each(|node| node.only_made = false),
        }
        // The time of a directory is of what is in it.
        if !matches!(step, Date(_) | Chmod(..) | Tag(_) | Flush) {
            self.nodes
                .values_mut()
                .filter(|node| node.file_type == FileType::Directory)
                .for_each(Node::changed);
        }
    }

    /// What may be seen of this by the next mount: a file that was only made may be missing (D5).
    fn seen(&self) -> Vec<Nodes> {
        let only_made: Vec<&String> = self.nodes.keys().filter(|path| self.nodes[*path].only_made).collect();
        let which = (0..1 << only_made.len()).map(|which: usize| {
            let mut nodes = self.nodes.clone();
            nodes.values_mut().for_each(|node| node.only_made = false);
            let missing = only_made.iter().enumerate().filter(|(bit, _)| which >> bit & 1 == 1);
            missing.for_each(|(_, path)| drop(nodes.remove(*path)));
            nodes
        });
        which.collect()
    }
}

// ---- what is done

struct Program {
    client: Client,
    open: BTreeMap<&'static str, (Ino, u64)>,
}

impl Program {
    async fn step(&mut self, step: Step) -> Result<()> {
        let client = &self.client;
        match step {
            Put(path, text) => client.put_object(path, text.as_bytes()).await,
            PutLarge(path) => put_in_parts(&client.store, path).await?,
            Create(path) => drop(self.open.insert(path, client.open(path, REWRITE).await?)),
            Claim(path) => {
                let flags = OpenFlags { exclusive: true, ..WRITE };
                self.open.insert(path, client.open(path, flags).await?);
            }
            Open(path) => drop(self.open.insert(path, client.open(path, WRITE).await?)),
            OpenToRewrite(path) => drop(self.open.insert(path, client.open(path, REWRITE).await?)),
            Write(handle, at, text) => client.fs.write(self.open[handle].1, at, text.as_bytes()).await?,
            WriteLarge(handle) => {
                for (at, piece) in (0..).step_by(MIB).zip(bytes(LARGE, 1).chunks(MIB)) {
                    client.fs.write(self.open[handle].1, at, piece).await?;
                }
                until("two parts have left", || client.stats.parts_ahead.value() == 2).await;
            }
            Cut(handle, len) => {
                let (ino, fh) = self.open[handle];
                client.truncate_open(ino, fh, len).await?;
            }
            Fsync(handle) => client.fs.fsync(self.open[handle].1).await?,
            Close(handle) => client.close(self.open.remove(handle).expect("it is open")).await?,
            Copy(from, to) => {
                let reader = client.open(from, READ).await?;
                let mut copied = copy_all(client, reader.1, self.open[to].1).await;
                if copied.as_ref().is_err_and(|error| error.kind() == Kind::Unsupported) {
                    // As cp goes on then.
                    let bytes = client.read_all(reader.1).await?;
                    copied = client.fs.write(self.open[to].1, 0, &bytes).await;
                }
                client.close(reader).await?;
                copied?;
            }
            Truncate(path, len) => self.set(path, SetAttr { size: Some(len), ..SetAttr::default() }).await?,
            Chmod(path, mode) => self.set(path, SetAttr { mode: Some(mode), ..SetAttr::default() }).await?,
            Date(path) => self.set(path, SetAttr { mtime: Some(date()), ..SetAttr::default() }).await?,
            Tag(path) => {
                let ino = client.walk(path).await?.ino;
                let set = client.fs.setxattr(ino, TAG, b"yes", Replaces::Either).await;
                client.fs.forget(ino, 1);
                set?;
            }
            Rename(from, to) => self.holding(from, Box::pin(client.rename(from, to))).await?,
            Unlink(path) => self.holding(path, Box::pin(client.unlink(path))).await?,
            Mkdir(path) => client.mkdir(path).await?,
            Rmdir(path) => self.holding(path, Box::pin(client.rmdir(path))).await?,
            Symlink(path, target) => {
                let (dir, name) = self.parent(path).await?;
                let made =
                    client.fs.symlink(dir, OsStr::new(name), OsStr::new(target), Maker::of_mode(0o777)).await;
                client.fs.forget(dir, 1);
                client.fs.forget(made?.ino, 1);
            }
            Fifo(path) => {
                let (dir, name) = self.parent(path).await?;
                let made =
                    client.fs.mknod(dir, OsStr::new(name), FileType::Fifo, Maker::of_mode(0o644)).await;
                client.fs.forget(dir, 1);
                client.fs.forget(made?.ino, 1);
            }
            Flush => client.fs.flush_all().await?,
        }
        Ok(())
    }

    /// As the kernel holds what it is about to move or remove.
    async fn holding(&self, path: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
        let ino = self.client.walk(path).await?.ino;
        let done = work.await;
        self.client.fs.forget(ino, 1);
        done
    }

    async fn set(&self, path: &str, set: SetAttr) -> Result<()> {
        let ino = self.client.walk(path).await?.ino;
        let answer = self.client.fs.setattr(ino, None, set).await;
        self.client.fs.forget(ino, 1);
        answer.map(drop)
    }

    async fn parent(&self, path: &'static str) -> Result<(Ino, &'static str)> {
        let (dir, name) = path.rsplit_once('/').expect("in a directory");
        Ok((self.client.walk(dir).await?.ino, name))
    }
}

async fn copy_all(client: &Client, from: u64, to: u64) -> Result<()> {
    let mut at = 0;
    loop {
        match client.fs.copy_range((from, at), (to, at), u64::from(u32::MAX)).await? {
            0 => return Ok(()),
            copied => at += copied,
        }
    }
}

async fn put_in_parts(store: &MemStore, key: &str) -> Result<()> {
    let upload = store.create_upload(BUCKET, key, Default::default()).await?;
    let mut parts = Vec::new();
    for (number, part) in (1..).zip(bytes(LARGE, 1).chunks(PART)) {
        parts.push(store.upload_part(&upload, number, part.to_vec().into(), None).await?);
    }
    store.complete_upload(&upload, parts, Condition::Any).await.map(drop)
}

/// What the mount shows, of names, bytes and attributes.
async fn look(client: &Client) -> Result<Nodes> {
    let mut found = Nodes::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for name in client.list(&dir).await? {
            let path = format!("{dir}{}", name.trim_end_matches('/'));
            let attr = client.walk(&path).await?;
            let bytes = match attr.file_type {
                FileType::Regular => client.read(&path).await?,
                FileType::Symlink => client.fs.readlink(attr.ino).await?.to_vec(),
                _ => Vec::new(),
            };
            let tagged = client.fs.getxattr(attr.ino, TAG).await.is_ok_and(|value| value == b"yes");
            client.fs.forget(attr.ino, 1);
            let node = Node {
                dated: attr.mtime == date(),
                tagged,
                ..Node::of(attr.file_type, u32::from(attr.perm), bytes)
            };
            if attr.is_dir() {
                dirs.push(format!("{path}/"));
            }
            found.insert(path, node);
        }
    }
    Ok(found)
}

// ---- the moments

const FRAME_HEAD: usize = 24;

/// A state directory.
#[derive(Clone, Debug, PartialEq)]
struct Disk {
    segment: String,
    records: Vec<u8>,
    staging: BTreeMap<String, Arc<Vec<u8>>>,
}

impl Disk {
    /// What is as it was in `before` is shared with it.
    fn read(dir: &Path, before: Option<&Self>) -> Self {
        let (path, records) = segment(dir);
        let segment = path.file_name().unwrap().to_str().unwrap().to_owned();
        let names = std::fs::read_dir(dir.join("staging")).unwrap();
        let staging = names.map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // One that was just removed is empty: nobody asks for it any more.
            let bytes = std::fs::read(dir.join("staging").join(&name)).unwrap_or_default();
            let same = before.and_then(|before| before.staging.get(&name)).filter(|same| ***same == bytes);
            let bytes = same.cloned().unwrap_or_else(|| Arc::new(bytes));
            (name, bytes)
        });
        let staging = staging.collect();
        Self { segment, records, staging }
    }

    /// Holes where there are zeros, which no test writes.
    fn write(&self, dir: &Path) {
        let staging = dir.join("staging");
        std::fs::create_dir(&staging).unwrap();
        for private in [dir, &staging] {
            std::fs::set_permissions(private, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        std::fs::write(dir.join(&self.segment), &self.records).unwrap();
        for (name, bytes) in &self.staging {
            let file = std::fs::File::create(staging.join(name)).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            for (at, block) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
                if block.iter().any(|byte| *byte != 0) {
                    file.write_all_at(block, at).unwrap();
                }
            }
        }
    }

    /// Its records from a length on: what each is called, and where it ends.
    fn records_from(&self, at: usize) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        let mut rest = &self.records[at..];
        while !rest.is_empty() {
            assert!(rest.starts_with(FRAME_MARK));
            let len = FRAME_HEAD + u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
            let name = rest[FRAME_HEAD..].split(|byte| *byte == b'"').nth(1).unwrap_or_default();
            found.push((String::from_utf8_lossy(name).into_owned(), self.records.len() - rest.len() + len));
            rest = &rest[len..];
        }
        found
    }

    /// As it was when the journal had so many bytes, on its way from `before` to this: bytes are staged before a record
    /// tells of them, and removed after one that says so.
    fn cut(&self, before: &Self, len: usize, told_of_bytes: bool) -> Self {
        let mut cut = before.clone();
        cut.records = self.records[..len].to_vec();
        if told_of_bytes {
            cut.staging.extend(self.staging.clone());
        }
        cut
    }
}

/// Something that a kill may leave.
struct Left {
    /// The latest that had happened.
    what: String,
    /// Steps of which the outcome is right: the tree after any of them.
    right: Vec<usize>,
    s3: Arc<MemStore>,
    disk: Disk,
}

impl Left {
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.s3, &other.s3) && self.disk == other.disk
    }
}

#[derive(Default)]
struct Camera {
    lefts: Vec<Left>,
    /// The steps that are right now.
    right: Vec<usize>,
}

impl Camera {
    /// Looks at S3 and the directory from now on, around each change.
    fn on(store: &MemStore, dir: &Path, right: Vec<usize>) -> Arc<Mutex<Self>> {
        let mut camera = Self::default();
        camera.take("what was there".to_owned(), Arc::new(store.copied()), dir, right);
        let camera = Arc::new(Mutex::new(camera));
        let (watching, dir) = (Arc::clone(&camera), dir.to_owned());
        store.watch(move |moment| {
            let mut camera = watching.lock().unwrap();
            let what = format!("{:?} {} {}", moment.when, moment.operation, moment.key);
            let right = camera.right.clone();
            // Nothing changes S3 between two requests.
            let s3 = match moment.when {
                When::Before => camera.s3(),
                When::After => Arc::new(moment.s3),
            };
            camera.take(what, s3, &dir, right);
        });
        camera
    }

    fn s3(&self) -> Arc<MemStore> {
        Arc::clone(&self.lefts.last().expect("one at least").s3)
    }

    /// A step has returned: it alone is right now.
    fn done(&mut self, what: String, dir: &Path, right: Vec<usize>) {
        let s3 = self.s3();
        self.take(what, s3, dir, right);
    }

    fn ended(store: &MemStore, camera: &Mutex<Self>) -> Vec<Left> {
        store.watch(|_| {});
        std::mem::take(&mut camera.lock().unwrap().lefts)
    }

    /// S3 is as it was at the last moment until this one.
    fn take(&mut self, what: String, s3: Arc<MemStore>, dir: &Path, right: Vec<usize>) {
        let last = self.lefts.last();
        let disk = Disk::read(dir, last.map(|last| &last.disk));
        let mut cuts = Vec::new();
        if let Some(last) = last {
            assert_eq!(last.disk.segment, disk.segment, "nothing fills a segment here");
            let records = disk.records_from(last.disk.records.len());
            let mut told_of_bytes = false;
            for (name, end) in records {
                told_of_bytes |= ["Wrote", "Inlined", "Fetched", "Sums"].contains(&&*name);
                if told_of_bytes && last.disk.staging.keys().any(|name| !disk.staging.contains_key(name)) {
                    // What was staged and removed between two looks at it nobody has seen.
                    continue;
                }
                cuts.push(Left {
                    what: format!("{}, {name}", last.what),
                    right: self.right.clone(),
                    s3: Arc::clone(&last.s3),
                    disk: disk.cut(&last.disk, end, told_of_bytes),
                });
            }
        }
        self.lefts.append(&mut cuts);
        self.lefts.push(Left { what, right: right.clone(), s3, disk });
        self.right = right;
    }
}

/// Runs it once, and has a look at whatever a kill would have left of it, and at what another one would leave of the mount that
/// goes on from there. Returns how much that was.
fn try_out(
    situation: &Situation,
    operation: &Operation,
    durability: Durability,
    twice: bool,
) -> (usize, Vec<String>) {
    let scenario = format!("{durability:?}: {}: {}", situation.name, operation.name);
    let (trees, lefts) = match runtime().block_on(record(situation, operation, durability)) {
        Ok(recorded) => recorded,
        Err(told) => return (0, vec![format!("{scenario}: {told}")]),
    };
    let mut wrong = Vec::new();
    let mut known: Option<(&Left, Seen)> = None;
    let mut looks = 0;
    for left in &lefts {
        // What a moment and the one before it have in common is looked at once.
        if known.as_ref().is_none_or(|(before, _)| !left.is_same(before)) {
            looks += 1;
            known = Some((left, runtime().block_on(go_on(left, twice))));
        }
        let (seen, next_lefts) = match &known.as_ref().expect("it was looked at").1 {
            Ok(seen) => seen,
            Err(told) => {
                wrong.push(format!("{scenario}: killed after {}: {told}", left.what));
                continue;
            }
        };
        let mut right: Vec<Nodes> = left.right.iter().flat_map(|step| trees[*step].seen()).collect();
        right.extend(exceptions(operation, left, &trees));
        if !right.contains(seen) {
            let told = format!("shows {seen:#?}\ninstead of {right:#?}");
            wrong.push(format!("{scenario}: killed after {}: {told}", left.what));
        }
        let mut before = left;
        for next in next_lefts.iter().filter(|_| twice) {
            if !next.is_same(std::mem::replace(&mut before, next)) {
                looks += 1;
                let told = match runtime().block_on(go_on(next, false)) {
                    Ok((again, _)) if again == *seen => continue,
                    Ok((again, _)) => format!("shows {again:#?}\nand before {seen:#?}"),
                    Err(told) => told,
                };
                wrong.push(format!(
                    "{scenario}: killed after {}, and again after {}: {told}",
                    left.what, next.what
                ));
            }
        }
    }
    (looks, wrong)
}

/// What a mount shows, and what is left where it is killed; or what is wrong about it.
type Seen = std::result::Result<(Nodes, Vec<Left>), String>;

/// What is promised less of.
fn exceptions(operation: &Operation, left: &Left, trees: &[Tree]) -> Vec<Nodes> {
    let [before, after] = left.right[..] else { return Vec::new() };
    match operation.steps.get(before) {
        // "Where pailfs is killed in the middle, the file is under its old name, its new one, or both" (SEMANTICS.md).
        Some(Rename(from, _)) => {
            let changed = ["After CopyObject", "After Complete", "Before DeleteObject"];
            let is_copied = changed.iter().any(|at| left.what.starts_with(at));
            let is_file = |node: &&Node| is_copied && node.file_type != FileType::Directory;
            let node = trees[before].nodes.get(*from).filter(is_file);
            let both = |node: &Node| {
                let mut both = trees[after].nodes.clone();
                both.insert((*from).to_owned(), node.clone());
                both
            };
            node.map(both).into_iter().collect()
        }
        // "Of a write that had not returned, each byte that it goes over may be the old one or the new one" (D5), and a copy
        // goes run by run.
        Some(Copy(from, to)) => {
            let bytes = &trees[before].nodes[*from].bytes;
            let begun = |len: usize| {
                let mut tree = trees[before].clone();
                tree.of_handle(to)?.put(0, &bytes[..len]);
                Some(tree.nodes)
            };
            (1..bytes.len().min(100)).filter_map(begun).collect()
        }
        _ => Vec::new(),
    }
}

/// The trees after each step, the first before the operation; and all that kills would leave.
async fn record(
    situation: &Situation,
    operation: &Operation,
    durability: Durability,
) -> std::result::Result<(Vec<Tree>, Vec<Left>), String> {
    let dir = state_dir();
    let store = Arc::new(MemStore::new(Arc::new(SystemClock), Arc::default()).with_bucket(BUCKET));
    let (client, _) = Client::putting_off(&store, dir.path(), durability);
    let mut program = Program { client, open: BTreeMap::new() };
    let mut tree = Tree::default();
    let failed = |step: Step| move |error: Error| format!("{step:?} fails: {}", error.report());
    for step in [Mkdir("d"), Put("d/other", "another")].iter().chain(situation.steps) {
        in_time(Box::pin(program.step(*step))).await.map_err(failed(*step))?;
        tree.apply(*step);
    }
    let mut trees = vec![tree.clone()];
    let camera = Camera::on(&store, dir.path(), vec![0]);
    for step in operation.steps.iter().chain(&[Flush]) {
        tree.apply(*step);
        trees.push(tree.clone());
        let now = trees.len() - 1;
        camera.lock().unwrap().right.push(now);
        in_time(Box::pin(program.step(*step))).await.map_err(failed(*step))?;
        camera.lock().unwrap().done(format!("{step:?}"), dir.path(), vec![now]);
    }
    Ok((trees, Camera::ended(&store, &camera)))
}

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let in_time = tokio::time::timeout(PATIENCE, work).await;
    in_time.unwrap_or_else(|_| Err(Error::new(Kind::TimedOut, "this waits for nothing")))
}

/// In memory where that can be: thousands of journals are begun, and each is synced.
fn state_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// The next mount: what it shows, if S3 has exactly that once all is saved; and what would be left where it is killed too.
async fn go_on(left: &Left, twice: bool) -> Seen {
    let told = |what: &'static str| move |error: Error| format!("{what}: {}", error.report());
    let dir = state_dir();
    left.disk.write(dir.path());
    let store = Arc::new(left.s3.copied());
    let (next, owed) = Client::putting_off(&store, dir.path(), Durability::Close);
    let camera = twice.then(|| Camera::on(&store, dir.path(), left.right.clone()));
    let taken = in_time(async { Ok(next.fs.take_up(owed).await) }).await.map_err(told("it cannot begin"))?;
    if taken.kept + taken.left + taken.unfinished > 0 {
        return Err(format!("took up {taken:?}"));
    }
    let shown = in_time(look(&next)).await.map_err(told("it cannot be looked at"))?;
    in_time(next.fs.flush_all()).await.map_err(told("it cannot be saved"))?;
    let lefts = camera.map_or_else(Vec::new, |camera| Camera::ended(&store, &camera));
    let later = in_time(look(&next)).await.map_err(told("it cannot be looked at when it is saved"))?;
    if later != shown {
        return Err(format!("shows {shown:#?}\nand once it is saved {later:#?}"));
    }
    let fresh =
        look(&Client::of_store(Arc::clone(&store))).await.map_err(told("another cannot look at it"))?;
    if fresh != shown {
        return Err(format!("shows {shown:#?}\nand to another mount {fresh:#?}"));
    }
    let is_seen = |key: &String| match key.strip_suffix('/') {
        Some(dir) => shown.get(dir).is_some_and(|node| node.file_type == FileType::Directory),
        None => shown.contains_key(key),
    };
    let unseen: Vec<String> = next.keys().await.into_iter().filter(|key| !is_seen(key)).collect();
    if !unseen.is_empty() {
        return Err(format!("leaves {unseen:?} in S3"));
    }
    no_uploads(&store, &next, dir.path()).await?;
    Ok((shown, lefts))
}

/// Nothing is owed any more, and no upload is left that nothing is noted of.
async fn no_uploads(store: &Arc<MemStore>, mount: &Client, dir: &Path) -> std::result::Result<(), String> {
    // Aborting goes on behind.
    let deadline = SystemClock.now() + Duration::from_secs(10);
    let mut owed = Vec::new();
    let mut uploads = Vec::new();
    while SystemClock.now() < deadline {
        let journal = mount.fs.options().journal.as_ref().expect("it has one");
        owed = journal.owed();
        uploads = store.list_uploads(BUCKET, "").await.map_err(|error| error.report())?;
        let is_noted = |key: &str| {
            owed.iter().any(|owed| matches!(owed, Owed::Unheard { place, .. } if place.key == key))
        };
        uploads.retain(|unfinished| !is_noted(&unfinished.upload.key));
        // One that was completed, which nobody heard of, is looked for once more by the mount after this one.
        let is_known = async |owed: &Owed| match owed {
            Owed::Unheard { .. } => false,
            Owed::Upload(owed) => store.list_parts(&owed.upload).await.is_ok(),
            _ => true,
        };
        let mut left = Vec::new();
        for owed in owed {
            if is_known(&owed).await {
                left.push(owed);
            }
        }
        owed = left;
        if owed.is_empty() && uploads.is_empty() {
            let staged = std::fs::read_dir(dir.join("staging")).unwrap().count();
            return if staged == 0 { Ok(()) } else { Err(format!("{staged} staging files are left")) };
        }
        tokio::task::yield_now().await;
    }
    Err(format!("owes {owed:#?}, and S3 has {uploads:?}"))
}

fn try_all(situations: &[Situation], operations: &[Operation], durability: Durability, twice: bool) {
    let (mut scenarios, mut looks, mut wrong) = (0, 0, Vec::new());
    for operation in operations {
        for situation in situations {
            let fits = match operation.needs {
                Needs::Nothing => true,
                Needs::Absent => !situation.is_there,
                Needs::There => situation.is_there,
                Needs::Open => situation.is_open,
            };
            if fits {
                let (looked, found) = try_out(situation, operation, durability, twice);
                scenarios += 1;
                looks += looked;
                wrong.extend(found);
            }
        }
    }
    println!("{scenarios} scenarios, {looks} moments");
    assert!(wrong.is_empty(), "{} of {looks} moments are wrong:\n\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Those that there is the time for.
fn situations() -> Vec<Situation> {
    match setting("ALL_WINDOWS").is_some() {
        true => [SITUATIONS, MORE].concat(),
        false => SITUATIONS.to_vec(),
    }
}

fn named<T: Clone>(all: &[T], name: impl Fn(&T) -> &str, names: &[&str]) -> Vec<T> {
    let found: Vec<T> = all.iter().filter(|one| names.contains(&name(one))).cloned().collect();
    assert_eq!(found.len(), names.len(), "each of them is there");
    found
}

#[test]
fn of_contents() {
    try_all(&situations(), CONTENTS, Durability::Journal, false);
}

/// Nothing that was closed is owed then.
#[test]
fn of_contents_that_closing_saves() {
    let situations: Vec<Situation> =
        situations().into_iter().filter(|one| one.is_open || !one.is_there).collect();
    try_all(&situations, CONTENTS, Durability::Close, false);
}

#[test]
fn of_attributes() {
    try_all(&situations(), ATTRIBUTES, Durability::Journal, false);
}

#[test]
fn of_names() {
    try_all(&situations(), NAMES, Durability::Journal, false);
}

#[test]
fn of_directories() {
    try_all(&situations(), DIRECTORIES, Durability::Journal, false);
}

#[test]
fn of_large_files() {
    let all = [CONTENTS, NAMES].concat();
    let operations = match setting("ALL_WINDOWS").is_some() {
        true => &[
            "write on",
            "write into",
            "close",
            "truncate",
            "copy into another, and remove",
            "unlink",
            "rename",
            "rename onto an owed file",
        ][..],
        false => &["close"],
    };
    try_all(LARGE_ONES, &named(&all, |one| one.name, operations), Durability::Journal, false);
}

/// What goes on from a kill may be killed itself.
#[test]
fn of_the_mount_after_it() {
    let situations =
        ["in S3", "owed over an object", "claimed and written", "described", "its delete is of a row"];
    let operations = [
        "rename",
        "rename onto a file owed over an object",
        "unlink in a row",
        "rename of the directory",
        "copy into another, and remove",
    ];
    let all = [CONTENTS, NAMES, DIRECTORIES].concat();
    let operations = named(&all, |one| one.name, &operations);
    try_all(&named(SITUATIONS, |one| one.name, &situations), &operations, Durability::Journal, true);
}
