//! Lists: tags, referrers, and the catalog of what is cached.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::client::{Client, Reply};
use crate::support::eventually::eventually_eq;
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image, OCI_INDEX, sha256};
use crate::support::registry::FakeRegistry;

const TAGS: &str = "/v2/library/app/tags/list";

/// A fake with these tags in `library/app`, and a house over it.
async fn tagged(tags: &[&str]) -> (FakeRegistry, Image, House) {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[10]);
    tags.iter().for_each(|tag| fake.push("library/app", tag, &image));
    let house = House::over(&fake).await;
    (fake, image, house)
}

fn tags(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_value(reply.json()["tags"].clone()).unwrap()
}

/// The path and query of the next page.
fn next(reply: &Reply) -> Option<String> {
    let link = reply.headers.get("link")?.to_str().unwrap();
    let target = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
    Some(target.unwrap_or_else(|| panic!("{link}")).to_owned())
}

/// Every page from `path` on.
async fn pages(client: &Client, path: &str, entries: impl Fn(&Reply) -> Vec<String>) -> Vec<Vec<String>> {
    let (mut pages, mut at) = (Vec::new(), Some(path.to_owned()));
    while let Some(path) = at {
        let reply = client.get(&path).await;
        pages.push(entries(&reply));
        at = next(&reply);
        assert!(pages.len() < 20, "there is no end to it");
    }
    pages
}

#[tokio::test]
async fn all_tags_over_the_upstreams_pages() {
    let names = ["7", "A", "Z", "a", "b", "v1.0", "v1.10", "v1.2", "_x"];
    let (fake, _, house) = tagged(&names).await;
    fake.set(|behaviour| behaviour.tags_page = Some(2));
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    let reply = house.client().get(TAGS).await;
    assert_eq!(tags(&reply), sorted);
    assert_eq!((reply.json()["name"].as_str(), next(&reply)), (Some("library/app"), None));
    assert_eq!(fake.count("GET", "/tags/list"), 5, "two a page");
    let asked = fake.requests();
    assert!(asked.iter().all(|request| request.query.contains("n=")), "pages as long as may be");
}

#[tokio::test]
async fn a_client_gets_the_pages_it_asks_for() {
    let (fake, _, house) = tagged(&["a", "b", "c", "d", "e"]).await;
    let client = house.client();
    for (query, expected) in [
        ("n=2", vec![vec!["a", "b"], vec!["c", "d"], vec!["e"]]),
        ("n=5", vec![vec!["a", "b", "c", "d", "e"]]),
        ("n=100", vec![vec!["a", "b", "c", "d", "e"]]),
        ("n=3&last=b", vec![vec!["c", "d", "e"]]),
        ("n=2&last=bb", vec![vec!["c", "d"], vec!["e"]]),
        ("last=c", vec![vec!["d", "e"]]),
        ("last=", vec![vec!["a", "b", "c", "d", "e"]]),
        ("n=1&last=d", vec![vec!["e"]]),
        ("n=2&last=e", vec![vec![]]),
        ("n=2&last=zzz", vec![vec![]]),
        ("n=0", vec![vec![]]),
        ("n=0&last=a", vec![vec![]]),
        ("last=%ff%20%26n%3D1", vec![vec![]]),
    ] {
        assert_eq!(pages(&client, &format!("{TAGS}?{query}"), tags).await, expected, "{query}");
    }
    let whole = fake.log().matching(|request| request.query.contains("last="));
    assert!(whole.is_empty(), "the upstream is asked for the whole list only");
}

/// Whoever came by `ns`, by a path or by a tag of strange letters finds the next page in the same way.
#[tokio::test]
async fn the_next_page_is_had_as_this_one_was() {
    let hub = FakeRegistry::start().await;
    let ghcr = FakeRegistry::start().await;
    let image = Image::layers(2, &[10]);
    for tag in ["a", "b", "c"] {
        hub.push("org/app", &format!("hub-{tag}"), &image);
        ghcr.push("org/app", &format!("ghcr-{tag}"), &image);
    }
    let upstreams = vec![upstream("docker.io", &[&hub.url()]), upstream("ghcr.io", &[&ghcr.url()])];
    let house = House::start(upstreams, |_| {}).await;
    for path in [
        "/v2/org/app/tags/list?ns=ghcr.io&n=2",
        "/v2/ghcr.io/org/app/tags/list?n=2",
        "/v2/ghcr.io%2Forg/app/tags/list?n=2",
    ] {
        let found = pages(&house.client(), path, tags).await;
        assert_eq!(found, [vec!["ghcr-a", "ghcr-b"], vec!["ghcr-c"]], "{path}");
    }
    assert_eq!(hub.total(), 0);
}

