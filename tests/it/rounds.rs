//! What is fetched ahead again and again, without anybody asking for it.

use std::time::Duration;

use serde_json::Value;
use tidelock::config::{Bandwidth, Config, Warm};
use tidelock::lifecycle::time_of_day;

use crate::support::eventually::eventually;
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::{House, Process};
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;
use crate::support::time::{Frozen, rest};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

fn nightly(images: &[&str]) -> Warm {
    Warm {
        name: "nightly".to_owned(),
        images: images.iter().map(|image| image.parse().unwrap()).collect(),
        newest: None,
        platforms: Vec::new(),
        referrers: true,
        pin: false,
        every: DAY,
        hours: None,
        bandwidth: Bandwidth::default(),
    }
}

fn pinning(name: &str, images: &[&str]) -> Warm {
    Warm { name: name.to_owned(), pin: true, ..nightly(images) }
}

/// From so long after now until so long after it.
fn hours(from: Duration, until: Duration) -> String {
    let minute = |time: Duration| (time.as_secs() / 60) % (24 * 60);
    let text = |minute: u64| format!("{:02}:{:02}", minute / 60, minute % 60);
    format!("{}-{}", text(minute(time_of_day() + from)), text(minute(time_of_day() + until)))
}

async fn report(house: &House) -> Value {
    house.admin().get("/api/v1/warm").await.json()["warm"][0].clone()
}

/// Waits until a round has ended that began after `before`. The clock stands still.
async fn ended(house: &House, fake: &FakeRegistry, before: u64) -> Value {
    for _ in 0..5_000 {
        rest(|| fake.total()).await;
        let last = report(house).await["last"].clone();
        if last["begun"].as_u64().is_some_and(|begun| begun > before) {
            return last;
        }
    }
    panic!("no round ends: {}", report(house).await);
}

async fn is_pinned(house: &House, image: &str) -> bool {
    house.admin().get(&format!("/api/v1/image?image={image}")).await.json()["pinned"].as_bool().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_wished_for_is_here_before_anybody_asks() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    let images: Vec<Image> = (0..4).map(|seed| Image::layers(seed, &[500, 600])).collect();
    for (tag, image) in ["v1.9", "v1.10", "old"].iter().zip(&images) {
        fake.push("library/app", tag, image);
    }
    let wish = |config: &mut Config| {
        config.warm = vec![Warm { newest: Some(2), pin: true, ..nightly(&["app:v*", "app:old"]) }];
        config.upstreams[0].freshness.tag_ttl = HOUR;
    };
    let house = House::with(&fake, wish).await;
    let first = ended(&house, &fake, 0).await;
    assert_eq!((&first["images"], &first["failed"]), (&3.into(), &Value::Array(vec![])), "{first}");
    assert_eq!(first["changed"].as_array().unwrap().len(), 3);
    assert!(is_pinned(&house, "app:v1.9").await && is_pinned(&house, "app:v1.10").await);
    assert_eq!(house.metric("tidelock_warm_rounds_total{outcome=\"complete\",warm=\"nightly\"}").await, 1.0);

    // A restart does not begin anew, and all of it is served without asking.
    fake.clear();
    let house = house.restart(wish).await;
    rest(|| fake.total()).await;
    for (tag, image) in ["v1.9", "v1.10", "old"].iter().zip(&images) {
        assert!(house.client().pull("library/app", tag).await.unwrap().is(image));
    }
    assert_eq!(fake.total(), 0, "{:?}", fake.requests());

    // The next round finds one that is new, one that has moved and one that is no more among the newest.
    fake.push("library/app", "v1.11", &images[3]);
    fake.push("library/app", "old", &images[3]);
    clock.advance(DAY + MINUTE).await;
    let begun = first["begun"].as_u64().unwrap();
    let second = ended(&house, &fake, begun).await;
    let changed: Vec<&str> =
        second["changed"].as_array().unwrap().iter().map(|row| row["image"].as_str().unwrap()).collect();
    assert_eq!(changed, ["docker.io/library/app:v1.11", "docker.io/library/app:old"]);
    let blobs = fake.log().matching(|record| record.method == "GET" && record.path.contains("/blobs/"));
    assert_eq!(blobs.len(), images[3].blobs.len(), "only what is not here, and once");
    assert!(is_pinned(&house, "app:v1.11").await && !is_pinned(&house, "app:v1.9").await);

    let told = house.command(&["warm"]).await;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.starts_with("nightly: 3 images are here") && told.contains("app:v1.11 is sha256:"),
        "{told}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_pinned_is_let_go_also_after_a_round_that_failed() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    let images: Vec<Image> = (0..3).map(|seed| Image::layers(seed, &[500])).collect();
    ["v1", "v2", "own"].iter().zip(&images).for_each(|(tag, image)| fake.push("library/app", tag, image));
    let house = House::with(&fake, |config| {
        config.warm = vec![Warm { newest: Some(1), pin: true, ..nightly(&["app:v*", "app:own"]) }];
    });
    let house = house.await;
    let first = ended(&house, &fake, 0).await;
    assert!(is_pinned(&house, "app:v2").await && is_pinned(&house, "app:own").await);

    fake.push("library/app", "v3", &images[0]);
    fake.remove_tag("library/app", "own");
    clock.advance(DAY + MINUTE).await;
    let second = ended(&house, &fake, first["begun"].as_u64().unwrap()).await;
    assert_eq!(second["failed"].as_array().unwrap().len(), 1, "{second}");
    assert!(is_pinned(&house, "app:v2").await, "nothing is let go for a round that is not complete");

    fake.push("library/app", "own", &images[2]);
    clock.advance(16 * MINUTE).await;
    ended(&house, &fake, second["begun"].as_u64().unwrap()).await;
    assert!(is_pinned(&house, "app:v3").await && is_pinned(&house, "app:own").await);
    assert!(!is_pinned(&house, "app:v2").await);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_had_is_told_and_tried_again() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    let images: Vec<Image> = (0..2).map(|seed| Image::layers(seed, &[500])).collect();
    fake.push("library/app", "v1", &images[0]);
    let house = House::with(&fake, |config| config.warm = vec![nightly(&["app:gone", "app:v1"])]).await;
    let first = ended(&house, &fake, 0).await;
    assert_eq!(first["images"], 1, "the others are fetched all the same: {first}");
    assert!(first["failed"][0]["image"].as_str().unwrap().ends_with("app:gone"), "{first}");
    fake.push("library/app", "gone", &images[1]);
    clock.advance(16 * MINUTE).await;
    let second = ended(&house, &fake, first["begun"].as_u64().unwrap()).await;
    assert_eq!((&second["images"], &second["failed"]), (&2.into(), &Value::Array(vec![])), "{second}");
}

