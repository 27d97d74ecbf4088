//! The reader over S3 in memory: what it fetches is counted.

use super::*;
use crate::base::SystemClock;
use crate::error::Kind;
use crate::s3::{MemStore, PutRequest, When};

struct Bench {
    store: Arc<MemStore>,
    reader: Reader,
    stats: Arc<Stats>,
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect()
}

impl Bench {
    fn new() -> Self {
        let stats = Arc::new(Stats::default());
        let store = MemStore::new(Arc::new(SystemClock), Arc::clone(&stats)).with_bucket("bucket");
        Self { store: Arc::new(store), reader: reader(256 << 20, &stats), stats }
    }

    async fn object(&self, body: &[u8]) -> Object {
        let request = PutRequest {
            bucket: "bucket".into(),
            key: "k".into(),
            body: body.to_vec().into(),
            ..PutRequest::default()
        };
        let etag = self.store.put(request).await.unwrap().etag;
        let id = ObjectId { volume: 0, key: "k".into(), etag };
        let store: Arc<dyn Store> = self.store.clone();
        Object::new(id, "bucket".into(), body.len() as u64, store).from_origin("test".into())
    }

    fn gets(&self) -> u64 {
        self.stats.requests_of("GetObject")
    }

    async fn read(&self, object: &Object, cursor: &Cursor, at: u64, len: u64) -> Result<Vec<u8>> {
        let range = ByteRange::at(at, len).unwrap();
        Ok(self.reader.read(object, cursor, range).await?.concat())
    }
}

fn reader(limit_bytes: u64, stats: &Arc<Stats>) -> Reader {
    Reader::new(Gate::new(64, || 0), Budget::new(limit_bytes), None, Arc::clone(stats))
}

#[tokio::test]
async fn a_sequential_reader_gets_its_bytes_in_few_requests_and_none_again() {
    let bench = Bench::new();
    let body = pattern((16 << 20) + 777);
    let object = bench.object(&body).await;
    let w = bench.reader.cursor();
    let mut all = Vec::new();
    while all.len() < body.len() {
        all.extend(bench.read(&object, &w, all.len() as u64, 128 << 10).await.unwrap());
    }
    assert!(all == body);
    assert!(bench.gets() <= 20, "{} GETs for 16 MiB", bench.gets());
    let before = bench.gets();
    let again = bench.reader.cursor();
    assert!(bench.read(&object, &again, 5, body.len() as u64).await.unwrap() == body[5..]);
    assert_eq!(bench.gets(), before);
    assert_eq!(bench.stats.bytes_received.value(), body.len() as u64, "every byte once");
    let piece = ByteRange::at(4 << 20, 4096).unwrap();
    let cached = bench.reader.cached(&object, &again, piece).expect("it is in memory");
    assert!(cached == body[4 << 20..(4 << 20) + 4096]);
}

#[tokio::test]
async fn a_reader_at_its_end_leaves_its_share_to_others() {
    let bench = Bench::new();
    let body = pattern(16 << 20);
    let object = bench.object(&body).await;
    let cursor = bench.reader.cursor();
    let mut most = 0;
    for at in (0..16).map(|i| i << 20) {
        bench.read(&object, &cursor, at, 1 << 20).await.unwrap();
        most = most.max(bench.reader.active.load(Ordering::Relaxed));
    }
    assert_eq!(most, 1, "it was read far ahead of");
    assert_eq!(bench.reader.active.load(Ordering::Relaxed), 0, "its file is still open");
}

#[tokio::test]
async fn a_random_reader_fetches_what_it_asks_for() {
    let bench = Bench::new();
    let body = pattern(32 << 20);
    let object = bench.object(&body).await;
    let w = bench.reader.cursor();
    let mut at = 12_345u64;
    for _ in 0..50 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = ((at >> 33) % (28 << 20) + (3 << 20)) / 4096 * 4096;
        let bytes = bench.read(&object, &w, offset, 4096).await.unwrap();
        assert!(bytes == body[offset as usize..offset as usize + 4096]);
    }
    let fetched = bench.stats.bytes_received.value();
    assert!(fetched <= 2 * 50 * 4096, "{fetched} bytes fetched for {} asked", 50 * 4096);
}

