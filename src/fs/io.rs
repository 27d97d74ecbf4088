//! Open, create, read, write, truncate, flush, fsync, release.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::file::{File, Source};
use super::lookup::no_such_name;
use super::names::{At, require_new_name};
use super::siblings::{Ahead, Listed, Range, Top};
use super::volume::Volume;
use super::{Attr, Durability, Exclusive, Fs, Maker, lock};
use crate::error::{Error, Kind, Result};
use crate::read::{Cursor, Object, SMALL_FILE_MAX};
use crate::s3::{Attributes, Condition, ListRequest};
use crate::tree::keys::Name;
use crate::tree::posix::{self, FileType};
use crate::tree::{DirPlace, Entry, Facts, Found, Ino, VolumeId};
use crate::write::head_with_tags;

/// How often an open asks again because the object was replaced meanwhile.
const OPEN_ROUNDS_MAX: u32 = 8;
/// Pages of one directory that are listed again for a reader who goes by inode numbers: 8,000 names.
const PAGES_OF_ONE_MAX: usize = 8;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    pub write: bool,
    pub truncate: bool,
    pub append: bool,
    /// Fails where the name exists.
    pub exclusive: bool,
    /// Past every cache that may be behind: O_DIRECT.
    pub direct: bool,
}

/// An opened file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub fh: u64,
    /// Whether the kernel's cached pages are of this very version.
    pub keep_cache: bool,
}

pub(super) struct FileHandle {
    pub(super) file: Arc<File>,
    pub(super) write: bool,
    append: bool,
    cursor: Cursor,
}

impl Fs {
    /// Opens a file, for writing at its newest version.
    ///
    /// For reading, what a listing said less than the metadata TTL ago will do: the first read asks for that very
    /// version, and where it is gone the handle goes on with the newest one (see `File::confirm`).
    pub async fn open(self: &Arc<Self>, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        if let Some(opened) = self.open_now(ino, flags) {
            return Ok(opened);
        }
        if flags.write || flags.truncate {
            self.require_writable(ino)?;
        }
        let file = self.within(self.current_file(ino, flags.write)).await?;
        if flags.truncate {
            if let Err(error) = file.truncate(self, 0) {
                file.closed(flags.write);
                return Err(error);
            }
            self.tree().clear_mtime(ino);
        }
        Ok(self.handle_on(file, flags))
    }

    /// The same, if memory knows enough.
    pub fn open_now(self: &Arc<Self>, ino: Ino, flags: OpenFlags) -> Option<Opened> {
        if flags.write || flags.truncate || flags.direct {
            return None;
        }
        let ((id, key), top) = {
            let tree = self.tree();
            if tree.is_local(ino) || tree.entry(ino).ok()?.is_dir() {
                return None;
            }
            let (top, dir) = tree.top_of(ino)?;
            (tree.object_place(ino).ok()?, Top { ino: top, dir })
        };
        let now = self.clock.now();
        let (listed, ahead) = {
            let mut siblings = lock(&self.siblings);
            let ahead = siblings.opened(id, &key, &top, now);
            (siblings.listed(id, &key, now).cloned(), ahead)
        };
        let volume = self.volume(id).ok()?;
        self.follow(id, &volume, ahead);
        let file = self.listed_file(ino, id, &volume, &listed?)?;
        self.stats.opens_listed.add(1);
        Some(self.handle_on(file, flags))
    }

    /// A file as a listing said; `None` where something else is known of it. It counts as opened once more.
    fn listed_file(&self, ino: Ino, id: VolumeId, volume: &Volume, listed: &Listed) -> Option<Arc<File>> {
        match self.tree().entry(ino).ok()?.found {
            Found::File(facts) if facts.etag.as_ref() == Some(&listed.etag) && facts.size == listed.size => {}
            _ => return None,
        }
        let mut files = lock(&self.files);
        if let Some(open) = files.get(ino) {
            // One that stays with its version could not go on with a newer one.
            let stays = open.object_id().is_none_or(|id| open.renewable(&id).is_none());
            if open.unsaved().is_none() && (stays || open.etag().as_ref() != Some(&listed.etag)) {
                return None;
            }
            open.opened(false);
            return Some(Arc::clone(open));
        }
        let file = Arc::new(File::listed(ino, object_of(id, volume, listed), self.clock.wall()));
        file.opened(false);
        files.put(Arc::clone(&file));
        Some(file)
    }

