//! A real mount: the binary under test, this kernel, a real server process.
//!
//! It is unmounted and its process ended when it goes out of scope; its log is shown if the test fails.
//! `REQUIRE_FUSE=1` makes a machine without FUSE a failure.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Endpoint, Place, Server};

const READY_DEADLINE: Duration = Duration::from_secs(60);
/// `pailfs umount` says so of a mount that is in use, too.
const IN_USE_CODE: i32 = 9;
const END_DEADLINE: Duration = Duration::from_secs(60);

pub struct Mounted {
    pub place: Place,
    dir: tempfile::TempDir,
    child: Child,
    log: PathBuf,
}

impl Mounted {
    /// Mounts a fresh bucket of `server`; `None` where this machine cannot, which is said once and counted.
    pub fn fresh(server: Server, test: &str) -> Option<Self> {
        Self::with(server, test, &[])
    }

    /// The same with more flags.
    pub fn with(server: Server, test: &str, flags: &[&str]) -> Option<Self> {
        let place = fresh_place(server, test)?;
        let source = format!("s3://{}", place.bucket);
        Some(Self::mount(place, &source, flags))
    }

    /// Mounts `source` of the place's server.
    pub fn mount(place: Place, source: &str, flags: &[&str]) -> Self {
        let endpoint = endpoint(place.server);
        Self::at_endpoint(&endpoint, place, source, flags)
    }

    /// The same through another address of it.
    pub fn at_endpoint(endpoint: &Endpoint, place: Place, source: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let log = dir.path().join("log");
        fs::create_dir(dir.path().join("mnt")).expect("a directory can be made");
        let mut command = pailfs(endpoint);
        command
            .args(["mount", source])
            .arg(dir.path().join("mnt"))
            .args(["--foreground", "--endpoint-url", &endpoint.url, "--region", &endpoint.region])
            .args(flags);
        if !flags.contains(&"--log-level") {
            command.args(["--log-level", "debug"]);
        }
        if !flags.contains(&"--state-dir") {
            command.arg("--state-dir").arg(dir.path().join("state"));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a file can be made"))
            .spawn()
            .expect("the binary starts");
        let mut mounted = Self { place, dir, child, log };
        let ready = wait_for(READY_DEADLINE, || {
            let ended = mounted.child.try_wait().expect("a child can be asked").is_some();
            ended || is_mounted(&mounted.path())
        });
        let ended = mounted.child.try_wait().expect("a child can be asked");
        assert!(ready && ended.is_none(), "no mount ({ended:?}); its log:\n{}", mounted.log_text());
        mounted
    }

    /// Another mount of the same bucket.
    pub fn again(&self, flags: &[&str]) -> Self {
        Self::mount(self.place.clone(), &format!("s3://{}", self.place.bucket), flags)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `pailfs umount`, and the daemon's end. On a busy machine something may be held for a moment longer than `pailfs umount`
    /// has patience: that is told, with who it is, and tried again.
    pub fn umount(&mut self) -> ExitStatus {
        let mut last = None;
        wait_for(END_DEADLINE, || {
            let status = Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("umount").arg(self.path()).status();
            let status = status.expect("the binary starts");
            last = Some(status);
            let is_busy = status.code() == Some(IN_USE_CODE);
            if is_busy {
                eprintln!("{} is in use: {}", self.path().display(), users_of(&self.path()));
            }
            !is_busy
        });
        self.wait_for_end();
        last.expect("it was tried once")
    }

    /// Ends the daemon without a word, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        let _ = self.child.wait();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_for_end(&mut self) {
        let ended = wait_for(END_DEADLINE, || self.child.try_wait().expect("a child can be asked").is_some());
        let users = if ended { String::new() } else { users_of(&self.path()) };
        assert!(ended, "the daemon is still there; using it: {users}; its log:\n{}", self.log_text());
    }
}

/// Who keeps a mount busy: processes with a file open there, that work there, or whose own mount table has it.
fn users_of(path: &Path) -> String {
    let name = |pid: &Path| fs::read_to_string(pid.join("comm")).unwrap_or_default().trim().to_owned();
    let mut users = String::new();
    for pid in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()) {
        let own = ["cwd", "root", "exe"].map(|link| pid.join(link));
        let opened = fs::read_dir(pid.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        let used: Vec<_> = own
            .into_iter()
            .chain(opened)
            .filter_map(|link| fs::read_link(link).ok())
            .filter(|target| target.starts_with(path))
            .collect();
        let is_other = fs::read_link(pid.join("ns/mnt"))
            .is_ok_and(|ns| fs::read_link("/proc/self/ns/mnt").is_ok_and(|own| own != ns));
        let mounts = fs::read_to_string(pid.join("mounts")).unwrap_or_default();
        let has_copy = is_other && mounts.contains(&*path.to_string_lossy());
        let maps = fs::read_to_string(pid.join("maps")).unwrap_or_default();
        if !used.is_empty() || has_copy || maps.contains(&*path.to_string_lossy()) {
            users += &format!("{} {} {used:?}, a copy of the mount: {has_copy}; ", pid.display(), name(&pid));
        }
    }
    users
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mounted(&self.path()) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(self.path(), flags);
        }
        let ended = wait_for(END_DEADLINE, || !matches!(self.child.try_wait(), Ok(None)));
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- log of the mount\n{}", self.log_text());
        }
        assert!(ended || std::thread::panicking(), "the daemon outlived its mount");
    }
}

/// A fresh bucket on a server, if this machine can mount and has the server.
pub fn fresh_place(server: Server, test: &str) -> Option<Place> {
    if !can_mount(test) {
        return None;
    }
    let store = server.store_or_say(test)?;
    Some(super::block_on(Place::make(server, store)).expect("a bucket can be made"))
}

pub fn endpoint(server: Server) -> Endpoint {
    server.endpoint().expect("the server runs").expect("the server is a process").clone()
}

/// The binary under test with a server's keys in its environment, and nothing else of ours.
pub fn pailfs(endpoint: &Endpoint) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pailfs"));
    command
        .env("AWS_ACCESS_KEY_ID", &endpoint.access)
        .env("AWS_SECRET_ACCESS_KEY", &endpoint.secret)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env_remove("AWS_PROFILE");
    command
}

/// Whether something is mounted there, dead or alive; asks the mount table, not the mount.
pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.to_string_lossy();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&*path))
}

/// Looks until `condition` holds; `false` at the deadline.
pub fn wait_for(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    #[allow(clippy::disallowed_methods)] // a test's deadline is real time
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        #[allow(clippy::disallowed_methods)]
        if Instant::now() >= end {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn can_mount(test: &str) -> bool {
    static NOT_RUN: AtomicUsize = AtomicUsize::new(0);
    if fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok() {
        return true;
    }
    let required = super::setting("REQUIRE_FUSE").is_some_and(|value| value != "0");
    assert!(!required, "REQUIRE_FUSE is set and /dev/fuse cannot be opened");
    let count = NOT_RUN.fetch_add(1, Ordering::Relaxed) + 1;
    let _ = std::io::stderr().write_all(format!("NOT RUN ({count}): {test}: no /dev/fuse\n").as_bytes());
    false
}
