//! The head and body of an upstream's answer: a refusal with its pause, what a HEAD tells, which part of a blob
//! came. The first line is how much of the blob is there already.
#![no_main]

use std::time::Duration;

use http::StatusCode;
use libfuzzer_sys::fuzz_target;
use tidelock::upstream::Error;
use tidelock::upstream::fuzzing::{found, placed, throttled};
use tidelock_fuzz::{message, now, text};

const LONGEST: Duration = Duration::from_secs(24 * 3600);

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let Some(from) = text(&data[..end]).and_then(|from| from.parse::<u64>().ok()) else { return };
    let (headers, body) = message(&data[end + 1..]);
    let Error::Throttled { retry_after, .. } = throttled(&headers, body, now()) else {
        panic!("a 429 throttles");
    };
    assert!(retry_after.is_none_or(|pause| pause <= LONGEST));
    if let Some(digest) = found(&headers).digest {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
    for (status, expected) in [
        (StatusCode::OK, None),
        (StatusCode::PARTIAL_CONTENT, None),
        (StatusCode::PARTIAL_CONTENT, Some(70_000)),
    ] {
        let Some((skip, total)) = placed(status, &headers, from, expected) else { continue };
        assert!(skip <= from, "what comes begins behind what was asked for");
        assert!(total.is_none_or(|total| total >= from));
        assert!(expected.is_none() || total == expected);
    }
});
