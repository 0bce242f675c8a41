//! What is left of a pull quota, and what is done when nothing is: the whole house against a counting Hub.

use std::path::Path;
use std::time::Duration;

use tidelock::config::{Account, Anonymous, Config, Credentials};

use crate::support::behaviour::{Auth, RateLimit};
use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::{House, Process, upstream};
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

const APP: &str = "/v2/library/app/manifests/v1";

/// A Hub with tokens, two accounts and three images.
async fn hub() -> (FakeRegistry, [Image; 3]) {
    let fake = FakeRegistry::start().await;
    fake.set(|behaviour| behaviour.auth = Auth::bearer());
    for user in ["ci", "spare"] {
        fake.tokens().add_account(user, "secret");
    }
    let images = [1, 2, 3].map(|seed| Image::layers(seed, &[100]));
    for (name, image) in ["app", "base", "tool"].into_iter().zip(&images) {
        fake.push(&format!("library/{name}"), "v1", image);
    }
    (fake, images)
}

fn accounts(folder: &Path, names: &[&str]) -> Vec<Account> {
    let account = |name: &&str| {
        let file = folder.join(name);
        std::fs::write(&file, "secret").unwrap();
        Account::new(*name, Credentials::PasswordFile { username: (*name).to_owned(), file })
    };
    names.iter().map(account).collect()
}

/// Pulls are not held, so that tests need not wait.
fn hasty(config: &mut Config) {
    config.schedule.max_wait = Duration::from_millis(200);
}

fn left(limit: i64, remaining: i64) -> Option<RateLimit> {
    Some(RateLimit::new(limit).remaining(remaining))
}

#[tokio::test]
async fn a_refusal_names_the_account_and_the_time_and_comes_slowly() {
    let (fake, _) = hub().await;
    let folder = tempfile::tempdir().unwrap();
    fake.set(|behaviour| {
        behaviour.account_limits.insert("ci".to_owned(), RateLimit::new(200).remaining(0));
    });
    let house = House::with(&fake, |config| {
        hasty(config);
        config.upstreams[0].accounts = accounts(folder.path(), &["ci"]);
        config.upstreams[0].anonymous = Anonymous::Never;
    })
    .await;
    let begun = std::time::Instant::now();
    let reply = house.client().get(APP).await;
    assert!(begun.elapsed() >= Duration::from_millis(1500), "containerd repeats a 429 at once");
    assert_eq!((reply.status, reply.error_code().as_str()), (429, "TOOMANYREQUESTS"));
    let text = reply.text();
    assert!(text.contains("account `ci`") && text.contains("docker.io") && text.contains(" UTC"), "{text}");
    let wait: u64 = reply.header("retry-after").parse().unwrap();
    assert!(wait > 5 * 3600 && wait <= 6 * 3600, "{wait}");
    assert_eq!(fake.count("GET", "/manifests/"), 0, "a free HEAD had told that nothing is left");
    let series = "tidelock_throttled_total{account=\"ci\",reason=\"spent\",upstream=\"docker.io\"}";
    assert!(house.metric(series).await >= 1.0);
}

#[tokio::test]
async fn a_refused_account_hands_over_to_the_next() {
    let (fake, images) = hub().await;
    let folder = tempfile::tempdir().unwrap();
    let house = House::with(&fake, |config| {
        config.upstreams[0].accounts = accounts(folder.path(), &["ci", "spare"]);
    })
    .await;
    // Nobody was told of any limit: the first account learns of it by a 429 in the midst of a pull.
    fake.fault(Match::manifests().method("GET"), Times::Once, Fault::quota());
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&images[0]));
    let series = |account: &str| {
        format!("tidelock_throttled_total{{account=\"{account}\",reason=\"quota\",upstream=\"docker.io\"}}")
    };
    assert_eq!((house.metric(&series("ci")).await, house.metric(&series("spare")).await), (1.0, 0.0));
    assert_eq!((fake.counted_for(Some("ci")), fake.counted_for(Some("spare"))), (0, 1));
    assert!(house.client().pull("library/base", "v1").await.unwrap().is(&images[1]));
    assert_eq!(fake.counted_for(Some("spare")), 2, "it rests");
}

