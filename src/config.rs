//! What one mount is asked to be, and what the configuration file says: plain, validated data.
//!
//! Does not own: the command line, the environment and files (`cli`), nor the settings of a session and what is
//! made of them (`s3`). Text is parsed here only when it is handed over.
//!
//! Guarantees: a value of these types is well-formed; no secret appears in `Debug` output or in an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::base::{
    Durability, Exclusive, OnConflict, Passthrough, PosixMode, Sse, StagingPlace, format_bytes,
};
use crate::error::{Error, Kind, Result};
use crate::s3::{Encryption, NewObjects, SessionConfig};

/// The session that is meant where none is named.
pub const DEFAULT_SESSION: &str = "default";

/// Bounds of the memory budget that is chosen where none is given, in bytes.
const DEFAULT_MEMORY_MIN_BYTES: u64 = 64 << 20;
const DEFAULT_MEMORY_MAX_BYTES: u64 = 1 << 30;
/// Below this a single part of an upload no longer fits beside anything else.
const MEMORY_MIN_BYTES: u64 = 16 << 20;
/// The same, where bytes that are written wait for their upload in memory.
const STAGING_MEMORY_MIN_BYTES: u64 = 64 << 20;
/// Less disk than this holds hardly an object.
const CACHE_MIN_BYTES: u64 = 16 << 20;
/// The cache that is chosen where no size is given: this much, in bytes, and no more than this share of the disk.
const DEFAULT_CACHE_MAX_BYTES: u64 = 10 << 30;
const DEFAULT_CACHE_SHARE: u64 = 10;
/// What a directory entry may be long on Linux, in bytes.
const NAME_MAX_BYTES: usize = 255;
const TAGS_MAX: usize = 10;

/// Everything a mount is made of.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Absolute, without symbolic links; or `/dev/fd/N`, an open /dev/fuse that somebody else has mounted.
    pub mountpoint: PathBuf,
    pub site: Site,
    /// Makes every bucket read-only, whatever its own setting.
    pub read_only: bool,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits of files that say nothing else.
    pub file_mode: u16,
    pub dir_mode: u16,
    /// How far attributes are kept in S3.
    pub posix: PosixMode,
    /// Whether other users than the mount's owner may enter it.
    pub allow_other: bool,
    /// Whether programs that lie in the mount may not be run.
    pub noexec: bool,
    /// How long `stat` and `readdir` may answer from memory.
    pub metadata_ttl: Duration,
    /// How long an absent name may be answered from memory.
    pub negative_ttl: Duration,
    /// Where blocks that were read are kept on disk, if anywhere.
    pub cache: Option<Cache>,
    pub passthrough: Passthrough,
    pub durability: Durability,
    /// How long a closed file waits for its upload with [`Durability::Journal`].
    pub upload_delay: Duration,
    pub staging: StagingPlace,
    pub exclusive: Exclusive,
    pub on_conflict: OnConflict,
    /// Of the state directory's file system, what is left to others, in bytes; otherwise a twentieth.
    pub state_reserve: Option<u64>,
    /// Where a line about every operation goes, if anywhere; absolute.
    pub trace_ops: Option<PathBuf>,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// Where metrics are served over HTTP, if anywhere. Port 0 takes a free one.
    pub metrics_listen: Option<SocketAddr>,
    /// What requests cost.
    pub rates: Rates,
}

/// What S3 charges for requests, in US dollars for 1,000 of them. What is not said is Amazon's list price of S3 Standard
/// in us-east-1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// PUT, COPY, POST and LIST.
    pub put_per_1000: f64,
    /// GET, HEAD and all others.
    pub get_per_1000: f64,
    pub delete_per_1000: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { put_per_1000: 0.005, get_per_1000: 0.0004, delete_per_1000: 0.0 }
    }
}

impl Rates {
    fn check(&self) -> Result<(), String> {
        for (name, rate) in [
            ("put_per_1000", self.put_per_1000),
            ("get_per_1000", self.get_per_1000),
            ("delete_per_1000", self.delete_per_1000),
        ] {
            if !(rate.is_finite() && rate >= 0.0) {
                return Err(format!("{name} is {rate}, and a rate is a number of dollars such as 0.005"));
            }
        }
        Ok(())
    }
}

