//! The journal against a writer that remembers everything, and disks that fail and go down at every step.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use proptest::prelude::*;

use super::ledger::{FrameAt, Ledger, Step};
use super::log::{LogDir, replay};
use super::mem::{Fault, MemDir};
use super::*;
use crate::base::{ByteRange, ETag};
use crate::s3::{Attributes, Condition, Part, Upload};
use crate::write::{Extents, Segment, Sum, Sums, What};

const BOOT: u64 = 11;
/// Small enough for rotations in the middle of everything.
const SEGMENT: u64 = 2500;
const NEVER: u64 = 1 << 30;
/// Steps between power losses: a frame has some 200 bytes.
const EVERY_BYTE: usize = 1;
const SOME_BYTES: usize = 97;
const ALL_OR_NONE: usize = usize::MAX;

/// What a program or the mount does. Files are few, so that things happen to the same one.
#[derive(Clone, Debug)]
enum Act {
    Write(u64, u64, u64),
    Inline(u64, u64, u64),
    Cut(u64, u64),
    Zero(u64, u64, u64),
    /// Of one of two objects, each at two places.
    Copy(u64, u64, u64, u64),
    /// What is of the copy with this number in the range is fetched.
    Fetch(u64, u32, u64, u64),
    Describe(u64),
    Move(u64),
    Upload(u64),
    Send(u64, u16, u64, u64),
    Unsend(u64, u16),
    EndUpload(u64),
    /// Saves what was there so many changes ago.
    Save(u64, u64),
    Acknowledge(u64),
    /// Is about to save everything, and may not hear of it.
    Attempt(u64),
    /// The latest attempt made an object of other bytes.
    Wrong(u64),
    Gone(u64),
    Intend(u64),
    Done(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let file = || 1u64..4;
    prop_oneof![
        4 => (file(), 0u64..60, 1u64..20).prop_map(|(f, at, len)| Act::Write(f, at, len)),
        4 => (file(), 0u64..60, 1u64..20).prop_map(|(f, at, len)| Act::Inline(f, at, len)),
        2 => (file(), 0u64..80).prop_map(|(f, len)| Act::Cut(f, len)),
        2 => (file(), 0u64..60, 1u64..20).prop_map(|(f, at, len)| Act::Zero(f, at, len)),
        3 => (file(), 5u64..60, 1u64..20, 0u64..4).prop_map(|(f, at, len, of)| Act::Copy(f, at, len, of)),
        2 => (file(), 0u32..3, 0u64..60, 1u64..40).prop_map(|(f, n, at, len)| Act::Fetch(f, n, at, len)),
        1 => file().prop_map(Act::Describe),
        1 => file().prop_map(Act::Move),
        1 => file().prop_map(Act::Upload),
        2 => (file(), 1u16..4, 0u64..60, 1u64..20).prop_map(|(f, n, at, len)| Act::Send(f, n, at, len)),
        1 => (file(), 1u16..4).prop_map(|(f, n)| Act::Unsend(f, n)),
        1 => file().prop_map(Act::EndUpload),
        2 => (file(), 0u64..3).prop_map(|(f, back)| Act::Save(f, back)),
        1 => file().prop_map(Act::Acknowledge),
        2 => file().prop_map(Act::Attempt),
        1 => file().prop_map(Act::Wrong),
        1 => file().prop_map(Act::Gone),
        1 => (90u64..94).prop_map(Act::Intend),
        1 => (90u64..94).prop_map(Act::Done),
    ]
}

/// The mount's own memory of its files: what a journal has to bring back.
#[derive(Default)]
struct Writer {
    files: BTreeMap<u64, Mine>,
    uploads: BTreeMap<u64, Vec<String>>,
    clock: u64,
}

struct Mine {
    begun: Begun,
    extents: Extents,
    copies: Vec<CopiedFrom>,
    /// Length at each stamp: what a commit of it makes.
    lengths: BTreeMap<u64, u64>,
    acknowledged: Option<u64>,
    /// What was about to be made, and of which stamp.
    saving: Vec<(u64, BaseObject)>,
    /// As the staging file is, and what it has to be where the journal says so.
    staged: Vec<u8>,
    sums: Sums,
}

fn range(at: u64, len: u64) -> ByteRange {
    ByteRange::at(at, len).unwrap()
}

fn place(key: &str) -> Place {
    Place { bucket: "b".to_owned(), key: key.to_owned() }
}

fn object(key: &str, etag: u64, size: u64) -> BaseObject {
    BaseObject { place: place(key), etag: ETag::new(&format!("e{etag}")), size, checksum: None }
}

/// From further on in the object, or from further ahead, where the shift wraps.
fn copied_from(of: u64) -> CopiedFrom {
    let shift = if of.is_multiple_of(2) { 100 } else { 0u64.wrapping_sub(5) };
    CopiedFrom { object: object(&format!("source-{}", of / 2), of / 2, 200), shift }
}

impl Mine {
    /// Puts bytes into the staging file.
    fn stage(&mut self, range: ByteRange, bytes: &[u8], records: &mut Vec<Record>) -> Vec<Sum> {
        let of = |piece: ByteRange| &self.staged[piece.start() as usize..piece.end() as usize];
        let changed = self.sums.changed_by(range).into_iter();
        let was: Vec<Sum> = changed.map(|(piece, _)| Sum::of(piece, of(piece))).collect();
        let sums = self.sums.after(range, bytes, &was);
        if !was.is_empty() {
            records.push(Record::Overwriting { file: self.begun.file, was });
        }
        self.staged[range.start() as usize..range.end() as usize].copy_from_slice(bytes);
        self.sums.put(&sums);
        sums
    }
}

impl Writer {
    /// What is written down of an act; nothing where it makes no sense.
    fn records(&mut self, act: &Act) -> Vec<Record> {
        self.clock += 1;
        let now = UNIX_EPOCH + Duration::from_nanos(self.clock * 1_000_000_007);
        let mut records = Vec::new();
        match *act {
            Act::Write(f, at, len) | Act::Inline(f, at, len) => {
                let clock = self.clock;
                let (file, stamp, mine) = self.change(f, now, &mut records);
                let end = (at + len) as usize;
                mine.staged.resize(mine.staged.len().max(end), 0);
                // Every byte differs from its neighbours and from what was there before.
                let bytes: Bytes = (at..at + len).map(|i| (clock * 31 + i) as u8).collect();
                mine.extents.write(range(at, len), stamp);
                let range = range(at, len);
                if let Act::Write(..) = act {
                    let sums = mine.stage(range, &bytes, &mut records);
                    records.push(Record::Wrote { file, range, stamp, at: now, sums });
                } else {
                    mine.staged[at as usize..end].copy_from_slice(&bytes);
                    mine.sums.forget(range);
                    records.push(Record::Inlined { file, range, stamp, at: now, bytes });
                }
            }
            Act::Cut(f, len) => {
                let (file, stamp, mine) = self.change(f, now, &mut records);
                mine.extents.truncate(len, stamp);
                if len == 0 {
                    mine.sums.clear();
                }
                records.push(Record::Cut { file, len, stamp, at: now });
            }
            Act::Zero(f, at, len) => {
                let (file, stamp, mine) = self.change(f, now, &mut records);
                mine.extents.punch(range(at, len), stamp);
                records.push(Record::Zeroed { file, range: range(at, len), stamp, at: now });
            }
            Act::Copy(f, at, len, of) => {
                let (file, stamp, mine) = self.change(f, now, &mut records);
                let from = copied_from(of);
                let known = mine.copies.iter().position(|copy| *copy == from);
                let number = known.unwrap_or(mine.copies.len()) as u32;
                if known.is_none() {
                    mine.copies.push(from.clone());
                }
                mine.extents.copy(range(at, len), stamp, number);
                records.push(Record::Copied { file, range: range(at, len), stamp, at: now, number, from });
            }
            Act::Fetch(f, number, at, len) => {
                let Some(mine) = self.files.get_mut(&f) else { return records };
                if number as usize >= mine.copies.len() {
                    return records;
                }
                let mut sums = Vec::new();
                for segment in mine.extents.segments(range(at, len)) {
                    if matches!(segment.what, What::Copied(_, of) if of == number) {
                        let (start, end) = (segment.range.start() as usize, segment.range.end() as usize);
                        mine.staged.resize(mine.staged.len().max(end), 0);
                        let bytes = vec![200 + number as u8; end - start];
                        sums.extend(mine.stage(segment.range, &bytes, &mut records));
                    }
                }
                mine.extents.fetched(range(at, len), number);
                records.push(Record::Fetched { file: FileId(f), range: range(at, len), number, sums });
            }
            Act::Describe(f) => {
                let content_type = Some(format!("text/{}", self.clock));
                let (file, stamp, mine) = self.change(f, now, &mut records);
                mine.begun.attributes.content_type = content_type;
                let attributes = Box::new(mine.begun.attributes.clone());
                records.push(Record::Described { file, attributes, stamp });
            }
            Act::Move(f) => {
                let (clock, Some(mine)) = (self.clock, self.files.get_mut(&f)) else { return records };
                mine.begun.place = place(&format!("moved-{clock}"));
                mine.begun.expects = Condition::Absent;
                let Begun { file, place, base, expects, .. } = mine.begun.clone();
                let leaves = (clock % 5 == 4).then(|| {
                    let doomed = Doomed { key: "left".to_owned(), etag: Some(ETag::new("0")), file: None };
                    Box::new(Deleting { id: IntentId(1_000 + clock), bucket: "b".into(), doomed })
                });
                records.push(Record::Moved { file, place, base, expects, over: Vec::new(), leaves });
            }
            Act::Upload(f) => {
                let id = format!("u{}", self.clock);
                self.uploads.entry(f).or_default().push(id.clone());
                let upload = Upload { bucket: "b".into(), key: format!("k{f}"), upload_id: id };
                records.push(Record::Uploading { file: FileId(f), upload });
            }
            Act::Send(f, number, at, len) => {
                let stamp = self.files.get(&f).map_or(0, |mine| mine.begun.stamp);
                if self.uploads.contains_key(&f) {
                    let etag = ETag::new(&format!("p{}", self.clock));
                    let part = Part { number, etag, size: len, checksum: None };
                    records.push(Record::Sent { file: FileId(f), part, range: range(at, len), stamp });
                }
            }
            Act::Unsend(f, number) => records.push(Record::Unsent { file: FileId(f), number }),
            Act::EndUpload(f) => {
                let Some(ids) = self.uploads.get_mut(&f) else { return records };
                let upload_id = ids.remove(0);
                if ids.is_empty() {
                    self.uploads.remove(&f);
                }
                records.push(Record::UploadEnded { file: FileId(f), upload_id });
            }
            Act::Save(f, back) => {
                let (clock, Some(mine)) = (self.clock, self.files.get_mut(&f)) else { return records };
                let stamp = mine.begun.stamp.saturating_sub(back).max(mine.begun.saved);
                let Some(size) = mine.lengths.get(&stamp).copied() else { return records };
                let object = object(&mine.begun.place.key, clock, size);
                mine.extents.clear(stamp, size);
                mine.begun.saved = stamp;
                mine.saving.retain(|(at, _)| *at > stamp);
                mine.begun.expects = Condition::Matches(object.etag.clone());
                mine.begun.base = Some(object.clone());
                if mine.begun.stamp == stamp {
                    self.files.remove(&f);
                }
                records.push(Record::Saved { file: FileId(f), stamp, object });
            }
            Act::Acknowledge(f) => {
                let Some(mine) = self.files.get_mut(&f) else { return records };
                mine.acknowledged = Some(mine.begun.stamp);
                records.push(Record::Acknowledged { file: FileId(f), stamp: mine.begun.stamp });
            }
            Act::Attempt(f) => {
                let (clock, Some(mine)) = (self.clock, self.files.get_mut(&f)) else { return records };
                let (stamp, size) = (mine.begun.stamp, mine.extents.len());
                let object = object(&mine.begun.place.key, clock, size);
                mine.saving.push((stamp, object.clone()));
                // No more than could be under way are kept.
                if mine.saving.len() > 4 {
                    mine.saving.remove(0);
                }
                records.push(Record::Saving { file: FileId(f), stamp, object });
            }
            Act::Wrong(f) => {
                let Some(mine) = self.files.get_mut(&f) else { return records };
                let Some((_, object)) = mine.saving.pop() else { return records };
                mine.begun.expects = Condition::Matches(object.etag.clone());
                records.push(Record::MadeWrong { file: FileId(f), etag: object.etag });
            }
            Act::Gone(f) => {
                self.files.remove(&f);
                records.push(Record::Gone { file: FileId(f) });
            }
            Act::Intend(id) if id % 3 == 2 => {
                records.push(Record::Starting { id: IntentId(id), place: place("k1"), at: now });
            }
            Act::Done(id) if id % 3 == 2 => records.push(Record::Started { id: IntentId(id) }),
            Act::Intend(id) if id % 3 == 0 => {
                // Said in one record, or more of what was said before.
                let moving =
                    |n: u64, made| Moving { rest: n.to_string(), etag: ETag::new("1"), size: n, made };
                let made = (id % 2 == 0).then(|| ETag::new("2"));
                let objects = vec![moving(self.clock % 7, None), moving(id, made)];
                let begun = self.clock.is_multiple_of(2);
                let (from, to) = (place("a/"), place("b/"));
                records.push(Record::Renaming { id: IntentId(id), from, to, objects, begun });
            }
            Act::Intend(id) => {
                let file = (id % 2 == 0).then_some(FileId(1));
                let doomed = Doomed { key: "x".to_owned(), etag: Some(ETag::new("1")), file };
                records.push(Record::Deleting(Deleting { id: IntentId(id), bucket: "b".into(), doomed }));
            }
            Act::Done(id) if id % 3 == 0 => records.push(Record::Renamed { id: IntentId(id) }),
            Act::Done(id) => records.push(Record::Deleted { id: IntentId(id) }),
        }
        for mine in self.files.values_mut() {
            mine.lengths.insert(mine.begun.stamp, mine.extents.len());
        }
        records
    }

