//! A mount's status as people read it.

use std::fmt::Write as _;

use super::printable::printable;
use super::progress::count;
use crate::base::format_bytes;
use crate::control::{BucketStatus, Latency, Status, UnsavedFile};

/// Counters that the sections above the list of counters tell of.
const TOLD: [&str; 16] = [
    "s3_received_bytes",
    "s3_sent_bytes",
    "s3_throttled",
    "s3_retries",
    "fs_read_bytes",
    "fs_written_bytes",
    "read_hits",
    "read_waits",
    "disk_hits",
    "disk_misses",
    "disk_read_bytes",
    "disk_written_bytes",
    "disk_evictions",
    "name_hits",
    "name_misses",
    "passthrough_opens",
];
/// Where the values of a section begin.
const INDENT: usize = 16;

/// Sections with a title each, which stands before their first line.
struct Page(String);

impl Page {
    fn section(&mut self, title: &str, lines: impl IntoIterator<Item = String>) {
        let mut title = title;
        for line in lines {
            let _ = writeln!(self.0, "{}", format!("{title:<INDENT$}{line}").trim_end());
            title = "";
        }
    }

    /// The same after an empty line, if there is anything to tell.
    fn part(&mut self, title: &str, lines: Vec<String>) {
        if !lines.is_empty() {
            self.0.push('\n');
            self.section(title, lines);
        }
    }
}

/// Everything that matters, in lines. What the mount does not tell is left out.
pub fn describe(status: &Status) -> String {
    describe_some(status, usize::MAX)
}

/// The same, with so many of the unsaved files at most.
pub fn describe_some(status: &Status, files_max: usize) -> String {
    let mut page = Page(String::new());
    let access = if status.read_only { "read-only" } else { "read-write" };
    page.section("source", [format!("{} ({access})", printable(&status.source))]);
    page.section("directory", [printable(&status.mountpoint)]);
    page.section(
        "process",
        [format!("{} (pailfs {}), up for {}", status.pid, status.version, long(status.uptime_seconds))],
    );
    page.section("metrics", status.metrics_listen.iter().map(|at| format!("http://{at}/metrics")));
    page.section("buckets", status.buckets.iter().flat_map(bucket));
    page.part("not saved yet", unsaved(status, files_max));
    page.part("being renamed", renames(status));
    page.part("notes", status.notes.iter().map(|note| printable(note)).collect());
    page.part("throughput", throughput(status));
    page.part("caches", caches(status));
    page.part("memory", memory(status));
    page.part("disks", disks(status));
    page.part("open", open(status));
    page.part("cost", cost(status));
    // The longest come last: a watched page ends where the screen does.
    page.part("requests", requests(status));
    page.part("kernel asks", operations(status));
    page.part("counters", others(status));
    page.0
}

/// Breaks what is longer than a line of the screen between words; what follows is indented below the values.
pub fn fold(text: &str, columns: usize) -> String {
    let mut folded = String::new();
    for line in text.lines() {
        let mut rest: Vec<char> = line.chars().collect();
        let begins = rest.iter().position(|c| *c != ' ').unwrap_or(0);
        let indent = begins.max(INDENT) + 2;
        // Where there is hardly room beside the titles, broken lines read worse than cut ones.
        while rest.len() > columns && columns >= 2 * indent {
            let words_end = (indent..=columns).rev().find(|at| rest[*at] == ' ');
            let tail = rest.split_off(words_end.unwrap_or(columns));
            folded.push_str(String::from_iter(&rest).trim_end());
            folded.push('\n');
            rest = vec![' '; indent];
            rest.extend(tail.into_iter().skip_while(|c| *c == ' '));
        }
        folded.extend(rest);
        folded.push('\n');
    }
    folded
}

fn bucket(bucket: &BucketStatus) -> Vec<String> {
    let access = if bucket.read_only { ", read-only" } else { "" };
    let region = bucket.region.as_deref().unwrap_or("not told");
    let endpoint = bucket.endpoint.as_deref().unwrap_or("Amazon's");
    let mut lines = vec![format!(
        "s3://{}/{}: session {}, region {}, endpoint {}{access}",
        printable(&bucket.bucket),
        printable(&bucket.prefix),
        printable(&bucket.session),
        printable(region),
        printable(endpoint)
    )];
    let mut by_verdict: Vec<(&str, Vec<String>)> = Vec::new();
    for capability in &bucket.capabilities {
        // There are commas between them already.
        let name = match capability.name.split_once(", ") {
            Some((what, which)) => format!("{what} ({which})"),
            None => capability.name.clone(),
        };
        match by_verdict.iter_mut().find(|(verdict, _)| *verdict == capability.verdict) {
            Some((_, names)) => names.push(name),
            None => by_verdict.push((&capability.verdict, vec![name])),
        }
    }
    let told = match &by_verdict[..] {
        [] => "  capabilities: not found out yet".to_owned(),
        [("works", names)] => format!("  capabilities: all {} work", names.len()),
        several => {
            let each = several.iter().map(|(verdict, names)| match *verdict {
                "works" => format!("{} work", names.len()),
                verdict => format!("{verdict}: {}", names.join(", ")),
            });
            format!("  capabilities: {}", each.collect::<Vec<_>>().join("; "))
        }
    };
    lines.push(printable(&told));
    lines
}

