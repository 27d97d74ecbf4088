//! Gets missing bytes: one GET for each run of them, whoever asked first.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::disk::DiskCache;
use super::segments::{Need, Piece, Segments};
use super::window::{Advice, FIRST_BYTES};
use super::{Object, ObjectId, lock};
use crate::base::{Budget, ByteRange, Gate, Grant, Priority, Ticket};
use crate::error::{Error, Kind, Result};
use crate::s3::{Checksum, GetRequest, is_of_body, verify};
use crate::stats::Stats;

/// How often a body that broke off is taken up again where it broke.
const RESUMES_MAX: u32 = 3;

/// Bytes in memory and bytes on their way.
pub(super) struct Fetcher {
    segments: Mutex<Segments<Arc<Flight>>>,
    gate: Gate,
    budget: Budget,
    disk: Option<Arc<DiskCache>>,
    runtime: Handle,
    stats: Arc<Stats>,
}

/// A run on its way. Its bytes are shared as they arrive, or where the server has a checksum of all of them, once
/// that was found right.
#[derive(Debug)]
pub(super) struct Flight {
    range: ByteRange,
    ticket: Ticket,
    /// What has arrived; empty again once the run is here.
    buffer: Mutex<BytesMut>,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Debug)]
enum Progress {
    /// Everything before this offset has arrived.
    Filled(u64),
    Here(Bytes),
    Failed(Arc<Error>),
    /// The fetch ended before it began; ask again.
    GivenUp,
}

impl Flight {
    fn new(range: ByteRange, ticket: Ticket) -> Arc<Self> {
        let (progress, _) = watch::channel(Progress::Filled(range.start()));
        Arc::new(Self { range, ticket, buffer: Mutex::default(), progress })
    }

    /// Whether a part of the run has arrived.
    pub(super) fn has(&self, part: ByteRange) -> bool {
        match &*self.progress.borrow() {
            Progress::Filled(to) => part.end() <= *to,
            Progress::Here(_) => true,
            Progress::Failed(_) | Progress::GivenUp => false,
        }
    }

    /// Waits for a part of the run. `None` where the fetch was given up before it began: ask again.
    pub(super) async fn bytes(&self, part: ByteRange) -> Result<Option<Bytes>> {
        let mut progress = self.progress.subscribe();
        loop {
            let now = progress
                .wait_for(|progress| !matches!(progress, Progress::Filled(to) if *to < part.end()))
                .await
                .map_or(Progress::GivenUp, |now| now.clone());
            match now {
                Progress::Here(whole) => return Ok(Some(self.slice(&whole, part))),
                Progress::Failed(error) => return Err(error.duplicate()),
                Progress::GivenUp => return Ok(None),
                Progress::Filled(_) => {
                    let buffer = lock(&self.buffer);
                    let (from, to) = self.offsets(part);
                    // Shorter where the run became whole in between.
                    if let Some(bytes) = buffer.get(from..to) {
                        return Ok(Some(Bytes::copy_from_slice(bytes)));
                    }
                }
            }
        }
    }

    fn slice(&self, whole: &Bytes, part: ByteRange) -> Bytes {
        let (from, to) = self.offsets(part);
        whole.slice(from..to)
    }

    fn offsets(&self, part: ByteRange) -> (usize, usize) {
        let offset = |at: u64| usize::try_from(at - self.range.start()).unwrap_or(usize::MAX);
        (offset(part.start()), offset(part.end()))
    }
}

/// Bytes that are here or will be.
pub(super) enum Block {
    Here(Bytes),
    Coming(ByteRange, Arc<Flight>),
}

impl Fetcher {
    pub(super) fn new(
        gate: Gate,
        budget: Budget,
        disk: Option<Arc<DiskCache>>,
        stats: Arc<Stats>,
    ) -> Arc<Self> {
        Arc::new(Self {
            segments: Mutex::new(Segments::new(budget.limit_bytes())),
            gate,
            budget,
            disk,
            runtime: Handle::current(),
            stats,
        })
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.disk.as_ref()
    }

