//! What the program finds on the machine it runs on: directories, memory, the configuration file.
//!
//! The only place of `cli` that reads the environment. Secrets of the environment are not read here: the AWS
//! chain reads them itself.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::exit::{Code, Failure};
use super::notify::Notifier;
use crate::config::ConfigFile;

/// A configuration file is small; more is a mistake.
const CONFIG_MAX_BYTES: u64 = 1 << 20;

/// The configuration of the machine, for users without one of their own.
const SYSTEM_CONFIG: &str = "/etc/pailfs/config.toml";

/// Where the configuration is looked for when none is named: the first that is there counts.
fn default_config_paths() -> Vec<PathBuf> {
    let base = absolute_var("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")));
    base.map(|base| base.join("pailfs/config.toml")).into_iter().chain([SYSTEM_CONFIG.into()]).collect()
}

/// Where a path leads that may be typed from the working directory.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Code::Usage, format!("{}: {error}", path.display())))
}

/// Reads the named configuration file, or the default one if there is one. With it come warnings about it.
pub fn load_config(named: Option<&Path>) -> Result<(ConfigFile, Vec<String>), Failure> {
    if let Some(path) = named {
        let file = File::open(path).map_err(|error| unread(path, error.to_string()))?;
        return read_config(path, file);
    }
    for path in default_config_paths() {
        match File::open(&path) {
            Ok(file) => return read_config(&path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // What the machine's holds may be root's alone, and then it is not for others.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied && path == Path::new(SYSTEM_CONFIG) => {}
            Err(error) => return Err(unread(&path, error.to_string())),
        }
    }
    Ok(Default::default())
}

fn unread(path: &Path, what: String) -> Failure {
    Failure::new(Code::Config, format!("{}: {what}", path.display()))
}

fn read_config(path: &Path, mut file: File) -> Result<(ConfigFile, Vec<String>), Failure> {
    let failed = |what: String| unread(path, what);
    let metadata = file.metadata().map_err(|error| failed(error.to_string()))?;
    let me = rustix::process::geteuid().as_raw();
    let access = Access { mode: metadata.mode(), owner: metadata.uid(), me };
    access.check_writers().map_err(failed)?;
    let mut text = String::new();
    let read = file.by_ref().take(CONFIG_MAX_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > CONFIG_MAX_BYTES {
        return Err(failed("larger than any configuration".to_owned()));
    }
    let mut config = ConfigFile::parse(&text).map_err(|error| failed(error.message().to_owned()))?;
    let base = std::path::absolute(path).map_err(|error| failed(error.to_string()))?;
    for session in config.sessions.values_mut() {
        // Relative to the file, because a mount leaves the directory it was started in.
        let dir = base.with_file_name("");
        session.ca_bundle = session.ca_bundle.take().map(|bundle| dir.join(bundle));
        session.sse_customer_key = session.sse_customer_key.take().map(|place| place.below(&dir));
    }
    let mut warnings = Vec::new();
    if config.holds_secrets() && access.has_readers() {
        warnings.push(format!("{0} holds secrets that others can read: chmod 600 {0}", path.display()));
    }
    Ok((config, warnings))
}

/// Reads a file of environment variables, `NAME=VALUE` a line as in systemd's `EnvironmentFile=`: empty lines and those
/// that begin with `#` or `;` say nothing, and quotes around a value are not a part of it. It may hold secrets.
pub fn read_env_file(path: &Path) -> Result<Vec<(OsString, OsString)>, Failure> {
    let failed = |what: String| unread(path, what);
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| failed(error.to_string()))?;
    let me = rustix::process::geteuid().as_raw();
    let access = Access { mode: metadata.mode(), owner: metadata.uid(), me };
    access.check_writers().map_err(failed)?;
    if access.has_readers() {
        eprintln!("pailfs: warning: others can read {0}: chmod 600 {0}", path.display());
    }
    let mut text = String::new();
    file.take(CONFIG_MAX_BYTES).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    // The line's number and not the line, which may hold a secret.
    parse_env(&text).map_err(|line| failed(format!("line {line} is not NAME=VALUE")))
}

/// The variables of a file, or the number of the first line that is none.
fn parse_env(text: &str) -> Result<Vec<(OsString, OsString)>, usize> {
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or(index + 1)?;
        let named = name
            .chars()
            .enumerate()
            .all(|(at, c)| c == '_' || c.is_ascii_alphabetic() || at > 0 && c.is_ascii_digit());
        if name.is_empty() || !named || value.contains('\0') {
            return Err(index + 1);
        }
        let bare = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        variables.push((name.into(), bare.unwrap_or(value).into()));
    }
    Ok(variables)
}

