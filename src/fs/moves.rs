//! Renaming a directory.
//!
//! S3 has no rename, and a directory is as many objects as it has. What there is to move is written down before the first
//! copy, object by object with its version, so that the next mount can tell after a kill, whatever was done by then:
//! - an object that still is that version is copied if it was not, and then deleted, as it would have been;
//! - one that is gone was moved before;
//! - what is another version by now, or was not there, is another client's, and stays where it is;
//! - what is under a new name and is no copy of ours stays too, and so does the object that was to go there.
//!
//! A copy is known by its version, which is that of the original, or was written down when it was made, or else by its bytes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;

use super::markers::put_marker;
use super::names::At;
use super::under_way::Moving as UnderWay;
use super::volume::Volume;
use super::{Fs, PosixMode, lock};
use crate::base::{ByteRange, ETag};
use crate::error::{Error, Kind, Result};
use crate::s3::{
    Again, Attributes, Condition, DeleteKey, GetRequest, ListRequest, ListedObject, limits, read_all, tell,
};
use crate::tree::keys::DirKey;
use crate::tree::listing::hash_of;
use crate::tree::{Entry, Ino};
use crate::write::journal::{BaseObject, IntentId, Journal, Moving, OwedFile, OwedRename, Place, Record};
use crate::write::{Base, Conditions, Noted, Target, copy_object, delete_objects};

/// Copies under way at once while a directory is renamed.
const COPIES_IN_FLIGHT: usize = 64;
/// Bytes of two objects that are compared at once.
const COMPARED_STEP: u64 = 8 << 20;
/// Pages in a row without a key that none before had: S3 may send a few where many keys were deleted.
const VAIN_PAGES_MAX: u32 = 1_000;
/// Keys that a message names.
const NAMED_MAX: usize = 3;

/// A rename that was written down.
struct Intent {
    journal: Arc<Journal>,
    id: IntentId,
    from: Place,
    to: Place,
}

impl Intent {
    /// A copy whose version does not tell what it is a copy of.
    fn made(&self, new_prefix: &str, copy: &Copied) {
        if copy.etag == copy.from {
            return;
        }
        let rest = copy.key.strip_prefix(new_prefix).unwrap_or(&copy.key).to_owned();
        let made = Some(copy.etag.clone());
        let objects = vec![Moving { rest, etag: copy.from.clone(), size: copy.size, made }];
        let (id, from, to) = (self.id, self.from.clone(), self.to.clone());
        if let Err(error) = self.journal.append(&Record::Renaming { id, from, to, objects, begun: true }) {
            tracing::debug!(key = copy.key, error = %error.report(), "a copy could not be written down");
        }
    }

    fn end(&self) {
        self.journal.end(Record::Renamed { id: self.id });
    }
}

/// What a rename that was finished has moved, and what not.
pub(super) struct Finished {
    from: Place,
    to: Place,
    /// The versions of an object before and after, by what is below the prefix.
    versions: HashMap<String, (ETag, ETag)>,
    /// Keys that stay under the old name.
    left: Vec<String>,
}

impl Finished {
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// Where a file is now whose name was below the old one.
    fn place(&self, place: &Place) -> Option<Place> {
        let rest = self.rest(place)?;
        if self.left.contains(&place.key) {
            return None;
        }
        Some(Place { bucket: self.to.bucket.clone(), key: format!("{}{rest}", self.to.key) })
    }

    /// The version an object has there.
    fn version(&self, place: &Place, etag: &ETag) -> Option<ETag> {
        let (before, after) = self.versions.get(self.rest(place)?)?;
        (before == etag).then(|| after.clone())
    }

    fn rest<'a>(&self, place: &'a Place) -> Option<&'a str> {
        (place.bucket == self.from.bucket).then(|| place.key.strip_prefix(&self.from.key))?
    }

    fn object(&self, object: &BaseObject) -> Option<BaseObject> {
        let etag = self.version(&object.place, &object.etag)?;
        Some(BaseObject { place: self.place(&object.place)?, etag, ..object.clone() })
    }

    /// A file that S3 is owed goes with its directory; whether it does.
    pub(super) fn take_along(&self, owed: &mut OwedFile) -> bool {
        let mut moved = false;
        if let Condition::Matches(etag) = &owed.expects
            && let Some(after) = self.version(&owed.place, etag)
        {
            owed.expects = Condition::Matches(after);
        }
        if let Some(place) = self.place(&owed.place) {
            owed.place = place;
            moved = true;
        }
        let bases = owed.base.iter_mut().chain(owed.saving.iter_mut().map(|(_, object)| object));
        for base in bases {
            if let Some(object) = self.object(base) {
                *base = object;
                moved = true;
            }
        }
        moved
    }
}

