//! Whoever changes keys claims them here (`namespace` has the rules), and looks again afterwards: directories have other
//! keys when a rename above them is done, so a claim is on the keys that a name has once it is held.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Fs;
use super::file::File;
use super::names::At;
use super::namespace::{Claim, Spot};
use super::volume::Volume;
use crate::error::{Error, Kind, Result};
use crate::s3::Progress;
use crate::tree::VolumeId;

/// The key that a file is saved at, shared.
pub(super) struct Shared {
    pub(super) id: VolumeId,
    pub(super) volume: Arc<Volume>,
    pub(super) key: String,
    pub(super) claim: Claim,
}

impl Fs {
    /// Shares the keys of a name with other changes: `of` says which they are. The place that comes back is where the
    /// name is now.
    pub(super) async fn share(&self, mut at: At, of: impl Fn(&At) -> Result<Spot>) -> Result<(At, Claim)> {
        loop {
            let claim = self.claim_keys(&at.volume, vec![of(&at)?], false, &Arc::default()).await?;
            match self.moved(&at)? {
                None => return Ok((at, claim)),
                Some(moved) => at = moved,
            }
        }
    }

    /// The same of two names, or the keys of both for nobody else, while `progress` moves.
    pub(super) async fn claim_two(
        &self,
        (mut from, mut to): (At, At),
        of: impl Fn(&At) -> Result<Spot>,
        alone: bool,
        progress: &Arc<Progress>,
    ) -> Result<(At, At, (Claim, Option<Claim>))> {
        loop {
            let (one, other) = (of(&from)?, of(&to)?);
            // Of two volumes in the order of their places in the mount: so two renames cannot wait for each other.
            let (first, second) = match from.id.cmp(&to.id) {
                Ordering::Less => ((&from.volume, vec![one]), Some((&to.volume, vec![other]))),
                Ordering::Equal => ((&from.volume, vec![one, other]), None),
                Ordering::Greater => ((&to.volume, vec![other]), Some((&from.volume, vec![one]))),
            };
            let first = self.claim_keys(first.0, first.1, alone, progress).await?;
            let second = match second {
                Some((volume, spots)) => Some(self.claim_keys(volume, spots, alone, progress).await?),
                None => None,
            };
            match (self.moved(&from)?, self.moved(&to)?) {
                (None, None) => return Ok((from, to, (first, second))),
                (one, other) => {
                    from = one.unwrap_or(from);
                    to = other.unwrap_or(to);
                }
            }
        }
    }

    /// Shares the key that a file is saved at.
    pub(super) async fn share_file(&self, file: &File) -> Result<Shared> {
        loop {
            let (id, key) = self.tree().saving_place(file.ino)?;
            let volume = self.volume(id)?;
            let claim = self.claim_keys(&volume, vec![Spot::Key(key.clone())], false, &file.progress).await?;
            let shared = Shared { id, volume, key, claim };
            if self.is_at(file, &shared)? {
                return Ok(shared);
            }
        }
    }

    /// Whether that still is where a file is saved. Its own rename shares the key as well, so that is certain only while
    /// the file is held.
    pub(super) fn is_at(&self, file: &File, shared: &Shared) -> Result<bool> {
        let (id, key) = self.tree().saving_place(file.ino)?;
        Ok((id, &key) == (shared.id, &shared.key))
    }

    async fn claim_keys(
        &self,
        volume: &Volume,
        spots: Vec<Spot>,
        alone: bool,
        progress: &Arc<Progress>,
    ) -> Result<Claim> {
        let silence = self.options.timeout;
        volume.namespace.claim(spots, alone, progress, silence).await.ok_or_else(|| {
            let seconds = silence.as_secs_f32();
            let why = format!("a directory is being renamed, and nothing of it moved for {seconds} s");
            Error::new(Kind::TimedOut, why)
        })
    }

    /// Where a name is, if its directory is not where it was.
    fn moved(&self, at: &At) -> Result<Option<At>> {
        let (id, volume, dir) = self.dir_in_volume(at.parent)?;
        if (id, &dir) == (at.id, &at.dir) {
            return Ok(None);
        }
        Ok(Some(At { parent: at.parent, name: at.name.clone(), id, volume, dir }))
    }
}
