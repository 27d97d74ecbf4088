//! What the SDK calls an error, as ours: the one place that knows both.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use crate::base::{Clock, SystemClock};
use crate::error::{Error, Kind};
use crate::s3::Condition;

/// Turns an SDK error into ours. `condition` is what the request demanded of its target.
pub(super) fn error_of<E>(error: SdkError<E, HttpResponse>, condition: &Condition) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    match &error {
        SdkError::ServiceError(service) => {
            let raw = service.raw();
            let status = raw.status().as_u16();
            let meta = service.err().meta();
            let code = meta.code().unwrap_or("").to_owned();
            let kind = match status {
                // The server did it, or says so, in words that the SDK cannot read.
                200..300 if code.is_empty() => Kind::Corrupt,
                _ if is_about_the_keys(&code, meta.message()) => Kind::Credentials,
                _ => kind_of(&code, status, condition),
            };
            let mut message = meta.message().unwrap_or("").to_owned();
            if message.is_empty() {
                message = plain_words(kind, status).to_owned();
            }
            if code == "AuthorizationHeaderMalformed" {
                let body = String::from_utf8_lossy(raw.body().bytes().unwrap_or_default());
                message = format!("{message}; {}", region_advice(&message, &body, raw.headers()));
            } else if let Some(hint) = hint(&code, status, raw.headers()) {
                message = format!("{message}; {hint}");
            }
            let answer = Error::new(kind, message).with_answer(
                Some(status),
                raw.headers().get("x-amz-request-id"),
                raw.headers().get("x-amz-id-2"),
            );
            match (code.is_empty(), kind) {
                // How it could not be read is all there is to tell. Otherwise the SDK has but its own insides to show.
                (true, Kind::Corrupt) => answer.with_source(error),
                (true, _) => answer,
                (false, _) => answer.with_code(&code),
            }
        }
        SdkError::TimeoutError(_) => {
            Error::new(Kind::TimedOut, "the endpoint did not answer in time").with_source(error)
        }
        SdkError::DispatchFailure(failure) if failure.is_timeout() => {
            Error::new(Kind::TimedOut, "the endpoint did not answer in time").with_source(error)
        }
        SdkError::DispatchFailure(failure) if failure.is_io() => {
            // So rustls takes words that are not TLS.
            let words = match chain_of(std::error::Error::source(&error)).contains("InvalidContentType") {
                true => "the endpoint's port does not speak TLS, as https:// says; is it http://?",
                false => "the endpoint cannot be reached",
            };
            Error::new(Kind::Unreachable, words).with_source(error)
        }
        SdkError::DispatchFailure(failure) => {
            let chain = chain_of(failure.as_connector_error().map(|e| e as &dyn std::error::Error));
            if chain.contains("credentials") || chain.contains("identity") {
                Error::new(Kind::Credentials, "no credentials were found").with_source(error)
            } else {
                Error::new(Kind::Unreachable, "the request did not get through").with_source(error)
            }
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            let kind = if status >= 500 { Kind::Server } else { Kind::Corrupt };
            Error::new(kind, "the answer could not be read")
                .with_answer(Some(status), response.raw().headers().get("x-amz-request-id"), None)
                .with_source(error)
        }
        SdkError::ConstructionFailure(_) => {
            let chain = chain_of(std::error::Error::source(&error));
            if chain.contains("credentials") || chain.contains("identity") {
                Error::new(Kind::Credentials, "no credentials were found").with_source(error)
            } else {
                Error::new(Kind::InvalidArgument, "the request could not be made").with_source(error)
            }
        }
        _ => Error::new(Kind::Internal, "the request failed in an unknown way").with_source(error),
    }
}

