//! The listener, and the layer around the S3 service: faults, counts, request ids and administration.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::api::{Api, EqualParts, IgnoreConditions};
use super::convert::CHECKSUM_HEADERS;
use super::counts::{Counts, Tally};
use super::faults::{Fault, FaultRule, Faults};
use super::operation::{Operation, operation};
use super::shape::{Connection, Direction, Ending, Lane, Shape, Shaped, Shared};
use super::synthetic::Synthetic;
use crate::base::{Clock, SystemClock};
use crate::error::{Error, Kind, Result};
use crate::s3::{MemStore, Store};
use crate::stats::Stats;

/// Lets one identity in, and says of any other what S3 says.
struct OneIdentity {
    access_key: String,
    secret_key: SecretKey,
}

#[async_trait::async_trait]
impl S3Auth for OneIdentity {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.access_key {
            return Ok(self.secret_key.clone());
        }
        Err(s3_error!(
            InvalidAccessKeyId,
            "The AWS Access Key Id you provided does not exist in our records."
        ))
    }
}

/// An access key and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
}

/// What a server is to be; see [`Server::builder`].
pub struct Builder {
    listen: String,
    buckets: Vec<String>,
    credentials: Credentials,
    region: String,
    store: Option<Arc<dyn Store>>,
    seed: u64,
    faults: Vec<FaultRule>,
    synthetic: Option<Synthetic>,
}

impl Builder {
    /// `host:port` of this machine's loopback; port 0 takes a free one. By default `127.0.0.1:0`.
    #[must_use]
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = address.into();
        self
    }

    /// A bucket that is there from the start; may be called again for more.
    #[must_use]
    pub fn bucket(mut self, name: impl Into<String>) -> Self {
        self.buckets.push(name.into());
        self
    }

    /// The one identity that is let in. By default `pailfs` with `pailfs-demo-secret`.
    #[must_use]
    pub fn credentials(mut self, access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        self.credentials = Credentials { access_key: access_key.into(), secret_key: secret_key.into() };
        self
    }

    /// The region buckets are said to be in. By default `us-east-1`.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = region.into();
        self
    }

    /// Where the buckets live. By default in memory, and gone with the server.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Where the chances of fault rules come from. By default 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The rules in force until `PUT /-/faults` replaces them.
    #[must_use]
    pub fn faults(mut self, rules: Vec<FaultRule>) -> Self {
        self.faults = rules;
        self
    }

    /// One more bucket, of objects that are made up when they are asked for. By default there is none.
    #[must_use]
    pub fn synthetic(mut self, made: Option<Synthetic>) -> Self {
        self.synthetic = made;
        self
    }

    /// Makes the buckets and begins to listen. `InvalidArgument` where the address is not loopback.
    pub async fn start(self) -> Result<Server> {
        let address = loopback(&self.listen)?;
        let store = self.store.unwrap_or_else(|| {
            Arc::new(MemStore::in_region(&self.region, Arc::new(SystemClock), Arc::new(Stats::default())))
        });
        for bucket in &self.buckets {
            match store.create_bucket(bucket, None).await {
                Err(error) if error.kind() != Kind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Error::new(Kind::InvalidArgument, format!("cannot listen on {address}")).with_source(error)
        })?;
        let address = listener.local_addr()?;
        let api = Api {
            store,
            region: self.region,
            clock: Arc::new(SystemClock),
            upload_keys: Mutex::default(),
            synthetic: self.synthetic,
        };
        let mut service = S3ServiceBuilder::new(api);
        let Credentials { access_key, secret_key } = self.credentials.clone();
        service.set_auth(OneIdentity { access_key, secret_key: secret_key.into() });
        let front = Arc::new(Front {
            service: service.build(),
            tally: Arc::new(Tally::default()),
            faults: Mutex::new(Faults::new(self.faults, self.seed)),
            seed: self.seed,
            requests: AtomicU64::new(0),
        });
        let (stop, stopping) = watch::channel(false);
        let listening = tokio::spawn(accept(listener, Arc::clone(&front), stopping));
        Ok(Server { address, credentials: self.credentials, front, stop, listening: Some(listening) })
    }
}

