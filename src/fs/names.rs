//! Removing and renaming.

use std::ffi::OsStr;
use std::sync::Arc;

use futures::StreamExt;

use super::dirs::put_marker;
use super::lookup::no_such_name;
use super::volume::Volume;
use super::{Fs, lock};
use crate::base::ETag;
use crate::error::{Error, Kind, Result};
use crate::s3::{Condition, ListRequest, ListedObject, limits};
use crate::tree::keys::{DirKey, Name};
use crate::tree::{Entry, Facts, Found, Ino, VolumeId};
use crate::write::{Base, Conditions, copy_object, delete_object};

/// Copies under way at once while a directory is renamed.
const COPIES_IN_FLIGHT: usize = 64;

/// A name in its directory, with all that an operation on it needs.
struct At {
    parent: Ino,
    name: Name,
    id: VolumeId,
    volume: Arc<Volume>,
    dir: DirKey,
}

impl At {
    /// Whether a move to `to` may leave nothing in this directory.
    fn leaves_its_directory(&self, to: &Self) -> bool {
        self.id != to.id || !to.dir.prefix().starts_with(self.dir.prefix())
    }
}

impl Fs {
    fn at(&self, parent: Ino, name: &OsStr) -> Result<At> {
        let name = Name::parse(name)?;
        self.require_writable(parent)?;
        let (id, volume, dir) = self.dir_in_volume(parent)?;
        Ok(At { parent, name, id, volume, dir })
    }

