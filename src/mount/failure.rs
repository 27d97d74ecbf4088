//! Why there is no mount, or why it did not end well.

use std::io;

use crate::control::Unsaved;
use crate::error::{Error, Kind};

#[derive(Debug)]
pub struct Failure {
    pub stage: Stage,
    pub error: Error,
}

#[derive(Debug)]
pub enum Stage {
    /// A session could not be made of its settings.
    Session,
    /// S3 did not answer well.
    FirstRequest,
    /// A directory or socket of ours on this machine.
    Machine,
    /// The kernel.
    Fuse,
    /// It was mounted, and has ended with some files unsaved.
    Unsaved(Unsaved),
    /// A signal came, or whoever waited for the mount is gone.
    Interrupted,
}

impl Failure {
    pub(super) fn at(stage: Stage) -> impl FnOnce(Error) -> Self {
        |error| Self { stage, error }
    }

    pub(super) fn because(mut self, error: io::Error) -> Self {
        self.error = self.error.with_source(error);
        self
    }
}

pub(super) fn interrupted(when: &str) -> Failure {
    Failure { stage: Stage::Interrupted, error: Error::new(Kind::Local, format!("stopped {when}")) }
}
