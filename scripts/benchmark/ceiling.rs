//! What the S3 client of this program can do without a file system above it: the ceiling that a mount is measured
//! against. It also makes the objects that the measurements read, because that has to be fast, and it is the witness
//! of what the measurements write.
//!
//!     ceiling fill --objects FILE            FILE is JSON: [["key", size], ...]
//!     ceiling put --prefix P --from PATH     a file, or the files of a directory; large ones in parallel parts
//!     ceiling get --prefix P                 parallel ranged GETs of all objects below P
//!     ceiling list --prefix P [--delimiter /]
//!     ceiling make-bucket, drop-bucket       a new bucket; one with all that is in it
//!     ceiling wait --expect FILE             until the bucket holds what FILE says, and nothing else
//!     ceiling check --expect FILE            whether its objects have the bytes that FILE says
//!
//! Identity, region and endpoint are those of the environment (`AWS_*`). The first four print one line of JSON:
//! seconds, bytes, objects, requests, and the processor time that it took. Finding what to GET or PUT is not counted.
//! An expectation is JSON: [["key", "path of a file with its bytes", null], ...]; a number in place of `null` is the
//! offset of a byte whose complement the object has.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use pailfs::base::{ByteRange, ETag, parse_bytes, parse_duration};
use pailfs::error::{Error, Kind, Result};
use pailfs::s3::{
    Attributes, Condition, DeleteKey, GetRequest, ListRequest, ListedObject, PutRequest, Session, Store,
};
use pailfs::stats::Stats;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[arg(long, global = true, default_value = "bench")]
    bucket: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the bucket and put objects into it
    Fill(FillArgs),
    /// Put files below a prefix
    Put(PutArgs),
    /// Read objects, in parallel ranged GETs
    Get(GetArgs),
    /// List keys, one page after the other
    List(ListArgs),
    /// Make the bucket
    MakeBucket,
    /// Remove the bucket, its objects and its unfinished uploads
    DropBucket,
    /// Say `ready`, wait for a line, then until what is expected is there
    Wait(WaitArgs),
    /// Compare objects with what is expected, byte for byte
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct FillArgs {
    /// JSON: [["key", size], ...]
    #[arg(long)]
    objects: PathBuf,
    /// Make files below this directory instead, with the same bytes
    #[arg(long)]
    local: Option<PathBuf>,
    #[command(flatten)]
    upload: UploadArgs,
}

#[derive(Debug, Args)]
struct PutArgs {
    #[arg(long, default_value = "")]
    prefix: String,
    /// A file, or a directory of files
    #[arg(long)]
    from: PathBuf,
    #[command(flatten)]
    upload: UploadArgs,
}

#[derive(Debug, Args)]
struct UploadArgs {
    #[arg(long, default_value = "16M", value_parser = parse_bytes)]
    part: u64,
    /// Objects up to one part, and parts of a larger one, under way at once
    #[arg(long, default_value_t = 32)]
    in_flight: usize,
}

#[derive(Debug, Args)]
struct GetArgs {
    #[arg(long, default_value = "")]
    prefix: String,
    #[arg(long, default_value = "8M", value_parser = parse_bytes)]
    part: u64,
    #[arg(long, default_value_t = 32)]
    in_flight: usize,
    /// Instead of everything, this many ranges of the size of a part, anywhere
    #[arg(long, value_name = "COUNT")]
    random: Option<usize>,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[arg(long, default_value = "")]
    prefix: String,
    /// Group by it: one directory. Without it everything below is listed
    #[arg(long)]
    delimiter: Option<String>,
}

#[derive(Debug, Args)]
struct WaitArgs {
    #[arg(long)]
    expect: PathBuf,
    #[arg(long, default_value = "180s", value_parser = parse_duration)]
    at_most: Duration,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[arg(long)]
    expect: PathBuf,
}

/// What a command did, beside the time it took.
#[derive(Debug, Default)]
struct Done {
    bytes: u64,
    objects: u64,
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(cli))
}

