//! How far a file was written in order, and which of its parts leave next. Pure.

use crate::write::Layout;

/// How far a file was written in order, and what of that has been told to leave.
#[derive(Debug)]
pub(super) struct Ahead {
    pub(super) in_order: u64,
    /// Length of the object that the file is changed from, and of the file when it was last asked how what is written
    /// behind that would leave.
    pub(super) saved: u64,
    pub(super) asked: u64,
    /// Number and start of the part that leaves next.
    pub(super) next: (u16, u64),
    /// None leaves: one could not, which the commit will tell, or the file has bytes of an object before them.
    pub(super) stopped: bool,
    /// How large those parts are, once one has been told to leave.
    pub(super) layout: Option<Layout>,
    /// Bytes written since the disk was looked at.
    pub(super) unchecked: u64,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { in_order: 0, saved: 0, asked: 0, next: (1, 0), stopped: false, layout: None, unchecked: 0 }
    }
}

impl Ahead {
    /// Of a file as S3 has it.
    pub(super) fn of_object(len: u64) -> Self {
        Self { saved: len, asked: len, ..Self::default() }
    }

    /// The file was saved as it was at this length. What is written into one that was empty leaves as it does from a new
    /// one: a shell's `>` saves the file before the program writes.
    pub(super) fn saved(&mut self, len: u64) {
        *self = Self { stopped: len > 0, unchecked: self.unchecked, ..Self::of_object(len) };
    }

    /// The file was cut: a part that lost bytes leaves once more when it is full.
    pub(super) fn cut(&mut self, len: u64) {
        if len == 0 {
            *self = Self::default();
        }
        self.in_order = self.in_order.min(len);
        self.saved = self.saved.min(len);
        if self.next.1 > self.in_order {
            self.next = self.layout.map_or((1, 0), |layout| layout.part_at(self.in_order));
        }
    }

    /// What is written behind the object's bytes leaves too, where the numbers of parts follow from where they are.
    pub(super) fn behind_object(&mut self, layout: Layout) {
        if let Layout::Equal(_) = layout {
            self.in_order = self.saved;
            // The first may have some of those bytes; then it stays.
            self.next = layout.part_at(self.saved);
            (self.layout, self.stopped) = (Some(layout), false);
        }
    }
}
