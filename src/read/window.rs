//! How far to read ahead of one handle. Pure.

use crate::base::ByteRange;

/// A reader may jump this far forward, or come back this far, and still count as sequential: the kernel's own
/// read-ahead arrives out of order, at most a few 128 KiB to 1 MiB requests apart.
const TOLERANCE_BYTES: u64 = 2 << 20;
/// The first window of a reader that begins at the file's start, and of one that was found to be sequential.
const FIRST_BYTES: u64 = 1 << 20;
/// Sequential readers told apart on one handle: two threads, or a body and its footer.
const STREAMS: usize = 2;

/// What one handle has been reading, and how far ahead of it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Most recently used first.
    streams: Vec<Stream>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Furthest byte read, exclusive.
    next: u64,
    /// Everything before was asked for, by the reader or ahead of it.
    asked: u64,
    /// How far ahead this reader deserves; 0 until it has read two runs in a row.
    window: u64,
}

impl Window {
    /// Takes note of a read and says which bytes to fetch ahead of it, if any.
    ///
    /// Never asks for a byte twice for the same stream, nor past the end. A sequential reader's window
    /// doubles each time it has used half of it; a random reader's is empty.
    pub fn advance(&mut self, read: ByteRange, size: u64, max: u64) -> Option<ByteRange> {
        let found = self.streams.iter().position(|s| {
            read.start() + TOLERANCE_BYTES >= s.next && read.start() <= s.next.saturating_add(TOLERANCE_BYTES)
        });
        let mut stream = match found {
            Some(at) => self.streams.remove(at),
            None => {
                self.streams.truncate(STREAMS - 1);
                // Who begins at the start most often reads on; anyone else has to show it.
                let window = if read.start() == 0 { FIRST_BYTES.min(max) } else { 0 };
                Stream { next: read.start(), asked: read.end(), window }
            }
        };
        if found.is_some() && stream.window == 0 && read.end() > stream.next {
            stream.window = FIRST_BYTES.min(max);
        }
        stream.next = stream.next.max(read.end());
        stream.asked = stream.asked.max(stream.next);
        let mut ahead = None;
        if stream.window > 0 && stream.asked - stream.next <= stream.window / 2 {
            let end = stream.next.saturating_add(stream.window).min(size);
            ahead = ByteRange::new(stream.asked, end);
            stream.asked = stream.asked.max(end);
            stream.window = (stream.window * 2).min(max);
        }
        self.streams.insert(0, stream);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = 32 << 20;

    fn read(at: u64, len: u64) -> ByteRange {
        ByteRange::at(at, len).unwrap()
    }

    #[test]
    fn a_sequential_reader_reaches_the_largest_window_in_few_steps() {
        let mut window = Window::default();
        let mut most = 0;
        for i in 0..400 {
            if let Some(ahead) = window.advance(read(i * (1 << 17), 1 << 17), 1 << 40, MAX) {
                most = most.max(ahead.end() - (i + 1) * (1 << 17));
            }
        }
        assert_eq!(most, MAX);
    }

    #[test]
    fn a_random_reader_is_not_read_ahead_of() {
        let mut window = Window::default();
        let mut at = 12_345_678u64;
        for _ in 0..200 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (at >> 20) % (1 << 36) + (4 << 20);
            assert_eq!(window.advance(read(offset, 4096), 1 << 40, MAX), None);
        }
    }

    #[test]
    fn two_readers_on_one_handle_both_count_as_sequential() {
        let mut window = Window::default();
        let mut ahead = [0u64; 2];
        for i in 0..64 {
            for (which, base) in [0u64, 1 << 33].into_iter().enumerate() {
                if let Some(range) = window.advance(read(base + i * (1 << 17), 1 << 17), 1 << 40, MAX) {
                    ahead[which] += range.len();
                }
            }
        }
        assert!(ahead.iter().all(|bytes| *bytes > 8 << 20), "{ahead:?}");
    }

    proptest! {
        #[test]
        fn it_never_asks_past_the_end_nor_beyond_its_limit(
            size in 1u64..64 << 20,
            steps in proptest::collection::vec((0u64..64 << 20, 1u64..1 << 20), 1..60),
            max in prop_oneof![Just(0u64), Just(1 << 20), Just(32 << 20)],
        ) {
            let mut window = Window::default();
            for (at, len) in steps {
                let Some(range) = ByteRange::new(at.min(size), (at + len).min(size)) else { continue };
                if let Some(ahead) = window.advance(range, size, max) {
                    prop_assert!(ahead.end() <= size);
                    prop_assert!(ahead.len() <= max + TOLERANCE_BYTES);
                }
            }
        }

        #[test]
        fn it_never_asks_twice_for_what_is_outstanding(len in 1u64..1 << 18, steps in 1usize..300) {
            let mut window = Window::default();
            let mut asked = 0;
            for i in 0..steps as u64 {
                if let Some(ahead) = window.advance(read(i * len, len), 1 << 40, MAX) {
                    prop_assert!(ahead.start() >= asked);
                    asked = ahead.end();
                }
            }
        }
    }
}
