//! pailfs mounts S3 buckets as directories.

pub mod base;
pub mod config;
pub mod control;
pub mod demo;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod mount;
pub mod read;
pub mod s3;
pub mod stats;
pub mod tree;
pub mod write;

pub mod cli;
