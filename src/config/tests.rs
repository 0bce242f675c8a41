//! Loading as a whole: what is refused and how it is told, what overrides what, what survives printing.

use std::ffi::OsString;

use proptest::prelude::{prop_assert_eq, proptest};

use super::*;

mod faults;

fn load(text: &str) -> Result<Config, Faults> {
    Config::from_toml("t.toml", text)
}

fn loaded(text: &str) -> Config {
    load(text).unwrap_or_else(|faults| panic!("\n{faults}\n{text}"))
}

fn told(text: &str) -> Vec<String> {
    let faults = load(text).expect_err(text);
    faults.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn nothing_written_is_the_default() {
    assert_eq!(loaded(""), Config::default());
    assert_eq!(Config::load(None, &Overrides::default()), Ok(Config::default()));
}

#[test]
fn all_faults_in_one_run() {
    let text = "\
[server]
listen = \"127.0.0.1:5000\"
listne = [\"127.0.0.1:5000\"]
[freshness]
tag_ttl = 5
[[upstream]]
registry = \"docker.io\"
max_connections = 0
[[upstream]]
endpoints = [\"ftp://x\", \"https://ok.example\"]
";
    assert_eq!(
        told(text),
        [
            "t.toml:2: server.listen = \"127.0.0.1:5000\" must be a list in brackets, even of one: [ … ]",
            "t.toml:3: server.listne is not a key: did you mean server.listen?",
            "t.toml:5: freshness.tag_ttl = 5 must be a duration such as 0s, 500ms, 30s, 5m, 6h, 7d or 1h30m",
            "t.toml:8: upstream[0].max_connections = 0 must be a whole number from 1 to 10000",
            "t.toml:9: upstream[1].registry is missing: the registry as it stands in an image reference, such as \
             docker.io",
            "t.toml:10: upstream[1].endpoints[0] = \"ftp://x\" must be http:// or https://, a host and perhaps a \
             port, without path, query or credentials, such as https://registry-1.docker.io",
        ]
    );
}

#[test]
fn a_built_in_registry_needs_only_its_name() {
    let config = loaded("[[upstream]]\nregistry = \"ghcr.io\"\n[[upstream]]\nregistry = \"docker.io\"\n");
    let built_in = Config::default().upstreams;
    assert_eq!(config.upstreams, [built_in[1].clone(), built_in[0].clone()]);
    let config = loaded("[[upstream]]\nregistry = \"quay.io\"\n");
    assert!(config.upstreams.len() == 1 && config.upstreams[0].default, "alone, it is the default");
    let config = loaded(
        "[[upstream]]\nregistry = \"docker.io\"\n[[upstream]]\nregistry = \"quay.io\"\ndefault = true\n",
    );
    assert_eq!(config.upstreams.iter().map(|each| each.default).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn only_docker_hub_is_probed_unasked() {
    let config = loaded(
        "[[upstream]]\nregistry = \"docker.io\"\n[[upstream]]\nregistry = \"quay.io\"\n\
         [[upstream]]\nregistry = \"r.example\"\nendpoints = [\"https://r.example\"]\nprobe = \"a/b:1\"\n",
    );
    let probes = config.upstreams.iter().map(|each| each.probe.as_ref().map(Probe::to_string));
    let expected = [Some("ratelimitpreview/test:latest"), None, Some("a/b:1")];
    assert_eq!(probes.collect::<Vec<_>>(), expected.map(|probe| probe.map(str::to_owned)));
}

#[test]
fn accounts_are_all_there_is_only_where_that_is_written() {
    let account = "[[upstream.account]]\nname = \"a\"\ndocker_config = \"/d\"\n";
    for (keys, expected) in [
        (String::new(), true),
        (account.to_owned(), true),
        (format!("anonymous = \"last\"\n{account}"), true),
        (format!("anonymous = \"never\"\n{account}"), false),
    ] {
        let config = loaded(&format!("[[upstream]]\nregistry = \"docker.io\"\n{keys}"));
        assert_eq!(config.upstreams[0].may_go_anonymous(), expected, "{keys}");
    }
}

/// Each key is named where it stands, behind accounts that could not be read too.
#[test]
fn accounts_keep_their_places() {
    let text = "\
[[upstream]]
registry = \"docker.io\"
[[upstream.account]]
name = \"no name\"
docker_config = \"x\"
[[upstream.account]]
name = \"b\"
docker_config = \"y\"
repositories = []
";
    let told = told(text);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("t.toml:4: upstream[0].account[0].name = \"no name\" must be"), "{told:#?}");
    assert!(told[1].starts_with("t.toml:9: upstream[0].account[1].repositories = [] must"), "{told:#?}");
}

#[test]
fn an_upstream_overrides_freshness_key_by_key() {
    let config = loaded(
        "freshness.tag_ttl = \"1m\"\nfreshness.negative_ttl = \"1s\"\n\
         [[upstream]]\nregistry = \"docker.io\"\ntag_ttl = \"2m\"\n[[upstream]]\nregistry = \"quay.io\"\n",
    );
    let first = Freshness { tag_ttl: Duration::from_secs(120), ..config.freshness.clone() };
    assert_eq!(config.upstreams[0].freshness, first);
    assert_eq!(config.upstreams[1].freshness, config.freshness);
    let built_in = loaded("freshness.tag_ttl = \"1m\"");
    assert!(built_in.upstreams.iter().all(|upstream| upstream.freshness == built_in.freshness));
}

#[test]
fn flag_over_environment_over_file() {
    let variable = |name: &str| match name {
        "TIDELOCK_LISTEN" => Some(OsString::from("127.0.0.1:1, [::1]:2")),
        "TIDELOCK_MAX_SIZE" => Some(OsString::from("1GiB")),
        "TIDELOCK_OFFLINE" => Some(OsString::from("yes")),
        "TIDELOCK_CACHE_DIR" => Some(OsString::new()),
        _ => None,
    };
    let mut overrides = Overrides::default();
    overrides.flag(Setting::MaxSize, ["2GiB"]);
    overrides.flag(Setting::AdminListen, None::<OsString>);
    overrides.environment(variable);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(
        file.path(),
        "cache = { max_size = \"3GiB\", dir = \"/x\" }\nserver.listen = [\"127.0.0.1:3\"]\n",
    )
    .expect("written");
    let config = Config::load(Some(file.path()), &overrides).expect("it is right");
    assert_eq!(config.server.listen.iter().map(SocketAddr::port).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(config.cache.max_size, SizeLimit::Bytes(ByteSize(2 << 30)));
    assert_eq!(config.cache.dir, PathBuf::from("/x"));
    assert!(config.offline);
}

#[test]
fn faults_of_overrides_name_flag_or_variable() {
    let mut overrides = Overrides::default();
    overrides.flag(Setting::Listen, ["127.0.0.1:5001", "x"]);
    overrides.environment(|name| (name == "TIDELOCK_OFFLINE").then(|| OsString::from("maybe")));
    let faults = Config::load(None, &overrides).expect_err("two are wrong");
    let told = faults.to_string();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "--listen: server.listen[1] = \"x\" must be an IP address with a port, such as 127.0.0.1:5000, \
             0.0.0.0:5000 or [::]:5000",
            "TIDELOCK_OFFLINE: offline = \"maybe\" must be true or false",
            "server.admin_listen must differ from server.listen[0] (127.0.0.1:5001), where clients connect: \
             metrics and the operator's API are not for them",
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read() {
    let faults = Config::load(Some(std::path::Path::new("/nowhere/t.toml")), &Overrides::default());
    let told = faults.expect_err("there is none").to_string();
    assert!(told.starts_with("/nowhere/t.toml: cannot be read: No such file"), "{told}");
}

const RICH: &str = r#"
offline = true
[server]
listen = ["0.0.0.0:5000", "[::1]:5002"]
tls = { cert = "/c", key = '/k "quoted"', client_ca = "/a" }
drain_timeout = "1h30m"
[cache]
dir = "/x y/ä"
max_size = "80%"
min_free = 123
[freshness]
immutable_tags = ["v*", "*@*"]
tag_ttl = "0s"
[log]
format = "json"
level = "info,tidelock::upstream=debug"
[[upstream]]
registry = "docker.io"
endpoints = ["https://mirror.example:8443", "https://registry-1.docker.io"]
hosts = ["hub.example"]
proxy = "http://proxy:3128"
ca = "/ca"
token_hosts = ["login.example"]
stale_if_error = "1w"
negative_ttl = "250ms"
immutable_tags = []
deny = ["**/secret"]
read_ahead = false
anonymous = "never"
probe = "org/probe:v1"
[[upstream.account]]
name = "a"
username = "u"
password_file = "/p"
repositories = ["org/**", "library/*"]
[[upstream.account]]
name = "b"
username = "u"
password_env = "P"
[[upstream.account]]
name = "c"
docker_config = "/d"
[[upstream.account]]
name = "d"
credential_helper = "docker-credential-x"
credential_ttl = "1m"
[[upstream]]
registry = "registry.example:5000"
endpoints = ["http://10.0.0.1:5000"]
proxy = "none"
insecure = true
"#;

#[test]
fn what_is_printed_loads_to_the_same() {
    for config in [Config::default(), loaded(RICH)] {
        let printed = config.to_toml();
        assert_eq!(loaded(&printed), config, "{printed}");
    }
}

#[test]
fn passwords_are_not_printed() {
    let config = loaded("[[upstream]]\nregistry = \"docker.io\"\nproxy = \"http://u:hunter2@proxy:3128\"\n");
    let printed = config.to_toml();
    assert!(
        printed.contains("proxy = \"http://***@proxy:3128\"") && !printed.contains("hunter2"),
        "{printed}"
    );
}

#[test]
fn advice_is_given_where_it_is_due() {
    assert!(Config::default().advice().is_empty());
    let config = loaded(&format!("{RICH}response_timeout = \"1m\"\n[schedule]\nmax_wait = \"1m\"\n"));
    let keys: Vec<String> = config.advice().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["schedule.max_wait", "upstream[1].insecure", "upstream[1].response_timeout"]);
}

/// Whatever stands where a value should, the answer is a configuration or faults with their lines.
#[test]
fn every_value_may_be_of_any_kind() {
    let lines: Vec<&str> = RICH.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        for value in [
            "0",
            "-1",
            "1.5",
            "true",
            "\"\"",
            "\"~\"",
            "[]",
            "[1]",
            "[[]]",
            "{}",
            "2020-01-01",
            "99999999999999999999",
        ] {
            let replaced = format!("{key} = {value}");
            let text = [&lines[..i], &[replaced.as_str()], &lines[i + 1..]].concat().join("\n");
            if let Err(faults) = load(&text) {
                assert!(faults.iter().all(|fault| fault.place.is_some()), "{replaced}\n{faults}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_text_is_too_strange(text in "([\\[\\]{}=\"'.,\\\\ \n#~a-c0-9é]|upstream|account|listen|registry|server){0,40}") {
        if let Err(faults) = load(&text) {
            prop_assert_eq!(faults.to_string().lines().count(), faults.iter().count());
        }
    }
}
