//! Each public registry in its own way, under its own name: a fake stands in for all of its hosts as a proxy.
//! What is looked at is how many requests there were and what each host was shown.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tidelock::config::{Account, Credentials};
use tidelock::upstream::Error;

use crate::support::behaviour::{Absent, Auth, Bearer, RateLimit, Redirect};
use crate::support::faults::{Fault, Match, Times};
use crate::support::images::{Blob, DOCKER_MANIFEST, Image, OCI_INDEX};
use crate::support::log::Record;
use crate::support::registry::FakeRegistry;
use crate::support::tls::TestCa;
use crate::support::token_server::TokenFields;
use crate::upstream_rig::{Plan, bad_answer, is_held, shown};

fn image() -> Image {
    Image::layers(1, &[50_000])
}

fn layer() -> Blob {
    image().layer_blobs()[0].clone()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// A fake that stands in for all these hosts, with one image.
async fn standing_in(hosts: &[&str], repository: &str) -> FakeRegistry {
    let fake = FakeRegistry::start_tls_for(hosts).await;
    fake.push(repository, "1", &image());
    fake
}

fn bearer(realm: &str, service: &str) -> Auth {
    let (realm, service) = (Some(realm.to_owned()), service.to_owned());
    Auth::Bearer(Bearer { realm, service, ..Bearer::default() })
}

/// The hosts that were spoken to, each once, in order.
fn hosts(requests: &[Record]) -> Vec<&str> {
    let mut hosts: Vec<&str> = requests.iter().map(|request| request.host.as_str()).collect();
    hosts.dedup();
    hosts
}

const HUB: &str = "registry-1.docker.io";
const HUB_TOKENS: &str = "auth.docker.io";
const HUB_CDN: &str = "production.cloudflare.docker.com";

/// Docker Hub: tokens at another host of its domain, blobs behind signed URLs of a third.
async fn hub() -> (FakeRegistry, crate::support::cdn::FakeCdn) {
    let hub = standing_in(&[HUB, HUB_TOKENS, HUB_CDN], "library/nginx").await;
    let cdn = hub.start_cdn().await;
    cdn.set_public_url(&format!("https://{HUB_CDN}"));
    hub.serve_host(HUB_CDN, &cdn);
    hub.tokens().add_account("ci", "pat");
    hub.set(|behaviour| {
        behaviour.auth = bearer("https://auth.docker.io/token", "registry.docker.io");
        behaviour.redirect = Some(Redirect::cdn(&cdn));
        behaviour.quirks.require_accept = true;
    });
    (hub, cdn)
}

fn hub_plan(hub: &FakeRegistry) -> Plan {
    Plan::through(hub, "docker.io", "https://registry-1.docker.io")
}

#[tokio::test]
async fn docker_hub() {
    let (hub, cdn) = hub().await;
    hub.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100)));
    let rig = hub_plan(&hub).account("ci", "pat").rig();
    let found = rig.head("library/nginx", "1").await.unwrap();
    assert_eq!(found.digest, image().digest().parse().ok());
    assert_eq!(hub.counted(), 0, "a HEAD is free");
    assert_eq!(rig.manifest("library/nginx", "1").await.unwrap().bytes, image().top.bytes);
    assert_eq!(hub.counted(), 1);
    assert_eq!(rig.blob("library/nginx", &layer()).await.unwrap(), layer().bytes);

    let token = "Bearer token-1";
    assert_eq!(shown(&hub.requests(), HUB), ["", token, token, token]);
    assert_eq!(shown(&hub.token_requests(), HUB_TOKENS), [basic("ci", "pat")]);
    assert_eq!(shown(&cdn.requests(), HUB_CDN), [""]);
    let query = "service=registry.docker.io&scope=repository%3Alibrary%2Fnginx%3Apull";
    assert_eq!(hub.token_requests()[0].query, query);
}

