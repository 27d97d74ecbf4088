//! Blocks in memory: least recently used go first, bounded by bytes. Pure.

use bytes::Bytes;
use lru::LruCache;

use super::ObjectId;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct BlockKey {
    pub(super) object: ObjectId,
    pub(super) index: u64,
}

/// A bounded map from block to bytes.
#[derive(Debug)]
pub(super) struct BlockCache {
    blocks: LruCache<BlockKey, Bytes>,
    bytes: u64,
    limit_bytes: u64,
}

impl BlockCache {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { blocks: LruCache::unbounded(), bytes: 0, limit_bytes }
    }

    /// The block, which becomes the most recently used one.
    pub(super) fn get(&mut self, key: &BlockKey) -> Option<Bytes> {
        self.blocks.get(key).cloned()
    }

    /// Keeps a block and lets go of the oldest until the bound holds. A block over the bound is not kept.
    pub(super) fn put(&mut self, key: BlockKey, block: Bytes) {
        let size = block.len() as u64;
        if size > self.limit_bytes {
            return;
        }
        if let Some(old) = self.blocks.put(key, block) {
            self.bytes -= old.len() as u64;
        }
        self.bytes += size;
        while self.bytes > self.limit_bytes {
            let Some((_, oldest)) = self.blocks.pop_lru() else { break };
            self.bytes -= oldest.len() as u64;
        }
    }

    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ETag;
    use proptest::prelude::*;

    fn key(index: u64) -> BlockKey {
        let object = ObjectId { volume: 0, key: "k".into(), etag: ETag::new("e") };
        BlockKey { object, index }
    }

    proptest! {
        #[test]
        fn it_is_a_naive_lru_within_its_bound(
            ops in proptest::collection::vec((any::<bool>(), 0u64..8, 1usize..40), 1..80),
        ) {
            let mut cache = BlockCache::new(100);
            // Oldest first.
            let mut naive: Vec<(u64, usize)> = Vec::new();
            for (put, index, size) in ops {
                if put {
                    cache.put(key(index), vec![0; size].into());
                    naive.retain(|(i, _)| *i != index);
                    naive.push((index, size));
                    while naive.iter().map(|(_, s)| s).sum::<usize>() > 100 {
                        naive.remove(0);
                    }
                } else {
                    let expected = naive.iter().position(|(i, _)| *i == index);
                    prop_assert_eq!(cache.get(&key(index)).map(|b| b.len()), expected.map(|at| naive[at].1));
                    if let Some(at) = expected {
                        let entry = naive.remove(at);
                        naive.push(entry);
                    }
                }
                prop_assert!(cache.bytes <= 100);
                prop_assert_eq!(cache.bytes as usize, naive.iter().map(|(_, s)| s).sum::<usize>());
            }
        }
    }
}
