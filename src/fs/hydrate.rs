//! Attributes of what a listing shows.
//!
//! LIST does not tell them, so each costs a HEAD: only in directories that say that it is worth it, many at once, and for
//! those about to be shown. What was once told of a version is not asked again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures::{StreamExt, stream};

use super::kept::Listed;
use super::volume::Volume;
use super::{Fs, PosixMode};
use crate::s3::{Metadata, Store};
use crate::tree::keys::{DirKey, Name};
use crate::tree::lines::Line;
use crate::tree::posix::{self, FileType, Posix};
use crate::tree::{DirPlace, Entry, Facts, Found, Ino, Marked, Marker};

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

    /// Whether what is in a directory may have attributes that a listing does not tell: where nobody could say, it may.
    pub(super) fn may_have_more(&self, dir: Ino) -> bool {
        self.is_worth_asking(dir).unwrap_or_else(|| {
            let has_keys = matches!(self.tree().dir_place(dir), Ok(DirPlace::In { .. }));
            has_keys && !self.parent_is_silent(dir)
        })
    }

    /// Whether what memory knows of a child is all that there is to be known of it.
    pub(super) fn is_described(&self, parent: Ino, entry: &Entry) -> bool {
        is_told(&entry.found) || !self.may_have_more(parent)
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

    /// Whether the lines of a directory that begins to be shown are known to have attributes of their own; finds out where
    /// nobody knows, and leaves it open where S3 does not answer.
    ///
    /// `marked` is when its marker was made, if the listing has shown one, which comes first.
    pub(super) async fn finds_worth_asking(
        &self,
        dir: Ino,
        lines: &[&Line],
        marked: Option<SystemTime>,
    ) -> bool {
        let known = self.is_worth_asking(dir);
        if let Some(known) = known {
            // Another client may have begun to keep attributes there since it was found out.
            let is_news = |at| self.options.posix == PosixMode::Auto && !self.tree().knows_marker(dir, at);
            if known || !marked.is_some_and(is_news) {
                return known;
            }
        }
        let place = self.tree().dir_place(dir);
        let Ok(DirPlace::In { volume, dir: key }) = place else { return false };
        let Ok(volume) = self.volume(volume) else { return false };
        let at_top = key.prefix() == volume.prefix;
        let carries = match key.marker_key() {
            // What is below a directory that says nothing says nothing.
            Some(_) if marked.is_none() => false,
            Some(_) if known.is_none() && !at_top && self.parent_is_silent(dir) => return false,
            Some(marker) => match volume.store.head(&volume.bucket, marker, None).await {
                Ok(info) => {
                    let marker = Marker::described(&info);
                    let carries = marker.carries;
                    self.tree().mark(dir, marker);
                    carries
                }
                Err(error) if error.is_not_found() => false,
                // The next listing asks again, and whoever wants to know of a name before that.
                Err(_) => return false,
            },
            None => match self.samples_say(&volume, &key, lines).await {
                Some(say) => say,
                None => return false,
            },
        };
        self.tree().set_carries(dir, carries);
        carries
    }

    /// Whether the directory above says that nothing below it has attributes; a bucket's own, of which only some names were
    /// asked, cannot say that.
    fn parent_is_silent(&self, dir: Ino) -> bool {
        let Some((parent, _)) = self.tree().link_of(dir) else { return false };
        let place = self.tree().dir_place(parent);
        let says = matches!(place, Ok(DirPlace::In { dir, .. }) if dir.marker_key().is_some());
        says && self.is_worth_asking(parent) == Some(false)
    }

    /// Whether some of the lines have attributes of their own; `None` where those that could be asked have none.
    async fn samples_say(&self, volume: &Volume, dir: &DirKey, lines: &[&Line]) -> Option<bool> {
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
        let carries = told.iter().any(|(_, told)| match told {
            Told::Is(Found::File(facts)) => facts.posix.as_ref().is_some_and(|posix| !posix.is_empty()),
            Told::Is(Found::Dir { marker }) => marker.marker().is_some_and(|marker| marker.carries),
            Told::Gone | Told::Unknown => false,
        });
        let all_answered = told.iter().all(|(_, told)| !matches!(told, Told::Unknown));
        (carries || all_answered).then_some(carries)
    }

    /// Asks for what is not known of lines that are about to be shown. What could not be told stays as it is listed, and is
    /// shown without attributes: whoever wants them asks for that name.
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
        let told = self.heads_or_kept(&volume, &key, unknown).await;
        let mut told = told.into_iter().peekable();
        for line in lines.iter_mut() {
            if let Some((_, found)) = told.next_if(|(name, _)| *name == line.name) {
                line.found = found;
            }
        }
    }

    /// What is kept of names, and of the others what S3 says; in the order of the names.
    async fn heads_or_kept(
        &self,
        volume: &Volume,
        dir: &DirKey,
        names: Vec<(Name, Found)>,
    ) -> Vec<(Name, Found)> {
        let place = format!("{}\n{}", volume.reach, volume.bucket);
        let keys: Vec<Option<String>> = names.iter().map(|(name, _)| dir.object_key(name).ok()).collect();
        let listed = |i: usize| match &names.get(i)?.1 {
            // Of directories a listing shows no version.
            Found::File(Facts { etag: Some(etag), modified: Some(at), .. }) => {
                Some(Listed { key: keys.get(i)?.as_deref()?, etag, last_modified: *at })
            }
            _ => None,
        };
        let (places, wanted): (Vec<usize>, Vec<Listed<'_>>) =
            (0..names.len()).filter_map(|i| Some((i, listed(i)?))).unzip();
        let found = self.kept.find(&place, &wanted).await;
        let mut kept: HashMap<usize, Posix> =
            places.into_iter().zip(found).filter_map(|(i, value)| Some((i, posix_of(&value?)?))).collect();
        let asked_at = self.clock.wall();
        let unknown: Vec<(Name, Found)> = names
            .iter()
            .enumerate()
            .filter(|(i, _)| !kept.contains_key(i))
            .map(|(_, line)| line.clone())
            .collect();
        let mut told = self.heads(volume, dir, unknown).await.into_iter().peekable();
        let mut all = Vec::with_capacity(names.len());
        for (i, (name, found)) in names.iter().enumerate() {
            match (kept.remove(&i), found) {
                (Some(posix), Found::File(facts)) => {
                    let posix = Some(Arc::new(posix));
                    all.push((name.clone(), Found::File(Facts { posix, ..facts.clone() })));
                }
                _ => {
                    let Some((name, told)) = told.next_if(|(told, _)| told == name) else { continue };
                    let Told::Is(found) = told else { continue };
                    if let (Found::File(facts), Some(key)) = (&found, keys[i].as_deref()) {
                        self.keep(&place, key, facts, asked_at);
                    }
                    all.push((name, found));
                }
            }
        }
        all
    }

    /// Keeps what S3 said of a file.
    fn keep(&self, place: &str, key: &str, facts: &Facts, asked_at: SystemTime) {
        let Facts { etag: Some(etag), modified: Some(last_modified), posix: Some(posix), .. } = facts else {
            return;
        };
        // A target that is not in the body would have to be kept as well; such links are few.
        if posix.target.is_none() {
            let listed = Listed { key, etag, last_modified: *last_modified };
            self.kept.put(place, listed, asked_at, &text_of(posix));
        }
    }

    /// Asks for names; answers come in the order of the names, without those that have no key.
    async fn heads(&self, volume: &Volume, dir: &DirKey, names: Vec<(Name, Found)>) -> Vec<(Name, Told)> {
        let asked = names.into_iter().map(|(name, found)| {
            let key = match &found {
                Found::File(_) => dir.object_key(&name).ok(),
                Found::Dir { .. } => {
                    dir.child(&name).ok().and_then(|child| child.marker_key().map(str::to_owned))
                }
            };
            let (store, bucket) = (Arc::clone(&volume.store), volume.bucket.clone());
            async move {
                let told = ask(&*store, &bucket, &key?, found).await;
                Some((name, told))
            }
        });
        let asked: Vec<_> = asked.collect();
        stream::iter(asked).buffered(HEADS_IN_FLIGHT).filter_map(|told| async { told }).collect().await
    }
}

