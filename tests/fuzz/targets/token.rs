//! The reply of a token service.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tidelock::upstream::fuzzing::token;
use tidelock_fuzz::now;

fuzz_target!(|data: &[u8]| {
    let Some((token, life, renewed)) = token(data, now()) else { return };
    assert!(!token.is_empty());
    http::HeaderValue::from_str(&format!("Bearer {token}")).expect("a token can stand in a header");
    assert!(renewed <= life && life <= Duration::from_secs(24 * 3600));
});
