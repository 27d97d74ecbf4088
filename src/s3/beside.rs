//! What is beside an object's bytes when it is made, rewritten or moved: the rules, without a request.
//!
//! Two wishes meet here. What an object has is to stay, although S3 forgets most of it when the object is written or
//! copied again. And what a mount was asked to give to its objects is for the new ones.
//!
//! | | new | rewritten | moved |
//! |---|---|---|---|
//! | storage class | the option's | its own, unless that is an archive | its own |
//! | KMS key | the option's | its own | its own, within the bucket |
//! | no KMS key | the option's | the option's | the option's |
//! | ACL | the option's | the option's | the option's |
//! | tags | the option's | its own | S3 copies them |
//! | headers, user metadata | the name's type | its own | S3 copies them |

use std::collections::BTreeMap;

use super::types::{Again, Attributes, Encryption, is_archived};

/// What a mount gives to its objects where they have nothing of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewObjects {
    pub storage_class: Option<String>,
    pub encryption: Option<Encryption>,
    /// A canned ACL.
    pub acl: Option<String>,
    pub tags: BTreeMap<String, String>,
}

impl NewObjects {
    /// Of a file that is made here.
    pub fn file(&self) -> Attributes {
        Attributes {
            storage_class: self.storage_class.clone(),
            encryption: self.encryption.clone(),
            acl: self.acl.clone(),
            tags: self.tags.clone(),
            ..Attributes::default()
        }
    }

    /// Of an empty object that stands for a name. It has no class: the cheap ones charge for at least some bytes and days,
    /// and an archived one could not be read.
    pub fn placeholder(&self) -> Attributes {
        Attributes { storage_class: None, ..self.file() }
    }

    /// Of a file whose object had these, tags included, when its bytes are written anew.
    pub fn rewritten(&self, had: Attributes) -> Attributes {
        let storage_class = match own_class(&had) {
            // Who has just written bytes may want to read them.
            Some(class) if is_archived(Some(&class), false) => self.storage_class.clone(),
            class => class,
        };
        Again { storage_class, ..self.moved(&had, true) }.lay_over(had)
    }

    /// Of a copy of an object that had these. Another bucket may be in a region where a key or class is not.
    pub fn moved(&self, had: &Attributes, within_bucket: bool) -> Again {
        let own = had.encryption.clone().filter(|own| own.is_chosen() && within_bucket);
        Again {
            storage_class: own_class(had),
            encryption: own.or_else(|| self.encryption.clone()),
            acl: self.acl.clone(),
            redirect: had.redirect.clone(),
        }
    }
}

/// The class that somebody chose for an object: not the one that is the rule, nor one that goes with the bucket.
fn own_class(had: &Attributes) -> Option<String> {
    let ruled = ["", "STANDARD", "EXPRESS_ONEZONE", "OUTPOSTS", "SNOW", "FSX_OPENZFS", "FSX_ONTAP"];
    had.storage_class.clone().filter(|class| !ruled.contains(&class.as_str()))
}

/// What a request asked for beside the bytes that a server may not know, each with the option that asks for it.
pub(super) fn asked_for(attributes: &Attributes) -> Option<String> {
    let class =
        attributes.storage_class.as_ref().map(|class| format!("storage class {class} (--storage-class)"));
    let encryption = attributes.encryption.as_ref().and_then(|encryption| match encryption {
        Encryption::S3 => Some("encryption AES256 (--sse)".to_owned()),
        Encryption::Kms { key_id: None, .. } => Some("encryption with KMS (--sse)".to_owned()),
        Encryption::Kms { key_id: Some(key), .. } => {
            Some(format!("encryption with KMS (--sse) and its key {key} (--sse-kms-key-id)"))
        }
        Encryption::Customer { .. } => None,
    });
    let acl = attributes.acl.as_ref().map(|acl| format!("ACL {acl} (--acl)"));
    let tags = (!attributes.tags.is_empty()).then(|| {
        let names: Vec<&str> = attributes.tags.keys().map(String::as_str).collect();
        format!("tags {} (--tag)", names.join(", "))
    });
    let asked: Vec<String> = [class, encryption, acl, tags].into_iter().flatten().collect();
    (!asked.is_empty()).then(|| asked.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kms(key: &str) -> Option<Encryption> {
        Some(Encryption::Kms { key_id: Some(key.to_owned()), bucket_key: Some(true), twice: false })
    }

    fn asked() -> NewObjects {
        NewObjects {
            storage_class: Some("STANDARD_IA".to_owned()),
            encryption: kms("mine"),
            acl: Some("bucket-owner-full-control".to_owned()),
            tags: [("team".to_owned(), "a".to_owned())].into(),
        }
    }

    fn had(class: &str, encryption: Option<Encryption>) -> Attributes {
        Attributes {
            content_type: Some("text/plain".to_owned()),
            storage_class: Some(class.to_owned()),
            encryption,
            tags: [("theirs".to_owned(), "b".to_owned())].into(),
            metadata: [("owner".to_owned(), "ann".to_owned())].into(),
            redirect: Some("/there".to_owned()),
            ..Attributes::default()
        }
    }

    #[test]
    fn what_an_object_has_stays_when_it_is_rewritten() {
        let kept = asked().rewritten(had("GLACIER_IR", kms("theirs")));
        let expected = Attributes { acl: asked().acl, ..had("GLACIER_IR", kms("theirs")) };
        assert_eq!(kept, expected);
        assert_eq!(NewObjects::default().rewritten(had("ONEZONE_IA", None)), had("ONEZONE_IA", None));
    }

    #[test]
    fn what_nobody_chose_is_not_said_again() {
        let plain = NewObjects::default().rewritten(had("STANDARD", Some(Encryption::S3)));
        assert_eq!((plain.storage_class, plain.encryption), (None, None), "the bucket's own rules apply");
        let asked = asked().rewritten(had("STANDARD", Some(Encryption::S3)));
        assert_eq!((asked.storage_class, asked.encryption), (None, kms("mine")));
    }

    #[test]
    fn written_bytes_can_be_read_and_moved_ones_stay_where_they_are() {
        for archive in ["GLACIER", "DEEP_ARCHIVE"] {
            assert_eq!(asked().rewritten(had(archive, None)).storage_class.as_deref(), Some("STANDARD_IA"));
            assert_eq!(asked().moved(&had(archive, None), true).storage_class.as_deref(), Some(archive));
        }
    }

    #[test]
    fn a_key_is_of_its_bucket() {
        assert_eq!(asked().moved(&had("STANDARD", kms("theirs")), true).encryption, kms("theirs"));
        assert_eq!(asked().moved(&had("STANDARD", kms("theirs")), false).encryption, kms("mine"));
        assert_eq!(NewObjects::default().moved(&had("STANDARD", kms("theirs")), false).encryption, None);
    }

    #[test]
    fn an_empty_object_for_a_name_has_no_class() {
        assert_eq!(asked().placeholder(), Attributes { storage_class: None, ..asked().file() });
    }

    #[test]
    fn a_refusal_names_the_options() {
        let text = asked_for(&asked().file()).unwrap();
        for flag in ["--storage-class", "--sse", "--sse-kms-key-id", "--acl", "--tag"] {
            assert!(text.contains(flag), "{text}");
        }
        assert_eq!(asked_for(&had("STANDARD", None)).map(|text| text.contains("--sse")), Some(false));
        assert_eq!(asked_for(&Attributes::default()), None);
    }
}
