//! Owners, permissions, times, links and extended attributes, in memory: what is kept in S3, in whose words, and what it
//! costs.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pailfs::error::Kind;
use pailfs::fs::{Attr, FileType, Maker, OpenFlags, PosixMode, Replaces, SetAttr};
use pailfs::s3::{Attributes, Metadata, ObjectInfo, PutRequest, Store, When};
use pailfs::tree::ROOT;

use crate::client::{BUCKET, Client, READ, REWRITE, WRITE, kind_of, until};
use crate::crash::{crash, journaled};
use crate::harness::block_on;

fn at(seconds: u64, nanos: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

async fn head(client: &Client, key: &str) -> ObjectInfo {
    client.store.head(BUCKET, key, None).await.unwrap()
}

async fn metadata(client: &Client, key: &str) -> Metadata {
    head(client, key).await.attributes.metadata
}

async fn put_with(client: &Client, key: &str, body: &[u8], pairs: &[(&str, &str)]) {
    let metadata = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let request = PutRequest {
        bucket: BUCKET.to_owned(),
        key: key.to_owned(),
        body: bytes::Bytes::copy_from_slice(body),
        attributes: Attributes { metadata, ..Attributes::default() },
        ..PutRequest::default()
    };
    client.store.put(request).await.unwrap();
}

async fn set(client: &Client, path: &str, set: SetAttr) -> pailfs::error::Result<Attr> {
    let attr = client.walk(path).await?;
    let answer = client.fs.setattr(attr.ino, None, set).await;
    client.fs.forget(attr.ino, 1);
    answer
}

/// Saved, and seen by somebody who has nothing in memory.
async fn seen_anew(client: &Client, path: &str) -> Attr {
    client.fs.flush_all().await.unwrap();
    Client::of_store(Arc::clone(&client.store)).stat(path).await.unwrap()
}

fn count(client: &Client, operation: &str) -> usize {
    client.store.calls().iter().filter(|call| **call == operation).count()
}

#[test]
fn chmod_chown_and_utimens_of_a_closed_file_are_one_copy_and_stay() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"bytes").await;
        client.store.clear_calls();
        set(&client, "f", mode(0o640)).await.unwrap();
        set(&client, "f", SetAttr { uid: Some(7), gid: Some(8), ..SetAttr::default() }).await.unwrap();
        let times = SetAttr { mtime: Some(at(5, 6)), atime: Some(at(9, 0)), ..SetAttr::default() };
        let attr = set(&client, "f", times).await.unwrap();
        assert_eq!((attr.perm, attr.uid, attr.gid, attr.mtime), (0o640, 7, 8, at(5, 6)), "at once");
        client.fs.flush_all().await.unwrap();
        assert_eq!(count(&client, "CopyObject"), 1, "{:?}", client.store.calls());
        assert_eq!((count(&client, "GetObject"), count(&client, "PutObject")), (0, 0), "no byte moves");
        let attr = seen_anew(&client, "f").await;
        assert_eq!((attr.perm, attr.uid, attr.gid, attr.mtime), (0o640, 7, 8, at(5, 6)));
        assert_eq!(attr.atime, at(9, 0));
        let said = metadata(&client, "f").await;
        assert_eq!(
            (said["mode"].as_str(), said["mtime"].as_str()),
            ("33184", "5.000000006"),
            "as s3fs has it"
        );
        assert_eq!(client.object("f").await.unwrap(), b"bytes");
    });
}

#[test]
fn what_is_set_of_a_file_that_is_being_written_rides_with_its_upload() {
    block_on(async {
        let client = Client::new();
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"bytes").await.unwrap();
        let times = SetAttr { mtime: Some(at(100, 0)), mode: Some(0o700), ..SetAttr::default() };
        client.fs.setattr(file.0, Some(file.1), times).await.unwrap();
        client.store.clear_calls();
        client.close(file).await.unwrap();
        assert_eq!(client.store.calls(), ["PutObject"]);
        let attr = seen_anew(&client, "f").await;
        assert_eq!((attr.perm, attr.mtime), (0o700, at(100, 0)));
    });
}

#[test]
fn a_time_that_was_set_is_gone_when_the_bytes_change() {
    block_on(async {
        let client = Client::new();
        put_with(&client, "f", b"old", &[("mtime", "5"), ("mode", "33152"), ("theirs", "stays")]).await;
        assert_eq!(client.stat("f").await.unwrap().mtime, at(5, 0));
        client.write_at("f", 0, b"new").await.unwrap();
        let said = metadata(&client, "f").await;
        assert_eq!(said.get("mtime"), None);
        assert_eq!((said["mode"].as_str(), said["theirs"].as_str()), ("33152", "stays"));
        assert!(client.stat("f").await.unwrap().mtime > at(1_000_000, 0), "when it was written");
    });
}

#[test]
fn a_file_in_parts_that_is_described_at_its_end_is_sent_once() {
    block_on(async {
        let client = Client::new();
        let body = vec![7; 40 << 20];
        let file = client.open("f", REWRITE).await.unwrap();
        for (step, chunk) in body.chunks(1 << 20).enumerate() {
            client.fs.write(file.1, (step << 20) as u64, chunk).await.unwrap();
        }
        until("a part has left", || client.stats.parts_ahead.value() >= 4).await;
        let times = SetAttr { mtime: Some(at(100, 0)), ..SetAttr::default() };
        client.fs.setattr(file.0, Some(file.1), times).await.unwrap();
        client.close(file).await.unwrap();
        assert_eq!(client.stats.bytes_sent.value(), body.len() as u64, "every byte once");
        assert_eq!(seen_anew(&client, "f").await.mtime, at(100, 0));
        assert_eq!(client.object("f").await.unwrap(), body);
    });
}

