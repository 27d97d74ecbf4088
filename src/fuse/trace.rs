//! The file of `--trace-ops`: a line about every operation of the kernel that was answered.
//!
//! It never slows the file system down: a line is handed to a thread of its own over a queue with a bound, and where that is
//! full it is dropped and counted. The file tells how many were.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::convert::errno_name;
use crate::base::private;
use crate::error::{Error, Kind, Result};

/// Lines that wait for their way to the disk: some hundredths of a second of what one mount can do.
const QUEUE_MAX: usize = 8192;
/// How long the end of a mount waits for the last lines.
const END_WAIT: Duration = Duration::from_secs(2);
/// What is written at once while there is more to write.
const PIECE_BYTES: usize = 64 << 10;
const HEADER: &str = "#time\top\tresult\tlatency_us\toffset\tbytes\tpid\tpath\tto\n";

/// One operation, and how it went.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) at: SystemTime,
    pub(super) op: &'static str,
    /// An errno, or 0.
    pub(super) result: i32,
    pub(super) latency: Duration,
    pub(super) offset: Option<u64>,
    pub(super) bytes: Option<u64>,
    pub(super) pid: u32,
    pub(super) path: OsString,
    /// Where it was moved, copied or linked to.
    pub(super) to: Option<OsString>,
}

enum Item {
    Line(Box<Line>),
    /// Something else is to be looked at.
    Wake,
}

/// The file, and the thread that writes it.
pub struct Trace {
    path: PathBuf,
    queue: SyncSender<Item>,
    shared: Arc<Shared>,
    /// Tells nothing; it is closed when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    reopen: AtomicBool,
    end: AtomicBool,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Trace {
    /// Opens the file, which is appended to, and begins to write it.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::new(Kind::Local, format!("cannot open the file of --trace-ops {}", path.display()))
                .with_source(error)
        };
        let file = append(path).map_err(failed)?;
        let (queue, items) = sync_channel(QUEUE_MAX);
        let (ending, ended) = sync_channel(0);
        let shared = Arc::new(Shared::default());
        let mut writer = Writer {
            file,
            path: path.to_owned(),
            shared: Arc::clone(&shared),
            text: String::new(),
            lines: 0,
            failing: false,
        };
        std::thread::Builder::new()
            .name("trace-ops".to_owned())
            .spawn(move || {
                let _ending: SyncSender<()> = ending;
                writer.write_all(&items);
            })
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), queue, shared, ended: Mutex::new(ended) })
    }

    /// Hands a line over, or counts it as dropped.
    pub(super) fn write(&self, line: Box<Line>) {
        if self.queue.try_send(Item::Line(line)).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file of this name anew, before the next line.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        // A thread that has lines to write looks by itself.
        let _ = self.queue.try_send(Item::Wake);
    }

    /// Writes what is there, and ends. What comes later is dropped.
    pub fn finish(&self) {
        self.shared.end.store(true, Ordering::Release);
        let _ = self.queue.try_send(Item::Wake);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(END_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(path = %self.path.display(), "the last lines of --trace-ops could not be written");
        }
    }
}

/// It tells names of objects and what was done with them.
fn append(path: &Path) -> io::Result<File> {
    let mut file = private::append(path)?;
    if file.metadata()?.len() == 0 {
        file.write_all(HEADER.as_bytes())?;
    }
    Ok(file)
}

struct Writer {
    file: File,
    path: PathBuf,
    shared: Arc<Shared>,
    /// What is written next, in one piece, and how many lines that are.
    text: String,
    lines: u64,
    /// Whether the log was told.
    failing: bool,
}

impl Writer {
    /// Until nobody has anything to write any more.
    fn write_all(&mut self, items: &Receiver<Item>) {
        loop {
            let item = match items.try_recv() {
                Ok(item) => item,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.flush();
                    if self.shared.end.load(Ordering::Acquire) {
                        break;
                    }
                    match items.recv() {
                        Ok(item) => item,
                        Err(_) => break,
                    }
                }
            };
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            if let Item::Line(line) = item {
                line.push(&mut self.text);
                self.lines += 1;
                if self.text.len() >= PIECE_BYTES {
                    self.flush();
                }
            }
        }
        self.flush();
    }

    fn reopen(&mut self) {
        self.flush();
        match append(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the file of --trace-ops could not be opened anew; going on in the old one");
            }
        }
    }

    /// Writes what there is; what cannot be written was dropped.
    fn flush(&mut self) {
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let _ = std::fmt::Write::write_fmt(&mut self.text, format_args!("#dropped {dropped}\n"));
        }
        if self.text.is_empty() {
            return;
        }
        if let Err(error) = self.file.write_all(self.text.as_bytes()) {
            self.shared.dropped.fetch_add(self.lines + dropped, Ordering::Relaxed);
            if !std::mem::replace(&mut self.failing, true) {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the file of --trace-ops cannot be written; lines are dropped");
            }
        }
        self.text.clear();
        self.lines = 0;
    }
}

