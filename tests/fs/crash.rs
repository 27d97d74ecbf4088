//! What a killed process had taken is there in the next one: every write that had returned, and nothing else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pailfs::error::Kind;
use pailfs::fs::{Durability, Hole, OpenFlags, Space, TakenUp};
use pailfs::s3::{Store, When};
use pailfs::write::journal::Owed;
use proptest::prelude::*;

use crate::client::{BUCKET, Client, READ, REWRITE, WRITE, kind_of, until};
use crate::harness::block_on;

const MIB: usize = 1 << 20;

pub fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| ((at / 4096) as u8).wrapping_mul(31).wrapping_add(at as u8).wrapping_add(seed))
        .collect()
}

/// The disk as it is at this moment, holes and all.
pub fn snapshot(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .arg(from.join("."))
        .arg(to.path())
        .status()
        .unwrap();
    assert!(copied.success());
    to
}

pub struct Crashed {
    pub client: Client,
    owed: usize,
    kept: usize,
    pub taken: TakenUp,
    pub disk: tempfile::TempDir,
}

/// The process is gone at this moment, and a new one begins on the same bucket and disk.
pub async fn crash(client: &Client, disk: &Path) -> Crashed {
    let disk = snapshot(disk);
    let (next, owed) = client.again_with_journal(disk.path(), Durability::Close);
    let taken = next.fs.take_up(owed).await;
    Crashed { client: next, owed: taken.files, kept: taken.kept, taken, disk }
}

pub fn journaled() -> (Client, tempfile::TempDir) {
    let disk = tempfile::tempdir().unwrap();
    let (client, owed) = Client::new().again_with_journal(disk.path(), Durability::Close);
    assert!(owed.is_empty());
    (client, disk)
}

#[test]
fn writes_that_had_returned_are_there_though_the_file_was_never_closed() {
    block_on(async {
        let (client, disk) = journaled();
        client.put_object("d/old", b"0123456789").await;
        client.put_object("d/whole", b"as it was").await;
        let old = client.open("d/old", WRITE).await.unwrap();
        client.fs.write(old.1, 2, b"XX").await.unwrap();
        client.fs.write(old.1, 12, b"end").await.unwrap();
        let new = client.open("d/new", REWRITE).await.unwrap();
        client.fs.write(new.1, 0, b"new bytes").await.unwrap();
        client.truncate_open(new.0, new.1, 3).await.unwrap();
        let whole = client.open("d/whole", READ).await.unwrap();
        let crashed = crash(&client, disk.path()).await;
        assert_eq!((crashed.owed, crashed.kept), (2, 0));
        let next = &crashed.client;
        // They show before they are in S3.
        assert_eq!(next.read("d/old").await.unwrap(), b"01XX456789\0\0end");
        assert_eq!(next.read("d/new").await.unwrap(), b"new");
        next.fs.flush_all().await.unwrap();
        assert_eq!(next.object("d/old").await.unwrap(), b"01XX456789\0\0end");
        assert_eq!(next.object("d/new").await.unwrap(), b"new");
        assert_eq!(next.object("d/whole").await.unwrap(), b"as it was");
        // Nothing is owed any more, and nothing is left on the disk.
        let again = crash(next, crashed.disk.path()).await;
        assert_eq!((again.owed, again.kept), (0, 0));
        assert_eq!(std::fs::read_dir(again.disk.path().join("staging")).unwrap().count(), 0);
        client.close(whole).await.unwrap();
    });
}

#[test]
fn what_was_saved_removed_or_renamed_is_not_brought_back() {
    block_on(async {
        let (client, disk) = journaled();
        client.write("saved", b"saved").await.unwrap();
        let removed = client.open("removed", REWRITE).await.unwrap();
        client.fs.write(removed.1, 0, b"removed").await.unwrap();
        client.unlink("removed").await.unwrap();
        client.mkdir("d").await.unwrap();
        let moved = client.open("d/before", REWRITE).await.unwrap();
        client.fs.write(moved.1, 0, b"moved").await.unwrap();
        client.rename("d/before", "d/after").await.unwrap();
        client.rename("d", "e").await.unwrap();
        let crashed = crash(&client, disk.path()).await;
        assert_eq!((crashed.owed, crashed.kept), (1, 0));
        crashed.client.fs.flush_all().await.unwrap();
        assert_eq!(crashed.client.keys().await, ["e/", "e/after", "saved"]);
        assert_eq!(crashed.client.object("e/after").await.unwrap(), b"moved");
    });
}

