//! What a mount shows of itself: to people, to programs, to Prometheus.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use pailfs::stats::table;
use serde_json::Value;

use crate::harness::exposition::Exposition;
use crate::harness::mount::{Mounted, endpoint, pailfs, wait_for};
use crate::harness::server::faults;
use crate::harness::{Server, block_on};
use crate::semantics::status;

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

fn ask(m: &Mounted, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("status").args(flags).arg(m.path()).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The answer to a GET, with its head.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn named<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|row| row[key] == name).unwrap_or(&Value::Null)
}

/// A process that waited for an answer of its own, and was killed meanwhile, would never be gone.
#[test]
fn a_mount_that_begins_asks_itself_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let flags = ["--trace-ops", trace.to_str().unwrap()];
    let Some(m) = Mounted::with(Server::Demo, "asks-itself-for-nothing", &flags) else { return };
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = format!(" {} ", m.path().display());
    let line = table.lines().rfind(|line| line.contains(&at)).unwrap();
    let device = line.split(' ').nth(2).unwrap();
    let read_ahead = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if fs::OpenOptions::new().write(true).open(&read_ahead).is_ok() {
        let is_raised = || fs::read_to_string(&read_ahead).is_ok_and(|kib| kib.trim() == "1024");
        assert!(wait_for(SOON, is_raised), "read-ahead is never raised");
    }
    let all = status(&m);
    let asked: Vec<&str> =
        all["operations"].as_array().unwrap().iter().map(|row| row["operation"].as_str().unwrap()).collect();
    // Somebody else may have asked: the trace has their process.
    let traced = || fs::read_to_string(&trace).unwrap();
    assert!(asked.is_empty(), "{asked:?}\nthe mount's process is {}\n{}", m.pid(), traced());
}

