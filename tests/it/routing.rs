//! Which upstream a request means, and what is no request at all.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::Reply;
use crate::support::eventually::within;
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image, OCI_INDEX, OCI_MANIFEST};
use crate::support::registry::FakeRegistry;

/// Three registries, each with an image of its own under the same names.
struct Three {
    hub: FakeRegistry,
    ghcr: FakeRegistry,
    quay: FakeRegistry,
    images: [Image; 3],
    house: House,
}

/// Every name that a route may end in, so that only the route decides what comes.
const NAMES: [&str; 7] =
    ["app", "library/app", "org/app", "ghcr.io/org/app", "quay.io/org/app", "docker.io/org/app", "a/b/c/d"];

async fn three() -> Three {
    let fakes = [FakeRegistry::start().await, FakeRegistry::start().await, FakeRegistry::start().await];
    let images = [1, 2, 3].map(|seed| Image::layers(seed, &[100]));
    for (fake, image) in fakes.iter().zip(&images) {
        NAMES.iter().for_each(|name| fake.push(name, "v1", image));
    }
    let [hub, ghcr, quay] = fakes;
    let mut second = upstream("ghcr.io", &[&ghcr.url()]);
    second.hosts = vec!["ghcr.mirror.test".parse().unwrap()];
    let mut third = upstream("quay.io", &[&quay.url()]);
    third.hosts = vec!["quay.mirror.test:5000".parse().unwrap()];
    let house = House::start(vec![upstream("docker.io", &[&hub.url()]), second, third], |_| {}).await;
    Three { hub, ghcr, quay, images, house }
}

impl Three {
    /// Which registry answered, by the digest of the only image it has.
    fn who(&self, reply: &Reply) -> Option<usize> {
        let digest = reply.header("docker-content-digest");
        self.images.iter().position(|image| reply.status == 200 && image.digest() == digest)
    }

    fn fakes(&self) -> [&FakeRegistry; 3] {
        [&self.hub, &self.ghcr, &self.quay]
    }

    fn asked(&self) -> usize {
        self.fakes().iter().map(|fake| fake.total()).sum()
    }
}

const HUB: usize = 0;
const GHCR: usize = 1;
const QUAY: usize = 2;

#[tokio::test]
async fn ns_then_host_then_path_then_default() {
    let three = three().await;
    let mirror = three.house.address().to_string();
    // ns, Host, name, who answers, for which name it was asked
    let table = [
        ("", mirror.as_str(), "app", HUB, "library/app"),
        ("", &mirror, "library/app", HUB, "library/app"),
        ("", &mirror, "org/app", HUB, "org/app"),
        ("", &mirror, "a/b/c/d", HUB, "a/b/c/d"),
        ("", &mirror, "docker.io/app", HUB, "library/app"),
        ("", &mirror, "ghcr.io/app", GHCR, "app"),
        ("", &mirror, "ghcr.io/org/app", GHCR, "org/app"),
        ("", &mirror, "quay.io/org/app", QUAY, "org/app"),
        ("docker.io", &mirror, "app", HUB, "library/app"),
        ("index.docker.io", &mirror, "app", HUB, "library/app"),
        ("DOCKER.IO", &mirror, "org/app", HUB, "org/app"),
        ("ghcr.io", &mirror, "app", GHCR, "app"),
        ("quay.io", &mirror, "org/app", QUAY, "org/app"),
        ("", "ghcr.mirror.test", "app", GHCR, "app"),
        ("", "GHCR.Mirror.Test:8080", "org/app", GHCR, "org/app"),
        ("", "quay.mirror.test:5000", "org/app", QUAY, "org/app"),
        ("", "quay.mirror.test:5001", "org/app", HUB, "org/app"),
        ("", "unknown.mirror.test", "org/app", HUB, "org/app"),
        // Each step wins over those after it.
        ("quay.io", "ghcr.mirror.test", "docker.io/org/app", QUAY, "docker.io/org/app"),
        ("", "ghcr.mirror.test", "quay.io/org/app", GHCR, "quay.io/org/app"),
        ("ghcr.io", &mirror, "ghcr.io/org/app", GHCR, "ghcr.io/org/app"),
    ];
    for (ns, host, name, who, asked_for) in table {
        let query = if ns.is_empty() { String::new() } else { format!("ns={ns}") };
        let client = three.house.client().with_query(&query).with_header("host", host);
        let what = format!("ns={ns} host={host} {name}");
        three.fakes().iter().for_each(|fake| fake.clear());
        let reply = client.get(&format!("/v2/{name}/manifests/v1")).await;
        assert_eq!(three.who(&reply), Some(who), "{what}: {} {}", reply.status, reply.text());
        let asked = three.fakes()[who].requests();
        assert_eq!(asked.len(), three.asked(), "{what}: nobody else was asked");
        let prefix = format!("/v2/{asked_for}/manifests/");
        assert!(asked.iter().all(|request| request.path.starts_with(&prefix)), "{what}: {asked:?}");
        // Whoever stands in for a registry is told which one is meant, however that was said here.
        let told = format!("ns={}", ["docker.io", "ghcr.io", "quay.io"][who]);
        assert!(asked.iter().all(|request| request.query == told), "{what}: {asked:?}");
    }
}

