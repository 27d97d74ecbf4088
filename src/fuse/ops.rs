//! The kernel's requests, one by one.

use std::ffi::{OsStr, OsString};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use futures::FutureExt;
use tokio::runtime::Handle;

use super::convert::{file_attr, kind, time};
use super::passthrough::{Answer, Counted, Passthrough};
use super::reply::{Asked, Of, Reply};
use super::running::{FMODE_EXEC, Running};
use super::trace::Trace;
use crate::base::{Clock, SystemClock};
use crate::error::{Error, Kind, Result};
use crate::fs::{self, Attr, DirEntry, Fs, Hole, Maker, OpenFlags, Opened, SetAttr, Space};
use crate::tree::Ino;

/// An inode number is used again only after the kernel has forgotten it, so one generation does for all.
const GENERATION: Generation = Generation(0);
/// Requests the kernel may have waiting for us in the background: its own read-ahead among them.
const MAX_BACKGROUND: u16 = 64;
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Entries of a listing without attributes need some inode number; this one says "look it up".
const UNKNOWN_INO: INodeNo = INodeNo(0xffff_ffff);
/// A synthetic volume size, large enough that no tool finds it full: 8 EiB less a bit.
const VOLUME_BLOCKS: u64 = (1 << 63) / BLOCK_BYTES as u64 - 1;
const BLOCK_BYTES: u32 = 1 << 20;
const NAME_MAX: u32 = 255;

/// The kernel's side of a mounted [`Fs`].
pub(super) struct Adapter {
    pub(super) fs: Arc<Fs>,
    pub(super) runtime: Handle,
    pub(super) started: Option<tokio::sync::oneshot::Sender<()>>,
    pub(super) passthrough: Arc<Passthrough>,
    pub(super) running: Arc<Running>,
    /// Where every operation is written down, if anywhere.
    pub(super) trace: Option<Arc<Trace>>,
}

impl Adapter {
    /// Takes a question up; the answer goes through what is returned.
    fn asked<R: Reply>(&self, req: &Request, op: &'static str, of: Of, reply: R) -> Asked<R> {
        Asked::new(&self.fs, self.trace.as_ref(), req.pid(), op, of, reply)
    }

