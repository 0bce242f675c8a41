//! Disks rot and hands slip: nobody completes what is wrong, and the next pull has what is right.

use std::os::unix::fs::FileExt;

use http::Method;
use tidelock::config::{ByteSize, SizeLimit};

use crate::support::client::Reply;
use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, Process};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

/// More than the sockets between the reader and the file can hold.
const LARGE: usize = 24 << 20;
const QUARANTINED: &str = "tidelock_quarantined_total";

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

/// Flips a bit of a cached blob, in place. `unnoticed`: the time of the last change stays, as when a disk rots.
fn flip(house: &House, blob: &Blob, at: u64, unnoticed: bool) {
    let hex = blob.digest.strip_prefix("sha256:").unwrap();
    let path = house.folder().join("blobs/sha256").join(&hex[..2]).join(hex);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let time = if unnoticed { modified } else { modified + std::time::Duration::from_secs(1) };
    file.set_modified(time).unwrap();
}

async fn post(house: &House, path: &str) -> Reply {
    house.admin().request(Method::POST, path, &[]).await
}

async fn with_blob(length: usize) -> (FakeRegistry, House, Blob) {
    let (fake, blob) = (FakeRegistry::start().await, Blob::random(1, length));
    fake.put_blob("library/app", &blob);
    let house = House::over(&fake).await;
    assert_eq!(house.client().blob("library/app", &blob.digest).await.unwrap(), blob.bytes);
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    (fake, house, blob)
}

#[tokio::test]
async fn under_an_open_hit() {
    let (fake, house, blob) = with_blob(LARGE).await;
    let mut reader = house.client().get_streaming(&path(&blob)).await;
    reader.read(1_000).await;
    flip(&house, &blob, LARGE as u64 - 10, false);
    let (rest, error) = reader.read_to_end().await;
    assert!(error.is_some() && rest.len() + 1_000 < LARGE, "{} bytes", rest.len());
    eventually_eq(1.0, || house.metric(QUARANTINED)).await;
    assert_eq!(house.client().blob("library/app", &blob.digest).await.unwrap(), blob.bytes);
    assert_eq!(fake.blob_gets(&blob.digest), 2, "fetched anew");
}

#[tokio::test]
async fn before_a_hit() {
    for (length, unnoticed, completes_at_once) in
        [(LARGE, true, false), (LARGE, false, true), (5_000, true, true), (5_000, false, true)]
    {
        let (fake, house, blob) = with_blob(length).await;
        // What rots without a trace is found by the first who reads all of it after a start.
        let house = if unnoticed { house.restart(|_| {}).await } else { house };
        flip(&house, &blob, 7, unnoticed);
        let reply = house.client().get(&path(&blob)).await;
        assert_eq!(!reply.truncated, completes_at_once, "{length} {unnoticed}");
        assert!(reply.truncated || reply.body == blob.bytes, "{length} {unnoticed}");
        assert_eq!(house.client().blob("library/app", &blob.digest).await.unwrap(), blob.bytes);
        assert_eq!(fake.blob_gets(&blob.digest), 2, "{length} {unnoticed}: fetched anew, once");
        assert_eq!(house.metric(QUARANTINED).await, 1.0);
    }
}

