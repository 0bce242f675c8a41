//! The endpoints, their headers, and the log of what was asked.

use http::Method;

use crate::support::behaviour::RateLimit;
use crate::support::client::{Client, PullError};
use crate::support::images::{Blob, Image, OCI_INDEX, OCI_MANIFEST, is_digest_of, random_bytes, sha512};
use crate::support::registry::FakeRegistry;

#[tokio::test]
async fn a_client_pulls_an_image_and_every_request_is_counted() {
    let registry = FakeRegistry::start().await;
    let image = Image::multi_platform(1, &[100, 70_000, 0]);
    registry.push("library/app", "1", &image);
    let client = Client::new(&registry.url());
    let pulled = client.pull("library/app", "1").await.unwrap();
    assert!(pulled.is(&image));
    assert_eq!(registry.counted(), 3, "{:?}", registry.log().summary());
    assert_eq!(registry.total(), 3 + image.blobs.len());
    let layer = &image.layer_blobs()[0];
    assert_eq!(registry.blob_gets(&layer.digest), 1);
    let record = registry.log().matching(|r| r.path.contains(&layer.digest)).remove(0);
    assert_eq!((record.status, record.sent, record.finished), (Some(200), 100, true));
    assert_eq!(record.host, registry.host());
    registry.clear();
    assert_eq!(registry.total(), 0);
}

#[tokio::test]
async fn docker_pulls_by_head_and_digest() {
    let registry = FakeRegistry::start().await;
    let image = Image::docker(2, &[1000]);
    registry.push("app", "latest", &image);
    let pulled = Client::new(&registry.url()).pull_like_docker("app", "latest").await.unwrap();
    assert!(pulled.is(&image));
    assert_eq!(registry.count("HEAD", "/manifests/latest"), 1);
    assert_eq!(registry.counted(), 1);
}

#[tokio::test]
async fn images_are_the_same_for_the_same_seed_and_differ_for_another() {
    assert_eq!(Image::layers(7, &[10, 20]), Image::layers(7, &[10, 20]));
    assert_ne!(Image::layers(7, &[10]).digest(), Image::layers(8, &[10]).digest());
    assert_eq!(random_bytes(1, 13).len(), 13);
    let image = Image::layers_sha512(1, &[10]);
    assert_eq!(image.digest(), sha512(&image.top.bytes));
    let distinct = |image: &Image| image.blobs.iter().all(|blob| is_digest_of(&blob.digest, &blob.bytes));
    assert!(distinct(&image) && distinct(&Image::multi_platform(3, &[5, 0])));
    assert_eq!(Image::huge_manifest(1, 5_000_000).top.len(), 5_000_000);
    assert_eq!(Image::multi_platform(3, &[5, 6]).layer_blobs().len(), 4);
}

#[tokio::test]
async fn sha512_images_are_pulled_by_their_own_digests() {
    let registry = FakeRegistry::start().await;
    let image = Image::layers_sha512(1, &[300]);
    registry.push("app", "1", &image);
    let client = Client::new(&registry.url());
    assert!(client.pull("app", "1").await.unwrap().is(&image));
    assert!(client.pull("app", image.digest()).await.unwrap().is(&image));
}

#[tokio::test]
async fn head_has_every_header_and_no_body() {
    let registry = FakeRegistry::start().await;
    let image = Image::layers(1, &[0]);
    registry.push("app", "1", &image);
    let client = Client::new(&registry.url());
    let head = client.head("/v2/app/manifests/1").await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), OCI_MANIFEST);
    assert_eq!(head.header("content-length"), image.top.len().to_string());
    assert_eq!(head.header("docker-content-digest"), image.digest());
    assert_eq!(head.header("etag"), format!("\"{}\"", image.digest()));
    assert!(head.body.is_empty());
    let empty = client.head(&format!("/v2/app/blobs/{}", image.layer_blobs()[0].digest)).await;
    assert_eq!((empty.status, empty.header("content-length")), (200, "0"));
    let etag = head.header("etag").to_owned();
    let same = client.request(Method::GET, "/v2/app/manifests/1", &[("if-none-match", &etag)]).await;
    assert_eq!((same.status, same.body.len()), (304, 0));
}

#[tokio::test]
async fn ranges_of_a_blob() {
    let registry = FakeRegistry::start().await;
    let blob = Blob::random(5, 2048);
    registry.put_blob("app", &blob);
    let client = Client::new(&registry.url());
    let path = format!("/v2/app/blobs/{}", blob.digest);
    for (range, first, end) in [
        ("bytes=0-99", 0, 100),
        ("bytes=2000-", 2000, 2048),
        ("bytes=-48", 2000, 2048),
        ("bytes=1000-9999", 1000, 2048),
    ] {
        let reply = client.get_range(&path, range).await;
        assert_eq!(reply.status, 206, "{range}");
        assert_eq!(reply.whole(), blob.bytes.slice(first..end), "{range}");
        assert_eq!(reply.header("content-range"), format!("bytes {first}-{}/2048", end - 1));
    }
    for range in ["bytes=2048-", "bytes=500-0"] {
        let reply = client.get_range(&path, range).await;
        assert_eq!((reply.status, reply.header("content-range")), (416, "bytes */2048"), "{range}");
    }
    registry.set(|behaviour| behaviour.quirks.ignore_range = true);
    assert_eq!(client.get_range(&path, "bytes=0-99").await.whole().len(), 2048);
}

