//! What nobody else may see or change: keys, bytes that wait, the control socket, files outside of the mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pailfs::demo::Server as Demo;
use pailfs::s3::{Attributes, PutRequest};

use crate::harness::mount::{Mounted, endpoint, fresh_place, is_mounted, pailfs, wait_for};
use crate::harness::{Endpoint, Server, block_on};

const SECRET: &str = "TheSecretThatNobodyMaySee";
const TOKEN: &str = "TheTokenThatNobodyMaySee";
const NOBODY: u32 = 65534;
const LONG: Duration = Duration::from_secs(60);

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

#[test]
fn keys_are_in_no_argument_log_status_or_file_and_files_are_the_owner_s_alone() {
    if fresh_place(Server::Demo, "keys_are_nowhere").is_none() {
        return;
    }
    let server =
        block_on(Demo::builder().bucket("bucket").credentials("AKIAPAILFSPAILFS", SECRET).start()).unwrap();
    let at = Endpoint {
        url: server.endpoint(),
        access: "AKIAPAILFSPAILFS".to_owned(),
        secret: SECRET.to_owned(),
        region: "us-east-1".to_owned(),
    };
    let dir = tempfile::tempdir().unwrap();
    let (mnt, log) = (dir.path().join("mnt"), dir.path().join("log"));
    fs::create_dir(&mnt).unwrap();
    // Everything that anything says, of ours and below.
    let level =
        "trace,aws_config=trace,aws_runtime=trace,aws_sigv4=trace,aws_smithy_runtime=trace,hyper=trace";
    let mut child = pailfs(&at)
        .env("AWS_SESSION_TOKEN", TOKEN)
        .args(["mount", "s3://bucket"])
        .arg(&mnt)
        .args(["--foreground", "--endpoint-url", &at.url, "--region", "us-east-1", "--log-level", level])
        .arg("--log-file")
        .arg(&log)
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .arg("--cache-dir")
        .arg(dir.path().join("cache"))
        .stderr(fs::File::create(dir.path().join("stderr")).unwrap())
        .spawn()
        .unwrap();
    assert!(wait_for(LONG, || is_mounted(&mnt)));
    fs::write(mnt.join("f"), vec![1; 1 << 20]).unwrap();
    fs::read(mnt.join("f")).unwrap();
    fs::read(mnt.join("nothing")).unwrap_err();
    server.set_faults(vec!["fault=expired-token".parse().unwrap()]);
    fs::write(mnt.join("pending"), b"pending").unwrap_or_default();
    fs::read_dir(&mnt).map(drop).unwrap_or_default();
    let mut shown = vec![("arguments", fs::read(format!("/proc/{}/cmdline", child.id())).unwrap())];
    for command in [&["status"][..], &["status", "--json"], &["flush"]] {
        let output = pailfs(&at).args(command).arg(&mnt).output().unwrap();
        shown.push(("an answer", [output.stdout, output.stderr].concat()));
    }
    for path in files(dir.path()) {
        if path.starts_with(&mnt) {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).unwrap();
        let is_ours = !path.ends_with("stderr");
        assert!(!is_ours || metadata.mode() & 0o077 == 0, "{path:?} has mode {:o}", metadata.mode());
        if metadata.is_file() {
            shown.push(("a file", fs::read(&path).unwrap()));
        }
    }
    for made in ["state", "cache"] {
        let mode = fs::metadata(dir.path().join(made)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700, "{made}");
    }
    server.set_faults(Vec::new());
    assert!(wait_for(LONG, || pailfs(&at).arg("flush").arg(&mnt).status().unwrap().success()));
    assert!(pailfs(&at).arg("umount").arg(&mnt).status().unwrap().success());
    child.wait().unwrap();
    shown.push(("the log", fs::read(&log).unwrap()));
    assert!(shown.last().unwrap().1.len() > 1000, "there is a log");
    for (what, bytes) in &shown {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(SECRET) && !text.contains(TOKEN), "{what}: {text}");
    }
}