#[tokio::test]
async fn a_scrub_finds_it_before_anybody_asks() {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[700_000, 1_000]));
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    let layer = image.layer_blobs().remove(0);
    flip(&house, &layer, 100, true);
    let begun = post(&house, "/api/v1/scrub?rate=1GiB").await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let scrub = || async { house.admin().get("/api/v1/scrub").await.json() };
    eventually(|| async { scrub().await["running"] == false }).await;
    let scrub = scrub().await;
    assert_eq!((&scrub["damaged"], &scrub["blobs"]), (&1.into(), &4.into()), "{scrub}");
    assert_eq!(house.metric(QUARANTINED).await, 1.0);
    assert_eq!(house.metric("tidelock_evicted_bytes_total{reason=\"damaged\"}").await, 700_000.0);
    assert!(house.metric("tidelock_scrub_finished_timestamp_seconds").await > 0.0);
    fake.clear();
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(fake.blob_gets(&layer.digest), 1);
    for wrong in ["0", "fast", "-1"] {
        assert_eq!(post(&house, &format!("/api/v1/scrub?rate={wrong}")).await.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn the_command_begins_it_and_waits_for_its_end() {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[700_000]));
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    let scrub = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidelock"));
        command.env_clear().arg("scrub").args(arguments);
        async move {
            let ended = command.output().await.unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (ended.status.code(), text(ended.stdout), text(ended.stderr))
        }
    };
    let own = house.admin_url();
    let (code, said, _) = scrub(&["--admin", &own, "--rate", "1GiB"]).await;
    assert_eq!(code, Some(0));
    assert!(
        said.starts_with("3 blobs, 684.") && said.ends_with("hashed anew: all of it is right\n"),
        "{said}"
    );
    flip(&house, &image.layer_blobs()[0], 100, true);
    let (code, json, _) = scrub(&["--admin", &own, "--json", "--rate", "1GiB"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["damaged"], &json["running"]), (Some(0), &1.into(), &false.into()));
    for (arguments, code, word) in [
        (["--rate", "0"], 2, "--rate"),
        (["--rate", "quick"], 2, "--rate"),
        (["--admin", "127.0.0.1:1"], 1, "is it running?"),
    ] {
        let (ended, _, said) = scrub(&arguments).await;
        assert!(ended == Some(code) && said.contains(word), "{arguments:?}: {said}");
    }
}

/// A client has the manifest and is about to ask for the layers: they stay, however much others pull.
#[tokio::test]
async fn what_a_pull_has_yet_to_ask_for_is_not_evicted() {
    const LAYER: usize = 700_000;
    let fake = FakeRegistry::start().await;
    let images: Vec<Image> = (1..=3).map(|seed| Image::layers(seed, &[LAYER, LAYER])).collect();
    for (n, image) in images.iter().enumerate() {
        fake.push("library/app", &format!("v{n}"), image);
    }
    let house =
        House::with(&fake, |config| config.cache.max_size = SizeLimit::Bytes(ByteSize(3_000_000))).await;
    let pull = |n: usize| {
        let client = house.client();
        async move { client.pull("library/app", &format!("v{n}")).await.unwrap() }
    };
    assert!(pull(0).await.is(&images[0]));
    // Begun, and held up: only the manifest was asked for.
    let manifest = house.client().get("/v2/library/app/manifests/v0").await;
    assert_eq!(manifest.status, 200);
    for n in [1, 2, 1] {
        assert!(pull(n).await.is(&images[n]));
        eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    }
    fake.clear();
    for layer in images[0].layer_blobs() {
        assert_eq!(house.client().blob("library/app", &layer.digest).await.unwrap(), layer.bytes);
        assert_eq!(fake.blob_gets(&layer.digest), 0, "it stayed");
    }
    // It has all that it wants, and goes like any other.
    assert!(pull(1).await.is(&images[1]) && pull(2).await.is(&images[2]));
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    assert!(pull(0).await.is(&images[0]));
    assert!(images[0].layer_blobs().iter().any(|layer| fake.blob_gets(&layer.digest) == 1));
}

/// What a kill left of a download rots until the next start: all of it is hashed again before it gets its name.
#[tokio::test]
async fn what_is_kept_of_a_download_is_proven_again() {
    let (fake, blob, gate) = (FakeRegistry::start().await, Blob::random(1, LARGE), Gate::new());
    fake.put_blob("library/app", &blob);
    fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, LARGE / 2));
    let (process, upstream) = (Process::new(), fake.clone());
    let house = process.house(async move { House::over(&upstream).await }).await;
    let mut reader = house.client().get_streaming(&path(&blob)).await;
    reader.read(1_000).await;
    eventually(|| async { house.partials().iter().any(|(_, size)| *size == LARGE as u64 / 2) }).await;
    let partial = house.folder().join("ingest").join(blob.digest.replace(':', "-"));
    let left = house.left();
    process.kill().await;
    std::fs::OpenOptions::new().write(true).open(partial).unwrap().write_all_at(b"rot", 100).unwrap();
    let house = left.open(|_| {}).await;
    let reply = house.client().get(&path(&blob)).await;
    assert!(reply.truncated && house.blobs().is_empty(), "what was kept does not hash to the digest");
    assert_eq!(house.client().blob("library/app", &blob.digest).await.unwrap(), blob.bytes);
}
