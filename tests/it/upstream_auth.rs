//! Logging in: tokens, passwords, and to whom they go (I6). Counts requests, and looks at what every host saw.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tidelock::config::{Account, Credentials};
use tidelock::scheduler::Refused;
use tidelock::upstream::Error;

use crate::support::behaviour::{Absent, Auth, Bearer};
use crate::support::eventually::eventually;
use crate::support::faults::{Fault, Gate, Match, Times};
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;
use crate::support::token_server::{TokenFields, TokenServer};
use crate::upstream_rig::{Plan, Rig, bad_answer, shown};

/// A registry that wants tokens, with images in two repositories and the account `ci`.
async fn with_tokens() -> FakeRegistry {
    let registry = FakeRegistry::start().await;
    registry.push("app", "1", &Image::layers(1, &[10]));
    registry.push("other", "1", &Image::layers(2, &[10]));
    registry.set(|behaviour| behaviour.auth = Auth::bearer());
    registry.tokens().add_account("ci", "hunter2");
    registry
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn requests(registry: &FakeRegistry) -> (usize, usize) {
    (registry.total(), registry.token_requests().len())
}

#[tokio::test]
async fn the_challenge_is_remembered_and_so_is_the_token() {
    let registry = with_tokens().await;
    let rig = Plan::at(&registry).rig();
    rig.manifest("app", "1").await.unwrap();
    assert_eq!(requests(&registry), (2, 1), "asked, was sent for a token, asked again");
    rig.manifest("app", "1").await.unwrap();
    assert_eq!(requests(&registry), (3, 1), "the token is still good");
    rig.manifest("other", "1").await.unwrap();
    assert_eq!(requests(&registry), (4, 2), "another repository: a token at once, and no 401");
    assert_eq!(registry.token_requests()[1].query, "service=registry.fake&scope=repository%3Aother%3Apull");
    let labels = "account=\"anonymous\",kind=\"token\",method=\"GET\",status=\"2xx\"";
    assert_eq!(rig.metric(&format!("tidelock_upstream_requests_total{{{labels}")), 2);
}

#[tokio::test]
async fn a_password_goes_to_the_token_service_and_nowhere_else() {
    let registry = with_tokens().await;
    registry.set(|behaviour| behaviour.auth = Auth::bearer_with_account());
    let rig = Plan::at(&registry).account("ci", "hunter2\n").rig();
    rig.manifest("app", "1").await.unwrap();
    let tokens = registry.token_requests();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].header("authorization"), basic("ci", "hunter2"));
    let host = registry.host();
    assert_eq!(shown(&registry.requests(), &host), ["", "Bearer token-1"]);
    let labels = "account=\"ci\",kind=\"manifest\",method=\"GET\",status=\"2xx\"";
    assert_eq!(rig.metric(&format!("tidelock_upstream_requests_total{{{labels}")), 1);
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end() {
    let registry = with_tokens().await;
    registry.tokens().set(|behaviour| behaviour.expires_in = Some(1));
    let rig = Plan::at(&registry).rig();
    rig.manifest("app", "1").await.unwrap();
    eventually(async || {
        rig.manifest("app", "1").await.unwrap();
        registry.token_requests().len() == 2
    })
    .await;
    let refused = registry.requests().into_iter().filter(|request| request.status == Some(401));
    assert_eq!(refused.count(), 1, "the first; no pull met the end of a token");
}

#[tokio::test]
async fn a_token_that_became_void_is_replaced_once() {
    let registry = with_tokens().await;
    let rig = Plan::at(&registry).rig();
    rig.manifest("app", "1").await.unwrap();
    registry.tokens().expire_all_tokens();
    rig.manifest("app", "1").await.unwrap();
    assert_eq!(requests(&registry), (4, 2));
    rig.manifest("app", "1").await.unwrap();
    assert_eq!(requests(&registry), (5, 2));
}

#[tokio::test]
async fn what_is_hidden_is_asked_for_no_more_than_needed() {
    let registry = with_tokens().await;
    for absent in [Absent::Unauthorized, Absent::Forbidden] {
        registry.set(|behaviour| behaviour.absent = absent);
        let rig = Plan::at(&registry).rig();
        registry.clear();
        let hidden = rig.manifest("missing", "1").await.unwrap_err();
        assert_eq!(hidden, Error::Hidden { endpoint: registry.host() });
        assert_eq!(registry.total(), 2, "{absent:?}");
    }
    registry.set(|behaviour| behaviour.absent = Absent::NotFound);
    let missing = Plan::at(&registry).rig().manifest("missing", "1").await;
    assert_eq!(missing.unwrap_err(), Error::NotFound { endpoint: registry.host() });
}

