//! The command line: every flag, its meaning and its parser. Nothing is decided here.
//!
//! No flag takes a secret: a command line can be read by every user of the machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::base::{
    Durability, Exclusive, OnConflict, Passthrough, PosixMode, Sse, StagingPlace, parse_bytes, parse_duration,
};
use crate::config::{DEFAULT_SESSION, ObjectSettings};
use crate::demo::Synthetic;
use crate::s3::{KeyPlace, PathStyle, SessionConfig, check_endpoint};

/// Between two looks at a status.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Mounts S3 buckets as directories.
#[derive(Debug, Parser)]
#[command(name = "pailfs", version, max_term_width = 100)]
#[command(after_help = "Exit codes are listed in docs/EXIT-CODES.md. Try `pailfs demo --mount`.")]
pub struct Cli {
    /// This process is the one that stays: tell the other on standard output how it went.
    #[arg(long, hide = true)]
    pub background_child: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount a bucket, all buckets, or a set of buckets from the configuration.
    Mount(Box<MountArgs>),
    /// Unmount a directory once everything written to it is in S3.
    #[command(alias = "unmount")]
    Umount(UmountArgs),
    /// Show what a mount has done and what it has yet to save.
    Status(StatusArgs),
    /// Wait until everything written to a mount is in S3.
    Flush(FlushArgs),
    /// Show how much a mount logs, or change it while the mount is live.
    LogLevel(LogLevelArgs),
    /// Show what mounts that have ended still owe S3; with a source, save it.
    Recover(Box<RecoverArgs>),
    /// List the sessions there are and where each of their values comes from.
    Sessions(SessionsArgs),
    /// Run an S3 server of our own, to try pailfs without an account.
    Demo(Box<DemoArgs>),
    /// Print what completes commands and flags in a shell.
    Completions(CompletionsArgs),
    /// Write the manual pages.
    #[command(hide = true)]
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub struct MountArgs {
    /// s3://BUCKET[/PREFIX], s3:// for every bucket of the session, or @NAME from the configuration
    pub source: String,
    /// The directory to mount it on, or /dev/fd/N: an open /dev/fuse that somebody else has mounted
    pub dir: PathBuf,
    #[command(flatten)]
    pub config: ConfigArg,
    /// Stay in the foreground
    #[arg(long, short)]
    pub foreground: bool,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    #[command(flatten)]
    pub look: LookArgs,
    /// How long any operation may go without progress before it fails: an answer of S3, or bytes taken by
    /// the network
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Memory for blocks, read-ahead, uploads, names and listings [default: a quarter of what this machine or its
    /// control group has, 64M to 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory_limit: Option<u64>,
    /// Directory for what has to outlive the mount: bytes that wait for their upload, and the journal that says what they
    /// are [default: ~/.local/state/pailfs, or /var/lib/pailfs for root]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What close() waits for
    #[arg(long, value_enum, value_name = "WHERE", default_value = "close")]
    pub durability: Durability,
    /// How long a closed file waits for its upload with --durability=journal
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub upload_delay: Duration,
    /// Where written bytes wait for their upload
    #[arg(long, value_enum, value_name = "WHERE", default_value = "disk")]
    pub staging: StagingPlace,
    /// How far owners, permissions, times, symbolic links and the like are kept in S3
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    pub posix: PosixMode,
    /// Among whom O_EXCL decides who makes a file
    #[arg(long, value_enum, value_name = "WHOM", default_value = "everywhere")]
    pub exclusive: Exclusive,
    /// What becomes of a save when another client changed the object first
    #[arg(long, value_enum, value_name = "WHAT", default_value = "keep-both")]
    pub on_conflict: OnConflict,
    /// Of that directory's file system, this much is left to others [default: a twentieth, 16M to 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub state_reserve: Option<u64>,
    /// Serve metrics for Prometheus at http://ADDRESS:PORT/metrics, to whoever can reach it; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub objects: ObjectArgs,
    // Headings hold for whatever follows, so these come last.
    #[command(flatten)]
    pub session: SessionArgs,
    #[command(flatten)]
    pub log: LogArgs,
    /// Write a line about every operation to this file: time, operation, result, latency, bytes, path
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    pub trace_ops: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Save what mounts of this source owe: s3://BUCKET[/PREFIX], s3://, or @NAME, as it was mounted. Without it, what is
    /// owed is listed
    pub source: Option<String>,
    #[command(flatten)]
    pub config: ConfigArg,
    /// Where written bytes wait for their upload [default: ~/.local/state/pailfs, or /var/lib/pailfs for root]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How long any operation may go without progress before it fails
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub objects: ObjectArgs,
    #[command(flatten)]
    pub session: SessionArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Blocks on a local disk.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// Keep blocks that were read in this directory, for later mounts and for others of this host
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The most that the cache directory holds [default: a tenth of its file system, at most 10G]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "cache_dir")]
    pub cache_size: Option<u64>,
    /// Whether the kernel may read files that are whole in the cache directory by itself
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub passthrough: Passthrough,
}