#[tokio::test]
async fn docker_hub_hides_what_is_missing_and_what_is_private_alike() {
    let (hub, _) = hub().await;
    hub.set(|behaviour| behaviour.private = vec!["library/nginx".to_owned()]);
    let rig = hub_plan(&hub).rig();
    let hidden = Error::Hidden { endpoint: HUB.to_owned() };
    assert_eq!(rig.head("library/nginx", "1").await.unwrap_err(), hidden);
    assert_eq!(rig.manifest("library/none", "1").await.unwrap_err(), hidden);
    assert_eq!(hub.counted(), 0);
}

#[tokio::test]
async fn docker_hub_refuses_in_three_ways() {
    let (hub, _) = hub().await;
    let rig = hub_plan(&hub).rig();
    rig.head("library/nginx", "1").await.unwrap();

    hub.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(0)));
    rig.head("library/nginx", "1").await.unwrap();
    assert!(is_held(rig.manifest("library/nginx", "1").await));
    assert_eq!(hub.counted(), 0, "the HEAD told that nothing is left");
    rig.head("library/nginx", "1").await.unwrap();
    assert_eq!(rig.metric("tidelock_throttled_total{account=\"anonymous\",reason=\"spent\""), 1);

    hub.fault(Match::manifests(), Times::Always, Fault::abuse(60));
    hub.clear();
    assert!(is_held(rig.head("library/nginx", "1").await));
    assert!(
        is_held(rig.head("library/nginx", "1").await) && is_held(rig.blob("library/nginx", &layer()).await)
    );
    assert_eq!(hub.total(), 1, "whoever asks too often is not asked again");
    assert_eq!(rig.metric("tidelock_throttled_total{account=\"anonymous\",reason=\"abuse\""), 1);
    assert_eq!(rig.metric("tidelock_throttled_total{account=\"any\",reason=\"paused\""), 3);
}

#[tokio::test]
async fn an_abuse_limit_with_bare_line_feeds() {
    let hub = FakeRegistry::start().await;
    hub.fault(Match::any(), Times::Always, Fault::abuse_with_bare_line_feeds(60));
    let rig = Plan::at(&hub).rig();
    assert!(is_held(rig.manifest("app", "1").await) && is_held(rig.head("app", "1").await));
    assert_eq!(hub.total(), 1);
}

#[tokio::test]
async fn ghcr() {
    let cdn_host = "pkg-containers.githubusercontent.com";
    let ghcr = standing_in(&["ghcr.io", cdn_host], "org/app").await;
    let cdn = ghcr.start_cdn().await;
    cdn.set_public_url(&format!("https://{cdn_host}"));
    ghcr.serve_host(cdn_host, &cdn);
    ghcr.set(|behaviour| {
        behaviour.auth = bearer("https://ghcr.io/token", "ghcr.io");
        behaviour.redirect = Some(Redirect::cdn(&cdn));
    });
    let rig = Plan::through(&ghcr, "ghcr.io", "https://ghcr.io").rig();
    rig.manifest("org/app", "1").await.unwrap();
    assert_eq!(rig.blob("org/app", &layer()).await.unwrap(), layer().bytes);
    assert_eq!(shown(&ghcr.requests(), "ghcr.io"), ["", "Bearer token-1", "Bearer token-1"]);
    assert_eq!(shown(&cdn.requests(), cdn_host), [""]);

    for status in [401, 403] {
        ghcr.tokens().set(|behaviour| {
            behaviour.refuse_repositories = vec!["org/private".to_owned()];
            behaviour.refuse_status = status;
        });
        let hidden = rig.manifest("org/private", "1").await.unwrap_err();
        assert_eq!(hidden, Error::Hidden { endpoint: "ghcr.io".to_owned() }, "{status}");
    }
    let pace =
        r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: 880µs, allowed: 44000/minute"}]}"#;
    ghcr.fault(Match::manifests(), Times::Once, Fault::Status(429, pace.to_owned(), Vec::new()));
    ghcr.clear();
    rig.manifest("org/app", "1").await.unwrap();
    assert_eq!(ghcr.count("GET", "/manifests/"), 2, "so short a pause is waited for");
}

