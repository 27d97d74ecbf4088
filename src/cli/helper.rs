//! pailfs as mount(8) and umount(8) call it: from a line of /etc/fstab to `pailfs mount`, and from `umount DIR` to
//! `pailfs umount`.
//!
//! Three callers, one form (`SOURCE DIR [-sfnvrw] [-o OPTIONS]`): mount(8) starts `/sbin/mount.pailfs` for the type
//! `pailfs`; for the type `fuse.pailfs` it starts mount.fuse3, which starts `pailfs SOURCE DIR -o OPTIONS`; and umount(8)
//! starts `/sbin/umount.fuse.pailfs DIR [-flnrv]`.
//!
//! Guarantees: it returns when the directory is live, or fully saved and unmounted; the codes are those of mount(8). What
//! an option means is said by `options`, which flags there are by clap.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser};

use super::args::Cli;
use super::exit::{Code, Failure};
use super::options::{self, Flag};
use super::running::Unmounter;
use super::{background, machine, printable, running};

/// Flags of `pailfs mount` that say how a command behaves in front of a person.
const NOT_OPTIONS: &[&str] = &["foreground", "help", "version"];
/// Codes of mount(8).
const MOUNT_USAGE: u8 = 1;
const MOUNT_DEFECT: u8 = 4;
const MOUNT_FAILED: u8 = 32;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Mount,
    Umount,
}

impl Caller {
    /// `None` where a person types a command of ours.
    pub fn of(args: &[OsString]) -> Option<Self> {
        let program = Path::new(args.first()?).file_name()?.to_str()?;
        match program {
            "mount.pailfs" | "mount.fuse.pailfs" | "mount.fuse3.pailfs" => return Some(Self::Mount),
            "umount.pailfs" | "umount.fuse.pailfs" | "umount.fuse3.pailfs" => return Some(Self::Umount),
            _ => {}
        }
        // No command has such a name.
        let first = args.get(1)?.as_bytes();
        (first.starts_with(b"s3://") || first.starts_with(b"@")).then_some(Self::Mount)
    }

    /// Does what is asked. `args` begins with the name it was called by.
    pub fn run(self, args: &[OsString]) -> ExitCode {
        let outcome = match self {
            Self::Mount => mount(&args[1..]),
            Self::Umount => umount(&args[1..]),
        };
        let code = match outcome {
            Ok(()) => 0,
            Err(failure) => {
                eprintln!("pailfs: {}", printable::printable_lines(&failure.message));
                code_of(failure.code)
            }
        };
        code.into()
    }
}

/// What mount(8) has words for; the message tells the rest.
fn code_of(code: Code) -> u8 {
    match code {
        Code::Ok => 0,
        Code::Usage => MOUNT_USAGE,
        Code::Internal => MOUNT_DEFECT,
        _ => MOUNT_FAILED,
    }
}

fn mount(args: &[OsString]) -> Result<(), Failure> {
    let call = Call::parse(args, &["o", "t", "N", "O"]).map_err(usage)?;
    let [source, dir] = &call.words[..] else {
        return Err(usage("called like this: mount.pailfs SOURCE DIR [-sfnvrw] [-o OPTION,OPTION=VALUE]"));
    };
    let mut listed = options::split(&call.options()).map_err(usage)?;
    for (letter, name) in [(b'r', "ro"), (b'w', "rw")] {
        if call.has(letter) {
            listed.push(options::MountOption { name: name.to_owned(), value: None });
        }
    }
    let asked = options::translate(&listed, &flags()).map_err(usage)?;
    if let Some(unknown) = asked.unknown.first()
        && !call.has(b's')
    {
        return Err(usage(unknown));
    }
    let mut child: Vec<OsString> = vec!["mount".into()];
    child.extend(asked.flags);
    child.extend(["--".into(), source.clone(), dir.clone()]);
    // Said here, and not by a process in the background: the words are those of a wrong option.
    let typed = [&["pailfs".into()], &child[..]].concat();
    Cli::try_parse_from(typed).map_err(|error| usage(first_paragraph(&error.to_string())))?;
    let environment = environment(asked.env_file.as_deref())?;
    if call.has(b'v') {
        eprintln!("pailfs: {}", shown(&child));
    }
    if call.has(b'f') {
        return Ok(());
    }
    background::start(child, environment)
}

