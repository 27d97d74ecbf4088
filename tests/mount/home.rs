//! At home on a system: /etc/fstab, mount(8) and umount(8), a service manager, users without rights, an open /dev/fuse that was
//! handed over, completions and manual pages.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::harness::mount::{endpoint, fresh_place, is_mounted, pailfs, wait_for};
use crate::harness::server::faults;
use crate::harness::{Place, Server, block_on};

const SOON: Duration = Duration::from_secs(30);

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A mount table and an /etc and /sbin of a test's own, in which pailfs is installed. `T` is its directory, with `mnt` in
/// it; scripts run as root, with an environment as bare as at boot.
struct System {
    place: Place,
    dir: tempfile::TempDir,
}

impl System {
    /// `None` where this machine cannot, which is said.
    fn new(test: &str) -> Option<Self> {
        let place = fresh_place(Server::Demo, test)?;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["bin", "sbin", "etc/pailfs", "mnt"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let program = dir.path().join("bin/pailfs");
        // A link where that is possible: it is large.
        if fs::hard_link(env!("CARGO_BIN_EXE_pailfs"), &program).is_err() {
            fs::copy(env!("CARGO_BIN_EXE_pailfs"), &program).unwrap();
        }
        // mount.fuse3 looks for the program in the usual directories, whatever PATH says.
        for name in ["pailfs", "mount.pailfs", "umount.fuse.pailfs"] {
            symlink(&program, dir.path().join("sbin").join(name)).unwrap();
        }
        let system = Self { place, dir };
        let at = endpoint(Server::Demo);
        let keys = format!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY=\"{}\"\n", at.access, at.secret);
        system.write("env", &keys);
        let possible = system.run("true");
        if !possible.status.success() {
            let required = crate::harness::setting("REQUIRE_FUSE").is_some_and(|value| value != "0");
            assert!(!required, "REQUIRE_FUSE is set: {}", text(&possible));
            eprintln!("NOT RUN: {test}: no mount table of its own: {}", text(&possible).trim());
            return None;
        }
        Some(system)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of root alone.
    fn write(&self, name: &str, contents: &str) {
        fs::write(self.at(name), contents).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Options that lead to the server.
    fn options(&self) -> String {
        let at = endpoint(Server::Demo);
        let dir = self.dir.path().display();
        format!("endpoint_url={},region={},env_file={dir}/env,state_dir={dir}/state", at.url, at.region)
    }

    /// Runs a script there. Nothing stays mounted, however it ends.
    fn run(&self, script: &str) -> Output {
        let prelude = r#"
            set -eu
            # Copies of other tests' mounts, which could not end as long as they are here.
            umount -a -i -l -t fuse.pailfs,fuse.s3fs,fuse.rclone
            mount -t overlay overlay -o "lowerdir=$T/sbin:/usr/sbin" /usr/sbin
            mount -t overlay overlay -o "lowerdir=$T/etc:/etc" /etc
            trap 'code=$?; umount -i -l "$T/mnt" 2>/dev/null || true; exit $code' EXIT
        "#;
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &format!("{prelude}{script}")])
            .env_clear()
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.at("bin").display()))
            .env("T", self.dir.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("SOURCE", format!("s3://{}", self.place.bucket))
            .env("OPTIONS", self.options())
            .stdin(Stdio::null())
            .output()
            .expect("unshare starts")
    }

    fn run_well(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "{script}: {}", text(&output));
        text(&output)
    }
}

