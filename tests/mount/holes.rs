//! A network that swallows everything: connections that nobody answers, that are refused, whose packets are lost. Every call
//! ends in time with an error that fits, unmounting tells what is kept, and the mount goes on by itself afterwards.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pailfs::demo::Server as Demo;
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::mount::{fresh_place, is_mounted, pailfs, wait_for};
use crate::harness::{Endpoint, Server, block_on};

const TIMEOUT: Duration = Duration::from_secs(4);
/// What a call may take beyond the timeout on a busy machine.
const GRACE: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(90);
const BUCKET: &str = "bucket";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Hole {
    /// Connections are taken, and nothing is said.
    Silent,
    /// Nobody listens.
    Refused,
    /// Whoever listens has no room for another connection, so the kernel drops what would make one.
    Lost,
}

/// The way to a server, which can be closed and opened.
struct Door {
    address: SocketAddr,
    server: String,
    flows: watch::Sender<bool>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// What is in the way.
    stones: Vec<BlockingStream>,
    deaf: Option<rustix::fd::OwnedFd>,
}

impl Door {
    fn open(server: &str) -> Self {
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let mut door = Self {
            address: listener.local_addr().unwrap(),
            server: server.replace("http://", ""),
            flows: watch::channel(true).0,
            tasks: Arc::default(),
            stones: Vec::new(),
            deaf: None,
        };
        door.listen(listener);
        door
    }

    fn listen(&mut self, listener: TcpListener) {
        let (server, flows, tasks) = (self.server.clone(), self.flows.subscribe(), Arc::clone(&self.tasks));
        let task = block_on(async {
            let listening = tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (server, flows) = (server.clone(), flows.clone());
                    let task = tokio::spawn(async move {
                        let mut open = flows.clone();
                        let _ = open.wait_for(|open| *open).await;
                        let Ok(server) = TcpStream::connect(&server).await else { return };
                        let (from_client, to_client) = client.into_split();
                        let (from_server, to_server) = server.into_split();
                        let there = pass(from_client, to_server, flows.clone());
                        let back = pass(from_server, to_client, flows);
                        tokio::join!(there, back);
                    });
                    tasks.lock().unwrap().push(task);
                }
            });
            (listening,)
        });
        self.tasks.lock().unwrap().push(task.0);
    }

    fn close(&mut self, hole: Hole) {
        if hole == Hole::Silent {
            self.flows.send(false).unwrap();
            return;
        }
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        for task in &tasks {
            task.abort();
        }
        block_on(async {
            for task in tasks {
                let _ = task.await;
            }
        });
        if hole == Hole::Lost {
            use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
            let deaf = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            sockopt::set_socket_reuseaddr(&deaf, true).unwrap();
            bind(&deaf, &self.address).unwrap();
            listen(&deaf, 0).unwrap();
            self.deaf = Some(deaf);
            // Until one more is not taken.
            while let Ok(stone) = BlockingStream::connect_timeout(&self.address, Duration::from_millis(300)) {
                self.stones.push(stone);
            }
        }
    }

    fn open_again(&mut self, hole: Hole) {
        if hole == Hole::Silent {
            self.flows.send(true).unwrap();
            return;
        }
        self.stones.clear();
        self.deaf = None;
        let mut listener = None;
        assert!(wait_for(LONG, || {
            listener = block_on(TcpListener::bind(self.address)).ok();
            listener.is_some()
        }));
        self.listen(listener.unwrap());
    }
}

/// Bytes of one direction, while they flow.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut flows: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        if flows.wait_for(|open| *open).await.is_err() || read == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// A mount of a bucket behind a door.
struct Behind {
    door: Door,
    endpoint: Endpoint,
    dir: tempfile::TempDir,
    _server: Demo,
}

