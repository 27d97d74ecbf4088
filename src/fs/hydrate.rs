//! Attributes of what a listing shows.
//!
//! LIST does not tell them, so each costs a HEAD: only in directories that say that it is worth it, many at once, and for
//! those about to be shown. What was once told of a version is not asked again.

use std::sync::Arc;

use futures::{StreamExt, stream};

use super::volume::Volume;
use super::{Fs, PosixMode};
use crate::s3::Store;
use crate::tree::keys::{DirKey, Name};
use crate::tree::lines::Line;
use crate::tree::posix::FileType;
use crate::tree::{DirPlace, Entry, Facts, Found, Ino, Marker};

/// Lines whose attributes are asked for at once, ahead of the one that is shown.
pub(super) const LINES_AHEAD: usize = 128;
/// Requests for them under way at once.
const HEADS_IN_FLIGHT: usize = 64;
/// How many names of a bucket's own directory, which has no marker to say it, are asked to find out whether it is worth
/// asking the others: so many files and so many directories, spread over the first page.
const SAMPLES: usize = 4;

impl Fs {
    /// Whether the attributes of what is in a directory are worth asking for, as far as is known.
    pub(super) fn is_worth_asking(&self, dir: Ino) -> Option<bool> {
        match self.options.posix {
            PosixMode::Off => Some(false),
            PosixMode::Full => Some(true),
            PosixMode::Auto => self.tree().carries(dir),
        }
    }

    /// Whether what memory knows of a child is all that there is to be known of it.
    pub(super) fn is_described(&self, parent: Ino, entry: &Entry) -> bool {
        match &entry.found {
            Found::File(Facts { posix: None, .. }) => self.is_worth_asking(parent) != Some(true),
            Found::Dir { marker: Some(Marker { posix: None, .. }) } => {
                self.is_worth_asking(parent) != Some(true)
            }
            _ => true,
        }
    }

    /// What a line is, as far as it shows.
    pub(super) fn shown_type(&self, found: &Found) -> FileType {
        match found {
            Found::Dir { .. } => FileType::Directory,
            Found::File(_) if self.options.posix == PosixMode::Off => FileType::Regular,
            Found::File(facts) => match facts.posix.as_ref().and_then(|posix| posix.file_type) {
                None | Some(FileType::Directory) => FileType::Regular,
                Some(file_type) => file_type,
            },
        }
    }

    /// Whether the lines of a directory that begins to be shown have attributes of their own; finds out where nobody knows.
    ///
    /// `marked` says whether the listing has shown its marker, which comes first.
    pub(super) async fn finds_worth_asking(&self, dir: Ino, lines: &[&Line], marked: bool) -> bool {
        if let Some(known) = self.is_worth_asking(dir) {
            return known;
        }
        let place = self.tree().dir_place(dir);
        let Ok(DirPlace::In { volume, dir: key }) = place else { return false };
        let Ok(volume) = self.volume(volume) else { return false };
        let at_top = key.prefix() == volume.prefix;
        let carries = match key.marker_key() {
            // What is below a directory that says nothing says nothing.
            Some(_) if !marked || (!at_top && self.parent_is_silent(dir)) => false,
            Some(marker) => match volume.store.head(&volume.bucket, marker, None).await {
                Ok(info) => {
                    let marker = Marker::described(&info);
                    let carries = marker.carries;
                    self.tree().mark(dir, marker);
                    carries
                }
                Err(error) if error.is_not_found() => false,
                // The next listing asks again.
                Err(_) => return false,
            },
            None => self.samples_say(&volume, &key, lines).await,
        };
        self.tree().set_carries(dir, carries);
        carries
    }

    fn parent_is_silent(&self, dir: Ino) -> bool {
        let parent = self.tree().link_of(dir).map(|(parent, _)| parent);
        parent.is_some_and(|parent| self.is_worth_asking(parent) == Some(false))
    }

    /// Whether some of the lines have attributes of their own.
    async fn samples_say(&self, volume: &Volume, dir: &DirKey, lines: &[&Line]) -> bool {
        let (dirs, files): (Vec<&Line>, Vec<&Line>) =
            lines.iter().partition(|line| matches!(line.found, Found::Dir { .. }));
        let spread = |lines: Vec<&Line>| {
            let step = lines.len().div_ceil(SAMPLES).max(1);
            lines
                .into_iter()
                .step_by(step)
                .map(|line| (line.name.clone(), line.found.clone()))
                .collect::<Vec<_>>()
        };
        let samples = [spread(dirs), spread(files)].concat();
        let told = self.heads(volume, dir, samples).await;
        told.iter().any(|(_, found)| match found {
            Found::File(facts) => facts.posix.as_ref().is_some_and(|posix| !posix.is_empty()),
            Found::Dir { marker } => marker.as_ref().is_some_and(|marker| marker.carries),
        })
    }

    /// Asks for what is not known of lines that are about to be shown. What could not be told stays as it is listed: it is
    /// asked for again when it is wanted.
    pub(super) async fn describe_lines(&self, dir: Ino, lines: &mut [&mut Line]) {
        let place = self.tree().dir_place(dir);
        let Ok(DirPlace::In { volume, dir: key }) = place else { return };
        let Ok(volume) = self.volume(volume) else { return };
        let mut unknown = Vec::new();
        {
            let tree = self.tree();
            for line in lines.iter_mut() {
                tree.fill_in(dir, &line.name, &mut line.found);
                if !is_told(&line.found) {
                    unknown.push((line.name.clone(), line.found.clone()));
                }
            }
        }
        let told = self.heads(&volume, &key, unknown).await;
        let mut told = told.into_iter().peekable();
        for line in lines.iter_mut() {
            if let Some((_, found)) = told.next_if(|(name, _)| *name == line.name) {
                line.found = found;
            }
        }
    }

    /// Asks for names; answers come in the order of the names, without those that nothing was told of.
    async fn heads(&self, volume: &Volume, dir: &DirKey, names: Vec<(Name, Found)>) -> Vec<(Name, Found)> {
        let asked = names.into_iter().map(|(name, found)| {
            let key = match &found {
                Found::File(_) => dir.object_key(&name).ok(),
                Found::Dir { .. } => {
                    dir.child(&name).ok().and_then(|child| child.marker_key().map(str::to_owned))
                }
            };
            let (store, bucket) = (Arc::clone(&volume.store), volume.bucket.clone());
            async move {
                let found = ask(&*store, &bucket, &key?, found).await?;
                Some((name, found))
            }
        });
        let asked: Vec<_> = asked.collect();
        stream::iter(asked).buffered(HEADS_IN_FLIGHT).filter_map(|told| async { told }).collect().await
    }
}

/// Whether all is known of a line that there is to be known.
fn is_told(found: &Found) -> bool {
    match found {
        Found::File(facts) => facts.posix.is_some(),
        Found::Dir { marker } => marker.as_ref().is_some_and(|marker| marker.posix.is_some()),
    }
}

/// What S3 says of a name; `None` where it says nothing now.
async fn ask(store: &dyn Store, bucket: &str, key: &str, found: Found) -> Option<Found> {
    match (store.head(bucket, key, None).await, found) {
        (Ok(info), Found::File(_)) => Some(Found::File(Facts::from(&info))),
        (Ok(info), Found::Dir { .. }) => Some(Found::Dir { marker: Some(Marker::described(&info)) }),
        (Err(error), _) => {
            tracing::debug!(key, error = %error.report(), "attributes of a listed name are not known yet");
            None
        }
    }
}
