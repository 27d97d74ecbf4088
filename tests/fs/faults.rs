//! Fail the n-th request, for every n: no acknowledged byte is lost, and no object is wrong.
//!
//! Each scenario runs once for each of its requests and each way in which that fails: before anything happened, or after
//! it was done with the answer lost; or with all that follow, until the scenario is over.

use std::sync::Arc;

use pailfs::error::Kind;
use pailfs::fs::SetAttr;
use pailfs::s3::When;

use crate::client::{Client, READ, REWRITE, WRITE};
use crate::harness::block_on;

/// What a scenario was told had worked: path and bytes, or that nothing is there.
type Acknowledged = Vec<(String, Option<Vec<u8>>)>;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

/// How requests fail from the `n`-th on.
#[derive(Clone, Copy, Debug)]
struct Failure {
    n: u64,
    when: When,
    lasts: bool,
}

impl Failure {
    /// One for every request that a scenario may make, in order.
    fn each() -> impl Iterator<Item = [Self; 3]> {
        let ways = [(When::Before, false), (When::After, false), (When::Before, true)];
        (1..).map(move |n| ways.map(|(when, lasts)| Self { n, when, lasts }))
    }

    fn begin(self, client: &Client) {
        client.store.clear_calls();
        if self.lasts {
            client.store.fail_from_nth(self.n, Kind::Server, self.when);
        } else {
            client.store.fail_nth(self.n, Kind::Server, self.when);
        }
    }

    /// Whether there was no such request.
    fn was_past_the_end(self, client: &Client) -> bool {
        (client.store.calls().len() as u64) < self.n
    }
}

/// Runs a scenario with its n-th request failing, for every n and every way of failing. Whatever happens, what was
/// acknowledged has to be there afterwards, and every object has to be one of `allowed`.
fn for_every_request<F>(prepare: &[(&str, Vec<u8>)], allowed: &[Vec<u8>], scenario: impl Fn(Client) -> F)
where
    F: Future<Output = (Client, Acknowledged)>,
{
    block_on(async {
        for failures in Failure::each() {
            let mut went_on = false;
            for failure in failures {
                let client = Client::new();
                for (key, bytes) in prepare {
                    client.put_object(key, bytes).await;
                }
                failure.begin(&client);
                let (client, acknowledged) = scenario(client).await;
                went_on |= !failure.was_past_the_end(&client);
                fail_no_more(&client);
                // Let what was kept be saved now.
                let _ = client.fs.flush_all().await;
                client.pass_ttl();
                for (path, bytes) in acknowledged {
                    let found = client.read(&path).await;
                    let fine = match (&found, &bytes) {
                        (Ok(found), Some(bytes)) => found == bytes,
                        (Err(error), None) => error.kind() == Kind::NotFound,
                        _ => false,
                    };
                    let found = found.map(|found| found.len()).map_err(|error| error.report());
                    assert!(fine, "{failure:?}: {path} was acknowledged and is {found:?}");
                }
                for key in client.keys().await {
                    let object = client.object(&key).await.unwrap();
                    let fine = object.is_empty() || allowed.contains(&object);
                    assert!(fine, "{failure:?}: {key} is an object nobody wrote");
                }
            }
            if !went_on {
                assert!(failures[0].n > 1, "the scenario makes no request");
                break;
            }
        }
    });
}

/// The file is written anew as a whole, and closed.
async fn written(client: Client, new: Vec<u8>) -> (Client, Acknowledged) {
    let done = client.write("f", &new).await.is_ok();
    (client, acknowledged(done, new))
}

/// A write of `bytes` from `at` on and a close; what was acknowledged is the whole file, `new`.
async fn changed(client: Client, at: u64, bytes: &[u8], new: Vec<u8>) -> (Client, Acknowledged) {
    let done = client.write_at("f", at, bytes).await.is_ok();
    (client, acknowledged(done, new))
}

