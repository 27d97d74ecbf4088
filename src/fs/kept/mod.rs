//! Answers of HEAD about POSIX attributes, on local disk: they outlive the mount.
//!
//! Owns: the file, the thread that writes into it, and the judgement of which answers can be trusted.
//! Does not own: what an answer says (bytes, the caller's), or whether there is one at all to ask for.
//!
//! Guarantees to callers
//! - An answer found is the latest that was kept of exactly this bucket and key, and LIST showed the same ETag and
//!   LastModified then. Whatever is damaged, torn, shortened or missing is not found.
//! - An answer is kept only if it was asked for two seconds or more after LastModified. A copy of an object onto itself
//!   changes its metadata and not its ETag, and within one second not its LastModified either.
//! - Nothing here fails an operation or a mount: where there is no file there are no answers, and one on a disk that
//!   hangs is not waited for. What finds no room on its way there is not kept.
//! - Bounded in answers and in bytes on disk; in memory it is the queue alone, of a mebibyte.
//! - Several mounts may have one file open. Losing a race loses answers, never makes wrong ones.
//!
//! ```text
//! file:   header, as long as a page | page | page | ...
//! ```
//! The digest of bucket and key says which [page](page) an answer is on, if anywhere: looking for it is one read, keeping
//! it is one more write, and nothing has to be found out or put right when the file is opened, however the last mount
//! ended. Pages never written are holes. Nothing is ever synced: a page that a crash tore is an empty one.
//!
//! A thousand answers are found in 2 ms where the kernel has the file in memory, and in 12 ms where an SSD has it;
//! keeping one takes 4 µs.
//!
//! A database would be more than is asked for, and less. redb, which was looked at, checks its pages after a crash alone,
//! and then all of them: one damaged byte in a file that was closed well can be a panic or an abort (its issues 1303 and
//! 1334), which here is a lost mount. It is of one process, and wants a cache in memory and syncs. A cache may forget
//! and needs none of that. Facebook's CacheLib keeps its small objects on flash in this way.

mod behind;
mod page;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::Advice;
use tokio::task::JoinHandle;

use super::lock;
use crate::base::{Clock, ETag, private};
use behind::{Answer, Behind};
use page::{Identity, PAGE_BYTES, PAGE_ENTRIES_MAX, Page, VALUE_MAX_BYTES};

const MAGIC: &[u8; 8] = b"pailfs-k";
/// Number of the format. A file of another one is begun anew.
const FORMAT: u32 = 1;
/// How long after LastModified an answer can be trusted: it has whole seconds, and clocks differ.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How long the disk is waited for: about as long as S3 takes to answer as many questions as are asked here at once.
const READ_WAIT: Duration = Duration::from_secs(1);
/// How long a disk that failed or was waited for in vain is not asked again.
const REST: Duration = Duration::from_secs(60);
/// How long the end of a mount waits for what is on its way to the disk.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// An object as LIST shows it: as long as it does, what HEAD said of it is true.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    pub(super) key: &'a str,
    pub(super) etag: &'a ETag,
    pub(super) last_modified: SystemTime,
}

/// What is kept, if there is anywhere to keep it. The default is nowhere.
#[derive(Default)]
pub(super) struct Kept(Option<Arc<Shared>>);

struct Shared {
    file: File,
    pages: u64,
    behind: Behind,
    resting_until: Mutex<Option<Instant>>,
    /// Whether it was said that the disk fails.
    has_warned: AtomicBool,
    clock: Arc<dyn Clock>,
}

impl Kept {
    /// Opens or makes the file, in a directory that others cannot write to, for so many answers at the most (and never less
    /// than a page of 32); each of them takes 128 bytes on disk. One that is damaged, or was made for another number, is
    /// begun anew, and one that cannot be used is done without; both are said in a warning. Blocks.
    pub(super) fn open(path: &Path, entries_max: u64, clock: Arc<dyn Clock>) -> Self {
        let pages = (entries_max / PAGE_ENTRIES_MAX as u64).max(1);
        let opened = open_private(path, pages).and_then(|file| {
            let shared = Arc::new(Shared {
                file,
                pages,
                behind: Behind::default(),
                resting_until: Mutex::default(),
                has_warned: AtomicBool::new(false),
                clock,
            });
            let writer = Arc::clone(&shared);
            std::thread::Builder::new().name("kept".to_owned()).spawn(move || writer.write_all())?;
            Ok(shared)
        });
        match opened {
            Ok(shared) => Self(Some(shared)),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "attributes of files are not kept for the next mount");
                Self(None)
            }
        }
    }

    /// What is kept of each of these objects of one bucket, by whatever name tells it from all others. Reads the disk on
    /// a thread for that, and waits for it a second at the most. What was put just now may not be there yet.
    pub(super) async fn find(&self, bucket: &str, wanted: &[Listed<'_>]) -> Vec<Option<Vec<u8>>> {
        let nothing = vec![None; wanted.len()];
        let Some(shared) = self.0.as_ref().filter(|shared| !wanted.is_empty() && !shared.rests()) else {
            return nothing;
        };
        let wanted: Vec<Identity> = wanted.iter().map(|object| object.of(bucket)).collect();
        let reader = Arc::clone(shared);
        shared.in_time(tokio::task::spawn_blocking(move || reader.find(&wanted))).await.unwrap_or(nothing)
    }

    /// Keeps some time soon what was said of an object by a HEAD that was sent at `asked_at`. Does not block.
    pub(super) fn put(&self, bucket: &str, object: Listed<'_>, asked_at: SystemTime, value: &[u8]) {
        let Some(shared) = &self.0 else { return };
        let is_settled =
            object.last_modified.checked_add(SETTLED_AFTER).is_some_and(|settled| settled <= asked_at);
        if is_settled && value.len() <= VALUE_MAX_BYTES {
            shared.behind.offer(Answer { identity: object.of(bucket), value: value.into() });
        }
    }

    /// Waits until all that was put is in the file; `false` where that takes too long.
    #[cfg(test)]
    fn flush(&self, patience: Duration) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.behind.settle(patience))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.behind.close(CLOSE_WAIT);
        }
    }
}

