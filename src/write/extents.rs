//! Which bytes of a file come from where. Pure; the oracle in its tests is a byte array.

use std::collections::BTreeMap;

use crate::base::ByteRange;

/// Runs of a sequential writer end at multiples of this, as all parts do.
pub(super) const RUN_END_BYTES: u64 = 8 << 20;

/// Where a run of bytes comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The object the file was opened from, at the same offset.
    Base,
    /// The staging file, at the same offset; written at this stamp.
    Staged(u64),
    /// Zeros, made by growing the file or by a hole at this stamp.
    Zero(u64),
    /// Another object, copied at this stamp; the number says which of the file's copies it is.
    Copied(u64, u32),
}

impl What {
    /// Whether two runs side by side come from one place: one request can copy both.
    pub fn is_of_same_object(self, other: Self) -> bool {
        match (self, other) {
            (Self::Base, Self::Base) => true,
            (Self::Copied(_, one), Self::Copied(_, two)) => one == two,
            _ => false,
        }
    }
}

impl What {
    /// Of the change that made it; `None` of bytes that were there before.
    pub fn stamp(self) -> Option<u64> {
        match self {
            Self::Base => None,
            Self::Staged(stamp) | Self::Zero(stamp) | Self::Copied(stamp, _) => Some(stamp),
        }
    }
}

/// A run of bytes from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub range: ByteRange,
    pub what: What,
}

/// The sources of a file's bytes: sorted, disjoint, covering exactly `0..len`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// Start of each run -> its end and source.
    runs: BTreeMap<u64, (u64, What)>,
    len: u64,
}

impl Extents {
    /// A file that is what S3 has.
    pub fn of_base(len: u64) -> Self {
        let mut extents = Self { runs: BTreeMap::new(), len };
        if len > 0 {
            extents.runs.insert(0, (len, What::Base));
        }
        extents
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Records a write; what lies between the old end and its start becomes zeros.
    pub fn write(&mut self, range: ByteRange, stamp: u64) {
        self.put(range, What::Staged(stamp), stamp);
    }

    /// The same of a range that is another object's, which nobody has fetched.
    pub fn copy(&mut self, range: ByteRange, stamp: u64, copy: u32) {
        self.put(range, What::Copied(stamp, copy), stamp);
    }

    /// The same of zeros.
    pub fn zero(&mut self, range: ByteRange, stamp: u64) {
        self.put(range, What::Zero(stamp), stamp);
    }

    /// Cuts the file, or grows it with zeros.
    pub fn truncate(&mut self, len: u64, stamp: u64) {
        if len > self.len {
            self.grow(len, stamp);
        } else {
            self.split_at(len);
            self.runs.split_off(&len);
            self.len = len;
        }
    }

    /// Makes zeros of what lies in `range`; the length stays.
    pub fn punch(&mut self, range: ByteRange, stamp: u64) {
        if let Some(hole) = ByteRange::new(range.start(), range.end().min(self.len)) {
            self.set(hole, What::Zero(stamp));
        }
    }

    /// Adds a run at the end, exactly as it is: how extents that were written down are made again. `false` where it
    /// does not begin at the end.
    pub fn push(&mut self, segment: Segment) -> bool {
        let fits = segment.range.start() == self.len;
        if fits {
            self.runs.insert(self.len, (segment.range.end(), segment.what));
            self.len = segment.range.end();
        }
        fits
    }

    /// Marks bytes of the base as staged, once they have been fetched.
    pub fn materialise(&mut self, range: ByteRange, stamp: u64) {
        let base: Vec<ByteRange> =
            self.segments(range).into_iter().filter(|s| s.what == What::Base).map(|s| s.range).collect();
        for run in base {
            self.set(run, What::Staged(stamp));
        }
    }

    /// Marks bytes of a copy as staged, once they have been fetched. They are the same bytes still.
    pub fn fetched(&mut self, range: ByteRange, copy: u32) {
        for segment in self.segments(range) {
            if let What::Copied(stamp, of) = segment.what
                && of == copy
            {
                // Joined with its neighbours it would not be as new as it is any more, and leave again in a part.
                self.replace(segment.range, What::Staged(stamp));
            }
        }
    }

    /// Everything up to `stamp` is in S3 now, in an object of `base_len` bytes; what is newer stays.
    pub fn clear(&mut self, stamp: u64, base_len: u64) {
        let runs = std::mem::take(&mut self.runs);
        for (start, (end, what)) in runs {
            let what = match what {
                What::Staged(at) | What::Zero(at) | What::Copied(at, _) if at <= stamp => What::Base,
                other => other,
            };
            self.runs.insert(start, (end, what));
        }
        debug_assert!(
            self.runs.iter().all(|(_, (end, what))| *what != What::Base || *end <= base_len),
            "a byte that S3 does not have would be read from it"
        );
        self.merge();
    }

    /// The runs that overlap `range`, cut to it, in order.
    pub fn segments(&self, range: ByteRange) -> Vec<Segment> {
        let first = self.runs.range(..=range.start()).next_back().map_or(0, |(start, _)| *start);
        self.runs
            .range(first..range.end())
            .filter_map(|(start, (end, what))| {
                let run = ByteRange::new(*start, *end)?.intersect(range)?;
                Some(Segment { range: run, what: *what })
            })
            .collect()
    }

    /// Every run, in order.
    pub fn all(&self) -> Vec<Segment> {
        ByteRange::new(0, self.len).map_or_else(Vec::new, |whole| self.segments(whole))
    }

    /// The newest stamp in a range, and whether all of it was written here: nothing of it is the base's.
    pub fn newest(&self, range: ByteRange) -> (u64, bool) {
        let stamps = self.segments(range).into_iter().map(|segment| segment.what.stamp());
        stamps
            .fold((0, true), |(newest, all), stamp| (newest.max(stamp.unwrap_or(0)), all && stamp.is_some()))
    }

    /// The whole run that a byte is in.
    pub fn run_at(&self, offset: u64) -> Option<ByteRange> {
        let (start, (end, _)) = self.runs.range(..=offset).next_back()?;
        ByteRange::new(*start, *end).filter(|run| run.contains(offset))
    }

    /// Up to where bytes were written without a gap, from `from` on.
    pub fn staged_until(&self, from: u64) -> u64 {
        let mut at = from;
        while let Some((_, (end, What::Staged(_)))) = self.runs.range(..=at).next_back()
            && *end > at
        {
            at = *end;
        }
        at
    }

    /// Bytes that S3 does not have yet.
    pub fn dirty_bytes(&self) -> u64 {
        self.all().iter().filter(|s| s.what != What::Base).map(|s| s.range.len()).sum()
    }

    /// The first byte from `offset` on that is no hole, or the first that is one; the end of the file is a hole.
    /// `None` where there is none, or `offset` is past the end.
    pub fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        let rest = ByteRange::new(offset, self.len)?;
        let found = self
            .segments(rest)
            .iter()
            .find(|s| matches!(s.what, What::Zero(_)) == hole)
            .map(|s| s.range.start());
        found.or(hole.then_some(self.len))
    }