    /// Fetches what a reader in order will open next, and asks what comes after it.
    fn follow(self: &Arc<Self>, id: VolumeId, volume: &Arc<Volume>, ahead: Ahead) {
        for listed in ahead.fetch.iter().filter(|listed| listed.size <= SMALL_FILE_MAX) {
            if !self.reader.fetch_ahead(&object_of(id, volume, listed)) {
                break;
            }
            self.stats.files_ahead.add(1);
        }
        let Some(range) = ahead.list else { return };
        let (fs, volume) = (Arc::clone(self), Arc::clone(volume));
        self.reader.runtime().spawn(async move {
            let (mut request, pages) = match range {
                Range::After(key) => {
                    let prefix = volume.prefix.clone();
                    (ListRequest { prefix, start_after: Some(key), ..ListRequest::default() }, 1)
                }
                Range::Directory(prefix) => {
                    let delimiter = Some("/".to_owned());
                    (ListRequest { prefix, delimiter, ..ListRequest::default() }, PAGES_OF_ONE_MAX)
                }
            };
            request.bucket.clone_from(&volume.bucket);
            for _ in 0..pages {
                let (moment, asked) = (lock(&fs.siblings).asking(), fs.clock.now());
                let page = match volume.store.list(request.clone()).await {
                    Ok(page) => page,
                    Err(error) => {
                        tracing::debug!(error = %error.report(), "could not list ahead of a reader");
                        return;
                    }
                };
                let is_to_come = |key: &str| request.start_after.as_deref().is_none_or(|after| key > after);
                let objects = page.objects.iter().filter(|object| is_to_come(&object.key));
                lock(&fs.siblings).learn(id, objects, request.delimiter.is_none(), moment, asked);
                if page.next.is_none() || page.next == request.continuation {
                    return;
                }
                request.continuation = page.next;
            }
        });
    }

    /// The file of an inode: the one with unsaved bytes if there is one, else the object as it is now.
    ///
    /// It counts as opened once more, so that nobody takes it for unused in between.
    pub(super) async fn current_file(&self, ino: Ino, write: bool) -> Result<Arc<File>> {
        for _ in 0..OPEN_ROUNDS_MAX {
            if let Some(file) = self.open_newest(ino, write).await? {
                return Ok(file);
            }
        }
        Err(Error::new(Kind::Conflict, "the file is being replaced all the time"))
    }

