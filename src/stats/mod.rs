//! Every metric of a mount, its name, its unit and its meaning, in one table; and what is counted.
//!
//! Owns: the names, which are a promise to dashboards; counters and histograms; a snapshot of all and its text for Prometheus.
//! Does not own: what gauges measure: whoever has it says so when a snapshot is taken ([`Gauges`]).
//!
//! Counting is a relaxed atomic add or two, and for a request to S3 a short lock, which is nothing beside the request.
//! Nothing here decides anything.

mod histogram;
mod table;
mod text;

pub use histogram::{Distribution, Histogram};
pub use table::{Gauges, Kind, Metric, Tariff, Unit, table};
pub use text::{CONTENT_TYPE, Series, Snapshot, Value, markdown};

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use table::Requests;
pub use table::Stats;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the kernel asks for, by the names that logs have. Whatever is not here is counted as the last.
const OPERATIONS: [&str; 34] = [
    "read",
    "write",
    "lookup",
    "getattr",
    "open",
    "release",
    "close",
    "readdirplus",
    "readdir",
    "opendir",
    "releasedir",
    "create",
    "setattr",
    "unlink",
    "rename",
    "mkdir",
    "rmdir",
    "mknod",
    "symlink",
    "readlink",
    "fsync",
    "fsyncdir",
    "getxattr",
    "setxattr",
    "listxattr",
    "removexattr",
    "fallocate",
    "lseek",
    "copy_file_range",
    "statfs",
    "link",
    "access",
    "ioctl",
    "other",
];

/// One kind of request of the kernel.
#[derive(Debug, Default)]
struct Operation {
    asked: Counter,
    waits: Histogram,
}

/// The requests of the kernel, by kind.
#[derive(Debug)]
struct Operations([Operation; OPERATIONS.len()]);

impl Default for Operations {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Operation::default()))
    }
}

impl Operations {
    fn of(&self, name: &str) -> &Operation {
        let last = OPERATIONS.len() - 1;
        &self.0[OPERATIONS.iter().position(|known| *known == name).unwrap_or(last)]
    }
}

/// What became of one kind of request of the kernel.
#[derive(Clone, Debug)]
pub struct OperationCount {
    pub operation: &'static str,
    pub count: u64,
    /// Of these, those that could not be answered at once.
    pub waits: Distribution,
}

impl Stats {
    /// Counts one S3 request by API name and outcome (`ok`, or a kind of failure), with the time it took.
    pub fn request(&self, operation: &'static str, outcome: &'static str, took: Duration) {
        let mut requests = self.lock_requests();
        *requests.outcomes.entry((operation, outcome)).or_default() += 1;
        requests.latencies.entry(operation).or_default().add(took);
    }

    /// Requests so far, by API name and outcome.
    pub fn requests(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.lock_requests().outcomes.clone()
    }

    /// Requests so far of one API name, whatever their outcome.
    pub fn requests_of(&self, operation: &str) -> u64 {
        self.requests().iter().filter(|((name, _), _)| *name == operation).map(|(_, n)| n).sum()
    }

    /// How long requests took, by API name.
    pub fn latencies(&self) -> BTreeMap<&'static str, Distribution> {
        self.lock_requests().latencies.iter().map(|(name, took)| (*name, took.value())).collect()
    }

    /// Counts one request of the kernel, by the name it has in logs.
    pub fn asked(&self, operation: &str) {
        self.operations.of(operation).asked.add(1);
    }

    /// The same request could not be answered at once, and took so long.
    pub fn waited(&self, operation: &str, took: Duration) {
        self.operations.of(operation).waits.add(took);
    }

    /// The requests of the kernel so far, those kinds that there were.
    pub fn operations(&self) -> Vec<OperationCount> {
        let counts = OPERATIONS.iter().zip(&self.operations.0).map(|(name, of)| OperationCount {
            operation: name,
            count: of.asked.value(),
            waits: of.waits.value(),
        });
        counts.filter(|count| count.count > 0 || count.waits.count() > 0).collect()
    }

    fn lock_requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_name_and_outcome_and_timed_by_name() {
        let stats = Stats::default();
        stats.request("GetObject", "ok", Duration::from_millis(3));
        stats.request("GetObject", "not_found", Duration::from_millis(3));
        stats.request("PutObject", "ok", Duration::from_millis(3));
        assert_eq!((stats.requests_of("GetObject"), stats.requests()[&("GetObject", "ok")]), (2, 1));
        assert_eq!(stats.latencies()["GetObject"].count(), 2);
    }

    #[test]
    fn what_the_kernel_asks_is_counted_and_what_waits_is_timed() {
        let stats = Stats::default();
        stats.asked("read");
        stats.asked("read");
        stats.waited("read", Duration::from_millis(3));
        stats.asked("something new");
        let counts = stats.operations();
        assert_eq!((counts[0].operation, counts[0].count, counts[0].waits.count()), ("read", 2, 1));
        assert_eq!((counts[1].operation, counts[1].count), ("other", 1));
        assert_eq!(counts.len(), 2);
    }
}