    fn put(&mut self, range: ByteRange, what: What, stamp: u64) {
        if range.start() > self.len {
            self.grow(range.start(), stamp);
        }
        self.set(range, what);
        self.len = self.len.max(range.end());
    }

    fn grow(&mut self, to: u64, stamp: u64) {
        if let Some(hole) = ByteRange::new(self.len, to) {
            self.set(hole, What::Zero(stamp));
        }
        self.len = to;
    }

    /// Of the newest change.
    fn set(&mut self, range: ByteRange, what: What) {
        // A sequential writer extends its last run instead of adding one per write: the newer stamp
        // covers the older bytes too, which at worst uploads them once more.
        // Not across the end of a part, which may have left already and should not go again.
        let (mut start, mut what) = (range.start(), what);
        if !start.is_multiple_of(RUN_END_BYTES)
            && let Some((before, (end, earlier))) = self.runs.range(..start).next_back()
            && *end >= start
            && let Some(both) = joined(*earlier, what)
        {
            (start, what) = (*before, both);
        }
        self.replace(ByteRange::new(start, range.end()).unwrap_or(range), what);
    }

    fn replace(&mut self, range: ByteRange, what: What) {
        self.split_at(range.start());
        self.split_at(range.end());
        let covered: Vec<u64> =
            self.runs.range(range.start()..range.end()).map(|(start, _)| *start).collect();
        for start in covered {
            self.runs.remove(&start);
        }
        for piece in pieces(range, what) {
            self.runs.insert(piece.start(), (piece.end(), what));
        }
    }

    fn split_at(&mut self, at: u64) {
        if let Some((start, (end, what))) = self.runs.range(..at).next_back().map(|(s, r)| (*s, *r))
            && end > at
        {
            self.runs.insert(start, (at, what));
            self.runs.insert(at, (end, what));
        }
    }

