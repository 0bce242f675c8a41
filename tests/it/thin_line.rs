//! Sites behind a thin line: how fast bytes may come, who goes first, and mirrors of mirrors.

use std::time::Duration;

use tidelock::config::Bandwidth;

use crate::support::client::Client;
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;
use crate::support::time::{Frozen, rest};

const MIB: usize = 1 << 20;
const REPOSITORY: &str = "library/app";

fn limit(text: &str) -> Bandwidth {
    Bandwidth(vec![text.parse().unwrap()])
}

/// How long it takes by the clock until all of these have been pulled at once.
async fn pull(clock: &Frozen, fake: &FakeRegistry, house: &House, blobs: &[(&str, &Blob)]) -> Vec<Duration> {
    let begun = clock.elapsed();
    let pulls: Vec<_> = blobs
        .iter()
        .map(|(repository, blob)| {
            let (repository, digest) = ((*repository).to_owned(), blob.digest.clone());
            let client = house.client().patient(Duration::from_secs(3600));
            tokio::spawn(async move { client.blob(&repository, &digest).await.map(|bytes| bytes.len()) })
        })
        .collect();
    let mut took = vec![None; pulls.len()];
    while took.contains(&None) {
        let seen = || {
            let sent: u64 = fake.requests().iter().map(|request| request.sent).sum();
            (sent, pulls.iter().filter(|pull| pull.is_finished()).count())
        };
        rest(seen).await;
        for (took, pull) in took.iter_mut().zip(&pulls) {
            if took.is_none() && pull.is_finished() {
                *took = Some(clock.elapsed() - begun);
            }
        }
        clock.advance(Duration::from_millis(100)).await;
    }
    for (pull, (_, blob)) in pulls.into_iter().zip(blobs) {
        assert_eq!(pull.await.unwrap().unwrap(), blob.len());
    }
    took.into_iter().flatten().collect()
}

#[tokio::test(start_paused = true)]
async fn an_upstream_brings_no_more_than_its_bandwidth() {
    let clock = Frozen::new();
    let fake = FakeRegistry::start().await;
    let house = House::with(&fake, |config| config.upstreams[0].bandwidth = limit("1MiB")).await;
    let blobs: Vec<Blob> = (0..3).map(|seed| Blob::random(seed, 2 * MIB)).collect();
    blobs.iter().for_each(|blob| fake.put_blob(REPOSITORY, blob));
    let wanted: Vec<_> = blobs.iter().map(|blob| (REPOSITORY, blob)).collect();
    let took = pull(&clock, &fake, &house, &wanted).await;
    let last = took.iter().max().unwrap().as_secs_f64();
    // What came last need not be paid for any more before it is there.
    assert!((4.0..8.0).contains(&last), "6 MiB at 1 MiB a second took {last} s");
    assert_eq!(fake.count("GET", "/blobs/"), 3, "nobody asks more often for that");

    // What is here already costs nothing of the line.
    let took = pull(&clock, &fake, &house, &wanted).await;
    assert!(took.iter().all(|took| *took < Duration::from_millis(500)), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn all_upstreams_share_one_line() {
    let clock = Frozen::new();
    let (hub, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let upstreams = vec![upstream("docker.io", &[&hub.url()]), upstream("ghcr.io", &[&other.url()])];
    let house = House::start(upstreams, |config| config.schedule.bandwidth = limit("1MiB")).await;
    let (one, two) = (Blob::random(1, 2 * MIB), Blob::random(2, 2 * MIB));
    hub.put_blob(REPOSITORY, &one);
    other.put_blob("org/app", &two);
    let begun = clock.elapsed();
    let spawn = |client: Client, repository: &'static str, digest: String| {
        tokio::spawn(async move { client.blob(repository, &digest).await.map(|bytes| bytes.len()) })
    };
    let client = || house.client().patient(Duration::from_secs(600));
    let first = spawn(client(), REPOSITORY, one.digest.clone());
    let second = spawn(client().with_query("ns=ghcr.io"), "org/app", two.digest.clone());
    while !(first.is_finished() && second.is_finished()) {
        let sent = || hub.requests().iter().chain(&other.requests()).map(|request| request.sent).sum::<u64>();
        rest(|| (sent(), first.is_finished(), second.is_finished())).await;
        clock.advance(Duration::from_millis(100)).await;
    }
    assert_eq!([first.await.unwrap().unwrap(), second.await.unwrap().unwrap()], [2 * MIB; 2]);
    let took = (clock.elapsed() - begun).as_secs_f64();
    assert!((2.5..6.0).contains(&took), "4 MiB at 1 MiB a second took {took} s");
}

/// Site, region, registries: each names what it means, and everything is fetched once.
#[tokio::test]
async fn a_chain_of_mirrors() {
    let (hub, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let (image, large) = (Image::multi_platform(1, &[1000, 70_000]), Image::layers(2, &[3 * MIB]));
    hub.push(REPOSITORY, "v1", &image);
    // By the same name, so that only the registry tells them apart.
    other.push(REPOSITORY, "v1", &large);
    let registries = vec![upstream("docker.io", &[&hub.url()]), upstream("ghcr.io", &[&other.url()])];
    let region = House::start(registries, |_| {}).await;
    let url = region.url();
    let through = || vec![upstream("docker.io", &[&url]), upstream("ghcr.io", &[&url])];
    let (one, two) = (House::start(through(), |_| {}).await, House::start(through(), |_| {}).await);
    // It breaks off on the way, and goes on where it was.
    other.fault(Match::blob(&large.layer_blobs()[0].digest), Times::Once, Fault::CutAfter(2 * MIB));

    for site in [&one, &two, &one] {
        assert!(site.client().pull(REPOSITORY, "v1").await.unwrap().is(&image));
        let github = site.client().with_query("ns=ghcr.io");
        assert!(github.pull(REPOSITORY, "v1").await.unwrap().is(&large));
        let blob = &large.layer_blobs()[0];
        let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
        let part = github.get_range(&path, "bytes=1000-1999").await;
        assert_eq!((part.status, &part.body[..]), (206, &blob.bytes[1000..2000]));
    }
    for (fake, image) in [(&hub, &image), (&other, &large)] {
        let gets =
            fake.log().matching(|record| record.method == "GET" && record.path.contains("/manifests/"));
        assert_eq!(gets.len(), image.manifests.len().max(1), "each manifest once");
        for blob in &image.blobs {
            let whole = fake.log().matching(|record| {
                record.method == "GET"
                    && record.path.ends_with(&blob.digest)
                    && record.header("range").is_empty()
            });
            assert_eq!(whole.len(), 1, "each blob once: {}", blob.digest);
        }
    }
    // The region is told which registry is meant by whoever stands before it, and tells whoever it asks.
    assert!(hub.requests().iter().all(|request| request.query.contains("ns=docker.io")));
    assert!(other.requests().iter().all(|request| request.query.contains("ns=ghcr.io")));
}
