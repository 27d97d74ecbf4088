//! Parts that leave while a file is written, and local disk that is given back.

use pailfs::error::Kind;
use pailfs::fs::Space;
use pailfs::s3::limits::OBJECT_MAX;
use pailfs::s3::{Store, When};
use pailfs::write::Sizes;

use crate::client::{BUCKET, Client, READ, REWRITE, WRITE, kind_of, let_others_run, until};
use crate::crash::snapshot;
use crate::harness::block_on;

const MIB: usize = 1 << 20;
/// Five parts, the last one small.
const LEN: usize = 4 * 8 * MIB + 12_345;

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| ((at / 4096) as u8).wrapping_mul(31).wrapping_add(at as u8).wrapping_add(seed))
        .collect()
}

async fn write(client: &Client, fh: u64, from: usize, bytes: &[u8]) {
    for (step, chunk) in bytes.chunks(MIB).enumerate() {
        client.fs.write(fh, (from + step * MIB) as u64, chunk).await.unwrap();
    }
}

fn count(client: &Client, operation: &str) -> usize {
    client.store.calls().iter().filter(|call| **call == operation).count()
}

async fn uploads(client: &Client) -> usize {
    client.store.list_uploads(BUCKET, "").await.unwrap().len()
}

#[test]
fn full_parts_leave_while_the_program_writes_and_close_sends_the_tail() {
    block_on(async {
        let client = Client::new();
        let body = bytes(LEN, 1);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, 0, &body).await;
        until("a part has left", || client.stats.parts_ahead.value() == 4).await;
        assert_eq!(client.object("f").await, None, "nothing shows before it is closed");
        assert_eq!(client.read_all(file.1).await.unwrap(), body, "what has left is here too");
        client.store.clear_calls();
        client.close(file).await.unwrap();
        assert_eq!(client.store.calls(), ["UploadPart", "CompleteMultipartUpload"]);
        assert_eq!(client.object("f").await.unwrap(), body);
        assert_eq!(client.stats.bytes_sent.value(), LEN as u64, "every byte once");
    });
}

/// As `dd of=` and a shell's `>` do: they close a descriptor of the new file before the first byte is written.
#[test]
fn full_parts_leave_from_a_file_that_was_saved_while_it_was_empty() {
    block_on(async {
        let client = Client::new();
        let body = bytes(LEN, 1);
        let file = client.open("f", REWRITE).await.unwrap();
        client.fs.flush(file.1).await.unwrap();
        assert_eq!(client.object("f").await.unwrap(), b"");
        write(&client, file.1, 0, &body).await;
        until("a part has left", || client.stats.parts_ahead.value() == 4).await;
        client.store.clear_calls();
        client.close(file).await.unwrap();
        assert_eq!(client.store.calls(), ["UploadPart", "CompleteMultipartUpload"]);
        assert_eq!(client.object("f").await.unwrap(), body);
    });
}

#[test]
fn a_file_of_one_put_never_begins_an_upload() {
    block_on(async {
        let client = Client::new();
        let body = bytes(16 * MIB, 2);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, 0, &body).await;
        client.close(file).await.unwrap();
        assert_eq!(count(&client, "CreateMultipartUpload"), 0);
        assert_eq!(client.object("f").await.unwrap(), body);
    });
}

#[test]
fn a_write_into_a_part_that_left_sends_that_part_alone_again() {
    block_on(async {
        let client = Client::new();
        let mut body = bytes(LEN, 3);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, 0, &body).await;
        until("a part has left", || client.stats.parts_ahead.value() == 4).await;
        body[9 * MIB..9 * MIB + 3].fill(b'!');
        client.fs.write(file.1, 9 * MIB as u64, b"!!!").await.unwrap();
        client.store.clear_calls();
        client.close(file).await.unwrap();
        assert_eq!(client.store.calls(), ["UploadPart", "UploadPart", "CompleteMultipartUpload"]);
        assert_eq!(client.object("f").await.unwrap(), body);
    });
}

