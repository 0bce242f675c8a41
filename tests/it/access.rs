//! A digest is served only through a repository that is known to contain it (I5), and only what the operator
//! allows.

use crate::support::client::Client;
use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image, OCI_MANIFEST};
use crate::support::registry::FakeRegistry;

const LARGE: usize = 700_000;

/// Two upstreams. `acme/secret` (A) holds a layer; so does `acme/copy` (C) of the same upstream and
/// `org/copy` of the other. `acme/other` (B) and `org/other` exist without it.
struct Street {
    hub: FakeRegistry,
    other: FakeRegistry,
    house: House,
    image: Image,
    layer: Blob,
}

/// Those who must not see it, and those who may.
const STRANGERS: [&str; 3] = ["acme/other", "ghcr.io/org/other", "ghcr.io/acme/secret"];
const OWNERS: [(&str, bool); 2] = [("acme/copy", true), ("ghcr.io/org/copy", false)];

impl Street {
    async fn new() -> Street {
        let (hub, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
        let image = Image::layers(1, &[LARGE]);
        let layer = image.layer_blobs().remove(0);
        for (fake, name) in [(&hub, "acme/secret"), (&hub, "acme/copy"), (&other, "org/copy")] {
            fake.push(name, "v1", &image);
        }
        for (fake, name) in [(&hub, "acme/other"), (&other, "org/other")] {
            fake.push(name, "v1", &Image::layers(2, &[10]));
        }
        let upstreams = vec![upstream("docker.io", &[&hub.url()]), upstream("ghcr.io", &[&other.url()])];
        Street { house: House::start(upstreams, |_| {}).await, hub, other, image, layer }
    }

    fn client(&self) -> Client {
        self.house.client()
    }

    fn fake(&self, is_hub: bool) -> &FakeRegistry {
        if is_hub { &self.hub } else { &self.other }
    }

    fn blob(&self, name: &str) -> String {
        format!("/v2/{name}/blobs/{}", self.layer.digest)
    }

    /// Nobody who must not sees it, by whatever means.
    async fn is_shut(&self) {
        for name in STRANGERS {
            let blob = self.blob(name);
            for reply in [
                self.client().get(&blob).await,
                self.client().get_range(&blob, "bytes=0-99").await,
                self.client().head(&blob).await,
                self.client().request(http::Method::GET, &blob, &[("if-none-match", "*")]).await,
            ] {
                assert_eq!(reply.status, 404, "{name}");
                assert!(reply.headers.get("etag").is_none(), "{name}");
            }
            let manifest = format!("/v2/{name}/manifests/{}", self.image.digest());
            for reply in [self.client().get(&manifest).await, self.client().head(&manifest).await] {
                assert_eq!(reply.status, 404, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn what_one_repository_brought_another_must_contain() {
    let street = Street::new().await;
    assert!(street.client().pull("acme/secret", "v1").await.unwrap().is(&street.image));
    eventually_eq(0.0, || street.house.metric("tidelock_flights")).await;
    street.is_shut().await;
    for (name, is_hub) in OWNERS {
        street.hub.clear();
        street.other.clear();
        for round in 0..2 {
            let bytes = street.client().blob(name, &street.layer.digest).await.unwrap();
            assert_eq!(bytes, street.layer.bytes);
            let fake = street.fake(is_hub);
            assert_eq!((fake.count("HEAD", "/blobs/"), fake.total()), (1, 1), "{name}, round {round}");
        }
        let manifest = street.client().manifest(name, street.image.digest()).await.unwrap();
        assert_eq!(manifest, street.image.top);
        let fake = street.fake(is_hub);
        assert_eq!((fake.count("HEAD", "/manifests/"), fake.counted()), (1, 0), "{name}");
        assert_eq!(street.hub.total() + street.other.total(), 2, "nobody else was asked");
    }
    street.is_shut().await;
}

#[tokio::test]
async fn while_it_is_fetched_too() {
    let street = Street::new().await;
    let gate = Gate::new();
    street.hub.fault(Match::blob(&street.layer.digest), Times::Once, Fault::hold_after(&gate, 300_000));
    let mut first = street.client().get_streaming(&street.blob("acme/secret")).await;
    first.read(100_000).await;
    street.is_shut().await;
    street.hub.clear();
    street.other.clear();
    let mut owners = Vec::new();
    for (name, is_hub) in OWNERS {
        let mut client = street.client().get_streaming(&street.blob(name)).await;
        client.read(100_000).await;
        owners.push(client);
        let fake = street.fake(is_hub);
        assert_eq!((fake.count("HEAD", "/blobs/"), fake.total()), (1, 1), "{name}");
    }
    gate.open();
    for mut client in owners.into_iter().chain([first]) {
        let (rest, error) = client.read_to_end().await;
        assert!(error.is_none() && rest == street.layer.bytes.slice(100_000..));
    }
    eventually_eq(0.0, || street.house.metric("tidelock_flights")).await;
    street.is_shut().await;
}

/// The stranger stands at the door before the blob comes in, and is still not let in when it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_it_is_not_let_in_when_it_comes() {
    let street = Street::new().await;
    let gate = Gate::new();
    let stranger = Match::blob(&street.layer.digest).and_path("/acme/other/");
    street.hub.fault(stranger, Times::Once, Fault::hold_head(&gate));
    let waiting = tokio::spawn({
        let (client, path) = (street.client(), street.blob("acme/other"));
        async move { client.get(&path).await }
    });
    gate.waiting(1).await;
    // The stranger leads; the owner proves itself, follows, and goes its own way when that comes to nothing.
    let owner = tokio::spawn({
        let (client, path) = (street.client(), street.blob("acme/secret"));
        async move { client.get(&path).await }
    });
    eventually(|| async { street.hub.count("HEAD", "/acme/secret/blobs/") == 1 }).await;
    gate.open();
    assert_eq!(waiting.await.unwrap().status, 404);
    let owner = owner.await.unwrap();
    assert_eq!((owner.status, owner.whole()), (200, street.layer.bytes.clone()));
    street.is_shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_owners_at_once() {
    let street = Street::new().await;
    for _ in 0..5 {
        let names = STRANGERS.iter().chain(OWNERS.iter().map(|(name, _)| name)).chain(&["acme/secret"]);
        let asked = names.cycle().take(48).map(|name| {
            let (client, path) = (street.client(), street.blob(name));
            async move { (*name, client.get(&path).await) }
        });
        for (name, reply) in futures_util::future::join_all(asked).await {
            let is_stranger = STRANGERS.contains(&name);
            assert_eq!(reply.status, if is_stranger { 404 } else { 200 }, "{name}: {}", reply.text());
            assert!(is_stranger || reply.whole() == street.layer.bytes, "{name}");
        }
    }
}

#[tokio::test]
async fn to_mention_a_digest_is_not_to_have_it() {
    for read_ahead in [false, true] {
        let street = Street::new().await;
        let house = street
            .house
            .restart(|config| config.upstreams.iter_mut().for_each(|one| one.read_ahead = read_ahead))
            .await;
        let street = Street { house, ..street };
        street.client().pull("acme/secret", "v1").await.unwrap();
        // The secret's own manifest under a digest of its own, put where the stranger may write.
        let text = format!(" {}", String::from_utf8(street.image.top.bytes.to_vec()).unwrap());
        let manifest = Blob::new(text, OCI_MANIFEST);
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [street.image.top.descriptor()] });
        let index = Blob::new(index.to_string(), OCI_MANIFEST);
        for document in [&manifest, &index] {
            street.hub.put_manifest("acme/other", document);
            street.other.put_manifest("org/other", document);
            for name in ["acme/other", "ghcr.io/org/other"] {
                assert!(street.client().manifest(name, &document.digest).await.is_ok());
            }
        }
        eventually_eq(0.0, || street.house.metric("tidelock_flights")).await;
        street.is_shut().await;
        assert!(street.client().pull("acme/secret", "v1").await.unwrap().is(&street.image));
    }
}

/// Eight repositories, one digest, one moment: what goes wrong for the others is theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trouble_of_others_is_not_ours() {
    let (fake, blob, gate) = (FakeRegistry::start().await, Blob::random(1, LARGE), Gate::new());
    let names: Vec<String> = (0..8).map(|n| format!("acme/app{n}")).collect();
    for name in &names {
        fake.put_blob(name, &blob);
    }
    fake.fault(Match::blobs(), Times::Once, Fault::hold_head(&gate));
    for name in &names[..7] {
        fake.fault(Match::blobs().and_path(&format!("/{name}/")), Times::Always, Fault::status(500));
    }
    let house = House::over(&fake).await;
    let asking = futures_util::future::join_all(names.iter().map(|name| {
        let (client, path) = (house.client(), format!("/v2/{name}/blobs/{}", blob.digest));
        async move { client.get(&path).await }
    }));
    let open = async {
        gate.waiting(1).await;
        eventually(|| async { fake.count("HEAD", "/blobs/") == 7 }).await;
        gate.open();
    };
    let (replies, ()) = tokio::join!(asking, open);
    for (name, reply) in names.iter().zip(&replies[..7]) {
        // Whoever came when the last had succeeded is served; nobody hears of a fault in the mirror.
        let is_served = reply.status == 200 && !reply.truncated && reply.body == blob.bytes;
        assert!(is_served || (reply.status, reply.error_code().as_str()) == (502, "UNAVAILABLE"), "{name}");
    }
    assert_eq!((replies[7].status, replies[7].whole()), (200, blob.bytes.clone()));
}

#[tokio::test]
async fn only_what_the_operator_allows() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[10]);
    for name in ["library/app", "acme/app", "acme/secret/app", "other/app"] {
        fake.push(name, "v1", &image);
    }
    let house = House::with(&fake, |config| {
        let globs = |globs: &[&str]| globs.iter().map(|glob| glob.parse().unwrap()).collect::<Vec<_>>();
        config.upstreams[0].allow = globs(&["library/*", "acme/**"]);
        config.upstreams[0].deny = globs(&["acme/secret/**"]);
    })
    .await;
    for name in ["app", "library/app", "acme/app", "docker.io/app"] {
        assert!(house.client().pull(name, "v1").await.unwrap().is(&image), "{name}");
    }
    fake.clear();
    for name in ["acme/secret/app", "other/app", "docker.io/other/app"] {
        for what in ["manifests/v1", &format!("blobs/{}", image.blobs[0].digest), "tags/list"] {
            let reply = house.client().get(&format!("/v2/{name}/{what}")).await;
            assert_eq!((reply.status, reply.error_code().as_str()), (403, "DENIED"), "{name} {what}");
            assert_eq!(reply.header("www-authenticate"), "");
        }
    }
    assert_eq!(fake.total(), 0);
    let series = "tidelock_requests_total{kind=\"manifest\",outcome=\"denied\",upstream=\"docker.io\"}";
    eventually_eq(3.0, || house.metric(series)).await;
}