#[test]
fn a_line_of_fstab_mounts_and_umount_returns_when_all_is_in_s3() {
    let Some(system) = System::new("a_line_of_fstab_mounts") else { return };
    let dir = system.dir.path().display();
    let line = format!(
        "s3://{} {dir}/mnt pailfs defaults,_netdev,nofail,x-systemd.automount,x-systemd.idle-timeout=60,{},\
         durability=journal,upload-delay=1h,cache_dir=\"{dir}/a,b\\040c\",log_file={dir}/d\\,e 0 0\n",
        system.place.bucket,
        system.options()
    );
    fs::write(system.at("fstab"), line).unwrap();
    // So that a umount that did not wait would return first.
    let _slow =
        faults(Server::Demo, &format!("op=PutObject,bucket={},fault=latency:400ms", system.place.bucket));
    system.run_well(
        r#"
        mount -a -T "$T/fstab"
        echo data >"$T/mnt/f"
        # Again: what is mounted is left alone.
        mount -a -T "$T/fstab"
        [ "$(grep -c " $T/mnt " /proc/self/mountinfo)" = 1 ]
        findmnt -n -t fuse.pailfs "$T/mnt" >/dev/null
        umount "$T/mnt"
        ! mountpoint -q "$T/mnt"
        "#,
    );
    assert_eq!(block_on(system.place.get("f")).unwrap(), "data\n", "it would have waited for an hour");
    assert!(system.at("a,b c").is_dir() && system.at("d,e").is_file());
}

#[test]
fn a_mount_in_the_background_outlives_the_terminal_it_was_started_from() {
    let Some(system) = System::new("a_mount_in_the_background_outlives") else { return };
    system.run_well(
        r#"
        # A terminal of its own, which hangs up when the command in it has ended.
        script -qec "mount -t pailfs -o $OPTIONS,log_file=$T/log $SOURCE $T/mnt" /dev/null
        pid=$(pailfs status --json "$T/mnt" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1)
        read -r _ _ _ _ _ session terminal _ <"/proc/$pid/stat"
        [ "$session $terminal" = "$pid 0" ]
        # A hangup is not the terminal's any more: it asks for the log to be opened anew.
        mv "$T/log" "$T/log.1"
        kill -HUP "$pid"
        until [ -e "$T/log" ]; do kill -0 "$pid"; done
        echo data >"$T/mnt/f"
        umount "$T/mnt"
        "#,
    );
    assert_eq!(block_on(system.place.get("f")).unwrap(), "data\n");
}

#[test]
fn both_types_and_a_mount_without_rights_work() {
    let Some(system) = System::new("both_types_and_a_mount_without_rights_work") else { return };
    block_on(system.place.put("there", "x")).unwrap();
    // mount.fuse3 opens /dev/fuse, mounts, gives its rights up, and hands over the descriptor.
    for (name, kind, more) in
        [("a", "pailfs", ""), ("b", "fuse.pailfs", ""), ("c", "fuse.pailfs", ",drop_privileges")]
    {
        system.run_well(&format!(
            r#"
            mount -t {kind} -o "$OPTIONS{more}" "$SOURCE" "$T/mnt"
            echo {name} >"$T/mnt/{name}"
            cat "$T/mnt/there"
            umount -i "$T/mnt"
            "#
        ));
        assert_eq!(block_on(system.place.get(name)).unwrap(), format!("{name}\n"), "{kind}{more}");
    }
    let said = system.run_well(
        r#"
        mount -t pailfs -o "ro,noexec,$OPTIONS" "$SOURCE" "$T/mnt"
        grep " $T/mnt " /proc/self/mountinfo
        ! touch "$T/mnt/new" 2>/dev/null
        umount "$T/mnt"
        "#,
    );
    let options: Vec<&str> = said.split(' ').nth(5).unwrap().split(',').collect();
    for option in ["ro", "noexec", "nosuid", "nodev"] {
        assert!(options.contains(&option), "{said}");
    }
}

