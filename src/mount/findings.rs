//! What a mount has found out of its buckets: where each is reached, what its endpoint can do, and what people should
//! know of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::tell::{self, Reached};
use crate::base::SystemClock;
use crate::s3::{Capabilities, CapabilityCache, Probed, Session};

/// Buckets that `status` has a note of.
const NOTES_MAX: usize = 64;

/// What probes have found out, and what people should know of it.
pub(super) struct Findings {
    pub(super) capabilities: CapabilityCache,
    /// By bucket, and what they are about.
    notes: Mutex<BTreeMap<(String, Note), String>>,
    pub(super) places: Places,
    /// The session whose buckets all are shown.
    pub(super) shows_all: OnceLock<Arc<Session>>,
}

/// What a note of a bucket is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Note {
    Conditions,
    LeftBehind,
}

impl Findings {
    /// What is found out is kept in this directory, if there is one.
    pub(super) fn new(state_dir: Option<&Path>) -> Self {
        let capabilities = CapabilityCache::new(state_dir, Arc::new(SystemClock));
        Self { capabilities, notes: Mutex::default(), places: Places::default(), shows_all: OnceLock::new() }
    }

    /// What has answered, for the log.
    pub(super) fn reached(&self) -> Vec<Reached> {
        let of = |session: &Session, bucket: &str| {
            let endpoint = session.endpoint_url();
            let found = endpoint.as_deref().and_then(|endpoint| self.capabilities.kept(endpoint, bucket));
            Reached {
                bucket: bucket.to_owned(),
                region: session.known_region(bucket).unwrap_or_else(|| session.region()),
                capabilities: tell::capabilities_of(session.is_aws(), found.as_ref()),
                endpoint,
            }
        };
        match self.shows_all.get() {
            Some(session) => vec![of(session, "all")],
            None => self.places.all().iter().map(|place| of(&place.session, &place.bucket)).collect(),
        }
    }

    /// Keeps a note of a bucket, in the place of an earlier one about the same. Whether it is new.
    pub(super) fn note(&self, bucket: &str, about: Note, text: &str) -> bool {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, note) = ((bucket.to_owned(), about), format!("{bucket}: {text}"));
        if notes.get(&key) == Some(&note) || (notes.len() >= NOTES_MAX && !notes.contains_key(&key)) {
            return false;
        }
        notes.insert(key, note);
        true
    }

    /// What people should know of a probe: what it could not ask, and what it could not take away.
    pub(super) fn hear(&self, bucket: &str, probed: &Probed) {
        if let Some(why) = &probed.stopped {
            tracing::warn!(
                bucket,
                "the endpoint was not probed, because its answers would stay as objects: {why}"
            );
        }
        if !probed.left.is_empty() {
            self.note(bucket, Note::LeftBehind, &format!("a probe left behind {}", probed.left.join(", ")));
        }
    }

    /// What is known of a bucket's endpoint; Amazon's own does what it documents.
    pub(super) fn known(&self, place: &Place) -> Option<Capabilities> {
        match place.session.endpoint_url() {
            Some(endpoint) if !place.session.is_aws() => self.capabilities.known(&endpoint, &place.bucket),
            _ => Some(Capabilities::of_aws()),
        }
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// A bucket of the mount, and how it is reached.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) bucket: String,
    pub(super) prefix: String,
    pub(super) session: Arc<Session>,
    pub(super) read_only: bool,
}

/// The buckets that were opened, by name and prefix.
#[derive(Default)]
pub(super) struct Places(Mutex<BTreeMap<(String, String), Place>>);

impl Places {
    pub(super) fn add(&self, place: Place) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.insert((place.bucket.clone(), place.prefix.clone()), place);
    }

    pub(super) fn all(&self) -> Vec<Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_kept_for_each_bucket_and_there_are_not_too_many() {
        let findings = Findings::new(None);
        for n in (0..1000).chain(0..10) {
            findings.note(&format!("bucket-{n:04}"), Note::Conditions, "no conditions");
        }
        assert_eq!(findings.notes().len(), NOTES_MAX);
        assert_eq!(findings.notes()[0], "bucket-0000: no conditions");
    }
}
