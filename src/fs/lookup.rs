//! Names to inodes: from memory while it is fresh, else from S3.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::future::{Either, select};
use tokio::sync::watch;

use super::markers::keys_below;
use super::{Attr, Fs, PosixMode, lock};
use crate::error::{Error, Kind, Result};
use crate::tree::keys::{DirKey, Name};
use crate::tree::{DirPlace, Entry, Facts, Found, Ino, Known, Marked, Marker, ROOT, VolumeId};

use super::volume::Volume;

/// Who an inode is found for: the kernel owns a lookup of what it is given, an operation does not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asker {
    Kernel,
    /// The kernel, of an inode that it has.
    Attributes,
    Operation,
}

impl Fs {
    /// Finds a name. The caller owns one lookup of the inode and gives it back with [`Fs::forget`].
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        match self.lookup_now(parent, name) {
            Some(answer) => answer,
            None => match self.within(self.lookup_remote(parent, name)).await {
                // What is here and not in S3 can be read, whether S3 answers or not.
                Err(error) if !error.is_not_found() => self.take_unsaved(parent, name).ok_or(error),
                answer => answer,
            },
        }
    }

    /// A file of that name that S3 lacks something of, with one more lookup of its inode.
    fn take_unsaved(&self, parent: Ino, name: &OsStr) -> Option<Attr> {
        let name = Name::parse(name).ok()?;
        let ino = self.tree().child(parent, &name)?;
        if !self.has_unsaved(ino) {
            return None;
        }
        let mut tree = self.tree();
        let entry = tree.entry(ino).ok().filter(|_| tree.child(parent, &name) == Some(ino))?;
        tree.looked_up(ino);
        drop(tree);
        Some(self.attr_of(&entry))
    }

    /// The same, if memory holds the answer.
    pub fn lookup_now(&self, parent: Ino, name: &OsStr) -> Option<Result<Attr>> {
        let name = match Name::parse(name) {
            Ok(name) => name,
            Err(error) => return Some(Err(unknown_name(error))),
        };
        match self.take_known(parent, &name) {
            Known::Is(entry) => {
                self.stats.name_hits.add(1);
                Some(Ok(self.attr_of(&entry)))
            }
            Known::Absent => {
                self.stats.name_hits.add(1);
                Some(Err(Error::new(Kind::NotFound, "no such file or directory")))
            }
            Known::Unknown => None,
        }
    }

    async fn lookup_remote(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let name = Name::parse(name)?;
        // Several who ask for one name at once are answered by one question.
        let entry = match self.lookups.join(parent, &name) {
            Turn::Ask(_asking) => self.ask_as(parent, &name, Asker::Kernel).await?,
            Turn::Wait(mut answered) => {
                // It ends, with an error, when whoever asked has been answered or has given up.
                let _ = answered.changed().await;
                match self.take_known(parent, &name) {
                    Known::Is(entry) => Some(entry),
                    Known::Absent => None,
                    // The question failed, or its answer is not believed for a moment.
                    Known::Unknown => self.ask_as(parent, &name, Asker::Kernel).await?,
                }
            }
        };
        Ok(self.attr_of(&entry.ok_or_else(no_such_name)?))
    }

    /// For how much longer a name that was found to be absent may be believed to be.
    pub fn absent_for(&self, parent: Ino, name: &OsStr) -> Duration {
        let Ok(name) = Name::parse(name) else { return self.options.negative_ttl };
        self.tree().absent_for(parent, &name, self.clock.now())
    }

    /// What is known of a name, with one more lookup of its inode.
    fn take_known(&self, parent: Ino, name: &Name) -> Known {
        let mut tree = self.tree();
        let known = tree.known(parent, name, self.clock.now());
        let Known::Is(entry) = &known else { return known };
        let may_carry = match self.options.posix {
            PosixMode::Off => false,
            PosixMode::Auto => tree.carries(parent) != Some(false),
            PosixMode::Full => true,
        };
        if may_carry {
            drop(tree);
            // It may have been renamed since, or forgotten.
            if !self.is_described(parent, entry) && !self.has_unsaved(entry.ino) {
                return Known::Unknown;
            }
            tree = self.tree();
            if tree.child(parent, name) != Some(entry.ino) {
                return Known::Unknown;
            }
        }
        tree.looked_up(entry.ino);
        known
    }

    /// The kernel gave back `count` lookups.
    pub fn forget(&self, ino: Ino, count: u64) {
        // Nobody asks for it.
        lock(&self.tree).forget(ino, count);
        self.weigh_names();
    }

    /// Attributes of an inode, at most the metadata TTL old.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr> {
        match self.getattr_now(ino) {
            Some(answer) => answer,
            None => self.within(self.refresh(ino)).await,
        }
    }

    /// The same, if memory holds the answer.
    pub fn getattr_now(&self, ino: Ino) -> Option<Result<Attr>> {
        let tree = self.tree();
        let entry = match tree.entry(ino) {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        let fresh = tree.is_fresh(ino, self.clock.now());
        let link = tree.link_of(ino);
        drop(tree);
        let is_told = || link.is_none_or(|(parent, _)| self.is_described(parent, &entry));
        ((fresh && is_told()) || self.has_unsaved(ino)).then(|| Ok(self.attr_of(&entry)))
    }

    async fn refresh(&self, ino: Ino) -> Result<Attr> {
        let link = self.tree().link_of(ino);
        let Some((parent, name)) = link else {
            let entry = self.tree().entry(ino)?;
            return Ok(self.attr_of(&entry));
        };
        match self.ask_as(parent, &name, Asker::Attributes).await? {
            Some(entry) if entry.ino == ino => Ok(self.attr_of(&entry)),
            // Handles go on with a version that another client has replaced: it is as it was.
            _ if self.tree().is_held(ino) => {
                let entry = self.tree().entry(ino)?;
                Ok(self.attr_of(&entry))
            }
            // Another kind of thing has the name now; this inode is of something that is gone.
            Some(_) => Err(Error::new(Kind::Stale, "the name stands for something else now")),
            None => Err(no_such_name()),
        }
    }

    /// What a name stands for, from memory or from S3.
    pub(super) async fn resolve(&self, parent: Ino, name: &Name) -> Result<Option<Entry>> {
        let known = self.tree().known(parent, name, self.clock.now());
        match known {
            Known::Is(entry) => Ok(Some(entry)),
            Known::Absent => Ok(None),
            Known::Unknown => self.ask(parent, name).await,
        }
    }

    /// What a name stands for in S3 now; changes made here meanwhile win.
    pub(super) async fn ask(&self, parent: Ino, name: &Name) -> Result<Option<Entry>> {
        self.ask_as(parent, name, Asker::Operation).await
    }

    async fn ask_as(&self, parent: Ino, name: &Name, asker: Asker) -> Result<Option<Entry>> {
        self.stats.name_misses.add(1);
        let (asking, asked) = (self.asking(), self.clock.now());
        let place = self.tree().dir_place(parent)?;
        if let (Asker::Kernel, DirPlace::In { volume, dir }) = (asker, &place)
            && let Some(known) = self.ask_directory(parent, *volume, dir, name).await
        {
            return Ok(known);
        }
        let found = match &place {
            DirPlace::Buckets => {
                self.ask_bucket(name).await?;
                None
            }
            DirPlace::In { volume, dir } => {
                let known = self.known_marker(parent, name);
                find(&*self.volume(*volume)?, dir, name, known).await?
            }
        };
        // What S3 lacks something of keeps its name, whatever another client made of it, until it is saved or copied.
        let child = {
            let tree = self.tree();
            let child = tree.child(parent, name).and_then(|ino| tree.entry(ino).ok());
            let is_dir = found.as_ref().map(|found| matches!(found, Found::Dir { .. }));
            child.filter(|child| is_dir != Some(child.is_dir()))
        };
        let kept = child.map(|child| child.ino).filter(|ino| self.keeps_its_name(*ino));
        let mut tree = self.tree();
        let entry = match (place, kept) {
            (DirPlace::Buckets, _) => tree.child(ROOT, name).and_then(|ino| tree.entry(ino).ok()),
            (DirPlace::In { .. }, Some(ino)) if tree.child(parent, name) == Some(ino) => tree.entry(ino).ok(),
            (DirPlace::In { .. }, _) => tree.learn(parent, name, found, asking.ticket(), asked),
        };
        if asker != Asker::Operation {
            tree.is_told(parent, name, entry.as_ref().map(|entry| entry.ino));
        }
        match (asker, &entry) {
            // Under the same lock as the answer, so that nobody drops the inode in between.
            (Asker::Kernel, Some(entry)) => tree.looked_up(entry.ino),
            (Asker::Kernel, None) => self.absences.note(parent, asked, self.options.negative_ttl),
            _ => {}
        }
        drop(tree);
        self.pass_news();
        Ok(entry)
    }

    /// What is known of a directory's marker, or that nothing is; `None` where nobody wants to know.
    fn known_marker(&self, parent: Ino, name: &Name) -> Option<Option<Marker>> {
        if self.options.posix == PosixMode::Off {
            return None;
        }
        let tree = self.tree();
        let found = tree.child(parent, name).and_then(|ino| tree.entry(ino).ok()).map(|entry| entry.found);
        Some(match found {
            Some(Found::Dir { marker: Marked::Yes(marker) }) => Some(marker),
            _ => None,
        })
    }

    /// What a name of a directory stands for, by a listing of the directory, where the names that are looked for in it
    /// mostly are not there. `None` where that does not tell.
    async fn ask_directory(
        &self,
        parent: Ino,
        volume: VolumeId,
        dir: &DirKey,
        name: &Name,
    ) -> Option<Option<Entry>> {
        let turn = self.absences.turn(parent, self.clock.now(), self.options.negative_ttl)?;
        match self.learn_names(parent, volume, dir).await {
            Ok(true) => turn.was_of_use(),
            Ok(false) => return None,
            Err(error) => {
                tracing::debug!(error = %error.report(), "listing a directory for its names failed");
                return None;
            }
        }
        let known = self.tree().known(parent, name, self.clock.now());
        let entry = match known {
            // A listing does not tell its attributes.
            Known::Is(entry) if !self.is_described(parent, &entry) => return None,
            Known::Is(entry) => Some(entry),
            Known::Absent => None,
            Known::Unknown => return None,
        };
        let mut tree = self.tree();
        if tree.child(parent, name) != entry.as_ref().map(|entry| entry.ino) {
            return None;
        }
        tree.is_told(parent, name, entry.as_ref().map(|entry| entry.ino));
        if let Some(entry) = &entry {
            tree.looked_up(entry.ino);
        }
        Some(entry)
    }

    /// Opens a bucket as a directory of the root, if there is such a bucket; one that is open is asked for again
    /// after the TTL, because another client may have removed it.
    pub(super) async fn ask_bucket(&self, name: &Name) -> Result<()> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        if !is_bucket_name(name.as_str()) {
            return Ok(());
        }
        let asked = self.clock.now();
        let opened = {
            let tree = self.tree();
            let ino = tree.child(ROOT, name);
            if ino.is_some_and(|ino| tree.is_fresh(ino, asked)) {
                return Ok(());
            }
            ino.map(|ino| Ok::<_, Error>((ino, tree.dir_place(ino)?))).transpose()?
        };
        if let Some((ino, DirPlace::In { volume, .. })) = opened {
            let volume = self.volume(volume)?;
            match volume.store.head_bucket(&volume.bucket).await {
                // Who may not ask is no less served than before.
                Ok(_) => self.tree().bucket_is_there(ino, asked),
                Err(error) if error.kind() == Kind::AccessDenied => self.tree().bucket_is_there(ino, asked),
                Err(error) if is_no_bucket(&error) => self.tree().bucket_is_gone(ino),
                Err(error) => return Err(error),
            }
            return Ok(());
        }
        match buckets.open(name.as_str()).await {
            Ok(volume) => self.add_bucket(name, volume, asked),
            Err(error) if is_no_bucket(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn add_bucket(&self, name: &Name, volume: Volume, asked: Instant) -> Result<()> {
        let dir = volume.dir_key();
        let (order, prefix) = (volume.order, volume.prefix.clone());
        let id = {
            let mut volumes = self.volumes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            let id = u32::try_from(volumes.len()).map_err(|_| super::too_many_volumes())?;
            volumes.push(std::sync::Arc::new(volume));
            VolumeId(id)
        };
        let mut tree = self.tree();
        tree.outlook().set_order(id, order, &prefix);
        let ino = tree.add_volume(name, id, dir, self.mounted_at);
        tree.bucket_is_there(ino, asked);
        Ok(())
    }

    /// Refuses changes below a read-only bucket.
    pub(super) fn require_writable(&self, ino: Ino) -> Result<()> {
        let place = {
            let tree = self.tree();
            match tree.entry(ino)?.is_dir() {
                true => tree.dir_place(ino).ok(),
                false => tree.link_of(ino).and_then(|(parent, _)| tree.dir_place(parent).ok()),
            }
        };
        match place {
            Some(DirPlace::In { volume, .. }) if self.volume(volume)?.read_only => {
                Err(Error::new(Kind::ReadOnly, "this bucket is mounted read-only"))
            }
            Some(DirPlace::Buckets) if self.buckets.as_ref().is_none_or(|b| b.read_only) => {
                Err(Error::new(Kind::ReadOnly, "the top of this mount cannot be changed"))
            }
            _ => Ok(()),
        }
    }
}

/// Names that the kernel is being answered for.
#[derive(Default)]
pub(super) struct Lookups(Mutex<HashMap<(Ino, Name), watch::Receiver<()>>>);

/// Whose turn it is to ask for a name.
enum Turn<'a> {
    Ask(LookingUp<'a>),
    /// Somebody else asks; this changes or ends when they have been answered.
    Wait(watch::Receiver<()>),
}

/// Held while a name is asked for.
struct LookingUp<'a> {
    lookups: &'a Lookups,
    of: (Ino, Name),
    _answered: watch::Sender<()>,
}

impl Lookups {
    fn join(&self, parent: Ino, name: &Name) -> Turn<'_> {
        let mut running = lock(&self.0);
        let of = (parent, name.clone());
        if let Some(answered) = running.get(&of) {
            return Turn::Wait(answered.clone());
        }
        let (sender, answered) = watch::channel(());
        running.insert(of.clone(), answered);
        Turn::Ask(LookingUp { lookups: self, of, _answered: sender })
    }
}