impl Fs {
    /// Gives a directory another name. Its objects are copied in parallel and deleted after the last copy, so that a
    /// failure leaves the old directory whole; where the process is killed in between, the next mount goes on.
    pub(super) async fn rename_dir(&self, from: At, to: At, ino: Ino, target: Option<&Entry>) -> Result<()> {
        // Alone below both names, so that nothing is saved at a key that is about to move.
        let progress = Arc::default();
        let (from, to, _alone) = self.claim_two((from, to), At::below, true, &progress).await?;
        tell(&progress, self.move_dir(&from, &to, ino, target)).await
    }

    async fn move_dir(&self, from: &At, to: &At, ino: Ino, target: Option<&Entry>) -> Result<()> {
        if self.tree().is_within(to.parent, ino) {
            return Err(Error::new(Kind::InvalidArgument, "a directory cannot move into itself"));
        }
        if self.options.posix != PosixMode::Off && self.tree().carries(ino) == Some(true) {
            self.carry(to.parent).await?;
        }
        let old = from.dir.child(&from.name)?;
        let new = to.dir.child(&to.name)?;
        if let Some(target) = target {
            self.require_empty(&to.volume, target.ino, &new).await?;
        }
        // What was removed is not to be copied, and nothing more is removed meanwhile.
        self.drain(&from.volume).await?;
        self.drain(&to.volume).await?;
        self.settle_copies(from.id, |of| of.starts_with(old.prefix()), None).await?;
        let under_way = self.renames.begin(
            &url(&from.volume.bucket, old.prefix()),
            &url(&to.volume.bucket, new.prefix()),
            self.clock.now(),
        );
        let objects = all_below(&from.volume, old.prefix()).await?;
        under_way.listed(objects.len());
        let _noted = from.volume.deletes.note(old.prefix(), true);
        if from.leaves_its_directory(to) {
            self.keep_dir(&from.volume, from.parent, &from.dir).await?;
        }
        let intent = self.intend_rename(from, to, &old, &new, &objects).await;
        let copied =
            copy_all(from, to, &old, &new, &objects, intent.as_ref(), (self.noted(), &under_way)).await;
        if copied.is_err()
            && let Some(intent) = &intent
        {
            intent.end();
        }
        let moved = copied?;
        if objects.is_empty() {
            put_marker(&to.volume, &new, Condition::Any).await?;
        }
        self.tree().rename((from.parent, &from.name), (to.parent, &to.name), self.clock.now())?;
        lock(&self.siblings).changed_all();
        self.retarget_open_files(ino, &moved);
        self.note_moves(ino, &[], None);
        let deleted = delete_copied(&from.volume, old.prefix(), objects).await;
        if let Some(intent) = intent {
            intent.end();
        }
        let mut tree = self.tree();
        tree.emptied(from.parent, &from.name);
        if !matches!(deleted, Ok(0)) {
            tree.forget_facts(from.parent, &from.name);
        }
        deleted.map(drop)
    }

    /// Open files below a renamed directory read from their new keys.
    fn retarget_open_files(&self, dir: Ino, moved: &[Copied]) {
        let files: Vec<_> = lock(&self.files).all().cloned().collect();
        let copies: HashMap<&str, &Copied> =
            moved.iter().map(|copied| (copied.key.as_str(), copied)).collect();
        for file in files {
            let place = {
                let tree = self.tree();
                if !tree.is_within(file.ino, dir) {
                    continue;
                }
                tree.object_place(file.ino)
            };
            let Ok((id, key)) = place else { continue };
            let Ok(volume) = self.volume(id) else { continue };
            // Where a file is open at another version, another client has replaced that one: it stays with it.
            if let Some(copied) =
                copies.get(key.as_str()).filter(|copied| file.etag().as_ref() == Some(&copied.from))
            {
                file.moved(self, id.0, &volume, &key, &copied.etag);
            }
        }
        self.tree().expire_below(dir);
    }

