//! Gets missing blocks: one GET for each run of them, whoever asked first.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::blocks::{BlockCache, BlockKey};
use super::disk::DiskCache;
use super::{BLOCK_BYTES, Object, ObjectId, ReadSettings};
use crate::base::{Budget, ByteRange};
use crate::error::{Error, Kind, Result};
use crate::s3::GetRequest;

/// How often a body that broke off is taken up again where it broke.
const RESUMES_MAX: u32 = 3;

/// Blocks in memory and blocks on their way.
pub(super) struct Fetcher {
    shared: Mutex<Shared>,
    gets: Arc<Semaphore>,
    budget: Budget,
    settings: ReadSettings,
    disk: Option<Arc<DiskCache>>,
    runtime: Handle,
}

struct Shared {
    cache: BlockCache,
    in_flight: HashMap<BlockKey, watch::Receiver<State>>,
}

/// A block on its way.
#[derive(Clone)]
pub(super) enum State {
    Waiting,
    Here(Bytes),
    Failed(Arc<Error>),
}

/// A block that is here or will be.
pub(super) enum Block {
    Here(Bytes),
    Coming(watch::Receiver<State>),
}

impl Block {
    /// Waits for the block, or for the failure of its fetch. `None` where the fetch was given up before it
    /// began, as read-ahead is when memory is short: ask again.
    pub(super) async fn bytes(self) -> Result<Option<Bytes>> {
        let mut coming = match self {
            Self::Here(bytes) => return Ok(Some(bytes)),
            Self::Coming(coming) => coming,
        };
        match coming.wait_for(|state| !matches!(state, State::Waiting)).await.as_deref() {
            Ok(State::Here(bytes)) => Ok(Some(bytes.clone())),
            Ok(State::Failed(error)) => Err(error.duplicate()),
            _ => Ok(None),
        }
    }
}

impl Fetcher {
    pub(super) fn new(settings: ReadSettings, budget: Budget, disk: Option<Arc<DiskCache>>) -> Arc<Self> {
        Arc::new(Self {
            shared: Mutex::new(Shared {
                cache: BlockCache::new(settings.cache_bytes),
                in_flight: HashMap::new(),
            }),
            gets: Arc::new(Semaphore::new(settings.gets_max.max(1))),
            budget,
            settings,
            disk,
            runtime: Handle::current(),
        })
    }

    /// The blocks, if all are in memory.
    pub(super) fn cached(&self, object: &ObjectId, indices: Range<u64>) -> Option<Vec<Bytes>> {
        let mut shared = self.lock();
        indices.map(|index| shared.cache.get(&BlockKey { object: object.clone(), index })).collect()
    }

    /// Every block, here or coming, and how many had to be asked for now.
    pub(super) fn want(self: &Arc<Self>, object: &Object, indices: Range<u64>) -> (Vec<Block>, u64) {
        let mut blocks = Vec::new();
        let mut missing = Vec::new();
        {
            let mut shared = self.lock();
            for index in indices {
                let key = BlockKey { object: object.id.clone(), index };
                blocks.push(match shared.get(&key) {
                    Some(block) => block,
                    None => {
                        let (sender, coming) = watch::channel(State::Waiting);
                        shared.in_flight.insert(key, coming.clone());
                        missing.push((index, sender));
                        Block::Coming(coming)
                    }
                });
            }
        }
        let count = missing.len() as u64;
        for run in self.runs(missing) {
            self.start(object, run, None);
        }
        (blocks, count)
    }

    /// Asks for blocks that nobody waits for yet, as far as memory allows now.
    pub(super) fn prefetch(self: &Arc<Self>, object: &Object, indices: Range<u64>) {
        let mut missing = Vec::new();
        {
            let mut shared = self.lock();
            for index in indices {
                let key = BlockKey { object: object.id.clone(), index };
                if shared.get(&key).is_none() {
                    let (sender, coming) = watch::channel(State::Waiting);
                    shared.in_flight.insert(key, coming);
                    missing.push((index, sender));
                }
            }
        }
        for run in self.runs(missing) {
            match self.budget.try_take(run.len() as u64 * BLOCK_BYTES) {
                Some(grant) => self.start(object, run, Some(grant)),
                // Nobody was promised these; whoever wants one after all asks for it anew.
                None => self.abandon(&object.id, &run),
            }
        }
    }

    pub(super) fn drop_all(&self) {
        self.lock().cache.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Cuts missing blocks into runs of neighbours, each for one GET.
    fn runs(&self, missing: Vec<(u64, watch::Sender<State>)>) -> Vec<Run> {
        let most = usize::try_from(self.settings.get_max_bytes / BLOCK_BYTES).unwrap_or(1).max(1);
        let mut runs: Vec<Run> = Vec::new();
        for (index, sender) in missing {
            match runs.last_mut() {
                Some(run) if run.first + run.len() as u64 == index && run.len() < most => {
                    run.waiters.push(sender)
                }
                _ => runs.push(Run { first: index, waiters: vec![sender] }),
            }
        }
        runs
    }

    fn start(self: &Arc<Self>, object: &Object, run: Run, grant: Option<crate::base::Grant>) {
        let fetcher = Arc::clone(self);
        let object = object.clone();
        self.runtime.spawn(async move {
            let mut landing = Landing::new(&fetcher, object, run);
            let _grant = match grant {
                Some(grant) => grant,
                None => fetcher.budget.take(landing.run.len() as u64 * BLOCK_BYTES).await,
            };
            landing.look_on_disk().await;
            if landing.landed == landing.run.len() {
                return;
            }
            let Ok(_turn) = fetcher.gets.acquire().await else { return };
            if let Err(error) = landing.fetch().await {
                landing.fail(&Arc::new(error));
            }
        });
    }

    fn abandon(&self, object: &ObjectId, run: &Run) {
        let mut shared = self.lock();
        for index in run.indices() {
            shared.in_flight.remove(&BlockKey { object: object.clone(), index });
        }
    }
}

impl Shared {
    fn get(&mut self, key: &BlockKey) -> Option<Block> {
        if let Some(bytes) = self.cache.get(key) {
            return Some(Block::Here(bytes));
        }
        self.in_flight.get(key).map(|coming| Block::Coming(coming.clone()))
    }
}

/// Neighbouring blocks that one GET brings.
struct Run {
    first: u64,
    waiters: Vec<watch::Sender<State>>,
}

impl Run {
    fn len(&self) -> usize {
        self.waiters.len()
    }

