//! Carries out a plan: reads the bytes, sends them, commits them under a condition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::extents::{Segment, What};
use super::journal::{BaseObject, FileId, Journal, Place, Record};
use super::parts::{Line, Parts};
use super::plan::{Layout, PartPlan, Plan, Sizes, plan, plan_without_copies};
use super::source::{Base, Origin, Source};
use super::staging::Staging;
use crate::base::{Budget, ByteRange, ETag, Gate, Pool, Priority, Turn};
use crate::error::{Error, Kind, Result};
use crate::s3::{
    Again, Attributes, Checksum, ChecksumAlgorithm, Condition, CopyRequest, DeleteKey, DeleteRequest,
    ObjectInfo, Part, PartSource, PutRequest, Store, Upload, Written, checksum_from, content_etag, limits,
    multipart_etag, whole_checksum,
};

/// Parts of one file under way at once: as many as leave while it is written.
const PARTS_IN_FLIGHT: usize = 16;
/// Single deletes, and batches of up to 1,000, under way at once.
const DELETES_IN_FLIGHT: usize = 64;
const BATCHES_IN_FLIGHT: usize = 4;
/// How often bytes that did not arrive as they were written are sent.
const SENDS_MAX: u32 = 3;
/// Parts of one server-side copy under way at once.
const COPY_PARTS_IN_FLIGHT: usize = 8;

/// How an object is copied on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySizes {
    /// The most that one CopyObject copies; what is larger is copied in parts.
    pub whole_max: u64,
    /// Of such a part; larger ones where there would be more than 10,000 of them.
    pub part: u64,
}

impl Default for CopySizes {
    fn default() -> Self {
        Self { whole_max: limits::SINGLE_MAX, part: 512 << 20 }
    }
}

/// Which conditions the server honours; where it does not, a HEAD before the request stands in, which
/// leaves a short window in which another client's change is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    pub put: bool,
    pub complete: bool,
    pub copy: bool,
    pub delete: bool,
    /// Of each key of a DeleteObjects.
    pub delete_many: bool,
}

impl Conditions {
    pub const ALL: Self = Self { put: true, complete: true, copy: true, delete: true, delete_many: true };
    pub const NONE: Self =
        Self { put: false, complete: false, copy: false, delete: false, delete_many: false };
}

/// Which sizes the parts of an upload have, and whether all have to be of one: known of some servers, learned of others
/// when one refuses.
#[derive(Default)]
pub struct PartRule {
    sizes: Sizes,
    equal: AtomicBool,
    /// Keeps what was learned for later mounts.
    keep: Option<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for PartRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartRule").field("equal", &self.is_equal()).finish_non_exhaustive()
    }
}

impl PartRule {
    pub fn new(equal: bool, keep: Option<Box<dyn Fn() + Send + Sync>>) -> Self {
        Self { sizes: Sizes::S3, equal: AtomicBool::new(equal), keep }
    }

    /// The same with other sizes.
    #[must_use]
    pub fn with_sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The parts of a file of at least this length.
    pub fn layout(&self, len: u64) -> Layout {
        self.sizes.layout(len, self.is_equal())
    }

    pub fn is_equal(&self) -> bool {
        self.equal.load(Ordering::Relaxed)
    }

    /// The server took an upload of equal parts after it had refused another.
    fn learned(&self, bucket: &str) {
        if self.equal.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            bucket,
            "the endpoint takes no parts of different sizes; sending equal ones from now on"
        );
        if let Some(keep) = &self.keep {
            keep();
        }
    }
}

