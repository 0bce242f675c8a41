//! Lists of tags and of referrers as an upstream sends them. The first line is the artifact type asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::oci::{Referrers, TagList};
use tidelock_fuzz::text;

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (kind, document) = data.split_at(end);
    if let Ok(list) = TagList::parse(document) {
        let printed = serde_json::to_vec(&list).expect("texts are JSON");
        assert_eq!(TagList::parse(&printed).expect("what is printed can be read"), list);
    }
    let Ok(mut referrers) = Referrers::parse(document) else { return };
    let (count, printed) = (referrers.len(), referrers.to_json());
    let again = Referrers::parse(printed.as_bytes()).expect("what is printed can be read");
    assert_eq!((again.len(), again.to_json()), (count, printed));
    let Some(kind) = text(kind) else { return };
    referrers.filter(kind);
    assert!(referrers.len() <= count);
    // Taken apart wholly, which has bounds (of depth, of numbers) that passing on has not.
    let Ok(filtered) = serde_json::from_str::<serde_json::Value>(&referrers.to_json()) else { return };
    for descriptor in filtered["manifests"].as_array().expect("a list") {
        assert_eq!(descriptor["artifactType"], kind);
    }
});