    /// Writes a rename down before it is begun. `None` where there is nothing to move, or no journal, or the disk does not
    /// take it: that does not keep a directory from moving, only its rename from being finished after a kill.
    async fn intend_rename(
        &self,
        from: &At,
        to: &At,
        old: &DirKey,
        new: &DirKey,
        objects: &[ListedObject],
    ) -> Option<Intent> {
        let journal = Arc::clone(self.options.journal.as_ref().filter(|_| !objects.is_empty())?);
        let place =
            |at: &At, dir: &DirKey| Place { bucket: at.volume.bucket.clone(), key: dir.prefix().to_owned() };
        let (from, to) = (place(from, old), place(to, new));
        let moving = objects.iter().map(|object| Moving {
            rest: object.key.strip_prefix(old.prefix()).unwrap_or(&object.key).to_owned(),
            etag: object.etag.clone(),
            size: object.size,
            made: None,
        });
        match journal.begin_rename(&from, &to, moving.collect()).await {
            Ok(id) => Some(Intent { journal, id, from, to }),
            Err(error) => {
                tracing::warn!(error = %error.report(), "the rename of a directory could not be written down");
                None
            }
        }
    }

    /// Finishes a rename that an earlier mount was killed in, as far as S3 knows of it; it stays written down. An error is
    /// one that may pass.
    pub(super) async fn finish_rename(&self, rename: OwedRename) -> Result<Finished> {
        let OwedRename { from, to, objects, begun, .. } = rename;
        let mut finished = Finished { from, to, versions: HashMap::new(), left: Vec::new() };
        if !begun {
            return Ok(finished);
        }
        let (old, new) = (&finished.from, &finished.to);
        let under_way =
            self.renames.begin(&url(&old.bucket, &old.key), &url(&new.bucket, &new.key), self.clock.now());
        under_way.listed(objects.len());
        let (_, source) = self.within(self.known_volume(&old.bucket, &old.key)).await?;
        let (_, target) = self.within(self.known_volume(&new.bucket, &new.key)).await?;
        let mut here = by_key(all_below(&source, &old.key).await?);
        let there = by_key(all_below(&target, &new.key).await?);
        let honoured = target.honoured().await;
        let asks = may_have_keys(&source, &target, here.values()).await?;
        let moves = objects.into_values().map(|moving| {
            let object = here.remove(&format!("{}{}", old.key, moving.rest));
            let key = format!("{}{}", new.key, moving.rest);
            let copy = there.get(&key);
            let (source, target, noted) = (&source, &target, self.noted());
            async move {
                let (object_now, key) = (object.as_ref(), key.as_str());
                let fate =
                    move_again(source, target, honoured, &moving, object_now, copy, key, (asks, noted)).await;
                (moving, object, fate)
            }
        });
        let moves: Vec<_> = moves.collect();
        let mut moves = futures::stream::iter(moves).buffer_unordered(COPIES_IN_FLIGHT);
        let (mut moved, mut left, mut failed) = (Vec::new(), Vec::new(), None);
        while let Some((moving, object, fate)) = moves.next().await {
            under_way.copied();
            match fate {
                Ok(Fate::There(etag)) => {
                    finished.versions.insert(moving.rest, (moving.etag, etag));
                    moved.extend(object);
                }
                Ok(Fate::Gone) => {}
                Ok(Fate::Stays) => left.extend(object.map(|object| object.key)),
                Err(error) if error.kind().is_transient() => failed = Some(error),
                Err(error) => {
                    let key = object.map(|object| object.key).unwrap_or_default();
                    tracing::warn!(key, error = %error.report(), "an object does not move with its directory");
                    left.push(key);
                }
            }
        }
        drop(moves);
        if let Some(error) = failed {
            return Err(error);
        }
        // Whatever came into the old directory since.
        left.extend(here.into_keys().filter(|key| !key.ends_with('/')));
        left.sort();
        finished.left = left;
        let (count, changed) = (moved.len(), delete_copied(&source, &finished.from.key, moved).await?);
        finished.tell(count, changed);
        Ok(finished)
    }
}