#[tokio::test]
async fn one_token_for_all_who_wait_even_if_the_first_goes_away() {
    let registry = with_tokens().await;
    let rig = Arc::new(Plan::at(&registry).rig());
    rig.manifest("other", "1").await.unwrap();
    registry.token_requests();
    let gate = Gate::new();
    registry.tokens().fault(Match::any(), Times::Always, Fault::hold_head(&gate));
    let pull = |rig: &Arc<Rig>| {
        let rig = Arc::clone(rig);
        tokio::spawn(async move { rig.manifest("app", "1").await })
    };
    let first = pull(&rig);
    gate.waiting(1).await;
    let others: Vec<_> = (0..20).map(|_| pull(&rig)).collect();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.open();
    for other in others {
        other.await.unwrap().unwrap();
    }
    assert_eq!(registry.token_requests().len(), 2, "one for each repository");
}

#[tokio::test]
async fn a_wrong_password_says_so_and_is_not_printed() {
    let registry = with_tokens().await;
    let rig = Plan::at(&registry).account("ci", "wrong-hunter3").rig();
    let error = rig.manifest("app", "1").await.unwrap_err();
    assert!(matches!(error, Error::Login { .. }), "{error}");
    assert!(error.to_string().contains("`ci`") && !format!("{error:?}").contains("hunter3"), "{error}");
    assert_eq!(requests(&registry), (1, 1), "it would be wrong the second time too");
}

#[tokio::test]
async fn credentials_that_cannot_be_had() {
    let registry = with_tokens().await;
    let missing = Credentials::PasswordFile { username: "ci".to_owned(), file: "/no/such/file".into() };
    let account = Account::new("ci", missing);
    let plan = Plan::at(&registry).account("ci", "");
    let rig = plan.with(|upstream| upstream.accounts = vec![account]).rig();
    let error = rig.manifest("app", "1").await.unwrap_err();
    assert!(matches!(&error, Error::Login { reason, .. } if reason.contains("/no/such/file")), "{error}");
    assert_eq!(requests(&registry), (1, 0));
}

#[tokio::test]
async fn token_services_in_trouble() {
    let registry = with_tokens().await;
    let tokens = TokenServer::start().await;
    registry.use_token_server(&tokens);
    let realm = tokens.realm();
    let host = realm.trim_start_matches("http://").trim_end_matches("/token").to_owned();
    let within = async |fault: Fault, limit: Duration| {
        let fault = tokens.fault(Match::any(), Times::Always, fault);
        let plan = Plan::at(&registry).with(|u| u.response_timeout = limit);
        let error = plan.rig().manifest("app", "1").await.unwrap_err();
        fault.lift();
        error
    };
    let once = |fault: Fault| within(fault, Duration::from_secs(10));
    let endpoint = host.clone();
    assert_eq!(once(Fault::status(503)).await, Error::Status { endpoint, status: 503 });
    let endpoint = host.clone();
    assert_eq!(once(Fault::status(404)).await, Error::Status { endpoint, status: 404 });
    let paused = once(Fault::abuse(7)).await;
    assert!(matches!(paused, Error::Refused(Refused::Paused { .. })), "{paused}");
    let (endpoint, after) = (host.clone(), Duration::from_secs(1));
    assert_eq!(within(Fault::hold_head(&Gate::new()), after).await, Error::TimedOut { endpoint, after });
    assert_eq!(once(Fault::Html).await.reason(), "bad_answer");
    assert_eq!(once(Fault::HangUp).await.reason(), "unreachable");
    assert_eq!(once(Fault::status(401)).await, Error::Hidden { endpoint: registry.host() });
    tokens.stop().await;
    assert_eq!(once(Fault::status(200)).await.reason(), "unreachable");
    tokens.resume();
    Plan::at(&registry).rig().manifest("app", "1").await.unwrap();
}

