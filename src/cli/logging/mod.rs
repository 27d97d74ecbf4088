//! Where the log goes and how much of it.
//!
//! A line passes, in this order: the filter, which can be changed while the mount is live; a filter for what could show
//! keys, which cannot; and what holds repeated lines back. Then it is written as text, as JSON, or by its fields.

mod datagram;
mod file;
mod repeats;

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterFn, LevelFilter};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::args::{LogArgs, LogFormat, LogTo};
use super::exit::{Code, Failure};
use super::machine::absolute;
use super::printable::printable;
use crate::error::{Error, Kind};
use crate::mount;
use datagram::{Journald, Syslog};
use file::LogFile;
use repeats::HoldBack;

/// Where the daemons listen.
const JOURNALD_SOCKET: &str = "/run/systemd/journal/socket";
const SYSLOG_SOCKET: &str = "/dev/log";

/// The program's log. What was held back is told when it is dropped.
pub struct Log(Arc<Shared>);

struct Shared {
    place: LogTo,
    /// The filter as it was typed.
    level: Mutex<String>,
    filter: reload::Handle<EnvFilter, Registry>,
    file: Option<Arc<LogFile>>,
    repeats: HoldBack,
}

/// Starts the log of a process that stays in the foreground or in the background.
pub fn start(args: &LogArgs, background: bool) -> Result<Log, Failure> {
    let place = place(args, background, goes_to_journal(), datagram::is_heard)?;
    let filter = filter(&args.log_level)?;
    let repeats = HoldBack::new();
    repeats.show_all(is_talkative(&filter));
    let (filter, changeable) = reload::Layer::new(filter);
    let unusable = |what: &str, path: &Path, error: io::Error| {
        Failure::new(Code::Local, format!("cannot open {what} {}: {error}", path.display()))
    };
    let start = |filter, layer| install(filter, repeats.clone(), layer);
    let mut file = None;
    match &place {
        LogTo::Nowhere => {}
        LogTo::Stderr => start(filter, lines(args.log_format, io::stderr)),
        LogTo::File(path) => {
            let opened = LogFile::open(path.clone()).map_err(|e| unusable("the log", path, e))?;
            let opened = Arc::new(opened);
            start(filter, lines(args.log_format, Arc::clone(&opened)));
            file = Some(opened);
        }
        LogTo::Syslog(path) => {
            let syslog = Syslog::open(path).map_err(|e| unusable("the syslog socket", path, e))?;
            // The daemon adds the time, and the level is the priority.
            let bare = tracing_subscriber::fmt::layer()
                .without_time()
                .with_level(false)
                .with_target(false)
                .with_ansi(false)
                .with_writer(syslog);
            let layer = match args.log_format {
                LogFormat::Text => bare.boxed(),
                LogFormat::Json => bare.json().with_level(true).boxed(),
            };
            start(filter, layer);
        }
        LogTo::Journald(path) => {
            let journald = Journald::open(path).map_err(|e| unusable("the journal's socket", path, e))?;
            start(filter, journald.boxed());
        }
    }
    if !matches!(place, LogTo::Stderr | LogTo::Nowhere) {
        log_panics();
    }
    let level = Mutex::new(args.log_level.clone());
    Ok(Log(Arc::new(Shared { place, level, filter: changeable, file, repeats })))
}

/// Where it goes: what was said, or what there is.
fn place(
    args: &LogArgs,
    background: bool,
    stderr_is_journal: bool,
    is_heard: impl Fn(&Path) -> bool,
) -> Result<LogTo, Failure> {
    let said = match (&args.log_file, &args.log_to) {
        (Some(path), _) => Some(LogTo::File(path.clone())),
        (None, said) => said.clone(),
    };
    let socket = |said: PathBuf, usual: &str| match said.as_os_str().is_empty() {
        true => Ok(usual.into()),
        false => absolute(&said),
    };
    match said {
        Some(LogTo::File(path)) => Ok(LogTo::File(absolute(&path)?)),
        Some(LogTo::Syslog(path)) => Ok(LogTo::Syslog(socket(path, SYSLOG_SOCKET)?)),
        Some(LogTo::Journald(path)) => Ok(LogTo::Journald(socket(path, JOURNALD_SOCKET)?)),
        Some(LogTo::Stderr) if background => Err(Failure::new(
            Code::Usage,
            "--log-to=stderr: a mount in the background has no standard error; stay in the --foreground",
        )),
        Some(said) => Ok(said),
        // What systemd has started is read by the journal in any case, which knows more by its own protocol.
        None if !background && !stderr_is_journal => Ok(LogTo::Stderr),
        None if is_heard(Path::new(JOURNALD_SOCKET)) => Ok(LogTo::Journald(JOURNALD_SOCKET.into())),
        None if !background => Ok(LogTo::Stderr),
        None if is_heard(Path::new(SYSLOG_SOCKET)) => Ok(LogTo::Syslog(SYSLOG_SOCKET.into())),
        None => Ok(LogTo::Nowhere),
    }
}

