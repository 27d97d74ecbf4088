//! Conformance of every `Store`: one library of behaviours, run over the model in this process, our demo
//! server over HTTP, and three servers that we did not write.
//!
//! A behaviour is a claim about S3 that the rest of the house leans on. It answers `Ok`, or the deviation
//! it saw. Where a server is known to deviate that is pinned in `pins.rs`, by the words of the deviation;
//! so a server that gets better, or worse, fails the run until the pin is right. Nothing is skipped.

// Numbers in tests are small and made for the purpose.
#![allow(clippy::cast_possible_truncation)]

// Each target uses a part of what is shared.
#[allow(dead_code)]
#[path = "../harness/mod.rs"]
mod harness;

mod beside;
mod buckets;
mod conditions;
mod copies;
mod listing;
mod objects;
mod pins;
mod uploads;
mod versions;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use harness::{Place, Server};
use pailfs::error::{Error, Kind, Result};

/// More than the slowest server needs for the longest behaviour.
const BEHAVIOUR_DEADLINE: Duration = Duration::from_secs(180);

type Outcome = std::result::Result<(), Deviation>;

/// What a server did instead.
#[derive(Debug)]
struct Deviation(String);

impl From<Error> for Deviation {
    fn from(error: Error) -> Self {
        Self(format!("failed with {:?}: {}", error.kind(), error.report()))
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ends a behaviour with a deviation unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(crate::Deviation(format!($($words)+)));
        }
    };
}

/// Ends a behaviour with a deviation unless both are equal.
macro_rules! same {
    ($got:expr, $wanted:expr, $what:literal) => {{
        let (got, wanted) = (&$got, &$wanted);
        if got != wanted {
            return Err(crate::Deviation(format!("{}: {got:?} instead of {wanted:?}", format!($what))));
        }
    }};
}

use {ensure, same};

/// The error of a request that has to fail with one of `kinds`.
fn refused<T>(what: &str, result: Result<T>, kinds: &[Kind]) -> std::result::Result<Error, Deviation> {
    match result {
        Ok(_) => Err(Deviation(format!("{what} was taken"))),
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        Err(error) => Err(Deviation(format!(
            "{what} failed with {:?} instead of {kinds:?}: {}",
            error.kind(),
            error.report()
        ))),
    }
}

/// Runs one behaviour on one server, in a bucket of its own, and holds the outcome against the pins.
fn check<F: Future<Output = Outcome>>(server: Server, name: &str, behaviour: fn(Place) -> F) {
    let Some(store) = server.store_or_say(name) else { return };
    let outcome = harness::block_on(async {
        let place = Place::make(server, store).await.unwrap_or_else(|error| {
            panic!("a fresh bucket on {}: {}", server.name(), error.report());
        });
        let outcome = tokio::time::timeout(BEHAVIOUR_DEADLINE, Box::pin(behaviour(place.clone())))
            .await
            .unwrap_or_else(|_| Err(Deviation(format!("no end within {BEHAVIOUR_DEADLINE:?}"))));
        place.remove().await;
        outcome
    });
    match (outcome, pins::pinned(server, name)) {
        (Ok(()), None) => {}
        (Err(deviation), Some(words)) if pins::is_pinned(&deviation.0, words) => {}
        (Err(deviation), None) => panic!("{}: {deviation}", server.name()),
        (Err(deviation), Some(words)) => {
            panic!("{} is pinned to {words:?} and does otherwise: {deviation}", server.name())
        }
        (Ok(()), Some(words)) => panic!(
            "{} is pinned to {words:?} and now does what S3 does: take the pin out of tests/store/pins.rs",
            server.name()
        ),
    }
}

macro_rules! suite {
    ($module:ident, $server:ident, $($family:ident: $($behaviour:ident)+;)+) => {
        mod $module {
            use super::*;
            $($(
                #[test]
                fn $behaviour() {
                    check(Server::$server, stringify!($behaviour), $family::$behaviour);
                }
            )+)+
        }
    };
}

macro_rules! behaviours {
    ($($all:tt)+) => {
        suite!(mem, Mem, $($all)+);
        suite!(demo, Demo, $($all)+);
        suite!(garage, Garage, $($all)+);
        suite!(seaweedfs, SeaweedFs, $($all)+);
        suite!(moto, Moto, $($all)+);
        const ALL: &str = stringify!($($all)+);
    };
}

