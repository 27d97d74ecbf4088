//! A directory as a place for a mount: is one there, whose is it, does it live?

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::exit::{Code, Failure};
use super::machine;
use super::mountinfo::{self, Mount};
use super::needs;
use crate::control::{Client, socket_name};

/// Dead mounts that are cleared away from one directory, one on top of another.
const DEAD_MOUNTS_MAX: usize = 16;
/// How long a mount may take to say whether it lives, where its socket does not.
const LIFE_WAIT: Duration = Duration::from_secs(5);
/// Symbolic links that one path may go through, as in the kernel.
const LINKS_MAX: usize = 40;

/// Makes sure that a directory can be mounted on, and returns its path without symbolic links. A dead mount of
/// ours is cleared away first. An open /dev/fuse that was handed over (`/dev/fd/N`) is taken as it is.
pub fn prepare(dir: &Path, allow_other: bool) -> Result<PathBuf, Failure> {
    if let Some(fd) = crate::fuse::inherited(dir) {
        crate::fuse::check_inherited(fd)
            .map_err(|error| Failure::new(Code::Fuse, format!("{}: {error}", dir.display())))?;
        return Ok(dir.to_owned());
    }
    let path = find_place(dir)?;
    needs::check(&path, allow_other)?;
    Ok(path)
}

/// The name of a mount's control socket is made of this. Numbers of descriptors are the same in many processes.
pub fn socket_of(mountpoint: &Path) -> PathBuf {
    match crate::fuse::inherited(mountpoint) {
        Some(_) => mountpoint.join(std::process::id().to_string()),
        None => mountpoint.to_owned(),
    }
}

fn find_place(dir: &Path) -> Result<PathBuf, Failure> {
    let path = resolve(dir, &mount_table()?)
        .map_err(|error| Failure::new(Code::Mountpoint, format!("{}: {error}", dir.display())))?;
    let fail = |what: &str| Failure::new(Code::Mountpoint, format!("{}: {what}", path.display()));
    for _ in 0..DEAD_MOUNTS_MAX {
        let Some(mount) = mountinfo::mounted_at(&mount_table()?, &path).filter(Mount::is_ours) else {
            return match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => Ok(path),
                Ok(_) => Err(fail("not a directory")),
                Err(error) => Err(fail(&error.to_string())),
            };
        };
        let source = mount.source.to_string_lossy().into_owned();
        match life_of(&path) {
            Life::Gone => clear_dead(&path)?,
            Life::Answers => {
                return Err(fail(&format!("{source} is mounted here already; see `pailfs status`")));
            }
            Life::Silent => {
                return Err(Failure::new(
                    Code::NoAnswer,
                    format!("{}: {source} is mounted here and its process does not answer", path.display()),
                ));
            }
        }
    }
    Err(fail("too many dead mounts lie on top of each other here"))
}

/// A mount of ours, found by its directory in the kernel's table. Nothing is asked of the mount itself, which may
/// be dead or stuck.
#[derive(Debug)]
pub struct Place {
    pub path: PathBuf,
    pub owner: u32,
}

impl Place {
    pub fn find(dir: &Path) -> Result<Self, Failure> {
        let table = mount_table()?;
        let path = resolve(dir, &table).map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Code::NotMounted,
                _ => Code::Local,
            };
            Failure::new(code, format!("{}: {error}", dir.display()))
        })?;
        let Some(mount) = mountinfo::mounted_at(&table, &path) else {
            return Err(Failure::new(Code::NotMounted, format!("nothing is mounted on {}", path.display())));
        };
        if !mount.is_ours() {
            return Err(Failure::new(
                Code::NotMounted,
                format!("{} is no pailfs mount but of type {}", path.display(), mount.fs_type),
            ));
        }
        let owner = mount.owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        Ok(Self { path, owner })
    }

    /// Connects to the mount's process; `None` where the process is gone: "Transport endpoint is not connected".
    pub async fn connect(&self) -> Result<Option<Client>, Failure> {
        let me = rustix::process::geteuid().as_raw();
        if me != self.owner && me != 0 {
            return Err(Failure::new(
                Code::AccessDenied,
                format!("{} was mounted by user {}", self.path.display(), self.owner),
            ));
        }
        let mut refusals = Vec::new();
        for dir in machine::runtime_dirs(self.owner) {
            let socket = dir.join(socket_name(&self.path));
            match Client::connect(&socket, self.owner).await {
                Ok(client) => return Ok(Some(client)),
                Err(error) => refusals.push(format!("{}: {error}", socket.display())),
            }
        }
        match life_of(&self.path) {
            Life::Gone => Ok(None),
            Life::Answers | Life::Silent => Err(Failure::new(
                Code::NoAnswer,
                format!(
                    "the process that mounted {} does not answer ({})",
                    self.path.display(),
                    refusals.join("; ")
                ),
            )),
        }
    }
}

/// Whether anything of ours is mounted there.
pub fn is_mounted(path: &Path) -> Result<bool, Failure> {
    Ok(mountinfo::mounted_at(&mount_table()?, path).is_some_and(|mount| mount.is_ours()))
}

