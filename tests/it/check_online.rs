//! `tidelock check --online`: what it says of each account, what it sends to whom (I6), and that it costs nothing (I2).

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokio::process::Command;

use crate::support::behaviour::{Auth, Bearer, RateLimit, Redirect};
use crate::support::eventually::within;
use crate::support::faults::{Fault, Gate, Match, Times};
use crate::support::images::Image;
use crate::support::registry::FakeRegistry;
use crate::support::token_server::TokenServer;
use crate::upstream_rig::shown;

/// A configuration file in the making, and the files that it names.
struct Plan {
    text: String,
    dir: tempfile::TempDir,
}

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Plan {
    fn new() -> Plan {
        Plan { text: String::new(), dir: tempfile::tempdir().unwrap() }
    }

    /// One upstream at these URLs, with more keys.
    fn upstream(mut self, registry: &str, endpoints: &[&str], more: &str) -> Plan {
        let proxy = if more.contains("proxy") { "" } else { "proxy = \"none\"\n" };
        self.text += &format!(
            "[[upstream]]\nregistry = \"{registry}\"\nendpoints = {endpoints:?}\nresponse_timeout = \"20s\"\n\
             {proxy}{more}\n"
        );
        self
    }

    /// The upstream that a fake is, with the image `probe/image:latest` as the one to ask about.
    fn at(fake: &FakeRegistry) -> Plan {
        Plan::new().upstream(&fake.host(), &[&fake.url()], "probe = \"probe/image:latest\"")
    }

    /// With an account of the last upstream; its user is called after it.
    fn account(mut self, name: &str, password: &str) -> Plan {
        let file = self.file(&format!("password-of-{name}"), password);
        self.text += &format!(
            "[[upstream.account]]\nname = \"{name}\"\nusername = \"{name}-user\"\npassword_file = \"{file}\"\n"
        );
        self
    }

    fn file(&self, name: &str, text: &str) -> String {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Runs the command to its end.
    async fn check(&self, more: &[&str]) -> Ended {
        let file = self.file("tidelock.toml", &self.text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
        command.env_clear().args(["check", "--config", &file]).args(more);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = within("the check", command.output()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    async fn online(&self) -> Ended {
        self.check(&["--online"]).await
    }

    async fn json(&self) -> (Option<i32>, Value) {
        let ended = self.check(&["--online", "--json"]).await;
        (
            ended.code,
            serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{}{}", ended.out, ended.err)),
        )
    }
}

impl Ended {
    /// What it found out, one line each: how long an answer took is left out, and so are spaces that align.
    fn findings(&self) -> Vec<String> {
        let (_, found) =
            self.out.split_once("  online ").unwrap_or_else(|| panic!("{}{}", self.out, self.err));
        let unhurried = |line: &str| {
            let (rest, last) = line.rsplit_once(", ").unwrap_or((line, ""));
            let is_time = last.strip_suffix(" ms").is_some_and(|number| number.parse::<u64>().is_ok());
            if is_time { rest.to_owned() } else { line.to_owned() }
        };
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        found.lines().map(|line| unhurried(&words(line))).collect()
    }
}

/// A registry that wants tokens, knows the accounts `ci` and `spare`, and has the image to ask about.
async fn registry() -> FakeRegistry {
    let registry = FakeRegistry::start().await;
    registry.push("probe/image", "latest", &Image::layers(1, &[10]));
    registry.set(|behaviour| behaviour.auth = Auth::bearer());
    registry.tokens().add_account("ci-user", "hunter2");
    registry.tokens().add_account("spare-user", "hunter3");
    registry
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// Nothing that Docker Hub would bill was so much as tried.
fn assert_free(registry: &FakeRegistry) {
    assert_eq!(
        (registry.counted(), registry.count("GET", "/manifests/")),
        (0, 0),
        "{:#?}",
        registry.log().summary()
    );
}

#[tokio::test]
async fn every_account_and_nobody_with_their_budgets() {
    let registry = registry().await;
    registry.set(|behaviour| {
        behaviour.rate_limit = Some(RateLimit::new(100));
        behaviour.account_limits.insert("ci-user".into(), RateLimit::new(200).remaining(180));
        behaviour.account_limits.insert("spare-user".into(), RateLimit::new(200).remaining(-5));
    });
    let plan = Plan::at(&registry).account("ci", "hunter2").account("spare", "hunter3");
    let ended = plan.online().await;
    let host = registry.host();
    assert_eq!(
        ended.findings(),
        [
            format!("{host} {host} as ci ok, logged in, 180 of 200 pulls left in 6h"),
            format!("{host} {host} as spare ok, logged in, 0 of 200 pulls left in 6h"),
            format!("{host} {host} anonymous ok, 100 of 100 pulls left in 6h"),
        ]
    );
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    let columns: Vec<_> = ended.out.lines().filter_map(|line| line.find(" ok, ")).collect();
    assert!(columns.len() == 3 && columns.iter().all(|column| *column == columns[0]), "{}", ended.out);
    assert!(ended.out.contains(&format!("\n  online    {host}  ")), "{}", ended.out);
    assert!(ended.out.starts_with("configuration is valid\n"));
    assert_free(&registry);
    let asked = registry.log().matching(|request| request.method == "HEAD" && request.status == Some(200));
    let mut payers: Vec<_> = asked.into_iter().map(|request| request.account).collect();
    payers.sort();
    assert_eq!(payers, [None, Some("ci-user".to_owned()), Some("spare-user".to_owned())]);
}

#[tokio::test]
async fn as_docker_login_does() {
    let registry = registry().await;
    // GHCR's challenge names a repository that nobody has.
    let challenge = format!(
        "Bearer realm=\"{}/token\",service=\"ghcr.io\",scope=\"repository:user/image:pull\"",
        registry.url()
    );
    registry.set(|behaviour| {
        behaviour.auth = Auth::Bearer(Bearer { challenge: Some(challenge), ..Bearer::default() });
    });
    let plan = Plan::new().upstream(&registry.host(), &[&registry.url()], "").account("ci", "hunter2");
    let ended = plan.online().await;
    let host = registry.host();
    let expected = [format!("{host} {host} as ci ok, logged in"), format!("{host} {host} anonymous ok")];
    assert_eq!((ended.findings(), ended.code), (expected.to_vec(), Some(0)));
    let tokens = registry.token_requests();
    assert_eq!(tokens.len(), 1, "nobody asks for a token for nothing");
    assert_eq!(
        (tokens[0].query.as_str(), tokens[0].header("authorization")),
        ("service=ghcr.io", &*basic("ci-user", "hunter2"))
    );
    let mut seen = shown(&registry.requests(), &host);
    seen.sort();
    assert_eq!(seen, ["", "", "Bearer token-1"], "{:#?}", registry.log().summary());
}

#[tokio::test]
async fn a_wrong_password_fails_and_is_not_printed() {
    let registry = registry().await;
    registry.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(7).window(3600)));
    let plan = Plan::at(&registry).account("ci", "wrong-word").account("spare", "hunter3");
    let (code, report) = plan.json().await;
    assert_eq!((code, &report["valid"]), (Some(1), &Value::Bool(true)));
    let host = registry.host();
    let error = format!(
        "could not log in to {host}: the token service {host} refused account `ci` (401); check its user name and \
         password"
    );
    let ok = |account: &str, logged_in: bool| {
        serde_json::json!({
            "upstream": host, "endpoint": host, "account": account, "ok": true, "logged_in": logged_in,
            "budget": "limited", "budget_error": null, "limit": 100, "remaining": 7, "window_seconds": 3600,
            "error": null,
        })
    };
    let failed = serde_json::json!({
        "upstream": host, "endpoint": host, "account": "ci", "ok": false, "logged_in": false,
        "budget": null, "budget_error": null, "limit": null, "remaining": null, "window_seconds": null,
        "error": error,
    });
    let mut found = report["online"].as_array().unwrap().clone();
    let latencies: Vec<Value> =
        found.iter_mut().map(|row| row.as_object_mut().unwrap().remove("latency_ms").unwrap()).collect();
    assert_eq!(found, [failed, ok("spare", true), ok("anonymous", false)]);
    assert!(latencies[0].is_null() && latencies[1].is_u64() && latencies[2].is_u64(), "{latencies:?}");
    assert_free(&registry);

    let ended = plan.online().await;
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.findings()[0], format!("{host} {host} as ci FAILED: {error}"));
    for secret in ["wrong-word", "hunter3", "token-1", &basic("ci-user", "wrong-word")["Basic ".len()..]] {
        assert!(![&ended.out, &ended.err, &report.to_string()].iter().any(|text| text.contains(secret)));
    }
}

#[tokio::test]
async fn a_password_that_cannot_be_had() {
    let registry = registry().await;
    let plan = Plan::at(&registry).account("ci", "hunter2");
    std::fs::remove_file(plan.dir.path().join("password-of-ci")).unwrap();
    let ended = plan.online().await;
    assert_eq!(ended.code, Some(1));
    let line = &ended.findings()[0];
    assert!(
        line.contains("as ci FAILED: ") && line.contains("password-of-ci (entity not found); create it"),
        "{line}"
    );
    assert!(ended.findings()[1].contains("anonymous ok"), "{}", ended.out);
}

#[tokio::test]
async fn the_token_service_is_down() {
    let registry = registry().await;
    let tokens = TokenServer::start().await;
    registry.use_token_server(&tokens);
    let realm = tokens.realm().trim_start_matches("http://").trim_end_matches("/token").to_owned();
    tokens.stop().await;
    let ended = Plan::at(&registry).account("ci", "hunter2").online().await;
    let [ci, nobody] = &ended.findings()[..] else { panic!("{}", ended.out) };
    let down = format!("could not reach {realm}: connecting: Connection refused");
    assert!(ci.contains(&format!("as ci FAILED: {down}")), "{ci}");
    assert!(ci.ends_with("; check its address, the network and the upstream's `proxy`"), "{ci}");
    assert!(nobody.contains(&format!("anonymous ok, budget unknown ({down}")), "{nobody}");
    assert_eq!(ended.code, Some(1));

    let (code, report) = Plan::at(&registry).json().await;
    assert_eq!((code, &report["online"][0]["budget"]), (Some(0), &Value::from("unknown")), "{report}");
    assert!(report["online"][0]["budget_error"].as_str().unwrap().contains(&realm), "{report}");
}

#[tokio::test]
async fn an_endpoint_is_down_and_another_hangs() {
    let (origin, down, slow) = (registry().await, registry().await, registry().await);
    down.stop().await;
    slow.fault(Match::any(), Times::Always, Fault::hold_head(&Gate::new()));
    let endpoints = [&*down.url(), &slow.url(), &origin.url()];
    let more = "response_timeout = \"3s\"\nprobe = \"probe/image:latest\"";
    let mut plan = Plan::new().upstream("registry.example", &endpoints, more);
    plan.text = plan.text.replace("response_timeout = \"20s\"\n", "");
    let ended = plan.online().await;
    let found = ended.findings();
    let failed = |host: &str, what: &str| format!("registry.example {host} anonymous FAILED: {what}");
    assert!(
        found[0].starts_with(&failed(&down.host(), &format!("could not reach {}", down.host()))),
        "{}",
        found[0]
    );
    let timed_out = format!("{} did not answer within 3s; check the network", slow.host());
    assert!(found[1].starts_with(&failed(&slow.host(), &timed_out)), "{}", found[1]);
    assert_eq!(found[2], format!("registry.example {} anonymous ok, no limit told", origin.host()));
    assert_eq!(ended.code, Some(1));
}

#[tokio::test]
async fn basic_auth() {
    let registry = registry().await;
    registry.set(|behaviour| behaviour.auth = Auth::basic("ci-user", "hunter2"));
    let host = registry.host();
    let ended = Plan::at(&registry).account("ci", "hunter2").online().await;
    assert_eq!(
        (ended.findings(), ended.code),
        (
            vec![
                format!("{host} {host} as ci ok, logged in, no limit told"),
                format!("{host} {host} anonymous ok, has nothing without an account"),
            ],
            Some(0)
        )
    );
    assert_eq!(registry.token_requests().len(), 0);
    let mut seen = shown(&registry.requests(), &host);
    seen.sort();
    let with = basic("ci-user", "hunter2");
    assert_eq!(seen, ["", "", &with, &with], "twice without a login, and twice with the account's");

    let ended = Plan::at(&registry).account("ci", "hunter3").online().await;
    let refused =
        format!("could not log in to {host}: it refused account `ci`; check its user name and password");
    assert_eq!(ended.findings()[0], format!("{host} {host} as ci FAILED: {refused}"));
    assert_eq!(ended.code, Some(1));
    let ended = Plan::at(&registry).online().await;
    assert!(ended.findings()[0].ends_with("wants a user name and password; give this upstream an account"));
    assert_eq!(ended.code, Some(1));
}

#[tokio::test]
async fn where_nobody_asks_for_a_login() {
    let registry = registry().await;
    registry.set(|behaviour| behaviour.auth = Auth::None);
    let host = registry.host();
    let plan =
        Plan::new().upstream(&host, &[&registry.url()], "probe = \"no/such:image\"").account("ci", "hunter2");
    let ended = plan.online().await;
    let unknown = "budget unknown (it shows no no/such:image; set another `probe`)";
    assert_eq!(
        ended.findings(),
        [
            format!("{host} {host} as ci ok, no login asked for, {unknown}"),
            format!("{host} {host} anonymous ok, {unknown}"),
        ]
    );
    assert_eq!(ended.code, Some(0));
    assert_eq!(shown(&registry.requests(), &host), [""; 4]);
}

#[tokio::test]
async fn what_is_no_registry() {
    let registry = registry().await;
    let once = async |fault: Fault| {
        let fault = registry.fault(Match::path("/v2/").method("GET"), Times::Always, fault);
        let ended = Plan::at(&registry).online().await;
        fault.lift();
        assert_eq!(ended.code, Some(1), "{}", ended.out);
        ended.findings().remove(0).split_once("FAILED: ").unwrap().1.replace(&registry.host(), "it")
    };
    let unusable = "it sent an answer that cannot be used:";
    let web_page = format!("{unusable} a web page in place of /v2/; check that the endpoint is a registry's");
    assert_eq!(once(Fault::Html).await, web_page);
    let missing = format!("{unusable} it has no /v2/; check that the endpoint is a registry's");
    assert_eq!(once(Fault::status(404)).await, missing);
    assert_eq!(
        once(Fault::status(403)).await,
        "it answered with status 403; try again later, or ask whoever runs it"
    );
    assert_eq!(
        once(Fault::status(503)).await,
        "it answered with status 503; try again later, or ask whoever runs it"
    );
    assert_eq!(once(Fault::abuse(60)).await, "it refuses requests for now (429); try again later");
    let no_way = "could not log in to it: it answered 401 without a way to log in that this mirror knows (Bearer, Basic)";
    assert_eq!(once(Fault::status(401)).await, no_way);
}

#[tokio::test]
async fn credentials_go_nowhere_else() {
    let (registry, elsewhere) = (registry().await, registry().await);
    elsewhere.set(|behaviour| behaviour.auth = Auth::None);
    // The probe is sent on: the question follows, the account does not.
    registry.set(|behaviour| behaviour.redirect = Some(Redirect::registry(&elsewhere.url(), "")));
    let ended = Plan::at(&registry).account("ci", "hunter2").online().await;
    assert_eq!(ended.code, Some(0), "{}", ended.out);
    assert_eq!(shown(&elsewhere.requests(), &elsewhere.host()), ["", ""]);
    assert_free(&elsewhere);

    // The door is sent on: nobody follows.
    elsewhere.clear();
    let sent_on = vec![("location".to_owned(), format!("{}/v2/", elsewhere.url()))];
    registry.fault(
        Match::path("/v2/").method("GET"),
        Times::Always,
        Fault::Status(307, String::new(), sent_on),
    );
    let plan = Plan::new().upstream(&registry.host(), &[&registry.url()], "").account("ci", "hunter2");
    let ended = plan.online().await;
    assert!(ended.findings()[0].ends_with("as ci ok, no login asked for"), "{}", ended.out);
    assert_eq!((elsewhere.total(), ended.code), (0, Some(0)));
}

#[tokio::test]
async fn a_token_service_elsewhere_gets_nothing() {
    let names = ["registry.example.com", "login.elsewhere.net"];
    let registry = FakeRegistry::start_tls_for(&names).await;
    registry.tokens().add_account("ci-user", "hunter2");
    let realm = Some("https://login.elsewhere.net/token".to_owned());
    registry.set(|behaviour| behaviour.auth = Auth::Bearer(Bearer { realm, ..Bearer::default() }));
    let check = async |more: &str| {
        let plan = Plan::new();
        let ca = plan.file("ca.pem", &registry.ca_pem());
        let proxy = registry.proxy_url();
        let more = format!("proxy = \"{proxy}\"\nca = \"{ca}\"\nanonymous = \"never\"\n{more}");
        let plan = plan.upstream(names[0], &["https://registry.example.com"], &more);
        plan.account("ci", "hunter2").online().await
    };
    let ended = check("").await;
    assert_eq!((ended.findings().len(), ended.code), (1, Some(1)), "{}", ended.out);
    let advice = "add \"login.elsewhere.net\" to this upstream's token_hosts";
    assert!(ended.findings()[0].ends_with(advice), "{}", ended.out);
    assert_eq!(registry.token_requests().len(), 0);
    assert_eq!(shown(&registry.requests(), names[0]), [""]);

    let ended = check("token_hosts = [\"login.elsewhere.net\"]").await;
    assert_eq!((ended.findings().len(), ended.code), (1, Some(0)), "{}", ended.out);
    assert_eq!(shown(&registry.token_requests(), names[1]), [basic("ci-user", "hunter2")]);
}

#[tokio::test]
async fn all_at_the_same_time() {
    let (one, other) = (registry().await, registry().await);
    let gate = Gate::new();
    for registry in [&one, &other] {
        registry.fault(Match::path("/v2/"), Times::Always, Fault::hold_head(&gate));
    }
    let plan = Plan::at(&one).account("ci", "hunter2").account("spare", "hunter3");
    let plan = plan.upstream("other.example", &[&other.url()], "default = true").account("ci", "hunter2");
    let checking = plan.online();
    let opening = async {
        gate.waiting(5).await;
        gate.open();
    };
    let (ended, ()) = futures_util::join!(checking, opening);
    assert_eq!((ended.findings().len(), ended.code), (5, Some(0)), "{}", ended.out);
}

/// Neither few connections nor a slow pace nor no patience with clients makes a sound account fail.
#[tokio::test]
async fn within_the_upstreams_own_limits() {
    let registry = registry().await;
    let more = "max_connections = 1\nprobe = \"probe/image:latest\"";
    let plan = Plan::new().upstream(&registry.host(), &[&registry.url()], more);
    let mut plan = plan.account("ci", "hunter2").account("spare", "hunter3");
    plan.text = format!("schedule.max_wait = \"0s\"\n{}", plan.text);
    registry.fault(Match::path("/v2/"), Times::Always, Fault::Latency(Duration::from_millis(20)));
    let ended = plan.online().await;
    assert_eq!((ended.findings().len(), ended.code), (3, Some(0)), "{}", ended.out);
    assert_eq!(registry.peak_concurrency(), 1);
}

#[tokio::test]
async fn an_upstream_that_cannot_be_set_up_fails_alone() {
    let registry = registry().await;
    let plan = Plan::at(&registry);
    let plan = plan.upstream("bad.example", &[&registry.url()], "default = true\nca = \"/no/such/ca.pem\"");
    let ended = plan.online().await;
    let [good, bad] = &ended.findings()[..] else { panic!("{}", ended.out) };
    assert!(good.contains("anonymous ok"), "{good}");
    assert!(bad.contains("FAILED: upstream[1].ca (bad.example): /no/such/ca.pem"), "{bad}");
    assert_eq!(ended.code, Some(1));
}

#[tokio::test]
async fn nothing_is_contacted_unless_meant() {
    let registry = registry().await;
    let mut plan = Plan::at(&registry);
    let ended = plan.check(&[]).await;
    assert_eq!((ended.code, ended.out.contains("online")), (Some(0), false), "{}", ended.out);

    let message = "does not go with --online, which contacts each upstream: leave one of the two out";
    let ended = plan.check(&["--online", "--offline"]).await;
    assert_eq!((ended.code, &*ended.err), (Some(2), &*format!("--offline: offline = \"true\" {message}\n")));
    plan.text = format!("offline = true\n{}", plan.text);
    let ended = plan.online().await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""));
    assert!(ended.err.ends_with(&format!("tidelock.toml:1: offline = true {message}\n")), "{}", ended.err);
    let (code, report) = plan.json().await;
    assert_eq!((code, &report["faults"][0]["message"]), (Some(2), &Value::from(message)), "{report}");

    plan.text = plan.text.replace("offline = true", "ofline = false");
    assert_eq!(plan.online().await.code, Some(2));
    assert_eq!((registry.total(), registry.token_requests().len()), (0, 0));
}

#[test]
fn the_help_names_it() {
    let help = crate::cli::printed(&["check", "--help"]);
    assert!(help.contains("--online") && help.contains("Costs no pull"), "{help}");
}
