//! From sessions to volumes: S3 is asked for every bucket of a mount, and what it can do is found out as it is needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::failure::{Failure, Stage};
use super::findings::{Findings, Note, Place};
use crate::config::{BucketDir, Site, Source};
use crate::error::{Error, Kind, Result};
use crate::fs::{Buckets, Order, Root, Volume};
use crate::s3::unreachable_because;
use crate::s3::{Capabilities, Depth, ListRequest, Session, Store, Verdict, probe};
use crate::stats::Stats;
use crate::write::{Conditions, PartRule};

/// Buckets that are asked for their region at once.
const BUCKETS_AT_ONCE: usize = 16;
/// Asks S3 for every bucket of the mount. Nothing is mounted unless all of them answer in time.
pub(super) async fn connect(
    site: &Site,
    read_only: bool,
    stats: &Arc<Stats>,
    findings: &Arc<Findings>,
) -> Result<Root, Failure> {
    let mut sessions = BTreeMap::new();
    for name in site.source.sessions() {
        let settings = site.sessions.get(name).cloned().unwrap_or_default();
        let session = Session::builder()
            .name(name)
            .settings(settings)
            .stats(Arc::clone(stats))
            .timeout(site.timeout)
            .build()
            .await
            .map_err(Failure::at(Stage::Session))?;
        sessions.insert(name.to_owned(), Arc::new(session));
    }
    let endpoints = Endpoints { sessions, findings: Arc::clone(findings) };
    let late = || match endpoints.sessions.values().find_map(|session| session.trouble()) {
        Some(why) => unreachable_because(&why),
        None => Error::new(Kind::TimedOut, "S3 did not answer in time"),
    };
    tokio::time::timeout(site.timeout, open_root(&site.source, read_only, &endpoints))
        .await
        .unwrap_or_else(|_| Err(late()))
        .map_err(Failure::at(Stage::FirstRequest))
}

/// The sessions of a mount, and what is known of the endpoints they speak to.
struct Endpoints {
    sessions: BTreeMap<String, Arc<Session>>,
    findings: Arc<Findings>,
}

async fn open_root(source: &Source, read_only: bool, endpoints: &Endpoints) -> Result<Root> {
    match source {
        Source::Bucket(dir) => Ok(Root::Volume(open_volume(dir, read_only, endpoints).await?)),
        Source::Named { dirs, .. } => {
            let opened = dirs.iter().map(async |(name, dir)| {
                let volume = open_volume(dir, read_only, endpoints).await?;
                Ok::<_, Error>((name.clone(), volume))
            });
            let volumes = futures::stream::iter(opened).buffered(BUCKETS_AT_ONCE).try_collect().await?;
            Ok(Root::Named(volumes))
        }
        Source::Buckets { session: name, new_objects } => {
            let session = endpoints.session(name)?;
            let store: Arc<dyn Store> = Arc::new(session.client());
            store.list_buckets().await?;
            let _ = endpoints.findings.shows_all.set(Arc::clone(&session));
            let open_with = Arc::clone(&session);
            let findings = Arc::clone(&endpoints.findings);
            let new_objects = new_objects.clone();
            Ok(Root::Buckets(Buckets {
                store,
                session: Some(session),
                read_only,
                open: Box::new(move |bucket, store| {
                    let session = Arc::clone(&open_with);
                    let (bucket_name, prefix) = (bucket.to_owned(), String::new());
                    findings.places.add(Place { bucket: bucket_name, prefix, session, read_only });
                    volume(bucket, "", store, &open_with, read_only, &findings)
                        .new_objects(new_objects.clone())
                }),
            }))
        }
    }
}