/// Which buckets, how they are reached, and where on this machine is written down what they are owed: all it takes to
/// save what a mount left behind.
#[derive(Clone, Debug)]
pub struct Site {
    pub source: Source,
    /// The settings of every session that `source` names.
    pub sessions: BTreeMap<String, SessionConfig>,
    /// How long any operation may take before it fails.
    pub timeout: Duration,
    /// Memory for blocks, read-ahead, uploads, names and pages of listings that wait, in bytes.
    pub memory_limit: u64,
    /// Where written bytes wait for their upload.
    pub state_dir: PathBuf,
}

/// A directory for blocks that outlive the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Absolute.
    pub dir: PathBuf,
    /// Bytes on disk, over all mounts that use the directory.
    pub limit_bytes: u64,
}

impl MountConfig {
    /// Checks what no single field can tell.
    pub fn check(&self) -> Result<()> {
        self.site.check()?;
        for (what, mode) in [("file", self.file_mode), ("directory", self.dir_mode)] {
            if mode & !0o777 != 0 {
                return Err(invalid(format!("{mode:o} is not a {what} mode; write it like 644")));
            }
        }
        if (self.staging, self.durability) == (StagingPlace::Memory, Durability::Journal) {
            return Err(invalid(
                "--durability=journal keeps what was written on the local disk, where --staging=memory writes nothing; \
                 leave one of them away"
                    .to_owned(),
            ));
        }
        if self.staging == StagingPlace::Memory && self.site.memory_limit < STAGING_MEMORY_MIN_BYTES {
            return Err(invalid(format!(
                "the memory limit is {}, and --staging=memory takes {} at least: a large file is in it until its first \
                 parts leave",
                format_bytes(self.site.memory_limit),
                format_bytes(STAGING_MEMORY_MIN_BYTES)
            )));
        }
        let cache_dir = self.cache.as_ref().map(|cache| ("cache directory", &cache.dir));
        let traced = self.trace_ops.as_ref().map(|path| ("file of --trace-ops", path));
        let places = cache_dir.into_iter().chain(traced).chain([("state directory", &self.site.state_dir)]);
        for (what, dir) in places {
            if dir.starts_with(&self.mountpoint) {
                return Err(invalid(format!(
                    "the {what} {} lies inside of the mount, which would wait for itself",
                    dir.display()
                )));
            }
        }
        if let Some(cache) = &self.cache
            && cache.limit_bytes < CACHE_MIN_BYTES
        {
            return Err(invalid(format!(
                "the cache size is {}, and less than {} keeps next to nothing",
                format_bytes(cache.limit_bytes),
                format_bytes(CACHE_MIN_BYTES)
            )));
        }
        Ok(())
    }
}

impl Site {
    /// Checks what no single field can tell.
    pub fn check(&self) -> Result<()> {
        if self.memory_limit < MEMORY_MIN_BYTES {
            return Err(invalid(format!(
                "the memory limit is {}, and less than {} cannot hold one part of an upload",
                format_bytes(self.memory_limit),
                format_bytes(MEMORY_MIN_BYTES)
            )));
        }
        if self.timeout.is_zero() {
            return Err(invalid("a timeout of 0 would fail every request".to_owned()));
        }
        for name in self.source.sessions() {
            let Some(session) = self.sessions.get(name) else {
                return Err(invalid(no_such_session(name, self.sessions.keys())));
            };
            if session.sse_customer_key.is_some() && self.source.encrypts(name) {
                let told = "what is encrypted with a customer key is encrypted with no other; leave sse away";
                return Err(invalid(format!("session {name:?}: {told}")));
            }
        }
        Ok(())
    }
}

/// A quarter of what there is, but neither a pittance nor a hog.
pub fn default_memory_limit(available_bytes: u64) -> u64 {
    (available_bytes / 4).clamp(DEFAULT_MEMORY_MIN_BYTES, DEFAULT_MEMORY_MAX_BYTES)
}

/// Enough to be of use, and a small part of the disk.
pub fn default_cache_limit(disk_bytes: u64) -> u64 {
    (disk_bytes / DEFAULT_CACHE_SHARE).min(DEFAULT_CACHE_MAX_BYTES)
}

