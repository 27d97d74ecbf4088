//! S3's own limits, in bytes unless a name says otherwise. Source: the S3 user guide, "Amazon S3 quotas
//! and limits" and "Multipart upload limits" (qfacts.html).

pub const KEY_MAX: usize = 1024;
pub const PART_MIN: u64 = 5 << 20;
pub const PART_MAX: u64 = 5 << 30;
pub const PARTS_MAX: u16 = 10_000;
/// The largest object: 48.8 TiB, which S3 announced as 50 TB.
pub const OBJECT_MAX: u64 = PARTS_MAX as u64 * PART_MAX;
/// The most one PutObject or CopyObject carries.
pub const SINGLE_MAX: u64 = 5 << 30;
/// Keys in one DeleteObjects or one page of a listing.
pub const KEYS_PER_REQUEST: usize = 1000;
/// User metadata, names and values together.
pub const METADATA_MAX: usize = 2048;

const _: () = assert!(PART_MIN < PART_MAX && PART_MAX <= SINGLE_MAX);
