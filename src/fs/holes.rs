//! Space that is asked for or given back, and holes that are looked for.
//!
//! S3 has neither: an object's zeros are bytes like any others. Until a file is saved its holes are known, and cost no
//! space in staging.

use super::Fs;
use super::file::{File, State, require_fits};
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::write::journal::Record;

/// What becomes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its bytes become zeros; else they stay as they are.
    pub zero: bool,
    /// It does not make the file longer.
    pub keep_size: bool,
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    Yes,
    No,
}

impl Fs {
    /// fallocate(2).
    pub async fn fallocate(&self, fh: u64, offset: u64, len: u64, space: Space) -> Result<()> {
        let handle = self.handles.file(fh)?;
        if !handle.write {
            return Err(Error::new(Kind::BadHandle, "not open for writing"));
        }
        let Some(range) = ByteRange::at(offset, len) else {
            return Err(Error::new(Kind::InvalidArgument, "an empty range"));
        };
        require_fits(range.end())?;
        loop {
            match handle.file.allocate(self, range, space)? {
                Some(true) => self.tree().clear_mtime(handle.file.ino),
                Some(false) => {}
                // Zeros over what was let go of: S3 has to have the file before.
                None => {
                    self.commit(&handle.file).await?;
                    continue;
                }
            }
            return Ok(());
        }
    }

    /// The first byte from `offset` on that is in a hole, or in none; `None` past the end.
    pub fn seek(&self, fh: u64, offset: u64, wanted: Hole) -> Result<Option<u64>> {
        self.handles.file(fh)?.file.seek(offset, wanted)
    }
}

impl File {
    /// Whether anything changed; `None` where bytes of the range were let go of.
    fn allocate(&self, fs: &Fs, range: ByteRange, space: Space) -> Result<Option<bool>> {
        let mut state = self.current()?;
        if space.zero && state.has_gone(range.start()) || !space.keep_size && state.outgrows(range.end()) {
            return Ok(None);
        }
        let len = state.extents.len();
        let end = if space.keep_size { range.end().min(len) } else { range.end() };
        let grows = end > len;
        if grows {
            let cut = |file, stamp, at| Record::Cut { file, len: end, stamp, at };
            let stamp = state.change(fs, self.ino, end, cut)?;
            self.note_uploads(&state);
            state.extents.truncate(end, stamp);
        }
        let hole = ByteRange::new(range.start(), end).filter(|_| space.zero);
        if let Some(range) = hole {
            self.zero(fs, &mut state, range)?;
        }
        Ok(Some(grows || hole.is_some()))
    }

    /// Makes zeros of what is there of a range.
    pub(super) fn zero(&self, fs: &Fs, state: &mut State, range: ByteRange) -> Result<()> {
        let zeroed = |file, stamp, at| Record::Zeroed { file, range, stamp, at };
        let stamp = state.change(fs, self.ino, range.end(), zeroed)?;
        self.note_uploads(state);
        state.extents.zero(range, stamp);
        Ok(())
    }

    fn seek(&self, offset: u64, wanted: Hole) -> Result<Option<u64>> {
        Ok(self.current()?.extents.seek(offset, wanted == Hole::Yes))
    }
}
