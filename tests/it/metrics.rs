//! What is counted, exactly, and what must never show in a metric.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Method;

use crate::support::client::Client;
use crate::support::eventually::eventually_eq;
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image};
use crate::support::log::Record;
use crate::support::registry::FakeRegistry;

const LARGE: usize = 200_000;

/// Every series with its value.
type Series = BTreeMap<String, f64>;

async fn text(house: &House) -> String {
    let reply = house.admin().get("/metrics").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "text/plain; version=0.0.4"));
    reply.text()
}

async fn series(house: &House) -> Series {
    let text = text(house).await;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

fn sum(series: &Series, name: &str) -> f64 {
    let of_it = |key: &&String| key.starts_with(name) && key[name.len()..].starts_with('{');
    series.keys().filter(of_it).map(|key| series[key]).sum()
}

const REQUESTS: &str = "tidelock_requests_total";

/// The series of these names that moved, and by how much.
fn moved(before: &Series, after: &Series, names: &[&str]) -> BTreeMap<String, f64> {
    let is_meant = |key: &&String| names.contains(&key.split('{').next().unwrap());
    let changes = after.keys().filter(is_meant).map(|key| {
        let was = before.get(key).unwrap_or_else(|| panic!("{key} did not exist before"));
        (key.clone(), after[key] - was)
    });
    changes.filter(|(_, change)| *change != 0.0).collect()
}

/// Waits until `count` more requests have been counted than in `before`.
async fn counted(house: &House, before: &Series, count: usize) -> Series {
    let expected = sum(before, REQUESTS) + count as f64;
    eventually_eq(expected, || async { sum(&series(house).await, REQUESTS) }).await;
    series(house).await
}

fn request_series(upstream: &str, kind: &str, outcome: &str) -> String {
    format!("{REQUESTS}{{kind=\"{kind}\",outcome=\"{outcome}\",upstream=\"{upstream}\"}}")
}

/// Sends a request and holds that it was counted once, as this kind and outcome.
async fn assert_counts(
    house: &House,
    client: &Client,
    method: Method,
    path: &str,
    expected: (&str, &str, &str),
) {
    let before = series(house).await;
    let reply = client.request(method.clone(), path, &[]).await;
    let after = counted(house, &before, 1).await;
    house.settled().await;
    let (upstream, kind, outcome) = expected;
    let want = BTreeMap::from([(request_series(upstream, kind, outcome), 1.0)]);
    assert_eq!(moved(&before, &after, &[REQUESTS]), want, "{method} {path}: {}", reply.status);
    let lasting = format!("tidelock_request_duration_seconds_count{{kind=\"{kind}\",outcome=\"{outcome}\"}}");
    let want = BTreeMap::from([(lasting, 1.0)]);
    assert_eq!(moved(&before, &after, &["tidelock_request_duration_seconds_count"]), want, "{method} {path}");
    // A blob is served whole a moment before its flight ends; whoever comes in between joins it.
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
}

/// A fake with an image at `library/app:v1`, and a house over it.
async fn scene() -> (FakeRegistry, Image, House) {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[LARGE]);
    fake.push("library/app", "v1", &image);
    let house = House::over(&fake).await;
    (fake, image, house)
}

