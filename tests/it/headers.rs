//! The headers of every answer, by GET and HEAD, and what of a request's headers matters.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::behaviour::Auth;
use crate::support::client::Reply;
use crate::support::eventually::{eventually_eq, within};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

const FOREVER: &str = "max-age=31536000, immutable";
const HIT: &str = "tidelock; hit";
const MISS: &str = "tidelock; fwd=miss; stored";
const JOINED: &str = "tidelock; fwd=miss; collapsed";
const REVALIDATED: &str = "tidelock; hit; detail=revalidated";
const STALE: &str = "tidelock; hit; detail=stale";

/// A fake with an image at `library/app:v1` whose last layer is empty, and a house over it.
async fn scene() -> (FakeRegistry, Image, House) {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[100_000, 0]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    (fake, image, house)
}

fn manifest_path(reference: &str) -> String {
    format!("/v2/library/app/manifests/{reference}")
}

fn blob_path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

/// What every answer has, and what none has.
fn assert_common(reply: &Reply, what: &str) {
    assert_eq!(reply.header("docker-distribution-api-version"), "registry/2.0", "{what}");
    for absent in ["content-encoding", "transfer-encoding", "www-authenticate", "set-cookie", "location"] {
        assert_eq!(reply.header(absent), "", "{what}: {absent}");
    }
    assert!(reply.headers.contains_key("date"), "{what}");
}

fn assert_content(reply: &Reply, blob: &Blob, media_type: &str, caching: &str, what: &str) {
    assert_common(reply, what);
    assert_eq!(reply.status, 200, "{what}");
    assert_eq!(reply.header("content-type"), media_type, "{what}");
    assert_eq!(reply.header("content-length"), blob.len().to_string(), "{what}");
    assert_eq!(reply.header("docker-content-digest"), blob.digest, "{what}");
    assert_eq!(reply.header("etag"), format!("\"{}\"", blob.digest), "{what}");
    assert_eq!(reply.header("cache-control"), caching, "{what}");
    assert_eq!(reply.header("oci-namespace"), "", "{what}");
}

#[tokio::test]
async fn of_content_by_get_and_head_when_cold_and_cached() {
    let (_fake, image, house) = scene().await;
    let top = &image.top;
    let mut objects = vec![
        (manifest_path(&top.digest), top, top.media_type.as_str(), FOREVER),
        (manifest_path("v1"), top, top.media_type.as_str(), "no-cache"),
    ];
    objects.extend(image.blobs.iter().map(|b| (blob_path(b), b, "application/octet-stream", FOREVER)));
    assert!(image.blobs.iter().any(|blob| blob.len() == 0));
    // HEAD first: the first round is cold, the second half cached, the third all cached.
    for round in 0..3 {
        for (path, blob, media_type, caching) in &objects {
            let head = house.client().head(path).await;
            assert_content(&head, blob, media_type, caching, &format!("round {round}: HEAD {path}"));
            assert!(head.body.is_empty());
            let get = house.client().get(path).await;
            assert_content(&get, blob, media_type, caching, &format!("round {round}: GET {path}"));
            assert!(get.whole() == blob.bytes, "{path}");
        }
    }
}

#[tokio::test]
async fn sha512_is_echoed_as_it_was_asked_for() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers_sha512(2, &[1000]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    let top = &image.top;
    for path in [manifest_path("v1"), manifest_path(&top.digest)] {
        for method in [Method::HEAD, Method::GET] {
            let reply = house.client().request(method, &path, &[]).await;
            assert_eq!((reply.status, reply.header("docker-content-digest")), (200, top.digest.as_str()));
        }
    }
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
}

/// The upstream's type is passed on, whatever it is; nothing is sniffed (I10).
#[tokio::test]
async fn the_media_type_is_the_upstreams() {
    let (fake, _, house) = scene().await;
    for (n, media_type) in [
        "application/vnd.cncf.oras.artifact.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.example.never-heard-of.v7+json",
    ]
    .into_iter()
    .enumerate()
    {
        let manifest = Blob::new(format!("{{\"n\":{n},\n  \"spaces\" : \"kept\"}}\n"), media_type);
        fake.put_manifest("library/app", &manifest);
        fake.tag("library/app", &format!("t{n}"), &manifest.digest);
        for reference in [format!("t{n}"), manifest.digest.clone()] {
            for method in [Method::HEAD, Method::GET, Method::HEAD, Method::GET] {
                let reply = house.client().request(method.clone(), &manifest_path(&reference), &[]).await;
                assert_eq!((reply.status, reply.header("content-type")), (200, media_type), "{method}");
                assert!(method == Method::HEAD || reply.whole() == manifest.bytes);
            }
        }
    }
}

