//! Upstreams that throttle in odd ways: what is asked of them, and what clients get.

use std::time::{Duration, Instant};

use tidelock::config::{Account, Anonymous, Credentials};

use crate::support::behaviour::{Auth, RateLimit};
use crate::support::eventually::eventually;
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, upstream};
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

const APP: &str = "/v2/library/app/manifests/v1";

async fn hub() -> (FakeRegistry, [Image; 4]) {
    let fake = FakeRegistry::start().await;
    let images = [1, 2, 3, 4].map(|seed| Image::layers(seed, &[100]));
    for (name, image) in ["app", "base", "tool", "more"].into_iter().zip(&images) {
        fake.push(&format!("library/{name}"), "v1", image);
    }
    (fake, images)
}

fn quota(retry_after: Option<&str>) -> Fault {
    let body =
        r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
    let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    headers.extend(retry_after.map(|after| ("retry-after".to_owned(), after.to_owned())));
    Fault::Status(429, body.to_owned(), headers)
}

#[tokio::test]
async fn hasty_clients_get_the_stale_tag_in_time() {
    let (fake, images) = hub().await;
    let house = House::with(&fake, |config| {
        config.upstreams[0].response_timeout = Duration::from_secs(60);
        config.upstreams[0].freshness.tag_ttl = Duration::ZERO;
        config.upstreams[0].freshness.stale_while_revalidate = Duration::ZERO;
        config.upstreams[0].freshness.stale_if_error = Duration::from_secs(3600);
    })
    .await;
    house.client().pull("library/app", "v1").await.unwrap();
    let gate = Gate::new();
    fake.fault(Match::manifests().method("HEAD"), Times::Always, Fault::hold_head(&gate));
    let reply = house.client().with_header("user-agent", "soci-snapshotter/0.9").get(APP).await;
    gate.open();
    assert_eq!(
        (reply.status, reply.header("docker-content-digest")),
        (200, images[0].digest()),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn an_absurd_header_opens_no_spent_account() {
    let (fake, _) = hub().await;
    fake.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(1)));
    let house = House::with(&fake, |config| config.schedule.max_wait = Duration::from_millis(200)).await;
    house.client().pull("library/app", "v1").await.unwrap();
    assert_eq!(fake.counted(), 1);
    fake.clear();
    // One absurd header on a free answer, once.
    fake.fault(
        Match::manifests().method("HEAD"),
        Times::Once,
        Fault::header("ratelimit-remaining", "1000000000000000000000000000000;w=21600"),
    );
    let reply = house.client().get("/v2/library/base/manifests/v1").await;
    let gets = fake.count("GET", "/manifests/");
    assert_eq!(gets, 0, "{gets} GETs, client got {} {}", reply.status, reply.text());
}

#[tokio::test]
async fn a_token_service_that_fails_spends_nothing() {
    let (fake, images) = hub().await;
    fake.set(|behaviour| {
        behaviour.auth = Auth::bearer();
        behaviour.rate_limit = Some(RateLimit::new(100).remaining(4));
    });
    let house = House::with(&fake, |config| config.schedule.max_wait = Duration::from_millis(200)).await;
    house.client().pull("library/app", "v1").await.unwrap();
    fake.clear();
    fake.tokens().fault(Match::path("/token"), Times::Always, Fault::Status(503, String::new(), vec![]));
    let mut seen = Vec::new();
    for name in ["base", "tool", "more"] {
        let index = ["app", "base", "tool", "more"].iter().position(|each| *each == name).unwrap();
        for _ in 0..2 {
            let reply =
                house.client().get(&format!("/v2/library/{name}/manifests/{}", images[index].digest())).await;
            seen.push(reply.status);
            if reply.status == 429 {
                panic!("{seen:?} {} with {} GETs sent", reply.text(), fake.count("GET", "/manifests/"));
            }
        }
    }
}

