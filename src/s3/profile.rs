//! A session's profile in the files of the AWS tools, and what it and the environment say together.
//!
//! Owns: which of the two is believed, for region and endpoint, and the words for where a value came from.
//! Does not own: credentials of a profile (`credentials`).
//!
//! A profile that somebody named for this session comes before the environment, which is there for all of them;
//! `AWS_PROFILE` is itself the environment and comes after what else is said there.

use aws_runtime::env_config::property::PropertiesKey;
use aws_runtime::env_config::section::EnvConfigSections;

use super::settings::{Described, env};
use super::settings::{SessionConfig, check_endpoint};
use crate::error::{Error, Kind, Result};

const DEFAULT_PROFILE: &str = "default";
const REGIONS: &[&str] = &["AWS_REGION", "AWS_DEFAULT_REGION"];
const ENDPOINTS: &[&str] = &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];

pub(super) struct Profile {
    sections: EnvConfigSections,
    /// For this session alone: not the default one, and not that of the environment.
    named: bool,
}

impl Profile {
    /// Reads the files. A profile that was asked for and is not there is refused, as boto3 does.
    pub(super) async fn read(config: &SessionConfig) -> Result<Self> {
        let own_identity = config.access_key_id.is_some() || config.no_sign_request == Some(true);
        let asked_for = config.profile.clone().or_else(|| env("AWS_PROFILE").filter(|_| !own_identity));
        // The SDK's types for files and environment have no stable name; their defaults are the real ones.
        let (fs, env, files) = (Default::default(), Default::default(), Default::default());
        let named = config.profile.clone().map(Into::into);
        let sections = match (aws_config::profile::load(&fs, &env, &files, named).await, &asked_for) {
            (Ok(sections), _) => sections,
            (Err(error), Some(name)) => {
                let text = format!("the AWS files cannot be read, so there is no profile {name:?}");
                return Err(Error::new(Kind::InvalidArgument, text).with_source(error));
            }
            (Err(error), None) => {
                tracing::warn!(%error, "the AWS files cannot be read; going on without them");
                EnvConfigSections::default()
            }
        };
        match &asked_for {
            Some(name) if name != DEFAULT_PROFILE && sections.get_profile(name).is_none() => {
                let from = if config.profile.is_some() { "" } else { " (from AWS_PROFILE)" };
                let text = format!(
                    "the profile {name:?}{from} does not exist in ~/.aws/config or ~/.aws/credentials; \
                     `pailfs sessions` lists those that do"
                );
                Err(Error::new(Kind::InvalidArgument, text))
            }
            _ => Ok(Self { sections, named: config.profile.is_some() }),
        }
    }

    /// What it is called; `default` where nothing names one.
    pub(super) fn selected(&self) -> &str {
        self.sections.selected_profile()
    }

    /// What it is called, where somebody named it for this session.
    pub(super) fn named(&self) -> Option<&str> {
        self.named.then(|| self.selected())
    }

    /// The region that the profile or the environment names.
    pub(super) fn region(&self) -> Option<Described> {
        let own = self.sections.get("region").map(|region| self.says(region));
        self.first_of(own, REGIONS)
    }

    /// The endpoint for S3 that the profile or the environment names, in the SDK's own order within each.
    pub(super) fn endpoint(&self) -> Result<Option<Described>> {
        if self.ignores_endpoints() {
            return Ok(None);
        }
        let own =
            self.endpoint_of_services("s3").or_else(|| Some(self.says(self.sections.get("endpoint_url")?)));
        let found = self.first_of(own, ENDPOINTS);
        if let Some(Described { value, source }) = &found {
            check_endpoint(value).map_err(|wrong| {
                Error::new(Kind::InvalidArgument, format!("the endpoint from {source}: {wrong}"))
            })?;
        }
        Ok(found)
    }

    fn first_of(&self, own: Option<Described>, variables: &[&str]) -> Option<Described> {
        let around = variables.iter().find_map(|name| {
            env(name).map(|value| Described { value, source: format!("environment {name}") })
        });
        if self.named { own.or(around) } else { around.or(own) }
    }

    /// An endpoint for STS alone.
    pub(super) fn endpoint_of_sts(&self) -> Option<Described> {
        let own = self.endpoint_of_services("sts");
        self.first_of(own, &["AWS_ENDPOINT_URL_STS"]).filter(|_| !self.ignores_endpoints())
    }

    /// `services = NAME`, and in `[services NAME]` an `endpoint_url` below `s3 =`.
    fn endpoint_of_services(&self, service: &str) -> Option<Described> {
        let services = self.sections.get("services")?;
        let key = PropertiesKey::builder()
            .section_key("services")
            .section_name(services)
            .property_name(service)
            .sub_property_name("endpoint_url")
            .build()
            .ok()?;
        let url = self.sections.other_sections().get(&key)?;
        let source = format!("services {services} of profile {}", self.selected());
        Some(Described { value: url.clone(), source })
    }

    fn ignores_endpoints(&self) -> bool {
        let asked = env("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        let own = self.sections.get("ignore_configured_endpoint_urls");
        asked.as_deref().or(own).is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
    }

    fn says(&self, value: &str) -> Described {
        Described { value: value.to_owned(), source: format!("profile {}", self.selected()) }
    }
}
