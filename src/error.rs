//! One error type: its kind says what the caller can do, and one table turns a kind into an errno.
//!
//! An outer error's `Display` never repeats its source; the chain is logged once, at the edge.

use std::fmt::{self, Write as _};
use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, told by what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such object, version, upload or file.
    NotFound,
    /// No such bucket: nothing under it will work until it is made.
    NoSuchBucket,
    /// It exists already and was asked to be new.
    AlreadyExists,
    /// The object is no longer the version the request named (412).
    Stale,
    /// Another request was changing the same key (409): try again.
    Conflict,
    /// The identity may not do this (403).
    AccessDenied,
    /// There are no credentials, or the server does not accept them.
    Credentials,
    /// Archived: it has to be restored before it can be read.
    Archived,
    /// The range lies outside of the object (416).
    InvalidRange,
    /// The server does not offer this (501, 405).
    Unsupported,
    /// The request itself is wrong.
    InvalidArgument,
    NameTooLong,
    /// Larger than S3 or a limit of ours allows.
    TooLarge,
    NoSpace,
    /// No extended attribute of that name.
    NoAttribute,
    /// An extended attribute's value that has no room in any object's metadata.
    AttributeTooLarge,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    /// Source and target belong to different sessions or endpoints.
    CrossDevice,
    ReadOnly,
    BadHandle,
    NotPermitted,
    /// The server asked to slow down, and the retries are used up (503, 429).
    Throttled,
    /// A deadline passed.
    TimedOut,
    /// The endpoint cannot be reached.
    Unreachable,
    /// The answer breaks the protocol, or bytes do not match their checksum or length.
    Corrupt,
    /// The server failed (5xx), and the retries are used up.
    Server,
    /// The machine we run on failed: local disk, kernel.
    Local,
    /// A defect of ours.
    Internal,
}

impl Kind {
    /// The one table from kinds to errnos (DESIGN §2.11; docs/TROUBLESHOOTING.md lists it by errno).
    pub fn errno(self) -> i32 {
        use rustix::io::Errno;
        let errno = match self {
            Self::NotFound => Errno::NOENT,
            Self::NoSuchBucket => Errno::NXIO,
            Self::AlreadyExists => Errno::EXIST,
            Self::Stale => Errno::STALE,
            Self::Conflict => Errno::BUSY,
            Self::AccessDenied | Self::Credentials => Errno::ACCESS,
            Self::Archived => Errno::REMOTEIO,
            Self::InvalidRange | Self::InvalidArgument => Errno::INVAL,
            Self::Unsupported => Errno::OPNOTSUPP,
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::TooLarge => Errno::FBIG,
            Self::NoSpace => Errno::NOSPC,
            Self::NoAttribute => Errno::NODATA,
            Self::AttributeTooLarge => Errno::TOOBIG,
            Self::IsADirectory => Errno::ISDIR,
            Self::NotADirectory => Errno::NOTDIR,
            Self::NotEmpty => Errno::NOTEMPTY,
            Self::CrossDevice => Errno::XDEV,
            Self::ReadOnly => Errno::ROFS,
            Self::BadHandle => Errno::BADF,
            Self::NotPermitted => Errno::PERM,
            Self::TimedOut => Errno::TIMEDOUT,
            Self::Throttled
            | Self::Unreachable
            | Self::Corrupt
            | Self::Server
            | Self::Local
            | Self::Internal => Errno::IO,
        };
        errno.raw_os_error()
    }

