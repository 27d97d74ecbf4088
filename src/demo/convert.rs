//! Between the wire's types and ours. Pure.

use std::collections::BTreeMap;
use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use s3s::dto::{self, ETagCondition, Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::base::ETag;
use crate::error::{Error, Kind};
use crate::s3::{Attributes, Checksum, ChecksumAlgorithm, Condition, Metadata, ObjectInfo};

/// S3's answer for an error of the store: its own code where it has one, else the code its kind stands for.
pub(super) fn failure(error: &Error) -> S3Error {
    let (code, status) = code_of(error.kind());
    let code = error.code().unwrap_or(code);
    let code: S3ErrorCode = code.parse().unwrap_or(S3ErrorCode::InternalError);
    let status = error
        .status()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .or_else(|| code.status_code())
        .unwrap_or(status);
    let mut answer = S3Error::with_message(code, error.message().to_owned());
    answer.set_status_code(status);
    answer
}

fn code_of(kind: Kind) -> (&'static str, StatusCode) {
    match kind {
        Kind::NotFound => ("NoSuchKey", StatusCode::NOT_FOUND),
        Kind::NoSuchBucket => ("NoSuchBucket", StatusCode::NOT_FOUND),
        Kind::AlreadyExists | Kind::Stale => ("PreconditionFailed", StatusCode::PRECONDITION_FAILED),
        Kind::Conflict => ("ConditionalRequestConflict", StatusCode::CONFLICT),
        Kind::AccessDenied | Kind::NotPermitted | Kind::ReadOnly => ("AccessDenied", StatusCode::FORBIDDEN),
        Kind::Credentials => ("InvalidAccessKeyId", StatusCode::FORBIDDEN),
        Kind::Archived => ("InvalidObjectState", StatusCode::FORBIDDEN),
        Kind::InvalidRange => ("InvalidRange", StatusCode::RANGE_NOT_SATISFIABLE),
        Kind::Unsupported => ("NotImplemented", StatusCode::NOT_IMPLEMENTED),
        Kind::InvalidArgument => ("InvalidArgument", StatusCode::BAD_REQUEST),
        Kind::NameTooLong => ("KeyTooLongError", StatusCode::BAD_REQUEST),
        Kind::TooLarge => ("EntityTooLarge", StatusCode::BAD_REQUEST),
        Kind::NotEmpty => ("BucketNotEmpty", StatusCode::CONFLICT),
        Kind::Throttled => ("SlowDown", StatusCode::SERVICE_UNAVAILABLE),
        Kind::TimedOut | Kind::Unreachable => ("ServiceUnavailable", StatusCode::SERVICE_UNAVAILABLE),
        Kind::Corrupt => ("BadDigest", StatusCode::BAD_REQUEST),
        Kind::NoSpace
        | Kind::NoAttribute
        | Kind::AttributeTooLarge
        | Kind::IsADirectory
        | Kind::NotADirectory
        | Kind::CrossDevice
        | Kind::BadHandle
        | Kind::Server
        | Kind::Local
        | Kind::Internal => ("InternalError", StatusCode::INTERNAL_SERVER_ERROR),
    }
}

pub(super) fn etag(tag: &ETag) -> dto::ETag {
    dto::ETag::Strong(tag.as_str().to_owned())
}

pub(super) fn our_etag(tag: &dto::ETag) -> ETag {
    ETag::new(tag.value())
}

pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

/// Whether a tag satisfies `If-Match`, or hits `If-None-Match`.
pub(super) fn hits(condition: &ETagCondition, tag: &ETag) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(wanted) => our_etag(wanted) == *tag,
    }
}

/// A write's condition. S3 itself has no more than these two.
pub(super) fn write_condition(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::Any),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (Some(ETagCondition::ETag(tag)), None) => Ok(Condition::Matches(our_etag(tag))),
        _ => Err(s3_error!(NotImplemented, "A write takes If-Match with an ETag or If-None-Match with *")),
    }
}

/// A condition from a header that the operation's own type does not carry.
pub(super) fn header_condition(headers: &HeaderMap, name: &str) -> S3Result<Option<ETagCondition>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    ETagCondition::parse_http_header(value.as_bytes())
        .map(Some)
        .map_err(|_| s3_error!(InvalidArgument, "{name} is not an ETag"))
}