async fn run(cli: Cli) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let stats = Arc::new(Stats::default());
    let session = Session::builder().stats(Arc::clone(&stats)).build().await?;
    let store: Arc<dyn Store> = Arc::new(session.client());
    let measured = Measured { stats, bucket: cli.bucket, store };
    match cli.command {
        Command::Fill(args) => {
            let objects: Vec<(String, u64)> = serde_json::from_slice(&std::fs::read(&args.objects)?)?;
            match &args.local {
                Some(dir) => fill_local(dir, &objects)?,
                None => {
                    make_bucket(&measured).await?;
                    let new = |(key, size)| New { key, size, bytes: Source::Made };
                    let objects = objects.into_iter().map(new).collect();
                    measured.report(upload(&measured, &args.upload, objects)).await?;
                }
            }
        }
        Command::Put(args) => {
            let objects = from_files(&args.from, &args.prefix)?;
            measured.report(upload(&measured, &args.upload, objects)).await?;
        }
        Command::Get(args) => {
            let objects = list(&measured, &args.prefix, None).await?;
            let pieces = pieces(&objects, &args);
            measured.report(get(&measured, &args, pieces)).await?;
        }
        Command::List(args) => {
            let listing = async {
                let objects = list(&measured, &args.prefix, args.delimiter.as_deref()).await?;
                Ok(Done { objects: objects.len() as u64, ..Done::default() })
            };
            measured.report(listing).await?;
        }
        Command::MakeBucket => make_bucket(&measured).await?,
        Command::DropBucket => drop_bucket(&measured).await?,
        Command::Wait(args) => wait(&measured, &args, &expected(&args.expect)?).await?,
        Command::Check(args) => check(&measured, expected(&args.expect)?).await?,
    }
    Ok(())
}

struct Measured {
    stats: Arc<Stats>,
    bucket: String,
    store: Arc<dyn Store>,
}

impl Measured {
    fn requests(&self) -> u64 {
        self.stats.requests().values().sum()
    }

    /// Prints what `work` did and took.
    async fn report(&self, work: impl Future<Output = Result<Done>>) -> Result<()> {
        let (start, cpu, requests) =
            (clock(ClockId::Monotonic), clock(ClockId::ProcessCPUTime), self.requests());
        let done = work.await?;
        let line = json!({
            "seconds": (clock(ClockId::Monotonic) - start).as_secs_f64(),
            "cpu_seconds": (clock(ClockId::ProcessCPUTime) - cpu).as_secs_f64(),
            "bytes": done.bytes,
            "objects": done.objects,
            "requests": self.requests() - requests,
        });
        println!("{line}");
        Ok(())
    }
}

/// Does `work` for each number below `count`, by as many tasks as may be in flight; what came of it, in order.
async fn at_once<T, F, W>(in_flight: usize, count: usize, work: F) -> Result<Vec<T>>
where
    F: Fn(usize) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = Result<T>> + Send,
    T: Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..in_flight.min(count) {
        let (next, work) = (Arc::clone(&next), work.clone());
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, Error>(done);
                }
                done.push((number, work(number).await?));
            }
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(worker) = workers.join_next().await {
        all.extend(
            worker.map_err(|error| Error::new(Kind::Internal, "a worker failed").with_source(error))??,
        );
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, done)| done).collect())
}

fn clock(id: ClockId) -> Duration {
    Duration::try_from(clock_gettime(id)).unwrap_or_default()
}

// ---- Reading ----

type Piece = (Arc<str>, ByteRange);