#[tokio::test]
async fn known_series_are_there_from_the_start() {
    let fake = FakeRegistry::start().await;
    let two = vec![upstream("docker.io", &[&fake.url()]), upstream("ghcr.io", &[&fake.url()])];
    let house = House::start(two, |_| {}).await;
    let known = series(&house).await;
    let mut wanted = Vec::new();
    let served = ["hit", "miss", "joined", "revalidated", "stale"];
    let kinds = ["manifest", "blob", "tags", "referrers"];
    for registry in ["docker.io", "ghcr.io"] {
        for kind in kinds {
            for outcome in served.iter().chain(&["negative", "denied", "error"]) {
                wanted.push(request_series(registry, kind, outcome));
                for name in ["request_duration", "time_to_first_byte"] {
                    wanted.push(format!(
                        "tidelock_{name}_seconds_count{{kind=\"{kind}\",outcome=\"{outcome}\"}}"
                    ));
                }
            }
            wanted.push(format!(
                "tidelock_upstream_requests_total{{account=\"anonymous\",kind=\"{kind}\",method=\"GET\",status=\"2xx\",upstream=\"{registry}\"}}"
            ));
            wanted.push(format!(
                "tidelock_upstream_request_duration_seconds_count{{kind=\"{kind}\",upstream=\"{registry}\"}}"
            ));
        }
        for outcome in served {
            wanted
                .push(format!("tidelock_sent_bytes_total{{outcome=\"{outcome}\",upstream=\"{registry}\"}}"));
        }
        for name in ["fetched_bytes_total", "verify_failures_total", "resumed_total", "parts_total"] {
            wanted.push(format!("tidelock_{name}{{upstream=\"{registry}\"}}"));
        }
        for name in ["schedule_queue", "schedule_wait_seconds_count"] {
            wanted.push(format!("tidelock_{name}{{priority=\"foreground\",upstream=\"{registry}\"}}"));
        }
        for reason in ["busy", "down"] {
            wanted.push(format!(
                "tidelock_throttled_total{{account=\"any\",reason=\"{reason}\",upstream=\"{registry}\"}}"
            ));
        }
        wanted.push(format!("tidelock_endpoint_down{{endpoint=\"1\",upstream=\"{registry}\"}}"));
    }
    wanted.extend(kinds.map(|kind| request_series("none", kind, "denied")));
    wanted.push("tidelock_evicted_bytes_total{reason=\"size\"}".to_owned());
    for outcome in ["applied", "refused"] {
        wanted.push(format!("tidelock_config_reloads_total{{outcome=\"{outcome}\"}}"));
    }
    for reason in ["full", "read_only", "descriptors", "disk"] {
        wanted.push(format!("tidelock_cache_failing{{reason=\"{reason}\"}}"));
    }
    for name in [
        "cache_bytes",
        "cache_blobs",
        "cache_pinned_bytes",
        "flights",
        "flight_followers",
        "cache_failures_total",
        "quarantined_total",
        "scrubbed_bytes_total",
        "scrub_finished_timestamp_seconds",
    ] {
        wanted.push(format!("tidelock_{name}"));
    }
    for series in &wanted {
        assert_eq!(known.get(series), Some(&0.0), "{series}");
    }
    assert_eq!(known["tidelock_cache_limit_bytes"], (1u64 << 30) as f64);
    assert_eq!(sum(&known, "tidelock_build_info"), 1.0);
    assert_eq!(known["tidelock_config_last_reload_successful"], 1.0);
    assert!(known["tidelock_config_last_reload_success_timestamp_seconds"] > 1.7e9);
    // Nothing is known to be 0 that is then counted under another name.
    let counters = known.iter().filter(|(name, _)| name.starts_with("tidelock_") && name.contains("_total"));
    assert!(counters.clone().count() > 100);
    for (name, value) in counters.filter(|(name, _)| !name.starts_with("tidelock_connections_total")) {
        assert_eq!(*value, 0.0, "{name}");
    }
}

#[tokio::test]
async fn each_request_is_counted_once_as_what_it_was() {
    let (fake, image, house) = scene().await;
    let (hub, client) = ("docker.io", house.client());
    let (get, head) = (Method::GET, Method::HEAD);
    let (layer, digest) = (&image.layer_blobs()[0], image.digest());
    let by_tag = "/v2/library/app/manifests/v1".to_owned();
    let by_digest = format!("/v2/library/app/manifests/{digest}");
    let blob = format!("/v2/library/app/blobs/{}", layer.digest);
    let other = format!("/v2/library/other/blobs/{}", layer.digest);
    let tags = "/v2/library/app/tags/list".to_owned();
    let referrers = format!("/v2/library/app/referrers/{digest}");
    fake.put_blob("library/other", layer);
    for (method, path, kind, outcome) in [
        (&head, &by_tag, "manifest", "miss"),
        (&get, &by_tag, "manifest", "miss"),
        (&get, &by_tag, "manifest", "revalidated"),
        (&head, &by_tag, "manifest", "revalidated"),
        (&get, &by_digest, "manifest", "hit"),
        (&head, &by_digest, "manifest", "hit"),
        (&head, &blob, "blob", "miss"),
        (&get, &blob, "blob", "miss"),
        (&get, &blob, "blob", "hit"),
        (&head, &blob, "blob", "hit"),
        (&get, &other, "blob", "revalidated"),
        (&get, &other, "blob", "hit"),
        (&get, &tags, "tags", "miss"),
        (&get, &tags, "tags", "revalidated"),
        (&get, &referrers, "referrers", "miss"),
        (&head, &referrers, "referrers", "revalidated"),
    ] {
        assert_counts(&house, &client, method.clone(), path, (hub, kind, outcome)).await;
    }
    fake.stop().await;
    for (path, kind) in [(&by_tag, "manifest"), (&tags, "tags"), (&referrers, "referrers")] {
        assert_counts(&house, &client, get.clone(), path, (hub, kind, "stale")).await;
    }
    let missing = format!("/v2/library/app/blobs/{}", Blob::random(9, 9).digest);
    assert_counts(&house, &client, get.clone(), &missing, (hub, "blob", "error")).await;
    for (path, kind) in
        [("nothing.test/app/manifests/v1", "manifest"), ("nothing.test/app/tags/list", "tags")]
    {
        assert_counts(&house, &client, get.clone(), &format!("/v2/{path}"), ("none", kind, "denied")).await;
    }
    let ranged = client.with_header("range", &format!("bytes={LARGE}-"));
    assert_counts(&house, &ranged, get.clone(), &blob, (hub, "blob", "error")).await;
    let known = house.client().with_header("if-none-match", "*");
    assert_counts(&house, &known, get, &blob, (hub, "blob", "hit")).await;
}

