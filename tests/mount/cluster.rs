//! Two mounts over a cluster of three nodes, each through another node, while the third is killed and comes back, twice.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::mount::{Mounted, endpoint, fresh_place, wait_for};
use crate::harness::{Endpoint, Server, block_on};
use pailfs::s3::ListRequest;

/// A node is away for three seconds, and then has to start.
const SOON: Duration = Duration::from_secs(20);

/// The nodes there are: their addresses and processes.
fn nodes() -> Vec<(String, i32)> {
    let directory = Server::Cluster.directory().expect("a cluster says where its nodes are told of");
    let text = fs::read_to_string(directory.join("nodes")).unwrap();
    text.lines()
        .map(|line| {
            let (url, pid) = line.split_once(' ').unwrap();
            (url.to_owned(), pid.parse().unwrap())
        })
        .collect()
}

fn listens(url: &str) -> bool {
    std::net::TcpStream::connect(url.trim_start_matches("http://")).is_ok()
}

/// Whether a node answers, which it does once it has found another one.
fn serves(node: &Endpoint, bucket: &str) -> bool {
    let request = ListRequest { bucket: bucket.to_owned(), ..ListRequest::default() };
    listens(&node.url) && block_on(async { node.client().await.list(request).await.is_ok() })
}

/// What a file holds after so many turns.
fn told(writer: usize, turns: usize) -> String {
    (0..turns).map(|turn| format!("{writer}:{turn:05}\n")).collect()
}

/// Four writers, two on each mount, while something else is done. Whenever one has closed its file, the other mount opens it,
/// and it is all there. Returns how often each did that.
fn while_working(mounts: &[Mounted; 2], then: impl FnOnce()) -> [usize; 4] {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let working = [0, 1, 2, 3].map(|writer| {
            let (writes, reads, stop) = (&mounts[writer % 2], &mounts[1 - writer % 2], &stop);
            scope.spawn(move || {
                let mut turns = 0;
                while !stop.load(Ordering::Relaxed) {
                    take_turn(writer, turns, writes, reads);
                    turns += 1;
                }
                turns
            })
        });
        then();
        stop.store(true, Ordering::Relaxed);
        working.map(|working| working.join().unwrap())
    })
}

fn take_turn(writer: usize, turn: usize, writes: &Mounted, reads: &Mounted) {
    let (name, context) = (format!("f{writer}"), format!("writer {writer}, turn {turn}"));
    let mut options = OpenOptions::new();
    // In turn anew and added to.
    let text = if turn.is_multiple_of(3) {
        options.write(true).create(true).truncate(true);
        told(writer, turn + 1)
    } else {
        options.append(true);
        format!("{writer}:{turn:05}\n")
    };
    let saved = options.open(writes.at(&name)).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // A program that does not ask hears nothing of a close that failed.
        file.sync_all()
    });
    saved.unwrap_or_else(|error| panic!("{context}: {error}"));
    let found =
        fs::read_to_string(reads.at(&name)).unwrap_or_else(|error| panic!("{context}, read: {error}"));
    assert_eq!(found, told(writer, turn + 1), "{context}: what was closed is opened");
}

/// Of what a listing said, and of names that were not there, nothing is believed for a while: each open asks.
const STRICT: [&str; 6] = ["--metadata-ttl", "0s", "--negative-ttl", "0s", "--log-level", "info"];

/// C1: what one mount has closed, the other opens.
fn two_mounts_see_each_other(server: Server) {
    let Some(place) = fresh_place(server, "two_mounts_see_each_other") else { return };
    let source = format!("s3://{}", place.bucket);
    let mounts = [0, 1].map(|_| Mounted::mount(place.clone(), &source, &STRICT));
    let turns = while_working(&mounts, || {
        let long = || fs::metadata(mounts[0].at("f0")).is_ok_and(|about| about.len() > 30 * 8);
        assert!(wait_for(SOON, long), "thirty turns are taken");
    });
    for (writer, turns) in turns.iter().enumerate() {
        assert!(block_on(place.get(&format!("f{writer}"))).unwrap() == told(writer, *turns));
    }
}

#[test]
fn two_mounts_see_each_other_on_the_demo_server() {
    two_mounts_see_each_other(Server::Demo);
}

#[test]
fn two_mounts_see_each_other_on_garage() {
    two_mounts_see_each_other(Server::Garage);
}

/// C1 and D1 over a cluster of which a node is lost: what one mount has closed, the other opens; nothing that was
/// acknowledged is lost; and nobody hears of it, because two of three nodes are enough.
#[test]
fn a_node_that_is_killed_takes_nothing_from_two_mounts() {
    let Some(place) = fresh_place(Server::Cluster, "a_node_is_killed") else { return };
    let cluster = endpoint(Server::Cluster);
    let of_node = |node: usize| Endpoint { url: nodes()[node].0.clone(), ..cluster.clone() };
    let source = format!("s3://{}", place.bucket);
    let mounts = [0, 1].map(|node| Mounted::at_endpoint(&of_node(node), place.clone(), &source, &STRICT));
    let turns = while_working(&mounts, || {
        // One that no mount speaks to: of one that is back and has not found the others yet, a program hears `EIO` after five
        // answers of 503.
        for node in [2, 2] {
            let (url, pid) = nodes()[node].clone();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            assert!(wait_for(SOON, || !listens(&url)), "the node is gone");
            let is_back = || nodes()[node].1 != pid && serves(&of_node(node), &place.bucket);
            assert!(wait_for(SOON, is_back), "the node comes back");
            // With all three there, the load goes on until another one may go.
            let before = fs::read_to_string(mounts[0].at("f1")).unwrap_or_default().len();
            let moved = || fs::read_to_string(mounts[0].at("f1")).is_ok_and(|text| text.len() != before);
            assert!(wait_for(SOON, moved), "the load goes on");
        }
    });
    // To whoever knows nothing but what the cluster has, through the node that lost nothing and those that did.
    for node in 0..3 {
        let fresh = Mounted::at_endpoint(&of_node(node), place.clone(), &source, &[]);
        for (writer, turns) in turns.iter().enumerate() {
            let found = fs::read_to_string(fresh.at(format!("f{writer}"))).unwrap();
            assert_eq!(found, told(writer, *turns), "through node {node}");
        }
    }
}