#[test]
fn known_work_is_told_to_people_programs_and_prometheus_alike() {
    let flags = ["--metrics-listen", "127.0.0.1:0"];
    let Some(m) = Mounted::with(Server::Demo, "known-work", &flags) else { return };
    // The first file makes the mount ask what its server can do, which sends some bytes too.
    fs::write(m.at("first"), b"x").unwrap();
    let before = status(&m);
    block_on(m.place.put("there", vec![7; 100_000])).unwrap();
    fs::write(m.at("made"), vec![1; 3 * MIB]).unwrap();
    assert_eq!(fs::read(m.at("there")).unwrap().len(), 100_000);
    let open = fs::File::open(m.at("there")).unwrap();
    assert!(fs::metadata(m.at("absent")).is_err());

    let all = status(&m);
    let counter = |all: &Value, name: &str| named(&all["counters"], "name", name)["value"].as_u64().unwrap();
    let did = |name: &str| counter(&all, name) - counter(&before, name);
    assert_eq!((did("fs_written_bytes"), did("s3_sent_bytes")), (3 * MIB as u64, 3 * MIB as u64));
    assert_eq!((did("s3_received_bytes"), did("commits")), (100_000, 1));
    let bucket = &all["buckets"][0];
    assert_eq!(bucket["bucket"], m.place.bucket.as_str());
    assert_eq!((&bucket["session"], &bucket["region"]), (&"default".into(), &"us-east-1".into()));
    assert_eq!(bucket["endpoint"], endpoint(Server::Demo).url.as_str());
    let capability = named(&bucket["capabilities"], "name", "conditional put, new object");
    assert_eq!(capability["verdict"], "works", "{bucket:#}");
    assert_eq!((&all["open"]["file_handles"], &all["open"]["dir_handles"]), (&1.into(), &0.into()));
    let put = named(&all["latencies"], "operation", "PutObject");
    assert!(put["p50_ms"].as_f64().unwrap() > 0.0 && put["p50_ms"].as_f64() <= put["p99_ms"].as_f64());
    let puts: u64 = all["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| match row["operation"].as_str() {
            Some("GetObject" | "HeadObject" | "HeadBucket") => 0,
            Some("DeleteObject" | "DeleteObjects" | "AbortMultipartUpload") => 0,
            _ if ["throttled", "server"].contains(&row["outcome"].as_str().unwrap()) => 0,
            _ => row["count"].as_u64().unwrap(),
        })
        .sum();
    let gets = all["cost"]["get_requests"].as_u64().unwrap();
    assert_eq!(all["cost"]["put_requests"], puts);
    let dollars = puts as f64 * 0.000_005 + gets as f64 * 0.000_000_4;
    assert!((all["cost"]["dollars"].as_f64().unwrap() - dollars).abs() < 1e-12, "{}", all["cost"]);
    assert!(named(&all["operations"], "operation", "read")["count"].as_u64().unwrap() >= 1);
    assert_eq!(all["disk_cache"], Value::Null);
    assert!(all["staging"]["free_bytes"].as_u64().unwrap() > 0);
    assert!(all["memory"]["resident_bytes"].as_u64().unwrap() > MIB as u64);

    let page = said(&ask(&m, &[]));
    let address = all["metrics_listen"].as_str().unwrap();
    for line in [
        format!("source          s3://{}/ (read-write)", m.place.bucket),
        format!("metrics         http://{address}/metrics"),
        "not saved yet   nothing".to_owned(),
        "open            handles of files 1, of directories 0".to_owned(),
    ] {
        assert!(page.lines().any(|found| found.starts_with(&line)), "no line {line:?} in\n{page}");
    }
    assert!(page.contains("\ncost            about $0.00"), "{page}");

    let scraped = get(address, "/metrics");
    let (head, text) = scraped.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(get(address, "/").starts_with("HTTP/1.1 404 "));
    for text in [text, &said(&ask(&m, &["--prometheus"]))] {
        let told = Exposition::parse(text);
        for metric in table() {
            assert!(told.0.contains_key(metric.name), "{} is not in a scrape", metric.name);
        }
        assert_eq!(told.0.len(), table().count(), "and nothing else is");
        let value = |name: &str, labels: &[(&str, &str)]| told.value(name, labels);
        for name in ["s3_sent_bytes", "s3_received_bytes", "fs_written_bytes", "commits", "panics"] {
            let scraped = value(&format!("pailfs_{name}_total"), &[]);
            assert_eq!(scraped, Some(counter(&all, name) as f64), "{name}");
        }
        assert_eq!(value("pailfs_open_handles", &[("kind", "file")]), Some(1.0));
        let gets = value("pailfs_s3_requests_total", &[("operation", "GetObject"), ("outcome", "ok")]);
        let timed = value("pailfs_s3_request_duration_seconds_count", &[("operation", "GetObject")]);
        assert!(gets.unwrap() >= 1.0 && gets <= timed, "{gets:?} of {timed:?}");
        assert!(value("pailfs_resident_memory_bytes", &[]).unwrap() > 0.0);
        assert!(value("pailfs_start_time_seconds", &[]).unwrap() > 1.7e9);
    }
    drop(open);
}

#[test]
fn the_rates_of_the_configuration_are_what_requests_cost() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, "[cost]\nput_per_1000 = 1000\nget_per_1000 = 0\n").unwrap();
    let flags = ["--config", config.to_str().unwrap()];
    let Some(m) = Mounted::with(Server::Demo, "rates", &flags) else { return };
    fs::write(m.at("f"), b"x").unwrap();
    let cost = status(&m)["cost"].clone();
    assert!(cost["put_requests"].as_u64().unwrap() > 0);
    assert_eq!(cost["dollars"].as_f64().unwrap(), cost["put_requests"].as_u64().unwrap() as f64, "{cost}");
}

#[test]
fn an_address_that_is_taken_keeps_the_mount_from_coming_up_and_says_which() {
    let Some(place) = crate::harness::mount::fresh_place(Server::Demo, "address-taken") else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let at = endpoint(Server::Demo);
    let dir = tempfile::tempdir().unwrap();
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let output = pailfs(&at)
        .args(["mount", &format!("s3://{}", place.bucket)])
        .arg(&mnt)
        .args(["--endpoint-url", &at.url, "--region", &at.region, "--metrics-listen", &address])
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(14), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&address), "{output:?}");
    assert!(!crate::harness::mount::is_mounted(&mnt));
}

