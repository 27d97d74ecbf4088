//! Answers as far as they may be believed before they are read: no longer than any has to be, and whole.
//!
//! The SDK collects an answer in memory before it looks at it, however long it is; and of XML that ends in the middle it
//! takes what there is, so that a listing which a proxy cut off would be all there is of a directory. Only bytes of objects
//! are left alone: whoever reads those knows how many there are to be.

use std::pin::Pin;
use std::task::{Context, Poll};

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Longer than any answer that is no object: 1,000 keys of 1,024 bytes, each byte of them escaped twice, are 15 MB.
const ANSWER_MAX_BYTES: u64 = 32 << 20;
/// The same of one that says why a request failed.
const FAILURE_MAX_BYTES: u64 = 1 << 20;
/// Where the name of the first element has to be, behind declarations and comments.
const HEAD_BYTES: usize = 1 << 10;
/// The closing tag and what may follow it.
const TAIL_BYTES: usize = 256;

/// Holds an answer to that, while it is read.
pub(super) fn hold(answer: &mut HttpResponse) {
    let max = if answer.status().is_success() { ANSWER_MAX_BYTES } else { FAILURE_MAX_BYTES };
    let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
    *answer.body_mut() = SdkBody::from_body_1_x(Held::new(body, max));
}

struct Held {
    body: SdkBody,
    max: u64,
    taken: u64,
    /// Its first bytes, and its last ones.
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Held {
    fn new(body: SdkBody, max: u64) -> Self {
        Self { body, max, taken: 0, head: Vec::new(), tail: Vec::new() }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.taken += bytes.len() as u64;
        let room = HEAD_BYTES.saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let keep = TAIL_BYTES.saturating_sub(bytes.len()).min(self.tail.len());
        self.tail.drain(..self.tail.len() - keep);
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = aws_smithy_types::body::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context)?);
        Poll::Ready(match frame {
            Some(frame) => {
                if let Some(bytes) = frame.data_ref() {
                    self.take(bytes);
                }
                match self.taken > self.max {
                    true => Some(Err(format!("the answer is longer than {} bytes", self.max).into())),
                    false => Some(Ok(frame)),
                }
            }
            None if is_cut_off(&self.head, &self.tail) => {
                // Once: whoever asks again is at the end.
                self.head.clear();
                Some(Err("the answer ends in the middle".into()))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.body)
    }
}

/// Whether XML of these first and last bytes lacks the end of the element that it begins with. What is no XML is
/// somebody else's to refuse.
fn is_cut_off(head: &[u8], tail: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head);
    let Some((root, rest)) = root_of(&head) else { return false };
    let tail = String::from_utf8_lossy(tail);
    let closing = tail.rsplit_once("</").and_then(|(_, end)| Some(end.split_once('>')?.0));
    // Nothing is in an element that ends where it begins.
    let is_empty = || rest.split_once('>').is_some_and(|(attributes, _)| attributes.ends_with('/'));
    closing.map(str::trim_end) != Some(root) && !is_empty()
}

/// The name of the first element, and what follows it.
fn root_of(head: &str) -> Option<(&str, &str)> {
    let mut rest = head.trim_start_matches('\u{feff}').trim_start();
    loop {
        rest = match rest.strip_prefix("<?") {
            Some(declaration) => declaration.split_once("?>")?.1.trim_start(),
            None => match rest.strip_prefix("<!--") {
                Some(comment) => comment.split_once("-->")?.1.trim_start(),
                None => break,
            },
        };
    }
    let name = rest.strip_prefix('<')?;
    let end = name.find(|c: char| c.is_whitespace() || matches!(c, '>' | '/'))?;
    let is_name = |(name, _): &(&str, &str)| name.starts_with(|c: char| c.is_ascii_alphabetic());
    Some(name.split_at(end)).filter(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn cut_off(text: &str) -> bool {
        let mut held = Held::new(SdkBody::empty(), ANSWER_MAX_BYTES);
        for piece in text.as_bytes().chunks(7) {
            held.take(piece);
        }
        is_cut_off(&held.head, &held.tail)
    }

    #[test]
    fn xml_that_lacks_its_end_is_found_out_and_other_answers_are_not() {
        let long = format!("<A>{}</A>", "<b>x</b>".repeat(1_000));
        let whole = [
            "",
            "OK",
            "<A></A>",
            "<?xml version=\"1.0\"?>\n<!-- x --><A xmlns=\"y\"><b>1</b></A>\n",
            "<A/>",
            "<?xml version=\"1.0\"?><A xmlns=\"y\"/>",
            "<A><b/></A >",
            "<s3:A><b/></s3:A>",
            &long,
        ];
        for text in whole {
            assert!(!cut_off(text), "{text}");
        }
        let halves =
            ["<A>", "<A><b>1</b>", "<A><b>1</b></", "<A><b/>", "<?xml version=\"1.0\"?><A xmlns=\"y\">"];
        for text in halves.into_iter().chain([&long[..long.len() - 1], &long[..long.len() / 2]]) {
            assert!(cut_off(text), "{text}");
        }
        // A page for people is refused for what it is.
        assert!(!cut_off("<!DOCTYPE html><html>"));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_not_read_to_it() {
        for (status, max) in [(200, ANSWER_MAX_BYTES), (503, FAILURE_MAX_BYTES)] {
            for (length, fits) in [(max, true), (max + 1, false)] {
                let bytes = Bytes::from(vec![b' '; usize::try_from(length).unwrap()]);
                let mut answer = HttpResponse::new(status.try_into().unwrap(), bytes.into());
                hold(&mut answer);
                assert_eq!(answer.take_body().collect().await.is_ok(), fits);
            }
        }
    }
}
