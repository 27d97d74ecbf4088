//! What the kernel has asked and is owed an answer to: every answer goes through here, so that a failure is logged, and an
//! operation traced, exactly once.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::convert::{errno, errno_name};
use super::trace::{Line, Trace};
use crate::base::{Clock, SystemClock};
use crate::error::{Details, Error, Kind};
use crate::fs::Fs;
use crate::tree::Ino;

/// A reply that can say "failed".
pub(super) trait Reply: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! replies {
    ($($reply:ty),+) => { $(impl Reply for $reply { fn fail(self, errno: Errno) { self.error(errno); } })+ };
}
replies!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// What an operation is about.
#[derive(Clone, Debug)]
pub(super) enum Of {
    Inode(Ino),
    Inodes(Ino, Ino),
    Name(Ino, OsString),
    Names((Ino, OsString), (Ino, OsString)),
}

impl Of {
    pub(super) fn inode(ino: INodeNo) -> Self {
        Self::Inode(Ino(ino.0))
    }

    pub(super) fn name(parent: INodeNo, name: &OsStr) -> Self {
        Self::Name(Ino(parent.0), name.to_owned())
    }

    fn first(&self) -> (Ino, Option<&OsStr>) {
        match self {
            Self::Inode(ino) | Self::Inodes(ino, _) => (*ino, None),
            Self::Name(ino, name) | Self::Names((ino, name), _) => (*ino, Some(name)),
        }
    }

    fn second(&self) -> Option<(Ino, Option<&OsStr>)> {
        match self {
            Self::Inode(_) | Self::Name(..) => None,
            Self::Inodes(_, ino) => Some((*ino, None)),
            Self::Names(_, (ino, name)) => Some((*ino, Some(name))),
        }
    }
}

/// A question of the kernel.
pub(super) struct Asked<R> {
    reply: R,
    op: &'static str,
    of: Of,
    /// Where operations are traced.
    traced: Option<Box<Traced>>,
}

struct Traced {
    trace: Arc<Trace>,
    begun: Instant,
    line: Box<Line>,
}

impl Traced {
    fn end(self, result: i32, bytes: Option<u64>) {
        let Self { trace, begun, mut line } = self;
        line.result = result;
        line.latency = SystemClock.now().saturating_duration_since(begun);
        line.bytes = bytes.or(line.bytes);
        trace.write(line);
    }
}

impl<R: Reply> Asked<R> {
    pub(super) fn new(
        fs: &Fs,
        trace: Option<&Arc<Trace>>,
        pid: u32,
        op: &'static str,
        of: Of,
        reply: R,
    ) -> Self {
        fs.stats().asked(op);
        let traced = trace.map(|trace| {
            // By now: afterwards the inode may be gone.
            let path = |(ino, name): (Ino, Option<&OsStr>)| path(fs, ino, name);
            let line = Line {
                at: SystemClock.wall(),
                op,
                result: 0,
                latency: Duration::ZERO,
                offset: None,
                bytes: None,
                pid,
                path: path(of.first()),
                to: of.second().map(path),
            };
            Box::new(Traced { trace: Arc::clone(trace), begun: SystemClock.now(), line: Box::new(line) })
        });
        Self { reply, op, of, traced }
    }

    /// Which bytes of a file it is about.
    #[must_use]
    pub(super) fn at(mut self, offset: u64, bytes: u64) -> Self {
        if let Some(traced) = &mut self.traced {
            (traced.line.offset, traced.line.bytes) = (Some(offset), Some(bytes));
        }
        self
    }

    pub(super) fn op(&self) -> &'static str {
        self.op
    }

    /// Answers a failure, and logs it.
    pub(super) fn failed(self, fs: &Fs, error: &Error) {
        log(fs, self.op, &self.of, error);
        self.error(errno(error));
    }

    /// Answers what is no failure of ours: programs ask what there is not.
    pub(super) fn error(self, errno: Errno) {
        self.end(i32::from(errno), None, |reply| reply.fail(errno));
    }

    fn end(self, result: i32, bytes: Option<u64>, answer: impl FnOnce(R)) {
        answer(self.reply);
        if let Some(traced) = self.traced {
            traced.end(result, bytes);
        }
    }

    fn good(self, answer: impl FnOnce(R)) {
        self.end(0, None, answer);
    }
}

fn path(fs: &Fs, ino: Ino, name: Option<&OsStr>) -> OsString {
    let mut path = OsString::from(fs.path_of(ino));
    if let Some(name) = name {
        if path != "/" {
            path.push("/");
        }
        path.push(name);
    }
    path
}

impl Asked<ReplyEmpty> {
    pub(super) fn ok(self) {
        self.good(ReplyEmpty::ok);
    }
}

impl Asked<ReplyEntry> {
    pub(super) fn entry(self, ttl: &Duration, attr: &FileAttr, generation: Generation) {
        self.good(|reply| reply.entry(ttl, attr, generation));
    }

    /// A name that is not there, which the kernel remembers; for a program it is `ENOENT` all the same.
    pub(super) fn absent(self, ttl: &Duration, attr: &FileAttr, generation: Generation) {
        self.end(i32::from(Errno::ENOENT), None, |reply| reply.entry(ttl, attr, generation));
    }
}

