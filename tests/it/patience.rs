//! Answers within a client's patience, whatever the upstream does.

use std::time::Duration;

use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

#[tokio::test]
async fn an_upstream_that_hangs_does_not_hold_up_what_is_cached() {
    let fake = FakeRegistry::start().await;
    let (old, new) = (Image::layers(1, &[10]), Image::layers(2, &[10]));
    fake.push("library/app", "v1", &old);
    let house = House::with(&fake, |config| {
        config.upstreams[0].response_timeout = Duration::from_secs(600);
        config.upstreams[0].freshness.stale_if_error = Duration::from_secs(3600);
    })
    .await;
    house.client().pull("library/app", "v1").await.unwrap();
    fake.push("library/app", "v1", &new);
    let gate = Gate::new();
    fake.fault(Match::manifests().method("HEAD"), Times::Once, Fault::hold_head(&gate));
    let answer = house.client().get("/v2/library/app/manifests/v1").await;
    assert_eq!(answer.header("docker-content-digest"), old.digest());
    assert!(answer.header("warning").starts_with("299 - "));
    assert_eq!(gate.held(), 1, "the check goes on");
    gate.open();
    let answer = house.client().get("/v2/library/app/manifests/v1").await;
    assert_eq!(answer.header("docker-content-digest"), new.digest());
}
