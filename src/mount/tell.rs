//! What the log has of a mount when all goes well: a line at its beginning and a line at its end.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::base::{Durability, StagingPlace, format_bytes};
use crate::config::MountConfig;
use crate::control::Unsaved;
use crate::s3::{Capabilities, Verdict};
use crate::stats::Stats;

/// Buckets that a line names; the rest is counted.
const NAMED_MAX: usize = 8;

/// A bucket that has answered, and what is known of its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) bucket: String,
    pub(super) region: String,
    /// `None` is AWS itself.
    pub(super) endpoint: Option<String>,
    /// What the server can do, in a few words.
    pub(super) capabilities: String,
}

/// What a server can do, as far as that is known without asking it.
pub(super) fn capabilities_of(is_aws: bool, found: Option<&Capabilities>) -> String {
    match found {
        _ if is_aws => "as AWS documents them".to_owned(),
        None => "not known yet".to_owned(),
        Some(found) => {
            let table = found.table();
            // A mount asks for what it needs alone; of the rest nothing is known.
            let tried = || table.iter().filter(|(_, verdict, _)| *verdict != Verdict::Unknown);
            let lacks: Vec<&str> = tried()
                .filter(|(_, verdict, _)| *verdict != Verdict::Works)
                .map(|(name, ..)| *name)
                .collect();
            match (lacks.is_empty(), tried().count() == table.len()) {
                (true, true) => "all".to_owned(),
                (true, false) => format!("all {} that were tried", tried().count()),
                (false, _) => format!("all but {}", lacks.join(", ")),
            }
        }
    }
}

/// It is live.
pub(super) fn mounted(config: &MountConfig, reached: &[Reached]) {
    let distinct = |of: fn(&Reached) -> &str| {
        let all: BTreeSet<&str> = reached.iter().map(of).collect();
        some(&all.into_iter().collect::<Vec<_>>())
    };
    tracing::info!(
        source = config.site.source.name(),
        mountpoint = config.mountpoint.display().to_string(),
        read_only = config.read_only,
        buckets = some(&reached.iter().map(|one| &*one.bucket).collect::<Vec<_>>()),
        region = distinct(|one| &one.region),
        endpoint = distinct(|one| one.endpoint.as_deref().unwrap_or("aws")),
        capabilities = distinct(|one| &one.capabilities),
        version = env!("CARGO_PKG_VERSION"),
        kernel = %rustix::system::uname().release().to_string_lossy(),
        memory_limit = format_bytes(config.site.memory_limit),
        timeout_s = config.site.timeout.as_secs_f64(),
        durability = match config.durability {
            Durability::Close => "close",
            Durability::Journal => "journal",
        },
        staging = match config.staging {
            StagingPlace::Disk => "disk",
            StagingPlace::Memory => "memory",
        },
        cache = config.cache.as_ref().map(|cache| format!("{} of {}", format_bytes(cache.limit_bytes), cache.dir.display())),
        "mounted"
    );
}

/// It is gone, and this is left.
pub(super) fn unmounted(mountpoint: &Path, uptime: Duration, stats: &Stats, left: &Unsaved) {
    let (mut requests, mut failed) = (0, 0);
    for ((_, outcome), count) in stats.requests() {
        requests += count;
        failed += if outcome == "ok" { 0 } else { count };
    }
    tracing::info!(
        mountpoint = mountpoint.display().to_string(),
        uptime_s = uptime.as_secs(),
        bytes_read = stats.bytes_read.value(),
        bytes_written = stats.bytes_written.value(),
        bytes_received = stats.bytes_received.value(),
        bytes_sent = stats.bytes_sent.value(),
        requests,
        requests_failed = failed,
        unsaved_files = left.files,
        unsaved_bytes = left.bytes,
        "unmounted"
    );
}

fn some(names: &[&str]) -> String {
    let mut text = names.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED_MAX {
        text.push_str(&format!(" and {} more", names.len() - NAMED_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_lacks_is_named() {
        assert_eq!(capabilities_of(true, None), "as AWS documents them");
        assert_eq!(capabilities_of(false, None), "not known yet");
        let mut found = Capabilities::of_aws();
        assert_eq!(capabilities_of(false, Some(&found)), "all");
        found.tagging = Verdict::Unknown;
        assert_eq!(capabilities_of(false, Some(&found)), "all 15 that were tried");
        found.delete_if_match = Verdict::Ignored;
        let told = capabilities_of(false, Some(&found));
        assert!(told.starts_with("all but ") && told.contains("delete"), "{told}");
    }

    #[test]
    fn many_buckets_are_counted() {
        let names: Vec<String> = (0..20).map(|n| format!("b{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(some(&names).ends_with("b7 and 12 more"), "{}", some(&names));
        assert_eq!(some(&names[..2]), "b0, b1");
    }
}