/// One commit of one file, or parts of it that leave ahead of one.
pub struct Job {
    pub store: Arc<dyn Store>,
    pub bucket: String,
    pub key: String,
    pub attributes: Attributes,
    pub condition: Condition,
    pub honoured: Conditions,
    pub len: u64,
    /// Of the latest change that it carries.
    pub stamp: u64,
    pub begun_at: SystemTime,
    /// Sources of the bytes, in order, covering `0..len`, or what leaves of it.
    pub segments: Vec<Segment>,
    pub base: Option<Base>,
    /// Length of the base in bytes.
    pub base_size: u64,
    /// Other objects that runs are copied from, by number.
    pub copies: Vec<Origin>,
    pub staging: Option<Arc<Staging>>,
    /// What has left already.
    pub parts: Arc<Parts>,
    /// How large its parts are, and what is known of those that the server takes.
    pub layout: Layout,
    pub rule: Arc<PartRule>,
    pub lanes: Lanes,
}

impl Job {
    /// S3 may do what is asked of it next and nobody hear of it: then this is how it is known to be ours.
    fn about_to_make(&self, etag: ETag, checksum: Option<Checksum>) -> BaseObject {
        let place = Place { bucket: self.bucket.clone(), key: self.key.clone() };
        let object = BaseObject { place, etag, size: self.len, checksum };
        self.parts.saving(self.stamp, object.clone());
        object
    }

    /// Where the bytes of a range of it are.
    pub(super) fn source(&self, range: ByteRange) -> Source {
        let first = self.segments.partition_point(|segment| segment.range.end() <= range.start());
        let runs = self.segments[first..].iter().map_while(|s| Some((s.range.intersect(range)?, s.what)));
        Source {
            runs: runs.collect(),
            store: Arc::clone(&self.store),
            base: self.base.clone(),
            copies: self.copies.clone(),
            staging: self.staging.clone(),
        }
    }

    /// The object whose bytes stay all as they are, where one request gives it other attributes.
    pub fn only_described(&self) -> Option<&Base> {
        let [Segment { what: What::Base, range }] = self.segments[..] else { return None };
        let whole = range.start() == 0 && range.end() == self.base_size && self.len == self.base_size;
        self.base.as_ref().filter(|_| whole && self.len <= limits::SINGLE_MAX)
    }

    /// Whether bytes of it are in parts alone.
    pub fn has_gone(&self) -> bool {
        self.staging.as_ref().is_some_and(|staging| staging.gone_until() > 0)
    }
}

/// The part of the memory that uploads take at most, in quarters. They hold it for as long as the network takes, and names
/// cannot wait for that.
const SHARE: (u64, u64) = (3, 4);

/// What all uploads share with each other and with whoever reads.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// Bounds the bytes held in memory.
    pub budget: Budget,
    /// Bounds the requests under way.
    pub gate: Gate,
    priority: Priority,
    turn: Turn,
}

impl Lanes {
    pub fn new(budget: Budget, gate: Gate) -> Self {
        let budget = budget.share_for(Pool::Uploads, budget.limit_bytes() / SHARE.1 * SHARE.0);
        Self { budget, gate, priority: Priority::Write, turn: Turn::default() }
    }

    /// The same for an upload that nobody waits for, until its turn is promoted.
    #[must_use]
    pub fn behind(&self, turn: &Turn) -> Self {
        Self { priority: Priority::Behind, turn: turn.clone(), ..self.clone() }
    }

    /// Sends one request in its turn.
    async fn send<T>(&self, request: impl Future<Output = T>) -> T {
        let pass = self.gate.enter(&self.turn, self.priority).await;
        let answer = request.await;
        pass.done();
        answer
    }
}

impl Job {
    /// What the object is made under. Where an attempt of ours made one that is not as it should be, that is the one to
    /// replace.
    fn condition(&self) -> Condition {
        match self.parts.wrong() {
            Some(wrong) if self.condition != Condition::Any => Condition::Matches(wrong),
            _ => self.condition.clone(),
        }
    }

    /// S3 made an object of other bytes.
    fn made_wrong(&self, written: &Written) -> Error {
        self.parts.made_wrong(&written.etag);
        not_as_sent().on("save", &self.bucket, &self.key)
    }

    /// Every other object that bytes come from, once.
    pub fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.copies.iter().zip(0u32..).filter_map(|(origin, number)| {
            let is_of_it =
                |segment: &Segment| matches!(segment.what, What::Copied(_, copy) if copy == number);
            self.segments.iter().any(is_of_it).then_some(origin)
        })
    }
}