#[tokio::test]
async fn replies_of_all_makes() {
    for fields in [TokenFields::Token, TokenFields::AccessToken, TokenFields::Both] {
        let registry = with_tokens().await;
        registry.tokens().set(|behaviour| behaviour.fields = fields);
        let rig = Plan::at(&registry).rig();
        rig.manifest("app", "1").await.unwrap();
        rig.manifest("app", "1").await.unwrap();
        assert_eq!(registry.token_requests().len(), 1, "{fields:?}");
    }
    let registry = with_tokens().await;
    registry.tokens().set(|behaviour| behaviour.padding = 2 << 20);
    let reason = bad_answer(Plan::at(&registry).rig().manifest("app", "1").await);
    assert!(reason.contains("more than"), "{reason}");
}

#[tokio::test]
async fn basic_on_every_request() {
    let registry = with_tokens().await;
    registry.set(|behaviour| behaviour.auth = Auth::basic("AWS", "twelve-hours"));
    let rig = Plan::at(&registry).account("AWS", "twelve-hours").rig();
    rig.manifest("app", "1").await.unwrap();
    rig.manifest("other", "1").await.unwrap();
    let with = basic("AWS", "twelve-hours");
    assert_eq!(shown(&registry.requests(), &registry.host()), ["", &with, &with]);
    assert_eq!(registry.token_requests().len(), 0);

    registry.clear();
    let wrong = Plan::at(&registry).account("AWS", "wrong").rig().manifest("app", "1").await.unwrap_err();
    assert!(
        matches!(&wrong, Error::Login { reason, .. } if reason.contains("refused account `ci`")),
        "{wrong}"
    );
    assert_eq!(registry.total(), 2);
    let nobody = Plan::at(&registry).rig().manifest("app", "1").await.unwrap_err();
    assert!(matches!(&nobody, Error::Login { reason, .. } if reason.contains("no account")), "{nobody}");
}

#[tokio::test]
async fn a_challenge_without_a_use() {
    let registry = with_tokens().await;
    let challenge =
        |text: &str| Auth::Bearer(Bearer { challenge: Some(text.to_owned()), ..Bearer::default() });
    for text in ["", "Negotiate", "Bearer service=\"x\""] {
        registry.set(|behaviour| behaviour.auth = challenge(text));
        let error = Plan::at(&registry).rig().manifest("app", "1").await.unwrap_err();
        assert!(matches!(&error, Error::Login { reason, .. } if reason.contains("Bearer, Basic")), "{error}");
    }
}

#[tokio::test]
async fn a_challenge_at_the_ping_only() {
    let registry = with_tokens().await;
    let bearer = Bearer { challenge_at_ping_only: true, ..Bearer::default() };
    registry.set(|behaviour| behaviour.auth = Auth::Bearer(bearer));
    let rig = Plan::at(&registry).rig();
    rig.manifest("app", "1").await.unwrap();
    assert_eq!((registry.count("GET", "/v2/app"), requests(&registry)), (2, (3, 1)));
    assert!(registry.token_requests()[0].query.contains("scope=repository%3Aapp%3Apull"));
    rig.manifest("other", "1").await.unwrap();
    assert_eq!(requests(&registry), (4, 2));
}

#[tokio::test]
async fn identity_tokens_are_traded_by_post() {
    let registry = with_tokens().await;
    registry.tokens().add_identity_token("identity", "ci");
    registry.tokens().set(|behaviour| behaviour.require_identity_token = true);
    registry.set(|behaviour| behaviour.auth = Auth::bearer_with_account());
    let rig = Plan::at(&registry).account("<token>", "identity").rig();
    rig.manifest("app", "1").await.unwrap();
    let tokens = registry.token_requests();
    assert_eq!(tokens.len(), 1);
    assert_eq!((tokens[0].method.as_str(), tokens[0].query.as_str()), ("POST", ""));
    assert_eq!(tokens[0].header("authorization"), "");
}

#[tokio::test]
async fn where_post_is_unknown_the_identity_token_is_a_password() {
    for status in [400, 401, 404, 405] {
        let registry = with_tokens().await;
        registry.tokens().add_account("<token>", "identity");
        registry.tokens().set(|behaviour| behaviour.refuse_post = Some(status));
        registry.set(|behaviour| behaviour.auth = Auth::bearer_with_account());
        let rig = Plan::at(&registry).account("<token>", "identity").rig();
        rig.manifest("app", "1").await.unwrap();
        let methods: Vec<String> = registry.token_requests().into_iter().map(|r| r.method).collect();
        assert_eq!(methods, ["POST", "GET"], "{status}");
    }
}

