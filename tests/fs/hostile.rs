//! Servers that lie. A real server stands behind one that changes its answers; whatever it says, nothing panics, nothing
//! grows or waits without an end, the error fits, and other files go on working.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use pailfs::demo::Server;
use pailfs::error::{Kind, Result};
use pailfs::fs::{FileType, SetAttr};
use pailfs::s3::{ListVersionsRequest, Session, Store, Upload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{BUCKET, Client, READ, REWRITE, WRITE};
use crate::harness::block_on;

/// What one operation may take, whatever it is told: its own deadline is 8 s.
const SOON: Duration = Duration::from_secs(90);
/// What one answer may make the client take from the network, with all its attempts.
const TAKEN_MAX: u64 = 600 << 20;

/// A request, as far as lies depend on it.
pub struct Asked {
    method: String,
    path: String,
    query: String,
    /// Which of all requests it is.
    number: u64,
}

impl Asked {
    fn is(&self, method: &str, key: &str) -> bool {
        self.method == method && self.path == format!("/{BUCKET}/{key}")
    }

    fn lists(&self, prefix: &str) -> bool {
        self.method == "GET" && self.query.contains(&format!("prefix={prefix}"))
    }
}

pub enum Lie {
    /// In place of the real answer, to a request that is not passed on.
    Instead(Vec<u8>),
    /// The same, and then a chunk again and again.
    Endless(Vec<u8>, Vec<u8>),
    /// The real answer, changed.
    Changed(Change),
}

type Change = fn(String) -> String;

type Rule = dyn Fn(&Asked) -> Option<Lie> + Send + Sync;

/// A server in front of an honest one. What it was sent and what was taken from it is counted.
pub struct Liar {
    pub url: String,
    requests: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    listening: tokio::task::JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Liar {
    async fn start(behind: &Server, rule: Arc<Rule>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let behind = behind.endpoint().replace("http://", "");
        let (requests, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (asked, taken) = (Arc::clone(&requests), Arc::clone(&sent));
        let listening = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (rule, behind) = (Arc::clone(&rule), behind.clone());
                let (asked, taken) = (Arc::clone(&asked), Arc::clone(&taken));
                tokio::spawn(async move {
                    // A connection that the client closes is its right.
                    let _ = serve(connection, &behind, &*rule, &asked, &taken).await;
                });
            }
        });
        Self { url, requests, sent, listening }
    }

    async fn store(&self) -> Arc<dyn Store> {
        let session = Session::builder()
            .credentials("pailfs", "pailfs-demo-secret", None)
            .region("us-east-1")
            .endpoint_url(&self.url)
            .timeout(Duration::from_secs(4))
            .build()
            .await
            .unwrap();
        Arc::new(session.client())
    }
}

/// One request of a connection, which ends with its answer.
async fn serve(
    mut connection: TcpStream,
    behind: &str,
    rule: &Rule,
    requests: &AtomicU64,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let head = loop {
        if connection.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let length = text.to_lowercase().lines().find_map(|line| {
        line.strip_prefix("content-length:").and_then(|length| length.trim().parse::<usize>().ok())
    });
    while request.len() < head + length.unwrap_or(0) {
        if connection.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let mut words = text.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let asked = Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        number: requests.fetch_add(1, Ordering::Relaxed),
    };
    let lie = rule(&asked);
    let answer = match &lie {
        Some(Lie::Instead(answer) | Lie::Endless(answer, _)) => answer.clone(),
        Some(Lie::Changed(_)) | None => {
            let mut honest = TcpStream::connect(behind).await?;
            honest.write_all(&request[..head - 2]).await?;
            honest.write_all(b"Connection: close\r\n\r\n").await?;
            honest.write_all(&request[head..]).await?;
            let mut answer = Vec::new();
            honest.read_to_end(&mut answer).await?;
            answer
        }
    };
    let answer = match &lie {
        Some(Lie::Changed(change)) => change(String::from_utf8_lossy(&answer).into_owned()).into_bytes(),
        _ => answer,
    };
    connection.write_all(&answer).await?;
    if let Some(Lie::Endless(_, chunk)) = &lie {
        loop {
            connection.write_all(chunk).await?;
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    }
    connection.shutdown().await
}

/// An answer of these lines of header and this body.
fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = if headers.to_lowercase().contains("content-length") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{length}{headers}\r\n{body}").into_bytes()
}

fn xml(body: &str) -> Vec<u8> {
    answer("200 OK", "Content-Type: application/xml\r\n", body)
}

/// An object of a listing.
fn object(key: &str, size: &str, etag: &str, date: &str) -> String {
    let etag = if etag.is_empty() { String::new() } else { format!("<ETag>&quot;{etag}&quot;</ETag>") };
    let date = if date.is_empty() { String::new() } else { format!("<LastModified>{date}</LastModified>") };
    format!("<Contents><Key>{key}</Key><Size>{size}</Size>{etag}{date}</Contents>")
}

/// The usual one.
fn plain(key: &str) -> String {
    object(key, "4", "e", DATE)
}

fn prefix(key: &str) -> String {
    format!("<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>")
}

/// A page of a listing; `next` is the token of another.
fn page(items: &str, next: Option<&str>) -> Vec<u8> {
    let next = next.map_or_else(
        || "<IsTruncated>false</IsTruncated>".to_owned(),
        |token| {
            format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>")
        },
    );
    xml(&format!("<?xml version=\"1.0\"?><ListBucketResult>{next}{items}</ListBucketResult>"))
}

const DATE: &str = "2026-01-02T03:04:05.000Z";

/// Panics of any thread since the process began; a task's own are not seen otherwise.
fn panics() -> usize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            usual(info);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}

