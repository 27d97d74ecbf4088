//! What a running mount is asked to do: flush, umount.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{PidfdFlags, pidfd_open};

use super::args::{FlushArgs, LogLevelArgs, UmountArgs};
use super::exit::{Code, Failure};
use super::logging;
use super::mountpoint::{self, Place};
use super::printable::printable;
use super::progress::Progress;
use crate::base::{Clock, SystemClock, format_bytes};
use crate::control::{Cause, Client, Reply, Request, Unsaved};
use crate::error::Kind;
use crate::mount;

/// How long a process may take to end after it has said that all is saved and unmounted.
const END_WAIT_SECONDS: i64 = 60;

pub async fn flush(args: &FlushArgs) -> Result<(), Failure> {
    let client = live(&args.dir).await?;
    match watched(client, Request::Flush).await? {
        Reply::Done => Ok(()),
        other => Err(refused(other)),
    }
}

pub async fn log_level(args: &LogLevelArgs) -> Result<(), Failure> {
    // What nobody understands is the command line's fault, not the mount's.
    args.level.as_deref().map(logging::check_filter).transpose()?;
    let client = live(&args.dir).await?;
    let request = Request::LogLevel { level: args.level.clone() };
    match client.ask(request, |_| {}).await.map_err(no_answer)? {
        // Who changes it knows what it is now.
        Reply::LogLevel { .. } if args.level.is_some() => Ok(()),
        Reply::LogLevel { level } => writeln!(std::io::stdout(), "{}", printable(&level))
            .map_err(|error| Failure::new(Code::Local, error.to_string())),
        other => Err(refused(other)),
    }
}

pub async fn umount(args: &UmountArgs) -> Result<(), Failure> {
    unmount(&args.dir, Unmounter::Mount).await
}

/// Who takes the directory away when all is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounter {
    /// The mount's process, which does it only if nothing was written meanwhile.
    Mount,
    /// This one: what systemd mounted at its first use it unmounts by itself after a while, and until that is over the
    /// kernel lets nobody come near the directory but systemd's own process group, of which the mount's process is not.
    Caller,
}

pub async fn unmount(dir: &Path, by: Unmounter) -> Result<(), Failure> {
    let place = Place::find(dir)?;
    let Some(client) = place.connect().await? else {
        mountpoint::clear_dead(&place.path)?;
        eprintln!(
            "pailfs: the process of this mount was gone already; what it had not saved to S3 is kept, and saved by the \
             next mount or `pailfs recover`"
        );
        return Ok(());
    };
    let process = client.pid().and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
    let request = match by {
        Unmounter::Mount => Request::Unmount,
        Unmounter::Caller => Request::Flush,
    };
    match watched(client, request).await? {
        Reply::Done => {}
        other => return Err(refused(other)),
    }
    if by == Unmounter::Caller {
        let taken_away = tokio::task::spawn_blocking(move || take_away(&place.path));
        taken_away.await.unwrap_or_else(|panic| Err(Failure::new(Code::Internal, panic.to_string())))?;
    }
    let Some(process) = process else { return Ok(()) };
    let ended = tokio::task::spawn_blocking(move || {
        let end = rustix::event::Timespec { tv_sec: END_WAIT_SECONDS, tv_nsec: 0 };
        rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&end))
    });
    match ended.await {
        Ok(Ok(1..)) => Ok(()),
        Ok(Ok(0)) => {
            Err(Failure::new(Code::NoAnswer, "all is saved and unmounted, but the process does not end"))
        }
        Ok(Err(error)) => {
            Err(Failure::new(Code::Local, format!("cannot wait for the mount's process: {error}")))
        }
        Err(panic) => Err(Failure::new(Code::Internal, panic.to_string())),
    }
}

/// Takes the directory away if nobody uses it.
fn take_away(path: &Path) -> Result<(), Failure> {
    let patience = SystemClock.now() + mount::BUSY_WAIT;
    loop {
        match crate::fuse::unmount(path, false) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == Kind::Conflict => {
                if SystemClock.now() >= patience {
                    return Err(Failure::new(Code::Mountpoint, mount::IN_USE));
                }
                std::thread::sleep(mount::BUSY_PAUSE);
            }
            // Somebody else was quicker.
            Err(_) if !mountpoint::is_mounted(path)? => return Ok(()),
            Err(error) => return Err(Failure::coded(Code::Mountpoint, &error)),
        }
    }
}

