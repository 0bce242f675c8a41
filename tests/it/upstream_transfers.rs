//! Bodies: blobs that break off and go on, endpoints that fail, lists in pages, limits of size and time.

use std::time::Duration;

use tidelock::config::Proxy;
use tidelock::config::{Config, UpstreamId};
use tidelock::lifecycle::Lifecycle;
use tidelock::scheduler::{Refused, Scheduler};
use tidelock::secret::Secret;
use tidelock::telemetry::Metrics;
use tidelock::upstream::{BadSetup, Client, Error, UpstreamMetrics};

use crate::support::behaviour::Redirect;
use crate::support::eventually::eventually_eq;
use crate::support::faults::{Fault, Gate, Match, Times};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;
use crate::support::tls::TestCa;
use crate::upstream_rig::{Plan, Rig, bad_answer, name, rest};

const SIZE: usize = 1_000_000;

fn layer() -> Blob {
    Blob::random(3, SIZE)
}

async fn with_blob() -> FakeRegistry {
    let registry = FakeRegistry::start().await;
    registry.put_blob("app", &layer());
    registry.push("app", "1", &Image::layers(1, &[10]));
    registry
}

fn ranges(registry: &FakeRegistry) -> Vec<String> {
    let gets = registry.requests().into_iter().filter(|request| request.path.contains("/blobs/"));
    gets.map(|request| request.header("range").to_owned()).collect()
}

fn resumed(rig: &Rig) -> u64 {
    rig.metric("tidelock_resumed_total")
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    for fault in [Fault::CutAfter(300_000), Fault::StallAfter(300_000)] {
        let registry = with_blob().await;
        let plan = Plan::at(&registry).with(|u| u.idle_timeout = Duration::from_millis(1500));
        let rig = plan.rig();
        registry.fault(Match::blobs(), Times::Once, fault);
        registry.fault(Match::blobs(), Times::Nth(1), Fault::CutAfter(200_000));
        assert_eq!(rig.blob("app", &layer()).await.unwrap(), layer().bytes);
        let last = SIZE - 1;
        let expected = [String::new(), format!("bytes=300000-{last}"), format!("bytes=500000-{last}")];
        assert_eq!(ranges(&registry), expected);
        assert_eq!(resumed(&rig), 2);
        assert_eq!(rig.metric("tidelock_fetched_bytes_total"), SIZE as u64);
    }
}

#[tokio::test]
async fn a_reset_is_survived() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    registry.fault(Match::blobs(), Times::Once, Fault::ResetAfter(400_000));
    assert_eq!(rig.blob("app", &layer()).await.unwrap(), layer().bytes);
    assert_eq!(registry.total(), 2);
}

#[tokio::test]
async fn an_upstream_that_ignores_ranges_is_skipped_through() {
    let registry = with_blob().await;
    registry.set(|behaviour| behaviour.quirks.ignore_range = true);
    let rig = Plan::at(&registry).rig();
    let mut transfer = rig.transfer("app", &layer(), 123_456, Some(SIZE as u64)).await.unwrap();
    assert_eq!((transfer.offset(), transfer.total()), (123_456, Some(SIZE as u64)));
    assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes.slice(123_456..));
    registry.fault(Match::blobs(), Times::Once, Fault::CutAfter(300_000));
    assert_eq!(rig.blob("app", &layer()).await.unwrap(), layer().bytes);
    assert_eq!(registry.total(), 3);
}

#[tokio::test]
async fn a_kept_part_is_added_to() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    for (total, range) in
        [(Some(SIZE as u64), format!("bytes=600000-{}", SIZE - 1)), (None, "bytes=600000-".to_owned())]
    {
        registry.clear();
        let mut transfer = rig.transfer("app", &layer(), 600_000, total).await.unwrap();
        assert_eq!((transfer.offset(), transfer.total()), (600_000, Some(SIZE as u64)));
        assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes.slice(600_000..));
        assert_eq!(ranges(&registry), [range]);
    }
    registry.clear();
    let mut whole = rig.transfer("app", &layer(), SIZE as u64, Some(SIZE as u64)).await.unwrap();
    assert_eq!((rest(&mut whole).await.unwrap().len(), registry.total()), (0, 0), "nothing is missing");
    let mut whole = rig.transfer("app", &layer(), SIZE as u64, None).await.unwrap();
    assert_eq!((whole.total(), rest(&mut whole).await.unwrap().len()), (Some(SIZE as u64), 0), "416 said so");
}

