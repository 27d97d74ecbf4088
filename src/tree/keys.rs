//! Names and keys: a reversible map between what a directory shows and what a bucket holds. Pure.
//!
//! A key is cut at `/`; each component is a file name as it is, except where a file name cannot say it. Then it
//! is escaped with the lead `%~`, which no URL-encoded name contains:
//!
//! | in the key | in the directory |
//! |---|---|
//! | an empty component (`a//b`) | `%~0` |
//! | `.`, `..` | `%~1`, `%~2` |
//! | a NUL byte | `%~x00` |
//! | `%~` itself | `%~x25~` |
//! | object `foo` beside keys `foo/...` | `foo` is the directory, `foo%~f` the object |
//! | a component whose name would be over 255 bytes | directories `CHUNK%~+`, and the rest inside |
//!
//! Guarantees: every key of up to 1,024 bytes has exactly one path; a name that is not the escape we would
//! make ourselves is refused, so no key has two.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::s3::limits;

/// The longest name Linux shows in a directory, in bytes.
pub const NAME_MAX: usize = 255;

const LEAD: &str = "%~";
const EMPTY: &str = "%~0";
const DOT: &str = "%~1";
const DOT_DOT: &str = "%~2";
const NUL: &str = "%~x00";
const LEAD_ITSELF: &str = "%~x25~";
/// Ends the name of an object that a directory of the same name would hide.
const OBJECT_MARK: &str = "%~f";
/// Ends the name of a directory that stands for the first part of an over-long component.
const CHUNK_MARK: &str = "%~+";

/// A name in a directory, as the kernel sees it: 1 to 255 bytes of UTF-8 without `/` or NUL, not `.` or `..`,
/// and if it has an escape then one that we would make.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// What a name says about the key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decoded {
    /// A component, or the last piece of an over-long one.
    Piece(String),
    /// The object beside a directory of that name.
    Object(String),
    /// A piece of an over-long component, with more to come.
    Chunk(String),
}

impl Name {
    /// Takes a name from the kernel. `NameTooLong` over 255 bytes; `InvalidArgument` where no key has it.
    pub fn parse(name: &OsStr) -> Result<Self> {
        let text = name
            .to_str()
            .ok_or_else(|| Error::new(Kind::InvalidArgument, "S3 keys are UTF-8, and this name is not"))?;
        if text.len() > NAME_MAX {
            return Err(Error::new(Kind::NameTooLong, "a name is at most 255 bytes"));
        }
        if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\0']) {
            return Err(Error::new(Kind::InvalidArgument, "not a name"));
        }
        decode(text)?;
        Ok(Self(Arc::from(text)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `NAME` of `NAME%~f`, the object beside a directory; `None` for any other name.
    pub fn without_object_mark(&self) -> Option<Self> {
        match self.decoded() {
            Decoded::Object(text) => Some(Self(Arc::from(encode(&text)))),
            _ => None,
        }
    }

    fn decoded(&self) -> Decoded {
        decode(&self.0).unwrap_or_else(|_| Decoded::Piece(self.0.to_string()))
    }
}

/// Where a directory lives in its bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DirKey {
    prefix: String,
    /// Lengths of the pieces at the prefix's end that belong to an unfinished, over-long component.
    pieces: Vec<usize>,
}

/// Where in its directory's listing a name is shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(String, u8);

/// How a directory shows a key below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Under this name, as what it is.
    As(Name),
    /// Inside this directory, which stands for a piece of the component.
    Inside(Name),
}