#[test]
fn what_waits_for_its_upload_is_named_with_its_progress_and_its_last_error() {
    let flags = ["--durability", "journal", "--upload-delay", "0s"];
    let Some(m) = Mounted::with(Server::Demo, "pending", &flags) else { return };
    fs::write(m.at("first"), b"first").unwrap();
    assert!(wait_for(SOON, || status(&m)["unsaved"]["files"] == 0));
    let rule = format!("op=PutObject,bucket={},key=stays,fault=denied", m.place.bucket);
    let refused = faults(Server::Demo, &rule);
    fs::write(m.at("stays"), vec![1; MIB]).unwrap();
    let failed = || status(&m)["unsaved"]["first"][0]["last_error"].is_string();
    assert!(wait_for(SOON, failed), "{:#}", status(&m)["unsaved"]);
    let page = said(&ask(&m, &[]));
    assert!(page.contains("\nnot saved yet   1.0 MiB in 1 file\n"), "{page}");
    assert!(page.contains("  stays (1.0 MiB): "), "{page}");
    assert!(page.contains("AccessDenied"), "{page}");
    let told = Exposition::parse(&said(&ask(&m, &["--prometheus"])));
    assert_eq!(told.value("pailfs_pending_files", &[]), Some(1.0));
    assert_eq!(told.value("pailfs_pending_bytes", &[]), Some(MIB as f64));
    drop(refused);
    assert!(pailfs(&endpoint(Server::Demo)).arg("flush").arg(m.path()).status().unwrap().success());
    let told = Exposition::parse(&said(&ask(&m, &["--prometheus"])));
    assert_eq!(told.value("pailfs_pending_bytes", &[]), Some(0.0));
}

#[test]
fn the_rename_of_a_directory_shows_how_many_objects_are_copied() {
    let Some(m) = Mounted::fresh(Server::Demo, "rename-progress") else { return };
    block_on(async {
        m.place.put("d/", "").await.unwrap();
        for n in 0..200 {
            m.place.put(&format!("d/{n}"), "x").await.unwrap();
        }
    });
    assert_eq!(fs::read_dir(m.at("d")).unwrap().count(), 200);
    // 64 copies go side by side, so this takes four rounds.
    let slow = faults(Server::Demo, &format!("op=CopyObject,bucket={},fault=latency:1500ms", m.place.bucket));
    let (from, to) = (m.at("d"), m.at("e"));
    let renaming = std::thread::spawn(move || fs::rename(from, to));
    let mut told = Value::Null;
    let halfway = wait_for(SOON, || {
        told = status(&m)["unsaved"]["renames"][0].clone();
        told["copied"].as_u64().is_some_and(|copied| copied > 0)
    });
    assert!(halfway, "{told}");
    assert_eq!(told["objects"], 201, "{told}");
    assert_eq!(told["from"], format!("s3://{}/d/", m.place.bucket));
    let page = said(&ask(&m, &[]));
    assert!(page.contains(" of 201 objects copied ("), "{page}");
    drop(slow);
    renaming.join().unwrap().unwrap();
    assert_eq!(status(&m)["unsaved"]["renames"], Value::Null);
}

#[test]
fn retries_and_answers_to_slow_down_are_counted() {
    let Some(m) = Mounted::fresh(Server::Demo, "retries") else { return };
    block_on(m.place.put("f", vec![7; 1000])).unwrap();
    let rule = format!("op=GetObject,bucket={},times=2,fault=slowdown", m.place.bucket);
    let slow = faults(Server::Demo, &rule);
    assert_eq!(fs::read(m.at("f")).unwrap().len(), 1000);
    drop(slow);
    let all = status(&m);
    let counter = |name: &str| named(&all["counters"], "name", name)["value"].as_u64().unwrap();
    assert_eq!((counter("s3_retries"), counter("s3_throttled")), (2, 2));
    let gets = named(&all["requests"], "operation", "GetObject");
    assert_eq!((&gets["outcome"], &gets["count"]), (&"ok".into(), &1.into()), "all of it is one request");
    let page = said(&ask(&m, &[]));
    assert!(page.contains("2 retries, 2 answers to slow down; "), "{page}");
}