    /// A file that is about to change, begun if it has to be.
    fn change(&mut self, f: u64, now: SystemTime, records: &mut Vec<Record>) -> (FileId, u64, &mut Mine) {
        let clock = self.clock;
        let mine = self.files.entry(f).or_insert_with(|| {
            // Of three files one is new.
            let base = (f > 1).then(|| object(&format!("k{f}"), clock, 10 * f));
            let (stamp, saved) = if base.is_some() { (4, 4) } else { (1, 0) };
            let begun = Begun {
                file: FileId(f),
                place: place(&format!("k{f}")),
                expects: base.as_ref().map_or(Condition::Absent, |b| Condition::Matches(b.etag.clone())),
                base,
                attributes: Attributes::default(),
                written_at: now,
                staging: format!("s{f}"),
                stamp,
                saved,
            };
            records.push(Record::Begun(Box::new(begun.clone())));
            let extents = Extents::of_base(begun.base.as_ref().map_or(0, |base| base.size));
            let lengths = [(stamp, extents.len())].into();
            let (copies, staged, saving) = (Vec::new(), Vec::new(), Vec::new());
            let sums = Sums::default();
            Mine { begun, extents, copies, lengths, acknowledged: None, saving, staged, sums }
        });
        mine.begun.stamp += 1;
        // Attributes have a time of change of their own.
        mine.begun.written_at = mine.begun.written_at.max(now);
        (FileId(f), mine.begun.stamp, mine)
    }

