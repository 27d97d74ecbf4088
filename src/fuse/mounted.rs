//! A live mount: how it begins and how it ends.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, INodeNo, MountOption, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::device;
use super::guarded::Guarded;
use super::ops::Adapter;
use super::trace::Trace;
use crate::error::{Error, Kind, Result};
use crate::fs::{Fs, Invalidation, News};

/// FUSE threads wait for I/O, so there are more of them than cores; more than this gained nothing.
const THREADS: usize = 4;
/// How long the kernel may take to greet us.
const START_WAIT: Duration = Duration::from_secs(20);
/// Read-ahead of the mount in KiB, where we are allowed to set it: one kernel request.
const READ_AHEAD_KIB: &str = "1024";

/// How the kernel shows the mount.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What `mount` and `df` show as the source.
    pub source: String,
    pub allow_other: bool,
    pub read_only: bool,
    pub noexec: bool,
    /// Where every operation is written down, if anywhere.
    pub trace: Option<Arc<Trace>>,
}

/// A mount in the kernel, answered by threads of this process.
#[derive(Debug)]
pub struct Mounted {
    /// `None` where somebody else has mounted it, and unmounts it.
    mountpoint: Option<PathBuf>,
    end: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

/// Mounts `fs` at `mountpoint` and returns when the kernel speaks to it. What is mounted already is `/dev/fd/N`.
pub async fn mount(fs: Arc<Fs>, runtime: Handle, mountpoint: &Path, options: &Options) -> Result<Mounted> {
    let (started_tx, started) = oneshot::channel();
    let (ended_tx, ended) = watch::channel(false);
    let news = fs.news();
    let adapter = Guarded(Adapter {
        fs,
        runtime,
        started: Some(started_tx),
        passthrough: Arc::default(),
        running: Arc::default(),
        trace: options.trace.clone(),
    });
    let config = config(options);
    let target = mountpoint.to_owned();
    let inherited = device::inherited(mountpoint);
    let end = ended_tx.clone();
    let (failed_tx, failed) = oneshot::channel();
    std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        let session = match inherited {
            None => fuser::Session::new(adapter, &target, &config),
            // The kernel has been told by others who may come in.
            Some(fd) => device::take(fd)
                .and_then(|device| fuser::Session::from_fd(adapter, device, SessionACL::All, config)),
        };
        let session = match session.and_then(fuser::Session::spawn) {
            Ok(session) => session,
            Err(error) => {
                let _ = failed_tx.send(error);
                return;
            }
        };
        pass_on(news, session.notifier());
        while !session.guard.is_finished() {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        // Dropping the session would unmount once more, and by then something else may be mounted there.
        std::mem::forget(session);
        let _ = ended_tx.send(true);
    })?;
    let greeted = tokio::time::timeout(START_WAIT, async {
        tokio::select! {
            Ok(()) = started => Ok(()),
            Ok(error) = failed => Err(cannot_mount(mountpoint, error)),
            else => Err(Error::new(Kind::Internal, "the FUSE thread ended without a word")),
        }
    });
    greeted
        .await
        .unwrap_or_else(|_| Err(Error::new(Kind::TimedOut, "the kernel did not greet the new mount")))?;
    let mountpoint = inherited.is_none().then(|| mountpoint.to_owned());
    if let Some(mountpoint) = &mountpoint {
        raise_read_ahead(mountpoint);
    }
    Ok(Mounted { mountpoint, end, ended })
}

/// Passes news on to the kernel, from a thread that holds none of our locks, until the file system is gone.
fn pass_on(news: Option<mpsc::Receiver<News>>, kernel: fuser::Notifier) {
    let Some(mut news) = news else { return };
    let passing = move || {
        while let Some(News { what, heard }) = news.blocking_recv() {
            let told = match what {
                Invalidation::Entry { parent, name } => {
                    kernel.inval_entry(INodeNo(parent.0), OsStr::new(name.as_str()))
                }
                // A negative offset leaves the pages, whose readers may wait for us.
                Invalidation::Attributes { ino } => kernel.inval_inode(INodeNo(ino.0), -1, 0),
                Invalidation::Data { ino } => kernel.inval_inode(INodeNo(ino.0), 0, 0),
            };
            if let Err(error) = told {
                // What the kernel does not know it need not forget.
                tracing::debug!(%error, "the kernel was not told of a change");
            }
            drop(heard);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("fuse-news".to_owned()).spawn(passing) {
        tracing::warn!(%error, "no thread for news to the kernel; changes by others show after the TTL");
    }
}

impl Mounted {
    /// Waits until the mount is gone, whoever unmounted it.
    pub async fn wait(&self) {
        let mut ended = self.ended.clone();
        // An error means that the thread is gone, which is an end as well.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Unmounts; `Busy` in the message where programs still use it. `lazy` detaches it all the same. What somebody else
    /// has mounted is not answered for any more when the process ends, which is left to them to clear away.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        if *self.ended.borrow() {
            return Ok(());
        }
        match &self.mountpoint {
            Some(mountpoint) => unmount(mountpoint, lazy),
            None => {
                self.end.send_replace(true);
                Ok(())
            }
        }
    }
}

/// Unmounts whatever FUSE mount is at `mountpoint`, ours or a dead one.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    use rustix::mount::UnmountFlags;
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => unmount_with_helper(mountpoint, lazy),
        Err(errno) => Err(cannot_unmount(mountpoint, errno.into())),
    }
}

