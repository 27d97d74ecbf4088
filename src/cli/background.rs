//! Going to the background by starting this program once more: no fork, so no thread and no state of a library
//! crosses one.
//!
//! The first process starts the second with a hidden flag and waits for one line on its standard output: the mount
//! is live, or why it is not. Only then does it end, with the code of the second. Secrets travel in the
//! environment that the second inherits, never in its arguments.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::exit::{Code, Failure};
use super::logging::Log;

/// The longest line the second process may say.
const WORD_MAX_BYTES: u64 = 64 << 10;

/// What the second process tells the first.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Word {
    Ready { ready: bool, pid: u32 },
    Failed { error: String, exit: u8 },
}

/// Starts this program again, with these arguments and variables more, as the process that stays, and returns once its
/// mount is live. The child bounds its own start, and its end is an answer too.
pub fn start(
    args: impl IntoIterator<Item = OsString>,
    variables: Vec<(OsString, OsString)>,
) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new(Code::Local, format!("cannot start the background process: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .arg("--background-child")
        .args(args)
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).take(WORD_MAX_BYTES).read_line(&mut line).map_err(failed)?;
    }
    match understand(&line) {
        Some(Word::Ready { .. }) => Ok(()),
        Some(Word::Failed { error, exit }) => {
            // It ends by itself; waiting leaves no zombie behind a parent that lives on.
            let _ = child.wait();
            Err(Failure::new(Code::from_number(exit).unwrap_or(Code::Failed), error))
        }
        None => {
            let status = child.wait().map_err(failed)?;
            let code = status.code().and_then(|code| Code::from_number(u8::try_from(code).ok()?));
            Err(Failure::new(
                code.filter(|code| *code != Code::Ok).unwrap_or(Code::Failed),
                format!("the background process ended before its mount was live ({status})"),
            ))
        }
    }
}

fn understand(line: &str) -> Option<Word> {
    serde_json::from_str(line).ok()
}

/// The second process's way to tell the first how it went.
pub struct Child;

impl Child {
    /// Leaves the directory it was started in, which may be unmounted some day.
    pub fn leave_directory() -> Result<Self, Failure> {
        std::env::set_current_dir("/")
            .map_err(|error| Failure::new(Code::Local, format!("cannot leave the directory: {error}")))?;
        Ok(Self)
    }

    /// Leaves the terminal, so that its signals and its end do not reach the mount, says that the mount is live, and
    /// lets go of the first process's streams. An error means that nobody waits any more.
    ///
    /// Not before the mount is there: at a directory that systemd mounts at its first use, the kernel lets nobody in
    /// until then but systemd's own process group, of which the programs that it mounts with are.
    pub fn ready(self, log: &Log) -> io::Result<()> {
        rustix::process::setsid()?;
        say(&Word::Ready { ready: true, pid: std::process::id() })?;
        log.take_stdio()
    }
}

/// Says why there is no mount.
pub fn report(failure: &Failure) {
    // Without a reader there is nobody to tell.
    let _ = say(&Word::Failed { error: failure.message.clone(), exit: failure.code.number() });
}

fn say(word: &Word) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_words_are_understood_and_silence_is_neither() {
        let line = |word: &Word| serde_json::to_string(word).unwrap();
        let ready = Word::Ready { ready: true, pid: 7 };
        assert_eq!(line(&ready), r#"{"ready":true,"pid":7}"#);
        assert_eq!(understand(&line(&ready)), Some(ready));
        let failed = Word::Failed { error: "no\nbucket".into(), exit: 6 };
        assert_eq!(line(&failed), r#"{"error":"no\nbucket","exit":6}"#);
        assert_eq!(understand(&line(&failed)), Some(failed));
        assert_eq!(understand(""), None);
    }
}
