//! Writing large files, as a program does.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{figure, stamped};
use crate::harness::Server;
use crate::harness::mount::Mounted;

const MIB: usize = 1 << 20;

/// A file system in memory of its own size, unmounted when it goes.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Command::new("mount");
        made.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "none"]).arg(dir.path());
        assert!(made.status().unwrap().success(), "a tmpfs can be mounted");
        Self(dir)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Mounts with its state on a small disk; tests that need one are for root.
pub(crate) fn on_small_disk(test: &str) -> Option<(Mounted, SmallDisk)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let disk = SmallDisk::new("64m");
    let m = Mounted::with(Server::Demo, test, &["--state-dir", disk.path()])?;
    Some((m, disk))
}

fn same(path: impl AsRef<Path>, body: &[u8]) {
    assert!(fs::read(path).unwrap() == body);
}

/// T24: a file larger than the disk that it is staged on streams, and is whole.
#[test]
fn t24_a_copy_larger_than_the_local_disk_streams() {
    let Some((m, disk)) = on_small_disk("large-copy") else { return };
    let body = stamped(200 * MIB);
    let sent = figure(&m, "s3_sent_bytes");
    fs::write(m.at("large"), &body).unwrap();
    assert_eq!(figure(&m, "s3_sent_bytes") - sent, body.len() as u64, "every byte once");
    same(m.at("large"), &body);
    // Written over in the middle while it streams.
    let mut file = File::create(m.at("again")).unwrap();
    file.write_all(&body[..100 * MIB]).unwrap();
    file.write_all_at(b"over", 3 * MIB as u64 + 5).unwrap();
    file.write_all(&body[100 * MIB..150 * MIB]).unwrap();
    drop(file);
    let mut expected = body[..150 * MIB].to_vec();
    expected[3 * MIB + 5..3 * MIB + 9].copy_from_slice(b"over");
    same(m.at("again"), &expected);
    drop(m);
    drop(disk);
}

/// What cannot stream is told that the disk is full, and nothing short is made of it.
#[test]
fn what_cannot_stream_hears_that_the_disk_is_full() {
    let Some((m, disk)) = on_small_disk("full-disk") else { return };
    fs::write(m.at("f"), b"before").unwrap();
    let file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
    // From the end backwards, so that no part is ever full from the start on.
    let chunk = stamped(MIB);
    let mut failed = None;
    for at in (0..150u64).rev() {
        if let Err(error) = file.write_all_at(&chunk, at * MIB as u64) {
            failed = Some(error);
            break;
        }
    }
    let failed = failed.expect("150 MiB do not fit into 64");
    assert_eq!(failed.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()), "{failed}");
    // Making room is enough to go on.
    file.set_len(0).unwrap();
    file.write_all_at(b"after", 0).unwrap();
    drop(file);
    same(m.at("f"), b"after");
    drop(m);
    drop(disk);
}

#[test]
fn a_large_file_is_read_back_while_it_is_written() {
    let Some(m) = Mounted::fresh(Server::Demo, "read-back") else { return };
    let body = stamped(40 * MIB);
    let path: PathBuf = m.at("f");
    let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    let mut back = vec![0; MIB];
    for (step, chunk) in body.chunks(MIB).enumerate() {
        file.write_all(chunk).unwrap();
        file.seek(SeekFrom::Start((step / 2 * MIB) as u64)).unwrap();
        file.read_exact(&mut back).unwrap();
        assert!(back == body[step / 2 * MIB..(step / 2 + 1) * MIB]);
        file.seek(SeekFrom::End(0)).unwrap();
    }
    drop(file);
    same(&path, &body);
}

/// D10: "`--staging=memory`: what is not in S3 yet is in memory alone, and nothing is written to a local disk."
#[test]
fn with_staging_in_memory_nothing_is_written_below_the_state_directory() {
    let scratch = tempfile::tempdir().unwrap();
    let state = scratch.path().join("state");
    let flags = ["--staging", "memory", "--memory-limit", "96M", "--state-dir", state.to_str().unwrap()];
    let Some(mut m) = Mounted::with(Server::Demo, "staging-memory", &flags) else { return };
    let body = stamped(120 * MIB);
    fs::write(m.at("large"), &body).unwrap();
    same(m.at("large"), &body);
    for n in 0..10 {
        fs::write(m.at(format!("small-{n}")), &body[n..n + 100_000]).unwrap();
    }
    let file = OpenOptions::new().write(true).open(m.at("large")).unwrap();
    file.write_all_at(b"changed", 60 * MIB as u64).unwrap();
    drop(file);
    let mut expected = body;
    expected[60 * MIB..60 * MIB + 7].copy_from_slice(b"changed");
    same(m.at("large"), &expected);
    fs::rename(m.at("small-0"), m.at("renamed")).unwrap();
    fs::remove_file(m.at("small-1")).unwrap();
    assert!(m.umount().success());
    assert!(!state.exists(), "nothing was made there");
}

#[test]
fn staging_in_memory_with_a_journal_is_refused_in_words() {
    let endpoint = crate::harness::mount::endpoint(Server::Demo);
    let dir = tempfile::tempdir().unwrap();
    let mut command = crate::harness::mount::pailfs(&endpoint);
    command.args(["mount", "s3://bucket"]).arg(dir.path());
    command.args(["--staging=memory", "--durability=journal", "--endpoint-url", &endpoint.url]);
    let refused = command.output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(told.contains("--durability=journal keeps what was written on the local disk"), "{told}");
}