/// Two hours from now for one hour, and slow: a blob takes more than one night.
#[tokio::test(start_paused = true)]
async fn only_at_its_hours_and_on_where_it_was() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[5_000_000]);
    fake.push("library/app", "v1", &image);
    let layer = image.layer_blobs()[0].clone();
    let hours = hours(2 * HOUR, 3 * HOUR);
    let slow = Bandwidth(vec!["1KB".parse().unwrap()]);
    let warm = Warm { hours: Some(hours.parse().unwrap()), bandwidth: slow, ..nightly(&["app:v1"]) };
    let house = House::with(&fake, |config| {
        config.warm = vec![warm];
        // The clock is moved by minutes: what is on its way through the kernel meanwhile is not late.
        let upstream = &mut config.upstreams[0];
        (upstream.connect_timeout, upstream.response_timeout, upstream.idle_timeout) = (HOUR, HOUR, HOUR);
    });
    let house = house.await;

    let go_on = async |by: Duration| {
        let end = clock.elapsed() + by;
        while clock.elapsed() < end {
            clock.advance(MINUTE).await;
            rest(|| fake.requests().iter().map(|request| request.sent).sum::<u64>()).await;
        }
    };
    let gets =
        || fake.log().matching(|record| record.method == "GET" && record.path.ends_with(&layer.digest));
    go_on(HOUR + 50 * MINUTE).await;
    assert_eq!(fake.total(), 0, "its hours have not come");
    // The clock stands until it is under way: a slow disk is not to cost it half of the night.
    let is_asked_for = async || {
        for _ in 0..5_000 {
            rest(|| fake.total()).await;
            if !gets().is_empty() {
                return;
            }
        }
        panic!("it is not asked for");
    };
    go_on(11 * MINUTE).await;
    is_asked_for().await;
    go_on(29 * MINUTE).await;
    assert_eq!(gets().len(), 1);
    go_on(50 * MINUTE).await;
    let kept = house.partials();
    assert!(kept.len() == 1 && kept[0].1 > 1_000_000, "{kept:?}");
    assert!(house.blobs().iter().all(|(name, _)| !layer.digest.ends_with(name)), "it is not whole yet");
    let waits = report(&house).await["waits"].clone();
    assert!(waits.as_str().unwrap().contains(&hours), "{waits}");
    fake.clear();
    go_on(4 * HOUR).await;
    assert_eq!(fake.total(), 0, "nobody is asked by day");

    // The next night it goes on.
    go_on(18 * HOUR + 41 * MINUTE).await;
    is_asked_for().await;
    go_on(49 * MINUTE).await;
    let last = ended(&house, &fake, 0).await;
    assert_eq!((&last["images"], &last["failed"]), (&1.into(), &Value::Array(vec![])), "{last}");
    let ranges: Vec<String> = gets().iter().map(|get| get.header("range").to_owned()).collect();
    assert!(ranges.len() == 1 && ranges[0].starts_with("bytes="), "{ranges:?}");
    fake.clear();
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(gets().len(), 0, "all of it is here");
}

