//! Each fault as a client sees it, and the gate.

use std::time::{Duration, Instant};

use crate::support::client::{Client, PullError};
use crate::support::eventually::{eventually, eventually_eq, within};
use crate::support::faults::{Fault, Gate, Match, Times};
use crate::support::images::Blob;
use crate::support::registry::FakeRegistry;

const LEN: usize = 200_000;

/// A registry with one blob, a client of it and the blob's path.
async fn one_blob() -> (FakeRegistry, Client, Blob, String) {
    let registry = FakeRegistry::start().await;
    let blob = Blob::random(1, LEN);
    registry.put_blob("app", &blob);
    let client = Client::new(&registry.url());
    let path = format!("/v2/app/blobs/{}", blob.digest);
    (registry, client, blob, path)
}

#[tokio::test]
async fn a_cut_gives_exactly_the_bytes_before_it() {
    for after in [0, 1, 1000, 150_000] {
        let (registry, client, blob, path) = one_blob().await;
        let cut = registry.fault(Match::blob(&blob.digest), Times::once(), Fault::CutAfter(after));
        let reply = client.get(&path).await;
        assert!(reply.truncated);
        assert_eq!(reply.header("content-length"), LEN.to_string());
        assert_eq!(reply.body, blob.bytes.slice(..after));
        assert_eq!(client.get(&path).await.whole(), blob.bytes, "the second time nothing is wrong");
        assert_eq!(cut.hits(), 1);
    }
}

#[tokio::test]
async fn a_reset_is_an_error() {
    let (registry, client, blob, path) = one_blob().await;
    registry.fault(Match::blob(&blob.digest), Times::once(), Fault::ResetAfter(1000));
    let mut streaming = client.get_streaming(&path).await;
    let (read, error) = streaming.read_to_end().await;
    assert!(read.len() <= 1000);
    assert!(error.is_some_and(|error| error.0.contains("reset")));
}

#[tokio::test]
async fn lies_that_only_a_digest_reveals() {
    let (registry, client, blob, _) = one_blob().await;
    for lie in
        [Fault::WrongBytes, Fault::WrongBytesAt(7), Fault::Truncate(100), Fault::Extra(10), Fault::Html]
    {
        let lying = registry.fault(Match::blob(&blob.digest), Times::once(), lie.clone());
        let error = client.blob("app", &blob.digest).await.unwrap_err();
        assert!(matches!(error, PullError::WrongDigest { .. }), "{lie:?}: {error}");
        assert_eq!(lying.hits(), 1);
    }
    assert_eq!(client.blob("app", &blob.digest).await.unwrap(), blob.bytes);
}

#[tokio::test]
async fn a_wrong_length_shows_as_a_short_body() {
    let (registry, client, _, path) = one_blob().await;
    registry.fault(Match::any(), Times::always(), Fault::WrongLength);
    let reply = client.get(&path).await;
    assert_eq!((reply.body.len(), reply.truncated), (LEN, true));
    assert_eq!(reply.header("content-length"), (LEN + 100).to_string());
}

#[tokio::test]
async fn a_stall_sends_headers_and_no_more() {
    let (registry, client, _, path) = one_blob().await;
    registry.fault(Match::any(), Times::Once, Fault::StallAfter(500));
    let mut streaming = client.get_streaming(&path).await;
    assert_eq!(streaming.read(500).await.len(), 500);
    let more = tokio::time::timeout(Duration::from_millis(50), streaming.next()).await;
    assert!(more.is_err());
    assert_eq!(registry.log().under_way(), 1);
    drop(streaming);
    eventually_eq(0, || async { registry.log().under_way() }).await;
    assert!(!registry.requests()[0].finished);
}

#[tokio::test]
async fn a_gate_holds_bodies_until_it_opens() {
    let (registry, client, blob, path) = one_blob().await;
    let gate = Gate::new();
    registry.fault(Match::blob(&blob.digest), Times::always(), Fault::hold_after(&gate, 10));
    let mut first = client.get_streaming(&path).await;
    let mut second = client.get_streaming(&path).await;
    gate.waiting(2).await;
    assert_eq!(first.read(10).await, blob.bytes.slice(..10));
    assert_eq!((registry.blob_gets(&blob.digest), registry.peak_concurrency()), (2, 2));
    gate.open();
    assert_eq!(first.read_to_end().await.0, blob.bytes.slice(10..));
    assert_eq!(second.read_to_end().await.0, blob.bytes);
    assert_eq!(gate.held(), 0);
}

