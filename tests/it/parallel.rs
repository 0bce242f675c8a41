//! One large blob over several connections, where each of them is slow and the line is not. The clock stands still
//! unless a test moves it, so that how fast a connection is does not depend on the machine.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal;
use tempfile::TempDir;
use tidelock::config::Config;
use tokio::sync::Semaphore;

use crate::support::client::PullError;
use crate::support::eventually::eventually;
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, files};
use crate::support::images::Blob;
use crate::support::log::Record;
use crate::support::program::{configured, start};
use crate::support::registry::FakeRegistry;
use crate::support::time::{Frozen, rest};

const MIB: usize = 1 << 20;
/// What a connection brings at a time, and how often: 10 MiB a second.
const CHUNK: usize = 256 << 10;
const EVERY: Duration = Duration::from_millis(25);
const REPOSITORY: &str = "library/app";

struct Scene {
    clock: Frozen,
    fake: FakeRegistry,
    house: House,
}

/// Each connection is slow.
fn slow() -> Fault {
    Fault::Slow { chunk: CHUNK, every: EVERY }
}

impl Scene {
    async fn new() -> Scene {
        Scene::with(|_| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut Config)) -> Scene {
        let clock = Frozen::new();
        let fake = FakeRegistry::start().await;
        let house = House::with(&fake, |config| {
            config.upstreams[0].parallel_ranges = true;
            adjust(config);
        })
        .await;
        Scene { clock, fake, house }
    }

    fn put(&self, seed: u64, mib: usize) -> Blob {
        let blob = Blob::random(seed, mib * MIB);
        self.fake.put_blob(REPOSITORY, &blob);
        blob
    }

    /// Pulls it, moving the clock; how long that took by the clock.
    async fn pull(&self, blob: &Blob) -> (Result<Bytes, PullError>, Duration) {
        let (client, digest) = (self.house.client().patient(Duration::from_secs(600)), blob.digest.clone());
        let pulling = tokio::spawn(async move { client.blob(REPOSITORY, &digest).await });
        let begun = self.clock.elapsed();
        self.go_on(|| pulling.is_finished()).await;
        (pulling.await.unwrap(), self.clock.elapsed() - begun)
    }

    /// The same of one that comes as it should. Each byte was sent once, but for what was on its way when a connection
    /// was given up; how often it was asked for.
    async fn pull_right(&self, blob: &Blob) -> (usize, Duration) {
        self.fake.clear();
        let (pulled, took) = self.pull(blob).await;
        assert!(pulled.unwrap() == blob.bytes, "the bytes are right");
        let gets = self.gets();
        let sent: u64 = gets.iter().map(|get| get.sent).sum();
        let most = blob.len() as u64 + (gets.len() * 8 * MIB) as u64;
        assert!((blob.len() as u64..most).contains(&sent), "{sent} bytes of {}", blob.len());
        (gets.len(), took)
    }

    /// Moves the clock until that is so.
    async fn go_on(&self, until: impl Fn() -> bool) {
        while !until() {
            rest(|| (self.gets().iter().map(|get| get.sent).sum::<u64>(), until())).await;
            self.clock.advance(EVERY).await;
        }
    }

    fn gets(&self) -> Vec<Record> {
        let requests = self.fake.requests().into_iter();
        requests.filter(|get| get.method == "GET" && get.path.contains("/blobs/")).collect()
    }

