//! What a mount counts and holds, and how it is told.

use std::ffi::OsStr;
use std::time::Duration;

use pailfs::stats::{Gauges, Stats, Tariff, table};
use pailfs::tree::ROOT;

use crate::client::{Client, READ, WRITE, until};
use crate::harness::block_on;
use crate::harness::exposition::Exposition;

fn gauges() -> Gauges {
    Gauges { version: "1".into(), source: "s3://b/".into(), mountpoint: "/m".into(), ..Gauges::default() }
}

#[test]
fn a_snapshot_names_every_metric_of_the_table_and_no_other() {
    let stats = Stats::default();
    let text = stats.snapshot(&gauges()).text();
    let told = Exposition::parse(&text);
    for metric in table() {
        let family = told.0.get(metric.name).unwrap_or_else(|| panic!("{} is not there", metric.name));
        assert_eq!((&*family.kind, &*family.help), (metric.kind.name(), metric.meaning));
    }
    assert_eq!(told.0.len(), table().count());
    assert_eq!(told.value("pailfs_disk_cache_used_bytes", &[]), None, "there is no cache");
    assert_eq!(told.value("pailfs_commits_total", &[]), Some(0.0), "a counter begins at 0");
}

#[test]
fn what_was_counted_is_in_the_text_and_odd_names_do_not_break_it() {
    let odd = "s3://b/a\"b\\c\nd}e,f=\"g\"/";
    let stats = Stats::default();
    stats.bytes_received.add(7);
    for (millis, outcome) in [(1, "ok"), (40, "ok"), (90_000, "throttled")] {
        stats.request("GetObject", outcome, Duration::from_millis(millis));
    }
    stats.asked("read");
    stats.waited("read", Duration::from_micros(150));
    let gauges = Gauges {
        source: odd.into(),
        inodes: Some(3),
        cost_dollars: vec![(Tariff::Put, 0.000_005), (Tariff::Get, 1.5)],
        memory_used_bytes: vec![("reads", 5), ("uploads", 6)],
        ..gauges()
    };
    let told = Exposition::parse(&stats.snapshot(&gauges).text());
    let value = |name: &str, labels: &[(&str, &str)]| told.value(name, labels);
    assert_eq!(value("pailfs_s3_received_bytes_total", &[]), Some(7.0));
    let get = ("operation", "GetObject");
    assert_eq!(value("pailfs_s3_requests_total", &[get, ("outcome", "ok")]), Some(2.0));
    assert_eq!(value("pailfs_s3_requests_total", &[get, ("outcome", "throttled")]), Some(1.0));
    let took = "pailfs_s3_request_duration_seconds";
    assert_eq!(value(&format!("{took}_bucket"), &[get, ("le", "0.001")]), Some(1.0));
    assert_eq!(value(&format!("{took}_bucket"), &[get, ("le", "60")]), Some(2.0));
    assert_eq!(value(&format!("{took}_bucket"), &[get, ("le", "+Inf")]), Some(3.0));
    assert_eq!(value(&format!("{took}_sum"), &[get]), Some(90.041));
    assert_eq!(value(&format!("{took}_count"), &[get]), Some(3.0));
    assert_eq!(value("pailfs_fuse_operations_total", &[("operation", "read")]), Some(1.0));
    assert_eq!(value("pailfs_fuse_wait_duration_seconds_count", &[("operation", "read")]), Some(1.0));
    assert_eq!(value("pailfs_s3_cost_dollars_total", &[("tariff", "put")]), Some(0.000_005));
    assert_eq!(value("pailfs_memory_used_bytes", &[("pool", "uploads")]), Some(6.0));
    assert_eq!(value("pailfs_inodes", &[]), Some(3.0));
    assert_eq!(value("pailfs_info", &[("version", "1"), ("source", odd), ("mountpoint", "/m")]), Some(1.0));
}

#[test]
fn a_view_tells_what_is_held() {
    block_on(async {
        let client = Client::new().with_staging_in_memory(64 << 20);
        client.put_object("read", &[7; 100_000]).await;
        assert_eq!(client.fs.view().await.file_handles, 0);
        let read = client.open("read", READ).await.unwrap();
        client.read_all(read.1).await.unwrap();
        let written = client.open("read", WRITE).await.unwrap();
        client.fs.write(written.1, 0, &[8; 5000]).await.unwrap();
        let dir = client.fs.opendir(ROOT).unwrap();
        let view = client.fs.view().await;
        let pool = |name: &str| view.memory.iter().find(|(pool, _)| *pool == name).unwrap().1;
        assert_eq!((view.file_handles, view.dir_handles, view.open_files), (2, 1, 1));
        assert_eq!((pool("read_cache"), pool("staging")), (100_000, 8192));
        assert_eq!(view.staging_used_bytes, Some(8192));
        assert!(view.staging_free_bytes.unwrap() > 8 << 20);
        let held: u64 = view.memory.iter().map(|(_, bytes)| bytes).sum();
        assert!(held < view.memory_budget_bytes && view.memory_budget_bytes < 64 << 20);
        assert!(view.inodes >= 2 && view.disk_cache.is_none());
        client.close(read).await.unwrap();
        client.close(written).await.unwrap();
        client.fs.releasedir(dir);
        let view = client.fs.view().await;
        assert_eq!((view.file_handles, view.dir_handles, view.open_files), (0, 0, 0));
        assert_eq!(view.staging_used_bytes, Some(0));
    });
}

#[test]
fn the_rename_of_a_directory_tells_how_far_it_is() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        for n in 0..10 {
            client.put_object(&format!("d/{n}"), b"x").await;
        }
        assert_eq!(client.fs.renaming(), []);
        let held = client.store.hold("CopyObject");
        let fs = client.fs.clone();
        let rename =
            tokio::spawn(async move { fs.rename(ROOT, OsStr::new("d"), ROOT, OsStr::new("e"), false).await });
        let first = || client.fs.renaming().into_iter().next();
        until("they are listed", || first().is_some_and(|rename| rename.objects.is_some())).await;
        let told = first().unwrap();
        assert_eq!((told.from.as_str(), told.to.as_str()), ("s3://bucket/d/", "s3://bucket/e/"));
        assert_eq!((told.objects, told.copied), (Some(11), 0), "with its marker");
        held.add_permits(4);
        until("some are copied", || first().unwrap().copied == 4).await;
        held.add_permits(1000);
        rename.await.unwrap().unwrap();
        assert_eq!(client.fs.renaming(), [], "it is done");
    });
}
