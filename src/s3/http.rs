//! How a session speaks HTTP for S3, STS and SSO alike: proxies from the environment, own certificates if any.
//!
//! Where no proxy is in the way the connections are our own, over the same hyper and rustls as the SDK's. They differ in one thing
//! that the SDK's do not let us choose: a connection reads into a buffer of [`READ_BYTES`], so that the body of a large
//! object comes in few, large pieces. Alone, that takes a third off
//! what a body costs; in the whole of the daemon the difference was within the noise.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder as HttpBuilder, Connector};
use aws_smithy_runtime_api::client::connection::{CaptureSmithyConnection, ConnectionMetadata};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::ErrorKind;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{
    CaptureConnection, HttpConnector as TcpConnector, HttpInfo, capture_connection,
};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::settings::env;
use crate::base::allocator::MAPPED_FROM_BYTES;
use crate::error::{Error, Kind, Result};

/// S3 closes idle connections after about 20 s; one that we close first is never found dead by a request.
const POOL_IDLE: Duration = Duration::from_secs(15);
/// What one read of a connection may bring, and what a connection keeps of memory: with the 64 requests that may be under
/// way 7 MiB. Nine times as much gained nothing measurable but where the allocator gives it back to the kernel each time.
const READ_BYTES: usize = 112 << 10;
// With what the allocator keeps beside it, too.
const _: () =
    assert!(READ_BYTES + 4096 < MAPPED_FROM_BYTES, "each read would be memory fresh from the kernel");

/// Where an environment names proxies.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// Certificates, as a session has them.
pub(super) struct HttpSettings {
    pem: Option<Vec<u8>>,
    tls: Arc<rustls::ClientConfig>,
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
        let tls = Arc::new(trusting(pem.as_deref())?);
        Ok(Self { pem, tls })
    }

    /// A new pool of connections.
    pub(super) fn client(&self) -> SharedHttpClient {
        let direct = Direct { tls: Arc::clone(&self.tls), pools: Mutex::default() };
        if PROXY_VARIABLES.iter().any(|name| env(name).is_some()) {
            SharedHttpClient::new(Routed {
                direct,
                proxied: self.proxied(),
                proxies: Arc::new(Matcher::from_env()),
            })
        } else {
            SharedHttpClient::new(direct)
        }
    }

    /// The SDK's own connections, which know how to speak to proxies.
    fn proxied(&self) -> SharedHttpClient {
        let mut store = TrustStore::default();
        if let Some(pem) = &self.pem {
            store = store.with_pem_certificate(pem.clone());
        }
        let tls = TlsContext::builder().with_trust_store(store).build().unwrap_or_default();
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

/// Through a proxy where the environment names one for the address, directly otherwise.
#[derive(Debug)]
struct Routed {
    direct: Direct,
    proxied: SharedHttpClient,
    proxies: Arc<Matcher>,
}

impl HttpClient for Routed {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Route {
            direct: self.direct.http_connector(settings, components),
            proxied: self.proxied.http_connector(settings, components),
            proxies: Arc::clone(&self.proxies),
        })
    }
}

#[derive(Debug)]
struct Route {
    direct: SharedHttpConnector,
    proxied: SharedHttpConnector,
    proxies: Arc<Matcher>,
}

impl HttpConnector for Route {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let address = request.uri().parse::<http::Uri>();
        let through = address.is_ok_and(|address| self.proxies.intercept(&address).is_some());
        if through { self.proxied.call(request) } else { self.direct.call(request) }
    }
}