/// The names of the checksum headers, by algorithm.
pub(super) const CHECKSUM_HEADERS: [(ChecksumAlgorithm, &str); 5] = [
    (ChecksumAlgorithm::Crc64Nvme, "x-amz-checksum-crc64nvme"),
    (ChecksumAlgorithm::Crc32, "x-amz-checksum-crc32"),
    (ChecksumAlgorithm::Crc32c, "x-amz-checksum-crc32c"),
    (ChecksumAlgorithm::Sha1, "x-amz-checksum-sha1"),
    (ChecksumAlgorithm::Sha256, "x-amz-checksum-sha256"),
];

/// The checksum among headers or trailers.
pub(super) fn checksum(headers: &HeaderMap) -> Option<Checksum> {
    CHECKSUM_HEADERS.iter().find_map(|(algorithm, name)| {
        let value = headers.get(*name)?.to_str().ok()?.trim().to_owned();
        Some(Checksum { algorithm: *algorithm, value })
    })
}

/// Spread over the fields that outputs have. Whole-object checksums have no part count behind a dash.
pub(super) fn checksum_fields(checksums: &[Checksum]) -> dto::Checksum {
    let mut fields = dto::Checksum::default();
    for checksum in checksums {
        let kind = if checksum.value.contains('-') {
            dto::ChecksumType::COMPOSITE
        } else {
            dto::ChecksumType::FULL_OBJECT
        };
        let field = match checksum.algorithm {
            ChecksumAlgorithm::Crc64Nvme => &mut fields.checksum_crc64nvme,
            ChecksumAlgorithm::Crc32 => &mut fields.checksum_crc32,
            ChecksumAlgorithm::Crc32c => &mut fields.checksum_crc32c,
            ChecksumAlgorithm::Sha1 => &mut fields.checksum_sha1,
            ChecksumAlgorithm::Sha256 => &mut fields.checksum_sha256,
            ChecksumAlgorithm::Md5 => continue,
        };
        *field = Some(checksum.value.clone());
        fields.checksum_type = Some(dto::ChecksumType::from_static(kind));
    }
    fields
}

/// The attributes that a Put, Copy or CreateMultipartUpload names; their inputs share these fields.
macro_rules! attributes {
    ($input:expr) => {{
        let input = &$input;
        $crate::s3::Attributes {
            content_type: input.content_type.clone(),
            cache_control: input.cache_control.clone(),
            content_encoding: input.content_encoding.clone().filter(|coding| !coding.is_empty()),
            content_disposition: input.content_disposition.clone(),
            content_language: input.content_language.clone(),
            expires: input.expires.as_ref().and_then($crate::demo::convert::http_date),
            redirect: input.website_redirect_location.clone(),
            storage_class: $crate::demo::convert::our_class(
                input.storage_class.as_ref().map(|class| class.as_str()),
            )?,
            metadata: $crate::demo::convert::our_metadata(input.metadata.as_ref()),
            tags: $crate::demo::convert::header_tags(input.tagging.as_deref())?,
            acl: input.acl.as_ref().map(|acl| acl.as_str().to_owned()),
            encryption: $crate::demo::encryption::asked(
                input.server_side_encryption.as_ref().map(|algorithm| algorithm.as_str()),
                input.ssekms_key_id.as_deref(),
                input.bucket_key_enabled,
                &$crate::demo::encryption::customer_key!(input),
            )?,
        }
    }};
}
pub(super) use attributes;

/// A storage class, if it is one of S3's.
pub(super) fn our_class(class: Option<&str>) -> S3Result<Option<String>> {
    const CLASSES: [&str; 8] = [
        "STANDARD",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER",
        "GLACIER_IR",
        "DEEP_ARCHIVE",
        "REDUCED_REDUNDANCY",
    ];
    match class {
        Some(class) if !CLASSES.contains(&class) => {
            Err(s3_error!(InvalidStorageClass, "The storage class you specified is not valid"))
        }
        class => Ok(class.map(str::to_owned)),
    }
}

