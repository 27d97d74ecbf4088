//! The only place that names the AWS SDK.

pub mod limits;
mod mem;
pub mod model;
mod store;
mod types;

pub use mem::MemStore;
pub use store::Store;
pub use types::*;
