//! Saving everything before the end: what is left, for how long it may not move, and what to say of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::MissedTickBehavior;

use crate::base::format_bytes;
use crate::config::Site;
use crate::control::{Cause, Refusal, RenameStatus, Unsaved, UnsavedFile};
use crate::error::{Error, Kind};
use crate::fs::{Fs, Pending};

/// How often saving is looked at for progress.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How many operations' time may pass without progress before saving is given up. With more than one, what is heard
/// is the operation's own error.
const STALL_TIMEOUTS: u32 = 2;

/// How the end of a mount goes.
#[derive(Debug)]
pub enum Heard<'a> {
    Left(&'a Unsaved),
    End { all: bool },
}

pub(super) fn unsaved(fs: &Fs) -> Unsaved {
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
pub(super) async fn save(fs: &Arc<Fs>, stall: Duration) -> Result<(), Refusal> {
    save_and_tell(fs, stall, &mut |_| {}).await
}

/// The same, with word of what is left.
pub(super) async fn save_and_tell(
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
pub(super) fn stall(site: &Site) -> Duration {
    site.timeout * STALL_TIMEOUTS
}

/// What changes while bytes travel.
fn progress(fs: &Fs) -> (u64, u64) {
    (fs.stats().bytes_sent.value(), fs.stats().commits.value())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    use crate::base::SystemClock;
    use crate::fs::{OpenFlags, Options, Root, Volume};
    use crate::s3::{DeleteRequest, MemStore, Store};
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
}
