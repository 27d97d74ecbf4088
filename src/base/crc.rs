//! CRC-64/NVME, the checksum that S3 stores of every object, and what can be told of it without the bytes.
//!
//! A CRC is linear: the sum of two runs side by side, and that of a run in which some bytes were replaced, follow from
//! the sums of the pieces. So bytes that are known by their sums need not be read again to know the sum of all of them.

use crc_fast::CrcAlgorithm::Crc64Nvme;

/// The polynomial, its highest power in the lowest bit.
const POLYNOMIAL: u64 = 0x9A6C_9329_AC4B_C9B5;

/// x^(2^n) modulo the polynomial.
const POWERS: [u64; 67] = {
    let mut powers = [1 << 62; 67];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiplied(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
};

/// Of some bytes.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(Crc64Nvme, bytes)
}

/// Of two runs side by side, from theirs and the length of the second.
pub fn joined(first: u64, second: u64, second_len: u64) -> u64 {
    shifted(first, second_len) ^ second
}

/// Of a run in which a piece, so many bytes before its end, was replaced by another of the same length.
pub fn replaced(whole: u64, was: u64, is: u64, bytes_behind: u64) -> u64 {
    whole ^ shifted(was ^ is, bytes_behind)
}

/// Of so many zeros.
pub fn of_zeros(len: u64) -> u64 {
    !shifted(u64::MAX, len)
}

/// What a sum counts for with so many bytes behind it.
fn shifted(mut sum: u64, bytes: u64) -> u64 {
    let mut left = bytes;
    // A byte is eight bits.
    let mut power = 3;
    while left > 0 {
        if left & 1 == 1 {
            sum = multiplied(POWERS[power], sum);
        }
        left >>= 1;
        power += 1;
    }
    sum
}

/// The product modulo the polynomial.
const fn multiplied(one: u64, mut other: u64) -> u64 {
    let mut product = 0;
    let mut bit = 1 << 63;
    while bit != 0 {
        if one & bit != 0 {
            product ^= other;
        }
        other = (other >> 1) ^ (POLYNOMIAL & (other & 1).wrapping_neg());
        bit >>= 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_the_documented_one() {
        assert_eq!(crc64(b"123456789"), 0xAE8B_1486_0A79_9888);
        assert_eq!(crc64(b""), 0);
    }

    proptest! {
        #[test]
        fn sums_of_wholes_follow_from_those_of_their_pieces(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            at in 0usize..3000,
            piece in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let at = at.min(bytes.len());
            let (head, tail) = bytes.split_at(at);
            prop_assert_eq!(joined(crc64(head), crc64(tail), tail.len() as u64), crc64(&bytes));
            let piece = &piece[..piece.len().min(tail.len())];
            let mut changed = bytes.clone();
            changed[at..at + piece.len()].copy_from_slice(piece);
            let behind = (tail.len() - piece.len()) as u64;
            let was = crc64(&tail[..piece.len()]);
            prop_assert_eq!(replaced(crc64(&bytes), was, crc64(piece), behind), crc64(&changed));
            prop_assert_eq!(of_zeros(at as u64), crc64(&vec![0; at]));
        }
    }
}
