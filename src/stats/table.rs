//! The table of metrics. A name, once it was in a release, keeps its meaning or goes; it does not get another.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::{Counter, Histogram, Operations};

/// One metric. Its name is that of the text for Prometheus; `pailfs status --json` has counters without the `pailfs_` before
/// and the `_total` after it.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    pub meaning: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What one of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Seconds,
    Dollars,
    Requests,
    Files,
    Opens,
    Pieces,
    Names,
    Directories,
    Objects,
    Parts,
    Handles,
    Inodes,
    Events,
    /// The value is always 1: the labels are what is told.
    Nothing,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Dollars => "US dollars",
            Self::Requests => "requests",
            Self::Files => "files",
            Self::Opens => "opens",
            Self::Pieces => "pieces",
            Self::Names => "names",
            Self::Directories => "directories",
            Self::Objects => "objects",
            Self::Parts => "parts",
            Self::Handles => "handles",
            Self::Inodes => "inodes",
            Self::Events => "events",
            Self::Nothing => "1",
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident => $name:literal, $unit:ident;)+) => {
        /// The counters of one mount.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $field: Counter,)+
            pub(super) requests: Mutex<Requests>,
            pub(super) operations: Operations,
        }

        pub(super) static COUNTERS: &[Metric] = &[$(Metric {
            name: concat!("pailfs_", $name, "_total"),
            kind: Kind::Counter,
            unit: Unit::$unit,
            labels: &[],
            meaning: concat!($($doc),+).trim_ascii(),
        },)+];

        impl Stats {
            /// Name, meaning and value of every counter without labels, in the table's order.
            pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$(($name, concat!($($doc),+).trim_ascii(), self.$field.value()),)+]
            }
        }
    };
}

