//! What is answered on the kernel's own threads, where a defect must not take the thread with it: there are few of them, and the
//! mount ends with the last.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use super::ops::Adapter;

/// Passes every request on. One that panics is answered `EIO` by its reply, which answers so when it is dropped.
pub(super) struct Guarded(pub(super) Adapter);

impl Guarded {
    fn guard(&self, op: &'static str, work: impl FnOnce(&Adapter)) {
        if catch_unwind(AssertUnwindSafe(|| work(&self.0))).is_err() {
            self.0.fs.stats().panics.add(1);
            tracing::error!(op, "it failed by a defect of pailfs; it was answered EIO");
        }
    }
}

macro_rules! passed_on {
    ($(fn $name:ident($($arg:ident: $type:ty),+);)+) => {
        impl Filesystem for Guarded {
            fn init(&mut self, req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
                self.0.init(req, config)
            }

            $(fn $name(&self, $($arg: $type),+) {
                self.guard(stringify!($name), |adapter| adapter.$name($($arg),+));
            })+
        }
    };
}

passed_on! {
    fn lookup(req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry);
    fn forget(req: &Request, ino: INodeNo, count: u64);
    fn getattr(req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr);
    fn setattr(
        req: &Request, ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>,
        atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, ctime: Option<SystemTime>, fh: Option<FileHandle>,
        crtime: Option<SystemTime>, chgtime: Option<SystemTime>, bkuptime: Option<SystemTime>,
        flags: Option<BsdFileFlags>, reply: ReplyAttr
    );
    fn mkdir(req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry);
    fn mknod(req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry);
    fn unlink(req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
    fn rmdir(req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
    fn symlink(req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry);
    fn readlink(req: &Request, ino: INodeNo, reply: ReplyData);
    fn link(req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry);
    fn rename(
        req: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr, flags: RenameFlags,
        reply: ReplyEmpty
    );
    fn open(req: &Request, ino: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen);
    fn create(
        req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate
    );
    fn read(
        req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, size: u32, flags: fuser::OpenFlags,
        lock_owner: Option<LockOwner>, reply: ReplyData
    );
    fn write(
        req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, data: &[u8], write_flags: WriteFlags,
        flags: fuser::OpenFlags, lock_owner: Option<LockOwner>, reply: ReplyWrite
    );
    fn flush(req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty);
    fn fsync(req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
    fn release(
        req: &Request, ino: INodeNo, fh: FileHandle, flags: fuser::OpenFlags, lock_owner: Option<LockOwner>,
        flush: bool, reply: ReplyEmpty
    );
    fn opendir(req: &Request, ino: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen);
    fn readdir(req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory);
    fn readdirplus(req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus);
    fn releasedir(req: &Request, ino: INodeNo, fh: FileHandle, flags: fuser::OpenFlags, reply: ReplyEmpty);
    fn fsyncdir(req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
    fn setxattr(
        req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32, reply: ReplyEmpty
    );
    fn getxattr(req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
    fn listxattr(req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr);
    fn removexattr(req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty);
    fn access(req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty);
    fn fallocate(
        req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty
    );
    fn lseek(req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek);
    fn ioctl(
        req: &Request, ino: INodeNo, fh: FileHandle, flags: IoctlFlags, cmd: u32, in_data: &[u8], out_size: u32,
        reply: ReplyIoctl
    );
    fn copy_file_range(
        req: &Request, ino_in: INodeNo, fh_in: FileHandle, offset_in: u64, ino_out: INodeNo, fh_out: FileHandle,
        offset_out: u64, len: u64, flags: CopyFileRangeFlags, reply: ReplyWrite
    );
    fn statfs(req: &Request, ino: INodeNo, reply: ReplyStatfs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::base::SystemClock;
    use crate::fs::{Fs, Options, Root, Volume};
    use crate::s3::MemStore;
    use crate::stats::Stats;

    #[tokio::test]
    async fn a_request_that_panics_on_the_kernel_s_thread_ends_alone() {
        let stats = Arc::new(Stats::default());
        let store = MemStore::new(Arc::new(SystemClock), Arc::clone(&stats)).with_bucket("bucket");
        let root = Root::Volume(Volume::new("bucket", "", Arc::new(store)));
        let fs = Fs::new(root, Options::default(), Arc::new(SystemClock), Arc::clone(&stats)).unwrap();
        let guarded = Guarded(Adapter {
            fs,
            runtime: tokio::runtime::Handle::current(),
            started: None,
            passthrough: Arc::default(),
            running: Arc::default(),
            trace: None,
        });
        // A reply is dropped with the request that it belongs to, and answers so.
        let reply = Arc::new(());
        let held = Arc::clone(&reply);
        guarded.guard("test", move |_| {
            let _held = held;
            assert!(std::hint::black_box(false), "a defect");
        });
        assert_eq!((stats.panics.value(), Arc::strong_count(&reply)), (1, 1));
        guarded.guard("test", |adapter| drop(adapter.fs.getattr_now(crate::tree::ROOT)));
        assert_eq!(stats.panics.value(), 1);
    }

    /// What is not passed on would be answered as if it were not offered.
    #[test]
    fn every_request_is_passed_on() {
        let (here, there) = (include_str!("guarded.rs"), include_str!("ops.rs"));
        let offered = there.split_once("impl Filesystem for Adapter {").unwrap().1;
        let offered = offered.split_once("\n}\n").unwrap().0;
        let names: Vec<&str> = offered
            .lines()
            .filter_map(|line| line.strip_prefix("    fn ")?.split_once('('))
            .map(|(name, _)| name)
            .collect();
        assert!(names.len() > 30, "{names:?}");
        for name in names {
            assert!(here.contains(&format!("    fn {name}(")), "{name}");
        }
    }
}