/// Makes the object, or fails with nothing changed.
///
/// `AlreadyExists` or `Stale`: the condition did not hold, so another client was first. Our own earlier
/// attempt whose answer was lost is recognised by its ETag and is a success. After a failure that may pass, the parts
/// that S3 has stay with the job for the next try.
pub async fn upload(job: &Job) -> Result<Written> {
    if let Some(origin) = whole_copy(job) {
        abandon(&job.parts).await;
        return copy_whole(job, origin).await;
    }
    if let Some(base) = job.only_described() {
        abandon(&job.parts).await;
        match copy_onto_itself(job, base).await {
            // A server that copies nothing onto itself is sent the bytes.
            Err(error) if matches!(error.kind(), Kind::Unsupported | Kind::InvalidArgument) => {}
            answer => return answer,
        }
    }
    let (mut layout, mut copies) = (job.layout, true);
    loop {
        let plan = match copies {
            true => plan(layout, job.len, &job.segments),
            // The bytes go through us, in parts that fit in memory.
            false => plan_without_copies(layout, job.len),
        };
        let equal = plan.is_of_equal_parts();
        match carry_out(job, plan).await {
            // A server without UploadPartCopy.
            Err(error) if error.kind() == Kind::Unsupported && copies => copies = false,
            Err(error) if error.code() == Some("InvalidPart") && !equal => {
                tracing::debug!(key = job.key, error = %error.report(), "trying with equal parts");
                let sizes = job.rule.sizes();
                // What the disk let go of is in parts as they are.
                layout = if job.has_gone() { sizes.equal_from_growing() } else { sizes.equal(job.len) };
            }
            Ok(written) => {
                if layout != job.layout {
                    job.rule.learned(&job.bucket);
                }
                return Ok(written);
            }
            answer => return answer,
        }
    }
}

async fn carry_out(job: &Job, plan: Plan) -> Result<Written> {
    match plan {
        Plan::Put => {
            abandon(&job.parts).await;
            put(job).await
        }
        Plan::Parts(parts) if parts.len() > limits::PARTS_MAX as usize => {
            Err(Error::new(Kind::TooLarge, "the file needs more than 10,000 parts"))
        }
        Plan::Parts(parts) => multipart(job, parts).await,
    }
}

/// Sends a part, by its number, of a file that is still being written.
pub async fn send_ahead(job: &Job, (number, range): (u16, ByteRange)) -> Result<()> {
    let upload = begin(job).await?;
    send_part(job, &upload, PartPlan { range, copy: false }, number).await.map(drop)
}

/// Lets go of the parts of an upload that will not be completed.
pub async fn abandon(parts: &Parts) {
    let Some((store, upload)) = parts.take() else { return };
    // Best effort: what stays behind costs storage, not correctness.
    match store.abort_upload(&upload).await {
        Err(error) if !error.is_not_found() => {
            tracing::debug!(error = %error.report(), "an unfinished upload was left behind");
        }
        _ => parts.ended(&upload),
    }
}

/// The object that all of the file is a copy of, where one request does it: a server that heeds no condition could
/// copy another version, and a copy of an object uploaded in parts has an ETag that nobody knows beforehand, so that
/// a lost answer could not be told from a lost race. Parts can do both.
fn whole_copy(job: &Job) -> Option<&Origin> {
    let [Segment { what: What::Copied(_, copy), .. }] = job.segments[..] else { return None };
    let origin = job.copies.get(copy as usize)?;
    let is_whole = origin.size == job.len && origin.shift == 0 && job.len <= limits::SINGLE_MAX;
    (is_whole && job.honoured.copy && !origin.object.etag.as_str().contains('-')).then_some(origin)
}

