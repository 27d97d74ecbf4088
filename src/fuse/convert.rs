//! Our types to the kernel's.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::base::Clock;
use crate::error::Error;
use crate::fs::{self, Attr};

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
        kind: kind(attr.file_type),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(super) fn kind(file_type: fs::FileType) -> FileType {
    match file_type {
        fs::FileType::Regular => FileType::RegularFile,
        fs::FileType::Directory => FileType::Directory,
        fs::FileType::Symlink => FileType::Symlink,
        fs::FileType::Fifo => FileType::NamedPipe,
        fs::FileType::Socket => FileType::Socket,
        fs::FileType::CharDevice => FileType::CharDevice,
        fs::FileType::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

pub(super) fn time(time: TimeOrNow, clock: &dyn Clock) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => of_kernel(time),
        TimeOrNow::Now => clock.wall(),
    }
}

/// The name of an errno that is answered here.
pub(super) fn errno_name(errno: i32) -> Cow<'static, str> {
    use rustix::io::Errno as E;
    let names = [
        (E::NOENT, "ENOENT"),
        (E::ACCESS, "EACCES"),
        (E::IO, "EIO"),
        (E::STALE, "ESTALE"),
        (E::TIMEDOUT, "ETIMEDOUT"),
        (E::EXIST, "EEXIST"),
        (E::BUSY, "EBUSY"),
        (E::NXIO, "ENXIO"),
        (E::REMOTEIO, "EREMOTEIO"),
        (E::INVAL, "EINVAL"),
        (E::OPNOTSUPP, "EOPNOTSUPP"),
        (E::NAMETOOLONG, "ENAMETOOLONG"),
        (E::FBIG, "EFBIG"),
        (E::NOSPC, "ENOSPC"),
        (E::NODATA, "ENODATA"),
        (E::TOOBIG, "E2BIG"),
        (E::ISDIR, "EISDIR"),
        (E::NOTDIR, "ENOTDIR"),
        (E::NOTEMPTY, "ENOTEMPTY"),
        (E::XDEV, "EXDEV"),
        (E::ROFS, "EROFS"),
        (E::BADF, "EBADF"),
        (E::PERM, "EPERM"),
        (E::RANGE, "ERANGE"),
        (E::NOSYS, "ENOSYS"),
        (E::NOTTY, "ENOTTY"),
        (E::TXTBSY, "ETXTBSY"),
    ];
    let known = names.iter().find(|(known, _)| known.raw_os_error() == errno);
    known.map_or_else(|| Cow::Owned(format!("errno{errno}")), |(_, name)| Cow::Borrowed(*name))
}

/// A time as the kernel meant it: fuser 0.18 takes nanoseconds away from seconds before 1970, where they count forward.
fn of_kernel(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => time,
        Err(before) => time + 2 * Duration::from_nanos(before.duration().subsec_nanos().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn every_errno_of_ours_has_a_name() {
        assert_eq!(errno_name(Kind::AccessDenied.errno()), "EACCES");
        assert_eq!(errno_name(Kind::NoAttribute.errno()), "ENODATA");
        assert_eq!(errno_name(4711), "errno4711");
    }
}