#[tokio::test]
async fn the_other_endpoints_go_the_same_ways() {
    let three = three().await;
    for (who, name) in [(HUB, "app"), (GHCR, "ghcr.io/app"), (QUAY, "quay.io/org/app")] {
        let image = &three.images[who];
        let pulled = three.house.client().pull_like_docker(name, "v1").await.unwrap();
        assert!(pulled.is(image), "{name}");
        let tags = three.house.client().get(&format!("/v2/{name}/tags/list")).await;
        assert_eq!(tags.json()["tags"], serde_json::json!(["v1"]), "{name}");
        let referrers = three.house.client().get(&format!("/v2/{name}/referrers/{}", image.digest())).await;
        assert_eq!(referrers.status, 200, "{name}");
        assert!(three.fakes()[who].count("GET", "/referrers/") == 1, "{name}");
    }
}

/// Nothing of a request is ever an address (I6).
#[tokio::test]
async fn an_address_in_a_request_is_never_contacted() {
    let three = three().await;
    let stranger = FakeRegistry::start().await;
    stranger.push("org/app", "v1", &three.images[0]);
    let address = stranger.host();
    let port = stranger.addr().port();
    for ns in [address.clone(), format!("localhost:{port}"), format!("[::1]:{port}"), "evil.test".to_owned()]
    {
        for path in ["manifests/v1", "tags/list", &format!("blobs/{}", three.images[0].blobs[0].digest)] {
            let reply = three.house.client().get(&format!("/v2/org/app/{path}?ns={ns}")).await;
            assert_eq!((reply.status, reply.error_code().as_str()), (404, "NAME_UNKNOWN"), "{ns}");
            assert!(reply.text().contains("quay.io"), "it tells what there is: {}", reply.text());
        }
    }
    for ns in ["http://evil.test", "evil.test/path", "a b", "%00", "user@docker.io", "-", "docker.io:0"] {
        let reply =
            three.house.client().get(&format!("/v2/org/app/tags/list?ns={}", ns.replace(' ', "+"))).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, "NAME_INVALID"), "{ns}");
    }
    for name in ["evil.test/org/app", "localhost.localdomain/app"] {
        let reply = three.house.client().get(&format!("/v2/{name}/manifests/v1")).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (404, "NAME_UNKNOWN"), "{name}");
    }
    let as_proxy = three.house.client().with_header("host", &address);
    assert_eq!(three.who(&as_proxy.get("/v2/org/app/manifests/v1").await), Some(HUB));
    // The absolute form, as a forward proxy gets it.
    let asked = format!("GET http://{address}/v2/org/app/manifests/v1 HTTP/1.1\r\nHost: {address}\r\n");
    assert!(
        raw(three.house.address(), &asked).await.starts_with("HTTP/1.1 200"),
        "its own, not the stranger's"
    );
    let asked = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n");
    assert!(raw(three.house.address(), &asked).await.starts_with("HTTP/1.1 405"));
    assert_eq!(stranger.accepted_connections(), 0);
}

