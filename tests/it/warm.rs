//! Images that are fetched ahead, whole, and served when nobody can be asked any more.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tidelock::app::Ended;

use crate::support::behaviour::RateLimit;
use crate::support::eventually::eventually;
use crate::support::faults::{Fault, Gate, Match, Times};
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::log::Record;
use crate::support::registry::FakeRegistry;
use crate::support::time::{Frozen, rest};

const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// What `/api/v1/warm` says last.
async fn warm(house: &House, query: &str) -> Value {
    let answer = house.admin().request(Method::POST, &format!("/api/v1/warm?{query}"), &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_str(answer.text().lines().last().unwrap()).unwrap()
}

fn push(fake: &FakeRegistry, artifact: &Image) {
    artifact.blobs.iter().for_each(|blob| fake.put_blob("library/app", blob));
    fake.put_manifest("library/app", &artifact.top);
}

/// Requests for manifests and blobs.
fn content_fetched(fake: &FakeRegistry) -> Vec<Record> {
    fake.log().matching(|record| record.method == "GET" && !record.path.contains("/referrers/"))
}

#[tokio::test]
async fn all_of_it_is_there_when_nobody_can_be_asked() {
    let fake = FakeRegistry::start().await;
    let image = Image::multi_platform(1, &[1000, 70_000, 0]);
    fake.push("library/app", "v1", &image);
    let child = &image.manifests[0];
    let (signature, nested) = (Image::artifact(&image.top, SIGNATURE), Image::artifact(child, "text/sbom"));
    let of_signature = Image::artifact(&signature.top, "text/more");
    [&signature, &nested, &of_signature].into_iter().for_each(|artifact| push(&fake, artifact));
    // As cosign has it.
    let cosign = Image::layers(7, &[50]);
    let tag = format!("{}.sig", image.digest().replace(':', "-"));
    fake.push("library/app", &tag, &cosign);

    let house = House::over(&fake).await;
    let done = warm(&house, "image=app:v1&referrers=true&latest=true&pin=true").await;
    assert_eq!((&done["state"], &done["before"]), (&json!("done"), &Value::Null), "{done}");
    let mut roots: Vec<&str> =
        done["roots"].as_array().unwrap().iter().map(|root| root["digest"].as_str().unwrap()).collect();
    assert_eq!(roots.remove(0), image.digest());
    let mut expected = vec![signature.digest(), nested.digest(), of_signature.digest(), cosign.digest()];
    roots.sort_unstable();
    expected.sort_unstable();
    assert_eq!(roots, expected);

    fake.clear();
    let again = warm(&house, "image=app:v1&referrers=true&latest=true").await;
    assert_eq!((&again["fetched"], &again["before"]), (&json!(0), &json!(image.digest())), "{again}");
    assert_eq!(content_fetched(&fake).len(), 0, "it is here");

    fake.stop().await;
    let house = house.restart(|config| config.offline = true).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert!(house.client().pull("library/app", &tag).await.unwrap().is(&cosign));
    for (subject, artifact) in [(image.digest(), &signature), (child.digest.as_str(), &nested)] {
        let list = house.client().get(&format!("/v2/library/app/referrers/{subject}")).await.json();
        assert_eq!(list["manifests"][0]["digest"], artifact.digest(), "{list}");
        assert!(house.client().pull("library/app", artifact.digest()).await.unwrap().is(artifact));
    }
    let pinned = house.metric("tidelock_cache_pinned_bytes").await;
    assert_eq!(pinned, house.metric("tidelock_cache_bytes").await - lists(&house).await, "all of it");
}

/// The bytes of lists, which belong to no image.
async fn lists(house: &House) -> f64 {
    let next = house.admin().get("/api/v1/eviction?limit=1000").await.json();
    next["next"].as_array().unwrap().iter().map(|victim| victim["size"].as_f64().unwrap()).sum()
}

#[tokio::test]
async fn for_the_platforms_that_are_wanted() {
    let fake = FakeRegistry::start().await;
    let image = Image::multi_platform(1, &[1000]);
    fake.push("library/app", "v1", &image);
    let index: Value = serde_json::from_slice(&image.top.bytes).unwrap();
    let platform = &index["manifests"][1]["platform"];
    let platform =
        format!("{}/{}", platform["os"].as_str().unwrap(), platform["architecture"].as_str().unwrap());
    let house = House::over(&fake).await;
    let none = warm(&house, "image=app:v1&platform=plan9/mips&latest=true").await;
    assert_eq!(none["state"], "failed");
    assert!(none["message"].as_str().unwrap().contains("nothing for plan9/mips; it is for"), "{none}");
    let done = warm(&house, &format!("image=app:v1&platform={platform}&latest=true")).await;
    let parts: Vec<&str> =
        done["parts"].as_array().unwrap().iter().map(|part| part["digest"].as_str().unwrap()).collect();
    assert_eq!(parts.len(), 4, "the index, one manifest, its config and layer: {parts:?}");
    assert!(
        parts.contains(&image.manifests[1].digest.as_str())
            && !parts.contains(&image.manifests[0].digest.as_str())
    );
    assert!(
        fake.log().matching(|record| record.path.contains(image.manifests[0].digest.as_str())).is_empty()
    );

    let wrong = house.admin().request(Method::POST, "/api/v1/warm?image=app:v1&platform=linux", &[]).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("OS/ARCHITECTURE"), "{}", wrong.text());
}

