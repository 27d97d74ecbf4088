//! The cache on a real directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::base::{ETag, ManualClock, SystemClock};
use crate::error::Kind;
use crate::read::ObjectId;
use crate::s3::MemStore;

const MIB: u64 = 1 << 20;

struct Bench {
    dir: PathBuf,
    cache: Arc<DiskCache>,
    clock: Arc<ManualClock>,
    stats: Arc<Stats>,
}

impl Bench {
    fn open(dir: &Path, disk_bytes: u64) -> Self {
        Self::with_queue(dir, disk_bytes, 64 * MIB)
    }

    fn with_queue(dir: &Path, disk_bytes: u64, behind_bytes: u64) -> Self {
        let clock = Arc::new(ManualClock::new());
        let stats = Arc::new(Stats::default());
        let limits = DiskLimits { disk_bytes, behind_bytes };
        let cache = DiskCache::open(dir, limits, clock.clone(), Arc::clone(&stats)).unwrap();
        Self { dir: dir.to_owned(), cache, clock, stats }
    }

    /// Keeps all of an object, as it comes in, and waits until it is written.
    fn fill(&self, object: &Object) {
        let body = body(object);
        for start in (0..body.len()).step_by(128 << 10) {
            self.keep(object, start..(start + (128 << 10)).min(body.len()));
        }
        self.cache.settle();
    }

    /// Keeps some of an object's bytes. There is room, so nothing waits.
    fn keep(&self, object: &Object, range: Range<usize>) {
        let (start, bytes) = (range.start as u64, body(object).slice(range));
        let mut fetching = self.cache.fetching();
        let kept = self.cache.keep(object, start, &bytes, &mut fetching);
        assert!(kept.now_or_never().is_some());
    }

    /// All of an object, up to the first byte that lacks.
    fn read(&self, object: &Object) -> Bytes {
        self.begin_of(object, ByteRange::new(0, object.size).unwrap())
    }

    /// The bytes of a range up to the first that lacks.
    fn begin_of(&self, object: &Object, range: ByteRange) -> Bytes {
        let parts = self.parts(object, &[range]);
        parts.into_iter().find(|(start, _)| *start == range.start()).map_or(Bytes::new(), |(_, bytes)| bytes)
    }

    /// What there is of these pieces.
    fn parts(&self, object: &Object, pieces: &[ByteRange]) -> Vec<(u64, Bytes)> {
        let mut parts = Vec::new();
        self.cache.0.look(object, pieces, BytesMut::zeroed, |found| {
            let bytes = found.bytes.freeze();
            assert_eq!(bytes.len() as u64, found.piece.len());
            for part in found.parts {
                let offset = |at: u64| (at - found.piece.start()) as usize;
                parts.push((part.start(), bytes.slice(offset(part.start())..offset(part.end()))));
            }
            true
        });
        parts
    }

    fn has(&self, object: &Object) -> bool {
        self.read(object) == body(object)
    }

    /// Files of the cache, by ending.
    fn files(&self, ending: &str) -> Vec<PathBuf> {
        files(&self.dir).into_iter().filter(|path| path.extension().is_some_and(|e| e == ending)).collect()
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // Others may be removing what is found here.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => found.extend(files(&path)),
            Ok(_) => found.push(path),
            Err(_) => {}
        }
    }
    found
}

/// What the cached bytes occupy.
fn occupied(dir: &Path) -> u64 {
    let bytes = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
    files(dir).into_iter().filter(|path| path.extension().is_some()).map(bytes).sum()
}

fn object(key: &str, size: u64) -> Object {
    let id = ObjectId { volume: 0, key: key.into(), etag: ETag::new("e1") };
    let store = MemStore::new(Arc::new(SystemClock), Arc::default());
    Object::new(id, "bucket".into(), size, Arc::new(store)).from_origin("http://origin".into())
}

/// Bytes that say whose they are and where.
fn body(object: &Object) -> Bytes {
    let page = |n: u64| format!("{} {} {n:08};", object.id.key, object.id.etag).repeat(300).into_bytes();
    let mut body: Vec<u8> = Vec::new();
    for n in 0..object.size.div_ceil(4096) {
        body.extend(&page(n)[..4096]);
    }
    body.truncate(object.size as usize);
    body.into()
}

