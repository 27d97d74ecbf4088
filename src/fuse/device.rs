//! An open /dev/fuse that somebody else has mounted and handed over: `/dev/fd/N` in the place of a directory, as libfuse
//! has it. Who cannot mount (a container without rights, a service that gave them up) serves a mount so.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// /dev/fuse: a miscellaneous device, and of those the one with this number.
const DEVICE: (u32, u32) = (10, 229);

/// The descriptor that a path in the place of a directory names.
pub fn inherited(mountpoint: &Path) -> Option<RawFd> {
    let digits = mountpoint.to_str()?.strip_prefix("/dev/fd/")?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Whether the descriptor is an open /dev/fuse.
pub fn check_inherited(fd: RawFd) -> io::Result<()> {
    let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), "no such descriptor was handed over"),
        _ => error,
    })?;
    let device = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    if !metadata.file_type().is_char_device() || device != DEVICE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not an open /dev/fuse"));
    }
    Ok(())
}

/// Makes the descriptor ours. A process has one mount, so this is done once.
pub(super) fn take(fd: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    check_inherited(fd)?;
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the descriptor is taken already"));
    }
    // SAFETY: it is open, as was just seen, and was so when the process began: nothing here opens /dev/fuse but this
    // module's caller, through fuser, and that in place of this. Nobody else in the process knows its number, and it is
    // taken once, so there is one owner.
    let device = unsafe { OwnedFd::from_raw_fd(fd) };
    // Not for programs that we start.
    rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::CLOEXEC)?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_a_number_below_dev_fd_names_a_descriptor() {
        for (path, fd) in [
            ("/dev/fd/7", Some(7)),
            ("/dev/fd/", None),
            ("/dev/fd/-1", None),
            ("/dev/fd/+1", None),
            ("/dev/fd/7/x", None),
            ("/dev/fd/99999999999", None),
            ("/mnt/dev/fd/7", None),
            ("/mnt", None),
        ] {
            assert_eq!(inherited(Path::new(path)), fd, "{path}");
        }
    }

    #[test]
    fn what_is_not_an_open_dev_fuse_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(check_inherited(file.as_raw_fd()).unwrap_err().to_string().contains("not an open /dev/fuse"));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(check_inherited(null.as_raw_fd()).unwrap_err().to_string().contains("not an open /dev/fuse"));
        assert!(check_inherited(999_999).unwrap_err().to_string().contains("no such descriptor"));
    }
}