#[tokio::test]
async fn one_list_for_all_who_ask_and_then_none() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(3, &[10]));
    let gate = Gate::new();
    fake.fault(Match::path("/tags/list"), Times::Once, Fault::hold_head(&gate));
    let house = House::with(&fake, |config| {
        config.upstreams[0].freshness.tag_ttl = Duration::from_secs(600);
    })
    .await;
    let asking = (0..20).map(|_| {
        let client = house.client();
        async move { client.get(TAGS).await }
    });
    let (replies, ()) = tokio::join!(join_all(asking), async {
        gate.waiting(1).await;
        eventually_eq(20.0, || house.metric("tidelock_connections")).await;
        gate.open();
    });
    assert!(replies.iter().all(|reply| tags(reply) == ["v1"]));
    assert_eq!(fake.total(), 1);
    let reply = house.client().get(&format!("{TAGS}?n=1")).await;
    assert_eq!((reply.header("cache-status"), fake.total()), ("tidelock; hit", 1), "I4");
}

#[tokio::test]
async fn a_new_tag_is_seen_when_the_list_is_asked_for_again() {
    let (fake, image, house) = tagged(&["v1"]).await;
    assert_eq!(tags(&house.client().get(TAGS).await), ["v1"]);
    fake.push("library/app", "v2", &image);
    assert_eq!(tags(&house.client().get(TAGS).await), ["v1", "v2"]);
    fake.remove_tag("library/app", "v1");
    assert_eq!(tags(&house.client().get(TAGS).await), ["v2"]);
}

#[tokio::test]
async fn the_old_list_when_the_upstream_is_in_trouble() {
    let (fake, image, house) = tagged(&["v1", "v2"]).await;
    let referrers = format!("/v2/library/app/referrers/{}", image.digest());
    let signature = Image::artifact(&image.top, "application/vnd.example.signature");
    signature.manifests.iter().for_each(|manifest| fake.put_manifest("library/app", manifest));
    assert_eq!(tags(&house.client().get(TAGS).await).len(), 2);
    assert_eq!(manifests(&house.client().get(&referrers).await).len(), 1);
    for fault in
        [Fault::status(500), Fault::status(503), Fault::quota(), Fault::abuse(9), Fault::HangUp, Fault::Html]
    {
        let what = format!("{fault:?}");
        fake.fault(Match::any(), Times::Always, fault);
        for path in [TAGS, &referrers] {
            let reply = house.client().get(path).await;
            assert_eq!(
                (reply.status, reply.header("cache-status")),
                (200, "tidelock; hit; detail=stale"),
                "{what} {path}"
            );
            assert!(reply.header("warning").starts_with("299 - \""), "{what}");
        }
        fake.lift_faults();
    }
    fake.stop().await;
    assert_eq!(tags(&house.client().get(&format!("{TAGS}?n=1")).await), ["v1"]);
    assert_eq!(manifests(&house.client().get(&referrers).await).len(), 1);
    let unknown = house.client().get("/v2/library/other/tags/list").await;
    assert_eq!((unknown.status, unknown.error_code().as_str()), (502, "UNAVAILABLE"));
    fake.resume();
    fake.remove_repo("library/app");
    let gone = house.client().get(TAGS).await;
    assert_eq!((gone.status, gone.error_code().as_str()), (404, "NAME_UNKNOWN"), "a definite no");
    fake.stop().await;
    assert_eq!(house.client().get(TAGS).await.status, 502, "and it is forgotten");
}

