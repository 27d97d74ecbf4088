//! Random operations, with another client interfering, against a naive reference.
//!
//! The reference is a map of keys to bytes, and one function from it to the tree that has to show: there is one
//! definition of what is right. Names come from a tiny alphabet, so that collisions are common.

use std::collections::{BTreeMap, BTreeSet};

use pailfs::error::{Kind, Result};
use proptest::prelude::*;

use crate::client::Client;
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
    /// Another client, behind the mount's back; it is seen after the TTL.
    TheyPut(String, u8),
    TheyDelete(String),
    PassTtl,
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("a-"), Just("b")];
    proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), any::<u8>(), 0usize..2000).prop_map(|(p, b, n)| Op::Write(p, b, n)),
        2 => (path(), any::<u8>(), 0u64..3000).prop_map(|(p, b, at)| Op::WriteAt(p, b, at)),
        1 => path().prop_map(Op::Read),
        3 => path().prop_map(Op::Unlink),
        3 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Rmdir),
        4 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (path(), any::<u8>()).prop_map(|(p, b)| Op::TheyPut(p, b)),
        1 => path().prop_map(Op::TheyDelete),
        1 => Just(Op::PassTtl),
    ]
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

async fn apply(client: &Client, reference: &mut Reference, op: &Op) -> Result<(), TestCaseError> {
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
    };
    prop_assert_eq!(did.map_err(|error| error.kind()), expected, "{:?}", op);
    Ok(())
}

fn run(ops: &[Op]) -> Result<(), TestCaseError> {
    block_on(async {
        let client = Client::new();
        let mut reference = Reference::default();
        for op in ops {
            apply(&client, &mut reference, op).await?;
            let keys: BTreeSet<String> = client.keys().await.into_iter().collect();
            prop_assert_eq!(keys, reference.keys.keys().cloned().collect::<BTreeSet<_>>(), "after {:?}", op);
            let tree = client.tree().await.map_err(|error| TestCaseError::fail(error.report()))?;
            prop_assert_eq!(tree, reference.tree(), "after {:?}", op);
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