behaviours! {
    objects:
        put_then_get_returns_the_bytes
        a_presigned_address_shows_the_object_to_anybody
        put_replaces_what_was_there
        an_empty_object_reads_as_empty
        head_tells_size_etag_and_time
        other_bytes_have_another_etag
        a_missing_key_is_not_found
        a_range_returns_exactly_its_bytes
        a_range_past_the_end_is_cut_short
        a_range_after_the_end_is_invalid
        a_range_of_an_empty_object_is_invalid
        get_if_match_the_current_etag_returns_the_bytes
        get_if_match_another_etag_is_stale
        attributes_come_back
        metadata_values_come_back_as_they_are
        odd_keys_are_kept
        a_key_beside_its_own_children_is_kept
        delete_removes
        delete_of_a_missing_key_succeeds
        delete_many_removes_a_thousand
        delete_many_takes_odd_keys
        delete_many_takes_keys_that_xml_cannot_hold
        delete_many_deletes_the_named_versions_alone
        right_checksums_are_accepted
        wrong_checksums_are_refused
        a_stored_checksum_is_told
        errors_carry_code_status_and_request_id;
    conditions:
        a_create_makes_a_new_key
        a_create_over_an_object_is_refused
        of_eight_racing_creators_one_wins
        a_replace_of_the_named_version_succeeds
        a_replace_of_another_version_is_stale
        a_replace_of_a_missing_key_is_refused
        of_eight_racing_replacers_one_wins
        a_completion_may_create
        a_completion_over_an_object_is_refused
        a_completion_over_the_named_version_succeeds
        a_completion_over_another_version_is_stale
        a_copy_of_the_named_version_succeeds
        a_copy_of_another_version_is_stale
        a_copy_may_create
        a_copy_over_an_object_is_refused
        a_copy_over_another_version_is_stale
        a_delete_of_the_named_version_succeeds
        a_delete_of_another_version_is_stale
        a_delete_may_not_ask_for_absence;
    listing:
        keys_come_in_byte_order
        entries_tell_size_etag_and_time
        a_delimiter_groups_what_lies_below
        a_prefix_narrows_inside_a_name
        a_prefix_that_holds_nothing_is_empty
        a_marker_is_an_object_and_a_prefix
        start_after_is_exclusive
        start_after_with_a_delimiter
        every_page_size_gives_the_same_keys
        every_page_size_gives_the_same_groups
        eleven_hundred_keys_take_two_pages
        a_listing_shows_the_newest_state;
    uploads:
        three_parts_become_one_object
        attributes_of_an_upload_come_back
        parts_count_by_number_not_by_arrival
        a_part_sent_again_replaces_the_first
        nothing_shows_before_completion
        list_parts_tells_what_arrived
        list_uploads_tells_the_unfinished
        an_aborted_upload_is_gone
        a_small_part_before_the_last_is_refused
        a_part_with_another_etag_is_refused
        a_part_with_a_wrong_checksum_is_refused
        a_part_that_is_read_while_it_is_sent_has_the_same_bytes
        a_part_that_cannot_be_read_fails_with_what_reading_it_failed_for
        a_range_of_an_object_becomes_a_part
        a_part_of_another_version_is_stale
        a_part_of_a_missing_object_is_not_found;
    copies:
        a_copy_keeps_bytes_and_attributes
        a_copy_replaces_attributes
        a_copy_to_itself_replaces_attributes
        a_copy_goes_across_buckets
        a_copy_takes_odd_keys
        a_copy_of_a_missing_key_is_not_found;
    beside:
        a_storage_class_comes_back
        an_upload_takes_its_class
        a_copy_takes_the_class_it_is_told
        encryption_comes_back
        a_copy_takes_the_encryption_it_is_told
        tags_are_counted
        a_copy_keeps_tags
        expiry_and_redirect_come_back
        what_one_key_encrypts_no_other_reads;
    versions:
        versioning_is_switched_on_and_off
        versions_are_listed_newest_first
        an_old_version_reads_by_its_id
        a_delete_leaves_a_marker_and_the_versions
        deleting_the_marker_brings_the_object_back
        deleting_a_version_removes_only_it
        an_old_version_is_copied_by_its_id
        every_page_size_gives_the_same_versions
        versions_are_grouped_by_a_delimiter
        a_create_over_a_marker_succeeds
        tags_come_back
        tags_of_a_put_come_back
        tags_of_a_missing_key_are_not_found;
    buckets:
        a_made_bucket_is_listed
        a_bucket_made_twice_exists_already
        a_bucket_with_objects_is_not_deleted
        a_deleted_bucket_is_gone
        a_missing_bucket_is_told_from_a_missing_key
        head_bucket_tells_the_region
        a_wrong_secret_is_told
        an_unknown_access_key_is_told;
}

#[test]
fn pins_name_behaviours_that_exist() {
    for (_, name, words) in pins::PINS {
        assert!(ALL.split(|c: char| c != '_' && !c.is_alphanumeric()).any(|word| word == *name), "{name}");
        assert!(!words.is_empty(), "{name}: a pin says what the server does instead");
    }
}
