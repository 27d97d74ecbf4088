//! Listings of directories: what they show, and what they cost.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use pailfs::fs::{Order, PosixMode};
use pailfs::s3::{Listing, Store};
use pailfs::stats::Stats;
use pailfs::tree::ROOT;
use pailfs::tree::keys::{DirKey, path_of};
use proptest::prelude::*;

use pailfs::error::Kind;

use crate::client::{Client, Cost, READ, in_rounds, kind_of, let_others_run, on_one_thread, until};
use crate::harness::block_on;

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
    on_one_thread(async {
        let client = Client::new().with_posix(PosixMode::Off);
        tree(&client).await;
        client.store.clear_calls();
        let (found, cost) = in_rounds(&client, client.find("")).await;
        assert_eq!(found.unwrap().len(), 8_002 + 1_100);
        println!("find: {cost:?}, {} directories ahead", client.stats.listed_ahead_hits.value());
        // The raw listing is 9 pages, one after the other.
        assert!(cost.lists <= 13, "{} LISTs", cost.lists);
        assert!(cost.rounds <= 7, "{} rounds", cost.rounds);
        let calls = client.store.calls();
        assert!(calls.iter().all(|call| *call == "ListObjectsV2"), "{calls:?}");
    });
}

/// What was read fills the memory, and is kept because nobody else wants it.
#[test]
fn what_was_read_gives_way_to_listing_ahead() {
    block_on(async {
        let client = Client::new();
        tree(&client).await;
        client.put_object("z-large", &vec![7; 44 << 20]).await;
        assert_eq!(client.read("z-large").await.unwrap().len(), 44 << 20);
        client.pass_ttl();
        let before = lists(&client.stats);
        assert_eq!(client.find("").await.unwrap().len(), 8_003 + 1_100);
        let asked = lists(&client.stats) - before;
        assert!(asked <= 13, "{asked} LISTs");
    });
}

/// `cp -r` looks for every name before it makes it.
#[test]
fn names_of_a_directory_that_is_filled_are_not_asked_for_one_by_one() {
    block_on(async {
        let client = Client::new();
        client.put_object("old/there", b"theirs").await;
        // As the kernel does, it keeps both directories.
        client.fs.lookup(ROOT, OsStr::new("old")).await.unwrap();
        client.fs.mkdir(ROOT, OsStr::new("new"), pailfs::fs::Maker::of_mode(0o755)).await.unwrap();
        client.store.clear_calls();
        let asked = || {
            let calls = client.store.calls();
            calls.iter().filter(|call| ["HeadObject", "ListObjectsV2"].contains(call)).count()
        };
        // What was not there has nothing in it.
        for i in 0..20 {
            client.write(&format!("new/{i}"), b"bytes").await.unwrap();
        }
        assert_eq!(asked(), 0);
        for round in 0..5 {
            client.pass_ttl();
            client.store.clear_calls();
            for i in 0..20 {
                client.write(&format!("old/{round}-{i}"), b"bytes").await.unwrap();
            }
            // The directory itself is asked for once as well; the first time two names are.
            let most = if round == 0 { 7 } else { 3 };
            assert!(asked() <= most, "round {round}: {:?}", client.store.calls());
        }
        // What another client makes is seen when what was listed is not believed any more.
        client.put_object("old/new-of-theirs", b"theirs").await;
        client.pass_ttl();
        assert_eq!(client.read("old/new-of-theirs").await.unwrap(), b"theirs");
        assert_eq!(client.read("old/there").await.unwrap(), b"theirs");
        assert_eq!(client.list("old").await.unwrap().len(), 102);
    });
}

/// A directory of more than a page does not answer for its names, and is not listed again and again for them.
#[test]
fn a_large_directory_is_not_listed_for_its_names() {
    block_on(async {
        let client = Client::new();
        for i in 0..1_001 {
            client.put_object(&format!("d/{i:04}"), b"").await;
        }
        client.fs.lookup(ROOT, OsStr::new("d")).await.unwrap();
        for i in 0..100 {
            client.pass_ttl();
            assert_eq!(kind_of(client.walk(&format!("d/absent-{i}")).await), Kind::NotFound);
        }
        let whole = client.store.calls().iter().filter(|call| **call == "ListObjectsV2").count();
        // For each round one of the name and one of the directory, one of the directory at first, and one listing.
        assert!(whole <= 202, "{whole} LISTs");
    });
}

