//! Interoperability: files written by Debian's s3fs and rclone show their mode, owner, mtime and symlinks here, and ours
//! show there.
//!
//! What the dialects cannot do, so that nothing here asks for it:
//! - s3fs shows a time before 1970 as LastModified, and takes a fraction of less than nine digits, as rclone writes it,
//!   for a number of nanoseconds. A fraction before 1970 means one thing to s3fs and another to rclone.
//! - s3fs shows what says nothing of its mode as 0640 and 0750, where we have 0644 and 0755: `--posix=full` says it of every
//!   file. It has no time of a directory that nobody set, and keeps the root's own attributes under the key `//`.
//! - rclone keeps no directories, modes and owners unless `--metadata` is given, and then it writes the mode in octal, which
//!   is read here and not by s3fs; s3fs's and our decimal number, read as octal, gives what `rclone copy --metadata` brings
//!   back to a local disk the wrong permissions.
//! - rclone keeps symbolic links, with `--links`, as files `NAME.rclonelink`, and those are files here, with the target in
//!   them; ours and s3fs's are files there, with the target in them.
//! - rclone puts no markers of directories, so that without `--posix=full` nothing says of a directory it has made that its
//!   files have times of their own.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::mount::{Mounted, endpoint, fresh_place, is_mounted, wait_for};
use crate::harness::{Place, Server, block_on, setting};
use crate::programs::{has, sh};

const DEADLINE: Duration = Duration::from_secs(60);

/// A mount of a fresh bucket by Debian's s3fs. It is unmounted, and its process ended, when it goes out of scope.
struct S3fs {
    dir: tempfile::TempDir,
    child: Child,
}

impl S3fs {
    fn mount(place: &Place) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mountpoint, passwords) = (dir.path().join("mnt"), dir.path().join("passwd"));
        fs::create_dir(&mountpoint).unwrap();
        let endpoint = endpoint(place.server);
        fs::write(&passwords, format!("{}:{}\n", endpoint.access, endpoint.secret)).unwrap();
        fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
        let options = format!(
            "url={},use_path_request_style,endpoint={},passwd_file={},use_xattr",
            endpoint.url,
            endpoint.region,
            passwords.display()
        );
        let child = foreign("s3fs", dir.path())
            .arg(&place.bucket)
            .arg(&mountpoint)
            .args(["-f", "-o", &options])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut mounted = Self { dir, child };
        let ready = wait_for(DEADLINE, || mounted.has_ended() || is_mounted(&mounted.path()));
        assert!(ready && !mounted.has_ended(), "s3fs does not mount");
        mounted
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for S3fs {
    fn drop(&mut self) {
        // A file that is saved yet keeps it busy for a moment, and a mount that is not needed any more may go then.
        let gone = wait_for(DEADLINE, || {
            let unmounted =
                Command::new("fusermount3").arg("-u").arg(self.path()).stderr(Stdio::null()).status();
            unmounted.is_ok_and(|status| status.success()) || !is_mounted(&self.path())
        });
        if !gone {
            let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
        }
        let ended = gone && wait_for(DEADLINE, || self.has_ended());
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let _ = writeln!(std::io::stderr(), "--- log of s3fs\n{log}");
        }
        assert!(ended || std::thread::panicking(), "s3fs outlived its mount");
    }
}

/// A program that is to find nothing of ours in its environment: no session, no settings.
fn foreign(program: &str, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", setting("PATH").unwrap_or_default()).env("HOME", home);
    command
}

/// Runs rclone, with the place's bucket as `s3:BUCKET`, and gives back what it says.
fn rclone(place: &Place, arguments: &[&OsStr]) -> String {
    let home = tempfile::tempdir().unwrap();
    let endpoint = endpoint(place.server);
    let output = foreign("rclone", home.path())
        .env("RCLONE_CONFIG", home.path().join("rclone.conf"))
        .env("RCLONE_CONFIG_S3_TYPE", "s3")
        .env("RCLONE_CONFIG_S3_PROVIDER", "Other")
        .env("RCLONE_CONFIG_S3_ENDPOINT", &endpoint.url)
        .env("RCLONE_CONFIG_S3_REGION", &endpoint.region)
        .env("RCLONE_CONFIG_S3_ACCESS_KEY_ID", &endpoint.access)
        .env("RCLONE_CONFIG_S3_SECRET_ACCESS_KEY", &endpoint.secret)
        .env("RCLONE_CONFIG_S3_FORCE_PATH_STYLE", "true")
        .args(arguments)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rclone {arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

/// A fresh bucket, where these programs are there to use it.
fn place_for(test: &str, programs: &[&str]) -> Option<Place> {
    let all = programs.iter().all(|program| has(program));
    all.then(|| fresh_place(Server::Demo, test)).flatten()
}

fn mount(place: &Place, flags: &[&str]) -> Mounted {
    Mounted::mount(place.clone(), &format!("s3://{}", place.bucket), flags)
}

/// What somebody sees of a name without following it.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Type and permissions.
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
    target: Option<PathBuf>,
}

impl Seen {
    fn of(path: &Path) -> Self {
        let metadata =
            fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            target: metadata.is_symlink().then(|| fs::read_link(path).unwrap()),
        }
    }
}

