//! Listings of directories: what they show, and what they cost.

use pailfs::stats::Stats;
use pailfs::tree::ROOT;

use crate::client::Client;
use crate::harness::block_on;

/// Waits for something that another task does.
async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..1_000_000 {
        if is_true() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{what} never came true");
}

fn lists(stats: &Stats) -> u64 {
    stats.requests_of("ListObjectsV2")
}

/// Takes up to `max` names after a cookie; returns them with the last cookie.
async fn take(client: &Client, fh: u64, cookie: u64, max: usize) -> (Vec<String>, u64) {
    let (mut names, mut last) = (Vec::new(), cookie);
    client
        .fs
        .readdir(fh, cookie, false, &mut |entry| {
            if names.len() == max {
                return false;
            }
            names.push(entry.name.as_str().to_owned());
            last = entry.cookie;
            true
        })
        .await
        .unwrap();
    (names, last)
}

async fn flat(client: &Client, count: usize) {
    for i in 0..count {
        client.put_object(&format!("{i:06}"), b"").await;
    }
}

#[test]
fn the_first_entries_are_here_before_the_last_page_and_the_next_page_is_asked_for_meanwhile() {
    block_on(async {
        let client = Client::new();
        flat(&client, 2_500).await;
        let held = client.store.hold_listings();
        let before = lists(&client.stats);
        let fh = client.fs.opendir(ROOT).unwrap();
        held.add_permits(1);
        let (names, cookie) = take(&client, fh, 0, 10).await;
        assert_eq!(names.len(), 10);
        until("the second page is asked for", || lists(&client.stats) == before + 2).await;
        held.add_permits(2);
        let (names, _) = take(&client, fh, cookie, usize::MAX).await;
        assert_eq!(names.len(), 2_490);
        assert_eq!(lists(&client.stats), before + 3);
        client.fs.releasedir(fh);
    });
}

#[test]
fn any_cookie_of_a_large_directory_finds_its_place_again() {
    block_on(async {
        let client = Client::new();
        flat(&client, 12_000).await;
        let fh = client.fs.opendir(ROOT).unwrap();
        let mut cookies = Vec::new();
        client
            .fs
            .readdir(fh, 0, true, &mut |entry| {
                cookies.push((entry.name.as_str().to_owned(), entry.cookie));
                true
            })
            .await
            .unwrap();
        assert_eq!(cookies.len(), 12_000);
        client.pass_ttl();
        // Another client adds and removes names meanwhile; what stays is shown once, after any cookie.
        client.put_object("000000-new", b"").await;
        client.put_object("003000-new", b"").await;
        client.delete_object("004000").await;
        for at in [11_998, 0, 6_000, 3_500, 9_999, 999, 1_000, 1_001] {
            let (name, cookie) = &cookies[at];
            let (names, _) = take(&client, fh, *cookie, 5).await;
            let expected: Vec<&String> = cookies[at + 1..].iter().map(|(name, _)| name).take(5).collect();
            assert_eq!(names.iter().collect::<Vec<_>>(), expected, "after {name}");
        }
        client.fs.releasedir(fh);
    });
}

/// 8,002 objects in 1,101 directories.
async fn tree(client: &Client) {
    for d in 0..100 {
        for s in 0..10 {
            for f in 0..8 {
                client.put_object(&format!("d{d:03}/s{s}/f{f}"), b"x").await;
            }
        }
    }
    client.put_object("readme", b"x").await;
    client.put_object("a-first", b"x").await;
}

#[test]
fn a_walk_over_a_tree_costs_little_more_than_its_raw_listing() {
    block_on(async {
        let client = Client::new();
        tree(&client).await;
        let before = lists(&client.stats);
        client.store.clear_calls();
        assert_eq!(client.find("").await.unwrap().len(), 8_002 + 1_100);
        let asked = lists(&client.stats) - before;
        // The raw listing is 9 pages.
        assert!(asked <= 13, "{asked} LISTs");
        let calls = client.store.calls();
        assert!(calls.iter().all(|call| *call == "ListObjectsV2"), "{calls:?}");
        println!("find: {asked} LISTs, {} directories ahead", client.stats.listed_ahead_hits.value());
    });
}

#[test]
fn a_walk_on_a_server_whose_order_has_to_show_costs_as_little() {
    block_on(async {
        let client = Client::new().with_order_unknown();
        tree(&client).await;
        let before = lists(&client.stats);
        assert_eq!(client.find("").await.unwrap().len(), 8_002 + 1_100);
        let asked = lists(&client.stats) - before;
        assert!(asked <= 13, "{asked} LISTs");
    });
}

#[test]
fn a_large_directory_is_listed_in_shards() {
    block_on(async {
        for (unknown, count) in [(false, 40_000), (true, 40_000)] {
            let client = Client::new();
            let client = if unknown { client.with_order_unknown() } else { client };
            flat(&client, count).await;
            let names = client.list_unsorted("").await.unwrap();
            assert!(names.is_sorted() && names.len() == count);
            assert!(client.stats.shards.value() > 0, "no shards");
            println!(
                "{} LISTs, {} shards, {} probes",
                lists(&client.stats),
                client.stats.shards.value(),
                client.stats.shard_probes.value()
            );
        }
    });
}