fn acknowledged(done: bool, file: Vec<u8>) -> Acknowledged {
    if done { vec![("f".to_owned(), Some(file))] } else { Vec::new() }
}

/// What follows only looks at the outcome.
fn fail_no_more(client: &Client) {
    client.store.refuse_nothing();
}

#[test]
fn a_small_write() {
    let (old, new) = (pattern(1000, 1), pattern(2000, 2));
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| written(client, new.clone()));
}

#[test]
fn a_multipart_write() {
    let new = pattern(17 << 20, 3);
    for_every_request(&[], std::slice::from_ref(&new), |client| written(client, new.clone()));
}

#[test]
fn a_write_that_copies_what_did_not_change() {
    let old = pattern(18 << 20, 4);
    let mut new = old.clone();
    new[9 << 20..(9 << 20) + 10].fill(0);
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| {
        changed(client, 9 << 20, &[0; 10], new.clone())
    });
}

/// Copies a range between two files; whether the target was saved.
async fn copied(client: &Client, from: (&str, u64), to: (&str, u64), len: u64) -> bool {
    let Ok(source) = client.open(from.0, READ).await else { return false };
    let mut done = false;
    if let Ok(target) = client.open(to.0, WRITE).await {
        let answer = client.fs.copy_range((source.1, from.1), (target.1, to.1), len).await;
        done = client.close(target).await.is_ok() && answer.is_ok_and(|copied| copied == len);
    }
    let _ = client.close(source).await;
    done
}

#[test]
fn a_copy_of_an_object() {
    let bytes = pattern(6 << 20, 8);
    for_every_request(&[("f", bytes.clone())], std::slice::from_ref(&bytes), |client| {
        let bytes = bytes.clone();
        async move {
            let done = copied(&client, ("f", 0), ("g", 0), 6 << 20).await;
            let kept = [("f".to_owned(), Some(bytes.clone())), ("g".to_owned(), Some(bytes))];
            (client, kept[..1 + usize::from(done)].to_vec())
        }
    });
}

#[test]
fn a_copy_into_a_large_file() {
    let (source, old) = (pattern(18 << 20, 9), pattern(24 << 20, 10));
    let mut new = old.clone();
    new[7 << 20..(7 << 20) + (17 << 20)].copy_from_slice(&source[100..100 + (17 << 20)]);
    let allowed = [source.clone(), old.clone(), new.clone()];
    for_every_request(&[("f", source.clone()), ("g", old)], &allowed, |client| {
        let (source, new) = (source.clone(), new.clone());
        async move {
            let done = copied(&client, ("f", 100), ("g", 7 << 20), 17 << 20).await;
            let kept = [("f".to_owned(), Some(source)), ("g".to_owned(), Some(new))];
            (client, kept[..1 + usize::from(done)].to_vec())
        }
    });
}

/// Whatever request fails while the source goes or changes here, what was copied from it and not saved stays right.
fn an_unsaved_copy_outlives<F>(act: impl Fn(Arc<Client>) -> F)
where
    F: Future<Output = bool>,
{
    block_on(async {
        let bytes = pattern(9 << 20, 11);
        for failures in Failure::each() {
            let mut went_on = false;
            for failure in failures {
                let client = Arc::new(Client::new());
                client.put_object("d/f", &bytes).await;
                client.put_object("d/other", b"other").await;
                let source = client.open("d/f", READ).await.unwrap();
                let target = client.open("g", WRITE).await.unwrap();
                client.fs.copy_range((source.1, 0), (target.1, 3), 9 << 20).await.unwrap();
                failure.begin(&client);
                let _ = act(Arc::clone(&client)).await;
                went_on |= !failure.was_past_the_end(&client);
                fail_no_more(&client);
                let read = client.read_all(target.1).await;
                assert!(read.is_ok_and(|read| read[3..] == bytes), "{failure:?}");
                client.close(target).await.unwrap();
                let _ = client.close(source).await;
                assert!(client.object("g").await.unwrap()[3..] == bytes, "{failure:?}");
            }
            if !went_on {
                break;
            }
        }
    });
}