    /// One try: `None` where this mount replaced the object while S3 was being asked about it.
    async fn open_newest(&self, ino: Ino, write: bool) -> Result<Option<Arc<File>>> {
        let asked_at = {
            let files = lock(&self.files);
            if let Some(file) = files.get(ino).filter(|file| file.is_unsaved()) {
                file.opened(write);
                return Ok(Some(Arc::clone(file)));
            }
            files.get(ino).map(|file| lock(&file.state).latest().0)
        };
        let asking = self.asking();
        let (id, key, link, believed) = {
            let tree = self.tree();
            let Found::File(believed) = tree.entry(ino)?.found else {
                return Err(Error::new(Kind::IsADirectory, "is a directory"));
            };
            // The kernel has not heard yet that its name is another's, as after a lost race: it looks again, and opens that.
            let named = || Error::new(Kind::Stale, "the name stands for something else now");
            let link = tree.link_of(ino).ok_or_else(named)?;
            let (id, key) = tree.object_place(ino)?;
            (id, key, link, believed)
        };
        let volume = self.volume(id)?;
        let answer = match write {
            // A rewrite has to say all of them again.
            true => head_with_tags(&*volume.store, &volume.bucket, &key).await,
            false => volume.store.head(&volume.bucket, &key, None).await,
        };
        let found = answer.as_ref().ok().map(|info| Found::File(Facts::from(info)));
        let gone = matches!(&answer, Err(error) if error.is_not_found());
        if gone && self.keeps_its_name(ino) {
            // Written here while the question was on its way.
            return Ok(None);
        }
        let learned = {
            let mut tree = self.tree();
            let learned = (found.is_some() || gone)
                .then(|| tree.learn(link.0, &link.1, found, asking.ticket(), self.clock.now()))
                .flatten();
            // What the kernel has to know of it is said below, before the answer.
            tree.is_told(link.0, &link.1, Some(ino));
            learned
        };
        let info = match answer {
            Err(error) if error.is_not_found() => return Err(no_such_name()),
            answer => answer?,
        };
        match learned {
            Some(Entry { ino: same, found: Found::File(now), .. }) if same == ino => {
                if now.etag.as_ref() != Some(&info.etag) {
                    return Ok(None);
                }
            }
            _ => return Err(Error::new(Kind::Stale, "the name stands for something else now")),
        }
        let facts = Facts::from(&info);
        if believed.etag != facts.etag || believed.size != facts.size {
            // The kernel may have the old size, and would end every read there.
            self.news.tell(ino).await;
        }
        if facts.archived {
            return Err(Error::new(Kind::Archived, "the object is archived").on(
                "open",
                &volume.bucket,
                &key,
            ));
        }
        let object = volume.object(id.0, &key, info.etag.clone(), info.size);
        let mut files = lock(&self.files);
        match files.get(ino) {
            // Written here while the question was on its way, or open at this very version.
            Some(open) if open.is_unsaved() || open.etag() == Some(info.etag.clone()) => {
                open.opened(write);
                open.described(&volume, &info, asked_at);
                Ok(Some(Arc::clone(open)))
            }
            _ => {
                let attributes = volume.new_objects.rewritten(info.attributes);
                let file = Arc::new(File::of_object(ino, object, attributes, self.clock.wall()));
                file.opened(write);
                files.put(Arc::clone(&file));
                Ok(Some(file))
            }
        }
    }

    /// Makes a file and opens it. It is in S3 once it is closed.
    pub async fn create(
        self: &Arc<Self>,
        parent: Ino,
        name: &OsStr,
        flags: OpenFlags,
        made: Maker,
    ) -> Result<(Attr, Opened)> {
        let name = Name::parse(name)?;
        self.require_writable(parent)?;
        let (_, volume, dir) = self.dir_in_volume(parent)?;
        require_new_name(&dir, &name)?;
        let key = dir.object_key(&name)?;
        let _turn = self.turns.take(parent, &name).await;
        self.settle(&volume, parent, &key).await?;
        if let Some(entry) = self.within(self.resolve(parent, &name)).await? {
            if flags.exclusive {
                return Err(Error::new(Kind::AlreadyExists, "file exists"));
            }
            let opened = self.open(entry.ino, flags).await?;
            let entry = {
                let mut tree = self.tree();
                tree.looked_up(entry.ino);
                tree.entry(entry.ino)?
            };
            return Ok((self.attr_of(&entry), opened));
        }
        let posix = self.posix_of_new(parent, FileType::Regular, made);
        let mut attributes = volume.new_objects.file();
        if let Some(posix) = &posix {
            posix::write(&mut attributes.metadata, posix);
        }
        let now = self.clock.wall();
        let claimed = match flags.exclusive && self.options.exclusive == Exclusive::Everywhere {
            true => self.claim(parent, &name, &attributes).await?,
            false => None,
        };
        let etag = claimed.as_ref().map(|object| object.id.etag.clone());
        let facts = Facts {
            saved_at: Some(now),
            ..Facts::made_here(0, etag, now, Arc::new(posix.clone().unwrap_or_default()))
        };
        let entry = {
            let mut tree = self.tree();
            let is_local = claimed.is_none();
            let entry = tree.create(parent, &name, Found::File(facts), is_local, self.clock.now())?;
            tree.changed_dir(parent, Some(now));
            tree.looked_up(entry.ino);
            match posix {
                Some(_) => entry,
                None => tree.change_attrs(entry.ino, made.remembered())?,
            }
        };
        let file = Arc::new(match claimed {
            Some(object) => File::claimed(entry.ino, object, attributes, now),
            None => File::new(entry.ino, Condition::Absent, attributes, now),
        });
        file.opened(true);
        lock(&self.files).put(Arc::clone(&file));
        let opened = self.handle_on(file, OpenFlags { write: true, ..flags });
        Ok((self.attr_of(&entry), opened))
    }

