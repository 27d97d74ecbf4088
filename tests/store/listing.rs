//! Listings, held against a naive model of what S3 promises.

use std::collections::BTreeSet;
use std::time::Duration;

use pailfs::base::{Clock, SystemClock};
use pailfs::s3::ListRequest;

use crate::objects::put_all;
use crate::{Outcome, Place, ensure, same};

/// Names that sort differently as strings, as paths and by locale: bytes below `/` come before it.
const NAMES: &[&str] = &[
    "Z", "a", "a!", "a!/x", "a-", "a-x", "a-x/1", "a.b", "a/", "a/1", "a/2/3", "a0", "a0/b", "aa", "b/c",
    "b/c/d", "b0", "c/", "z", "é", "é/1", "\u{ffee}", "🪣",
];

pub async fn keys_come_in_byte_order(at: Place) -> Outcome {
    put_all(&at, NAMES).await?;
    same!(at.keys().await?, sorted(NAMES), "keys");
    Ok(())
}

pub async fn entries_tell_size_etag_and_time(at: Place) -> Outcome {
    let written = at.put("k", "twelve bytes").await?;
    let page = at.store.list(at.list_request("")).await?;
    ensure!(page.objects.len() == 1 && page.next.is_none(), "{page:?}");
    let entry = &page.objects[0];
    same!((entry.size, &entry.etag), (12, &written.etag), "size and etag");
    let head = at.store.head(&at.bucket, "k", None).await?;
    let apart = entry.last_modified.duration_since(head.last_modified);
    let apart = apart.unwrap_or_else(|before| before.duration());
    // LIST tells milliseconds where HEAD tells seconds.
    ensure!(apart < Duration::from_secs(1), "list and head are {apart:?} apart");
    let age = SystemClock.wall().duration_since(entry.last_modified).unwrap_or_default();
    ensure!(age < Duration::from_secs(300), "it is {age:?} old");
    Ok(())
}

pub async fn a_delimiter_groups_what_lies_below(at: Place) -> Outcome {
    put_all(&at, NAMES).await?;
    for prefix in ["", "a/", "b/", "é/", "nothing/"] {
        let request = ListRequest { delimiter: Some("/".into()), ..at.list_request(prefix) };
        let page = at.store.list(request).await?;
        same!(page.common_prefixes, groups(NAMES, prefix, ""), "prefixes under {prefix:?}");
        same!(
            page.objects.iter().map(|object| object.key.clone()).collect::<Vec<_>>(),
            files(NAMES, prefix, ""),
            "keys under {prefix:?}"
        );
    }
    Ok(())
}

pub async fn a_prefix_narrows_inside_a_name(at: Place) -> Outcome {
    put_all(&at, NAMES).await?;
    for prefix in ["a", "a-", "a-x", "a/2", "b/c"] {
        let wanted: Vec<String> = sorted(NAMES).into_iter().filter(|key| key.starts_with(prefix)).collect();
        let page = at.store.list(at.list_request(prefix)).await?;
        let got: Vec<String> = page.objects.into_iter().map(|object| object.key).collect();
        same!(got, wanted, "keys under {prefix:?}");
    }
    Ok(())
}

pub async fn a_prefix_that_holds_nothing_is_empty(at: Place) -> Outcome {
    at.put("a/1", "").await?;
    for prefix in ["b", "a/1/", "a/11"] {
        let page = at.store.list(at.list_request(prefix)).await?;
        ensure!(
            page.objects.is_empty() && page.common_prefixes.is_empty() && page.next.is_none(),
            "{page:?}"
        );
    }
    Ok(())
}

pub async fn a_marker_is_an_object_and_a_prefix(at: Place) -> Outcome {
    at.put("dir/", "").await?;
    let request = ListRequest { delimiter: Some("/".into()), ..at.list_request("") };
    let page = at.store.list(request).await?;
    ensure!(page.objects.is_empty(), "at the root it is an object: {page:?}");
    same!(page.common_prefixes, ["dir/"], "prefixes at the root");
    let request = ListRequest { delimiter: Some("/".into()), ..at.list_request("dir/") };
    let page = at.store.list(request).await?;
    ensure!(page.common_prefixes.is_empty(), "below itself it is a prefix: {page:?}");
    same!(
        page.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(),
        ["dir/"],
        "keys below itself"
    );
    same!(page.objects[0].size, 0, "size");
    Ok(())
}

