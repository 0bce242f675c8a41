//! A manifest or index as an upstream sends it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::oci::{Algorithm, Digest, Manifest, Tag, fallback_tag};

fuzz_target!(|data: &[u8]| {
    fallback_tag(&Digest::of(Algorithm::Sha512, data)).parse::<Tag>().expect("a fallback tag is a tag");
    let Ok(manifest) = Manifest::parse(data) else { return };
    assert!(data.trim_ascii_start().starts_with(b"{"), "a manifest is a JSON object");
    // Taken apart wholly, which has bounds (of depth, of numbers) that the reading has not.
    let text = serde_json::from_slice::<serde_json::Value>(data).map(|document| document.to_string());
    for descriptor in manifest.manifests.iter().chain(&manifest.blobs).chain(&manifest.subject) {
        let digest = descriptor.digest.to_string();
        assert_eq!(digest.parse(), Ok(descriptor.digest));
        assert!(text.as_ref().map_or(true, |text| text.contains(&digest)), "{digest} is made up");
    }
    assert_eq!(manifest.media_type.as_deref().unwrap_or(manifest.stated_type()), manifest.stated_type());
});
