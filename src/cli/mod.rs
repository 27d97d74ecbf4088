//! The command line: what people type, and what they are told.
//!
//! Owns: flags, exit codes, messages, the log, and what the program reads of its environment and files.
//! Does not own: what a mount is made of and how it ends (`mount`).
//!
//! Guarantees: every command ends with a code of `exit::Code`; an error is told on standard error; no secret
//! is printed, and none is taken from the command line.

mod args;
mod background;
mod demo;
mod exit;
mod helper;
mod logging;
mod machine;
mod mount;
mod mountinfo;
mod mountpoint;
mod needs;
mod notify;
mod options;
mod pages;
mod printable;
mod progress;
mod recover;
mod running;
mod sessions;
mod status;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tokio::runtime::Runtime;

use args::{Cli, Command, SessionsCommand};
use exit::{Code, Failure};

/// Runs what was typed, and says how the program is to end.
pub fn main() -> ExitCode {
    // Every command has the keys of its user in its environment, or reads them.
    machine::keep_no_core();
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(caller) = helper::Caller::of(&args) {
        return caller.run(&args);
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors. A closed terminal does not change how it ends.
            let _ = error.print();
            let answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if answer { Code::Ok } else { Code::Usage }.into();
        }
    };
    match run(&cli) {
        Ok(()) => Code::Ok.into(),
        Err(failure) => {
            // The process in the background has told the one in front, which prints it.
            if !cli.background_child {
                let _ =
                    writeln!(std::io::stderr(), "pailfs: {}", printable::printable_lines(&failure.message));
            }
            failure.code.into()
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Mount(args) => mount::run(args, cli.background_child),
        Command::Umount(args) => runtime()?.block_on(running::umount(args)),
        Command::Status(args) => runtime()?.block_on(watch::run(args)),
        Command::Flush(args) => runtime()?.block_on(running::flush(args)),
        Command::LogLevel(args) => runtime()?.block_on(running::log_level(args)),
        Command::Sessions(args) => match &args.command {
            None => runtime()?.block_on(sessions::list(args)),
            Some(SessionsCommand::Check(args)) => runtime()?.block_on(sessions::check(args)),
        },
        Command::Recover(args) => recover::run(args),
        Command::Completions(args) => pages::completions(args),
        Command::Man(args) => pages::man(args),
        Command::Demo(args) => runtime()?.block_on(demo::run(args)),
    }
}

fn runtime() -> Result<Runtime, Failure> {
    Runtime::new().map_err(|error| Failure::new(Code::Local, format!("cannot start threads: {error}")))
}