#[tokio::test]
async fn without_a_default_a_registry_must_be_named() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(4, &[10]);
    fake.push("org/app", "v1", &image);
    let house = House::start(vec![upstream("ghcr.io", &[&fake.url()])], |config| {
        config.upstreams[0].default = false;
    })
    .await;
    let reply = house.client().get("/v2/org/app/manifests/v1").await;
    assert_eq!((reply.status, reply.error_code().as_str()), (404, "NAME_UNKNOWN"));
    assert!(reply.text().contains("?ns="), "{}", reply.text());
    assert_eq!(house.client().get("/v2/ghcr.io/org/app/manifests/v1").await.status, 200);
    assert_eq!(house.client().get("/v2/org/app/manifests/v1?ns=ghcr.io").await.status, 200);
}

/// An upstream's endpoint may be on a host that is a registry of its own.
#[tokio::test]
async fn a_registry_goes_by_its_own_name_first() {
    let (hub, own) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let images = [9, 10].map(|seed| Image::layers(seed, &[10]));
    hub.push("org/app", "v1", &images[0]);
    own.push("org/app", "v1", &images[1]);
    let upstreams = vec![upstream("docker.io", &[&hub.url()]), upstream("127.0.0.1", &[&own.url()])];
    let house = House::start(upstreams, |_| {}).await;
    for (ns, image) in [("127.0.0.1", &images[1]), ("docker.io", &images[0])] {
        let pulled = house.client().with_query(&format!("ns={ns}")).pull("org/app", "v1").await.unwrap();
        assert!(pulled.is(image), "{ns}");
    }
    let pulled = house.client().pull("127.0.0.1/org/app", "v1").await.unwrap();
    assert!(pulled.is(&images[1]), "by its path");
}

/// What another registry keeps is not within `library/`.
#[tokio::test]
async fn only_docker_hub_has_a_library() {
    let fake = FakeRegistry::start().await;
    fake.push("app", "v1", &Image::layers(5, &[10]));
    let house = House::start(vec![upstream("registry.example", &[&fake.url()])], |_| {}).await;
    assert_eq!(house.client().get("/v2/app/manifests/v1").await.status, 200);
    assert_eq!(house.client().get("/v2/library/app/manifests/v1").await.status, 404);
}

#[tokio::test]
async fn what_the_operator_does_not_allow() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(6, &[10]));
    fake.push("secret/app", "v1", &Image::layers(6, &[10]));
    let house = House::with(&fake, |config| {
        config.upstreams[0].deny = vec!["secret/**".parse().unwrap()];
    })
    .await;
    for path in ["/v2/secret/app/manifests/v1", "/v2/docker.io/secret/app/tags/list"] {
        for method in [Method::GET, Method::HEAD] {
            let reply = house.client().request(method, path, &[]).await;
            assert_eq!(reply.status, 403, "{path}");
        }
    }
    assert_eq!(house.client().get("/v2/secret/app/manifests/v1").await.error_code(), "DENIED");
    assert_eq!(house.client().get("/v2/app/manifests/v1").await.status, 200);
    assert_eq!(fake.count("GET", "secret") + fake.count("HEAD", "secret"), 0);
}