#[test]
fn blocks_survive_a_restart_and_are_shared_by_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let one = Bench::open(dir.path(), 100 * MIB);
    let two = Bench::open(dir.path(), 100 * MIB);
    let small = object("small", 1);
    let large = object("large", 3 * MIB + 7);
    one.fill(&small);
    two.fill(&large);
    for bench in [&one, &two, &Bench::open(dir.path(), 100 * MIB)] {
        assert!(bench.read(&small) == body(&small));
        assert!(bench.read(&large) == body(&large));
        let (some, at) = (ByteRange::at(1_000_001, 70_000).unwrap(), 1_000_001);
        assert!(bench.begin_of(&large, some) == body(&large)[at..at + 70_000]);
    }
    assert_eq!(one.stats.disk_bytes_written.value(), 1);
    assert_eq!(one.stats.disk_hits.value(), 3);
}

#[test]
fn what_is_looked_for_while_it_is_written_is_here_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 1000 * MIB);
    let objects: Vec<Object> = (0..300).map(|n| object(&format!("o{n}"), 100_000)).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| objects.iter().for_each(|object| bench.fill(object)));
        for object in &objects {
            while !bench.has(object) && !writer.is_finished() {}
        }
    });
    assert!(objects.iter().all(|object| bench.has(object)));
}

#[test]
fn a_block_that_is_here_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 100 * MIB);
    let o = object("o", MIB);
    bench.fill(&o);
    bench.fill(&o);
    assert_eq!(bench.stats.disk_bytes_written.value(), MIB);
}

#[test]
fn bytes_of_another_version_place_or_origin_are_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 100 * MIB);
    let mine = object("o", 100_000);
    bench.fill(&mine);
    let others = [
        Object { bucket: "another".into(), ..mine.clone() },
        Object { origin: "aws".into(), ..mine.clone() },
        Object { size: 100_001, ..mine.clone() },
        Object { id: ObjectId { etag: ETag::new("e2"), ..mine.id.clone() }, ..mine.clone() },
        Object { id: ObjectId { key: "p".into(), ..mine.id.clone() }, ..mine.clone() },
    ];
    for other in others {
        assert!(bench.read(&other).is_empty(), "{other:?}");
    }
    let elsewhere = Object { id: ObjectId { volume: 9, ..mine.id.clone() }, ..mine.clone() };
    assert!(bench.has(&elsewhere), "the number of a volume is another in each mount");
    let unknown = Object { origin: "".into(), ..mine };
    bench.fill(&unknown);
    assert!(!bench.has(&unknown), "what comes from nowhere is not kept");
}

#[test]
fn a_file_found_under_another_name_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 100 * MIB);
    let (a, b) = (object("a", 1000), object("b", 1000));
    bench.fill(&a);
    let (a_index, a_data) = (bench.files("index"), bench.files("data"));
    bench.fill(&b);
    let other =
        |ending, mine: &[PathBuf]| bench.files(ending).into_iter().find(|p| !mine.contains(p)).unwrap();
    let (b_index, b_data) = (other("index", &a_index), other("data", &a_data));
    // Data alone, then both.
    fs::copy(&a_data[0], &b_data).unwrap();
    assert!(bench.read(&b).is_empty());
    bench.fill(&b);
    fs::copy(&a_data[0], b_data).unwrap();
    fs::copy(&a_index[0], b_index).unwrap();
    assert!(bench.read(&b).is_empty());
    assert!(bench.read(&a) == body(&a));
}

