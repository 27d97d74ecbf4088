//! Bytes that each shard holds, and what goes when there are too many. Pure.

use std::time::SystemTime;

use super::index::SHARDS;

/// Length of the file in bytes: a number for each shard, and a checksum of them.
pub(super) const USAGE_BYTES: usize = SHARDS * 8 + 8;

/// Bytes reserved or written, by shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage([u64; SHARDS]);

impl Usage {
    pub(super) const EMPTY: Self = Self([0; SHARDS]);

    /// `None` where the file is torn or of another kind: the shards have to be counted again.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; USAGE_BYTES] = bytes.try_into().ok()?;
        let (counts, sum) = bytes.split_at(SHARDS * 8);
        if sum != checksum(counts) {
            return None;
        }
        let mut usage = Self::EMPTY;
        for (count, bytes) in usage.0.iter_mut().zip(counts.chunks_exact(8)) {
            *count = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(usage)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|count| count.to_le_bytes()).collect();
        let sum = checksum(&bytes);
        bytes.extend(sum);
        bytes
    }

    pub(super) fn total(&self) -> u64 {
        self.0.iter().fold(0, |total, count| total.saturating_add(*count))
    }

    pub(super) fn add(&mut self, shard: usize, bytes: u64) {
        self.0[shard] = self.0[shard].saturating_add(bytes);
    }

    /// What was found when the shard was looked at.
    pub(super) fn set(&mut self, shard: usize, bytes: u64) {
        self.0[shard] = bytes;
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes).to_le_bytes()
}

/// An object version that could go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) shard: usize,
    pub(super) name: String,
    pub(super) used_at: SystemTime,
    /// What its files occupy.
    pub(super) bytes: u64,
}

/// Which of them go to make `wanted` bytes free: those unused for longest, and never `spared`.
pub(super) fn victims(mut sample: Vec<Candidate>, wanted: u64, spared: &str) -> Vec<Candidate> {
    sample.retain(|candidate| candidate.name != spared);
    sample.sort_by(|a, b| a.used_at.cmp(&b.used_at).then_with(|| a.name.cmp(&b.name)));
    let mut freed = 0u64;
    let enough = sample.iter().take_while(|candidate| {
        let more = freed < wanted;
        freed = freed.saturating_add(candidate.bytes);
        more
    });
    let count = enough.count();
    sample.truncate(count);
    sample
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn candidate((age, bytes): (u64, u64)) -> Candidate {
        let used_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age);
        Candidate { shard: 0, name: format!("{age}-{bytes}"), used_at, bytes }
    }

    proptest! {
        #[test]
        fn usage_survives_its_file_and_a_torn_one_is_known(
            adds in proptest::collection::vec((0..SHARDS, 0u64..1 << 40), 0..50),
            tear in any::<proptest::sample::Index>(),
        ) {
            let mut usage = Usage::EMPTY;
            for (shard, bytes) in &adds {
                usage.add(*shard, *bytes);
            }
            prop_assert_eq!(usage.total(), adds.iter().map(|(_, bytes)| bytes).sum::<u64>());
            let mut bytes = usage.encode();
            prop_assert_eq!(Usage::decode(&bytes), Some(usage));
            bytes[tear.index(USAGE_BYTES)] ^= 1;
            prop_assert_eq!(Usage::decode(&bytes), None);
            prop_assert_eq!(Usage::decode(&bytes[..tear.index(USAGE_BYTES)]), None);
        }

        #[test]
        fn the_oldest_go_first_and_no_more_than_are_needed(
            sample in proptest::collection::vec((0u64..1000, 1u64..100), 0..30),
            wanted in 0u64..800,
        ) {
            let sample: Vec<Candidate> = sample.into_iter().map(candidate).collect();
            let spared = sample.first().map_or("", |c| &c.name).to_owned();
            let gone = victims(sample.clone(), wanted, &spared);
            let bytes = |list: &[Candidate]| list.iter().map(|c| c.bytes).sum::<u64>();
            let left: Vec<&Candidate> =
                sample.iter().filter(|c| c.name != spared && !gone.contains(c)).collect();
            prop_assert!(gone.iter().all(|c| c.name != spared));
            prop_assert!(gone.iter().all(|old| left.iter().all(|new| old.used_at <= new.used_at)));
            prop_assert!(bytes(&gone) >= wanted || left.is_empty());
            if let Some((_last, before)) = gone.split_last() {
                prop_assert!(bytes(before) < wanted);
            }
        }
    }
}
