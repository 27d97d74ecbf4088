//! Uploads in parts that a killed process left are gone on with, begun anew or aborted; those of others are not touched.

use std::ffi::OsStr;
use std::time::Duration;

use pailfs::error::Kind;
use pailfs::fs::Durability;
use pailfs::s3::{Attributes, Store, Upload, When};
use pailfs::tree::ROOT;
use pailfs::write::CopySizes;
use pailfs::write::journal::{Journal, Owed};

use crate::client::{BUCKET, Client, REWRITE, until};
use crate::crash::{bytes, crash, journaled, runtime, snapshot};
use crate::harness::block_on;

const MIB: usize = 1 << 20;

async fn uploads(client: &Client) -> Vec<Upload> {
    let listed = client.store.list_uploads(BUCKET, "").await.unwrap();
    listed.into_iter().map(|unfinished| unfinished.upload).collect()
}

fn uploads_now(client: &Client) -> Vec<Upload> {
    futures::executor::block_on(uploads(client))
}

fn sent(client: &Client) -> usize {
    client.store.calls().iter().filter(|call| **call == "UploadPart").count()
}

/// A file that was written and not closed, with all of its four full parts in S3.
async fn parts_left(client: &Client) -> Vec<u8> {
    let body = bytes(4 * 8 * MIB + 777, 3);
    let file = client.open("f", REWRITE).await.unwrap();
    for (step, chunk) in body.chunks(MIB).enumerate() {
        client.fs.write(file.1, (step * MIB) as u64, chunk).await.unwrap();
    }
    until("parts have left", || client.stats.parts_ahead.value() == 4).await;
    body
}

/// D9: "Unfinished uploads in parts do not stay"
#[test]
fn an_upload_that_is_there_still_is_gone_on_with_and_one_that_is_not_is_begun_anew() {
    for (lost, sent_again) in [("nothing", 1), ("a part", 2), ("all", 5)] {
        block_on(async {
            let (client, disk) = journaled();
            let body = parts_left(&client).await;
            let upload = uploads(&client).await.remove(0);
            match lost {
                "a part" => {
                    drop(client.store.upload_part(&upload, 2, "other bytes".into(), None).await.unwrap())
                }
                // As a rule of the bucket does.
                "all" => client.store.abort_upload(&upload).await.unwrap(),
                _ => {}
            }
            client.store.clear_calls();
            let next = crash(&client, disk.path()).await;
            assert_eq!((next.taken.files, next.taken.kept), (1, 0));
            next.client.fs.flush_all().await.unwrap();
            assert!(client.object("f").await.unwrap() == body, "{lost}");
            assert_eq!(sent(&client), sent_again, "{lost}");
            assert_eq!(uploads(&client).await, []);
        });
    }
}

#[test]
fn an_upload_of_a_file_that_is_gone_is_aborted() {
    block_on(async {
        let (client, disk) = journaled();
        parts_left(&client).await;
        // The process ends when the name is gone, and the upload not yet.
        client.store.refuse("AbortMultipartUpload", Kind::Server, When::Before);
        client.unlink("f").await.unwrap();
        let disk = snapshot(disk.path());
        client.store.refuse_nothing();
        assert_eq!(uploads(&client).await.len(), 1);
        let next = crash(&client, disk.path()).await;
        assert_eq!(next.taken.files, 0);
        until("it is aborted", || uploads_now(&client).is_empty()).await;
        drop(next);
    });
}

