//! Which S3 operation a request is. Pure: the same table serves counts and fault rules.

use http::Method;
use percent_encoding::percent_decode_str;

/// A request by its API name, bucket and key; the last two are empty where it has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub name: &'static str,
    pub bucket: String,
    pub key: String,
}

/// Names a path-style request. What S3 does not have is `Unknown`.
pub fn operation(method: &Method, path: &str, query: &str, has_copy_source: bool) -> Operation {
    let path = path.strip_prefix('/').unwrap_or(path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let name = match (bucket.is_empty(), key.is_empty()) {
        (true, _) => on_service(method),
        (false, true) => on_bucket(method, query),
        (false, false) => on_object(method, query, has_copy_source),
    };
    Operation { name, bucket: decode(bucket), key: decode(key) }
}

fn on_service(method: &Method) -> &'static str {
    if method == Method::GET { "ListBuckets" } else { "Unknown" }
}

fn on_bucket(method: &Method, query: &str) -> &'static str {
    let has = |name| has_parameter(query, name);
    match *method {
        Method::HEAD => "HeadBucket",
        Method::GET if has("location") => "GetBucketLocation",
        Method::GET if has("versioning") => "GetBucketVersioning",
        Method::GET if has("versions") => "ListObjectVersions",
        Method::GET if has("uploads") => "ListMultipartUploads",
        Method::GET if has("list-type") => "ListObjectsV2",
        Method::GET if has_subresource(query) => "Unknown",
        Method::GET => "ListObjects",
        Method::PUT if has("versioning") => "PutBucketVersioning",
        Method::PUT if has_subresource(query) => "Unknown",
        Method::PUT => "CreateBucket",
        Method::DELETE if has_subresource(query) => "Unknown",
        Method::DELETE => "DeleteBucket",
        Method::POST if has("delete") => "DeleteObjects",
        _ => "Unknown",
    }
}

fn on_object(method: &Method, query: &str, has_copy_source: bool) -> &'static str {
    let has = |name| has_parameter(query, name);
    match *method {
        Method::HEAD => "HeadObject",
        Method::GET if has("tagging") => "GetObjectTagging",
        Method::GET if has("uploadId") => "ListParts",
        Method::GET if has_subresource(query) => "Unknown",
        Method::GET => "GetObject",
        Method::PUT if has("tagging") => "PutObjectTagging",
        Method::PUT if has("partNumber") && has_copy_source => "UploadPartCopy",
        Method::PUT if has("partNumber") => "UploadPart",
        Method::PUT if has_subresource(query) => "Unknown",
        Method::PUT if has_copy_source => "CopyObject",
        Method::PUT => "PutObject",
        Method::DELETE if has("tagging") => "DeleteObjectTagging",
        Method::DELETE if has("uploadId") => "AbortMultipartUpload",
        Method::DELETE => "DeleteObject",
        Method::POST if has("uploads") => "CreateMultipartUpload",
        Method::POST if has("uploadId") => "CompleteMultipartUpload",
        _ => "Unknown",
    }
}

/// A parameter without a value (`?acl`) names another part of the S3 API, not a variant of the plain request.
fn has_subresource(query: &str) -> bool {
    const OTHERS: [&str; 14] = [
        "acl",
        "policy",
        "cors",
        "lifecycle",
        "encryption",
        "website",
        "tagging",
        "notification",
        "replication",
        "object-lock",
        "attributes",
        "legal-hold",
        "retention",
        "torrent",
    ];
    OTHERS.iter().any(|name| has_parameter(query, name))
}

fn has_parameter(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next() == Some(name))
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_names_of_the_api() {
        let table = [
            ("GET", "/", "", "ListBuckets"),
            ("HEAD", "/b", "", "HeadBucket"),
            ("PUT", "/b", "", "CreateBucket"),
            ("PUT", "/b/", "", "CreateBucket"),
            ("DELETE", "/b", "", "DeleteBucket"),
            ("GET", "/b", "versioning", "GetBucketVersioning"),
            ("PUT", "/b", "versioning", "PutBucketVersioning"),
            ("GET", "/b", "location", "GetBucketLocation"),
            ("GET", "/b", "prefix=location", "ListObjects"),
            ("GET", "/b", "list-type=2&prefix=versions", "ListObjectsV2"),
            ("GET", "/b", "versions&prefix=x", "ListObjectVersions"),
            ("GET", "/b", "uploads", "ListMultipartUploads"),
            ("GET", "/b", "acl", "Unknown"),
            ("POST", "/b", "delete", "DeleteObjects"),
            ("HEAD", "/b/k", "", "HeadObject"),
            ("GET", "/b/k", "x-id=GetObject", "GetObject"),
            ("GET", "/b/k", "versionId=1", "GetObject"),
            ("GET", "/b/k", "tagging", "GetObjectTagging"),
            ("PUT", "/b/k", "tagging", "PutObjectTagging"),
            ("DELETE", "/b/k", "tagging", "DeleteObjectTagging"),
            ("PUT", "/b/k", "x-id=PutObject", "PutObject"),
            ("DELETE", "/b/k", "versionId=1", "DeleteObject"),
            ("POST", "/b/k", "uploads", "CreateMultipartUpload"),
            ("PUT", "/b/k", "partNumber=1&uploadId=u", "UploadPart"),
            ("POST", "/b/k", "uploadId=u", "CompleteMultipartUpload"),
            ("DELETE", "/b/k", "uploadId=u", "AbortMultipartUpload"),
            ("GET", "/b/k", "uploadId=u", "ListParts"),
            ("PATCH", "/b/k", "", "Unknown"),
        ];
        for (method, path, query, name) in table {
            let method: Method = method.parse().unwrap();
            assert_eq!(operation(&method, path, query, false).name, name, "{method} {path}?{query}");
        }
        assert_eq!(operation(&Method::PUT, "/b/k", "", true).name, "CopyObject");
        assert_eq!(operation(&Method::PUT, "/b/k", "partNumber=1&uploadId=u", true).name, "UploadPartCopy");
    }

    #[test]
    fn keys_are_decoded_and_keep_their_slashes() {
        let found = operation(&Method::GET, "/b/odd%2F/key%20x", "", false);
        assert_eq!((found.bucket.as_str(), found.key.as_str()), ("b", "odd//key x"));
    }
}