/// What is done on a mount while the server lies, and whether its outcome is right.
type Act = for<'a> fn(&'a Client) -> BoxFuture<'a, Result<(), String>>;

struct Case {
    name: &'static str,
    rule: Arc<Rule>,
    act: Act,
}

fn case(name: &'static str, rule: impl Fn(&Asked) -> Option<Lie> + Send + Sync + 'static, act: Act) -> Case {
    Case { name, rule: Arc::new(rule), act }
}

/// Runs each case on a mount and a server of its own, all at once.
fn run(cases: Vec<Case>) {
    let before = panics();
    block_on(async {
        let told = cases.iter().map(async |case| {
            let server = Server::builder().bucket(BUCKET).start().await.unwrap();
            for (path, bytes) in
                [("good/f", "fine"), ("bad/known", "known"), ("bad/sub/g", "below"), ("bad/other", "other")]
            {
                honest_put(&server, path, bytes).await;
            }
            let liar = Liar::start(&server, Arc::clone(&case.rule)).await;
            let client = Client::of_server(liar.store().await);
            let done = tokio::time::timeout(SOON, (case.act)(&client)).await;
            let mut wrong = done.unwrap_or_else(|_| Err("it does not end".to_owned())).err();
            let sent = liar.sent.load(Ordering::Relaxed);
            if sent > TAKEN_MAX {
                wrong = Some(format!("{sent} bytes were taken"));
            }
            match client.read("good/f").await {
                Ok(bytes) if bytes == b"fine" => {}
                other => wrong = Some(format!("another file is {other:?}")),
            }
            let requests = liar.requests.load(Ordering::Relaxed);
            wrong.map(|wrong| format!("{}: {wrong} ({requests} requests)", case.name))
        });
        let told: Vec<String> = futures::future::join_all(told).await.into_iter().flatten().collect();
        assert!(told.is_empty(), "{}", told.join("\n"));
    });
    assert_eq!(panics(), before, "something panicked");
}

async fn store_of(server: &Server) -> Arc<dyn Store> {
    let session = Session::builder()
        .credentials("pailfs", "pailfs-demo-secret", None)
        .region("us-east-1")
        .endpoint_url(&server.endpoint())
        .build()
        .await
        .unwrap();
    Arc::new(session.client())
}

async fn honest_put(server: &Server, key: &str, bytes: &str) {
    let request = pailfs::s3::PutRequest {
        bucket: BUCKET.to_owned(),
        key: key.to_owned(),
        body: bytes.to_owned().into(),
        ..pailfs::s3::PutRequest::default()
    };
    store_of(server).await.put(request).await.unwrap();
}

/// Fails with one of these kinds.
fn fails<T: std::fmt::Debug>(answer: Result<T>, kinds: &[Kind]) -> Result<(), String> {
    match answer {
        Err(error) if kinds.contains(&error.kind()) => Ok(()),
        Err(error) => Err(format!("{:?}: {}", error.kind(), error.report())),
        Ok(done) => Err(format!("it was done: {done:?}")),
    }
}

/// Lists `bad/` and looks at all that is in it, opens it and reads it; what that answers is the server's affair.
fn looks(client: &Client) -> BoxFuture<'_, Result<(), String>> {
    Box::pin(async move {
        let names = client.list("bad").await.unwrap_or_default();
        let _ = client.attrs("bad").await;
        for name in names.iter().map(|name| name.trim_end_matches('/')) {
            let path = format!("bad/{name}");
            let _ = client.stat(&path).await;
            let _ = client.list(&path).await;
            for flags in [READ, WRITE] {
                let Ok(file) = client.open(&path, flags).await else { continue };
                let _ = client.fs.read(file.1, 0, 1 << 20).await;
                let _ = client.fs.read(file.1, u64::try_from(i64::MAX).unwrap() - 4096, 4096).await;
                let _ = client.close(file).await;
            }
        }
        Ok(())
    })
}

/// Lists `bad/`, which fails because the answer is no listing.
fn finds_a_damaged_listing(client: &Client) -> BoxFuture<'_, Result<(), String>> {
    Box::pin(async move { fails(client.list("bad").await, &[Kind::Corrupt, Kind::Server, Kind::TimedOut]) })
}