#[tokio::test]
async fn a_registry_that_takes_exception_to_the_range() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    registry.fault(Match::blobs().ranged(true), Times::Always, Fault::status(416));
    let mut transfer = rig.transfer("app", &layer(), 600_000, None).await.unwrap();
    assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes.slice(600_000..));
    assert_eq!(ranges(&registry), ["bytes=600000-", ""]);
}

#[tokio::test]
async fn a_part_is_no_more_than_that() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    let mut part = rig.part("app", &layer(), 200_000..500_000).await.unwrap();
    assert_eq!(rest(&mut part).await.unwrap(), layer().bytes.slice(200_000..500_000));
    drop(part);
    registry.fault(Match::blobs(), Times::Once, Fault::CutAfter(100_000));
    let mut part = rig.part("app", &layer(), 200_000..500_000).await.unwrap();
    assert_eq!(rest(&mut part).await.unwrap(), layer().bytes.slice(200_000..500_000));
    assert_eq!(ranges(&registry), ["bytes=200000-499999", "bytes=200000-499999", "bytes=300000-499999"]);

    registry.fault(Match::blobs(), Times::Once, Fault::status(416));
    let none = rig.part("app", &layer(), 200_000..500_000).await;
    assert!(matches!(none, Err(Error::NoParts { .. })), "{none:?}");
    registry.set(|behaviour| behaviour.quirks.ignore_range = true);
    let none = rig.part("app", &layer(), 200_000..500_000).await;
    assert!(matches!(none, Err(Error::NoParts { .. })), "{none:?}");
    assert_eq!(registry.total(), 5, "none of them was asked for twice");
}

#[tokio::test]
async fn a_transfer_turns_to_another_part() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    let mut transfer = rig.transfer("app", &layer(), 0, None).await.unwrap();
    transfer.next().await.unwrap();
    let at = transfer.offset();
    // What is coming anyway is not asked for again.
    transfer.turn_to(at..700_000);
    assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes.slice(at as usize..700_000));
    transfer.turn_to(900_000..SIZE as u64);
    assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes.slice(900_000..));
    transfer.turn_to(700_000..900_000);
    assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes.slice(700_000..900_000));
    assert_eq!(ranges(&registry), ["", "bytes=900000-999999", "bytes=700000-899999"]);
    assert_eq!(resumed(&rig), 0);
}

/// Over HTTP/2 all transfers share one connection, and what that is held to.
#[tokio::test]
async fn a_part_has_a_connection_of_its_own() {
    let ca = TestCa::new();
    let registry = FakeRegistry::start_tls_with(&ca, &[], true).await;
    registry.put_blob("app", &layer());
    let plan = Plan::at(&registry);
    let file = plan.file("ca.pem", &ca.pem());
    let rig = plan.with(|upstream| upstream.ca = Some(file)).rig();
    let transfers = [
        rig.transfer("app", &layer(), 0, None).await.unwrap(),
        rig.transfer("app", &layer(), 0, None).await.unwrap(),
    ];
    assert_eq!(registry.accepted_connections(), 1);
    let mut parts = Vec::new();
    for start in [100_000, 500_000] {
        parts.push(rig.part("app", &layer(), start..start + 400_000).await.unwrap());
    }
    assert_eq!(registry.accepted_connections(), 3);
    drop((transfers, parts));
}

#[tokio::test]
async fn wrong_lengths() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    let reason = bad_answer(rig.transfer("app", &layer(), 0, Some(SIZE as u64 + 1)).await);
    assert_eq!(reason, "a blob of 1000000 bytes where 1000001 were expected");
    let reason = bad_answer(rig.transfer("app", &layer(), 5, Some(SIZE as u64 - 1)).await);
    assert_eq!(reason, "a blob of 1000000 bytes where 999999 were expected");
    let reason = bad_answer(rig.transfer("app", &layer(), SIZE as u64 + 1, None).await);
    assert!(reason.contains("shorter"), "{reason}");

    registry.fault(Match::blobs(), Times::Once, Fault::Extra(10));
    let mut transfer = rig.transfer("app", &layer(), 0, Some(SIZE as u64)).await.unwrap();
    assert_eq!(bad_answer(rest(&mut transfer).await), "more bytes than the blob is long");
    assert!(transfer.offset() <= SIZE as u64);
}

