use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::changes::{Changes, Ticket};
use super::complete::Complete;
use super::keys::{DirKey, Name};
use super::listing::hash_of;
use super::news::{Invalidation, News};
use super::numbers::free_number;
use super::outlook::Outlook;
use super::{
    AttrChanges, Believed, DirPlace, Entry, Facts, Found, Ino, Known, Marked, Marker, ROOT, VolumeId,
};
use crate::base::ETag;
use crate::error::{Error, Kind, Result};

/// Names remembered without an inode: absences, and what listings taught.
const REMEMBERED_MAX: usize = 100_000;
/// Memory of each, with a name of 20 characters.
const REMEMBERED_BYTES: usize = 300;
/// Memory of an inode: its node, its places in the table and in its directory, a name of 20 characters and an ETag of 32.
const NODE_BYTES: usize = size_of::<Node>() + 220;
/// Nodes that are gone and still have their place in the order of age, beside as many as there are.
const AGES_SPARE: usize = 1024;
/// Places in a directory's table that stay however few names it has, beside four times as many.
const CHILDREN_SPARE: usize = 32;

/// S3 dates an object when it is complete, in whole seconds; this mount when it was written.
pub(super) const DATING_DELAY: Duration = Duration::from_secs(2);

/// The inode table and what is believed of each name.
#[derive(Debug)]
pub struct Tree {
    /// In boxes: half of a table that has just grown is empty.
    nodes: HashMap<Ino, Box<Node>>,
    next_serial: u64,
    /// Nodes and their serial numbers, in the order in which they were made or last offered to be forgotten; some are gone.
    ages: VecDeque<(Ino, u64)>,
    /// By the serial number of the directory's node.
    remembered: LruCache<(u64, Name), (Memory, Instant)>,
    changes: Changes,
    /// Where files that are open were when another client took their names.
    taken: HashMap<Ino, (VolumeId, String)>,
    /// The version of a file that open handles read, and go on reading: no other takes its inode.
    held: HashMap<Ino, ETag>,
    /// Nodes that exist on this mount only: few, and every listing asks for them.
    locals: HashSet<Ino>,
    /// Names removed here whose objects are not known to be gone yet. Each keeps its directory in the table.
    buried: HashMap<Ino, HashSet<Name>>,
    news: News,
    complete: Complete,
    outlook: Outlook,
    ttl: Duration,
    negative_ttl: Duration,
}

/// What became of a name between its listing and its showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    Is(Entry),
    /// Removed here since, or found to be absent.
    Gone,
    /// Nothing newer is known, and the listing is too old to be believed.
    Old,
}

#[derive(Clone, Debug)]
enum Memory {
    Found(Found),
    Absent,
}

#[derive(Debug)]
struct Node {
    /// `None` for the root, and for a node whose name is gone while it is still referenced.
    link: Option<(Ino, Name)>,
    /// Of no other node, ever; the inode number may be used again.
    serial: u64,
    lookups: u64,
    pins: u32,
    found: Found,
    fresh_until: Option<Instant>,
    changes: AttrChanges,
    /// Of a directory: when something came into it or left it here.
    changed_at: Option<SystemTime>,
    /// When it was given another name here.
    renamed_at: Option<SystemTime>,
    /// Of a directory: whether what is in it may have attributes of its own, where that was found out otherwise than by its marker.
    carries: Option<bool>,
    children: HashMap<Name, Ino>,
    /// Set on the directory that stands for a bucket and prefix.
    volume: Option<(VolumeId, DirKey)>,
}

impl Node {
    fn new(link: Option<(Ino, Name)>, found: Found) -> Self {
        Self {
            link,
            serial: 0,
            lookups: 0,
            pins: 0,
            found,
            fresh_until: None,
            changes: AttrChanges::default(),
            changed_at: None,
            renamed_at: None,
            carries: None,
            children: HashMap::new(),
            volume: None,
        }
    }
}

impl Tree {
    /// A tree with only a root. `root` is the root's own volume where the mount shows one bucket.
    pub fn new(
        root: Option<(VolumeId, DirKey)>,
        ttl: Duration,
        negative_ttl: Duration,
        now: SystemTime,
    ) -> Self {
        let mut node = Node::new(None, Found::Dir { marker: Marked::Yes(Marker::listed(now)) });
        node.volume = root;
        node.lookups = 1;
        let capacity = NonZeroUsize::new(REMEMBERED_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            nodes: HashMap::from([(ROOT, Box::new(node))]),
            next_serial: 1,
            remembered: LruCache::new(capacity),
            changes: Changes::default(),
            taken: HashMap::new(),
            held: HashMap::new(),
            ages: VecDeque::new(),
            locals: HashSet::new(),
            buried: HashMap::new(),
            news: News::default(),
            complete: Complete::new(negative_ttl),
            outlook: Outlook::new(ttl),
            ttl,
            negative_ttl,
        }
    }

    // ---- where things are

    /// The inode, whether or not its facts are still fresh.
    pub fn entry(&self, ino: Ino) -> Result<Entry> {
        let node = self.node(ino)?;
        Ok(Entry {
            ino,
            found: node.found.clone(),
            changes: node.changes,
            changed_at: node.changed_at,
            renamed_at: node.renamed_at,
            believed: self.believed(ino, node),
        })
    }

    /// Whether the inode's facts may be answered without asking S3.
    pub fn is_fresh(&self, ino: Ino, now: Instant) -> bool {
        self.nodes.get(&ino).is_some_and(|node| match self.believed(ino, node) {
            Believed::Always => true,
            Believed::Until(until) => now < until,
            Believed::No => false,
        })
    }

    fn believed(&self, ino: Ino, node: &Node) -> Believed {
        if ino == ROOT || self.locals.contains(&ino) || node.link.is_none() {
            return Believed::Always;
        }
        node.fresh_until.map_or(Believed::No, Believed::Until)
    }

    /// Whether the file exists on this mount only.
    pub fn is_local(&self, ino: Ino) -> bool {
        self.locals.contains(&ino)
    }

    /// Parent and name; `None` for the root and for what has no name any more.
    pub fn link_of(&self, ino: Ino) -> Option<(Ino, Name)> {
        self.nodes.get(&ino)?.link.clone()
    }

    /// Where a directory's children live.
    pub fn dir_place(&self, ino: Ino) -> Result<DirPlace> {
        let mut names = Vec::new();
        let mut at = ino;
        let (volume, mut dir) = loop {
            let node = self.node(at)?;
            if !matches!(node.found, Found::Dir { .. }) {
                return Err(Error::new(Kind::NotADirectory, "not a directory"));
            }
            if let Some((volume, dir)) = &node.volume {
                break (*volume, dir.clone());
            }
            match &node.link {
                Some((parent, name)) => {
                    names.push(name.clone());
                    at = *parent;
                }
                None if at == ROOT => return Ok(DirPlace::Buckets),
                None => return Err(Error::new(Kind::NotFound, "the directory was removed")),
            }
        };
        for name in names.iter().rev() {
            dir = dir.child(name)?;
        }
        Ok(DirPlace::In { volume, dir })
    }

