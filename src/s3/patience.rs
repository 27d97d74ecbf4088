//! How long to wait: as long as something moves.
//!
//! A deadline that is short enough for a dead network is too short for a large body, and one that fits the body is
//! too long for a dead network. So what is bounded is silence: the time since the last answer, or since the network
//! took bytes that it had not taken before. Bytes that are sent once more, by another attempt, are no progress.
//!
//! A wait is a task-local value, because the SDK is between who waits and the connection that moves.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// Bodies go to the connection in steps of this size, so that what it took can be told.
const STEP_BYTES: usize = 64 << 10;

tokio::task_local! {
    static WAIT: Arc<Progress>;
}

/// When something moved last. Waits that share one share their progress.
#[derive(Debug)]
pub struct Progress {
    last: Mutex<Instant>,
    /// The furthest byte of a body that any attempt got rid of.
    furthest: AtomicU64,
    /// The wait that this one is a part of.
    above: Option<Arc<Self>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { last: Mutex::new(Instant::now()), furthest: AtomicU64::new(0), above: None }
    }
}

impl Progress {
    /// For a wait of its own within the one that is under way.
    pub(super) fn of_part() -> Self {
        Self { above: WAIT.try_with(Arc::clone).ok(), ..Self::default() }
    }

    /// Something moved.
    pub fn moved(&self) {
        self.moves_until(Instant::now());
    }

    fn moves_until(&self, then: Instant) {
        let mut wait = Some(self);
        while let Some(progress) = wait {
            let mut last = progress.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = then.max(*last);
            drop(last);
            wait = progress.above.as_deref();
        }
    }

    /// An attempt has got rid of so many bytes of its body.
    fn sent(&self, bytes: u64) {
        if self.furthest.fetch_max(bytes, Ordering::Relaxed) < bytes {
            self.moved();
        }
    }

    /// When something last moved; a time to come where that was given.
    pub fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does some work for as long as something moves; `None` after `silence` in which nothing did. What moves for others
/// who wait for the same `progress` counts.
pub async fn watch<T>(
    progress: &Arc<Progress>,
    silence: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    watch_all(|| progress.last(), silence, tell(progress, work)).await
}

/// The same while something moves for any of those that `last` asks.
pub async fn watch_all<T>(
    last: impl Fn() -> Instant,
    silence: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let begun = Instant::now();
    let mut work = std::pin::pin!(work);
    loop {
        let end = last().max(begun) + silence;
        match tokio::time::timeout_at(end, &mut work).await {
            Ok(done) => return Some(done),
            Err(_) if last().max(begun) + silence <= end => return None,
            Err(_) => {}
        }
    }
}

/// Does some work whose `progress` others may look at.
pub fn tell<T>(progress: &Arc<Progress>, work: impl Future<Output = T>) -> impl Future<Output = T> {
    WAIT.scope(Arc::clone(progress), work)
}

/// S3 said something to who waits here.
pub(super) fn moved() {
    // Outside of a wait nobody is told.
    let _ = WAIT.try_with(|progress| progress.moved());
}

/// Who waits here is about to ask for something that takes so long by itself, without a sign.
pub(super) fn give(time: Duration) {
    let _ = WAIT.try_with(|progress| progress.moves_until(Instant::now() + time));
}

/// Connections that tell [`watch`] of the bytes they took, and give up an attempt whose body does not move.
#[derive(Debug)]
pub(super) struct WatchedClient {
    pub(super) inner: SharedHttpClient,
    /// How long one attempt to send a body may stand still.
    pub(super) silence: Duration,
}

impl HttpClient for WatchedClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(WatchedConnector { inner, silence: self.silence })
    }
}

#[derive(Debug)]
struct WatchedConnector {
    inner: SharedHttpConnector,
    silence: Duration,
}

impl HttpConnector for WatchedConnector {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let watched = WAIT.try_with(Arc::clone).ok();
        let length = request.body().content_length().filter(|length| *length > STEP_BYTES as u64);
        let (Some(of_operation), Some(left)) = (watched, length) else { return self.inner.call(request) };
        let attempt = Arc::new(Progress { above: None, ..Progress::default() });
        let (body, attempt_of_body) = (request.take_body(), Arc::clone(&attempt));
        let body = Steps { body, piece: Bytes::new(), left, sent: 0, attempt: attempt_of_body, of_operation };
        *request.body_mut() = SdkBody::from_body_1_x(body);
        let (answer, silence) = (self.inner.call(request), self.silence);
        HttpConnectorFuture::new(async move {
            let mut answer = std::pin::pin!(answer);
            loop {
                let end = attempt.last() + silence;
                match tokio::time::timeout_at(end, &mut answer).await {
                    Ok(answer) => return answer,
                    Err(_) if attempt.last() + silence <= end => {
                        let still = format!("the body did not move for {} s", silence.as_secs_f32());
                        return Err(ConnectorError::timeout(still.into()));
                    }
                    Err(_) => {}
                }
            }
        })
    }
}

/// A body that is handed over step by step, whatever the pieces are that it comes in.
struct Steps {
    body: SdkBody,
    /// What is left of its latest piece, and of all of it.
    piece: Bytes,
    left: u64,
    sent: u64,
    attempt: Arc<Progress>,
    of_operation: Arc<Progress>,
}

