//! Ways of reading, and what they cost: requests and bytes are counted, nothing is timed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::Duration;

use crate::cache::{drop_pages, figure, stamped};
use crate::harness::mount::{Mounted, wait_for};
use crate::harness::{Server, block_on};

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(20);

/// What a mount has asked S3 for since this was made.
struct Cost<'a> {
    m: &'a Mounted,
    gets: u64,
    bytes: u64,
}

impl<'a> Cost<'a> {
    fn from_now(m: &'a Mounted) -> Self {
        Self { m, gets: figure(m, "GetObject"), bytes: figure(m, "s3_received_bytes") }
    }

    fn gets(&self) -> u64 {
        figure(self.m, "GetObject") - self.gets
    }

    fn bytes(&self) -> u64 {
        figure(self.m, "s3_received_bytes") - self.bytes
    }
}

/// A fresh mount of a bucket with the object `f`.
fn mount_of(test: &str, body: &[u8]) -> Option<Mounted> {
    let m = Mounted::fresh(Server::Demo, test)?;
    block_on(m.place.put("f", body.to_vec())).unwrap();
    Some(m)
}

/// Reads a file from its begin to its end as `dd bs=1M` does, comparing as it goes.
fn read_in_order(path: &Path, body: &[u8]) {
    let file = File::open(path).unwrap();
    let mut buffer = vec![0; MIB];
    for (number, expected) in body.chunks(MIB).enumerate() {
        file.read_exact_at(&mut buffer[..expected.len()], (number * MIB) as u64).unwrap();
        assert!(buffer[..expected.len()] == *expected, "MiB {number}");
    }
    assert_eq!(file.read_at(&mut buffer, body.len() as u64).unwrap(), 0);
}

#[test]
fn a_cold_read_in_order_moves_each_byte_once_in_few_requests() {
    let body = stamped(64 * MIB + 5);
    let Some(m) = mount_of("a_cold_read_in_order", &body) else { return };
    let cost = Cost::from_now(&m);
    read_in_order(&m.at("f"), &body);
    let (gets, bytes) = (cost.gets(), cost.bytes());
    assert!(bytes as f64 <= 1.02 * body.len() as f64, "{bytes} bytes for {}", body.len());
    // The smallest request of a reader in order is a MiB.
    assert!(gets <= 66, "{gets} GETs for 64 MiB");
}

#[test]
fn reads_at_random_move_what_is_asked_for() {
    const READS: u64 = 200;
    let body = stamped(256 * MIB);
    let Some(m) = mount_of("reads_at_random", &body) else { return };
    let file = File::open(m.at("f")).unwrap();
    let cost = Cost::from_now(&m);
    let mut at = 12_345u64;
    for _ in 0..READS {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (at >> 33) % (body.len() as u64 / 4096) * 4096;
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, offset).unwrap();
        assert!(page[..] == body[offset as usize..][..4096]);
    }
    let (gets, bytes) = (cost.gets(), cost.bytes());
    assert!(bytes <= 2 * READS * 4096, "{bytes} bytes for {}", READS * 4096);
    assert!(gets <= READS, "{gets} GETs for {READS} reads");
}

#[test]
fn what_the_kernel_has_is_read_again_without_asking_anybody() {
    let body = stamped(8 * MIB + 77);
    let Some(m) = mount_of("what_the_kernel_has", &body) else { return };
    read_in_order(&m.at("f"), &body);
    let (cost, asked) = (Cost::from_now(&m), figure(&m, "fs_read_bytes"));
    for _ in 0..2 {
        read_in_order(&m.at("f"), &body);
    }
    assert_eq!(cost.gets(), 0);
    assert_eq!(figure(&m, "fs_read_bytes"), asked, "the kernel dropped its pages at an open");
}

/// C1: "open() sees the newest object", whatever the kernel has of the one before.
#[test]
fn what_another_client_put_in_its_place_is_read_though_it_is_as_large() {
    let body = stamped(3 * MIB + 9);
    let Some(m) = mount_of("what_another_client_put", &body) else { return };
    read_in_order(&m.at("f"), &body);
    for round in 1..4u8 {
        let new: Vec<u8> = body.iter().map(|byte| byte ^ round).collect();
        block_on(m.place.put("f", new.clone())).unwrap();
        let cost = Cost::from_now(&m);
        read_in_order(&m.at("f"), &new);
        assert!(cost.bytes() as f64 <= 1.02 * new.len() as f64);
        read_in_order(&m.at("f"), &new);
    }
}

#[test]
fn two_readers_of_one_file_at_once_cost_what_one_costs() {
    let body = stamped(32 * MIB);
    let Some(m) = mount_of("two_readers_of_one_file", &body) else { return };
    let (cost, begin) = (Cost::from_now(&m), Barrier::new(2));
    // Past the kernel's cache, so that both ask.
    let read = || {
        let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::RDONLY;
        let file = File::from(rustix::fs::open(m.at("f"), flags, rustix::fs::Mode::empty()).unwrap());
        begin.wait();
        let mut buffer = vec![0; MIB];
        for (number, expected) in body.chunks(MIB).enumerate() {
            file.read_exact_at(&mut buffer, (number * MIB) as u64).unwrap();
            assert!(buffer == *expected, "MiB {number}");
        }
    };
    std::thread::scope(|scope| [scope.spawn(read), scope.spawn(read)].map(|reader| reader.join().unwrap()));
    let (gets, bytes) = (cost.gets(), cost.bytes());
    assert!(bytes as f64 <= 1.02 * body.len() as f64, "{bytes} bytes for {}", body.len());
    assert!(gets <= 34, "{gets} GETs for 32 MiB");
}

