//! The process is killed, and the next one has what it had taken.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use crate::cache::stamped;
use crate::harness::mount::{Mounted, endpoint, pailfs, wait_for};
use crate::harness::server::faults;
use crate::harness::{Server, block_on};

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

/// A mount with a state directory that outlives it.
fn mounted(test: &str, flags: &[&str]) -> Option<(Mounted, tempfile::TempDir)> {
    let state = tempfile::tempdir().unwrap();
    let m = Mounted::with(
        Server::Demo,
        test,
        &[&["--state-dir", state.path().to_str().unwrap()], flags].concat(),
    )?;
    Some((m, state))
}

/// The process is gone as by a power switch of its own; its mount is cleared away.
fn kill(m: &mut Mounted) {
    m.kill();
    let _ = Command::new("umount").arg("-l").arg(m.path()).status();
}

fn object(m: &Mounted, key: &str) -> Option<Vec<u8>> {
    block_on(async { m.place.get(key).await.ok().map(|bytes| bytes.to_vec()) })
}

/// D5: "every write, cut, hole and copy that had returned is on the next mount", "and on its way to S3".
#[test]
fn what_was_written_before_a_kill_is_there_after_the_next_mount() {
    let Some((mut m, state)) = mounted("kill-open", &[]) else { return };
    let body = stamped(20 * MIB + 5);
    fs::write(m.at("changed"), b"0123456789").unwrap();
    let changed = OpenOptions::new().write(true).open(m.at("changed")).unwrap();
    changed.write_all_at(b"XX", 3).unwrap();
    let mut large = File::create(m.at("large")).unwrap();
    large.write_all(&body).unwrap();
    fs::create_dir(m.at("d")).unwrap();
    let renamed = File::create(m.at("d/before")).unwrap();
    renamed.write_all_at(b"renamed", 0).unwrap();
    fs::rename(m.at("d/before"), m.at("d/after")).unwrap();
    let gone = File::create(m.at("gone")).unwrap();
    gone.write_all_at(b"gone", 0).unwrap();
    fs::remove_file(m.at("gone")).unwrap();
    kill(&mut m);
    drop((changed, large, renamed, gone));
    assert_eq!(object(&m, "large"), None, "it was never closed");
    let next = m.again(&["--state-dir", state.path().to_str().unwrap()]);
    assert_eq!(fs::read(next.at("changed")).unwrap(), b"012XX56789");
    assert!(fs::read(next.at("large")).unwrap() == body);
    assert_eq!(fs::read(next.at("d/after")).unwrap(), b"renamed");
    assert!(!next.at("d/before").exists() && !next.at("gone").exists());
    flush(&next);
    assert_eq!(object(&m, "changed").unwrap(), b"012XX56789");
    assert!(object(&m, "large").unwrap() == body);
    assert_eq!(object(&m, "gone"), None);
}

/// D6: "`close()` returns once the bytes are synced to the local disk, and S3 gets them behind". T25: written,
/// closed, and killed or told to end at once.
#[test]
fn t25_a_journaled_close_survives_a_kill_and_a_signal() {
    for signal in [false, true] {
        let Some((mut m, state)) = mounted("kill-journal", &["--durability", "journal"]) else { return };
        let body = stamped(3 * MIB);
        for i in 0..20 {
            fs::write(m.at(format!("f{i:02}")), &body[i * 1000..]).unwrap();
        }
        if signal {
            assert!(m.umount().success());
        } else {
            kill(&mut m);
        }
        let next = m.again(&["--state-dir", state.path().to_str().unwrap()]);
        for i in 0..20 {
            assert!(fs::read(next.at(format!("f{i:02}"))).unwrap() == body[i * 1000..], "{i}");
        }
        let saved = wait_for(SOON, || {
            (0..20).all(|i| object(&m, &format!("f{i:02}")).is_some_and(|bytes| bytes == body[i * 1000..]))
        });
        assert!(saved, "everything gets to S3");
    }
}

fn flush(m: &Mounted) {
    let flushed = pailfs(&endpoint(Server::Demo)).arg("flush").arg(m.path()).status().unwrap();
    assert!(flushed.success());
}

