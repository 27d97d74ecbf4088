//! Removing and renaming.

use std::ffi::OsStr;
use std::sync::Arc;

use super::deletes::Doomed;
use super::file::{Held, PendingAttributes, typed};
use super::lookup::no_such_name;
use super::markers::put_marker;
use super::namespace::Spot;
use super::removals::Removed;
use super::volume::Volume;
use super::{Fs, lock};
use crate::base::ETag;
use crate::error::{Error, Kind, Result};
use crate::s3::{Attributes, Condition, Metadata, ObjectInfo, is_archived};
use crate::tree::keys::{DirKey, Name};
use crate::tree::posix::{self, Posix};
use crate::tree::{Entry, Facts, Found, Ino, Marker, VolumeId, xattrs};
use crate::write::journal::{BaseObject, IntentId, Place};
use crate::write::{Base, Conditions, Target, copy_object, delete_object};

/// A name in its directory, with all that an operation on it needs.
pub(super) struct At {
    pub(super) parent: Ino,
    pub(super) name: Name,
    pub(super) id: VolumeId,
    pub(super) volume: Arc<Volume>,
    pub(super) dir: DirKey,
}

/// An object that has another key now.
struct Moved {
    /// As it was, but for what is beside its bytes: that is as it is now.
    info: ObjectInfo,
    etag: ETag,
    /// A change of that which had waited, and went along.
    saves: Option<PendingAttributes>,
    archived: bool,
    from_key: String,
    to_key: String,
}

impl At {
    /// Whether a move to `to` may leave nothing in this directory.
    pub(super) fn leaves_its_directory(&self, to: &Self) -> bool {
        self.id != to.id || !to.dir.prefix().starts_with(self.dir.prefix())
    }

    /// The key of its file.
    pub(super) fn key(&self) -> Result<Spot> {
        Ok(Spot::Key(self.dir.object_key(&self.name)?))
    }

    /// The keys below its directory.
    pub(super) fn below(&self) -> Result<Spot> {
        Ok(Spot::Below(self.dir.child(&self.name)?.prefix().to_owned()))
    }
}

/// Refuses to make a name that stands for another key already.
pub(super) fn require_new_name(dir: &DirKey, name: &Name) -> Result<()> {
    if dir.can_create(name) {
        return Ok(());
    }
    let told = "this name is an escape of another key; see docs/NAMES.md";
    Err(Error::new(Kind::InvalidArgument, told))
}

impl Fs {
    pub(super) fn at(&self, parent: Ino, name: &OsStr) -> Result<At> {
        let name = Name::parse(name)?;
        self.require_writable(parent)?;
        let (id, volume, dir) = self.dir_in_volume(parent)?;
        Ok(At { parent, name, id, volume, dir })
    }