async fn copy_whole(job: &Job, origin: &Origin) -> Result<Written> {
    let request = CopyRequest {
        source_bucket: origin.object.bucket.clone(),
        source_key: origin.object.key.clone(),
        source_if_match: Some(origin.object.etag.clone()),
        bucket: job.bucket.clone(),
        key: job.key.clone(),
        size: job.len,
        condition: job.condition(),
        attributes: Some(job.attributes.clone()),
        ..CopyRequest::default()
    };
    let made = job.about_to_make(origin.object.etag.clone(), None);
    match job.lanes.send(job.store.copy(request)).await {
        Err(error) if may_be_ours(&error) => ours(job, &made, error).await,
        answer => answer,
    }
}

/// The same bytes with other attributes.
async fn copy_onto_itself(job: &Job, base: &Base) -> Result<Written> {
    let request = CopyRequest {
        source_bucket: base.bucket.clone(),
        source_key: base.key.clone(),
        source_if_match: Some(base.etag.clone()),
        bucket: job.bucket.clone(),
        key: job.key.clone(),
        size: job.len,
        // It names the version as its source already, where the server does not look at conditions of the target.
        condition: if job.honoured.copy { job.condition() } else { Condition::Any },
        attributes: Some(job.attributes.clone()),
        ..CopyRequest::default()
    };
    match job.lanes.send(job.store.copy(request)).await {
        // An object that was uploaded in parts has another ETag after its copy, so an attempt whose answer was lost
        // looks like another client's change: but it has the attributes.
        Err(error) if may_be_ours(&error) => match job.store.head(&job.bucket, &job.key, None).await {
            Ok(info) if info.size == job.len && info.attributes.metadata == job.attributes.metadata => {
                Ok(Written { etag: info.etag, version_id: info.version_id, checksum: None })
            }
            _ => Err(error),
        },
        answer => answer,
    }
}

async fn put(job: &Job) -> Result<Written> {
    for _ in 1..SENDS_MAX {
        match put_once(job).await {
            Err(error) if error.kind() == Kind::Corrupt => again(job, &error),
            answer => return answer,
        }
    }
    put_once(job).await
}

async fn put_once(job: &Job) -> Result<Written> {
    let (body, crc) = match ByteRange::new(0, job.len) {
        Some(whole) => job.source(whole).read(whole, &job.lanes.budget).await?,
        None => (Bytes::new(), 0),
    };
    let checksum = checksum_from(crc);
    let condition = stand_in(job, job.honoured.put).await?;
    let etag = content_etag(&body);
    let made = job.about_to_make(etag.clone(), Some(checksum.clone()));
    let request = PutRequest {
        bucket: job.bucket.clone(),
        key: job.key.clone(),
        body,
        attributes: job.attributes.clone(),
        condition,
        checksum: Some(checksum.clone()),
    };
    let written = match job.lanes.send(job.store.put(request)).await {
        Err(error) if may_be_ours(&error) => ours(job, &made, error).await,
        answer => answer,
    }?;
    let right = written.checksum.as_ref().is_none_or(|theirs| match theirs.algorithm {
        ChecksumAlgorithm::Crc64Nvme => *theirs == checksum,
        // Where the server's ETags are known to be MD5s.
        ChecksumAlgorithm::Md5 => written.etag == etag,
        _ => true,
    });
    if right { Ok(written) } else { Err(job.made_wrong(&written)) }
}

/// S3 has, or would have made, something else than what was sent.
fn again(job: &Job, error: &Error) {
    tracing::warn!(key = job.key, error = %error.report(), "bytes did not arrive as they were written; sending them again");
}

async fn multipart(job: &Job, parts: Vec<PartPlan>) -> Result<Written> {
    for _ in 1..SENDS_MAX {
        match multipart_once(job, &parts).await {
            Err(error) if job.parts.wrong().is_some() && error.kind() == Kind::Corrupt && !job.has_gone() => {
                again(job, &error);
            }
            // By a rule of the bucket, or by another mount that had taken up what this one owed.
            Err(error) if error.code() == Some("NoSuchUpload") && !job.has_gone() => {
                tracing::info!(key = job.key, "its upload was ended by somebody else; beginning a new one");
            }
            answer => return answer,
        }
    }
    multipart_once(job, &parts).await
}

