//! Names that go while bytes are unsaved, while a commit is under way, or while another client acts.

use std::ffi::OsStr;

use pailfs::error::Kind;
use pailfs::s3::When;
use pailfs::tree::ROOT;

use crate::client::{Client, READ, WRITE, kind_of, let_others_run, until};
use crate::harness::block_on;

/// The conflict copies in the bucket, with their bytes.
async fn copies(client: &Client) -> Vec<Vec<u8>> {
    let mut copies = Vec::new();
    for key in client.keys().await.into_iter().filter(|key| key.contains(".conflict-")) {
        copies.extend(client.object(&key).await);
    }
    copies
}

fn pending(client: &Client) -> Vec<String> {
    client.fs.pending().into_iter().map(|pending| pending.path).collect()
}

#[test]
fn a_failed_unlink_leaves_the_unsaved_bytes_of_a_writer_to_be_saved_at_close() {
    for kind in [Kind::AccessDenied, Kind::Server] {
        block_on(async {
            let client = Client::new();
            client.put_object("f", b"0123456789").await;
            let file = client.open("f", WRITE).await.unwrap();
            client.fs.write(file.1, 2, b"XX").await.unwrap();
            client.store.refuse("DeleteObject", kind, When::Before);
            assert_eq!(kind_of(client.unlink("f").await), kind);
            client.store.refuse_nothing();
            assert_eq!(pending(&client), ["f"]);
            assert_eq!(client.read("f").await.unwrap(), b"01XX456789");
            client.close(file).await.unwrap();
            assert_eq!(client.object("f").await.unwrap(), b"01XX456789");
            assert!(pending(&client).is_empty());
        });
    }
}

#[test]
fn an_unlink_whose_answer_was_lost_loses_no_unsaved_byte() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"0123456789").await;
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 2, b"XX").await.unwrap();
        client.store.refuse("DeleteObject", Kind::TimedOut, When::After);
        assert_eq!(kind_of(client.unlink("f").await), Kind::TimedOut);
        client.store.refuse_nothing();
        assert_eq!(client.read_all(file.1).await.unwrap(), b"01XX456789", "though S3 has it no more");
        assert_eq!(kind_of(client.close(file).await), Kind::Stale);
        assert_eq!(copies(&client).await, [b"01XX456789"]);
    });
}

#[test]
fn a_failed_rename_leaves_what_it_was_to_replace_as_it_was() {
    for (operation, kind) in
        [("CopyObject", Kind::AccessDenied), ("HeadObject", Kind::Server), ("CopyObject", Kind::Server)]
    {
        block_on(async {
            let client = Client::new();
            client.put_object("source", b"source").await;
            client.put_object("target", b"0123456789").await;
            let writer = client.open("target", WRITE).await.unwrap();
            let reader = client.open("target", READ).await.unwrap();
            client.stat("source").await.unwrap();
            client.fs.write(writer.1, 2, b"XX").await.unwrap();
            client.store.refuse(operation, kind, When::Before);
            assert_eq!(kind_of(client.rename("source", "target").await), kind);
            client.store.refuse_nothing();
            assert_eq!(pending(&client), ["target"]);
            assert_eq!(client.read_all(reader.1).await.unwrap(), b"01XX456789");
            client.close(writer).await.unwrap();
            client.close(reader).await.unwrap();
            assert_eq!(client.object("target").await.unwrap(), b"01XX456789");
            assert_eq!(client.object("source").await.unwrap(), b"source");
        });
    }
}

#[test]
fn a_rename_that_copies_and_cannot_delete_keeps_what_the_replaced_file_had() {
    block_on(async {
        let client = Client::new();
        client.put_object("source", b"source").await;
        client.put_object("target", b"0123456789").await;
        let writer = client.open("target", WRITE).await.unwrap();
        client.fs.write(writer.1, 2, b"XX").await.unwrap();
        client.store.refuse("DeleteObject", Kind::AccessDenied, When::Before);
        assert_eq!(kind_of(client.rename("source", "target").await), Kind::AccessDenied);
        client.store.refuse_nothing();
        assert_eq!(client.read_all(writer.1).await.unwrap(), b"01XX456789");
        assert_eq!(kind_of(client.close(writer).await), Kind::Stale);
        assert_eq!(copies(&client).await, [b"01XX456789"], "over the bytes it was written over");
        assert_eq!(client.read("target").await.unwrap(), b"source");
        assert_eq!(client.read("source").await.unwrap(), b"source");
    });
}