impl DirKey {
    /// The top of a volume. `prefix` is empty or ends with `/`.
    pub fn root(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), pieces: Vec::new() }
    }

    /// What every key of this directory begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Key of the directory's marker object; `None` for the top of a bucket and for the piece of a component.
    pub fn marker_key(&self) -> Option<&str> {
        (self.pieces.is_empty() && !self.prefix.is_empty()).then_some(self.prefix.as_str())
    }

    /// The directory `name` of this one.
    pub fn child(&self, name: &Name) -> Result<Self> {
        match name.decoded() {
            Decoded::Piece(text) => {
                self.require_own_path(&text, false)?;
                let prefix = format!("{}{text}/", self.prefix);
                require_length(&prefix)?;
                Ok(Self { prefix, pieces: Vec::new() })
            }
            Decoded::Chunk(text) => {
                let prefix = format!("{}{text}", self.prefix);
                require_length(&prefix)?;
                let mut pieces = self.pieces.clone();
                pieces.push(text.len());
                Ok(Self { prefix, pieces })
            }
            Decoded::Object(_) => Err(Error::new(Kind::NotADirectory, "not a directory")),
        }
    }

    /// Key of the object `name` of this directory.
    pub fn object_key(&self, name: &Name) -> Result<String> {
        let (text, beside_dir) = match name.decoded() {
            Decoded::Piece(text) => (text, false),
            Decoded::Object(text) => (text, true),
            Decoded::Chunk(_) => return Err(Error::new(Kind::IsADirectory, "is a directory")),
        };
        self.require_own_path(&text, beside_dir)?;
        let key = format!("{}{text}", self.prefix);
        if key.is_empty() {
            return Err(Error::new(Kind::NotFound, "no object has an empty key"));
        }
        require_length(&key)?;
        Ok(key)
    }

    /// Where a listing shows the name: when it has passed everything the name can stand for. Names are shown in
    /// the order of their places.
    pub fn place(&self, name: &Name) -> Place {
        let (text, after) = match name.decoded() {
            Decoded::Piece(text) => (format!("{text}/"), 0),
            Decoded::Object(text) => (format!("{text}/"), 1),
            Decoded::Chunk(text) => (text, 0),
        };
        Place(format!("{}{text}", self.prefix), after)
    }

    /// Whether an object of `size` bytes under this name's key is shown under this name: a directory's marker
    /// is the directory itself, unless it has bytes of its own.
    pub fn shows_object(&self, name: &Name, size: u64) -> bool {
        size > 0 || name.as_str() != EMPTY
    }

    /// Whether a file or directory may be made under this name: not where the name only has a meaning beside
    /// something else.
    pub fn can_create(&self, name: &Name) -> bool {
        matches!(name.decoded(), Decoded::Piece(text) if self.require_own_path(&text, false).is_ok())
    }

    /// How this directory shows the component `rest` (a key less the prefix, up to a `/`); `None` where another
    /// directory does. `beside_dir` asks for the object whose name a directory has.
    pub fn show(&self, rest: &str, beside_dir: bool) -> Option<Shown> {
        let component = self.component(rest);
        let pieces = cut(&component, beside_dir);
        let depth = self.pieces.len();
        let here = pieces.len() > depth && pieces.iter().zip(&self.pieces).all(|(p, len)| p.len() == *len);
        if !here {
            return None;
        }
        let text = encode(pieces[depth]);
        Some(if pieces.len() > depth + 1 {
            Shown::Inside(Name(Arc::from(format!("{text}{CHUNK_MARK}"))))
        } else if beside_dir {
            Shown::As(Name(Arc::from(format!("{text}{OBJECT_MARK}"))))
        } else {
            Shown::As(Name(Arc::from(text)))
        })
    }

    fn component(&self, rest: &str) -> String {
        let pending: usize = self.pieces.iter().sum();
        format!("{}{rest}", &self.prefix[self.prefix.len() - pending..])
    }

    /// Refuses a name whose component we would cut elsewhere: no key has two paths.
    fn require_own_path(&self, rest: &str, beside_dir: bool) -> Result<()> {
        match self.show(rest, beside_dir) {
            Some(Shown::As(_)) => Ok(()),
            _ => Err(Error::new(Kind::NotFound, "no key has this path")),
        }
    }
}

/// The path of a key below a directory, one name for each step; the last names the object.
pub fn path_of(dir: &DirKey, key: &str) -> Option<Vec<Name>> {
    let mut at = dir.clone();
    let mut path = Vec::new();
    let mut rest = key.strip_prefix(dir.prefix())?;
    loop {
        let (component, below) = match rest.split_once('/') {
            Some((component, below)) => (component, Some(below)),
            None => (rest, None),
        };
        match at.show(component, false)? {
            Shown::Inside(chunk) => {
                let inner = at.child(&chunk).ok()?;
                rest = key.strip_prefix(inner.prefix())?;
                at = inner;
                path.push(chunk);
            }
            Shown::As(name) => {
                path.push(name.clone());
                let Some(below) = below else { return Some(path) };
                at = at.child(&name).ok()?;
                rest = below;
            }
        }
    }
}

/// A piece of a component as a name; an escape only where a name could not say it.
fn encode(piece: &str) -> String {
    match piece {
        "" => EMPTY.to_owned(),
        "." => DOT.to_owned(),
        ".." => DOT_DOT.to_owned(),
        _ => piece.replace(LEAD, LEAD_ITSELF).replace('\0', NUL),
    }
}

fn decode(name: &str) -> Result<Decoded> {
    let (body, kind): (&str, fn(String) -> Decoded) = if let Some(body) = name.strip_suffix(OBJECT_MARK) {
        (body, Decoded::Object)
    } else if let Some(body) = name.strip_suffix(CHUNK_MARK) {
        (body, Decoded::Chunk)
    } else {
        (name, Decoded::Piece)
    };
    let text = match body {
        EMPTY => String::new(),
        DOT => ".".to_owned(),
        DOT_DOT => "..".to_owned(),
        _ => unescape(body),
    };
    // What does not come back is no escape of ours.
    if encode(&text) != body {
        return Err(Error::new(Kind::InvalidArgument, "`%~` begins an escape, and this is none"));
    }
    Ok(kind(text))
}