fn all_lists(make: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> impl Fn(&Asked) -> Option<Lie> {
    move |asked| asked.lists("bad%2F").then(|| Lie::Instead(make(asked)))
}

fn lists(items: &'static str) -> impl Fn(&Asked) -> Option<Lie> {
    all_lists(move |_| page(items, None))
}

/// A token for each page, so that none repeats.
fn endless(asked: &Asked, items: &str) -> Vec<u8> {
    page(items, Some(&format!("token-{}", asked.number)))
}

#[test]
fn listings_without_an_end() {
    run(vec![
        case("empty pages", all_lists(|asked| endless(asked, "")), finds_a_damaged_listing),
        case("one token", all_lists(|_| page(&plain("bad/f"), Some("token"))), finds_a_damaged_listing),
        case("one page", all_lists(|asked| endless(asked, &plain("bad/f"))), finds_a_damaged_listing),
        case("keys of others", all_lists(|asked| endless(asked, &plain("else"))), |client| {
            Box::pin(async { fails(client.list("bad").await, &[Kind::NotFound, Kind::Corrupt]) })
        }),
        case(
            "two pages in turn",
            all_lists(|asked| {
                let (name, token) =
                    if asked.query.contains("token=a") { ("bad/b", "b") } else { ("bad/a", "a") };
                page(&plain(name), Some(token))
            }),
            finds_a_damaged_listing,
        ),
        case(
            "cut off without a token",
            all_lists(|_| xml("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")),
            finds_a_damaged_listing,
        ),
        case(
            "rename of a directory whose listing goes in circles",
            all_lists(|asked| {
                let token = if asked.query.contains("token=a") { "b" } else { "a" };
                page(&plain("bad/known"), Some(token))
            }),
            |client| {
                Box::pin(async { fails(client.rename("bad", "new").await, &[Kind::Corrupt, Kind::TimedOut]) })
            },
        ),
        case(
            "rename of a directory whose listing has no end",
            all_lists(|asked| endless(asked, "")),
            |client| {
                Box::pin(async { fails(client.rename("bad", "new").await, &[Kind::Corrupt, Kind::TimedOut]) })
            },
        ),
        case(
            "removal of a directory whose listing has no end",
            all_lists(|asked| endless(asked, "")),
            |client| Box::pin(async { fails(client.rmdir("bad").await, &[Kind::Corrupt, Kind::TimedOut]) }),
        ),
    ]);
}

#[test]
fn answers_without_an_end() {
    let garbage = || vec![b'<'; 64 << 10];
    let open = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/xml\r\n\r\n<ListBucketResult><!-- ";
    let error = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<Error><Message>";
    let headers = "HTTP/1.1 200 OK\r\n";
    run(vec![
        case(
            "a listing",
            move |asked| {
                asked.lists("bad%2F").then(|| Lie::Endless(open.as_bytes().to_vec(), vec![b' '; 64 << 10]))
            },
            finds_a_damaged_listing,
        ),
        case(
            "an error",
            move |asked| asked.lists("bad%2F").then(|| Lie::Endless(error.as_bytes().to_vec(), garbage())),
            |client| {
                Box::pin(async {
                    let kinds = [Kind::Corrupt, Kind::InvalidArgument, Kind::TimedOut];
                    fails(client.list("bad").await, &kinds)
                })
            },
        ),
        case(
            "an error of a read",
            move |asked| {
                asked.is("GET", "bad/known").then(|| Lie::Endless(error.as_bytes().to_vec(), garbage()))
            },
            |client| {
                Box::pin(async {
                    fails(
                        client.read("bad/known").await,
                        &[Kind::Corrupt, Kind::InvalidArgument, Kind::TimedOut],
                    )
                })
            },
        ),
        case(
            "headers",
            move |asked| {
                let header = b"x-amz-meta-a: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(100);
                asked.is("HEAD", "bad/known").then(|| Lie::Endless(headers.as_bytes().to_vec(), header))
            },
            looks,
        ),
        case(
            "a header",
            move |asked| {
                let begun = format!("{headers}x-amz-meta-a: ").into_bytes();
                asked.is("GET", "bad/known").then(|| Lie::Endless(begun, vec![b'a'; 64 << 10]))
            },
            |client| {
                Box::pin(async {
                    fails(client.read("bad/known").await, &[Kind::Corrupt, Kind::Unreachable, Kind::TimedOut])
                })
            },
        ),
    ]);
}

#[test]
fn listings_of_odd_things() {
    let long = plain(&format!("bad/{}", "x".repeat(3_000)));
    let many = (0..3_000).map(|n| plain(&format!("bad/{}", "y/".repeat(n % 700)))).collect::<String>();
    let deep = prefix(&format!("bad/{}", "d/".repeat(5_000)));
    let control: String = (1..32).map(|c| plain(&format!("bad/%{c:02X}"))).collect();
    let encoded = move |items: &str| {
        xml(&format!("<ListBucketResult><EncodingType>url</EncodingType>{items}</ListBucketResult>"))
    };
    run(vec![
        case(
            "keys that climb",
            lists_of(["bad/../x", "bad/..", "bad/.", "bad//", "bad///x", "../bad/x", "/", "/etc/passwd", ""]),
            looks,
        ),
        case(
            "prefixes that climb",
            all_lists(|_| {
                page(
                    &["bad/../", "bad/./", "bad//", "../", "/", "", "bad/no-slash", "bad/a/b/"]
                        .map(prefix)
                        .concat(),
                    None,
                )
            }),
            looks,
        ),
        case("the directory itself", lists_of(["bad", "bad/", "bad/"]), looks),
        case("a long key", all_lists(move |_| page(&long, None)), looks),
        case("a deep prefix", all_lists(move |_| page(&deep, None)), looks),
        case("many duplicates out of order", all_lists(move |_| page(&many, None)), looks),
        case("control characters", all_lists(move |_| encoded(&control)), looks),
        case(
            "NUL",
            all_lists(move |_| encoded(&(plain("bad/a%00b") + &prefix("bad/a%00/") + &plain("bad/%00")))),
            looks,
        ),
        case(
            "both a file and a directory",
            all_lists(|_| {
                page(
                    &(plain("bad/known")
                        + &plain("bad/known/")
                        + &prefix("bad/known/")
                        + &plain("bad/known/x")),
                    None,
                )
            }),
            looks,
        ),
        case("a broken escape", all_lists(move |_| encoded(&plain("bad/%"))), looks),
        case("nothing", lists(""), |client| {
            Box::pin(async { fails(client.list("bad").await, &[Kind::NotFound]) })
        }),
        case("what a listing shows is not there", lists_of(["bad/gone"]), |client| {
            Box::pin(async move {
                client.list("bad").await.map_err(|error| error.report())?;
                fails(client.read("bad/gone").await, &[Kind::NotFound, Kind::Stale])
            })
        }),
        case(
            "another version than there is",
            all_lists(|_| page(&object("bad/known", "100", "other", DATE), None)),
            |client| {
                Box::pin(async move {
                    client.list("bad").await.map_err(|error| error.report())?;
                    match client.read("bad/known").await {
                        Ok(bytes) if bytes == b"known" => Ok(()),
                        answer => fails(answer, &[Kind::Stale]),
                    }
                })
            },
        ),
        case("no ETag", all_lists(|_| page(&object("bad/known", "5", "", DATE), None)), |client| {
            Box::pin(async move {
                client.list("bad").await.map_err(|error| error.report())?;
                let bytes = client.read("bad/known").await.map_err(|error| error.report())?;
                if bytes == b"known" { Ok(()) } else { Err(format!("{bytes:?}")) }
            })
        }),
        case("no date", all_lists(|_| page(&object("bad/known", "5", "e", ""), None)), looks),
        case(
            "the year 9999",
            all_lists(|_| page(&object("bad/known", "5", "e", "9999-12-31T23:59:59Z"), None)),
            looks,
        ),
        case(
            "the year 1",
            all_lists(|_| page(&object("bad/known", "5", "e", "0001-01-01T00:00:00Z"), None)),
            looks,
        ),
        case("no time at all", all_lists(|_| page(&object("bad/known", "5", "e", "yesterday"), None)), looks),
        case(
            "the largest size",
            all_lists(|_| page(&object("bad/known", "9223372036854775807", "e", DATE), None)),
            looks,
        ),
        case(
            "a larger size",
            all_lists(|_| page(&object("bad/known", "18446744073709551615", "e", DATE), None)),
            looks,
        ),
        case("a negative size", all_lists(|_| page(&object("bad/known", "-1", "e", DATE), None)), looks),
        case("a size in words", all_lists(|_| page(&object("bad/known", "many", "e", DATE), None)), looks),
        case(
            "an ETag of all sorts",
            all_lists(|_| page(&object("bad/known", "5", "&quot;\u{e9}&#10;%0D-\\", DATE), None)),
            looks,
        ),
    ]);
}

fn lists_of<const N: usize>(keys: [&'static str; N]) -> impl Fn(&Asked) -> Option<Lie> {
    all_lists(move |_| page(&keys.map(plain).concat(), None))
}

#[test]
fn listings_that_are_none() {
    let laughs = {
        let mut text = "<?xml version=\"1.0\"?><!DOCTYPE l [<!ENTITY a \"ha\">".to_owned();
        for (of, to) in [('a', 'b'), ('b', 'c'), ('c', 'd'), ('d', 'e'), ('e', 'f'), ('f', 'g'), ('g', 'h')] {
            text += &format!("<!ENTITY {to} \"{}\">", format!("&{of};").repeat(20));
        }
        text + "]><ListBucketResult><Contents><Key>bad/&h;</Key></Contents></ListBucketResult>"
    };
    let nested = "<a>".repeat(100_000);
    run(vec![
        case("garbage", all_lists(|_| xml("\u{1}\u{2}<<>>&&&")), finds_a_damaged_listing),
        case("half", all_lists(|_| xml("<ListBucketResult><Contents><Key>bad/a")), finds_a_damaged_listing),
        case("of another kind", all_lists(|_| xml("<LocationConstraint/>")), finds_a_damaged_listing),
        case(
            "a web page",
            all_lists(|_| answer("200 OK", "Content-Type: text/html\r\n", "<html><body>Login<br></html>")),
            finds_a_damaged_listing,
        ),
        case("a billion laughs", all_lists(move |_| xml(&laughs)), finds_a_damaged_listing),
        case(
            "deeply nested",
            all_lists(move |_| xml(&format!("<ListBucketResult>{nested}"))),
            finds_a_damaged_listing,
        ),
        case(
            "an error with success",
            all_lists(|_| xml("<Error><Code>InternalError</Code></Error>")),
            finds_a_damaged_listing,
        ),
        case(
            "cut short",
            all_lists(|_| answer("200 OK", "Content-Length: 500\r\n", "<ListBucketResult>")),
            |client| {
                Box::pin(async {
                    fails(client.list("bad").await, &[Kind::Corrupt, Kind::Unreachable, Kind::TimedOut])
                })
            },
        ),
        case(
            "of a negative length",
            all_lists(|_| answer("200 OK", "Content-Length: -5\r\n", "<ListBucketResult/>")),
            |client| {
                Box::pin(async {
                    fails(client.list("bad").await, &[Kind::Corrupt, Kind::Unreachable, Kind::TimedOut])
                })
            },
        ),
        case("no HTTP", all_lists(|_| b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), |client| {
            Box::pin(async {
                fails(client.list("bad").await, &[Kind::Corrupt, Kind::Unreachable, Kind::TimedOut])
            })
        }),
        case(
            "a redirect to itself",
            all_lists(|asked| {
                let to = format!("Location: http://localhost{}?{}\r\n", asked.path, asked.query);
                answer("307 Temporary Redirect", &to, "")
            }),
            |client| {
                Box::pin(async {
                    fails(client.list("bad").await, &[Kind::InvalidArgument, Kind::Corrupt, Kind::Server])
                })
            },
        ),
        case(
            "a redirect to this machine's files",
            all_lists(|_| answer("301 Moved Permanently", "Location: file:///etc/passwd\r\n", "")),
            |client| {
                Box::pin(async {
                    fails(client.list("bad").await, &[Kind::InvalidArgument, Kind::Corrupt, Kind::Server])
                })
            },
        ),
    ]);
}

/// Answers to GET of `bad/known`, whose five bytes are `known`.
fn gets(change: Change) -> impl Fn(&Asked) -> Option<Lie> {
    move |asked| asked.is("GET", "bad/known").then_some(Lie::Changed(change))
}

fn reads_nothing_wrong(client: &Client) -> BoxFuture<'_, Result<(), String>> {
    Box::pin(async move {
        match client.read("bad/known").await {
            Ok(bytes) if bytes == b"known" => Ok(()),
            answer => {
                fails(answer, &[Kind::Corrupt, Kind::Stale, Kind::Unreachable, Kind::TimedOut, Kind::Server])
            }
        }
    })
}

/// A byte in the middle is changed, so the others have to be fetched to be saved with it.
fn changes_nothing_else(client: &Client) -> BoxFuture<'_, Result<(), String>> {
    Box::pin(async move {
        match client.write_at("bad/known", 2, b"!").await {
            // The lie was found out, or was none that mattered.
            Err(error) if error.kind() == Kind::Internal => Err(error.report()),
            Err(_) => Ok(()),
            Ok(()) => match client.read("bad/known").await {
                Ok(bytes) if bytes == b"kn!wn" => Ok(()),
                Ok(bytes) => Err(format!("it is {:?} now", String::from_utf8_lossy(&bytes))),
                Err(_) => Ok(()),
            },
        }
    })
}

