//! Behaviour by family, and what it costs: requests are counted, never timed.

use std::ffi::OsStr;
use std::time::Duration;

use pailfs::error::Kind;
use pailfs::s3::{Attributes, PutRequest, Store};
use pailfs::tree::ROOT;

use crate::client::{BUCKET, Client, READ, REWRITE, TTL, WRITE, kind_of, until};
use crate::harness::block_on;

#[test]
fn a_fresh_name_costs_nothing_and_an_unknown_one_two_requests() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"x").await;
        client.store.clear_calls();
        client.stat("f").await.unwrap();
        let mut calls = client.store.calls();
        calls.sort_unstable();
        assert_eq!(calls, ["HeadObject", "ListObjectsV2"]);
        client.store.clear_calls();
        client.stat("f").await.unwrap();
        assert_eq!(kind_of(client.stat("none").await), Kind::NotFound);
        client.store.clear_calls();
        assert_eq!(kind_of(client.stat("none").await), Kind::NotFound);
        assert!(client.store.calls().is_empty(), "{:?}", client.store.calls());
        client.pass_ttl();
        client.stat("f").await.unwrap();
        assert_eq!(client.store.calls().len(), 2);
    });
}

#[test]
fn attributes_of_a_listing_cost_no_request_per_entry() {
    block_on(async {
        let client = Client::new();
        for i in 0..100 {
            client.put_object(&format!("d/{i}"), b"x").await;
        }
        client.store.clear_calls();
        // As the kernel does while a program is in it.
        let held = client.walk("d").await.unwrap();
        assert_eq!(client.list("d").await.unwrap().len(), 100);
        for i in 0..100 {
            assert_eq!(client.stat(&format!("d/{i}")).await.unwrap().size, 1);
        }
        let heads = client.store.calls().iter().filter(|call| **call == "HeadObject").count();
        assert!(heads <= 1, "{heads} HEADs; only the directory itself may need one");
        client.fs.forget(held.ino, 1);
    });
}

/// The kernel answers by itself for as long as a reply tells it to: no longer than this mount would.
#[test]
fn what_the_kernel_is_told_grows_old_when_it_does_here() {
    block_on(async {
        let client = Client::new();
        for key in ["d/a", "d/b"] {
            client.put_object(key, b"x").await;
        }
        let part = TTL / 10;
        // As the kernel does while a program is in it.
        let dir = client.walk("d").await.unwrap();
        assert_eq!(client.stat("d/a").await.unwrap().ttl, TTL);
        assert_eq!(kind_of(client.stat("d/none").await), Kind::NotFound);
        client.clock.advance(part * 4);
        // From memory: what is left.
        let attr = client.walk("d/a").await.unwrap();
        assert_eq!(attr.ttl, part * 6);
        assert_eq!(client.fs.getattr(attr.ino).await.unwrap().ttl, part * 6);
        assert_eq!(client.fs.absent_for(dir.ino, OsStr::new("none")), part * 6);
        assert_eq!(client.fs.absent_for(dir.ino, OsStr::new("a")), Duration::ZERO);
        assert_eq!(client.fs.getattr(ROOT).await.unwrap().ttl, TTL);
        // An answer is as old as its question.
        client.pass_ttl();
        let held = client.store.hold_listings();
        let asked = client.stats.requests_of("ListObjectsV2");
        let later = async {
            until("it is asked for", || client.stats.requests_of("ListObjectsV2") > asked).await;
            client.clock.advance(part * 3);
            held.add_permits(1_000);
        };
        let (attr_now, ()) = tokio::join!(client.fs.getattr(attr.ino), later);
        assert_eq!(attr_now.unwrap().ttl, part * 7);
        // What a listing said is as old as the listing when it is shown, and so is what it left out.
        client.pass_ttl();
        let fh = client.fs.opendir(dir.ino).unwrap();
        let mut shown = Vec::new();
        let mut cookie = 0;
        for _ in 0..2 {
            let (mut taken, from) = (None, cookie);
            let mut take = |entry: &pailfs::fs::DirEntry| {
                if taken.is_some() {
                    return false;
                }
                taken = entry.attr.map(|attr| (attr.ino, attr.ttl));
                cookie = entry.cookie;
                true
            };
            client.fs.readdir(fh, from, true, &mut take).await.unwrap();
            shown.extend(taken);
            client.clock.advance(part * 2);
        }
        assert_eq!(shown.iter().map(|(_, ttl)| *ttl).collect::<Vec<_>>(), [TTL, part * 8]);
        client.fs.releasedir(fh);
        assert_eq!(client.fs.absent_for(dir.ino, OsStr::new("never")), part * 6);
        // What was made here and is not saved is nobody else's.
        let file = client.open("d/new", WRITE).await.unwrap();
        client.clock.advance(TTL * 3);
        assert_eq!(client.fs.getattr(file.0).await.unwrap().ttl, TTL);
        client.close(file).await.unwrap();
        for ino in shown.into_iter().map(|(ino, _)| ino).chain([attr.ino, dir.ino]) {
            client.fs.forget(ino, 1);
        }
    });
}

