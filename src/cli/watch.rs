//! `pailfs status`: one look at a running mount, or one after the other.

use std::io::{self, IsTerminal, Stdout, Write, stdout};
use std::path::Path;
use std::time::Duration;

use rustix::termios::tcgetwinsize;
use tokio::signal::unix::{SignalKind, signal};

use super::args::StatusArgs;
use super::exit::{Code, Failure};
use super::printable::{printable_json, printable_lines};
use super::running::{live, no_answer, refused};
use super::{mountpoint, status};
use crate::control::{Reply, Request, Status};

pub async fn run(args: &StatusArgs) -> Result<(), Failure> {
    if args.prometheus {
        let client = live(&args.dir).await?;
        return match client.ask(Request::Metrics, |_| {}).await.map_err(no_answer)? {
            // A label may hold anything that is in a name.
            Reply::Metrics { text } if stdout().is_terminal() => say(&printable_lines(&text)),
            Reply::Metrics { text } => say(&text),
            other => Err(refused(other)),
        };
    }
    let first = look(&args.dir).await?;
    match args.watch {
        Some(pause) => {
            let mut stop = signal(SignalKind::interrupt()).map_err(crate::error::Error::from)?;
            tokio::select! {
                ended = watch(args, pause, first) => ended,
                _ = stop.recv() => Ok(()),
            }
        }
        None if args.json => say(&(json(serde_json::to_string_pretty(&first))? + "\n")),
        None if stdout().is_terminal() => {
            let (_, columns) = size();
            say(&status::fold(&status::describe(&first), columns))
        }
        None => say(&status::describe(&first)),
    }
}

async fn look(dir: &Path) -> Result<Status, Failure> {
    match live(dir).await?.ask(Request::Status, |_| {}).await.map_err(no_answer)? {
        Reply::Status(status) => Ok(*status),
        other => Err(refused(other)),
    }
}

/// Shows the mount again and again, until its end, or that of whoever reads.
async fn watch(args: &StatusArgs, pause: Duration, first: Status) -> Result<(), Failure> {
    let mut screen = Screen { out: stdout(), terminal: stdout().is_terminal() };
    let mut next = first;
    let path = Path::new(&next.mountpoint).to_owned();
    loop {
        let shown = match args.json {
            true => screen.append(&(json(serde_json::to_string(&next))? + "\n")),
            false if screen.terminal => {
                let (rows, columns) = size();
                let page = status::describe_some(&next, (rows / FILES_PART).max(1));
                screen.append(&frame(&status::fold(&page, columns), (rows, columns)))
            }
            false => screen.append(&(status::describe(&next) + "\n")),
        };
        match shown {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            shown => shown.map_err(|error| Failure::new(Code::Local, error.to_string()))?,
        }
        tokio::time::sleep(pause).await;
        next = match look(&path).await {
            Ok(status) => status,
            Err(_) if !mountpoint::is_mounted(&path)? => {
                eprintln!("pailfs: the mount on {} has ended", path.display());
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
    }
}

fn json(text: serde_json::Result<String>) -> Result<String, Failure> {
    text.map(|text| printable_json(&text)).map_err(|error| Failure::new(Code::Internal, error.to_string()))
}

fn say(text: &str) -> Result<(), Failure> {
    stdout().write_all(text.as_bytes()).map_err(|error| Failure::new(Code::Local, error.to_string()))
}

/// Where a watched status is shown.
struct Screen<W = Stdout> {
    out: W,
    terminal: bool,
}

/// To the upper left corner; from here to the end of the line, and to that of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Of a terminal that does not say.
const USUAL_SIZE: (usize, usize) = (24, 80);
/// One unsaved file is named for so many rows, as it may take five of them with its error.
const FILES_PART: usize = 16;

impl<W: Write> Screen<W> {
    fn append(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

/// Rows and columns of the terminal.
fn size() -> (usize, usize) {
    match tcgetwinsize(stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => USUAL_SIZE,
    }
}

/// What redraws a screen of this many rows and columns without a flicker: each line is written over the old one. Where not
/// all of them fit, the last says so.
fn frame(text: &str, (rows, columns): (usize, usize)) -> String {
    let mut frame = String::from(HOME);
    let (lines, room) = (text.lines().count(), rows.saturating_sub(1));
    let shown = if lines > room { room.saturating_sub(1) } else { lines };
    let more = format!("({} more lines; without --watch all are shown)", lines - shown);
    for (n, line) in text.lines().take(shown).chain((shown < lines).then_some(&*more)).enumerate() {
        if n > 0 {
            frame.push_str("\r\n");
        }
        frame.extend(line.chars().take(columns));
        frame.push_str(CLEAR_LINE);
    }
    frame.push_str("\r\n");
    frame.push_str(CLEAR_BELOW);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_its_screen() {
        let text = "one is long\ntwo\nthree\n";
        assert_eq!(frame(text, (4, 7)), "\x1b[Hone is \x1b[K\r\ntwo\x1b[K\r\nthree\x1b[K\r\n\x1b[J");
        let cut = frame("one\ntwo\nthree\nfour\n", (4, 20));
        assert_eq!(cut, "\x1b[Hone\x1b[K\r\ntwo\x1b[K\r\n(2 more lines; witho\x1b[K\r\n\x1b[J");
        assert_eq!(frame("", (24, 80)), "\x1b[H\r\n\x1b[J");
    }
}