    /// Makes an empty object under a name that nobody has, on any host, or fails `AlreadyExists`. `None` where the server
    /// cannot tell; then the first save does, as far as that can.
    async fn claim(&self, parent: Ino, name: &Name, attributes: &Attributes) -> Result<Option<Object>> {
        let (id, volume, dir) = self.dir_in_volume(parent)?;
        if !volume.honoured().await.put {
            return Ok(None);
        }
        let at = At { parent, name: name.clone(), id, volume, dir };
        let (at, _shared) = self.share(at, At::key).await?;
        let key = at.dir.object_key(name)?;
        let metadata = attributes.metadata.clone();
        let attributes = Attributes { metadata, ..at.volume.new_objects.placeholder() };
        let written = self.put_new(&at, &key, Bytes::new(), attributes).await?;
        lock(&self.siblings).changed(at.id, &key);
        Ok(Some(at.volume.object(at.id.0, &key, written.etag, 0)))
    }

    /// A handle on a file that counts as opened.
    fn handle_on(&self, file: Arc<File>, flags: OpenFlags) -> Opened {
        self.tree().pin(file.ino);
        let keep_cache = match (file.unsaved(), file.etag()) {
            // The pages were written through the kernel.
            (Some(_), _) => true,
            (None, Some(etag)) => {
                let mut pages = lock(&self.pages);
                let same = pages.get(&file.ino) == Some(&etag);
                pages.put(file.ino, etag);
                same
            }
            (None, None) => false,
        };
        if keep_cache {
            file.is_in_kernel();
        }
        file.hold(self);
        let handle =
            FileHandle { file, write: flags.write, append: flags.append, cursor: self.reader.cursor() };
        Opened { fh: self.handles.add_file(handle), keep_cache }
    }

    /// Reads up to `len` bytes; fewer only at the end of the file.
    pub async fn read(&self, fh: u64, offset: u64, len: u32) -> Result<Vec<Bytes>> {
        let handle = self.handles.file(fh)?;
        let slices =
            self.within(self.read_file(&handle.file, &handle.cursor, offset, u64::from(len))).await?;
        self.stats.bytes_read.add(slices.iter().map(|s| s.len() as u64).sum());
        Ok(slices)
    }

    /// The same, if memory holds the answer.
    pub fn read_now(&self, fh: u64, offset: u64, len: u32) -> Option<Result<Vec<Bytes>>> {
        let handle = match self.handles.file(fh) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        match handle.file.source(offset, u64::from(len)) {
            Err(error) => Some(Err(error)),
            Ok(None) => Some(Ok(Vec::new())),
            Ok(Some((range, Source::Object(object)))) => {
                let bytes = self.reader.cached(&object, &handle.cursor, range)?;
                if !handle.file.confirm(self, &object.id) {
                    return None;
                }
                self.stats.bytes_read.add(range.len());
                Some(Ok(vec![bytes]))
            }
            Ok(Some((_, Source::Mixed { .. }))) => None,
        }
    }