#[test]
fn cut_grown_and_written_again_after_parts_have_left() {
    for (cut, grow) in [(0, 0), (5 * MIB, 0), (20 * MIB, 30 * MIB), (LEN - 1, LEN), (17 * MIB, 17 * MIB + 5)]
    {
        block_on(async {
            let client = Client::new();
            let mut body = bytes(LEN, 4);
            let (ino, fh) = client.open("f", REWRITE).await.unwrap();
            write(&client, fh, 0, &body).await;
            until("a part has left", || client.stats.parts_ahead.value() == 4).await;
            for len in [cut, grow.max(cut)] {
                client.truncate_open(ino, fh, len as u64).await.unwrap();
                body.resize(len, 0);
            }
            let more = bytes(19 * MIB, 5);
            write(&client, fh, body.len(), &more).await;
            body.extend_from_slice(&more);
            client.close((ino, fh)).await.unwrap();
            assert!(client.object("f").await.unwrap() == body, "cut to {cut}, grown to {grow}");
            assert_eq!(uploads(&client).await, 0);
        });
    }
}

#[test]
fn what_has_left_is_not_sent_again_when_the_commit_failed() {
    block_on(async {
        let client = Client::new();
        let body = bytes(LEN, 6);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, 0, &body).await;
        until("a part has left", || client.stats.parts_ahead.value() == 4).await;
        client.store.refuse("CompleteMultipartUpload", Kind::Server, When::Before);
        assert_eq!(kind_of(client.fs.fsync(file.1).await), Kind::Server);
        client.store.refuse_nothing();
        client.store.clear_calls();
        client.close(file).await.unwrap();
        assert_eq!(client.store.calls(), ["CompleteMultipartUpload"]);
        assert_eq!(client.object("f").await.unwrap(), body);
    });
}

#[test]
fn parts_that_cannot_leave_early_leave_with_the_commit_and_its_failure_is_told() {
    block_on(async {
        let client = Client::new();
        let body = bytes(LEN, 7);
        let file = client.open("f", REWRITE).await.unwrap();
        client.store.refuse("UploadPart", Kind::AccessDenied, When::Before);
        write(&client, file.1, 0, &body).await;
        assert_eq!(kind_of(client.fs.fsync(file.1).await), Kind::AccessDenied);
        client.store.refuse_nothing();
        assert_eq!(client.read_all(file.1).await.unwrap(), body);
        client.close(file).await.unwrap();
        assert_eq!(client.object("f").await.unwrap(), body);
        assert_eq!(uploads(&client).await, 0);
    });
}

#[test]
fn a_file_that_is_renamed_or_removed_while_parts_leave_leaves_no_upload_behind() {
    for rename in [true, false] {
        block_on(async {
            let client = Client::new();
            let body = bytes(LEN, 8);
            let file = client.open("f", REWRITE).await.unwrap();
            write(&client, file.1, 0, &body).await;
            until("a part has left", || client.stats.parts_ahead.value() >= 1).await;
            if rename {
                client.rename("f", "g").await.unwrap();
            } else {
                client.unlink("f").await.unwrap();
            }
            assert_eq!(client.read_all(file.1).await.unwrap(), body);
            client.close(file).await.unwrap();
            let expected = rename.then_some(body);
            assert!(client.object("g").await == expected);
            assert_eq!(client.object("f").await, None);
            until_uploads(&client, 0).await;
        });
    }
}

async fn until_uploads(client: &Client, n: usize) {
    for _ in 0..1_000 {
        if uploads(client).await == n {
            return;
        }
        let_others_run().await;
    }
    panic!("{} uploads", uploads(client).await);
}

#[test]
fn a_disk_that_is_short_gets_back_what_has_left_and_every_byte_is_still_right() {
    block_on(async {
        let client = Client::new().with_a_short_disk();
        let mut body = bytes(LEN, 9);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, 0, &body).await;
        until("a part has left", || client.stats.parts_ahead.value() == 4).await;
        assert!(client.staged_bytes() < 2 * 8 * MIB as u64, "{} bytes are on disk", client.staged_bytes());
        // A read of what was let go needs the object, so the file is committed first.
        assert_eq!(client.read_all(file.1).await.unwrap(), body);
        assert_eq!(client.object("f").await.unwrap(), body);
        body[100..103].fill(b'?');
        client.fs.write(file.1, 100, b"???").await.unwrap();
        client.close(file).await.unwrap();
        assert_eq!(client.object("f").await.unwrap(), body);
        assert_eq!(uploads(&client).await, 0);
    });
}

