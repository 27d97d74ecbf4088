//! One connection: requests go up, answers come down, at the same time and in the same order.
//!
//! The two directions only share the list of questions asked, so that an answer before its request's end, an interim
//! answer and a server that hangs up early all pass as they come.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::Shape;
use super::counts::{Counts, InFlight};
use super::http::{Chunked, Framing, Head};
use super::pace::Pace;
use super::timer::{Timer, now};

/// The longest head that is understood.
const HEAD_MAX_BYTES: usize = 64 << 10;
const BUFFER_BYTES: usize = 64 << 10;
/// Large enough for few system calls; at 90 MB/s it is 2.9 ms of the line.
const SPLICE_BYTES: usize = 256 << 10;
/// Below this a copy is cheaper than two system calls more.
const SPLICE_FROM_BYTES: u64 = 64 << 10;

/// A question that is not answered yet.
struct Turn<'a> {
    is_head_request: bool,
    _in_flight: InFlight<'a>,
}

type Turns<'a> = Mutex<VecDeque<Turn<'a>>>;

/// Runs until either side ends.
pub async fn run(client: &TcpStream, upstream: &TcpStream, shape: Shape, counts: &Counts) -> io::Result<()> {
    let turns = Turns::default();
    let up = async {
        match requests(client, upstream, shape, counts, &turns).await {
            // The server does not take any more, and may have said why: that is still to be passed on.
            Err(End::Target) => std::future::pending().await,
            Err(End::Source(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    };
    tokio::select! {
        end = up => end,
        end = answers(client, upstream, shape, counts, &turns) => end,
    }
}

/// Which side ended a direction.
enum End {
    Source(io::Error),
    Target,
}

async fn requests<'a>(
    client: &TcpStream,
    upstream: &TcpStream,
    shape: Shape,
    counts: &'a Counts,
    turns: &Turns<'a>,
) -> Result<(), End> {
    let mut line = Line::new(client, upstream, shape, |bytes| counts.up(bytes)).map_err(End::Source)?;
    while let Some(head) = line.head().await.map_err(End::Source)? {
        let turn =
            Turn { is_head_request: head.is_head_request(), _in_flight: counts.request(head.operation()) };
        turns.lock().unwrap_or_else(PoisonError::into_inner).push_back(turn);
        line.message(head.len, head.request_framing()).await?;
    }
    Ok(())
}

async fn answers(
    client: &TcpStream,
    upstream: &TcpStream,
    shape: Shape,
    counts: &Counts,
    turns: &Turns<'_>,
) -> io::Result<()> {
    let mut line = Line::new(upstream, client, shape, |bytes| counts.down(bytes))?;
    line.acknowledge_at_once = true;
    while let Some(head) = line.head().await? {
        line.timer.sleep(shape.delay).await?;
        // Kept until its answer is complete.
        let turn = match head.is_interim() {
            true => None,
            false => turns.lock().unwrap_or_else(PoisonError::into_inner).pop_front(),
        };
        let framing = head.response_framing(turn.as_ref().is_some_and(|turn| turn.is_head_request));
        line.message(head.len, framing).await.map_err(|end| match end {
            End::Source(error) => error,
            End::Target => io::ErrorKind::BrokenPipe.into(),
        })?;
        if framing == Framing::UntilClose {
            break;
        }
    }
    Ok(())
}

/// One direction of a connection.
struct Line<'s, F> {
    source: &'s TcpStream,
    target: &'s TcpStream,
    /// What has arrived and was not passed on.
    buffer: Vec<u8>,
    pace: Pace,
    timer: Timer,
    passed: F,
    pipe: Option<(OwnedFd, OwnedFd)>,
    acknowledge_at_once: bool,
}

impl<'s, F: FnMut(usize)> Line<'s, F> {
    fn new(source: &'s TcpStream, target: &'s TcpStream, shape: Shape, passed: F) -> io::Result<Self> {
        Ok(Self {
            source,
            target,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            pace: Pace::new(shape.bytes_per_second),
            timer: Timer::new()?,
            passed,
            pipe: None,
            acknowledge_at_once: false,
        })
    }

    /// The next message's head, at the front of the buffer; `None` where the source has ended.
    async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(head) = Head::parse(&self.buffer) {
                return Ok(Some(head));
            }
            if self.buffer.len() > HEAD_MAX_BYTES {
                return Err(io::Error::other("a head without an end"));
            }
            if self.receive().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Passes on a message, whose head is in the buffer.
    async fn message(&mut self, head: usize, framing: Framing) -> Result<(), End> {
        self.pace.begin(now());
        match framing {
            Framing::Length(body) => {
                let whole = head as u64 + body;
                let at_hand = usize::try_from(whole).unwrap_or(usize::MAX).min(self.buffer.len());
                self.pass(at_hand).await?;
                self.rest(whole - at_hand as u64).await
            }
            Framing::Chunked => {
                let mut chunked = Chunked::default();
                let mut skip = head;
                loop {
                    let end = chunked.advance(&self.buffer[skip..]);
                    self.pass(end.map_or(self.buffer.len(), |end| skip + end)).await?;
                    if end.is_some() {
                        return Ok(());
                    }
                    skip = 0;
                    self.receive_more().await?;
                }
            }
            Framing::UntilClose => loop {
                self.pass(self.buffer.len()).await?;
                if self.receive().await.map_err(End::Source)? == 0 {
                    return Ok(());
                }
            },
        }
    }

    /// Passes on this many bytes that have not arrived yet.
    async fn rest(&mut self, mut left: u64) -> Result<(), End> {
        while left >= SPLICE_FROM_BYTES {
            left -= self.splice(left).await?;
        }
        while left > 0 {
            self.receive_more().await?;
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            self.pass(step).await?;
            left -= step as u64;
        }
        Ok(())
    }

    async fn receive_more(&mut self) -> Result<(), End> {
        match self.receive().await {
            Ok(0) => Err(End::Source(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(End::Source(error)),
        }
    }

    /// Adds to the buffer what arrives next; 0 at the end.
    async fn receive(&mut self) -> io::Result<usize> {
        self.acknowledge()?;
        self.buffer.reserve(BUFFER_BYTES);
        loop {
            self.source.readable().await?;
            match self.source.try_read_buf(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    /// The kernel forgets this setting as it pleases, so it is made anew before each wait.
    fn acknowledge(&self) -> io::Result<()> {
        if self.acknowledge_at_once {
            rustix::net::sockopt::set_tcp_quickack(self.source, true)?;
        }
        Ok(())
    }

    /// Passes on the buffer's first bytes.
    async fn pass(&mut self, len: usize) -> Result<(), End> {
        self.hold(len).await?;
        let mut sent = 0;
        while sent < len {
            self.target.writable().await.map_err(|_| End::Target)?;
            match self.target.try_write(&self.buffer[sent..len]) {
                Ok(step) => sent += step,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(End::Target),
            }
        }
        self.buffer.drain(..len);
        (self.passed)(len);
        Ok(())
    }

    /// Passes on some of the next `left` bytes without looking at them; how many.
    async fn splice(&mut self, left: u64) -> Result<u64, End> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let (out, into) = match self.pipe.take() {
            Some(pipe) => pipe,
            None => new_pipe().map_err(End::Source)?,
        };
        // Only the last segment of a body may be too short for the server to send it unasked.
        if left <= SPLICE_BYTES as u64 {
            self.acknowledge().map_err(End::Source)?;
        }
        let ask = usize::try_from(left).unwrap_or(usize::MAX).min(SPLICE_BYTES);
        let arrived = self
            .source
            .async_io(Interest::READABLE, || Ok(splice(self.source, None, &into, None, ask, flags)?));
        let len = match arrived.await {
            Ok(0) => return Err(End::Source(io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => len,
            Err(error) => return Err(End::Source(error)),
        };
        self.hold(len).await?;
        let mut sent = 0;
        while sent < len {
            let step = self.target.async_io(Interest::WRITABLE, || {
                Ok(splice(&out, None, self.target, None, len - sent, flags)?)
            });
            sent += step.await.map_err(|_| End::Target)?;
        }
        self.pipe = Some((out, into));
        (self.passed)(len);
        Ok(len as u64)
    }

    /// Waits until bytes that have arrived would have passed at the line's rate.
    async fn hold(&mut self, len: usize) -> Result<(), End> {
        let wait = self.pace.wait_for(len, now());
        if wait > Duration::ZERO {
            self.timer.sleep(wait).await.map_err(End::Source)?;
        }
        Ok(())
    }
}

fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Pages of a socket are rarely full, so more of them fit than bytes are asked for. A smaller pipe works too.
    let _ = fcntl_setpipe_size(&into, 4 * SPLICE_BYTES);
    Ok((out, into))
}