#[test]
fn a_file_removed_by_another_client_while_it_is_changed_ends_in_a_conflict_copy() {
    for looked_up in [false, true] {
        block_on(async {
            let client = Client::new();
            client.put_object("d/f", b"0123456789").await;
            let file = client.open("d/f", WRITE).await.unwrap();
            client.fs.write(file.1, 2, b"XX").await.unwrap();
            client.delete_object("d/f").await;
            client.pass_ttl();
            if looked_up {
                // Neither the name nor its directory is in S3 any more.
                assert_eq!(client.stat("d/f").await.unwrap().size, 10);
                assert_eq!(pending(&client), ["d/f"]);
            }
            assert_eq!(kind_of(client.close(file).await), Kind::Stale);
            assert_eq!(copies(&client).await, [b"\0\0XX\0\0\0\0\0\0"]);
            assert!(pending(&client).is_empty());
            assert_eq!(kind_of(client.stat("d/f").await), Kind::NotFound);
        });
    }
}

#[test]
fn a_large_file_whose_base_is_removed_ends_in_a_conflict_copy() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", &vec![7; 24 << 20]).await;
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 9 << 20, b"XX").await.unwrap();
        client.delete_object("f").await;
        assert_eq!(kind_of(client.close(file).await), Kind::Stale);
        let copies = copies(&client).await;
        let mut expected = vec![0; 24 << 20];
        expected[9 << 20..(9 << 20) + 2].copy_from_slice(b"XX");
        assert!(copies == [expected]);
        assert!(client.store.calls().contains(&"UploadPartCopy"));
    });
}

#[test]
fn bytes_written_after_the_name_was_found_absent_are_kept() {
    for directory_too in [false, true] {
        block_on(async {
            let client = Client::new();
            client.put_object("d/f", b"base").await;
            if !directory_too {
                client.put_object("d/other", b"").await;
            }
            let file = client.open("d/f", WRITE).await.unwrap();
            client.delete_object("d/f").await;
            client.pass_ttl();
            assert_eq!(kind_of(client.stat("d/f").await), Kind::NotFound);
            client.fs.write(file.1, 0, b"mine").await.unwrap();
            assert_eq!(pending(&client), ["d/f"]);
            client.store.refuse("PutObject", Kind::Server, When::Before);
            assert_eq!(kind_of(client.fs.flush_all().await), Kind::Server);
            client.store.refuse_nothing();
            assert_eq!(kind_of(client.close(file).await), Kind::Stale);
            assert_eq!(copies(&client).await, [b"mine"]);
            client.fs.flush_all().await.unwrap();
        });
    }
}

#[test]
fn bytes_written_to_an_old_version_are_pending_until_they_are_copied() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"base").await;
        let file = client.open("f", WRITE).await.unwrap();
        client.put_object("f", b"theirs").await;
        // Opens of the newest version get another lineage of bytes.
        assert_eq!(client.read("f").await.unwrap(), b"theirs");
        client.fs.write(file.1, 0, b"mine").await.unwrap();
        assert_eq!(pending(&client), ["f"]);
        client.store.refuse("PutObject", Kind::Server, When::Before);
        assert_eq!(kind_of(client.close(file).await), Kind::Server);
        assert_eq!(pending(&client), ["f"]);
        client.store.refuse_nothing();
        assert_eq!(kind_of(client.fs.flush_all().await), Kind::Stale);
        assert_eq!(copies(&client).await, [b"mine"]);
        assert_eq!(client.read("f").await.unwrap(), b"theirs");
        assert!(pending(&client).is_empty());
    });
}

#[test]
fn a_new_file_outlives_its_directory_being_removed_by_another_client() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        let file = client.open("d/f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"mine").await.unwrap();
        client.delete_object("d/").await;
        client.pass_ttl();
        assert_eq!(client.stat("d/f").await.unwrap().size, 4);
        assert_eq!(kind_of(client.rmdir("d").await), Kind::NotEmpty);
        client.close(file).await.unwrap();
        assert_eq!(client.object("d/f").await.unwrap(), b"mine");
    });
}

#[test]
fn a_conflict_copy_that_cannot_be_written_yet_is_stale_and_still_owed() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"base").await;
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"mine").await.unwrap();
        client.delete_object("f").await;
        // The commit finds the object gone, and the copy that follows fails.
        client.store.clear_calls();
        client.store.fail_nth(4, Kind::Server, When::Before);
        assert_eq!(kind_of(client.fs.fsync(file.1).await), Kind::Stale, "{:?}", client.store.calls());
        assert_eq!(pending(&client), ["f"], "{:?}", client.store.calls());
        assert_eq!(client.read("f").await.unwrap(), b"mine");
        assert_eq!(kind_of(client.close(file).await), Kind::Stale);
        assert_eq!(copies(&client).await, [b"mine"]);
        assert!(pending(&client).is_empty());
    });
}