#[test]
fn bytes_that_are_not_what_was_asked_for() {
    let lies: [(&'static str, Change); 14] = [
        ("fewer than announced", |told| told[..told.len() - 2].to_owned()),
        ("more than announced", |told| told + "and more"),
        ("a shorter length", |told| told.replace("content-length: 5", "content-length: 3")),
        ("a longer length", |told| told.replace("content-length: 5", "content-length: 50")),
        ("a length beyond all memory", |told| {
            told.replace("content-length: 5", "content-length: 9223372036854775807")
        }),
        ("a length beyond all numbers", |told| {
            told.replace("content-length: 5", "content-length: 99999999999999999999999")
        }),
        ("another version", |told| with_header(&told, "etag", "\"another\"")),
        ("no version", |told| with_header(&told, "etag", "")),
        ("another range", |told| {
            with_header(&told, "content-range", "bytes 1-5/5").replacen("200 OK", "206 Partial Content", 1)
        }),
        ("a range of another object", |told| {
            with_header(&told, "content-range", "bytes 0-4/9223372036854775807").replacen(
                "200 OK",
                "206 Partial Content",
                1,
            )
        }),
        ("a range of the largest of all numbers", |told| {
            with_header(&told, "content-range", "bytes 0-4/18446744073709551615").replacen(
                "200 OK",
                "206 Partial Content",
                1,
            )
        }),
        ("a range that begins beyond all numbers", |told| {
            with_header(&told, "content-range", "bytes 18446744073709551615-4/18446744073709551615").replacen(
                "200 OK",
                "206 Partial Content",
                1,
            )
        }),
        ("a range that is none", |told| {
            with_header(&told, "content-range", "bytes 9-2/banana").replacen(
                "200 OK",
                "206 Partial Content",
                1,
            )
        }),
        ("no date", |told| with_header(&told, "last-modified", "the day before yesterday")),
    ];
    let both: [Act; 2] = [reads_nothing_wrong, changes_nothing_else];
    run(lies.into_iter().flat_map(|(name, lie)| both.map(|act| case(name, gets(lie), act))).collect());
}

/// An answer whose header is another, or is missing where `value` is empty.
fn with_header(answer: &str, name: &str, value: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let kept = head.lines().filter(|line| !line.to_lowercase().starts_with(&format!("{name}:")));
    let mut lines: Vec<String> = kept.map(str::to_owned).collect();
    if !value.is_empty() {
        lines.push(format!("{name}: {value}"));
    }
    format!("{}\r\n\r\n{body}", lines.join("\r\n"))
}

#[test]
fn changes_that_are_not_done_as_they_are_said_to_be() {
    const ERROR: &str = "<Error><Code>InternalError</Code><Message>no</Message></Error>";
    run(vec![
        case(
            "a Put without an ETag",
            |asked| (asked.is("PUT", "bad/new")).then(|| Lie::Instead(answer("200 OK", "", ""))),
            |client| {
                Box::pin(async {
                    fails(client.write("bad/new", b"bytes").await, &[Kind::Corrupt])?;
                    // The bytes are kept and can be read.
                    match client.read("bad/new").await {
                        Ok(bytes) if bytes == b"bytes" => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                })
            },
        ),
        case(
            "a copy that failed with success",
            |asked| asked.is("PUT", "bad/moved").then(|| Lie::Instead(xml(ERROR))),
            moves_or_leaves,
        ),
        case(
            "a copy that says nothing",
            |asked| asked.is("PUT", "bad/moved").then(|| Lie::Instead(xml("<CopyObjectResult/>"))),
            moves_or_leaves,
        ),
        case(
            "a copy that says garbage",
            |asked| asked.is("PUT", "bad/moved").then(|| Lie::Instead(xml("<html>"))),
            moves_or_leaves,
        ),
        case(
            "deletes that failed with success",
            |asked| (asked.method == "POST").then(|| Lie::Instead(xml(ERROR))),
            removes,
        ),
        case(
            "deletes of which nothing is told but garbage",
            |asked| (asked.method == "POST").then(|| Lie::Instead(xml("<html>"))),
            removes,
        ),
        case(
            "deletes of other keys than were asked for",
            |asked| {
                let told =
                    "<DeleteResult><Error><Key>else</Key><Code>AccessDenied</Code></Error></DeleteResult>";
                (asked.method == "POST").then(|| Lie::Instead(xml(told)))
            },
            removes,
        ),
        case(
            "an upload that has no name",
            |asked| {
                let begins = asked.is("POST", "bad/large") && asked.query.contains("uploads");
                begins.then(|| Lie::Instead(xml("<InitiateMultipartUploadResult/>")))
            },
            writes_large_or_fails,
        ),
        case(
            "a part without an ETag",
            |asked| {
                (asked.is("PUT", "bad/large") && asked.query.contains("partNumber"))
                    .then(|| Lie::Instead(answer("200 OK", "", "")))
            },
            writes_large_or_fails,
        ),
        case(
            "an upload whose end failed with success",
            |asked| {
                let ends = asked.is("POST", "bad/large") && asked.query.contains("uploadId");
                ends.then(|| Lie::Instead(xml(ERROR)))
            },
            writes_large_or_fails,
        ),
        case(
            "an upload whose end is garbage",
            |asked| {
                let ends = asked.is("POST", "bad/large") && asked.query.contains("uploadId");
                ends.then(|| Lie::Instead(xml("<html>")))
            },
            writes_large_or_fails,
        ),
        case(
            "an object of the largest size, which is written to",
            |asked| {
                let told = "ETag: \"e\"\r\nContent-Length: 9223372036854775807\r\n";
                asked.is("HEAD", "bad/known").then(|| Lie::Instead(answer("200 OK", told, "")))
            },
            |client| {
                Box::pin(async {
                    let size = client.stat("bad/known").await.map_err(|error| error.report())?.size;
                    assert_eq!(size, u64::try_from(i64::MAX).unwrap());
                    let file = client.open("bad/known", WRITE).await.map_err(|error| error.report())?;
                    let _ = client.fs.read(file.1, size - 4096, 1 << 20).await;
                    for at in [0, (1 << 62) - 1, (1 << 63) - 1, u64::MAX - 1] {
                        let _ = client.fs.write(file.1, at, b"!!!").await;
                    }
                    for len in [1 << 62, u64::MAX] {
                        fails(client.truncate_open(file.0, file.1, len).await, &[Kind::TooLarge])?;
                    }
                    let _ = client.truncate_open(file.0, file.1, 1).await;
                    let _ = client.close(file).await;
                    Ok(())
                })
            },
        ),
    ]);
}

/// Whether a rename was done or not, the bytes are under one of the names.
fn moves_or_leaves(client: &Client) -> BoxFuture<'_, Result<(), String>> {
    Box::pin(async move {
        let done = client.rename("bad/known", "bad/moved").await;
        let name = if done.is_ok() { "bad/moved" } else { "bad/known" };
        match client.read(name).await {
            Ok(bytes) if bytes == b"known" => Ok(()),
            other => Err(format!("renamed {done:?}, and is {other:?}")),
        }
    })
}

/// Two files are removed in a row, so that one request does it.
fn removes(client: &Client) -> BoxFuture<'_, Result<(), String>> {
    Box::pin(async move {
        let (one, two) = futures::join!(client.unlink("bad/known"), client.unlink("bad/other"));
        // Whoever is told that it was done, or waits for it, is told the truth.
        let waited = client.fs.flush_all().await;
        client.pass_ttl();
        for (done, key) in [(one, "bad/known"), (two, "bad/other")] {
            match client.read(key).await {
                Err(error) if error.kind() == Kind::NotFound => {}
                Ok(_) if done.is_err() || waited.is_err() => {}
                other => return Err(format!("removed {done:?}, flushed {waited:?}, and is {other:?}")),
            }
        }
        Ok(())
    })
}

