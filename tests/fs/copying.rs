//! Copies, holes and space: random operations against byte arrays, and what copies cost.

use std::collections::BTreeMap;

use pailfs::error::Kind;
use pailfs::fs::{Hole, SetAttr, Space};
use pailfs::s3::{Condition, PutRequest, Store};
use pailfs::tree::Ino;
use proptest::prelude::*;

use crate::client::{BUCKET, Client, READ, WRITE, kind_of};
use crate::harness::block_on;

const MIB: usize = 1 << 20;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

/// What cp does with two open files: asks for everything until there is no more.
async fn copy_all(client: &Client, from: (Ino, u64), to: (Ino, u64)) -> pailfs::error::Result<u64> {
    let mut at = 0;
    loop {
        match client.fs.copy_range((from.1, at), (to.1, at), u64::from(u32::MAX)).await? {
            0 => return Ok(at),
            copied => at += copied,
        }
    }
}

async fn cp(client: &Client, from: &str, to: &str) -> pailfs::error::Result<()> {
    let (source, target) = (client.open(from, READ).await?, client.open(to, WRITE).await?);
    let copied = copy_all(client, source, target).await;
    client.close(source).await?;
    client.close(target).await?;
    copied.map(drop)
}

/// An object that was uploaded in parts, as most tools upload large ones.
async fn put_in_parts(client: &Client, key: &str, bytes: &[u8]) {
    let upload = client.store.create_upload(BUCKET, key, Default::default()).await.unwrap();
    let mut parts = Vec::new();
    for (number, part) in (1..).zip(bytes.chunks(8 * MIB)) {
        parts.push(client.store.upload_part(&upload, number, part.to_vec().into(), None).await.unwrap());
    }
    client.store.complete_upload(&upload, parts, Condition::Any).await.unwrap();
}

fn count(client: &Client, operation: &str) -> usize {
    client.store.calls().iter().filter(|call| **call == operation).count()
}

// ---- what it costs

#[test]
fn a_copy_of_an_object_moves_no_bytes() {
    block_on(async {
        let bytes = pattern(64 * MIB, 1);
        for in_parts in [false, true] {
            let client = Client::new();
            match in_parts {
                false => client.put_object("f", &bytes).await,
                true => put_in_parts(&client, "f", &bytes).await,
            }
            client.store.clear_calls();
            let (sent, received) = (client.stats.bytes_sent.value(), client.stats.bytes_received.value());
            cp(&client, "f", "g").await.unwrap();
            assert_eq!(client.stats.bytes_sent.value(), sent);
            assert_eq!(client.stats.bytes_received.value(), received);
            assert_eq!(count(&client, "GetObject") + count(&client, "PutObject"), 0);
            assert_eq!(count(&client, "UploadPart"), 0);
            let copies = (count(&client, "CopyObject"), count(&client, "UploadPartCopy"));
            assert_eq!(copies, if in_parts { (0, 1) } else { (1, 0) }, "{:?}", client.store.calls());
            assert!(client.object("g").await.unwrap() == bytes);
            assert!(client.read("g").await.unwrap() == bytes);
        }
    });
}

#[test]
fn small_files_are_copied_by_one_request_each() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"small").await;
        client.put_object("empty", b"").await;
        cp(&client, "f", "g").await.unwrap();
        assert_eq!((count(&client, "CopyObject"), count(&client, "GetObject")), (1, 0));
        assert_eq!(client.object("g").await.unwrap(), b"small");
        cp(&client, "empty", "h").await.unwrap();
        assert_eq!(client.object("h").await.unwrap(), b"");
    });
}

#[test]
fn a_copy_into_a_larger_file_sends_the_parts_that_are_mixed_alone() {
    block_on(async {
        let client = Client::new();
        let (source, old) = (pattern(40 * MIB, 2), pattern(100 * MIB, 3));
        client.put_object("f", &source).await;
        client.put_object("g", &old).await;
        let sent = client.stats.bytes_sent.value();
        let (from, to) = (client.open("f", READ).await.unwrap(), client.open("g", WRITE).await.unwrap());
        let (at, place) = (MIB as u64 + 7, 30 * MIB as u64 + 1);
        let copied = client.fs.copy_range((from.1, at), (to.1, place), 39 * MIB as u64 - 7).await.unwrap();
        assert_eq!(copied, 39 * MIB as u64 - 7);
        client.close(to).await.unwrap();
        client.close(from).await.unwrap();
        let mut expected = old;
        expected[30 * MIB + 1..69 * MIB - 6].copy_from_slice(&source[MIB + 7..]);
        assert!(client.object("g").await.unwrap() == expected);
        let sent = client.stats.bytes_sent.value() - sent;
        assert!(sent <= 16 * MIB as u64, "{sent} bytes sent; two parts are mixed");
        assert!(count(&client, "UploadPartCopy") >= 3);
    });
}

