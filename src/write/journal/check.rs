//! Whether the staging files of an earlier process are what was written into them.

use std::fs::File;
use std::io;
use std::path::Path;

use super::ledger::OwedFile;
use crate::base::{ByteRange, private};
use crate::write::What;
use crate::write::staging::{fill, hole_in};
use crate::write::sums::{Sum, as_it_was};

/// Which bytes are held to their sums. What is sent is held to them again, whatever was looked at here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Those that the end of the process or of the machine may have caught half-way.
    AtDoubtful,
    /// All: somebody asks what is wrong.
    AtAll,
}

/// Finds out what is wrong about the bytes of a file, and what their sums are where nobody knew.
pub(super) fn check(staging: &Path, file: &mut OwedFile, look: Look) {
    file.damage = length(staging, file);
    if file.damage.is_none()
        && let Err(damage) = sums(staging, file, look)
    {
        file.damage = Some(damage);
    }
}

fn length(staging: &Path, file: &OwedFile) -> Option<String> {
    if file.staged_len == 0 {
        return None;
    }
    let path = staging.join(&file.staging);
    match private::open_to_read(&path).and_then(|disk| disk.metadata()) {
        Ok(found) if found.len() >= file.staged_len => None,
        Ok(found) => {
            Some(format!("{} has {} of at least {} bytes", path.display(), found.len(), file.staged_len))
        }
        Err(error) => Some(format!("{}: {error}", path.display())),
    }
}

fn sums(staging: &Path, file: &mut OwedFile, look: Look) -> Result<(), String> {
    let all = file.extents.all();
    let staged: Vec<ByteRange> =
        all.iter().filter(|run| matches!(run.what, What::Staged(_))).map(|run| run.range).collect();
    if staged.is_empty() {
        return Ok(());
    }
    let path = staging.join(&file.staging);
    let disk = match private::open_to_read(&path) {
        // Bytes that the journal has itself are put there when a mount takes it over.
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.staged_len == 0 => return Ok(()),
        disk => disk.map_err(|error| format!("{}: {error}", path.display()))?,
    };
    let told = |error: io::Error| format!("{}: {error}", path.display());
    let mut doubts = false;
    for range in staged {
        let mut at = range.start();
        for run in file.sums.overlapping(range) {
            // Of these bytes nothing was written down, by an older version or because the journal has them itself.
            if let Some(gap) = ByteRange::new(at, run.range.start()) {
                doubts = true;
                learn(&disk, file, gap).map_err(told)?;
            }
            at = run.range.end();
            let open: Vec<Sum> = file
                .overwriting
                .iter()
                .filter(|piece| piece.range.intersect(run.range) == Some(piece.range))
                .copied()
                .collect();
            if look == Look::AtDoubtful && !file.suspect && open.is_empty() {
                continue;
            }
            let is = sum_of(&disk, run.range).map_err(told)?;
            let pieces = open.iter().map(|was| Ok((*was, sum_of(&disk, was.range)?.crc)));
            let pieces = pieces.collect::<io::Result<Vec<_>>>().map_err(told)?;
            if as_it_was(is, pieces) != run.crc {
                if was_let_go(&disk, file, run.range).map_err(told)? {
                    continue;
                }
                return Err(format!("bytes {} of {} are not what was written", run.range, path.display()));
            }
            if !open.is_empty() {
                // Nobody was told that they had been written over.
                doubts = true;
                file.sums.put(&[is]);
                file.overwriting.retain(|piece| !open.contains(piece));
            }
        }
        if let Some(gap) = ByteRange::new(at, range.end()) {
            doubts = true;
            learn(&disk, file, gap).map_err(told)?;
        }
    }
    // They were not acknowledged before the machine went down, and are there all the same.
    file.suspect &= doubts;
    Ok(())
}

/// What is there now is all that can be known of it.
fn learn(disk: &File, file: &mut OwedFile, range: ByteRange) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start();
    while let Some(step) = ByteRange::new(at, range.end().min(at + buffer.len() as u64)) {
        let data = &mut buffer[..usize::try_from(step.len()).unwrap_or(0)];
        fill(disk, data, at)?;
        let sums = file.sums.after(step, data, &[]);
        file.sums.put(&sums);
        at = step.end();
    }
    Ok(())
}

fn sum_of(disk: &File, range: ByteRange) -> io::Result<Sum> {
    let mut buffer = vec![0; usize::try_from(range.len()).unwrap_or(usize::MAX)];
    fill(disk, &mut buffer, range.start())?;
    Ok(Sum::of(range, &buffer))
}

/// Whether S3 has the bytes in a part, and the disk has them no more.
fn was_let_go(disk: &File, file: &OwedFile, run: ByteRange) -> io::Result<bool> {
    let parts = file.upload.iter().flat_map(|upload| upload.parts.values());
    let is_there = parts.map(|sent| sent.range).any(|part| part.intersect(run).is_some());
    Ok(is_there && hole_in(disk, run)?.is_some())
}
