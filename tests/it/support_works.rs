//! The fakes themselves: what the other tests take for granted.

use crate::support::client::Client;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

#[tokio::test]
async fn a_client_pulls_an_image_from_the_fake() {
    let registry = FakeRegistry::start().await;
    let image = Image::multi_platform(1, &[100, 70_000, 0]);
    registry.push("library/app", "1", &image);
    let client = Client::new(&registry.url());
    let pulled = client.pull("library/app", "1").await.unwrap();
    assert!(pulled.is(&image));
    assert_eq!(registry.counted(), 3);
    assert_eq!(registry.total(), 3 + image.blobs.len());
}