async fn open_volume(dir: &BucketDir, read_only: bool, endpoints: &Endpoints) -> Result<Volume> {
    let session = endpoints.session(&dir.session)?;
    let (store, _) = session.store_for(&dir.bucket).await?;
    let first = ListRequest {
        bucket: dir.bucket.clone(),
        prefix: dir.prefix.clone(),
        max_keys: Some(1),
        ..ListRequest::default()
    };
    store.list(first).await?;
    let read_only = read_only || dir.read_only;
    let volume = volume(&dir.bucket, &dir.prefix, store, &session, read_only, &endpoints.findings);
    let volume = volume.new_objects(dir.new_objects.clone());
    volume.prove().await?;
    let (bucket, prefix) = (dir.bucket.clone(), dir.prefix.clone());
    endpoints.findings.places.add(Place { bucket, prefix, session, read_only });
    Ok(volume)
}

fn volume(
    bucket: &str,
    prefix: &str,
    store: Arc<dyn Store>,
    session: &Session,
    read_only: bool,
    findings: &Arc<Findings>,
) -> Volume {
    let endpoint = session.endpoint_url();
    let volume = Volume::new(bucket, prefix, Arc::clone(&store))
        .read_only(read_only)
        .reach(session.reach())
        .origin(endpoint.as_deref().unwrap_or("aws"));
    // Amazon's own S3 keeps what it documents; any other server has to show it.
    let Some(endpoint) = endpoint.filter(|_| !session.is_aws()) else { return volume };
    let volume = volume.unproven().order(order_of(findings.capabilities.kept(&endpoint, bucket)));
    let volume = volume.part_rule(part_rule(&endpoint, bucket, findings));
    let (bucket_name, noting) = (bucket.to_owned(), Arc::clone(findings));
    let (bucket, prefix, findings) = (bucket.to_owned(), prefix.to_owned(), Arc::clone(findings));
    let find = Arc::new(move || {
        let (store, findings) = (Arc::clone(&store), Arc::clone(&findings));
        let (endpoint, bucket, prefix) = (endpoint.clone(), bucket.clone(), prefix.clone());
        async move {
            let asked = async {
                let probed = probe(&*store, &bucket, &prefix, Depth::Writes).await?;
                findings.hear(&bucket, &probed);
                Ok(probed.capabilities)
            };
            findings.capabilities.get_or_probe(&endpoint, &bucket, asked).await
        }
    });
    let find_order = Arc::clone(&find);
    let volume = volume.probe(Box::new(move || {
        let found = find();
        let (bucket, findings) = (bucket_name.clone(), Arc::clone(&noting));
        Box::pin(async move { Ok(conditions_of(&found.await?, &bucket, &findings)) })
    }));
    if read_only {
        // Finding out means writing.
        return volume;
    }
    volume.order_probe(Box::new(move || {
        let found = find_order();
        Box::pin(async move { found.await.ok().map(|found| order_of(Some(found))) })
    }))
}

/// Which sizes of parts an endpoint takes, as far as that is known; what it says later is kept.
fn part_rule(endpoint: &str, bucket: &str, findings: &Arc<Findings>) -> PartRule {
    let equal = findings.capabilities.wants_equal_parts(endpoint, bucket);
    let (endpoint, bucket, findings) = (endpoint.to_owned(), bucket.to_owned(), Arc::clone(findings));
    let keep = move || findings.capabilities.learn_equal_parts(&endpoint, &bucket);
    PartRule::new(equal, Some(Box::new(keep)))
}

/// How far the order of an endpoint's listings is known.
fn order_of(found: Option<Capabilities>) -> Order {
    match found.map(|found| (found.list_order, found.start_after_with_delimiter)) {
        Some((Verdict::Works, Verdict::Works)) => Order::Known,
        Some((Verdict::Ignored, _)) => Order::Other,
        // A listing that begins in the middle may leave names out, so it has to show like any other.
        _ => Order::Unknown,
    }
}