fn unsaved(status: &Status, files_max: usize) -> Vec<String> {
    let unsaved = &status.unsaved;
    if unsaved.files == 0 {
        return vec!["nothing".to_owned()];
    }
    let sent = match unsaved.sent {
        0 => String::new(),
        sent => format!(", {} of it sent", format_bytes(sent)),
    };
    let mut lines = vec![format!("{} in {}{sent}", format_bytes(unsaved.bytes), count(unsaved.files))];
    lines.extend(unsaved.first.iter().take(files_max).map(|file| {
        let UnsavedFile { path, bytes, sent, last_error } = file;
        let progress = if *sent > 0 { format!(", {} sent", share(*sent, *bytes)) } else { String::new() };
        let error = last_error.as_deref().map(|error| format!(": {}", printable(error))).unwrap_or_default();
        format!("  {} ({}{progress}){error}", printable(path), format_bytes(*bytes))
    }));
    let named = unsaved.first.len().min(files_max) as u64;
    if unsaved.files > named {
        lines.push(format!("  and {} more", unsaved.files - named));
    }
    lines
}

fn renames(status: &Status) -> Vec<String> {
    let told = status.unsaved.renames.iter().map(|rename| {
        let done = match rename.objects {
            None => "looking for its objects".to_owned(),
            Some(0) => "nothing to copy".to_owned(),
            Some(all) if rename.copied >= all => format!("all {all} objects copied, deleting the old ones"),
            Some(all) => format!("{} of {all} objects copied ({})", rename.copied, share(rename.copied, all)),
        };
        let (from, to) = (printable(&rename.from), printable(&rename.to));
        format!("{from} to {to}: {done}, for {}", long(rename.seconds))
    });
    told.collect()
}

// Beyond 2^64 bytes a second nobody reads the figure.
#[allow(clippy::cast_possible_truncation)]
fn rate(per_second: f64) -> String {
    format!("{}/s", format_bytes(per_second.round() as u64))
}

fn throughput(status: &Status) -> Vec<String> {
    let moves = &status.throughput;
    let total = |name: &str| format_bytes(counter(status, name));
    vec![
        format!("{:<12}{:>14}{:>14}", "", format!("last {:.0} s", moves.seconds), "in all"),
        format!("{:<12}{:>14}{:>14}", "read", rate(moves.read_bytes_per_second), total("fs_read_bytes")),
        format!(
            "{:<12}{:>14}{:>14}",
            "written",
            rate(moves.written_bytes_per_second),
            total("fs_written_bytes")
        ),
        format!(
            "{:<12}{:>14}{:>14}",
            "from S3",
            rate(moves.received_bytes_per_second),
            total("s3_received_bytes")
        ),
        format!("{:<12}{:>14}{:>14}", "to S3", rate(moves.sent_bytes_per_second), total("s3_sent_bytes")),
        format!(
            "{:<12}{:>14}{:>14}",
            "requests",
            format!("{:.1}/s", moves.requests_per_second),
            status.requests.iter().map(|request| request.count).sum::<u64>()
        ),
    ]
}

fn times(latency: Option<&Latency>) -> String {
    let of =
        |time: fn(&Latency) -> f64| latency.map_or_else(|| "-".to_owned(), |latency| short(time(latency)));
    format!("{:>9}{:>9}{:>9}", of(|l| l.p50_ms), of(|l| l.p90_ms), of(|l| l.p99_ms))
}