#[test]
fn a_change_of_attributes_that_loses_a_race_leaves_the_other_client_s_object_alone() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"one").await;
        set(&client, "f", mode(0o600)).await.unwrap();
        put_with(&client, "f", b"theirs", &[("mode", "33188")]).await;
        client.fs.flush_all().await.unwrap();
        assert_eq!(client.object("f").await.unwrap(), b"theirs");
        client.pass_ttl();
        assert_eq!(client.stat("f").await.unwrap().perm, 0o644);
        assert_eq!(client.list("").await.unwrap(), ["f"], "no conflict copy");
    });
}

#[test]
fn a_change_of_attributes_survives_the_failure_of_any_request() {
    block_on(async {
        for n in 1.. {
            let client = Client::new();
            client.put_object("d/f", b"bytes").await;
            client.store.clear_calls();
            client.store.fail_nth(n, Kind::Server, When::Before);
            let answer = set(&client, "d/f", mode(0o600)).await;
            let tried = client.fs.flush_all().await;
            let failed = client.store.calls().len() as u64 >= n;
            client.store.refuse_nothing();
            client.fs.flush_all().await.unwrap();
            let attr = Client::of_store(Arc::clone(&client.store)).stat("d/f").await.unwrap();
            if answer.is_ok() {
                assert_eq!(attr.perm, 0o600, "request {n}: {tried:?}");
            }
            assert_eq!(client.object("d/f").await.unwrap(), b"bytes");
            if !failed {
                assert!(n > 3, "only {n} requests");
                break;
            }
        }
    });
}

/// A listing tells no attributes: what says that they are worth asking for is there before the first of them is.
#[test]
fn a_directory_says_that_its_files_have_attributes_and_only_then_are_they_asked_for() {
    block_on(async {
        let client = Client::new();
        for i in 0..20 {
            client.put_object(&format!("plain/{i}"), b"x").await;
            client.put_object(&format!("p/told/{i}"), b"x").await;
        }
        set(&client, "p/told/7", mode(0o600)).await.unwrap();
        client.fs.flush_all().await.unwrap();
        for marker in ["p/", "p/told/"] {
            assert!(metadata(&client, marker).await.contains_key("pailfs-children"), "{marker}");
        }
        let anew = Client::of_store(Arc::clone(&client.store));
        // What is said of a version within two seconds of its making might be true of another.
        anew.clock.advance(Duration::from_secs(3));
        assert_eq!(anew.list("").await.unwrap(), ["p/", "plain/"]);
        anew.store.clear_calls();
        assert_eq!(anew.list("plain").await.unwrap().len(), 20);
        let heads = count(&anew, "HeadObject");
        assert!(heads <= 1, "{heads} HEADs of a directory that says nothing");
        anew.store.clear_calls();
        let attrs = anew.attrs("p/told").await.unwrap();
        let perms: Vec<u16> = attrs.iter().map(|attr| attr.perm).filter(|perm| *perm != 0o644).collect();
        assert_eq!(perms, [0o600]);
        let heads = count(&anew, "HeadObject");
        assert!((20..=24).contains(&heads), "{heads} HEADs");
        // What was told of a version is not asked again. The disk may have it a moment later, so memory is asked to.
        let held = anew.walk("p/told").await.unwrap();
        assert_eq!(anew.attrs("p/told").await.unwrap().len(), 20);
        anew.store.clear_calls();
        anew.pass_ttl();
        assert_eq!(anew.attrs("p/told").await.unwrap().len(), 20);
        anew.fs.forget(held.ino, 1);
        assert!(count(&anew, "HeadObject") <= 4, "{:?}", anew.store.calls());
    });
}

#[test]
fn files_of_s3fs_at_the_top_of_a_bucket_show_what_they_say() {
    block_on(async {
        let client = Client::new();
        put_with(&client, "f", b"x", &[("mode", "33152"), ("uid", "5"), ("gid", "6"), ("mtime", "1000")])
            .await;
        put_with(&client, "l", b"f", &[("mode", "41471")]).await;
        let attrs = client.attrs("").await.unwrap();
        assert_eq!((attrs[0].perm, attrs[0].uid, attrs[0].gid, attrs[0].mtime), (0o600, 5, 6, at(1000, 0)));
        assert_eq!(attrs[1].file_type, FileType::Symlink);
        let heads = client.stats.requests_of("HeadObject");
        assert!(heads <= 4, "{heads} HEADs");
    });
}

#[test]
fn links_fifos_and_sockets_are_objects_that_say_what_they_are() {
    block_on(async {
        let client = Client::new();
        let made = Maker { mode: 0o640, owner: Some((3, 4)) };
        let link = client.fs.symlink(ROOT, OsStr::new("link"), OsStr::new("../there"), made).await.unwrap();
        assert_eq!((link.file_type, link.size, link.uid), (FileType::Symlink, 8, 3));
        assert_eq!(client.fs.readlink(link.ino).await.unwrap(), "../there");
        for (name, file_type) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
            let attr = client.fs.mknod(ROOT, OsStr::new(name), file_type, made).await.unwrap();
            assert_eq!((attr.file_type, attr.perm), (file_type, 0o640));
        }
        let device = client.fs.mknod(ROOT, OsStr::new("dev"), FileType::CharDevice, made).await;
        assert_eq!(kind_of(device), Kind::NotPermitted);
        assert_eq!(client.object("link").await.unwrap(), b"../there", "as s3fs has it");
        let anew = Client::of_store(Arc::clone(&client.store));
        let types: Vec<FileType> = anew.attrs("").await.unwrap().iter().map(|attr| attr.file_type).collect();
        assert_eq!(types, [FileType::Fifo, FileType::Symlink, FileType::Socket]);
        let link = anew.walk("link").await.unwrap();
        assert_eq!(anew.fs.readlink(link.ino).await.unwrap(), "../there");
        client.rename("link", "moved").await.unwrap();
        assert_eq!(seen_anew(&client, "moved").await.file_type, FileType::Symlink);
    });
}

