use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn model() -> Model {
    let mut model = Model::new("us-east-1");
    model.create_bucket("bucket", None, NOW).unwrap();
    model
}

fn put(model: &mut Model, key: &str, body: &'static str, condition: Condition) -> Result<Written> {
    let request = PutRequest {
        bucket: "bucket".into(),
        key: key.into(),
        body: body.into(),
        condition,
        ..PutRequest::default()
    };
    model.put(request, NOW)
}

fn get(model: &Model, key: &str, version_id: Option<&str>) -> Result<Bytes> {
    let request = GetRequest {
        bucket: "bucket".into(),
        key: key.into(),
        version_id: version_id.map(str::to_owned),
        checksum: false,
        ..GetRequest::default()
    };
    Ok(model.get(&request)?.2)
}

#[test]
fn conditions_hold_or_fail_as_documented() {
    let mut m = model();
    let first = put(&mut m, "k", "1", Condition::Absent).unwrap();
    assert_eq!(put(&mut m, "k", "2", Condition::Absent).unwrap_err().kind(), Kind::AlreadyExists);
    let second = put(&mut m, "k", "2", Condition::Matches(first.etag.clone())).unwrap();
    let stale = put(&mut m, "k", "3", Condition::Matches(first.etag.clone())).unwrap_err();
    assert_eq!((stale.kind(), stale.status()), (Kind::Stale, Some(412)));
    let missing = put(&mut m, "none", "3", Condition::Matches(second.etag.clone())).unwrap_err();
    assert_eq!((missing.kind(), missing.code()), (Kind::NotFound, Some("NoSuchKey")));
    let delete =
        |condition| DeleteRequest { bucket: "bucket".into(), key: "k".into(), version_id: None, condition };
    assert_eq!(m.delete(&delete(Condition::Matches(first.etag)), NOW).unwrap_err().kind(), Kind::Stale);
    m.delete(&delete(Condition::Matches(second.etag)), NOW).unwrap();
    assert_eq!(get(&m, "k", None).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn versions_and_delete_markers_keep_what_was() {
    let mut m = model();
    put(&mut m, "k", "null version", Condition::Any).unwrap();
    m.set_versioning("bucket", true).unwrap();
    let one = put(&mut m, "k", "one", Condition::Any).unwrap().version_id.unwrap();
    let deleted = m
        .delete(&DeleteRequest { bucket: "bucket".into(), key: "k".into(), ..DeleteRequest::default() }, NOW)
        .unwrap();
    assert!(deleted.delete_marker);
    assert!(get(&m, "k", None).is_err());
    assert_eq!(get(&m, "k", Some(&one)).unwrap(), "one");
    assert_eq!(get(&m, "k", Some("null")).unwrap(), "null version");
    put(&mut m, "k", "two", Condition::Absent).expect("a delete marker is absence");
    let page = m
        .list_versions(&ListVersionsRequest { bucket: "bucket".into(), ..ListVersionsRequest::default() })
        .unwrap();
    let shape: Vec<_> = page.versions.iter().map(|v| (v.is_latest, v.is_delete_marker)).collect();
    assert_eq!(shape, [(true, false), (false, true), (false, false), (false, false)]);
    // Taking the marker away brings nothing back that is not the newest.
    let marker = deleted.version_id.unwrap();
    let request = DeleteRequest {
        bucket: "bucket".into(),
        key: "k".into(),
        version_id: Some(marker),
        ..DeleteRequest::default()
    };
    assert!(m.delete(&request, NOW).unwrap().delete_marker);
    assert_eq!(get(&m, "k", None).unwrap(), "two");
}

#[test]
fn parts_become_an_object_under_the_rules() {
    let mut m = model();
    let upload = m.create_upload("bucket", "k", Attributes::default(), std::time::UNIX_EPOCH).unwrap();
    let small = m.upload_part(&upload, 1, Bytes::from(vec![1; 100]), None).unwrap();
    let last = m.upload_part(&upload, 3, Bytes::from(vec![3; 10]), None).unwrap();
    let refused = m.complete_upload(&upload, &[small, last.clone()], &Condition::Any, NOW).unwrap_err();
    assert_eq!(refused.code(), Some("EntityTooSmall"));
    let large = m.upload_part(&upload, 1, Bytes::from(vec![1; 5 << 20]), None).unwrap();
    let order = m.complete_upload(&upload, &[last.clone(), large.clone()], &Condition::Any, NOW).unwrap_err();
    assert_eq!(order.code(), Some("InvalidPartOrder"));
    let written = m.complete_upload(&upload, &[large, last], &Condition::Absent, NOW).unwrap();
    assert!(written.etag.as_str().ends_with("-2"));
    assert_eq!(get(&m, "k", None).unwrap().len(), (5 << 20) + 10);
    assert_eq!(m.list_parts(&upload).unwrap_err().code(), Some("NoSuchUpload"));
}

#[test]
fn a_wrong_checksum_is_refused_and_a_right_one_kept() {
    let mut m = model();
    let body = Bytes::from_static(b"hello");
    let request = |value: String, algorithm| PutRequest {
        bucket: "bucket".into(),
        key: "k".into(),
        body: body.clone(),
        checksum: Some(Checksum { algorithm, value }),
        ..PutRequest::default()
    };
    for algorithm in [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Sha256] {
        let right = algorithm.of(&body);
        m.put(request(right.clone(), algorithm), NOW).unwrap();
        let kept = m.head("bucket", "k", None).unwrap().checksums;
        assert_eq!(kept, [Checksum { algorithm, value: right }]);
        let wrong = algorithm.of(b"other");
        assert_eq!(m.put(request(wrong, algorithm), NOW).unwrap_err().code(), Some("BadDigest"));
    }
}

proptest! {
    #[test]
    fn pages_of_any_size_are_the_whole_listing(
        keys in proptest::collection::btree_set("[!./0a-]{1,4}", 0..25),
        prefix in prop_oneof![Just(""), Just("a"), Just("a/"), Just("/")],
        delimited in any::<bool>(),
        max in 1u16..6,
        start_after in proptest::option::of("[!./0a-]{1,3}"),
    ) {
        let mut m = model();
        for key in &keys {
            put(&mut m, key, "", Condition::Any).unwrap();
        }
        let delimiter = delimited.then(|| "/".to_owned());
        // The naive way: every key in order, grouped as it comes.
        let mut expected_keys = Vec::new();
        let mut expected_prefixes = BTreeSet::new();
        for key in keys.iter().filter(|k| k.starts_with(prefix)) {
            if start_after.as_ref().is_some_and(|after| key <= after) {
                continue;
            }
            match key[prefix.len()..].find('/').filter(|_| delimited) {
                Some(at) => {
                    expected_prefixes.insert(key[..=prefix.len() + at].to_owned());
                }
                None => expected_keys.push(key.clone()),
            }
        }
        let mut request = ListRequest {
            bucket: "bucket".into(),
            prefix: prefix.into(),
            delimiter,
            start_after,
            max_keys: Some(max),
            continuation: None,
        };
        let (mut found_keys, mut found_prefixes) = (Vec::new(), Vec::new());
        loop {
            let page = m.list(&request).unwrap();
            prop_assert!(page.objects.len() + page.common_prefixes.len() <= usize::from(max));
            found_keys.extend(page.objects.into_iter().map(|o| o.key));
            found_prefixes.extend(page.common_prefixes);
            match page.next {
                Some(next) => request.continuation = Some(next),
                None => break,
            }
        }
        prop_assert_eq!(found_keys, expected_keys);
        prop_assert_eq!(found_prefixes, expected_prefixes.into_iter().collect::<Vec<_>>());
    }
}
