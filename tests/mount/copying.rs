//! Copies made by the server, holes and space, as the usual tools ask for them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::harness::mount::Mounted;
use crate::harness::{Server, block_on};
use crate::semantics::{pattern, python, status};

fn tool(m: &Mounted, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(m.path()).output().expect("the tool is there");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn counter(m: &Mounted, name: &str) -> u64 {
    let counters = status(m)["counters"].clone();
    let found = counters.as_array().unwrap().iter().find(|counter| counter["name"] == name).cloned();
    found.unwrap_or_else(|| panic!("no counter {name}"))["value"].as_u64().unwrap()
}

/// Bytes of objects to and from S3 so far.
fn moved(m: &Mounted) -> u64 {
    counter(m, "s3_sent_bytes") + counter(m, "s3_received_bytes")
}

/// "copy_file_range | on the server"
fn cp_moves_no_bytes(server: Server) {
    let Some(m) = Mounted::fresh(server, "cp_moves_no_bytes") else { return };
    // By us in parts, and by another client in one piece.
    let bytes = pattern(64 << 20, 1);
    fs::write(m.at("parts"), &bytes).unwrap();
    block_on(m.place.put("one", bytes.clone())).unwrap();
    let before = moved(&m);
    for (from, to) in [("parts", "copy of parts"), ("one", "copy of one")] {
        tool(&m, "cp", &["--reflink=auto", from, to]);
        assert_eq!(fs::metadata(m.at(to)).unwrap().len(), 64 << 20);
    }
    let moved_by_cp = moved(&m) - before;
    assert!(moved_by_cp < 1 << 20, "{moved_by_cp} bytes moved");
    for copy in ["copy of parts", "copy of one"] {
        assert!(block_on(m.place.get(copy)).unwrap() == bytes);
        tool(&m, "cmp", &["parts", copy]);
    }
    // Over a file that is there, of files in a tree, and of what only this mount has.
    fs::create_dir(m.at("dir")).unwrap();
    for i in 0..10 {
        fs::write(m.at(format!("dir/{i}")), format!("{i}").repeat(i * 100)).unwrap();
    }
    tool(&m, "cp", &["-r", "dir", "dir2"]);
    tool(&m, "diff", &["-r", "dir", "dir2"]);
    tool(&m, "cp", &["dir/7", "copy of one"]);
    assert_eq!(block_on(m.place.get("copy of one")).unwrap(), "7".repeat(700));
    ranges_are_copied(&m, &bytes);
}

/// By a program of its own: ranges between two files and within one, before anything is saved and after.
fn ranges_are_copied(m: &Mounted, bytes: &[u8]) {
    let said = python(
        &[
            "import errno, os, sys",
            "source = os.open(sys.argv[1], os.O_RDONLY)",
            "target = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)",
            "def copy(fro, at, to, place, count):",
            "    while count:",
            "        n = os.copy_file_range(fro, to, count, at, place)",
            "        assert n > 0",
            "        at, place, count = at + n, place + n, count - n",
            "copy(source, 1000, target, 10, 30 << 20)",
            "os.pwrite(target, b'written', 20 << 20)",
            // What was written and what was copied, neither of them saved.
            "copy(target, (20 << 20) - 100, target, 40 << 20, 1000)",
            "try:",
            "    os.copy_file_range(target, target, 1000, 0, 500)",
            "except OSError as error:",
            "    print(errno.errorcode[error.errno])",
            "print(os.pread(target, 7, (40 << 20) + 100).decode())",
            "print(os.copy_file_range(source, target, 10, 64 << 20, 0))",
            "os.close(target)",
        ],
        &[&m.at("parts"), &m.at("ranges")],
    );
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["EINVAL", "written", "0"]);
    let mut expected = vec![0; (40 << 20) + 1000];
    expected[10..10 + (30 << 20)].copy_from_slice(&bytes[1000..1000 + (30 << 20)]);
    expected[20 << 20..(20 << 20) + 7].copy_from_slice(b"written");
    expected.copy_within((20 << 20) - 100..(20 << 20) + 900, 40 << 20);
    assert!(fs::read(m.at("ranges")).unwrap() == expected);
    assert!(block_on(m.place.get("ranges")).unwrap() == expected);
}