impl Line {
    fn push(&self, text: &mut String) {
        push_time(text, self.at);
        let result = match self.result {
            0 => "ok".into(),
            errno => errno_name(errno),
        };
        let _ = write!(text, "\t{}\t{result}\t{}\t", self.op, self.latency.as_micros());
        for number in [self.offset, self.bytes] {
            match number {
                Some(number) => drop(write!(text, "{number}\t")),
                None => text.push_str("-\t"),
            }
        }
        let _ = write!(text, "{}\t", self.pid);
        push_path(text, self.path.as_bytes());
        text.push('\t');
        match &self.to {
            Some(to) => push_path(text, to.as_bytes()),
            None => text.push('-'),
        }
        text.push('\n');
    }
}

/// A name may hold anything, and a line has to stay one: `\t`, `\n`, `\\`, and `\xNN` for other control characters and for
/// bytes that are no text.
fn push_path(text: &mut String, path: &[u8]) {
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                c if c.is_control() => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        let _ = write!(text, "\\x{byte:02x}");
                    }
                }
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
}

/// RFC 3339 in UTC with microseconds.
fn push_time(text: &mut String, at: SystemTime) {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years of 365.2425 days that begin in March, so that the leap day is their last (Howard Hinnant's `civil_from_days`).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let micros = since.subsec_micros();
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::PermissionsExt;

    fn line(path: &[u8]) -> Line {
        Line {
            at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_703_709_000_042),
            op: "read",
            result: 0,
            latency: Duration::from_micros(17),
            offset: Some(4096),
            bytes: Some(12),
            pid: 7,
            path: OsString::from_vec(path.to_vec()),
            to: None,
        }
    }

    #[test]
    fn a_line_has_its_columns_whatever_the_name() {
        let mut text = String::new();
        line(b"/a\tb\n\\\x1b\xff\xc2\x85 c").push(&mut text);
        let path = "/a\\tb\\n\\\\\\x1b\\xff\\xc2\\x85 c";
        assert_eq!(text, format!("2026-11-26T14:35:09.000042Z\tread\tok\t17\t4096\t12\t7\t{path}\t-\n"));
        let mut text = String::new();
        let refused = Line { result: 13, offset: None, bytes: None, to: Some("/b".into()), ..line(b"/a") };
        refused.push(&mut text);
        assert!(text.ends_with("\tread\tEACCES\t17\t-\t-\t7\t/a\t/b\n"), "{text}");
        assert_eq!(text.matches('\t').count(), HEADER.matches('\t').count());
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, told) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            let mut text = String::new();
            push_time(&mut text, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(text, told);
        }
    }

    #[test]
    fn the_file_is_its_owner_s_has_every_line_and_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ops");
        let trace = Trace::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for n in 0..100 {
            trace.write(Box::new(line(format!("/{n}").as_bytes())));
        }
        trace.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(HEADER) && text.lines().count() == 101, "{text}");
        let trace = Trace::open(&path).unwrap();
        trace.write(Box::new(line(b"/again")));
        std::fs::rename(&path, dir.path().join("ops.1")).unwrap();
        trace.reopen();
        trace.write(Box::new(line(b"/anew")));
        trace.finish();
        let (old, new) = (
            std::fs::read_to_string(dir.path().join("ops.1")).unwrap(),
            std::fs::read_to_string(&path).unwrap(),
        );
        assert_eq!(old.matches(HEADER).count(), 1);
        assert!(new.starts_with(HEADER) && new.contains("\t/anew\t"), "{new}");
        assert_eq!(format!("{old}{new}").matches("\t/again\t").count(), 1);
    }

    #[test]
    fn what_the_disk_does_not_take_is_dropped_and_counted_and_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        // A reader that does not read: the thread waits for it in the middle of its writing.
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let trace = Trace::open(&path).unwrap();
        let lines = 4 * QUEUE_MAX;
        for _ in 0..lines {
            trace.write(Box::new(line(b"/some/path/that/fills/the/pipe")));
        }
        let dropped = trace.shared.dropped.load(Ordering::Relaxed);
        assert!(dropped > 0, "nothing was dropped, and yet nobody read");
        let reading = std::thread::spawn(move || {
            use std::io::{BufRead, BufReader};
            let (mut told, mut written) = (0, 0);
            for line in BufReader::new(reader).lines().map(|line| line.unwrap()) {
                match line.strip_prefix("#dropped ") {
                    Some(count) => told += count.parse::<usize>().unwrap(),
                    None => written += usize::from(!line.starts_with('#')),
                }
                if told + written == lines {
                    return told;
                }
            }
            unreachable!("we hold the other end open ourselves")
        });
        trace.finish();
        assert!(reading.join().unwrap() as u64 >= dropped);
    }
}
