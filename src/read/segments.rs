//! Bytes in memory: runs of one version of an object, here or on their way. Pure.
//!
//! A run is as long as the request that brought it, so that a large sequential read is answered from one piece, and
//! a small random one costs no more than it asked for. Runs of one object never overlap.
//!
//! What is here is of one of three classes, each least recently used first:
//! - *unread*: fetched ahead, and its reader has not come to its end yet;
//! - *seen*: read once. The kernel keeps the same bytes in its page cache, so little of this is kept: a reader that
//!   goes through a large file once takes nothing from anybody;
//! - *hot*: read again.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use lru::LruCache;

use super::{ObjectId, PIECE_BYTES};
use crate::base::{ByteRange, Grant};

/// What was read once is kept up to this much: the kernel has it too, and memory that is used again is faster than
/// fresh memory.
const SEEN_MAX_BYTES: u64 = 64 << 20;
/// Pieces that are no longer wanted are kept for those to come, up to this many and this part of the memory.
const USED_MAX: u64 = 16;
const USED_PART: u64 = 64;
/// Neighbours this small are fetched again where that saves a request for each gap between them.
pub(super) const BRIDGE_BYTES: u64 = 256 << 10;

/// Runs of bytes by object and offset; `F` stands for a run on its way.
#[derive(Debug)]
pub(super) struct Segments<F> {
    numbers: HashMap<ObjectId, u64>,
    shelves: HashMap<u64, Shelf<F>>,
    last_number: u64,
    /// By [`Rank`].
    classes: [Class; 3],
    /// Pieces that are no longer wanted, for the memory they are in.
    used: Vec<Bytes>,
    used_max: usize,
    /// How often bytes were asked for or came.
    reads: u64,
}

/// The runs of one object.
#[derive(Debug)]
struct Shelf<F> {
    object: ObjectId,
    /// By their first byte.
    slots: BTreeMap<u64, Slot<F>>,
}

#[derive(Debug)]
enum Slot<F> {
    Here(Kept),
    Coming { end: u64, flight: F },
}

impl<F> Slot<F> {
    fn end(&self, start: u64) -> u64 {
        match self {
            Self::Here(kept) => start + kept.bytes.len() as u64,
            Self::Coming { end, .. } => *end,
        }
    }
}

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    /// Memory of the budget that these bytes take.
    _grant: Option<Grant>,
    rank: Rank,
    /// Everything of this run before here has been read.
    read_to: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    Unread,
    Seen,
    Hot,
}

/// Runs of one rank, least recently used first, with a bound.
#[derive(Debug)]
struct Class {
    order: LruCache<(u64, u64), u64>,
    bytes: u64,
    max_bytes: u64,
}

impl Class {
    fn new(max_bytes: u64) -> Self {
        Self { order: LruCache::unbounded(), bytes: 0, max_bytes }
    }

    fn add(&mut self, at: (u64, u64), bytes: u64) {
        self.bytes += bytes;
        if let Some(old) = self.order.put(at, bytes) {
            self.bytes -= old;
        }
    }

    fn remove(&mut self, at: (u64, u64)) {
        if let Some(bytes) = self.order.pop(&at) {
            self.bytes -= bytes;
        }
    }

    /// The least recently used, if the class is over its bound.
    fn surplus(&self) -> Option<(u64, u64)> {
        if self.bytes <= self.max_bytes {
            return None;
        }
        self.oldest()
    }

    fn oldest(&self) -> Option<(u64, u64)> {
        self.order.peek_lru().map(|(at, _)| *at)
    }
}

/// A part of a range that was asked for.
#[derive(Debug)]
pub(super) enum Piece<F> {
    Here(Bytes),
    Coming(ByteRange, F),
    Gap(ByteRange),
}

/// Who wants the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Somebody waits for it.
    Demand,
    /// A guess of what will be read: takes nothing that has proved useful, nor what others are about to read.
    Ahead,
}

