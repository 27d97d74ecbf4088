//! Sessions: an identity and its defaults, as in boto3.
//!
//! Owns: where each value of a session comes from, and a client for each region.
//! Does not own: the renewal of credentials and the HTTP stack (`credentials`), requests (`client`), which buckets a mount shows (`fs`).
//!
//! This is the one place below `cli` that reads the environment: the standard AWS chain is what a session is.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::{
    IdentityCache, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_sts::error::SdkError;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use futures::FutureExt;
use serde::Serialize;

use super::attempts::{self, ATTEMPT_TIMEOUT, Attempts, Trouble};
use super::client::{Client, ClientSettings};
use super::credentials::{Provider, Refreshing, load, reason};
use super::customer_key::{CustomerKey, KeyPlace};
use super::failure::region_hint;
use super::http::HttpSettings;
use super::patience::WatchedClient;
use super::profile::Profile;
use super::secret::Secret;
use super::settings::{Described, PathStyle, SessionConfig, env};
use super::store::Store;
use crate::base::SystemClock;
use crate::error::{Error, Kind, Result};
use crate::stats::Stats;

/// Signed for where nothing names a region; S3-compatible servers mostly take any.
const DEFAULT_REGION: &str = "us-east-1";
/// Where the settings given to a session come from.
const CONFIGURATION: &str = "configuration";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server that may have no STS is listened to.
const CALLER_TIMEOUT: Duration = Duration::from_secs(5);
const NO_STS: &str = "not offered by this endpoint";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// An identity and its defaults. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    config: SessionConfig,
    profile: Arc<Profile>,
    /// `None` is AWS itself.
    endpoint: Option<Described>,
    /// `None` where nothing names one.
    region: Option<Described>,
    sdk: SdkConfig,
    credentials: Option<Arc<Refreshing>>,
    customer_key: Option<CustomerKey>,
    http: Arc<HttpSettings>,
    stats: Arc<Stats>,
    trouble: Arc<Trouble>,
    timeout: Duration,
    clients: Mutex<HashMap<String, Client>>,
    regions: Mutex<HashMap<String, String>>,
}

/// Who the caller is, by STS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Caller {
    pub account: String,
    pub arn: String,
    pub user_id: String,
}

/// What a session is, without a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionDescription {
    pub name: String,
    pub profile: Option<Described>,
    pub region: Described,
    pub endpoint: Described,
    /// The access key's first and last four characters, and the provider that gave it.
    pub credentials: Described,
    /// Seconds since 1970, where the credentials expire.
    pub expires: Option<u64>,
    /// Why there are no credentials, where there are none.
    pub problem: Option<String>,
}

/// Makes a session step by step.
#[derive(Clone, Debug, Default)]
pub struct SessionBuilder {
    name: Option<String>,
    config: SessionConfig,
    stats: Option<Arc<Stats>>,
    timeout: Option<Duration>,
}

