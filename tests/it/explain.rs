//! `tidelock explain` and the operator's API: what would come of a pull, without asking anybody.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::behaviour::RateLimit;
use crate::support::eventually::eventually;
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

const HOUR: Duration = Duration::from_secs(3600);
const IMAGE: &str = "docker.io/library/app:v1";

/// A Hub with so many pulls left, one multi-platform image, and a house that believes tags for an hour.
async fn scene(remaining: i64) -> (FakeRegistry, Image, House) {
    let fake = FakeRegistry::start().await;
    let image = Image::multi_platform(1, &[100, 200]);
    fake.push("library/app", "v1", &image);
    fake.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(remaining)));
    let house = House::with(&fake, |config| {
        config.upstreams[0].freshness.tag_ttl = HOUR;
        config.schedule.max_wait = Duration::from_millis(200);
    })
    .await;
    (fake, image, house)
}

async fn explained(house: &House, image: &str) -> Value {
    house.admin().get(&format!("/api/v1/explain?image={image}")).await.json()
}

/// The program itself, against a running house.
#[tokio::test]
async fn before_and_after_a_pull() {
    let (fake, image, house) = scene(100).await;
    let before = explained(&house, IMAGE).await;
    assert_eq!((&before["prospect"], &before["tag"]), (&"miss".into(), &Value::Null));
    assert_eq!(before["payer"]["account"], "anonymous");
    assert_eq!(fake.total(), 0, "nobody was asked");

    house.client().one_platform().pull("library/app", "v1").await.unwrap();
    house.settled().await;
    let asked = fake.total();
    let after = explained(&house, "app:v1").await;
    assert_eq!((&after["image"], &after["prospect"]), (&IMAGE.into(), &"hit".into()));
    assert_eq!(
        (&after["tag"]["digest"], &after["tag"]["verdict"]),
        (&image.digest().into(), &"serve".into())
    );
    let content = &after["content"];
    assert_eq!((&content["manifests_cached"], &content["manifests"]), (&1.into(), &2.into()));
    assert_eq!((&content["blobs_cached"], &content["blobs"]), (&3.into(), &3.into()));
    let account = &after["budget"]["accounts"][0];
    assert_eq!((&account["standing"], &account["remaining"]), (&"limited".into(), &98.into()));
    assert_eq!(after["payer"]["metered"], true);
    assert_eq!(fake.total(), asked, "nobody was asked");
}

#[tokio::test]
async fn a_spent_budget_and_a_failed_check() {
    let (fake, _, house) = scene(2).await;
    house.client().one_platform().pull("library/app", "v1").await.unwrap();
    let other = explained(&house, "other").await;
    assert_eq!(other["prospect"], "held");
    let refused = other["refused"].as_str().unwrap();
    assert!(refused.contains("no pulls are left at docker.io") && refused.contains("anonymous"), "{refused}");

    let house = house
        .restart(|config| {
            config.upstreams[0].freshness.tag_ttl = Duration::from_millis(1);
            config.upstreams[0].freshness.stale_if_error = HOUR;
        })
        .await;
    fake.fault(Match::manifests(), Times::Always, Fault::status(500));
    assert_eq!(house.client().get("/v2/library/app/manifests/v1").await.status, 200);
    let checked = explained(&house, IMAGE).await;
    assert_eq!(checked["tag"]["verdict"], "check");
    assert_eq!(checked["budget"]["accounts"][0]["remaining"], 0, "it survived the restart");
}

#[tokio::test]
async fn what_cannot_be_explained() {
    let (_fake, _, house) = scene(100).await;
    for (query, status, code) in [
        ("", 400, "image_missing"),
        ("?image=", 400, "image_invalid"),
        ("?image=UPPER", 400, "image_invalid"),
        ("?image=ghcr.io/a/b", 404, "no_upstream"),
    ] {
        let answer = house.admin().get(&format!("/api/v1/explain{query}")).await;
        assert_eq!(answer.status, status, "{query}");
        assert_eq!(answer.json()["error"]["code"], code, "{query}");
    }
}

#[tokio::test]
async fn the_command_says_it_in_words() {
    let (fake, image, house) = scene(100).await;
    house.client().one_platform().pull("library/app", "v1").await.unwrap();
    house.settled().await;
    let asked = fake.total();
    let output = house.command(&["explain", "app:v1"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for said in [
        IMAGE,
        image.digest(),
        "fresh, served unasked",
        "platforms 1 of 2 cached",
        "blobs     3 of 3 cached",
        "98 of 100 pulls left in 6h",
        "without asking anybody",
    ] {
        assert!(text.contains(said), "`{said}` in\n{text}");
    }
    let json = house.command(&["explain", "app:v1", "--json"]).await;
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["prospect"], "hit");
    assert_eq!(fake.total(), asked);

    let unknown = house.command(&["explain", "ghcr.io/a/b"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no upstream for ghcr.io"));
}

#[test]
fn without_a_mirror_it_says_where_it_looked() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_tidelock")).env_clear().args(arguments).output().unwrap()
    };
    let nobody = run(&["explain", "nginx", "--admin", "127.0.0.1:1"]);
    assert_eq!(nobody.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(complaint.contains("http://127.0.0.1:1") && complaint.contains("is it running?"), "{complaint}");
    let wrong = run(&["explain", "nginx", "--admin", "https://x"]);
    assert_eq!(wrong.status.code(), Some(2));
}

/// What dashboards and scripts build on: who pulls, what burns, when it ends.
#[tokio::test]
async fn budgets_tell_who_spends_and_until_when() {
    let (_fake, _, house) = scene(100).await;
    house.client().one_platform().pull("library/app", "v1").await.unwrap();
    let budgets = house.admin().get("/api/v1/budgets").await.json();
    let hub = &budgets["upstreams"][0];
    assert_eq!(hub["registry"], "docker.io");
    assert_eq!(hub["top_repositories"][0], serde_json::json!({"name": "library/app", "pulls": 2}));
    assert_eq!(hub["top_clients"][0], serde_json::json!({"name": "127.0.0.1", "pulls": 2}));
    let account = &hub["accounts"][0];
    assert_eq!((&account["limit"], &account["window_seconds"]), (&100.into(), &21_600.into()));
    // Two in the five minutes that have just begun: 24 an hour, so 98 are gone in about four hours.
    assert_eq!(account["burn_per_hour"], 24.0);
    let left = account["exhaustion_seconds"].as_u64().unwrap();
    assert!((14_000..15_000).contains(&left), "{left}");
    eventually(|| async {
        let metric = house
            .metric("tidelock_ratelimit_exhaustion_seconds{account=\"anonymous\",upstream=\"docker.io\"}");
        (14_000.0..15_000.0).contains(&metric.await)
    })
    .await;
    for (name, value) in [("limit", 100.0), ("remaining", 98.0), ("window_seconds", 21_600.0)] {
        let series = format!("tidelock_ratelimit_{name}{{account=\"anonymous\",upstream=\"docker.io\"}}");
        assert_eq!(house.metric(&series).await, value, "{name}");
    }
}