    /// The parts that were asked for, in order.
    fn parts(&self) -> Vec<Range<usize>> {
        let gets = self.gets();
        let ranges =
            gets.iter().filter_map(|get| get.header("range").strip_prefix("bytes=")?.split_once('-'));
        let mut parts: Vec<_> =
            ranges.map(|(from, last)| from.parse().unwrap()..last.parse::<usize>().unwrap() + 1).collect();
        parts.sort_by_key(|part| part.start);
        parts
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_connection_is_helped_and_what_was_learned_is_remembered() {
    let scene = Scene::new().await;
    let blob = scene.put(1, 64);
    scene.fake.fault(Match::blobs(), Times::Always, slow());
    let (_, took) = scene.pull_right(&blob).await;
    assert!(took < Duration::from_secs(4), "{took:?} in place of 6.4 s");
    let parts = scene.parts();
    assert!(parts.len() >= 3, "{parts:?}");
    assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start), "{parts:?}");
    assert_eq!(parts.last().unwrap().end, blob.len());
    // What is before the first part came over the first connection, which then fetched parts too.
    let by_others = scene.house.metric("tidelock_parts_total{upstream=\"docker.io\"}").await;
    assert!((2.0..=parts.len() as f64).contains(&by_others), "{by_others}");

    let next = scene.put(2, 64);
    let (_, took) = scene.pull_right(&next).await;
    assert!(took < Duration::from_secs(2), "{took:?}: nothing had to be learned");
    let begun = scene.gets().iter().filter(|get| get.at - scene.gets()[0].at < 4 * EVERY).count();
    assert!(begun >= 4, "{begun} connections from the start");
    assert!(scene.fake.peak_concurrency() <= 8);
    assert_eq!(scene.fake.count("GET", "/manifests/"), 0);
}

#[tokio::test(start_paused = true)]
async fn clients_get_the_bytes_in_order_meanwhile() {
    let scene = Scene::new().await;
    let blob = scene.put(1, 64);
    scene.fake.fault(Match::blobs(), Times::Always, slow());
    let mut client =
        scene.house.client().get_streaming(&format!("/v2/{REPOSITORY}/blobs/{}", blob.digest)).await;
    let reading = tokio::spawn(async move {
        let mut halfway = None;
        let mut bytes = Vec::new();
        while let Some(piece) = client.next().await {
            bytes.extend_from_slice(&piece.unwrap());
            if bytes.len() > 32 * MIB {
                halfway.get_or_insert_with(tokio::time::Instant::now);
            }
        }
        (bytes, halfway.unwrap().elapsed())
    });
    scene.go_on(|| reading.is_finished()).await;
    let (bytes, second_half) = reading.await.unwrap();
    assert!(bytes == blob.bytes);
    assert!(second_half > 4 * EVERY, "the first half had come long before the last byte");
}