#[test]
fn a_removal_of_what_was_copied() {
    an_unsaved_copy_outlives(|client| async move { client.unlink("d/f").await.is_ok() });
}

#[test]
fn a_rename_of_what_was_copied() {
    an_unsaved_copy_outlives(|client| async move { client.rename("d/f", "h").await.is_ok() });
}

#[test]
fn a_rename_over_what_was_copied() {
    an_unsaved_copy_outlives(|client| async move { client.rename("d/other", "d/f").await.is_ok() });
}

#[test]
fn a_rename_of_the_directory_of_what_was_copied() {
    an_unsaved_copy_outlives(|client| async move { client.rename("d", "e").await.is_ok() });
}

#[test]
fn a_rewrite_of_what_was_copied() {
    an_unsaved_copy_outlives(|client| async move { client.write("d/f", b"new").await.is_ok() });
}

#[test]
fn a_rename_of_a_file() {
    let bytes = pattern(500, 5);
    for_every_request(&[("d/f", bytes.clone())], std::slice::from_ref(&bytes), |client| {
        let bytes = bytes.clone();
        async move {
            let done = client.rename("d/f", "g").await.is_ok();
            fail_no_more(&client);
            client.pass_ttl();
            // Whether it was done or not, the bytes are under one of the names.
            let name = if client.object("g").await.is_some() { "g" } else { "d/f" };
            assert!(!done || name == "g");
            (client, vec![(name.to_owned(), Some(bytes))])
        }
    });
}

#[test]
fn a_rename_of_a_directory() {
    let bytes: Vec<Vec<u8>> = (0..5).map(|i| pattern(100, i)).collect();
    let keys: Vec<String> = (0..5).map(|i| format!("d/sub/{i}")).collect();
    let prepare: Vec<(&str, Vec<u8>)> = keys.iter().map(String::as_str).zip(bytes.clone()).collect();
    for_every_request(&prepare, &bytes, |client| {
        let bytes = bytes.clone();
        async move {
            let _ = client.rename("d", "e").await;
            fail_no_more(&client);
            client.pass_ttl();
            let mut kept = Vec::new();
            for (i, bytes) in bytes.into_iter().enumerate() {
                let new = format!("e/sub/{i}");
                let name = if client.object(&new).await.is_some() { new } else { format!("d/sub/{i}") };
                kept.push((name, Some(bytes)));
            }
            (client, kept)
        }
    });
}

#[test]
fn a_removal_while_open() {
    let bytes = pattern(300_000, 6);
    for_every_request(&[("d/f", bytes.clone())], std::slice::from_ref(&bytes), |client| {
        let bytes = bytes.clone();
        async move {
            if let Ok(file) = client.open("d/f", WRITE).await {
                if client.unlink("d/f").await.is_ok() {
                    fail_no_more(&client);
                    assert_eq!(client.read_all(file.1).await.unwrap(), bytes);
                    assert!(client.object("d/f").await.is_none());
                }
                let _ = client.close(file).await;
            }
            (client, Vec::new())
        }
    });
}

#[test]
fn a_multipart_rewrite_of_an_object() {
    let (old, new) = (pattern(1 << 20, 12), pattern(17 << 20, 13));
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| written(client, new.clone()));
}

#[test]
fn an_append_to_a_small_file() {
    let old = pattern(1000, 14);
    let new = [&old[..], b"more"].concat();
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| {
        changed(client, 1000, b"more", new.clone())
    });
}

#[test]
fn an_append_to_a_large_file() {
    let old = pattern(17 << 20, 15);
    let new = [&old[..], b"more"].concat();
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| {
        changed(client, 17 << 20, b"more", new.clone())
    });
}