/// A helper that answers with what `answer` holds, and counts how often it was run.
fn helper(plan: &Plan) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = plan.file("docker-credential-test", "");
    let dir = dir.parent().unwrap().display().to_string();
    let body = format!(
        "#!/bin/sh\nread server\necho \"$1 $server\" >> {dir}/asked\n\
         printf '{{\"Username\":\"ci\",\"Secret\":\"%s\"}}' \"$(cat {dir}/answer)\"\n"
    );
    let file = plan.file("docker-credential-test", &body);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[tokio::test]
async fn a_helper_is_asked_once_and_again_after_a_refusal() {
    for auth in [Auth::basic("ci", "first"), Auth::bearer_with_account()] {
        let registry = with_tokens().await;
        registry.tokens().add_account("ci", "first");
        registry.set(|behaviour| behaviour.auth = auth.clone());
        let plan = Plan::at(&registry);
        let (program, answer) = (helper(&plan), plan.file("answer", "first"));
        let asked = answer.with_file_name("asked");
        let ttl = Duration::from_secs(3600);
        let credentials = Credentials::Helper { program, ttl };
        let account = Account::new("ci", credentials);
        let rig = plan.with(|upstream| upstream.accounts = vec![account]).rig();
        // Another test that forks may hold the script open for a moment.
        eventually(async || rig.manifest("app", "1").await.is_ok()).await;
        rig.manifest("other", "1").await.unwrap();
        let times = || std::fs::read_to_string(&asked).unwrap().lines().count();
        assert_eq!(times(), 1, "{auth:?}");

        std::fs::write(&answer, "second").unwrap();
        registry.tokens().add_account("ci", "second");
        registry.tokens().expire_all_tokens();
        if let Auth::Basic { .. } = auth {
            registry.set(|behaviour| behaviour.auth = Auth::basic("ci", "second"));
        }
        rig.manifest("app", "1").await.unwrap();
        assert_eq!(times(), 2, "{auth:?}");
        let lines = std::fs::read_to_string(&asked).unwrap();
        assert_eq!(lines.lines().next().unwrap(), format!("get {}", registry.host()));
    }
}

/// A registry under a public name, whose challenge names `realm`.
async fn public_registry(realm: &str) -> FakeRegistry {
    let names = ["registry.example.com", "login.example.com", "login.elsewhere.net"];
    let registry = FakeRegistry::start_tls_for(&names).await;
    registry.push("app", "1", &Image::layers(1, &[10]));
    registry.tokens().add_account("ci", "hunter2");
    let bearer = Bearer { realm: Some(realm.to_owned()), ..Bearer::default() };
    registry.set(|behaviour| behaviour.auth = Auth::Bearer(bearer));
    registry
}

fn example(registry: &FakeRegistry) -> Plan {
    Plan::through(registry, "registry.example.com", "https://registry.example.com")
}

#[tokio::test]
async fn a_token_service_of_the_same_domain_gets_the_password() {
    let registry = public_registry("https://login.example.com/token").await;
    example(&registry).account("ci", "hunter2").rig().manifest("app", "1").await.unwrap();
    let tokens = registry.token_requests();
    assert_eq!(shown(&tokens, "login.example.com"), [basic("ci", "hunter2")]);
    assert_eq!(shown(&registry.requests(), "registry.example.com"), ["", "Bearer token-1"]);
}

#[tokio::test]
async fn a_token_service_elsewhere_gets_nothing_unless_it_is_listed() {
    let registry = public_registry("https://login.elsewhere.net/token").await;
    let refused = example(&registry).account("ci", "hunter2").rig().manifest("app", "1").await;
    let reason = bad_answer(refused);
    assert!(reason.contains("token_hosts") && reason.contains("\"login.elsewhere.net\""), "{reason}");
    assert_eq!(requests(&registry), (1, 0), "it was not even asked");
    assert!(registry.tunnels().iter().all(|tunnel| !tunnel.authority.contains("elsewhere")));

    let listed = example(&registry).account("ci", "hunter2");
    let listed = listed.with(|upstream| upstream.token_hosts = vec!["login.elsewhere.net".parse().unwrap()]);
    listed.rig().manifest("app", "1").await.unwrap();
    example(&registry).rig().manifest("app", "1").await.unwrap();
    let shown = shown(&registry.token_requests(), "login.elsewhere.net");
    assert_eq!(shown, [basic("ci", "hunter2"), String::new()], "listed; then without an account");
}