/// A time as a header carries it.
pub(super) fn http_date(time: &Timestamp) -> Option<String> {
    let mut text = Vec::new();
    time.format(TimestampFormat::HttpDate, &mut text).ok()?;
    String::from_utf8(text).ok()
}

pub(super) fn our_metadata(metadata: Option<&dto::Metadata>) -> Metadata {
    let pairs = metadata.into_iter().flatten();
    pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
}

fn metadata(metadata: &Metadata) -> Option<dto::Metadata> {
    let pairs = metadata.iter().map(|(name, value)| (name.clone(), value.clone()));
    (!metadata.is_empty()).then(|| pairs.collect())
}

/// Tags as the `x-amz-tagging` header carries them: a query string.
pub(super) fn header_tags(header: Option<&str>) -> S3Result<BTreeMap<String, String>> {
    let mut tags = BTreeMap::new();
    for pair in header.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        tags.insert(query_text(name)?, query_text(value)?);
    }
    check_tags(&tags)?;
    Ok(tags)
}

fn query_text(text: &str) -> S3Result<String> {
    let text = text.replace('+', " ");
    let text = percent_decode_str(&text).decode_utf8();
    Ok(text.map_err(|_| s3_error!(InvalidArgument, "A tag is not UTF-8"))?.into_owned())
}

pub(super) fn our_tags(set: &[dto::Tag]) -> S3Result<BTreeMap<String, String>> {
    let mut tags = BTreeMap::new();
    for tag in set {
        let name = tag.key.clone().unwrap_or_default();
        if tags.insert(name, tag.value.clone().unwrap_or_default()).is_some() {
            return Err(s3_error!(InvalidTag, "Cannot provide multiple Tags with the same key"));
        }
    }
    check_tags(&tags)?;
    Ok(tags)
}

fn check_tags(tags: &BTreeMap<String, String>) -> S3Result<()> {
    if tags.len() > 10 {
        return Err(s3_error!(InvalidTag, "Object tags cannot be greater than 10"));
    }
    let fits = |(name, value): (&String, &String)| {
        (1..=128).contains(&name.chars().count()) && value.chars().count() <= 256
    };
    if !tags.iter().all(fits) {
        return Err(s3_error!(InvalidTag, "A tag's name has 1 to 128 characters, its value up to 256"));
    }
    Ok(())
}

pub(super) fn tag_set(tags: BTreeMap<String, String>) -> dto::TagSet {
    tags.into_iter().map(|(name, value)| dto::Tag { key: Some(name), value: Some(value) }).collect()
}

/// HEAD's answer; GET's has the same fields.
pub(super) fn head_output(info: &ObjectInfo, with_checksums: bool) -> dto::HeadObjectOutput {
    let Attributes { storage_class, .. } = &info.attributes;
    let checksums = if with_checksums { checksum_fields(&info.checksums) } else { dto::Checksum::default() };
    let told = super::encryption::told(info.attributes.encryption.as_ref());
    dto::HeadObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        cache_control: info.attributes.cache_control.clone(),
        checksum_crc32: checksums.checksum_crc32,
        checksum_crc32c: checksums.checksum_crc32c,
        checksum_crc64nvme: checksums.checksum_crc64nvme,
        checksum_sha1: checksums.checksum_sha1,
        checksum_sha256: checksums.checksum_sha256,
        checksum_type: checksums.checksum_type,
        content_disposition: info.attributes.content_disposition.clone(),
        content_encoding: info.attributes.content_encoding.clone(),
        content_language: info.attributes.content_language.clone(),
        content_length: i64::try_from(info.size).ok(),
        content_type: Some(
            info.attributes.content_type.clone().unwrap_or_else(|| "binary/octet-stream".to_owned()),
        ),
        bucket_key_enabled: told.bucket_key,
        e_tag: Some(etag(&info.etag)),
        expires: info
            .attributes
            .expires
            .as_deref()
            .and_then(|text| Timestamp::parse(TimestampFormat::HttpDate, text).ok()),
        last_modified: Some(timestamp(info.last_modified)),
        metadata: metadata(&info.attributes.metadata),
        restore: info.restore.clone(),
        server_side_encryption: told.algorithm.map(dto::ServerSideEncryption::from_static),
        sse_customer_algorithm: told.customer_algorithm,
        sse_customer_key_md5: told.customer_key_md5,
        ssekms_key_id: told.kms_key_id,
        // S3 leaves the header out for the class that is the rule.
        storage_class: storage_class.clone().filter(|class| class != "STANDARD").map(dto::StorageClass::from),
        version_id: info.version_id.clone(),
        website_redirect_location: info.attributes.redirect.clone(),
        ..dto::HeadObjectOutput::default()
    }
}