#[tokio::test]
async fn without_a_length_a_clean_end_is_the_end() {
    let registry = with_blob().await;
    registry.set(|behaviour| behaviour.quirks.no_length = true);
    let rig = Plan::at(&registry).rig();
    let mut transfer = rig.transfer("app", &layer(), 0, None).await.unwrap();
    assert_eq!(transfer.total(), None);
    assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes);
    assert_eq!(transfer.total(), Some(SIZE as u64));

    // A clean end that is too early is only known where the length is.
    registry.fault(Match::blobs(), Times::N(2), Fault::Truncate(400_000));
    let mut transfer = rig.transfer("app", &layer(), 0, None).await.unwrap();
    assert_eq!(rest(&mut transfer).await.unwrap().len(), 400_000);
    let mut transfer = rig.transfer("app", &layer(), 0, Some(SIZE as u64)).await.unwrap();
    assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes);
}

#[tokio::test]
async fn an_empty_blob() {
    let registry = FakeRegistry::start().await;
    let empty = Blob::random(1, 0);
    registry.put_blob("app", &empty);
    let rig = Plan::at(&registry).rig();
    for total in [None, Some(0)] {
        let mut transfer = rig.transfer("app", &empty, 0, total).await.unwrap();
        assert_eq!((transfer.total(), rest(&mut transfer).await.unwrap().len()), (Some(0), 0));
    }
    assert_eq!(registry.total(), 2, "whether it is there was asked all the same");
}

#[tokio::test]
async fn without_progress_it_ends() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    registry.fault(Match::blobs().ranged(false), Times::Always, Fault::CutAfter(1000));
    registry.fault(Match::blobs().ranged(true), Times::Always, Fault::CutAfter(0));
    let error = rig.blob("app", &layer()).await.unwrap_err();
    assert!(matches!(error, Error::BrokenOff { received: 1000, .. }), "{error}");
    assert_eq!(registry.total(), 6, "once, and five times more");
}

#[tokio::test]
async fn the_last_failure_is_named() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    registry.fault(Match::blobs().ranged(false), Times::Always, Fault::CutAfter(1000));
    registry.fault(Match::blobs().ranged(true), Times::Always, Fault::status(503));
    let error = rig.blob("app", &layer()).await.unwrap_err();
    assert!(matches!(&error, Error::BrokenOff { reason, .. } if reason.contains("503")), "{error}");
}

