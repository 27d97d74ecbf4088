//! Changes of what is beside an object's bytes: `chmod`, `chown`, `utimens`, extended attributes.
//!
//! Of a file such a change is like a write: it is in the journal before it is answered, rides with the next upload of a file
//! that is being written, and of one that is not, waits a moment for others and goes as one copy of the object onto itself.
//! Of a directory it is a Put of its marker, before the answer.
//!
//! A listing tells nothing of what is stored so. That it is worth asking stands in the marker of the directory
//! (`tree::posix::CARRIES`), and in those of the directories above it: it is there before the first such object is.

use std::sync::Arc;
use std::time::SystemTime;

use super::file::File;
use super::names::At;
use super::namespace::Claim;
use super::turns::Turn;
use super::volume::Volume;
use super::{Attr, Durability, Fs, PosixMode, lock};
use crate::error::{Error, Kind, Result};
use crate::s3::{Attributes, Condition, Metadata};
use crate::tree::keys::DirKey;
use crate::tree::posix::{self, Posix};
use crate::tree::xattrs;
use crate::tree::{AttrChanges, DirPlace, Ino, Marker, ROOT};

use super::markers::{marker_attributes, put_marker_with};

/// How often a marker is read and written again because another client did so in between.
const ROUNDS_MAX: u32 = 8;

impl Fs {
    /// What chmod, chown or utimens said.
    pub(super) async fn change_attributes(self: &Arc<Self>, ino: Ino, changes: AttrChanges) -> Result<()> {
        let entry = self.tree().entry(ino)?;
        if self.options.posix == PosixMode::Off {
            self.tree().change_attrs(ino, changes)?;
            return Ok(());
        }
        if entry.is_dir() {
            return self.describe_dir(ino, changes, |_| Ok(())).await;
        }
        self.describe_file(ino, changes, |_| Ok(())).await
    }

    /// Changes what is stored beside a file's bytes. S3 has it after the next save, which nobody need ask for.
    pub(super) async fn describe_file(
        self: &Arc<Self>,
        ino: Ino,
        changes: AttrChanges,
        change: impl Fn(&mut Attributes) -> Result<()>,
    ) -> Result<()> {
        // The table keeps it from now on, and its inode.
        self.tree().pin(ino);
        let opened = match self.nameless(ino) {
            Some(file) => Ok(file),
            None => self.within(self.current_file(ino, true)).await,
        };
        let file = opened.inspect_err(|_| self.tree().unpin(ino))?;
        let described = self.describe_opened(&file, changes, change);
        file.closed(true);
        file.hold(self);
        self.save_description(file);
        described
    }

    fn describe_opened(
        &self,
        file: &File,
        changes: AttrChanges,
        change: impl Fn(&mut Attributes) -> Result<()>,
    ) -> Result<()> {
        let entry = self.tree().entry(file.ino)?;
        let now = self.attr_of(&entry);
        // Of bytes that go there, S3 says when.
        let dated = file.unsaved().is_none().then_some(now.mtime);
        file.describe(self, |attributes| {
            change(attributes)?;
            self.write_posix(attributes, &now, changes, dated);
            require_fits(&attributes.metadata)
        })
    }

    /// Stores how something looks now, but for these changes; with `--posix=off` what it says stays as it is.
    fn write_posix(
        &self,
        attributes: &mut Attributes,
        now: &Attr,
        changes: AttrChanges,
        dated: Option<SystemTime>,
    ) {
        if self.options.posix != PosixMode::Off {
            let said = Posix::of(&attributes.metadata);
            posix::write(&mut attributes.metadata, &self.posix_changed(now, &said, changes, dated));
        }
    }

    /// An open file whose name is gone: what is changed of it is for its handles alone. It counts as opened once more.
    fn nameless(&self, ino: Ino) -> Option<Arc<File>> {
        let file = lock(&self.files).known(ino).filter(|file| file.is_orphan())?;
        file.opened(true);
        Some(file)
    }

