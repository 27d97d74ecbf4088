//! What the cache says of one object version: who it is, and a mark for every block it has. Pure.
//!
//! ```text
//! index file:  header (the whole identity, and the format's version) | mark of block 0 | mark of block 1 | ...
//! data file:   the object's bytes, each at its own offset; a hole where a block is missing
//! ```
//! A header is never parsed: the one that is expected is made, and the file has it or is of something else.

use sha2::{Digest, Sha256};

use crate::read::Object;

/// Unit of the cache in bytes: a page, so that what a random reader fetched can be kept, and is all it has to read.
pub(super) const BLOCK_BYTES: u64 = 4 << 10;
/// Number of the format. Files of another one live in another directory and have another header.
pub(super) const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"pailfs-c";
/// Bytes of one mark.
pub(super) const MARK_BYTES: usize = 8;
/// No S3 key, bucket, ETag and endpoint are longer together; what is, is not cached.
const HEADER_MAX_BYTES: usize = 8 << 10;
/// What a file's bytes occupy on disk is counted in these.
const DISK_UNIT_BYTES: u64 = 4 << 10;
/// Directories that files are spread over.
pub(super) const SHARDS: usize = 256;

/// Identity of cached bytes, and where it puts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// First bytes of the index file; its length is a multiple of a mark's.
    pub(super) header: Vec<u8>,
    /// Name of both files, without their endings.
    pub(super) name: String,
    pub(super) shard: usize,
    /// Length of the object in bytes.
    pub(super) size: u64,
    /// Goes into every mark, so that a block is good in the file of its own object only.
    seed: u64,
}

impl Place {
    /// `None` where an object has no origin, no bytes, or a name longer than S3 has.
    pub(super) fn of(object: &Object) -> Option<Self> {
        if object.origin.is_empty() || object.size == 0 {
            return None;
        }
        let id = &object.id;
        Self::new([&*object.origin, &*object.bucket, &*id.key, id.etag.as_str()], object.size)
    }

    fn new(identity: [&str; 4], size: u64) -> Option<Self> {
        let mut header = MAGIC.to_vec();
        header.extend(FORMAT.to_le_bytes());
        header.extend(u32::try_from(BLOCK_BYTES).ok()?.to_le_bytes());
        header.extend(size.to_le_bytes());
        for text in identity {
            // The length goes first, so that no two identities make one header.
            header.extend(u64::try_from(text.len()).ok()?.to_le_bytes());
            header.extend(text.as_bytes());
        }
        header.resize(header.len().next_multiple_of(MARK_BYTES), 0);
        if header.len() > HEADER_MAX_BYTES {
            return None;
        }
        let digest = Sha256::digest(&header);
        let seed = digest[16..24].try_into().map_or(0, u64::from_le_bytes);
        let name = crate::base::hex(&digest[..16]);
        Some(Self { header, name, shard: usize::from(digest[0]), size, seed })
    }

    /// Blocks of the object.
    pub(super) fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_BYTES)
    }

    /// Where the mark of a block is in the index file.
    pub(super) fn mark_offset(&self, index: u64) -> u64 {
        self.header.len() as u64 + index * MARK_BYTES as u64
    }

    /// Length of the whole index file.
    pub(super) fn index_len(&self) -> u64 {
        self.mark_offset(self.blocks())
    }

    /// What says that a block is there, and is these bytes. Never 0, which says that it is not there.
    pub(super) fn mark(&self, index: u64, block: &[u8]) -> u64 {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, block);
        // The index, spread over all bits, tells a block from an equal checksum elsewhere in the file.
        let mark = sum ^ self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if mark == 0 { 1 } else { mark }
    }
}

/// What so many bytes of a file occupy.
pub(super) fn on_disk(bytes: u64) -> u64 {
    bytes.next_multiple_of(DISK_UNIT_BYTES)
}

/// Marks as the file has them.
pub(super) fn decode_marks(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(MARK_BYTES).map(|b| b.try_into().map_or(0, u64::from_le_bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity() -> impl Strategy<Value = ([String; 4], u64)> {
        // Small alphabets make neighbours that differ in where one field ends.
        ([".{0,3}", ".{0,3}", "[ab/]{0,4}", "[ab]{0,3}"], 1u64..300_000)
    }

    fn place(identity: &([String; 4], u64)) -> Place {
        let [a, b, c, d] = &identity.0;
        Place::new([a, b, c, d], identity.1).expect("short names")
    }

    proptest! {
        #[test]
        fn two_identities_never_share_a_header(one in identity(), two in identity()) {
            prop_assert_eq!(place(&one).header == place(&two).header, one == two);
            prop_assert_eq!(place(&one).name == place(&two).name, one == two);
        }

        #[test]
        fn the_blocks_cover_the_object_and_nothing_else(identity in identity()) {
            let place = place(&identity);
            prop_assert!((place.blocks() - 1) * BLOCK_BYTES < place.size);
            prop_assert!(place.blocks() * BLOCK_BYTES >= place.size);
            prop_assert_eq!(place.index_len() % MARK_BYTES as u64, 0);
        }

        #[test]
        fn a_mark_tells_a_changed_bit_another_place_and_another_object(
            bytes in proptest::collection::vec(any::<u8>(), 1..2000),
            at in any::<proptest::sample::Index>(),
            bit in 0u32..8,
            index in 0u64..1 << 40,
        ) {
            let (one, two) = (place(&(Default::default(), 1)), place(&(Default::default(), 2)));
            let mark = one.mark(index, &bytes);
            prop_assert_ne!(mark, 0);
            prop_assert_eq!(decode_marks(&mark.to_le_bytes()), vec![mark]);
            prop_assert_ne!(one.mark(index + 1, &bytes), mark);
            prop_assert_ne!(two.mark(index, &bytes), mark);
            let mut changed = bytes;
            let at = at.index(changed.len());
            changed[at] ^= 1 << bit;
            prop_assert_ne!(one.mark(index, &changed), mark);
        }
    }

    #[test]
    fn what_no_s3_name_is_as_long_as_is_not_cached() {
        assert_eq!(Place::new(["o", "b", &"k".repeat(10_000), "e"], 1), None);
    }
}
