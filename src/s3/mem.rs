//! S3 in memory: [`Store`] over the pure model, with failures and lies on request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::changes::{Change, Done, Log};
use super::model::Model;
use super::payload::Payload;
use super::store::Store;
use super::types::*;
use crate::base::Clock;
use crate::error::{Error, Kind, Result};
use crate::stats::Stats;

/// Bodies arrive in pieces of this size, as they do from a network.
const CHUNK_BYTES: usize = 256 << 10;

/// An S3 of its own, gone with the value.
pub struct MemStore {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
}

struct State {
    model: Model,
    /// Where changes are kept, for an S3 that outlives its process.
    log: Option<Log>,
    calls: Vec<&'static str>,
    /// Calls to come until one fails, and how.
    failing: Option<(u64, Kind, When)>,
    /// Whether all that follow it fail too.
    keeps_failing: bool,
    ignores_conditions: bool,
    /// The key whose bytes are damaged on their way out.
    damaged: Option<String>,
    /// Bodies to come that are damaged before they arrive, and answers that tell another checksum.
    damaged_arrivals: u64,
    misstated: u64,
    /// Parts but the last have to be of one size.
    equal_parts: bool,
    listing: Listing,
    /// Calls that all fail, by API name, and how.
    refused: BTreeMap<&'static str, (Kind, When)>,
    /// Keys that may not be deleted.
    protected: BTreeSet<String>,
    /// Answers that are let out, by API name; all, where there is none.
    held: BTreeMap<&'static str, Arc<Semaphore>>,
    /// Is shown each moment around a change.
    watcher: Option<Box<dyn FnMut(Moment) + Send>>,
}

/// S3 as it is just before a request that may change it, and just after.
#[derive(Debug)]
pub struct Moment {
    /// API name of the request, and its key if it is of one.
    pub operation: &'static str,
    pub key: String,
    pub when: When,
    /// A copy, which goes on by itself.
    pub s3: MemStore,
}

/// How an S3 lists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listing {
    /// Keys and prefixes in a page, where that is less than S3's 1,000.
    pub page_max: Option<u16>,
    /// In the order of a walk through a tree (`a`, `a/1`, `a-x`), as SeaweedFS does.
    pub in_walk_order: bool,
    /// Whether `StartAfter` leaves out the first that it should show, where a delimiter is given.
    pub start_after_drops: bool,
}

/// At which moment a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing happened.
    Before,
    /// It happened, and the answer was lost.
    After,
}

impl std::fmt::Debug for MemStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemStore")
    }
}

impl MemStore {
    /// An S3 without buckets, in region us-east-1.
    pub fn new(clock: Arc<dyn Clock>, stats: Arc<Stats>) -> Self {
        Self::in_region("us-east-1", clock, stats)
    }

    pub fn in_region(region: &str, clock: Arc<dyn Clock>, stats: Arc<Stats>) -> Self {
        let state = State {
            model: Model::new(region),
            log: None,
            calls: Vec::new(),
            failing: None,
            keeps_failing: false,
            ignores_conditions: false,
            damaged: None,
            damaged_arrivals: 0,
            misstated: 0,
            equal_parts: false,
            listing: Listing::default(),
            refused: BTreeMap::new(),
            protected: BTreeSet::new(),
            held: BTreeMap::new(),
            watcher: None,
        };
        Self { state: Mutex::new(state), clock, stats }
    }

    /// An S3 that keeps what it holds in a directory, and finds it there again.
    ///
    /// A change is in the directory when its call returns: it survives the end of the process, though not of the
    /// machine. A torn end of the log, as a crash leaves one, is dropped. `Local` where another process
    /// uses the directory.
    pub fn open_dir(
        dir: &std::path::Path,
        region: &str,
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
    ) -> Result<Self> {
        let store = Self::in_region(region, clock, stats);
        {
            let mut state = store.lock();
            let log = Log::open(dir, |change, body, at| {
                // It worked when it was written, and the model has no chance in it.
                if let Err(error) = change.apply(&mut state.model, body, at) {
                    tracing::error!(error = %error.report(), "a change of the log could not be repeated");
                }
            })?;
            state.log = Some(log);
        }
        Ok(store)
    }

