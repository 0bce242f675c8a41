//! The real program as a process: how it starts, what it writes, how it ends.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::support::client::{Client, Streaming};
use crate::support::eventually::{eventually, within};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::images::{Blob, Image, sha256};
use crate::support::registry::FakeRegistry;

/// Well over the hold-back, so that bytes flow before the proof.
const LARGE: usize = 300_000;

/// The program, running.
struct Running {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    log: Lines,
    reading: JoinHandle<()>,
}

/// What a process has written so far.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

/// A program that ended by itself.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Lines {
    /// The second value ends when the stream does.
    fn of(stream: impl AsyncRead + Unpin + Send + 'static) -> (Lines, JoinHandle<()>) {
        let lines = Lines::default();
        let kept = lines.clone();
        let reading = tokio::spawn(async move {
            let mut reader = BufReader::new(stream).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                kept.0.lock().unwrap().push(line);
            }
        });
        (lines, reading)
    }

    fn with(&self, word: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|line| line.contains(word)).cloned().collect()
    }

    async fn has(&self, word: &str) {
        eventually(|| async { !self.with(word).is_empty() }).await;
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
    command.env_clear().args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

/// Starts the program and waits until it has said where it listens.
async fn start(arguments: &[&str]) -> Running {
    let mut child = command(arguments).spawn().unwrap();
    let (log, reading) = Lines::of(child.stderr.take().unwrap());
    let (out, _) = Lines::of(child.stdout.take().unwrap());
    eventually(|| {
        assert!(child.try_wait().unwrap().is_none(), "it ended: {:#?}", log.with(""));
        std::future::ready(out.with("registry-mirrors").len() == 1)
    })
    .await;
    let place = |word: &str| {
        let line = out.with(word).remove(0);
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("http://"));
        address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    };
    Running { address: place("  clients "), admin: place("  admin "), child, log, reading }
}

/// Runs the program to its end.
async fn ended(arguments: &[&str]) -> Ended {
    let output = within("the program", command(arguments).output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Running {
    fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address))
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    async fn exit_code(&mut self) -> Option<i32> {
        within("the program to end", self.child.wait()).await.unwrap().code()
    }

    async fn stop(mut self) -> Lines {
        self.signal(Signal::TERM);
        assert_eq!(self.exit_code().await, Some(0));
        within("the log to end", self.reading).await.unwrap();
        self.log
    }
}

/// A configuration over this upstream, whose cache is in the folder.
fn configured(folder: &Path, endpoint: &str, more: &str) -> String {
    let text = format!(
        "server.listen = [\"127.0.0.1:0\"]\nserver.admin_listen = \"127.0.0.1:0\"\n\
         cache.dir = \"{}\"\ncache.max_size = \"1GiB\"\ncache.min_free = \"0B\"\n{more}\n\
         [[upstream]]\nregistry = \"docker.io\"\ndefault = true\nendpoints = [\"{endpoint}\"]\n\
         read_ahead = false\nproxy = \"none\"\n",
        folder.join("cache").display()
    );
    let path: PathBuf = folder.join("tidelock.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

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
    let admin = Client::new(&format!("http://{}", running.admin));
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
    let ready = Client::new(&format!("http://{}", running.admin)).get("/readyz").await;
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
    let admin = Client::new(&format!("http://{}", running.admin));
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
