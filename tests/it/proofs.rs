//! What a repository is proven to contain, and as what.

use crate::support::eventually::eventually_eq;
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

#[tokio::test]
async fn a_layer_is_no_manifest() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[1_000]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
    let all = (image.blobs.len() + image.manifests.len()) as f64;
    eventually_eq(all, || house.metric("tidelock_cache_blobs")).await;
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    for blob in &image.blobs {
        let path = format!("/v2/library/app/manifests/{}", blob.digest);
        assert_eq!(house.client().head(&path).await.status, 404);
        assert_eq!(house.client().get(&path).await.status, 404);
    }
}

#[tokio::test]
async fn a_manifest_stays_one_though_it_is_asked_for_as_a_blob() {
    let fake = FakeRegistry::start().await;
    let image = Image::docker(2, &[1_000]);
    fake.push("library/app", "v1", &image);
    fake.put_blob("library/app", &image.top);
    let house = House::over(&fake).await;
    house.client().head("/v2/library/app/manifests/v1").await;
    assert!(house.client().blob("library/app", image.digest()).await.is_ok());
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    fake.stop().await;
    let again = house.client().manifest("library/app", image.digest()).await.unwrap();
    assert_eq!((again.bytes, again.media_type), (image.top.bytes.clone(), image.top.media_type.clone()));
}