/// An upstream that tells no length must not make us tell a wrong one.
#[tokio::test]
async fn head_never_guesses_a_length() {
    let (fake, image, house) = scene().await;
    fake.set(|behaviour| behaviour.quirks.no_length = true);
    for blob in &image.blobs {
        for turn in ["cold", "cached"] {
            let head = house.client().head(&blob_path(blob)).await;
            assert_eq!(
                (head.status, head.header("content-length")),
                (200, blob.len().to_string().as_str()),
                "{turn}"
            );
        }
    }
    for reference in ["v1", image.digest()] {
        let head = house.client().head(&manifest_path(reference)).await;
        assert_eq!(head.header("content-length"), image.top.len().to_string(), "{reference}");
    }
}

#[tokio::test]
async fn cache_status_of_a_tag() {
    let (fake, image, house) = scene().await;
    let path = manifest_path("v1");
    for expected in [MISS, REVALIDATED] {
        assert_eq!(house.client().get(&path).await.header("cache-status"), expected);
    }
    let head = house.client().head(&path).await;
    assert_eq!((head.header("cache-status"), head.header("age")), (REVALIDATED, "0"));
    fake.stop().await;
    for method in [Method::GET, Method::HEAD] {
        let stale = house.client().request(method, &path, &[]).await;
        assert_content(&stale, &image.top, &image.top.media_type, "no-cache", "stale");
        assert_eq!(stale.header("cache-status"), STALE);
        assert!(stale.header("age").parse::<u64>().is_ok());
        assert!(stale.header("warning").starts_with("299 - \""), "{}", stale.header("warning"));
    }
    let by_digest = house.client().get(&manifest_path(image.digest())).await;
    assert_eq!((by_digest.header("cache-status"), by_digest.header("warning")), (HIT, ""));
    assert_eq!(by_digest.header("age"), "", "a digest needs no confirmation");
}

#[tokio::test]
async fn cache_status_of_a_fresh_tag() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(3, &[10]));
    let house =
        House::with(&fake, |config| config.upstreams[0].freshness.tag_ttl = Duration::from_secs(600)).await;
    assert_eq!(house.client().get(&manifest_path("v1")).await.header("cache-status"), MISS);
    fake.clear();
    let reply = house.client().get(&manifest_path("v1")).await;
    assert_eq!((reply.header("cache-status"), reply.header("warning")), (HIT, ""));
    assert_eq!(fake.total(), 0, "I4");
}

#[tokio::test]
async fn cache_status_of_a_blob() {
    let (fake, image, house) = scene().await;
    let layer = &image.layer_blobs()[0];
    let gate = Gate::new();
    fake.fault(Match::blob(&layer.digest), Times::Once, Fault::hold_after(&gate, 50_000));
    let leader = house.client().get_streaming(&blob_path(layer)).await;
    let late = house.client().get_streaming(&blob_path(layer)).await;
    assert_eq!((leader.header("cache-status"), late.header("cache-status")), (MISS, JOINED));
    gate.open();
    house.settled().await;
    // Whoever comes before the flight has ended joins it.
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    assert_eq!(house.client().get(&blob_path(layer)).await.header("cache-status"), HIT);
    assert_eq!(house.client().head(&blob_path(layer)).await.header("cache-status"), HIT);
    // Through another repository: one free HEAD shows that it may see it.
    fake.put_blob("library/other", layer);
    fake.clear();
    let other = blob_path(layer).replace("library/app", "library/other");
    assert_eq!(house.client().get(&other).await.header("cache-status"), REVALIDATED);
    assert_eq!(house.client().get(&other).await.header("cache-status"), HIT);
    assert_eq!((fake.total(), fake.count("HEAD", "/blobs/")), (1, 1), "{:?}", fake.log().summary());
}

