//! What a person types: mounting in the background, unmounting, errors, several buckets, sessions.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use crate::harness::mount::{Mounted, endpoint, fresh_place, is_mounted, pailfs, wait_for};
use crate::harness::{Server, block_on};
use crate::stuck::Stopped;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn run(server: Server, args: &[&str]) -> Output {
    pailfs(&endpoint(server)).args(args).output().expect("the binary starts")
}

/// Unmounts what a test mounted in the background, whatever became of the test.
struct Background(tempfile::TempDir);

impl Background {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self) -> String {
        self.0.path().join("mnt").to_str().unwrap().to_owned()
    }
    fn mount(&self, server: Server, source: &str, more: &[&str]) -> Output {
        let _ = fs::create_dir(self.path());
        let at = endpoint(server);
        let (dir, state) = (self.path(), self.0.path().join("state"));
        let mut args = vec!["mount", source, &dir, "--state-dir", state.to_str().unwrap()];
        if !more.contains(&"--config") {
            args.extend(["--endpoint-url", &at.url, "--region", &at.region]);
        }
        args.extend(more);
        run(server, &args)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let path = self.path();
        if is_mounted(Path::new(&path)) {
            let _ = std::process::Command::new(env!("CARGO_BIN_EXE_pailfs")).args(["umount", &path]).output();
        }
        if is_mounted(Path::new(&path)) {
            let _ = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn mount_goes_to_the_background_and_umount_waits_for_the_end() {
    let Some(place) = fresh_place(Server::Demo, "mount_goes_to_the_background") else { return };
    let background = Background::new();
    let output = background.mount(Server::Demo, &format!("s3://{}", place.bucket), &[]);
    assert!(output.status.success(), "{}", text(&output));
    let dir = background.path();
    assert!(is_mounted(Path::new(&dir)), "0 means that it is mounted");
    fs::write(Path::new(&dir).join("f"), b"x").unwrap();
    let status = run(Server::Demo, &["status", &dir, "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert!(status.to_string().contains(&place.bucket));
    assert!(run(Server::Demo, &["flush", &dir]).status.success());
    let output = run(Server::Demo, &["umount", &dir]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!is_mounted(Path::new(&dir)));
    assert_eq!(block_on(place.get("f")).unwrap(), "x");
    let output = run(Server::Demo, &["umount", &dir]);
    assert_eq!(output.status.code(), Some(12), "not mounted: {}", text(&output));
    let output = run(Server::Demo, &["umount", "/nonexistent/dir"]);
    assert_eq!(output.status.code(), Some(12), "{}", text(&output));
}

#[test]
fn umount_saves_what_a_program_still_has_open() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "umount_saves_what_a_program_still_has_open") else {
        return;
    };
    let file = fs::File::create(m.at("f")).unwrap();
    std::io::Write::write_all(&mut &file, b"open").unwrap();
    // Busy: the directory stays, but what was written is saved first.
    let busy = m.place.clone();
    let output = run(Server::Demo, &["umount", m.path().to_str().unwrap()]);
    assert!(!output.status.success());
    assert_eq!(block_on(busy.get("f")).unwrap(), "open");
    drop(file);
    assert!(m.umount().success());
}

#[test]
fn failures_have_their_exit_codes_and_say_what_to_do() {
    let Some(place) = fresh_place(Server::Demo, "failures_have_their_exit_codes") else { return };
    let background = Background::new();
    let mount = |source: &str, more: &[&str]| {
        let output = background.mount(Server::Demo, source, more);
        (output.status.code(), text(&output))
    };
    let (code, said) = mount("s3://no-such-bucket-here", &[]);
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("NoSuchBucket") && said.contains("no-such-bucket-here"), "{said}");
    let source = format!("s3://{}", place.bucket);
    let (code, said) = mount(&source, &["--timeout", "5s", "--endpoint-url", "http://127.0.0.1:1"]);
    assert!(code == Some(2) || code == Some(7), "{said}");
    let (code, said) = mount("not-a-url", &[]);
    assert_eq!(code, Some(2), "{said}");
    let output = run(Server::Demo, &["mount", "@nothing", &background.path()]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let output = run(
        Server::Demo,
        &["mount", &source, "/nonexistent/dir", "--endpoint-url", &endpoint(Server::Demo).url],
    );
    assert_eq!(output.status.code(), Some(9), "{}", text(&output));
    let at = endpoint(Server::Demo);
    fs::create_dir_all(background.path()).unwrap();
    let output = pailfs(&at)
        .env("AWS_SECRET_ACCESS_KEY", "wrong")
        .args(["mount", &source, &background.path(), "--endpoint-url", &at.url, "--region", &at.region])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(!text(&output).contains(&at.secret));
    assert!(!is_mounted(Path::new(&background.path())));
}

#[test]
fn mounting_over_a_dead_mount_of_ours_works() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "mounting_over_a_dead_mount_of_ours_works") else {
        return;
    };
    m.kill();
    // The kernel may answer a stat from memory for a moment.
    let dead = rustix::io::Errno::NOTCONN.raw_os_error();
    let is_dead = || fs::read_dir(m.path()).is_err_and(|error| error.raw_os_error() == Some(dead));
    assert!(wait_for(Duration::from_secs(10), is_dead));
    let at = endpoint(Server::Demo);
    let dir = m.path();
    let state = dir.with_file_name("state");
    let output = pailfs(&at)
        .args(["mount", &format!("s3://{}", m.place.bucket)])
        .arg(&dir)
        .args(["--endpoint-url", &at.url, "--region", &at.region, "--state-dir"])
        .arg(&state)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    fs::write(m.at("alive"), b"yes").unwrap();
    assert!(run(Server::Demo, &["umount", dir.to_str().unwrap()]).status.success());
    assert_eq!(block_on(m.place.get("alive")).unwrap(), "yes");
}