/// What a mount shows at its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One bucket, or a prefix of it.
    Bucket(BucketDir),
    /// A directory for each bucket the session can list.
    Buckets { session: String, new_objects: NewObjects },
    /// A directory for each of these, as `[mount.NAME]` lists them.
    Named { name: String, dirs: BTreeMap<String, BucketDir> },
}

impl Source {
    /// The names of the sessions it needs.
    pub fn sessions(&self) -> BTreeSet<&str> {
        match self {
            Self::Bucket(dir) => BTreeSet::from([dir.session.as_str()]),
            Self::Buckets { session, .. } => BTreeSet::from([session.as_str()]),
            Self::Named { dirs, .. } => dirs.values().map(|dir| dir.session.as_str()).collect(),
        }
    }

    /// Whether S3 is asked to encrypt what is written through a session.
    fn encrypts(&self, through: &str) -> bool {
        let asks =
            |session: &str, new_objects: &NewObjects| session == through && new_objects.encryption.is_some();
        match self {
            Self::Bucket(dir) => asks(&dir.session, &dir.new_objects),
            Self::Buckets { session, new_objects } => asks(session, new_objects),
            Self::Named { dirs, .. } => dirs.values().any(|dir| asks(&dir.session, &dir.new_objects)),
        }
    }

    /// What a person would call it, for messages and the name of the mount.
    pub fn name(&self) -> String {
        match self {
            Self::Bucket(dir) => dir.url(),
            Self::Buckets { .. } => "s3://".to_owned(),
            Self::Named { name, .. } => format!("@{name}"),
        }
    }
}

/// A bucket, or the part of it below a prefix, seen as a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketDir {
    pub bucket: String,
    /// Empty, or ends with `/`.
    pub prefix: String,
    pub session: String,
    pub read_only: bool,
    /// What S3 is told beside the bytes of objects that have nothing of their own.
    pub new_objects: NewObjects,
}

/// What new objects get, as a command line or a configuration says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ObjectSettings {
    pub storage_class: Option<String>,
    pub sse: Option<Sse>,
    pub sse_kms_key_id: Option<String>,
    pub sse_bucket_key: Option<bool>,
    pub acl: Option<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl ObjectSettings {
    /// Checks what S3 would refuse at every write, as far as that is sure: names of classes and ACLs are the server's.
    pub fn check(self) -> Result<NewObjects> {
        let word = |what: &str, text: &Option<String>| match text {
            Some(text) if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) => {
                Err(invalid(format!("{text:?} is no {what}")))
            }
            _ => Ok(()),
        };
        word("storage class", &self.storage_class)?;
        word("ACL", &self.acl)?;
        word("key of KMS", &self.sse_kms_key_id)?;
        let of_kms = self.sse_kms_key_id.is_some() || self.sse_bucket_key.is_some();
        let encryption = match self.sse {
            None | Some(Sse::Aes256) if of_kms => {
                return Err(invalid("a KMS key and a bucket key need sse = aws:kms".to_owned()));
            }
            None => None,
            Some(Sse::Aes256) => Some(Encryption::S3),
            Some(sse @ (Sse::Kms | Sse::KmsTwice)) => Some(Encryption::Kms {
                key_id: self.sse_kms_key_id,
                bucket_key: self.sse_bucket_key,
                twice: sse == Sse::KmsTwice,
            }),
        };
        if self.tags.len() > TAGS_MAX {
            return Err(invalid(format!("an object has at most {TAGS_MAX} tags")));
        }
        for (key, value) in &self.tags {
            let fits = (1..=128).contains(&key.chars().count()) && value.chars().count() <= 256;
            if !fits || key.chars().chain(value.chars()).any(char::is_control) {
                let told = "a tag's name has 1 to 128 characters, its value up to 256";
                return Err(invalid(format!("{key:?} = {value:?}: {told}")));
            }
        }
        Ok(NewObjects { storage_class: self.storage_class, encryption, acl: self.acl, tags: self.tags })
    }
}

impl BucketDir {
    pub fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }
}

/// What may be named on a command line: a bucket with an optional prefix, or all buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum S3Url {
    AllBuckets,
    Bucket { bucket: String, prefix: String },
}

