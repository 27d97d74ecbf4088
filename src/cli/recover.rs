//! `pailfs recover`: what mounts that have ended still owe S3, and how it gets there without mounting.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::RecoverArgs;
use super::exit::{Code, Failure};
use super::machine::absolute;
use super::mount::{choose, failure_of, shown};
use super::printable::{printable, printable_json};
use super::{logging, machine};
use crate::base::format_bytes;
use crate::config::{Site, default_memory_limit};
use crate::error::{Error, Kind};
use crate::mount;
use crate::write::journal::{Journal, Owed};

pub fn run(args: &RecoverArgs) -> Result<(), Failure> {
    let _log = logging::start(&args.log, false)?;
    let state_dir = match &args.state_dir {
        Some(dir) => absolute(dir)?,
        None => machine::default_state_dir()?,
    };
    match &args.source {
        None => list(&state_dir, args.json),
        Some(source) => save(args, source, state_dir),
    }
}

/// One directory of a mount.
#[derive(Debug, Serialize)]
struct Debts {
    dir: PathBuf,
    /// Why it cannot be looked into: mostly because a mount is live.
    unreadable: Option<String>,
    files: Vec<Debt>,
    renames: Vec<RenameDebt>,
    /// Removed files whose objects are not deleted yet.
    removals: Vec<String>,
    /// Uploads in parts that nothing is to become of.
    uploads: usize,
}

impl Debts {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.renames.is_empty() && self.removals.is_empty() && self.uploads == 0
    }
}

/// A directory that is under two names.
#[derive(Debug, Serialize)]
struct RenameDebt {
    from: String,
    to: String,
    objects: usize,
}

#[derive(Debug, Serialize)]
struct Debt {
    object: String,
    bytes: u64,
    /// Whether `close()` had returned.
    closed: bool,
    /// Why it cannot be saved.
    damage: Option<String>,
}

fn list(state_dir: &Path, json: bool) -> Result<(), Failure> {
    let mut all = Vec::new();
    let dirs = std::fs::read_dir(state_dir.join("mounts")).into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> = dirs.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    for dir in dirs {
        let debts = look(&dir);
        if debts.unreadable.is_some() || !debts.is_empty() {
            all.push(debts);
        }
    }
    let text = if json {
        let text = serde_json::to_string_pretty(&all);
        printable_json(&text.map_err(|error| Failure::new(Code::Internal, error.to_string()))?) + "\n"
    } else {
        describe(&all)
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::new(Code::Local, error.to_string()))
}

fn look(dir: &Path) -> Debts {
    let mut debts = Debts {
        dir: dir.to_owned(),
        unreadable: None,
        files: Vec::new(),
        renames: Vec::new(),
        removals: Vec::new(),
        uploads: 0,
    };
    let name = |bucket: &str, key: &str| format!("s3://{bucket}/{key}");
    match Journal::look(dir) {
        Ok(owed) => {
            for owed in owed {
                match owed {
                    Owed::File(file) => debts.files.push(Debt {
                        object: name(&file.place.bucket, &file.place.key),
                        bytes: file.extents.len(),
                        closed: file.acknowledged.is_some_and(|stamp| stamp == file.stamp),
                        damage: file.damage.or(file
                            .suspect
                            .then(|| "the machine went down before the bytes were on its disk".to_owned())),
                    }),
                    Owed::Upload(_) => debts.uploads += 1,
                    // An hour after it the next mount looks; it has no bytes.
                    Owed::Unheard { .. } => {}
                    Owed::Rename(rename) if rename.begun => debts.renames.push(RenameDebt {
                        from: name(&rename.from.bucket, &rename.from.key),
                        to: name(&rename.to.bucket, &rename.to.key),
                        objects: rename.objects.len(),
                    }),
                    Owed::Rename(_) => {}
                    Owed::Delete(delete) => debts.removals.push(name(&delete.bucket, &delete.doomed.key)),
                }
            }
        }
        Err(error) => debts.unreadable = Some(error.report()),
    }
    debts
}

fn describe(all: &[Debts]) -> String {
    let mut text = String::new();
    if all.is_empty() {
        text.push_str("nothing is owed\n");
    }
    for debts in all {
        let _ = writeln!(text, "{}", printable(&debts.dir.to_string_lossy()));
        if let Some(why) = &debts.unreadable {
            let _ = writeln!(text, "  {}", printable(why));
        }
        for file in &debts.files {
            let state = match (&file.damage, file.closed) {
                (Some(damage), _) => format!("not whole: {}", printable(damage)),
                (None, true) => "closed".to_owned(),
                (None, false) => "not closed".to_owned(),
            };
            let _ = writeln!(text, "  {}  {}  {state}", printable(&file.object), format_bytes(file.bytes));
        }
        for rename in &debts.renames {
            let RenameDebt { from, to, objects } = rename;
            let (from, to) = (printable(from), printable(to));
            let _ = writeln!(text, "  {from}  {objects} objects  being renamed to {to}");
        }
        for removed in &debts.removals {
            let _ = writeln!(text, "  {}  removed", printable(removed));
        }
        if debts.uploads > 0 {
            let _ = writeln!(text, "  {} uploads that are to be aborted", debts.uploads);
        }
    }
    text
}

fn save(args: &RecoverArgs, source: &str, state_dir: PathBuf) -> Result<(), Failure> {
    let (file, warnings) = machine::load_config(args.config.config.as_deref())?;
    for warning in warnings {
        eprintln!("pailfs: warning: {warning}");
    }
    let (source, sessions) = choose(source, &args.session, &args.objects.settings(), &file)?;
    let site = Site {
        source,
        sessions,
        timeout: args.timeout,
        memory_limit: default_memory_limit(machine::available_memory()),
        state_dir,
    };
    site.check()?;
    let mut heard = shown();
    let recovered = super::runtime()?.block_on(mount::recover(&site, &mut *heard)).map_err(failure_of)?;
    println!("{} files saved", recovered.files);
    for (count, what) in [
        (recovered.renames, "renames of directories finished"),
        (
            recovered.left,
            "objects stay under the old name of their directory: another client has changed them",
        ),
        (recovered.removals, "removed files deleted"),
    ] {
        if count > 0 {
            println!("{count} {what}");
        }
    }
    let mut told = Vec::new();
    if recovered.kept > 0 {
        told.push(format!(
            "{} files are not whole, or cannot be saved yet, and stay where they are",
            recovered.kept
        ));
    }
    if recovered.unfinished > 0 {
        told.push(format!(
            "{} renames and removals could not be finished, and stay owed",
            recovered.unfinished
        ));
    }
    match told.is_empty() {
        true => Ok(()),
        false => Err(Failure::coded(Code::UnsavedData, &Error::new(Kind::Corrupt, told.join("; ")))),
    }
}
