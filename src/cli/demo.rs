//! `pailfs demo`: an S3 server of our own, and on request a mount of it with something to try.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::args::DemoArgs;
use super::exit::{Code, Failure};
use super::{logging, machine, mount, mountpoint};
use crate::base::{Durability, Exclusive, OnConflict, Passthrough, PosixMode, StagingPlace, SystemClock};
use crate::config::{BucketDir, DEFAULT_SESSION, MountConfig, Rates, Site, Source, default_memory_limit};
use crate::control;
use crate::demo::{FaultRule, Server, seed_tree};
use crate::mount::Signals;
use crate::s3::{Client, ListRequest, MemStore, NewObjects, Secret, Session, SessionConfig, Store};

/// How long a request to the demo server may take: it is on this machine, and faults are part of the demo.
const TIMEOUT: Duration = Duration::from_secs(60);
const REGION: &str = "us-east-1";
const TTL: Duration = Duration::from_secs(1);

/// Serves until it is told to stop, and takes down whatever it set up.
pub async fn run(args: &DemoArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let server = start(args).await?;
    let outcome = match &args.mount {
        Some(dir) => try_out(args, &server, dir.as_deref(), &mut signals).await,
        None => serve(args, &server, &mut signals).await,
    };
    server.stop().await;
    outcome
}

async fn start(args: &DemoArgs) -> Result<Server, Failure> {
    let faults = args
        .fault
        .iter()
        .map(|rule| {
            rule.parse().map_err(|error| Failure::new(Code::Usage, format!("--fault {rule:?}: {error}")))
        })
        .collect::<Result<Vec<FaultRule>, _>>()?;
    let clock = Arc::new(SystemClock);
    let store = match &args.dir {
        Some(dir) => MemStore::open_dir(dir, REGION, clock, Arc::default())?,
        None => MemStore::in_region(REGION, clock, Arc::default()),
    };
    let mut builder = Server::builder()
        .listen(&args.listen)
        .region(REGION)
        .store(Arc::new(store))
        .faults(faults)
        .seed(args.fault_seed)
        .synthetic(args.synthetic);
    for bucket in &args.bucket {
        builder = builder.bucket(bucket);
    }
    Ok(builder.start().await?)
}

/// Says where it listens, and stays.
async fn serve(args: &DemoArgs, server: &Server, signals: &mut Signals) -> Result<(), Failure> {
    let credentials = server.credentials();
    say(&format!(
        "ready {} {} {} {REGION}\n",
        server.endpoint(),
        credentials.access_key,
        credentials.secret_key
    ))?;
    let stdin_closed = args.until_stdin_closes.then(stdin_end);
    let closed = async {
        match stdin_closed {
            // An error means that the reader is gone, which is an end as well.
            Some(end) => drop(end.await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = signals.next() => {}
        () = closed => {}
    }
    Ok(())
}

/// Resolves when standard input ends. A thread of its own reads it, because the runtime would wait at its end for
/// a reader of its own.
fn stdin_end() -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    });
    end
}

/// Fills the first bucket, mounts it, shows what to try, and cleans up after a signal or an unmount.
async fn try_out(
    args: &DemoArgs,
    server: &Server,
    dir: Option<&Path>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let Some(bucket) = args.bucket.first() else {
        return Err(Failure::new(Code::Usage, "there is no bucket to mount"));
    };
    let log = logging::start(&args.log, false)?;
    let settings = server_session(server);
    let session = Session::builder().name("demo").settings(settings.clone()).timeout(TIMEOUT).build().await?;
    let client = session.client();
    tokio::select! {
        seeded = seed(&client, bucket) => seeded?,
        () = signals.next() => return Ok(()),
    }

    let home =
        tempfile::Builder::new().prefix("pailfs-demo-").tempdir().map_err(crate::error::Error::from)?;
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => {
            let dir = home.path().join(bucket);
            std::fs::create_dir(&dir).map_err(crate::error::Error::from)?;
            dir
        }
    };
    let config = configure(bucket, settings, &dir, home.path())?;
    let mountpoint = config.mountpoint.clone();
    log.require_outside(&mountpoint)?;
    let guide = guide(&mountpoint, bucket, &server.endpoint());
    let ready = || say(&guide).map_err(|failure| std::io::Error::other(failure.message));
    let run = crate::mount::run(config, ready, mount::shown(), log.of_mount());
    let outcome = run.await.map_err(mount::failure_of);
    if mountpoint::is_mounted(&mountpoint).unwrap_or(true) {
        // Removing the directory would remove what is in the bucket.
        let kept = home.keep();
        return Err(Failure::new(Code::Mountpoint, format!("{} is still mounted", kept.display())));
    }
    outcome
}

