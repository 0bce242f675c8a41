//! The fake Docker Hub's two limits, and the clock that they go by.

use std::time::Duration;

use crate::support::behaviour::{AbuseLimit, RateLimit};
use crate::support::client::{Client, Reply};
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;
use crate::support::time::{Frozen, rest};

const MANIFEST: &str = "/v2/app/manifests/1";
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

async fn with_image() -> (FakeRegistry, Client, Image) {
    let (registry, image) = (FakeRegistry::start().await, Image::layers(1, &[10]));
    registry.push("app", "1", &image);
    let client = Client::new(&registry.url());
    (registry, client, image)
}

fn left(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.header("ratelimit-remaining"))
}

#[tokio::test(start_paused = true)]
async fn what_is_spent_comes_back_one_window_later() {
    let clock = Frozen::new();
    let (registry, client, _) = with_image().await;
    registry.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(3).remaining(2)));
    clock.advance_to(HOUR).await;
    assert_eq!(left(&client.get(MANIFEST).await), (200, "1;w=21600"));
    clock.advance_to(2 * HOUR).await;
    assert_eq!(left(&client.get(MANIFEST).await), (200, "0;w=21600"));
    assert_eq!(left(&client.get(MANIFEST).await), (429, "0;w=21600"));
    clock.advance_to(6 * HOUR - SECOND).await;
    assert_eq!(left(&client.head(MANIFEST).await), (200, "0;w=21600"));
    // What was gone at the start, then each pull, one after the other; the refusal took nothing.
    for (hour, now_left) in [(6, "1;w=21600"), (7, "2;w=21600"), (8, "3;w=21600")] {
        clock.advance_to(hour * HOUR).await;
        assert_eq!(left(&client.head(MANIFEST).await), (200, now_left), "after {hour} hours");
    }
    assert_eq!(registry.counted(), 2);
}

#[tokio::test]
async fn less_than_nothing_can_be_left() {
    let (registry, client, _) = with_image().await;
    registry.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(-2)));
    assert_eq!(left(&client.head(MANIFEST).await), (200, "-2;w=21600"));
    assert_eq!(left(&client.get(MANIFEST).await), (429, "-2;w=21600"));
    registry.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(0).unenforced()));
    assert_eq!(left(&client.get(MANIFEST).await), (200, "-1;w=21600"));
}

#[tokio::test(start_paused = true)]
async fn the_abuse_limit_is_for_requests_of_any_kind() {
    let clock = Frozen::new();
    let (registry, client, image) = with_image().await;
    registry.set(|behaviour| {
        behaviour.rate_limit = Some(RateLimit::new(100));
        behaviour.abuse = Some(AbuseLimit::new(3, 60));
    });
    let blob = format!("/v2/app/blobs/{}", image.blobs[0].digest);
    assert_eq!(client.head(MANIFEST).await.status, 200);
    clock.advance(30 * SECOND).await;
    assert_eq!(client.get(&blob).await.status, 200);
    assert_eq!(client.get("/v2/").await.status, 200);
    for path in [MANIFEST, &blob, "/v2/"] {
        let refused = client.get(path).await;
        assert_eq!((refused.status, refused.text().as_str()), (429, "Too Many Requests (HAP429).\n"));
        let headers = ["retry-after", "content-type", "ratelimit-remaining"].map(|name| refused.header(name));
        assert_eq!(headers, ["60", "text/plain", ""]);
        assert_eq!(client.head(path).await.status, 429);
    }
    // A minute after the first one there is room for one more.
    clock.advance(30 * SECOND).await;
    assert_eq!(left(&client.get(MANIFEST).await), (200, "99;w=21600"));
    assert_eq!(client.head(MANIFEST).await.status, 429);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_clock_stands_still_however_long_one_waits() {
    let clock = Frozen::new();
    let (_registry, client, _) = with_image().await;
    let asleep = tokio::spawn(tokio::time::sleep(HOUR));
    for _ in 0..20 {
        assert_eq!(client.get(MANIFEST).await.status, 200);
    }
    rest(|| ()).await;
    assert!(clock.elapsed().is_zero() && !asleep.is_finished());
    clock.advance(HOUR).await;
    rest(|| ()).await;
    assert!(asleep.is_finished());
}
