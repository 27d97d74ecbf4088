//! How a file's bytes become an object: one Put, or parts to upload and parts to copy. Pure.

use crate::base::ByteRange;
use crate::s3::limits;

use super::extents::{Segment, What};

/// A file up to this size is one Put: below it a multipart upload's two extra round trips cost more than
/// its parallel parts save.
pub const SINGLE_PUT_MAX: u64 = 16 << 20;

/// The most that copied parts are put together to: large enough that they are few, small enough that a server answers
/// within one attempt's deadline.
const COPY_PART_MAX: u64 = 512 << 20;

/// How to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Put,
    Parts(Vec<PartPlan>),
}

/// One part, in order of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartPlan {
    pub range: ByteRange,
    /// Whether all of it is bytes of one object, the base or another, to be copied on the server.
    pub copy: bool,
}

/// Which sizes parts may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// So many of this size, and then so many of the next one.
    growing: &'static [(u64, u64)],
    /// Equal ones, the smaller first. The last reaches as far as an object may.
    equal: &'static [u64],
}

impl Sizes {
    /// What S3 and its like are sent.
    ///
    /// Parts that grow are small as long as a file may end soon: 1,000 parts of 8 MiB, 2,000 of 32 MiB, 3,000 of 160 MiB
    /// and 4,000 of 1.25 GiB reach 5.4 TiB, whatever the file's length will be. A longer one has no part to spare: S3's
    /// largest object is 10,000 of the largest parts.
    pub const S3: Self = Self::new(
        &[(1_000, 8 * MIB), (2_000, 32 * MIB), (3_000, 160 * MIB), (4_000, 1_280 * MIB)],
        &[16 * MIB, 128 * MIB, 544 * MIB, limits::PART_MAX],
    );

    /// Other ones, within the same limits.
    pub const fn new(growing: &'static [(u64, u64)], equal: &'static [u64]) -> Self {
        let (mut i, mut parts) = (0, 0);
        while i < growing.len() {
            let (count, size) = growing[i];
            assert!(size >= limits::PART_MIN && size <= limits::PART_MAX);
            assert!(i == 0 || size > growing[i - 1].1);
            parts += count;
            i += 1;
        }
        assert!(parts > 0 && parts <= limits::PARTS_MAX as u64);
        i = 0;
        while i < equal.len() {
            assert!(equal[i] >= limits::PART_MIN && equal[i] <= limits::PART_MAX);
            assert!(i == 0 || equal[i] > equal[i - 1]);
            i += 1;
        }
        assert!(i > 0);
        Self { growing, equal }
    }

    /// The parts of a file of at least this length, as far as that is known. One that outgrows their reach needs larger
    /// ones from its beginning.
    pub fn layout(self, len: u64, equal: bool) -> Layout {
        let growing = Layout::Growing(self);
        if !equal && growing.reaches(len) { growing } else { self.equal(len) }
    }

    /// Equal ones for it.
    pub fn equal(self, len: u64) -> Layout {
        let fits = |size: &&u64| Layout::Equal(**size).reaches(len);
        Layout::Equal(*self.equal.iter().find(fits).unwrap_or(&self.equal[self.equal.len() - 1]))
    }

    /// Equal parts that go on where parts that grow have left already: those are all of one size at first.
    pub fn equal_from_growing(self) -> Layout {
        Layout::Equal(self.growing[0].1)
    }

    /// The layout of an upload of which S3 has these parts, if they tell: the first one does, or else one whose number is
    /// that of an equal part at its place, as of those that left behind an object's bytes.
    pub fn of_sent(self, sent: impl IntoIterator<Item = (u16, ByteRange)>) -> Option<Layout> {
        let growing = Layout::Growing(self);
        let mut equal = None;
        for (number, range) in sent {
            let size = range.len();
            if number == 1 {
                return Some(if size <= growing.size(0) { growing } else { Layout::Equal(size) });
            }
            let is_at_its_place = (u64::from(number) - 1) * size == range.start();
            if is_at_its_place && self.equal.contains(&size) {
                equal = Some(Layout::Equal(size));
            }
        }
        equal
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self::S3
    }
}