#[tokio::test]
async fn without_an_account_only_when_none_has_anything() {
    let (fake, images) = hub().await;
    let folder = tempfile::tempdir().unwrap();
    fake.set(|behaviour| {
        behaviour.rate_limit = left(100, 100);
        behaviour.account_limits.insert("ci".to_owned(), RateLimit::new(200).remaining(1));
        behaviour.private = vec!["library/tool".to_owned()];
    });
    let house = House::with(&fake, |config| {
        hasty(config);
        config.upstreams[0].accounts = accounts(folder.path(), &["ci"]);
    })
    .await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&images[0]));
    assert_eq!((fake.counted_for(Some("ci")), fake.counted_for(None)), (1, 0));
    assert!(house.client().pull("library/base", "v1").await.unwrap().is(&images[1]));
    assert_eq!((fake.counted_for(Some("ci")), fake.counted_for(None)), (1, 1));
    // What nobody may see is not absent: the account would see it, were there anything left.
    let reply = house.client().get("/v2/library/tool/manifests/v1").await;
    assert_eq!((reply.status, reply.error_code().as_str()), (429, "TOOMANYREQUESTS"), "{}", reply.text());
    assert!(reply.text().contains("account `ci`"), "{}", reply.text());
}

#[tokio::test]
async fn a_login_that_fails_stops_no_public_pull() {
    let (fake, images) = hub().await;
    let folder = tempfile::tempdir().unwrap();
    fake.tokens().remove_account("ci");
    let house = House::with(&fake, |config| {
        config.upstreams[0].accounts = accounts(folder.path(), &["ci"]);
    })
    .await;
    let aside = "tidelock_account_aside{account=\"ci\",upstream=\"docker.io\"}";
    assert_eq!(house.metric(aside).await, 0.0);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&images[0]));
    assert_eq!(house.metric(aside).await, 1.0);
    let logins =
        fake.tokens().requests().iter().filter(|login| !login.header("authorization").is_empty()).count();
    assert!(house.client().pull("library/base", "v1").await.unwrap().is(&images[1]));
    let again =
        fake.tokens().requests().iter().filter(|login| !login.header("authorization").is_empty()).count();
    assert_eq!((logins, again), (1, 1), "a refused login is not hammered");
    let hub = house.admin().get("/api/v1/budgets").await.json()["upstreams"][0].clone();
    assert_eq!(hub["accounts"][0]["standing"], "aside");
    assert!(hub["accounts"][0]["fault"].as_str().unwrap().contains("refused account `ci`"), "{hub}");
}

#[tokio::test]
async fn what_a_mirror_lacks_is_public_at_the_origin_though_no_login_works() {
    let (origin, images) = hub().await;
    let mirror = FakeRegistry::start().await;
    mirror.set(|behaviour| behaviour.auth = Auth::bearer());
    origin.tokens().remove_account("ci");
    let folder = tempfile::tempdir().unwrap();
    let hub = upstream("docker.io", &[&mirror.url(), &origin.url()]);
    let house = House::start(vec![hub], |config| {
        config.upstreams[0].accounts = accounts(folder.path(), &["ci"]);
    })
    .await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&images[0]));
    assert_eq!(mirror.counted(), 0);
}