#[test]
fn the_copy_keeps_what_is_stored_beside_the_target_s_bytes() {
    block_on(async {
        let client = Client::new();
        for (key, kind) in [("f", "text/source"), ("g", "text/target")] {
            let mut request = PutRequest {
                bucket: BUCKET.to_owned(),
                key: key.to_owned(),
                body: key.to_owned().into(),
                ..PutRequest::default()
            };
            request.attributes.content_type = Some(kind.to_owned());
            request.attributes.metadata.insert("of".to_owned(), key.to_owned());
            client.store.put(request).await.unwrap();
        }
        cp(&client, "f", "g").await.unwrap();
        assert_eq!(count(&client, "CopyObject"), 1);
        assert_eq!(client.object("g").await.unwrap(), b"f");
        let now = client.store.head(BUCKET, "g", None).await.unwrap().attributes;
        assert_eq!(now.content_type.as_deref(), Some("text/target"));
        assert_eq!(now.metadata["of"], "g");
    });
}

#[test]
fn a_server_that_cannot_copy_parts_is_sent_them() {
    block_on(async {
        let client = Client::new();
        let bytes = pattern(40 * MIB, 4);
        put_in_parts(&client, "f", &bytes).await;
        client.store.refuse("UploadPartCopy", Kind::Unsupported, pailfs::s3::When::Before);
        cp(&client, "f", "g").await.unwrap();
        assert!(client.object("g").await.unwrap() == bytes);
        assert_eq!(count(&client, "UploadPart"), 5 + 5, "in parts that fit in memory");
    });
}

// ---- refusals, and other clients

#[test]
fn a_range_is_not_copied_over_itself() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"0123456789").await;
        let file = client.open("f", WRITE).await.unwrap();
        let over = client.fs.copy_range((file.1, 0), (file.1, 4), 5).await;
        assert_eq!(kind_of(over), Kind::InvalidArgument);
        assert_eq!(client.fs.copy_range((file.1, 0), (file.1, 5), 5).await.unwrap(), 5);
        assert_eq!(client.fs.copy_range((file.1, 10), (file.1, 20), 5).await.unwrap(), 0);
        let reader = client.open("f", READ).await.unwrap();
        assert_eq!(kind_of(client.fs.copy_range((file.1, 0), (reader.1, 5), 5).await), Kind::BadHandle);
        client.close(reader).await.unwrap();
        client.close(file).await.unwrap();
        assert_eq!(client.object("f").await.unwrap(), b"0123401234");
    });
}

#[test]
fn copies_go_between_buckets_of_one_session_alone() {
    block_on(async {
        let client = Client::new().with_sessions("a", "a");
        client.put_object("1/f", b"bytes").await;
        cp(&client, "one/f", "two/g").await.unwrap();
        assert_eq!((count(&client, "CopyObject"), count(&client, "GetObject")), (1, 0));
        assert_eq!(client.object("2/g").await.unwrap(), b"bytes");
        // What is removed there is kept for what is copied here.
        let (from, to) =
            (client.open("one/f", READ).await.unwrap(), client.open("two/h", WRITE).await.unwrap());
        copy_all(&client, from, to).await.unwrap();
        client.unlink("one/f").await.unwrap();
        client.close(to).await.unwrap();
        client.close(from).await.unwrap();
        assert_eq!(client.object("2/h").await.unwrap(), b"bytes");

        let client = client.with_sessions("a", "b");
        client.put_object("1/f", b"bytes").await;
        assert_eq!(kind_of(cp(&client, "one/f", "two/i").await), Kind::CrossDevice);
    });
}

