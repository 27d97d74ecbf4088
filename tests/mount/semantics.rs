//! One test for each row of docs/SEMANTICS.md, quoting it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pailfs::s3::{Attributes, Condition};

use crate::harness::mount::{Mounted, fresh_place, wait_for};
use crate::harness::server::faults;
use crate::harness::{Server, block_on};

/// Longer than the metadata TTL of one second, with room for a busy machine.
pub const SEEN: Duration = Duration::from_secs(20);

macro_rules! mounted {
    ($name:literal) => {
        match Mounted::fresh(Server::Demo, $name) {
            Some(mounted) => mounted,
            None => return,
        }
    };
    ($name:literal, $($flag:expr),+) => {
        match Mounted::with(Server::Demo, $name, &[$($flag),+]) {
            Some(mounted) => mounted,
            None => return,
        }
    };
}

pub(crate) fn errno(error: &std::io::Error) -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(error).expect("an error of the kernel")
}

fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What `pailfs status --json` says.
pub(crate) fn status(m: &Mounted) -> serde_json::Value {
    let output =
        Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("status").arg(m.path()).arg("--json").output();
    serde_json::from_slice(&output.unwrap().stdout).expect("JSON")
}

/// A small program for what Rust has no safe call for; returns what it prints.
pub(crate) fn python(lines: &[&str], arguments: &[&Path]) -> String {
    let output = Command::new("python3").arg("-c").arg(lines.join("\n")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes that differ everywhere, so that a piece in the wrong place shows.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

/// D1: "When close() or fsync() returns 0, exactly the bytes written are an object in S3."
#[test]
fn what_is_closed_is_an_object() {
    let m = mounted!("what_is_closed_is_an_object");
    fs::write(m.at("small"), b"hello").unwrap();
    assert_eq!(block_on(m.place.get("small")).unwrap(), "hello");

    let large = pattern(20 << 20, 1);
    fs::write(m.at("large"), &large).unwrap();
    assert!(block_on(m.place.get("large")).unwrap() == large);

    let mut file = File::create(m.at("synced")).unwrap();
    file.write_all(b"one").unwrap();
    file.sync_all().unwrap();
    assert_eq!(block_on(m.place.get("synced")).unwrap(), "one");
    file.write_all(b" two").unwrap();
    file.sync_data().unwrap();
    assert_eq!(block_on(m.place.get("synced")).unwrap(), "one two");

    File::create(m.at("empty")).unwrap();
    assert_eq!(block_on(m.place.get("empty")).unwrap(), "");
}

/// D3: "Nothing becomes clean before S3 answered 200 to the request that carried it."
#[test]
fn nothing_is_clean_before_s3_said_so() {
    let m = mounted!("nothing_is_clean_before_s3_said_so");
    // The first write asks the server what it can do, which is not to be late.
    fs::write(m.at("first"), b"x").unwrap();
    let unsaved = || status(&m)["unsaved"]["files"].as_u64().unwrap();
    for (op, len) in [("PutObject", 1000), ("CompleteMultipartUpload", 20 << 20)] {
        let bytes = pattern(len, 23);
        let rule = format!("bucket={},op={op},fault=latency:3s", m.place.bucket);
        let held = faults(Server::Demo, &rule);
        let (path, written) = (m.at(op), bytes.clone());
        let before = crate::harness::server::requests(Server::Demo, op);
        let closing = std::thread::spawn(move || fs::write(path, written));
        assert!(wait_for(SEEN, || unsaved() == 1), "it was clean at once");
        while !closing.is_finished() {
            // Asked between two looks at whether it is there: absent after means absent all the while.
            let clean = unsaved() == 0;
            let there = block_on(m.place.get(op)).is_ok();
            assert!(there || !clean || closing.is_finished(), "{op}: clean, and not in S3");
        }
        closing.join().unwrap().unwrap();
        drop(held);
        assert!(crate::harness::server::requests(Server::Demo, op) > before);
        assert_eq!(unsaved(), 0);
        assert!(block_on(m.place.get(op)).unwrap() == bytes);
    }
}

/// D4: "Who loses gets ESTALE from close(), and the bytes are kept in NAME.conflict-HOST-MILLISECONDS".
#[test]
fn the_loser_of_a_race_gets_estale_and_keeps_its_bytes() {
    let m = mounted!("the_loser_of_a_race_gets_estale_and_keeps_its_bytes");
    block_on(m.place.put("f", "base")).unwrap();
    let file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
    file.write_all_at(b"mine", 0).unwrap();
    block_on(m.place.put("f", "theirs")).unwrap();
    assert_eq!(errno(&file.sync_all().unwrap_err()), rustix::io::Errno::STALE);
    drop(file);
    assert_eq!(block_on(m.place.get("f")).unwrap(), "theirs");
    let keys = block_on(m.place.keys()).unwrap();
    let copy = keys.iter().find(|k| k.starts_with("f.conflict-")).expect("a conflict copy");
    assert_eq!(block_on(m.place.get(copy)).unwrap(), "mine");
    assert!(wait_for(SEEN, || fs::read(m.at("f")).is_ok_and(|b| b == b"theirs")));

    // A new file against a new object.
    let mut file = File::create(m.at("g")).unwrap();
    file.write_all(b"mine").unwrap();
    block_on(m.place.put("g", "theirs")).unwrap();
    assert_eq!(errno(&file.sync_all().unwrap_err()), rustix::io::Errno::STALE);
    assert_eq!(block_on(m.place.get("g")).unwrap(), "theirs");
}

/// D7: "Where a server does not honour conditions, a HEAD just before the request stands in for them", "and the first
/// write to one that does not logs it once."
#[test]
fn a_server_that_ignores_conditions_is_asked_before_each_write() {
    let Some(place) = fresh_place(Server::Demo, "a_server_that_ignores_conditions") else { return };
    let rule = format!("bucket={},fault=ignore-conditions", place.bucket);
    let _faults = faults(Server::Demo, &rule);
    let source = format!("s3://{}", place.bucket);
    let m = Mounted::mount(place, &source, &[]);
    block_on(m.place.put("f", "base")).unwrap();
    let file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
    file.write_all_at(b"mine", 0).unwrap();
    block_on(m.place.put("f", "theirs")).unwrap();
    assert_eq!(errno(&file.sync_all().unwrap_err()), rustix::io::Errno::STALE);
    drop(file);
    assert_eq!(block_on(m.place.get("f")).unwrap(), "theirs");
    let keys = block_on(m.place.keys()).unwrap();
    assert!(keys.iter().any(|key| key.starts_with("f.conflict-")), "{keys:?}");
    fs::write(m.at("g"), b"1").unwrap();
    fs::write(m.at("g"), b"2").unwrap();
    assert_eq!(block_on(m.place.get("g")).unwrap(), "2");
    let told = m.log_text().matches("does not honour every condition").count();
    assert_eq!(told, 1, "{}", m.log_text());
}

/// C1: "open() sees the newest version of the object."
#[test]
fn open_sees_the_newest_object_even_of_the_same_size() {
    let m = mounted!("open_sees_the_newest_object_even_of_the_same_size", "--metadata-ttl", "1h");
    block_on(m.place.put("f", "first")).unwrap();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"first");
    block_on(m.place.put("f", "other")).unwrap();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"other");
    // The kernel believes the old size for an hour, unless it is told.
    for body in ["one that is longer than before", "s", ""] {
        block_on(m.place.put("f", body)).unwrap();
        assert_eq!(fs::read(m.at("f")).unwrap(), body.as_bytes());
    }
}