/// What S3 is told beside the bytes of new objects.
#[derive(Debug, Args)]
#[command(next_help_heading = "New objects")]
pub struct ObjectArgs {
    /// Storage class of files that are made here, such as STANDARD_IA
    #[arg(long, value_name = "CLASS")]
    pub storage_class: Option<String>,
    /// Encryption of what is written here
    #[arg(long, value_enum, value_name = "HOW")]
    pub sse: Option<Sse>,
    /// The KMS key to encrypt with [default: the account's own for S3]
    #[arg(long, value_name = "ID", requires = "sse")]
    pub sse_kms_key_id: Option<String>,
    /// Ask KMS for one key for the bucket in place of one for each object
    #[arg(long, requires = "sse")]
    pub sse_bucket_key: bool,
    /// Canned ACL of what is written here, such as bucket-owner-full-control
    #[arg(long, value_name = "NAME")]
    pub acl: Option<String>,
    /// Tag of files that are made here; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    pub tag: Vec<(String, String)>,
}

impl ObjectArgs {
    /// What was typed.
    pub fn settings(&self) -> ObjectSettings {
        ObjectSettings {
            storage_class: self.storage_class.clone(),
            sse: self.sse,
            sse_kms_key_id: self.sse_kms_key_id.clone(),
            sse_bucket_key: self.sse_bucket_key.then_some(true),
            acl: self.acl.clone(),
            tags: self.tag.iter().cloned().collect(),
        }
    }
}

/// What files and directories look like.
#[derive(Debug, Args)]
pub struct LookArgs {
    /// Owner of all files [default: who mounts]
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group of all files [default: of who mounts]
    #[arg(long)]
    pub gid: Option<u32>,
    /// Permissions of files that say nothing else
    #[arg(long, value_name = "OCTAL", default_value = "644", value_parser = parse_mode)]
    pub file_mode: u16,
    /// Permissions of directories that say nothing else
    #[arg(long, value_name = "OCTAL", default_value = "755", value_parser = parse_mode)]
    pub dir_mode: u16,
    /// Permissions that nobody has of what says nothing else: they are taken from --file-mode and --dir-mode
    #[arg(long, value_name = "OCTAL", default_value = "0", value_parser = parse_mode)]
    pub umask: u16,
    /// Let other users in (needs root, or user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    pub allow_other: bool,
    /// Let nobody run programs that lie in the mount
    #[arg(long)]
    pub noexec: bool,
    /// How long stat and readdir may answer from memory, and a listing is enough to open a file for reading; 0 always
    /// asks S3
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub metadata_ttl: Duration,
    /// How long an absent name is believed to be absent
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub negative_ttl: Duration,
}

/// Which identity and endpoint. Keys come from the environment, a profile or the configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Session")]
pub struct SessionArgs {
    /// A session of the configuration [default: default]
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// A profile of ~/.aws/config and ~/.aws/credentials
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// The region to ask first; a bucket's own region is found out
    #[arg(long)]
    pub region: Option<String>,
    /// Another S3 server than Amazon's
    #[arg(long, value_name = "URL", value_parser = parse_endpoint)]
    pub endpoint_url: Option<String>,
    /// Ask anonymously
    #[arg(long)]
    pub no_sign_request: bool,
    /// Agree to pay for requests to requester-pays buckets
    #[arg(long)]
    pub requester_pays: bool,
    /// Certificates to trust, a PEM file
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// Whether the bucket's name goes into the path instead of the host name
    #[arg(long, value_enum, value_name = "WHEN")]
    pub path_style: Option<PathStyleArg>,
    /// Where the key is that objects are encrypted and read with (SSE-C): file:PATH or env:NAME
    // Not parsed by clap, whose errors would repeat what was typed.
    #[arg(long, value_name = "WHERE")]
    pub sse_customer_key: Option<String>,
}

