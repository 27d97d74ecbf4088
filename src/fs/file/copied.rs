//! Objects that runs of a file are copied from.

use std::sync::Arc;

use crate::error::{Error, Kind};
use crate::read::Object;
use crate::write::{Base, Origin};

/// An object that runs of a file are copied from.
#[derive(Clone, Debug)]
pub(in crate::fs) struct Copied {
    pub(in crate::fs) object: Object,
    /// What to add to a place in the file for the place in the object; it wraps.
    pub(in crate::fs) shift: u64,
}

impl Copied {
    pub(in crate::fs) fn new(object: Object, shift: u64) -> Self {
        Self { object, shift }
    }

    pub(in crate::fs) fn origin(&self) -> Origin {
        Origin {
            object: Base {
                bucket: self.object.bucket.to_string(),
                key: self.object.id.key.to_string(),
                etag: self.object.id.etag.clone(),
            },
            size: self.object.size,
            shift: self.shift,
            store: Arc::clone(self.object.store()),
        }
    }
}

/// The object that a save failed for: something the file is copied from is no longer there.
pub(in crate::fs) async fn lost_source(origins: &[Origin], error: &Error) -> Option<Base> {
    if !matches!(error.kind(), Kind::Stale | Kind::AlreadyExists | Kind::NotFound) {
        return None;
    }
    for origin in origins {
        if matches!(origin.require_there().await, Err(error) if error.kind() == Kind::Stale) {
            return Some(origin.object.clone());
        }
    }
    None
}
