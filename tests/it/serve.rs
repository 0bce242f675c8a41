//! The real program as a process: how it starts, what it writes, how it ends.

use std::net::{SocketAddr, TcpListener};

use http::Method;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::client::Streaming;
use crate::support::eventually::eventually;
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::images::{Blob, Image, sha256};
use crate::support::program::{Running, configured, ended, start};
use crate::support::registry::FakeRegistry;

/// Well over the hold-back, so that bytes flow before the proof.
const LARGE: usize = 300_000;

struct Scene {
    fake: FakeRegistry,
    image: Image,
    folder: TempDir,
    config: String,
}

async fn set_up(more: &str) -> Scene {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[LARGE]);
    fake.push("library/app", "v1", &image);
    let folder = tempfile::tempdir().unwrap();
    let config = configured(folder.path(), &fake.url(), more);
    Scene { fake, image, folder, config }
}

#[tokio::test]
async fn one_line_for_each_request_and_a_clean_end() {
    let scene = set_up("").await;
    let Scene { image, config, .. } = &scene;
    let running = start(&["serve", "--config", config]).await;
    let client = running.client().with_header("authorization", "Basic aHVudGVyMg==");
    assert!(client.pull_like_docker("app", "v1").await.unwrap().is(image));
    let in_a_pull = 2 + image.blobs.len();
    client.get("/v2/library/app/manifests/none?token=hunter2").await;
    client.request(Method::POST, "/v2/library/app/blobs/uploads/", &[]).await;
    client.get("/v2/").await;
    client.get("/v2/nothing.test/app/tags/list").await;
    let log = running.stop().await;
    let requests = log.with(" request ");
    assert_eq!(requests.len(), in_a_pull + 4, "{requests:#?}");
    let one = |words: &[&str]| {
        let found: Vec<&String> =
            requests.iter().filter(|line| words.iter().all(|word| line.contains(word))).collect();
        assert_eq!(found.len(), 1, "{words:?} in {requests:#?}");
    };
    one(&[
        "INFO",
        "method=HEAD",
        "status=200",
        "outcome=\"miss\"",
        "/manifests/v1",
        "docker.io/library/app",
        "account=\"anonymous\"",
        "sent=0",
    ]);
    one(&[
        "INFO",
        "method=GET",
        &format!("sent={LARGE}"),
        "outcome=\"miss\"",
        "first_ms=",
        " ms=",
        "client=",
    ]);
    one(&[
        "method=GET",
        "status=404",
        "outcome=\"error\"",
        "reason=\"not_found\"",
        "/manifests/none",
        "error=",
    ]);
    one(&["method=POST", "status=405", "outcome=\"error\"", "reason=\"method\""]);
    one(&["path=\"/v2/\"", "status=200", "outcome=\"ok\""]);
    one(&["status=404", "outcome=\"denied\"", "reason=\"no_route\""]);
    for secret in ["hunter2", "aHVudGVyMg", "\u{1b}["] {
        assert!(log.with(secret).is_empty(), "{secret:?}: {:#?}", log.with(secret));
    }
    assert_eq!(log.with("WARN").len() + log.with("ERROR").len(), 0, "{:#?}", log.with(""));
    assert_eq!(log.with("stopped").len(), 1);
}

