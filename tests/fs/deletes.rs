//! Names removed in a row, as `rm -r` does: what it costs, and that nothing is lost by it.

use std::collections::BTreeSet;

use pailfs::error::Kind;
use pailfs::s3::When;
use pailfs::tree::ROOT;
use pailfs::write::Conditions;

use crate::client::{Client, WRITE, kind_of, let_others_run, until};
use crate::harness::block_on;

/// Removes two files of its own, each with a request, so that the next is one of a row.
async fn begin_row(client: &Client) {
    for name in ["row-1", "row-2"] {
        client.put_object(name, b"x").await;
        client.unlink(name).await.unwrap();
        assert!(client.object(name).await.is_none(), "the first of a row are waited for");
    }
}

async fn fill(client: &Client, dir: &str, count: usize) -> Vec<String> {
    let paths: Vec<String> = (0..count).map(|i| format!("{dir}/{i:03}")).collect();
    for path in &paths {
        client.put_object(path, b"x").await;
    }
    paths
}

/// As `rm -r` does, with the directory held as the kernel does meanwhile.
async fn remove_all(client: &Client, dir: &str) -> pailfs::error::Result<()> {
    let held = client.walk(dir).await?;
    for name in client.list(dir).await? {
        client.unlink(&format!("{dir}/{name}")).await?;
    }
    client.fs.forget(held.ino, 1);
    client.rmdir(dir).await
}

fn count(client: &Client, operation: &str) -> usize {
    client.store.calls().iter().filter(|call| **call == operation).count()
}

fn beside_lists(client: &Client) -> Vec<&'static str> {
    client.store.calls().into_iter().filter(|call| *call != "ListObjectsV2").collect()
}

#[test]
fn a_thousand_files_in_ten_directories_are_a_few_requests() {
    for marked in [false, true] {
        block_on(async {
            let client = Client::new();
            for dir in 0..10 {
                if marked {
                    client.mkdir(&format!("d{dir}")).await.unwrap();
                }
                fill(&client, &format!("d{dir}"), 100).await;
            }
            client.store.clear_calls();
            for dir in 0..10 {
                remove_all(&client, &format!("d{dir}")).await.unwrap();
            }
            assert!(client.keys().await.is_empty(), "{:?}", client.keys().await);
            let (deletes, batches) = (count(&client, "DeleteObject"), count(&client, "DeleteObjects"));
            assert_eq!(batches, 10, "one for each directory");
            // Two that a row begins with, and the markers.
            assert_eq!(deletes, if marked { 12 } else { 2 });
            let others: Vec<_> = beside_lists(&client)
                .into_iter()
                .filter(|call| !call.starts_with("DeleteObject") && *call != "HeadObject")
                .collect();
            assert!(others.is_empty(), "{others:?}");
            let lists = count(&client, "ListObjectsV2");
            assert!(
                lists <= 50,
                "{lists} LISTs: to find, read and empty a directory, and where it has no marker to keep it"
            );
        });
    }
}

#[test]
fn a_name_is_gone_at_once_and_stays_so_whatever_a_listing_says() {
    block_on(async {
        let client = Client::new();
        fill(&client, "d", 10).await;
        begin_row(&client).await;
        let held = client.walk("d").await.unwrap();
        client.unlink("d/003").await.unwrap();
        assert!(client.object("d/003").await.is_some(), "it waits for company");
        for _ in 0..3 {
            assert_eq!(kind_of(client.stat("d/003").await), Kind::NotFound);
            assert_eq!(client.list("d").await.unwrap().len(), 9);
            assert_eq!(kind_of(client.unlink("d/003").await), Kind::NotFound);
            // Longer than an absent name is believed to be.
            client.pass_ttl();
        }
        client.fs.forget(held.ino, 1);
        client.fs.fsyncdir(ROOT).await.unwrap();
        assert!(client.object("d/003").await.is_none());
    });
}