/// Seconds of 2001-02-03T04:05:06Z.
const FEB_2001: i64 = 981_173_106;
const SET_AT: (i64, i64) = (FEB_2001, 123_456_789);

/// Makes one of each in a directory, with the tools that people use.
fn make_all(dir: &Path) {
    let lines = [
        "for name in private program suid d/inner; do mkdir -p d; echo $name > $name; done",
        "mkdir sticky; ln -s program link; ln -s ../private d/up",
        "chmod 600 private; chmod 755 program; chmod 4755 suid; chmod 750 d; chmod 1777 sticky; chmod 640 d/inner",
        "chown 12:34 private; chown 5:6 d; chown -h 7:8 link",
        "setfattr -n user.mine -v hello private; setfattr -n user.bytes -v 0x00ff private; setfattr -n user.mine -v dir d",
        "touch -h -d '2001-02-03 04:05:06.123456789Z' d/inner d/up private program link d sticky",
        "touch -d '2001-02-03 04:05:06.12Z' suid",
    ];
    sh(dir, &lines.join("\n"));
}

/// All that is made, as it is to be seen wherever it is.
fn all() -> Vec<(&'static str, Seen)> {
    let seen = |name, mode, owner, target: Option<&str>| {
        // s3fs would take a fraction without its last zeros for another one.
        let mtime = if name == "suid" { (FEB_2001, 120_000_000) } else { SET_AT };
        (name, Seen { mode, owner, mtime, target: target.map(PathBuf::from) })
    };
    vec![
        seen("d", 0o040_750, (5, 6), None),
        seen("link", 0o120_777, (7, 8), Some("program")),
        seen("private", 0o100_600, (12, 34), None),
        seen("program", 0o100_755, (0, 0), None),
        seen("sticky", 0o041_777, (0, 0), None),
        seen("suid", 0o104_755, (0, 0), None),
        seen("d/inner", 0o100_640, (0, 0), None),
        seen("d/up", 0o120_777, (0, 0), Some("../private")),
    ]
}

/// As `ls -l` looks: every name of the directory first, and then what each is.
fn by_listing(dir: &Path) {
    for below in ["", "d"] {
        let mut names: Vec<String> = fs::read_dir(dir.join(below))
            .unwrap()
            .map(|entry| Path::new(below).join(entry.unwrap().file_name()).to_str().unwrap().to_owned())
            .collect();
        names.retain(|name| name != "dir");
        names.sort();
        let seen: Vec<_> = names.iter().map(|name| (name.as_str(), Seen::of(&dir.join(name)))).collect();
        let mut expected = all();
        expected.retain(|(name, _)| name.rsplit_once('/').map_or("", |(dir, _)| dir) == below);
        assert_eq!(seen, expected, "in {:?}", dir.join(below));
    }
}

/// As `stat` looks, of a name that no listing has shown yet, and what is reached through links and in extended attributes.
fn by_name(dir: &Path) {
    for (name, expected) in all() {
        assert_eq!(Seen::of(&dir.join(name)), expected, "{name} in {dir:?}");
    }
    assert_eq!(fs::read(dir.join("link")).unwrap(), b"program\n");
    assert_eq!(fs::read(dir.join("d/up")).unwrap(), b"private\n");
    let lines = "getfattr -d -e hex private d | grep =; getfattr --only-values -n user.mine private";
    assert_eq!(sh(dir, lines), "user.bytes=0x00ff\nuser.mine=0x68656c6c6f\nuser.mine=0x646972\nhello");
}