/// The home directory that the machine's table of users names.
pub fn home_of_user(uid: u32) -> Option<PathBuf> {
    home_in(&std::fs::read_to_string("/etc/passwd").unwrap_or_default(), uid)
        .or_else(|| (uid == 0).then(|| "/root".into()))
}

fn home_in(table: &str, uid: u32) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = fields.get(5).map(PathBuf::from).filter(|home| home.is_absolute());
        home.filter(|_| fields[2].parse() == Ok(uid))
    })
}

/// A program by its name, where PATH and the usual directories have it.
pub fn find_program(name: &OsStr) -> Option<(PathBuf, std::fs::Metadata)> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(usual).find_map(|dir| {
        let program = dir.join(name);
        let metadata =
            std::fs::metadata(&program).ok().filter(|found| found.is_file() && found.mode() & 0o111 != 0)?;
        Some((program, metadata))
    })
}

/// Whoever started us as a service and waits for word.
pub fn notifier() -> Notifier {
    Notifier::to(env::var_os("NOTIFY_SOCKET").as_deref())
}

/// Who may do what with a file.
#[derive(Clone, Copy)]
struct Access {
    mode: u32,
    owner: u32,
    me: u32,
}

impl Access {
    /// Whoever can write the configuration decides where our data goes.
    fn check_writers(self) -> Result<(), String> {
        if self.owner != self.me && self.owner != 0 {
            return Err(format!(
                "belongs to user {}, who could change where data goes; not read",
                self.owner
            ));
        }
        if self.mode & 0o022 != 0 {
            return Err(
                "others can write it, and so decide where data goes; not read (chmod go-w)".to_owned()
            );
        }
        Ok(())
    }

    fn has_readers(self) -> bool {
        self.mode & 0o044 != 0
    }
}

/// A process that crashes leaves no image of its memory, and other processes of its user do not look into it: there are
/// a session's keys, and bytes of whoever else uses the mount. A limit of the image's length would not do: a machine
/// that collects images by a program of its own may pay no heed to it. A crash is told by the log; a debugger of root's is still let in.
pub fn keep_no_core() {
    let none = rustix::process::DumpableBehavior::NotDumpable;
    if let Err(error) = rustix::process::set_dumpable_behavior(none) {
        tracing::debug!(%error, "a crash would leave an image of the memory");
    }
}

/// Where written bytes wait for their upload when no directory is named.
pub fn default_state_dir() -> Result<PathBuf, Failure> {
    if let Some(base) = absolute_var("XDG_STATE_HOME") {
        return Ok(base.join("pailfs"));
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/pailfs".into());
    }
    match home() {
        Some(home) => Ok(home.join(".local/state/pailfs")),
        None => {
            Err(Failure::new(Code::Usage, "there is no HOME to keep state in; name one with --state-dir"))
        }
    }
}

/// Where control sockets of a user's mounts may lie, best first.
pub fn runtime_dirs(uid: u32) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if uid == 0 {
        dirs.push("/run/pailfs".into());
    } else {
        if uid == rustix::process::geteuid().as_raw() {
            dirs.extend(absolute_var("XDG_RUNTIME_DIR").map(|dir| dir.join("pailfs")));
        }
        // What the variable names on most machines. What lies in /tmp may be somebody else's by now, who cannot be here.
        dirs.push(PathBuf::from(format!("/run/user/{uid}/pailfs")));
    }
    dirs.push(PathBuf::from(format!("/tmp/pailfs-{uid}")));
    dirs
}

/// Where the AWS tools keep their profiles.
pub fn profile_files() -> Vec<PathBuf> {
    let named = |variable, default: &str| {
        env::var_os(variable).map(PathBuf::from).or_else(|| Some(home()?.join(default)))
    };
    [named("AWS_CONFIG_FILE", ".aws/config"), named("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")]
        .into_iter()
        .flatten()
        .collect()
}

/// Memory this process may use, in bytes: the machine's, or less where a control group says so.
pub fn available_memory() -> u64 {
    let machine = rustix::system::sysinfo();
    let total = machine.totalram.saturating_mul(u64::from(machine.mem_unit.max(1)));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    memory_limit_files(&groups)
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        // "max" is no number, and means no limit.
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .fold(total, u64::min)
}