#[tokio::test]
async fn a_no_is_an_error_then_negative_and_what_is_not_allowed_is_denied() {
    let fake = FakeRegistry::start().await;
    fake.push("library/app", "v1", &Image::layers(2, &[10]));
    let house = House::with(&fake, |config| {
        config.upstreams[0].freshness.negative_ttl = Duration::from_secs(600);
        config.upstreams[0].deny = vec!["secret/**".parse().unwrap()];
    })
    .await;
    let absent = Blob::random(9, 9).digest;
    let (client, get) = (house.client(), Method::GET);
    for (path, kind) in [
        ("manifests/none".to_owned(), "manifest"),
        (format!("manifests/{absent}"), "manifest"),
        (format!("blobs/{absent}"), "blob"),
    ] {
        for outcome in ["error", "negative", "negative"] {
            let path = format!("/v2/library/app/{path}");
            assert_counts(&house, &client, get.clone(), &path, ("docker.io", kind, outcome)).await;
        }
    }
    for (path, kind) in [("manifests/v1", "manifest"), ("tags/list", "tags")] {
        let path = format!("/v2/secret/app/{path}");
        assert_counts(&house, &client, get.clone(), &path, ("docker.io", kind, "denied")).await;
    }
    let before = series(&house).await;
    for path in ["/v2/", "/v2/_catalog", "/v2/A/manifests/v1", "/nothing"] {
        client.get(path).await;
    }
    client.request(Method::POST, "/v2/library/app/blobs/uploads/", &[]).await;
    // One that is counted, so that those before it would have been seen.
    client.get("/v2/secret/app/tags/list").await;
    assert_eq!(moved(&before, &counted(&house, &before, 1).await, &[REQUESTS]).len(), 1);
}

#[tokio::test]
async fn who_comes_late_has_joined() {
    let (fake, image, house) = scene().await;
    let layer = &image.layer_blobs()[0];
    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    let gate = Gate::new();
    fake.fault(Match::blob(&layer.digest), Times::Once, Fault::hold_after(&gate, 100_000));
    let before = series(&house).await;
    let mut leader = house.client().get_streaming(&path).await;
    let mut late = house.client().get_streaming(&path).await;
    assert_eq!(house.metric("tidelock_flights").await, 1.0);
    assert_eq!(house.metric("tidelock_flight_followers").await, 2.0);
    gate.open();
    assert!(leader.read_to_end().await.1.is_none() && late.read_to_end().await.1.is_none());
    let after = counted(&house, &before, 2).await;
    let sent = |outcome| format!("tidelock_sent_bytes_total{{outcome=\"{outcome}\",upstream=\"docker.io\"}}");
    let expected = BTreeMap::from([
        (request_series("docker.io", "blob", "joined"), 1.0),
        (request_series("docker.io", "blob", "miss"), 1.0),
        (sent("joined"), LARGE as f64),
        (sent("miss"), LARGE as f64),
        ("tidelock_fetched_bytes_total{upstream=\"docker.io\"}".to_owned(), LARGE as f64),
    ]);
    let names = [REQUESTS, "tidelock_sent_bytes_total", "tidelock_fetched_bytes_total"];
    assert_eq!(moved(&before, &after, &names), expected);
    house.settled().await;
    assert_eq!(house.metric("tidelock_flight_followers").await, 0.0);
}