macro_rules! gauges {
    ($($(#[doc = $doc:literal])+ $field:ident => $name:literal, $unit:ident;)+) => {
        /// What there is now, as whoever owns it says. What a mount does not have is `None`.
        #[derive(Clone, Debug, Default)]
        pub struct Gauges {
            $($(#[doc = $doc])+ pub $field: Option<u64>,)+
            /// Bytes by what holds them.
            pub memory_used_bytes: Vec<(&'static str, u64)>,
            /// Open handles of files and of directories.
            pub open_handles: Vec<(&'static str, u64)>,
            /// By [`Tariff`].
            pub cost_dollars: Vec<(Tariff, f64)>,
            pub version: String,
            pub source: String,
            pub mountpoint: String,
        }

        pub(super) static GAUGES: &[Metric] = &[$(Metric {
            name: concat!("pailfs_", $name),
            kind: Kind::Gauge,
            unit: Unit::$unit,
            labels: &[],
            meaning: concat!($($doc),+).trim_ascii(),
        },)+];

        impl Gauges {
            /// In the table's order.
            pub(super) fn values(&self) -> Vec<Option<u64>> {
                vec![$(self.$field,)+]
            }
        }
    };
}

counters! {
    /// Bytes of object bodies received.
    bytes_received => "s3_received_bytes", Bytes;
    /// Bytes of object bodies sent.
    bytes_sent => "s3_sent_bytes", Bytes;
    /// Answers that said to slow down, retries included.
    throttled => "s3_throttled", Requests;
    /// Attempts after the first, of requests that failed in a way that may pass.
    retries => "s3_retries", Requests;
    /// Times that the endpoint was found to answer nothing for a whole `--timeout`; requests fail at once from then on.
    silences => "s3_silences", Events;
    /// Of these, those that are over.
    silences_ended => "s3_silences_ended", Events;
    /// Bytes answered to read(2).
    bytes_read => "fs_read_bytes", Bytes;
    /// Bytes taken from write(2).
    bytes_written => "fs_written_bytes", Bytes;
    /// Parts of files that left while the file was still being written.
    parts_ahead => "parts_sent_ahead", Parts;
    /// Reads answered from memory, beside those that the kernel answered by itself.
    read_hits => "read_hits", Requests;
    /// Reads that had to wait for bytes.
    read_waits => "read_waits", Requests;
    /// Small files fetched ahead of their opening.
    files_ahead => "files_fetched_ahead", Files;
    /// Opens for reading that believed a fresh listing instead of asking S3.
    opens_listed => "opens_by_listing", Opens;
    /// Pieces of files that were read from the cache directory.
    disk_hits => "disk_hits", Pieces;
    /// Pieces of files that were looked for in the cache directory and had to come from S3.
    disk_misses => "disk_misses", Pieces;
    /// Bytes read from the cache directory.
    disk_bytes_read => "disk_read_bytes", Bytes;
    /// Bytes written to the cache directory.
    disk_bytes_written => "disk_written_bytes", Bytes;
    /// Pieces of files that were not kept because the cache directory could not be written fast enough.
    disk_dropped => "disk_dropped", Pieces;
    /// Object versions evicted from the cache directory by this mount.
    disk_evictions => "disk_evictions", Objects;
    /// Damaged files found in the cache directory, and removed.
    disk_corrupt => "disk_corrupt", Files;
    /// Failures of the cache directory's disk.
    disk_errors => "disk_errors", Events;
    /// Names answered from memory, positive or negative.
    name_hits => "name_hits", Names;
    /// Names that S3 had to be asked for.
    name_misses => "name_misses", Names;
    /// Directories whose listing was there before it was asked for, because a walk was recognised.
    listed_ahead_hits => "listed_ahead_hits", Directories;
    /// Pages of listings that were fetched ahead of walks.
    listed_ahead_pages => "listed_ahead_pages", Requests;
    /// Parts that large directories were divided into, to be listed side by side.
    shards => "listing_shards", Parts;
    /// Requests spent on finding where to divide large directories.
    shard_probes => "listing_shard_probes", Requests;
    /// Objects committed by close, fsync or unmount.
    commits => "commits", Objects;
    /// Commits that lost against another client.
    conflicts => "conflicts", Objects;
    /// Opens answered with a file of the cache directory that the kernel reads by itself.
    passthrough_opens => "passthrough_opens", Opens;
    /// Requests that panicked and were answered EIO.
    panics => "panics", Requests;
}

gauges! {
    /// When it was mounted, in seconds since 1970.
    start_time_seconds => "start_time_seconds", Seconds;
    /// Memory of the process that is in RAM.
    resident_memory_bytes => "resident_memory_bytes", Bytes;
    /// What `--memory-limit` is.
    memory_limit_bytes => "memory_limit_bytes", Bytes;
    /// The part of it that the pools of `pailfs_memory_used_bytes` share; the rest is for connections and the program.
    memory_budget_bytes => "memory_budget_bytes", Bytes;
    /// What the cache directory holds, over all mounts that use it; without a value before anything was written there.
    disk_cache_used_bytes => "disk_cache_used_bytes", Bytes;
    /// The most that the cache directory may hold.
    disk_cache_limit_bytes => "disk_cache_limit_bytes", Bytes;
    /// What written bytes take where they wait for their upload: on the disk of the state directory, or in memory.
    staging_used_bytes => "staging_used_bytes", Bytes;
    /// What can be written where written bytes wait before writers wait for parts that S3 has: of a disk, without what is left to others.
    staging_free_bytes => "staging_free_bytes", Bytes;
    /// Files that S3 does not have yet as they are here.
    pending_files => "pending_files", Files;
    /// Bytes of files that are not in S3.
    pending_bytes => "pending_bytes", Bytes;
    /// Of these, what S3 has in parts of uploads that are not completed.
    pending_sent_bytes => "pending_sent_bytes", Bytes;
    /// Files in the table of open ones: those that are open, and those that are closed and not saved yet.
    open_files => "open_files", Files;
    /// Inodes that the kernel or this mount knows.
    inodes => "inodes", Inodes;
    /// Requests under way that carry bytes or are guesses; those for names are not counted.
    transfers_under_way => "s3_transfers_under_way", Requests;
    /// How many such requests may be under way: fewer after a server has said to slow down.
    transfers_limit => "s3_transfers_limit", Requests;
    /// Such requests that wait for others to end.
    transfers_waiting => "s3_transfers_waiting", Requests;
    /// Directories that are being renamed.
    renames => "renames_under_way", Directories;
    /// Objects of the directories that are being renamed.
    rename_objects => "rename_objects", Objects;
    /// Of these, those whose copy is made.
    rename_copied_objects => "rename_copied_objects", Objects;
}

/// Requests to S3 so far.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) outcomes: BTreeMap<(&'static str, &'static str), u64>,
    pub(super) latencies: BTreeMap<&'static str, Histogram>,
}

/// What a request is paid for as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tariff {
    /// PUT, COPY, POST and LIST.
    Put,
    /// GET, HEAD and all others.
    Get,
    /// DELETE, and ending an upload without an object.
    Delete,
}

impl Tariff {
    pub const ALL: [Self; 3] = [Self::Put, Self::Get, Self::Delete];

    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Delete => "delete",
        }
    }

    /// By the API's name.
    pub fn of(operation: &str) -> Self {
        match operation {
            // A batch of deletes is a POST, but S3 charges for no delete.
            "DeleteObject" | "DeleteObjects" | "AbortMultipartUpload" | "DeleteBucket" => Self::Delete,
            _ if operation.starts_with("List") => Self::Put,
            _ if operation.starts_with("Get") || operation.starts_with("Head") => Self::Get,
            _ => Self::Put,
        }
    }

    /// Whether such an outcome is paid for: an error that the server calls its own is not, nor is silence.
    pub fn is_charged(outcome: &str) -> bool {
        !matches!(outcome, "throttled" | "server" | "unreachable" | "timed_out" | "internal" | "local")
    }
}

pub(super) static S3_REQUESTS: Metric = Metric {
    name: "pailfs_s3_requests_total",
    kind: Kind::Counter,
    unit: Unit::Requests,
    labels: &["operation", "outcome"],
    meaning: "Requests to S3 by API name and outcome: `ok`, or a kind of failure such as `not_found` or `throttled`. Retries \
              of one request are a part of it.",
};

pub(super) static S3_COST: Metric = Metric {
    name: "pailfs_s3_cost_dollars_total",
    kind: Kind::Counter,
    unit: Unit::Dollars,
    labels: &["tariff"],
    meaning: "What requests to S3 cost by the rates of `[cost]` in the configuration, by tariff: `put` (PUT, COPY, POST, \
              LIST), `get` (all others), `delete`. Failures of the server cost nothing. An estimate: storage and traffic \
              are not in it.",
};

pub(super) static S3_LATENCY: Metric = Metric {
    name: "pailfs_s3_request_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["operation"],
    meaning: "Time from a request to its answer, with all its retries, whatever its outcome; of GetObject, until the body \
              begins.",
};

pub(super) static FUSE_OPERATIONS: Metric = Metric {
    name: "pailfs_fuse_operations_total",
    kind: Kind::Counter,
    unit: Unit::Requests,
    labels: &["operation"],
    meaning: "Requests of the kernel. What it answers by itself does not come here.",
};

pub(super) static FUSE_WAITS: Metric = Metric {
    name: "pailfs_fuse_wait_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["operation"],
    meaning: "Time of requests of the kernel that could not be answered at once, from memory.",
};

pub(super) static MEMORY_USED: Metric = Metric {
    name: "pailfs_memory_used_bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    labels: &["pool"],
    meaning: "Memory by what holds it: `read_cache` (pieces that were read or fetched ahead), `reads` (on their way), \
              `uploads`, `names`, `listings` (pages that wait), `staging` (written bytes, with `--staging=memory`), \
              `disk_queue` (on their way to the cache directory), `idle` (anybody's who asks).",
};

pub(super) static OPEN_HANDLES: Metric = Metric {
    name: "pailfs_open_handles",
    kind: Kind::Gauge,
    unit: Unit::Handles,
    labels: &["kind"],
    meaning: "Open handles: of a `file`, or of a `directory`.",
};

pub(super) static INFO: Metric = Metric {
    name: "pailfs_info",
    kind: Kind::Gauge,
    unit: Unit::Nothing,
    labels: &["version", "source", "mountpoint"],
    meaning: "Which mount this is.",
};

/// Every metric, in the order of a snapshot.
pub fn table() -> impl Iterator<Item = &'static Metric> {
    let labelled = [&S3_REQUESTS, &S3_COST, &FUSE_OPERATIONS];
    COUNTERS
        .iter()
        .chain(labelled)
        .chain(GAUGES)
        .chain([&MEMORY_USED, &OPEN_HANDLES, &INFO])
        .chain([&S3_LATENCY, &FUSE_WAITS])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_in_the_style_of_prometheus_and_each_is_there_once() {
        let mut seen = BTreeSet::new();
        for metric in table() {
            let Metric { name, kind, unit, .. } = metric;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(name.starts_with("pailfs_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            let base = name.trim_end_matches("_total");
            for (of, ending) in
                [(Unit::Bytes, "_bytes"), (Unit::Seconds, "_seconds"), (Unit::Dollars, "_dollars")]
            {
                assert_eq!(*unit == of, base.ends_with(ending), "{name}");
            }
            assert!(metric.meaning.ends_with('.') && metric.meaning.len() > 10, "{name}");
        }
        for of_histogram in table().filter(|metric| metric.kind == Kind::Histogram) {
            for ending in ["_bucket", "_sum", "_count"] {
                assert!(!seen.contains(&&*format!("{}{ending}", of_histogram.name)));
            }
        }
    }

    #[test]
    fn a_request_is_paid_for_by_its_name() {
        for (operation, tariff) in [
            ("GetObject", Tariff::Get),
            ("HeadObject", Tariff::Get),
            ("ListObjectsV2", Tariff::Put),
            ("ListMultipartUploads", Tariff::Put),
            ("CopyObject", Tariff::Put),
            ("UploadPart", Tariff::Put),
            ("CompleteMultipartUpload", Tariff::Put),
            ("DeleteObjects", Tariff::Delete),
            ("AbortMultipartUpload", Tariff::Delete),
        ] {
            assert_eq!(Tariff::of(operation), tariff, "{operation}");
        }
        assert!(Tariff::is_charged("ok") && Tariff::is_charged("not_found"));
        assert!(!Tariff::is_charged("throttled") && !Tariff::is_charged("unreachable"));
    }
}
