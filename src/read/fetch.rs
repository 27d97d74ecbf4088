//! Gets missing bytes: one GET for each run of them, whoever asked first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::disk::{DiskCache, Fetching};
use super::segments::{BRIDGE_BYTES, Need, Piece, Segments};
use super::window::{Advice, FIRST_BYTES};
use super::{Object, ObjectId, PIECE_BYTES, lock};
use crate::base::{Budget, ByteRange, Gate, Grant, Priority, Turn};
use crate::error::{Error, Kind, Result};
use crate::s3::{Body, GetRequest, is_of_body, verify};

/// How often a body that broke off is taken up again where it broke.
const RESUMES_MAX: u32 = 3;

/// Bytes in memory and bytes on their way.
pub(super) struct Fetcher {
    segments: Mutex<Segments<Arc<Flight>>>,
    gate: Gate,
    budget: Budget,
    disk: Option<Arc<DiskCache>>,
    runtime: Handle,
}

/// A run on its way, all of it or a piece of what one GET brings. Its bytes are shared as they arrive, or where the
/// server has a checksum of all of them, once that was found right.
#[derive(Debug)]
pub(super) struct Flight {
    range: ByteRange,
    turn: Turn,
    state: Mutex<Arriving>,
}

#[derive(Debug, Default)]
struct Arriving {
    /// What has arrived; and behind that what the disk has of the rest, at its place.
    buffer: BytesMut,
    /// How many bytes have arrived.
    arrived: usize,
    /// How many bytes of the buffer may be shared before all of it is here.
    shared: usize,
    outcome: Option<Outcome>,
    /// Who waits, and for how many bytes.
    waiters: Vec<(usize, oneshot::Sender<()>)>,
}

#[derive(Clone, Debug)]
enum Outcome {
    Here(Bytes),
    Failed(Arc<Error>),
    /// The fetch ended before it began; ask again.
    GivenUp,
}

impl Flight {
    fn new(range: ByteRange, turn: Turn) -> Arc<Self> {
        Arc::new(Self { range, turn, state: Mutex::default() })
    }

    /// Whether a part of the run has arrived.
    pub(super) fn has(&self, part: ByteRange) -> bool {
        let state = lock(&self.state);
        match state.outcome {
            None => self.offsets(part).1 <= state.shared,
            Some(Outcome::Here(_)) => true,
            Some(_) => false,
        }
    }

    /// Waits for a part of the run. `None` where the fetch was given up before it began: ask again.
    pub(super) async fn bytes(&self, part: ByteRange) -> Result<Option<Bytes>> {
        let (from, to) = self.offsets(part);
        loop {
            let arrived = {
                let mut state = lock(&self.state);
                match &state.outcome {
                    Some(Outcome::Here(whole)) => return Ok(Some(whole.slice(from..to))),
                    Some(Outcome::Failed(error)) => return Err(error.duplicate()),
                    Some(Outcome::GivenUp) => return Ok(None),
                    None if to <= state.shared => {
                        return Ok(Some(Bytes::copy_from_slice(&state.buffer[from..to])));
                    }
                    None => {}
                }
                let (sender, arrived) = oneshot::channel();
                state.waiters.push((to, sender));
                arrived
            };
            // Told or not, what has arrived says how to go on.
            let _ = arrived.await;
        }
    }

    fn arrived(&self) -> u64 {
        lock(&self.state).arrived as u64
    }

    fn is_full(&self) -> bool {
        self.arrived() == self.range.len()
    }

    /// Takes what there is room for; `fresh` makes the buffer.
    fn take(&self, chunk: &mut Bytes, shares: bool, fresh: impl FnOnce() -> BytesMut) {
        let len = usize::try_from(self.range.len()).unwrap_or(usize::MAX);
        let mut state = lock(&self.state);
        if state.buffer.capacity() == 0 {
            state.buffer = fresh();
        }
        let at = state.arrived;
        let part = chunk.split_to(chunk.len().min(len - at));
        let over = part.len().min(state.buffer.len() - at);
        state.buffer[at..at + over].copy_from_slice(&part[..over]);
        state.buffer.extend_from_slice(&part[over..]);
        state.arrived(part.len(), len, shares);
    }

    /// All the bytes that the disk has of this run, each at its place. Nothing may have arrived yet.
    fn place(&self, bytes: BytesMut) {
        lock(&self.state).buffer = bytes;
    }

    /// So many bytes that are placed already count as arrived.
    fn take_placed(&self, bytes: u64) {
        let len = usize::try_from(self.range.len()).unwrap_or(usize::MAX);
        lock(&self.state).arrived(usize::try_from(bytes).unwrap_or(usize::MAX), len, true);
    }

    /// All of it is here.
    fn finish(&self) -> Bytes {
        let mut state = lock(&self.state);
        let bytes = std::mem::take(&mut state.buffer).freeze();
        state.outcome = Some(Outcome::Here(bytes.clone()));
        state.waiters.clear();
        bytes
    }