#[test]
fn a_configuration_of_the_machine_is_enough_at_boot() {
    let Some(system) = System::new("a_configuration_of_the_machine_is_enough_at_boot") else { return };
    let at = endpoint(Server::Demo);
    let config = format!(
        "[session.default]\naccess_key_id = {:?}\nsecret_access_key = {:?}\nendpoint_url = {:?}\nregion = {:?}\n\
         [mount.data]\nhere = \"s3://{}\"\n",
        at.access, at.secret, at.url, at.region, system.place.bucket
    );
    system.write("etc/pailfs/config.toml", &config);
    let dir = system.dir.path().display();
    fs::write(system.at("fstab"), format!("@data {dir}/mnt pailfs _netdev,state_dir={dir}/state 0 0\n"))
        .unwrap();
    system.run_well(
        r#"
        export XDG_CONFIG_HOME="$T/none"
        mount -T "$T/fstab" "$T/mnt"
        echo data >"$T/mnt/here/f"
        umount "$T/mnt"
        "#,
    );
    assert_eq!(block_on(system.place.get("f")).unwrap(), "data\n");
    // Or in root's home, which the table of users names: there is no HOME at boot.
    fs::create_dir_all(system.at("root/.config")).unwrap();
    fs::rename(system.at("etc/pailfs"), system.at("root/.config/pailfs")).unwrap();
    fs::write(system.at("etc/passwd"), format!("root:x:0:0:root:{dir}/root:/bin/sh\n")).unwrap();
    system.run_well(
        r#"
        [ -z "${HOME-}" ]
        mount -T "$T/fstab" "$T/mnt"
        cat "$T/mnt/here/f"
        umount "$T/mnt"
        "#,
    );
}

#[test]
fn what_mount_8_is_told_wrong_ends_with_its_codes() {
    let Some(system) = System::new("what_mount_8_is_told_wrong_ends_with_its_codes") else { return };
    for (command, code, word) in [
        ("mount -t pailfs -o alow_other,$OPTIONS $SOURCE $T/mnt", 1, "is allow_other meant?"),
        ("mount -t pailfs -o sync,$OPTIONS $SOURCE $T/mnt", 1, "not offered"),
        ("mount -t pailfs -o timeout=soon $SOURCE $T/mnt", 1, "--timeout"),
        ("mount -t pailfs -o $OPTIONS s3://there-is-none-1 $T/mnt", 32, "NoSuchBucket"),
        ("mount -t pailfs -o env_file=$T/none $SOURCE $T/mnt", 32, "none: No such file"),
        ("mount -s -f -v -t pailfs -o alow_other $SOURCE $T/mnt", 0, "pailfs mount"),
        // Gone at once, and saved all the same.
        ("mount -t pailfs -o $OPTIONS $SOURCE $T/mnt; echo x >$T/mnt/lazy; umount -l $T/mnt", 0, ""),
        ("umount.fuse.pailfs $T/mnt", 32, "nothing is mounted"),
    ] {
        let output = system.run(command);
        assert_eq!(output.status.code(), Some(code), "{command}: {}", text(&output));
        assert!(text(&output).contains(word), "{command}: {}", text(&output));
    }
    assert_eq!(block_on(system.place.get("lazy")).unwrap(), "x\n");
}

/// Starts as a user without rights, in the directory `home`.
const AS_NOBODY: &str = r#"
    mknod -m 666 "$T/fuse" c 10 229
    mount --bind "$T/fuse" /dev/fuse
    mkdir -m 755 "$T/home" && chown 65534:65534 "$T/home" "$T/mnt"
    . "$T/env"; export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
    nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups env "HOME=$T/home" "$@"; }
"#;

