//! What the journal says, and how it says it in bytes. Pure.
//!
//! ```text
//! segment:  magic (8) | format (u32) | number (u64) | boot (u64) | CRC32C of these (u32) | frame | frame | ...
//! frame:    mark (u32) | length of body (u32) | of it, record (u32) | CRC32C (u32) | synced (u64) | body
//! body:     the record as JSON | the bytes it carries, if any
//! ```
//! All numbers are little-endian. A frame's checksum covers the segment's number and the frame's own offset, so that a
//! frame is one at its own place only: not in bytes that a file happened to contain, and not after it was moved. `synced`
//! is how far the segment was known to be on the disk when the frame was written; what is bad below it is damage, and
//! never a tail that a power loss tore.
//!
//! JSON, because a record is some 100 bytes beside the 128 KiB and more of the write it tells of, because every type in
//! it has its serde form already, and because a field can be added without a new format.

use std::time::SystemTime;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};

use crate::base::{ByteRange, ETag};
use crate::error::{Error, Kind, Result};
use crate::s3::{Attributes, Checksum, Condition, Encryption, ObjectInfo, Part, Upload};
use crate::write::{Segment, Sum, What};

const MAGIC: &[u8; 8] = b"pailfs-j";
/// Number of the format. It grows with every record that an older pailfs would not know or not understand; older ones are
/// read. 2: renames by object, deletes one by one, and uploads that are about to be begun. 3: a rename with the delete of
/// what had claimed the old name.
pub(super) const FORMAT: u32 = 3;
/// Bytes of a segment before its first frame.
pub(super) const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 4;
const FRAME_MARK: [u8; 4] = *b"\xf1jrn";
pub(super) const FRAME_HEAD_BYTES: usize = 4 + 4 + 4 + 4 + 8;
/// The longest body: 1,000 of the longest keys take 8 MiB where every byte is escaped.
const BODY_MAX_BYTES: usize = 16 << 20;

/// A file in the journal, for as long as S3 lacks something of it. Unlike an inode it outlives the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId(pub u64);

/// Something that was begun: a rename of many keys, a delete, an upload whose id is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IntentId(pub u64);

/// A key or a prefix in its bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub bucket: String,
    pub key: String,
}

/// An object that bytes of a file come from: its unchanged ones, or a copy. The former is not always at the file's own
/// place, because what is not in S3 yet is renamed here alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseObject {
    pub place: Place,
    pub etag: ETag,
    /// In bytes.
    pub size: u64,
    /// Of all bytes, where that was known before it was made: how it is known again where its ETag is of other bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
}

impl BaseObject {
    /// Whether this is what S3 says that it has there.
    pub fn is(&self, info: &ObjectInfo) -> bool {
        let locked = info.attributes.encryption.as_ref().is_some_and(Encryption::hides_bytes);
        let same = self.checksum.as_ref().is_some_and(|mine| info.checksums.contains(mine));
        self.size == info.size && (self.etag == info.etag || (locked && same))
    }
}

/// Another object that runs of a file are copied from, as long as nobody has fetched them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedFrom {
    pub object: BaseObject,
    /// What to add to a place in the file for the place in the object; it wraps.
    pub shift: u64,
}

impl CopiedFrom {
    /// Whether the object has all that a range of the file is to be copied from.
    pub(super) fn has(&self, range: ByteRange) -> bool {
        ByteRange::at(range.start().wrapping_add(self.shift), range.len())
            .is_some_and(|there| there.end() <= self.object.size)
    }
}

/// An object that a rename of its directory moves, by the version that was there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// Below the prefix.
    pub rest: String,
    pub etag: ETag,
    /// In bytes.
    pub size: u64,
    /// The version of the copy, where that is another: of an object that was uploaded in parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<ETag>,
}

/// A key to delete, only as the version that is named; without one nothing is deleted that was not told to go just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doomed {
    pub key: String,
    pub etag: Option<ETag>,
    /// The file whose name goes with it, where the journal has one: nothing of it is owed any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileId>,
}

/// A key that is about to be deleted, until `Deleted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleting {
    pub id: IntentId,
    pub bucket: String,
    pub doomed: Doomed,
}