    /// The same with a bucket in it.
    #[must_use]
    pub fn with_bucket(self, name: &str) -> Self {
        let now = self.clock.wall();
        // A name that is not legal shows at the first request.
        let _ = self.lock().model.create_bucket(name, None, now);
        self
    }

    /// Makes the `n`-th call from now fail, counting from 1, whatever it is.
    pub fn fail_nth(&self, n: u64, kind: Kind, when: When) {
        let mut state = self.lock();
        (state.failing, state.keeps_failing) = (Some((n, kind, when)), false);
    }

    /// Makes the `n`-th call from now fail and all after it, as a network that is gone does.
    pub fn fail_from_nth(&self, n: u64, kind: Kind, when: When) {
        let mut state = self.lock();
        (state.failing, state.keeps_failing) = (Some((n, kind, when)), true);
    }

    /// Accepts conditions and does not look at them, as some servers do.
    pub fn ignore_conditions(&self, ignore: bool) {
        self.lock().ignores_conditions = ignore;
    }

    /// Damages the first byte of every answer with this object's bytes; what is stored of it stays right.
    pub fn damage(&self, key: &str) {
        self.lock().damaged = Some(key.to_owned());
    }

    /// Damages the next `n` bodies on their way in: held against a checksum, they are refused.
    pub fn damage_arrivals(&self, n: u64) {
        self.lock().damaged_arrivals = n;
    }

    /// Tells another checksum than it stores in the next `n` answers to a Put, UploadPart or Complete: what a client sees of
    /// a server that stores other bytes than it was sent.
    pub fn misstate_checksums(&self, n: u64) {
        self.lock().misstated = n;
    }

    /// Refuses to complete an upload of parts of different sizes, as Cloudflare R2 does.
    pub fn want_equal_parts(&self) {
        self.lock().equal_parts = true;
    }

    /// Lists in some way of its own from now on.
    pub fn list_like(&self, listing: Listing) {
        self.lock().listing = listing;
    }

    /// Makes every call of an API name fail from now on.
    pub fn refuse(&self, operation: &'static str, kind: Kind, when: When) {
        self.lock().refused.insert(operation, (kind, when));
    }

    /// Refuses every delete of a key from now on, as a policy does.
    pub fn protect(&self, key: &str) {
        self.lock().protected.insert(key.to_owned());
    }

    /// Nothing fails from now on.
    pub fn refuse_nothing(&self) {
        let mut state = self.lock();
        state.refused.clear();
        state.protected.clear();
        state.failing = None;
    }

    /// Holds every answer to LIST back; see [`MemStore::hold`].
    pub fn hold_listings(&self) -> Arc<Semaphore> {
        self.hold("ListObjectsV2")
    }

    /// Holds every answer to a LIST, a Get, or to a request that changes an object, back, as a slow network does, until the
    /// semaphore has a permit for it. What an answer says was true when it was asked for, and what it did is done.
    pub fn hold(&self, operation: &'static str) -> Arc<Semaphore> {
        let held = Arc::new(Semaphore::new(0));
        self.lock().held.insert(operation, Arc::clone(&held));
        held
    }

    /// Shows S3 around each change from now on, while nothing else can happen to it: what is looked at meanwhile is what the
    /// end of the client's process would leave. The watcher must not ask this S3 for anything.
    pub fn watch(&self, watcher: impl FnMut(Moment) + Send + 'static) {
        self.lock().watcher = Some(Box::new(watcher));
    }

    /// Another S3 that has what this one has now.
    #[must_use]
    pub fn copied(&self) -> Self {
        self.copy_of(&self.lock().model)
    }

    fn copy_of(&self, model: &Model) -> Self {
        let copy = Self::new(Arc::clone(&self.clock), Arc::default());
        copy.lock().model = model.clone();
        copy
    }