fn umount(args: &[OsString]) -> Result<(), Failure> {
    let call = Call::parse(args, &["t", "N", "O"]).map_err(usage)?;
    let [dir] = &call.words[..] else {
        return Err(usage("called like this: umount.fuse.pailfs DIR [-flnrv]"));
    };
    let dir = PathBuf::from(dir);
    if call.has(b'l') || call.has(b'f') {
        // Now, whatever is not saved: the mount's process goes on with that.
        return running::detach(&dir);
    }
    super::runtime()?.block_on(running::unmount(&dir, Unmounter::Caller))
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Code::Usage, message)
}

/// What clap says of a wrong value, without what it says of our command line.
fn first_paragraph(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or(text);
    let line: Vec<&str> = paragraph.lines().map(str::trim).collect();
    line.join(" ").trim_start_matches("error: ").to_owned()
}

fn shown(args: &[OsString]) -> String {
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    format!("pailfs {}", words.join(" "))
}

/// Every flag of `pailfs mount` that a table of mounts may hold.
pub fn flags() -> Vec<Flag> {
    let cli = Cli::command();
    let Some(mount) = cli.find_subcommand("mount") else { return Vec::new() };
    mount
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(|arg| Some((arg, arg.get_long()?)))
        .filter(|(_, name)| !NOT_OPTIONS.contains(name))
        .map(|(arg, name)| Flag {
            name: name.to_owned(),
            takes_value: arg.get_action().takes_values(),
            repeats: matches!(arg.get_action(), ArgAction::Append),
        })
        .collect()
}

/// What the process that stays gets beside the environment of its caller, which under systemd and at boot is bare: HOME, so
/// that `~/.aws` and `~/.config` are found, and the variables of `env_file`.
fn environment(file: Option<&Path>) -> Result<Vec<(OsString, OsString)>, Failure> {
    let mut variables = Vec::new();
    if std::env::var_os("HOME").is_none()
        && let Some(home) = machine::home_of_user(rustix::process::geteuid().as_raw())
    {
        variables.push(("HOME".into(), home.into()));
    }
    if let Some(file) = file {
        variables.extend(machine::read_env_file(file)?);
    }
    Ok(variables)
}

/// The words and letters of a call.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    words: Vec<OsString>,
    letters: Vec<u8>,
    /// The lists of options, in their order.
    lists: Vec<OsString>,
}

impl Call {
    /// Reads what follows the program's name. `valued` are the letters that have a value, which is kept for `-o` alone.
    fn parse(args: &[OsString], valued: &[&str]) -> Result<Self, String> {
        let mut call = Self::default();
        let mut left: VecDeque<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        while let Some(arg) = left.pop_front() {
            let bytes = arg.as_bytes();
            if bytes == b"--" {
                call.words.extend(left.drain(..).map(OsStr::to_owned));
            } else if bytes.len() < 2 || bytes[0] != b'-' {
                call.words.push(arg.to_owned());
            } else if bytes[1] == b'-' {
                return Err(format!(
                    "{arg:?} is no option of a mount helper; what pailfs can do is said by `pailfs help`"
                ));
            } else {
                call.read_letters(&bytes[1..], valued, &mut left)?;
            }
        }
        Ok(call)
    }

    fn read_letters(
        &mut self,
        letters: &[u8],
        valued: &[&str],
        left: &mut VecDeque<&OsStr>,
    ) -> Result<(), String> {
        for (at, letter) in letters.iter().enumerate() {
            if !valued.iter().any(|name| name.as_bytes() == [*letter]) {
                self.letters.push(*letter);
                continue;
            }
            let attached = &letters[at + 1..];
            let value = match attached.is_empty() {
                false => OsStr::from_bytes(attached),
                true => left.pop_front().ok_or_else(|| format!("-{} needs a value", char::from(*letter)))?,
            };
            if *letter == b'o' {
                self.lists.push(value.to_owned());
            }
            break;
        }
        Ok(())
    }

    fn has(&self, letter: u8) -> bool {
        self.letters.contains(&letter)
    }

