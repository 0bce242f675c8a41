//! Following redirects: to signed URLs, to other registries, and not to where they must not lead.

use tidelock::upstream::Error;

use crate::support::behaviour::{Auth, Redirect, Target};
use crate::support::faults::{Fault, Match, Times};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;
use crate::upstream_rig::{Plan, bad_answer, rest, shown};

const SIZE: usize = 300_000;

/// A registry that wants tokens, with one blob, and its CDN.
async fn with_cdn() -> (FakeRegistry, crate::support::cdn::FakeCdn, Blob) {
    let registry = FakeRegistry::start().await;
    let blob = Blob::random(7, SIZE);
    registry.put_blob("app", &blob);
    registry.push("app", "1", &Image::layers(1, &[10]));
    let cdn = registry.start_cdn().await;
    registry.set(|behaviour| {
        behaviour.auth = Auth::bearer();
        behaviour.redirect = Some(Redirect::cdn(&cdn));
    });
    (registry, cdn, blob)
}

#[tokio::test]
async fn a_cdn_sees_no_login_and_every_pull_gets_a_fresh_url() {
    let (registry, cdn, blob) = with_cdn().await;
    let rig = Plan::at(&registry).rig();
    for _ in 0..2 {
        assert_eq!(rig.blob("app", &blob).await.unwrap(), blob.bytes);
    }
    let requests = cdn.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.header("authorization").is_empty()));
    assert!(requests.iter().all(|request| request.header("accept-encoding") == "identity"));
    assert_ne!(requests[0].query, requests[1].query, "a redirect is never kept");
    assert_eq!(shown(&registry.requests(), &registry.host()), ["", "Bearer token-1", "Bearer token-1"]);
}

#[tokio::test]
async fn every_kind_of_redirect_for_get_and_head() {
    let (registry, cdn, blob) = with_cdn().await;
    let rig = Plan::at(&registry).rig();
    for status in [301, 302, 303, 307, 308] {
        registry.set(|b| b.redirect = Some(Redirect::cdn(&cdn).with_manifests().status(status)));
        cdn.clear();
        rig.manifest("app", Image::layers(1, &[10]).digest()).await.unwrap();
        assert_eq!(rig.head_blob("app", &blob).await.unwrap().size, Some(SIZE as u64));
        assert_eq!(rig.blob("app", &blob).await.unwrap(), blob.bytes);
        let methods: Vec<String> = cdn.requests().into_iter().map(|request| request.method).collect();
        assert_eq!(methods, ["GET", "HEAD", "GET"], "{status}");
    }
    for status in [300, 304] {
        registry.set(|b| b.redirect = Some(Redirect::cdn(&cdn).status(status)));
        let error = rig.blob("app", &blob).await.unwrap_err();
        assert_eq!(error, Error::Status { endpoint: registry.host(), status });
    }
}

#[tokio::test]
async fn a_signed_url_that_is_over_is_asked_for_afresh_once() {
    let (registry, cdn, blob) = with_cdn().await;
    let rig = Plan::at(&registry).rig();
    for status in [400, 401, 403] {
        cdn.fault(Match::any(), Times::Once, Fault::status(status));
        assert_eq!(rig.blob("app", &blob).await.unwrap(), blob.bytes, "{status}");
    }
    assert_eq!(cdn.total(), 6);
    cdn.clear();
    cdn.fault(Match::any(), Times::Always, Fault::status(403));
    let error = rig.blob("app", &blob).await.unwrap_err();
    assert!(matches!(error, Error::Hidden { .. }), "{error}");
    assert_eq!(cdn.total(), 2);
}

#[tokio::test]
async fn urls_run_out_in_the_middle_of_a_transfer() {
    let (registry, cdn, blob) = with_cdn().await;
    let rig = Plan::at(&registry).rig();
    cdn.fault(Match::any(), Times::Once, Fault::CutAfter(100_000));
    let mut transfer = rig.transfer("app", &blob, 0, None).await.unwrap();
    cdn.expire_urls();
    registry.tokens().expire_all_tokens();
    assert_eq!(rest(&mut transfer).await.unwrap(), blob.bytes);
    assert_eq!(registry.tokens().issued(), 2, "the token had run out as well");
    assert_eq!(cdn.requests()[1].header("range"), format!("bytes=100000-{}", SIZE - 1));
}

#[tokio::test]
async fn loops_and_endless_chains() {
    let (registry, _, blob) = with_cdn().await;
    let rig = Plan::at(&registry).rig();
    registry.set(|behaviour| behaviour.redirect = Some(Redirect::looping()));
    assert_eq!(bad_answer(rig.blob("app", &blob).await), "a redirect loop");
    registry.set(|behaviour| behaviour.auth = Auth::None);
    registry.clear();
    let location = |to: &str| Fault::Status(307, String::new(), vec![("location".to_owned(), to.to_owned())]);
    for hop in 0..20 {
        registry.fault(Match::any(), Times::Once, location(&format!("/hop/{hop}")));
    }
    assert_eq!(bad_answer(rig.blob("app", &blob).await), "more than 10 redirects");
    assert_eq!(registry.total(), 11);
}