    /// Shows the watcher this moment of a request, if it is one that changes something.
    fn show(&self, state: &mut State, operation: &'static str, key: &str, when: When) {
        let only_asks = ["List", "Head", "Get"].iter().any(|asks| operation.starts_with(asks));
        if !only_asks && let Some(watcher) = &mut state.watcher {
            watcher(Moment { operation, key: key.to_owned(), when, s3: self.copy_of(&state.model) });
        }
    }

    async fn let_out(&self, operation: &'static str) {
        let held = self.lock().held.get(operation).cloned();
        if let Some(held) = held
            && let Ok(permit) = held.acquire().await
        {
            permit.forget();
        }
    }

    /// The canned ACL that an object was made with.
    pub fn acl(&self, bucket: &str, key: &str) -> Result<Option<String>> {
        self.lock().model.acl(bucket, key)
    }

    /// Brings an archived object back for reading.
    pub fn restore(&self, bucket: &str, key: &str) -> Result<()> {
        self.lock().model.restore(bucket, key)
    }

    /// API names of the calls so far, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.lock().calls.clone()
    }

    pub fn clear_calls(&self) {
        self.lock().calls.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call: counted, failed if it is its turn, and done.
    fn call<T>(
        &self,
        operation: &'static str,
        bucket: &str,
        key: &str,
        work: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        let begun = self.clock.now();
        let mut state = self.lock();
        state.calls.push(operation);
        let failure = match &mut state.failing {
            Some((left, kind, when)) => {
                *left = left.saturating_sub(1);
                (*left == 0).then_some((*kind, *when))
            }
            None => None,
        };
        if failure.is_some() && !state.keeps_failing {
            state.failing = None;
        }
        self.show(&mut state, operation, key, When::Before);
        let answer = match failure.or_else(|| state.refused.get(operation).copied()) {
            None => work(&mut state),
            Some((kind, when)) => {
                if when == When::After {
                    // What it did stays done; the caller hears nothing of it.
                    let _ = work(&mut state);
                }
                Err(Error::new(kind, "made to fail"))
            }
        };
        self.show(&mut state, operation, key, When::After);
        drop(state);
        let answer = answer.map_err(|error| error.on(operation, bucket, key));
        if answer.as_ref().is_err_and(|error| error.kind() == Kind::Throttled) {
            self.stats.throttled.add(1);
        }
        let outcome = answer.as_ref().map_or_else(|error| error.kind().name(), |_| "ok");
        self.stats.request(operation, outcome, self.clock.now().saturating_duration_since(begun));
        answer
    }
}

impl State {
    /// Changes the model, and the log where there is one.
    fn change(&mut self, change: Change, body: Bytes, now: SystemTime) -> Result<Done> {
        let done = change.clone().apply(&mut self.model, body.clone(), now)?;
        if let Some(log) = &mut self.log {
            log.append(&change, &body, now)?;
        }
        Ok(done)
    }

    fn delete(&mut self, request: DeleteRequest, now: SystemTime) -> Result<Deleted> {
        if self.protected.contains(&request.key) {
            return Err(Error::new(Kind::AccessDenied, "this key may not be deleted"));
        }
        self.change(Change::Delete(request), Bytes::new(), now)?.deleted()
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let page_max = self.listing.page_max.unwrap_or(u16::MAX);
        let mut request = request.clone();
        request.max_keys = Some(request.max_keys.unwrap_or(1_000).min(page_max));
        if self.listing.in_walk_order {
            return self.list_in_walk_order(&request);
        }
        let begins = request.start_after.is_some() && request.continuation.is_none();
        let mut page = self.model.list(&request)?;
        if begins && request.delimiter.is_some() && self.listing.start_after_drops {
            match (page.objects.first(), page.common_prefixes.first()) {
                (Some(object), Some(prefix)) if object.key < *prefix => drop(page.objects.remove(0)),
                (_, Some(_)) => drop(page.common_prefixes.remove(0)),
                (Some(_), None) => drop(page.objects.remove(0)),
                (None, None) => {}
            }
        }
        Ok(page)
    }