    /// Removes a file's name. Handles on it read and write on; what they write is for them alone.
    ///
    /// The object goes before this returns, unless names are being removed in a row: see `deletes`. Where the server
    /// can tell, it is the version that this mount knows, or this fails `Stale`.
    pub async fn unlink(self: &Arc<Self>, parent: Ino, name: &OsStr) -> Result<()> {
        let begun = self.clock.now();
        let at = self.at(parent, name)?;
        let _turn = self.turns.take(parent, &at.name).await;
        let entry = self.within(self.resolve(parent, &at.name)).await?.ok_or_else(no_such_name)?;
        if entry.is_dir() {
            return Err(Error::new(Kind::IsADirectory, "is a directory"));
        }
        let (at, _shared) = self.share(at, At::key).await?;
        let key = at.dir.object_key(&at.name)?;
        let mut held = self.hold(entry.ino).await;
        if self.is_in_s3(entry.ino) {
            // It may have been saved while this waited.
            let known = match self.tree().entry(entry.ino)?.found {
                Found::File(facts) => facts.etag,
                Found::Dir { .. } => None,
            };
            // A file that took the place of another has none itself yet.
            let etag = known.or_else(|| match held.as_ref()?.file().expects() {
                Condition::Matches(etag) => Some(etag),
                _ => None,
            });
            self.settle_copies(at.id, |of| of == key, None).await?;
            // What is open has to be fetched first, and may have to stay as it is.
            if held.is_none() && at.dir.marker_key() != Some(&key) {
                let (name, dir) = (&at.name, &at.dir);
                let removed = Removed { parent, name, ino: entry.ino, dir, key: &key, etag: etag.clone() };
                if self.remove_later(at.id, &at.volume, &removed).await {
                    self.tree().changed_dir(parent, Some(self.clock.wall()));
                    return Ok(());
                }
            }
            if let Some(held) = &mut held {
                held.fetch(self).await?;
            }
            let intent = self.intend_unlink(&at.volume, &key, etag.as_ref(), held.as_ref());
            let removed = self.remove_now(&at, &key, etag.as_ref()).await;
            at.volume.deletes.ended(parent, removed.is_ok(), begun, self.clock.now());
            removed.inspect_err(|error| held.iter_mut().for_each(|held| held.failed(error)))?;
            self.orphan(entry.ino, held.take());
            drop(intent);
        } else {
            self.orphan(entry.ino, held);
        }
        {
            let mut tree = self.tree();
            tree.remove(parent, &at.name, self.clock.now());
            tree.changed_dir(parent, Some(self.clock.wall()));
        }
        lock(&self.siblings).changed(at.id, &key);
        Ok(())
    }