/// Whether standard error is the journal's, as systemd tells what it starts: by the stream's device and inode.
fn goes_to_journal() -> bool {
    let stream = rustix::fs::fstat(rustix::stdio::stderr());
    let here = stream.map(|stream| format!("{}:{}", stream.st_dev, stream.st_ino));
    std::env::var_os("JOURNAL_STREAM").is_some_and(|told| here.is_ok_and(|here| *here == *told))
}

impl Log {
    /// Lets go of the standard output and error that the process was started with.
    pub fn take_stdio(&self) -> io::Result<()> {
        match &self.0.file {
            Some(file) => file.take_stdio(),
            None => file::point_stdio(&OpenOptions::new().write(true).open("/dev/null")?),
        }
    }

    /// Whether anybody but who typed the command reads it.
    pub fn is_kept(&self) -> bool {
        self.0.place != LogTo::Stderr
    }

    /// Its file cannot be in a mount that writes it.
    pub fn require_outside(&self, mountpoint: &Path) -> Result<(), Failure> {
        match &self.0.file {
            Some(file) if file.path().starts_with(mountpoint) => {
                let told = format!("the log {} lies inside of the mount", file.path().display());
                Err(Failure::new(Code::Usage, told))
            }
            _ => Ok(()),
        }
    }

    /// What a live mount does with it.
    pub fn of_mount(&self) -> mount::Log {
        let (leveled, reopened, settled) = (Arc::clone(&self.0), Arc::clone(&self.0), Arc::clone(&self.0));
        mount::Log {
            level: Box::new(move |wanted| leveled.level(wanted)),
            reopen: Box::new(move || reopened.reopen()),
            settle: Box::new(move || settled.repeats.settle()),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.repeats.close();
    }
}

impl Shared {
    /// Sets what is shown, where that is said; returns it.
    fn level(&self, wanted: Option<&str>) -> crate::error::Result<String> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(wanted) = wanted else { return Ok(level.clone()) };
        if self.place == LogTo::Nowhere {
            let told = "this mount logs nowhere; mount it with --log-to or --log-file";
            return Err(Error::new(Kind::Unsupported, told));
        }
        let filter = filter(wanted).map_err(|failure| Error::new(Kind::InvalidArgument, failure.message))?;
        let gone = |error: reload::Error| Error::new(Kind::Internal, format!("the log is gone: {error}"));
        self.repeats.show_all(is_talkative(&filter));
        self.filter.reload(filter).map_err(gone)?;
        tracing::info!(from = *level, to = wanted, "the log's level was changed");
        wanted.clone_into(&mut level);
        Ok(level.clone())
    }

    fn reopen(&self) {
        let Some(file) = &self.file else { return };
        if let Err(error) = file.reopen() {
            let path = file.path().display();
            tracing::warn!(%path, %error, "the log could not be opened anew; going on in the old file");
        }
    }
}

/// Whether a filter is understood.
pub fn check_filter(level: &str) -> Result<(), Failure> {
    filter(level).map(drop)
}

/// A bare level is about pailfs itself: the libraries below it talk too much to be of use then.
fn filter(level: &str) -> Result<EnvFilter, Failure> {
    let plain =
        ["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str());
    let directives = match level {
        "off" => level.to_owned(),
        // What a library warns of is either handled or part of an error of ours: fuser of requests that a
        // file system may well leave out, the SDK of attempts that are tried again. s3s reports every 404.
        _ if plain => format!("error,s3s=off,pailfs={level}"),
        _ => level.to_owned(),
    };
    let refused =
        |why: &str| Failure::new(Code::Usage, format!("no level or filter of the log: {level:?}: {why}"));
    // One word is a module to the filter, and nothing else would be logged: a misspelt level would silence the mount.
    let is_word =
        |part: &str| part.chars().all(|c| c.is_alphanumeric()) && part.parse::<LevelFilter>().is_err();
    if let Some(word) = directives.split(',').map(str::trim).find(|part| is_word(part)) {
        return Err(refused(&format!(
            "{word:?} is none of off, error, warn, info, debug and trace; a module has one too, as pailfs=debug"
        )));
    }
    EnvFilter::try_new(&directives).map_err(|error| refused(&error.to_string()))
}

/// Whether somebody looks for a fault.
fn is_talkative(filter: &EnvFilter) -> bool {
    Layer::<Registry>::max_level_hint(filter).is_none_or(|level| level >= LevelFilter::DEBUG)
}

/// Whether an event may be shown, whoever asks: at its most talkative the SDK tells requests with all their headers, and
/// some of those are keys.
fn is_no_secret(event: &Metadata<'_>) -> bool {
    *event.level() != Level::TRACE || !event.target().starts_with("aws_")
}

/// The layers below the one that writes.
type Below = tracing_subscriber::layer::Layered<
    HoldBack,
    tracing_subscriber::layer::Layered<
        FilterFn,
        tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>,
    >,
>;
type Writer = Box<dyn Layer<Below> + Send + Sync>;

/// Lines of text or JSON.
fn lines(format: LogFormat, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) -> Writer {
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).log_internal_errors(false);
    match format {
        LogFormat::Text => layer.with_writer(OneLine(writer)).boxed(),
        // It has forms of its own for what would end a line.
        LogFormat::Json => layer.json().with_writer(writer).boxed(),
    }
}

