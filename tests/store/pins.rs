//! Where servers are known to differ from S3: what each does instead, in the words of the deviation. Words joined by
//! ` | ` are alternatives, for a server that deviates in more than one way.

use crate::harness::Server::{self, *};

pub const PINS: &[(Server, &str, &str)] = &[
    (Mem, "errors_carry_code_status_and_request_id", "no request id"),
    (Mem, "a_presigned_address_shows_the_object_to_anybody", "has no address"),
    (Mem, "a_wrong_secret_is_told", "it takes no keys"),
    (Mem, "an_unknown_access_key_is_told", "it takes no keys"),
    (Mem, "what_one_key_encrypts_no_other_reads", "it takes no keys"),
    // s3s decodes RFC 2047 in metadata before we see it.
    (Demo, "metadata_values_come_back_as_they_are", "\"value-4\": \"x\""),
    // Garage 2.5.0: conditions on writes are taken and not looked at; no versions, no tags, no request ids.
    // What it does not know beside the bytes it takes and forgets.
    (Garage, "a_copy_keeps_tags", "NotImplemented, HTTP 501"),
    (Garage, "a_copy_takes_the_class_it_is_told", "class: None"),
    (Garage, "a_copy_takes_the_encryption_it_is_told", "key of a copy: None"),
    (Garage, "a_storage_class_comes_back", "class: None"),
    (Garage, "an_upload_takes_its_class", "class: None"),
    (Garage, "encryption_comes_back", "key of the object: None"),
    (Garage, "tags_are_counted", "tags of k: 0"),
    (Garage, "a_completion_over_an_object_is_refused", "the completion was taken"),
    (Garage, "a_completion_over_another_version_is_stale", "the completion was taken"),
    (Garage, "a_copy_over_an_object_is_refused", "the copy was taken"),
    (Garage, "a_copy_over_another_version_is_stale", "the copy was taken"),
    (Garage, "a_create_over_a_marker_succeeds", "NotImplemented, HTTP 501"),
    (Garage, "a_create_over_an_object_is_refused", "the create was taken"),
    (Garage, "a_delete_leaves_a_marker_and_the_versions", "NotImplemented, HTTP 501"),
    (Garage, "a_delete_of_another_version_is_stale", "the delete was taken"),
    (Garage, "a_replace_of_a_missing_key_is_refused", "the replace was taken"),
    (Garage, "a_replace_of_another_version_is_stale", "the replace was taken"),
    (Garage, "a_small_part_before_the_last_is_refused", "the completion was taken"),
    (Garage, "an_old_version_is_copied_by_its_id", "NotImplemented, HTTP 501"),
    (Garage, "an_old_version_reads_by_its_id", "NotImplemented, HTTP 501"),
    (Garage, "delete_many_deletes_the_named_versions_alone", "the delete of another version was taken"),
    (Garage, "deleting_a_version_removes_only_it", "NotImplemented, HTTP 501"),
    (Garage, "deleting_the_marker_brings_the_object_back", "NotImplemented, HTTP 501"),
    (Garage, "errors_carry_code_status_and_request_id", "no request id"),
    (Garage, "every_page_size_gives_the_same_versions", "NotImplemented, HTTP 501"),
    (Garage, "head_bucket_tells_the_region", "region: None"),
    (Garage, "odd_keys_are_kept", "not kept: [\"llllllllllll... of 1024 bytes\""),
    (Garage, "of_eight_racing_creators_one_wins", "8 of 8 won"),
    (Garage, "of_eight_racing_replacers_one_wins", "8 of 8 won"),
    (Garage, "tags_come_back", "NotImplemented, HTTP 501"),
    (Garage, "tags_of_a_missing_key_are_not_found", "NotImplemented, HTTP 501"),
    (Garage, "tags_of_a_put_come_back", "NotImplemented, HTTP 501"),
    (Garage, "versioning_is_switched_on_and_off", "NotImplemented, HTTP 501"),
    (Garage, "versions_are_grouped_by_a_delimiter", "NotImplemented, HTTP 501"),
    (Garage, "versions_are_listed_newest_first", "NotImplemented, HTTP 501"),
    // SeaweedFS 4.48: a key beside keys below it may be refused, whichever came first; lists as a tree is walked, keeps keys as paths, makes buckets on the way.
    (SeaweedFs, "a_bucket_with_objects_is_not_deleted", "the delete was taken"),
    (SeaweedFs, "a_copy_takes_the_class_it_is_told", "the copy has the class Some(\"STANDARD_IA\")"),
    // It has no KMS until it is given one, and says of a customer's key what the SDK cannot read.
    (SeaweedFs, "a_copy_takes_the_encryption_it_is_told", "InternalError, HTTP 500"),
    (SeaweedFs, "encryption_comes_back", "InternalError, HTTP 500"),
    (SeaweedFs, "expiry_and_redirect_come_back", "None) instead of"),
    (SeaweedFs, "what_one_key_encrypts_no_other_reads", "Failed to parse SSECustomerKeyMD5"),
    (SeaweedFs, "a_delimiter_groups_what_lies_below", "prefixes under \"\": | ExistingObjectIsFile"),
    (SeaweedFs, "a_key_beside_its_own_children_is_kept", "ExistingObjectIsFile"),
    (SeaweedFs, "a_missing_bucket_is_told_from_a_missing_key", "a put was taken"),
    (SeaweedFs, "a_prefix_narrows_inside_a_name", "keys under \"a\": | ExistingObjectIsFile"),
    (SeaweedFs, "every_page_size_gives_the_same_groups", "ExistingObjectIsFile | a page of 2 where 1"),
    (SeaweedFs, "every_page_size_gives_the_same_keys", "keys by pages of 1: | ExistingObjectIsFile"),
    (SeaweedFs, "head_bucket_tells_the_region", "region: None"),
    (SeaweedFs, "keys_come_in_byte_order", "keys: | ExistingObjectIsFile"),
    (SeaweedFs, "metadata_values_come_back_as_they_are", "metadata: {\"value-1\""),
    (SeaweedFs, "odd_keys_are_kept", "not kept: [\"./dot\""),
    (SeaweedFs, "start_after_is_exclusive", "keys after \"Z\": | ExistingObjectIsFile"),
    (SeaweedFs, "start_after_with_a_delimiter", "keys and prefixes after \"Z\": | ExistingObjectIsFile"),
    // moto 5.2.5: takes any key, looks at few conditions, keeps no checksums, and some answers break the XML that the SDK
    // expects.
    (Moto, "a_bucket_made_twice_exists_already", "the second was taken"),
    (Moto, "a_completion_over_another_version_is_stale", "the completion was taken"),
    (Moto, "a_presigned_address_shows_the_object_to_anybody", "a wrong signature was taken"),
    (Moto, "a_copy_of_another_version_is_stale", "the copy was taken"),
    (Moto, "a_copy_over_an_object_is_refused", "the copy was taken"),
    (Moto, "a_copy_over_another_version_is_stale", "the copy was taken"),
    (Moto, "a_part_of_another_version_is_stale", "the part was taken"),
    (Moto, "a_part_with_a_wrong_checksum_is_refused", "the part was taken"),
    (Moto, "a_stored_checksum_is_told", "Crc64Nvme is not told"),
    (Moto, "a_wrong_secret_is_told", "the listing was taken"),
    (Moto, "an_aborted_upload_is_gone", "the server failed (HTTP 500)"),
    (Moto, "an_unknown_access_key_is_told", "the listing was taken"),
    (Moto, "delete_many_deletes_the_named_versions_alone", "the delete of another version was taken"),
    (Moto, "errors_carry_code_status_and_request_id", "no request id"),
    (Moto, "list_parts_tells_what_arrived", "invalid XML root"),
    (Moto, "odd_keys_are_kept", "not kept: [\"line\\nbreak\""),
    (Moto, "tags_come_back", "the server failed (HTTP 500)"),
    (Moto, "versioning_is_switched_on_and_off", "invalid XML root"),
    (Moto, "what_one_key_encrypts_no_other_reads", "it is encrypted with None"),
    (Moto, "wrong_checksums_are_refused", "taken: [Crc64Nvme, Crc32, Crc32c, Sha1, Sha256, Md5]"),
];

/// What `server` does instead of `behaviour`, where that is known.
pub fn pinned(server: Server, behaviour: &str) -> Option<&'static str> {
    PINS.iter().find(|(at, name, _)| *at == server && *name == behaviour).map(|(_, _, words)| *words)
}

/// Whether a deviation is the pinned one.
pub fn is_pinned(deviation: &str, words: &str) -> bool {
    words.split(" | ").any(|alternative| deviation.contains(alternative))
}
