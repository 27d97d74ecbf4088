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
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use serde::Serialize;

use super::client::{Client, ClientSettings};
use super::credentials::{HttpSettings, Refreshing, Shared, env, load};
use super::failure::region_hint;
use super::patience::WatchedClient;
use super::resource::Bucket;
use super::settings::{PathStyle, Secret, SessionConfig};
use super::store::Store;
use crate::error::{Error, Kind, Result};
use crate::stats::Stats;

/// Signed for where nothing names a region; S3-compatible servers mostly take any.
const DEFAULT_REGION: &str = "us-east-1";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// First try and four more, with backoff and the SDK's token bucket over all of a client's requests.
const ATTEMPTS_MAX: u32 = 5;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// An identity and its defaults. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    config: SessionConfig,
    sdk: SdkConfig,
    credentials: Option<Arc<Refreshing>>,
    http: Arc<HttpSettings>,
    stats: Arc<Stats>,
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

/// One value of a session, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Described {
    pub value: String,
    /// `configuration`, `environment AWS_REGION`, `profile`, `default`, ...
    pub source: String,
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
        let sdk = load(&self.config, &http).await;
        let credentials = match self.config.no_sign_request {
            Some(true) => None,
            _ => Some(Arc::new(Refreshing::new(self.config.clone(), Arc::clone(&http), &sdk))),
        };
        Ok(Session {
            inner: Arc::new(Inner {
                name: self.name.unwrap_or_else(|| "default".to_owned()),
                config: self.config,
                sdk,
                credentials,
                http,
                stats: self.stats.unwrap_or_default(),
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
        self.inner.sdk.region().map_or_else(|| DEFAULT_REGION.to_owned(), |r| r.as_ref().to_owned())
    }

    /// The endpoint set for this session; `None` is AWS itself.
    pub fn endpoint_url(&self) -> Option<String> {
        match &self.inner.config.endpoint_url {
            Some(url) => Some(url.clone()),
            None => {
                s3_endpoint_from_environment().or_else(|| self.inner.sdk.endpoint_url().map(str::to_owned))
            }
        }
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

    /// The bucket `name`: boto3's resource view. Asks nothing yet; its region is found out when it is needed.
    pub fn bucket(&self, name: &str) -> Bucket {
        Bucket::of(self.clone(), name)
    }

    /// The region of a bucket; `None` where the endpoint does not tell.
    pub async fn region_of(&self, bucket: &str) -> Result<Option<String>> {
        if let Some(region) = self.inner.regions.lock().unwrap_or_else(PoisonError::into_inner).get(bucket) {
            return Ok(Some(region.clone()));
        }
        // An endpoint of one's own has the region that was set for it, whatever it says of itself.
        if self.endpoint_url().is_some() {
            return Ok(Some(self.region()));
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
        if self.endpoint_url().is_some() {
            return Err(Error::new(Kind::Unsupported, "an endpoint of one's own has no STS to ask"));
        }
        let config = aws_sdk_sts::config::Builder::from(&self.inner.sdk)
            .region(Region::new(self.region()))
            .credentials_provider(SharedCredentialsProvider::new(Shared(Arc::clone(credentials))))
            .build();
        let answer = aws_sdk_sts::Client::from_conf(config).get_caller_identity().send().await;
        let answer = answer.map_err(|error| {
            let kind = match error.as_service_error() {
                Some(_) => Kind::Credentials,
                None => Kind::Unreachable,
            };
            Error::new(kind, "STS did not say who the caller is").with_source(error).on(
                "GetCallerIdentity",
                "",
                "",
            )
        })?;
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
            None => (described("none: requests are not signed", "configuration"), None, None),
            Some(refreshing) => match refreshing.current().await {
                Ok(found) => {
                    let provider = match config.access_key_id {
                        Some(_) => "configuration".to_owned(),
                        None => provider_name(&found),
                    };
                    let expires = found.expiry().and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
                    (described(&masked(found.access_key_id()), &provider), expires.map(|d| d.as_secs()), None)
                }
                Err(error) => {
                    let why = aws_smithy_types::error::display::DisplayErrorContext(&error).to_string();
                    (described("none found", "default chain"), None, Some(why))
                }
            },
        };
        SessionDescription {
            name: self.inner.name.clone(),
            profile: config
                .profile
                .as_deref()
                .map(|p| described(p, "configuration"))
                .or_else(|| env("AWS_PROFILE").map(|p| described(&p, "environment AWS_PROFILE"))),
            region: match &config.region {
                Some(region) => described(region, "configuration"),
                None => {
                    from_environment(&["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| {
                        match self.inner.sdk.region() {
                            Some(region) => described(region.as_ref(), "profile"),
                            None => described(DEFAULT_REGION, "default"),
                        }
                    })
                }
            },
            endpoint: match &config.endpoint_url {
                Some(url) => described(url, "configuration"),
                None => from_environment(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]).unwrap_or_else(|| {
                    match self.inner.sdk.endpoint_url() {
                        Some(url) => described(url, "profile"),
                        None => described("AWS", "default"),
                    }
                }),
            },
            credentials,
            expires,
            problem,
        }
    }

    fn make_client(&self, region: &str) -> Client {
        let inner = &self.inner;
        let endpoint = self.endpoint_url();
        let path_style = match inner.config.path_style.unwrap_or_default() {
            PathStyle::On => true,
            PathStyle::Off => false,
            PathStyle::Auto => endpoint.is_some(),
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(inner.timeout)
            .build();
        let (http, silence) = (Arc::clone(&inner.http), ATTEMPT_TIMEOUT.min(inner.timeout));
        let make_http = move || SharedHttpClient::new(WatchedClient { inner: http.client(), silence });
        let mut config = aws_sdk_s3::config::Builder::from(&inner.sdk)
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .force_path_style(path_style)
            .http_client(make_http())
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX))
            // It misfires on slow readers and silent copies; our own deadlines stand in for it.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // `Refreshing` keeps them, and can be told to let go.
            .identity_cache(IdentityCache::no_cache())
            .interceptor(Throttling(Arc::clone(&inner.stats)));
        config.set_endpoint_url(endpoint);
        config = match &inner.credentials {
            Some(credentials) => {
                config.credentials_provider(SharedCredentialsProvider::new(Shared(Arc::clone(credentials))))
            }
            None => config.allow_no_auth(),
        };
        Client::new(
            config.build(),
            Box::new(make_http),
            ClientSettings {
                region: region.to_owned(),
                requester_pays: inner.config.requester_pays.unwrap_or(false),
                timeout: inner.timeout,
            },
            inner.credentials.clone(),
            Arc::clone(&inner.stats),
        )
    }
}

/// Counts answers that say to slow down, those that the SDK's own retries hide among them.
#[derive(Debug)]
struct Throttling(Arc<Stats>);

#[dyn_dispatch_hint]
impl Intercept for Throttling {
    fn name(&self) -> &'static str {
        "throttling"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        if matches!(context.response().status().as_u16(), 429 | 503) {
            self.0.throttled.add(1);
        }
        Ok(())
    }
}

