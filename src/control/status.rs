//! What a mount is, has done so far, and holds now, in the form that travels and that `pailfs status --json` prints.
//!
//! Fields are added; one that is there keeps its name and meaning.

use serde::{Deserialize, Serialize};

use super::Unsaved;

/// A mount at one time. What an older or newer mount does not tell is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub pid: u32,
    pub version: String,
    pub mountpoint: String,
    pub source: String,
    pub read_only: bool,
    /// Since it was mounted.
    pub uptime_seconds: u64,
    pub memory_limit_bytes: u64,
    /// Address and port where metrics are served over HTTP.
    pub metrics_listen: Option<String>,
    /// The first of the buckets that it shows or has shown.
    pub buckets: Vec<BucketStatus>,
    pub unsaved: Unsaved,
    /// What people should know of the endpoints, a line each.
    pub notes: Vec<String>,
    pub throughput: Throughput,
    pub cost: Cost,
    pub memory: MemoryStatus,
    /// `null` without a cache directory.
    pub disk_cache: Option<DiskCacheStatus>,
    pub staging: StagingStatus,
    pub open: OpenStatus,
    pub transfers: TransferStatus,
    pub counters: Vec<CounterValue>,
    pub requests: Vec<RequestCount>,
    /// Of requests to S3, by operation.
    pub latencies: Vec<Latency>,
    /// Of the kernel.
    pub operations: Vec<OperationStatus>,
}

/// A bucket, and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BucketStatus {
    pub bucket: String,
    pub prefix: String,
    pub session: String,
    /// `null` where nobody tells.
    pub region: Option<String>,
    /// `null` is Amazon's own.
    pub endpoint: Option<String>,
    pub read_only: bool,
    /// What its endpoint was found to do, or is known to.
    pub capabilities: Vec<Capability>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    pub name: String,
    /// `works`, `ignored`, `refused`, `denied` or `unknown`
    pub verdict: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterValue {
    pub name: String,
    pub meaning: String,
    pub value: u64,
}

/// How often an S3 operation ended in one way: `ok`, or a kind of failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    pub operation: String,
    pub outcome: String,
    pub count: u64,
}

/// How long something took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub operation: String,
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
}

/// Requests of the kernel of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationStatus {
    pub operation: String,
    pub count: u64,
    /// Those that could not be answered at once.
    pub waits: Option<Latency>,
}

/// Over the last seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Throughput {
    pub seconds: f64,
    /// Answered to read(2), and taken from write(2).
    pub read_bytes_per_second: f64,
    pub written_bytes_per_second: f64,
    /// Between here and S3.
    pub received_bytes_per_second: f64,
    pub sent_bytes_per_second: f64,
    pub requests_per_second: f64,
}

/// What requests cost so far, by the rates of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cost {
    pub dollars: f64,
    pub put_requests: u64,
    pub get_requests: u64,
    pub delete_requests: u64,
    pub put_per_1000: f64,
    pub get_per_1000: f64,
    pub delete_per_1000: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStatus {
    /// What the pools share.
    pub budget_bytes: u64,
    /// Of the whole process.
    pub resident_bytes: Option<u64>,
    pub pools: Vec<PoolStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub pool: String,
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskCacheStatus {
    pub dir: String,
    /// Over all mounts that use it; `null` before anything is known.
    pub used_bytes: Option<u64>,
    pub limit_bytes: u64,
}

/// Where written bytes wait for their upload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StagingStatus {
    /// `disk` or `memory`
    pub place: String,
    pub used_bytes: Option<u64>,
    pub free_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenStatus {
    pub file_handles: u64,
    pub dir_handles: u64,
    /// With those that are closed and not saved yet.
    pub files: u64,
    pub inodes: u64,
}

/// Requests that carry bytes or are guesses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferStatus {
    pub under_way: u64,
    pub waiting: u64,
    pub limit: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The names of all fields, however deep: `memory.pools.bytes`.
    fn fields(prefix: &str, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    let name = format!("{prefix}{name}");
                    fields(&format!("{name}."), value, found);
                    found.push(name);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| fields(prefix, value, found)),
            _ => {}
        }
    }

    /// What scripts rely on: a field may be added here, and none may go.
    #[test]
    fn the_fields_of_a_status_are_these() {
        let status = Status {
            buckets: vec![BucketStatus {
                capabilities: vec![Capability { name: String::new(), verdict: String::new() }],
                ..BucketStatus::default()
            }],
            disk_cache: Some(DiskCacheStatus::default()),
            memory: MemoryStatus {
                pools: vec![PoolStatus { pool: String::new(), bytes: 0 }],
                ..MemoryStatus::default()
            },
            counters: vec![CounterValue { name: String::new(), meaning: String::new(), value: 0 }],
            requests: vec![RequestCount { operation: String::new(), outcome: String::new(), count: 0 }],
            latencies: vec![Latency::default()],
            operations: vec![OperationStatus { waits: Some(Latency::default()), ..Default::default() }],
            ..Status::default()
        };
        let mut found = Vec::new();
        fields("", &serde_json::to_value(status).unwrap(), &mut found);
        found.sort();
        let wanted = "buckets buckets.bucket buckets.capabilities buckets.capabilities.name \
             buckets.capabilities.verdict buckets.endpoint buckets.prefix buckets.read_only buckets.region \
             buckets.session cost cost.delete_per_1000 cost.delete_requests cost.dollars cost.get_per_1000 \
             cost.get_requests cost.put_per_1000 cost.put_requests counters counters.meaning counters.name \
             counters.value disk_cache disk_cache.dir disk_cache.limit_bytes disk_cache.used_bytes latencies \
             latencies.count latencies.mean_ms latencies.operation latencies.p50_ms latencies.p90_ms \
             latencies.p99_ms memory memory.budget_bytes memory.pools memory.pools.bytes memory.pools.pool \
             memory.resident_bytes memory_limit_bytes metrics_listen mountpoint notes open open.dir_handles \
             open.file_handles open.files open.inodes operations operations.count operations.operation \
             operations.waits operations.waits.count operations.waits.mean_ms operations.waits.operation \
             operations.waits.p50_ms operations.waits.p90_ms operations.waits.p99_ms pid read_only requests \
             requests.count requests.operation requests.outcome source staging staging.free_bytes staging.place \
             staging.used_bytes throughput throughput.read_bytes_per_second \
             throughput.received_bytes_per_second throughput.requests_per_second throughput.seconds \
             throughput.sent_bytes_per_second throughput.written_bytes_per_second transfers transfers.limit \
             transfers.under_way transfers.waiting unsaved unsaved.bytes unsaved.files unsaved.first \
             uptime_seconds version";
        let mut wanted: Vec<&str> = wanted.split_whitespace().collect();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }
}