/// What a server's certificate is checked against: the machine's authorities, and those of the bundle.
fn trusting(pem: Option<&[u8]>) -> Result<rustls::ClientConfig> {
    let refused = || Error::new(Kind::InvalidArgument, "the CA bundle is not usable");
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    if !native.errors.is_empty() {
        tracing::debug!(errors = ?native.errors, "not all certificates of this machine can be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(pem) = pem {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| refused().with_source(error))?;
            roots.add(certificate).map_err(|error| refused().with_source(error))?;
        }
        if roots.len() == before {
            return Err(Error::new(Kind::InvalidArgument, "the CA bundle has no certificate in it"));
        }
    }
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    let versions = versions.map_err(|error| Error::new(Kind::Internal, "no TLS").with_source(error))?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

/// Connections to the server itself: a pool for each way to wait that somebody asked for.
#[derive(Debug)]
struct Direct {
    tls: Arc<rustls::ClientConfig>,
    pools: Mutex<Vec<(Waits, SharedHttpConnector)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waits {
    connect: Option<Duration>,
    answer: Option<Duration>,
}

impl HttpClient for Direct {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let waits = Waits { connect: settings.connect_timeout(), answer: settings.read_timeout() };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pool)) = pools.iter().find(|(known, _)| *known == waits) {
            return pool.clone();
        }
        let pool = SharedHttpConnector::new(Pool::new(&self.tls, waits));
        pools.push((waits, pool.clone()));
        pool
    }
}

#[derive(Debug)]
struct Pool {
    client: Client<HttpsConnector<TcpConnector>, SdkBody>,
    answer: Option<Duration>,
}

impl Pool {
    fn new(tls: &rustls::ClientConfig, waits: Waits) -> Self {
        let mut tcp = TcpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(waits.connect);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .http1_read_buf_exact_size(READ_BYTES)
            .build(https);
        Self { client, answer: waits.answer }
    }
}