async fn multipart_once(job: &Job, parts: &[PartPlan]) -> Result<Written> {
    let upload = begin(job).await?;
    let result = send_parts_and_complete(job, &upload, parts).await;
    match &result {
        Ok(_) => job.parts.completed(),
        Err(_) if job.has_gone() => {}
        // Nobody but a program here that goes on writing into what is being sent.
        Err(error) if error.kind() == Kind::Conflict && error.status().is_none() => {}
        // S3 takes no further part of an upload whose completion raced with another request. What it holds that is not
        // what was sent is not sent for: all of it goes again.
        Err(error)
            if error.kind().is_transient() && !matches!(error.kind(), Kind::Conflict | Kind::Corrupt) => {}
        Err(_) => abandon(&job.parts).await,
    }
    result
}

/// The upload of the job's object: the one under way, or a new one.
async fn begin(job: &Job) -> Result<Upload> {
    let _turn = job.parts.beginning().await;
    if let Some(upload) = job.parts.upload(&job.bucket, &job.key, &job.attributes) {
        return Ok(upload);
    }
    abandon(&job.parts).await;
    let attributes = job.attributes.clone();
    let upload = match job.parts.line() {
        Some(line) => {
            let place = Place { bucket: job.bucket.clone(), key: job.key.clone() };
            line.begin_upload(&job.store, place, attributes.clone(), job.begun_at).await?
        }
        None => job.store.create_upload(&job.bucket, &job.key, attributes.clone()).await?,
    };
    job.parts.begin(Arc::clone(&job.store), upload.clone(), attributes);
    Ok(upload)
}

async fn send_parts_and_complete(job: &Job, upload: &Upload, parts: &[PartPlan]) -> Result<Written> {
    let numbered = parts.iter().copied().zip(1u16..);
    let mut sent: Vec<Part> = futures::stream::iter(numbered)
        .map(|(part, number)| send_part(job, upload, part, number))
        .buffer_unordered(PARTS_IN_FLIGHT)
        .try_collect()
        .await?;
    sent.sort_by_key(|part| part.number);
    if !job.honoured.copy {
        // Where the server may have copied parts of another version, what is there now tells.
        for origin in job.origins() {
            origin.require_there().await?;
        }
    }
    let condition = stand_in(job, job.honoured.complete).await?;
    let whole = whole_checksum(&sent);
    let made = job.about_to_make(multipart_etag(&sent), whole.clone());
    let written = match job.store.complete_upload(upload, sent, condition).await {
        Err(error) if may_be_ours(&error) => ours(job, &made, error).await,
        answer => answer,
    }?;
    match (&whole, &written.checksum) {
        (Some(ours), Some(theirs)) if ours.algorithm == theirs.algorithm && ours != theirs => {
            Err(job.made_wrong(&written))
        }
        _ => Ok(written),
    }
}

async fn send_part(job: &Job, upload: &Upload, part: PartPlan, number: u16) -> Result<Part> {
    if part.copy
        && let Some((object, range)) = origin_of(job, part.range)
    {
        let source = PartSource {
            bucket: object.bucket.clone(),
            key: object.key.clone(),
            range,
            if_match: Some(object.etag.clone()),
        };
        return job.lanes.send(job.store.upload_part_copy(upload, number, source)).await;
    }
    let newest = newest_stamp(&job.segments, part.range);
    if let Some(newest) = newest
        && let Some(there) = job.parts.find(number, part.range, newest)
    {
        return Ok(there);
    }
    let mut sends = 1;
    let sent = loop {
        match send_once(job, upload, part.range, number).await {
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Conflict) && sends < SENDS_MAX => {
                again(job, &error);
            }
            answer => break answer?,
        }
        sends += 1;
    };
    if let Some(newest) = newest {
        job.parts.sent(part.range, newest, sent.clone());
    }
    Ok(sent)
}