#[test]
fn what_s3fs_writes_shows_here() {
    let test = "what_s3fs_writes_shows_here";
    let Some(place) = place_for(test, &["s3fs", "setfattr", "getfattr"]) else { return };
    {
        let s3fs = S3fs::mount(&place);
        make_all(&s3fs.path());
        fs::create_dir(s3fs.path().join("dir")).unwrap();
        make_all(&s3fs.path().join("dir"));
    }
    for dir in ["", "dir"] {
        for look in [by_listing, by_name] {
            look(&mount(&place, &[]).at(dir));
        }
    }
}

#[test]
fn what_is_written_here_shows_in_s3fs() {
    let test = "what_is_written_here_shows_in_s3fs";
    let Some(place) = place_for(test, &["s3fs", "setfattr", "getfattr"]) else { return };
    {
        let mut m = mount(&place, &[]);
        make_all(&m.path());
        fs::create_dir(m.at("dir")).unwrap();
        make_all(&m.at("dir"));
        assert!(m.umount().success());
    }
    for dir in ["", "dir"] {
        for look in [by_listing, by_name] {
            look(&S3fs::mount(&place).path().join(dir));
        }
    }
}

/// s3fs has other defaults than we have, for what says nothing.
#[test]
fn with_posix_full_s3fs_shows_the_modes_that_nobody_set() {
    let test = "with_posix_full_s3fs_shows_the_modes_that_nobody_set";
    let Some(place) = place_for(test, &["s3fs"]) else { return };
    let mut m = mount(&place, &["--posix=full"]);
    sh(&m.path(), "umask 022; mkdir d; echo x > d/f");
    assert!(m.umount().success());
    let s3fs = S3fs::mount(&place);
    assert_eq!(["d", "d/f"].map(|name| Seen::of(&s3fs.path().join(name)).mode), [0o040_755, 0o100_644]);
}

#[test]
fn a_file_of_s3fs_that_is_changed_here_keeps_its_mode_and_owner() {
    let test = "a_file_of_s3fs_that_is_changed_here_keeps_its_mode_and_owner";
    let Some(place) = place_for(test, &["s3fs", "setfattr"]) else { return };
    {
        let s3fs = S3fs::mount(&place);
        make_all(&s3fs.path());
    }
    {
        let mut m = mount(&place, &[]);
        sh(&m.path(), "echo more >> private; echo more >> d/inner; echo more >> link");
        assert!(m.umount().success());
    }
    let s3fs = S3fs::mount(&place);
    let changed = ["private", "d/inner", "program"];
    for (name, was) in all() {
        let seen = Seen::of(&s3fs.path().join(name));
        assert_eq!((seen.mode, seen.owner, &seen.target), (was.mode, was.owner, &was.target), "{name}");
        if changed.contains(&name) {
            let bytes = fs::read_to_string(s3fs.path().join(name)).unwrap();
            assert_eq!(bytes, format!("{name}\nmore\n"));
            assert!(seen.mtime.0 > FEB_2001 + 1_000_000, "{name}: {seen:?}");
        }
    }
    let xattr = block_on(place.store.head(&place.bucket, "private", None)).unwrap().attributes.metadata;
    assert!(xattr["xattr"].contains("user.mine"), "{xattr:?}");
}

/// What rclone is to copy: times with fewer digits than nine and with all, a mode, an owner, and a link.
fn rclone_s_source() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    let lines = [
        "mkdir d; echo half > half; echo nanos > d/nanos; echo whole > d/whole; ln -s half link",
        "chmod 600 half; chown 7:8 half",
        "touch -d '2001-02-03 04:05:06.5Z' half; touch -d '2001-02-03 04:05:06.123456789Z' d/nanos",
        "touch -d '2001-02-03 04:05:06Z' d/whole",
    ];
    sh(source.path(), &lines.join("\n"));
    source
}

fn mtime(path: PathBuf) -> (i64, i64) {
    Seen::of(&path).mtime
}

