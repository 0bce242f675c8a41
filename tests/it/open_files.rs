//! A process that may open no more files: what was pulled goes on being served, uncached, until it may again.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::eventually::{eventually, eventually_eq};
use crate::support::images::Image;
use crate::support::program::{Running, configured, start};
use crate::support::registry::FakeRegistry;

const FAILING: &str = "tidelock_cache_failing{reason=\"descriptors\"}";

/// The files that the process has open, by number, once none comes or goes.
async fn open_files(running: &Running) -> Vec<u64> {
    let folder = format!("/proc/{}/fd", running.child.id().unwrap());
    let look = || {
        let names = std::fs::read_dir(&folder).unwrap().flatten();
        let mut numbers: Vec<u64> =
            names.map(|name| name.file_name().to_str().unwrap().parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    };
    let mut last = Vec::new();
    eventually(|| {
        let before = std::mem::replace(&mut last, look());
        std::future::ready(before == last)
    })
    .await;
    last
}

/// Lets the process open so many files more, or as many as before.
async fn allow_more(running: &Running, more: Option<u64>) {
    let pid = Pid::from_raw(running.child.id().unwrap().try_into().unwrap());
    let open = open_files(running).await;
    let free_below = |limit: u64| limit - open.iter().filter(|number| **number < limit).count() as u64;
    let limit = more.map(|more| (0..).find(|limit| free_below(*limit) == more).unwrap());
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: limit, maximum: None });
    // Without the right to raise the hard limit there is the one that it has.
    if before.is_err() {
        let own = rustix::process::getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current: limit.or(own), maximum: own }).unwrap();
    }
}

/// One thing after the other: each takes a connection.
async fn pull(running: &Running, tag: &str, image: &Image) {
    let client = running.client();
    assert_eq!(client.manifest("library/app", tag).await.unwrap().bytes, image.top.bytes);
    for blob in &image.blobs {
        assert_eq!(client.blob("library/app", &blob.digest).await.unwrap(), blob.bytes);
    }
}

#[tokio::test]
async fn what_cannot_be_kept_for_want_of_a_file_comes_through() {
    let (fake, folder) = (FakeRegistry::start().await, tempfile::tempdir().unwrap());
    let images: Vec<Image> = (0..10).map(|seed| Image::layers(seed, &[300_000, 1_000])).collect();
    for (n, image) in images.iter().enumerate() {
        fake.push("library/app", &format!("v{n}"), image);
    }
    let running = start(&["serve", "--config", &configured(folder.path(), &fake.url(), "")]).await;
    pull(&running, "v0", &images[0]).await;
    eventually_eq(0.0, || running.metric("tidelock_flights")).await;
    fake.clear();
    // For a client; the connection to the upstream is there already.
    allow_more(&running, Some(1)).await;
    let mut failing = 0.0;
    for (n, image) in (0..5).flat_map(|_| images.iter().enumerate()) {
        pull(&running, &format!("v{n}"), image).await;
        failing += running.metric(FAILING).await;
    }
    // It tries every few seconds whether that is over, and a client may have left just then.
    assert!(failing > 40.0, "{failing}");
    for image in &images[1..] {
        assert_eq!(fake.blob_gets(&image.layer_blobs()[0].digest), 5, "uncached");
    }
    // One for the store, and one for each door at which somebody was let wait, if anybody was.
    let told = running.log.with(" ERROR ");
    assert_eq!(running.log.with("the process has too many open files").len(), 1, "{told:#?}");
    assert!(running.log.with("cannot accept connections").len() <= 2 && told.len() <= 3, "{told:#?}");
    assert!(running.log.with(" WARN ").is_empty(), "{:#?}", running.log.with(" WARN "));
    allow_more(&running, None).await;
    eventually_eq(0.0, || running.metric(FAILING)).await;
    assert_eq!(running.log.with("takes what is pulled again").len(), 1);
    for (n, image) in images.iter().enumerate() {
        pull(&running, &format!("v{n}"), image).await;
        eventually_eq(0.0, || running.metric("tidelock_flights")).await;
        fake.clear();
        pull(&running, &format!("v{n}"), image).await;
        assert_eq!(fake.count("GET", "/blobs/"), 0, "v{n}");
    }
    running.stop().await;
}