/// The one table from S3's codes and statuses to kinds.
fn kind_of(code: &str, status: u16, condition: &Condition) -> Kind {
    match code {
        "NoSuchBucket" => Kind::NoSuchBucket,
        "NoSuchKey" | "NoSuchVersion" | "NoSuchUpload" | "NotFound" | "NoSuchTagSet" => Kind::NotFound,
        "BucketAlreadyExists" | "BucketAlreadyOwnedByYou" => Kind::AlreadyExists,
        "BucketNotEmpty" => Kind::NotEmpty,
        "PreconditionFailed" if *condition == Condition::Absent => Kind::AlreadyExists,
        "PreconditionFailed" => Kind::Stale,
        "ConditionalRequestConflict" | "OperationAborted" => Kind::Conflict,
        "InvalidObjectState" => Kind::Archived,
        "InvalidRange" => Kind::InvalidRange,
        "NotImplemented" | "MethodNotAllowed" | "UnsupportedOperation" => Kind::Unsupported,
        "KeyTooLongError" | "KeyTooLong" => Kind::NameTooLong,
        "EntityTooLarge" => Kind::TooLarge,
        "QuotaExceeded" | "InsufficientStorage" => Kind::NoSpace,
        // Of one request alone, as Garage says of a key that its database cannot hold; or of all.
        "ServiceUnavailable" => Kind::Server,
        "SlowDown" | "TooManyRequests" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded" => {
            Kind::Throttled
        }
        "RequestTimeout" => Kind::TimedOut,
        "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" => Kind::Corrupt,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed"
        | "AuthorizationHeaderMalformed" => Kind::Credentials,
        _ => match status {
            // Some requests fail after S3 began to answer them.
            200..300 => Kind::Server,
            403 | 401 => Kind::AccessDenied,
            404 => Kind::NotFound,
            405 | 501 => Kind::Unsupported,
            409 => Kind::Conflict,
            412 if *condition == Condition::Absent => Kind::AlreadyExists,
            412 => Kind::Stale,
            413 => Kind::TooLarge,
            416 => Kind::InvalidRange,
            408 => Kind::TimedOut,
            429 | 503 => Kind::Throttled,
            507 => Kind::NoSpace,
            500.. => Kind::Server,
            _ => Kind::InvalidArgument,
        },
    }
}

/// Garage has no code of its own for keys that it does not know, or that do not fit each other.
fn is_about_the_keys(code: &str, message: Option<&str>) -> bool {
    let words = ["Forbidden: Invalid signature", "Forbidden: No such key: "];
    code == "AccessDenied"
        && message.is_some_and(|message| words.iter().any(|words| message.starts_with(words)))
}

/// An answer to HEAD has no body, so no message.
fn plain_words(kind: Kind, status: u16) -> &'static str {
    match kind {
        Kind::NotFound => "not found",
        Kind::AccessDenied => "access denied",
        Kind::Stale => "the object is another version",
        Kind::AlreadyExists => "it exists already",
        Kind::Archived => "the object is archived",
        Kind::Corrupt => "the answer could not be read",
        _ if status >= 500 => "the server failed",
        _ => "the server refused the request",
    }
}

/// What the answer's headers add to its message.
fn hint(code: &str, status: u16, headers: &aws_smithy_runtime_api::http::Headers) -> Option<String> {
    match code {
        "RequestTimeTooSkewed" => Some(format!(
            "the server's clock says {}; set this machine's clock",
            headers.get("date").unwrap_or("?")
        )),
        "SignatureDoesNotMatch" => Some("the secret key does not belong to the access key".to_owned()),
        // An answer to HEAD has no code: headers are all there is.
        _ if matches!(status, 301 | 307 | 400 | 403) => {
            let region = headers.get("x-amz-bucket-region").map(|region| format!("{BUCKET_REGION}{region}"));
            let is_off = || code.is_empty() && status == 403 && is_off(headers);
            let clock = || format!("{CLOCKS_DIFFER}: it says {}", headers.get("date").unwrap_or("?"));
            region.or_else(|| is_off().then(clock))
        }
        _ => None,
    }
}

/// More than any two clocks that are kept right differ; S3 refuses what is signed 15 minutes away from its time.
const CLOCKS_MAX: Duration = Duration::from_secs(4 * 60);
const CLOCKS_DIFFER: &str = "the server's clock and this machine's differ";