#[test]
fn a_listing_on_its_way_does_not_bring_back_what_was_removed() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        fill(&client, "d", 10).await;
        begin_row(&client).await;
        let held = client.walk("d").await.unwrap();
        client.stat("d/003").await.unwrap();
        client.unlink("d/003").await.unwrap();
        // Asked for between the removal and the answer to the delete, and answered after it.
        let listings = client.store.hold_listings();
        let (names, ()) = tokio::join!(client.list("d"), async {
            until("the listing is asked for", || client.store.calls().last() == Some(&"ListObjectsV2")).await;
            client.fs.fsyncdir(held.ino).await.unwrap();
            assert!(client.object("d/003").await.is_none());
            listings.add_permits(1_000);
        });
        assert_eq!(names.unwrap().len(), 9);
        client.fs.forget(held.ino, 1);
    });
}

#[test]
fn what_s3_refuses_is_told_by_the_directory_and_the_name_is_there_again() {
    for told_by_fsync in [false, true] {
        block_on(async {
            let client = Client::new();
            client.mkdir("d").await.unwrap();
            let paths = fill(&client, "d", 500).await;
            client.store.protect("d/123");
            begin_row(&client).await;
            let held = client.walk("d").await.unwrap();
            for path in &paths {
                client.unlink(path).await.unwrap();
            }
            if told_by_fsync {
                assert_eq!(kind_of(client.fs.fsyncdir(held.ino).await), Kind::AccessDenied);
                client.fs.fsyncdir(held.ino).await.expect("it is told once");
                assert_eq!(kind_of(client.rmdir("d").await), Kind::NotEmpty);
            } else {
                assert_eq!(kind_of(client.rmdir("d").await), Kind::AccessDenied);
            }
            assert_eq!(client.list("d").await.unwrap(), ["123"]);
            assert_eq!(client.keys().await, ["d/", "d/123"]);
            // From then on each is waited for.
            assert_eq!(kind_of(client.unlink("d/123").await), Kind::AccessDenied);
            client.store.refuse_nothing();
            client.unlink("d/123").await.unwrap();
            client.rmdir("d").await.unwrap();
            client.fs.forget(held.ino, 1);
            assert!(client.keys().await.is_empty());
        });
    }
}

#[test]
fn the_first_that_s3_refuses_is_told_at_once() {
    block_on(async {
        let client = Client::new();
        fill(&client, "d", 3).await;
        client.store.refuse("DeleteObject", Kind::AccessDenied, When::Before);
        for _ in 0..3 {
            assert_eq!(kind_of(client.unlink("d/000").await), Kind::AccessDenied);
        }
        assert_eq!(client.list("d").await.unwrap().len(), 3);
    });
}

#[test]
fn a_newer_version_of_another_client_is_not_deleted() {
    // By a batch, by requests one by one, and where the first of a row are waited for.
    for delete_many in [true, false] {
        block_on(async {
            let client = Client::new().with_conditions(Conditions { delete_many, ..Conditions::ALL });
            client.mkdir("d").await.unwrap();
            fill(&client, "d", 50).await;
            begin_row(&client).await;
            client.store.clear_calls();
            let held = client.walk("d").await.unwrap();
            let names = client.list("d").await.unwrap();
            client.put_object("d/007", b"newer").await;
            for name in &names {
                client.unlink(&format!("d/{name}")).await.unwrap();
            }
            client.put_object("d/009", b"newer still").await;
            assert_eq!(kind_of(client.rmdir("d").await), Kind::NotEmpty);
            assert_eq!(client.list("d").await.unwrap(), ["007", "009"]);
            client.fs.forget(held.ino, 1);
            assert_eq!(client.read("d/007").await.unwrap(), b"newer");
            assert_eq!(client.read("d/009").await.unwrap(), b"newer still");
            let batches = usize::from(delete_many);
            assert_eq!(count(&client, "DeleteObjects"), batches);
            assert_eq!(count(&client, "DeleteObject"), 50 * (1 - batches));
        });
    }
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"old").await;
        client.stat("f").await.unwrap();
        let held = client.walk("f").await.unwrap();
        client.put_object("f", b"newer").await;
        assert_eq!(kind_of(client.unlink("f").await), Kind::Stale);
        assert_eq!(client.object("f").await.unwrap(), b"newer");
        // The kernel asks once more, as it does after ESTALE, and then means the one that is there.
        client.unlink("f").await.unwrap();
        client.fs.forget(held.ino, 1);
        assert!(client.object("f").await.is_none());
    });
}