/// A core would have the keys in it, and bytes of whoever else uses the mount.
#[test]
fn a_mount_that_crashes_leaves_no_core() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "a_mount_that_crashes_leaves_no_core") else { return };
    let dir = tempfile::tempdir().unwrap();
    let crash = |change: &dyn Fn(&mut Command)| {
        let mut shell = Command::new("sh");
        shell.current_dir(dir.path()).stdin(Stdio::null()).stderr(Stdio::null());
        change(&mut shell);
        shell
    };
    // The machine makes cores, or there is nothing to see.
    let control = crash(&|shell| {
        shell.args(["-c", "ulimit -c unlimited; kill -ABRT $$"]);
    })
    .status()
    .unwrap();
    fs::write(m.at("f"), b"x").unwrap();
    let at = endpoint(Server::Demo);
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let script = format!(
        "ulimit -c unlimited; exec {} mount s3://{} {} --foreground --endpoint-url {} --region {} --state-dir {}",
        env!("CARGO_BIN_EXE_pailfs"),
        m.place.bucket,
        mnt.display(),
        at.url,
        at.region,
        dir.path().join("state").display(),
    );
    let mut child = crash(&|shell| {
        shell
            .args(["-c", &script])
            .env("AWS_ACCESS_KEY_ID", &at.access)
            .env("AWS_SECRET_ACCESS_KEY", &at.secret)
            .env("AWS_EC2_METADATA_DISABLED", "true");
    })
    .spawn()
    .unwrap();
    assert!(wait_for(LONG, || is_mounted(&mnt)));
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
    let ended = child.wait().unwrap();
    let _ = rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::DETACH);
    assert_eq!(ended.signal(), Some(6), "{ended:?}");
    assert!(!ended.core_dumped(), "{ended:?}; a shell's: {control:?}");
    if !control.core_dumped() {
        eprintln!("this machine makes no cores, so none was missed");
    }
    m.umount();
}

