//! A blob on its way through: cold, cached, and over a line that breaks.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image, OCI_MANIFEST};
use crate::support::log::Record;
use crate::support::registry::FakeRegistry;

const LARGE: usize = 700_000;
const RESUMED: &str = "tidelock_resumed_total{upstream=\"docker.io\"}";

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

fn gets(fake: &FakeRegistry, blob: &Blob) -> Vec<Record> {
    fake.log().matching(|record| record.method == "GET" && record.path.contains(&blob.digest))
}

/// Where the range of a request begins; none for a request of everything.
fn begin(record: &Record) -> Option<usize> {
    record.header("range").strip_prefix("bytes=")?.split('-').next()?.parse().ok()
}

#[tokio::test]
async fn of_any_size_cold_and_cached() {
    let fake = FakeRegistry::start().await;
    let house = House::over(&fake).await;
    for (seed, len) in [0, 1, 65_535, 65_536, 65_537, 131_072, LARGE].into_iter().enumerate() {
        let blob = Blob::random(seed as u64, len);
        fake.put_blob("library/app", &blob);
        for (round, status) in ["fwd=miss", "hit"].into_iter().enumerate() {
            let reply = house.client().get(&path(&blob)).await;
            assert_eq!((reply.status, reply.whole()), (200, blob.bytes.clone()), "{len}");
            assert_eq!(reply.header("docker-content-digest"), blob.digest);
            assert_eq!(reply.header("content-length"), len.to_string());
            assert!(reply.header("cache-status").contains(status) || round == 0, "{len}");
            eventually_eq(0.0, || house.metric("tidelock_flights")).await;
            let head = house.client().head(&path(&blob)).await;
            assert_eq!((head.status, head.header("content-length")), (200, len.to_string().as_str()));
        }
        assert_eq!((fake.blob_gets(&blob.digest), fake.count("HEAD", "/")), (1, 0), "{len}");
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_where_it_broke() {
    for fault in [Fault::CutAfter(300_000), Fault::ResetAfter(300_000), Fault::StallAfter(300_000)] {
        let fake = FakeRegistry::start().await;
        let image = Image::layers(1, &[LARGE]);
        fake.push("library/app", "v1", &image);
        let house = House::with(&fake, |config| {
            config.upstreams[0].idle_timeout = Duration::from_millis(1500);
        })
        .await;
        let blob = image.layer_blobs().remove(0);
        fake.fault(Match::blob(&blob.digest), Times::Once, fault.clone());
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image), "{fault:?}");
        let gets = gets(&fake, &blob);
        assert_eq!(gets.len(), 2, "{fault:?}: {:?}", fake.log().summary());
        let from = begin(&gets[1]).unwrap();
        assert!(from > 0 && from <= 300_000, "{fault:?}: {from}");
        assert_eq!(house.metric(RESUMED).await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_follow_notice_nothing_of_a_break() {
    let fake = FakeRegistry::start().await;
    let blob = Blob::random(1, LARGE);
    fake.put_blob("library/app", &blob);
    for fault in [Fault::CutAfter(200_000), Fault::Truncate(100_000), Fault::CutAfter(90_000)] {
        fake.fault(Match::blob(&blob.digest), Times::N(2), fault);
    }
    let house = House::over(&fake).await;
    // The length is known: none of the breaks is taken for the end.
    house.client().head(&path(&blob)).await;
    let clients = (0..20).map(|_| {
        let (client, digest) = (house.client(), blob.digest.clone());
        async move { client.blob("library/app", &digest).await.unwrap() }
    });
    assert!(join_all(clients).await.iter().all(|bytes| *bytes == blob.bytes));
    assert!(gets(&fake, &blob)[1..].iter().all(|record| begin(record).is_some()));
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_at_the_next_endpoint() {
    let (first, second) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let image = Image::layers(1, &[LARGE]);
    for fake in [&first, &second] {
        fake.push("library/app", "v1", &image);
    }
    let blob = image.layer_blobs().remove(0);
    first.fault(Match::blob(&blob.digest).ranged(false), Times::Always, Fault::CutAfter(300_000));
    first.fault(Match::blob(&blob.digest).ranged(true), Times::Always, Fault::status(503));
    let both = upstream("docker.io", &[&first.url(), &second.url()]);
    let house = House::start(vec![both], |_| {}).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    let (broken, resumed) = (gets(&first, &blob), gets(&second, &blob));
    assert_eq!((broken.len(), resumed.len()), (2, 1));
    let from = begin(&resumed[0]).unwrap();
    assert!(from > 0 && from <= 300_000, "{from}");
    assert_eq!(house.metric(RESUMED).await, 1.0);
    assert_eq!(second.counted(), 0, "the manifest came from the first");
}

#[tokio::test]
async fn a_line_that_stays_broken_leaves_what_came_for_the_next_try() {
    let fake = FakeRegistry::start().await;
    let blob = Blob::random(1, LARGE);
    fake.put_blob("library/app", &blob);
    let house = House::over(&fake).await;
    fake.fault(Match::blob(&blob.digest).ranged(false), Times::Always, Fault::CutAfter(400_000));
    let dead = fake.fault(Match::blob(&blob.digest).ranged(true), Times::Always, Fault::HangUp);
    let reply = house.client().get(&path(&blob)).await;
    assert!(reply.truncated && reply.body.len() <= 400_000 && reply.body == blob.bytes[..reply.body.len()]);
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    assert_eq!((house.blobs().len(), house.partials().len()), (0, 1));
    dead.lift();
    fake.clear();
    // The endpoint is left alone for a while after so many failures; then it is tried again.
    eventually(|| async {
        let outcome = house.client().blob("library/app", &blob.digest).await;
        outcome.is_ok_and(|bytes| bytes == blob.bytes)
    })
    .await;
    let gets = gets(&fake, &blob);
    assert_eq!(gets.len(), 1);
    let from = begin(&gets[0]).unwrap();
    assert!((200_000..400_000).contains(&from), "all but the distrusted tail is kept: {from}");
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    assert_eq!((house.blobs().len(), house.partials().len()), (1, 0));
}

#[tokio::test]
async fn an_upstream_without_ranges_starts_over_and_the_client_does_not() {
    let fake = FakeRegistry::start().await;
    let blob = Blob::random(1, LARGE);
    fake.put_blob("library/app", &blob);
    fake.set(|behaviour| behaviour.quirks.ignore_range = true);
    fake.fault(Match::blob(&blob.digest), Times::Once, Fault::CutAfter(300_000));
    let house = House::over(&fake).await;
    assert_eq!(house.client().get(&path(&blob)).await.whole(), blob.bytes);
    assert_eq!(gets(&fake, &blob).len(), 2);
}

#[tokio::test]
async fn a_head_while_it_is_fetched_costs_one_free_head_at_most() {
    let fake = FakeRegistry::start().await;
    let blob = Blob::random(1, LARGE);
    fake.put_blob("library/app", &blob);
    let gate = Gate::new();
    fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, 100_000));
    let house = House::over(&fake).await;
    let mut client = house.client().get_streaming(&path(&blob)).await;
    for _ in 0..3 {
        let head = house.client().head(&path(&blob)).await;
        assert_eq!((head.status, head.header("content-length")), (200, LARGE.to_string().as_str()));
    }
    gate.open();
    assert_eq!(client.read_to_end().await, (blob.bytes.clone(), None));
    assert_eq!(gets(&fake, &blob).len(), 1);
    assert!(fake.count("HEAD", "/blobs/") <= 1, "{:?}", fake.log().summary());
}

/// Anybody who may push to a repository can write any size into a manifest.
#[tokio::test]
async fn what_a_manifest_says_of_a_size_is_only_a_hint() {
    for (told, has_length) in [(5, true), (2 * LARGE, true), (5, false), (2 * LARGE, false)] {
        let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[LARGE]));
        fake.push("library/app", "v1", &image);
        let layer = image.layer_blobs().remove(0);
        let text = String::from_utf8(image.top.bytes.to_vec()).unwrap();
        let wrong = text.replace(&format!("\"size\":{LARGE}"), &format!("\"size\":{told}"));
        assert_ne!(wrong, text);
        fake.put_manifest("library/app", &Blob::new(wrong.clone(), OCI_MANIFEST));
        fake.set(|behaviour| behaviour.quirks.no_length = !has_length);
        let house = House::over(&fake).await;
        let wrong = Blob::new(wrong, OCI_MANIFEST);
        assert_eq!(house.client().manifest("library/app", &wrong.digest).await.unwrap(), wrong);
        if has_length {
            assert_eq!(house.client().blob("library/app", &layer.digest).await.unwrap(), layer.bytes);
        } else {
            // It takes one failure to find out.
            let reply = house.client().get(&path(&layer)).await;
            assert!(reply.truncated || reply.status == 502 || reply.body == layer.bytes, "{}", reply.status);
            eventually_eq(0.0, || house.metric("tidelock_flights")).await;
        }
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image), "{told} {has_length}");
    }
}