#[test]
fn parts_that_had_left_are_completed_or_sent_again_whatever_thedisk_kept_of_them() {
    for short in [false, true] {
        block_on(async {
            let disk = tempfile::tempdir().unwrap();
            let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Close);
            let (client, _) = if short { client.shortly(disk.path()) } else { (client, Vec::new()) };
            let mut body = bytes(4 * 8 * MIB + 777, 3);
            let file = client.open("f", REWRITE).await.unwrap();
            for (step, chunk) in body.chunks(MIB).enumerate() {
                client.fs.write(file.1, (step * MIB) as u64, chunk).await.unwrap();
            }
            until("parts have left", || client.stats.parts_ahead.value() == 4).await;
            // One of them is of older bytes.
            if !short {
                body[9 * MIB] ^= 1;
                client.fs.write(file.1, 9 * MIB as u64, &body[9 * MIB..=9 * MIB]).await.unwrap();
            }
            let crashed = crash(&client, disk.path()).await;
            assert_eq!((crashed.owed, crashed.kept), (1, 0));
            crashed.client.fs.flush_all().await.unwrap();
            assert!(crashed.client.object("f").await.unwrap() == body);
            let uploads = crashed.client.store.list_uploads(BUCKET, "").await.unwrap();
            assert!(uploads.is_empty(), "{uploads:?}");
        });
    }
}

/// Two mounts of one bucket are gone before they had saved the one file, and its bytes, that each of them wrote: their disks.
async fn two_gone(at: &Client, one: (&str, &[u8]), two: (&str, &[u8])) -> [tempfile::TempDir; 2] {
    let mut disks = Vec::new();
    for (path, bytes) in [one, two] {
        let disk = tempfile::tempdir().unwrap();
        let (client, _) = at.again_with_journal(disk.path(), Durability::Close);
        if let Some((dir, _)) = path.split_once('/') {
            client.mkdir(dir).await.unwrap();
        }
        let file = client.open(path, WRITE).await.unwrap();
        client.fs.write(file.1, 0, bytes).await.unwrap();
        disks.push(snapshot(disk.path()));
        at.delete_object("d/").await;
    }
    disks.try_into().unwrap()
}

/// D5: "of what two of them wrote under one name both are in S3"
#[test]
fn one_mount_has_what_all_before_it_owed_and_what_two_wrote_under_one_name_is_in_both() {
    for (name, existing) in [("other", None), ("f", None), ("f", Some(&b"0123456789"[..]))] {
        block_on(async {
            let origin = Client::new();
            let disks = two_gone(&origin, ("f", b"one"), (name, b"other")).await;
            if let Some(bytes) = existing {
                origin.put_object("f", bytes).await;
            }
            let (next, owed) = origin.again_with_journals(disks[0].path(), &[disks[1].path().to_owned()]);
            next.store.refuse("PutObject", Kind::Unreachable, When::Before);
            let taken = next.fs.take_up(owed).await;
            assert_eq!((taken.files, taken.kept), (2, 0));
            assert_eq!(next.fs.pending().len(), 2);
            next.store.refuse_nothing();
            next.fs.flush_all().await.unwrap_or_else(|error| assert_eq!(error.kind(), Kind::Stale));
            assert!(next.fs.pending().is_empty());
            let mut bodies = Vec::new();
            for key in next.keys().await {
                let body = next.object(&key).await.unwrap();
                assert_eq!(next.read(&key).await.unwrap(), body, "{key}");
                bodies.push(body);
            }
            bodies.sort();
            let mut expected: Vec<Vec<u8>> = vec![b"one".to_vec(), b"other".to_vec()];
            expected.extend(existing.map(<[u8]>::to_vec));
            expected.sort();
            assert_eq!(bodies, expected, "{name}");
            drop(next);
            let (_, owed) = origin.again_with_journals(disks[0].path(), &[disks[1].path().to_owned()]);
            assert!(owed.is_empty(), "{owed:?}");
        });
    }
}

#[test]
fn of_a_file_and_a_directory_of_one_name_one_waits_for_the_mount_after() {
    for paths in [["d", "d/x"], ["d/x", "d"]] {
        block_on(async {
            let origin = Client::new();
            let disks = two_gone(&origin, (paths[0], b"one"), (paths[1], b"other")).await;
            let others = [disks[1].path().to_owned()];
            for kept in [1, 0] {
                let (next, owed) = origin.again_with_journals(disks[0].path(), &others);
                // Nothing is saved before both were looked at.
                next.store.refuse("PutObject", Kind::Unreachable, When::Before);
                let taken = next.fs.take_up(owed).await;
                assert_eq!((taken.files, taken.kept), (1, kept));
                next.store.refuse_nothing();
                next.fs.flush_all().await.unwrap();
            }
            assert_eq!(origin.object(paths[0]).await.unwrap(), b"one");
            assert_eq!(origin.object(paths[1]).await.unwrap(), b"other");
        });
    }
}

