//! How far to read ahead of one handle. Pure.
//!
//! A handle may have several readers on it: two threads, a body and its footer, or the kernel's own read-ahead that
//! arrives out of order. Each is a [`Stream`], told apart by where it reads. A stream's window is what it deserves:
//! it grows when the reader had to wait, never beyond four times what was read in order so far, and shrinks when
//! memory is short. A reader that jumps by equal distances is read ahead of run by run.

use crate::base::ByteRange;

/// Readers told apart on one handle. A jump takes the place of the least recent one that has shown nothing.
const STREAMS: usize = 4;
/// The first request of whoever begins at the file's start. Linux follows a 1 MiB read with another one of 128 KiB
/// when it opens its own window, which should not wait for a second request.
pub(super) const FIRST_BYTES: u64 = (1 << 20) + (128 << 10);
/// The window is never larger than this many times what was read in order: who stops early has wasted little.
const TRUST: u64 = 4;
/// The kernel's requests of one reader arrive this far out of order at most: two of its 1 MiB read-aheads.
const DISORDER_BYTES: u64 = 2 << 20;
/// A reader on its own asks for its window in eight requests, so that several are under way at any size. Readers who
/// read side by side share them: two for each are enough for one to be under way while another is consumed.
const PARTS_AHEAD: u64 = 8;
const PARTS_AHEAD_MIN: u64 = 2;
/// Requests ahead that keep a network busy, whoever they are for.
const PARTS_TOGETHER: u64 = 16;
const PART_MIN: u64 = 1 << 20;
/// Larger parts gain little: at 90 MB/s and 20 ms, 8 MiB keep a connection busy for 82 % of the time, and 16 MiB
/// for 90 %, at twice the memory.
pub(super) const PART_MAX: u64 = 8 << 20;
/// A jump beyond this is no stride.
const PERIOD_MAX: u64 = 1 << 30;

/// What a reader may have of what all of them share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Bytes that may be outstanding.
    pub(super) bytes: u64,
    /// Readers that are read far ahead of, this one among them.
    pub(super) readers: u64,
}

/// What one handle has been reading, and how far ahead of it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Most recently used first.
    streams: Vec<Stream>,
    stride: Stride,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Furthest byte read, exclusive.
    next: u64,
    /// Everything between `next` and here was asked for ahead.
    asked: u64,
    /// How far ahead this reader deserves; 0 until it has read two runs in a row.
    window: u64,
    /// Bytes read in order.
    consumed: u64,
}

/// The latest jumps, and what they have in common.
#[derive(Clone, Copy, Debug, Default)]
struct Stride {
    /// Where the latest run began, and the distance from the one before.
    begun: u64,
    period: u64,
    /// Length of the longest of the latest runs; 0 before the first jump.
    run: u64,
    /// Jumps in a row of the same distance.
    equal: u32,
    /// Runs up to here were asked for ahead.
    asked: u64,
    /// Bytes of runs ahead that the reader deserves.
    window: u64,
}

/// What to fetch ahead of a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) ahead: Vec<ByteRange>,
    /// The most one request should ask for.
    pub(super) part: u64,
}

impl Window {
    /// Takes note of a read and says which bytes to fetch ahead of it.
    ///
    /// `waits` tells that the reader has to wait for bytes of this read.
    /// Never asks for a byte twice for the same reader, nor past the end.
    pub(super) fn advance(&mut self, read: ByteRange, size: u64, share: Share, waits: bool) -> Advice {
        let max = share.bytes;
        let strided = self.note_jump(read);
        let mut stream = self.take_stream(read, max);
        if read.start() <= stream.next.saturating_add(slack(read)) {
            stream.consumed += read.end().saturating_sub(stream.next);
            stream.earn(read, max, waits);
        }
        stream.next = stream.next.max(read.end());
        stream.asked = stream.asked.max(stream.next);
        let advice =
            if strided { self.stride.advance(read, size, max, waits) } else { stream.ask(size, share) };
        self.streams.insert(0, stream);
        advice
    }

    /// Memory was short: asks for less until the reader waits again. What was not fetched of the latest advice may
    /// be asked for again.
    pub(super) fn pressed(&mut self, refused_from: u64) {
        self.stride.window /= 2;
        self.stride.asked = self.stride.asked.min(refused_from);
        if let Some(stream) = self.streams.first_mut() {
            stream.window = (stream.window / 2).max(PART_MIN.min(stream.window));
            stream.asked = stream.asked.min(refused_from).max(stream.next);
        }
    }

