//! A bucket of more objects than anybody wants to hold: names and bytes are made up when they are asked for. Pure.
//!
//! Its keys are `d<number>/f<number>`, with as many digits as the last one needs, so their order is that of the numbers.
//! Each 8 bytes of an object say which object they are of and which page of 4 KiB they are in: [`word`]. Nothing in it can
//! be changed.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::base::{ByteRange, ETag, parse_bytes};
use crate::error::{Error, Kind, Result};
use crate::s3::limits::KEYS_PER_REQUEST;
use crate::s3::{
    Attributes, BucketInfo, GetOutput, GetRequest, ListPage, ListRequest, ListedObject, ObjectInfo,
    checksum_of,
};

/// The name of the bucket.
pub const SYNTHETIC: &str = "synthetic";

const PAGE_BYTES: u64 = 4096;
/// Bodies are made in pieces of this size.
const CHUNK_BYTES: usize = 256 << 10;
/// When all of it was made, in seconds since 1970.
const MADE_S: u64 = 1_700_000_000;

/// How many directories there are, of how many files each, of how many bytes. As text: `1000x1000` or `10x100x4MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synthetic {
    pub directories: u64,
    pub files: u64,
    pub size: u64,
}

impl FromStr for Synthetic {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let count = |word: &str| {
            let number = word.parse::<u64>().ok().filter(|number| (1..=1_000_000_000).contains(number));
            number.ok_or_else(|| format!("{word:?} is not a number from 1 to 1,000,000,000"))
        };
        let words: Vec<&str> = text.split('x').collect();
        let (directories, files, size) = match words[..] {
            [directories, files] => (directories, files, 0),
            [directories, files, size] => (directories, files, parse_bytes(size)?),
            _ => return Err("it is written like 1000x1000, or 10x100x4MB".to_owned()),
        };
        Ok(Self { directories: count(directories)?, files: count(files)?, size })
    }
}

/// What each 8 bytes of a page of an object hold, as a number whose lowest byte comes first.
pub fn word(object: u64, page: u64) -> u64 {
    (object << 32) | (page & 0xffff_ffff)
}

impl Synthetic {
    fn count(self) -> u64 {
        self.directories * self.files
    }

    fn key(self, object: u64) -> String {
        let digits = |count: u64| (count - 1).to_string().len();
        let (directory, file) = (object / self.files, object % self.files);
        format!("d{directory:0of$}/f{file:0to$}", of = digits(self.directories), to = digits(self.files))
    }