/// Who is not root asks fusermount3, which is.
fn unmount_with_helper(mountpoint: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.output().map_err(|e| cannot_unmount(mountpoint, e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(cannot_unmount(mountpoint, std::io::Error::other(said)))
}

/// What fusermount3 says has lines, and an error is one.
fn on_one_line(error: std::io::Error) -> std::io::Error {
    let text = error.to_string();
    if !text.contains('\n') {
        return error;
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    std::io::Error::new(error.kind(), lines.join("; "))
}

fn cannot_unmount(mountpoint: &Path, error: std::io::Error) -> Error {
    let error = on_one_line(error);
    let kind = match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::BUSY.raw_os_error() => Kind::Conflict,
        _ => Kind::Local,
    };
    Error::new(kind, format!("cannot unmount {}: {error}", mountpoint.display())).with_source(error)
}

fn cannot_mount(mountpoint: &Path, error: std::io::Error) -> Error {
    let error = on_one_line(error);
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => "; is fuse3 installed, and does /dev/fuse exist?",
        std::io::ErrorKind::PermissionDenied => {
            "; mounting needs root or fusermount3, and --allow-other needs user_allow_other in /etc/fuse.conf"
        }
        _ => "",
    };
    Error::new(Kind::Local, format!("cannot mount at {}: {error}{hint}", mountpoint.display()))
        .with_source(error)
}

fn config(options: &Options) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(without_option_syntax(&options.source)),
        // As an option of the kernel: fuser's own `Subtype` is dropped where no fusermount3 is involved, and the
        // mount's type `fuse.pailfs` is how a mount of ours is known.
        MountOption::CUSTOM("subtype=pailfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoAtime,
        if options.read_only { MountOption::RO } else { MountOption::RW },
        if options.noexec { MountOption::NoExec } else { MountOption::Exec },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    config
}

/// The source's name goes through a comma-separated list of mount options, so a bucket or prefix must not
/// add one: commas, backslashes and whatever is not printable become `?`.
fn without_option_syntax(source: &str) -> String {
    source
        .chars()
        .map(|c| if c == ',' || c == '\\' || c.is_control() || c.is_whitespace() { '?' } else { c })
        .collect()
}

/// The kernel reads ahead 128 KiB by default, an eighth of what one request carries.
fn raise_read_ahead(mountpoint: &Path) {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    // The number of its device is all that is asked for, which the kernel has in memory. A process that waits for an answer
    // of its own and is killed meanwhile never ends: it holds /dev/fuse open, and nobody answers.
    let Ok(root) = statx(CWD, mountpoint, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()) else { return };
    let setting = format!("/sys/class/bdi/{}:{}/read_ahead_kb", root.stx_dev_major, root.stx_dev_minor);
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB) {
        tracing::debug!(setting, %error, "the kernel's read-ahead stays at its default");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fusermount3_says_is_one_line_of_an_error() {
        let said = "fusermount3: option allow_other only allowed if 'user_allow_other' is set\n\n  see /etc/fuse.conf\n";
        let said = || std::io::Error::new(std::io::ErrorKind::PermissionDenied, said);
        for error in [cannot_mount(Path::new("/mnt"), said()), cannot_unmount(Path::new("/mnt"), said())] {
            let report = error.report();
            assert!(!report.contains('\n') && report.contains("is set; see /etc/fuse.conf"), "{report}");
        }
    }

    #[test]
    fn a_bucket_name_never_becomes_a_mount_option() {
        assert_eq!(without_option_syntax("s3://b/a,allow_other\n"), "s3://b/a?allow_other?");
        assert_eq!(without_option_syntax("a\\,b"), "a??b");
    }
}
