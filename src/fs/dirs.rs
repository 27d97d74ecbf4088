//! Directories: listing them, making them, removing them.

use std::ffi::OsStr;
use std::sync::Arc;

use bytes::Bytes;

use super::handles::Handle;
use super::lookup::no_such_name;
use super::volume::Volume;
use super::{Attr, Fs};
use crate::error::{Error, Kind, Result};
use crate::s3::{Attributes, Condition, ListRequest, PutRequest};
use crate::tree::keys::{DirKey, Name};
use crate::tree::listing::{self, Listing};
use crate::tree::{AttrChanges, DirPlace, Found, Ino, Known, ROOT, Ticket};
use crate::write::delete_object;

/// One line of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Where to go on after this entry; never 0.
    pub cookie: u64,
    pub name: Name,
    pub is_dir: bool,
    /// Known where attributes were asked for, or where the name has an inode already.
    pub ino: Option<Ino>,
    /// `Some` where attributes were asked for; the receiver then owns one lookup of the inode.
    pub attr: Option<Attr>,
}

pub(super) struct DirHandle {
    ino: Ino,
    /// Serialises readers of one descriptor.
    stream: tokio::sync::Mutex<Stream>,
}

/// A listing as far as it was read. Every entry keeps its place, so any cookie given out stays good.
#[derive(Default)]
struct Stream {
    entries: Vec<(Name, Found)>,
    state: StreamState,
}

#[derive(Default)]
enum StreamState {
    #[default]
    New,
    Listing {
        listing: Box<Listing>,
        next: Option<String>,
        ticket: Ticket,
    },
    Done,
}

/// Cookies 1 and 2 are `.` and `..`, which the adapter answers itself.
const FIRST_COOKIE: u64 = 3;

impl Fs {
    pub fn opendir(&self, ino: Ino) -> Result<u64> {
        let mut tree = self.tree();
        if !tree.entry(ino)?.is_dir() {
            return Err(Error::new(Kind::NotADirectory, "not a directory"));
        }
        tree.pin(ino);
        drop(tree);
        let handle = DirHandle { ino, stream: tokio::sync::Mutex::default() };
        Ok(self.handles.add(Handle::Dir(Arc::new(handle))))
    }

    /// Gives entries after `cookie` to `take` until it answers `false` or the directory ends.
    ///
    /// Cookie 0 starts afresh. With `attributes`, each entry taken carries a lookup of its inode; they come
    /// from the listing itself, without a request per entry.
    pub async fn readdir(
        &self,
        fh: u64,
        cookie: u64,
        attributes: bool,
        take: &mut (dyn FnMut(&DirEntry) -> bool + Send),
    ) -> Result<()> {
        let handle = self.handles.dir(fh)?;
        let mut stream = handle.stream.lock().await;
        if cookie == 0 {
            self.rewind(&mut stream);
        }
        let mut at = usize::try_from(cookie.saturating_sub(FIRST_COOKIE - 1)).unwrap_or(usize::MAX);
        loop {
            while at >= stream.entries.len() {
                if !self.within(self.next_page(handle.ino, &mut stream)).await? {
                    return Ok(());
                }
            }
            let (name, found) = &stream.entries[at];
            let cookie = at as u64 + FIRST_COOKIE;
            if !self.give(handle.ino, name, found, cookie, attributes, take) {
                return Ok(());
            }
            at += 1;
        }
    }

    pub fn releasedir(&self, fh: u64) {
        if let Some(Handle::Dir(handle)) = self.handles.remove(fh) {
            if let Ok(mut stream) = handle.stream.try_lock() {
                self.rewind(&mut stream);
            }
            self.tree().unpin(handle.ino);
        }
    }

    /// One entry to the receiver; `false` when it has no room.
    fn give(
        &self,
        dir: Ino,
        name: &Name,
        found: &Found,
        cookie: u64,
        attributes: bool,
        take: &mut (dyn FnMut(&DirEntry) -> bool + Send),
    ) -> bool {
        let is_dir = matches!(found, Found::Dir { .. });
        if !attributes {
            let ino = self.tree().child(dir, name);
            return take(&DirEntry { cookie, name: name.clone(), is_dir, ino, attr: None });
        }
        let known = self.tree().known(dir, name, self.clock.now());
        let entry = match known {
            Known::Is(entry) => entry,
            // Removed here since it was listed.
            Known::Absent => return true,
            // Listed longer ago than the TTL: the name is shown, its attributes are asked for when needed.
            Known::Unknown => {
                let ino = self.tree().child(dir, name);
                return take(&DirEntry { cookie, name: name.clone(), is_dir, ino, attr: None });
            }
        };
        let attr = self.attr_of(&entry);
        let given = DirEntry {
            cookie,
            name: name.clone(),
            is_dir: attr.is_dir,
            ino: Some(entry.ino),
            attr: Some(attr),
        };
        // The lookup is counted first: once the reply is out the kernel may forget at any time.
        self.tree().looked_up(entry.ino);
        let taken = take(&given);
        if !taken {
            self.tree().forget(entry.ino, 1);
        }
        taken
    }