#[test]
fn ten_thousand_names_are_listings_alone() {
    block_on(async {
        let client = Client::new().with_posix(pailfs::fs::PosixMode::Off);
        for i in 0..10_000 {
            client.put_object(&format!("{i:05}"), b"").await;
        }
        client.store.clear_calls();
        assert_eq!(client.list("").await.unwrap().len(), 10_000);
        // Ten pages, and what finding out costs how the names divide.
        let calls = client.store.calls();
        assert!(calls.iter().all(|call| *call == "ListObjectsV2"), "{calls:?}");
        let pages = calls.len() as u64 - client.stats.shard_probes.value();
        assert!(pages <= 12 && calls.len() <= 20, "{pages} pages of {} LISTs", calls.len());
    });
}

#[test]
fn a_cached_file_is_read_again_without_a_get() {
    block_on(async {
        let client = Client::new();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i >> 8) as u8).collect();
        client.put_object("f", &bytes).await;
        assert!(client.read("f").await.unwrap() == bytes);
        client.store.clear_calls();
        assert!(client.read("f").await.unwrap() == bytes);
        assert!(!client.store.calls().contains(&"GetObject"), "{:?}", client.store.calls());
        // A new version of the same size is another object to the cache.
        let other: Vec<u8> = bytes.iter().map(|b| b ^ 1).collect();
        client.put_object("f", &other).await;
        assert!(client.read("f").await.unwrap() == other);
    });
}

#[test]
fn a_small_new_file_is_one_put() {
    block_on(async {
        let client = Client::new();
        client.stat("").await.unwrap();
        client.store.clear_calls();
        client.write("f", b"hello").await.unwrap();
        let calls = client.store.calls();
        assert_eq!(calls.iter().filter(|call| **call == "PutObject").count(), 1, "{calls:?}");
        assert!(!calls.contains(&"CreateMultipartUpload"));
        // Closing it again without a change sends nothing.
        client.store.clear_calls();
        let file = client.open("f", WRITE).await.unwrap();
        client.close(file).await.unwrap();
        assert!(!client.store.calls().contains(&"PutObject"));
    });
}

#[test]
fn two_mounts_of_one_key_lose_no_update() {
    block_on(async {
        let one = Client::new();
        let two = one.another();
        one.put_object("f", b"base").await;
        for round in 0..50 {
            let a = one.open("f", WRITE).await.unwrap();
            let b = two.open("f", WRITE).await.unwrap();
            one.fs.write(a.1, 0, format!("one {round}").as_bytes()).await.unwrap();
            two.fs.write(b.1, 0, format!("two {round}").as_bytes()).await.unwrap();
            let (x, y) = tokio::join!(one.close(a), two.close(b));
            let winners = usize::from(x.is_ok()) + usize::from(y.is_ok());
            assert_eq!(winners, 1, "round {round}: {x:?} {y:?}");
            let loser = x.err().or(y.err()).unwrap();
            assert_eq!(loser.kind(), Kind::Stale);
            let object = String::from_utf8(one.object("f").await.unwrap()).unwrap();
            let copies: Vec<String> =
                one.keys().await.into_iter().filter(|k| k.contains(".conflict-")).collect();
            assert_eq!(copies.len(), 1, "{copies:?}");
            let copy = String::from_utf8(one.object(&copies[0]).await.unwrap()).unwrap();
            assert!(
                object.contains(&format!(" {round}")) && copy.contains(&format!(" {round}")),
                "{object} {copy}"
            );
            one.delete_object(&copies[0]).await;
            one.pass_ttl();
        }
    });
}

#[test]
fn a_small_change_that_lost_is_kept_over_the_version_that_won() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"0123456789").await;
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 2, b"XX").await.unwrap();
        client.put_object("f", b"abcdef").await;
        assert_eq!(kind_of(client.close(file).await), Kind::Stale);
        let copies: Vec<String> =
            client.keys().await.into_iter().filter(|k| k.contains(".conflict-")).collect();
        assert_eq!(client.object(&copies[0]).await.unwrap(), b"abXXef\0\0\0\0");
        assert_eq!(client.object("f").await.unwrap(), b"abcdef");
        assert!(client.fs.pending().is_empty(), "nothing is owed any more");
        client.pass_ttl();
        assert_eq!(client.read("f").await.unwrap(), b"abcdef");
    });
}

