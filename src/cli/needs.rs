//! What this machine and this user lack to mount something with FUSE, found out before S3 is asked for anything.
//!
//! What is looked at is gathered first, and judged by a table without I/O. What passes can still fail: then the kernel or
//! fusermount3 says why.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;

use super::exit::{Code, Failure};
use super::machine;

const FUSE_CONF: &str = "/etc/fuse.conf";
/// CAP_SYS_ADMIN in the kernel's sets.
const SYS_ADMIN: u64 = 1 << 21;
const SET_USER_ID: u32 = 0o4000;
const STICKY: u32 = 0o1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Opens,
    Absent,
    Denied,
    /// It is there, and nobody is behind it.
    Dead,
}

/// The program that mounts for those who may not.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Helper {
    Works,
    Absent,
    /// It lies there and runs as whoever starts it.
    WithoutRights(PathBuf),
}

#[derive(Clone, Debug)]
struct Facts {
    root: bool,
    /// Whether mount(2) is allowed.
    may_mount: bool,
    no_new_privileges: bool,
    device: Device,
    helper: Helper,
    user_allow_other: bool,
    allow_other: bool,
    dir: PathBuf,
    may_write_dir: bool,
    /// A sticky directory of somebody else, such as /tmp.
    dir_is_sticky: bool,
}

/// Whether something can be mounted on `dir`, a directory. Tells of what it would hide.
pub fn check(dir: &Path, allow_other: bool) -> Result<(), Failure> {
    if let Some(failure) = lack(&Facts::gather(dir, allow_other)) {
        return Err(failure);
    }
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        eprintln!("pailfs: warning: {} is not empty; what is in it is hidden by the mount", dir.display());
    }
    Ok(())
}

impl Facts {
    fn gather(dir: &Path, allow_other: bool) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let metadata = std::fs::metadata(dir).ok();
        let me = rustix::process::geteuid();
        let conf = std::fs::read_to_string(FUSE_CONF).unwrap_or_default();
        Self {
            root: me.is_root(),
            may_mount: capabilities(&status) & SYS_ADMIN != 0,
            no_new_privileges: field(&status, "NoNewPrivs") == Some("1"),
            device: device(),
            helper: helper(),
            user_allow_other: allows_others(&conf),
            allow_other,
            may_write_dir: rustix::fs::access(dir, Access::WRITE_OK).is_ok(),
            dir_is_sticky: metadata.is_some_and(|dir| dir.mode() & STICKY != 0 && dir.uid() != me.as_raw()),
            dir: dir.to_owned(),
        }
    }
}

/// The first thing that is missing, and what to do about it.
fn lack(facts: &Facts) -> Option<Failure> {
    let fuse = |message: String| Some(Failure::new(Code::Fuse, message));
    let place = |what: &str| Some(Failure::new(Code::Mountpoint, format!("{}: {what}", facts.dir.display())));
    match facts.device {
        Device::Opens => {}
        Device::Absent => {
            return fuse(
                "there is no /dev/fuse: `modprobe fuse`, or give the container the device (--device /dev/fuse)".to_owned(),
            );
        }
        Device::Dead => {
            return fuse("/dev/fuse is there, but the kernel has no FUSE: `modprobe fuse`".to_owned());
        }
        Device::Denied => {
            return fuse(
                "/dev/fuse may not be opened by this user; it is everybody's on most systems: `chmod 666 /dev/fuse`, or, in \
                 a container, allow the device"
                    .to_owned(),
            );
        }
    }
    if facts.may_mount {
        return None;
    }
    if facts.root {
        return fuse(
            "root may not mount here, because CAP_SYS_ADMIN was taken away: give it to the container (--cap-add SYS_ADMIN), \
             or hand over an open /dev/fuse as /dev/fd/N"
                .to_owned(),
        );
    }
    match &facts.helper {
        Helper::Works => {}
        Helper::Absent => {
            return fuse(
                "who is not root mounts with fusermount3, which is not there: `apt install fuse3`".to_owned(),
            );
        }
        Helper::WithoutRights(path) => {
            return fuse(format!(
                "{} is not set-user-ID root, so it cannot mount: install fuse3 again, or `chmod u+s` it",
                path.display()
            ));
        }
    }
    if facts.no_new_privileges {
        return fuse(
            "fusermount3 cannot become root where new privileges are forbidden (NoNewPrivileges= of systemd, \
             allowPrivilegeEscalation: false of Kubernetes)"
                .to_owned(),
        );
    }
    if facts.allow_other && !facts.user_allow_other {
        return fuse(format!(
            "--allow-other of a user who is not root needs the line user_allow_other in {FUSE_CONF}"
        ));
    }
    if !facts.may_write_dir {
        return place("who is not root mounts only on directories that they can write to");
    }
    if facts.dir_is_sticky {
        return place(
            "it is sticky and somebody else's, and fusermount3 mounts on such a directory for its owner alone",
        );
    }
    None
}

