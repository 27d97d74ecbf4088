//! `Fs` in process, over S3 in memory: no kernel, no network, and a clock that tests move.

// Numbers in tests are small and made for the purpose.
#![allow(clippy::cast_possible_truncation)]

#[path = "../harness/mod.rs"]
#[allow(dead_code)]
mod harness;

mod behaviour;
mod beside;
mod client;
mod copying;
mod crash;
mod deletes;
mod faults;
mod hostile;
mod integrity;
mod interleavings;
mod listing;
mod memory;
mod metadata;
mod metrics;
mod model;
mod moving;
mod races;
mod reading;
mod renames;
mod reports;
mod streaming;
mod uploads;
mod windows;