/// An empty bucket gets something to look at; one that was kept from an earlier demo stays as it was left.
async fn seed(client: &Client, bucket: &str) -> crate::error::Result<()> {
    let any = ListRequest { bucket: bucket.to_owned(), max_keys: Some(1), ..ListRequest::default() };
    if client.list(any).await?.objects.is_empty() { seed_tree(client, bucket).await } else { Ok(()) }
}

fn configure(bucket: &str, settings: SessionConfig, dir: &Path, home: &Path) -> Result<MountConfig, Failure> {
    let me = rustix::process::geteuid().as_raw();
    let mountpoint = mountpoint::prepare(dir, false)?;
    let control_socket = control::place_socket(&machine::runtime_dirs(me), &mountpoint)?;
    let config = MountConfig {
        mountpoint,
        site: Site {
            source: Source::Bucket(BucketDir {
                bucket: bucket.to_owned(),
                prefix: String::new(),
                session: DEFAULT_SESSION.to_owned(),
                read_only: false,
                new_objects: NewObjects::default(),
            }),
            sessions: BTreeMap::from([(DEFAULT_SESSION.to_owned(), settings)]),
            timeout: TIMEOUT,
            memory_limit: default_memory_limit(machine::available_memory()),
            state_dir: home.join("state"),
        },
        read_only: false,
        uid: me,
        gid: rustix::process::getegid().as_raw(),
        file_mode: 0o644,
        dir_mode: 0o755,
        posix: PosixMode::default(),
        allow_other: false,
        noexec: false,
        metadata_ttl: TTL,
        negative_ttl: TTL,
        cache: None,
        passthrough: Passthrough::Never,
        state_reserve: None,
        durability: Durability::default(),
        upload_delay: Duration::ZERO,
        staging: StagingPlace::default(),
        exclusive: Exclusive::default(),
        on_conflict: OnConflict::default(),
        trace_ops: None,
        control_socket,
        metrics_listen: None,
        rates: Rates::default(),
    };
    config.check()?;
    Ok(config)
}

/// What the server's own session is: its keys are no secret, they are printed.
fn server_session(server: &Server) -> SessionConfig {
    let credentials = server.credentials();
    SessionConfig {
        access_key_id: Some(credentials.access_key.clone()),
        secret_access_key: Some(Secret::new(credentials.secret_key.clone())),
        region: Some(REGION.to_owned()),
        endpoint_url: Some(server.endpoint()),
        ..SessionConfig::default()
    }
}

fn guide(mountpoint: &Path, bucket: &str, endpoint: &str) -> String {
    let dir = shell_quoted(mountpoint);
    format!(
        "\
The bucket s3://{bucket} of the demo server at {endpoint} is mounted on

    {dir}

In another terminal, try:

    ls -l {dir}
    cat {dir}/README.txt
    cp {dir}/README.txt {dir}/inbox/copy.txt
    grep -r quiet {dir}/logs | wc -l
    echo 'one more line' >> {dir}/docs/notes/today.txt

Ctrl-C here unmounts it and takes everything down again.
"
    )
}

/// A path as a shell takes it.
fn shell_quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn say(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let said = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    said.map_err(|error| Failure::new(Code::Local, format!("cannot write to standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_has_five_things_that_a_shell_takes() {
        let text = guide(Path::new("/tmp/it's here"), "b", "http://127.0.0.1:1");
        for command in ["ls -l '", "cat '", "cp '", "grep -r quiet '", ">> '"] {
            assert!(text.contains(command), "{text}");
        }
        assert!(text.contains("'/tmp/it'\\''s here'/README.txt"), "{text}");
        assert_eq!(shell_quoted(Path::new("/tmp/pailfs-demo-x/demo")), "/tmp/pailfs-demo-x/demo");
    }
}