#[test]
fn a_damaged_version_is_removed_and_filled_anew() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 100 * MIB);
    let o = object("o", 300_000);
    let damages: [fn(&Bench); 4] = [
        |bench| {
            let data = fs::OpenOptions::new().write(true).open(&bench.files("data")[0]).unwrap();
            data.write_all_at(b"x", 200_000).unwrap();
        },
        |bench| {
            let data = fs::OpenOptions::new().write(true).open(&bench.files("data")[0]).unwrap();
            data.set_len(250_000).unwrap();
        },
        |bench| fs::remove_file(&bench.files("data")[0]).unwrap(),
        |bench| fs::write(&bench.files("index")[0], b"").unwrap(),
    ];
    for damage in damages {
        bench.fill(&o);
        assert!(bench.read(&o) == body(&o));
        damage(&bench);
        let found = bench.read(&o);
        assert!(found.len() < 300_000 && body(&o).starts_with(&found));
    }
    bench.fill(&o);
    assert!(bench.read(&o) == body(&o));
    // What is good of a damaged version is of use once more, piece by piece.
    bench.fill(&o);
    let data = fs::OpenOptions::new().write(true).open(&bench.files("data")[0]).unwrap();
    data.write_all_at(b"x", 100_000).unwrap();
    let all = body(&o);
    let parts =
        bench.parts(&o, &[ByteRange::new(0, 200_000).unwrap(), ByteRange::new(200_000, 300_000).unwrap()]);
    assert!(parts == [(0, all.slice(..98_304)), (102_400, all.slice(102_400..200_000))]);
    bench.fill(&o);
    assert!(bench.read(&o) == body(&o));
    assert_eq!(bench.stats.disk_errors.value(), 0, "damage is no failure of the disk");
    assert_eq!(bench.stats.disk_corrupt.value(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn no_damage_makes_wrong_bytes(
        in_index in any::<bool>(),
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..20),
        cut in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::open(dir.path(), 100 * MIB);
        let o = object("o", 140_000);
        bench.fill(&o);
        let path = &bench.files(if in_index { "index" } else { "data" })[0];
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let at = at.index(file.metadata().unwrap().len() as usize) as u64;
        file.write_all_at(&bytes, at).unwrap();
        if cut {
            file.set_len(at).unwrap();
        }
        for _ in 0..2 {
            prop_assert!(body(&o).starts_with(&bench.read(&o)));
            bench.fill(&o);
        }
        prop_assert!(bench.read(&o) == body(&o));
    }
}

#[test]
fn another_version_of_the_format_is_ignored_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 100 * MIB);
    let o = object("o", 1000);
    bench.fill(&o);
    let index = fs::OpenOptions::new().write(true).open(&bench.files("index")[0]).unwrap();
    index.write_all_at(&(index::FORMAT + 1).to_le_bytes(), 8).unwrap();
    assert!(bench.read(&o).is_empty());
    bench.fill(&o);
    assert!(bench.read(&o) == body(&o));
    fs::create_dir(dir.path().join("v2")).unwrap();
    fs::write(dir.path().join("v2/usage"), "of the future").unwrap();
    assert!(Bench::open(dir.path(), 100 * MIB).has(&o));
}

#[test]
fn what_was_not_used_for_long_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 10 * MIB);
    let objects: Vec<Object> = (0..8).map(|n| object(&format!("o{n}"), MIB)).collect();
    for o in &objects {
        bench.fill(o);
    }
    // The files' times are the machine's, and the clock of the cache has moved on from there.
    bench.clock.advance(Duration::from_secs(3600));
    let used = [&objects[0], &objects[3]];
    assert!(used.iter().all(|o| bench.has(o)));
    for n in 0..6 {
        let fresh = object(&format!("fresh{n}"), MIB);
        bench.fill(&fresh);
        assert!(occupied(dir.path()) <= 10 * MIB);
    }
    assert!(used.iter().all(|o| bench.has(o)), "what was used an hour later outlives what was not");
    assert!(bench.stats.disk_evictions.value() >= 5);
}

#[test]
fn only_whole_blocks_are_kept_and_all_of_them_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 100 * MIB);
    let o = object("o", 100_000);
    let all = body(&o);
    for range in [1000..9000usize, 20_000..20_480, 40_960..61_440, 99_000..100_000, 98_304..100_000] {
        bench.keep(&o, range);
    }
    bench.cache.settle();
    let look = |at: u64, end: u64| bench.begin_of(&o, ByteRange::new(at, end).unwrap());
    assert!(look(0, 10).is_empty() && look(20_000, 20_480).is_empty());
    assert!(look(4096, 50_000) == all[4096..8192]);
    assert!(look(50_000, 100_000) == all[50_000..61_440]);
    assert!(look(99_999, 100_000) == all[99_999..]);
    let pieces =
        [(0, 30_000), (30_000, 45_000), (45_000, 100_000)].map(|(a, b)| ByteRange::new(a, b).unwrap());
    let expected = [4096..8192, 40_960..45_000, 45_000..61_440, 98_304..100_000usize];
    let expected = expected.map(|range| (range.start as u64, all.slice(range)));
    assert!(bench.parts(&o, &pieces) == expected);
    assert_eq!(bench.stats.disk_bytes_written.value(), 4096 + 20_480 + 1696);
    // The rest comes around what is there.
    bench.fill(&o);
    assert!(bench.has(&o));
    assert_eq!(bench.stats.disk_bytes_written.value(), 100_000);
}

