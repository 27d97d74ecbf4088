//! What the kernel may have cached and is not so any more, until somebody tells it.

use super::Ino;
use super::keys::Name;

/// What is lost beyond it is found out when its TTL has passed.
const KEPT_MAX: usize = 4_096;

/// What the kernel may have cached, and S3 has told otherwise of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// The name is gone.
    Entry { parent: Ino, name: Name },
    /// Size and times are others. The file is open, so its cached bytes are its handles' business.
    Attributes { ino: Ino },
    /// The bytes are others too.
    Data { ino: Ino },
}

#[derive(Debug, Default)]
pub(super) struct News(Vec<Invalidation>);

impl News {
    pub(super) fn push(&mut self, news: Invalidation) {
        if self.0.len() < KEPT_MAX {
            self.0.push(news);
        }
    }

    pub(super) fn take(&mut self) -> Vec<Invalidation> {
        std::mem::take(&mut self.0)
    }

    /// The kernel is told of this name and inode otherwise.
    pub(super) fn is_told(&mut self, parent: Ino, name: &Name, ino: Option<Ino>) {
        self.0.retain(|news| match news {
            Invalidation::Entry { parent: of, name: gone } => (*of, gone) != (parent, name),
            Invalidation::Attributes { ino: of } | Invalidation::Data { ino: of } => Some(*of) != ino,
        });
    }
}
