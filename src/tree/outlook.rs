//! What is listed ahead of whoever walks a tree, and where that may be relied on.
//!
//! Owns: how each volume's server lists, and with it the answer to every question that rests on its order. What was listed
//! is in [`ahead`](super::ahead), and who walks where in [`walk`](super::walk).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::ahead::{self, Ahead, Extent};
use super::keys::{DirKey, Name};
use super::listing::Order;
use super::walk::{Ask, Known, Walks};
use super::{Found, Ino, Ticket, VolumeId};
use crate::s3::ListPage;

#[derive(Debug)]
pub struct Outlook {
    ahead: Ahead,
    walks: Walks,
    servers: HashMap<VolumeId, Server>,
    /// How long what was listed is believed.
    ttl: Duration,
}

/// What is known of how a volume's server lists.
#[derive(Clone, Copy, Debug)]
struct Server {
    order: Order,
    /// Whether a grouped listing that begins in the middle shows everything from there on.
    begins_anywhere: bool,
    /// The same of a listing that is not grouped.
    begins_at_keys: bool,
    /// Length of the volume's own prefix in bytes.
    prefix_len: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self { order: Order::Known, begins_anywhere: true, begins_at_keys: true, prefix_len: 0 }
    }
}

/// What is known of a directory that is about to be listed.
#[derive(Debug)]
pub struct Opening {
    pub extent: Extent,
    /// To be asked for now, ahead of whoever is walking.
    pub asks: Vec<Ask>,
    /// A question on its way whose answer may tell.
    pub coming: Option<u64>,
}

