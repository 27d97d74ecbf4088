//! Which blocks this process has read from the disk and found good. Pure.
//!
//! Only a file that is verified from its first to its last block is handed to the kernel, which then reads it
//! without asking us. Blocks become verified by being read; the whole of a large file is never read for that alone.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::SystemTime;

use lru::LruCache;

/// Versions remembered; of one that is forgotten the blocks are verified again.
const VERSIONS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// A data file as it lies on disk: another file under its name is not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    pub(super) inode: u64,
    pub(super) modified: SystemTime,
}

/// Verified blocks of the versions that were read last.
pub(super) struct Verified(LruCache<String, Blocks>);

struct Blocks {
    inode: u64,
    bits: Vec<u64>,
    /// When the file was last changed, as of when all of it was good.
    sealed: Option<SystemTime>,
}

impl Verified {
    pub(super) fn new() -> Self {
        Self(LruCache::new(VERSIONS_MAX))
    }

    /// These blocks of the data file `inode` are good.
    pub(super) fn note(&mut self, name: &str, inode: u64, good: impl IntoIterator<Item = u64>) {
        let blocks = self.blocks(name, inode);
        for index in good {
            let Ok(word) = usize::try_from(index / 64) else { continue };
            if blocks.bits.len() <= word {
                blocks.bits.resize(word + 1, 0);
            }
            blocks.bits[word] |= 1 << (index % 64);
        }
    }

    /// The runs of blocks that are not verified; empty where the whole file is.
    pub(super) fn missing(&mut self, name: &str, file: DataFile, count: u64) -> Vec<Range<u64>> {
        let blocks = self.blocks(name, file.inode);
        match blocks.sealed {
            Some(modified) if modified == file.modified => return Vec::new(),
            // Somebody changed a file that was whole.
            Some(_) => *blocks = Blocks { inode: file.inode, bits: Vec::new(), sealed: None },
            None => {}
        }
        let mut runs: Vec<Range<u64>> = Vec::new();
        for index in (0..count).filter(|index| !blocks.has(*index)) {
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        if runs.is_empty() {
            blocks.sealed = Some(file.modified);
        }
        runs
    }

    /// What is remembered of a data file; of another inode than before, nothing is.
    fn blocks(&mut self, name: &str, inode: u64) -> &mut Blocks {
        let fresh = || Blocks { inode, bits: Vec::new(), sealed: None };
        let blocks = self.0.get_or_insert_mut_ref(name, fresh);
        if blocks.inode != inode {
            *blocks = fresh();
        }
        blocks
    }
}

impl Blocks {
    fn has(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64).ok().and_then(|word| self.bits.get(word));
        word.is_some_and(|word| word & (1 << (index % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn file(inode: u64, second: u64) -> DataFile {
        DataFile { inode, modified: SystemTime::UNIX_EPOCH + Duration::from_secs(second) }
    }

    proptest! {
        #[test]
        fn what_is_missing_is_what_was_never_noted(
            notes in proptest::collection::vec(0u64..200, 0..300),
            count in 0u64..200,
        ) {
            let mut verified = Verified::new();
            verified.note("a", 1, notes.iter().copied());
            let noted: BTreeSet<u64> = notes.into_iter().collect();
            let missing: Vec<u64> = verified.missing("a", file(1, 0), count).into_iter().flatten().collect();
            let expected: Vec<u64> = (0..count).filter(|index| !noted.contains(index)).collect();
            prop_assert_eq!(missing, expected);
        }
    }

    #[test]
    fn another_file_under_the_name_and_a_whole_one_that_changed_are_not_verified() {
        let mut verified = Verified::new();
        verified.note("a", 1, 0..3);
        assert!(verified.missing("a", file(1, 5), 3).is_empty());
        assert!(verified.missing("a", file(1, 5), 3).is_empty());
        let all = vec![Range { start: 0, end: 3 }];
        assert_eq!(verified.missing("a", file(1, 6), 3), all);
        verified.note("a", 1, 0..3);
        assert_eq!(verified.missing("a", file(2, 6), 3), all);
        assert_eq!(verified.missing("b", file(1, 6), 3), all);
    }
}