/// Keys in an XML answer, as the client asked for them.
#[derive(Clone, Copy)]
pub(super) struct Encoding {
    url: bool,
}

impl Encoding {
    pub(super) fn of(asked: Option<&dto::EncodingType>) -> S3Result<Self> {
        match asked.map(dto::EncodingType::as_str) {
            None | Some("") => Ok(Self { url: false }),
            Some("url") => Ok(Self { url: true }),
            Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
        }
    }

    pub(super) fn text(self, text: &str) -> String {
        const ENCODED: AsciiSet =
            NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
        if self.url { utf8_percent_encode(text, &ENCODED).to_string() } else { text.to_owned() }
    }

    pub(super) fn echo(self) -> Option<dto::EncodingType> {
        self.url.then(|| dto::EncodingType::from_static(dto::EncodingType::URL))
    }
}

/// A page size as S3 reads it: 1,000 where none is given or it is larger.
pub(super) fn page_size(asked: Option<i32>) -> S3Result<u16> {
    match asked {
        None => Ok(1000),
        Some(size) if size < 0 => Err(s3_error!(InvalidArgument, "A page size cannot be negative")),
        Some(size) => Ok(u16::try_from(size.min(1000)).unwrap_or(1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_the_stores_code_and_fall_back_on_the_kind() {
        let answer = failure(&Error::s3(Kind::NotFound, "NoSuchUpload", "gone"));
        assert_eq!(
            (answer.code().as_str(), answer.status_code()),
            ("NoSuchUpload", Some(StatusCode::NOT_FOUND))
        );
        let answer = failure(&Error::new(Kind::Stale, "changed"));
        let expected = ("PreconditionFailed", Some(StatusCode::PRECONDITION_FAILED));
        assert_eq!((answer.code().as_str(), answer.status_code()), expected);
        let answer = failure(&Error::s3(Kind::Unsupported, "SomethingElse", "no"));
        let expected = ("SomethingElse", Some(StatusCode::NOT_IMPLEMENTED));
        assert_eq!((answer.code().as_str(), answer.status_code()), expected);
    }

    #[test]
    fn tags_of_a_header_are_decoded_and_bounded() {
        let tags = header_tags(Some("a=1&b+c=x%20y&d")).unwrap();
        let expected = [("a", "1"), ("b c", "x y"), ("d", "")];
        assert!(tags.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected));
        let many: Vec<String> = (0..11).map(|n| format!("t{n}=1")).collect();
        assert!(header_tags(Some(&many.join("&"))).is_err());
    }

    #[test]
    fn keys_are_encoded_on_demand() {
        let url = Encoding::of(Some(&dto::EncodingType::from_static("url"))).unwrap();
        assert_eq!(url.text("a b/ż&+"), "a%20b/%C5%BC%26%2B");
        assert_eq!(Encoding::of(None).unwrap().text("a b"), "a b");
        assert!(Encoding::of(Some(&dto::EncodingType::from_static("hex"))).is_err());
    }

    #[test]
    fn a_write_takes_one_condition() {
        let tag = ETagCondition::ETag(dto::ETag::Strong("x".to_owned()));
        assert_eq!(write_condition(None, Some(&ETagCondition::Any)).unwrap(), Condition::Absent);
        assert_eq!(write_condition(Some(&tag), None).unwrap(), Condition::Matches(ETag::new("x")));
        assert!(write_condition(None, Some(&tag)).is_err());
        assert!(write_condition(Some(&tag), Some(&ETagCondition::Any)).is_err());
    }
}