#[test]
fn a_link_of_geesefs_leads_where_its_metadata_says() {
    block_on(async {
        let client = Client::new();
        put_with(&client, "link", b"", &[("--symlink-target", "a%20b")]).await;
        let attr = client.walk("link").await.unwrap();
        assert_eq!((attr.file_type, attr.size), (FileType::Symlink, 3));
        assert_eq!(client.fs.readlink(attr.ino).await.unwrap(), "a b");
    });
}

#[test]
fn a_directory_s_attributes_are_its_marker_s() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        let said: Vec<String> = metadata(&client, "d/").await.into_keys().collect();
        assert_eq!(said, ["pailfs-made"], "nothing to say, nothing said");
        client.write("d/f", b"x").await.unwrap();
        set(&client, "d", SetAttr { mode: Some(0o2750), mtime: Some(at(50, 0)), ..SetAttr::default() })
            .await
            .unwrap();
        let attr = seen_anew(&client, "d").await;
        assert_eq!((attr.file_type, attr.perm, attr.mtime), (FileType::Directory, 0o2750, at(50, 0)));
        // What is made in it has its group, and a directory its bit.
        set(&client, "d", SetAttr { gid: Some(77), ..SetAttr::default() }).await.unwrap();
        client.mkdir("d/sub").await.unwrap();
        client.write("d/new", b"x").await.unwrap();
        assert_eq!(seen_anew(&client, "d/sub").await.perm & 0o2000, 0o2000);
        assert_eq!(seen_anew(&client, "d/sub").await.gid, 77);
        assert_eq!(seen_anew(&client, "d/new").await.gid, 77);
        client.rename("d", "e").await.unwrap();
        assert_eq!(seen_anew(&client, "e").await.perm, 0o2750);
    });
}

#[test]
fn extended_attributes_are_kept_and_those_of_s3_show_what_it_knows() {
    block_on(async {
        let client = Client::new();
        client.put_object("f.txt", b"bytes").await;
        let ino = client.walk("f.txt").await.unwrap().ino;
        client.fs.setxattr(ino, "user.mine", b"\x00\xff", Replaces::Either).await.unwrap();
        assert_eq!(client.fs.getxattr(ino, "user.mine").await.unwrap(), b"\x00\xff", "at once");
        client.fs.setxattr(ino, "user.s3.content_type", b"text/x-mine", Replaces::Either).await.unwrap();
        client.fs.setxattr(ino, "user.s3.tags", b"a=b&c=d%20e", Replaces::Either).await.unwrap();
        client.fs.setxattr(ino, "user.s3.meta.plain", b"word", Replaces::Either).await.unwrap();
        client.fs.flush_all().await.unwrap();
        let info = head(&client, "f.txt").await;
        assert_eq!(info.attributes.content_type.as_deref(), Some("text/x-mine"));
        assert_eq!(info.attributes.metadata["plain"], "word");
        assert_eq!(client.store.tags(BUCKET, "f.txt").await.unwrap()["c"], "d e");
        let anew = Client::of_store(Arc::clone(&client.store));
        let ino = anew.walk("f.txt").await.unwrap().ino;
        assert_eq!(anew.fs.getxattr(ino, "user.mine").await.unwrap(), b"\x00\xff");
        assert_eq!(anew.fs.getxattr(ino, "user.s3.etag").await.unwrap(), info.etag.as_str().as_bytes());
        assert_eq!(anew.fs.listxattr(ino).await.unwrap(), ["user.mine", "user.plain"]);
        let absent = anew.fs.getxattr(ino, "security.capability").await;
        assert_eq!(kind_of(absent), Kind::NoAttribute);
        let acl = anew.fs.getxattr(ino, "system.posix_acl_access").await;
        assert_eq!(kind_of(acl), Kind::Unsupported);
        anew.fs.removexattr(ino, "user.mine").await.unwrap();
        assert_eq!(kind_of(anew.fs.removexattr(ino, "user.mine").await), Kind::NoAttribute);
        let again = anew.fs.setxattr(ino, "user.plain", b"x", Replaces::Nothing).await;
        assert_eq!(kind_of(again), Kind::AlreadyExists);
        let large = anew.fs.setxattr(ino, "user.large", &[1; 4000], Replaces::Either).await;
        assert_eq!(kind_of(large), Kind::AttributeTooLarge);
    });
}

#[test]
fn with_posix_off_nothing_is_kept_or_asked_for() {
    block_on(async {
        let client = Client::new().with_posix(PosixMode::Off);
        put_with(&client, "f", b"x", &[("mode", "33152"), ("mtime", "5")]).await;
        assert_eq!(client.stat("f").await.unwrap().perm, 0o644);
        client.store.clear_calls();
        assert_eq!(set(&client, "f", mode(0o700)).await.unwrap().perm, 0o700);
        client.fs.flush_all().await.unwrap();
        assert_eq!(client.store.calls(), [""; 0]);
        let made = Maker::of_mode(0o777);
        let link = client.fs.symlink(ROOT, OsStr::new("l"), OsStr::new("f"), made).await;
        assert_eq!(kind_of(link), Kind::NotPermitted);
    });
}

