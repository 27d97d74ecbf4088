//! One mount from its beginning to its end: the place where the parts are put together.
//!
//! Owns: the order of starting (sessions, first request, control socket, kernel) and of ending.
//! Does not own: what any of the parts does.
//!
//! Guarantees: the caller is told that the mount is live only after S3 has answered for every bucket and the kernel
//! shows the directory. The end is a sequence: commit every changed file, unmount, commit what was written
//! meanwhile, answer whoever asked for it. What could not be saved is named.

mod rates;
mod slots;
mod tell;
mod view;

pub use slots::recover;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinError;
use tokio::time::MissedTickBehavior;

use crate::base::{Clock, StagingPlace, SystemClock, format_bytes};
use crate::config::{BucketDir, MountConfig, Site, Source};
use crate::control::{self, Cause, MetricsServer, Refusal, RenameStatus, Unsaved, UnsavedFile};
use crate::error::{Error, Kind, Result};
use crate::fs::{Buckets, CacheDir, Fs, Options, Order, Pending, Root, Volume};
use crate::fuse::{self, Mounted, Trace};
use crate::s3::unreachable_because;
use crate::s3::{Capabilities, CapabilityCache, Depth, ListRequest, Probed, Session, Store, Verdict, probe};
use crate::stats::Stats;
use crate::write::journal::Journal;
use crate::write::{Conditions, PartRule};
use tell::Reached;
use view::{Looker, Place, Places};

/// Buckets that are asked for their region at once.
const BUCKETS_AT_ONCE: usize = 16;
/// Buckets that `status` has a note of.
const NOTES_MAX: usize = 64;
/// How often saving is looked at for progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How many operations' time may pass without progress before saving is given up. With more than one, what is heard
/// is the operation's own error.
const STALL_TIMEOUTS: u32 = 2;
/// How long the kernel may take to let go of a directory that was unmounted.
const GONE_WAIT: Duration = Duration::from_secs(5);
/// How long the process of an earlier mount may take to end.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(10);
/// A program whose last close was waiting for us needs a moment to be gone.
pub const BUSY_WAIT: Duration = Duration::from_secs(1);
pub const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Why a mount stays.
pub const IN_USE: &str =
    "the mount is in use: a program has a file open there or works in one of its directories";
/// Requests to unmount that wait for their turn.
const UNMOUNTS_WAITING_MAX: usize = 8;

/// Why there is no mount, or why it did not end well.
#[derive(Debug)]
pub struct Failure {
    pub stage: Stage,
    pub error: Error,
}

#[derive(Debug)]
pub enum Stage {
    /// A session could not be made of its settings.
    Session,
    /// S3 did not answer well.
    FirstRequest,
    /// A directory or socket of ours on this machine.
    Machine,
    /// The kernel.
    Fuse,
    /// It was mounted, and has ended with some files unsaved.
    Unsaved(Unsaved),
    /// A signal came, or whoever waited for the mount is gone.
    Interrupted,
}

impl Failure {
    fn at(stage: Stage) -> impl FnOnce(Error) -> Self {
        |error| Self { stage, error }
    }
}

/// How the end of a mount goes.
#[derive(Debug)]
pub enum Heard<'a> {
    Left(&'a Unsaved),
    End { all: bool },
}

/// The program's log, as far as a live mount touches it.
pub struct Log {
    pub level: control::LogLevel,
    /// Opens its file anew.
    pub reopen: Box<dyn Fn() + Send + Sync>,
    /// Tells what was held back until now.
    pub settle: Box<dyn Fn() + Send + Sync>,
}

impl Default for Log {
    /// None.
    fn default() -> Self {
        let none = || Error::new(Kind::Unsupported, "this mount logs nowhere");
        Self { level: Box::new(move |_| Err(none())), reopen: Box::new(|| {}), settle: Box::new(|| {}) }
    }
}

