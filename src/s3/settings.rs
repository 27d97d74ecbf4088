//! The settings of a session: plain data, with secrets that are never shown, and what the environment adds to them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::customer_key::KeyPlace;
use super::secret::Secret;

/// The settings of one session; what is `None` is left to the standard AWS chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// A profile of `~/.aws/config` and `~/.aws/credentials`.
    pub profile: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Secret>,
    pub session_token: Option<Secret>,
    pub region: Option<String>,
    pub endpoint_url: Option<String>,
    pub no_sign_request: Option<bool>,
    pub requester_pays: Option<bool>,
    /// A PEM file of certificates to trust beside the system's own.
    pub ca_bundle: Option<PathBuf>,
    pub path_style: Option<PathStyle>,
    /// Where the key is that everything is written and read with: SSE-C.
    pub sse_customer_key: Option<KeyPlace>,
}

impl SessionConfig {
    /// These settings, where `over` does not say otherwise.
    #[must_use]
    pub fn overridden_by(self, over: Self) -> Self {
        // Another identity replaces the whole identity: keys of one and a token of the other are neither's.
        let replaced =
            over.profile.is_some() || over.access_key_id.is_some() || over.no_sign_request == Some(true);
        let identity = if replaced { &over } else { &self };
        Self {
            profile: identity.profile.clone(),
            access_key_id: identity.access_key_id.clone(),
            secret_access_key: identity.secret_access_key.clone(),
            session_token: identity.session_token.clone(),
            no_sign_request: identity.no_sign_request.or(over.no_sign_request),
            region: over.region.or(self.region),
            endpoint_url: over.endpoint_url.or(self.endpoint_url),
            requester_pays: over.requester_pays.or(self.requester_pays),
            ca_bundle: over.ca_bundle.or(self.ca_bundle),
            path_style: over.path_style.or(self.path_style),
            sse_customer_key: over.sse_customer_key.or(self.sse_customer_key),
        }
    }

    /// Whether a secret is among the settings.
    pub fn holds_secrets(&self) -> bool {
        self.secret_access_key.is_some() || self.session_token.is_some()
    }

    /// What contradicts itself, in words.
    pub fn check(&self) -> Result<(), String> {
        match (&self.access_key_id, &self.secret_access_key) {
            (Some(_), None) => return Err("access_key_id needs secret_access_key beside it".to_owned()),
            (None, Some(_)) => return Err("secret_access_key needs access_key_id beside it".to_owned()),
            _ => {}
        }
        if self.session_token.is_some() && self.access_key_id.is_none() {
            return Err("session_token needs access_key_id and secret_access_key beside it".to_owned());
        }
        if self.access_key_id.is_some() && self.profile.is_some() {
            return Err("give either profile or access_key_id, not both".to_owned());
        }
        let identity = self.access_key_id.is_some() || self.profile.is_some();
        if self.no_sign_request == Some(true) && identity {
            return Err(
                "no_sign_request = true sends no identity, so profile and keys have no place".to_owned()
            );
        }
        if let Some(url) = &self.endpoint_url {
            check_endpoint(url)?;
        }
        Ok(())
    }
}

/// An endpoint's address may not carry an identity, which would end up in logs.
pub fn check_endpoint(url: &str) -> Result<(), String> {
    let Some((_, rest)) = url
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
    else {
        return Err("the endpoint's address has to begin with http:// or https://".to_owned());
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        return Err("the endpoint's address names no host".to_owned());
    }
    if host.contains('@') {
        return Err("the endpoint's address may not hold a user name or password".to_owned());
    }
    if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("the endpoint's address holds a space or control character".to_owned());
    }
    Ok(())
}

/// How a bucket is named in a request: in the path, or as a part of the host's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathStyle {
    /// In the path for an own endpoint, in the host's name for AWS.
    #[default]
    Auto,
    On,
    Off,
}

/// One value of a session, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Described {
    pub value: String,
    /// `configuration`, `environment AWS_REGION`, `profile work`, `default`, ...
    pub source: String,
}

/// A variable of the environment that says something.
#[allow(clippy::disallowed_methods)] // a session is what the environment says
pub(super) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
