//! How far saving is, for whoever waits at a terminal or reads a log.

use std::collections::VecDeque;
use std::io::{IsTerminal, Stderr, Write, stderr};
use std::time::{Duration, Instant};

use crate::base::{Clock, SystemClock, format_bytes};
use crate::control::Unsaved;

/// What is done by then needs no words.
const QUIET: Duration = Duration::from_secs(1);
/// Between two lines where lines stay.
const LINES_APART: Duration = Duration::from_secs(5);
/// The rate is that of so long.
const RATE_OVER: Duration = Duration::from_secs(5);
/// Measurements of that time that are kept.
const SAMPLES_MAX: usize = 32;
/// To the beginning of the line, and clears it.
const AGAIN: &str = "\r\x1b[K";

/// One line that is drawn again and again on a terminal, or a line now and then.
pub struct Progress<W = Stderr> {
    out: W,
    terminal: bool,
    begun: Instant,
    /// When the latest line was said, if any was.
    said: Option<Instant>,
    /// The most there was to save, and what is left of it.
    most: (u64, u64),
    left: (u64, u64),
    /// Objects of directories that are being renamed: how many are copied, of how many.
    moving: Option<(u64, u64)>,
    /// Bytes left at these times.
    samples: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// On standard error.
    pub fn new() -> Self {
        Self::on(stderr(), stderr().is_terminal(), SystemClock.now())
    }

    pub fn hear(&mut self, unsaved: &Unsaved) {
        self.show(SystemClock.now(), unsaved);
    }
}

impl<W: Write> Progress<W> {
    fn on(out: W, terminal: bool, begun: Instant) -> Self {
        let (most, left) = ((0, 0), (0, 0));
        Self { out, terminal, begun, said: None, most, left, moving: None, samples: VecDeque::new() }
    }

    fn show(&mut self, now: Instant, unsaved: &Unsaved) {
        let bytes = unsaved.bytes.saturating_sub(unsaved.sent);
        self.left = (unsaved.files, bytes);
        self.moving = (!unsaved.renames.is_empty()).then(|| {
            let counts = unsaved.renames.iter().map(|rename| (rename.copied, rename.objects.unwrap_or(0)));
            counts.fold((0, 0), |(copied, all), (more, of)| (copied + more, all + of))
        });
        self.most = (self.most.0.max(unsaved.files), self.most.1.max(bytes));
        self.samples.push_back((now, bytes));
        while self.samples.len() > SAMPLES_MAX
            || self.samples.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > RATE_OVER)
        {
            self.samples.pop_front();
        }
        let is_time = match self.said {
            None => now.saturating_duration_since(self.begun) >= QUIET,
            Some(said) => self.terminal || now.saturating_duration_since(said) >= LINES_APART,
        };
        if is_time {
            self.said = Some(now);
            let line = self.line(now);
            self.say(&line, false);
        }
    }

    fn line(&self, now: Instant) -> String {
        match (self.saving(now), self.moving) {
            (saving, None) => saving,
            (_, Some((copied, all))) if self.left.0 == 0 => {
                format!("renaming a directory, {copied} of {all} objects copied")
            }
            (saving, Some((copied, all))) => {
                format!("{saving}; renaming a directory, {copied} of {all} objects copied")
            }
        }
    }

    fn saving(&self, now: Instant) -> String {
        let mut line = match self.left {
            (0, _) => return "waiting".to_owned(),
            (files, 0) => return format!("finishing {}", count(files)),
            (files, bytes) => format!("saving {} in {}", format_bytes(bytes), count(files)),
        };
        if let Some((at, before)) = self.samples.front() {
            let milliseconds = now.saturating_duration_since(*at).as_millis();
            let moved = u128::from(before.saturating_sub(self.left.1));
            if milliseconds > 0 && moved > 0 {
                let rate = u64::try_from(moved * 1000 / milliseconds).unwrap_or(u64::MAX);
                line += &format!(", {}/s", format_bytes(rate));
            }
        }
        line
    }

    /// It has ended, with everything saved or not. Says so where anything was said before.
    pub fn end(&mut self, all: bool) {
        if self.said.is_none() || self.most.0 == 0 {
            if self.said.is_some() && self.terminal {
                let _ = write!(self.out, "{AGAIN}");
            }
            return;
        }
        let (files, bytes) = self.most;
        let line = match all {
            true => format!("saved {} in {}", format_bytes(bytes), count(files)),
            false => format!(
                "saved {} of {} in {} of {}",
                format_bytes(bytes.saturating_sub(self.left.1)),
                format_bytes(bytes),
                files.saturating_sub(self.left.0),
                count(files)
            ),
        };
        self.say(&line, true);
    }

    fn say(&mut self, line: &str, last: bool) {
        // Who does not read it any more does not need it.
        let _ = match (self.terminal, last) {
            (true, false) => write!(self.out, "{AGAIN}pailfs: {line}").and_then(|()| self.out.flush()),
            (true, true) => writeln!(self.out, "{AGAIN}pailfs: {line}"),
            (false, _) => writeln!(self.out, "pailfs: {line}"),
        };
    }
}

