//! A program on an in-process mount: paths instead of inodes, and every lookup given back.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pailfs::base::{Clock, ETag, ManualClock, SystemClock};
use pailfs::error::{Error, Kind, Result};
use pailfs::fs::{
    Attr, Buckets, Durability, Fs, OpenFlags, Options, Order, PosixMode, Root, SetAttr, StagingPlace, Volume,
};
use pailfs::s3::{DeleteRequest, GetRequest, ListRequest, MemStore, NewObjects, PutRequest, Store};
use pailfs::stats::Stats;
use pailfs::tree::{Ino, ROOT};
use pailfs::write::journal::{Journal, Owed};
use pailfs::write::{Conditions, CopySizes, PartRule, Sizes};

pub const BUCKET: &str = "bucket";
pub const TTL: Duration = Duration::from_secs(1);

pub struct Client {
    pub fs: Arc<Fs>,
    pub store: Arc<MemStore>,
    pub clock: Arc<ManualClock>,
    pub stats: Arc<Stats>,
    _staging: tempfile::TempDir,
}

pub const WRITE: OpenFlags =
    OpenFlags { write: true, truncate: false, append: false, exclusive: false, direct: false };
pub const REWRITE: OpenFlags = OpenFlags { truncate: true, ..WRITE };
pub const READ: OpenFlags =
    OpenFlags { write: false, truncate: false, append: false, exclusive: false, direct: false };

/// What was removed in a row goes when somebody waits for it: the real time is nothing to count by.
fn usual() -> Options {
    Options { delete_wait: Duration::from_secs(20), upload_delay: Duration::ZERO, ..Options::default() }
}

