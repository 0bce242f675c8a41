//! `tidelock show`, `pin`, `unpin` and `remove`, and the operator's API behind them.

use http::Method;
use serde_json::Value;
use tidelock::config::{ByteSize, Config, SizeLimit};
use tidelock::lifecycle::Lifecycle;
use tidelock::store::{Pin, Store};
use tidelock::telemetry::Metrics;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

const LAYER: usize = 300_000;
const LIMIT: u64 = 1_000_000;

/// A small cache over many images, each of one large layer.
async fn scene() -> (FakeRegistry, House) {
    let fake = FakeRegistry::start().await;
    for n in 0..6 {
        fake.push("library/app", &format!("v{n}"), &Image::layers(n, &[LAYER]));
    }
    let house = House::with(&fake, |config| config.cache.max_size = SizeLimit::Bytes(ByteSize(LIMIT))).await;
    (fake, house)
}

async fn pull(house: &House, reference: &str) {
    house.client().pull("library/app", reference).await.unwrap();
    house.settled().await;
}

async fn post(house: &House, verb: &str, image: &str) -> (u16, Value) {
    let path = format!("/api/v1/{verb}?image={image}");
    let answer = house.admin().request(Method::POST, &path, &[]).await;
    (answer.status, answer.json())
}

async fn done(house: &House, verb: &str, image: &str) -> Value {
    let (status, body) = post(house, verb, image).await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn refused(house: &House, verb: &str, image: &str) -> (u16, String) {
    let (status, body) = post(house, verb, image).await;
    (status, body["error"]["code"].as_str().unwrap().to_owned())
}

async fn show(house: &House, image: &str) -> Value {
    house.admin().get(&format!("/api/v1/image?image={image}")).await.json()
}

/// How often a blob was fetched when it was pulled once more.
async fn blobs_fetched_by(house: &House, fake: &FakeRegistry, reference: &str) -> usize {
    fake.clear();
    pull(house, reference).await;
    fake.log().matching(|record| record.method == "GET" && record.path.contains("/blobs/")).len()
}

#[tokio::test]
async fn what_is_pinned_is_not_evicted_until_it_is_unpinned() {
    let (fake, house) = scene().await;
    pull(&house, "v0").await;
    let pinned = done(&house, "pin", "app:v0").await;
    assert_eq!((&pinned["pinned"], &pinned["content"]["blobs_cached"]), (&true.into(), &2.into()));
    let house = house.restart(|_| {}).await;
    for n in 1..6 {
        pull(&house, &format!("v{n}")).await;
    }
    assert_eq!(blobs_fetched_by(&house, &fake, "v0").await, 0, "it is here");
    assert!(house.metric("tidelock_cache_pinned_bytes").await > LAYER as f64);
    let images = house.admin().get("/api/v1/images").await.json();
    assert_eq!(
        (&images["images"][0]["pinned"], &images["images"][1]["pinned"]),
        (&true.into(), &false.into())
    );

    assert_eq!(done(&house, "unpin", "app:v0").await["pinned"], false);
    assert_eq!(refused(&house, "unpin", "app:v0").await, (409, "not_pinned".to_owned()));
    for n in 1..6 {
        pull(&house, &format!("v{n}")).await;
    }
    assert!(blobs_fetched_by(&house, &fake, "v0").await > 0, "its turn came");
}

#[tokio::test]
async fn a_pin_follows_its_tag() {
    let (fake, house) = scene().await;
    pull(&house, "v0").await;
    done(&house, "pin", "app:v0").await;
    let next = Image::index(vec![Image::layers(7, &[LAYER]), Image::layers(8, &[1000])]);
    fake.push("library/app", "v0", &next);
    house.client().one_platform().pull("library/app", "v0").await.unwrap();
    house.settled().await;
    let shown = show(&house, "app:v0").await;
    assert_eq!((&shown["digest"], &shown["pinned"]), (&next.digest().into(), &true.into()));
    let blobs = shown["blobs"].as_array().unwrap();
    assert!(blobs.len() == 2 && blobs.iter().all(|blob| blob["pinned"] == true), "{shown}");
    let pinned = house.metric("tidelock_cache_pinned_bytes").await;
    assert!((LAYER as f64..LAYER as f64 + 10_000.0).contains(&pinned), "the old one is let go: {pinned}");
    // The other platform comes later.
    house.client().pull("library/app", "v0").await.unwrap();
    house.settled().await;
    let blobs = show(&house, "app:v0").await["blobs"].clone();
    assert_eq!(blobs.as_array().unwrap().iter().filter(|blob| blob["pinned"] == true).count(), 4, "{blobs}");
}

#[tokio::test]
async fn what_nobody_may_pull_any_more_can_be_let_go() {
    let (_fake, house) = scene().await;
    pull(&house, "v0").await;
    done(&house, "pin", "app:v0").await;
    let house = house.restart(|config| config.upstreams[0].deny = vec!["library/app".parse().unwrap()]);
    let house = house.await;
    assert_eq!(refused(&house, "pin", "app:v0").await.0, 403);
    assert_eq!(done(&house, "unpin", "app:v0").await["pinned"], false);
    assert_eq!(house.metric("tidelock_cache_pinned_bytes").await, 0.0);
}

#[tokio::test]
async fn a_manifest_that_is_damaged_does_not_let_its_layers_go() {
    let (fake, house) = scene().await;
    pull(&house, "v0").await;
    done(&house, "pin", "app:v0").await;
    let digest = show(&house, "app:v0").await["digest"].as_str().unwrap().to_owned();
    let house = house.restart(|_| {}).await;
    let hex = digest.strip_prefix("sha256:").unwrap();
    let file = house.folder().join("blobs/sha256").join(&hex[..2]).join(hex);
    std::fs::remove_file(file).unwrap();
    show(&house, "app:v0").await;
    // It is noticed, the tag is confirmed, and it is pinned once more, while nobody knows what it names.
    done(&house, "refresh", "app:v0").await;
    done(&house, "pin", "app:v0").await;
    assert!(house.metric("tidelock_cache_pinned_bytes").await >= LAYER as f64);
    for n in 1..6 {
        pull(&house, &format!("v{n}")).await;
    }
    assert_eq!(blobs_fetched_by(&house, &fake, "v0").await, 0, "the manifest alone is fetched anew");
}

/// The manifest of one platform is here already, for another repository's sake: a HEAD proves it, and no fetch.
#[tokio::test]
async fn a_pin_learns_of_what_is_proven() {
    let (fake, house) = scene().await;
    let [one, two] = [Image::layers(30, &[LAYER]), Image::layers(31, &[1000])];
    fake.push("library/other", "v0", &one);
    fake.push("library/app", "v0", &Image::index(vec![one.clone(), two]));
    house.client().pull("library/other", "v0").await.unwrap();
    assert_eq!(house.client().get("/v2/library/app/manifests/v0").await.status, 200);
    house.settled().await;
    eventually_eq(200, || async { post(&house, "pin", "app:v0").await.0 }).await;
    assert!(house.metric("tidelock_cache_pinned_bytes").await < LAYER as f64);
    let path = format!("/v2/library/app/manifests/{}", one.digest());
    assert_eq!(house.client().get(&path).await.status, 200);
    // Where what was pulled is still on its way into the index, it is fetched, and the client does not wait for the rest.
    eventually(|| async { house.metric("tidelock_cache_pinned_bytes").await >= LAYER as f64 }).await;
}

/// Images whose manifests are still on their way into the index when they are pinned: each pin has the layer in the end.
#[tokio::test]
async fn a_pin_learns_of_what_arrives_beside_it() {
    let fake = FakeRegistry::start().await;
    let house = House::over(&fake).await;
    for n in 0..16 {
        let repository = format!("library/beside{n}");
        fake.push(&repository, "v0", &Image::layers(100 + n, &[LAYER]));
        house.client().get(&format!("/v2/{repository}/manifests/v0")).await;
        eventually_eq(200, || async { post(&house, "pin", &format!("beside{n}:v0")).await.0 }).await;
        house.client().pull(&repository, "v0").await.unwrap();
    }
    eventually(|| async { house.metric("tidelock_cache_pinned_bytes").await >= (16 * LAYER) as f64 }).await;
}

/// A kill between a manifest's arrival and the pin that follows it leaves a pin that knows nothing of the layers.
#[tokio::test]
async fn a_start_finishes_what_a_kill_left_of_a_pin() {
    let (_fake, house) = scene().await;
    pull(&house, "v0").await;
    let digest = show(&house, "app:v0").await["digest"].as_str().unwrap().parse().unwrap();
    let left = house.left();
    house.stop().await;
    let mut config = Config::default();
    (config.cache.dir, config.cache.min_free) = (left.folder().to_owned(), ByteSize(0));
    let (life, repository) = (Lifecycle::default(), "docker.io/library/app".parse().unwrap());
    // A child of another test may have the lock until it is a program of its own.
    let mut opened = None;
    eventually(|| {
        opened = Store::open(&config.cache, &life, &Metrics::default()).ok();
        std::future::ready(opened.is_some())
    })
    .await;
    let store = opened.unwrap();
    store.pin(Pin { repository, reference: "v0".parse().unwrap(), digests: vec![digest] }).await.unwrap();
    store.close().await;
    life.stop();
    life.wait().await;
    drop(store);
    let house = left.open(|_| {}).await;
    eventually(|| async { house.metric("tidelock_cache_pinned_bytes").await >= LAYER as f64 }).await;
}

#[tokio::test]
async fn what_cannot_be_pinned() {
    let (_fake, house) = scene().await;
    for n in 0..3 {
        pull(&house, &format!("v{n}")).await;
        done(&house, "pin", &format!("app:v{n}")).await;
    }
    // It came through uncached: there is no room but what is pinned.
    pull(&house, "v3").await;
    assert_eq!(refused(&house, "pin", "app:v3").await, (409, "too_large".to_owned()));
    assert_eq!(refused(&house, "pin", "app:none").await, (404, "image_unknown".to_owned()));
    assert_eq!(refused(&house, "pin", "UPPER").await, (400, "image_invalid".to_owned()));
    assert_eq!(refused(&house, "pin", "ghcr.io/a/b").await, (404, "no_upstream".to_owned()));
    assert_eq!(house.admin().get("/api/v1/pin?image=app:v0").await.status, 405);
    assert!(house.metric("tidelock_cache_bytes").await <= LIMIT as f64);
}

#[tokio::test]
async fn what_is_removed_goes_and_what_others_need_stays() {
    let (fake, house) = scene().await;
    let [shared, own] = [Image::layers(20, &[1000]), Image::layers(21, &[2000])];
    fake.push("library/app", "both", &Image::index(vec![shared.clone(), own.clone()]));
    fake.push("library/app", "one", &shared);
    fake.push("library/other", "one", &own);
    for (repository, tag) in [("library/app", "both"), ("library/app", "one"), ("library/other", "one")] {
        house.client().pull(repository, tag).await.unwrap();
    }
    house.settled().await;
    let before = house.metric("tidelock_cache_bytes").await;
    let removed = done(&house, "remove", "app:both").await;
    // The index alone: one image has another tag, the other one another repository.
    let bytes = removed["bytes"].as_u64().unwrap();
    assert!(bytes > 0 && bytes < 1000, "{removed}");
    assert_eq!(house.metric("tidelock_cache_bytes").await, before - bytes as f64);
    assert_eq!(house.metric("tidelock_evicted_bytes_total{reason=\"removed\"}").await, bytes as f64);
    assert_eq!(refused(&house, "remove", "app:both").await, (404, "image_unknown".to_owned()));
    fake.clear();
    house.client().pull("library/app", "one").await.unwrap();
    house.client().pull("library/other", "one").await.unwrap();
    assert_eq!(fake.log().matching(|record| record.method == "GET").len(), 0, "they are here");
    // By this repository nobody sees the other one's any more, before the upstream has shown that it may.
    fake.clear();
    let path = format!("/v2/library/app/manifests/{}", own.digest());
    assert_eq!(house.client().get(&path).await.status, 200);
    assert_eq!(fake.log().matching(|record| record.method == "HEAD").len(), 1);
    house.client().pull("library/app", "both").await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_removed() {
    let (_fake, house) = scene().await;
    pull(&house, "v0").await;
    let digest = show(&house, "app:v0").await["digest"].as_str().unwrap().to_owned();
    assert_eq!(refused(&house, "remove", &format!("app@{digest}")).await, (409, "tagged".to_owned()));
    done(&house, "pin", "app:v0").await;
    assert_eq!(refused(&house, "remove", "app:v0").await, (409, "pinned".to_owned()));
    done(&house, "unpin", "app:v0").await;
    done(&house, "remove", "app:v0").await;
    eventually_eq(0.0, || house.metric("tidelock_cache_blobs")).await;
    // By its digest alone.
    let answer = house.client().get(&format!("/v2/library/app/manifests/{digest}")).await;
    assert_eq!(answer.status, 200);
    house.settled().await;
    eventually_eq(200, || async {
        house.admin().get(&format!("/api/v1/image?image=app@{digest}")).await.status
    })
    .await;
    done(&house, "remove", &format!("app@{digest}")).await;
    assert_eq!(house.metric("tidelock_cache_blobs").await, 0.0);
}

#[tokio::test]
async fn the_commands_say_what_they_did() {
    let (_fake, house) = scene().await;
    pull(&house, "v0").await;
    let said = async |arguments: &[&str]| {
        let output = house.command(arguments).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let pinned = said(&["pin", "app:v0"]).await;
    assert!(pinned.starts_with("docker.io/library/app:v0 is not evicted any more (29"), "{pinned}");
    assert!(pinned.ends_with(" KiB; here: all)\n"), "{pinned}");
    let shown = said(&["show", "app:v0"]).await;
    assert!(shown.contains("pinned     yes") && shown.contains("linux/amd64"), "{shown}");
    assert!(said(&["list"]).await.contains("all, pinned"));
    assert!(said(&["unpin", "app:v0"]).await.contains("may be evicted"));
    assert!(said(&["remove", "app:v0"]).await.contains("is removed; it meant sha256:"));
    let json: Value = serde_json::from_str(&said(&["list", "--json"]).await).unwrap();
    assert_eq!(json, Value::Array(Vec::new()));
    let again = house.command(&["remove", "app:v0"]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("docker.io/library/app:v0: it is not known here")
    );
}

#[tokio::test]
async fn with_a_token_only_who_has_it_changes_anything() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v0", &Image::layers(0, &[1000]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let house = House::with(&fake, |config| {
        config.server.admin_listen = "0.0.0.0:0".parse().unwrap();
        config.admin.token_file = Some(file.clone());
    })
    .await;
    pull(&house, "v0").await;
    assert_eq!(refused(&house, "pin", "app:v0").await, (403, "token_unreadable".to_owned()));
    std::fs::write(&file, "correct horse battery\n").unwrap();
    assert_eq!(refused(&house, "pin", "app:v0").await, (403, "token_unreadable".to_owned()), "it has spaces");
    std::fs::write(&file, "correct-horse-battery\n").unwrap();
    assert_eq!(refused(&house, "pin", "app:v0").await, (401, "token_missing".to_owned()));
    let with = async |token: &str| {
        let header = format!("Bearer {token}");
        let headers = [("authorization", header.as_str())];
        house.admin().request(Method::POST, "/api/v1/pin?image=app:v0", &headers).await
    };
    let wrong = with("correct-horse-batterx").await;
    assert_eq!((wrong.status, wrong.header("www-authenticate")), (401, "Bearer realm=\"tidelock\""));
    assert_eq!(show(&house, "app:v0").await["pinned"], false, "to look needs none");
    assert_eq!(with("correct-horse-battery").await.status, 200);

    let without = house.command(&["unpin", "app:v0"]).await;
    assert_eq!(without.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&without.stderr).contains("admin.token_file"));
    let path = file.to_str().unwrap();
    let done = house.command(&["unpin", "app:v0", "--token-file", path]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // Another one, from the next request on.
    std::fs::write(&file, "another-horse-battery\n").unwrap();
    assert_eq!(with("correct-horse-battery").await.status, 401);
}