    /// Everything, in the order of a walk, cut by number.
    fn list_in_walk_order(&self, request: &ListRequest) -> Result<ListPage> {
        let mut every = ListRequest { max_keys: None, continuation: None, ..request.clone() };
        let start_after = every.start_after.take();
        let mut items: Vec<(String, Option<ListedObject>)> = Vec::new();
        loop {
            let page = self.model.list(&every)?;
            items.extend(page.objects.into_iter().map(|object| (object.key.clone(), Some(object))));
            items.extend(page.common_prefixes.into_iter().map(|prefix| (prefix, None)));
            every.continuation = page.next;
            if every.continuation.is_none() {
                break;
            }
        }
        let order = |key: &str| key.replace('/', "\0");
        items.sort_by_key(|(key, _)| order(key));
        if let Some(start) = start_after {
            items.retain(|(key, _)| order(key) > order(&start));
        }
        let from = request.continuation.as_ref().map_or(Ok(0), |token| token.parse::<usize>());
        let from = from.map_err(|_| Error::new(Kind::InvalidArgument, "this is no token of ours"))?;
        let to = items.len().min(from + usize::from(request.max_keys.unwrap_or(1_000)));
        let mut page = ListPage { next: (to < items.len()).then(|| to.to_string()), ..ListPage::default() };
        for (key, object) in items.drain(from.min(to)..to) {
            match object {
                Some(object) => page.objects.push(object),
                None => page.common_prefixes.push(key),
            }
        }
        Ok(page)
    }

    fn arrived(&mut self, body: Bytes) -> Bytes {
        if body.is_empty() || self.damaged_arrivals == 0 {
            // A server has memory of its own: the sender's may be counted in a budget.
            return Bytes::copy_from_slice(&body);
        }
        self.damaged_arrivals -= 1;
        let mut damaged = body.to_vec();
        damaged[0] ^= 1;
        damaged.into()
    }

    /// What is answered of a stored checksum.
    fn told(&mut self, stored: Option<Checksum>) -> Option<Checksum> {
        if stored.is_none() || self.misstated == 0 {
            return stored;
        }
        self.misstated -= 1;
        Some(crate::s3::checksum_of(b"other bytes"))
    }

    fn heed(&self, condition: Condition) -> Condition {
        if self.ignores_conditions { Condition::Any } else { condition }
    }
}

/// Cloudflare R2's rule, in its own words.
pub(crate) fn require_equal(parts: &[Part]) -> Result<()> {
    let whole = parts.len().saturating_sub(1);
    let first = parts.first().map_or(0, |part| part.size);
    let equal = parts[..whole].iter().all(|part| part.size == first);
    if equal && parts.last().is_none_or(|last| last.size <= first) {
        return Ok(());
    }
    let told = "All non-trailing parts must have the same length.";
    Err(Error::s3(Kind::InvalidArgument, "InvalidPart", told).with_answer(Some(400), None, None))
}

#[async_trait]
impl Store for MemStore {
    async fn list_buckets(&self) -> Result<Vec<BucketInfo>> {
        self.call("ListBuckets", "", "", |s| Ok(s.model.list_buckets()))
    }

    async fn head_bucket(&self, bucket: &str) -> Result<BucketInfo> {
        self.call("HeadBucket", bucket, "", |s| s.model.head_bucket(bucket))
    }

    async fn create_bucket(&self, bucket: &str, region: Option<&str>) -> Result<()> {
        let now = self.clock.wall();
        let change = Change::CreateBucket(bucket.to_owned(), region.map(str::to_owned));
        self.call("CreateBucket", bucket, "", |s| s.change(change, Bytes::new(), now).map(drop))
    }

    async fn delete_bucket(&self, bucket: &str) -> Result<()> {
        let change = Change::DeleteBucket(bucket.to_owned());
        let now = self.clock.wall();
        self.call("DeleteBucket", bucket, "", |s| s.change(change, Bytes::new(), now).map(drop))
    }

