//! What a mount holds in memory, and lets go of; and what is written where it waits for its upload there.

use std::sync::Arc;
use std::time::Duration;

use pailfs::error::Kind;
use pailfs::s3::{Store, When};

use crate::client::{BUCKET, Client, READ, REWRITE, kind_of};
use crate::harness::block_on;

const MIB: usize = 1 << 20;

/// Bytes that a mount holds for something.
async fn held(client: &Client, pool: &str) -> u64 {
    client.fs.view().await.memory.iter().find(|(name, _)| *name == pool).map_or(0, |(_, bytes)| *bytes)
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| ((at / 4096) as u8).wrapping_mul(31).wrapping_add(at as u8).wrapping_add(seed))
        .collect()
}

async fn write(client: &Client, fh: u64, body: &[u8]) {
    for (step, chunk) in body.chunks(MIB).enumerate() {
        client.fs.write(fh, (step * MIB) as u64, chunk).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_is_let_go_of_when_nobody_reads_for_a_while() {
    let client = Client::new();
    let body = bytes(4 * MIB, 9);
    client.put_object("f", &body).await;
    let file = client.open("f", READ).await.unwrap();
    let read = async |at: usize| client.fs.read(file.1, (at * MIB) as u64, 1 << 20).await.unwrap().concat();
    for at in 0..4 {
        assert!(read(at).await == body[at * MIB..][..MIB]);
    }
    let gets = client.stats.requests_of("GetObject");
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        read(0).await;
    }
    assert_eq!(client.stats.requests_of("GetObject"), gets, "whoever goes on reading finds it");
    assert!(held(&client, "read_cache").await >= MIB as u64);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(held(&client, "read_cache").await, 0);
    assert!(read(0).await == body[..MIB]);
    assert!(client.stats.requests_of("GetObject") > gets);
    client.close(file).await.unwrap();
}

#[test]
fn a_file_larger_than_the_memory_streams_through_it() {
    block_on(async {
        let client = Client::new().with_staging_in_memory(64 << 20);
        for round in 0..2 {
            let body = bytes(150 * MIB + 7, round);
            let file = client.open("f", REWRITE).await.unwrap();
            write(&client, file.1, &body).await;
            client.close(file).await.unwrap();
            assert!(client.object("f").await.unwrap() == body);
            assert!(client.store.list_uploads(BUCKET, "").await.unwrap().is_empty());
            assert_eq!(client.staged_bytes(), 0);
        }
        assert_eq!(client.read("f").await.unwrap().len(), 150 * MIB + 7);
    });
}

#[test]
fn what_cannot_stream_fails_with_no_space_and_what_was_taken_is_saved() {
    block_on(async {
        let client = Client::new().with_staging_in_memory(64 << 20);
        let file = client.open("f", REWRITE).await.unwrap();
        // From the end on: no part of it is ever whole.
        let body = bytes(MIB, 1);
        let mut taken = Vec::new();
        let mut full = None;
        for at in (0..64).rev() {
            match client.fs.write(file.1, (at * 2 * MIB) as u64, &body).await {
                Ok(()) => taken.push(at),
                Err(error) => {
                    full = Some(error.kind());
                    break;
                }
            }
        }
        assert_eq!(full, Some(Kind::NoSpace));
        assert!((16..40).contains(&taken.len()), "{} MiB were taken", taken.len());
        client.close(file).await.unwrap();
        let object = client.object("f").await.unwrap();
        assert_eq!(object.len(), 127 * MIB);
        for at in taken {
            assert!(object[at * 2 * MIB..][..MIB] == body);
        }
        // The memory is there again.
        client.write("g", &bytes(10 * MIB, 2)).await.unwrap();
    });
}

#[test]
fn many_writers_wait_for_each_other() {
    block_on(async {
        let client = Arc::new(Client::new().with_staging_in_memory(64 << 20));
        let writers = (0..6u8).map(|n| {
            let client = Arc::clone(&client);
            async move {
                let body = bytes(9 * MIB, n);
                let name = format!("f{n}");
                let file = client.open(&name, REWRITE).await.unwrap();
                for (step, chunk) in body.chunks(MIB).enumerate() {
                    client.fs.write(file.1, (step * MIB) as u64, chunk).await.unwrap();
                    tokio::task::yield_now().await;
                }
                client.close(file).await.unwrap();
                assert!(client.object(&name).await.unwrap() == body);
            }
        });
        // Two at a time are as much as the memory holds.
        let mut writers = futures::StreamExt::buffer_unordered(futures::stream::iter(writers), 2);
        while futures::StreamExt::next(&mut writers).await.is_some() {}
    });
}

/// D10: "A failed `close()` keeps the bytes in memory as long as the process lives, and they are tried again".
#[test]
fn a_failed_save_keeps_the_bytes_while_the_process_lives() {
    block_on(async {
        let client = Client::new().with_staging_in_memory(64 << 20);
        let body = bytes(5 * MIB, 3);
        let file = client.open("f", REWRITE).await.unwrap();
        write(&client, file.1, &body).await;
        client.store.refuse("PutObject", Kind::Server, When::Before);
        assert_eq!(kind_of(client.close(file).await), Kind::Server);
        assert_eq!(client.fs.pending().len(), 1);
        assert!(client.read("f").await.unwrap() == body);
        client.store.refuse_nothing();
        client.fs.flush_all().await.unwrap();
        assert!(client.object("f").await.unwrap() == body);
    });
}

/// After a failure that is the endpoint's silence, pauses do not grow to minutes: it is back at some moment.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_saved_is_saved_soon_after_a_long_silence() {
    let client = Client::new().with_staging_in_memory(64 << 20);
    let file = client.open("f", REWRITE).await.unwrap();
    write(&client, file.1, b"bytes").await;
    client.store.refuse("PutObject", Kind::Unreachable, When::Before);
    assert_eq!(kind_of(client.close(file).await), Kind::Unreachable);
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    assert_eq!(client.fs.pending().len(), 1);
    client.store.refuse_nothing();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(client.fs.pending().is_empty());
    assert_eq!(client.object("f").await.unwrap(), b"bytes");
}