async fn send_once(job: &Job, upload: &Upload, range: ByteRange, number: u16) -> Result<Part> {
    let (payload, crc) = job.source(range).payload(range, &job.lanes.budget).await?;
    let checksum = checksum_from(crc);
    let sending = job.store.upload_part(upload, number, payload, Some(checksum.clone()));
    let sent = job.lanes.send(sending).await?;
    match &sent.checksum {
        Some(theirs) if theirs.algorithm == checksum.algorithm && *theirs != checksum => {
            Err(not_as_sent().on("UploadPart", &job.bucket, &job.key))
        }
        _ => Ok(sent),
    }
}

/// The newest stamp in a range; `None` where bytes of the base are in it, which have none.
fn newest_stamp(segments: &[Segment], range: ByteRange) -> Option<u64> {
    let first = segments.partition_point(|segment| segment.range.end() <= range.start());
    let within = segments[first..].iter().take_while(|segment| segment.range.start() < range.end());
    within.map(|segment| segment.what.stamp()).try_fold(0, |newest, stamp| Some(newest.max(stamp?)))
}

/// The one object that a part to be copied is of, and its range there.
fn origin_of(job: &Job, part: ByteRange) -> Option<(&Base, ByteRange)> {
    match job.segments.iter().find(|segment| segment.range.contains(part.start()))?.what {
        What::Base => Some((job.base.as_ref()?, part)),
        What::Copied(_, copy) => {
            let origin = job.copies.get(copy as usize)?;
            Some((&origin.object, origin.range(part)?))
        }
        What::Staged(_) | What::Zero(_) => None,
    }
}

/// An answer that says something else than what was sent.
fn not_as_sent() -> Error {
    Error::new(Kind::Corrupt, "the checksum that S3 answers is not that of the bytes that were written")
}

/// The condition to send; where the server ignores it, it is checked here first.
async fn stand_in(job: &Job, honoured: bool) -> Result<Condition> {
    let condition = job.condition();
    if honoured || condition == Condition::Any {
        return Ok(condition);
    }
    let current = match job.store.head(&job.bucket, &job.key, None).await {
        Ok(info) => Some(info.etag),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    match (&condition, current) {
        (Condition::Absent, Some(_)) => {
            Err(Error::new(Kind::AlreadyExists, "another client made the object"))
        }
        (Condition::Matches(etag), current) if current.as_ref() != Some(etag) => {
            Err(Error::new(Kind::Stale, "another client changed the object"))
        }
        _ => Ok(Condition::Any),
    }
}

/// Failures after which the object may be there all the same: the answer to an earlier attempt was lost, so
/// its repetition finds the condition broken or the upload gone.
fn may_be_ours(error: &Error) -> bool {
    error.may_have_happened() || matches!(error.kind(), Kind::AlreadyExists | Kind::Stale | Kind::NotFound)
}

/// Tells an answer that was lost from a race that was lost: what is there now is what was about to be made.
async fn ours(job: &Job, made: &BaseObject, error: Error) -> Result<Written> {
    match job.store.head(&job.bucket, &job.key, None).await {
        // Its ETag or checksum is that of what was sent.
        Ok(info) if made.is(&info) => {
            Ok(Written { etag: info.etag, version_id: info.version_id, checksum: None })
        }
        _ => Err(error),
    }
}

/// Where a copy goes, and what is said of it.
pub struct Target<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub condition: Condition,
    /// What is beside the copy's bytes, tags included; without it, what is beside the original's.
    pub attributes: Option<Attributes>,
    /// Is said over either.
    pub again: Again,
    pub sizes: CopySizes,
    /// Where a copy in parts is written down, and the time of now.
    pub noted: Noted<'a>,
}

pub type Noted<'a> = Option<(&'a Arc<Journal>, SystemTime)>;

