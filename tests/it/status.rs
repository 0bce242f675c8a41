//! `tidelock status` and the operator's API behind it: what goes on, at a glance.

use http::Method;
use serde_json::Value;
use tidelock::config::{ByteSize, SizeLimit};

use crate::support::eventually::{eventually, within};
use crate::support::faults::{Fault, Match, Times};
use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;

const LAYER: usize = 300_000;

async fn scene() -> (FakeRegistry, House, Image) {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[LAYER]));
    fake.push("library/app", "v1", &image);
    let limit = SizeLimit::Bytes(ByteSize(4_000_000));
    let house = House::with(&fake, |config| config.cache.max_size = limit).await;
    (fake, house, image)
}

async fn get(house: &House, path: &str) -> Value {
    let answer = house.admin().get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn what_was_pulled_and_saved() {
    let (fake, house, _) = scene().await;
    let idle = get(&house, "/api/v1/status").await;
    assert_eq!((&idle["phase"], &idle["traffic"]["hit_ratio"]), (&"ready".into(), &Value::Null));
    for _ in 0..3 {
        house.client().pull("library/app", "v1").await.unwrap();
    }
    house.settled().await;
    let asked = fake.total();
    let status = get(&house, "/api/v1/status").await;
    let traffic = &status["traffic"];
    let of = |name: &str| traffic[name].as_u64().unwrap();
    assert!(of("sent_bytes") > 3 * LAYER as u64 && of("fetched_bytes") < 2 * LAYER as u64, "{traffic}");
    assert_eq!(of("saved_bytes"), of("sent_bytes") - of("fetched_bytes"));
    let ratio = traffic["hit_ratio"].as_f64().unwrap();
    assert!(ratio > 0.5 && ratio < 1.0, "{ratio}");
    assert_eq!(status["popular"][0]["image"], "docker.io/library/app:v1");
    assert_eq!(status["popular"][0]["pulls"], 3);
    assert_eq!((&status["cache"]["limit"], &status["cache"]["blobs"]), (&4_000_000.into(), &3.into()));
    assert_eq!(status["upstreams"][0]["registry"], "docker.io");
    assert_eq!((&status["fetches"], &status["troubles"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    assert_eq!(fake.total(), asked, "nobody was asked");
}

#[tokio::test]
async fn what_is_being_fetched() {
    let (fake, house, image) = scene().await;
    let layer = image.layer_blobs()[0].clone();
    fake.fault(Match::blob(&layer.digest), Times::Once, Fault::StallAfter(100_000));
    let client = house.client();
    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    let mut pull = client.get_streaming(&path).await;
    pull.read(1000).await;
    let fetch = async || get(&house, "/api/v1/status").await["fetches"][0].clone();
    eventually(|| async { fetch().await["received"].as_u64().is_some_and(|bytes| bytes > 0) }).await;
    let fetch = fetch().await;
    assert_eq!((&fetch["digest"], &fetch["total"]), (&layer.digest.as_str().into(), &LAYER.into()));
    assert_eq!(fetch["repository"], "docker.io/library/app");
}

#[tokio::test]
async fn what_went_wrong_and_why() {
    let (fake, house, _) = scene().await;
    fake.fault(Match::manifests(), Times::Always, Fault::status(500));
    for _ in 0..2 {
        assert!(house.client().pull("library/app", "v1").await.is_err());
    }
    assert_eq!(house.client().request(Method::PUT, "/v2/library/app/manifests/v1", &[]).await.status, 405);
    // No trouble: clients ask for what may be there.
    let none = house.client().get("/v2/library/app/blobs/sha256:1").await.status;
    assert!(none == 400 || none == 404);
    let troubles = get(&house, "/api/v1/status").await["troubles"].clone();
    let troubles = troubles.as_array().unwrap();
    let upstream = troubles.iter().find(|trouble| trouble["status"] == 502).unwrap();
    assert_eq!((&upstream["times"], &upstream["client"]), (&2.into(), &"127.0.0.1".into()));
    assert!(upstream["what"].as_str().unwrap().contains("/v2/library/app/manifests/v1"), "{upstream}");
    assert!(upstream["message"].as_str().unwrap().contains("docker.io/library/app:v1"), "{upstream}");
}

#[tokio::test]
async fn what_goes_next() {
    let (fake, house, image) = scene().await;
    fake.put_blob("library/other", &image.layer_blobs()[0]);
    house.client().pull("library/app", "v1").await.unwrap();
    let path = format!("/v2/library/other/blobs/{}", image.layer_blobs()[0].digest);
    house.client().get(&path).await;
    house.settled().await;
    let next = get(&house, "/api/v1/eviction").await["next"].clone();
    let next = next.as_array().unwrap();
    assert_eq!(next.len(), 3);
    let layer = next.iter().find(|victim| victim["size"] == LAYER).unwrap();
    assert_eq!(
        layer["repositories"],
        serde_json::json!(["docker.io/library/app", "docker.io/library/other"])
    );
    assert_eq!(get(&house, "/api/v1/eviction?limit=1").await["next"].as_array().unwrap().len(), 1);
    let answer = house.admin().get("/api/v1/eviction?limit=0").await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &"limit_invalid".into()));
}

#[tokio::test]
async fn news_as_they_happen() {
    let (_fake, house, _) = scene().await;
    let admin = house.admin();
    let mut events = admin.get_streaming("/api/v1/events").await;
    assert_eq!(events.header("content-type"), "text/event-stream");
    let mut text = String::new();
    let mut next = async || {
        while !text.contains("\n\n") {
            text += std::str::from_utf8(&within("an event", events.next()).await.unwrap().unwrap()).unwrap();
        }
        let (event, rest) = text.split_once("\n\n").unwrap();
        let data = event.strip_prefix("event: status\ndata: ").unwrap();
        let status: Value = serde_json::from_str(data).unwrap();
        text = rest.to_owned();
        status
    };
    assert_eq!(next().await["popular"], Value::Array(Vec::new()));
    house.client().pull("library/app", "v1").await.unwrap();
    let mut popular = Value::Null;
    while popular != "docker.io/library/app:v1" {
        popular = next().await["popular"][0]["image"].clone();
    }
    // So many may watch, and a stop waits for none of them.
    let mut others = Vec::new();
    for _ in 0..15 {
        others.push(admin.get_streaming("/api/v1/events").await);
    }
    let refused = admin.get("/api/v1/events").await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &"too_many".into()));
    drop(others);
    eventually(|| async { admin.get_streaming("/api/v1/events").await.status == 200 }).await;
    within("the stop", house.stop()).await;
}