#[test]
fn what_another_client_replaces_before_the_save_is_an_error_and_no_mixture() {
    block_on(async {
        for honest in [true, false] {
            let client = match honest {
                true => Client::new(),
                false => Client::new().with_conditions_unknown(),
            };
            client.store.ignore_conditions(!honest);
            for len in [1000, 6 * MIB, 18 * MIB] {
                client.put_object("f", &pattern(len, 5)).await;
                client.pass_ttl();
                let (from, to) =
                    (client.open("f", READ).await.unwrap(), client.open("g", WRITE).await.unwrap());
                copy_all(&client, from, to).await.unwrap();
                client.fs.write(to.1, len as u64, b"mine").await.unwrap();
                client.put_object("f", &pattern(len, 6)).await;
                assert_eq!(kind_of(client.fs.flush(to.1).await), Kind::Stale, "{len} bytes");
                assert_eq!(kind_of(client.fs.read(to.1, 5, 10).await), Kind::Stale);
                assert_eq!(client.fs.read(to.1, len as u64, 4).await.unwrap().concat(), b"mine");
                assert_eq!(client.keys().await, ["f"], "no copy, and no conflict copy");
                // What is copied again replaces what is lost.
                let again = client.open("f", READ).await.unwrap();
                copy_all(&client, again, to).await.unwrap();
                client.close(again).await.unwrap();
                client.close(from).await.unwrap();
                client.close(to).await.unwrap();
                let mut expected = pattern(len, 6);
                expected.extend(b"mine");
                assert!(client.object("g").await.unwrap() == expected);
                client.unlink("g").await.unwrap();
            }
        }
    });
}

#[test]
fn a_copy_of_what_is_gone_is_owed_until_it_is_removed() {
    block_on(async {
        for honest in [true, false] {
            let client = match honest {
                true => Client::new(),
                false => Client::new().with_conditions_unknown(),
            };
            client.store.ignore_conditions(!honest);
            // Of whole parts: a server that heeds no condition would copy them of the other version.
            put_in_parts(&client, "f", &pattern(6 * MIB, 5)).await;
            let (from, to) = (client.open("f", READ).await.unwrap(), client.open("g", WRITE).await.unwrap());
            copy_all(&client, from, to).await.unwrap();
            put_in_parts(&client, "f", &pattern(6 * MIB, 6)).await;
            assert_eq!(kind_of(client.close(to).await), Kind::Stale);
            client.close(from).await.unwrap();
            assert_eq!(client.keys().await, ["f"]);
            assert_eq!(client.fs.pending().len(), 1);
            client.unlink("g").await.unwrap();
            assert!(client.fs.pending().is_empty());
        }
    });
}

#[test]
fn a_copy_that_lost_the_race_for_its_name_is_kept_beside_the_winner() {
    block_on(async {
        let client = Client::new();
        let bytes = pattern(20 * MIB, 7);
        client.put_object("f", &bytes).await;
        let (from, to) = (client.open("f", READ).await.unwrap(), client.open("g", WRITE).await.unwrap());
        copy_all(&client, from, to).await.unwrap();
        client.put_object("g", b"theirs").await;
        assert_eq!(kind_of(client.close(to).await), Kind::Stale);
        client.close(from).await.unwrap();
        assert_eq!(client.object("g").await.unwrap(), b"theirs");
        let keys = client.keys().await;
        let copy = keys.iter().find(|key| key.contains(".conflict-")).expect("a conflict copy");
        assert!(client.object(copy).await.unwrap() == bytes);
    });
}

#[test]
fn a_source_opened_by_a_listing_s_word_is_copied_as_it_is_now() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"as it was listed").await;
        client.list("").await.unwrap();
        client.put_object("f", b"as it is").await;
        cp(&client, "f", "g").await.unwrap();
        assert_eq!(client.object("g").await.unwrap(), b"as it is");
    });
}

#[test]
fn a_save_under_way_outlives_the_loss_of_its_source_to_this_mount() {
    block_on(async {
        let client = std::sync::Arc::new(Client::new());
        let (bytes, other) = (pattern(6 * MIB, 8), pattern(6 * MIB, 9));
        for round in 0..60 {
            put_in_parts(&client, "f", &bytes).await;
            client.pass_ttl();
            let (from, to) = (client.open("f", READ).await.unwrap(), client.open("g", WRITE).await.unwrap());
            copy_all(&client, from, to).await.unwrap();
            let (saving, losing) = (std::sync::Arc::clone(&client), std::sync::Arc::clone(&client));
            let other = other.clone();
            let saving = tokio::spawn(async move { saving.close(to).await });
            let losing = tokio::spawn(async move {
                match round % 3 {
                    0 => losing.unlink("f").await,
                    1 => losing.rename("f", "moved").await,
                    _ => losing.write("f", &other).await,
                }
            });
            losing.await.unwrap().unwrap();
            saving.await.unwrap().unwrap();
            client.close(from).await.unwrap();
            assert!(client.object("g").await.unwrap() == bytes, "round {round}");
            client.unlink("g").await.unwrap();
        }
    });
}