#[test]
fn a_rename_changes_no_time_of_what_was_written_here() {
    block_on(async {
        let client = Client::new();
        let file = client.open("temporary", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"x").await.unwrap();
        let written = client.stat("temporary").await.unwrap().mtime;
        // S3 dates it when it gets it.
        client.clock.advance(Duration::from_millis(900));
        client.close(file).await.unwrap();
        // As the kernel does, which remembers what it has seen.
        let held = client.walk("temporary").await.unwrap();
        client.rename("temporary", "f").await.unwrap();
        assert_eq!(client.stat("f").await.unwrap().mtime, written);
        client.pass_ttl();
        assert_eq!(client.stat("f").await.unwrap().mtime, written, "when S3 has said when it was copied");
        client.fs.forget(held.ino, 1);
    });
}

/// Names that are not there make a mount list the directory, and a listing knows nothing of attributes.
#[test]
fn a_file_that_is_found_after_absent_names_shows_what_it_says() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        client.write("d/f", b"x").await.unwrap();
        let modified = SetAttr { mtime: Some(at(1_588_748_889, 500)), ..mode(0o640) };
        set(&client, "d/f", modified).await.unwrap();
        client.fs.flush_all().await.unwrap();
        let other = Client::of_store(Arc::clone(&client.store));
        // As the kernel does while a program is in it.
        let held = other.walk("d").await.unwrap();
        for absent in 0..4 {
            let name = format!("d/absent{absent}");
            assert_eq!(kind_of(other.stat(&name).await), Kind::NotFound);
        }
        let shown = other.stat("d/f").await.unwrap();
        assert_eq!((shown.mtime, shown.perm), (at(1_588_748_889, 500), 0o640));
        other.fs.forget(held.ino, 1);
    });
}

#[test]
fn with_posix_off_extended_attributes_are_kept_and_nothing_else_is_said() {
    block_on(async {
        let client = Client::new().with_posix(PosixMode::Off);
        client.put_object("f", b"x").await;
        put_with(&client, "theirs", b"x", &[("mode", "33152"), ("mtime", "5")]).await;
        client.mkdir("d").await.unwrap();
        client.mkdir("d/sub").await.unwrap();
        for path in ["f", "theirs", "d/sub"] {
            let ino = client.walk(path).await.unwrap().ino;
            client.fs.setxattr(ino, "user.mine", b"x", Replaces::Either).await.unwrap();
        }
        client.fs.flush_all().await.unwrap();
        let mut told = Vec::new();
        for key in ["f", "theirs", "d/", "d/sub/"] {
            let keys: Vec<String> = metadata(&client, key).await.into_keys().collect();
            told.push(keys.join(" "));
        }
        assert_eq!(told, ["xattr", "mode mtime xattr", "pailfs-made", "xattr"]);
    });
}

// ---- what others do

/// A copy onto itself that changes metadata alone leaves the ETag as it is.
#[test]
fn another_client_s_chmod_shows_after_the_ttl_and_is_not_undone_by_who_had_the_file_open() {
    block_on(async {
        let client = Client::of_one_clock();
        put_with(&client, "f", b"bytes", &[("mode", "33188"), ("theirs", "old")]).await;
        let reader = client.open("f", READ).await.unwrap();
        client.fs.read(reader.1, 0, 5).await.unwrap();
        let other = client.another();
        set(&other, "f", mode(0o600)).await.unwrap();
        other.fs.flush_all().await.unwrap();
        client.pass_ttl();
        assert_eq!(client.stat("f").await.unwrap().perm, 0o600);
        set(&client, "f", SetAttr { uid: Some(7), ..SetAttr::default() }).await.unwrap();
        client.close(reader).await.unwrap();
        let attr = seen_anew(&client, "f").await;
        assert_eq!((attr.perm, attr.uid), (0o600, 7), "both");
    });
}

#[test]
fn another_client_s_chmod_of_what_was_saved_here_shows_in_a_listing_after_the_ttl() {
    block_on(async {
        let client = Client::of_one_clock();
        client.mkdir("d").await.unwrap();
        client.write("d/f", b"bytes").await.unwrap();
        let held = client.walk("d/f").await.unwrap();
        set(&client, "d/f", mode(0o640)).await.unwrap();
        client.fs.flush_all().await.unwrap();
        client.clock.advance(Duration::from_secs(3600));
        let other = client.another();
        set(&other, "d/f", mode(0o600)).await.unwrap();
        other.fs.flush_all().await.unwrap();
        client.pass_ttl();
        assert_eq!(client.attrs("d").await.unwrap()[0].perm, 0o600);
        client.fs.forget(held.ino, 1);
    });
}

#[test]
fn another_client_s_first_chmod_in_a_directory_shows_in_a_listing_after_the_ttl() {
    block_on(async {
        for marked in [false, true] {
            let client = Client::of_one_clock();
            client.put_object("d/f", b"bytes").await;
            client.put_object("other", b"bytes").await;
            if marked {
                client.put_object("d/", b"").await;
            }
            let held = client.walk("d").await.unwrap();
            assert_eq!(client.attrs("").await.unwrap()[0].perm, 0o755);
            assert_eq!(client.attrs("d").await.unwrap()[0].perm, 0o644);
            client.clock.advance(Duration::from_secs(3600));
            let other = client.another();
            set(&other, "d/f", mode(0o600)).await.unwrap();
            other.fs.flush_all().await.unwrap();
            client.pass_ttl();
            assert_eq!(client.attrs("d").await.unwrap()[0].perm, 0o600, "marked: {marked}");
            client.fs.forget(held.ino, 1);
        }
    });
}