    fn merge(&mut self) {
        let runs = std::mem::take(&mut self.runs);
        let mut last: Option<(u64, u64, What)> = None;
        for (start, (end, what)) in runs {
            match &mut last {
                Some((_, last_end, last_what)) if *last_end == start && *last_what == what => *last_end = end,
                _ => {
                    if let Some((s, e, w)) = last.replace((start, end, what)) {
                        self.runs.insert(s, (e, w));
                    }
                }
            }
        }
        if let Some((s, e, w)) = last {
            self.runs.insert(s, (e, w));
        }
    }

    /// Sorted, disjoint, covering exactly `0..len`.
    pub fn check(&self) {
        let mut at = 0;
        for (start, (end, _)) in &self.runs {
            assert_eq!(*start, at, "no gap and no overlap");
            assert!(end > start, "no empty run");
            at = *end;
        }
        assert_eq!(at, self.len, "the runs end where the file ends");
    }
}

/// A run cut where runs end.
fn pieces(run: ByteRange, what: What) -> Vec<ByteRange> {
    if !matches!(what, What::Staged(_)) {
        return vec![run];
    }
    let mut pieces = Vec::new();
    let mut at = run.start();
    while let Some(piece) = ByteRange::new(at, run.end().min((at / RUN_END_BYTES + 1) * RUN_END_BYTES)) {
        pieces.push(piece);
        at = piece.end();
    }
    pieces
}

