//! Every key, and what it takes for it to hold.

use std::collections::BTreeSet;

use super::*;

fn config(text: &str) -> Config {
    Config::from_toml("t.toml", text).unwrap_or_else(|faults| panic!("\n{faults}\n{text}"))
}

/// What `new` changes of `old`: what takes effect, and what waits.
fn told(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
    let old = config(old);
    let plan = Plan::of(&old, &config(new), most_connections(&old));
    (plan.changed, plan.waiting)
}

fn classified() -> BTreeSet<String> {
    let house = HOUSE.iter().map(|key| key.name.to_owned());
    let freshness =
        FRESHNESS.iter().flat_map(|key| ["freshness.", "upstream."].map(|at| format!("{at}{}", key.name)));
    let upstream = UPSTREAM.iter().map(|key| format!("upstream.{}", key.name));
    let account = ACCOUNT.iter().map(|key| format!("upstream.account.{}", key.name));
    house.chain(freshness).chain(upstream).chain(account).collect()
}

#[test]
fn every_key_is_classified() {
    let keys = Config::keys();
    let is_section = |key: &str| keys.iter().any(|other| other.starts_with(&format!("{key}.")));
    let leaves: BTreeSet<String> = keys.iter().filter(|key| !is_section(key)).cloned().collect();
    assert_eq!(classified(), leaves, "a key that is not here must say when it takes effect");
}

/// A configuration with one of everything, in which a line may say something else.
fn with(key: &str, value: &str) -> String {
    let mut text = String::new();
    for (section, lines) in WHOLE {
        text.push_str(&format!("{section}\n"));
        for (name, usual) in *lines {
            let value = if key == path(section, name) { value } else { usual };
            text.push_str(&format!("{name} = {value}\n"));
        }
    }
    text
}