/// How large the parts of one upload are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// They grow with the offset.
    Growing(Sizes),
    /// All of this size but the last: for a server that takes no others (Cloudflare R2), and for files that outgrow those
    /// that grow. The number of each follows from where it is, whatever becomes of those before it.
    Equal(u64),
}

impl Layout {
    /// Whether 10,000 parts are enough for so many bytes.
    pub fn reaches(self, len: u64) -> bool {
        match self {
            Self::Growing(sizes) => len <= sizes.growing.iter().map(|(count, size)| count * size).sum(),
            Self::Equal(size) => len <= size * u64::from(limits::PARTS_MAX),
        }
    }

    /// Size of the upload part that begins at `offset`.
    fn size(self, offset: u64) -> u64 {
        match self {
            Self::Equal(size) => size,
            Self::Growing(sizes) => {
                let mut end = 0;
                let step = sizes.growing.iter().find(|(count, size)| {
                    end += count * size;
                    offset < end
                });
                step.or(sizes.growing.last()).map_or(limits::PART_MAX, |(_, size)| *size)
            }
        }
    }

    /// Number and start of the part that has this byte, where nothing before it is copied.
    pub fn part_at(self, offset: u64) -> (u16, u64) {
        let last = full_parts(self, 1, 0, offset).pop();
        last.map_or((1, 0), |(number, range)| (number + 1, range.end()))
    }
}

const MIB: u64 = 1 << 20;

/// The parts that are full where a file is written in order and everything before `end` is there: from the part
/// `number` at `start` on. These are the parts of a [`plan`] as long as nothing before their end is copied.
pub fn full_parts(layout: Layout, mut number: u16, mut start: u64, end: u64) -> Vec<(u16, ByteRange)> {
    let mut full = Vec::new();
    while let Some(range) = ByteRange::at(start, layout.size(start)).filter(|range| range.end() <= end) {
        full.push((number, range));
        (number, start) = (number + 1, range.end());
    }
    full
}

/// Plans a commit of a file whose sources are `segments` (in order, covering it).
///
/// Every part is within S3's limits, the parts cover the file in order, and bytes that S3 has already are copied
/// where a whole part is of one object.
pub fn plan(layout: Layout, len: u64, segments: &[Segment]) -> Plan {
    if len <= SINGLE_PUT_MAX {
        return match ByteRange::new(0, len).map(|range| (range, origin(segments, range))) {
            Some((range, Some(What::Copied(..)))) => Plan::Parts(vec![PartPlan { range, copy: true }]),
            _ => Plan::Put,
        };
    }
    let mut parts: Vec<PartPlan> = Vec::new();
    let mut before = None;
    let mut at = 0;
    while at < len {
        let end = (at + layout.size(at)).min(len);
        let Some(range) = ByteRange::new(at, end) else { break };
        let from = origin(segments, range);
        let goes_on = matches!(layout, Layout::Growing(_))
            && from.zip(before).is_some_and(|(from, before)| from.is_of_same_object(before));
        match parts.last_mut() {
            Some(last) if goes_on && last.range.len() + range.len() <= COPY_PART_MAX => {
                last.range = ByteRange::new(last.range.start(), end).unwrap_or(range);
            }
            _ => parts.push(PartPlan { range, copy: from.is_some() }),
        }
        before = from;
        at = end;
    }
    Plan::Parts(parts)
}

/// The same parts with every byte sent from here, for a server that cannot copy parts.
pub fn plan_without_copies(layout: Layout, len: u64) -> Plan {
    plan(layout, len, &[])
}

impl Plan {
    /// Whether all parts but the last are of one size, and the last is no larger.
    pub fn is_of_equal_parts(&self) -> bool {
        match self {
            Self::Put => true,
            Self::Parts(parts) => equal(parts.iter().map(|part| part.range.len())),
        }
    }
}

/// The same of any sizes.
pub fn equal(sizes: impl IntoIterator<Item = u64>) -> bool {
    let mut sizes = sizes.into_iter();
    let Some(first) = sizes.next() else { return true };
    let mut before = first;
    sizes.all(|size| {
        let fits = before == first && size <= first;
        before = size;
        fits
    })
}

