//! Directories: listing them, making them, removing them.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use super::hydrate::{LINES_AHEAD, is_told};
use super::lookup::no_such_name;
use super::markers::{keys_below, marker_attributes, no_marker, put_marker};
use super::names::{At, require_new_name};
use super::pages::{Asker, Page, Pages, Sharding, shown_for};
use super::siblings::Moment;
use super::volume::Volume;
use super::weight::Counted;
use super::{Attr, Fs, Maker, lock};
use crate::error::{Error, Kind, Result};
use crate::s3::{Condition, ListPage, ListRequest, ListedObject, Metadata};
use crate::tree::keys::{DirKey, Name, Place};
use crate::tree::lines::{Line, Lines, Mark, Position};
use crate::tree::listing::{self, Listing, Merged, Order, Ready};
use crate::tree::posix::{self, FileType};
use crate::tree::walk::DIRS_MAX;
use crate::tree::{DirPlace, Facts, Found, Ino, Known, Listed, Marked, Marker, ROOT, Ticket, VolumeId};
use crate::write::delete_object;

/// One line of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Where to go on after this entry; more than 2, so that a caller has 1 and 2 for `.` and `..`.
    pub cookie: u64,
    pub name: Name,
    pub file_type: FileType,
    /// Known where attributes were asked for, or where the name has an inode already.
    pub ino: Option<Ino>,
    /// `Some` where attributes were asked for and are known; the receiver then owns one lookup of the inode.
    pub attr: Option<Attr>,
}

pub(super) struct DirHandle {
    ino: Ino,
    /// Serialises readers of one descriptor.
    stream: tokio::sync::Mutex<Stream>,
    window: Counted,
}

/// A listing as far as it was read. Every entry keeps its place, so any cookie given out stays good.
#[derive(Default)]
struct Stream {
    lines: Lines,
    reading: Option<Reading>,
    /// Where the reading begins.
    from: Mark,
    /// No line is to come.
    complete: bool,
    /// Somebody has taken a line since the beginning.
    used: bool,
    /// Attributes were asked for of the lines before this one.
    described: u64,
}

/// A directory being listed.
struct Reading {
    volume: Arc<Volume>,
    id: VolumeId,
    dir: DirKey,
    listing: Listing,
    pages: Pages,
    /// Kept after the last page too: what changes here until the reader is done overrules what was listed.
    ticket: Ticket,
    /// The same for files that are opened by the listing's word.
    moment: Moment,
    /// How far names that are not in the listing have been shown.
    reached: Option<Place>,
    /// When the first page was asked for.
    begun: Option<Instant>,
    /// Hashes of the names so far, for a directory that is listed from its beginning and is not too large.
    hashes: Option<Vec<u64>>,
    /// Entries shown so far.
    entries: usize,
    /// Some of the directories among them, and how many entries came before the first.
    dirs: Sample,
    before: usize,
}

/// Some of a directory's subdirectories, evenly spread, the first among them.
#[derive(Default)]
struct Sample {
    kept: Vec<DirKey>,
    /// Of so many, less one, each is kept.
    passed_over: usize,
    seen: usize,
}

impl Sample {
    fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn see(&mut self, dir: impl FnOnce() -> Option<DirKey>) {
        let is_kept = self.seen.is_multiple_of(self.passed_over + 1);
        self.seen += 1;
        if !is_kept {
            return;
        }
        if self.kept.len() >= DIRS_MAX {
            // Every second one goes; this one is the next that stays.
            let mut stays = [true, false].into_iter().cycle();
            self.kept.retain(|_| stays.next().unwrap_or(true));
            self.passed_over = 2 * self.passed_over + 1;
        }
        self.kept.extend(dir());
    }
}

/// Lines that have to be left for a LIST to be cheaper than asking for each.
const LIST_AGAIN_MIN: u64 = 2;
/// Names of a directory that are kept to tell which others are absent.
const COMPLETE_NAMES_MAX: usize = 100_000;

impl Fs {
    pub fn opendir(&self, ino: Ino) -> Result<u64> {
        let mut tree = self.tree();
        if !tree.entry(ino)?.is_dir() {
            return Err(Error::new(Kind::NotADirectory, "not a directory"));
        }
        tree.pin(ino);
        drop(tree);
        let handle = DirHandle { ino, stream: tokio::sync::Mutex::default(), window: self.weight.window() };
        Ok(self.handles.add_dir(handle))
    }