/// Names are small: whoever waits for one does not wait for the bytes of others, and what nobody waits for does.
#[test]
fn a_walk_goes_on_while_every_request_carries_bytes() {
    block_on(async {
        let client = Client::new();
        tree(&client).await;
        const READERS: usize = 80;
        for i in 0..READERS {
            client.put_object(&format!("z{i:02}"), &vec![7; 256 << 10]).await;
        }
        let held = client.store.hold("GetObject");
        let gets = || client.stats.requests_of("GetObject");
        let work = async {
            let readers = (0..READERS).map(|i| {
                let client = &client;
                async move { client.read(&format!("z{i:02}")).await.unwrap().len() }
            });
            futures::future::join_all(readers).await
        };
        let walk = async {
            until("as many GETs are under way as may be", || gets() == 64).await;
            // The top was listed for the readers' names.
            let pages = client.stats.listed_ahead_pages.value();
            assert_eq!(client.find("").await.unwrap().len(), 8_002 + READERS + 1_100);
            assert_eq!(gets(), 64, "the others wait");
            assert!(client.stats.listed_ahead_pages.value() > pages, "it was listed ahead");
            held.add_permits(10_000);
        };
        let (read, ()) = futures::join!(work, walk);
        assert!(read.iter().all(|len| *len == 256 << 10));
    });
}

#[test]
fn one_directory_costs_its_pages_and_no_walk() {
    on_one_thread(async {
        let client = Client::new();
        tree(&client).await;
        let (names, cost) = in_rounds(&client, client.list("")).await;
        assert_eq!((names.unwrap().len(), cost), (102, Cost { rounds: 1, lists: 1 }));
        client.pass_ttl();
        // One in the middle: two names, and its listing.
        let (names, cost) = in_rounds(&client, client.list("d050/s5")).await;
        assert_eq!((names.unwrap().len(), cost), (8, Cost { rounds: 3, lists: 3 }));
        assert_eq!(client.stats.listed_ahead_pages.value(), 0);
    });
}

/// SeaweedFS begins a listing elsewhere than it is told to, and leaves names out without a sign of it: `rm -rf` found
/// a directory empty that was not.
#[test]
fn nothing_is_listed_ahead_on_a_server_that_is_not_known_to_begin_where_it_is_told() {
    block_on(async {
        let client = Client::new().with_order_unknown();
        tree(&client).await;
        assert_eq!(client.find("").await.unwrap().len(), 8_002 + 1_100);
        assert_eq!(client.stats.listed_ahead_pages.value(), 0);
        // Once it is known, it is relied on.
        let client = client.with_order_found(Order::Known);
        client.fs.find_orders();
        until("the order is known", || client.fs.order_of_root() == Order::Known).await;
        let before = lists(&client.stats);
        assert_eq!(client.find("").await.unwrap().len(), 8_002 + 1_100);
        let asked = lists(&client.stats) - before;
        assert!(asked <= 13, "{asked} LISTs");
    });
}

#[test]
fn the_order_of_a_bucket_is_found_when_it_is_first_looked_into_and_then_relied_on() {
    block_on(async {
        let client = Client::new();
        tree(&client).await;
        client.store.create_bucket("other", None).await.unwrap();
        let asked = Arc::default();
        let client = client.with_all_buckets(&asked);
        assert_eq!(client.list("").await.unwrap(), ["bucket/", "other/"]);
        client.stat("other").await.unwrap();
        client.stat("bucket").await.unwrap();
        // Finding out writes to the bucket: to see that it is there is no reason to.
        assert!(asked.lock().unwrap().is_empty());
        assert_eq!(client.list("bucket").await.unwrap().len(), 102);
        until("the bucket's server is known", || asked.lock().unwrap().len() == 1).await;
        let_others_run().await;
        client.pass_ttl();
        let before = lists(&client.stats);
        assert_eq!(client.find("bucket/").await.unwrap().len(), 8_002 + 1_100);
        let cost = lists(&client.stats) - before;
        assert!(cost <= 14 && client.stats.listed_ahead_hits.value() > 1_000, "{cost} LISTs");
        assert_eq!(*asked.lock().unwrap(), ["bucket"], "each that is looked into, once");
    });
}

/// Lists a directory of so many names with their attributes.
fn listing_of(count: usize, unknown: bool) -> (Cost, Client) {
    on_one_thread(async {
        let client = Client::new();
        let client = if unknown { client.with_order_unknown() } else { client };
        flat(&client, count).await;
        let (names, cost) = in_rounds(&client, client.list_unsorted("")).await;
        let names = names.unwrap();
        assert!(names.is_sorted() && names.len() == count);
        let (shards, probes) = (client.stats.shards.value(), client.stats.shard_probes.value());
        println!("{count} names: {cost:?}, {shards} shards, {probes} probes");
        (cost, client)
    })
}