    fn rewind(&self, stream: &mut Stream) {
        let old = std::mem::take(stream);
        if let StreamState::Listing { ticket, .. } = old.state {
            self.tree().end(ticket);
        }
    }

    /// Reads one page more; `false` at the end.
    async fn next_page(&self, dir: Ino, stream: &mut Stream) -> Result<bool> {
        let place = self.tree().dir_place(dir)?;
        let DirPlace::In { volume: volume_id, dir: dir_key } = place else {
            return self.list_buckets(stream).await;
        };
        let volume = self.volume(volume_id)?;
        if let StreamState::New = stream.state {
            let ticket = self.tree().begin();
            let listing = Box::new(Listing::new(dir_key.clone()));
            stream.state = StreamState::Listing { listing, next: None, ticket };
        }
        let StreamState::Listing { listing, next, ticket } = &mut stream.state else {
            return Ok(false);
        };
        let request = ListRequest {
            bucket: volume.bucket.clone(),
            prefix: dir_key.prefix().to_owned(),
            delimiter: Some("/".to_owned()),
            continuation: next.clone(),
            ..ListRequest::default()
        };
        let moment = super::lock(&self.siblings).asking();
        let page = volume.store.list(request).await?;
        super::lock(&self.siblings).learn(volume_id, page.objects.iter(), moment, self.clock.now());
        *next = page.next.clone();
        let entries = listing.page(page)?;
        let now = self.clock.now();
        let mut tree = self.tree();
        for entry in entries {
            let found = match entry.what {
                listing::What::File(object) => Found::File((&object).into()),
                listing::What::Dir => Found::Dir { marker: None },
            };
            tree.remember(dir, &entry.name, found.clone(), ticket, now);
            stream.entries.push((entry.name, found));
        }
        if !listing.is_done() {
            return Ok(true);
        }
        // What was made here since the listing was asked for, or exists only here.
        for (name, entry) in tree.children_newer_than(dir, ticket) {
            if !listing.has_shown(&name) {
                stream.entries.push((name, entry.found));
            }
        }
        drop(tree);
        if let StreamState::Listing { ticket, .. } = std::mem::replace(&mut stream.state, StreamState::Done) {
            self.tree().end(ticket);
        }
        Ok(true)
    }

    /// The top of a mount of several buckets: the configured ones, or every bucket of the session.
    async fn list_buckets(&self, stream: &mut Stream) -> Result<bool> {
        if !matches!(stream.state, StreamState::New) {
            return Ok(false);
        }
        let mut names: Vec<Name> = {
            let mut tree = self.tree();
            let ticket = tree.begin();
            let named = tree.children_newer_than(ROOT, &ticket);
            tree.end(ticket);
            named.into_iter().map(|(name, _)| name).collect()
        };
        if let Some(buckets) = &self.buckets {
            let listed = buckets.store.list_buckets().await?;
            names.extend(listed.iter().filter_map(|bucket| Name::parse(bucket.name.as_ref()).ok()));
        }
        names.sort();
        names.dedup();
        stream.entries.extend(names.into_iter().map(|name| (name, Found::Dir { marker: None })));
        stream.state = StreamState::Done;
        Ok(true)
    }

    /// Makes a directory: a marker object, or a bucket at the top of a mount of all buckets.
    pub async fn mkdir(&self, parent: Ino, name: &OsStr, mode: u32) -> Result<Attr> {
        let name = Name::parse(name)?;
        self.require_writable(parent)?;
        let _turn = self.lock_name(parent, &name).await;
        if self.within(self.resolve(parent, &name)).await?.is_some() {
            return Err(exists());
        }
        let place = self.tree().dir_place(parent)?;
        let DirPlace::In { volume, dir } = place else {
            return self.make_bucket(&name).await;
        };
        let volume = self.volume(volume)?;
        let child = dir.child(&name)?;
        if !dir.can_create(&name) {
            return Err(Error::new(
                Kind::InvalidArgument,
                "this name is an escape of another key; see docs/NAMES.md",
            ));
        }
        {
            let _shared = volume.namespace.read().await;
            let condition = if volume.honoured().await.put { Condition::Absent } else { Condition::Any };
            match put_marker(&volume, &child, condition).await {
                Err(error) if error.kind() == Kind::AlreadyExists => {
                    self.tree().forget_name(parent, &name);
                    return Err(exists());
                }
                answer => answer?,
            }
        }
        let entry = {
            let mut tree = self.tree();
            let found = Found::Dir { marker: Some(self.clock.wall()) };
            let entry = tree.create(parent, &name, found, false, self.clock.now())?;
            tree.looked_up(entry.ino);
            let changes = AttrChanges { mode: Some(mode & 0o7777), ..AttrChanges::default() };
            tree.change_attrs(entry.ino, changes)?
        };
        Ok(self.attr_of(&entry))
    }