#[test]
fn a_user_without_rights_mounts_writes_and_unmounts() {
    let Some(system) = System::new("a_user_without_rights_mounts") else { return };
    let at = endpoint(Server::Demo);
    // Root's alone, so nothing to anybody else.
    system.write("etc/pailfs/config.toml", "no configuration at all");
    system.run_well(&format!(
        r#"{AS_NOBODY}
        nobody pailfs mount "$SOURCE" "$T/mnt" --endpoint-url {url} --region {region}
        nobody sh -c 'echo data >"$T/mnt/f" && mkdir "$T/mnt/d" && mv "$T/mnt/f" "$T/mnt/d/g"'
        [ "$(nobody stat -c %u "$T/mnt/d/g")" = 65534 ]
        # Root itself is kept out without --allow-other.
        ! cat "$T/mnt/d/g" 2>/dev/null
        nobody pailfs status "$T/mnt" >/dev/null
        nobody pailfs umount "$T/mnt"
        ! mountpoint -q "$T/mnt"
        [ -d "$T/home/.local/state/pailfs" ]
        # By the tool that every user has.
        nobody pailfs mount "$SOURCE" "$T/mnt" --endpoint-url {url} --region {region}
        nobody fusermount3 -u "$T/mnt"
        # Others are let in where the machine's file says so.
        echo user_allow_other >"$T/fuse.conf"
        mount --bind "$T/fuse.conf" /etc/fuse.conf
        nobody pailfs mount "$SOURCE" "$T/mnt" --endpoint-url {url} --region {region} --allow-other
        cat "$T/mnt/d/g"
        nobody pailfs umount "$T/mnt"
        "#,
        url = at.url,
        region = at.region
    ));
    assert_eq!(block_on(system.place.get("d/g")).unwrap(), "data\n");
}

#[test]
fn a_line_of_fstab_lets_users_mount_and_mount_fuse3_mounts_for_one() {
    let Some(system) = System::new("a_line_of_fstab_lets_users_mount") else { return };
    let dir = system.dir.path().display();
    let table = fs::read_to_string("/etc/fstab").unwrap_or_default();
    let options = format!("{},state_dir={dir}/home/state", system.options());
    let line = format!("s3://{} {dir}/mnt pailfs noauto,user,{options} 0 0\n", system.place.bucket);
    // The one of the machine: users name no other.
    fs::write(system.at("etc/fstab"), table + "\n" + &line).unwrap();
    system.run_well(&format!(
        r#"{AS_NOBODY}
        chown 65534 "$T/env"
        nobody mount "$T/mnt"
        nobody sh -c 'echo data >"$T/mnt/f"'
        findmnt -n -o OPTIONS "$T/mnt" | grep -q noexec
        nobody umount "$T/mnt"
        mount -t fuse.pailfs -o "setuid=nobody,$OPTIONS,state_dir=$T/home/state" "$SOURCE" "$T/mnt"
        [ "$(nobody cat "$T/mnt/f")" = data ]
        # Root ends what belongs to another.
        umount "$T/mnt"
        "#
    ));
    assert_eq!(block_on(system.place.get("f")).unwrap(), "data\n");
}

