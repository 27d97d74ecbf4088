//! What waits for S3 is waited for in the end, with word of how far it is.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cache::stamped;
use crate::harness::mount::{Mounted, endpoint, pailfs, wait_for};
use crate::harness::server::faults;
use crate::harness::{Server, block_on};
use crate::semantics::status;

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

/// A write-back mount with some files that a slow server does not have yet.
fn waiting(test: &str) -> Option<(Mounted, crate::harness::server::Faults)> {
    let m = Mounted::with(Server::Demo, test, &["--durability", "journal"])?;
    // A warm-up, so that the server was probed before it gets slow.
    fs::write(m.at("first"), b"first").unwrap();
    let flushed = pailfs(&endpoint(Server::Demo)).arg("flush").arg(m.path()).status().unwrap();
    assert!(flushed.success());
    let slow = faults(Server::Demo, &format!("op=PutObject,bucket={},fault=latency:2500ms", m.place.bucket));
    for name in ["a", "b", "c"] {
        fs::write(m.at(name), stamped(MIB)).unwrap();
    }
    Some((m, slow))
}

fn all_there(m: &Mounted) {
    for name in ["a", "b", "c"] {
        assert!(block_on(m.place.get(name)).unwrap() == stamped(MIB));
    }
}

#[test]
fn flush_and_umount_tell_how_far_they_are_and_what_was_saved() {
    for command in ["flush", "umount"] {
        let Some((m, _slow)) = waiting(&format!("drain-{command}")) else { return };
        let output = pailfs(&endpoint(Server::Demo)).arg(command).arg(m.path()).output().unwrap();
        assert!(output.status.success());
        all_there(&m);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("pailfs: saving 3.0 MiB in 3 files\n"), "{said}");
        assert!(said.ends_with("pailfs: saved 3.0 MiB in 3 files\n"), "{said}");
        assert!(!said.contains('\r'), "no terminal looks on: {said:?}");
    }
}

#[test]
fn a_terminal_gets_one_line_that_changes() {
    let Some((m, _slow)) = waiting("drain-terminal") else { return };
    // A terminal of its own, where this machine has the means.
    let flush = format!("{} flush {}", env!("CARGO_BIN_EXE_pailfs"), m.path().display());
    let output = Command::new("script").args(["-qec", &flush, "/dev/null"]).stdin(Stdio::null()).output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no script(1)");
        return;
    };
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("\r\x1b[Kpailfs: saving 3.0 MiB in 3 files\r\x1b[K"), "{said:?}");
    assert!(said.ends_with("\r\x1b[Kpailfs: saved 3.0 MiB in 3 files\r\n"), "{said:?}");
    all_there(&m);
}

#[test]
fn a_signal_to_a_mount_in_the_foreground_saves_and_tells_so_too() {
    let Some((m, _slow)) = waiting("drain-signal") else { return };
    let pid = rustix::process::Pid::from_raw(m.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(
        wait_for(SOON, || m.log_text().contains("pailfs: saved 3.0 MiB in 3 files\n")),
        "{}",
        m.log_text()
    );
    assert!(m.log_text().contains("pailfs: saving 3.0 MiB in 3 files\n"), "{}", m.log_text());
    all_there(&m);
}

#[test]
fn recover_tells_how_far_it_is() {
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().to_str().unwrap();
    let late = ["--durability", "journal", "--upload-delay", "1h", "--state-dir", state_dir];
    let Some(mut m) = Mounted::with(Server::Demo, "drain-recover", &late) else { return };
    block_on(async {
        m.place.put("d/", "").await.unwrap();
        for n in 0..200 {
            m.place.put(&format!("d/{n}"), "x").await.unwrap();
        }
    });
    for name in ["a", "b", "c"] {
        fs::write(m.at(name), stamped(MIB)).unwrap();
    }
    // Of a rename, the process that is killed has made some copies.
    let bucket = m.place.bucket.clone();
    let slow_copies = faults(Server::Demo, &format!("op=CopyObject,bucket={bucket},fault=latency:2500ms"));
    let (from, to) = (m.at("d"), m.at("e"));
    let renaming = std::thread::spawn(move || fs::rename(from, to));
    let copied = || status(&m)["unsaved"]["renames"][0]["copied"].as_u64().unwrap_or(0);
    assert!(wait_for(SOON, || copied() > 0));
    m.kill();
    assert!(renaming.join().unwrap().is_err());
    let at = endpoint(Server::Demo);
    assert!(pailfs(&at).arg("umount").arg(m.path()).status().unwrap().success());
    let slow_puts = faults(Server::Demo, &format!("op=PutObject,bucket={bucket},fault=latency:2500ms"));
    let output = pailfs(&at)
        .args(["recover", &format!("s3://{bucket}"), "--state-dir", state_dir])
        .args(["--endpoint-url", &at.url, "--region", &at.region])
        .output()
        .unwrap();
    drop((slow_copies, slow_puts));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("pailfs: renaming a directory, ") && said.contains(" of 201 objects copied\n"),
        "{said}"
    );
    assert!(said.ends_with("pailfs: saved 3.0 MiB in 3 files\n"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("3 files saved\n"));
    all_there(&m);
    assert_eq!(block_on(m.place.get("e/199")).unwrap(), "x");
}

#[test]
fn fsync_of_a_directory_returns_once_what_was_closed_in_it_is_in_s3() {
    let late = ["--durability", "journal", "--upload-delay", "1h"];
    let Some(m) = Mounted::with(Server::Demo, "drain-fsync", &late) else { return };
    fs::create_dir(m.at("dir")).unwrap();
    for name in ["dir/a", "dir/b", "beside"] {
        fs::write(m.at(name), name).unwrap();
    }
    let there = |name: &str| block_on(m.place.get(name)).ok();
    assert!(there("dir/a").is_none() && there("dir/b").is_none(), "their turn is in an hour");
    fs::File::open(m.at("dir")).unwrap().sync_all().unwrap();
    for name in ["dir/a", "dir/b"] {
        assert_eq!(there(name).unwrap(), name.as_bytes());
    }
    assert!(there("beside").is_none(), "it is in another directory");
}