impl<F: Clone> Segments<F> {
    /// `limit_bytes` is the memory they share with everybody else, of which each class may have a part.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            numbers: HashMap::new(),
            shelves: HashMap::new(),
            last_number: 0,
            classes: [limit_bytes / 2, (limit_bytes / 4).min(SEEN_MAX_BYTES), limit_bytes / 2]
                .map(Class::new),
            used: Vec::new(),
            used_max: usize::try_from((limit_bytes / USED_PART / PIECE_BYTES).min(USED_MAX)).unwrap_or(0),
            reads: 0,
        }
    }

    /// A number that changes whenever bytes are read, and whenever some come.
    pub(super) fn reads(&self) -> u64 {
        self.reads
    }

    /// What there is of a range, in order; the reader takes it.
    pub(super) fn read(&mut self, object: &ObjectId, range: ByteRange) -> Vec<Piece<F>> {
        self.reads += 1;
        let pieces = self.look(object, range);
        if let Some(&number) = self.numbers.get(object) {
            self.note_read(number, range);
        }
        pieces
    }

    /// The bytes, if one run that is here has all of them; the reader takes them.
    pub(super) fn read_whole(&mut self, object: &ObjectId, range: ByteRange) -> Option<Bytes> {
        let number = *self.numbers.get(object)?;
        let (start, slot) = self.shelves.get(&number)?.slots.range(..=range.start()).next_back()?;
        let Slot::Here(kept) = slot else { return None };
        if start + (kept.bytes.len() as u64) < range.end() {
            return None;
        }
        let bytes = slice(&kept.bytes, *start, range);
        self.reads += 1;
        self.note_read(number, range);
        Some(bytes)
    }

    /// What there is of a range, in order.
    pub(super) fn look(&self, object: &ObjectId, range: ByteRange) -> Vec<Piece<F>> {
        let mut pieces = Vec::new();
        let mut at = range.start();
        let shelf = self.numbers.get(object).and_then(|number| self.shelves.get(number));
        if let Some(shelf) = shelf {
            for (start, slot) in shelf.overlapping(range) {
                pieces.extend(ByteRange::new(at, start.min(range.end())).map(Piece::Gap));
                let Some(part) = ByteRange::new(at.max(start), slot.end(start).min(range.end())) else {
                    continue;
                };
                pieces.push(match slot {
                    Slot::Here(kept) => Piece::Here(slice(&kept.bytes, start, part)),
                    Slot::Coming { flight, .. } => Piece::Coming(part, flight.clone()),
                });
                at = part.end();
            }
        }
        pieces.extend(ByteRange::new(at, range.end()).map(Piece::Gap));
        pieces
    }

    /// Lets go of small runs between two gaps of a range, so that one request fills them all.
    pub(super) fn bridge(&mut self, object: &ObjectId, range: ByteRange) {
        let pieces = self.look(object, range);
        let gap = |piece: &Piece<F>| matches!(piece, Piece::Gap(_));
        let (Some(first), Some(last)) = (pieces.iter().position(gap), pieces.iter().rposition(gap)) else {
            return;
        };
        let between = &pieces[first..=last];
        let small = |piece: &Piece<F>| match piece {
            Piece::Here(bytes) => (bytes.len() as u64) < BRIDGE_BYTES,
            Piece::Gap(_) => true,
            Piece::Coming(..) => false,
        };
        if first == last || !between.iter().all(small) {
            return;
        }
        let (Piece::Gap(from), Piece::Gap(to)) = (&pieces[first], &pieces[last]) else { return };
        let Some(&number) = self.numbers.get(object) else { return };
        let Some(whole) = ByteRange::new(from.start(), to.end()) else { return };
        let Some(shelf) = self.shelves.get(&number) else { return };
        let starts: Vec<u64> = shelf.overlapping(whole).map(|(start, _)| start).collect();
        for start in starts {
            self.remove((number, start));
        }
    }

    /// A run is on its way. The range must be a gap.
    pub(super) fn expect(&mut self, object: &ObjectId, range: ByteRange, flight: F) {
        let number = self.number(object);
        if let Some(shelf) = self.shelves.get_mut(&number) {
            shelf.slots.insert(range.start(), Slot::Coming { end: range.end(), flight });
        }
    }

    /// A run on its way is here.
    pub(super) fn land(&mut self, object: &ObjectId, start: u64, bytes: Bytes, grant: Option<Grant>) {
        let Some(&number) = self.numbers.get(object) else { return };
        let Some(shelf) = self.shelves.get_mut(&number) else { return };
        let Some(slot) = shelf.slots.get_mut(&start) else { return };
        let len = bytes.len() as u64;
        self.reads += 1;
        *slot = Slot::Here(Kept { bytes, _grant: grant, rank: Rank::Unread, read_to: start });
        self.classes[Rank::Unread as usize].add((number, start), len);
        self.trim(Rank::Unread);
    }

    /// A run on its way does not come.
    pub(super) fn give_up(&mut self, object: &ObjectId, start: u64) {
        let Some(&number) = self.numbers.get(object) else { return };
        let coming = |shelf: &Shelf<F>| matches!(shelf.slots.get(&start), Some(Slot::Coming { .. }));
        if self.shelves.get(&number).is_some_and(coming) {
            self.remove((number, start));
        }
    }

    /// Nobody has the object open any more: what was fetched ahead of its readers is of no more use than what they
    /// have read.
    pub(super) fn retire(&mut self, object: &ObjectId) {
        let Some(&number) = self.numbers.get(object) else { return };
        let Some(shelf) = self.shelves.get_mut(&number) else { return };
        for (start, slot) in &mut shelf.slots {
            if let Slot::Here(kept) = slot
                && kept.rank == Rank::Unread
            {
                kept.rank = Rank::Seen;
                self.classes[Rank::Unread as usize].remove((number, *start));
                self.classes[Rank::Seen as usize].add((number, *start), kept.bytes.len() as u64);
            }
        }
        self.trim(Rank::Seen);
    }

    /// Lets go of at least `bytes`, if there is that much to let go of for this need; returns how much it was.
    pub(super) fn shed(&mut self, bytes: u64, need: Need) -> u64 {
        let before = self.bytes();
        while before - self.bytes() < bytes {
            let order: &[Rank] = match need {
                Need::Demand => &[Rank::Seen, Rank::Unread, Rank::Hot],
                Need::Ahead => &[Rank::Seen],
            };
            let oldest = order.iter().find_map(|rank| self.classes[*rank as usize].oldest());
            let Some(oldest) = oldest else { break };
            self.remove(oldest);
        }
        before - self.bytes()
    }

    /// A piece that is no longer wanted; whoever is still being answered from it may hold it.
    pub(super) fn take_used(&mut self) -> Option<Bytes> {
        self.used.pop()
    }

    /// Lets go of everything that is here, and of memory for what is to come.
    pub(super) fn clear(&mut self) {
        self.shed(u64::MAX, Need::Demand);
        self.used = Vec::new();
    }

    /// Bytes that are here.
    pub(super) fn bytes(&self) -> u64 {
        self.classes.iter().map(|class| class.bytes).sum()
    }

    fn number(&mut self, object: &ObjectId) -> u64 {
        if let Some(&number) = self.numbers.get(object) {
            return number;
        }
        self.last_number += 1;
        self.numbers.insert(object.clone(), self.last_number);
        self.shelves.insert(self.last_number, Shelf { object: object.clone(), slots: BTreeMap::new() });
        self.last_number
    }

    /// A reader takes a range: what it reads to the end has been seen, and what it reads again is hot.
    fn note_read(&mut self, number: u64, range: ByteRange) {
        let Some(shelf) = self.shelves.get_mut(&number) else { return };
        let first = shelf.first_overlapping(range);
        for (start, slot) in shelf.slots.range_mut(first..range.end()) {
            let Slot::Here(kept) = slot else { continue };
            let end = start + kept.bytes.len() as u64;
            let Some(part) = range.intersect(ByteRange::new(*start, end).unwrap_or(range)) else { continue };
            let again = part.start() < kept.read_to && kept.rank != Rank::Hot && part.end() <= kept.read_to;
            kept.read_to = kept.read_to.max(part.end());
            let rank = match kept.rank {
                _ if again => Rank::Hot,
                Rank::Unread if kept.read_to == end => Rank::Seen,
                rank => rank,
            };
            let (at, len) = ((number, *start), kept.bytes.len() as u64);
            if rank == kept.rank {
                self.classes[rank as usize].order.promote(&at);
            } else {
                self.classes[kept.rank as usize].remove(at);
                self.classes[rank as usize].add(at, len);
                kept.rank = rank;
            }
        }
        self.trim(Rank::Seen);
        self.trim(Rank::Hot);
    }

    /// Lets go of the least recently used of a class until its bound holds.
    fn trim(&mut self, rank: Rank) {
        while let Some(oldest) = self.classes[rank as usize].surplus() {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, at: (u64, u64)) {
        for class in &mut self.classes {
            class.remove(at);
        }
        if let Some(shelf) = self.shelves.get_mut(&at.0) {
            if let Some(Slot::Here(kept)) = shelf.slots.remove(&at.1)
                && kept.bytes.len() as u64 == PIECE_BYTES
                && self.used.len() < self.used_max
            {
                self.used.push(kept.bytes);
            }
            if shelf.slots.is_empty() {
                self.numbers.remove(&shelf.object);
                self.shelves.remove(&at.0);
            }
        }
    }

    #[cfg(test)]
    fn check(&self) {
        let mut sums = [0u64; 3];
        for (number, shelf) in &self.shelves {
            assert_eq!(self.numbers.get(&shelf.object), Some(number));
            assert!(!shelf.slots.is_empty(), "an empty shelf is dropped");
            let mut at = 0;
            for (start, slot) in &shelf.slots {
                assert!(*start >= at, "runs overlap");
                at = slot.end(*start);
                if let Slot::Here(kept) = slot {
                    sums[kept.rank as usize] += kept.bytes.len() as u64;
                }
            }
        }
        for (class, sum) in self.classes.iter().zip(sums) {
            assert_eq!(class.bytes, sum);
            assert!(class.bytes <= class.max_bytes, "a class over its bound");
        }
    }
}

