//! Where servers are known to differ from S3: what each does instead, in the words of the deviation.

use crate::harness::Server::{self, *};

pub const PINS: &[(Server, &str, &str)] = &[
    (Mem, "errors_carry_code_status_and_request_id", "no request id"),
    (Mem, "a_wrong_secret_is_told", "it takes no keys"),
    (Mem, "an_unknown_access_key_is_told", "it takes no keys"),
];

/// What `server` does instead of `behaviour`, where that is known.
pub fn pinned(server: Server, behaviour: &str) -> Option<&'static str> {
    PINS.iter().find(|(at, name, _)| *at == server && *name == behaviour).map(|(_, _, words)| *words)
}