#[test]
fn where_no_condition_is_looked_at_they_go_in_batches_all_the_same() {
    block_on(async {
        let client = Client::new().with_conditions(Conditions::NONE);
        client.store.ignore_conditions(true);
        client.mkdir("d").await.unwrap();
        fill(&client, "d", 50).await;
        begin_row(&client).await;
        client.store.clear_calls();
        remove_all(&client, "d").await.unwrap();
        assert_eq!(beside_lists(&client).iter().filter(|call| **call != "HeadObject").count(), 2);
        assert!(client.keys().await.is_empty());
    });
}

#[test]
fn a_file_made_anew_is_there_after_its_delete() {
    block_on(async {
        let client = Client::new();
        fill(&client, "d", 5).await;
        client.put_object("other", b"other").await;
        client.put_object("another", b"another").await;
        begin_row(&client).await;
        for path in ["d/000", "d/001", "d/002", "d/003"] {
            client.stat(path).await.unwrap();
            client.unlink(path).await.unwrap();
        }
        client.write("d/000", b"new").await.unwrap();
        client.rename("other", "d/001").await.unwrap();
        client.rename("d/004", "d/002").await.unwrap();
        client.mkdir("d/003").await.unwrap();
        client.fs.fsyncdir(ROOT).await.unwrap();
        assert_eq!(client.object("d/000").await.unwrap(), b"new");
        assert_eq!(client.object("d/001").await.unwrap(), b"other");
        assert_eq!(client.object("d/002").await.unwrap(), b"x");
        assert_eq!(client.list("d").await.unwrap(), ["000", "001", "002", "003/"]);
        client.pass_ttl();
        assert_eq!(client.list("d").await.unwrap(), ["000", "001", "002", "003/"]);
    });
}

#[test]
fn a_directory_that_moves_takes_nothing_along_that_was_removed() {
    block_on(async {
        let client = Client::new();
        fill(&client, "d", 5).await;
        begin_row(&client).await;
        let held = client.walk("d").await.unwrap();
        client.unlink("d/001").await.unwrap();
        client.unlink("d/002").await.unwrap();
        client.store.clear_calls();
        client.rename("d", "e").await.unwrap();
        client.fs.forget(held.ino, 1);
        assert_eq!(client.keys().await, ["e/000", "e/003", "e/004"]);
        assert_eq!(count(&client, "DeleteObjects"), 2, "of what was removed, and of what was copied");
        assert_eq!(count(&client, "DeleteObject"), 0);
        assert_eq!(client.list("e").await.unwrap(), ["000", "003", "004"]);
    });
}

#[test]
fn a_directory_that_loses_its_last_file_stays() {
    block_on(async {
        let client = Client::new();
        let paths = fill(&client, "d", 20).await;
        begin_row(&client).await;
        let held = client.walk("d").await.unwrap();
        for path in &paths[..19] {
            client.unlink(path).await.unwrap();
        }
        // A writer, so that this one is waited for, and knows of the others.
        let file = client.open(&paths[19], WRITE).await.unwrap();
        client.unlink(&paths[19]).await.unwrap();
        client.close(file).await.unwrap();
        client.fs.flush_all().await.unwrap();
        assert_eq!(client.keys().await, ["d/"]);
        client.pass_ttl();
        assert!(client.list("d").await.unwrap().is_empty());
        client.fs.forget(held.ino, 1);
    });
}

