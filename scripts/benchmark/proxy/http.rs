//! HTTP/1.1 as far as it has to be understood to tell where a message ends and what it asks. Pure.

/// How the end of a message's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// The first line and the headers of a message.
#[derive(Debug, Default)]
pub struct Head {
    /// Length in bytes, with the empty line at the end.
    pub len: usize,
    /// The first line's words: method and target, or version and status.
    first: String,
    second: String,
    content_length: Option<u64>,
    chunked: bool,
    copies: bool,
}

impl Head {
    /// The head at the beginning of `bytes`; `None` where it is not complete yet.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let len = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let text = String::from_utf8_lossy(&bytes[..len]);
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let mut head = Self {
            len,
            first: words.next().unwrap_or_default(),
            second: words.next().unwrap_or_default(),
            ..Self::default()
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.content_length = value.parse().ok();
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = value.to_ascii_lowercase().contains("chunked");
            } else if name.eq_ignore_ascii_case("x-amz-copy-source") {
                head.copies = true;
            }
        }
        Some(head)
    }

    pub fn is_head_request(&self) -> bool {
        self.first == "HEAD"
    }

    /// A request's body: without a length there is none.
    pub fn request_framing(&self) -> Framing {
        if self.chunked { Framing::Chunked } else { Framing::Length(self.content_length.unwrap_or(0)) }
    }

    fn status(&self) -> u16 {
        self.second.parse().unwrap_or(0)
    }

    /// `100 Continue` and its like: the answer itself is still to come.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status())
    }

    /// An answer's body, which depends on what was asked.
    pub fn response_framing(&self, to_head_request: bool) -> Framing {
        if to_head_request || self.is_interim() || matches!(self.status(), 204 | 304) {
            Framing::Length(0)
        } else if self.chunked {
            Framing::Chunked
        } else {
            self.content_length.map_or(Framing::UntilClose, Framing::Length)
        }
    }

    /// S3's name for what a request asks, with the bucket in the path.
    pub fn operation(&self) -> &'static str {
        let (path, query) = self.second.split_once('?').unwrap_or((&self.second, ""));
        let asks = |name: &str| query.split('&').any(|part| part.split('=').next() == Some(name));
        let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        let of_object = !key.is_empty();
        match (self.first.as_str(), of_object) {
            ("GET", true) if asks("uploadId") => "ListParts",
            ("GET", true) if !["tagging", "acl", "attributes"].into_iter().any(asks) => "GetObject",
            ("GET", false) if asks("versions") => "ListObjectVersions",
            ("GET", false) if asks("uploads") => "ListMultipartUploads",
            ("GET", false) if !["location", "versioning", "acl", "policy"].into_iter().any(asks) => {
                if bucket.trim_start_matches('/').is_empty() { "ListBuckets" } else { "ListObjects" }
            }
            ("HEAD", true) => "HeadObject",
            ("HEAD", false) => "HeadBucket",
            ("PUT", true) => match (asks("partNumber"), self.copies) {
                (true, true) => "UploadPartCopy",
                (true, false) => "UploadPart",
                (false, true) => "CopyObject",
                (false, false) => "PutObject",
            },
            ("PUT", false) => "CreateBucket",
            ("POST", true) if asks("uploads") => "CreateMultipartUpload",
            ("POST", true) if asks("uploadId") => "CompleteMultipartUpload",
            ("POST", false) if asks("delete") => "DeleteObjects",
            ("DELETE", true) if asks("uploadId") => "AbortMultipartUpload",
            ("DELETE", true) => "DeleteObject",
            _ => "Other",
        }
    }
}

/// Where in a chunked body its reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// In the line with a chunk's size, so far this many.
    #[default]
    Size,
    /// In that line, past the size.
    Extension,
    /// In a chunk's bytes and the end of line behind them.
    Data,
    /// At the beginning of a line after the last chunk, and within one.
    TrailerStart,
    Trailer,
    /// In the end of line that ends the body.
    End,
}

/// Follows a chunked body to its end.
#[derive(Debug, Default)]
pub struct Chunked {
    place: Place,
    left: u64,
}