impl SessionArgs {
    pub fn name(&self) -> &str {
        self.session.as_deref().unwrap_or(DEFAULT_SESSION)
    }

    /// What was typed, to be laid over what the configuration says.
    pub fn settings(&self) -> Result<SessionConfig, String> {
        let sse_customer_key = self.sse_customer_key.as_deref().map(KeyPlace::parse).transpose();
        Ok(SessionConfig {
            profile: self.profile.clone(),
            region: self.region.clone(),
            endpoint_url: self.endpoint_url.clone(),
            no_sign_request: self.no_sign_request.then_some(true),
            requester_pays: self.requester_pays.then_some(true),
            ca_bundle: self.ca_bundle.clone(),
            path_style: self.path_style.map(PathStyleArg::into),
            sse_customer_key: sse_customer_key.map_err(|error| format!("--sse-customer-key: {error}"))?,
            ..SessionConfig::default()
        })
    }

    /// Whether nothing was typed.
    pub fn is_empty(&self) -> bool {
        self.session.is_none() && self.settings() == Ok(SessionConfig::default())
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PathStyleArg {
    Auto,
    On,
    Off,
}

impl From<PathStyleArg> for PathStyle {
    fn from(arg: PathStyleArg) -> Self {
        match arg {
            PathStyleArg::Auto => Self::Auto,
            PathStyleArg::On => Self::On,
            PathStyleArg::Off => Self::Off,
        }
    }
}

#[derive(Debug, Args)]
pub struct ConfigArg {
    /// The configuration file [default: ~/.config/pailfs/config.toml, else /etc/pailfs/config.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Append the log to this file: the same as --log-to=file:FILE
    #[arg(long, value_name = "FILE", conflicts_with = "log_to")]
    pub log_file: Option<PathBuf>,
    /// Where the log goes: stderr, file:FILE, syslog, journald, or none; syslog:SOCKET and journald:SOCKET name another
    /// socket than the usual one [default: stderr in the foreground; in the background journald or syslog, if there is one]
    #[arg(long, value_name = "WHERE", value_parser = parse_log_to)]
    pub log_to: Option<LogTo>,
    /// off, error, warn, info, debug, trace, or a filter such as pailfs=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// How a line of the log looks
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where the log goes. A socket without a path is the usual one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTo {
    Stderr,
    File(PathBuf),
    Syslog(PathBuf),
    Journald(PathBuf),
    Nowhere,
}

#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The mounted directory
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The mounted directory
    pub dir: PathBuf,
    /// Print JSON; with --watch, an object on each line
    #[arg(long)]
    pub json: bool,
    /// Print metrics in the text format of Prometheus
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
    /// Look again and again, until Ctrl-C or the end of the mount
    #[arg(long, value_name = "EVERY", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "1s", value_parser = parse_pause, conflicts_with = "prometheus")]
    pub watch: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct FlushArgs {
    /// The mounted directory
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// The mounted directory
    pub dir: PathBuf,
    /// From now on: off, error, warn, info, debug, trace, or a filter such as pailfs=debug; without it, the present one is
    /// shown
    #[arg(value_name = "LEVEL")]
    pub level: Option<String>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SessionsArgs {
    #[command(subcommand)]
    pub command: Option<SessionsCommand>,
    #[command(flatten)]
    pub config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum SessionsCommand {
    /// Ask the server who the caller is, where a bucket is, and what the endpoint can really do.
    ///
    /// With a bucket, the check writes a few small objects under a scratch name and removes them again.
    Check(Box<CheckArgs>),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A session's name, an s3://BUCKET[/PREFIX], or both
    #[arg(num_args = 0..=2, value_name = "NAME|s3://BUCKET")]
    pub what: Vec<String>,
    #[command(flatten)]
    pub config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub session: SessionArgs,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Whose words to print
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory to write them to; without it, the first page is printed
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The loopback address to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub listen: String,
    /// Keep the objects in this directory, so that the next demo finds them again
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A bucket to have from the start
    #[arg(long, value_name = "NAME", default_value = "demo")]
    pub bucket: Vec<String>,
    /// Misbehave by a rule; may be given more than once
    #[arg(long, value_name = "RULE")]
    pub fault: Vec<String>,
    /// Makes the faults that happen by chance repeatable
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fault_seed: u64,
    /// One more bucket, named synthetic: so many directories of so many files, made up when they are asked for
    #[arg(long, value_name = "DIRSxFILES[xSIZE]")]
    pub synthetic: Option<Synthetic>,
    /// Mount the bucket too, on a fresh directory or on DIR, and show what to try
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    pub mount: Option<Option<PathBuf>>,
    /// End when standard input does, so that no server outlives the test that started it
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
    #[command(flatten)]
    pub log: LogArgs,
}

fn parse_mode(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u16::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("{text:?} is not a mode; write it like 644")),
    }
}

/// Between two looks. Without a pause nobody could read what is shown.
fn parse_pause(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        pause if pause < PAUSE_MIN => Err(format!("{text} is too short; write it like 1s")),
        pause => Ok(pause),
    }
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a tag is written like team=blue".to_owned()),
    }
}

fn parse_log_to(text: &str) -> Result<LogTo, String> {
    let (word, path) = match text.split_once(':') {
        Some((_, "")) => return Err(format!("{text:?} names no path after the colon")),
        Some((word, path)) => (word, PathBuf::from(path)),
        None => (text, PathBuf::new()),
    };
    match (word, text.contains(':')) {
        ("stderr", false) => Ok(LogTo::Stderr),
        ("none", false) => Ok(LogTo::Nowhere),
        ("file", true) => Ok(LogTo::File(path)),
        ("syslog", _) => Ok(LogTo::Syslog(path)),
        ("journald", _) => Ok(LogTo::Journald(path)),
        _ => Err("it is stderr, file:FILE, syslog, journald or none".to_owned()),
    }
}

fn parse_endpoint(text: &str) -> Result<String, String> {
    check_endpoint(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mount_reads_its_flags() {
        let cli = Cli::try_parse_from([
            "pailfs",
            "mount",
            "s3://b/p",
            "/mnt",
            "-f",
            "--file-mode=0600",
            "--timeout=5s",
            "--memory-limit=128M",
            "--path-style=on",
            "--no-sign-request",
            "--cache-dir=/c",
            "--cache-size=1G",
            "--state-reserve=2G",
            "--durability=journal",
            "--upload-delay=250ms",
            "--exclusive=mount",
            "--on-conflict=overwrite",
            "--metrics-listen=127.0.0.1:0",
        ])
        .unwrap();
        let Command::Mount(mount) = cli.command else { panic!("not a mount: {cli:?}") };
        assert!(mount.foreground && !cli.background_child);
        assert_eq!((mount.look.file_mode, mount.look.dir_mode), (0o600, 0o755));
        assert_eq!(mount.timeout, Duration::from_secs(5));
        assert_eq!(mount.memory_limit, Some(128 << 20));
        assert_eq!(mount.cache.cache_dir.as_deref(), Some(std::path::Path::new("/c")));
        assert_eq!(mount.cache.cache_size, Some(1 << 30));
        assert_eq!(mount.state_reserve, Some(2 << 30));
        assert_eq!(mount.durability, Durability::Journal);
        assert_eq!(mount.upload_delay, Duration::from_millis(250));
        assert_eq!(mount.exclusive, Exclusive::Mount);
        assert_eq!(mount.on_conflict, OnConflict::Overwrite);
        assert_eq!(mount.metrics_listen, Some(([127, 0, 0, 1], 0).into()));
        assert_eq!(mount.cache.passthrough, Passthrough::ReadOnly);
        let settings = mount.session.settings().unwrap();
        assert_eq!(settings.path_style, Some(PathStyle::On));
        assert_eq!((settings.no_sign_request, settings.requester_pays), (Some(true), None));
        assert_eq!(mount.session.name(), DEFAULT_SESSION);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for args in [
            &["mount", "s3://b"][..],
            &["mount", "s3://b", "/mnt", "--file-mode=888"],
            &["mount", "s3://b", "/mnt", "--file-mode=7777"],
            &["mount", "s3://b", "/mnt", "--timeout=soon"],
            &["mount", "s3://b", "/mnt", "--endpoint-url=ftp://x"],
            &["mount", "s3://b", "/mnt", "--endpoint-url=http://user:secret@x"],
            &["mount", "s3://b", "/mnt", "--secret-access-key=x"],
            &["sessions", "check", "a", "s3://b", "c"],
            &["mount", "s3://b", "/mnt", "--cache-size=1G"],
            &["mount", "s3://b", "/mnt", "--passthrough=maybe"],
            &["mount", "s3://b", "/mnt", "--log-to=file"],
            &["mount", "s3://b", "/mnt", "--log-to=syslog:"],
            &["mount", "s3://b", "/mnt", "--log-to=stderr:x"],
            &["mount", "s3://b", "/mnt", "--log-to=elsewhere"],
            &["mount", "s3://b", "/mnt", "--log-to=none", "--log-file=f"],
            &["mount", "s3://b", "/mnt", "--durability=never"],
            &["mount", "s3://b", "/mnt", "--metrics-listen=9100"],
            &["status", "/mnt", "--json", "--prometheus"],
            &["status", "/mnt", "--watch=0"],
            &["umount"],
            &[],
        ] {
            assert!(Cli::try_parse_from([&["pailfs"], args].concat()).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_status_is_watched_every_second_or_as_often_as_is_said() {
        let status = |args: &[&str]| match Cli::try_parse_from([&["pailfs", "status"], args].concat())
            .unwrap()
            .command
        {
            Command::Status(status) => status.watch,
            other => panic!("not a status: {other:?}"),
        };
        assert_eq!(status(&["/mnt"]), None);
        assert_eq!(status(&["--watch", "/mnt"]), Some(Duration::from_secs(1)));
        assert_eq!(status(&["/mnt", "--watch=250ms", "--json"]), Some(Duration::from_millis(250)));
    }

    #[test]
    fn the_log_goes_to_a_place_by_its_name() {
        for (typed, meant) in [
            ("stderr", LogTo::Stderr),
            ("none", LogTo::Nowhere),
            ("file:/var/log/a:b", LogTo::File("/var/log/a:b".into())),
            ("syslog", LogTo::Syslog(PathBuf::new())),
            ("syslog:/dev/log", LogTo::Syslog("/dev/log".into())),
            ("journald:/s", LogTo::Journald("/s".into())),
        ] {
            assert_eq!(parse_log_to(typed), Ok(meant), "{typed}");
        }
        let cli = Cli::try_parse_from(["pailfs", "log-level", "/mnt", "debug"]).unwrap();
        let Command::LogLevel(args) = cli.command else { panic!("not log-level") };
        assert_eq!(args.level.as_deref(), Some("debug"));
    }

    #[test]
    fn a_demo_mounts_on_a_fresh_directory_or_a_given_one() {
        let demo = |args: &[&str]| match Cli::try_parse_from([&["pailfs", "demo"], args].concat())
            .unwrap()
            .command
        {
            Command::Demo(demo) => demo,
            other => panic!("not a demo: {other:?}"),
        };
        assert_eq!(demo(&[]).mount, None);
        assert_eq!(demo(&["--mount"]).mount, Some(None));
        assert_eq!(demo(&["--mount", "/m"]).mount, Some(Some("/m".into())));
        assert_eq!(demo(&[]).bucket, ["demo"]);
        assert_eq!(demo(&["--bucket=a", "--bucket=b"]).bucket, ["a", "b"]);
    }

    #[test]
    fn sessions_lists_and_checks() {
        let cli = Cli::try_parse_from(["pailfs", "sessions", "--json"]).unwrap();
        assert!(matches!(cli.command, Command::Sessions(SessionsArgs { command: None, json: true, .. })));
        let cli = Cli::try_parse_from(["pailfs", "sessions", "check", "work", "s3://b", "--json"]).unwrap();
        let Command::Sessions(SessionsArgs { command: Some(SessionsCommand::Check(check)), .. }) =
            cli.command
        else {
            panic!("not a check")
        };
        assert_eq!(check.what, ["work", "s3://b"]);
        assert!(check.json);
    }
}
