//! Extended attributes of an object in its user metadata. Pure.
//!
//! An attribute is in one of two places:
//!
//! - In the *blob*, the key `xattr` as s3fs writes it: a URL-encoded JSON object from names to base64 values,
//!   `{"user.x":"aGk="}`.
//! - As a *plain* key: `foo` is `user.foo`, its value %-escaped, which is how geesefs shows and keeps them.
//!   So metadata that any S3 tool has set is visible. Keys that [`posix`](super::posix) stands for, those of
//!   this program (`pailfs-...`) and the blob itself are no attributes.
//!
//! Of a name that is in both, the blob's value counts. A new name goes into the blob; a name that has a plain
//! key stays there as long as the value fits.
//!
//! Guarantees: only names in `user.` are shown and changed; others in a foreign blob are kept. A blob that is
//! not of this form is kept as it is, shows nothing, and refuses new names. Whatever is refused has changed
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::posix::{escape, is_attribute, may_be_attribute, unescape};
use crate::s3::{Metadata, limits};

/// The longest name that Linux has, in bytes (`XATTR_NAME_MAX`).
pub const NAME_MAX: usize = 255;

const NAMESPACE: &str = "user.";
const BLOB: &str = "xattr";
const OURS: &str = "pailfs-";

/// What s3fs leaves unescaped besides letters and digits.
const URL: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Reads base64 with and without padding. It is written with padding: s3fs counts on it.
const TOLERANT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why an attribute was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not in the namespace `user.`: EOPNOTSUPP.
    NotUser,
    /// Empty after `user.`, longer than [`NAME_MAX`], or with a NUL: EINVAL, or ERANGE as the kernel has it.
    BadName,
    /// The value has no room even in metadata that holds nothing else: E2BIG.
    TooBig,
    /// The value has no room beside what is there: ENOSPC.
    NoRoom,
    /// The object's `xattr` metadata is not of the form that is known here, and would be lost: EIO.
    NotUnderstood,
}

/// Names of all attributes, with their `user.`, sorted.
pub fn names(metadata: &Metadata) -> Vec<String> {
    let mut names: BTreeSet<String> = metadata.keys().filter_map(|key| plain_name(metadata, key)).collect();
    if let Some(blob) = Blob::of(metadata) {
        names.extend(blob.0.keys().filter(|name| blob.value(name).is_some()).cloned());
    }
    names.into_iter().collect()
}

pub fn get(metadata: &Metadata, name: &str) -> Option<Vec<u8>> {
    let in_blob = Blob::of(metadata).and_then(|blob| blob.value(name));
    in_blob.or_else(|| plain_keys(metadata, name).first().map(|key| unescape(&metadata[key])))
}

/// Gives an attribute a value, new or not.
pub fn set(metadata: &mut Metadata, name: &str, value: &[u8]) -> Result<(), Refusal> {
    check_name(name)?;
    let keys = plain_keys(metadata, name);
    let mut smallest = usize::MAX;
    for changed in [in_plain_key(metadata, &keys, name, value), in_blob(metadata, &keys, name, value)] {
        let Some((changed, alone)) = changed else { continue };
        // A server with a larger limit may hold more already.
        if fits(&changed) || size(&changed) <= size(metadata) {
            *metadata = changed;
            return Ok(());
        }
        smallest = smallest.min(alone);
    }
    Err(match smallest {
        usize::MAX => Refusal::NotUnderstood,
        _ if smallest > limits::METADATA_MAX => Refusal::TooBig,
        _ => Refusal::NoRoom,
    })
}

/// Takes an attribute away; false where there was none of that name.
pub fn remove(metadata: &mut Metadata, name: &str) -> bool {
    let mut was_there = false;
    for key in plain_keys(metadata, name) {
        was_there |= metadata.remove(&key).is_some();
    }
    if let Some(mut blob) = Blob::of(metadata)
        && blob.value(name).is_some()
    {
        blob.0.remove(name);
        blob.store(metadata);
        was_there = true;
    }
    was_there
}

/// Whether S3 takes this metadata.
pub fn fits(metadata: &Metadata) -> bool {
    size(metadata) <= limits::METADATA_MAX
}