#[tokio::test]
async fn writes_are_refused_everywhere() {
    let three = three().await;
    let digest = three.images[0].digest();
    let before = three.asked();
    let paths = [
        "/v2/".to_owned(),
        "/v2/_catalog".to_owned(),
        "/v2/org/app/manifests/v1".to_owned(),
        format!("/v2/org/app/manifests/{digest}"),
        format!("/v2/org/app/blobs/{digest}"),
        "/v2/org/app/blobs/uploads/".to_owned(),
        format!("/v2/org/app/blobs/uploads/?digest={digest}"),
        format!("/v2/org/app/blobs/uploads/?mount={digest}&from=org/other"),
        "/v2/org/app/blobs/uploads/1234-abcd?_state=x".to_owned(),
        "/v2/org/app/tags/list".to_owned(),
        format!("/v2/org/app/referrers/{digest}"),
        "/v2/evil.test/app/blobs/uploads/".to_owned(),
        "/anything".to_owned(),
    ];
    for path in &paths {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"] {
            let body = if method.starts_with('P') { Bytes::from(vec![b'x'; 100_000]) } else { Bytes::new() };
            let sent = three.house.client().try_request(method.parse().unwrap(), path, &[], body).await;
            let reply = sent.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
            assert_eq!((reply.status, reply.error_code().as_str()), (405, "UNSUPPORTED"), "{method} {path}");
            assert_eq!(reply.header("allow"), "GET, HEAD", "{method} {path}");
            assert!(reply.text().contains("read-only"), "{}", reply.text());
        }
    }
    assert_eq!(three.asked(), before, "the upstream hears nothing of it");
    let reply = three.house.client().get("/v2/org/app/blobs/uploads/1234-abcd").await;
    assert_eq!(reply.status, 404, "the state of an upload that cannot be");
}

