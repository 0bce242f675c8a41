//! What a manifest costs upstream, and that it comes out as it went in.

use futures_util::future::join_all;
use std::time::{Duration, Instant};

use crate::support::eventually::eventually;
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::House;
use crate::support::images::{Blob, DOCKER_LIST, Image, OCI_INDEX, OCI_MANIFEST, sha256};
use crate::support::registry::FakeRegistry;
use crate::support::token_server::TokenServer;

const LARGE: usize = 300_000;

#[tokio::test]
async fn what_is_cached_needs_neither_the_upstream_nor_a_token() {
    let (fake, tokens) = (FakeRegistry::start().await, TokenServer::start().await);
    fake.use_token_server(&tokens);
    let image = Image::multi_platform(1, &[LARGE, 10]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    // First alive, so that a call would be seen; then dead, so that one would fail.
    let (asked, tokened) = (fake.total(), tokens.total());
    tokens.expire_all_tokens();
    assert!(house.client().pull("library/app", image.digest()).await.unwrap().is(&image));
    assert_eq!((fake.total(), tokens.total()), (asked, tokened), "{:?}", fake.log().summary());
    fake.stop().await;
    tokens.stop().await;
    assert!(house.client().pull("library/app", image.digest()).await.unwrap().is(&image));
    for manifest in &image.manifests {
        let head = house.client().head(&format!("/v2/library/app/manifests/{}", manifest.digest)).await;
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), manifest.media_type);
        assert_eq!(head.header("content-length"), manifest.len().to_string());
        assert_eq!(head.header("docker-content-digest"), manifest.digest);
    }
}

/// Clients ask for three layers at a time: what is missing of an image comes in before it is asked for, once for a pull.
#[tokio::test]
async fn what_is_missing_of_a_cached_image_is_read_ahead() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(130, &[10, LARGE, 20]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    let path = format!("/v2/library/app/manifests/{}", image.digest());
    assert_eq!(house.client().get(&path).await.whole(), image.top.bytes);
    fake.clear();
    let reading_ahead = |is_offline| {
        move |config: &mut tidelock::config::Config| {
            config.offline = is_offline;
            config.upstreams[0].read_ahead = true;
        }
    };
    let house = house.restart(reading_ahead(true)).await;
    assert_eq!(house.client().get(&path).await.status, 200);
    let house = house.restart(reading_ahead(false)).await;
    assert_eq!(house.client().head(&path).await.status, 200);
    assert_eq!(fake.total(), 0, "{:?}", fake.log().summary());
    let blobs = image.layer_blobs().len() + 1;
    for _ in 0..3 {
        assert_eq!(house.client().get(&path).await.header("cache-status"), "tidelock; hit");
        eventually(|| async { house.metric("tidelock_cache_blobs").await == (1 + blobs) as f64 }).await;
    }
    house.settled().await;
    assert_eq!((fake.total(), fake.count("GET", "/blobs/")), (blobs, blobs), "{:?}", fake.log().summary());
    assert!(house.client().pull("library/app", image.digest()).await.unwrap().is(&image));
    assert_eq!(fake.total(), blobs);
}

/// The answer does not wait for the disk; nobody who comes before the disk has it costs another pull, or a question.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_it_is_being_kept_asks_nobody() {
    let fake = FakeRegistry::start().await;
    let house = House::with(&fake, |config| config.upstreams[0].read_ahead = false).await;
    for seed in 100..120 {
        let image = Image::layers(seed, &[10]);
        fake.push("library/app", "v1", &image);
        let path = format!("/v2/library/app/manifests/{}", image.digest());
        let first = house.client().get(&path).await;
        assert_eq!(
            (first.whole(), first.header("cache-status")),
            (image.top.bytes.clone(), "tidelock; fwd=miss; stored")
        );
        let client = house.client();
        let heads = join_all((0..4).map(|_| client.head(&path)));
        let (again, heads) = tokio::join!(join_all((0..4).map(|_| client.get(&path))), heads);
        for reply in again {
            assert_eq!(
                (reply.whole(), reply.header("cache-status")),
                (image.top.bytes.clone(), "tidelock; hit")
            );
        }
        for head in heads {
            assert_eq!((head.status, head.header("cache-status")), (200, "tidelock; hit"));
            assert_eq!(head.header("content-type"), image.top.media_type);
            assert_eq!(head.header("content-length"), image.top.len().to_string());
        }
        assert_eq!(fake.total(), fake.log().count("GET", image.digest()), "{:?}", fake.log().summary());
        assert_eq!(fake.log().count("GET", image.digest()), 1, "{:?}", fake.log().summary());
        fake.clear();
    }
}