#[test]
fn writes_and_cuts_over_what_was_let_go_are_right() {
    block_on(async {
        for at in [100, 8 * MIB - 1, 20 * MIB] {
            let client = Client::new().with_a_short_disk();
            let mut body = bytes(LEN, 10);
            let (ino, fh) = client.open("f", REWRITE).await.unwrap();
            write(&client, fh, 0, &body).await;
            until("a part has left", || client.stats.parts_ahead.value() == 4).await;
            body[at..at + 3].fill(b'?');
            client.fs.write(fh, at as u64, b"???").await.unwrap();
            client.truncate_open(ino, fh, at as u64 + 2).await.unwrap();
            body.truncate(at + 2);
            client.close((ino, fh)).await.unwrap();
            assert!(client.object("f").await.unwrap() == body, "at {at}");
        }
    });
}

#[test]
fn another_client_s_version_moves_aside_where_ours_is_in_parts_alone() {
    for conditions in [true, false] {
        block_on(async {
            let client = Client::new().with_a_short_disk();
            client.put_object("f", b"old").await;
            let body = bytes(LEN, 11);
            let file = client.open("f", REWRITE).await.unwrap();
            write(&client, file.1, 0, &body).await;
            until("a part has left", || client.stats.parts_ahead.value() == 4).await;
            if conditions {
                client.put_object("f", b"theirs").await;
            } else {
                client.delete_object("f").await;
            }
            let told = client.close(file).await.unwrap_err();
            assert_eq!(told.kind(), Kind::Stale);
            assert!(client.object("f").await.unwrap() == body, "no byte of ours is lost");
            let mut copies = Vec::new();
            for key in client.keys().await.into_iter().filter(|key| key.contains(".conflict-")) {
                copies.push(client.object(&key).await.unwrap());
            }
            let theirs: &[&[u8]] = if conditions { &[b"theirs"] } else { &[] };
            assert_eq!(copies, theirs, "nor of theirs");
            assert_eq!(client.read("f").await.unwrap(), body);
        });
    }
}

/// Buckets have rules that end uploads after a day, and a program may write for longer.
#[test]
fn an_upload_that_somebody_else_ended_is_begun_anew() {
    block_on(async {
        let client = Client::new();
        let body = bytes(30 * MIB, 14);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, 0, &body[..20 * MIB]).await;
        until_uploads(&client, 1).await;
        for upload in client.store.list_uploads(BUCKET, "").await.unwrap() {
            client.store.abort_upload(&upload.upload).await.unwrap();
        }
        write(&client, file.1, 20 * MIB, &body[20 * MIB..]).await;
        client.close(file).await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
        assert_eq!(uploads(&client).await, 0);
    });
}

#[test]
fn no_byte_is_lost_whichever_request_fails() {
    block_on(async {
        for short in [false, true] {
            for n in 1..10 {
                let client = if short { Client::new().with_a_short_disk() } else { Client::new() };
                let body = bytes(17 * MIB, 12);
                let file = client.open("f", REWRITE).await.unwrap();
                client.store.fail_nth(n, Kind::Server, if n % 2 == 0 { When::Before } else { When::After });
                write(&client, file.1, 0, &body).await;
                let first = client.fs.fsync(file.1).await;
                let closed = client.close(file).await;
                let reader = client.open("f", READ).await;
                if let Ok(reader) = reader {
                    assert!(client.read_all(reader.1).await.unwrap() == body, "{n}: here");
                    client.close(reader).await.unwrap();
                }
                if first.is_ok() || closed.is_ok() {
                    assert!(client.object("f").await.unwrap() == body, "{n}: what was acknowledged is in S3");
                }
            }
        }
    });
}

#[test]
fn an_append_to_a_large_object_sends_what_is_new() {
    block_on(async {
        let client = Client::new();
        let mut body = bytes(64 * MIB, 13);
        client.put_object("f", &body).await;
        let sent = client.stats.bytes_sent.value();
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, body.len() as u64, b"more").await.unwrap();
        body.extend_from_slice(b"more");
        client.close(file).await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
        assert_eq!(client.stats.bytes_sent.value() - sent, 4);
    });
}