#[test]
fn a_large_directory_is_listed_in_shards() {
    let (cost, client) = listing_of(100_000, false);
    assert!(cost.rounds <= 50, "{} rounds for 100 pages", cost.rounds);
    assert!(cost.lists <= 130, "{} LISTs for 100 pages", cost.lists);
    assert!(client.stats.shards.value() > 0);
    let (cost, _) = listing_of(20_000, false);
    assert!(cost.rounds <= 20, "{} rounds for 20 pages", cost.rounds);
    assert!(cost.lists <= 45, "{} LISTs for 20 pages", cost.lists);
}

#[test]
fn a_small_directory_is_its_pages_and_shards_are_for_servers_that_are_known() {
    let (cost, _) = listing_of(3_000, false);
    assert_eq!(cost, Cost { rounds: 3, lists: 3 });
    let (cost, client) = listing_of(20_000, true);
    assert_eq!(cost, Cost { rounds: 20, lists: 20 });
    assert_eq!(client.stats.shards.value() + client.stats.shard_probes.value(), 0);
}

/// What is asked for long before it is wanted has to be asked for again.
#[test]
fn shards_run_no_further_ahead_than_what_they_say_is_believed() {
    block_on(async {
        for names_a_second in [5_000, 20_000, 60_000] {
            let client = Client::new().with_posix(PosixMode::Off);
            flat(&client, 60_000).await;
            let (before, heads) = (lists(&client.stats), client.stats.requests_of("HeadObject"));
            let fh = client.fs.opendir(ROOT).unwrap();
            let (mut cookie, mut seen) = (0, 0);
            loop {
                let (from, mut taken, mut inos) = (cookie, 0u32, Vec::new());
                let mut take = |entry: &pailfs::fs::DirEntry| {
                    if taken == 100 {
                        return false;
                    }
                    taken += 1;
                    cookie = entry.cookie;
                    inos.push(entry.attr.expect("attributes come with the name").ino);
                    true
                };
                client.fs.readdir(fh, from, true, &mut take).await.unwrap();
                for ino in &inos {
                    client.fs.forget(*ino, 1);
                }
                if taken == 0 {
                    break;
                }
                seen += taken;
                let_others_run().await;
                client.clock.advance(Duration::from_secs(1) * taken / names_a_second);
            }
            client.fs.releasedir(fh);
            assert_eq!(seen, 60_000);
            let asked = lists(&client.stats) - before;
            println!(
                "{names_a_second} names a second: {asked} LISTs, {} shards",
                client.stats.shards.value()
            );
            assert_eq!(client.stats.requests_of("HeadObject"), heads);
            assert!(asked <= 110, "{asked} LISTs for 60 pages at {names_a_second} names a second");
        }
    });
}

/// What has to show: every path of the bucket's keys, directories with a `/`.
async fn expected(client: &Client) -> BTreeSet<String> {
    let root = DirKey::root("");
    let objects = client.objects().await;
    let is_dir = |key: &str| {
        let below = format!("{key}/");
        objects.iter().any(|(other, _)| other.starts_with(&below))
    };
    let mut shown = BTreeSet::new();
    for (key, size) in &objects {
        let mut path = String::new();
        let names = path_of(&root, key).expect("every key has a path");
        let (last, dirs) = names.split_last().expect("a path has a name");
        for name in dirs {
            path = format!("{path}{}/", name.as_str());
            shown.insert(path.clone());
        }
        let is_marker = key.ends_with('/') && *size == 0;
        // A marker is the directory itself, and one at the top is of a directory without a name.
        if !is_marker {
            let beside = if is_dir(key) { "%~f" } else { "" };
            shown.insert(format!("{path}{}{beside}", last.as_str()));
        }
    }
    shown
}

#[derive(Clone, Debug)]
enum Step {
    Find,
    /// Something happens here after so many directories of a walk.
    FindWhile(usize, Change),
    /// Another client changes something, and the TTL passes.
    They(String, bool),
    PassTtl,
}

#[derive(Clone, Debug)]
enum Change {
    Write(String),
    Unlink(usize),
    Mkdir(String),
    Rename(usize, String),
    RenameDir(usize, String),
    Rmdir(usize),
}