#[tokio::test]
async fn the_next_endpoint_takes_over() {
    let (mirror, origin) = (with_blob().await, with_blob().await);
    let rig = Plan::new("docker.io", &[&mirror.url(), &origin.url()]).rig();
    assert_eq!(rig.blob("app", &layer()).await.unwrap(), layer().bytes);
    rig.manifest("app", "1").await.unwrap();
    assert_eq!(origin.total(), 0);

    mirror.fault(Match::blobs(), Times::Once, Fault::CutAfter(300_000));
    mirror.fault(Match::blobs(), Times::Always, Fault::status(500));
    assert_eq!(rig.blob("app", &layer()).await.unwrap(), layer().bytes);
    assert_eq!(ranges(&origin), [format!("bytes=300000-{}", SIZE - 1)]);

    // It answers, and never with a byte: that is the mirror's fault too.
    mirror.lift_faults();
    mirror.fault(Match::blobs(), Times::Always, Fault::CutAfter(0));
    assert_eq!(rig.blob("app", &layer()).await.unwrap(), layer().bytes);
    assert_eq!(origin.total(), 2);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_mirror_the_origin_is_asked() {
    let (mirror, origin) = (with_blob().await, with_blob().await);
    let plan = Plan::new("docker.io", &[&mirror.url(), &origin.url()]);
    let rig = plan.with(|upstream| upstream.response_timeout = Duration::from_secs(2)).rig();
    let faults = [
        Fault::status(404),
        Fault::status(401),
        Fault::status(403),
        Fault::status(500),
        Fault::quota(),
        Fault::Html,
        Fault::HangUp,
        Fault::CutAfter(3),
        Fault::hold_head(&Gate::new()),
        Fault::Raw("SSH-2.0-OpenSSH_9.2\r\n".to_owned()),
    ];
    for (count, fault) in faults.into_iter().enumerate() {
        let shown = format!("{fault:?}");
        let fault = mirror.fault(Match::any(), Times::Always, fault);
        rig.manifest("app", "1").await.unwrap();
        fault.lift();
        assert_eq!(origin.counted(), count + 1, "{shown}");
    }
    mirror.stop().await;
    rig.manifest("app", "1").await.unwrap();
    origin.fault(Match::any(), Times::Once, Fault::status(404));
    let last = rig.manifest("app", "1").await.unwrap_err();
    assert_eq!(last, Error::NotFound { endpoint: origin.host() }, "the origin's word is final");
}

#[tokio::test]
async fn a_manifest_costs_one_get_and_is_bounded() {
    let registry = FakeRegistry::start().await;
    for (tag, size) in [("fits", 8 << 20), ("large", (8 << 20) + 1)] {
        registry.push("app", tag, &Image::huge_manifest(1, size));
    }
    let rig = Plan::at(&registry).rig();
    assert_eq!(rig.manifest("app", "fits").await.unwrap().bytes.len(), 8 << 20);
    assert_eq!(registry.counted(), 1);
    assert_eq!(bad_answer(rig.manifest("app", "large").await), "a document of more than 8388608 bytes");
    registry.set(|behaviour| behaviour.quirks.no_length = true);
    assert_eq!(bad_answer(rig.manifest("app", "large").await), "a document of more than 8388608 bytes");
    registry.fault(Match::any(), Times::Once, Fault::header("content-encoding", "gzip"));
    assert_eq!(bad_answer(rig.manifest("app", "fits").await), "a document that is compressed");
    registry.fault(Match::any(), Times::Once, Fault::CutAfter(1000));
    let broken = rig.manifest("app", "fits").await.unwrap_err();
    assert!(matches!(broken, Error::BrokenOff { received: 1000, .. }), "{broken}");
}

#[tokio::test]
async fn time_limits() {
    let registry = with_blob().await;
    let after = Duration::from_millis(200);
    let plan = Plan::at(&registry).with(|upstream| {
        upstream.response_timeout = after;
        upstream.idle_timeout = after;
    });
    let rig = plan.rig();
    let endpoint = registry.host();
    let timed_out = Error::TimedOut { endpoint: endpoint.clone(), after };
    let held = registry.fault(Match::any(), Times::Always, Fault::hold_head(&Gate::new()));
    assert_eq!(rig.manifest("app", "1").await.unwrap_err(), timed_out);
    held.lift();
    registry.fault(Match::manifests(), Times::Always, Fault::StallAfter(10));
    assert_eq!(rig.manifest("app", "1").await.unwrap_err(), timed_out);
    // Documentation addresses lead nowhere: either nobody answers, or the network says so at once.
    let nowhere = Plan::new("docker.io", &["http://192.0.2.1:9"]);
    let rig = nowhere.with(|upstream| upstream.connect_timeout = after).rig();
    let error = rig.manifest("app", "1").await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { endpoint, .. } if endpoint == "192.0.2.1:9"), "{error}");
}

#[tokio::test]
async fn connections_are_used_again_and_a_dead_one_is_replaced() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).rig();
    for _ in 0..5 {
        rig.manifest("app", "1").await.unwrap();
        rig.head("app", "none").await.unwrap_err();
        rig.manifest("app", "none").await.unwrap_err();
        assert_eq!(rig.blob("app", &layer()).await.unwrap(), layer().bytes);
    }
    assert_eq!(registry.accepted_connections(), 1, "errors are read to their end");
    // Closed the moment that the next request comes: it was not the upstream's answer.
    registry.fault(Match::manifests(), Times::Once, Fault::HangUp);
    rig.manifest("app", "1").await.unwrap();
    assert_eq!(registry.accepted_connections(), 2);
    registry.fault(Match::manifests(), Times::N(2), Fault::HangUp);
    let error = rig.manifest("app", "1").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "once is enough: {error}");
}

#[tokio::test]
async fn over_http_2() {
    let ca = TestCa::new();
    let registry = FakeRegistry::start_tls_with(&ca, &[], true).await;
    registry.put_blob("app", &layer());
    registry.push("app", "1", &Image::layers(1, &[10]));
    let plan = Plan::at(&registry);
    let file = plan.file("ca.pem", &ca.pem());
    let rig = plan.with(|upstream| upstream.ca = Some(file)).rig();
    rig.manifest("app", "1").await.unwrap();
    let layer = layer();
    let blobs = (0..10).map(|_| rig.transfer("app", &layer, 0, None));
    for transfer in futures_util::future::join_all(blobs).await {
        assert_eq!(rest(&mut transfer.unwrap()).await.unwrap(), layer.bytes);
    }
    assert_eq!(registry.accepted_connections(), 1);
    registry.fault(Match::blobs(), Times::Once, Fault::CutAfter(300_000));
    assert_eq!(rig.blob("app", &layer).await.unwrap(), layer.bytes);
}