#[test]
fn each_missing_piece_is_named() {
    let Some(system) = System::new("each_missing_piece_is_named") else { return };
    // (what is taken away, who mounts and with what, the code, a word of the message)
    let cases = [
        ("chmod 600 /dev/fuse", "nobody", "", 10, "chmod 666 /dev/fuse"),
        ("mount --bind /dev/null /usr/bin/fusermount3", "nobody", "", 10, "apt install fuse3"),
        (
            "cp /usr/bin/fusermount3 $T/plain; chmod 755 $T/plain; mount --bind $T/plain /usr/bin/fusermount3",
            "nobody",
            "",
            10,
            "not set-user-ID",
        ),
        ("", "nobody setpriv --no-new-privs", "", 10, "new privileges are forbidden"),
        (
            ": >$T/conf; mount --bind $T/conf /etc/fuse.conf",
            "nobody",
            "--allow-other",
            10,
            "user_allow_other in /etc/fuse.conf",
        ),
        ("chown 0:0 $T/mnt", "nobody", "", 9, "can write to"),
        ("chown 0:0 $T/mnt; chmod 1777 $T/mnt", "nobody", "", 9, "sticky"),
        ("", "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin", "", 10, "CAP_SYS_ADMIN"),
        (
            "mkdir $T/dev; mount -t tmpfs tmpfs $T/dev; mknod -m 666 $T/dev/null c 1 3; mount --bind $T/dev /dev",
            "",
            "",
            10,
            "there is no /dev/fuse",
        ),
        ("rmdir $T/mnt", "", "", 9, "No such file"),
        ("rmdir $T/mnt; touch $T/mnt", "", "", 9, "not a directory"),
    ];
    for (taken, who, more, code, word) in cases {
        let script = format!(
            "{AS_NOBODY}\n{taken}\n{who} pailfs mount \"$SOURCE\" \"$T/mnt\" --endpoint-url http://127.0.0.1:9 {more}"
        );
        let output = system.run(&script);
        assert_eq!(output.status.code(), Some(code), "{taken}; {who} {more}: {}", text(&output));
        assert!(text(&output).contains(word), "{taken}; {who} {more}: {}", text(&output));
        system.run_well("rm -rf $T/mnt $T/home $T/fuse $T/plain $T/conf; rm -rf $T/dev; mkdir -m 755 $T/mnt");
    }
    // Not a failure, but said.
    let said = system.run_well(
        r#"
        touch "$T/mnt/below"
        mount -t pailfs -o "$OPTIONS" "$SOURCE" "$T/mnt"
        [ ! -e "$T/mnt/below" ]
        umount "$T/mnt"
        "#,
    );
    assert!(said.contains("is not empty"), "{said}");
}

/// A mount in the foreground, which ends with the test however that goes.
struct Foreground {
    child: std::process::Child,
    dir: PathBuf,
}

impl Foreground {
    fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn ends_well(&mut self) {
        assert!(wait_for(SOON, || self.child.try_wait().unwrap().is_some()), "it does not end");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            let _ = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A mount that somebody else has made, for `pailfs mount SOURCE /dev/fd/N`.
struct Handed {
    dir: tempfile::TempDir,
    device: Option<fs::File>,
}

impl Handed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", device.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount(
            "somebody",
            dir.path(),
            "fuse.other",
            MountFlags::NODEV | MountFlags::NOSUID,
            Some(&*options),
        )
        .unwrap();
        // For the program that is started next.
        rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
        Self { dir, device: Some(device) }
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        drop(self.device.take());
        let _ = rustix::mount::unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn an_open_dev_fuse_that_was_handed_over_is_served() {
    let Some(place) = fresh_place(Server::Demo, "an_open_dev_fuse_that_was_handed_over") else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: an_open_dev_fuse_that_was_handed_over: not root");
        return;
    }
    block_on(place.put("f", "x")).unwrap();
    let at = endpoint(Server::Demo);
    let state = tempfile::tempdir().unwrap();
    let mut handed = Handed::new();
    let number = handed.device.as_ref().unwrap().as_raw_fd();
    let child = pailfs(&at)
        .args(["mount", &format!("s3://{}", place.bucket), &format!("/dev/fd/{number}")])
        .args(["--endpoint-url", &at.url, "--region", &at.region, "--foreground", "--state-dir"])
        .arg(state.path())
        .spawn()
        .unwrap();
    // Only the program has it now, so its end is the mount's.
    handed.device = None;
    let mut mount = Foreground { child, dir: PathBuf::new() };
    assert_eq!(fs::read(handed.dir.path().join("f")).unwrap(), b"x");
    fs::write(handed.dir.path().join("g"), b"written").unwrap();
    assert_eq!(block_on(place.get("g")).unwrap(), "written");
    let open = fs::File::create(handed.dir.path().join("h")).unwrap();
    std::io::Write::write_all(&mut &open, b"open").unwrap();
    mount.terminate();
    mount.ends_well();
    assert_eq!(block_on(place.get("h")).unwrap(), "open", "a signal saves");
    assert!(is_mounted(handed.dir.path()), "who mounted it unmounts it");
    // Another number, and none at all.
    for (fd, word) in [("/dev/fd/0", "not an open /dev/fuse"), ("/dev/fd/987", "no such descriptor")] {
        let output = pailfs(&at).args(["mount", "s3://b", fd]).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(10), "{}", text(&output));
        assert!(text(&output).contains(word), "{}", text(&output));
    }
}

