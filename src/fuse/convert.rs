//! Our types to the kernel's.

use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::base::Clock;
use crate::error::Error;
use crate::fs::Attr;

/// What programs should read and write at once, in bytes: one kernel request.
const BLOCK_SIZE: u32 = 1 << 20;

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        // Tools take zero blocks for a hole and skip it, so blocks follow from the size.
        blocks: attr.size.div_ceil(512),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(attr.is_dir),
        perm: attr.perm,
        // A directory's count of subdirectories is unknown, which 1 says to those who look.
        nlink: 1,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(super) fn kind(is_dir: bool) -> FileType {
    if is_dir { FileType::Directory } else { FileType::RegularFile }
}

pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

pub(super) fn time(time: TimeOrNow, clock: &dyn Clock) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => clock.wall(),
    }
}