    /// Removes the object of a name that goes. Gone already is as good: an earlier attempt's answer was lost, or
    /// another client was first.
    async fn remove_now(&self, at: &At, key: &str, etag: Option<&ETag>) -> Result<()> {
        let _noted = at.volume.deletes.note(key, false);
        self.keep_dir_of(at, key).await?;
        match self.remove_object(at, key, etag).await {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) if error.kind() == Kind::Stale => {
                // Whoever asks again means the version that is there.
                self.tree().forget_facts(at.parent, &at.name);
                Err(error)
            }
            answer => answer,
        }
    }

    /// Sees to it that a directory stays when the object of one of its files goes.
    async fn keep_dir_of(&self, at: &At, key: &str) -> Result<()> {
        if at.dir.marker_key() == Some(key) {
            return Ok(());
        }
        self.keep_dir(&at.volume, at.parent, &at.dir).await
    }

    /// Removes a file's object, where that is `etag` or where it does not matter; its directory stays.
    async fn remove_object(&self, at: &At, key: &str, etag: Option<&ETag>) -> Result<()> {
        let honoured = if etag.is_some() { at.volume.honoured().await } else { Conditions::NONE };
        if at.dir.marker_key() == Some(key) {
            // The bytes of the directory's own marker: without them it is a marker still.
            let condition = match etag {
                Some(etag) if honoured.put => Condition::Matches(etag.clone()),
                _ => Condition::Any,
            };
            put_marker(&at.volume, &at.dir, condition).await?;
            self.tree().mark(at.parent, Marker::with(&Metadata::new(), self.clock.wall()));
            return Ok(());
        }
        delete_object(&at.volume.store, &at.volume.bucket, key, etag, honoured).await
    }

    /// Whether S3 has an object under the file's name. Certain only while the file is held.
    fn is_in_s3(&self, ino: Ino) -> bool {
        match self.open_file(ino) {
            Some(file) => file.has_object(),
            None => !self.tree().is_local(ino),
        }
    }

    /// Renames a file or directory, within a bucket or between buckets of one session.
    ///
    /// S3 has no rename: the object is copied on the server, under the version it was found at, and then
    /// deleted. For directories see `moves`.
    pub async fn rename(
        self: &Arc<Self>,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        no_replace: bool,
    ) -> Result<()> {
        let from = self.at(parent, name)?;
        let to = self.at(new_parent, new_name)?;
        if from.volume.reach != to.volume.reach {
            return Err(Error::new(
                Kind::CrossDevice,
                "the buckets belong to different sessions or endpoints",
            ));
        }
        require_new_name(&to.dir, &to.name)?;
        let _turns = self.turns.take_two((parent, &from.name), (new_parent, &to.name)).await;
        if let Ok(key) = to.dir.object_key(&to.name) {
            self.settle(&to.volume, new_parent, &key).await?;
        }
        let source = self.within(self.resolve(parent, &from.name)).await?.ok_or_else(no_such_name)?;
        let target = self.within(self.resolve(new_parent, &to.name)).await?;
        if target.as_ref().is_some_and(|target| target.ino == source.ino) {
            return Ok(());
        }
        if no_replace && target.is_some() {
            return Err(Error::new(Kind::AlreadyExists, "file exists"));
        }
        match (source.is_dir(), target.as_ref().map(Entry::is_dir)) {
            (true, Some(false)) => return Err(Error::new(Kind::NotADirectory, "the target is a file")),
            (false, Some(true)) => return Err(Error::new(Kind::IsADirectory, "the target is a directory")),
            _ => {}
        }
        if source.is_dir() {
            Box::pin(self.rename_dir(from, to, source.ino, target.as_ref())).await?;
        } else {
            Box::pin(self.rename_file(from, to, source.ino, target.as_ref(), no_replace)).await?;
        }
        self.tree().renamed_at(source.ino, parent, new_parent, self.clock.wall());
        Ok(())
    }

    async fn rename_file(
        self: &Arc<Self>,
        from: At,
        to: At,
        ino: Ino,
        target: Option<&Entry>,
        no_replace: bool,
    ) -> Result<()> {
        // What was written so far goes with the name: it is saved first, unless S3 has nothing of the file
        // yet, in which case its first commit goes straight to the new key.
        if self.is_in_s3(ino)
            && let Some(file) = self.open_file(ino)
            && !file.is_only_claimed()
            && file.only_described().is_none()
        {
            self.commit(&file).await?;
        }
        let (from, to, _shared) = self.claim_two((from, to), At::key, false, &Arc::default()).await?;
        // A first commit that was under way has ended, or not begun, when both files are held.
        let (held, mut replaced) = self.hold_two(ino, target.map(|target| target.ino)).await;
        let claim =
            held.as_ref().filter(|held| held.file().is_only_claimed()).and_then(|held| held.file().etag());
        if !self.is_in_s3(ino) || claim.is_some() {
            let from_key = from.dir.object_key(&from.name)?;
            let expects = match target.and_then(|target| self.tree().entry(target.ino).ok()) {
                Some(Entry { found: Found::File(Facts { etag: Some(etag), .. }), .. }) => {
                    Condition::Matches(etag)
                }
                // What it replaces may itself be about to take the place of an object that is still there.
                _ => replaced.as_ref().map_or(Condition::Absent, |replaced| replaced.file().expects()),
            };
            if let Some(replaced) = &mut replaced {
                replaced.fetch(self).await?;
            }
            if let Some(held) = held.as_ref().filter(|_| target.is_some()) {
                self.note_made(held.file())?;
            }
            self.tree().rename((from.parent, &from.name), (to.parent, &to.name), self.clock.now())?;
            if let Some(held) = &held {
                held.file().replaces(expects, claim.is_some());
            }
            if claim.is_some() {
                self.tree().unsaved(ino);
            }
            let over = target.map_or_else(Vec::new, |target| self.owed_of(target.ino));
            let leaves = claim.as_ref().and_then(|etag| self.to_be_deleted(&from.volume, &from_key, etag));
            let intent = leaves.as_ref().map(|leaves| leaves.id);
            self.note_moves(ino, &over, leaves);
            if let Some(target) = target {
                self.orphan(target.ino, replaced);
            }
            if let Some(etag) = claim {
                self.give_up_claim(from, from_key, etag, intent).await;
            }
            return Ok(());
        }
        let described = held.as_ref().and_then(|held| held.file().only_described());
        let moved = self.move_object((&from, &to), ino, no_replace, described, replaced.as_mut()).await?;
        if let Some(target) = target {
            self.orphan(target.ino, replaced);
        }
        self.tree().rename((from.parent, &from.name), (to.parent, &to.name), self.clock.now())?;
        {
            let mut siblings = lock(&self.siblings);
            siblings.changed(from.id, &moved.from_key);
            siblings.changed(to.id, &moved.to_key);
        }
        match (&held, &moved.saves) {
            (Some(held), Some(PendingAttributes { stamp, attributes, .. })) => {
                let (file, len) = (held.file(), moved.info.size);
                self.committed(file, to.id, &to.volume, &moved.to_key, len, *stamp, &moved.etag, attributes);
            }
            _ => self.object_moved(ino, held.as_ref(), &to, &moved),
        }
        self.note_moves(ino, &[], None);
        Ok(())
    }

    /// What is known of a file follows its object.
    fn object_moved(&self, ino: Ino, held: Option<&Held>, to: &At, moved: &Moved) {
        let facts = Facts {
            size: moved.info.size,
            etag: Some(moved.etag.clone()),
            mtime: moved.info.last_modified,
            modified: None,
            saved_at: Some(self.clock.wall()),
            archived: moved.archived,
            posix: Some(Arc::new(Posix::of(&moved.info.attributes.metadata))),
        };
        self.tree().moved(ino, facts, &moved.info.etag);
        if let Some(held) = held
            // Where it was open at another version, another client has replaced that one.
            && held.file().etag().as_ref() == Some(&moved.info.etag)
        {
            held.file().moved(self, to.id.0, &to.volume, &moved.to_key, &moved.etag);
        }
        let mut pages = lock(&self.pages);
        if pages.get(&ino) == Some(&moved.info.etag) {
            pages.put(ino, moved.etag.clone());
        }
    }

    /// The empty object that had claimed the old name of a file goes, a little later: what was written is the new name's.
    async fn give_up_claim(self: &Arc<Self>, from: At, key: String, etag: ETag, intent: Option<IntentId>) {
        let At { parent, name, id, volume, dir } = from;
        self.remove_again(id, &volume, Doomed { parent, name, dir, key, etag: Some(etag), intent }).await;
    }

    /// What is said beside an object at its new key, where that is not what it has: what waits to be changed of it, or else
    /// the time of its bytes, where times are asked for; S3 dates the copy.
    async fn said_of_moved(
        &self,
        (from, to): (&At, &At),
        ino: Ino,
        info: &ObjectInfo,
        described: Option<&PendingAttributes>,
    ) -> Result<Option<Attributes>> {
        if let Some(described) = described {
            return Ok(Some(described.attributes.clone()));
        }
        if !self.asks_for_times(to.parent) || posix::says_mtime(&info.attributes.metadata) {
            return Ok(None);
        }
        let entry = self.tree().entry(ino)?;
        let is_this = matches!(&entry.found, Found::File(facts) if facts.etag.as_ref() == Some(&info.etag));
        let mtime = if is_this { self.attr_of(&entry).mtime } else { info.last_modified };
        let mut attributes = info.attributes.clone();
        posix::write(&mut attributes.metadata, &Posix { mtime: Some(mtime), ..Posix::default() });
        if !xattrs::fits(&attributes.metadata) {
            return Ok(None);
        }
        if info.tag_count > 0 {
            attributes.tags = from.volume.store.tags(&from.volume.bucket, &info.key).await?;
        }
        Ok(Some(attributes))
    }

    /// Holds the files of a rename, in the order of their inodes.
    async fn hold_two(&self, ino: Ino, target: Option<Ino>) -> (Option<Held>, Option<Held>) {
        match target {
            None => (self.hold(ino).await, None),
            Some(target) if target < ino => {
                let replaced = self.hold(target).await;
                (self.hold(ino).await, replaced)
            }
            Some(target) => {
                let held = self.hold(ino).await;
                (held, self.hold(target).await)
            }
        }
    }

    /// Copies an object to its new key and deletes it at the old one, with what waits to be changed beside its bytes. What
    /// it replaces is as it was, unless the copy is made.
    async fn move_object(
        &self,
        (from, to): (&At, &At),
        ino: Ino,
        no_replace: bool,
        described: Option<PendingAttributes>,
        mut replaced: Option<&mut Held>,
    ) -> Result<Moved> {
        let from_key = from.dir.object_key(&from.name)?;
        let to_key = to.dir.object_key(&to.name)?;
        let store = &from.volume.store;
        let mut info = store.head(&from.volume.bucket, &from_key, None).await?;
        // Of another client's object it says nothing.
        let mut described = described.filter(|described| described.of == info.etag);
        if let Some(described) = &mut described {
            described.attributes = typed(&described.attributes, &to_key);
        }
        let said = self.said_of_moved((from, to), ino, &info, described.as_ref()).await?;
        if let Some(said) = &said {
            info.attributes.metadata.clone_from(&said.metadata);
        }
        self.carry_for(to.parent, &info.attributes.metadata).await?;
        if let Some(replaced) = &mut replaced {
            replaced.fetch(self).await?;
        }
        self.settle_copies(from.id, |of| of == from_key, None).await?;
        self.settle_copies(to.id, |of| of == to_key, None).await?;
        let _noted = from.volume.deletes.note(&from_key, false);
        if from.leaves_its_directory(to) {
            self.keep_dir_of(from, &from_key).await?;
        }
        let source =
            Base { bucket: from.volume.bucket.clone(), key: from_key.clone(), etag: info.etag.clone() };
        let honoured = to.volume.honoured().await;
        let condition = match (no_replace, honoured.copy) {
            (true, true) => Condition::Absent,
            _ => Condition::Any,
        };
        let had = said.as_ref().unwrap_or(&info.attributes);
        let again = to.volume.new_objects.moved(had, from.volume.bucket == to.volume.bucket);
        let archived = is_archived(again.storage_class.as_deref(), false);
        let target = Target {
            bucket: &to.volume.bucket,
            key: &to_key,
            condition,
            attributes: said,
            again,
            sizes: to.volume.copy_sizes,
            noted: self.noted(),
        };
        // If the process ends before this returns, what was not saved of the file that is replaced goes with it, once it is.
        let is_replaced_by = |etag: &ETag| {
            let place = Place { bucket: to.volume.bucket.clone(), key: to_key.clone() };
            Some(BaseObject { place, etag: etag.clone(), size: info.size, checksum: None })
        };
        // Where the same bytes are there already, nobody could say by them whether they are the copy: then it is written down
        // when they are.
        let shows = |replaced: &Held| replaced.file().expects() != Condition::Matches(info.etag.clone());
        if let Some(replaced) = replaced.as_ref().filter(|replaced| shows(replaced)) {
            replaced.file().replacing(is_replaced_by(&info.etag));
        }
        let written =
            copy_object(store, &to.volume.store, &source, info.size, target).await.inspect_err(|error| {
                if let Some(replaced) = &mut replaced {
                    replaced.file().replacing(None);
                    replaced.failed(error);
                }
            })?;
        if let Some(replaced) =
            replaced.as_ref().filter(|replaced| written.etag != info.etag || !shows(replaced))
        {
            replaced.file().replacing(is_replaced_by(&written.etag));
        }
        let deleted = self.remove_object(from, &from_key, Some(&source.etag)).await;
        let is_gone = match &deleted {
            // Gone already: an earlier attempt's answer was lost, or another client was first.
            Err(error) if error.is_not_found() => true,
            // Or the answer to all of them was.
            Err(error) if error.may_have_happened() => {
                let found = store.head(&from.volume.bucket, &from_key, None).await;
                found.is_err_and(|error| error.is_not_found())
            }
            answer => answer.is_ok(),
        };
        if let Err(error) = deleted
            && !is_gone
        {
            // The copy is there all the same. Handles on what it replaced read on, and what they wrote will be kept
            // beside it.
            if let Some(replaced) = replaced {
                replaced.file().replacing(None);
                replaced.keep_fetched();
            }
            lock(&self.siblings).changed(to.id, &to_key);
            self.tree().forget_facts(to.parent, &to.name);
            return Err(error);
        }
        Ok(Moved { info, etag: written.etag, saves: described, archived, from_key, to_key })
    }
}
