//! SIGHUP to the real program: what its file says takes effect, or nothing does.

mod accounts;
mod refused;
mod signals;

use std::path::PathBuf;

use http::Method;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::eventually::{eventually, eventually_eq, within};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::images::{Blob, Image};
use crate::support::program::{Running, start};
use crate::support::registry::FakeRegistry;

const APPLIED: &str = "tidelock_config_reloads_total{outcome=\"applied\"}";
const REFUSED: &str = "tidelock_config_reloads_total{outcome=\"refused\"}";
const SUCCESSFUL: &str = "tidelock_config_last_reload_successful";

/// A mirror of one upstream, and the file that it was started with.
struct Scene {
    fake: FakeRegistry,
    folder: TempDir,
    running: Running,
}

/// No tag is served unasked.
const STRICT: &str = "freshness.tag_ttl = \"0s\"\nfreshness.stale_while_revalidate = \"0s\"";

impl Scene {
    /// With these lines before the upstream, and these behind it.
    async fn new(top: &str, upstream: &str) -> Scene {
        Scene::of(FakeRegistry::start().await, top, upstream, &[]).await
    }

    async fn of(fake: FakeRegistry, top: &str, upstream: &str, flags: &[&str]) -> Scene {
        Scene::at(tempfile::tempdir().unwrap(), fake, top, upstream, flags).await
    }

    async fn at(folder: TempDir, fake: FakeRegistry, top: &str, upstream: &str, flags: &[&str]) -> Scene {
        fake.push("library/app", "v1", &Image::layers(1, &[1000]));
        write(&folder, &fake.url(), top, upstream);
        let file = file(&folder);
        let running = start(&[&["serve", "--config", file.to_str().unwrap()], flags].concat()).await;
        Scene { fake, folder, running }
    }

    fn write(&self, top: &str, upstream: &str) {
        write(&self.folder, &self.fake.url(), top, upstream);
    }

    /// Writes the file, sends the signal, and waits until the file has taken effect.
    async fn reload(&self, top: &str, upstream: &str) {
        self.write(top, upstream);
        self.hang_up(APPLIED).await;
        assert_eq!(self.running.metric(SUCCESSFUL).await, 1.0);
    }

    /// Sends the signal and waits until it was counted as this.
    async fn hang_up(&self, outcome: &str) {
        let before = self.running.metric(outcome).await;
        self.running.signal(Signal::HUP);
        eventually_eq(before + 1.0, || self.running.metric(outcome)).await;
    }

    async fn status(&self, path: &str) -> u16 {
        self.running.client().get(path).await.status
    }

    /// How many checks of the tag there are while it is asked for three times.
    async fn checks(&self) -> usize {
        let before = self.fake.count("HEAD", "/manifests/v1");
        for _ in 0..3 {
            assert_eq!(self.status(MANIFEST).await, 200);
        }
        self.fake.count("HEAD", "/manifests/v1") - before
    }

    /// The last line of the log with these words.
    fn told(&self, words: &str) -> String {
        self.running
            .log
            .with(words)
            .pop()
            .unwrap_or_else(|| panic!("{words}: {:#?}", self.running.log.with("")))
    }
}

const MANIFEST: &str = "/v2/library/app/manifests/v1";
const CHANGED: &str = "the configuration was read again and takes effect";
const WAITING: &str = "take effect at the next start";

fn file(folder: &TempDir) -> PathBuf {
    folder.path().join("tidelock.toml")
}

fn write(folder: &TempDir, endpoint: &str, top: &str, upstream: &str) {
    let text = format!(
        "server.listen = [\"127.0.0.1:0\"]\nserver.admin_listen = \"127.0.0.1:0\"\n\
         cache.dir = \"{}\"\ncache.min_free = \"0B\"\n{top}\n\
         [[upstream]]\nregistry = \"docker.io\"\nendpoints = [\"{endpoint}\"]\nread_ahead = false\nproxy = \"none\"\n\
         {upstream}\n",
        folder.path().join("cache").display()
    );
    std::fs::write(file(folder), text).unwrap();
}

#[tokio::test]
async fn how_long_a_tag_is_served() {
    let scene = Scene::new(STRICT, "").await;
    assert_eq!(scene.status(MANIFEST).await, 200);
    assert_eq!(scene.checks().await, 3);
    scene.reload("freshness.tag_ttl = \"1h\"", "").await;
    assert_eq!(scene.checks().await, 0);
    scene.reload("freshness.tag_ttl = \"1h\"", "tag_ttl = \"0s\"\nstale_while_revalidate = \"0s\"").await;
    assert_eq!(scene.checks().await, 3, "an upstream's own keys");
    scene.reload("freshness.tag_ttl = \"1h\"", "tag_ttl = \"0s\"\nimmutable_tags = [\"v*\"]").await;
    assert_eq!(scene.checks().await, 0);
    let told = scene.told(CHANGED);
    for key in ["upstream[0].stale_while_revalidate", "upstream[0].immutable_tags"] {
        assert!(told.contains(key), "{told}");
    }
    assert!(!told.contains("tag_ttl"), "{told}");
}

