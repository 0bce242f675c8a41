//! What tags meant before, and the way back to it.

use std::time::{Duration, SystemTime};

use http::Method;
use serde_json::Value;
use tidelock::config::{Config, Hold};

use crate::support::house::House;
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;
use crate::support::time::{Frozen, rest};

/// A tag that has moved twice, as this mirror has seen.
async fn scene() -> (FakeRegistry, House, Vec<Image>) {
    let fake = FakeRegistry::start().await;
    let images: Vec<Image> = (0..3).map(|seed| Image::layers(seed, &[500])).collect();
    fake.push("library/app", "v1", &images[0]);
    let house = House::over(&fake).await;
    for image in &images {
        fake.push("library/app", "v1", image);
        refresh(&house).await;
        assert!(house.client().pull("library/app", "v1").await.unwrap().is(image));
    }
    (fake, house, images)
}

async fn refresh(house: &House) {
    let answer = house.admin().request(Method::POST, "/api/v1/refresh?image=app:v1", &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Each digest, whether it is what the upstream said last, and whether the tag is held at it.
async fn history(house: &House) -> Vec<(String, bool, bool)> {
    let told = house.admin().get("/api/v1/tag-history?image=app:v1").await.json();
    let episode = |episode: &Value| {
        let digest = episode["digest"].as_str().unwrap().to_owned();
        (digest, episode["until"].is_null(), episode["held"].as_bool().unwrap())
    };
    told["episodes"].as_array().unwrap().iter().map(episode).collect()
}

async fn serves(house: &House, image: &Image) {
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(image));
    let head = house.client().head("/v2/library/app/manifests/v1").await;
    assert_eq!(head.header("docker-content-digest"), image.digest());
}

#[tokio::test]
async fn a_way_back_from_a_bad_push() {
    let (fake, house, images) = scene().await;
    let digest = |number: usize| images[number].digest().to_owned();
    let told = [(digest(2), true, false), (digest(1), false, false), (digest(0), false, false)];
    assert_eq!(history(&house).await, told);

    let output = house.command(&["rollback", "app:v1", "previous"]).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains(&digest(1)), "{output:?}");
    serves(&house, &images[1]).await;
    // Whatever the upstream says meanwhile.
    let newest = Image::layers(9, &[500]);
    fake.push("library/app", "v1", &newest);
    refresh(&house).await;
    let house = house.restart(|_| {}).await;
    fake.clear();
    serves(&house, &images[1]).await;
    assert_eq!(fake.total(), 0, "nobody is asked");
    assert!(history(&house).await.contains(&(digest(1), false, true)));
    let shown = house.admin().get("/api/v1/image?image=app:v1").await.json();
    assert_eq!((&shown["digest"], &shown["held"]), (&digest(1).into(), &true.into()), "what is served");
    let listed = &house.admin().get("/api/v1/images").await.json()["images"][0];
    assert_eq!((&listed["digest"], &listed["held"]), (&digest(1).into(), &true.into()));
    let explained = house.admin().get("/api/v1/explain?image=app:v1").await.json();
    assert_eq!((&explained["prospect"], &explained["tag"]["verdict"]), (&"hit".into(), &"held".into()));

    // By as much of a digest as is needed.
    let short = &digest(0)[7..17];
    assert_eq!(house.command(&["rollback", "app:v1", short]).await.status.code(), Some(0));
    serves(&house, &images[0]).await;
    assert_eq!(house.command(&["rollback", "app:v1", &digest(0)[7..]]).await.status.code(), Some(0));
    assert_eq!(house.command(&["release", "app:v1"]).await.status.code(), Some(0));
    serves(&house, &newest).await;
    let told = house.command(&["show", "app:v1", "--history"]).await;
    assert_eq!(String::from_utf8_lossy(&told.stdout).lines().count(), 5, "{told:?}");
}

/// Which of the images have their layer pinned.
async fn pinned(house: &House, images: &[Image]) -> Vec<bool> {
    let mut pinned = Vec::new();
    for image in images {
        let path = format!("/api/v1/image?image=app@{}", image.digest());
        pinned.push(house.admin().get(&path).await.json()["blobs"][0]["pinned"] == true);
    }
    pinned
}

/// Looks until they are. The clock stands still.
async fn becomes_pinned(house: &House, images: &[Image], which: [bool; 3]) {
    for _ in 0..1_000 {
        if pinned(house, images).await == which {
            return;
        }
        rest(|| 0).await;
    }
    panic!("{:?} and not {which:?}", pinned(house, images).await);
}