fn writes_large_or_fails(client: &Client) -> BoxFuture<'_, Result<(), String>> {
    Box::pin(async move {
        let bytes = vec![7; 17 << 20];
        let file = client.open("bad/large", REWRITE).await.map_err(|error| error.report())?;
        client.fs.write(file.1, 0, &bytes).await.map_err(|error| error.report())?;
        fails(client.fs.fsync(file.1).await, &[Kind::Corrupt, Kind::Server, Kind::TimedOut])?;
        let read = client.read_all(file.1).await.map_err(|error| error.report())?;
        let _ = client.close(file).await;
        if read == bytes { Ok(()) } else { Err("the bytes are others".to_owned()) }
    })
}

/// Lists that are no listings of objects have an end as well.
#[test]
fn pages_of_versions_uploads_parts_and_buckets_that_go_in_circles() {
    let rule = |asked: &Asked| {
        let turn = asked.number % 2;
        let more = "<IsTruncated>true</IsTruncated>";
        let body = if asked.query.contains("versions") {
            format!(
                "<ListVersionsResult>{more}<NextKeyMarker>k{turn}</NextKeyMarker><Version><Key>k</Key><VersionId>v</VersionId></Version></ListVersionsResult>"
            )
        } else if asked.query.contains("uploads") {
            format!(
                "<ListMultipartUploadsResult>{more}<NextKeyMarker>k{turn}</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker><Upload><Key>k</Key><UploadId>u</UploadId></Upload></ListMultipartUploadsResult>"
            )
        } else if asked.query.contains("uploadId") {
            format!(
                "<ListPartsResult>{more}<NextPartNumberMarker>{turn}</NextPartNumberMarker><Part><PartNumber>-7</PartNumber><ETag>e</ETag><Size>1</Size></Part></ListPartsResult>"
            )
        } else if asked.path == "/" {
            format!(
                "<ListAllMyBucketsResult><Buckets><Bucket><Name>b</Name></Bucket></Buckets><ContinuationToken>t{turn}</ContinuationToken></ListAllMyBucketsResult>"
            )
        } else {
            return None;
        };
        Some(Lie::Instead(xml(&body)))
    };
    block_on(async {
        let server = Server::builder().bucket(BUCKET).start().await.unwrap();
        let liar = Liar::start(&server, Arc::new(rule)).await;
        let store = liar.store().await;
        let upload = Upload { bucket: BUCKET.into(), key: "k".into(), upload_id: "u".into() };
        let all = async {
            let request = ListVersionsRequest { bucket: BUCKET.into(), ..ListVersionsRequest::default() };
            store.list_versions(request).await.unwrap();
            fails(store.list_uploads(BUCKET, "").await, &[Kind::Corrupt]).unwrap();
            fails(store.list_parts(&upload).await, &[Kind::Corrupt]).unwrap();
            fails(store.list_buckets().await, &[Kind::Corrupt]).unwrap();
        };
        tokio::time::timeout(SOON, all).await.expect("they come to an end");
    });
}

