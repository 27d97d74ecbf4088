//! The mount's end of the socket.

use std::io;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::{
    Cause, PROGRESS_EVERY, REQUEST_MAX_BYTES, Refusal, Reply, Request, SILENCE_MAX, Status, Unsaved,
};
use crate::error::{Error, Kind, Result};

/// Clients that are served at once.
const CLIENTS_MAX: usize = 8;
/// How long the end of the mount waits for clients to take their last line.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// How long to leave a listener alone that failed to accept, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

type Answer<T> = Box<dyn Fn() -> BoxFuture<'static, T> + Send + Sync>;
/// Sets how much is logged, where that is said; returns it.
pub type LogLevel = Box<dyn Fn(Option<&str>) -> Result<String> + Send + Sync>;
type Operation = Box<dyn Fn() -> BoxFuture<'static, Result<(), Refusal>> + Send + Sync>;

/// What a mount lets its clients do.
pub struct Handle {
    pub status: Answer<Status>,
    pub metrics: Answer<String>,
    pub unsaved: Box<dyn Fn() -> Unsaved + Send + Sync>,
    /// Ends once every changed file is in S3, or will not get there.
    pub flush: Operation,
    /// Ends once the directory is no longer mounted, or will stay mounted.
    pub unmount: Operation,
    pub log_level: LogLevel,
}

/// A socket that answers. It goes away with [`stop`](Self::stop) or when dropped.
pub struct Server {
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Makes the socket and answers on it from now on. `AlreadyExists` where another mount answers there; a
    /// socket that nobody answers on is replaced.
    pub fn start(path: &Path, handle: Arc<Handle>) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::new(Kind::Local, format!("cannot make the control socket {}", path.display()))
                .with_source(error)
        };
        match BlockingStream::connect(path) {
            Ok(_) => {
                return Err(Error::new(
                    Kind::AlreadyExists,
                    format!(
                        "another mount of this directory has not ended yet: it answers on {}",
                        path.display()
                    ),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => std::fs::remove_file(path).map_err(failed)?,
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, handle, stopped));
        Ok(Self { path: path.to_owned(), stop: Some(stop), task })
    }

    /// Takes no more clients, lets those that are served have their last line, and removes the socket.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        // The task only ends early if it panicked, and then there is nothing to wait for.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the control socket was gone");
        }
    }
}

async fn accept(listener: UnixListener, handle: Arc<Handle>, mut stopped: oneshot::Receiver<()>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => { clients.spawn(serve(stream, Arc::clone(&handle), place)); }
                    Err(_) => { turn_away(&stream); }
                },
                Err(error) => {
                    tracing::warn!(%error, "the control socket could not accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = clients.join_next(), if !clients.is_empty() => {}
            _ = &mut stopped => break,
        }
    }
    drop(listener);
    let goodbye = async { while clients.join_next().await.is_some() {} };
    if timeout(GOODBYE_MAX, goodbye).await.is_err() {
        tracing::debug!("a control client did not take its answer");
    }
}

/// Says so without waiting: a new socket's buffer has room for one line.
fn turn_away(stream: &UnixStream) {
    let refusal = Refusal::new(Cause::TooManyClients, "too many clients are asking this mount already");
    let _ = stream.try_write(&line(&Reply::Refused(refusal)));
}

async fn serve(stream: UnixStream, handle: Arc<Handle>, place: OwnedSemaphorePermit) {
    if let Err(error) = converse(stream, handle, place).await {
        tracing::debug!(%error, "a control client went away");
    }
}

async fn converse(stream: UnixStream, handle: Arc<Handle>, place: OwnedSemaphorePermit) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        tracing::warn!(uid = peer, "another user asked the control socket; not answered");
        return Ok(());
    }
    let (reader, writer) = stream.into_split();
    let mut client = Writer(writer);
    let mut text = Vec::new();
    let mut reader = BufReader::new(reader).take(REQUEST_MAX_BYTES);
    timeout(SILENCE_MAX, reader.read_until(b'\n', &mut text)).await??;
    if !text.ends_with(b"\n") {
        let message = format!("a request is one line of at most {REQUEST_MAX_BYTES} bytes");
        return client.say(&Reply::Refused(Refusal::new(Cause::BadRequest, message))).await;
    }
    let last = match serde_json::from_slice(&text) {
        Ok(Request::Status) => Reply::Status(Box::new((handle.status)().await)),
        Ok(Request::Metrics) => Reply::Metrics { text: (handle.metrics)().await },
        Ok(Request::Flush) => client.watch((handle.flush)(), &handle, place).await?,
        Ok(Request::LogLevel { level }) => match (handle.log_level)(level.as_deref()) {
            Ok(level) => Reply::LogLevel { level },
            Err(error) => Reply::Refused(Refusal::new(Cause::Failed, error.report())),
        },
        Ok(Request::Unmount) => client.watch((handle.unmount)(), &handle, place).await?,
        Err(error) => Reply::Refused(Refusal::new(Cause::BadRequest, error.to_string())),
    };
    client.say(&last).await
}

struct Writer(tokio::net::unix::OwnedWriteHalf);

impl Writer {
    /// Runs an operation to its end, with a progress line now and then. The operation goes on when the client
    /// goes away, and keeps the client's place until then, so that operations are bounded as clients are.
    async fn watch(
        &mut self,
        operation: BoxFuture<'static, Result<(), Refusal>>,
        handle: &Handle,
        place: OwnedSemaphorePermit,
    ) -> io::Result<Reply> {
        let mut operation = tokio::spawn(async move {
            let _place = place;
            operation.await
        });
        let mut ticks = tokio::time::interval_at(Instant::now() + PROGRESS_EVERY, PROGRESS_EVERY);
        loop {
            tokio::select! {
                done = &mut operation => {
                    return Ok(match done {
                        Ok(Ok(())) => Reply::Done,
                        Ok(Err(refusal)) => Reply::Refused(refusal),
                        Err(error) => Reply::Refused(Refusal::new(Cause::Failed, error.to_string())),
                    });
                }
                _ = ticks.tick() => self.say(&Reply::Progress((handle.unsaved)())).await?,
            }
        }
    }

    async fn say(&mut self, reply: &Reply) -> io::Result<()> {
        timeout(SILENCE_MAX, self.0.write_all(&line(reply))).await?
    }
}

fn line(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).expect("a reply is made of strings and numbers alone");
    line.push(b'\n');
    line
}
