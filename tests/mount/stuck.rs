//! What happens when nobody answers: a server that is stopped takes connections and bytes, as far as the kernel's
//! buffers reach, and says nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use crate::copying::counter;
use crate::harness::mount::{Mounted, fresh_place, is_mounted, pailfs, wait_for};
use crate::harness::server::faults;
use crate::harness::{Endpoint, Place, Server, block_on};

const TIMEOUT: Duration = Duration::from_secs(4);
/// What a call may take beyond the timeout on a busy machine.
const GRACE: Duration = Duration::from_secs(5);

/// A process that is stopped, and goes on when this goes out of scope.
pub struct Stopped(rustix::process::Pid);

impl Stopped {
    pub fn stop(number: u32) -> Self {
        let pid = rustix::process::Pid::from_raw(number.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // Its threads stop when they get to it.
        let threads = || fs::read_dir(format!("/proc/{number}/task")).unwrap().flatten();
        let is_stopped = |thread: fs::DirEntry| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        };
        assert!(wait_for(GRACE, || threads().all(is_stopped)));
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

/// A server that no other test uses, and a mount of a bucket on it.
struct Alone {
    server: Child,
    endpoint: Endpoint,
    place: Place,
    dir: tempfile::TempDir,
}

impl Alone {
    fn mount(flags: &[&str]) -> Self {
        let mut server = Command::new(env!("CARGO_BIN_EXE_pailfs"))
            .args(["demo", "--listen", "127.0.0.1:0", "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let [_, url, access, secret, region] = <[String; 5]>::try_from(words).unwrap();
        let endpoint = Endpoint { url, access, secret, region };
        let store = block_on(endpoint.client());
        let place = block_on(Place::make(Server::Demo, store)).unwrap();
        let alone = Self { server, endpoint, place, dir: tempfile::tempdir().unwrap() };
        fs::create_dir(alone.path()).unwrap();
        let status = pailfs(&alone.endpoint)
            .args(["mount", &format!("s3://{}", alone.place.bucket)])
            .arg(alone.path())
            .args(["--endpoint-url", &alone.endpoint.url, "--region", &alone.endpoint.region, "--state-dir"])
            .arg(alone.dir.path().join("state"))
            .args(flags)
            .status();
        assert!(status.unwrap().success());
        alone
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn run(&self, command: &str) -> bool {
        pailfs(&self.endpoint).arg(command).arg(self.path()).status().unwrap().success()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if is_mounted(&self.path()) {
            self.run("umount");
        }
        if is_mounted(&self.path()) {
            let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
        }
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }
}

type Call = fn(&Path, &File) -> std::io::Result<()>;

/// `--timeout` bounds every call, whatever it has to send: DESIGN's promise 10.
///
/// The close of a new file of 3 MB took 72 s with a timeout of 5 s: each attempt had the time that its bytes would
/// take on the slowest line, and there were several.
#[test]
fn every_call_ends_in_time_where_the_server_says_nothing() {
    if fresh_place(Server::Demo, "every_call_ends_in_time").is_none() {
        return;
    }
    let alone = Alone::mount(&["--timeout", "4s", "--metadata-ttl", "60s", "--negative-ttl", "60s"]);
    let calls: [(&str, Call); 12] = [
        ("open and read", |d, _| fs::read(d.join("f")).map(drop)),
        ("close of a small file", |d, _| write_and_close(&d.join("new"), 10)),
        ("close of 3 MB", |d, _| write_and_close(&d.join("new"), 3_000_000)),
        ("close of 30 MB", |d, _| write_and_close(&d.join("new"), 30_000_000)),
        ("fsync of a changed byte of 30 MB", |_, f| write_and_sync(f, 15 << 20)),
        ("fsync of a small file", |_, f| write_and_sync(f, 0)),
        ("truncate", |d, _| OpenOptions::new().write(true).open(d.join("f"))?.set_len(0)),
        ("unlink", |d, _| fs::remove_file(d.join("f"))),
        ("rename", |d, _| fs::rename(d.join("f"), d.join("g"))),
        ("rename of a directory", |d, _| fs::rename(d.join("sub"), d.join("other"))),
        ("mkdir", |d, _| fs::create_dir(d.join("made"))),
        ("rmdir", |d, _| fs::remove_dir(d.join("empty"))),
    ];
    // A directory each: the kernel lets one change of a directory wait for the other.
    let dirs: Vec<PathBuf> = (0..calls.len()).map(|n| alone.path().join(n.to_string())).collect();
    for dir in &dirs {
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::create_dir(dir.join("empty")).unwrap();
        fs::write(dir.join("f"), b"before").unwrap();
        fs::write(dir.join("held"), b"before").unwrap();
        fs::write(dir.join("sub/f"), b"before").unwrap();
    }
    fs::write(dirs[4].join("held"), vec![1; 30 << 20]).unwrap();
    let held = dirs.iter().map(|dir| {
        // Known to be absent, so that making it does not fail already.
        assert!(fs::metadata(dir.join("new")).is_err());
        OpenOptions::new().write(true).open(dir.join("held")).unwrap()
    });
    let held: Vec<File> = held.collect();
    let stopped = Stopped::stop(alone.server.id());
    let threads: Vec<_> = calls
        .into_iter()
        .zip(dirs)
        .zip(held)
        .map(|(((name, call), dir), held)| {
            std::thread::spawn(move || {
                #[allow(clippy::disallowed_methods)] // the time is what is tested
                let begun = Instant::now();
                let answer = call(&dir, &held);
                (name, answer, begun.elapsed())
            })
        })
        .collect();
    let answers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    drop(stopped);
    for (name, answer, took) in &answers {
        assert!(*took < TIMEOUT + GRACE, "{name} took {took:?} ({answer:?})");
    }
    for (name, answer, _) in &answers {
        // Dropping a file does not tell what its close failed of.
        assert!(answer.is_err() || name.starts_with("close"), "{name} cannot have been done");
    }
    // The mount recovers by itself, and nothing that was written is lost.
    assert!(wait_for(Duration::from_secs(60), || alone.run("flush")));
    let len = |key| block_on(alone.place.get(key)).unwrap().len();
    assert_eq!((len("2/new"), len("3/new")), (3_000_000, 30_000_000));
    assert_eq!(block_on(alone.place.get("4/held")).unwrap()[15 << 20], b'!');
    assert_eq!(block_on(alone.place.get("5/held")).unwrap(), "!efore");
    // What nobody waits for any more may be done or not; the bytes are under one of the names.
    let there =
        |key: &str| block_on(async { alone.place.get(key).await.is_ok_and(|bytes| bytes == "before") });
    assert!(there("8/f") || there("8/g"));
    assert!(there("9/sub/f") || there("9/other/f"));
    assert!(alone.run("umount"));
}

/// The kernel lets one change of a directory wait for the other, and each may wait for `--timeout`: one after the other
/// would take as many times as long. Once the server has said nothing for that time, nothing more is asked of it but whether it is back.
#[test]
fn calls_that_wait_for_each_other_take_the_timeout_once() {
    if fresh_place(Server::Demo, "calls_that_wait_for_each_other").is_none() {
        return;
    }
    let alone = Alone::mount(&["--timeout", "4s", "--metadata-ttl", "60s", "--negative-ttl", "60s"]);
    let dir = |n: usize| alone.path().join(format!("made/{n}"));
    fs::create_dir(alone.path().join("made")).unwrap();
    (0..8).for_each(|n| assert!(fs::metadata(dir(n)).is_err()));
    let notes = || {
        let said = pailfs(&alone.endpoint).args(["status", "--json"]).arg(alone.path()).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        status["notes"].to_string()
    };
    assert!(!notes().contains("answers nothing"));
    let stopped = Stopped::stop(alone.server.id());
    #[allow(clippy::disallowed_methods)] // the time is what is tested
    let begun = Instant::now();
    let took = std::thread::scope(|scope| {
        let making = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| {
            let dir = &dir;
            scope.spawn(move || {
                fs::create_dir(dir(n)).unwrap_err();
                begun.elapsed()
            })
        });
        making.map(|making: ScopedJoinHandle<_>| making.join().unwrap())
    });
    assert!(took.iter().all(|took| *took < TIMEOUT + GRACE), "{took:?}");
    assert!(notes().contains("answers nothing"), "{}", notes());
    drop(stopped);
    assert!(wait_for(Duration::from_secs(60), || fs::create_dir(dir(8)).is_ok()));
    assert!(!notes().contains("answers nothing"), "{}", notes());
    assert!(alone.run("umount"));
}

/// What a program does before the server stops, and what it does then and is not answered.
const BLOCKED: [(&str, &str, &str); 5] = [
    (
        "close",
        "f = os.open(d + '/close', os.O_WRONLY | os.O_CREAT)",
        "os.write(f, b'x' * 100_000); now(); os.close(f)",
    ),
    ("fsync", "f = os.open(d + '/fsync', os.O_WRONLY)", "os.pwrite(f, b'after!', 0); now(); os.fsync(f)"),
    ("rename", "pass", "now(); os.rename(d + '/from', d + '/to')"),
    ("unlink", "pass", "now(); os.unlink(d + '/gone')"),
    (
        "exit",
        "f = os.open(d + '/exit', os.O_WRONLY | os.O_CREAT)",
        "os.write(f, b'y' * 100); now(); os._exit(0)",
    ),
];

/// `kill -9` of a program that waits for a server which does not answer ends it when its call ends, which `--timeout`
/// bounds; and what it had written is saved when the server goes on.
#[test]
fn a_program_that_waits_for_a_silent_server_can_be_killed() {
    if fresh_place(Server::Demo, "a_program_that_waits_can_be_killed").is_none() {
        return;
    }
    let alone = Alone::mount(&["--timeout", "4s", "--metadata-ttl", "60s", "--negative-ttl", "60s"]);
    // A directory each: the kernel lets one change of a directory wait for the other.
    let programs = BLOCKED.map(|(what, before, then)| {
        let dir = alone.path().join(what);
        fs::create_dir(&dir).unwrap();
        for name in ["fsync", "from", "gone"] {
            fs::write(dir.join(name), b"before").unwrap();
        }
        assert!(fs::metadata(dir.join("to")).is_err());
        let lines = format!(
            "import os, sys\nd = sys.argv[1]\nnow = lambda: print('now', flush=True)\n\
             {before}\nnow()\nsys.stdin.readline()\n{then}\n"
        );
        let mut python = Command::new("python3");
        python.args(["-c", &lines]).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.stderr(Stdio::null()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        wait_for_now(&mut said);
        (what, child, said)
    });
    let stopped = Stopped::stop(alone.server.id());
    let mut programs = programs.map(|(what, mut child, mut said)| {
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        wait_for_now(&mut said);
        (what, child)
    });
    #[allow(clippy::disallowed_methods)] // the time is what is tested
    let begun = Instant::now();
    for (_, child) in &mut programs {
        child.kill().unwrap();
    }
    let ended = programs.map(|(what, mut child)| {
        std::thread::spawn(move || {
            child.wait().unwrap();
            (what, begun.elapsed())
        })
    });
    let ended = ended.map(|ended| ended.join().unwrap());
    for (what, took) in ended {
        // What it had open for writing is closed after the call that it waited in, and waits too.
        let calls = 1 + u32::from(what == "fsync");
        assert!(took < (TIMEOUT + GRACE) * calls, "{what} outlived its kill: {ended:?}");
    }
    drop(stopped);
    assert!(wait_for(Duration::from_secs(60), || alone.run("flush")));
    let object = |key: &str| block_on(async { alone.place.get(key).await.ok() });
    assert_eq!(object("close/close").unwrap(), vec![b'x'; 100_000]);
    assert_eq!(object("fsync/fsync").unwrap(), "after!");
    assert_eq!(object("exit/exit").unwrap(), vec![b'y'; 100]);
    // What the server is told and nobody waits for may be done or not; the bytes are under one of the names.
    let moved = [object("rename/from"), object("rename/to")];
    assert!(moved.iter().flatten().all(|bytes| *bytes == "before"), "{moved:?}");
    assert!(moved.iter().any(Option::is_some));
    assert!(object("unlink/gone").is_none_or(|bytes| bytes == "before"));
    assert!(alone.run("umount"));
}

fn wait_for_now(said: &mut impl BufRead) {
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "now\n");
}

/// What the server was told and did not answer may still be done, long after: a later save is not undone by it.
#[test]
fn a_save_that_is_late_does_not_undo_a_later_one() {
    if fresh_place(Server::Demo, "a_save_that_is_late").is_none() {
        return;
    }
    let alone = Alone::mount(&["--timeout", "4s"]);
    fs::write(alone.path().join("old"), b"before").unwrap();
    let file = |name: &str| {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(alone.path().join(name))
    };
    let (old, new) = (file("old").unwrap(), file("new").unwrap());
    let stopped = Stopped::stop(alone.server.id());
    for file in [&old, &new] {
        file.write_all_at(b"first!", 0).unwrap();
    }
    std::thread::scope(|scope| {
        for file in [&old, &new] {
            scope.spawn(|| file.sync_all().unwrap_err());
        }
    });
    for file in [&old, &new] {
        file.write_all_at(b"second", 0).unwrap();
        let mut read = [0; 6];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"second");
    }
    drop(stopped);
    for (name, file) in [("old", &old), ("new", &new)] {
        assert!(wait_for(Duration::from_secs(60), || file.sync_all().is_ok()), "{name}");
        assert_eq!(block_on(alone.place.get(name)).unwrap(), "second", "{name}");
    }
    drop((old, new));
    assert!(alone.run("flush"));
    let mut keys = block_on(alone.place.keys()).unwrap();
    keys.sort();
    assert_eq!(keys, ["new", "old"], "no conflict with ourselves");
    assert_eq!(block_on(alone.place.get("new")).unwrap(), "second");
    assert!(alone.run("umount"));
}

fn write_and_sync(file: &File, at: u64) -> std::io::Result<()> {
    file.write_all_at(b"!", at)?;
    file.sync_all()
}

fn write_and_close(path: &Path, len: usize) -> std::io::Result<()> {
    fs::write(path, vec![7; len])
}

/// A server that says to slow down is waited for, for longer than a few attempts take.
#[test]
fn a_server_that_says_to_slow_down_is_waited_for() {
    let Some(m) = Mounted::fresh(Server::Demo, "a_server_that_says_to_slow_down") else { return };
    // The SDK makes three attempts.
    let rule = format!("bucket={},op=PutObject,times=7,fault=slowdown", m.place.bucket);
    let _faults = faults(Server::Demo, &rule);
    fs::write(m.at("f"), b"in the end").unwrap();
    assert_eq!(block_on(m.place.get("f")).unwrap(), "in the end");
}

/// One that fails at one thing, and does others, is not.
#[test]
fn what_a_server_fails_at_alone_is_told_after_a_few_attempts() {
    let Some(m) = Mounted::fresh(Server::Demo, "what_a_server_fails_at_alone") else { return };
    fs::write(m.at("f"), b"bytes").unwrap();
    fs::write(m.at("other"), b"bytes").unwrap();
    let rule = format!("bucket={},op=GetObject,key=f,fault=error:500", m.place.bucket);
    let _faults = faults(Server::Demo, &rule);
    let told = fs::read(m.at("f")).unwrap_err();
    assert_eq!(told.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    // The SDK makes three attempts, four times; and the kernel asks for less when its read-ahead failed.
    let retries = counter(&m, "s3_retries");
    assert!(retries == 11 || retries == 22, "{retries}");
    // As Garage says of a key that is too long for its database, for ever.
    let rule = format!("bucket={},op=PutObject,key=g,fault=status:503", m.place.bucket);
    let _faults = faults(Server::Demo, &rule);
    let file = File::create(m.at("g")).unwrap();
    file.sync_all().unwrap_err();
    // Whoever asks for the status starts a program, and the descriptor is closed there: a close of the file saves it too.
    let more = counter(&m, "s3_retries") - retries;
    assert!(more > 0 && more.is_multiple_of(11), "{more}");
}

/// The deadline is one of silence: a body that moves is waited for, however long it takes.
#[test]
fn a_slow_upload_that_moves_is_no_timeout() {
    let Some(m) = Mounted::with(Server::Demo, "a_slow_upload_that_moves_is_no_timeout", &["--timeout", "7s"])
    else {
        return;
    };
    let rule = format!("bucket={},op=UploadPart,fault=bandwidth:1MB", m.place.bucket);
    let _faults = faults(Server::Demo, &rule);
    #[allow(clippy::disallowed_methods)] // the time is what is tested
    let begun = Instant::now();
    let mut file = File::create(m.at("f")).unwrap();
    file.write_all(&vec![3; 20 << 20]).unwrap();
    file.sync_all().unwrap();
    assert!(begun.elapsed() > Duration::from_secs(7), "it was not slow: {:?}", begun.elapsed());
    assert_eq!(block_on(m.place.get("f")).unwrap().len(), 20 << 20);
}