    /// The directory that stands for the bucket and prefix that a name is in.
    pub fn top_of(&self, ino: Ino) -> Option<(Ino, DirKey)> {
        let mut at = ino;
        loop {
            let node = self.nodes.get(&at)?;
            if let Some((_, dir)) = &node.volume {
                return Some((at, dir.clone()));
            }
            at = node.link.as_ref()?.0;
        }
    }

    /// Volume and key of a file.
    pub fn object_place(&self, ino: Ino) -> Result<(VolumeId, String)> {
        let node = self.node(ino)?;
        let (parent, name) =
            node.link.as_ref().ok_or_else(|| Error::new(Kind::NotFound, "the file was removed"))?;
        match self.dir_place(*parent)? {
            DirPlace::In { volume, dir } => Ok((volume, dir.object_key(name)?)),
            DirPlace::Buckets => Err(Error::new(Kind::IsADirectory, "a bucket is a directory")),
        }
    }

    /// The same of an open file whose name another client took: where it was until then. A file whose name was
    /// removed here has no such place.
    pub fn saving_place(&self, ino: Ino) -> Result<(VolumeId, String)> {
        match self.taken.get(&ino) {
            Some(place) => Ok(place.clone()),
            None => self.object_place(ino),
        }
    }

    /// The path below the mount's root, for people; nothing where its name is gone or stands for something else now.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        if let Some((_, key)) = self.taken.get(&ino) {
            return Some(key.clone());
        }
        let mut names = Vec::new();
        let mut at = ino;
        while let Some((parent, name)) = self.nodes.get(&at).and_then(|node| node.link.as_ref()) {
            names.push(name.as_str());
            at = *parent;
        }
        names.reverse();
        (at == ROOT).then(|| names.join("/"))
    }

    /// Whether `ancestor` is `ino` itself or above it.
    pub fn is_within(&self, ino: Ino, ancestor: Ino) -> bool {
        let mut at = ino;
        loop {
            if at == ancestor {
                return true;
            }
            match self.nodes.get(&at).and_then(|node| node.link.as_ref()) {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
    }

    // ---- asking

    /// What is known of a name now.
    pub fn known(&mut self, parent: Ino, name: &Name, now: Instant) -> Known {
        if let Some(&ino) = self.nodes.get(&parent).and_then(|node| node.children.get(name)) {
            if self.is_fresh(ino, now) {
                return self.entry(ino).map_or(Known::Unknown, Known::Is);
            }
            return match self.find_ahead(parent, name, now) {
                Some((Some(found), asked)) => {
                    let ino = self.put(parent, name, found, Some(asked + self.ttl));
                    ino.and_then(|ino| self.entry(ino).ok()).map_or(Known::Unknown, Known::Is)
                }
                _ => Known::Unknown,
            };
        }
        if self.is_buried(parent, name) {
            return Known::Absent;
        }
        let key = self.memory_of(parent, name);
        match self.remembered.get(&key) {
            Some((_, until)) if now >= *until => {
                self.remembered.pop(&key);
                // Its directory may have been listed since.
                self.known(parent, name, now)
            }
            Some((Memory::Absent, _)) => Known::Absent,
            Some((Memory::Found(found), until)) => {
                let (found, until) = (found.clone(), *until);
                self.remembered.pop(&key);
                let ino = self.add(parent, name.clone(), found, Some(until));
                self.entry(ino).map_or(Known::Unknown, Known::Is)
            }
            None => match self.find_ahead(parent, name, now) {
                Some((Some(found), asked)) => {
                    let ino = self.add(parent, name.clone(), found, Some(asked + self.ttl));
                    self.entry(ino).map_or(Known::Unknown, Known::Is)
                }
                Some((None, asked)) if now < asked + self.negative_ttl => Known::Absent,
                _ if self.complete.lacks_until(parent, name).is_some_and(|until| now < until) => {
                    Known::Absent
                }
                _ => Known::Unknown,
            },
        }
    }

    /// For how much longer a name is known to be absent.
    pub fn absent_for(&self, parent: Ino, name: &Name, now: Instant) -> Duration {
        if self.child(parent, name).is_some() {
            return Duration::ZERO;
        }
        let until = match self.remembered.peek(&self.memory_of(parent, name)) {
            Some((Memory::Absent, until)) => Some(*until),
            Some((Memory::Found(_), _)) => None,
            None => match self.find_ahead(parent, name, now) {
                Some((None, asked)) => Some(asked + self.negative_ttl),
                Some((Some(_), _)) => None,
                None => self.complete.lacks_until(parent, name),
            },
        };
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now).min(self.negative_ttl))
    }

    /// The child as it stands in the table, fresh or not.
    pub fn child(&self, parent: Ino, name: &Name) -> Option<Ino> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// Children that exist only here, or changed here since the ticket was drawn: what a listing asked
    /// for with that ticket may lack.
    pub fn children_newer_than(&self, dir: Ino, ticket: &Ticket) -> Vec<(Name, Found)> {
        let Some(node) = self.nodes.get(&dir) else { return Vec::new() };
        let child = |name: &Name| {
            let ino = node.children.get(name)?;
            Some((name.clone(), self.nodes.get(ino)?.found.clone()))
        };
        let mut newer: Vec<(Name, Found)> = if self.changes.forgot(ticket) {
            node.children.keys().filter_map(child).collect()
        } else {
            let local = self.locals.iter().filter_map(|ino| self.nodes.get(ino)?.link.as_ref());
            local.filter(|(parent, _)| *parent == dir).filter_map(|(_, name)| child(name)).collect()
        };
        newer.extend(self.changes.in_dir(dir, ticket).filter_map(|(name, change)| {
            child(name).or_else(|| change.left.as_ref().map(|left| (name.clone(), left.clone())))
        }));
        newer.sort_by(|a, b| a.0.cmp(&b.0));
        newer.dedup_by(|a, b| a.0 == b.0);
        newer
    }

    /// Whether a name was removed here since the ticket was drawn.
    pub fn is_gone(&self, dir: Ino, name: &Name, ticket: &Ticket) -> bool {
        let removed = self.changes.of(dir, name, ticket).is_some_and(|change| change.left.is_none());
        (removed || self.is_buried(dir, name)) && self.child(dir, name).is_none()
    }

    fn is_buried(&self, dir: Ino, name: &Name) -> bool {
        self.buried.get(&dir).is_some_and(|names| names.contains(name))
    }

    /// Whether what happened here overrules what S3 said of a name when asked with this ticket.
    pub fn overrules(&self, dir: Ino, name: &Name, ticket: &Ticket) -> bool {
        self.changes.of(dir, name, ticket).is_some()
            || self.is_buried(dir, name)
            || self.child(dir, name).is_some_and(|ino| self.locals.contains(&ino))
    }

    /// Draws a ticket before a request is sent.
    pub fn begin(&mut self) -> Ticket {
        self.changes.begin()
    }

    /// Gives a ticket back when its answer has been used.
    pub fn end(&mut self, ticket: Ticket) {
        if self.changes.end(ticket) {
            self.outlook.settle();
        }
    }

    // ---- learning from S3

    /// Takes what S3 said of a name, asked for at `asked`. Returns what is true now: the answer, or what changed here
    /// since the question was asked.
    pub fn learn(
        &mut self,
        parent: Ino,
        name: &Name,
        answer: Option<Found>,
        ticket: &Ticket,
        asked: Instant,
    ) -> Option<Entry> {
        let current = self.child(parent, name);
        if self.overrules(parent, name, ticket) {
            return current.and_then(|ino| self.entry(ino).ok());
        }
        match answer {
            None => {
                if let Some(ino) = current {
                    if self.nodes[&ino].lookups > 0 {
                        self.news.push(Invalidation::Entry { parent, name: name.clone() });
                    }
                    self.detach_taken(ino);
                }
                if self.nodes.contains_key(&parent) {
                    let until = asked + self.negative_ttl;
                    self.remembered.put(self.memory_of(parent, name), (Memory::Absent, until));
                }
                None
            }
            Some(found) => {
                let until = Some(asked + self.ttl);
                let ino = self.put(parent, name, found, until)?;
                self.entry(ino).ok()
            }
        }
    }

    /// Remembers what a listing asked for at `asked` said of a name, without making an inode for it unless it
    /// has one.
    pub fn remember(&mut self, parent: Ino, name: &Name, found: Found, ticket: &Ticket, asked: Instant) {
        if self.overrules(parent, name, ticket) || self.changes.forgot(ticket) {
            return;
        }
        let until = asked + self.ttl;
        match self.child(parent, name) {
            Some(ino) if self.knows_newer(ino, until) => {}
            Some(_) => {
                self.put(parent, name, found, Some(until));
            }
            None if self.nodes.contains_key(&parent) => {
                let found = self.with_remembered(parent, name, found);
                self.remembered.put(self.memory_of(parent, name), (Memory::Found(found), until));
            }
            None => {}
        }
    }

    /// What was found, with what is remembered of the same object and the answer does not tell.
    fn with_remembered(&self, parent: Ino, name: &Name, mut found: Found) -> Found {
        if let Found::File(new) = &mut found
            && new.posix.is_none()
            && let Some((Memory::Found(Found::File(old)), _)) =
                self.remembered.peek(&self.memory_of(parent, name))
        {
            new.keep(old);
        }
        found
    }

    /// The inode of a name that a listing showed, made now if need be: what was learnt since wins. `Gone` where
    /// the name was removed since; `Old` where the listing is too old to be believed.
    pub fn take_listed(
        &mut self,
        parent: Ino,
        name: &Name,
        found: &Found,
        (ticket, asked): (&Ticket, Instant),
        now: Instant,
    ) -> Listed {
        if self.is_gone(parent, name, ticket) {
            return Listed::Gone;
        }
        match self.known(parent, name, now) {
            Known::Is(entry) => return Listed::Is(entry),
            Known::Absent => return Listed::Gone,
            Known::Unknown => {}
        }
        let until = asked + self.ttl;
        if now >= until || self.overrules(parent, name, ticket) || self.changes.forgot(ticket) {
            return Listed::Old;
        }
        let ino = self.put(parent, name, found.clone(), Some(until));
        ino.and_then(|ino| self.entry(ino).ok()).map_or(Listed::Gone, Listed::Is)
    }

    /// How long what was asked for at `asked` is believed.
    pub fn believed_until(&self, asked: Instant) -> Instant {
        asked + self.ttl
    }

    /// What the kernel has to forget, each once.
    pub fn take_news(&mut self) -> Vec<Invalidation> {
        self.news.take()
    }

    /// The kernel hears of this name and inode by the answer that is on its way to it. News beside that would make it
    /// take the answer for older than the news, and ignore it.
    pub fn is_told(&mut self, parent: Ino, name: &Name, ino: Option<Ino>) {
        self.news.is_told(parent, name, ino);
    }

    // ---- listings

    /// What was listed ahead of walks, and where that is relied on.
    pub fn outlook(&mut self) -> &mut Outlook {
        &mut self.outlook
    }

    /// A directory was listed to its end with these names, hashed, asked for with this ticket.
    pub fn complete(&mut self, dir: Ino, mut names: Vec<u64>, ticket: &Ticket, asked: Instant, now: Instant) {
        if self.changes.forgot(ticket) || !self.nodes.contains_key(&dir) {
            return;
        }
        names.extend(self.changes.in_dir(dir, ticket).map(|(name, _)| hash_of(name)));
        names.sort_unstable();
        self.tell_of_vanished(dir, &names, ticket, asked);
        self.complete.add(dir, names, asked, now);
    }

    /// Children that the kernel knows and the listing does not: S3 is asked for them when they are wanted next.
    fn tell_of_vanished(&mut self, dir: Ino, names: &[u64], ticket: &Ticket, asked: Instant) {
        let Some(node) = self.nodes.get(&dir) else { return };
        let until = asked + self.ttl;
        let vanished = |(name, ino): &(&Name, &Ino)| {
            // One that has been told of has no freshness any more.
            let believed =
                self.nodes.get(*ino).is_some_and(|node| node.lookups > 0 && node.fresh_until.is_some());
            believed
                && names.binary_search(&hash_of(name)).is_err()
                && !self.overrules(dir, name, ticket)
                && !self.knows_newer(**ino, until)
        };
        let vanished: Vec<(Name, Ino)> =
            node.children.iter().filter(vanished).map(|(name, ino)| (name.clone(), *ino)).collect();
        for (name, ino) in vanished {
            self.expire(ino);
            self.news.push(Invalidation::Entry { parent: dir, name });
        }
    }

    fn find_ahead(&self, parent: Ino, name: &Name, now: Instant) -> Option<(Option<Found>, Instant)> {
        if self.outlook.is_empty() {
            return None;
        }
        let DirPlace::In { volume, dir } = self.dir_place(parent).ok()? else { return None };
        self.outlook.find(volume, &dir, name, now)
    }

    /// Something in a directory changed: what was listed of it ahead is old.
    fn touch(&mut self, dir: Ino, deep: bool) {
        if self.outlook.is_empty() && !self.changes.is_asked() {
            return;
        }
        let number = self.changes.number();
        match self.dir_place(dir) {
            Ok(DirPlace::In { volume, dir }) => self.outlook.touch(volume, &dir, deep, number),
            Ok(DirPlace::Buckets) => {}
            Err(_) => self.outlook.touch_all(number),
        }
    }

    /// Forgets how fresh a name is, so that the next question goes to S3.
    pub fn expire(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.fresh_until = None;
        }
    }

    // ---- changing here

    /// The name of a file is another's from now on; who has it open saves it where it was until then.
    pub fn leave_name(&mut self, ino: Ino) {
        self.detach_taken(ino);
    }

    /// A file or directory made on this mount. `local` files have no object yet.
    pub fn create(
        &mut self,
        parent: Ino,
        name: &Name,
        found: Found,
        local: bool,
        now: Instant,
    ) -> Result<Entry> {
        self.note_change(parent, name);
        if let Some(old) = self.child(parent, name) {
            self.detach(old);
        }
        let until = now + self.ttl;
        let ino = self
            .put(parent, name, found, Some(until))
            .ok_or_else(|| Error::new(Kind::NotFound, "the directory was removed"))?;
        self.set_local(ino, local);
        self.entry(ino)
    }

    /// A directory that stands for a bucket and prefix.
    pub fn add_volume(&mut self, name: &Name, volume: VolumeId, dir: DirKey, created: SystemTime) -> Ino {
        if let Some(ino) = self.child(ROOT, name) {
            return ino;
        }
        let ino =
            self.add(ROOT, name.clone(), Found::Dir { marker: Marked::Yes(Marker::listed(created)) }, None);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.volume = Some((volume, dir));
            // Nobody else knows which volume the name stands for.
            node.pins = 1;
        }
        self.set_local(ino, true);
        ino
    }

    /// The bucket is there, as S3 said at `asked`: it is believed for the TTL, and no longer by the mount's own word.
    pub fn bucket_is_there(&mut self, ino: Ino, asked: Instant) {
        let until = asked + self.ttl;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.fresh_until = Some(node.fresh_until.map_or(until, |now| now.max(until)));
        }
        self.set_local(ino, false);
    }

    /// The bucket is gone. What is open in it lives on without a name.
    pub fn bucket_is_gone(&mut self, ino: Ino) {
        let Some(node) = self.nodes.get_mut(&ino).filter(|node| node.volume.is_some()) else { return };
        node.pins = node.pins.saturating_sub(1);
        if let (true, Some((parent, name))) = (node.lookups > 0, node.link.clone()) {
            self.news.push(Invalidation::Entry { parent, name });
        }
        // A name that is believed would come back without its volume.
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.fresh_until = None;
        }
        self.detach(ino);
    }

    /// The directories at the top.
    pub fn buckets(&self) -> Vec<(Name, Ino)> {
        let children = self.nodes.get(&ROOT).map(|root| &root.children);
        children.into_iter().flatten().map(|(name, ino)| (name.clone(), *ino)).collect()
    }

    /// The file's bytes are in S3 as this now.
    pub fn committed(&mut self, ino: Ino, facts: Facts, now: Instant) {
        if let Some((parent, name)) = self.link_of(ino) {
            self.note_change(parent, &name);
        }
        let until = now + self.ttl;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.found = Found::File(facts);
            node.fresh_until = Some(until);
        }
        self.set_local(ino, false);
    }

    /// The file has no object any more: it is here alone until it is saved.
    pub fn unsaved(&mut self, ino: Ino) {
        if let Some(Node { found: Found::File(facts), .. }) = self.nodes.get_mut(&ino).map(Box::as_mut) {
            facts.etag = None;
            self.set_local(ino, true);
        }
    }

    /// The directory has a marker now; what was known of it stays where this does not tell.
    pub fn mark(&mut self, dir: Ino, new: Marker) {
        if let Some(Node { found: Found::Dir { marker }, .. }) = self.nodes.get_mut(&dir).map(Box::as_mut) {
            *marker = Marked::Yes(newer_marker(marker.marker(), new));
        }
    }

    /// S3 was asked, and the directory has no marker that anything could be said in.
    pub fn has_no_marker(&mut self, dir: Ino) {
        if let Some(Node { found: Found::Dir { marker: marker @ Marked::Unseen }, .. }) =
            self.nodes.get_mut(&dir).map(Box::as_mut)
        {
            *marker = Marked::No;
        }
    }

    /// Whether what is in a directory may have attributes of its own, as far as that is known.
    pub fn carries(&self, dir: Ino) -> Option<bool> {
        let node = self.nodes.get(&dir)?;
        match (&node.found, node.carries) {
            // Another client may have begun to keep attributes there.
            (Found::Dir { marker: Marked::Yes(Marker { carries: true, .. }) }, _) => Some(true),
            (_, Some(carries)) => Some(carries),
            (Found::Dir { marker: Marked::Yes(Marker { posix: Some(_), carries, .. }) }, None) => {
                Some(*carries)
            }
            _ => None,
        }
    }

    /// So it is, as was found out here.
    pub fn set_carries(&mut self, dir: Ino, carries: bool) {
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.carries = Some(carries);
        }
    }

    /// Whether what a directory's marker says was asked for, and of one that is no older than this.
    pub fn knows_marker(&self, dir: Ino, listed: SystemTime) -> bool {
        self.nodes.get(&dir).is_some_and(|node| match &node.found {
            Found::Dir { marker: Marked::Yes(known) } => known.tells(listed),
            _ => false,
        })
    }

    /// Adds what is known of a listed file and a listing does not tell. Of directories a listing shows no version, so that
    /// what was known of them may be of another.
    pub fn fill_in(&self, dir: Ino, name: &Name, found: &mut Found) {
        let known = match self.child(dir, name).and_then(|ino| self.nodes.get(&ino)) {
            Some(node) => Some(&node.found),
            None => match self.remembered.peek(&self.memory_of(dir, name)) {
                Some((Memory::Found(known), _)) => Some(known),
                _ => None,
            },
        };
        if let (Found::File(new), Some(Found::File(old))) = (found, known)
            && new.posix.is_none()
        {
            new.keep(old);
        }
    }

    /// What S3 says of the attributes of a version.
    pub fn describe(&mut self, ino: Ino, told: &Facts) {
        if let Some(Node { found: Found::File(facts), .. }) = self.nodes.get_mut(&ino).map(Box::as_mut)
            && facts.etag == told.etag
            && facts.posix.is_none()
        {
            facts.posix.clone_from(&told.posix);
        }
    }

    /// Something came into a directory or left it here at that time; `None` where another time was set since.
    pub fn changed_dir(&mut self, dir: Ino, at: Option<SystemTime>) {
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.changed_at = at;
        }
    }

    /// The name is gone. A node still referenced lives on without a name.
    pub fn remove(&mut self, parent: Ino, name: &Name, now: Instant) {
        self.note_change(parent, name);
        if let Some(ino) = self.child(parent, name) {
            self.detach(ino);
        }
        if self.nodes.contains_key(&parent) {
            self.remembered.put(self.memory_of(parent, name), (Memory::Absent, now + self.negative_ttl));
        }
    }

    /// The name is gone, and whatever S3 says of it until [`Tree::unbury`] is not so.
    pub fn bury(&mut self, parent: Ino, name: &Name) {
        self.note_change(parent, name);
        if self.buried.entry(parent).or_default().insert(name.clone()) {
            self.pin(parent);
        }
        self.forget_name(parent, name);
        if let Some(ino) = self.child(parent, name) {
            self.detach(ino);
        }
    }

    /// S3 is believed again: the object of a buried name is gone, or is there after all.
    pub fn unbury(&mut self, parent: Ino, name: &Name, gone: bool, now: Instant) {
        let Some(names) = self.buried.get_mut(&parent) else { return };
        if !names.remove(name) {
            return;
        }
        if names.is_empty() {
            self.buried.remove(&parent);
        }
        // Whoever asked before may have seen either.
        self.note_change(parent, name);
        if gone {
            self.remembered.put(self.memory_of(parent, name), (Memory::Absent, now + self.negative_ttl));
        } else {
            self.news.push(Invalidation::Entry { parent, name: name.clone() });
        }
        self.unpin(parent);
    }

    /// Forgets what is remembered of a name that has no inode.
    pub fn forget_name(&mut self, parent: Ino, name: &Name) {
        self.remembered.pop(&self.memory_of(parent, name));
    }

    /// The next question for a name goes to S3.
    pub fn forget_facts(&mut self, parent: Ino, name: &Name) {
        self.forget_name(parent, name);
        if let Some(ino) = self.child(parent, name) {
            self.expire(ino);
        }
    }

    /// Relinks a node; whatever had the new name lives on without one.
    pub fn rename(&mut self, from: (Ino, &Name), to: (Ino, &Name), now: Instant) -> Result<()> {
        let ino = self.child(from.0, from.1).ok_or_else(|| Error::new(Kind::NotFound, "no such name"))?;
        self.note_change(from.0, from.1);
        self.note_change(to.0, to.1);
        if from == to {
            return Ok(());
        }
        let is_dir = self.nodes.get(&ino).is_some_and(|node| matches!(node.found, Found::Dir { .. }));
        if is_dir {
            self.touch(ino, true);
        }
        // The new child comes before the old one goes: a directory that is empty in between, and that nobody
        // refers to, would be dropped.
        let target = self
            .nodes
            .get_mut(&to.0)
            .ok_or_else(|| Error::new(Kind::NotFound, "the target directory was removed"))?;
        let replaced = target.children.insert(to.1.clone(), ino);
        self.lose_child(from.0, from.1);
        let until = now + self.ttl;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.link = Some((to.0, to.1.clone()));
            node.fresh_until = Some(until);
        }
        if is_dir {
            self.touch(ino, true);
        }
        self.remembered.pop(&self.memory_of(to.0, to.1));
        self.remembered.put(self.memory_of(from.0, from.1), (Memory::Absent, now + self.negative_ttl));
        if let Some(old) = replaced {
            if let Some(node) = self.nodes.get_mut(&old) {
                node.link = None;
            }
            self.set_local(old, false);
            self.collect(old);
        }
        self.collect(from.0);
        Ok(())
    }

    /// The objects of a directory that is gone from here have been deleted: whoever asked meanwhile may have seen
    /// them still.
    pub fn emptied(&mut self, parent: Ino, name: &Name) {
        self.note_change(parent, name);
        self.touch(parent, true);
    }

    /// A name was changed in, or between, these directories at that time.
    pub fn renamed_at(&mut self, ino: Ino, from: Ino, to: Ino, at: SystemTime) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.renamed_at = Some(at);
        }
        self.changed_dir(from, Some(at));
        self.changed_dir(to, Some(at));
    }

    /// A renamed file's object is this now; it was `of` before, and keeps the time that it had here.
    pub fn moved(&mut self, ino: Ino, facts: Facts, of: &ETag) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            let mtime = match &node.found {
                Found::File(old) if old.etag.as_ref() == Some(of) => old.mtime,
                _ => facts.mtime,
            };
            node.found = Found::File(Facts { mtime, ..facts });
        }
    }

    /// Forgets how fresh everything below a directory is: its objects were copied, so their ETags and times
    /// may be new.
    pub fn expire_below(&mut self, dir: Ino) {
        let mut todo = vec![dir];
        while let Some(at) = todo.pop() {
            if let Some(node) = self.nodes.get_mut(&at) {
                todo.extend(node.children.values().copied());
                if at != dir {
                    node.fresh_until = None;
                }
            }
        }
    }

    /// What chmod, chown or utimens said.
    pub fn change_attrs(&mut self, ino: Ino, changes: AttrChanges) -> Result<Entry> {
        let node = self.nodes.get_mut(&ino).ok_or_else(unknown_inode)?;
        node.changes.merge(changes);
        self.entry(ino)
    }

    /// Forgets a modification time set here, because the bytes were written since.
    pub fn clear_mtime(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.changes.mtime = None;
        }
    }

    // ---- lifetimes

    /// The kernel was given this inode once more.
    pub fn looked_up(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
    }

    /// The kernel gave back `count` of its references.
    pub fn forget(&mut self, ino: Ino, count: u64) {
        if ino == ROOT {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.collect(ino);
    }

    /// Handles of an inode go on with this version until they are closed; `None` where there are none, or one has changed
    /// it.
    pub fn hold(&mut self, ino: Ino, version: Option<ETag>) {
        match version {
            Some(version) => self.held.insert(ino, version),
            None => self.held.remove(&ino),
        };
    }

    pub fn is_held(&self, ino: Ino) -> bool {
        self.held.contains_key(&ino)
    }

    /// Keeps a node while a handle is open on it.
    pub fn pin(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.pins += 1;
        }
    }

    pub fn unpin(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.pins = node.pins.saturating_sub(1);
        }
        self.collect(ino);
    }

    /// Up to so many files that the kernel has known for longest, that nobody has open, and that may go. It may be told to
    /// forget their names: whoever asks for one again finds the same.
    pub fn oldest(&mut self, count: usize, may_go: impl Fn(Ino) -> bool) -> Vec<(Ino, Name)> {
        let mut oldest = Vec::new();
        for _ in 0..self.ages.len().min(2 * count) {
            let Some((ino, serial)) = self.ages.pop_front() else { break };
            let Some(node) = self.nodes.get(&ino).filter(|node| node.serial == serial) else { continue };
            // Until the kernel has given it back.
            self.ages.push_back((ino, serial));
            let is_known = node.lookups > 0 && node.pins == 0 && matches!(node.found, Found::File(_));
            let is_free =
                is_known && !self.locals.contains(&ino) && !self.held.contains_key(&ino) && may_go(ino);
            oldest.extend(node.link.clone().filter(|_| is_free));
            if oldest.len() == count {
                break;
            }
        }
        oldest
    }

    /// Inodes in the table.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Memory of the names there are, roughly, in bytes.
    pub fn weight_bytes(&self) -> u64 {
        let count = |count: usize, bytes: usize| count as u64 * bytes as u64;
        count(self.nodes.len(), NODE_BYTES)
            + count(self.remembered.len(), REMEMBERED_BYTES)
            + self.outlook.weight_bytes()
            + count(self.ages.len(), size_of::<(Ino, u64)>())
    }

    /// Lets go of what is believed no longer. It looks at all that is remembered, so it is for when nobody asks for
    /// anything. What S3 was asked of an object beside its listing stays true for as long as it is the same object, and
    /// stays. Says when the next of the rest grows too old.
    pub fn let_go_of_expired(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut stays = |until: Instant| {
            if now < until {
                next = Some(next.map_or(until, |next| next.min(until)));
            }
            now < until
        };
        self.remembered.retain(|_, (memory, until)| match memory {
            Memory::Found(Found::File(facts)) if facts.posix.is_some() => true,
            Memory::Found(_) | Memory::Absent => stays(*until),
        });
        self.complete.retain(&mut stays);
        self.outlook.retain(|asked| stays(asked + self.ttl));
        self.nodes.shrink_to(2 * self.nodes.len());
        let nodes = &self.nodes;
        self.ages.retain(|(ino, serial)| nodes.get(ino).is_some_and(|node| node.serial == *serial));
        self.ages.shrink_to(2 * self.nodes.len());
        next
    }

    pub fn is_empty(&self) -> bool {
        false // the root is always there
    }

    // ---- within

    fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).map(Box::as_ref).ok_or_else(unknown_inode)
    }

    fn note_change(&mut self, parent: Ino, name: &Name) {
        self.changes.note(parent, name);
        self.complete.leave(parent, name);
        self.touch(parent, false);
    }

    /// Whether what is known of a node is believed for longer than that, so it was asked for later.
    fn knows_newer(&self, ino: Ino, until: Instant) -> bool {
        self.nodes.get(&ino).and_then(|node| node.fresh_until).is_some_and(|known| known > until)
    }

    fn set_local(&mut self, ino: Ino, local: bool) {
        if local {
            self.locals.insert(ino);
        } else {
            self.locals.remove(&ino);
        }
    }

    /// Sets what a name stands for, keeping its inode where the kind is the same.
    fn put(&mut self, parent: Ino, name: &Name, found: Found, until: Option<Instant>) -> Option<Ino> {
        self.nodes.get(&parent)?;
        if let Some(ino) = self.child(parent, name) {
            if let (Some(held), Found::File(new)) = (self.held.get(&ino), &found)
                && new.etag.as_ref() != Some(held)
            {
                // Pages and size that the kernel has of an inode are of one version, and handles are in the middle of
                // this one: the name is another inode's from now on.
                self.news.push(Invalidation::Entry { parent, name: name.clone() });
                self.detach_taken(ino);
                return Some(self.add(parent, name.clone(), found, until));
            }
            let node = self.nodes.get_mut(&ino)?;
            if node.found.leads_elsewhere(&found) {
                // The kernel keeps where a link leads as long as its inode, and a link never leads elsewhere: it is replaced.
                self.news.push(Invalidation::Entry { parent, name: name.clone() });
                self.detach_taken(ino);
                return Some(self.add(parent, name.clone(), found, until));
            }
            let mut news = None;
            match (&mut node.found, found) {
                (Found::Dir { marker }, Found::Dir { marker: new }) => {
                    match new {
                        Marked::Yes(new) => *marker = Marked::Yes(newer_marker(marker.marker(), new)),
                        Marked::No if *marker == Marked::Unseen => *marker = Marked::No,
                        // A listing of the parent cannot see the marker; that is no news of its absence.
                        Marked::No | Marked::Unseen => {}
                    }
                }
                (Found::File(old), Found::File(new)) => {
                    let same = old.etag == new.etag;
                    if !same {
                        node.changes.mtime = None;
                        if node.lookups > 0 {
                            news = Some(match node.pins {
                                0 => Invalidation::Data { ino },
                                _ => Invalidation::Attributes { ino },
                            });
                        }
                    }
                    // The same object, written or renamed here before S3 dated it: a time that moves by itself makes
                    // tools think that the file changed.
                    let settled = new.is_as_dated(old) || (same && new.mtime <= old.mtime + DATING_DELAY);
                    let mtime = if settled { old.mtime } else { new.mtime };
                    let mut new = new;
                    new.keep(old);
                    *old = Facts { mtime, ..new };
                }
                (_, other) => {
                    if node.lookups > 0 {
                        self.news.push(Invalidation::Entry { parent, name: name.clone() });
                    }
                    self.detach_taken(ino);
                    return Some(self.add(parent, name.clone(), other, until));
                }
            }
            node.fresh_until = until;
            if let Some(news) = news {
                self.news.push(news);
            }
            return Some(ino);
        }
        Some(self.add(parent, name.clone(), found, until))
    }

    fn add(&mut self, parent: Ino, name: Name, found: Found, until: Option<Instant>) -> Ino {
        let found = self.with_remembered(parent, &name, found);
        self.remembered.pop(&self.memory_of(parent, &name));
        let ino = free_number(parent, &name, |ino| self.nodes.contains_key(&ino));
        let mut node = Node::new(Some((parent, name.clone())), found);
        node.serial = self.next_serial;
        self.next_serial += 1;
        node.fresh_until = until;
        self.ages.push_back((ino, node.serial));
        self.nodes.insert(ino, Box::new(node));
        if self.ages.len() > 2 * self.nodes.len() + AGES_SPARE {
            let nodes = &self.nodes;
            self.ages.retain(|(ino, serial)| nodes.get(ino).is_some_and(|node| node.serial == *serial));
        }
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.insert(name, ino);
        }
        ino
    }

    /// Where something is remembered of a name that has no node.
    fn memory_of(&self, parent: Ino, name: &Name) -> (u64, Name) {
        // Nothing is remembered under the number of a directory that is not there.
        let serial = self.nodes.get(&parent).map_or(u64::MAX, |node| node.serial);
        (serial, name.clone())
    }

    /// Takes a node's name away because S3 has it no more, or for something else: what is open there, or below it,
    /// may be written to yet.
    fn detach_taken(&mut self, ino: Ino) {
        let mut todo = vec![ino];
        while let Some(at) = todo.pop() {
            let Some(node) = self.nodes.get(&at) else { continue };
            todo.extend(node.children.values().copied());
            if node.pins > 0
                && matches!(node.found, Found::File(_))
                && let Ok(place) = self.object_place(at)
            {
                self.taken.insert(at, place);
            }
        }
        self.detach(ino);
    }

    /// Takes a node's name away.
    fn detach(&mut self, ino: Ino) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let Some((parent, name)) = node.link.take() else { return };
        self.lose_child(parent, &name);
        self.set_local(ino, false);
        self.collect(ino);
        self.collect(parent);
    }

    /// Takes a name out of its directory. The kernel forgets names before it forgets what they are in, so tables that were
    /// large become small again: of 1,000 names it is 50 KiB.
    fn lose_child(&mut self, parent: Ino, name: &Name) {
        let Some(parent) = self.nodes.get_mut(&parent) else { return };
        parent.children.remove(name);
        if parent.children.capacity() > CHILDREN_SPARE + 4 * parent.children.len() {
            parent.children.shrink_to(2 * parent.children.len());
        }
    }

    /// Drops a node, and then its parents, as soon as nothing refers to it.
    fn collect(&mut self, ino: Ino) {
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { return };
            let referenced = node.lookups > 0 || node.pins > 0 || !node.children.is_empty();
            if referenced || self.locals.contains(&at) {
                return;
            }
            let Some(node) = self.nodes.remove(&at) else { return };
            self.complete.forget(at);
            self.taken.remove(&at);
            let Some((parent, name)) = node.link else { return };
            self.lose_child(parent, &name);
            self.changes.left(parent, &name, &node.found);
            // What S3 said of the name outlives the inode for as long as it is believed.
            if let Some(until) = node.fresh_until.filter(|_| node.changes == AttrChanges::default()) {
                self.remembered.put(self.memory_of(parent, &name), (Memory::Found(node.found), until));
            }
            at = parent;
        }
    }

    /// Checks the invariants that a defect here would break first.
    pub fn check(&self) {
        for (parent, names) in &self.buried {
            assert!(
                !names.is_empty() && self.nodes.contains_key(parent),
                "a directory outlives its buried names"
            );
        }
        assert!(self.locals.iter().all(|ino| self.nodes.contains_key(ino)), "a local node is in the table");
        for (ino, node) in &self.nodes {
            if let Some((parent, name)) = &node.link {
                let above = self.nodes.get(parent).expect("a parent outlives its children");
                assert_eq!(above.children.get(name), Some(ino), "parent and child agree");
            }
            for child in node.children.values() {
                assert!(self.nodes.contains_key(child), "a child is in the table");
            }
            // Up from anywhere is the root, or a directory whose name is gone, and never a circle.
            let mut at = *ino;
            for step in 0.. {
                assert!(step <= self.nodes.len(), "parent links form a circle");
                match self.nodes.get(&at).and_then(|node| node.link.as_ref()) {
                    Some((parent, _)) => at = *parent,
                    None => break,
                }
            }
        }
    }
}

