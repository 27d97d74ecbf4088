//! What a mount shows of itself: the values of its parts, put together for people, programs and Prometheus.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::findings::{Findings, Place};
use super::rates::{self, Rates};
use super::saving::unsaved;
use crate::base::{Clock, StagingPlace, SystemClock, allocator};
use crate::config::{self, MountConfig};
use crate::control::{
    BucketStatus, Capability, Cost, CounterValue, DiskCacheStatus, Latency, MemoryStatus, OpenStatus,
    OperationStatus, PoolStatus, RequestCount, StagingStatus, Status, Throughput, TransferStatus,
};
use crate::fs::{Fs, View};
use crate::s3::Capabilities;
use crate::stats::{Distribution, Gauges, Stats, Tariff};

/// Buckets that a status tells of.
const BUCKETS_MAX: usize = 64;
/// How long what is kept of endpoints is waited for: it is on a disk.
const KEPT_WAIT: Duration = Duration::from_millis(500);

/// Looks at a mount.
pub(super) struct Looker {
    fs: Arc<Fs>,
    findings: Arc<Findings>,
    /// What does not change.
    still: Status,
    rates: config::Rates,
    cache_dir: Option<String>,
    staging: StagingPlace,
    begun: Instant,
    begun_at: SystemTime,
    moved: Mutex<Rates<5>>,
    metrics_listen: OnceLock<SocketAddr>,
}

