//! Encryption as the server plays it: what was asked for is kept and told, and a customer's key is demanded again. The
//! bytes stay as they are, in memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest, Md5};
use s3s::{S3Result, s3_error};

use crate::s3::Encryption;

/// A customer's key as requests carry it, from the three headers.
#[derive(Clone, Debug, Default)]
pub(super) struct CustomerKey {
    pub(super) algorithm: Option<String>,
    pub(super) key: Option<String>,
    pub(super) md5: Option<String>,
}

impl CustomerKey {
    /// The MD5 of the key, where one was sent.
    pub(super) fn checked(&self) -> S3Result<Option<String>> {
        let (algorithm, key, md5) = match (&self.algorithm, &self.key, &self.md5) {
            (None, None, None) => return Ok(None),
            (Some(algorithm), Some(key), Some(md5)) => (algorithm, key, md5),
            _ => {
                return Err(s3_error!(
                    InvalidArgument,
                    "A customer key takes an algorithm, a key and its MD5"
                ));
            }
        };
        if algorithm != "AES256" {
            return Err(s3_error!(InvalidArgument, "The algorithm of a customer key is AES256"));
        }
        let bytes = BASE64.decode(key).ok().filter(|bytes| bytes.len() == 32);
        match bytes.filter(|bytes| BASE64.encode(Md5::digest(bytes)) == *md5) {
            Some(_) => Ok(Some(md5.clone())),
            None => Err(s3_error!(InvalidArgument, "The key is not the one that its MD5 is of")),
        }
    }

    /// Whether who sends this may see an object that is encrypted so.
    pub(super) fn opens(&self, encryption: Option<&Encryption>) -> S3Result<()> {
        match (encryption, self.checked()?) {
            (Some(Encryption::Customer { key_md5 }), Some(md5)) if *key_md5 == md5 => Ok(()),
            (Some(Encryption::Customer { .. }), Some(_)) => {
                Err(s3_error!(AccessDenied, "The object is encrypted with another key"))
            }
            (Some(Encryption::Customer { .. }), None) => Err(s3_error!(
                InvalidRequest,
                "The object was stored using a form of Server Side Encryption. The correct parameters must be \
                 provided to retrieve the object."
            )),
            (_, Some(_)) => {
                Err(s3_error!(InvalidRequest, "The encryption parameters are not applicable to this object."))
            }
            (_, None) => Ok(()),
        }
    }
}

/// What a Put, Copy or CreateMultipartUpload asks for.
pub(super) fn asked(
    algorithm: Option<&str>,
    kms_key_id: Option<&str>,
    bucket_key: Option<bool>,
    customer: &CustomerKey,
) -> S3Result<Option<Encryption>> {
    match (algorithm, customer.checked()?) {
        (None, None) => Ok(None),
        (None, Some(key_md5)) => Ok(Some(Encryption::Customer { key_md5 })),
        (Some(_), Some(_)) => Err(s3_error!(
            InvalidArgument,
            "An object is encrypted with one key: the customer's or the server's"
        )),
        (Some("AES256"), None) if kms_key_id.is_none() => Ok(Some(Encryption::S3)),
        (Some(kms @ ("aws:kms" | "aws:kms:dsse")), None) => Ok(Some(Encryption::Kms {
            key_id: Some(kms_key_id.unwrap_or("alias/aws/s3").to_owned()),
            bucket_key,
            twice: kms == "aws:kms:dsse",
        })),
        _ => Err(s3_error!(
            InvalidEncryptionAlgorithmError,
            "The encryption request you specified is not valid"
        )),
    }
}

/// How an answer tells it.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) algorithm: Option<&'static str>,
    pub(super) kms_key_id: Option<String>,
    pub(super) bucket_key: Option<bool>,
    pub(super) customer_algorithm: Option<String>,
    pub(super) customer_key_md5: Option<String>,
}

pub(super) fn told(encryption: Option<&Encryption>) -> Told {
    match encryption {
        None => Told::default(),
        Some(Encryption::S3) => Told { algorithm: Some("AES256"), ..Told::default() },
        Some(Encryption::Kms { key_id, bucket_key, twice }) => Told {
            algorithm: Some(if *twice { "aws:kms:dsse" } else { "aws:kms" }),
            kms_key_id: key_id.clone(),
            bucket_key: bucket_key.filter(|yes| *yes),
            ..Told::default()
        },
        Some(Encryption::Customer { key_md5 }) => Told {
            customer_algorithm: Some("AES256".to_owned()),
            customer_key_md5: Some(key_md5.clone()),
            ..Told::default()
        },
    }
}

/// The key that a request sends; inputs share these fields.
macro_rules! customer_key {
    ($input:expr) => {
        $crate::demo::encryption::CustomerKey {
            algorithm: $input.sse_customer_algorithm.clone(),
            key: $input.sse_customer_key.clone(),
            md5: $input.sse_customer_key_md5.clone(),
        }
    };
}
pub(super) use customer_key;

/// The key of a copy's source.
macro_rules! source_key {
    ($input:expr) => {
        $crate::demo::encryption::CustomerKey {
            algorithm: $input.copy_source_sse_customer_algorithm.clone(),
            key: $input.copy_source_sse_customer_key.clone(),
            md5: $input.copy_source_sse_customer_key_md5.clone(),
        }
    };
}
pub(super) use source_key;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> CustomerKey {
        CustomerKey {
            algorithm: Some("AES256".to_owned()),
            key: Some(BASE64.encode([byte; 32])),
            md5: Some(BASE64.encode(Md5::digest([byte; 32]))),
        }
    }

    #[test]
    fn an_object_is_opened_by_its_own_key_alone() {
        let locked = asked(None, None, None, &key(1)).unwrap();
        assert!(key(1).opens(locked.as_ref()).is_ok());
        assert!(key(2).opens(locked.as_ref()).is_err());
        assert!(CustomerKey::default().opens(locked.as_ref()).is_err());
        assert!(key(1).opens(None).is_err());
        assert!(CustomerKey::default().opens(Some(&Encryption::S3)).is_ok());
    }

    #[test]
    fn a_key_that_is_not_its_md5_s_is_refused() {
        assert!(CustomerKey { md5: key(2).md5, ..key(1) }.checked().is_err());
        assert!(CustomerKey { algorithm: None, ..key(1) }.checked().is_err());
        assert!(asked(Some("AES256"), None, None, &key(1)).is_err());
        assert!(asked(Some("rot13"), None, None, &CustomerKey::default()).is_err());
    }
}