#[test]
fn a_listing_on_its_way_does_not_bring_back_what_was_removed_meanwhile() {
    block_on(async {
        let client = Client::new();
        for i in 0..1500 {
            client.put_object(&format!("{i:04}"), b"").await;
        }
        let fh = client.fs.opendir(ROOT).unwrap();
        // The first page is here, the second is not.
        let mut taken = 0;
        let mut cookie = 0;
        client
            .fs
            .readdir(fh, 0, false, &mut |entry| {
                taken += 1;
                cookie = entry.cookie;
                taken < 10
            })
            .await
            .unwrap();
        client.unlink("1400").await.unwrap();
        client.write("zz", b"new").await.unwrap();
        let mut names = Vec::new();
        client
            .fs
            .readdir(fh, cookie, true, &mut |entry| {
                names.push(entry.name.as_str().to_owned());
                true
            })
            .await
            .unwrap();
        client.fs.releasedir(fh);
        assert!(!names.contains(&"1400".to_owned()));
        assert_eq!(names.iter().filter(|name| *name == "zz").count(), 1);
        assert_eq!(kind_of(client.stat("1400").await), Kind::NotFound);
        assert!(client.stat("zz").await.is_ok());
    });
}

#[test]
fn an_archived_object_says_so() {
    block_on(async {
        let client = Client::new();
        let request = PutRequest {
            bucket: BUCKET.to_owned(),
            key: "cold".to_owned(),
            body: "x".into(),
            attributes: Attributes { storage_class: Some("GLACIER".to_owned()), ..Attributes::default() },
            ..PutRequest::default()
        };
        Store::put(&*client.store, request).await.unwrap();
        assert_eq!(client.stat("cold").await.unwrap().size, 1);
        let error = client.open("cold", READ).await.unwrap_err();
        assert_eq!(error.errno(), rustix::io::Errno::REMOTEIO.raw_os_error());
    });
}

#[test]
fn forgotten_inodes_leave_the_table() {
    block_on(async {
        let client = Client::new();
        for i in 0..500 {
            client.put_object(&format!("d/{i}"), b"").await;
        }
        assert_eq!(client.list("d").await.unwrap().len(), 500);
        for i in 0..500 {
            client.stat(&format!("d/{i}")).await.unwrap();
        }
        assert!(client.fs.inodes() <= 2, "{} inodes", client.fs.inodes());
    });
}

#[test]
fn a_server_that_lies_about_conditions_is_asked_first() {
    block_on(async {
        let client = Client::new().with_conditions_unknown();
        client.store.ignore_conditions(true);
        client.put_object("f", b"base").await;
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"mine").await.unwrap();
        client.put_object("f", b"theirs").await;
        assert_eq!(kind_of(client.close(file).await), Kind::Stale);
        assert_eq!(client.object("f").await.unwrap(), b"theirs");
    });
}

#[test]
fn a_name_made_by_another_client_meanwhile_is_an_error_of_create_exclusive() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"x").await;
        let flags = pailfs::fs::OpenFlags { exclusive: true, ..WRITE };
        let answer = client.fs.create(ROOT, OsStr::new("f"), flags, pailfs::fs::Maker::of_mode(0o644)).await;
        assert_eq!(kind_of(answer.map(|_| ())), Kind::AlreadyExists);
    });
}

#[test]
fn a_new_object_has_the_type_of_its_name_and_an_old_one_keeps_its_own() {
    block_on(async {
        let client = Client::new();
        let type_of = async |key: &str| {
            let info = client.store.head(BUCKET, key, None).await.unwrap();
            info.attributes.content_type
        };
        for (name, expected) in
            [("a.html", Some("text/html")), ("b.tar.gz", Some("application/gzip")), ("noext", None)]
        {
            client.write(name, b"x").await.unwrap();
            assert_eq!(type_of(name).await.as_deref(), expected, "{name}");
        }
        let attributes = Attributes { content_type: Some("text/x-own".to_owned()), ..Attributes::default() };
        let request = PutRequest {
            bucket: BUCKET.to_owned(),
            key: "c.html".to_owned(),
            attributes,
            ..PutRequest::default()
        };
        client.store.put(request).await.unwrap();
        client.pass_ttl();
        client.write("c.html", b"changed").await.unwrap();
        assert_eq!(type_of("c.html").await.as_deref(), Some("text/x-own"));
    });
}