#[test]
fn another_client_s_chmod_of_a_directory_shows_in_a_listing_after_the_ttl() {
    block_on(async {
        let client = Client::of_one_clock();
        client.mkdir("p").await.unwrap();
        client.mkdir("p/d").await.unwrap();
        set(&client, "p/d", mode(0o750)).await.unwrap();
        let held = client.walk("p/d").await.unwrap();
        assert_eq!(client.attrs("p").await.unwrap()[0].perm, 0o750);
        client.clock.advance(Duration::from_secs(3600));
        let other = client.another();
        set(&other, "p/d", mode(0o700)).await.unwrap();
        client.pass_ttl();
        assert_eq!(client.attrs("p").await.unwrap()[0].perm, 0o700);
        client.fs.forget(held.ino, 1);
    });
}

/// The kernel keeps where a link leads as long as it keeps the link's inode.
#[test]
fn a_link_that_another_client_replaced_is_another_inode() {
    block_on(async {
        let client = Client::of_one_clock();
        let made = Maker::of_mode(0o777);
        let old = client.fs.symlink(ROOT, OsStr::new("l"), OsStr::new("one"), made).await.unwrap();
        let other = client.another();
        other.unlink("l").await.unwrap();
        other.fs.flush_all().await.unwrap();
        other.fs.symlink(ROOT, OsStr::new("l"), OsStr::new("two"), made).await.unwrap();
        client.pass_ttl();
        let new = client.walk("l").await.unwrap();
        assert_eq!(client.fs.readlink(new.ino).await.unwrap(), "two");
        assert_ne!(new.ino, old.ino);
        client.fs.forget(new.ino, 1);
        client.fs.forget(old.ino, 1);
    });
}

/// Of a hundred directories at the top of a bucket, one has files with attributes.
#[test]
fn a_directory_that_was_no_sample_shows_its_attributes() {
    block_on(async {
        let client = Client::new();
        for i in 0..100 {
            client.put_object(&format!("{i:02}/f"), b"x").await;
        }
        set(&client, "57/f", mode(0o600)).await.unwrap();
        client.fs.flush_all().await.unwrap();
        let anew = Client::of_store(Arc::clone(&client.store));
        assert_eq!(anew.attrs("").await.unwrap().len(), 100);
        assert_eq!(anew.attrs("57").await.unwrap()[0].perm, 0o600);
    });
}

#[test]
fn with_posix_full_everything_is_asked_for_whatever_its_directory_says() {
    block_on(async {
        let client = Client::new().with_posix(PosixMode::Full);
        client.put_object("d/", b"").await;
        put_with(&client, "d/f", b"x", &[("mode", "33152")]).await;
        client.walk("d").await.unwrap();
        let ino = client.walk("d").await.unwrap().ino;
        let fh = client.fs.opendir(ino).unwrap();
        client.fs.readdir(fh, 0, false, &mut |_| true).await.unwrap();
        client.fs.releasedir(fh);
        assert_eq!(client.stat("d/f").await.unwrap().perm, 0o600);
    });
}

#[test]
fn a_directory_of_files_with_attributes_shows_them_where_it_was_moved_to() {
    block_on(async {
        let client = Client::new();
        client.put_object("d/f", b"bytes").await;
        client.mkdir("e").await.unwrap();
        client.mkdir("e/in").await.unwrap();
        set(&client, "d/f", mode(0o600)).await.unwrap();
        client.fs.flush_all().await.unwrap();
        client.rename("d", "e/in/d").await.unwrap();
        let anew = Client::of_store(Arc::clone(&client.store));
        assert_eq!(anew.attrs("e").await.unwrap().len(), 1);
        assert_eq!(anew.attrs("e/in").await.unwrap().len(), 1);
        assert_eq!(anew.attrs("e/in/d").await.unwrap()[0].perm, 0o600);
    });
}

// ---- bytes before attributes