/// The process is gone between S3's answer to CreateMultipartUpload and its note of the id. D9: "aborted if it is of the very
/// key and time, has no part, and is the only such one"
#[test]
fn an_upload_that_nobody_heard_of_is_aborted_in_its_time_and_no_other_ever() {
    for others in ["none", "with a part", "without a part", "long before"] {
        let disk = tempfile::tempdir().unwrap();
        let process = runtime();
        let (client, left, mine) = process.block_on(async {
            let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Close);
            if others == "long before" {
                // By the file's clock, which is the one that the journal has its times from.
                client.store.create_upload(BUCKET, "f", Attributes::default()).await.unwrap();
                client.clock.advance(Duration::from_secs(2 * 3600));
            }
            let file = client.open("f", REWRITE).await.unwrap();
            client.store.clear_calls();
            let held = client.store.hold("CreateMultipartUpload");
            for step in 0..20 {
                client.fs.write(file.1, (step * MIB) as u64, &bytes(MIB, 1)).await.unwrap();
            }
            until("an upload is begun", || client.store.calls().contains(&"CreateMultipartUpload")).await;
            let left = snapshot(disk.path());
            let mine = uploads(&client).await.pop().unwrap();
            held.add_permits(1);
            (client, left, mine)
        });
        // Nothing of it runs any more.
        drop(process);
        let open = Journal::look(left.path()).unwrap();
        assert!(
            open.iter().any(|owed| matches!(owed, Owed::Unheard { place, .. } if place.key == "f")),
            "{open:?}"
        );
        block_on(async {
            let held = client.store.hold("CreateMultipartUpload");
            held.add_permits(1_000);
            let foreign = if others.starts_with("with") {
                let theirs = client.store.create_upload(BUCKET, "f", Attributes::default()).await.unwrap();
                if others == "with a part" {
                    client.store.upload_part(&theirs, 1, "theirs".into(), None).await.unwrap();
                }
                Some(theirs)
            } else {
                None
            };
            // Within the hour nobody can tell.
            let next = crash(&client, left.path()).await;
            next.client.fs.flush_all().await.unwrap();
            assert!(uploads(&client).await.contains(&mine));
            client.clock.advance(Duration::from_secs(3700));
            let next = crash(&next.client, next.disk.path()).await;
            let there = uploads(&client).await;
            match others {
                "none" => assert_eq!(there, []),
                "with a part" => assert_eq!(there, [foreign.unwrap()]),
                // It is one of the two, or none of the time.
                _ => assert!(there.contains(&mine) && there.len() == 2, "{there:?}"),
            }
            assert_eq!(
                Journal::look(snapshot(next.disk.path()).path()).unwrap(),
                [],
                "it is looked for once"
            );
        });
    }
}

/// D9, of a rename: what is too large for one request is copied in parts, and the process is killed when S3 has some of them.
#[test]
fn the_upload_of_a_copy_in_parts_that_was_killed_is_aborted() {
    let sizes = CopySizes { whole_max: 8 << 20, part: 5 << 20 };
    let body = bytes(20 * MIB, 5);
    for (from, to) in [("f", "g"), ("d", "e")] {
        let below = |name: &str| if from == "d" { format!("{name}/f") } else { name.to_owned() };
        let disk = tempfile::tempdir().unwrap();
        let process = runtime();
        let (client, left) = process.block_on(async {
            let (client, _) = Client::new().again_copying(disk.path(), sizes);
            client.put_object(&below(from), &body).await;
            let held = client.store.hold("UploadPartCopy");
            let fs = client.fs.clone();
            let [from, to] = [from, to].map(OsStr::new);
            client.fs.lookup(ROOT, from).await.unwrap();
            let _renaming = tokio::spawn(async move { fs.rename(ROOT, from, ROOT, to, false).await });
            held.add_permits(2);
            until("parts are copied", || {
                client.store.calls().iter().filter(|call| **call == "UploadPartCopy").count() == 4
            })
            .await;
            assert_eq!(uploads(&client).await.len(), 1);
            (client, snapshot(disk.path()))
        });
        // Nothing of it runs any more.
        drop(process);
        block_on(async {
            client.store.hold("UploadPartCopy").add_permits(1_000);
            let (next, owed) = client.again_copying(left.path(), sizes);
            assert!(owed.iter().any(|owed| matches!(owed, Owed::Upload(_))), "{owed:?}");
            let taken = next.fs.take_up(owed).await;
            assert_eq!((taken.renames, taken.unfinished), (usize::from(from == "d"), 0));
            until("it is aborted", || uploads_now(&client).is_empty()).await;
            // A directory is moved to the end; a file stays where it was.
            let stays = below(if from == "d" { to } else { from });
            assert!(next.object(&stays).await.unwrap() == body);
            assert_eq!(next.keys().await, [stays]);
            assert_eq!(Journal::look(snapshot(left.path()).path()).unwrap(), []);
        });
    }
}