#[test]
fn flushing_and_time_send_what_waits() {
    block_on(async {
        let client = Client::new();
        fill(&client, "d", 5).await;
        begin_row(&client).await;
        client.unlink("d/000").await.unwrap();
        client.fs.flush_all().await.unwrap();
        assert!(client.object("d/000").await.is_none());
        let client = client.with_delete_wait(std::time::Duration::from_millis(20));
        begin_row(&client).await;
        client.unlink("d/001").await.unwrap();
        let gone = async {
            while client.object("d/001").await.is_some() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.expect("it goes by itself");
    });
}

#[test]
fn more_than_a_request_holds_wait_for_each_other() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        for i in 0..6_500 {
            client.put_object(&format!("d/{i:04}"), b"").await;
        }
        begin_row(&client).await;
        let names = client.list("d").await.unwrap();
        let held = client.walk("d").await.unwrap();
        client.store.clear_calls();
        let deletes = client.store.hold("DeleteObjects");
        let removed = std::sync::atomic::AtomicUsize::new(0);
        let so_far = || removed.load(std::sync::atomic::Ordering::Relaxed);
        let (all, ()) = tokio::join!(
            async {
                for name in &names {
                    client.unlink(&format!("d/{name}")).await?;
                    removed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                client.rmdir("d").await
            },
            async {
                // Four batches on their way, and one that is full.
                until("the queue is full", || so_far() == 5_000).await;
                let_others_run().await;
                assert_eq!((so_far(), count(&client, "DeleteObjects")), (5_000, 4));
                deletes.add_permits(1_000);
            }
        );
        all.unwrap();
        client.fs.forget(held.ino, 1);
        assert!(client.keys().await.is_empty());
        assert_eq!(count(&client, "DeleteObjects"), 7);
    });
}

/// Whatever request fails, and however: nothing is deleted that was not removed here, and what was removed is gone when
/// nobody complains, or there again.
#[test]
fn any_request_may_fail() {
    block_on(async {
        for (when, kind) in
            [(When::Before, Kind::Server), (When::After, Kind::Server), (When::Before, Kind::AccessDenied)]
        {
            for n in 1.. {
                let client = Client::new();
                let stays: BTreeSet<String> = ["d/a", "d/b", "e/a", "f"].map(str::to_owned).into();
                for key in &stays {
                    client.put_object(key, b"stays").await;
                }
                let goes: Vec<String> =
                    fill(&client, "d", 6).await.into_iter().chain(fill(&client, "g", 6).await).collect();
                client.store.clear_calls();
                client.store.fail_nth(n, kind, when);
                let mut told = Vec::new();
                let mut removed = BTreeSet::new();
                for path in &goes {
                    match client.unlink(path).await {
                        Ok(()) => drop(removed.insert(path.clone())),
                        Err(error) => told.push(error.kind()),
                    }
                }
                for dir in ["d", "g"] {
                    if let Ok(held) = client.walk(dir).await {
                        told.extend(client.fs.fsyncdir(held.ino).await.err().map(|error| error.kind()));
                        client.fs.forget(held.ino, 1);
                    }
                }
                let asked = client.store.calls().len() as u64;
                client.store.fail_nth(u64::MAX, Kind::Server, When::Before);
                client.fs.flush_all().await.unwrap();
                let keys: BTreeSet<String> = client.keys().await.into_iter().collect();
                let context = format!("request {n} failing {when:?} {kind:?}: {told:?} {keys:?}");
                assert!(stays.is_subset(&keys), "{context}");
                let left: Vec<&String> = keys.iter().filter(|key| removed.contains(*key)).collect();
                assert!(left.is_empty() || !told.is_empty(), "{context}");
                client.pass_ttl();
                // What is in the bucket shows, and the directories are there as they were.
                for key in keys.iter().filter(|key| !key.ends_with('/')) {
                    client
                        .stat(key)
                        .await
                        .unwrap_or_else(|error| panic!("{key} {}: {context}", error.report()));
                }
                for dir in ["d", "g"] {
                    assert!(client.stat(dir).await.unwrap().is_dir(), "{context}");
                }
                // And it can be done again.
                for path in &goes {
                    let _ = client.unlink(path).await;
                }
                client.fs.flush_all().await.unwrap();
                let keys: BTreeSet<String> =
                    client.keys().await.into_iter().filter(|key| !key.ends_with('/')).collect();
                assert_eq!(keys, stays, "{context}");
                if asked < n {
                    assert!(told.is_empty(), "{context}");
                    break;
                }
            }
        }
    });
}
