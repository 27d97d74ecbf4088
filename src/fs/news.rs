//! What the kernel has to be told: that attributes it keeps are not true any more.
//!
//! News is a value on a bounded queue; a thread of `fuse` that holds none of our locks passes it on. Only attributes
//! are taken back, never pages: the kernel would wait for a read of them that waits for us.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::lock;
use crate::tree::Ino;

/// News on its way; more than this is not told, and grows old in the kernel by itself within the metadata TTL.
const NEWS_MAX: usize = 256;
/// How long an answer waits for the kernel to have heard.
const HEARD_WAIT: Duration = Duration::from_secs(1);

/// The attributes of this inode have changed.
#[derive(Debug)]
pub struct News {
    pub ino: Ino,
    /// To be told when the kernel has heard.
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

    /// Tells that an inode has changed, and waits until that is known.
    pub(super) async fn tell(&self, ino: Ino) {
        if !self.is_heard.load(Ordering::Relaxed) {
            return;
        }
        let (heard, hearing) = oneshot::channel();
        if self.sender.try_send(News { ino, heard }).is_ok() {
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
            let _ = news.heard.send(());
            news.ino
        });
        room.tell(Ino(3)).await;
        assert_eq!(passing.await.unwrap(), Ino(3));
    }
}
