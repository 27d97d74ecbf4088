//! Bug reports of other mounts, by their number (`tests/tidy.rs` has the list): those that need a kernel or a server.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rustix::io::Errno;

use crate::harness::mount::{Mounted, endpoint, fresh_place, pailfs, wait_for};
use crate::harness::server::{faults, requests};
use crate::harness::{Server, block_on};
use crate::semantics::{errno, pattern, python, status};

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

/// T1: written to a temporary name, closed, renamed and read at once; a zip file is one.
#[test]
fn t01_a_file_is_whole_right_after_it_was_renamed() {
    for durability in ["close", "journal"] {
        let Some(m) = Mounted::with(Server::Demo, "t01", &["--durability", durability]) else { return };
        let bytes = pattern(10 * MIB, 51);
        for round in 0..3 {
            fs::write(m.at("tmp"), &bytes[round..]).unwrap();
            fs::rename(m.at("tmp"), m.at("final")).unwrap();
            assert!(fs::read(m.at("final")).unwrap() == bytes[round..], "{durability} {round}");
        }
        let zip = [
            "import os, sys, zipfile",
            "d = sys.argv[1]",
            "with zipfile.ZipFile(d + '/zip.tmp', 'w') as z:",
            "    for i in range(20): z.writestr(f'member {i}', os.urandom(100_000))",
            "os.rename(d + '/zip.tmp', d + '/it.zip')",
            "print(zipfile.ZipFile(d + '/it.zip').testzip(), len(zipfile.ZipFile(d + '/it.zip').namelist()))",
        ];
        assert_eq!(python(&zip, &[&m.path()]).trim(), "None 20", "{durability}");
        assert!(!m.at("tmp").exists() && !m.at("zip.tmp").exists());
    }
}

/// T4: a key that may be read and not written. The close fails; what was written is nobody's but this mount's, which says
/// so, and the object is as it was.
#[test]
fn t04_a_file_that_may_not_be_written_says_so_and_stays() {
    let Some(m) = Mounted::fresh(Server::Demo, "t04") else { return };
    let other = m.again(&[]);
    block_on(m.place.put("f", "the server's")).unwrap();
    let rule = format!("bucket={},op=PutObject,key=f,fault=denied", m.place.bucket);
    let denied = faults(Server::Demo, &rule);
    let file = OpenOptions::new().write(true).truncate(true).open(m.at("f")).unwrap();
    file.write_all_at(b"mine", 0).unwrap();
    assert_eq!(errno(&file.sync_all().unwrap_err()), Errno::ACCESS);
    drop(file);
    assert_eq!(block_on(m.place.get("f")).unwrap(), "the server's");
    assert_eq!(fs::read(other.at("f")).unwrap(), b"the server's");
    // It is no cached copy that passes for the object: it is unsaved, is called so, and is tried again.
    assert_eq!(fs::read(m.at("f")).unwrap(), b"mine");
    let unsaved = &status(&m)["unsaved"];
    assert_eq!(unsaved["files"], 1, "{unsaved}");
    assert!(
        unsaved.to_string().contains("denied") || unsaved.to_string().contains("AccessDenied"),
        "{unsaved}"
    );
    drop(denied);
    assert!(wait_for(SOON, || status(&m)["unsaved"]["files"] == 0));
    assert_eq!(block_on(m.place.get("f")).unwrap(), "mine");
}

/// T5: a file that an editor has open is replaced in the bucket again and again: who reads it has one version or the
/// other.
#[test]
fn t05_a_file_that_is_replaced_under_an_editor_reads_as_one_version() {
    let Some(m) = Mounted::with(Server::Demo, "t05", &["--metadata-ttl", "0s"]) else { return };
    let versions: Vec<Vec<u8>> = (0..4usize).map(|i| vec![b'a' + i as u8; 2_400_003]).collect();
    block_on(m.place.put("f", versions[0].clone())).unwrap();
    let editor = OpenOptions::new().read(true).write(true).open(m.at("f")).unwrap();
    let done = AtomicBool::new(false);
    let (mut whole, mut stale) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..60 {
                block_on(m.place.put("f", versions[round % 4].clone())).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            match fs::read(m.at("f")) {
                Ok(read) => {
                    assert!(versions.contains(&read), "{} bytes that are no version", read.len());
                    whole += 1;
                }
                // Replaced in the middle: told, and not mixed.
                Err(error) => {
                    assert_eq!(errno(&error), Errno::STALE);
                    stale += 1;
                }
            }
        }
    });
    assert!(whole > 0, "{stale} of {stale} reads were stale");
    assert!(fs::read(m.at("f")).unwrap() == versions[59 % 4]);
    // What the editor reads now is of one version, or it is told.
    let mut begin = [0; 100];
    match editor.read_exact_at(&mut begin, 0) {
        Ok(()) => assert_eq!(begin, [begin[0]; 100]),
        Err(error) => assert_eq!(errno(&error), Errno::STALE),
    }
    // Its save is a lost race, and what it wrote is beside the winner.
    editor.write_all_at(b"edited", 0).unwrap();
    assert_eq!(errno(&editor.sync_all().unwrap_err()), Errno::STALE);
    drop(editor);
    assert!(block_on(m.place.get("f")).unwrap() == versions[59 % 4]);
    let keys = block_on(m.place.keys()).unwrap();
    let copy = keys.iter().find(|key| key.starts_with("f.conflict-")).expect("a conflict copy");
    assert!(block_on(m.place.get(copy)).unwrap().starts_with(b"edited"));
}