/// Two files are removed, so that the next ones are of a row, and are not waited for.
async fn begin_row(client: &Client) {
    for name in ["row-1", "row-2"] {
        client.put_object(name, b"x").await;
        client.unlink(name).await.unwrap();
    }
}

#[test]
fn names_removed_in_a_row_stay_removed_and_what_others_wrote_since_is_not_deleted() {
    for conditions in [true, false] {
        block_on(async {
            let (client, disk) = journaled();
            let names: Vec<String> = (0..10).map(|i| format!("d/e/{i}")).collect();
            for name in &names {
                client.put_object(name, b"bytes").await;
            }
            begin_row(&client).await;
            for name in &names {
                client.unlink(name).await.unwrap();
            }
            assert_eq!(client.keys().await.len(), 10, "S3 has not heard of it");
            client.delete_object("d/e/1").await;
            client.put_object("d/e/2", b"theirs").await;
            client.store.ignore_conditions(!conditions);
            let crashed = crash(&client, disk.path()).await;
            // Not one is seen meanwhile, but the one that is another's now.
            assert_eq!(crashed.client.list("d/e").await.unwrap(), ["2"]);
            crashed.client.fs.flush_all().await.unwrap();
            assert_eq!(crashed.client.keys().await, ["d/e/2"]);
            assert_eq!(crashed.client.read("d/e/2").await.unwrap(), b"theirs");
            // It is done once: who makes it again, with the very same bytes, keeps it.
            client.put_object("d/e/3", b"bytes").await;
            let again = crash(&crashed.client, crashed.disk.path()).await;
            again.client.fs.flush_all().await.unwrap();
            assert_eq!(again.client.keys().await, ["d/e/2", "d/e/3"]);
        });
    }
}

#[test]
fn a_name_made_again_after_its_removal_in_a_row_outlives_a_kill() {
    block_on(async {
        let (client, disk) = journaled();
        client.put_object("f", b"bytes").await;
        begin_row(&client).await;
        client.unlink("f").await.unwrap();
        client.write("f", b"bytes").await.unwrap();
        let crashed = crash(&client, disk.path()).await;
        crashed.client.fs.flush_all().await.unwrap();
        assert_eq!(crashed.client.object("f").await.unwrap(), b"bytes");
    });
}

#[test]
fn what_cannot_be_asked_for_stays_owed_to_the_mount_after_the_next() {
    block_on(async {
        let (client, disk) = journaled();
        client.put_object("f", b"bytes").await;
        begin_row(&client).await;
        client.unlink("f").await.unwrap();
        client.store.refuse("HeadObject", Kind::Unreachable, When::Before);
        let crashed = crash(&client, disk.path()).await;
        client.store.refuse_nothing();
        assert_eq!(crashed.client.read("f").await.unwrap(), b"bytes", "it is there, and everybody sees it");
        let again = crash(&crashed.client, crashed.disk.path()).await;
        again.client.fs.flush_all().await.unwrap();
        assert_eq!(again.client.object("f").await, None);
    });
}

/// A file that S3 has an older version of loses its name: whenever the process is gone, it does not come back as a conflict
/// copy, nor as the old object.
#[test]
fn the_removal_of_an_owed_file_is_done_or_not_begun_wherever_it_is_killed() {
    for (open, answered) in [(false, false), (false, true), (true, false), (true, true)] {
        block_on(async {
            let disk = tempfile::tempdir().unwrap();
            let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Journal);
            client.mkdir("d").await.unwrap();
            client.put_object("d/f", b"before").await;
            client.store.refuse("PutObject", Kind::Server, When::Before);
            let file = client.open("d/f", WRITE).await.unwrap();
            client.fs.write(file.1, 0, b"BEF").await.unwrap();
            if !open {
                client.close(file).await.unwrap();
            }
            let before = snapshot(disk.path());
            // As the kernel holds what it is about to remove.
            client.walk("d/f").await.unwrap();
            let held = client.store.hold("DeleteObject");
            let dir = client.walk("d").await.unwrap().ino;
            let removing = client.fs.clone();
            client.store.clear_calls();
            let removal = tokio::spawn(async move { removing.unlink(dir, OsStr::new("f")).await });
            until("S3 deletes it", || {
                assert!(!removal.is_finished(), "{:?}", client.store.calls());
                client.store.calls().contains(&"DeleteObject")
            })
            .await;
            let during = snapshot(disk.path());
            held.add_permits(1000);
            removal.await.unwrap().unwrap();
            // Until then it is not saved behind either.
            client.store.refuse_nothing();
            let after = snapshot(disk.path());
            let next = async |disk: &tempfile::TempDir| {
                let (next, owed) = client.again_with_journal(disk.path(), Durability::Close);
                next.fs.take_up(owed).await;
                next.fs.flush_all().await.unwrap();
                (next.keys().await, next.object("d/f").await)
            };
            if !answered {
                // As it was before S3 got the request.
                client.put_object("d/f", b"before").await;
            }
            assert_eq!(next(&during).await, (vec!["d/".to_owned()], None), "{open} {answered}");
            assert_eq!(next(&after).await, (vec!["d/".to_owned()], None));
            client.put_object("d/f", b"before").await;
            assert_eq!(next(&before).await.1.unwrap(), b"BEFore");
        });
    }
}