/// Size in bytes of the file system that a directory is on, or will be on once it is made.
pub fn disk_bytes(dir: &Path) -> u64 {
    let existing = dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
    existing.map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// The files that may limit a member of these control groups: its own and those of every group around it.
fn memory_limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        for ancestor in Path::new(group.trim_start_matches('/')).ancestors() {
            files.push(Path::new(root).join(ancestor).join(name));
        }
    }
    files
}

fn home() -> Option<PathBuf> {
    absolute_var("HOME")
}

/// A relative path in these variables is to be ignored, says the XDG specification.
fn absolute_var(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_limit_is_looked_for_in_every_enclosing_group() {
        assert_eq!(
            memory_limit_files("0::/user.slice/app\n"),
            [
                "/sys/fs/cgroup/user.slice/app/memory.max",
                "/sys/fs/cgroup/user.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
            .map(PathBuf::from)
        );
        assert_eq!(
            memory_limit_files("5:cpu,memory:/a\n3:cpu:/b\n"),
            ["/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
                .map(PathBuf::from)
        );
        assert!(available_memory() > 0);
        assert_eq!(disk_bytes(Path::new("/tmp/not/there/yet")), disk_bytes(Path::new("/tmp")));
        assert!(disk_bytes(Path::new("/")) > 0);
    }

    #[test]
    fn a_file_of_variables_is_read_as_systemd_reads_it() {
        let text = "# keys\n\n; too\nA=1\n export B_2 = no\n";
        assert_eq!(parse_env(text), Err(5), "a name has no spaces");
        let text = "A=1\nexport AWS_SECRET_ACCESS_KEY=\"x=y z\"\n_E=\nQ='a\"b'\n  C=it's  \n";
        let expected =
            [("A", "1"), ("AWS_SECRET_ACCESS_KEY", "x=y z"), ("_E", ""), ("Q", "a\"b"), ("C", "it's")];
        assert_eq!(parse_env(text).unwrap(), expected.map(|(name, value)| (name.into(), value.into())));
        for bad in ["hush", "1A=x", "=x", "A-B=x"] {
            assert_eq!(parse_env(&format!("A=1\n{bad}")), Err(2), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "A=1\nhush\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let message = read_env_file(&path).unwrap_err().message;
        assert!(message.ends_with("line 2 is not NAME=VALUE") && !message.contains("hush"), "{message}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).unwrap();
        assert!(read_env_file(&path).unwrap_err().message.contains("others can write"));
    }

    #[test]
    fn a_directory_that_anybody_may_have_made_is_the_last_resort() {
        for (uid, first) in [(0, "/run/pailfs"), (1000, "/run/user/1000/pailfs")] {
            let dirs = runtime_dirs(uid);
            assert!(dirs.contains(&first.into()), "{dirs:?}");
            assert_eq!(dirs.last(), Some(&format!("/tmp/pailfs-{uid}").into()));
        }
    }

    #[test]
    fn a_user_s_home_is_in_the_table_of_users() {
        let table = "root:x:0:0:root:/root:/bin/sh\nodd\nx:x:7:7::relative:/bin/sh\nann:x:1000:1000:,,,:/home/ann:/bin/sh\n";
        assert_eq!(home_in(table, 1000), Some("/home/ann".into()));
        assert_eq!(home_in(table, 0), Some("/root".into()));
        assert_eq!(home_in(table, 7), None);
        assert_eq!(home_in(table, 8), None);
    }

    #[test]
    fn a_configuration_that_others_can_write_is_refused_and_one_they_can_read_is_warned_about() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let text =
            "[session.a]\naccess_key_id = \"x\"\nsecret_access_key = \"hush\"\nca_bundle = \"ca.pem\"\n";
        std::fs::write(&path, text).unwrap();
        let load = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            load_config(Some(&path))
        };
        let (config, warnings) = load(0o600).unwrap();
        assert!(warnings.is_empty());
        assert_eq!(config.sessions["a"].ca_bundle, Some(dir.path().join("ca.pem")));
        let warnings = load(0o644).unwrap().1;
        assert!(warnings[0].contains("chmod 600") && !warnings[0].contains("hush"), "{warnings:?}");
        for mode in [0o620, 0o602] {
            let failure = load(mode).unwrap_err();
            assert_eq!(failure.code, Code::Config);
            assert!(failure.message.contains("others can write"), "{}", failure.message);
        }
        let failure = load_config(Some(&dir.path().join("absent"))).unwrap_err();
        assert_eq!(failure.code, Code::Config);
        assert!(!Access { mode: 0o644, owner: 7, me: 8 }.check_writers().unwrap_err().is_empty());
    }
}