/// Whatever stands in a body that is not read, it is no request.
#[tokio::test]
async fn a_body_is_no_request() {
    let three = three().await;
    let smuggled = "GET /v2/org/app/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n";
    for framing in [
        format!("Content-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()),
    ] {
        for request in ["PUT /v2/org/app/manifests/v1", "GET /v2/"] {
            let head = format!("{request} HTTP/1.1\r\nHost: x\r\n{framing}GET /v2/ HTTP/1.1\r\nHost: x\r\n");
            let answers = raw(three.house.address(), head).await;
            assert!((1..=2).contains(&answers.matches("HTTP/1.1 ").count()), "{answers}");
            assert!(!answers.contains("manifest.v1+json"), "{answers}");
        }
    }
    assert_eq!(three.asked(), 0);
}

#[tokio::test]
async fn what_is_no_endpoint() {
    let three = three().await;
    let long = "a".repeat(256);
    let long_tag = "a".repeat(129);
    let digest = three.images[0].digest();
    let upper = digest.to_uppercase().replace("SHA256", "sha256");
    let table = [
        ("/".to_owned(), 404, "UNSUPPORTED"),
        ("/v1/".to_owned(), 404, "UNSUPPORTED"),
        ("/v2x".to_owned(), 404, "UNSUPPORTED"),
        ("/V2/".to_owned(), 404, "UNSUPPORTED"),
        ("/metrics".to_owned(), 404, "UNSUPPORTED"),
        ("/v2/org/app".to_owned(), 404, "UNSUPPORTED"),
        ("/v2/org/app/manifests".to_owned(), 404, "UNSUPPORTED"),
        ("/v2/org/app/tags".to_owned(), 404, "UNSUPPORTED"),
        ("/v2/org/app/tags/list/".to_owned(), 404, "UNSUPPORTED"),
        ("/v2/org/app/_oci/ext/discover".to_owned(), 404, "UNSUPPORTED"),
        ("/v2/_oci/ext/discover".to_owned(), 404, "UNSUPPORTED"),
        ("//v2/".to_owned(), 404, "UNSUPPORTED"),
        ("/v2/%ff/manifests/v1".to_owned(), 404, "UNSUPPORTED"),
        ("/v2//manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2//org/app/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/org//app/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/org/app//manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/Org/App/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/org/_app/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/../../etc/passwd/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/..%2f..%2fetc/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/%2e%2e/app/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/org/app%00/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/org%20app/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        (format!("/v2/{long}/manifests/v1"), 400, "NAME_INVALID"),
        ("/v2/org/app/manifests/".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("/v2/org/app/manifests/.v1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("/v2/org/app/manifests/v1%2f..".to_owned(), 404, "UNSUPPORTED"),
        ("/v2/org/app/manifests/..".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/org/app/manifests/{long_tag}"), 404, "MANIFEST_UNKNOWN"),
        ("/v2/org/app/manifests/sha256:baddigeststring".to_owned(), 400, "DIGEST_INVALID"),
        ("/v2/org/app/manifests/sha256:".to_owned(), 400, "DIGEST_INVALID"),
        (format!("/v2/org/app/manifests/{upper}"), 400, "DIGEST_INVALID"),
        (format!("/v2/org/app/blobs/{upper}"), 400, "DIGEST_INVALID"),
        (format!("/v2/org/app/blobs/{digest}0"), 400, "DIGEST_INVALID"),
        ("/v2/org/app/blobs/latest".to_owned(), 400, "DIGEST_INVALID"),
        (format!("/v2/org/app/blobs/md5:{}", "0".repeat(32)), 400, "DIGEST_INVALID"),
        ("/v2/org/app/referrers/sha256:x".to_owned(), 400, "DIGEST_INVALID"),
        ("/v2/org/app/tags/list?n=x".to_owned(), 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/org/app/tags/list?n=-1".to_owned(), 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/_catalog?n=x".to_owned(), 400, "PAGINATION_NUMBER_INVALID"),
    ];
    for (path, status, code) in table {
        let reply = three.house.client().get(&path).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (status, code), "{path}");
        assert_eq!(three.house.client().head(&path).await.status, status, "HEAD {path}");
    }
    assert_eq!(three.asked(), 0, "{:?}", three.hub.log().summary());
}

#[tokio::test]
async fn the_ping() {
    let three = three().await;
    for path in ["/v2", "/v2/", "/v2/?ns=docker.io", "/v2?x=y", "/%76%32/"] {
        let reply = three.house.client().get(path).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "{}"), "{path}");
        assert_eq!(three.house.client().head(path).await.header("content-length"), "2", "{path}");
    }
    assert_eq!(three.asked(), 0);
}

#[tokio::test]
async fn escapes_mean_what_they_stand_for() {
    let three = three().await;
    let digest = three.images[0].digest().replace(':', "%3A");
    for path in [
        "/v2/org/app/manifests/v1",
        "/v2/org%2Fapp/manifests/v1",
        "/v2/%6frg/app/manifests/%76%31",
        &format!("/v2/org/app/manifests/{digest}"),
        "/v2/org/app/manifests/v1?ns=docker%2Eio",
        "/v2/org/app/manifests/v1?unknown=%ff%00&&=&x",
    ] {
        let reply = three.house.client().get(path).await;
        assert_eq!(three.who(&reply), Some(HUB), "{path}: {}", reply.text());
    }
    assert!(three.hub.requests().iter().all(|request| request.path.starts_with("/v2/org/app/manifests/")));
}

#[tokio::test]
async fn a_type_that_the_client_does_not_take() {
    let fake = FakeRegistry::start().await;
    let index = Image::multi_platform(7, &[10]);
    fake.push("library/app", "v1", &index);
    let house = House::over(&fake).await;
    let ask = |method: Method, reference: &str, accept: &'static str| {
        let (client, path) = (house.client(), format!("/v2/app/manifests/{reference}"));
        async move { client.request(method, &path, &[("accept", accept)]).await }
    };
    for turn in ["cold", "cached"] {
        for method in [Method::HEAD, Method::GET] {
            for accept in [OCI_MANIFEST, "text/html, application/json"] {
                let reply = ask(method.clone(), "v1", accept).await;
                assert_eq!(reply.status, 404, "{turn}: {accept}");
                if method == Method::GET {
                    assert_eq!(reply.error_code(), "MANIFEST_UNKNOWN");
                    assert!(
                        reply.text().contains(OCI_INDEX) && reply.text().contains("Accept"),
                        "{}",
                        reply.text()
                    );
                }
            }
            for accept in [OCI_INDEX, "*/*", "application/*", "text/html, */*;q=0.1", ""] {
                let reply = ask(method.clone(), "v1", accept).await;
                assert_eq!(reply.status, 200, "{turn}: {accept}");
            }
        }
    }
    // By digest there is nothing to choose.
    assert_eq!(ask(Method::GET, index.digest(), OCI_MANIFEST).await.status, 200);
}

/// containerd asks for a digest as a manifest first, and then as a blob.
#[tokio::test]
async fn a_blob_is_no_manifest_and_no_manifest_is_no_blob_missing() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(8, &[1000]);
    fake.push("library/app", "v1", &image);
    let house = House::with(&fake, |config| {
        config.upstreams[0].freshness.negative_ttl = std::time::Duration::from_secs(600);
    })
    .await;
    let layer = &image.layer_blobs()[0];
    for turn in ["cold", "cached"] {
        for method in [Method::HEAD, Method::GET] {
            let path = format!("/v2/app/manifests/{}", layer.digest);
            let reply = house.client().request(method.clone(), &path, &[]).await;
            assert_eq!(reply.status, 404, "{turn}: {method}");
            let path = format!("/v2/app/blobs/{}", layer.digest);
            let reply = house.client().request(method.clone(), &path, &[]).await;
            assert_eq!(reply.status, 200, "{turn}: {method}");
        }
    }
}

