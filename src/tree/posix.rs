//! POSIX attributes in an object's user metadata, in the dialects of those who write them. Pure.
//!
//! | | s3fs, geesefs, and rclone's `mtime` | FSx, DataSync | s3sync | Google |
//! |---|---|---|---|---|
//! | type, permissions | `mode` | `file-permissions`, octal | `permissions` | `goog-reserved-posix-mode`, octal |
//! | owner | `uid` | `file-owner` | `owner` | `goog-reserved-posix-uid` |
//! | group | `gid` | `file-group` | `group` | `goog-reserved-posix-gid` |
//! | modified | `mtime` | `file-mtime`, `N` + `ns` | | `goog-reserved-file-mtime`, seconds |
//! | read | `atime` | `file-atime`, `N` + `ns` | | `goog-reserved-file-atime`, seconds |
//! | changed | `ctime` | | | |
//! | device | `rdev` (geesefs) | | | |
//! | a symlink's target | the body; geesefs: `--symlink-target` | the body | | |
//!
//! Guarantees: reading believes the leftmost column that can be read, and a value that cannot be read says
//! nothing. Writing writes the first column, and the others where the object has them already, so that no two
//! columns contradict each other. What is in no column stays as it is.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::s3::Metadata;

const UIDS: &[&str] = &["uid", "file-owner", "owner", "goog-reserved-posix-uid"];
const GIDS: &[&str] = &["gid", "file-group", "group", "goog-reserved-posix-gid"];
const MODES: &[&str] = &["mode", "file-permissions", "permissions", "goog-reserved-posix-mode"];
const MTIMES: &[&str] = &["mtime", "file-mtime", "goog-reserved-file-mtime"];
const ATIMES: &[&str] = &["atime", "file-atime", "goog-reserved-file-atime"];
const CTIMES: &[&str] = &["ctime"];
const RDEVS: &[&str] = &["rdev"];
const TARGET: &str = "--symlink-target";
/// On a directory's marker: what is in the directory may have attributes of its own, so that it is worth asking.
pub const CARRIES: &str = "pailfs-children";
/// On an object that was made under the condition that nobody has its name: which request made it.
pub const MADE: &str = "pailfs-made";

/// s3sync's names are also anybody's words. They count where all three are there and can be read, which is
/// how s3sync writes them.
const S3SYNC: [&str; 3] = ["permissions", "owner", "group"];

const PERM_BITS: u32 = 0o7777;
const NANOS_PER_SEC: i128 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What user metadata says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Posix {
    pub file_type: Option<FileType>,
    /// Permissions with the setuid, setgid and sticky bits: at most 0o7777.
    pub perm: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<SystemTime>,
    pub atime: Option<SystemTime>,
    pub ctime: Option<SystemTime>,
    /// Only of devices.
    pub rdev: Option<u32>,
    /// Where a symlink leads, if the metadata itself says so (geesefs) and not the body.
    pub target: Option<Box<[u8]>>,
}

