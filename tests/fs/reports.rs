//! Bug reports of other mounts, by their number (`tests/tidy.rs` has the list): those that need no kernel.

use pailfs::error::Kind;
use pailfs::s3::When;

use crate::client::{Client, REWRITE, WRITE, kind_of, let_others_run};
use crate::harness::block_on;

const MIB: usize = 1 << 20;

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| ((at / 4096) as u8).wrapping_mul(31) ^ (at as u8) ^ seed).collect()
}

/// T3: one part of an upload fails, and the next flush copies the old object over itself and says that all is well.
#[test]
fn t03_a_part_that_failed_is_sent_by_the_next_flush() {
    block_on(async {
        for when in [When::Before, When::After] {
            let client = Client::new();
            let mut body = bytes(34 * MIB, 1);
            client.put_object("f", &body).await;
            let file = client.open("f", WRITE).await.unwrap();
            for at in [3 * MIB, 20 * MIB] {
                client.fs.write(file.1, at as u64, b"changed").await.unwrap();
                body[at..at + 7].copy_from_slice(b"changed");
            }
            client.store.refuse("UploadPart", Kind::Server, when);
            assert!(client.fs.fsync(file.1).await.is_err(), "{when:?}");
            client.store.refuse_nothing();
            assert!(client.object("f").await.unwrap() == bytes(34 * MIB, 1), "nothing was made of it");
            assert!(client.read_all(file.1).await.unwrap() == body);
            client.fs.fsync(file.1).await.unwrap();
            assert!(client.object("f").await.unwrap() == body, "{when:?}");
            client.close(file).await.unwrap();
        }
    });
}

/// T11: zeros where a file was grown or left out, whatever it was before.
#[test]
fn t11_grown_and_sparse_files_have_zeros_in_their_holes() {
    block_on(async {
        let client = Client::new();
        let file = client.open("new", REWRITE).await.unwrap();
        client.truncate_open(file.0, file.1, 40 * MIB as u64).await.unwrap();
        client.close(file).await.unwrap();
        assert!(client.object("new").await.unwrap() == vec![0; 40 * MIB]);

        // Large, small, large.
        client.put_object("f", &bytes(30 * MIB, 2)).await;
        let file = client.open("f", WRITE).await.unwrap();
        for len in [1000, 36 * MIB] {
            client.truncate_open(file.0, file.1, len as u64).await.unwrap();
        }
        client.close(file).await.unwrap();
        let mut expected = bytes(1000, 2);
        expected.resize(36 * MIB, 0);
        assert!(client.object("f").await.unwrap() == expected);

        // Islands.
        let file = client.open("sparse", REWRITE).await.unwrap();
        let mut expected = vec![0; 33 * MIB + 3];
        for at in [0, 9 * MIB - 1, 20 * MIB, 33 * MIB] {
            client.fs.write(file.1, at as u64, b"isl").await.unwrap();
            expected[at..at + 3].copy_from_slice(b"isl");
        }
        client.close(file).await.unwrap();
        assert!(client.object("sparse").await.unwrap() == expected);
    });
}

/// T13: a directory of more files than a listing's page is moved as a whole.
#[test]
fn t13_a_directory_of_1235_files_moves_whole() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        for i in 0..1_235 {
            client.put_object(&format!("d/{i:04}"), i.to_string().as_bytes()).await;
        }
        client.pass_ttl();
        client.rename("d", "e").await.unwrap();
        assert_eq!(client.list("e").await.unwrap().len(), 1_235);
        assert_eq!(kind_of(client.stat("d").await), Kind::NotFound);
        let keys = client.keys().await;
        assert!(keys.len() == 1_236 && keys.iter().all(|key| key.starts_with("e/")), "{}", keys.len());
        assert_eq!(client.object("e/1234").await.unwrap(), b"1234");
    });
}

/// T14: another client deletes what is being renamed, before or in the middle of it.
#[test]
fn t14_a_rename_of_what_another_client_deletes_is_an_error_and_no_more() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"bytes").await;
        client.stat("f").await.unwrap();
        client.delete_object("f").await;
        assert_eq!(kind_of(client.rename("f", "g").await), Kind::NotFound);
        client.pass_ttl();
        assert_eq!(kind_of(client.stat("f").await), Kind::NotFound);

        // Between the copy and the delete: it is done all the same.
        client.put_object("h", b"bytes").await;
        client.pass_ttl();
        let held = client.store.hold("CopyObject");
        let renaming = client.rename("h", "i");
        let deleting = async {
            let_others_run().await;
            client.delete_object("h").await;
            held.add_permits(1);
        };
        let (renamed, ()) = tokio::join!(renaming, deleting);
        renamed.unwrap();
        assert_eq!(client.read("i").await.unwrap(), b"bytes");
        client.mkdir("alive").await.unwrap();
        assert_eq!(client.keys().await, ["alive/", "i"]);
    });
}

/// T15: `rm -r` of a directory that another client puts something into.
#[test]
fn t15_a_directory_that_another_client_fills_while_it_is_emptied_is_not_empty() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        client.mkdir("d/sub").await.unwrap();
        for name in ["d/a", "d/b", "d/sub/c"] {
            client.write(name, b"bytes").await.unwrap();
        }
        client.unlink("d/sub/c").await.unwrap();
        client.rmdir("d/sub").await.unwrap();
        client.unlink("d/a").await.unwrap();
        client.put_object("d/x", b"theirs").await;
        client.unlink("d/b").await.unwrap();
        assert_eq!(kind_of(client.rmdir("d").await), Kind::NotEmpty);
        client.pass_ttl();
        assert_eq!(client.list("d").await.unwrap(), ["x"]);
        assert_eq!(client.read("d/x").await.unwrap(), b"theirs");
        client.unlink("d/x").await.unwrap();
        client.rmdir("d").await.unwrap();
        assert!(client.keys().await.is_empty());
    });
}