#[tokio::test]
async fn what_is_known_survives_a_stop_and_a_kill() {
    let (fake, _) = hub().await;
    fake.set(|behaviour| behaviour.rate_limit = left(10, 10));
    let process = Process::new();
    let house = {
        let fake = fake.clone();
        process.house(async move { House::with(&fake, hasty).await }).await
    };
    for name in ["app", "base"] {
        house.client().pull(&format!("library/{name}"), "v1").await.unwrap();
    }
    let house_left = house.left();
    process.kill().await;
    let asked = fake.total();
    let remaining = async |house: &House| {
        let budgets = house.admin().get("/api/v1/budgets").await.json();
        budgets["upstreams"][0]["accounts"][0]["remaining"].as_u64()
    };
    let house = house_left.open(|_| {}).await;
    assert_eq!(remaining(&house).await, Some(8), "written down before it was spent");
    let house = house.restart(|_| {}).await;
    assert_eq!(remaining(&house).await, Some(8));
    assert_eq!(fake.total(), asked);
    // And it goes on from there.
    house.client().get("/v2/library/tool/manifests/v1").await;
    eventually_eq(Some(7), || remaining(&house)).await;
}

#[tokio::test]
async fn a_mirror_is_asked_where_the_origin_is_spent() {
    let (origin, images) = hub().await;
    let (mirror, _) = hub().await;
    origin.set(|behaviour| {
        behaviour.auth = Auth::None;
        behaviour.rate_limit = left(100, 0);
    });
    mirror.set(|behaviour| behaviour.auth = Auth::None);
    let hub = upstream("docker.io", &[&origin.url(), &mirror.url()]);
    let house = House::start(vec![hub], hasty).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&images[0]));
    assert_eq!((origin.count("GET", "/manifests/"), mirror.counted()), (0, 1));
}