/// What had the old name for it is an empty object, which nobody may find there once the file has its new one.
#[test]
fn a_rename_of_a_file_whose_name_was_claimed_is_done_or_not_begun_wherever_it_is_killed() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let client = Client::new().saving_after(disk.path(), Duration::from_secs(24 * 3600), false);
        client.put_object("f", b"what it replaces").await;
        let file = client.open("new", OpenFlags { exclusive: true, ..WRITE }).await.unwrap();
        client.fs.write(file.1, 0, b"bytes").await.unwrap();
        client.close(file).await.unwrap();
        let before = segment(disk.path()).1.len();
        client.rename("new", "f").await.unwrap();
        let (_, records) = segment(disk.path());
        // The claim's delete waits for company, so it is not done yet.
        let frames = (before..records.len()).filter(|at| records[*at..].starts_with(FRAME_MARK));
        let cuts: Vec<usize> = frames.chain([records.len()]).collect();
        assert!(cuts.len() > 1, "{cuts:?}");
        for cut in cuts {
            let left = snapshot(disk.path());
            std::fs::write(segment(left.path()).0, &records[..cut]).unwrap();
            // S3 as it was until then.
            client.put_object("new", b"").await;
            client.put_object("f", b"what it replaces").await;
            let (next, owed) = client.again_with_journal(left.path(), Durability::Journal);
            next.fs.take_up(owed).await;
            let (names, bytes) = (next.list("").await.unwrap(), next.read("f").await.unwrap());
            next.fs.flush_all().await.unwrap();
            assert_eq!(next.object("f").await.unwrap(), bytes, "cut at {cut}");
            assert_eq!(next.keys().await, names, "cut at {cut}");
            match cut == before {
                true => {
                    assert_eq!(
                        (names, &bytes[..]),
                        (vec!["f".into(), "new".into()], &b"what it replaces"[..])
                    );
                    assert_eq!(next.object("new").await.unwrap(), b"bytes");
                }
                false => assert_eq!((names, &bytes[..]), (vec!["f".into()], &b"bytes"[..]), "cut at {cut}"),
            }
        }
    });
}

/// What each frame of a segment begins with.
pub const FRAME_MARK: &[u8] = b"\xf1jrn";

/// The journal's segment in a state directory.
pub fn segment(state: &Path) -> (PathBuf, Vec<u8>) {
    let names = std::fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    let is_segment =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("journal-"));
    let path = names.filter(is_segment).max().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

#[test]
fn a_removal_that_failed_leaves_the_owed_file_to_the_next_mount() {
    block_on(async {
        let (client, disk) = journaled();
        client.put_object("f", b"before").await;
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"BEF").await.unwrap();
        client.store.protect("f");
        assert_eq!(kind_of(client.unlink("f").await), Kind::AccessDenied);
        let crashed = crash(&client, disk.path()).await;
        crashed.client.fs.flush_all().await.unwrap();
        assert_eq!(crashed.client.object("f").await.unwrap(), b"BEFore");
    });
}

/// The process is gone between S3's answer and the journal's note of it.
#[test]
fn a_save_whose_answer_was_never_noted_is_no_conflict_with_oneself() {
    for (len, complete) in [(5 * MIB, "PutObject"), (20 * MIB, "CompleteMultipartUpload")] {
        block_on(async {
            let (client, disk) = journaled();
            client.put_object("f", b"before").await;
            let body = bytes(len, 4);
            let file = client.open("f", REWRITE).await.unwrap();
            for (step, chunk) in body.chunks(MIB).enumerate() {
                client.fs.write(file.1, (step * MIB) as u64, chunk).await.unwrap();
            }
            // S3 has done it, and we never hear of it.
            client.store.refuse(complete, Kind::TimedOut, When::After);
            client.store.refuse("HeadObject", Kind::TimedOut, When::Before);
            let _ = client.fs.fsync(file.1).await;
            client.store.refuse_nothing();
            let crashed = crash(&client, disk.path()).await;
            crashed.client.fs.flush_all().await.unwrap();
            assert!(crashed.client.object("f").await.unwrap() == body);
            assert_eq!(crashed.client.keys().await, ["f"], "no conflict copy");
        });
    }
}

