//! The signals that ask a program to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};

pub struct Signals {
    signals: [Signal; 3],
    /// What a hangup means to a process that no terminal can hang up: it asks for files to be opened anew.
    hangup: Option<Box<dyn Fn() + Send>>,
    /// Looked for beforehand: when it has hung up it is not found any more.
    terminal: bool,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    pub fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(Error::from);
        let signals = [
            listen(SignalKind::terminate())?,
            listen(SignalKind::interrupt())?,
            listen(SignalKind::hangup())?,
        ];
        Ok(Self { signals, hangup: None, terminal: has_terminal() })
    }

    /// Looks again whether a terminal can hang the process up.
    pub(super) fn look_for_terminal(&mut self) {
        self.terminal = has_terminal();
    }

    /// From now on a hangup does not ask to end, unless it is a terminal's.
    pub fn hangup_means(&mut self, what: impl Fn() + Send + 'static) {
        self.hangup = Some(Box::new(what));
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.signals;
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => match &self.hangup {
                    Some(what) if !self.terminal => what(),
                    _ => return,
                },
            }
        }
    }
}

/// Whether a terminal belongs to this process, whose end ends it.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}
