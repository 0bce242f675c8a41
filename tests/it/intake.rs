//! What is carried in by hand, piece by piece, and what it leaves alone.

use std::fs;
use std::io::Write;
use std::net::TcpStream;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tidelock::config::{ByteSize, Config, SizeLimit};

use crate::support::eventually::{eventually, eventually_eq};
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const PINNED: &str = "tidelock_cache_pinned_bytes";

/// A mirror at a site that reaches nobody.
async fn site(adjust: impl FnOnce(&mut Config)) -> House {
    House::start(vec![upstream("docker.io", &["http://127.0.0.1:1"])], |config| {
        config.offline = true;
        adjust(config);
    })
    .await
}

async fn told(site: &House, path: &str, body: impl Into<Bytes>) -> (u16, Value) {
    let mut answer = site.admin().stream(Method::POST, path, &[], body.into()).await.unwrap();
    (answer.status, serde_json::from_slice(&answer.read_to_end().await.0).unwrap())
}

async fn put(site: &House, blobs: impl IntoIterator<Item = &Blob>) {
    for blob in blobs {
        let (status, said) =
            told(site, &format!("/api/v1/blob?digest={}", blob.digest), blob.bytes.clone()).await;
        assert_eq!(status, 200, "{said}");
    }
}

async fn adopt(site: &House, name: &str, digest: &str, needs: &[&Blob]) -> (u16, Value) {
    let needs: Vec<&str> = needs.iter().map(|blob| blob.digest.as_str()).collect();
    told(site, "/api/v1/adopt", json!({ "image": name, "digest": digest, "needs": needs }).to_string()).await
}

/// All of an image, under a name.
async fn carry(site: &House, name: &str, image: &Image) {
    let parts: Vec<&Blob> = image.blobs.iter().chain(&image.manifests).collect();
    put(site, parts.iter().copied()).await;
    let (status, said) = adopt(site, name, image.digest(), &parts).await;
    assert_eq!(status, 200, "{said}");
}

fn limited(bytes: u64) -> impl FnOnce(&mut Config) {
    move |config| config.cache.max_size = SizeLimit::Bytes(ByteSize(bytes))
}