fn is_off(headers: &aws_smithy_runtime_api::http::Headers) -> bool {
    let date = headers.get("date").and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
    let theirs = date.and_then(|date| SystemTime::try_from(date).ok());
    theirs.is_some_and(|theirs| {
        let ours = SystemClock.wall();
        ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours)).is_ok_and(|off| off > CLOCKS_MAX)
    })
}

/// Whether the server may have refused a signature for its time alone. The SDK has learned the server's time from the same
/// answer and signs with it from now on.
pub(super) fn may_be_about_the_time(error: &Error) -> bool {
    error.status() == Some(403) && error.code().is_none() && error.message().contains(CLOCKS_DIFFER)
}

const BUCKET_REGION: &str = "the bucket is in region ";

/// What to do about a signature for another region. Servers name theirs in a header, in an element of the answer or
/// in words: `expecting 'eu-west-1'`, `expected: '20261125/garage/s3/aws4_request'`.
fn region_advice(message: &str, body: &str, headers: &aws_smithy_runtime_api::http::Headers) -> String {
    let element = || Some(body.split_once("<Region>")?.1.split_once("</Region>")?.0.trim());
    let words = || {
        let said = message.rsplit_once("expect")?.1;
        let quoted = said.split(['\'', '"']).nth(1)?;
        // A whole scope, or the region alone.
        let mut scope = quoted.split('/');
        match (scope.next(), scope.next()) {
            (Some(_date), Some(region)) => Some(region),
            (region, None) => region,
            _ => None,
        }
    };
    let region = headers.get("x-amz-bucket-region").or_else(element).or_else(words);
    let is_region = |region: &&str| {
        !region.is_empty() && region.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    match region.filter(is_region) {
        Some(region) => format!("{BUCKET_REGION}{region}"),
        None => "name the region that the server expects with --region".to_owned(),
    }
}

/// The region that a redirect, or a complaint about the signature, names.
pub(super) fn region_hint(error: &Error) -> Option<String> {
    let (_, region) = error.message().rsplit_once(BUCKET_REGION)?;
    Some(region.to_owned())
}

pub(super) fn chain_of(mut error: Option<&dyn std::error::Error>) -> String {
    let mut text = String::new();
    while let Some(cause) = error {
        text.push_str(&cause.to_string());
        text.push(' ');
        error = cause.source();
    }
    text
}

/// Whether a fresh set of credentials may help.
pub(super) fn wants_new_credentials(error: &Error) -> bool {
    match error.code() {
        Some(code) => {
            matches!(code, "ExpiredToken" | "ExpiredTokenException" | "InvalidToken" | "TokenRefreshRequired")
        }
        // An answer to HEAD has no code. S3 says 400 to one that was signed with an expired token.
        None => error.status() == Some(400) && region_hint(error).is_none(),
    }
}

/// Whether the server refused the checksum rather than the request.
pub(super) fn refuses_checksum(error: &Error) -> bool {
    let status = matches!(error.status(), Some(400 | 501));
    let names_it = [error.message(), error.code().unwrap_or("")].iter().any(|text| {
        let text = text.to_ascii_lowercase();
        text.contains("checksum") || text.contains("x-amz-sdk") || text.contains("trailer")
    });
    let vague = matches!(error.code(), Some("InvalidRequest" | "NotImplemented" | "InvalidArgument"));
    // A checksum that does not match is news of damaged bytes, not of a server that lacks checksums.
    status && (names_it || vague) && !matches!(error.kind(), Kind::Corrupt)
}

pub(super) fn time_of(time: Option<&DateTime>) -> SystemTime {
    time.and_then(|t| SystemTime::try_from(*t).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ETag;

    #[test]
    fn codes_come_before_statuses() {
        let any = Condition::Any;
        assert_eq!(kind_of("NoSuchBucket", 404, &any), Kind::NoSuchBucket);
        assert_eq!(kind_of("InvalidObjectState", 403, &any), Kind::Archived);
        assert_eq!(kind_of("SlowDown", 503, &any), Kind::Throttled);
        assert_eq!(kind_of("", 403, &any), Kind::AccessDenied);
        assert_eq!(kind_of("", 404, &any), Kind::NotFound);
        assert_eq!(kind_of("", 418, &any), Kind::InvalidArgument);
        assert_eq!(kind_of("InternalError", 500, &any), Kind::Server);
    }

    #[test]
    fn keys_that_garage_does_not_accept_are_no_lack_of_permission() {
        for (message, keys) in [
            ("Forbidden: Invalid signature", true),
            ("Forbidden: No such key: GK31c2", true),
            ("Forbidden: Operation is not allowed for this key.", false),
            ("Access Denied", false),
        ] {
            assert_eq!(is_about_the_keys("AccessDenied", Some(message)), keys, "{message}");
        }
        assert!(!is_about_the_keys("AccessDenied", None));
    }

    #[test]
    fn a_failed_condition_tells_which_race_was_lost() {
        assert_eq!(kind_of("PreconditionFailed", 412, &Condition::Absent), Kind::AlreadyExists);
        assert_eq!(kind_of("", 412, &Condition::Matches(ETag::new("e"))), Kind::Stale);
    }

    #[test]
    fn a_bucket_elsewhere_tells_its_region() {
        let mut headers = aws_smithy_runtime_api::http::Headers::new();
        headers.insert("x-amz-bucket-region", "eu-west-1");
        for (code, status) in [("", 301), ("PermanentRedirect", 301), ("", 400), ("", 403)] {
            let error =
                Error::new(Kind::InvalidArgument, format!("no; {}", hint(code, status, &headers).unwrap()));
            assert_eq!(region_hint(&error).as_deref(), Some("eu-west-1"));
        }
        assert_eq!(hint("", 404, &headers), None);
        assert_eq!(region_hint(&Error::new(Kind::NotFound, "no")), None);
    }

    #[test]
    fn a_refused_head_may_be_about_the_time_where_clocks_differ() {
        for (date, about) in [("Wed, 21 Oct 2015 07:28:00 GMT", true), ("soon", false), ("", false)] {
            let mut headers = aws_smithy_runtime_api::http::Headers::new();
            headers.insert("date", date);
            let message = hint("", 403, &headers).unwrap_or_default();
            let error = Error::new(Kind::AccessDenied, message).with_answer(Some(403), None, None);
            assert_eq!(may_be_about_the_time(&error), about, "{date}");
        }
    }

    #[test]
    fn a_complaint_about_the_region_names_it_or_the_flag() {
        let none = aws_smithy_runtime_api::http::Headers::new();
        for (message, body, region) in [
            // Garage 2.5, MinIO and AWS, a server that says nothing.
            (
                "Authorization header malformed, unexpected scope: '20261125/us-east-1/s3/aws4_request', \
                 expected: '20261125/garage/s3/aws4_request'",
                "",
                Some("garage"),
            ),
            ("the region 'us-east-1' is wrong; expecting 'eu-west-1'", "", Some("eu-west-1")),
            ("malformed", "<Error><Region>fr-par</Region></Error>", Some("fr-par")),
            ("malformed", "", None),
            ("expected something else", "<Region></Region>", None),
        ] {
            let advice = region_advice(message, body, &none);
            let error = Error::new(Kind::Credentials, format!("{message}; {advice}"));
            assert_eq!(region_hint(&error).as_deref(), region, "{advice}");
            assert_eq!(advice.contains("--region"), region.is_none());
        }
    }

    #[test]
    fn only_a_refused_checksum_is_downgraded() {
        let refused =
            Error::s3(Kind::InvalidArgument, "InvalidRequest", "x-amz-checksum-crc64nvme is unknown")
                .with_answer(Some(400), None, None);
        assert!(refuses_checksum(&refused));
        let damaged = Error::s3(Kind::Corrupt, "BadDigest", "checksum did not match").with_answer(
            Some(400),
            None,
            None,
        );
        assert!(!refuses_checksum(&damaged));
        let denied = Error::s3(Kind::AccessDenied, "AccessDenied", "no").with_answer(Some(403), None, None);
        assert!(!refuses_checksum(&denied));
    }
}