impl Client {
    pub fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let stats = Arc::new(Stats::default());
        let store = Arc::new(MemStore::new(Arc::new(SystemClock), Arc::clone(&stats)).with_bucket(BUCKET));
        Self::on(store, clock, stats)
    }

    /// On a server whose clock is the client's own.
    pub fn of_one_clock() -> Self {
        let (clock, stats) = (Arc::new(ManualClock::new()), Arc::new(Stats::default()));
        let dated = Arc::clone(&clock) as Arc<dyn Clock>;
        let store = Arc::new(MemStore::new(dated, Arc::clone(&stats)).with_bucket(BUCKET));
        Self::on(store, clock, stats)
    }

    /// The same, on a server whose conditions were found not to work.
    pub fn with_conditions_unknown(self) -> Self {
        self.with_conditions(Conditions::NONE)
    }

    /// The same, on a server that looks at these conditions.
    pub fn with_conditions(self, conditions: Conditions) -> Self {
        let probe = move || -> futures::future::BoxFuture<'static, Result<Conditions>> {
            Box::pin(async move { Ok(conditions) })
        };
        Self::mounted(self.store, self.clock, self.stats, Some(Box::new(probe)))
    }

    /// Another mount of the same bucket, as on another host.
    pub fn another(&self) -> Self {
        Self::on(Arc::clone(&self.store), Arc::clone(&self.clock), Arc::default())
    }

    fn on(store: Arc<MemStore>, clock: Arc<ManualClock>, stats: Arc<Stats>) -> Self {
        Self::mounted(store, clock, stats, None)
    }

    fn mounted(
        store: Arc<MemStore>,
        clock: Arc<ManualClock>,
        stats: Arc<Stats>,
        probe: Option<pailfs::fs::Probe>,
    ) -> Self {
        let mut volume = Volume::new(BUCKET, "", Arc::clone(&store) as Arc<dyn Store>);
        if let Some(probe) = probe {
            volume = volume.probe(probe);
        }
        Self::of_volume(volume, store, clock, stats)
    }

    /// The same, where a delete waits no longer than that for others.
    pub fn with_delete_wait(self, wait: Duration) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let options = Options { delete_wait: wait, ..usual() };
        Self::of_root(Root::Volume(volume), options, self.store, self.clock, self.stats)
    }

    /// The same, with attributes kept in S3 so far.
    pub fn with_posix(self, posix: PosixMode) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let options = Options { posix, ..usual() };
        Self::of_root(Root::Volume(volume), options, self.store, self.clock, self.stats)
    }

    fn of_volume(volume: Volume, store: Arc<MemStore>, clock: Arc<ManualClock>, stats: Arc<Stats>) -> Self {
        Self::of_root(Root::Volume(volume), usual(), store, clock, stats)
    }

    fn of_root(
        root: Root,
        options: Options,
        store: Arc<MemStore>,
        clock: Arc<ManualClock>,
        stats: Arc<Stats>,
    ) -> Self {
        let staging = tempfile::tempdir().expect("a directory can be made");
        Self::of_root_in(staging, root, options, store, clock, stats)
    }

    fn of_root_in(
        staging: tempfile::TempDir,
        root: Root,
        options: Options,
        store: Arc<MemStore>,
        clock: Arc<ManualClock>,
        stats: Arc<Stats>,
    ) -> Self {
        let options = Options {
            staging_dir: staging.path().to_owned(),
            kept: Some(staging.path().join("kept/attributes")),
            ttl: TTL,
            negative_ttl: TTL,
            host: "host".to_owned(),
            memory_limit: 64 << 20,
            ..options
        };
        let fs = Fs::new(root, options, clock.clone(), Arc::clone(&stats)).expect("options are fine");
        Self { fs, store, clock, stats, _staging: staging }
    }

    /// A mount of a bucket that is there already.
    pub fn of_store(store: Arc<MemStore>) -> Self {
        Self::on(store, Arc::new(ManualClock::new()), Arc::default())
    }

    /// A mount of a bucket of some other server.
    pub fn of_server(server: Arc<dyn Store>) -> Self {
        let (clock, stats) = (Arc::new(ManualClock::new()), Arc::new(Stats::default()));
        let unused = Arc::new(MemStore::new(clock.clone(), Arc::clone(&stats)));
        let options = Options { timeout: Duration::from_secs(8), ..usual() };
        Self::of_root(Root::Volume(Volume::new(BUCKET, "", server)), options, unused, clock, stats)
    }

    /// The same, with what its objects get beside their bytes.
    pub fn with_new_objects(self, new_objects: NewObjects) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        Self::of_volume(volume.new_objects(new_objects), self.store, self.clock, self.stats)
    }

    /// The same with two directories, `one` and `two`, that are these.
    pub fn with_volumes(self, one: Volume, two: Volume) -> Self {
        let root = Root::Named(vec![("one".to_owned(), one), ("two".to_owned(), two)]);
        Self::of_root(root, usual(), self.store, self.clock, self.stats)
    }

    /// The same with two directories, `one` and `two`, that are prefixes of the bucket and belong to these sessions.
    pub fn with_sessions(self, one: &str, two: &str) -> Self {
        let volume = |prefix: &str, session: &str| {
            Volume::new(BUCKET, prefix, Arc::clone(&self.store) as Arc<dyn Store>).reach(session)
        };
        let root =
            Root::Named(vec![("one".to_owned(), volume("1/", one)), ("two".to_owned(), volume("2/", two))]);
        Self::of_root(root, usual(), self.store, self.clock, self.stats)
    }

    /// The same, on a server whose listing order has to show.
    pub fn with_order_unknown(self) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        Self::of_volume(volume.order(Order::Unknown), self.store, self.clock, self.stats)
    }

    /// The same, on a server whose order is found out when the mount has begun.
    pub fn with_order_found(self, order: Order) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let probe = Box::new(move || -> futures::future::BoxFuture<'static, Option<Order>> {
            Box::pin(async move { Some(order) })
        });
        let volume = volume.order(Order::Unknown).order_probe(probe);
        Self::of_volume(volume, self.store, self.clock, self.stats)
    }

    /// The same, with a local disk that has no room to spare.
    pub fn with_a_short_disk(self) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let options = Options { staging_reserve: Some(u64::MAX), ..usual() };
        Self::of_root(Root::Volume(volume), options, self.store, self.clock, self.stats)
    }

    /// The same on a machine without a disk: what is written waits in memory, of which there is so much.
    pub fn with_staging_in_memory(self, memory_limit: u64) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let nowhere = "/nowhere/at/all".into();
        let options = Options {
            ttl: TTL,
            negative_ttl: TTL,
            staging: StagingPlace::Memory,
            staging_dir: nowhere,
            memory_limit,
            ..usual()
        };
        let root = Root::Volume(volume);
        let fs =
            Fs::new(root, options, self.clock.clone(), Arc::clone(&self.stats)).expect("options are fine");
        Self { fs, ..self }
    }

    /// The same, on a server that is known to want equal parts.
    pub fn with_equal_parts(self, short: bool) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let volume = volume.part_rule(PartRule::new(true, None));
        let options = Options { staging_reserve: short.then_some(u64::MAX), ..usual() };
        Self::of_root(Root::Volume(volume), options, self.store, self.clock, self.stats)
    }

    /// The same, with parts of other sizes, and a local disk that has room to spare or not.
    pub fn with_sizes(self, sizes: Sizes, short: bool) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let volume = volume.part_rule(PartRule::default().with_sizes(sizes));
        let options = Options { staging_reserve: short.then_some(u64::MAX), ..usual() };
        Self::of_root(Root::Volume(volume), options, self.store, self.clock, self.stats)
    }

    /// Bytes of the local disk that written bytes take.
    pub fn staged_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let staging = rustix::fs::stat(self._staging.path()).expect("the directory is there");
        // Staging files have no names: they are found among the process's descriptors.
        let of_process = std::fs::read_dir("/proc/self/fd").expect("the process has descriptors").flatten();
        let files = of_process.filter_map(|fd| {
            let link = std::fs::read_link(fd.path()).ok()?;
            // What is kept of attributes is there as well.
            let kept = self._staging.path().join("kept");
            let staged = link.starts_with(self._staging.path()) && !link.starts_with(kept);
            staged.then(|| std::fs::metadata(fd.path()).ok()).flatten()
        });
        files.filter(|file| file.dev() == staging.st_dev).map(|file| file.blocks() * 512).sum()
    }

    /// All buckets of the same server as directories; which were asked for their order is pushed to `asked`.
    pub fn with_all_buckets(self, asked: &Arc<Mutex<Vec<String>>>) -> Self {
        let asked = Arc::clone(asked);
        let open = move |bucket: &str, store: Arc<dyn Store>| {
            let (name, asked) = (bucket.to_owned(), Arc::clone(&asked));
            let probe = Box::new(move || -> futures::future::BoxFuture<'static, Option<Order>> {
                asked.lock().expect("nobody panics with it").push(name.clone());
                Box::pin(async { Some(Order::Known) })
            });
            Volume::new(bucket, "", store).order(Order::Unknown).order_probe(probe)
        };
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        let buckets = Buckets { store, session: None, read_only: false, open: Box::new(open) };
        Self::of_root(Root::Buckets(buckets), usual(), self.store, self.clock, self.stats)
    }

    /// A mount of all buckets of some other server.
    pub fn of_all_buckets(server: Arc<dyn Store>) -> Self {
        let (clock, stats) = (Arc::new(ManualClock::new()), Arc::new(Stats::default()));
        let unused = Arc::new(MemStore::new(clock.clone(), Arc::clone(&stats)));
        let open = |bucket: &str, store: Arc<dyn Store>| Volume::new(bucket, "", store);
        let buckets = Buckets { store: server, session: None, read_only: false, open: Box::new(open) };
        Self::of_root(Root::Buckets(buckets), usual(), unused, clock, stats)
    }

    /// The same, with what is to become of a save that another client was faster than.
    pub fn on_conflict(self, on_conflict: pailfs::fs::OnConflict) -> Self {
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let options = Options { on_conflict, ..usual() };
        Self::of_root(Root::Volume(volume), options, self.store, self.clock, self.stats)
    }

    /// Another mount of the same bucket, which writes down there what it owes. What was owed there comes with it.
    pub fn again_with_journal(&self, disk: &Path, durability: Durability) -> (Self, Vec<Owed>) {
        self.journaling(open_journal(disk, &[]), durability, self.volume())
    }

    /// The same, with what its objects get beside their bytes.
    pub fn again_with(&self, disk: &Path, new_objects: NewObjects) -> (Self, Vec<Owed>) {
        self.journaling(open_journal(disk, &[]), Durability::Close, self.volume().new_objects(new_objects))
    }

    /// The same, and what is owed on other disks as well comes with it.
    pub fn again_with_journals(&self, disk: &Path, others: &[PathBuf]) -> (Self, Vec<Owed>) {
        self.journaling(open_journal(disk, others), Durability::Close, self.volume())
    }

    /// The same, on a server that copies objects of these sizes.
    pub fn again_copying(&self, disk: &Path, sizes: CopySizes) -> (Self, Vec<Owed>) {
        self.journaling(open_journal(disk, &[]), Durability::Close, self.volume().copy_sizes(sizes))
    }

    fn journaling(
        &self,
        (journal, owed): (Journal, Vec<Owed>),
        durability: Durability,
        volume: Volume,
    ) -> (Self, Vec<Owed>) {
        let options = Options { journal: Some(Arc::new(journal)), durability, ..usual() };
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        (Self::of_root(Root::Volume(volume), options, store, clock, Arc::default()), owed)
    }

    fn volume(&self) -> Volume {
        Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>)
    }

    /// The same in place of this one, with a local disk that has no room to spare.
    pub fn shortly(self, disk: &Path) -> (Self, Vec<Owed>) {
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        drop(self);
        let (journal, owed) = open_journal(disk, &[]);
        let options =
            Options { journal: Some(Arc::new(journal)), staging_reserve: Some(u64::MAX), ..usual() };
        let volume = Volume::new(BUCKET, "", Arc::clone(&store) as Arc<dyn Store>);
        (Self::of_root(Root::Volume(volume), options, store, clock, Arc::default()), owed)
    }

    /// Another mount of the same bucket that writes down there what it owes, with parts of other sizes and a local disk that
    /// has no room to spare.
    pub fn again_with_sizes(&self, disk: &Path, sizes: Sizes) -> (Self, Vec<Owed>) {
        let (journal, owed) = open_journal(disk, &[]);
        let options =
            Options { journal: Some(Arc::new(journal)), staging_reserve: Some(u64::MAX), ..usual() };
        let volume = Volume::new(BUCKET, "", Arc::clone(&self.store) as Arc<dyn Store>);
        let volume = volume.part_rule(PartRule::default().with_sizes(sizes));
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        (Self::of_root(Root::Volume(volume), options, store, clock, Arc::default()), owed)
    }

    /// The same with all of write-back, whose closed files wait so long; the disk has room, or not.
    pub fn saving_after(self, disk: &Path, upload_delay: Duration, short: bool) -> Self {
        let (store, clock, stats) = (Arc::clone(&self.store), Arc::clone(&self.clock), Arc::default());
        drop(self);
        let options = Options {
            journal: Some(Arc::new(open_journal(disk, &[]).0)),
            durability: Durability::Journal,
            upload_delay,
            staging_reserve: short.then_some(u64::MAX),
            ..usual()
        };
        let volume = Volume::new(BUCKET, "", Arc::clone(&store) as Arc<dyn Store>);
        Self::of_root(Root::Volume(volume), options, store, clock, stats)
    }

    /// A mount of that bucket which writes down there what it owes, and sends nothing but parts before somebody asks for
    /// it. What was owed there comes with it.
    pub fn putting_off(store: &Arc<MemStore>, disk: &Path, durability: Durability) -> (Self, Vec<Owed>) {
        const NEVER: Duration = Duration::from_secs(24 * 3600);
        let (journal, owed) = open_journal(disk, &[]);
        let options = Options {
            journal: Some(Arc::new(journal)),
            durability,
            upload_delay: NEVER,
            describe_delay: NEVER,
            delete_wait: NEVER,
            ..usual()
        };
        let volume = Volume::new(BUCKET, "", Arc::clone(store) as Arc<dyn Store>);
        let (store, clock) = (Arc::clone(store), Arc::new(ManualClock::new()));
        let beside =
            tempfile::tempdir_in(disk.parent().expect("it is in a directory")).expect("so can another");
        (Self::of_root_in(beside, Root::Volume(volume), options, store, clock, Arc::default()), owed)
    }

    /// Lets everything remembered grow old.
    pub fn pass_ttl(&self) {
        self.clock.advance(TTL * 2);
    }

    /// The inode of a path; give it back with [`Fs::forget`].
    pub async fn walk(&self, path: &str) -> Result<Attr> {
        let mut at = self.fs.getattr(ROOT).await?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let next = if at.is_dir() {
                self.fs.lookup(at.ino, OsStr::new(name)).await
            } else {
                Err(Error::new(Kind::NotADirectory, "not a directory"))
            };
            if at.ino != ROOT {
                self.fs.forget(at.ino, 1);
            }
            at = next?;
        }
        Ok(at)
    }

    /// Runs `work` with the directory of a path and its last name.
    async fn in_dir<T, F: Future<Output = Result<T>>>(
        &self,
        path: &str,
        work: impl FnOnce(Ino, String) -> F,
    ) -> Result<T> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.walk(dir).await?;
        let answer = if parent.is_dir() {
            work(parent.ino, name.to_owned()).await
        } else {
            // The kernel never asks below a file.
            Err(Error::new(Kind::NotADirectory, "not a directory"))
        };
        if parent.ino != ROOT {
            self.fs.forget(parent.ino, 1);
        }
        answer
    }

    pub async fn stat(&self, path: &str) -> Result<Attr> {
        let attr = self.walk(path).await?;
        if attr.ino != ROOT {
            self.fs.forget(attr.ino, 1);
        }
        Ok(attr)
    }

    /// Opens, making the file if it is not there. The kernel keeps a lookup while it is open, and so does this.
    /// Looks the name up once more where its inode is of another version by now, as the kernel does.
    pub async fn open(&self, path: &str, flags: OpenFlags) -> Result<(Ino, u64)> {
        match self.open_once(path, flags).await {
            Err(error) if error.kind() == Kind::Stale => self.open_once(path, flags).await,
            answer => answer,
        }
    }

    async fn open_once(&self, path: &str, flags: OpenFlags) -> Result<(Ino, u64)> {
        match self.walk(path).await {
            Ok(attr) => match self.fs.open(attr.ino, flags).await {
                Ok(opened) => Ok((attr.ino, opened.fh)),
                Err(error) => {
                    self.fs.forget(attr.ino, 1);
                    Err(error)
                }
            },
            Err(error) if error.kind() == Kind::NotFound && flags.write => {
                self.in_dir(path, |dir, name| async move {
                    let (attr, opened) = self
                        .fs
                        .create(dir, OsStr::new(&name), flags, pailfs::fs::Maker::of_mode(0o644))
                        .await?;
                    Ok((attr.ino, opened.fh))
                })
                .await
            }
            Err(error) => Err(error),
        }
    }

    pub async fn close(&self, (ino, fh): (Ino, u64)) -> Result<()> {
        let result = self.fs.flush(fh).await;
        self.fs.release(fh);
        self.fs.forget(ino, 1);
        result
    }

    pub async fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let file = self.open(path, REWRITE).await?;
        let written = self.fs.write(file.1, 0, bytes).await;
        self.close(file).await.and(written)
    }

    pub async fn write_at(&self, path: &str, at: u64, bytes: &[u8]) -> Result<()> {
        let file = self.open(path, WRITE).await?;
        let written = self.fs.write(file.1, at, bytes).await;
        self.close(file).await.and(written)
    }

    /// Cuts or grows a file through a handle.
    pub async fn truncate_open(&self, ino: Ino, fh: u64, len: u64) -> Result<()> {
        let set = SetAttr { size: Some(len), ..SetAttr::default() };
        self.fs.setattr(ino, Some(fh), set).await.map(drop)
    }

    pub async fn read(&self, path: &str) -> Result<Vec<u8>> {
        let file = self.open(path, READ).await?;
        let bytes = self.read_all(file.1).await;
        self.close(file).await?;
        bytes
    }

    pub async fn read_all(&self, fh: u64) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let piece = self.fs.read(fh, all.len() as u64, 1 << 20).await?.concat();
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend(piece);
        }
    }

    pub async fn unlink(&self, path: &str) -> Result<()> {
        self.in_dir(path, |dir, name| async move { self.fs.unlink(dir, OsStr::new(&name)).await }).await
    }

    pub async fn mkdir(&self, path: &str) -> Result<()> {
        let attr = self
            .in_dir(path, |dir, name| async move {
                self.fs.mkdir(dir, OsStr::new(&name), pailfs::fs::Maker::of_mode(0o755)).await
            })
            .await?;
        self.fs.forget(attr.ino, 1);
        Ok(())
    }

    pub async fn rmdir(&self, path: &str) -> Result<()> {
        self.in_dir(path, |dir, name| async move { self.fs.rmdir(dir, OsStr::new(&name)).await }).await
    }

    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.in_dir(from, |dir, name| async move {
            self.in_dir(to, |new_dir, new_name| async move {
                self.fs.rename(dir, OsStr::new(&name), new_dir, OsStr::new(&new_name), false).await
            })
            .await
        })
        .await
    }

    /// Names of a directory, sorted, directories with a `/`.
    pub async fn list(&self, path: &str) -> Result<Vec<String>> {
        let mut names = self.list_unsorted(path).await?;
        names.sort();
        Ok(names)
    }

    /// Names of a directory as they come, directories with a `/`.
    pub async fn list_unsorted(&self, path: &str) -> Result<Vec<String>> {
        let dir = self.walk(path).await?;
        let fh = self.fs.opendir(dir.ino)?;
        let mut names = Vec::new();
        let mut lookups = Vec::new();
        let answer = self
            .fs
            .readdir(fh, 0, true, &mut |entry| {
                names.push(format!(
                    "{}{}",
                    entry.name.as_str(),
                    if entry.file_type == pailfs::fs::FileType::Directory { "/" } else { "" }
                ));
                lookups.extend(entry.attr.map(|attr| attr.ino));
                true
            })
            .await;
        self.fs.releasedir(fh);
        for ino in lookups {
            self.fs.forget(ino, 1);
        }
        if dir.ino != ROOT {
            self.fs.forget(dir.ino, 1);
        }
        answer.map(|()| names)
    }

    /// Attributes of what is in a directory, by name, as they come with the listing.
    pub async fn attrs(&self, path: &str) -> Result<Vec<Attr>> {
        let dir = self.walk(path).await?;
        let fh = self.fs.opendir(dir.ino)?;
        let mut attrs = Vec::new();
        let answer = self
            .fs
            .readdir(fh, 0, true, &mut |entry| {
                attrs.extend(entry.attr.map(|attr| (entry.name.as_str().to_owned(), attr)));
                true
            })
            .await;
        self.fs.releasedir(fh);
        for (_, attr) in &attrs {
            self.fs.forget(attr.ino, 1);
        }
        if dir.ino != ROOT {
            self.fs.forget(dir.ino, 1);
        }
        attrs.sort_by(|a, b| a.0.cmp(&b.0));
        answer.map(|()| attrs.into_iter().map(|(_, attr)| attr).collect())
    }

    /// What `find` shows: every path below a directory in the order of its listings, directories with a `/`.
    ///
    /// The directories are held until the end, as the kernel holds those that a walk is in.
    pub async fn find(&self, path: &str) -> Result<Vec<String>> {
        let mut held = Vec::new();
        let found = self.find_holding(path, &mut held).await;
        for dir in held.into_iter().filter(|dir| *dir != ROOT) {
            self.fs.forget(dir, 1);
        }
        found
    }

    async fn find_holding(&self, path: &str, held: &mut Vec<Ino>) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut todo = vec![path.to_owned()];
        while let Some(dir) = todo.pop() {
            held.push(self.walk(&dir).await?.ino);
            let names = self.list_unsorted(&dir).await?;
            let paths: Vec<String> = names.into_iter().map(|name| format!("{dir}{name}")).collect();
            todo.extend(paths.iter().rev().filter(|path| path.ends_with('/')).cloned());
            found.extend(paths);
            assert!(found.len() < 100_000 && dir.len() < 200, "the tree has no end: {dir}");
        }
        Ok(found)
    }

    /// Every path of the mount with its bytes; directories end with `/`.
    pub async fn tree(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        let mut dirs = vec![String::new()];
        while let Some(dir) = dirs.pop() {
            for name in self.list(&dir).await? {
                let path = format!("{dir}{name}");
                if name.ends_with('/') {
                    found.push((path.clone(), Vec::new()));
                    dirs.push(path);
                } else {
                    let bytes = self.read(&path).await?;
                    found.push((path, bytes));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    // ---- the bucket, as another client sees it

    pub async fn put_object(&self, key: &str, bytes: &[u8]) {
        let request = PutRequest {
            bucket: BUCKET.to_owned(),
            key: key.to_owned(),
            body: bytes.to_vec().into(),
            ..PutRequest::default()
        };
        self.store.put(request).await.expect("a put works");
    }

    pub async fn delete_object(&self, key: &str) {
        let request =
            DeleteRequest { bucket: BUCKET.to_owned(), key: key.to_owned(), ..DeleteRequest::default() };
        self.store.delete(request).await.expect("a delete works");
    }

    pub async fn object(&self, key: &str) -> Option<Vec<u8>> {
        let request = GetRequest { bucket: BUCKET.to_owned(), key: key.to_owned(), ..GetRequest::default() };
        match self.store.get(request).await {
            Ok(output) => Some(output.bytes().await.expect("a body arrives").to_vec()),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("{}", error.report()),
        }
    }

    /// The version of an object.
    pub async fn store_etag(&self, key: &str) -> ETag {
        self.store.head(BUCKET, key, None).await.expect("it is there").etag
    }

    pub async fn keys(&self) -> Vec<String> {
        self.objects().await.into_iter().map(|(key, _)| key).collect()
    }

    /// Every key with its object's size.
    pub async fn objects(&self) -> Vec<(String, u64)> {
        let mut request = ListRequest { bucket: BUCKET.to_owned(), ..ListRequest::default() };
        let mut objects = Vec::new();
        loop {
            let page = self.store.list(request.clone()).await.expect("a listing works");
            objects.extend(page.objects.into_iter().map(|object| (object.key, object.size)));
            match page.next {
                Some(next) => request.continuation = Some(next),
                None => return objects,
            }
        }
    }
}

/// The kind of a failure, or what was answered instead.
pub fn kind_of<T: std::fmt::Debug>(answer: Result<T>) -> Kind {
    answer.map_err(|error: Error| error.kind()).expect_err("this was to fail")
}

/// Yields without a request after which nothing moves any more.
const STILL: u32 = 500;

/// What some work cost.
#[derive(Debug, PartialEq, Eq)]
pub struct Cost {
    /// Round trips to S3, one after the other.
    pub rounds: u64,
    /// LISTs.
    pub lists: u64,
}

/// Runs a test on a runtime of one thread: what has nothing to do any more waits for S3.
pub fn on_one_thread<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(test)
}

/// Runs `work` while answers to LIST come in rounds: when nothing moves any more, all that was asked for is answered at
/// once. To be used in [`on_one_thread`].
pub async fn in_rounds<T>(client: &Client, work: impl Future<Output = T>) -> (T, Cost) {
    let asked = || client.stats.requests_of("ListObjectsV2");
    let held = client.store.hold_listings();
    let before = asked();
    let (mut rounds, mut answered, mut still) = (0, before, 0);
    let mut work = std::pin::pin!(work);
    let answer = loop {
        if let std::task::Poll::Ready(answer) = futures::poll!(work.as_mut()) {
            break answer;
        }
        let seen = asked();
        tokio::task::yield_now().await;
        still = if asked() == seen { still + 1 } else { 0 };
        if still > STILL {
            assert!(seen > answered, "it waits for nothing after {rounds} rounds");
            held.add_permits(usize::try_from(seen - answered).expect("a few"));
            (rounds, answered, still) = (rounds + 1, seen, 0);
        }
    };
    held.add_permits(usize::MAX >> 4);
    (answer, Cost { rounds, lists: asked() - before })
}

/// Waits for something that another task does.
pub async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = SystemClock.now() + Duration::from_secs(30);
    while !is_true() {
        assert!(SystemClock.now() < deadline, "{what} never came true");
        tokio::task::yield_now().await;
    }
}

/// Opens the journal of a client that is gone, once its last task has let go of it.
fn open_journal(disk: &Path, others: &[PathBuf]) -> (Journal, Vec<Owed>) {
    let deadline = SystemClock.now() + Duration::from_secs(30);
    loop {
        match Journal::open_with(disk, "a test", others) {
            Err(error) if error.kind() == Kind::Conflict && SystemClock.now() < deadline => {
                std::thread::yield_now();
            }
            opened => return opened.expect("nobody else has the directory"),
        }
    }
}

/// Gives other tasks the time to get as far as they can.
pub async fn let_others_run() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}
