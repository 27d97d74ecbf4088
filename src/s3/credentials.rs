//! Credentials, as a session's clients share them.
//!
//! Owns: loading a session's profiles and environment into the SDK's terms, and keeping and renewing its credentials.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, FrameworkMetadata, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::config::StalledStreamProtectionConfig;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::http::HttpSettings;
use super::profile::Profile;
use super::settings::SessionConfig;
use crate::base::Clock;

/// Credentials are renewed this long before they expire, or for the last quarter of their life.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// Between two loads in a row that do not help.
const PAUSE: Duration = Duration::from_secs(5);
/// The same where they last for less than that.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// IMDS and SSO may take their time; the SDK's own 5 s is a known cause of failures at start.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(30);

/// The SDK's own view of a session: profiles, environment and the chain, over our HTTP stack.
pub(super) async fn load(config: &SessionConfig, profile: &Profile, http: &Arc<HttpSettings>) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.client())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    // The user agent says who asks.
    if let Ok(pailfs) = FrameworkMetadata::new("pailfs", Some(env!("CARGO_PKG_VERSION"))) {
        loader = loader.framework_metadata(pailfs);
    }
    if let Some(name) = profile.named() {
        loader = loader.profile_name(name);
    }
    if let Some(region) = config.region.clone().or_else(|| Some(profile.region()?.value)) {
        loader = loader.region(Region::new(region));
    }
    if config.no_sign_request == Some(true) {
        loader = loader.no_credentials();
    } else if let (Some(access), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
        let token = config.session_token.as_ref().map(|token| token.reveal().to_owned());
        loader =
            loader.credentials_provider(Credentials::new(access, secret.reveal(), token, None, "pailfs"));
    }
    let sdk = loader.load().await;
    match profile.named() {
        Some(name) if config.no_sign_request != Some(true) => {
            let provider = SharedCredentialsProvider::new(chain_of_profile(name, &sdk, http));
            sdk.into_builder().credentials_provider(provider).build()
        }
        _ => sdk,
    }
}

/// The sources of credentials for a profile that was named: the default chain without the environment, whose keys
/// are somebody else's. So do boto3 and the AWS CLI.
fn chain_of_profile(name: &str, sdk: &SdkConfig, http: &Arc<HttpSettings>) -> CredentialsProviderChain {
    let around = ProviderConfig::without_region()
        .with_region(sdk.region().cloned())
        .with_use_fips(sdk.use_fips())
        .with_use_dual_stack(sdk.use_dual_stack())
        .with_http_client(http.client());
    let profile = ProfileFileCredentialsProvider::builder().profile_name(name).configure(&around).build();
    CredentialsProviderChain::first_try("Profile", profile)
        .or_else("EcsContainer", EcsCredentialsProvider::builder().configure(&around).build())
        .or_else("Ec2InstanceMetadata", ImdsCredentialsProvider::builder().configure(&around).build())
}

/// Starts a session's chain anew, as its files and environment are by now.
pub(super) type StartAnew =
    Box<dyn Fn() -> BoxFuture<'static, Option<SharedCredentialsProvider>> + Send + Sync>;

/// Credentials that are kept for all requests, renewed before they expire, and let go when the server says they have
/// expired.
///
/// Requests go on with what is kept while it is renewed behind their backs; only where nothing usable is left do they
/// wait, all for the same load. A source that fails, or gives what is about to expire, is asked seldom.
pub(super) struct Refreshing {
    start_anew: StartAnew,
    clock: Arc<dyn Clock>,
    state: Mutex<RefreshingState>,
}

struct RefreshingState {
    provider: Option<SharedCredentialsProvider>,
    /// The chain remembers the files it has read; the next load is to read them again.
    outdated: bool,
    kept: Option<Kept>,
    loading: Option<Load>,
    /// When the last load ended, and why without credentials if so.
    tried: Option<Instant>,
    failed: Option<Arc<CredentialsError>>,
    /// When the server last made us let go.
    let_go: Option<Instant>,
}

struct Kept {
    credentials: Credentials,
    since: Instant,
    renew_at: Option<SystemTime>,
    /// How long it is used whatever its expiry says: as long as it was said to last, within bounds.
    spared: Duration,
}

/// A load under way.
type Load = Shared<BoxFuture<'static, Result<Credentials, Arc<CredentialsError>>>>;

impl std::fmt::Debug for Refreshing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refreshing(hidden)")
    }
}

