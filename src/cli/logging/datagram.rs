//! Lines as datagrams: to a syslog daemon, and to journald with every field by its name.
//!
//! Nothing here waits for long: a daemon that does not take its lines loses them, and is told how many.

use std::fmt::{Debug, Write as _};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;

use crate::base::{Clock, SystemClock};

const IDENTIFIER: &str = "pailfs";
/// What every daemon takes; of more, the end is cut off.
const LINE_MAX_BYTES: usize = 8 << 10;
/// How long a daemon may take to make room for a line. One that did not is left alone for a moment.
const WAIT: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_secs(1);
/// Facility 3, `daemon`.
const FACILITY: u8 = 3 << 3;

/// The severity that syslog and journald both know.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Whether a daemon listens there.
pub fn is_heard(path: &Path) -> bool {
    UnixDatagram::unbound().and_then(|socket| socket.connect(path)).is_ok()
}

/// A daemon's socket. It is addressed anew for each line, so that a daemon may be started anew.
struct Socket {
    socket: UnixDatagram,
    path: PathBuf,
    state: Mutex<Sending>,
}

#[derive(Default)]
struct Sending {
    lost: u64,
    /// When it refused a line.
    refused: Option<Instant>,
}

impl Socket {
    fn open(path: &Path) -> io::Result<Self> {
        // Whether anybody is there.
        UnixDatagram::unbound()?.connect(path)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(WAIT))?;
        Ok(Self { socket, path: path.to_owned(), state: Mutex::default() })
    }

    /// Sends a line, and before it what became of others.
    fn send(&self, line: &[u8], lost: impl FnOnce(u64) -> Vec<u8>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemClock.now();
        if state.refused.is_some_and(|at| now < at + PAUSE) {
            state.lost += 1;
            return;
        }
        let told = match state.lost {
            0 => Ok(0),
            count => self.socket.send_to(&lost(count), &self.path),
        };
        if told.is_ok() {
            state.lost = 0;
        }
        if told.and_then(|_| self.socket.send_to(line, &self.path)).is_err() {
            state.lost += 1;
            state.refused = Some(now);
        } else {
            state.refused = None;
        }
    }
}

/// A syslog daemon, in the form of RFC 3164 as local programs use it: priority, program and process. The daemon adds the host
/// and the time; ours would have to be in its time zone.
pub struct Syslog(Socket);

impl Syslog {
    pub fn open(path: &Path) -> io::Result<Self> {
        Socket::open(path).map(Self)
    }

    fn say(&self, level: Level, text: &str) {
        self.0.send(&syslog_line(level, text), |lost| {
            syslog_line(Level::WARN, &format!("{lost} lines of the log were not taken"))
        });
    }
}

fn syslog_line(level: Level, text: &str) -> Vec<u8> {
    let mut line = format!("<{}>{IDENTIFIER}[{}]: ", FACILITY | severity(level), std::process::id());
    push_printable(&mut line, text.trim_end());
    line.truncate(line.floor_char_boundary(LINE_MAX_BYTES));
    line.into_bytes()
}

/// A datagram is one line.
fn push_printable(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
}

/// One line on its way.
pub struct Line<'a> {
    syslog: &'a Syslog,
    level: Level,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.syslog.say(self.level, &String::from_utf8_lossy(&self.text));
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { syslog: self, level: Level::INFO, text: Vec::new() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line { syslog: self, level: *meta.level(), text: Vec::new() }
    }
}

/// journald, in its own protocol: `journalctl PAILFS_OP=close` finds by field.
pub struct Journald(Socket);

impl Journald {
    pub fn open(path: &Path) -> io::Result<Self> {
        Socket::open(path).map(Self)
    }
}

impl<S: Subscriber> Layer<S> for Journald {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let meta = event.metadata();
        let mut said = Said::default();
        event.record(&mut said);
        let entry = journal_entry(*meta.level(), meta.target(), &said);
        self.0.send(&entry, |lost| {
            let message = format!("{lost} lines of the log were not taken");
            journal_entry(Level::WARN, meta.target(), &Said { message, ..Said::default() })
        });
    }
}