/// The marker of a directory says that attributes are worth asking for: bytes do not wait for it.
#[test]
fn bytes_are_saved_where_the_marker_cannot_say_that_there_are_attributes() {
    block_on(async {
        let client = Client::new();
        client.put_object("d/", b"bytes of its own").await;
        let file = client.open("d/f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"bytes").await.unwrap();
        client.fs.setattr(file.0, Some(file.1), mode(0o600)).await.unwrap();
        client.close(file).await.unwrap();
        assert_eq!(client.object("d/f").await.unwrap(), b"bytes");
        assert_eq!(seen_anew(&client, "d/f").await.perm, 0o600);
        assert_eq!(client.object("d/").await.unwrap(), b"bytes of its own");
    });
}

// ---- ends of the process, and answers that are lost

async fn streamed(client: &Client) -> (pailfs::tree::Ino, u64) {
    let file = client.open("f", REWRITE).await.unwrap();
    for step in 0..40 {
        client.fs.write(file.1, step << 20, &vec![7; 1 << 20]).await.unwrap();
    }
    until("parts have left", || client.stats.parts_ahead.value() >= 4).await;
    file
}

#[test]
fn what_is_said_of_a_file_behind_its_first_parts_survives_a_kill() {
    block_on(async {
        let (client, disk) = journaled();
        let file = streamed(&client).await;
        client.fs.setattr(file.0, Some(file.1), mode(0o600)).await.unwrap();
        let next = crash(&client, disk.path()).await.client;
        next.fs.flush_all().await.unwrap();
        assert_eq!(seen_anew(&next, "f").await.perm, 0o600);
    });
}

#[test]
fn a_kill_between_a_file_s_bytes_and_what_was_said_of_it_loses_neither() {
    block_on(async {
        let (client, disk) = journaled();
        let file = streamed(&client).await;
        client.fs.setattr(file.0, Some(file.1), mode(0o600)).await.unwrap();
        client.store.refuse("CopyObject", Kind::Server, When::Before);
        assert!(client.fs.fsync(file.1).await.is_err(), "it is not all in S3");
        assert_eq!(head(&client, "f").await.size, 40 << 20);
        client.store.refuse_nothing();
        let next = crash(&client, disk.path()).await.client;
        next.fs.flush_all().await.unwrap();
        assert_eq!(seen_anew(&next, "f").await.perm, 0o600);
    });
}

#[test]
fn what_was_said_of_a_file_whose_save_nobody_heard_of_is_saved_behind_it() {
    block_on(async {
        for killed in [false, true] {
            let (client, disk) = journaled();
            let file = streamed(&client).await;
            client.fs.setattr(file.0, Some(file.1), mode(0o600)).await.unwrap();
            client.store.refuse("CompleteMultipartUpload", Kind::TimedOut, When::After);
            client.store.refuse("HeadObject", Kind::TimedOut, When::Before);
            let _ = client.fs.fsync(file.1).await;
            client.store.refuse_nothing();
            let next = match killed {
                true => crash(&client, disk.path()).await.client,
                false => client,
            };
            next.fs.flush_all().await.unwrap();
            assert_eq!(seen_anew(&next, "f").await.perm, 0o600, "killed: {killed}");
            assert_eq!(next.keys().await, ["f"]);
        }
    });
}

#[test]
fn a_change_of_attributes_that_nobody_heard_of_is_no_other_client_s() {
    block_on(async {
        let (client, disk) = journaled();
        let file = streamed(&client).await;
        client.close(file).await.unwrap();
        for then_written in [false, true] {
            set(&client, "f", mode(0o600)).await.unwrap();
            // A copy of an object in parts has another ETag.
            client.store.refuse("CopyObject", Kind::TimedOut, When::After);
            client.store.refuse("HeadObject", Kind::TimedOut, When::Before);
            let _ = client.fs.flush_all().await;
            client.store.refuse_nothing();
            match then_written {
                false => drop(set(&client, "f", SetAttr { uid: Some(7), ..SetAttr::default() }).await),
                true => client.write_at("f", 3, b"new").await.unwrap(),
            }
            client.fs.flush_all().await.unwrap();
            let attr = seen_anew(&client, "f").await;
            assert_eq!((attr.perm, attr.uid), (0o600, 7));
            assert_eq!(client.keys().await, ["f"]);
            set(&client, "f", mode(0o644)).await.unwrap();
            client.fs.flush_all().await.unwrap();
        }
        drop(disk);
    });
}

#[test]
fn a_change_of_attributes_goes_where_its_file_goes() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"bytes").await;
        set(&client, "f", mode(0o600)).await.unwrap();
        client.rename("f", "g").await.unwrap();
        assert_eq!(seen_anew(&client, "g").await.perm, 0o600);
        set(&client, "g", mode(0o640)).await.unwrap();
        client.unlink("g").await.unwrap();
        client.fs.flush_all().await.unwrap();
        assert_eq!(client.keys().await, [""; 0]);
    });
}

#[test]
fn a_file_keeps_the_time_it_was_written_at_where_attributes_are_asked_for() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        client.mkdir("plain").await.unwrap();
        client.write("d/first", b"x").await.unwrap();
        set(&client, "d/first", mode(0o600)).await.unwrap();
        client.fs.flush_all().await.unwrap();
        client.clock.advance(Duration::new(100, 123_456_789));
        client.store.clear_calls();
        for name in ["d/f", "plain/f"] {
            client.write(name, b"x").await.unwrap();
        }
        assert_eq!(count(&client, "CopyObject"), 0);
        let written = client.stat("d/f").await.unwrap().mtime;
        assert_eq!(seen_anew(&client, "d/f").await.mtime, written);
        assert_eq!(metadata(&client, "plain/f").await, Metadata::new(), "nothing to say, nothing said");
        // Other bytes, another time.
        client.clock.advance(Duration::from_secs(50));
        client.write_at("d/f", 0, b"y").await.unwrap();
        assert_eq!(seen_anew(&client, "d/f").await.mtime, client.stat("d/f").await.unwrap().mtime);
        assert!(client.stat("d/f").await.unwrap().mtime > written);
    });
}

#[test]
fn a_directory_that_is_looked_up_again_is_asked_what_it_says_only_if_that_is_news() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        let held = client.walk("d").await.unwrap();
        client.store.clear_calls();
        for _ in 0..3 {
            client.pass_ttl();
            assert_eq!(client.stat("d").await.unwrap().perm, 0o755);
        }
        let markers = client.store.calls().len();
        assert!(markers <= 6, "a HEAD of the object and a LIST each time: {:?}", client.store.calls());
        client.fs.forget(held.ino, 1);
    });
}

#[test]
fn what_is_set_of_an_open_file_without_a_name_is_for_its_handles() {
    block_on(async {
        let client = Client::new();
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.write(file.1, 0, b"bytes").await.unwrap();
        client.unlink("f").await.unwrap();
        let set = SetAttr { mtime: Some(at(5, 6)), ..mode(0o600) };
        let attr = client.fs.setattr(file.0, Some(file.1), set).await.unwrap();
        assert_eq!((attr.perm, attr.mtime, attr.nlink), (0o600, at(5, 6), 0));
        client.close(file).await.unwrap();
        assert_eq!(client.keys().await, [""; 0]);
    });
}

/// As rsync leaves a file: written under a name that nobody has, described, and then given its own.
async fn as_rsync_does(client: &Client, name: &str, bytes: &[u8]) {
    let temporary = format!(".{name}.Xyz12");
    let file = client.open(&temporary, OpenFlags { exclusive: true, ..WRITE }).await.unwrap();
    client.fs.write(file.1, 0, bytes).await.unwrap();
    client.close(file).await.unwrap();
    let times = SetAttr { mtime: Some(at(5, 6)), ..mode(0o640) };
    set(client, &temporary, times).await.unwrap();
    client.rename(&temporary, name).await.unwrap();
}