#[test]
fn a_conflict_ends_as_was_asked_for() {
    use pailfs::fs::OnConflict;
    for (policy, kept, closes) in [
        (OnConflict::KeepBoth, "theirs", false),
        (OnConflict::Fail, "theirs", false),
        (OnConflict::Overwrite, "mine", true),
    ] {
        block_on(async {
            let client = Client::new().on_conflict(policy);
            client.put_object("f", b"before").await;
            let file = client.open("f", REWRITE).await.unwrap();
            client.fs.write(file.1, 0, b"mine").await.unwrap();
            client.put_object("f", b"theirs").await;
            assert_eq!(client.close(file).await.is_ok(), closes, "{policy:?}");
            assert_eq!(client.object("f").await.unwrap(), kept.as_bytes());
            let copies = client.keys().await.iter().filter(|key| key.contains(".conflict-")).count();
            assert_eq!(copies, usize::from(policy == OnConflict::KeepBoth), "{policy:?}");
            assert!(client.fs.pending().is_empty());
            client.pass_ttl();
            assert_eq!(client.read("f").await.unwrap(), kept.as_bytes());
        });
    }
}

#[test]
fn of_many_hosts_that_make_a_file_exclusively_one_does() {
    block_on(async {
        let one = Client::new();
        let exclusive = pailfs::fs::OpenFlags { exclusive: true, ..WRITE };
        for round in 0..50 {
            let two = one.another();
            let name = format!("lock{round}");
            // Neither knows of the other: both have just found the name free.
            assert_eq!(kind_of(one.stat(&name).await), Kind::NotFound);
            assert_eq!(kind_of(two.stat(&name).await), Kind::NotFound);
            let (name, other) = (OsStr::new(&name), two);
            let made = futures::join!(
                one.fs.create(ROOT, name, exclusive, pailfs::fs::Maker::of_mode(0o644)),
                other.fs.create(ROOT, name, exclusive, pailfs::fs::Maker::of_mode(0o644))
            );
            let (winner, opened, refused) = match made {
                (Ok((_, opened)), Err(error)) => (&one, opened, error),
                (Err(error), Ok((_, opened))) => (&other, opened, error),
                both => panic!("{both:?}"),
            };
            assert_eq!(refused.kind(), Kind::AlreadyExists);
            // It shows at once, and what is written is saved over it and nothing else.
            let key = name.to_str().unwrap();
            assert_eq!(one.object(key).await.unwrap(), b"");
            winner.fs.write(opened.fh, 0, b"mine").await.unwrap();
            winner.fs.flush(opened.fh).await.unwrap();
            winner.fs.release(opened.fh);
            assert_eq!(one.object(key).await.unwrap(), b"mine");
        }
        assert!(one.keys().await.iter().all(|key| !key.contains("conflict")));
    });
}

#[test]
fn a_new_file_takes_the_name_of_a_new_file_that_took_an_object_s() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"old").await;
        let first = client.open("new", WRITE).await.unwrap();
        client.rename("new", "f").await.unwrap();
        let second = client.open("new", WRITE).await.unwrap();
        client.fs.write(second.1, 0, b"second").await.unwrap();
        client.rename("new", "f").await.unwrap();
        client.close(second).await.unwrap();
        client.close(first).await.unwrap();
        assert_eq!(client.objects().await, [("f".to_owned(), 6)], "no lost race with ourselves");
    });
}

/// The kernel cuts reads and what is mapped at the length that `stat` tells.
#[test]
fn stat_of_a_file_without_a_name_tells_of_what_its_handles_have() {
    block_on(async {
        let client = Client::new();
        for (before, replaced) in [(0, false), (6, false), (6, true)] {
            for saved in [false, true] {
                let file = client.open("f", WRITE).await.unwrap();
                client.fs.write(file.1, 0, &b"before"[..before]).await.unwrap();
                if saved {
                    client.fs.flush(file.1).await.unwrap();
                }
                if replaced {
                    client.write("g", b"another one").await.unwrap();
                    client.rename("g", "f").await.unwrap();
                } else {
                    client.unlink("f").await.unwrap();
                }
                let size = async || client.fs.getattr(file.0).await.unwrap().size;
                assert_eq!(size().await, before as u64);
                client.fs.write(file.1, before as u64, b"after").await.unwrap();
                assert_eq!(size().await, before as u64 + 5, "{before} {replaced} {saved}");
                client.pass_ttl();
                assert_eq!(size().await, before as u64 + 5);
                assert_eq!(client.read_all(file.1).await.unwrap()[before..], *b"after");
                client.truncate_open(file.0, file.1, 3).await.unwrap();
                assert_eq!(size().await, 3);
                client.close(file).await.unwrap();
                // What has the name by then is another file.
                assert_eq!(client.stat("f").await.map(|attr| attr.size).ok(), replaced.then_some(11));
                let _ = client.unlink("f").await;
            }
        }
    });
}
