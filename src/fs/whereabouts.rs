//! What an inode or a name is called outside: for logs, which people read.

use std::ffi::OsStr;

use super::Fs;
use crate::tree::keys::Name;
use crate::tree::{DirPlace, Ino, VolumeId};

/// Instead of a path, where the name is gone or stands for something else now.
pub(super) const UNLINKED: &str = "(unlinked)";

/// Path, bucket and key, as far as they are known. Nothing is asked of S3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Below the mount's root, which is `/`.
    pub path: String,
    pub bucket: Option<String>,
    pub key: Option<String>,
}

impl Fs {
    /// The path of an inode, below the mount's root.
    pub fn path_of(&self, ino: Ino) -> String {
        self.tree().path_of(ino).map_or_else(|| UNLINKED.to_owned(), |path| format!("/{path}"))
    }

    /// Where an inode is, or what has this name in it.
    pub fn whereabouts(&self, ino: Ino, name: Option<&OsStr>) -> Whereabouts {
        let mut path = self.path_of(ino);
        if let Some(name) = name {
            if !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(&name.to_string_lossy());
        }
        let (place, file) = {
            let tree = self.tree();
            (tree.dir_place(ino).ok(), tree.object_place(ino).ok())
        };
        let in_volume = |id: VolumeId, key: Option<String>| match self.volume(id) {
            Ok(volume) => (Some(volume.bucket.clone()), key),
            Err(_) => (None, None),
        };
        let (bucket, key) = match (place, name) {
            (Some(DirPlace::In { volume, dir }), Some(name)) => {
                let key = Name::parse(name).and_then(|name| dir.object_key(&name));
                in_volume(volume, key.ok())
            }
            (Some(DirPlace::In { volume, dir }), None) => {
                in_volume(volume, dir.marker_key().map(str::to_owned))
            }
            (Some(DirPlace::Buckets), Some(name)) => (Some(name.to_string_lossy().into_owned()), None),
            (Some(DirPlace::Buckets), None) => (None, None),
            (None, _) => file.map_or((None, None), |(volume, key)| in_volume(volume, Some(key))),
        };
        Whereabouts { path, bucket, key }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Maker, Options, Root, Volume};
    use super::*;
    use crate::base::SystemClock;
    use crate::s3::MemStore;
    use crate::tree::ROOT;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_name_is_told_by_path_bucket_and_key() {
        let store = MemStore::new(Arc::new(SystemClock), Arc::default()).with_bucket("bucket");
        let root = Root::Volume(Volume::new("bucket", "in/side/", Arc::new(store)));
        let fs = Fs::new(root, Options::default(), Arc::new(SystemClock), Arc::default()).unwrap();
        let dir = fs.mkdir(ROOT, OsStr::new("d"), Maker::of_mode(0o755)).await.unwrap().ino;
        let at = |ino, name: Option<&str>| {
            let Whereabouts { path, bucket, key } = fs.whereabouts(ino, name.map(OsStr::new));
            (path, bucket.unwrap_or_default(), key.unwrap_or_default())
        };
        let told = |path: &str, key: &str| (path.to_owned(), "bucket".to_owned(), key.to_owned());
        assert_eq!(at(dir, Some("f")), told("/d/f", "in/side/d/f"));
        assert_eq!(at(ROOT, Some("f")), told("/f", "in/side/f"));
        assert_eq!(at(dir, None), told("/d", "in/side/d/"));
        assert_eq!(at(Ino(4711), None), (UNLINKED.to_owned(), String::new(), String::new()));
    }
}