#[tokio::test]
async fn cache_status_of_a_manifest_that_many_ask_for() {
    let (fake, image, house) = scene().await;
    let gate = Gate::new();
    fake.fault(Match::manifest(image.digest()), Times::Once, Fault::hold_head(&gate));
    let path = manifest_path(image.digest());
    let get = || {
        let (client, path) = (house.client(), path.clone());
        tokio::spawn(async move { client.get(&path).await })
    };
    let leader = get();
    gate.waiting(1).await;
    let follower = get();
    eventually_eq(2.0, || house.metric("tidelock_connections")).await;
    gate.open();
    assert_eq!(leader.await.unwrap().header("cache-status"), MISS);
    // It came while the first was held, or a moment too late for that.
    let status = follower.await.unwrap().header("cache-status").to_owned();
    assert!([JOINED, HIT].contains(&status.as_str()), "{status}");
    assert_eq!(fake.counted(), 1);
}

#[tokio::test]
async fn lists_and_pings() {
    let (fake, image, house) = scene().await;
    for method in [Method::GET, Method::HEAD] {
        for path in ["/v2", "/v2/", "/v2/_catalog", "/v2/library/app/tags/list"] {
            let reply = house.client().request(method.clone(), path, &[]).await;
            assert_common(&reply, path);
            assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"), "{path}");
            assert_ne!(reply.header("content-length"), "0", "{path}");
            assert_eq!(reply.body.is_empty(), method == Method::HEAD, "{path}");
        }
        let path = format!("/v2/library/app/referrers/{}", image.digest());
        let reply = house.client().request(method, &path, &[]).await;
        assert_common(&reply, &path);
        assert_eq!(reply.header("content-type"), "application/vnd.oci.image.index.v1+json");
        assert_eq!(reply.header("cache-control"), "no-cache");
    }
    let tags = house.client().get("/v2/library/app/tags/list").await;
    assert_eq!((tags.header("cache-control"), tags.header("cache-status")), ("no-cache", REVALIDATED));
    fake.stop().await;
    let tags = house.client().get("/v2/library/app/tags/list").await;
    assert_eq!(tags.header("cache-status"), STALE);
    assert!(tags.header("warning").starts_with("299 - ") && !tags.header("age").is_empty());
}

#[tokio::test]
async fn the_namespace_is_named_when_it_was_used() {
    let (_fake, image, house) = scene().await;
    let layer = &image.layer_blobs()[0];
    let paths = [
        manifest_path("v1"),
        manifest_path(image.digest()),
        blob_path(layer),
        "/v2/library/app/tags/list".to_owned(),
        format!("/v2/library/app/referrers/{}", image.digest()),
    ];
    for path in &paths {
        for method in [Method::HEAD, Method::GET] {
            let plain = house.client().request(method.clone(), path, &[]).await;
            assert_eq!((plain.status, plain.header("oci-namespace")), (200, ""), "{path}");
            for ns in ["docker.io", "index.docker.io"] {
                let client = house.client().with_query(&format!("ns={ns}"));
                let named = client.request(method.clone(), path, &[]).await;
                assert_eq!((named.status, named.header("oci-namespace")), (200, ns), "{path}");
            }
        }
    }
}

/// containerd asks so on every GET and decodes whatever it gets.
#[tokio::test]
async fn nothing_is_encoded() {
    let (fake, image, house) = scene().await;
    let asking = house.client().with_header("accept-encoding", "zstd, gzip, deflate");
    assert!(asking.pull("library/app", "v1").await.unwrap().is(&image));
    for path in [manifest_path("v1"), blob_path(&image.layer_blobs()[0]), "/v2/library/app/tags/list".into()]
    {
        let reply = asking.get(&path).await;
        assert_common(&reply, &path);
    }
    for request in fake.requests() {
        assert!(["", "identity"].contains(&request.header("accept-encoding")), "{}", request.path);
    }
}

#[tokio::test]
async fn a_client_that_has_it_already() {
    let (_fake, image, house) = scene().await;
    assert!(house.client().pull("library/app", "v1").await.is_ok());
    let layer = &image.layer_blobs()[0];
    for (path, digest) in [
        (manifest_path("v1"), image.digest()),
        (manifest_path(image.digest()), image.digest()),
        (blob_path(layer), &layer.digest),
    ] {
        let own = format!("\"{digest}\"");
        let known = [
            own.clone(),
            format!("W/{own}"),
            "*".to_owned(),
            format!("\"x\", {own}"),
            format!("W/\"y\",W/{own} ,\"z\""),
        ];
        for method in [Method::GET, Method::HEAD] {
            for validator in &known {
                let headers = [("if-none-match", validator.as_str()), ("range", "bytes=0-1")];
                let reply = house.client().request(method.clone(), &path, &headers).await;
                let what = format!("{method} {path}: {validator}");
                assert_eq!((reply.status, reply.whole().len()), (304, 0), "{what}");
                assert_eq!(reply.header("etag"), own, "{what}");
                assert_eq!(reply.header("docker-content-digest"), digest, "{what}");
                assert_ne!(reply.header("cache-control"), "", "{what}");
                assert_eq!((reply.header("content-type"), reply.header("content-range")), ("", ""), "{what}");
            }
            for validator in ["\"x\"", digest, &own.replace("sha256:", "sha512:"), "", "W/\"\""] {
                let reply =
                    house.client().request(method.clone(), &path, &[("if-none-match", validator)]).await;
                assert_eq!(reply.status, 200, "{method} {path}: {validator}");
            }
        }
    }
}

