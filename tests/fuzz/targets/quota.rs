//! The rate-limit headers of an upstream.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tidelock::upstream::fuzzing::quota;
use tidelock_fuzz::{message, now};

const LONGEST: Duration = Duration::from_secs(31 * 24 * 3600);
const FARTHEST: u64 = 1_000_000_000;
const LARGEST: u64 = 999_999_999_999_999;

fuzz_target!(|data: &[u8]| {
    let Some(told) = quota(&message(data).0, now()) else { return };
    assert!(told.remaining.is_some() || told.limit.is_some());
    assert!(told.limit.is_none_or(|limit| (1..=LARGEST).contains(&limit)));
    assert!(told.window.is_none_or(|window| !window.is_zero() && window <= LONGEST));
    assert!(told.reset.is_none_or(|reset| reset <= LONGEST));
    let most = told.limit.unwrap_or(FARTHEST);
    assert!(told.remaining.is_none_or(|left| left.unsigned_abs() <= most));
});