    /// All lists of options as one.
    fn options(&self) -> Vec<u8> {
        let lists: Vec<Vec<u8>> = self.lists.iter().cloned().map(OsString::into_vec).collect();
        lists.join(&b',')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_caller_is_known_by_the_name_it_uses_or_by_the_source() {
        for (call, caller) in [
            ("/sbin/mount.pailfs s3://b /mnt", Some(Caller::Mount)),
            ("mount.fuse.pailfs", Some(Caller::Mount)),
            ("/usr/sbin/umount.fuse.pailfs /mnt", Some(Caller::Umount)),
            ("/usr/bin/pailfs s3://b /mnt -o ro", Some(Caller::Mount)),
            ("pailfs @data /mnt", Some(Caller::Mount)),
            ("pailfs mount s3://b /mnt", None),
            ("pailfs --help", None),
            ("pailfs", None),
        ] {
            assert_eq!(Caller::of(&words(call)), caller, "{call}");
        }
        assert_eq!(Caller::of(&[]), None);
    }

    #[test]
    fn a_call_is_read_as_mount_8_writes_it() {
        let call = |text: &str| Call::parse(&words(text), &["o", "t", "N"]).unwrap();
        let found = call("s3://b /mnt -sfnv -o rw,noatime -t fuse.pailfs");
        assert_eq!(found.words, ["s3://b", "/mnt"]);
        assert!(found.has(b's') && found.has(b'f') && found.has(b'v') && !found.has(b'r'));
        assert_eq!(found.options(), b"rw,noatime");
        assert_eq!(call("-oro -o uid=1 s3://b -- -dir").options(), b"ro,uid=1");
        assert_eq!(call("-oro s3://b -- -dir").words, ["s3://b", "-dir"]);
        assert_eq!(call("a -vo ro b"), call("a -v -o ro b"));
        assert!(Call::parse(&words("a b -o"), &["o"]).unwrap_err().contains("needs a value"));
        assert!(Call::parse(&words("a b --bind"), &["o"]).unwrap_err().contains("--bind"));
    }

    #[test]
    fn every_flag_of_mount_is_an_option_and_reads_as_one() {
        let flags = flags();
        for name in ["read-only", "allow-other", "noexec", "cache-dir", "tag", "session", "log-file", "uid"] {
            assert!(flags.iter().any(|flag| flag.name == name), "{name}");
        }
        assert!(!flags.iter().any(|flag| NOT_OPTIONS.contains(&flag.name.as_str())));
        assert!(flags.iter().filter(|flag| flag.repeats).map(|flag| flag.name.as_str()).eq(["tag"]));
        // None of them has a word of another meaning in its way.
        for flag in &flags {
            let name = flag.name.replace('-', "_");
            let value = flag.takes_value.then(|| "x".into());
            let asked = options::translate(&[options::MountOption { name, value }], &flags).unwrap();
            assert!(asked.flags.len() == 1 && asked.unknown.is_empty(), "{}: {asked:?}", flag.name);
        }
        // Each is known to clap with or without a value as this says.
        for flag in &flags {
            let value = if flag.takes_value { "=\u{0}" } else { "" };
            let typed =
                ["pailfs".into(), "mount".into(), format!("--{}{value}", flag.name), "s".into(), "d".into()];
            if let Err(error) = Cli::try_parse_from(typed) {
                use clap::error::ErrorKind::{InvalidValue, MissingRequiredArgument, ValueValidation};
                let fine = [InvalidValue, MissingRequiredArgument, ValueValidation];
                assert!(fine.contains(&error.kind()), "{}: {error}", flag.name);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_with_the_codes_of_mount_8() {
        let said = |call: &str| mount(&words(call)).unwrap_err();
        for (call, word) in [
            ("s3://b", "SOURCE DIR"),
            ("s3://b /mnt -o metadata_ttl=soon", "metadata-ttl"),
            ("s3://b /mnt -o alow_other", "allow_other meant"),
            ("s3://b /mnt -o foreground", "no option"),
            ("s3://b /mnt -o env_file=/nonexistent/file", "/nonexistent/file"),
        ] {
            let failure = said(call);
            assert!(failure.message.contains(word) && !failure.message.contains('\n'), "{}", failure.message);
        }
        assert_eq!(code_of(said("s3://b /mnt -o bad").code), MOUNT_USAGE);
        assert_eq!(code_of(Code::NoSuchBucket), MOUNT_FAILED);
        // Sloppy and fake: nothing is looked at but the options.
        mount(&words("s3://b /nonexistent -s -f -o bad,ro")).unwrap();
    }

    proptest! {
        #[test]
        fn no_call_makes_it_panic(args in proptest::collection::vec(proptest::collection::vec(1..=255_u8, 0..12), 0..8)) {
            let args: Vec<OsString> = args.into_iter().map(OsString::from_vec).collect();
            let _ = Caller::of(&args);
            if let Ok(call) = Call::parse(&args, &["o", "t"]) {
                let _ = options::split(&call.options()).map(|listed| options::translate(&listed, &flags()));
            }
        }
    }
}
