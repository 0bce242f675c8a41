//! A process that may open no more files: what was pulled goes on being served, uncached, until it may again.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http::header::HOST;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use tokio::net::TcpStream;

use crate::support::eventually::{eventually, eventually_eq, within};
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
    let (mut last, mut looks) = (Vec::new(), 0);
    eventually(|| {
        let before = std::mem::replace(&mut last, look());
        looks = if before == last { looks + 1 } else { 0 };
        std::future::ready(looks > 20)
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

/// One thing after the other, over the same connection.
async fn pull(client: &mut SendRequest<Empty<Bytes>>, tag: &str, image: &Image) {
    assert_eq!(get(client, &format!("/v2/library/app/manifests/{tag}")).await, image.top.bytes);
    for blob in &image.blobs {
        assert_eq!(get(client, &format!("/v2/library/app/blobs/{}", blob.digest)).await, blob.bytes);
    }
}

/// A client that stays: its connection takes a file, whether it asks or not.
async fn connect(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (client, connection) = http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn get(client: &mut SendRequest<Empty<Bytes>>, path: &str) -> Bytes {
    let request = Request::get(path).header(HOST, "127.0.0.1").body(Empty::new()).unwrap();
    let asking = async {
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.into_body().collect().await.unwrap().to_bytes()
    };
    within("an answer", asking).await
}

#[tokio::test]
async fn what_cannot_be_kept_for_want_of_a_file_comes_through() {
    let (fake, folder) = (FakeRegistry::start().await, tempfile::tempdir().unwrap());
    let images: Vec<Image> = (0..10).map(|seed| Image::layers(seed, &[300_000, 1_000])).collect();
    for (n, image) in images.iter().enumerate() {
        fake.push("library/app", &format!("v{n}"), image);
    }
    let running = start(&["serve", "--config", &configured(folder.path(), &fake.url(), "")]).await;
    let (mut client, mut admin) = (connect(running.address).await, connect(running.admin).await);
    pull(&mut client, "v0", &images[0]).await;
    eventually_eq(0.0, || running.metric("tidelock_flights")).await;
    fake.clear();
    // The connections that it needs are there already, and no others: one to the upstream may still be on its way back to the others.
    let (others, paths) = (&running.client(), (0..8).map(|n| format!("/v2/library/app/manifests/v{n}")));
    join_all(paths.map(|path| async move { others.head(&path).await })).await;
    eventually_eq(1.0, || running.metric("tidelock_connections")).await;
    allow_more(&running, Some(0)).await;
    for (n, image) in (0..5).flat_map(|_| images.iter().enumerate()) {
        pull(&mut client, &format!("v{n}"), image).await;
    }
    let metrics = get(&mut admin, "/metrics").await;
    assert!(std::str::from_utf8(&metrics).unwrap().contains(&format!("{FAILING} 1\n")));
    for image in &images[1..] {
        assert_eq!(fake.blob_gets(&image.layer_blobs()[0].digest), 5, "uncached");
    }
    // Who comes now waits at the door.
    let mut waiting = connect(running.address).await;
    running.log.has("cannot accept connections").await;
    let told = running.log.with(" ERROR ");
    assert_eq!(running.log.with("the process has too many open files").len(), 1, "{told:#?}");
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(running.log.with(" WARN ").is_empty(), "{:#?}", running.log.with(" WARN "));
    allow_more(&running, None).await;
    get(&mut waiting, "/v2/").await;
    eventually_eq(0.0, || running.metric(FAILING)).await;
    running.log.has("takes what is pulled again").await;
    assert_eq!(running.log.with("takes what is pulled again").len(), 1);
    for (n, image) in images.iter().enumerate() {
        pull(&mut client, &format!("v{n}"), image).await;
        eventually_eq(0.0, || running.metric("tidelock_flights")).await;
        fake.clear();
        pull(&mut client, &format!("v{n}"), image).await;
        assert_eq!(fake.count("GET", "/blobs/"), 0, "v{n}");
    }
    running.stop().await;
}
