//! Vocabulary that imports nothing of ours: byte ranges, entity tags, sizes, clocks, budgets, gates, choices, CRCs, files
//! that are their user's alone, and the allocator's settings.

pub mod allocator;
mod budget;
mod clock;
pub mod crc;
mod gate;
mod policy;
pub mod private;
mod range;
mod size;

pub use budget::{Budget, Buffer, Grant, Pool};
pub use clock::{Clock, ManualClock, SystemClock};
pub use gate::{Gate, Load, Pass, Priority, Turn};
pub use policy::{Durability, Exclusive, OnConflict, Passthrough, PosixMode, Sse, StagingPlace};
pub use range::ByteRange;
pub use size::{format_bytes, parse_bytes, parse_duration};

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// An object's entity tag: the version of its bytes, opaque, without the quotes of the header.
///
/// Two equal tags of one key mean equal bytes. Cheap to clone; it is part of every cache key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ETag(Arc<str>);

impl From<String> for ETag {
    fn from(raw: String) -> Self {
        Self::new(&raw)
    }
}

impl From<ETag> for String {
    fn from(tag: ETag) -> Self {
        tag.0.as_ref().to_owned()
    }
}

impl ETag {
    /// Takes a tag as a server sends it, with or without quotes.
    pub fn new(raw: &str) -> Self {
        Self(Arc::from(raw.trim().trim_matches('"')))
    }

    /// The bare tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag as `If-Match` wants it.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