#[test]
fn a_cut_of_a_large_file() {
    let old = pattern(18 << 20, 16);
    let new = old[..17 << 20].to_vec();
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| {
        let new = new.clone();
        async move {
            let mut kept = Vec::new();
            if let Ok(file) = client.open("f", WRITE).await {
                let cut = client.truncate_open(file.0, file.1, 17 << 20).await;
                if client.close(file).await.is_ok() && cut.is_ok() {
                    kept.push(("f".to_owned(), Some(new)));
                }
            }
            (client, kept)
        }
    });
}

/// A close that failed is followed by another try of the program, as `cp` has none and an editor has.
#[test]
fn a_write_that_is_synced_again_and_again() {
    let (old, new) = (pattern(1 << 20, 17), pattern(17 << 20, 18));
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| {
        let new = new.clone();
        async move {
            let mut kept = Vec::new();
            if let Ok(file) = client.open("f", REWRITE).await {
                let mut done = client.fs.write(file.1, 0, &new).await.is_ok();
                for _ in 0..3 {
                    let synced = client.fs.fsync(file.1).await;
                    // Nothing was written since: what was acknowledged once stays so.
                    if synced.is_ok() && done {
                        kept = vec![("f".to_owned(), Some(new.clone()))];
                    }
                    done &= synced.is_ok() || kept.is_empty();
                }
                let _ = client.close(file).await;
            }
            (client, kept)
        }
    });
}

#[test]
fn a_chmod_of_what_is_saved_and_of_what_is_not() {
    let (old, new) = (pattern(500, 19), pattern(700, 20));
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    for_every_request(&[("f", old.clone()), ("g", old.clone())], &[old.clone(), new.clone()], |client| {
        let (old, new) = (old.clone(), new.clone());
        async move {
            let mut kept = vec![("f".to_owned(), Some(old))];
            if let Ok(saved) = client.walk("f").await {
                let changed = client.fs.setattr(saved.ino, None, mode).await;
                assert!(changed.is_err() || client.stat("f").await.is_ok_and(|attr| attr.perm == 0o600));
                client.fs.forget(saved.ino, 1);
            }
            if let Ok(file) = client.open("g", REWRITE).await {
                let written = client.fs.write(file.1, 0, &new).await;
                let _ = client.fs.setattr(file.0, Some(file.1), mode).await;
                if client.close(file).await.is_ok() && written.is_ok() {
                    kept.push(("g".to_owned(), Some(new)));
                }
            }
            (client, kept)
        }
    });
}

#[test]
fn a_removal_of_a_file() {
    let bytes = pattern(500, 21);
    let prepare = [("d/f", bytes.clone()), ("d/stays", bytes.clone())];
    for_every_request(&prepare, std::slice::from_ref(&bytes), |client| {
        let bytes = bytes.clone();
        async move {
            let done = client.unlink("d/f").await.is_ok();
            let mut kept = vec![("d/stays".to_owned(), Some(bytes))];
            kept.extend(done.then(|| ("d/f".to_owned(), None)));
            (client, kept)
        }
    });
}

/// `rm -r`: a row of deletes, which go in DeleteObjects, and the directories. When nobody complained all of it is gone.
#[test]
fn a_removal_of_a_tree() {
    let bytes = pattern(500, 22);
    let keys: Vec<String> =
        (0..4).map(|i| format!("d/{i}")).chain((0..4).map(|i| format!("d/e/{i}"))).collect();
    let prepare: Vec<(&str, Vec<u8>)> = keys
        .iter()
        .map(|key| (key.as_str(), bytes.clone()))
        .chain([("d/", Vec::new()), ("stays", bytes.clone())])
        .collect();
    for_every_request(&prepare, std::slice::from_ref(&bytes), |client| {
        let (bytes, keys) = (bytes.clone(), keys.clone());
        async move {
            let mut done = true;
            for key in keys.iter().rev() {
                done &= client.unlink(key).await.is_ok();
            }
            for dir in ["d/e", "d"] {
                done &= client.rmdir(dir).await.is_ok();
            }
            let mut kept = vec![("stays".to_owned(), Some(bytes))];
            kept.extend(keys.into_iter().filter(|_| done).map(|key| (key, None)));
            (client, kept)
        }
    });
}

