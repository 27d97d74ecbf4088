use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::keys::{DirKey, Name};
use super::{AttrChanges, DirPlace, Entry, Facts, Found, Ino, Known, ROOT, VolumeId};
use crate::error::{Error, Kind, Result};

/// Names remembered without an inode: absences, and what listings taught. About 200 bytes each.
const REMEMBERED_MAX: usize = 100_000;

/// Names changed here that are kept while questions are on their way; a directory may be left open for days.
const CHANGED_MAX: usize = 100_000;
/// S3 dates an object when it is complete, in whole seconds; this mount when it was written.
const DATING_DELAY: Duration = Duration::from_secs(2);

/// The inode table and what is believed of each name.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<Ino, Node>,
    next_ino: u64,
    remembered: LruCache<(Ino, Name), (Memory, Instant)>,
    /// Serial number of the latest local change.
    changes_made: u64,
    /// Names changed here while a request was on its way, with the change's number.
    changed: HashMap<(Ino, Name), u64>,
    /// Changes up to this number are no longer in `changed`.
    changes_forgotten: u64,
    /// Requests on their way, by the change number at their start.
    tickets: BTreeMap<u64, usize>,
    ttl: Duration,
    negative_ttl: Duration,
}

/// Proof of when a request to S3 was asked, to be shown with its answer.
///
/// An answer may predate a local change made after the question, so such names are left alone.
/// Every ticket goes back through [`Tree::end`].
#[derive(Debug)]
#[must_use = "a ticket that never ends keeps every later change in memory"]
pub struct Ticket(u64);

#[derive(Clone, Debug)]
enum Memory {
    Found(Found),
    Absent,
}

#[derive(Debug)]
struct Node {
    /// `None` for the root, and for a node whose name is gone while it is still referenced.
    link: Option<(Ino, Name)>,
    lookups: u64,
    pins: u32,
    found: Found,
    fresh_until: Option<Instant>,
    /// Exists on this mount only, until its first commit.
    local: bool,
    changes: AttrChanges,
    children: HashMap<Name, Ino>,
    /// Set on the directory that stands for a bucket and prefix.
    volume: Option<(VolumeId, DirKey)>,
}

impl Node {
    fn new(link: Option<(Ino, Name)>, found: Found) -> Self {
        Self {
            link,
            lookups: 0,
            pins: 0,
            found,
            fresh_until: None,
            local: false,
            changes: AttrChanges::default(),
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
        let mut node = Node::new(None, Found::Dir { marker: Some(now) });
        node.volume = root;
        node.lookups = 1;
        let capacity = NonZeroUsize::new(REMEMBERED_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            nodes: HashMap::from([(ROOT, node)]),
            next_ino: ROOT.0 + 1,
            remembered: LruCache::new(capacity),
            changes_made: 0,
            changed: HashMap::new(),
            changes_forgotten: 0,
            tickets: BTreeMap::new(),
            ttl,
            negative_ttl,
        }
    }

    // ---- where things are

    /// The inode, whether or not its facts are still fresh.
    pub fn entry(&self, ino: Ino) -> Result<Entry> {
        let node = self.node(ino)?;
        Ok(Entry { ino, found: node.found.clone(), changes: node.changes })
    }

    /// Whether the inode's facts may be answered without asking S3.
    pub fn is_fresh(&self, ino: Ino, now: Instant) -> bool {
        self.nodes.get(&ino).is_some_and(|node| {
            ino == ROOT || node.local || node.link.is_none() || node.fresh_until.is_some_and(|t| now < t)
        })
    }

    /// Whether the file exists on this mount only.
    pub fn is_local(&self, ino: Ino) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.local)
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