fn keys(m: &Mounted) -> Vec<String> {
    // A mount probes its server when it begins.
    let is_ours = |key: &String| !key.starts_with(pailfs::s3::SCRATCH);
    block_on(m.place.keys()).unwrap().into_iter().filter(is_ours).collect()
}

/// "a row of deletes when pailfs is killed | what was removed stays removed: the next mount of the same source"
#[test]
fn names_removed_in_a_row_stay_removed_after_a_kill() {
    let Some((mut m, state)) = mounted("kill-row", &[]) else { return };
    // All of it is another client's: of a directory that is made here it is known that it is empty.
    block_on(async {
        m.place.put("d/", "").await.unwrap();
        for i in 0..200 {
            m.place.put(&format!("d/{i:03}"), "x").await.unwrap();
        }
    });
    for i in 0..100 {
        fs::remove_file(m.at(format!("d/{i:03}"))).unwrap();
    }
    kill(&mut m);
    let left = keys(&m);
    let stay: Vec<String> = (100..200).map(|i| format!("d/{i:03}")).collect();
    assert!(stay.iter().all(|key| left.contains(key)));
    println!("S3 had {} of 100 removed files still", left.len() - 101);
    let next = m.again(&["--state-dir", state.path().to_str().unwrap()]);
    assert_eq!(fs::read_dir(next.at("d")).unwrap().count(), 100);
    flush(&next);
    assert_eq!(keys(&m).len(), 101);
}