#[tokio::test]
async fn what_may_be_pulled_and_by_which_name() {
    let scene = Scene::new("", "").await;
    assert_eq!(scene.status(MANIFEST).await, 200);
    let explained = "/api/v1/explain?image=docker.io/library/app:v1";
    let catalog = || async { scene.running.client().get("/v2/_catalog").await.text() };
    assert!(catalog().await.contains("library/app"));
    let by_host = || async {
        let client = scene.running.client().with_header("host", "hub.example");
        client.get("/v2/ghcr.io/app/manifests/v1").await;
        scene.fake.count("HEAD", "/v2/ghcr.io/app/") + scene.fake.count("HEAD", "/v2/library/ghcr.io/app/")
    };
    assert_eq!(by_host().await, 0, "it looks like another registry, which is not mirrored");

    scene.reload("", "deny = [\"library/app\"]\nhosts = [\"hub.example\"]").await;
    assert_eq!((scene.status(MANIFEST).await, scene.running.admin().get(explained).await.status), (403, 403));
    assert!(!catalog().await.contains("library/app"));
    assert!(by_host().await > 0, "{:?}", scene.fake.log().summary());

    scene.reload("", "allow = [\"other/**\"]").await;
    assert_eq!(scene.status(MANIFEST).await, 403);
    scene.reload("", "").await;
    assert_eq!((scene.status(MANIFEST).await, scene.running.admin().get(explained).await.status), (200, 200));
}

#[tokio::test]
async fn what_is_logged_and_how() {
    let scene = Scene::new("log.level = \"warn\"", "").await;
    let log = &scene.running.log;
    assert_eq!(scene.status(MANIFEST).await, 200);
    scene.reload("log.level = \"warn,tidelock=debug\"", "").await;
    assert!(log.with(" request ").is_empty() && log.with("asked upstream").is_empty(), "{:#?}", log.with(""));
    log.has("changed=\"log.level\"").await;
    assert_eq!(scene.status("/v2/library/app/tags/list").await, 200);
    log.has(" request ").await;
    log.has("asked upstream").await;

    scene.reload("log.format = \"json\"", "").await;
    assert!(scene.told(CHANGED).contains("log.format, log.level"), "{:#?}", log.with(CHANGED));
    assert_eq!(scene.status("/v2/library/app/manifests/none").await, 404);
    log.has("\"path\":\"/v2/library/app/manifests/none\"").await;
    let line: Value = serde_json::from_str(&scene.told("manifests/none")).unwrap();
    assert_eq!((&line["message"], &line["level"]), (&"request".into(), &"INFO".into()));
    let asked = log.with("asked upstream").len();

    // The last that is heard is that there is nothing more to hear.
    scene.reload("log.level = \"error\"", "").await;
    log.has("log.format, log.level").await;
    let before = log.with("").len();
    assert_eq!(scene.status("/v2/library/app/manifests/nothing").await, 404);
    let log = scene.running.stop().await;
    assert_eq!(
        (log.with("").len(), log.with("asked upstream").len()),
        (before, asked),
        "{:#?}",
        log.with("")
    );
}

#[tokio::test]
async fn a_smaller_cache_is_small_within_seconds() {
    const MIB: f64 = (1 << 20) as f64;
    let scene = Scene::new("cache.max_size = \"1GiB\"", "").await;
    let blobs: Vec<Blob> = (0..8).map(|seed| Blob::random(seed, 1 << 20)).collect();
    for blob in &blobs {
        scene.fake.put_blob("library/app", blob);
        assert!(scene.running.client().blob("library/app", &blob.digest).await.unwrap() == blob.bytes);
    }
    eventually_eq(8.0 * MIB, || scene.running.metric("tidelock_cache_bytes")).await;
    scene.reload("cache.max_size = \"3MiB\"", "").await;
    assert_eq!(scene.running.metric("tidelock_cache_limit_bytes").await, 3.0 * MIB);
    eventually(|| async { scene.running.metric("tidelock_cache_bytes").await <= 3.0 * MIB }).await;
    scene.fake.clear();
    let last = blobs.last().unwrap();
    assert!(scene.running.client().blob("library/app", &last.digest).await.unwrap() == last.bytes);
    assert_eq!(scene.fake.total(), 0, "the latest is kept");
    scene.reload("cache.max_size = \"50%\"", "").await;
    assert!(scene.running.metric("tidelock_cache_limit_bytes").await > 3.0 * MIB);
}

