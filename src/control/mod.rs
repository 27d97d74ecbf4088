//! The unix socket of a running mount: what its owner may ask it, and how; and its metrics over HTTP.
//!
//! Owns: the socket's place and permissions, the lines that travel over it, both ends of it.
//! Does not own: what flushing and unmounting mean (the mount hands over a [`Handle`]), nor how answers are shown.
//!
//! Guarantees: only the mount's owner and root are answered, checked by the kernel's word on who connected. Clients,
//! the length of a line and every wait are bounded, so that a stuck client costs the mount nothing.
//!
//! One connection carries one request: a line of JSON, `{"op":"status"}`, `{"op":"metrics"}`, `{"op":"flush"}`,
//! `{"op":"unmount"}` or `{"op":"log_level"}`.
//! The answer is any number of progress lines and one final line.

mod client;
mod metrics;
mod server;
mod status;

pub use client::Client;
pub use metrics::MetricsServer;
pub use server::{Handle, LogLevel, Server};
pub use status::{
    BucketStatus, Capability, Cost, CounterValue, DiskCacheStatus, Latency, MemoryStatus, OpenStatus,
    OperationStatus, PoolStatus, RequestCount, StagingStatus, Status, Throughput, TransferStatus,
};

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// A request is some words; more is no request.
const REQUEST_MAX_BYTES: u64 = 4 << 10;
/// An answer names a bounded number of files and counters.
const REPLY_MAX_BYTES: u64 = 1 << 20;
/// Unsaved files an answer names; the rest is counted only.
const NAMED_FILES_MAX: usize = 20;
/// How often a client that waits hears how far things are.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How long either end waits for the other to say something that is due.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    /// Metrics, in the text format of Prometheus.
    Metrics,
    /// Commit every changed file to S3.
    Flush,
    /// Commit every changed file, unmount, and end.
    Unmount,
    /// Tell how much is logged, after a change if one is wanted.
    LogLevel {
        #[serde(default)]
        level: Option<String>,
    },
}

/// One line of an answer. All but `Progress` are final.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Progress(Unsaved),
    Status(Box<Status>),
    Metrics { text: String },
    LogLevel { level: String },
    Done,
    Refused(Refusal),
}

/// What is not in S3 yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsaved {
    pub files: u64,
    pub bytes: u64,
    /// Of the bytes, what S3 has in parts of uploads that are not completed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub sent: u64,
    /// The first of them.
    pub first: Vec<UnsavedFile>,
    /// Directories that are being renamed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renames: Vec<RenameStatus>,
}

/// A directory that is being renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameStatus {
    /// `s3://BUCKET/PREFIX/`
    pub from: String,
    pub to: String,
    /// How many objects it has; `null` while they are listed.
    pub objects: Option<u64>,
    pub copied: u64,
    pub seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnsavedFile {
    /// Below the mount's root.
    pub path: String,
    pub bytes: u64,
    /// Of the bytes, what S3 has in parts of an upload that is not completed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub sent: u64,
    pub last_error: Option<String>,
}

/// Older clients and mounts know nothing of it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}

impl Unsaved {
    /// Counts all files and names the first of them.
    pub fn of(files: impl IntoIterator<Item = UnsavedFile>) -> Self {
        let mut unsaved = Self::default();
        for file in files {
            unsaved.files += 1;
            unsaved.bytes += file.bytes;
            if unsaved.first.len() < NAMED_FILES_MAX {
                unsaved.first.push(file);
            }
        }
        unsaved
    }
}

/// Why a request was not done, in the form that travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub cause: Cause,
    pub message: String,
    pub unsaved: Unsaved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Some files could not be saved; the mount goes on.
    Unsaved,
    /// Programs have files open or stand in the directory; the mount goes on.
    Busy,
    /// The request was not understood.
    BadRequest,
    /// There are as many clients as there may be.
    TooManyClients,
    Failed,
}

impl Refusal {
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), unsaved: Unsaved::default() }
    }
}

