//! A program that asks for what no file can be: the kernel passes some of it on, and whatever it is answered, the mount goes on.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    FallocateFlags, SeekFrom, Timespec, Timestamps, XattrFlags, copy_file_range, fallocate, ftruncate,
    futimens, getxattr, listxattr, seek, setxattr,
};
use serde_json::Value;

use crate::harness::Server;
use crate::harness::mount::{Mounted, endpoint, pailfs};

const END: u64 = i64::MAX as u64;

/// How often the mount's process has caught a defect.
fn panics(m: &Mounted) -> u64 {
    let output = pailfs(&endpoint(Server::Demo)).args(["status", "--json"]).arg(m.path()).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let counters = status["counters"].as_array().unwrap();
    counters.iter().find(|counter| counter["name"] == "panics").unwrap()["value"].as_u64().unwrap()
}

#[test]
fn whatever_a_program_asks_for_is_answered_and_the_mount_goes_on() {
    let Some(mut m) = Mounted::with(Server::Demo, "whatever_a_program_asks_for", &["--posix", "full"]) else {
        return;
    };
    fs::write(m.at("good"), b"fine").unwrap();
    let file = File::options().read(true).write(true).create(true).truncate(true).open(m.at("f")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    let offsets = [0, 4095, 1 << 40, END / 2, END - 4096, END - 1, END, END + 1, u64::MAX];
    for offset in offsets {
        let _ = file.read_at(&mut [0; 8192], offset);
        for whence in [SeekFrom::Data(offset), SeekFrom::Hole(offset), SeekFrom::Start(offset)] {
            let _ = seek(&file, whence);
        }
        for length in offsets {
            for flags in 0..0x80 {
                let _ = fallocate(
                    &file,
                    FallocateFlags::from_bits_retain(flags) | FallocateFlags::KEEP_SIZE,
                    offset,
                    length,
                );
            }
            // Nothing is there to copy from any of these but the first.
            let (mut from, mut to) = (offset, length);
            if offset > 5 || length > END / 2 {
                let _ = copy_file_range(&file, Some(&mut from), &file, Some(&mut to), usize::MAX >> 1);
            }
        }
    }
    assert_eq!(fs::metadata(m.at("f")).unwrap().len(), 5, "everything kept the size, or was refused");
    // Zeros were among what was asked for.
    file.write_all_at(b"begin", 0).unwrap();
    for length in offsets {
        let other = File::create(m.at("long")).unwrap();
        let _ = ftruncate(&other, length);
        let _ = other.write_at(b"end", length);
        let _ = fallocate(&other, FallocateFlags::empty(), length, END);
        let _ = fallocate(&other, FallocateFlags::ZERO_RANGE, length, length);
        ftruncate(&other, 0).unwrap();
    }
    // The first second there is would be told to a debug build's fuser as its negative, which there is not.
    for seconds in [i64::MIN + 1, -1, 0, i64::MAX] {
        for nanoseconds in [0, 1, 999_999_999] {
            let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            let _ = futimens(&file, &Timestamps { last_access: time, last_modification: time });
            let _ = fs::metadata(m.at("f")).unwrap();
        }
    }
    for (name, len) in [
        ("user.a", 1 << 16),
        ("user.", 1),
        ("user.s3.etag", 1),
        ("security.capability", 20),
        ("system.posix_acl_access", 4),
    ] {
        let _ = setxattr(m.at("f"), name, &vec![0xff; len], XattrFlags::empty());
        let _ = getxattr(m.at("f"), name, &mut [0u8; 1 << 16][..]);
        let _ = getxattr(m.at("f"), name, &mut [0u8; 0][..]);
    }
    let long = format!("user.{}", "n".repeat(250));
    let _ = setxattr(m.at("f"), long.as_str(), b"", XattrFlags::empty());
    let _ = listxattr(m.at("f"), &mut [0u8; 1 << 16][..]);
    for name in [&b"\xff\xfe"[..], &[b'n'; 255], &[b'n'; 256], b"%", b"%~f", b"a%2", b"\xc2\x9b", b"..%00"] {
        use std::os::unix::ffi::OsStrExt;
        assert!(CString::new(name).is_ok());
        let path = m.at(std::ffi::OsStr::from_bytes(name));
        let _ = fs::write(&path, b"x");
        let _ = fs::create_dir(&path);
        let _ = std::os::unix::fs::symlink(&path, &path);
        let _ = fs::rename(&path, m.at("renamed"));
    }
    let _ = std::os::unix::fs::symlink("t".repeat(4095), m.at("link"));
    let _ = fs::read_link(m.at("link"));
    drop(file);
    assert_eq!(panics(&m), 0);
    assert_eq!(fs::read(m.at("good")).unwrap(), b"fine");
    assert_eq!(fs::read(m.at("f")).unwrap(), b"begin");
    fs::write(m.at("after"), b"it goes on").unwrap();
    assert!(m.umount().success());
}