/// Mounts, says `ready`, and stays until the mount is gone: unmounted by anybody, or asked to end by a signal or over
/// the control socket. If `ready` fails, nobody wants the mount any more. While it ends by a signal, `heard` is told what
/// is left to save, and in the end whether all is.
pub async fn run(
    config: MountConfig,
    ready: impl FnOnce() -> io::Result<()>,
    heard: Box<dyn FnMut(Heard<'_>) + Send>,
    log: Log,
) -> Result<(), Failure> {
    let trace = config.trace_ops.as_deref().map(Trace::open).transpose();
    let trace = trace.map_err(Failure::at(Stage::Machine))?.map(Arc::new);
    let Log { level, reopen, settle } = log;
    let stats = Arc::new(Stats::default());
    let on_disk = config.staging == StagingPlace::Disk;
    if on_disk {
        slots::require_trusted(&config.site.state_dir).map_err(Failure::at(Stage::Machine))?;
    }
    let findings = Arc::new(Findings::new(on_disk.then_some(&*config.site.state_dir)));
    // From here on a signal is a wish to end well.
    let mut signals = Signals::new().map_err(Failure::at(Stage::Machine))?;
    let traced = trace.clone();
    signals.hangup_means(move || {
        reopen();
        traced.iter().for_each(|trace| trace.reopen());
    });
    let root = tokio::select! {
        root = connect(&config.site, config.read_only, &stats, &findings) => root?,
        () = signals.next() => return Err(interrupted("before the mount was live")),
    };
    let (journal, owed) = if config.read_only || !on_disk {
        (None, Vec::new())
    } else {
        let (journal, owed) = slots::open_journal(&config.site, &config.mountpoint)
            .await
            .map_err(Failure::at(Stage::Machine))?;
        (Some(Arc::new(journal)), owed)
    };
    let options = options(&config, journal).map_err(Failure::at(Stage::Machine))?;
    let fs = Fs::new(root, options, Arc::new(SystemClock), stats).map_err(Failure::at(Stage::Machine))?;
    slots::take_up(&fs, owed).await;

    let (asks, asked) = mpsc::channel(UNMOUNTS_WAITING_MAX);
    let looker = Looker::new(&config, &fs, Arc::clone(&findings));
    let handle = Arc::new(control_handle(&config, &fs, &looker, asks, level));
    let control = start_control(&config, &handle).await.map_err(Failure::at(Stage::Machine))?;
    let metrics = match config.metrics_listen {
        Some(address) => {
            Some(MetricsServer::start(address, handle).await.map_err(Failure::at(Stage::Machine))?)
        }
        None => None,
    };
    if let Some(metrics) = &metrics {
        looker.listens(metrics.address());
    }
    let kernel = fuse::Options {
        source: config.site.source.name(),
        allow_other: config.allow_other,
        noexec: config.noexec,
        read_only: config.read_only,
        trace: trace.clone(),
    };
    let mounted =
        fuse::mount(Arc::clone(&fs), tokio::runtime::Handle::current(), &config.mountpoint, &kernel)
            .await
            .map_err(Failure::at(Stage::Fuse))?;
    let begun = SystemClock.now();
    tell::mounted(&config, &findings.reached());
    fs.find_orders();

    let mut live =
        Live { fs, mounted: Arc::new(mounted), signals, stall: stall(&config.site), given_up: None, heard };
    let wanted = ready().map_err(|error| interrupted("because nobody waits for the mount").because(error));
    // What stays in the background has left its terminal by that.
    live.signals.look_for_terminal();
    let mut answers = Vec::new();
    if wanted.is_ok() {
        answers = live.until_the_end(asked).await;
    } else {
        live.end().await;
    }
    let saved = live.save_the_rest().await;
    for answer in answers {
        // Who does not listen any more does not need the answer.
        let _ = answer.send(saved.clone());
    }
    (live.heard)(Heard::End { all: saved.is_ok() });
    drop(metrics);
    control.stop().await;
    if let Some(trace) = trace {
        // It waits for the disk.
        let _ = tokio::task::spawn_blocking(move || trace.finish()).await;
    }
    settle();
    let uptime = SystemClock.now().saturating_duration_since(begun);
    tell::unmounted(&config.mountpoint, uptime, live.fs.stats(), &unsaved(&live.fs));
    wanted?;
    saved.map_err(|refusal| Failure {
        error: Error::new(Kind::Local, refusal.message),
        stage: Stage::Unsaved(refusal.unsaved),
    })
}

fn interrupted(when: &str) -> Failure {
    Failure { stage: Stage::Interrupted, error: Error::new(Kind::Local, format!("stopped {when}")) }
}

impl Failure {
    fn because(mut self, error: io::Error) -> Self {
        self.error = self.error.with_source(error);
        self
    }
}

/// Asks S3 for every bucket of the mount. Nothing is mounted unless all of them answer in time.
async fn connect(
    site: &Site,
    read_only: bool,
    stats: &Arc<Stats>,
    findings: &Arc<Findings>,
) -> Result<Root, Failure> {
    let mut sessions = BTreeMap::new();
    for name in site.source.sessions() {
        let settings = site.sessions.get(name).cloned().unwrap_or_default();
        let session = Session::builder()
            .name(name)
            .settings(settings)
            .stats(Arc::clone(stats))
            .timeout(site.timeout)
            .build()
            .await
            .map_err(Failure::at(Stage::Session))?;
        sessions.insert(name.to_owned(), Arc::new(session));
    }
    let endpoints = Endpoints { sessions, findings: Arc::clone(findings) };
    let late = || match endpoints.sessions.values().find_map(|session| session.trouble()) {
        Some(why) => unreachable_because(&why),
        None => Error::new(Kind::TimedOut, "S3 did not answer in time"),
    };
    tokio::time::timeout(site.timeout, open_root(&site.source, read_only, &endpoints))
        .await
        .unwrap_or_else(|_| Err(late()))
        .map_err(Failure::at(Stage::FirstRequest))
}

/// The sessions of a mount, and what is known of the endpoints they speak to.
struct Endpoints {
    sessions: BTreeMap<String, Arc<Session>>,
    findings: Arc<Findings>,
}

/// What probes have found out, and what people should know of it.
struct Findings {
    capabilities: CapabilityCache,
    /// By bucket, and what they are about.
    notes: Mutex<BTreeMap<(String, Note), String>>,
    places: Places,
    /// The session whose buckets all are shown.
    shows_all: OnceLock<Arc<Session>>,
}

/// What a note of a bucket is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Note {
    Conditions,
    LeftBehind,
}