    /// Gives entries after `cookie` to `take` until it answers `false` or the directory ends.
    ///
    /// Cookie 0 starts afresh; 1 and 2 are never given out, so that a caller has them for `.` and `..`. With
    /// `attributes`, each entry taken carries a lookup of its inode; they come from the listing itself, without
    /// a request per entry.
    pub async fn readdir(
        self: &Arc<Self>,
        fh: u64,
        cookie: u64,
        attributes: bool,
        take: &mut (dyn FnMut(&DirEntry) -> bool + Send),
    ) -> Result<()> {
        let handle = self.handles.dir(fh)?;
        let mut stream = handle.stream.lock().await;
        let answer = self.read_on(handle.ino, &mut stream, cookie, attributes, take).await;
        handle.window.set(stream.lines.len());
        self.weigh_names();
        answer
    }

    async fn read_on(
        self: &Arc<Self>,
        ino: Ino,
        stream: &mut Stream,
        cookie: u64,
        attributes: bool,
        take: &mut (dyn FnMut(&DirEntry) -> bool + Send),
    ) -> Result<()> {
        // Whoever has seen nothing yet need not have it listed twice.
        if cookie == 0 && stream.used {
            self.rewind(stream);
        }
        let (mut after, mut listed_again) = (cookie, false);
        'place: loop {
            let mut at = match stream.lines.position(after, stream.complete) {
                Position::At(number) => number,
                Position::Ahead => {
                    self.within(self.next_page(ino, stream)).await?;
                    continue;
                }
                Position::Before(mark) => {
                    self.restart(stream, mark);
                    continue;
                }
            };
            loop {
                let Some((line, cookie)) = stream.lines.get(at) else {
                    if stream.complete {
                        return Ok(());
                    }
                    self.within(self.next_page(ino, stream)).await?;
                    continue;
                };
                if attributes && !listed_again && self.is_worth_listing_again(stream, line, at) {
                    listed_again = true;
                    let mark = stream.lines.mark_before(at);
                    self.restart(stream, mark);
                    continue 'place;
                }
                if at >= stream.described {
                    let reading = stream.reading.as_ref();
                    let marker = reading.and_then(|reading| reading.listing.marker());
                    let marked = marker.map(|marker| marker.last_modified);
                    let ahead = self.describe_ahead(ino, &mut stream.lines, at, (attributes, marked));
                    stream.described = ahead.await.max(at + 1);
                    continue;
                }
                let ticket = stream.reading.as_ref().map(|reading| &reading.ticket);
                if !self.give(ino, line, cookie, ticket, attributes, take) {
                    return Ok(());
                }
                after = cookie;
                at += 1;
                stream.used = true;
                stream.lines.trim(at);
            }
        }
    }

    /// Asks for attributes of the lines from a number on that are here, if that is worth it. Returns the number behind them.
    async fn describe_ahead(
        &self,
        ino: Ino,
        lines: &mut Lines,
        at: u64,
        (attributes, marked): (bool, Option<SystemTime>),
    ) -> u64 {
        let worth = match attributes {
            true => {
                let lines = lines.ahead(at, usize::MAX);
                let lines: Vec<&Line> = lines.iter().map(|line| &**line).collect();
                self.finds_worth_asking(ino, &lines, marked).await
            }
            false => self.is_worth_asking(ino) == Some(true),
        };
        if !worth {
            return lines.end();
        }
        let mut ahead = lines.ahead(at, LINES_AHEAD);
        self.describe_lines(ino, &mut ahead).await;
        at + ahead.len() as u64
    }

    /// Whether a line and those after it are too old to be believed: then one LIST is asked again, rather than a HEAD
    /// and a LIST for each of them.
    fn is_worth_listing_again(&self, stream: &Stream, line: &Line, at: u64) -> bool {
        let ttl = self.options.ttl;
        let many = !stream.complete || stream.lines.end() - at > LIST_AGAIN_MIN;
        many && stream.reading.is_some() && !ttl.is_zero() && self.clock.now() >= line.asked + shown_for(ttl)
    }

    pub fn releasedir(&self, fh: u64) {
        if let Some(handle) = self.handles.remove_dir(fh) {
            if let Ok(mut stream) = handle.stream.try_lock() {
                self.rewind(&mut stream);
            }
            self.tree().unpin(handle.ino);
            drop(handle);
            self.weigh_names();
        }
    }

    /// One entry to the receiver; `false` when it has no room.
    fn give(
        &self,
        dir: Ino,
        line: &Line,
        cookie: u64,
        ticket: Option<&Ticket>,
        attributes: bool,
        take: &mut (dyn FnMut(&DirEntry) -> bool + Send),
    ) -> bool {
        let (name, now) = (&line.name, self.clock.now());
        let without = |ino| DirEntry {
            cookie,
            name: name.clone(),
            file_type: self.shown_type(&line.found),
            ino,
            attr: None,
        };
        let may_have_more = attributes && self.may_have_more(dir);
        let mut tree = self.tree();
        if !attributes {
            if ticket.is_some_and(|ticket| tree.is_gone(dir, name, ticket)) {
                return true;
            }
            let ino = tree.child(dir, name);
            drop(tree);
            return take(&without(ino));
        }
        let listed = match ticket {
            Some(ticket) => tree.take_listed(dir, name, &line.found, (ticket, line.asked), now),
            None => match tree.known(dir, name, now) {
                Known::Is(entry) => Listed::Is(entry),
                Known::Absent => Listed::Gone,
                Known::Unknown => Listed::Old,
            },
        };
        let entry = match listed {
            Listed::Is(entry) => entry,
            Listed::Gone => return true,
            // The name is shown; its attributes are asked for when they are needed.
            Listed::Old => {
                let ino = tree.child(dir, name);
                drop(tree);
                return take(&without(ino));
            }
        };
        let entry = match (&entry.found, &line.found) {
            (Found::File(Facts { posix: None, .. }), Found::File(told @ Facts { posix: Some(_), .. })) => {
                tree.describe(entry.ino, told);
                tree.entry(entry.ino).unwrap_or(entry)
            }
            (Found::Dir { .. }, Found::Dir { marker }) if marker.is_told() => {
                match marker {
                    Marked::Yes(marker) => tree.mark(entry.ino, marker.clone()),
                    Marked::No | Marked::Unseen => tree.has_no_marker(entry.ino),
                }
                tree.entry(entry.ino).unwrap_or(entry)
            }
            _ => entry,
        };
        // S3 did not answer: what a listing says is not what is stored beside it.
        if may_have_more && !is_told(&entry.found) {
            drop(tree);
            return take(&without(Some(entry.ino)));
        }
        // The lookup is counted first: once the reply is out the kernel may forget at any time.
        tree.looked_up(entry.ino);
        drop(tree);
        let attr = self.attr_of(&entry);
        let given = DirEntry { file_type: attr.file_type, attr: Some(attr), ..without(Some(entry.ino)) };
        let taken = take(&given);
        if !taken {
            self.tree().forget(entry.ino, 1);
        }
        taken
    }

    fn rewind(&self, stream: &mut Stream) {
        let old = std::mem::take(stream);
        if let Some(reading) = old.reading {
            self.tree().end(reading.ticket);
        }
    }

    /// Lists again from a mark.
    fn restart(&self, stream: &mut Stream, mark: Mark) {
        if let Some(reading) = stream.reading.take() {
            self.tree().end(reading.ticket);
        }
        stream.lines.restart(&mark);
        stream.described = 0;
        stream.from = mark;
        stream.complete = false;
    }

    /// Takes one page more.
    async fn next_page(self: &Arc<Self>, ino: Ino, stream: &mut Stream) -> Result<()> {
        if stream.reading.is_none() {
            let place = self.tree().dir_place(ino)?;
            let DirPlace::In { volume, dir } = place else {
                return self.list_buckets(stream).await;
            };
            stream.reading = Some(self.begin_reading(ino, volume, dir, &stream.from).await?);
        }
        let Some(reading) = &mut stream.reading else { return Ok(()) };
        let ended = || Err(Error::new(Kind::Internal, "a listing ended without its last page"));
        let page = match reading.pages.next().await.unwrap_or_else(ended) {
            Ok(page) => page,
            Err(error) => {
                let mark = stream.lines.last_mark();
                if error.kind() == Kind::Corrupt {
                    self.tree().outlook().distrust(reading.id);
                    if reading.listing.start_over() {
                        let asker = self.asker(&reading.volume, &reading.dir);
                        reading.pages = Pages::start(asker, None, Sharding::Never, &self.room);
                        return Ok(());
                    }
                }
                self.restart(stream, mark);
                return Err(error);
            }
        };
        lock(&self.siblings).learn(reading.id, page.list.objects.iter(), false, reading.moment, page.asked);
        let ready = match reading.listing.page(page.list) {
            Ok(ready) => ready,
            Err(error) => {
                // What has come so far cannot be built on, and the order may be to blame.
                self.tree().outlook().distrust(reading.id);
                self.restart(stream, Mark::default());
                return Err(error);
            }
        };
        self.take_in(ino, reading, ready, page.asked, &mut stream.lines);
        stream.complete = reading.listing.is_done();
        Ok(())
    }

    async fn begin_reading(
        self: &Arc<Self>,
        ino: Ino,
        id: VolumeId,
        dir: DirKey,
        from: &Mark,
    ) -> Result<Reading> {
        let volume = self.volume(id)?;
        if self.buckets.is_some() {
            // Finding out means writing to the bucket, so it waits until somebody looks into it.
            self.find_order(id, &volume);
        }
        // Whoever comes back to a mark is not walking.
        let whole = if from.after.is_none() { self.listed_ahead(id, &volume, &dir, ino).await } else { None };
        let asker = self.asker(&volume, &dir);
        let mut tree = self.tree();
        let order = tree.outlook().order_of(id);
        let pages = match whole {
            Some(page) => {
                self.stats.listed_ahead_hits.add(1);
                Pages::here(asker, page, &self.room)
            }
            None => {
                let (start_after, sharding) = match (order, tree.outlook().begins_anywhere(id)) {
                    (Order::Other, _) => (None, Sharding::Never),
                    (_, true) => (from.after.clone(), Sharding::Grouped),
                    (_, false) if tree.outlook().begins_at_keys(id) => (from.after.clone(), Sharding::Whole),
                    // What is before the mark comes once more, and is passed over.
                    (_, false) => (None, Sharding::Never),
                };
                Pages::start(asker, start_after, sharding, &self.room)
            }
        };
        Ok(Reading {
            listing: Listing::new(dir.clone(), order, from.after.clone()),
            pages,
            volume,
            id,
            dir,
            ticket: tree.begin(),
            moment: lock(&self.siblings).asking(),
            reached: from.reached.clone(),
            begun: None,
            hashes: from.after.is_none().then(Vec::new),
            entries: 0,
            dirs: Sample::default(),
            before: 0,
        })
    }

    /// Lists a directory for the sake of its names, if one page has them all; whether that is so.
    pub(super) async fn learn_names(&self, ino: Ino, id: VolumeId, dir: &DirKey) -> Result<bool> {
        let volume = self.volume(id)?;
        let (asking, moment) = (self.asking(), lock(&self.siblings).asking());
        let asked = self.clock.now();
        let request = ListRequest {
            bucket: volume.bucket.clone(),
            prefix: dir.prefix().to_owned(),
            delimiter: Some("/".to_owned()),
            ..ListRequest::default()
        };
        let page = volume.store.list(request).await?;
        if page.next.is_some() {
            return Ok(false);
        }
        // From here on nothing waits, until the names are learned.
        lock(&self.siblings).learn(id, page.objects.iter(), false, moment, asked);
        let mut listing = Listing::new(dir.clone(), self.tree().outlook().order_of(id), None);
        let ready = listing.page(page)?;
        let asker = self.asker(&volume, dir);
        let nothing = Page { list: ListPage::default(), asked };
        let mut reading = Reading {
            listing,
            pages: Pages::here(asker, nothing, &self.room),
            volume,
            id,
            dir: dir.clone(),
            ticket: asking.into_ticket(),
            moment,
            reached: None,
            begun: None,
            hashes: Some(Vec::new()),
            entries: 0,
            dirs: Sample::default(),
            before: 0,
        };
        let mut lines = Lines::default();
        self.take_in(ino, &mut reading, ready, asked, &mut lines);
        let marked = reading.listing.marker().map(|marker| marker.last_modified);
        self.tree().end(reading.ticket);
        let lines = lines.ahead(0, usize::MAX);
        let lines: Vec<&Line> = lines.iter().map(|line| &**line).collect();
        self.finds_worth_asking(ino, &lines, marked).await;
        Ok(true)
    }

    fn asker(&self, volume: &Volume, dir: &DirKey) -> Asker {
        Asker::new(volume, dir.prefix(), &self.clock, &self.stats, &self.lanes.gate)
    }

    /// What a listing showed, whatever way its pages came, passes here once, in the order of the listing.
    fn take_in(&self, ino: Ino, reading: &mut Reading, ready: Ready, asked: Instant, lines: &mut Lines) {
        let mut tree = self.tree();
        let newer = tree.children_newer_than(ino, &reading.ticket);
        let merged = listing::merge(
            &reading.dir,
            ready,
            newer,
            |name| tree.overrules(ino, name, &reading.ticket),
            &mut reading.reached,
            reading.listing.is_done(),
        );
        for (name, found) in &merged.lines {
            tree.remember(ino, name, found.clone(), &reading.ticket, asked);
            if matches!(found, Found::Dir { .. }) {
                if reading.dirs.is_empty() {
                    reading.before = reading.entries;
                }
                reading.dirs.see(|| reading.dir.child(name).ok());
            }
            reading.entries += 1;
            if let Some(hashes) = &mut reading.hashes {
                hashes.push(listing::hash_of(name));
            }
        }
        if reading.entries > COMPLETE_NAMES_MAX {
            reading.hashes = None;
        }
        let begun = *reading.begun.get_or_insert(asked);
        if reading.listing.is_done() {
            if let Some(hashes) = reading.hashes.take() {
                tree.complete(ino, hashes, &reading.ticket, begun.min(asked), self.clock.now());
            }
            let before = if reading.dirs.is_empty() { reading.entries } else { reading.before };
            tree.outlook().listed_to_end(reading.id, &reading.dir, &reading.dirs.kept, before);
        }
        if reading.pages.is_torn() {
            tree.outlook().begins_elsewhere(reading.id);
        }
        if reading.listing.is_disordered() && tree.outlook().order_of(reading.id) != Order::Other {
            tracing::info!(bucket = reading.volume.bucket, "the server does not list in byte order");
            tree.outlook().distrust(reading.id);
        }
        drop(tree);
        self.pass_news();
        lines.extend(merged, asked);
    }

    /// The top of a mount of several buckets: the configured ones, or every bucket of the session.
    async fn list_buckets(&self, stream: &mut Stream) -> Result<()> {
        let mut names: Vec<Name> = {
            let mut tree = self.tree();
            let ticket = tree.begin();
            let named = tree.children_newer_than(ROOT, &ticket);
            tree.end(ticket);
            named.into_iter().map(|(name, _)| name).collect()
        };
        let asked = self.clock.now();
        if let Some(buckets) = &self.buckets {
            let listed = buckets.store.list_buckets().await?;
            names.extend(listed.iter().filter_map(|bucket| Name::parse(bucket.name.as_ref()).ok()));
            let opened = self.tree().buckets();
            for (name, ino) in opened {
                if names.contains(&name) {
                    self.tree().bucket_is_there(ino, asked);
                    continue;
                }
                // Removed by another client; or another account's, which was opened by its name.
                self.ask_bucket(&name).await?;
                if self.tree().child(ROOT, &name) == Some(ino) {
                    names.push(name);
                }
            }
            self.pass_news();
        }
        names.sort();
        names.dedup();
        let lines = names.into_iter().map(|name| (name, Found::Dir { marker: Marked::Unseen })).collect();
        stream.lines.extend(Merged { lines, mark: None }, asked);
        stream.complete = true;
        Ok(())
    }

    /// Makes a directory: a marker object, or a bucket at the top of a mount of all buckets.
    pub async fn mkdir(&self, parent: Ino, name: &OsStr, made: Maker) -> Result<Attr> {
        let name = Name::parse(name)?;
        self.require_writable(parent)?;
        let _turn = self.turns.take(parent, &name).await;
        let place = self.tree().dir_place(parent)?;
        let at = match place {
            DirPlace::In { volume: id, dir } => {
                Some(At { parent, name: name.clone(), id, volume: self.volume(id)?, dir })
            }
            DirPlace::Buckets => None,
        };
        if let Some(at) = &at
            && let Ok(key) = at.dir.object_key(&name)
        {
            self.settle(&at.volume, parent, &key).await?;
        }
        if self.within(self.resolve(parent, &name)).await?.is_some() {
            return Err(exists());
        }
        // What is not there has nothing in it.
        let (asking, now) = (self.asking(), self.clock.now());
        let empty_for = self.tree().absent_for(parent, &name, now);
        let Some(at) = at else {
            return self.make_bucket(&name).await;
        };
        require_new_name(&at.dir, &name)?;
        let posix = self.posix_of_new(parent, FileType::Directory, made);
        let marker;
        {
            let (at, _shared) = self.share(at, At::below).await?;
            let child = at.dir.child(&name)?;
            let key = child.marker_key().ok_or_else(no_marker)?;
            let mut attributes = marker_attributes(&at.volume);
            if let Some(posix) = &posix {
                posix::write(&mut attributes.metadata, posix);
            }
            marker = Marker::with(&attributes.metadata, self.clock.wall());
            self.put_new(&at, key, Bytes::new(), attributes).await?;
        }
        let entry = {
            let mut tree = self.tree();
            let found = Found::Dir { marker: Marked::Yes(marker) };
            let entry = tree.create(parent, &name, found, false, self.clock.now())?;
            tree.changed_dir(parent, Some(self.clock.wall()));
            tree.looked_up(entry.ino);
            if let Some(asked) = (now + empty_for).checked_sub(self.options.negative_ttl) {
                tree.complete(entry.ino, Vec::new(), asking.ticket(), asked, self.clock.now());
            }
            match posix {
                Some(_) => entry,
                None => tree.change_attrs(entry.ino, made.remembered())?,
            }
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

    /// Removes an empty directory. What was removed in it is gone from S3 first.
    pub async fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let begun = self.clock.now();
        let at = self.at(parent, name)?;
        let _turn = self.turns.take(parent, &at.name).await;
        let entry = self.within(self.resolve(parent, &at.name)).await?.ok_or_else(no_such_name)?;
        if !entry.is_dir() {
            return Err(Error::new(Kind::NotADirectory, "not a directory"));
        }
        let (At { name, volume, dir, .. }, _shared) = self.share(at, At::below).await?;
        let child = dir.child(&name)?;
        let has_marker = self.require_empty(&volume, entry.ino, &child).await?;
        let _noted = volume.deletes.note(child.prefix(), true);
        self.keep_dir(&volume, parent, &dir).await?;
        if let (true, Some(marker)) = (has_marker, child.marker_key()) {
            delete_object(&volume.store, &volume.bucket, marker, None, volume.honoured().await).await?;
        }
        let now = self.clock.now();
        {
            let mut tree = self.tree();
            tree.remove(parent, &name, now);
            tree.changed_dir(parent, Some(self.clock.wall()));
        }
        volume.deletes.removed_dir(begun, now);
        Ok(())
    }

    /// Fails unless the directory holds nothing but its marker, `NotEmpty` or as a delete in it has failed; tells
    /// whether it has one.
    pub(super) async fn require_empty(&self, volume: &Volume, ino: Ino, dir: &DirKey) -> Result<bool> {
        let unsaved_inside = self.has_dirty_within(ino) || {
            let mut tree = self.tree();
            let ticket = tree.begin();
            let inside = !tree.children_newer_than(ino, &ticket).is_empty();
            tree.end(ticket);
            inside
        };
        if unsaved_inside {
            return Err(not_empty());
        }
        {
            // Whatever removes the last of it need not keep the directory.
            let _closing = volume.deletes.close(ino);
            self.drain(volume).await?;
        }
        let below = keys_below(volume, dir, 2).await?;
        let is_marker = |object: &&ListedObject| Some(object.key.as_str()) == dir.marker_key();
        let has_marker = below.iter().find(is_marker).is_some_and(|marker| marker.size == 0);
        let failure = self.take_failure(volume, ino);
        if below.len() > usize::from(has_marker) {
            return Err(failure.unwrap_or_else(not_empty));
        }
        Ok(has_marker)
    }

    /// Writes the marker of a directory if what is about to go (`Deletes::note`) is all that makes it one: a
    /// directory does not vanish because its last entry was removed.
    pub(super) async fn keep_dir(&self, volume: &Volume, ino: Ino, dir: &DirKey) -> Result<()> {
        let marked = matches!(self.tree().entry(ino)?.found, Found::Dir { marker: Marked::Yes(_) });
        let at_top = dir.prefix() == volume.prefix;
        if marked || at_top || dir.marker_key().is_none() {
            return Ok(());
        }
        // One key more than may be about to go tells. Where they are more than a page it may not, and then a marker
        // is written that need not be.
        let may_go = volume.deletes.leaving().len();
        let first = keys_below(volume, dir, may_go.saturating_add(1)).await?;
        if let Some(marker) = first.iter().find(|object| Some(object.key.as_str()) == dir.marker_key()) {
            self.tree().mark(ino, Marker::listed(marker.last_modified));
            return Ok(());
        }
        // Read again: others may have begun to remove what is here.
        let leaving = volume.deletes.leaving();
        if first.iter().all(|object| leaving.contains(&object.key)) {
            put_marker(volume, dir, Condition::Any).await?;
            self.tree().mark(ino, Marker::with(&Metadata::new(), self.clock.wall()));
        }
        Ok(())
    }
}

fn not_empty() -> Error {
    Error::new(Kind::NotEmpty, "the directory is not empty")
}

fn exists() -> Error {
    Error::new(Kind::AlreadyExists, "file exists")
}