impl Looker {
    pub(super) fn new(config: &MountConfig, fs: &Arc<Fs>, findings: Arc<Findings>) -> Arc<Self> {
        let begun = SystemClock.now();
        let looker = Arc::new(Self {
            still: Status {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                mountpoint: config.mountpoint.to_string_lossy().into_owned(),
                source: config.site.source.name(),
                read_only: config.read_only,
                memory_limit_bytes: config.site.memory_limit,
                ..Status::default()
            },
            findings,
            rates: config.rates,
            cache_dir: config.cache.as_ref().map(|cache| cache.dir.to_string_lossy().into_owned()),
            staging: config.staging,
            begun,
            begun_at: SystemClock.wall(),
            moved: Mutex::new(Rates::new(begun, moved(fs.stats()))),
            fs: Arc::clone(fs),
            metrics_listen: OnceLock::new(),
        });
        let noting = Arc::downgrade(&looker);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(rates::EVERY).await;
                let Some(looker) = noting.upgrade() else { return };
                looker.moved().note(SystemClock.now(), moved(looker.fs.stats()));
            }
        });
        looker
    }

    /// Metrics are served there.
    pub(super) fn listens(&self, address: SocketAddr) {
        let _ = self.metrics_listen.set(address);
    }

    fn moved(&self) -> std::sync::MutexGuard<'_, Rates<5>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn status(&self) -> Status {
        let stats = self.fs.stats();
        let view = self.fs.view().await;
        Status {
            uptime_seconds: SystemClock.now().saturating_duration_since(self.begun).as_secs(),
            metrics_listen: self.metrics_listen.get().map(SocketAddr::to_string),
            buckets: self.buckets().await,
            unsaved: unsaved(&self.fs),
            notes: self.findings.notes().into_iter().chain(silence(stats)).collect(),
            throughput: self.throughput(),
            cost: cost(stats, &self.rates),
            memory: MemoryStatus {
                budget_bytes: view.memory_budget_bytes,
                resident_bytes: allocator::resident_bytes(),
                pools: view
                    .memory
                    .iter()
                    .map(|(pool, bytes)| PoolStatus { pool: (*pool).to_owned(), bytes: *bytes })
                    .collect(),
            },
            disk_cache: self.cache_dir.clone().map(|dir| {
                let cache = view.disk_cache.unwrap_or_default();
                DiskCacheStatus { dir, used_bytes: cache.used_bytes, limit_bytes: cache.limit_bytes }
            }),
            staging: StagingStatus {
                place: match self.staging {
                    StagingPlace::Disk => "disk",
                    StagingPlace::Memory => "memory",
                }
                .to_owned(),
                used_bytes: view.staging_used_bytes,
                free_bytes: view.staging_free_bytes,
            },
            open: OpenStatus {
                file_handles: view.file_handles,
                dir_handles: view.dir_handles,
                files: view.open_files,
                inodes: view.inodes,
            },
            transfers: TransferStatus {
                under_way: view.transfers.under_way as u64,
                waiting: view.transfers.waiting as u64,
                limit: view.transfers.limit as u64,
            },
            counters: counters(stats),
            requests: requests(stats),
            latencies: stats.latencies().iter().filter_map(|(name, took)| latency(name, took)).collect(),
            operations: stats
                .operations()
                .iter()
                .map(|of| OperationStatus {
                    operation: of.operation.to_owned(),
                    count: of.count,
                    waits: latency(of.operation, &of.waits),
                })
                .collect(),
            ..self.still.clone()
        }
    }

    /// The text that Prometheus scrapes.
    pub(super) async fn metrics(&self) -> String {
        let view = self.fs.view().await;
        self.fs.stats().snapshot(&self.gauges(view)).text()
    }

    fn gauges(&self, view: View) -> Gauges {
        let unsaved = unsaved(&self.fs);
        let cost = cost(self.fs.stats(), &self.rates);
        let renames = &unsaved.renames;
        let since_1970 = self.begun_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Gauges {
            start_time_seconds: Some(since_1970.as_secs()),
            resident_memory_bytes: allocator::resident_bytes(),
            memory_limit_bytes: Some(self.still.memory_limit_bytes),
            memory_budget_bytes: Some(view.memory_budget_bytes),
            disk_cache_used_bytes: view.disk_cache.and_then(|cache| cache.used_bytes),
            disk_cache_limit_bytes: view.disk_cache.map(|cache| cache.limit_bytes),
            staging_used_bytes: view.staging_used_bytes,
            staging_free_bytes: view.staging_free_bytes,
            pending_files: Some(unsaved.files),
            pending_bytes: Some(unsaved.bytes),
            pending_sent_bytes: Some(unsaved.sent),
            open_files: Some(view.open_files),
            inodes: Some(view.inodes),
            transfers_under_way: Some(view.transfers.under_way as u64),
            transfers_limit: Some(view.transfers.limit as u64),
            transfers_waiting: Some(view.transfers.waiting as u64),
            renames: Some(renames.len() as u64),
            rename_objects: Some(renames.iter().filter_map(|rename| rename.objects).sum()),
            rename_copied_objects: Some(renames.iter().map(|rename| rename.copied).sum()),
            memory_used_bytes: view.memory,
            open_handles: vec![("file", view.file_handles), ("directory", view.dir_handles)],
            cost_dollars: [
                (Tariff::Put, cost.put_requests, cost.put_per_1000),
                (Tariff::Get, cost.get_requests, cost.get_per_1000),
                (Tariff::Delete, cost.delete_requests, cost.delete_per_1000),
            ]
            .map(|(tariff, requests, per_1000)| (tariff, dollars(requests, per_1000)))
            .into(),
            version: self.still.version.clone(),
            source: self.still.source.clone(),
            mountpoint: self.still.mountpoint.clone(),
        }
    }

    fn throughput(&self) -> Throughput {
        let (seconds, [read, written, received, sent, requests]) =
            self.moved().now(SystemClock.now(), moved(self.fs.stats()));
        Throughput {
            seconds,
            read_bytes_per_second: read,
            written_bytes_per_second: written,
            received_bytes_per_second: received,
            sent_bytes_per_second: sent,
            requests_per_second: requests,
        }
    }

    async fn buckets(&self) -> Vec<BucketStatus> {
        let mut places = self.findings.places.all();
        places.truncate(BUCKETS_MAX);
        let findings = Arc::clone(&self.findings);
        let told = |place: &Place, found: Option<Capabilities>| BucketStatus {
            bucket: place.bucket.clone(),
            prefix: place.prefix.clone(),
            session: place.session.name().to_owned(),
            region: place.session.known_region(&place.bucket),
            endpoint: place.session.endpoint_url(),
            read_only: place.read_only || self.still.read_only,
            capabilities: found.map(|found| capabilities(&found)).unwrap_or_default(),
        };
        let asked = places.clone();
        let asking = tokio::task::spawn_blocking(move || {
            asked.iter().map(|place| findings.known(place)).collect::<Vec<_>>()
        });
        let found = match tokio::time::timeout(KEPT_WAIT, asking).await {
            Ok(Ok(found)) => found,
            _ => vec![None; places.len()],
        };
        places.iter().zip(found).map(|(place, found)| told(place, found)).collect()
    }
}