#[test]
fn times_of_what_rclone_copies_show_here() {
    let Some(place) = place_for("times_of_what_rclone_copies_show_here", &["rclone"]) else { return };
    let source = rclone_s_source();
    let to = format!("s3:{}", place.bucket);
    rclone(&place, &["copy".as_ref(), "--links".as_ref(), source.path().as_os_str(), to.as_ref()]);
    let info = block_on(place.store.head(&place.bucket, "half", None)).unwrap();
    assert_eq!(info.attributes.metadata["mtime"], format!("{FEB_2001}.5"), "no nine digits");
    let expected = [("half", 500_000_000), ("d/nanos", SET_AT.1), ("d/whole", 0)];
    // A name that is asked for is known with all it says.
    let m = mount(&place, &[]);
    for (name, nanos) in expected {
        assert_eq!(mtime(m.at(name)), (FEB_2001, nanos), "{name}");
    }
    drop(m);
    // The files at the top of a bucket are sampled; rclone has no markers that would say it of directories.
    for (flags, names) in [(&[][..], &expected[..1]), (&["--posix=full"][..], &expected[..])] {
        let m = mount(&place, flags);
        for dir in ["", "d"] {
            assert!(fs::read_dir(m.at(dir)).unwrap().count() > 0);
        }
        for (name, nanos) in names {
            assert_eq!(mtime(m.at(name)), (FEB_2001, *nanos), "{name}, {flags:?}");
        }
        assert_eq!(fs::read_to_string(m.at("link.rclonelink")).unwrap(), "half", "a file as any other");
    }
}

/// `rclone --metadata` writes the mode of a file in octal digits.
#[test]
fn what_rclone_copies_with_metadata_has_its_mode_and_owner_here() {
    let test = "what_rclone_copies_with_metadata_has_its_mode_and_owner_here";
    let Some(place) = place_for(test, &["rclone"]) else { return };
    if !rclone(&place, &["help".as_ref(), "flags".as_ref()]).contains("--metadata ") {
        let _ = std::io::stderr().write_all(b"NOT RUN: this rclone does not know --metadata\n");
        return;
    }
    let source = rclone_s_source();
    let to = format!("s3:{}", place.bucket);
    rclone(&place, &["copy".as_ref(), "--metadata".as_ref(), source.path().as_os_str(), to.as_ref()]);
    let m = mount(&place, &[]);
    assert!(fs::read_dir(m.path()).unwrap().count() > 0);
    let expected = Seen { mode: 0o100_600, owner: (7, 8), mtime: (FEB_2001, 500_000_000), target: None };
    assert_eq!(Seen::of(&m.at("half")), expected);
}

#[test]
fn times_that_are_set_here_show_in_rclone() {
    let Some(place) = place_for("times_that_are_set_here_show_in_rclone", &["rclone"]) else { return };
    let mut m = mount(&place, &[]);
    let lines = [
        "mkdir d; for name in half d/nanos old; do echo $name > $name; done",
        "touch -d '2001-02-03 04:05:06.5Z' half; touch -d '2001-02-03 04:05:06.123456789Z' d/nanos",
        "touch -d '1969-12-30 04:05:06Z' old",
    ];
    sh(&m.path(), &lines.join("\n"));
    assert!(m.umount().success());
    let listed = rclone(&place, &["lsjson".as_ref(), "-R".as_ref(), format!("s3:{}", place.bucket).as_ref()]);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    let expected = [
        ("half", "2001-02-03T04:05:06.500000000Z"),
        ("d/nanos", "2001-02-03T04:05:06.123456789Z"),
        ("old", "1969-12-30T04:05:06.000000000Z"),
    ];
    for (name, time) in expected {
        let entry = listed.iter().find(|entry| entry["Path"] == name).unwrap();
        assert_eq!(entry["ModTime"], time, "{name}");
    }
    let back = tempfile::tempdir().unwrap();
    let from = format!("s3:{}", place.bucket);
    rclone(&place, &["copy".as_ref(), from.as_ref(), back.path().as_os_str()]);
    assert_eq!(mtime(back.path().join("d/nanos")), SET_AT);
}

/// The library that speaks FUSE counts fractions before 1970 the wrong way; see `fuse::convert`.
#[test]
fn a_time_before_1970_is_kept_to_the_nanosecond() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "a_time_before_1970_is_kept_to_the_nanosecond") else {
        return;
    };
    sh(&m.path(), "touch -d '1969-12-31 23:59:58.3Z' f; touch -d '1969-12-31 23:59:59.999999999Z' g");
    assert!(m.umount().success());
    let m = m.again(&[]);
    assert_eq!([mtime(m.at("f")), mtime(m.at("g"))], [(-2, 300_000_000), (-1, 999_999_999)]);
}
