//! Telling a service manager how the mount is (sd_notify): one datagram a time, to the socket it names.
//!
//! Nothing depends on it: without `NOTIFY_SOCKET`, or with nobody behind it, nothing is said.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use super::printable::printable;
use super::progress::count;
use crate::base::{Clock, SystemClock, format_bytes};
use crate::control::Unsaved;

/// How long the manager is asked to wait for the next word while there is something to save.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two words about the same.
const WORDS_APART: Duration = Duration::from_secs(1);

/// The way to the manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    stopping: bool,
    /// When it was last told what is left to save.
    told: Option<Instant>,
}

impl Notifier {
    /// To the socket of `NOTIFY_SOCKET`: a path, or `@` and a name that is in no directory.
    pub fn to(socket: Option<&OsStr>) -> Self {
        let to = socket.and_then(|name| {
            let address = match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                _ => SocketAddr::from_pathname(name),
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        });
        if let Some((socket, _)) = &to {
            // A manager that does not read is not waited for.
            let _ = socket.set_nonblocking(true);
        }
        Self { to, stopping: false, told: None }
    }

    /// The mount is live.
    pub fn ready(&self, what: &str) {
        // A line is a word of its own to the manager.
        let what = printable(what);
        self.say(&format!("READY=1\nMAINPID={}\nSTATUS={what}", std::process::id()));
    }

    /// The end goes on.
    pub fn left(&mut self, unsaved: &Unsaved) {
        self.stop();
        let now = SystemClock.now();
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < WORDS_APART) {
            return;
        }
        self.told = Some(now);
        let bytes = unsaved.bytes.saturating_sub(unsaved.sent);
        let status = match unsaved.files {
            0 => "unmounting".to_owned(),
            files => format!("saving {} in {}", format_bytes(bytes), count(files)),
        };
        // The mount itself gives up where nothing moves; until then it is not to be killed.
        self.say(&format!("STATUS={status}\nEXTEND_TIMEOUT_USEC={}", PATIENCE.as_micros()));
    }

    pub fn end(&mut self, all: bool) {
        self.stop();
        self.say(if all { "STATUS=all is saved" } else { "STATUS=ended with files that are not in S3" });
    }

    fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.say("STOPPING=1");
        }
    }

    fn say(&self, words: &str) {
        if let Some((socket, address)) = &self.to {
            // Whoever asked to be told may be gone.
            let _ = socket.send_to_addr(words.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_of_the_beginning_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("@pailfs-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        for (manager, socket) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), OsStr::new(&name)),
        ] {
            let mut notifier = Notifier::to(Some(socket));
            notifier.ready("s3://b/ on /mnt");
            let pid = std::process::id();
            assert_eq!(heard(&manager), format!("READY=1\nMAINPID={pid}\nSTATUS=s3://b/ on /mnt"));
            let two = Unsaved { files: 2, bytes: 3 << 20, sent: 1 << 20, ..Unsaved::default() };
            notifier.left(&two);
            assert_eq!(heard(&manager), "STOPPING=1");
            assert_eq!(heard(&manager), "STATUS=saving 2.0 MiB in 2 files\nEXTEND_TIMEOUT_USEC=60000000");
            // The same a moment later is not worth a word.
            notifier.left(&two);
            notifier.end(true);
            assert_eq!(heard(&manager), "STATUS=all is saved");
        }
    }

    #[test]
    fn without_a_manager_nothing_is_said_and_nothing_fails() {
        for socket in
            [None, Some(OsStr::new("")), Some(OsStr::new("/nonexistent/socket")), Some(OsStr::new("@"))]
        {
            let mut notifier = Notifier::to(socket);
            notifier.ready("x");
            notifier.left(&Unsaved::default());
            notifier.end(false);
        }
    }
}
