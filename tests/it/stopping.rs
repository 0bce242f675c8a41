//! Stopping the real program with downloads under way: what runs may finish, within `drain_timeout`.

use std::io::ErrorKind;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::client::Streaming;
use crate::support::eventually::{eventually, eventually_eq, patience, within};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::files;
use crate::support::images::Blob;
use crate::support::program::{Running, configured, start};
use crate::support::registry::FakeRegistry;

const DOWNLOADS: usize = 50;
const SIZE: usize = 700_000;
/// Where the upstream holds each download, and where it is taken up: all but the tail that a crash may have torn.
const HELD: usize = 400_000;
const KEPT: usize = HELD - (64 << 10);
/// What each client has read when the stop begins.
const READ: usize = 100_000;

/// Fifty clients in the midst of fifty cold blobs, which the upstream holds up.
struct Scene {
    fake: FakeRegistry,
    gate: Gate,
    blobs: Vec<Blob>,
    running: Running,
    transfers: Vec<Streaming>,
    config: String,
    folder: TempDir,
}

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

async fn scene(more: &str) -> Scene {
    let (fake, gate, folder) = (FakeRegistry::start().await, Gate::new(), tempfile::tempdir().unwrap());
    let blobs: Vec<Blob> = (0..DOWNLOADS as u64).map(|seed| Blob::random(seed, SIZE)).collect();
    for blob in &blobs {
        fake.put_blob("library/app", blob);
    }
    fake.fault(Match::blobs().ranged(false), Times::Always, Fault::hold_after(&gate, HELD));
    let config = configured(folder.path(), &fake.url(), more);
    let running = start(&["serve", "--config", &config]).await;
    let transfers = join_all(blobs.iter().map(|blob| async {
        let mut transfer = running.client().get_streaming(&path(blob)).await;
        assert!(transfer.read(READ).await == blob.bytes[..READ]);
        transfer
    }))
    .await;
    let scene = Scene { fake, gate, blobs, running, transfers, config, folder };
    eventually_eq(vec![HELD as u64; DOWNLOADS], || async { scene.partials() }).await;
    scene
}

impl Scene {
    /// The sizes of what is unfinished on disk.
    fn partials(&self) -> Vec<u64> {
        files(&self.folder.path().join("cache/ingest")).into_iter().map(|(_, size)| size).collect()
    }

    /// Sends the signal and waits until it was heard.
    async fn stop_by(&self, signal: Signal) {
        self.running.signal(signal);
        self.running.log.has("stopping: running transfers may finish").await;
    }