#[test]
fn direct_reads_are_exact_and_ask_the_mount_every_time() {
    let body = stamped(2 * MIB + 123);
    let Some(m) = mount_of("direct_reads_are_exact", &body) else { return };
    // The kernel has all of it.
    read_in_order(&m.at("f"), &body);
    let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::RDONLY;
    let fd = rustix::fs::open(m.at("f"), flags, rustix::fs::Mode::empty()).unwrap();
    let file = File::from(fd);
    let end = body.len();
    let ranges =
        [(0, 4096, 4096), (777, 100, 100), (end - 123, 4096, 123), (end - 5000, 8192, 5000), (end, 4096, 0)];
    for (at, asked, there) in ranges {
        for _ in 0..2 {
            let before = figure(&m, "fs_read_bytes");
            let mut buffer = vec![0; asked];
            assert_eq!(file.read_at(&mut buffer, at as u64).unwrap(), there, "at {at}");
            assert!(buffer[..there] == body[at..at + there], "at {at}");
            assert_eq!(figure(&m, "fs_read_bytes") - before, there as u64, "the kernel answered by itself");
        }
    }
    let (mut all, cost) = (Vec::new(), Cost::from_now(&m));
    (&file).read_to_end(&mut all).unwrap();
    assert!(all == body);
    assert_eq!(cost.gets(), 0, "it still is in memory");
}

/// A Python program with a mapping of the file, because Rust has no safe call for that. It says a line when it is
/// ready, and goes on when it is told to.
fn python(lines: &str, arguments: &[&Path]) -> std::process::Child {
    let lines = format!("import mmap, os, sys\n{lines}");
    let mut python = Command::new("python3");
    python.arg("-c").arg(lines).args(arguments);
    python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 starts")
}

#[test]
fn mappings_shared_and_private_are_the_object() {
    let body = stamped(5 * MIB + 123);
    let Some(m) = mount_of("mappings_are_the_object", &body) else { return };
    let local = tempfile::NamedTempFile::new().unwrap();
    fs::write(local.path(), &body).unwrap();
    let program = "
body = open(sys.argv[2], 'rb').read()
f = os.open(sys.argv[1], os.O_RDONLY)
shared = mmap.mmap(f, 0, mmap.MAP_SHARED, mmap.PROT_READ)
private = mmap.mmap(f, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
os.close(f)
# The end first, then backwards, then all.
assert shared[len(body) - 100:] == body[-100:]
for at in range(len(body) - 4096, 0, -65536):
    assert shared[at:at + 4096] == body[at:at + 4096], at
assert shared[:] == body
assert private[:] == body
private[1000:1004] = b'mine'
assert private[:1008] == body[:1000] + b'mine' + body[1004:1008]
assert shared[:] == body
assert open(sys.argv[1], 'rb').read() == body
";
    let mut cold = python(program, &[&m.at("f"), local.path()]);
    assert!(cold.wait().unwrap().success());
    drop_pages(m.at("f"));
    assert!(python(program, &[&m.at("f"), local.path()]).wait().unwrap().success());
    assert!(block_on(m.place.get("f")).unwrap() == body);
}

/// C2 for mappings: a page is of one version, and those that were read can be read again or fail as a whole.
#[test]
fn a_page_of_a_mapping_is_of_one_version_when_the_file_is_replaced() {
    const PAGES: usize = 64;
    let Some(m) = mount_of("a_page_of_a_mapping", &[b'a'; PAGES * 4096]) else { return };
    // Each page is read by a child of its own, which a page that is gone may end (SIGBUS).
    let program = "
f = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(f, 0, mmap.MAP_SHARED, mmap.PROT_READ)
def page(n):
    child = os.fork()
    if child == 0:
        seen = set(m[n * 4096:(n + 1) * 4096])
        os._exit(seen.pop() if len(seen) == 1 else 1)
    status = os.waitpid(child, 0)[1]
    return chr(os.WEXITSTATUS(status)) if os.WIFEXITED(status) else '!' if os.WTERMSIG(status) == 7 else '?'
print(''.join(page(n) for n in range(int(sys.argv[2]))), flush=True)
sys.stdin.readline()
print(''.join(page(n) for n in range(int(sys.argv[2]))), flush=True)
";
    let mut reader = python(program, &[&m.at("f"), Path::new("64")]);
    let mut said = BufReader::new(reader.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "a".repeat(PAGES));
    block_on(m.place.put("f", vec![b'b'; PAGES * 4096])).unwrap();
    // The mount has seen the new one, by name and by its bytes.
    assert!(wait_for(SOON, || fs::read(m.at("f")).unwrap() == [b'b'; PAGES * 4096]));
    reader.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let after = said.next().unwrap().unwrap();
    assert!(after.len() == PAGES && after.chars().all(|page| "ab!".contains(page)), "{after}");
    assert!(reader.wait().unwrap().success());
    assert!(fs::read(m.at("f")).unwrap() == [b'b'; PAGES * 4096], "the mapping spoiled nothing for others");
}
