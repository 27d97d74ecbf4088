//! Sessions, clients, buckets and objects: the only place that names the AWS SDK.
//!
//! Owns: how a session is made, how requests are sent, retried, bounded and counted, and what an error of S3
//! means to a caller.
//! Does not own: names, caches, files. Nothing above sees an SDK type.
//!
//! Everything that talks to S3 does so through [`Store`]. [`Client`] is S3 over HTTP; [`MemStore`] is the pure
//! [`model`] in memory. `tests/store` holds both, and servers that we did not write, to the same promises.

mod answers;
mod attempts;
mod beside;
mod capability;
mod changes;
mod checksum;
mod client;
mod credentials;
mod customer_key;
mod failure;
mod http;
pub mod limits;
mod mem;
pub mod model;
mod patience;
mod payload;
mod profile;
pub mod resource;
mod secret;
mod session;
mod settings;
mod silence;
mod store;
mod trial;
mod types;

pub use beside::NewObjects;
pub use capability::{Capabilities, CapabilityCache, Depth, Probed, SCRATCH, Verdict, probe};
pub use checksum::{checksum_from, checksum_of, is_of_body, verify, whole_checksum};
pub use client::{Client, content_etag, multipart_etag, unreachable_because};
pub use customer_key::KeyPlace;
pub(crate) use mem::require_equal;
pub use mem::{Listing, MemStore, Moment, When};
pub use patience::{Progress, tell, watch, watch_all};
pub use payload::Payload;
pub use resource::{Bucket, Object};
pub use secret::Secret;
pub use session::{Caller, Session, SessionBuilder, SessionDescription};
pub use settings::{Described, PathStyle, SessionConfig, check_endpoint};
pub use store::{Store, read_all};
pub use trial::try_new_objects;
pub use types::*;
