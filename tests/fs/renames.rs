//! A directory whose rename was killed is whole under its new name after the next mount.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use pailfs::error::Kind;
use pailfs::s3::When;
use pailfs::tree::ROOT;
use pailfs::write::journal::{Journal, Moving, Owed, Place, Record};

use crate::client::{BUCKET, Client, REWRITE, WRITE, until};
use crate::crash::{bytes, crash, journaled, snapshot};
use crate::harness::block_on;

const MIB: usize = 1 << 20;
const FILES: usize = 8;
/// Large enough to be uploaded in parts: its copy has another version than it has.
const LARGE: usize = 20 * MIB;

/// A directory with small files, a large one, one that is changed and not saved, and one that S3 has nothing of.
async fn fill(client: &Client) {
    client.mkdir("d").await.unwrap();
    for i in 0..FILES {
        client.put_object(&format!("d/sub/{i}"), &bytes(100, i as u8)).await;
    }
    client.write("d/large", &bytes(LARGE, 9)).await.unwrap();
    client.put_object("d/changed", &bytes(100, 100)).await;
    let changed = client.open("d/changed", WRITE).await.unwrap();
    client.fs.write(changed.1, 0, b"XX").await.unwrap();
    let fresh = client.open("d/fresh", REWRITE).await.unwrap();
    client.fs.write(fresh.1, 0, b"fresh").await.unwrap();
}

fn contents() -> Vec<(String, Vec<u8>)> {
    let mut changed = bytes(100, 100);
    changed[..2].copy_from_slice(b"XX");
    let mut all: Vec<(String, Vec<u8>)> =
        (0..FILES).map(|i| (format!("e/sub/{i}"), bytes(100, i as u8))).collect();
    all.push(("e/large".into(), bytes(LARGE, 9)));
    all.push(("e/changed".into(), changed));
    all.push(("e/fresh".into(), b"fresh".to_vec()));
    all.push(("e/".into(), Vec::new()));
    all.sort();
    all
}

async fn in_s3(client: &Client) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for key in client.keys().await {
        let bytes = client.object(&key).await.unwrap();
        all.push((key, bytes));
    }
    all
}

/// Renames `d` to `e` and is killed when S3 has done this for all of it, and has not answered. What the disk was then.
async fn killed_during(
    client: &Client,
    disk: &Path,
    operation: &'static str,
    calls: usize,
) -> tempfile::TempDir {
    let held = client.store.hold(operation);
    client.store.clear_calls();
    let fs = client.fs.clone();
    let rename =
        tokio::spawn(async move { fs.rename(ROOT, OsStr::new("d"), ROOT, OsStr::new("e"), false).await });
    let count = || client.store.calls().iter().filter(|call| **call == operation).count();
    until("S3 has done it", || count() == calls).await;
    let left = snapshot(disk);
    rename.abort();
    assert!(rename.await.is_err(), "it was under way");
    held.add_permits(1_000_000);
    left
}

#[test]
fn wherever_it_is_killed_the_directory_is_whole_under_its_new_name() {
    // Which of the objects S3 had copied, or deleted, by then: every third, counted from here; or all, or none.
    for (operation, calls) in [("CopyObject", FILES + 3), ("DeleteObjects", 1)] {
        for done in 0..5 {
            block_on(async {
                let (client, disk) = journaled();
                fill(&client).await;
                let disk = killed_during(&client, disk.path(), operation, calls).await;
                for i in 0..FILES {
                    match operation {
                        "CopyObject" if done == 4 || i % 3 == done => {
                            client.delete_object(&format!("e/sub/{i}")).await
                        }
                        "DeleteObjects" if done == 4 || i % 3 == done => {
                            client.put_object(&format!("d/sub/{i}"), &bytes(100, i as u8)).await;
                        }
                        _ => {}
                    }
                }
                client.store.clear_calls();
                let next = crash(&client, disk.path()).await;
                assert_eq!((next.taken.renames, next.taken.left, next.taken.files), (1, 0, 2));
                let fetched = client.store.calls().iter().filter(|call| **call == "GetObject").count();
                // Only where nobody heard which version the copy of the large one is.
                let compared = if operation == "CopyObject" { 2 * LARGE.div_ceil(8 * MIB) } else { 0 };
                // The changed one may be on its way, for which what is unchanged of it is fetched.
                assert!((compared..=compared + 1).contains(&fetched), "{fetched}");
                assert_eq!(next.client.list("").await.unwrap(), ["e/"]);
                next.client.fs.flush_all().await.unwrap();
                assert!(in_s3(&client).await == contents(), "{operation} {done}: {:?}", client.keys().await);
                let again = crash(&next.client, next.disk.path()).await;
                assert_eq!(again.taken, pailfs::fs::TakenUp::default(), "it is done once");
            });
        }
    }
}

