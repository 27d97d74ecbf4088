//! An S3 server inside the program, to try things on and to test against.
//!
//! Owns: the HTTP side of S3 (through `s3s`), faults by rule, and counts of what arrived. Does not own what a
//! bucket holds or how S3 decides: that is any [`Store`](crate::s3::Store), by default the one in memory.
//!
//! Guarantees: it listens on loopback only; every answer carries `x-amz-request-id` and `x-amz-id-2`; the same
//! seed, rules and order of requests give the same faults; [`Server::stop`] leaves no task behind.
//!
//! Beside S3 the listener answers on paths that no bucket can have: `/-/ready`, `/-/counts`,
//! `/-/counts/reset` and `/-/faults`. Those need no signature.

mod api;
mod convert;
mod counts;
mod encryption;
mod faults;
mod operation;
mod seed;
mod server;
mod shape;
mod synthetic;

pub use counts::Counts;
pub use faults::{Fault, FaultRule};
pub use seed::seed_tree;
pub use server::{Builder, Credentials, Server};
pub use synthetic::{SYNTHETIC, Synthetic, word};