fn component() -> impl Strategy<Value = String> {
    "[!-.0a]{1,2}".prop_filter("not a path of its own", |name| name != "." && name != "..")
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => proptest::collection::vec(component(), 1..5).prop_map(|parts| parts.join("/")),
        1 => "[!-0a]{1,5}",
        1 => proptest::collection::vec(component(), 1..4).prop_map(|parts| parts.join("/") + "/"),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => component().prop_map(Change::Write),
        3 => (0usize..40).prop_map(Change::Unlink),
        1 => component().prop_map(Change::Mkdir),
        2 => (0usize..40, component()).prop_map(|(at, to)| Change::Rename(at, to)),
        1 => (0usize..40, component()).prop_map(|(at, to)| Change::RenameDir(at, to)),
        1 => (0usize..40).prop_map(Change::Rmdir),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Find),
        4 => (0usize..20, change()).prop_map(|(after, change)| Step::FindWhile(after, change)),
        2 => (key(), any::<bool>()).prop_map(|(key, put)| Step::They(key, put)),
        1 => Just(Step::PassTtl),
    ]
}

/// Changes something on the mount; whether that works is not of interest here.
async fn apply(client: &Client, change: &Change, shown: &BTreeSet<String>) {
    let files: Vec<&String> = shown.iter().filter(|path| !path.ends_with('/')).collect();
    let dirs: Vec<&String> = shown.iter().filter(|path| path.ends_with('/')).collect();
    let file = |at: usize| files.get(at % files.len().max(1)).map(|path| path.as_str());
    let dir = |at: usize| dirs.get(at % dirs.len().max(1)).map(|path| path.trim_end_matches('/'));
    let beside = |name: &str, at: usize| match file(at) {
        Some(path) => format!("{}{name}", path.rfind('/').map_or("", |slash| &path[..=slash])),
        None => name.to_owned(),
    };
    let _ = match change {
        Change::Write(name) => client.write(&beside(name, name.len()), b"x").await,
        Change::Unlink(at) => client.unlink(file(*at).unwrap_or("a")).await,
        Change::Mkdir(name) => client.mkdir(&beside(name, 7 * name.len())).await,
        Change::Rename(at, to) => client.rename(file(*at).unwrap_or("a"), &beside(to, at + 3)).await,
        Change::RenameDir(at, to) => client.rename(dir(*at).unwrap_or("a"), to).await,
        Change::Rmdir(at) => client.rmdir(dir(*at).unwrap_or("a")).await,
    };
}

async fn walk_and_change(client: &Client, after: usize, change: &Change) -> Result<(), TestCaseError> {
    let before = expected(client).await;
    let (mut found, mut todo, mut visited) = (Vec::new(), vec![String::new()], 0);
    while let Some(dir) = todo.pop() {
        if visited == after {
            apply(client, change, &before).await;
        }
        visited += 1;
        // Gone meanwhile is fine; what was there all along is looked for below.
        let Ok(names) = client.list_unsorted(&dir).await else { continue };
        let paths: Vec<String> = names.into_iter().map(|name| format!("{dir}{name}")).collect();
        todo.extend(paths.iter().rev().filter(|path| path.ends_with('/')).cloned());
        found.extend(paths);
    }
    // What is removed here is gone from the mount at once, and from the bucket a little later.
    client.fs.fsyncdir(ROOT).await.map_err(|error| TestCaseError::fail(error.report()))?;
    let now = expected(client).await;
    for path in before.intersection(&now) {
        let times = found.iter().filter(|other| *other == path).count();
        prop_assert_eq!(times, 1, "{:?} was there all along; found {:?}", path, found);
    }
    for path in &found {
        prop_assert!(before.contains(path) || now.contains(path), "{:?} never was", path);
    }
    Ok(())
}

