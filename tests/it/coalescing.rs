//! One fetch however many ask, and it outlives them.

use futures_util::future::join_all;

use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::House;
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

/// Well over the hold-back, so that bytes flow before the proof.
const LARGE: usize = 700_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_and_one_cold_image() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[LARGE, 300_000, 1_000, 1, 0]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    let clients = (0..100).map(|_| {
        let client = house.client();
        async move { client.pull("library/app", "v1").await.unwrap() }
    });
    for pulled in join_all(clients).await {
        assert!(pulled.is(&image));
    }
    for blob in &image.blobs {
        assert_eq!(fake.blob_gets(&blob.digest), 1, "{}", blob.digest);
    }
    assert_eq!(fake.counted(), image.manifests.len());
    // Those who come late are served too, at no more than a free HEAD.
    fake.clear();
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert_eq!((fake.count("GET", "/v2/"), fake.count("HEAD", "/manifests/")), (0, 1));
}

/// A large layer whose fetch stops after so many bytes, until the gate opens.
struct Held {
    fake: FakeRegistry,
    house: House,
    layer: Blob,
    path: String,
    gate: Gate,
}

async fn held_after(bytes: usize) -> Held {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(2, &[LARGE]);
    fake.push("library/app", "v1", &image);
    let layer = image.layer_blobs().remove(0);
    let gate = Gate::new();
    fake.fault(Match::blob(&layer.digest), Times::Once, Fault::hold_after(&gate, bytes));
    let house = House::over(&fake).await;
    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    Held { fake, house, layer, path, gate }
}

#[tokio::test]
async fn late_joiners_read_the_growing_file_and_first_bytes_come_early() {
    let Held { fake, house, layer, path, gate } = held_after(300_000).await;
    let mut first = house.client().get_streaming(&path).await;
    // The upstream holds the rest back, and these are here already.
    assert_eq!(first.read(200_000).await, layer.bytes.slice(..200_000));
    let mut late = house.client().get_streaming(&path).await;
    assert_eq!(late.read(200_000).await, layer.bytes.slice(..200_000));
    let part = house.client().get_range(&path, "bytes=1000-1999").await;
    assert_eq!((part.status, part.whole()), (206, layer.bytes.slice(1000..2000)));
    eventually_eq(2.0, || house.metric("tidelock_flight_followers")).await;
    gate.open();
    for mut client in [first, late] {
        let (rest, error) = client.read_to_end().await;
        assert!(error.is_none());
        assert_eq!(rest, layer.bytes.slice(200_000..));
    }
    assert_eq!(fake.blob_gets(&layer.digest), 1);
}

#[tokio::test]
async fn the_leader_leaves_and_the_others_finish() {
    let Held { fake, house, layer, path, gate } = held_after(100_000).await;
    let mut leader = house.client().get_streaming(&path).await;
    leader.read(1_000).await;
    let mut follower = house.client().get_streaming(&path).await;
    follower.read(1_000).await;
    drop(leader);
    eventually_eq(1.0, || house.metric("tidelock_flight_followers")).await;
    gate.open();
    let (rest, error) = follower.read_to_end().await;
    assert!(error.is_none() && rest == layer.bytes.slice(1_000..));
    drop(follower);
    assert!(house.client().blob("library/app", &layer.digest).await.is_ok());
    assert_eq!(fake.blob_gets(&layer.digest), 1);
}

#[tokio::test]
async fn everyone_leaves_and_the_blob_is_cached_all_the_same() {
    let Held { fake, house, layer, path, gate } = held_after(100_000).await;
    let mut only = house.client().get_streaming(&path).await;
    only.read(1_000).await;
    drop(only);
    eventually_eq(0.0, || house.metric("tidelock_flight_followers")).await;
    gate.open();
    eventually(|| async { house.metric("tidelock_cache_blobs").await == 1.0 }).await;
    fake.stop().await;
    assert!(house.client().blob("library/app", &layer.digest).await.is_ok());
}