fn pieces(objects: &[ListedObject], args: &GetArgs) -> Vec<Piece> {
    let keyed = objects.iter().map(|object| (Arc::from(object.key.as_str()), object.size));
    if let Some(count) = args.random {
        let keyed: Vec<(Arc<str>, u64)> = keyed.filter(|(_, size)| *size >= args.part).collect();
        let mut chance = StdRng::seed_from_u64(1);
        return (0..count)
            .filter_map(|_| {
                let (key, size) = keyed.get(chance.random_range(0..keyed.len().max(1)))?;
                let start = chance.random_range(0..size / args.part) * args.part;
                Some((Arc::clone(key), ByteRange::at(start, args.part)?))
            })
            .collect();
    }
    let step = usize::try_from(args.part.max(1)).unwrap_or(usize::MAX);
    keyed
        .flat_map(|(key, size)| {
            (0..size).step_by(step).filter_map(move |start| {
                Some((Arc::clone(&key), ByteRange::new(start, (start + args.part).min(size))?))
            })
        })
        .collect()
}

/// GETs all pieces. Bodies are let go of as they arrive.
async fn get(measured: &Measured, args: &GetArgs, pieces: Vec<Piece>) -> Result<Done> {
    let (objects, bytes) = (pieces.len(), Arc::new(AtomicU64::new(0)));
    let (pieces, counted) = (Arc::new(pieces), Arc::clone(&bytes));
    let (store, bucket) = (Arc::clone(&measured.store), measured.bucket.clone());
    let one = move |number: usize| {
        let (key, range) = pieces[number].clone();
        let (store, bucket, counted) = (Arc::clone(&store), bucket.clone(), Arc::clone(&counted));
        async move {
            let request =
                GetRequest { bucket, key: key.to_string(), range: Some(range), ..GetRequest::default() };
            let mut body = store.get(request).await?.body;
            while let Some(chunk) = body.next().await {
                counted.fetch_add(chunk?.len() as u64, Ordering::Relaxed);
            }
            Ok(())
        }
    };
    at_once(args.in_flight, objects, one).await?;
    Ok(Done { bytes: bytes.load(Ordering::Relaxed), objects: objects as u64 })
}

/// All keys below a prefix, or those of one directory, one page after the other.
async fn list(measured: &Measured, prefix: &str, delimiter: Option<&str>) -> Result<Vec<ListedObject>> {
    let (mut objects, mut continuation) = (Vec::new(), None);
    loop {
        let request = ListRequest {
            bucket: measured.bucket.clone(),
            prefix: prefix.to_owned(),
            delimiter: delimiter.map(str::to_owned),
            continuation,
            ..ListRequest::default()
        };
        let page = measured.store.list(request).await?;
        objects.extend(page.objects);
        continuation = page.next;
        if continuation.is_none() {
            return Ok(objects);
        }
    }
}

// ---- Writing ----

/// An object to upload.
struct New {
    key: String,
    size: u64,
    bytes: Source,
}

enum Source {
    /// What `content` makes.
    Made,
    File(File),
}

impl New {
    /// The bytes of one part.
    fn part(&self, number: u64, offset: u64, len: u64) -> Result<Bytes> {
        let Source::File(file) = &self.bytes else { return Ok(content(&self.key, number, len)) };
        read_at(file, offset, len).map(Bytes::from).map_err(|error| local(error, &self.key))
    }
}