#[tokio::test]
async fn a_fresh_tag_costs_nothing() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(2, &[LARGE]);
    fake.push("library/app", "v1", &image);
    let house =
        House::with(&fake, |config| config.upstreams[0].freshness.tag_ttl = Duration::from_secs(3600)).await;
    assert!(house.client().pull_like_docker("library/app", "v1").await.unwrap().is(&image));
    fake.clear();
    assert!(house.client().pull_like_docker("library/app", "v1").await.unwrap().is(&image));
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(fake.total(), 0, "{:?}", fake.log().summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_past_its_time_costs_one_head_for_all_who_wait() {
    let ttl = Duration::from_secs(1);
    let fake = FakeRegistry::start().await;
    let image = Image::layers(3, &[10]);
    fake.push("library/app", "v1", &image);
    let house = House::with(&fake, |config| config.upstreams[0].freshness.tag_ttl = ttl).await;
    house.client().pull("library/app", "v1").await.unwrap();
    let pulled = Instant::now();
    eventually(|| async { pulled.elapsed() > ttl }).await;
    fake.clear();
    let gate = Gate::new();
    fake.fault(Match::path("/manifests/v1").method("HEAD"), Times::Always, Fault::hold_head(&gate));
    let waiters = join_all((0..50).map(|_| {
        let client = house.client();
        async move { client.manifest("library/app", "v1").await.unwrap() }
    }));
    let open = async {
        gate.waiting(1).await;
        eventually(|| async { house.metric("tidelock_connections").await >= 50.0 }).await;
        gate.open();
    };
    let (served, ()) = tokio::join!(waiters, open);
    assert!(served.iter().all(|manifest| manifest.digest == image.digest()));
    assert_eq!((fake.count("HEAD", "/manifests/v1"), fake.total()), (1, 1), "{:?}", fake.log().summary());
}

#[tokio::test]
async fn head_by_tag_and_get_by_digest_are_one_pull() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(4, &[LARGE]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(house.client().pull_like_docker("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(fake.counted(), 1);
    assert_eq!(fake.count("HEAD", "/manifests/"), 1);
    assert!(house.client().pull_like_docker("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(fake.counted(), 1);
}

#[tokio::test]
async fn another_tag_of_what_is_cached_is_no_pull() {
    let fake = FakeRegistry::start().await;
    let image = Image::multi_platform(5, &[LARGE]);
    fake.push("library/app", "v1", &image);
    fake.tag("library/app", "latest", image.digest());
    let house = House::over(&fake).await;
    house.client().pull("library/app", "v1").await.unwrap();
    fake.clear();
    assert!(house.client().pull("library/app", "latest").await.unwrap().is(&image));
    assert_eq!((fake.counted(), fake.total()), (0, 1), "{:?}", fake.log().summary());
}

#[tokio::test]
async fn of_an_index_only_the_child_that_is_asked_for_is_fetched() {
    let fake = FakeRegistry::start().await;
    let image = Image::multi_platform(6, &[LARGE]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    let client = house.client();
    assert_eq!(client.manifest("library/app", "v1").await.unwrap().media_type, OCI_INDEX);
    let child = &image.manifests[0];
    assert_eq!(client.manifest("library/app", &child.digest).await.unwrap(), *child);
    assert_eq!(fake.counted(), 2);
    assert_eq!(fake.total(), 3, "one HEAD for the tag: {:?}", fake.log().summary());
}

#[tokio::test]
async fn every_kind_of_image_comes_out_as_it_went_in() {
    let fake = FakeRegistry::start().await;
    let docker = Image::docker_list(vec![Image::docker(7, &[LARGE, 0]), Image::docker(8, &[5])]);
    assert_eq!(docker.top.media_type, DOCKER_LIST);
    let images = [("docker", docker), ("sha512", Image::layers_sha512(9, &[LARGE, 1, 0]))];
    let house = House::over(&fake).await;
    for (name, image) in images {
        fake.push(name, "v1", &image);
        let name = format!("docker.io/{name}");
        let expected: Vec<_> = image.manifests.iter().map(|m| (&m.digest, &m.media_type)).collect();
        fake.push(&name.replace("docker.io", "library"), "v1", &image);
        let pulled = house.client().pull(&name, "v1").await.unwrap();
        assert!(pulled.is(&image), "{name}");
        for manifest in &pulled.manifests {
            assert!(expected.contains(&(&manifest.digest, &manifest.media_type)), "{name}");
        }
        assert!(house.client().pull_like_docker(&name, "v1").await.unwrap().is(&image), "{name}");
    }
}

#[tokio::test]
async fn media_types_are_the_upstreams_affair() {
    let fake = FakeRegistry::start().await;
    let house = House::over(&fake).await;
    for (n, media_type) in [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.cncf.helm.chart+json",
        "application/json",
        "text/plain",
    ]
    .into_iter()
    .enumerate()
    {
        // Odd spacing, a field twice, no final newline, not even JSON: the bytes are nobody's to judge.
        let text = format!("{{ \"schemaVersion\" :1,\"schemaVersion\":1, \"n\":{n}}} \t");
        let manifest = Blob::new(text, media_type);
        fake.put_manifest("library/odd", &manifest);
        fake.tag("library/odd", &format!("t{n}"), &manifest.digest);
        for reference in [format!("t{n}"), manifest.digest.clone(), format!("t{n}")] {
            assert_eq!(house.client().manifest("library/odd", &reference).await.unwrap(), manifest);
            let head = house.client().head(&format!("/v2/library/odd/manifests/{reference}")).await;
            assert_eq!((head.status, head.header("content-type")), (200, media_type));
        }
    }
}

#[tokio::test]
async fn parameters_of_a_media_type_are_left_out_everywhere() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(10, &[10]);
    fake.push("library/app", "v1", &image);
    fake.set(|b| b.quirks.content_type = Some(format!("{OCI_MANIFEST}; charset=utf-8")));
    for begin_with_head in [true, false] {
        let house = House::over(&fake).await;
        let paths = [image.digest(), "v1"].map(|reference| format!("/v2/library/app/manifests/{reference}"));
        for path in paths {
            for head in [begin_with_head, !begin_with_head] {
                let client = house.client();
                let reply = if head { client.head(&path).await } else { client.get(&path).await };
                assert_eq!(
                    (reply.status, reply.header("content-type")),
                    (200, OCI_MANIFEST),
                    "{path} {head}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_upstream_that_tells_no_digest() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(11, &[LARGE, 1]);
    fake.push("library/app", "v1", &image);
    fake.set(|b| b.quirks.no_digest = true);
    let house = House::over(&fake).await;
    let head = house.client().head("/v2/library/app/manifests/v1").await;
    assert_eq!((head.status, head.header("docker-content-digest")), (200, image.digest()));
    assert_eq!(fake.counted(), 1, "it had to be computed");
    let get = house.client().get(&format!("/v2/library/app/manifests/{}", image.digest())).await;
    assert_eq!((get.status, sha256(&get.whole()).as_str()), (200, image.digest()));
    assert_eq!(fake.counted(), 1);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
}

#[tokio::test]
async fn an_upstream_that_tells_no_length() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(12, &[LARGE, 1, 0]);
    fake.push("library/app", "v1", &image);
    fake.set(|b| b.quirks.no_length = true);
    let house = House::over(&fake).await;
    for reference in ["v1", image.digest()] {
        let head = house.client().head(&format!("/v2/library/app/manifests/{reference}")).await;
        assert_eq!((head.status, head.header("content-length")), (200, image.top.len().to_string().as_str()));
    }
    assert_eq!(fake.counted(), 1, "however often the tag is checked");
    // Before any manifest could tell, too.
    let bare = House::over(&fake).await;
    for blob in image.layer_blobs() {
        let head = bare.client().head(&format!("/v2/library/app/blobs/{}", blob.digest)).await;
        assert_eq!((head.status, head.header("content-length")), (200, blob.len().to_string().as_str()));
    }
    for house in [house, bare] {
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    }
}

#[tokio::test]
async fn an_upstream_without_head() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(13, &[LARGE]);
    fake.push("library/app", "v1", &image);
    fake.set(|b| b.quirks.no_head = true);
    let house = House::over(&fake).await;
    assert!(house.client().pull_like_docker("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(fake.counted(), 1);
    let house = House::over(&fake).await;
    let head = house.client().head(&format!("/v2/library/app/manifests/{}", image.digest())).await;
    assert_eq!((head.status, head.header("content-length")), (200, image.top.len().to_string().as_str()));
}

/// A digest may be asked for as a blob first (containerd does): that says nothing about the manifest.
#[tokio::test]
async fn a_digest_is_not_a_manifest_because_it_is_a_blob() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(14, &[LARGE]);
    fake.push("library/app", "v1", &image);
    let house =
        House::with(&fake, |config| config.upstreams[0].freshness.negative_ttl = Duration::from_secs(3600))
            .await;
    let layer = &image.layer_blobs()[0];
    let as_manifest = format!("/v2/library/app/manifests/{}", layer.digest);
    let as_blob = format!("/v2/library/app/blobs/{}", image.digest());
    assert_eq!(house.client().get(&as_manifest).await.status, 404);
    assert_eq!(house.client().get(&as_blob).await.status, 404);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(house.client().head(&as_manifest).await.status, 404);
    let fresh = House::over(&fake).await;
    assert!(fresh.client().pull("library/app", "v1").await.unwrap().is(&image));
    assert_eq!(fresh.client().get(&as_manifest).await.status, 404, "a blob is served as a manifest");
}

/// Many repositories ask for one digest at the same moment and none of them has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_no_repository_is_not_found_in_all_of_them() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(15, &[10]);
    for n in 0..8 {
        fake.put_blob(&format!("library/app{n}"), &image.blobs[0]);
    }
    let gate = Gate::new();
    fake.fault(Match::manifests(), Times::Once, Fault::hold_head(&gate));
    let house = House::over(&fake).await;
    let asking = join_all((0..8).map(|n| {
        let (client, digest) = (house.client(), image.digest().to_owned());
        async move { client.get(&format!("/v2/library/app{n}/manifests/{digest}")).await }
    }));
    let open = async {
        gate.waiting(1).await;
        eventually(|| async { house.metric("tidelock_connections").await >= 8.0 }).await;
        gate.open();
    };
    let (replies, ()) = tokio::join!(asking, open);
    for reply in replies {
        assert_eq!((reply.status, reply.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
    }
}

/// Many repositories ask for one digest at the same moment and all of them have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_many_repositories_is_one_pull() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(16, &[10]);
    for n in 0..8 {
        fake.push(&format!("library/app{n}"), "v1", &image);
    }
    let gate = Gate::new();
    fake.fault(Match::manifests().method("GET"), Times::Once, Fault::hold_head(&gate));
    let house = House::over(&fake).await;
    let pulls = join_all((0..8).map(|n| {
        let client = house.client();
        async move { client.manifest(&format!("library/app{n}"), "v1").await.unwrap() }
    }));
    let open = async {
        gate.waiting(1).await;
        eventually(|| async { fake.count("HEAD", "/manifests/v1") == 8 }).await;
        gate.open();
    };
    let (pulled, ()) = tokio::join!(pulls, open);
    assert!(pulled.iter().all(|manifest| *manifest == image.top));
    assert_eq!(fake.counted(), 1, "{:?}", fake.log().summary());
}