#[test]
fn what_others_have_changed_meanwhile_stays_where_it_is_and_nothing_is_lost() {
    block_on(async {
        let (client, disk) = journaled();
        fill(&client).await;
        let disk = killed_during(&client, disk.path(), "CopyObject", FILES + 3).await;
        // Three that were not copied by then, and of one more another client takes the new name.
        for i in 0..4 {
            client.delete_object(&format!("e/sub/{i}")).await;
        }
        client.put_object("d/sub/0", b"theirs").await;
        client.delete_object("d/sub/1").await;
        client.put_object("e/sub/2", b"theirs too").await;
        client.put_object("d/more", b"theirs as well").await;
        let next = crash(&client, disk.path()).await;
        assert_eq!((next.taken.renames, next.taken.left), (1, 3));
        next.client.fs.flush_all().await.unwrap();
        let mut expected = contents();
        expected.retain(|(key, _)| !["e/sub/0", "e/sub/1", "e/sub/2"].contains(&key.as_str()));
        for (key, content) in [
            ("d/sub/0", b"theirs".to_vec()),
            ("d/sub/2", bytes(100, 2)),
            ("e/sub/2", b"theirs too".to_vec()),
            ("d/more", b"theirs as well".to_vec()),
        ] {
            expected.push((key.to_owned(), content));
        }
        expected.sort();
        assert!(in_s3(&client).await == expected, "{:?}", client.keys().await);
        assert_eq!(crash(&next.client, next.disk.path()).await.taken.renames, 0);
    });
}

#[test]
fn a_rename_that_cannot_be_finished_now_is_by_the_mount_after_the_next() {
    for refused in ["ListObjectsV2", "CopyObject", "DeleteObjects"] {
        block_on(async {
            let (client, disk) = journaled();
            fill(&client).await;
            let disk = killed_during(&client, disk.path(), "CopyObject", FILES + 3).await;
            client.delete_object("e/sub/0").await;
            client.store.refuse(refused, Kind::Unreachable, When::Before);
            let next = crash(&client, disk.path()).await;
            assert_eq!((next.taken.renames, next.taken.unfinished), (0, 1));
            let _ = next.client.fs.flush_all().await;
            assert!(next.client.fs.pending().is_empty());
            let disk = snapshot(next.disk.path());
            drop(next);
            client.store.refuse_nothing();
            let next = crash(&client, disk.path()).await;
            assert_eq!((next.taken.renames, next.taken.unfinished), (1, 0));
            next.client.fs.flush_all().await.unwrap();
            // What was owed of its files could be saved, under the old name that they had then.
            let objects = in_s3(&client).await;
            for (key, content) in contents() {
                let before = key.replace("e/", "d/");
                let is_it = |object: &(String, Vec<u8>)| {
                    (object.0 == key || object.0 == before) && object.1 == content
                };
                assert!(objects.iter().any(is_it), "{key}: {:?}", client.keys().await);
                let is_owed = key == "e/changed" || key == "e/fresh";
                assert!(is_owed || !objects.iter().any(|object| object.0 == before && key != "e/"), "{key}");
            }
        });
    }
}

#[test]
fn a_rename_that_ended_is_not_begun_again() {
    block_on(async {
        // Well.
        let (client, disk) = journaled();
        fill(&client).await;
        client.rename("d", "e").await.unwrap();
        client.put_object("d/sub/0", &bytes(100, 0)).await;
        let next = crash(&client, disk.path()).await;
        assert_eq!(next.taken.renames, 0);
        assert!(client.keys().await.contains(&"d/sub/0".to_owned()));
    });
    block_on(async {
        // By an error, which took back what it had done.
        let (client, disk) = journaled();
        fill(&client).await;
        client.store.fail_nth(12, Kind::AccessDenied, When::Before);
        assert!(client.rename("d", "e").await.is_err());
        assert_eq!(crash(&client, disk.path()).await.taken.renames, 0);
    });
    block_on(async {
        // Before all of it was written down, so that nothing had moved.
        let (client, _) = journaled();
        client.put_object("d/0", b"0").await;
        let disk = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(disk.path(), "a test").unwrap();
        let place = |key: &str| Place { bucket: BUCKET.into(), key: key.into() };
        let etag = client.store_etag("d/0").await;
        let objects = vec![Moving { rest: "0".into(), etag, size: 1, made: None }];
        let id = pailfs::write::journal::IntentId(journal.fresh_id());
        let record = Record::Renaming { id, from: place("d/"), to: place("e/"), objects, begun: false };
        journal.append(&record).unwrap();
        drop(journal);
        assert!(matches!(&Journal::look(disk.path()).unwrap()[..], [Owed::Rename(rename)] if !rename.begun));
        let next = crash(&client, disk.path()).await;
        assert_eq!((next.taken.renames, client.keys().await), (0, vec!["d/0".to_owned()]));
    });
}

