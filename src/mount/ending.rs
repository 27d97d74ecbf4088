//! The end of a mount: asked for by whoever unmounts, over the control socket or by a signal.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::saving::{Heard, save, save_and_tell, unsaved};
use super::signals::Signals;
use crate::control::{Cause, Refusal};
use crate::error::{Error, Kind, Result};
use crate::fs::Fs;
use crate::fuse::Mounted;

/// How long the kernel may take to let go of a directory that was unmounted.
const GONE_WAIT: Duration = Duration::from_secs(5);
/// A program whose last close was waiting for us needs a moment to be gone.
pub const BUSY_WAIT: Duration = Duration::from_secs(1);
pub const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Why a mount stays.
pub const IN_USE: &str =
    "the mount is in use: a program has a file open there or works in one of its directories";

/// Where somebody waits for the end.
pub(super) type Answer = oneshot::Sender<Result<(), Refusal>>;

/// A mount that people use.
pub(super) struct Live {
    pub(super) fs: Arc<Fs>,
    pub(super) mounted: Arc<Mounted>,
    pub(super) signals: Signals,
    pub(super) stall: Duration,
    /// Why what is not saved by now will not be.
    pub(super) given_up: Option<String>,
    pub(super) heard: Box<dyn FnMut(Heard<'_>) + Send>,
}

impl Live {
    /// Waits for the end and brings it about. Returns who has to be told how it went.
    pub(super) async fn until_the_end(&mut self, mut asked: mpsc::Receiver<Answer>) -> Vec<Answer> {
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
    pub(super) async fn end(&mut self) {
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
    pub(super) async fn save_the_rest(&mut self) -> Result<(), Refusal> {
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