/// Loopback alone: the credentials are known to everybody.
fn loopback(listen: &str) -> Result<SocketAddr> {
    let wrong =
        |why: String| Error::new(Kind::InvalidArgument, format!("cannot listen on {listen:?}: {why}"));
    let mut addresses = listen.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    addresses
        .find(|address| address.ip().is_loopback())
        .ok_or_else(|| wrong("the demo server listens on loopback addresses only".to_owned()))
}

/// A running server. Dropping it ends it too, without waiting.
pub struct Server {
    address: SocketAddr,
    credentials: Credentials,
    front: Arc<Front>,
    stop: watch::Sender<bool>,
    listening: Option<JoinHandle<()>>,
}

impl Server {
    pub fn builder() -> Builder {
        Builder {
            listen: "127.0.0.1:0".to_owned(),
            buckets: Vec::new(),
            credentials: Credentials {
                access_key: "pailfs".to_owned(),
                secret_key: "pailfs-demo-secret".to_owned(),
            },
            region: "us-east-1".to_owned(),
            store: None,
            seed: 0,
            faults: Vec::new(),
            synthetic: None,
        }
    }

    /// `http://address:port`, for path-style requests.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// What has arrived since the start or the last reset.
    pub fn counts(&self) -> Counts {
        self.front.tally.snapshot()
    }

    /// Replaces the fault rules and starts their chances from the seed again.
    pub fn set_faults(&self, rules: Vec<FaultRule>) {
        self.front.set_faults(rules);
    }

    /// Closes the listener and every connection, and returns when they are closed.
    pub async fn stop(mut self) {
        // Where nobody listens any more, the task has ended already.
        let _ = self.stop.send(true);
        if let Some(listening) = self.listening.take() {
            let _ = listening.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

/// More than the clients of one machine open; the next one waits for a place.
const CONNECTIONS_MAX: usize = 1024;

async fn accept(listener: TcpListener, front: Arc<Front>, mut stopping: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopping.changed() => break,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                // A connection that failed before it was accepted is its client's to notice.
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, Arc::clone(&front)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve(stream: TcpStream, front: Arc<Front>) {
    // Small answers should not wait for more; where it cannot be set they do.
    let _ = stream.set_nodelay(true);
    let line = Arc::new(Line::default());
    let connection = Connection::new(stream, Arc::clone(&line.reset));
    let service = service_fn(move |request| Box::pin(Arc::clone(&front).handle(request, Arc::clone(&line))));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(connection), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// What the requests of one connection share.
#[derive(Default)]
struct Line {
    reset: Arc<AtomicBool>,
    inbound: Arc<Lane>,
    outbound: Arc<Lane>,
}

/// Why a request gets no answer.
#[derive(Debug)]
struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a fault rule reset the connection")
    }
}

impl std::error::Error for Reset {}

type Answer = Response<Shaped<s3s::Body>>;

/// Everything in front of the S3 service.
struct Front {
    service: S3Service,
    tally: Arc<Tally>,
    faults: Mutex<Faults>,
    seed: u64,
    requests: AtomicU64,
}

impl Front {
    async fn handle(self: Arc<Self>, request: Request<Incoming>, line: Arc<Line>) -> Result<Answer, Reset> {
        let answer = if request.uri().path().starts_with("/-/") {
            let answer = self.administer(request).await;
            Ok(self.shaped(answer, &line, &Shape::default()))
        } else {
            self.s3(request, &line).await
        };
        if answer.is_err() {
            line.reset.store(true, Ordering::Relaxed);
        }
        answer
    }

    async fn s3(&self, request: Request<Incoming>, line: &Line) -> Result<Answer, Reset> {
        let operation = named(&request);
        self.tally.request(operation.name);
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner).decide(&operation);
        let plan = Plan::of(faults, request.headers());
        if !plan.latency.is_zero() {
            tokio::time::sleep(plan.latency).await;
        }
        if plan.reset {
            self.tally.status(None);
            return Err(Reset);
        }
        let is_head = request.method() == Method::HEAD;
        let id = self.next_id();
        let answer = self.answer(request, line, &plan, &id).await;
        if plan.lose_response {
            self.tally.status(None);
            return Err(Reset);
        }
        self.tally.status(Some(answer.status().as_u16()));
        let mut answer = identified(answer, &id);
        if let Some(ahead) = plan.ahead {
            answer.headers_mut().insert(DATE, http_date(SystemClock.wall() + ahead));
        }
        let ending = match (plan.stall, plan.truncate) {
            (true, _) => match body_size(&answer) {
                Some(size) if size > 0 && !is_head => Ending::StallAfter(size / 2),
                _ => std::future::pending().await,
            },
            (false, Some(limit)) => Ending::CutAfter(limit),
            (false, None) => Ending::Whole,
        };
        Ok(self.shaped(answer, line, &Shape { rate: plan.rate, ending }))
    }

    /// The S3 service's answer, or the one that a fault puts in its place.
    async fn answer(
        &self,
        request: Request<Incoming>,
        line: &Line,
        plan: &Plan,
        id: &str,
    ) -> Response<s3s::Body> {
        let shape = Shape { rate: plan.rate, ending: Ending::Whole };
        let (mut parts, body) = request.into_parts();
        let tally = Arc::clone(&self.tally);
        let body = Shaped::new(body, Direction::In, tally, Arc::clone(&line.inbound), &shape);
        let body = Shared::new(body);
        if let Some(instead) = &plan.instead {
            body.drain().await;
            return instead.answer(id);
        }
        if plan.ignore_conditions {
            parts.extensions.insert(IgnoreConditions);
        }
        if plan.equal_parts {
            parts.extensions.insert(EqualParts);
        }
        let request = Request::from_parts(parts, s3s::Body::http_body_unsync(body.clone()));
        let answer = match self.service.call(request).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(error = ?s3s::StdError::from(error), "the S3 service failed");
                Instead::error(500).answer(id)
            }
        };
        if !answer.status().is_success() {
            body.drain().await;
        }
        answer
    }