#[tokio::test]
async fn how_it_came_about() {
    let (_fake, house, _) = scene().await;
    eventually(|| async { !get(&house, "/api/v1/history").await["at"].as_array().unwrap().is_empty() }).await;
    for span in ["hour", "day"] {
        let history = get(&house, &format!("/api/v1/history?span={span}")).await;
        assert_eq!(history["requests"]["hit"], serde_json::json!([0]));
        assert_eq!(history["cache_bytes"].as_array().unwrap().len(), 1);
    }
    let answer = house.admin().get("/api/v1/history?span=year").await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &"span_invalid".into()));
}

#[tokio::test]
async fn the_command_tells_it() {
    let (_fake, house, _) = scene().await;
    house.client().pull("library/app", "v1").await.unwrap();
    let idle = House::over(&FakeRegistry::start().await).await;
    let quiet = String::from_utf8(idle.command(&["status"]).await.stdout).unwrap();
    assert!(quiet.contains("idle       docker.io\n"), "{quiet}");
    let said = String::from_utf8(house.command(&["status"]).await.stdout).unwrap();
    for part in ["ready, up ", "% (", "293.", "docker.io\n", "1 × docker.io/library/app:v1"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let json: Value = serde_json::from_slice(&house.command(&["status", "--json"]).await.stdout).unwrap();
    assert_eq!(json["phase"], "ready");
}