/// Classic dockerd sends Docker Hub's credentials to every mirror.
#[tokio::test]
async fn authorization_is_ignored_and_goes_nowhere() {
    let (fake, image, house) = scene().await;
    fake.set(|behaviour| behaviour.auth = Auth::bearer());
    for authorization in ["Basic dXNlcjpodW50ZXIy", "Bearer hunter2", "Nonsense", ""] {
        let client = house.client().with_header("authorization", authorization);
        assert_eq!(client.get("/v2/").await.status, 200);
        assert!(client.pull("library/app", "v1").await.unwrap().is(&image), "{authorization}");
        for request in fake.requests().iter().chain(&fake.token_requests()) {
            for (name, value) in &request.headers {
                let value = String::from_utf8_lossy(value.as_bytes());
                assert!(
                    !value.contains("hunter2") && !value.contains("dXNlcj"),
                    "{name} of {}",
                    request.path
                );
            }
        }
    }
    assert!(!fake.token_requests().is_empty());
}

/// What the client says of itself is not the upstream's to know.
#[tokio::test]
async fn other_headers_go_nowhere_either() {
    let (fake, image, house) = scene().await;
    let marked = ["cookie", "x-forwarded-for", "x-test", "user-agent", "referer", "x-meta-source-client"];
    let client = marked.iter().fold(house.client(), |client, name| client.with_header(name, "marked"));
    assert!(client.pull("library/app", "v1").await.unwrap().is(&image));
    for request in fake.requests() {
        for (name, value) in &request.headers {
            assert_ne!(value.as_bytes(), b"marked", "{name} of {}", request.path);
        }
    }
}

fn assert_error(reply: &Reply, status: u16, code: &str, what: &str) {
    assert_common(reply, what);
    assert_eq!(reply.status, status, "{what}: {}", reply.text());
    assert_eq!(reply.header("content-type"), "application/json", "{what}");
    assert!(reply.header("cache-status").starts_with("tidelock; detail="), "{what}");
    assert_eq!(reply.header("cache-control"), "no-store", "{what}");
    if reply.body.is_empty() {
        assert_ne!(reply.header("content-length"), "0", "{what}");
        return;
    }
    assert_eq!(reply.error_code(), code, "{what}");
    let errors = reply.json()["errors"].clone();
    assert_eq!(errors.as_array().map(Vec::len), Some(1), "{what}");
    assert!(errors[0]["message"].as_str().unwrap().len() > 10, "{what}");
}