    /// The bytes, if they are in memory in one piece.
    pub(super) fn cached(&self, object: &ObjectId, range: ByteRange) -> Option<Bytes> {
        lock(&self.segments).read_whole(object, range)
    }

    /// What there is of a range, in order.
    pub(super) fn look(&self, object: &ObjectId, range: ByteRange) -> Vec<Piece<Arc<Flight>>> {
        let mut segments = lock(&self.segments);
        segments.bridge(object, range);
        segments.read(object, range)
    }

    /// Asks for every gap of what was found, and says where each piece of the range is or comes from.
    ///
    /// What `advice` wants right behind the last gap comes with the same request where that is a small one.
    pub(super) fn demand(
        self: &Arc<Self>,
        object: &Object,
        found: Vec<Piece<Arc<Flight>>>,
        advice: &Advice,
    ) -> Vec<Block> {
        let mut blocks = Vec::with_capacity(found.len());
        for piece in found {
            match piece {
                Piece::Here(bytes) => blocks.push(Block::Here(bytes)),
                Piece::Coming(part, flight) => {
                    if !flight.has(part) {
                        self.gate.promote(flight.ticket);
                    }
                    blocks.push(Block::Coming(part, flight));
                }
                Piece::Gap(gap) => blocks.extend(self.demand_gap(object, gap, advice)),
            }
        }
        blocks
    }

    fn demand_gap(self: &Arc<Self>, object: &Object, gap: ByteRange, advice: &Advice) -> Vec<Block> {
        let mut flights = Vec::new();
        let blocks = {
            // Under one lock, so that a fetch that fails at once is still found by those who wait for it.
            let mut segments = lock(&self.segments);
            for part in cut(with_first_window(gap, advice), advice.part) {
                flights.extend(self.expect_gaps(&mut segments, &object.id, part));
            }
            segments.look(&object.id, gap)
        };
        for flight in flights {
            self.start(object, flight, None, Priority::Demand);
        }
        let block = |piece| match piece {
            Piece::Here(bytes) => Block::Here(bytes),
            Piece::Coming(part, flight) => Block::Coming(part, flight),
            // Every gap is expected by now; whoever waits for this one asks again.
            Piece::Gap(part) => {
                let flight = Flight::new(part, self.gate.ticket());
                flight.progress.send_replace(Progress::GivenUp);
                Block::Coming(part, flight)
            }
        };
        blocks.into_iter().map(block).collect()
    }

    /// Asks for bytes that nobody waits for yet, as far as memory allows now. Returns where it stopped, if it did.
    pub(super) fn prefetch(
        self: &Arc<Self>,
        object: &Object,
        range: ByteRange,
        part: u64,
        priority: Priority,
    ) -> Option<u64> {
        for part in cut(range, part) {
            let missing: u64 = gaps(&lock(&self.segments), &object.id, part).map(|gap| gap.len()).sum();
            if missing == 0 {
                continue;
            }
            let Some(mut grant) = self.spare(missing) else { return Some(part.start()) };
            let flights = self.expect_gaps(&mut lock(&self.segments), &object.id, part);
            for flight in flights {
                let memory = grant.split(flight.range.len());
                self.start(object, flight, Some(memory), priority);
            }
        }
        None
    }

    /// Whether all of a range is in memory or on its way.
    pub(super) fn is_coming(&self, object: &ObjectId, range: ByteRange) -> bool {
        !lock(&self.segments).look(object, range).iter().any(|piece| matches!(piece, Piece::Gap(_)))
    }

    /// Nobody has the object open any more.
    pub(super) fn retire(&self, object: &ObjectId) {
        lock(&self.segments).retire(object);
    }

    pub(super) fn drop_all(&self) {
        lock(&self.segments).clear();
    }

    /// Lets go of bytes for as long as others lack them.
    pub(super) async fn yield_memory(budget: Budget, fetcher: std::sync::Weak<Self>) {
        loop {
            budget.pressed().await;
            let Some(fetcher) = fetcher.upgrade() else { return };
            fetcher.give_way();
        }
    }

