//! Checksums as S3 stores them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm::{Crc32Iscsi, Crc32IsoHdlc, Crc64Nvme};
use md5::{Digest, Md5};

use super::types::{Checksum, ChecksumAlgorithm, Part};
use crate::base::crc::joined;
use crate::error::{Error, Kind, Result};

impl ChecksumAlgorithm {
    /// The checksum of a body, base64 as S3's headers carry it.
    pub fn of(self, body: &[u8]) -> String {
        let crc32 = |algorithm| {
            let value = u32::try_from(crc_fast::checksum(algorithm, body)).unwrap_or(0);
            BASE64.encode(value.to_be_bytes())
        };
        match self {
            Self::Crc64Nvme => BASE64.encode(crc_fast::checksum(Crc64Nvme, body).to_be_bytes()),
            Self::Crc32 => crc32(Crc32IsoHdlc),
            Self::Crc32c => crc32(Crc32Iscsi),
            Self::Md5 => BASE64.encode(Md5::digest(body)),
            Self::Sha1 => BASE64.encode(sha1::Sha1::digest(body)),
            Self::Sha256 => BASE64.encode(sha2::Sha256::digest(body)),
        }
    }
}

/// The CRC-64/NVME of a body, as S3 stores it for the whole object.
pub fn checksum_of(body: &[u8]) -> Checksum {
    let algorithm = ChecksumAlgorithm::Crc64Nvme;
    Checksum { algorithm, value: algorithm.of(body) }
}

/// The same, of bytes whose CRC-64/NVME is known.
pub fn checksum_from(crc: u64) -> Checksum {
    Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value: BASE64.encode(crc.to_be_bytes()) }
}

/// What S3 stores of an object of these parts, where their own checksums tell.
pub fn whole_checksum(parts: &[Part]) -> Option<Checksum> {
    let whole = parts.iter().try_fold(0, |crc, part| {
        let of_part = part.checksum.as_ref().filter(|sum| sum.algorithm == ChecksumAlgorithm::Crc64Nvme)?;
        let bytes = BASE64.decode(&of_part.value).ok()?;
        Some(joined(crc, u64::from_be_bytes(bytes.try_into().ok()?), part.size))
    });
    whole.map(checksum_from)
}

/// Holds the bytes of a whole object against what S3 stores of them: `Corrupt` where they differ. One checksum is
/// enough, and a checksum of parts' checksums tells nothing of a body.
pub fn verify(stored: &[Checksum], body: &[u8]) -> Result<()> {
    let Some(expected) = stored.iter().find(|checksum| is_of_body(checksum)) else { return Ok(()) };
    if expected.algorithm.of(body) == expected.value {
        return Ok(());
    }
    Err(Error::new(Kind::Corrupt, "the bytes do not match the checksum that S3 stores of them"))
}

/// Whether a stored checksum is of the whole body, not of its parts' checksums.
pub fn is_of_body(checksum: &Checksum) -> bool {
    !checksum.value.contains('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_documented_ones() {
        // The check values of "123456789" in the catalogue of CRCs.
        assert_eq!(checksum_of(b"123456789").value, BASE64.encode(0xAE8B_1486_0A79_9888_u64.to_be_bytes()));
        let of = |algorithm: ChecksumAlgorithm| algorithm.of(b"123456789");
        assert_eq!(of(ChecksumAlgorithm::Crc32), BASE64.encode([0xCB, 0xF4, 0x39, 0x26]));
        assert_eq!(of(ChecksumAlgorithm::Crc32c), BASE64.encode([0xE3, 0x06, 0x92, 0x83]));
    }

    #[test]
    fn the_checksum_of_a_whole_follows_from_those_of_its_parts() {
        let part = |number, bytes: &[u8]| Part {
            number,
            etag: crate::base::ETag::new("e"),
            size: bytes.len() as u64,
            checksum: Some(checksum_of(bytes)),
        };
        let mut parts = vec![part(1, b"12345"), part(2, b""), part(4, b"6789")];
        assert_eq!(whole_checksum(&parts), Some(checksum_of(b"123456789")));
        parts[1].checksum = None;
        assert_eq!(whole_checksum(&parts), None);
    }

    #[test]
    fn bytes_are_held_against_what_is_stored() {
        let right = checksum_of(b"bytes");
        assert!(verify(std::slice::from_ref(&right), b"bytes").is_ok());
        assert_eq!(verify(&[right], b"bytez").unwrap_err().kind(), Kind::Corrupt);
        let of_parts = Checksum { algorithm: ChecksumAlgorithm::Crc32, value: "AAAAAA==-3".into() };
        assert!(verify(&[of_parts], b"bytes").is_ok(), "it tells nothing of the body");
        assert!(verify(&[], b"bytes").is_ok());
    }
}
