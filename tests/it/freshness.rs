//! What a tag means, when it is asked for again, and what is served when nobody can be asked.

use std::time::Duration;

use http::StatusCode;
use tidelock::config::{Account, Credentials};

use crate::support::behaviour::Auth;
use crate::support::client::Reply;
use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, upstream};
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

const HOUR: Duration = Duration::from_secs(3600);
const V1: &str = "/v2/library/app/manifests/v1";
const V2: &str = "/v2/library/app/manifests/v2";

/// What befalls the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Stopped,
    ServerError,
    Quota,
    Abuse,
    Silence,
    NoTokens,
    LoginRefused,
    Hidden,
}

impl Trouble {
    /// Each with what a client is told that asks for something that is not cached.
    const ALL: [(Trouble, u16, &'static str); 8] = [
        (Trouble::Stopped, 502, "UNAVAILABLE"),
        (Trouble::ServerError, 502, "UNAVAILABLE"),
        (Trouble::Quota, 429, "TOOMANYREQUESTS"),
        (Trouble::Abuse, 429, "TOOMANYREQUESTS"),
        (Trouble::Silence, 504, "UNAVAILABLE"),
        (Trouble::NoTokens, 502, "UNAVAILABLE"),
        (Trouble::LoginRefused, 502, "UNAVAILABLE"),
        (Trouble::Hidden, 404, "MANIFEST_UNKNOWN"),
    ];

    async fn strike(self, fake: &FakeRegistry) {
        let everything = |fault| drop(fake.fault(Match::path("/v2/"), Times::Always, fault));
        let tokens = |status| {
            fake.tokens().expire_all_tokens();
            fake.tokens().fault(Match::any(), Times::Always, status);
        };
        match self {
            Trouble::Stopped => fake.stop().await,
            Trouble::ServerError => everything(Fault::status(500)),
            Trouble::Quota => everything(Fault::quota()),
            Trouble::Abuse => everything(Fault::abuse(7)),
            Trouble::Silence => everything(Fault::hold_head(&Gate::new())),
            Trouble::NoTokens => tokens(Fault::HangUp),
            Trouble::LoginRefused => tokens(Fault::status(401)),
            Trouble::Hidden => fake.remove_repo("library/app"),
        }
    }
}

/// A registry with tokens and one image, and a house with an account there that has pulled `v1`.
async fn warm(folder: &tempfile::TempDir) -> (FakeRegistry, House, Image) {
    let fake = FakeRegistry::start().await;
    fake.set(|behaviour| behaviour.auth = Auth::bearer());
    fake.tokens().add_account("ci", "secret");
    let file = folder.path().join("password");
    std::fs::write(&file, "secret").unwrap();
    let image = Image::layers(1, &[100]);
    fake.push("library/app", "v1", &image);
    fake.push("library/app", "v2", &image);
    let house = House::with(&fake, |config| {
        config.upstreams[0].response_timeout = Duration::from_millis(300);
        config.schedule.max_wait = Duration::from_millis(300);
        let credentials = Credentials::PasswordFile { username: "ci".to_owned(), file };
        config.upstreams[0].accounts = vec![Account::new("ci", credentials)];
    })
    .await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    (fake, house, image)
}

fn is_fresh(reply: &Reply, image: &Image) -> bool {
    reply.status == 200
        && reply.header("docker-content-digest") == image.digest()
        && reply.header("warning").is_empty()
}

fn is_stale(reply: &Reply, image: &Image) -> bool {
    reply.status == 200
        && reply.header("docker-content-digest") == image.digest()
        && reply.header("warning").starts_with("299 - \"")
        && reply.header("age").parse::<u64>().is_ok()
        && reply.header("cache-status").contains("stale")
}

const STALE: &str = "tidelock_requests_total{kind=\"manifest\",outcome=\"stale\",upstream=\"docker.io\"}";

#[tokio::test]
async fn in_any_trouble_the_cached_tag_is_served() {
    let folder = tempfile::tempdir().unwrap();
    for (trouble, status, code) in Trouble::ALL {
        let (fake, house, image) = warm(&folder).await;
        trouble.strike(&fake).await;
        let (get, head) = (house.client().get(V1).await, house.client().head(V1).await);
        assert!(is_stale(&get, &image) && get.whole() == image.top.bytes, "{trouble:?}: {get:?}");
        assert!(is_stale(&head, &image), "{trouble:?}: {head:?}");
        eventually_eq(2.0, || house.metric(STALE)).await;
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image), "{trouble:?}");
        let missing = house.client().get(V2).await;
        assert_eq!((missing.status, missing.error_code().as_str()), (status, code), "{trouble:?}");
        let waits = missing.header("retry-after").parse::<u64>().ok();
        assert_eq!(waits.is_some(), status == StatusCode::TOO_MANY_REQUESTS, "{trouble:?}: {waits:?}");
        if trouble == Trouble::Abuse {
            assert!(matches!(waits, Some(1..=8)), "what is left of the pause: {waits:?}");
        }
    }
}

