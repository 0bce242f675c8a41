//! `Location` after `Location`, a line for each hop, and who may have the credentials of the endpoint.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidelock::oci::RegistryHost;
use tidelock::upstream::fuzzing::{may_have_credentials, redirects};
use tidelock::upstream::host_of;
use tidelock_fuzz::text;
use url::Url;

static ENDPOINT: LazyLock<Url> =
    LazyLock::new(|| "https://registry.example.com/v2/a/blobs/x".parse().expect("a URL"));
static LISTED: LazyLock<[RegistryHost; 1]> = LazyLock::new(|| ["login.other".parse().expect("a host")]);

fuzz_target!(|data: &[u8]| {
    let Some(text) = text(data) else { return };
    let locations: Vec<&str> = text.split('\n').collect();
    let trail = redirects(&ENDPOINT, &locations);
    assert!(trail.len() <= 10);
    let mut strayed = false;
    for (url, at_home) in &trail {
        assert_eq!(url.scheme(), "https");
        assert!(url.username().is_empty() && url.password().is_none() && url.host().is_some());
        strayed |= url.origin() != ENDPOINT.origin();
        assert_eq!(*at_home, !strayed, "the login goes to {url}");
        check_trust(url);
        assert!(!host_of(url).contains(['/', '?', '@']));
    }
    // The realm of a token service is a URL of its own.
    locations.iter().filter_map(|location| location.parse().ok()).for_each(|realm| check_trust(&realm));
});

fn check_trust(realm: &Url) {
    let host = realm.host_str().unwrap_or_default().trim_end_matches('.');
    let own = host == "example.com" || host.ends_with(".example.com");
    let trusted = may_have_credentials(&ENDPOINT, realm, &*LISTED);
    assert!(!trusted || own || host == "login.other", "{realm} is given the credentials");
    assert!(!trusted || !may_have_credentials(&"https://10.0.0.1".parse().expect("a URL"), realm, &[]));
}