/// Begins the first upload of `f`: it is in S3, and the answer is held back.
async fn first_upload(client: &Client, file: (pailfs::tree::Ino, u64)) -> tokio::task::JoinHandle<bool> {
    client.fs.write(file.1, 0, b"bytes").await.unwrap();
    let fs = client.fs.clone();
    let close = tokio::spawn(async move { fs.flush(file.1).await.is_ok() });
    until("the upload", || client.store.calls().contains(&"PutObject")).await;
    close
}

#[test]
fn an_unlink_during_the_first_upload_removes_what_is_uploaded() {
    block_on(async {
        let client = Client::new();
        let file = client.open("f", WRITE).await.unwrap();
        let held = client.store.hold("PutObject");
        let closing = first_upload(&client, file).await;
        let fs = client.fs.clone();
        let unlink = tokio::spawn(async move { fs.unlink(ROOT, OsStr::new("f")).await });
        let_others_run().await;
        held.add_permits(100);
        unlink.await.unwrap().unwrap();
        assert!(closing.await.unwrap());
        client.pass_ttl();
        assert!(client.keys().await.is_empty());
        assert_eq!(kind_of(client.stat("f").await), Kind::NotFound);
        assert_eq!(client.read_all(file.1).await.unwrap(), b"bytes", "an open file is read on");
        client.close(file).await.unwrap();
        assert!(client.keys().await.is_empty());
    });
}

#[test]
fn a_rename_during_the_first_upload_takes_along_what_is_uploaded_and_what_is_written_after() {
    for more in [false, true] {
        block_on(async {
            let client = Client::new();
            let file = client.open("f", WRITE).await.unwrap();
            let held = client.store.hold("PutObject");
            let closing = first_upload(&client, file).await;
            let fs = client.fs.clone();
            let rename =
                tokio::spawn(
                    async move { fs.rename(ROOT, OsStr::new("f"), ROOT, OsStr::new("g"), false).await },
                );
            let_others_run().await;
            if more {
                client.fs.write(file.1, 5, b" more").await.unwrap();
            }
            held.add_permits(100);
            rename.await.unwrap().unwrap();
            assert!(closing.await.unwrap());
            client.close(file).await.unwrap();
            client.pass_ttl();
            let expected: &[u8] = if more { b"bytes more" } else { b"bytes" };
            assert_eq!(client.keys().await, ["g"]);
            assert_eq!(client.read("g").await.unwrap(), expected);
            assert_eq!(kind_of(client.stat("f").await), Kind::NotFound);
        });
    }
}

#[test]
fn a_rename_over_a_file_during_its_first_upload_replaces_what_is_uploaded() {
    for saved in [false, true] {
        block_on(async {
            let client = Client::new();
            let file = client.open("f", WRITE).await.unwrap();
            let source = client.open("source", WRITE).await.unwrap();
            client.fs.write(source.1, 0, b"source").await.unwrap();
            if saved {
                client.fs.fsync(source.1).await.unwrap();
                client.store.clear_calls();
            }
            let held = client.store.hold("PutObject");
            let closing = first_upload(&client, file).await;
            let fs = client.fs.clone();
            let rename = tokio::spawn(async move {
                fs.rename(ROOT, OsStr::new("source"), ROOT, OsStr::new("f"), false).await
            });
            let_others_run().await;
            held.add_permits(100);
            rename.await.unwrap().unwrap();
            assert!(closing.await.unwrap());
            client.close(source).await.unwrap();
            client.close(file).await.unwrap();
            client.pass_ttl();
            assert_eq!(client.keys().await, ["f"]);
            assert_eq!(client.read("f").await.unwrap(), b"source");
        });
    }
}

#[test]
fn a_file_that_another_client_changes_during_the_rename_of_its_directory_stays_under_its_old_name() {
    for honoured in [true, false] {
        block_on(async {
            let client = Client::new();
            let client = if honoured { client } else { client.with_conditions_unknown() };
            client.store.ignore_conditions(!honoured);
            for (key, bytes) in [("d/", ""), ("d/a", "one"), ("d/b", "two")] {
                client.put_object(key, bytes.as_bytes()).await;
            }
            let held = client.store.hold("CopyObject");
            client.store.clear_calls();
            let fs = client.fs.clone();
            let rename =
                tokio::spawn(
                    async move { fs.rename(ROOT, OsStr::new("d"), ROOT, OsStr::new("e"), false).await },
                );
            let copied = || client.store.calls().iter().filter(|call| **call == "CopyObject").count() == 3;
            until("the copies", copied).await;
            client.put_object("d/b", b"theirs").await;
            held.add_permits(100);
            rename.await.unwrap().unwrap();
            assert_eq!(client.keys().await, ["d/b", "e/", "e/a", "e/b"]);
            assert_eq!(client.read("d/b").await.unwrap(), b"theirs");
            assert_eq!(client.read("e/b").await.unwrap(), b"two");
        });
    }
}