/// Takes a mount away whose process is gone, and the socket that it left. Nothing can be lost by it.
pub fn clear_dead(path: &Path) -> Result<(), Failure> {
    crate::fuse::unmount(path, true).map_err(|error| Failure::coded(Code::Mountpoint, &error))?;
    for dir in machine::runtime_dirs(rustix::process::geteuid().as_raw()) {
        let socket = dir.join(socket_name(path));
        if nobody_listens(&socket) {
            // Who mounts here next replaces it anyway.
            let _ = std::fs::remove_file(&socket);
        }
    }
    Ok(())
}

/// Whether this is a socket whose process is gone. Waits for nobody.
fn nobody_listens(socket: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (Ok(address), Ok(end)) =
        (SocketAddrUnix::new(socket), socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None))
    else {
        return false;
    };
    rustix::net::connect(&end, &address) == Err(Errno::CONNREFUSED)
}

fn mount_table() -> Result<Vec<u8>, Failure> {
    std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Failure::new(Code::Local, format!("/proc/self/mountinfo: {error}")))
}

/// The absolute path of a directory without symbolic links, found without a question to any mount of ours: the root
/// of a mount is a directory, and there are no links below ours.
fn resolve(dir: &Path, table: &[u8]) -> io::Result<PathBuf> {
    let mounts: Vec<Mount> = mountinfo::parse(table).collect();
    let needs_no_question = |path: &Path| {
        mounts
            .iter()
            .any(|mount| path == mount.mountpoint || mount.is_ours() && path.starts_with(&mount.mountpoint))
    };
    let absolute = std::path::absolute(dir)?;
    let mut ahead: VecDeque<OsString> = VecDeque::new();
    push_steps(&mut ahead, &absolute);
    let mut path = PathBuf::from("/");
    let mut links = 0;
    while let Some(step) = ahead.pop_front() {
        if step == OsStr::new("..") {
            path.pop();
            continue;
        }
        let next = path.join(&step);
        if needs_no_question(&next) {
            path = next;
            continue;
        }
        match std::fs::read_link(&next) {
            Ok(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                if target.is_absolute() {
                    path = PathBuf::from("/");
                }
                push_steps(&mut ahead, &target);
            }
            // It is there, and no link.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => path = next,
            Err(error) => return Err(error),
        }
    }
    Ok(path)
}

/// Puts the steps of a path before those that are still ahead.
fn push_steps(ahead: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => ahead.push_front(name.to_owned()),
            Component::ParentDir => ahead.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// What the kernel says of a mount's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Answers,
    /// Nobody reads the mount's requests any more.
    Gone,
    /// Somebody may, and does not answer.
    Silent,
}

/// Whether somebody answers for a mount. The kernel may still know the attributes of its root, so `stat` does
/// not tell; `statfs` is always asked for, in a thread that is left behind where no answer comes.
fn life_of(path: &Path) -> Life {
    let (tell, told) = sync_channel(1);
    let target = path.to_owned();
    let ask = move || {
        // Nobody listens any more where the answer is late.
        let _ = tell.send(rustix::fs::statfs(&target).err());
    };
    if std::thread::Builder::new().name("statfs".to_owned()).spawn(ask).is_err() {
        return Life::Silent;
    }
    match told.recv_timeout(LIFE_WAIT) {
        Ok(Some(Errno::NOTCONN)) => Life::Gone,
        Ok(_) => Life::Answers,
        Err(_) => Life::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_for_a_mount_is_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(find_place(&dir.path().join("link")).unwrap(), real);
        for wrong in [file, dir.path().join("absent")] {
            assert_eq!(find_place(&wrong).unwrap_err().code, Code::Mountpoint);
        }
    }

    #[test]
    fn what_is_not_a_mount_of_ours_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Place::find(dir.path()).unwrap_err().code, Code::NotMounted);
        assert_eq!(Place::find(&dir.path().join("absent/deeper")).unwrap_err().code, Code::NotMounted);
        let failure = Place::find(Path::new("/proc")).unwrap_err();
        assert_eq!(failure.code, Code::NotMounted);
        assert!(failure.message.contains("proc"), "{}", failure.message);
    }

    #[test]
    fn a_path_is_resolved_as_the_kernel_does_it() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a/b/../b", real.join("relative")).unwrap();
        std::os::unix::fs::symlink(real.join("relative"), real.join("a/absolute")).unwrap();
        std::os::unix::fs::symlink("loop", real.join("loop")).unwrap();
        let resolved = |path: &str| resolve(&dir.path().join(path), &mount_table().unwrap());
        for path in ["a/b/", "relative", "a/absolute", "a/./absolute/../b", "a/absolute/.."] {
            assert_eq!(resolved(path).unwrap(), dir.path().join(path).canonicalize().unwrap(), "{path}");
        }
        assert_eq!(resolved("loop").unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert_eq!(resolved("a/none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_path_at_or_below_a_mount_of_ours_is_resolved_without_asking_it() {
        // Nothing of this is there: a question would be answered with an error.
        let table = b"90 22 0:52 / /no/such rw - fuse.pailfs s3://b/ rw,user_id=0\n\
                      91 22 0:53 / /no rw - ext4 /dev/vdb rw\n";
        for path in ["/no/such", "/no/such/", "/no/such/dir", "/no/such/dir/.."] {
            assert_eq!(resolve(Path::new(path), table).unwrap(), Path::new(path.trim_end_matches("/dir/..")));
        }
        assert!(resolve(Path::new("/no/other"), table).is_err());
    }
}