#[tokio::test]
async fn a_public_registry_names_no_private_token_service() {
    for realm in [
        "https://127.0.0.1/token",
        "https://localhost/token",
        "https://10.0.0.1/token",
        "https://169.254.169.254/latest",
        "https://[::1]/token",
        "https://[::ffff:10.0.0.1]/token",
        "https://100.64.0.1/token",
    ] {
        let registry = public_registry(realm).await;
        let reason = bad_answer(example(&registry).rig().manifest("app", "1").await);
        assert!(reason.contains("private addresses"), "{realm}: {reason}");
        assert_eq!(registry.tunnels().len(), 1, "{realm}");
    }
}

#[tokio::test]
async fn never_in_the_clear() {
    for realm in ["http://registry.example.com/token", "http://login.example.com/token"] {
        let registry = public_registry(realm).await;
        for plan in [example(&registry), example(&registry).account("ci", "hunter2")] {
            let reason = bad_answer(plan.rig().manifest("app", "1").await);
            assert!(reason.contains("without https"), "{realm}: {reason}");
        }
        assert_eq!(registry.token_requests().len(), 0);
    }
}

#[tokio::test]
async fn realms_that_are_nonsense() {
    for realm in
        ["not a url", "/token", "ftp://registry.example.com/", "https://u:p@registry.example.com/token"]
    {
        let registry = public_registry(realm).await;
        let reason = bad_answer(example(&registry).rig().manifest("app", "1").await);
        assert!(reason.contains("token service"), "{realm}: {reason}");
    }
}

/// Everything that is logged by this thread from now on, until the guards go.
fn capture() -> (impl Sized, Arc<std::sync::Mutex<Vec<u8>>>) {
    #[derive(Clone)]
    struct Sink(Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Sink(Arc::clone(&log));
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    // With a single subscriber, tracing lets any thread without one switch a log line off for all.
    let second = tracing::Dispatch::new(tracing_subscriber::registry());
    ((tracing::subscriber::set_default(subscriber), second), log)
}

#[tokio::test]
async fn a_challenge_that_leads_nowhere_is_not_held_on_to() {
    let registry = with_tokens().await;
    let challenge = Some("Bearer realm=\"nonsense\"".to_owned());
    registry.set(|behaviour| behaviour.auth = Auth::Bearer(Bearer { challenge, ..Bearer::default() }));
    let rig = Plan::at(&registry).rig();
    assert!(rig.manifest("app", "1").await.is_err());
    registry.set(|behaviour| behaviour.auth = Auth::bearer());
    rig.manifest("app", "1").await.unwrap();
}

#[tokio::test]
async fn a_token_service_may_move() {
    let registry = with_tokens().await;
    let (old, new) = (TokenServer::start().await, TokenServer::start().await);
    registry.use_token_server(&old);
    let rig = Plan::at(&registry).rig();
    rig.manifest("app", "1").await.unwrap();
    old.stop().await;
    registry.use_token_server(&new);
    assert!(matches!(rig.manifest("other", "1").await, Err(Error::Unreachable { .. })));
    rig.manifest("other", "1").await.unwrap();
}

#[tokio::test]
async fn nothing_secret_is_logged() {
    let registry = with_tokens().await;
    let cdn = registry.start_cdn().await;
    registry.set(|behaviour| {
        behaviour.auth = Auth::bearer_with_account();
        behaviour.redirect = Some(crate::support::behaviour::Redirect::cdn(&cdn).with_manifests());
    });
    let (guard, log) = capture();
    let rig = Plan::at(&registry).account("ci", "hunter2").rig();
    let digest = Image::layers(1, &[10]).digest().to_owned();
    rig.manifest("app", &digest).await.unwrap();
    cdn.fault(Match::any(), Times::Always, Fault::status(500));
    let error = rig.manifest("app", &digest).await.unwrap_err();
    drop(guard);
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(log.contains("asked upstream"), "{log}");
    for secret in ["hunter2", "aHVudGVy", "token-1", "Signature", &basic("ci", "hunter2")] {
        assert!(!log.contains(secret) && !format!("{error:?} {error}").contains(secret), "{secret}: {log}");
    }
}
