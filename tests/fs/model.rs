//! Random operations, with another client interfering, against a naive reference.
//!
//! The reference is a map of keys to bytes, and one function from it to the tree that has to show: there is one
//! definition of what is right. Names come from a tiny alphabet, so that collisions are common.

use std::collections::{BTreeMap, BTreeSet};

use pailfs::error::{Kind, Result};
use pailfs::tree::Ino;
use proptest::prelude::*;

use crate::client::{Client, WRITE, kind_of};
use crate::harness::block_on;

#[derive(Clone, Debug)]
enum Op {
    Write(String, u8, usize),
    WriteAt(String, u8, u64),
    Read(String),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    Rename(String, String),
    /// Another client, behind the mount's back and under open files; it is seen after the TTL.
    TheyPut(String, u8),
    TheyDelete(String),
    PassTtl,
    /// Opens a file for writing and holds it open, if none is held.
    Hold(String),
    WriteHeld(u8, u64),
    CloseHeld,
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("a-"), Just("b")];
    proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

/// The same, or the path that is held: empty until [`Op::on`].
fn path_or_held() -> impl Strategy<Value = String> {
    prop_oneof![2 => path(), 1 => Just(String::new())]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path_or_held(), any::<u8>(), 0usize..2000).prop_map(|(p, b, n)| Op::Write(p, b, n)),
        2 => (path_or_held(), any::<u8>(), 0u64..3000).prop_map(|(p, b, at)| Op::WriteAt(p, b, at)),
        1 => path_or_held().prop_map(Op::Read),
        3 => path_or_held().prop_map(Op::Unlink),
        3 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Rmdir),
        4 => (path_or_held(), path_or_held()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (path_or_held(), any::<u8>()).prop_map(|(p, b)| Op::TheyPut(p, b)),
        1 => path_or_held().prop_map(Op::TheyDelete),
        1 => Just(Op::PassTtl),
        3 => path_or_held().prop_map(Op::Hold),
        3 => (any::<u8>(), 0u64..40).prop_map(|(b, at)| Op::WriteHeld(b, at)),
        2 => Just(Op::CloseHeld),
    ]
}

impl Op {
    /// With the path that is held, or else a file's, where none is named.
    fn on(mut self, held: Option<&Held>, reference: &Reference) -> Self {
        let file =
            || reference.keys.keys().find(|key| !key.ends_with('/') && reference.is_file(key)).cloned();
        let named = held.map(|held| held.path.clone()).or_else(file).unwrap_or_else(|| "a".to_owned());
        let paths = match &mut self {
            Self::Write(path, ..)
            | Self::WriteAt(path, ..)
            | Self::Read(path)
            | Self::Unlink(path)
            | Self::TheyPut(path, _)
            | Self::TheyDelete(path)
            | Self::Hold(path) => vec![path],
            Self::Rename(from, to) => vec![from, to],
            _ => vec![],
        };
        for path in paths.into_iter().filter(|path| path.is_empty()) {
            path.clone_from(&named);
        }
        self
    }
}

#[derive(Clone, Debug, Default)]
struct Reference {
    keys: BTreeMap<String, Vec<u8>>,
}

impl Reference {
    fn is_dir(&self, path: &str) -> bool {
        path.is_empty() || self.below(&format!("{path}/")).next().is_some()
    }