impl Findings {
    /// What is found out is kept in this directory, if there is one.
    fn new(state_dir: Option<&Path>) -> Self {
        let capabilities = CapabilityCache::new(state_dir, Arc::new(SystemClock));
        Self { capabilities, notes: Mutex::default(), places: Places::default(), shows_all: OnceLock::new() }
    }

    /// What has answered, for the log.
    fn reached(&self) -> Vec<Reached> {
        let of = |session: &Session, bucket: &str| {
            let endpoint = session.endpoint_url();
            let found = endpoint.as_deref().and_then(|endpoint| self.capabilities.kept(endpoint, bucket));
            Reached {
                bucket: bucket.to_owned(),
                region: session.known_region(bucket).unwrap_or_else(|| session.region()),
                capabilities: tell::capabilities_of(session.is_aws(), found.as_ref()),
                endpoint,
            }
        };
        match self.shows_all.get() {
            Some(session) => vec![of(session, "all")],
            None => self.places.all().iter().map(|place| of(&place.session, &place.bucket)).collect(),
        }
    }

    /// Keeps a note of a bucket, in the place of an earlier one about the same. Whether it is new.
    fn note(&self, bucket: &str, about: Note, text: &str) -> bool {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, note) = ((bucket.to_owned(), about), format!("{bucket}: {text}"));
        if notes.get(&key) == Some(&note) || (notes.len() >= NOTES_MAX && !notes.contains_key(&key)) {
            return false;
        }
        notes.insert(key, note);
        true
    }

    /// What people should know of a probe: what it could not ask, and what it could not take away.
    fn hear(&self, bucket: &str, probed: &Probed) {
        if let Some(why) = &probed.stopped {
            tracing::warn!(
                bucket,
                "the endpoint was not probed, because its answers would stay as objects: {why}"
            );
        }
        if !probed.left.is_empty() {
            self.note(bucket, Note::LeftBehind, &format!("a probe left behind {}", probed.left.join(", ")));
        }
    }

    fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

async fn open_root(source: &Source, read_only: bool, endpoints: &Endpoints) -> Result<Root> {
    match source {
        Source::Bucket(dir) => Ok(Root::Volume(open_volume(dir, read_only, endpoints).await?)),
        Source::Named { dirs, .. } => {
            let opened = dirs.iter().map(async |(name, dir)| {
                let volume = open_volume(dir, read_only, endpoints).await?;
                Ok::<_, Error>((name.clone(), volume))
            });
            let volumes = futures::stream::iter(opened).buffered(BUCKETS_AT_ONCE).try_collect().await?;
            Ok(Root::Named(volumes))
        }
        Source::Buckets { session: name, new_objects } => {
            let session = endpoints.session(name)?;
            let store: Arc<dyn Store> = Arc::new(session.client());
            store.list_buckets().await?;
            let _ = endpoints.findings.shows_all.set(Arc::clone(&session));
            let open_with = Arc::clone(&session);
            let findings = Arc::clone(&endpoints.findings);
            let new_objects = new_objects.clone();
            Ok(Root::Buckets(Buckets {
                store,
                session: Some(session),
                read_only,
                open: Box::new(move |bucket, store| {
                    let session = Arc::clone(&open_with);
                    let (bucket_name, prefix) = (bucket.to_owned(), String::new());
                    findings.places.add(Place { bucket: bucket_name, prefix, session, read_only });
                    volume(bucket, "", store, &open_with, read_only, &findings)
                        .new_objects(new_objects.clone())
                }),
            }))
        }
    }
}

async fn open_volume(dir: &BucketDir, read_only: bool, endpoints: &Endpoints) -> Result<Volume> {
    let session = endpoints.session(&dir.session)?;
    let (store, _) = session.store_for(&dir.bucket).await?;
    let first = ListRequest {
        bucket: dir.bucket.clone(),
        prefix: dir.prefix.clone(),
        max_keys: Some(1),
        ..ListRequest::default()
    };
    store.list(first).await?;
    let read_only = read_only || dir.read_only;
    let volume = volume(&dir.bucket, &dir.prefix, store, &session, read_only, &endpoints.findings);
    let volume = volume.new_objects(dir.new_objects.clone());
    volume.prove().await?;
    let (bucket, prefix) = (dir.bucket.clone(), dir.prefix.clone());
    endpoints.findings.places.add(Place { bucket, prefix, session, read_only });
    Ok(volume)
}