impl Refreshing {
    pub(super) fn new(
        provider: Option<SharedCredentialsProvider>,
        start_anew: StartAnew,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let state = RefreshingState {
            provider,
            outdated: false,
            kept: None,
            loading: None,
            tried: None,
            failed: None,
            let_go: None,
        };
        Arc::new(Self { start_anew, clock, state: Mutex::new(state) })
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The server says that what a request was signed with has expired. Lets go of it, unless it was replaced since
    /// the request was sent, or was replaced in vain a moment ago.
    pub(super) fn invalidate(&self, sent: Instant) {
        let mut state = self.lock();
        let now = self.clock.now();
        let replaced = state.kept.as_ref().is_some_and(|kept| kept.since > sent);
        if replaced || state.loading.is_some() || is_recent(state.let_go, now) {
            return;
        }
        state.let_go = Some(now);
        state.kept = None;
        state.failed = None;
        state.outdated = true;
    }

    pub(super) async fn current(self: &Arc<Self>) -> Result<Credentials, CredentialsError> {
        let load = {
            let mut state = self.lock();
            let (now, wall) = (self.clock.now(), self.clock.wall());
            // What was loaded a moment ago is the best there is, however soon it ends.
            let usable = |kept: &&Kept| {
                now.saturating_duration_since(kept.since) < kept.spared
                    || kept.credentials.expiry().is_none_or(|expiry| wall < expiry)
            };
            if let Some(kept) = state.kept.as_ref().filter(usable) {
                let credentials = kept.credentials.clone();
                let due = kept.renew_at.is_some_and(|at| at <= wall);
                if due && state.loading.is_none() && !is_recent(state.tried, now) {
                    drop(self.start(&mut state));
                }
                return Ok(credentials);
            }
            match (&state.loading, &state.failed) {
                (Some(load), _) => load.clone(),
                (None, Some(error)) if is_recent(state.tried, now) => return Err(told_again(error)),
                _ => self.start(&mut state),
            }
        };
        load.await.map_err(|error| told_again(&error))
    }

    /// In a task of its own: a request that gives up takes the load with it otherwise.
    fn start(self: &Arc<Self>, state: &mut RefreshingState) -> Load {
        let (provider, outdated) = (state.provider.clone(), std::mem::take(&mut state.outdated));
        let (loading, watching) = (Arc::clone(self), Arc::clone(self));
        let task = tokio::spawn(async move {
            let provider = if outdated { (loading.start_anew)().await } else { provider };
            loading.load(provider).await
        });
        let load = async move {
            task.await.unwrap_or_else(|died| {
                watching.lock().loading = None;
                Err(Arc::new(CredentialsError::unhandled(died)))
            })
        };
        let load = load.boxed().shared();
        state.loading = Some(load.clone());
        load
    }

    async fn load(
        &self,
        provider: Option<SharedCredentialsProvider>,
    ) -> Result<Credentials, Arc<CredentialsError>> {
        let loaded = match &provider {
            None => Err(CredentialsError::not_loaded("the session has no source of credentials")),
            Some(provider) => tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials())
                .await
                .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(CREDENTIALS_TIMEOUT))),
        };
        let loaded = loaded.map_err(Arc::new);
        let mut state = self.lock();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        state.loading = None;
        state.provider = provider;
        state.tried = Some(now);
        state.failed = loaded.as_ref().err().cloned();
        match &loaded {
            Ok(fresh) => {
                let lasts = |expiry: SystemTime| expiry.duration_since(wall).unwrap_or_default();
                let renew_at = fresh.expiry().map(|expiry| expiry - RENEW_BEFORE.min(lasts(expiry) / 4));
                let spared = fresh.expiry().map_or(PAUSE, lasts).clamp(PAUSE_MIN, PAUSE);
                state.kept = Some(Kept { credentials: fresh.clone(), since: now, renew_at, spared });
            }
            Err(error) => {
                tracing::warn!(error = %reason(error), "credentials were not renewed; trying again soon");
            }
        }
        loaded
    }

    fn lock(&self) -> MutexGuard<'_, RefreshingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_recent(then: Option<Instant>, now: Instant) -> bool {
    then.is_some_and(|then| now.saturating_duration_since(then) < PAUSE)
}

/// The same failure for one more who asked.
fn told_again(error: &Arc<CredentialsError>) -> CredentialsError {
    match **error {
        CredentialsError::CredentialsNotLoaded(_) => CredentialsError::not_loaded(reason(error)),
        CredentialsError::ProviderTimedOut(_) => CredentialsError::provider_timed_out(CREDENTIALS_TIMEOUT),
        CredentialsError::InvalidConfiguration(_) => CredentialsError::invalid_configuration(reason(error)),
        _ => CredentialsError::provider_error(reason(error)),
    }
}