fn requests(status: &Status) -> Vec<String> {
    let mut names: Vec<&str> = status.requests.iter().map(|request| request.operation.as_str()).collect();
    names.dedup();
    let mut lines = Vec::new();
    for name in names {
        let of = status.requests.iter().filter(|request| request.operation == name);
        let (mut ok, mut failures) = (0, Vec::new());
        for request in of {
            match request.outcome.as_str() {
                "ok" => ok = request.count,
                outcome => failures.push(format!("{} {outcome}", request.count)),
            }
        }
        let latency = status.latencies.iter().find(|latency| latency.operation == name);
        lines.push(format!("{name:<24}{ok:>10}{}  {}", times(latency), failures.join(", ")));
    }
    if !lines.is_empty() {
        lines.insert(0, format!("{:<24}{:>10}{:>9}{:>9}{:>9}", "", "ok", "p50", "p90", "p99"));
        let transfers = &status.transfers;
        lines.push(format!(
            "{} retries, {} answers to slow down; {} transfers under way, {} waiting, at most {} at once",
            counter(status, "s3_retries"),
            counter(status, "s3_throttled"),
            transfers.under_way,
            transfers.waiting,
            transfers.limit
        ));
    }
    lines
}

fn cost(status: &Status) -> Vec<String> {
    let cost = &status.cost;
    if cost.put_requests + cost.get_requests + cost.delete_requests == 0 {
        return Vec::new();
    }
    vec![format!(
        "about ${:.4} for requests: {} PUT and LIST at ${} per 1,000, {} GET at ${}, {} DELETE at ${}",
        cost.dollars,
        cost.put_requests,
        cost.put_per_1000,
        cost.get_requests,
        cost.get_per_1000,
        cost.delete_requests,
        cost.delete_per_1000
    )]
}

fn caches(status: &Status) -> Vec<String> {
    let line = |what: &str, hits: u64, misses: u64, unit: &str| {
        format!("{what:<12}{hits:>12}{misses:>12}{:>8}  {unit}", share(hits, hits + misses))
    };
    let figure = |name| counter(status, name);
    let opens = status.operations.iter().find(|of| of.operation == "open").map_or(0, |of| of.count);
    let passed = figure("passthrough_opens");
    let mut lines = vec![
        format!("{:<12}{:>12}{:>12}{:>8}", "", "hits", "misses", "share"),
        line("names", figure("name_hits"), figure("name_misses"), "names"),
        line("memory", figure("read_hits"), figure("read_waits"), "reads"),
    ];
    if status.disk_cache.is_some() {
        lines.push(line("disk", figure("disk_hits"), figure("disk_misses"), "pieces"));
        lines.push(line("passthrough", passed, opens.saturating_sub(passed), "opens"));
    }
    lines
}

fn memory(status: &Status) -> Vec<String> {
    let memory = &status.memory;
    let resident = memory.resident_bytes.map(format_bytes).unwrap_or_else(|| "not told".to_owned());
    let mut lines = vec![format!("{resident} in RAM, limit {}", format_bytes(status.memory_limit_bytes))];
    if memory.budget_bytes > 0 {
        let used = memory.pools.iter().map(|pool| pool.bytes).sum::<u64>();
        let (used, budget) = (format_bytes(used), format_bytes(memory.budget_bytes));
        lines.push(format!("{:<12}{used:>12} of {budget}", "pools"));
    }
    for pool in memory.pools.iter().filter(|pool| pool.bytes > 0) {
        lines.push(format!("  {:<10}{:>12}", printable(&pool.pool), format_bytes(pool.bytes)));
    }
    lines
}

fn disks(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(cache) = &status.disk_cache {
        let used = cache.used_bytes.map(format_bytes).unwrap_or_else(|| "nothing counted yet".to_owned());
        let (limit, dir) = (format_bytes(cache.limit_bytes), printable(&cache.dir));
        lines.push(format!("{:<12}{used:>12} of {limit} in {dir}", "cache"));
        let figure = |name| format_bytes(counter(status, name));
        lines.push(format!(
            "{:<12}{:>12} read, {} written, {} objects evicted",
            "",
            figure("disk_read_bytes"),
            figure("disk_written_bytes"),
            counter(status, "disk_evictions")
        ));
    }
    let staging = &status.staging;
    if let Some(used) = staging.used_bytes {
        let free = staging.free_bytes.map(|free| format!(", room for {}", format_bytes(free)));
        let place = if staging.place == "memory" { ", in memory" } else { "" };
        lines.push(format!("{:<12}{:>12}{}{place}", "staging", format_bytes(used), free.unwrap_or_default()));
    }
    lines
}

fn open(status: &Status) -> Vec<String> {
    let open = &status.open;
    vec![format!(
        "handles of files {}, of directories {}; files in the table {}, inodes {}",
        open.file_handles, open.dir_handles, open.files, open.inodes
    )]
}

