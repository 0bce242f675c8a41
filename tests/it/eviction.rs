//! The cache has a limit that holds at every moment, and what does not fit comes through all the same.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use futures_util::future::{join, join_all};
use tidelock::config::{ByteSize, SizeLimit};

use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::House;
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

const LARGE: usize = 700_000;
const EVICTED: &str = "tidelock_evicted_bytes_total{reason=\"size\"}";

async fn with_limit(fake: &FakeRegistry, limit: u64) -> House {
    House::with(fake, |config| config.cache.max_size = SizeLimit::Bytes(ByteSize(limit))).await
}

/// Whether a blob has its file.
fn holds(house: &House, blob: &Blob) -> bool {
    house.blobs().iter().any(|(name, _)| blob.digest.ends_with(name))
}

/// What the cache takes on disk at one moment, at least: to look through the folders takes a while, so what
/// counts is what was there before and after that moment. A file is known by what no other file has, since one may
/// move meanwhile, or go and come back under its name.
fn on_disk(house: &House) -> u64 {
    let (mut before, mut after) = (HashMap::new(), HashMap::new());
    for look in [&mut before, &mut after] {
        for folder in ["blobs", "ingest", "quarantine"] {
            look.extend(identities(&house.folder().join(folder)));
        }
    }
    after.into_iter().filter_map(|(file, size)| Some(size.min(*before.get(&file)?))).sum()
}

/// The files under a folder by inode and time of birth, with their sizes.
fn identities(folder: &Path) -> Vec<((u64, SystemTime), u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(data) if data.is_dir() => found.extend(identities(&entry.path())),
            Ok(data) => found.push(((data.ino(), data.created().unwrap()), data.len())),
            // Gone in the meantime.
            Err(_) => {}
        }
    }
    found
}

/// Once nothing moves, what is counted is what is there.
async fn counts_what_is_there(house: &House) {
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    assert_eq!(house.metric("tidelock_cache_bytes").await, on_disk(house) as f64);
    assert_eq!(house.metric("tidelock_cache_blobs").await, house.blobs().len() as f64);
}

/// Use times are in milliseconds.
async fn the_clock_ticks() {
    let begun = SystemTime::now();
    eventually(|| async { begun.elapsed().is_ok_and(|passed| passed.as_millis() > 1) }).await;
}

#[tokio::test]
async fn what_was_used_least_recently_goes_and_is_healed() {
    let fake = FakeRegistry::start().await;
    let images: Vec<Image> = (1..=4).map(|seed| Image::layers(seed, &[LARGE])).collect();
    for (n, image) in images.iter().enumerate() {
        fake.push("library/app", &format!("v{n}"), image);
    }
    let house = with_limit(&fake, 2_500_000).await;
    // The first is used again, so that the second is the oldest when the fourth comes.
    for n in [0, 1, 2, 0, 3] {
        assert!(house.client().pull("library/app", &format!("v{n}")).await.unwrap().is(&images[n]));
        eventually_eq(0.0, || house.metric("tidelock_flights")).await;
        the_clock_ticks().await;
    }
    let held: Vec<bool> = images.iter().map(|image| holds(&house, &image.layer_blobs()[0])).collect();
    assert_eq!(held, [true, false, true, true]);
    assert!(house.metric(EVICTED).await >= LARGE as f64);
    counts_what_is_there(&house).await;
    fake.clear();
    for n in [0, 2, 3, 1] {
        assert!(house.client().pull("library/app", &format!("v{n}")).await.unwrap().is(&images[n]));
        let layer = &images[n].layer_blobs()[0];
        assert_eq!(fake.blob_gets(&layer.digest), usize::from(n == 1), "{n}");
    }
    counts_what_is_there(&house).await;
}