fn read_at(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn local(error: io::Error, what: &str) -> Error {
    Error::new(Kind::Local, format!("reading the file for {what}")).with_source(error)
}

/// Bytes that no server can make smaller, the same for the same key and part.
fn content(key: &str, part: u64, len: u64) -> Bytes {
    let seed = key.bytes().fold(part, |seed, byte| seed.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    rand::rngs::SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

/// The parts of an object, as `content` makes them: number, offset, length.
fn parts(size: u64, part: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    (0..size.div_ceil(part)).map(move |number| (number, number * part, part.min(size - number * part)))
}

/// A file, or those of a directory, as objects of the same names.
fn from_files(path: &Path, prefix: &str) -> io::Result<Vec<New>> {
    let mut paths = match path.is_dir() {
        true => std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
        false => vec![path.to_owned()],
    };
    paths.sort();
    let new = |path: PathBuf| {
        let file = File::open(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(New { key: format!("{prefix}{name}"), size: file.metadata()?.len(), bytes: Source::File(file) })
    };
    paths.into_iter().map(new).collect()
}

/// PUTs what is up to one part, many at once, then the others in parts, one object after the other.
async fn upload(measured: &Measured, args: &UploadArgs, objects: Vec<New>) -> Result<Done> {
    let done = Done { bytes: objects.iter().map(|new| new.size).sum(), objects: objects.len() as u64 };
    let (small, large): (Vec<_>, Vec<_>) = objects.into_iter().partition(|new| new.size <= args.part);
    let (store, bucket, small) = (Arc::clone(&measured.store), measured.bucket.clone(), Arc::new(small));
    let count = small.len();
    let put = move |number: usize| {
        let (store, bucket, small) = (Arc::clone(&store), bucket.clone(), Arc::clone(&small));
        async move {
            let new = &small[number];
            let body = new.part(0, 0, new.size)?;
            let request = PutRequest { bucket, key: new.key.clone(), body, ..PutRequest::default() };
            store.put(request).await.map(drop)
        }
    };
    at_once(args.in_flight, count, put).await?;
    for new in large {
        upload_in_parts(measured, args, new).await?;
    }
    Ok(done)
}

async fn upload_in_parts(measured: &Measured, args: &UploadArgs, new: New) -> Result<()> {
    let upload = measured.store.create_upload(&measured.bucket, &new.key, Attributes::default()).await?;
    let ranges: Vec<_> = parts(new.size, args.part).collect();
    let (count, store, into) = (ranges.len(), Arc::clone(&measured.store), upload.clone());
    let shared = Arc::new((new, ranges, into));
    let part = move |number: usize| {
        let (store, shared) = (Arc::clone(&store), Arc::clone(&shared));
        async move {
            let (new, ranges, upload) = &*shared;
            let (number, offset, len) = ranges[number];
            let number_in_s3 = u16::try_from(number + 1)
                .map_err(|_| Error::new(Kind::TooLarge, "more parts than an upload may have"))?;
            store.upload_part(upload, number_in_s3, new.part(number, offset, len)?.into(), None).await
        }
    };
    let uploaded = at_once(args.in_flight, count, part).await?;
    measured.store.complete_upload(&upload, uploaded, Condition::Any).await.map(drop)
}

/// The same bytes as files.
fn fill_local(dir: &Path, objects: &[(String, u64)]) -> io::Result<()> {
    use std::io::Write;
    for (key, size) in objects {
        let path = dir.join(key);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut file = File::create(path)?;
        // Cut as an upload of the default part size is.
        for (number, _, len) in parts(*size, 16 << 20) {
            file.write_all(&content(key, number, len))?;
        }
    }
    Ok(())
}

// ---- Buckets ----

async fn make_bucket(measured: &Measured) -> Result<()> {
    match measured.store.create_bucket(&measured.bucket, None).await {
        Err(error) if error.kind() != Kind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

async fn drop_bucket(measured: &Measured) -> Result<()> {
    let Measured { store, bucket, .. } = measured;
    for upload in store.list_uploads(bucket, "").await? {
        store.abort_upload(&upload.upload).await?;
    }
    for page in list(measured, "", None).await?.chunks(1000) {
        let keys = page.iter().map(|object| DeleteKey::any(&object.key)).collect();
        for (_, answer) in store.delete_many(bucket, keys).await? {
            answer?;
        }
    }
    store.delete_bucket(bucket).await
}

// ---- Witnessing what others wrote ----

const POLL_EVERY: Duration = Duration::from_millis(20);

/// An object that has to be there, with the bytes of a local file, but for a byte that was changed.
struct Expected {
    key: String,
    file: File,
    size: u64,
    complemented: Option<u64>,
}

fn expected(path: &Path) -> io::Result<Vec<Expected>> {
    let words: Vec<(String, PathBuf, Option<u64>)> = serde_json::from_slice(&std::fs::read(path)?)?;
    let one = |(key, path, complemented)| {
        let file = File::open(path)?;
        Ok(Expected { key, size: file.metadata()?.len(), file, complemented })
    };
    words.into_iter().map(one).collect()
}

/// Prints when it was that the bucket was found as expected, by the clock that counts from the machine's start, and how
/// often it was looked at.
async fn wait(measured: &Measured, args: &WaitArgs, expected: &[Expected]) -> Result<()> {
    let before: HashMap<String, ETag> =
        list(measured, "", None).await?.into_iter().map(|object| (object.key, object.etag)).collect();
    println!("ready");
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(|error| local(error, "standard input"))?;
    let start = clock(ClockId::Monotonic);
    for looks in 1_u64.. {
        let lacking = lacking(&list(measured, "", None).await?, expected, &before);
        let now = clock(ClockId::Monotonic);
        let Some(lacking) = lacking else {
            println!("{}", json!({ "at": now.as_secs_f64(), "looks": looks }));
            return Ok(());
        };
        if now - start > args.at_most {
            return Err(Error::new(Kind::TimedOut, format!("{lacking} after {:?}", args.at_most)));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(())
}

/// What is not as expected, if anything. A marker of a directory in which something is expected is; a changed object has
/// another ETag than `before`.
fn lacking(found: &[ListedObject], expected: &[Expected], before: &HashMap<String, ETag>) -> Option<String> {
    let mut there: HashMap<&str, &ListedObject> =
        found.iter().map(|object| (object.key.as_str(), object)).collect();
    for Expected { key, size, complemented, .. } in expected {
        match there.remove(key.as_str()) {
            None => return Some(format!("{key} is not there")),
            Some(object) if object.size != *size => return Some(format!("{key} has {} bytes", object.size)),
            Some(object) if complemented.is_some() && before.get(key) == Some(&object.etag) => {
                return Some(format!("{key} is what it was"));
            }
            Some(_) => {}
        }
    }
    let is_marker = |key: &str| key.ends_with('/') && expected.iter().any(|other| other.key.starts_with(key));
    there.into_keys().find(|key| !is_marker(key)).map(|key| format!("{key} is there"))
}

/// Fails at the first object that is not what it should be.
async fn check(measured: &Measured, expected: Vec<Expected>) -> Result<()> {
    let (step, in_flight) = (8 << 20, 16);
    if let Some(lacking) = lacking(&list(measured, "", None).await?, &expected, &HashMap::new()) {
        return Err(Error::new(Kind::Corrupt, lacking));
    }
    let pieces: Vec<_> = expected
        .iter()
        .enumerate()
        .flat_map(|(index, object)| {
            parts(object.size, step).map(move |(_, offset, len)| (index, offset, len))
        })
        .collect();
    let (count, store, bucket) = (pieces.len(), Arc::clone(&measured.store), measured.bucket.clone());
    let shared = Arc::new((expected, pieces));
    let compare = move |number: usize| {
        let (store, bucket, shared) = (Arc::clone(&store), bucket.clone(), Arc::clone(&shared));
        async move {
            let (index, offset, len) = shared.1[number];
            let Expected { key, file, complemented, .. } = &shared.0[index];
            let mut right = read_at(file, offset, len).map_err(|error| local(error, key))?;
            let changed = complemented.and_then(|at| usize::try_from(at.checked_sub(offset)?).ok());
            if let Some(byte) = changed.and_then(|at| right.get_mut(at)) {
                *byte = !*byte;
            }
            let (key, range) = (key.clone(), ByteRange::at(offset, len));
            let request = GetRequest { bucket, key, range, ..GetRequest::default() };
            if store.get(request).await?.bytes().await? != right {
                let what = format!("{} differs within {len} bytes from {offset}", shared.0[index].key);
                return Err(Error::new(Kind::Corrupt, what));
            }
            Ok(())
        }
    };
    at_once(in_flight, count, compare).await.map(drop)
}