#[tokio::test(start_paused = true)]
async fn a_full_line_is_left_alone() {
    let scene = Scene::new().await;
    let line = Arc::new(Semaphore::new(1));
    scene.fake.fault(Match::blobs(), Times::Always, Fault::InTurn { chunk: CHUNK, every: EVERY, line });
    let (asked, _) = scene.pull_right(&scene.put(1, 64)).await;
    assert!((2..=8).contains(&asked), "{asked}: it was tried once");
    let (asked, _) = scene.pull_right(&scene.put(2, 48)).await;
    assert_eq!(asked, 1, "and is remembered");
    // The line may be another one by then.
    scene.clock.advance(Duration::from_secs(600)).await;
    scene.fake.lift_faults();
    scene.fake.fault(Match::blobs(), Times::Always, slow());
    let (asked, _) = scene.pull_right(&scene.put(3, 64)).await;
    assert!(asked > 2, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn not_where_it_is_switched_off_and_not_for_what_is_small() {
    let scene = Scene::with(|config| config.upstreams[0].parallel_ranges = false).await;
    scene.fake.fault(Match::blobs(), Times::Always, slow());
    assert_eq!(scene.pull_right(&scene.put(1, 32)).await.0, 1);
    let scene = Scene::new().await;
    scene.fake.fault(Match::blobs(), Times::Always, slow());
    assert_eq!(scene.pull_right(&scene.put(2, 15)).await.0, 1);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_without_parts_is_asked_once() {
    for ignores in [true, false] {
        let scene = Scene::new().await;
        if ignores {
            scene.fake.set(|behaviour| behaviour.quirks.ignore_range = true);
        } else {
            scene.fake.fault(Match::blobs().ranged(true), Times::Always, Fault::status(416));
        }
        scene.fake.fault(Match::blobs(), Times::Always, slow());
        assert_eq!(scene.pull_right(&scene.put(1, 48)).await.0, 2);
        assert_eq!(scene.pull_right(&scene.put(2, 48)).await.0, 1, "it is remembered");
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_do_not_bring_the_first_one_does() {
    for fault in [
        Fault::status(403),
        Fault::status(500),
        Fault::status(503),
        Fault::abuse(5),
        Fault::CutAfter(3 * MIB),
        Fault::StallAfter(3 * MIB),
    ] {
        let scene = Scene::new().await;
        scene.fake.fault(Match::blobs().ranged(true), Times::N(2), fault.clone());
        scene.fake.fault(Match::blobs(), Times::Always, slow());
        let (_, took) = scene.pull_right(&scene.put(1, 48)).await;
        assert!(took < Duration::from_secs(20), "{fault:?} took {took:?}");
    }
}

/// Whoever gets a bad place to fetch from does not hold up all others.
#[tokio::test(start_paused = true)]
async fn a_slow_one_of_others_is_recalled() {
    let scene = Scene::new().await;
    let dripping = Fault::Slow { chunk: 1000, every: Duration::from_secs(1) };
    scene.fake.fault(Match::blobs().ranged(true), Times::Once, dripping);
    scene.fake.fault(Match::blobs(), Times::Always, slow());
    let (_, took) = scene.pull_right(&scene.put(1, 48)).await;
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_in_one_part_are_no_blob() {
    let scene = Scene::new().await;
    let blob = scene.put(1, 48);
    scene.fake.fault(Match::blobs().ranged(true), Times::Once, Fault::WrongBytesAt(MIB));
    scene.fake.fault(Match::blobs(), Times::Always, slow());
    assert!(scene.pull(&blob).await.0.is_err());
    assert_eq!((scene.house.blobs().len(), scene.house.partials().len()), (0, 0));
    assert_eq!(scene.house.metric("tidelock_verify_failures_total{upstream=\"docker.io\"}").await, 1.0);
    scene.pull_right(&blob).await;
}

/// The real program, by its own clock: what it leaves behind has a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_midst_keeps_what_has_no_gap_before_it() {
    const AHEAD: usize = 3 * MIB;
    let (fake, folder, gate) = (FakeRegistry::start().await, TempDir::new().unwrap(), Gate::new());
    let blob = Blob::random(1, 96 * MIB);
    fake.put_blob(REPOSITORY, &blob);
    fake.fault(Match::blobs().ranged(true), Times::Once, Fault::hold_after(&gate, AHEAD));
    fake.fault(Match::blobs().ranged(false), Times::Once, slow());
    let config = configured(folder.path(), &fake.url(), "");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("parallel_ranges = false", "parallel_ranges = true")).unwrap();
    let mut running = start(&["serve", "--config", &config]).await;
    let mut client = running.client().get_streaming(&format!("/v2/{REPOSITORY}/blobs/{}", blob.digest)).await;
    client.read(MIB).await;
    let partial =
        || files(&folder.path().join("cache/ingest")).into_iter().map(|(_, size)| size).sum::<u64>();
    let sent = || fake.requests().iter().map(|get| get.sent).collect::<Vec<_>>();
    eventually(|| async {
        matches!(sent()[..], [first, ahead] if ahead == AHEAD as u64 && partial() > first)
    })
    .await;
    let first = sent()[0];
    running.signal(Signal::KILL);
    running.exit_code().await;
    let length = partial();
    gate.open();
    fake.clear();

    let running = start(&["serve", "--config", &config]).await;
    assert!(running.client().blob(REPOSITORY, &blob.digest).await.unwrap() == blob.bytes);
    let range = fake.requests()[0].header("range").to_owned();
    let from: u64 = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap().0.parse().unwrap();
    assert!(
        from > first - 2 * MIB as u64 && from < length - AHEAD as u64,
        "{from}: {first} and {AHEAD} to {length}"
    );
    running.stop().await;
}