/// Copies an object of `size` bytes on the server, however large, and keeps its attributes, but for what has to be said
/// again.
///
/// The copy is of `etag` or fails `Stale`; the target takes it under its condition. What is copied to is asked for the
/// copy, because its region may be another; what is copied from is asked about the object.
/// A copy in parts is written down, so that the next mount aborts it where this one is killed.
pub async fn copy_object(
    from: &Arc<dyn Store>,
    store: &Arc<dyn Store>,
    source: &Base,
    size: u64,
    target: Target<'_>,
) -> Result<Written> {
    if size <= target.sizes.whole_max {
        let request = CopyRequest {
            source_bucket: source.bucket.clone(),
            source_key: source.key.clone(),
            source_if_match: Some(source.etag.clone()),
            size,
            bucket: target.bucket.to_owned(),
            key: target.key.to_owned(),
            condition: target.condition.clone(),
            attributes: target.attributes.clone().map(|attributes| target.again.clone().lay_over(attributes)),
            again: target.again.clone(),
            ..CopyRequest::default()
        };
        return match store.copy(request).await {
            // Some servers keep a directory's marker as a directory, and cannot copy it (SeaweedFS 4.48).
            Err(error) if error.is_not_found() && size == 0 => {
                make_empty_again(from, store, source, target).await
            }
            answer => answer,
        };
    }
    let Target { bucket, key, condition, attributes, again, sizes, noted } = target;
    let attributes = match attributes {
        Some(attributes) => attributes,
        None => head_with_tags(&**from, &source.bucket, &source.key).await?.attributes,
    };
    let attributes = again.lay_over(attributes);
    // Of no file: whoever finds it unended aborts it.
    let line = noted
        .map(|(journal, at)| (Line { journal: Arc::clone(journal), file: FileId(journal.fresh_id()) }, at));
    let upload = match &line {
        Some((line, at)) => {
            let place = Place { bucket: bucket.to_owned(), key: key.to_owned() };
            line.begin_upload(store, place, attributes, *at).await?
        }
        None => store.create_upload(bucket, key, attributes).await?,
    };
    let result = async {
        let mut parts: Vec<Part> = futures::stream::iter(copy_parts(size, sizes.part))
            .map(|(range, number)| {
                let source = PartSource {
                    bucket: source.bucket.clone(),
                    key: source.key.clone(),
                    range,
                    if_match: Some(source.etag.clone()),
                };
                store.upload_part_copy(&upload, number, source)
            })
            .buffer_unordered(COPY_PARTS_IN_FLIGHT)
            .try_collect()
            .await?;
        parts.sort_by_key(|part| part.number);
        store.complete_upload(&upload, parts, condition).await
    }
    .await;
    let ended = result.is_ok() || matches!(store.abort_upload(&upload).await, Ok(()));
    if let (true, Some((line, _))) = (ended, line) {
        line.note(Record::UploadEnded { file: line.file, upload_id: upload.upload_id });
    }
    result
}

/// The parts of a copy that is too large for one request: larger ones where it would need more than 10,000 of them.
fn copy_parts(size: u64, part: u64) -> impl Iterator<Item = (ByteRange, u16)> {
    let step = part.max(size.div_ceil(u64::from(limits::PARTS_MAX)));
    (0..size.div_ceil(step)).zip(1u16..).filter_map(move |(i, number)| {
        let start = i * step;
        Some((ByteRange::new(start, (start + step).min(size))?, number))
    })
}

/// An empty object's copy is a new empty object with the same attributes.
async fn make_empty_again(
    from: &Arc<dyn Store>,
    store: &Arc<dyn Store>,
    source: &Base,
    target: Target<'_>,
) -> Result<Written> {
    let info = head_with_tags(&**from, &source.bucket, &source.key).await?;
    if info.size != 0 || info.etag != source.etag {
        return Err(Error::new(Kind::Stale, "another client changed the object"));
    }
    let request = PutRequest {
        bucket: target.bucket.to_owned(),
        key: target.key.to_owned(),
        body: Bytes::new(),
        attributes: target.again.lay_over(target.attributes.unwrap_or(info.attributes)),
        condition: target.condition,
        checksum: None,
    };
    store.put(request).await
}

