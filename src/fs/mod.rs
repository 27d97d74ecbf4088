//! POSIX operations on buckets, in our own types: nothing here knows the kernel's protocol.
//!
//! Owns: open files and handles, the order of operations on names, and what each operation means.
//! Does not own: names and keys (`tree`), fetching and caching (`read`), staging and uploading (`write`).
//!
//! Every operation plans under a lock, acts without it, and commits under it. Locks, outermost first:
//! 1. turns at names (async), in ascending order of their directories' inodes and the names;
//! 2. claims on keys of volumes (async), of a lower volume first: see `namespace`;
//! 3. files' commit locks (async), in ascending order of their inodes;
//! 4. a volume's queue of deletes, the table of open files, the list of those that are copied from others, a file's
//!    state, the tree: plain mutexes, in that order, never held across an await;
//! 5. the leaves: caches and counters.

mod absences;
mod attr;
mod backing;
mod claims;
mod copy;
mod deletes;
mod describe;
mod dirs;
mod file;
mod files;
mod handles;
mod holes;
mod hydrate;
mod intents;
mod io;
mod kept;
mod leave;
mod lookup;
mod made;
mod markers;
mod moves;
mod names;
mod namespace;
mod news;
mod owed;
mod pages;
mod removals;
mod rest;
mod siblings;
mod turns;
mod under_way;
mod view;
mod volume;
mod walks;
mod weight;
mod whereabouts;
mod xattr;

pub use crate::base::{Durability, Exclusive, OnConflict, Passthrough, PosixMode, StagingPlace};
pub use crate::tree::Invalidation;
pub use crate::tree::listing::Order;
pub use crate::tree::posix::FileType;
pub use attr::{Attr, Maker, SetAttr};
pub use backing::Version;
pub use dirs::DirEntry;
pub use file::Pending;
pub use holes::{Hole, Space};
pub use io::{OpenFlags, Opened};
pub use news::News;
pub use owed::TakenUp;
pub use under_way::Renaming;
pub use view::View;
pub use volume::{Buckets, Probe, Root, Volume};
pub use whereabouts::Whereabouts;
pub use xattr::Replaces;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, SystemTime};

use lru::LruCache;

use crate::base::{Budget, Clock, ETag, Gate, Pool};
use crate::error::{Error, Kind, Result};
use crate::read::{DiskCache, DiskLimits, Reader};
use crate::stats::Stats;
use crate::tree::keys::Name;
use crate::tree::{DirPlace, Ino, Ticket, Tree, VolumeId};
use crate::write::journal::Journal;
use crate::write::{Lanes, Room, SINGLE_PUT_MAX};

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct Options {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits of files that say nothing else.
    pub file_mode: u16,
    pub dir_mode: u16,
    /// How far attributes are kept in S3.
    pub posix: PosixMode,
    /// A file for what S3 said of attributes, which outlives the mount; other mounts may have it too.
    pub kept: Option<PathBuf>,
    /// How long a change of a closed file's attributes waits for others to go with it.
    pub describe_delay: Duration,
    /// How long `stat` and `readdir` may answer from memory, and what a listing said is enough to open a file for reading.
    pub ttl: Duration,
    /// How long a name that was absent is believed to be.
    pub negative_ttl: Duration,
    /// How long one metadata operation or read may take before it fails `TimedOut`.
    pub timeout: Duration,
    /// How long the delete of one of many files that are removed in a row waits for others to go with. They come some
    /// 0.1 ms apart, so 20 ms are 200 of them.
    pub delete_wait: Duration,
    /// Memory for blocks, read-ahead, uploads, names and pages of listings that wait, in bytes.
    pub memory_limit: u64,
    /// Where written bytes are staged, and the directory for them on disk.
    pub staging: StagingPlace,
    pub staging_dir: PathBuf,
    /// Of that directory's file system, what is left to others, in bytes; otherwise a twentieth.
    pub staging_reserve: Option<u64>,
    /// Where changes are written down before they are answered, and bytes are staged then; none for a mount that changes
    /// nothing.
    pub journal: Option<Arc<Journal>>,
    /// `Journal` means something with a journal alone.
    pub durability: Durability,
    /// With it, how long a closed file waits before it is saved, unless somebody asks for it: what is renamed, removed or
    /// written again by then costs no upload, and who closes many files has the machine to himself meanwhile.
    pub upload_delay: Duration,
    pub exclusive: Exclusive,
    pub on_conflict: OnConflict,
    /// Names this host in conflict copies.
    pub host: String,
    /// Where blocks that were read are kept on disk, if anywhere.
    pub cache: Option<CacheDir>,
    /// Which files that are whole there the kernel may read by itself.
    pub passthrough: Passthrough,
}