#[tokio::test]
async fn spent_is_said_although_another_account_cannot_log_in() {
    let (fake, _) = hub().await;
    fake.set(|behaviour| {
        behaviour.auth = Auth::bearer();
        behaviour.account_limits.insert("spare".to_owned(), RateLimit::new(200).remaining(0));
    });
    fake.tokens().add_account("spare", "secret");
    let folder = tempfile::tempdir().unwrap();
    let account = |name: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, "secret").unwrap();
        Account::new(name, Credentials::PasswordFile { username: name.to_owned(), file })
    };
    let house = House::with(&fake, |config| {
        config.schedule.max_wait = Duration::from_millis(200);
        config.upstreams[0].accounts = vec![account("spare"), account("wrong")];
        config.upstreams[0].anonymous = Anonymous::Never;
    })
    .await;
    // HEAD goes to `spare`: spent. The GET goes to `wrong`: refused. Then nobody is left.
    let reply = house.client().get(APP).await;
    assert_eq!(reply.status, 429, "{}", reply.text());
}

#[tokio::test]
async fn hasty_clients_are_told_in_time_of_a_blob() {
    let (fake, images) = hub().await;
    let house = House::over(&fake).await;
    fake.fault(Match::any(), Times::Once, Fault::abuse(60));
    let client = house.client().with_header("user-agent", "soci-snapshotter/0.9");
    let begun = Instant::now();
    let layer = images[0].layer_blobs()[0].digest.clone();
    let reply = client.get(&format!("/v2/library/app/blobs/{layer}")).await;
    // Well before `schedule.max_wait`.
    assert!(begun.elapsed() < Duration::from_secs(10), "{} after {:?}", reply.status, begun.elapsed());
}

#[tokio::test]
async fn a_mirror_is_asked_first_by_all() {
    let (origin, images) = hub().await;
    let (mirror, _) = hub().await;
    mirror.fault(Match::manifests(), Times::Always, Fault::Latency(Duration::from_millis(300)));
    origin.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100)));
    let hub = upstream("docker.io", &[&mirror.url(), &origin.url()]);
    let house = House::start(vec![hub], |_| {}).await;
    let client = house.client();
    let paths: Vec<String> = ["app", "base", "tool", "more"]
        .iter()
        .zip(&images)
        .map(|(name, image)| format!("/v2/library/{name}/manifests/{}", image.digest()))
        .collect();
    let gets = paths.iter().map(|path| client.get(path));
    for reply in futures_util::future::join_all(gets).await {
        assert_eq!(reply.status, 200);
    }
    assert_eq!(origin.counted(), 0, "the mirror has them all ({} there)", mirror.counted());
}

#[tokio::test]
async fn a_spent_quota_with_retry_after_zero() {
    let (fake, images) = hub().await;
    let house = House::over(&fake).await;
    fake.fault(Match::manifests().method("GET"), Times::Always, quota(Some("0")));
    let begun = Instant::now();
    let reply = house.client().get(&format!("/v2/library/app/manifests/{}", images[0].digest())).await;
    let gets = fake.count("GET", "/manifests/");
    assert!(
        gets <= 5,
        "longer each time: {gets} GETs in {:?}: {} {}",
        begun.elapsed(),
        reply.status,
        reply.text()
    );
}

#[tokio::test]
async fn an_abuse_limit_with_retry_after_zero() {
    let (fake, images) = hub().await;
    let house = House::over(&fake).await;
    fake.fault(Match::manifests(), Times::Always, Fault::abuse(0));
    let begun = Instant::now();
    let reply = house.client().get(&format!("/v2/library/app/manifests/{}", images[0].digest())).await;
    let gets = fake.count("GET", "/manifests/");
    assert!(
        gets <= 9,
        "longer each time: {gets} GETs in {:?}: {} {}",
        begun.elapsed(),
        reply.status,
        reply.text()
    );
}