    async fn make_bucket(&self, name: &Name) -> Result<Attr> {
        let Some(buckets) = &self.buckets else {
            return Err(Error::new(
                Kind::NotPermitted,
                "the buckets of this mount are set by its configuration",
            ));
        };
        buckets.store.create_bucket(name.as_str(), None).await?;
        self.tree().forget_name(ROOT, name);
        self.ask_bucket(name).await?;
        let mut tree = self.tree();
        let ino = tree.child(ROOT, name).ok_or_else(no_such_name)?;
        tree.looked_up(ino);
        let entry = tree.entry(ino)?;
        drop(tree);
        Ok(self.attr_of(&entry))
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let name = Name::parse(name)?;
        self.require_writable(parent)?;
        let (_, volume, dir) = self.dir_in_volume(parent)?;
        let _turn = self.lock_name(parent, &name).await;
        let entry = self.within(self.resolve(parent, &name)).await?.ok_or_else(no_such_name)?;
        if !entry.is_dir() {
            return Err(Error::new(Kind::NotADirectory, "not a directory"));
        }
        let child = dir.child(&name)?;
        let _shared = volume.namespace.read().await;
        let has_marker = self.require_empty(&volume, entry.ino, &child).await?;
        self.keep_parent(&volume, parent, &dir, &child).await?;
        if let (true, Some(marker)) = (has_marker, child.marker_key()) {
            delete_object(&volume.store, &volume.bucket, marker, None, volume.honoured().await).await?;
        }
        self.tree().remove(parent, &name, self.clock.now());
        Ok(())
    }

    /// Fails `NotEmpty` unless the directory holds nothing but its marker; tells whether it has one.
    pub(super) async fn require_empty(&self, volume: &Volume, ino: Ino, dir: &DirKey) -> Result<bool> {
        let unsaved_inside = {
            let mut tree = self.tree();
            let ticket = tree.begin();
            let inside = !tree.children_newer_than(ino, &ticket).is_empty();
            tree.end(ticket);
            inside
        };
        let below = keys_below(volume, dir).await?;
        let has_marker = below.iter().any(|(key, size)| Some(key.as_str()) == dir.marker_key() && *size == 0);
        if unsaved_inside || below.len() > usize::from(has_marker) {
            return Err(Error::new(Kind::NotEmpty, "the directory is not empty"));
        }
        Ok(has_marker)
    }

    /// Writes the marker of `parent` if what is about to go (`leaving`) is all that makes it a directory: a
    /// directory does not vanish because its last entry was removed.
    pub(super) async fn keep_parent(
        &self,
        volume: &Volume,
        parent: Ino,
        dir: &DirKey,
        leaving: &DirKey,
    ) -> Result<()> {
        self.keep_dir(volume, parent, dir, |key| key.starts_with(leaving.prefix())).await
    }

    pub(super) async fn keep_dir(
        &self,
        volume: &Volume,
        parent: Ino,
        dir: &DirKey,
        leaving: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let marked = matches!(self.tree().entry(parent)?.found, Found::Dir { marker: Some(_) });
        let at_top = dir.prefix() == volume.prefix;
        if marked || at_top || dir.marker_key().is_none() {
            return Ok(());
        }
        let others = keys_below(volume, dir).await?;
        if others.iter().all(|(key, _)| leaving(key)) {
            put_marker(volume, dir, Condition::Any).await?;
            self.tree().mark(parent, self.clock.wall());
        }
        Ok(())
    }
}

/// Up to two keys of a directory, its marker included: enough to tell empty, marked and full apart.
async fn keys_below(volume: &Volume, dir: &DirKey) -> Result<Vec<(String, u64)>> {
    let request = ListRequest {
        bucket: volume.bucket.clone(),
        prefix: dir.prefix().to_owned(),
        max_keys: Some(2),
        ..ListRequest::default()
    };
    let page = volume.store.list(request).await?;
    Ok(page.objects.into_iter().map(|object| (object.key, object.size)).collect())
}

/// Writes a directory's marker: an empty object whose key ends with `/`, typed as s3fs and Hadoop type it.
pub(super) async fn put_marker(volume: &Volume, dir: &DirKey, condition: Condition) -> Result<()> {
    let Some(key) = dir.marker_key() else {
        return Err(Error::new(Kind::InvalidArgument, "this directory cannot have a marker"));
    };
    let request = PutRequest {
        bucket: volume.bucket.clone(),
        key: key.to_owned(),
        body: Bytes::new(),
        attributes: Attributes {
            content_type: Some("application/x-directory".to_owned()),
            ..Attributes::default()
        },
        condition,
        checksum: None,
    };
    volume.store.put(request).await.map(drop)
}

fn exists() -> Error {
    Error::new(Kind::AlreadyExists, "file exists")
}