    /// Removes a file's name. Handles on it read and write on; what they write is for them alone.
    pub async fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let at = self.at(parent, name)?;
        let _turn = self.lock_name(parent, &at.name).await;
        let entry = self.within(self.resolve(parent, &at.name)).await?.ok_or_else(no_such_name)?;
        if entry.is_dir() {
            return Err(Error::new(Kind::IsADirectory, "is a directory"));
        }
        let key = at.dir.object_key(&at.name)?;
        let _shared = at.volume.namespace.read().await;
        let in_s3 = self.is_in_s3(entry.ino);
        self.orphan(entry.ino).await?;
        if in_s3 {
            self.keep_dir(&at.volume, parent, &at.dir, |k| k == key).await?;
            delete_object(&at.volume.store, &at.volume.bucket, &key, None, Conditions::NONE).await?;
        }
        self.tree().remove(parent, &at.name, self.clock.now());
        lock(&self.siblings).changed(at.id, &key);
        Ok(())
    }

    /// Whether S3 has an object under the file's name.
    fn is_in_s3(&self, ino: Ino) -> bool {
        match self.open_file(ino) {
            Some(file) => file.has_object(),
            None => !self.tree().is_local(ino),
        }
    }

    /// Renames a file or directory, within a bucket or between buckets of one session.
    ///
    /// S3 has no rename: the object is copied on the server, under the version it was found at, and then
    /// deleted. A directory's objects are copied in parallel and deleted after the last copy, so a failure
    /// leaves the old directory whole.
    pub async fn rename(
        &self,
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
        if !to.dir.can_create(&to.name) {
            return Err(Error::new(
                Kind::InvalidArgument,
                "this name is an escape of another key; see docs/NAMES.md",
            ));
        }
        let _turns = self.lock_names((parent, &from.name), (new_parent, &to.name)).await;
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
            self.rename_dir(&from, &to, source.ino, target.as_ref()).await
        } else {
            self.rename_file(&from, &to, source.ino, target.as_ref(), no_replace).await
        }
    }

    async fn rename_file(
        &self,
        from: &At,
        to: &At,
        ino: Ino,
        target: Option<&Entry>,
        no_replace: bool,
    ) -> Result<()> {
        // What was written so far goes with the name: it is saved first, unless S3 has nothing of the file
        // yet, in which case its first commit goes straight to the new key.
        if self.is_in_s3(ino)
            && let Some(file) = self.open_file(ino)
        {
            self.commit(&file).await?;
        }
        let from_key = from.dir.object_key(&from.name)?;
        let to_key = to.dir.object_key(&to.name)?;
        let (first, second) = in_order(from, to);
        let _shared = first.namespace.read().await;
        let _shared_too = match second {
            Some(second) => Some(second.namespace.read().await),
            None => None,
        };
        if let Some(target) = target {
            self.orphan(target.ino).await?;
        }
        let file = self.open_file(ino);
        if !self.is_in_s3(ino) {
            let expects = match target.map(|t| &t.found) {
                Some(Found::File(Facts { etag: Some(etag), .. })) => Condition::Matches(etag.clone()),
                _ => Condition::Absent,
            };
            if let Some(file) = file {
                file.replaces(expects);
            }
            return self.tree().rename((from.parent, &from.name), (to.parent, &to.name), self.clock.now());
        }
        if from.leaves_its_directory(to) {
            self.keep_dir(&from.volume, from.parent, &from.dir, |k| k == from_key).await?;
        }
        let store = &from.volume.store;
        let info = store.head(&from.volume.bucket, &from_key, None).await?;
        let source = Base { bucket: from.volume.bucket.clone(), key: from_key.clone(), etag: info.etag };
        let honoured = to.volume.honoured().await;
        let condition = match (no_replace, honoured.copy) {
            (true, true) => Condition::Absent,
            _ => Condition::Any,
        };
        let written =
            copy_object(store, &to.volume.store, &source, info.size, &to.volume.bucket, &to_key, condition)
                .await?;
        delete_object(
            store,
            &from.volume.bucket,
            &from_key,
            Some(&source.etag),
            from.volume.honoured().await,
        )
        .await?;
        self.tree().rename((from.parent, &from.name), (to.parent, &to.name), self.clock.now())?;
        let facts = Facts {
            size: info.size,
            etag: Some(written.etag.clone()),
            mtime: info.last_modified,
            archived: false,
        };
        self.tree().moved(ino, facts);
        {
            let mut siblings = lock(&self.siblings);
            siblings.changed(from.id, &from_key);
            siblings.changed(to.id, &to_key);
        }
        if let Some(file) = file {
            file.moved(to.id.0, &to.volume, &to_key, Some(&written.etag));
        }
        let mut pages = lock(&self.pages);
        if pages.get(&ino) == Some(&source.etag) {
            pages.put(ino, written.etag);
        }
        Ok(())
    }

    async fn rename_dir(&self, from: &At, to: &At, ino: Ino, target: Option<&Entry>) -> Result<()> {
        if self.tree().is_within(to.parent, ino) {
            return Err(Error::new(Kind::InvalidArgument, "a directory cannot move into itself"));
        }
        let old = from.dir.child(&from.name)?;
        let new = to.dir.child(&to.name)?;
        if let Some(target) = target {
            self.require_empty(&to.volume, target.ino, &new).await?;
        }
        // Alone on both volumes, so that no commit goes to a key that is about to move.
        let (first, second) = in_order(from, to);
        let _alone = first.namespace.write().await;
        let _alone_too = match second {
            Some(second) => Some(second.namespace.write().await),
            None => None,
        };
        let objects = all_below(&from.volume, &old).await?;
        if from.leaves_its_directory(to) {
            self.keep_parent(&from.volume, from.parent, &from.dir, &old).await?;
        }
        let moved = copy_all(from, to, &old, &new, &objects).await?;
        if objects.is_empty() {
            put_marker(&to.volume, &new, Condition::Any).await?;
        }
        self.tree().rename((from.parent, &from.name), (to.parent, &to.name), self.clock.now())?;
        lock(&self.siblings).changed_all();
        self.retarget_open_files(ino, &moved);
        let deleted = delete_all(&from.volume, objects.into_iter().map(|object| object.key).collect()).await;
        self.tree().emptied(from.parent, &from.name);
        deleted
    }

    /// Open files below a renamed directory read from their new keys.
    fn retarget_open_files(&self, dir: Ino, moved: &[(String, ETag)]) {
        let files: Vec<_> = lock(&self.files).values().cloned().collect();
        let etags: std::collections::HashMap<&str, &ETag> =
            moved.iter().map(|(key, etag)| (key.as_str(), etag)).collect();
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
            file.moved(id.0, &volume, &key, etags.get(key.as_str()).copied());
        }
        self.tree().expire_below(dir);
    }
}

