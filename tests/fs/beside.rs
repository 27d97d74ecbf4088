//! What is beside the bytes: given to new files by the mount's options, and kept of those that are there.

use pailfs::error::Kind;
use pailfs::fs::{FileType, SetAttr, Volume};
use pailfs::s3::{
    Attributes, Encryption, MemStore, NewObjects, ObjectInfo, PutRequest, Store, When, is_archived,
};
use pailfs::tree::posix::Posix;

use crate::client::{BUCKET, Client, READ, REWRITE, WRITE};
use crate::harness::block_on;

fn kms(key: &str) -> Option<Encryption> {
    Some(Encryption::Kms { key_id: Some(key.to_owned()), bucket_key: Some(true), twice: false })
}

/// What a user asks of a mount.
fn asked() -> NewObjects {
    NewObjects {
        storage_class: Some("STANDARD_IA".to_owned()),
        encryption: kms("mine"),
        acl: Some("bucket-owner-full-control".to_owned()),
        tags: [("team".to_owned(), "blue".to_owned())].into(),
    }
}

/// What another client gave to an object.
fn theirs() -> Attributes {
    Attributes {
        content_type: Some("text/x-theirs".to_owned()),
        cache_control: Some("max-age=60".to_owned()),
        content_encoding: Some("x-theirs".to_owned()),
        content_disposition: Some("attachment".to_owned()),
        content_language: Some("en".to_owned()),
        expires: Some("Wed, 21 Oct 2026 07:28:00 GMT".to_owned()),
        redirect: Some("/there".to_owned()),
        storage_class: Some("GLACIER_IR".to_owned()),
        metadata: [("owner".to_owned(), "ann".to_owned())].into(),
        tags: [("theirs".to_owned(), "yes".to_owned())].into(),
        acl: None,
        encryption: kms("theirs"),
    }
}

async fn put(store: &MemStore, key: &str, bytes: &[u8], attributes: Attributes) {
    let request = PutRequest {
        bucket: BUCKET.to_owned(),
        key: key.to_owned(),
        body: bytes.to_vec().into(),
        attributes,
        ..PutRequest::default()
    };
    Store::put(store, request).await.unwrap();
}

async fn head(client: &Client, key: &str) -> ObjectInfo {
    client.store.head(BUCKET, key, None).await.unwrap()
}

/// All that S3 has beside an object's bytes.
async fn beside(client: &Client, key: &str) -> Attributes {
    Attributes {
        tags: client.store.tags(BUCKET, key).await.unwrap(),
        acl: client.store.acl(BUCKET, key).unwrap(),
        ..head(client, key).await.attributes
    }
}

#[test]
fn a_new_file_gets_what_the_mount_was_asked_to_give() {
    block_on(async {
        let client = Client::new().with_new_objects(asked());
        client.write("small.txt", b"bytes").await.unwrap();
        let expected = Attributes { content_type: Some("text/plain".to_owned()), ..asked().file() };
        assert_eq!(beside(&client, "small.txt").await, expected);
        // In parts, which leave while it is written.
        client.write("large.txt", &vec![1; 20 << 20]).await.unwrap();
        assert!(head(&client, "large.txt").await.etag.as_str().len() >= 32);
        assert_eq!(beside(&client, "large.txt").await, expected);
        // Where a name is claimed on the server first, the claim has no class: it is no file yet.
        let exclusive = pailfs::fs::OpenFlags { exclusive: true, ..WRITE };
        let file = client.open("claimed.txt", exclusive).await.unwrap();
        assert_eq!(unsigned(beside(&client, "claimed.txt").await), asked().placeholder());
        client.fs.write(file.1, 0, b"bytes").await.unwrap();
        client.close(file).await.unwrap();
        assert_eq!(beside(&client, "claimed.txt").await, expected);
        client.mkdir("dir").await.unwrap();
        let marker =
            Attributes { content_type: Some("application/x-directory".to_owned()), ..asked().placeholder() };
        assert_eq!(unsigned(beside(&client, "dir/").await), marker);
    });
}

/// Without what says which request made it.
fn unsigned(mut attributes: Attributes) -> Attributes {
    assert!(attributes.metadata.remove("pailfs-made").is_some(), "{attributes:?}");
    attributes
}