/// Takes escapes back, each once: what an escape stands for may look like another.
fn unescape(body: &str) -> String {
    let mut text = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.find(LEAD) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let (stands_for, after) = match (rest.strip_prefix(LEAD_ITSELF), rest.strip_prefix(NUL)) {
            (Some(after), _) => (LEAD, after),
            (_, Some(after)) => ("\0", after),
            // No escape of ours: kept as it is, and refused by whoever compares.
            _ => (LEAD, &rest[LEAD.len()..]),
        };
        text.push_str(stands_for);
        rest = after;
    }
    text.push_str(rest);
    text
}

/// Cuts a component into pieces whose names fit, as few as possible from the left.
fn cut(component: &str, beside_dir: bool) -> Vec<&str> {
    let room_last = if beside_dir { NAME_MAX - OBJECT_MARK.len() } else { NAME_MAX };
    let room = NAME_MAX - CHUNK_MARK.len();
    let mut pieces = Vec::new();
    let mut rest = component;
    while encode(rest).len() > room_last {
        let mut end = rest.len().min(room);
        while !rest.is_char_boundary(end) || encode(&rest[..end]).len() > room {
            end -= 1;
        }
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

fn require_length(key: &str) -> Result<()> {
    if key.len() > limits::KEY_MAX {
        return Err(Error::new(Kind::NameTooLong, "a key is at most 1,024 bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = String> {
        let letters = prop_oneof![
            Just("/"),
            Just("."),
            Just("%"),
            Just("~"),
            Just("0"),
            Just("f"),
            Just("+"),
            Just("x25"),
            Just("x00"),
            Just("\0"),
            Just("a"),
            Just("é"),
            Just("\n"),
        ];
        let short = proptest::collection::vec(letters, 1..12).prop_map(|v| v.concat());
        let long = (short.clone(), 200usize..300, short.clone())
            .prop_map(|(a, n, b)| format!("{a}{}{b}", "é%~b".repeat(n / 4)));
        let any = any::<String>();
        prop_oneof![4 => short, 1 => long, 1 => any]
            .prop_filter("a key has 1 to 1,024 bytes", |k| !k.is_empty() && k.len() <= 1024)
    }

    fn key_of(dir: &DirKey, path: &[Name]) -> Result<String> {
        let (last, above) = path.split_last().expect("a path has a name");
        let mut at = dir.clone();
        for name in above {
            at = at.child(name)?;
        }
        at.object_key(last)
    }

    proptest! {
        #[test]
        fn every_key_has_a_path_that_leads_back(key in keys(), prefix in prop_oneof![Just(""), Just("p/")]) {
            let dir = DirKey::root(prefix);
            let key = format!("{prefix}{key}");
            prop_assume!(key.len() <= 1024);
            let path = path_of(&dir, &key).expect("a key below the prefix has a path");
            for name in &path {
                let text = name.as_str();
                prop_assert!(!text.is_empty() && text.len() <= NAME_MAX, "{text:?}");
                prop_assert!(!text.contains(['/', '\0']) && text != "." && text != "..");
                prop_assert_eq!(&Name::parse(OsStr::new(text)).unwrap(), name);
            }
            prop_assert_eq!(key_of(&dir, &path).unwrap(), key);
        }

        #[test]
        fn distinct_keys_have_distinct_paths(a in keys(), b in keys()) {
            let dir = DirKey::root("");
            prop_assert_eq!(a == b, path_of(&dir, &a) == path_of(&dir, &b));
        }

        #[test]
        fn a_name_is_refused_or_is_the_only_one_of_its_key(text in "[%~0-2fx+a.]{1,12}|(%~[0-2fx+]|a){1,5}") {
            if let Ok(name) = Name::parse(OsStr::new(&text)) {
                let dir = DirKey::root("");
                if let (Ok(key), None) = (dir.object_key(&name), name.without_object_mark()) {
                    prop_assert_eq!(path_of(&dir, &key), Some(vec![name]));
                }
            }
        }
    }

    #[test]
    fn the_table_of_escapes_is_as_documented() {
        let dir = DirKey::root("");
        let path =
            |key| path_of(&dir, key).unwrap().iter().map(|n| n.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(path("a//b"), ["a", "%~0", "b"]);
        assert_eq!(path("./.."), ["%~1", "%~2"]);
        assert_eq!(path("a\0b"), ["a%~x00b"]);
        assert_eq!(path("50%~"), ["50%~x25~"]);
        // What an escape stands for may look like another escape.
        assert_eq!(path("%~x00"), ["%~x25~x00"]);
        assert!(Name::parse(OsStr::new("%~x25~x00")).is_ok() && Name::parse(OsStr::new("%~x41")).is_err());
        assert_eq!(path("dir/"), ["dir", "%~0"]);
        let object = Name::parse(OsStr::new("foo%~f")).unwrap();
        assert_eq!(dir.object_key(&object).unwrap(), "foo");
        assert_eq!(object.without_object_mark().unwrap().as_str(), "foo");
        let long = "x".repeat(600);
        assert_eq!(
            path(&long),
            [format!("{}%~+", &long[..252]), format!("{}%~+", &long[..252]), long[..96].into()]
        );
    }
}