    /// The first object whose key does not come before `from`, in byte order, as far as `before` says so.
    fn first(self, before: impl Fn(&str) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            if before(&self.key(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn object_of(self, key: &str) -> Result<u64> {
        let object = self.first(|other| other < key);
        if object < self.count() && self.key(object) == key {
            return Ok(object);
        }
        Err(Error::s3(Kind::NotFound, "NoSuchKey", "no such key").with_answer(Some(404), None, None))
    }

    fn etag(object: u64) -> ETag {
        ETag::new(&format!("{object:032x}"))
    }

    fn made() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(MADE_S)
    }

    pub(super) fn bucket(self, region: &str) -> BucketInfo {
        let (name, region) = (SYNTHETIC.to_owned(), Some(region.to_owned()));
        BucketInfo { name, region, created: Some(Self::made()) }
    }

    pub(super) fn head(self, key: &str) -> Result<ObjectInfo> {
        let object = self.object_of(key)?;
        Ok(ObjectInfo {
            key: key.to_owned(),
            size: self.size,
            etag: Self::etag(object),
            last_modified: Self::made(),
            version_id: None,
            attributes: Attributes::default(),
            tag_count: 0,
            restore: None,
            // As S3 keeps them. Of a large object nobody asks.
            checksums: (self.size <= CHUNK_BYTES as u64)
                .then(|| checksum_of(&bytes_of(object, 0, self.size)))
                .into_iter()
                .collect(),
        })
    }

    pub(super) fn get(self, request: &GetRequest) -> Result<GetOutput> {
        let info = self.head(&request.key)?;
        let object = self.object_of(&request.key)?;
        let whole = ByteRange::new(0, self.size);
        // What is asked for has been held against the size and the conditions where it was taken apart.
        let asked = request.range.map_or(whole, |range| whole.and_then(|whole| whole.intersect(range)));
        let (offset, length) = asked.map_or((0, 0), |range| (range.start(), range.len()));
        let end = offset + length;
        let chunks = (offset..end).step_by(CHUNK_BYTES);
        let chunks = chunks.map(move |at| Ok(bytes_of(object, at, end.min(at + CHUNK_BYTES as u64))));
        Ok(GetOutput { info, offset, length, body: Box::pin(futures::stream::iter(chunks)) })
    }

    pub(super) fn list(self, request: &ListRequest) -> Result<ListPage> {
        let max = usize::from(request.max_keys.unwrap_or(u16::MAX)).min(KEYS_PER_REQUEST);
        let mut page = ListPage::default();
        if max == 0 {
            return Ok(page);
        }
        let prefix = request.prefix.as_str();
        // A token is the last that was listed: of a common prefix, nothing below it comes again.
        let mut object = match (&request.continuation, &request.start_after) {
            (Some(token), _) => {
                let token = token.strip_prefix("after:").ok_or_else(|| {
                    let told =
                        Error::s3(Kind::InvalidArgument, "InvalidArgument", "this is no token of ours");
                    told.with_answer(Some(400), None, None)
                })?;
                let below = request.delimiter.as_deref().is_some_and(|with| token.ends_with(with));
                self.first(|key| key <= token || key < prefix || (below && key.starts_with(token)))
            }
            (None, Some(after)) => self.first(|key| key <= after.as_str() || key < prefix),
            (None, None) => self.first(|key| key < prefix),
        };
        let mut last = String::new();
        while object < self.count() {
            let key = self.key(object);
            let Some(rest) = key.strip_prefix(prefix) else { break };
            let delimiter = request.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
            let common = delimiter.and_then(|with| rest.find(with).map(|at| prefix.len() + at + with.len()));
            if page.objects.len() + page.common_prefixes.len() == max {
                page.next = Some(format!("after:{last}"));
                break;
            }
            if let Some(end) = common {
                let common = &key[..end];
                object = self.first(|other| other < common || other.starts_with(common));
                // `start-after` is about keys: of a key after it, the common prefix is shown, wherever that is.
                common.clone_into(&mut last);
                page.common_prefixes.push(common.to_owned());
            } else {
                key.clone_into(&mut last);
                page.objects.push(ListedObject {
                    key,
                    size: self.size,
                    etag: Self::etag(object),
                    last_modified: Self::made(),
                    storage_class: Some("STANDARD".to_owned()),
                    restored: None,
                });
                object += 1;
            }
        }
        Ok(page)
    }
}

/// The bytes of an object in `start..end`, of a chunk at most.
fn bytes_of(object: u64, start: u64, end: u64) -> Bytes {
    let first = start / 8 * 8;
    let words = (first..end).step_by(8).map(|at| word(object, at / PAGE_BYTES).to_le_bytes());
    let mut bytes = Vec::with_capacity(usize::try_from(end - first).unwrap_or(0) + 8);
    words.for_each(|word| bytes.extend_from_slice(&word));
    let bytes = Bytes::from(bytes);
    let index = |at: u64| usize::try_from(at - first).unwrap_or(usize::MAX);
    bytes.slice(index(start)..index(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::SystemClock;
    use crate::s3::{MemStore, PutRequest, Store};
    use futures::FutureExt;
    use std::sync::Arc;

    #[test]
    fn it_is_written_in_numbers() {
        let read = |text: &str| text.parse::<Synthetic>();
        assert_eq!(read("1000x10"), Ok(Synthetic { directories: 1000, files: 10, size: 0 }));
        assert_eq!(read("1x2x4MB"), Ok(Synthetic { directories: 1, files: 2, size: 4 << 20 }));
        for wrong in ["", "5", "0x5", "5x-1", "1x2x3x4", "1x2xmuch"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    /// Whatever is asked, it answers what a bucket with these objects does.
    #[test]
    fn it_lists_like_a_bucket_that_holds_them() {
        let made = Synthetic { directories: 12, files: 11, size: 3 };
        let held = MemStore::new(Arc::new(SystemClock), Arc::default()).with_bucket("bucket");
        for object in 0..made.count() {
            let body = bytes_of(object, 0, 3);
            let put =
                PutRequest { bucket: "bucket".into(), key: made.key(object), body, ..PutRequest::default() };
            held.put(put).now_or_never().unwrap().unwrap();
        }
        let mut compared = 0;
        for prefix in ["", "d", "d0", "d05", "d05/", "d05/f1", "e", "d1"] {
            for delimiter in [None, Some("/"), Some("f")] {
                for start_after in
                    [None, Some("d05"), Some("d05/"), Some("d05/f03"), Some("d05/f03x"), Some("z")]
                {
                    for max in [1, 3, 1000] {
                        let mut request = ListRequest {
                            bucket: "bucket".into(),
                            prefix: prefix.into(),
                            delimiter: delimiter.map(str::to_owned),
                            start_after: start_after.map(str::to_owned),
                            continuation: None,
                            max_keys: Some(max),
                        };
                        loop {
                            let one = made.list(&request).unwrap();
                            let other = held.list(request.clone()).now_or_never().unwrap().unwrap();
                            let names = |page: &ListPage| {
                                page.objects.iter().map(|o| (o.key.clone(), o.size)).collect::<Vec<_>>()
                            };
                            assert_eq!(names(&one), names(&other), "{request:?}");
                            assert_eq!(one.common_prefixes, other.common_prefixes, "{request:?}");
                            assert_eq!(one.next, other.next, "{request:?}");
                            compared += 1;
                            request.continuation = one.next;
                            if request.continuation.is_none() {
                                break;
                            }
                        }
                    }
                }
            }
        }
        assert!(compared > 1000, "{compared}");
    }

    #[test]
    fn any_range_of_an_object_is_cut_out_of_the_same_bytes() {
        let made = Synthetic { directories: 2, files: 3, size: 300_001 };
        let read = |range: Option<ByteRange>| {
            let request = GetRequest { key: "d1/f2".into(), range, ..GetRequest::default() };
            made.get(&request).unwrap().bytes().now_or_never().unwrap().unwrap()
        };
        let whole = read(None);
        assert_eq!(whole.len(), 300_001);
        assert_eq!(whole[8192..8200], word(5, 2).to_le_bytes());
        for (start, end) in [(0, 1), (3, 9), (4095, 4097), (262_143, 262_146), (299_999, 900_000)] {
            let expected = &whole[start..end.min(whole.len())];
            assert_eq!(&read(ByteRange::new(start as u64, end as u64))[..], expected, "{start}..{end}");
        }
        assert!(made.head("d1/f3").is_err() && made.head("d1").is_err());
    }
}