    /// The stream that a read belongs to, or a new one in the place of the one that has shown least.
    fn take_stream(&mut self, read: ByteRange, max: u64) -> Stream {
        if let Some(at) = self.streams.iter().position(|stream| stream.is_near(read)) {
            return self.streams.remove(at);
        }
        if self.streams.len() >= STREAMS {
            let least = self.streams.iter().rposition(|s| s.window == 0).unwrap_or(STREAMS - 1);
            self.streams.remove(least);
        }
        // Who begins at the start most often reads on; anyone else has to show it.
        let window = if read.start() == 0 { FIRST_BYTES.saturating_sub(read.len()).min(max) } else { 0 };
        Stream { next: read.start(), asked: read.end(), window, consumed: 0 }
    }

    /// Looks for jumps of equal distance; whether the reader is known to make them.
    fn note_jump(&mut self, read: ByteRange) -> bool {
        let stride = &mut self.stride;
        let within = stride.begun..=stride.begun.saturating_add(stride.run).saturating_add(DISORDER_BYTES);
        if within.contains(&read.start()) {
            stride.run = stride.run.max(read.end() - stride.begun);
        } else {
            let period = read.start().saturating_sub(stride.begun);
            let same = period == stride.period && period > 0;
            stride.equal = if same { stride.equal + 1 } else { 0 };
            if !same {
                stride.run = 0;
                stride.asked = 0;
                stride.window = 0;
            }
            (stride.begun, stride.period) = (read.start(), period);
            stride.run = stride.run.max(read.len());
        }
        stride.equal >= 2 && stride.period <= PERIOD_MAX && stride.run < stride.period
    }
}

/// How far from where it is expected a read may begin and still count as the next one: small reads are in order,
/// the kernel's own read-ahead is not.
fn slack(read: ByteRange) -> u64 {
    if read.len() < 64 << 10 { read.len() } else { DISORDER_BYTES }
}

impl Stream {
    /// A second read in order shows a reader in order; from then on waiting earns it more.
    fn earn(&mut self, read: ByteRange, max: u64, waits: bool) {
        if self.consumed <= read.len() {
            return;
        }
        let trusted = (self.consumed * TRUST).min(max);
        if self.window == 0 {
            self.window = trusted;
        } else if waits {
            self.window = (self.window.max(PART_MIN) * TRUST).min(trusted).max(self.window);
        }
    }

    /// Whether a read goes on where this reader is. A reader that has shown itself may also skip forward within what
    /// was asked for already, and come back a little.
    fn is_near(&self, read: ByteRange) -> bool {
        let slack = slack(read);
        let forward = self.next.saturating_add(slack).max(self.asked);
        read.start().saturating_add(slack) >= self.next && read.start() <= forward
    }

    /// The next whole parts of the window, once there is room for one.
    fn ask(&mut self, size: u64, share: Share) -> Advice {
        let part = part_of(self.window, share.readers);
        let reach = self.next.saturating_add(self.window);
        // To a part's boundary, except for the first window, which is one small request, and the end.
        let end = if reach >= size {
            size
        } else if self.window > FIRST_BYTES {
            reach / part * part
        } else {
            reach
        };
        if self.window == 0 || end < self.asked.saturating_add(part.min(self.window / 2)).min(size) {
            return Advice { ahead: Vec::new(), part };
        }
        let ahead = ByteRange::new(self.asked, end);
        self.asked = self.asked.max(end);
        Advice { ahead: ahead.into_iter().collect(), part }
    }
}

impl Stride {
    /// The runs to come, as many as the reader deserves.
    fn advance(&mut self, read: ByteRange, size: u64, max: u64, waits: bool) -> Advice {
        if self.window == 0 {
            self.window = (self.run * 2).min(max);
        } else if waits {
            self.window = (self.window * 2).min(max);
        }
        let mut ahead = Vec::new();
        // The rest of this run, whose length is known from the ones before.
        let rest = read.end().max(self.asked);
        ahead.extend(ByteRange::new(rest, (self.begun + self.run).min(size)));
        let mut begin = self.begun;
        let mut outstanding = 0;
        loop {
            begin = begin.saturating_add(self.period);
            outstanding += self.run;
            if begin >= size || outstanding > self.window {
                break;
            }
            let end = begin.saturating_add(self.run).min(size);
            ahead.extend(ByteRange::new(begin.max(self.asked), end));
        }
        self.asked = ahead.last().map_or(self.asked, |last| self.asked.max(last.end()));
        Advice { ahead, part: PART_MAX }
    }
}

