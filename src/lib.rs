//! pailfs mounts S3 buckets as directories: one file is one object, and every standard Unix tool works on it.
//!
//! This page is the map. The promises to users are in `docs/SEMANTICS.md`; each module opens with what it
//! owns, what it does not, and what it guarantees.
//!
//! # Words
//! A *session* is an AWS identity and its defaults, a *client* what a session makes for one region and
//! endpoint, a *bucket*, *object*, *key*, *version ID* and *region* what S3 calls so. The *mount* is the running
//! file system; nothing else is called a session. A *part* belongs to a multipart upload, a *block* to the read
//! cache on disk, a *piece* to bytes in memory, an *extent* to a file being written.
//!
//! # The house
//! Arrows point down only.
//!
//! ```text
//! main -> cli -> mount (composition root), control, demo
//!         mount -> config, s3::Session, fs, fuse, control, stats
//!                  fuse -> fs         control -> stats
//!                         fs -> tree, read, write
//!                              tree | read | write      siblings: never each other
//!                                   -> s3 -> base, error, stats
//! ```
//!
//! What is absent, on purpose: nothing outside [`s3`] names the AWS SDK; nothing outside [`fuse`] names fuser;
//! nothing below [`cli`] reads the environment but `s3::session`, which is what a session is; of clap nothing below it
//! knows more than that the choices in [`base`] have words on a command line; no plain lock
//! lives across an await; a pure file does no I/O, reads no clock and logs nothing.
//!
//! # Lock order
//! 1. turns at names (async), in ascending order of their directories' inodes and the names;
//! 2. claims on a volume's keys (async): whatever changes a key shares it, the rename of a directory has all below
//!    both its names alone;
//! 3. files' commit locks (async), in ascending order of their inodes;
//! 4. turns at directories' markers (async), one at a time;
//! 5. plain mutexes, short: a volume's queue of deletes, the table of open files, then a file's state; the tree, alone
//!    or under the queue or a file's state;
//! 6. leaves: bytes in memory and on their way, what listings said of files, kernel pages known, counters.
//!
//! # Life of a read
//! [`fuse`] decodes it; [`fs`] finds the open file; bytes written here and not yet in S3 answer first; for the
//! rest the handle's window says what to want, pieces in memory answer, then blocks on disk, and one GET per
//! missing run fetches what is not there, with `If-Match` of the version the file was opened at. What memory
//! holds is answered on the FUSE thread itself; what is whole on disk may be the kernel's to read, and then no
//! read comes here at all.
//!
//! # Life of a write
//! [`fuse`] hands over the kernel's buffer; it goes straight into the staging file, then a line of the journal says
//! what was written, then the file's extents record it under a new stamp, and then it is answered. While a file is
//! written from its beginning on, parts that are full leave; where the local disk is short it gets back what S3 has.
//! `close` or `fsync` plans a commit: one Put, or parts to upload and parts to copy; a range copied from another file
//! is a run of its object until then. The commit is conditional on the version the file was opened from. When S3 has
//! answered 200, everything up to the commit's stamp is clean, the journal hears of it, and the tree learns the new
//! ETag. On failure nothing was forgotten.
//!
//! With `--durability=journal`, `close` waits until the staging file and the journal are on the local disk instead; of a
//! small file the journal has the bytes as well, and is all that is waited for. Its upload begins a little later, and never
//! if the file is gone by then.
//! What a mount still owed when it ended, however it did, the next one takes up: the files are in the tree again, with
//! their extents and staging files, and are committed in the background.
//!
//! # Life of an attribute
//! Mode, owner, times and extended attributes are an object's user metadata. A change of a file is a change like a write: it is
//! in the journal, rides with the upload of a file that is being written, and otherwise waits a moment and goes as one copy of
//! the object onto itself; of a directory it is a Put of its marker. LIST does not tell them: a directory's marker says that
//! what is in it is worth a HEAD each, and what one told is kept on disk for as long as LIST shows the same version.
//!
//! # Life of a delete
//! The object goes, then the name; `unlink` waits for both. Of files removed in a row, as `rm -r` does, the tree
//! buries the name and `unlink` returns; the object's key and version wait in the volume's queue for company and go
//! in one DeleteObjects. Until S3 has answered, nothing it says brings the name back; if it refused, the name is
//! there again, and the next `rmdir` or `fsync` of the directory says why.

// Numbers in tests are small and made for the purpose.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod base;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod mount;
pub mod read;
pub mod s3;
pub mod stats;
pub mod tree;
pub mod write;