    /// From the first moment on readiness says no and clients are refused, while health says yes.
    async fn is_draining(&self) {
        let ready = self.running.admin().get("/readyz").await;
        assert_eq!((ready.status, ready.text().as_str()), (503, "draining\n"));
        assert_eq!(self.running.admin().get("/healthz").await.status, 200);
        let refused = || async {
            let error = TcpStream::connect(self.running.address).await.err();
            error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        eventually(refused).await;
        for _ in 0..5 {
            assert!(refused().await, "and it stays so");
        }
    }

    /// The next start takes all of them up where they were left.
    async fn goes_on(mut self) {
        let read = join_all(self.transfers.iter_mut().map(Streaming::read_to_end)).await;
        for ((rest, error), blob) in read.into_iter().zip(&self.blobs) {
            assert!(error.is_some(), "the client sees that it is not whole");
            assert!(rest == blob.bytes[READ..READ + rest.len()]);
        }
        assert_eq!(self.partials(), vec![HELD as u64; DOWNLOADS]);
        self.gate.open();
        self.fake.clear();
        let running = start(&["serve", "--config", &self.config]).await;
        let again = join_all(self.blobs.iter().map(|blob| async {
            let bytes = running.client().blob("library/app", &blob.digest).await.unwrap();
            assert!(bytes == blob.bytes);
        }));
        again.await;
        for blob in &self.blobs {
            let gets = self.fake.log().matching(|request| request.path.contains(&blob.digest));
            let ranges: Vec<&str> = gets.iter().map(|request| request.header("range")).collect();
            assert!(
                matches!(&ranges[..], [range] if range.starts_with(&format!("bytes={KEPT}-"))),
                "{ranges:?}"
            );
        }
        running.stop().await;
    }
}

/// By either signal; whoever asks on a connection that rests, or not at all, is not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_downloads_finish() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut scene = scene("server.drain_timeout = \"10m\"").await;
        let mut resting = TcpStream::connect(scene.running.address).await.unwrap();
        resting.write_all(b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n").await.unwrap();
        assert!(within("an answer", resting.read(&mut [0; 4096])).await.unwrap() > 0);
        let mut silent = TcpStream::connect(scene.running.address).await.unwrap();
        eventually_eq((DOWNLOADS + 2) as f64, || scene.running.metric("tidelock_connections")).await;

        scene.stop_by(signal).await;
        scene.is_draining().await;
        for stream in [&mut resting, &mut silent] {
            assert_eq!(within("the end", stream.read(&mut [0])).await.unwrap(), 0);
        }
        eventually_eq(DOWNLOADS as f64, || scene.running.metric("tidelock_connections")).await;
        assert_eq!(scene.running.child.try_wait().unwrap(), None, "it waits for the downloads");
        scene.gate.open();
        let read = join_all(scene.transfers.iter_mut().map(Streaming::read_to_end)).await;
        for ((rest, error), blob) in read.into_iter().zip(&scene.blobs) {
            assert!(error.is_none() && rest == blob.bytes[READ..]);
        }
        assert_eq!(scene.running.exit_code().await, Some(0));
        scene.running.log.has("stopped").await;
        assert!(scene.running.log.with("stopped before").is_empty());
        assert!(scene.partials().is_empty());

        // All of them were kept.
        scene.fake.clear();
        let running = start(&["serve", "--config", &scene.config]).await;
        for blob in &scene.blobs {
            assert!(running.client().blob("library/app", &blob.digest).await.unwrap() == blob.bytes);
        }
        assert_eq!(scene.fake.count("GET", "/blobs/"), 0, "{:?}", scene.fake.log().summary());
        running.stop().await;
    }
}

/// The partial files stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_downloads_that_cannot_finish_in_time_go_on_at_the_next_start() {
    let mut scene = scene("server.drain_timeout = \"1s\"").await;
    let begun = Instant::now();
    scene.stop_by(Signal::TERM).await;
    assert_eq!(scene.running.exit_code().await, Some(0));
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < patience(Duration::from_secs(10)), "{took:?}");
    scene.running.log.has("stopped before everything had ended").await;
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_cuts_fifty_downloads_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        let mut scene = scene("server.drain_timeout = \"10m\"").await;
        scene.stop_by(first).await;
        scene.is_draining().await;
        assert_eq!(scene.running.child.try_wait().unwrap(), None, "it waits for the downloads");
        scene.running.signal(second);
        assert_eq!(scene.running.exit_code().await, Some(0));
        scene.running.log.has("stopped before everything had ended").await;
        scene.goes_on().await;
    }
}

/// What they asked for is here; they do not take it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_hold_it_up_no_longer_than_drain_timeout() {
    let (fake, folder) = (FakeRegistry::start().await, tempfile::tempdir().unwrap());
    let config = configured(folder.path(), &fake.url(), "server.drain_timeout = \"1s\"");
    let mut running = start(&["serve", "--config", &config]).await;
    let blob = Blob::random(1, 16 << 20);
    fake.put_blob("library/app", &blob);
    let (client, path) = (running.client(), path(&blob));
    let held = join_all((0..DOWNLOADS).map(|_| client.get_streaming(&path))).await;
    eventually_eq(0.0, || running.metric("tidelock_flights")).await;
    assert_eq!(running.metric("tidelock_connections").await, DOWNLOADS as f64);
    let begun = Instant::now();
    running.signal(Signal::TERM);
    assert_eq!(running.exit_code().await, Some(0));
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < patience(Duration::from_secs(10)), "{took:?}");
    running.log.has("stopped before everything had ended").await;
    drop(held);
    let running = start(&["serve", "--config", &config]).await;
    assert!(running.client().blob("library/app", &blob.digest).await.unwrap() == blob.bytes);
    assert_eq!(fake.blob_gets(&blob.digest), 1);
    running.stop().await;
}