#[tokio::test]
async fn whatever_may_have_been_counted_is() {
    let (fake, images) = hub().await;
    fake.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100)));
    let house = House::over(&fake).await;
    house.client().pull("library/app", "v1").await.unwrap();
    fake.clear();
    fake.fault(Match::manifests().method("GET"), Times::Always, Fault::HangUp);
    house.client().get(&format!("/v2/library/base/manifests/{}", images[1].digest())).await;
    let budgets = house.admin().get("/api/v1/budgets").await.json();
    let remaining = budgets["upstreams"][0]["accounts"][0]["remaining"].as_u64();
    let gets = fake.count("GET", "/manifests/");
    // Connections from before may be gone: on a fresh one it may do. Each try may have been counted.
    assert!((2..=4).contains(&gets), "{gets} GETs");
    assert_eq!(remaining, Some(99 - gets as u64));
}

/// A client joins a fetch that nobody had waited for, shortly before that one's wait is over.
#[tokio::test]
async fn who_joins_has_a_wait_of_its_own() {
    let (fake, _) = hub().await;
    let big = Image::layers(9, &[400_000]);
    fake.push("library/big", "v1", &big);
    let house = House::with(&fake, |config| {
        config.upstreams[0].max_connections = 4;
        config.upstreams[0].read_ahead = true;
        config.schedule.max_wait = Duration::from_secs(2);
    })
    .await;
    let gate = Gate::new();
    // Three other blobs take all connections that blobs may have.
    let others: Vec<Image> = (20..23).map(|seed| Image::layers(seed, &[300_000])).collect();
    for (n, other) in others.iter().enumerate() {
        fake.push(&format!("library/other{n}"), "v1", other);
        fake.fault(Match::blob(&other.layer_blobs()[0].digest), Times::Always, Fault::hold(&gate));
    }
    let client = house.client();
    let paths: Vec<String> = others
        .iter()
        .enumerate()
        .map(|(n, other)| format!("/v2/library/other{n}/blobs/{}", other.layer_blobs()[0].digest))
        .collect();
    let mut streams = Vec::new();
    for path in &paths {
        streams.push(client.get_streaming(path).await);
    }
    // Its layers are read ahead now, at background priority: they wait.
    assert_eq!(client.get("/v2/library/big/manifests/v1").await.status, 200);
    let waiting = "tidelock_schedule_queue{priority=\"background\",upstream=\"docker.io\"}";
    let queue = || house.metric(waiting);
    eventually(|| async { queue().await >= 1.0 }).await;
    let path = format!("/v2/library/big/blobs/{}", big.layer_blobs()[0].digest);
    let begun = Instant::now();
    let opened = async {
        // Until the wait of the read-ahead is over, but not the client's.
        eventually(|| async { begun.elapsed() > Duration::from_millis(1500) }).await;
        gate.open();
    };
    let (reply, ()) = tokio::join!(client.get(&path), opened);
    assert_eq!(reply.status, 200, "after {:?} of 2 s: {}", begun.elapsed(), reply.text());
}

#[tokio::test]
async fn offline_asks_for_no_spent_account() {
    let (fake, _) = hub().await;
    fake.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(1)));
    let house = House::with(&fake, |config| config.schedule.max_wait = Duration::from_millis(200)).await;
    house.client().pull("library/app", "v1").await.unwrap();
    let left = house.left();
    house.stop().await;
    fake.clear();
    let house = left.open(|config| config.offline = true).await;
    assert_eq!(house.client().get(APP).await.status, 200);
    assert_eq!(
        fake.total(),
        0,
        "{:?}",
        fake.requests().iter().map(|r| format!("{} {}", r.method, r.path)).collect::<Vec<_>>()
    );
    drop(house);
}

/// A waiter gave up; the house is told to stop.
#[tokio::test]
async fn a_stop_after_a_refusal_is_not_held_up() {
    let (fake, _) = hub().await;
    fake.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(0)));
    let house = House::with(&fake, |config| config.schedule.max_wait = Duration::from_millis(200)).await;
    assert_eq!(house.client().get(APP).await.status, 429);
    let begun = Instant::now();
    let ended = house.stop().await;
    // Well before `server.drain_timeout`.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?} {ended:?}", begun.elapsed());
}