    async fn administer(&self, request: Request<Incoming>) -> Response<s3s::Body> {
        let (parts, body) = request.into_parts();
        match (&parts.method, parts.uri.path()) {
            (&Method::GET, "/-/ready") => text(StatusCode::OK, "ready\n".to_owned()),
            (&Method::GET, "/-/counts") => match serde_json::to_string(&self.tally.snapshot()) {
                Ok(json) => with_type(text(StatusCode::OK, json), "application/json"),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            (&Method::POST, "/-/counts/reset") => {
                self.tally.reset();
                text(StatusCode::OK, String::new())
            }
            (&Method::GET, "/-/faults") => {
                let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
                text(StatusCode::OK, faults.rules().map(|rule| format!("{rule}\n")).collect())
            }
            (&Method::PUT, "/-/faults") => match received_rules(body).await {
                Ok(rules) => {
                    self.set_faults(rules);
                    text(StatusCode::OK, String::new())
                }
                Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            },
            _ => text(StatusCode::NOT_FOUND, "there is nothing here\n".to_owned()),
        }
    }

    fn set_faults(&self, rules: Vec<FaultRule>) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = Faults::new(rules, self.seed);
    }

    fn next_id(&self) -> String {
        format!("PAIL{:012X}", self.requests.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn shaped(&self, answer: Response<s3s::Body>, line: &Line, shape: &Shape) -> Answer {
        let (mut parts, body) = answer.into_parts();
        let bodyless = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if let Some(length) = body.size_hint().exact().filter(|_| !bodyless) {
            parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        let tally = Arc::clone(&self.tally);
        let body = Shaped::new(body, Direction::Out, tally, Arc::clone(&line.outbound), shape);
        Response::from_parts(parts, body)
    }
}

/// What the faults that hit one request come to.
#[derive(Debug, Default)]
struct Plan {
    latency: std::time::Duration,
    rate: Option<u64>,
    instead: Option<Instead>,
    reset: bool,
    lose_response: bool,
    stall: bool,
    truncate: Option<u64>,
    /// How far the server's clock is ahead.
    ahead: Option<std::time::Duration>,
    ignore_conditions: bool,
    equal_parts: bool,
}

impl Plan {
    /// Waits add up; the lowest rate, the shortest body and the first answer win.
    fn of(faults: Vec<Fault>, headers: &HeaderMap) -> Self {
        let mut plan = Self::default();
        for fault in faults {
            let instead = match fault {
                Fault::Latency(wait) => {
                    plan.latency += wait;
                    None
                }
                Fault::Bandwidth(rate) => {
                    plan.rate = Some(plan.rate.map_or(rate, |lowest| lowest.min(rate)));
                    None
                }
                Fault::Truncate(limit) => {
                    plan.truncate = Some(plan.truncate.map_or(limit, |shortest| shortest.min(limit)));
                    None
                }
                Fault::Reset => {
                    plan.reset = true;
                    None
                }
                Fault::LoseResponse => {
                    plan.lose_response = true;
                    None
                }
                Fault::Stall => {
                    plan.stall = true;
                    None
                }
                Fault::IgnoreConditions => {
                    plan.ignore_conditions = true;
                    None
                }
                Fault::EqualParts => {
                    plan.equal_parts = true;
                    None
                }
                Fault::SlowDown => Some(Instead::new(503, "SlowDown", "Please reduce your request rate.")),
                Fault::Error(status) => Some(Instead::error(status)),
                Fault::Status(status) => Some(Instead { status, error: None }),
                Fault::ExpiredToken(token) => {
                    let sent = headers.get("x-amz-security-token").map(HeaderValue::as_bytes);
                    let is_meant = token.is_none_or(|token| sent == Some(token.as_bytes()));
                    is_meant.then(|| Instead::new(400, "ExpiredToken", "The provided token has expired."))
                }
                Fault::DatedTokens => {
                    let until = headers
                        .get("x-amz-security-token")
                        .and_then(|token| token.to_str().ok()?.strip_prefix("until-")?.parse().ok());
                    let is_over = until.is_some_and(|until| SystemClock.wall() >= at_second(until));
                    is_over.then(|| Instead::new(400, "ExpiredToken", "The provided token has expired."))
                }
                Fault::Skewed(ahead) => {
                    plan.ahead = Some(ahead);
                    let signed = headers.get("x-amz-date").and_then(|date| signed_at(date.to_str().ok()?));
                    let now = SystemClock.wall() + ahead;
                    let is_off = signed.is_some_and(|signed| {
                        let off = now.duration_since(signed).or_else(|_| signed.duration_since(now));
                        off.unwrap_or_default() > SKEW_MAX
                    });
                    let told = "The difference between the request time and the current time is too large.";
                    is_off.then(|| Instead::new(403, "RequestTimeTooSkewed", told))
                }
                Fault::Denied => Some(Instead::new(403, "AccessDenied", "Access Denied")),
                Fault::RefuseChecksums => checksum_header(headers).map(|name| {
                    Instead::new(400, "InvalidRequest", &format!("The header {name} is not supported"))
                }),
            };
            if plan.instead.is_none() {
                plan.instead = instead;
            }
        }
        plan
    }
}

/// How far a client's clock may be off from one that is ahead. For S3 it is 15 minutes, and so it is for the S3 service by
/// this machine's own clock.
const SKEW_MAX: std::time::Duration = std::time::Duration::from_secs(5 * 60);

fn at_second(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

/// When a request was signed: `20260102T030405Z`.
fn signed_at(date: &str) -> Option<SystemTime> {
    let digits: String = date.chars().filter(char::is_ascii_digit).collect();
    let part = |from: usize, len: usize| digits.get(from..from + len);
    let (year, month, day) = (part(0, 4)?, part(4, 2)?, part(6, 2)?);
    let (hour, minute, second) = (part(8, 2)?, part(10, 2)?, part(12, 2)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let mut seconds = Vec::new();
    let date = Timestamp::parse(TimestampFormat::DateTime, &text).ok()?;
    date.format(TimestampFormat::EpochSeconds, &mut seconds).ok()?;
    let seconds = String::from_utf8(seconds).ok()?;
    Some(at_second(seconds.split('.').next()?.parse().ok()?))
}

fn http_date(time: SystemTime) -> HeaderValue {
    let mut text = Vec::new();
    let written = Timestamp::from(time).format(TimestampFormat::HttpDate, &mut text);
    let value = written.ok().and_then(|()| HeaderValue::from_bytes(&text).ok());
    value.unwrap_or_else(|| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

/// An answer given without asking the S3 service.
#[derive(Debug)]
struct Instead {
    status: u16,
    /// Code and message; `None` for an empty body.
    error: Option<(&'static str, String)>,
}

impl Instead {
    fn new(status: u16, code: &'static str, message: &str) -> Self {
        Self { status, error: Some((code, message.to_owned())) }
    }

    fn error(status: u16) -> Self {
        let code = match status {
            401 | 403 => "AccessDenied",
            404 => "NoSuchKey",
            405 => "MethodNotAllowed",
            409 => "OperationAborted",
            412 => "PreconditionFailed",
            416 => "InvalidRange",
            400..=499 => "InvalidRequest",
            501 => "NotImplemented",
            503 => "ServiceUnavailable",
            _ => "InternalError",
        };
        Self::new(status, code, "A fault rule asked for this answer.")
    }

    fn answer(&self, id: &str) -> Response<s3s::Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let Some((code, message)) = &self.error else { return text(status, String::new()) };
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
             <Message>{message}</Message><RequestId>{id}</RequestId></Error>"
        );
        with_type(text(status, xml), "application/xml")
    }
}

fn body_size(answer: &Response<s3s::Body>) -> Option<u64> {
    let announced = answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    announced.or_else(|| answer.body().size_hint().exact())
}

fn named(request: &Request<Incoming>) -> Operation {
    let uri = request.uri();
    let copies = request.headers().contains_key("x-amz-copy-source");
    operation(request.method(), uri.path(), uri.query().unwrap_or(""), copies)
}

/// The checksum a request carries in its headers or announces for its trailers.
fn checksum_header(headers: &HeaderMap) -> Option<&'static str> {
    let trailer = headers.get("x-amz-trailer").and_then(|value| value.to_str().ok()).unwrap_or("");
    CHECKSUM_HEADERS
        .iter()
        .map(|(_, name)| *name)
        .find(|name| headers.contains_key(*name) || trailer.split(',').any(|part| part.trim() == *name))
}

/// Far more rules than anyone writes.
const RULES_MAX_BYTES: usize = 64 << 10;

async fn received_rules(body: Incoming) -> Result<Vec<FaultRule>, String> {
    let body = Limited::new(body, RULES_MAX_BYTES).collect().await.map_err(|error| error.to_string())?;
    let text = String::from_utf8(body.to_bytes().to_vec()).map_err(|error| error.to_string())?;
    FaultRule::parse_lines(&text)
}

fn identified(mut answer: Response<s3s::Body>, id: &str) -> Response<s3s::Body> {
    let host = base64::engine::general_purpose::STANDARD.encode(format!("pailfs-demo/{id}"));
    for (name, value) in [("x-amz-request-id", id), ("x-amz-id-2", &host)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

fn text(status: StatusCode, body: String) -> Response<s3s::Body> {
    let mut answer = Response::new(s3s::Body::from(Bytes::from(body)));
    *answer.status_mut() = status;
    with_type(answer, "text/plain")
}

fn with_type(mut answer: Response<s3s::Body>, content_type: &'static str) -> Response<s3s::Body> {
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