    /// Does as much as needs no wait here, on the kernel's own thread, and the rest as a task. Most questions are
    /// answered from memory, and a task of its own costs more than twice what they do.
    fn begin(&self, op: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        let _runtime = self.runtime.enter();
        // Whatever it waits for is asked again when the task begins, so nobody has to be woken before.
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            let (fs, begun) = (Arc::clone(&self.fs), SystemClock.now());
            self.runtime.spawn(async move {
                work.await;
                fs.stats().waited(op, begun.elapsed());
            });
        }
    }

    /// Begins `work` here and answers with `done`.
    fn answer<R: Reply, T: Send + 'static>(
        &self,
        reply: Asked<R>,
        work: impl Future<Output = Result<T>> + Send + 'static,
        done: impl FnOnce(Asked<R>, T) + Send + 'static,
    ) {
        let fs = Arc::clone(&self.fs);
        self.begin(reply.op(), async move { settle_guarded(&fs, reply, work, done).await });
    }

    /// The same as a task from the start: it reads or sends much, or waits in any case.
    fn spawn<R: Reply, T: Send + 'static>(
        &self,
        reply: Asked<R>,
        work: impl Future<Output = Result<T>> + Send + 'static,
        done: impl FnOnce(Asked<R>, T) + Send + 'static,
    ) {
        let fs = Arc::clone(&self.fs);
        let (op, begun) = (reply.op(), SystemClock.now());
        self.runtime.spawn(async move {
            settle_guarded(&fs, reply, work, done).await;
            fs.stats().waited(op, begun.elapsed());
        });
    }

    /// An open that may write, or change the file's length on its way.
    fn open_cached(&self, ino: Ino, flags: OpenFlags, reply: Asked<ReplyOpen>) {
        let Some(counted) = self.passthrough.cached(ino) else { return send_elsewhere(&self.fs, ino, reply) };
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.open(ino, flags).await.map(|opened| (opened, counted)) };
        self.answer(reply, work, |reply, (opened, counted): (Opened, Counted)| {
            counted.keep();
            reply.opened(FileHandle(opened.fh), fopen(opened.keep_cache));
        });
    }

    /// An open of somebody who, by cutting the file, takes its set-user-ID and set-group-ID away.
    fn open_cutting(&self, ino: Ino, flags: OpenFlags, reply: Asked<ReplyOpen>) {
        let Some(counted) = self.passthrough.cached(ino) else { return send_elsewhere(&self.fs, ino, reply) };
        let fs = Arc::clone(&self.fs);
        let work = async move {
            let opened = fs.open(ino, flags).await?;
            match fs.drop_privileges(ino).await {
                Ok(()) => Ok((opened, counted)),
                Err(error) => {
                    fs.release(opened.fh);
                    Err(error)
                }
            }
        };
        self.answer(reply, work, |reply, (opened, counted): (Opened, Counted)| {
            counted.keep();
            reply.opened(FileHandle(opened.fh), fopen(opened.keep_cache));
        });
    }

    /// A reader's open: by the kernel alone where the file is whole on disk, and otherwise through us.
    fn open_reader(&self, ino: Ino, flags: OpenFlags, executes: bool, reply: Asked<ReplyOpen>) {
        let (fs, passthrough) = (Arc::clone(&self.fs), Arc::clone(&self.passthrough));
        let running = Arc::clone(&self.running);
        let answer = move |passthrough: &Passthrough, reply, opened: Opened, backing| {
            let fh = opened.fh;
            if executes {
                running.begins(fh, ino);
            }
            if !answer_reader(&fs, passthrough, ino, flags, reply, opened, backing) {
                running.ended(fh);
            }
        };
        let fs = Arc::clone(&self.fs);
        // Direct reads have rules of their own on a disk that they do not have here.
        let wanted = passthrough.is_enabled() && !flags.direct;
        if !wanted && let Some(opened) = fs.open_now(ino, flags) {
            return answer(&passthrough, reply, opened, None);
        }
        let asking = Arc::clone(&fs);
        let work = async move {
            let opened = match asking.open_now(ino, flags) {
                Some(opened) => opened,
                None => asking.open(ino, flags).await?,
            };
            let backing = if wanted { asking.backing(opened.fh).await } else { None };
            Ok((opened, backing))
        };
        self.answer(reply, work, move |reply, (opened, backing)| {
            answer(&passthrough, reply, opened, backing);
        });
    }
}

/// Whether it is open now.
fn answer_reader(
    fs: &Arc<Fs>,
    passthrough: &Passthrough,
    ino: Ino,
    flags: OpenFlags,
    reply: Asked<ReplyOpen>,
    opened: Opened,
    backing: Option<(fs::Version, std::fs::File)>,
) -> bool {
    let version = fs.version(opened.fh);
    let file = backing.filter(|(of, _)| version.as_ref() == Some(of)).map(|(_, file)| file);
    let fh = FileHandle(opened.fh);
    match passthrough.reader(reply.raw(), ino, version.as_ref(), file) {
        Answer::Cached => reply.opened(fh, fopen(opened.keep_cache)),
        Answer::Backed(backing) => {
            fs.stats().passthrough_opens.add(1);
            // Direct beside backed still asks us.
            let how = if flags.direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
            reply.opened_passthrough(fh, how, &backing);
        }
        Answer::Elsewhere => {
            fs.release(opened.fh);
            send_elsewhere(fs, ino, reply);
            return false;
        }
    }
    true
}

/// Gives the name another inode and tells the kernel to look it up again, which it does once for ESTALE.
fn send_elsewhere<R: Reply>(fs: &Fs, ino: Ino, reply: Asked<R>) {
    match fs.detach(ino) {
        Ok(()) => {
            tracing::debug!(ino = ino.0, "the kernel reads this inode by itself; its name gets another one");
            reply.error(Errno::ESTALE);
        }
        Err(error) => reply.failed(fs, &error),
    }
}

/// Answers with a result that is here.
fn settle<R: Reply, T>(fs: &Fs, reply: Asked<R>, answer: Result<T>, done: impl FnOnce(Asked<R>, T)) {
    match answer {
        Ok(value) => done(reply, value),
        Err(error) => reply.failed(fs, &error),
    }
}