/// The same with more written before it is killed: what S3 has is ours, and older than what is owed.
#[test]
fn an_earlier_save_that_nobody_heard_of_is_gone_on_from() {
    for killed in [true, false] {
        block_on(async {
            let (client, disk) = journaled();
            client.put_object("f", &bytes(100_000, 1)).await;
            let mut body = bytes(100_000, 1);
            let file = client.open("f", WRITE).await.unwrap();
            client.fs.write(file.1, 500, b"first").await.unwrap();
            body[500..505].copy_from_slice(b"first");
            client.store.refuse("PutObject", Kind::TimedOut, When::After);
            client.store.refuse("HeadObject", Kind::TimedOut, When::Before);
            assert_eq!(kind_of(client.fs.fsync(file.1).await), Kind::TimedOut);
            client.store.refuse_nothing();
            client.fs.write(file.1, 50_000, b"second").await.unwrap();
            body[50_000..50_006].copy_from_slice(b"second");
            let next = if killed {
                crash(&client, disk.path()).await.client
            } else {
                client.close(file).await.unwrap();
                client
            };
            assert!(next.read("f").await.unwrap() == body);
            next.fs.flush_all().await.unwrap();
            assert!(next.object("f").await.unwrap() == body);
            assert_eq!(next.keys().await, ["f"], "no conflict with ourselves");
        });
    }
}

#[test]
fn another_client_s_version_is_not_overwritten_by_what_was_owed() {
    block_on(async {
        let (client, disk) = journaled();
        client.put_object("f", b"before").await;
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"BEF").await.unwrap();
        client.put_object("f", b"theirs").await;
        let crashed = crash(&client, disk.path()).await;
        assert_eq!(crashed.owed, 1);
        // It fails here, or has failed already where it was saved in the background.
        let _ = crashed.client.fs.flush_all().await;
        assert!(crashed.client.fs.pending().is_empty());
        assert_eq!(crashed.client.object("f").await.unwrap(), b"theirs");
        let keys = crashed.client.keys().await;
        let copy = keys.iter().find(|key| key.contains(".conflict-")).expect("a conflict copy");
        assert_eq!(crashed.client.object(copy).await.unwrap(), b"BEFirs");
    });
}

#[test]
fn a_journaled_close_returns_before_s3_has_it_and_fsync_does_not() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Journal);
        client.store.refuse("PutObject", Kind::Server, When::Before);
        client.write("f", b"bytes").await.unwrap();
        assert_eq!(client.object("f").await, None);
        assert_eq!(client.read("f").await.unwrap(), b"bytes");
        let crashed = crash(&client, disk.path()).await;
        client.store.refuse_nothing();
        assert_eq!(crashed.owed, 1);
        crashed.client.fs.flush_all().await.unwrap();
        assert_eq!(crashed.client.object("f").await.unwrap(), b"bytes");
    });
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Journal);
        let file = client.open("f", REWRITE).await.unwrap();
        client.fs.write(file.1, 0, b"bytes").await.unwrap();
        client.fs.fsync(file.1).await.unwrap();
        assert_eq!(client.object("f").await.unwrap(), b"bytes");
        client.close(file).await.unwrap();
        // Written ten times while it waits: few uploads.
        client.store.refuse("PutObject", Kind::Server, When::Before);
        for round in 0..10 {
            client.write("g", format!("round {round}").as_bytes()).await.unwrap();
        }
        client.write("gone", b"gone").await.unwrap();
        client.rename("gone", "moved").await.unwrap();
        client.store.refuse_nothing();
        client.store.clear_calls();
        client.fs.flush_all().await.unwrap();
        assert_eq!(client.object("g").await.unwrap(), b"round 9");
        assert_eq!(client.object("moved").await.unwrap(), b"gone");
        let puts = client.store.calls().iter().filter(|call| **call == "PutObject").count();
        assert!(puts <= 5, "{puts} puts");
        let copies = client.store.calls().iter().filter(|call| **call == "CopyObject").count();
        assert!(copies <= 1, "{copies} copies");
    });
}

