//! The cache directory and passthrough: what they spare, and that nobody can tell.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::mount::{Mounted, pailfs, wait_for};
use crate::harness::{Server, block_on};

const SOON: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

/// Bytes of which each page says where it is; made faster than a pattern.
pub fn stamped(len: usize) -> Vec<u8> {
    let mut bytes = vec![0xa5; len];
    for (number, page) in bytes.chunks_exact_mut(4096).enumerate() {
        page[..8].copy_from_slice(&(number as u64).to_le_bytes());
        page[4088..].copy_from_slice(&(number as u64 * 31).to_le_bytes());
    }
    bytes
}

/// A mount with a cache directory, and the directory.
struct Cached {
    m: Mounted,
    dir: tempfile::TempDir,
}

impl Cached {
    fn fresh(test: &str, flags: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().to_str().unwrap();
        let m = Mounted::with(Server::Demo, test, &[&["--cache-dir", cache], flags].concat())?;
        Some(Self { m, dir })
    }

    /// Another mount with the same cache directory.
    fn again(&self, flags: &[&str]) -> Mounted {
        self.m.again(&[&["--cache-dir", self.dir.path().to_str().unwrap()], flags].concat())
    }
}

/// A counter of `pailfs status --json`, or the number of requests of an API name.
pub fn figure(m: &Mounted, name: &str) -> u64 {
    let endpoint = crate::harness::mount::endpoint(Server::Demo);
    let output = pailfs(&endpoint).arg("status").arg(m.path()).arg("--json").output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let counters = status["counters"].as_array().unwrap().iter();
    let requests = status["requests"].as_array().unwrap().iter();
    let counter = counters.filter(|c| c["name"] == name).map(|c| c["value"].as_u64().unwrap());
    let requests = requests.filter(|r| r["operation"] == name).map(|r| r["count"].as_u64().unwrap());
    counter.chain(requests).sum()
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// Reads a file through and waits until the cache has all of it.
fn warm(m: &Mounted, name: &str, body: &[u8]) {
    let before = figure(m, "disk_written_bytes");
    assert!(read(m.at(name)) == body);
    let kept = || figure(m, "disk_written_bytes") - before;
    let all = wait_for(SOON, || kept() >= body.len() as u64);
    assert!(all, "{} of {} bytes are kept; {} runs dropped", kept(), body.len(), figure(m, "disk_dropped"));
}

/// Takes this file's pages from the kernel, as memory pressure would.
pub fn drop_pages(path: PathBuf) {
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Opens a file that the kernel then reads by itself.
fn backed(m: &Mounted, name: &str) -> File {
    let mut file = None;
    let backed = wait_for(SOON, || {
        // What was written through the kernel is in its pages and not in the cache directory.
        drop_pages(m.at(name));
        read(m.at(name));
        let before = figure(m, "passthrough_opens");
        file = Some(File::open(m.at(name)).unwrap());
        figure(m, "passthrough_opens") > before
    });
    assert!(backed, "it never is whole on disk\n{}", m.log_text());
    file.unwrap()
}

/// Opens a file for the kernel to read by itself, where it may: the cache knows a moment after its last write that the file
/// is whole.
fn opened(m: &Mounted, name: &str) -> File {
    let mut file = File::open(m.at(name)).unwrap();
    if rustix::process::geteuid().is_root() {
        wait_for(SOON, || {
            file = File::open(m.at(name)).unwrap();
            figure(m, "passthrough_opens") > 0
        });
    }
    file
}

/// Whether this kernel lets this process hand out backing files.
fn has_passthrough(m: &Mounted, test: &str) -> bool {
    let works = figure(m, "passthrough_opens") > 0;
    if !works {
        eprintln!("NOT RUN: {test}: the kernel gives no passthrough here\n{}", m.log_text());
    }
    assert!(works || !rustix::process::geteuid().is_root(), "root should have it; {}", m.log_text());
    works
}

#[test]
fn what_was_read_once_is_read_again_without_s3_and_after_a_restart_and_beside() {
    let Some(c) = Cached::fresh("what_was_read_once", &[]) else { return };
    let body = pattern(9 * MIB + 5, 1);
    block_on(c.m.place.put("f", body.clone())).unwrap();
    warm(&c.m, "f", &body);
    let beside = c.again(&[]);
    assert!(read(beside.at("f")) == body);
    assert_eq!(figure(&beside, "GetObject"), 0);
    let mut c = c;
    c.m.kill();
    let after = c.again(&["--read-only", "--passthrough", "off"]);
    assert!(read(after.at("f")) == body);
    assert_eq!(figure(&after, "GetObject"), 0);
    assert_eq!(figure(&after, "passthrough_opens"), 0);
}

/// C1 holds over the cache: its files are known by ETag.
#[test]
fn a_replaced_object_is_never_read_from_the_cache() {
    let Some(c) = Cached::fresh("a_replaced_object", &[]) else { return };
    for seed in 0..3 {
        let body = pattern(3 * MIB, seed);
        block_on(c.m.place.put("f", body.clone())).unwrap();
        warm(&c.m, "f", &body);
        assert!(read(c.m.at("f")) == body);
    }
}

#[test]
fn a_file_that_is_whole_on_disk_is_read_by_the_kernel_alone() {
    let test = "a_file_that_is_whole_on_disk_is_read_by_the_kernel_alone";
    let Some(c) = Cached::fresh(test, &["--read-only"]) else { return };
    let body = pattern(8 * MIB + 123, 1);
    block_on(c.m.place.put("f", body.clone())).unwrap();
    warm(&c.m, "f", &body);
    drop_pages(c.m.at("f"));
    if !has_passthrough(&c.m, test) {
        return;
    }
    let (gets, bytes) = (figure(&c.m, "GetObject"), figure(&c.m, "fs_read_bytes"));
    assert!(read(c.m.at("f")) == body);
    let file = File::open(c.m.at("f")).unwrap();
    let mut tail = vec![0; 500];
    assert_eq!(file.read_at(&mut tail, (8 * MIB) as u64).unwrap(), 123);
    assert!(tail[..123] == body[8 * MIB..]);
    assert_eq!(file.metadata().unwrap().len(), body.len() as u64);
    // cmp maps one file or reads it, python maps it.
    let sum = Command::new("python3")
        .args(["-c", "import mmap,sys,hashlib; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,access=mmap.ACCESS_READ); print(hashlib.md5(m).hexdigest())"])
        .arg(c.m.at("f"))
        .output();
    if let Ok(output) =
        sum.and_then(|o| if o.status.success() { Ok(o) } else { Err(std::io::Error::other("python")) })
    {
        use md5::{Digest, Md5};
        let expected = pailfs::base::hex(&Md5::digest(&body));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);
    }
    assert_eq!(figure(&c.m, "GetObject"), gets);
    assert_eq!(figure(&c.m, "fs_read_bytes"), bytes, "a read reached the daemon");

    // Direct reads beside it ask the daemon, and work whatever their alignment.
    let direct = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::RDONLY;
    let fd = rustix::fs::open(c.m.at("f"), direct, rustix::fs::Mode::empty()).unwrap();
    let mut some = vec![0; 100];
    assert_eq!(rustix::io::pread(&fd, &mut some, 777).unwrap(), 100);
    assert!(some == body[777..877]);
}

#[test]
fn a_new_version_is_seen_beside_a_handle_that_the_kernel_reads_by_itself() {
    let test = "a_new_version_is_seen_beside_a_backed_handle";
    let Some(c) = Cached::fresh(test, &["--read-only"]) else { return };
    let (old, new) = (pattern(4 * MIB, 1), pattern(4 * MIB, 2));
    block_on(c.m.place.put("f", old.clone())).unwrap();
    warm(&c.m, "f", &old);
    let mut held = opened(&c.m, "f");
    if !has_passthrough(&c.m, test) {
        return;
    }
    let again = File::open(c.m.at("f")).unwrap();
    assert_eq!(held.metadata().unwrap().ino(), again.metadata().unwrap().ino(), "readers share");
    block_on(c.m.place.put("f", new.clone())).unwrap();
    assert!(read(c.m.at("f")) == new);
    // C2: the handle reads its version to the end, which another client's change cannot take from it any more.
    let mut all = Vec::new();
    held.read_to_end(&mut all).unwrap();
    assert!(all == old);
    assert!(read(c.m.at("f")) == new);
    drop((held, again));
    let mut all = Vec::new();
    backed(&c.m, "f").read_to_end(&mut all).unwrap();
    assert!(all == new);
}

/// "who reads a file that is opened for writing later reads on in the version from before" (--passthrough on)
#[test]
fn a_writer_beside_backed_readers_works_and_leaves_them_their_version() {
    let test = "a_writer_beside_backed_readers";
    let Some(c) = Cached::fresh(test, &["--passthrough", "on"]) else { return };
    let body = pattern(2 * MIB, 1);
    block_on(c.m.place.put("f", body.clone())).unwrap();
    warm(&c.m, "f", &body);
    let held = opened(&c.m, "f");
    if !has_passthrough(&c.m, test) {
        return;
    }
    let writer = OpenOptions::new().read(true).write(true).open(c.m.at("f")).unwrap();
    writer.write_all_at(b"changed", 100).unwrap();
    let mut seen = [0; 7];
    writer.read_exact_at(&mut seen, 100).unwrap();
    assert_eq!(&seen, b"changed");
    // Who opens now reads what is written, before it is uploaded (C4).
    File::open(c.m.at("f")).unwrap().read_exact_at(&mut seen, 100).unwrap();
    assert_eq!(&seen, b"changed");
    held.read_exact_at(&mut seen, 100).unwrap();
    assert!(seen == body[100..107]);
    writer.sync_all().unwrap();
    drop(writer);
    let mut expected = body.clone();
    expected[100..107].copy_from_slice(b"changed");
    assert!(block_on(c.m.place.get("f")).unwrap() == expected);
    assert!(read(c.m.at("f")) == expected);
    held.read_exact_at(&mut seen, 100).unwrap();
    assert!(seen == body[100..107]);

    // Appending and truncating by path, with a reader of the new version held.
    let held_too = backed(&c.m, "f");
    let cut = OpenOptions::new().write(true).truncate(true).open(c.m.at("f")).unwrap();
    cut.write_all_at(b"short", 0).unwrap();
    drop(cut);
    assert_eq!(block_on(c.m.place.get("f")).unwrap(), "short");
    assert_eq!(read(c.m.at("f")), b"short");
    let mut all = vec![0; expected.len()];
    held_too.read_exact_at(&mut all, 0).unwrap();
    assert!(all == expected);

    let _held = backed(&c.m, "f");
    let cut = Command::new("truncate").args(["-s", "2"]).arg(c.m.at("f")).status().unwrap();
    assert!(cut.success());
    assert_eq!(block_on(c.m.place.get("f")).unwrap(), "sh");
    assert_eq!(read(c.m.at("f")), b"sh");
}

/// C4: "On one mount a reader sees what was written before its read, uploaded or not, through any handle."
#[test]
fn a_mount_that_can_be_written_has_no_passthrough_unless_asked() {
    let Some(c) = Cached::fresh("a_mount_that_can_be_written_has_no_passthrough", &[]) else { return };
    let body = pattern(MIB, 1);
    block_on(c.m.place.put("f", body.clone())).unwrap();
    warm(&c.m, "f", &body);
    let held = File::open(c.m.at("f")).unwrap();
    let writer = OpenOptions::new().write(true).open(c.m.at("f")).unwrap();
    writer.write_all_at(b"changed", 100).unwrap();
    let mut seen = [0; 7];
    held.read_exact_at(&mut seen, 100).unwrap();
    assert_eq!(&seen, b"changed");
    assert_eq!(figure(&c.m, "passthrough_opens"), 0);
}

#[test]
fn renaming_and_removing_what_the_kernel_reads_by_itself_works() {
    let test = "renaming_and_removing_what_the_kernel_reads_by_itself";
    let Some(c) = Cached::fresh(test, &["--passthrough", "on"]) else { return };
    let body = pattern(MIB, 1);
    block_on(c.m.place.put("f", body.clone())).unwrap();
    warm(&c.m, "f", &body);
    let held = opened(&c.m, "f");
    if !has_passthrough(&c.m, test) {
        return;
    }
    fs::rename(c.m.at("f"), c.m.at("g")).unwrap();
    assert!(read(c.m.at("g")) == body);
    let another = File::open(c.m.at("g")).unwrap();
    fs::remove_file(c.m.at("g")).unwrap();
    assert!(File::open(c.m.at("g")).is_err());
    fs::write(c.m.at("g"), b"another").unwrap();
    assert_eq!(read(c.m.at("g")), b"another");
    for file in [held, another] {
        let mut all = vec![0; MIB];
        file.read_exact_at(&mut all, 0).unwrap();
        assert!(all == body);
    }
}

#[test]
fn a_cache_that_is_evicted_and_spoiled_under_readers_harms_nobody() {
    let test = "a_cache_that_is_evicted_and_spoiled_under_readers";
    let Some(c) = Cached::fresh(test, &["--read-only", "--cache-size", "16M"]) else { return };
    let body = pattern(5 * MIB, 1);
    block_on(c.m.place.put("f", body.clone())).unwrap();
    warm(&c.m, "f", &body);
    let held = File::open(c.m.at("f")).unwrap();
    for n in 0..6 {
        let other = pattern(5 * MIB, 100 + n);
        block_on(c.m.place.put(&format!("g{n}"), other.clone())).unwrap();
        warm(&c.m, &format!("g{n}"), &other);
    }
    assert!(figure(&c.m, "disk_evictions") > 0);
    fs::remove_dir_all(c.dir.path().join("v1")).unwrap();
    fs::write(c.dir.path().join("v1"), "no directory").unwrap();
    let mut all = vec![0; body.len()];
    held.read_exact_at(&mut all, 0).unwrap();
    assert!(all == body);
    drop(held);
    for n in 0..6 {
        drop_pages(c.m.at(format!("g{n}")));
        assert!(read(c.m.at(format!("g{n}"))) == pattern(5 * MIB, 100 + n));
    }
    assert!(read(c.m.at("f")) == body);
}

#[test]
fn a_full_disk_fails_no_read() {
    let test = "a_full_disk_fails_no_read";
    let disk = tempfile::tempdir().unwrap();
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    if mount("tmpfs", disk.path(), "tmpfs", MountFlags::empty(), Some(c"size=4m,mode=0700")).is_err() {
        eprintln!("NOT RUN: {test}: no right to mount a small disk");
        return;
    }
    struct Gone<'a>(&'a Path);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            let _ = unmount(self.0, UnmountFlags::DETACH);
        }
    }
    let _gone = Gone(disk.path());
    let cache = disk.path().to_str().unwrap();
    let Some(m) = Mounted::with(Server::Demo, test, &["--cache-dir", cache, "--cache-size", "1G"]) else {
        return;
    };
    for n in 0..4 {
        let body = pattern(6 * MIB, n);
        block_on(m.place.put(&format!("f{n}"), body.clone())).unwrap();
        for _ in 0..2 {
            assert!(read(m.at(format!("f{n}"))) == body);
            drop_pages(m.at(format!("f{n}")));
        }
    }
    assert!(wait_for(SOON, || figure(&m, "disk_errors") > 0), "the disk was large enough");
    let told = m.log_text().matches("the cache directory fails; going on without it").count();
    assert!(told <= 1, "{}", m.log_text());
}

#[test]
fn a_cache_directory_that_others_can_write_is_refused_with_the_reason() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let Some(place) = crate::harness::mount::fresh_place(Server::Demo, "a_cache_directory_is_refused") else {
        return;
    };
    let target = tempfile::tempdir().unwrap();
    let endpoint = crate::harness::mount::endpoint(Server::Demo);
    let output = pailfs(&endpoint)
        .args(["mount", &format!("s3://{}", place.bucket)])
        .arg(target.path())
        .args(["--foreground", "--endpoint-url", &endpoint.url, "--region", &endpoint.region, "--cache-dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("can be written by others (mode 777): chmod go-w"), "{told}");
}
