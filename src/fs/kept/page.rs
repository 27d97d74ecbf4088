//! A page of the file: the answers whose keys fall on it, the latest last. Pure.
//!
//! ```text
//! page:   checksum of what follows | length of all entries | entry | entry | ... | what means nothing
//! entry:  digest of bucket and key | digest of ETag and LastModified | length of the value | value
//! ```
//! There is one entry of a key. A page that is not what its checksum says is an empty one: never written, torn or
//! damaged, it makes no difference.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::base::{ETag, crc};

/// Unit of reading and writing: the kernel's, so that looking for an answer reads one of its pages.
pub(super) const PAGE_BYTES: usize = 4 << 10;
/// Answers on one page: 128 bytes for each, where the attributes of a file and the digests take some 90. Keys fall
/// on pages at random, so when as many were put as there is room for in all, seven in a hundred of them have gone.
pub(super) const PAGE_ENTRIES_MAX: usize = 32;
/// An object has 2 KB of metadata at the most, a symlink's target among it; the rest is for what is said in bytes of
/// fixed number. What is longer is not kept.
pub(super) const VALUE_MAX_BYTES: usize = (2 << 10) + 256;

const SUM_BYTES: usize = 8;
const LEN_BYTES: usize = 2;
const DIGEST_BYTES: usize = 16;
const ENTRY_HEAD_BYTES: usize = 2 * DIGEST_BYTES + LEN_BYTES;
/// For entries.
const ROOM_BYTES: usize = PAGE_BYTES - SUM_BYTES - LEN_BYTES;
const _: () = assert!(ENTRY_HEAD_BYTES + VALUE_MAX_BYTES <= ROOM_BYTES);

pub(super) type Page = [u8; PAGE_BYTES];

/// Whom an answer is about, in digests too long to meet by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    key: [u8; DIGEST_BYTES],
    version: [u8; DIGEST_BYTES],
}

impl Identity {
    /// LastModified counts in whole seconds: HEAD has no finer ones, where many a server's LIST has.
    pub(super) fn new(bucket: &str, key: &str, etag: &ETag, last_modified: SystemTime) -> Self {
        let (is_before, since) = match last_modified.duration_since(UNIX_EPOCH) {
            Ok(since) => (0, since),
            Err(before) => (1, before.duration()),
        };
        let version = digest([etag.as_str().as_bytes(), &[is_before], &since.as_secs().to_le_bytes()]);
        Self { key: digest([bucket.as_bytes(), key.as_bytes()]), version }
    }

    /// Which of so many pages its key falls on.
    pub(super) fn page(&self, pages: u64) -> u64 {
        self.key.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) % pages.max(1)
    }
}

fn digest<const N: usize>(parts: [&[u8]; N]) -> [u8; DIGEST_BYTES] {
    let mut hash = Sha256::new();
    for part in parts {
        // The length goes first, so that no two lists of parts are one run of bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let whole: [u8; 32] = hash.finalize().into();
    whole.first_chunk().copied().unwrap_or_default()
}

struct Entry<'a> {
    identity: Identity,
    value: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The first entry, and the bytes behind it.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (key, rest) = bytes.split_first_chunk()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        Some((Self { identity: Identity { key: *key, version: *version }, value }, rest))
    }

    fn len(&self) -> usize {
        ENTRY_HEAD_BYTES + self.value.len()
    }
}

/// What a page keeps of this version of a key.
pub(super) fn find<'a>(page: &'a Page, identity: &Identity) -> Option<&'a [u8]> {
    entries(page).find(|entry| entry.identity == *identity).map(|entry| entry.value)
}

/// The page with one more answer, which takes the place of an earlier one about the same key. The oldest go where there
/// is no room for all.
pub(super) fn with(page: &Page, identity: &Identity, value: &[u8]) -> Page {
    let mut kept: Vec<_> = entries(page).filter(|entry| entry.identity.key != identity.key).collect();
    kept.push(Entry { identity: *identity, value });
    let mut kept = &kept[kept.len().saturating_sub(PAGE_ENTRIES_MAX)..];
    let mut len: usize = kept.iter().map(Entry::len).sum();
    while let Some((oldest, others)) = kept.split_first().filter(|_| len > ROOM_BYTES) {
        len -= oldest.len();
        kept = others;
    }
    let mut body = Vec::with_capacity(PAGE_BYTES);
    body.extend(len_bytes(len));
    for entry in kept {
        body.extend(entry.identity.key);
        body.extend(entry.identity.version);
        body.extend(len_bytes(entry.value.len()));
        body.extend(entry.value);
    }
    let mut bytes = [0; PAGE_BYTES];
    bytes[..SUM_BYTES].copy_from_slice(&crc::crc64(&body).to_le_bytes());
    bytes[SUM_BYTES..SUM_BYTES + body.len()].copy_from_slice(&body);
    bytes
}

