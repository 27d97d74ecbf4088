//! What staged bytes have to be: a CRC of each run, taken when the bytes were written. Pure.
//!
//! A run grows with what is written beside it, up to where runs end, and never falls apart: bytes that are written over
//! change its sum by what they were and what they are, so that nothing but them is read. What the disk made of the
//! bytes shows in the run's sum, whatever was written over them or beside them since.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::extents::RUN_END_BYTES;
use crate::base::ByteRange;
use crate::base::crc::{crc64, joined, replaced};

/// A run of bytes and its CRC-64/NVME.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64, u64)", into = "(u64, u64, u64)")]
pub struct Sum {
    pub range: ByteRange,
    pub crc: u64,
}

impl Sum {
    pub fn of(range: ByteRange, bytes: &[u8]) -> Self {
        Self { range, crc: crc64(bytes) }
    }
}

impl From<Sum> for (u64, u64, u64) {
    fn from(sum: Sum) -> Self {
        (sum.range.start(), sum.range.end(), sum.crc)
    }
}

impl TryFrom<(u64, u64, u64)> for Sum {
    type Error = &'static str;

    fn try_from((start, end, crc): (u64, u64, u64)) -> Result<Self, Self::Error> {
        let range = ByteRange::new(start, end).ok_or("a sum of no bytes")?;
        Ok(Self { range, crc })
    }
}

/// The runs of one staging file that were written: sorted, disjoint, none across a multiple of `RUN_END_BYTES`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Start of each run -> its end and CRC.
    runs: BTreeMap<u64, (u64, u64)>,
}

impl Sums {
    /// Whole runs that have bytes of the range, in order.
    pub fn overlapping(&self, range: ByteRange) -> Vec<Sum> {
        let first = self.runs.range(..=range.start()).next_back().map_or(0, |(start, _)| *start);
        let runs = self.runs.range(first..range.end()).filter(|(_, (end, _))| *end > range.start());
        runs.filter_map(|(start, (end, crc))| Some(Sum { range: ByteRange::new(*start, *end)?, crc: *crc }))
            .collect()
    }

    /// Every run, in order.
    pub fn all(&self) -> Vec<Sum> {
        ByteRange::new(0, u64::MAX).map_or_else(Vec::new, |whole| self.overlapping(whole))
    }

    /// Puts these in place of all runs that they overlap.
    pub fn put(&mut self, sums: &[Sum]) {
        for sum in sums {
            self.forget(sum.range);
            self.runs.insert(sum.range.start(), (sum.range.end(), sum.crc));
        }
    }

    /// Nothing is known any more of runs that have bytes of the range.
    pub fn forget(&mut self, range: ByteRange) {
        for run in self.overlapping(range) {
            self.runs.remove(&run.range.start());
        }
    }

    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// Pieces of runs that change where this range is written, in order; those that are whole runs with their sums.
    pub fn changed_by(&self, range: ByteRange) -> Vec<(ByteRange, Option<u64>)> {
        let runs = self.overlapping(range).into_iter();
        runs.filter_map(|run| {
            let piece = run.range.intersect(range)?;
            Some((piece, (piece == run.range).then_some(run.crc)))
        })
        .collect()
    }

    /// The sums of the runs that there are once `data` has been written at `range`, in place of those that it touches.
    /// `was` are the sums of the pieces that it changes ([`Sums::changed_by`]).
    pub fn after(&self, range: ByteRange, data: &[u8], was: &[Sum]) -> Vec<Sum> {
        let mut sums = Vec::new();
        for piece in pieces(range) {
            let data = slice(data, range, piece);
            sums.push(self.after_piece(piece, data, was));
        }
        sums
    }

    /// The same within one part.
    fn after_piece(&self, piece: ByteRange, data: &[u8], was: &[Sum]) -> Sum {
        let (start, end) = (piece.start(), piece.end());
        let before = |at: u64| was.iter().find(|sum| sum.range.start() == at).map_or(0, |sum| sum.crc);
        let left = self.run(self.runs.range(..start).next_back(), |left| left.end() >= start);
        let left = left.filter(|_| !start.is_multiple_of(RUN_END_BYTES));
        if let Some(run) = left.filter(|run| run.range.end() > end) {
            let crc = replaced(run.crc, before(start), crc64(data), run.range.end() - end);
            return Sum { range: run.range, crc };
        }
        let right = self.run(self.runs.range(..=end).next_back(), |right| right.end() > end);
        let right = right.filter(|right| right.range.start() != end || !end.is_multiple_of(RUN_END_BYTES));
        // What no run has that goes on beyond the piece: its own sum, with what is left of it to the left and right.
        let left_end = left.map_or(start, |run| run.range.end());
        let right_start = right.map_or(end, |run| run.range.start());
        let of = |from: u64, to: u64| ByteRange::new(from, to).map_or(0, |r| crc64(slice(data, piece, r)));
        let mut crc = left.map_or(0, |run| replaced(run.crc, before(start), of(start, left_end), 0));
        crc = joined(crc, of(left_end, right_start), right_start - left_end);
        if let Some(run) = right {
            let behind = run.range.end() - end;
            let changed = replaced(run.crc, before(right_start), of(right_start, end), behind);
            crc = joined(crc, changed, run.range.len());
        }
        let from = left.map_or(start, |run| run.range.start());
        let to = right.map_or(end, |run| run.range.end());
        let range = ByteRange::new(from, to).unwrap_or(piece);
        Sum { range, crc }
    }

