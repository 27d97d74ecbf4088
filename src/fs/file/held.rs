//! A file whose name is about to go, or to be another: no commit is under way meanwhile, and what only S3 has is fetched
//! for whoever reads on.

use std::sync::Arc;

use super::{File, require_all_of};
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::fs::{Fs, lock};
use crate::s3::{GetRequest, read_all};
use crate::tree::Ino;
use crate::write::What;
use crate::write::journal::Record;

/// Bytes fetched at once when an open file loses its object.
pub(in crate::fs) const MATERIALISE_STEP: u64 = 8 << 20;

/// A file that no commit is under way of, as long as this lives. Its name may be about to go: unless it does
/// ([`Fs::orphan`]), the file is as it was before.
pub(in crate::fs) struct Held {
    file: Arc<File>,
    _turn: tokio::sync::OwnedMutexGuard<()>,
    /// Whether something was fetched that is to be forgotten in the end.
    undone: bool,
}

impl Held {
    pub(in crate::fs) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Fetches what only S3 has, so that handles read on when the name and its object are gone.
    pub(in crate::fs) async fn fetch(&mut self, fs: &Fs) -> Result<()> {
        if !self.file.is_open() || lock(&self.file.state).fetched {
            return Ok(());
        }
        if lock(&self.file.state).has_gone(0) {
            let told = "the open file is larger than the local disk and is being written; close it first";
            return Err(Error::new(Kind::NoSpace, told));
        }
        self.undone = true;
        match fs.fetch_base(&self.file).await {
            // Another client was first: there is nothing left to read on.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Stale) => Ok(()),
            fetched => fetched,
        }
    }

    /// What was to take the name failed, and may have done so after the object was gone: what was fetched is kept
    /// until the file's next commit.
    pub(in crate::fs) fn failed(&mut self, error: &Error) {
        if error.may_have_happened() {
            self.keep_fetched();
        }
    }

    /// The object is gone, though the rest of what was to be done failed.
    pub(in crate::fs) fn keep_fetched(&mut self) {
        self.undone = false;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.undone {
            self.file.stays();
        }
    }
}

impl Fs {
    /// Waits until no commit of an open file is under way, and keeps others from beginning: whether S3 has an object
    /// of it is certain from then on.
    pub(in crate::fs) async fn hold(&self, ino: Ino) -> Option<Held> {
        loop {
            let file = self.open_file(ino)?;
            let turn = Arc::clone(&file.commit).lock_owned().await;
            // Another version may have been opened while this waited.
            if lock(&self.files).is_current(&file) {
                return Some(Held { file, _turn: turn, undone: false });
            }
        }
    }

    /// The name of an inode is gone: what is written to it is for its handles alone.
    pub(in crate::fs) fn orphan(&self, ino: Ino, held: Option<Held>) {
        let files = lock(&self.files).orphan(ino);
        for file in files {
            file.orphaned();
            self.abandon_parts(&file);
        }
        if let Some(mut held) = held {
            held.undone = false;
        }
    }

    async fn fetch_base(&self, file: &File) -> Result<()> {
        let (object, runs) = {
            let state = lock(&file.state);
            let runs: Vec<ByteRange> =
                state.all_segments().iter().filter(|s| s.what == What::Base).map(|s| s.range).collect();
            (state.object.clone(), runs)
        };
        let Some(object) = object.filter(|_| !runs.is_empty()) else { return Ok(()) };
        for run in runs {
            let mut at = run.start();
            while let Some(step) = ByteRange::new(at, (at + MATERIALISE_STEP).min(run.end())) {
                let request = GetRequest {
                    bucket: object.bucket.to_string(),
                    key: object.id.key.to_string(),
                    range: Some(step),
                    if_match: Some(object.id.etag.clone()),
                    ..GetRequest::default()
                };
                let (_, bytes) = read_all(&**object.store(), request, step.len()).await?;
                require_all_of(step, &bytes)?;
                self.stage_fetched(file, step, &bytes)?;
                at = step.end();
            }
        }
        lock(&file.state).fetched = true;
        Ok(())
    }

    /// Puts fetched bytes beside whatever was written meanwhile.
    fn stage_fetched(&self, file: &File, range: ByteRange, bytes: &[u8]) -> Result<()> {
        let mut state = lock(&file.state);
        for segment in state.extents.segments(range) {
            if segment.what == What::Base {
                let from = usize::try_from(segment.range.start() - range.start()).unwrap_or(0);
                let len = usize::try_from(segment.range.len()).unwrap_or(0);
                let sums = state.stage(self, &bytes[from..from + len], segment.range.start())?;
                // The next process does not need them, but what they were written beside.
                if let Some(line) = &state.owing.line {
                    line.append(|file| Record::Sums { file, sums })?;
                }
            }
        }
        Ok(())
    }
}

impl File {
    /// The name stays after all: everything is as it was.
    fn stays(&self) {
        let mut state = lock(&self.state);
        state.fetched = false;
        if state.is_saved() {
            state.drop_staging();
        }
    }

    /// The name is gone.
    fn orphaned(&self) {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.fetched)
            && let Some(whole) = ByteRange::new(0, state.extents.len())
        {
            let stamp = state.stamp;
            state.extents.materialise(whole, stamp);
        }
        state.orphan = true;
        state.ahead.stopped = true;
        self.let_go_of_line(&mut state);
        // Its handles have it open still.
        if let Some(staging) = &state.staging {
            staging.remove();
        }
    }
}