/// What the write path may rely on; where that is not everything, the log says so once and `status` from then on.
fn conditions_of(found: &Capabilities, bucket: &str, findings: &Findings) -> Conditions {
    let [put, complete, copy, delete, delete_many] = found.conditions();
    let conditions = Conditions { put, complete, copy, delete, delete_many };
    // Where only a batch's are not looked at, each delete is a request of its own, and nothing is lost.
    if !(put && complete && copy && delete) {
        let mut table = found.table().to_vec();
        table.retain(|(name, verdict, _)| name.starts_with("conditional") && *verdict != Verdict::Works);
        let missing: Vec<String> =
            table.iter().map(|(name, verdict, _)| format!("{name}: {verdict}")).collect();
        // Who may not ask has found out nothing of the server.
        let says = match table
            .iter()
            .any(|(_, verdict, _)| matches!(verdict, Verdict::Ignored | Verdict::Refused))
        {
            true => "the endpoint does not honour every condition",
            false => "it could not be found out whether the endpoint honours every condition",
        };
        let note = format!(
            "{says} ({}); a request before each write stands in, which leaves a short window in which another client's \
             change can be lost",
            missing.join(", ")
        );
        if findings.note(bucket, Note::Conditions, &note) {
            tracing::warn!(bucket, "{note}");
        }
    }
    conditions
}

