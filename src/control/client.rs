//! The asking end of the socket.

use std::io;
use std::path::Path;

use rustix::process::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{REPLY_MAX_BYTES, Reply, Request, SILENCE_MAX, Unsaved, check_private};
use crate::error::{Error, Kind, Result};

/// A connection to a running mount, good for one request.
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the mount of a user. Nobody else can pose as it, and it cannot pose as somebody else's: the socket's directory
    /// and the answering process have to be the owner's.
    pub async fn connect(path: &Path, owner: u32) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            check_private(dir, owner)?;
        }
        let stream = timeout(SILENCE_MAX, UnixStream::connect(path)).await??;
        // Not root either, where it is not root's mount: a user's link may lead to another socket of root's, and who asks may
        // well be root.
        let peer = stream.peer_cred()?.uid();
        if peer != owner {
            return Err(io::Error::other(format!("user {peer} answers on {}", path.display())));
        }
        Ok(Self { stream })
    }

    /// The process that answers, as seen from here.
    pub fn pid(&self) -> Option<Pid> {
        self.stream.peer_cred().ok()?.pid().and_then(Pid::from_raw)
    }

    /// Asks, hears of the progress, and returns the final line.
    pub async fn ask(self, request: Request, mut progress: impl FnMut(&Unsaved)) -> Result<Reply> {
        let pid = self.pid().map(|pid| format!(" {}", pid.as_raw_nonzero())).unwrap_or_default();
        let failed = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::TimedOut => Kind::TimedOut,
                _ => Kind::Local,
            };
            Error::new(kind, format!("the mount's process{pid} does not answer")).with_source(error)
        };
        let (reader, mut writer) = self.stream.into_split();
        let mut text = serde_json::to_vec(&request).expect("a request is one word");
        text.push(b'\n');
        // A mount that turns us away says why and hangs up at once, maybe before it has read the question.
        let asked =
            timeout(SILENCE_MAX, writer.write_all(&text)).await.unwrap_or_else(|late| Err(late.into()));
        let mut reader = BufReader::new(reader);
        loop {
            text.clear();
            let mut bounded = (&mut reader).take(REPLY_MAX_BYTES);
            let read = timeout(SILENCE_MAX, bounded.read_until(b'\n', &mut text)).await;
            read.unwrap_or_else(|late| Err(late.into())).map_err(failed)?;
            if text.is_empty() {
                asked.map_err(failed)?;
                return Err(Error::new(Kind::Local, "the mount's process ended before it answered"));
            }
            if !text.ends_with(b"\n") {
                return Err(Error::new(Kind::Internal, "the mount's answer is cut off or too long"));
            }
            match serde_json::from_slice(&text) {
                Ok(Reply::Progress(unsaved)) => progress(&unsaved),
                Ok(last) => return Ok(last),
                Err(error) => {
                    return Err(
                        Error::new(Kind::Internal, "the mount's answer is not understood").with_source(error)
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cause, Handle, Refusal, Server, Status, UnsavedFile};
    use super::*;
    use futures::FutureExt;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::watch;

    struct Fixture {
        _dir: tempfile::TempDir,
        path: PathBuf,
        server: Option<Server>,
        /// Flushes end once this is true.
        flushed: watch::Sender<bool>,
    }

    /// A mount with one unsaved file, whose unmount is refused for it.
    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let path = dir.path().join("socket");
        let (flushed, _) = watch::channel(false);
        let server = Some(Server::start(&path, handle(&flushed)).unwrap());
        Fixture { _dir: dir, path, server, flushed }
    }

    fn handle(flushed: &watch::Sender<bool>) -> Arc<Handle> {
        let unsaved = || Unsaved::of([UnsavedFile { path: "a".into(), bytes: 7, sent: 0, last_error: None }]);
        let flushed = flushed.clone();
        Arc::new(Handle {
            status: Box::new(|| async { Status { pid: 42, ..Status::default() } }.boxed()),
            metrics: Box::new(|| async { "# a metric\n".to_owned() }.boxed()),
            unsaved: Box::new(unsaved),
            log_level: Box::new(|level| Ok(level.unwrap_or("info").to_owned())),
            flush: Box::new(move || {
                let mut flushed = flushed.subscribe();
                Box::pin(async move {
                    flushed.wait_for(|done| *done).await.expect("the sender outlives the test");
                    Ok(())
                })
            }),
            unmount: Box::new(move || {
                let unsaved = unsaved();
                Box::pin(async move {
                    Err(Refusal { cause: Cause::Unsaved, message: "1 file is not saved".into(), unsaved })
                })
            }),
        })
    }

    impl Fixture {
        async fn client(&self) -> Client {
            Client::connect(&self.path, rustix::process::geteuid().as_raw()).await.unwrap()
        }
    }

    #[tokio::test]
    async fn the_owner_gets_an_answer() {
        let mount = fixture();
        let client = mount.client().await;
        assert_eq!(client.pid(), Some(rustix::process::getpid()));
        let Reply::Status(status) = client.ask(Request::Status, |_| {}).await.unwrap() else {
            panic!("not a status")
        };
        assert_eq!(status.pid, 42);
    }

    #[tokio::test]
    async fn a_long_flush_tells_its_progress_and_then_its_end() {
        let mount = fixture();
        let mut heard = 0;
        let reply = mount
            .client()
            .await
            .ask(Request::Flush, |unsaved| {
                heard += 1;
                assert_eq!((unsaved.files, unsaved.bytes), (1, 7));
                mount.flushed.send_replace(true);
            })
            .await;
        assert_eq!(reply.unwrap(), Reply::Done);
        assert!(heard >= 1);
    }

    #[tokio::test]
    async fn a_refusal_says_what_is_not_saved() {
        let mount = fixture();
        let reply = mount.client().await.ask(Request::Unmount, |_| {}).await.unwrap();
        let Reply::Refused(refusal) = reply else { panic!("{reply:?}") };
        assert_eq!((refusal.cause, refusal.unsaved.files), (Cause::Unsaved, 1));
    }

    #[tokio::test]
    async fn nonsense_and_endless_lines_are_refused() {
        let mount = fixture();
        for request in [b"format c:\n".to_vec(), vec![b'x'; 64 << 10]] {
            let client = mount.client().await;
            let (reader, mut writer) = client.stream.into_split();
            // The mount may hang up before it has read all of it.
            let _ = writer.write_all(&request).await;
            let mut answer = String::new();
            BufReader::new(reader).read_line(&mut answer).await.unwrap_or_default();
            if request.ends_with(b"\n") {
                assert!(answer.contains("bad_request"), "{answer:?}");
            }
        }
        assert!(matches!(mount.client().await.ask(Request::Status, |_| {}).await, Ok(Reply::Status(_))));
    }

    #[tokio::test]
    async fn clients_are_bounded_and_their_places_come_back() {
        let mount = fixture();
        let waiting: Vec<_> = (0..8).map(|_| ask_flush(&mount.path)).collect();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while mount.flushed.receiver_count() < waiting.len() {
            assert!(tokio::time::Instant::now() < deadline, "the flushes never began");
            tokio::task::yield_now().await;
        }
        let reply = mount.client().await.ask(Request::Status, |_| {}).await.unwrap();
        let Reply::Refused(refusal) = reply else { panic!("{reply:?}") };
        assert_eq!(refusal.cause, Cause::TooManyClients);
        mount.flushed.send_replace(true);
        for task in waiting {
            assert_eq!(task.await.unwrap().unwrap(), Reply::Done);
        }
        loop {
            assert!(tokio::time::Instant::now() < deadline, "no place came back");
            if let Ok(Reply::Status(_)) = mount.client().await.ask(Request::Status, |_| {}).await {
                break;
            }
        }
    }

    fn ask_flush(path: &Path) -> tokio::task::JoinHandle<Result<Reply>> {
        let path = path.to_owned();
        tokio::spawn(async move {
            let me = rustix::process::geteuid().as_raw();
            Client::connect(&path, me).await.unwrap().ask(Request::Flush, |_| {}).await
        })
    }

    #[tokio::test]
    async fn stopping_answers_who_is_waiting_and_removes_the_socket() {
        let mut mount = fixture();
        let waiting = ask_flush(&mount.path);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while mount.flushed.receiver_count() == 0 {
            assert!(tokio::time::Instant::now() < deadline, "the flush never began");
            tokio::task::yield_now().await;
        }
        mount.flushed.send_replace(true);
        mount.server.take().unwrap().stop().await;
        assert_eq!(waiting.await.unwrap().unwrap(), Reply::Done);
        assert!(!mount.path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_is_not_taken_over_and_a_dead_one_is() {
        let mount = fixture();
        let error = Server::start(&mount.path, handle(&mount.flushed)).err().unwrap();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        let dead = mount.path.with_file_name("dead");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let server = Server::start(&dead, handle(&mount.flushed)).unwrap();
        server.stop().await;
    }

    /// Root that asks a user's mount to end must not end one of its own.
    #[tokio::test]
    async fn a_user_s_link_to_a_socket_of_root_s_is_not_asked() {
        let mount = fixture();
        let theirs = tempfile::tempdir().unwrap();
        std::fs::set_permissions(theirs.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&mount.path, theirs.path().join("socket")).unwrap();
        if std::os::unix::fs::chown(theirs.path(), Some(12_345), None).is_err() {
            return;
        }
        let error = Client::connect(&theirs.path().join("socket"), 12_345).await.err().unwrap();
        assert!(error.to_string().contains("user 0 answers"), "{error}");
    }

    #[tokio::test]
    async fn a_directory_that_others_can_enter_is_not_trusted() {
        let mount = fixture();
        let dir = mount.path.parent().unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let me = rustix::process::geteuid().as_raw();
        assert!(Client::connect(&mount.path, me).await.is_err());
        assert!(Client::connect(&mount.path, me + 1).await.is_err());
    }
}