#[tokio::test]
async fn quay() {
    let cdn_host = "cdn01.quay.io";
    let quay = standing_in(&["quay.io", cdn_host], "org/app").await;
    let cdn = quay.start_cdn().await;
    cdn.set_public_url(&format!("https://{cdn_host}"));
    quay.serve_host(cdn_host, &cdn);
    // One field, no `expires_in`: only the token itself knows that it is good for an hour.
    quay.tokens().set(|behaviour| {
        behaviour.fields = TokenFields::Token;
        behaviour.expires_in = None;
        behaviour.jwt = true;
        behaviour.lifetime = Some(Duration::from_secs(3600));
    });
    quay.set(|behaviour| {
        behaviour.auth = bearer("https://quay.io/token?realm=quay", "quay.io");
        behaviour.redirect = Some(Redirect::cdn(&cdn).status(302));
    });
    let year = Fault::header("cache-control", "max-age=31536000");
    quay.fault(Match::blobs(), Times::Always, year);
    let rig = Plan::through(&quay, "quay.io", "https://quay.io").rig();
    rig.manifest("org/app", "1").await.unwrap();
    for _ in 0..2 {
        assert_eq!(rig.blob("org/app", &layer()).await.unwrap(), layer().bytes);
        cdn.expire_urls();
    }
    assert_eq!(quay.token_requests().len(), 1);
    let query = "realm=quay&service=quay.io&scope=repository%3Aorg%2Fapp%3Apull";
    assert_eq!(quay.token_requests()[0].query, query, "the realm's own query is kept");
    assert_eq!(cdn.total(), 2, "a redirect is not kept for a year");
}

#[tokio::test]
async fn ecr() {
    let (host, s3) =
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "prod-starport.s3.eu-west-1.amazonaws.com");
    let ecr = standing_in(&[host, s3], "team/app").await;
    let cdn = ecr.start_cdn().await;
    cdn.set_public_url(&format!("https://{s3}"));
    ecr.serve_host(s3, &cdn);
    ecr.set(|behaviour| {
        behaviour.auth = Auth::basic("AWS", "twelve-hours");
        behaviour.redirect = Some(Redirect::cdn(&cdn));
    });
    let rig = Plan::through(&ecr, host, &format!("https://{host}")).account("AWS", "twelve-hours").rig();
    rig.manifest("team/app", "1").await.unwrap();
    assert_eq!(rig.blob("team/app", &layer()).await.unwrap(), layer().bytes);
    rig.client.tags(&rig.errand, &"team/app".parse().unwrap()).await.unwrap();
    let with = basic("AWS", "twelve-hours");
    assert_eq!(shown(&ecr.requests(), host), ["", &with, &with, &with]);
    assert_eq!(ecr.requests()[3].query, "n=1000", "more is an error there");
    assert_eq!(shown(&cdn.requests(), s3), [""], "S3 refuses two kinds of login");
}

#[tokio::test]
async fn ecr_public_and_its_front_page() {
    let ecr = standing_in(&["public.ecr.aws"], "docker/library/nginx").await;
    ecr.set(|behaviour| behaviour.auth = bearer("https://public.ecr.aws/token/", "public.ecr.aws"));
    let rig = Plan::through(&ecr, "public.ecr.aws", "https://public.ecr.aws").rig();
    rig.manifest("docker/library/nginx", "1").await.unwrap();
    ecr.set(|behaviour| behaviour.quirks.html = true);
    assert_eq!(
        bad_answer(rig.manifest("docker/library/nginx", "1").await),
        "a web page in place of an answer"
    );
    assert_eq!(bad_answer(rig.head("docker/library/nginx", "1").await), "a web page in place of an answer");
    let tags = rig.client.tags(&rig.errand, &"docker/library/nginx".parse().unwrap()).await;
    assert_eq!(bad_answer(tags), "a web page in place of an answer");
}