impl Drop for LookingUp<'_> {
    fn drop(&mut self) {
        lock(&self.lookups.0).remove(&self.of);
    }
}

/// Asks S3 for the object and for the directory of a name, side by side.
///
/// A directory wins over an object of the same name; the object is then reached as `NAME%~f`. Where `known`
/// says what is known of its marker, the marker is asked for its attributes if a listing shows a newer one.
async fn find(
    volume: &Volume,
    dir: &DirKey,
    name: &Name,
    known: Option<Option<Marker>>,
) -> Result<Option<Found>> {
    let object_key = dir.object_key(name).ok();
    let child = dir.child(name).ok();
    let object = async {
        match &object_key {
            Some(key) => volume.store.head(&volume.bucket, key, None).await.map(Some),
            None => Ok(None),
        }
    };
    let below = async {
        match &child {
            Some(child) => match first_below(volume, child).await? {
                Some(Found::Dir { marker: Marked::Yes(listed) }) => match known {
                    Some(Some(known)) if known.tells(listed.modified) => {
                        Ok(Some(Found::Dir { marker: Marked::Yes(known) }))
                    }
                    Some(_) => describe_marker(volume, child, listed).await.map(Some),
                    None => Ok(Some(Found::Dir { marker: Marked::Yes(listed) })),
                },
                found => Ok(found),
            },
            None => Ok(None),
        }
    };
    let object = std::pin::pin!(object);
    let below = std::pin::pin!(below);
    let object = match select(object, below).await {
        // Whatever the object is, the directory hides it: nobody waits for its answer.
        Either::Right((below, object)) => match below? {
            Some(found) => return Ok(Some(found)),
            None => object.await,
        },
        Either::Left((object, below)) => match below.await? {
            Some(found) => return Ok(Some(found)),
            None => object,
        },
    };
    match object {
        Ok(Some(info)) if dir.shows_object(name, info.size) => {
            if let Some(plain) = name.without_object_mark() {
                // `NAME%~f` is a name only beside a directory NAME: one path for each key.
                let beside = dir.child(&plain)?;
                if first_below(volume, &beside).await?.is_none() {
                    return Ok(None);
                }
            }
            Ok(Some(Found::File(Facts::from(&info))))
        }
        Ok(_) => Ok(None),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether anything lives in a directory, its marker included.
async fn first_below(volume: &Volume, dir: &DirKey) -> Result<Option<Found>> {
    let first = keys_below(volume, dir, 1).await?.into_iter().find(|o| o.key.starts_with(dir.prefix()));
    Ok(first.map(|first| Found::Dir {
        marker: match Some(first.key.as_str()) == dir.marker_key() {
            true => Marked::Yes(Marker::listed(first.last_modified)),
            false => Marked::No,
        },
    }))
}

/// A directory whose marker a listing has shown, with what the marker says.
async fn describe_marker(volume: &Volume, dir: &DirKey, listed: Marker) -> Result<Found> {
    let Some(key) = dir.marker_key() else { return Ok(Found::Dir { marker: Marked::Yes(listed) }) };
    let marker = match volume.store.head(&volume.bucket, key, None).await {
        Ok(info) => Marker::described(&info),
        Err(error) if error.is_not_found() => listed.without_object(),
        Err(error) => return Err(error),
    };
    Ok(Found::Dir { marker: Marked::Yes(marker) })
}

/// A name that no key has is a name that does not exist, unless it is being made.
fn unknown_name(error: Error) -> Error {
    match error.kind() {
        Kind::NameTooLong => error,
        _ => no_such_name(),
    }
}

pub(super) fn no_such_name() -> Error {
    Error::new(Kind::NotFound, "no such file or directory")
}

fn is_no_bucket(error: &Error) -> bool {
    matches!(error.kind(), Kind::NoSuchBucket | Kind::NotFound)
}

/// S3's rule for bucket names, so that no request is spent on `.Trash` and its like.
fn is_bucket_name(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && name.as_bytes()[0].is_ascii_alphanumeric()
}