/// What two runs side by side are as one, if they differ in their stamps alone: as new as the newer.
fn joined(run: What, next: What) -> Option<What> {
    match (run, next) {
        (What::Staged(one), What::Staged(two)) => Some(What::Staged(one.max(two))),
        (What::Zero(one), What::Zero(two)) => Some(What::Zero(one.max(two))),
        (What::Copied(one, copy), What::Copied(two, same)) if copy == same => {
            Some(What::Copied(one.max(two), copy))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, u64),
        Truncate(u64),
        Zero(u64, u64),
        /// Of one of two objects, whose bytes differ.
        Copy(u64, u64, u32),
        /// What was copied of that object is fetched.
        Fetch(u32),
        /// A commit begins, `n` more operations happen, and it ends.
        Commit,
        Finish,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u64..60, 1u64..20).prop_map(|(at, len)| Op::Write(at, len)),
            (0u64..80).prop_map(Op::Truncate),
            (0u64..60, 1u64..20).prop_map(|(at, len)| Op::Zero(at, len)),
            (0u64..60, 1u64..20, 0u32..2).prop_map(|(at, len, of)| Op::Copy(at, len, of)),
            (0u32..2).prop_map(Op::Fetch),
            Just(Op::Commit),
            Just(Op::Finish),
        ]
    }

    /// The file as bytes, by reading every segment from where it says.
    fn bytes(extents: &Extents, base: &[u8], staged: &[u8]) -> Vec<u8> {
        extents
            .all()
            .iter()
            .flat_map(|s| {
                let (a, b) = (s.range.start() as usize, s.range.end() as usize);
                match s.what {
                    What::Base => base[a..b].to_vec(),
                    What::Staged(_) => staged[a..b].to_vec(),
                    What::Zero(_) => vec![0; b - a],
                    What::Copied(_, of) => (a..b).map(|at| copied(of, at)).collect(),
                }
            })
            .collect()
    }

    #[test]
    fn a_part_that_is_full_stays_as_it_is_while_the_writer_goes_on() {
        let mut extents = Extents::of_base(0);
        let (step, end) = (100_000, 3 * RUN_END_BYTES);
        let mut seen = Vec::new();
        for (stamp, at) in (1u64..).zip((0..end).step_by(step)) {
            extents.write(ByteRange::new(at, (at + step as u64).min(end)).unwrap(), stamp);
            let full = ByteRange::at(0, RUN_END_BYTES).unwrap();
            if extents.len() >= full.end() {
                seen.push(extents.newest(full));
            }
        }
        seen.dedup();
        assert_eq!(seen, [(84, true)], "the 84th write ended it");
        assert_eq!(extents.all().len(), 3, "one run for each part");
    }

    fn copied(of: u32, at: usize) -> u8 {
        200 + of as u8 * 20 + (at % 17) as u8
    }

    /// Of every byte.
    fn stamps(extents: &Extents) -> Vec<Option<u64>> {
        let of_run = |s: &Segment| std::iter::repeat_n(s.what.stamp(), s.range.len() as usize);
        extents.all().iter().flat_map(of_run).collect()
    }

    /// What `seek` has to say, byte by byte.
    fn check_seek(extents: &Extents) {
        let len = extents.len();
        let mut next = [Some(len), None];
        for segment in extents.all().iter().rev() {
            let is_hole = matches!(segment.what, What::Zero(_));
            for at in (segment.range.start()..segment.range.end()).rev() {
                next[usize::from(!is_hole)] = Some(at);
                assert_eq!([extents.seek(at, true), extents.seek(at, false)], next);
            }
        }
        assert_eq!((extents.seek(len, true), extents.seek(len, false)), (None, None));
    }

    proptest! {
        #[test]
        fn extents_equal_a_byte_array_through_writes_truncates_and_commits(
            base_len in 0usize..50,
            ops in proptest::collection::vec(op(), 1..40),
        ) {
            let mut base: Vec<u8> = (0..base_len).map(|i| 100 + i as u8).collect();
            let mut staged = vec![0u8; 200];
            let mut oracle = base.clone();
            let mut extents = Extents::of_base(base_len as u64);
            let mut stamp = 0u64;
            // A commit in flight: the stamp it carries and the bytes it uploads.
            let mut in_flight: Option<(u64, Vec<u8>)> = None;
            for (i, op) in ops.into_iter().enumerate() {
                stamp += 1;
                match op {
                    Op::Write(at, len) => {
                        let (a, b) = (at as usize, (at + len) as usize);
                        if oracle.len() < b { oracle.resize(b, 0); }
                        let byte = 1 + (i % 90) as u8;
                        oracle[a..b].fill(byte);
                        staged[a..b].fill(byte);
                        extents.write(ByteRange::at(at, len).unwrap(), stamp);
                    }
                    Op::Truncate(len) => {
                        oracle.resize(len as usize, 0);
                        extents.truncate(len, stamp);
                    }
                    Op::Zero(at, len) => {
                        let (a, b) = (at as usize, (at + len) as usize);
                        if oracle.len() < b { oracle.resize(b, 0); }
                        oracle[a..b].fill(0);
                        extents.zero(ByteRange::at(at, len).unwrap(), stamp);
                    }
                    Op::Copy(at, len, of) => {
                        let (a, b) = (at as usize, (at + len) as usize);
                        if oracle.len() < b { oracle.resize(b, 0); }
                        (a..b).for_each(|at| oracle[at] = copied(of, at));
                        extents.copy(ByteRange::at(at, len).unwrap(), stamp, of);
                    }
                    Op::Fetch(of) => if let Some(whole) = ByteRange::new(0, extents.len()) {
                        let before = stamps(&extents);
                        for segment in extents.all() {
                            if matches!(segment.what, What::Copied(_, copy) if copy == of) {
                                let (a, b) = (segment.range.start() as usize, segment.range.end() as usize);
                                (a..b).for_each(|at| staged[at] = copied(of, at));
                            }
                        }
                        extents.fetched(whole, of);
                        prop_assert_eq!(stamps(&extents), before);
                    },
                    Op::Commit => if in_flight.is_none() {
                        in_flight = Some((stamp, oracle.clone()));
                    },
                    Op::Finish => if let Some((carried, uploaded)) = in_flight.take() {
                        base = uploaded;
                        extents.clear(carried, base.len() as u64);
                    },
                }
                extents.check();
                check_seek(&extents);
                prop_assert_eq!(extents.len(), oracle.len() as u64);
                // While a commit is on its way the old base is still what Base means.
                prop_assert_eq!(&bytes(&extents, &base, &staged), &oracle);
                let mut again = Extents::default();
                prop_assert!(extents.all().into_iter().all(|run| again.push(run)));
                prop_assert_eq!(&again, &extents);
            }
        }
    }

    #[test]
    fn what_is_written_beside_a_copy_on_its_way_stays_dirty_when_the_copy_is_fetched() {
        let mut extents = Extents::of_base(0);
        let copied = ByteRange::new(4, 17).unwrap();
        extents.copy(copied, 1, 0);
        // A commit of everything so far has begun.
        extents.write(ByteRange::new(0, 4).unwrap(), 2);
        extents.fetched(copied, 0);
        extents.clear(1, 17);
        assert!(matches!(extents.segments(ByteRange::new(0, 4).unwrap())[0].what, What::Staged(2)));
    }

    #[test]
    fn sequential_writes_stay_one_run() {
        let mut extents = Extents::of_base(0);
        for i in 0..100 {
            extents.write(ByteRange::at(i * 10, 10).unwrap(), i + 1);
        }
        assert_eq!(extents.all().len(), 1);
        assert_eq!(extents.dirty_bytes(), 1000);
    }
}