/// A directory for blocks that outlive the mount.
#[derive(Clone, Debug)]
pub struct CacheDir {
    pub dir: PathBuf,
    /// Bytes on disk, over all mounts that use the directory.
    pub limit_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            file_mode: 0o644,
            dir_mode: 0o755,
            posix: PosixMode::default(),
            kept: None,
            describe_delay: Duration::from_millis(100),
            ttl: Duration::from_secs(1),
            negative_ttl: Duration::from_secs(1),
            timeout: Duration::from_secs(60),
            delete_wait: Duration::from_millis(20),
            memory_limit: 256 << 20,
            staging: StagingPlace::default(),
            staging_dir: std::env::temp_dir(),
            staging_reserve: None,
            journal: None,
            durability: Durability::default(),
            upload_delay: Duration::from_secs(1),
            exclusive: Exclusive::default(),
            on_conflict: OnConflict::default(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            cache: None,
            passthrough: Passthrough::Never,
        }
    }
}

/// Inodes whose cached kernel pages are accounted for; one more costs a re-read, nothing else.
const PAGES_KNOWN_MAX: usize = 65_536;

/// Answers about attributes kept on disk, at 128 bytes each: 64 MB at most.
const KEPT_MAX: u64 = 500_000;

/// GETs under way at once, over all files: what two cores can empty at 90 MB/s a connection, and small files' worth of
/// round trips.
const REQUESTS_MAX: usize = 64;
/// Of the memory limit an eighth, but at least this much and a sixteenth, is for what is bounded by itself: the program (21 MiB
/// of it are in RAM), the buffers of connections (256 KiB for each of the 64 requests under way) and of the kernel's requests
/// (1 MiB for each thread), names known to be absent (4 MB); and for holes that the allocator cannot help.
const OVERHEAD_MIN_BYTES: u64 = 24 << 20;
const BYTES_MIN: u64 = 16 << 20;
/// Closed files that are saved in the background at once. What is written again while it waits for its turn goes once.
const SAVING_MAX: usize = 32;
/// The smallest part that leaves ahead of a commit.
const PART_MIN_BYTES: u64 = 8 << 20;
/// Shards of large directories listed at once over the whole mount, beside those being read.
const SHARDS_MAX: usize = 32;
/// Beyond `--timeout`, within which a request ends by itself: its own end tells more than that time is up.
const TELLING: Duration = Duration::from_secs(1);

/// A mounted file system.
pub struct Fs {
    options: Options,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    volumes: RwLock<Vec<Arc<Volume>>>,
    /// Where a mount of all buckets finds them.
    buckets: Option<Buckets>,
    tree: Mutex<Tree>,
    reader: Reader,
    files: Mutex<files::Files>,
    handles: handles::Handles,
    turns: turns::Turns,
    /// The same at directories' markers, by bucket and key.
    markers: turns::Turns<(String, String)>,
    /// Which version of each file the kernel's cached pages are of.
    pages: Mutex<LruCache<Ino, ETag>>,
    siblings: Mutex<siblings::Siblings>,
    copies: copy::Copies,
    news: news::Newsroom,
    /// What uploads share with each other and with who reads: the memory, and the requests under way.
    lanes: Lanes,
    /// Where written bytes are staged.
    disk: Room,
    /// Parts that are to leave ahead of a commit, and whether one did.
    leaving: AtomicUsize,
    leaving_slots: tokio::sync::Semaphore,
    left: tokio::sync::Notify,
    /// Told when the disk is short: what waits to be saved waits no more.
    hurry: Arc<tokio::sync::Notify>,
    /// Closed files that may be saved in the background at once.
    saving: tokio::sync::Semaphore,
    /// The milliseconds that the latest conflict copy is named after.
    last_conflict: AtomicU64,
    mounted_at: SystemTime,
    /// Names that S3 is being asked for.
    lookups: lookup::Lookups,
    absences: absences::Absences,
    asked_ahead: walks::Asked,
    /// Counts answers to what was asked for ahead of walks, for those who wait for one.
    ahead_answers: tokio::sync::watch::Sender<u64>,
    /// Room for pages of listings that are asked for before they are wanted.
    room: pages::Room,
    weight: weight::Weight,
    asked: rest::Asked,
    /// What S3 said of attributes, on disk.
    kept: kept::Kept,
    renames: under_way::Renames,
    disks: view::Disks,
}