    /// The ledger has every file as it is here.
    fn compare(&self, ledger: &Ledger) {
        let mut owed: BTreeMap<u64, OwedFile> = BTreeMap::new();
        for item in ledger.owed() {
            if let Owed::File(file) = item {
                owed.insert(file.file.0, *file);
            }
        }
        let mine: Vec<_> = self.files.keys().collect();
        assert_eq!(mine, owed.keys().collect::<Vec<_>>(), "files that are owed");
        for (id, mine) in &self.files {
            let file = &owed[id];
            assert_eq!(file.extents, mine.extents);
            assert_eq!(file.copies, mine.copies);
            assert_eq!(file.sums, mine.sums);
            assert_eq!(file.overwriting, [], "everything is written that was to be");
            for sum in mine.sums.all() {
                let (start, end) = (sum.range.start() as usize, sum.range.end() as usize);
                assert_eq!(sum, Sum::of(sum.range, &mine.staged[start..end]));
            }
            let in_journal = |byte: ByteRange| {
                ledger.inlined().any(|(name, run, _)| name == file.staging && run.intersect(byte).is_some())
            };
            let is_needed = |at: &u64| {
                let byte = range(*at, 1);
                matches!(mine.extents.segments(byte)[0].what, What::Staged(_)) && !in_journal(byte)
            };
            let last = (0..mine.extents.len()).rev().find(is_needed);
            assert_eq!(file.staged_len, last.map_or(0, |last| last + 1));
            assert_eq!((file.stamp, file.saved), (mine.begun.stamp, mine.begun.saved));
            assert_eq!(
                (&file.place, &file.base, &file.expects),
                (&mine.begun.place, &mine.begun.base, &mine.begun.expects)
            );
            assert_eq!(file.attributes, mine.begun.attributes);
            assert_eq!(file.acknowledged, mine.acknowledged);
            assert_eq!(file.saving, mine.saving);
        }
    }
}

fn all_records(acts: &[Act]) -> Vec<Record> {
    let mut writer = Writer::default();
    acts.iter().flat_map(|act| writer.records(act)).collect()
}

/// Sums of every prefix of the records, the empty one first.
fn folds(records: &[Record]) -> Vec<Ledger> {
    let mut ledger = Ledger::default();
    let mut folds = vec![ledger.clone()];
    for record in records {
        ledger.admit(record).unwrap();
        ledger.apply(record, FrameAt { offset: 0, len: 0 });
        folds.push(ledger.clone());
    }
    folds
}

/// The same with one more.
fn fold(folds: &mut Vec<Ledger>, record: &Record) {
    let mut ledger = folds.last().unwrap().clone();
    ledger.admit(record).unwrap();
    ledger.apply(record, FrameAt { offset: 0, len: 0 });
    folds.push(ledger);
}

fn begin(dir: &MemDir, segment_bytes: u64) -> Result<Log> {
    let disk: Arc<MemDir> = Arc::new(dir.clone());
    Log::begin(disk, replay(dir, BOOT)?, BOOT, segment_bytes)
}

fn replayed(dir: &MemDir) -> Ledger {
    replay(dir, BOOT).unwrap().ledger.without_places()
}

fn current(log: &Log) -> Ledger {
    log.with_ledger(|ledger| ledger.clone().without_places())
}

/// A power loss makes files suspect, which is another test's business.
fn after_reboot(ledger: &Ledger) -> Ledger {
    let mut ledger = ledger.clone();
    ledger.rebooted();
    ledger
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_ledger_brings_back_what_its_writer_had_and_a_checkpoint_makes_an_equal_one(
        acts in proptest::collection::vec(act(), 1..40),
    ) {
        let mut writer = Writer::default();
        let mut ledger = Ledger::default();
        let mut contents: Vec<Bytes> = Vec::new();
        for act in &acts {
            for record in writer.records(act) {
                ledger.admit(&record).unwrap();
                // The frame's place finds the bytes again.
                ledger.apply(&record, FrameAt { offset: contents.len() as u64, len: 0 });
                contents.push(match record {
                    Record::Inlined { range, bytes, .. } => {
                        let mut at_its_offset = vec![0; range.start() as usize];
                        at_its_offset.extend(bytes);
                        at_its_offset.into()
                    }
                    _ => Bytes::new(),
                });
            }
            writer.compare(&ledger);
        }
        for (name, run, from) in ledger.inlined() {
            let mine = writer.files.values().find(|mine| mine.begun.staging == name).unwrap();
            let (start, end) = (run.start() as usize, run.end() as usize);
            prop_assert_eq!(&contents[from.offset as usize][start..end], &mine.staged[start..end]);
            let segments = mine.extents.segments(run);
            prop_assert!(segments.iter().all(|s| matches!(s.what, What::Staged(_))), "{:?}", segments);
        }
        let mut again = Ledger::default();
        for step in ledger.checkpoint() {
            let record = match step {
                Step::Record(record) => record,
                Step::Bytes { file, range, .. } => {
                    Record::KeptBytes { file, range, bytes: vec![0; range.len() as usize].into() }
                }
            };
            again.admit(&record).unwrap();
            again.apply(&record, FrameAt { offset: 0, len: 0 });
        }
        prop_assert_eq!(again.owed(), ledger.owed());
        prop_assert_eq!(again, ledger.without_places());
    }

    #[test]
    fn a_kill_loses_nothing_and_opening_twice_is_opening_once(
        acts in proptest::collection::vec(act(), 1..60),
    ) {
        let mut writer = Writer::default();
        let records: Vec<Record> = acts.iter().flat_map(|act| writer.records(act)).collect();
        let dir = MemDir::default();
        let log = begin(&dir, SEGMENT).unwrap();
        for record in &records {
            log.append(record).unwrap();
        }
        let mut expected = folds(&records).pop().unwrap();
        prop_assert_eq!(&replayed(&dir.after_kill()), &expected);
        expected.inherited();
        let mut dir = dir.after_kill();
        for _ in 0..3 {
            // Bytes are copied from segment to segment.
            let left = replay(&dir, BOOT).unwrap();
            for (name, run, from) in left.ledger.inlined() {
                let mine = writer.files.values().find(|mine| mine.begun.staging == name).unwrap();
                let staged = &mine.staged[run.start() as usize..run.end() as usize];
                prop_assert_eq!(&left.bytes(run, from).unwrap(), staged);
            }
            let again = begin(&dir, SEGMENT).unwrap();
            prop_assert_eq!(&current(&again), &expected);
            dir = dir.after_kill();
        }
    }
}

/// What power losses leave, with none, every `step`th and all of the bytes that were not synced, is a prefix of the
/// records, no shorter than what was synced.
fn check_power_losses(dir: &MemDir, folds: &[Ledger], synced: usize, step: usize) {
    let unsynced = dir.unsynced();
    let possible: Vec<Ledger> = folds[synced..].iter().map(after_reboot).collect();
    for names in 0..dir.name_states() {
        for kept in (0..unsynced).step_by(step).chain([unsynced]) {
            // Another boot: not the same ledger, but for what is suspect.
            let left = replay(&dir.after_power_loss(names, kept), BOOT + 1).unwrap().ledger.without_places();
            assert!(
                possible.contains(&left),
                "names {names}, {kept} bytes: no prefix of the records with the {synced} synced ones in it"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn after_a_power_loss_at_any_byte_a_prefix_with_everything_synced_is_there(
        acts in proptest::collection::vec((act(), proptest::bool::weighted(0.1)), 1..30),
        segment_bytes in prop_oneof![Just(SEGMENT), Just(NEVER)],
    ) {
        let dir = MemDir::default();
        let log = begin(&dir, segment_bytes).unwrap();
        let mut writer = Writer::default();
        let mut records = Vec::new();
        let mut synced = 0;
        for (i, (act, sync)) in acts.iter().enumerate() {
            for record in writer.records(act) {
                log.append(&record).unwrap();
                records.push(record);
            }
            if *sync {
                log.sync().unwrap();
                synced = records.len();
            }
            prop_assert!(log.synced() as usize >= synced);
            let step = if i + 1 == acts.len() { EVERY_BYTE } else { SOME_BYTES };
            check_power_losses(&dir, &folds(&records), synced, step);
        }
    }
}

/// A history with everything in it, rotations too, for the tests that try each step of it.
fn long_history() -> Vec<Record> {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let histories = std::iter::repeat_with(|| {
        let acts = proptest::collection::vec(act(), 70).new_tree(&mut runner).unwrap().current();
        all_records(&acts)
    });
    let has_everything = |records: &Vec<Record>| {
        let has = |is: fn(&Record) -> bool| records.iter().any(is);
        has(|r| matches!(r, Record::Copied { .. }))
            && has(|r| matches!(r, Record::Fetched { .. }))
            && has(|r| matches!(r, Record::Saving { .. }))
            && has(|r| matches!(r, Record::Sent { .. }))
            && has(|r| matches!(r, Record::Acknowledged { .. }))
    };
    histories.take(100).find(has_everything).expect("one of a hundred has everything in it")
}

/// Appends and syncs until the end or the process's; returns what was appended and how much of it was synced.
fn run(dir: &MemDir, records: &[Record]) -> (Option<Log>, usize, usize) {
    let Ok(log) = begin(dir, SEGMENT) else { return (None, 0, 0) };
    let mut synced = 0;
    for (i, record) in records.iter().enumerate() {
        if log.append(record).is_err() {
            return (Some(log), i, synced);
        }
        if i % 9 == 8 {
            if log.sync().is_err() {
                return (Some(log), i + 1, synced);
            }
            synced = i + 1;
        }
    }
    (Some(log), records.len(), synced)
}

#[test]
fn the_process_may_die_at_every_call_and_the_power_fail_then() {
    let records = long_history();
    let folds = folds(&records);
    let dir = MemDir::default();
    let (log, ..) = run(&dir, &records);
    assert!(log.unwrap().syncs() > 10, "there were rotations");
    let calls = dir.calls();
    for at in 1..=calls {
        let dir = MemDir::default();
        dir.set(Fault::Dies(at));
        let (_, appended, synced) = run(&dir, &records);
        let left = replayed(&dir.after_kill());
        // The last one was being appended, and may be there.
        let found = folds.iter().rposition(|fold| *fold == left).expect("a prefix of the records");
        assert!(found >= appended, "call {at}: {found} of {appended} records after a kill");
        check_power_losses(&dir, &folds, synced, SOME_BYTES);
        // The next one goes on, in whatever it finds.
        let next = dir.after_kill();
        let again = begin(&next, SEGMENT).unwrap();
        let mut expected = folds[found].clone();
        expected.inherited();
        assert_eq!(current(&again), expected);
    }
}

#[test]
fn every_call_may_fail_once_and_nothing_that_worked_is_lost() {
    fail_each_call(Fault::Fails);
}

#[test]
fn every_call_may_be_done_and_say_that_it_failed_and_nothing_that_worked_is_lost() {
    fail_each_call(Fault::Lies);
}

fn fail_each_call(fault: fn(usize) -> Fault) {
    let records = long_history();
    let calls = (1..).take_while(|at| fail_once(&records, fault(*at))).count();
    assert!(calls > records.len(), "{calls} calls failed");
}

/// Whether there were as many calls.
fn fail_once(records: &[Record], fault: Fault) -> bool {
    let (Fault::Fails(at) | Fault::Lies(at)) = fault else { panic!("{fault:?}") };
    let dir = MemDir::default();
    dir.set(fault);
    let log = match begin(&dir, SEGMENT) {
        Ok(log) => log,
        // The next start finds nothing wrong.
        Err(_) => begin(&dir, SEGMENT).unwrap(),
    };
    // Records after a failed one may make no sense any more: they are refused, as they would be if asked for.
    let mut folds = folds(&[]);
    let mut synced = 0;
    let mut checks = 0;
    for (i, record) in records.iter().enumerate() {
        if log.append(record).is_ok() {
            fold(&mut folds, record);
        }
        if i % 3 == 2 && log.sync().is_ok() {
            synced = folds.len() - 1;
        }
        // What went wrong may be made good later on; it has to be good at once.
        if dir.calls() >= at && checks < 4 {
            let step = if checks == 0 { SOME_BYTES } else { ALL_OR_NONE };
            checks += 1;
            assert_eq!(Some(&replayed(&dir.after_kill())), folds.last(), "{fault:?}, record {i}");
            check_power_losses(&dir, &folds, synced, step);
        }
    }
    let happened = dir.calls() >= at;
    let worked = folds.len() - 1;
    assert!(worked * 10 > records.len(), "{fault:?}: {worked} records");
    assert_eq!(Some(&current(&log)), folds.last(), "{fault:?}");
    assert_eq!(Some(&replayed(&dir.after_kill())), folds.last(), "{fault:?}");
    log.sync().unwrap();
    check_power_losses(&dir, &folds, worked, ALL_OR_NONE);
    happened
}

/// A file with bytes, for tests that need one.
fn simple(count: u64) -> Vec<Record> {
    let acts: Vec<Act> = (0..count).map(|i| Act::Write(1, i * 2, 1)).collect();
    all_records(&acts)
}

#[test]
fn a_failed_sync_is_made_good_in_a_new_segment() {
    let dir = MemDir::default();
    let log = begin(&dir, NEVER).unwrap();
    for record in simple(5) {
        log.append(&record).unwrap();
    }
    let before = dir.names().unwrap();
    dir.set(Fault::Fails(1));
    log.sync().unwrap();
    assert_ne!(dir.names().unwrap(), before, "the kernel may have forgotten the pages of the old one");
    check_power_losses(&dir, &folds(&simple(5)), 6, EVERY_BYTE);
    // Where that fails too the sync does, and so does what would be appended to a file that cannot be trusted.
    let log = begin(&dir, NEVER).unwrap();
    log.append(&Record::Gone { file: FileId(9) }).unwrap();
    dir.set(Fault::Dies(1));
    assert!(log.sync().is_err());
    assert!(log.append(&Record::Gone { file: FileId(9) }).is_err());
    dir.set(Fault::None);
    let before = dir.names().unwrap();
    log.append(&Record::Gone { file: FileId(9) }).unwrap();
    assert_ne!(dir.names().unwrap(), before, "nothing goes into the one that failed");
    log.sync().unwrap();
}

#[test]
fn what_is_appended_during_a_sync_is_not_taken_for_synced() {
    let dir = MemDir::default();
    let log = Arc::new(begin(&dir, NEVER).unwrap());
    let records = simple(2);
    log.append(&records[0]).unwrap();
    log.append(&records[1]).unwrap();
    let (late, record) = (Arc::clone(&log), records[2].clone());
    dir.meanwhile(move || late.append(&record).unwrap());
    log.sync().unwrap();
    assert_eq!((log.synced(), log.appended()), (2, 3));
    check_power_losses(&dir, &folds(&records), 2, EVERY_BYTE);
    log.sync().unwrap();
    assert_eq!(log.synced(), 3);
    check_power_losses(&dir, &folds(&records), 3, EVERY_BYTE);
    // The same while a new segment takes over.
    let log = Arc::new(begin(&dir, SEGMENT).unwrap());
    let late = Arc::clone(&log);
    log.append(&Record::Gone { file: FileId(9) }).unwrap();
    let before = dir.names().unwrap();
    dir.meanwhile(move || {
        for _ in 0..60 {
            late.append(&Record::Gone { file: FileId(9) }).unwrap();
        }
    });
    log.sync().unwrap();
    assert_ne!(dir.names().unwrap(), before);
    check_power_losses(&dir, &folds(&records), 3, EVERY_BYTE);
}

#[test]
fn a_segment_that_ends_before_its_checkpoint_never_counted() {
    let dir = MemDir::default();
    let log = begin(&dir, NEVER).unwrap();
    for record in simple(3) {
        log.append(&record).unwrap();
    }
    let older = dir.after_kill();
    begin(&dir, NEVER).map(drop).unwrap();
    let name = dir.names().unwrap().remove(0);
    let whole = dir.read(&name).unwrap();
    for len in 0..whole.len() {
        let both = older.after_kill();
        both.create(&name).unwrap().write_at(&whole[..len], 0).unwrap();
        assert_eq!(Some(&replayed(&both)), folds(&simple(3)).last(), "{len} bytes");
        let alone = dir.after_kill();
        alone.edit(&name, |bytes| bytes.truncate(len));
        let error = replay(&alone, BOOT).map(|_| ()).unwrap_err();
        assert!(error.message().contains(&name), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever lies there: it is read as what it is, or refused in words, and what is read is the beginning of what was
    /// written.
    #[test]
    fn any_bytes_in_the_journal_s_place_are_read_or_refused(
        begins in any::<bool>(),
        from in any::<prop::sample::Index>(),
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xf1), Just(0)], 0..400),
        frames in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let dir = MemDir::default();
        let log = begin(&dir, NEVER).unwrap();
        for record in &simple(12) {
            log.append(record).unwrap();
        }
        log.sync().unwrap();
        let name = dir.names().unwrap().remove(0);
        let whole = dir.read(&name).unwrap();
        dir.edit(&name, |file| {
            let at = from.index(file.len());
            file.truncate(if begins { at } else { 0 });
            file.extend(&bytes);
            // Frames of the same journal at other places than their own.
            for frame in &frames {
                file.extend(&whole[frame.index(whole.len())..]);
            }
        });
        match replay(&dir, BOOT) {
            Ok(left) => prop_assert!(left.torn_bytes as usize <= dir.read(&name).unwrap().len()),
            Err(error) => prop_assert!(error.message().contains(&name), "{}", error.report()),
        }
    }
}

#[test]
fn damage_before_good_records_is_an_error_that_names_the_file() {
    let dir = MemDir::default();
    let log = begin(&dir, NEVER).unwrap();
    let records = simple(20);
    for (i, record) in records.iter().enumerate() {
        log.append(record).unwrap();
        if i == 10 {
            log.sync().unwrap();
        }
    }
    let name = dir.names().unwrap().remove(0);
    let whole = dir.read(&name).unwrap();
    let header = record::HEADER_BYTES;
    // The last frame is a tail, and a tail may be torn.
    let last = whole.windows(4).rposition(|bytes| bytes == b"\xf1jrn").unwrap();
    for at in 0..whole.len() {
        let damaged = dir.after_kill();
        damaged.edit(&name, |bytes| bytes[at] ^= 0x10);
        match replay(&damaged, BOOT) {
            Err(error) => {
                assert!(at < last, "byte {at}");
                assert!(at < header || error.kind() == Kind::Corrupt, "byte {at}: {}", error.report());
                assert!(error.message().contains(&name), "byte {at}: {error}");
            }
            Ok(left) => {
                assert!(at >= last, "byte {at} was skipped");
                assert_eq!(left.torn_bytes as usize, whole.len() - last);
            }
        }
    }
}

#[test]
fn pages_that_a_power_loss_took_from_the_unsynced_end_are_a_torn_tail_and_synced_ones_are_damage() {
    let dir = MemDir::default();
    let log = begin(&dir, NEVER).unwrap();
    let records = simple(30);
    for record in &records[..10] {
        log.append(record).unwrap();
    }
    let name = dir.names().unwrap().remove(0);
    let synced = dir.read(&name).unwrap().len();
    log.sync().unwrap();
    for record in &records[10..] {
        log.append(record).unwrap();
    }
    let lost = |at: usize| {
        let dir = dir.after_kill();
        dir.edit(&name, |bytes| bytes[at..at + 300].fill(0));
        dir
    };
    let left = replay(&lost(synced), BOOT + 1).unwrap();
    assert_eq!(left.ledger.without_places(), after_reboot(&folds(&records)[10]));
    assert!(replay(&lost(synced), BOOT).is_err(), "a kill takes no pages from the middle");
    assert!(replay(&lost(synced - 300), BOOT + 1).is_err(), "what was synced is not lost silently");
}

#[test]
fn the_journal_stays_small_whatever_is_written() {
    let dir = MemDir::default();
    let log = begin(&dir, SEGMENT).unwrap();
    let mut largest = 0;
    for record in simple(3) {
        log.append(&record).unwrap();
    }
    for stamp in 10..3000 {
        let (file, at) = (FileId(1), UNIX_EPOCH);
        let record = match stamp % 3 {
            0 => Record::Wrote { file, range: range(stamp % 5, 3), stamp, at, sums: Vec::new() },
            1 => Record::Inlined {
                file,
                range: range(stamp % 5, 3),
                stamp,
                at,
                bytes: Bytes::from_static(b"abc"),
            },
            _ => Record::Cut { file, len: 2, stamp, at },
        };
        log.append(&record).unwrap();
        largest = largest.max(dir.bytes());
    }
    assert!(largest < 2 * SEGMENT as usize, "{largest} bytes");
    assert_eq!(dir.names().unwrap().len(), 1);
}

#[test]
fn parts_are_taken_back_when_their_bytes_change_and_uploads_outlive_their_files() {
    // As large as parts are: within one, a change makes what was written before it as new as itself.
    const PART: u64 = 8 << 20;
    let mut records = all_records(&[
        Act::Write(1, 0, 4 * PART),
        Act::Upload(1),
        Act::Send(1, 1, 0, PART),
        Act::Send(1, 2, PART, PART),
        Act::Send(1, 3, 2 * PART, 2 * PART),
        Act::Write(1, PART + 5, 2),
        Act::Cut(1, 4 * PART - 1),
    ]);
    let ledger = folds(&records).pop().unwrap();
    let [Owed::File(file)] = &ledger.owed()[..] else { panic!("{:?}", ledger.owed()) };
    let upload = file.upload.as_ref().unwrap();
    assert_eq!(upload.parts.keys().copied().collect::<Vec<_>>(), [1]);
    records.push(Record::Gone { file: FileId(1) });
    let ledger = folds(&records).pop().unwrap();
    assert_eq!(ledger.owed(), [Owed::Upload(upload.clone())]);
    let (file, upload_id) = (FileId(1), upload.upload.upload_id.clone());
    records.push(Record::UploadEnded { file, upload_id });
    assert_eq!(folds(&records).pop().unwrap(), Ledger::default());
}

#[test]
fn a_part_goes_when_a_run_that_is_joined_makes_its_bytes_newer_and_stays_when_they_are_fetched() {
    let parts = |acts: &[Act]| {
        let ledger = folds(&all_records(acts)).pop().unwrap();
        match &ledger.owed()[0] {
            Owed::File(file) => file.upload.as_ref().unwrap().parts.len(),
            other => panic!("{other:?}"),
        }
    };
    let zeros = [Act::Upload(1), Act::Cut(1, 16), Act::Send(1, 1, 0, 1)];
    assert_eq!(parts(&zeros), 1);
    for grows in [Act::Cut(1, 20), Act::Write(1, 17, 1), Act::Copy(1, 17, 1, 0)] {
        assert_eq!(parts(&[&zeros[..], &[grows]].concat()), 0);
    }
    let copied = [
        Act::Upload(1),
        Act::Copy(1, 4, 13, 0),
        Act::Send(1, 1, 4, 6),
        Act::Write(1, 0, 4),
        Act::Fetch(1, 0, 0, 17),
    ];
    assert_eq!(parts(&copied), 1);
}

#[test]
fn a_copy_takes_back_what_it_covers_and_needs_nothing_staged_until_it_is_fetched() {
    let mut acts = vec![
        Act::Inline(1, 0, 40),
        Act::Upload(1),
        Act::Send(1, 1, 0, 10),
        Act::Send(1, 2, 10, 10),
        Act::Copy(1, 12, 40, 0),
        Act::Send(1, 3, 10, 42),
    ];
    let sum = |acts: &[Act]| folds(&all_records(acts)).pop().unwrap();
    let file = |acts: &[Act]| match &sum(acts).owed()[0] {
        Owed::File(file) => file.clone(),
        other => panic!("{other:?}"),
    };
    let parts = |file: &OwedFile| file.upload.as_ref().unwrap().parts.keys().copied().collect::<Vec<_>>();
    let copied = file(&acts);
    assert_eq!((copied.staged_len, parts(&copied)), (0, vec![1, 3]));
    let ledger = sum(&acts);
    let inlined: Vec<ByteRange> = ledger.inlined().map(|(_, range, _)| range).collect();
    assert_eq!(inlined, [range(0, 12)]);
    acts.push(Act::Fetch(1, 0, 20, 10));
    let fetched = file(&acts);
    assert_eq!((fetched.staged_len, parts(&fetched)), (30, vec![1, 3]));
    assert_eq!((fetched.stamp, fetched.written_at), (copied.stamp, copied.written_at));
    assert_eq!(fetched.copies, [copied_from(0)]);
    // Its numbers end with the file.
    acts.extend([Act::Save(1, 0), Act::Copy(1, 5, 5, 1)]);
    assert_eq!(file(&acts).copies, [copied_from(1)]);
}

#[test]
fn an_upload_for_another_place_is_to_be_aborted() {
    let records = all_records(&[Act::Write(1, 0, 40), Act::Upload(1), Act::Move(1)]);
    let owed = folds(&records).pop().unwrap().owed();
    let [Owed::File(file), Owed::Upload(_)] = &owed[..] else { panic!("{owed:?}") };
    assert_eq!(file.upload, None);
}

#[test]
fn records_that_make_no_sense_are_refused_and_not_written() {
    let dir = MemDir::default();
    let log = begin(&dir, NEVER).unwrap();
    for record in simple(2) {
        log.append(&record).unwrap();
    }
    let (file, at) = (FileId(1), UNIX_EPOCH);
    let copied = |stamp, range, number, of| {
        let from = copied_from(of);
        Record::Copied { file, range, stamp, at, number, from }
    };
    log.append(&copied(4, range(5, 3), 0, 0)).unwrap();
    // Right behind what the file has.
    let run = |len, what| Run::from(Segment { range: range(8, len), what });
    let before = dir.bytes();
    let mut outside = match simple(1).remove(0) {
        Record::Begun(begun) => begun,
        other => panic!("{other:?}"),
    };
    (outside.file, outside.staging) = (FileId(5), "../lock".to_owned());
    for record in [
        Record::Wrote { file: FileId(2), range: range(0, 1), stamp: 9, at, sums: Vec::new() },
        Record::Wrote { file, range: range(0, 1), stamp: 3, at, sums: Vec::new() },
        Record::Inlined { file, range: range(0, 2), stamp: 9, at, bytes: Bytes::from_static(b"1") },
        Record::Saved { file, stamp: 9, object: object("k1", 1, 3) },
        Record::Saved { file, stamp: 3, object: object("k1", 1, 2) },
        copied(4, range(5, 3), 0, 0),
        copied(9, range(5, 3), 0, 1),
        copied(9, range(5, 3), 2, 1),
        copied(9, range(99, 2), 0, 0),
        copied(9, range(3, 9), 1, 1),
        Record::KeptCopy { file, from: copied_from(1) },
        Record::Runs { file, runs: vec![run(4, What::Copied(4, 1))] },
        Record::Runs { file, runs: vec![run(200, What::Copied(4, 0))] },
        Record::Fetched { file, range: range(0, 1), number: 1, sums: Vec::new() },
        Record::Fetched { file: FileId(2), range: range(0, 1), number: 0, sums: Vec::new() },
        Record::Acknowledged { file, stamp: 9 },
        Record::Checkpointed { records: 0 },
        Record::Begun(outside),
        simple(1).remove(0),
    ] {
        let error = log.append(&record).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal, "{record:?}");
    }
    assert_eq!(dir.bytes(), before);
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn state_dir(scratch: &tempfile::TempDir) -> PathBuf {
    scratch.path().join("state")
}

#[tokio::test]
async fn what_is_owed_is_found_by_a_look_and_by_the_next_mount() {
    let scratch = scratch();
    let dir = state_dir(&scratch);
    assert_eq!(Journal::look(&dir).unwrap(), []);
    let (journal, owed) = Journal::open(&dir, "s3://b on /mnt").unwrap();
    assert_eq!(owed, []);
    let mut writer = Writer::default();
    let acts = [
        Act::Write(1, 0, 10),
        Act::Inline(1, 5, 10),
        Act::Write(1, 8, 2),
        Act::Inline(2, 3, 4),
        Act::Acknowledge(2),
    ];
    for record in acts.iter().flat_map(|act| writer.records(act)) {
        journal.append(&record).unwrap();
    }
    journal.sync().await.unwrap();
    // Of the bytes, the disk has only those that were not inlined.
    let mut staged = writer.files[&1].staged[..10].to_vec();
    staged[5..8].fill(0);
    fs::write(journal.staging_dir().join("s1"), staged).unwrap();
    fs::write(journal.staging_dir().join("orphan"), b"of nobody").unwrap();
    assert!(journal.fresh_id() < journal.fresh_id());
    drop(journal);
    let seen = Journal::look(&dir).unwrap();
    for _ in 0..2 {
        let (journal, owed) = Journal::open(&dir, "s3://b on /mnt").unwrap();
        assert_eq!(without_sums(&owed), without_sums(&seen));
        assert_eq!(without_sums(&journal.owed()), without_sums(&owed));
        assert!(journal.fresh_id() > 2, "ids of files that are owed are taken");
        for item in &owed {
            let Owed::File(file) = item else { panic!("{item:?}") };
            assert_eq!(file.damage, None);
            assert!(!file.suspect);
            let staged = fs::read(journal.staging_dir().join(&file.staging)).unwrap();
            assert_eq!(staged, writer.files[&file.file.0].staged);
        }
        assert!(!journal.staging_dir().join("orphan").exists());
    }
}

/// Of bytes that the journal has itself they are found out when they are put into the staging file.
fn without_sums(owed: &[Owed]) -> Vec<Owed> {
    let mut owed = owed.to_vec();
    for item in &mut owed {
        if let Owed::File(file) = item {
            file.sums = Sums::default();
        }
    }
    owed
}

/// A state directory in which one file of ten bytes was written and `then` happened, and its staging file is `disk`.
fn written_once(scratch: &tempfile::TempDir, then: Vec<Record>, disk: &[u8]) -> PathBuf {
    let dir = state_dir(scratch);
    let (journal, _) = Journal::open(&dir, "m").unwrap();
    let mut records = all_records(&[Act::Write(1, 0, 10)]);
    let sums = vec![Sum::of(range(0, 10), b"0123456789")];
    records.push(Record::Sums { file: FileId(1), sums });
    for record in records.into_iter().chain(then) {
        journal.append(&record).unwrap();
    }
    fs::write(journal.staging_dir().join("s1"), disk).unwrap();
    dir
}

fn only(owed: Vec<Owed>) -> OwedFile {
    match owed.into_iter().next() {
        Some(Owed::File(file)) => *file,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_takes_the_place_of_a_file_is_kept_and_a_file_that_was_moved_over_is_gone_in_the_same_instant() {
    let owed = |records: &[Record]| folds(records).pop().unwrap().owed();
    let mut records = all_records(&[Act::Write(1, 0, 10), Act::Write(2, 0, 10)]);
    let by = Some(object("new", 7, 5));
    records.push(Record::Replacing { file: FileId(1), by: by.clone() });
    let [Owed::File(one), Owed::File(two)] = &owed(&records)[..] else { panic!("two files") };
    assert_eq!((&one.replacing, &two.replacing), (&by, &None));
    records.push(Record::Replacing { file: FileId(1), by: None });
    let [Owed::File(one), Owed::File(two)] = &owed(&records)[..] else { panic!("two files") };
    assert_eq!(one.replacing, None);
    let (base, expects, over) = (None, Condition::Absent, vec![FileId(1)]);
    records.push(Record::Moved {
        file: two.file,
        place: one.place.clone(),
        base,
        expects,
        over,
        leaves: None,
    });
    let [Owed::File(left)] = &owed(&records)[..] else { panic!("one file") };
    assert_eq!((left.file, &left.place), (FileId(2), &one.place));
}

#[test]
fn the_journal_has_a_bounded_part_of_the_files_bytes_and_takes_more_when_they_are_owed_no_more() {
    const STEP: u64 = 64 << 10;
    let scratch = scratch();
    let dir = state_dir(&scratch);
    let (journal, _) = Journal::open(&dir, "m").unwrap();
    journal.append(&all_records(&[Act::Write(1, 0, 1)])[0]).unwrap();
    let at = SystemTime::UNIX_EPOCH;
    let fill = |from: u64| {
        let mut count = 0;
        while journal.takes_inlined(STEP) {
            count += 1;
            assert!(count <= 1_000, "it is bounded");
            let range = ByteRange::at((from + count) * STEP, STEP).unwrap();
            let bytes = Bytes::from(vec![7; 64 << 10]);
            let stamp = 1_000 + from + count;
            journal.append(&Record::Inlined { file: FileId(1), range, stamp, at, bytes }).unwrap();
        }
        count
    };
    let first = fill(0);
    assert_eq!(first * STEP, 8 << 20);
    let syncs = journal.syncs();
    assert!(!journal.takes_inlined(1));
    assert!(journal.syncs() <= syncs + 1, "asked again and again it does not write it all anew");
    journal.append(&Record::Cut { file: FileId(1), len: 0, stamp: 1_000_000, at }).unwrap();
    assert!(!journal.takes_inlined(1), "of that it hears with the next segment");
    drop(journal);
    let (journal, _) = Journal::open(&dir, "m").unwrap();
    assert!(journal.takes_inlined(8 << 20));
}

#[test]
fn a_look_names_the_bytes_that_the_disk_damaged() {
    let scratch = scratch();
    let dir = written_once(&scratch, Vec::new(), b"01234X6789");
    let damage = only(Journal::look(&dir).unwrap()).damage.unwrap();
    assert!(damage.contains("bytes 0..10 of") && damage.contains("staging/s1"), "{damage}");
    // A mount holds the bytes to their sums when it sends them, and needs no second look.
    let owed = only(Journal::open(&dir, "m").unwrap().1);
    assert_eq!((owed.damage, owed.sums.all()), (None, vec![Sum::of(range(0, 10), b"0123456789")]));
}

#[test]
fn where_the_machine_went_down_the_sums_tell_whether_the_bytes_are_there() {
    for (disk, is_right) in [(b"0123456789", true), (b"01234\0\0\0\0\0", false)] {
        let scratch = scratch();
        let dir = written_once(&scratch, Vec::new(), disk);
        let (journal, owed) = Journal::open(&dir, "m").unwrap();
        let mut file = OwedFile { suspect: true, ..only(owed) };
        check(&journal.staging_dir(), &mut file, Look::AtDoubtful);
        assert_eq!((file.damage.is_none(), file.suspect), (is_right, !is_right));
        // Of these nobody knows.
        let mut file = OwedFile { suspect: true, sums: Sums::default(), ..file };
        check(&journal.staging_dir(), &mut file, Look::AtDoubtful);
        assert_eq!((file.damage.is_none(), file.suspect), (true, true));
    }
}

#[test]
fn bytes_that_were_being_written_over_may_be_either_and_the_others_may_not() {
    let was = vec![Sum::of(range(2, 3), b"234")];
    for (disk, is_right) in [(b"0123456789", true), (b"01abc56789", true), (b"01abcX6789", false)] {
        let scratch = scratch();
        let then = vec![Record::Overwriting { file: FileId(1), was: was.clone() }];
        let dir = written_once(&scratch, then, disk);
        assert_eq!(only(Journal::look(&dir).unwrap()).damage.is_none(), is_right);
        let owed = only(Journal::open(&dir, "m").unwrap().1);
        assert_eq!(owed.damage.is_none(), is_right);
        if is_right {
            assert_eq!(owed.sums.all(), [Sum::of(range(0, 10), disk)], "from here on they are what they are");
        }
    }
}

#[test]
fn what_an_older_version_wrote_down_without_sums_is_taken_as_it_is() {
    let scratch = scratch();
    let dir = state_dir(&scratch);
    let (journal, _) = Journal::open(&dir, "m").unwrap();
    let records = all_records(&[Act::Write(1, 0, 10)]).into_iter().map(|record| match record {
        Record::Wrote { file, range, stamp, at, .. } => {
            Record::Wrote { file, range, stamp, at, sums: Vec::new() }
        }
        other => other,
    });
    records.for_each(|record| journal.append(&record).unwrap());
    fs::write(journal.staging_dir().join("s1"), b"0123456789").unwrap();
    drop(journal);
    let owed = only(Journal::open(&dir, "m").unwrap().1);
    assert_eq!((owed.damage, owed.sums.all()), (None, vec![Sum::of(range(0, 10), b"0123456789")]));
}

#[test]
fn a_file_whose_staged_bytes_are_missing_or_short_is_owed_as_damaged_until_it_is_gone() {
    let scratch = scratch();
    let dir = state_dir(&scratch);
    let (journal, _) = Journal::open(&dir, "m").unwrap();
    let staging = journal.staging_dir();
    // The third needs none.
    let acts = [Act::Write(1, 0, 10), Act::Write(2, 0, 10), Act::Cut(3, 90), Act::Copy(3, 80, 10, 0)];
    for record in all_records(&acts) {
        journal.append(&record).unwrap();
    }
    fs::write(staging.join("s2"), b"123456789").unwrap();
    drop(journal);
    for _ in 0..2 {
        let (journal, owed) = Journal::open(&dir, "m").unwrap();
        let damaged: Vec<(u64, bool)> = owed
            .iter()
            .map(|item| match item {
                Owed::File(file) => (file.file.0, file.damage.is_some()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(damaged, [(1, true), (2, true), (3, false)]);
        assert!(staging.join("s2").exists(), "what there is of it is kept");
        drop(journal);
    }
    let (journal, _) = Journal::open(&dir, "m").unwrap();
    for file in [1, 2, 3] {
        journal.append(&Record::Gone { file: FileId(file) }).unwrap();
    }
    drop(journal);
    assert_eq!(Journal::open(&dir, "m").unwrap().1, []);
    assert!(!staging.join("s2").exists());
}

#[test]
fn what_was_not_acknowledged_before_the_machine_went_down_is_suspect_until_it_is_saved() {
    let records = all_records(&[
        Act::Write(1, 0, 10),
        Act::Acknowledge(1),
        Act::Write(2, 0, 10),
        Act::Write(3, 0, 10),
        Act::Acknowledge(3),
        Act::Write(3, 5, 10),
    ]);
    let dir = MemDir::default();
    let log = begin(&dir, NEVER).unwrap();
    for record in &records {
        log.append(record).unwrap();
    }
    let suspects = |boot| -> Vec<u64> {
        let owed = replay(&dir, boot).unwrap().ledger.owed();
        let files = owed.iter().filter_map(|item| match item {
            Owed::File(file) if file.suspect => Some(file.file.0),
            _ => None,
        });
        files.collect()
    };
    assert_eq!(suspects(BOOT), [0; 0]);
    assert_eq!(suspects(BOOT + 1), [2, 3]);
    let after = replay(&dir, BOOT + 1).unwrap();
    Log::begin(Arc::new(dir.clone()), after, BOOT + 1, NEVER).map(drop).unwrap();
    assert_eq!(suspects(BOOT + 1), [2, 3], "a start that came to nothing does not make it good");
}

#[test]
fn one_mount_has_the_directory_and_others_are_told_which() {
    let scratch = scratch();
    let dir = state_dir(&scratch);
    let (journal, _) = Journal::open(&dir, "s3://b on /mnt").unwrap();
    for refused in [Journal::open(&dir, "another").map(drop), Journal::look(&dir).map(drop)] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        for told in [dir.display().to_string(), std::process::id().to_string(), "s3://b on /mnt".to_owned()] {
            assert!(error.message().contains(&told), "{error} does not tell {told}");
        }
    }
    drop(journal);
    Journal::look(&dir).unwrap();
    Journal::open(&dir, "another").unwrap();
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = scratch();
    let dir = state_dir(&scratch);
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(Journal::open(&dir, "m").unwrap_err().kind(), Kind::InvalidArgument);
}

/// Whoever could write to the directory once may have left links there, to files that its user has and they have not.
#[test]
fn no_link_or_pipe_in_the_place_of_a_file_is_followed_or_waited_for() {
    let inlined = Record::Inlined {
        file: FileId(1),
        range: range(40, 4),
        stamp: 1_000,
        at: UNIX_EPOCH,
        bytes: Bytes::from_static(b"more"),
    };
    let names = ["lock", "journal-00000001", "journal.new", "staging/s1", "inherited-7"];
    for (name, pipe) in names.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let scratch = scratch();
        let dir = written_once(&scratch, vec![inlined.clone()], b"0123456789");
        let (victim, planted) = (scratch.path().join("victim"), dir.join(name));
        fs::write(&victim, "mine").unwrap();
        let _ = fs::remove_file(&planted);
        if pipe {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &planted, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        } else {
            std::os::unix::fs::symlink(&victim, &planted).unwrap();
        }
        let looked = Journal::look(&dir);
        let opened = Journal::open(&dir, "m").map(|(_, owed)| owed);
        match name {
            // What the journal says is in there has nowhere to go.
            "lock" | "journal-00000001" | "staging/s1" => {
                let error = opened.unwrap_err();
                let why = if pipe { "no plain file" } else { "symbolic link" };
                assert!(error.message().contains(name) && error.message().contains(why), "{name}: {error}");
            }
            _ => assert_eq!(opened.unwrap().len(), 1, "{name}"),
        }
        match name {
            "lock" | "journal-00000001" => assert!(looked.is_err(), "{name}"),
            "staging/s1" => assert!(only(looked.unwrap()).damage.is_some(), "{name}"),
            _ => assert_eq!(only(looked.unwrap()).damage, None, "{name}"),
        }
        assert_eq!(fs::read(&victim).unwrap(), b"mine", "{name}");
    }
}

/// What is in a directory of another user's is not owed, though it lies in ours.
#[test]
fn what_another_user_has_put_there_is_not_taken_for_what_is_owed() {
    let scratch = scratch();
    let (dir, theirs) = (state_dir(&scratch), scratch.path().join("theirs"));
    owing(&theirs, "theirs");
    drop(Journal::open(&dir, "m").unwrap());
    fs::rename(&theirs, dir.join("inherited-00000099")).unwrap();
    let copied = copy_of(&dir);
    assert_ne!(Journal::open(&copied.path().join("state"), "m").unwrap().1, []);
    if std::os::unix::fs::chown(dir.join("inherited-00000099"), Some(12_345), None).is_ok() {
        for error in [Journal::open(&dir, "m").unwrap_err(), Journal::look(&dir).unwrap_err()] {
            assert!(error.message().contains("belongs to user 12345"), "{error}");
        }
    }
}

#[test]
fn damage_is_told_with_its_path_and_nothing_is_removed() {
    let scratch = scratch();
    let dir = state_dir(&scratch);
    let (journal, _) = Journal::open(&dir, "m").unwrap();
    for record in simple(5) {
        journal.append(&record).unwrap();
    }
    fs::write(journal.staging_dir().join("s1"), b"bytes").unwrap();
    drop(journal);
    let segment = dir.join("journal-00000001");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    for _ in 0..2 {
        let error = Journal::open(&dir, "m").unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.message().contains("journal-00000001"), "{error}");
        assert!(error.message().contains(&dir.display().to_string()), "{error}");
    }
    assert_eq!(fs::read(&segment).unwrap(), bytes);
    assert!(dir.join("staging/s1").exists());
}

/// A directory with a file, a copy of bytes that only its journal has, an upload, and a removal that takes the file along.
fn owing(dir: &Path, key: &str) {
    let (journal, _) = Journal::open(dir, "m").unwrap();
    let mut writer = Writer::default();
    let mut records = writer.records(&Act::Write(1, 0, 10));
    let bytes = Bytes::from_static(b"inlined!");
    let at = UNIX_EPOCH;
    let (file, id) = (FileId(1), IntentId(7));
    let (base, expects, over) = (None, Condition::Absent, Vec::new());
    records.push(Record::Moved { file, place: place(key), base, expects, over, leaves: None });
    records.push(Record::Inlined { file, range: range(10, 8), stamp: 3, at, bytes });
    let upload = Upload { bucket: "b".to_owned(), key: key.to_owned(), upload_id: format!("u-{key}") };
    records.push(Record::Uploading { file, upload });
    records.push(Record::Starting { id: IntentId(5), place: place(key), at });
    let doomed = Doomed { key: key.to_owned(), etag: None, file: Some(file) };
    records.push(Record::Deleting(Deleting { id, bucket: "b".to_owned(), doomed }));
    records.extend(ledger::renaming(IntentId(6), &place("from/"), &place(key), Vec::new(), true));
    for record in records {
        journal.append(&record).unwrap();
    }
    fs::write(journal.staging_dir().join("s1"), &writer.files[&1].staged[..10]).unwrap();
}

/// What is owed of a directory made by [`owing`], by its key: everything of it is owed once, and is one thing.
fn keys_owed(owed: &[Owed], staging: &Path) -> Vec<String> {
    let files = owed.iter().filter_map(|owed| match owed {
        Owed::File(file) => Some(&**file),
        _ => None,
    });
    let of_key = |file: &OwedFile| {
        let key = file.place.key.clone();
        let bytes = fs::read(staging.join(&file.staging)).unwrap();
        assert_eq!((file.damage.as_ref(), file.suspect, file.extents.len()), (None, false, 18));
        assert_eq!((bytes.len(), &bytes[10..]), (18, &b"inlined!"[..]));
        let upload = file.upload.as_ref().unwrap();
        assert_eq!((upload.file, &upload.upload.key), (file.file, &key));
        let removals: Vec<_> = owed
            .iter()
            .filter(|o| matches!(o, Owed::Delete(Deleting { doomed, .. }) if doomed.file == Some(file.file) && doomed.key == key))
            .collect();
        assert_eq!(removals.len(), 1, "{owed:?}");
        key
    };
    let mut keys: Vec<String> = files.map(of_key).collect();
    keys.sort();
    let count = |is: fn(&Owed) -> bool| owed.iter().filter(|owed| is(owed)).count();
    assert_eq!(count(|owed| matches!(owed, Owed::Rename(_))), keys.len());
    assert_eq!(count(|owed| matches!(owed, Owed::Unheard { .. })), keys.len());
    assert_eq!(owed.len(), 4 * keys.len());
    keys
}

fn copy_of(from: &Path) -> tempfile::TempDir {
    let to = scratch();
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to.path()).status().unwrap();
    assert!(copied.success());
    to
}

#[test]
fn what_another_directory_owes_is_owed_here_wherever_taking_it_over_is_cut_short() {
    let scratch = scratch();
    let [a, b, c] = ["a", "b", "c"].map(|name| scratch.path().join(name));
    owing(&a, "of-a");
    owing(&b, "of-b");
    let opened = |dir: &Path, others: &[PathBuf], expected: &[&str]| {
        // Looking and opening again change nothing.
        for _ in 0..2 {
            let (journal, owed) = Journal::open_with(dir, "m", others).unwrap();
            assert_eq!(keys_owed(&owed, &journal.staging_dir()), expected);
            assert_eq!(keys_owed(&journal.owed(), &journal.staging_dir()), expected);
            assert_eq!(fs::read_dir(journal.staging_dir()).unwrap().count(), expected.len());
            let names = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
            let left: Vec<_> = names.filter(|n| n.to_str().unwrap().starts_with("inherited")).collect();
            assert!(left.is_empty(), "{left:?}");
            assert!(journal.fresh_id() > owed.len() as u64);
            drop(journal);
            assert_eq!(Journal::look(dir).unwrap().len(), owed.len());
        }
    };

    // It is here, and no segment has it yet; of its staging files one has got a name here, and another's has it.
    let moved = a.join("inherited-00000041");
    fs::rename(&b, &moved).unwrap();
    assert_eq!(Journal::look(&a).unwrap().len(), 8, "it is listed");
    fs::write(a.join("staging/29-s1"), b"of an attempt").unwrap();
    let before = copy_of(scratch.path());
    opened(&a, &[], &["of-a", "of-b"]);

    // A segment has it, and it is not removed yet.
    let kept = before.path().join(scratch.path().file_name().unwrap());
    fs::rename(kept.join("a/inherited-00000041"), &moved).unwrap();
    assert_eq!(Journal::look(&a).unwrap().len(), 8);
    opened(&a, &[], &["of-a", "of-b"]);

    // One that has another in it goes on to a third.
    owing(&b, "of-b-again");
    fs::rename(&b, a.join("inherited-00000077")).unwrap();
    owing(&c, "of-c");
    opened(&c, &[a.clone(), b.clone(), a.join("nowhere")], &["of-a", "of-b", "of-b-again", "of-c"]);
    assert!(!a.exists() && !b.exists());

    // As a whole, in one go.
    owing(&a, "of-a");
    opened(&a, &[b, c], &["of-a", "of-a", "of-b", "of-b-again", "of-c"]);
}

#[test]
fn what_a_live_mount_has_or_nobody_understands_is_not_taken_over() {
    let scratch = scratch();
    let [a, live, bad, empty] = ["a", "live", "bad", "empty"].map(|name| scratch.path().join(name));
    owing(&live, "of-live");
    owing(&bad, "of-bad");
    drop(Journal::open(&empty, "m").unwrap());
    let segment =
        fs::read_dir(&bad).unwrap().flatten().find(|e| e.file_name() != "lock" && e.path().is_file());
    let segment = segment.unwrap().path();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[40] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let (journal, owed) = Journal::open(&live, "live").unwrap();
    // Others could have put bytes into it.
    let open = scratch.path().join("open");
    owing(&open, "of-open");
    fs::set_permissions(open.join("staging"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let all = [live.clone(), bad, empty, open];
    let (mine, nothing) = Journal::open_with(&a, "m", &all).unwrap();
    assert_eq!(nothing, []);
    assert_eq!(journal.owed().len(), owed.len());
    assert!(all.iter().all(|dir| dir.join("lock").exists()));
    drop((journal, mine));
    // Its lock was opened before the directory went, and taken after that.
    let stale = File::open(live.join(LOCK_NAME)).unwrap();
    let (mine, taken) = Journal::open_with(&a, "m", &all).unwrap();
    assert_eq!(taken.len(), 4);
    stale.try_lock().unwrap();
    assert!(!is_lock_of(&live, &stale).unwrap());
    drop(mine);
}

#[tokio::test]
async fn a_hundred_syncs_together_need_two() {
    let scratch = scratch();
    let (journal, _) = Journal::open(&state_dir(&scratch), "m").unwrap();
    let before = journal.syncs();
    let one = async |file| {
        journal.append(&Record::Gone { file: FileId(file) }).unwrap();
        journal.sync().await.unwrap();
    };
    futures::future::join_all((0..100).map(one)).await;
    let syncs = journal.syncs() - before;
    assert!((1..=2).contains(&syncs), "{syncs} syncs");
    journal.sync().await.unwrap();
    assert_eq!(journal.syncs() - before, syncs, "nothing new needs no sync");
}