#[tokio::test]
async fn a_small_object_is_one_request_and_held_against_its_checksum() {
    let bench = Bench::new();
    let body = pattern(300_000);
    let object = bench.object(&body).await;
    let w = bench.reader.cursor();
    let mut all = Vec::new();
    while all.len() < body.len() {
        all.extend(bench.read(&object, &w, all.len() as u64, 128 << 10).await.unwrap());
    }
    assert!(all == body);
    assert_eq!(bench.gets(), 1);
    // Damaged at every try.
    bench.reader.drop_all();
    bench.store.damage("k");
    let error = bench.read(&object, &bench.reader.cursor(), 0, 128 << 10).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(bench.gets(), 1 + 4, "it was asked for again, and not for ever");
}

#[tokio::test]
async fn a_file_fetched_before_it_is_opened_costs_its_reader_no_request() {
    let bench = Bench::new();
    let body = pattern(50_000);
    let object = bench.object(&body).await;
    assert!(!bench.reader.is_coming(&object));
    assert!(bench.reader.fetch_ahead(&object));
    assert!(bench.reader.is_coming(&object));
    assert!(bench.read(&object, &bench.reader.cursor(), 0, 128 << 10).await.unwrap() == body);
    assert_eq!(bench.gets(), 1);
}

#[tokio::test]
async fn readers_of_one_missing_block_make_one_request() {
    let bench = Bench::new();
    let body = pattern(1000);
    let object = bench.object(&body).await;
    let windows: Vec<_> = (0..20).map(|_| bench.reader.cursor()).collect();
    let reads = windows.iter().map(|w| bench.read(&object, w, 0, 1000));
    for read in futures::future::join_all(reads).await {
        assert!(read.unwrap() == body);
    }
    assert_eq!(bench.gets(), 1);
}

#[tokio::test]
async fn another_version_is_stale_and_never_mixed_in() {
    let bench = Bench::new();
    let old = bench.object(&pattern(4 << 20)).await;
    let w = bench.reader.cursor();
    bench.read(&old, &w, 0, 100).await.unwrap();
    bench.object(&[7; 4 << 20]).await;
    let error = bench.read(&old, &bench.reader.cursor(), 3 << 20, 100).await.map(drop);
    // What was read ahead of the first read is of the old version and may still be answered.
    if let Err(error) = error {
        assert_eq!(error.kind(), Kind::Stale);
    }
    bench.reader.drop_all();
    assert_eq!(bench.read(&old, &bench.reader.cursor(), 0, 100).await.unwrap_err().kind(), Kind::Stale);
}

#[tokio::test]
async fn a_failure_reaches_every_waiter_and_the_next_reader_tries_again() {
    let bench = Bench::new();
    let body = pattern(1000);
    let object = bench.object(&body).await;
    bench.store.fail_nth(1, Kind::AccessDenied, When::Before);
    let windows: Vec<_> = (0..5).map(|_| bench.reader.cursor()).collect();
    let reads = windows.iter().map(|w| bench.read(&object, w, 0, 1000));
    for read in futures::future::join_all(reads).await {
        assert_eq!(read.unwrap_err().kind(), Kind::AccessDenied);
    }
    assert!(bench.read(&object, &bench.reader.cursor(), 0, 1000).await.unwrap() == body);
}

#[tokio::test]
async fn a_transient_failure_is_taken_up_where_it_broke() {
    let bench = Bench::new();
    let body = pattern(3 << 20);
    let object = bench.object(&body).await;
    bench.store.fail_nth(1, Kind::Unreachable, When::Before);
    assert!(bench.read(&object, &bench.reader.cursor(), 0, 3 << 20).await.unwrap() == body);
}

#[tokio::test]
async fn a_reader_that_goes_away_leaves_the_others_whole() {
    let bench = Bench::new();
    let body = pattern(2 << 20);
    let object = bench.object(&body).await;
    let (one, two) = (bench.reader.cursor(), bench.reader.cursor());
    {
        let mut gone = Box::pin(bench.read(&object, &one, 0, 2 << 20));
        // Asked once, and dropped while its fetch is on its way.
        let _ = futures::poll!(gone.as_mut());
    }
    assert!(bench.read(&object, &two, 0, 2 << 20).await.unwrap() == body);
}

#[tokio::test]
async fn memory_that_is_short_stops_read_ahead_and_not_reading() {
    let stats = Arc::new(Stats::default());
    let store = MemStore::new(Arc::new(SystemClock), Arc::clone(&stats)).with_bucket("bucket");
    let bench = Bench { reader: reader(128 << 10, &stats), store: Arc::new(store), stats };
    let body = pattern(4 << 20);
    let object = bench.object(&body).await;
    let w = bench.reader.cursor();
    let mut all = Vec::new();
    while all.len() < body.len() {
        all.extend(bench.read(&object, &w, all.len() as u64, 100_000).await.unwrap());
    }
    assert!(all == body);
}

