//! The log's file, which others may rename under us.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::base::private;

pub struct LogFile {
    path: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    /// Whether standard output and error go there too.
    is_stdio: bool,
}

impl LogFile {
    /// `path` is absolute: the process leaves its directory.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = append(&path)?;
        Ok(Self { path, open: Mutex::new(Open { file, is_stdio: false }) })
    }

    /// From now on standard output and error go into the file: what the machine below us has to say, when it ends us, say.
    pub fn take_stdio(&self) -> io::Result<()> {
        let mut open = self.lock();
        point_stdio(&open.file)?;
        open.is_stdio = true;
        Ok(())
    }

    /// Opens the file of this name anew. If there is none to be had, lines go on into the one that is open.
    pub fn reopen(&self) -> io::Result<()> {
        let file = append(&self.path)?;
        let mut open = self.lock();
        if open.is_stdio {
            point_stdio(&file)?;
        }
        open.file = file;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log tells names of objects, which are nobody else's business.
fn append(path: &Path) -> io::Result<File> {
    private::append(path)
}

/// Sends standard output and error there.
pub fn point_stdio(file: &File) -> io::Result<()> {
    rustix::stdio::dup2_stdout(file)?;
    rustix::stdio::dup2_stderr(file)?;
    Ok(())
}

/// A line is written by one call, so no two mix.
impl Write for &LogFile {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.lock().file.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_was_renamed_is_made_anew_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogFile::open(path.clone()).unwrap();
        (&log).write_all(b"one\n").unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        (&log).write_all(b"two\n").unwrap();
        log.reopen().unwrap();
        (&log).write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read(dir.path().join("log.1")).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // A directory that went away loses no line.
        let gone = dir.path().join("sub");
        std::fs::create_dir(&gone).unwrap();
        let log = LogFile::open(gone.join("log")).unwrap();
        std::fs::remove_dir_all(&gone).unwrap();
        assert!(log.reopen().is_err());
        (&log).write_all(b"four\n").unwrap();
    }
}