/// A file as it is when the first change to it is about to be written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    pub file: FileId,
    pub place: Place,
    pub base: Option<BaseObject>,
    /// What its commit expects to replace.
    pub expects: Condition,
    pub attributes: Attributes,
    #[serde(with = "nanoseconds")]
    pub written_at: SystemTime,
    /// Name in the staging directory. There need not be such a file before the first byte is staged.
    pub staging: String,
    /// Number of the latest change, and of the latest that S3 has: they differ for a new file, which is a change itself.
    pub stamp: u64,
    pub saved: u64,
}

/// One line of the journal.
///
/// `stamp` numbers the changes of one file and only grows; `at` is the file's new time of change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Before a file's first change, and again before the first one after S3 had everything.
    Begun(Box<Begun>),
    /// These bytes are in the staging file, and what it has to be there.
    Wrote {
        file: FileId,
        range: ByteRange,
        stamp: u64,
        #[serde(with = "nanoseconds")]
        at: SystemTime,
        /// Of the runs that they became part of; none was kept by older versions.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sums: Vec<Sum>,
    },
    /// Bytes of runs that were written before are about to be written over, and were this until then: whether they are the
    /// old ones or the new ones, nobody knows until the next record has the sums of these runs.
    Overwriting {
        file: FileId,
        was: Vec<Sum>,
    },
    /// What the staging file has to be in these runs, for another reason than a change.
    Sums {
        file: FileId,
        sums: Vec<Sum>,
    },
    /// Bytes that were written, as in `Wrote`, and here they are as well: the staging file needs no sync of its own for them.
    Inlined {
        file: FileId,
        range: ByteRange,
        stamp: u64,
        #[serde(with = "nanoseconds")]
        at: SystemTime,
        #[serde(skip)]
        bytes: Bytes,
    },
    /// Cut, or grown with zeros.
    Cut {
        file: FileId,
        len: u64,
        stamp: u64,
        #[serde(with = "nanoseconds")]
        at: SystemTime,
    },
    /// These bytes are an object's, which nobody has fetched. The file's copies are numbered from 0 on, and a number is
    /// the same object and shift until the file is forgotten.
    Copied {
        file: FileId,
        range: ByteRange,
        stamp: u64,
        #[serde(with = "nanoseconds")]
        at: SystemTime,
        number: u32,
        from: CopiedFrom,
    },
    /// What is of this copy in the range is in the staging file now. The bytes are what they were and no newer, so they
    /// may have been acknowledged: before this, the staging file is synced.
    Fetched {
        file: FileId,
        range: ByteRange,
        number: u32,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sums: Vec<Sum>,
    },
    /// A hole was punched; the length stays. Zeros that make the file longer are a `Cut` to their end and then this,
    /// each with its stamp.
    Zeroed {
        file: FileId,
        range: ByteRange,
        stamp: u64,
        #[serde(with = "nanoseconds")]
        at: SystemTime,
    },
    /// Other attributes go beside the bytes, which S3 has to be told like any other change.
    Described {
        file: FileId,
        attributes: Box<Attributes>,
        stamp: u64,
    },
    /// Renamed on this mount.
    Moved {
        file: FileId,
        place: Place,
        base: Option<BaseObject>,
        expects: Condition,
        /// Files that had that name until then: nothing of them is owed any more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        over: Vec<FileId>,
        /// What had the old name for the file, and goes with the rename or not at all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        leaves: Option<Box<Deleting>>,
    },
    /// The file's name is about to be this object's, by a rename on the server: where S3 has it there, nothing of the file is
    /// owed. Or nothing is to become of that.
    Replacing {
        file: FileId,
        by: Option<BaseObject>,
    },
    /// An upload in parts of this object is about to be begun. Until `Started` nobody can say whether it was, nor its id.
    Starting {
        id: IntentId,
        place: Place,
        #[serde(with = "nanoseconds")]
        at: SystemTime,
    },
    /// Its id is written down, or it was not begun, or is gone.
    Started {
        id: IntentId,
    },
    /// An upload in parts was begun for the file. It is owed an end of its own, whatever becomes of the file.
    Uploading {
        file: FileId,
        upload: Upload,
    },
    /// The file's latest upload holds these bytes as they were at `stamp`. It counts only while nothing of them is newer,
    /// whether that was written down before or after.
    Sent {
        file: FileId,
        part: Part,
        range: ByteRange,
        stamp: u64,
    },
    /// The part is to be sent again.
    Unsent {
        file: FileId,
        number: u16,
    },
    /// The upload was completed or aborted.
    UploadEnded {
        file: FileId,
        upload_id: String,
    },
    /// This object is about to be made, of everything up to `stamp`. If S3 has it, that is saved, though nobody was told.
    Saving {
        file: FileId,
        stamp: u64,
        object: BaseObject,
    },
    /// S3 made this object when the file was saved, of other bytes than were sent. It is not ours, and the next save
    /// replaces it.
    MadeWrong {
        file: FileId,
        etag: ETag,
    },
    /// S3 has everything up to `stamp`, as this object.
    Saved {
        file: FileId,
        stamp: u64,
        object: BaseObject,
    },
    /// `close()` returned: up to `stamp` the bytes are on the disk, in the staging file or inlined, or another object's.
    Acknowledged {
        file: FileId,
        stamp: u64,
    },
    /// Nothing of the file is owed: unlinked, or kept elsewhere.
    Gone {
        file: FileId,
    },
    /// Keys below a prefix are about to move: these, and those of further records of the same number, which may also say
    /// more of one. Nothing moves before one of them says that it has begun.
    Renaming {
        id: IntentId,
        from: Place,
        to: Place,
        objects: Vec<Moving>,
        begun: bool,
    },
    /// All of them are where they were to go, or nothing is to become of it.
    Renamed {
        id: IntentId,
    },
    /// A key is about to be deleted. `Deleted`: it is, or it is to stay.
    Deleting(Deleting),
    Deleted {
        id: IntentId,
    },
    /// Of a checkpoint: a file without its copies and extents.
    Kept(Box<Kept>),
    /// Of a checkpoint: the file's next copy. All of them come before its runs.
    KeptCopy {
        file: FileId,
        from: CopiedFrom,
    },
    /// Of a checkpoint: the next runs of a file.
    Runs {
        file: FileId,
        runs: Vec<Run>,
    },
    /// Of a checkpoint: bytes that are nowhere else on the disk for sure.
    KeptBytes {
        file: FileId,
        range: ByteRange,
        #[serde(skip)]
        bytes: Bytes,
    },
    /// Ends a checkpoint of so many records. A segment without it never counted.
    Checkpointed {
        records: u64,
    },
}

