//! Names removed one after the other, through the kernel.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use pailfs::error::Result;
use rustix::io::Errno;

use crate::harness::mount::{Mounted, wait_for};
use crate::harness::server::{faults, requests};
use crate::harness::{Server, block_on};

/// Longer than anything here takes, with room for a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).expect("an error of the kernel")
}

/// Objects of another client.
fn fill(m: &Mounted, keys: Vec<String>) {
    let puts = futures::stream::iter(keys)
        .map(|key| async move { m.place.put(&key, "x").await.map(drop) })
        .buffer_unordered(16)
        .collect::<Vec<Result<()>>>();
    block_on(puts).into_iter().collect::<Result<()>>().unwrap();
}

fn keys(m: &Mounted) -> Vec<String> {
    // A mount probes its server when it begins.
    let is_ours = |key: &String| !key.starts_with(pailfs::s3::SCRATCH);
    block_on(m.place.keys()).unwrap().into_iter().filter(is_ours).collect()
}

/// "unlink, rm -r | the name is gone from the mount at once. Its object is deleted before `unlink` returns, but of
/// files removed in a row"
#[test]
// How many batches there are depends on how long it takes.
#[allow(clippy::disallowed_methods)]
fn rm_r_is_a_few_requests() {
    let Some(m) = Mounted::fresh(Server::Demo, "rm_r_is_a_few_requests") else { return };
    fs::create_dir(m.at("tree")).unwrap();
    for dir in 0..5 {
        fs::create_dir(m.at(format!("tree/{dir}"))).unwrap();
        fill(&m, (0..100).map(|i| format!("tree/{dir}/{i}")).collect());
    }
    let deletes = || requests(Server::Demo, "DeleteObject") + requests(Server::Demo, "DeleteObjects");
    let before = deletes();
    let began = std::time::Instant::now();
    assert!(Command::new("rm").arg("-rf").arg(m.at("tree")).status().unwrap().success());
    let (asked, took) = (deletes() - before, began.elapsed());
    println!("{asked} requests, {took:?}");
    assert!(keys(&m).is_empty(), "rm is back, so they are gone");
    // Two that begin the row, six markers, and a batch of each 20 ms that this machine takes.
    let batches = u64::try_from(took.as_millis() / 20).unwrap();
    assert!(asked <= 8 + 5 + batches.min(100), "{asked} requests in {took:?}");
}

/// "unlink of a file that another client has just changed | the kernel looks again and removes what is there"
#[test]
fn one_file_is_gone_from_s3_when_its_unlink_returns() {
    let Some(m) = Mounted::fresh(Server::Demo, "one_file_is_gone_from_s3_when_its_unlink_returns") else {
        return;
    };
    for name in ["one", "two"] {
        fs::write(m.at(name), b"x").unwrap();
        fs::remove_file(m.at(name)).unwrap();
        assert!(keys(&m).is_empty());
    }
    // One that another client changed a moment ago: the kernel looks again, and removes what is there.
    fs::write(m.at("changed"), b"x").unwrap();
    fs::metadata(m.at("changed")).unwrap();
    block_on(m.place.put("changed", "newer")).unwrap();
    fs::remove_file(m.at("changed")).unwrap();
    assert!(keys(&m).is_empty());
}

#[test]
fn rows_are_drained_by_fsync_of_a_directory_flush_and_unmount() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "rows_are_drained_by_fsync_flush_and_unmount") else {
        return;
    };
    fill(&m, (0..150).map(|i| format!("{i:03}")).collect());
    let remove = |names: std::ops::Range<usize>| {
        for i in names {
            fs::remove_file(m.at(format!("{i:03}"))).unwrap();
        }
    };
    remove(0..50);
    File::open(m.path()).unwrap().sync_all().unwrap();
    assert_eq!(keys(&m).len(), 100);
    remove(50..100);
    assert!(
        Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("flush").arg(m.path()).status().unwrap().success()
    );
    assert_eq!(keys(&m).len(), 50);
    remove(100..150);
    assert!(m.umount().success());
    assert!(keys(&m).is_empty());
}

/// "a delete of a row that S3 refuses | is told by the next `rmdir` or `fsync` of its directory"
#[test]
fn a_refused_delete_of_a_row_is_told_and_the_name_is_there_again() {
    let Some(m) = Mounted::fresh(Server::Demo, "a_refused_delete_of_a_row_is_told") else { return };
    // All of it is another client's: of a directory that is made here it is known that it is empty.
    block_on(m.place.put("d/", "")).unwrap();
    fill(&m, (0..100).map(|i| format!("d/{i:03}")).collect());
    let rule = format!("op=DeleteObjects,bucket={},fault=denied", m.place.bucket);
    {
        let _faults = faults(Server::Demo, &rule);
        for i in 0..60 {
            fs::remove_file(m.at(format!("d/{i:03}"))).unwrap();
            if i > 2 {
                // Gone at once, though S3 has it.
                assert!(
                    fs::metadata(m.at(format!("d/{i:03}"))).is_err()
                        || m.log_text().contains("it is there again")
                );
            }
        }
        let failed = fs::remove_dir(m.at("d")).unwrap_err();
        // Where the batch failed early, later ones were waited for, and rmdir tells of the first.
        assert_eq!(errno(&failed), Errno::ACCESS);
        assert!(wait_for(SOON, || fs::read_dir(m.at("d")).unwrap().count() == keys(&m).len() - 1));
        assert!(keys(&m).len() > 41);
        assert!(m.log_text().contains("a removed file could not be deleted; it is there again"));
    }
    fs::remove_dir_all(m.at("d")).unwrap();
    assert!(keys(&m).is_empty());
}
