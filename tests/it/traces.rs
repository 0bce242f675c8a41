//! Spans for a collector: one for each request, one for each question to an upstream, in the client's own trace.

use http::StatusCode;
use tidelock::config::Share;

use crate::support::collector::{Collector, Span};
use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

async fn scene(collector: &Collector, share: u8) -> (FakeRegistry, House, Image) {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[1000]));
    fake.push("library/app", "v1", &image);
    let house = House::with(&fake, |config| {
        config.trace.endpoint = Some(collector.url().parse().unwrap());
        config.trace.share = Share(share);
    })
    .await;
    (fake, house, image)
}

async fn span(collector: &Collector, name: &str) -> Span {
    let find = || collector.spans().into_iter().find(|span| span.kind == 2 && span.name == name);
    eventually(|| async { find().is_some() }).await;
    find().unwrap()
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

#[tokio::test]
async fn a_clients_trace_goes_on_to_the_upstream() {
    let collector = Collector::start().await;
    let (fake, house, _) = scene(&collector, 1).await;
    let client =
        house.client().with_header("traceparent", &traceparent("01")).with_header("tracestate", "a=b");
    assert_eq!(client.get("/v2/library/app/manifests/v1").await.status, 200);
    let own = span(&collector, "GET manifest").await;
    eventually(|| async { collector.spans().len() >= 3 }).await;
    assert_eq!((own.kind, own.trace.as_str(), own.service.as_str()), (2, TRACE, "tidelock"));
    assert_eq!((own.parent.as_str(), &own.failed), (PARENT, &None));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.path", "/v2/library/app/manifests/v1"),
        ("client.address", "127.0.0.1"),
        ("tidelock.repository", "docker.io/library/app"),
        ("tidelock.outcome", "miss"),
        ("tidelock.account", "anonymous"),
    ] {
        assert_eq!(own.attributes.get(key).map(String::as_str), Some(value), "{key}");
    }
    // Each question is a child, and the upstream was told so.
    let asked = fake.log().matching(|record| record.path.contains("/manifests/"));
    let told: Vec<String> = asked.iter().map(|record| record.header("traceparent").to_owned()).collect();
    let spans = collector.spans();
    let children: Vec<&Span> = spans.iter().filter(|span| span.kind == 3 && span.parent == own.id).collect();
    assert_eq!(children.len(), told.len(), "{spans:#?}");
    for child in children {
        assert!(told.contains(&format!("00-{TRACE}-{}-01", child.id)), "{told:?}");
        assert_eq!(child.attributes["server.address"], fake.host());
    }
    assert!(asked.iter().all(|record| record.header("tracestate") == "a=b"));
}

#[tokio::test]
async fn a_client_that_wants_no_trace_gets_none() {
    let collector = Collector::start().await;
    let (fake, house, _) = scene(&collector, 100).await;
    let client = house.client().with_header("traceparent", &traceparent("00"));
    client.get("/v2/library/app/manifests/v1").await;
    let told = fake.log().matching(|record| record.header("traceparent").ends_with("-00"));
    assert!(!told.is_empty(), "it is passed on");
    house.client().get("/v2/library/app/tags/list").await;
    span(&collector, "GET tags").await;
    assert!(collector.spans().iter().all(|span| span.trace != TRACE));
}

#[tokio::test]
async fn without_a_collector_nothing_is_passed_on() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(1, &[1000]));
    let house = House::over(&fake).await;
    let client = house.client().with_header("traceparent", &traceparent("01"));
    client.get("/v2/library/app/manifests/v1").await;
    assert_eq!(fake.log().matching(|record| !record.header("traceparent").is_empty()).len(), 0);
    assert!(fake.total() > 0);
}

#[tokio::test]
async fn what_failed_says_why() {
    let collector = Collector::start().await;
    let (fake, house, _) = scene(&collector, 100).await;
    fake.fault(Match::manifests(), Times::Always, Fault::status(500));
    house.client().get("/v2/library/app/manifests/v1").await;
    let own = span(&collector, "GET manifest").await;
    assert!(own.failed.unwrap().contains("docker.io/library/app:v1"));
    assert_eq!(own.attributes["http.response.status_code"], "502");
    let asked = collector.spans().into_iter().find(|span| span.kind == 3).unwrap();
    assert!(asked.failed.is_some(), "{asked:?}");
}

/// A collector that is gone, or says no, costs the spans and nothing else.
#[tokio::test]
async fn a_collector_that_fails_is_no_reason_to_fail() {
    let collector = Collector::start().await;
    collector.answer(StatusCode::SERVICE_UNAVAILABLE);
    let (_fake, house, image) = scene(&collector, 100).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    eventually(|| async { collector.posts() > 0 }).await;
    collector.answer(StatusCode::OK);
    house.client().get("/v2/library/app/tags/list").await;
    span(&collector, "GET tags").await;
    // The last ones are sent at the stop.
    house.client().head("/v2/library/app/manifests/v1").await;
    house.stop().await;
    eventually_eq(true, || async { collector.spans().iter().any(|span| span.name == "HEAD manifest") }).await;
}
