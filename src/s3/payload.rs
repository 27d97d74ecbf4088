//! Bytes on their way to S3: in memory, or read step by step from where they are.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use aws_smithy_types::body::SdkBody;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::StreamExt;
use http_body::{Frame, SizeHint};
use md5::{Digest, Md5};

use super::checksum::checksum_from;
use super::types::{Body, Checksum, ChecksumAlgorithm};
use crate::base::crc::{crc64, joined};
use crate::error::{Error, Kind, Result};

/// The bytes of a part, as often as it takes to send them. Cheap to clone.
#[derive(Clone)]
pub struct Payload {
    length: u64,
    source: Source,
    /// What reading them failed for.
    failure: Arc<Mutex<Option<Error>>>,
}

#[derive(Clone)]
enum Source {
    Memory(Bytes),
    /// Begins to read them from their beginning.
    Steps(Arc<dyn Fn() -> Body + Send + Sync>),
}

impl<T: Into<Bytes>> From<T> for Payload {
    fn from(bytes: T) -> Self {
        let bytes = bytes.into();
        Self { length: bytes.len() as u64, source: Source::Memory(bytes), failure: Arc::default() }
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Payload").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Payload {
    /// So many bytes that are not in memory: `open` reads them from their beginning, and each time the same ones.
    pub fn in_steps(length: u64, open: impl Fn() -> Body + Send + Sync + 'static) -> Self {
        Self { length, source: Source::Steps(Arc::new(open)), failure: Arc::default() }
    }

    pub fn len(&self) -> u64 {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All of them in memory.
    pub async fn bytes(&self) -> Result<Bytes> {
        if let Source::Memory(bytes) = &self.source {
            return Ok(bytes.clone());
        }
        let mut all = Vec::new();
        let mut steps = self.steps();
        while let Some(step) = steps.next().await {
            all.extend_from_slice(&step?);
        }
        if all.len() as u64 == self.length { Ok(all.into()) } else { Err(self.another_length()) }
    }

    /// What they are to be held to: the CRC-64/NVME, and the MD5 where that is asked for.
    pub(super) async fn sums(&self, with_md5: bool) -> Result<(Checksum, Option<Checksum>)> {
        let (mut crc, mut md5) = (0, with_md5.then(Md5::new));
        let mut steps = self.steps();
        while let Some(step) = steps.next().await {
            let step = step?;
            crc = joined(crc, crc64(&step), step.len() as u64);
            if let Some(md5) = &mut md5 {
                md5.update(&step);
            }
        }
        let of_md5 = |md5: Md5| {
            let value = BASE64.encode(md5.finalize());
            Checksum { algorithm: ChecksumAlgorithm::Md5, value }
        };
        Ok((checksum_from(crc), md5.map(of_md5)))
    }

    /// The same for the SDK, which may send them more than once.
    pub(super) fn for_sdk(&self) -> SdkBody {
        match &self.source {
            Source::Memory(bytes) => SdkBody::from(bytes.clone()),
            Source::Steps(_) => {
                let payload = self.clone();
                SdkBody::retryable(move || {
                    let (steps, left) = (Mutex::new(payload.steps()), payload.length);
                    SdkBody::from_body_1_x(Reading { steps, left, payload: payload.clone() })
                })
            }
        }
    }

    /// What reading them failed for, which the SDK tells nobody.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it failed: another attempt would come to the same.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Begins to read them.
    pub fn steps(&self) -> Body {
        match &self.source {
            Source::Memory(bytes) => Box::pin(futures::stream::iter([Ok(bytes.clone())])),
            Source::Steps(open) => open(),
        }
    }

    fn another_length(&self) -> Error {
        Error::new(Kind::Internal, format!("a body of another length than {} bytes", self.length))
    }
}

/// Bytes that are being read for a connection.
struct Reading {
    /// Nobody else has it: the lock makes of it what the SDK wants to share.
    steps: Mutex<Body>,
    left: u64,
    payload: Payload,
}

impl Reading {
    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let steps = self.steps.get_mut().unwrap_or_else(PoisonError::into_inner);
        let step = ready!(steps.as_mut().poll_next(context)).transpose()?;
        let length = step.as_ref().map_or(0, |step| step.len() as u64);
        if length > self.left || (step.is_none() && self.left > 0) {
            return Poll::Ready(Some(Err(self.payload.another_length())));
        }
        self.left -= length;
        Poll::Ready(step.map(Ok))
    }
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(ready!(self.poll_step(context)).map(|step| {
            step.map(Frame::data).map_err(|error| {
                let mut failure = self.payload.failure.lock().unwrap_or_else(PoisonError::into_inner);
                *failure = Some(error);
                "the bytes to be sent cannot be read"
            })
        }))
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
    use crate::s3::checksum_of;
    use http_body_util::BodyExt;

    fn in_steps(steps: &'static [&'static str], length: u64) -> Payload {
        Payload::in_steps(length, move || {
            Box::pin(futures::stream::iter(steps.iter().map(|step| Ok(Bytes::from_static(step.as_bytes())))))
        })
    }

    #[tokio::test]
    async fn bytes_in_steps_are_the_same_each_time() {
        for payload in [Payload::from("123456789"), in_steps(&["12345", "", "6789"], 9)] {
            let (crc, md5) = payload.sums(true).await.unwrap();
            assert_eq!(crc, checksum_of(b"123456789"));
            assert_eq!(md5.unwrap().value, ChecksumAlgorithm::Md5.of(b"123456789"));
            assert_eq!(payload.bytes().await.unwrap(), "123456789");
            let body = payload.for_sdk();
            assert_eq!(body.content_length(), Some(9));
            let again = body.try_clone().expect("it can be sent once more");
            for body in [body, again] {
                assert_eq!(body.collect().await.unwrap().to_bytes(), "123456789");
            }
        }
    }

    #[tokio::test]
    async fn what_reading_failed_for_is_told() {
        let failing = || {
            let failed = Error::new(Kind::Local, "the disk is damaged");
            let steps: Body = Box::pin(futures::stream::iter([Ok(Bytes::from("123")), Err(failed)]));
            steps
        };
        let payload = Payload::in_steps(9, failing);
        assert!(payload.for_sdk().collect().await.is_err());
        assert_eq!(payload.failure().map(|error| error.kind()), Some(Kind::Local));
        assert_eq!(payload.bytes().await.unwrap_err().kind(), Kind::Local);
        for wrong in [in_steps(&["12345"], 9), in_steps(&["12345", "67890"], 9)] {
            assert!(wrong.for_sdk().collect().await.is_err());
            assert_eq!(wrong.failure().map(|error| error.kind()), Some(Kind::Internal));
            assert_eq!(wrong.bytes().await.unwrap_err().kind(), Kind::Internal);
        }
    }
}