#[test]
fn an_object_larger_than_the_limit_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), MIB);
    bench.fill(&object("o", 2 * MIB));
    assert_eq!(occupied(dir.path()), 0);
}

#[test]
fn a_lost_count_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 10 * MIB);
    for n in 0..9 {
        bench.fill(&object(&format!("o{n}"), MIB));
    }
    for damage in ["", "torn"] {
        fs::write(dir.path().join("v1/usage"), damage).unwrap();
        for n in 0..4 {
            bench.fill(&object(&format!("{damage}-{n}"), MIB));
            assert!(occupied(dir.path()) <= 10 * MIB, "{} bytes", occupied(dir.path()));
        }
    }
    // Files that went without us: their bytes are found to be free when room is made.
    for path in bench.files("data").into_iter().chain(bench.files("index")) {
        fs::remove_file(path).unwrap();
    }
    let fresh: Vec<Object> = (0..9).map(|n| object(&format!("fresh{n}"), MIB)).collect();
    for o in &fresh {
        bench.fill(o);
    }
    assert!(fresh.iter().filter(|o| bench.has(o)).count() >= 8);
}

#[test]
fn a_failing_disk_is_left_alone_and_used_again_when_it_works() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 100 * MIB);
    let o = object("o", 1000);
    bench.fill(&o);
    let (root, aside) = (dir.path().join("v1"), dir.path().join("aside"));
    fs::rename(&root, &aside).unwrap();
    // Every path below it is an error now.
    fs::write(&root, "").unwrap();
    for _ in 0..20 {
        assert!(bench.read(&o).is_empty());
    }
    let reading = bench.stats.disk_errors.value();
    assert!((1..10).contains(&reading), "{reading} failures");
    for n in 0..20 {
        bench.fill(&object(&format!("p{n}"), 1000));
    }
    let errors = bench.stats.disk_errors.value();
    assert!((1..10).contains(&(errors - reading)), "{reading} and {errors} failures");
    fs::remove_file(&root).unwrap();
    fs::rename(&aside, &root).unwrap();
    assert_eq!(bench.cache.whole(&o).map(drop), None, "still left alone");
    bench.clock.advance(Duration::from_secs(3600));
    assert!(bench.read(&o) == body(&o));
    let p = object("p", 1000);
    bench.fill(&p);
    assert!(bench.has(&p));
    assert_eq!(bench.stats.disk_errors.value(), errors);
}

#[test]
fn a_directory_that_others_could_fill_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let limits = DiskLimits { disk_bytes: MIB, behind_bytes: MIB };
    let open = |path: &Path| DiskCache::open(path, limits, Arc::new(SystemClock), Arc::default()).map(drop);
    let fresh = dir.path().join("a/b");
    open(&fresh).unwrap();
    assert_eq!(fs::metadata(&fresh).unwrap().mode() & 0o777, 0o700);
    for mode in [0o777, 0o770, 0o702] {
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).unwrap();
        let error = open(&fresh).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.message().contains("chmod go-w"), "{}", error.message());
    }
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    open(&fresh).unwrap();
    // What is inside is private whatever the directory around it lets others see.
    assert_eq!(fs::metadata(fresh.join("v1")).unwrap().mode() & 0o777, 0o700);
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(open(&file).is_err());
    if std::os::unix::fs::chown(&fresh, Some(12_345), None).is_ok() {
        let error = open(&fresh).unwrap_err();
        assert!(error.message().contains("belongs to user 12345"), "{}", error.message());
    }
}

#[test]
fn what_the_disk_cannot_keep_up_with_is_not_kept_and_nobody_waits() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::with_queue(dir.path(), 100 * MIB, 100_000);
    let o = object("o", MIB);
    for _ in 0..10 {
        bench.keep(&o, MIB as usize - 5000..MIB as usize);
        // There never is room for this one.
        bench.keep(&o, 0..MIB as usize);
    }
    assert_eq!(bench.stats.disk_dropped.value(), 10);
}