impl Body for Steps {
    type Data = Bytes;
    type Error = aws_smithy_types::body::Error;

    /// Asked for the next step, because the connection has room for it again.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let sent = self.sent;
        self.attempt.sent(sent);
        self.of_operation.sent(sent);
        while self.piece.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context)? {
                Poll::Ready(Some(frame)) => self.piece = frame.into_data().unwrap_or_default(),
                Poll::Ready(None) => return Poll::Ready(None),
                // Who asks was woken: what is to be sent is on its way from somewhere, with a deadline of its own.
                Poll::Pending => {
                    self.attempt.moved();
                    self.of_operation.moved();
                    return Poll::Pending;
                }
            }
        }
        let step = self.piece.len().min(STEP_BYTES);
        let step = self.piece.split_to(step);
        self.sent += step.len() as u64;
        self.left = self.left.saturating_sub(step.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(step))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::Payload;
    use http_body_util::BodyExt;

    /// Ten times the step, so that a busy machine does not look like silence.
    const SILENCE: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_wait_goes_on_while_something_moves_and_ends_when_nothing_does() {
        let progress = Arc::new(Progress::default());
        let mut moves = 0;
        let work = async {
            while moves < 15 {
                tokio::time::sleep(STEP).await;
                moves += 1;
                watch(&Arc::new(Progress::of_part()), SILENCE, async { WAIT.with(|part| part.sent(1)) })
                    .await
                    .unwrap();
            }
            std::future::pending::<()>().await;
        };
        assert_eq!(watch(&progress, SILENCE, work).await, None);
        assert_eq!(moves, 15, "which is longer than the silence");
    }

    #[tokio::test]
    async fn bytes_that_are_sent_once_more_are_no_progress() {
        let attempts = async {
            loop {
                WAIT.with(|operation| operation.sent(1000));
                tokio::time::sleep(STEP).await;
            }
        };
        assert_eq!(watch(&Arc::new(Progress::of_part()), SILENCE, attempts).await, None);
    }

    #[tokio::test]
    async fn who_waits_for_another_has_that_one_s_progress_and_a_copy_has_its_time() {
        let progress = Arc::new(Progress::default());
        let copying = async {
            give(SILENCE * 5);
            tokio::time::sleep(SILENCE * 2).await;
        };
        let waiting = tokio::time::sleep(SILENCE * 2);
        let (copied, waited) =
            tokio::join!(watch(&progress, SILENCE, copying), watch(&progress, SILENCE, waiting));
        assert!(copied.is_some() && waited.is_some());
    }

    /// A part with bytes of an object fetches them while it is sent.
    #[tokio::test(start_paused = true)]
    async fn bytes_that_arrive_from_elsewhere_are_progress_of_the_body_that_waits_for_them() {
        let (arrives, arriving) = tokio::sync::mpsc::channel::<()>(1);
        let arriving = Arc::new(tokio::sync::Mutex::new(arriving));
        let payload = Payload::in_steps(3, move || {
            let arriving = Arc::clone(&arriving);
            Box::pin(futures::stream::once(async move {
                let mut arriving = arriving.lock().await;
                while arriving.recv().await.is_some() {}
                Ok(Bytes::from_static(b"all"))
            }))
        });
        let (attempt, of_operation) = (Arc::new(Progress::default()), Arc::new(Progress::default()));
        let body = Steps {
            body: payload.for_sdk(),
            piece: Bytes::new(),
            left: 3,
            sent: 0,
            attempt: Arc::clone(&attempt),
            of_operation: Arc::clone(&of_operation),
        };
        let sending = tokio::spawn(body.collect());
        for _ in 0..3 {
            tokio::time::advance(SILENCE).await;
            arrives.send(()).await.unwrap();
            tokio::task::yield_now().await;
            assert_eq!([attempt.last(), of_operation.last()], [Instant::now(); 2]);
        }
        tokio::time::advance(SILENCE).await;
        assert_eq!(attempt.last() + SILENCE, Instant::now(), "nothing arrived");
        drop(arrives);
        assert_eq!(sending.await.unwrap().unwrap().to_bytes(), "all");
    }

    #[tokio::test]
    async fn a_body_in_steps_is_the_same_body() {
        let bytes = Bytes::from((0..200_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        // As many pieces as it comes in.
        for pieces in [1, 3] {
            let of_operation = Arc::new(Progress::default());
            let (whole, length) = (bytes.clone(), bytes.len() / pieces + 1);
            let payload = Payload::in_steps(bytes.len() as u64, move || {
                let pieces: Vec<_> = whole.chunks(length).map(|piece| Ok(whole.slice_ref(piece))).collect();
                Box::pin(futures::stream::iter(pieces))
            });
            let body = Steps {
                body: if pieces == 1 { SdkBody::from(bytes.clone()) } else { payload.for_sdk() },
                piece: Bytes::new(),
                left: bytes.len() as u64,
                sent: 0,
                attempt: Arc::default(),
                of_operation: Arc::clone(&of_operation),
            };
            assert_eq!(Body::size_hint(&body).exact(), Some(800_000));
            assert_eq!(body.collect().await.unwrap().to_bytes(), bytes);
            assert!(of_operation.furthest.load(Ordering::Relaxed) >= 800_000 - STEP_BYTES as u64);
        }
    }
}