#[tokio::test]
async fn artifact_registry() {
    let (host, storage) = ("europe-docker.pkg.dev", "storage.googleapis.com");
    let registry = standing_in(&[host, storage], "project/repo/app").await;
    let cdn = registry.start_cdn().await;
    cdn.set_public_url(&format!("https://{storage}"));
    registry.serve_host(storage, &cdn);
    registry.tokens().add_account("oauth2accesstoken", "ya29");
    registry.tokens().set(|behaviour| behaviour.refuse_post = Some(404));
    registry.set(|behaviour| {
        behaviour.auth = bearer(&format!("https://{host}/token"), host);
        behaviour.redirect = Some(Redirect::cdn(&cdn).status(302));
        behaviour.private = vec!["project/repo/app".to_owned()];
    });
    let plan = Plan::through(&registry, host, &format!("https://{host}"));
    let rig = plan.account("oauth2accesstoken", "ya29").rig();
    rig.manifest("project/repo/app", "1").await.unwrap();
    assert_eq!(rig.blob("project/repo/app", &layer()).await.unwrap(), layer().bytes);
    let tokens = registry.token_requests();
    assert_eq!(tokens.len(), 1);
    assert_eq!(shown(&tokens, host), [basic("oauth2accesstoken", "ya29")]);
    assert_eq!(shown(&cdn.requests(), storage), [""]);
}

#[tokio::test]
async fn azure() {
    let (host, blobs) = ("team.azurecr.io", "weu.data.azurecr.io");
    let acr = standing_in(&[host, blobs], "app").await;
    let cdn = acr.start_cdn().await;
    cdn.set_public_url(&format!("https://{blobs}"));
    acr.serve_host(blobs, &cdn);
    acr.tokens().add_identity_token("refresh", "00000000-0000-0000-0000-000000000000");
    acr.tokens().set(|behaviour| behaviour.fields = TokenFields::AccessToken);
    acr.set(|behaviour| {
        behaviour.auth = bearer(&format!("https://{host}/token"), host);
        behaviour.redirect = Some(Redirect::cdn(&cdn));
        behaviour.private = vec!["app".to_owned()];
    });
    let plan = Plan::through(&acr, host, &format!("https://{host}"));
    // As `az acr login` leaves it: no password, an identity token.
    let auth = BASE64_STANDARD.encode("00000000-0000-0000-0000-000000000000:");
    let config = format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}","identitytoken":"refresh"}}}}}}"#);
    let credentials = Credentials::DockerConfig { file: plan.file("config.json", &config) };
    let account = Account::new("ci", credentials);
    let rig = plan.with(|upstream| upstream.accounts = vec![account]).rig();
    rig.manifest("app", "1").await.unwrap();
    assert_eq!(rig.blob("app", &layer()).await.unwrap(), layer().bytes);
    let tokens = acr.token_requests();
    assert_eq!((tokens.len(), tokens[0].method.as_str()), (1, "POST"));
    assert_eq!(shown(&tokens, host), [""]);
    assert_eq!(shown(&cdn.requests(), blobs), [""], "Azure refuses two kinds of login");

    acr.tokens().set(|behaviour| behaviour.refuse_post = Some(400));
    acr.tokens().add_account("00000000-0000-0000-0000-000000000000", "refresh");
    acr.tokens().expire_all_tokens();
    rig.manifest("app", "1").await.unwrap();
    let methods: Vec<String> = acr.token_requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["POST", "POST", "GET"]);
}

#[tokio::test]
async fn kubernetes() {
    let (host, regional) = ("registry.k8s.io", "europe-west1-docker.pkg.dev");
    let ca = TestCa::new();
    let edge = FakeRegistry::start_tls_with(&ca, &[host, regional], false).await;
    let behind = FakeRegistry::start().await;
    behind.push("k8s-artifacts-prod/images/pause", "3.9", &image());
    edge.serve_host(regional, &behind);
    // The edge knows nothing, it only sends everyone on: manifests too, with another prefix in the path.
    edge.push("pause", "3.9", &image());
    let to = format!("https://{regional}");
    edge.set(|behaviour| {
        behaviour.redirect = Some(Redirect::registry(&to, "k8s-artifacts-prod/images/"));
        behaviour.referrers = false;
    });
    let rig = Plan::through(&edge, host, &format!("https://{host}")).rig();
    assert_eq!(rig.head("pause", "3.9").await.unwrap().digest, image().digest().parse().ok());
    assert_eq!(rig.manifest("pause", "3.9").await.unwrap().bytes, image().top.bytes);
    assert_eq!(rig.blob("pause", &layer()).await.unwrap(), layer().bytes);
    assert_eq!((edge.total(), behind.total(), edge.token_requests().len()), (3, 3, 0));
    assert_eq!(shown(&behind.requests(), regional), ["", "", ""]);
    let missing = rig.manifest("pause", "none").await.unwrap_err();
    assert_eq!(missing, Error::NotFound { endpoint: regional.to_owned() });
    let digest = image().digest().parse().unwrap();
    let referrers = rig.client.referrers(&rig.errand, &"pause".parse().unwrap(), &digest).await;
    assert_eq!(referrers.unwrap_err(), Error::NotFound { endpoint: host.to_owned() });
}