#[test]
fn a_new_directory_and_its_removal() {
    let bytes = pattern(100, 23);
    for_every_request(&[("stays", bytes.clone())], std::slice::from_ref(&bytes), |client| {
        let bytes = bytes.clone();
        async move {
            let made = client.mkdir("d").await.is_ok();
            let wrote = made && client.write("d/f", &bytes).await.is_ok();
            let refused = client.rmdir("d").await;
            assert!(!wrote || refused.is_err(), "there is something in it");
            (client, if wrote { vec![("d/f".to_owned(), Some(bytes))] } else { Vec::new() })
        }
    });
}

#[test]
fn a_rename_over_a_file() {
    let (source, target) = (pattern(500, 24), pattern(600, 25));
    let prepare = [("f", source.clone()), ("g", target.clone())];
    for_every_request(&prepare, &[source.clone(), target.clone()], |client| {
        let (source, target) = (source.clone(), target.clone());
        async move {
            let done = client.rename("f", "g").await.is_ok();
            fail_no_more(&client);
            client.pass_ttl();
            let mut kept = Vec::new();
            match (client.object("f").await, client.object("g").await) {
                (None, found) => {
                    assert_eq!(found, Some(source.clone()), "the source is under one of the names")
                }
                (Some(there), found) => {
                    assert!(!done && there == source);
                    assert!(found == Some(target) || found == Some(source.clone()));
                }
            }
            if done {
                kept = vec![("g".to_owned(), Some(source)), ("f".to_owned(), None)];
            }
            (client, kept)
        }
    });
}

/// Whatever request of `act` fails, and however: unless it says that the file went, what a writer of `f` had not saved is
/// under its name or in a conflict copy when the writer has closed it.
fn unsaved_bytes_outlive<F>(act: impl Fn(Arc<Client>) -> F)
where
    F: Future<Output = bool>,
{
    block_on(async {
        let old = pattern(300_000, 7);
        let mut new = old.clone();
        new[1000..1010].fill(0);
        for failures in Failure::each() {
            let mut went_on = false;
            for failure in failures {
                let client = Arc::new(Client::new());
                client.put_object("d/f", &old).await;
                client.put_object("d/source", b"source").await;
                let file = client.open("d/f", WRITE).await.unwrap();
                client.stat("d/source").await.unwrap();
                client.fs.write(file.1, 1000, &[0; 10]).await.unwrap();
                failure.begin(&client);
                let done = act(Arc::clone(&client)).await;
                went_on |= !failure.was_past_the_end(&client);
                fail_no_more(&client);
                let read = client.read_all(file.1).await.map_err(|error| error.report());
                let said = read.as_ref().map(Vec::len);
                assert!(read.as_ref().is_ok_and(|read| *read == new), "{failure:?}: {said:?}");
                let _ = client.close(file).await;
                assert!(client.fs.pending().is_empty());
                let mut kept = done;
                for key in client.keys().await {
                    kept |= client.object(&key).await.as_deref() == Some(&new);
                }
                assert!(kept, "{failure:?}: {:?}", client.keys().await);
            }
            if !went_on {
                break;
            }
        }
    });
}

#[test]
fn a_removal_beside_an_unsaved_writer() {
    unsaved_bytes_outlive(|client| async move { client.unlink("d/f").await.is_ok() });
}

#[test]
fn a_rename_over_a_file_with_an_unsaved_writer() {
    unsaved_bytes_outlive(|client| async move { client.rename("d/source", "d/f").await.is_ok() });
}

#[test]
fn a_rename_of_a_file_with_an_unsaved_writer() {
    unsaved_bytes_outlive(|client| async move {
        let _ = client.rename("d/f", "h").await;
        false
    });
}

#[test]
fn a_rename_of_the_directory_of_an_unsaved_writer() {
    unsaved_bytes_outlive(|client| async move {
        let _ = client.rename("d", "e").await;
        false
    });
}