pub fn count(files: u64) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::RenameStatus;

    fn unsaved(files: u64, bytes: u64, sent: u64) -> Unsaved {
        Unsaved { files, bytes, sent, ..Unsaved::default() }
    }

    /// What is shown of a saving that is told of twice a second.
    fn shown(terminal: bool, told: &[Unsaved], all: bool) -> String {
        let begun = SystemClock.now();
        let mut progress = Progress::on(Vec::new(), terminal, begun);
        for (step, unsaved) in (1..).zip(told) {
            progress.show(begun + Duration::from_millis(500) * step, unsaved);
        }
        progress.end(all);
        String::from_utf8(progress.out).unwrap()
    }

    #[test]
    fn a_terminal_has_one_line_that_changes_and_ends_with_what_was_saved() {
        let told =
            [unsaved(3, 9 << 20, 0), unsaved(3, 9 << 20, 1 << 20), unsaved(1, 4 << 20, 0), unsaved(1, 0, 0)];
        assert_eq!(
            shown(true, &told, true),
            "\r\x1b[Kpailfs: saving 8.0 MiB in 3 files, 2.0 MiB/s\
             \r\x1b[Kpailfs: saving 4.0 MiB in 1 file, 5.0 MiB/s\
             \r\x1b[Kpailfs: finishing 1 file\
             \r\x1b[Kpailfs: saved 9.0 MiB in 3 files\n"
        );
    }

    #[test]
    fn elsewhere_there_is_a_line_now_and_then() {
        let told: Vec<Unsaved> = (0..24).map(|step| unsaved(24 - step, (24 - step) << 20, 0)).collect();
        let text = shown(false, &told, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "pailfs: saving 23.0 MiB in 23 files, 2.0 MiB/s",
                "pailfs: saving 13.0 MiB in 13 files, 2.0 MiB/s",
                "pailfs: saving 3.0 MiB in 3 files, 2.0 MiB/s",
                "pailfs: saved 23.0 MiB of 24.0 MiB in 23 of 24 files",
            ]
        );
    }

    #[test]
    fn the_rename_of_a_directory_is_told_of_by_its_objects() {
        let renaming = |files, copied| Unsaved {
            renames: vec![RenameStatus {
                from: "s3://b/old/".into(),
                to: "s3://b/new/".into(),
                objects: Some(50),
                copied,
                seconds: 1,
            }],
            ..unsaved(files, files << 20, 0)
        };
        let told: Vec<Unsaved> = (0..2).map(|n| renaming(0, n)).collect();
        assert_eq!(shown(false, &told, true), "pailfs: renaming a directory, 1 of 50 objects copied\n");
        let told: Vec<Unsaved> = (0..2).map(|n| renaming(2, n)).collect();
        assert_eq!(
            shown(false, &told, true),
            "pailfs: saving 2.0 MiB in 2 files; renaming a directory, 1 of 50 objects copied\n\
             pailfs: saved 2.0 MiB in 2 files\n"
        );
    }

    #[test]
    fn what_is_done_at_once_needs_no_words() {
        assert_eq!(shown(true, &[unsaved(3, 5, 0)], true), "");
        assert_eq!(shown(false, &vec![unsaved(0, 0, 0); 4], true), "pailfs: waiting\n");
    }
}
