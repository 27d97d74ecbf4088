//! What the kernel has to be told: that names, attributes or bytes it keeps are not true any more.
//!
//! News is a value on a bounded queue; a thread of `fuse` that holds none of our locks passes it on.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::lock;
use crate::tree::{Ino, Invalidation};

/// News on its way; more than this is not told, and grows old in the kernel by itself within the metadata TTL.
const NEWS_MAX: usize = 1024;
/// How long an answer waits for the kernel to have heard.
const HEARD_WAIT: Duration = Duration::from_secs(1);

/// Something that the kernel has to forget.
#[derive(Debug)]
pub struct News {
    pub what: Invalidation,
    /// Dropped when the kernel has heard, which is what somebody may wait for.
    pub heard: oneshot::Sender<()>,
}

pub(super) struct Newsroom {
    sender: mpsc::Sender<News>,
    /// Until somebody listens.
    receiver: Mutex<Option<mpsc::Receiver<News>>>,
    is_heard: AtomicBool,
}

impl Newsroom {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(NEWS_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)), is_heard: AtomicBool::new(false) }
    }

    /// For the one who passes news on; `None` where somebody does already.
    pub(super) fn listen(&self) -> Option<mpsc::Receiver<News>> {
        let receiver = lock(&self.receiver).take();
        self.is_heard.fetch_or(receiver.is_some(), Ordering::Relaxed);
        receiver
    }

    /// How much more of it may be on its way, where less than half of that is: it is made room for all at once.
    pub(super) fn room(&self) -> usize {
        let room = self.sender.capacity();
        if self.is_heard.load(Ordering::Relaxed) && room > NEWS_MAX / 2 { room } else { 0 }
    }

    /// Passes news on, if there is room for it.
    pub(super) fn pass(&self, what: Invalidation) -> Option<oneshot::Receiver<()>> {
        if !self.is_heard.load(Ordering::Relaxed) {
            return None;
        }
        let (heard, hearing) = oneshot::channel();
        self.sender.try_send(News { what, heard }).ok().map(|()| hearing)
    }

    /// Tells that the attributes of an inode have changed, and waits until that is known.
    pub(super) async fn tell(&self, ino: Ino) {
        if let Some(hearing) = self.pass(Invalidation::Attributes { ino }) {
            let _ = tokio::time::timeout(HEARD_WAIT, hearing).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn news_is_waited_for_where_somebody_listens() {
        let room = Newsroom::new();
        room.tell(Ino(2)).await;
        let mut receiver = room.listen().unwrap();
        assert!(room.listen().is_none());
        let passing = tokio::spawn(async move {
            let news = receiver.recv().await.unwrap();
            drop(news.heard);
            news.what
        });
        room.tell(Ino(3)).await;
        assert_eq!(passing.await.unwrap(), Invalidation::Attributes { ino: Ino(3) });
    }
}