fn capabilities(found: &Capabilities) -> Vec<Capability> {
    let row = |(name, verdict, _): (&str, crate::s3::Verdict, &str)| Capability {
        name: name.to_owned(),
        verdict: verdict.to_string(),
    };
    found.table().into_iter().map(row).collect()
}

/// What moves: bytes read and written, received and sent, and requests.
fn moved(stats: &Stats) -> [u64; 5] {
    let bytes = [&stats.bytes_read, &stats.bytes_written, &stats.bytes_received, &stats.bytes_sent];
    let [read, written, received, sent] = bytes.map(|counter| counter.value());
    [read, written, received, sent, stats.requests().values().sum()]
}

fn cost(stats: &Stats, rates: &config::Rates) -> Cost {
    let requests = stats.requests();
    let count = |tariff: Tariff| {
        let paid = requests.iter().filter(|((operation, outcome), _)| {
            Tariff::of(operation) == tariff && Tariff::is_charged(outcome)
        });
        paid.map(|(_, count)| count).sum()
    };
    let [put, get, delete] = Tariff::ALL.map(count);
    Cost {
        dollars: dollars(put, rates.put_per_1000)
            + dollars(get, rates.get_per_1000)
            + dollars(delete, rates.delete_per_1000),
        put_requests: put,
        get_requests: get,
        delete_requests: delete,
        put_per_1000: rates.put_per_1000,
        get_per_1000: rates.get_per_1000,
        delete_per_1000: rates.delete_per_1000,
    }
}

fn dollars(requests: u64, per_1000: f64) -> f64 {
    requests as f64 * per_1000 / 1000.0
}

fn latency(operation: &str, took: &Distribution) -> Option<Latency> {
    let count = took.count();
    let ms = |share: f64| took.quantile(share).map_or(0.0, |seconds| seconds * 1e3);
    (count > 0).then(|| Latency {
        operation: operation.to_owned(),
        count,
        mean_ms: took.sum_seconds() * 1e3 / count as f64,
        p50_ms: ms(0.5),
        p90_ms: ms(0.9),
        p99_ms: ms(0.99),
    })
}

fn counters(stats: &Stats) -> Vec<CounterValue> {
    let value = |(name, meaning, value): (&str, &str, u64)| CounterValue {
        name: name.to_owned(),
        meaning: meaning.to_owned(),
        value,
    };
    stats.counters().into_iter().map(value).collect()
}

fn requests(stats: &Stats) -> Vec<RequestCount> {
    let count = |((operation, outcome), count): ((&str, &str), u64)| RequestCount {
        operation: operation.to_owned(),
        outcome: outcome.to_owned(),
        count,
    };
    stats.requests().into_iter().map(count).collect()
}

/// What there is to say of an endpoint that does not answer.
fn silence(stats: &Stats) -> Option<String> {
    let silent = stats.silences.value() > stats.silences_ended.value();
    silent.then(|| "the endpoint answers nothing; what is asked of it fails at once until it does".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_cost_what_the_rates_say() {
        let stats = Stats::default();
        let count = |operation, outcome, times| {
            for _ in 0..times {
                stats.request(operation, outcome, Duration::ZERO);
            }
        };
        count("PutObject", "ok", 2000);
        count("PutObject", "throttled", 500);
        count("ListObjectsV2", "ok", 1000);
        count("GetObject", "ok", 9000);
        count("HeadObject", "not_found", 1000);
        count("DeleteObjects", "ok", 1000);
        let cost = cost(&stats, &config::Rates::default());
        assert_eq!((cost.put_requests, cost.get_requests, cost.delete_requests), (3000, 10_000, 1000));
        assert!((cost.dollars - (0.015 + 0.004)).abs() < 1e-9, "{}", cost.dollars);
    }

    #[test]
    fn this_process_is_in_ram() {
        assert!(allocator::resident_bytes().unwrap() > 1 << 20);
    }
}
