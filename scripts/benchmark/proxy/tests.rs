//! The proxy between a client and a server of a few lines: it delays, limits and counts as it says.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::timer::now;
use super::{Proxy, Shape};

const MS: Duration = Duration::from_millis(1);
const KB: usize = 1000;

/// A server that answers as the target says: `/bytes/N` with N bytes, `/chunked` in chunks, `/early` before the
/// request's body has come and then hangs up, `/echo` with the body's length, after `100 Continue` where that is expected.
async fn server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut target, mut length, mut expects) = (String::new(), String::new(), 0, false);
        while stream.read_line(&mut line).await? > 2 {
            let lower = line.to_ascii_lowercase();
            match lower.strip_prefix("content-length:") {
                Some(value) => length = value.trim().parse().unwrap(),
                None if lower.starts_with("expect:") => expects = true,
                None if target.is_empty() => target = line.split(' ').nth(1).unwrap().to_owned(),
                None => {}
            }
            line.clear();
        }
        if target.is_empty() {
            return Ok(());
        }
        if target == "/early" {
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await?;
            return Ok(());
        }
        if expects {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let answer = match target.strip_prefix("/bytes/") {
            Some(count) => vec![b'x'; count.parse().unwrap()],
            None => length.to_string().into_bytes(),
        };
        if target == "/chunked" {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
            stream.write_all(head).await?;
        } else {
            // In two pieces, as a server without TCP_NODELAY sends it.
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&answer).await?;
        }
    }
}

async fn proxy(delay: Duration, bytes_per_second: u64) -> Proxy {
    let listen = "127.0.0.1:0".parse().unwrap();
    Proxy::start(listen, server().await, Shape { delay, bytes_per_second }).await.unwrap()
}

struct Client(BufReader<TcpStream>);

impl Client {
    async fn new(proxy: &Proxy) -> Self {
        Self(BufReader::new(TcpStream::connect(proxy.address).await.unwrap()))
    }

    async fn send(&mut self, request: &[u8]) {
        self.0.get_mut().write_all(request).await.unwrap();
    }

    /// The status and the head's length header of the next answer, without its body.
    async fn head(&mut self) -> (u16, Option<usize>) {
        let (mut status, mut length) = (0, None);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).await.unwrap();
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = Some(value.trim().parse().unwrap());
            } else if line == "\r\n" {
                return (status, length);
            }
        }
    }

    async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// Asks and reads the whole answer; how long it took to come.
    async fn get(&mut self, target: &str) -> (Vec<u8>, Duration) {
        let start = now();
        self.send(format!("GET {target} HTTP/1.1\r\nHost: s\r\n\r\n").as_bytes()).await;
        let (status, length) = self.head().await;
        assert_eq!(status, 200);
        let body = self.bytes(length.unwrap()).await;
        (body, now() - start)
    }
}

async fn admin(proxy: &Proxy, question: &str) -> serde_json::Value {
    let mut stream = TcpStream::connect(proxy.admin).await.unwrap();
    stream.write_all(format!("{question} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn each_answer_is_held_back_once() {
    let proxy = proxy(50 * MS, 0).await;
    let mut client = Client::new(&proxy).await;
    for bytes in [0, 10, 3000 * KB] {
        let (body, took) = client.get(&format!("/bytes/{bytes}")).await;
        assert_eq!(body.len(), bytes);
        // A busy machine makes it later, never earlier.
        assert!(took >= 50 * MS && took < 500 * MS, "{bytes} bytes: {took:?}");
    }
}

#[tokio::test]
async fn a_server_that_sends_in_pieces_is_not_waited_for() {
    let proxy = proxy(Duration::ZERO, 0).await;
    let mut client = Client::new(&proxy).await;
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        fastest = fastest.min(client.get("/bytes/100").await.1);
    }
    assert!(fastest < 20 * MS, "{fastest:?}");
}

#[tokio::test]
async fn each_connection_has_its_own_rate() {
    let proxy = proxy(Duration::ZERO, 2_000_000).await;
    let start = now();
    let fetch = async || {
        let mut client = Client::new(&proxy).await;
        client.get(&format!("/bytes/{}", 600 * KB)).await.1
    };
    let (one, other) = tokio::join!(fetch(), fetch());
    // 600 kB at 2 MB/s are 300 ms; one after the other would be 600.
    for took in [one, other, now() - start] {
        assert!(took >= 290 * MS && took < 590 * MS, "{took:?}");
    }
}

#[tokio::test]
async fn requests_are_limited_as_well() {
    let proxy = proxy(Duration::ZERO, 2_000_000).await;
    let mut client = Client::new(&proxy).await;
    let body = vec![0; 600 * KB];
    let start = now();
    client.send(format!("PUT /b/k HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes()).await;
    client.send(&body).await;
    assert_eq!(client.head().await, (200, Some(6)));
    let took = now() - start;
    assert!(took >= 290 * MS && took < 900 * MS, "{took:?}");
}

#[tokio::test]
async fn what_passes_is_counted_until_a_reset() {
    let proxy = proxy(Duration::ZERO, 0).await;
    let mut client = Client::new(&proxy).await;
    client.get(&format!("/bytes/{}", 500 * KB)).await;
    client.get("/bytes/1").await;
    client.send(b"PUT /b/k HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").await;
    assert_eq!(client.head().await.0, 200);
    client.bytes(1).await;
    // The last bytes may be here before they are counted.
    let counts = loop {
        let counts = admin(&proxy, "GET /").await;
        if counts["in_flight"] == 0 {
            break counts;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(counts["requests"]["GetObject"], 2, "{counts}");
    assert_eq!(counts["requests"]["PutObject"], 1, "{counts}");
    assert_eq!((counts["connections"].as_u64(), counts["open"].as_u64()), (Some(1), Some(1)));
    let down = usize::try_from(counts["bytes_down"].as_u64().unwrap()).unwrap();
    assert!((500 * KB + 2..501 * KB).contains(&down), "{counts}");
    let up = counts["bytes_up"].as_u64().unwrap();
    assert!((100..200).contains(&up), "{counts}");
    assert_eq!(admin(&proxy, "POST /reset").await["bytes_down"], counts["bytes_down"]);
    let counts = admin(&proxy, "GET /").await;
    assert_eq!((counts["bytes_down"].as_u64(), counts["requests"].to_string()), (Some(0), "{}".to_owned()));
}

#[tokio::test]
async fn every_kind_of_turn_leaves_the_connection_usable() {
    let proxy = proxy(MS, 0).await;
    let mut client = Client::new(&proxy).await;
    client.send(b"GET /chunked HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.head().await, (200, None));
    assert_eq!(client.bytes(13).await, b"3\r\nabc\r\n0\r\n\r\n");

    client.send(b"PUT /b/k HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.0, 100);
    client.send(b"body").await;
    assert_eq!(client.head().await, (200, Some(1)));
    assert_eq!(client.bytes(1).await, b"4");

    assert_eq!(client.get("/bytes/3").await.0, b"xxx");
}

#[tokio::test]
async fn an_answer_before_the_request_s_end_arrives() {
    let proxy = proxy(5 * MS, 0).await;
    let mut client = Client::new(&proxy).await;
    client.send(b"PUT /early HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n").await;
    assert_eq!(client.head().await, (403, Some(2)));
    assert_eq!(client.bytes(2).await, b"no");
    let mut rest = Vec::new();
    client.0.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}