/// Metadata that another program wrote in the encoding of its machine.
#[test]
fn headers_that_are_not_utf_8_do_not_hide_an_object() {
    let rule = |asked: &Asked| {
        if !matches!(asked.method.as_str(), "GET" | "HEAD") || asked.path != format!("/{BUCKET}/bad/known") {
            return None;
        }
        let mut told = b"HTTP/1.1 200 OK\r\nConnection: close\r\nETag: \"e\"\r\nContent-Length: 5\r\n\
            Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nx-amz-meta-name: caf\xe9\r\n\r\n"
            .to_vec();
        if asked.method == "GET" {
            told.extend(b"known");
        }
        Some(Lie::Instead(told))
    };
    run(vec![case("metadata in Latin-1", rule, |client| {
        Box::pin(async {
            let bytes = client.read("bad/known").await.map_err(|error| error.report())?;
            if bytes == b"known" { Ok(()) } else { Err(format!("{bytes:?}")) }
        })
    })]);
}

/// Names of buckets are names of directories, and parts of the paths that are asked for.
#[test]
fn buckets_whose_names_are_none() {
    let names = [
        "..",
        ".",
        "",
        "/",
        "a/b",
        "../../etc",
        "a&#0;b",
        "%2e%2e",
        "%",
        "a?x=y",
        "a#b",
        "b@evil.example",
        "a&#27;[2Jb",
        "a&#10;b",
        "arn:aws:s3:::x",
        "\u{202e}txt",
        BUCKET,
    ];
    let long = "n".repeat(3_000);
    let all: String = names
        .iter()
        .chain([&long.as_str()])
        .map(|name| format!("<Bucket><Name>{name}</Name></Bucket>"))
        .collect();
    let before = panics();
    block_on(async {
        let server = Server::builder().bucket(BUCKET).start().await.unwrap();
        honest_put(&server, "good/f", "fine").await;
        for with_nul in [true, false] {
            let told = if with_nul { all.clone() } else { all.replace("&#0;", "") };
            let body = format!("<ListAllMyBucketsResult><Buckets>{told}</Buckets></ListAllMyBucketsResult>");
            let rule = move |asked: &Asked| (asked.path == "/").then(|| Lie::Instead(xml(&body)));
            let liar = Liar::start(&server, Arc::new(rule)).await;
            let client = Client::of_all_buckets(liar.store().await);
            let look = async {
                let shown = client.list("").await.unwrap_or_default();
                for name in &shown {
                    let name = name.trim_end_matches('/');
                    assert!(
                        !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']),
                        "{name:?}"
                    );
                    assert!(name.len() <= 255, "{name:?}");
                    let _ = client.stat(name).await;
                    let _ = client.list(name).await;
                    let _ = client.read(&format!("{name}/f")).await;
                }
                assert!(with_nul || shown.contains(&format!("{BUCKET}/")), "{shown:?}");
                assert_eq!(client.read(&format!("{BUCKET}/good/f")).await.unwrap(), b"fine");
            };
            tokio::time::timeout(SOON, look).await.expect("it ends");
        }
    });
    assert_eq!(panics(), before, "something panicked");
}