#[tokio::test]
async fn many_readers_at_once_stay_within_one_budget() {
    let stats = Arc::new(Stats::default());
    let store = MemStore::new(Arc::new(SystemClock), Arc::clone(&stats)).with_bucket("bucket");
    let budget = Budget::new(16 << 20);
    let reader = Reader::new(Gate::new(64, || 0), budget.clone(), None, Arc::clone(&stats));
    let bench = Bench { reader, store: Arc::new(store), stats };
    let body = pattern(12 << 20);
    let object = bench.object(&body).await;
    let read_all = async |skip: u64| {
        let w = bench.reader.cursor();
        let mut at = skip;
        while at < body.len() as u64 {
            let bytes = bench.read(&object, &w, at, 1 << 20).await.unwrap();
            assert!(bytes == body[at as usize..at as usize + bytes.len()]);
            at += bytes.len() as u64;
        }
    };
    futures::future::join_all((0..8).map(|i| read_all(i * 100_000))).await;
    // Somebody who writes gets the memory that is only kept.
    let all = tokio::time::timeout(std::time::Duration::from_secs(10), budget.take(16 << 20)).await;
    assert!(all.is_ok(), "what was read gives way");
}

#[tokio::test]
async fn a_server_that_throttles_gets_fewer_requests_at_once() {
    let bench = Bench::new();
    let body = pattern(1000);
    let object = bench.object(&body).await;
    let heard = Arc::clone(&bench.stats);
    let gate = Gate::new(64, move || heard.throttled.value());
    let reader = Reader::new(gate.clone(), Budget::new(1 << 20), None, Arc::clone(&bench.stats));
    // As the client counts them, whether or not its own tries helped in the end.
    bench.store.fail_nth(1, Kind::Throttled, When::Before);
    let range = ByteRange::new(0, 1000).unwrap();
    assert!(reader.read(&object, &reader.cursor(), range).await.is_ok());
    assert_eq!(gate.limit(), 32);
}

/// The same bench with its blocks kept in a directory too, as a mount of its own.
fn with_disk(bench: &Bench, dir: &std::path::Path) -> Bench {
    let stats = Arc::clone(&bench.stats);
    let limits = DiskLimits { disk_bytes: 1 << 30, behind_bytes: 64 << 20 };
    let disk = DiskCache::open(dir, limits, Arc::new(SystemClock), Arc::clone(&stats)).unwrap();
    let reader = Reader::new(Gate::new(64, || 0), Budget::new(64 << 20), Some(disk), Arc::clone(&stats));
    Bench { store: Arc::clone(&bench.store), reader, stats }
}

impl Bench {
    /// Until the queue to the disk has run dry; there is no event to wait for here.
    async fn written(&self, bytes: u64) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        while self.stats.disk_bytes_written.value() < bytes {
            assert!(tokio::time::Instant::now() < deadline, "the disk is behind");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_is_on_disk_needs_no_request_even_in_the_next_mount() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Bench::new();
    let body = pattern((9 << 20) + 5);
    let object = memory.object(&body).await;
    let bench = with_disk(&memory, dir.path());
    assert!(bench.read(&object, &bench.reader.cursor(), 0, body.len() as u64).await.unwrap() == body);
    bench.written(body.len() as u64).await;
    let gets = bench.gets();
    for bench in [&bench, &with_disk(&memory, dir.path())] {
        bench.reader.drop_all();
        assert!(bench.read(&object, &bench.reader.cursor(), 0, body.len() as u64).await.unwrap() == body);
    }
    assert_eq!(bench.gets(), gets);
    assert_eq!(bench.stats.bytes_received.value(), body.len() as u64);
}

#[tokio::test]
async fn what_the_disk_lacks_is_fetched_and_what_it_spoiled_too() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Bench::new();
    let body = pattern(4 << 20);
    let object = memory.object(&body).await;
    let bench = with_disk(&memory, dir.path());
    // The middle first, so that a run begins on neither side of it.
    let (at, len) = (1 << 20, 1 << 20);
    assert!(
        bench.read(&object, &bench.reader.cursor(), at, len).await.unwrap()
            == body[at as usize..][..len as usize]
    );
    bench.written(len).await;
    bench.reader.drop_all();
    assert!(bench.read(&object, &bench.reader.cursor(), 0, 4 << 20).await.unwrap() == body);
    bench.written(4 << 20).await;
    std::fs::write(dir.path().join("v1/usage"), "spoiled").unwrap();
    let data = walk(dir.path()).into_iter().find(|path| path.extension().is_some_and(|e| e == "data"));
    std::fs::OpenOptions::new().write(true).open(data.unwrap()).unwrap().set_len(100).unwrap();
    bench.reader.drop_all();
    assert!(bench.read(&object, &bench.reader.cursor(), 0, 4 << 20).await.unwrap() == body);
}