/// What is known of a marker now that this was heard of it.
fn newer_marker(known: Option<&Marker>, new: Marker) -> Marker {
    match known {
        // A listing tells no more than when it was made, in S3's time.
        Some(known) if new.posix.is_none() && new.modified <= known.modified + DATING_DELAY => known.clone(),
        _ => new,
    }
}

fn unknown_inode() -> Error {
    Error::new(Kind::Stale, "this inode is not known any more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;
    use std::sync::Arc;

    const TTL: Duration = Duration::from_secs(1);
    /// Of `f` in the root.
    const NUMBER_OF_F: u64 = 4_302_006_261_471_978_197;

    fn name(text: &str) -> Name {
        Name::parse(OsStr::new(text)).unwrap()
    }

    fn file(size: u64) -> Found {
        Found::File(Facts {
            size,
            etag: None,
            mtime: SystemTime::UNIX_EPOCH,
            modified: None,
            saved_at: None,
            archived: false,
            posix: None,
        })
    }

    fn dir() -> Found {
        Found::Dir { marker: Marked::Unseen }
    }

    fn tree() -> Tree {
        Tree::new(Some((VolumeId(0), DirKey::root("p/"))), TTL, TTL, SystemTime::UNIX_EPOCH)
    }

    fn now() -> Instant {
        crate::base::Clock::now(&crate::base::SystemClock)
    }

    /// The kernel forgets files before it forgets their directories.
    #[test]
    fn a_directory_whose_names_are_forgotten_is_small_again() {
        let mut tree = tree();
        let d = tree.put(ROOT, &name("d"), dir(), None).unwrap();
        tree.looked_up(d);
        let files: Vec<Ino> =
            (0..1000).map(|n| tree.put(d, &name(&format!("f{n}")), file(n), None).unwrap()).collect();
        let capacity = |tree: &Tree| tree.nodes[&d].children.capacity();
        assert!(capacity(&tree) >= 1000);
        for (left, ino) in (0..1000).rev().zip(files) {
            tree.looked_up(ino);
            tree.forget(ino, 1);
            assert!(capacity(&tree) <= 4 * left + CHILDREN_SPARE, "{left} left");
        }
        tree.check();
        assert!(capacity(&tree) <= CHILDREN_SPARE);
    }

    #[test]
    fn what_is_believed_no_longer_goes_but_what_was_asked_of_objects() {
        let mut tree = tree();
        let now = now();
        let with_attributes = |size| match file(size) {
            Found::File(facts) => Found::File(Facts { posix: Some(Arc::default()), ..facts }),
            other => other,
        };
        for (at, found) in [("listed", file(1)), ("asked", with_attributes(2))] {
            let ino = tree.put(ROOT, &name(at), found, Some(now + TTL)).unwrap();
            tree.looked_up(ino);
            tree.forget(ino, 1);
        }
        assert_eq!(tree.remembered.len(), 2);
        assert_eq!(tree.let_go_of_expired(now), Some(now + TTL), "it is believed yet");
        assert_eq!(tree.remembered.len(), 2);
        assert_eq!(tree.let_go_of_expired(now + TTL), None);
        let left: Vec<&str> = tree.remembered.iter().map(|((_, name), _)| name.as_str()).collect();
        assert_eq!(left, ["asked"]);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Create(usize, char, bool),
        Remove(usize, char),
        Rename(usize, char, usize, char),
        Lookup(usize),
        Forget(usize),
        Pin(usize),
        Unpin(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let at = || 0usize..8;
        let letter = || prop_oneof![Just('a'), Just('b'), Just('c')];
        prop_oneof![
            4 => (at(), letter(), any::<bool>()).prop_map(|(d, n, is_dir)| Op::Create(d, n, is_dir)),
            2 => (at(), letter()).prop_map(|(d, n)| Op::Remove(d, n)),
            2 => (at(), letter(), at(), letter()).prop_map(|(d, n, e, m)| Op::Rename(d, n, e, m)),
            2 => at().prop_map(Op::Lookup),
            2 => at().prop_map(Op::Forget),
            1 => at().prop_map(Op::Pin),
            1 => at().prop_map(Op::Unpin),
        ]
    }

    proptest! {
        #[test]
        fn links_form_a_tree_and_what_is_referenced_lives(ops in proptest::collection::vec(op(), 1..60)) {
            let mut tree = tree();
            let now = now();
            // Inodes ever made, and the references this test holds on them.
            let mut made = vec![ROOT];
            let mut held: HashMap<Ino, (u64, u32)> = HashMap::new();
            for op in ops {
                let pick = |i: usize| made[i % made.len()];
                match op {
                    Op::Create(d, n, is_dir) => {
                        let found = if is_dir { dir() } else { file(1) };
                        let parent = pick(d);
                        if tree.dir_place(parent).is_ok()
                            && let Ok(entry) = tree.create(parent, &name(&n.to_string()), found, false, now)
                        {
                            tree.looked_up(entry.ino);
                            held.entry(entry.ino).or_default().0 += 1;
                            if !made.contains(&entry.ino) {
                                made.push(entry.ino);
                            }
                        }
                    }
                    Op::Remove(d, n) => tree.remove(pick(d), &name(&n.to_string()), now),
                    Op::Rename(d, n, e, m) => {
                        let (from, to) = (pick(d), pick(e));
                        let (n, m) = (name(&n.to_string()), name(&m.to_string()));
                        let moving = tree.child(from, &n);
                        let fine = moving.is_some_and(|ino| !tree.is_within(to, ino));
                        if fine && tree.dir_place(to).is_ok() {
                            tree.rename((from, &n), (to, &m), now).unwrap();
                            prop_assert_eq!(tree.child(to, &m), moving);
                        }
                    }
                    Op::Lookup(i) => {
                        let ino = pick(i);
                        if tree.entry(ino).is_ok() && ino != ROOT {
                            tree.looked_up(ino);
                            held.entry(ino).or_default().0 += 1;
                        }
                    }
                    Op::Forget(i) => {
                        let ino = pick(i);
                        let count = std::mem::take(&mut held.entry(ino).or_default().0);
                        tree.forget(ino, count);
                    }
                    Op::Pin(i) => {
                        let ino = pick(i);
                        if tree.entry(ino).is_ok() {
                            tree.pin(ino);
                            held.entry(ino).or_default().1 += 1;
                        }
                    }
                    Op::Unpin(i) => {
                        let ino = pick(i);
                        let pins = &mut held.entry(ino).or_default().1;
                        if *pins > 0 {
                            *pins -= 1;
                            tree.unpin(ino);
                        }
                    }
                }
                tree.check();
                for (ino, (lookups, pins)) in &held {
                    if *lookups > 0 || *pins > 0 {
                        prop_assert!(tree.entry(*ino).is_ok(), "{ino:?} is referenced and gone");
                    }
                }
                for ino in &made {
                    if let (Some((parent, name)), Ok(path)) = (tree.link_of(*ino), tree.dir_place(*ino)) {
                        let from_parent = match tree.dir_place(parent) {
                            Ok(DirPlace::In { volume, dir }) => {
                                Some(DirPlace::In { volume, dir: dir.child(&name).unwrap() })
                            }
                            _ => None,
                        };
                        prop_assert_eq!(Some(path), from_parent);
                    }
                }
            }
            // With every reference gone only the root is left.
            for (ino, (lookups, pins)) in held {
                tree.forget(ino, lookups);
                for _ in 0..pins {
                    tree.unpin(ino);
                }
            }
            prop_assert_eq!(tree.len(), 1);
        }
    }

    #[test]
    fn an_answer_older_than_a_change_here_is_no_news() {
        let mut tree = tree();
        let now = now();
        let f = name("f");
        let old = tree.begin();
        let made = tree.create(ROOT, &f, file(1), false, now).unwrap();
        tree.looked_up(made.ino);
        assert_eq!(tree.learn(ROOT, &f, None, &old, now).map(|e| e.ino), Some(made.ino));
        tree.remove(ROOT, &f, now);
        assert_eq!(tree.learn(ROOT, &f, Some(file(2)), &old, now), None);
        tree.remember(ROOT, &f, file(2), &old, now);
        assert_eq!(tree.known(ROOT, &f, now), Known::Absent);
        tree.end(old);
        let fresh = tree.begin();
        assert!(tree.learn(ROOT, &f, Some(file(2)), &fresh, now).is_some());
        tree.end(fresh);
    }

    #[test]
    fn a_directory_listed_to_its_end_lacks_every_other_name_but_those_made_here() {
        let mut tree = tree();
        let now = now();
        let ticket = tree.begin();
        tree.create(ROOT, &name("mine"), file(1), false, now).unwrap();
        let hashes = ["a", "b"].map(|text| hash_of(&name(text))).to_vec();
        tree.complete(ROOT, hashes, &ticket, now, now);
        tree.end(ticket);
        assert_eq!(tree.known(ROOT, &name("c"), now), Known::Absent);
        assert_eq!(tree.known(ROOT, &name("a"), now), Known::Unknown);
        tree.create(ROOT, &name("later"), file(1), false, now).unwrap();
        for made in ["mine", "later"] {
            // Even if nothing else is remembered of it.
            tree.forget_name(ROOT, &name(made));
            let ino = tree.child(ROOT, &name(made));
            if let Some(ino) = ino {
                tree.looked_up(ino);
                tree.forget(ino, 1);
                tree.forget_name(ROOT, &name(made));
            }
            assert_eq!(tree.known(ROOT, &name(made), now), Known::Unknown, "{made}");
        }
        assert_eq!(tree.known(ROOT, &name("c"), now + TTL), Known::Unknown);
    }

    /// Never to change: backup programs compare the numbers of one run with those of the last.
    #[test]
    fn an_inode_number_follows_from_the_path_as_long_as_it_is_free() {
        let (mut one, mut other) = (tree(), tree());
        let now = now();
        let make = |tree: &mut Tree, parent: Ino, made: &str, found: Found| {
            tree.create(parent, &name(made), found, false, now).unwrap().ino
        };
        assert_eq!(make(&mut one, ROOT, "f", file(0)), Ino(NUMBER_OF_F));
        make(&mut other, ROOT, "before", file(0));
        let d = [make(&mut one, ROOT, "d", dir()), make(&mut other, ROOT, "d", dir())];
        assert_eq!(d[0], d[1]);
        let below = [make(&mut one, d[0], "f", file(0)), make(&mut other, d[1], "f", file(0))];
        assert_eq!(below[0], below[1]);
        // What has another name keeps its number, and what takes the old one gets another.
        one.looked_up(below[0]);
        one.looked_up(d[0]);
        one.rename((d[0], &name("f")), (ROOT, &name("moved")), now).unwrap();
        let taken = make(&mut one, d[0], "f", file(0));
        assert_ne!(taken, below[0]);
        assert_eq!(one.entry(below[0]).unwrap().ino, below[0]);
        one.check();
    }

    /// The number of a directory that was renamed and forgotten is that of the next one of its old name.
    #[test]
    fn what_is_remembered_of_a_directory_is_not_that_of_the_next_one_of_its_number() {
        let mut tree = tree();
        let now = now();
        let d = tree.create(ROOT, &name("d"), dir(), false, now).unwrap().ino;
        tree.looked_up(d);
        let ticket = tree.begin();
        tree.remember(d, &name("f"), file(3), &ticket, now);
        tree.end(ticket);
        tree.rename((ROOT, &name("d")), (ROOT, &name("e")), now).unwrap();
        tree.forget(d, 1);
        let again = tree.create(ROOT, &name("d"), dir(), false, now).unwrap().ino;
        assert_eq!(again, d);
        assert_eq!(tree.known(again, &name("f"), now), Known::Unknown);
    }

    #[test]
    fn what_is_remembered_grows_old() {
        let mut tree = tree();
        let now = now();
        let f = name("f");
        let ticket = tree.begin();
        tree.learn(ROOT, &f, None, &ticket, now);
        assert_eq!(tree.known(ROOT, &f, now), Known::Absent);
        assert_eq!(tree.known(ROOT, &f, now + TTL), Known::Unknown);
        tree.remember(ROOT, &f, file(3), &ticket, now);
        assert!(matches!(tree.known(ROOT, &f, now), Known::Is(_)));
        assert_eq!(tree.known(ROOT, &f, now + TTL), Known::Unknown);
        tree.end(ticket);
    }
}
