//! What goes on while a directory is renamed, and what waits for it.

use std::ffi::OsStr;
use std::sync::Arc;

use pailfs::fs::{Fs, OpenFlags};
use pailfs::tree::{Ino, ROOT};
use tokio::task::JoinHandle;

use crate::client::{Client, REWRITE, WRITE, let_others_run, on_one_thread, until};

fn begin_rename(
    client: &Client,
    old: &'static str,
    new: &'static str,
) -> JoinHandle<pailfs::error::Result<()>> {
    let fs = Arc::clone(&client.fs);
    tokio::spawn(async move { fs.rename(ROOT, OsStr::new(old), ROOT, OsStr::new(new), false).await })
}

async fn copying(client: &Client) {
    until("its objects are being copied", || client.store.calls().contains(&"CopyObject")).await;
}

#[test]
fn the_rest_of_the_bucket_goes_on() {
    on_one_thread(async {
        let client = Client::new();
        client.put_object("d/f", b"moves").await;
        client.put_object("d/open", b"open").await;
        client.put_object("gone", b"gone").await;
        let open = client.open("d/open", WRITE).await.unwrap();
        let held = client.store.hold("CopyObject");
        let renaming = begin_rename(&client, "d", "e");
        copying(&client).await;

        client.write("f", b"new").await.unwrap();
        client.write("dd", b"not below it").await.unwrap();
        client.mkdir("made").await.unwrap();
        client.unlink("gone").await.unwrap();
        client.rmdir("made").await.unwrap();
        client.mkdir("other").await.unwrap();
        let another = begin_rename(&client, "other", "another");
        let copies = || client.store.calls().iter().filter(|call| **call == "CopyObject").count();
        until("another rename is under way too", || copies() == 3).await;
        assert_eq!(client.object("f").await.unwrap(), b"new");
        assert_eq!(client.object("dd").await.unwrap(), b"not below it");
        // What is below it is written to, and saved where it is afterwards.
        client.fs.write(open.1, 0, b"OP").await.unwrap();
        let fs = Arc::clone(&client.fs);
        let saving = tokio::spawn(async move { fs.fsync(open.1).await });
        let_others_run().await;
        assert!(!saving.is_finished() && !renaming.is_finished());

        held.add_permits(1_000);
        renaming.await.unwrap().unwrap();
        another.await.unwrap().unwrap();
        saving.await.unwrap().unwrap();
        assert_eq!(client.object("e/open").await.unwrap(), b"OPen");
        assert_eq!(client.keys().await, ["another/", "dd", "e/f", "e/open", "f"]);
    });
}

#[test]
fn no_name_waits_for_the_rename_of_a_directory_that_it_has_nothing_to_do_with() {
    on_one_thread(async {
        let client = Client::new();
        client.put_object("d/f", b"moves").await;
        let held = client.store.hold("CopyObject");
        let renaming = begin_rename(&client, "d", "e");
        copying(&client).await;
        for number in 0..600 {
            client.write(&format!("f{number}"), b"new").await.unwrap();
        }
        assert!(!renaming.is_finished());
        held.add_permits(1_000);
        renaming.await.unwrap().unwrap();
        assert_eq!(client.keys().await.len(), 601);
    });
}

/// A thing done by name in a directory that is being renamed.
type Act = for<'a> fn(&'a Arc<Fs>, Ino) -> futures::future::BoxFuture<'a, ()>;

#[test]
fn what_waits_for_a_directory_above_is_done_where_that_is_then() {
    let acts: [(&str, Act, &[&str]); 6] = [
        (
            "unlink",
            |fs, p| Box::pin(async move { fs.unlink(p, OsStr::new("f")).await.unwrap() }),
            &["q/", "q/sub/f"],
        ),
        (
            "mkdir",
            |fs, p| {
                Box::pin(async move {
                    fs.mkdir(p, OsStr::new("made"), pailfs::fs::Maker::of_mode(0o755))
                        .await
                        .map(|_| ())
                        .unwrap()
                })
            },
            &["q/", "q/f", "q/made/", "q/sub/f"],
        ),
        (
            "create",
            |fs, p| {
                Box::pin(async move {
                    let flags = OpenFlags { exclusive: true, ..REWRITE };
                    fs.create(p, OsStr::new("made"), flags, pailfs::fs::Maker::of_mode(0o644))
                        .await
                        .map(|_| ())
                        .unwrap();
                })
            },
            &["q/", "q/f", "q/made", "q/sub/f"],
        ),
        (
            "rename of a file",
            |fs, p| {
                Box::pin(async move {
                    fs.rename(p, OsStr::new("f"), ROOT, OsStr::new("out"), true).await.unwrap()
                })
            },
            &["out", "q/", "q/sub/f"],
        ),
        (
            "rename of a directory",
            |fs, p| {
                Box::pin(
                    async move { fs.rename(p, OsStr::new("sub"), p, OsStr::new("t"), true).await.unwrap() },
                )
            },
            &["q/", "q/f", "q/t/f"],
        ),
        (
            "rename of a directory into it",
            |fs, p| {
                Box::pin(async move {
                    fs.rename(ROOT, OsStr::new("outside"), p, OsStr::new("in"), true).await.unwrap();
                })
            },
            &["q/", "q/f", "q/in/f", "q/sub/f"],
        ),
    ];
    for (what, act, expected) in acts {
        on_one_thread(async {
            let client = Client::new();
            client.mkdir("p").await.unwrap();
            for key in ["p/f", "p/sub/f", "outside/f"] {
                client.put_object(key, b"bytes").await;
            }
            let p = client.walk("p").await.unwrap().ino;
            let held = client.store.hold("CopyObject");
            let renaming = begin_rename(&client, "p", "q");
            copying(&client).await;
            let fs = Arc::clone(&client.fs);
            let acting = tokio::spawn(async move { act(&fs, p).await });
            let_others_run().await;
            assert!(!acting.is_finished(), "{what} waits");
            held.add_permits(1_000);
            renaming.await.unwrap().unwrap();
            acting.await.unwrap();
            let mut keys = client.keys().await;
            keys.retain(|key| key != "outside/f");
            assert_eq!(keys, expected, "{what}");
            let mut seen = client.tree().await.unwrap();
            seen.retain(|(path, _)| path.starts_with("p"));
            assert_eq!(seen, [], "{what}");
        });
    }
}