fn run(keys: &BTreeSet<String>, page_max: u16, is_known: bool, steps: &[Step]) -> Result<(), TestCaseError> {
    block_on(async {
        let client = Client::new();
        let client = if is_known { client } else { client.with_order_unknown() };
        for (i, key) in keys.iter().enumerate() {
            let body: &[u8] = if key.ends_with('/') && i % 3 > 0 { b"" } else { b"x" };
            client.put_object(key, body).await;
        }
        client.store.list_like(Listing { page_max: Some(page_max), ..Listing::default() });
        for step in steps {
            match step {
                Step::Find => {
                    let mut found = client.find("").await.map_err(|e| TestCaseError::fail(e.report()))?;
                    found.sort();
                    prop_assert_eq!(found, expected(&client).await.into_iter().collect::<Vec<_>>());
                }
                Step::FindWhile(after, change) => walk_and_change(&client, *after, change).await?,
                Step::They(key, put) => {
                    if *put {
                        client.put_object(key, b"theirs").await;
                    } else {
                        client.delete_object(key).await;
                    }
                    client.pass_ttl();
                }
                Step::PassTtl => client.pass_ttl(),
            }
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_walk_never_skips_or_repeats_a_name(
        keys in proptest::collection::btree_set(key(), 0..40),
        page_max in 1u16..12,
        is_known in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..8),
    ) {
        run(&keys, page_max, is_known, &steps)?;
    }

    #[test]
    fn a_server_in_another_order_loses_no_name(
        keys in proptest::collection::btree_set(key(), 0..40),
        page_max in 1u16..12,
    ) {
        let (first, again, expected) = block_on(async {
            let client = Client::new().with_order_unknown();
            for key in &keys {
                client.put_object(key, b"x").await;
            }
            let in_walk_order = Listing { page_max: Some(page_max), in_walk_order: true, ..Listing::default() };
            client.store.list_like(in_walk_order);
            let first = client.find("").await.unwrap();
            client.pass_ttl();
            let again = client.find("").await.unwrap();
            client.store.list_like(Listing::default());
            (first, again, expected(&client).await)
        });
        let bare = |path: &String| path.trim_end_matches('/').trim_end_matches("%~f").to_owned();
        let all: BTreeSet<String> = expected.iter().map(bare).collect();
        prop_assert_eq!(&again.iter().map(bare).collect::<BTreeSet<_>>(), &all);
        // Until the order is known to be another, an object may hide a directory of its name.
        let files: BTreeSet<&String> = first.iter().filter(|path| !path.ends_with('/')).collect();
        let shown: BTreeSet<String> = first.iter().map(bare).collect();
        for path in &all {
            let hidden = path.match_indices('/').any(|(at, _)| files.contains(&path[..at].to_owned()));
            prop_assert!(shown.contains(path) || hidden, "{:?} is lost: {:?}", path, first);
        }
        prop_assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), first.len(), "twice: {:?}", first);
    }
}

#[test]
fn a_directory_is_not_empty_because_a_page_has_its_marker_alone() {
    block_on(async {
        let client = Client::new();
        for key in ["d/", "d/e/f", "only/"] {
            client.put_object(key, b"").await;
        }
        client.store.list_like(Listing { page_max: Some(1), ..Listing::default() });
        assert_eq!(kind_of(client.rmdir("d").await), Kind::NotEmpty);
        assert_eq!(client.list("d").await.unwrap(), ["e/"]);
        client.rmdir("only").await.unwrap();
        assert_eq!(client.keys().await, ["d/", "d/e/f"]);
    });
}

#[test]
fn names_of_a_directory_just_listed_cost_nothing_whether_they_are_there_or_not() {
    block_on(async {
        let client = Client::new();
        for i in 0..10_000 {
            client.put_object(&format!("d/{i:06}"), b"x").await;
        }
        // As the kernel does while a program is in it.
        let held = client.walk("d").await.unwrap();
        assert_eq!(client.list("d").await.unwrap().len(), 10_000);
        client.store.clear_calls();
        for i in 0..10_000 {
            assert_eq!(client.stat(&format!("d/{i:06}")).await.unwrap().size, 1);
            assert_eq!(kind_of(client.stat(&format!("d/{i:06}.lock")).await), Kind::NotFound);
        }
        assert!(client.store.calls().is_empty(), "{} calls", client.store.calls().len());
        // A name made here is there, also when its inode has been dropped and much else was looked up since.
        client.write("d/new.lock", b"new").await.unwrap();
        assert_eq!(client.stat("d/new.lock").await.unwrap().size, 3);
        client.unlink("d/000007").await.unwrap();
        assert_eq!(kind_of(client.stat("d/000007").await), Kind::NotFound);
        // Another client's file shows when the time has come.
        client.put_object("d/theirs", b"x").await;
        assert_eq!(kind_of(client.stat("d/theirs").await), Kind::NotFound);
        client.pass_ttl();
        client.stat("d/theirs").await.unwrap();
        client.fs.forget(held.ino, 1);
    });
}