impl S3Url {
    /// Reads `s3://`, `s3://bucket` and `s3://bucket/any/prefix`.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |message: String| Error::new(Kind::InvalidArgument, message);
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err(invalid(format!("{text:?} is not an S3 location; write it like s3://bucket/prefix")));
        };
        if rest.is_empty() {
            return Ok(Self::AllBuckets);
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        check_bucket(bucket).map_err(invalid)?;
        Ok(Self::Bucket { bucket: bucket.to_owned(), prefix: normal_prefix(prefix) })
    }
}

/// A bucket's name ends up in requests and in the mount table, so it may not hold what separates things there.
/// The stricter rules of naming are the server's to apply.
fn check_bucket(bucket: &str) -> Result<(), String> {
    if bucket.is_empty() {
        return Err("a bucket's name is missing".to_owned());
    }
    if bucket.len() > NAME_MAX_BYTES {
        return Err("the bucket's name is too long".to_owned());
    }
    match bucket.chars().find(|c| matches!(c, ',' | '/' | '\\') || c.is_control() || c.is_whitespace()) {
        Some(c) => Err(format!("the bucket's name {bucket:?} holds {c:?}, which no bucket may")),
        None => Ok(()),
    }
}

fn normal_prefix(prefix: &str) -> String {
    if prefix.is_empty() || prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") }
}

/// What the configuration file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigFile {
    /// `[session.NAME]`
    pub sessions: BTreeMap<String, SessionConfig>,
    /// `[mount.NAME]`: the directories of `pailfs mount @NAME`.
    pub mounts: BTreeMap<String, BTreeMap<String, BucketDir>>,
    /// `[cost]`
    pub rates: Rates,
}

impl ConfigFile {
    /// Reads the file's text. An error names the line and the field, and never quotes a value that may be secret.
    pub fn parse(text: &str) -> Result<Self> {
        let raw: RawFile = toml::from_str(text).map_err(|error| {
            let place = match error.span() {
                Some(span) => {
                    let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
                    format!("line {line}: ")
                }
                None => String::new(),
            };
            invalid(format!("{place}{}", error.message().trim_end().replace('\n', ", ")))
        })?;
        let file = Self {
            sessions: raw.session,
            mounts: raw
                .mount
                .into_iter()
                .map(|(name, dirs)| (name, dirs.into_iter().map(|(dir, raw)| (dir, raw.0)).collect()))
                .collect(),
            rates: raw.cost,
        };
        file.check()?;
        Ok(file)
    }

    /// The settings of a session. The default session needs no entry.
    pub fn session(&self, name: &str) -> Result<SessionConfig> {
        match self.sessions.get(name) {
            Some(session) => Ok(session.clone()),
            None if name == DEFAULT_SESSION => Ok(SessionConfig::default()),
            None => Err(invalid(no_such_session(name, self.sessions.keys()))),
        }
    }

    /// The directories of `@NAME`.
    pub fn mount(&self, name: &str) -> Result<&BTreeMap<String, BucketDir>> {
        self.mounts.get(name).ok_or_else(|| {
            let known = self.mounts.keys().map(|name| format!("@{name}")).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {known}") };
            invalid(format!("the configuration has no [mount.{name}]; {known}"))
        })
    }

    /// Whether others than its owner must not read the file.
    pub fn holds_secrets(&self) -> bool {
        self.sessions.values().any(SessionConfig::holds_secrets)
    }

    fn check(&self) -> Result<()> {
        self.rates.check().map_err(|message| invalid(format!("[cost]: {message}")))?;
        for (name, session) in &self.sessions {
            session.check().map_err(|message| invalid(format!("[session.{name}]: {message}")))?;
        }
        for (mount, dirs) in &self.mounts {
            if dirs.is_empty() {
                return Err(invalid(format!("[mount.{mount}] names no bucket")));
            }
            for (dir, place) in dirs {
                check_dir_name(dir).map_err(|message| invalid(format!("[mount.{mount}]: {message}")))?;
                if place.session != DEFAULT_SESSION && !self.sessions.contains_key(&place.session) {
                    let message = no_such_session(&place.session, self.sessions.keys());
                    return Err(invalid(format!("[mount.{mount}] {dir}: {message}")));
                }
            }
        }
        Ok(())
    }
}

fn invalid(message: String) -> Error {
    Error::new(Kind::InvalidArgument, message)
}

