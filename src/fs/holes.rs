//! Space that is asked for or given back, and holes that are looked for.
//!
//! S3 has neither: an object's zeros are bytes like any others. Until a file is saved its holes are known, and cost no
//! space in staging.

use std::time::SystemTime;

use super::file::{FILE_MAX, File};
use super::{Fs, lock};
use crate::base::ByteRange;
use crate::error::{Error, Kind, Result};

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
    pub fn fallocate(&self, fh: u64, offset: u64, len: u64, space: Space) -> Result<()> {
        let handle = self.handles.file(fh)?;
        if !handle.write {
            return Err(Error::new(Kind::BadHandle, "not open for writing"));
        }
        let Some(range) = ByteRange::at(offset, len) else {
            return Err(Error::new(Kind::InvalidArgument, "an empty range"));
        };
        if range.end() > FILE_MAX {
            return Err(Error::new(Kind::TooLarge, "S3 holds objects of up to 5 TiB here"));
        }
        if handle.file.allocate(range, space, self.clock.wall())? {
            self.tree().clear_mtime(handle.file.ino);
        }
        Ok(())
    }

    /// The first byte from `offset` on that is in a hole, or in none; `None` past the end.
    pub fn seek(&self, fh: u64, offset: u64, wanted: Hole) -> Result<Option<u64>> {
        self.handles.file(fh)?.file.seek(offset, wanted)
    }
}

impl File {
    /// Whether anything changed.
    fn allocate(&self, range: ByteRange, space: Space, now: SystemTime) -> Result<bool> {
        let mut state = lock(&self.state);
        let len = state.extents.len();
        let end = if space.keep_size { range.end().min(len) } else { range.end() };
        if space.zero
            && let Some(range) = ByteRange::new(range.start(), end)
        {
            let stamp = state.changing(end, now)?;
            state.extents.zero(range, stamp);
            return Ok(true);
        }
        if end <= len {
            return Ok(false);
        }
        let stamp = state.changing(end, now)?;
        state.extents.truncate(end, stamp);
        Ok(true)
    }

    fn seek(&self, offset: u64, wanted: Hole) -> Result<Option<u64>> {
        Ok(self.current()?.extents.seek(offset, wanted == Hole::Yes))
    }
}
