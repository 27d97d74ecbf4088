//! Every counter, its name and its unit, in one table.
//!
//! Counting is one relaxed atomic add; reading is a snapshot that names each figure. Nothing here
//! decides anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident => $name:literal;)+) => {
        /// The counters of one mount.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $field: Counter,)+
            requests: std::sync::Mutex<BTreeMap<(&'static str, &'static str), u64>>,
        }

        impl Stats {
            /// Name, meaning and value of every counter, in the table's order.
            pub fn snapshot(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$(($name, concat!($($doc),+).trim_start(), self.$field.value()),)+]
            }
        }
    };
}

counters! {
    /// Bytes of object bodies received.
    bytes_received => "s3_bytes_received";
    /// Bytes of object bodies sent.
    bytes_sent => "s3_bytes_sent";
    /// Answers that said to slow down, retries included.
    throttled => "s3_throttled";
    /// Bytes answered to read(2).
    bytes_read => "fs_bytes_read";
    /// Bytes taken from write(2).
    bytes_written => "fs_bytes_written";
    /// Parts of files that left while the file was still being written.
    parts_ahead => "parts_sent_ahead";
    /// Reads answered from memory, beside those that the kernel answered by itself.
    read_hits => "read_hits";
    /// Reads that had to wait for bytes.
    read_waits => "read_waits";
    /// Small files fetched ahead of their opening.
    files_ahead => "files_fetched_ahead";
    /// Opens for reading that believed a fresh listing instead of asking S3.
    opens_listed => "opens_by_listing";
    /// Pieces of files that were read from the cache directory.
    disk_hits => "disk_hits";
    /// Pieces of files that were looked for in the cache directory and had to come from S3.
    disk_misses => "disk_misses";
    /// Bytes read from the cache directory.
    disk_bytes_read => "disk_bytes_read";
    /// Bytes written to the cache directory.
    disk_bytes_written => "disk_bytes_written";
    /// Pieces of files that were not kept because the cache directory could not be written fast enough.
    disk_dropped => "disk_dropped";
    /// Object versions evicted from the cache directory by this mount.
    disk_evictions => "disk_evictions";
    /// Damaged files found in the cache directory, and removed.
    disk_corrupt => "disk_corrupt";
    /// Failures of the cache directory's disk.
    disk_errors => "disk_errors";
    /// Names answered from memory, positive or negative.
    name_hits => "name_hits";
    /// Names that S3 had to be asked for.
    name_misses => "name_misses";
    /// Directories whose listing was there before it was asked for, because a walk was recognised.
    listed_ahead_hits => "listed_ahead_hits";
    /// Pages of listings that were fetched ahead of walks.
    listed_ahead_pages => "listed_ahead_pages";
    /// Parts that large directories were divided into, to be listed side by side.
    shards => "listing_shards";
    /// Requests spent on finding where to divide large directories.
    shard_probes => "listing_shard_probes";
    /// Objects committed by close, fsync or unmount.
    commits => "commits";
    /// Commits that lost against another client.
    conflicts => "conflicts";
    /// Opens answered with a file of the cache directory that the kernel reads by itself.
    passthrough_opens => "passthrough_opens";
    /// Requests that panicked and were answered EIO.
    panics => "panics";
}

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

impl Stats {
    /// Counts one S3 request by API name and outcome (`ok`, or a kind of failure).
    pub fn request(&self, operation: &'static str, outcome: &'static str) {
        let mut requests = self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *requests.entry((operation, outcome)).or_default() += 1;
    }

    /// Requests so far, by API name and outcome.
    pub fn requests(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Requests so far of one API name, whatever their outcome.
    pub fn requests_of(&self, operation: &str) -> u64 {
        self.requests().iter().filter(|((name, _), _)| *name == operation).map(|(_, n)| n).sum()
    }
}