    /// The file that a handle writes to, and where: `None` is its end.
    pub(super) fn writable(&self, fh: u64, offset: u64) -> Result<(Arc<File>, Option<u64>)> {
        let handle = self.handles.file(fh)?;
        if !handle.write {
            return Err(Error::new(Kind::BadHandle, "not open for writing"));
        }
        Ok((Arc::clone(&handle.file), (!handle.append).then_some(offset)))
    }

    /// Cuts or grows a file. Without a handle there is no close to wait for, so it is in S3 on return.
    pub(super) async fn truncate(self: &Arc<Self>, ino: Ino, fh: Option<u64>, size: u64) -> Result<()> {
        let through = fh.and_then(|fh| self.handles.file(fh).ok()).filter(|h| h.write);
        if let Some(handle) = through {
            self.cut(&handle.file, size).await?;
            self.tree().clear_mtime(ino);
            return Ok(());
        }
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let opened = self.open(ino, flags).await?;
        let handle = self.handles.file(opened.fh)?;
        let cut = self.cut(&handle.file, size).await;
        self.tree().clear_mtime(ino);
        let saved = self.commit(&handle.file).await;
        self.release(opened.fh);
        cut.and(saved)
    }

    async fn cut(&self, file: &Arc<File>, size: u64) -> Result<()> {
        while !file.truncate(self, size)? {
            self.commit(file).await?;
        }
        Ok(())
    }

    /// close(2) of one descriptor: what was written is in S3 when this returns `Ok`, or on the local disk where that was
    /// asked for.
    pub async fn flush(&self, fh: u64) -> Result<()> {
        let handle = self.handles.file(fh)?;
        // A reader's close does not end somebody else's writing.
        if !handle.write {
            return Ok(());
        }
        match self.options.durability {
            Durability::Journal if self.options.journal.is_some() => self.acknowledge(&handle.file).await,
            // S3 has its bytes. `touch` closes a descriptor of the file before it sets the time.
            _ if handle.file.only_described().is_some() => Ok(()),
            _ => self.commit(&handle.file).await,
        }
    }

    /// fsync(2).
    pub async fn fsync(&self, fh: u64) -> Result<()> {
        let handle = self.handles.file(fh)?;
        self.commit(&handle.file).await
    }

    /// fsync(2) of a directory: the files in it that were closed are in S3, and every name removed on the mount so far is
    /// gone from there; or this tells why one of the directory is not.
    pub async fn fsyncdir(&self, dir: Ino) -> Result<()> {
        let place = self.tree().dir_place(dir);
        let Ok(DirPlace::In { volume, .. }) = place else { return Ok(()) };
        let volume = self.volume(volume)?;
        let saved = self.flush_closed_in(dir).await;
        self.drain(&volume).await?;
        self.take_failure(&volume, dir).map_or(saved, Err)
    }

    /// The last descriptor of a handle is gone. What its close could not save is tried again in the
    /// background.
    pub fn release(self: &Arc<Self>, fh: u64) {
        let Some(handle) = self.handles.remove_file(fh) else { return };
        let file = &handle.file;
        let last = file.closed(handle.write);
        file.hold(self);
        if last && file.is_dirty() {
            let after = match self.options.durability {
                Durability::Journal => self.options.upload_delay,
                Durability::Close if file.only_described().is_some() => self.options.describe_delay,
                Durability::Close => Duration::ZERO,
            };
            self.save_in_background(Arc::clone(file), after);
            return;
        }
        if last {
            self.drop_if_unused(file);
            if let Some(object) = file.object_id() {
                self.reader.retire(&object);
            }
        }
        self.tree().unpin(file.ino);
    }
}

/// The object of a listing's line.
fn object_of(id: VolumeId, volume: &Volume, listed: &Listed) -> Object {
    volume.object(id.0, &listed.key, listed.etag.clone(), listed.size)
}