/// lseek's numbers, which only the kernel's headers know.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// What fallocate is to do; `None` for what is not offered.
fn space_of(mode: i32) -> Option<Space> {
    use rustix::fs::FallocateFlags as Flags;
    let mode = Flags::from_bits_retain(mode.cast_unsigned());
    let keep_size = mode.contains(Flags::KEEP_SIZE);
    match mode.difference(Flags::KEEP_SIZE) {
        how if how.is_empty() => Some(Space { zero: false, keep_size }),
        how if how == Flags::ZERO_RANGE => Some(Space { zero: true, keep_size }),
        how if how == Flags::PUNCH_HOLE && keep_size => Some(Space { zero: true, keep_size }),
        _ => None,
    }
}

fn flags_of(flags: i32) -> OpenFlags {
    let bits = rustix::fs::OFlags::from_bits_retain(flags.cast_unsigned());
    OpenFlags {
        write: fuser::OpenFlags(flags).acc_mode() != OpenAccMode::O_RDONLY,
        truncate: bits.contains(rustix::fs::OFlags::TRUNC),
        append: bits.contains(rustix::fs::OFlags::APPEND),
        exclusive: bits.contains(rustix::fs::OFlags::EXCL),
        direct: bits.contains(rustix::fs::OFlags::DIRECT),
    }
}