/// Lengths of what is on a page are less than a page's.
fn len_bytes(len: usize) -> [u8; LEN_BYTES] {
    u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes()
}

/// The oldest first.
fn entries(page: &Page) -> impl Iterator<Item = Entry<'_>> {
    let mut rest = sound(page).unwrap_or_default();
    std::iter::from_fn(move || {
        let (entry, after) = Entry::split(rest)?;
        rest = after;
        Some(entry)
    })
}

/// The entries of a page that is what its checksum says.
fn sound(page: &Page) -> Option<&[u8]> {
    let (sum, body) = page.split_first_chunk()?;
    let len = usize::from(u16::from_le_bytes(*body.first_chunk()?));
    let body = body.get(..LEN_BYTES + len)?;
    (crc::crc64(body) == u64::from_le_bytes(*sum)).then_some(&body[LEN_BYTES..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn identity(key: &str, etag: &str) -> Identity {
        Identity::new("bucket", key, &ETag::new(etag), UNIX_EPOCH)
    }

    proptest! {
        /// Against a list of all that was put: what is there is the latest of each key, and no later one had to go
        /// for an earlier.
        #[test]
        fn a_page_has_the_latest_answers_that_it_has_room_for(
            puts in proptest::collection::vec((0u8..45, 0u8..2, 0usize..VALUE_MAX_BYTES / 4), 1..60),
        ) {
            let mut page = [0; PAGE_BYTES];
            let mut model: Vec<(u8, u8, Vec<u8>)> = Vec::new();
            for (n, (key, etag, len)) in puts.into_iter().enumerate() {
                let value = vec![n as u8; len];
                page = with(&page, &identity(&key.to_string(), &etag.to_string()), &value);
                model.retain(|(known, _, _)| *known != key);
                model.push((key, etag, value));
                let mut left = ROOM_BYTES;
                let has_room = |(_, _, value): &&(u8, u8, Vec<u8>)| {
                    let fits = ENTRY_HEAD_BYTES + value.len() <= left;
                    left = left.saturating_sub(ENTRY_HEAD_BYTES + value.len());
                    fits
                };
                let count = model.iter().rev().take(PAGE_ENTRIES_MAX).take_while(has_room).count();
                let gone = model.len() - count;
                for (number, (key, etag, value)) in model.iter().enumerate() {
                    for other in 0..2 {
                        let found = find(&page, &identity(&key.to_string(), &other.to_string()));
                        let expected = (number >= gone && other == *etag).then_some(value.as_slice());
                        prop_assert_eq!(found, expected);
                    }
                }
                model.drain(..gone);
            }
        }

        #[test]
        fn whatever_bytes_a_page_has_it_is_read_and_a_changed_one_is_empty(
            noise in proptest::collection::vec(any::<u8>(), PAGE_BYTES),
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20),
            at in any::<proptest::sample::Index>(),
            bit in 0u32..8,
        ) {
            let noise: Page = noise.try_into().unwrap();
            prop_assert_eq!(entries(&noise).count(), 0);
            let mut page = [0; PAGE_BYTES];
            for (n, value) in values.iter().enumerate() {
                page = with(&page, &identity(&n.to_string(), "e"), value);
            }
            let used = SUM_BYTES + LEN_BYTES + sound(&page).unwrap().len();
            page[at.index(used)] ^= 1 << bit;
            prop_assert_eq!(entries(&page).count(), 0);
        }

        #[test]
        fn whom_an_answer_is_about_is_told_apart_wherever_one_name_ends(
            one in (".{0,3}", ".{0,3}", "[ab]{0,2}", 0i64..4), two in (".{0,3}", ".{0,3}", "[ab]{0,2}", 0i64..4),
        ) {
            let of = |(bucket, key, etag, seconds): &(String, String, String, i64)| {
                // Around 1970, where the sign changes.
                let at = UNIX_EPOCH - Duration::from_secs(2) + Duration::from_secs(seconds.unsigned_abs());
                Identity::new(bucket, key, &ETag::new(etag), at)
            };
            prop_assert_eq!(of(&one) == of(&two), one == two);
        }
    }

    #[test]
    fn an_answer_that_no_page_has_room_for_leaves_no_trace() {
        let (small, large) = (identity("small", "e"), identity("large", "e"));
        let page = with(&[0; PAGE_BYTES], &small, b"1");
        let page = with(&page, &large, &[7; PAGE_BYTES]);
        assert_eq!(find(&page, &large), None);
        let page = with(&page, &small, b"2");
        assert_eq!(find(&page, &small), Some(&b"2"[..]));
    }
}