#[test]
fn every_command_ends_where_the_mount_s_process_is_stuck() {
    // They hung for ever: each asked the mount for its root before its process was asked with a deadline.
    let Some(m) = Mounted::fresh(Server::Demo, "every_command_ends_where_the_process_is_stuck") else {
        return;
    };
    let at = endpoint(Server::Demo);
    let (dir, source) = (m.path().to_str().unwrap().to_owned(), format!("s3://{}", m.place.bucket));
    let link = m.path().with_file_name("link");
    std::os::unix::fs::symlink(m.path(), &link).unwrap();
    assert!(run(Server::Demo, &["status", &dir]).status.success());
    let stopped = Stopped::stop(m.pid());
    let commands: [&[&str]; 4] = [
        &["status", link.to_str().unwrap()],
        &["flush", &dir],
        &["umount", &dir],
        &["mount", &source, &dir, "--endpoint-url", &at.url, "--region", &at.region],
    ];
    let mut running: Vec<_> = commands
        .iter()
        .map(|command| {
            let mut child = pailfs(&at);
            child.args(*command).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
            child.spawn().unwrap()
        })
        .collect();
    // 20 seconds of silence are what the socket gives a process.
    let all_ended = wait_for(Duration::from_secs(40), || {
        running.iter_mut().all(|child| matches!(child.try_wait(), Ok(Some(_))))
    });
    for child in &mut running {
        let _ = child.kill();
    }
    drop(stopped);
    assert!(all_ended, "a command hangs");
    for (command, child) in commands.iter().zip(running) {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(13), "{command:?}: {}", text(&output));
        assert!(text(&output).contains("does not answer"), "{command:?}: {}", text(&output));
        // It is no matter of the network.
        assert!(!text(&output).contains("--timeout"), "{command:?}: {}", text(&output));
    }
    // What was asked of it is heard once it goes on.
    assert!(wait_for(Duration::from_secs(30), || !is_mounted(&m.path())));
}

#[test]
fn https_to_a_port_without_tls_is_told_as_that() {
    if fresh_place(Server::Demo, "https_to_a_port_without_tls").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = endpoint(Server::Demo);
    let url = at.url.replacen("http://", "https://", 1);
    let mount =
        ["mount", "s3://b", dir.path().to_str().unwrap(), "--endpoint-url", &url, "--region", &at.region];
    let output = run(Server::Demo, &mount);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    assert!(text(&output).contains("does not speak TLS"), "{}", text(&output));
}