impl SessionBuilder {
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }
    /// All settings at once.
    #[must_use]
    pub fn settings(mut self, config: SessionConfig) -> Self {
        self.config = config;
        self
    }
    #[must_use]
    pub fn profile(mut self, profile: &str) -> Self {
        self.config.profile = Some(profile.to_owned());
        self
    }
    #[must_use]
    pub fn credentials(mut self, access_key_id: &str, secret_access_key: &str, token: Option<&str>) -> Self {
        self.config.access_key_id = Some(access_key_id.to_owned());
        self.config.secret_access_key = Some(Secret::new(secret_access_key));
        self.config.session_token = token.map(Secret::new);
        self
    }
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        self.config.region = Some(region.to_owned());
        self
    }
    #[must_use]
    pub fn endpoint_url(mut self, url: &str) -> Self {
        self.config.endpoint_url = Some(url.to_owned());
        self
    }
    #[must_use]
    pub fn no_sign_request(mut self, unsigned: bool) -> Self {
        self.config.no_sign_request = Some(unsigned);
        self
    }
    #[must_use]
    pub fn requester_pays(mut self, pays: bool) -> Self {
        self.config.requester_pays = Some(pays);
        self
    }
    #[must_use]
    pub fn ca_bundle(mut self, path: &Path) -> Self {
        self.config.ca_bundle = Some(path.to_owned());
        self
    }
    #[must_use]
    pub fn path_style(mut self, style: PathStyle) -> Self {
        self.config.path_style = Some(style);
        self
    }
    /// Encrypts what is written with a key that S3 forgets, and reads with it: SSE-C.
    #[must_use]
    pub fn sse_customer_key(mut self, place: KeyPlace) -> Self {
        self.config.sse_customer_key = Some(place);
        self
    }
    /// Where requests are counted.
    #[must_use]
    pub fn stats(mut self, stats: Arc<Stats>) -> Self {
        self.stats = Some(stats);
        self
    }
    /// How long a small request may take with all its retries.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Reads profiles and the environment; asks no server. Missing credentials show at the first request.
    pub async fn build(self) -> Result<Session> {
        let invalid = |text: String| Error::new(Kind::InvalidArgument, text);
        self.config.check().map_err(invalid)?;
        let http = Arc::new(HttpSettings::new(self.config.ca_bundle.as_deref())?);
        let profile = Arc::new(Profile::read(&self.config).await?);
        let sdk = load(&self.config, &profile, &http).await;
        let credentials = match self.config.no_sign_request {
            Some(true) => None,
            _ => {
                let again = {
                    let (config, profile, http) =
                        (self.config.clone(), Arc::clone(&profile), Arc::clone(&http));
                    move || {
                        let (config, profile, http) =
                            (config.clone(), Arc::clone(&profile), Arc::clone(&http));
                        async move { load(&config, &profile, &http).await.credentials_provider() }.boxed()
                    }
                };
                let provider = sdk.credentials_provider();
                Some(Refreshing::new(provider, Box::new(again), Arc::new(SystemClock)))
            }
        };
        let configured = |value: &Option<String>| value.as_deref().map(|v| described(v, CONFIGURATION));
        let endpoint = match configured(&self.config.endpoint_url) {
            None => profile.endpoint()?,
            configured => configured,
        };
        let customer_key = self.config.sse_customer_key.as_ref().map(CustomerKey::load).transpose()?;
        if customer_key.is_some() && endpoint.as_ref().is_some_and(|endpoint| is_overheard(&endpoint.value)) {
            let told = "a customer key is sent with each request, so the endpoint has to be an https:// one";
            return Err(invalid(told.to_owned()));
        }
        let region = configured(&self.config.region)
            .or_else(|| profile.region())
            // The SDK takes an empty variable for a region.
            .or_else(|| {
                let found = sdk.region().map(Region::as_ref).filter(|region| !region.is_empty());
                found.map(|region| described(region, "instance metadata"))
            });
        Ok(Session {
            inner: Arc::new(Inner {
                name: self.name.unwrap_or_else(|| "default".to_owned()),
                config: self.config,
                profile,
                endpoint,
                region,
                sdk,
                credentials,
                customer_key,
                http,
                stats: self.stats.unwrap_or_default(),
                trouble: Arc::default(),
                timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT),
                clients: Mutex::default(),
                regions: Mutex::default(),
            }),
        })
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl Session {
    pub fn builder() -> SessionBuilder {
        SessionBuilder::default()
    }

    /// A session with these settings; the default ones are the whole AWS chain.
    pub async fn load(config: SessionConfig) -> Result<Self> {
        Self::builder().settings(config).build().await
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The region that clients are made for where a bucket does not say otherwise.
    pub fn region(&self) -> String {
        self.inner.region.as_ref().map_or_else(|| DEFAULT_REGION.to_owned(), |region| region.value.clone())
    }

    /// The region, and who named it: an endpoint of one's own has the last word.
    fn described_region(&self) -> Described {
        let named = self.inner.region.clone().unwrap_or_else(|| described(DEFAULT_REGION, "default"));
        let clients = self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner);
        match clients.get(&named.value).map(Client::region) {
            Some(learned) if learned != named.value => described(&learned, "the endpoint"),
            _ => named,
        }
    }

    /// The endpoint set for this session; `None` is AWS itself.
    pub fn endpoint_url(&self) -> Option<String> {
        self.inner.endpoint.as_ref().map(|endpoint| endpoint.value.clone())
    }

    /// Why the endpoint cannot be reached at the moment, if so.
    pub fn trouble(&self) -> Option<String> {
        self.inner.trouble.why()
    }

    /// Whether Amazon itself answers, at its usual address or at one of its others: a VPC's, a region's.
    pub fn is_aws(&self) -> bool {
        self.inner.endpoint.as_ref().is_none_or(|endpoint| is_amazons(&endpoint.value))
    }

    /// Session and endpoint in one word: server-side copies work where two buckets agree on it.
    pub fn reach(&self) -> String {
        format!("{}@{}", self.inner.name, self.endpoint_url().unwrap_or_else(|| "aws".to_owned()))
    }

    /// The client for the session's own region.
    pub fn client(&self) -> Client {
        self.client_in(&self.region())
    }

    /// The client for a region; made once.
    pub fn client_in(&self, region: &str) -> Client {
        let mut clients = self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.entry(region.to_owned()).or_insert_with(|| self.make_client(region)).clone()
    }

    /// The client for a bucket's own region, found out once.
    pub async fn store_for(&self, bucket: &str) -> Result<(Arc<dyn Store>, Option<String>)> {
        let region = self.region_of(bucket).await?;
        let client = match &region {
            Some(region) => self.client_in(region),
            None => self.client(),
        };
        Ok((Arc::new(client), region))
    }

    /// The region of a bucket, as far as it is known by now.
    pub fn known_region(&self, bucket: &str) -> Option<String> {
        let found = self.inner.regions.lock().unwrap_or_else(PoisonError::into_inner).get(bucket).cloned();
        found.or_else(|| (!self.is_aws()).then(|| self.described_region().value))
    }

    /// The region of a bucket; `None` where the endpoint does not tell.
    pub async fn region_of(&self, bucket: &str) -> Result<Option<String>> {
        if let Some(region) = self.inner.regions.lock().unwrap_or_else(PoisonError::into_inner).get(bucket) {
            return Ok(Some(region.clone()));
        }
        // An endpoint of one's own has one region: the one that was set, unless it insists on another.
        if !self.is_aws() {
            return Ok(Some(self.described_region().value));
        }
        let region = match self.client().head_bucket(bucket).await {
            Ok(info) => info.region,
            Err(error) => match region_hint(&error) {
                Some(region) => Some(region),
                // Not allowed to ask, but perhaps to use.
                None if error.kind() == Kind::AccessDenied => None,
                None => return Err(error),
            },
        };
        if let Some(region) = &region {
            let mut regions = self.inner.regions.lock().unwrap_or_else(PoisonError::into_inner);
            regions.insert(bucket.to_owned(), region.clone());
        }
        Ok(region)
    }

    /// Who the caller is. `Unsupported` where the endpoint has no STS.
    pub async fn caller(&self) -> Result<Caller> {
        let Some(credentials) = &self.inner.credentials else {
            return Err(Error::new(Kind::Unsupported, "requests are not signed, so there is no caller"));
        };
        credentials
            .current()
            .await
            .map_err(|error| Error::new(Kind::Credentials, "no credentials were found").with_source(error))?;
        let mut config = aws_sdk_sts::config::Builder::from(&self.inner.sdk)
            .region(Region::new(self.described_region().value))
            .credentials_provider(SharedCredentialsProvider::new(Provider(Arc::clone(credentials))));
        let own = self.endpoint_url().filter(|_| !self.is_aws());
        if self.inner.endpoint.is_some() {
            // The endpoint for S3 is none for STS, except where one server is both.
            let sts = self.inner.profile.endpoint_of_sts().map(|endpoint| endpoint.value);
            config.set_endpoint_url(sts.or_else(|| own.clone()));
        }
        if own.is_some() {
            let patience = TimeoutConfig::builder().operation_timeout(CALLER_TIMEOUT.min(self.inner.timeout));
            config = config.retry_config(RetryConfig::disabled()).timeout_config(patience.build());
        }
        let answer = aws_sdk_sts::Client::from_conf(config.build())
            .get_caller_identity()
            .send()
            .await
            .map_err(|error| {
                let (kind, text) = match &error {
                    // It may be no STS at all, and say anything.
                    SdkError::ServiceError(_) | SdkError::ResponseError(_) | SdkError::TimeoutError(_)
                        if own.is_some() =>
                    {
                        (Kind::Unsupported, NO_STS)
                    }
                    SdkError::ServiceError(_) => (Kind::Credentials, "STS did not say who the caller is"),
                    _ => (Kind::Unreachable, "STS did not say who the caller is"),
                };
                Error::new(kind, text).with_source(error).on("GetCallerIdentity", "", "")
            })?;
        // Garage answers a list of buckets.
        if own.is_some() && answer.arn().is_none() {
            return Err(Error::new(Kind::Unsupported, NO_STS).on("GetCallerIdentity", "", ""));
        }
        Ok(Caller {
            account: answer.account().unwrap_or("").to_owned(),
            arn: answer.arn().unwrap_or("").to_owned(),
            user_id: answer.user_id().unwrap_or("").to_owned(),
        })
    }

    /// What this session is and where each value came from. Loads credentials; shows no secret.
    pub async fn describe(&self) -> SessionDescription {
        let config = &self.inner.config;
        let (credentials, expires, problem) = match &self.inner.credentials {
            None => (described("none: requests are not signed", CONFIGURATION), None, None),
            Some(refreshing) => match refreshing.current().await {
                Ok(found) => {
                    let provider = match config.access_key_id {
                        Some(_) => CONFIGURATION.to_owned(),
                        None => self.provider_name(&found),
                    };
                    let expires = found.expiry().and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
                    (described(&masked(found.access_key_id()), &provider), expires.map(|d| d.as_secs()), None)
                }
                Err(error) => (described("none found", "default chain"), None, Some(reason(&error))),
            },
        };
        SessionDescription {
            name: self.inner.name.clone(),
            profile: self.profile(),
            region: self.described_region(),
            endpoint: self.inner.endpoint.clone().unwrap_or_else(|| described("AWS", "default")),
            credentials,
            expires,
            problem,
        }
    }

    /// The profile that the identity comes from, if it is one.
    fn profile(&self) -> Option<Described> {
        let config = &self.inner.config;
        if let Some(name) = self.inner.profile.named() {
            return Some(described(name, CONFIGURATION));
        }
        let own_identity = config.access_key_id.is_some() || config.no_sign_request == Some(true);
        let name = env("AWS_PROFILE").filter(|_| !own_identity)?;
        Some(described(&name, "environment AWS_PROFILE"))
    }

    /// Where the SDK found credentials, in our words.
    fn provider_name(&self, credentials: &Credentials) -> String {
        let debug = format!("{credentials:?}");
        let name = debug.split("provider_name: \"").nth(1).and_then(|rest| rest.split('"').next());
        match name.unwrap_or("default chain") {
            "EnvironmentVariable" => "environment AWS_ACCESS_KEY_ID".to_owned(),
            "ProfileFile" => format!("profile {}", self.inner.profile.selected()),
            name => name.to_owned(),
        }
    }

    fn make_client(&self, region: &str) -> Client {
        let inner = &self.inner;
        let endpoint = self.endpoint_url();
        let signs_bodies = endpoint.as_deref().is_some_and(is_overheard);
        let path_style = match inner.config.path_style.unwrap_or_default() {
            PathStyle::On => true,
            PathStyle::Off => false,
            PathStyle::Auto => endpoint.is_some(),
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let (http, silence) = (Arc::clone(&inner.http), ATTEMPT_TIMEOUT.min(inner.timeout));
        let make_http = move || SharedHttpClient::new(WatchedClient { inner: http.client(), silence });
        let mut config = aws_sdk_s3::config::Builder::from(&inner.sdk)
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .force_path_style(path_style)
            .http_client(make_http())
            .timeout_config(timeouts)
            .retry_config(attempts::retries())
            // It misfires on slow readers and silent copies; our own deadlines stand in for it.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // `Refreshing` keeps them, and can be told to let go.
            .identity_cache(IdentityCache::no_cache())
            .interceptor(Attempts { stats: Arc::clone(&inner.stats), trouble: Arc::clone(&inner.trouble) });
        config.set_endpoint_url(endpoint);
        config = match &inner.credentials {
            Some(credentials) => {
                config.credentials_provider(SharedCredentialsProvider::new(Provider(Arc::clone(credentials))))
            }
            None => config.allow_no_auth(),
        };
        Client::new(
            config.build(),
            Box::new(make_http),
            ClientSettings {
                own_endpoint: !self.is_aws(),
                signs_bodies,
                requester_pays: inner.config.requester_pays.unwrap_or(false),
                customer_key: inner.customer_key.clone(),
                timeout: inner.timeout,
                trouble: Arc::clone(&inner.trouble),
            },
            inner.credentials.clone(),
            Arc::clone(&inner.stats),
        )
    }
}

/// First and last four characters: enough to recognise a key, too little to use it.
fn masked(access_key_id: &str) -> String {
    let chars: Vec<char> = access_key_id.chars().collect();
    if chars.len() < 12 {
        return "****".to_owned();
    }
    let head: String = chars[..4].iter().collect();
    let tail: String = chars[chars.len() - 4..].iter().collect();
    format!("{head}…{tail}")
}

/// Whether what is sent to an endpoint can be read on its way: over plain HTTP, to another machine.
fn is_overheard(url: &str) -> bool {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let here = host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    !scheme.eq_ignore_ascii_case("https") && !here
}

/// Whether the host of an endpoint's address is one of Amazon's.
fn is_amazons(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?', '#', ':']).next().unwrap_or_default().to_ascii_lowercase();
    [".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".amazonaws.eu"]
        .iter()
        .any(|domain| host.ends_with(domain))
}

fn described(value: &str, source: &str) -> Described {
    Described { value: value.to_owned(), source: source.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::PutRequest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn what_is_sent_over_plain_http_to_another_machine_is_overheard() {
        for url in [
            "http://example.com",
            "HTTP://10.0.0.1:9000/x",
            "http://[fe80::1]:80",
            "http://127.0.0.1.example.com",
        ] {
            assert!(is_overheard(url), "{url}");
        }
        for url in ["https://example.com", "http://localhost:9000", "http://127.0.0.1:1/", "http://[::1]:80"]
        {
            assert!(!is_overheard(url), "{url}");
        }
    }

    #[test]
    fn access_keys_are_shown_in_part() {
        assert_eq!(masked("AKIAIOSFODNN7EXAMPLE"), "AKIA…MPLE");
        assert_eq!(masked("short"), "****");
    }

    #[test]
    fn amazons_own_endpoints_are_known_by_their_host() {
        let amazons = [
            "https://s3.eu-west-1.amazonaws.com",
            "https://bucket.vpce-1a2b-3c4d.s3.us-east-1.vpce.amazonaws.com/",
            "https://S3.cn-north-1.amazonaws.com.cn:443/x",
        ];
        assert!(amazons.iter().all(|url| is_amazons(url)));
        let others =
            ["http://127.0.0.1:9000", "https://s3.amazonaws.com.example.org", "http://amazonaws.com"];
        assert!(!others.iter().any(|url| is_amazons(url)));
    }

    #[tokio::test]
    async fn a_description_has_sources_and_no_secret() {
        let session = Session::builder()
            .name("work")
            .credentials("AKIAIOSFODNN7EXAMPLE", "very-secret", Some("token-secret"))
            .region("eu-west-1")
            .endpoint_url("http://127.0.0.1:9")
            .build()
            .await
            .unwrap();
        let text = serde_json::to_string(&session.describe().await).unwrap();
        assert!(
            text.contains("eu-west-1") && text.contains("configuration") && text.contains("AKIA…MPLE"),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(session.reach(), "work@http://127.0.0.1:9");
    }

    /// The head of the request that puts an object, where its server is known by this name.
    async fn put_to(host: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{host}:{}", listener.local_addr().unwrap().port());
        let server = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(connection.read_u8().await.unwrap());
            }
            connection.read_exact(&mut [0; 5]).await.unwrap();
            let answer = "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 0\r\n\r\n";
            connection.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(head).unwrap().to_lowercase()
        });
        let session = Session::builder()
            .credentials("a", "b", None)
            .region("us-east-1")
            .endpoint_url(&endpoint)
            .build()
            .await
            .unwrap();
        let request = PutRequest {
            bucket: "bucket".into(),
            key: "key".into(),
            body: "bytes".into(),
            ..PutRequest::default()
        };
        session.client().put(request).await.unwrap();
        server.await.unwrap()
    }

    #[tokio::test]
    async fn the_bytes_of_a_body_are_signed_where_they_could_be_changed_on_their_way() {
        let here = put_to("127.0.0.1").await;
        assert!(here.contains("x-amz-content-sha256: unsigned-payload"), "{here}");
        let signed_headers = here.split_once("signedheaders=").unwrap().1.split_once(',').unwrap().0;
        assert!(
            signed_headers.contains("x-amz-checksum-crc64nvme"),
            "what they are held to is signed: {here}"
        );
        // Linux takes it for this machine, and nothing else does.
        let elsewhere = put_to("0.0.0.0").await;
        let sha256 = "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9";
        assert!(elsewhere.contains(&format!("x-amz-content-sha256: {sha256}")), "{elsewhere}");
    }

    #[tokio::test]
    async fn an_endpoint_that_nobody_listens_at_is_unreachable() {
        let session = Session::builder()
            .credentials("a", "b", None)
            .region("us-east-1")
            .endpoint_url("http://127.0.0.1:1")
            .timeout(Duration::from_secs(2))
            .build()
            .await
            .unwrap();
        let error = session.client().head("bucket", "key", None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable, "{}", error.report());
        assert!(error.report().contains("refused"), "the cause is named: {}", error.report());
    }
}