/// A file in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub begun: Begun,
    pub acknowledged: Option<u64>,
    pub suspect: bool,
}

/// A run of a file's bytes: start, end, source. Short, because there may be many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(u64, u64, RunWhat);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum RunWhat {
    #[serde(rename = "b")]
    Base,
    #[serde(rename = "s")]
    Staged(u64),
    #[serde(rename = "z")]
    Zero(u64),
    #[serde(rename = "c")]
    Copied(u64, u32),
}

impl From<Segment> for Run {
    fn from(segment: Segment) -> Self {
        let what = match segment.what {
            What::Base => RunWhat::Base,
            What::Staged(stamp) => RunWhat::Staged(stamp),
            What::Zero(stamp) => RunWhat::Zero(stamp),
            What::Copied(stamp, copy) => RunWhat::Copied(stamp, copy),
        };
        Self(segment.range.start(), segment.range.end(), what)
    }
}

impl Run {
    /// `None` where it is empty, which none that was written is.
    pub(super) fn segment(self) -> Option<Segment> {
        let what = match self.2 {
            RunWhat::Base => What::Base,
            RunWhat::Staged(stamp) => What::Staged(stamp),
            RunWhat::Zero(stamp) => What::Zero(stamp),
            RunWhat::Copied(stamp, copy) => What::Copied(stamp, copy),
        };
        Some(Segment { range: ByteRange::new(self.0, self.1)?, what })
    }
}

impl Record {
    /// The bytes that travel beside the record.
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inlined { bytes, .. } | Self::KeptBytes { bytes, .. } => bytes,
            _ => &[],
        }
    }
}

