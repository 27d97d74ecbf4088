//! Inode numbers, as they follow from paths.
//!
//! The number of a name that has no node is the same in every mount, as long as no other node has it. Tools take a file
//! whose number has changed for another one, and the kernel forgets inodes whenever it likes.

use super::keys::{DirKey, Name, path_of};
use super::{Ino, ROOT};

/// In which order somebody goes through directories and files: that of keys, as listings have it, or that of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Keys,
    Numbers,
}

/// The number of a new node.
pub(super) fn free_number(parent: Ino, name: &Name, is_taken: impl Fn(Ino) -> bool) -> Ino {
    let mut number = number_of(parent, name);
    while number <= ROOT.0 || is_taken(Ino(number)) {
        number = mixed(number.wrapping_add(1));
    }
    Ino(number)
}

/// Where a key is for whoever goes through directories in the order of their entries' numbers, as GNU `cp -r` does: the
/// numbers of all steps from a directory down to it, of which the lesser come first. `dir` is of the number `top`. `None`
/// where no path leads to the key. Numbers that had to give way to another node's are not known here.
pub fn steps(top: Ino, dir: &DirKey, key: &str) -> Option<Box<[u64]>> {
    let mut at = top;
    let path = path_of(dir, key)?.into_iter().map(|name| {
        at = Ino(number_of(at, &name));
        at.0
    });
    Some(path.collect())
}

/// FNV-1a of a directory's number and a name in it, mixed; it must never change, in any version of pailfs.
fn number_of(parent: Ino, name: &Name) -> u64 {
    let bytes = parent.0.to_le_bytes().into_iter().chain(name.as_str().bytes());
    mixed(
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }),
    )
}

/// SplitMix64's last steps, in 63 bits: some programs have signed numbers.
fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (number ^ (number >> 31)) >> 1
}
