//! What the process of a mount takes of memory, against its limit: a cut of scripts/memory.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::mount::{Mounted, fresh_place, wait_for};
use crate::harness::server::faults;
use crate::harness::{Server, block_on};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 256 * MIB;
/// When it has come down again, as docs/TUNING.md says, and time for a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A size in /proc/PID/status, in bytes.
fn size(m: &Mounted, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", m.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Nothing went over the limit, and soon little is left.
fn stayed_within(m: &Mounted, before: u64) {
    let peak = size(m, "VmHWM");
    assert!(peak <= LIMIT / 10 * 11, "it took {} MiB", peak / MIB);
    let rest = before + LIMIT / 8 + 24 * MIB;
    assert!(wait_for(SOON, || size(m, "VmRSS") <= rest), "{} MiB are left", size(m, "VmRSS") / MIB);
}

/// "RSS stays under the limit, and a tenth of it, with 64 writers at once"
#[test]
fn many_writers_stay_within_the_memory_limit() {
    let flags = ["--memory-limit", "256MiB", "--log-level", "info"];
    let Some(m) = Mounted::with(Server::Demo, "many-writers", &flags) else { return };
    let before = size(&m, "VmRSS");
    let body: Arc<Vec<u8>> = Arc::new((0..14 * MIB).map(|at| (at / 4096 * 7 + at) as u8).collect());
    let part = |n: usize| (n * 1001, (9 << 20) + n * 65_536);
    std::thread::scope(|scope| {
        for n in 0..64 {
            let (body, m) = (Arc::clone(&body), &m);
            scope.spawn(move || {
                let (from, len) = part(n);
                let bytes = &body[from..from + len];
                let mut file = File::create(m.at(format!("f{n}"))).unwrap();
                if n % 4 == 3 {
                    // Out of order: none of it leaves before it is closed.
                    for at in (0..len).step_by(1 << 20).collect::<Vec<_>>().into_iter().rev() {
                        file.write_all_at(&bytes[at..len.min(at + (1 << 20))], at as u64).unwrap();
                    }
                } else {
                    bytes.chunks(1 << 20).for_each(|chunk| file.write_all(chunk).unwrap());
                }
            });
        }
    });
    for n in [0, 3, 63] {
        let (from, len) = part(n);
        assert!(fs::read(m.at(format!("f{n}"))).unwrap() == body[from..from + len]);
    }
    stayed_within(&m, before);
}

/// "with 1,000 open files", and `find` beside them
#[test]
fn many_open_files_and_names_stay_within_the_memory_limit() {
    let Some(place) = fresh_place(Server::Synthetic, "many-open") else { return };
    let flags = ["--memory-limit", "256MiB", "--log-level", "info", "--read-only", "--metadata-ttl", "60s"];
    let m = Mounted::mount(place, &format!("s3://{}", pailfs::demo::SYNTHETIC), &flags);
    let before = size(&m, "VmRSS");
    let name = |object: u64| m.at(format!("d{}/f{:04}", object / 10_000, object % 10_000));
    let objects: Vec<u64> = (0..1000).map(|n| n * 47).collect();
    let files: Vec<File> = objects.iter().map(|object| File::open(name(*object)).unwrap()).collect();
    let is_right = |file: usize, at: u64, len: usize| {
        let mut bytes = vec![0; len];
        files[file].read_exact_at(&mut bytes, at).unwrap();
        for (page, found) in (at / 4096..).zip(bytes.chunks(4096)) {
            let word = pailfs::demo::word(objects[file], page).to_le_bytes();
            assert!(found.chunks(8).all(|found| *found == word), "file {file}, page {page}");
        }
    };
    std::thread::scope(|scope| {
        for n in 0..8u64 {
            let is_right = &is_right;
            scope.spawn(move || {
                // Some places at random, and then on from there, so that all of them are read ahead of.
                for step in 0..150 {
                    let (file, at) = ((n * 125 + step / 2) % 1000, (n * 31 + step * 77) % 1000 * 4096);
                    is_right(file as usize, at, 4096);
                    is_right(file as usize, at + 4096, 65_536 - 4096 * (n as usize % 2));
                }
            });
        }
        scope.spawn(|| {
            let found = Command::new("find").arg(m.at("d3")).args(["-type", "f"]).output().unwrap();
            assert_eq!(found.stdout.iter().filter(|byte| **byte == b'\n').count(), 10_000);
        });
    });
    stayed_within(&m, before);
}

/// "`find` over more keys than fit": the kernel is told to forget names, and whoever asks again finds them.
#[test]
fn names_stay_within_the_memory_limit() {
    let Some(place) = fresh_place(Server::Synthetic, "many-names") else { return };
    // What the kernel was told is to last until `find` comes to it, however slow the machine is.
    let flags = ["--memory-limit", "64MiB", "--log-level", "info", "--read-only", "--metadata-ttl", "60s"];
    let m = Mounted::mount(place, &format!("s3://{}", pailfs::demo::SYNTHETIC), &flags);
    let before = size(&m, "VmRSS");
    // Each name is asked for, not only listed.
    let found = Command::new("find").arg(m.path()).args(["-type", "f", "-size", "+1k"]).output().unwrap();
    assert_eq!(found.stdout.iter().filter(|byte| **byte == b'\n').count(), 100_000);
    let peak = size(&m, "VmHWM");
    // 24 MiB of it are for the program itself, and this one, which is not optimised, takes more.
    let names = peak - before;
    assert!(names <= 64 * MIB / 10 * 11 - 24 * MIB, "they took {} MiB", names / MIB);
    for name in ["d0/f0000", "d9/f9999"] {
        assert_eq!(fs::metadata(m.at(name)).unwrap().len(), 4 * MIB);
    }
}

/// Bytes that a save needs of the object that it changes break off on their way: they are asked for again.
#[test]
fn a_body_that_breaks_off_under_a_save_is_asked_for_again() {
    let Some(m) = Mounted::fresh(Server::Demo, "breaks-off") else { return };
    let body: Vec<u8> = (0..100_000u32).map(|at| (at / 7) as u8).collect();
    block_on(m.place.put("f", body.clone())).unwrap();
    let file = fs::OpenOptions::new().write(true).open(m.at("f")).unwrap();
    file.write_all_at(b"changed", 50_000).unwrap();
    let rule = format!("op=GetObject,bucket={},times=2,fault=truncate:1000", m.place.bucket);
    let _faults = faults(Server::Demo, &rule);
    file.sync_all().unwrap();
    let mut expected = body;
    expected[50_000..50_007].copy_from_slice(b"changed");
    assert!(block_on(m.place.get("f")).unwrap() == expected);
}
