//! The note in which the scheduler keeps what it knows of budgets.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidelock::config::Config;
use tidelock::lifecycle::Lifecycle;
use tidelock::scheduler::Scheduler;
use tidelock::telemetry::Metrics;

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let account = "[[upstream]]\nregistry = \"docker.io\"\n[[upstream.account]]\nname = \"ci\"\nusername = \"ci\"\n\
                   password_env = \"CI\"\n";
    Config::from_toml("fuzz.toml", account).expect("an upstream with an account")
});

fuzz_target!(|data: &[u8]| {
    let metrics = Metrics::default();
    let scheduler = Scheduler::new(&CONFIG, None, &Lifecycle::default(), &metrics);
    let kept = scheduler.renote(data);
    // A second start reads what the first one would have written.
    let again = Scheduler::new(&CONFIG, None, &Lifecycle::default(), &Metrics::default()).renote(&kept);
    let count = |note: &[u8]| {
        let note: serde_json::Value = serde_json::from_slice(note).expect("a note is JSON");
        note["ledgers"].as_array().map(Vec::len)
    };
    assert!(count(&again) <= count(&kept));
    scheduler.outlook();
    metrics.render();
});