/// T17: a lock of directories that are renamed in a loop on one host, and `ls` and `stat` in a loop on another: every
/// call returns.
#[test]
fn t17_listing_beside_a_loop_of_locks_never_hangs() {
    let Some(first) = Mounted::with(Server::Demo, "t17", &["--timeout", "10s"]) else { return };
    let second = first.again(&["--timeout", "10s"]);
    fs::create_dir(first.at("repo")).unwrap();
    let (said, heard) = mpsc::channel();
    let (at, there) = (first.at("repo"), second.at("repo"));
    let locking = std::thread::spawn(move || {
        for round in 0..40 {
            let (new, lock) = (at.join(format!("lock.{round}.tmp")), at.join("lock.exclusive"));
            fs::create_dir(&new).unwrap();
            fs::write(new.join("owner"), b"me").unwrap();
            fs::rename(&new, &lock).unwrap();
            fs::remove_file(lock.join("owner")).unwrap();
            fs::remove_dir(&lock).unwrap();
        }
    });
    let looking = std::thread::spawn(move || {
        let mut looks = 0;
        while !locking.is_finished() {
            for entry in fs::read_dir(&there).unwrap() {
                // It may be gone again.
                let _ = entry.map(|entry| fs::metadata(entry.path()));
            }
            let _ = fs::read(there.join("lock.exclusive/owner"));
            looks += 1;
            said.send(looks).unwrap();
        }
        locking.join().unwrap();
    });
    // Each look returns, with an answer or an error.
    while let Ok(_looks) = heard.recv_timeout(Duration::from_secs(30)) {}
    assert!(wait_for(SOON, || looking.is_finished()), "it hangs");
    looking.join().unwrap();
    assert_eq!(fs::read_dir(first.at("repo")).unwrap().count(), 0);
    assert!(wait_for(SOON, || fs::read_dir(second.at("repo")).unwrap().count() == 0));
}

/// T19: a file that is removed before it is closed, opened again right after it was closed, and removed right after it was
/// written.
#[test]
fn t19_removing_and_opening_again_at_once_work() {
    let Some(m) = Mounted::fresh(Server::Demo, "t19") else { return };
    for round in 0..20 {
        let pid = m.at("pid");
        let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(&pid).unwrap();
        file.write_all(b"1234\n").unwrap();
        fs::remove_file(&pid).unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        file.write_all(b"more").unwrap();
        drop(file);
        assert!(!pid.exists(), "{round}");

        let log = m.at("log");
        drop(File::create(&log).map(|mut file| file.write_all(b"first, and longer")).unwrap());
        let mut file = OpenOptions::new().write(true).truncate(true).open(&log).unwrap();
        file.write_all(b"second").unwrap();
        drop(file);
        assert_eq!(fs::read(&log).unwrap(), b"second");
        fs::remove_file(&log).unwrap();
        assert_eq!(errno(&fs::read(&log).unwrap_err()), Errno::NOENT);

        fs::write(m.at("f"), b"x").unwrap();
        fs::remove_file(m.at("f")).unwrap();
        assert_eq!(errno(&fs::metadata(m.at("f")).unwrap_err()), Errno::NOENT);
        assert!(OpenOptions::new().write(true).open(m.at("f")).is_err());
    }
    fs::write(m.at("last"), b"x").unwrap();
    File::open(m.path()).unwrap().sync_all().unwrap();
    assert_eq!(block_on(m.place.keys()).unwrap(), ["last"]);
}

/// Passes connections on to the demo server, and closes those it has when told to, as a server does with idle ones.
struct Forwarder {
    url: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Forwarder {
    fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let to = to.trim_start_matches("http://").to_owned();
        let open = Arc::new(Mutex::new(Vec::new()));
        let opened = Arc::clone(&open);
        // It ends with the process.
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let far = TcpStream::connect(&to).unwrap();
                for (mut from, mut to) in
                    [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near.try_clone().unwrap())]
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                opened.lock().unwrap().push(near);
            }
        });
        Self { url, open }
    }

    /// How many it closed.
    fn close_all(&self) -> usize {
        let closed = std::mem::take(&mut *self.open.lock().unwrap());
        closed.iter().for_each(|connection| drop(connection.shutdown(Shutdown::Both)));
        closed.len()
    }
}