#[tokio::test]
async fn trouble_passes_and_the_tag_is_checked_again() {
    let (fake, image, next) = (FakeRegistry::start().await, Image::layers(1, &[1]), Image::layers(2, &[1]));
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(is_fresh(&house.client().get(V1).await, &image));
    fake.stop().await;
    assert!(is_stale(&house.client().get(V1).await, &image));
    fake.push("library/app", "v1", &next);
    fake.resume();
    assert!(is_fresh(&house.client().get(V1).await, &next));
}

#[tokio::test]
async fn beyond_its_time_trouble_comes_through() {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[1]));
    fake.push("library/app", "v1", &image);
    let house =
        House::with(&fake, |config| config.upstreams[0].freshness.stale_if_error = Duration::ZERO).await;
    assert!(is_fresh(&house.client().get(V1).await, &image));
    fake.stop().await;
    let reply = house.client().get(V1).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"));
    // What has a digest has no age.
    assert!(house.client().manifest("library/app", image.digest()).await.is_ok());
}

#[tokio::test]
async fn a_definite_no_is_not_overridden_and_the_name_is_forgotten() {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[1]));
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(is_fresh(&house.client().get(V1).await, &image));
    fake.remove_tag("library/app", "v1");
    let reply = house.client().get(V1).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
    fake.stop().await;
    assert_eq!(house.client().get(V1).await.status, 502, "there is nothing to be stale");
}

