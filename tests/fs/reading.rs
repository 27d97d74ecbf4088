//! Opening and reading by a listing's word: what it costs, and that it is never wrong.

use pailfs::error::Kind;
use pailfs::s3::{Attributes, PutRequest, Store};

use crate::client::{BUCKET, Client, READ, WRITE, kind_of};
use crate::harness::block_on;

fn count(client: &Client, call: &str) -> usize {
    client.store.calls().iter().filter(|name| **name == call).count()
}

#[test]
fn a_small_file_of_a_fresh_listing_is_one_get() {
    block_on(async {
        let client = Client::new();
        client.put_object("d/f", &[7; 300_000]).await;
        let held = client.walk("d").await.unwrap();
        client.list("d").await.unwrap();
        client.store.clear_calls();
        assert_eq!(client.read("d/f").await.unwrap(), [7; 300_000]);
        assert_eq!(client.store.calls(), ["GetObject"]);
        client.pass_ttl();
        client.store.clear_calls();
        client.read("d/f").await.unwrap();
        assert_eq!(count(&client, "GetObject"), 0, "the bytes are of the same version");
        assert!(count(&client, "HeadObject") >= 1, "a listing that is too old is not believed");
        client.fs.forget(held.ino, 1);
    });
}

#[test]
fn a_file_replaced_since_it_was_listed_is_read_as_it_is_now() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", &[1; 100]).await;
        client.list("").await.unwrap();
        client.put_object("f", &[2; 5_000]).await;
        assert_eq!(client.read("f").await.unwrap(), [2; 5_000], "all of it, and nothing of the old one");
        // Smaller, too.
        client.list("").await.unwrap();
        client.put_object("f", &[3; 10]).await;
        client.fs.drop_caches();
        assert_eq!(client.read("f").await.unwrap(), [3; 10]);
        // And gone.
        client.list("").await.unwrap();
        client.delete_object("f").await;
        client.fs.drop_caches();
        assert_eq!(kind_of(client.read("f").await), Kind::Stale);
    });
}

/// C3: what is believed of a name is at most the TTL old, and so are bytes in memory that are read by it.
#[test]
fn bytes_in_memory_of_a_listed_version_are_as_old_as_the_listing_at_most() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"one").await;
        client.read("f").await.unwrap();
        client.list("").await.unwrap();
        client.put_object("f", b"two").await;
        assert_eq!(client.read("f").await.unwrap(), b"one");
        client.pass_ttl();
        assert_eq!(client.read("f").await.unwrap(), b"two");
    });
}

#[test]
fn a_handle_that_has_read_stays_with_its_version() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", &[1; 8 << 20]).await;
        client.list("").await.unwrap();
        let file = client.open("f", READ).await.unwrap();
        assert_eq!(client.fs.read(file.1, 0, 4096).await.unwrap().concat(), [1; 4096]);
        client.put_object("f", &[2; 8 << 20]).await;
        client.fs.drop_caches();
        assert_eq!(kind_of(client.fs.read(file.1, 7 << 20, 4096).await), Kind::Stale);
        client.close(file).await.unwrap();
        assert_eq!(client.read("f").await.unwrap()[..10], [2; 10]);
    });
}

#[test]
fn what_was_written_here_is_newer_than_any_listing() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"old").await;
        client.list("").await.unwrap();
        client.write("f", b"newer").await.unwrap();
        assert_eq!(client.read("f").await.unwrap(), b"newer");
        client.list("").await.unwrap();
        client.rename("f", "g").await.unwrap();
        client.put_object("f", b"another").await;
        client.pass_ttl();
        assert_eq!(client.read("g").await.unwrap(), b"newer");
        client.list("").await.unwrap();
        client.unlink("g").await.unwrap();
        assert_eq!(kind_of(client.read("g").await), Kind::NotFound);
    });
}

#[test]
fn a_direct_open_asks_whatever_a_listing_said() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"x").await;
        client.list("").await.unwrap();
        client.store.clear_calls();
        let file = client.open("f", pailfs::fs::OpenFlags { direct: true, ..READ }).await.unwrap();
        assert_eq!(count(&client, "HeadObject"), 1);
        client.close(file).await.unwrap();
    });
}

