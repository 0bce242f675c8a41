//! `[[upstream]]` and `[[upstream.account]]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::load::freshness;
use super::reader::Section;
use super::{Account, Config, Credentials, Freshness, Hold, Proxy, Upstream, kinds};
use crate::oci::RegistryHost;

/// A deadline of 0 would fail every request; an hour is longer than any answer takes.
const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

const CREDENTIAL_TTL: Duration = Duration::from_secs(15 * 60);

const SOURCES: [&str; 4] = ["password_file", "password_env", "docker_config", "credential_helper"];

/// The upstreams of the file. A list in the file stands in place of the built-in one.
pub(super) fn read(file: &mut Section<'_, '_>, global: &Freshness) -> Vec<Upstream> {
    let built_in = Config::default().upstreams;
    let mut defaults = Vec::new();
    let read = file.sections("upstream", |section, i| {
        defaults.push(section.optional("default", kinds::boolean));
        upstream(section, i, global, &built_in)
    });
    let mut upstreams = match read {
        Some(upstreams) => upstreams,
        None => {
            let with = |upstream| Upstream { freshness: global.clone(), ..upstream };
            return built_in.into_iter().map(with).collect();
        }
    };
    choose_default(&mut upstreams, &defaults);
    upstreams
}

/// Nobody has to write `default` for what is plain: docker.io, whose images are the ones that are written
/// without a registry, or the only upstream there is.
fn choose_default(upstreams: &mut [Upstream], written: &[Option<bool>]) {
    let hub = upstreams.iter().position(|upstream| upstream.registry.as_str() == "docker.io");
    let plain = if upstreams.len() == 1 { Some(0) } else { hub };
    let plain = plain.filter(|_| !written.contains(&Some(true)));
    for (i, (upstream, written)) in upstreams.iter_mut().zip(written).enumerate() {
        upstream.default = written.unwrap_or(plain == Some(i));
    }
}

fn upstream(section: &mut Section<'_, '_>, i: usize, global: &Freshness, built_in: &[Upstream]) -> Upstream {
    let what = "the registry as it stands in an image reference, such as docker.io";
    let registry = section.required("registry", what, kinds::registry).unwrap_or_else(|| nameless(i));
    let known = built_in.iter().find(|upstream| upstream.registry == registry);
    let absent = known.cloned().unwrap_or_else(|| Upstream::at(registry.clone(), Vec::new()));
    if known.is_none() {
        section.require("endpoints", "where the registry is, such as [\"https://registry.example\"]");
    }
    Upstream {
        default: false,
        endpoints: section.list("endpoints", absent.endpoints, kinds::endpoint),
        hosts: section.list("hosts", absent.hosts, kinds::host),
        allow: section.list("allow", absent.allow, kinds::glob),
        deny: section.list("deny", absent.deny, kinds::glob),
        max_connections: section.value("max_connections", absent.max_connections, kinds::count(1..=10_000)),
        requests_per_second: section.value(
            "requests_per_second",
            absent.requests_per_second,
            kinds::count(1..=1_000_000),
        ),
        bandwidth: section.value("bandwidth", absent.bandwidth, kinds::bandwidth),
        connect_timeout: deadline(section, "connect_timeout", absent.connect_timeout),
        response_timeout: deadline(section, "response_timeout", absent.response_timeout),
        idle_timeout: deadline(section, "idle_timeout", absent.idle_timeout),
        read_ahead: section.value("read_ahead", absent.read_ahead, kinds::boolean),
        parallel_ranges: section.value("parallel_ranges", absent.parallel_ranges, kinds::boolean),
        ca: section.optional("ca", kinds::path),
        insecure: section.value("insecure", absent.insecure, kinds::boolean),
        proxy: section.sealed("proxy", kinds::proxy).unwrap_or(Proxy::Environment),
        token_hosts: section.list("token_hosts", absent.token_hosts, kinds::host),
        freshness: freshness(section, global),
        anonymous: section.value("anonymous", absent.anonymous, kinds::anonymous),
        probe: section.optional("probe", kinds::probe).or(absent.probe),
        accounts: section.sections("account", |section, _| account(section)).unwrap_or_default(),
        holds: section.sections("hold", |section, _| hold(section)).unwrap_or_default(),
        registry,
    }
}

fn hold(section: &mut Section<'_, '_>) -> Hold {
    section.require("tags", "which ones, such as [\"library/postgres:16*\"]");
    let at = section.required("at", "as of when, such as 2026-11-01", kinds::instant);
    Hold { tags: section.list("tags", Vec::new(), kinds::glob), at: at.unwrap_or(SystemTime::UNIX_EPOCH) }
}

fn deadline(section: &mut Section<'_, '_>, key: &'static str, absent: Duration) -> Duration {
    section.value(key, absent, kinds::duration_within(DEADLINE))
}

/// Stands for a registry that could not be read, so that those behind it keep their places in messages.
fn nameless(i: usize) -> RegistryHost {
    format!("upstream-{i}.invalid").parse().expect("letters, a digit and a dot make a host")
}

/// What could not be read is empty, so that the accounts behind it keep their places in messages.
fn account(section: &mut Section<'_, '_>) -> Account {
    let name = section.required("name", "what logs and metrics call the account", kinds::account_name);
    let credentials = credentials(section).unwrap_or(Credentials::DockerConfig { file: PathBuf::new() });
    let absent = Account::new(name.unwrap_or_default(), credentials);
    Account { repositories: section.list("repositories", absent.repositories, kinds::glob), ..absent }
}

fn credentials(section: &mut Section<'_, '_>) -> Option<Credentials> {
    let present = SOURCES.iter().copied().filter(|source| section.has(source)).collect::<Vec<_>>();
    let username = section.optional("username", kinds::text);
    let password_file = section.optional("password_file", kinds::path);
    let password_env = section.sealed("password_env", kinds::variable);
    let docker_config = section.optional("docker_config", kinds::path);
    let helper = section.optional("credential_helper", kinds::helper);
    let ttl = section.optional("credential_ttl", kinds::duration);
    let [source] = present[..] else {
        let found = if present.is_empty() { "there is none".to_owned() } else { present.join(" and ") };
        section.fault("", format!("must have exactly one of {}: {found}", SOURCES.join(", ")));
        return None;
    };
    refuse_unused(section, source);
    match source {
        "password_file" => Some(Credentials::PasswordFile { username: username?, file: password_file? }),
        "password_env" => Some(Credentials::PasswordEnv { username: username?, variable: password_env? }),
        "docker_config" => Some(Credentials::DockerConfig { file: docker_config? }),
        _ => Some(Credentials::Helper { program: helper?, ttl: ttl.unwrap_or(CREDENTIAL_TTL) }),
    }
}

/// `username` goes with a password and nothing else, `credential_ttl` with a helper and nothing else.
fn refuse_unused(section: &mut Section<'_, '_>, source: &str) {
    let with_password = matches!(source, "password_file" | "password_env");
    match (with_password, section.has("username")) {
        (true, false) => section.fault("username", format!("is missing: whose password is in {source}")),
        (false, true) => section.fault("username", format!("has no use with {source}, which names the user")),
        _ => {}
    }
    if source != "credential_helper" && section.has("credential_ttl") {
        section.fault("credential_ttl", format!("has no use with {source}: it is for a credential_helper"));
    }
}
