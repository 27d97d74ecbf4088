//! A client: how one request is sent, for as long as it takes, and counted.
//!
//! Owns: what is sent again and when, how long is waited, which checksum, region and time a server takes.
//! Does not own: which requests there are (`requests`), who asks (`session`).

mod requests;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use aws_sdk_s3::Client as Sdk;
use aws_sdk_s3::config::Region;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{RequestPayer, ServerSideEncryption};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::runtime::Handle;
use tokio::time::Instant;

pub use self::requests::{content_etag, multipart_etag};
use super::attempts::{ATTEMPT_TIMEOUT, Trouble};
use super::credentials::Refreshing;
use super::customer_key::CustomerKey;
use super::failure::{error_of, may_be_about_the_time, refuses_checksum, region_hint, wants_new_credentials};
use super::patience::{self, Progress, watch};
use super::payload::Payload;
use super::silence::{Silence, is_no_answer};
use super::types::*;
use crate::base::{Clock, ETag, SystemClock, hex};
use crate::error::{Error, Kind, Result};
use crate::stats::Stats;

/// A copy moves bytes inside the server and says nothing meanwhile, so it is given time by its size.
const COPY_BYTES_PER_SECOND: u64 = 32 << 20;
const COPY_EXTRA_MAX: Duration = Duration::from_secs(300);
/// After so many failures to connect in a row the HTTP client is made anew: some never recover by themselves.
const REBUILD_AFTER_FAILURES: u32 = 3;
/// Between a few attempts of the SDK's and the next few.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// How often a few attempts are repeated whatever else the endpoint answers, or never has.
const ROUNDS_ALONE: u32 = 3;
/// How long a silent endpoint is listened to, and the pause before it is asked again.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Checksums that a server takes, best first; found out once per client.
const CRC64: u8 = 0;
const MD5: u8 = 1;
const NONE: u8 = 2;

/// What a session makes for one region and endpoint. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    sdk: RwLock<Sdk>,
    make_http: Box<dyn Fn() -> aws_smithy_runtime_api::client::http::SharedHttpClient + Send + Sync>,
    settings: ClientSettings,
    credentials: Option<Arc<Refreshing>>,
    stats: Arc<Stats>,
    checksums: AtomicU8,
    /// Whether DeleteObjects is sent with Content-MD5 in place of a checksum.
    deletes_with_md5: AtomicBool,
    failures_in_a_row: AtomicU32,
    silence: Silence,
    /// Buckets in which ETags of Puts were found to be MD5s, so that they all are, but for what is encrypted with keys.
    md5_buckets: Mutex<HashSet<String>>,
    /// Whether an endpoint of one's own was asked which region it expects.
    region_asked: AtomicBool,
}