/// The beginning of a segment. `boot` names the run of the machine that it was written in.
pub(super) fn header(number: u64, boot: u64) -> Vec<u8> {
    header_of(FORMAT, number, boot)
}

fn header_of(format: u32, number: u64, boot: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend(format.to_le_bytes());
    header.extend(number.to_le_bytes());
    header.extend(boot.to_le_bytes());
    let sum = crc32c(&[&header]);
    header.extend(sum.to_le_bytes());
    header
}

/// The boot of a segment; `None` where it is shorter than a header.
pub(super) fn read_header(data: &[u8], number: u64) -> Result<Option<u64>> {
    let (Some(magic), Some(format)) = (data.get(..8), u32_at(data, 8)) else { return Ok(None) };
    if magic != MAGIC {
        return Err(Error::new(Kind::Corrupt, "it does not begin like a journal"));
    }
    if format > FORMAT {
        let told = format!("it has format {format} of a newer pailfs; this one knows {FORMAT}");
        return Err(Error::new(Kind::Unsupported, told));
    }
    if data.len() < HEADER_BYTES {
        return Ok(None);
    }
    let boot = u64_at(data, 20).unwrap_or(0);
    if data.get(..HEADER_BYTES) != Some(&header_of(format, number, boot)) {
        return Err(Error::new(Kind::Corrupt, "its header is damaged"));
    }
    Ok(Some(boot))
}

/// The frame of a record that goes to this offset of this segment, which is on the disk up to `synced`.
pub(super) fn encode(record: &Record, number: u64, offset: u64, synced: u64) -> Result<Vec<u8>> {
    let mut frame = vec![0; FRAME_HEAD_BYTES];
    serde_json::to_writer(&mut frame, record)
        .map_err(|e| Error::new(Kind::Internal, "a record cannot be written down").with_source(e))?;
    let record_len = frame.len() - FRAME_HEAD_BYTES;
    frame.extend_from_slice(record.bytes());
    let body_len = frame.len() - FRAME_HEAD_BYTES;
    let (Ok(body), Ok(head), true) =
        (u32::try_from(body_len), u32::try_from(record_len), body_len <= BODY_MAX_BYTES)
    else {
        return Err(Error::new(Kind::TooLarge, "a record of the journal holds 16 MiB at most"));
    };
    frame[..4].copy_from_slice(&FRAME_MARK);
    frame[4..8].copy_from_slice(&body.to_le_bytes());
    frame[8..12].copy_from_slice(&head.to_le_bytes());
    frame[16..24].copy_from_slice(&synced.to_le_bytes());
    let sum = frame_sum(&frame, number, offset);
    frame[12..16].copy_from_slice(&sum.to_le_bytes());
    Ok(frame)
}

/// A frame that is what it was when it was written.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) record: Record,
    /// Of the whole frame.
    pub(super) len: u64,
}

/// The frame that `data`, which is what the segment has from `offset` on, begins with. `None` where it is cut short or
/// not what was written; an error where it is, and says something unheard of.
pub(super) fn decode(data: &[u8], number: u64, offset: u64) -> Result<Option<Frame>> {
    let Some(frame) = whole_frame(data, number, offset) else { return Ok(None) };
    let record_len = u32_at(frame, 8).map_or(0, index);
    let body = &frame[FRAME_HEAD_BYTES..];
    let Some((record, beside)) = body.split_at_checked(record_len) else { return Ok(None) };
    let mut record = serde_json::from_slice(record).map_err(|e| {
        let told = format!("at byte {offset} it says something that this pailfs does not know");
        Error::new(Kind::Unsupported, told).with_source(e)
    })?;
    if let Record::Inlined { bytes, .. } | Record::KeptBytes { bytes, .. } = &mut record {
        *bytes = Bytes::copy_from_slice(beside);
    }
    Ok(Some(Frame { record, len: frame.len() as u64 }))
}

/// Of the good frames anywhere after a bad one: up to where they say the segment was on the disk. `None` where there is
/// no good one.
pub(super) fn synced_by_later_frames(data: &[u8], number: u64, bad: u64) -> Option<u64> {
    let mut synced = None;
    let mut at = index_of(bad) + 1;
    while let Some(rest) = data.get(at..)
        && let Some(skip) = rest.windows(FRAME_MARK.len()).position(|bytes| bytes == FRAME_MARK)
    {
        at += skip;
        match whole_frame(&data[at..], number, at as u64) {
            Some(frame) => {
                synced = synced.max(u64_at(frame, 16));
                at += frame.len();
            }
            None => at += 1,
        }
    }
    synced
}