#[tokio::test]
async fn a_request_held_before_its_head_is_already_counted() {
    let (registry, client, _, path) = one_blob().await;
    let gate = Gate::new();
    registry.fault(Match::path("/blobs/"), Times::once(), Fault::hold_head(&gate));
    let asking = tokio::spawn(async move { client.get(&path).await });
    gate.waiting(1).await;
    assert_eq!((registry.total(), registry.requests()[0].status), (1, None));
    gate.open();
    assert_eq!(within("the reply", asking).await.unwrap().status, 200);
}

#[tokio::test]
async fn scripted_answers_latency_and_hang_ups() {
    let (registry, client, _, path) = one_blob().await;
    registry.fault(Match::any(), Times::Nth(1), Fault::status(503));
    registry.fault(Match::any(), Times::Nth(1), Fault::abuse(60));
    registry.fault(Match::any(), Times::Once, Fault::HangUp);
    let late = registry.fault(Match::any(), Times::always(), Fault::Latency(Duration::from_millis(30)));
    registry.fault(Match::any(), Times::always(), Fault::header("x-seen", "yes"));
    let start = Instant::now();
    let first = client.get(&path).await;
    assert_eq!((first.status, first.header("x-seen")), (503, "yes"));
    assert!(start.elapsed() >= Duration::from_millis(30));
    let second = client.get(&path).await;
    assert_eq!((second.status, second.header("retry-after")), (429, "60"));
    assert!(client.try_get(&path).await.is_err());
    late.lift();
    assert_eq!(client.get(&path).await.status, 200);
    assert_eq!(late.hits(), 3);
    registry.lift_faults();
    assert_eq!(client.get(&path).await.header("x-seen"), "");
}

#[tokio::test]
async fn answers_that_are_hardly_http() {
    let (registry, client, _, path) = one_blob().await;
    registry.fault(Match::any(), Times::Once, Fault::abuse_with_bare_line_feeds(60));
    let reply = client.get(&path).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, "60"));
    assert_eq!(reply.whole(), "Too Many Requests (HAP429).\n");
    registry.fault(Match::any(), Times::Once, Fault::Raw("SSH-2.0-OpenSSH_9.9\r\n".into()));
    assert!(client.try_get(&path).await.is_err());
    assert_eq!(client.get(&path).await.status, 200);
}

#[tokio::test]
async fn slow_is_slow_and_right() {
    let (registry, client, blob, path) = one_blob().await;
    let every = Duration::from_millis(5);
    registry.fault(Match::any(), Times::always(), Fault::Slow { chunk: 50_000, every });
    let start = Instant::now();
    assert_eq!(client.get(&path).await.whole(), blob.bytes);
    assert!(start.elapsed() >= Duration::from_millis(15));
}

#[tokio::test]
async fn a_match_picks_by_method_range_and_order() {
    let (registry, client, blob, path) = one_blob().await;
    let ranged = registry.fault(Match::blob(&blob.digest).ranged(true), Times::After(1), Fault::status(500));
    client.head(&path).await;
    client.get(&path).await;
    assert_eq!(client.get_range(&path, "bytes=0-1").await.status, 206);
    assert_eq!(client.get_range(&path, "bytes=0-1").await.status, 500);
    assert_eq!(client.get_range(&path, "bytes=0-1").await.status, 500);
    assert_eq!(ranged.hits(), 2);
}

#[tokio::test]
async fn a_stopped_registry_refuses_and_comes_back_on_its_port() {
    let (registry, client, _, path) = one_blob().await;
    registry.fault(Match::any(), Times::Once, Fault::Stall);
    let mut held = client.get_streaming(&path).await;
    registry.stop().await;
    assert!(held.read_to_end().await.1.is_some(), "open connections are killed");
    assert!(client.try_get(&path).await.is_err());
    registry.stop().await;
    registry.resume();
    assert_eq!(client.get(&path).await.status, 200);
    let addr = registry.addr();
    drop(registry);
    eventually(|| async { tokio::net::TcpStream::connect(addr).await.is_err() }).await;
}