#[test]
fn a_dead_mount_is_told_of_and_taken_away() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "a_dead_mount_is_told_of_and_taken_away") else { return };
    m.kill();
    let dir = m.path().to_str().unwrap().to_owned();
    let output = run(Server::Demo, &["status", &dir]);
    assert_eq!(output.status.code(), Some(13), "{}", text(&output));
    assert!(text(&output).contains("is gone"), "{}", text(&output));
    let uid = rustix::process::geteuid().as_raw();
    let name = pailfs::control::socket_name(&m.path());
    let places = ["/run/pailfs".to_owned(), format!("/run/user/{uid}/pailfs"), format!("/tmp/pailfs-{uid}")];
    let sockets = || places.iter().filter(|place| Path::new(place).join(&name).exists()).count();
    assert_eq!(sockets(), 1);
    let output = run(Server::Demo, &["umount", &dir]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!is_mounted(&m.path()));
    assert_eq!(sockets(), 0, "the socket stays");
}

#[test]
fn a_read_only_mount_refuses_every_change_and_writes_nothing() {
    let Some(m) = Mounted::with(Server::Demo, "a_read_only_mount", &["--read-only"]) else { return };
    block_on(m.place.put("f", "x")).unwrap();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"x");
    let refused = [
        fs::write(m.at("g"), b"").unwrap_err(),
        fs::remove_file(m.at("f")).unwrap_err(),
        fs::create_dir(m.at("d")).unwrap_err(),
        fs::rename(m.at("f"), m.at("h")).unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    }
    assert_eq!(block_on(m.place.keys()).unwrap(), ["f"]);
}

#[test]
fn a_prefix_is_mounted_alone() {
    let Some(place) = fresh_place(Server::Demo, "a_prefix_is_mounted_alone") else { return };
    block_on(place.put("in/side", "1")).unwrap();
    block_on(place.put("inner", "2")).unwrap();
    let source = format!("s3://{}/in", place.bucket);
    let m = Mounted::mount(place.clone(), &source, &[]);
    let names: Vec<_> = fs::read_dir(m.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["side"]);
    fs::write(m.at("new"), b"3").unwrap();
    assert_eq!(block_on(place.get("in/new")).unwrap(), "3");
}

/// "rename between buckets | of one session: yes, on the server; of two sessions: EXDEV, so mv copies" (and the next)
#[test]
fn every_bucket_of_a_session_is_a_directory() {
    let Some(one) = fresh_place(Server::Demo, "every_bucket_of_a_session_is_a_directory") else { return };
    let two = block_on(one.beside()).unwrap();
    block_on(one.put("f", "moved")).unwrap();
    let m = Mounted::mount(one.clone(), "s3://", &[]);
    let names: Vec<_> =
        fs::read_dir(m.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.contains(&one.bucket) && names.contains(&two.bucket), "{names:?}");
    // Between buckets of one session: a copy on the server.
    let before = crate::harness::server::requests(Server::Demo, "GetObject");
    fs::rename(m.at(&one.bucket).join("f"), m.at(&two.bucket).join("g")).unwrap();
    assert_eq!(crate::harness::server::requests(Server::Demo, "GetObject"), before, "no byte came here");
    assert_eq!(block_on(two.get("g")).unwrap(), "moved");
    assert!(block_on(one.keys()).unwrap().is_empty());
    // mkdir at the top makes a bucket.
    let fresh = crate::harness::bucket::fresh_name();
    fs::create_dir(m.at(&fresh)).unwrap();
    fs::write(m.at(&fresh).join("x"), b"y").unwrap();
    assert!(fs::metadata(m.at("not-there")).is_err());
}

#[test]
fn a_bucket_that_another_client_removed_is_gone() {
    // It stayed listed until the unmount, and was ENXIO inside.
    let Some(one) = fresh_place(Server::Demo, "a_bucket_that_another_client_removed_is_gone") else { return };
    let two = block_on(one.beside()).unwrap();
    let m = Mounted::mount(one.clone(), "s3://", &[]);
    fs::write(m.at(&two.bucket).join("f"), b"x").unwrap();
    let has_two = || {
        fs::read_dir(m.path()).unwrap().any(|entry| entry.unwrap().file_name().to_str() == Some(&two.bucket))
    };
    assert!(has_two());
    block_on(two.delete("f")).unwrap();
    block_on(two.store.delete_bucket(&two.bucket)).unwrap();
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let soon = Duration::from_secs(20);
    assert!(wait_for(soon, || fs::metadata(m.at(&two.bucket)).is_err_and(|error| gone(&error))));
    assert!(wait_for(soon, || !has_two()));
    let error = fs::write(m.at(&two.bucket).join("g"), b"x").unwrap_err();
    assert!(gone(&error), "{error}");
    // The other bucket, and one that takes the name again.
    fs::write(m.at(&one.bucket).join("f"), b"x").unwrap();
    block_on(two.store.create_bucket(&two.bucket, None)).unwrap();
    block_on(two.put("again", "y")).unwrap();
    assert!(wait_for(soon, || fs::read(m.at(&two.bucket).join("again")).is_ok_and(|read| read == b"y")));
}