    fn give_way(&self) {
        let wanted = self.budget.wanted_bytes();
        if wanted > 0 {
            lock(&self.segments).shed(wanted, Need::Demand);
        }
    }

    /// Memory for a guess, from what is free or was read already.
    fn spare(&self, bytes: u64) -> Option<Grant> {
        self.budget.try_take(bytes).or_else(|| {
            lock(&self.segments).shed(bytes, Need::Ahead);
            self.budget.try_take(bytes)
        })
    }

    async fn memory(&self, bytes: u64) -> Grant {
        if let Some(grant) = self.budget.try_take(bytes) {
            return grant;
        }
        lock(&self.segments).shed(bytes, Need::Demand);
        self.budget.take(bytes).await
    }

    /// A flight for each gap of a run, to be started once the lock is free.
    fn expect_gaps(
        &self,
        segments: &mut Segments<Arc<Flight>>,
        object: &ObjectId,
        run: ByteRange,
    ) -> Vec<Arc<Flight>> {
        let flights: Vec<_> =
            gaps(segments, object, run).map(|gap| Flight::new(gap, self.gate.ticket())).collect();
        for flight in &flights {
            segments.expect(object, flight.range, Arc::clone(flight));
        }
        flights
    }

    fn start(
        self: &Arc<Self>,
        object: &Object,
        flight: Arc<Flight>,
        grant: Option<Grant>,
        priority: Priority,
    ) {
        let fetcher = Arc::clone(self);
        let object = object.clone();
        self.runtime.spawn(async move {
            let landing = Landing { fetcher: Arc::clone(&fetcher), object, flight, ended: false };
            let grant = match grant {
                Some(grant) => grant,
                None => fetcher.memory(landing.flight.range.len()).await,
            };
            if landing.look_on_disk().await {
                return landing.end(Ok(()), grant, false);
            }
            let pass = fetcher.gate.enter(landing.flight.ticket, priority).await;
            let throttled = fetcher.stats.throttled.value();
            let answer = landing.fetch().await;
            pass.done(fetcher.stats.throttled.value() > throttled);
            landing.end(answer, grant, true);
        });
    }
}

fn gaps(
    segments: &Segments<Arc<Flight>>,
    object: &ObjectId,
    run: ByteRange,
) -> impl Iterator<Item = ByteRange> + use<> {
    let gap = |piece| if let Piece::Gap(gap) = piece { Some(gap) } else { None };
    segments.look(object, run).into_iter().filter_map(gap)
}

/// The run that one request should bring: the gap, and the first window behind it if there is one.
fn with_first_window(gap: ByteRange, advice: &Advice) -> ByteRange {
    let behind = advice.ahead.first().filter(|ahead| ahead.start() == gap.end());
    match behind.and_then(|ahead| ByteRange::new(gap.start(), ahead.end())) {
        Some(run) if run.len() <= FIRST_BYTES => run,
        _ => gap,
    }
}

/// Cuts a run at multiples of `part`, unless it is one request of the first window.
fn cut(run: ByteRange, part: u64) -> Vec<ByteRange> {
    if run.len() <= FIRST_BYTES.min(part + part / 4) {
        return vec![run];
    }
    let mut parts = Vec::new();
    let mut at = run.start();
    while let Some(next) = ByteRange::new(at, (at / part + 1).saturating_mul(part).min(run.end())) {
        parts.push(next);
        at = next.end();
    }
    parts
}

/// A run being fetched. However it ends, dropping it takes what has not landed off the list of what is coming.
struct Landing {
    fetcher: Arc<Fetcher>,
    object: Object,
    flight: Arc<Flight>,
    ended: bool,
}

