//! What a mount is asked to do where there is more than one right way: each choice with its words on the command line.
//!
//! The first line of a variant's comment is what `--help` says of it.

use clap::ValueEnum;
use serde::Deserialize;

/// What `close()` waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// S3 has the file
    #[default]
    Close,
    /// The local disk has it; S3 gets it behind
    Journal,
}

/// Where written bytes wait for their upload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StagingPlace {
    /// In the state directory, with a journal that outlives the process
    #[default]
    Disk,
    /// In memory: nothing is written to a disk, and what is not in S3 is lost with the process
    Memory,
}

/// Among whom `O_EXCL` decides who makes a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Exclusive {
    /// All clients of the bucket: one more request for each such file
    ///
    /// The name is claimed by an empty object before `open()` returns.
    #[default]
    Everywhere,
    /// The programs of this mount
    ///
    /// Among hosts it is decided when the file is saved.
    Mount,
}

/// What becomes of a save when another client was first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnConflict {
    /// It fails, and the bytes are kept in a conflict copy
    #[default]
    KeepBoth,
    /// It fails, and the bytes are dropped
    Fail,
    /// It replaces the other client's version
    ///
    /// Unless it needs bytes of the one from before.
    Overwrite,
}

/// How far owners, permissions and times of files are kept in S3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PosixMode {
    /// Whatever is set here; and asked for where a directory says that its files have any
    ///
    /// Listings do not tell attributes, so they cost a request for each file of such a directory.
    #[default]
    Auto,
    /// Of every file, and asked for everywhere
    Full,
    /// Nothing: what is set is accepted and forgotten
    Off,
}

/// Which files the kernel may read by itself, where they are whole in the cache directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Passthrough {
    /// In what is mounted read-only
    ///
    /// Nothing on this mount can write such files while they are read.
    #[value(name = "auto")]
    ReadOnly,
    /// Everywhere; who reads a file that is opened for writing later reads on in the version from before
    #[value(name = "on")]
    Always,
    /// Nowhere
    #[value(name = "off")]
    Never,
}

/// How S3 is to encrypt what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum Sse {
    /// With keys of S3
    #[value(name = "AES256")]
    #[serde(rename = "AES256")]
    Aes256,
    /// With a key of KMS
    #[value(name = "aws:kms")]
    #[serde(rename = "aws:kms")]
    Kms,
    /// With a key of KMS, twice
    #[value(name = "aws:kms:dsse")]
    #[serde(rename = "aws:kms:dsse")]
    KmsTwice,
}