#[tokio::test]
async fn microsoft() {
    let (host, data) = ("mcr.microsoft.com", "eastus.data.mcr.microsoft.com");
    let mcr = standing_in(&[host, data], "dotnet/runtime").await;
    let cdn = mcr.start_cdn().await;
    cdn.set_public_url(&format!("https://{data}"));
    mcr.serve_host(data, &cdn);
    mcr.set(|behaviour| behaviour.redirect = Some(Redirect::cdn(&cdn)));
    let rig = Plan::through(&mcr, host, &format!("https://{host}")).rig();
    rig.manifest("dotnet/runtime", "1").await.unwrap();
    assert_eq!(rig.blob("dotnet/runtime", &layer()).await.unwrap(), layer().bytes);
    assert_eq!((mcr.total(), mcr.token_requests().len(), cdn.total()), (2, 0, 1));
    assert_eq!(hosts(&mcr.requests()), [host]);
    cdn.fault(Match::any(), Times::Once, Fault::abuse(30));
    assert!(is_held(rig.blob("dotnet/runtime", &layer()).await));
    assert_eq!(cdn.total(), 2);
}

#[tokio::test]
async fn gitlab_has_its_tokens_at_the_domain_above() {
    let (host, login) = ("registry.gitlab.com", "gitlab.com");
    let gitlab = standing_in(&[host, login], "group/app").await;
    gitlab.tokens().add_account("ci", "pat");
    gitlab.set(|behaviour| {
        behaviour.auth = bearer("https://gitlab.com/token", "container_registry");
        behaviour.absent = Absent::Forbidden;
        behaviour.private = vec!["group/app".to_owned()];
    });
    let rig = Plan::through(&gitlab, host, &format!("https://{host}")).account("ci", "pat").rig();
    rig.manifest("group/app", "1").await.unwrap();
    assert_eq!(shown(&gitlab.token_requests(), login), [basic("ci", "pat")]);
    let hidden = rig.manifest("group/none", "1").await.unwrap_err();
    assert_eq!(hidden, Error::Hidden { endpoint: host.to_owned() });
}

#[tokio::test]
async fn red_hat_leaves_out_the_digest_and_would_compress() {
    let registry = FakeRegistry::start().await;
    let image = Image::docker(1, &[10]);
    registry.push("ubi9", "1", &image);
    registry.set(|behaviour| behaviour.quirks.no_digest = true);
    let rig = Plan::at(&registry).rig();
    let found = rig.head("ubi9", "1").await.unwrap();
    assert_eq!((found.digest, found.size), (None, Some(image.top.len() as u64)));
    let document = rig.manifest("ubi9", "1").await.unwrap();
    assert_eq!((document.digest, document.media_type.as_deref()), (None, Some(DOCKER_MANIFEST)));
    for request in registry.requests() {
        assert_eq!(request.header("accept-encoding"), "identity");
        assert!(request.header("user-agent").starts_with("tidelock/"));
        assert!(request.header("accept").contains(OCI_INDEX));
    }
    // An old registry that gives no length either.
    registry.set(|behaviour| behaviour.quirks.no_length = true);
    assert_eq!(rig.head("ubi9", "1").await.unwrap().size, None);
    assert_eq!(rig.manifest("ubi9", "1").await.unwrap().bytes, image.top.bytes);
    registry.set(|behaviour| behaviour.quirks.no_head = true);
    let error = rig.head("ubi9", "1").await.unwrap_err();
    assert_eq!(error, Error::Status { endpoint: registry.host(), status: 405 });
}
