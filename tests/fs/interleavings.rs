//! Writes, cuts, saves and failures of one file in any order: it equals a byte array.
//!
//! A save runs beside what follows it, and its requests are answered when the test says so. Some are refused, before or
//! after they did what was asked. Whatever the order: what is read is what was written, S3 has something that the file
//! was once, nothing older than what was acknowledged, and in the end all of it.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::task::Poll;

use pailfs::error::{Kind, Result};
use pailfs::fs::Space;
use pailfs::s3::{Store, When};
use pailfs::tree::Ino;
use proptest::prelude::*;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::client::{BUCKET, Client, WRITE, on_one_thread};

/// What changes an object, or tells of it.
const REQUESTS: [&str; 7] = [
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "UploadPartCopy",
    "CompleteMultipartUpload",
    "HeadObject",
    "GetObject",
];
/// Those whose answers wait.
const HELD: [&str; 4] = ["PutObject", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload"];

#[derive(Clone, Copy, Debug)]
enum Op {
    /// In units: at, length.
    Write(usize, usize),
    Cut(usize),
    Zero(usize, usize),
    /// `fsync` or `close` of one of two handles, beside all that follows.
    Save(bool, usize),
    /// One held request of each kind is answered.
    Answer,
    Refuse(usize, When),
    /// Nothing is refused from now on.
    Heal,
    /// Every save that is under way ends.
    Wait,
}

fn op() -> impl Strategy<Value = Op> {
    let when = prop_oneof![Just(When::Before), Just(When::After)];
    prop_oneof![
        6 => (0usize..24, 1usize..10).prop_map(|(at, len)| Op::Write(at, len)),
        2 => (0usize..26).prop_map(Op::Cut),
        1 => (0usize..24, 1usize..10).prop_map(|(at, len)| Op::Zero(at, len)),
        5 => (any::<bool>(), 0usize..2).prop_map(|(fsync, handle)| Op::Save(fsync, handle)),
        4 => Just(Op::Answer),
        2 => (0..REQUESTS.len(), when).prop_map(|(request, when)| Op::Refuse(request, when)),
        2 => Just(Op::Heal),
        1 => Just(Op::Wait),
    ]
}

/// What a file was at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum(usize, u64);

impl Sum {
    fn of(bytes: &[u8]) -> Self {
        let mut hash = DefaultHasher::new();
        hash.write(bytes);
        Self(bytes.len(), hash.finish())
    }
}

struct World {
    client: Client,
    unit: usize,
    handles: [(Ino, u64); 2],
    bytes: Vec<u8>,
    history: Vec<Sum>,
    /// Saves under way, with the moment of the history at which they began.
    saving: Vec<(usize, JoinHandle<Result<()>>)>,
    /// The latest moment that a save was acknowledged for.
    acknowledged: usize,
    held: Vec<Arc<Semaphore>>,
    refused: Vec<&'static str>,
    /// Whether S3 may have begun uploads whose ids were never heard of. There is no journal here to find them by.
    unheard: bool,
}

impl World {
    /// A file of `len` units, which S3 has.
    async fn new(unit: usize, len: usize) -> Self {
        let client = Client::new();
        let bytes: Vec<u8> = (0..len * unit).map(|at| (at / 7) as u8).collect();
        client.put_object("f", &bytes).await;
        let handles = [client.open("f", WRITE).await.unwrap(), client.open("f", WRITE).await.unwrap()];
        let held = HELD.map(|request| client.store.hold(request)).to_vec();
        let history = vec![Sum::of(&bytes)];
        let (saving, refused) = (Vec::new(), Vec::new());
        Self { client, unit, handles, bytes, history, saving, acknowledged: 0, held, refused, unheard: false }
    }

    fn changed(&mut self) {
        self.history.push(Sum::of(&self.bytes));
    }

    async fn apply(&mut self, step: usize, op: Op) -> Result<(), TestCaseError> {
        let unit = self.unit;
        let fail = |error: pailfs::error::Error| TestCaseError::fail(format!("{op:?}: {}", error.report()));
        match op {
            Op::Write(at, len) => {
                let (at, new) = (at * unit, vec![step as u8 | 0x80; len * unit]);
                self.client.fs.write(self.handles[step % 2].1, at as u64, &new).await.map_err(fail)?;
                self.bytes.resize(self.bytes.len().max(at + new.len()), 0);
                self.bytes[at..at + new.len()].copy_from_slice(&new);
                self.changed();
            }
            Op::Cut(len) => {
                let (ino, fh) = self.handles[step % 2];
                self.client.truncate_open(ino, fh, (len * unit) as u64).await.map_err(fail)?;
                self.bytes.resize(len * unit, 0);
                self.changed();
            }
            Op::Zero(at, len) => {
                let space = Space { zero: true, keep_size: false };
                let (at, len) = (at * unit, len * unit);
                let fh = self.handles[step % 2].1;
                self.client.fs.fallocate(fh, at as u64, len as u64, space).await.map_err(fail)?;
                self.bytes.resize(self.bytes.len().max(at + len), 0);
                self.bytes[at..at + len].fill(0);
                self.changed();
            }
            Op::Save(fsync, handle) => {
                let (fs, fh) = (Arc::clone(&self.client.fs), self.handles[handle].1);
                let saving =
                    tokio::spawn(async move { if fsync { fs.fsync(fh).await } else { fs.flush(fh).await } });
                self.saving.push((self.history.len() - 1, saving));
            }
            Op::Answer => self.held.iter().for_each(|held| held.add_permits(1)),
            Op::Refuse(request, when) => {
                self.refused.push(REQUESTS[request]);
                self.unheard |= (REQUESTS[request], when) == ("CreateMultipartUpload", When::After);
                self.client.store.refuse(REQUESTS[request], Kind::Server, when);
            }
            Op::Heal => {
                self.refused.clear();
                self.client.store.refuse_nothing();
            }
            Op::Wait => self.wait().await?,
        }
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        self.hear().await;
        Ok(())
    }

    async fn wait(&mut self) -> Result<(), TestCaseError> {
        while !self.saving.is_empty() {
            self.held.iter().for_each(|held| held.add_permits(1));
            tokio::task::yield_now().await;
            self.hear().await;
        }
        // What follows waits again.
        self.held = HELD.map(|request| self.client.store.hold(request)).to_vec();
        Ok(())
    }

    /// What became of saves that have ended.
    async fn hear(&mut self) {
        for (begun, saving) in std::mem::take(&mut self.saving) {
            if !saving.is_finished() {
                self.saving.push((begun, saving));
            } else if saving.await.unwrap().is_ok() {
                self.acknowledged = self.acknowledged.max(begun);
            }
        }
    }

    /// Where S3 has what a save made, and nobody here knows it yet, a read waits for that answer.
    async fn read(&self, fh: u64) -> Result<Vec<u8>> {
        let mut read = std::pin::pin!(self.client.read_all(fh));
        for turn in 1.. {
            if let Poll::Ready(read) = futures::poll!(read.as_mut()) {
                return read;
            }
            if turn % 200 == 0 {
                self.held.iter().for_each(|held| held.add_permits(1));
            }
            tokio::task::yield_now().await;
        }
        unreachable!("it polls for ever");
    }

    async fn check(&self) -> Result<(), TestCaseError> {
        // A read may need to ask, for the bytes or for what became of a save.
        let may_fail = self.refused.iter().any(|request| ["GetObject", "HeadObject"].contains(request));
        for (_, fh) in self.handles {
            match self.read(fh).await {
                Ok(read) => prop_assert!(read == self.bytes, "it reads {} other bytes", read.len()),
                Err(error) => prop_assert!(may_fail, "a read: {}", error.report()),
            }
        }
        if !self.refused.contains(&"GetObject") {
            let object = Sum::of(&self.client.object("f").await.unwrap_or_default());
            let last = self.history.iter().rposition(|was| *was == object);
            prop_assert!(last.is_some(), "S3 has {} bytes that the file never was", object.0);
            prop_assert!(last >= Some(self.acknowledged), "S3 has what was before {}", self.acknowledged);
        }
        Ok(())
    }

    async fn end(mut self) -> Result<(), TestCaseError> {
        let fail =
            |error: pailfs::error::Error| TestCaseError::fail(format!("at the end: {}", error.report()));
        self.apply(0, Op::Heal).await?;
        self.wait().await?;
        self.held.iter().for_each(|held| held.add_permits(Semaphore::MAX_PERMITS));
        for open in self.handles {
            self.client.close(open).await.map_err(fail)?;
        }
        self.client.fs.flush_all().await.map_err(fail)?;
        prop_assert!(self.client.fs.pending().is_empty());
        let object = self.client.object("f").await;
        prop_assert!(
            object.as_ref() == Some(&self.bytes),
            "S3 has {:?} bytes",
            object.map(|object| object.len())
        );
        prop_assert_eq!(self.client.keys().await, ["f"], "no conflict with ourselves");
        for left in self.client.store.list_uploads(BUCKET, "").await.map_err(fail)? {
            let parts = self.client.store.list_parts(&left.upload).await.map_err(fail)?;
            prop_assert!(self.unheard && parts.is_empty(), "left behind: {left:?} with {parts:?}");
        }
        Ok(())
    }
}

fn run(ops: &[Op], unit: usize, len: usize) -> Result<(), TestCaseError> {
    on_one_thread(async {
        let mut world = World::new(unit, len).await;
        for (step, op) in ops.iter().enumerate() {
            world.apply(step, *op).await?;
            let checked = world.check().await;
            checked.map_err(|error| TestCaseError::fail(format!("after step {step}, {op:?}: {error}")))?;
        }
        world.end().await
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn a_small_file_is_a_byte_array_in_any_order(ops in proptest::collection::vec(op(), 1..25)) {
        run(&ops, 100, 12)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, max_shrink_iters: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_file_of_many_parts_is_a_byte_array_in_any_order(ops in proptest::collection::vec(op(), 5..14)) {
        run(&ops, (1 << 20) + 1, 18)?;
    }
}

/// Not some orders but all: every sequence of four of what matters to one Put, after a write.
#[test]
fn every_order_of_a_few_steps_is_a_byte_array() {
    let refused = REQUESTS.iter().position(|request| *request == "PutObject").unwrap();
    let alphabet = [
        Op::Write(12, 1),
        Op::Cut(6),
        Op::Save(true, 0),
        Op::Answer,
        Op::Refuse(refused, When::Before),
        Op::Refuse(refused, When::After),
        Op::Heal,
    ];
    for number in 0..alphabet.len().pow(4) {
        let steps = (0..4).map(|place| alphabet[number / alphabet.len().pow(place) % alphabet.len()]);
        let ops: Vec<Op> = [Op::Write(3, 1), Op::Save(true, 1)].into_iter().chain(steps).collect();
        run(&ops, 10, 12).unwrap_or_else(|error| panic!("{ops:?}: {error}"));
    }
}