async fn write_and_close(client: &Client, name: &str, body: &[u8]) {
    let file = client.open(name, REWRITE).await.unwrap();
    write(client, file.1, 0, body).await;
    client.close(file).await.unwrap();
    assert!(client.object(name).await.unwrap() == body);
    assert_eq!(uploads(client).await, 0);
}

#[test]
fn a_server_that_refuses_unequal_parts_gets_equal_ones_and_is_remembered() {
    block_on(async {
        let client = Client::new();
        client.store.want_equal_parts();
        // A large object with a change in its middle: copies of different sizes, until the server says no.
        let mut body = bytes(100 * MIB + 77, 20);
        client.put_object("f", &body).await;
        let (sent, expected) = (client.stats.bytes_sent.value(), 8 * MIB + 16 * MIB);
        body[50 * MIB..50 * MIB + 3].fill(b'!');
        client.write_at("f", 50 * MIB as u64, b"!!!").await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
        assert_eq!(client.stats.bytes_sent.value() - sent, expected as u64, "a part of each size");
        assert_eq!((count(&client, "CompleteMultipartUpload"), uploads(&client).await), (2, 0));
        // The next one is right at once.
        client.store.clear_calls();
        body[90 * MIB] ^= 1;
        client.write_at("f", 90 * MIB as u64, &body[90 * MIB..=90 * MIB]).await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
        assert_eq!(count(&client, "CompleteMultipartUpload"), 1);
        assert_eq!((count(&client, "UploadPart"), count(&client, "UploadPartCopy")), (1, 6));
    });
}

#[test]
fn equal_parts_leave_while_the_program_writes_where_the_server_is_known_to_want_them() {
    block_on(async {
        for short in [false, true] {
            let client = Client::new().with_equal_parts(short);
            client.store.want_equal_parts();
            let body = bytes(70 * MIB, 21);
            let file = client.open("f", REWRITE).await.unwrap();
            write(&client, file.1, 0, &body).await;
            until("parts have left", || client.stats.parts_ahead.value() == 4).await;
            client.store.clear_calls();
            client.close(file).await.unwrap();
            assert_eq!(
                client.store.calls(),
                ["UploadPart", "CompleteMultipartUpload"],
                "four of 16 MiB had left"
            );
            assert!(client.object("f").await.unwrap() == body);
            assert_eq!(uploads(&client).await, 0);
        }
    });
}

#[test]
fn parts_that_had_left_in_the_growing_layout_count_when_the_server_turns_out_to_want_equal_ones() {
    block_on(async {
        let client = Client::new().with_a_short_disk();
        client.store.want_equal_parts();
        // All of 8 MiB: they are equal as they are, gone from the disk or not.
        write_and_close(&client, "f", &bytes(40 * MIB, 22)).await;
        assert_eq!(count(&client, "CompleteMultipartUpload"), 1);
    });
}

/// A part waits for its turn to leave, is saved by then, and was written anew: its number is of the upload that is done.
#[test]
fn a_part_that_was_to_leave_before_a_save_does_not_leave_after_it() {
    block_on(async {
        let client = Client::new();
        let mut body = bytes(64 * MIB + 5, 23);
        let file = client.open("f", REWRITE).await.unwrap();
        let (sent, completed) =
            (client.store.hold("UploadPart"), client.store.hold("CompleteMultipartUpload"));
        write(&client, file.1, 0, &body).await;
        // As many at once as a quarter of the memory holds.
        until("the first is on its way", || count(&client, "UploadPart") > 0).await;
        let_others_run().await;
        assert!(count(&client, "UploadPart") < 7);
        let (fs, fh) = (client.fs.clone(), file.1);
        let saving = tokio::spawn(async move { fs.fsync(fh).await });
        let_others_run().await;
        sent.add_permits(100);
        until("it is being put together", || count(&client, "CompleteMultipartUpload") == 1).await;
        body[56 * MIB..64 * MIB].fill(b'!');
        write(&client, file.1, 56 * MIB, &body[56 * MIB..64 * MIB]).await;
        completed.add_permits(100);
        saving.await.unwrap().unwrap();
        let_others_run().await;
        assert_eq!(uploads(&client).await, 0);
        client.close(file).await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
    });
}