#[tokio::test]
async fn what_came_stays_and_the_next_time_goes_on_there() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[1000, 2000, 3000]);
    fake.push("library/app", "v1", &image);
    fake.push("library/other", "v1", &Image::layers(2, &[10]));
    let house = House::over(&fake).await;
    let lost = image.layer_blobs()[1].clone();
    fake.remove_blob("library/app", &lost.digest);
    let output = house.command(&["warm", "app:v1", "other:v1"]).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("docker.io/library/app:v1: ") && !err.contains("other"), "{err}");
    assert!(out.starts_with("docker.io/library/other:v1 is sha256:") && out.contains("(new)"), "{out}");
    house.settled().await;

    fake.put_blob("library/app", &lost);
    let house = house.restart(|_| {}).await;
    fake.clear();
    let output = house.command(&["warm", "app:v1", "--pin"]).await;
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(out.contains("2.0 KiB fetched, pinned"), "{out}");
    let asked = content_fetched(&fake);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].path.contains(&lost.digest));

    // What the tag means is asked for, however fresh it is.
    fake.push("library/app", "v1", &Image::layers(3, &[10]));
    let output = house.command(&["warm", "app:v1", "--json"]).await;
    let warmed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(warmed["before"], image.digest());
}

/// The reserve is for whoever waits: that warming has to wait is no trouble of theirs.
#[tokio::test(start_paused = true)]
async fn what_waits_for_budget_keeps_nobody_from_asking() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    fake.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(15)));
    let images = [Image::layers(1, &[500]), Image::layers(2, &[500])];
    fake.push("library/app", "v1", &images[0]);
    let house = House::with(&fake, |config| {
        config.schedule.max_wait = Duration::from_secs(5);
        let freshness = &mut config.upstreams[0].freshness;
        freshness.tag_ttl = Duration::from_secs(3600);
        freshness.stale_while_revalidate = Duration::ZERO;
    });
    let house = house.await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&images[0]));
    fake.push("library/app", "v1", &images[1]);
    clock.advance(Duration::from_secs(3700)).await;
    let warming =
        house.admin().stream(Method::POST, "/api/v1/warm?image=app:v1&latest=true", &[], Bytes::new()).await;
    // The HEAD is free; the manifest is within the reserve.
    rest(|| fake.total()).await;
    assert!(fake.count("HEAD", "/manifests/v1") > 0);
    for _ in 0..3 {
        clock.advance(Duration::from_secs(6)).await;
        rest(|| fake.total()).await;
    }
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&images[1]), "it was asked for");
    drop(warming);
}

/// It is for the next start, whatever it waits for.
#[tokio::test]
async fn a_stop_does_not_wait_for_it() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[500_000]);
    fake.push("library/app", "v1", &image);
    let layer = &image.layer_blobs()[0];
    for fault in [Fault::StallAfter(300_000), Fault::Stall, Fault::hold_head(&Gate::new())] {
        let fault = fake.fault(Match::blob(&layer.digest), Times::Always, fault);
        let house = House::with(&fake, |config| {
            config.server.drain_timeout = Duration::from_secs(600);
            let upstream = &mut config.upstreams[0];
            upstream.response_timeout = Duration::from_secs(600);
            upstream.idle_timeout = Duration::from_secs(600);
        });
        let house = house.await;
        let warming =
            house.admin().stream(Method::POST, "/api/v1/warm?image=app:v1", &[], Bytes::new()).await;
        eventually(|| async {
            !fake.log().matching(|record| record.path.contains(&layer.digest)).is_empty()
        })
        .await;
        let left = house.left();
        assert_eq!(house.stop().await, Ended::Drained);
        drop(warming);
        fault.lift();
        fake.clear();
        let house = left.open(|_| {}).await;
        assert_eq!(warm(&house, "image=app:v1").await["state"], "done");
    }
}

#[tokio::test]
async fn what_the_upstream_will_not_give_now_is_waited_for() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(1, &[1000]));
    fake.fault(Match::manifests(), Times::Once, Fault::abuse(1));
    let house = House::over(&fake).await;
    let done = warm(&house, "image=app:v1&latest=true").await;
    assert_eq!(done["state"], "done", "{done}");
}

#[tokio::test]
async fn what_the_cache_cannot_hold_is_said() {
    use tidelock::config::{ByteSize, SizeLimit};
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(1, &[300_000, 300_000, 300_000]));
    let house =
        House::with(&fake, |config| config.cache.max_size = SizeLimit::Bytes(ByteSize(500_000))).await;
    let failed = warm(&house, "image=app:v1&latest=true").await;
    assert!(failed["message"].as_str().unwrap().contains("raise cache.max_size"), "{failed}");
}

#[tokio::test]
async fn the_newest_of_what_a_pattern_matches() {
    let fake = FakeRegistry::start().await;
    for (seed, tag) in ["16", "16.9", "16.10", "16.10-rc1", "17.1", "latest"].into_iter().enumerate() {
        fake.push("library/app", tag, &Image::layers(seed as u64, &[10]));
    }
    let house = House::over(&fake).await;
    let output = house.command(&["warm", "app:16*", "--newest", "2", "--no-referrers"]).await;
    let out = String::from_utf8_lossy(&output.stdout);
    let named: Vec<&str> = out.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(named, ["docker.io/library/app:16.10", "docker.io/library/app:16.10-rc1"], "{out}");
    let nothing = house.command(&["warm", "app:99*"]).await;
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("app:99* matches no tag"));
    // Where nobody can be asked: of what is remembered.
    let house = house.restart(|config| config.offline = true).await;
    let output = house.command(&["warm", "app:*", "--no-referrers"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2, "{output:?}");
}