    fn indices(&self) -> Range<u64> {
        self.first..self.first + self.len() as u64
    }
}

/// A run being fetched. However it ends, dropping it takes what has not landed off the list of what is coming.
struct Landing {
    fetcher: Arc<Fetcher>,
    object: Object,
    run: Run,
    /// Blocks that are here.
    landed: usize,
    /// The run's last blocks, where the disk had them. They land after what comes before them.
    tail: Vec<Bytes>,
}

impl Landing {
    fn new(fetcher: &Arc<Fetcher>, object: Object, run: Run) -> Self {
        Self { fetcher: Arc::clone(fetcher), object, run, landed: 0, tail: Vec::new() }
    }

    /// Lands what the disk has from the run's begin on, and keeps what it has up to the run's end. One GET brings what
    /// lies between, from the first block that lacks to the last.
    async fn look_on_disk(&mut self) {
        let Some(disk) = self.fetcher.disk.clone() else { return };
        let mut found = disk.look(&self.object, self.run.indices()).await;
        let tail = found.iter().rposition(Option::is_none).map_or(0, |last| last + 1);
        self.tail = found.split_off(tail).into_iter().flatten().collect();
        found.into_iter().map_while(|block| block).for_each(|block| self.land(block));
        if self.landed + self.tail.len() == self.run.len() {
            self.land_tail();
        }
    }

    fn land_tail(&mut self) {
        std::mem::take(&mut self.tail).into_iter().for_each(|block| self.land(block));
    }

    async fn fetch(&mut self) -> Result<()> {
        let mut resumes = 0;
        loop {
            match self.receive().await {
                Err(error) if error.kind().is_transient() && resumes < RESUMES_MAX => resumes += 1,
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        self.land_tail();
        Ok(())
    }

    /// One GET for what has not landed yet.
    async fn receive(&mut self) -> Result<()> {
        let indices = self.run.indices();
        let start = (indices.start + self.landed as u64) * BLOCK_BYTES;
        let end = (indices.end - self.tail.len() as u64) * BLOCK_BYTES;
        let Some(range) = ByteRange::new(start, end.min(self.object.size)) else {
            return Ok(());
        };
        let request = GetRequest {
            bucket: self.object.bucket.to_string(),
            key: self.object.id.key.to_string(),
            range: Some(range),
            if_match: Some(self.object.id.etag.clone()),
            version_id: None,
        };
        let mut answer = self.object.store.get(request).await?;
        if answer.info.etag != self.object.id.etag {
            // A server that ignores If-Match.
            return Err(Error::new(Kind::Stale, "the object was replaced by another client"));
        }
        if answer.offset != range.start() || answer.length != range.len() {
            let got = format!("{} bytes at {}", answer.length, answer.offset);
            return Err(Error::new(Kind::Corrupt, format!("asked for {range}, got {got}")));
        }
        let mut at = range.start();
        let mut block = BytesMut::new();
        while at < range.end() {
            let Some(chunk) = answer.body.next().await else {
                return Err(Error::new(Kind::Corrupt, format!("the body ended at {at} of {range}")));
            };
            let mut chunk = chunk?;
            if chunk.len() as u64 > range.end() - at {
                return Err(Error::new(Kind::Corrupt, "the body is longer than was announced"));
            }
            while !chunk.is_empty() {
                let whole = BLOCK_BYTES.min(self.object.size - at / BLOCK_BYTES * BLOCK_BYTES);
                let whole = usize::try_from(whole).unwrap_or(0);
                if block.capacity() == 0 {
                    block.reserve(whole);
                }
                let part = chunk.split_to(chunk.len().min(whole - block.len()));
                at += part.len() as u64;
                block.extend_from_slice(&part);
                if block.len() == whole {
                    let block = std::mem::take(&mut block).freeze();
                    if let Some(disk) = &self.fetcher.disk {
                        disk.keep(&self.object, self.run.first + self.landed as u64, &block);
                    }
                    self.land(block);
                }
            }
        }
        Ok(())
    }

    fn land(&mut self, block: Bytes) {
        let key = self.key(self.landed);
        {
            let mut shared = self.fetcher.lock();
            shared.in_flight.remove(&key);
            shared.cache.put(key, block.clone());
        }
        self.run.waiters[self.landed].send_replace(State::Here(block));
        self.landed += 1;
    }

    fn fail(&self, error: &Arc<Error>) {
        for waiter in &self.run.waiters[self.landed..] {
            waiter.send_replace(State::Failed(Arc::clone(error)));
        }
    }

    fn key(&self, nth: usize) -> BlockKey {
        BlockKey { object: self.object.id.clone(), index: self.run.first + nth as u64 }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut shared = self.fetcher.lock();
        for nth in self.landed..self.run.len() {
            let key = self.key(nth);
            shared.in_flight.remove(&key);
        }
    }
}