/// A link to nowhere is an error of the object's, and no path that ends where its reader happens to think so.
#[test]
fn symbolic_links_that_lead_to_no_path() {
    let long = "a".repeat(4096);
    let escaped = format!("--symlink-target: {long}");
    for (what, header, body) in [
        ("empty", "mode: 41471".to_owned(), String::new()),
        ("with a NUL", "mode: 41471".to_owned(), "/etc/passwd\0.txt".to_owned()),
        ("longer than a path", "mode: 41471".to_owned(), long),
        ("with a NUL in its metadata", "--symlink-target: /etc/passwd%00.txt".to_owned(), String::new()),
        ("longer than a path in its metadata", escaped, String::new()),
    ] {
        let rule = move |asked: &Asked| {
            let head = asked.is("HEAD", "bad/known");
            let told = format!("ETag: \"e\"\r\nContent-Length: {}\r\nx-amz-meta-{header}\r\n", body.len());
            (head || asked.is("GET", "bad/known"))
                .then(|| Lie::Instead(answer("200 OK", &told, if head { "" } else { &body })))
        };
        run(vec![case(what, rule, |client| {
            Box::pin(async {
                let attr = client.walk("bad/known").await.map_err(|error| error.report())?;
                if attr.file_type != FileType::Symlink {
                    return Err(format!("it is a {:?}", attr.file_type));
                }
                fails(client.fs.readlink(attr.ino).await, &[Kind::Corrupt])
            })
        })]);
    }
}