    async fn versioning(&self, bucket: &str) -> Result<Versioning> {
        self.call("GetBucketVersioning", bucket, "", |s| s.model.versioning(bucket))
    }

    async fn set_versioning(&self, bucket: &str, enabled: bool) -> Result<()> {
        let change = Change::SetVersioning(bucket.to_owned(), enabled);
        let now = self.clock.wall();
        self.call("PutBucketVersioning", bucket, "", |s| s.change(change, Bytes::new(), now).map(drop))
    }

    async fn head(&self, bucket: &str, key: &str, version_id: Option<&str>) -> Result<ObjectInfo> {
        self.call("HeadObject", bucket, key, |s| s.model.head(bucket, key, version_id))
    }

    async fn get(&self, request: GetRequest) -> Result<GetOutput> {
        let (info, offset, bytes) = self.call("GetObject", &request.bucket, &request.key, |s| {
            let (info, offset, mut bytes) = s.model.get(&request)?;
            if s.damaged.as_ref() == Some(&request.key) && !bytes.is_empty() {
                let mut damaged = bytes.to_vec();
                damaged[0] ^= 1;
                bytes = damaged.into();
            }
            Ok((info, offset, bytes))
        })?;
        self.let_out("GetObject").await;
        self.stats.bytes_received.add(bytes.len() as u64);
        let length = bytes.len() as u64;
        let mut left = bytes;
        let chunks = std::iter::from_fn(move || {
            let size = left.len().min(CHUNK_BYTES);
            (size > 0).then(|| Ok(left.split_to(size)))
        });
        Ok(GetOutput { info, offset, length, body: Box::pin(futures::stream::iter(chunks)) })
    }

    async fn put(&self, mut request: PutRequest) -> Result<Written> {
        let now = self.clock.wall();
        let (bucket, key) = (request.bucket.clone(), request.key.clone());
        self.stats.bytes_sent.add(request.body.len() as u64);
        let answer = self.call("PutObject", &bucket, &key, |s| {
            request.condition = s.heed(request.condition);
            let body = s.arrived(std::mem::take(&mut request.body));
            let written = s.change(Change::Put(request), body, now)?.written()?;
            Ok(Written { checksum: s.told(written.checksum), ..written })
        });
        self.let_out("PutObject").await;
        answer
    }

    async fn delete(&self, mut request: DeleteRequest) -> Result<Deleted> {
        let now = self.clock.wall();
        let (bucket, key) = (request.bucket.clone(), request.key.clone());
        let answer = self.call("DeleteObject", &bucket, &key, |s| {
            request.condition = s.heed(request.condition);
            s.delete(request, now)
        });
        self.let_out("DeleteObject").await;
        answer
    }

    async fn delete_many(&self, bucket: &str, keys: Vec<DeleteKey>) -> Result<Vec<(String, Result<()>)>> {
        let now = self.clock.wall();
        let answer = self.call("DeleteObjects", bucket, "", |s| {
            s.model.head_bucket(bucket)?;
            let delete = |entry: DeleteKey| {
                let request = DeleteRequest {
                    bucket: bucket.to_owned(),
                    key: entry.key.clone(),
                    version_id: None,
                    condition: s.heed(entry.condition()),
                };
                let deleted = match s.delete(request, now) {
                    Err(error) if error.is_not_found() => Ok(()),
                    deleted => deleted.map(drop),
                };
                (entry.key, deleted)
            };
            Ok(keys.into_iter().map(delete).collect())
        });
        self.let_out("DeleteObjects").await;
        answer
    }

    async fn copy(&self, mut request: CopyRequest) -> Result<Written> {
        let now = self.clock.wall();
        let (bucket, key) = (request.bucket.clone(), request.key.clone());
        let answer = self.call("CopyObject", &bucket, &key, |s| {
            request.condition = s.heed(request.condition);
            if s.ignores_conditions {
                request.source_if_match = None;
            }
            s.change(Change::Copy(request), Bytes::new(), now)?.written()
        });
        self.let_out("CopyObject").await;
        answer
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let answer = self.call("ListObjectsV2", &request.bucket, &request.prefix, |s| s.list(&request));
        self.let_out("ListObjectsV2").await;
        answer
    }