#[tokio::test]
async fn what_is_larger_than_the_cache_comes_through_uncached_and_proven() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[2_000_000, 1_000]);
    fake.push("library/app", "v1", &image);
    let (large, path) =
        (image.layer_blobs().remove(0), |blob: &Blob| format!("/v2/library/app/blobs/{}", blob.digest));
    for mentioned in [true, false] {
        let house = with_limit(&fake, 1_500_000).await;
        if mentioned {
            assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
        }
        for _ in 0..2 {
            let reply = house.client().get_range(&path(&large), "bytes=0-9").await;
            assert_eq!((reply.status, reply.whole()), (200, large.bytes.clone()), "a range may be ignored");
        }
        let wrong = fake.fault(Match::blob(&large.digest), Times::Always, Fault::WrongBytesAt(0));
        let reply = house.client().get(&path(&large)).await;
        assert!(reply.truncated && reply.body.len() < large.len(), "{}", reply.body.len());
        wrong.lift();
        assert!(!holds(&house, &large) && house.partials().is_empty());
        assert_eq!(house.client().head(&path(&large)).await.header("content-length"), "2000000");
        counts_what_is_there(&house).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_holds_while_64_cold_pulls_run() {
    // Less than half of what the pulls bring at once.
    const LIMIT: u64 = 10_000_000;
    let fake = FakeRegistry::start().await;
    let images: Vec<Image> = (1..=64).map(|seed| Image::layers(seed, &[250_000, 100_000])).collect();
    for (n, image) in images.iter().enumerate() {
        fake.push(&format!("library/app{n}"), "v1", image);
    }
    let house = with_limit(&fake, LIMIT).await;
    assert_eq!(house.metric("tidelock_cache_limit_bytes").await, LIMIT as f64);
    let (done, mut looks) = (std::sync::atomic::AtomicBool::new(false), 0);
    let pulls = async {
        for _ in 0..2 {
            let pulls = images.iter().enumerate().map(|(n, image)| {
                let client = house.client();
                async move { client.pull(&format!("library/app{n}"), "v1").await.unwrap().is(image) }
            });
            assert!(join_all(pulls).await.into_iter().all(|is_right| is_right));
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let watch = eventually(|| {
        looks += 1;
        async {
            let there = on_disk(&house);
            assert!(there <= LIMIT, "{there}");
            let counted = house.metric("tidelock_cache_bytes").await;
            assert!(counted <= LIMIT as f64, "{counted}");
            done.load(std::sync::atomic::Ordering::SeqCst)
        }
    });
    join(pulls, watch).await;
    assert!(looks > 3);
    assert!(house.metric(EVICTED).await > 0.0);
    counts_what_is_there(&house).await;
}

/// Blobs that are asked for in the moment in which they go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_miscounted_however_much_comes_and_goes() {
    const LIMIT: u64 = 1_300_000;
    let fake = FakeRegistry::start().await;
    let blobs: Vec<Blob> = (0..8).map(|seed| Blob::random(seed, 250_000 + seed as usize)).collect();
    blobs.iter().for_each(|blob| fake.put_blob("library/app", blob));
    let house = with_limit(&fake, LIMIT).await;
    let clients = (0..8).map(|offset| {
        let (client, blobs) = (house.client(), &blobs);
        async move {
            for turn in 0..25 {
                let blob = &blobs[(offset * 3 + turn) % blobs.len()];
                assert_eq!(client.blob("library/app", &blob.digest).await.unwrap(), blob.bytes);
            }
        }
    });
    join_all(clients).await;
    assert!(house.metric(EVICTED).await > 0.0);
    assert_eq!(house.metric("tidelock_evicted_bytes_total{reason=\"damaged\"}").await, 0.0);
    counts_what_is_there(&house).await;
    assert!(on_disk(&house) <= LIMIT);
}

#[tokio::test]
async fn what_is_being_read_is_not_evicted() {
    // More than the sockets between the reader and the file can hold.
    const HUGE: usize = 24 << 20;
    let fake = FakeRegistry::start().await;
    let (first, second) = (Blob::random(1, HUGE), Blob::random(2, HUGE));
    for blob in [&first, &second] {
        fake.put_blob("library/app", blob);
    }
    let house = with_limit(&fake, 30 << 20).await;
    house.client().blob("library/app", &first.digest).await.unwrap();
    eventually(|| async { holds(&house, &first) }).await;
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    let mut reader = house.client().get_streaming(&format!("/v2/library/app/blobs/{}", first.digest)).await;
    let begin = reader.read(1_000).await;
    assert_eq!(house.client().blob("library/app", &second.digest).await.unwrap(), second.bytes);
    assert!(holds(&house, &first) && !holds(&house, &second));
    let (rest, error) = reader.read_to_end().await;
    assert!(error.is_none() && begin == first.bytes.slice(..1_000) && rest == first.bytes.slice(1_000..));
    drop(reader);
    // Now it may go.
    eventually(|| async {
        house.client().blob("library/app", &second.digest).await.unwrap();
        holds(&house, &second)
    })
    .await;
    assert!(!holds(&house, &first));
    counts_what_is_there(&house).await;
}

#[tokio::test]
async fn a_disk_that_fails_costs_the_cache_and_not_the_pull() {
    let (fake, image) = (FakeRegistry::start().await, Image::multi_platform(1, &[LARGE, 1_000, 0]));
    fake.push("library/app", "v1", &image);
    for folder in ["ingest", "blobs/sha256"] {
        let house = House::over(&fake).await;
        let (folder, aside) = (house.folder().join(folder), house.folder().join("aside"));
        std::fs::rename(&folder, &aside).unwrap();
        for _ in 0..2 {
            assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image), "{folder:?}");
            eventually_eq(0.0, || house.metric("tidelock_flights")).await;
        }
        assert_eq!(house.blobs(), []);
        let failing = "tidelock_cache_failing{reason=\"disk\"}";
        assert_eq!(house.metric(failing).await, 1.0);
        std::fs::rename(&aside, &folder).unwrap();
        eventually_eq(0.0, || house.metric(failing)).await;
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image), "{folder:?}");
        eventually_eq(0.0, || house.metric("tidelock_flights")).await;
        assert_eq!(house.blobs().len(), image.blobs.len() + image.manifests.len(), "{folder:?}");
        counts_what_is_there(&house).await;
    }
}