// ---- against byte arrays

#[derive(Clone, Debug)]
enum Op {
    Open(usize, usize),
    Close(usize),
    Sync(usize),
    /// From one handle and place to another.
    Copy((usize, usize), (usize, usize), usize),
    Write(usize, usize, u8, usize),
    Truncate(usize, usize),
    Zero(usize, usize, usize, bool),
    Grow(usize, usize, usize, bool),
    /// By other programs on the mount.
    Overwrite(usize, u8, usize),
    Unlink(usize),
    Rename(usize, usize),
    RenameDir,
}

const NAMES: [&str; 5] = ["a", "b", "c", "d/x", "d/y"];
const HANDLES: usize = 3;

fn op() -> impl Strategy<Value = Op> {
    let (handle, name, place) = (0..HANDLES, 0..NAMES.len(), 0usize..24);
    let place = || place.clone();
    let handle = || handle.clone();
    let name = || name.clone();
    prop_oneof![
        6 => (handle(), name()).prop_map(|(h, n)| Op::Open(h, n)),
        3 => handle().prop_map(Op::Close),
        1 => handle().prop_map(Op::Sync),
        8 => (handle(), place(), handle(), place(), 1usize..24)
            .prop_map(|(from, at, to, place, len)| Op::Copy((from, at), (to, place), len)),
        3 => (handle(), place(), any::<u8>(), 1usize..12).prop_map(|(h, at, b, len)| Op::Write(h, at, b, len)),
        2 => (handle(), place()).prop_map(|(h, len)| Op::Truncate(h, len)),
        2 => (handle(), place(), 1usize..12, any::<bool>()).prop_map(|(h, at, n, k)| Op::Zero(h, at, n, k)),
        1 => (handle(), place(), 1usize..12, any::<bool>()).prop_map(|(h, at, n, k)| Op::Grow(h, at, n, k)),
        3 => (name(), any::<u8>(), place()).prop_map(|(n, b, len)| Op::Overwrite(n, b, len)),
        2 => name().prop_map(Op::Unlink),
        3 => (name(), name()).prop_map(|(a, b)| Op::Rename(a, b)),
        1 => Just(Op::RenameDir),
    ]
}

/// A file of the mount: what it has to show.
#[derive(Debug, Default)]
struct Model {
    bytes: Vec<u8>,
    is_dirty: bool,
    name: Option<&'static str>,
}

struct World {
    client: Client,
    /// How many bytes one step of a place is.
    unit: usize,
    files: Vec<Model>,
    handles: [Option<(usize, (Ino, u64))>; HANDLES],
    objects: BTreeMap<&'static str, Vec<u8>>,
}

impl World {
    async fn new(unit: usize) -> Self {
        let client = Client::new();
        let mut objects = BTreeMap::new();
        let mut files = Vec::new();
        // One of them was uploaded in parts.
        for (i, name) in NAMES.iter().enumerate().take(4) {
            let bytes = pattern((6 + 5 * i) * unit, i as u8);
            match i {
                1 => put_in_parts(&client, name, &bytes).await,
                _ => client.put_object(name, &bytes).await,
            }
            objects.insert(*name, bytes.clone());
            files.push(Model { bytes, is_dirty: false, name: Some(*name) });
        }
        client.put_object("d/", b"").await;
        Self { client, unit, files, handles: [None; HANDLES], objects }
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.files.iter().position(|file| file.name == Some(name))
    }

    fn saved(&mut self, file: usize) {
        let Model { bytes, is_dirty, name } = &mut self.files[file];
        if let Some(name) = name.filter(|_| *is_dirty) {
            self.objects.insert(name, bytes.clone());
            *is_dirty = false;
        }
    }