/// Files and directories of a cache that anybody opens, as the kernel counts them.
struct Watch(std::os::fd::OwnedFd);

impl Watch {
    fn on(dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        use rustix::fs::inotify;
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        for dir in dirs {
            inotify::add_watch(&watch, dir, inotify::WatchFlags::OPEN).unwrap();
        }
        Self(watch)
    }

    fn opened(&self) -> usize {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8192];
        let mut events = rustix::fs::inotify::Reader::new(&self.0, &mut buffer);
        std::iter::from_fn(|| events.next().ok().map(drop)).count()
    }
}

#[test]
fn opening_looks_at_nothing_and_a_block_is_read_and_written_however_many_there_are() {
    let opened = |versions: usize| {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (object("old", 1000), object("new", 1000));
        Bench::open(dir.path(), 100 * MIB).fill(&old);
        let shard = |number: usize| dir.path().join(format!("v1/{number:02x}"));
        for number in 0..256 {
            let _ = fs::create_dir(shard(number));
        }
        for number in 0..versions {
            for ending in ["index", "data"] {
                fs::write(shard(number % 256).join(format!("{number:032x}.{ending}")), "").unwrap();
            }
        }
        let watch = Watch::on((0..256).map(shard).chain([dir.path().to_owned(), dir.path().join("v1")]));
        let bench = Bench::open(dir.path(), 100 * MIB);
        assert_eq!(watch.opened(), 0, "opening the cache opened something");
        assert!(bench.has(&old));
        bench.fill(&new);
        assert!(bench.has(&new));
        watch.opened()
    };
    let few = opened(0);
    assert!((4..40).contains(&few), "{few}");
    assert_eq!(opened(1_000), few);
}

#[test]
fn a_whole_file_is_complete_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 200 * MIB);
    let o = object("o", 300_000);
    assert!(bench.cache.whole(&o).is_none());
    bench.keep(&o, 0..290_000);
    bench.cache.settle();
    assert!(bench.cache.whole(&o).is_none(), "some of it lacks");
    bench.fill(&o);
    let bytes = |file: File| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let all = body(&o);
    let handed_out = bench.cache.whole(&o).unwrap();
    assert!(bytes(handed_out.try_clone().unwrap()) == all);
    // Asking again costs no reading.
    let read = bench.stats.disk_hits.value();
    assert!(bench.cache.whole(&o).is_some());
    assert_eq!(bench.stats.disk_hits.value(), read);

    // A file that changes is verified anew.
    let data = fs::OpenOptions::new().write(true).open(&bench.files("data")[0]).unwrap();
    data.write_all_at(b"x", 70_000).unwrap();
    data.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(bench.cache.whole(&o).is_none());
    assert_eq!(bench.stats.disk_corrupt.value(), 1);
    data.write_all_at(&all[70_000..70_001], 70_000).unwrap();
    bench.fill(&o);
    assert!(bytes(bench.cache.whole(&o).unwrap()) == all);
    assert!(bytes(handed_out) == all, "filled anew beside the file that was handed out");
}

#[test]
fn a_large_file_is_verified_by_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 200 * MIB);
    let o = object("o", VERIFY_AT_OPEN_BYTES + MIB);
    bench.fill(&o);
    assert!(bench.cache.whole(&o).is_none(), "too much to read at an open");
    bench.begin_of(&o, ByteRange::new(0, MIB).unwrap());
    assert!(bench.cache.whole(&o).is_some(), "little enough is left");
}

#[test]
fn what_is_evicted_while_open_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), 3 * MIB);
    let o = object("o", MIB);
    bench.fill(&o);
    let file = bench.cache.whole(&o).unwrap();
    for n in 0..6 {
        bench.fill(&object(&format!("p{n}"), 2 * MIB));
    }
    assert!(!bench.has(&o));
    let mut bytes = vec![0; MIB as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == body(&o));
}

const FILLERS: usize = 64;
const PROCESSES: usize = 8;
const SHARED_LIMIT: u64 = 24 * MIB;
const FILLER_DIR: &str = "PAILFS_TEST_FILLER_DIR";

