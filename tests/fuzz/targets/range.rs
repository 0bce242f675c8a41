//! `Range` of a client and `Content-Range` of an upstream. The first line is the length of the blob.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::oci::{ByteRange, Ranges, Selection};
use tidelock_fuzz::text;

fuzz_target!(|data: &[u8]| {
    let Some((length, header)) = text(data).and_then(|text| text.split_once('\n')) else { return };
    let Ok(length) = length.parse::<u64>() else { return };
    if let Some(ranges) = Ranges::parse(header) {
        check(&ranges.select(length), length);
    }
    if let Some((range, total)) = ByteRange::parse_content_range(header) {
        assert!(range.start < range.end);
        if let Some(total) = total {
            let printed = range.content_range(total);
            assert_eq!(ByteRange::parse_content_range(&printed), Some((range, Some(total))));
        }
    }
});

fn check(selection: &Selection, length: u64) {
    let Selection::Parts(parts) = selection else { return };
    assert!(!parts.is_empty() && parts.len() <= Ranges::MOST_PARTS);
    let mut sum = 0u64;
    for part in parts {
        assert!(part.start < part.end && part.end <= length, "{part:?} of {length}");
        assert_eq!(ByteRange::parse_content_range(&part.content_range(length)), Some((*part, Some(length))));
        sum = sum.saturating_add(part.len());
    }
    assert!(sum <= length.saturating_mul(2), "a small request draws {sum} bytes of {length}");
}