#[test]
fn buckets_of_several_sessions_stand_side_by_side() {
    let Some(one) = fresh_place(Server::Demo, "buckets_of_several_sessions") else { return };
    let Some(two) = fresh_place(Server::Moto, "buckets_of_several_sessions") else { return };
    let beside = block_on(one.beside()).unwrap();
    block_on(one.put("sub/f", "from one")).unwrap();
    block_on(two.put("f", "from two")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    let session = |name: &str, server: Server| {
        let at = endpoint(server);
        format!(
            "[session.{name}]\naccess_key_id = {:?}\nsecret_access_key = {:?}\nendpoint_url = {:?}\nregion = {:?}\n",
            at.access, at.secret, at.url, at.region
        )
    };
    let mounts = format!(
        "[mount.all]\none = {{ bucket = {:?}, prefix = \"sub/\", session = \"a\" }}\n\
         beside = {{ bucket = {:?}, session = \"a\", read_only = true }}\n\
         two = {{ bucket = {:?}, session = \"b\" }}\n",
        one.bucket, beside.bucket, two.bucket
    );
    let all = format!("{}{}{mounts}", session("a", Server::Demo), session("b", Server::Moto));
    fs::write(&config, all).unwrap();
    fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let background = Background::new();
    let output = background.mount(Server::Demo, "@all", &["--config", config.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let at = |path: &str| Path::new(&background.path()).join(path);
    assert_eq!(fs::read(at("one/f")).unwrap(), b"from one");
    assert_eq!(fs::read(at("two/f")).unwrap(), b"from two");
    let error = fs::rename(at("one/f"), at("two/g")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::XDEV.raw_os_error()));
    let error = fs::write(at("beside/x"), b"").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    // mv copies then.
    let status = std::process::Command::new("mv").args([at("one/f"), at("two/g")]).status().unwrap();
    assert!(status.success());
    assert_eq!(block_on(two.get("g")).unwrap(), "from one");
    assert_ne!(fs::metadata(at("one")).unwrap().ino(), fs::metadata(at("two")).unwrap().ino());
}

#[test]
fn a_prefix_with_commas_is_not_a_mount_option() {
    let Some(place) = fresh_place(Server::Demo, "a_prefix_with_commas_is_not_a_mount_option") else { return };
    let source = format!("s3://{}/a,allow_other,b\n", place.bucket);
    let m = Mounted::mount(place, &source, &[]);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = m.path();
    let line = table.lines().find(|line| line.contains(path.to_str().unwrap())).unwrap();
    assert!(!line.rsplit(' ').next().unwrap().split(',').any(|option| option == "allow_other"), "{line}");
}

#[test]
fn sessions_are_listed_and_checked_without_a_secret() {
    let Some(place) = fresh_place(Server::Demo, "sessions_are_listed_and_checked") else { return };
    let at = endpoint(Server::Demo);
    let output = pailfs(&at).arg("sessions").output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("default") && said.contains("AWS_ACCESS_KEY_ID"), "{said}");
    assert!(!said.contains(&at.secret));
    let bucket = format!("s3://{}", place.bucket);
    let output = pailfs(&at)
        .env("AWS_ENDPOINT_URL", &at.url)
        .env("AWS_REGION", &at.region)
        .args(["sessions", "check", &bucket, "--json"])
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report.to_string().contains("works"), "{report:#}");
    assert!(!said.contains(&at.secret));
    assert!(block_on(place.keys()).unwrap().is_empty(), "the probe cleans up");
}

#[test]
fn sigterm_saves_and_unmounts() {
    let Some(mut m) = Mounted::fresh(Server::Demo, "sigterm_saves_and_unmounts") else { return };
    fs::write(m.at("f"), b"x").unwrap();
    let pid = rustix::process::Pid::from_raw(m.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(wait_for(Duration::from_secs(30), || !is_mounted(&m.path())));
    assert!(!m.umount().success(), "there is nothing to unmount any more");
    assert_eq!(block_on(m.place.get("f")).unwrap(), "x");
}