/// A status that is watched.
struct Watched {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watched {
    fn start(m: &Mounted, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pailfs"));
        command.arg("status").args(flags).arg(m.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Its last words.
    fn end(mut self) -> (Option<i32>, String) {
        assert!(wait_for(SOON, || self.child.try_wait().unwrap().is_some()), "it goes on");
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

#[test]
fn a_watched_status_appends_to_a_pipe_and_ends_with_the_mount() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "watch-pipe") else { return };
    let mut watched = Watched::start(&m, &["--watch=100ms", "--json"]);
    let bytes = |line: &str| {
        let status: Value = serde_json::from_str(line).expect("a line is an object");
        named(&status["counters"], "name", "fs_written_bytes")["value"].as_u64().unwrap()
    };
    assert_eq!(bytes(&watched.line()), 0);
    fs::write(m.at("f"), b"12345").unwrap();
    while bytes(&watched.line()) < 5 {}
    let mut page = Watched::start(&m, &["--watch"]);
    for _ in 0..2 {
        while !page.line().starts_with("source          s3://") {}
    }
    assert!(m.umount().success());
    let mut rest = String::new();
    page.lines.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains('\u{1b}'), "no terminal looks on: {rest:?}");
    let _ = watched.lines.read_to_string(&mut String::new());
    for watched in [watched, page] {
        let (code, said) = watched.end();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said, format!("pailfs: the mount on {} has ended\n", m.path().display()));
    }
}

#[test]
fn a_watch_ends_with_its_reader_by_a_signal_and_not_well_where_the_process_is_gone() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "watch-ends") else { return };
    let mut unread = Watched::start(&m, &["--watch=100ms"]);
    unread.line();
    let Watched { mut child, lines } = unread;
    drop(lines);
    assert!(wait_for(SOON, || child.try_wait().unwrap().is_some()));
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let mut stopped = Watched::start(&m, &["--watch=1h"]);
    stopped.line();
    let pid = rustix::process::Pid::from_child(&stopped.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(stopped.end(), (Some(0), String::new()));

    let mut left = Watched::start(&m, &["--watch=100ms", "--json"]);
    left.line();
    m.kill();
    let _ = left.lines.read_to_string(&mut String::new());
    let (code, said) = left.end();
    assert_eq!(code, Some(13), "{said}");
    let cleared = Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("umount").arg(m.path()).output().unwrap();
    assert!(cleared.status.success());
}

#[test]
fn a_terminal_is_redrawn() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "watch-terminal") else { return };
    let watch = format!("{} status --watch=100ms {}", env!("CARGO_BIN_EXE_pailfs"), m.path().display());
    let mut script = Command::new("script");
    script.args(["-qec", &watch, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let Ok(mut child) = script.spawn() else {
        eprintln!("skipped: there is no script(1)");
        return;
    };
    let mut out = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let frames = |seen: &[u8]| String::from_utf8_lossy(seen).matches("\x1b[Hsource ").count();
    while frames(&seen) < 3 {
        let mut more = [0; 4096];
        let n = out.read(&mut more).unwrap();
        assert!(n > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        seen.extend(&more[..n]);
    }
    assert!(m.umount().success());
    out.read_to_end(&mut seen).unwrap();
    assert!(String::from_utf8_lossy(&seen).contains("has ended"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_cache_directory_is_told_of_with_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().to_str().unwrap();
    let flags = ["--cache-dir", cache, "--cache-size", "64M"];
    let Some(m) = Mounted::with(Server::Demo, "status-cache", &flags) else { return };
    assert_eq!(status(&m)["disk_cache"]["used_bytes"], Value::Null, "nobody has counted");
    block_on(m.place.put("f", vec![7; 2 * MIB])).unwrap();
    assert_eq!(fs::read(m.at("f")).unwrap().len(), 2 * MIB);
    let used = || status(&m)["disk_cache"]["used_bytes"].as_u64().unwrap_or(0);
    assert!(wait_for(SOON, || used() >= 2 * MIB as u64), "{}", used());
    let told = Exposition::parse(&said(&ask(&m, &["--prometheus"])));
    assert_eq!(told.value("pailfs_disk_cache_limit_bytes", &[]), Some(64.0 * MIB as f64));
    assert!(told.value("pailfs_disk_cache_used_bytes", &[]).unwrap() >= 2.0 * MIB as f64);
    let page = said(&ask(&m, &[]));
    assert!(page.contains(&format!(" of 64.0 MiB in {}", Path::new(cache).display())), "{page}");
}
