//! What the S3 client of this program can do without a file system above it: the ceiling that a mount is measured
//! against. It also makes the objects that the measurements read, because that has to be fast.
//!
//!     ceiling fill --objects FILE            FILE is JSON: [["key", size], ...]
//!     ceiling put --prefix P --count N --size S
//!     ceiling get --prefix P                 parallel ranged GETs of all objects below P
//!     ceiling list --prefix P [--delimiter /]
//!
//! Identity, region and endpoint are those of the environment (`AWS_*`). Each command prints one line of JSON:
//! seconds, bytes, objects, requests, and the processor time that it took. Finding the objects to GET is not counted.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use futures::{StreamExt, TryStreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use pailfs::base::{ByteRange, parse_bytes};
use pailfs::error::{Error, Kind, Result};
use pailfs::s3::{
    Attributes, Condition, GetRequest, ListRequest, ListedObject, Part, PutRequest, Session, Store,
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
    /// Put new objects below a prefix
    Put(PutArgs),
    /// Read objects, in parallel ranged GETs
    Get(GetArgs),
    /// List keys, one page after the other
    List(ListArgs),
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
    #[arg(long)]
    prefix: String,
    #[arg(long, default_value_t = 1)]
    count: usize,
    #[arg(long, value_parser = parse_bytes)]
    size: u64,
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
                    measured.report(fill(&measured, &args.upload, &objects)).await?;
                }
            }
        }
        Command::Put(args) => {
            let objects: Vec<(String, u64)> =
                (0..args.count).map(|number| (format!("{}{number:06}", args.prefix), args.size)).collect();
            measured.report(fill(&measured, &args.upload, &objects)).await?;
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

/// GETs all pieces, by as many tasks as may be in flight. Bodies are let go of as they arrive.
async fn get(measured: &Measured, args: &GetArgs, pieces: Vec<Piece>) -> Result<Done> {
    let (pieces, next, bytes) =
        (Arc::new(pieces), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..args.in_flight.min(pieces.len()) {
        let (pieces, next, bytes) = (Arc::clone(&pieces), Arc::clone(&next), Arc::clone(&bytes));
        let (store, bucket) = (Arc::clone(&measured.store), measured.bucket.clone());
        workers.spawn(async move {
            while let Some((key, range)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let request = GetRequest {
                    bucket: bucket.clone(),
                    key: key.to_string(),
                    range: Some(*range),
                    ..GetRequest::default()
                };
                let mut body = store.get(request).await?.body;
                while let Some(chunk) = body.next().await {
                    bytes.fetch_add(chunk?.len() as u64, Ordering::Relaxed);
                }
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.map_err(|error| Error::new(Kind::Internal, "a worker failed").with_source(error))??;
    }
    Ok(Done { bytes: bytes.load(Ordering::Relaxed), objects: pieces.len() as u64 })
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

// ---- Filling ----

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

async fn make_bucket(measured: &Measured) -> Result<()> {
    match measured.store.create_bucket(&measured.bucket, None).await {
        Err(error) if error.kind() != Kind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

async fn fill(measured: &Measured, args: &UploadArgs, objects: &[(String, u64)]) -> Result<Done> {
    let small = objects.iter().filter(|(_, size)| *size <= args.part);
    stream::iter(small)
        .map(|(key, size)| put(measured, key, *size))
        .buffer_unordered(args.in_flight)
        .try_collect::<()>()
        .await?;
    for (key, size) in objects.iter().filter(|(_, size)| *size > args.part) {
        put_in_parts(measured, args, key, *size).await?;
    }
    Ok(Done { bytes: objects.iter().map(|(_, size)| size).sum(), objects: objects.len() as u64 })
}

async fn put(measured: &Measured, key: &str, size: u64) -> Result<()> {
    let request = PutRequest {
        bucket: measured.bucket.clone(),
        key: key.to_owned(),
        body: content(key, 0, size),
        ..PutRequest::default()
    };
    measured.store.put(request).await.map(drop)
}

async fn put_in_parts(measured: &Measured, args: &UploadArgs, key: &str, size: u64) -> Result<()> {
    let upload = measured.store.create_upload(&measured.bucket, key, Attributes::default()).await?;
    let uploaded: Vec<Part> = stream::iter(parts(size, args.part))
        .map(|(number, _, len)| {
            let (store, upload) = (&measured.store, &upload);
            async move {
                let number_in_s3 = u16::try_from(number + 1)
                    .map_err(|_| Error::new(Kind::TooLarge, "more parts than an upload may have"))?;
                store.upload_part(upload, number_in_s3, content(key, number, len), None).await
            }
        })
        .buffered(args.in_flight)
        .try_collect()
        .await?;
    measured.store.complete_upload(&upload, uploaded, Condition::Any).await.map(drop)
}

/// The same bytes as files.
fn fill_local(dir: &std::path::Path, objects: &[(String, u64)]) -> std::io::Result<()> {
    use std::io::Write;
    for (key, size) in objects {
        let path = dir.join(key);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut file = std::fs::File::create(path)?;
        // Cut as an upload of the default part size is.
        for (number, _, len) in parts(*size, 16 << 20) {
            file.write_all(&content(key, number, len))?;
        }
    }
    Ok(())
}