impl Outlook {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ahead: Ahead::new(ttl), walks: Walks::default(), servers: HashMap::new(), ttl }
    }

    // ---- how servers list

    /// Sets how far the order of a volume's server is known; `prefix` is the volume's own.
    pub fn set_order(&mut self, volume: VolumeId, order: Order, prefix: &str) {
        let server = Server {
            order,
            begins_anywhere: order == Order::Known,
            begins_at_keys: order == Order::Known,
            prefix_len: prefix.len(),
        };
        self.servers.insert(volume, server);
    }

    pub fn order_of(&self, volume: VolumeId) -> Order {
        self.server(volume).order
    }

    /// Whether a grouped listing may begin in the middle.
    pub fn begins_anywhere(&self, volume: VolumeId) -> bool {
        self.server(volume).begins_anywhere
    }

    /// Whether a listing of all keys may begin in the middle.
    pub fn begins_at_keys(&self, volume: VolumeId) -> bool {
        self.server(volume).begins_at_keys
    }

    /// The server was found to begin a listing elsewhere than it was told to.
    pub fn begins_elsewhere(&mut self, volume: VolumeId) {
        let server = self.servers.entry(volume).or_default();
        // Where S3's documents are to be relied on, another client has changed the directory meanwhile.
        server.begins_at_keys = server.begins_anywhere;
    }

    /// The server was found to list out of order, or to begin listings elsewhere: from now on it is relied on for
    /// neither.
    pub fn distrust(&mut self, volume: VolumeId) {
        let server = self.servers.entry(volume).or_default();
        server.order = Order::Other;
        (server.begins_anywhere, server.begins_at_keys) = (false, false);
        self.ahead.forget_volume(volume);
        self.walks.forget_volume(volume);
    }

    fn server(&self, volume: VolumeId) -> Server {
        self.servers.get(&volume).copied().unwrap_or_default()
    }

    /// Whether it is certain where in the server's order a directory is.
    fn is_placed(&self, volume: VolumeId, dir: &DirKey) -> bool {
        let server = self.server(volume);
        match server.order {
            Order::Known => true,
            Order::Unknown => dir.prefix().get(server.prefix_len..).is_some_and(ahead::is_plain),
            Order::Other => false,
        }
    }

    // ---- walks

    /// A directory is about to be listed.
    pub fn open(&mut self, volume: VolumeId, dir: &DirKey, number: Ino, now: Instant) -> Opening {
        let plain = Opening { extent: Extent::Unknown, asks: Vec::new(), coming: None };
        // A listing that begins in the middle may leave names out without a sign of it, so the server has to be known.
        if self.order_of(volume) != Order::Known || self.ttl.is_zero() {
            return plain;
        }
        let extent = self.extent(volume, dir, now);
        let known = match &extent {
            Extent::Whole { asked, .. } if now.saturating_duration_since(*asked) > self.ttl / 2 => {
                Known::OldAlready
            }
            Extent::Whole { .. } => Known::All,
            _ => Known::Nothing,
        };
        let may_begin = self.is_placed(volume, dir);
        let asks = match ahead::ends_well(dir.prefix()) {
            true => self.walks.opened(volume, dir.prefix(), number, known, may_begin),
            false => Vec::new(),
        };
        let coming = if may_begin { self.walks.coming(volume, dir.prefix()) } else { None };
        Opening { extent, asks, coming }
    }

    /// The same for a directory whose opener has waited for what was coming.
    pub fn reopen(&mut self, volume: VolumeId, dir: &DirKey, now: Instant) -> Opening {
        let extent = self.extent(volume, dir, now);
        let asks = match extent {
            Extent::Whole { .. } => self.walks.served(volume, dir.prefix()),
            _ => Vec::new(),
        };
        let coming = self.walks.coming(volume, dir.prefix());
        Opening { extent, asks, coming }
    }

    /// A directory was listed to its end: some of its subdirectories, the first among them, and how many entries came
    /// before that.
    pub fn listed_to_end(&mut self, volume: VolumeId, dir: &DirKey, dirs: &[DirKey], before: usize) {
        let dirs = dirs.iter().map(|dir| dir.prefix().to_owned()).collect();
        self.walks.listed(volume, dir.prefix(), dirs, before);
    }

    /// Takes a page that was listed ahead; returns what to ask for next. A page that is not what was asked for is
    /// the last of this volume's.
    pub fn take(
        &mut self,
        ask: &Ask,
        page: ListPage,
        (ticket, asked): (&Ticket, Instant),
        now: Instant,
    ) -> Vec<Ask> {
        if self.order_of(ask.volume) == Order::Other {
            return Vec::new();
        }
        let last = page.objects.last().map(|object| object.key.as_str());
        let is_last = page.next.is_none();
        let last = if is_last { None } else { last.map(str::to_owned) };
        let span = ask.span(last.as_deref());
        if (last.is_none() && !is_last) || !ahead::is_sound(&page.objects, &ask.prefix, &span) {
            self.distrust(ask.volume);
            return Vec::new();
        }
        if self.order_of(ask.volume) == Order::Unknown && ahead::shows_byte_order(&page.objects) {
            self.servers.entry(ask.volume).or_default().order = Order::Known;
        }
        let Some(taken) = self.walks.taken_of(ask, last.as_deref()) else { return Vec::new() };
        let mut objects = page.objects;
        objects.truncate(objects.partition_point(|object| taken.contains(&object.key)));
        self.ahead.feed(ask.volume, taken, objects, asked, ticket.number(), now);
        self.walks.answered(ask, last.as_deref(), page.next)
    }

    /// Whether anybody still wants the answer to a question ahead.
    pub fn is_asked(&self, ask: &Ask) -> bool {
        self.walks.taken_of(ask, None).is_some()
    }

    /// A question ahead has ended, answered or not.
    pub fn end(&mut self, ask: &Ask) {
        self.walks.ended(ask);
    }

    fn extent(&self, volume: VolumeId, dir: &DirKey, now: Instant) -> Extent {
        if self.ahead.is_empty() || !ahead::ends_well(dir.prefix()) || !self.is_placed(volume, dir) {
            return Extent::Unknown;
        }
        self.ahead.extent(volume, dir.prefix(), now)
    }

    // ---- what was listed

    pub(super) fn is_empty(&self) -> bool {
        self.ahead.is_empty()
    }

    /// What was listed ahead says of a name, and when it was asked for.
    pub(super) fn find(
        &self,
        volume: VolumeId,
        dir: &DirKey,
        name: &Name,
        now: Instant,
    ) -> Option<(Option<Found>, Instant)> {
        if !self.is_placed(volume, dir) || !self.is_placed(volume, &dir.child(name).ok()?) {
            return None;
        }
        self.ahead.find(volume, dir, name, now)
    }

    /// Something in a directory changed, or below it, by the change of this number: what was listed of it is old.
    pub(super) fn touch(&mut self, volume: VolumeId, dir: &DirKey, deep: bool, number: u64) {
        self.ahead.touch(volume, dir.prefix(), deep, number);
    }

    /// The same of whatever there may be.
    pub(super) fn touch_all(&mut self, number: u64) {
        self.ahead.forget_all(number);
    }

    /// No question is on its way that a change may be newer than.
    pub(super) fn settle(&mut self) {
        self.ahead.settle();
    }

    /// Keeps what stays, by when it was asked for.
    pub(super) fn retain(&mut self, stays: impl FnMut(Instant) -> bool) {
        self.ahead.retain(stays);
    }

    /// Memory of what was listed, roughly, in bytes.
    pub(super) fn weight_bytes(&self) -> u64 {
        self.ahead.len() as u64 * ahead::KEY_BYTES as u64
    }
}
