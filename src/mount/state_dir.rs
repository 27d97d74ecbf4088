//! The directory where mounts keep what has to outlive them.

use std::path::Path;

use crate::base::private;
use crate::error::{Error, Kind, Result};

/// Refuses a state directory that other users can write to: what lies in it side by side with the mounts' own directories
/// is believed (what a server can do, attributes), and they could put other directories in the place of those.
pub(super) fn require_trusted(state_dir: &Path) -> Result<()> {
    match private::check_dir_above(state_dir) {
        // It will be made for its user alone.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        checked => checked.map_err(|error| cannot_use(state_dir, &error)),
    }
}

/// Makes a directory in the state directory, and that one too, if they are not there; and refuses either where others can
/// write: they may have been there since the first look.
pub(super) fn make_private(state_dir: &Path, dir: &Path) -> Result<()> {
    private::make_dir(dir).map_err(|error| cannot_use(dir, &error))?;
    private::check_dir_above(state_dir).map_err(|error| cannot_use(state_dir, &error))
}

fn cannot_use(dir: &Path, error: &std::io::Error) -> Error {
    let dir = dir.display();
    if private::is_refusal(error) {
        let told = format!(
            "the state directory {dir} has to be a directory that only its user may write to: {error}"
        );
        return Error::new(Kind::InvalidArgument, told);
    }
    Error::new(Kind::Local, format!("cannot use the state directory {dir}: {error}"))
}