#[tokio::test]
async fn names_and_queries_at_their_limits() {
    let three = three().await;
    let longest = format!("org/{}", "a".repeat(251));
    three.hub.push(&longest, "v1", &three.images[0]);
    let reply = three.house.client().get(&format!("/v2/{longest}/manifests/v1")).await;
    assert_eq!(three.who(&reply), Some(HUB));
    let deep = vec!["a"; 128].join("/");
    three.hub.push(&deep, &"t".repeat(128), &three.images[0]);
    let reply = three.house.client().get(&format!("/v2/{deep}/manifests/{}", "t".repeat(128))).await;
    assert_eq!(three.who(&reply), Some(HUB));
    let query = "x=y&".repeat(10_000);
    let reply = three.house.client().get(&format!("/v2/org/app/manifests/v1?{query}ns=ghcr.io")).await;
    assert_eq!(three.who(&reply), Some(GHCR), "{}", reply.status);
    let huge = format!("GET /v2/org/app/manifests/v1?{} HTTP/1.1\r\nHost: x\r\n", "x".repeat(100_000));
    assert!(raw(three.house.address(), huge).await.starts_with("HTTP/1.1 414 "));
    assert_eq!(three.house.client().get("/v2/").await.status, 200, "and it goes on");
}

/// A request whose head is `head`, its last line break included; the whole answer.
async fn raw(address: SocketAddr, head: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_ref()).await.unwrap();
    stream.write_all(b"Connection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    within("the answer", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bytes_that_are_no_text() {
    let three = three().await;
    let address = three.house.address();
    for (head, statuses) in [
        (&b"GET /v2/\xff\xfe/manifests/v1 HTTP/1.1\r\nHost: x\r\n"[..], &["400", "404"][..]),
        (b"GET /v2/org/app/manifests/v1?ns=\xff HTTP/1.1\r\nHost: x\r\n", &["400"]),
        (b"GET /v2/org/app/manifests/v1 HTTP/1.1\r\nHost: \xff\r\n", &["200", "400"]),
        (b"GET /v2/org/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nAccept: \xff\xff\r\n", &["200"]),
        (b"GET /v2/org/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nIf-None-Match: \xff\r\n", &["200"]),
        (b"GET /v2/org/app/manifests/v1 HTTP/1.0\r\n", &["200"]),
        (b"GET org/app HTTP/1.1\r\nHost: x\r\n", &["400"]),
        (b"GET * HTTP/1.1\r\nHost: x\r\n", &["400", "404"]),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n", &["405"]),
        (b"nonsense\r\n", &["400"]),
    ] {
        let answer = raw(address, head).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(statuses.contains(&status), "{}: {answer}", String::from_utf8_lossy(head));
    }
    let blob = Blob::random(1, 1);
    let strange = format!("/v2/org/app/blobs/{}", blob.digest);
    let reply = three.house.client().request(Method::GET, &strange, &[("range", "bytes=\u{e9}")]).await;
    assert_eq!(reply.status, 404);
}