/// The work of one process of the test below; nothing where it is not that test's.
#[test]
fn fillers_of_one_process() {
    #[allow(clippy::disallowed_methods)] // how the parent tells its children
    let Ok(dir) = std::env::var(FILLER_DIR) else { return };
    let benches: Vec<Bench> =
        (0..FILLERS / PROCESSES).map(|_| Bench::open(Path::new(&dir), SHARED_LIMIT)).collect();
    let seed = std::process::id();
    std::thread::scope(|scope| {
        for (n, bench) in benches.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..8 {
                    // Some of them are everybody's.
                    let whose = if round % 3 == 0 { 0 } else { seed };
                    let o = object(&format!("{whose}-{n}-{round}"), 200_000 + 100_000 * (round % 4));
                    bench.fill(&o);
                    assert!(body(&o).starts_with(&bench.read(&o)));
                    let total = {
                        // What goes and what comes during a look would both be seen, so nothing comes.
                        let usage = File::open(bench.dir.join("v1/usage")).unwrap();
                        usage.lock().unwrap();
                        occupied(&bench.dir)
                    };
                    assert!(total <= SHARED_LIMIT, "{total} bytes");
                }
                assert_eq!(bench.stats.disk_errors.value(), 0);
            });
        }
    });
}

#[test]
fn the_limit_holds_under_64_fillers_of_8_processes() {
    let dir = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let children: Vec<_> = (0..PROCESSES)
        .map(|_| {
            Command::new(&me)
                .args(["--exact", "read::disk::tests::fillers_of_one_process", "--nocapture"])
                .env(FILLER_DIR, dir.path())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut outcomes = BTreeMap::new();
    for child in children {
        let id = child.id();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        outcomes.insert(id, (output.status.success(), told));
    }
    for (success, told) in outcomes.values() {
        assert!(success, "{told}");
    }
    let total = occupied(dir.path());
    assert!((SHARED_LIMIT / 2..=SHARED_LIMIT).contains(&total), "{total} bytes are kept of {SHARED_LIMIT}");
    let bench = Bench::open(dir.path(), SHARED_LIMIT);
    bench.fill(&object("last", MIB));
    assert!(occupied(dir.path()) <= SHARED_LIMIT);
}

/// Whoever could write to the directory once may have left links there, to files that its user has and they have not.
#[test]
fn what_lies_in_the_place_of_a_file_is_taken_away_and_what_a_link_leads_to_stays() {
    let o = object("o", 300_000);
    for (planted, pipe) in
        ["usage", "index", "data", "shard"].into_iter().flat_map(|name| [(name, false), (name, true)])
    {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, victim) = (scratch.path().join("cache"), scratch.path().join("victim"));
        let bench = Bench::open(&dir, 64 * MIB);
        bench.fill(&o);
        let data = bench.files("data").remove(0);
        let path = match planted {
            "usage" => dir.join("v1/usage"),
            "index" => data.with_extension("index"),
            "data" => data,
            _ => data.parent().unwrap().to_owned(),
        };
        match planted {
            "shard" => {
                // Files of theirs, of a name that would be taken for what was never finished.
                fs::remove_dir_all(&path).unwrap();
                fs::create_dir(&victim).unwrap();
                fs::write(victim.join("mine.new"), "mine").unwrap();
            }
            _ => {
                fs::remove_file(&path).unwrap();
                fs::write(&victim, "mine").unwrap();
            }
        }
        if pipe {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        } else {
            std::os::unix::fs::symlink(&victim, &path).unwrap();
        }
        let again = Bench::open(&dir, 64 * MIB);
        assert_eq!(again.has(&o), planted == "usage", "{planted}");
        again.cache.usage();
        again.fill(&o);
        again.fill(&object("q", 1000));
        assert!(again.has(&o), "{planted} {pipe}");
        assert_eq!(again.stats.disk_errors.value(), 0, "{planted} {pipe}");
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink(), "{planted}");
        // Everything makes room for another one.
        let small = Bench::open(&dir, MIB);
        small.fill(&object("p", 900_000));
        match planted {
            "shard" => {
                assert_eq!(fs::read(victim.join("mine.new")).unwrap(), b"mine");
                assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
            }
            _ => assert_eq!(fs::read(&victim).unwrap(), b"mine", "{planted}"),
        }
    }
}