/// What S3 says of a name that was listed.
enum Told {
    Is(Found),
    Gone,
    /// It did not answer.
    Unknown,
}

/// Whether all is known of a line that there is to be known.
pub(super) fn is_told(found: &Found) -> bool {
    match found {
        Found::File(facts) => facts.posix.is_some(),
        Found::Dir { marker } => marker.is_told(),
    }
}

/// As s3fs has it in metadata, a line each.
fn text_of(posix: &Posix) -> Vec<u8> {
    let mut metadata = Metadata::new();
    posix::write(&mut metadata, posix);
    metadata.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>().into_bytes()
}

fn posix_of(text: &[u8]) -> Option<Posix> {
    let lines = std::str::from_utf8(text).ok()?.lines();
    let metadata: Option<Metadata> = lines
        .map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect();
    Some(Posix::of(&metadata?))
}

async fn ask(store: &dyn Store, bucket: &str, key: &str, found: Found) -> Told {
    match (store.head(bucket, key, None).await, found) {
        (Ok(info), Found::File(_)) => Told::Is(Found::File(Facts::from(&info))),
        (Ok(info), Found::Dir { .. }) => {
            Told::Is(Found::Dir { marker: Marked::Yes(Marker::described(&info)) })
        }
        (Err(error), Found::Dir { marker }) if error.is_not_found() => {
            let marker = match marker {
                Marked::Yes(listed) => Marked::Yes(listed.without_object()),
                Marked::No | Marked::Unseen => Marked::No,
            };
            Told::Is(Found::Dir { marker })
        }
        (Err(error), _) if error.is_not_found() => Told::Gone,
        (Err(error), _) => {
            tracing::debug!(key, error = %error.report(), "attributes of a listed name are not known yet");
            Told::Unknown
        }
    }
}
