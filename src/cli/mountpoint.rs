//! A directory as a place for a mount: is one there, whose is it, does it live?

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::exit::{Code, Failure};
use super::machine;
use super::mountinfo::{self, Mount};
use crate::control::{Client, socket_name};

/// Dead mounts that are cleared away from one directory, one on top of another.
const DEAD_MOUNTS_MAX: usize = 16;

/// Makes sure that a directory can be mounted on, and returns its path without symbolic links. A dead mount of
/// ours is cleared away first.
pub fn prepare(dir: &Path) -> Result<PathBuf, Failure> {
    let path = canonical(dir)?;
    let fail = |what: &str| Failure::new(Code::Mountpoint, format!("{}: {what}", path.display()));
    for _ in 0..DEAD_MOUNTS_MAX {
        match mount_at(&path)?.filter(Mount::is_ours) {
            Some(_) if is_dead(&path) => clear_dead(&path)?,
            Some(mount) => {
                let source = mount.source.to_string_lossy().into_owned();
                return Err(fail(&format!("{source} is mounted here already; see `pailfs status`")));
            }
            None => {
                return match std::fs::metadata(&path) {
                    Ok(metadata) if metadata.is_dir() => Ok(path),
                    Ok(_) => Err(fail("not a directory")),
                    Err(error) => Err(fail(&error.to_string())),
                };
            }
        }
    }
    Err(fail("too many dead mounts lie on top of each other here"))
}

/// A mount of ours, found by its directory.
#[derive(Debug)]
pub struct Place {
    pub path: PathBuf,
    pub owner: u32,
    /// Its process is gone: "Transport endpoint is not connected".
    pub dead: bool,
}

impl Place {
    pub fn find(dir: &Path) -> Result<Self, Failure> {
        let path = canonical(dir)?;
        let Some(mount) = mount_at(&path)? else {
            return Err(Failure::new(Code::NotMounted, format!("nothing is mounted on {}", path.display())));
        };
        if !mount.is_ours() {
            return Err(Failure::new(
                Code::NotMounted,
                format!("{} is no pailfs mount but of type {}", path.display(), mount.fs_type),
            ));
        }
        let dead = is_dead(&path);
        let owner = mount.owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        Ok(Self { path, owner, dead })
    }

    /// Connects to the mount's process.
    pub async fn connect(&self) -> Result<Client, Failure> {
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
                Ok(client) => return Ok(client),
                Err(error) => refusals.push(format!("{}: {error}", socket.display())),
            }
        }
        Err(Failure::new(
            Code::NoAnswer,
            format!(
                "the process that mounted {} does not answer ({})",
                self.path.display(),
                refusals.join("; ")
            ),
        ))
    }
}

/// Whether anything of ours is mounted there.
pub fn is_mounted(path: &Path) -> Result<bool, Failure> {
    Ok(mount_at(path)?.is_some_and(|mount| mount.is_ours()))
}

/// Takes a mount away whose process is gone. Nothing can be lost by it.
pub fn clear_dead(path: &Path) -> Result<(), Failure> {
    crate::fuse::unmount(path, true).map_err(|error| Failure::coded(Code::Mountpoint, &error))
}

fn canonical(dir: &Path) -> Result<PathBuf, Failure> {
    let resolved = match dir.canonicalize() {
        // What is mounted there is dead, so ask about everything but the last step.
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => resolve_parent(dir),
        other => other,
    };
    resolved.map_err(|error| Failure::new(Code::Mountpoint, format!("{}: {error}", dir.display())))
}

fn resolve_parent(dir: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(dir)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(absolute),
    }
}

fn mount_at(path: &Path) -> Result<Option<Mount>, Failure> {
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Failure::new(Code::Local, format!("/proc/self/mountinfo: {error}")))?;
    Ok(mountinfo::mounted_at(&table, path))
}

/// Whether nobody answers for a mount any more. The kernel may still know the attributes of its root, so `stat` does
/// not tell; `statfs` is always asked for.
fn is_dead(path: &Path) -> bool {
    rustix::fs::statfs(path).err() == Some(Errno::NOTCONN)
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
        assert_eq!(prepare(&dir.path().join("link")).unwrap(), real);
        for wrong in [file, dir.path().join("absent")] {
            assert_eq!(prepare(&wrong).unwrap_err().code, Code::Mountpoint);
        }
    }

    #[test]
    fn what_is_not_a_mount_of_ours_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Place::find(dir.path()).unwrap_err().code, Code::NotMounted);
        let failure = Place::find(Path::new("/proc")).unwrap_err();
        assert_eq!(failure.code, Code::NotMounted);
        assert!(failure.message.contains("proc"), "{}", failure.message);
    }
}