#[tokio::test]
async fn what_replaces_a_tag_must_be_had_before_the_tag_moves() {
    for fault in [Fault::quota(), Fault::abuse(1), Fault::status(404), Fault::status(503), Fault::WrongBytes]
    {
        let (fake, old) = (FakeRegistry::start().await, Image::layers(1, &[1]));
        fake.push("library/app", "v1", &old);
        let house = House::over(&fake).await;
        assert!(is_fresh(&house.client().get(V1).await, &old));
        let new = Image::layers(2, &[1]);
        fake.push("library/app", "v1", &new);
        let trouble = fake.fault(Match::manifest(new.digest()), Times::Always, fault.clone());
        for _ in 0..2 {
            let reply = house.client().get(V1).await;
            assert!(is_stale(&reply, &old), "{fault:?}: {reply:?}");
        }
        assert!(is_stale(&house.client().head(V1).await, &old), "{fault:?}");
        trouble.lift();
        if !matches!(fault, Fault::Status(429, ..)) {
            assert!(is_fresh(&house.client().get(V1).await, &new), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn stale_while_revalidate_asks_behind_the_clients_back() {
    let (fake, old, new) = (FakeRegistry::start().await, Image::layers(1, &[1]), Image::layers(2, &[1]));
    fake.push("library/app", "v1", &old);
    let house =
        House::with(&fake, |config| config.upstreams[0].freshness.stale_while_revalidate = HOUR).await;
    assert!(is_fresh(&house.client().get(V1).await, &old));
    fake.push("library/app", "v1", &new);
    fake.clear();
    let gate = Gate::new();
    fake.fault(Match::manifests().method("HEAD"), Times::Once, Fault::hold_head(&gate));
    for _ in 0..5 {
        assert!(is_fresh(&house.client().get(V1).await, &old), "served at once");
    }
    gate.waiting(1).await;
    assert_eq!(fake.total(), 1, "{:?}", fake.log().summary());
    gate.open();
    eventually(|| async { is_fresh(&house.client().get(V1).await, &new) }).await;
    assert_eq!(fake.counted(), 1);
    // Gone behind the client's back is gone.
    fake.remove_tag("library/app", "v1");
    eventually(|| async { house.client().get(V1).await.status == 404 }).await;
}

#[tokio::test]
async fn an_absence_is_believed_for_a_while_as_its_upstream_has_it() {
    let (hub, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let image = Image::layers(1, &[1]);
    for (fake, name) in [(&hub, "library/app"), (&other, "org/app")] {
        fake.push(name, "v1", &image);
    }
    let upstreams = vec![upstream("docker.io", &[&hub.url()]), upstream("ghcr.io", &[&other.url()])];
    let house = House::start(upstreams, |config| config.upstreams[0].freshness.negative_ttl = HOUR).await;
    let foreign = Image::layers(9, &[1]);
    for what in ["manifests/v2", "manifests/v3", &format!("manifests/{}", foreign.digest())] {
        for (fake, name, again) in [(&hub, "library/app", 0), (&other, "ghcr.io/org/app", 1)] {
            let path = format!("/v2/{name}/{what}");
            assert_eq!(house.client().get(&path).await.status, 404);
            assert!(fake.total() > 0);
            fake.clear();
            let reply = house.client().get(&path).await;
            assert_eq!((reply.status, reply.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
            assert_eq!(fake.total(), again, "{path}: {:?}", fake.log().summary());
            fake.clear();
        }
    }
    let path = format!("/v2/library/app/blobs/{}", foreign.digest());
    for asked in [1, 0, 0] {
        let reply = house.client().get(&path).await;
        assert_eq!((reply.status, reply.error_code().as_str(), hub.total()), (404, "BLOB_UNKNOWN", asked));
        hub.clear();
    }
    let series = "tidelock_requests_total{kind=\"manifest\",outcome=\"negative\",upstream=\"docker.io\"}";
    eventually_eq(3.0, || house.metric(series)).await;
    assert!(is_fresh(&house.client().get(V1).await, &image), "what is there is not touched by it");
}

#[tokio::test]
async fn immutable_tags_are_asked_for_once() {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[1]));
    fake.push("library/app", "v1", &image);
    fake.push("library/app", "latest", &image);
    let house = House::with(&fake, |config| {
        config.upstreams[0].freshness.immutable_tags = vec!["v*".parse().unwrap()];
    })
    .await;
    for (tag, calls) in [("v1", 0), ("latest", 1)] {
        let path = format!("/v2/library/app/manifests/{tag}");
        assert!(is_fresh(&house.client().get(&path).await, &image));
        fake.clear();
        assert!(is_fresh(&house.client().get(&path).await, &image));
        assert!(is_fresh(&house.client().head(&path).await, &image));
        assert_eq!(fake.total(), 2 * calls, "{tag}");
    }
}

#[tokio::test]
async fn offline_nobody_is_asked() {
    let fake = FakeRegistry::start().await;
    let image = Image::multi_platform(1, &[100_000, 0]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    let house = house
        .restart(|config| {
            config.offline = true;
            // Not even when the tag's time is long over.
            config.upstreams[0].freshness.stale_if_error = Duration::ZERO;
        })
        .await;
    let connections = fake.accepted_connections();
    let client = house.client();
    assert!(client.pull("library/app", "v1").await.unwrap().is(&image));
    assert!(client.pull_like_docker("library/app", "v1").await.unwrap().is(&image));
    let foreign = Image::layers(9, &[1]);
    fake.push("library/app", "v2", &foreign);
    for (path, code) in [
        (V2.to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/manifests/{}", foreign.digest()), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/blobs/{}", foreign.blobs[0].digest), "BLOB_UNKNOWN"),
        // Cached, but who knows whether this repository contains it?
        (format!("/v2/library/other/manifests/{}", image.digest()), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/other/blobs/{}", image.blobs[0].digest), "BLOB_UNKNOWN"),
    ] {
        let reply = client.get(&path).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (404, code), "{path}");
        assert_eq!(client.head(&path).await.status, 404, "{path}");
    }
    let cold = House::with(&fake, |config| config.offline = true).await;
    assert_eq!(cold.client().get(V1).await.status, 404);
    assert_eq!(fake.accepted_connections(), connections);
}