#[tokio::test]
async fn a_pause_is_kept_by_everybody_and_waited_for() {
    let (fake, images) = hub().await;
    fake.set(|behaviour| behaviour.auth = Auth::None);
    let house = House::over(&fake).await;
    fake.fault(Match::any(), Times::Once, Fault::abuse(1));
    let begun = std::time::Instant::now();
    let client = house.client();
    let pulls = ["library/app", "library/base", "library/tool"].map(|name| client.pull(name, "v1"));
    for (pulled, image) in futures_util::future::join_all(pulls).await.into_iter().zip(&images) {
        assert!(pulled.unwrap().is(image));
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let at: Vec<_> = fake.requests().iter().map(|request| request.at).collect();
    let early = at.iter().filter(|each| **each - at[0] < Duration::from_millis(900)).count();
    assert!(early <= 3, "what was on the way already, and nothing more: {early}");
}

/// Limits that cannot be right change nothing for the worse.
#[tokio::test]
async fn absurd_headers_stop_no_pull() {
    for (limit, remaining) in [
        ("100;w=21600", "1000000000000000000000000000000;w=21600"),
        ("0;w=0", "0;w=0"),
        ("-1", "-1"),
        ("100;w=0", "50;w=0"),
        ("100", "200"),
        ("many", "few"),
        ("100;w=", "99;w="),
        ("1e30;w=1e30", "5"),
    ] {
        let (fake, images) = hub().await;
        fake.set(|behaviour| behaviour.auth = Auth::None);
        for (name, value) in [("ratelimit-limit", limit), ("ratelimit-remaining", remaining)] {
            fake.fault(Match::manifests(), Times::Always, Fault::header(name, value));
        }
        let house = House::with(&fake, hasty).await;
        for (name, image) in ["app", "base", "tool"].into_iter().zip(&images) {
            let pulled = house.client().pull(&format!("library/{name}"), "v1").await;
            assert!(pulled.is_ok_and(|pulled| pulled.is(image)), "{limit} {remaining}");
        }
    }
}

#[tokio::test]
async fn hasty_clients_are_answered_in_time() {
    let (fake, _) = hub().await;
    fake.set(|behaviour| {
        behaviour.auth = Auth::None;
        behaviour.rate_limit = left(100, 0);
    });
    let house = House::over(&fake).await;
    let client = house.client().with_header("user-agent", "soci-snapshotter/0.9");
    let begun = std::time::Instant::now();
    let reply = client.get(APP).await;
    // Well before `schedule.max_wait`.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((reply.status, reply.error_code().as_str()), (429, "TOOMANYREQUESTS"), "{}", reply.text());
}

#[tokio::test]
async fn a_spent_account_is_asked_by_a_free_head_and_nobody_pays_for_it() {
    let (fake, images) = hub().await;
    fake.set(|behaviour| {
        behaviour.auth = Auth::None;
        behaviour.rate_limit = left(100, 1);
    });
    let house = House::with(&fake, hasty).await;
    house.client().pull("library/app", "v1").await.unwrap();
    let left_over = house.left();
    house.stop().await;
    fake.set(|behaviour| behaviour.rate_limit = left(100, 40));
    fake.clear();
    // A start asks at once: it may have had hours to recover.
    let house = left_over.open(|_| {}).await;
    eventually(|| async { fake.count("HEAD", "/manifests/") == 1 }).await;
    let series = "tidelock_ratelimit_remaining{account=\"anonymous\",upstream=\"docker.io\"}";
    eventually_eq(40.0, || house.metric(series)).await;
    assert_eq!(fake.counted(), 0);
    assert!(house.client().pull("library/base", "v1").await.unwrap().is(&images[1]));
}

#[tokio::test]
async fn who_waits_is_counted_while_they_wait() {
    let (fake, _) = hub().await;
    fake.set(|behaviour| {
        behaviour.auth = Auth::None;
        behaviour.rate_limit = left(100, 0);
    });
    let house = House::with(&fake, |config| config.schedule.max_wait = Duration::from_secs(6)).await;
    let queue = "tidelock_schedule_queue{priority=\"foreground\",upstream=\"docker.io\"}";
    let client = house.client();
    let held = tokio::spawn(async move { client.get(APP).await.status });
    eventually_eq(1.0, || house.metric(queue)).await;
    let budgets = house.admin().get("/api/v1/budgets").await.json();
    assert_eq!(budgets["upstreams"][0]["waiting"]["foreground"], 1);
    assert_eq!(held.await.unwrap(), 429);
    assert_eq!(house.metric(queue).await, 0.0);
    let waited = "tidelock_schedule_wait_seconds_sum{priority=\"foreground\",upstream=\"docker.io\"}";
    assert!(house.metric(waited).await >= 1.5);
}

/// Headers, and what they say is left and for how long.
type Dialect = (&'static [(&'static str, &'static str)], f64, f64);

#[tokio::test]
async fn limits_are_read_in_every_dialect() {
    let dialects: [Dialect; 5] = [
        (&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "42;w=21600")], 42.0, 21_600.0),
        (&[("RateLimit-Policy", "100;w=60"), ("RateLimit", "limit=100, remaining=7, reset=30")], 7.0, 60.0),
        (&[("RateLimit-Policy", "\"d\";q=100;w=86400"), ("RateLimit", "\"d\";r=9;t=50")], 9.0, 86_400.0),
        (&[("X-RateLimit-Limit", "100;w=3600"), ("X-RateLimit-Remaining", "11")], 11.0, 3600.0),
        // Docker Hub goes on counting below nothing.
        (&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "-3;w=21600")], 0.0, 21_600.0),
    ];
    for (headers, remaining, window) in dialects {
        let (fake, _) = hub().await;
        fake.set(|behaviour| behaviour.auth = Auth::None);
        for (name, value) in headers {
            fake.fault(Match::manifests(), Times::Always, Fault::header(name, value));
        }
        let house = House::with(&fake, hasty).await;
        assert_eq!(house.client().head(APP).await.status, 200);
        for (name, value) in [("remaining", remaining), ("limit", 100.0), ("window_seconds", window)] {
            let series = format!("tidelock_ratelimit_{name}{{account=\"anonymous\",upstream=\"docker.io\"}}");
            assert_eq!(house.metric(&series).await, value, "{name} of {headers:?}");
        }
    }
}