fn path(section: &str, name: &str) -> String {
    let section = section.trim_matches(['[', ']']);
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

type Lines = &'static [(&'static str, &'static str)];

const WHOLE: &[(&str, Lines)] = &[
    ("", &[("offline", "false")]),
    (
        "[server]",
        &[
            ("listen", "[\"127.0.0.1:5000\"]"),
            ("admin_listen", "\"127.0.0.1:5001\""),
            ("drain_timeout", "\"30s\""),
            ("max_connections", "10"),
        ],
    ),
    ("[server.tls]", &[("cert", "\"a\""), ("key", "\"a\""), ("client_ca", "\"a\"")]),
    (
        "[cache]",
        &[
            ("dir", "\"/a\""),
            ("max_size", "\"1GiB\""),
            ("min_free", "\"1GiB\""),
            ("scrub_every", "\"1d\""),
            ("scrub_rate", "\"1MiB\""),
        ],
    ),
    (
        "[freshness]",
        &[
            ("tag_ttl", "\"1m\""),
            ("stale_while_revalidate", "\"1m\""),
            ("stale_if_error", "\"1m\""),
            ("negative_ttl", "\"1m\""),
            ("immutable_tags", "[]"),
        ],
    ),
    ("[schedule]", &[("max_wait", "\"1s\""), ("reserve", "\"10%\""), ("bandwidth", "\"1MB\"")]),
    (
        "[[warm]]",
        &[
            ("name", "\"a\""),
            ("images", "[\"a:*\"]"),
            ("newest", "1"),
            ("platforms", "[]"),
            ("referrers", "true"),
            ("pin", "false"),
            ("every", "\"1d\""),
            ("hours", "\"22:00-06:00\""),
            ("bandwidth", "\"1MB\""),
        ],
    ),
    ("[log]", &[("format", "\"text\""), ("level", "\"info\"")]),
    (
        "[[upstream]]",
        &[
            ("registry", "\"docker.io\""),
            ("default", "true"),
            ("endpoints", "[\"https://a.example\"]"),
            ("hosts", "[]"),
            ("allow", "[\"**\"]"),
            ("deny", "[]"),
            ("max_connections", "32"),
            ("requests_per_second", "50"),
            ("bandwidth", "\"1MB\""),
            ("connect_timeout", "\"1s\""),
            ("response_timeout", "\"1s\""),
            ("idle_timeout", "\"1s\""),
            ("read_ahead", "true"),
            ("parallel_ranges", "true"),
            ("ca", "\"a\""),
            ("insecure", "false"),
            ("proxy", "\"http://user:one@proxy:1\""),
            ("token_hosts", "[]"),
            ("anonymous", "\"last\""),
            ("probe", "\"a/b:1\""),
            ("tag_ttl", "\"2m\""),
            ("stale_while_revalidate", "\"2m\""),
            ("stale_if_error", "\"2m\""),
            ("negative_ttl", "\"2m\""),
            ("immutable_tags", "[\"own\"]"),
        ],
    ),
    ("[[upstream.hold]]", &[("tags", "[\"a:b\"]"), ("at", "2026-11-01")]),
    (
        "[[upstream.account]]",
        &[
            ("name", "\"ci\""),
            ("repositories", "[\"**\"]"),
            ("username", "\"u\""),
            ("password_file", "\"a\""),
        ],
    ),
];

#[test]
fn what_takes_effect_at_once() {
    for (key, value) in [
        ("offline", "true"),
        ("server.drain_timeout", "\"1s\""),
        ("server.max_connections", "11"),
        ("cache.max_size", "\"2GiB\""),
        ("cache.min_free", "\"2GiB\""),
        ("cache.scrub_every", "\"2d\""),
        ("cache.scrub_rate", "\"2MiB\""),
        ("freshness.tag_ttl", "\"3m\""),
        ("freshness.stale_while_revalidate", "\"3m\""),
        ("freshness.stale_if_error", "\"3m\""),
        ("freshness.negative_ttl", "\"3m\""),
        ("freshness.immutable_tags", "[\"v*\"]"),
        ("schedule.max_wait", "\"2s\""),
        ("schedule.reserve", "\"20%\""),
        ("schedule.bandwidth", "[\"2MB 08:00-18:00\", \"9MB\"]"),
        ("warm.name", "\"b\""),
        ("warm.images", "[\"b:*\"]"),
        ("warm.newest", "2"),
        ("warm.platforms", "[\"linux/amd64\"]"),
        ("warm.referrers", "false"),
        ("warm.pin", "true"),
        ("warm.every", "\"2d\""),
        ("warm.hours", "\"23:00-06:00\""),
        ("warm.bandwidth", "\"2MB\""),
        ("log.format", "\"json\""),
        ("log.level", "\"debug\""),
        ("upstream.hosts", "[\"hub.example\"]"),
        ("upstream.allow", "[\"library/**\"]"),
        ("upstream.deny", "[\"secret/**\"]"),
        ("upstream.max_connections", "33"),
        ("upstream.requests_per_second", "51"),
        ("upstream.bandwidth", "\"2MB\""),
        ("upstream.connect_timeout", "\"2s\""),
        ("upstream.response_timeout", "\"2s\""),
        ("upstream.idle_timeout", "\"2s\""),
        ("upstream.read_ahead", "false"),
        ("upstream.parallel_ranges", "false"),
        ("upstream.ca", "\"b\""),
        ("upstream.proxy", "\"http://user:two@proxy:1\""),
        ("upstream.token_hosts", "[\"b.example\"]"),
        ("upstream.hold.tags", "[\"a:c\"]"),
        ("upstream.hold.at", "2026-11-01T00:00:01Z"),
        ("upstream.probe", "\"a/b:2\""),
        ("upstream.tag_ttl", "\"3m\""),
        ("upstream.stale_while_revalidate", "\"3m\""),
        ("upstream.stale_if_error", "\"3m\""),
        ("upstream.negative_ttl", "\"3m\""),
        ("upstream.immutable_tags", "[]"),
        ("upstream.account.repositories", "[\"a/**\"]"),
        ("upstream.account.username", "\"v\""),
        ("upstream.account.password_file", "\"b\""),
    ] {
        let (old, new) = (config(&with("", "")), config(&with(key, value)));
        let plan = Plan::of(&old, &new, most_connections(&old));
        let named =
            key.replace("upstream.account.", "upstream[0].account[0].").replace("upstream.", "upstream[0].");
        assert_eq!((plan.changed, plan.waiting), (vec![named], vec![]), "{key}");
        assert_eq!(plan.config, new, "{key}");
    }
}

#[test]
fn what_waits_for_the_next_start() {
    for (key, value) in [
        ("server.listen", "[\"127.0.0.1:6000\"]"),
        ("server.admin_listen", "\"127.0.0.1:6001\""),
        ("server.tls.cert", "\"b\""),
        ("server.tls.key", "\"b\""),
        ("server.tls.client_ca", "\"b\""),
        ("cache.dir", "\"/b\""),
        ("upstream.endpoints", "[\"https://b.example\", \"https://a.example\"]"),
        ("upstream.anonymous", "\"never\""),
    ] {
        let (old, new) = (config(&with("", "")), config(&with(key, value)));
        let plan = Plan::of(&old, &new, most_connections(&old));
        assert_eq!(
            (plan.changed, plan.waiting),
            (vec![], vec![key.replace("upstream.", "upstream[0].")]),
            "{key}"
        );
        assert_eq!(plan.config, old, "{key}");
    }
    let (_, waiting) = told("", "[server.tls]\ncert = \"a\"\nkey = \"b\"\n");
    assert_eq!(waiting, ["server.tls.cert", "server.tls.key"]);
}

const ONE: &str = "[[upstream]]\nregistry = \"docker.io\"\n";
const TWO: &str = "[[upstream]]\nregistry = \"docker.io\"\n[[upstream]]\nregistry = \"quay.io\"\n";

#[test]
fn nothing_new() {
    assert_eq!(told("", ""), (vec![], vec![]));
    let swapped = "[[upstream]]\nregistry = \"quay.io\"\n[[upstream]]\nregistry = \"docker.io\"\n";
    assert_eq!(told(TWO, swapped), (vec![], vec![]), "the order of upstreams means nothing");
    let (old, new) = (config(TWO), config(swapped));
    assert_eq!(Plan::of(&old, &new, 1000).places, [Some(1), Some(0)]);
}

/// One that says nothing of its own goes by `[freshness]`, which has been named.
#[test]
fn freshness_is_named_once() {
    let (changed, _) = told(TWO, &format!("freshness.tag_ttl = \"1h\"\n{TWO}"));
    assert_eq!(changed, ["freshness.tag_ttl"]);
    let own = format!("{TWO}tag_ttl = \"2h\"\n");
    assert_eq!(told(TWO, &own).0, ["upstream[1].tag_ttl"]);
    assert_eq!(told(&own, &format!("freshness.tag_ttl = \"1h\"\n{own}")).0, ["freshness.tag_ttl"]);
    let plan = Plan::of(&config(TWO), &config(&own), 1000);
    assert_eq!(plan.config, config(&own));
}

#[test]
fn upstreams_that_come_and_go() {
    let moved = "[[upstream]]\nregistry = \"docker.io\"\ndeny = [\"a\"]\nhosts = [\"a.example\"]\n\
                 [[upstream]]\nregistry = \"ghcr.io\"\ndefault = true\n";
    let (changed, waiting) = told(TWO, moved);
    assert_eq!(changed, ["upstream[0].deny"]);
    assert_eq!(
        waiting,
        [
            "upstream[1] (ghcr.io is new)",
            "upstream (quay.io is gone)",
            "upstream[0].default",
            "upstream[0].hosts"
        ]
    );
    let plan = Plan::of(&config(TWO), &config(moved), 1000);
    assert_eq!(plan.places, [Some(0), None]);
    assert!(
        plan.config.upstreams[0].default,
        "requests that name no registry go on to mean one that is there"
    );
    // The default may move where both are there.
    let other = format!("{TWO}default = true\n");
    assert_eq!(told(TWO, &other), (vec!["upstream[0].default".into(), "upstream[1].default".into()], vec![]));
}

fn account(name: &str, more: &str) -> String {
    format!("[[upstream.account]]\nname = \"{name}\"\n{more}\n")
}

#[test]
fn accounts_that_come_and_go() {
    let docker = "docker_config = \"/a\"";
    let one = format!("{ONE}{}", account("one", docker));
    let narrowed = "docker_config = \"/b\"\nrepositories = [\"a/**\"]";
    let two = format!("{ONE}{}{}", account("two", docker), account("one", narrowed));
    let (changed, waiting) = told(&one, &two);
    assert_eq!(changed, ["upstream[0].account[1].docker_config"]);
    assert_eq!(waiting, ["upstream[0].account", "upstream[0].account[1].repositories"]);
    let plan = Plan::of(&config(&one), &config(&two), 1000);
    let accounts = &plan.config.upstreams[0].accounts;
    assert_eq!(accounts.len(), 1);
    assert_eq!(accounts[0].credentials, Credentials::DockerConfig { file: "/b".into() });
    assert_eq!(accounts[0].repositories, config(&one).upstreams[0].accounts[0].repositories);
}

#[test]
fn from_one_source_of_credentials_to_another() {
    let of = |credentials: &str| format!("{ONE}{}", account("one", credentials));
    let (old, new) = (of("docker_config = \"/a\""), of("credential_helper = \"docker-credential-x\""));
    let at =
        |keys: &[&str]| keys.iter().map(|key| format!("upstream[0].account[0].{key}")).collect::<Vec<_>>();
    assert_eq!(told(&old, &new), (at(&["docker_config", "credential_helper", "credential_ttl"]), vec![]));
    let new = of("username = \"u\"\npassword_env = \"P\"");
    assert_eq!(told(&old, &new), (at(&["username", "password_env", "docker_config"]), vec![]));
}

/// There is a thread for each blob that is fetched, and these are counted out at the start.
#[test]
fn connections_have_a_bound() {
    let of = |hub: usize, quay: usize| {
        config(&format!(
            "[[upstream]]\nregistry = \"docker.io\"\nmax_connections = {hub}\n\
             [[upstream]]\nregistry = \"quay.io\"\nmax_connections = {quay}\n"
        ))
    };
    let start = of(10, 20);
    let most = most_connections(&start);
    let plan = |hub, quay| Plan::of(&start, &of(hub, quay), most);
    assert_eq!(plan(266, 20).waiting, Vec::<String>::new());
    let over = plan(300, 10);
    assert_eq!(
        (over.changed, over.waiting),
        (vec!["upstream[1].max_connections".into()], vec!["upstream[0].max_connections".into()])
    );
    assert_eq!(over.config, of(10, 10));
    assert_eq!(plan(1, 285).config, of(1, 285), "what one gives up another may have");
}