impl Endpoints {
    fn session(&self, name: &str) -> Result<Arc<Session>> {
        self.sessions
            .get(name)
            .cloned()
            .ok_or_else(|| Error::new(Kind::Internal, format!("no session was made for {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::time::Duration;

    use crate::base::SystemClock;
    use crate::config::DEFAULT_SESSION;
    use crate::demo::Server;
    use crate::fs::{Fs, OpenFlags, Options};
    use crate::s3::{MemStore, NewObjects, Secret, SessionConfig};
    use crate::tree::ROOT;

    /// A mount of what two sessions of one server see.
    fn site(endpoint: &str, source: Source) -> Site {
        let settings = SessionConfig {
            access_key_id: Some("pailfs".into()),
            secret_access_key: Some(Secret::new("pailfs-demo-secret")),
            region: Some("us-east-1".into()),
            endpoint_url: Some(endpoint.into()),
            ..SessionConfig::default()
        };
        Site {
            source,
            sessions: [DEFAULT_SESSION, "other"].map(|name| (name.to_owned(), settings.clone())).into(),
            timeout: Duration::from_secs(20),
            memory_limit: 64 << 20,
            state_dir: "/nowhere".into(),
        }
    }

    fn bucket(bucket: &str, session: &str) -> BucketDir {
        BucketDir {
            bucket: bucket.into(),
            prefix: String::new(),
            session: session.into(),
            read_only: session == "other",
            new_objects: NewObjects::default(),
        }
    }

    fn findings() -> Arc<Findings> {
        Arc::new(Findings::new(None))
    }

    #[test]
    fn a_server_is_not_blamed_for_what_the_identity_may_not_ask() {
        let note = |verdict| {
            let findings = findings();
            conditions_of(&Capabilities { put_if_match: verdict, ..Capabilities::of_aws() }, "b", &findings);
            findings.notes().remove(0)
        };
        let ignored = note(Verdict::Ignored);
        assert!(
            ignored.starts_with("b: the endpoint does not honour every condition (conditional put"),
            "{ignored}"
        );
        let denied = note(Verdict::Denied);
        assert!(denied.starts_with("b: it could not be found out whether the endpoint honours"), "{denied}");
    }

    async fn server() -> Server {
        let store = Arc::new(MemStore::new(Arc::new(SystemClock), Arc::default()));
        Server::builder().store(store).bucket("one").bucket("two").start().await.unwrap()
    }

    #[tokio::test]
    async fn every_bucket_is_asked_for_with_its_own_session() {
        let server = server().await;
        let dirs = BTreeMap::from([
            ("a".to_owned(), bucket("one", DEFAULT_SESSION)),
            ("b".to_owned(), bucket("two", "other")),
        ]);
        let site = site(&server.endpoint(), Source::Named { name: "data".into(), dirs });
        let stats = Arc::default();
        let Root::Named(volumes) = connect(&site, false, &stats, &findings()).await.unwrap() else {
            panic!("not named")
        };
        let seen: Vec<_> = volumes.iter().map(|(name, v)| (name.as_str(), v.read_only)).collect();
        assert_eq!(seen, [("a", false), ("b", true)]);
        assert_ne!(volumes[0].1.reach, volumes[1].1.reach, "two sessions are two places");
        assert_eq!(stats.requests_of("ListObjectsV2"), 2);
        server.stop().await;
    }

    /// S3 refuses a copy that is sent to the region of its source (301).
    #[tokio::test]
    async fn a_rename_between_regions_is_asked_of_the_region_it_goes_to() {
        let server = server().await;
        let mut dirs = Vec::new();
        let mut counts = Vec::new();
        for bucket in ["one", "two"] {
            let stats: Arc<Stats> = Arc::default();
            let session = Session::builder()
                .credentials("pailfs", "pailfs-demo-secret", None)
                .region("us-east-1")
                .endpoint_url(&server.endpoint())
                .stats(Arc::clone(&stats))
                .build();
            let store: Arc<dyn Store> = Arc::new(session.await.unwrap().client());
            dirs.push((bucket.to_owned(), Volume::new(bucket, "", store).reach("the same session")));
            counts.push(stats);
        }
        let staging = tempfile::tempdir().unwrap();
        let options = Options { staging_dir: staging.path().to_owned(), ..Options::default() };
        let fs = Fs::new(Root::Named(dirs), options, Arc::new(SystemClock), Arc::default()).unwrap();
        let east = fs.lookup(ROOT, OsStr::new("one")).await.unwrap().ino;
        let west = fs.lookup(ROOT, OsStr::new("two")).await.unwrap().ino;
        let flags = OpenFlags { write: true, truncate: false, append: false, exclusive: true, direct: false };
        let dir = fs.mkdir(east, OsStr::new("d"), crate::fs::Maker::of_mode(0o755)).await.unwrap().ino;
        for parent in [east, dir] {
            let (_, opened) =
                fs.create(parent, OsStr::new("file"), flags, crate::fs::Maker::of_mode(0o644)).await.unwrap();
            fs.write(opened.fh, 0, b"bytes").await.unwrap();
            fs.flush(opened.fh).await.unwrap();
        }
        for name in ["file", "d"] {
            let name = OsStr::new(name);
            fs.rename(east, name, west, name, false).await.unwrap();
        }
        let copies = |n: usize| counts[n].requests_of("CopyObject");
        assert_eq!((copies(0), copies(1)), (0, 3), "the file, the directory's marker and the file in it");
        assert!(counts[0].requests_of("DeleteObject") > 0 && counts[1].requests_of("DeleteObject") == 0);
        server.stop().await;
    }

    #[tokio::test]
    async fn a_bucket_that_is_not_there_and_a_server_that_is_not_there_are_told_apart() {
        let server = server().await;
        let absent = site(&server.endpoint(), Source::Bucket(bucket("absent", DEFAULT_SESSION)));
        let failure = connect(&absent, false, &Arc::default(), &findings()).await.err().unwrap();
        assert!(matches!(failure.stage, Stage::FirstRequest));
        assert_eq!(failure.error.kind(), Kind::NoSuchBucket, "{}", failure.error.report());

        let all = site(
            &server.endpoint(),
            Source::Buckets { session: DEFAULT_SESSION.into(), new_objects: NewObjects::default() },
        );
        assert!(matches!(connect(&all, false, &Arc::default(), &findings()).await, Ok(Root::Buckets(_))));
        server.stop().await;
        let failure = connect(&all, false, &Arc::default(), &findings()).await.err().unwrap();
        assert!(
            matches!(failure.error.kind(), Kind::Unreachable | Kind::TimedOut),
            "{}",
            failure.error.report()
        );
    }
}