    fn end(&self, outcome: Outcome) {
        let mut state = lock(&self.state);
        state.outcome = Some(outcome);
        state.waiters.clear();
    }

    fn offsets(&self, part: ByteRange) -> (usize, usize) {
        let offset = |at: u64| usize::try_from(at - self.range.start()).unwrap_or(usize::MAX);
        (offset(part.start()), offset(part.end()))
    }
}

impl Arriving {
    /// Who waits for all of a run of `len` bytes gets it without a copy, as soon as it ends.
    fn arrived(&mut self, bytes: usize, len: usize, shares: bool) {
        self.arrived += bytes;
        if shares && self.arrived < len {
            self.shared = self.arrived;
            let shared = self.shared;
            self.waiters.extract_if(.., |(need, _)| *need <= shared).for_each(drop);
        }
    }
}

/// Bytes that are here or will be.
pub(super) enum Block {
    Here(Bytes),
    Coming(ByteRange, Arc<Flight>),
}

impl Fetcher {
    pub(super) fn new(gate: Gate, budget: Budget, disk: Option<Arc<DiskCache>>) -> Arc<Self> {
        Arc::new(Self {
            segments: Mutex::new(Segments::new(budget.limit_bytes())),
            gate,
            budget,
            disk,
            runtime: Handle::current(),
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
                        self.gate.promote(&flight.turn);
                    }
                    blocks.push(Block::Coming(part, flight));
                }
                Piece::Gap(gap) => blocks.extend(self.demand_gap(object, gap, advice)),
            }
        }
        blocks
    }

    fn demand_gap(self: &Arc<Self>, object: &Object, gap: ByteRange, advice: &Advice) -> Vec<Block> {
        let mut runs = Vec::new();
        let blocks = {
            // Under one lock, so that a fetch that fails at once is still found by those who wait for it.
            let mut segments = lock(&self.segments);
            for part in cut(with_first_window(gap, advice), advice.part) {
                runs.extend(self.expect_gaps(&mut segments, object, part));
            }
            segments.look(&object.id, gap)
        };
        for run in runs {
            self.start(object, run, None, Priority::Demand);
        }
        let block = |piece| match piece {
            Piece::Here(bytes) => Block::Here(bytes),
            Piece::Coming(part, flight) => Block::Coming(part, flight),
            // Every gap is expected by now; whoever waits for this one asks again.
            Piece::Gap(part) => {
                let flight = Flight::new(part, Turn::default());
                flight.end(Outcome::GivenUp);
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
            let runs = self.expect_gaps(&mut lock(&self.segments), object, part);
            for run in runs {
                let memory = grant.split(run.range().len());
                self.start(object, run, Some(memory), priority);
            }
        }
        None
    }

    /// Whether all of a range is in memory or on its way.
    pub(super) fn is_coming(&self, object: &ObjectId, range: ByteRange) -> bool {
        !lock(&self.segments).look(object, range).iter().any(|piece| matches!(piece, Piece::Gap(_)))
    }

    pub(super) fn kept_bytes(&self) -> u64 {
        lock(&self.segments).bytes()
    }

    /// Nobody has the object open any more.
    pub(super) fn retire(&self, object: &ObjectId) {
        lock(&self.segments).retire(object);
    }

    pub(super) fn drop_all(&self) {
        lock(&self.segments).clear();
    }

    /// A number that changes whenever bytes are read, and whenever some come.
    pub(super) fn reads(&self) -> u64 {
        lock(&self.segments).reads()
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
    pub(super) fn spare(&self, bytes: u64) -> Option<Grant> {
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

    /// A run for each gap of a range, to be started once the lock is free.
    fn expect_gaps(
        &self,
        segments: &mut Segments<Arc<Flight>>,
        object: &Object,
        range: ByteRange,
    ) -> Vec<Run> {
        let mut runs = Vec::new();
        for gap in gaps(segments, &object.id, range) {
            let turn = Turn::default();
            let flights: Vec<_> =
                pieces(gap, object.size).into_iter().map(|piece| Flight::new(piece, turn.clone())).collect();
            for flight in &flights {
                segments.expect(&object.id, flight.range, Arc::clone(flight));
            }
            runs.push(Run { flights, turn });
        }
        runs
    }

    fn start(self: &Arc<Self>, object: &Object, run: Run, grant: Option<Grant>, priority: Priority) {
        let fetcher = Arc::clone(self);
        let object = object.clone();
        self.runtime.spawn(async move {
            let turn = run.turn.clone();
            let mut landing = Landing::new(Arc::clone(&fetcher), object, run);
            landing.memory = Some(match grant {
                Some(grant) => grant,
                None => fetcher.memory(landing.run.range().len()).await,
            });
            landing.look_on_disk().await;
            if landing.is_done() {
                return;
            }
            let pass = fetcher.gate.enter(&turn, priority).await;
            let answer = landing.fetch().await;
            pass.done();
            if let Err(error) = answer {
                landing.fail(error);
            }
        });
    }

    /// An empty buffer for the bytes of a piece.
    fn buffer(&self, len: usize) -> BytesMut {
        let mut buffer = self.used(len).unwrap_or_else(|| BytesMut::with_capacity(len));
        buffer.clear();
        buffer
    }

    /// A piece that is no longer wanted, if there is one of this length.
    fn used(&self, len: usize) -> Option<BytesMut> {
        if len as u64 != PIECE_BYTES {
            return None;
        }
        lock(&self.segments).take_used()?.try_into_mut().ok()
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

/// The pieces of a run: each as large as the kernel's own requests and at a multiple of that, so that most of them are
/// answered without putting bytes together. An object that comes whole is one piece, and held against its checksum.
fn pieces(run: ByteRange, size: u64) -> Vec<ByteRange> {
    if run.start() == 0 && run.end() == size && size <= FIRST_BYTES {
        return vec![run];
    }
    let mut pieces = Vec::new();
    let mut at = run.start();
    while let Some(piece) = ByteRange::new(at, ((at / PIECE_BYTES + 1) * PIECE_BYTES).min(run.end())) {
        pieces.push(piece);
        at = piece.end();
    }
    pieces
}

/// What one GET brings: neighbouring pieces.
struct Run {
    flights: Vec<Arc<Flight>>,
    turn: Turn,
}

impl Run {
    fn range(&self) -> ByteRange {
        let (first, last) = (self.flights.first(), self.flights.last());
        let ends = first.zip(last).and_then(|(a, b)| ByteRange::new(a.range.start(), b.range.end()));
        ends.expect("a run has a piece, and no piece is empty")
    }
}

/// A run being fetched. However it ends, dropping it takes what has not landed off the list of what is coming.
struct Landing {
    fetcher: Arc<Fetcher>,
    object: Object,
    run: Run,
    /// Pieces that are here.
    landed: usize,
    /// For the pieces that are not.
    memory: Option<Grant>,
    /// What of the disk's bytes is at its place in pieces that are not here, in order; each part is of one piece.
    placed: VecDeque<ByteRange>,
    /// Whether some of the next piece came from S3.
    is_fetched: bool,
    /// Pieces that are here and that the disk has not been offered yet.
    unkept: Vec<(u64, Bytes)>,
}

impl Landing {
    fn new(fetcher: Arc<Fetcher>, object: Object, run: Run) -> Self {
        let placed = VecDeque::new();
        Self { fetcher, object, run, landed: 0, memory: None, placed, is_fetched: false, unkept: Vec::new() }
    }

    fn is_done(&self) -> bool {
        self.landed == self.run.flights.len()
    }

    /// From the first byte that has not arrived to what the disk has, or the end.
    fn missing(&self) -> Option<ByteRange> {
        let flight = self.run.flights.get(self.landed)?;
        let end = self.placed.front().map_or(self.run.range().end(), |part| part.start());
        ByteRange::new(flight.range.start() + flight.arrived(), end)
    }

    /// Takes what the disk has of the run. What lacks is fetched, one gap after the other.
    async fn look_on_disk(&mut self) {
        let Some(disk) = self.fetcher.disk() else { return };
        let pieces = self.run.flights.iter().map(|flight| flight.range).collect();
        let fetcher = Arc::clone(&self.fetcher);
        let room = move |len| fetcher.used(len).unwrap_or_else(|| BytesMut::zeroed(len));
        let mut look = disk.look(&self.object, pieces, room);
        while let Some(found) = look.next().await {
            let Some(flight) = self.run.flights.iter().find(|flight| flight.range == found.piece) else {
                continue;
            };
            flight.place(found.bytes);
            self.placed.extend(found.parts);
            self.take_placed();
        }
        worth_taking(&mut self.placed, self.run.range().end());
    }

    /// Takes what the disk has right behind what is here.
    fn take_placed(&mut self) {
        while let Some(flight) = self.run.flights.get(self.landed) {
            let at = flight.range.start() + flight.arrived();
            let Some(part) = self.placed.pop_front_if(|part| part.start() == at) else { return };
            flight.take_placed(part.len());
            self.land();
        }
    }

    /// Fetches what lacks, taking up a broken body where it broke.
    async fn fetch(&mut self) -> Result<()> {
        let mut resumes = 0;
        let mut fetching = self.fetcher.disk().map(|disk| disk.fetching());
        while self.missing().is_some() {
            match self.receive(fetching.as_mut()).await {
                // What S3 answered, the client has asked for again already.
                Err(error)
                    if error.kind().is_transient() && error.status().is_none() && resumes < RESUMES_MAX =>
                {
                    resumes += 1;
                }
                answer => answer?,
            }
        }
        Ok(())
    }

    /// One GET for what has not arrived yet, up to what the disk has.
    async fn receive(&mut self, mut fetching: Option<&mut Fetching>) -> Result<()> {
        let Some(range) = self.missing() else { return Ok(()) };
        // Of a whole object the server may have a checksum, which is worth waiting for.
        let whole = range.start() == 0 && range.end() == self.object.size && self.run.flights.len() == 1;
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
        let stored = if whole { std::mem::take(&mut answer.info.checksums) } else { Vec::new() };
        if stored.iter().any(is_of_body) {
            // What can be checked is shared when it has been.
            let body = whole_body(answer.body, range).await?;
            verify(&stored, &body)?;
            self.take(body, false);
            self.keep(fetching).await;
            return Ok(());
        }
        let mut at = range.start();
        while at < range.end() {
            let chunk = next_chunk(&mut answer.body, at, range).await?;
            at += chunk.len() as u64;
            self.take(chunk, true);
            self.keep(fetching.as_deref_mut()).await;
        }
        Ok(())
    }

    /// Offers the disk what has landed. Readers have it already; the network waits while the disk is behind.
    async fn keep(&mut self, fetching: Option<&mut Fetching>) {
        let Some((disk, fetching)) = self.fetcher.disk().zip(fetching) else { return };
        for (start, bytes) in self.unkept.drain(..) {
            disk.keep(&self.object, start, &bytes, fetching).await;
        }
    }

    /// Takes bytes from S3 that follow on what is here.
    fn take(&mut self, mut chunk: Bytes, shares: bool) {
        while !chunk.is_empty() {
            let Some(flight) = self.run.flights.get(self.landed) else { return };
            let len = usize::try_from(flight.range.len()).unwrap_or(0);
            flight.take(&mut chunk, shares, || self.fetcher.buffer(len));
            self.is_fetched = true;
            self.land();
        }
        self.take_placed();
    }

    /// The next piece lands if it is full. What is not from the disk alone goes there.
    fn land(&mut self) {
        let Some(flight) = self.run.flights.get(self.landed).filter(|flight| flight.is_full()) else {
            return;
        };
        let (bytes, start) = (flight.finish(), flight.range.start());
        if std::mem::take(&mut self.is_fetched) && self.fetcher.disk().is_some() {
            self.unkept.push((start, bytes.clone()));
        }
        let grant = self.memory.as_mut().map(|memory| memory.split(flight.range.len()));
        lock(&self.fetcher.segments).land(&self.object.id, start, bytes, grant);
        self.landed += 1;
        self.fetcher.give_way();
    }

    fn fail(&mut self, error: Error) {
        let error = Arc::new(error);
        self.give_up(&Outcome::Failed(error));
    }

    fn give_up(&mut self, outcome: &Outcome) {
        for flight in self.run.flights.drain(self.landed..) {
            lock(&self.fetcher.segments).give_up(&self.object.id, flight.range.start());
            flight.end(outcome.clone());
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.give_up(&Outcome::GivenUp);
    }
}

/// Leaves out what lies between two gaps of a run that ends at `end` and is smaller than a request is worth: one GET
/// fetches it with both.
fn worth_taking(parts: &mut VecDeque<ByteRange>, end: u64) {
    let mut kept = VecDeque::with_capacity(parts.len());
    while let Some(first) = parts.pop_front() {
        let mut island = vec![first];
        let mut to = first.end();
        while let Some(next) = parts.pop_front_if(|next| next.start() == to) {
            to = next.end();
            island.push(next);
        }
        if to - first.start() >= BRIDGE_BYTES || to == end {
            kept.extend(island);
        }
    }
    *parts = kept;
}

/// The next chunk of the body of `range`, of which everything before `at` is here.
async fn next_chunk(body: &mut Body, at: u64, range: ByteRange) -> Result<Bytes> {
    let Some(chunk) = body.next().await else {
        return Err(Error::new(Kind::Unreachable, format!("the body ended at {at} of {range}")));
    };
    let chunk = chunk?;
    if chunk.len() as u64 > range.end() - at {
        return Err(Error::new(Kind::Corrupt, "the body is longer than was announced"));
    }
    Ok(chunk)
}

/// A small body, in one piece and in memory of its own: a chunk is a part of what a connection reads into, and would keep all
/// of that, however little of it is accounted for.
async fn whole_body(mut body: Body, range: ByteRange) -> Result<Bytes> {
    let mut whole = BytesMut::with_capacity(usize::try_from(range.len()).unwrap_or(0));
    while (whole.len() as u64) < range.len() {
        let chunk = next_chunk(&mut body, range.start() + whole.len() as u64, range).await?;
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}