impl Chunked {
    /// Takes what has arrived; how much of it is the body's, once the end is among it.
    pub fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.place == Place::Data {
                let step = self.left.min((bytes.len() - at) as u64);
                self.left -= step;
                // No longer than what is in memory.
                at += usize::try_from(step).unwrap_or(usize::MAX);
                if self.left == 0 {
                    self.place = Place::Size;
                }
                continue;
            }
            at += 1;
            match (self.place, byte) {
                (Place::Size | Place::Extension, b'\n') if self.left == 0 => self.place = Place::TrailerStart,
                (Place::Size | Place::Extension, b'\n') => {
                    self.left = self.left.saturating_add(2);
                    self.place = Place::Data;
                }
                (Place::Size, digit) => match char::from(digit).to_digit(16) {
                    Some(digit) => self.left = self.left.saturating_mul(16).saturating_add(digit.into()),
                    None => self.place = Place::Extension,
                },
                (Place::TrailerStart, b'\r') => self.place = Place::End,
                (Place::TrailerStart, _) => self.place = Place::Trailer,
                (Place::Trailer, b'\n') => self.place = Place::TrailerStart,
                (Place::End, _) => return Some(at),
                (Place::Extension | Place::Trailer | Place::Data, _) => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        Head::parse(text.as_bytes()).expect("a complete head")
    }

    #[test]
    fn a_body_s_end_is_where_its_head_says() {
        assert!(Head::parse(b"GET / HTTP/1.1\r\nHost: a\r\n").is_none());
        let put = head("PUT /b/k HTTP/1.1\r\ncontent-LENGTH: 12\r\n\r\nand more");
        assert_eq!((put.len, put.request_framing()), (41, Framing::Length(12)));
        assert_eq!(head("GET / HTTP/1.1\r\n\r\n").request_framing(), Framing::Length(0));
        let ok = head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(ok.response_framing(false), Framing::Length(5));
        assert_eq!(ok.response_framing(true), Framing::Length(0));
        let chunked = head("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n");
        assert_eq!(chunked.response_framing(false), Framing::Chunked);
        assert_eq!(head("HTTP/1.1 204 No Content\r\n\r\n").response_framing(false), Framing::Length(0));
        assert_eq!(head("HTTP/1.0 200 OK\r\n\r\n").response_framing(false), Framing::UntilClose);
        assert!(head("HTTP/1.1 100 Continue\r\n\r\n").is_interim());
    }

    #[test]
    fn a_chunked_body_ends_at_the_same_byte_however_it_arrives() {
        for body in
            ["0\r\n\r\n", "5\r\nhello\r\n1a;x=y\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nT: v\r\nU: w\r\n\r\n"]
        {
            let bytes = [body.as_bytes(), b"HTTP/1.1 200"].concat();
            for cut in 0..body.len() {
                let mut chunked = Chunked::default();
                assert_eq!(chunked.advance(&bytes[..cut]), None, "{cut}");
                assert_eq!(chunked.advance(&bytes[cut..]), Some(body.len() - cut), "{cut}");
            }
        }
    }

    #[test]
    fn requests_are_named_as_s3_names_them() {
        for (line, name) in [
            ("GET /b/k%20l?versionId=1", "GetObject"),
            ("GET /b/k?x-id=GetObject", "GetObject"),
            ("GET /b/?list-type=2&prefix=a%2F", "ListObjects"),
            ("GET /b?prefix=uploads", "ListObjects"),
            ("GET /b?versions", "ListObjectVersions"),
            ("GET /b?location", "Other"),
            ("GET /", "ListBuckets"),
            ("HEAD /b/k", "HeadObject"),
            ("HEAD /b/", "HeadBucket"),
            ("PUT /b/k", "PutObject"),
            ("PUT /b/k?partNumber=1&uploadId=x", "UploadPart"),
            ("POST /b/k?uploads", "CreateMultipartUpload"),
            ("POST /b/k?uploadId=x", "CompleteMultipartUpload"),
            ("POST /b?delete", "DeleteObjects"),
            ("DELETE /b/k", "DeleteObject"),
            ("PUT /b", "CreateBucket"),
        ] {
            assert_eq!(head(&format!("{line} HTTP/1.1\r\n\r\n")).operation(), name, "{line}");
        }
        let copy = head("PUT /b/k HTTP/1.1\r\nX-Amz-Copy-Source: b/l\r\n\r\n");
        assert_eq!(copy.operation(), "CopyObject");
    }
}
