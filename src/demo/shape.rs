//! Bodies and connections that count, pace, break off and stall: the faults below HTTP.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::counts::Tally;

type StdError = Box<dyn std::error::Error + Send + Sync>;

/// One direction of one connection, and when it is free again.
#[derive(Debug, Default)]
pub(super) struct Lane(Mutex<Option<Instant>>);

/// Sleeps are rounded up to a millisecond; what a late wake-up cost is made up for within this time.
const CATCH_UP: Duration = Duration::from_millis(5);
/// Short enough that a paced body moves evenly, long enough to keep wake-ups rare.
const PACED_CHUNK_BYTES: usize = 64 << 10;

impl Lane {
    /// When `bytes` more have passed at `rate` bytes a second.
    fn reserve(&self, bytes: usize, rate: u64, now: Instant) -> Instant {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        let start = free.map_or(now, |free| free.max(earliest));
        let end = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *free = Some(end);
        end
    }
}

/// How a body is to be spoiled.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    /// Bytes a second.
    pub(super) rate: Option<u64>,
    pub(super) ending: Ending,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ending {
    #[default]
    Whole,
    /// An error after so many bytes, which ends the connection.
    CutAfter(u64),
    /// Silence after so many bytes.
    StallAfter(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    Out,
}

/// A body that is counted and takes a [`Shape`].
pub(super) struct Shaped<B> {
    inner: B,
    direction: Direction,
    tally: Arc<Tally>,
    lane: Arc<Lane>,
    rate: Option<u64>,
    ending: Ending,
    passed: u64,
    /// Taken from `inner`, not passed on yet.
    held: Bytes,
    wait: Option<Pin<Box<Sleep>>>,
    /// The bytes before the cut get a turn to leave the connection's buffer.
    flushed: bool,
}

impl<B> Shaped<B> {
    pub(super) fn new(
        inner: B,
        direction: Direction,
        tally: Arc<Tally>,
        lane: Arc<Lane>,
        shape: &Shape,
    ) -> Self {
        Self {
            inner,
            direction,
            tally,
            lane,
            rate: shape.rate,
            ending: shape.ending,
            passed: 0,
            held: Bytes::new(),
            wait: None,
            flushed: false,
        }
    }

    /// Bytes that may still pass.
    fn allowance(&self) -> u64 {
        match self.ending {
            Ending::Whole => u64::MAX,
            Ending::CutAfter(limit) | Ending::StallAfter(limit) => limit.saturating_sub(self.passed),
        }
    }

    fn end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        if matches!(self.ending, Ending::StallAfter(_)) {
            return Poll::Pending;
        }
        if !self.flushed {
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err("a fault rule cut this body short".into())))
    }

    fn pass(&mut self) -> Frame<Bytes> {
        let allowed = usize::try_from(self.allowance()).unwrap_or(usize::MAX);
        let chunk = if self.rate.is_some() { PACED_CHUNK_BYTES } else { usize::MAX };
        let chunk = self.held.split_to(self.held.len().min(chunk).min(allowed));
        self.passed += chunk.len() as u64;
        match self.direction {
            Direction::In => self.tally.bytes_in(chunk.len()),
            Direction::Out => self.tally.bytes_out(chunk.len()),
        }
        if let Some(rate) = self.rate {
            let until = self.lane.reserve(chunk.len(), rate, Instant::now());
            self.wait = Some(Box::pin(tokio::time::sleep_until(until)));
        }
        Frame::data(chunk)
    }
}

impl<B> Body for Shaped<B>
where
    B: Body<Data = Bytes, Error: Into<StdError>> + Unpin,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        if let Some(wait) = &mut this.wait {
            ready!(wait.as_mut().poll(cx));
            this.wait = None;
        }
        if this.held.is_empty() {
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        }
        if this.allowance() == 0 && !this.held.is_empty() {
            return this.end(cx);
        }
        Poll::Ready(Some(Ok(this.pass())))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.wait.is_none() && self.inner.is_end_stream()
    }

    /// Lengths are told by the headers, so that a body cut short breaks its promise.
    fn size_hint(&self) -> SizeHint {
        match self.direction {
            Direction::In => self.inner.size_hint(),
            Direction::Out => SizeHint::default(),
        }
    }
}

/// A body that two hands hold: the service reads it, and what it leaves is read afterwards.
pub(super) struct Shared<B>(Arc<Mutex<B>>);

impl<B> Clone for Shared<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> Shared<B> {
    pub(super) fn new(body: B) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }
}

impl<B: Body + Unpin> Shared<B> {
    /// Reads the rest, so that a client that is still sending gets to read its answer.
    pub(super) async fn drain(&self) {
        let mut rest = self.clone();
        while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await {}
    }
}

impl<B: Body + Unpin> Body for Shared<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

/// A TCP connection that ends with a reset instead of an orderly close, once it is told to.
pub(super) struct Connection {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, reset: Arc<AtomicBool>) -> Self {
        Self { stream, reset }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // Where the socket is gone already, so is the connection.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An orderly end would go out before the reset.
        if self.reset.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_moves_at_its_rate_and_makes_up_for_late_turns() {
        let lane = Lane::default();
        let start = Instant::now();
        let ms = |n| Duration::from_millis(n);
        assert_eq!(lane.reserve(100, 1000, start), start + ms(100));
        assert_eq!(lane.reserve(100, 1000, start + ms(102)), start + ms(200));
        let late = start + ms(1000);
        assert_eq!(lane.reserve(100, 1000, late), late - CATCH_UP + ms(100));
    }
}
