//! What passed through the proxy since the last reset.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::timer::cpu;

#[derive(Default)]
pub struct Counts {
    requests: Mutex<BTreeMap<&'static str, u64>>,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    connections: AtomicU64,
    open: AtomicI64,
    in_flight: AtomicI64,
    cpu_at_reset: Mutex<Duration>,
}

/// The counts at one moment, as the administration tells them.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// By S3's name of the operation.
    pub requests: BTreeMap<&'static str, u64>,
    /// Heads and bodies, towards the server and towards the client.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now, and requests on them without a complete answer. A reset does not touch these.
    pub open: i64,
    pub in_flight: i64,
    /// The proxy's own processor time.
    pub cpu_seconds: f64,
}

impl Counts {
    pub fn opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
    }
    pub fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
    pub fn up(&self, bytes: usize) {
        self.bytes_up.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    pub fn down(&self, bytes: usize) {
        self.bytes_down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A request has arrived; it is in flight until what is returned is dropped.
    pub fn request(&self, operation: &'static str) -> InFlight<'_> {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(operation).or_default() += 1;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self)
    }

    pub fn snapshot(&self) -> Snapshot {
        let since = *self.cpu_at_reset.lock().unwrap_or_else(PoisonError::into_inner);
        Snapshot {
            requests: self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            bytes_up: self.bytes_up.load(Ordering::Relaxed),
            bytes_down: self.bytes_down.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            cpu_seconds: cpu().saturating_sub(since).as_secs_f64(),
        }
    }

    pub fn reset(&self) -> Snapshot {
        let before = self.snapshot();
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for counter in [&self.bytes_up, &self.bytes_down, &self.connections] {
            counter.store(0, Ordering::Relaxed);
        }
        *self.cpu_at_reset.lock().unwrap_or_else(PoisonError::into_inner) = cpu();
        before
    }
}

pub struct InFlight<'a>(&'a Counts);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