#[tokio::test]
async fn offline_and_back() {
    let scene = Scene::new(STRICT, "").await;
    assert_eq!(scene.status(MANIFEST).await, 200);
    scene.reload(&format!("offline = true\n{STRICT}"), "").await;
    scene.fake.clear();
    assert_eq!(scene.status(MANIFEST).await, 200);
    assert_eq!(scene.status("/v2/library/app/manifests/v2").await, 404);
    assert_eq!(scene.fake.total(), 0);
    scene.reload(STRICT, "").await;
    assert_eq!(scene.checks().await, 3);
}

/// What was given at the start by flag wins over the file then and ever after.
#[tokio::test]
async fn flags_go_on_to_win() {
    let fake = FakeRegistry::start().await;
    let scene = Scene::of(fake, "cache.max_size = \"1GiB\"", "", &["--max-size", "2GiB", "--offline"]).await;
    let limit = "tidelock_cache_limit_bytes";
    assert_eq!(scene.running.metric(limit).await, (2u64 << 30) as f64);
    scene.reload("cache.max_size = \"3GiB\"\noffline = false", "").await;
    assert_eq!(scene.running.metric(limit).await, (2u64 << 30) as f64);
    assert_eq!(scene.status(MANIFEST).await, 404);
    assert!(scene.told(CHANGED).contains("no key has changed"), "{}", scene.told(CHANGED));
}

/// Reads the head of an answer on a connection of its own, which stays open.
async fn connected(running: &Running) -> TcpStream {
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n").await.unwrap();
    stream
}

async fn answered(stream: &mut TcpStream) {
    let mut head = [0; 12];
    within("an answer", stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[tokio::test]
async fn how_many_clients_there_may_be() {
    let scene = Scene::new("server.max_connections = 1", "").await;
    let mut first = connected(&scene.running).await;
    answered(&mut first).await;
    let mut second = connected(&scene.running).await;
    scene.running.log.has("every connection slot is taken").await;
    scene.reload("server.max_connections = 2", "").await;
    answered(&mut second).await;
    assert_eq!(scene.running.metric("tidelock_connections").await, 2.0);
    // Those that are open stay so; of the next ones there may be one.
    scene.reload("server.max_connections = 1", "").await;
    drop((first, second));
    answered(&mut connected(&scene.running).await).await;
}

/// One that is under way goes on as it was begun, whatever is said meanwhile and how often.
#[tokio::test]
async fn a_download_goes_on() {
    let scene = Scene::new("", "").await;
    let blob = Blob::random(1, 700_000);
    scene.fake.put_blob("library/app", &blob);
    let gate = Gate::new();
    scene.fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, 400_000));
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let mut transfer = scene.running.client().get_streaming(&path).await;
    assert!(transfer.read(100_000).await == blob.bytes[..100_000]);
    for seconds in 1..=5 {
        let upstream = format!(
            "idle_timeout = \"{seconds}ms\"\nresponse_timeout = \"1{seconds}s\"\nmax_connections = {seconds}\n\
             requests_per_second = {seconds}\ninsecure = {}\ndeny = [\"library/*\"]",
            seconds % 2 == 0
        );
        scene.reload("cache.max_size = \"2MiB\"", &upstream).await;
    }
    assert_eq!(scene.status(&path).await, 403, "new ones go by what holds now");
    gate.open();
    let (rest, error) = transfer.read_to_end().await;
    assert!(error.is_none() && rest == blob.bytes[100_000..]);
    assert_eq!(scene.fake.blob_gets(&blob.digest), 1);
}

/// New requests go by the new limits: one at a time, and no longer than so.
#[tokio::test]
async fn how_an_upstream_is_asked() {
    let scene = Scene::new(STRICT, "response_timeout = \"1h\"").await;
    let gate = Gate::new();
    scene.fake.fault(Match::path("/manifests/slow"), Times::Always, Fault::HoldHead(gate.clone()));
    scene.reload(STRICT, "response_timeout = \"50ms\"").await;
    let reply = scene.running.client().get("/v2/library/app/manifests/slow").await;
    assert_eq!(reply.status, 504, "{}", reply.text());

    scene.reload(&format!("schedule.max_wait = \"10ms\"\n{STRICT}"), "max_connections = 1").await;
    let path = "/v2/library/app/manifests/slow";
    let client = scene.running.client();
    let held = tokio::spawn(async move { client.request(Method::GET, path, &[]).await.status });
    eventually(|| async { scene.fake.count("HEAD", "/manifests/slow") >= 2 }).await;
    assert_eq!(scene.status("/v2/library/app/manifests/other").await, 503);
    scene.reload(&format!("schedule.max_wait = \"10ms\"\n{STRICT}"), "max_connections = 2").await;
    assert_eq!(scene.status("/v2/library/app/manifests/other").await, 404);
    gate.open();
    assert_eq!(within("the one that was held", held).await.unwrap(), 404);
}