/// Bytes of the metadata as S3 counts them: "the sum of the number of bytes in the UTF-8 encoding of each key
/// and value" (S3 user guide, "Working with object metadata"), keys without `x-amz-meta-`.
pub fn size(metadata: &Metadata) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// The metadata with the value in the plain key that the name has, and how large that key is by itself.
/// `None` where there is no such key or the value cannot be there.
fn in_plain_key(metadata: &Metadata, keys: &[String], name: &str, value: &[u8]) -> Option<(Metadata, usize)> {
    // An empty header is lost on some servers. A name that `posix` might take for its own has to move away.
    let key = keys.first().filter(|key| !value.is_empty() && !may_be_attribute(key))?;
    let mut changed = metadata.clone();
    changed.insert(key.clone(), escape(value));
    if let Some(mut blob) = Blob::of(&changed)
        && blob.0.remove(name).is_some()
    {
        blob.store(&mut changed);
    }
    let alone = key.len() + changed[key].len();
    Some((changed, alone))
}

/// The same with the value in the blob, and no plain key.
fn in_blob(metadata: &Metadata, keys: &[String], name: &str, value: &[u8]) -> Option<(Metadata, usize)> {
    let mut blob = Blob::of(metadata)?;
    let entry = (name.to_owned(), STANDARD.encode(value));
    let mut alone = Metadata::new();
    Blob(BTreeMap::from([entry.clone()])).store(&mut alone);
    blob.0.extend([entry]);
    let mut changed = metadata.clone();
    changed.retain(|key, _| !keys.contains(key));
    blob.store(&mut changed);
    Some((changed, size(&alone)))
}

/// The plain keys that are shown under a name; the first one's value counts. There are several where one of
/// them is escaped: `a-b` and `a%2db`.
fn plain_keys(metadata: &Metadata, name: &str) -> Vec<String> {
    metadata.keys().filter(|key| plain_name(metadata, key).as_deref() == Some(name)).cloned().collect()
}

/// The name of a plain key.
fn plain_name(metadata: &Metadata, key: &str) -> Option<String> {
    if key == BLOB || key.starts_with(OURS) || is_attribute(metadata, key) {
        return None;
    }
    let unescaped = String::from_utf8(unescape(key)).map(|name| format!("{NAMESPACE}{name}"));
    let names = [unescaped.unwrap_or_default(), format!("{NAMESPACE}{key}")];
    names.into_iter().find(|name| check_name(name).is_ok())
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let rest = name.strip_prefix(NAMESPACE).ok_or(Refusal::NotUser)?;
    if rest.is_empty() || name.len() > NAME_MAX || rest.contains('\0') {
        return Err(Refusal::BadName);
    }
    Ok(())
}

/// The blob: names of any namespace, and their values as base64.
struct Blob(BTreeMap<String, String>);

impl Blob {
    /// Empty where there is none; `None` where it is not of the form that is known here.
    fn of(metadata: &Metadata) -> Option<Self> {
        let text = metadata.get(BLOB).map_or("", String::as_str);
        if text.is_empty() {
            return Some(Self(BTreeMap::new()));
        }
        let json: Vec<u8> = percent_decode_str(text).collect();
        serde_json::from_slice(&json).ok().map(Self)
    }

    /// A shown attribute's value.
    fn value(&self, name: &str) -> Option<Vec<u8>> {
        check_name(name).ok()?;
        TOLERANT.decode(self.0.get(name)?).ok()
    }

    fn store(&self, metadata: &mut Metadata) {
        if self.0.is_empty() {
            metadata.remove(BLOB);
            return;
        }
        let pairs: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{}:{}", quoted(name), quoted(value))).collect();
        let json = format!("{{{}}}", pairs.join(","));
        metadata.insert(BLOB.to_owned(), utf8_percent_encode(&json, &URL).to_string());
    }
}