    /// Sees to it that a change of a file that nobody writes to is saved. The caller's pin on the inode goes with it.
    fn save_description(self: &Arc<Self>, file: Arc<File>) {
        if file.is_dirty() && file.has_no_writer() {
            let after = match self.options.durability {
                Durability::Journal => self.options.upload_delay,
                Durability::Close => self.options.describe_delay,
            };
            self.save_in_background(file, after);
            return;
        }
        self.drop_if_unused(&file);
        self.tree().unpin(file.ino);
    }

    /// Changes what its marker says of a directory, which is made if there is none.
    pub(super) async fn describe_dir(
        self: &Arc<Self>,
        ino: Ino,
        changes: AttrChanges,
        change: impl Fn(&mut Attributes) -> Result<()>,
    ) -> Result<()> {
        let (_, volume, dir) = self.dir_in_volume(ino)?;
        if dir.marker_key().is_none() {
            // A bucket's own directory has no key to say it under.
            if changes == AttrChanges::default() {
                return Err(no_marker());
            }
            self.tree().change_attrs(ino, changes)?;
            return Ok(());
        }
        // Nobody removes or moves it meanwhile: its marker would be left behind.
        let kept = match dir.prefix() == volume.prefix {
            true => None,
            false => Some(self.keep_in_place(ino).await?),
        };
        let (_, volume, dir) = self.dir_in_volume(ino)?;
        // Together, because each may wait for another change of a marker first.
        let marker = self.within(async {
            if let Some((at, ..)) = kept.as_ref().filter(|_| self.options.posix != PosixMode::Off) {
                self.carry(at.parent).await?;
            }
            let entry = self.tree().entry(ino)?;
            let now = self.attr_of(&entry);
            self.change_marker(&volume, &dir, |attributes| {
                change(attributes)?;
                self.write_posix(attributes, &now, changes, Some(now.mtime));
                require_fits(&attributes.metadata)
            })
            .await
        });
        let marker = marker.await?;
        let mut tree = self.tree();
        tree.mark(ino, marker);
        if changes.mtime.is_some() {
            tree.changed_dir(ino, None);
        }
        drop(tree);
        Ok(())
    }

    /// Where a directory is, and stays as long as the rest of the answer is there.
    async fn keep_in_place(&self, ino: Ino) -> Result<(At, Turn<'_>, Claim)> {
        loop {
            let link = self.tree().link_of(ino);
            let Some((parent, name)) = link else {
                return Err(Error::new(Kind::NotFound, "the directory was removed"));
            };
            let turn = self.turns.take(parent, &name).await;
            if self.tree().link_of(ino).is_some_and(|now| now == (parent, name.clone())) {
                let (id, volume, dir) = self.dir_in_volume(parent)?;
                let (at, claim) = self.share(At { parent, name, id, volume, dir }, At::below).await?;
                return Ok((at, turn, claim));
            }
        }
    }

    /// Reads a marker, changes its metadata, and writes it, as it was or anew.
    async fn change_marker(
        &self,
        volume: &Volume,
        dir: &DirKey,
        change: impl Fn(&mut Attributes) -> Result<()>,
    ) -> Result<Marker> {
        let key = dir.marker_key().ok_or_else(no_marker)?;
        // Every empty object has the same ETag: no condition tells a marker from what it was before.
        let _turn = self.markers.take_key((volume.bucket.clone(), key.to_owned())).await;
        for _ in 0..ROUNDS_MAX {
            let found = match self.within(volume.store.head(&volume.bucket, key, None)).await {
                Ok(info) if info.size > 0 => {
                    let told = "the directory's marker has bytes of its own; move them away first";
                    return Err(Error::new(Kind::NotPermitted, told).on("describe", &volume.bucket, key));
                }
                Ok(info) => Some(info),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
            let expects = match &found {
                Some(info) => Condition::Matches(info.etag.clone()),
                None => Condition::Absent,
            };
            let mut attributes = match found {
                Some(info) => volume.new_objects.rewritten(info.attributes),
                None => marker_attributes(volume),
            };
            // Who made it is of no use any more.
            attributes.metadata.remove(posix::MADE);
            let before = attributes.clone();
            change(&mut attributes)?;
            if expects != Condition::Absent && before == attributes {
                return Ok(Marker::with(&before.metadata, self.clock.wall()));
            }
            let condition = if volume.honoured().await.put { expects } else { Condition::Any };
            let metadata = attributes.metadata.clone();
            match self.within(put_marker_with(volume, dir, condition, attributes)).await {
                Err(error) if matches!(error.kind(), Kind::AlreadyExists | Kind::Stale | Kind::NotFound) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    if volume.tries_marker() {
                        warn_if_forgotten(volume, key, &metadata).await;
                    }
                    return Ok(Marker::with(&metadata, self.clock.wall()));
                }
            }
        }
        Err(Error::new(Kind::Conflict, "the directory's marker is being replaced all the time"))
    }