/// "rename a directory | yes: its objects are copied in parallel and deleted after the last copy; not atomic, but finished
/// after a kill"
#[test]
fn a_directory_whose_rename_was_killed_is_whole_after_the_next_mount_or_recover() {
    for (operation, remount) in [("CopyObject", true), ("DeleteObjects", false)] {
        let Some((mut m, state)) = mounted("kill-rename", &[]) else { return };
        let dir = state.path().to_str().unwrap();
        fs::create_dir(m.at("d")).unwrap();
        block_on(async {
            for i in 0..50 {
                m.place.put(&format!("d/{i:02}"), format!("{i}")).await.unwrap();
            }
        });
        let (from, to) = (m.at("d"), m.at("e"));
        let copied = |m: &Mounted| keys(m).iter().filter(|key| key.starts_with("e/")).count();
        let rule = format!("op={operation},bucket={},every=2,fault=latency:60s", m.place.bucket);
        let every = format!("op={operation},bucket={},fault=latency:60s", m.place.bucket);
        {
            let _held = faults(Server::Demo, if operation == "CopyObject" { &rule } else { &every });
            let rename = std::thread::spawn(move || fs::rename(from, to));
            let enough = if operation == "CopyObject" { 25 } else { 51 };
            assert!(wait_for(SOON, || copied(&m) >= enough), "{} copies", copied(&m));
            kill(&mut m);
            rename.join().unwrap().unwrap_err();
        }
        let at = endpoint(Server::Demo);
        let recover = |more: &[&str]| {
            let output = pailfs(&at).args(["recover", "--state-dir", dir]).args(more).output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let source = format!("s3://{}", m.place.bucket);
        let listed = recover(&[]);
        assert!(
            listed.contains(&format!("  {source}/d/  51 objects  being renamed to {source}/e/")),
            "{listed}"
        );
        if remount {
            let next = m.again(&["--state-dir", dir]);
            assert_eq!(fs::read_dir(next.at("e")).unwrap().count(), 50);
            assert!(!next.at("d").exists());
        } else {
            let said = recover(&[&source, "--endpoint-url", &at.url, "--region", &at.region]);
            assert!(said.contains("1 renames of directories finished"), "{said}");
        }
        assert_eq!(keys(&m).len(), 51);
        for i in 0..50 {
            assert_eq!(object(&m, &format!("e/{i:02}")).unwrap(), format!("{i}").into_bytes());
        }
        assert_eq!(recover(&[]), "nothing is owed\n");
    }
}

#[test]
fn recover_lists_what_is_owed_and_saves_it() {
    let Some((mut m, state)) = mounted("recover", &[]) else { return };
    let dir = state.path().to_str().unwrap();
    let at = endpoint(Server::Demo);
    let recover = |more: &[&str]| {
        let output = pailfs(&at).args(["recover", "--state-dir", dir]).args(more).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = recover(&[]);
    assert!(code == Some(0) && said.contains("in use by process"), "{said}");
    // A program that is started closes its copies of what is open, which saves it: none is from here on.
    let file = File::create(m.at("f")).unwrap();
    file.write_all_at(b"owed", 0).unwrap();
    kill(&mut m);
    drop(file);
    let (code, said) = recover(&[]);
    let name = format!("s3://{}/f", m.place.bucket);
    assert!(code == Some(0) && said.contains(&name) && said.contains("not closed"), "{said}");
    let (_, json) = recover(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["files"][0]["bytes"], 4);
    let source = format!("s3://{}", m.place.bucket);
    let (code, said) = recover(&[&source, "--endpoint-url", &at.url, "--region", &at.region]);
    assert!(code == Some(0) && said.contains("1 files saved"), "{code:?} {said}");
    assert_eq!(object(&m, "f").unwrap(), b"owed");
    assert_eq!(recover(&[]), (Some(0), "nothing is owed\n".to_owned()));
}

#[test]
fn two_mounts_of_one_bucket_owe_apart() {
    let Some((m, state)) = mounted("two-mounts", &[]) else { return };
    let second = m.again(&["--state-dir", state.path().to_str().unwrap()]);
    fs::write(m.at("a"), b"a").unwrap();
    fs::write(second.at("b"), b"b").unwrap();
    let dirs = fs::read_dir(state.path().join("mounts")).unwrap().count();
    assert_eq!(dirs, 2);
    assert_eq!(fs::read(second.at("a")).unwrap(), b"a");
}

/// D5: "Where several mounts of the source have ended so, the next one has what all of them owed"
#[test]
fn one_mount_saves_what_two_killed_ones_owed() {
    let journaled = ["--durability", "journal"];
    let Some((mut m, state)) = mounted("kill-two", &journaled) else { return };
    let dir = state.path().to_str().unwrap();
    let flags = [&["--state-dir", dir], &journaled[..]].concat();
    let mut second = m.again(&flags);
    let at = endpoint(Server::Demo);
    let recover = || {
        let output = pailfs(&at).args(["recover", "--state-dir", dir, "--json"]).output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let next = {
        let rule = format!("op=PutObject,bucket={},key=of-,fault=denied", m.place.bucket);
        let _refused = faults(Server::Demo, &rule);
        fs::write(m.at("of-one"), b"one").unwrap();
        fs::write(second.at("of-two"), b"two").unwrap();
        kill(&mut m);
        kill(&mut second);
        let listed = recover();
        let objects: Vec<&str> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|debts| debts["files"][0]["object"].as_str().unwrap().rsplit('/').next().unwrap())
            .collect();
        assert_eq!(objects, ["of-one", "of-two"], "{listed}");
        let next = m.again(&flags);
        let output = pailfs(&at).args(["status", "--json"]).arg(next.path()).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&status["unsaved"]["files"], &status["unsaved"]["bytes"]),
            (&2.into(), &6.into()),
            "{status}"
        );
        let listed = recover();
        assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
        assert!(listed[0]["unreadable"].as_str().unwrap().contains("in use by process"));
        next
    };
    assert_eq!(fs::read(next.at("of-one")).unwrap(), b"one");
    assert_eq!(fs::read(next.at("of-two")).unwrap(), b"two");
    flush(&next);
    assert_eq!(object(&m, "of-one").unwrap(), b"one");
    assert_eq!(object(&m, "of-two").unwrap(), b"two");
    // It goes on beside another mount, which owes apart again.
    let beside = m.again(&flags);
    assert_eq!(recover().as_array().unwrap().len(), 2);
    drop((next, beside));
    assert_eq!(recover(), serde_json::json!([]));
}