/// What metadata may say of a file, at its ends: the kernel is told something that it takes.
#[test]
fn attributes_beyond_all_measure() {
    const ENDS: [&str; 12] = [
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775807.999999999",
        "-9223372036854775808.999999999",
        "99999999999999999999999999999999999999999999",
        "-0.1",
        "18446744073709551615",
        "4294967295",
        "4294967296",
        "037777777777",
        "0xffffffff",
        "1e9",
    ];
    let cases = ENDS.iter().flat_map(|value| {
        ["mtime", "atime", "ctime", "mode", "uid", "gid", "rdev", "file-mtime", "file-permissions"].map(|key| {
            let rule = move |asked: &Asked| {
                let head = asked.is("HEAD", "bad/known");
                let told = format!(
                    "ETag: \"e\"\r\nContent-Length: 5\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nx-amz-meta-{key}: {value}\r\n"
                );
                (head || asked.is("GET", "bad/known"))
                    .then(|| Lie::Instead(answer("200 OK", &told, if head { "" } else { "known" })))
            };
            case("an attribute at an end", rule, |client| {
                Box::pin(async {
                    let attr = client.walk("bad/known").await.map_err(|error| error.report())?;
                    if attr.perm > 0o7777 {
                        return Err(format!("{attr:?}"));
                    }
                    let _ = client.fs.getxattr(attr.ino, "user.s3.etag").await;
                    let _ = client.fs.listxattr(attr.ino).await;
                    let set = SetAttr { mtime: Some(attr.mtime), atime: Some(attr.atime), ..SetAttr::default() };
                    match client.fs.setattr(attr.ino, None, set).await {
                        Err(error) if error.kind() != Kind::Stale => Err(error.report()),
                        _ => Ok(()),
                    }
                })
            })
        })
    });
    let cases: Vec<Case> = cases.collect();
    let mut cases = cases.into_iter().peekable();
    while cases.peek().is_some() {
        run(cases.by_ref().take(36).collect());
    }
}

/// What a server says goes into logs, to terminals and into `last_error`: one line, that obeys nobody.
#[test]
fn words_of_a_server_are_words() {
    let said = "no&#10;2026-01-01 INFO pailfs: all is well&#13;&#27;[2J&#155;2J&#7;";
    let rule = move |asked: &Asked| {
        let error = format!("<Error><Code>Access&#10;Denied</Code><Message>{said}</Message></Error>");
        asked
            .lists("bad%2F")
            .then(|| Lie::Instead(answer("403 Forbidden", "Content-Type: application/xml\r\n", &error)))
    };
    run(vec![case("an error of many lines", rule, |client| {
        Box::pin(async {
            let error = client.list("bad").await.err().ok_or("it was listed")?;
            let report = error.report();
            if report.contains(char::is_control) || !report.contains("all is well") {
                return Err(format!("{report:?}"));
            }
            Ok(())
        })
    })]);
}

/// A signature is good for whoever hears it: no answer sends a request to somebody else.
#[test]
fn no_request_goes_where_an_answer_sends_it() {
    block_on(async {
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = format!("http://{}", elsewhere.local_addr().unwrap());
        let heard = Arc::new(AtomicUsize::new(0));
        let hears = Arc::clone(&heard);
        let listening = tokio::spawn(async move {
            while elsewhere.accept().await.is_ok() {
                hears.fetch_add(1, Ordering::Relaxed);
            }
        });
        let server = Server::builder().bucket(BUCKET).start().await.unwrap();
        for status in
            ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
        {
            for region in ["", "x-amz-bucket-region: eu-west-1\r\n", "x-amz-bucket-region: a.example/b#\r\n"]
            {
                let headers = format!("Location: {to}/{BUCKET}/other\r\nRefresh: 0; url={to}\r\n{region}");
                let body = format!("<Error><Code>PermanentRedirect</Code><Endpoint>{to}</Endpoint></Error>");
                let rule = move |_: &Asked| Some(Lie::Instead(answer(status, &headers, &body)));
                let liar = Liar::start(&server, Arc::new(rule)).await;
                let client = Client::of_server(liar.store().await);
                let asks = async {
                    client.list("bad").await.map(drop).unwrap_err();
                    client.read("bad/known").await.map(drop).unwrap_err();
                    client.write("bad/new", b"bytes").await.unwrap_err();
                };
                tokio::time::timeout(SOON, asks).await.expect("it ends");
            }
        }
        listening.abort();
        assert_eq!(heard.load(Ordering::Relaxed), 0, "{to} was asked");
    });
}
