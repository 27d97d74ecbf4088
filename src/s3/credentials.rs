//! Credentials and the way to the network, as a session's clients share them.
//!
//! Owns: loading a session's profiles and environment into the SDK's terms, keeping and renewing its
//! credentials, and the one HTTP stack for S3, STS and SSO alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, FrameworkMetadata, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::config::StalledStreamProtectionConfig;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder as HttpBuilder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::settings::SessionConfig;
use crate::base::{Clock, SystemClock};
use crate::error::{Error, Kind, Result};

/// S3 closes idle connections after about 20 s; one that we close first is never found dead by a request.
const POOL_IDLE: Duration = Duration::from_secs(15);
/// Credentials are renewed this long before they expire.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// IMDS and SSO may take their time; the SDK's own 5 s is a known cause of failures at start.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(30);

/// The SDK's own view of a session: profiles, environment and the chain, over our HTTP stack.
pub(super) async fn load(config: &SessionConfig, http: &Arc<HttpSettings>) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.client())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    // The user agent says who asks.
    if let Ok(pailfs) = FrameworkMetadata::new("pailfs", Some(env!("CARGO_PKG_VERSION"))) {
        loader = loader.framework_metadata(pailfs);
    }
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if config.no_sign_request == Some(true) {
        loader = loader.no_credentials();
    } else if let (Some(access), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
        let token = config.session_token.as_ref().map(|token| token.reveal().to_owned());
        loader =
            loader.credentials_provider(Credentials::new(access, secret.reveal(), token, None, "pailfs"));
    }
    loader.load().await
}

/// Credentials that are kept until shortly before they expire, loaded by one caller at a time, and let go when
/// the server says they have expired.
pub(super) struct Refreshing {
    config: SessionConfig,
    http: Arc<HttpSettings>,
    state: tokio::sync::Mutex<RefreshingState>,
}

struct RefreshingState {
    provider: Option<SharedCredentialsProvider>,
    kept: Option<Credentials>,
}

impl std::fmt::Debug for Refreshing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refreshing(hidden)")
    }
}

impl Refreshing {
    pub(super) fn new(config: SessionConfig, http: Arc<HttpSettings>, sdk: &SdkConfig) -> Self {
        let provider = sdk.credentials_provider();
        Self { config, http, state: tokio::sync::Mutex::new(RefreshingState { provider, kept: None }) }
    }

    /// Forgets what is kept, and starts the chain anew: files may have been rewritten.
    pub(super) async fn invalidate(&self) {
        let fresh = load(&self.config, &self.http).await.credentials_provider();
        let mut state = self.state.lock().await;
        state.kept = None;
        state.provider = fresh;
    }

    pub(super) async fn current(&self) -> Result<Credentials, CredentialsError> {
        let mut state = self.state.lock().await;
        let now = SystemClock.wall();
        let lasts = |credentials: &Credentials, ahead: Duration| {
            credentials.expiry().is_none_or(|expiry| now + ahead < expiry)
        };
        if let Some(kept) = state.kept.as_ref().filter(|kept| lasts(kept, RENEW_BEFORE)) {
            return Ok(kept.clone());
        }
        let Some(provider) = state.provider.clone() else {
            return Err(CredentialsError::not_loaded("the session has no source of credentials"));
        };
        let loaded = tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await;
        match loaded.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(CREDENTIALS_TIMEOUT))) {
            Ok(fresh) => {
                state.kept = Some(fresh.clone());
                Ok(fresh)
            }
            // Renewal failed early: what is kept still works for a while.
            Err(error) => state.kept.clone().filter(|kept| lasts(kept, Duration::ZERO)).ok_or(error),
        }
    }
}

/// The SDK's handle on shared credentials.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<Refreshing>);

impl ProvideCredentials for Shared {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.0.current())
    }
}

/// One way to speak HTTP for S3, STS and SSO alike: proxies from the environment, own certificates if any.
pub(super) struct HttpSettings {
    pem: Option<Vec<u8>>,
}

impl HttpSettings {
    pub(super) fn new(ca_bundle: Option<&Path>) -> Result<Self> {
        let path = ca_bundle.map(Path::to_owned).or_else(|| env("AWS_CA_BUNDLE").map(PathBuf::from));
        let pem = match path {
            Some(path) => Some(std::fs::read(&path).map_err(|error| {
                Error::new(
                    Kind::InvalidArgument,
                    format!("cannot read the CA bundle {}: {error}", path.display()),
                )
            })?),
            None => None,
        };
        let settings = Self { pem };
        settings.tls()?;
        Ok(settings)
    }

    fn tls(&self) -> Result<TlsContext> {
        let mut store = TrustStore::default();
        if let Some(pem) = &self.pem {
            store = store.with_pem_certificate(pem.clone());
        }
        TlsContext::builder().with_trust_store(store).build().map_err(|error| {
            Error::new(Kind::InvalidArgument, "the CA bundle is not usable").with_source(error)
        })
    }

    /// A new pool of connections.
    pub(super) fn client(&self) -> SharedHttpClient {
        let tls = self.tls().unwrap_or_else(|_| TlsContext::default());
        HttpBuilder::new().build_with_connector_fn(move |settings, components| {
            let mut builder = Connector::builder()
                .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
                .tls_context(tls.clone())
                .proxy_config(ProxyConfig::from_env())
                .enable_tcp_nodelay(true)
                .pool_idle_timeout(POOL_IDLE);
            builder.set_connector_settings(settings.cloned());
            builder.set_sleep_impl(components.and_then(|c| c.sleep_impl()));
            builder.build()
        })
    }
}

#[allow(clippy::disallowed_methods)] // a session is what the environment says
pub(super) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