/// C1: "... unless a listing described the file less than --metadata-ttl ago; then the first read asks for that version,
/// and goes on with the newest one where it was replaced."
#[test]
fn a_file_opened_by_a_listing_s_word_is_read_as_it_is_now() {
    let m = mounted!("a_file_opened_by_a_listing_s_word_is_read_as_it_is_now", "--metadata-ttl", "1h");
    for (before, now) in [("short", "one that is longer than before"), ("longer than it will be", "s")] {
        let name = format!("{}-{}", before.len(), now.len());
        block_on(m.place.put(&name, before)).unwrap();
        let listed = fs::read_dir(m.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        assert!(listed.into_iter().any(|len| len == before.len() as u64));
        block_on(m.place.put(&name, now)).unwrap();
        let mut file = File::open(m.at(&name)).unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, now.as_bytes());
        assert_eq!(file.metadata().unwrap().len(), now.len() as u64);
    }
}

/// C2: "If another client replaces the object, the handle fails with ESTALE rather than mixing two versions."
#[test]
fn a_handle_never_mixes_two_versions() {
    let m = mounted!("a_handle_never_mixes_two_versions");
    let old = pattern(24 << 20, 1);
    block_on(m.place.put("f", old.clone())).unwrap();
    let mut file = File::open(m.at("f")).unwrap();
    let mut head = vec![0; 4096];
    file.read_exact(&mut head).unwrap();
    assert!(head == old[..4096]);
    block_on(m.place.put("f", pattern(24 << 20, 2))).unwrap();
    // Far from what was read ahead.
    let mut tail = vec![0; 4096];
    let at = (20 << 20) as u64;
    match file.read_exact_at(&mut tail, at) {
        Ok(()) => assert!(tail == old[at as usize..at as usize + 4096], "bytes of another version"),
        Err(error) => assert_eq!(errno(&error), rustix::io::Errno::STALE),
    }
}

/// C2 beside other programs: what the kernel keeps of a file is of one version, and so is its size.
#[test]
fn a_handle_keeps_its_version_while_others_open_a_newer_one() {
    let m = mounted!("a_handle_keeps_its_version_while_others_open_a_newer_one");
    for (name, newer) in [("shorter", 1 << 20), ("same", 24 << 20), ("longer", 26 << 20)] {
        for write in [false, true] {
            let name = format!("{name}-{write}");
            let (old, new) = (pattern(24 << 20, 1), pattern(newer, 2));
            block_on(m.place.put(&name, old.clone())).unwrap();
            let mut file = OpenOptions::new().read(true).write(write).open(m.at(&name)).unwrap();
            let mut head = vec![0; 4096];
            file.read_exact(&mut head).unwrap();
            block_on(m.place.put(&name, new.clone())).unwrap();
            let is_seen = || fs::read(m.at(&name)).is_ok_and(|read| read == new);
            assert!(wait_for(SEEN, is_seen), "{name}");
            assert_eq!(fs::metadata(m.at(&name)).unwrap().len(), new.len() as u64);
            assert_eq!(file.metadata().unwrap().len(), old.len() as u64, "{name}");
            for at in [1 << 20, 20 << 20, (24 << 20) - 4096] {
                let mut piece = vec![0; 4096];
                match file.read_exact_at(&mut piece, at as u64) {
                    Ok(()) => {
                        assert!(piece == old[at..at + 4096], "{name}: bytes of another version at {at}")
                    }
                    Err(error) => assert_eq!(errno(&error), rustix::io::Errno::STALE, "{name} at {at}"),
                }
            }
            if write {
                file.write_all_at(b"changed", 0).unwrap();
                assert_eq!(errno(&file.sync_all().unwrap_err()), rustix::io::Errno::STALE);
            }
            drop(file);
            assert!(fs::read(m.at(&name)).unwrap() == new, "{name}");
        }
    }
}

/// C3: "Between opens, stat and readdir may be as old as --metadata-ttl".
#[test]
fn changes_of_others_are_seen_within_the_ttl() {
    let m = mounted!("changes_of_others_are_seen_within_the_ttl");
    assert!(fs::metadata(m.at("late")).is_err());
    block_on(m.place.put("late", "x")).unwrap();
    assert!(wait_for(SEEN, || fs::metadata(m.at("late")).is_ok()));
    block_on(m.place.put("late", "longer")).unwrap();
    assert!(wait_for(SEEN, || fs::metadata(m.at("late")).is_ok_and(|d| d.len() == 6)));
    block_on(m.place.delete("late")).unwrap();
    assert!(wait_for(SEEN, || fs::metadata(m.at("late")).is_err()));
    assert!(names(m.path()).is_empty());
}

/// C4: "On one mount a reader sees what was written before its read, uploaded or not, through any handle."
#[test]
fn readers_see_writes_before_they_are_uploaded() {
    let m = mounted!("readers_see_writes_before_they_are_uploaded");
    block_on(m.place.put("f", "0123456789")).unwrap();
    let writer = OpenOptions::new().write(true).open(m.at("f")).unwrap();
    let reader = File::open(m.at("f")).unwrap();
    writer.write_all_at(b"AB", 3).unwrap();
    let mut all = String::new();
    (&reader).read_to_string(&mut all).unwrap();
    assert_eq!(all, "012AB56789");
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "012AB56789");
    assert_eq!(block_on(m.place.get("f")).unwrap(), "0123456789", "not uploaded yet");
    drop(writer);
    assert_eq!(block_on(m.place.get("f")).unwrap(), "012AB56789");
}

