//! The servers that tests run against: one instance of each per test process, started when first asked for.
//!
//! Nothing is left behind, however the process dies: a server ends when its standard input closes, and
//! that pipe is ours. Where `scripts/servers run` has started servers already, `TEST_S3_<NAME>` says
//! where they are and they are used instead; that saves a start per test under a runner that gives each
//! test its own process.
//!
//! `REQUIRE_SERVERS=1` makes a server that cannot start a failure. Without it a test that cannot run says
//! so on standard error, with a count, past the capture of the test runner.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use pailfs::base::SystemClock;
use pailfs::s3::{MemStore, Session, Store};
use pailfs::stats::Stats;

/// Longer than the helper's own deadline, so that its reason is heard.
const START_DEADLINE: Duration = Duration::from_secs(240);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// The model in this process.
    Mem,
    /// The binary under test, as `pailfs demo`.
    Demo,
    /// The same with a bucket of objects that are made up: `synthetic`, 10 directories of 10,000 files of 4 MiB.
    Synthetic,
    Garage,
    /// Three nodes of it, of which one at a time may be killed.
    Cluster,
    SeaweedFs,
    Moto,
}

/// Where a server listens and who may use it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub url: String,
    pub access: String,
    pub secret: String,
    pub region: String,
}

impl Server {
    pub fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Demo => "demo",
            Self::Synthetic => "synthetic",
            Self::Garage => "garage",
            Self::Cluster => "cluster",
            Self::SeaweedFs => "seaweedfs",
            Self::Moto => "moto",
        }
    }

    /// Where it listens, once it does; `Ok(None)` for the one in this process.
    pub fn endpoint(self) -> Result<Option<&'static Endpoint>, &'static str> {
        Ok(self.running()?.map(|running| &running.endpoint))
    }

    /// Where the server has its files, where it says so.
    pub fn directory(self) -> Option<PathBuf> {
        let running = self.running().ok()??;
        running.line.split_whitespace().last().filter(|word| word.starts_with('/')).map(PathBuf::from)
    }

    fn running(self) -> Result<Option<&'static Running>, &'static str> {
        static STARTED: [OnceLock<Result<Running, String>>; 6] = [const { OnceLock::new() }; 6];
        let slot = match self {
            Self::Mem => return Ok(None),
            Self::Demo => &STARTED[0],
            Self::Garage => &STARTED[1],
            Self::SeaweedFs => &STARTED[2],
            Self::Moto => &STARTED[3],
            Self::Synthetic => &STARTED[4],
            Self::Cluster => &STARTED[5],
        };
        match slot.get_or_init(|| self.find_or_start()) {
            Ok(running) => Ok(Some(running)),
            Err(why) => Err(why),
        }
    }

    /// A store on this server, shared by the whole process; or why there is none.
    pub fn store(self) -> Result<Arc<dyn Store>, &'static str> {
        static MEM: LazyLock<Arc<dyn Store>> =
            LazyLock::new(|| Arc::new(MemStore::new(Arc::new(SystemClock), Arc::new(Stats::default()))));
        static CLIENTS: [OnceLock<Arc<dyn Store>>; 6] = [const { OnceLock::new() }; 6];
        let Some(endpoint) = self.endpoint()? else { return Ok(Arc::clone(&MEM)) };
        let slot = match self {
            Self::Mem | Self::Demo => &CLIENTS[0],
            Self::Garage => &CLIENTS[1],
            Self::SeaweedFs => &CLIENTS[2],
            Self::Moto => &CLIENTS[3],
            Self::Synthetic => &CLIENTS[4],
            Self::Cluster => &CLIENTS[5],
        };
        Ok(Arc::clone(slot.get_or_init(|| super::block_on(endpoint.client()))))
    }

    /// As [`store`](Self::store); where there is none, says that `test` did not run, or fails it where
    /// the run insists on servers.
    pub fn store_or_say(self, test: &str) -> Option<Arc<dyn Store>> {
        static NOT_RUN: AtomicUsize = AtomicUsize::new(0);
        match self.store() {
            Ok(store) => Some(store),
            Err(why) if super::setting("REQUIRE_SERVERS").is_some_and(|value| value != "0") => {
                panic!("REQUIRE_SERVERS is set and {} cannot be used: {why}", self.name());
            }
            Err(why) => {
                let count = NOT_RUN.fetch_add(1, Ordering::Relaxed) + 1;
                let line = format!("NOT RUN ({count}): {}::{test}: {why}\n", self.name());
                // Written directly, because what a passing test prints is kept back.
                let _ = std::io::stderr().write_all(line.as_bytes());
                None
            }
        }
    }

    fn find_or_start(self) -> Result<Running, String> {
        let variable = format!("TEST_S3_{}", self.name().to_uppercase());
        if let Some(line) = super::setting(&variable) {
            let endpoint = Endpoint::parse(&line).ok_or_else(|| line.clone())?;
            return Ok(Running { endpoint, line, _child: None });
        }
        match self {
            Self::Demo | Self::Synthetic => {
                let mut demo = Command::new(env!("CARGO_BIN_EXE_pailfs"));
                demo.args(["demo", "--listen", "127.0.0.1:0", "--until-stdin-closes"]);
                if self == Self::Synthetic {
                    demo.args(["--synthetic", "10x10000x4MiB"]);
                }
                Running::start(demo, "ready")
            }
            _ => {
                let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers"));
                script.args(["start", self.name()]);
                Running::start(script, &format!("ready {}", self.name()))
            }
        }
    }
}