    fn run(&self, found: Option<(&u64, &(u64, u64))>, fits: impl Fn(ByteRange) -> bool) -> Option<Sum> {
        let (start, (end, crc)) = found?;
        let range = ByteRange::new(*start, *end).filter(|range| fits(*range))?;
        Some(Sum { range, crc: *crc })
    }
}

/// The sum of what is there of a run, with pieces that may be anything taken as what they were: of the rest of the run
/// it tells as much as a sum does.
pub fn as_it_was(run: Sum, pieces: impl IntoIterator<Item = (Sum, u64)>) -> u64 {
    pieces
        .into_iter()
        .fold(run.crc, |crc, (was, is)| replaced(crc, is, was.crc, run.range.end() - was.range.end()))
}

/// Of the bytes of a range, those of a piece of it.
fn slice(data: &[u8], range: ByteRange, piece: ByteRange) -> &[u8] {
    let index = |offset: u64| usize::try_from(offset - range.start()).unwrap_or(usize::MAX);
    &data[index(piece.start())..index(piece.end())]
}

/// A range cut where runs end.
fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        let piece = ByteRange::new(at, range.end().min((at / RUN_END_BYTES + 1) * RUN_END_BYTES))?;
        at = piece.end();
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Around the end of a run.
    const FROM: u64 = RUN_END_BYTES - 100;

    fn bytes_of(file: &[u8], range: ByteRange) -> &[u8] {
        slice(file, ByteRange::at(FROM, file.len() as u64).unwrap(), range)
    }

    proptest! {
        #[test]
        fn every_run_has_the_sum_of_its_bytes_whatever_is_written_where(
            writes in proptest::collection::vec((0u64..200, 1u64..60), 1..30),
        ) {
            let mut file = vec![0u8; 300];
            let mut written = vec![false; 300];
            let mut sums = Sums::default();
            for (i, (at, len)) in writes.into_iter().enumerate() {
                let range = ByteRange::at(FROM + at, len).unwrap();
                let data: Vec<u8> = (0..len).map(|b| (b as u8).wrapping_mul(31).wrapping_add(i as u8 + 1)).collect();
                let was: Vec<Sum> = sums
                    .changed_by(range)
                    .into_iter()
                    .map(|(piece, known)| {
                        let crc = crc64(bytes_of(&file, piece));
                        assert!(known.is_none_or(|known| known == crc));
                        Sum { range: piece, crc }
                    })
                    .collect();
                let after = sums.after(range, &data, &was);
                let (from, to) = (at as usize, (at + len) as usize);
                file[from..to].copy_from_slice(&data);
                written[from..to].fill(true);
                sums.put(&after);
                let mut covered = vec![false; 300];
                let mut last_end = 0;
                for run in sums.all() {
                    prop_assert!(run.range.start() >= last_end);
                    prop_assert_eq!(run.range.start() / RUN_END_BYTES, (run.range.end() - 1) / RUN_END_BYTES);
                    prop_assert!(run.range.start() != last_end || last_end.is_multiple_of(RUN_END_BYTES), "neighbours are joined");
                    last_end = run.range.end();
                    prop_assert_eq!(run.crc, crc64(bytes_of(&file, run.range)), "{:?}", run);
                    let index = |at: u64| (at - FROM) as usize;
                    covered[index(run.range.start())..index(run.range.end())].fill(true);
                }
                prop_assert_eq!(&covered, &written);
            }
        }

        #[test]
        fn a_run_is_held_to_its_sum_but_for_what_was_being_written_over(
            len in 2usize..200,
            at in 0usize..200,
            piece_len in 1usize..50,
            flip in 0usize..200,
        ) {
            let run: Vec<u8> = (0..len).map(|b| b as u8 ^ 0x5a).collect();
            let at = at % len;
            let end = (at + piece_len).min(len);
            let range = ByteRange::new(FROM, FROM + len as u64).unwrap();
            let piece = ByteRange::new(FROM + at as u64, FROM + end as u64).unwrap();
            let was = Sum::of(piece, &run[at..end]);
            let expected = crc64(&run);
            let mut now = run;
            now[at..end].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(7) ^ 3);
            let is = |now: &[u8]| as_it_was(Sum::of(range, now), [(was, crc64(&now[at..end]))]);
            prop_assert_eq!(is(&now), expected);
            let flip = flip % len;
            now[flip] ^= 1;
            prop_assert_eq!(is(&now) == expected, (at..end).contains(&flip));
        }
    }

    #[test]
    fn a_sum_is_written_down_in_short() {
        let sum = Sum::of(ByteRange::new(3, 12).unwrap(), b"123456789");
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(text, "[3,12,12577168950296156296]");
        assert_eq!(serde_json::from_str::<Sum>(&text).unwrap(), sum);
        assert!(serde_json::from_str::<Sum>("[3,3,0]").is_err());
    }
}
