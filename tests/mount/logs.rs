//! What people find in the log, wherever it goes, and in the file of --trace-ops.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::mount::{Mounted, endpoint, fresh_place, is_mounted, pailfs, wait_for};
use crate::harness::server::{Faults, faults};
use crate::harness::{Place, Server, block_on};

const SOON: Duration = Duration::from_secs(30);
const EACCES: i32 = 13;

/// The lines of a log in JSON, each with its fields.
fn lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn with<'a>(lines: &'a [Value], field: &str, value: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["fields"][field] == value).collect()
}

fn denied(place: &Place) -> Faults {
    faults(Server::Demo, &format!("op=PutObject,bucket={},fault=denied", place.bucket))
}

/// Writes a file that has to be in S3 in the end.
fn save(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Asks a live mount something.
fn ask(args: &[&str], dir: &Path) -> Output {
    pailfs(&endpoint(Server::Demo)).arg(args[0]).arg(dir).args(&args[1..]).output().unwrap()
}

/// A mount in the background, which is unmounted whatever becomes of the test.
struct Background {
    home: tempfile::TempDir,
    place: Place,
}

impl Background {
    fn mount(test: &str, flags: &[&str]) -> Option<Self> {
        let background = Self { place: fresh_place(Server::Demo, test)?, home: tempfile::tempdir().unwrap() };
        let output = background.try_mount(flags);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(background)
    }

    fn try_mount(&self, flags: &[&str]) -> Output {
        let at = endpoint(Server::Demo);
        let _ = fs::create_dir(self.dir());
        let mut command = pailfs(&at);
        command.arg("mount").arg(format!("s3://{}", self.place.bucket)).arg(self.dir());
        command.args(["--endpoint-url", &at.url, "--region", &at.region, "--state-dir"]);
        command.arg(self.home.path().join("state")).args(flags).current_dir(self.home.path());
        command.output().unwrap()
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.home.path().join(name)).unwrap_or_default()
    }

    fn umount(&self) {
        let output = ask(&["umount"], &self.dir());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn hang_up(&self) {
        let status: Value = serde_json::from_slice(&ask(&["status", "--json"], &self.dir()).stdout).unwrap();
        let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if is_mounted(&self.dir()) {
            let _ = ask(&["umount"], &self.dir());
        }
        if is_mounted(&self.dir()) {
            let _ = rustix::mount::unmount(self.dir(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn a_day_without_trouble_is_two_lines() {
    let flags = ["--log-level", "info", "--log-format", "json"];
    let Some(mut m) = Mounted::with(Server::Demo, "a_day_without_trouble_is_two_lines", &flags) else {
        return;
    };
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/f"), b"bytes").unwrap();
    assert_eq!(fs::read(m.at("d/f")).unwrap(), b"bytes");
    fs::rename(m.at("d/f"), m.at("d/g")).unwrap();
    assert!(fs::metadata(m.at("absent")).is_err());
    assert!(fs::create_dir(m.at("d")).is_err());
    assert!(rustix::fs::getxattr(m.at("d/g"), "user.absent", &mut [0u8; 8][..]).is_err());
    fs::remove_dir_all(m.at("d")).unwrap();
    assert!(m.umount().success());
    let log = lines(&m.log_text());
    let [begun, ended] = &log[..] else { panic!("{log:#?}") };
    let (at, fields) = (endpoint(Server::Demo), &begun["fields"]);
    assert_eq!((&begun["level"], &fields["message"]), (&"INFO".into(), &"mounted".into()));
    assert_eq!(fields["source"], format!("s3://{}/", m.place.bucket));
    assert_eq!(fields["buckets"], m.place.bucket);
    assert_eq!(
        (&fields["endpoint"], &fields["region"]),
        (&at.url.as_str().into(), &at.region.as_str().into())
    );
    assert_eq!(fields["version"], env!("CARGO_PKG_VERSION"));
    for field in ["mountpoint", "capabilities", "memory_limit", "timeout_s", "durability", "kernel"] {
        assert!(!fields[field].is_null(), "{field}: {begun:#}");
    }
    let fields = &ended["fields"];
    assert_eq!((&ended["level"], &fields["message"]), (&"INFO".into(), &"unmounted".into()));
    assert!(fields["bytes_sent"].as_u64() >= Some(5) && fields["requests"].as_u64() >= Some(5), "{ended:#}");
    assert_eq!((&fields["unsaved_files"], &fields["bytes_written"]), (&0.into(), &5.into()));
    assert!(!fields["uptime_s"].is_null() && !fields["requests_failed"].is_null());
}

#[test]
fn a_denied_put_is_one_line_with_all_there_is_to_know() {
    let flags = ["--log-level", "info", "--log-format", "json"];
    let Some(m) = Mounted::with(Server::Demo, "a_denied_put_is_one_line", &flags) else { return };
    fs::create_dir(m.at("dir")).unwrap();
    let refusing = denied(&m.place);
    let error = save(&m.at("dir/odd \u{1b} name"), b"the body of it");
    assert_eq!(error.unwrap_err().raw_os_error(), Some(EACCES));
    // The close of that file has tried once more, and then it is tried in the background.
    assert!(wait_for(SOON, || m.log_text().contains("still not in S3")), "{}", m.log_text());
    drop(refusing);
    assert!(ask(&["flush"], &m.path()).status.success());
    let text = m.log_text();
    let log = lines(&text);
    let failed = with(&log, "op", "fsync");
    assert_eq!(failed.len(), 1, "{failed:#?}");
    let (level, fields) = (&failed[0]["level"], &failed[0]["fields"]);
    let key = "dir/odd \u{1b} name";
    for (field, value) in [
        ("message", "fsync failed"),
        ("path", "/dir/odd \u{1b} name"),
        ("errno", "EACCES"),
        ("request", "PutObject"),
        ("bucket", &m.place.bucket),
        ("key", key),
        ("code", "AccessDenied"),
    ] {
        assert_eq!(fields[field], value, "{field}: {fields:#}");
    }
    assert_eq!((level, &fields["status"]), (&"WARN".into(), &403.into()));
    assert!(fields["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{fields:#}");
    let saves = with(&log, "op", "save");
    assert!(!saves.is_empty());
    for save in saves {
        let fields = &save["fields"];
        assert_eq!((&fields["key"], &fields["code"]), (&key.into(), &"AccessDenied".into()), "{save:#}");
        assert_eq!(fields["bucket"], m.place.bucket);
        assert!(fields["next_try_s"].as_f64() > Some(0.0), "{save:#}");
        assert_eq!(fields["path"], "/dir/odd \u{1b} name");
    }
    assert!(!text.contains("the body of it") && !text.contains(&endpoint(Server::Demo).secret));
}

#[test]
fn what_repeats_is_counted_and_told_at_the_end() {
    let flags = ["--log-level", "info", "--log-format", "json"];
    let Some(mut m) = Mounted::with(Server::Demo, "what_repeats_is_counted", &flags) else { return };
    fs::create_dir(m.at("a")).unwrap();
    fs::create_dir(m.at("b")).unwrap();
    {
        let _refusing = faults(Server::Demo, &format!("op=GetObject,bucket={},fault=denied", m.place.bucket));
        for n in 0..20 {
            block_on(m.place.put(&format!("a/{n}"), "x")).unwrap();
        }
        block_on(m.place.put("b/one", "x")).unwrap();
        let all_there = || fs::read_dir(m.at("a")).unwrap().count() == 20 && m.at("b/one").exists();
        assert!(wait_for(SOON, all_there));
        for n in 0..20 {
            assert_eq!(fs::read(m.at(format!("a/{n}"))).unwrap_err().raw_os_error(), Some(EACCES));
        }
        assert_eq!(fs::read(m.at("b/one")).unwrap_err().raw_os_error(), Some(EACCES));
    }
    assert!(m.umount().success());
    let log = lines(&m.log_text());
    let failed: Vec<_> =
        log.iter().filter(|line| line["level"] == "WARN" && line["fields"]["errno"] == "EACCES").collect();
    let of = |path: &str| {
        let is_there = |line: &&&Value| line["fields"]["path"].as_str().unwrap().starts_with(path);
        failed.iter().filter(is_there).count()
    };
    // The kernel asks again for what its read-ahead did not get.
    assert!(of("/a/") == 5 && (1..=2).contains(&of("/b/")), "{failed:#?}");
    let told: Vec<_> = log.iter().filter(|line| !line["fields"]["count"].is_null()).collect();
    let [told] = &told[..] else { panic!("{told:#?}") };
    assert!(told["fields"]["count"].as_u64() >= Some(15), "{told:#}");
    assert!(told["fields"]["about"].as_str().unwrap().ends_with(" EACCES /a/"), "{told:#}");
    assert!(
        told["fields"]["message"].as_str().unwrap().contains("more like this were not logged"),
        "{told:#}"
    );
}

/// Takes what comes until `last` is in it.
fn receive(socket: &UnixDatagram, last: &str) -> Vec<Vec<u8>> {
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut lines = Vec::new();
    loop {
        let mut buffer = vec![0; 64 << 10];
        let read = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no {last:?}: {e}; {lines:?}"));
        buffer.truncate(read);
        let is_last = String::from_utf8_lossy(&buffer).contains(last);
        lines.push(buffer);
        if is_last {
            return lines;
        }
    }
}

#[test]
fn syslog_gets_lines_with_priorities_from_the_background() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("log");
    let daemon = UnixDatagram::bind(&path).unwrap();
    let flag = format!("--log-to=syslog:{}", path.display());
    let Some(m) = Background::mount("syslog_gets_lines", &[&flag]) else { return };
    let said = |lines: Vec<Vec<u8>>| -> Vec<String> {
        lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    };
    let begun = said(receive(&daemon, "mounted"));
    assert!(begun[0].starts_with("<30>pailfs[") && begun[0].contains("]: mounted source="), "{begun:?}");
    {
        let _refusing = denied(&m.place);
        assert_eq!(save(&m.at("f"), b"x").unwrap_err().raw_os_error(), Some(EACCES));
        let failed = said(receive(&daemon, "fsync failed"));
        let failed = failed.last().unwrap();
        assert!(failed.starts_with("<28>pailfs["), "{failed}");
        for word in ["errno=\"EACCES\"", "code=\"AccessDenied\"", "path=\"/f\"", "request_id="] {
            assert!(failed.contains(word), "{word}: {failed}");
        }
        assert!(!failed.contains('\n') && !failed.contains('\u{1b}'));
    }
    // A daemon that was started anew is found again.
    drop(daemon);
    fs::remove_file(&path).unwrap();
    let daemon = UnixDatagram::bind(&path).unwrap();
    m.umount();
    let ended = said(receive(&daemon, "unmounted"));
    assert!(ended.last().unwrap().starts_with("<30>pailfs["), "{ended:?}");
    // Without a daemon there is no mount: whoever asked for a log gets one.
    drop(daemon);
    let output = m.try_mount(&[&flag]);
    assert_eq!(output.status.code(), Some(14), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(m.try_mount(&["--log-to=stderr"]).status.code(), Some(2));
}

#[test]
fn journald_gets_every_field_by_its_name() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("socket");
    let daemon = UnixDatagram::bind(&path).unwrap();
    let flag = format!("--log-to=journald:{}", path.display());
    let Some(m) = Background::mount("journald_gets_every_field", &[&flag]) else { return };
    let _refusing = denied(&m.place);
    assert_eq!(save(&m.at("f"), b"x").unwrap_err().raw_os_error(), Some(EACCES));
    let entry = receive(&daemon, "fsync failed").pop().unwrap();
    let field = |name: &str| {
        let name = [b"\n", name.as_bytes(), b"\n"].concat();
        let at = entry.windows(name.len()).position(|at| at == name)? + name.len();
        let len = u64::from_le_bytes(entry[at..at + 8].try_into().unwrap()) as usize;
        Some(String::from_utf8(entry[at + 8..at + 8 + len].to_vec()).unwrap())
    };
    for (name, value) in [
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "pailfs"),
        ("PAILFS_OP", "fsync"),
        ("PAILFS_PATH", "/f"),
        ("PAILFS_KEY", "f"),
        ("PAILFS_BUCKET", &m.place.bucket),
        ("PAILFS_CODE", "AccessDenied"),
        ("PAILFS_STATUS", "403"),
    ] {
        assert_eq!(field(name).as_deref(), Some(value), "{name}");
    }
}

#[test]
fn the_level_is_changed_while_the_mount_is_live_and_shows_no_secret() {
    let Some(m) = Background::mount("the_level_is_changed", &["--log-file", "log"]) else { return };
    let level = |args: &[&str]| {
        let output = ask(&[&["log-level"], args].concat(), &m.dir());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(level(&[]), (Some(0), "info\n".to_owned()));
    assert!(fs::metadata(m.at("quiet")).is_err());
    assert_eq!(level(&["debug"]), (Some(0), String::new()));
    assert_eq!(level(&[]), (Some(0), "debug\n".to_owned()));
    // An absent name is remembered without a line; to make a directory twice is asked for all day.
    fs::create_dir(m.at("d")).unwrap();
    let made_again = || rustix::fs::getxattr(m.at("d"), "user.absent", &mut [0u8; 8][..]).unwrap_err();
    made_again();
    assert!(wait_for(SOON, || m.read("log").contains("getxattr failed")), "{}", m.read("log"));
    assert_eq!(level(&["pailfs=shouting"]).0, Some(2));
    // The most talkative there is, with all that is below.
    assert_eq!(level(&["trace,pailfs=trace"]).0, Some(0));
    fs::write(m.at("f"), b"the body of it").unwrap();
    assert_eq!(level(&["warn"]).0, Some(0));
    let log = m.read("log");
    assert!(log.contains("TRACE") && log.contains("PutObject"), "{log}");
    assert!(!log.contains(&endpoint(Server::Demo).secret));
    assert!(!log.lines().any(|line| line.contains(" TRACE aws_")), "requests with their headers");
    made_again();
    fs::write(m.at("g"), b"x").unwrap();
    m.umount();
    let after = m.read("log")[log.len()..].to_owned();
    assert!(!after.contains("getxattr") && !after.contains("unmounted"), "{after}");
    // Whoever has no log cannot raise its level.
    let Some(m) = Background::mount("the_level_is_changed_of_none", &["--log-to=none"]) else { return };
    assert_eq!(ask(&["log-level", "debug"], &m.dir()).status.code(), Some(1));
}

#[test]
fn files_are_opened_anew_after_a_hangup_and_are_their_owner_s() {
    let Some(m) = Background::mount("files_are_opened_anew", &["--log-file", "log", "--trace-ops", "ops"])
    else {
        return;
    };
    let at = |name: &str| m.home.path().join(name);
    for name in ["log", "ops"] {
        assert_eq!(fs::metadata(at(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    fs::write(m.at("before"), b"x").unwrap();
    for name in ["log", "ops"] {
        fs::rename(at(name), at(&format!("{name}.1"))).unwrap();
    }
    m.hang_up();
    assert!(wait_for(SOON, || at("log").exists() && at("ops").exists()), "they are made anew");
    for name in ["log", "ops"] {
        assert_eq!(fs::metadata(at(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    fs::write(m.at("after"), b"x").unwrap();
    m.umount();
    assert!(m.read("log.1").contains(" mounted ") && !m.read("log").contains(" mounted "));
    assert!(m.read("log").contains(" unmounted "), "{}", m.read("log"));
    assert!(m.read("ops").contains("/after\t") && !m.read("ops").contains("/before\t"), "{}", m.read("ops"));
    assert!(m.read("ops.1").contains("/before\t"));
    assert_eq!(block_on(m.place.get("after")).unwrap(), "x");
}

#[test]
fn the_demo_s_own_mount_logs_like_every_other() {
    if fresh_place(Server::Demo, "the_demo_s_own_mount_logs").is_none() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (dir, log) = (home.path().join("mnt"), home.path().join("log"));
    fs::create_dir(&dir).unwrap();
    let mut command = pailfs(&endpoint(Server::Demo));
    command.args(["demo", "--mount"]).arg(&dir).arg("--log-file").arg(&log);
    let mut demo = command.stdout(Stdio::null()).spawn().unwrap();
    assert!(wait_for(SOON, || is_mounted(&dir) || demo.try_wait().unwrap().is_some()));
    let leveled = ask(&["log-level", "debug"], &dir);
    let unmounted = ask(&["umount"], &dir);
    // Nothing stays, whatever was answered.
    if !unmounted.status.success() {
        let _ = rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH);
    }
    assert!(demo.wait().unwrap().success());
    assert!(leveled.status.success(), "{}", String::from_utf8_lossy(&leveled.stderr));
    let log = fs::read_to_string(&log).unwrap();
    for line in [" mounted ", "level was changed", " unmounted "] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn every_operation_is_a_line_of_the_trace() {
    let Some(m) = Background::mount("every_operation_is_a_line", &["--trace-ops", "ops"]) else { return };
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/tab\there"), b"seven b").unwrap();
    fs::rename(m.at("d/tab\there"), m.at("d/g")).unwrap();
    // A size that no page cache answers for.
    block_on(m.place.put("d/other", vec![7; 5000])).unwrap();
    assert!(wait_for(SOON, || fs::read(m.at("d/other")).is_ok_and(|bytes| bytes.len() == 5000)));
    assert!(fs::metadata(m.at("absent")).is_err());
    assert!(fs::hard_link(m.at("d/g"), m.at("d/h")).is_err());
    {
        let _refusing = denied(&m.place);
        assert!(save(&m.at("refused"), b"x").is_err());
    }
    fs::remove_file(m.at("d/g")).unwrap();
    m.umount();
    let text = m.read("ops");
    let mut rows = text.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let header = rows.next().unwrap();
    assert_eq!(header, ["#time", "op", "result", "latency_us", "offset", "bytes", "pid", "path", "to"]);
    let rows: Vec<_> = rows.collect();
    let find = |op: &str, path: &str| {
        let found = rows.iter().find(|row| row[1] == op && row[7] == path);
        found.unwrap_or_else(|| panic!("no {op} of {path}:\n{text}")).clone()
    };
    for row in &rows {
        assert_eq!(row.len(), header.len(), "{row:?}");
        assert!(row[0].len() == 27 && row[0].starts_with("20") && row[0].ends_with('Z'), "{row:?}");
        row[3].parse::<u64>().unwrap();
    }
    assert_eq!(find("mkdir", "/d")[2], "ok");
    assert_eq!(find("create", "/d/tab\\there")[2], "ok");
    // The kernel tells the thread that asked.
    let thread = find("create", "/d/tab\\there")[6].to_owned();
    assert!(Path::new("/proc/self/task").join(&thread).exists(), "{thread} is none of ours");
    let write = find("write", "/d/tab\\there");
    assert_eq!((write[2], write[4], write[5]), ("ok", "0", "7"));
    // What waits for S3 takes its time.
    let close = find("close", "/d/tab\\there");
    assert!(close[2] == "ok" && close[3].parse::<u64>().unwrap() > 0);
    assert_eq!(find("rename", "/d/tab\\there")[8], "/d/g");
    let read = rows.iter().filter(|row| row[1] == "read" && row[7] == "/d/other");
    assert!(read.map(|row| row[5].parse::<u64>().unwrap()).sum::<u64>() >= 5000, "{text}");
    assert_eq!(find("lookup", "/absent")[2], "ENOENT");
    assert_eq!(find("link", "/d/h")[2], "EPERM");
    assert_eq!(find("fsync", "/refused")[2], "EACCES");
    assert_eq!(find("unlink", "/d/g")[2], "ok");
    for op in ["open", "release", "getattr", "getxattr", "fsync"] {
        assert!(rows.iter().any(|row| row[1] == op), "no {op}:\n{text}");
    }
}