impl HttpConnector for Pool {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        // The SDK gives up a connection on which a request failed in passing.
        let captured = capture_connection(&mut request);
        if let Some(capture) = request.extensions().get::<CaptureSmithyConnection>() {
            capture.set_connection_retriever(move || connection(&captured));
        }
        let (answer, patience) = (self.client.request(request), self.answer);
        HttpConnectorFuture::new(async move {
            let answer = match patience {
                None => answer.await,
                Some(patience) => tokio::time::timeout(patience, answer)
                    .await
                    .map_err(|late| ConnectorError::timeout(late.into()))?,
            };
            let mut answer = answer.map_err(refused)?.map(SdkBody::from_body_1_x);
            readable(answer.headers_mut());
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Some servers pass on what other programs said of an object as those said it, in the encoding of their machines. The SDK
/// takes UTF-8 alone, and would hide the object for it.
fn readable(headers: &mut http::HeaderMap) {
    for value in headers.values_mut() {
        if std::str::from_utf8(value.as_bytes()).is_err() {
            let latin: String = value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
            // Bytes that were a header's before are one's again.
            if let Ok(utf8) = http::HeaderValue::from_bytes(latin.as_bytes()) {
                *value = utf8;
            }
        }
    }
}

fn connection(captured: &CaptureConnection) -> Option<ConnectionMetadata> {
    let mut extensions = http::Extensions::new();
    captured.connection_metadata().as_ref()?.get_extras(&mut extensions);
    let addresses = extensions.get::<HttpInfo>();
    let captured = captured.clone();
    let mut metadata = ConnectionMetadata::builder().proxied(false).poison_fn(move || {
        if let Some(connection) = captured.connection_metadata().as_ref() {
            connection.poison();
        }
    });
    metadata.set_local_addr(addresses.map(HttpInfo::local_addr));
    metadata.set_remote_addr(addresses.map(HttpInfo::remote_addr));
    Some(metadata.build())
}

/// What the SDK has to know of a failure in order to try again or not.
fn refused(error: ClientError) -> ConnectorError {
    let io = find::<std::io::Error>(&error).map(std::io::Error::kind);
    let http = find::<hyper::Error>(&error);
    let is = |what: fn(&hyper::Error) -> bool| http.is_some_and(what);
    if io == Some(std::io::ErrorKind::TimedOut) || is(hyper::Error::is_timeout) {
        ConnectorError::timeout(error.into())
    } else if is(hyper::Error::is_user) {
        ConnectorError::user(error.into())
    } else if error.is_connect()
        || io.is_some()
        || is(hyper::Error::is_closed)
        || is(hyper::Error::is_canceled)
    {
        ConnectorError::io(error.into())
    } else if is(hyper::Error::is_incomplete_message) {
        // S3 closed a connection that had been idle.
        ConnectorError::other(error.into(), Some(ErrorKind::TransientError))
    } else {
        ConnectorError::other(error.into(), None)
    }
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    const SOON: Duration = Duration::from_millis(200);

    fn pool(waits: Waits) -> Pool {
        Pool::new(&trusting(None).unwrap(), waits)
    }

    fn patient() -> Pool {
        pool(Waits { connect: None, answer: None })
    }

    fn request(address: std::net::SocketAddr) -> HttpRequest {
        HttpRequest::try_from(
            http::Request::get(format!("http://{address}/")).body(SdkBody::empty()).unwrap(),
        )
        .unwrap()
    }

    async fn head(connection: &mut TcpStream) {
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            got.push(connection.read_u8().await.unwrap());
        }
    }

    #[tokio::test]
    async fn the_sdk_is_told_which_failures_pass() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            // Closes the first connection before it answers, and never answers on the second.
            let (mut first, _) = listener.accept().await.unwrap();
            head(&mut first).await;
            drop(first);
            let (mut second, _) = listener.accept().await.unwrap();
            head(&mut second).await;
            std::future::pending::<()>().await;
        });
        let closed = patient().call(request(address)).await.unwrap_err();
        assert!(closed.is_io() || closed.as_other() == Some(ErrorKind::TransientError), "{closed:?}");
        let silent =
            pool(Waits { connect: None, answer: Some(SOON) }).call(request(address)).await.unwrap_err();
        assert!(silent.is_timeout(), "{silent:?}");
        server.abort();
        let _ = server.await;
        let nobody = patient().call(request(address)).await.unwrap_err();
        assert!(nobody.is_io(), "{nobody:?}");
    }

    #[tokio::test]
    async fn a_connection_is_used_again_until_it_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let body = vec![7u8; 3 << 20];
        let sent = body.clone();
        let server = tokio::spawn(async move {
            let mut connections = 0;
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                connections += 1;
                for answers in 1.. {
                    head(&mut connection).await;
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", sent.len());
                    connection.write_all(head.as_bytes()).await.unwrap();
                    connection.write_all(&sent).await.unwrap();
                    if connections == 1 && answers == 2 {
                        break;
                    }
                    if connections == 2 {
                        return;
                    }
                }
            }
        });
        let pool = patient();
        for turn in 0..3 {
            let mut request = request(address);
            let capture = CaptureSmithyConnection::new();
            request.add_extension(capture.clone());
            let mut answer = pool.call(request).await.unwrap();
            let got = answer.take_body().collect().await.unwrap().to_bytes();
            assert!(got == body, "turn {turn}");
            if turn == 1 {
                let connection = capture.get().expect("the connection of an answer is known");
                assert_eq!(connection.remote_addr(), Some(address));
                connection.poison();
            }
        }
        server.await.unwrap();
    }

    #[derive(Clone, Debug, Default)]
    struct Asked(Arc<Mutex<Vec<String>>>);

    impl HttpConnector for Asked {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            self.0.lock().unwrap().push(request.uri().to_owned());
            HttpConnectorFuture::ready(Err(ConnectorError::other("not sent".into(), None)))
        }
    }

    #[tokio::test]
    async fn what_the_environment_names_a_proxy_for_goes_through_it() {
        let (direct, proxied) = (Asked::default(), Asked::default());
        let route = Route {
            direct: SharedHttpConnector::new(direct.clone()),
            proxied: SharedHttpConnector::new(proxied.clone()),
            proxies: Arc::new(Matcher::builder().all("http://proxy:3128").no("127.0.0.1").build()),
        };
        for address in ["http://127.0.0.1:9000/b/k", "https://s3.amazonaws.com/b/k"] {
            let request = http::Request::get(address).body(SdkBody::empty()).unwrap();
            let _ = route.call(HttpRequest::try_from(request).unwrap()).await;
        }
        assert_eq!(*direct.0.lock().unwrap(), ["http://127.0.0.1:9000/b/k"]);
        assert_eq!(*proxied.0.lock().unwrap(), ["https://s3.amazonaws.com/b/k"]);
    }

    #[test]
    fn a_bundle_without_a_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("ca.pem");
        std::fs::write(&bundle, "not one\n").unwrap();
        let error = HttpSettings::new(Some(&bundle)).err().expect("it is refused");
        assert!(error.to_string().contains("no certificate"), "{error}");
    }
}