/// What one request ahead asks for, for a window of one reader among so many.
fn part_of(window: u64, readers: u64) -> u64 {
    let parts = (PARTS_TOGETHER / readers.max(1)).clamp(PARTS_AHEAD_MIN, PARTS_AHEAD);
    let part = (window / parts).clamp(PART_MIN, PART_MAX);
    // A power of two, so that parts of a growing window keep their boundaries.
    1 << part.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: Share = Share { bytes: 128 << 20, readers: 1 };
    const LARGE: u64 = 1 << 40;
    const MIB: u64 = 1 << 20;

    fn read(at: u64, len: u64) -> ByteRange {
        ByteRange::at(at, len).unwrap()
    }

    fn bytes(advice: &Advice) -> u64 {
        advice.ahead.iter().map(|range| range.len()).sum()
    }

    #[test]
    fn the_first_request_covers_the_kernel_s_second_read() {
        let mut window = Window::default();
        let advice = window.advance(read(0, MIB), LARGE, MAX, true);
        assert_eq!(advice.ahead, [read(MIB, 128 << 10)]);
        let mut window = Window::default();
        let advice = window.advance(read(0, 128 << 10), LARGE, MAX, true);
        assert_eq!(advice.ahead, [read(128 << 10, MIB)]);
    }

    #[test]
    fn a_starving_reader_reaches_the_largest_window_in_few_waits() {
        let mut window = Window::default();
        let (mut asked, mut waits) = (0, 0);
        for i in 0..200 {
            let now = read(i * MIB, MIB);
            // It waits whenever the bytes were not asked for a window ago.
            let starves = asked < now.end() + 64 * MIB;
            waits += u32::from(starves);
            let advice = window.advance(now, LARGE, MAX, starves);
            asked = advice.ahead.last().map_or(asked, |range| range.end());
            if asked >= now.end() + 64 * MIB {
                assert!(i < 30, "after {i} MiB");
                return;
            }
        }
        panic!("never, with {waits} waits");
    }

    #[test]
    fn a_reader_that_never_waits_gets_no_more_than_its_first_window() {
        let mut window = Window::default();
        let mut outstanding = 0;
        for i in 0..400u64 {
            let advice = window.advance(read(i * MIB, MIB), LARGE, MAX, false);
            outstanding = advice.ahead.last().map_or(outstanding, |r| r.end().saturating_sub((i + 1) * MIB));
            assert!(outstanding <= 8 * MIB, "{outstanding}");
        }
    }

    #[test]
    fn what_is_asked_ahead_is_a_small_multiple_of_what_was_read() {
        let mut window = Window::default();
        for i in 0..200u64 {
            let end = (i + 1) * MIB;
            let advice =
                window.advance(read(i * MIB, MIB), LARGE, Share { bytes: 1 << 40, readers: 1 }, true);
            for range in advice.ahead {
                assert!(range.end() <= end + TRUST * end + FIRST_BYTES, "{range} after {end}");
            }
        }
    }

    #[test]
    fn a_random_reader_is_not_read_ahead_of() {
        let mut window = Window::default();
        let mut at = 12_345_678u64;
        let mut ahead = 0;
        for _ in 0..2_000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (at >> 20) % (1 << 18) * 4096;
            ahead += bytes(&window.advance(read(offset, 4096), 1 << 30, MAX, true));
        }
        assert!(ahead < 2_000 * 4096 / 2, "{ahead} bytes ahead of a gigabyte's random reads");
    }

    #[test]
    fn a_random_read_takes_nothing_from_a_reader_in_order() {
        let mut window = Window::default();
        let mut ends = Vec::new();
        for i in 0..64u64 {
            let advice = window.advance(read(i * MIB, MIB), LARGE, MAX, true);
            ends.extend(advice.ahead.iter().map(|r| r.end()));
            for far in 0..6 {
                window.advance(read((1 << 35) + far * (1 << 30) + i * 7_000_003, 4096), LARGE, MAX, true);
            }
        }
        assert!(ends.windows(2).all(|pair| pair[0] < pair[1]), "it goes on where it was");
        assert!(*ends.last().unwrap() > 100 * MIB);
    }

    #[test]
    fn two_readers_on_one_handle_both_count_as_sequential() {
        let mut window = Window::default();
        let mut ahead = [0u64; 2];
        for i in 0..64 {
            for (which, base) in [0u64, 1 << 33].into_iter().enumerate() {
                ahead[which] += bytes(&window.advance(read(base + i * (1 << 17), 1 << 17), LARGE, MAX, true));
            }
        }
        assert!(ahead.iter().all(|bytes| *bytes > 8 << 20), "{ahead:?}");
    }

    #[test]
    fn the_kernel_s_requests_may_arrive_out_of_order() {
        let mut window = Window::default();
        let mut asked = Vec::new();
        for i in 0..100u64 {
            // Pairs the wrong way round.
            let advice = window.advance(read((i ^ 1) * MIB, MIB), LARGE, MAX, true);
            asked.extend(advice.ahead);
        }
        assert!(asked.windows(2).all(|pair| pair[0].end() <= pair[1].start()), "{asked:?}");
        assert!(asked.last().unwrap().end() > 150 * MIB, "it is taken for one reader");
    }

    #[test]
    fn a_reader_that_skips_by_equal_distances_keeps_its_stride() {
        let mut window = Window::default();
        let mut fetched: Vec<ByteRange> = Vec::new();
        let mut read_ones = Vec::new();
        for run in 0..40u64 {
            // 4 MiB read and 4 MiB skipped; the kernel asks for one more.
            for step in 0..5u64 {
                let now = read(run * 8 * MIB + step * MIB, MIB);
                let waits = !fetched.iter().any(|r| r.start() <= now.start() && r.end() >= now.end());
                fetched.push(now);
                read_ones.push(now);
                fetched.extend(window.advance(now, LARGE, MAX, waits).ahead);
            }
        }
        let late: Vec<_> = fetched.iter().filter(|r| r.start() >= 10 * 8 * MIB).collect();
        assert!(late.iter().all(|r| r.end() % (8 * MIB) <= 5 * MIB && r.end() % (8 * MIB) > 0), "{late:?}");
        assert!(late.iter().any(|r| r.len() > MIB), "runs are fetched ahead");
        let last = read_ones.last().unwrap();
        assert!(fetched.iter().any(|r| r.start() > last.end()), "the runs to come are asked for");
    }

    #[test]
    fn readers_side_by_side_ask_for_larger_parts_of_smaller_windows() {
        let requests = |share: Share| {
            let mut window = Window::default();
            let advices = (0..64u64).map(|i| window.advance(read(i * MIB, MIB), 64 * MIB, share, true));
            advices.map(|a| a.ahead.iter().map(|r| r.len().div_ceil(a.part)).sum::<u64>()).sum::<u64>()
        };
        let many = requests(Share { bytes: 8 * MIB, readers: 32 });
        assert!(many <= 24, "{many} requests for 64 MiB");
        assert!(requests(Share { bytes: 8 * MIB, readers: 1 }) > 2 * many);
    }

    #[test]
    fn memory_that_is_short_shrinks_the_window_and_asks_again() {
        let mut window = Window::default();
        let mut asked = 0;
        for i in 0..64u64 {
            let advice = window.advance(read(i * MIB, MIB), LARGE, MAX, true);
            asked = advice.ahead.last().map_or(asked, |r| r.end());
        }
        assert!(asked > 150 * MIB);
        for i in 64..70u64 {
            window.advance(read(i * MIB, MIB), LARGE, MAX, false);
            window.pressed((i + 1) * MIB);
        }
        let advice = window.advance(read(70 * MIB, MIB), LARGE, MAX, false);
        assert!(bytes(&advice) <= 2 * MIB, "{advice:?}");
        assert!(advice.ahead.iter().all(|r| r.start() >= 71 * MIB && r.end() <= 74 * MIB), "{advice:?}");
    }

    proptest! {
        #[test]
        fn it_never_asks_past_the_end_nor_beyond_its_limit(
            size in 1u64..64 << 20,
            steps in proptest::collection::vec((0u64..64 << 20, 1u64..1 << 20, any::<bool>()), 1..60),
            max in prop_oneof![Just(0u64), Just(1 << 20), Just(32 << 20)],
            readers in 1u64..40,
        ) {
            let mut window = Window::default();
            for (at, len, waits) in steps {
                let Some(range) = ByteRange::new(at.min(size), (at + len).min(size)) else { continue };
                let advice = window.advance(range, size, Share { bytes: max, readers }, waits);
                for ahead in &advice.ahead {
                    prop_assert!(ahead.end() <= size);
                }
                prop_assert!(advice.part <= PART_MAX);
                prop_assert!(bytes(&advice) <= max + PART_MAX + DISORDER_BYTES);
            }
        }

        #[test]
        fn it_never_asks_twice_for_what_is_outstanding(
            len in 1u64..1 << 20,
            waits in proptest::collection::vec(any::<bool>(), 1..300),
        ) {
            let mut window = Window::default();
            let mut asked = 0;
            for (i, waits) in waits.into_iter().enumerate() {
                for ahead in window.advance(read(i as u64 * len, len), LARGE, MAX, waits).ahead {
                    prop_assert!(ahead.start() >= asked);
                    asked = ahead.end();
                }
            }
        }
    }
}