#[tokio::test]
async fn errors_are_those_of_the_specification() {
    let (fake, image, house) = scene().await;
    let house = house.restart(|config| config.schedule.max_wait = Duration::from_millis(200)).await;
    let nowhere = Blob::random(99, 10);
    let absent = format!("/v2/library/none/blobs/{}", nowhere.digest);
    let table = [
        (manifest_path("none"), 404, "MANIFEST_UNKNOWN"),
        (manifest_path(&nowhere.digest), 404, "MANIFEST_UNKNOWN"),
        (blob_path(&nowhere), 404, "BLOB_UNKNOWN"),
        (absent, 404, "BLOB_UNKNOWN"),
        ("/v2/library/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("/v2/library/app/nothing".to_owned(), 404, "UNSUPPORTED"),
        (manifest_path("sha256:baddigeststring"), 400, "DIGEST_INVALID"),
    ];
    for (path, status, code) in &table {
        for method in [Method::GET, Method::HEAD] {
            let reply = house.client().request(method.clone(), path, &[]).await;
            assert_error(&reply, *status, code, &format!("{method} {path}"));
            assert_eq!(reply.body.is_empty(), method == Method::HEAD);
        }
    }
    for (fault, status, code) in [
        (Fault::status(503), 502, "UNAVAILABLE"),
        (Fault::HangUp, 502, "UNAVAILABLE"),
        (Fault::Html, 502, "UNAVAILABLE"),
        // Last: it lasts.
        (Fault::abuse(7), 429, "TOOMANYREQUESTS"),
    ] {
        let what = format!("{fault:?}");
        fake.fault(Match::path("/v2/"), Times::Always, fault);
        for path in [manifest_path("v1"), manifest_path(image.digest())] {
            let reply = house.client().get(&path).await;
            assert_error(&reply, status, code, &what);
            let retry_after = reply.header("retry-after").parse::<u64>().ok();
            assert_eq!(retry_after.is_some(), status == 429, "{what}");
            assert!(retry_after.is_none_or(|seconds| (3..=8).contains(&seconds)), "{retry_after:?}");
            assert!(!reply.text().contains(&fake.host()), "an error tells no host: {}", reply.text());
        }
        fake.lift_faults();
    }
}

/// A house that speaks HTTP/2, plain, to whoever knows beforehand.
async fn http2_client(house: &House) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(house.address()).await.unwrap();
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (client, connection) = within("the handshake", shaken).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn send(
    client: &mut http2::SendRequest<Empty<Bytes>>,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> (http::response::Parts, Bytes) {
    let request = Request::builder().method(method).uri(format!("http://mirror.test{path}"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = client.send_request(request.body(Empty::new()).unwrap());
    let answer: Response<Incoming> = within("an answer", answer).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = within("the body", body.collect()).await.unwrap().to_bytes();
    (head, body)
}

#[tokio::test]
async fn http2_is_the_same() {
    let (fake, image, house) = scene().await;
    let mut client = http2_client(&house).await;
    let layer = &image.layer_blobs()[0];
    for turn in ["cold", "cached"] {
        for (path, blob) in [(manifest_path("v1"), &image.top), (blob_path(layer), layer)] {
            for method in [Method::HEAD, Method::GET] {
                let (head, body) = send(&mut client, method.clone(), &path, &[]).await;
                assert_eq!(head.status, 200, "{turn} {method} {path}");
                assert_eq!(head.headers["content-length"], blob.len().to_string(), "{turn} {method} {path}");
                assert_eq!(head.headers["docker-content-digest"], blob.digest.as_str());
                let expected = if method == Method::HEAD { Bytes::new() } else { blob.bytes.clone() };
                assert!(body == expected, "{turn} {method} {path}");
            }
        }
    }
    let empty = image.blobs.iter().find(|blob| blob.len() == 0).unwrap();
    let (head, _) = send(&mut client, Method::HEAD, &blob_path(empty), &[]).await;
    assert_eq!(head.headers["content-length"], "0");
    let (head, _) = send(&mut client, Method::POST, "/v2/library/app/blobs/uploads/", &[]).await;
    assert_eq!((head.status.as_u16(), &head.headers["allow"]), (405, &"GET, HEAD".parse().unwrap()));
    // As long as podman's list of ranges: more than hyper takes on HTTP/2 when not told otherwise.
    let ranges: Vec<String> = (0..1024).map(|n| format!("{:09}-{:09}", n * 90, n * 90 + 9)).collect();
    let header = format!("bytes={}", ranges.join(","));
    let (head, body) = send(&mut client, Method::GET, &blob_path(layer), &[("range", &header)]).await;
    assert_eq!(
        (head.status.as_u16(), head.headers["content-length"].to_str().unwrap()),
        (206, body.len().to_string().as_str())
    );
    fake.clear();
    let (head, _) =
        send(&mut client, Method::GET, &manifest_path(image.digest()), &[("authorization", "x")]).await;
    assert_eq!((head.status.as_u16(), fake.total()), (200, 0));
}

/// The authority of HTTP/2 is the Host of HTTP/1.
#[tokio::test]
async fn http2_has_hosts_too() {
    let (hub, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let image = Image::layers(8, &[10]);
    other.push("app", "v1", &image);
    let mut second = upstream("ghcr.io", &[&other.url()]);
    second.hosts = vec!["mirror.test".parse().unwrap()];
    let house = House::start(vec![upstream("docker.io", &[&hub.url()]), second], |_| {}).await;
    let mut client = http2_client(&house).await;
    let (head, body) = send(&mut client, Method::GET, "/v2/app/manifests/v1", &[]).await;
    assert_eq!((head.status.as_u16(), body), (200, image.top.bytes.clone()));
    assert_eq!(hub.total(), 0);
}