fn provider_name(credentials: &Credentials) -> String {
    let debug = format!("{credentials:?}");
    let name = debug.split("provider_name: \"").nth(1).and_then(|rest| rest.split('"').next());
    match name.unwrap_or("default chain") {
        "EnvironmentVariable" => "environment AWS_ACCESS_KEY_ID".to_owned(),
        name => name.to_owned(),
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

fn described(value: &str, source: &str) -> Described {
    Described { value: value.to_owned(), source: source.to_owned() }
}

fn from_environment(names: &[&str]) -> Option<Described> {
    names.iter().find_map(|name| env(name).map(|value| described(&value, &format!("environment {name}"))))
}

fn s3_endpoint_from_environment() -> Option<String> {
    env("AWS_ENDPOINT_URL_S3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_keys_are_shown_in_part() {
        assert_eq!(masked("AKIAIOSFODNN7EXAMPLE"), "AKIA…MPLE");
        assert_eq!(masked("short"), "****");
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

    #[tokio::test]
    async fn an_endpoint_that_nobody_listens_at_is_unreachable() {
        let session = Session::builder()
            .credentials("a", "b", None)
            .region("us-east-1")
            .endpoint_url("http://127.0.0.1:1")
            .timeout(Duration::from_secs(5))
            .build()
            .await
            .unwrap();
        let error = session.client().head("bucket", "key", None).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Unreachable | Kind::TimedOut), "{}", error.report());
    }
}