impl Endpoint {
    /// A client of its own, for these keys.
    pub async fn client(&self) -> Arc<dyn Store> {
        let session = Session::builder()
            .endpoint_url(&self.url)
            .credentials(&self.access, &self.secret, None)
            .region(&self.region)
            .build()
            .await
            .expect("explicit keys make a session");
        Arc::new(session.client())
    }

    /// `URL ACCESS SECRET REGION`, and whatever follows.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().map(str::to_owned);
        let endpoint = Self {
            url: words.next().filter(|url| url.starts_with("http://"))?,
            access: words.next()?,
            secret: words.next()?,
            region: words.next()?,
        };
        Some(endpoint)
    }
}

struct Running {
    endpoint: Endpoint,
    /// All that it said.
    line: String,
    /// Holds the pipe whose end ends the server.
    _child: Option<Child>,
}

impl Running {
    /// Starts `command` and waits for its line that begins with `ready`.
    fn start(mut command: Command, ready: &str) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let stdout = child.stdout.take().ok_or("its output is not ours")?;
        let stderr = child.stderr.take().ok_or("its errors are not ours")?;
        // Both are read to their end, so that a talkative server never blocks on a full pipe.
        let (said, hear) = sync_channel(1);
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let _ = said.send(lines.next().and_then(Result::ok).unwrap_or_default());
            lines.for_each(drop);
        });
        let (complained, complaints) = sync_channel(1);
        std::thread::spawn(move || {
            let (mut head, mut rest) = (Vec::new(), stderr);
            let _ = rest.by_ref().take(8192).read_to_end(&mut head);
            let _ = complained.send(String::from_utf8_lossy(&head).into_owned());
            let _ = std::io::copy(&mut rest, &mut std::io::sink());
        });
        let line = hear.recv_timeout(START_DEADLINE).unwrap_or_default();
        match line.strip_prefix(ready).and_then(Endpoint::parse) {
            Some(endpoint) => Ok(Self { endpoint, line, _child: Some(child) }),
            None => {
                drop(child.stdin.take());
                let complaint = complaints.recv_timeout(Duration::from_secs(20)).unwrap_or_default();
                Err(format!("it said {line:?}; {}", complaint.trim()))
            }
        }
    }
}

/// Bytes of request bodies the demo server has received.
pub fn bytes_in(server: Server) -> u64 {
    let counts: serde_json::Value =
        serde_json::from_str(&admin(server, "GET", "/-/counts", "")).expect("JSON");
    counts["bytes_in"].as_u64().expect("a number")
}

/// Requests of one API name the demo server has answered.
pub fn requests(server: Server, operation: &str) -> u64 {
    let counts: serde_json::Value =
        serde_json::from_str(&admin(server, "GET", "/-/counts", "")).expect("JSON");
    counts["requests"][operation].as_u64().unwrap_or(0)
}

/// Fault rules of the demo server, until this goes out of scope. Tests of one process share the server, so
/// a rule names its own bucket.
pub struct Faults(Server, String);

/// Adds a rule; see `pailfs demo --help`.
pub fn faults(server: Server, rule: &str) -> Faults {
    static ONE_CHANGE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = ONE_CHANGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let rules = admin(server, "GET", "/-/faults", "");
    admin(server, "PUT", "/-/faults", &format!("{rules}\n{rule}\n"));
    Faults(server, rule.to_owned())
}

impl Drop for Faults {
    fn drop(&mut self) {
        let rules = admin(self.0, "GET", "/-/faults", "");
        let bucket = self.1.split(',').find(|part| part.starts_with("bucket=")).unwrap_or("").to_owned();
        let kept: Vec<&str> = rules.lines().filter(|line| !line.contains(&bucket)).collect();
        admin(self.0, "PUT", "/-/faults", &kept.join("\n"));
    }
}

/// One request to the demo server's own pages.
fn admin(server: Server, method: &str, path: &str, body: &str) -> String {
    let endpoint = server.endpoint().expect("the server runs").expect("the server is a process");
    let address = endpoint.url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket takes a deadline");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(head.contains(" 200 ") || head.contains(" 204 "), "{method} {path}: {answer}");
    body.to_owned()
}