/// The name of a mount's socket. The mountpoint is absolute and without symbolic links.
pub fn socket_name(mountpoint: &Path) -> String {
    use std::fmt::Write;
    let digest = Md5::digest(mountpoint.as_os_str().as_bytes());
    digest.iter().fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// Where the socket of a mount goes: the first of the directories that is, or can be made, ours alone.
pub fn place_socket(dirs: &[PathBuf], mountpoint: &Path) -> Result<PathBuf> {
    let mut refusals = Vec::new();
    for dir in dirs {
        match make_private(dir) {
            Ok(()) => return Ok(dir.join(socket_name(mountpoint))),
            Err(error) => refusals.push(format!("{}: {error}", dir.display())),
        }
    }
    Err(Error::new(
        Kind::Local,
        format!("there is no place for the mount's control socket ({})", refusals.join("; ")),
    ))
}

fn make_private(dir: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    check_private(dir, rustix::process::geteuid().as_raw())
}

/// A directory in /tmp may have been made by anybody, before us.
fn check_private(dir: &Path, owner: u32) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(dir)?;
    if !metadata.is_dir() || metadata.uid() != owner || metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("not a directory of user {owner} alone")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn requests_and_replies_have_a_stable_form() {
        let line = |value: &Reply| serde_json::to_string(value).unwrap();
        assert_eq!(serde_json::from_str::<Request>(r#"{"op":"flush"}"#).unwrap(), Request::Flush);
        assert!(serde_json::from_str::<Request>(r#"{"op":"format"}"#).is_err());
        let level = serde_json::from_str::<Request>(r#"{"op":"log_level","level":"debug"}"#).unwrap();
        assert_eq!(level, Request::LogLevel { level: Some("debug".into()) });
        assert_eq!(line(&Reply::Done), r#"{"reply":"done"}"#);
        let file = UnsavedFile { path: "a\nb".into(), bytes: 3, sent: 0, last_error: None };
        assert_eq!(
            line(&Reply::Progress(Unsaved::of([file]))),
            r#"{"reply":"progress","files":1,"bytes":3,"first":[{"path":"a\nb","bytes":3,"last_error":null}]}"#
        );
    }

    proptest::proptest! {
        /// Either end may be sent anything.
        #[test]
        fn any_line_is_a_request_or_a_reply_or_told_to_be_none(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            text in "\\{\"(op|reply)\":\"(status|flush|unmount|progress|done|refused)\"(,\"[a-z]{1,6}\":[-0-9e{}\\[\\]\"]{0,9})?\\}?",
        ) {
            for line in [&bytes[..], text.as_bytes()] {
                let request = serde_json::from_slice::<Request>(line);
                if let Ok(request) = request {
                    assert_eq!(serde_json::from_str::<Request>(&serde_json::to_string(&request).unwrap()).unwrap(), request);
                }
                let _ = serde_json::from_slice::<Reply>(line);
            }
        }
    }

    #[test]
    fn many_unsaved_files_are_counted_and_some_are_named() {
        let file = |n: u64| UnsavedFile { path: n.to_string(), bytes: n, sent: 0, last_error: None };
        let unsaved = Unsaved::of((0..1000).map(file));
        assert_eq!((unsaved.files, unsaved.bytes, unsaved.first.len()), (1000, 499_500, NAMED_FILES_MAX));
    }

    #[test]
    fn a_socket_goes_into_a_private_directory_only() {
        let base = tempfile::tempdir().unwrap();
        let open = base.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        let link = base.path().join("link");
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        let absent = base.path().join("absent/deeper");
        let fresh = base.path().join("fresh");
        let mountpoint = Path::new("/mnt/a");
        let dirs = [open.clone(), link.clone(), absent.clone(), fresh.clone()];
        let socket = place_socket(&dirs, mountpoint).unwrap();
        assert_eq!(socket, fresh.join(socket_name(mountpoint)));
        assert_ne!(socket_name(mountpoint), socket_name(Path::new("/mnt/b")));
        assert!(place_socket(&[open, link, absent], mountpoint).is_err());
    }
}