impl<F> Shelf<F> {
    /// Where the first run that may overlap begins.
    fn first_overlapping(&self, range: ByteRange) -> u64 {
        match self.slots.range(..=range.start()).next_back() {
            Some((start, slot)) if slot.end(*start) > range.start() => *start,
            _ => range.start(),
        }
    }

    fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = (u64, &Slot<F>)> {
        self.slots.range(self.first_overlapping(range)..range.end()).map(|(start, slot)| (*start, slot))
    }
}

/// The bytes of `range` in a run that begins at `start`.
fn slice(bytes: &Bytes, start: u64, range: ByteRange) -> Bytes {
    let from = usize::try_from(range.start() - start).unwrap_or(0);
    let to = usize::try_from(range.end() - start).unwrap_or(0);
    bytes.slice(from..to.min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Budget, ETag};
    use proptest::prelude::*;

    fn object(key: &str) -> ObjectId {
        ObjectId { volume: 0, key: key.into(), etag: ETag::new("e") }
    }

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::at(start, len).unwrap()
    }

    /// The byte at an offset.
    fn byte(at: u64) -> u8 {
        (at * 7 + 3) as u8
    }

    fn bytes(range: ByteRange) -> Bytes {
        (range.start()..range.end()).map(byte).collect::<Vec<_>>().into()
    }

    fn land(segments: &mut Segments<u32>, key: &str, run: ByteRange) {
        let grant = Budget::new(1 << 30).try_take(run.len()).unwrap();
        segments.expect(&object(key), run, 0);
        segments.land(&object(key), run.start(), bytes(run), Some(grant));
        segments.check();
    }

    fn has(segments: &Segments<u32>, key: &str, run: ByteRange) -> bool {
        segments.look(&object(key), run).iter().all(|piece| matches!(piece, Piece::Here(_)))
    }

    #[derive(Clone, Debug)]
    enum Op {
        Read(u64, u64),
        Expect(u64, u64),
        Land(usize),
        GiveUp(usize),
        Bridge(u64, u64),
        Retire,
        Shed(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..200, 1u64..60).prop_map(|(at, len)| Op::Read(at, len)),
            4 => (0u64..200, 1u64..60).prop_map(|(at, len)| Op::Expect(at, len)),
            4 => (0usize..8).prop_map(Op::Land),
            1 => (0usize..8).prop_map(Op::GiveUp),
            1 => (0u64..200, 1u64..60).prop_map(|(at, len)| Op::Bridge(at, len)),
            1 => Just(Op::Retire),
            1 => (1u64..60).prop_map(Op::Shed),
        ]
    }

    proptest! {
        /// Whatever happens, pieces cover what was asked for in order, with the right bytes.
        #[test]
        fn pieces_cover_the_range_with_the_bytes_that_landed(ops in proptest::collection::vec(op(), 1..80)) {
            let mut segments = Segments::new(400);
            let budget = Budget::new(1 << 20);
            let mut flights: Vec<ByteRange> = Vec::new();
            let k = object("k");
            for op in ops {
                match op {
                    Op::Read(at, len) => {
                        let asked = range(at, len);
                        let one = segments.read_whole(&k, asked);
                        let mut next = asked.start();
                        for piece in segments.read(&k, asked) {
                            let part = match piece {
                                Piece::Here(found) => {
                                    let part = range(next, found.len() as u64);
                                    prop_assert_eq!(found, bytes(part));
                                    part
                                }
                                Piece::Coming(part, run) => {
                                    let run: ByteRange = run;
                                    prop_assert_eq!(run.intersect(part), Some(part));
                                    part
                                }
                                Piece::Gap(part) => part,
                            };
                            prop_assert_eq!(part.start(), next);
                            next = part.end();
                        }
                        prop_assert_eq!(next, asked.end());
                        if let Some(one) = one {
                            prop_assert_eq!(one, bytes(asked));
                        }
                    }
                    Op::Expect(at, len) => {
                        let gaps: Vec<_> = segments.look(&k, range(at, len)).into_iter()
                            .filter_map(|p| if let Piece::Gap(gap) = p { Some(gap) } else { None }).collect();
                        for gap in gaps {
                            segments.expect(&k, gap, gap);
                            flights.push(gap);
                        }
                    }
                    Op::Land(i) if i < flights.len() => {
                        let run = flights.swap_remove(i);
                        segments.land(&k, run.start(), bytes(run), budget.try_take(run.len()));
                    }
                    Op::GiveUp(i) if i < flights.len() => {
                        let run = flights.swap_remove(i);
                        segments.give_up(&k, run.start());
                    }
                    Op::Bridge(at, len) => segments.bridge(&k, range(at, len)),
                    Op::Retire => segments.retire(&k),
                    Op::Shed(bytes) => {
                        let (before, shed) = (segments.bytes(), segments.shed(bytes, Need::Demand));
                        prop_assert!(shed >= bytes.min(before));
                    }
                    Op::Land(_) | Op::GiveUp(_) => {}
                }
                segments.check();
            }
            for run in flights {
                segments.give_up(&k, run.start());
            }
            segments.clear();
            prop_assert_eq!(segments.numbers.len(), 0, "nothing is left of an object with no run");
        }
    }

    #[test]
    fn reading_through_a_large_file_once_takes_nothing_that_is_read_again_and_again() {
        let mut segments: Segments<u32> = Segments::new(1000);
        for run in [range(0, 200), range(200, 200)] {
            land(&mut segments, "hot", run);
            for _ in 0..3 {
                segments.read(&object("hot"), run);
            }
        }
        for i in 0..100 {
            let run = range(i * 50, 50);
            land(&mut segments, "scan", run);
            // In small steps, which is no reading again.
            segments.read(&object("scan"), range(i * 50, 20));
            segments.read(&object("scan"), range(i * 50 + 20, 30));
        }
        assert!(has(&segments, "hot", range(0, 400)));
        assert!(segments.bytes() <= 400 + 250 + 50, "{}", segments.bytes());
    }

    #[test]
    fn a_guess_takes_memory_of_what_was_read_and_of_nothing_else() {
        let mut segments: Segments<u32> = Segments::new(1000);
        land(&mut segments, "seen", range(0, 100));
        segments.read(&object("seen"), range(0, 100));
        land(&mut segments, "unread", range(0, 100));
        assert_eq!(segments.shed(150, Need::Ahead), 100);
        assert!(has(&segments, "unread", range(0, 100)));
        segments.retire(&object("unread"));
        assert_eq!(segments.shed(150, Need::Ahead), 100, "its readers have gone");
    }

    #[test]
    fn one_request_fills_gaps_that_are_close() {
        let mut segments: Segments<u32> = Segments::new(1 << 20);
        land(&mut segments, "k", range(100, 50));
        land(&mut segments, "k", range(200, 50));
        segments.bridge(&object("k"), range(0, 300));
        let pieces = segments.look(&object("k"), range(0, 300));
        assert!(matches!(pieces[..], [Piece::Gap(gap)] if gap == range(0, 300)), "{pieces:?}");
        let mut segments: Segments<u32> = Segments::new(8 << 20);
        land(&mut segments, "k", range(100, BRIDGE_BYTES));
        segments.bridge(&object("k"), range(0, BRIDGE_BYTES + 200));
        assert_eq!(
            segments.look(&object("k"), range(0, BRIDGE_BYTES + 200)).len(),
            3,
            "too much to fetch again"
        );
    }
}