fn whole_frame(data: &[u8], number: u64, offset: u64) -> Option<&[u8]> {
    if data.get(..4)? != FRAME_MARK {
        return None;
    }
    let body_len = index(u32_at(data, 4)?);
    if body_len > BODY_MAX_BYTES {
        return None;
    }
    let frame = data.get(..FRAME_HEAD_BYTES + body_len)?;
    (u32_at(frame, 12)? == frame_sum(frame, number, offset)).then_some(frame)
}

/// Of everything in a frame but the sum itself, and of where it is.
fn frame_sum(frame: &[u8], number: u64, offset: u64) -> u32 {
    crc32c(&[&number.to_le_bytes(), &offset.to_le_bytes(), &frame[..12], &frame[16..]])
}

fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    u32::try_from(digest.finalize()).unwrap_or(u32::MAX)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Of a place in data that is in memory.
pub(super) fn index_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Times as nanoseconds since 1970: exact, and none before it.
mod nanoseconds {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        to.serialize_u64(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        u64::deserialize(from).map(|nanos| UNIX_EPOCH + Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn inlined(bytes: &[u8]) -> Record {
        Record::Inlined {
            file: FileId(7),
            range: ByteRange::at(40, bytes.len() as u64).unwrap(),
            stamp: 3,
            at: UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
            bytes: Bytes::copy_from_slice(bytes),
        }
    }

    #[test]
    fn a_frame_is_read_back_and_no_bit_or_byte_of_it_may_differ() {
        let record = inlined(b"some bytes");
        let frame = encode(&record, 5, 1000, 900).unwrap();
        let back = decode(&frame, 5, 1000).unwrap().unwrap();
        assert_eq!((&back.record, back.len), (&record, frame.len() as u64));
        for len in 0..frame.len() {
            assert!(decode(&frame[..len], 5, 1000).unwrap().is_none(), "{len} bytes are no frame");
        }
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed, 5, 1000).unwrap().is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_elsewhere_is_none() {
        let frame = encode(&inlined(b"x"), 5, 1000, 0).unwrap();
        assert!(decode(&frame, 5, 1001).unwrap().is_none());
        assert!(decode(&frame, 6, 1000).unwrap().is_none());
        // A file that is a journal itself does not make its reader believe in frames.
        let outer = encode(&inlined(&frame), 5, 0, 0).unwrap();
        assert_eq!(synced_by_later_frames(&outer, 5, 0), None);
    }

    #[test]
    fn frames_after_a_bad_one_are_found() {
        let mut data = encode(&inlined(b"first"), 1, 0, 0).unwrap();
        let second = encode(&inlined(b"second"), 1, data.len() as u64, 11).unwrap();
        data.extend(&second);
        data[20] ^= 1;
        assert_eq!(synced_by_later_frames(&data, 1, 0), Some(11));
        data.truncate(data.len() - 1);
        assert_eq!(synced_by_later_frames(&data, 1, 0), None);
    }

    #[test]
    fn a_record_that_is_too_long_is_refused() {
        let error = encode(&inlined(&vec![0; BODY_MAX_BYTES]), 1, 0, 0).unwrap_err();
        assert_eq!(error.kind(), Kind::TooLarge);
    }

    #[test]
    fn a_header_tells_its_boot_and_a_newer_one_is_refused() {
        let mut data = header(9, 77);
        assert_eq!(data.len(), HEADER_BYTES);
        assert_eq!(read_header(&data, 9).unwrap(), Some(77));
        assert_eq!(read_header(&data[..HEADER_BYTES - 1], 9).unwrap(), None);
        assert_eq!(read_header(&data, 8).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(read_header(&header_of(1, 9, 77), 9).unwrap(), Some(77), "an older one is read");
        data[8] += 1;
        let error = read_header(&data, 9).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("newer"), "{error}");
    }
}
