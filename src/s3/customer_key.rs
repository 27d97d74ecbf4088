//! Keys that encrypt objects and that S3 is told with each request, and forgets: SSE-C.
//!
//! Guarantees: the key comes from a file or the environment, and appears in no log, error or `Debug` output.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest, Md5};
use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::secret::Secret;
use crate::error::{Error, Kind, Result};

const KEY_BYTES: usize = 32;
/// Longer than any way to write a key.
const FILE_MAX_BYTES: u64 = 256;

/// Where a key is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    File(PathBuf),
    /// The name of a variable.
    Env(String),
}

impl KeyPlace {
    /// `file:PATH` or `env:NAME`. What is neither may be the key itself, so no error repeats it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("env", name)) if !name.is_empty() && !name.contains('=') => Ok(Self::Env(name.to_owned())),
            _ => Err("a customer key is named by where it is: file:PATH or env:NAME".to_owned()),
        }
    }

    /// The same, with a path that does not depend on where the process is.
    #[must_use]
    pub fn below(self, dir: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(dir.join(path)),
            Self::Env(name) => Self::Env(name),
        }
    }
}

impl<'de> Deserialize<'de> for KeyPlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By way of any value, because serde's own complaint about a wrong type quotes it.
        let value = toml::Value::deserialize(deserializer)?;
        Self::parse(value.as_str().unwrap_or_default()).map_err(de::Error::custom)
    }
}

/// A key as requests carry it.
#[derive(Clone, Debug)]
pub(super) struct CustomerKey {
    /// Base64.
    key: Secret,
    /// Base64 of its MD5, by which answers name it.
    md5: String,
}

impl CustomerKey {
    pub(super) const ALGORITHM: &str = "AES256";

    pub(super) fn load(place: &KeyPlace) -> Result<Self> {
        let (text, from) = match place {
            KeyPlace::File(path) => {
                let from = path.display().to_string();
                let mut bytes = Vec::new();
                std::fs::File::open(path)
                    .and_then(|file| file.take(FILE_MAX_BYTES).read_to_end(&mut bytes))
                    .map_err(|error| {
                        Error::new(Kind::InvalidArgument, format!("cannot read the customer key of {from}"))
                            .with_source(error)
                    })?;
                (bytes, from)
            }
            KeyPlace::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| {
                    let told = format!("there is no customer key: the variable {name} is not set");
                    Error::new(Kind::InvalidArgument, told)
                })?;
                (value.into_encoded_bytes(), format!("the variable {name}"))
            }
        };
        Self::of(&text).ok_or_else(|| {
            let told =
                format!("{from} holds no customer key: that is {KEY_BYTES} bytes, as they are or as base64");
            Error::new(Kind::InvalidArgument, told)
        })
    }

    fn of(text: &[u8]) -> Option<Self> {
        let key = match <[u8; KEY_BYTES]>::try_from(text) {
            Ok(raw) => raw,
            Err(_) => BASE64.decode(text.trim_ascii()).ok()?.try_into().ok()?,
        };
        Some(Self { key: Secret::new(BASE64.encode(key)), md5: BASE64.encode(Md5::digest(key)) })
    }

    pub(super) fn reveal(&self) -> &str {
        self.key.reveal()
    }

    pub(super) fn md5(&self) -> &str {
        &self.md5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_as_they_are_or_as_base64() {
        let raw = [7u8; KEY_BYTES];
        let key = CustomerKey::of(&raw).unwrap();
        assert_eq!(key.reveal(), BASE64.encode(raw));
        assert_eq!(key.md5(), BASE64.encode(Md5::digest(raw)));
        let text = format!("{}\n", BASE64.encode(raw));
        assert_eq!(CustomerKey::of(text.as_bytes()).unwrap().reveal(), key.reveal());
        for wrong in [&b""[..], b"short", &[7; 31], &[7; 33], BASE64.encode([7; 16]).as_bytes()] {
            assert!(CustomerKey::of(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn no_key_shows_in_debug_output_or_in_an_error() {
        let raw = "0123456789abcdefghijklmnopqrstuv";
        let key = CustomerKey::of(raw.as_bytes()).unwrap();
        let shown = format!("{key:?}");
        assert!(!shown.contains(raw) && !shown.contains(key.reveal()), "{shown}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{raw}{raw}")).unwrap();
        let error = CustomerKey::load(&KeyPlace::File(file.path().to_owned())).unwrap_err().report();
        assert!(!error.contains(raw), "{error}");
        assert!(!KeyPlace::parse(raw).unwrap_err().contains(raw));
    }

    #[test]
    fn a_key_is_named_by_where_it_is() {
        assert_eq!(KeyPlace::parse("file:/k").unwrap().below(Path::new("/etc")), KeyPlace::File("/k".into()));
        assert_eq!(
            KeyPlace::parse("file:k").unwrap().below(Path::new("/etc")),
            KeyPlace::File("/etc/k".into())
        );
        assert_eq!(KeyPlace::parse("env:K").unwrap(), KeyPlace::Env("K".to_owned()));
        for wrong in ["", "k", "file:", "env:", "env:a=b", "http://x"] {
            assert!(KeyPlace::parse(wrong).is_err(), "{wrong:?}");
        }
        let missing = KeyPlace::Env("PAILFS_TEST_NO_SUCH_VARIABLE".to_owned());
        assert!(CustomerKey::load(&missing).unwrap_err().report().contains("PAILFS_TEST_NO_SUCH_VARIABLE"));
    }
}