#[tokio::test]
async fn whose_certificates_are_believed() {
    let registry = FakeRegistry::start_tls().await;
    registry.push("app", "1", &Image::layers(1, &[10]));
    let error = Plan::at(&registry).rig().manifest("app", "1").await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { reason, .. } if reason.contains("certificate")), "{error}");
    let plan = Plan::at(&registry);
    let ca = plan.file("ca.pem", &registry.ca_pem());
    plan.with(|upstream| upstream.ca = Some(ca)).rig().manifest("app", "1").await.unwrap();
    Plan::at(&registry).with(|upstream| upstream.insecure = true).rig().manifest("app", "1").await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_be_used() {
    let setup = |adjust: &dyn Fn(&mut tidelock::config::Upstream)| {
        let mut config = Config::default();
        adjust(&mut config.upstreams[1]);
        let (life, metrics) = (Lifecycle::default(), Metrics::default());
        let scheduler = Scheduler::new(&config, None, &life, &metrics);
        let counts = UpstreamMetrics::new(&metrics, &config);
        Client::new(UpstreamId::new(1), &config.upstreams[1], &scheduler, counts, &life)
    };
    assert_eq!(setup(&|_| {}).unwrap().registry().as_str(), "ghcr.io");
    let dir = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, text).unwrap();
        file
    };
    for ca in [
        dir.path().join("none.pem"),
        file(""),
        file("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        let error = setup(&|upstream| upstream.ca = Some(ca.clone())).unwrap_err();
        assert!(matches!(error, BadSetup::Ca { index: 1, .. }), "{error}");
        assert!(error.to_string().starts_with("upstream[1].ca (ghcr.io): /"), "{error}");
    }
    let error = setup(&|u| u.proxy = Proxy::Through(Secret::new("socks5://u:hunter2@h:1"))).unwrap_err();
    assert!(
        error.to_string().starts_with("upstream[1].proxy") && !error.to_string().contains("hunter2"),
        "{error}"
    );
    assert!(matches!(setup(&|u| u.endpoints.clear()), Err(BadSetup::NoEndpoint { index: 1, .. })));
}

#[tokio::test]
async fn through_a_proxy_with_a_password() {
    let registry = with_blob().await;
    let proxy = registry.proxy_url().replace("http://", "http://user:pass@");
    let plan = Plan::new("registry.internal", &["http://registry.internal"]);
    let rig = plan.with(|upstream| upstream.proxy = Proxy::Through(Secret::new(proxy))).rig();
    rig.manifest("app", "1").await.unwrap();
    let tunnels = registry.tunnels();
    assert_eq!((tunnels.len(), tunnels[0].authority.as_str()), (1, "registry.internal:80"));
    assert!(tunnels[0].head.contains("Proxy-Authorization: Basic dXNlcjpwYXNz"));
    assert_eq!(registry.requests()[0].header("proxy-authorization"), "", "not for the registry");
}