impl Landing {
    /// Fills the flight's buffer with what the disk has from its begin on; whether that is all of it. What lacks is
    /// fetched as if a body had broken off there.
    async fn look_on_disk(&self) -> bool {
        let Some(disk) = self.fetcher.disk() else { return false };
        let range = self.flight.range;
        let found = disk.look(&self.object, range).await;
        let at = range.start() + found.len() as u64;
        if !found.is_empty() {
            *lock(&self.flight.buffer) = BytesMut::from(found);
            self.flight.progress.send_replace(Progress::Filled(at));
        }
        at == range.end()
    }

    /// Fills the flight's buffer, taking up a broken body where it broke.
    async fn fetch(&self) -> Result<()> {
        // What the server stores of the whole object, if this run is all of it.
        let mut stored = Vec::new();
        let mut resumes = 0;
        loop {
            let answer = match self.receive(&mut stored).await {
                Ok(()) => verify(&stored, &lock(&self.flight.buffer)),
                failed => failed,
            };
            match answer {
                Err(error) if error.kind().is_transient() && resumes < RESUMES_MAX => {
                    if error.kind() == Kind::Corrupt && !stored.is_empty() {
                        // Damaged on its way, perhaps; nobody has seen it.
                        lock(&self.flight.buffer).clear();
                    }
                    resumes += 1;
                }
                answer => return answer,
            }
        }
    }

    /// One GET for what has not arrived yet.
    async fn receive(&self, stored: &mut Vec<Checksum>) -> Result<()> {
        let flight = &self.flight;
        let arrived = lock(&flight.buffer).len() as u64;
        let Some(range) = ByteRange::new(flight.range.start() + arrived, flight.range.end()) else {
            return Ok(());
        };
        // Of a whole object the server may have a checksum, which is worth waiting for.
        let whole = range.start() == 0 && range.end() == self.object.size;
        let request = GetRequest {
            bucket: self.object.bucket.to_string(),
            key: self.object.id.key.to_string(),
            range: (!whole).then_some(range),
            if_match: Some(self.object.id.etag.clone()),
            checksum: whole,
            ..GetRequest::default()
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
        if whole {
            stored.extend(std::mem::take(&mut answer.info.checksums).into_iter().filter(is_of_body));
        }
        // What can be checked is shared when it has been.
        let shares = stored.is_empty();
        let mut at = range.start();
        while at < range.end() {
            let Some(chunk) = answer.body.next().await else {
                return Err(Error::new(Kind::Unreachable, format!("the body ended at {at} of {range}")));
            };
            let chunk = chunk?;
            if chunk.len() as u64 > range.end() - at {
                return Err(Error::new(Kind::Corrupt, "the body is longer than was announced"));
            }
            at += chunk.len() as u64;
            {
                let mut buffer = lock(&flight.buffer);
                if buffer.capacity() == 0 {
                    buffer.reserve(usize::try_from(flight.range.len()).unwrap_or(0));
                }
                buffer.extend_from_slice(&chunk);
            }
            if shares {
                flight.progress.send_replace(Progress::Filled(at));
            }
        }
        Ok(())
    }

    /// Hands the run over to everybody who waits and to whoever comes later; and to the disk, if it was `fetched`.
    fn end(mut self, answer: Result<()>, grant: Grant, fetched: bool) {
        self.ended = true;
        let (object, start) = (&self.object.id, self.flight.range.start());
        match answer {
            Ok(()) => {
                let whole = std::mem::take(&mut *lock(&self.flight.buffer)).freeze();
                if let Some(disk) = self.fetcher.disk().filter(|_| fetched) {
                    disk.keep(&self.object, start, &whole);
                }
                lock(&self.fetcher.segments).land(object, start, whole.clone(), grant);
                self.flight.progress.send_replace(Progress::Here(whole));
                self.fetcher.give_way();
            }
            Err(error) => {
                lock(&self.fetcher.segments).give_up(object, start);
                self.flight.progress.send_replace(Progress::Failed(Arc::new(error)));
            }
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.ended {
            lock(&self.fetcher.segments).give_up(&self.object.id, self.flight.range.start());
            self.flight.progress.send_replace(Progress::GivenUp);
        }
    }
}