/// C5: "Pages cached by the kernel are kept over an open() only if the object still has the ETag they came from."
#[test]
fn the_kernel_s_pages_outlive_an_open_of_the_same_version_alone() {
    let m = mounted!("the_kernel_s_pages_outlive_an_open_of_the_same_version_alone");
    let (old, new) = (pattern(1 << 20, 29), pattern(1 << 20, 31));
    block_on(m.place.put("f", old.clone())).unwrap();
    let asked_of_us = || {
        let counters = status(&m)["counters"].clone();
        let read =
            counters.as_array().unwrap().iter().find(|c| c["name"] == "fs_read_bytes").unwrap().clone();
        read["value"].as_u64().unwrap()
    };
    assert!(fs::read(m.at("f")).unwrap() == old);
    let once = asked_of_us();
    assert!(once >= 1 << 20);
    assert!(fs::read(m.at("f")).unwrap() == old);
    assert_eq!(asked_of_us(), once, "the kernel had them");
    block_on(m.place.put("f", new.clone())).unwrap();
    assert!(wait_for(SEEN, || fs::read(m.at("f")).unwrap() == new));
    assert!(asked_of_us() > once);
}

/// "read, mmap | yes" and "shared writable mmap | yes; msync and close save"
#[test]
fn a_shared_mapping_is_the_file() {
    let m = mounted!("a_shared_mapping_is_the_file");
    let mut model = pattern(3 << 20, 37);
    block_on(m.place.put("f", model.clone())).unwrap();
    let digest = python(
        &[
            "import mmap, sys, hashlib",
            "f = open(sys.argv[1], 'rb')",
            "with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:",
            "    print(hashlib.md5(mapped).hexdigest())",
        ],
        &[&m.at("f")],
    );
    assert_eq!(pailfs::s3::content_etag(&model).as_str(), digest.trim());
    // Written through the mapping, read through another descriptor, saved by msync and then by close alone.
    let said = python(
        &[
            "import mmap, os, sys",
            "fd = os.open(sys.argv[1], os.O_RDWR)",
            "mapped = mmap.mmap(fd, 0)",
            "mapped[1000000:1000005] = b'first'",
            "other = os.open(sys.argv[1], os.O_RDONLY)",
            "print(os.pread(other, 5, 1000000).decode())",
            "mapped.flush()",
            "os.fsync(fd)",
            "mapped[2000000:2000006] = b'second'",
            "mapped.close()",
            "os.close(fd)",
        ],
        &[&m.at("f")],
    );
    assert_eq!(said.trim(), "first");
    model[1_000_000..1_000_005].copy_from_slice(b"first");
    model[2_000_000..2_000_006].copy_from_slice(b"second");
    assert!(fs::read(m.at("f")).unwrap() == model);
    assert!(wait_for(SEEN, || block_on(m.place.get("f")).unwrap() == model));
}

/// "flock, fcntl locks | among the programs of one mount; not between mounts or hosts"
#[test]
fn locks_hold_among_the_programs_of_a_mount() {
    use rustix::fs::{FlockOperation, fcntl_lock, flock};
    let m = mounted!("locks_hold_among_the_programs_of_a_mount");
    fs::write(m.at("f"), b"x").unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(m.at("f")).unwrap();
    let (one, two) = (open(), open());
    flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = flock(&two, FlockOperation::NonBlockingLockExclusive).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::WOULDBLOCK);
    flock(&one, FlockOperation::Unlock).unwrap();
    flock(&two, FlockOperation::NonBlockingLockExclusive).unwrap();
    drop((one, two));
    // fcntl's belong to a process.
    let held = open();
    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let try_lock = [
        "import fcntl, sys",
        "f = open(sys.argv[1], 'r+')",
        "try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "except OSError: print('refused')",
        "else: print('locked')",
    ];
    assert_eq!(python(&try_lock, &[&m.at("f")]).trim(), "refused");
    let other = m.again(&[]);
    assert_eq!(python(&try_lock, &[&other.at("f")]).trim(), "locked");
    drop(held);
    assert_eq!(python(&try_lock, &[&m.at("f")]).trim(), "locked");
}

/// "write anywhere, append, truncate both ways | yes"
#[test]
fn random_writes_appends_and_truncates_equal_a_local_file() {
    let m = mounted!("random_writes_appends_and_truncates_equal_a_local_file");
    let mut model = pattern(18 << 20, 3);
    block_on(m.place.put("f", model.clone())).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(m.at("f")).unwrap();
    for (at, len, seed) in [(5usize, 10usize, 4u8), (17 << 20, 3 << 20, 5), (9 << 20, 1, 6)] {
        let bytes = pattern(len, seed);
        file.write_all_at(&bytes, at as u64).unwrap();
        if model.len() < at + len {
            model.resize(at + len, 0);
        }
        model[at..at + len].copy_from_slice(&bytes);
    }
    file.set_len(19 << 20).unwrap();
    model.resize(19 << 20, 0);
    file.set_len((19 << 20) + 100).unwrap();
    model.resize((19 << 20) + 100, 0);
    file.write_all_at(b"end", (19 << 20) + 200).unwrap();
    model.resize((19 << 20) + 200, 0);
    model.extend(b"end");
    drop(file);
    assert!(block_on(m.place.get("f")).unwrap() == model);
    let mut append = OpenOptions::new().append(true).open(m.at("f")).unwrap();
    append.write_all(b"!!").unwrap();
    drop(append);
    model.extend(b"!!");
    assert!(fs::read(m.at("f")).unwrap() == model);
    assert!(block_on(m.place.get("f")).unwrap() == model);
    // truncate(2), without a handle to close.
    for len in [7, 20] {
        python(
            &["import os, sys", "os.truncate(sys.argv[1], int(sys.argv[2]))"],
            &[&m.at("f"), Path::new(&len.to_string())],
        );
        model.resize(len, 0);
        assert_eq!(block_on(m.place.get("f")).unwrap(), model);
    }
}

