//! What the program finds on the machine it runs on: directories, memory, the configuration file.
//!
//! The only place of `cli` that reads the environment. Secrets of the environment are not read here: the AWS
//! chain reads them itself.

use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::exit::{Code, Failure};
use crate::config::ConfigFile;

/// A configuration file is small; more is a mistake.
const CONFIG_MAX_BYTES: u64 = 1 << 20;

/// Where the configuration is looked for when none is named.
pub fn default_config_path() -> Option<PathBuf> {
    let base = absolute_var("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")))?;
    Some(base.join("pailfs/config.toml"))
}

/// Reads the named configuration file, or the default one if there is one. With it come warnings about it.
pub fn load_config(named: Option<&Path>) -> Result<(ConfigFile, Vec<String>), Failure> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => match default_config_path() {
            Some(path) => path,
            None => return Ok(Default::default()),
        },
    };
    let failed = |what: String| Failure::new(Code::Config, format!("{}: {what}", path.display()));
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Ok(Default::default());
        }
        Err(error) => return Err(failed(error.to_string())),
    };
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
    let base = std::path::absolute(&path).map_err(|error| failed(error.to_string()))?;
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
/// the session's keys, and bytes of whoever else uses the mount. A limit of the image's length would not do: a machine
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
    } else if uid == rustix::process::geteuid().as_raw() {
        dirs.extend(absolute_var("XDG_RUNTIME_DIR").map(|dir| dir.join("pailfs")));
    } else {
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
