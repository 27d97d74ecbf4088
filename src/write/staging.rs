//! Written bytes on local disk until S3 has them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::base::ByteRange;
use crate::error::{Error, Result};

/// A sparse local file without a name, holding a file's written bytes at their own offsets.
///
/// It vanishes with the process. Reads and writes touch the page cache and, at worst, the local disk; they
/// never wait for the network.
#[derive(Debug)]
pub struct Staging {
    file: File,
}

impl Staging {
    /// Opens a new staging file in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(|e| Error::from(e).on("stage", "", ""))?;
        Ok(Self { file })
    }

    /// Writes all of `data`, or says `NoSpace`.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(data, offset).map_err(Error::from)
    }

    /// Fills `buffer` from `offset`; what was never written reads as zeros.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => {
                    buffer[filled..].fill(0);
                    break;
                }
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Reads a range into a new buffer.
    pub fn bytes(&self, range: ByteRange) -> Result<Vec<u8>> {
        let mut buffer = vec![0; usize::try_from(range.len()).map_err(|_| too_large())?];
        self.read(&mut buffer, range.start())?;
        Ok(buffer)
    }
}

fn too_large() -> Error {
    Error::new(crate::error::Kind::TooLarge, "the range does not fit in memory")
}