/// Keeps a line one line, whatever a server or a name has in it: otherwise they could say what others seem to have said.
struct OneLine<W>(W);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for OneLine<M> {
    type Writer = OneLine<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(self.0.make_writer())
    }
}

/// A line is written by one call.
impl<W: io::Write> io::Write for OneLine<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (text, end) = match line.strip_suffix(b"\n") {
            Some(text) => (text, "\n"),
            None => (line, ""),
        };
        if text.is_ascii() && !text.iter().any(u8::is_ascii_control) {
            self.0.write_all(line)?;
        } else {
            let escaped = printable(&String::from_utf8_lossy(text)) + end;
            self.0.write_all(escaped.as_bytes())?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn install(filter: reload::Layer<EnvFilter, Registry>, repeats: HoldBack, writer: Writer) {
    let secrets = FilterFn::new(is_no_secret as fn(&Metadata<'_>) -> bool);
    let below: Below = tracing_subscriber::registry().with(filter).with(secrets).with(repeats);
    // It can only have been started before by a test in this process, whose log is as good.
    let _ = below.with(writer).try_init();
}

/// What a defect says goes where everything goes; on standard error nobody would see it.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        let said = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, thread = thread.name(), "a defect of pailfs: {said}");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_about_pailfs_and_a_filter_is_taken_as_it_is() {
        assert_eq!(filter("debug").unwrap().to_string(), "pailfs=debug,s3s=off,error");
        assert_eq!(filter("off").unwrap().to_string(), "off");
        assert_eq!(filter("hyper_util=trace").unwrap().to_string(), "hyper_util=trace");
        assert_eq!(filter("pailfs::fs=debug,3").unwrap().to_string(), "pailfs::fs=debug,info");
        for wrong in ["pailfs=loud", "loud", "debg", "info,hyper_util=info,pailfs"] {
            assert_eq!(filter(wrong).unwrap_err().code, Code::Usage, "{wrong}");
        }
    }

    #[test]
    fn a_line_stays_one_whatever_is_in_it() {
        use std::io::Write as _;
        let mut written = Vec::new();
        for line in ["plain\n", "forged\n2026 INFO all is well\x1b[2J\n", "caf\u{e9}\u{9b}2J\n"] {
            OneLine(&mut written).write_all(line.as_bytes()).unwrap();
        }
        let text = String::from_utf8(written).unwrap();
        assert_eq!(text, "plain\nforged\\n2026 INFO all is well\\u{1b}[2J\ncaf\u{e9}\\u{9b}2J\n");
    }

    #[test]
    fn a_mount_in_the_background_logs_where_the_system_does() {
        let args = |log_to: Option<LogTo>| LogArgs {
            log_file: None,
            log_to,
            log_level: "info".into(),
            log_format: LogFormat::Text,
        };
        let all = |_: &Path| true;
        let syslog_alone = |path: &Path| path == Path::new(SYSLOG_SOCKET);
        let place = |log_to, background, there: &dyn Fn(&Path) -> bool| {
            place(&args(log_to), background, false, there)
        };
        assert_eq!(place(None, true, &all).unwrap(), LogTo::Journald(JOURNALD_SOCKET.into()));
        assert_eq!(place(None, true, &syslog_alone).unwrap(), LogTo::Syslog(SYSLOG_SOCKET.into()));
        assert_eq!(place(None, true, &|_| false).unwrap(), LogTo::Nowhere);
        assert_eq!(place(None, false, &all).unwrap(), LogTo::Stderr);
        let of_systemd =
            |there: &dyn Fn(&Path) -> bool| super::place(&args(None), false, true, there).unwrap();
        assert_eq!(of_systemd(&all), LogTo::Journald(JOURNALD_SOCKET.into()));
        assert_eq!(of_systemd(&syslog_alone), LogTo::Stderr);
        let usual = Some(LogTo::Syslog(PathBuf::new()));
        assert_eq!(place(usual, false, &all).unwrap(), LogTo::Syslog(SYSLOG_SOCKET.into()));
        let own = Some(LogTo::Journald("/s".into()));
        assert_eq!(place(own, true, &all).unwrap(), LogTo::Journald("/s".into()));
        assert_eq!(place(Some(LogTo::Nowhere), true, &all).unwrap(), LogTo::Nowhere);
        assert_eq!(place(Some(LogTo::Stderr), true, &all).unwrap_err().code, Code::Usage);
        let file = LogArgs { log_file: Some("log".into()), ..args(None) };
        let LogTo::File(path) = super::place(&file, true, false, all).unwrap() else { panic!("not a file") };
        assert!(path.is_absolute());
    }
}
