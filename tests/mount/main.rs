//! The real binary, this kernel, a real S3 server process.
//!
//! `semantics` has a test for each row of docs/SEMANTICS.md and quotes it; `servers` runs a day's work on
//! servers that we did not write; `cli` is what a person types; `cache` is the cache directory and
//! passthrough; `beside` is what S3 is told beside the bytes; `reading` counts what reading costs; `writing` is large
//! files and small disks; `removals` is `rm -r`; `copying` is copies and holes, by the tools that ask for them; `stuck` and
//! `holes` are what happens when nobody answers; `identity` is credentials, clocks and permissions that change; `secrets` is what nobody else may see; `two_mounts` is two hosts that write one key; `full` is a disk without room;
//! `programs` and `reports` are what went wrong elsewhere, the first with programs that people use; `tools` is what standard tools do
//! on a local directory, done here; `interop` is what s3fs and rclone write and read; `home` is what a system asks of a file system:
//! /etc/fstab, a service manager, users without rights; `logs` is what people find in the log and in the file of --trace-ops;
//! `status` is what a mount shows of itself; `limits` is the memory of its process; `cluster` is two mounts over three nodes, of
//! which one is killed.

// Numbers in tests are small and made for the purpose.
#![allow(clippy::cast_possible_truncation)]

#[path = "../harness/mod.rs"]
mod harness;

mod beside;
mod cache;
mod cli;
mod cluster;
mod copying;
mod drain;
mod extremes;
mod full;
mod holes;
mod home;
mod identity;
mod interop;
mod kills;
mod limits;
mod logs;
mod programs;
mod reading;
mod removals;
mod reports;
mod secrets;
mod semantics;
mod servers;
mod sessions;
mod status;
mod stuck;
mod tools;
mod tools_meta;
mod two_mounts;
mod writing;
