//! What is left after a stop, a stop cut short, and a kill; and how a stop goes.

use std::time::Duration;

use tidelock::app::Ended;

use crate::support::client::Streaming;
use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, Process, files};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

const LARGE: usize = 700_000;
/// Where the upstream holds a download, and where it is taken up: all but the tail that a crash may have torn.
const HELD: usize = 400_000;
const KEPT: usize = HELD - (64 << 10);

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

/// A registry with an image whose layer comes to a halt once, and the gate that lets it go on.
async fn halting() -> (FakeRegistry, Image, Blob, Gate) {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[LARGE, 1_000]));
    fake.push("library/app", "v1", &image);
    let (layer, gate) = (image.layer_blobs().remove(0), Gate::new());
    fake.fault(Match::blob(&layer.digest), Times::Once, Fault::hold_after(&gate, HELD));
    (fake, image, layer, gate)
}

/// A client that reads the layer, as soon as all that came is on disk.
async fn reading(house: &House, layer: &Blob) -> Streaming {
    let mut client = house.client().get_streaming(&path(layer)).await;
    assert_eq!(client.read(1_000).await, layer.bytes.slice(..1_000));
    eventually_eq(vec![HELD as u64], || async { house.partials().iter().map(|(_, size)| *size).collect() })
        .await;
    client
}

/// What ranges of a blob the upstream was asked for.
fn ranges(fake: &FakeRegistry, blob: &Blob) -> Vec<String> {
    let gets = fake.log().matching(|record| record.method == "GET" && record.path.contains(&blob.digest));
    gets.iter().map(|record| record.header("range").to_owned()).collect()
}

/// The next pull takes the download up where it was left.
async fn goes_on(house: &House, fake: &FakeRegistry, image: &Image, layer: &Blob) {
    assert_eq!(house.metric("tidelock_cache_partial_bytes").await, HELD as f64);
    fake.clear();
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(image));
    let ranges = ranges(fake, layer);
    assert!(matches!(&ranges[..], [range] if range.starts_with(&format!("bytes={KEPT}-"))), "{ranges:?}");
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    assert_eq!(house.partials(), []);
    assert_eq!(house.metric("tidelock_cache_partial_bytes").await, 0.0);
}