#[test]
fn without_options_nothing_is_said_that_nobody_asked_for() {
    block_on(async {
        let client = Client::new();
        client.write("f", b"bytes").await.unwrap();
        assert_eq!(beside(&client, "f").await, Attributes::default());
        client.put_object("theirs", b"bytes").await;
        client.write("theirs", b"other").await.unwrap();
        client.rename("theirs", "moved").await.unwrap();
        assert_eq!(beside(&client, "moved").await, Attributes::default());
        assert_eq!(client.stats.requests_of("GetObjectTagging"), 2, "those of this test alone");
    });
}

/// "a file of another client | its attributes stay"
#[test]
fn what_an_object_has_stays_through_every_change() {
    block_on(async {
        for options in [NewObjects::default(), asked()] {
            let client = Client::new().with_new_objects(options.clone());
            // The mount's ACL is said again; what the object has of its own is lost with every write.
            let kept = Attributes { acl: options.acl, ..theirs() };
            put(&client.store, "f", &vec![7; 24 << 20], theirs()).await;

            // A few bytes of many: parts are copied.
            client.write_at("f", 3, b"written").await.unwrap();
            assert_eq!(beside(&client, "f").await, kept, "after a change");
            // All of them, in parts that leave while it is written.
            client.write("f", &vec![8; 24 << 20]).await.unwrap();
            assert_eq!(beside(&client, "f").await, kept, "after a rewrite");
            client.write("f", b"small").await.unwrap();
            assert_eq!(beside(&client, "f").await, kept, "after a small rewrite");
            client.rename("f", "moved").await.unwrap();
            assert_eq!(beside(&client, "moved").await, kept, "after a rename");
            client.mkdir("dir").await.unwrap();
            client.rename("moved", "dir/f").await.unwrap();
            client.rename("dir", "other").await.unwrap();
            assert_eq!(beside(&client, "other/f").await, kept, "after the rename of its directory");
            let attr = client.walk("other/f").await.unwrap();
            let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
            client.fs.setattr(attr.ino, None, set).await.unwrap();
            client.fs.setattr(attr.ino, None, SetAttr { size: Some(2), ..SetAttr::default() }).await.unwrap();
            client.fs.forget(attr.ino, 1);
            let mut changed = beside(&client, "other/f").await;
            let posix = Posix { ctime: None, ..Posix::of(&changed.metadata) };
            let (file_type, perm) = (Some(FileType::Regular), Some(0o600));
            assert_eq!(posix, Posix { file_type, perm, uid: posix.uid, gid: posix.gid, ..Posix::default() });
            changed.metadata.retain(|key, _| kept.metadata.contains_key(key));
            assert_eq!(changed, kept, "after chmod and truncate");
            put(&client.store, "other/f", b"it", theirs()).await;
            client.pass_ttl();

            // Bytes of another file do not bring its attributes along.
            client.write("source", &vec![9; 1 << 20]).await.unwrap();
            let (from, to) =
                (client.open("source", READ).await.unwrap(), client.open("other/f", REWRITE).await.unwrap());
            client.fs.copy_range((from.1, 0), (to.1, 0), 1 << 20).await.unwrap();
            client.close(from).await.unwrap();
            client.close(to).await.unwrap();
            assert_eq!(head(&client, "other/f").await.size, 1 << 20);
            let mut changed = beside(&client, "other/f").await;
            // Where attributes are asked for, the time of the bytes is stored with them.
            assert!(changed.metadata.remove("mtime").is_some());
            assert_eq!(changed, kept, "after copy_file_range");
        }
    });
}

#[test]
fn tags_cost_a_request_only_where_there_are_some_and_somebody_writes() {
    block_on(async {
        let client = Client::new();
        put(&client.store, "tagged", b"bytes", theirs()).await;
        client.put_object("plain", b"bytes").await;
        let asked = |client: &Client| client.stats.requests_of("GetObjectTagging");
        client.write("plain", b"other").await.unwrap();
        client.read("tagged").await.unwrap();
        client.rename("tagged", "moved").await.unwrap();
        client.rename("plain", "too").await.unwrap();
        assert_eq!(asked(&client), 0, "a copy on the server keeps them by itself");
        client.write("moved", b"other").await.unwrap();
        assert_eq!(asked(&client), 1);
        assert_eq!(beside(&client, "moved").await, theirs());
    });
}

