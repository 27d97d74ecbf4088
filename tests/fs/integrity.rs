//! What is saved is what was written: bytes that the local disk, the network or the server changed are never taken for it.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pailfs::error::Kind;
use pailfs::fs::Durability;
use pailfs::s3::{Store, When};

use crate::client::{BUCKET, Client, REWRITE, WRITE, kind_of, until};
use crate::harness::block_on;

const MIB: usize = 1 << 20;

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| ((at / 4096) as u8).wrapping_mul(31).wrapping_add(at as u8).wrapping_add(seed))
        .collect()
}

/// The largest staging file below a directory.
fn staging_file(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir.join("staging")).unwrap().flatten().map(|entry| entry.path());
    files.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
}

/// The disk changes one bit.
fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 16], at).unwrap();
}

async fn write(client: &Client, fh: u64, body: &[u8]) {
    for (step, chunk) in body.chunks(MIB).enumerate() {
        client.fs.write(fh, (step * MIB) as u64, chunk).await.unwrap();
    }
}

/// D8: "Bytes that the disk, memory or network changed on the way fail `close()` with `EIO` and change nothing in S3".
#[test]
fn a_bit_that_the_disk_flips_between_write_and_close_fails_the_close_and_changes_nothing() {
    block_on(async {
        for len in [10, 3 * MIB, 20 * MIB] {
            let disk = tempfile::tempdir().unwrap();
            let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Close);
            client.put_object("f", b"as it was").await;
            let file = client.open("f", REWRITE).await.unwrap();
            let body = bytes(len, 1);
            write(&client, file.1, &body).await;
            // The last part is not full, and does not leave before the close.
            flip(&staging_file(disk.path()), len as u64 * 7 / 8);
            let error = client.close(file).await.unwrap_err();
            assert_eq!(error.errno(), rustix::io::Errno::IO.raw_os_error(), "{error}");
            assert!(error.message().contains("the local disk damaged what was written"), "{error}");
            assert_eq!(client.object("f").await.unwrap(), b"as it was", "{len}");
            assert_eq!(client.fs.pending().len(), 1, "and it is told");
            // What is written anew in its place is saved.
            let file = client.open("f", REWRITE).await.unwrap();
            write(&client, file.1, &body).await;
            client.close(file).await.unwrap();
            assert!(client.object("f").await.unwrap() == body);
        }
    });
}

#[test]
fn a_part_that_leaves_while_the_file_is_written_is_held_to_what_was_written() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Close);
        let file = client.open("f", REWRITE).await.unwrap();
        let body = bytes(40 * MIB, 2);
        // Parts leave from 16 MiB on: the first of them is damaged before.
        write(&client, file.1, &body[..16 * MIB]).await;
        flip(&staging_file(disk.path()), 3 * MIB as u64);
        for (step, chunk) in body[16 * MIB..].chunks(MIB).enumerate() {
            client.fs.write(file.1, ((16 + step) * MIB) as u64, chunk).await.unwrap();
        }
        let error = client.fs.fsync(file.1).await.unwrap_err();
        assert!(error.message().contains("bytes 0..8388608 of the file differ"), "{error}");
        assert_eq!(client.object("f").await, None);
        client.fs.write(file.1, 0, &body[..8 * MIB]).await.unwrap();
        client.close(file).await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
        assert!(client.store.list_uploads(BUCKET, "").await.unwrap().is_empty());
    });
}

#[test]
fn a_bit_that_is_flipped_while_no_mount_is_there_is_found_when_the_next_one_saves() {
    block_on(async {
        // The journal has the small one itself, and puts it right.
        for (len, flipped, healed) in [(5000, 4000, true), (100_000, 90_000, false), (17 * MIB, 4000, false)]
        {
            let disk = tempfile::tempdir().unwrap();
            let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Journal);
            client.put_object("f", b"as it was").await;
            client.store.refuse("PutObject", Kind::Unreachable, When::Before);
            client.store.refuse("UploadPart", Kind::Unreachable, When::Before);
            let mut body = bytes(len, 3);
            let file = client.open("f", REWRITE).await.unwrap();
            write(&client, file.1, &body).await;
            client.fs.write(file.1, 100, b"written over").await.unwrap();
            // The process is gone before it closes the file, so it does not try to save it once more: what it leaves is
            // looked at as it is at this moment.
            let after = tempfile::tempdir().unwrap();
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .arg(disk.path().join("."))
                .arg(after.path())
                .status();
            assert!(copied.unwrap().success());
            flip(&staging_file(after.path()), flipped);
            let (next, owed) = client.again_with_journal(after.path(), Durability::Journal);
            drop(client);
            next.store.refuse_nothing();
            let taken = next.fs.take_up(owed).await;
            assert_eq!((taken.files, taken.kept), (1, 0));
            if healed {
                next.fs.flush_all().await.unwrap();
                body[100..112].copy_from_slice(b"written over");
                assert!(next.object("f").await.unwrap() == body);
                continue;
            }
            let error = next.fs.flush_all().await.unwrap_err();
            assert!(error.message().contains("the local disk damaged what was written"), "{error}");
            assert!(next.object("f").await.unwrap() == b"as it was");
            assert_eq!(next.fs.pending().len(), 1);
        }
    });
}