/// Waits until the one called `other` has had such a round. The clock stands still.
async fn the_other_has_ended(house: &House, fake: &FakeRegistry, outcome: &str) {
    let series = format!("tidelock_warm_rounds_total{{outcome=\"{outcome}\",warm=\"other\"}}");
    while house.metric(&series).await == 0.0 {
        rest(|| fake.total()).await;
    }
}

/// Looks until it is as it should be. The clock stands still.
async fn becomes_pinned(house: &House, fake: &FakeRegistry, image: &str, pinned: bool) {
    for _ in 0..5_000 {
        if is_pinned(house, image).await == pinned {
            return;
        }
        rest(|| fake.total()).await;
    }
    panic!("{image} is not {}", if pinned { "pinned" } else { "let go" });
}

#[tokio::test(start_paused = true)]
async fn what_another_wishes_for_stays_and_what_nobody_does_any_more_is_let_go() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    for (tag, seed) in [("v1", 1), ("v2", 2), ("own", 3)] {
        fake.push("library/app", tag, &Image::layers(seed, &[500]));
    }
    let house = House::with(&fake, |config| {
        config.warm = vec![pinning("nightly", &["app:v1", "app:v2"]), pinning("other", &["app:v1"])];
    });
    let house = house.await;
    let first = ended(&house, &fake, 0).await;
    the_other_has_ended(&house, &fake, "complete").await;
    // By hand, and so nobody else's.
    assert_eq!(house.command(&["refresh", "app:own"]).await.status.code(), Some(0));
    assert_eq!(house.command(&["pin", "app:own"]).await.status.code(), Some(0));

    // What is wished for now is not kept waiting for the next day.
    clock.advance(MINUTE).await;
    let house = house.restart(|config| config.warm[0].images.truncate(1)).await;
    let second = ended(&house, &fake, first["begun"].as_u64().unwrap()).await;
    assert_eq!(second["failed"], Value::Array(vec![]), "{second}");
    becomes_pinned(&house, &fake, "app:v2", false).await;

    // It goes by another name, and what both wished for is wished for by one, which has trouble at first.
    let down = fake.fault(Match::manifests().any_method(), Times::Always, Fault::status(503));
    let house = house.restart(|config| config.warm = vec![pinning("renamed", &["app:v1"])]).await;
    let failed = ended(&house, &fake, 0).await;
    assert_eq!(failed["failed"].as_array().unwrap().len(), 1, "{failed}");
    rest(|| fake.total()).await;
    assert!(is_pinned(&house, "app:v1").await);
    down.lift();
    clock.advance(16 * MINUTE).await;
    ended(&house, &fake, failed["begun"].as_u64().unwrap()).await;
    rest(|| fake.total()).await;
    assert!(is_pinned(&house, "app:v1").await);

    let house = house.restart(|config| config.warm.clear()).await;
    becomes_pinned(&house, &fake, "app:v1", false).await;
    assert!(is_pinned(&house, "app:own").await);
}

