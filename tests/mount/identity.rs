//! Identities that change under way: credentials that last for seconds, a clock that is wrong, a permission that is lost.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pailfs::demo::{FaultRule, Server as Demo};
use rustix::io::Errno;

use crate::harness::mount::{fresh_place, is_mounted, pailfs, wait_for};
use crate::harness::{Endpoint, Server, block_on};

const BUCKET: &str = "bucket";
const LONG: Duration = Duration::from_secs(60);

/// A mount of a bucket on a server of its own.
struct Own {
    server: Demo,
    endpoint: Endpoint,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Own {
    fn serve(rules: &str) -> Self {
        let rules = FaultRule::parse_lines(rules).unwrap();
        let server = block_on(Demo::builder().bucket(BUCKET).faults(rules).start()).unwrap();
        let keys = server.credentials();
        let endpoint = Endpoint {
            url: server.endpoint(),
            access: keys.access_key.clone(),
            secret: keys.secret_key.clone(),
            region: "us-east-1".to_owned(),
        };
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { server, endpoint, dir, child: None }
    }

    fn mount(mut self, flags: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = pailfs(&self.endpoint);
        command
            .args(["mount", &format!("s3://{BUCKET}")])
            .arg(self.path())
            .args(["--foreground", "--endpoint-url", &self.endpoint.url, "--region", "us-east-1"])
            .args(["--log-level", "debug", "--state-dir"])
            .arg(self.dir.path().join("state"))
            .args(flags)
            .stdin(Stdio::null())
            .stderr(fs::File::create(self.dir.path().join("log")).unwrap());
        change(&mut command);
        self.child = Some(command.spawn().unwrap());
        let path = self.path();
        let ready = wait_for(LONG, || is_mounted(&path) || self.is_over());
        assert!(ready, "{}", self.log());
        assert!(!self.is_over(), "{}", self.log());
        self
    }

    fn is_over(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn rules(&self, rules: &str) {
        self.server.set_faults(FaultRule::parse_lines(rules).unwrap());
    }

    fn requests(&self) -> u64 {
        self.server.counts().requests.values().sum()
    }

    fn flush(&self) -> bool {
        pailfs(&self.endpoint).arg("flush").arg(self.path()).status().unwrap().success()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if is_mounted(&self.path()) {
            let _ = pailfs(&self.endpoint).arg("umount").arg(self.path()).status();
        }
        if is_mounted(&self.path()) {
            let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the mount\n{}", self.log());
        }
    }
}

/// Credentials of a program, each set for so many seconds, under a load. The server refuses each as soon as it is over.
fn under_load_with_credentials_for(seconds: u64, name: &str) {
    if fresh_place(Server::Demo, name).is_none() {
        return;
    }
    let own = Own::serve("fault=dated-tokens");
    let (script, config) = (own.dir.path().join("credentials"), own.dir.path().join("config"));
    let lines = format!(
        "#!/bin/sh\necho >> {0}.calls\nat=$(($(date +%s) + {seconds}))\n\
         printf '{{\"Version\":1,\"AccessKeyId\":\"{1}\",\"SecretAccessKey\":\"{2}\",\"SessionToken\":\"until-%s\",\
         \"Expiration\":\"%s\"}}' $at $(date -u -d @$at +%Y-%m-%dT%H:%M:%SZ)\n",
        script.display(),
        own.endpoint.access,
        own.endpoint.secret,
    );
    fs::write(&script, lines).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&config, format!("[profile short]\ncredential_process = {}\n", script.display())).unwrap();
    let own = own.mount(&["--metadata-ttl", "100ms"], |command| {
        command
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env("AWS_CONFIG_FILE", &config)
            .env("AWS_PROFILE", "short");
    });
    #[allow(clippy::disallowed_methods)] // a load takes real time
    let begun = Instant::now();
    let mut round = 0u32;
    while begun.elapsed() < Duration::from_secs(14) {
        let bytes = vec![round.to_le_bytes()[0]; 100_000];
        let name = format!("f{}", round % 7);
        fs::write(own.at(&name), &bytes).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(fs::read(own.at(&name)).unwrap() == bytes);
        assert!(fs::read_dir(own.path()).unwrap().all(|entry| entry.is_ok()));
        if round.is_multiple_of(5) {
            fs::rename(own.at(&name), own.at("moved")).unwrap();
            fs::remove_file(own.at("moved")).unwrap();
        }
        round += 1;
    }
    let calls = fs::read_to_string(script.with_extension("calls")).unwrap().lines().count();
    assert!(calls >= 2, "nothing expired");
    // A set for each second that it lasts, with some to spare for one that was renewed ahead.
    assert!(
        calls as u64 <= 3 + 2 * 14 / seconds,
        "the program was called {calls} times in {:?}",
        begun.elapsed()
    );
    assert!(own.flush());
}

#[test]
fn credentials_that_last_for_seconds_are_replaced_under_load() {
    under_load_with_credentials_for(7, "credentials_that_last_for_seconds");
}

#[test]
fn credentials_that_hardly_last_are_replaced_too() {
    under_load_with_credentials_for(3, "credentials_that_hardly_last");
}

/// The SDK signs with the server's time once an answer has told it.
#[test]
fn a_clock_that_is_wrong_stands_in_nobody_s_way() {
    if fresh_place(Server::Demo, "a_clock_that_is_wrong").is_none() {
        return;
    }
    let own = Own::serve("fault=skewed:10m").mount(&[], |_| {});
    fs::write(own.at("f"), b"bytes").unwrap();
    fs::create_dir(own.at("d")).unwrap();
    fs::rename(own.at("f"), own.at("d/f")).unwrap();
    assert_eq!(fs::read(own.at("d/f")).unwrap(), b"bytes");
    // The server's clock is set right: the mount follows.
    own.rules("");
    fs::write(own.at("g"), b"again").unwrap();
    assert_eq!(fs::read(own.at("g")).unwrap(), b"again");
    own.rules("fault=skewed:13m");
    fs::write(own.at("g"), b"and again").unwrap();
    assert_eq!(fs::metadata(own.at("d/f")).unwrap().len(), 5);
}

/// A permission that is gone is told as one, is not asked for again and again, and what was written meanwhile is saved when
/// it is back.
#[test]
fn a_permission_that_is_lost_for_a_while_loses_nothing() {
    if fresh_place(Server::Demo, "a_permission_that_is_lost").is_none() {
        return;
    }
    let own = Own::serve("").mount(&["--metadata-ttl", "100ms"], |_| {});
    fs::write(own.at("there"), b"there").unwrap();
    fs::write(own.at("changed"), b"before").unwrap();
    let errno = |answer: std::io::Result<()>| answer.err().and_then(|error| Errno::from_io_error(&error));
    let file = fs::OpenOptions::new().write(true).open(own.at("changed")).unwrap();
    own.rules("fault=denied");
    // What is remembered of names goes first.
    let is_forgotten = || errno(fs::metadata(own.at("there")).map(drop)) == Some(Errno::ACCESS);
    assert!(wait_for(LONG, is_forgotten));
    file.write_all_at(b"after!", 0).unwrap();
    assert_eq!(errno(file.sync_all()), Some(Errno::ACCESS));
    assert_eq!(errno(fs::read(own.at("there")).map(drop)), Some(Errno::ACCESS));
    assert_eq!(errno(fs::create_dir(own.at("made"))), Some(Errno::ACCESS));
    assert_eq!(errno(fs::remove_file(own.at("there"))), Some(Errno::ACCESS));
    drop(file);
    // Nobody asks for anything now: whatever is tried again is tried seldom.
    let before = own.requests();
    #[allow(clippy::disallowed_methods)] // the time is what is tested
    let begun = Instant::now();
    assert!(!wait_for(Duration::from_secs(6), || own.requests() > before + 30));
    let asked = own.requests() - before;
    assert!(asked <= 30, "{asked} requests in {:?}", begun.elapsed());
    assert_eq!(fs::read(own.at("changed")).unwrap(), b"after!", "what was written can be read");
    own.rules("");
    assert!(wait_for(LONG, || own.flush()));
    assert_eq!(fs::read(own.at("there")).unwrap(), b"there");
    let store = block_on(own.endpoint.client());
    let get = pailfs::s3::GetRequest {
        bucket: BUCKET.to_owned(),
        key: "changed".to_owned(),
        ..pailfs::s3::GetRequest::default()
    };
    let object = block_on(async { store.get(get).await?.bytes().await }).unwrap();
    assert_eq!(object, "after!", "it is in S3");
}