/// The bytes of one request, as they were sent to the client and fetched for it.
async fn bytes_of(house: &House, client: &Client, method: Method, path: &str) -> (f64, f64) {
    let before = series(house).await;
    client.request(method, path, &[]).await;
    let after = counted(house, &before, 1).await;
    house.settled().await;
    let change = |name| sum(&after, name) - sum(&before, name);
    (change("tidelock_sent_bytes_total"), change("tidelock_fetched_bytes_total"))
}

#[tokio::test]
async fn bytes_are_counted_exactly() {
    let (fake, image, house) = scene().await;
    let layer = &image.layer_blobs()[0];
    let blob = format!("/v2/library/app/blobs/{}", layer.digest);
    let manifest = "/v2/library/app/manifests/v1";
    let tags = "/v2/library/app/tags/list";
    let client = house.client();
    let (large, top) = (LARGE as f64, image.top.len() as f64);
    assert_eq!(bytes_of(&house, &client, Method::HEAD, manifest).await, (0.0, 0.0));
    assert_eq!(bytes_of(&house, &client, Method::GET, manifest).await, (top, top));
    assert_eq!(bytes_of(&house, &client, Method::GET, manifest).await, (top, 0.0));
    assert_eq!(bytes_of(&house, &client, Method::HEAD, &blob).await, (0.0, 0.0));
    // What broke off is not fetched twice.
    fake.fault(Match::blob(&layer.digest), Times::Once, Fault::CutAfter(120_000));
    assert_eq!(bytes_of(&house, &client, Method::GET, &blob).await, (large, large));
    assert_eq!(house.metric("tidelock_resumed_total{upstream=\"docker.io\"}").await, 1.0);
    assert_eq!(bytes_of(&house, &client, Method::GET, &blob).await, (large, 0.0));
    let part = client.clone().with_header("range", "bytes=10-1009");
    assert_eq!(bytes_of(&house, &part, Method::GET, &blob).await, (1000.0, 0.0));
    assert_eq!(bytes_of(&house, &part, Method::HEAD, &blob).await, (0.0, 0.0));
    let list = client.get(tags).await.whole().len() as f64;
    assert_eq!(bytes_of(&house, &client, Method::GET, tags).await.0, list);
    // Errors are no content, whoever wrote them.
    assert_eq!(bytes_of(&house, &client, Method::GET, "/v2/library/none/manifests/v1").await, (0.0, 0.0));
    assert_eq!(bytes_of(&house, &client, Method::GET, "/v2/no.test/none/manifests/v1").await, (0.0, 0.0));
    // Everything that is kept is counted as kept, too.
    let kept = large + top + list;
    assert_eq!(house.metric("tidelock_cache_bytes").await, kept);
    assert_eq!(house.metric("tidelock_cache_blobs").await, 3.0);
}

/// What the fake was asked, in the words of the metric.
fn as_counted(request: &Record) -> String {
    let kind = ["manifests", "blobs", "tags", "referrers"]
        .into_iter()
        .find(|kind| request.path.contains(&format!("/{kind}/")))
        .unwrap();
    let kind = if kind == "tags" || kind == "referrers" { kind } else { kind.trim_end_matches('s') };
    let status = request.status.map_or("error".to_owned(), |status| format!("{}xx", status / 100));
    let method = &request.method;
    format!(
        "tidelock_upstream_requests_total{{account=\"anonymous\",kind=\"{kind}\",method=\"{method}\",status=\"{status}\",upstream=\"docker.io\"}}"
    )
}

#[tokio::test]
async fn upstream_requests_are_counted_as_the_upstream_saw_them() {
    let (fake, image, house) = scene().await;
    let client = house.client();
    client.pull_like_docker("app", "v1").await.unwrap();
    client.get("/v2/app/tags/list").await;
    client.get(&format!("/v2/app/referrers/{}", image.digest())).await;
    client.get("/v2/none/manifests/v1").await;
    client.get(&format!("/v2/app/blobs/{}", Blob::random(9, 9).digest)).await;
    for fault in [Fault::status(503), Fault::HangUp, Fault::abuse(1)] {
        fake.fault(Match::any(), Times::Once, fault);
        client.get("/v2/app/manifests/v1").await;
    }
    let mut expected: BTreeMap<String, f64> = BTreeMap::new();
    for request in fake.requests() {
        *expected.entry(as_counted(&request)).or_default() += 1.0;
    }
    let mut after = series(&house).await;
    after.retain(|name, value| name.starts_with("tidelock_upstream_requests_total") && *value > 0.0);
    assert_eq!(after, expected);
    for status in ["2xx", "4xx", "5xx", "error"] {
        assert!(after.keys().any(|name| name.contains(&format!("status=\"{status}\""))), "{status}");
    }
}

