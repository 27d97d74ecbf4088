//! The server over the wire: what its clients see, and each fault below HTTP once.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use pailfs::base::{Clock, SystemClock};
use pailfs::demo::{FaultRule, Server, seed_tree};
use pailfs::error::Kind;
use pailfs::s3::*;
use pailfs::stats::Stats;

async fn serve(rules: &str) -> Server {
    let rules = FaultRule::parse_lines(rules).unwrap();
    Server::builder().bucket("demo").faults(rules).start().await.unwrap()
}

fn client(server: &Server) -> aws_sdk_s3::Client {
    let credentials = server.credentials();
    let credentials = Credentials::new(&credentials.access_key, &credentials.secret_key, None, None, "demo");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(server.endpoint())
        .force_path_style(true)
        .region(Region::new("us-east-1"))
        .credentials_provider(credentials)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(20)).build())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

async fn put(client: &aws_sdk_s3::Client, key: &str, body: &[u8]) {
    client.put_object().bucket("demo").key(key).body(body.to_vec().into()).send().await.unwrap();
}

/// Sends one request and reads what comes, up to the end of the connection.
async fn raw(server: &Server, request: &str) -> (String, std::io::Result<usize>) {
    let address = server.endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let end = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    (String::from_utf8_lossy(&answer).into_owned(), end)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n")
}

/// A deadline for what should be done at once.
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_server_starts_answers_and_stops() {
    let server = serve("").await;
    let (answer, end) = raw(&server, &get("/-/ready")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n"), "{answer}");
    end.unwrap();
    let (answer, _) = raw(&server, &get("/demo/key")).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("x-amz-request-id"), "{answer}");
    let address = server.endpoint().replace("http://", "");
    let mut idle = TcpStream::connect(&address).await.unwrap();
    server.stop().await;
    assert!(TcpStream::connect(&address).await.is_err());
    assert!(matches!(timeout(LONG, idle.read(&mut [0])).await.unwrap(), Ok(0) | Err(_)));
}

#[tokio::test]
async fn only_loopback_is_listened_on() {
    for address in ["0.0.0.0:0", "192.0.2.1:80", "nonsense"] {
        let server = Server::builder().listen(address).start().await;
        assert_eq!(server.err().expect("refused").kind(), Kind::InvalidArgument, "{address}");
    }
}

#[tokio::test]
async fn objects_go_in_and_come_out() {
    let server = serve("").await;
    let client = client(&server);
    put(&client, "a b/ż+", b"hello world").await;
    let head = client.head_object().bucket("demo").key("a b/ż+").send().await.unwrap();
    assert_eq!(
        (head.content_length(), head.e_tag()),
        (Some(11), Some("\"5eb63bbbe01eeed093cb22bb8f5acdc3\""))
    );
    for (range, expected) in [("bytes=2-4", "llo"), ("bytes=6-", "world"), ("bytes=-3", "rld")] {
        let got = client.get_object().bucket("demo").key("a b/ż+").range(range).send().await.unwrap();
        assert_eq!(got.body.collect().await.unwrap().into_bytes(), expected);
    }
    for (range, if_none_match, status) in [(Some("bytes=11-"), None, 416), (None, head.e_tag(), 304)] {
        let got = client.get_object().bucket("demo").key("a b/ż+");
        let got = got.set_range(range.map(str::to_owned)).set_if_none_match(if_none_match.map(str::to_owned));
        let error = got.send().await.unwrap_err();
        assert_eq!(error.raw_response().unwrap().status().as_u16(), status);
    }
    let page = client.list_objects_v2().bucket("demo").send().await.unwrap();
    assert_eq!(page.contents()[0].key(), Some("a b/ż+"));
    client.delete_object().bucket("demo").key("a b/ż+").send().await.unwrap();
    let gone = client.head_object().bucket("demo").key("a b/ż+").send().await.unwrap_err();
    assert!(gone.into_service_error().is_not_found());
    let counts = server.counts();
    assert_eq!((counts.of("PutObject"), counts.of("GetObject"), counts.of("HeadObject")), (1, 5, 2));
    assert_eq!(counts.statuses.get("4xx"), Some(&2));
    server.stop().await;
}

#[tokio::test]
async fn checksums_in_trailers_are_taken() {
    let server = serve("op=PutObject,bucket=elsewhere,fault=denied").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"hello world").unwrap();
    let body = ByteStream::from_path(file.path()).await.unwrap();
    let put = client(&server).put_object().bucket("demo").key("key").body(body);
    let put = put.checksum_algorithm(aws_sdk_s3::types::ChecksumAlgorithm::Crc32C).send().await.unwrap();
    assert_eq!(put.checksum_crc32_c(), Some("yZRlqg=="));
    server.stop().await;
}

#[tokio::test]
async fn without_a_store_it_keeps_buckets_in_memory() {
    let server = Server::builder().bucket("demo").region("eu-west-1").start().await.unwrap();
    let client = client(&server);
    put(&client, "key", b"body").await;
    let again = client.put_object().bucket("demo").key("key").if_none_match("*").send().await;
    assert_eq!(again.unwrap_err().raw_response().unwrap().status().as_u16(), 412);
    let bucket = client.head_bucket().bucket("demo").send().await.unwrap();
    assert_eq!(bucket.bucket_region(), Some("eu-west-1"));
    server.stop().await;
}

