//! `WWW-Authenticate` of an upstream, a line for each header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::upstream::fuzzing::challenge;
use tidelock_fuzz::text;

fuzz_target!(|data: &[u8]| {
    let Some(text) = text(data) else { return };
    let headers: Vec<&str> = text.split('\n').collect();
    let Some(Some((realm, service, scope))) = challenge(&headers) else { return };
    assert!(!realm.is_empty() && service.as_deref() != Some("") && scope.as_deref() != Some(""));
    // Nothing is made up: without quotes and backslashes each value stands in some header.
    let plain = |text: &str| text.replace(['\\', '"'], "");
    for value in [Some(&realm), service.as_ref(), scope.as_ref()].into_iter().flatten() {
        assert!(headers.iter().any(|header| plain(header).contains(&plain(value))), "{value}");
    }
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let parameters = [("service", &service), ("scope", &scope)];
    let parameters = parameters.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let mut header = format!("Bearer realm=\"{}\"", quoted(&realm));
    header.extend(parameters.map(|(name, value)| format!(",{name}=\"{}\"", quoted(value))));
    assert_eq!(challenge(&[&header]), Some(Some((realm, service, scope))), "{header}");
});
