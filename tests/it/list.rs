//! `tidelock list` and the operator's API behind it: what is remembered, without asking anybody.

use serde_json::Value;

use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

/// Three tags in two repositories, one of them of an image for several platforms, of which one was pulled.
async fn scene() -> (FakeRegistry, House, Image) {
    let fake = FakeRegistry::start().await;
    let both = Image::multi_platform(1, &[100, 200]);
    fake.push("library/app", "v1", &both);
    fake.push("library/app", "v2", &Image::layers(2, &[300]));
    fake.push("org/tool", "v1", &Image::layers(3, &[400]));
    let house = House::with(&fake, |_| {}).await;
    for (repository, tag) in [("library/app", "v1"), ("library/app", "v2"), ("org/tool", "v1")] {
        house.client().one_platform().pull(repository, tag).await.unwrap();
    }
    house.settled().await;
    (fake, house, both)
}

fn names(page: &Value) -> Vec<&str> {
    page["images"].as_array().unwrap().iter().map(|image| image["image"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_of_what_is_remembered() {
    let (fake, house, both) = scene().await;
    let asked = fake.total();
    let first = house.admin().get("/api/v1/images?limit=2").await.json();
    assert_eq!(names(&first), ["docker.io/library/app:v1", "docker.io/library/app:v2"]);
    assert_eq!(first["next"], "docker.io/library/app:v2");
    let image = &first["images"][0];
    assert_eq!(image["digest"], both.digest());
    let content = &image["content"];
    assert_eq!((&content["manifests_cached"], &content["manifests"]), (&1.into(), &2.into()));
    assert!(content["bytes"].as_u64().unwrap() > 300, "{content}");
    let last = house.admin().get("/api/v1/images?limit=2&after=docker.io/library/app:v2").await.json();
    assert_eq!((names(&last), &last["next"]), (vec!["docker.io/org/tool:v1"], &Value::Null));
    assert_eq!(fake.total(), asked, "nobody was asked");
}

#[tokio::test]
async fn pages_that_cannot_be_asked_for() {
    let (_fake, house, _) = scene().await;
    for (query, code) in [
        ("limit=0", "limit_invalid"),
        ("limit=1001", "limit_invalid"),
        ("limit=x", "limit_invalid"),
        ("after=UPPER", "after_invalid"),
    ] {
        let answer = house.admin().get(&format!("/api/v1/images?{query}")).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &code.into()), "{query}");
    }
}

#[tokio::test]
async fn the_command_lists_what_matches() {
    let (_fake, house, _) = scene().await;
    let output = house.command(&["list", "docker.io/library/**"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        lines[1].starts_with("docker.io/library/app:v1 ") && lines[1].ends_with("1 of 2 platforms"),
        "{text}"
    );
    assert!(lines[2].starts_with("docker.io/library/app:v2 ") && lines[2].ends_with(" all"), "{text}");
    let json: Value = serde_json::from_slice(&house.command(&["list", "--json"]).await.stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 3);
}