/// Those that are over soon have the same keys: who asks for a mount in the background, and who asks about a session.
#[test]
fn no_other_command_leaves_a_core_either() {
    let dir = tempfile::tempdir().unwrap();
    let nobody_answers = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nobody_answers.set_nonblocking(true).unwrap();
    let url = format!("http://{}", nobody_answers.local_addr().unwrap());
    let at =
        Endpoint { url: url.clone(), access: "a".into(), secret: SECRET.into(), region: "us-east-1".into() };
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let (mnt, state) = (mnt.display().to_string(), dir.path().join("state").display().to_string());
    let commands = [
        vec!["sessions", "check", "s3://bucket"],
        vec!["mount", "s3://bucket", &mnt, "--state-dir", &state, "--timeout", "2s"],
    ];
    for command in commands {
        let typed = format!(
            "ulimit -c unlimited; exec {} {} --endpoint-url {url} --region us-east-1",
            env!("CARGO_BIN_EXE_pailfs"),
            command.join(" "),
        );
        let mut child = Command::new("sh")
            .args(["-c", &typed])
            .envs([("AWS_ACCESS_KEY_ID", &at.access), ("AWS_SECRET_ACCESS_KEY", &at.secret)])
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .current_dir(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut asked = None;
        assert!(wait_for(LONG, || {
            asked = asked.take().or_else(|| nobody_answers.accept().ok());
            asked.is_some()
        }));
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
        let ended = child.wait().unwrap();
        assert_eq!(ended.signal(), Some(6), "{command:?}: {ended:?}");
        assert!(!ended.core_dumped(), "{command:?}: {ended:?}");
    }
}

#[test]
fn other_users_are_neither_let_in_nor_answered_unless_they_are_asked_for() {
    let Some(m) = Mounted::fresh(Server::Demo, "other_users_are_not_let_in") else { return };
    if !is_root() {
        eprintln!("skipped: another user's program takes root to start");
        return;
    }
    // The way to the mount is open; the mount is not.
    fs::set_permissions(m.path().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(m.at("f"), b"mine").unwrap();
    let theirs = |mount: &Mounted| {
        Command::new("cat").arg(mount.at("f")).uid(NOBODY).gid(NOBODY).stderr(Stdio::null()).output().unwrap()
    };
    assert!(!theirs(&m).status.success());
    let other = m.again(&["--allow-other"]);
    fs::set_permissions(other.path().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(theirs(&other).stdout, b"mine", "who was let in is let in");
    // Root's socket is root's; a copy of the binary, because the way to the one under test may be closed.
    let copy = tempfile::tempdir().unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = copy.path().join("pailfs");
    fs::copy(env!("CARGO_BIN_EXE_pailfs"), &binary).unwrap();
    for command in ["status", "flush", "umount"] {
        let mut theirs = Command::new(&binary);
        let output = theirs.arg(command).arg(other.path()).uid(NOBODY).gid(NOBODY).output().unwrap();
        assert!(!output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
    }
    assert!(is_mounted(&other.path()));
}

/// Keys that climb, and links that lead out: whoever follows them is the program that asks, never the mount.
#[test]
fn nothing_in_a_bucket_makes_the_mount_touch_files_of_the_machine() {
    let Some(place) = fresh_place(Server::Demo, "nothing_in_a_bucket_touches_local_files") else { return };
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, b"local").unwrap();
    let out = outside.path().display().to_string();
    for key in
        ["../../evil", "/tmp/pailfs-evil", "..", "a/../../../evil", "cache/../x", "staging/s1", "~/evil"]
    {
        block_on(place.put(key, "from afar")).unwrap();
    }
    let link = |key: &str, target: &str| {
        let mut attributes = Attributes::default();
        attributes.metadata.insert("mode".to_owned(), "41471".to_owned());
        let request = PutRequest {
            bucket: place.bucket.clone(),
            key: key.to_owned(),
            body: target.to_owned().into(),
            attributes,
            ..PutRequest::default()
        };
        block_on(place.store.put(request)).unwrap();
    };
    link("to-file", secret.to_str().unwrap());
    link("to-dir", &out);
    link("up", "../../../../../../..");
    let cache = tempfile::tempdir().unwrap();
    let source = format!("s3://{}", place.bucket);
    let flags = ["--posix", "full", "--cache-dir", cache.path().to_str().unwrap()];
    let mut m = Mounted::mount(place, &source, &flags);
    assert_eq!(fs::read_link(m.at("to-file")).unwrap(), secret);
    // Every name is read, changed and removed as what it is: an object, or a link itself.
    let mut dirs = vec![m.path()];
    let mut seen = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            seen += 1;
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_symlink() {
                std::os::unix::fs::lchown(&path, Some(0), Some(0)).unwrap_or_default();
                fs::rename(&path, path.with_extension("moved")).unwrap();
                fs::remove_file(path.with_extension("moved")).unwrap();
            } else {
                assert_eq!(fs::read(&path).unwrap(), b"from afar");
                fs::write(&path, b"changed").unwrap();
                fs::remove_file(&path).unwrap();
            }
        }
    }
    assert!(seen > 10, "{seen}");
    assert!(m.umount().success());
    assert_eq!(fs::read(&secret).unwrap(), b"local");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(!Path::new("/tmp/pailfs-evil").exists());
    for path in files(cache.path()) {
        assert!(!path.to_string_lossy().contains("evil"), "{path:?}");
    }
}

/// Whoever may write to a directory above may put a link in the place of a file that the mount is about to make.
#[test]
fn a_state_directory_that_others_can_write_is_refused_with_the_reason() {
    let Some(place) = fresh_place(Server::Demo, "a_state_directory_is_refused") else { return };
    let at = endpoint(Server::Demo);
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for mode in [0o777, 0o770] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        let output = pailfs(&at)
            .args(["mount", &format!("s3://{}", place.bucket)])
            .arg(target.path())
            .args(["--endpoint-url", &at.url, "--region", &at.region, "--state-dir"])
            .arg(dir.path())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains("only its user may write to"), "{mode:o}: {told}");
        assert!(!is_mounted(target.path()));
    }
    // Nor where anybody could put another one in its place.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(dir.path().join("state")).unwrap();
    fs::set_permissions(dir.path().join("state"), fs::Permissions::from_mode(0o700)).unwrap();
    for flag in ["--state-dir", "--cache-dir"] {
        let output = pailfs(&at)
            .env("XDG_STATE_HOME", target.path().with_extension("state"))
            .args(["mount", &format!("s3://{}", place.bucket)])
            .arg(target.path())
            .args(["--endpoint-url", &at.url, "--region", &at.region, flag])
            .arg(dir.path().join("state"))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains("anybody can write to"), "{flag}: {told}");
    }
    let _ = fs::remove_dir_all(target.path().with_extension("state"));
}

