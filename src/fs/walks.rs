//! Listing ahead of whoever walks through directories: the requests to the plans of `tree::walk`.

use std::sync::{Arc, Mutex};

use super::pages::Page;
use super::volume::Volume;
use super::{Fs, lock};
use crate::base::{Priority, Turn};
use crate::s3::ListRequest;
use crate::tree::ahead::Extent;
use crate::tree::keys::DirKey;
use crate::tree::walk::Ask;
use crate::tree::{Ino, VolumeId};

/// Answers that the opener of a directory waits for: the page it may begin in, and the page it may end in.
const WAITS_MAX: u32 = 2;

/// The questions ahead of walks that are on their way: by number, and how each is made urgent by who waits for it.
#[derive(Default)]
pub(super) struct Asked(Mutex<Vec<(u64, Turn)>>);

impl Asked {
    /// Has to be called under the lock of the tree that named these questions: whoever hears of one by the tree
    /// finds it here.
    fn add(&self, asks: Vec<Ask>) -> Vec<(Ask, Turn)> {
        let asks: Vec<_> = asks.into_iter().map(|ask| (ask, Turn::default())).collect();
        lock(&self.0).extend(asks.iter().map(|(ask, turn)| (ask.serial, turn.clone())));
        asks
    }

    fn of(&self, serial: u64) -> Option<Turn> {
        lock(&self.0).iter().find(|(asked, _)| *asked == serial).map(|(_, turn)| turn.clone())
    }

    fn remove(&self, serial: u64) {
        lock(&self.0).retain(|(asked, _)| *asked != serial);
    }
}

impl Fs {
    /// A directory's whole listing, where it was listed ahead or is about to be. `None` where it has to be asked
    /// for by itself.
    pub(super) async fn listed_ahead(
        self: &Arc<Self>,
        id: VolumeId,
        volume: &Arc<Volume>,
        dir: &DirKey,
        ino: Ino,
    ) -> Option<Page> {
        let mut answers = self.ahead_answers.subscribe();
        let (mut opening, mut asks) = {
            let mut tree = self.tree();
            let mut opening = tree.outlook().open(id, dir, ino, self.clock.now());
            let asks = self.asked_ahead.add(std::mem::take(&mut opening.asks));
            (opening, asks)
        };
        let mut waits = 0;
        let mut awaited = None;
        loop {
            self.list_ahead(volume, asks);
            if let Extent::Whole { page, asked } = opening.extent {
                return Some(Page { list: page, asked });
            }
            let coming = opening.coming?;
            if awaited != Some(coming) {
                awaited = Some(coming);
                waits += 1;
            }
            if waits > WAITS_MAX {
                return None;
            }
            if let Some(turn) = self.asked_ahead.of(coming) {
                self.lanes.gate.wave_through(&turn);
            }
            answers.changed().await.ok()?;
            let mut tree = self.tree();
            opening = tree.outlook().reopen(id, dir, self.clock.now());
            asks = self.asked_ahead.add(std::mem::take(&mut opening.asks));
        }
    }

    /// Asks for pages, side by side, and for more as long as the walk wants them.
    fn list_ahead(self: &Arc<Self>, volume: &Arc<Volume>, asks: Vec<(Ask, Turn)>) {
        for (ask, turn) in asks {
            let (fs, volume) = (Arc::clone(self), Arc::clone(volume));
            tokio::spawn(async move {
                let waited_for = WaitedFor { fs: &fs, ask: &ask };
                let next = fs.take_page_ahead(&volume, &ask, &turn).await;
                drop(waited_for);
                fs.list_ahead(&volume, next);
            });
        }
    }

    async fn take_page_ahead(&self, volume: &Volume, ask: &Ask, turn: &Turn) -> Vec<(Ask, Turn)> {
        let pass = self.lanes.gate.enter(turn, Priority::Guess).await;
        if !self.tree().outlook().is_asked(ask) {
            // The walker has gone elsewhere meanwhile.
            return Vec::new();
        }
        // Until it is taken it is memory beside what is kept. A walk that there is no memory for ends.
        let Some(_room) = self.room.for_page() else { return Vec::new() };
        let (asking, moment) = (self.asking(), lock(&self.siblings).asking());
        let asked = self.clock.now();
        let request = ListRequest {
            bucket: volume.bucket.clone(),
            prefix: ask.prefix.clone(),
            start_after: ask.start_after.clone(),
            continuation: ask.continuation.clone(),
            ..ListRequest::default()
        };
        self.stats.listed_ahead_pages.add(1);
        let answer = volume.store.list(request).await;
        pass.done();
        match answer {
            Ok(page) => {
                lock(&self.siblings).learn(ask.volume, page.objects.iter(), true, moment, asked);
                let mut tree = self.tree();
                let next = tree.outlook().take(ask, page, (asking.ticket(), asked), self.clock.now());
                self.asked_ahead.add(next)
            }
            Err(error) => {
                // Whoever needs a directory asks for it, and hears why that fails.
                tracing::debug!(error = %error.report(), "listing ahead failed");
                Vec::new()
            }
        }
    }
}

/// A question that somebody may wait for. However it ends, they hear of it.
struct WaitedFor<'a> {
    fs: &'a Fs,
    ask: &'a Ask,
}

impl Drop for WaitedFor<'_> {
    fn drop(&mut self) {
        self.fs.tree().outlook().end(self.ask);
        self.fs.asked_ahead.remove(self.ask.serial);
        self.fs.ahead_answers.send_modify(|answers| *answers += 1);
    }
}