impl Listed<'_> {
    fn of(&self, bucket: &str) -> Identity {
        Identity::new(bucket, self.key, self.etag, self.last_modified)
    }
}

impl Shared {
    /// In the order asked. Where the disk fails nothing more is found.
    fn find(&self, wanted: &[Identity]) -> Vec<Option<Vec<u8>>> {
        let mut found = vec![None; wanted.len()];
        let mut order: Vec<(u64, usize)> =
            wanted.iter().enumerate().map(|(n, identity)| (identity.page(self.pages), n)).collect();
        order.sort_unstable();
        if order.len() > 1 {
            // All are on their way from the disk while the first are looked at.
            for (number, _) in &order {
                let _ = rustix::fs::fadvise(&self.file, offset(*number), LEN, Advice::WillNeed);
            }
        }
        for of_one_page in order.chunk_by(|one, other| one.0 == other.0) {
            let page = match self.page(of_one_page[0].0) {
                Ok(page) => page,
                Err(error) => {
                    self.failed("reading", &error);
                    self.rest();
                    break;
                }
            };
            for (_, n) in of_one_page {
                found[*n] = page::find(&page, &wanted[*n]).map(<[u8]>::to_vec);
            }
        }
        found
    }

    /// What the disk answers, if it does in time.
    async fn in_time<T>(&self, reads: JoinHandle<T>) -> Option<T> {
        match tokio::time::timeout(READ_WAIT, reads).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                self.failed("reading", &ErrorKind::TimedOut.into());
                self.rest();
                None
            }
        }
    }

    /// Writes what is put until there will be no more.
    fn write_all(&self) {
        while let Some(mut turn) = self.behind.take() {
            // One that is put twice keeps its order.
            turn.answers.sort_by_key(|answer| answer.identity.page(self.pages));
            let of_one_page = |one: &Answer, other: &Answer| {
                one.identity.page(self.pages) == other.identity.page(self.pages)
            };
            for answers in turn.answers.chunk_by(of_one_page) {
                if let Err(error) = self.write(answers) {
                    // What is left of the turn would hardly fare better.
                    self.failed("writing", &error);
                    break;
                }
            }
        }
    }

    /// Writes answers that fall on one page.
    fn write(&self, answers: &[Answer]) -> io::Result<()> {
        let Some(first) = answers.first() else { return Ok(()) };
        let number = first.identity.page(self.pages);
        let mut page = self.page(number)?;
        for answer in answers {
            page = page::with(&page, &answer.identity, &answer.value);
        }
        self.file.write_all_at(&page, offset(number))
    }

    /// One that is behind the end of a file that somebody shortened is empty.
    fn page(&self, number: u64) -> io::Result<Page> {
        let mut page = [0; PAGE_BYTES];
        match self.file.read_exact_at(&mut page, offset(number)) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(page),
        }
    }

    fn rests(&self) -> bool {
        lock(&self.resting_until).is_some_and(|until| self.clock.now() < until)
    }

    fn rest(&self) {
        *lock(&self.resting_until) = Some(self.clock.now() + REST);
    }

    fn failed(&self, doing: &'static str, error: &io::Error) {
        if self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, doing, "the file of attributes that are kept fails");
        } else {
            tracing::warn!(%error, doing, "the file of attributes that are kept fails; going on without it");
        }
    }
}

/// Of a page.
const LEN: Option<NonZeroU64> = NonZeroU64::new(PAGE_BYTES as u64);

/// The header is as long as a page.
fn offset(page: u64) -> u64 {
    (1 + page) * PAGE_BYTES as u64
}

/// Opens the file of so many pages, or begins it anew.
fn open_private(path: &Path, pages: u64) -> io::Result<File> {
    let dir = path.parent().ok_or(ErrorKind::InvalidInput)?;
    // Others would say who owns which file.
    private::make_dir(dir)?;
    let header = header(pages);
    match private::open(path, OpenOptions::new().read(true).write(true)) {
        Ok(file) if is_of(&file, &header, pages)? => return Ok(file),
        Ok(_) => {
            let path = path.display();
            tracing::warn!(%path, "attributes of files that were kept are damaged or of another format: beginning anew");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if private::is_refusal(&error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "this is not where attributes of files were kept: beginning anew");
        }
        Err(error) => return Err(error),
    }
    // A mount that has the old file open goes on with it.
    let fresh = tempfile::Builder::new().prefix(".kept-").tempfile_in(dir)?;
    fresh.as_file().write_all_at(&header, 0)?;
    fresh.as_file().set_len(offset(pages))?;
    Ok(fresh.persist(path)?)
}

fn is_of(file: &File, header: &Page, pages: u64) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no file"));
    }
    let mut found = [0; PAGE_BYTES];
    Ok(metadata.len() == offset(pages) && file.read_exact_at(&mut found, 0).is_ok() && found == *header)
}

/// It is never parsed: the one that is expected is made, and the file has it or is of something else.
fn header(pages: u64) -> Page {
    let mut header = [0; PAGE_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[12..20].copy_from_slice(&pages.to_le_bytes());
    header
}

#[cfg(test)]
mod tests;