/// The same where others could write once, and have left links in the place of every file that a mount makes there: none of them
/// is followed, and where the mount needs what was there it says which file it is.
#[test]
fn no_link_in_the_place_of_a_file_that_a_mount_makes_is_followed() {
    let Some(place) = fresh_place(Server::Demo, "no_link_in_the_place_of_a_file_is_followed") else { return };
    let (at, source) = (endpoint(Server::Demo), format!("s3://{}", place.bucket));
    let base = tempfile::tempdir().unwrap();
    let flags = |home: &Path| {
        ["--posix", "full", "--state-dir", "state", "--cache-dir", "cache"].map(|flag| match flag {
            "state" | "cache" => home.join(flag).display().to_string(),
            flag => flag.to_owned(),
        })
    };
    let first = base.path().join("first");
    fs::create_dir(&first).unwrap();
    let typed = flags(&first);
    let mut m = Mounted::mount(place, &source, &typed.each_ref().map(String::as_str));
    fs::write(m.at("f"), vec![7; 300_000]).unwrap();
    fs::set_permissions(m.at("f"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(pailfs(&at).arg("flush").arg(m.path()).status().unwrap().success());
    assert_eq!(fs::read(m.at("f")).unwrap().len(), 300_000);
    let mut unsaved = fs::File::create(m.at("unsaved")).unwrap();
    std::io::Write::write_all(&mut unsaved, b"waits").unwrap();
    // What was read is kept behind the reader's back, in two files.
    let is_kept = |kind: &str| files(&first).iter().any(|path| path.extension().is_some_and(|e| e == kind));
    assert!(wait_for(LONG, || is_kept("data") && is_kept("index")));
    m.kill();
    drop(unsaved);
    drop(m);
    let made: Vec<_> =
        files(&first).iter().map(|path| path.strip_prefix(&first).unwrap().to_owned()).collect();
    for kind in
        ["lock", "journal-", "staging/", "attributes", "capabilities.json", "usage", ".index", ".data"]
    {
        let is_there = made.iter().any(|path| path.to_string_lossy().contains(kind));
        assert!(is_there, "no {kind} in {made:?}");
    }
    let mut refused = 0;
    for (n, path) in made.iter().enumerate() {
        let home = base.path().join(n.to_string());
        assert!(Command::new("cp").arg("-a").args([&first, &home]).status().unwrap().success());
        let victim = base.path().join(format!("victim-{n}"));
        fs::write(&victim, "mine").unwrap();
        fs::remove_file(home.join(path)).unwrap();
        std::os::unix::fs::symlink(&victim, home.join(path)).unwrap();
        let mnt = home.join("mnt");
        fs::create_dir(&mnt).unwrap();
        let output = pailfs(&at)
            .args(["mount", &source])
            .arg(&mnt)
            .args(["--endpoint-url", &at.url, "--region", &at.region])
            .args(flags(&home))
            .output()
            .unwrap();
        if output.status.success() {
            assert_eq!(fs::read(mnt.join("f")).unwrap().len(), 300_000, "{path:?}");
            fs::write(mnt.join(format!("new-{n}")), vec![1; 300_000]).unwrap();
            let umount = pailfs(&at).arg("umount").arg(&mnt).output().unwrap();
            let told = String::from_utf8_lossy(&umount.stderr);
            // What the link stood for may be what was still to be saved.
            assert!(umount.status.success() || told.contains("unsaved"), "{path:?}: {told}");
            if is_mounted(&mnt) {
                rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::DETACH).unwrap();
            }
        } else {
            refused += 1;
            let told = String::from_utf8_lossy(&output.stderr);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(told.contains("symbolic link") && told.contains(name), "{path:?}: {told}");
        }
        assert_eq!(fs::read(&victim).unwrap(), b"mine", "{path:?}");
    }
    assert!(refused >= 2, "the lock and the journal are needed");
}

/// What a bucket says of who may do what is a word in it: nobody becomes root by a file of somebody else's, and no device is one.
#[test]
fn no_object_makes_a_program_root_s_or_a_device() {
    let Some(place) = fresh_place(Server::Demo, "no_object_makes_a_program_root_s") else { return };
    if !is_root() {
        eprintln!("skipped: what root may do with a device takes root to see");
        return;
    }
    for (key, mode, rdev) in [("setuid", "36333", ""), ("null", "8630", "259"), ("zero", "0020666", "261")] {
        let mut attributes = Attributes::default();
        for (name, value) in [("mode", mode), ("uid", "0"), ("gid", "0"), ("rdev", rdev)] {
            if !value.is_empty() {
                attributes.metadata.insert(name.to_owned(), value.to_owned());
            }
        }
        let request = PutRequest {
            bucket: place.bucket.clone(),
            key: key.to_owned(),
            body: "#!/bin/sh\nid -u\n".into(),
            attributes,
            ..PutRequest::default()
        };
        block_on(place.store.put(request)).unwrap();
    }
    let source = format!("s3://{}", place.bucket);
    for flags in [&["--posix", "full"][..], &["--posix", "full", "--allow-other"]] {
        let m = Mounted::mount(place.clone(), &source, flags);
        assert_eq!(fs::metadata(m.at("setuid")).unwrap().mode() & 0o7777, 0o6755, "it is shown");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(&*m.path().to_string_lossy())).unwrap();
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
        for device in ["null", "zero"] {
            assert_eq!(fs::metadata(m.at(device)).unwrap().mode() & 0o170_000, 0o020_000, "{device}");
            let error = fs::File::open(m.at(device)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{device}");
        }
    }
}

/// A name with what a terminal obeys, in what is said about it: by the log, the status, and by what waits for another mount.
#[test]
fn no_name_ends_a_line_or_is_obeyed_by_a_terminal() {
    let Some(place) = fresh_place(Server::Demo, "no_name_is_obeyed_by_a_terminal") else { return };
    let (at, source) = (endpoint(Server::Demo), format!("s3://{}", place.bucket));
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().display().to_string();
    let mut m = Mounted::mount(place, &source, &["--state-dir", &dir]);
    let name = "a\nFORGED all is well\x1b[2J\u{9b}2J\x07\r";
    let mut unsaved = fs::File::create(m.at(name)).unwrap();
    std::io::Write::write_all(&mut unsaved, b"waits").unwrap();
    let ask = |args: &[&str], dir: Option<&Path>| {
        let output = pailfs(&at).args(args).args(dir).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let mut told = vec![ask(&["status"], Some(&m.path())), ask(&["status", "--json"], Some(&m.path()))];
    // Those who were asked have closed the file as they began; from here on nobody has.
    std::io::Write::write_all(&mut unsaved, b"still").unwrap();
    m.kill();
    drop(unsaved);
    told.push(ask(&["recover", "--state-dir", &dir], None));
    told.push(ask(&["recover", "--state-dir", &dir, "--json"], None));
    told.push(m.log_text());
    for (n, text) in told.iter().enumerate() {
        assert!(n < 2 || text.contains("FORGED"), "{n}: {text:?}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{n}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("FORGED")), "{n}: {text}");
    }
}