/// As of a file that is longer than 5.4 TiB, in small: parts that grow reach 24 MiB, and beyond are equal ones of 16 MiB.
const SMALL: Sizes = Sizes::new(&[(3, 8 << 20)], &[16 << 20]);

#[test]
fn a_file_that_outgrows_its_parts_is_saved_and_goes_on_from_there() {
    block_on(async {
        let client = Client::new().with_sizes(SMALL, true);
        let body = bytes(70 * MIB, 30);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, 0, &body[..24 * MIB]).await;
        until("all of it has left", || client.staged_bytes() == 0).await;
        assert_eq!(client.object("f").await, None);
        write(&client, file.1, 24 * MIB, &body[24 * MIB..]).await;
        assert!(
            client.object("f").await.unwrap() == body[..24 * MIB],
            "what has left is in no part of the next upload"
        );
        // From 32 and 48 MiB on; the part before them has bytes of the object.
        until("parts have left", || client.stats.parts_ahead.value() == 5).await;
        until("they are let go of", || client.staged_bytes() == 14 * MIB as u64).await;
        client.store.clear_calls();
        client.close(file).await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
        let sent = ["UploadPartCopy", "UploadPart", "GetObject"].map(|operation| count(&client, operation));
        assert_eq!(
            sent,
            [1, 2, 2],
            "one is the object's, one is mixed, one is the tail; the last GET is of this test"
        );
        assert_eq!((uploads(&client).await, client.staged_bytes()), (0, 0));
        assert!(client.read("f").await.unwrap() == body);
    });
}

#[test]
fn a_file_that_outgrows_its_parts_goes_again_from_a_disk_with_room() {
    block_on(async {
        let client = Client::new().with_sizes(SMALL, false);
        let body = bytes(70 * MIB, 31);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, 0, &body).await;
        assert_eq!(client.object("f").await, None, "nothing shows before it is closed");
        client.close(file).await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
        assert_eq!((count(&client, "CompleteMultipartUpload"), uploads(&client).await), (1, 0));
    });
}

#[test]
fn a_file_whose_length_is_known_has_larger_parts_from_its_beginning() {
    block_on(async {
        let client = Client::new().with_sizes(SMALL, true);
        let body = bytes(70 * MIB, 32);
        let (ino, fh) = client.open("f", REWRITE).await.unwrap();
        client.truncate_open(ino, fh, body.len() as u64).await.unwrap();
        write(&client, fh, 0, &body).await;
        until("parts have left", || client.stats.parts_ahead.value() == 4).await;
        client.store.clear_calls();
        client.close((ino, fh)).await.unwrap();
        assert_eq!(client.store.calls(), ["UploadPart", "CompleteMultipartUpload"]);
        assert!(client.object("f").await.unwrap() == body);
    });
}

#[test]
fn what_is_appended_to_an_object_that_has_outgrown_them_leaves_while_it_is_written() {
    for theirs in [None, Some(bytes(20 * MIB, 40)), Some(Vec::new())] {
        block_on(async {
            let client = Client::new().with_sizes(SMALL, true);
            let mut body = bytes(40 * MIB, 33);
            client.put_object("f", &body).await;
            let file = client.open("f", WRITE).await.unwrap();
            let more = bytes(60 * MIB, 34);
            write(&client, file.1, 40 * MIB, &more).await;
            until("parts have left", || client.stats.parts_ahead.value() == 3).await;
            until("they are let go of", || client.staged_bytes() == 12 * MIB as u64).await;
            if let Some(theirs) = &theirs {
                client.put_object("f", theirs).await;
            }
            client.store.clear_calls();
            let closed = client.close(file).await;
            let Some(theirs) = theirs else {
                closed.unwrap();
                assert_eq!((count(&client, "UploadPartCopy"), count(&client, "UploadPart")), (2, 2));
                body.extend_from_slice(&more);
                assert!(client.object("f").await.unwrap() == body);
                assert_eq!(uploads(&client).await, 0);
                return;
            };
            // The object that was appended to is gone: the bytes before are the other client's.
            assert_eq!(kind_of(closed), Kind::Stale);
            let mut body = theirs.clone();
            body.resize(40 * MIB, 0);
            body.extend_from_slice(&more);
            assert!(client.object("f").await.unwrap() == body, "no byte of ours is lost");
            let copies: Vec<String> =
                client.keys().await.into_iter().filter(|key| key.contains(".conflict-")).collect();
            assert_eq!(copies.len(), 1);
            assert!(client.object(&copies[0]).await.unwrap() == theirs, "nor of theirs");
            assert_eq!((uploads(&client).await, client.fs.pending().len()), (0, 0));
        });
    }
}