#[test]
fn what_is_set_of_a_file_that_is_renamed_then_rides_with_its_copy() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"what it replaces").await;
        client.store.clear_calls();
        as_rsync_does(&client, "f", b"bytes").await;
        client.fs.flush_all().await.unwrap();
        // The name is claimed, the bytes are in S3 when close returns, and the rename is what it is there.
        for (operation, times) in [("PutObject", 2), ("CopyObject", 1), ("GetObject", 0), ("DeleteObject", 1)]
        {
            assert_eq!(count(&client, operation), times, "{operation}: {:?}", client.store.calls());
        }
        let attr = seen_anew(&client, "f").await;
        assert_eq!((attr.perm, attr.mtime, attr.size), (0o640, at(5, 6), 5));
        assert_eq!(client.keys().await, ["f"]);
        assert!(client.fs.pending().is_empty());
        // Its handles and what is changed later are of the object under the new name.
        set(&client, "f", mode(0o600)).await.unwrap();
        assert_eq!(seen_anew(&client, "f").await.perm, 0o600);
        client.write_at("f", 5, b" and more").await.unwrap();
        assert_eq!(client.object("f").await.unwrap(), b"bytes and more");
    });
}

#[test]
fn what_is_set_while_the_rename_is_under_way_is_not_lost() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"bytes").await;
        set(&client, "f", mode(0o640)).await.unwrap();
        let held = client.store.hold("CopyObject");
        let fs = client.fs.clone();
        let (from, to) = (OsStr::new("f"), OsStr::new("g"));
        let rename = tokio::spawn(async move { fs.rename(ROOT, from, ROOT, to, false).await });
        until("it is copied", || count(&client, "CopyObject") > 0).await;
        set(&client, "f", mode(0o600)).await.unwrap();
        held.add_permits(1_000);
        rename.await.unwrap().unwrap();
        assert_eq!(client.stat("g").await.unwrap().perm, 0o600);
        assert_eq!(seen_anew(&client, "g").await.perm, 0o600);
        assert_eq!(client.keys().await, ["g"]);
    });
}

#[test]
fn a_file_that_waits_for_its_upload_goes_straight_to_its_new_name_with_all_that_was_set() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let client = Client::new().saving_after(disk.path(), Duration::from_secs(24 * 3600), false);
        client.put_object("f", b"what it replaces").await;
        client.store.clear_calls();
        as_rsync_does(&client, "f", b"bytes").await;
        assert_eq!(count(&client, "PutObject"), 1, "the claim: {:?}", client.store.calls());
        let attr = client.stat("f").await.unwrap();
        assert_eq!((attr.perm, attr.mtime, attr.size), (0o640, at(5, 6), 5));
        assert_eq!(kind_of(client.stat(".f.Xyz12").await), Kind::NotFound);
        // A kill at this moment loses none of it.
        let left = crate::crash::snapshot(disk.path());
        client.fs.flush_all().await.unwrap();
        assert_eq!((count(&client, "PutObject"), count(&client, "CopyObject")), (2, 0));
        assert_eq!(client.keys().await, ["f"]);
        let attr = seen_anew(&client, "f").await;
        assert_eq!((attr.perm, attr.mtime, attr.size), (0o640, at(5, 6), 5));
        let next = crash(&client, left.path()).await;
        next.client.fs.flush_all().await.unwrap();
        assert_eq!(client.keys().await, ["f"], "what it would have sent is there");
    });
}

#[test]
fn a_kill_after_a_rename_that_waits_for_its_upload_leaves_the_new_name_alone() {
    block_on(async {
        let disk = tempfile::tempdir().unwrap();
        let client = Client::new().saving_after(disk.path(), Duration::from_secs(24 * 3600), false);
        client.put_object("f", b"what it replaces").await;
        as_rsync_does(&client, "f", b"bytes").await;
        let next = crash(&client, disk.path()).await;
        next.client.fs.flush_all().await.unwrap();
        assert_eq!(next.client.keys().await, ["f"]);
        assert_eq!(next.client.object("f").await.unwrap(), b"bytes");
        assert_eq!(metadata(&next.client, "f").await["mtime"], "5.000000006");
    });
}

#[test]
fn the_time_of_a_renamed_file_is_everybodys_where_attributes_are_asked_for() {
    block_on(async {
        let client = Client::of_one_clock();
        for name in ["d/f", "plain/f"] {
            client.put_object(name, b"bytes").await;
        }
        client.put_object("d/carries", b"x").await;
        set(&client, "d/carries", mode(0o600)).await.unwrap();
        client.fs.flush_all().await.unwrap();
        let before = client.stat("d/f").await.unwrap().mtime;
        client.clock.advance(Duration::from_secs(1_000));
        client.rename("d/f", "d/g").await.unwrap();
        client.rename("plain/f", "plain/g").await.unwrap();
        assert_eq!(client.stat("d/g").await.unwrap().mtime, before);
        assert_eq!(seen_anew(&client, "d/g").await.mtime, before);
        assert_eq!(client.object("d/g").await.unwrap(), b"bytes");
        assert_eq!(metadata(&client, "plain/g").await, Metadata::new(), "nobody asks for it there");
    });
}