#[tokio::test]
async fn an_unknown_repository_is_asked_for_once_in_a_while() {
    let fake = FakeRegistry::start().await;
    let house = House::with(&fake, |config| {
        config.upstreams[0].freshness.negative_ttl = Duration::from_secs(600);
    })
    .await;
    for _ in 0..3 {
        let reply = house.client().get("/v2/none/at-all/tags/list").await;
        assert_eq!((reply.status, reply.error_code().as_str()), (404, "NAME_UNKNOWN"));
    }
    assert_eq!(fake.total(), 1);
}

#[tokio::test]
async fn a_list_that_is_none() {
    let (fake, image, house) = tagged(&["v1"]).await;
    let json = || vec![("content-type".to_owned(), "application/json".to_owned())];
    for (body, expected) in [
        (r#"{"name":"x","tags":null}"#, Some(json!([]))),
        (r#"{"name":"x"}"#, Some(json!([]))),
        (r#"{"tags":["b","a","b"]}"#, Some(json!(["a", "b"]))),
        ("[]", None),
        ("<html>", None),
        (r#"{"tags":[1]}"#, None),
    ] {
        fake.fault(Match::path("/tags/list"), Times::Once, Fault::Status(200, body.to_owned(), json()));
        let reply = house.client().get(TAGS).await;
        match expected {
            Some(expected) => assert_eq!(reply.json()["tags"], expected, "{body}"),
            // The old list is better than none.
            None => assert_eq!(reply.header("cache-status"), "tidelock; hit; detail=stale", "{body}"),
        }
    }
    assert_eq!(tags(&house.client().get(TAGS).await), ["v1"]);
    assert!(house.client().pull("library/app", "v1").await.unwrap().is(&image));
}

fn manifests(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), OCI_INDEX);
    let index = reply.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(OCI_INDEX)));
    index["manifests"].as_array().unwrap().clone()
}

const SIGNATURE: &str = "application/vnd.example.signature";
const SBOM: &str = "application/vnd.example.sbom+json";

/// An image with a signature and an SBOM, all of it in `library/app`.
async fn signed() -> (FakeRegistry, Image, [Image; 2], House) {
    let (fake, image, house) = tagged(&["v1"]).await;
    let artifacts = [SIGNATURE, SBOM].map(|kind| Image::artifact(&image.top, kind));
    for artifact in &artifacts {
        artifact.blobs.iter().for_each(|blob| fake.put_blob("library/app", blob));
        fake.put_manifest("library/app", &artifact.top);
    }
    (fake, image, artifacts, house)
}

#[tokio::test]
async fn referrers_by_the_api() {
    let (fake, image, artifacts, house) = signed().await;
    let path = format!("/v2/library/app/referrers/{}", image.digest());
    let all = house.client().get(&path).await;
    assert_eq!((manifests(&all).len(), all.header("oci-filters-applied")), (2, ""));
    for descriptor in manifests(&all) {
        let created = &descriptor["annotations"]["org.opencontainers.image.created"];
        assert_eq!(created, "2026-01-01T00:00:00Z", "annotations stay");
    }
    for (artifact, kind) in artifacts.iter().zip([SIGNATURE, SBOM]) {
        let kind = kind.replace('/', "%2F").replace('+', "%2B");
        let some = house.client().get(&format!("{path}?artifactType={kind}")).await;
        assert_eq!(some.header("oci-filters-applied"), "artifactType");
        let found = manifests(&some);
        assert_eq!((found.len(), &found[0]["digest"]), (1, &json!(artifact.digest())));
        assert!(house.client().pull("library/app", artifact.digest()).await.unwrap().is(artifact));
    }
    let none = house.client().get(&format!("{path}?artifactType=application/none")).await;
    assert_eq!((manifests(&none).len(), none.header("oci-filters-applied")), (0, "artifactType"));
    let unfiltered = house.client().get(&format!("{path}?artifactType=")).await;
    assert_eq!((manifests(&unfiltered).len(), unfiltered.header("oci-filters-applied")), (2, ""));
    // Whatever the filter, it is one list.
    assert!(fake.requests().iter().all(|request| !request.query.contains("artifactType")));
    let unknown = house.client().get(&format!("/v2/library/app/referrers/{}", sha256(b"x"))).await;
    assert_eq!(manifests(&unknown).len(), 0, "nobody refers to what is not there");
    let nowhere = house.client().get(&format!("/v2/library/none/referrers/{}", image.digest())).await;
    assert_eq!(manifests(&nowhere).len(), 0, "nor to what is in an unknown repository");
}