impl Finished {
    fn tell(&self, moved: usize, changed: usize) {
        let (from, to) = (url(&self.from.bucket, &self.from.key), url(&self.to.bucket, &self.to.key));
        tracing::info!(from, to, moved, "finished the rename of a directory that a killed mount had begun");
        if self.left.len() + changed > 0 {
            let first: Vec<&str> = self.left.iter().take(NAMED_MAX).map(String::as_str).collect();
            tracing::warn!(
                from,
                to,
                objects = self.left.len() + changed,
                ?first,
                "another client has changed the directory since its rename was begun: these stay under the old name"
            );
        }
    }
}

/// What becomes of an object of a rename that is finished.
enum Fate {
    /// It is under its new name, as this version; the old one may go.
    There(ETag),
    /// It is nowhere: another client has removed it.
    Gone,
    /// Another client has written it since, or something under its new name.
    Stays,
}

#[allow(clippy::too_many_arguments)]
async fn move_again(
    source: &Volume,
    target: &Volume,
    honoured: Conditions,
    moving: &Moving,
    object: Option<&ListedObject>,
    copy: Option<&ListedObject>,
    key: &str,
    (asks, noted): (bool, Noted<'_>),
) -> Result<Fate> {
    let is_ours = |copy: &ListedObject| {
        copy.size == moving.size && (copy.etag == moving.etag || Some(&copy.etag) == moving.made.as_ref())
    };
    match (object, copy) {
        (None, Some(copy)) if is_ours(copy) => Ok(Fate::There(copy.etag.clone())),
        (None, _) => Ok(Fate::Gone),
        (Some(object), _) if object.etag != moving.etag => Ok(Fate::Stays),
        (Some(_), Some(copy)) if is_ours(copy) => Ok(Fate::There(copy.etag.clone())),
        (Some(object), Some(copy)) if same_bytes(source, object, target, copy).await? => {
            Ok(Fate::There(copy.etag.clone()))
        }
        (Some(_), Some(_)) => Ok(Fate::Stays),
        (Some(object), None) => {
            if key.len() > limits::KEY_MAX {
                return Err(too_long(key));
            }
            let base =
                Base { bucket: source.bucket.clone(), key: object.key.clone(), etag: object.etag.clone() };
            let condition = if honoured.copy { Condition::Absent } else { Condition::Any };
            let again = said_again(source, target, object, asks).await?;
            let copy = Target {
                bucket: &target.bucket,
                key,
                condition,
                attributes: None,
                again,
                sizes: target.copy_sizes,
                noted,
            };
            match copy_object(&source.store, &target.store, &base, object.size, copy).await {
                Ok(written) => Ok(Fate::There(written.etag)),
                // Somebody was here just now.
                Err(error) if matches!(error.kind(), Kind::AlreadyExists | Kind::Stale) => Ok(Fate::Stays),
                Err(error) if error.is_not_found() => Ok(Fate::Gone),
                Err(error) => Err(error),
            }
        }
    }
}

/// Whether two objects have the same bytes: a copy that was made, and whose version nobody heard of, has.
async fn same_bytes(
    source: &Volume,
    one: &ListedObject,
    target: &Volume,
    other: &ListedObject,
) -> Result<bool> {
    if one.size != other.size {
        return Ok(false);
    }
    let mut at = 0;
    while let Some(step) = ByteRange::new(at, (at + COMPARED_STEP).min(one.size)) {
        let get = async |volume: &Volume, object: &ListedObject| {
            let request = GetRequest {
                bucket: volume.bucket.clone(),
                key: object.key.clone(),
                range: Some(step),
                if_match: Some(object.etag.clone()),
                ..GetRequest::default()
            };
            read_all(&*volume.store, request, step.len()).await.map(|(_, bytes)| bytes)
        };
        match futures::try_join!(get(source, one), get(target, other)) {
            Ok((one, other)) if one == other => at = step.end(),
            Ok(_) => return Ok(false),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Stale) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn by_key(objects: Vec<ListedObject>) -> HashMap<String, ListedObject> {
    objects.into_iter().map(|object| (object.key.clone(), object)).collect()
}

fn url(bucket: &str, key: &str) -> String {
    format!("s3://{bucket}/{key}")
}

fn too_long(key: &str) -> Error {
    Error::new(Kind::NameTooLong, format!("{key} is longer than a key may be"))
}

/// Every object of a directory, however deep, its marker included.
async fn all_below(volume: &Volume, prefix: &str) -> Result<Vec<ListedObject>> {
    let mut objects: Vec<ListedObject> = Vec::new();
    let mut continuation: Option<String> = None;
    // Every few pages have something new, or there is no end.
    let (mut seen, mut vain) = (HashSet::new(), 0);
    loop {
        let request = ListRequest {
            bucket: volume.bucket.clone(),
            prefix: prefix.to_owned(),
            continuation: continuation.clone(),
            ..ListRequest::default()
        };
        let page = volume.store.list(request).await?;
        let (known, before) = (seen.len(), objects.len());
        objects.extend(page.objects.into_iter().filter(|o| o.key.starts_with(prefix)));
        seen.extend(objects[before..].iter().map(|object| hash_of(&object.key)));
        if seen.len() == known {
            objects.truncate(before);
        }
        vain = if seen.len() > known { 0 } else { vain + 1 };
        match page.next {
            None => break,
            next if next == continuation => {
                return Err(Error::new(Kind::Corrupt, "the listing repeats its continuation token"));
            }
            Some(_) if vain > VAIN_PAGES_MAX => {
                return Err(Error::new(Kind::Corrupt, "the listing goes on without listing anything new"));
            }
            next => continuation = next,
        }
    }
    if objects.len() > seen.len() {
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        objects.dedup_by(|a, b| a.key == b.key);
    }
    Ok(objects)
}

/// An object of a directory that is being renamed.
struct Copied {
    /// The version that was copied.
    from: ETag,
    /// Where the copy is, and its version.
    key: String,
    etag: ETag,
    size: u64,
}

/// Copies every object to its new key. A failure takes back the copies made so far, as far as it can.
async fn copy_all(
    from: &At,
    to: &At,
    old: &DirKey,
    new: &DirKey,
    objects: &[ListedObject],
    intent: Option<&Intent>,
    (noted, under_way): (Noted<'_>, &UnderWay),
) -> Result<Vec<Copied>> {
    let asks = may_have_keys(&from.volume, &to.volume, objects).await?;
    let mut made = Vec::with_capacity(objects.len());
    let mut failed = None;
    {
        let mut copies = futures::stream::iter(objects.to_vec())
            .map(|object: ListedObject| copy_one(from, to, old, new, object, (asks, noted)))
            .buffer_unordered(COPIES_IN_FLIGHT);
        while let Some(copy) = copies.next().await {
            match copy {
                Ok(copy) => {
                    if let Some(intent) = intent {
                        intent.made(new.prefix(), &copy);
                    }
                    under_way.copied();
                    made.push(copy);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
    }
    let Some(error) = failed else { return Ok(made) };
    let keys = made.into_iter().map(|copied| copied.key).collect();
    if let Err(left) = delete_all(&to.volume, keys).await {
        tracing::warn!(error = %left.report(), "copies of a rename that failed were left behind");
    }
    Err(error)
}

/// Whether objects of a directory may be encrypted with keys that their copies have to be told of, which no listing
/// tells. Where a server encrypts anything it says so of every object, as Amazon's does, so one is asked about.
async fn may_have_keys(
    from: &Volume,
    to: &Volume,
    objects: impl IntoIterator<Item = &ListedObject>,
) -> Result<bool> {
    if from.bucket != to.bucket {
        return Ok(false);
    }
    if from.new_objects.encryption.is_some() {
        return Ok(true);
    }
    let Some(first) = objects.into_iter().find(|object| object.size > 0) else { return Ok(false) };
    match from.store.head(&from.bucket, &first.key, None).await {
        Ok(info) => Ok(info.attributes.encryption.is_some()),
        Err(error) if error.is_not_found() => Ok(true),
        Err(error) => Err(error),
    }
}

/// What the copy of an object has to be told again, because no copy keeps it by itself.
async fn said_again(from: &Volume, to: &Volume, object: &ListedObject, asks: bool) -> Result<Again> {
    let had = match asks {
        true => from.store.head(&from.bucket, &object.key, None).await?.attributes,
        false => Attributes { storage_class: object.storage_class.clone(), ..Attributes::default() },
    };
    Ok(to.new_objects.moved(&had, from.bucket == to.bucket))
}

async fn copy_one(
    from: &At,
    to: &At,
    old: &DirKey,
    new: &DirKey,
    object: ListedObject,
    (asks, noted): (bool, Noted<'_>),
) -> Result<Copied> {
    let rest = object.key.strip_prefix(old.prefix()).unwrap_or(&object.key);
    let key = format!("{}{rest}", new.prefix());
    if key.len() > limits::KEY_MAX {
        return Err(too_long(&key));
    }
    let again = said_again(&from.volume, &to.volume, &object, asks).await?;
    let source = Base { bucket: from.volume.bucket.clone(), key: object.key, etag: object.etag };
    let target = Target {
        bucket: &to.volume.bucket,
        key: &key,
        condition: Condition::Any,
        attributes: None,
        again,
        sizes: to.volume.copy_sizes,
        noted,
    };
    let written = copy_object(&from.volume.store, &to.volume.store, &source, object.size, target).await?;
    Ok(Copied { from: source.etag, key, etag: written.etag, size: object.size })
}

/// Deletes what was copied from its old keys; returns how many stay there because another client has changed them
/// since. The first failure is returned after all were tried.
///
/// Where the server does not look at conditions the directory is listed once more just before, which leaves a short
/// window. Empty markers go last, and unconditionally: they have no bytes to lose.
async fn delete_copied(volume: &Volume, prefix: &str, objects: Vec<ListedObject>) -> Result<usize> {
    let honoured = volume.honoured().await;
    let (markers, objects): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|object| object.key.ends_with('/') && object.size == 0);
    let mut first = Ok(());
    let mut changed = Vec::new();
    if honoured.delete || honoured.delete_many {
        let keys: Vec<DeleteKey> = objects
            .into_iter()
            .map(|object| DeleteKey { key: object.key, etag: Some(object.etag) })
            .collect();
        let answers = delete_objects(&volume.store, &volume.bucket, keys.clone(), honoured).await;
        for (entry, answer) in keys.into_iter().zip(answers) {
            match answer {
                Err(error) if error.kind() == Kind::Stale => changed.push(entry.key),
                Err(error) if first.is_ok() => first = Err(error),
                _ => {}
            }
        }
    } else {
        let now: HashMap<String, ETag> =
            all_below(volume, prefix).await?.into_iter().map(|object| (object.key, object.etag)).collect();
        let (same, others): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|object| now.get(&object.key) == Some(&object.etag));
        changed.extend(others.into_iter().map(|object| object.key).filter(|key| now.contains_key(key)));
        first = delete_all(volume, same.into_iter().map(|object| object.key).collect()).await;
    }
    let markers = delete_all(volume, markers.into_iter().map(|marker| marker.key).collect()).await;
    for key in &changed {
        tracing::warn!(
            key,
            "changed by another client during the rename of its directory; it stays there too"
        );
    }
    first.and(markers).map(|()| changed.len())
}

/// Deletes keys in batches; the first failure is returned after all were tried.
///
/// Markers go last and deepest first: a server that keeps them as directories (SeaweedFS) leaves one behind
/// whose entries were still there.
async fn delete_all(volume: &Volume, keys: Vec<String>) -> Result<()> {
    let (mut markers, others): (Vec<String>, Vec<String>) =
        keys.into_iter().partition(|key| key.ends_with('/'));
    markers.sort_by(|a, b| b.cmp(a));
    let first = delete_batches(volume, others).await;
    first.and(delete_batches(volume, markers).await)
}

async fn delete_batches(volume: &Volume, keys: Vec<String>) -> Result<()> {
    let keys = keys.into_iter().map(DeleteKey::any).collect();
    let answers = delete_objects(&volume.store, &volume.bucket, keys, Conditions::NONE).await;
    answers.into_iter().collect()
}
