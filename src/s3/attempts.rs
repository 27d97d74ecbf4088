//! The attempts of a request, one by one: how long each may take, how often there is another, and what each ended with.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextMut, BeforeDeserializationInterceptorContextRef,
    BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::retries::RequestAttempts;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::retry::RetryConfig;

use super::answers;
use crate::stats::Stats;

pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// First try and two more, with backoff and the SDK's token bucket over all of a client's requests: enough for what goes
/// wrong once. What lasts is the client's to wait for.
const ATTEMPTS_MAX: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);

pub(super) fn retries() -> RetryConfig {
    RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX).with_initial_backoff(FIRST_BACKOFF)
}

/// Why connections fail at the moment, if they do: what the last attempt of any request ended with.
#[derive(Debug, Default)]
pub(super) struct Trouble(Mutex<Option<String>>);

impl Trouble {
    fn set(&self, why: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub(super) fn why(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sees each attempt of a request, where the SDK's own retries show the last one alone, or none once time is up:
/// counts retries and answers that say to slow down, remembers why there was no connection, and holds answers to be whole.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) stats: Arc<Stats>,
    pub(super) trouble: Arc<Trouble>,
}

#[dyn_dispatch_hint]
impl Intercept for Attempts {
    fn name(&self) -> &'static str {
        "attempts"
    }

    fn read_before_attempt(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if config.load::<RequestAttempts>().is_some_and(|attempt| attempt.attempts() > 1) {
            self.stats.retries.add(1);
        }
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        match context.output_or_error() {
            Some(Err(error)) if let Some(failure) = error.as_connector_error() => {
                // The last cause is the plainest: `Connection refused`, `failed to lookup address`.
                let mut cause: &dyn std::error::Error = failure;
                while let Some(deeper) = cause.source() {
                    cause = deeper;
                }
                self.trouble.set(Some(cause.to_string()));
            }
            Some(_) => self.trouble.set(None),
            None => {}
        }
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let is_get = config.load::<Metadata>().is_some_and(|what| what.name() == "GetObject");
        let answer = context.response_mut();
        if !(is_get && answer.status().is_success()) {
            answers::hold(answer);
        }
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if matches!(context.response().status().as_u16(), 429 | 503) {
            self.stats.throttled.add(1);
        }
        Ok(())
    }
}