async fn done(site: &House, arguments: &[&str]) {
    let output = site.command(arguments).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn what_a_delta_builds_on_makes_no_room_for_it() {
    let site = site(limited(300_000)).await;
    let base = Image::layers(1, &[100_000]);
    carry(&site, "app:v1", &base).await;
    carry(&site, "other:v1", &Image::layers(2, &[100_000])).await;
    // The first layer is the same.
    let delta = Image::layers(1, &[100_000, 150_000]);
    let needs: Vec<&Blob> = delta.manifests.iter().chain(&delta.blobs).collect();
    let sought: Vec<&str> = needs.iter().map(|blob| blob.digest.as_str()).collect();
    let (_, lacking) = told(&site, "/api/v1/lacking", json!({ "digests": sought }).to_string()).await;
    assert_eq!((lacking["lacking"].as_array().unwrap().len(), &lacking["evictable"]), (3, &100_000.into()));
    let new = needs.iter().filter(|blob| lacking["lacking"].to_string().contains(&blob.digest));
    put(&site, new.copied()).await;
    let (status, said) = adopt(&site, "app:v2", delta.digest(), &needs).await;
    assert_eq!(status, 200, "{said}");
    assert!(site.client().pull("library/app", "v2").await.unwrap().is(&delta));
}

#[tokio::test]
async fn platforms_that_nobody_brought_are_no_part_of_it() {
    let site = site(|_| {}).await;
    let image = Image::multi_platform(1, &[5000]);
    let [own, foreign, top] = &image.manifests[..] else { panic!("two platforms and their index") };
    // Left of an earlier one.
    put(&site, [foreign]).await;
    let blobs = &Image::layers(1, &[5000]).blobs;
    let needs: Vec<&Blob> = blobs.iter().chain([own, top]).collect();
    put(&site, needs.iter().copied()).await;
    let (status, said) = adopt(&site, "app:v1", &top.digest, &[top]).await;
    assert_eq!((status, &said["error"]["code"]), (409, &"lacking".into()), "an index alone is no image");
    let (status, said) = adopt(&site, "app:v1", &top.digest, &needs).await;
    assert_eq!(status, 200, "{said}");
    let client = site.client();
    assert!(client.one_platform().pull("library/app", "v1").await.is_ok());
    let path = format!("/v2/library/app/manifests/{}", foreign.digest);
    assert_eq!(site.client().get(&path).await.status, 404, "it is not whole, and nobody gave it a proof");

    // It comes later, for an image that is pinned by now.
    done(&site, &["pin", "app:v1"]).await;
    let before = site.metric(PINNED).await;
    carry(&site, &format!("app@{}", top.digest), &image).await;
    let more: usize =
        image.blobs.iter().map(Blob::len).sum::<usize>() - blobs.iter().map(Blob::len).sum::<usize>();
    assert_eq!(site.metric(PINNED).await - before, more as f64);
}

#[tokio::test]
async fn who_signed_what_is_pinned_is_known_as_long() {
    let site = site(limited(400_000)).await;
    let image = Image::layers(1, &[50_000]);
    let signature = Image::artifact(&image.top, SIGNATURE);
    carry(&site, "app:v1", &image).await;
    done(&site, &["pin", "app:v1"]).await;
    carry(&site, &format!("app@{}", signature.digest()), &signature).await;
    done(&site, &["pin", &format!("app@{}", signature.digest())]).await;
    for seed in 10..20 {
        carry(&site, &format!("other:v{seed}"), &Image::layers(seed, &[100_000])).await;
    }
    let path = format!("/v2/library/app/referrers/{}", image.digest());
    let list = site.client().get(&path).await;
    assert_eq!(list.json()["manifests"][0]["digest"], signature.digest(), "{}", list.text());
}

/// What the one takes out, the other builds on: either there is nothing to build on any more, or it is there to stay.
#[tokio::test]
async fn what_is_brought_while_something_is_removed_is_whole() {
    let site = site(|_| {}).await;
    for n in 0..20 {
        carry(&site, &format!("app:ballast{n}"), &Image::layers(1_000 + n, &[100])).await;
    }
    for n in 0..20 {
        let (base, delta) = (Image::layers(n, &[5_000]), Image::layers(n, &[5_000, 6_000]));
        carry(&site, "app:v1", &base).await;
        let needs: Vec<&Blob> = delta.manifests.iter().chain(&delta.blobs).collect();
        put(&site, needs.iter().copied()).await;
        let path = "/api/v1/remove?image=app:v1";
        let (removed, adopted) =
            tokio::join!(told(&site, path, ""), adopt(&site, "app:v2", delta.digest(), &needs));
        assert_eq!(removed.0, 200, "{}", removed.1);
        if adopted.0 == 200 {
            assert!(site.client().pull("library/app", "v2").await.unwrap().is(&delta), "{n}");
        } else {
            assert_eq!(adopted.1["error"]["code"], "lacking", "{}", adopted.1);
        }
    }
}

#[tokio::test]
async fn signatures_that_come_at_once_are_all_found() {
    let site = site(|_| {}).await;
    let image = Image::layers(1, &[500]);
    carry(&site, "app:v1", &image).await;
    let signatures: Vec<Image> =
        (0..8).map(|n| Image::artifact(&image.top, &format!("{SIGNATURE}.{n}"))).collect();
    futures_util::future::join_all(signatures.iter().map(|signature| {
        let site = &site;
        async move { carry(site, &format!("app@{}", signature.digest()), signature).await }
    }))
    .await;
    let list = site.client().get(&format!("/v2/library/app/referrers/{}", image.digest())).await.json();
    assert_eq!(list["manifests"].as_array().unwrap().len(), 8, "{list}");
}

#[tokio::test]
async fn an_image_of_which_a_layer_is_gone_is_missing() {
    let site = site(|_| {}).await;
    let image = Image::layers(1, &[5000, 3000]);
    carry(&site, "app:v1", &image).await;
    assert!(site.client().pull("library/app", "v1").await.unwrap().is(&image));
    let lost = &image.layer_blobs()[0];
    let hex = &lost.digest["sha256:".len()..];
    fs::remove_file(site.folder().join("blobs/sha256").join(&hex[..2]).join(hex)).unwrap();
    let site = site.restart(|_| {}).await;
    for _ in 0..2 {
        assert!(site.client().pull("library/app", "v1").await.is_err());
    }
    let missing = site.admin().get("/api/v1/missing").await.json();
    let name = format!("docker.io/library/app@{}", image.digest());
    assert_eq!((&missing["images"][0]["image"], &missing["images"][0]["times"]), (&name.into(), &2.into()));
    carry(&site, "app:v1", &image).await;
    assert_eq!(site.admin().get("/api/v1/missing").await.json()["images"], json!([]));
    assert!(site.client().pull("library/app", "v1").await.unwrap().is(&image));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_in_by_hand_is_not_fetched_too() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[500_000]);
    fake.push("library/app", "v1", &image);
    let house = House::with(&fake, |config| config.upstreams[0].read_ahead = false).await;
    let layer = &image.layer_blobs()[0];
    let mut hand = TcpStream::connect(house.admin_url().trim_start_matches("http://")).unwrap();
    write!(
        hand,
        "POST /api/v1/blob?digest={} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        layer.digest,
        layer.len()
    )
    .unwrap();
    hand.write_all(&layer.bytes[..100_000]).unwrap();
    eventually(|| async { !house.partials().is_empty() }).await;
    let client = house.client();
    let digest = layer.digest.clone();
    let pull = tokio::spawn(async move { client.blob("library/app", &digest).await });
    eventually_eq(1.0, || house.metric("tidelock_flights")).await;
    hand.write_all(&layer.bytes[100_000..]).unwrap();
    assert_eq!(pull.await.unwrap().unwrap(), layer.bytes);
    assert_eq!(fake.count("GET", &layer.digest), 0);
}