fn volume(
    bucket: &str,
    prefix: &str,
    store: Arc<dyn Store>,
    session: &Session,
    read_only: bool,
    findings: &Arc<Findings>,
) -> Volume {
    let endpoint = session.endpoint_url();
    let volume = Volume::new(bucket, prefix, Arc::clone(&store))
        .read_only(read_only)
        .reach(session.reach())
        .origin(endpoint.as_deref().unwrap_or("aws"));
    // Amazon's own S3 keeps what it documents; any other server has to show it.
    let Some(endpoint) = endpoint.filter(|_| !session.is_aws()) else { return volume };
    let volume = volume.unproven().order(order_of(findings.capabilities.kept(&endpoint, bucket)));
    let volume = volume.part_rule(part_rule(&endpoint, bucket, findings));
    let (bucket_name, noting) = (bucket.to_owned(), Arc::clone(findings));
    let (bucket, prefix, findings) = (bucket.to_owned(), prefix.to_owned(), Arc::clone(findings));
    let find = Arc::new(move || {
        let (store, findings) = (Arc::clone(&store), Arc::clone(&findings));
        let (endpoint, bucket, prefix) = (endpoint.clone(), bucket.clone(), prefix.clone());
        async move {
            let asked = async {
                let probed = probe(&*store, &bucket, &prefix, Depth::Writes).await?;
                findings.hear(&bucket, &probed);
                Ok(probed.capabilities)
            };
            findings.capabilities.get_or_probe(&endpoint, &bucket, asked).await
        }
    });
    let find_order = Arc::clone(&find);
    let volume = volume.probe(Box::new(move || {
        let found = find();
        let (bucket, findings) = (bucket_name.clone(), Arc::clone(&noting));
        Box::pin(async move { Ok(conditions_of(&found.await?, &bucket, &findings)) })
    }));
    if read_only {
        // Finding out means writing.
        return volume;
    }
    volume.order_probe(Box::new(move || {
        let found = find_order();
        Box::pin(async move { found.await.ok().map(|found| order_of(Some(found))) })
    }))
}

/// Which sizes of parts an endpoint takes, as far as that is known; what it says later is kept.
fn part_rule(endpoint: &str, bucket: &str, findings: &Arc<Findings>) -> PartRule {
    let equal = findings.capabilities.wants_equal_parts(endpoint, bucket);
    let (endpoint, bucket, findings) = (endpoint.to_owned(), bucket.to_owned(), Arc::clone(findings));
    let keep = move || findings.capabilities.learn_equal_parts(&endpoint, &bucket);
    PartRule::new(equal, Some(Box::new(keep)))
}

/// How far the order of an endpoint's listings is known.
fn order_of(found: Option<Capabilities>) -> Order {
    match found.map(|found| (found.list_order, found.start_after_with_delimiter)) {
        Some((Verdict::Works, Verdict::Works)) => Order::Known,
        Some((Verdict::Ignored, _)) => Order::Other,
        // A listing that begins in the middle may leave names out, so it has to show like any other.
        _ => Order::Unknown,
    }
}

/// What the write path may rely on; where that is not everything, the log says so once and `status` from then on.
fn conditions_of(found: &Capabilities, bucket: &str, findings: &Findings) -> Conditions {
    let [put, complete, copy, delete, delete_many] = found.conditions();
    let conditions = Conditions { put, complete, copy, delete, delete_many };
    // Where only a batch's are not looked at, each delete is a request of its own, and nothing is lost.
    if !(put && complete && copy && delete) {
        let mut table = found.table().to_vec();
        table.retain(|(name, verdict, _)| name.starts_with("conditional") && *verdict != Verdict::Works);
        let missing: Vec<String> =
            table.iter().map(|(name, verdict, _)| format!("{name}: {verdict}")).collect();
        // Who may not ask has found out nothing of the server.
        let says = match table
            .iter()
            .any(|(_, verdict, _)| matches!(verdict, Verdict::Ignored | Verdict::Refused))
        {
            true => "the endpoint does not honour every condition",
            false => "it could not be found out whether the endpoint honours every condition",
        };
        let note = format!(
            "{says} ({}); a request before each write stands in, which leaves a short window in which another client's \
             change can be lost",
            missing.join(", ")
        );
        if findings.note(bucket, Note::Conditions, &note) {
            tracing::warn!(bucket, "{note}");
        }
    }
    conditions
}

impl Endpoints {
    fn session(&self, name: &str) -> Result<Arc<Session>> {
        self.sessions
            .get(name)
            .cloned()
            .ok_or_else(|| Error::new(Kind::Internal, format!("no session was made for {name:?}")))
    }
}

fn options(config: &MountConfig, journal: Option<Arc<Journal>>) -> Result<Options> {
    Ok(Options {
        uid: config.uid,
        gid: config.gid,
        file_mode: config.file_mode,
        dir_mode: config.dir_mode,
        ttl: config.metadata_ttl,
        negative_ttl: config.negative_ttl,
        staging: config.staging,
        staging_reserve: config.state_reserve,
        durability: config.durability,
        upload_delay: config.upload_delay,
        posix: config.posix,
        exclusive: config.exclusive,
        on_conflict: config.on_conflict,
        cache: config.cache.clone().map(|cache| CacheDir { dir: cache.dir, limit_bytes: cache.limit_bytes }),
        passthrough: config.passthrough,
        ..match config.staging {
            StagingPlace::Disk => site_options(&config.site, journal)?,
            StagingPlace::Memory => options_of(&config.site, PathBuf::new(), journal),
        }
    })
}