/// The object that a whole part is copied from, if it can be.
fn origin(segments: &[Segment], part: ByteRange) -> Option<What> {
    let from = segments.partition_point(|segment| segment.range.end() <= part.start());
    let within = segments[from..].iter().take_while(|segment| segment.range.start() < part.end());
    let mut runs = within.map(|segment| segment.what);
    let first = runs.next()?;
    // S3 copies ranges of objects over 5 MiB alone, and of another object nothing but the part is known here.
    let can_be = match first {
        What::Base => true,
        What::Copied(..) => part.len() > limits::PART_MIN,
        What::Staged(_) | What::Zero(_) => false,
    };
    (can_be && runs.all(|what| what.is_of_same_object(first))).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::Extents;
    use proptest::prelude::*;

    const GROWING: Layout = Layout::Growing(Sizes::S3);
    const GIB: u64 = 1 << 30;

    #[test]
    fn one_byte_changed_in_ten_gib_uploads_one_part() {
        let mut extents = Extents::of_base(10 << 30);
        extents.write(ByteRange::at(5 << 30, 1).unwrap(), 1);
        let Plan::Parts(parts) = plan(GROWING, extents.len(), &extents.all()) else {
            panic!("a Put of 10 GiB")
        };
        let uploaded: u64 = parts.iter().filter(|p| !p.copy).map(|p| p.range.len()).sum();
        assert_eq!(uploaded, 8 * MIB);
        assert!(parts.len() < 40, "copies are merged: {}", parts.len());
    }

    /// T10: three bytes here and there of 500 MB, and no part is too small.
    #[test]
    fn t10_small_changes_anywhere_make_no_small_part() {
        let len = 500_000_000;
        let mut extents = Extents::of_base(len);
        let places = (0..6).map(|mb| mb * 1_000_000).chain([400_000_000, 495_000_000, len - 3]);
        for (at, stamp) in places.clone().zip(1..) {
            extents.write(ByteRange::at(at, 3).unwrap(), stamp);
        }
        let planned = plan(GROWING, len, &extents.all());
        let Plan::Parts(parts) = planned else { panic!("a Put of 500 MB") };
        let (last, others) = parts.split_last().unwrap();
        assert!(others.iter().all(|part| part.range.len() >= limits::PART_MIN), "{parts:?}");
        assert!(last.range.len() > 0 && last.range.end() == len);
        let sent: u64 = parts.iter().filter(|part| !part.copy).map(|part| part.range.len()).sum();
        assert!(sent <= 4 * 8 * MIB, "{sent} bytes for {} places", places.count());
    }

    /// T11: a gibibyte of nothing.
    #[test]
    fn t11_a_file_that_was_only_grown_is_a_plan_within_the_limits() {
        let mut extents = Extents::of_base(0);
        extents.truncate(1 << 30, 1);
        let planned = plan(GROWING, 1 << 30, &extents.all());
        let Plan::Parts(parts) = planned else { panic!("a Put of 1 GiB") };
        assert_eq!(parts.iter().map(|part| part.range.len()).sum::<u64>(), 1 << 30);
        assert!(parts.iter().all(|part| part.range.len() >= limits::PART_MIN && !part.copy));
    }

    /// T32: 100 GiB written in order; a mount that counts 10,000 parts of 8 MiB ends at 80 GB.
    #[test]
    fn t32_a_hundred_gibibytes_in_order_need_few_parts() {
        for layout in [GROWING, Sizes::S3.equal(100 << 30)] {
            let full = full_parts(layout, 1, 0, 100 << 30);
            let (number, range) = full.last().unwrap();
            assert!(*number < limits::PARTS_MAX, "{layout:?}: {number}");
            // All but a tail leaves while it is written.
            assert!((100 << 30) - range.end() < layout.size(range.end()), "{layout:?}");
            assert!(full.iter().all(|(_, range)| range.len() <= limits::PART_MAX));
        }
    }

    #[test]
    fn parts_grow_to_five_tebibytes_and_a_longer_file_has_larger_ones_from_its_beginning() {
        let reach = 5_672_000 * MIB;
        assert_eq!(Sizes::S3.layout(reach, false), GROWING);
        assert_eq!(Sizes::S3.layout(reach + 1, false), Layout::Equal(limits::PART_MAX));
        let zeros = |len| [Segment { range: ByteRange::new(0, len).unwrap(), what: What::Zero(1) }];
        for (len, count) in [(reach, 10_000), (reach + 1, 1_108), (limits::OBJECT_MAX, 10_000)] {
            let Plan::Parts(parts) = plan(Sizes::S3.layout(len, false), len, &zeros(len)) else {
                panic!("a Put of {len}")
            };
            assert_eq!(parts.len(), count, "{len}");
        }
    }

    #[test]
    fn equal_parts_reach_as_far_as_an_object_may_where_the_length_is_known() {
        let sizes = [
            (0, 16),
            (156 * GIB, 16),
            (157 * GIB, 128),
            (1 << 40, 128),
            (5 << 40, 544),
            (6 << 40, 5 << 10),
            (limits::OBJECT_MAX, 5 << 10),
        ];
        for (len, size) in sizes {
            assert_eq!(Sizes::S3.layout(len, true), Layout::Equal(size * MIB), "{len}");
            assert!(Sizes::S3.equal(len).reaches(len));
            let mut extents = Extents::of_base(0);
            extents.truncate(len, 1);
            let Plan::Parts(parts) = plan(Sizes::S3.equal(len), len, &extents.all()) else { continue };
            assert!(parts.len() <= limits::PARTS_MAX as usize, "{len}: {} parts", parts.len());
        }
        assert!(!Sizes::S3.equal(0).reaches(157 * GIB), "it has to begin anew");
        assert!(!Sizes::S3.equal(limits::OBJECT_MAX).reaches(limits::OBJECT_MAX + 1));
    }

    #[test]
    fn what_has_left_tells_how_it_goes_on() {
        for layout in
            [16 * MIB, 128 * MIB, 544 * MIB, 5 * GIB].map(Layout::Equal).into_iter().chain([GROWING])
        {
            let parts = full_parts(layout, 1, 0, 40 * GIB);
            assert_eq!(Sizes::S3.of_sent(parts.iter().copied()), Some(layout));
            for (number, range) in &parts {
                assert_eq!(layout.part_at(range.start()), (*number, range.start()));
                assert_eq!(layout.part_at(range.end() - 1), (*number, range.start()));
            }
        }
        // Behind bytes of an object, on servers that want equal ones, and of one that outgrew those that grow.
        for layout in [16 * MIB, 128 * MIB, 544 * MIB, 5 * GIB].map(Layout::Equal) {
            let (number, start) = layout.part_at(70 * GIB);
            let parts = full_parts(layout, number, start, 140 * GIB);
            assert_eq!(Sizes::S3.of_sent(parts), Some(layout));
        }
        assert_eq!(Sizes::S3.of_sent([]), None);
    }

    #[test]
    fn sizes_are_equal_but_for_a_smaller_last_one() {
        for (sizes, are) in [
            (&[5][..], true),
            (&[], true),
            (&[8, 8, 3], true),
            (&[8, 8], true),
            (&[8, 9], false),
            (&[8, 3, 8], false),
            (&[8, 3, 3], false),
        ] {
            assert_eq!(equal(sizes.iter().copied()), are, "{sizes:?}");
        }
    }

    #[test]
    fn parts_that_left_early_are_those_of_the_plan() {
        let lens = [16 * MIB + 1, 24 * MIB, 100 * MIB + 5, 9_000 * MIB];
        let layouts = [GROWING, Sizes::S3.equal(0), Sizes::S3.equal(1 << 40), Sizes::S3.equal_from_growing()];
        for (len, layout) in lens.iter().flat_map(|len| layouts.map(|layout| (*len, layout))) {
            let mut extents = Extents::of_base(0);
            extents.truncate(len, 1);
            let Plan::Parts(parts) = plan(layout, len, &extents.all()) else {
                panic!("a Put of {len} bytes")
            };
            let (first, rest) = (full_parts(layout, 1, 0, len / 2), full_parts(layout, 1, 0, len));
            assert_eq!(rest[..first.len()], first, "growing changes none of them");
            let (number, start) = first.last().map_or((1, 0), |(number, range)| (number + 1, range.end()));
            assert_eq!(
                full_parts(layout, number, start, len),
                rest[first.len()..],
                "whoever goes on finds the same"
            );
            for (number, range) in rest {
                assert_eq!(parts[usize::from(number) - 1], PartPlan { range, copy: false });
            }
        }
    }

    #[test]
    fn a_copy_of_an_object_uploads_nothing() {
        for (len, parts) in [(6 * MIB, 1), (16 * MIB, 1), (64 * MIB, 1), (1 << 30, 2), (20 << 30, 40)] {
            let mut extents = Extents::of_base(0);
            // As the kernel cuts it.
            for at in (0..len).step_by((4 << 30) - 4096) {
                let end = (at + (4 << 30) - 4096).min(len);
                extents.copy(ByteRange::new(at, end).unwrap(), at + 1, 0);
            }
            let Plan::Parts(planned) = plan(GROWING, len, &extents.all()) else {
                panic!("a Put of {len} bytes")
            };
            assert!(planned.iter().all(|part| part.copy), "{len}: {planned:?}");
            assert!(planned.len() <= parts + parts / 4, "{len}: {} parts", planned.len());
        }
        let mut small = Extents::of_base(0);
        small.copy(ByteRange::new(0, limits::PART_MIN).unwrap(), 1, 0);
        assert_eq!(
            plan(GROWING, small.len(), &small.all()),
            Plan::Put,
            "ranges of so small an object are not copied"
        );
    }

    #[test]
    fn copies_of_two_objects_share_no_part() {
        let mut extents = Extents::of_base(0);
        extents.copy(ByteRange::new(0, 20 * MIB).unwrap(), 1, 0);
        extents.copy(ByteRange::new(20 * MIB, 64 * MIB).unwrap(), 2, 1);
        let Plan::Parts(parts) = plan(GROWING, extents.len(), &extents.all()) else { panic!("a Put") };
        let copies: Vec<_> = parts.iter().map(|part| (part.range.start() / MIB, part.copy)).collect();
        assert_eq!(copies, [(0, true), (16, false), (24, true)]);
    }

    /// A file of any length that S3 takes, of runs from anywhere.
    fn files() -> impl Strategy<Value = (u64, Vec<Segment>)> {
        let len = prop_oneof![
            SINGLE_PUT_MAX + 1..64 * GIB,
            64 * GIB..6 << 40,
            6 << 40..=limits::OBJECT_MAX,
            Just(limits::OBJECT_MAX),
        ];
        let what = prop_oneof![
            Just(What::Base),
            Just(What::Staged(1)),
            Just(What::Zero(2)),
            (0u32..3).prop_map(|copy| What::Copied(3, copy)),
        ];
        // Where runs end: anywhere in the file, or soon after the one before.
        let ends = proptest::collection::vec((any::<bool>(), any::<u64>(), what.clone()), 0..60);
        (len, ends, what).prop_map(|(len, ends, last)| {
            let mut cuts: Vec<(u64, What)> = Vec::new();
            for (near, seed, what) in ends {
                let before = cuts.last().map_or(0, |(at, _)| *at);
                cuts.push((
                    if near { before.saturating_add(seed % (20 * MIB) + 1) } else { seed % len },
                    what,
                ));
            }
            cuts.retain(|(at, _)| *at < len);
            cuts.sort_by_key(|(at, _)| *at);
            cuts.push((len, last));
            let mut start = 0;
            let segments = cuts.into_iter().filter_map(|(end, what)| {
                let range = ByteRange::new(start, end)?;
                start = end;
                Some(Segment { range, what })
            });
            (len, segments.collect())
        })
    }

    proptest! {
        #[test]
        fn parts_cover_the_file_within_the_limits(
            base_mib in 0u64..200,
            writes in proptest::collection::vec((0u64..200 * MIB, 1u64..12 * MIB), 0..6),
            copies in proptest::collection::vec((0u64..200 * MIB, 1u64..60 * MIB, 0u32..2), 0..4),
            cut in proptest::option::of(0u64..220 * MIB),
            layout in proptest::sample::select(vec![GROWING, Sizes::S3.equal(0), Sizes::S3.equal_from_growing()]),
        ) {
            let mut extents = Extents::of_base(base_mib * MIB);
            for (stamp, (at, len)) in writes.iter().enumerate() {
                extents.write(ByteRange::at(*at, *len).unwrap(), stamp as u64 + 1);
            }
            for (stamp, (at, len, of)) in (50..).zip(&copies) {
                extents.copy(ByteRange::at(*at, *len).unwrap(), stamp, *of);
            }
            if let Some(len) = cut {
                extents.truncate(len, 99);
            }
            let len = extents.len();
            match plan(layout, len, &extents.all()) {
                Plan::Put => prop_assert!(len <= SINGLE_PUT_MAX),
                Plan::Parts(parts) => {
                    if let Layout::Equal(size) = layout {
                        prop_assert!(Plan::Parts(parts.clone()).is_of_equal_parts());
                        prop_assert!(parts[0].range.len() == size.min(len));
                    }
                    let mut at = 0;
                    for (i, part) in parts.iter().enumerate() {
                        prop_assert_eq!(part.range.start(), at);
                        at = part.range.end();
                        if i + 1 < parts.len() {
                            prop_assert!(part.range.len() >= limits::PART_MIN);
                        }
                        prop_assert!(part.range.len() <= limits::PART_MAX);
                        if part.copy {
                            let runs = extents.segments(part.range);
                            prop_assert!(runs.iter().all(|s| s.what.is_of_same_object(runs[0].what)));
                        }
                    }
                    prop_assert_eq!(at, len);
                    prop_assert!(parts.len() <= limits::PARTS_MAX as usize);
                    prop_assert_eq!(plan(layout, len, &extents.all()), plan(layout, len, &extents.all()));
                }
            }
        }

        #[test]
        fn a_file_of_any_length_that_s3_takes_is_parts_that_it_takes(
            (len, segments) in files(),
            equal: bool,
        ) {
            let layout = Sizes::S3.layout(len, equal);
            let Plan::Parts(parts) = plan(layout, len, &segments) else { panic!("a Put of {len}") };
            prop_assert!(parts.len() <= usize::from(limits::PARTS_MAX), "{} parts", parts.len());
            let mut at = 0;
            for (i, part) in parts.iter().enumerate() {
                prop_assert_eq!(part.range.start(), at);
                at = part.range.end();
                prop_assert!(part.range.len() <= limits::PART_MAX);
                prop_assert!(part.range.len() >= limits::PART_MIN || i + 1 == parts.len());
                let mut whats = segments.iter().filter(|s| s.range.intersect(part.range).is_some()).map(|s| s.what);
                let first = whats.next().unwrap();
                let is_of_one_object = first.is_of_same_object(first) && whats.all(|what| what.is_of_same_object(first));
                let can_be = part.range.len() > limits::PART_MIN || first == What::Base;
                prop_assert_eq!(part.copy, is_of_one_object && can_be, "{:?}", part);
            }
            prop_assert_eq!(at, len);
            if layout == Layout::Equal(limits::PART_MAX) || equal {
                prop_assert!(equal_parts(&parts));
            }
            prop_assert_eq!(plan_without_copies(layout, len), plan(layout, len, &[]));
        }

        /// What leaves while a file is written behind an object's bytes are parts of its plan, wherever the object ends.
        #[test]
        fn parts_that_leave_behind_an_object_are_those_of_the_plan(
            saved in 1u64..limits::OBJECT_MAX,
            more in 1u64..100 * GIB,
        ) {
            let len = saved.saturating_add(more).min(limits::OBJECT_MAX);
            let run = |from, to, what| ByteRange::new(from, to).map(|range| Segment { range, what });
            let segments: Vec<_> = [run(0, saved, What::Base), run(saved, len, What::Staged(1))].into_iter().flatten().collect();
            let layout = Sizes::S3.layout(len, true);
            let Plan::Parts(parts) = plan(layout, len, &segments) else { return Ok(()) };
            let (number, start) = layout.part_at(saved);
            for (number, range) in full_parts(layout, number, start, len) {
                let planned = parts[usize::from(number) - 1];
                prop_assert_eq!(planned, PartPlan { range, copy: range.end() <= saved });
            }
        }
    }

    fn equal_parts(parts: &[PartPlan]) -> bool {
        Plan::Parts(parts.to_vec()).is_of_equal_parts()
    }
}