#[tokio::test]
async fn lines_of_json() {
    let scene = set_up("log.format = \"json\"").await;
    let Scene { config, .. } = &scene;
    let running = start(&["--config", config]).await;
    running.client().get("/v2/app/manifests/v1").await;
    running.client().get("/v2/app/manifests/none\"%0a").await;
    let log = running.stop().await;
    let lines = log.with("").into_iter().map(|line| match serde_json::from_str::<Value>(&line) {
        Ok(value) => value,
        Err(error) => panic!("{error}: {line}"),
    });
    let requests: Vec<Value> = lines.filter(|line| line["message"] == "request").collect();
    assert_eq!(requests.len(), 2, "{requests:#?}");
    let line = &requests[0];
    for (field, value) in [
        ("level", "INFO"),
        ("method", "GET"),
        ("path", "/v2/app/manifests/v1"),
        ("outcome", "miss"),
        ("repository", "docker.io/library/app"),
    ] {
        assert_eq!(line[field], value, "{field} of {line}");
    }
    assert_eq!(line["status"], 200);
    assert!(
        line["sent"].as_u64().unwrap() > 100 && line["ms"].is_u64() && line["first_ms"].is_u64(),
        "{line}"
    );
    assert!(line["client"].as_str().unwrap().parse::<SocketAddr>().is_ok(), "{line}");
    assert!(line["timestamp"].is_string(), "{line}");
    assert_eq!((&requests[1]["status"], &requests[1]["outcome"]), (&404.into(), &"error".into()));
}

#[tokio::test]
async fn a_quiet_log() {
    let scene = set_up("log.level = \"warn\"").await;
    let Scene { config, fake, .. } = &scene;
    let running = start(&["serve", "--config", config]).await;
    assert_eq!(running.client().get("/v2/app/manifests/v1").await.status, 200);
    fake.stop().await;
    assert_eq!(running.client().get("/v2/other/manifests/v1").await.status, 502);
    let log = running.stop().await;
    let lines = log.with("");
    assert_eq!(log.with(" request ").len(), 1, "trouble is told: {lines:#?}");
    assert!(log.with(" INFO ").is_empty(), "{lines:#?}");
}

#[tokio::test]
async fn what_is_in_the_way_is_told() {
    let scene = set_up("").await;
    let Scene { folder, fake, .. } = &scene;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = configured(folder.path(), &fake.url(), "");
    for flag in ["--listen", "--admin-listen"] {
        let ended = ended(&["serve", "--config", &config, flag, &address]).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{}", ended.err);
        assert!(ended.err.starts_with("tidelock: ") && ended.err.contains(&address), "{}", ended.err);
        assert!(ended.err.contains("in use"), "{}", ended.err);
    }
    // Not even root can make a folder beneath a file.
    let beneath = folder.path().join("tidelock.toml/cache");
    let unwritable = ended(&["--config", &config, "--cache-dir", beneath.to_str().unwrap()]).await;
    assert_eq!((unwritable.code, unwritable.out.as_str()), (Some(1), ""), "{}", unwritable.err);
    for words in [beneath.to_str().unwrap(), "cache.dir", "cannot be used"] {
        assert!(unwritable.err.contains(words), "{}", unwritable.err);
    }
    assert_eq!(unwritable.err.lines().count(), 1, "{}", unwritable.err);
}

#[tokio::test]
async fn a_second_one_on_the_same_cache() {
    let scene = set_up("").await;
    let Scene { config, image, .. } = &scene;
    let running = start(&["serve", "--config", config]).await;
    let second = ended(&["serve", "--config", config]).await;
    assert_eq!((second.code, second.out.as_str()), (Some(1), ""), "{}", second.err);
    assert!(second.err.contains("in use by another tidelock"), "{}", second.err);
    assert!(running.client().pull("app", "v1").await.unwrap().is(image), "the first goes on");
    running.stop().await;
    start(&["serve", "--config", config]).await.stop().await;
}

/// It boots, answers and reports with nobody to ask (I9).
#[tokio::test]
async fn without_any_upstream() {
    let scene = set_up("freshness.tag_ttl = \"0s\"\nfreshness.stale_while_revalidate = \"0s\"").await;
    let Scene { fake, config, image, .. } = &scene;
    let running = start(&["serve", "--config", config]).await;
    assert!(running.client().pull("app", "v1").await.unwrap().is(image));
    running.stop().await;
    fake.stop().await;
    let running = start(&["serve", "--config", config]).await;
    let admin = running.admin();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(admin.get(path).await.status, 200, "{path}");
    }
    assert_eq!(running.client().get("/v2/").await.status, 200);
    let unknown = running.client().get("/v2/other/manifests/v1").await;
    assert_eq!((unknown.status, unknown.error_code().as_str()), (502, "UNAVAILABLE"));
    assert!(running.client().pull("app", "v1").await.unwrap().is(image), "stale is better than nothing");
    running.stop().await;
}

