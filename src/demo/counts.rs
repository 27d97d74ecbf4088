//! What arrived and what was answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Requests by API name and by status class, and bytes of bodies as they crossed the wire.
///
/// A request that got no answer (its connection was reset) is in `statuses` as `none`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub requests: BTreeMap<String, u64>,
    pub statuses: BTreeMap<String, u64>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Counts {
    /// Requests of one API name.
    pub fn of(&self, operation: &str) -> u64 {
        self.requests.get(operation).copied().unwrap_or(0)
    }
}

/// The running figures; both tables are bounded by the API's names and the status classes.
#[derive(Debug, Default)]
pub(super) struct Tally {
    tables: Mutex<Tables>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

#[derive(Debug, Default)]
struct Tables {
    requests: BTreeMap<&'static str, u64>,
    statuses: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(super) fn request(&self, operation: &'static str) {
        *self.tables().requests.entry(operation).or_default() += 1;
    }

    /// `None` where the connection ended without an answer.
    pub(super) fn status(&self, status: Option<u16>) {
        let class = match status.map(|status| status / 100) {
            None => "none",
            Some(1) => "1xx",
            Some(2) => "2xx",
            Some(3) => "3xx",
            Some(4) => "4xx",
            Some(_) => "5xx",
        };
        *self.tables().statuses.entry(class).or_default() += 1;
    }

    pub(super) fn bytes_in(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn bytes_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Counts {
        let owned = |table: &BTreeMap<&'static str, u64>| {
            table.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let tables = self.tables();
        Counts {
            requests: owned(&tables.requests),
            statuses: owned(&tables.statuses),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        }
    }

    pub(super) fn reset(&self) {
        *self.tables() = Tables::default();
        self.bytes_in.store(0, Ordering::Relaxed);
        self.bytes_out.store(0, Ordering::Relaxed);
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