/// T27: the server closes connections that were idle, and then a large file is put.
#[test]
fn t27_connections_that_the_server_closed_while_idle_cost_nothing() {
    let Some(place) = fresh_place(Server::Demo, "t27") else { return };
    let at = endpoint(Server::Demo);
    let forwarder = Forwarder::start(&at.url);
    let dirs = tempfile::tempdir().unwrap();
    let mnt = dirs.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let mount = pailfs(&at)
        .args(["mount", &format!("s3://{}", place.bucket)])
        .arg(&mnt)
        .args(["--endpoint-url", &forwarder.url, "--region", &at.region, "--timeout", "15s", "--state-dir"])
        .arg(dirs.path().join("state"))
        .status();
    assert!(mount.unwrap().success());
    let bytes = pattern(64 * MIB, 53);
    let mut closed = 0;
    for round in 0..3 {
        // Several connections, idle from here on.
        std::thread::scope(|scope| {
            for i in 0..8 {
                let path = mnt.join(format!("small{round}-{i}"));
                scope.spawn(move || fs::write(path, b"x").unwrap());
            }
        });
        closed += forwarder.close_all();
        let mut file = File::create(mnt.join("large")).unwrap();
        file.write_all(&bytes[round..]).unwrap();
        file.sync_all().unwrap();
        drop(file);
        assert!(block_on(place.get("large")).unwrap() == bytes[round..]);
        closed += forwarder.close_all();
        fs::write(mnt.join("after"), b"y").unwrap();
    }
    assert!(closed > 6, "{closed} connections were closed");
    let umount = pailfs(&at).arg("umount").arg(&mnt).status();
    assert!(umount.unwrap().success());
    assert_eq!(block_on(place.keys()).unwrap().len(), 26);
}

/// T29: a copy on the server that says nothing for longer than `--timeout`, because it is large.
#[test]
fn t29_a_large_copy_that_is_silent_is_waited_for() {
    let Some(m) = Mounted::with(Server::Demo, "t29", &["--timeout", "4s"]) else { return };
    let bytes = pattern(192 * MIB, 52);
    fs::write(m.at("f"), &bytes).unwrap();
    for op in ["CopyObject", "UploadPartCopy"] {
        // It has a second more for each 32 MiB.
        let rule = format!("bucket={},op={op},fault=latency:5s", m.place.bucket);
        let _slow = faults(Server::Demo, &rule);
        let before = requests(Server::Demo, op);
        if op == "CopyObject" {
            fs::rename(m.at("f"), m.at("g")).unwrap();
        } else {
            let file = OpenOptions::new().write(true).open(m.at("g")).unwrap();
            file.write_all_at(b"!", 190 * MIB as u64).unwrap();
            file.sync_all().unwrap();
        }
        assert!(requests(Server::Demo, op) > before, "{op}");
    }
    let mut expected = bytes;
    expected[190 * MIB] = b'!';
    assert!(block_on(m.place.get("g")).unwrap() == expected);
    assert_eq!(block_on(m.place.keys()).unwrap(), ["g"]);
}

/// T34: two mounts with one state directory and one cache directory, which is too small for either.
#[test]
fn t34_two_mounts_share_their_directories_and_lose_nothing() {
    let dirs = tempfile::tempdir().unwrap();
    let (state, cache) = (dirs.path().join("state"), dirs.path().join("cache"));
    let flags = [
        "--state-dir",
        state.to_str().unwrap(),
        "--cache-dir",
        cache.to_str().unwrap(),
        "--cache-size",
        "16MiB",
    ];
    let Some(first) = Mounted::with(Server::Demo, "t34", &flags) else { return };
    let second = first.again(&flags);
    let body = |name: &str| pattern(20 * MIB + name.len(), name.as_bytes()[0]);
    std::thread::scope(|scope| {
        for (m, names) in [(&first, ["a", "b2", "c33"]), (&second, ["x", "y2", "z33"])] {
            scope.spawn(move || {
                for name in names {
                    // Read back while it is uploaded, and after.
                    fs::write(m.at(name), body(name)).unwrap();
                    assert!(fs::read(m.at(name)).unwrap() == body(name), "{name}");
                }
            });
        }
    });
    for name in ["a", "b2", "c33", "x", "y2", "z33"] {
        assert!(block_on(first.place.get(name)).unwrap() == body(name), "{name} in S3");
        for m in [&first, &second] {
            assert!(fs::read(m.at(name)).unwrap() == body(name), "{name}");
        }
    }
}