/// An object with its tags, which have a request of their own. It is sent only where HEAD counts some.
pub async fn head_with_tags(store: &dyn Store, bucket: &str, key: &str) -> Result<ObjectInfo> {
    let mut info = store.head(bucket, key, None).await?;
    if info.tag_count > 0 {
        info.attributes.tags = store.tags(bucket, key).await?;
    }
    Ok(info)
}

/// Deletes keys, each only if it still is the version it names where the server can tell; one answer for each, in order.
/// What is not there is deleted.
///
/// Where the server looks at the versions of a batch, or at none whatever is asked, a request deletes up to 1,000;
/// where it looks at one key's alone, each gets a request, many at once.
pub async fn delete_objects(
    store: &Arc<dyn Store>,
    bucket: &str,
    mut keys: Vec<DeleteKey>,
    honoured: Conditions,
) -> Vec<Result<()>> {
    if !honoured.delete && !honoured.delete_many {
        keys.iter_mut().for_each(|entry| entry.etag = None);
    }
    let conditional = keys.iter().any(|entry| entry.etag.is_some());
    let alone = keys.len() == 1 && (honoured.delete || !conditional);
    if alone || (conditional && !honoured.delete_many) {
        return futures::stream::iter(keys)
            .map(|DeleteKey { key, etag }| async move {
                match delete_object(store, bucket, &key, etag.as_ref(), honoured).await {
                    Err(error) if error.is_not_found() => Ok(()),
                    deleted => deleted,
                }
            })
            .buffered(DELETES_IN_FLIGHT)
            .collect()
            .await;
    }
    let batches: Vec<_> = keys.chunks(limits::KEYS_PER_REQUEST).map(<[_]>::to_vec).collect();
    futures::stream::iter(batches)
        .map(|batch| async move {
            let len = batch.len();
            match store.delete_many(bucket, batch).await {
                Ok(each) => each.into_iter().map(|(_, answer)| answer).collect(),
                Err(error) => repeated(&error, len),
            }
        })
        .buffered(BATCHES_IN_FLIGHT)
        .collect::<Vec<Vec<_>>>()
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// The failure of a request is that of each of its keys.
fn repeated(error: &Error, len: usize) -> Vec<Result<()>> {
    (0..len).map(|_| Err(error.duplicate())).collect()
}

/// Deletes `key`, only if it still is `etag` where the server can tell.
pub async fn delete_object(
    store: &Arc<dyn Store>,
    bucket: &str,
    key: &str,
    etag: Option<&ETag>,
    honoured: Conditions,
) -> Result<()> {
    let condition = match etag {
        Some(etag) if honoured.delete => Condition::Matches(etag.clone()),
        _ => Condition::Any,
    };
    let request =
        DeleteRequest { bucket: bucket.to_owned(), key: key.to_owned(), version_id: None, condition };
    store.delete(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T32: an object of 6 GiB is renamed by copying parts; one of 40 TiB too.
    #[test]
    fn t32_a_copy_of_more_than_five_gibibytes_is_parts_within_the_limits() {
        for size in [(5 << 30) + 1, 6 << 30, 5 << 40, (40 << 40) + 12_345, limits::OBJECT_MAX] {
            let parts: Vec<_> = copy_parts(size, CopySizes::default().part).collect();
            assert!(parts.len() <= usize::from(limits::PARTS_MAX), "{size}: {} parts", parts.len());
            let (mut at, mut before) = (0, 0);
            for (range, number) in &parts {
                assert_eq!((range.start(), *number), (at, before + 1), "{size}");
                assert!(range.len() <= limits::PART_MAX, "{size}: {range}");
                (at, before) = (range.end(), *number);
            }
            assert_eq!(at, size);
            assert!(parts[..parts.len() - 1].iter().all(|(range, _)| range.len() >= limits::PART_MIN));
        }
    }
}