/// A reader needs no tags, and a writer beside it does not forget them.
#[test]
fn tags_stay_where_a_reader_opened_the_file_first() {
    block_on(async {
        let client = Client::new();
        put(&client.store, "f", b"bytes", theirs()).await;
        let reader = client.open("f", READ).await.unwrap();
        client.write_at("f", 0, b"B").await.unwrap();
        client.close(reader).await.unwrap();
        assert_eq!(beside(&client, "f").await, theirs());
        assert_eq!(client.object("f").await.unwrap(), b"Bytes");
    });
}

#[test]
fn a_renamed_directory_asks_about_keys_only_where_there_are_keys() {
    block_on(async {
        let heads = |client: &Client| client.stats.requests_of("HeadObject");
        // One for the new name, one that tells whether the server encrypts, and then one for each.
        for (encryption, expected) in [(None, 2), (kms("theirs"), 2 + 20)] {
            let client = Client::new();
            for n in 0..20 {
                let attributes = Attributes { encryption: encryption.clone(), ..theirs() };
                put(&client.store, &format!("d/{n:02}"), b"bytes", attributes).await;
            }
            client.stat("d").await.unwrap();
            let before = heads(&client);
            client.rename("d", "e").await.unwrap();
            assert_eq!(heads(&client) - before, expected);
            let has = beside(&client, "e/07").await;
            assert_eq!((has.encryption, has.storage_class), (encryption, theirs().storage_class));
            assert_eq!((has.tags, has.metadata), (theirs().tags, theirs().metadata));
        }
    });
}

#[test]
fn another_bucket_has_its_own_keys() {
    block_on(async {
        let client = Client::new();
        client.store.create_bucket("other", None).await.unwrap();
        let shared = std::sync::Arc::clone(&client.store);
        let store = || std::sync::Arc::clone(&shared) as std::sync::Arc<dyn Store>;
        let mine = NewObjects { encryption: kms("mine"), ..NewObjects::default() };
        let two = client.with_volumes(
            Volume::new(BUCKET, "", store()),
            Volume::new("other", "", store()).new_objects(mine),
        );
        put(&two.store, "f", b"bytes", theirs()).await;
        put(&two.store, "d/f", b"bytes", theirs()).await;
        two.rename("one/f", "two/f").await.unwrap();
        two.rename("one/d", "two/d").await.unwrap();
        for key in ["f", "d/f"] {
            let has = two.store.head("other", key, None).await.unwrap().attributes;
            assert_eq!((has.encryption, has.storage_class), (kms("mine"), theirs().storage_class), "{key}");
        }
    });
}

/// "an archived object | `EREMOTEIO`"
#[test]
fn an_archived_object_is_no_input_output_error() {
    block_on(async {
        for class in ["GLACIER", "DEEP_ARCHIVE"] {
            let client = Client::new();
            let archived = Attributes { storage_class: Some(class.to_owned()), ..theirs() };
            put(&client.store, "d/cold", b"bytes", archived.clone()).await;
            client.list("d").await.unwrap();
            for flags in [READ, WRITE, REWRITE] {
                let error = client.open("d/cold", flags).await.unwrap_err();
                assert_eq!(error.errno(), rustix::io::Errno::REMOTEIO.raw_os_error());
                assert!(error.report().contains("restore"), "{}", error.report());
            }
            let error = client.rename("d/cold", "d/moved").await.unwrap_err();
            assert_eq!(error.errno(), rustix::io::Errno::REMOTEIO.raw_os_error());
            assert_eq!(beside(&client, "d/cold").await, archived, "it is where it was");

            // Restored, it is read, and a rename leaves it in its class: the copy is archived.
            client.store.restore(BUCKET, "d/cold").unwrap();
            client.pass_ttl();
            assert_eq!(client.read("d/cold").await.unwrap(), b"bytes");
            client.rename("d/cold", "d/moved").await.unwrap();
            assert_eq!(beside(&client, "d/moved").await, archived);
            assert!(client.open("d/moved", READ).await.is_err());

            // Who writes wants to read what was written.
            client.store.restore(BUCKET, "d/moved").unwrap();
            client.pass_ttl();
            client.write_at("d/moved", 0, b"B").await.unwrap();
            assert_eq!(client.read("d/moved").await.unwrap(), b"Bytes");
            let has = beside(&client, "d/moved").await;
            assert!(!is_archived(has.storage_class.as_deref(), false), "{:?}", has.storage_class);
            assert_eq!(has, Attributes { storage_class: None, ..archived });
        }
    });
}