/// What a client needs to know beside the SDK's configuration.
#[derive(Clone, Debug)]
pub(super) struct ClientSettings {
    /// Whether an endpoint was given. It has one region, whatever was guessed.
    pub(super) own_endpoint: bool,
    /// Whether bodies are a part of what is signed, because they could be changed on their way.
    pub(super) signs_bodies: bool,
    pub(super) requester_pays: bool,
    /// Encrypts what is written, and what was.
    pub(super) customer_key: Option<CustomerKey>,
    /// How long a request with all its retries may go without progress: the whole of a small one.
    pub(super) timeout: Duration,
    pub(super) trouble: Arc<Trouble>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(
        config: aws_sdk_s3::Config,
        make_http: Box<dyn Fn() -> aws_smithy_runtime_api::client::http::SharedHttpClient + Send + Sync>,
        settings: ClientSettings,
        credentials: Option<Arc<Refreshing>>,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                sdk: RwLock::new(Sdk::from_conf(config)),
                make_http,
                settings,
                credentials,
                stats,
                checksums: AtomicU8::new(CRC64),
                deletes_with_md5: AtomicBool::new(false),
                failures_in_a_row: AtomicU32::new(0),
                silence: Silence::default(),
                md5_buckets: Mutex::default(),
                region_asked: AtomicBool::new(false),
            }),
        }
    }

    /// The region this client signs for: the one it was made for, or the one its endpoint insisted on.
    pub fn region(&self) -> String {
        self.sdk().config().region().map(|region| region.as_ref().to_owned()).unwrap_or_default()
    }

    /// Replaces the SDK's client by one that differs a little.
    fn change(&self, change: impl FnOnce(aws_sdk_s3::config::Builder) -> aws_sdk_s3::config::Builder) {
        let mut sdk = self.inner.sdk.write().unwrap_or_else(PoisonError::into_inner);
        *sdk = Sdk::from_conf(change(sdk.config().to_builder()).build());
    }

    /// Whether `error` is an own endpoint's complaint about the region, which is heeded from now on.
    async fn learns_region(&self, error: &Error, bucket: &str) -> bool {
        if !self.inner.settings.own_endpoint || error.status() != Some(400) {
            return false;
        }
        let region = match (region_hint(error), error.code()) {
            (Some(region), _) => region,
            // An answer to HEAD has no words; to a GET it has.
            (None, None) if !bucket.is_empty() && !self.inner.region_asked.swap(true, Ordering::Relaxed) => {
                let begun = SystemClock.now();
                let answer = self.sdk().list_objects_v2().bucket(bucket).max_keys(1).send().await;
                let answer = answer.map_err(|error| error_of(error, &Condition::Any));
                self.count("ListObjectsV2", answer.as_ref().err(), begun.elapsed());
                match answer.err().and_then(|error| region_hint(&error)) {
                    Some(region) => region,
                    None => return false,
                }
            }
            _ => return false,
        };
        if region != self.region() {
            tracing::info!(region, "the endpoint names its region; signing for that one from now on");
            self.change(|config| config.region(Region::new(region)));
        }
        true
    }

    fn sdk(&self) -> Sdk {
        self.inner.sdk.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn payer(&self) -> Option<RequestPayer> {
        self.inner.settings.requester_pays.then_some(RequestPayer::Requester)
    }

    /// Whether the SHA-256 of a body is to be a part of the signature. It takes half of what an upload costs, and what
    /// nobody can change on its way is held to the checksum that is signed.
    fn signs_body(&self, checksum: &Option<Checksum>) -> bool {
        self.inner.settings.signs_bodies || checksum.is_none()
    }

    fn customer_key(&self) -> Option<&CustomerKey> {
        self.inner.settings.customer_key.as_ref()
    }

    /// Asks for an object with the session's key, and without where it turns out to be encrypted with none.
    async fn with_key<'a, T, F>(&'a self, ask: impl Fn(Option<&'a CustomerKey>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let key = self.customer_key();
        match ask(key).await {
            Err(error) if key.is_some() && takes_no_key(&error) => match ask(None).await {
                // It was not about the key.
                Err(again) if again.status() == Some(400) => Err(error),
                answer => answer,
            },
            answer => answer,
        }
    }

    /// For a request whose body takes its time: an attempt goes on for as long as the network takes bytes.
    fn no_deadline() -> aws_sdk_s3::config::Builder {
        let timeouts = TimeoutConfig::builder().disable_operation_attempt_timeout().build();
        aws_sdk_s3::Config::builder().timeout_config(timeouts)
    }

    /// A deadline for each attempt at a request by which the server copies so many bytes. A second attempt beside a first that is
    /// still at work would help nobody; one that copies little is not at work for long, and is asked again like any other.
    fn copy_deadline(&self, bytes: u64) -> aws_sdk_s3::config::Builder {
        let extra = Duration::from_secs(bytes / COPY_BYTES_PER_SECOND).min(COPY_EXTRA_MAX);
        patience::give(extra);
        let whole = self.inner.settings.timeout + extra;
        let attempt = if bytes < COPY_BYTES_PER_SECOND { ATTEMPT_TIMEOUT.min(whole) } else { whole };
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(attempt).build();
        aws_sdk_s3::Config::builder().timeout_config(timeouts)
    }

    /// Sends a request for as long as it takes: until S3 has answered it, or nothing has moved for `--timeout`.
    async fn call<T, E, F>(
        &self,
        operation: &'static str,
        bucket: &str,
        key: &str,
        condition: &Condition,
        send: impl Fn(Sdk) -> F,
    ) -> Result<T>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let inner = &*self.inner;
        let on = |error: Error| error.on(operation, bucket, key);
        inner.silence.admits().await.map_err(on)?;
        let _asking = Asking::begin(&self.inner, bucket);
        let (timeout, progress) = (inner.settings.timeout, Arc::new(Progress::of_part()));
        // What is told when time is up.
        let last = Mutex::new(None);
        // On the heap: the SDK's futures are large, and this one is a part of many others.
        let sent = Box::pin(async {
            let mut tries = Tries { heard: inner.silence.heard(), ..Tries::default() };
            loop {
                tries.signed = inner.credentials.as_ref().map(|credentials| credentials.now());
                let begun = SystemClock.now();
                let answer = send(self.sdk()).await.map_err(|error| on(error_of(error, condition)));
                self.count(operation, answer.as_ref().err(), begun.elapsed());
                let error = match answer {
                    Err(error) => error,
                    answered => return answered,
                };
                let pause = match self.again(&error, bucket, &mut tries).await {
                    Some(pause) if progress.last() + timeout > Instant::now() + pause => pause,
                    _ => return Err(error),
                };
                if !pause.is_zero() {
                    inner.stats.retries.add(1);
                }
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                tokio::time::sleep(pause).await;
            }
        });
        let answer = watch(&progress, timeout, sent).await.unwrap_or_else(|| {
            let last = last.lock().unwrap_or_else(PoisonError::into_inner).take();
            Err(last.unwrap_or_else(|| {
                let seconds = timeout.as_secs_f32();
                on(Error::new(Kind::TimedOut, format!("nothing moved for {seconds} s")))
            }))
        });
        answer.map_err(|error| match inner.settings.trouble.why() {
            // Time was up between two tries.
            Some(why) if error.kind() == Kind::TimedOut => on(unreachable_because(&why)),
            _ => error,
        })
    }

    /// Whether a request that failed is to be sent again, and after which pause: at once with what was learned by its failure,
    /// and later where the endpoint cannot answer at the moment.
    async fn again(&self, error: &Error, bucket: &str, tries: &mut Tries) -> Option<Duration> {
        if !tries.retimed && may_be_about_the_time(error) {
            tries.retimed = true;
            return Some(Duration::ZERO);
        }
        if !tries.resigned && self.learns_region(error, bucket).await {
            tries.resigned = true;
            return Some(Duration::ZERO);
        }
        match &self.inner.credentials {
            Some(credentials) if !tries.refreshed && wants_new_credentials(error) => {
                tries.refreshed = true;
                credentials.invalidate(tries.signed?);
                return Some(Duration::ZERO);
            }
            _ => {}
        }
        // An answer to HEAD has no words to say why.
        let is_head = error.details().request.is_some_and(|request| request.starts_with("Head"));
        let passes = match error.kind() {
            Kind::Throttled if is_head || error.code().is_some() => true,
            Kind::Throttled | Kind::Server | Kind::Unreachable | Kind::TimedOut
                if tries.pauses < ROUNDS_ALONE =>
            {
                true
            }
            // If it fails at nothing else, it fails at this request, and will go on to.
            Kind::Throttled | Kind::Server => {
                if self.inner.silence.heard() == tries.heard {
                    self.look(bucket).await;
                }
                self.inner.silence.heard() == tries.heard
            }
            // One that never answered is more likely misspelt than away.
            Kind::Unreachable | Kind::TimedOut => self.inner.silence.heard() > 0,
            _ => false,
        };
        passes.then(|| tries.pause())
    }

    fn count(&self, operation: &'static str, error: Option<&Error>, took: Duration) {
        let inner = &self.inner;
        inner.stats.request(operation, error.map_or("ok", |error| error.kind().name()), took);
        match error {
            Some(error) if is_no_answer(error.kind()) => inner.silence.fails(error),
            // Other failures that have no status are our own.
            Some(error) if error.status().is_none() => {}
            _ => {
                patience::moved();
                if let Some(silence) = inner.silence.hears() {
                    inner.stats.silences_ended.add(1);
                    tracing::info!(silent_s = silence.as_secs(), "the endpoint answers again");
                }
            }
        }
        match error.map(Error::kind) {
            Some(Kind::Unreachable | Kind::TimedOut) => {
                let failures = inner.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                if failures.is_multiple_of(REBUILD_AFTER_FAILURES) {
                    self.change(|config| config.http_client((inner.make_http)()));
                    tracing::debug!(failures, "connections failed in a row; starting with fresh ones");
                }
            }
            _ => inner.failures_in_a_row.store(0, Ordering::Relaxed),
        }
    }

    /// Looks whether the endpoint answers, which is counted as any request is. Any answer will do.
    async fn look(&self, bucket: &str) {
        let begun = SystemClock.now();
        let timeouts = TimeoutConfig::builder().operation_timeout(LOOK_TIMEOUT).build();
        let once =
            aws_sdk_s3::Config::builder().retry_config(RetryConfig::disabled()).timeout_config(timeouts);
        let (operation, error) = if bucket.is_empty() {
            let answer = self.sdk().list_buckets().customize().config_override(once).send().await;
            ("ListBuckets", answer.err().map(|error| error_of(error, &Condition::Any)))
        } else {
            let asked = self.sdk().head_bucket().bucket(bucket);
            let answer = asked.customize().config_override(once).send().await;
            ("HeadBucket", answer.err().map(|error| error_of(error, &Condition::Any)))
        };
        self.count(operation, error.as_ref(), begun.elapsed());
    }

    /// Looks whether an endpoint that fell silent is back, until it is.
    async fn look_out(inner: Weak<Inner>, bucket: String) {
        loop {
            let Some(client) = inner.upgrade().map(|inner| Self { inner }) else { return };
            client.look(&bucket).await;
            if !client.inner.silence.was_looked_at() {
                return;
            }
            drop(client);
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Whether a Put's ETag has to be the MD5 that was sent with it. A bucket shows by being right once.
    fn etag_is_md5(
        &self,
        bucket: &str,
        etag: &ETag,
        sent: Checksum,
        encryption: Option<&ServerSideEncryption>,
    ) -> bool {
        let of_bytes = self.customer_key().is_none()
            && encryption.is_none_or(|how| *how == ServerSideEncryption::Aes256);
        if sent.algorithm != ChecksumAlgorithm::Md5 || !of_bytes {
            return false;
        }
        let mut buckets = self.inner.md5_buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let is = BASE64.decode(sent.value).is_ok_and(|md5| hex(&md5) == etag.as_str());
        if is && !buckets.contains(bucket) {
            buckets.insert(bucket.to_owned());
        }
        buckets.contains(bucket)
    }

    /// Sends a body with the best checksum the server takes, and learns which that is.
    async fn with_checksum<T, F>(
        &self,
        body: &Payload,
        given: Option<Checksum>,
        send: impl Fn(Option<Checksum>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        // One of the best kind says what the bytes have to be, whatever the server takes; another is sent as it is.
        let is_best = |sum: &Checksum| sum.algorithm == ChecksumAlgorithm::Crc64Nvme;
        if given.as_ref().is_some_and(|given| !is_best(given)) {
            return send(given).await;
        }
        loop {
            let level = self.inner.checksums.load(Ordering::Relaxed);
            let checksum = match (&given, level) {
                (Some(given), CRC64) => Some(given.clone()),
                _ => {
                    let (crc, md5) = body.sums(level == MD5).await?;
                    if given.as_ref().is_some_and(|given| *given != crc) {
                        let told =
                            "the bytes to be sent are not what they were when their checksum was taken";
                        return Err(Error::new(Kind::Corrupt, told));
                    }
                    if level == CRC64 { Some(crc) } else { md5 }
                }
            };
            match send(checksum).await {
                Err(error) if level < NONE && refuses_checksum(&error) => {
                    let lower = level + 1;
                    if self.inner.checksums.fetch_max(lower, Ordering::Relaxed) < lower {
                        let instead = if lower == MD5 { "Content-MD5" } else { "no checksum" };
                        tracing::warn!(error = %error.report(), "the endpoint refuses a checksum; sending {instead} from now on");
                    }
                }
                answer => {
                    if answer.is_ok() {
                        self.inner.stats.bytes_sent.add(body.len());
                    }
                    return answer;
                }
            }
        }
    }
}

/// What was tried of one request.
#[derive(Default)]
struct Tries {
    /// Answers of the endpoint before it.
    heard: u64,
    retimed: bool,
    resigned: bool,
    refreshed: bool,
    /// The credentials of the latest one.
    signed: Option<std::time::Instant>,
    pauses: u32,
}

impl Tries {
    /// Longer and longer, and not all at the same moment.
    fn pause(&mut self) -> Duration {
        let pause = (FIRST_PAUSE * (1 << self.pauses.min(8))).min(PAUSE_MAX);
        self.pauses += 1;
        pause.mul_f64(rand::random_range(0.5..1.0))
    }
}

/// A request that is under way, whether it is answered or given up.
struct Asking<'a> {
    inner: &'a Arc<Inner>,
    bucket: &'a str,
    /// Whoever gives a request up may be anywhere.
    runtime: Handle,
}

impl<'a> Asking<'a> {
    fn begin(inner: &'a Arc<Inner>, bucket: &'a str) -> Self {
        inner.silence.begins();
        Self { inner, bucket, runtime: Handle::current() }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let timeout = self.inner.settings.timeout;
        if self.inner.silence.ends(timeout) {
            self.inner.stats.silences.add(1);
            let seconds = timeout.as_secs_f32();
            tracing::warn!(
                "the endpoint has answered nothing for {seconds} s; what is asked of it fails at once until it does"
            );
            self.runtime.spawn(Client::look_out(Arc::downgrade(self.inner), self.bucket.to_owned()));
        }
    }
}

/// S3's answer where an object is encrypted with no key of a customer. To HEAD it is a bare 400.
fn takes_no_key(error: &Error) -> bool {
    error.status() == Some(400) && matches!(error.code(), None | Some("InvalidRequest" | "InvalidArgument"))
}

/// What to say of an endpoint that takes no connections.
pub fn unreachable_because(why: &str) -> Error {
    Error::new(Kind::Unreachable, format!("the endpoint cannot be reached: {why}"))
}
