//! Nobody completes a corrupt download, and nothing wrong is kept (I1).

use bytes::Bytes;
use futures_util::future::join_all;
use hyper::Method;
use tidelock::config::{Account, Credentials, Proxy};
use tidelock::secret::Secret;

use crate::support::behaviour::{Auth, Bearer, Redirect};
use crate::support::client::Reply;
use crate::support::eventually::eventually_eq;
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

const LARGE: usize = 700_000;
const SMALL: usize = 2_000;
const FAILURES: &str = "tidelock_verify_failures_total{upstream=\"docker.io\"}";

/// A registry with one blob that nothing mentions, and a house over it.
async fn with_blob(len: usize) -> (FakeRegistry, House, Blob) {
    let (fake, blob) = (FakeRegistry::start().await, Blob::random(1, len));
    fake.put_blob("library/app", &blob);
    let house = House::over(&fake).await;
    (fake, house, blob)
}

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

/// A client that got this knows that it has nothing.
fn is_no_success(reply: &Reply) -> bool {
    reply.truncated || (reply.status == 502 && reply.error_code() == "UNAVAILABLE")
}

async fn is_clean(house: &House) {
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    assert_eq!(house.blobs(), []);
    assert_eq!(house.metric("tidelock_cache_blobs").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_completes_a_large_blob_that_is_wrong() {
    for offset in [0, LARGE / 2, LARGE - 1] {
        let (fake, house, blob) = with_blob(LARGE).await;
        let wrong = fake.fault(Match::blob(&blob.digest), Times::Always, Fault::WrongBytesAt(offset));
        let (whole, from_start) = (path(&blob), path(&blob));
        let plain = join_all((0..5).map(|_| {
            let (client, path) = (house.client(), whole.clone());
            async move { client.try_get(&path).await }
        }));
        let ranged = house.client();
        let ranged = ranged.try_request(Method::GET, &from_start, &[("range", "bytes=0-")], Bytes::new());
        let (plain, ranged) = tokio::join!(plain, ranged);
        // Who came just before the verdict is cut off before the head of the answer is on the wire.
        for reply in plain.into_iter().chain([ranged]).flatten() {
            assert!(is_no_success(&reply) && reply.body.len() < LARGE, "{offset}: {}", reply.status);
        }
        assert_eq!(house.metric(FAILURES).await, wrong.hits() as f64);
        is_clean(&house).await;
        assert_eq!(house.partials(), [], "wrong bytes are nothing to go on from");
        wrong.lift();
        assert_eq!(house.client().blob("library/app", &blob.digest).await.unwrap(), blob.bytes);
        assert_eq!(fake.requests().last().unwrap().header("range"), "", "anew from the beginning");
    }
}

#[tokio::test]
async fn a_small_blob_that_is_wrong_is_a_clean_error() {
    for len in [1, SMALL, 64 << 10] {
        let (fake, house, blob) = with_blob(len).await;
        let wrong = fake.fault(Match::blob(&blob.digest), Times::Once, Fault::WrongBytes);
        let reply = house.client().get(&path(&blob)).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"));
        assert!(!reply.truncated && wrong.hits() == 1);
        assert_eq!(house.metric(FAILURES).await, 1.0);
        is_clean(&house).await;
        assert_eq!(house.client().get(&path(&blob)).await.whole(), blob.bytes);
    }
}

#[tokio::test]
async fn a_wrong_manifest_is_a_clean_error() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[SMALL]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    for reference in [image.digest(), "v1"] {
        fake.fault(Match::manifest(image.digest()), Times::Once, Fault::WrongBytes);
        let reply = house.client().get(&format!("/v2/library/app/manifests/{reference}")).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"), "{reference}");
        is_clean(&house).await;
    }
    assert_eq!(house.metric(FAILURES).await, 2.0);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
}

/// Fetched by tag, since the upstream knows no HEAD: what its answer says of itself must hold.
#[tokio::test]
async fn a_wrong_manifest_by_tag_is_a_clean_error() {
    for image in [Image::layers(1, &[SMALL]), Image::layers_sha512(1, &[SMALL])] {
        let fake = FakeRegistry::start().await;
        fake.push("library/app", "v1", &image);
        fake.set(|behaviour| behaviour.quirks.no_head = true);
        let house = House::over(&fake).await;
        for fault in [Fault::WrongBytes, Fault::Truncate(100)] {
            fake.fault(Match::manifest("v1"), Times::Once, fault);
            let reply = house.client().get("/v2/library/app/manifests/v1").await;
            assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"));
            is_clean(&house).await;
        }
        assert_eq!(house.metric(FAILURES).await, 2.0);
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    }
}

/// All the ways in which a body can be another than it should be, with the length known from the manifest and
/// without. The client is never lied to, nothing is kept, and the next pull is as if nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_no_blobs() {
    let faults = [
        Fault::Html,
        Fault::Extra(10),
        Fault::Extra(100_000),
        Fault::WrongLength,
        Fault::WrongBytes,
        Fault::Truncate(0),
        Fault::status(500),
        Fault::header("content-length", "0"),
    ];
    for (len, mentioned) in [(LARGE, true), (LARGE, false), (SMALL, true), (SMALL, false)] {
        let image = Image::layers(1, &[len]);
        let blob = image.layer_blobs().remove(0);
        let (image, blob) = (&image, &blob);
        let outcomes = faults.iter().map(|fault| async move {
            let fake = FakeRegistry::start().await;
            fake.push("library/app", "v1", image);
            let house = House::over(&fake).await;
            if mentioned {
                house.client().manifest("library/app", "v1").await.unwrap();
            }
            let trouble = fake.fault(Match::blob(&blob.digest), Times::Once, fault.clone());
            let reply = house.client().try_get(&path(blob)).await;
            let is_whole = reply
                .as_ref()
                .is_ok_and(|reply| reply.status == 200 && !reply.truncated && reply.body == blob.bytes);
            let is_no_success = reply.as_ref().is_ok_and(is_no_success);
            assert!(is_whole || is_no_success, "{len} {mentioned} {fault:?}: {:?}", reply.map(|r| r.status));
            assert_eq!(trouble.hits(), 1);
            eventually_eq(0.0, || house.metric("tidelock_flights")).await;
            let again = house.client().get(&path(blob)).await;
            assert_eq!(again.whole(), blob.bytes, "{len} {mentioned} {fault:?}");
        });
        join_all(outcomes).await;
    }
}