/// What clients of a registry without the API keep under a tag.
fn fallback(artifacts: &[Image]) -> Blob {
    let entries: Vec<Value> = artifacts
        .iter()
        .zip([SIGNATURE, SBOM])
        .map(|(artifact, kind)| {
            let mut entry = artifact.top.descriptor();
            entry["artifactType"] = json!(kind);
            entry
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    Blob::new(index.to_string(), OCI_INDEX)
}

#[tokio::test]
async fn referrers_by_the_fallback_tag() {
    let (fake, image, artifacts, house) = signed().await;
    fake.set(|behaviour| behaviour.referrers = false);
    let path = format!("/v2/library/app/referrers/{}", image.digest());
    let before = house.client().get(&path).await;
    assert_eq!((manifests(&before).len(), before.status), (0, 200), "neither the API nor the tag");
    let index = fallback(&artifacts);
    fake.put_manifest("library/app", &index);
    fake.tag("library/app", &image.digest().replace(':', "-"), &index.digest);
    assert_eq!(manifests(&house.client().get(&path).await).len(), 2);
    let filtered = house.client().get(&format!("{path}?artifactType={SIGNATURE}")).await;
    let found = manifests(&filtered);
    assert_eq!((found.len(), &found[0]["digest"]), (1, &json!(artifacts[0].digest())));
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    // An empty list is remembered like any other.
    fake.stop().await;
    assert_eq!(manifests(&house.client().get(&path).await).len(), 2, "stale");
}

#[tokio::test]
async fn a_page_in_place_of_the_api_is_no_api() {
    let (fake, image, artifacts, house) = signed().await;
    let index = fallback(&artifacts[..1]);
    fake.put_manifest("library/app", &index);
    fake.tag("library/app", &image.digest().replace(':', "-"), &index.digest);
    let html = || vec![("content-type".to_owned(), "text/html".to_owned())];
    for (status, body) in [(200, "<html>"), (400, ""), (405, ""), (406, "")] {
        let fault = Fault::Status(status, body.to_owned(), html());
        fake.fault(Match::path("/referrers/"), Times::Once, fault);
        let reply = house.client().get(&format!("/v2/library/app/referrers/{}", image.digest())).await;
        assert_eq!(manifests(&reply).len(), 1, "{status}");
    }
}

#[tokio::test]
async fn the_fallback_tag_of_a_sha512_is_cut() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers_sha512(4, &[10]);
    fake.push("library/app", "v1", &image);
    fake.set(|behaviour| behaviour.referrers = false);
    let index = fallback(&[Image::artifact(&image.top, SIGNATURE)]);
    fake.put_manifest("library/app", &index);
    let hex = image.digest().strip_prefix("sha512:").unwrap();
    fake.tag("library/app", &format!("sha512-{}", &hex[..64]), &index.digest);
    let house = House::over(&fake).await;
    let reply = house.client().get(&format!("/v2/library/app/referrers/{}", image.digest())).await;
    assert_eq!(manifests(&reply).len(), 1);
}

#[tokio::test]
async fn referrers_of_a_dead_upstream_that_was_never_asked() {
    let (fake, image, house) = tagged(&["v1"]).await;
    fake.stop().await;
    let reply = house.client().get(&format!("/v2/library/app/referrers/{}", image.digest())).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"));
}

fn repositories(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_value(reply.json()["repositories"].clone()).unwrap()
}

#[tokio::test]
async fn the_catalog_is_of_what_is_cached() {
    let (fake, image, house) = tagged(&["v1"]).await;
    fake.push("org/other", "v1", &image);
    assert!(repositories(&house.client().get("/v2/_catalog").await).is_empty());
    let missing = house.client().get("/v2/library/none/manifests/v1").await;
    assert_eq!(missing.status, 404);
    house.client().pull("app", "v1").await.unwrap();
    house.client().pull("docker.io/app", "v1").await.unwrap();
    fake.clear();
    let reply = house.client().get("/v2/_catalog").await;
    assert_eq!(repositories(&reply), ["library/app"]);
    assert_eq!(fake.total(), 0);
}

/// Every name in it can be pulled through this mirror as it stands there, whatever it takes to say so.
#[tokio::test]
async fn the_catalog_prints_names_that_can_be_pulled() {
    let fakes = [FakeRegistry::start().await, FakeRegistry::start().await, FakeRegistry::start().await];
    let images = [5, 6, 7].map(|seed| Image::layers(seed, &[10]));
    let registries = ["docker.io", "ghcr.io", "registry.example:5000"];
    let pulled = [
        ("docker.io", "app"),
        ("docker.io", "org/app"),
        ("docker.io", "ghcr.io/app"),
        ("docker.io", "dotted.name/app"),
        ("ghcr.io", "app"),
        ("ghcr.io", "org/app"),
        ("registry.example:5000", "org/app"),
    ];
    for (fake, image) in fakes.iter().zip(&images) {
        pulled.iter().for_each(|(_, name)| fake.push(name, "v1", image));
        fake.push("library/app", "v1", image);
    }
    let upstreams = registries.iter().zip(&fakes).map(|(name, fake)| upstream(name, &[&fake.url()]));
    let house = House::start(upstreams.collect(), |_| {}).await;
    for (registry, name) in pulled {
        let client = house.client().with_query(&format!("ns={registry}"));
        let image = &images[registries.iter().position(|own| *own == registry).unwrap()];
        assert!(client.pull(name, "v1").await.unwrap().is(image), "{registry}/{name}");
    }
    let reply = house.client().get("/v2/_catalog").await;
    let expected = [
        // In the words that a path can say: a registry with a port cannot be said in one.
        ("docker.io/dotted.name/app", 0),
        ("docker.io/ghcr.io/app", 0),
        ("ghcr.io/app", 1),
        ("ghcr.io/org/app", 1),
        ("library/app", 0),
        ("org/app", 0),
    ];
    assert_eq!(repositories(&reply), expected.map(|(name, _)| name));
    for (name, whose) in expected {
        assert!(house.client().pull(name, "v1").await.unwrap().is(&images[whose]), "{name}");
    }
    for n in 1..=7 {
        let found = pages(&house.client(), &format!("/v2/_catalog?n={n}"), repositories).await;
        assert_eq!(found.concat(), expected.map(|(name, _)| name), "n={n}");
        assert_eq!(found.len(), expected.len().div_ceil(n), "n={n}");
    }
    assert!(repositories(&house.client().get("/v2/_catalog?n=0").await).is_empty());
    let rest = house.client().get("/v2/_catalog?last=library/app").await;
    assert_eq!(repositories(&rest), ["org/app"]);
}

#[tokio::test]
async fn the_catalog_outlives_a_restart_and_a_registry() {
    let (fake, _, house) = tagged(&["v1"]).await;
    house.client().pull("app", "v1").await.unwrap();
    let house = house.restart(|config| config.offline = true).await;
    assert_eq!(repositories(&house.client().get("/v2/_catalog").await), ["library/app"]);
    assert!(house.client().pull("app", "v1").await.is_ok());
    let forbidden =
        house.restart(|config| config.upstreams[0].deny = vec!["library/**".parse().unwrap()]).await;
    assert!(repositories(&forbidden.client().get("/v2/_catalog").await).is_empty(), "nobody may pull it");
    let url = fake.url();
    let house = forbidden
        .restart(|config| {
            config.upstreams = vec![upstream("quay.io", &[&url])];
            config.upstreams[0].default = true;
        })
        .await;
    assert!(repositories(&house.client().get("/v2/_catalog").await).is_empty(), "nobody could pull it");
}

#[tokio::test]
async fn a_made_up_subject_leaves_no_trace() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(1, &[10]));
    let house = House::over(&fake).await;
    let made_up = Blob::random(77, 7).digest;
    let reply = house.client().get(&format!("/v2/library/app/referrers/{made_up}")).await;
    assert_eq!(reply.status, 200);
    let catalog = house.client().get("/v2/_catalog").await.json();
    assert_eq!(catalog["repositories"].as_array().map(Vec::len), Some(0), "no row in the index");
}
