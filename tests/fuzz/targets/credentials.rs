//! Docker's `config.json`, and what a credential helper writes. The first line is the registry.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::upstream::fuzzing::{docker_config, helper};
use tidelock_fuzz::text;

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (Some(registry), document) = (text(&data[..end]), &data[end..]) else { return };
    if let Some(Some(program)) = docker_config(document, registry) {
        let name = program.strip_prefix("docker-credential-").expect("it is a helper");
        assert!(!name.contains('/'), "{program} is a file somewhere else");
    }
    if let Some(header) = text(document).and_then(helper) {
        assert!(header.is_sensitive() && header.as_bytes().starts_with(b"Basic "));
    }
});