    /// The kind's name in counters and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NoSuchBucket => "no_such_bucket",
            Self::AlreadyExists => "already_exists",
            Self::Stale => "stale",
            Self::Conflict => "conflict",
            Self::AccessDenied => "access_denied",
            Self::Credentials => "credentials",
            Self::Archived => "archived",
            Self::InvalidRange => "invalid_range",
            Self::Unsupported => "unsupported",
            Self::InvalidArgument => "invalid_argument",
            Self::NameTooLong => "name_too_long",
            Self::TooLarge => "too_large",
            Self::NoSpace => "no_space",
            Self::NoAttribute => "no_attribute",
            Self::AttributeTooLarge => "attribute_too_large",
            Self::IsADirectory => "is_a_directory",
            Self::NotADirectory => "not_a_directory",
            Self::NotEmpty => "not_empty",
            Self::CrossDevice => "cross_device",
            Self::ReadOnly => "read_only",
            Self::BadHandle => "bad_handle",
            Self::NotPermitted => "not_permitted",
            Self::Throttled => "throttled",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Corrupt => "corrupt",
            Self::Server => "server",
            Self::Local => "local",
            Self::Internal => "internal",
        }
    }

    /// What to do about it, in words; empty where the kind says it all.
    pub fn advice(self) -> &'static str {
        match self {
            Self::NoSuchBucket => "check the bucket's name and the endpoint",
            Self::AccessDenied => "the session's identity lacks a permission (IAM, bucket policy or ACL)",
            Self::Credentials => {
                "check the session's keys or profile: `pailfs sessions check` tells who the caller is"
            }
            Self::Archived => "restore the object first (S3 RestoreObject), then read it",
            Self::Stale => "another client changed the object; open it again",
            Self::Throttled => "the endpoint asked to slow down; use fewer parallel programs or try later",
            Self::TimedOut => "check the network or raise --timeout",
            Self::Unreachable => "check the endpoint's address, the network and the proxy settings",
            Self::Corrupt => "the endpoint's answer was damaged or breaks the protocol",
            Self::Server => "the endpoint failed; its request id helps its operator",
            _ => "",
        }
    }

    /// Whether the same request may well succeed a moment later.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Throttled
                | Self::TimedOut
                | Self::Unreachable
                | Self::Server
                | Self::Conflict
                | Self::Corrupt
        )
    }
}

/// What is known of a failed request, for the fields of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Details<'a> {
    /// The request's name in S3's API.
    pub request: Option<&'a str>,
    pub bucket: Option<&'a str>,
    pub key: Option<&'a str>,
    pub code: Option<&'a str>,
    pub status: Option<u16>,
    pub request_id: Option<&'a str>,
}

/// A failed operation: what it was, on what, and what S3 said.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    operation: Option<&'static str>,
    bucket: Option<String>,
    key: Option<String>,
    code: Option<String>,
    status: Option<u16>,
    request_id: Option<String>,
    host_id: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                operation: None,
                bucket: None,
                key: None,
                code: None,
                status: None,
                request_id: None,
                host_id: None,
                source: None,
            }),
        }
    }

    /// An answer of S3, by its error code (`NoSuchKey`, `PreconditionFailed`, ...).
    pub fn s3(kind: Kind, code: &str, message: impl Into<String>) -> Self {
        Self::new(kind, message).with_code(code)
    }

    #[must_use]
    pub fn with_code(mut self, code: &str) -> Self {
        self.inner.code = Some(code.to_owned());
        self
    }

    /// Says more.
    #[must_use]
    pub fn and(mut self, more: &str) -> Self {
        self.inner.message = format!("{}; {more}", self.inner.message);
        self
    }

    /// Names the request: the operation and what it was about. The innermost caller wins.
    #[must_use]
    pub fn on(mut self, operation: &'static str, bucket: &str, key: &str) -> Self {
        let inner = &mut self.inner;
        inner.operation.get_or_insert(operation);
        if inner.bucket.is_none() && !bucket.is_empty() {
            inner.bucket = Some(bucket.to_owned());
        }
        if inner.key.is_none() && !key.is_empty() {
            inner.key = Some(key.to_owned());
        }
        self
    }

    #[must_use]
    pub fn with_answer(
        mut self,
        status: Option<u16>,
        request_id: Option<&str>,
        host_id: Option<&str>,
    ) -> Self {
        self.inner.status = status;
        self.inner.request_id = request_id.map(str::to_owned);
        self.inner.host_id = host_id.map(str::to_owned);
        self
    }

    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    pub fn kind(&self) -> Kind {
        self.inner.kind
    }
    pub fn errno(&self) -> i32 {
        self.inner.kind.errno()
    }
    /// S3's error code, where S3 answered.
    pub fn code(&self) -> Option<&str> {
        self.inner.code.as_deref()
    }
    /// The HTTP status, where S3 answered.
    pub fn status(&self) -> Option<u16> {
        self.inner.status
    }
    pub fn request_id(&self) -> Option<&str> {
        self.inner.request_id.as_deref()
    }
    /// `x-amz-id-2`, which AWS support asks for beside the request id.
    pub fn host_id(&self) -> Option<&str> {
        self.inner.host_id.as_deref()
    }
    pub fn message(&self) -> &str {
        &self.inner.message
    }
    pub fn is_not_found(&self) -> bool {
        self.kind() == Kind::NotFound
    }

    /// What this error and its causes tell of the request, the outermost first.
    pub fn details(&self) -> Details<'_> {
        let mut details = Details::default();
        let mut at: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = at {
            if let Some(Self { inner }) = error.downcast_ref::<Self>() {
                details.request = details.request.or(inner.operation);
                details.bucket = details.bucket.or(inner.bucket.as_deref());
                details.key = details.key.or(inner.key.as_deref());
                details.code = details.code.or(inner.code.as_deref());
                details.status = details.status.or(inner.status);
                details.request_id = details.request_id.or(inner.request_id.as_deref());
            }
            at = error.source();
        }
        details
    }

    /// Whether what was asked for may have been done all the same, and only the answer was lost.
    pub fn may_have_happened(&self) -> bool {
        matches!(self.kind(), Kind::TimedOut | Kind::Unreachable | Kind::Corrupt | Kind::Server)
    }

    /// The same failure for another waiter of a shared request; the source chain stays with the first.
    pub fn duplicate(&self) -> Self {
        let inner = &self.inner;
        Self {
            inner: Box::new(Inner {
                kind: inner.kind,
                message: inner.message.clone(),
                operation: inner.operation,
                bucket: inner.bucket.clone(),
                key: inner.key.clone(),
                code: inner.code.clone(),
                status: inner.status,
                request_id: inner.request_id.clone(),
                host_id: inner.host_id.clone(),
                source: None,
            }),
        }
    }

    /// The whole story on one line: the error, its causes, and what to do.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = OneLine(&cause.to_string()).to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        let advice = self.kind().advice();
        if !advice.is_empty() {
            text.push_str("; ");
            text.push_str(advice);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        if let Some(operation) = inner.operation {
            write!(f, "{operation}")?;
            match (&inner.bucket, &inner.key) {
                (Some(bucket), Some(key)) => write!(f, " s3://{}/{}", OneLine(bucket), key.escape_debug())?,
                (Some(bucket), None) => write!(f, " s3://{}", OneLine(bucket))?,
                _ => {}
            }
            f.write_str(": ")?;
        }
        write!(f, "{}", OneLine(&inner.message))?;
        let mut facts = Vec::new();
        if let Some(code) = &inner.code {
            facts.push(code.clone());
        }
        if let Some(status) = inner.status {
            facts.push(format!("HTTP {status}"));
        }
        if let Some(id) = &inner.request_id {
            facts.push(format!("request id {id}"));
        }
        if !facts.is_empty() {
            write!(f, " ({})", OneLine(&facts.join(", ")))?;
        }
        Ok(())
    }
}

