//! The only place that names fuser: decodes what the kernel asks, answers it, and nothing else.
//!
//! What memory holds is answered on the thread that read the request. What has to wait for S3 becomes a task
//! with its own reply; the reply answers EIO if the task dies, so the kernel never waits for nothing.

mod convert;
mod device;
mod guarded;
mod mounted;
mod ops;
mod passthrough;
mod reply;
mod running;
mod trace;

pub use device::{check_inherited, inherited};
pub use mounted::{Mounted, Options, mount, unmount};
pub use trace::Trace;
