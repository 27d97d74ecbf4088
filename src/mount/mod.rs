//! One mount from its beginning to its end: the place where the parts are put together.
//!
//! Owns: the order of starting (sessions, first request, control socket, kernel) and of ending.
//! Does not own: what any of the parts does.
//!
//! Guarantees: the caller is told that the mount is live only after S3 has answered for every bucket and the kernel
//! shows the directory. The end is a sequence: commit every changed file, unmount, commit what was written
//! meanwhile, answer whoever asked for it. What could not be saved is named.

mod connect;
mod ending;
mod failure;
mod findings;
mod options;
mod rates;
mod saving;
mod signals;
mod slots;
mod state_dir;
mod tell;
mod view;

pub use ending::{BUSY_PAUSE, BUSY_WAIT, IN_USE};
pub use failure::{Failure, Stage};
pub use saving::Heard;
pub use signals::Signals;
pub use slots::recover;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};

use crate::base::{Clock, StagingPlace, SystemClock};
use crate::config::MountConfig;
use crate::control::{self, Cause, MetricsServer, Refusal};
use crate::error::{Error, Kind, Result};
use crate::fs::Fs;
use crate::fuse::{self, Trace};
use crate::stats::Stats;
use connect::connect;
use ending::{Answer, Live};
use failure::interrupted;
use findings::Findings;
use saving::{PROGRESS_EVERY, save, stall, unsaved};
use view::Looker;

/// How long the process of an earlier mount may take to end.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(10);
/// Requests to unmount that wait for their turn.
const UNMOUNTS_WAITING_MAX: usize = 8;

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
        state_dir::require_trusted(&config.site.state_dir).map_err(Failure::at(Stage::Machine))?;
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
    let options = options::of_mount(&config, journal).map_err(Failure::at(Stage::Machine))?;
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
