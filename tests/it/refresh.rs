//! `tidelock refresh` and the operator's API behind it: a tag is asked about now.

use std::process::Output;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use crate::support::faults::{Fault, Match, Times};
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

const PATH: &str = "/api/v1/refresh?image=docker.io/library/app:v1";

/// A tag that is believed for an hour.
async fn scene() -> (FakeRegistry, House, Image) {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[100]));
    fake.push("library/app", "v1", &image);
    let house = House::with(&fake, |config| {
        config.upstreams[0].freshness.tag_ttl = Duration::from_secs(3600);
    })
    .await;
    house.client().pull("library/app", "v1").await.unwrap();
    house.settled().await;
    (fake, house, image)
}

async fn refresh(house: &House, path: &str) -> (u16, Value) {
    let answer = house.admin().request(Method::POST, path, &[]).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_fresh_tag_is_asked_about_and_its_new_manifest_is_served() {
    let (fake, house, image) = scene().await;
    let asked = fake.total();
    let (status, same) = refresh(&house, PATH).await;
    assert_eq!(
        (status, &same["digest"], &same["before"]),
        (200, &image.digest().into(), &image.digest().into())
    );
    assert_eq!(fake.total(), asked + 1, "one HEAD");

    let next = Image::layers(2, &[200]);
    fake.push("library/app", "v1", &next);
    let (_, moved) = refresh(&house, PATH).await;
    assert_eq!((&moved["digest"], &moved["before"]), (&next.digest().into(), &image.digest().into()));
    house.settled().await;
    let asked = fake.total();
    let answer = house.client().get("/v2/library/app/manifests/v1").await;
    assert_eq!(answer.header("docker-content-digest"), next.digest());
    assert_eq!(fake.total(), asked, "it is fresh again, and here");
}

#[tokio::test]
async fn what_cannot_be_refreshed() {
    let (fake, house, image) = scene().await;
    let digest = image.digest();
    for (query, status, code) in [
        ("".to_owned(), 400, "image_missing"),
        ("?image=UPPER".to_owned(), 400, "image_invalid"),
        (format!("?image=library/app@{digest}"), 400, "image_invalid"),
        ("?image=ghcr.io/a/b".to_owned(), 404, "no_upstream"),
        ("?image=app:none".to_owned(), 404, "not_found"),
    ] {
        let (got, body) = refresh(&house, &format!("/api/v1/refresh{query}")).await;
        assert_eq!((got, &body["error"]["code"]), (status, &code.into()), "{query}");
    }
    assert_eq!(house.admin().get(PATH).await.status, 405);
    fake.fault(Match::manifests(), Times::Always, Fault::status(500));
    let (status, body) = refresh(&house, PATH).await;
    assert_eq!((status, &body["error"]["code"]), (502, &"upstream".into()));
    assert_eq!(
        house.client().get("/v2/library/app/manifests/v1").await.status,
        200,
        "it is remembered as it was"
    );

    let house = house.restart(|config| config.offline = true).await;
    let (status, body) = refresh(&house, PATH).await;
    assert_eq!((status, &body["error"]["code"]), (409, &"offline".into()));
}

#[tokio::test]
async fn the_command_says_whether_it_moved() {
    let (fake, house, image) = scene().await;
    let said = |output: Output| String::from_utf8(output.stdout).unwrap();
    let same = said(house.command(&["refresh", "app:v1"]).await);
    assert_eq!(same, format!("docker.io/library/app:v1 still means {}\n", image.digest()));
    let next = Image::layers(2, &[200]);
    fake.push("library/app", "v1", &next);
    let moved = said(house.command(&["refresh", "app:v1"]).await);
    assert!(moved.contains(&format!("means {} now; it meant {}", next.digest(), image.digest())), "{moved}");
    let none = house.command(&["refresh", "app:none"]).await;
    assert_eq!(none.status.code(), Some(1));
}