/// "write anywhere, append, truncate both ways | ...; a change to a large object uploads the parts it touches and copies the others on the server"
#[test]
fn a_byte_changed_in_a_large_object_moves_few_bytes() {
    let m = mounted!("a_byte_changed_in_a_large_object_moves_few_bytes");
    let mut model = pattern(64 << 20, 7);
    fs::write(m.at("f"), &model).unwrap();
    let before = crate::harness::server::bytes_in(Server::Demo);
    let file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
    file.write_all_at(b"!", 30 << 20).unwrap();
    model[30 << 20] = b'!';
    drop(file);
    assert!(block_on(m.place.get("f")).unwrap() == model);
    let moved = crate::harness::server::bytes_in(Server::Demo) - before;
    assert!(moved <= (8 << 20) + (1 << 20), "{moved} bytes for one");
}

/// "O_EXCL, O_TRUNC, O_APPEND | yes; with O_EXCL the name is claimed by an empty object before `open` returns"
#[test]
fn open_flags_do_what_posix_says() {
    let m = mounted!("open_flags_do_what_posix_says");
    fs::write(m.at("f"), b"something").unwrap();
    let error = OpenOptions::new().write(true).create_new(true).open(m.at("f")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let lock = OpenOptions::new().write(true).create_new(true).open(m.at("lock")).unwrap();
    assert_eq!(block_on(m.place.get("lock")).unwrap(), "", "it is claimed before it is closed");
    drop(lock);
    drop(OpenOptions::new().write(true).truncate(true).open(m.at("f")).unwrap());
    assert_eq!(block_on(m.place.get("f")).unwrap(), "");
    let mut one = OpenOptions::new().append(true).open(m.at("f")).unwrap();
    let mut two = OpenOptions::new().append(true).open(m.at("f")).unwrap();
    one.write_all(b"1").unwrap();
    two.write_all(b"2").unwrap();
    one.write_all(b"3").unwrap();
    drop((one, two));
    assert_eq!(fs::read(m.at("f")).unwrap(), b"123");
    let direct = OpenOptions::new().read(true).custom_flags(0o40000).open(m.at("f"));
    if let Ok(mut direct) = direct {
        let mut all = Vec::new();
        direct.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"123");
    }
}

/// "rename a file | yes: ... over an existing file too"
#[test]
fn a_renamed_file_keeps_its_bytes_and_replaces_its_target() {
    let m = mounted!("a_renamed_file_keeps_its_bytes_and_replaces_its_target");
    fs::write(m.at("tmp"), b"new").unwrap();
    fs::write(m.at("final"), b"old").unwrap();
    let reader = File::open(m.at("final")).unwrap();
    fs::rename(m.at("tmp"), m.at("final")).unwrap();
    assert_eq!(fs::read(m.at("final")).unwrap(), b"new");
    assert_eq!(block_on(m.place.keys()).unwrap(), ["final"]);
    // Rename over an open file keeps the old contents readable.
    let mut old = String::new();
    (&reader).read_to_string(&mut old).unwrap();
    assert_eq!(old, "old");
    assert_eq!(fs::rename(m.at("none"), m.at("x")).unwrap_err().kind(), ErrorKind::NotFound);
}

/// The content type and metadata another tool gave an object survive its rename and its rewrite.
#[test]
fn attributes_survive_rename_and_rewrite() {
    let m = mounted!("attributes_survive_rename_and_rewrite");
    let attributes = Attributes {
        content_type: Some("text/x-odd".into()),
        metadata: [("owner".to_owned(), "ann".to_owned())].into(),
        ..Attributes::default()
    };
    let mut put = m.place.put_request("f", "text");
    put.attributes = attributes.clone();
    block_on(m.place.store.put(put)).unwrap();
    fs::rename(m.at("f"), m.at("g")).unwrap();
    OpenOptions::new().append(true).open(m.at("g")).unwrap().write_all(b" more").unwrap();
    let info = block_on(m.place.store.head(&m.place.bucket, "g", None)).unwrap();
    assert_eq!(info.attributes.content_type, attributes.content_type);
    assert_eq!(info.attributes.metadata, attributes.metadata);
    assert_eq!(info.size, 9);
}

/// T2: a file that is open and not saved is renamed, and goes on under its new name, where it is uploaded once.
#[test]
fn t02_an_open_file_is_renamed_and_goes_on() {
    let m = mounted!("t02_an_open_file_is_renamed_and_goes_on");
    let mut file = File::create(m.at("tmp")).unwrap();
    file.write_all(b"one").unwrap();
    fs::rename(m.at("tmp"), m.at("final")).unwrap();
    file.write_all(b" two").unwrap();
    drop(file);
    assert_eq!(block_on(m.place.keys()).unwrap(), ["final"]);
    assert_eq!(block_on(m.place.get("final")).unwrap(), "one two");
    // And one that S3 has already.
    let mut file = OpenOptions::new().append(true).open(m.at("final")).unwrap();
    file.write_all(b" three").unwrap();
    fs::rename(m.at("final"), m.at("last")).unwrap();
    file.write_all(b" four").unwrap();
    drop(file);
    assert_eq!(block_on(m.place.keys()).unwrap(), ["last"]);
    assert_eq!(fs::read(m.at("last")).unwrap(), b"one two three four");
}

/// "rename a directory | yes: its objects are copied in parallel"
#[test]
fn a_renamed_directory_takes_everything_along() {
    let m = mounted!("a_renamed_directory_takes_everything_along");
    fs::create_dir_all(m.at("d/sub")).unwrap();
    for i in 0..30 {
        fs::write(m.at(format!("d/sub/{i}")), format!("{i}")).unwrap();
    }
    fs::write(m.at("d/top"), b"top").unwrap();
    let mut open = OpenOptions::new().read(true).append(true).open(m.at("d/top")).unwrap();
    fs::rename(m.at("d"), m.at("e")).unwrap();
    assert!(fs::metadata(m.at("d")).is_err());
    assert_eq!(names(m.at("e/sub")).len(), 30);
    assert_eq!(fs::read(m.at("e/sub/17")).unwrap(), b"17");
    open.write_all(b"!").unwrap();
    drop(open);
    assert_eq!(block_on(m.place.get("e/top")).unwrap(), "top!");
    assert!(block_on(m.place.keys()).unwrap().iter().all(|k| k.starts_with("e/")));
    fs::create_dir(m.at("full")).unwrap();
    fs::write(m.at("full/x"), b"").unwrap();
    assert_eq!(errno(&fs::rename(m.at("e"), m.at("full")).unwrap_err()), rustix::io::Errno::NOTEMPTY);
    assert_eq!(errno(&fs::rename(m.at("e"), m.at("e/sub/in")).unwrap_err()), rustix::io::Errno::INVAL);
    fs::create_dir(m.at("hollow")).unwrap();
    fs::rename(m.at("e"), m.at("hollow")).unwrap();
    assert_eq!(fs::read(m.at("hollow/top")).unwrap(), b"top!");
}