    /// The path below the mount's root, for people.
    pub fn path_of(&self, ino: Ino) -> String {
        let mut names = Vec::new();
        let mut at = ino;
        while let Some((parent, name)) = self.nodes.get(&at).and_then(|node| node.link.as_ref()) {
            names.push(name.as_str());
            at = *parent;
        }
        names.reverse();
        names.join("/")
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
            let node = &self.nodes[&ino];
            if self.is_fresh(ino, now) {
                return Known::Is(Entry { ino, found: node.found.clone(), changes: node.changes });
            }
            return Known::Unknown;
        }
        let key = (parent, name.clone());
        match self.remembered.get(&key) {
            Some((_, until)) if now >= *until => {
                self.remembered.pop(&key);
                Known::Unknown
            }
            Some((Memory::Absent, _)) => Known::Absent,
            Some((Memory::Found(found), until)) => {
                let (found, until) = (found.clone(), *until);
                self.remembered.pop(&key);
                let ino = self.add(parent, name.clone(), found, Some(until));
                self.entry(ino).map_or(Known::Unknown, Known::Is)
            }
            None => Known::Unknown,
        }
    }

    /// The child as it stands in the table, fresh or not.
    pub fn child(&self, parent: Ino, name: &Name) -> Option<Ino> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// Children that exist only here, or changed here since the ticket was drawn: what a listing asked
    /// for with that ticket may lack.
    pub fn children_newer_than(&self, dir: Ino, ticket: &Ticket) -> Vec<(Name, Entry)> {
        let Some(node) = self.nodes.get(&dir) else { return Vec::new() };
        let mut newer: Vec<_> = node
            .children
            .iter()
            .filter(|(name, ino)| {
                self.nodes[ino].local
                    || ticket.0 < self.changes_forgotten
                    || self.changed.get(&(dir, (*name).clone())).is_some_and(|n| *n > ticket.0)
            })
            .filter_map(|(name, ino)| Some((name.clone(), self.entry(*ino).ok()?)))
            .collect();
        newer.sort_by(|a, b| a.0.cmp(&b.0));
        newer
    }

    /// Draws a ticket before a request is sent.
    pub fn begin(&mut self) -> Ticket {
        *self.tickets.entry(self.changes_made).or_default() += 1;
        Ticket(self.changes_made)
    }

    /// Gives a ticket back when its answer has been used.
    pub fn end(&mut self, ticket: Ticket) {
        if let Some(count) = self.tickets.get_mut(&ticket.0) {
            *count -= 1;
            if *count == 0 {
                self.tickets.remove(&ticket.0);
            }
        }
        match self.tickets.keys().next() {
            None => self.changed.clear(),
            Some(&oldest) => self.changed.retain(|_, number| *number > oldest),
        }
    }

    // ---- learning from S3

    /// Takes what S3 said of a name. Returns what is true now: the answer, or what changed here since
    /// the question was asked.
    pub fn learn(
        &mut self,
        parent: Ino,
        name: &Name,
        answer: Option<Found>,
        ticket: &Ticket,
        now: Instant,
    ) -> Option<Entry> {
        let overruled = self.changed.get(&(parent, name.clone())).is_some_and(|n| *n > ticket.0);
        let current = self.child(parent, name);
        if overruled || current.is_some_and(|ino| self.nodes[&ino].local) {
            return current.and_then(|ino| self.entry(ino).ok());
        }
        match answer {
            None => {
                if let Some(ino) = current {
                    self.detach(ino);
                }
                if self.nodes.contains_key(&parent) {
                    let until = now + self.negative_ttl;
                    self.remembered.put((parent, name.clone()), (Memory::Absent, until));
                }
                None
            }
            Some(found) => {
                let until = Some(now + self.ttl);
                let ino = self.put(parent, name, found, until)?;
                self.entry(ino).ok()
            }
        }
    }

    /// Remembers what a listing said of a name, without making an inode for it unless it has one.
    pub fn remember(&mut self, parent: Ino, name: &Name, found: Found, ticket: &Ticket, now: Instant) {
        let changed_since = self.changed.get(&(parent, name.clone())).is_some_and(|n| *n > ticket.0);
        if changed_since || ticket.0 < self.changes_forgotten {
            return;
        }
        let until = now + self.ttl;
        match self.child(parent, name) {
            Some(ino) if self.nodes[&ino].local => {}
            Some(_) => {
                self.put(parent, name, found, Some(until));
            }
            None if self.nodes.contains_key(&parent) => {
                self.remembered.put((parent, name.clone()), (Memory::Found(found), until));
            }
            None => {}
        }
    }

    /// Forgets how fresh a name is, so that the next question goes to S3.
    pub fn expire(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.fresh_until = None;
        }
    }

    // ---- changing here

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
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.local = local;
        }
        self.entry(ino)
    }

    /// A directory that stands for a bucket and prefix.
    pub fn add_volume(&mut self, name: &Name, volume: VolumeId, dir: DirKey, created: SystemTime) -> Ino {
        if let Some(ino) = self.child(ROOT, name) {
            return ino;
        }
        let ino = self.add(ROOT, name.clone(), Found::Dir { marker: Some(created) }, None);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.volume = Some((volume, dir));
            // A bucket of the mount stays as long as the mount.
            node.pins = 1;
            node.local = true;
        }
        ino
    }

    /// The file's bytes are in S3 as this now.
    pub fn committed(&mut self, ino: Ino, facts: Facts, now: Instant) {
        if let Some((parent, name)) = self.link_of(ino) {
            self.note_change(parent, &name);
        }
        let until = now + self.ttl;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.local = false;
            node.found = Found::File(facts);
            node.fresh_until = Some(until);
        }
    }

    /// The directory has a marker now.
    pub fn mark(&mut self, dir: Ino, at: SystemTime) {
        if let Some(Node { found: Found::Dir { marker }, .. }) = self.nodes.get_mut(&dir) {
            *marker = Some(at);
        }
    }

    /// The name is gone. A node still referenced lives on without a name.
    pub fn remove(&mut self, parent: Ino, name: &Name, now: Instant) {
        self.note_change(parent, name);
        if let Some(ino) = self.child(parent, name) {
            self.detach(ino);
        }
        if self.nodes.contains_key(&parent) {
            self.remembered.put((parent, name.clone()), (Memory::Absent, now + self.negative_ttl));
        }
    }

    /// Forgets what is remembered of a name that has no inode.
    pub fn forget_name(&mut self, parent: Ino, name: &Name) {
        self.remembered.pop(&(parent, name.clone()));
    }

    /// Relinks a node; whatever had the new name lives on without one.
    pub fn rename(&mut self, from: (Ino, &Name), to: (Ino, &Name), now: Instant) -> Result<()> {
        let ino = self.child(from.0, from.1).ok_or_else(|| Error::new(Kind::NotFound, "no such name"))?;
        self.note_change(from.0, from.1);
        self.note_change(to.0, to.1);
        if from == to {
            return Ok(());
        }
        // The new child comes before the old one goes: a directory that is empty in between, and that nobody
        // refers to, would be dropped.
        let target = self
            .nodes
            .get_mut(&to.0)
            .ok_or_else(|| Error::new(Kind::NotFound, "the target directory was removed"))?;
        let replaced = target.children.insert(to.1.clone(), ino);
        if let Some(node) = self.nodes.get_mut(&from.0) {
            node.children.remove(from.1);
        }
        let until = now + self.ttl;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.link = Some((to.0, to.1.clone()));
            node.fresh_until = Some(until);
        }
        self.remembered.pop(&(to.0, to.1.clone()));
        self.remembered.put((from.0, from.1.clone()), (Memory::Absent, now + self.negative_ttl));
        if let Some(node) = replaced.and_then(|old| self.nodes.get_mut(&old)) {
            node.link = None;
            node.local = false;
        }
        if let Some(old) = replaced {
            self.collect(old);
        }
        self.collect(from.0);
        Ok(())
    }

    /// A renamed file's object is this now.
    pub fn moved(&mut self, ino: Ino, facts: Facts) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.found = Found::File(facts);
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

    /// Inodes in the table.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        false // the root is always there
    }

    // ---- within

    fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).ok_or_else(unknown_inode)
    }

    fn note_change(&mut self, parent: Ino, name: &Name) {
        self.changes_made += 1;
        if self.changed.len() >= CHANGED_MAX {
            self.changed.clear();
            self.changes_forgotten = self.changes_made;
        }
        if !self.tickets.is_empty() {
            self.changed.insert((parent, name.clone()), self.changes_made);
        }
    }

    /// Sets what a name stands for, keeping its inode where the kind is the same.
    fn put(&mut self, parent: Ino, name: &Name, found: Found, until: Option<Instant>) -> Option<Ino> {
        self.nodes.get(&parent)?;
        if let Some(ino) = self.child(parent, name) {
            let node = self.nodes.get_mut(&ino)?;
            match (&mut node.found, found) {
                (Found::Dir { marker }, Found::Dir { marker: new }) => {
                    // A listing of the parent cannot see the marker; that is no news of its absence.
                    *marker = new.or(*marker);
                }
                (Found::File(old), Found::File(new)) => {
                    let same = old.etag == new.etag;
                    if !same {
                        node.changes.mtime = None;
                    }
                    // The same bytes, committed here a moment before S3 dated them: a time that moves by
                    // itself makes tools think that the file changed.
                    let settled = same && new.mtime <= old.mtime + DATING_DELAY;
                    let mtime = if settled { old.mtime } else { new.mtime };
                    *old = Facts { mtime, ..new };
                }
                (_, other) => {
                    self.detach(ino);
                    return Some(self.add(parent, name.clone(), other, until));
                }
            }
            node.fresh_until = until;
            return Some(ino);
        }
        Some(self.add(parent, name.clone(), found, until))
    }

    fn add(&mut self, parent: Ino, name: Name, found: Found, until: Option<Instant>) -> Ino {
        self.remembered.pop(&(parent, name.clone()));
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        let mut node = Node::new(Some((parent, name.clone())), found);
        node.fresh_until = until;
        self.nodes.insert(ino, node);
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.insert(name, ino);
        }
        ino
    }

    /// Takes a node's name away.
    fn detach(&mut self, ino: Ino) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let Some((parent, name)) = node.link.take() else { return };
        node.local = false;
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.remove(&name);
        }
        self.collect(ino);
        self.collect(parent);
    }

    /// Drops a node, and then its parents, as soon as nothing refers to it.
    fn collect(&mut self, ino: Ino) {
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { return };
            if node.lookups > 0 || node.pins > 0 || !node.children.is_empty() || node.local {
                return;
            }
            let Some(node) = self.nodes.remove(&at) else { return };
            let Some((parent, name)) = node.link else { return };
            if let Some(above) = self.nodes.get_mut(&parent) {
                above.children.remove(&name);
            }
            // What S3 said of the name outlives the inode for as long as it is believed.
            if let Some(until) = node.fresh_until.filter(|_| node.changes == AttrChanges::default()) {
                self.remembered.put((parent, name), (Memory::Found(node.found), until));
            }
            at = parent;
        }
    }

    /// Checks the invariants that a defect here would break first.
    pub fn check(&self) {
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

fn unknown_inode() -> Error {
    Error::new(Kind::Stale, "this inode is not known any more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;

    const TTL: Duration = Duration::from_secs(1);

    fn name(text: &str) -> Name {
        Name::parse(OsStr::new(text)).unwrap()
    }

    fn file(size: u64) -> Found {
        Found::File(Facts { size, etag: None, mtime: SystemTime::UNIX_EPOCH, archived: false })
    }

    fn dir() -> Found {
        Found::Dir { marker: None }
    }

    fn tree() -> Tree {
        Tree::new(Some((VolumeId(0), DirKey::root("p/"))), TTL, TTL, SystemTime::UNIX_EPOCH)
    }

    fn now() -> Instant {
        crate::base::Clock::now(&crate::base::SystemClock)
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
