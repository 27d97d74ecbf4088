//! (in work)
pub mod keys;
pub mod listing;
