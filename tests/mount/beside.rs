//! What S3 is told beside the bytes: by flags, by the configuration, and of what objects have already.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use pailfs::s3::{Attributes, Encryption, ObjectInfo};

use crate::harness::mount::{Mounted, endpoint, fresh_place, pailfs};
use crate::harness::{Place, Server, block_on};
use crate::semantics::status;
use crate::servers::a_days_work;

const KMS: &str = "arn:aws:kms:us-east-1:123456789012:key/0f1e2d3c";

/// With a bucket key, which moto forgets of what is uploaded in parts.
fn kms(server: Server, key: &str) -> Option<Encryption> {
    let bucket_key = (server != Server::Moto || key == "small.txt").then_some(true);
    Some(Encryption::Kms { key_id: Some(KMS.to_owned()), bucket_key, twice: false })
}

fn head(place: &Place, key: &str) -> ObjectInfo {
    block_on(place.store.head(&place.bucket, key, None)).unwrap()
}

fn tags(place: &Place, key: &str) -> Vec<(String, String)> {
    block_on(place.store.tags(&place.bucket, key)).unwrap().into_iter().collect()
}

fn tool(m: &Mounted, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(m.path()).output().expect("the tool is there");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Tries to mount in the background; this is to fail.
fn refused(place: &Place, more: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (at, source) = (endpoint(place.server), format!("s3://{}", place.bucket));
    let mut command = pailfs(&at);
    command.args(["mount", &source]).arg(dir.path().join("mnt"));
    command
        .args(["--endpoint-url", &at.url, "--region", &at.region, "--state-dir"])
        .arg(dir.path().join("s"));
    fs::create_dir(dir.path().join("mnt")).unwrap();
    let output = command.args(more).output().expect("the binary starts");
    if output.status.success() {
        let _ = Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("umount").arg(dir.path().join("mnt")).output();
    }
    let said = text(&output);
    assert!(!output.status.success(), "it is mounted: {said}");
    said
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// "a new file | storage class, encryption, ACL and tags that the mount was asked to give"
fn new_files_get_what_was_asked_for(server: Server) {
    let flags = [
        "--storage-class=STANDARD_IA",
        "--sse=aws:kms",
        &format!("--sse-kms-key-id={KMS}"),
        "--sse-bucket-key",
        "--acl=private",
        "--tag=team=blue",
        "--tag=cost=a b",
    ];
    let Some(mut m) = Mounted::with(server, "new_files_get_what_was_asked_for", &flags) else { return };
    fs::write(m.at("small.txt"), "bytes").unwrap();
    fs::write(m.at("large"), vec![1; 20 << 20]).unwrap();
    for key in ["small.txt", "large"] {
        let info = head(&m.place, key);
        assert_eq!(info.attributes.storage_class.as_deref(), Some("STANDARD_IA"), "{key}");
        assert_eq!(info.attributes.encryption, kms(server, key), "{key}");
        let expected = [("cost", "a b"), ("team", "blue")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!((info.tag_count, tags(&m.place, key)), (2, expected.to_vec()), "{key}");
    }
    assert!(m.umount().success());
    let keys = block_on(m.place.keys()).unwrap();
    assert_eq!(keys, ["large", "small.txt"], "what was tried at the mount is gone");
}

#[test]
fn new_files_get_what_was_asked_for_on_the_demo_server() {
    new_files_get_what_was_asked_for(Server::Demo);
}

#[test]
fn new_files_get_what_was_asked_for_on_moto() {
    new_files_get_what_was_asked_for(Server::Moto);
}

/// "a file of another client | its attributes stay"
fn programs_leave_what_an_object_has(server: Server) {
    let Some(m) = Mounted::fresh(server, "programs_leave_what_an_object_has") else { return };
    let theirs = Attributes {
        content_type: Some("text/x-theirs".to_owned()),
        content_encoding: Some("x-theirs".to_owned()),
        cache_control: Some("max-age=60".to_owned()),
        storage_class: Some("STANDARD_IA".to_owned()),
        metadata: [("owner".to_owned(), "ann".to_owned())].into(),
        tags: [("theirs".to_owned(), "yes".to_owned())].into(),
        encryption: kms(server, "d/f"),
        ..Attributes::default()
    };
    let mut request = m.place.put_request("d/f", vec![b'x'; 18 << 20]);
    request.attributes = theirs.clone();
    block_on(m.place.store.put(request)).unwrap();
    let stays = |key: &str, after: &str| {
        let info = head(&m.place, key);
        let mut kept = Attributes { tags: tags(&m.place, key).into_iter().collect(), ..info.attributes };
        // From the chmod on, it says more.
        kept.metadata.retain(|name, _| theirs.metadata.contains_key(name));
        assert_eq!(kept, theirs, "after {after}");
    };
    tool(&m, "dd", &["if=/dev/zero", "of=d/f", "bs=1k", "count=3", "seek=7", "conv=notrunc"]);
    stays("d/f", "a write in the middle");
    fs::OpenOptions::new().append(true).open(m.at("d/f")).unwrap().write_all(b"more").unwrap();
    stays("d/f", "an append");
    tool(&m, "mv", &["d/f", "d/g"]);
    stays("d/g", "mv");
    tool(&m, "mv", &["d", "e"]);
    stays("e/g", "mv of the directory");
    fs::set_permissions(m.at("e/g"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::open(m.at("e/g")).unwrap().sync_all().unwrap();
    stays("e/g", "chmod");
    fs::write(m.at("other"), vec![7; 9 << 20]).unwrap();
    tool(&m, "cp", &["--reflink=auto", "other", "e/g"]);
    assert_eq!(head(&m.place, "e/g").size, 9 << 20);
    stays("e/g", "cp over it");
    fs::write(m.at("e/g"), "short").unwrap();
    stays("e/g", "a rewrite");
}

#[test]
fn programs_leave_what_an_object_has_on_the_demo_server() {
    programs_leave_what_an_object_has(Server::Demo);
}

#[test]
fn programs_leave_what_an_object_has_on_moto() {
    programs_leave_what_an_object_has(Server::Moto);
}

#[test]
fn what_a_server_refuses_or_forgets_is_told_at_the_mount() {
    let Some(place) = fresh_place(Server::Demo, "what_a_server_refuses") else { return };
    let said = refused(&place, &["--storage-class=LUKEWARM"]);
    assert!(said.contains("InvalidStorageClass") && said.contains("LUKEWARM (--storage-class)"), "{said}");
    assert!(block_on(place.keys()).unwrap().is_empty(), "nothing stays of the trial");

    let Some(place) = fresh_place(Server::Garage, "what_a_server_forgets") else { return };
    for (flags, named) in [
        (&["--tag=a=b"][..], "--tag"),
        (&["--storage-class=STANDARD_IA"], "--storage-class"),
        (&["--sse=aws:kms", "--tag=a=b"], "--sse"),
    ] {
        let said = refused(&place, flags);
        assert!(said.contains(named) && said.contains("keeps nothing of it"), "{flags:?}: {said}");
    }
}

#[test]
fn what_cannot_be_meant_is_told_before_anything_is_asked() {
    let Some(place) = fresh_place(Server::Demo, "what_cannot_be_meant") else { return };
    let key = BASE64.encode([3; 32]);
    let file = key_file(3);
    let file_flag = format!("--sse-customer-key=file:{}", file.path().display());
    for (flags, word) in [
        (&["--sse=AES256", "--sse-kms-key-id=k"][..], "aws:kms"),
        (&["--tag=no-value"], "team=blue"),
        (&["--storage-class="], "storage class"),
        (&["--sse-customer-key=file:/no/such/file"], "/no/such/file"),
        (&["--sse-customer-key=env:NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (&["--sse-customer-key", &key], "file:PATH or env:NAME"),
        (&[&file_flag, "--sse=aws:kms"], "customer key"),
    ] {
        let said = refused(&place, flags);
        assert!(said.contains(word), "{flags:?}: {said}");
        assert!(!said.contains(&key), "{flags:?}: {said}");
    }
}

fn key_file(byte: u8) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[byte; 32]).unwrap();
    file
}

/// "a mount with a customer key | what it writes no other key reads"
#[test]
fn what_a_mount_encrypts_with_its_key_nobody_reads_without() {
    let file = key_file(5);
    let flag = format!("--sse-customer-key=file:{}", file.path().display());
    let Some(place) = fresh_place(Server::Demo, "what_a_mount_encrypts") else { return };
    block_on(place.put("plain", "from before")).unwrap();
    let source = format!("s3://{}", place.bucket);
    let with_key = Mounted::mount(place.clone(), &source, &[&flag]);
    assert_eq!(fs::read(with_key.at("plain")).unwrap(), b"from before");
    fs::write(with_key.at("secret"), "psst").unwrap();
    tool(&with_key, "cp", &["--reflink=auto", "plain", "copy"]);
    for key in ["secret", "copy"] {
        let bytes = fs::read(with_key.at(key)).unwrap();
        assert!(bytes == b"psst" || bytes == b"from before", "{bytes:?}");
        assert!(block_on(place.get(key)).is_err(), "{key} was read without the key");
    }
    // Another mount without the key, and one with another.
    let other = key_file(6);
    let other_flag = format!("--sse-customer-key=file:{}", other.path().display());
    for flags in [&[][..], &[other_flag.as_str()]] {
        let m = with_key.again(flags);
        assert_eq!(fs::read(m.at("plain")).unwrap(), b"from before");
        assert!(fs::read(m.at("secret")).is_err());
        assert!(fs::write(m.at("secret"), "overwritten").is_err(), "not over what it cannot read");
    }
    assert_eq!(fs::read(with_key.at("secret")).unwrap(), b"psst");
    let shown = format!("{}{}", with_key.log_text(), status(&with_key));
    assert!(!shown.contains(&BASE64.encode([5; 32])), "{shown}");
}

#[test]
fn a_days_work_with_a_customer_key() {
    let file = key_file(9);
    let flag = format!("--sse-customer-key=file:{}", file.path().display());
    a_days_work(Server::Demo, &[&flag]);
    a_days_work(Server::Garage, &[&flag]);
}

/// The log of a mount at its most talkative, with the libraries below it.
#[test]
fn no_log_has_a_customer_key() {
    let Some(place) = fresh_place(Server::Demo, "no_log_has_a_customer_key") else { return };
    let home = tempfile::tempdir().unwrap();
    let (mnt, log): (PathBuf, PathBuf) = (home.path().join("mnt"), home.path().join("log"));
    fs::create_dir(&mnt).unwrap();
    let (at, source) = (endpoint(place.server), format!("s3://{}", place.bucket));
    let key = BASE64.encode([8; 32]);
    let run = |args: &[&str]| pailfs(&at).env("MY_KEY", &key).args(args).output().expect("the binary starts");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (dir, state) = (path(&mnt), path(&home.path().join("state")));
    let output = run(&[
        "mount",
        &source,
        &dir,
        "--endpoint-url",
        &at.url,
        "--region",
        &at.region,
        "--state-dir",
        &state,
        "--sse-customer-key=env:MY_KEY",
        "--log-level=trace,pailfs=trace",
        "--log-file",
        &path(&log),
    ]);
    assert!(output.status.success(), "{}", text(&output));
    fs::write(mnt.join("f"), "bytes").unwrap();
    assert_eq!(fs::read(mnt.join("f")).unwrap(), b"bytes");
    let output = run(&["umount", &dir]);
    assert!(output.status.success(), "{}", text(&output));
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("TRACE") && log.contains("PutObject"), "the log tells of requests");
    assert!(!log.contains(&key), "the key is in the log");
    assert!(block_on(place.get("f")).is_err(), "it was encrypted");
}

#[test]
fn a_configuration_says_what_the_directories_of_a_mount_give() {
    let Some(place) = fresh_place(Server::Demo, "a_configuration_says") else { return };
    let at = endpoint(place.server);
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.toml");
    // A relative path of a key starts at the configuration.
    fs::write(home.path().join("key"), [4; 32]).unwrap();
    let session = |more: &str| {
        format!(
            "endpoint_url = '{}'\nregion = '{}'\naccess_key_id = '{}'\nsecret_access_key = '{}'\n{more}\n",
            at.url, at.region, at.access, at.secret
        )
    };
    let text = format!(
        "[session.plain]\n{}[session.keyed]\n{}[mount.both]\n\
         cold = {{ bucket = '{b}', prefix = 'cold', session = 'plain', storage_class = 'GLACIER_IR', \
         tags = {{ team = 'blue' }}, sse = 'aws:kms', sse_kms_key_id = '{KMS}', acl = 'private' }}\n\
         locked = {{ bucket = '{b}', prefix = 'locked', session = 'keyed' }}\n",
        session(""),
        session("sse_customer_key = 'file:key'"),
        b = place.bucket
    );
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let (mnt, state) = (home.path().join("mnt"), home.path().join("state"));
    fs::create_dir(&mnt).unwrap();
    let mut command = pailfs(&at);
    command.args(["mount", "@both"]).arg(&mnt).arg("--config").arg(&config).arg("--state-dir").arg(&state);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", self::text(&output));
    let written = fs::write(mnt.join("cold/f"), "x").and_then(|()| fs::write(mnt.join("locked/f"), "y"));
    let output = Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("umount").arg(&mnt).output().unwrap();
    assert!(output.status.success(), "{}", self::text(&output));
    written.unwrap();
    let cold = head(&place, "cold/f");
    assert_eq!(cold.attributes.storage_class.as_deref(), Some("GLACIER_IR"));
    assert!(matches!(cold.attributes.encryption, Some(Encryption::Kms { .. })));
    assert_eq!(tags(&place, "cold/f"), [("team".to_owned(), "blue".to_owned())]);
    assert!(block_on(place.get("locked/f")).is_err(), "it is read without the key");
}
