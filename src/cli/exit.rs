//! The exit codes: one table, which `docs/EXIT-CODES.md` repeats for people.

use std::process::ExitCode;

use crate::error::{Error, Kind};

macro_rules! codes {
    ($($variant:ident = $number:literal, $name:literal, $meaning:literal;)+) => {
        /// How the program ends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Code {
            $(#[doc = $meaning] $variant = $number,)+
        }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// One word for scripts and logs.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }

            /// The code of a number that another process of ours ended with.
            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

codes! {
    Ok = 0, "ok", "Done.";
    Failed = 1, "failed", "Failed for a reason that no other code names.";
    Usage = 2, "usage", "The command line is wrong.";
    Config = 3, "config", "The configuration file is wrong, unreadable, or writable by others.";
    Credentials = 4, "credentials", "There are no credentials, or the server does not accept them.";
    AccessDenied = 5, "access-denied", "The identity may not do this.";
    NoSuchBucket = 6, "no-such-bucket", "The bucket does not exist.";
    Unreachable = 7, "unreachable", "The endpoint cannot be reached or did not answer in time.";
    Server = 8, "server", "The endpoint failed, asked to slow down, or broke the protocol.";
    Mountpoint = 9, "mountpoint", "What is to be mounted on is missing, not a directory, or in use; or a mount is in use and stays.";
    Fuse = 10, "fuse", "FUSE is missing, or may not be used.";
    UnsavedData = 11, "unsaved-data", "Some bytes could not be saved to S3; the message names the files.";
    NotMounted = 12, "not-mounted", "No pailfs mount is there, or no such directory.";
    NoAnswer = 13, "no-answer", "The mount is there, but its process does not answer.";
    Local = 14, "local", "This machine failed: disk full, file not writable, and the like.";
    Internal = 70, "internal", "A defect of pailfs.";
}

impl Code {
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The code for a failure that the kind of its error tells all about.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Credentials => Self::Credentials,
            Kind::AccessDenied => Self::AccessDenied,
            Kind::NoSuchBucket => Self::NoSuchBucket,
            Kind::Unreachable | Kind::TimedOut => Self::Unreachable,
            Kind::Throttled | Kind::Server | Kind::Corrupt => Self::Server,
            Kind::InvalidArgument => Self::Usage,
            Kind::Local
            | Kind::NoSpace
            | Kind::NoAttribute
            | Kind::AttributeTooLarge
            | Kind::NotPermitted => Self::Local,
            Kind::Internal => Self::Internal,
            Kind::NotFound
            | Kind::AlreadyExists
            | Kind::Stale
            | Kind::Conflict
            | Kind::Archived
            | Kind::InvalidRange
            | Kind::Unsupported
            | Kind::NameTooLong
            | Kind::TooLarge
            | Kind::IsADirectory
            | Kind::NotADirectory
            | Kind::NotEmpty
            | Kind::CrossDevice
            | Kind::ReadOnly
            | Kind::BadHandle => Self::Failed,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

/// Why a command failed, and how the program ends because of it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: Code,
    /// What is printed, on one line.
    pub message: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// An error whose place tells more than its kind.
    pub fn coded(code: Code, error: &Error) -> Self {
        Self::new(code, error.report())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::coded(Code::of(error.kind()), &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_the_same_table() {
        let documented: Vec<&str> =
            include_str!("../../docs/EXIT-CODES.md").lines().filter(|line| line.starts_with("| `")).collect();
        let coded: Vec<String> = Code::ALL
            .iter()
            .map(|code| format!("| `{}` | {} | {} |", code.number(), code.name(), code.meaning()))
            .collect();
        assert_eq!(documented, coded);
    }

    #[test]
    fn numbers_and_names_are_unique_and_read_back() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(Code::from_number(code.number()), Some(*code));
            for other in &Code::ALL[..index] {
                assert_ne!(other.name(), code.name());
            }
        }
        assert_eq!(Code::from_number(255), None);
    }
}