#[test]
fn a_directory_that_is_described_is_not_removed_meanwhile_and_leaves_nothing() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        client.store.clear_calls();
        let held = client.store.hold("PutObject");
        let dir = client.walk("d").await.unwrap();
        let describing = {
            let fs = client.fs.clone();
            tokio::spawn(async move { fs.setattr(dir.ino, None, mode(0o700)).await.map(drop) })
        };
        until("the marker is on its way", || count(&client, "PutObject") > 0).await;
        let removing = {
            let fs = client.fs.clone();
            tokio::spawn(async move { fs.rmdir(ROOT, OsStr::new("d")).await })
        };
        crate::client::let_others_run().await;
        assert_eq!(count(&client, "DeleteObject"), 0, "it waits");
        held.add_permits(1_000);
        describing.await.unwrap().unwrap();
        removing.await.unwrap().unwrap();
        assert_eq!(client.keys().await, [""; 0]);
    });
}

#[test]
fn a_name_that_is_claimed_says_its_mode_and_owner_at_once() {
    block_on(async {
        let client = Client::new();
        let flags = OpenFlags { exclusive: true, ..WRITE };
        let made = Maker { mode: 0o600, owner: Some((7, 8)) };
        let (attr, opened) = client.fs.create(ROOT, OsStr::new("f"), flags, made).await.unwrap();
        assert_eq!(metadata(&client, "f").await["mode"], "33152");
        client.close((attr.ino, opened.fh)).await.unwrap();
        assert_eq!(
            client.store.calls().iter().filter(|call| **call == "PutObject").count(),
            1,
            "nothing to add"
        );
        let attr = seen_anew(&client, "f").await;
        assert_eq!((attr.perm, attr.uid, attr.gid), (0o600, 7, 8));
    });
}

#[test]
fn a_directory_that_nobody_looked_into_shows_its_attributes_where_it_was_moved_to() {
    block_on(async {
        let client = Client::new();
        client.mkdir("d").await.unwrap();
        client.write("d/f", b"bytes").await.unwrap();
        set(&client, "d/f", SetAttr { mtime: Some(at(5, 6)), ..SetAttr::default() }).await.unwrap();
        client.fs.flush_all().await.unwrap();
        // A mount that knows nothing of it, and of the new place that it says nothing.
        let other = client.another();
        other.mkdir("silent").await.unwrap();
        other.rename("d", "silent/d").await.unwrap();
        for seen in [&other, &other.another()] {
            let dir = |attrs: Vec<Attr>| attrs.into_iter().map(|attr| attr.mtime).collect::<Vec<_>>();
            seen.attrs("").await.unwrap();
            seen.attrs("silent").await.unwrap();
            assert_eq!(dir(seen.attrs("silent/d").await.unwrap()), [at(5, 6)]);
        }
    });
}

#[test]
fn a_close_of_a_file_whose_bytes_are_in_s3_does_not_save_its_attributes_before_the_rest_is_set() {
    block_on(async {
        let client = Client::new();
        client.put_object("f", b"bytes").await;
        client.store.clear_calls();
        set(&client, "f", mode(0o640)).await.unwrap();
        // As touch does: a descriptor is closed, and the time is set by its copy.
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.flush(file.1).await.unwrap();
        assert_eq!(count(&client, "CopyObject"), 0);
        let times = SetAttr { mtime: Some(at(5, 6)), ..SetAttr::default() };
        client.fs.setattr(file.0, Some(file.1), times).await.unwrap();
        client.close(file).await.unwrap();
        client.fs.flush_all().await.unwrap();
        assert_eq!(count(&client, "CopyObject"), 1, "{:?}", client.store.calls());
        let attr = seen_anew(&client, "f").await;
        assert_eq!((attr.perm, attr.mtime), (0o640, at(5, 6)));
        // Whoever waits for S3 has it there.
        let file = client.open("f", WRITE).await.unwrap();
        client.fs.setattr(file.0, Some(file.1), mode(0o600)).await.unwrap();
        client.fs.fsync(file.1).await.unwrap();
        assert_eq!(metadata(&client, "f").await["mode"], "33152");
        client.close(file).await.unwrap();
    });
}

/// What a listing says is not what is stored beside it: where S3 does not answer for a name, or whether a directory has
/// attributes in it, nothing is shown of what it might be. A soak found a directory and a file with those of new ones.
#[test]
fn no_request_that_fails_shows_other_attributes_than_are_stored() {
    block_on(async {
        let writer = Client::new();
        writer.mkdir("d").await.unwrap();
        writer.mkdir("d/sub").await.unwrap();
        for path in ["f", "d/f", "d/sub/f"] {
            writer.write(path, b"bytes").await.unwrap();
        }
        for path in ["f", "d", "d/f", "d/sub", "d/sub/f"] {
            let set_to = SetAttr { mtime: Some(at(5, 6)), ..mode(0o710) };
            set(&writer, path, set_to).await.unwrap();
        }
        writer.fs.flush_all().await.unwrap();
        for n in 1.. {
            let client = Client::of_store(Arc::clone(&writer.store));
            client.store.clear_calls();
            client.store.fail_nth(n, Kind::Server, When::Before);
            let mut shown = Vec::new();
            for dir in ["", "d", "d/sub"] {
                shown.extend(client.attrs(dir).await.unwrap_or_default());
                for name in ["f", "d", "sub"] {
                    let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
                    shown.extend(client.stat(&path).await.ok());
                }
            }
            let wrong = shown.iter().find(|attr| attr.perm != 0o710 || attr.mtime != at(5, 6));
            assert!(wrong.is_none(), "request {n} fails: {wrong:?} ({:?})", client.store.calls());
            if (client.store.calls().len() as u64) < n {
                assert_eq!(shown.len(), 2 * 5, "nothing fails");
                break;
            }
        }
        writer.store.refuse_nothing();
    });
}