/// "rename with RENAME_NOREPLACE / RENAME_EXCHANGE | yes / EINVAL"
#[test]
fn rename_flags_are_honoured_or_refused() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let m = mounted!("rename_flags_are_honoured_or_refused");
    fs::write(m.at("a"), b"a").unwrap();
    fs::write(m.at("b"), b"b").unwrap();
    let refused = renameat_with(CWD, m.at("a"), CWD, m.at("b"), RenameFlags::NOREPLACE);
    assert_eq!(refused.unwrap_err(), rustix::io::Errno::EXIST);
    let refused = renameat_with(CWD, m.at("a"), CWD, m.at("b"), RenameFlags::EXCHANGE);
    assert_eq!(refused.unwrap_err(), rustix::io::Errno::INVAL);
    renameat_with(CWD, m.at("a"), CWD, m.at("c"), RenameFlags::NOREPLACE).unwrap();
    assert_eq!(names(m.path()), ["b", "c"]);
}

/// "unlink while open | handles read and write on; what only S3 had is fetched first"
#[test]
fn an_unlinked_file_stays_readable_and_writable_to_its_last_close() {
    let m = mounted!("an_unlinked_file_stays_readable_and_writable_to_its_last_close");
    let bytes = pattern(3 << 20, 9);
    block_on(m.place.put("f", bytes.clone())).unwrap();
    let mut file = OpenOptions::new().read(true).write(true).open(m.at("f")).unwrap();
    fs::remove_file(m.at("f")).unwrap();
    assert!(block_on(m.place.keys()).unwrap().is_empty());
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    assert!(all == bytes);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(b"still").unwrap();
    // A new file of that name is another file.
    fs::write(m.at("f"), b"fresh").unwrap();
    let mut head = [0; 5];
    file.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(&head, b"still");
    drop(file);
    assert_eq!(block_on(m.place.get("f")).unwrap(), "fresh");
    // A scratch file: made, removed, written, and read back by a program that asks how long it is.
    let mut scratch =
        OpenOptions::new().create_new(true).read(true).write(true).open(m.at("scratch")).unwrap();
    fs::remove_file(m.at("scratch")).unwrap();
    scratch.write_all(&bytes).unwrap();
    assert_eq!(scratch.metadata().unwrap().len(), bytes.len() as u64);
    scratch.seek(SeekFrom::Start(0)).unwrap();
    let mut back = Vec::new();
    scratch.read_to_end(&mut back).unwrap();
    assert!(back == bytes);
    drop(scratch);
    // A pid file: made, removed, closed.
    let file = File::create(m.at("pid")).unwrap();
    fs::remove_file(m.at("pid")).unwrap();
    drop(file);
    assert_eq!(block_on(m.place.keys()).unwrap(), ["f"]);
}