/// D6: "of a directory, that the files closed in it are there".
#[test]
fn fsync_of_a_directory_waits_for_what_was_closed_in_it() {
    const NEVER: Duration = Duration::from_secs(24 * 3600);
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let client = Client::new().saving_after(disk.path(), NEVER, false);
        client.mkdir("d").await.unwrap();
        let dir = client.walk("d").await.unwrap().ino;
        client.mkdir("d/sub").await.unwrap();
        for name in ["d/a", "d/b", "d/sub/c", "e"] {
            client.write(name, b"bytes").await.unwrap();
        }
        let open = client.open("d/open", REWRITE).await.unwrap();
        client.fs.write(open.1, 0, b"bytes").await.unwrap();
        client.store.refuse("PutObject", Kind::AccessDenied, When::Before);
        assert_eq!(kind_of(client.fs.fsyncdir(dir).await), Kind::AccessDenied);
        client.store.refuse_nothing();
        client.fs.fsyncdir(dir).await.unwrap();
        assert_eq!(client.keys().await, ["d/", "d/a", "d/b", "d/sub/"]);
        client.close(open).await.unwrap();
        client.fs.fsyncdir(dir).await.unwrap();
        assert_eq!(client.keys().await, ["d/", "d/a", "d/b", "d/open", "d/sub/"]);
        assert_eq!(client.fs.pending().len(), 2);
    });
}

/// D6: "a loss of power does not lose them either": of small files all that is synced is the journal.
#[test]
fn what_closing_small_files_has_acknowledged_is_in_the_journal_alone() {
    const NEVER: Duration = Duration::from_secs(24 * 3600);
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let client = Client::new().saving_after(disk.path(), NEVER, false);
        client.put_object("old", b"0123456789").await;
        client.write("whole", b"bytes").await.unwrap();
        let pieces = client.open("pieces", REWRITE).await.unwrap();
        client.fs.write(pieces.1, 0, b"0123456789").await.unwrap();
        client.fs.write(pieces.1, 5_000, b"end").await.unwrap();
        client.truncate_open(pieces.0, pieces.1, 5_001).await.unwrap();
        client.truncate_open(pieces.0, pieces.1, 5_003).await.unwrap();
        client.close(pieces).await.unwrap();
        let old = client.open("old", WRITE).await.unwrap();
        client.fs.write(old.1, 4, b"XX").await.unwrap();
        client.close(old).await.unwrap();
        let large = bytes(200_000, 3);
        client.write("large", &large).await.unwrap();
        let left = snapshot(disk.path());
        for staging in std::fs::read_dir(left.path().join("staging")).unwrap().flatten() {
            if staging.metadata().unwrap().len() < 100_000 {
                std::fs::remove_file(staging.path()).unwrap();
            }
        }
        let (next, owed) = client.again_with_journal(left.path(), Durability::Close);
        let taken = next.fs.take_up(owed).await;
        assert_eq!((taken.files, taken.kept), (4, 0));
        next.fs.flush_all().await.unwrap();
        assert_eq!(next.object("whole").await.unwrap(), b"bytes");
        let mut expected = b"0123456789".to_vec();
        expected.resize(5_003, 0);
        expected[5_000] = b'e';
        assert_eq!(next.object("pieces").await.unwrap(), expected);
        assert_eq!(next.object("old").await.unwrap(), b"0123XX6789");
        assert_eq!(next.object("large").await.unwrap(), large);
    });
}

/// D6: "written again, renamed or removed before its turn came ... costs no upload of what it was".
#[test]
fn what_is_changed_again_soon_costs_no_upload() {
    const NEVER: Duration = Duration::from_secs(24 * 3600);
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let client = Client::new().saving_after(disk.path(), NEVER, false);
        for round in 0..10 {
            client.write("often", format!("round {round}").as_bytes()).await.unwrap();
            client.write(".often.swp", b"for a moment").await.unwrap();
            client.unlink(".often.swp").await.unwrap();
        }
        client.write("part", b"whole").await.unwrap();
        client.rename("part", "whole").await.unwrap();
        let file = client.open("awaited", REWRITE).await.unwrap();
        client.fs.write(file.1, 0, b"bytes").await.unwrap();
        client.close(file).await.unwrap();
        let asks = |client: &Client| {
            let calls = client.store.calls();
            calls
                .into_iter()
                .filter(|call| !call.starts_with("List") && !call.starts_with("Head"))
                .collect::<Vec<_>>()
        };
        assert_eq!(asks(&client), [] as [&str; 0]);
        // Whoever asks for it does not wait.
        let file = client.open("awaited", WRITE).await.unwrap();
        client.fs.fsync(file.1).await.unwrap();
        client.close(file).await.unwrap();
        assert_eq!(asks(&client), ["PutObject"]);
        client.fs.flush_all().await.unwrap();
        assert_eq!(asks(&client), ["PutObject"; 3]);
        assert_eq!(client.keys().await, ["awaited", "often", "whole"]);
        assert_eq!(client.object("often").await.unwrap(), b"round 9");
    });
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let client = Client::new().saving_after(disk.path(), Duration::from_millis(20), false);
        client.write("f", b"bytes").await.unwrap();
        until("its time has come", || client.fs.pending().is_empty()).await;
        assert_eq!(client.object("f").await.unwrap(), b"bytes");
    });
    block_on(async {
        // A short disk does not wait for it.
        let disk = tempfile::tempdir().unwrap();
        let client = Client::new().saving_after(disk.path(), NEVER, true);
        client.write("f", b"bytes").await.unwrap();
        let writing = client.open("large", REWRITE).await.unwrap();
        for at in 0..40 {
            client.fs.write(writing.1, at << 18, &[7; 1 << 18]).await.unwrap();
        }
        until("room was made", || client.store.calls().contains(&"PutObject")).await;
        client.close(writing).await.unwrap();
    });
}

