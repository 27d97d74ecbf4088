//! The real binary, this kernel, a real S3 server process.
//!
//! `semantics` has a test for each row of docs/SEMANTICS.md and quotes it; `servers` runs a day's work on
//! servers that we did not write; `cli` is what a person types; `cache` is the cache directory and
//! passthrough; `removals` is `rm -r`; `stuck` is what happens when nobody answers.

// Numbers in tests are small and made for the purpose.
#![allow(clippy::cast_possible_truncation)]

#[path = "../harness/mod.rs"]
mod harness;

mod cache;
mod cli;
mod removals;
mod semantics;
mod servers;
mod sessions;
mod stuck;