/// What is the same whether anybody looks at the files or they are only to be saved.
fn site_options(site: &Site, journal: Option<Arc<Journal>>) -> Result<Options> {
    let staging_dir = site.state_dir.join("staging");
    slots::make_private(&site.state_dir, &staging_dir)?;
    Ok(options_of(site, staging_dir, journal))
}

fn options_of(site: &Site, staging_dir: PathBuf, journal: Option<Arc<Journal>>) -> Options {
    Options {
        timeout: site.timeout,
        memory_limit: site.memory_limit,
        // What is staged nowhere keeps nothing either.
        kept: staging_dir.parent().map(|state| state.join("attributes")),
        staging_dir,
        journal,
        ..Options::default()
    }
}

type Answer = oneshot::Sender<Result<(), Refusal>>;

fn control_handle(
    config: &MountConfig,
    fs: &Arc<Fs>,
    looker: &Arc<Looker>,
    asks: mpsc::Sender<Answer>,
    log_level: control::LogLevel,
) -> control::Handle {
    let (of_status, of_metrics) = (Arc::clone(looker), Arc::clone(looker));
    let (of_unsaved, of_flush) = (Arc::clone(fs), Arc::clone(fs));
    let stall = stall(&config.site);
    control::Handle {
        status: Box::new(move || {
            let looker = Arc::clone(&of_status);
            async move { looker.status().await }.boxed()
        }),
        metrics: Box::new(move || {
            let looker = Arc::clone(&of_metrics);
            async move { looker.metrics().await }.boxed()
        }),
        unsaved: Box::new(move || unsaved(&of_unsaved)),
        log_level,
        flush: Box::new(move || {
            let fs = Arc::clone(&of_flush);
            Box::pin(async move { save(&fs, stall).await })
        }),
        unmount: Box::new(move || {
            let asks = asks.clone();
            Box::pin(async move {
                let ending = || Refusal::new(Cause::Failed, "the mount is ending already");
                let (answer, answered) = oneshot::channel();
                asks.send(answer).await.map_err(|_| ending())?;
                answered.await.unwrap_or_else(|_| Err(ending()))
            })
        }),
    }
}

/// The process of an earlier mount that has just been unmounted may still be on its way out.
async fn start_control(config: &MountConfig, handle: &Arc<control::Handle>) -> Result<control::Server> {
    let patience = tokio::time::Instant::now() + PREDECESSOR_WAIT;
    loop {
        match control::Server::start(&config.control_socket, Arc::clone(handle)) {
            Err(error) if error.kind() == Kind::AlreadyExists && tokio::time::Instant::now() < patience => {
                tokio::time::sleep(PROGRESS_EVERY).await;
            }
            other => return other,
        }
    }
}

fn unsaved(fs: &Fs) -> Unsaved {
    let mut pending = fs.pending();
    // Not all of them are named: first what failed, then what is on its way.
    pending.sort_by(|a, b| {
        let rank = |file: &Pending| (file.last_error.is_none(), std::cmp::Reverse(file.sent_bytes));
        rank(a).cmp(&rank(b)).then_with(|| a.path.cmp(&b.path))
    });
    let sent = pending.iter().map(|file| file.sent_bytes).sum();
    let files = pending.into_iter().map(|file| UnsavedFile {
        path: file.path,
        bytes: file.bytes,
        sent: file.sent_bytes,
        last_error: file.last_error,
    });
    let renames = fs.renaming().into_iter().map(|rename| RenameStatus {
        from: rename.from,
        to: rename.to,
        objects: rename.objects,
        copied: rename.copied,
        seconds: rename.time.as_secs(),
    });
    Unsaved { sent, renames: renames.collect(), ..Unsaved::of(files) }
}

/// Commits every changed file. Gives up when nothing has moved for so long that every operation on its way must have
/// ended: a large upload may take its time, a dead endpoint may not.
///
/// Giving up is not cancelling: a request that S3 has taken and we have forgotten would look like another client's.
async fn save(fs: &Arc<Fs>, stall: Duration) -> Result<(), Refusal> {
    save_and_tell(fs, stall, &mut |_| {}).await
}