impl Fs {
    /// Makes the file system; asks S3 nothing.
    pub fn new(root: Root, options: Options, clock: Arc<dyn Clock>, stats: Arc<Stats>) -> Result<Arc<Self>> {
        let now = clock.wall();
        let mut volumes = Vec::new();
        let mut buckets = None;
        let mut tree = match root {
            Root::Volume(volume) => {
                let place = (VolumeId(0), volume.dir_key());
                volumes.push(Arc::new(volume));
                Tree::new(Some(place), options.ttl, options.negative_ttl, now)
            }
            Root::Named(named) => {
                let mut tree = Tree::new(None, options.ttl, options.negative_ttl, now);
                for (name, volume) in named {
                    let name = Name::parse(name.as_ref())?;
                    let id = VolumeId(u32::try_from(volumes.len()).map_err(|_| too_many_volumes())?);
                    tree.add_volume(&name, id, volume.dir_key(), now);
                    volumes.push(Arc::new(volume));
                }
                tree
            }
            Root::Buckets(source) => {
                buckets = Some(source);
                Tree::new(None, options.ttl, options.negative_ttl, now)
            }
        };
        for (id, volume) in (0..).zip(&volumes) {
            tree.outlook().set_order(VolumeId(id), volume.order, &volume.prefix);
        }
        tree.looked_up(crate::tree::ROOT);
        // What is on its way to the disk is of the same memory.
        let memory = bytes_in_memory(options.memory_limit);
        let (disk, behind_bytes) = match &options.cache {
            Some(cache) => {
                let limits = DiskLimits { disk_bytes: cache.limit_bytes, behind_bytes: memory / 8 };
                let disk = DiskCache::open(&cache.dir, limits, Arc::clone(&clock), Arc::clone(&stats))?;
                (Some(disk), limits.behind_bytes)
            }
            None => (None, 0),
        };
        let budget_bytes = memory - behind_bytes;
        let (budget, disk_room) = match (&options.staging, &options.journal) {
            (StagingPlace::Memory, None) => {
                let staged_bytes = staged_in_memory(budget_bytes);
                let budget = Budget::beside(budget_bytes, staged_bytes);
                (budget.clone(), Room::in_memory(budget, staged_bytes))
            }
            (StagingPlace::Memory, Some(_)) => {
                let told = "a journal is of no use to bytes that are staged in memory";
                return Err(Error::new(Kind::InvalidArgument, told));
            }
            (StagingPlace::Disk, journal) => {
                let dir =
                    journal.as_ref().map_or(options.staging_dir.clone(), |journal| journal.staging_dir());
                (Budget::new(budget_bytes), Room::on_disk(&dir, options.staging_reserve))
            }
        };
        let heard = Arc::clone(&stats);
        let gate = Gate::new(REQUESTS_MAX, move || heard.throttled.value());
        let lanes = Lanes::new(budget.clone(), gate.clone());
        let reader = Reader::new(gate, budget.clone(), disk, Arc::clone(&stats));
        let spare = reader.clone();
        let spare: pages::Spare = Arc::new(move |bytes| Some(spare.spare(bytes)?.held_for(Pool::Listings)));
        let room = pages::Room::new(SHARDS_MAX, budget.limit_bytes(), spare, options.ttl);
        let kept = match (&options.kept, options.posix) {
            (Some(path), PosixMode::Auto | PosixMode::Full) => {
                kept::Kept::open(path, KEPT_MAX, Arc::clone(&clock))
            }
            _ => kept::Kept::default(),
        };
        let pages = std::num::NonZeroUsize::new(PAGES_KNOWN_MAX).unwrap_or(std::num::NonZeroUsize::MIN);
        let fs = Arc::new(Self {
            clock,
            stats,
            volumes: RwLock::new(volumes),
            buckets,
            tree: Mutex::new(tree),
            reader,
            files: Mutex::default(),
            handles: handles::Handles::default(),
            turns: turns::Turns::default(),
            markers: turns::Turns::default(),
            pages: Mutex::new(LruCache::new(pages)),
            siblings: Mutex::new(siblings::Siblings::new(options.ttl)),
            copies: copy::Copies::default(),
            news: news::Newsroom::new(),
            lanes,
            disk: disk_room,
            saving: tokio::sync::Semaphore::new(SAVING_MAX),
            leaving: AtomicUsize::new(0),
            last_conflict: AtomicU64::new(0),
            // A quarter of the memory is theirs at most.
            leaving_slots: tokio::sync::Semaphore::new(
                usize::try_from(budget_bytes / 4 / PART_MIN_BYTES).unwrap_or(1).clamp(1, leave::LEAVING_MAX),
            ),
            left: tokio::sync::Notify::new(),
            hurry: Arc::default(),
            room,
            weight: weight::Weight::default(),
            asked: rest::Asked::default(),
            mounted_at: now,
            lookups: lookup::Lookups::default(),
            absences: absences::Absences::default(),
            asked_ahead: walks::Asked::default(),
            ahead_answers: tokio::sync::watch::Sender::new(0),
            kept,
            renames: under_way::Renames::default(),
            disks: view::Disks::default(),
            options,
        });
        tokio::spawn(rest::watch(Arc::downgrade(&fs)));
        Ok(fs)
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Passes on what the tree has found out.
    fn pass_news(&self) {
        let news = self.tree().take_news();
        for news in news {
            self.news.pass(news);
        }
    }

    /// Finds out how the servers list, where that is not known. Until then directories are listed one by one.
    pub fn find_orders(self: &Arc<Self>) {
        let volumes = self.volumes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (id, volume) in (0..).zip(volumes.iter()) {
            self.find_order(VolumeId(id), volume);
        }
    }

    /// How far the order is known in which the first bucket's server lists.
    pub fn order_of_root(&self) -> Order {
        self.tree().outlook().order_of(VolumeId(0))
    }

    /// The same of one bucket, once.
    fn find_order(self: &Arc<Self>, id: VolumeId, volume: &Volume) {
        let Some(probe) = volume.take_order_probe() else { return };
        let (found, fs, prefix) = (probe(), Arc::downgrade(self), volume.prefix.clone());
        tokio::spawn(async move {
            let (Some(order), Some(fs)) = (found.await, fs.upgrade()) else { return };
            let mut tree = fs.tree();
            // What a listing has shown meanwhile is true of this server, whatever it answered to the probe.
            if tree.outlook().order_of(id) == Order::Unknown {
                tree.outlook().set_order(id, order, &prefix);
            }
        });
    }

    /// Drops every cached block and every remembered freshness that can be asked for again.
    pub fn drop_caches(&self) {
        self.reader.drop_all();
        lock(&self.pages).clear();
    }

    /// News for the kernel, for the one who passes it on; `None` where somebody does already.
    pub fn news(&self) -> Option<tokio::sync::mpsc::Receiver<News>> {
        self.news.listen()
    }

    /// Inodes in the table.
    pub fn inodes(&self) -> usize {
        lock(&self.tree).len()
    }

    /// Draws a ticket before asking S3 of a name; it goes back however the question ends.
    fn asking(&self) -> Asking<'_> {
        let ticket = self.tree().begin();
        Asking { fs: self, ticket: Some(ticket) }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.asked.note();
        lock(&self.tree)
    }

