//! The operator's file: it loads, or every fault is told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::config::Config;
use tidelock::routing::Router;
use tidelock_fuzz::text;

fuzz_target!(|data: &[u8]| {
    let Some(text) = text(data) else { return };
    match Config::from_toml("fuzz.toml", text) {
        Ok(config) => check(&config),
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
});

/// What holds can be printed and loaded again. Passwords are not printed, so a proxy may be missing one.
fn check(config: &Config) {
    let printed = config.to_toml();
    match Config::from_toml("printed.toml", &printed) {
        Ok(again) => assert!(again == *config || printed.contains("***"), "{printed}"),
        Err(faults) => assert!(printed.contains("***"), "{faults}\n{printed}"),
    }
    Router::new(config);
    for upstream in &config.upstreams {
        assert!(
            upstream
                .endpoints
                .iter()
                .all(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
        );
        for glob in upstream.allow.iter().chain(&upstream.deny) {
            glob.matches("library/nginx");
        }
    }
}