fn device() -> Device {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Device::Opens,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Device::Absent,
        Err(error) if is_dead(&error) => Device::Dead,
        Err(_) => Device::Denied,
    }
}

fn is_dead(error: &io::Error) -> bool {
    [Errno::NODEV, Errno::NXIO].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The helper that fuser would find.
fn helper() -> Helper {
    match machine::find_program(OsStr::new("fusermount3")) {
        None => Helper::Absent,
        Some((path, metadata)) if metadata.mode() & SET_USER_ID == 0 || metadata.uid() != 0 => {
            Helper::WithoutRights(path)
        }
        Some(_) => Helper::Works,
    }
}

/// The value of a line of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn capabilities(status: &str) -> u64 {
    field(status, "CapEff").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0)
}

/// As fusermount3 reads its file: the word on a line of its own.
fn allows_others(conf: &str) -> bool {
    conf.lines().any(|line| line.split('#').next().unwrap_or("").trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A user of a machine that has everything.
    fn user() -> Facts {
        Facts {
            root: false,
            may_mount: false,
            no_new_privileges: false,
            device: Device::Opens,
            helper: Helper::Works,
            user_allow_other: false,
            allow_other: false,
            dir: "/mnt".into(),
            may_write_dir: true,
            dir_is_sticky: false,
        }
    }

    #[test]
    fn each_missing_piece_has_its_words() {
        let plain = Helper::WithoutRights("/usr/bin/fusermount3".into());
        for (facts, code, word) in [
            (Facts { device: Device::Absent, ..user() }, Code::Fuse, "modprobe fuse"),
            (Facts { device: Device::Dead, ..user() }, Code::Fuse, "kernel has no FUSE"),
            (Facts { device: Device::Denied, ..user() }, Code::Fuse, "chmod 666 /dev/fuse"),
            (Facts { root: true, ..user() }, Code::Fuse, "CAP_SYS_ADMIN"),
            (Facts { helper: Helper::Absent, ..user() }, Code::Fuse, "apt install fuse3"),
            (Facts { helper: plain, ..user() }, Code::Fuse, "/usr/bin/fusermount3 is not set-user-ID"),
            (Facts { no_new_privileges: true, ..user() }, Code::Fuse, "allowPrivilegeEscalation"),
            (Facts { allow_other: true, ..user() }, Code::Fuse, "user_allow_other in /etc/fuse.conf"),
            (Facts { may_write_dir: false, ..user() }, Code::Mountpoint, "/mnt: who is not root"),
            (Facts { dir_is_sticky: true, ..user() }, Code::Mountpoint, "sticky"),
            // The first thing first.
            (Facts { device: Device::Absent, helper: Helper::Absent, ..user() }, Code::Fuse, "/dev/fuse"),
        ] {
            let failure = lack(&facts).unwrap_or_else(|| panic!("nothing lacks: {facts:?}"));
            assert_eq!(failure.code, code, "{}", failure.message);
            assert!(failure.message.contains(word) && !failure.message.contains('\n'), "{}", failure.message);
            // The page for people has the beginning of each.
            let page = include_str!("../../docs/TROUBLESHOOTING.md");
            let mut rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
            assert!(rows.any(|row| failure.message.contains(row)), "no row for {}", failure.message);
        }
    }

    #[test]
    fn who_has_everything_or_may_mount_lacks_nothing() {
        let root = Facts { root: true, may_mount: true, ..user() };
        for facts in [
            user(),
            Facts { allow_other: true, user_allow_other: true, ..user() },
            root.clone(),
            // Of no matter to who needs no helper.
            Facts { helper: Helper::Absent, no_new_privileges: true, allow_other: true, ..root.clone() },
            Facts { may_write_dir: false, dir_is_sticky: true, ..root },
        ] {
            assert!(lack(&facts).is_none(), "{facts:?}");
        }
    }

    #[test]
    fn the_kernel_s_and_fuse_s_files_are_read_as_they_do() {
        let status = "Name:\tx\nCapEff:\t000001ffffffffff\nNoNewPrivs:\t1\n";
        assert_ne!(capabilities(status) & SYS_ADMIN, 0);
        assert_eq!(capabilities("CapEff:\t00000000a80425fb\n") & SYS_ADMIN, 0);
        assert_eq!(capabilities(""), 0);
        assert_eq!(field(status, "NoNewPrivs"), Some("1"));
        assert!(allows_others("# x\n  user_allow_other # yes\n"));
        assert!(!allows_others("#user_allow_other\nmount_max = 5\n"));
    }
}