#[tokio::test]
async fn redirects_to_nowhere() {
    let (registry, _, blob) = with_cdn().await;
    registry.set(|behaviour| behaviour.auth = Auth::None);
    let rig = Plan::at(&registry).rig();
    for to in ["ftp://127.0.0.1/", "http://", "http://u:p@127.0.0.1/", "javascript:x"] {
        registry.set(|behaviour| behaviour.redirect = Some(Redirect::url(to)));
        assert!(bad_answer(rig.blob("app", &blob).await).starts_with("a redirect"), "{to}");
    }
    registry.fault(Match::any(), Times::Once, Fault::status(307));
    assert_eq!(bad_answer(rig.blob("app", &blob).await), "a redirect to nowhere");
}

#[tokio::test]
async fn another_port_is_another_host_and_the_same_one_is_not() {
    let (registry, _, blob) = with_cdn().await;
    let other = FakeRegistry::start().await;
    other.put_blob("app", &blob);
    let to = |url: String| Redirect { to: Target::Url(url), ..Redirect::url("") };
    let there = format!("{}/v2/app/blobs/{}", other.url(), blob.digest);
    registry.set(|behaviour| behaviour.redirect = Some(to(there)));
    let rig = Plan::at(&registry).rig();
    assert_eq!(rig.blob("app", &blob).await.unwrap(), blob.bytes);
    assert_eq!(shown(&other.requests(), &other.host()), [""]);

    registry.put_blob("moved", &blob);
    registry.set(|behaviour| behaviour.redirect = None);
    registry.clear();
    let location = format!("/v2/moved/blobs/{}", blob.digest);
    let moved = Fault::Status(307, String::new(), vec![("location".to_owned(), location)]);
    registry.fault(Match::path("/v2/app/"), Times::Once, moved);
    registry.set(|behaviour| behaviour.auth = Auth::None);
    rig.blob("app", &blob).await.unwrap();
    assert_eq!(shown(&registry.requests(), &registry.host()), ["Bearer token-1", "Bearer token-1"]);
}

#[tokio::test]
async fn a_host_that_wants_a_token_of_its_own_gets_an_anonymous_one() {
    let (registry, _, blob) = with_cdn().await;
    let other = FakeRegistry::start().await;
    other.put_blob("mirror/app", &blob);
    other.set(|behaviour| behaviour.auth = Auth::bearer());
    registry.tokens().add_account("ci", "hunter2");
    registry.set(|b| b.redirect = Some(Redirect::registry(&other.url(), "mirror/")));
    let rig = Plan::at(&registry).account("ci", "hunter2").rig();
    assert_eq!(rig.blob("app", &blob).await.unwrap(), blob.bytes);
    assert_eq!(shown(&other.requests(), &other.host()), ["", "Bearer token-1"]);
    assert_eq!(shown(&other.token_requests(), &other.host()), [""], "nobody's account");
    assert_eq!(
        other.token_requests()[0].query,
        "service=registry.fake&scope=repository%3Amirror%2Fapp%3Apull"
    );
}

#[tokio::test]
async fn a_public_registry_leads_nowhere_private() {
    for to in [
        "https://127.0.0.1/x",
        "https://localhost/x",
        "https://10.1.2.3/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[fd00::1]/x",
        "https://2130706433/x",
    ] {
        let registry = FakeRegistry::start_tls_for(&["registry.example.com"]).await;
        let blob = Blob::random(7, 10);
        registry.put_blob("app", &blob);
        registry.set(|behaviour| behaviour.redirect = Some(Redirect::url(to)));
        let plan = Plan::through(&registry, "registry.example.com", "https://registry.example.com");
        let reason = bad_answer(plan.rig().blob("app", &blob).await);
        assert!(reason.contains("private addresses"), "{to}: {reason}");
        assert_eq!(registry.tunnels().len(), 1, "{to}");
    }
}

#[tokio::test]
async fn no_way_back_from_https() {
    let registry = FakeRegistry::start_tls_for(&["registry.example.com"]).await;
    let blob = Blob::random(7, 10);
    registry.put_blob("app", &blob);
    registry.set(|b| b.redirect = Some(Redirect::url("http://registry.example.com/x")));
    let plan = Plan::through(&registry, "registry.example.com", "https://registry.example.com");
    assert_eq!(bad_answer(plan.rig().blob("app", &blob).await), "a redirect from https to http");
    assert_eq!(registry.total(), 1);
}