/// "mkdir, rmdir | a marker is written and removed; rmdir of a directory with anything in it is ENOTEMPTY"
#[test]
fn directories_have_markers_and_are_removed_when_empty() {
    let m = mounted!("directories_have_markers_and_are_removed_when_empty");
    fs::create_dir(m.at("d")).unwrap();
    assert_eq!(block_on(m.place.keys()).unwrap(), ["d/"]);
    assert_eq!(fs::create_dir(m.at("d")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    block_on(m.place.put("d/theirs", "x")).unwrap();
    assert_eq!(errno(&fs::remove_dir(m.at("d")).unwrap_err()), rustix::io::Errno::NOTEMPTY);
    block_on(m.place.delete("d/theirs")).unwrap();
    fs::remove_dir(m.at("d")).unwrap();
    assert!(block_on(m.place.keys()).unwrap().is_empty());
    fs::write(m.at("f"), b"").unwrap();
    assert_eq!(errno(&fs::remove_dir(m.at("f")).unwrap_err()), rustix::io::Errno::NOTDIR);
}

/// "a directory whose last entry is removed | stays"
#[test]
fn a_directory_outlives_its_last_entry() {
    let m = mounted!("a_directory_outlives_its_last_entry");
    block_on(m.place.put("implicit/only", "x")).unwrap();
    block_on(m.place.put("other/sub/only", "x")).unwrap();
    fs::remove_file(m.at("implicit/only")).unwrap();
    assert!(fs::metadata(m.at("implicit")).unwrap().is_dir());
    fs::rename(m.at("other/sub"), m.at("moved")).unwrap();
    assert_eq!(block_on(m.place.keys()).unwrap(), ["implicit/", "moved/only", "other/"]);
    fs::remove_dir_all(m.at("moved")).unwrap();
    fs::remove_dir(m.at("implicit")).unwrap();
    assert_eq!(block_on(m.place.keys()).unwrap(), ["other/"]);
}

/// "chmod, chown, utimens | kept in S3, in s3fs's words" and "times | to the nanosecond where they were set"
#[test]
fn modes_and_times_are_kept() {
    let mut m = mounted!("modes_and_times_are_kept");
    fs::write(m.at("f"), b"x").unwrap();
    let file = File::open(m.at("f")).unwrap();
    fs::set_permissions(m.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    let then = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(then).unwrap();
    std::os::unix::fs::chown(m.at("f"), Some(12), Some(34)).unwrap();
    drop(file);
    let is_kept = |m: &Mounted| {
        let metadata = fs::metadata(m.at("f")).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!((metadata.uid(), metadata.gid()), (12, 34));
        assert_eq!(metadata.modified().unwrap(), then);
    };
    is_kept(&m);
    assert!(m.umount().success());
    let m = m.again(&[]);
    is_kept(&m);
    // A time that was set is that of other bytes then.
    OpenOptions::new().append(true).open(m.at("f")).unwrap().write_all(b"y").unwrap();
    let metadata = fs::metadata(m.at("f")).unwrap();
    assert!(metadata.modified().unwrap() > then && metadata.mode() & 0o7777 == 0o600);
    assert_eq!(fs::metadata(m.at("f")).unwrap().accessed().unwrap(), metadata.accessed().unwrap());
}

/// "symbolic links, FIFOs, sockets | yes, as s3fs has them"
#[test]
fn links_fifos_and_sockets_are_there_on_another_mount() {
    use std::os::unix::fs::FileTypeExt;
    let mut m = mounted!("links_fifos_and_sockets_are_there_on_another_mount");
    fs::write(m.at("f"), b"x").unwrap();
    std::os::unix::fs::symlink("f", m.at("l")).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, m.at("p"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(m.at("s")).unwrap());
    assert!(m.umount().success());
    let m = m.again(&[]);
    let type_of = |name: &str| fs::symlink_metadata(m.at(name)).unwrap().file_type();
    assert!(type_of("l").is_symlink() && type_of("p").is_fifo() && type_of("s").is_socket());
    assert_eq!(fs::read_link(m.at("l")).unwrap().to_str(), Some("f"));
    assert_eq!(fs::read(m.at("l")).unwrap(), b"x");
}

/// "setgid directories, sticky ones, umask, set-user-ID | as on a local disk"
#[test]
fn groups_and_privileges_go_as_on_a_local_disk() {
    let m = mounted!("groups_and_privileges_go_as_on_a_local_disk");
    fs::create_dir(m.at("d")).unwrap();
    std::os::unix::fs::chown(m.at("d"), None, Some(77)).unwrap();
    fs::set_permissions(m.at("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    fs::create_dir(m.at("d/sub")).unwrap();
    fs::write(m.at("d/f"), b"x").unwrap();
    let of = |name: &str| fs::metadata(m.at(name)).unwrap();
    assert_eq!((of("d/sub").gid(), of("d/sub").mode() & 0o2000, of("d/f").gid()), (77, 0o2000, 77));
    fs::set_permissions(m.at("d/f"), fs::Permissions::from_mode(0o6755)).unwrap();
    std::os::unix::fs::chown(m.at("d/f"), Some(5), None).unwrap();
    assert_eq!(of("d/f").mode() & 0o7777, 0o755);
}

/// "extended attributes | `user.*`, kept in the object's metadata"
#[test]
fn extended_attributes_are_kept() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    use rustix::io::Errno;
    let mut m = mounted!("extended_attributes_are_kept");
    fs::write(m.at("f"), b"x").unwrap();
    setxattr(m.at("f"), "user.any", b"value", XattrFlags::CREATE).unwrap();
    let large = setxattr(m.at("f"), "user.large", &[b'x'; 3000], XattrFlags::empty());
    assert_eq!(large.unwrap_err(), Errno::TOOBIG);
    setxattr(m.at("f"), "user.half", &[b'x'; 900], XattrFlags::CREATE).unwrap();
    let full = setxattr(m.at("f"), "user.more", &[b'x'; 900], XattrFlags::empty());
    assert_eq!(full.unwrap_err(), Errno::NOSPC);
    let acl = setxattr(m.at("f"), "system.posix_acl_access", b"\x02\0\0\0", XattrFlags::empty());
    assert_eq!(acl.unwrap_err(), Errno::OPNOTSUPP);
    assert!(m.umount().success());
    let m = m.again(&[]);
    let mut buffer = [0u8; 64];
    let len = getxattr(m.at("f"), "user.any", &mut buffer[..]).unwrap();
    assert_eq!(&buffer[..len], b"value");
    let len = getxattr(m.at("f"), "user.s3.etag", &mut buffer[..]).unwrap();
    assert_eq!(len, 32, "an MD5 in hexadecimal digits");
    let mut url = [0u8; 2048];
    let len = getxattr(m.at("f"), "user.s3.url", &mut url[..]).unwrap();
    let url = std::str::from_utf8(&url[..len]).unwrap();
    assert!(
        url.starts_with("http://127.0.0.1:") && url.contains("/f?") && url.contains("X-Amz-Expires=3600"),
        "{url}"
    );
    let dir = getxattr(m.path(), "user.s3.url", &mut buffer[..]);
    assert_eq!(dir.unwrap_err(), Errno::NODATA, "no object, no address");
}

/// "O_EXCL, O_TRUNC, O_APPEND | yes": a request whose answer was lost is sent again, and finds what it made itself.
#[test]
fn a_name_is_made_although_the_answer_was_lost_and_only_once() {
    let m = mounted!("a_name_is_made_although_the_answer_was_lost_and_only_once");
    let other = m.again(&[]);
    let lost =
        || faults(Server::Demo, &format!("op=PutObject,bucket={},nth=1,fault=lose-response", m.place.bucket));
    let exclusive = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
    {
        let _once = lost();
        exclusive(&m.at("file")).unwrap().write_all(b"mine").unwrap();
    }
    {
        let _once = lost();
        fs::create_dir(m.at("dir")).unwrap();
    }
    {
        let _once = lost();
        std::os::unix::fs::symlink("file", m.at("link")).unwrap();
    }
    assert_eq!(fs::read(m.at("link")).unwrap(), b"mine");
    for made in [
        exclusive(&other.at("file")).map(drop),
        fs::create_dir(other.at("dir")),
        std::os::unix::fs::symlink("file", other.at("link")),
    ] {
        assert_eq!(made.unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
}

/// "owner, permissions | ... `--umask`"
#[test]
fn the_umask_takes_permissions_from_what_says_nothing() {
    let Some(m) = Mounted::with(Server::Demo, "umask", &["--umask", "027", "--file-mode", "666"]) else {
        return;
    };
    let place = m.place.clone();
    block_on(place.put("theirs/f", "bytes")).unwrap();
    let mode = |path: &str| fs::metadata(m.at(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("theirs"), mode("theirs/f")), (0o750, 0o640));
    fs::write(m.at("own"), b"x").unwrap();
    fs::set_permissions(m.at("own"), fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(mode("own"), 0o666, "what it says itself stays");
}

/// "hard links, devices | EPERM"
#[test]
fn what_s3_cannot_hold_is_refused() {
    let m = mounted!("what_s3_cannot_hold_is_refused");
    fs::write(m.at("f"), b"x").unwrap();
    assert_eq!(errno(&fs::hard_link(m.at("f"), m.at("l")).unwrap_err()), rustix::io::Errno::PERM);
    let device = rustix::fs::mknodat(
        rustix::fs::CWD,
        m.at("p"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RWXU,
        rustix::fs::makedev(1, 3),
    );
    assert_eq!(device.unwrap_err(), rustix::io::Errno::PERM);
}

/// "O_TMPFILE | `EOPNOTSUPP`"
#[test]
fn a_file_without_a_name_is_not_made() {
    use rustix::fs::{Mode, OFlags, open};
    let m = mounted!("a_file_without_a_name_is_not_made");
    let made = open(m.path(), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR | Mode::WUSR);
    assert_eq!(made.unwrap_err(), rustix::io::Errno::OPNOTSUPP);
    let mut file = tempfile::tempfile_in(m.path()).unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0, "made and unlinked");
}

/// "inode numbers | the same in every mount"
#[test]
fn inode_numbers_are_the_same_on_another_mount() {
    let mut m = mounted!("inode_numbers_are_the_same_on_another_mount");
    fs::create_dir(m.at("d")).unwrap();
    for name in ["f", "d/f", "d/g"] {
        fs::write(m.at(name), b"x").unwrap();
    }
    let numbers = |m: &Mounted| ["f", "d", "d/f", "d/g"].map(|name| fs::metadata(m.at(name)).unwrap().ino());
    let before = numbers(&m);
    assert!(m.umount().success());
    let m = m.again(&[]);
    // Looked up in another order.
    fs::metadata(m.at("d/g")).unwrap();
    assert_eq!(numbers(&m), before);
}

/// "statfs | a large constant" and "st_blocks, st_nlink | the size in 512-byte blocks; 1, and 0 of an open file"
#[test]
fn sizes_and_space_make_sense_to_tools() {
    let m = mounted!("sizes_and_space_make_sense_to_tools");
    fs::write(m.at("f"), vec![1; 1025]).unwrap();
    let metadata = fs::metadata(m.at("f")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks(), metadata.nlink()), (1025, 3, 1));
    let space = rustix::fs::statvfs(m.path()).unwrap();
    assert!(space.f_bavail * space.f_frsize > 1 << 50);
    assert_eq!(space.f_namemax, 255);
}

/// "the largest file | 48.8 TiB"
#[test]
fn a_file_longer_than_an_object_may_be_is_refused() {
    use std::os::unix::fs::FileExt;
    let m = mounted!("a_file_longer_than_an_object_may_be_is_refused");
    let most = pailfs::s3::limits::OBJECT_MAX;
    let file = File::create(m.at("f")).unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    for refused in [file.write_all_at(b"x", most), file.set_len(most + 1)] {
        assert_eq!(errno(&refused.unwrap_err()), rustix::io::Errno::FBIG);
    }
    // All of it would be sent when it is saved.
    file.set_len(most).unwrap();
    assert_eq!(file.metadata().unwrap().len(), most);
    file.set_len(4).unwrap();
    drop(file);
    assert_eq!(fs::read(m.at("f")).unwrap(), b"kept");
}

/// NAMES.md: "Every key has exactly one path".
#[test]
fn odd_keys_are_reachable_and_never_break_a_listing() {
    let m = mounted!("odd_keys_are_reachable_and_never_break_a_listing");
    let long = "l".repeat(400);
    let keys = [
        "a//b",
        "foo",
        "foo/bar",
        "foo-x",
        "dot/./x",
        "dot/../y",
        "tail/",
        "/lead",
        "comma,name",
        "new\nline",
        "tab\t",
        "space at end ",
        "100%",
        "odd%~name",
        "8.2.2/x",
        "ünïcödé",
        &long,
    ];
    for key in keys {
        let body = if key.ends_with('/') { "marker with bytes" } else { key };
        block_on(m.place.put(key, body.to_owned())).unwrap();
    }
    let read = |path: &str| fs::read_to_string(m.at(path)).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    assert_eq!(read("a/%~0/b"), "a//b");
    assert_eq!(read("foo%~f"), "foo");
    assert_eq!(read("foo/bar"), "foo/bar");
    assert_eq!(read("dot/%~1/x"), "dot/./x");
    assert_eq!(read("dot/%~2/y"), "dot/../y");
    assert_eq!(read("tail/%~0"), "marker with bytes");
    assert_eq!(read("%~0/lead"), "/lead");
    assert_eq!(read("odd%~x25~name"), "odd%~name");
    assert_eq!(read(&format!("{}%~+/{}", "l".repeat(252), "l".repeat(148))), long);
    let mut found = 0;
    let mut dirs = vec![m.path()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else {
                assert!(entry.metadata().unwrap().len() > 0);
                found += 1;
            }
        }
    }
    assert_eq!(found, keys.len());
    // "Names that are not UTF-8 are EINVAL when made and ENOENT when looked up"
    use std::os::unix::ffi::OsStrExt;
    let bad = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    assert_eq!(errno(&File::create(m.at(bad)).unwrap_err()), rustix::io::Errno::INVAL);
    assert_eq!(fs::metadata(m.at(bad)).unwrap_err().kind(), ErrorKind::NotFound);
    let error = File::create(m.at("n".repeat(256))).unwrap_err();
    assert_eq!(errno(&error), rustix::io::Errno::NAMETOOLONG);
}

/// A directory of several pages: every name once, whatever changes meanwhile, at any cookie.
#[test]
fn a_listing_of_many_pages_is_whole_and_can_be_taken_up_anywhere() {
    let m = mounted!("a_listing_of_many_pages_is_whole_and_can_be_taken_up_anywhere");
    let place = &m.place;
    block_on(async {
        use futures::StreamExt;
        futures::stream::iter(0..2500)
            .for_each_concurrent(32, |i| async move {
                place.put(&format!("many/{i:05}"), "x").await.unwrap();
            })
            .await;
    });
    assert_eq!(names(m.at("many")).len(), 2500);
    let dir = rustix::fs::open(
        m.at("many"),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut first_pass = Vec::new();
    let mut reader = rustix::fs::RawDir::new(&dir, buffer.spare_capacity_mut());
    while let Some(entry) = reader.next() {
        let entry = entry.unwrap();
        first_pass.push((entry.file_name().to_owned(), entry.next_entry_cookie()));
    }
    assert_eq!(first_pass.len(), 2502);
    for at in [1usize, 2, 3, 1000, 1003, 2400] {
        rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(first_pass[at].1)).unwrap();
        let mut reader = rustix::fs::RawDir::new(&dir, buffer.spare_capacity_mut());
        let next = reader.next().unwrap().unwrap().file_name().to_owned();
        assert_eq!(next, first_pass[at + 1].0, "after entry {at}");
    }
    // A file made here is listed before it is uploaded, one removed here is not.
    let _open = File::create(m.at("many/zz-new")).unwrap();
    fs::remove_file(m.at("many/00000")).unwrap();
    let now = names(m.at("many"));
    assert!(now.contains(&"zz-new".to_owned()) && !now.contains(&"00000".to_owned()));
}

/// D2: "A failed upload is an error of close() or fsync(). The bytes stay readable on the mount ... and they are
/// tried again until they are saved."
#[test]
fn a_failed_upload_is_an_error_and_is_tried_again() {
    let m = mounted!("a_failed_upload_is_an_error_and_is_tried_again");
    let _faults =
        faults(Server::Demo, &format!("bucket={},op=PutObject,key=f,times=3,fault=denied", m.place.bucket));
    let mut file = File::create(m.at("f")).unwrap();
    file.write_all(b"precious").unwrap();
    assert_eq!(errno(&file.sync_all().unwrap_err()), rustix::io::Errno::ACCESS);
    assert_eq!(fs::read(m.at("f")).unwrap(), b"precious");
    drop(file);
    assert_eq!(fs::read(m.at("f")).unwrap(), b"precious");
    assert!(wait_for(Duration::from_secs(60), || block_on(m.place.get("f")).is_ok_and(|b| b == "precious")));
}

/// T6: an answer that is broken, short or an error never becomes file data.
#[test]
fn broken_answers_never_reach_a_reader() {
    let m = mounted!("broken_answers_never_reach_a_reader");
    let bytes = pattern(9 << 20, 11);
    block_on(m.place.put("f", bytes.clone())).unwrap();
    for fault in ["truncate:100000", "reset", "slowdown", "error:500"] {
        let rule = format!("bucket={},op=GetObject,times=2,fault={fault}", m.place.bucket);
        let _faults = faults(Server::Demo, &rule);
        fs::copy(m.at("f"), "/dev/null").unwrap();
        assert!(fs::read(m.at("f")).unwrap() == bytes, "{fault}");
        let mut put = m.place.put_request("f", bytes.clone());
        put.condition = Condition::Any;
        block_on(m.place.store.put(put)).unwrap();
    }
    assert_eq!(block_on(m.place.store.head(&m.place.bucket, "f", None)).unwrap().size, bytes.len() as u64);
}

/// 32 programs in one directory at once: every file is whole.
#[test]
fn parallel_writers_and_readers_do_not_mix() {
    let m = mounted!("parallel_writers_and_readers_do_not_mix");
    std::thread::scope(|scope| {
        for i in 0..32u8 {
            let path = m.at(format!("f{i}"));
            scope.spawn(move || {
                let bytes = pattern(100_000 + usize::from(i), i);
                fs::write(&path, &bytes).unwrap();
                assert!(fs::read(&path).unwrap() == bytes);
            });
        }
    });
    for i in 0..32u8 {
        assert!(block_on(m.place.get(&format!("f{i}"))).unwrap() == pattern(100_000 + usize::from(i), i));
    }
}

/// A server that stops answering: the call ends within --timeout, and the mount goes on when the server does.
#[test]
fn no_wait_is_unbounded_and_the_mount_recovers() {
    let m = mounted!("no_wait_is_unbounded_and_the_mount_recovers", "--timeout", "3s");
    let bytes = pattern(300_000, 13);
    block_on(m.place.put("f", bytes.clone())).unwrap();
    {
        let rule = format!("bucket={},op=GetObject,fault=stall", m.place.bucket);
        let _faults = faults(Server::Demo, &rule);
        let error = fs::read(m.at("f")).unwrap_err();
        let expected = [rustix::io::Errno::TIMEDOUT, rustix::io::Errno::IO];
        assert!(expected.contains(&errno(&error)), "{error}");
        let rule = format!("bucket={},op=HeadObject,fault=latency:1h", m.place.bucket);
        let _faults = faults(Server::Demo, &rule);
        assert!(fs::metadata(m.at("other")).is_err());
    }
    assert!(wait_for(SEEN, || fs::read(m.at("f")).is_ok_and(|read| read == bytes)));
}

/// T3 and lost answers: what the server did and did not say is found out, and nothing is written twice or lost.
#[test]
fn an_answer_that_is_lost_is_no_conflict_with_ourselves() {
    let m = mounted!("an_answer_that_is_lost_is_no_conflict_with_ourselves");
    for (op, len) in [("PutObject", 1000), ("CompleteMultipartUpload", 20 << 20)] {
        let bytes = pattern(len, 17);
        let rule = format!("bucket={},op={op},times=1,fault=lose-response", m.place.bucket);
        let _faults = faults(Server::Demo, &rule);
        fs::write(m.at(op), &bytes).unwrap();
        assert!(block_on(m.place.get(op)).unwrap() == bytes);
    }
    let keys = block_on(m.place.keys()).unwrap();
    assert_eq!(keys, ["CompleteMultipartUpload", "PutObject"], "no conflict copy of our own");
}

/// T31: a server that refuses checksums is served without, DeleteObjects too, and told once.
#[test]
fn t31_a_server_that_refuses_checksums_is_served_with_lesser_ones() {
    let m = mounted!("t31_a_server_that_refuses_checksums_is_served_with_lesser_ones");
    let rule = format!("bucket={},fault=refuse-checksums", m.place.bucket);
    let _faults = faults(Server::Demo, &rule);
    let large = pattern(20 << 20, 19);
    fs::write(m.at("small"), b"x").unwrap();
    fs::write(m.at("large"), &large).unwrap();
    assert!(fs::read(m.at("large")).unwrap() == large);
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/f"), b"y").unwrap();
    fs::rename(m.at("d"), m.at("e")).unwrap();
    assert_eq!(block_on(m.place.keys()).unwrap(), ["e/", "e/f", "large", "small"]);
    let (one_by_one, batches) = ["DeleteObject", "DeleteObjects"]
        .map(|operation| crate::harness::server::requests(Server::Demo, operation))
        .into();
    for i in 0..50 {
        fs::write(m.at(format!("e/{i}")), b"z").unwrap();
    }
    fs::remove_dir_all(m.at("e")).unwrap();
    assert!(crate::harness::server::requests(Server::Demo, "DeleteObjects") > batches);
    let one_by_one = crate::harness::server::requests(Server::Demo, "DeleteObject") - one_by_one;
    assert!(one_by_one < 10, "{one_by_one} deletes one by one");
    let told = m.log_text().matches("refuses a checksum").count();
    assert_eq!(told, 1, "{}", m.log_text());
}