#[tokio::test]
async fn where_others_reach_it_nothing_is_changed_without_a_token() {
    let fake = FakeRegistry::start().await;
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let house = House::with(&fake, |config| config.server.admin_listen = everywhere).await;
    for verb in ["pin", "unpin", "remove", "refresh"] {
        assert_eq!(refused(&house, verb, "app:v0").await, (403, "token_needed".to_owned()), "{verb}");
    }
}

#[tokio::test]
async fn what_was_changed_and_what_was_refused_is_written_down() {
    let (_fake, house) = scene().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let own = file.clone();
    let house = house.restart(|config| config.log.audit = Some(own)).await;
    pull(&house, "v0").await;
    show(&house, "app:v0").await;
    assert!(!file.exists(), "to look is no change");
    done(&house, "pin", "app:v0").await;
    refused(&house, "remove", "app:v0").await;
    // Rotated.
    std::fs::rename(&file, folder.path().join("audit.1")).unwrap();
    let foreign = [("origin", "http://evil.example"), ("authorization", "Bearer x")];
    house.admin().request(Method::POST, "/api/v1/unpin?image=app:v0", &foreign).await;
    let lines = |file: &std::path::Path| -> Vec<Value> {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let first = lines(&folder.path().join("audit.1"));
    let said: Vec<(&Value, &Value)> = first.iter().map(|line| (&line["action"], &line["status"])).collect();
    let [pin, remove] = ["POST /api/v1/pin", "POST /api/v1/remove"].map(Value::from);
    assert_eq!(said, [(&pin, &200.into()), (&remove, &409.into())]);
    assert_eq!((&first[0]["query"], &first[0]["with_token"]), (&"image=app:v0".into(), &false.into()));
    assert!(
        first[0]["client"].as_str().unwrap().starts_with("127.0.0.1:")
            && first[0]["at"].as_u64().unwrap() > 1_700_000_000
    );
    let second = lines(&file);
    assert_eq!(
        (second.len(), &second[0]["status"], &second[0]["with_token"]),
        (1, &403.into(), &true.into())
    );
    // What cannot be written is no reason to refuse.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    done(&house, "unpin", "app:v0").await;
}

/// Whoever asked for it is gone before it is done.
#[tokio::test]
async fn what_was_begun_is_done_and_written_down() {
    let (fake, house) = scene().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let own = file.clone();
    let house = house.restart(|config| config.log.audit = Some(own)).await;
    let gate = Gate::new();
    fake.fault(Match::manifests().any_method(), Times::Once, Fault::hold_head(&gate));
    let address = house.admin_url().trim_start_matches("http://").to_owned();
    let mut asking = TcpStream::connect(address).await.unwrap();
    let head = "POST /api/v1/refresh?image=app:v0 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n";
    asking.write_all(head.as_bytes()).await.unwrap();
    gate.waiting(1).await;
    asking.set_zero_linger().unwrap();
    drop(asking);
    // Its thread has seen that, since it answers others.
    for _ in 0..3 {
        assert_eq!(house.admin().get("/healthz").await.status, 200);
    }
    gate.open();
    eventually(|| async {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("/api/v1/refresh"))
    })
    .await;
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"status\":200"));
    assert!(show(&house, "app:v0").await["since"].is_u64());
}
