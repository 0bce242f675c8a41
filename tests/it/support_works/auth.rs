//! Tokens, accounts and passwords.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::Method;

use crate::support::behaviour::{Absent, Auth, RateLimit};
use crate::support::client::{Client, Reply};
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;
use crate::support::token_server::{TokenFields, TokenServer};

const MANIFEST: &str = "/v2/app/manifests/1";

/// A registry that wants tokens, with one image, and a client of it.
async fn with_tokens() -> (FakeRegistry, Client) {
    let registry = FakeRegistry::start().await;
    registry.push("app", "1", &Image::layers(1, &[10]));
    registry.set(|behaviour| behaviour.auth = Auth::bearer());
    registry.tokens().add_account("ci", "secret");
    let client = Client::new(&registry.url());
    (registry, client)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

async fn token(client: &Client, repository: &str, authorization: Option<&str>) -> Reply {
    let path =
        format!("/token?service=registry.fake&scope=repository:{repository}:pull&scope=foreign:x:pull");
    let headers: Vec<(&str, &str)> =
        authorization.map(|value| ("authorization", value)).into_iter().collect();
    client.request(Method::GET, &path, &headers).await
}

async fn get_with(client: &Client, path: &str, reply: &Reply) -> Reply {
    let bearer = format!("Bearer {}", reply.json()["token"].as_str().unwrap());
    client.request(Method::GET, path, &[("authorization", &bearer)]).await
}

#[tokio::test]
async fn a_token_opens_what_its_scope_says() {
    let (registry, client) = with_tokens().await;
    let refused = client.get(MANIFEST).await;
    assert_eq!(refused.status, 401);
    let realm = format!("Bearer realm=\"{}/token\",service=\"registry.fake\"", registry.url());
    assert_eq!(refused.header("www-authenticate"), format!("{realm},scope=\"repository:app:pull\""));
    assert_eq!(client.get("/v2/").await.header("www-authenticate"), realm);

    let reply = token(&client, "app", None).await;
    assert_eq!(reply.json()["expires_in"], 300);
    assert_eq!(get_with(&client, MANIFEST, &reply).await.status, 200);
    assert_eq!(get_with(&client, "/v2/", &reply).await.status, 200);
    let elsewhere = token(&client, "other", None).await;
    let refused = get_with(&client, MANIFEST, &elsewhere).await;
    assert!(refused.header("www-authenticate").ends_with("error=\"insufficient_scope\""));
    assert_eq!(registry.token_requests().len(), 2);
    assert_eq!(registry.counted(), 1, "refusals are free");
    assert_eq!(registry.count("GET", "/token"), 0, "the token server has its own log");
}

#[tokio::test]
async fn tokens_expire_by_the_clock_and_at_once() {
    let (registry, client) = with_tokens().await;
    let reply = token(&client, "app", None).await;
    registry.tokens().advance(Duration::from_secs(299));
    assert_eq!(get_with(&client, MANIFEST, &reply).await.status, 200);
    registry.tokens().advance(Duration::from_secs(2));
    let refused = get_with(&client, MANIFEST, &reply).await;
    assert!(refused.header("www-authenticate").ends_with("error=\"invalid_token\""));
    let reply = token(&client, "app", None).await;
    assert_eq!(get_with(&client, MANIFEST, &reply).await.status, 200);
    registry.tokens().expire_all_tokens();
    assert_eq!(get_with(&client, MANIFEST, &reply).await.status, 401);
    assert_eq!(registry.tokens().issued(), 2);
}

#[tokio::test]
async fn private_and_missing_look_alike() {
    let (registry, client) = with_tokens().await;
    registry.set(|behaviour| behaviour.private = vec!["app".into()]);
    let anonymous = token(&client, "app", None).await;
    let private = get_with(&client, MANIFEST, &anonymous).await;
    let nowhere = token(&client, "nothing", None).await;
    let missing = get_with(&client, "/v2/nothing/manifests/1", &nowhere).await;
    assert_eq!((private.status, missing.status), (401, 401));
    assert_eq!(private.body, missing.body);
    registry.set(|behaviour| behaviour.absent = Absent::NotFound);
    assert_eq!(get_with(&client, MANIFEST, &anonymous).await.status, 404);

    assert_eq!(token(&client, "app", Some(&basic("ci", "wrong"))).await.status, 401);
    let own = token(&client, "app", Some(&basic("ci", "secret"))).await;
    assert_eq!(get_with(&client, MANIFEST, &own).await.status, 200);
    assert_eq!(registry.requests().pop().unwrap().account.as_deref(), Some("ci"));
}

#[tokio::test]
async fn each_account_has_its_own_quota() {
    let (registry, client) = with_tokens().await;
    registry.set(|behaviour| {
        behaviour.rate_limit = Some(RateLimit::new(100));
        behaviour.account_limits.insert("ci".into(), RateLimit::new(200));
    });
    let own = token(&client, "app", Some(&basic("ci", "secret"))).await;
    let reply = get_with(&client, MANIFEST, &own).await;
    assert_eq!(reply.header("ratelimit-remaining"), "199;w=21600");
    assert_eq!(reply.header("docker-ratelimit-source"), "ci");
    let anonymous = token(&client, "app", None).await;
    assert_eq!(get_with(&client, MANIFEST, &anonymous).await.header("ratelimit-remaining"), "99;w=21600");
    assert_eq!(registry.behaviour().account_limits["ci"].left(), 199);
    assert_eq!((registry.counted_for(Some("ci")), registry.counted_for(None)), (1, 1));
}

#[tokio::test]
async fn tokens_by_post() {
    let (registry, client) = with_tokens().await;
    registry.tokens().add_identity_token("identity", "ci");
    let post = async |form: &'static str| {
        client.try_request(Method::POST, "/token", &[], Bytes::from_static(form.as_bytes())).await.unwrap()
    };
    let by_password = "grant_type=password&username=ci&password=secret&access_type=offline&\
                       service=registry.fake&client_id=test&scope=repository:app:pull";
    let reply = post(by_password).await;
    assert_eq!(get_with(&client, MANIFEST, &reply).await.status, 200);
    assert!(reply.json()["refresh_token"].is_string());
    let by_identity = "grant_type=refresh_token&refresh_token=identity&\
                       service=registry.fake&client_id=test&scope=repository:app:pull";
    assert_eq!(post(by_identity).await.status, 200);
    registry.tokens().set(|behaviour| behaviour.require_identity_token = true);
    assert_eq!(post(by_password).await.status, 401);
    assert_eq!(post(by_identity).await.status, 200);
    registry.tokens().set(|behaviour| behaviour.refuse_post = Some(404));
    assert_eq!(post(by_identity).await.status, 404);
}