#[tokio::test]
async fn what_is_done_to_a_tag_is_done_to_what_is_served() {
    let (_fake, house, images) = scene().await;
    let told = |query: String| {
        let admin = house.admin();
        async move {
            let answer = admin.request(Method::POST, &format!("/api/v1/{query}"), &[]).await;
            (answer.status, answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
        }
    };
    let (done, [first, second, _]) = ((200, String::new()), [0, 1, 2].map(|number| images[number].digest()));
    assert_eq!(told(format!("rollback?image=app:v1&to={first}")).await, done);
    let output = house.command(&["warm", "app:v1", "--pin"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(pinned(&house, &images).await, [true, false, false]);
    assert_eq!(told("release?image=app:v1".to_owned()).await, done);
    assert_eq!(pinned(&house, &images).await, [false, false, true], "the pin is of the tag");
    assert_eq!(told(format!("rollback?image=app:v1&to={first}")).await, done);
    assert_eq!(pinned(&house, &images).await, [true, false, false]);

    assert_eq!(told("unpin?image=app:v1".to_owned()).await, done);
    assert_eq!(told("remove?image=app:v1".to_owned()).await, (409, "held".to_owned()));
    assert_eq!(told(format!("remove?image=app@{first}")).await, (409, "tagged".to_owned()));
    assert_eq!(told(format!("remove?image=app@{second}")).await, done);
    serves(&house, &images[0]).await;
}

#[tokio::test]
async fn what_cannot_be_gone_back_to() {
    let (_fake, house, images) = scene().await;
    let never = Image::layers(7, &[1]).digest().to_owned();
    for (query, status, code) in [
        (format!("rollback?image=app:v1&to={never}"), 404, "never_meant"),
        ("rollback?image=app:v1&to=sha256:".to_owned(), 404, "never_meant"),
        ("rollback?image=app:v1&to=ab".to_owned(), 404, "never_meant"),
        ("rollback?image=app:v1".to_owned(), 400, "to_missing"),
        ("rollback?image=other:v1&to=previous".to_owned(), 404, "image_unknown"),
        (format!("rollback?image=app@{}&to=previous", images[0].digest()), 400, "image_invalid"),
        ("release?image=app:v1".to_owned(), 409, "not_held"),
    ] {
        let answer = house.admin().request(Method::POST, &format!("/api/v1/{query}"), &[]).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (status, Some(code)), "{query}");
    }
    serves(&house, &images[2]).await;
}

#[tokio::test]
async fn a_tag_that_is_gone_has_a_history() {
    let (fake, house, images) = scene().await;
    fake.remove_tag("library/app", "v1");
    let gone = house.admin().request(Method::POST, "/api/v1/refresh?image=app:v1", &[]).await;
    assert_eq!(gone.status, 404);
    assert_eq!(history(&house).await.len(), 3);
    let output = house.command(&["rollback", "app:v1", "previous"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serves(&house, &images[2]).await;
}

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test(start_paused = true)]
async fn as_it_stood_at_a_date() {
    let clock = Frozen::new();
    let begun = SystemTime::now();
    let fake = FakeRegistry::start().await;
    let images: Vec<Image> = (0..3).map(|seed| Image::layers(seed, &[500])).collect();
    fake.push("library/app", "v1", &images[0]);
    fake.push("library/app", "v2", &images[0]);
    let house = House::over(&fake).await;
    for image in &images {
        clock.advance(DAY).await;
        fake.push("library/app", "v1", image);
        refresh(&house).await;
        serves(&house, image).await;
    }
    let hold = |at: SystemTime, tags: &str| {
        let tags = vec![tags.parse().unwrap()];
        move |config: &mut Config| config.upstreams[0].holds = vec![Hold { tags, at }]
    };
    assert_eq!(house.command(&["pin", "app:v1"]).await.status.code(), Some(0));
    assert_eq!(pinned(&house, &images).await, [false, false, true]);
    // The first image came after one day, the second after two, the third after three.
    let house = house.restart(hold(begun + DAY * 5 / 2, "library/app:v1")).await;
    fake.clear();
    serves(&house, &images[1]).await;
    becomes_pinned(&house, &images, [false, true, false]).await;
    assert_eq!(fake.total(), 0, "nobody is asked");
    assert!(history(&house).await.contains(&(images[1].digest().to_owned(), false, true)));
    // What the upstream has is still noted when it is asked for by hand, and a hold by hand wins.
    refresh(&house).await;
    assert_eq!(house.command(&["rollback", "app:v1", images[0].digest()]).await.status.code(), Some(0));
    serves(&house, &images[0]).await;
    assert_eq!(house.command(&["release", "app:v1"]).await.status.code(), Some(0));
    serves(&house, &images[1]).await;

    // As of a date when nobody here had seen it, whether it was seen later or never.
    let house = house.restart(hold(begun + DAY / 2, "library/*")).await;
    fake.clear();
    for (tag, why) in [("v1", "only since"), ("v2", "never seen it")] {
        let answer = house.client().get(&format!("/v2/library/app/manifests/{tag}")).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
        assert!(
            answer.text().contains("[[upstream.hold]]") && answer.text().contains(why),
            "{}",
            answer.text()
        );
        let told = house.admin().get(&format!("/api/v1/explain?image=app:{tag}")).await.json();
        assert_eq!(told["prospect"], "negative");
        assert!(told["trouble"].as_str().unwrap().contains(why), "{told}");
    }
    let by_digest = house.client().get(&format!("/v2/library/app/manifests/{}", images[2].digest())).await;
    assert_eq!((by_digest.status, fake.total()), (200, 0), "a digest is what it is at any date");
    // Others go their way.
    let house = house.restart(hold(begun, "library/app:v1?")).await;
    serves(&house, &images[2]).await;
    becomes_pinned(&house, &images, [false, false, true]).await;
}