pub async fn start_after_is_exclusive(at: Place) -> Outcome {
    put_all(&at, NAMES).await?;
    for after in NAMES.iter().copied().chain(["", "a/1/", "a-y", "~", "\u{10ffff}"]) {
        let request = ListRequest { start_after: Some(after.to_owned()), ..at.list_request("") };
        let got: Vec<String> =
            at.store.list(request).await?.objects.into_iter().map(|object| object.key).collect();
        let wanted: Vec<String> = sorted(NAMES).into_iter().filter(|key| key.as_str() > after).collect();
        same!(got, wanted, "keys after {after:?}");
    }
    Ok(())
}

pub async fn start_after_with_a_delimiter(at: Place) -> Outcome {
    put_all(&at, NAMES).await?;
    // Only names that lie in no group: what S3 does inside of one is not documented.
    for after in ["Z", "a", "a!", "a-", "a-w", "a.b", "a0", "b", "z"] {
        let request = ListRequest {
            delimiter: Some("/".into()),
            start_after: Some(after.to_owned()),
            ..at.list_request("")
        };
        let page = at.store.list(request).await?;
        let keys: Vec<String> = page.objects.into_iter().map(|object| object.key).collect();
        same!(
            (keys, page.common_prefixes),
            (files(NAMES, "", after), groups(NAMES, "", after)),
            "keys and prefixes after {after:?}"
        );
    }
    Ok(())
}

pub async fn every_page_size_gives_the_same_keys(at: Place) -> Outcome {
    put_all(&at, NAMES).await?;
    for size in 1..=u16::try_from(NAMES.len() + 1).expect("a short list") {
        let (keys, _) = walk(&at, ListRequest { max_keys: Some(size), ..at.list_request("") }).await?;
        same!(keys, sorted(NAMES), "keys by pages of {size}");
    }
    Ok(())
}

pub async fn every_page_size_gives_the_same_groups(at: Place) -> Outcome {
    put_all(&at, NAMES).await?;
    for size in 1..=u16::try_from(NAMES.len() + 1).expect("a short list") {
        let request =
            ListRequest { max_keys: Some(size), delimiter: Some("/".into()), ..at.list_request("") };
        let listed = walk(&at, request).await?;
        same!(listed, (files(NAMES, "", ""), groups(NAMES, "", "")), "keys and prefixes by pages of {size}");
    }
    Ok(())
}

pub async fn eleven_hundred_keys_take_two_pages(at: Place) -> Outcome {
    let keys: Vec<String> = (0..1100).map(|n| format!("k{n:04}")).collect();
    put_all(&at, &keys).await?;
    let first = at.store.list(at.list_request("")).await?;
    same!(first.objects.len(), 1000, "keys in the first page");
    same!(at.keys().await?, keys, "keys");
    Ok(())
}

pub async fn a_listing_shows_the_newest_state(at: Place) -> Outcome {
    for round in 0..20 {
        let key = format!("k{round}");
        at.put(&key, "").await?;
        same!(at.keys().await?, [key.as_str()], "keys after a put");
        at.delete(&key).await?;
        same!(at.keys().await?, Vec::<String>::new(), "keys after a delete");
    }
    Ok(())
}

/// Every page of a listing: keys, and prefixes. No page is longer than asked for, and none repeats.
async fn walk(at: &Place, mut request: ListRequest) -> Result<(Vec<String>, Vec<String>), crate::Deviation> {
    let most = usize::from(request.max_keys.unwrap_or(1000));
    let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
    for _ in 0..=NAMES.len() {
        let page = at.store.list(request.clone()).await?;
        let length = page.objects.len() + page.common_prefixes.len();
        ensure!(length <= most, "a page of {length} where {most} were asked for");
        keys.extend(page.objects.into_iter().map(|object| object.key));
        prefixes.extend(page.common_prefixes);
        match page.next {
            None => return Ok((keys, prefixes)),
            next => request.continuation = next,
        }
    }
    Err(crate::Deviation(format!("pages of {most} do not end: {keys:?}")))
}

fn sorted(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The model: what is under `prefix` and after `after`, without those that hold another `/`.
fn files(names: &[&str], prefix: &str, after: &str) -> Vec<String> {
    let below = |name: &String| name.strip_prefix(prefix).is_some_and(|rest| !rest.contains('/'));
    sorted(names).into_iter().filter(|name| name.as_str() > after && below(name)).collect()
}

/// The model: the others, each cut after its first `/` below the prefix.
fn groups(names: &[&str], prefix: &str, after: &str) -> Vec<String> {
    let group = |name: &String| {
        let cut = name.strip_prefix(prefix)?.find('/')?;
        Some(name[..=prefix.len() + cut].to_owned())
    };
    let groups: BTreeSet<String> =
        sorted(names).iter().filter(|name| name.as_str() > after).filter_map(group).collect();
    groups.into_iter().collect()
}
