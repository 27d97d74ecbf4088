//! `Fs` in process, over S3 in memory: no kernel, no network, and a clock that tests move.

#[path = "../harness/mod.rs"]
#[allow(dead_code)]
mod harness;

mod behaviour;
mod client;
mod faults;
mod model;