/// Files that are saved behind go in their order, and the one that somebody waits for before them.
#[test]
fn what_is_saved_behind_goes_first_once_somebody_waits_for_it() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let first = Client::new();
        const READERS: usize = 64;
        for i in 0..READERS {
            first.put_object(&format!("z{i:02}"), &[7; 256 << 10]).await;
        }
        let (client, _) = first.again_with_journal(disk.path(), Durability::Journal);
        let (gets, puts) = (client.store.hold("GetObject"), client.store.hold("PutObject"));
        let readers = futures::future::join_all((0..READERS).map(|i| {
            let client = &client;
            async move { client.read(&format!("z{i:02}")).await.unwrap().len() }
        }));
        let writer = async {
            until("every request carries bytes", || first.stats.requests_of("GetObject") == 64).await;
            for name in ["a", "b", "c"] {
                client.write(name, b"bytes").await.unwrap();
            }
            let file = client.open("c", WRITE).await.unwrap();
            let fsync = client.fs.fsync(file.1);
            let one_goes = async {
                let all_wait = async {
                    while client.fs.view().await.transfers.waiting < 3 {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(60), all_wait).await.expect("all three wait");
                assert_eq!(first.stats.requests_of("PutObject"), READERS as u64);
                gets.add_permits(1);
                until("one goes", || first.stats.requests_of("PutObject") > READERS as u64).await;
                assert_eq!(client.keys().await[0], "c");
                puts.add_permits(1_000);
                gets.add_permits(1_000);
            };
            let (saved, ()) = futures::join!(fsync, one_goes);
            saved.unwrap();
            client.close(file).await.unwrap();
            client.fs.flush_all().await.unwrap();
            assert_eq!(client.object("a").await.unwrap(), b"bytes");
        };
        futures::join!(readers, writer);
    });
}

/// One file, a byte array beside it, and a crash after any number of steps.
#[derive(Clone, Debug)]
enum Op {
    Write(u32, u16),
    Cut(u32),
    Zero(u32, u16),
    Copy(u32, u32, u16),
    Fsync,
    Close,
    Rename,
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u32..40_000, 1u16..9_000).prop_map(|(at, len)| Op::Write(at, len)),
        2 => (0u32..50_000).prop_map(Op::Cut),
        1 => (0u32..40_000, 1u16..9_000).prop_map(|(at, len)| Op::Zero(at, len)),
        1 => (0u32..5_000, 0u32..40_000, 1u16..5_000).prop_map(|(from, to, len)| Op::Copy(from, to, len)),
        1 => Just(Op::Fsync),
        1 => Just(Op::Close),
        1 => Just(Op::Rename),
        2 => Just(Op::Crash),
    ]
}