/// With nothing but flags it has the upstreams that everybody uses, and contacts none of them by itself.
#[tokio::test]
async fn by_flags_alone() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--cache-dir",
        cache,
        "--max-size",
        "1GiB",
        "--offline",
    ];
    let mut running = start(&flags).await;
    assert_eq!(running.client().get("/v2/").await.status, 200);
    let reply = running.client().get("/v2/ghcr.io/org/app/manifests/v1").await;
    assert_eq!((reply.status, reply.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
    assert!(reply.text().contains("offline"), "{}", reply.text());
    running.signal(Signal::INT);
    assert_eq!(running.exit_code().await, Some(0), "Ctrl-C is as good");
}

/// A mirror that was told to stop while a client is in the midst of a blob that the gate holds up.
struct Stopping {
    running: Running,
    transfer: Streaming,
    layer: Blob,
    gate: Gate,
}

async fn stopping(scene: &Scene) -> Stopping {
    let layer = scene.image.layer_blobs().remove(0);
    let gate = Gate::new();
    scene.fake.fault(Match::blob(&layer.digest), Times::Once, Fault::hold_after(&gate, 100_000));
    let running = start(&["serve", "--config", &scene.config]).await;
    let mut transfer = running.client().get_streaming(&format!("/v2/app/blobs/{}", layer.digest)).await;
    transfer.read(1000).await;
    running.signal(Signal::TERM);
    running.log.has("stopping").await;
    Stopping { running, transfer, layer, gate }
}

#[tokio::test]
async fn what_is_running_may_finish() {
    let scene = set_up("").await;
    let Stopping { mut running, mut transfer, layer, gate } = stopping(&scene).await;
    let ready = running.admin().get("/readyz").await;
    assert_eq!((ready.status, ready.text().as_str()), (503, "draining\n"));
    assert!(running.client().try_get("/v2/").await.is_err(), "nobody new comes in");
    gate.open();
    let (rest, error) = transfer.read_to_end().await;
    assert!(error.is_none() && rest == layer.bytes.slice(1000..));
    assert_eq!(running.exit_code().await, Some(0));
    running.log.has("stopped").await;
}

#[tokio::test]
async fn a_second_signal_cuts_it_short() {
    let scene = set_up("server.drain_timeout = \"1h\"").await;
    let Stopping { mut running, mut transfer, gate: _held, .. } = stopping(&scene).await;
    assert_eq!(running.child.try_wait().unwrap(), None, "it waits for the transfer");
    running.signal(Signal::TERM);
    assert_eq!(running.exit_code().await, Some(0));
    running.log.has("stopped before everything had ended").await;
    let (_, error) = transfer.read_to_end().await;
    assert!(error.is_some(), "the client sees that it is not whole");
}

/// Killed at any instant, it starts again with what it had.
#[tokio::test]
async fn after_a_kill() {
    let scene = set_up("").await;
    let Scene { fake, config, image, .. } = &scene;
    let mut running = start(&["serve", "--config", config]).await;
    assert!(running.client().pull("app", "v1").await.unwrap().is(image));
    let blobs = image.blobs.len() + image.manifests.len();
    let admin = running.admin();
    let kept = format!("tidelock_cache_blobs {blobs}");
    eventually(|| async { admin.get("/metrics").await.text().contains(&kept) }).await;
    running.signal(Signal::KILL);
    assert_eq!(running.exit_code().await, None);
    fake.clear();
    let running = start(&["serve", "--config", config]).await;
    for blob in &image.blobs {
        let bytes = running.client().blob("app", &blob.digest).await.unwrap();
        assert_eq!(sha256(&bytes), blob.digest);
    }
    assert_eq!(fake.count("GET", "/blobs/"), 0, "{:?}", fake.log().summary());
    running.stop().await;
}