#[tokio::test]
async fn replies_of_other_makes() {
    let (registry, client) = with_tokens().await;
    registry.tokens().set(|behaviour| {
        behaviour.expires_in = None;
        behaviour.jwt = true;
        behaviour.fields = TokenFields::Token;
        behaviour.padding = 1_000_000;
        behaviour.refuse_repositories = vec!["secret".into()];
    });
    let reply = token(&client, "app", None).await;
    assert!(reply.body.len() > 1_000_000);
    assert!(reply.json().get("expires_in").is_none() && reply.json().get("access_token").is_none());
    let claims = reply.json()["token"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["exp"].as_u64().unwrap(), claims["iat"].as_u64().unwrap() + 60);
    assert_eq!(get_with(&client, MANIFEST, &reply).await.status, 200);
    assert_eq!(token(&client, "secret", None).await.status, 403);
}

#[tokio::test]
async fn a_token_server_of_its_own() {
    let (registry, client) = with_tokens().await;
    let tokens = TokenServer::start().await;
    registry.use_token_server(&tokens);
    let challenge = client.get(MANIFEST).await.header("www-authenticate").to_owned();
    assert!(challenge.contains(&format!("realm=\"{}\"", tokens.realm())), "{challenge}");
    let server = Client::new(tokens.realm().trim_end_matches("/token"));
    let reply = token(&server, "app", None).await;
    assert_eq!(get_with(&client, MANIFEST, &reply).await.status, 200);
    assert_eq!((tokens.token_requests().len(), registry.token_requests().len()), (1, 0));
    tokens.stop().await;
    assert!(server.try_get("/token").await.is_err());
}

#[tokio::test]
async fn basic_auth() {
    let (registry, client) = with_tokens().await;
    registry.set(|behaviour| behaviour.auth = Auth::basic("AWS", "pw"));
    assert_eq!(client.get(MANIFEST).await.header("www-authenticate"), "Basic realm=\"fake\"");
    assert_eq!(client.with_header("authorization", &basic("AWS", "pw")).get(MANIFEST).await.status, 200);
}
