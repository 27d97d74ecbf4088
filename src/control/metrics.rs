//! Metrics over HTTP, for Prometheus.
//!
//! Guarantees: clients, the length of what they say and the time they take are bounded. One connection carries one request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::Handle;
use crate::error::{Error, Kind, Result};
use crate::stats;

/// Clients that are served at once; more wait until they are.
const CLIENTS_MAX: usize = 8;
/// How long one of them may take to ask and to be answered.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long it may take to ask.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(5);
/// What it may say.
const QUESTION_MAX_BYTES: usize = 16 << 10;
/// How long to leave a listener alone that failed to accept, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const PATH: &str = "/metrics";

/// A server of metrics. It ends when it is dropped.
pub struct MetricsServer {
    address: SocketAddr,
    task: AbortHandle,
}

impl MetricsServer {
    /// Answers at an address from now on; port 0 takes a free one.
    pub async fn start(address: SocketAddr, handle: Arc<Handle>) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(Kind::Local, format!("cannot serve metrics at {address}")).with_source(error)
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let task = tokio::spawn(accept(listener, handle)).abort_handle();
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, handle: Arc<Handle>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    // Dropped with this task, and they end.
    let mut clients = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let handle = Arc::clone(&handle);
                clients.spawn(async move {
                    let _place = place;
                    if tokio::time::timeout(CLIENT_TIME_MAX, serve(stream, handle)).await.is_err() {
                        tracing::debug!("a client of the metrics took too long");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the server of metrics could not accept a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while clients.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, handle: Arc<Handle>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handle = Arc::clone(&handle);
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &handle).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(QUESTION_TIME_MAX)
        .max_buf_size(QUESTION_MAX_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client of the metrics went away");
    }
}

async fn answer(method: &Method, path: &str, handle: &Handle) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if path != PATH {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics can be read\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(Full::from((handle.metrics)().await));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(stats::CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Status;
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn handle() -> Arc<Handle> {
        Arc::new(Handle {
            status: Box::new(|| async { Status::default() }.boxed()),
            metrics: Box::new(|| async { "figures 1\n".to_owned() }.boxed()),
            unsaved: Box::new(Default::default),
            log_level: Box::new(|_| Ok(String::new())),
            flush: Box::new(|| async { Ok(()) }.boxed()),
            unmount: Box::new(|| async { Ok(()) }.boxed()),
        })
    }

    async fn start() -> MetricsServer {
        MetricsServer::start(([127, 0, 0, 1], 0).into(), handle()).await.unwrap()
    }

    async fn ask(server: &MetricsServer, question: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(question.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that has had enough may reset the connection.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn metrics_are_at_one_path_with_their_type_and_nothing_is_anywhere_else() {
        let server = start().await;
        let found = ask(&server, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.to_lowercase();
        assert!(found.starts_with("http/1.1 200 ") && found.ends_with("\r\n\r\nfigures 1\n"), "{found}");
        assert!(found.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{found}");
        for path in ["/", "/metrics/", "/status", "/../metrics"] {
            let found = ask(&server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            assert!(found.starts_with("HTTP/1.1 404 "), "{path}: {found}");
        }
        let head = ask(&server, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("figures"), "{head}");
        let post = ask(&server, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
        let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(QUESTION_MAX_BYTES));
        let refused = ask(&server, &long).await;
        assert!(!refused.contains("200") && !refused.contains("figures"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_say_nothing_hold_up_others_for_a_bounded_time() {
        let server = start().await;
        let mut silent = Vec::new();
        for _ in 0..2 * CLIENTS_MAX {
            silent.push(TcpStream::connect(server.address()).await.unwrap());
        }
        let begun = tokio::time::Instant::now();
        let found = ask(&server, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(found.starts_with("HTTP/1.1 200 "), "{found}");
        assert!(begun.elapsed() <= 2 * CLIENT_TIME_MAX, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_a_failure_that_names_it_and_the_end_is_the_end() {
        let server = start().await;
        let address = server.address();
        let error = MetricsServer::start(address, handle()).await.err().unwrap();
        assert!(error.report().contains(&address.to_string()), "{}", error.report());
        drop(server);
        let gone = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    }
}
