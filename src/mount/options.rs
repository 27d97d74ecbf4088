//! What a mount's configuration says to its file system.

use std::path::PathBuf;
use std::sync::Arc;

use super::state_dir;
use crate::base::StagingPlace;
use crate::config::{MountConfig, Site};
use crate::error::Result;
use crate::fs::{CacheDir, Options};
use crate::write::journal::Journal;

pub(super) fn of_mount(config: &MountConfig, journal: Option<Arc<Journal>>) -> Result<Options> {
    Ok(Options {
        uid: config.uid,
        gid: config.gid,
        file_mode: config.file_mode,
        dir_mode: config.dir_mode,
        ttl: config.metadata_ttl,
        negative_ttl: config.negative_ttl,
        staging: config.staging,
        staging_reserve: config.state_reserve,
        durability: config.durability,
        upload_delay: config.upload_delay,
        posix: config.posix,
        exclusive: config.exclusive,
        on_conflict: config.on_conflict,
        cache: config.cache.clone().map(|cache| CacheDir { dir: cache.dir, limit_bytes: cache.limit_bytes }),
        passthrough: config.passthrough,
        ..match config.staging {
            StagingPlace::Disk => of_site(&config.site, journal)?,
            StagingPlace::Memory => with_staging(&config.site, PathBuf::new(), journal),
        }
    })
}

/// What is the same whether anybody looks at the files or they are only to be saved.
pub(super) fn of_site(site: &Site, journal: Option<Arc<Journal>>) -> Result<Options> {
    let staging_dir = site.state_dir.join("staging");
    state_dir::make_private(&site.state_dir, &staging_dir)?;
    Ok(with_staging(site, staging_dir, journal))
}

fn with_staging(site: &Site, staging_dir: PathBuf, journal: Option<Arc<Journal>>) -> Options {
    Options {
        timeout: site.timeout,
        memory_limit: site.memory_limit,
        // What is staged nowhere keeps nothing either.
        kept: staging_dir.parent().map(|state| state.join("attributes")),
        staging_dir,
        journal,
        ..Options::default()
    }
}
