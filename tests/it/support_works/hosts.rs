//! More than one host: CDNs, redirects, TLS and the fake as a forward proxy.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::behaviour::Redirect;
use crate::support::client::Client;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;
use crate::support::tls::{TestCa, connector};

/// Splits a URL into the client for its host and its path with query.
fn follow(location: &str) -> (Client, String) {
    let url = url::Url::parse(location).unwrap();
    (
        Client::new(&url.origin().ascii_serialization()),
        location[url.origin().ascii_serialization().len()..].to_owned(),
    )
}

#[tokio::test]
async fn a_cdn_behind_signed_urls() {
    let registry = FakeRegistry::start().await;
    let image = Image::layers(1, &[1000]);
    registry.push("app", "1", &image);
    let cdn = registry.start_cdn().await;
    registry.set(|behaviour| behaviour.redirect = Some(Redirect::cdn(&cdn)));
    let layer = &image.layer_blobs()[0];
    let client = Client::new(&registry.url());
    let reply = client.get(&format!("/v2/app/blobs/{}", layer.digest)).await;
    assert_eq!(reply.status, 307);
    let (other, path) = follow(reply.header("location"));
    assert_eq!(other.get(&path).await.whole(), layer.bytes);
    assert_eq!(other.get_range(&path, "bytes=10-19").await.whole(), layer.bytes.slice(10..20));
    let strict = other.clone().with_header("authorization", "Bearer x");
    assert_eq!(strict.get(&path).await.status, 400, "as S3 answers to a second kind of auth");
    cdn.expire_urls();
    assert_eq!(other.get(&path).await.status, 403);
    assert_eq!((cdn.blob_gets(&layer.digest), registry.blob_gets(&layer.digest)), (4, 1));
}

#[tokio::test]
async fn redirects_of_other_kinds() {
    let edge = FakeRegistry::start().await;
    let region = FakeRegistry::start().await;
    let image = Image::layers(1, &[10]);
    edge.push("app", "1", &image);
    region.push("k8s/images/app", "1", &image);
    edge.set(|behaviour| behaviour.redirect = Some(Redirect::registry(&region.url(), "k8s/images/")));
    let client = Client::new(&edge.url());
    let reply = client.get("/v2/app/manifests/1").await;
    let (other, path) = follow(reply.header("location"));
    assert_eq!(path, "/v2/k8s/images/app/manifests/1");
    assert_eq!(other.get(&path).await.whole(), image.top.bytes);

    let path = format!("/v2/app/blobs/{}", image.layer_blobs()[0].digest);
    edge.set(|behaviour| behaviour.redirect = Some(Redirect::looping().status(302)));
    let reply = client.get(&path).await;
    assert!(reply.status == 302 && reply.header("location").starts_with(&path));
    edge.set(|behaviour| behaviour.redirect = Some(Redirect::url("http://192.0.2.1/x")));
    assert_eq!(client.get(&path).await.header("location"), "http://192.0.2.1/x");
}

#[tokio::test]
async fn tls_with_the_fakes_own_authority() {
    let registry = FakeRegistry::start_tls().await;
    let image = Image::layers(1, &[100_000]);
    registry.push("app", "1", &image);
    let client = Client::new(&registry.url()).with_ca(&registry.ca_pem());
    assert!(client.pull("app", "1").await.unwrap().is(&image));
    assert!(registry.requests().iter().all(|record| record.tls));
    let stranger = Client::new(&registry.url()).with_ca(&TestCa::new().pem());
    assert!(stranger.try_get("/v2/").await.is_err());
}

#[tokio::test]
async fn one_fake_plays_many_hosts_as_a_forward_proxy() {
    let proxy = FakeRegistry::start_tls_for(&["registry-1.docker.io", "auth.docker.io", "ghcr.io"]).await;
    let (ours, theirs) = (Image::layers(1, &[10]), Image::layers(2, &[10]));
    proxy.push("registry-1.docker.io/library/app", "1", &ours);
    proxy.push("ghcr.io/library/app", "1", &theirs);
    let at = |url: &str| Client::new(url).through(&proxy.proxy_url()).with_ca(&proxy.ca_pem());

    assert!(at("https://registry-1.docker.io").pull("library/app", "1").await.unwrap().is(&ours));
    assert!(at("https://ghcr.io").pull("library/app", "1").await.unwrap().is(&theirs));
    assert!(at("http://ghcr.io").pull("library/app", "1").await.unwrap().is(&theirs));
    assert_eq!(at("https://auth.docker.io").get("/token").await.status, 200);

    assert_eq!(proxy.tunnels()[0].authority, "registry-1.docker.io:443");
    let hosts: Vec<(String, bool)> = proxy.requests().into_iter().map(|r| (r.host, r.tls)).collect();
    assert_eq!(hosts[0], ("registry-1.docker.io".to_owned(), true));
    assert_eq!(hosts.last(), Some(&("ghcr.io".to_owned(), false)));
    assert_eq!(proxy.token_requests()[0].host, "auth.docker.io");
}

#[tokio::test]
async fn other_fakes_behind_the_proxys_host_names() {
    let proxy = FakeRegistry::start().await;
    let registry = FakeRegistry::start().await;
    let image = Image::layers(1, &[10]);
    registry.push("app", "1", &image);
    let cdn = registry.start_cdn().await;
    cdn.set_public_url("http://cdn.example");
    registry.set(|behaviour| behaviour.redirect = Some(Redirect::cdn(&cdn)));
    proxy.serve_host("registry.example", &registry);
    proxy.serve_host("cdn.example", &cdn);

    let client = Client::new("http://registry.example").through(&proxy.proxy_url());
    let path = format!("/v2/app/blobs/{}", image.layer_blobs()[0].digest);
    let reply = client.request(Method::GET, &path, &[]).await;
    let (other, path) = follow(reply.header("location"));
    assert_eq!(other.through(&proxy.proxy_url()).get(&path).await.status, 200);
    assert_eq!((proxy.total(), registry.total(), cdn.total()), (0, 1, 1));
    assert_eq!(cdn.requests()[0].host, "cdn.example");
}

#[tokio::test]
async fn a_tunnel_may_carry_plain_http() {
    let proxy = FakeRegistry::start().await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let request = "CONNECT registry.example:80 HTTP/1.1\r\nproxy-authorization: Basic x\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = vec![0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply, b"HTTP/1.1 200");
    stream
        .write_all(b"GET /v2/ HTTP/1.1\r\nhost: registry.example\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("HTTP/1.1 200 OK"), "{rest}");
    assert_eq!(proxy.requests()[0].host, "registry.example");
    assert!(proxy.tunnels()[0].head.contains("proxy-authorization: Basic x"));
}

#[tokio::test]
async fn http2_where_it_is_offered() {
    let ca = TestCa::new();
    let registry = FakeRegistry::start_tls_with(&ca, &["registry.example"], true).await;
    let image = Image::layers(1, &[300_000]);
    registry.push("app", "1", &image);
    let tcp = TcpStream::connect(registry.addr()).await.unwrap();
    let name = "registry.example".try_into().unwrap();
    let stream = connector(&ca.pem(), "h2").connect(name, tcp).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let layer = &image.layer_blobs()[0];
    let uri = format!("https://registry.example/v2/app/blobs/{}", layer.digest);
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let reply = sender.send_request(request).await.unwrap();
    assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), layer.bytes);
    let record = registry.requests().remove(0);
    assert_eq!((record.host.as_str(), record.tls), ("registry.example", true));
}