    async fn list_versions(&self, request: ListVersionsRequest) -> Result<VersionsPage> {
        self.call("ListObjectVersions", &request.bucket, &request.prefix, |s| s.model.list_versions(&request))
    }

    async fn tags(&self, bucket: &str, key: &str) -> Result<BTreeMap<String, String>> {
        self.call("GetObjectTagging", bucket, key, |s| s.model.tags(bucket, key))
    }

    async fn set_tags(&self, bucket: &str, key: &str, tags: BTreeMap<String, String>) -> Result<()> {
        let change = Change::SetTags(bucket.to_owned(), key.to_owned(), tags);
        let now = self.clock.wall();
        self.call("PutObjectTagging", bucket, key, |s| s.change(change, Bytes::new(), now).map(drop))
    }

    async fn presigned(&self, _bucket: &str, _key: &str, _valid: Duration) -> Result<String> {
        Err(Error::new(Kind::Unsupported, "what is in memory has no address"))
    }

    async fn create_upload(&self, bucket: &str, key: &str, attributes: Attributes) -> Result<Upload> {
        let change = Change::CreateUpload(bucket.to_owned(), key.to_owned(), attributes);
        let now = self.clock.wall();
        let created = self
            .call("CreateMultipartUpload", bucket, key, |s| s.change(change, Bytes::new(), now)?.upload());
        self.let_out("CreateMultipartUpload").await;
        created
    }

    async fn upload_part(
        &self,
        upload: &Upload,
        number: u16,
        body: Payload,
        checksum: Option<Checksum>,
    ) -> Result<Part> {
        let body = body.bytes().await?;
        self.stats.bytes_sent.add(body.len() as u64);
        let now = self.clock.wall();
        let answer = self.call("UploadPart", &upload.bucket, &upload.key, |s| {
            let body = s.arrived(body);
            let part = s.change(Change::UploadPart(upload.clone(), number, checksum), body, now)?.part()?;
            Ok(Part { checksum: s.told(part.checksum), ..part })
        });
        self.let_out("UploadPart").await;
        answer
    }

    async fn upload_part_copy(&self, upload: &Upload, number: u16, mut source: PartSource) -> Result<Part> {
        let now = self.clock.wall();
        let answer = self.call("UploadPartCopy", &upload.bucket, &upload.key, |s| {
            if s.ignores_conditions {
                source.if_match = None;
            }
            s.change(Change::UploadPartCopy(upload.clone(), number, source), Bytes::new(), now)?.part()
        });
        self.let_out("UploadPartCopy").await;
        answer
    }

    async fn complete_upload(
        &self,
        upload: &Upload,
        parts: Vec<Part>,
        condition: Condition,
    ) -> Result<Written> {
        let now = self.clock.wall();
        let answer = self.call("CompleteMultipartUpload", &upload.bucket, &upload.key, |s| {
            let condition = s.heed(condition);
            if s.equal_parts {
                require_equal(&parts)?;
            }
            let change = Change::CompleteUpload(upload.clone(), parts, condition);
            let written = s.change(change, Bytes::new(), now)?.written()?;
            Ok(Written { checksum: s.told(written.checksum), ..written })
        });
        self.let_out("CompleteMultipartUpload").await;
        answer
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        let change = Change::AbortUpload(upload.clone());
        let now = self.clock.wall();
        self.call("AbortMultipartUpload", &upload.bucket, &upload.key, |s| {
            s.change(change, Bytes::new(), now).map(drop)
        })
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<Part>> {
        self.call("ListParts", &upload.bucket, &upload.key, |s| s.model.list_parts(upload))
    }

    async fn list_uploads(&self, bucket: &str, prefix: &str) -> Result<Vec<Unfinished>> {
        self.call("ListMultipartUploads", bucket, prefix, |s| s.model.list_uploads(bucket, prefix))
    }
}