/// A value, or its length for who asks with no room.
fn send_xattr(reply: Asked<ReplyXattr>, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

const DIR: fs::FileType = fs::FileType::Directory;

/// Who asks for something to be made, and with which permissions.
fn maker(req: &Request, mode: u32) -> Maker {
    Maker { mode: mode & 0o7777, owner: Some((req.uid(), req.gid())) }
}

fn fopen(keep_cache: bool) -> FopenFlags {
    if keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}

fn send_slices(reply: Asked<ReplyData>, slices: &[Bytes]) {
    match slices {
        [] => reply.data(&[]),
        [one] => reply.data(one),
        many => reply.data(&many.concat()),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Otherwise the kernel asks for `security.capability` before every write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            if config.add_capabilities(wanted).is_err() {
                tracing::debug!(?wanted, "this kernel does not offer a FUSE feature");
            }
        }
        if self.fs.options().passthrough != fs::Passthrough::Never && self.fs.options().cache.is_some() {
            // A backing file on a stacked file system is not taken, so that this one can be stacked on.
            let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
            if offered && config.set_max_stack_depth(1).is_ok() {
                self.passthrough.enable();
            } else {
                tracing::debug!("this kernel does not offer passthrough");
            }
        }
        // Each of these answers the nearest possible value where ours is not; that will do.
        let _ = config.set_max_background(MAX_BACKGROUND);
        if let Err(nearest) = config.set_max_write(MAX_WRITE_BYTES) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(MAX_WRITE_BYTES) {
            let _ = config.set_max_readahead(nearest);
        }
        if let Some(started) = self.started.take() {
            let _ = started.send(());
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let reply = self.asked(req, "lookup", Of::name(parent, name), reply);
        let parent = Ino(parent.0);
        match self.fs.lookup_now(parent, name) {
            Some(Err(error)) if error.is_not_found() => absent(reply, self.fs.absent_for(parent, name)),
            Some(answer) => settle(&self.fs, reply, answer, entry),
            None => {
                let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
                let work = async move {
                    match fs.lookup(parent, &name).await {
                        Err(error) if error.is_not_found() => Ok(Err(fs.absent_for(parent, &name))),
                        answer => answer.map(Ok),
                    }
                };
                self.answer(reply, work, |reply, found| match found {
                    Ok(attr) => entry(reply, attr),
                    Err(ttl) => absent(reply, ttl),
                });
            }
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, count: u64) {
        self.fs.forget(Ino(ino.0), count);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let reply = self.asked(req, "getattr", Of::inode(ino), reply);
        match self.fs.getattr_now(Ino(ino.0)) {
            Some(answer) => settle(&self.fs, reply, answer, attributes),
            None => {
                let fs = Arc::clone(&self.fs);
                self.answer(reply, async move { fs.getattr(Ino(ino.0)).await }, attributes);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let reply = self.asked(req, "setattr", Of::inode(ino), reply);
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(|t| time(t, &SystemClock)),
            mtime: mtime.map(|t| time(t, &SystemClock)),
            drops_privileges: size.is_some() && req.uid() != 0,
        };
        let cuts = set.size.is_some() && fh.is_none();
        let counted = cuts.then(|| self.passthrough.cached(Ino(ino.0)));
        if matches!(counted, Some(None)) {
            return send_elsewhere(&self.fs, Ino(ino.0), reply);
        }
        let fs = Arc::clone(&self.fs);
        let work = async move {
            let _counted = counted;
            fs.setattr(Ino(ino.0), fh.map(|fh| fh.0), set).await
        };
        self.spawn(reply, work, attributes);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let reply = self.asked(req, "mkdir", Of::name(parent, name), reply);
        let (fs, name, made) = (Arc::clone(&self.fs), name.to_owned(), maker(req, mode & !umask));
        let work = async move { fs.mkdir(Ino(parent.0), &name, made).await };
        self.spawn(reply, work, entry);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let reply = self.asked(req, "mknod", Of::name(parent, name), reply);
        let (fs, name, made) = (Arc::clone(&self.fs), name.to_owned(), maker(req, mode & !umask));
        let file_type = match rustix::fs::FileType::from_raw_mode(mode) {
            rustix::fs::FileType::RegularFile => fs::FileType::Regular,
            rustix::fs::FileType::Fifo => fs::FileType::Fifo,
            rustix::fs::FileType::Socket => fs::FileType::Socket,
            _ => return reply.error(Errno::EPERM),
        };
        let work = async move {
            if file_type != fs::FileType::Regular {
                return fs.mknod(Ino(parent.0), &name, file_type, made).await;
            }
            let flags = OpenFlags { write: true, exclusive: true, ..OpenFlags::default() };
            let (attr, opened) = fs.create(Ino(parent.0), &name, flags, made).await?;
            let saved = fs.flush(opened.fh).await;
            fs.release(opened.fh);
            saved.map(|()| attr)
        };
        self.spawn(reply, work, entry);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = self.asked(req, "unlink", Of::name(parent, name), reply);
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.answer(reply, async move { fs.unlink(Ino(parent.0), &name).await }, |reply, ()| reply.ok());
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = self.asked(req, "rmdir", Of::name(parent, name), reply);
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.spawn(reply, async move { fs.rmdir(Ino(parent.0), &name).await }, |reply, ()| reply.ok());
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let reply = self.asked(req, "symlink", Of::name(parent, name), reply);
        let (fs, name, made) = (Arc::clone(&self.fs), name.to_owned(), maker(req, 0o777));
        let target = target.as_os_str().to_owned();
        let work = async move { fs.symlink(Ino(parent.0), &name, &target, made).await };
        self.spawn(reply, work, entry);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let reply = self.asked(req, "readlink", Of::inode(ino), reply);
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.readlink(Ino(ino.0)).await };
        self.spawn(reply, work, |reply: Asked<ReplyData>, target| reply.data(&target));
    }

    fn link(&self, req: &Request, _ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let reply = self.asked(req, "link", Of::name(parent, name), reply);
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let reply = self.asked(
            req,
            "rename",
            Of::Names((Ino(parent.0), name.to_owned()), (Ino(new_parent.0), new_name.to_owned())),
            reply,
        );
        if flags.intersects(!RenameFlags::RENAME_NOREPLACE) {
            return reply.error(Errno::EINVAL);
        }
        let no_replace = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let fs = Arc::clone(&self.fs);
        let (name, new_name): (OsString, OsString) = (name.to_owned(), new_name.to_owned());
        let work =
            async move { fs.rename(Ino(parent.0), &name, Ino(new_parent.0), &new_name, no_replace).await };
        self.spawn(reply, work, |reply, ()| reply.ok());
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen) {
        let reply = self.asked(req, "open", Of::inode(ino), reply);
        let executes = flags.0 & FMODE_EXEC != 0;
        let flags = flags_of(flags.0);
        if flags.truncate && !flags.write && self.running.is(Ino(ino.0)) {
            reply.error(Errno::ETXTBSY);
        } else if flags.truncate && req.uid() != 0 {
            self.open_cutting(Ino(ino.0), flags, reply);
        } else if flags.write || flags.truncate {
            self.open_cached(Ino(ino.0), flags, reply);
        } else {
            self.open_reader(Ino(ino.0), flags, executes, reply);
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let reply = self.asked(req, "create", Of::name(parent, name), reply);
        let (fs, name, made) = (Arc::clone(&self.fs), name.to_owned(), maker(req, mode & !umask));
        let work = async move { fs.create(Ino(parent.0), &name, flags_of(flags), made).await };
        let (fs, passthrough) = (Arc::clone(&self.fs), Arc::clone(&self.passthrough));
        self.answer(reply, work, move |reply, (attr, opened)| {
            let Some(counted) = passthrough.cached(attr.ino) else {
                // It has come into being meanwhile, and is read already.
                fs.release(opened.fh);
                return reply.error(Errno::ESTALE);
            };
            counted.keep();
            let flags = fopen(opened.keep_cache);
            reply.created(&attr.ttl, &file_attr(&attr), GENERATION, FileHandle(opened.fh), flags);
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let reply = self.asked(req, "read", Of::inode(ino), reply).at(offset, size.into());
        let done = |reply: Asked<ReplyData>, slices: Vec<Bytes>| send_slices(reply, &slices);
        match self.fs.read_now(fh.0, offset, size) {
            Some(answer) => settle(&self.fs, reply, answer, done),
            None => {
                let fs = Arc::clone(&self.fs);
                self.answer(reply, async move { fs.read(fh.0, offset, size).await }, done);
            }
        }
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let reply = self.asked(req, "write", Of::inode(ino), reply).at(offset, data.len() as u64);
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let drops_privileges = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // Staging is the page cache of a local file: answered here, without a copy in between.
        if !drops_privileges && let Some(answer) = self.fs.write_now(fh.0, offset, data) {
            settle(&self.fs, reply, answer, |reply: Asked<ReplyWrite>, ()| reply.written(len));
            return;
        }
        let (fs, data) = (Arc::clone(&self.fs), data.to_vec());
        let work = async move {
            if drops_privileges {
                fs.drop_privileges(Ino(ino.0)).await?;
            }
            fs.write(fh.0, offset, &data).await
        };
        self.spawn(reply, work, move |reply, ()| reply.written(len));
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let reply = self.asked(req, "close", Of::inode(ino), reply);
        let fs = Arc::clone(&self.fs);
        self.spawn(reply, async move { fs.flush(fh.0).await }, |reply, ()| reply.ok());
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let reply = self.asked(req, "fsync", Of::inode(ino), reply);
        let fs = Arc::clone(&self.fs);
        self.spawn(reply, async move { fs.fsync(fh.0).await }, |reply, ()| reply.ok());
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let reply = self.asked(req, "release", Of::inode(ino), reply);
        // A file that its close could not save starts a task, which needs the runtime.
        let _in_runtime = self.runtime.enter();
        self.running.ended(fh.0);
        self.fs.release(fh.0);
        self.passthrough.released(Ino(ino.0));
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: fuser::OpenFlags, reply: ReplyOpen) {
        let reply = self.asked(req, "opendir", Of::inode(ino), reply);
        let answer = self.fs.opendir(Ino(ino.0));
        settle(&self.fs, reply, answer, |reply: Asked<ReplyOpen>, fh| {
            reply.opened(FileHandle(fh), FopenFlags::empty());
        });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let reply = self.asked(req, "readdir", Of::inode(ino), reply);
        let fs = Arc::clone(&self.fs);
        let mut reply = reply;
        self.begin(reply.op(), async move {
            let full = offset < 1 && reply.add(ino, 1, kind(DIR), ".")
                || offset < 2 && reply.add(UNKNOWN_INO, 2, kind(DIR), "..");
            if full {
                return reply.ok();
            }
            let from = if offset <= 2 { 0 } else { offset };
            let work = async {
                let mut take = |entry: &DirEntry| {
                    let ino = entry.ino.map_or(UNKNOWN_INO, |ino| INodeNo(ino.0));
                    !reply.add(ino, entry.cookie, kind(entry.file_type), OsStr::new(entry.name.as_str()))
                };
                fs.readdir(fh.0, from, false, &mut take).await
            };
            let answer = guard(&fs, "readdir", work).await;
            settle(&fs, reply, answer, |reply: Asked<ReplyDirectory>, ()| reply.ok());
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let reply = self.asked(req, "readdirplus", Of::inode(ino), reply);
        let fs = Arc::clone(&self.fs);
        let mut reply = reply;
        self.begin(reply.op(), async move {
            // The kernel takes no reference of `.` and `..`, and wants no attributes of them.
            let dots = placeholder(INodeNo(ino.0), DIR);
            let up = placeholder(UNKNOWN_INO, DIR);
            let none = INodeNo(0);
            let full = offset < 1 && reply.add(none, 1, ".", &Duration::ZERO, &dots, GENERATION)
                || offset < 2 && reply.add(none, 2, "..", &Duration::ZERO, &up, GENERATION);
            if full {
                return reply.ok();
            }
            let from = if offset <= 2 { 0 } else { offset };
            let work = async {
                let mut take = |entry: &DirEntry| {
                    let name = OsStr::new(entry.name.as_str());
                    let full = match &entry.attr {
                        Some(attr) => {
                            let ttl = attr.ttl;
                            let attr = file_attr(attr);
                            reply.add(attr.ino, entry.cookie, name, &ttl, &attr, GENERATION)
                        }
                        None => {
                            let shown = entry.ino.map_or(UNKNOWN_INO, |ino| INodeNo(ino.0));
                            let attr = placeholder(shown, entry.file_type);
                            reply.add(none, entry.cookie, name, &Duration::ZERO, &attr, GENERATION)
                        }
                    };
                    !full
                };
                fs.readdir(fh.0, from, true, &mut take).await
            };
            let answer = guard(&fs, "readdirplus", work).await;
            settle(&fs, reply, answer, |reply: Asked<ReplyDirectoryPlus>, ()| reply.ok());
        });
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: fuser::OpenFlags,
        reply: ReplyEmpty,
    ) {
        let reply = self.asked(req, "releasedir", Of::inode(ino), reply);
        self.fs.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let reply = self.asked(req, "fsyncdir", Of::inode(ino), reply);
        let fs = Arc::clone(&self.fs);
        self.spawn(reply, async move { fs.fsyncdir(Ino(ino.0)).await }, |reply, ()| reply.ok());
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let reply = self.asked(req, "setxattr", Of::inode(ino), reply);
        let Some(name) = name.to_str().map(str::to_owned) else { return reply.error(Errno::EINVAL) };
        let flags = rustix::fs::XattrFlags::from_bits_retain(flags.cast_unsigned());
        let replaces = match flags {
            flags if flags.contains(rustix::fs::XattrFlags::CREATE) => fs::Replaces::Nothing,
            flags if flags.contains(rustix::fs::XattrFlags::REPLACE) => fs::Replaces::Something,
            _ => fs::Replaces::Either,
        };
        let (fs, value) = (Arc::clone(&self.fs), value.to_vec());
        let work = async move { fs.setxattr(Ino(ino.0), &name, &value, replaces).await };
        self.spawn(reply, work, |reply, ()| reply.ok());
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let reply = self.asked(req, "getxattr", Of::inode(ino), reply);
        let Some(name) = name.to_str().map(str::to_owned) else { return reply.error(Errno::ENODATA) };
        if let Some(error) = self.fs.getxattr_now(&name) {
            return reply.failed(&self.fs, &error);
        }
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.getxattr(Ino(ino.0), &name).await };
        self.spawn(reply, work, move |reply, value| send_xattr(reply, &value, size));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let reply = self.asked(req, "listxattr", Of::inode(ino), reply);
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.listxattr(Ino(ino.0)).await };
        self.spawn(reply, work, move |reply, names| {
            let list: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
            send_xattr(reply, &list, size);
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = self.asked(req, "removexattr", Of::inode(ino), reply);
        let Some(name) = name.to_str().map(str::to_owned) else { return reply.error(Errno::ENODATA) };
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.removexattr(Ino(ino.0), &name).await };
        self.spawn(reply, work, |reply, ()| reply.ok());
    }

    fn access(&self, req: &Request, ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        let reply = self.asked(req, "access", Of::inode(ino), reply);
        // The kernel checks modes itself; this tells it not to ask.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let reply = self.asked(req, "fallocate", Of::inode(ino), reply).at(offset, length);
        let Some(space) = space_of(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.fallocate(fh.0, offset, length, space).await };
        self.answer(reply, work, |reply, ()| reply.ok());
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let reply = self.asked(req, "lseek", Of::inode(ino), reply);
        let wanted = match whence {
            SEEK_DATA => Hole::No,
            SEEK_HOLE => Hole::Yes,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let answer = self.fs.seek(fh.0, offset, wanted);
        settle(&self.fs, reply, answer, |reply: Asked<ReplyLseek>, found| {
            match found.and_then(|at| i64::try_from(at).ok()) {
                Some(at) => reply.offset(at),
                None => reply.error(Errno::ENXIO),
            }
        });
    }

    #[allow(clippy::too_many_arguments)]
    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let reply = self.asked(req, "ioctl", Of::inode(ino), reply);
        reply.error(Errno::ENOTTY);
    }

    #[allow(clippy::too_many_arguments)]
    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let reply = self
            .asked(req, "copy_file_range", Of::Inodes(Ino(ino_in.0), Ino(ino_out.0)), reply)
            .at(offset_in, len);
        let fs = Arc::clone(&self.fs);
        // The answer's count has 32 bits.
        let len = len.min(u64::from(u32::MAX));
        let work = async move { fs.copy_range((fh_in.0, offset_in), (fh_out.0, offset_out), len).await };
        self.spawn(reply, work, |reply, copied| {
            reply.written(u32::try_from(copied).unwrap_or(u32::MAX));
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let reply = self.asked(req, "statfs", Of::inode(ino), reply);
        let files = u64::from(u32::MAX);
        let (blocks, size) = (VOLUME_BLOCKS, BLOCK_BYTES);
        reply.answer(|reply| reply.statfs(blocks, blocks, blocks, files, files, size, NAME_MAX, size));
    }
}

/// A directory entry without attributes: the kernel uses its number and kind alone.
fn placeholder(ino: INodeNo, file_type: fs::FileType) -> fuser::FileAttr {
    fuser::FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(file_type),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A name, which the kernel believes for as long as we do.
fn entry(reply: Asked<ReplyEntry>, attr: Attr) {
    reply.entry(&attr.ttl, &file_attr(&attr), GENERATION);
}

/// The same of an inode's attributes.
fn attributes(reply: Asked<ReplyAttr>, attr: Attr) {
    reply.attr(&attr.ttl, &file_attr(&attr));
}

/// Says that a name is absent, in a way the kernel remembers for as long as we do.
fn absent(reply: Asked<ReplyEntry>, ttl: Duration) {
    if ttl.is_zero() {
        return reply.error(Errno::ENOENT);
    }
    reply.absent(&ttl, &placeholder(INodeNo(0), fs::FileType::Regular), GENERATION);
}

/// Answers `work` with `done`; a failure or a panic answers its errno.
async fn settle_guarded<R: Reply, T>(
    fs: &Fs,
    reply: Asked<R>,
    work: impl Future<Output = Result<T>>,
    done: impl FnOnce(Asked<R>, T),
) {
    let answer = guard(fs, reply.op(), work).await;
    settle(fs, reply, answer, done);
}

/// Turns a panic into a failure, so that the reply is still there to be answered.
async fn guard<T>(fs: &Fs, operation: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_panic| {
        fs.stats().panics.add(1);
        Err(Error::new(
            Kind::Internal,
            format!("{operation} failed by a defect of pailfs; it was answered EIO"),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Options, Root, Volume};
    use crate::s3::MemStore;
    use crate::stats::Stats;

    struct Answer(tokio::sync::oneshot::Sender<Errno>);

    impl Reply for Answer {
        fn fail(self, errno: Errno) {
            let _ = self.0.send(errno);
        }
    }

    #[tokio::test]
    async fn a_request_that_panics_is_answered_eio_and_the_mount_lives() {
        let stats = Arc::new(Stats::default());
        let store = MemStore::new(Arc::new(SystemClock), Arc::clone(&stats)).with_bucket("bucket");
        let root = Root::Volume(Volume::new("bucket", "", Arc::new(store)));
        let fs = Fs::new(root, Options::default(), Arc::new(SystemClock), Arc::clone(&stats)).unwrap();
        let adapter = Adapter {
            fs,
            runtime: Handle::current(),
            started: None,
            passthrough: Arc::default(),
            running: Arc::default(),
            trace: None,
        };
        let (sender, answer) = tokio::sync::oneshot::channel();
        let work = async { if adapter_never_returns() { Ok(()) } else { panic!("a defect") } };
        let asked = Asked::new(&adapter.fs, None, 1, "test", Of::Inode(crate::tree::ROOT), Answer(sender));
        adapter.spawn(asked, work, |_, ()| {});
        assert_eq!(answer.await.unwrap(), Errno::EIO);
        assert_eq!(stats.panics.value(), 1);
        assert!(adapter.fs.getattr(crate::tree::ROOT).await.is_ok());
    }

    /// Keeps the compiler from seeing that the panic is certain.
    fn adapter_never_returns() -> bool {
        std::hint::black_box(false)
    }
}