fn no_such_session<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let known = known.map(String::as_str).collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none is configured".to_owned() } else { format!("there are {known}") };
    format!("there is no session {name:?}; {known}")
}

fn check_dir_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(format!("{name:?} cannot be the name of a directory"));
    }
    if name.len() > NAME_MAX_BYTES {
        return Err(format!("the name {name:?} is longer than {NAME_MAX_BYTES} bytes"));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    session: BTreeMap<String, SessionConfig>,
    #[serde(default)]
    mount: BTreeMap<String, BTreeMap<String, RawDir>>,
    #[serde(default)]
    cost: Rates,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    bucket: String,
    #[serde(default)]
    prefix: String,
    session: Option<String>,
    #[serde(default)]
    read_only: bool,
    storage_class: Option<String>,
    sse: Option<Sse>,
    sse_kms_key_id: Option<String>,
    sse_bucket_key: Option<bool>,
    acl: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

/// A bucket in its short form, `"s3://bucket/prefix"`, or its long one, a table.
struct RawDir(BucketDir);

impl<'de> Deserialize<'de> for RawDir {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RawDir;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"s3://bucket/prefix\" or { bucket = \"...\", ... }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawDir, E> {
                match S3Url::parse(text).map_err(|error| E::custom(error.message()))? {
                    S3Url::Bucket { bucket, prefix } => Ok(RawDir(BucketDir {
                        bucket,
                        prefix,
                        session: DEFAULT_SESSION.to_owned(),
                        read_only: false,
                        new_objects: NewObjects::default(),
                    })),
                    S3Url::AllBuckets => Err(E::custom("a bucket's name is missing")),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawDir, A::Error> {
                let raw = RawTable::deserialize(MapAccessDeserializer::new(map))?;
                check_bucket(&raw.bucket).map_err(de::Error::custom)?;
                let objects = ObjectSettings {
                    storage_class: raw.storage_class,
                    sse: raw.sse,
                    sse_kms_key_id: raw.sse_kms_key_id,
                    sse_bucket_key: raw.sse_bucket_key,
                    acl: raw.acl,
                    tags: raw.tags,
                };
                Ok(RawDir(BucketDir {
                    bucket: raw.bucket,
                    prefix: normal_prefix(&raw.prefix),
                    session: raw.session.unwrap_or_else(|| DEFAULT_SESSION.to_owned()),
                    read_only: raw.read_only,
                    new_objects: objects.check().map_err(|error| de::Error::custom(error.message()))?,
                }))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::PathStyle;

    const EXAMPLE: &str = r#"
        [session.work]
        profile = "work"
        region = "eu-west-1"

        [session.lab]
        access_key_id = "AKIDLAB"
        secret_access_key = "hush-hush"
        session_token = "psst"
        endpoint_url = "http://127.0.0.1:3900"
        path_style = "on"

        [mount.data]
        photos = { bucket = "my-photos", prefix = "2026", session = "work", read_only = true }
        logs = "s3://logs"
    "#;

    #[test]
    fn a_file_names_sessions_and_the_directories_of_a_mount() {
        let file = ConfigFile::parse(EXAMPLE).unwrap();
        assert_eq!(file.session("work").unwrap().profile.as_deref(), Some("work"));
        assert_eq!(file.session("lab").unwrap().path_style, Some(PathStyle::On));
        assert_eq!(file.session(DEFAULT_SESSION).unwrap(), SessionConfig::default());
        let dirs = file.mount("data").unwrap();
        assert_eq!(
            dirs["photos"],
            BucketDir {
                bucket: "my-photos".into(),
                prefix: "2026/".into(),
                session: "work".into(),
                read_only: true,
                new_objects: NewObjects::default(),
            }
        );
        assert_eq!(dirs["logs"].session, DEFAULT_SESSION);
        assert!(file.holds_secrets());
    }

    #[test]
    fn rates_that_are_not_said_are_amazon_s() {
        let file = ConfigFile::parse("[cost]\nget_per_1000 = 1\n").unwrap();
        assert_eq!(file.rates, Rates { get_per_1000: 1.0, put_per_1000: 0.005, delete_per_1000: 0.0 });
        assert_eq!(ConfigFile::parse("").unwrap().rates, Rates::default());
    }

    #[test]
    fn no_secret_shows_in_debug_output() {
        let text = format!("{:?}", ConfigFile::parse(EXAMPLE).unwrap());
        assert!(!text.contains("hush-hush") && !text.contains("psst"), "{text}");
    }

    #[test]
    fn no_secret_shows_in_an_error_about_its_line() {
        for line in [
            "secret_access_key = 8315551",
            "secret_access_key = 8315551-x",
            "secret_access_key = [\"8315551\"]",
            "secret_access_key = 8315551\"",
            "session_token = { a = \"8315551\" }",
        ] {
            let error = ConfigFile::parse(&format!("[session.a]\n{line}\n")).unwrap_err().report();
            assert!(error.contains("line 2"), "{error}");
            assert!(!error.contains("8315551"), "{error}");
        }
    }

    #[test]
    fn an_error_names_the_line_and_the_field() {
        for (text, wanted) in [
            ("[session.a]\nregion = \"x\"\nreggion = \"y\"\n", ["line 3", "reggion"]),
            ("[mount.m]\na = \"s3://b\"\nb = { bucket = \"c\", sesion = \"x\" }\n", ["line 3", "sesion"]),
            ("[mount.m]\na = \"b\"\n", ["line 2", "s3://bucket"]),
            ("[mount.m]\na = 5\n", ["line 2", "s3://bucket"]),
            ("[mount.m]\na = { prefix = \"x\" }\n", ["line 2", "bucket"]),
            ("[sessions.a]\n", ["line 1", "sessions"]),
            ("[cost]\nputs = 1\n", ["line 2", "puts"]),
            ("[cost]\nput_per_1000 = -1\n", ["[cost]", "put_per_1000"]),
            ("[cost]\nget_per_1000 = nan\n", ["[cost]", "get_per_1000"]),
            ("[session.a]\npath_style = \"maybe\"\n", ["line 2", "maybe"]),
            ("[mount.m]\na = { bucket = \"b,rw\" }\n", ["line 2", "','"]),
            ("[mount.m]\na = { bucket = \"b\", session = \"nobody\" }\n", ["nobody", "a"]),
            ("[mount.m]\n\"a/b\" = \"s3://b\"\n", ["[mount.m]", "a/b"]),
            ("[mount.m]\n", ["[mount.m]", "no bucket"]),
            ("[session.a]\naccess_key_id = \"x\"\n", ["[session.a]", "secret_access_key"]),
            ("[session.a]\nendpoint_url = \"http://u:p@h\"\n", ["[session.a]", "password"]),
            ("[session.a]\nprofile = \"p\"\nno_sign_request = true\n", ["[session.a]", "no_sign_request"]),
        ] {
            let error = ConfigFile::parse(text).unwrap_err().report();
            for word in wanted {
                assert!(error.contains(word), "{text:?}: {error:?} does not say {word:?}");
            }
        }
    }

    #[test]
    fn a_location_is_a_bucket_with_a_prefix_or_all_buckets() {
        let bucket =
            |bucket: &str, prefix: &str| S3Url::Bucket { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!(S3Url::parse("s3://").unwrap(), S3Url::AllBuckets);
        assert_eq!(S3Url::parse("s3://b").unwrap(), bucket("b", ""));
        assert_eq!(S3Url::parse("s3://b/").unwrap(), bucket("b", ""));
        assert_eq!(S3Url::parse("s3://b/x/y").unwrap(), bucket("b", "x/y/"));
        assert_eq!(S3Url::parse("s3://b//a,b\n/").unwrap(), bucket("b", "/a,b\n/"));
        for wrong in ["b", "s3:/b", "s3:///x", "s3://a,b", "s3://a\nb/x", "s3://a b", "https://b", ""] {
            assert!(S3Url::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest::proptest! {
        /// A file of pieces of a good one, in any order and with anything between, is read or refused in words.
        #[test]
        fn any_text_is_a_config_or_told_to_be_none(
            pieces in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0usize..60, ".{0,8}"), 0..12),
            garbage in proptest::prelude::any::<String>(),
        ) {
            let mut text = String::new();
            for (at, len, between) in pieces {
                text.extend(EXAMPLE.chars().skip(at.index(EXAMPLE.len())).take(len));
                text.push_str(&between);
            }
            for text in [&text, &garbage] {
                match ConfigFile::parse(text) {
                    Ok(file) => {
                        for name in ["default", "lab", "data", text] {
                            let _ = (file.session(name), file.mount(name));
                        }
                    }
                    Err(error) => assert!(!error.message().is_empty()),
                }
                let _ = S3Url::parse(text);
            }
        }
    }

    #[test]
    fn another_identity_on_the_command_line_replaces_the_whole_identity() {
        let file = ConfigFile::parse(EXAMPLE).unwrap();
        let over = SessionConfig { profile: Some("other".into()), ..Default::default() };
        let session = file.session("lab").unwrap().overridden_by(over);
        assert_eq!(session.profile.as_deref(), Some("other"));
        assert!(session.access_key_id.is_none() && !session.holds_secrets());
        assert_eq!(session.endpoint_url.as_deref(), Some("http://127.0.0.1:3900"));
    }

    #[test]
    fn a_mount_that_could_not_work_is_refused() {
        let site = Site {
            source: Source::Buckets { session: DEFAULT_SESSION.into(), new_objects: NewObjects::default() },
            sessions: BTreeMap::from([(DEFAULT_SESSION.into(), SessionConfig::default())]),
            timeout: Duration::from_secs(60),
            memory_limit: 64 << 20,
            state_dir: "/var/lib/pailfs".into(),
        };
        let good = MountConfig {
            mountpoint: "/mnt".into(),
            site: site.clone(),
            read_only: false,
            uid: 0,
            gid: 0,
            file_mode: 0o644,
            dir_mode: 0o755,
            allow_other: false,
            noexec: false,
            metadata_ttl: Duration::from_secs(1),
            negative_ttl: Duration::from_secs(1),
            cache: Some(Cache { dir: "/var/cache/pailfs".into(), limit_bytes: 1 << 30 }),
            passthrough: Passthrough::ReadOnly,
            state_reserve: None,
            durability: Durability::Close,
            upload_delay: Duration::ZERO,
            staging: StagingPlace::Disk,
            posix: PosixMode::Auto,
            exclusive: Exclusive::Everywhere,
            on_conflict: OnConflict::KeepBoth,
            trace_ops: None,
            control_socket: "/run/pailfs/x".into(),
            metrics_listen: None,
            rates: Rates::default(),
        };
        good.check().unwrap();
        let with = |site| MountConfig { site, ..good.clone() };
        let cache = |dir: &str, limit_bytes| Some(Cache { dir: dir.into(), limit_bytes });
        for (bad, word) in [
            (with(Site { memory_limit: 1 << 20, ..site.clone() }), "memory"),
            (with(Site { timeout: Duration::ZERO, ..site.clone() }), "timeout"),
            (MountConfig { dir_mode: 0o4755, ..good.clone() }, "directory mode"),
            (
                MountConfig {
                    staging: StagingPlace::Memory,
                    durability: Durability::Journal,
                    ..good.clone()
                },
                "--staging=memory writes nothing",
            ),
            (
                MountConfig {
                    staging: StagingPlace::Memory,
                    site: Site { memory_limit: 63 << 20, ..site.clone() },
                    ..good.clone()
                },
                "takes 64.0 MiB at least",
            ),
            (with(Site { state_dir: "/mnt/state".into(), ..site.clone() }), "state directory"),
            (MountConfig { cache: cache("/mnt/cache", 1 << 30), ..good.clone() }, "cache directory"),
            (MountConfig { trace_ops: Some("/mnt/ops".into()), ..good.clone() }, "--trace-ops"),
            (MountConfig { cache: cache("/c", 1 << 20), ..good.clone() }, "cache size"),
            (with(Site { sessions: BTreeMap::new(), ..site }), "session"),
        ] {
            let error = bad.check().unwrap_err().report();
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }

    #[test]
    fn default_limits_are_bounded_shares() {
        assert_eq!(default_memory_limit(0), 64 << 20);
        assert_eq!(default_memory_limit(2 << 30), 512 << 20);
        assert_eq!(default_memory_limit(u64::MAX), 1 << 30);
        assert_eq!(default_cache_limit(50 << 30), 5 << 30);
        assert_eq!(default_cache_limit(u64::MAX), 10 << 30);
    }
}
