//! Listings: byte order, delimiters, pages.

use super::{Model, Version};
use crate::base::ETag;
use crate::error::{Kind, Result};
use crate::s3::limits::KEYS_PER_REQUEST;
use crate::s3::types::*;

impl Model {
    pub fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let bucket = self.bucket(&request.bucket)?;
        let max = usize::from(request.max_keys.unwrap_or(u16::MAX)).min(KEYS_PER_REQUEST);
        let mut page = ListPage::default();
        if max == 0 {
            return Ok(page);
        }
        // A token is the last key or common prefix that was listed.
        let token = match &request.continuation {
            Some(token) => Some(token.strip_prefix("after:").ok_or_else(|| {
                super::refused(Kind::InvalidArgument, 400, "InvalidArgument", "this is no token of ours")
            })?),
            None => request.start_after.as_deref(),
        };
        let resumed = request.continuation.is_some();
        let mut last = String::new();
        // Nothing before the token is shown, so nothing before it is looked at.
        let from = token.map_or(request.prefix.as_str(), |token| token.max(&request.prefix)).to_owned();
        for (key, versions) in bucket.keys.range(from..) {
            if !key.starts_with(&request.prefix) {
                break;
            }
            let Some(object) = versions.last().and_then(|v| v.object.as_ref()) else { continue };
            let common = common_prefix(key, &request.prefix, request.delimiter.as_deref());
            // `start-after` is about keys; a token is about what was listed, and a common prefix is listed once.
            let shown = if resumed { common.unwrap_or(key) } else { key };
            if token.is_some_and(|token| shown <= token) {
                continue;
            }
            if common.is_some() && page.common_prefixes.last().map(String::as_str) == common {
                continue;
            }
            if page.objects.len() + page.common_prefixes.len() == max {
                page.next = Some(format!("after:{last}"));
                break;
            }
            match common {
                Some(prefix) => {
                    last = prefix.to_owned();
                    page.common_prefixes.push(prefix.to_owned());
                }
                None => {
                    last = key.clone();
                    let class = object.attributes.storage_class.clone();
                    let archived = is_archived(class.as_deref(), false);
                    page.objects.push(ListedObject {
                        key: key.clone(),
                        size: object.body.len() as u64,
                        etag: object.etag.clone(),
                        last_modified: versions.last().map_or(std::time::SystemTime::UNIX_EPOCH, |v| v.at),
                        storage_class: Some(class.unwrap_or_else(|| "STANDARD".to_owned())),
                        restored: (archived && object.restored).then_some(true),
                    });
                }
            }
        }
        Ok(page)
    }

    pub fn list_versions(&self, request: &ListVersionsRequest) -> Result<VersionsPage> {
        let bucket = self.bucket(&request.bucket)?;
        let max = usize::from(request.max_keys.unwrap_or(u16::MAX)).min(KEYS_PER_REQUEST);
        let mut page = VersionsPage::default();
        let mut last: (String, Option<String>) = Default::default();
        let marker = request.key_marker.as_deref();
        for (key, versions) in bucket.keys.range(request.prefix.clone()..) {
            if !key.starts_with(&request.prefix) {
                break;
            }
            let common = common_prefix(key, &request.prefix, request.delimiter.as_deref());
            if let Some(prefix) = common {
                let listed = page.common_prefixes.last().map(String::as_str) == Some(prefix);
                if listed || marker.is_some_and(|marker| prefix <= marker) {
                    continue;
                }
                if page.versions.len() + page.common_prefixes.len() == max {
                    page.next = Some(last);
                    return Ok(page);
                }
                last = (prefix.to_owned(), None);
                page.common_prefixes.push(prefix.to_owned());
                continue;
            }
            if marker.is_some_and(|marker| key.as_str() < marker) {
                continue;
            }
            // Newest first; within the marker's key, only what comes after the marker's version.
            let mut skipping = marker == Some(key.as_str());
            if skipping && request.version_id_marker.is_none() {
                continue;
            }
            for (age, version) in versions.iter().rev().enumerate() {
                if skipping {
                    skipping = Some(id_of(version)) != request.version_id_marker.as_deref();
                    continue;
                }
                if page.versions.len() + page.common_prefixes.len() == max {
                    page.next = Some(last);
                    return Ok(page);
                }
                last = (key.clone(), Some(id_of(version).to_owned()));
                page.versions.push(listed(key, version, age == 0));
            }
        }
        Ok(page)
    }
}

fn id_of(version: &Version) -> &str {
    version.id.as_deref().unwrap_or("null")
}

fn listed(key: &str, version: &Version, is_latest: bool) -> ObjectVersion {
    let object = version.object.as_ref();
    ObjectVersion {
        key: key.to_owned(),
        version_id: id_of(version).to_owned(),
        is_latest,
        is_delete_marker: object.is_none(),
        size: object.map_or(0, |o| o.body.len() as u64),
        etag: object.map_or_else(|| ETag::new(""), |o| o.etag.clone()),
        last_modified: version.at,
    }
}

/// What a key is grouped into, delimiter included.
fn common_prefix<'a>(key: &'a str, prefix: &str, delimiter: Option<&str>) -> Option<&'a str> {
    let delimiter = delimiter.filter(|d| !d.is_empty())?;
    let at = key[prefix.len()..].find(delimiter)?;
    Some(&key[..prefix.len() + at + delimiter.len()])
}