#[tokio::test]
async fn a_short_body_without_a_length_is_not_a_blob() {
    for len in [SMALL, LARGE] {
        let (fake, house, blob) = with_blob(len).await;
        let short = fake.fault(Match::blob(&blob.digest), Times::Always, Fault::Truncate(len - 1));
        let reply = house.client().get(&path(&blob)).await;
        assert!(is_no_success(&reply), "{}", reply.status);
        is_clean(&house).await;
        short.lift();
        assert_eq!(house.client().get(&path(&blob)).await.whole(), blob.bytes);
    }
}

#[tokio::test]
async fn a_page_is_no_manifest() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[SMALL]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    fake.set(|behaviour| behaviour.quirks.html = true);
    for reference in ["v1", image.digest()] {
        for reply in [
            house.client().get(&format!("/v2/library/app/manifests/{reference}")).await,
            house.client().head(&format!("/v2/library/app/manifests/{reference}")).await,
        ] {
            assert_eq!(reply.status, 502, "{reference}");
        }
    }
    let blob = &image.blobs[0];
    assert_eq!(house.client().get(&path(blob)).await.status, 502);
    assert_eq!(house.client().head(&path(blob)).await.status, 502, "a page is no proof either");
    is_clean(&house).await;
    fake.set(|behaviour| behaviour.quirks.html = false);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
}

#[tokio::test]
async fn answers_without_measure() {
    let fake = FakeRegistry::start().await;
    let huge = Image::huge_manifest(1, 40 << 20);
    fake.push("library/huge", "v1", &huge);
    let image = Image::layers(2, &[SMALL]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    for reference in ["v1", huge.digest()] {
        let reply = house.client().get(&format!("/v2/library/huge/manifests/{reference}")).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"));
        assert!(reply.text().contains("cannot be used"), "{}", reply.text());
    }
    is_clean(&house).await;
    fake.set(|behaviour| behaviour.auth = Auth::bearer());
    fake.tokens().set(|behaviour| behaviour.padding = 10 << 20);
    let reply = house.client().get("/v2/library/app/manifests/v1").await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"));
    is_clean(&house).await;
    fake.tokens().set(|behaviour| behaviour.padding = 0);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
}

#[tokio::test]
async fn redirects_without_end() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[SMALL]);
    fake.push("library/app", "v1", &image);
    fake.set(|behaviour| behaviour.redirect = Some(Redirect::looping().with_manifests()));
    let house = House::over(&fake).await;
    for what in ["manifests/v1", &format!("blobs/{}", image.blobs[0].digest)] {
        let reply = house.client().get(&format!("/v2/library/app/{what}")).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"), "{what}");
    }
    assert!(fake.total() < 50, "{}", fake.total());
    fake.set(|behaviour| behaviour.redirect = None);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
}

/// A registry that sends whoever comes to a token service of somebody else does not get at the password.
#[tokio::test]
async fn a_challenge_to_another_host() {
    let fake = FakeRegistry::start_tls_for(&["registry.example.com", "login.elsewhere.net"]).await;
    let image = Image::layers(1, &[SMALL]);
    fake.push("library/app", "v1", &image);
    fake.tokens().add_account("ci", "secret");
    let realm = Some("https://login.elsewhere.net/token".to_owned());
    fake.set(|behaviour| behaviour.auth = Auth::Bearer(Bearer { realm, ..Bearer::default() }));
    let folder = tempfile::tempdir().unwrap();
    let (ca, file) = (folder.path().join("ca.pem"), folder.path().join("password"));
    std::fs::write(&ca, fake.ca_pem()).unwrap();
    std::fs::write(&file, "secret").unwrap();
    let mut only = upstream("docker.io", &["https://registry.example.com"]);
    only.proxy = Proxy::Through(Secret::new(fake.proxy_url()));
    only.ca = Some(ca);
    let credentials = Credentials::PasswordFile { username: "ci".to_owned(), file };
    only.accounts = vec![Account::new("ci", credentials)];
    let house = House::start(vec![only], |_| {}).await;
    let reply = house.client().get("/v2/library/app/manifests/v1").await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"));
    assert!(fake.token_requests().is_empty());
    assert!(!reply.text().contains("secret"));
    assert_eq!(reply.header("www-authenticate"), "");
    let listed = |config: &mut tidelock::config::Config| {
        config.upstreams[0].token_hosts = vec!["login.elsewhere.net".parse().unwrap()];
    };
    let house = house.restart(listed).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
}