    fn change(&mut self, file: usize, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.files[file].bytes);
        self.files[file].is_dirty = true;
    }

    async fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let unit = self.unit;
        let fail = |error: pailfs::error::Error| TestCaseError::fail(format!("{op:?}: {}", error.report()));
        match *op {
            Op::Open(handle, name) if self.handles[handle].is_none() => {
                let open = self.client.open(NAMES[name], WRITE).await.map_err(fail)?;
                let file = self.named(NAMES[name]).unwrap_or_else(|| {
                    let name = Some(NAMES[name]);
                    self.files.push(Model { bytes: Vec::new(), is_dirty: true, name });
                    self.files.len() - 1
                });
                self.handles[handle] = Some((file, open));
            }
            Op::Close(handle) => {
                if let Some((file, open)) = self.handles[handle].take() {
                    self.client.close(open).await.map_err(fail)?;
                    self.saved(file);
                }
            }
            Op::Sync(handle) => {
                if let Some((file, open)) = self.handles[handle] {
                    self.client.fs.fsync(open.1).await.map_err(fail)?;
                    self.saved(file);
                }
            }
            Op::Copy((from, at), (to, place), len) => {
                let (Some((source, from)), Some((target, to))) = (self.handles[from], self.handles[to])
                else {
                    return Ok(());
                };
                self.copy((source, from.1, at * unit), (target, to.1, place * unit), len * unit).await?;
            }
            Op::Write(handle, at, byte, len) => {
                let Some((file, open)) = self.handles[handle] else { return Ok(()) };
                let bytes = vec![byte; len * unit];
                self.client.fs.write(open.1, (at * unit) as u64, &bytes).await.map_err(fail)?;
                self.change(file, |old| put(old, at * unit, &bytes));
            }
            Op::Truncate(handle, len) => {
                let Some((file, open)) = self.handles[handle] else { return Ok(()) };
                if self.files[file].name.is_none() || self.files[file].bytes.len() == len * unit {
                    return Ok(());
                }
                let set = SetAttr { size: Some((len * unit) as u64), ..SetAttr::default() };
                self.client.fs.setattr(open.0, Some(open.1), set).await.map_err(fail)?;
                self.change(file, |old| old.resize(len * unit, 0));
            }
            Op::Zero(handle, at, len, keep_size) | Op::Grow(handle, at, len, keep_size) => {
                let Some((file, open)) = self.handles[handle] else { return Ok(()) };
                let zero = matches!(op, Op::Zero(..));
                let (at, len) = (at * unit, len * unit);
                let space = Space { zero, keep_size };
                self.client.fs.fallocate(open.1, at as u64, len as u64, space).await.map_err(fail)?;
                let old = self.files[file].bytes.len();
                let end = if keep_size { old.min(at + len) } else { at + len };
                if zero && at < end {
                    self.change(file, |bytes| put(bytes, at, &vec![0; end - at]));
                } else if end > old {
                    self.change(file, |bytes| bytes.resize(end, 0));
                }
            }
            Op::Overwrite(name, byte, len) => {
                let bytes = vec![byte; len * unit];
                self.client.write(NAMES[name], &bytes).await.map_err(fail)?;
                let file = self.named(NAMES[name]).unwrap_or_else(|| {
                    self.files.push(Model { name: Some(NAMES[name]), ..Model::default() });
                    self.files.len() - 1
                });
                self.change(file, |old| *old = bytes);
                self.saved(file);
            }
            Op::Unlink(name) => {
                let Some(file) = self.named(NAMES[name]) else { return Ok(()) };
                self.client.unlink(NAMES[name]).await.map_err(fail)?;
                self.files[file].name = None;
                self.objects.remove(NAMES[name]);
            }
            Op::Rename(from, to) if from != to => {
                let Some(file) = self.named(NAMES[from]) else { return Ok(()) };
                self.client.rename(NAMES[from], NAMES[to]).await.map_err(fail)?;
                if self.objects.contains_key(NAMES[from]) {
                    self.saved(file);
                    let moved = self.objects.remove(NAMES[from]).unwrap();
                    self.objects.insert(NAMES[to], moved);
                }
                if let Some(replaced) = self.named(NAMES[to]) {
                    self.files[replaced].name = None;
                }
                self.files[file].name = Some(NAMES[to]);
            }
            // And back, so that the names are what they were.
            Op::RenameDir => {
                self.client.rename("d", "e").await.map_err(fail)?;
                self.client.rename("e", "d").await.map_err(fail)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// By copy_range, and by hand where it says so, as the kernel does.
    async fn copy(
        &mut self,
        (source, from, at): (usize, u64, usize),
        (target, to, place): (usize, u64, usize),
        len: usize,
    ) -> Result<(), TestCaseError> {
        let end = (at + len).min(self.files[source].bytes.len());
        let len = end.saturating_sub(at);
        let answer = self.client.fs.copy_range((from, at as u64), (to, place as u64), len as u64).await;
        let overlap = source == target && at < place + len && place < at + len;
        let copied = match answer {
            answer if len == 0 => {
                prop_assert!(matches!(&answer, Ok(0)) || kind_of(answer) == Kind::Unsupported);
                return Ok(());
            }
            Ok(copied) => copied as usize,
            Err(error) if error.kind() == Kind::InvalidArgument => {
                prop_assert!(overlap);
                return Ok(());
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), Kind::Unsupported, "{}", error.report());
                if overlap {
                    return Ok(());
                }
                let mut bytes = Vec::new();
                while bytes.len() < len {
                    let at = (at + bytes.len()) as u64;
                    let read = self.client.fs.read(from, at, (len - bytes.len()).min(MIB) as u32).await;
                    bytes.extend(read.map_err(|error| TestCaseError::fail(error.report()))?.concat());
                }
                let written = self.client.fs.write(to, place as u64, &bytes).await;
                prop_assert!(written.is_ok());
                len
            }
        };
        prop_assert!(!overlap && copied > 0 && copied <= len);
        let bytes = self.files[source].bytes[at..at + copied].to_vec();
        self.change(target, |old| put(old, place, &bytes));
        Ok(())
    }

    /// What has to show through the handles, under the names, and in the bucket.
    async fn check(&self) -> Result<(), TestCaseError> {
        let fail = |error: pailfs::error::Error| TestCaseError::fail(error.report());
        for (file, open) in self.handles.iter().flatten() {
            let file = &self.files[*file];
            let read = self.client.read_all(open.1).await.map_err(fail)?;
            prop_assert!(read == file.bytes, "{:?} shows other bytes", file.name);
            self.check_holes(file, open.1)?;
        }
        // A name removed in a row is gone at once, and its object a little later.
        let at = self.client.walk("d").await.map_err(fail)?;
        for dir in [pailfs::tree::ROOT, at.ino] {
            self.client.fs.fsyncdir(dir).await.map_err(fail)?;
        }
        self.client.fs.forget(at.ino, 1);
        for (name, expected) in &self.objects {
            let object = self.client.object(name).await;
            prop_assert!(object.as_ref() == Some(expected), "{} is another object", name);
        }
        let keys = self.client.keys().await.into_iter().filter(|key| key != "d/");
        prop_assert!(keys.eq(self.objects.keys().copied()), "{:?}", self.objects.keys());
        Ok(())
    }

    /// Holes are zeros, saved files have none, and the two ways of looking agree.
    fn check_holes(&self, file: &Model, fh: u64) -> Result<(), TestCaseError> {
        let seek = |at: u64, wanted| self.client.fs.seek(fh, at, wanted).unwrap();
        let len = file.bytes.len() as u64;
        prop_assert_eq!(seek(len, Hole::Yes), None);
        prop_assert_eq!(seek(len, Hole::No), None);
        let mut at = 0;
        while at < len {
            let data = seek(at, Hole::No).unwrap_or(len);
            prop_assert!(file.bytes[at as usize..data as usize].iter().all(|byte| *byte == 0));
            prop_assert!(file.is_dirty || file.name.is_none() || data == at, "a saved file has a hole");
            if data < len {
                at = seek(data, Hole::Yes).unwrap();
                prop_assert!(at > data);
            } else {
                at = len;
            }
        }
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn run(ops: &[Op], unit: usize, check_each: bool) -> Result<(), TestCaseError> {
    block_on(async {
        let mut world = World::new(unit).await;
        for op in ops {
            world.apply(op).await?;
            if check_each {
                world.check().await.map_err(|error| TestCaseError::fail(format!("after {op:?}: {error}")))?;
            }
        }
        world.check().await?;
        for handle in 0..HANDLES {
            world.apply(&Op::Close(handle)).await?;
        }
        world.check().await?;
        prop_assert!(world.client.fs.pending().is_empty());
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn small_copies_and_holes_are_what_byte_arrays_say(ops in proptest::collection::vec(op(), 1..30)) {
        run(&ops, 100, true)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 64, ..ProptestConfig::default() })]
    #[test]
    fn large_copies_and_holes_are_what_byte_arrays_say(ops in proptest::collection::vec(op(), 5..25)) {
        run(&ops, (1 << 20) + 1, false)?;
    }
}