#[test]
fn a_rename_of_a_directory_that_cannot_delete_leaves_the_new_one_whole_and_the_old_one_to_see() {
    block_on(async {
        let client = Client::new();
        for (key, bytes) in [("d/", ""), ("d/a", "one"), ("d/b", "two")] {
            client.put_object(key, bytes.as_bytes()).await;
        }
        client.store.refuse("DeleteObject", Kind::AccessDenied, When::Before);
        client.store.refuse("DeleteObjects", Kind::AccessDenied, When::Before);
        assert_eq!(kind_of(client.rename("d", "e").await), Kind::AccessDenied);
        client.store.refuse_nothing();
        for dir in ["d", "e"] {
            assert_eq!(client.read(&format!("{dir}/a")).await.unwrap(), b"one");
            assert_eq!(client.list(dir).await.unwrap(), ["a", "b"]);
        }
    });
}

#[test]
fn a_writer_open_at_a_version_that_is_gone_loses_nothing_by_the_rename_of_its_directory() {
    block_on(async {
        let client = Client::new();
        client.put_object("d/f", b"base").await;
        let file = client.open("d/f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"m").await.unwrap();
        client.put_object("d/f", b"theirs, which is longer").await;
        client.rename("d", "e").await.unwrap();
        assert_eq!(kind_of(client.close(file).await), Kind::Stale);
        assert_eq!(client.object("e/f").await.unwrap(), b"theirs, which is longer");
        assert_eq!(copies(&client).await, [b"mhei"]);
    });
}

#[test]
fn the_bytes_of_a_directory_s_own_marker_go_where_they_are_moved_and_leave_a_marker() {
    block_on(async {
        let client = Client::new();
        client.put_object("d/", b"bytes").await;
        client.rename("d/%~0", "f").await.unwrap();
        assert_eq!(client.objects().await, [("d/".to_owned(), 0), ("f".to_owned(), 5)]);
        assert_eq!(client.read("f").await.unwrap(), b"bytes");
        client.put_object("d/", b"bytes").await;
        client.pass_ttl();
        client.unlink("d/%~0").await.unwrap();
        assert_eq!(client.objects().await, [("d/".to_owned(), 0), ("f".to_owned(), 5)]);
        assert!(client.list("d").await.unwrap().is_empty());
    });
}

/// The next open of a name on the mount that had lost a race for it failed `ENOENT` for a second, though the object was
/// there: the kernel goes by its inode until it is told, and looks a name up again after `ESTALE` alone.
#[test]
fn an_open_by_the_inode_that_lost_its_name_is_stale() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"before").await;
        let known = client.walk("f").await.unwrap();
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"mine").await.unwrap();
        client.put_object("f", b"theirs").await;
        assert_eq!(kind_of(client.close(file).await), Kind::Stale);
        for flags in [READ, WRITE] {
            assert_eq!(
                client.fs.open(known.ino, flags).await.map_err(|error| error.kind()).err(),
                Some(Kind::Stale)
            );
        }
        client.fs.forget(known.ino, 1);
        assert_eq!(client.read("f").await.unwrap(), b"theirs");
    });
}

/// `scripts/crash --seed 13281`: a program that read a file while it was saved got its old length, and no byte behind it.
#[test]
fn a_size_that_is_asked_for_while_the_file_is_saved_is_never_an_older_one() {
    const ROUNDS: u64 = 2_000;
    let client = block_on(async { Client::new() });
    block_on(client.put_object("f", b""));
    let ino = block_on(client.fs.lookup(ROOT, OsStr::new("f"))).unwrap().ino;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..ROUNDS {
                block_on(async {
                    let file = client.open("f", WRITE).await.unwrap();
                    client.fs.write(file.1, round, b"x").await.unwrap();
                    client.close(file).await.unwrap();
                });
            }
        });
        let mut latest = 0;
        while !writer.is_finished() {
            let size = client.fs.getattr_now(ino).map_or(latest, |attr| attr.unwrap().size);
            assert!(size >= latest, "{size} after {latest}");
            latest = size;
        }
    });
    assert_eq!(block_on(client.fs.getattr(ino)).unwrap().size, ROUNDS);
    client.fs.forget(ino, 1);
}