/// The same, with word of what is left.
async fn save_and_tell(
    fs: &Arc<Fs>,
    stall: Duration,
    heard: &mut (dyn FnMut(Heard<'_>) + Send),
) -> Result<(), Refusal> {
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = progress(fs);
    let mut deadline = ticks.tick().await + stall;
    let flushing = Arc::clone(fs);
    let mut flush = tokio::spawn(async move { flushing.flush_all().await });
    heard(Heard::Left(&unsaved(fs)));
    let failed = loop {
        tokio::select! {
            flushed = &mut flush => {
                let panicked = |panic: JoinError| Err(Error::new(Kind::Internal, panic.to_string()));
                break flushed.unwrap_or_else(panicked).err();
            }
            now = ticks.tick() => {
                heard(Heard::Left(&unsaved(fs)));
                let current = progress(fs);
                if current != seen {
                    (seen, deadline) = (current, now + stall);
                } else if now >= deadline {
                    break Some(Error::new(Kind::TimedOut, format!("nothing moved for {} s", stall.as_secs())));
                }
            }
        }
    };
    let unsaved = unsaved(fs);
    match failed {
        // A commit that lost against another client failed, and yet left nothing to save.
        Some(error) if unsaved.files == 0 => {
            tracing::warn!(error = %error.report(), "a file was not saved under its own name");
            Ok(())
        }
        Some(error) => Err(Refusal {
            cause: Cause::Unsaved,
            message: format!("{} could not be saved: {}", describe(&unsaved), error.report()),
            unsaved,
        }),
        None => Ok(()),
    }
}

fn describe(unsaved: &Unsaved) -> String {
    let files = if unsaved.files == 1 { "1 file".to_owned() } else { format!("{} files", unsaved.files) };
    format!("{} in {files}", format_bytes(unsaved.bytes))
}

/// How long nothing may move.
fn stall(site: &Site) -> Duration {
    site.timeout * STALL_TIMEOUTS
}

/// What changes while bytes travel.
fn progress(fs: &Fs) -> (u64, u64) {
    (fs.stats().bytes_sent.value(), fs.stats().commits.value())
}

/// A mount that people use.
struct Live {
    fs: Arc<Fs>,
    mounted: Arc<Mounted>,
    signals: Signals,
    stall: Duration,
    /// Why what is not saved by now will not be.
    given_up: Option<String>,
    heard: Box<dyn FnMut(Heard<'_>) + Send>,
}

impl Live {
    /// Waits for the end and brings it about. Returns who has to be told how it went.
    async fn until_the_end(&mut self, mut asked: mpsc::Receiver<Answer>) -> Vec<Answer> {
        let mut answers = Vec::new();
        loop {
            tokio::select! {
                () = self.mounted.wait() => break,
                () = self.signals.next() => {
                    self.end().await;
                    break;
                }
                Some(answer) = asked.recv() => match self.save_and_unmount().await {
                    Ok(()) => {
                        answers.push(answer);
                        break;
                    }
                    // Who does not listen any more finds the mount as it was.
                    Err(refusal) => drop(answer.send(Err(refusal))),
                },
            }
        }
        asked.close();
        while let Ok(answer) = asked.try_recv() {
            answers.push(answer);
        }
        answers
    }

    /// Unmounts if everything can be saved and nobody uses the mount; otherwise leaves it as it is.
    async fn save_and_unmount(&self) -> Result<(), Refusal> {
        save(&self.fs, self.stall).await?;
        let patience = tokio::time::Instant::now() + BUSY_WAIT;
        let mut unmounted = self.unmount(false).await;
        while unmounted.as_ref().is_err_and(is_busy) && tokio::time::Instant::now() < patience {
            tokio::time::sleep(BUSY_PAUSE).await;
            unmounted = self.unmount(false).await;
        }
        match unmounted {
            Ok(()) => Ok(()),
            Err(error) if is_busy(&error) => Err(Refusal::new(Cause::Busy, IN_USE)),
            Err(error) => Err(Refusal::new(Cause::Failed, error.report())),
        }
    }

    /// Ends it whoever uses it. A second signal gives up on what is not saved yet.
    async fn end(&mut self) {
        let saved = tokio::select! {
            saved = save_and_tell(&self.fs, self.stall, &mut *self.heard) => saved.map_err(|refusal| refusal.message),
            () = self.signals.next() => Err("told to stop before everything was saved".to_owned()),
        };
        self.given_up = saved.err();
        if let Err(error) = self.unmount(false).await {
            tracing::warn!(error = %error.report(), "detaching the mount from programs that use it");
            if let Err(error) = self.unmount(true).await {
                tracing::error!(error = %error.report(), "the directory stays as a dead mount");
            }
        }
    }

    /// Commits what was written between the last commit and the kernel's letting go.
    async fn save_the_rest(&mut self) -> Result<(), Refusal> {
        if tokio::time::timeout(GONE_WAIT, self.mounted.wait()).await.is_err() {
            tracing::warn!("programs still hold files of the mount open; they will get errors");
        }
        let why = match self.given_up.take() {
            Some(why) => why,
            None => tokio::select! {
                saved = save_and_tell(&self.fs, self.stall, &mut *self.heard) => return saved,
                () = self.signals.next() => "told to stop before everything was saved".to_owned(),
            },
        };
        let unsaved = unsaved(&self.fs);
        if unsaved.files == 0 {
            return Ok(());
        }
        Err(Refusal { cause: Cause::Unsaved, message: why, unsaved })
    }

    /// Unmounting waits for the kernel, which may wait for us, so it gets a thread of its own.
    async fn unmount(&self, lazy: bool) -> Result<()> {
        let mounted = Arc::clone(&self.mounted);
        tokio::task::spawn_blocking(move || mounted.unmount(lazy))
            .await
            .unwrap_or_else(|panic| Err(Error::new(Kind::Internal, panic.to_string())))
    }
}

fn is_busy(error: &Error) -> bool {
    error.kind() == Kind::Conflict
}

/// Whether a terminal belongs to this process, whose end ends it.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// The signals that ask a program to end.
pub struct Signals {
    signals: [Signal; 3],
    /// What a hangup means to a process that no terminal can hang up: it asks for files to be opened anew.
    hangup: Option<Box<dyn Fn() + Send>>,
    /// Looked for beforehand: when it has hung up it is not found any more.
    terminal: bool,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    pub fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(Error::from);
        let signals = [
            listen(SignalKind::terminate())?,
            listen(SignalKind::interrupt())?,
            listen(SignalKind::hangup())?,
        ];
        Ok(Self { signals, hangup: None, terminal: has_terminal() })
    }

    /// Looks again whether a terminal can hang the process up.
    fn look_for_terminal(&mut self) {
        self.terminal = has_terminal();
    }

    /// From now on a hangup does not ask to end, unless it is a terminal's.
    pub fn hangup_means(&mut self, what: impl Fn() + Send + 'static) {
        self.hangup = Some(Box::new(what));
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.signals;
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => match &self.hangup {
                    Some(what) if !self.terminal => what(),
                    _ => return,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    use crate::config::DEFAULT_SESSION;
    use crate::demo::Server;
    use crate::fs::OpenFlags;
    use crate::s3::{DeleteRequest, MemStore, NewObjects, Secret, SessionConfig};
    use crate::tree::ROOT;

    const STALL: Duration = Duration::from_secs(60);

    struct Fixture {
        fs: Arc<Fs>,
        store: Arc<MemStore>,
        _staging: tempfile::TempDir,
    }

    /// A file system on a bucket, with a file that was written and is still open.
    async fn written() -> Fixture {
        let staging = tempfile::tempdir().unwrap();
        let store = Arc::new(MemStore::new(Arc::new(SystemClock), Arc::default()).with_bucket("bucket"));
        let root = Root::Volume(Volume::new("bucket", "", Arc::clone(&store) as Arc<dyn Store>));
        let options = Options { staging_dir: staging.path().to_owned(), ..Options::default() };
        let fs = Fs::new(root, options, Arc::new(SystemClock), Arc::default()).unwrap();
        let flags = OpenFlags { write: true, truncate: false, append: false, exclusive: true, direct: false };
        let (_, opened) =
            fs.create(ROOT, OsStr::new("file"), flags, crate::fs::Maker::of_mode(0o644)).await.unwrap();
        fs.write(opened.fh, 0, b"bytes").await.unwrap();
        Fixture { fs, store, _staging: staging }
    }

    #[tokio::test]
    async fn saving_commits_files_that_are_still_open() {
        let mount = written().await;
        assert_eq!(unsaved(&mount.fs).bytes, 5);
        save(&mount.fs, STALL).await.unwrap();
        assert_eq!(unsaved(&mount.fs).files, 0);
        assert_eq!(mount.store.head("bucket", "file", None).await.unwrap().size, 5);
    }

    #[tokio::test]
    async fn what_cannot_be_saved_is_named_with_its_reason() {
        let mount = written().await;
        let emptied = DeleteRequest { bucket: "bucket".into(), key: "file".into(), ..Default::default() };
        mount.store.delete(emptied).await.unwrap();
        mount.store.delete_bucket("bucket").await.unwrap();
        let refusal = save(&mount.fs, STALL).await.unwrap_err();
        assert_eq!(refusal.cause, Cause::Unsaved);
        assert!(refusal.message.contains("5 B in 1 file could not be saved: "), "{}", refusal.message);
        assert_eq!(refusal.unsaved.first[0].path, "file");
        assert!(refusal.unsaved.first[0].last_error.is_some());
    }

    /// A mount of what two sessions of one server see.
    fn site(endpoint: &str, source: Source) -> Site {
        let settings = SessionConfig {
            access_key_id: Some("pailfs".into()),
            secret_access_key: Some(Secret::new("pailfs-demo-secret")),
            region: Some("us-east-1".into()),
            endpoint_url: Some(endpoint.into()),
            ..SessionConfig::default()
        };
        Site {
            source,
            sessions: [DEFAULT_SESSION, "other"].map(|name| (name.to_owned(), settings.clone())).into(),
            timeout: Duration::from_secs(20),
            memory_limit: 64 << 20,
            state_dir: "/nowhere".into(),
        }
    }

    fn bucket(bucket: &str, session: &str) -> BucketDir {
        BucketDir {
            bucket: bucket.into(),
            prefix: String::new(),
            session: session.into(),
            read_only: session == "other",
            new_objects: NewObjects::default(),
        }
    }

    fn findings() -> Arc<Findings> {
        Arc::new(Findings::new(None))
    }

    #[test]
    fn a_note_is_kept_for_each_bucket_and_there_are_not_too_many() {
        let findings = findings();
        for n in (0..1000).chain(0..10) {
            findings.note(&format!("bucket-{n:04}"), Note::Conditions, "no conditions");
        }
        assert_eq!(findings.notes().len(), NOTES_MAX);
        assert_eq!(findings.notes()[0], "bucket-0000: no conditions");
    }

    #[test]
    fn a_server_is_not_blamed_for_what_the_identity_may_not_ask() {
        let note = |verdict| {
            let findings = findings();
            conditions_of(&Capabilities { put_if_match: verdict, ..Capabilities::of_aws() }, "b", &findings);
            findings.notes().remove(0)
        };
        let ignored = note(Verdict::Ignored);
        assert!(
            ignored.starts_with("b: the endpoint does not honour every condition (conditional put"),
            "{ignored}"
        );
        let denied = note(Verdict::Denied);
        assert!(denied.starts_with("b: it could not be found out whether the endpoint honours"), "{denied}");
    }

    async fn server() -> Server {
        let store = Arc::new(MemStore::new(Arc::new(SystemClock), Arc::default()));
        Server::builder().store(store).bucket("one").bucket("two").start().await.unwrap()
    }

    #[tokio::test]
    async fn every_bucket_is_asked_for_with_its_own_session() {
        let server = server().await;
        let dirs = BTreeMap::from([
            ("a".to_owned(), bucket("one", DEFAULT_SESSION)),
            ("b".to_owned(), bucket("two", "other")),
        ]);
        let site = site(&server.endpoint(), Source::Named { name: "data".into(), dirs });
        let stats = Arc::default();
        let Root::Named(volumes) = connect(&site, false, &stats, &findings()).await.unwrap() else {
            panic!("not named")
        };
        let seen: Vec<_> = volumes.iter().map(|(name, v)| (name.as_str(), v.read_only)).collect();
        assert_eq!(seen, [("a", false), ("b", true)]);
        assert_ne!(volumes[0].1.reach, volumes[1].1.reach, "two sessions are two places");
        assert_eq!(stats.requests_of("ListObjectsV2"), 2);
        server.stop().await;
    }

    /// S3 refuses a copy that is sent to the region of its source (301).
    #[tokio::test]
    async fn a_rename_between_regions_is_asked_of_the_region_it_goes_to() {
        let server = server().await;
        let mut dirs = Vec::new();
        let mut counts = Vec::new();
        for bucket in ["one", "two"] {
            let stats: Arc<Stats> = Arc::default();
            let session = Session::builder()
                .credentials("pailfs", "pailfs-demo-secret", None)
                .region("us-east-1")
                .endpoint_url(&server.endpoint())
                .stats(Arc::clone(&stats))
                .build();
            let store: Arc<dyn Store> = Arc::new(session.await.unwrap().client());
            dirs.push((bucket.to_owned(), Volume::new(bucket, "", store).reach("the same session")));
            counts.push(stats);
        }
        let staging = tempfile::tempdir().unwrap();
        let options = Options { staging_dir: staging.path().to_owned(), ..Options::default() };
        let fs = Fs::new(Root::Named(dirs), options, Arc::new(SystemClock), Arc::default()).unwrap();
        let east = fs.lookup(ROOT, OsStr::new("one")).await.unwrap().ino;
        let west = fs.lookup(ROOT, OsStr::new("two")).await.unwrap().ino;
        let flags = OpenFlags { write: true, truncate: false, append: false, exclusive: true, direct: false };
        let dir = fs.mkdir(east, OsStr::new("d"), crate::fs::Maker::of_mode(0o755)).await.unwrap().ino;
        for parent in [east, dir] {
            let (_, opened) =
                fs.create(parent, OsStr::new("file"), flags, crate::fs::Maker::of_mode(0o644)).await.unwrap();
            fs.write(opened.fh, 0, b"bytes").await.unwrap();
            fs.flush(opened.fh).await.unwrap();
        }
        for name in ["file", "d"] {
            let name = OsStr::new(name);
            fs.rename(east, name, west, name, false).await.unwrap();
        }
        let copies = |n: usize| counts[n].requests_of("CopyObject");
        assert_eq!((copies(0), copies(1)), (0, 3), "the file, the directory's marker and the file in it");
        assert!(counts[0].requests_of("DeleteObject") > 0 && counts[1].requests_of("DeleteObject") == 0);
        server.stop().await;
    }

    #[tokio::test]
    async fn a_bucket_that_is_not_there_and_a_server_that_is_not_there_are_told_apart() {
        let server = server().await;
        let absent = site(&server.endpoint(), Source::Bucket(bucket("absent", DEFAULT_SESSION)));
        let failure = connect(&absent, false, &Arc::default(), &findings()).await.err().unwrap();
        assert!(matches!(failure.stage, Stage::FirstRequest));
        assert_eq!(failure.error.kind(), Kind::NoSuchBucket, "{}", failure.error.report());

        let all = site(
            &server.endpoint(),
            Source::Buckets { session: DEFAULT_SESSION.into(), new_objects: NewObjects::default() },
        );
        assert!(matches!(connect(&all, false, &Arc::default(), &findings()).await, Ok(Root::Buckets(_))));
        server.stop().await;
        let failure = connect(&all, false, &Arc::default(), &findings()).await.err().unwrap();
        assert!(
            matches!(failure.error.kind(), Kind::Unreachable | Kind::TimedOut),
            "{}",
            failure.error.report()
        );
    }
}