/// A process: what runs in it ends with it.
struct Process {
    runtime: tokio::runtime::Runtime,
    client: Client,
    disk: tempfile::TempDir,
    /// The file's inode and handle.
    open: (pailfs::tree::Ino, u64),
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn run(durability: Durability, ops: &[Op]) -> Result<(), TestCaseError> {
    let fail = |error: pailfs::error::Error| TestCaseError::fail(error.report());
    let names = ["f", "g"];
    let source = bytes(10_000, 9);
    let mut at = 0;
    // A file of which nothing was written is not owed.
    let mut model = b"begin".to_vec();
    let mut process = {
        let (runtime, disk) = (runtime(), tempfile::tempdir().unwrap());
        let (client, open) = runtime.block_on(async {
            let (client, _) = Client::new().again_with_journal(disk.path(), durability);
            client.put_object("source", &source).await;
            let open = client.open(names[at], REWRITE).await.map_err(fail)?;
            client.fs.write(open.1, 0, b"begin").await.map_err(fail)?;
            Ok::<_, TestCaseError>((client, open))
        })?;
        Process { runtime, client, disk, open }
    };
    for (step, op) in ops.iter().enumerate() {
        if matches!(op, Op::Crash) {
            let disk = snapshot(process.disk.path());
            let next = runtime();
            let (client, open) = next.block_on(async {
                let (client, owed) = process.client.again_with_journal(disk.path(), durability);
                prop_assert_eq!(client.fs.take_up(owed).await.kept, 0);
                let open = client.open(names[at], WRITE).await.map_err(fail)?;
                Ok((client, open))
            })?;
            // Nothing of the one before ran meanwhile, and nothing of it will.
            let before = std::mem::replace(&mut process, Process { runtime: next, client, disk, open });
            let Process { runtime, client, disk, .. } = before;
            drop((runtime, client, disk));
        } else {
            let Process { runtime, client, open, .. } = &mut process;
            runtime.block_on(apply(client, open, &names, &mut at, &mut model, &source, step, op))?;
        }
        let Process { runtime, client, open, .. } = &process;
        let shown = runtime.block_on(client.read_all(open.1)).map_err(fail)?;
        prop_assert!(shown == model, "after step {}: {} bytes instead of {}", step, shown.len(), model.len());
        prop_assert!(client.fs.seek(open.1, 0, Hole::No).is_ok());
    }
    let Process { runtime, client, open, .. } = &process;
    runtime.block_on(async {
        client.close(*open).await.map_err(fail)?;
        client.fs.flush_all().await.map_err(fail)?;
        let object = client.object(names[at]).await;
        prop_assert!(object.as_ref() == Some(&model), "in S3: {:?}", object.map(|bytes| bytes.len()));
        prop_assert_eq!(client.object(names[1 - at]).await, None);
        let copies = client.keys().await.into_iter().filter(|key| key.contains(".conflict-")).count();
        prop_assert_eq!(copies, 0);
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)]
async fn apply(
    client: &Client,
    open: &mut (pailfs::tree::Ino, u64),
    names: &[&str; 2],
    at: &mut usize,
    model: &mut Vec<u8>,
    source: &[u8],
    step: usize,
    op: &Op,
) -> Result<(), TestCaseError> {
    let fail = |error: pailfs::error::Error| TestCaseError::fail(error.report());
    let mut put = |to: usize, data: &[u8]| {
        model.resize(model.len().max(to + data.len()), 0);
        model[to..to + data.len()].copy_from_slice(data);
    };
    match op {
        Op::Write(to, len) => {
            let data = bytes(usize::from(*len), step as u8);
            client.fs.write(open.1, u64::from(*to), &data).await.map_err(fail)?;
            put(*to as usize, &data);
        }
        Op::Cut(len) => {
            client.truncate_open(open.0, open.1, u64::from(*len)).await.map_err(fail)?;
            model.resize(*len as usize, 0);
        }
        Op::Zero(from, len) => {
            let space = Space { zero: true, keep_size: false };
            client.fs.fallocate(open.1, u64::from(*from), u64::from(*len), space).await.map_err(fail)?;
            put(*from as usize, &vec![0; usize::from(*len)]);
        }
        Op::Copy(from, to, len) => {
            let reader = client.open("source", READ).await.map_err(fail)?;
            let (here, there) = ((reader.1, u64::from(*from)), (open.1, u64::from(*to)));
            let copied = client.fs.copy_range(here, there, u64::from(*len)).await.map_err(fail)?;
            client.close(reader).await.map_err(fail)?;
            put(*to as usize, &source[*from as usize..*from as usize + copied as usize]);
        }
        Op::Fsync => client.fs.fsync(open.1).await.map_err(fail)?,
        Op::Close => {
            client.close(*open).await.map_err(fail)?;
            *open = client.open(names[*at], WRITE).await.map_err(fail)?;
        }
        Op::Rename => {
            client.rename(names[*at], names[1 - *at]).await.map_err(fail)?;
            *at = 1 - *at;
        }
        Op::Crash => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn whenever_it_crashes_every_write_that_had_returned_is_there(
        ops in proptest::collection::vec(op(), 1..25),
        journal in any::<bool>(),
    ) {
        let durability = if journal { Durability::Journal } else { Durability::Close };
        run(durability, &ops)?;
    }
}

#[test]
fn what_is_not_whole_is_kept_and_told() {
    block_on(async {
        let (client, disk) = journaled();
        let file = client.open("f", REWRITE).await.unwrap();
        client.fs.write(file.1, 0, &bytes(10_000, 5)).await.unwrap();
        let broken = snapshot(disk.path());
        for staged in std::fs::read_dir(broken.path().join("staging")).unwrap().flatten() {
            std::fs::File::options().write(true).open(staged.path()).unwrap().set_len(5_000).unwrap();
        }
        let (next, owed) = client.again_with_journal(broken.path(), Durability::Close);
        assert!(matches!(&owed[..], [Owed::File(file)] if file.damage.is_some()), "{owed:?}");
        let taken = next.fs.take_up(owed).await;
        assert_eq!((taken.files, taken.kept), (0, 1));
        next.fs.flush_all().await.unwrap();
        assert_eq!(next.object("f").await, None, "nothing short is made of it");
    });
}
