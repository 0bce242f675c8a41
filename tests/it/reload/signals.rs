//! SIGHUP never ends the mirror.

use std::process::Stdio;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::{APPLIED, MANIFEST, REFUSED, STRICT, SUCCESSFUL, Scene, file};
use crate::support::eventually::{eventually, eventually_eq, within};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::images::Blob;
use crate::support::program::start;
use crate::support::registry::FakeRegistry;

#[tokio::test]
async fn without_a_file_there_is_nothing_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let flags =
        ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cache-dir", cache, "--offline"];
    let running = start(&flags).await;
    running.signal(Signal::HUP);
    running.log.has("SIGHUP changes nothing: there is no configuration file").await;
    assert_eq!(running.client().get("/v2/").await.status, 200);
    assert_eq!(running.metric(REFUSED).await, 1.0);
    assert_eq!(running.metric(SUCCESSFUL).await, 1.0, "what was said at the start holds");
    running.stop().await;
}

/// However many come, what was written before the last one holds in the end.
#[tokio::test]
async fn many_in_a_row() {
    let scene = Scene::new(STRICT, "").await;
    let limit = || scene.running.metric("tidelock_cache_limit_bytes");
    for gib in 1..=20 {
        scene.write(&format!("{STRICT}\ncache.max_size = \"{gib}GiB\""), "");
        scene.running.signal(Signal::HUP);
        scene.running.signal(Signal::HUP);
    }
    eventually_eq((20u64 << 30) as f64, limit).await;
    assert_eq!(scene.status(MANIFEST).await, 200);
    let applied = scene.running.metric(APPLIED).await;
    assert!((1.0..=40.0).contains(&applied), "{applied}");
    scene.running.stop().await;
}

#[tokio::test]
async fn while_it_drains() {
    let mut scene = Scene::new("", "").await;
    let blob = Blob::random(1, 300_000);
    scene.fake.put_blob("library/app", &blob);
    let gate = Gate::new();
    scene.fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, 200_000));
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let mut transfer = scene.running.client().get_streaming(&path).await;
    transfer.read(1000).await;
    scene.running.signal(Signal::TERM);
    scene.running.log.has("stopping").await;
    scene.running.signal(Signal::HUP);
    assert_eq!(scene.running.admin().get("/healthz").await.status, 200);
    assert_eq!(scene.running.child.try_wait().unwrap(), None);
    gate.open();
    let (rest, error) = transfer.read_to_end().await;
    assert!(error.is_none() && rest == blob.bytes[1000..]);
    assert_eq!(scene.running.exit_code().await, Some(0));
}

/// A pipe in the place of the file holds the start up where it reads its configuration.
#[tokio::test]
async fn while_it_starts() {
    let scene = Scene::new(STRICT, "").await;
    let text = std::fs::read_to_string(file(&scene.folder)).unwrap();
    let text = text.replace("/cache\"", "/second\"");
    let pipe = scene.folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidelock"))
        .args(["serve", "--config", pipe.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Opened for writing as soon as somebody reads.
    let writer =
        tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(pipe).unwrap());
    let mut writer = within("it to read", writer).await.unwrap();
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    for _ in 0..5 {
        kill_process(pid, Signal::HUP).unwrap();
    }
    std::io::Write::write_all(&mut writer, text.as_bytes()).unwrap();
    drop(writer);
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let banner = within("the banner", out.next_line()).await.unwrap();
    assert!(banner.is_some_and(|line| line.starts_with("tidelock ")));
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(within("the end", child.wait()).await.unwrap().code(), Some(0));
}

/// A terminal that is closed sends SIGHUP and takes standard error along: the mirror goes on without a log.
#[tokio::test]
async fn with_nobody_to_read_the_log() {
    let fake = FakeRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    super::write(&folder, &fake.url(), "", "");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidelock"))
        .args(["serve", "--config", file(&folder).to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut address = None;
    while address.is_none() {
        let line = within("the banner", out.next_line()).await.unwrap().unwrap();
        address = line.strip_prefix("  clients ").map(|line| line.trim().to_owned());
    }
    drop(child.stderr.take());
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    let client = crate::support::client::Client::new(&address.unwrap());
    for _ in 0..3 {
        kill_process(pid, Signal::HUP).unwrap();
        assert_eq!(client.get("/v2/").await.status, 200);
        assert_eq!(client.get("/v2/library/app/manifests/none").await.status, 404);
    }
    eventually(|| async { client.get("/v2/").await.status == 200 }).await;
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(within("the end", child.wait()).await.unwrap().code(), Some(0));
}