/// A JSON string. s3fs cuts its JSON at every comma, colon and quote without knowing escapes: those are
/// written as `\u002c`, which s3fs takes for a part of the name and keeps.
fn quoted(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | ',' | ':' | '\0'..='\x1f' => {
                write!(json, "\\u{:04x}", u32::from(c)).expect("a string takes everything");
            }
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotUser => "only extended attributes in `user.` can be set",
            Self::BadName => "the name of an extended attribute is `user.` and 1 to 250 bytes without NUL",
            Self::TooBig => {
                "S3 keeps 2,048 bytes of metadata with an object, and this value alone needs more"
            }
            Self::NoRoom => {
                "S3 keeps 2,048 bytes of metadata with an object, and there is no room for this value"
            }
            Self::NotUnderstood => {
                "the object's x-amz-meta-xattr is not in s3fs's form, and changing it would destroy it"
            }
        })
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Model = BTreeMap<String, Vec<u8>>;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn model_of(object: &Metadata) -> Model {
        names(object)
            .into_iter()
            .map(|name| (name.clone(), get(object, &name).expect("it was listed")))
            .collect()
    }

    /// What is no attribute of `user.`, and so must never change: metadata, and the rest of the blob.
    fn others(object: &Metadata) -> (Metadata, BTreeMap<String, String>) {
        let mut rest = object.clone();
        rest.retain(|key, _| plain_name(object, key).is_none());
        match Blob::of(object) {
            Some(mut blob) => {
                rest.remove(BLOB);
                blob.0.retain(|name, _| !name.starts_with(NAMESPACE));
                (rest, blob.0)
            }
            None => (rest, BTreeMap::new()),
        }
    }

    fn some_names() -> impl Strategy<Value = String> {
        let names = [
            "user.foo",
            "user.a-b",
            "user.mode",
            "user.owner",
            "user.permissions",
            "user.group",
            "user.pailfs-x",
            "user.xattr",
            "user.new",
            "user.New",
            "user.a,b:\"c\\{}\n\t%",
            "user.größe",
            "user. ",
            "user.",
            "trusted.x",
            "system.posix_acl_access",
            "nothing",
            "user.\0",
        ];
        prop_oneof![
            8 => proptest::sample::select(names.to_vec()).prop_map(str::to_owned),
            1 => any::<String>().prop_map(|name| format!("user.{name}")),
            1 => Just(format!("user.{}", "n".repeat(251))),
        ]
    }

    fn values() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(Vec::new()),
            "[a-z %0-9]{1,20}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..60),
            (200usize..2_200).prop_map(|n| vec![b'x'; n]),
        ]
    }

    /// Objects of others: plain keys, blobs with other namespaces, blobs that are none.
    fn objects() -> impl Strategy<Value = Metadata> {
        let keys = [
            "foo",
            "a-b",
            "a%2db",
            "mode",
            "mtime",
            "owner",
            "permissions",
            "group",
            "pailfs-x",
            "gr%c3%b6%c3%9fe",
            "%ff",
            "%00",
            "new",
            "file-owner",
            "--symlink-target",
            "",
        ];
        let plain = proptest::collection::btree_map(
            proptest::sample::select(keys.to_vec()).prop_map(str::to_owned),
            prop_oneof!["[0-9]{1,4}", "[ -~]{0,12}", any::<String>()],
            0..10,
        );
        let names = ["user.foo", "user.new", "user.", "trusted.x", "system.posix_acl_access", "com.apple.x"];
        let base64 = values().prop_map(|value| STANDARD.encode(&value[..value.len().min(60)]));
        let entries = proptest::collection::btree_map(
            proptest::sample::select(names.to_vec()).prop_map(str::to_owned),
            prop_oneof![4 => base64, 1 => any::<String>()],
            0..5,
        );
        let known = entries.prop_map(|entries| {
            let mut object = Metadata::new();
            Blob(entries).store(&mut object);
            object.remove(BLOB)
        });
        let unknown = prop_oneof![
            any::<String>(),
            Just("hello".to_owned()),
            Just("{\"user.a\":1}".to_owned()),
            Just("{\"user.a\":\"YQ==\"".to_owned()),
            Just("%FF".to_owned()),
        ];
        let blob = prop_oneof![4 => known, 1 => unknown.prop_map(Some)];
        (plain, blob).prop_map(|(mut object, blob)| {
            object.extend(blob.map(|blob| (BLOB.to_owned(), blob)));
            object
        })
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(String, Vec<u8>),
        Remove(String),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            3 => (some_names(), values()).prop_map(|(name, value)| Op::Set(name, value)),
            1 => some_names().prop_map(Op::Remove),
        ];
        proptest::collection::vec(op, 1..20)
    }

    proptest! {
        #[test]
        fn attributes_are_a_map_and_the_rest_stays(object in objects(), ops in ops()) {
            let mut object = object;
            let mut model = model_of(&object);
            let untouched = others(&object);
            for op in ops {
                let before = object.clone();
                match op {
                    Op::Set(name, value) => match set(&mut object, &name, &value) {
                        Ok(()) => {
                            prop_assert!(fits(&object) || size(&object) <= size(&before));
                            model.insert(name, value);
                        }
                        Err(refusal) => {
                            prop_assert_eq!(&object, &before);
                            let is_name = check_name(&name).is_ok();
                            prop_assert_eq!(is_name, !matches!(refusal, Refusal::NotUser | Refusal::BadName));
                            if refusal == Refusal::NotUnderstood {
                                prop_assert!(Blob::of(&object).is_none());
                            }
                            // With nothing else there, it has room.
                            let mut empty = Metadata::new();
                            if refusal == Refusal::NoRoom && plain_keys(&object, &name).is_empty() {
                                prop_assert_eq!(set(&mut empty, &name, &value), Ok(()));
                            } else if refusal == Refusal::TooBig {
                                prop_assert_eq!(set(&mut empty, &name, &value), Err(Refusal::TooBig));
                            }
                        }
                    },
                    Op::Remove(name) => {
                        prop_assert_eq!(remove(&mut object, &name), model.remove(&name).is_some());
                    }
                }
                prop_assert_eq!(&model_of(&object), &model);
                prop_assert_eq!(&others(&object), &untouched);
            }
        }

        #[test]
        fn small_values_are_always_taken(
            names in proptest::collection::btree_set(some_names(), 1..4),
            value in values(),
        ) {
            let mut object = Metadata::new();
            let value = &value[..value.len().min(40)];
            for name in names.iter().filter(|name| check_name(name).is_ok() && name.len() < 60) {
                prop_assert_eq!(set(&mut object, name, value), Ok(()));
                prop_assert_eq!(get(&object, name), Some(value.to_vec()));
            }
        }

        #[test]
        fn nothing_panics(
            blob in any::<String>(),
            key in any::<String>(),
            value in any::<String>(),
            name in any::<String>(),
        ) {
            let mut object = metadata(&[(BLOB, blob.as_str()), (key.as_str(), value.as_str())]);
            for name in names(&object).into_iter().chain([name, format!("user.{key}")]) {
                get(&object, &name);
                let _ = set(&mut object, &name, value.as_bytes());
                remove(&mut object, &name);
            }
        }
    }

    #[test]
    fn the_blob_is_s3fs_s() {
        let mut object = metadata(&[]);
        set(&mut object, "user.x", b"hi").unwrap();
        set(&mut object, "user.empty", b"").unwrap();
        assert_eq!(
            object,
            metadata(&[(BLOB, "%7B%22user.empty%22%3A%22%22%2C%22user.x%22%3A%22aGk%3D%22%7D")])
        );
        // Nothing in a name that s3fs would cut at.
        set(&mut object, "user.a,b:\"", b"1").unwrap();
        let json: String = percent_decode_str(&object[BLOB]).decode_utf8().unwrap().into();
        assert_eq!(json, r#"{"user.a\u002cb\u003a\u0022":"MQ==","user.empty":"","user.x":"aGk="}"#);
        for name in names(&object) {
            assert!(remove(&mut object, &name));
        }
        assert_eq!(object, metadata(&[]));

        // Unpadded, unescaped, and with ACLs, as others may have it.
        let mut object = metadata(&[(BLOB, r#"{"user.x": "aGk", "system.posix_acl_access": "AgAAAA"}"#)]);
        assert_eq!(names(&object), ["user.x"]);
        assert_eq!(get(&object, "user.x").unwrap(), b"hi");
        assert_eq!(get(&object, "system.posix_acl_access"), None);
        assert!(!remove(&mut object, "system.posix_acl_access"));
        assert_eq!(set(&mut object, "system.posix_acl_access", b""), Err(Refusal::NotUser));
        assert!(remove(&mut object, "user.x"));
        assert_eq!(object[BLOB], "%7B%22system.posix_acl_access%22%3A%22AgAAAA%22%7D");
    }

    #[test]
    fn plain_metadata_is_shown_and_changed_in_place() {
        let mut object = metadata(&[
            ("foo", "100%25 of it"),
            ("mode", "33188"),
            ("owner", "alice"),
            ("pailfs-children", "1"),
            ("md5chksum", "XUFAKrxLKna5cZ2REBfFkg=="),
        ]);
        assert_eq!(names(&object), ["user.foo", "user.md5chksum", "user.owner"]);
        assert_eq!(get(&object, "user.foo").unwrap(), b"100% of it");
        set(&mut object, "user.foo", b" 50%\xff ").unwrap();
        assert_eq!(object["foo"], "%2050%25%FF%20");
        assert!(!object.contains_key(BLOB));
        // A number here might pass for an owner of s3sync's.
        set(&mut object, "user.owner", b"1000").unwrap();
        assert!(!object.contains_key("owner"));
        assert_eq!(get(&object, "user.owner").unwrap(), b"1000");
        // No header is empty.
        set(&mut object, "user.foo", b"").unwrap();
        assert!(!object.contains_key("foo"));
        assert_eq!(get(&object, "user.foo").unwrap(), b"");

        // In both places, the blob counts; a change leaves one.
        let mut object = metadata(&[("foo", "plain"), (BLOB, r#"{"user.foo":"YmxvYg=="}"#)]);
        assert_eq!(get(&object, "user.foo").unwrap(), b"blob");
        set(&mut object, "user.foo", b"new").unwrap();
        assert_eq!(object, metadata(&[("foo", "new")]));
    }

    #[test]
    fn a_value_that_has_no_room_is_told_from_one_that_never_has() {
        let mut object = metadata(&[("foo", "x")]);
        let big = |n| vec![b'x'; n];
        assert_eq!(set(&mut object, "user.big", &big(1_500)), Ok(()));
        assert_eq!(set(&mut object, "user.more", &big(300)), Err(Refusal::NoRoom));
        assert_eq!(set(&mut object, "user.more", &big(1_600)), Err(Refusal::TooBig));
        assert_eq!(set(&mut object, "user.more", &big(5_000)), Err(Refusal::TooBig));
        // Escaped, bytes are three each: the blob takes what a plain key cannot.
        assert!(remove(&mut object, "user.big"));
        assert_eq!(set(&mut object, "user.foo", &[0xff; 900]), Ok(()));
        assert!(!object.contains_key("foo") && object.contains_key(BLOB));
        // And a plain key takes text that base64 makes too long.
        let mut object = metadata(&[("foo", "x")]);
        assert_eq!(set(&mut object, "user.foo", &big(2_045)), Ok(()));
        assert_eq!(size(&object), limits::METADATA_MAX);
        assert_eq!(set(&mut object, "user.foo", &big(2_046)), Err(Refusal::TooBig));
        // A server that took more is not asked to hold less.
        let mut object = metadata(&[("foo", &"x".repeat(4_000))]);
        assert_eq!(set(&mut object, "user.foo", &big(3_000)), Ok(()));
    }

    #[test]
    fn a_blob_that_is_none_is_left_alone() {
        for blob in ["hello", "%7B", "[]", r#"{"user.x":1}"#, r#"{"user.x":null}"#, "%FF"] {
            let mut object = metadata(&[(BLOB, blob), ("foo", "x")]);
            assert_eq!(names(&object), ["user.foo"]);
            assert_eq!(set(&mut object, "user.x", b"1"), Err(Refusal::NotUnderstood));
            assert_eq!(set(&mut object, "user.foo", b"1"), Ok(()));
            assert!(remove(&mut object, "user.foo"));
            assert_eq!(object, metadata(&[(BLOB, blob)]));
        }
    }
}
