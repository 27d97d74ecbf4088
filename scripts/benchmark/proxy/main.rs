//! A proxy that stands for a network: it passes HTTP/1.1 on to one server, holds every answer back for a
//! delay, limits each connection to a rate, and counts what passes.
//!
//!     proxy --upstream 127.0.0.1:3900 --delay 20ms --rate 90M
//!
//! It prints `ready URL ADMIN-URL` and serves until it is told to stop. `GET ADMIN-URL` answers the counts since
//! the last reset as JSON, `POST ADMIN-URL/reset` answers the same and begins anew.
//!
//! What is like a network and what is not: a delay is the time between a request and the first byte of its answer
//! (an interim `100 Continue` is an answer too); making a connection is not delayed, because programs keep theirs;
//! the rate holds per connection and direction; nothing is lost. Small answers that a server sends in two pieces are
//! acknowledged at once, because a server without TCP_NODELAY (Garage) waits 40 ms for that otherwise.
//!
//! It has to cost little, because it shares the machine with what is measured: a body whose length was announced
//! goes from socket to socket by splice(2), without a copy.

mod counts;
mod http;
mod pace;
mod relay;
#[cfg(test)]
mod tests;
mod timer;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use counts::Counts;
use pailfs::base::{parse_bytes, parse_duration};

#[derive(Debug, Parser)]
struct Args {
    /// The server to pass requests on to
    #[arg(long, value_name = "ADDRESS:PORT")]
    upstream: SocketAddr,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How long each answer is held back
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = parse_duration)]
    delay: Duration,
    /// Bytes per second of each connection, in each direction; 0 is unlimited
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_rate)]
    rate: u64,
    /// End when standard input does
    #[arg(long)]
    until_stdin_closes: bool,
}

/// What a connection is made to look like.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    delay: Duration,
    /// 0 is unlimited.
    bytes_per_second: u64,
}

/// Rates are decimal, as those of networks are: `90M` is 90,000,000 bytes per second.
fn parse_rate(text: &str) -> Result<u64, String> {
    match text.strip_suffix('M') {
        Some(millions) => {
            millions.parse::<u64>().map(|n| n * 1_000_000).map_err(|error| format!("{text:?}: {error}"))
        }
        None => parse_bytes(text),
    }
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let shape = Shape { delay: args.delay, bytes_per_second: args.rate };
        let proxy = Proxy::start(args.listen, args.upstream, shape).await?;
        println!("ready http://{} http://{}", proxy.address, proxy.admin);
        if args.until_stdin_closes { stdin_end().await } else { tokio::signal::ctrl_c().await }
    })
}

/// A thread of its own reads standard input, because the runtime would wait at its end for a reader of its own.
async fn stdin_end() -> io::Result<()> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = ended.send(());
    });
    // An error means that the reader is gone, which is an end as well.
    let _ = end.await;
    std::process::exit(0)
}

/// A running proxy; it lives as long as its runtime.
struct Proxy {
    address: SocketAddr,
    admin: SocketAddr,
}

impl Proxy {
    async fn start(listen: SocketAddr, upstream: SocketAddr, shape: Shape) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let admin_listener = TcpListener::bind((listen.ip(), 0)).await?;
        let (address, admin) = (listener.local_addr()?, admin_listener.local_addr()?);
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let counts = Arc::clone(&shared);
                tokio::spawn(async move {
                    counts.opened();
                    // An end of either side is a connection's normal end, and each side notices.
                    let _ = pass_on(client, upstream, shape, &counts).await;
                    counts.closed();
                });
            }
        });
        tokio::spawn(async move {
            while let Ok((client, _)) = admin_listener.accept().await {
                let counts = Arc::clone(&counts);
                tokio::spawn(async move { administer(client, &counts).await });
            }
        });
        Ok(Self { address, admin })
    }
}

async fn pass_on(client: TcpStream, upstream: SocketAddr, shape: Shape, counts: &Counts) -> io::Result<()> {
    let upstream = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    relay::run(&client, &upstream, shape, counts).await
}

/// One question to the administration per connection.
async fn administer(mut client: TcpStream, counts: &Counts) -> io::Result<()> {
    let mut request = [0; 4096];
    let len = client.read(&mut request).await?;
    let body = match request.get(..len) {
        Some(head) if head.starts_with(b"POST /reset ") => counts.reset(),
        Some(head) if head.starts_with(b"GET / ") => counts.snapshot(),
        _ => return client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await,
    };
    let body = serde_json::to_string(&body)?;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length";
    client.write_all(format!("{head}: {}\r\n\r\n{body}\n", body.len() + 1).as_bytes()).await
}