#[test]
fn cp_moves_no_bytes_on_the_demo_server() {
    cp_moves_no_bytes(Server::Demo);
}

#[test]
fn cp_moves_no_bytes_on_garage() {
    cp_moves_no_bytes(Server::Garage);
}

#[test]
fn cp_moves_no_bytes_on_seaweedfs() {
    cp_moves_no_bytes(Server::SeaweedFs);
}

#[test]
fn cp_moves_no_bytes_on_moto() {
    cp_moves_no_bytes(Server::Moto);
}

/// "copy_file_range | ...; what this mount replaces, moves or removes before the save is fetched first"
#[test]
fn a_copy_outlives_what_becomes_of_its_source_on_the_mount() {
    let Some(m) = Mounted::fresh(Server::Demo, "a_copy_outlives_what_becomes_of_its_source") else { return };
    let bytes = pattern(20 << 20, 2);
    for act in ["os.unlink(path)", "os.rename(path, path + '.moved')", "open(path, 'w').write('other')"] {
        fs::write(m.at("f"), &bytes).unwrap();
        let script = [
            "import os, sys",
            "path = sys.argv[1]",
            "source, target = os.open(path, os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)",
            "assert os.copy_file_range(source, target, 20 << 20) == 20 << 20",
            act,
            "os.close(target)",
        ];
        python(&script, &[&m.at("f"), &m.at("g")]);
        assert!(block_on(m.place.get("g")).unwrap() == bytes, "{act}");
        fs::remove_file(m.at("g")).unwrap();
    }
}

/// "fallocate | ..." by fallocate(1), and what is not offered.
#[test]
fn space_is_grown_and_holes_are_punched() {
    let Some(m) = Mounted::fresh(Server::Demo, "space_is_grown_and_holes_are_punched") else { return };
    let mut model = pattern(3 << 20, 3);
    block_on(m.place.put("f", model.clone())).unwrap();
    let shows = |model: &[u8]| {
        assert!(fs::read(m.at("f")).unwrap() == model);
        assert!(block_on(m.place.get("f")).unwrap() == model);
    };
    tool(&m, "fallocate", &["-l", "4MiB", "f"]);
    model.resize(4 << 20, 0);
    shows(&model);
    tool(&m, "fallocate", &["-n", "-o", "3MiB", "-l", "9MiB", "f"]);
    shows(&model);
    // Past the end too, where it changes nothing.
    tool(&m, "fallocate", &["-p", "-o", "1000", "-l", "5000", "f"]);
    model[1000..6000].fill(0);
    shows(&model);
    tool(&m, "fallocate", &["-p", "-o", "3500KiB", "-l", "9MiB", "f"]);
    model[3500 << 10..].fill(0);
    shows(&model);
    tool(&m, "fallocate", &["-z", "-o", "2MiB", "-l", "3MiB", "f"]);
    model.resize(5 << 20, 0);
    model[2 << 20..].fill(0);
    shows(&model);
    tool(&m, "fallocate", &["-z", "-n", "-o", "1MiB", "-l", "9MiB", "f"]);
    model[1 << 20..].fill(0);
    shows(&model);
    for refused in ["-c", "-i"] {
        let args = [refused, "-o", "0", "-l", "4096", "f"];
        let output = Command::new("fallocate").args(args).current_dir(m.path()).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("not supported"), "{output:?}");
    }
    shows(&model);
    // Pages that a program has mapped go with the hole.
    let said = python(
        &[
            "import ctypes, mmap, os, sys",
            "fd = os.open(sys.argv[1], os.O_RDWR)",
            "os.pwrite(fd, b'x' * 8192, 0)",
            "mapped = mmap.mmap(fd, 0)",
            "assert mapped[5000] == ord('x')",
            "libc = ctypes.CDLL(None, use_errno=True)",
            "assert libc.fallocate(fd, 3, ctypes.c_long(4096), ctypes.c_long(4096)) == 0",
            "print(mapped[4095], mapped[5000], os.pread(fd, 1, 5000)[0])",
        ],
        &[&m.at("f")],
    );
    assert_eq!(said.trim(), "120 0 0");
}

