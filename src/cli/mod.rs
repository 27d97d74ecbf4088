//! The command line: what people type, and what they are told.
//!
//! Owns: flags, exit codes, messages, the log, and what the program reads of its environment and files.
//! Does not own: what a mount is made of and how it ends (`mount`).
//!
//! Guarantees: every command ends with a code of [`exit::Code`]; an error is one line on standard error; no secret
//! is printed, and none is taken from the command line.

mod args;
mod background;
mod exit;
mod logging;
mod machine;
mod mountinfo;
mod mountpoint;
mod running;

pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