impl Behind {
    fn mount(flags: &[&str]) -> Self {
        let server = block_on(Demo::builder().bucket(BUCKET).start()).unwrap();
        let door = Door::open(&server.endpoint());
        let keys = server.credentials();
        let endpoint = Endpoint {
            url: format!("http://{}", door.address),
            access: keys.access_key.clone(),
            secret: keys.secret_key.clone(),
            region: "us-east-1".to_owned(),
        };
        let behind = Self { door, endpoint, dir: tempfile::tempdir().unwrap(), _server: server };
        fs::create_dir(behind.path()).unwrap();
        let status = pailfs(&behind.endpoint)
            .args(["mount", &format!("s3://{BUCKET}")])
            .arg(behind.path())
            .args(["--endpoint-url", &behind.endpoint.url, "--region", "us-east-1", "--state-dir"])
            .arg(behind.dir.path().join("state"))
            .args(flags)
            .status();
        assert!(status.unwrap().success());
        behind
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn run(&self, command: &str) -> std::process::Output {
        pailfs(&self.endpoint).arg(command).arg(self.path()).output().unwrap()
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        if is_mounted(&self.path()) {
            let _ = self.run("umount");
        }
        if is_mounted(&self.path()) {
            let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

type Call = fn(&Path, &File) -> std::io::Result<()>;

/// What is called in a directory of its own, with a file that is open; the kernel has nothing of it in its caches.
const CALLS: [(&str, Call); 28] = [
    ("open and read", |d, _| fs::read(d.join("f")).map(drop)),
    ("read of an open file", |_, f| f.read_at(&mut [0; 4096], 1 << 20).map(drop)),
    ("stat", |d, _| fs::metadata(d.join("f")).map(drop)),
    ("stat of what is not there", |d, _| fs::metadata(d.join("nothing")).map(drop)),
    ("fstat", |_, f| f.metadata().map(drop)),
    ("access", |d, _| rustix::fs::access(d.join("f"), rustix::fs::Access::READ_OK).map_err(Into::into)),
    ("readdir", |d, _| fs::read_dir(d)?.try_for_each(|entry| entry.map(drop))),
    ("readdir below", |d, _| fs::read_dir(d.join("sub"))?.try_for_each(|entry| entry.map(drop))),
    ("readlink", |d, _| fs::read_link(d.join("link")).map(drop)),
    ("create", |d, _| File::create(d.join("new")).map(drop)),
    ("create of what must not be there", |d, _| File::create_new(d.join("new")).map(drop)),
    ("write and close", |d, _| fs::write(d.join("f"), b"after!")),
    ("fsync", |_, f| f.write_all_at(b"!", 0).and_then(|()| f.sync_all())),
    ("fdatasync", |_, f| f.write_all_at(b"!", 0).and_then(|()| f.sync_data())),
    ("fsync of the directory", |d, _| File::open(d)?.sync_all()),
    ("truncate", |d, _| OpenOptions::new().write(true).open(d.join("f"))?.set_len(1)),
    ("ftruncate and fsync", |_, f| f.set_len(1).and_then(|()| f.sync_all())),
    ("mkdir", |d, _| fs::create_dir(d.join("made"))),
    ("rmdir", |d, _| fs::remove_dir(d.join("empty"))),
    ("rename", |d, _| fs::rename(d.join("f"), d.join("g"))),
    ("rename of a directory", |d, _| fs::rename(d.join("sub"), d.join("other"))),
    ("unlink", |d, _| fs::remove_file(d.join("f"))),
    ("symlink", |d, _| std::os::unix::fs::symlink("f", d.join("made"))),
    ("link", |d, _| fs::hard_link(d.join("f"), d.join("made"))),
    ("chmod", |d, _| fs::set_permissions(d.join("f"), fs::Permissions::from_mode(0o600))),
    ("utimes", |_, f| f.set_times(FileTimes::new().set_modified(std::time::UNIX_EPOCH))),
    ("setxattr", |d, _| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(d.join("f"), "user.a", b"b", flags).map_err(Into::into)
    }),
    ("getxattr", |d, _| {
        rustix::fs::getxattr(d.join("f"), "user.a", &mut [0; 64][..]).map(drop).map_err(Into::into)
    }),
];

/// What a call may be answered without S3: a hard link is no thing of ours.
const ALWAYS: [(&str, Errno); 2] = [("link", Errno::PERM), ("link", Errno::OPNOTSUPP)];

fn every_call_ends(hole: Hole, name: &str) {
    // A program that another test starts closes what is open here, which waits for S3, before it is another program.
    static ONE: Mutex<()> = Mutex::new(());
    let _turn = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if fresh_place(Server::Demo, name).is_none() {
        return;
    }
    let mut behind = Behind::mount(&["--timeout", "4s", "--metadata-ttl", "0s", "--posix", "full"]);
    // A directory each: the kernel lets one change of a directory wait for the other.
    let dirs: Vec<PathBuf> = (0..CALLS.len()).map(|n| behind.path().join(n.to_string())).collect();
    let held: Vec<File> = dirs.iter().map(|dir| prepared(dir)).collect();
    fs::write(behind.path().join("kept"), b"kept").unwrap();
    behind.door.close(hole);
    let calls = CALLS.into_iter().zip(dirs).zip(held).map(|(((name, call), dir), held)| {
        std::thread::spawn(move || {
            #[allow(clippy::disallowed_methods)] // the time is what is tested
            let begun = Instant::now();
            let answer = call(&dir, &held);
            let took = begun.elapsed();
            // Closing it may have something to save.
            drop(held);
            (name, answer, took)
        })
    });
    let calls: Vec<_> = calls.collect();
    // Not a word of S3 is in it.
    #[allow(clippy::disallowed_methods)]
    let begun = Instant::now();
    rustix::fs::statvfs(behind.path()).unwrap();
    assert!(begun.elapsed() < TIMEOUT, "statfs took {:?}", begun.elapsed());
    let answers: Vec<_> = calls.into_iter().map(|call| call.join().unwrap()).collect();
    let mut wrong = Vec::new();
    for (name, answer, took) in &answers {
        let errno = answer.as_ref().err().and_then(Errno::from_io_error);
        let fits = errno.is_none_or(|errno| {
            matches!(errno, Errno::IO | Errno::TIMEDOUT) || ALWAYS.contains(&(name, errno))
        });
        // The lookup of a path and what is done with it are two calls.
        if *took > (TIMEOUT + GRACE) * 2 || !fits {
            wrong.push(format!("{name} took {took:?}: {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{hole:?}: {}", wrong.join("\n"));
    let failed = answers.iter().filter(|(_, answer, _)| answer.is_err()).count();
    assert!(failed > CALLS.len() / 2, "{hole:?}: the door was open: {answers:?}");

    // A reader that waits can be killed.
    let mut reader = Command::new("cat").arg(behind.path().join("kept")).spawn().unwrap();
    reader.kill().unwrap();
    #[allow(clippy::disallowed_methods)]
    let begun = Instant::now();
    reader.wait().unwrap();
    let took = begun.elapsed();
    assert!(took < TIMEOUT + GRACE, "{hole:?}: a reader outlived its kill by {took:?}");

    // Unmounting ends, and tells what S3 does not have.
    fs::write(behind.path().join("unsaved"), b"unsaved").unwrap_or_default();
    #[allow(clippy::disallowed_methods)]
    let begun = Instant::now();
    let output = behind.run("umount");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(begun.elapsed() < (TIMEOUT + GRACE) * 4, "{hole:?}: umount took {:?}: {told}", begun.elapsed());
    assert!(!output.status.success() && is_mounted(&behind.path()), "{hole:?}: {told}");
    assert!(told.contains("could not be saved") && told.contains("/held ("), "{hole:?}: {told}");

    // It goes on by itself.
    behind.door.open_again(hole);
    let read = || fs::read(behind.path().join("kept")).is_ok_and(|bytes| bytes == b"kept");
    assert!(wait_for(LONG, read), "{hole:?}: it does not read again");
    assert!(wait_for(LONG, || behind.run("flush").status.success()), "{hole:?}: it does not save again");
    fs::write(behind.path().join("after"), b"after").unwrap();
    assert_eq!(fs::read(behind.path().join("after")).unwrap(), b"after");
    let output = behind.run("umount");
    assert!(output.status.success(), "{hole:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a directory with something for every call.
fn prepared(dir: &Path) -> File {
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::write(dir.join("f"), b"before").unwrap();
    fs::write(dir.join("sub/f"), b"before").unwrap();
    std::os::unix::fs::symlink("f", dir.join("link")).unwrap();
    fs::write(dir.join("held"), vec![1; 2 << 20]).unwrap();
    OpenOptions::new().read(true).write(true).open(dir.join("held")).unwrap()
}

#[test]
fn every_call_ends_where_nobody_answers() {
    every_call_ends(Hole::Silent, "every_call_ends_where_nobody_answers");
}

#[test]
fn every_call_ends_where_nobody_listens() {
    every_call_ends(Hole::Refused, "every_call_ends_where_nobody_listens");
}

#[test]
fn every_call_ends_where_packets_are_lost() {
    every_call_ends(Hole::Lost, "every_call_ends_where_packets_are_lost");
}