fn operations(status: &Status) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for of in &status.operations {
        let waits = of.waits.as_ref();
        let waited = waits.map_or(0, |waits| waits.count);
        let name = printable(&of.operation);
        lines.push(format!("{name:<16}{:>12}{waited:>9}{}", of.count, times(waits)));
    }
    if !lines.is_empty() {
        let titles = format!("{:<16}{:>12}{:>9}{:>9}{:>9}{:>9}", "", "asked", "waited", "p50", "p90", "p99");
        lines.insert(0, titles);
    }
    lines
}

fn others(status: &Status) -> Vec<String> {
    let rest = status.counters.iter().filter(|c| c.value > 0 && !TOLD.contains(&c.name.as_str()));
    rest.map(|c| format!("{:<24}{:>10}  {}", printable(&c.name), c.value, printable(&c.meaning))).collect()
}

fn counter(status: &Status, name: &str) -> u64 {
    status.counters.iter().find(|counter| counter.name == name).map_or(0, |counter| counter.value)
}

/// A part of a whole, in hundredths.
fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{} %", u128::from(part) * 100 / u128::from(whole)),
    }
}

/// A time in milliseconds with two digits or three.
fn short(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{ms:.2} ms"),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// A time in seconds, by its two largest units.
fn long(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        Capability, Cost, CounterValue, DiskCacheStatus, MemoryStatus, OperationStatus, PoolStatus,
        RenameStatus, RequestCount, StagingStatus, Unsaved,
    };

    fn full() -> Status {
        let capability =
            |name: &str, verdict: &str| Capability { name: name.into(), verdict: verdict.into() };
        let value = |name: &str, value| CounterValue { name: name.into(), meaning: "Some.".into(), value };
        let latency = |operation: &str| Latency {
            operation: operation.into(),
            count: 3,
            mean_ms: 3.0,
            p50_ms: 0.25,
            p90_ms: 12.4,
            p99_ms: 1500.0,
        };
        Status {
            pid: 7,
            version: "1.2.3".into(),
            source: "s3://b/".into(),
            mountpoint: "/mnt".into(),
            uptime_seconds: 7384,
            memory_limit_bytes: 512 << 20,
            metrics_listen: Some("127.0.0.1:9100".into()),
            buckets: vec![BucketStatus {
                bucket: "b".into(),
                session: "default".into(),
                region: Some("garage".into()),
                endpoint: Some("http://127.0.0.1:3900".into()),
                capabilities: vec![
                    capability("batch delete", "works"),
                    capability("tagging", "ignored"),
                    capability("conditional put, new object", "ignored"),
                    capability("checksums", "works"),
                ],
                ..BucketStatus::default()
            }],
            unsaved: Unsaved {
                sent: 512,
                renames: vec![RenameStatus {
                    from: "s3://b/old/".into(),
                    to: "s3://b/new/".into(),
                    objects: Some(50),
                    copied: 12,
                    seconds: 3,
                }],
                ..Unsaved::of([UnsavedFile {
                    path: "odd\u{1b}[2Jname".into(),
                    bytes: 2048,
                    sent: 512,
                    last_error: Some("PutObject: no".into()),
                }])
            },
            notes: vec!["b: a note".into()],
            cost: Cost {
                dollars: 0.0154,
                put_requests: 3000,
                get_requests: 1000,
                put_per_1000: 0.005,
                get_per_1000: 0.0004,
                ..Cost::default()
            },
            memory: MemoryStatus {
                budget_bytes: 448 << 20,
                resident_bytes: Some(100 << 20),
                pools: vec![
                    PoolStatus { pool: "read_cache".into(), bytes: 64 << 20 },
                    PoolStatus { pool: "uploads".into(), bytes: 0 },
                ],
            },
            disk_cache: Some(DiskCacheStatus { dir: "/c".into(), used_bytes: None, limit_bytes: 10 << 30 }),
            staging: StagingStatus {
                place: "disk".into(),
                used_bytes: Some(4096),
                free_bytes: Some(1 << 30),
            },
            counters: vec![
                value("commits", 3),
                value("read_hits", 3),
                value("read_waits", 1),
                value("panics", 0),
            ],
            requests: vec![
                RequestCount { operation: "PutObject".into(), outcome: "ok".into(), count: 3 },
                RequestCount { operation: "PutObject".into(), outcome: "throttled".into(), count: 2 },
            ],
            latencies: vec![latency("PutObject")],
            operations: vec![
                OperationStatus { operation: "read".into(), count: 9, waits: Some(latency("read")) },
                OperationStatus { operation: "getattr".into(), count: 90, waits: None },
            ],
            ..Status::default()
        }
    }

    #[test]
    fn a_status_reads_as_a_page_without_control_characters() {
        let text = describe(&full());
        for line in [
            "source          s3://b/ (read-write)",
            "process         7 (pailfs 1.2.3), up for 2 h 3 min",
            "metrics         http://127.0.0.1:9100/metrics",
            "buckets         s3://b/: session default, region garage, endpoint http://127.0.0.1:3900",
            "                  capabilities: 2 work; ignored: tagging, conditional put (new object)",
            "not saved yet   2.0 KiB in 1 file, 512 B of it sent",
            "                  odd\\u{1b}[2Jname (2.0 KiB, 25 % sent): PutObject: no",
            "being renamed   s3://b/old/ to s3://b/new/: 12 of 50 objects copied (24 %), for 3 s",
            "                PutObject                        3  0.25 ms    12 ms    1.5 s  2 throttled",
            "cost            about $0.0154 for requests: 3000 PUT and LIST at $0.005 per 1,000, 1000 GET at \
             $0.0004, 0 DELETE at $0",
            "                memory                 3           1    75 %  reads",
            "                disk                   0           0       -  pieces",
            "memory          100.0 MiB in RAM, limit 512.0 MiB",
            "                pools           64.0 MiB of 448.0 MiB",
            "                  read_cache    64.0 MiB",
            "                staging          4.0 KiB, room for 1.0 GiB",
            "                read                       9        3  0.25 ms    12 ms    1.5 s",
            "                getattr                   90        0        -        -        -",
            "counters        commits                          3  Some.",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains("panics") && !text.contains("uploads"), "{text}");
    }

    #[test]
    fn a_page_fits_a_screen_of_80_columns_and_loses_no_word() {
        let mut status = full();
        let error = "PutObject s3://b/odd: Access Denied (AccessDenied, HTTP 403, request id PAIL0000000001AD); the \
                     session's identity lacks a permission (IAM, bucket policy or ACL)";
        status.unsaved.first[0].last_error = Some(error.into());
        status.unsaved.first[0].path = "long".repeat(40);
        let page = describe(&status);
        let folded = fold(&page, 80);
        assert!(folded.lines().all(|line| line.chars().count() <= 80), "{folded}");
        let unbroken = |text: &str| text.split_whitespace().collect::<String>();
        assert_eq!(unbroken(&folded), unbroken(&page));
        for line in [
            "                    request id PAIL0000000001AD); the session's identity lacks a",
            "                    permission (IAM, bucket policy or ACL)",
            "                PutObject                        3  0.25 ms    12 ms    1.5 s  2",
            "                  throttled",
        ] {
            assert!(folded.lines().any(|found| found == line), "no line {line:?} in\n{folded}");
        }
        assert_eq!((fold(&page, 1000).as_str(), fold(&page, 20).as_str()), (page.as_str(), page.as_str()));
    }

    #[test]
    fn of_unsaved_files_as_many_are_named_as_there_is_room_for() {
        let mut status = full();
        let file = status.unsaved.first[0].clone();
        status.unsaved.first = vec![file; 5];
        status.unsaved.files = 7;
        let named = |text: &str| text.matches("PutObject: no").count();
        let few = describe_some(&status, 2);
        assert!(named(&few) == 2 && few.contains("\n                  and 5 more\n"), "{few}");
        let all = describe(&status);
        assert!(named(&all) == 5 && all.contains("\n                  and 2 more\n"), "{all}");
    }

    #[test]
    fn an_older_mount_that_tells_little_is_shown_as_far_as_it_does() {
        let old = r#"{"pid":1,"version":"0.0.1","mountpoint":"/m","source":"s3://b/","read_only":true,
            "uptime_seconds":3,"memory_limit_bytes":1,"unsaved":{"files":0,"bytes":0,"first":[]},"notes":[],
            "counters":[],"requests":[]}"#;
        let text = describe(&serde_json::from_str(old).unwrap());
        assert!(text.starts_with("source          s3://b/ (read-only)\n"), "{text}");
        assert!(text.contains("not saved yet   nothing\n") && !text.contains("cost"), "{text}");
    }

    #[test]
    fn times_and_shares_are_short() {
        assert_eq!([0.123, 1.23, 123.4, 12_345.0].map(short), ["0.12 ms", "1.2 ms", "123 ms", "12.3 s"]);
        assert_eq!([5, 65, 3660, 90_000].map(long), ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!(
            (share(1, 3), share(0, 0), share(u64::MAX, u64::MAX)),
            ("33 %".into(), "-".into(), "100 %".into())
        );
    }

    #[test]
    fn counters_that_are_told_of_apart_are_counters() {
        let stats = crate::stats::Stats::default();
        let names: Vec<&str> = stats.counters().iter().map(|(name, ..)| *name).collect();
        assert!(TOLD.iter().all(|told| names.contains(told)));
    }
}