/// The network is memory here, and there is little room for what waits. The disk's clock stands still, so that no
/// busy machine makes it look hung.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_read_in_order_leaves_the_whole_file_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Bench::new();
    let mut body = vec![0; 48 << 20];
    for (number, page) in body.chunks_mut(4096).enumerate() {
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
    let object = memory.object(&body).await;
    let stats = Arc::clone(&memory.stats);
    let limits = DiskLimits { disk_bytes: 1 << 30, behind_bytes: 2 << 20 };
    let clock = Arc::new(crate::base::ManualClock::new());
    let disk = DiskCache::open(dir.path(), limits, clock, Arc::clone(&stats)).unwrap();
    let reader = Reader::new(Gate::new(64, || 0), Budget::new(32 << 20), Some(disk), Arc::clone(&stats));
    let bench = Bench { store: Arc::clone(&memory.store), reader, stats };
    let w = bench.reader.cursor();
    for (number, expected) in body.chunks(1 << 20).enumerate() {
        assert!(bench.read(&object, &w, (number as u64) << 20, 1 << 20).await.unwrap() == expected);
    }
    bench.written(body.len() as u64).await;
    assert_eq!(bench.stats.disk_dropped.value(), 0);
    assert_eq!(bench.stats.bytes_received.value(), body.len() as u64);
}

#[tokio::test]
async fn all_that_the_disk_has_of_a_run_is_taken_and_the_gaps_are_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Bench::new();
    let body = pattern(6 << 20);
    let object = memory.object(&body).await;
    let bench = with_disk(&memory, dir.path());
    let get = async |at: u64, len: u64| {
        let found = bench.read(&object, &bench.reader.cursor(), at, len).await.unwrap();
        assert!(found == body[at as usize..][..len as usize]);
    };
    // An island within a piece, one over a border of pieces, one that is not worth a request, and the end.
    let islands: [(u64, u64); 4] = [
        (1_100_000 / 4096 * 4096, 512 << 10),
        ((3 << 20) - (300 << 10), 600 << 10),
        ((4 << 20) + 409_600, 4096),
        (5 << 20, 1 << 20),
    ];
    for (at, len) in islands {
        get(at, len).await;
    }
    let had: u64 = islands.iter().map(|(_, len)| len).sum();
    assert_eq!(bench.stats.bytes_received.value(), had);
    bench.written(had).await;
    bench.reader.drop_all();
    let gets = bench.gets();
    get(0, 6 << 20).await;
    assert_eq!(bench.stats.bytes_received.value() - had, (6 << 20) - had + 4096);
    // Three gaps, in runs of a MiB at least.
    assert!((3..=6).contains(&(bench.gets() - gets)), "{} GETs", bench.gets() - gets);
    // With that the disk has everything.
    bench.written(6 << 20).await;
    let gets = bench.gets();
    let beside = with_disk(&memory, dir.path());
    assert!(beside.read(&object, &beside.reader.cursor(), 0, 6 << 20).await.unwrap() == body);
    assert_eq!(bench.gets(), gets);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 24, ..Default::default() })]
    /// Whatever was read before, and whatever part of it the disk still has.
    #[test]
    fn a_file_that_is_on_disk_in_parts_is_read_right(
        before in proptest::collection::vec((0u64..3 << 20, 1u64..700 << 10), 0..6),
        at in 0u64..3 << 20,
        len in 1u64..3 << 20,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let memory = Bench::new();
            let body = pattern((3 << 20) + 100);
            let object = memory.object(&body).await;
            let bench = with_disk(&memory, dir.path());
            for (at, len) in &before {
                let found = bench.read(&object, &bench.reader.cursor(), *at, *len).await.unwrap();
                assert!(found == body[*at as usize..body.len().min((at + len) as usize)]);
            }
            let beside = with_disk(&memory, dir.path());
            let found = beside.read(&object, &beside.reader.cursor(), at, len).await.unwrap();
            assert!(found == body[at as usize..body.len().min((at + len) as usize)]);
        });
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
