//! Fail the n-th request, for every n: no acknowledged byte is lost, and no object is wrong.

use std::sync::Arc;

use pailfs::error::Kind;
use pailfs::s3::When;

use crate::client::{Client, READ, WRITE};
use crate::harness::block_on;

/// What a scenario was told had worked: path and bytes.
type Acknowledged = Vec<(String, Vec<u8>)>;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

/// Runs a scenario with its n-th request failing, for every n and both ways of failing. Whatever happens,
/// what was acknowledged has to be there afterwards, and every object has to be one of `allowed`.
fn for_every_request<F>(prepare: &[(&str, Vec<u8>)], allowed: &[Vec<u8>], scenario: impl Fn(Client) -> F)
where
    F: Future<Output = (Client, Acknowledged)>,
{
    block_on(async {
        let total = {
            let client = Client::new();
            for (key, bytes) in prepare {
                client.put_object(key, bytes).await;
            }
            client.store.clear_calls();
            let (client, _) = scenario(client).await;
            client.store.calls().len() as u64
        };
        assert!(total > 0);
        for n in 1..=total {
            for when in [When::Before, When::After] {
                let client = Client::new();
                for (key, bytes) in prepare {
                    client.put_object(key, bytes).await;
                }
                client.store.fail_nth(n, Kind::Server, when);
                let (client, acknowledged) = scenario(client).await;
                fail_no_more(&client);
                // Let what was kept be saved now.
                let _ = client.fs.flush_all().await;
                client.pass_ttl();
                for (path, bytes) in acknowledged {
                    let found = client.read(&path).await;
                    assert!(
                        found.as_ref().is_ok_and(|found| *found == bytes),
                        "request {n} failing {when:?}: {path} was acknowledged and is {:?}",
                        found.map(|f| f.len())
                    );
                }
                for key in client.keys().await {
                    let object = client.object(&key).await.unwrap();
                    let fine = object.is_empty() || allowed.contains(&object);
                    assert!(fine, "request {n} failing {when:?}: {key} is an object nobody wrote");
                }
            }
        }
    });
}

/// What follows only looks at the outcome.
fn fail_no_more(client: &Client) {
    client.store.fail_nth(u64::MAX, Kind::Server, When::Before);
}

#[test]
fn a_small_write() {
    let (old, new) = (pattern(1000, 1), pattern(2000, 2));
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| {
        let new = new.clone();
        async move {
            let done = client.write("f", &new).await.is_ok();
            (client, if done { vec![("f".to_owned(), new)] } else { Vec::new() })
        }
    });
}

#[test]
fn a_multipart_write() {
    let new = pattern(20 << 20, 3);
    for_every_request(&[], std::slice::from_ref(&new), |client| {
        let new = new.clone();
        async move {
            let done = client.write("f", &new).await.is_ok();
            (client, if done { vec![("f".to_owned(), new)] } else { Vec::new() })
        }
    });
}

#[test]
fn a_write_that_copies_what_did_not_change() {
    let old = pattern(24 << 20, 4);
    let mut new = old.clone();
    new[9 << 20..(9 << 20) + 10].fill(0);
    for_every_request(&[("f", old.clone())], &[old, new.clone()], |client| {
        let new = new.clone();
        async move {
            let done = client.write_at("f", 9 << 20, &[0; 10]).await.is_ok();
            (client, if done { vec![("f".to_owned(), new)] } else { Vec::new() })
        }
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
            let kept = [("f".to_owned(), bytes.clone()), ("g".to_owned(), bytes)];
            (client, kept[..1 + usize::from(done)].to_vec())
        }
    });
}

#[test]
fn a_copy_into_a_large_file() {
    let (source, old) = (pattern(20 << 20, 9), pattern(24 << 20, 10));
    let mut new = old.clone();
    new[7 << 20..(7 << 20) + (17 << 20)].copy_from_slice(&source[100..100 + (17 << 20)]);
    let allowed = [source.clone(), old.clone(), new.clone()];
    for_every_request(&[("f", source.clone()), ("g", old)], &allowed, |client| {
        let (source, new) = (source.clone(), new.clone());
        async move {
            let done = copied(&client, ("f", 100), ("g", 7 << 20), 17 << 20).await;
            let kept = [("f".to_owned(), source), ("g".to_owned(), new)];
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
        for when in [When::Before, When::After] {
            for n in 1.. {
                let client = Arc::new(Client::new());
                client.put_object("d/f", &bytes).await;
                client.put_object("d/other", b"other").await;
                let source = client.open("d/f", READ).await.unwrap();
                let target = client.open("g", WRITE).await.unwrap();
                client.fs.copy_range((source.1, 0), (target.1, 3), 9 << 20).await.unwrap();
                client.store.clear_calls();
                client.store.fail_nth(n, Kind::Server, when);
                let _ = act(Arc::clone(&client)).await;
                let asked = client.store.calls().len() as u64;
                fail_no_more(&client);
                let read = client.read_all(target.1).await;
                assert!(read.is_ok_and(|read| read[3..] == bytes), "request {n} failing {when:?}");
                client.close(target).await.unwrap();
                let _ = client.close(source).await;
                assert!(client.object("g").await.unwrap()[3..] == bytes, "request {n} failing {when:?}");
                if asked < n {
                    break;
                }
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
            (client, vec![(name.to_owned(), bytes)])
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
                kept.push((name, bytes));
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

/// Whatever request of `act` fails, and however: unless it succeeded, what a writer of `f` had not saved is under its
/// name or in a conflict copy when the writer has closed it.
fn unsaved_bytes_outlive<F>(act: impl Fn(Arc<Client>) -> F)
where
    F: Future<Output = bool>,
{
    block_on(async {
        let old = pattern(300_000, 7);
        let mut new = old.clone();
        new[1000..1010].fill(0);
        for when in [When::Before, When::After] {
            for n in 1.. {
                let client = Arc::new(Client::new());
                client.put_object("d/f", &old).await;
                client.put_object("d/source", b"source").await;
                let file = client.open("d/f", WRITE).await.unwrap();
                client.stat("d/source").await.unwrap();
                client.fs.write(file.1, 1000, &[0; 10]).await.unwrap();
                client.store.clear_calls();
                client.store.fail_nth(n, Kind::Server, when);
                let done = act(Arc::clone(&client)).await;
                let asked = client.store.calls().len() as u64;
                fail_no_more(&client);
                assert_eq!(client.read_all(file.1).await.unwrap(), new, "request {n} failing {when:?}");
                let _ = client.close(file).await;
                assert!(client.fs.pending().is_empty());
                let mut kept = done;
                for key in client.keys().await {
                    kept |= client.object(&key).await.as_deref() == Some(&new);
                }
                assert!(kept, "request {n} failing {when:?}: {:?}", client.keys().await);
                if asked < n {
                    break;
                }
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