/// D8: "what did not arrive as it was written is sent again, twice at most".
#[test]
fn bytes_that_did_not_arrive_as_they_were_sent_are_sent_again_and_at_last_an_error() {
    block_on(async {
        for (len, operation) in [(1000, "PutObject"), (17 * MIB, "UploadPart")] {
            for (times, is_saved) in [(2, true), (1000, false)] {
                let client = Client::new();
                client.put_object("f", b"as it was").await;
                let file = client.open("f", REWRITE).await.unwrap();
                let body = bytes(len, 4);
                client.store.damage_arrivals(times);
                write(&client, file.1, &body).await;
                client.store.clear_calls();
                let saved = client.fs.fsync(file.1).await;
                assert_eq!(saved.is_ok(), is_saved, "{operation} {times}: {saved:?}");
                if !is_saved {
                    assert_eq!(kind_of(saved), Kind::Corrupt);
                    assert_eq!(client.object("f").await.unwrap(), b"as it was");
                    let sends = client.store.calls().iter().filter(|call| **call == operation).count();
                    assert!((3..=12).contains(&sends), "{sends} sends");
                    client.store.damage_arrivals(0);
                    client.close(file).await.unwrap();
                }
                assert!(client.object("f").await.unwrap() == body);
            }
        }
    });
}

/// D8: "An object is saved once what S3 answers of it is right".
#[test]
fn an_answer_that_tells_another_checksum_is_no_save() {
    block_on(async {
        // Of 17 MiB there are three parts, and a Complete.
        for len in [1000, 17 * MIB] {
            for (times, is_saved) in [(1, true), (2, true), (1000, false)] {
                let disk = tempfile::tempdir().unwrap();
                let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Close);
                client.put_object("f", b"as it was").await;
                let file = client.open("f", REWRITE).await.unwrap();
                let body = bytes(len, 5);
                write(&client, file.1, &body).await;
                client.store.misstate_checksums(times);
                let saved = client.fs.fsync(file.1).await;
                assert_eq!(saved.is_ok(), is_saved, "{len} {times}: {saved:?}");
                if !is_saved {
                    assert_eq!(kind_of(saved), Kind::Corrupt);
                    assert_eq!(client.fs.pending().len(), 1, "it is not taken for saved");
                    client.store.misstate_checksums(0);
                    client.close(file).await.unwrap();
                }
                assert!(client.object("f").await.unwrap() == body, "{len} {times}");
                assert_eq!(client.keys().await, ["f"], "what our own attempts made is no conflict");
            }
        }
    });
}

#[test]
fn an_object_that_the_server_made_of_other_bytes_is_replaced_and_no_other_client_s() {
    block_on(async {
        for theirs in [false, true] {
            let client = Client::new();
            let file = client.open("f", REWRITE).await.unwrap();
            client.fs.write(file.1, 0, b"ours").await.unwrap();
            client.store.misstate_checksums(1000);
            assert_eq!(kind_of(client.fs.fsync(file.1).await), Kind::Corrupt);
            client.store.misstate_checksums(0);
            if theirs {
                client.put_object("f", b"theirs").await;
                assert_eq!(kind_of(client.close(file).await), Kind::Stale);
                assert_eq!(client.object("f").await.unwrap(), b"theirs");
            } else {
                client.close(file).await.unwrap();
                assert_eq!(client.object("f").await.unwrap(), b"ours");
            }
        }
    });
}

/// A whole that is put together wrongly from right parts shows in the answer to the Complete alone.
#[test]
fn a_wrong_whole_of_right_parts_is_no_save() {
    block_on(async {
        let client = Client::new();
        let body = bytes(32 * MIB, 6);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, &body).await;
        until("parts have left", || client.stats.parts_ahead.value() == 4).await;
        client.store.misstate_checksums(1);
        client.store.clear_calls();
        client.close(file).await.unwrap();
        let calls = client.store.calls();
        let count = |operation| calls.iter().filter(|call| **call == operation).count();
        assert_eq!((count("CompleteMultipartUpload"), count("UploadPart")), (2, 4), "all of it goes again");
        assert!(client.object("f").await.unwrap() == body);
    });
}

/// D8: "A small file that is read back before it is saved is held to its checksum too."
#[test]
fn a_byte_that_is_read_back_of_a_small_file_is_one_that_was_written() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let (client, _) = Client::new().again_with_journal(disk.path(), Durability::Close);
        client.put_object("f", b"old").await;
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"written").await.unwrap();
        flip(&staging_file(disk.path()), 2);
        assert_eq!(kind_of(client.fs.read(file.1, 0, 100).await), Kind::Local);
        assert_eq!(kind_of(client.close(file).await), Kind::Local);
        assert_eq!(client.object("f").await.unwrap(), b"old");
    });
}