/// "lseek SEEK_HOLE, SEEK_DATA | ..."
#[test]
fn holes_are_found_until_the_file_is_saved() {
    let Some(m) = Mounted::fresh(Server::Demo, "holes_are_found_until_the_file_is_saved") else { return };
    block_on(m.place.put("f", pattern(100_000, 4))).unwrap();
    let said = python(
        &[
            "import ctypes, errno, os, sys",
            "fd = os.open(sys.argv[1], os.O_RDWR)",
            "def seek(at):",
            "    for whence in (os.SEEK_DATA, os.SEEK_HOLE):",
            "        try:",
            "            print(os.lseek(fd, at, whence))",
            "        except OSError as error:",
            "            print(errno.errorcode[error.errno])",
            "seek(5)",
            "seek(100000)",
            "os.ftruncate(fd, 200000)",
            "os.pwrite(fd, b'data', 150000)",
            "libc = ctypes.CDLL(None, use_errno=True)",
            "assert libc.fallocate(fd, 3, ctypes.c_long(1000), ctypes.c_long(500)) == 0",
            "seek(0)",
            "seek(1200)",
            "seek(100000)",
            "seek(150001)",
            "seek(180000)",
            "os.fsync(fd)",
            "seek(0)",
        ],
        &[&m.at("f")],
    );
    let expected = [
        ["5", "100000"],
        ["ENXIO", "ENXIO"],
        ["0", "1000"],
        ["1500", "1200"],
        ["150000", "100000"],
        ["150001", "150004"],
        ["ENXIO", "180000"],
        // An object has no holes.
        ["0", "200000"],
    ];
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), expected.concat());
}

/// Tools that look for holes and leave them out: the bytes are the same.
#[test]
fn sparse_copies_are_whole() {
    let Some(m) = Mounted::fresh(Server::Demo, "sparse_copies_are_whole") else { return };
    let mut model = vec![0; 6 << 20];
    model[1 << 20..2 << 20].copy_from_slice(&pattern(1 << 20, 5));
    model[5 << 20] = 1;
    let local = tempfile::tempdir().unwrap();
    let sparse = local.path().join("sparse");
    let file = fs::File::create(&sparse).unwrap();
    file.set_len(6 << 20).unwrap();
    file.write_all_at(&model[1 << 20..2 << 20], 1 << 20).unwrap();
    file.write_all_at(&[1], 5 << 20).unwrap();
    let from = sparse.to_str().unwrap();
    tool(&m, "cp", &["--sparse=auto", from, "auto"]);
    tool(&m, "cp", &["--sparse=always", "auto", "always"]);
    tool(&m, "dd", &[&format!("if={from}"), "of=dd", "bs=64K", "conv=sparse"]);
    tool(&m, "cp", &["--sparse=always", "dd", local.path().join("back").to_str().unwrap()]);
    for name in ["auto", "always", "dd"] {
        assert!(block_on(m.place.get(name)).unwrap() == model, "{name}");
        assert!(fs::read(m.at(name)).unwrap() == model, "{name}");
    }
    assert!(fs::read(local.path().join("back")).unwrap() == model);
    is_a_copy(&m.at("always"), &sparse);
}

fn is_a_copy(one: &Path, two: &Path) {
    let status = Command::new("cmp").args([one, two]).status().expect("cmp is there");
    assert!(status.success());
}