#[test]
fn a_writer_keeps_what_is_stored_beside_the_bytes_of_a_file_that_was_opened_by_a_listing() {
    block_on(async {
        let client = Client::new();
        let request = PutRequest {
            bucket: BUCKET.into(),
            key: "f".into(),
            body: vec![1; 1000].into(),
            attributes: Attributes { content_type: Some("text/x-special".into()), ..Attributes::default() },
            ..PutRequest::default()
        };
        client.store.put(request).await.unwrap();
        client.list("").await.unwrap();
        let reader = client.open("f", READ).await.unwrap();
        assert_eq!(client.fs.read(reader.1, 0, 10).await.unwrap().concat(), [1; 10]);
        let writer = client.open("f", WRITE).await.unwrap();
        client.fs.write(writer.1, 0, &[9; 5]).await.unwrap();
        client.close(writer).await.unwrap();
        assert_eq!(client.fs.read(reader.1, 0, 10).await.unwrap().concat(), [9, 9, 9, 9, 9, 1, 1, 1, 1, 1]);
        client.close(reader).await.unwrap();
        let info = client.store.head(BUCKET, "f", None).await.unwrap();
        assert_eq!(info.attributes.content_type.as_deref(), Some("text/x-special"));
    });
}

#[test]
fn files_read_in_order_are_fetched_before_they_are_opened_and_once() {
    block_on(async {
        let client = Client::new();
        let mut held = Vec::new();
        for d in 0..10 {
            for f in 0..20 {
                client.put_object(&format!("d{d}/f{f:02}"), format!("{d}/{f}").as_bytes()).await;
            }
            held.push(client.walk(&format!("d{d}")).await.unwrap());
        }
        client.store.clear_calls();
        for d in 0..10 {
            client.list(&format!("d{d}")).await.unwrap();
            for f in 0..20 {
                let path = format!("d{d}/f{f:02}");
                assert_eq!(client.read(&path).await.unwrap(), format!("{d}/{f}").as_bytes());
            }
        }
        assert_eq!(count(&client, "HeadObject"), 0);
        assert_eq!(count(&client, "GetObject"), 200, "each once");
        assert!(client.stats.files_ahead.value() > 180, "{} ahead", client.stats.files_ahead.value());
        for dir in held {
            client.fs.forget(dir.ino, 1);
        }
    });
}

/// GNU `cp -r` goes through each directory by inode numbers, which here follow from names.
#[test]
fn files_read_by_inode_number_are_fetched_before_they_are_opened_and_once_too() {
    block_on(async {
        let client = Client::new();
        let (mut held, mut dirs) = (Vec::new(), Vec::new());
        for d in 0..20 {
            for f in 0..20 {
                client.put_object(&format!("t/d{d:02}/f{f:02}"), format!("{d}/{f}").as_bytes()).await;
            }
        }
        held.push(client.walk("t").await.unwrap());
        client.list("t").await.unwrap();
        for d in 0..20 {
            dirs.push((client.stat(&format!("t/d{d:02}")).await.unwrap().ino, d));
        }
        dirs.sort_unstable();
        client.pass_ttl();
        client.store.clear_calls();
        client.list("t").await.unwrap();
        for (_, d) in dirs {
            let dir = format!("t/d{d:02}");
            held.push(client.walk(&dir).await.unwrap());
            let mut files: Vec<_> =
                client.attrs(&dir).await.unwrap().into_iter().map(|attr| attr.ino).zip(0..).collect();
            files.sort_unstable();
            for (_, f) in files {
                let path = format!("{dir}/f{f:02}");
                assert_eq!(client.read(&path).await.unwrap(), format!("{d}/{f}").as_bytes());
            }
        }
        assert!(count(&client, "HeadObject") <= 1, "of the first directory");
        assert_eq!(count(&client, "GetObject"), 400, "each once");
        assert!(client.stats.files_ahead.value() > 370, "{} ahead", client.stats.files_ahead.value());
        assert!(
            client.stats.listed_ahead_hits.value() >= 15,
            "{} known",
            client.stats.listed_ahead_hits.value()
        );
        assert!(count(&client, "ListObjectsV2") <= 8, "{} LISTs", count(&client, "ListObjectsV2"));
        for dir in held {
            client.fs.forget(dir.ino, 1);
        }
    });
}