    /// The same of the directory of a file that is about to be saved with this metadata.
    pub(super) async fn carry_of(&self, ino: Ino, metadata: &Metadata) -> Result<()> {
        let parent = self.tree().link_of(ino).map(|(parent, _)| parent);
        match parent {
            Some(parent) => self.carry_for(parent, metadata).await,
            None => Ok(()),
        }
    }

    /// The same where an object with this metadata is about to be made in it.
    pub(super) async fn carry_for(&self, dir: Ino, metadata: &Metadata) -> Result<()> {
        match self.options.posix {
            PosixMode::Off => Ok(()),
            _ if Posix::of(metadata).is_empty() => Ok(()),
            _ => self.carry(dir).await,
        }
    }

    /// Sees to it that whoever lists a directory asks for the attributes of what is in it.
    pub(super) async fn carry(&self, dir: Ino) -> Result<()> {
        let mut chain = Vec::new();
        let mut at = dir;
        loop {
            let (carries, place, link) = {
                let tree = self.tree();
                (tree.carries(at), tree.dir_place(at), tree.link_of(at))
            };
            if carries == Some(true) {
                break;
            }
            let Ok(DirPlace::In { volume, dir }) = place else { break };
            let volume = self.volume(volume)?;
            let at_top = dir.prefix() == volume.prefix;
            chain.push((at, volume, dir));
            match link {
                Some((parent, _)) if !at_top && at != ROOT => at = parent,
                _ => break,
            }
        }
        for (ino, volume, dir) in chain.into_iter().rev() {
            if dir.marker_key().is_some() {
                let flag = |attributes: &mut Attributes| {
                    attributes
                        .metadata
                        .entry(posix::CARRIES.to_owned())
                        .or_insert_with(|| "posix".to_owned());
                    Ok(())
                };
                match self.change_marker(&volume, &dir, flag).await {
                    Ok(marker) => self.tree().mark(ino, marker),
                    // Bytes are more than what is said beside them: a listing elsewhere will not ask for that.
                    Err(error) if may_never_be_written(&error) => {
                        let marker = dir.marker_key();
                        tracing::warn!(marker, error = %error.report(), "a directory cannot say that its files have attributes");
                    }
                    Err(error) => return Err(error),
                }
            }
            self.tree().set_carries(ino, true);
        }
        Ok(())
    }
}

/// Some servers keep directories as such, and nothing that is said beside their markers (SeaweedFS 4.48).
async fn warn_if_forgotten(volume: &Volume, marker: &str, said: &Metadata) {
    let told = volume.store.head(&volume.bucket, marker, None).await;
    if told.is_ok_and(|info| info.attributes.metadata != *said) {
        tracing::warn!(
            bucket = volume.bucket,
            marker,
            "the server keeps no metadata with markers of directories: owners, permissions and times that are set here show \
             on other mounts with --posix=full only, and those of directories on this one alone"
        );
    }
}

/// Whether a marker stays as it is however often it is tried.
fn may_never_be_written(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::NotPermitted | Kind::AccessDenied | Kind::Unsupported | Kind::InvalidArgument | Kind::Archived
    )
}

/// S3 takes 2 KB of metadata.
fn require_fits(metadata: &Metadata) -> Result<()> {
    if xattrs::fits(metadata) {
        return Ok(());
    }
    Err(no_room())
}

pub(super) fn no_room() -> Error {
    let told = "S3 keeps at most 2 KB of metadata with an object, names included, and this would be more";
    Error::new(Kind::NoSpace, told)
}

fn no_marker() -> Error {
    Error::new(Kind::NotPermitted, "a bucket's own directory has no object that could keep this")
}