/// An image goes from one [[warm]] to another: however that one is delayed, it is pinned all the while.
#[tokio::test(start_paused = true)]
async fn what_changes_hands_is_not_let_go_in_between() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    for (tag, seed) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        fake.push("library/app", tag, &Image::layers(seed, &[500]));
    }
    // It is signed, as cosign does.
    let signed = Image::layers(2, &[500]);
    let signature = format!("{}.sig", signed.digest().replace(':', "-"));
    fake.push("library/app", &signature, &Image::artifact(&signed.top, "application/x.signature"));
    let signature = format!("app:{signature}");
    let house = House::with(&fake, |config| {
        config.warm = vec![pinning("nightly", &["app:v1", "app:v2"]), pinning("other", &["app:v3"])];
    });
    let house = house.await;
    let first = ended(&house, &fake, 0).await;
    the_other_has_ended(&house, &fake, "complete").await;
    clock.advance(MINUTE).await;
    // The other one may not begin yet.
    let hours = hours(2 * HOUR, 4 * HOUR).parse().unwrap();
    let house = house.restart(|config| {
        config.warm = vec![pinning("nightly", &["app:v1"]), pinning("other", &["app:v3", "app:v2"])];
        config.warm[1].hours = Some(hours);
    });
    let house = house.await;
    ended(&house, &fake, first["begun"].as_u64().unwrap()).await;
    rest(|| fake.total()).await;
    assert!(is_pinned(&house, "app:v2").await, "the other one wishes for it");
    assert!(is_pinned(&house, &signature).await, "and for what refers to it");

    // And when the one of which nothing is left goes altogether.
    let house = house.restart(|config| drop(config.warm.remove(0))).await;
    rest(|| fake.total()).await;
    assert!(is_pinned(&house, "app:v2").await);
    assert!(is_pinned(&house, "app:v1").await, "until all that is wished for is here");
    clock.advance(3 * HOUR).await;
    becomes_pinned(&house, &fake, "app:v1", false).await;
    assert!(is_pinned(&house, "app:v2").await);
    let house = house.restart(|config| config.warm.clear()).await;
    becomes_pinned(&house, &fake, "app:v2", false).await;
    becomes_pinned(&house, &fake, &signature, false).await;
}

/// One that never has all that it wishes for keeps nothing but that from being let go.
#[tokio::test(start_paused = true)]
async fn one_that_fails_for_good_holds_up_no_other() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    for (tag, seed) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        fake.push("library/app", tag, &Image::layers(seed, &[500]));
    }
    let house = House::with(&fake, |config| {
        config.warm =
            vec![pinning("nightly", &["app:v1", "app:v2"]), pinning("other", &["app:v3", "app:gone"])];
    });
    let house = house.await;
    ended(&house, &fake, 0).await;
    the_other_has_ended(&house, &fake, "incomplete").await;
    clock.advance(MINUTE).await;
    let house = house.restart(|config| config.warm[0].images.truncate(1)).await;
    becomes_pinned(&house, &fake, "app:v2", false).await;
    assert!(is_pinned(&house, "app:v1").await && is_pinned(&house, "app:v3").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_killed_all_is_pinned_in_the_end_and_all_let_go() {
    let fake = FakeRegistry::start().await;
    let tags: Vec<String> = (0..12).map(|number| format!("v{number}")).collect();
    for (tag, seed) in tags.iter().zip(0..) {
        fake.push("library/app", tag, &Image::layers(seed, &[20_000, 500]));
    }
    let wish = |config: &mut Config| config.warm = vec![Warm { pin: true, ..nightly(&["app:v*"]) }];
    let mut house = House::with(&fake, |_| {}).await;
    for blobs in [1, 9, 18, 31, 40] {
        let left = house.left();
        house.stop().await;
        let process = Process::new();
        house = process.house(left.open(wish)).await;
        eventually(|| async { house.blobs().len() >= blobs }).await;
        let left = house.left();
        process.kill().await;
        house = left.open(|config| config.warm.clear()).await;
    }
    let complete = "tidelock_warm_rounds_total{outcome=\"complete\",warm=\"nightly\"}";
    let house = house.restart(wish).await;
    eventually(|| async { house.metric(complete).await == 1.0 }).await;
    for tag in &tags {
        assert!(is_pinned(&house, &format!("app:{tag}")).await, "{tag}");
    }
    let house = house.restart(|config| config.warm.clear()).await;
    for tag in &tags {
        eventually(|| async { !is_pinned(&house, &format!("app:{tag}")).await }).await;
    }
}

#[tokio::test]
async fn what_is_not_routed_any_more_is_let_go_too() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(1, &[500]));
    let warm = Warm { pin: true, ..nightly(&["app:v1"]) };
    let house = House::with(&fake, |config| config.warm = vec![warm]).await;
    let pinned = "tidelock_cache_pinned_bytes";
    eventually(|| async { house.metric(pinned).await > 0.0 }).await;
    let house = house.restart(|config| {
        config.warm.clear();
        config.upstreams[0].registry = "ghcr.io".parse().unwrap();
    });
    let house = house.await;
    eventually(|| async { house.metric(pinned).await == 0.0 }).await;
}