/// Takes the directory away now, as `umount -l` does. The mount's process saves what is left.
pub fn detach(dir: &Path) -> Result<(), Failure> {
    let place = Place::find(dir)?;
    crate::fuse::unmount(&place.path, true).map_err(|error| Failure::coded(Code::Mountpoint, &error))
}

/// Asks for something that takes its time, and shows how far it is.
async fn watched(client: Client, request: Request) -> Result<Reply, Failure> {
    let mut progress = Progress::new();
    let answer = client.ask(request, |unsaved| progress.hear(unsaved)).await;
    progress.end(matches!(answer, Ok(Reply::Done)));
    answer.map_err(no_answer)
}

pub async fn live(dir: &Path) -> Result<Client, Failure> {
    let place = Place::find(dir)?;
    place.connect().await?.ok_or_else(|| {
        Failure::new(
            Code::NoAnswer,
            format!(
                "the process that mounted {0} is gone; `pailfs umount {0}` clears it away",
                place.path.display()
            ),
        )
    })
}

pub fn no_answer(error: crate::error::Error) -> Failure {
    match error.kind() {
        // Neither the network nor `--timeout` has to do with it.
        Kind::TimedOut => Failure::new(
            Code::NoAnswer,
            format!(
                "{}: it is stopped, which `kill -CONT` ends, or stuck, and then `kill -9` and `pailfs umount` end it; what \
                 was not saved is kept. If it goes on, it does what it was asked",
                error.message()
            ),
        ),
        _ => Failure::new(Code::NoAnswer, error.report()),
    }
}

pub fn refused(reply: Reply) -> Failure {
    match reply {
        Reply::Refused(refusal) => {
            let code = match refusal.cause {
                Cause::Unsaved => Code::UnsavedData,
                Cause::Busy => Code::Mountpoint,
                Cause::TooManyClients => Code::NoAnswer,
                Cause::BadRequest => Code::Internal,
                Cause::Failed => Code::Failed,
            };
            Failure::new(code, name_files(&printable(&refusal.message), &refusal.unsaved))
        }
        _ => Failure::new(Code::Internal, "the mount answered something else than it was asked"),
    }
}

/// A message and the files it is about.
pub fn name_files(message: &str, unsaved: &Unsaved) -> String {
    let mut text = message.to_owned();
    for file in &unsaved.first {
        let error = printable(file.last_error.as_deref().unwrap_or("not tried yet"));
        let _ = write!(text, "\n  {} ({}): {error}", printable(&file.path), format_bytes(file.bytes));
    }
    let named = unsaved.first.len() as u64;
    if unsaved.files > named {
        let _ = write!(text, "\n  and {} more", unsaved.files - named);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Refusal, UnsavedFile};

    #[test]
    fn no_terminal_obeys_a_refusal() {
        let told = Unsaved::of([UnsavedFile {
            path: "p\x1b".into(),
            bytes: 1,
            sent: 0,
            last_error: Some("e\x1b\n".into()),
        }]);
        let refusal = Refusal { unsaved: told, ..Refusal::new(Cause::Failed, "m\x1b\n") };
        let message = refused(Reply::Refused(refusal)).message;
        assert!(!message.contains('\x1b') && message.lines().count() == 2, "{message:?}");
    }

    #[test]
    fn a_refusal_names_the_files_and_has_a_code() {
        let file = |n: u32| UnsavedFile { path: format!("f{n}"), bytes: 1, sent: 0, last_error: None };
        let mut refusal = Refusal::new(Cause::Unsaved, "30 files are not saved");
        refusal.unsaved = Unsaved::of((0..30).map(file));
        let failure = refused(Reply::Refused(refusal));
        assert_eq!(failure.code, Code::UnsavedData);
        assert!(failure.message.contains("\n  f0 (1 B): not tried yet\n"), "{}", failure.message);
        assert!(failure.message.ends_with("and 10 more"), "{}", failure.message);
        assert_eq!(refused(Reply::Refused(Refusal::new(Cause::Busy, "busy"))).code, Code::Mountpoint);
    }
}