#[tokio::test]
async fn tags_in_pages() {
    let registry = with_blob().await;
    for tag in 0..2500 {
        registry.tag("app", &format!("t{tag:04}"), Image::layers(1, &[10]).digest());
    }
    let rig = Plan::at(&registry).rig();
    let tags = async || rig.client.tags(&rig.errand, &name("app")).await;
    assert_eq!(tags().await.unwrap().tags.len(), 2501);
    let queries: Vec<String> = registry.requests().into_iter().map(|request| request.query).collect();
    assert_eq!(queries, ["n=1000", "last=t0998&n=1000", "last=t1998&n=1000"]);

    registry.set(|behaviour| behaviour.tags_page = Some(10));
    assert_eq!(bad_answer(tags().await), "a list without an end");
    registry.clear();
    let away = "<//elsewhere.example/v2/>; rel=\"next\"";
    registry.fault(Match::path("/tags/"), Times::Once, Fault::header("link", away));
    assert_eq!(bad_answer(tags().await), "a next page on another host");
    let disguised = format!("<{}//elsewhere.example/>; rel=\"next\"", registry.url());
    registry.fault(Match::path("/tags/"), Times::Once, Fault::header("link", &disguised));
    assert_eq!(tags().await.unwrap_err(), Error::NotFound { endpoint: registry.host() });
    assert!(registry.requests().iter().all(|request| request.host == registry.host()));
    for (link, reason) in [
        ("<https://elsewhere.example/v2/app/tags/list?last=x>; rel=\"next\"", "a next page on another host"),
        ("<http://[>; rel=\"next\"", "a next page at a malformed URL"),
        ("</v2/app/tags/list?n=1000>; rel=\"next\"", "a next page that is the same again"),
    ] {
        registry.fault(Match::path("/tags/"), Times::Once, Fault::header("link", link));
        assert_eq!(bad_answer(tags().await), reason);
    }
    // Behind a TLS proxy registries get their own scheme and port wrong.
    registry.set(|behaviour| behaviour.tags_page = None);
    registry.clear();
    let link = "<https://127.0.0.1/v2/app/tags/list?last=t2490>; rel=\"next\"";
    registry.fault(Match::path("/tags/"), Times::Once, Fault::header("link", link));
    assert_eq!(tags().await.unwrap().tags.len(), 1000 + 9);
    registry.fault(Match::path("/tags/"), Times::Once, Fault::Status(200, "tags".to_owned(), Vec::new()));
    assert!(bad_answer(tags().await).contains("JSON"));
    let none = rig.client.tags(&rig.errand, &name("none")).await.unwrap_err();
    assert_eq!(none, Error::NotFound { endpoint: registry.host() });
}

#[tokio::test]
async fn referrers_and_their_absence() {
    let registry = with_blob().await;
    let subject = Image::layers(1, &[10]);
    registry.push("app", "sig", &Image::artifact(&subject.top, "application/vnd.example.signature"));
    let rig = Plan::at(&registry).rig();
    let digest = subject.digest().parse().unwrap();
    let referrers = async || rig.client.referrers(&rig.errand, &name("app"), &digest).await;
    assert_eq!(referrers().await.unwrap().len(), 1);
    let missing = Error::NotFound { endpoint: registry.host() };
    for status in [400, 404, 405, 406] {
        registry.fault(Match::any(), Times::Once, Fault::status(status));
        assert_eq!(referrers().await.unwrap_err(), missing, "{status}");
    }
    registry.fault(Match::any(), Times::Once, Fault::Html);
    assert_eq!(referrers().await.unwrap_err(), missing);
    registry.fault(Match::any(), Times::Once, Fault::status(500));
    assert_eq!(referrers().await.unwrap_err().reason(), "status");
    let next = format!("</v2/app/referrers/{digest}?page=2>; rel=\"next\"");
    registry.fault(Match::any(), Times::Once, Fault::header("link", &next));
    assert_eq!(referrers().await.unwrap().len(), 2, "both pages");
}

#[tokio::test]
async fn a_transfer_holds_its_lease() {
    let registry = with_blob().await;
    let rig = Plan::at(&registry).with(|upstream| upstream.max_connections = 1).rig();
    let transfer = rig.transfer("app", &layer(), 0, None).await.unwrap();
    let refused = rig.transfer("app", &layer(), 0, None).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refused::Busy { connections: 1, .. })), "{refused}");
    drop(transfer);
    drop(rig.transfer("app", &layer(), 0, None).await.unwrap());
    eventually_eq(0, async || registry.log().under_way()).await;
}

#[tokio::test]
async fn a_next_that_nobody_waits_for_loses_nothing() {
    let registry = with_blob().await;
    let cdn = registry.start_cdn().await;
    registry.set(|behaviour| behaviour.redirect = Some(Redirect::cdn(&cdn)));
    let gate = Gate::new();
    cdn.fault(Match::any(), Times::Once, Fault::hold_after(&gate, 300_000));
    let rig = Plan::at(&registry).rig();
    let mut transfer = rig.transfer("app", &layer(), 0, None).await.unwrap();
    let mut got = 0;
    while got < 300_000 {
        got += transfer.next().await.unwrap().unwrap().len();
    }
    let impatient = tokio::time::timeout(Duration::from_millis(50), transfer.next()).await;
    assert!(impatient.is_err());
    gate.open();
    assert_eq!(rest(&mut transfer).await.unwrap(), layer().bytes.slice(300_000..));
    assert_eq!(registry.total(), 1);
}