    fn volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        let volumes = self.volumes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        volumes
            .get(id.0 as usize)
            .cloned()
            .ok_or_else(|| Error::new(Kind::Internal, "a volume that the mount does not have"))
    }

    /// Volume and directory of an inode that has to be a directory inside a bucket.
    fn dir_in_volume(&self, ino: Ino) -> Result<(VolumeId, Arc<Volume>, crate::tree::keys::DirKey)> {
        let place = self.tree().dir_place(ino)?;
        match place {
            DirPlace::In { volume, dir } => Ok((volume, self.volume(volume)?, dir)),
            DirPlace::Buckets => {
                Err(Error::new(Kind::NotPermitted, "only buckets live at the top of this mount"))
            }
        }
    }

    /// Bounds an operation that waits for S3.
    async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(self.options.timeout + TELLING, work).await.unwrap_or_else(|_| {
            let seconds = self.options.timeout.as_secs_f32();
            Err(Error::new(Kind::TimedOut, format!("no answer within {seconds} s")))
        })
    }
}

/// A question to S3 on its way. It may be given up at any await, so its ticket goes back when it is dropped;
/// that takes the tree's lock, so a guard of the tree has to go first.
struct Asking<'a> {
    fs: &'a Fs,
    ticket: Option<Ticket>,
}

impl Asking<'_> {
    /// From now on whoever has the ticket gives it back.
    fn into_ticket(mut self) -> Ticket {
        self.ticket.take().expect("a ticket is there until the question is dropped")
    }

    fn ticket(&self) -> &Ticket {
        self.ticket.as_ref().expect("a ticket is there until the question is dropped")
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.fs.tree().end(ticket);
            self.fs.weigh_names();
        }
    }
}

/// A panic while a lock was held answered its own request with EIO; the data under these locks is changed
/// by steps that each leave it whole, so the mount goes on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The part of a memory limit that bytes of files may take.
fn bytes_in_memory(limit: u64) -> u64 {
    limit.saturating_sub((limit / 8).max(OVERHEAD_MIN_BYTES + limit / 16)).max(BYTES_MIN)
}

/// How much of them staged bytes may take: half, and what a file takes before its first part leaves. The rest is for parts
/// on their way.
fn staged_in_memory(budget_bytes: u64) -> u64 {
    (budget_bytes / 2).max(SINGLE_PUT_MAX + PART_MIN_BYTES).min(budget_bytes.saturating_sub(PART_MIN_BYTES))
}

fn too_many_volumes() -> Error {
    Error::new(Kind::InvalidArgument, "too many buckets in one mount")
}