/// Label values come from closed sets: who can read metrics must not learn what is pulled, or by whom.
#[tokio::test]
async fn nothing_of_a_request_shows_in_a_metric() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(3, &[1000]);
    fake.push("hidden-org/hidden-app", "hidden-tag", &image);
    let house = House::with(&fake, |config| {
        config.upstreams[0].deny = vec!["hidden-org/denied".parse().unwrap()];
    })
    .await;
    let client = house.client().with_header("user-agent", "hidden-agent").with_header("host", "hidden.test");
    client.pull_like_docker("hidden-org/hidden-app", "hidden-tag").await.unwrap();
    let absent = Blob::random(9, 9).digest;
    for path in [
        "hidden-org/hidden-app/tags/list",
        &format!("hidden-org/hidden-app/referrers/{}?artifactType=hidden/type", image.digest()),
        &format!("hidden-org/hidden-app/blobs/{absent}"),
        "hidden-org/denied/manifests/hidden-tag",
        "hidden-org/none/manifests/hidden-tag",
        "hidden.test/app/manifests/hidden-tag",
        "HIDDEN/manifests/hidden-tag",
        "hidden-org/hidden-app/manifests/hidden-tag?ns=hidden.example",
    ] {
        client.get(&format!("/v2/{path}")).await;
    }
    client.request("HIDDEN".parse().unwrap(), "/v2/hidden", &[]).await;
    let text = text(&house).await;
    let all = image.blobs.iter().chain(&image.manifests).map(|blob| blob.digest.as_str());
    for digest in all.chain([absent.as_str()]) {
        let hex = digest.split(':').nth(1).unwrap();
        assert!(!text.contains(&hex[..12]), "{digest}");
    }
    for word in ["hidden", "HIDDEN", "127.0.0.1", "sha256", &house.address().port().to_string(), "library"] {
        let lines: Vec<&str> =
            text.lines().filter(|line| line.split(' ').next().unwrap_or_default().contains(word)).collect();
        assert!(lines.is_empty(), "{word}: {lines:?}");
    }
    let labels: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('{')?.1.split_once('}'))
        .flat_map(|(labels, _)| labels.split(',').map(|label| label.split('=').next().unwrap()))
        .collect();
    let closed = [
        "upstream", "endpoint", "account", "kind", "outcome", "priority", "reason", "status", "method", "le",
        "version",
    ];
    assert!(labels.is_subset(&closed.into()), "{labels:?}");
}

#[tokio::test]
async fn a_thousand_strange_names_make_no_new_series() {
    let (fake, _, house) = scene().await;
    let nonsense = |n: usize| {
        let digest = Blob::new(format!("nonsense {n}"), "").digest;
        [
            format!("/v2/nonsense/n{n}/manifests/v1"),
            format!("/v2/library/app/manifests/n{n}"),
            format!("/v2/library/app/manifests/{digest}"),
            format!("/v2/library/app/blobs/{digest}"),
            format!("/v2/n{n}/tags/list"),
            format!("/v2/library/app/referrers/{digest}"),
            format!("/v2/n{n}.test/app/manifests/v1"),
            format!("/v2/app/manifests/v1?ns=n{n}.test"),
            format!("/v2/N{n}/manifests/v1"),
            format!("/n{n}"),
        ]
    };
    // Of the first of each kind the upstream's answers may be new.
    for path in nonsense(0) {
        house.client().get(&path).await;
    }
    let before: BTreeSet<String> = series(&house).await.into_keys().collect();
    for n in 1..=100 {
        for path in nonsense(n) {
            assert!([400, 404, 200].contains(&house.client().get(&path).await.status), "{path}");
        }
    }
    let after: BTreeSet<String> = series(&house).await.into_keys().collect();
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(fake.total() > 500, "they were asked for");
}