    fn is_file(&self, path: &str) -> bool {
        !self.is_dir(path) && self.keys.contains_key(path)
    }

    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a String> + 'a {
        self.keys.keys().filter(move |key| key.starts_with(prefix))
    }

    /// The tree that has to show: paths with their bytes, directories with a `/`.
    fn tree(&self) -> Vec<(String, Vec<u8>)> {
        let mut shown = BTreeMap::new();
        for (key, bytes) in &self.keys {
            let mut dir = String::new();
            let parts: Vec<&str> = key.split('/').collect();
            for part in &parts[..parts.len() - 1] {
                dir = format!("{dir}{part}/");
                shown.insert(dir.clone(), Vec::new());
            }
            if key.ends_with('/') {
                if !bytes.is_empty() {
                    shown.insert(format!("{key}%~0"), bytes.clone());
                }
            } else if self.is_dir(key) {
                shown.insert(format!("{key}%~f"), bytes.clone());
            } else {
                shown.insert(key.clone(), bytes.clone());
            }
        }
        shown.into_iter().collect()
    }

    fn parent(path: &str) -> &str {
        path.rsplit_once('/').map_or("", |(dir, _)| dir)
    }

    /// What the directory of a path makes of an operation below it.
    fn check_parent(&self, path: &str) -> Result<(), Kind> {
        let mut at = String::new();
        for part in Self::parent(path).split('/').filter(|p| !p.is_empty()) {
            at = if at.is_empty() { part.to_owned() } else { format!("{at}/{part}") };
            if self.is_file(&at) {
                return Err(Kind::NotADirectory);
            }
            if !self.is_dir(&at) {
                return Err(Kind::NotFound);
            }
        }
        Ok(())
    }

    /// A directory does not vanish because its last entry went.
    fn keep(&mut self, dir: &str) {
        if !dir.is_empty() && !self.is_dir(dir) {
            self.keys.insert(format!("{dir}/"), Vec::new());
        }
    }

    fn write(&mut self, path: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Kind> {
        self.check_parent(path)?;
        if self.is_dir(path) {
            return Err(Kind::IsADirectory);
        }
        change(self.keys.entry(path.to_owned()).or_default());
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Result<(), Kind> {
        self.check_parent(path)?;
        if self.is_dir(path) {
            return Err(Kind::IsADirectory);
        }
        self.keys.remove(path).ok_or(Kind::NotFound)?;
        self.keep(Self::parent(path));
        Ok(())
    }

    fn mkdir(&mut self, path: &str) -> Result<(), Kind> {
        self.check_parent(path)?;
        if self.is_dir(path) || self.is_file(path) {
            return Err(Kind::AlreadyExists);
        }
        self.keys.insert(format!("{path}/"), Vec::new());
        Ok(())
    }

    fn rmdir(&mut self, path: &str) -> Result<(), Kind> {
        self.check_parent(path)?;
        if self.is_file(path) {
            return Err(Kind::NotADirectory);
        }
        if !self.is_dir(path) {
            return Err(Kind::NotFound);
        }
        let marker = format!("{path}/");
        if self.below(&marker).any(|key| *key != marker) {
            return Err(Kind::NotEmpty);
        }
        self.keys.remove(&marker);
        self.keep(Self::parent(path));
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Kind> {
        self.check_parent(from)?;
        self.check_parent(to)?;
        let (from_dir, from_file) = (self.is_dir(from), self.is_file(from));
        if !from_dir && !from_file {
            return Err(Kind::NotFound);
        }
        if from == to {
            return Ok(());
        }
        match (from_dir, self.is_dir(to), self.is_file(to)) {
            (true, _, true) => return Err(Kind::NotADirectory),
            (false, true, _) => return Err(Kind::IsADirectory),
            _ => {}
        }
        if !from_dir {
            let bytes = self.keys.remove(from).unwrap_or_default();
            self.keys.insert(to.to_owned(), bytes);
            self.keep(Self::parent(from));
            return Ok(());
        }
        if to.starts_with(&format!("{from}/")) {
            return Err(Kind::InvalidArgument);
        }
        let (old, new) = (format!("{from}/"), format!("{to}/"));
        if self.below(&new).any(|key| *key != new) {
            return Err(Kind::NotEmpty);
        }
        let moved: Vec<String> = self.below(&old).cloned().collect();
        // A marker of the replaced directory is the new one's.
        for key in moved {
            let bytes = self.keys.remove(&key).unwrap_or_default();
            self.keys.insert(format!("{new}{}", &key[old.len()..]), bytes);
        }
        self.keep(&new[..new.len() - 1]);
        self.keep(Self::parent(from));
        Ok(())
    }
}

/// A file that is held open for writing.
#[derive(Debug)]
struct Held {
    path: String,
    open: (Ino, u64),
    /// What S3 had when it was opened or last saved.
    base: Vec<u8>,
    bytes: Vec<u8>,
    /// Which of its bytes were written since.
    written: Vec<bool>,
    is_dirty: bool,
    /// Whether an open of its name gets it.
    is_current: bool,
    name: Named,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    /// Its name is its own.
    Yes,
    /// Another client took it, and it was seen.
    Taken,
    /// It was removed or replaced here.
    Removed,
    /// A save was a lost race.
    Lost,
}

impl Held {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let len = self.bytes.len().max(at + bytes.len());
        // What lies between the end and the place is zeros, written too.
        self.bytes.resize(len, 0);
        self.written.resize(len, true);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.written[at..at + bytes.len()].fill(true);
        self.is_dirty = true;
    }

    /// Whether what is written through another open of the name is written to this.
    fn shares(&self, path: &str) -> bool {
        self.is_current && self.path == path
    }

    /// What a conflict copy has where this was the winner.
    fn copy(&self, winner: &[u8]) -> Vec<u8> {
        let or_winners = |(i, byte): (usize, &u8)| match self.written[i] {
            true => *byte,
            false => winner.get(i).copied().unwrap_or(0),
        };
        self.bytes.iter().enumerate().map(or_winners).collect()
    }

    /// Whether the other client took the name from under bytes that are not saved: lookups find it still.
    fn is_undead(&self, reference: &Reference) -> bool {
        self.is_current && self.is_dirty && !reference.keys.contains_key(&self.path)
    }
}

/// What the reference makes of saving the held file, and the conflict copy that has to be there then.
fn save(held: &mut Held, reference: &mut Reference) -> (Result<(), Kind>, Option<Vec<u8>>) {
    if !held.is_dirty || matches!(held.name, Named::Removed | Named::Lost) {
        return (Ok(()), None);
    }
    let current = reference.keys.get(&held.path);
    if current != Some(&held.base) {
        let copy = held.copy(current.map_or(&[], Vec::as_slice));
        (held.name, held.is_current, held.is_dirty) = (Named::Lost, false, false);
        return (Err(Kind::Stale), Some(copy));
    }
    reference.keys.insert(held.path.clone(), held.bytes.clone());
    held.base.clone_from(&held.bytes);
    held.written.fill(false);
    held.is_dirty = false;
    (Ok(()), None)
}

/// Takes the one conflict copy out of the bucket.
async fn take_copy(client: &Client) -> Option<Vec<u8>> {
    let mut copies = client.keys().await.into_iter().filter(|key| key.contains(".conflict-"));
    let key = copies.next()?;
    assert_eq!(copies.next(), None);
    let copy = client.object(&key).await;
    client.delete_object(&key).await;
    client.pass_ttl();
    copy
}

/// Operations on and beside a file that is held open; `None` where the file does not matter to the operation.
async fn apply_held(
    client: &Client,
    reference: &mut Reference,
    slot: &mut Option<Held>,
    op: &Op,
) -> Result<Option<()>, TestCaseError> {
    if let Op::Hold(path) = op {
        if slot.is_none() && reference.is_file(path) && reference.check_parent(path).is_ok() {
            let open = client.open(path, WRITE).await.map_err(|error| TestCaseError::fail(error.report()))?;
            let bytes = reference.keys[path].clone();
            *slot = Some(Held {
                path: path.clone(),
                open,
                written: vec![false; bytes.len()],
                base: bytes.clone(),
                bytes,
                is_dirty: false,
                is_current: true,
                name: Named::Yes,
            });
        }
        return Ok(Some(()));
    }
    let Some(held) = slot else {
        return Ok(matches!(op, Op::WriteHeld(..) | Op::CloseHeld).then_some(()));
    };
    let is_above = |path: &str| held.path.starts_with(&format!("{path}/"));
    let (did, (expected, copy)) = match op {
        Op::WriteHeld(byte, at) => {
            let did = client.fs.write(held.open.1, *at, &[*byte; 10]).await;
            let expected = match held.name {
                Named::Lost => Err(Kind::Stale),
                _ => {
                    held.write(*at as usize, &[*byte; 10]);
                    Ok(())
                }
            };
            (did, (expected, None))
        }
        Op::CloseHeld => {
            let did = client.close(held.open).await;
            let expected = save(held, reference);
            *slot = None;
            client.pass_ttl();
            (did, expected)
        }
        // A name that is a file's and a directory's at once has its own tests.
        Op::TheyPut(path, _) => {
            let hides = is_above(path) || path.starts_with(&format!("{}/", held.path));
            return Ok(hides.then_some(()));
        }
        Op::TheyDelete(_) => {
            let uncovers = reference.keys.keys().any(|key| is_above(key));
            return Ok(uncovers.then_some(()));
        }
        Op::PassTtl => return Ok(None),
        // Another version has been opened under the name, and the inode is of both: whoever removes, moves or replaces the
        // name here means the newer one, and what is held goes with it. That is left alone.
        Op::Unlink(path) if !held.is_current && *path == held.path => return Ok(Some(())),
        Op::Rename(from, to)
            if !held.is_current && (*from == held.path || *to == held.path || is_above(from)) =>
        {
            return Ok(Some(()));
        }
        // What lookups find and listings do not is left alone until it is closed.
        _ if held.is_undead(reference) => return Ok(Some(())),
        Op::Write(path, byte, len) if held.shares(path) => {
            let did = client.write(path, &vec![*byte; *len]).await;
            held.bytes.clear();
            held.written.clear();
            held.write(0, &vec![*byte; *len]);
            (did, save(held, reference))
        }
        Op::WriteAt(path, byte, at) if held.shares(path) => {
            let did = client.write_at(path, *at, &[*byte; 10]).await;
            held.write(*at as usize, &[*byte; 10]);
            (did, save(held, reference))
        }
        Op::Read(path) if held.shares(path) => {
            let read = client.read(path).await.map_err(|error| error.kind());
            prop_assert_eq!(read.as_ref(), Ok(&held.bytes), "{:?}", op);
            return Ok(Some(()));
        }
        Op::Unlink(path) if *path == held.path && held.name == Named::Yes => {
            let did = client.unlink(path).await;
            let expected = reference.unlink(path);
            if expected.is_ok() {
                (held.name, held.is_current) = (Named::Removed, false);
            }
            (did, (expected, None))
        }
        Op::Rename(from, to) if *from == held.path && from != to && held.is_current => {
            // It is saved first, under its old name.
            let possible = reference.clone().rename(from, to);
            let (saved, copy) = if possible.is_ok() { save(held, reference) } else { (Ok(()), None) };
            let expected = possible.and(saved).and_then(|()| reference.rename(from, to));
            if expected.is_ok() {
                held.path.clone_from(to);
            }
            (client.rename(from, to).await, (expected, copy))
        }
        Op::Rename(from, to) if *to == held.path && from != to && held.name == Named::Yes => {
            let expected = reference.rename(from, to);
            if expected.is_ok() {
                (held.name, held.is_current) = (Named::Removed, false);
            }
            (client.rename(from, to).await, (expected, None))
        }
        Op::Rename(from, to) if is_above(from) && held.name != Named::Removed && held.name != Named::Lost => {
            let expected = reference.rename(from, to);
            if expected.is_ok() && from != to && held.name == Named::Yes {
                held.path = format!("{to}{}", &held.path[from.len()..]);
            }
            (client.rename(from, to).await, (expected, None))
        }
        _ => return Ok(None),
    };
    prop_assert_eq!(did.map_err(|error| error.kind()), expected, "{:?}", op);
    prop_assert_eq!(take_copy(client).await, copy, "after {:?}", op);
    Ok(Some(()))
}

/// What has to show, with a file that is held open.
async fn check_held(client: &Client, reference: &Reference, held: &mut Held) -> Result<(), TestCaseError> {
    let is_pending = client.fs.pending().len() == 1;
    let is_owed = held.is_dirty && !matches!(held.name, Named::Removed | Named::Lost);
    prop_assert_eq!(is_pending, is_owed, "{:?}", held);
    if held.is_current && held.is_dirty {
        let size = client.stat(&held.path).await.map(|attr| attr.size).map_err(|error| error.kind());
        prop_assert_eq!(size, Ok(held.bytes.len() as u64), "unsaved bytes keep their name");
        return Ok(());
    }
    if held.name == Named::Yes && !reference.keys.contains_key(&held.path) {
        prop_assert_eq!(kind_of(client.stat(&held.path).await), Kind::NotFound);
        (held.name, held.is_current) = (Named::Taken, false);
    }
    // Another version was opened by looking at the tree.
    held.is_current &= reference.keys.get(&held.path) == Some(&held.base);
    Ok(())
}

async fn apply(
    client: &Client,
    reference: &mut Reference,
    held: &mut Option<Held>,
    op: &Op,
) -> Result<(), TestCaseError> {
    if apply_held(client, reference, held, op).await?.is_some() {
        return Ok(());
    }
    let (did, expected) = match op {
        Op::Write(path, byte, len) => {
            let bytes = vec![*byte; *len];
            (client.write(path, &bytes).await, reference.write(path, |old| *old = bytes))
        }
        Op::WriteAt(path, byte, at) => (
            client.write_at(path, *at, &[*byte; 10]).await,
            reference.write(path, |old| {
                let at = *at as usize;
                if old.len() < at + 10 {
                    old.resize(at + 10, 0);
                }
                old[at..at + 10].fill(*byte);
            }),
        ),
        Op::Read(path) => {
            let expected = reference.check_parent(path).and_then(|()| match reference.keys.get(path) {
                _ if reference.is_dir(path) => Err(Kind::IsADirectory),
                Some(bytes) => Ok(bytes.clone()),
                None => Err(Kind::NotFound),
            });
            let read = client.read(path).await.map_err(|error| error.kind());
            prop_assert_eq!(read, expected, "{:?}", op);
            return Ok(());
        }
        Op::Unlink(path) => (client.unlink(path).await, reference.unlink(path)),
        Op::Mkdir(path) => (client.mkdir(path).await, reference.mkdir(path)),
        Op::Rmdir(path) => (client.rmdir(path).await, reference.rmdir(path)),
        Op::Rename(from, to) => (client.rename(from, to).await, reference.rename(from, to)),
        Op::TheyPut(path, byte) => {
            client.put_object(path, &[*byte; 20]).await;
            reference.keys.insert(path.clone(), vec![*byte; 20]);
            client.pass_ttl();
            return Ok(());
        }
        Op::TheyDelete(path) => {
            client.delete_object(path).await;
            reference.keys.remove(path);
            client.pass_ttl();
            return Ok(());
        }
        Op::PassTtl => {
            client.pass_ttl();
            return Ok(());
        }
        Op::Hold(_) | Op::WriteHeld(..) | Op::CloseHeld => return Ok(()),
    };
    prop_assert_eq!(did.map_err(|error| error.kind()), expected, "{:?}", op);
    Ok(())
}

fn run(ops: &[Op]) -> Result<(), TestCaseError> {
    block_on(async {
        let client = Client::new();
        let mut reference = Reference::default();
        let mut held = None;
        for op in ops {
            let op = &op.clone().on(held.as_ref(), &reference);
            apply(&client, &mut reference, &mut held, op).await?;
            let tree = client.tree().await.map_err(|error| TestCaseError::fail(error.report()))?;
            // A removal shows at once, and is in S3 a little later.
            client
                .fs
                .fsyncdir(pailfs::tree::ROOT)
                .await
                .map_err(|error| TestCaseError::fail(error.report()))?;
            let keys: BTreeSet<String> = client.keys().await.into_iter().collect();
            prop_assert_eq!(keys, reference.keys.keys().cloned().collect::<BTreeSet<_>>(), "after {:?}", op);
            let mut expected = reference.tree();
            if let Some(held) = held.as_ref().filter(|held| held.is_current && held.is_dirty) {
                // What is written here shows before it is saved.
                let shown = expected.iter_mut().find(|(path, _)| *path == held.path);
                shown.into_iter().for_each(|(_, bytes)| bytes.clone_from(&held.bytes));
            }
            prop_assert_eq!(tree, expected, "after {:?}", op);
            if let Some(held) = &mut held {
                check_held(&client, &reference, held).await?;
            }
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn every_operation_does_what_the_reference_does(ops in proptest::collection::vec(op(), 1..25)) {
        run(&ops)?;
    }
}
