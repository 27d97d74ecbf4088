//! Bytes in: what was written and not yet in S3, and how it gets there.
//!
//! Owns: the extents of a file being written ([`Extents`]), its staged bytes ([`Staging`]), what is owed S3 beyond
//! the process's life ([`journal`]), the decision how to upload ([`plan`]), the bytes of a part (`source`) and the upload
//! itself ([`upload`]).
//! Does not own: names and keys (`tree`), which version a handle reads (`fs::File`), retries of one request
//! (`s3`).
//!
//! States of a file's bytes
//!
//! ```text
//!            write, truncate                commit begins
//!   Clean ------------------> Dirty --------------------------> Committing
//!     ^                       ^  ^                               |  |  |
//!     |   nothing was written |  '---- S3 failed, or something --'  |  |
//!     |   meanwhile           |        was written meanwhile        |  |
//!     '-----------------------+-------------------------------------'  |
//!                                      another client changed it       v
//!                                                                  Conflict
//! ```
//!
//! Invariants
//! 1. A byte becomes clean only after S3 answered 200 to the Put or Complete that carried it.
//! 2. A commit clears only what it carried: every write has a stamp, and what is newer stays dirty.
//! 3. A commit names the version it replaces: `If-None-Match: *` for a new file, `If-Match` for a changed one.
//! 4. A failed commit leaves every byte readable and dirty.
//! 5. A change is in the staging file and, where that is on a disk, in the journal before it is answered. What the
//!    journal says of a file makes the same file in another process.
//! 6. A part that left counts at the commit only for the very bytes it was sent with. Bytes that the disk let go of are
//!    in such a part; nobody reads them as zeros, and they change only after S3 has the file.
//! 7. Of every staged byte a sum is kept from the moment it was written (`sums`). Nothing is sent that differs from it,
//!    the sum that S3 is told follows from it, and nothing is saved of which S3 answers another.
//! 8. Before an object is made the journal says which: whoever finds it there knows that it is ours.

mod extents;
pub mod journal;
mod parts;
mod plan;
mod room;
mod source;
mod staging;
mod sums;
mod upload;

pub use extents::{Extents, Segment, What};
pub use parts::{Line, Parts};
pub use plan::{Layout, PartPlan, Plan, SINGLE_PUT_MAX, Sizes, equal, full_parts, plan};
pub use room::Room;
pub use source::{Base, Origin};
pub use staging::Staging;
pub use sums::{Sum, Sums};
pub use upload::{
    Conditions, CopySizes, Job, Lanes, Noted, PartRule, Target, abandon, copy_object, delete_object,
    delete_objects, head_with_tags, send_ahead, upload,
};