/// Why, without the SDK's own preface.
pub(super) fn reason(error: &CredentialsError) -> String {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    let text = if causes.is_empty() { error.to_string() } else { causes.join(": ") };
    // The chain tells on lines of their own what it tried; a message has one.
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The SDK's handle on shared credentials.
#[derive(Debug)]
pub(super) struct Provider(pub(super) Arc<Refreshing>);

impl ProvideCredentials for Provider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.0.current())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ManualClock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Gives credentials named by their number, which last so long; or fails.
    #[derive(Debug)]
    struct Source {
        calls: AtomicUsize,
        lasts: Duration,
        clock: Arc<ManualClock>,
        fails: std::sync::atomic::AtomicBool,
        slow: std::sync::atomic::AtomicBool,
        go_on: tokio::sync::Notify,
    }

    impl ProvideCredentials for Source {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            future::ProvideCredentials::new(async move {
                if self.slow.load(Ordering::SeqCst) {
                    self.go_on.notified().await;
                }
                if self.fails.load(Ordering::SeqCst) {
                    return Err(CredentialsError::provider_error("down"));
                }
                let expiry = Some(self.clock.wall() + self.lasts);
                Ok(Credentials::new(format!("key-{number}"), "secret", None, expiry, "test"))
            })
        }
    }

    fn refreshing(lasts: u64) -> (Arc<Source>, Arc<ManualClock>, Arc<Refreshing>) {
        let clock = Arc::new(ManualClock::new());
        let source = Arc::new(Source {
            calls: AtomicUsize::new(0),
            lasts: Duration::from_secs(lasts),
            clock: Arc::clone(&clock),
            fails: false.into(),
            slow: false.into(),
            go_on: tokio::sync::Notify::new(),
        });
        let provider: Arc<dyn ProvideCredentials> = source.clone();
        let provider = SharedCredentialsProvider::new(provider);
        let again = {
            let provider = provider.clone();
            Box::new(move || futures::future::ready(Some(provider.clone())).boxed())
        };
        let refreshing = Refreshing::new(Some(provider), again, clock.clone());
        (source, clock, refreshing)
    }

    async fn key(refreshing: &Arc<Refreshing>) -> String {
        refreshing.current().await.unwrap().access_key_id().to_owned()
    }

    /// Lets the task behind run to where it waits.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn requests_go_on_with_what_is_kept_while_it_is_renewed_once() {
        let (source, clock, refreshing) = refreshing(3600);
        assert_eq!(key(&refreshing).await, "key-1");
        clock.advance(Duration::from_secs(3600 - 299));
        source.slow.store(true, Ordering::SeqCst);
        for _ in 0..10 {
            assert_eq!(key(&refreshing).await, "key-1");
            settle().await;
        }
        assert_eq!(source.calls.load(Ordering::SeqCst), 2, "one renewal, for ten requests");
        source.go_on.notify_one();
        settle().await;
        assert_eq!(key(&refreshing).await, "key-2");
    }

    #[tokio::test]
    async fn whoever_needs_credentials_waits_for_the_same_load() {
        let (source, _, refreshing) = refreshing(3600);
        source.slow.store(true, Ordering::SeqCst);
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let refreshing = Arc::clone(&refreshing);
                tokio::spawn(async move { key(&refreshing).await })
            })
            .collect();
        settle().await;
        // One who gives up does not take the others' load away.
        asking[0].abort();
        source.go_on.notify_one();
        for asked in asking.into_iter().skip(1) {
            assert_eq!(asked.await.unwrap(), "key-1");
        }
        assert_eq!(source.calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_source_that_fails_is_asked_seldom_and_what_is_kept_serves_to_its_end() {
        let (source, clock, refreshing) = refreshing(3600);
        key(&refreshing).await;
        source.fails.store(true, Ordering::SeqCst);
        clock.advance(Duration::from_secs(3500));
        for _ in 0..10 {
            assert_eq!(key(&refreshing).await, "key-1");
            settle().await;
        }
        assert_eq!(source.calls.load(Ordering::SeqCst), 2);
        clock.advance(Duration::from_secs(101));
        for _ in 0..10 {
            let error = refreshing.current().await.unwrap_err();
            assert!(reason(&error).contains("down"), "{error:?}");
        }
        assert_eq!(source.calls.load(Ordering::SeqCst), 3, "once more, now that nothing is left");
        source.fails.store(false, Ordering::SeqCst);
        clock.advance(PAUSE);
        assert_eq!(key(&refreshing).await, "key-4");
    }

    #[tokio::test]
    async fn short_lived_credentials_are_not_fetched_by_every_request() {
        for lasts in [0, 1, 60] {
            let (source, _, refreshing) = refreshing(lasts);
            for _ in 0..20 {
                key(&refreshing).await;
                settle().await;
            }
            assert_eq!(source.calls.load(Ordering::SeqCst), 1, "{lasts} s");
        }
    }

    #[tokio::test]
    async fn credentials_that_last_for_seconds_are_replaced_when_those_are_over() {
        let (source, clock, refreshing) = refreshing(3);
        for second in 0..12 {
            let expected = format!("key-{}", second / 3 + 1);
            assert_eq!(key(&refreshing).await, expected, "second {second}");
            settle().await;
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(source.calls.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn what_the_server_calls_expired_is_replaced_once_for_all_who_heard_it() {
        let (source, clock, refreshing) = refreshing(3600);
        let sent = clock.now();
        assert_eq!(key(&refreshing).await, "key-1");
        clock.advance(Duration::from_secs(1));
        for sent in [clock.now(), sent, sent] {
            refreshing.invalidate(sent);
            assert_eq!(key(&refreshing).await, "key-2");
        }
        // The fresh ones are no better: the source is left alone for a while.
        refreshing.invalidate(clock.now());
        assert_eq!(key(&refreshing).await, "key-2");
        assert_eq!(source.calls.load(Ordering::SeqCst), 2);
        clock.advance(PAUSE);
        refreshing.invalidate(clock.now());
        assert_eq!(key(&refreshing).await, "key-3");
    }
}
