//! Directories as S3 knows them: the empty object that stands for one, and whether there is anything below it.

use bytes::Bytes;

use super::volume::Volume;
use crate::error::{Error, Kind, Result};
use crate::s3::{Attributes, Condition, ListRequest, ListedObject, PutRequest, limits};
use crate::tree::keys::DirKey;

/// Pages in a row that may have nothing in them.
const EMPTY_PAGES_MAX: u32 = 1_000;

/// The first keys of a directory, its marker included: so many or more, if it has them.
pub(super) async fn keys_below(volume: &Volume, dir: &DirKey, max: usize) -> Result<Vec<ListedObject>> {
    let max = max.min(limits::KEYS_PER_REQUEST);
    let mut request = ListRequest {
        bucket: volume.bucket.clone(),
        prefix: dir.prefix().to_owned(),
        max_keys: u16::try_from(max).ok(),
        ..ListRequest::default()
    };
    let mut below = Vec::new();
    // A page may have fewer keys than were asked for, and none at all, with more to come.
    for _ in 0..EMPTY_PAGES_MAX {
        let page = volume.store.list(request.clone()).await?;
        below.extend(page.objects);
        match page.next {
            Some(next) if below.len() < max && Some(&next) != request.continuation.as_ref() => {
                request.continuation = Some(next);
            }
            Some(_) if below.len() < max => {
                return Err(Error::new(Kind::Corrupt, "the listing repeats its continuation token"));
            }
            _ => return Ok(below),
        }
    }
    Err(Error::new(Kind::Corrupt, "the server goes on listing a directory without a name in it"))
}

/// Writes a directory's marker as it is where nothing is to be said of it.
pub(super) async fn put_marker(volume: &Volume, dir: &DirKey, condition: Condition) -> Result<()> {
    put_marker_with(volume, dir, condition, marker_attributes(volume)).await
}

/// What is beside a marker: it is typed as s3fs and Hadoop type it.
pub(super) fn marker_attributes(volume: &Volume) -> Attributes {
    Attributes {
        content_type: Some("application/x-directory".to_owned()),
        ..volume.new_objects.placeholder()
    }
}

/// Writes a directory's marker: an empty object whose key ends with `/`.
pub(super) async fn put_marker_with(
    volume: &Volume,
    dir: &DirKey,
    condition: Condition,
    attributes: Attributes,
) -> Result<()> {
    let request = PutRequest {
        bucket: volume.bucket.clone(),
        key: dir.marker_key().ok_or_else(no_marker)?.to_owned(),
        body: Bytes::new(),
        attributes,
        condition,
        checksum: None,
    };
    volume.store.put(request).await.map(drop)
}

pub(super) fn no_marker() -> Error {
    Error::new(Kind::InvalidArgument, "this directory cannot have a marker")
}