#[tokio::test]
async fn what_is_not_there_is_an_oci_error() {
    let registry = FakeRegistry::start().await;
    registry.push("app", "1", &Image::layers(1, &[10]));
    let client = Client::new(&registry.url());
    for (path, code) in [
        ("/v2/nothing/manifests/1", "NAME_UNKNOWN"),
        ("/v2/app/manifests/2", "MANIFEST_UNKNOWN"),
        ("/v2/app/blobs/sha256:00", "BLOB_UNKNOWN"),
    ] {
        let reply = client.get(path).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (404, code), "{path}");
    }
    let error = client.pull("app", "2").await.unwrap_err();
    assert!(matches!(&error, PullError::Status { .. }) && error.status() == Some(404), "{error}");
    assert_eq!(client.request(Method::PUT, "/v2/app/manifests/2", &[]).await.status, 405);
    registry.remove_repo("app");
    assert_eq!(client.get("/v2/app/manifests/1").await.error_code(), "NAME_UNKNOWN");
}

#[tokio::test]
async fn tags_come_in_pages() {
    let registry = FakeRegistry::start().await;
    let image = Image::layers(1, &[10]);
    for tag in ["a", "b", "c", "d", "e"] {
        registry.push("app", tag, &image);
    }
    registry.remove_tag("app", "c");
    registry.set(|behaviour| behaviour.tags_page = Some(3));
    let client = Client::new(&registry.url());
    let first = client.get("/v2/app/tags/list?n=100").await;
    assert_eq!(first.json()["tags"], serde_json::json!(["a", "b", "d"]));
    assert_eq!(first.header("link"), "</v2/app/tags/list?last=d&n=3>; rel=\"next\"");
    let last = client.get("/v2/app/tags/list?last=d&n=3").await;
    assert_eq!((last.json()["tags"].clone(), last.header("link")), (serde_json::json!(["e"]), ""));
}

#[tokio::test]
async fn referrers_are_listed_or_unheard_of() {
    let registry = FakeRegistry::start().await;
    let image = Image::layers(1, &[10]);
    let signature = Image::artifact(&image.top, "application/vnd.example.signature");
    registry.push("app", "1", &image);
    registry.push("app", "sig", &signature);
    let client = Client::new(&registry.url());
    let path = format!("/v2/app/referrers/{}", image.digest());
    let all = client.get(&path).await;
    assert_eq!(all.header("content-type"), OCI_INDEX);
    assert_eq!(all.json()["manifests"][0]["digest"], signature.digest());
    let filtered = client.get(&format!("{path}?artifactType=other")).await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(filtered.json()["manifests"], serde_json::json!([]));
    registry.set(|behaviour| behaviour.referrers = false);
    let bare = client.get(&path).await;
    assert_eq!((bare.status, bare.error_code().as_str()), (404, ""));
}

#[tokio::test]
async fn a_quota_is_spent_by_manifest_gets_only() {
    let registry = FakeRegistry::start().await;
    registry.push("app", "1", &Image::layers(1, &[10]));
    registry.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(2)));
    let client = Client::new(&registry.url());
    let path = "/v2/app/manifests/1";
    assert_eq!(client.head(path).await.header("ratelimit-remaining"), "2;w=21600");
    assert_eq!(client.get(path).await.header("ratelimit-remaining"), "1;w=21600");
    assert_eq!(client.get(path).await.header("ratelimit-limit"), "100;w=21600");
    let refused = client.get(path).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "TOOMANYREQUESTS"));
    assert_eq!(client.head(path).await.status, 200);
    assert_eq!(registry.counted(), 2);
}

#[tokio::test]
async fn quirks_show() {
    let registry = FakeRegistry::start().await;
    let image = Image::layers(1, &[10]);
    registry.push("app", "1", &image);
    let client = Client::new(&registry.url());
    let path = "/v2/app/manifests/1";
    registry.set(|behaviour| {
        behaviour.quirks.no_digest = true;
        behaviour.quirks.no_length = true;
        behaviour.quirks.no_etag = true;
        behaviour.quirks.no_accept_ranges = true;
        behaviour.quirks.content_type = Some("text/plain".into());
    });
    let reply = client.get(path).await;
    assert_eq!(reply.whole(), image.top.bytes);
    for name in ["docker-content-digest", "content-length", "etag", "accept-ranges"] {
        assert_eq!(reply.header(name), "", "{name}");
    }
    assert_eq!(reply.header("content-type"), "text/plain");
    assert_eq!(client.head(path).await.header("content-length"), "");
    registry.set(|behaviour| behaviour.quirks.require_accept = true);
    assert_eq!(client.request(Method::GET, path, &[("accept", "application/json")]).await.status, 404);
    registry.set(|behaviour| behaviour.quirks.html = true);
    let page = client.get(path).await;
    assert!(page.status == 200 && page.text().contains("<html>"));
}