#[tokio::test]
async fn blobs_tags_and_proofs_stay() {
    let fake = FakeRegistry::start().await;
    let image = Image::multi_platform(1, &[LARGE, 0]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    let counted = |house: &House| {
        let house = house.admin();
        async move {
            let text = house.get("/metrics").await.text();
            let lines = text.lines().filter(|line| line.starts_with("tidelock_cache_"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        }
    };
    let before = counted(&house).await;
    fake.stop().await;
    let house =
        house.restart(|config| config.upstreams[0].freshness.tag_ttl = Duration::from_secs(3600)).await;
    assert_eq!(counted(&house).await, before);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert!(house.client().pull_like_docker("library/app", "v1").await.unwrap().is(&image));
    let stranger = format!("/v2/library/other/blobs/{}", image.blobs[0].digest);
    assert_eq!(house.client().get(&stranger).await.status, 502, "no proof came from anywhere");
    // Past its time the tag is still known, and stale.
    let house = house.restart(|config| config.upstreams[0].freshness.tag_ttl = Duration::ZERO).await;
    let reply = house.client().get("/v2/library/app/manifests/v1").await;
    assert_eq!((reply.status, reply.whole()), (200, image.top.bytes.clone()));
    assert!(reply.header("warning").starts_with("299"));
}

#[tokio::test]
async fn a_broken_download_goes_on_after_a_restart() {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[LARGE]));
    fake.push("library/app", "v1", &image);
    let layer = image.layer_blobs().remove(0);
    fake.fault(Match::blob(&layer.digest).ranged(false), Times::Once, Fault::CutAfter(HELD));
    let dead = fake.fault(Match::blob(&layer.digest).ranged(true), Times::Always, Fault::HangUp);
    let house = House::over(&fake).await;
    assert!(house.client().get(&path(&layer)).await.truncated);
    let house = house.restart(|_| {}).await;
    dead.lift();
    goes_on(&house, &fake, &image, &layer).await;
}

#[tokio::test]
async fn a_stop_waits_for_what_runs_and_takes_nothing_new() {
    let (fake, image, layer, gate) = halting().await;
    let house = House::over(&fake).await;
    let mut client = reading(&house, &layer).await;
    let (door, admin, left) = (house.client(), house.admin(), house.left());
    assert_eq!(admin.get("/readyz").await.status, 200);
    house.begin_stop();
    eventually(|| async { door.try_get("/v2/").await.is_err() }).await;
    assert_eq!((admin.get("/readyz").await.status, admin.get("/healthz").await.status), (503, 200));
    let ended = tokio::spawn(house.ended());
    gate.open();
    assert_eq!(client.read_to_end().await, (layer.bytes.slice(1_000..), None));
    assert_eq!(ended.await.unwrap(), Ended::Drained);
    let house = left.open(|_| {}).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(ranges(&fake, &layer), [""], "it was kept");
}

/// I3: nobody reads it any more, and still it is not thrown away.
#[tokio::test]
async fn a_stop_waits_for_a_download_that_nobody_reads() {
    let (fake, _, layer, gate) = halting().await;
    let house = House::over(&fake).await;
    drop(reading(&house, &layer).await);
    eventually_eq(0.0, || house.metric("tidelock_flight_followers")).await;
    let (door, left) = (house.client(), house.left());
    house.begin_stop();
    eventually(|| async { door.try_get("/v2/").await.is_err() }).await;
    gate.open();
    assert_eq!(house.ended().await, Ended::Drained);
    fake.stop().await;
    let house = left.open(|_| {}).await;
    assert_eq!(house.client().blob("library/app", &layer.digest).await.unwrap(), layer.bytes);
}

#[tokio::test]
async fn a_stop_that_is_cut_short_leaves_what_came() {
    for by_signal in [true, false] {
        let (fake, image, layer, _gate) = halting().await;
        let (process, upstream) = (Process::new(), fake.clone());
        let patience = Duration::from_millis(if by_signal { 20_000 } else { 100 });
        let house = async move { House::with(&upstream, |c| c.server.drain_timeout = patience).await };
        let house = process.house(house).await;
        let mut client = reading(&house, &layer).await;
        let (door, left) = (house.client(), house.left());
        house.begin_stop();
        if by_signal {
            eventually(|| async { door.try_get("/v2/").await.is_err() }).await;
            house.cut_short();
        }
        let ended = house.ended().await;
        assert!(matches!(ended, Ended::CutShort(running) if running > 0), "{ended:?}");
        process.kill().await;
        let (read, error) = client.read_to_end().await;
        assert!(error.is_some() && read == layer.bytes.slice(1_000..1_000 + read.len()));
        let house = left.open(|_| {}).await;
        goes_on(&house, &fake, &image, &layer).await;
    }
}

#[tokio::test]
async fn a_kill_costs_nothing_that_was_finished() {
    let (fake, image, layer, _gate) = halting().await;
    let done = Image::layers(2, &[LARGE, 5]);
    fake.push("library/app", "done", &done);
    let (process, upstream) = (Process::new(), fake.clone());
    let house = process.house(async move { House::over(&upstream).await }).await;
    assert!(house.client().pull("library/app", "done").await.unwrap().is(&done));
    let client = reading(&house, &layer).await;
    eventually_eq(1.0, || house.metric("tidelock_flights")).await;
    let left = house.left();
    process.kill().await;
    drop((client, house));
    let house = left.open(|_| {}).await;
    fake.clear();
    assert!(house.client().pull("library/app", "done").await.unwrap().is(&done));
    assert_eq!(fake.total(), 1, "one HEAD for the tag: {:?}", fake.log().summary());
    goes_on(&house, &fake, &image, &layer).await;
}

#[tokio::test]
async fn without_its_index_the_cache_costs_free_questions_only() {
    let (fake, image) = (FakeRegistry::start().await, Image::multi_platform(1, &[LARGE, 7]));
    fake.push("library/app", "v1", &image);
    for damage in [None, Some(&b"this is no index"[..])] {
        let house = House::over(&fake).await;
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
        let left = house.left();
        assert_eq!(house.stop().await, Ended::Drained);
        let (held, index) = (files(&left.folder().join("blobs")), left.folder().join("index.redb"));
        match damage {
            None => std::fs::remove_file(index).unwrap(),
            Some(text) => std::fs::write(index, text).unwrap(),
        }
        fake.clear();
        let house = left.open(|_| {}).await;
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
        assert_eq!(fake.count("GET", "/v2/"), 0, "{:?}", fake.log().summary());
        eventually_eq(held.len() as f64, || house.metric("tidelock_cache_blobs")).await;
        assert_eq!(house.blobs(), held);
        let bytes: u64 = held.iter().map(|(_, size)| size).sum();
        assert_eq!(house.metric("tidelock_cache_bytes").await, bytes as f64);
    }
}