/// Renames `new` over `old`, which was changed and not saved, and is killed once S3 has done this. What is there then.
async fn replaced_and_killed(operation: &'static str, large: bool) -> (Client, tempfile::TempDir) {
    let disk = tempfile::tempdir().unwrap();
    let client = Client::new().saving_after(disk.path(), Duration::from_secs(24 * 3600), false);
    client.put_object("old", &bytes(1_000, 1)).await;
    client.write("new", &bytes(if large { LARGE } else { 2_000 }, 2)).await.unwrap();
    client.fs.flush_all().await.unwrap();
    let old = client.open("old", WRITE).await.unwrap();
    client.fs.write(old.1, 10, b"changed").await.unwrap();
    client.close(old).await.unwrap();
    let held = client.store.hold(operation);
    client.store.clear_calls();
    let fs = client.fs.clone();
    let (from, to) = (OsStr::new("new"), OsStr::new("old"));
    let rename = tokio::spawn(async move { fs.rename(ROOT, from, ROOT, to, false).await });
    until("S3 has done it", || client.store.calls().contains(&operation)).await;
    let left = snapshot(disk.path());
    rename.abort();
    assert!(rename.await.is_err(), "it was under way");
    held.add_permits(1_000);
    (client, left)
}

/// D5: "what was renamed is under its new name", and what it replaced is nowhere, not in a conflict copy either.
#[test]
fn a_rename_over_a_changed_file_is_not_undone_by_what_was_not_saved_of_that() {
    for (operation, large) in [("CopyObject", false), ("DeleteObject", false), ("DeleteObject", true)] {
        block_on(async {
            let (client, left) = replaced_and_killed(operation, large).await;
            for _ in 0..2 {
                let next = crash(&client, left.path()).await;
                assert_eq!((next.taken.files, next.taken.kept), (0, 0), "{operation}");
                next.client.fs.flush_all().await.unwrap();
                let content = bytes(if large { LARGE } else { 2_000 }, 2);
                assert!(client.object("old").await.unwrap() == content, "{operation}");
                let mut keys = client.keys().await;
                keys.retain(|key| key != "new");
                assert_eq!(keys, ["old"], "{operation}");
            }
        });
    }
}

#[test]
fn a_rename_that_failed_leaves_what_was_not_saved_of_the_file_it_was_to_replace() {
    let mut changed = bytes(1_000, 1);
    changed[10..17].copy_from_slice(b"changed");
    for operation in ["CopyObject", "DeleteObject"] {
        block_on(async {
            let disk = tempfile::tempdir().unwrap();
            let client = Client::new().saving_after(disk.path(), Duration::from_secs(24 * 3600), false);
            client.put_object("old", &bytes(1_000, 1)).await;
            client.put_object("new", &bytes(2_000, 2)).await;
            let old = client.open("old", WRITE).await.unwrap();
            client.fs.write(old.1, 10, b"changed").await.unwrap();
            client.close(old).await.unwrap();
            client.store.refuse(operation, Kind::AccessDenied, When::Before);
            client.rename("new", "old").await.unwrap_err();
            client.store.refuse_nothing();
            let next = crash(&client, disk.path()).await;
            let _ = next.client.fs.flush_all().await;
            let found = in_s3(&client).await;
            // What was written is there, over the bytes of the version it was written over, where S3 has them still.
            let is_it = |content: &[u8]| match operation {
                "CopyObject" => content == changed,
                _ => content.get(10..17) == Some(b"changed"),
            };
            assert!(found.iter().any(|(_, content)| is_it(content)), "{operation}");
            assert!(found.iter().any(|(_, content)| *content == bytes(2_000, 2)), "{operation}");
        });
    }
}
