//! Everything at once: many clients, few bytes of cache, and an upstream that fails in every way. What a client
//! completes is right, what it is told is true, and what is left adds up.

use futures_util::future::join_all;
use tidelock::config::{ByteSize, SizeLimit};

use crate::support::client::PullError;
use crate::support::eventually::eventually_eq;
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::{House, files, upstream};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

const REPOSITORIES: [&str; 4] = ["library/one", "library/two", "ghcr.io/org/three", "library/one"];

/// Images that share layers, as they do.
fn images() -> Vec<Image> {
    (0..6).map(|n| Image::multi_platform(n % 4, &[150_000 + 1_000 * n as usize, 70_000, 300, 0])).collect()
}

/// Each strikes here and there, at places that depend on `seed` alone.
fn break_at_random(fake: &FakeRegistry, seed: usize) {
    let faults = [
        Fault::CutAfter(40_000),
        Fault::WrongBytes,
        Fault::status(500),
        Fault::HangUp,
        Fault::Truncate(100),
        Fault::Extra(5),
        Fault::ResetAfter(90_000),
        Fault::Html,
        Fault::abuse(1),
        Fault::WrongLength,
    ];
    for (n, fault) in faults.iter().enumerate() {
        for turn in 0..6 {
            let nth = 1 + (seed * 31 + n * 7 + turn * 23) % 140;
            fake.fault(Match::path("/v2/"), Times::Nth(nth), fault.clone());
        }
    }
}

/// Whether a client may be told this. A fault of the mirror's own (500) never, nor a lie.
fn is_honest(error: &PullError) -> bool {
    match error {
        PullError::Status { reply, .. } => [429, 502, 503, 504].contains(&reply.status),
        PullError::Truncated { .. } => true,
        // Cut before the head had gone out.
        PullError::Wire { error, .. } => error.0.contains("IncompleteMessage"),
        PullError::WrongDigest { .. } => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens() {
    for (seed, limit) in [(1, 400_000), (2, 1_500_000), (3, 1 << 30)] {
        let (hub, other, images) = (FakeRegistry::start().await, FakeRegistry::start().await, images());
        for (n, image) in images.iter().enumerate() {
            hub.push("library/one", &format!("v{n}"), image);
            hub.push("library/two", &format!("v{n}"), image);
            other.push("org/three", &format!("v{n}"), image);
        }
        let upstreams = vec![upstream("docker.io", &[&hub.url()]), upstream("ghcr.io", &[&other.url()])];
        let house = House::start(upstreams, |config| {
            config.cache.max_size = SizeLimit::Bytes(ByteSize(limit));
            config.upstreams.iter_mut().for_each(|one| one.read_ahead = seed % 2 == 1);
        })
        .await;
        for fake in [&hub, &other] {
            break_at_random(fake, seed);
        }
        let clients = (0..12).map(|number: usize| {
            let (client, images) = (house.client(), &images);
            async move {
                let mut served = 0;
                for turn in 0..6 {
                    let n = (number * 5 + turn * seed) % images.len();
                    match client.pull(REPOSITORIES[(number + turn) % 4], &format!("v{n}")).await {
                        Ok(pulled) => served += usize::from(pulled.is(&images[n])),
                        Err(error) => assert!(is_honest(&error), "seed {seed}: {error}"),
                    }
                }
                served
            }
        });
        let served: usize = join_all(clients).await.iter().sum();
        assert!(served > 0, "seed {seed}");
        for fake in [&hub, &other] {
            fake.lift_faults();
        }
        adds_up(&house, limit).await;
        for (n, image) in images.iter().enumerate() {
            for name in &REPOSITORIES[..3] {
                let pulled = house.client().pull(name, &format!("v{n}")).await.unwrap();
                assert!(pulled.is(image), "seed {seed}");
            }
        }
        adds_up(&house, limit).await;
        is_what_it_is_called(&house, &images);
    }
}

/// What is counted is what is there, and not too much.
async fn adds_up(house: &House, limit: u64) {
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    let sum = |files: Vec<(String, u64)>| files.iter().map(|(_, size)| size).sum::<u64>();
    let there = sum(house.blobs()) + sum(house.partials());
    assert!(there <= limit, "{there}");
    eventually_eq(there as f64, || house.metric("tidelock_cache_bytes")).await;
    assert_eq!(house.metric("tidelock_cache_blobs").await, house.blobs().len() as f64);
}

/// Every file holds what its name says (I1).
fn is_what_it_is_called(house: &House, images: &[Image]) {
    let known: Vec<&Blob> =
        images.iter().flat_map(|image| image.blobs.iter().chain(&image.manifests)).collect();
    for (name, _) in files(&house.folder().join("blobs/sha256")) {
        let blob = known.iter().find(|blob| blob.digest.ends_with(&name)).unwrap();
        let path = house.folder().join("blobs/sha256").join(&name[..2]).join(&name);
        assert_eq!(std::fs::read(path).unwrap(), blob.bytes, "{name}");
    }
}
