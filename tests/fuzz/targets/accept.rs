//! `Accept` of a client, a line for each header, against the media type in the first line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::oci::{Accept, is_index, is_manifest};
use tidelock_fuzz::text;

fuzz_target!(|data: &[u8]| {
    let Some(text) = text(data) else { return };
    let mut lines = text.split('\n');
    let media_type = lines.next().unwrap_or_default();
    let lines: Vec<&str> = lines.collect();
    let accept = Accept::parse(lines.iter().copied());
    assert_eq!(Accept::parse([lines.join(",").as_str()]), accept, "one line with commas says the same");
    if !media_type.contains([',', ';', '*']) && !media_type.trim().is_empty() {
        assert!(Accept::parse(lines.iter().copied().chain([media_type])).allows(media_type));
    }
    assert!(Accept::parse([text, "*/*"]).allows(media_type));
    assert!(!is_index(media_type) || is_manifest(media_type));
});
