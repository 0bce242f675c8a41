//! Faults that no value has by itself: what does not go together.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use url::Url;

use super::load::Objections;
use super::{Anonymous, Config, Upstream, Warm};

/// Everything that does not go together, as key path and message.
pub(super) fn check(config: &Config) -> Objections {
    let mut found = Objections::new();
    listeners(config, &mut found);
    one_default(&config.upstreams, &mut found);
    names(&config.upstreams, &mut found);
    for (i, upstream) in config.upstreams.iter().enumerate() {
        endpoints(config, upstream, i, &mut found);
        one_upstream(upstream, i, &mut found);
    }
    for (i, warm) in config.warm.iter().enumerate() {
        one_warm(config, warm, i, &mut found);
    }
    found
}

fn listeners(config: &Config, found: &mut Objections) {
    let server = &config.server;
    if server.listen.is_empty() {
        object(found, "server.listen", "must name at least one address: clients could not connect");
    }
    for (i, address) in server.listen.iter().enumerate() {
        let earlier = server.listen[..i].iter().position(|other| overlap(*other, *address));
        if let Some(earlier) = earlier {
            let message = format!("must differ from server.listen[{earlier}] in address or port");
            object(found, format!("server.listen[{i}]"), message);
        }
        if overlap(*address, server.admin_listen) {
            let message = format!(
                "must differ from {}, where clients connect: metrics and the operator's API are not for them",
                at(&format!("server.listen[{i}]"), address)
            );
            object(found, "server.admin_listen", message);
        }
    }
}

/// Whether both cannot be bound, or reach the same listener. Port 0 is any free port.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // `[::]` takes IPv4 too: the server binds both.
    let covers = |wide: SocketAddr, narrow: SocketAddr| {
        wide.ip() == narrow.ip() || (wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4()))
    };
    one.port() != 0 && one.port() == other.port() && (covers(one, other) || covers(other, one))
}

fn one_default(upstreams: &[Upstream], found: &mut Objections) {
    let defaults: Vec<usize> = (0..upstreams.len()).filter(|i| upstreams[*i].default).collect();
    match defaults[..] {
        _ if upstreams.is_empty() => object(found, "upstream", "must name at least one registry"),
        [] => object(
            found,
            "upstream",
            "must have `default = true` at one registry: it takes the requests that name none",
        ),
        [first, ref more @ ..] => {
            for i in more {
                let message = format!("must be the only default, but upstream[{first}] is one too");
                object(found, format!("upstream[{i}].default"), message);
            }
        }
    }
}

/// A request's host or registry must lead to one upstream.
fn names(upstreams: &[Upstream], found: &mut Objections) {
    let mut registries: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, upstream) in upstreams.iter().enumerate() {
        if let Some(first) = registries.get(upstream.registry.as_str()) {
            let message = format!("must stand only once, but upstream[{first}] has it too");
            object(found, format!("upstream[{i}].registry"), message);
        }
        registries.entry(upstream.registry.as_str()).or_insert(i);
    }
    let mut hosts: BTreeMap<&str, String> = BTreeMap::new();
    for (i, upstream) in upstreams.iter().enumerate() {
        for (j, host) in upstream.hosts.iter().enumerate() {
            let key = format!("upstream[{i}].hosts[{j}]");
            if let Some(owner) = registries.get(host.as_str()).filter(|owner| **owner != i) {
                object(found, key.as_str(), format!("must not be the registry of upstream[{owner}]"));
            } else if let Some(first) = hosts.get(host.as_str()) {
                object(found, key.as_str(), format!("must stand only once, but {first} is the same"));
            }
            hosts.entry(host.as_str()).or_insert(key);
        }
    }
}

fn endpoints(config: &Config, upstream: &Upstream, i: usize, found: &mut Objections) {
    if upstream.endpoints.is_empty() {
        object(found, format!("upstream[{i}].endpoints"), "must name at least one endpoint");
    }
    for (j, endpoint) in upstream.endpoints.iter().enumerate() {
        let key = format!("upstream[{i}].endpoints[{j}]");
        if upstream.endpoints[..j].contains(endpoint) {
            object(found, key, "must stand only once: asking the same endpoint again helps nobody");
        } else if let Some(own) = config.server.listen.iter().find(|own| is_self(endpoint, **own)) {
            object(found, key, format!("must not be this mirror itself, which listens on {own}"));
        }
    }
}

/// Whether the endpoint is one of our own listeners, as far as the text tells: requests would go in circles.
fn is_self(endpoint: &Url, own: SocketAddr) -> bool {
    let host = endpoint.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let is_loopback = host == "localhost" || address.is_some_and(|address| address.is_loopback());
    let reaches = address == Some(own.ip())
        || (is_loopback && (own.ip().is_unspecified() || (host == "localhost" && own.ip().is_loopback())));
    endpoint.port_or_known_default() == Some(own.port()) && reaches
}

fn one_upstream(upstream: &Upstream, i: usize, found: &mut Objections) {
    if upstream.allow.is_empty() {
        let message = "must not be empty: nothing could be pulled; [\"**\"] is everything";
        object(found, format!("upstream[{i}].allow"), message);
    }
    if upstream.insecure && upstream.ca.is_some() {
        let message = "has no use with `insecure = true`, which verifies nothing";
        object(found, format!("upstream[{i}].ca"), message);
    }
    if upstream.anonymous == Anonymous::Never && upstream.accounts.is_empty() {
        let message = "has no use without an [[upstream.account]]: everything is anonymous then";
        object(found, format!("upstream[{i}].anonymous"), message);
    }
    for (j, hold) in upstream.holds.iter().enumerate() {
        if hold.tags.is_empty() {
            let message = "must not be empty: nothing would be held; [\"**\"] is everything";
            object(found, format!("upstream[{i}].hold[{j}].tags"), message);
        }
    }
    for (j, account) in upstream.accounts.iter().enumerate() {
        if account.repositories.is_empty() {
            let message = "must not be empty: the account would be for nothing; [\"**\"] is everything";
            object(found, format!("upstream[{i}].account[{j}].repositories"), message);
        }
        let earlier = upstream.accounts[..j].iter().position(|other| other.name == account.name);
        if let Some(earlier) = earlier {
            let message = format!("must stand only once, but upstream[{i}].account[{earlier}] has it too");
            object(found, format!("upstream[{i}].account[{j}].name"), message);
        }
    }
}

fn one_warm(config: &Config, warm: &Warm, i: usize, found: &mut Objections) {
    if let Some(earlier) = config.warm[..i].iter().position(|other| other.name == warm.name) {
        let message = format!("must stand only once, but warm[{earlier}] has it too");
        object(found, format!("warm[{i}].name"), message);
    }
    if warm.images.is_empty() {
        object(found, format!("warm[{i}].images"), "must not be empty: nothing would be fetched");
    }
    if warm.newest.is_some() && warm.images.iter().all(|wish| wish.tags.is_none()) {
        let message = "has no use without a pattern among `images`, such as \"postgres:16*\"";
        object(found, format!("warm[{i}].newest"), message);
    }
    for (j, wish) in warm.images.iter().enumerate() {
        let registry = &wish.image.registry;
        if !config.upstreams.iter().any(|upstream| upstream.registry == *registry) {
            let message = format!("must be of a registry that is mirrored: {registry} is no [[upstream]]");
            object(found, format!("warm[{i}].images[{j}]"), message);
        }
    }
}

fn at(key: &str, value: &impl std::fmt::Display) -> String {
    format!("{key} ({value})")
}

fn object(found: &mut Objections, key: impl Into<String>, message: impl Into<String>) {
    found.push((key.into(), message.into()));
}