#[test]
fn several_who_ask_for_one_name_are_one_question() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"x").await;
        let held = client.store.hold_listings();
        let stats = async {
            let askers = (0..50).map(|_| client.stat("f"));
            futures::future::join_all(askers).await
        };
        let open_later = async {
            until("it is asked for", || lists(&client.stats) >= 1).await;
            held.add_permits(100);
        };
        let (answers, ()) = tokio::join!(stats, open_later);
        assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|attr| attr.size == 1)));
        assert_eq!(lists(&client.stats), 1);
        assert_eq!(client.stats.requests_of("HeadObject"), 1);
        assert!(client.fs.inodes() <= 1, "every lookup was given back");
    });
}

#[test]
fn the_kernel_is_told_what_another_client_changed() {
    block_on(async {
        let client = Client::new();
        for key in ["d/changed", "d/gone", "d/open", "d/same"] {
            client.put_object(key, b"1").await;
        }
        let mut news = client.fs.news().unwrap();
        let dir = client.walk("d").await.unwrap();
        let mut inos = Vec::new();
        for name in ["changed", "gone", "open", "same"] {
            inos.push(client.fs.lookup(dir.ino, OsStr::new(name)).await.unwrap().ino);
        }
        let open = client.fs.open(inos[2], READ).await.unwrap();
        client.put_object("d/changed", b"22").await;
        client.put_object("d/open", b"22").await;
        client.delete_object("d/gone").await;
        // What happens here is no news.
        client.write("d/same", b"mine").await.unwrap();
        client.pass_ttl();
        client.list("d").await.unwrap();
        let mut told: Vec<String> =
            std::iter::from_fn(|| news.try_recv().ok()).map(|n| format!("{:?}", n.what)).collect();
        told.sort();
        let expected = [
            format!("Data {{ ino: {:?} }}", inos[0]),
            format!("Entry {{ parent: {:?}, name: Name(\"gone\") }}", dir.ino),
            // Its handle goes on with the version it has, and whoever looks for the name finds another inode.
            format!("Entry {{ parent: {:?}, name: Name(\"open\") }}", dir.ino),
        ];
        assert_eq!(told, expected);
        client.list("d").await.unwrap();
        assert!(news.try_recv().is_err(), "each is told once");
        client.fs.release(open.fh);
        for ino in inos.into_iter().chain([dir.ino]) {
            client.fs.forget(ino, 1);
        }
    });
}

#[test]
fn a_reader_slower_than_the_ttl_costs_a_listing_and_not_a_request_for_each_name() {
    block_on(async {
        for is_known in [true, false] {
            let client = Client::new().with_posix(PosixMode::Off);
            let client = if is_known { client } else { client.with_order_unknown() };
            flat(&client, 5_000).await;
            let (before, heads) = (lists(&client.stats), client.stats.requests_of("HeadObject"));
            let fh = client.fs.opendir(ROOT).unwrap();
            let (mut cookie, mut names) = (0, Vec::new());
            loop {
                let (mut taken, mut inos) = (0, Vec::new());
                client
                    .fs
                    .readdir(fh, cookie, true, &mut |entry| {
                        if taken == 200 {
                            return false;
                        }
                        taken += 1;
                        cookie = entry.cookie;
                        names.push(entry.name.as_str().to_owned());
                        inos.push(entry.attr.expect("attributes come with the name").ino);
                        true
                    })
                    .await
                    .unwrap();
                for ino in &inos {
                    client.fs.forget(*ino, 1);
                }
                if taken == 0 {
                    break;
                }
                client.pass_ttl();
            }
            client.fs.releasedir(fh);
            assert!(names.is_sorted_by(|a, b| a < b) && names.len() == 5_000, "{}", names.len());
            assert_eq!(client.stats.requests_of("HeadObject"), heads);
            // Twenty-five times two hundred names: each time a page or a few are asked for again.
            let asked = lists(&client.stats) - before;
            assert!(asked <= 25 * 5 + client.stats.shard_probes.value(), "{asked} LISTs");
        }
    });
}

#[test]
fn the_scratch_keys_of_a_probe_are_not_listed() {
    block_on(async {
        let client = Client::new();
        for key in
            [".pailfs-probe-0123456789abcdef.put", ".pailfs-probe-0123456789abcdef.order/a", "f", ".pailfs"]
        {
            client.put_object(key, b"x").await;
        }
        assert_eq!(client.list("").await.unwrap(), [".pailfs", "f"]);
        // Who knows the name finds it, once the listing is not believed any more.
        client.pass_ttl();
        assert_eq!(client.stat(".pailfs-probe-0123456789abcdef.put").await.unwrap().size, 1);
    });
}