/// What a server says, or another program: a terminal obeys control characters, and a log takes what follows the end of a line
/// for another one.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.inner.source {
            Some(source) => Some(&**source),
            None => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            io::ErrorKind::PermissionDenied => Kind::NotPermitted,
            io::ErrorKind::FileTooLarge => Kind::TooLarge,
            _ => Kind::Local,
        };
        Self::new(kind, error.to_string()).with_source(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_of_a_request_are_found_below_what_was_made_of_its_failure() {
        let denied = Error::s3(Kind::AccessDenied, "AccessDenied", "no")
            .with_answer(Some(403), Some("REQ1"), None)
            .on("PutObject", "b", "k");
        let outer = Error::new(Kind::Stale, "another client was first").with_source(denied);
        let details = Details {
            request: Some("PutObject"),
            bucket: Some("b"),
            key: Some("k"),
            code: Some("AccessDenied"),
            status: Some(403),
            request_id: Some("REQ1"),
        };
        assert_eq!(outer.details(), details);
        assert_eq!(Error::new(Kind::Internal, "x").details(), Details::default());
    }

    #[test]
    fn whatever_a_server_says_is_one_line_that_no_terminal_obeys() {
        let said = "no\n2026 INFO pailfs: all is well\r\x1b]0;title\x07\u{9b}2J";
        let error = Error::s3(Kind::Server, "a\nb", said)
            .with_answer(Some(500), Some("x\ty"), None)
            .on("GetObject", "b\x1b", "k\n")
            .with_source(io::Error::other("below\nit"));
        for text in [error.to_string(), error.report()] {
            assert!(!text.contains(char::is_control), "{text:?}");
            assert!(text.contains("all is well"), "{text}");
        }
        assert!(error.report().contains(": below\\nit"), "{}", error.report());
    }

    #[test]
    fn a_report_names_request_code_id_and_advice_once() {
        let error = Error::s3(Kind::AccessDenied, "AccessDenied", "Access Denied")
            .with_answer(Some(403), Some("REQ1"), None)
            .on("GetObject", "b", "k\n")
            .on("open", "other", "other");
        assert_eq!(
            error.report(),
            "GetObject s3://b/k\\n: Access Denied (AccessDenied, HTTP 403, request id REQ1); \
             the session's identity lacks a permission (IAM, bucket policy or ACL)"
        );
        assert_eq!(error.errno(), 13);
    }
}