#[test]
fn the_next_process_goes_on_with_what_has_left_behind_an_object() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let (client, _) = Client::new().again_with_sizes(disk.path(), SMALL);
        let mut body = bytes(40 * MIB, 38);
        client.put_object("f", &body).await;
        let file = client.open("f", WRITE).await.unwrap();
        let more = bytes(60 * MIB, 39);
        write(&client, file.1, 40 * MIB, &more).await;
        until("parts have left", || client.stats.parts_ahead.value() == 3).await;
        body.extend_from_slice(&more);
        // The process ends here.
        let after = snapshot(disk.path());
        let (next, owed) = client.again_with_sizes(after.path(), SMALL);
        client.store.clear_calls();
        assert_eq!(next.fs.take_up(owed).await.files, 1);
        next.fs.flush_all().await.unwrap();
        assert!(next.object("f").await.unwrap() == body);
        assert_eq!(
            (count(&next, "UploadPartCopy"), count(&next, "UploadPart")),
            (2, 2),
            "the others have left"
        );
        assert_eq!(uploads(&next).await, 0);
    });
}

#[test]
fn writes_and_cuts_below_what_has_left_behind_an_object_are_right() {
    block_on(async {
        for at in [0, 30 * MIB, 41 * MIB, 50 * MIB, 99 * MIB] {
            let client = Client::new().with_sizes(SMALL, true);
            let mut body = bytes(40 * MIB, 35);
            client.put_object("f", &body).await;
            let (ino, fh) = client.open("f", WRITE).await.unwrap();
            let more = bytes(60 * MIB, 36);
            write(&client, fh, 40 * MIB, &more).await;
            body.extend_from_slice(&more);
            until("parts have left", || client.stats.parts_ahead.value() == 3).await;
            body[at..at + 3].fill(b'?');
            client.fs.write(fh, at as u64, b"???").await.unwrap();
            client.truncate_open(ino, fh, at as u64 + 2).await.unwrap();
            body.truncate(at + 2);
            let last = bytes(50 * MIB, 37);
            write(&client, fh, at + 2, &last).await;
            body.extend_from_slice(&last);
            client.close((ino, fh)).await.unwrap();
            assert!(client.object("f").await.unwrap() == body, "at {at}");
            assert_eq!(uploads(&client).await, 0);
        }
    });
}

#[test]
fn a_file_is_as_long_as_an_object_may_be_and_no_longer() {
    block_on(async {
        let client = Client::new();
        let (ino, fh) = client.open("f", REWRITE).await.unwrap();
        client.fs.write(fh, 0, b"first").await.unwrap();
        let space = |zero, keep_size| Space { zero, keep_size };
        let refused = [
            client.fs.write(fh, OBJECT_MAX, b"x").await,
            client.fs.write(fh, OBJECT_MAX - 1, b"xy").await,
            client.truncate_open(ino, fh, OBJECT_MAX + 1).await,
            client.fs.fallocate(fh, OBJECT_MAX, 1, space(false, false)).await,
        ];
        for refused in refused {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), Kind::TooLarge);
            assert!(error.to_string().contains("48.8 TiB"), "{error}");
        }
        // The file system that written bytes wait on may take less.
        let last = client.fs.write(fh, OBJECT_MAX - 1, b"x").await;
        assert!(last.is_ok() || kind_of(last) == Kind::TooLarge);
        client.truncate_open(ino, fh, OBJECT_MAX).await.unwrap();
        client.fs.fallocate(fh, OBJECT_MAX - 4096, 4096, space(true, true)).await.unwrap();
        client.truncate_open(ino, fh, 3).await.unwrap();
        client.close((ino, fh)).await.unwrap();
        assert_eq!(client.object("f").await.unwrap(), b"fir");
    });
}