#[tokio::test]
async fn rules_and_counts_are_read_and_set_while_it_runs() {
    let server = serve("fault=denied").await;
    assert!(raw(&server, &get("/-/faults")).await.0.ends_with("\r\n\r\nfault=denied\n"));
    for (rules, status) in [("op=GetObject,nth=1,fault=slowdown\n", "200"), ("fault=fire", "400")] {
        let length = rules.len();
        let request = format!(
            "PUT /-/faults HTTP/1.1\r\nHost: demo\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{rules}"
        );
        let (answer, _) = raw(&server, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    let (answer, _) = raw(&server, &get("/demo/key")).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("<Code>SlowDown</Code>"), "{answer}");
    let (answer, _) = raw(&server, &get("/-/counts")).await;
    assert!(answer.contains("{\"requests\":{\"GetObject\":1},\"statuses\":{\"5xx\":1}"), "{answer}");
    let reset = get("/-/counts/reset").replace("GET", "POST");
    assert!(raw(&server, &reset).await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(server.counts().of("GetObject"), 0);
    server.stop().await;
}

#[tokio::test]
async fn answers_given_instead_have_their_status_and_code() {
    for (fault, status, code) in [
        ("slowdown", 503, Some("SlowDown")),
        ("error:500", 500, Some("InternalError")),
        ("status:429", 429, None),
        ("expired-token", 400, Some("ExpiredToken")),
        ("denied", 403, Some("AccessDenied")),
    ] {
        let server = serve(&format!("op=GetObject,fault={fault}")).await;
        let got = client(&server).get_object().bucket("demo").key("key").send().await.unwrap_err();
        assert_eq!(got.raw_response().unwrap().status().as_u16(), status, "{fault}");
        assert_eq!(got.into_service_error().code(), code, "{fault}");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let server = serve("fault=reset").await;
    let (answer, end) = raw(&server, &get("/demo/key")).await;
    assert_eq!(answer, "");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(server.counts().statuses.get("none"), Some(&1));
    server.stop().await;
}

#[tokio::test]
async fn a_lost_response_took_effect() {
    let server = serve("op=PutObject,nth=1,fault=lose-response").await;
    let client = client(&server);
    let lost = client.put_object().bucket("demo").key("key").body(b"body".to_vec().into()).send().await;
    assert!(lost.unwrap_err().raw_response().is_none());
    let got = client.get_object().bucket("demo").key("key").send().await.unwrap();
    assert_eq!(got.body.collect().await.unwrap().into_bytes(), "body");
    server.stop().await;
}

#[tokio::test]
async fn a_truncated_body_ends_before_its_length() {
    let server = serve("op=GetObject,fault=truncate:4").await;
    let client = client(&server);
    put(&client, "key", b"0123456789").await;
    let got = client.get_object().bucket("demo").key("key").send().await.unwrap();
    assert_eq!(got.content_length(), Some(10));
    assert!(got.body.collect().await.is_err());
    let (answer, _) = raw(&server, &get("/demo/key")).await;
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body.len(), 4, "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_stalled_body_stops_and_keeps_its_connection() {
    let server = serve("op=GetObject,fault=stall").await;
    let client = client(&server);
    put(&client, "key", b"0123456789").await;
    let mut body = client.get_object().bucket("demo").key("key").send().await.unwrap().body;
    assert_eq!(body.next().await.unwrap().unwrap(), "01234");
    assert!(timeout(Duration::from_millis(100), body.next()).await.is_err());
    timeout(LONG, server.stop()).await.expect("stalled requests do not hold the server");
}

#[tokio::test]
async fn latency_and_bandwidth_take_their_time() {
    let server = serve("op=GetObject,fault=latency:50ms\nop=GetObject,fault=bandwidth:1M").await;
    let client = client(&server);
    put(&client, "key", &vec![7; 200 << 10]).await;
    let start = SystemClock.now();
    let got = client.get_object().bucket("demo").key("key").send().await.unwrap();
    assert_eq!(got.body.collect().await.unwrap().into_bytes().len(), 200 << 10);
    // 50 ms, and three of four chunks wait for the one before.
    let least = Duration::from_millis(50 + 3 * 62 - 5);
    assert!(SystemClock.now() - start >= least);
    server.stop().await;
}

#[tokio::test]
async fn conditions_can_be_ignored_and_checksums_refused() {
    let server =
        serve("op=PutObject,key=free,fault=ignore-conditions\nkey=plain,fault=refuse-checksums").await;
    let client = client(&server);
    for (key, second_succeeds) in [("free", true), ("held", false)] {
        put(&client, key, b"1").await;
        let again = client.put_object().bucket("demo").key(key).if_none_match("*").body(b"2".to_vec().into());
        assert_eq!(again.send().await.is_ok(), second_succeeds, "{key}");
    }
    let refused = client.put_object().bucket("demo").key("plain").body(b"1".to_vec().into()).send().await;
    let refused = refused.unwrap_err().into_service_error();
    assert_eq!(refused.code(), Some("InvalidRequest"));
    assert!(refused.message().unwrap().contains("x-amz-checksum-"));
    server.stop().await;
}

#[tokio::test]
async fn the_seeded_tree_is_listed_whole() {
    let store =
        Arc::new(MemStore::new(Arc::new(SystemClock), Arc::new(Stats::default())).with_bucket("demo"));
    seed_tree(&*store, "demo").await.unwrap();
    let server = Server::builder().bucket("demo").store(store).start().await.unwrap();
    let page = client(&server).list_objects_v2().bucket("demo").send().await.unwrap();
    let keys: Vec<&str> = page.contents().iter().filter_map(|object| object.key()).collect();
    assert!(keys.contains(&"README.txt") && keys.contains(&"odd//key"), "{keys:?}");
    server.stop().await;
}