impl Posix {
    pub fn of(metadata: &Metadata) -> Self {
        let modes: Vec<_> = values(metadata, MODES).filter_map(|(key, text)| mode_from(key, text)).collect();
        let target = metadata.get(TARGET).map(|text| unescape(text)).filter(|target| !target.is_empty());
        // geesefs's symlinks may have no mode, or one that says nothing of the type.
        let file_type = match target {
            Some(_) => Some(FileType::Symlink),
            None => modes.iter().find_map(|(file_type, _)| *file_type),
        };
        let number = |keys| values(metadata, keys).find_map(|(_, text)| number_from(text));
        let time = |keys| values(metadata, keys).find_map(|(_, text)| time_from(text));
        Self {
            file_type,
            perm: modes.first().map(|(_, perm)| *perm),
            uid: number(UIDS),
            gid: number(GIDS),
            mtime: time(MTIMES),
            atime: time(ATIMES),
            ctime: time(CTIMES),
            rdev: number(RDEVS).filter(|_| file_type.is_some_and(FileType::is_device)),
            target: target.map(Vec::into_boxed_slice),
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether there is a time of modification that can be read.
pub fn says_mtime(metadata: &Metadata) -> bool {
    // Asked at every write, of files that mostly have none.
    MTIMES.iter().any(|key| metadata.contains_key(*key)) && Posix::of(metadata).mtime.is_some()
}

/// Takes the time of modification away, in every dialect: the bytes are others now, and S3 dates them.
pub fn forget_mtime(metadata: &mut Metadata) {
    for key in MTIMES {
        metadata.remove(*key);
    }
}

/// Writes all that is `Some`, in s3fs's dialect and in every other that the object has for the same fact.
/// `None` leaves what is there.
///
/// `mode` holds type and permissions as one number. If only one of them is given, the other stays as the
/// metadata has it; where there is none, a type goes with the permissions that such a file has by custom, and
/// permissions with no type. A target is only written where it is in the metadata already: in s3fs's dialect
/// it is the body.
pub fn write(metadata: &mut Metadata, posix: &Posix) {
    let before = Posix::of(metadata);
    let file_type = posix.file_type.or(before.file_type);
    if posix.file_type.is_some() || posix.perm.is_some() {
        let perm = posix.perm.or(before.perm).or(file_type.map(FileType::customary_perm)).unwrap_or(0);
        put(metadata, MODES, |key, old| mode_text(key, old, file_type, perm));
    }
    for (keys, number) in [(UIDS, posix.uid), (GIDS, posix.gid)] {
        if let Some(number) = number {
            put(metadata, keys, |_, _| number.to_string());
        }
    }
    for (keys, time) in [(MTIMES, posix.mtime), (ATIMES, posix.atime), (CTIMES, posix.ctime)] {
        if let Some(time) = time {
            put(metadata, keys, |key, _| time_text(key, time));
        }
    }
    if let Some(rdev) = posix.rdev.filter(|_| file_type.is_some_and(FileType::is_device)) {
        put(metadata, RDEVS, |_, _| rdev.to_string());
    }
    if posix.file_type.is_some_and(|file_type| file_type != FileType::Symlink) {
        // geesefs would go on taking it for a symlink.
        metadata.remove(TARGET);
    }
    if let (Some(target), Some(text)) = (&posix.target, metadata.get_mut(TARGET)) {
        *text = escape(target);
    }
}

/// Whether a key of this metadata is one of those that [`Posix`] stands for.
pub fn is_attribute(metadata: &Metadata, key: &str) -> bool {
    let known = [UIDS, GIDS, MODES, MTIMES, ATIMES, CTIMES, RDEVS, &[TARGET]];
    known.iter().any(|keys| keys.contains(&key)) && (!S3SYNC.contains(&key) || is_of_s3sync(metadata))
}

/// Whether it depends on its value and on other keys if [`is_attribute`] says that this key is one.
pub(super) fn may_be_attribute(key: &str) -> bool {
    S3SYNC.contains(&key)
}

impl FileType {
    pub fn is_device(self) -> bool {
        matches!(self, Self::CharDevice | Self::BlockDevice)
    }

    /// As in `st_mode`.
    fn bits(self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    fn of_bits(bits: u32) -> Option<Self> {
        use FileType::*;
        [Regular, Directory, Symlink, Fifo, Socket, CharDevice, BlockDevice]
            .into_iter()
            .find(|file_type| file_type.bits() == bits)
    }

    fn customary_perm(self) -> u16 {
        match self {
            Self::Directory => 0o755,
            Self::Symlink => 0o777,
            _ => 0o644,
        }
    }
}

/// geesefs's escaping: `%` and what is not printable as `%XX`; spaces too where HTTP would drop them.
pub(super) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        let at_an_end = at == 0 || at + 1 == bytes.len();
        match *byte {
            b'!'..=b'~' if *byte != b'%' => text.push(char::from(*byte)),
            b' ' if !at_an_end => text.push(' '),
            byte => write!(text, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    text
}

/// Takes [`escape`] back. A `%` that begins no escape is itself.
pub(super) fn unescape(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(text).collect()
}

/// The keys of one fact that the metadata has, in the order in which they are believed.
fn values<'a>(metadata: &'a Metadata, keys: &'a [&'a str]) -> impl Iterator<Item = (&'a str, &'a str)> {
    keys.iter()
        .filter(move |key| is_attribute(metadata, key))
        .filter_map(move |key| metadata.get(*key).map(|text| (*key, text.as_str())))
}

fn put(metadata: &mut Metadata, keys: &[&str], text: impl Fn(&str, &str) -> String) {
    for key in &keys[1..] {
        if is_attribute(metadata, key)
            && let Some(value) = metadata.get_mut(*key)
        {
            *value = text(key, value);
        }
    }
    metadata.insert(keys[0].to_owned(), text(keys[0], ""));
}

fn is_of_s3sync(metadata: &Metadata) -> bool {
    S3SYNC.iter().all(|key| {
        metadata.get(*key).is_some_and(|text| match *key {
            "permissions" => mode_from(key, text).is_some(),
            _ => number_from(text).is_some(),
        })
    })
}

/// The type, if the number has one, and the permissions.
fn mode_from(key: &str, text: &str) -> Option<(Option<FileType>, u16)> {
    let octal = || digits(text.trim(), 8).and_then(type_and_perm);
    match key {
        "file-permissions" | "goog-reserved-posix-mode" => octal(),
        // `rclone --metadata` writes octal digits without a leading zero. As decimal numbers those of files
        // and of most directories (100644, 40755) are no mode at all, so nothing else can be meant.
        _ => number_from(text).and_then(type_and_perm).or_else(|| octal().filter(|(t, _)| is_of_rclone(*t))),
    }
}

/// Whether rclone copies such a file.
fn is_of_rclone(file_type: Option<FileType>) -> bool {
    matches!(file_type, Some(FileType::Regular | FileType::Directory | FileType::Symlink))
}

fn type_and_perm(mode: u32) -> Option<(Option<FileType>, u16)> {
    let file_type = match mode & !PERM_BITS {
        0 => None,
        bits => Some(FileType::of_bits(bits)?),
    };
    Some((file_type, u16::try_from(mode & PERM_BITS).ok()?))
}

fn mode_text(key: &str, old: &str, file_type: Option<FileType>, perm: u16) -> String {
    let perm = u32::from(perm) & PERM_BITS;
    let mode = file_type.map_or(0, FileType::bits) | perm;
    match key {
        // Three digits of type and four of permissions.
        "file-permissions" => format!("{mode:07o}"),
        // Google's tools keep no type here.
        "goog-reserved-posix-mode" => format!("{perm:03o}"),
        // Written in either base, and read by the leading zero.
        "permissions" if old.trim().starts_with('0') => format!("0{mode:o}"),
        _ => mode.to_string(),
    }
}

/// A number as C's `strtol` with base 0 reads it, which is what s3fs and geesefs do: `0100644` is octal.
fn number_from(text: &str) -> Option<u32> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return digits(hex, 16);
    }
    digits(text, if text.starts_with('0') { 8 } else { 10 })
}

/// Digits alone: the standard library would take a sign as well.
fn digits(text: &str, radix: u32) -> Option<u32> {
    let all_are = text.chars().all(|c| c.is_digit(radix));
    u32::from_str_radix(text, radix).ok().filter(|_| all_are)
}

/// Seconds, seconds with a fraction, or nanoseconds with `ns` at the end.
///
/// A fraction of nine digits is `tv_nsec` behind `tv_sec`, as s3fs writes it: `-2.500000000` is half a second
/// after -2, -1.5. A shorter one is rclone's, a plain decimal number without its last zeros: `-1.5`. What
/// begins with `-0` is no `tv_sec`, so it is a decimal number too.
fn time_from(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let (is_negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let number = |text: &str| {
        let all_are = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i128>().ok().filter(|_| all_are)
    };
    let signed = |nanos: i128| if is_negative { -nanos } else { nanos };
    if let Some(nanos) = unsigned.strip_suffix("ns") {
        return time_at(signed(number(nanos)?));
    }
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let seconds = number(whole)?.checked_mul(NANOS_PER_SEC)?;
    number(fraction)?;
    let nanos = number(&format!("{fraction:0<9}")[..9])?;
    if fraction.len() == 9 && seconds != 0 {
        return time_at(signed(seconds).checked_add(nanos)?);
    }
    time_at(signed(seconds.checked_add(nanos)?))
}

fn time_text(key: &str, time: SystemTime) -> String {
    let nanos = nanos_of(time);
    let (seconds, below) = (nanos.div_euclid(NANOS_PER_SEC), nanos.rem_euclid(NANOS_PER_SEC));
    if key.starts_with("goog-") || (below == 0 && !key.starts_with("file-")) {
        return seconds.to_string();
    }
    if key.starts_with("file-") {
        return format!("{nanos}ns");
    }
    // Always nine digits: s3fs reads what is behind the point as a number of nanoseconds.
    format!("{seconds}.{below:09}")
}

fn nanos_of(time: SystemTime) -> i128 {
    let signed = |duration: Duration| i128::try_from(duration.as_nanos()).expect("64 bits of seconds fit");
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => signed(after),
        Err(before) => -signed(before.duration()),
    }
}

fn time_at(nanos: i128) -> Option<SystemTime> {
    let seconds = i64::try_from(nanos.div_euclid(NANOS_PER_SEC)).ok()?;
    let below = u64::try_from(nanos.rem_euclid(NANOS_PER_SEC)).ok()?;
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    whole?.checked_add(Duration::from_nanos(below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::option;
    use proptest::prelude::*;

    const DIALECTS: [&[&str]; 4] = [
        &["mode", "uid", "gid", "mtime", "atime", "ctime", "rdev"],
        &["file-permissions", "file-owner", "file-group", "file-mtime", "file-atime"],
        &S3SYNC,
        &[
            "goog-reserved-posix-mode",
            "goog-reserved-posix-uid",
            "goog-reserved-posix-gid",
            "goog-reserved-file-mtime",
            "goog-reserved-file-atime",
        ],
    ];

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn at(seconds: i64, nanos: u32) -> SystemTime {
        time_at(i128::from(seconds) * NANOS_PER_SEC + i128::from(nanos))
            .expect("Linux has 64 bits of seconds")
    }

    fn types() -> impl Strategy<Value = FileType> {
        use FileType::*;
        proptest::sample::select(vec![Regular, Directory, Symlink, Fifo, Socket, CharDevice, BlockDevice])
    }

    fn times() -> impl Strategy<Value = SystemTime> {
        let seconds = prop_oneof![
            Just(i64::MIN),
            Just(i64::MAX),
            any::<i64>(),
            -5_000_000_000i64..10_000_000_000,
            -3i64..3,
        ];
        let nanos = prop_oneof![Just(0u32), Just(500_000_000), 0u32..1_000_000_000];
        (seconds, nanos).prop_map(|(seconds, nanos)| at(seconds, nanos))
    }

    /// Attributes as a file can have them: with a type go permissions, and a device number with a device.
    fn attributes() -> impl Strategy<Value = Posix> {
        let ids = (option::of(any::<u32>()), option::of(any::<u32>()), option::of(any::<u32>()));
        let three = (option::of(times()), option::of(times()), option::of(times()));
        (option::of(types()), option::of(0u16..=0o7777), ids, three).prop_map(
            |(file_type, perm, (uid, gid, rdev), (mtime, atime, ctime))| Posix {
                file_type,
                perm: perm.or(file_type.map(|_| 0)),
                uid,
                gid,
                mtime,
                atime,
                ctime,
                rdev: rdev.filter(|_| file_type.is_some_and(FileType::is_device)),
                target: None,
            },
        )
    }

    fn texts() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "0?[0-7]{1,7}|-?[0-9]{1,20}([.][0-9]{0,12})?(ns)?",
            1 => "[-+0-9.exns %]{0,12}",
            1 => any::<String>(),
        ]
    }

    /// Metadata with keys of every dialect, right or wrong, and with keys of none.
    fn foreign() -> impl Strategy<Value = Metadata> {
        let keys: Vec<&str> =
            DIALECTS.concat().into_iter().chain([TARGET, "xattr", "foo", "file-name"]).collect();
        proptest::collection::btree_map(
            proptest::sample::select(keys).prop_map(str::to_owned),
            texts(),
            0..22,
        )
    }

    fn laid_over(newer: &Posix, older: &Posix) -> Posix {
        let file_type = newer.file_type.or(older.file_type);
        let is_device = file_type.is_some_and(FileType::is_device);
        Posix {
            file_type,
            perm: newer.perm.or(older.perm),
            uid: newer.uid.or(older.uid),
            gid: newer.gid.or(older.gid),
            mtime: newer.mtime.or(older.mtime),
            atime: newer.atime.or(older.atime),
            ctime: newer.ctime.or(older.ctime),
            rdev: newer.rdev.or(older.rdev).filter(|_| is_device),
            target: older.target.clone().filter(|_| file_type == Some(FileType::Symlink)),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(posix in attributes()) {
            let mut object = Metadata::new();
            write(&mut object, &posix);
            prop_assert_eq!(Posix::of(&object), posix.clone());
            prop_assert_eq!(object.is_empty(), posix.is_empty());
        }

        #[test]
        fn what_is_written_lies_over_what_was_there(object in foreign(), posix in attributes()) {
            let mut after = object.clone();
            write(&mut after, &posix);
            // A device that was something else before may have a number from then.
            let mut expected = laid_over(&posix, &Posix::of(&object));
            let mut found = Posix::of(&after);
            if posix.rdev.is_none() {
                (expected.rdev, found.rdev) = (None, None);
            }
            prop_assert_eq!(found, expected);

            let once = after.clone();
            write(&mut after, &posix);
            prop_assert_eq!(&after, &once);
            for (key, value) in &object {
                prop_assert!(key == TARGET || after.contains_key(key));
                if !is_attribute(&object, key) {
                    prop_assert!(after.get(key) == Some(value), "{key} was {value}");
                }
            }
        }

        #[test]
        fn each_dialect_says_the_same(posix in attributes(), present in 1usize..8) {
            let mut object = metadata(&[("foo", "bar")]);
            let is_present = |(at, _): &(usize, &&[&str])| present >> (at - 1) & 1 == 1;
            for (_, dialect) in DIALECTS.iter().enumerate().skip(1).filter(is_present) {
                object.extend(dialect.iter().map(|key| ((*key).to_owned(), "0".to_owned())));
            }
            let all = Posix { perm: Some(posix.perm.unwrap_or(0o640)), uid: Some(7), gid: Some(0), ..posix };
            write(&mut object, &all);
            for (at, dialect) in DIALECTS.iter().enumerate().skip(1).filter(is_present) {
                let mut alone = object.clone();
                alone.retain(|key, _| dialect.contains(&key.as_str()));
                let read = Posix::of(&alone);
                prop_assert_eq!((read.perm, read.uid, read.gid), (all.perm, all.uid, all.gid));
                if at != 3 {
                    prop_assert_eq!(read.file_type, all.file_type);
                }
                // Google's has seconds only.
                let cut = |time: SystemTime| {
                    let below = if at == 3 { nanos_of(time).rem_euclid(NANOS_PER_SEC) } else { 0 };
                    time_at(nanos_of(time) - below).unwrap()
                };
                if let (Some(mtime), true) = (all.mtime, at != 2) {
                    prop_assert_eq!(read.mtime, Some(cut(mtime)));
                }
                if let (Some(atime), true) = (all.atime, at != 2) {
                    prop_assert_eq!(read.atime, Some(cut(atime)));
                }
            }
        }

        #[test]
        fn nothing_panics(object in foreign(), key in any::<String>(), value in any::<String>(), posix in attributes()) {
            let mut object = object;
            object.insert(key.clone(), value);
            let said = Posix::of(&object);
            is_attribute(&object, &key);
            says_mtime(&object);
            write(&mut object, &posix);
            write(&mut object, &said);
            forget_mtime(&mut object);
            Posix::of(&object);
        }

        #[test]
        fn escapes_come_back(bytes in any::<Vec<u8>>()) {
            let text = escape(&bytes);
            prop_assert_eq!(unescape(&text), bytes);
            prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && text.trim() == text);
        }

        #[test]
        fn fractions_are_read_as_their_writer_means_them(
            seconds in -1_000i64..1_000,
            nanos in 0u32..1_000_000_000,
        ) {
            let time = at(seconds, nanos);
            // s3fs: tv_sec, and tv_nsec where it is not zero.
            let s3fs = if nanos == 0 { seconds.to_string() } else { format!("{seconds}.{nanos:09}") };
            prop_assert_eq!(time_from(&s3fs), Some(time));
            prop_assert_eq!(time_text("mtime", time), s3fs);
            // rclone: a decimal number without the zeros at its end.
            let all = nanos_of(time).unsigned_abs();
            let sign = if nanos_of(time) < 0 { "-" } else { "" };
            let fraction = format!("{:09}", all % 1_000_000_000);
            let (whole, fraction) = (all / 1_000_000_000, fraction.trim_end_matches('0'));
            let point = if fraction.is_empty() { "" } else { "." };
            let rclone = format!("{sign}{whole}{point}{fraction}");
            let is_s3fs_s = whole > 0 && fraction.len() == 9 && !sign.is_empty();
            prop_assert!(is_s3fs_s || time_from(&rclone) == Some(time), "{rclone}");
        }
    }

    #[test]
    fn what_others_write_is_understood() {
        use FileType::*;
        let mode = |pairs: &[(&str, &str)]| {
            let posix = Posix::of(&metadata(pairs));
            (posix.file_type, posix.perm)
        };
        assert_eq!(mode(&[("mode", "33188")]), (Some(Regular), Some(0o644)));
        assert_eq!(mode(&[("mode", "16877")]), (Some(Directory), Some(0o755)));
        assert_eq!(mode(&[("mode", "41471")]), (Some(Symlink), Some(0o777)));
        assert_eq!(mode(&[("mode", "0100644")]), (Some(Regular), Some(0o644)));
        assert_eq!(mode(&[("mode", "0x81a4")]), (Some(Regular), Some(0o644)));
        assert_eq!(mode(&[("mode", "420")]), (None, Some(0o644)));
        // rclone --metadata.
        assert_eq!(mode(&[("mode", "100644")]), (Some(Regular), Some(0o644)));
        assert_eq!(mode(&[("mode", "40755")]), (Some(Directory), Some(0o755)));
        for wrong in ["", "-1", "+5", "rw-r--r--", "0999", "65536", "4294967297", "0x", "12288"] {
            assert_eq!(mode(&[("mode", wrong)]), (None, None), "{wrong}");
        }
        assert_eq!(mode(&[("file-permissions", "0100664")]), (Some(Regular), Some(0o664)));
        assert_eq!(mode(&[("file-permissions", "0040755")]), (Some(Directory), Some(0o755)));
        assert_eq!(mode(&[("goog-reserved-posix-mode", "644")]), (None, Some(0o644)));
        // The first that can be read, and the type from who knows one.
        assert_eq!(mode(&[("mode", "?"), ("file-permissions", "0100600")]), (Some(Regular), Some(0o600)));
        assert_eq!(mode(&[("mode", "448"), ("file-permissions", "0040755")]), (Some(Directory), Some(0o700)));
        let s3sync = [("permissions", "33261"), ("owner", "1000"), ("group", "100")];
        assert_eq!(mode(&s3sync), (Some(Regular), Some(0o755)));
        assert_eq!(Posix::of(&metadata(&s3sync)).uid, Some(1000));
        // Anybody's words.
        assert!(Posix::of(&metadata(&[("owner", "1000"), ("group", "5")])).is_empty());

        let time = |key, text| {
            let posix = Posix::of(&metadata(&[(key, text)]));
            posix.mtime.or(posix.atime).or(posix.ctime)
        };
        assert_eq!(time("mtime", "1700000000"), Some(at(1_700_000_000, 0)));
        assert_eq!(time("mtime", "1700000000.5"), Some(at(1_700_000_000, 500_000_000)));
        assert_eq!(time("mtime", "1700000000.000000005"), Some(at(1_700_000_000, 5)));
        assert_eq!(time("ctime", "1700000000.12345678901"), Some(at(1_700_000_000, 123_456_789)));
        assert_eq!(time("mtime", "-2.500000000"), Some(at(-2, 500_000_000)));
        assert_eq!(time("mtime", "-1.5"), Some(at(-2, 500_000_000)));
        assert_eq!(time("mtime", "-0.500000000"), Some(at(-1, 500_000_000)));
        assert_eq!(time("atime", "20000000000"), Some(at(20_000_000_000, 0)));
        assert_eq!(time("file-mtime", "1595002920000000001ns"), Some(at(1_595_002_920, 1)));
        assert_eq!(time("file-atime", "-1ns"), Some(at(-1, 999_999_999)));
        assert_eq!(time("goog-reserved-file-mtime", "1700000000"), Some(at(1_700_000_000, 0)));
        for wrong in [
            "",
            "-",
            ".",
            "1.",
            ".5",
            "1e9",
            "ns",
            "--1",
            "1.-5",
            "2023-11-14T22:13:20Z",
            "9223372036854775808",
        ] {
            assert_eq!(time("mtime", wrong), None, "{wrong}");
        }

        let symlink = Posix::of(&metadata(&[(TARGET, "a%20%25%FF")]));
        assert_eq!(symlink.file_type, Some(Symlink));
        assert_eq!(symlink.target.as_deref(), Some(&b"a %\xff"[..]));
        let device = metadata(&[("mode", "8612"), ("rdev", "259")]);
        assert_eq!(Posix::of(&device).rdev, Some(259));
        assert_eq!(Posix::of(&metadata(&[("mode", "33188"), ("rdev", "259")])).rdev, None);
    }

    #[test]
    fn every_dialect_is_written_as_its_readers_want_it() {
        let mut object = metadata(&[
            ("file-permissions", "0100664"),
            ("file-owner", "500"),
            ("file-mtime", "1595002920000000000ns"),
            ("goog-reserved-posix-mode", "664"),
            ("goog-reserved-file-mtime", "1595002920"),
            ("owner", "alice"),
            ("permissions", "0644"),
            ("mtime", "1595002920.5"),
            ("title", "unknown"),
        ]);
        let posix = Posix {
            file_type: Some(FileType::Regular),
            perm: Some(0o600),
            uid: Some(1000),
            gid: Some(1000),
            mtime: Some(at(-2, 500_000_000)),
            ctime: Some(at(1_700_000_000, 0)),
            ..Posix::default()
        };
        write(&mut object, &posix);
        let expected = metadata(&[
            ("ctime", "1700000000"),
            ("file-mtime", "-1500000000ns"),
            ("file-owner", "1000"),
            ("file-permissions", "0100600"),
            ("gid", "1000"),
            ("goog-reserved-file-mtime", "-2"),
            ("goog-reserved-posix-mode", "600"),
            ("mode", "33152"),
            ("mtime", "-2.500000000"),
            ("owner", "alice"),
            ("permissions", "0644"),
            ("title", "unknown"),
            ("uid", "1000"),
        ]);
        assert_eq!(object, expected);

        let mut object = metadata(&[("permissions", "0644"), ("owner", "1"), ("group", "2")]);
        write(&mut object, &posix);
        assert_eq!(object["permissions"], "0100600");
        assert_eq!(object["owner"], "1000");

        // geesefs's symlink, led elsewhere and then replaced by a file.
        let mut object = metadata(&[(TARGET, "there")]);
        let target = Some(Box::from(&b"else where%"[..]));
        write(&mut object, &Posix { perm: Some(0o777), target, ..Posix::default() });
        assert_eq!(object, metadata(&[("mode", "41471"), (TARGET, "else where%25")]));
        write(&mut object, &Posix { file_type: Some(FileType::Regular), ..Posix::default() });
        assert_eq!(object, metadata(&[("mode", "33279")]));

        // Half of a mode keeps the other half.
        let mut object = metadata(&[("mode", "16877")]);
        write(&mut object, &Posix { perm: Some(0o1777), ..Posix::default() });
        assert_eq!(object["mode"], 0o041_777.to_string());
        write(&mut object, &Posix { file_type: Some(FileType::Fifo), ..Posix::default() });
        assert_eq!(object["mode"], 0o011_777.to_string());
        let mut object = Metadata::new();
        write(&mut object, &Posix { file_type: Some(FileType::Symlink), ..Posix::default() });
        assert_eq!(object, metadata(&[("mode", "41471")]));
    }
}