impl Asked<ReplyAttr> {
    pub(super) fn attr(self, ttl: &Duration, attr: &FileAttr) {
        self.good(|reply| reply.attr(ttl, attr));
    }
}

impl Asked<ReplyData> {
    pub(super) fn data(self, data: &[u8]) {
        self.end(0, Some(data.len() as u64), |reply| reply.data(data));
    }
}

impl Asked<ReplyWrite> {
    pub(super) fn written(self, bytes: u32) {
        self.end(0, Some(bytes.into()), |reply| reply.written(bytes));
    }
}

impl Asked<ReplyOpen> {
    pub(super) fn opened(self, fh: FileHandle, flags: FopenFlags) {
        self.good(|reply| reply.opened(fh, flags));
    }

    pub(super) fn opened_passthrough(self, fh: FileHandle, flags: FopenFlags, backing: &BackingId) {
        self.good(|reply| reply.opened_passthrough(fh, flags, backing));
    }

    /// What makes a backing file of one of ours.
    pub(super) fn raw(&self) -> &ReplyOpen {
        &self.reply
    }
}

impl Asked<ReplyCreate> {
    pub(super) fn created(
        self,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
        fh: FileHandle,
        flags: FopenFlags,
    ) {
        self.good(|reply| reply.created(ttl, attr, generation, fh, flags));
    }
}

impl Asked<ReplyXattr> {
    pub(super) fn size(self, size: u32) {
        self.end(0, Some(size.into()), |reply| reply.size(size));
    }

    pub(super) fn data(self, data: &[u8]) {
        self.end(0, Some(data.len() as u64), |reply| reply.data(data));
    }
}

impl Asked<ReplyLseek> {
    pub(super) fn offset(self, offset: i64) {
        self.good(|reply| reply.offset(offset));
    }
}

impl Asked<ReplyStatfs> {
    pub(super) fn answer(self, answer: impl FnOnce(ReplyStatfs)) {
        self.good(answer);
    }
}

impl Asked<ReplyDirectory> {
    /// Whether there is no room for it any more.
    pub(super) fn add(&mut self, ino: INodeNo, offset: u64, kind: FileType, name: impl AsRef<OsStr>) -> bool {
        self.reply.add(ino, offset, kind, name)
    }

    pub(super) fn ok(self) {
        self.good(ReplyDirectory::ok);
    }
}

impl Asked<ReplyDirectoryPlus> {
    /// Whether there is no room for it any more.
    pub(super) fn add(
        &mut self,
        ino: INodeNo,
        offset: u64,
        name: impl AsRef<OsStr>,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
    ) -> bool {
        self.reply.add(ino, offset, name, ttl, attr, generation)
    }

    pub(super) fn ok(self) {
        self.good(ReplyDirectoryPlus::ok);
    }
}

/// How loudly a failure is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Programs ask for it all day.
    Everyday,
    Trouble,
    Defect,
}

fn told(op: &str, kind: Kind) -> Told {
    // Whatever keeps bytes from S3 is trouble.
    let saves = matches!(op, "close" | "fsync" | "fsyncdir");
    match kind {
        Kind::Internal => Told::Defect,
        Kind::NotFound
        | Kind::AlreadyExists
        | Kind::NotEmpty
        | Kind::NotADirectory
        | Kind::IsADirectory
        | Kind::CrossDevice
        | Kind::ReadOnly
        | Kind::NameTooLong
        | Kind::InvalidArgument
        | Kind::BadHandle
        | Kind::Unsupported
        | Kind::NoAttribute
        | Kind::AttributeTooLarge
        | Kind::NotPermitted
            if !saves =>
        {
            Told::Everyday
        }
        _ => Told::Trouble,
    }
}

/// A failure of an operation is logged here and nowhere else.
fn log(fs: &Fs, op: &'static str, of: &Of, error: &Error) {
    let told = told(op, error.kind());
    if told == Told::Everyday && !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (ino, name) = of.first();
    let place = fs.whereabouts(ino, name);
    let path = &*place.path;
    let to = of.second().map(|(ino, name)| fs.whereabouts(ino, name).path);
    let Details { request, bucket, key, code, status, request_id } = error.details();
    // What was asked of S3 may be about another key than the file's own.
    let bucket = bucket.or(place.bucket.as_deref());
    let key = key.or(place.key.as_deref());
    let (errno, error) = (errno_name(error.errno()), error.report());
    let errno = &*errno;
    macro_rules! say {
        ($level:ident) => {
            tracing::$level!(
                op,
                path,
                to,
                errno,
                request,
                bucket,
                key,
                code,
                status,
                request_id,
                error,
                "{op} failed"
            )
        };
    }
    match told {
        Told::Everyday => say!(debug),
        Told::Trouble => say!(warn),
        Told::Defect => say!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_ask_for_all_day_is_no_news_and_unsaved_bytes_always_are() {
        for kind in [Kind::NotFound, Kind::AlreadyExists, Kind::NoAttribute, Kind::NotPermitted] {
            assert_eq!(told("lookup", kind), Told::Everyday, "{kind:?}");
            assert_eq!(told("close", kind), Told::Trouble, "{kind:?}");
        }
        assert_eq!(told("read", Kind::AccessDenied), Told::Trouble);
        assert_eq!(told("close", Kind::Internal), Told::Defect);
    }
}