/// The volumes of a rename, each once, in the order of their places in the mount: taken so, two renames cannot
/// wait for each other.
fn in_order<'a>(from: &'a At, to: &'a At) -> (&'a Volume, Option<&'a Volume>) {
    match from.id.cmp(&to.id) {
        std::cmp::Ordering::Less => (&from.volume, Some(&to.volume)),
        std::cmp::Ordering::Equal => (&from.volume, None),
        std::cmp::Ordering::Greater => (&to.volume, Some(&from.volume)),
    }
}

/// Every object of a directory, however deep, its marker included.
async fn all_below(volume: &Volume, dir: &DirKey) -> Result<Vec<ListedObject>> {
    let mut objects: Vec<ListedObject> = Vec::new();
    let mut continuation: Option<String> = None;
    loop {
        let request = ListRequest {
            bucket: volume.bucket.clone(),
            prefix: dir.prefix().to_owned(),
            continuation: continuation.clone(),
            ..ListRequest::default()
        };
        let page = volume.store.list(request).await?;
        objects.extend(page.objects.into_iter().filter(|o| o.key.starts_with(dir.prefix())));
        match page.next {
            None => return Ok(objects),
            next if next == continuation => {
                return Err(Error::new(Kind::Corrupt, "the listing repeats its continuation token"));
            }
            next => continuation = next,
        }
    }
}

/// Copies every object to its new key; returns the new keys with their ETags. A failure takes back the copies
/// made so far, as far as it can.
async fn copy_all(
    from: &At,
    to: &At,
    old: &DirKey,
    new: &DirKey,
    objects: &[ListedObject],
) -> Result<Vec<(String, ETag)>> {
    let mut made = Vec::with_capacity(objects.len());
    let mut failed = None;
    {
        let mut copies = futures::stream::iter(objects.to_vec())
            .map(|object: ListedObject| copy_one(from, to, old, new, object))
            .buffer_unordered(COPIES_IN_FLIGHT);
        while let Some(copy) = copies.next().await {
            match copy {
                Ok(copy) => made.push(copy),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
    }
    let Some(error) = failed else { return Ok(made) };
    let keys = made.into_iter().map(|(key, _)| key).collect();
    if let Err(left) = delete_all(&to.volume, keys).await {
        tracing::warn!(error = %left.report(), "copies of a rename that failed were left behind");
    }
    Err(error)
}

async fn copy_one(
    from: &At,
    to: &At,
    old: &DirKey,
    new: &DirKey,
    object: ListedObject,
) -> Result<(String, ETag)> {
    let rest = object.key.strip_prefix(old.prefix()).unwrap_or(&object.key);
    let key = format!("{}{rest}", new.prefix());
    if key.len() > limits::KEY_MAX {
        return Err(Error::new(Kind::NameTooLong, format!("{key} is longer than a key may be")));
    }
    let source = Base { bucket: from.volume.bucket.clone(), key: object.key, etag: object.etag };
    let (store, target) = (&from.volume.store, &to.volume.store);
    let bucket = &to.volume.bucket;
    let written = copy_object(store, target, &source, object.size, bucket, &key, Condition::Any).await?;
    Ok((key, written.etag))
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
    let batches: Vec<Vec<String>> = keys.chunks(limits::KEYS_PER_REQUEST).map(<[_]>::to_vec).collect();
    let mut first = Ok(());
    let mut answers = futures::stream::iter(batches)
        .map(|batch| volume.store.delete_many(&volume.bucket, batch))
        .buffer_unordered(4);
    while let Some(answer) = answers.next().await {
        let failure = match answer {
            Ok(each) => each.into_iter().find_map(|(_, result)| result.err()),
            Err(error) => Some(error),
        };
        if let (Ok(()), Some(error)) = (&first, failure) {
            first = Err(error);
        }
    }
    first
}