#[test]
fn a_class_of_the_archive_may_be_asked_for() {
    block_on(async {
        let cold = NewObjects { storage_class: Some("DEEP_ARCHIVE".to_owned()), ..NewObjects::default() };
        let client = Client::new().with_new_objects(cold);
        client.write("f", b"bytes").await.unwrap();
        assert_eq!(client.stat("f").await.unwrap().size, 5);
        let error = client.open("f", READ).await.unwrap_err();
        assert_eq!(error.errno(), rustix::io::Errno::REMOTEIO.raw_os_error());
    });
}

/// The ETag of an object that a key encrypts is of other bytes than were sent, so it does not tell whose an object is.
#[test]
fn a_save_that_nobody_heard_of_is_known_by_its_checksum() {
    block_on(async {
        for (operation, size) in [("PutObject", 5), ("CompleteMultipartUpload", 20 << 20)] {
            let client = Client::new().with_new_objects(asked());
            client.store.refuse(operation, Kind::Server, When::After);
            client.write("f", &vec![7; size]).await.unwrap();
            client.store.refuse_nothing();
            assert_eq!(client.keys().await, ["f"], "no conflict with oneself");
            client.write("f", b"and on").await.unwrap();
            assert_eq!(client.object("f").await.unwrap(), b"and on");
            assert_eq!(client.keys().await, ["f"]);
        }
    });
}

/// And of a mount that was killed before the answer came.
#[test]
fn a_save_that_the_mount_did_not_live_to_hear_of_is_known_too() {
    block_on(async {
        for (operation, size) in [("PutObject", 5), ("CompleteMultipartUpload", 20 << 20)] {
            let disk = tempfile::tempdir().unwrap();
            let (first, _) = Client::new().again_with(disk.path(), asked());
            let file = first.open("f", WRITE).await.unwrap();
            first.fs.write(file.1, 0, &vec![7; size]).await.unwrap();
            // What it did is done; nobody can be asked about it.
            first.store.refuse(operation, Kind::Server, When::After);
            first.store.refuse("HeadObject", Kind::Server, When::Before);
            first.fs.flush(file.1).await.unwrap_err();
            let store = std::sync::Arc::clone(&first.store);
            drop(first);
            store.refuse_nothing();
            let (next, owed) = Client::of_store(store).again_with(disk.path(), asked());
            let taken = next.fs.take_up(owed).await;
            assert_eq!((taken.files, taken.kept), (1, 0));
            next.fs.flush_all().await.unwrap();
            assert_eq!(next.keys().await, ["f"], "no conflict with oneself after {operation}");
            assert_eq!(next.object("f").await.unwrap(), vec![7; size]);
        }
    });
}

/// What a mount that ended still owes is saved as it was asked for, whatever the next one is asked for.
#[test]
fn what_is_owed_keeps_its_attributes() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let first = Client::new().with_new_objects(asked());
        put(&first.store, "old", b"bytes", theirs()).await;
        let (first, _) = first.again_with(disk.path(), asked());
        for name in ["new.txt", "old"] {
            let file = first.open(name, WRITE).await.unwrap();
            first.fs.write(file.1, 0, b"B").await.unwrap();
        }
        let store = std::sync::Arc::clone(&first.store);
        drop(first);
        let (next, owed) = Client::of_store(store).again_with(disk.path(), NewObjects::default());
        let taken = next.fs.take_up(owed).await;
        assert_eq!((taken.files, taken.kept), (2, 0));
        next.fs.flush_all().await.unwrap();
        let new = Attributes { content_type: Some("text/plain".to_owned()), ..asked().file() };
        assert_eq!(beside(&next, "new.txt").await, new);
        assert_eq!(beside(&next, "old").await, Attributes { acl: asked().acl, ..theirs() });
    });
}
