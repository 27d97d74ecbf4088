//! What the test targets share: real servers, one of each per process, and a fresh bucket per test.
//!
//! A test target says `#[path = "../harness/mod.rs"] mod harness;`.

#[allow(dead_code)]
pub mod bucket;
#[allow(dead_code)]
pub mod exposition;
// Each target uses a part of what is shared.
#[allow(dead_code)]
pub mod mount;
#[allow(dead_code)]
pub mod server;

pub use bucket::Place;
pub use server::{Endpoint, Server};

use std::future::Future;
use std::sync::LazyLock;

use tokio::runtime::Runtime;

/// One runtime for the whole process, because connections of a shared client live in the one that
/// opened them.
pub fn block_on<F: Future>(future: F) -> F::Output {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime starts")
    });
    RUNTIME.block_on(future)
}

/// A setting of the run, from the environment.
// A test run has no other way to be told.
#[allow(clippy::disallowed_methods)]
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