#[derive(Debug, Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, String)>,
    /// The fields as text: `journalctl` shows the message alone.
    text: String,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            let _ = write!(self.text, " {}={value:?}", field.name());
            self.fields.push((field.name(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        if field.name() == "message" {
            self.message = value;
        } else {
            let _ = write!(self.text, " {}={value}", field.name());
            self.fields.push((field.name(), value));
        }
    }
}

fn journal_entry(level: Level, target: &str, said: &Said) -> Vec<u8> {
    let mut entry = Vec::new();
    let mut shown = String::new();
    push_printable(&mut shown, &format!("{}{}", said.message, said.text));
    push_field(&mut entry, "MESSAGE", &shown);
    push_field(&mut entry, "PRIORITY", &severity(level).to_string());
    push_field(&mut entry, "SYSLOG_IDENTIFIER", IDENTIFIER);
    push_field(&mut entry, "TARGET", target);
    for (name, value) in &said.fields {
        push_field(&mut entry, &field_name(name), value);
    }
    entry
}

/// A name that journald takes, and that no field of its own has.
fn field_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("PAILFS_{}", name.chars().take(50).map(plain).collect::<String>())
}

/// With its length before it, since a value may have lines.
fn push_field(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(LINE_MAX_BYTES)];
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_priority_and_is_one() {
        let pid = std::process::id();
        let line = |level, text: &str| String::from_utf8(syslog_line(level, text)).unwrap();
        assert_eq!(line(Level::WARN, "close failed\n"), format!("<28>pailfs[{pid}]: close failed"));
        assert_eq!(line(Level::ERROR, "a\nb\u{1b}"), format!("<27>pailfs[{pid}]: a\\nb\\u{{1b}}"));
        assert!(line(Level::INFO, "").starts_with("<30>") && line(Level::TRACE, "").starts_with("<31>"));
        assert!(line(Level::INFO, &"ä".repeat(LINE_MAX_BYTES)).len() <= LINE_MAX_BYTES);
    }

    #[test]
    fn an_entry_of_the_journal_has_the_fields_by_name() {
        let said = Said {
            message: "close failed".into(),
            fields: vec![("op", "close".into()), ("error", "a\nb".into())],
            text: " op=\"close\" error=a\nb".into(),
        };
        let entry = journal_entry(Level::WARN, "pailfs::fuse", &said);
        let mut rest = &entry[..];
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let at = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let name = String::from_utf8(rest[..at].to_vec()).unwrap();
            let len = u64::from_le_bytes(rest[at + 1..at + 9].try_into().unwrap()) as usize;
            let value = String::from_utf8(rest[at + 9..at + 9 + len].to_vec()).unwrap();
            assert_eq!(rest[at + 9 + len], b'\n');
            rest = &rest[at + 10 + len..];
            fields.push((name, value));
        }
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(field("MESSAGE"), Some("close failed op=\"close\" error=a\\nb"));
        assert_eq!(field("PRIORITY"), Some("4"));
        assert_eq!(field("SYSLOG_IDENTIFIER"), Some("pailfs"));
        assert_eq!(field("PAILFS_OP"), Some("close"));
        assert_eq!(field("PAILFS_ERROR"), Some("a\nb"));
    }

    #[test]
    fn a_daemon_that_takes_nothing_does_not_hold_anybody_up_and_is_told_what_it_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::open(&path).unwrap();
        let begun = SystemClock.now();
        // Its queue is full after some, and then the first refusal costs a wait and the rest nothing.
        for n in 0..10_000 {
            syslog.say(Level::INFO, &format!("line {n}"));
        }
        assert!(SystemClock.now().duration_since(begun) < Duration::from_secs(30));
        daemon.set_nonblocking(true).unwrap();
        let mut buffer = [0; LINE_MAX_BYTES];
        let mut taken = 0u64;
        while daemon.recv(&mut buffer).is_ok() {
            taken += 1;
        }
        assert!(0 < taken && taken < 10_000, "{taken}");
        // As if the pause were over.
        syslog.0.state.lock().unwrap().refused = None;
        syslog.say(Level::INFO, "again");
        let read = daemon.recv(&mut buffer).unwrap();
        let told = String::from_utf8_lossy(&buffer[..read]).into_owned();
        assert!(told.ends_with(&format!("{} lines of the log were not taken", 10_000 - taken)), "{told}");
        let read = daemon.recv(&mut buffer).unwrap();
        assert!(buffer[..read].ends_with(b"again"));
        drop(daemon);
        syslog.say(Level::INFO, "nobody is there");
    }
}
