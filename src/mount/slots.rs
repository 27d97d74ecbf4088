//! What mounts write down, and what the ones that have ended still owe.
//!
//! Owns: the directories of journals, one for each mount of a source on this host.
//! Does not own: what a journal holds (`write`), nor how what is owed gets to S3 (`fs`).
//!
//! Guarantees: two mounts never have one directory; what is owed is found by the source and the endpoints it was
//! mounted with, wherever it was mounted; a mount has what all mounts of its source owe that have ended before it began.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use md5::{Digest, Md5};

use super::connect::connect;
use super::failure::{Failure, Stage};
use super::findings::Findings;
use super::options;
use super::saving::{Heard, PROGRESS_EVERY, save_and_tell, stall, unsaved};
use super::state_dir::{make_private, require_trusted};
use crate::base::SystemClock;
use crate::config::Site;
use crate::error::{Error, Kind, Result};
use crate::fs::{Fs, TakenUp};
use crate::stats::Stats;
use crate::write::journal::{Journal, Owed};

/// Mounts of one source on one host, each with a directory of its own for what it owes.
const SLOTS_MAX: u32 = 32;
/// Where in the state directory their directories are.
const MOUNTS: &str = "mounts";

/// Saves what mounts of this source owed when they ended, and finishes what they had begun, without mounting it. `heard` is
/// told how far it is.
pub async fn recover(site: &Site, heard: &mut (dyn FnMut(Heard<'_>) + Send)) -> Result<TakenUp, Failure> {
    let mut recovered = TakenUp::default();
    require_trusted(&site.state_dir).map_err(Failure::at(Stage::Machine))?;
    let findings = Arc::new(Findings::new(Some(&site.state_dir)));
    for slot in 0..SLOTS_MAX {
        let dir = slot_dir(site, slot);
        if !dir.exists() {
            continue;
        }
        // Where another mount has it, that one sees to it.
        let opened =
            open_slot(site, slot, "pailfs recover", Vec::new()).await.map_err(Failure::at(Stage::Machine))?;
        let Some((journal, owed)) = opened else { continue };
        if owed.is_empty() {
            continue;
        }
        let stats = Arc::new(Stats::default());
        let root = connect(site, false, &stats, &findings).await?;
        let options = options::of_site(site, Some(Arc::new(journal))).map_err(Failure::at(Stage::Machine))?;
        let fs = Fs::new(root, options, Arc::new(SystemClock), stats).map_err(Failure::at(Stage::Machine))?;
        recovered += take_up_and_tell(&fs, owed, heard).await;
        let saved = save_and_tell(&fs, stall(site), heard).await;
        heard(Heard::End { all: saved.is_ok() });
        saved.map_err(|refusal| Failure {
            error: Error::new(Kind::Local, refusal.message),
            stage: Stage::Unsaved(refusal.unsaved),
        })?;
    }
    Ok(recovered)
}

/// Takes up what is owed, with word of renames that are finished.
async fn take_up_and_tell(
    fs: &Arc<Fs>,
    owed: Vec<Owed>,
    heard: &mut (dyn FnMut(Heard<'_>) + Send),
) -> TakenUp {
    let mut taking = std::pin::pin!(fs.take_up(owed));
    loop {
        tokio::select! {
            taken = &mut taking => return taken,
            () = tokio::time::sleep(PROGRESS_EVERY) => heard(Heard::Left(&unsaved(fs))),
        }
    }
}

/// What this mount writes down, in the first directory of the source that no other mount has, and what the ones before it
/// owed, in that one or in another that nobody has.
pub(super) async fn open_journal(site: &Site, mountpoint: &Path) -> Result<(Journal, Vec<Owed>)> {
    let whose = format!("{} on {}", site.source.name(), mountpoint.display());
    for slot in 0..SLOTS_MAX {
        let others =
            (0..SLOTS_MAX).filter(|other| *other != slot).map(|other| slot_dir(site, other)).collect();
        if let Some(opened) = open_slot(site, slot, &whose, others).await? {
            return Ok(opened);
        }
    }
    let told = format!("{} is mounted {SLOTS_MAX} times with this state directory", site.source.name());
    Err(Error::new(Kind::InvalidArgument, told))
}

/// `None` where another mount has it; `whose` tells others who does. What is owed in `others` is taken over.
async fn open_slot(
    site: &Site,
    slot: u32,
    whose: &str,
    others: Vec<PathBuf>,
) -> Result<Option<(Journal, Vec<Owed>)>> {
    let dir = slot_dir(site, slot);
    let (whose, state_dir) = (whose.to_owned(), site.state_dir.clone());
    let opened = tokio::task::spawn_blocking(move || {
        make_private(&state_dir, &state_dir.join(MOUNTS))?;
        Journal::open_with(&dir, &whose, &others)
    })
    .await;
    match opened.map_err(|e| Error::new(Kind::Internal, "opening the journal broke off").with_source(e))? {
        Err(error) if error.kind() == Kind::Conflict => {
            tracing::info!(error = %error.report(), "another mount has this directory; trying the next");
            Ok(None)
        }
        opened => opened.map(Some),
    }
}

/// Where the mounts of a source write down what they owe: named for people, and told apart by source and endpoints.
fn slot_dir(site: &Site, slot: u32) -> PathBuf {
    let mut hash = Md5::new();
    hash.update(site.source.name());
    for name in site.source.sessions() {
        hash.update(format!("\0{name}"));
        let endpoint = site.sessions.get(name).and_then(|session| session.endpoint_url.as_deref());
        hash.update(format!("\0{}", endpoint.unwrap_or_default()));
    }
    let digest = hash.finalize();
    let name = site.source.name();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' };
    let readable: String = name.trim_start_matches("s3://").chars().map(plain).take(64).collect();
    let number = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    site.state_dir.join(MOUNTS).join(format!("{readable}-{number:08x}.{slot}"))
}

/// Takes up what an earlier mount owed, so that it is saved in the background.
pub(super) async fn take_up(fs: &Arc<Fs>, owed: Vec<Owed>) {
    let taken = fs.take_up(owed).await;
    if taken.files + taken.kept > 0 {
        tracing::warn!(
            files = taken.files,
            kept = taken.kept,
            "an earlier mount ended before all was in S3: its files are here, and are being saved"
        );
    }
}