#[test]
fn a_service_manager_hears_when_it_is_ready_and_what_is_left_at_the_end() {
    let Some(place) = fresh_place(Server::Demo, "a_service_manager_hears") else { return };
    let at = endpoint(Server::Demo);
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = dir.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let hear = || {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).expect("a word in time");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let child = pailfs(&at)
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .args(["mount", &format!("s3://{}", place.bucket)])
        .arg(&mountpoint)
        .args(["--endpoint-url", &at.url, "--region", &at.region, "--foreground", "--durability=journal"])
        .args(["--upload-delay=1h", "--state-dir"])
        .arg(dir.path().join("state"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut mount = Foreground { child, dir: mountpoint.clone() };
    let ready = hear();
    assert!(is_mounted(&mountpoint), "ready means mounted");
    assert!(ready.starts_with(&format!("READY=1\nMAINPID={}\nSTATUS=s3://", mount.child.id())), "{ready}");
    fs::write(mountpoint.join("f"), b"0123456789").unwrap();
    // So that saving takes long enough to be told of.
    let _slow = faults(Server::Demo, &format!("op=PutObject,bucket={},fault=latency:700ms", place.bucket));
    mount.terminate();
    assert_eq!(hear(), "STOPPING=1");
    let status = hear();
    assert!(status.starts_with("STATUS=saving 10 B in 1 file\nEXTEND_TIMEOUT_USEC="), "{status}");
    let mut last = hear();
    while !last.contains("all is saved") {
        last = hear();
    }
    mount.ends_well();
    assert_eq!(block_on(place.get("f")).unwrap(), "0123456789");
}

#[test]
fn a_manager_s_socket_without_a_directory_is_heard_of_too() {
    use std::os::linux::net::SocketAddrExt;
    let Some(place) = fresh_place(Server::Demo, "a_manager_s_socket_without_a_directory") else { return };
    let at = endpoint(Server::Demo);
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = dir.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let name = format!("pailfs-{}", place.bucket);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let manager = UnixDatagram::bind_addr(&address).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let child = pailfs(&at)
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .args(["mount", &format!("s3://{}", place.bucket)])
        .arg(&mountpoint)
        .args(["--endpoint-url", &at.url, "--region", &at.region, "--foreground", "--state-dir"])
        .arg(dir.path().join("state"))
        .spawn()
        .unwrap();
    let mut mount = Foreground { child, dir: mountpoint.clone() };
    let mut buffer = [0; 1024];
    let length = manager.recv(&mut buffer).unwrap();
    assert!(buffer[..length].starts_with(b"READY=1\nMAINPID="));
    let output = Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("umount").arg(&mountpoint).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    mount.ends_well();
}

#[test]
fn the_units_are_what_systemd_understands() {
    if !has("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package/systemd");
    for entry in fs::read_dir(units).unwrap() {
        let unit = entry.unwrap();
        // It looks whether the programs are there.
        let text =
            fs::read_to_string(unit.path()).unwrap().replace("/usr/bin/pailfs", env!("CARGO_BIN_EXE_pailfs"));
        fs::write(dir.path().join(unit.file_name()), text).unwrap();
    }
    fs::rename(dir.path().join("pailfs@.service"), dir.path().join("pailfs@data.service")).unwrap();
    for unit in ["pailfs@data.service", "mnt-bucket.mount", "mnt-bucket.automount"] {
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(dir.path().join(unit))
            .output()
            .unwrap();
        let said = text(&output);
        assert!(output.status.success() && !said.contains(unit), "{unit}: {said}");
    }
}

#[test]
fn the_example_for_kubernetes_is_yaml_and_its_flags_are_ours() {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package/kubernetes.yaml");
    if !Command::new("python3")
        .args(["-c", "import yaml"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
    {
        eprintln!("NOT RUN: the_example_for_kubernetes_is_yaml: no python3 with yaml");
        return;
    }
    let output = Command::new("python3").args(["-c", script]).arg(file).output().unwrap();
    let documents: serde_json::Value = serde_json::from_slice(&output.stdout).expect("YAML");
    assert_eq!(documents[0]["kind"], "Secret");
    let first = &documents[1]["spec"]["initContainers"];
    let (place, sidecar) = (&first[0], &first[1]);
    let directory = sidecar["args"].as_array().unwrap().last().unwrap();
    assert_eq!(
        place["command"].as_array().unwrap().last(),
        Some(directory),
        "a volume is empty in the beginning"
    );
    assert_eq!(sidecar["volumeMounts"][0]["mountPropagation"], "Bidirectional");
    let args: Vec<&str> =
        sidecar["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    // All of it is understood, up to the directory that is not here.
    let output = Command::new(env!("CARGO_BIN_EXE_pailfs")).args(&args).env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{args:?}: {}", text(&output));
}

fn has(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("NOT RUN: {program} is not there");
    }
    found
}

#[test]
fn completions_are_programs_of_their_shells() {
    let dir = tempfile::tempdir().unwrap();
    for (shell, check) in [
        ("bash", &["bash", "-n"][..]),
        ("zsh", &["zsh", "-n"]),
        ("fish", &["fish", "--no-execute"]),
        ("elvish", &[]),
        ("powershell", &[]),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_pailfs")).args(["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let words = String::from_utf8(output.stdout).unwrap();
        for word in ["umount", "endpoint-url", "cache-dir"] {
            assert!(words.contains(word), "{shell}: {word}");
        }
        assert!(!words.contains("background-child"), "{shell}");
        let file = dir.path().join(shell);
        fs::write(&file, words).unwrap();
        if let [program, args @ ..] = check
            && has(program)
        {
            let output = Command::new(program).args(args).arg(&file).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {}", text(&output));
        }
    }
    // What a person sees: the completion of `pailfs umo` is `umount`.
    let script = r#"source "$1"; COMP_WORDS=(pailfs umo); COMP_CWORD=1; _pailfs pailfs umo pailfs; echo "${COMPREPLY[*]}""#;
    let output =
        Command::new("bash").args(["-c", script, "bash"]).arg(dir.path().join("bash")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "umount", "{}", text(&output));
}

#[test]
fn manual_pages_are_written_without_a_warning_of_their_readers() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("man").arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let pages: Vec<PathBuf> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pages.iter().any(|page| page.ends_with("mount.pailfs.8")) && pages.len() > 8, "{pages:?}");
    let clean = |program: &str, args: &[&str], page: &Path| {
        let output = Command::new(program).args(args).arg(page).output().unwrap();
        assert!(
            output.stderr.is_empty() && output.status.success(),
            "{program} {}: {}",
            page.display(),
            text(&output)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for page in &pages {
        if has("groff") {
            clean("groff", &["-man", "-Tutf8", "-ww", "-z"], page);
        }
        if has("mandoc") {
            let output =
                Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(page).output().unwrap();
            // Pages have no date, because they are made anew with each version; and how clap_mangen sets lists of values
            // is no matter of ours.
            let known = ["cannot parse date", "skipping paragraph macro: br"];
            let said = text(&output);
            let said: Vec<&str> =
                said.lines().filter(|line| !known.iter().any(|known| line.contains(known))).collect();
            assert!(said.is_empty(), "{said:#?}");
        }
    }
    if has("man") {
        let page = clean("man", &["-l"], &dir.path().join("mount.pailfs.8"));
        assert!(page.contains("fstab") && page.contains("env_file"), "{page}");
    }
}
