//! A day's work on servers that we did not write.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::harness::mount::{Mounted, fresh_place};
use crate::harness::{Server, block_on};

fn tool(program: &str, args: &[&str], dir: &Path) -> String {
    let output = Command::new(program).args(args).current_dir(dir).output().expect("the tool is there");
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// cp -r of a tree in, diff -r back after a remount, mv of the directory, grep -r, dd in the middle, rm -rf.
pub(crate) fn a_days_work(server: Server, flags: &[&str]) {
    let Some(place) = fresh_place(server, "a_days_work") else { return };
    let local = tempfile::tempdir().unwrap();
    for i in 0..60 {
        let dir = local.path().join(format!("tree/d{}", i % 6));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file {i}.txt")), format!("line of {i}\n").repeat(i * 7)).unwrap();
    }
    let large: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(local.path().join("tree/large"), &large).unwrap();
    let source = format!("s3://{}", place.bucket);
    {
        let mut m = Mounted::mount(place.clone(), &source, flags);
        tool("cp", &["-r", local.path().join("tree").to_str().unwrap(), "."], &m.path());
        assert!(m.umount().success());
    }
    let mut m = Mounted::mount(place.clone(), &source, flags);
    tool("diff", &["-r", local.path().join("tree").to_str().unwrap(), "tree"], &m.path());
    tool("mv", &["tree", "moved"], &m.path());
    tool("diff", &["-r", local.path().join("tree").to_str().unwrap(), "moved"], &m.path());
    assert!(fs::metadata(m.at("tree")).is_err(), "the old directory is gone");
    assert_eq!(tool("grep", &["-rl", "line of 17", "moved"], &m.path()).trim(), "moved/d5/file 17.txt");
    let at = m.at("moved/large");
    fs::OpenOptions::new().write(true).open(&at).unwrap().write_all_at(b"in the middle", 9_000_000).unwrap();
    let mut expected = large;
    expected[9_000_000..9_000_013].copy_from_slice(b"in the middle");
    assert!(fs::read(&at).unwrap() == expected);
    // With a key of its own nobody else reads it.
    assert!(!flags.is_empty() || block_on(place.get("moved/large")).unwrap() == expected);
    fs::OpenOptions::new()
        .append(true)
        .open(m.at("moved/d0/file 6.txt"))
        .unwrap()
        .write_all(b"end\n")
        .unwrap();
    assert!(fs::read_to_string(m.at("moved/d0/file 6.txt")).unwrap().ends_with("end\n"));
    tool("sed", &["-i", "s/line/LINE/", "moved/d0/file 6.txt"], &m.path());
    assert!(fs::read_to_string(m.at("moved/d0/file 6.txt")).unwrap().starts_with("LINE of 6\n"));
    tool("rm", &["-rf", "moved"], &m.path());
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
    assert!(m.umount().success());
    assert!(block_on(place.keys()).unwrap().is_empty());
}

#[test]
fn a_days_work_on_the_demo_server() {
    a_days_work(Server::Demo, &[]);
}

#[test]
fn a_days_work_on_garage() {
    a_days_work(Server::Garage, &[]);
}

#[test]
fn a_days_work_on_seaweedfs() {
    a_days_work(Server::SeaweedFs, &[]);
}

#[test]
fn a_days_work_on_moto() {
    a_days_work(Server::Moto, &[]);
}

/// Whether the log says that markers keep nothing, after the first chmod in a directory.
fn says_that_markers_forget(server: Server) -> Option<bool> {
    let mut m = Mounted::with(server, "markers", &[])?;
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/f"), b"x").unwrap();
    fs::set_permissions(m.at("d/f"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(m.umount().success());
    Some(m.log_text().contains("keeps no metadata with markers of directories"))
}

#[test]
fn a_server_that_keeps_nothing_with_markers_is_found_out_by_the_first_that_is_said() {
    assert_ne!(says_that_markers_forget(Server::SeaweedFs), Some(false));
    for server in [Server::Demo, Server::Garage, Server::Moto] {
        assert_ne!(says_that_markers_forget(server), Some(true), "{}", server.name());
    }
}
