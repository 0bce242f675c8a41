//! What another configuration changes while the mirror runs: plain judgement over two configurations.
//!
//! There is one scheduler, one store and one table of flights as long as the process lives, so what they are laid out by
//! (addresses, the directory, the lists of upstreams, endpoints and accounts) holds until the next start. All else
//! takes effect at once. The tables below say which key is which; a test holds that every key stands in one of them.

use std::path::Path;

use crate::config::{self, Account, Config, Credentials, Freshness, Upstream, print_duration};

/// What another configuration comes to.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// What holds from now on. It has the upstreams, endpoints and accounts of the one that ran, in the same order.
    pub(super) config: Config,
    /// Where each of its upstreams stands in the new configuration.
    pub(super) places: Vec<Option<usize>>,
    /// Keys that say something new and take effect.
    pub(super) changed: Vec<String>,
    /// Keys that say something new and wait for the next start.
    pub(super) waiting: Vec<String>,
}

/// When a key that says something new takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    /// Sockets are bound, the store is open, ledgers are laid out.
    Restart,
    /// Now, unless its list gained or lost members: such keys share something out among them.
    WithItsList,
}

/// One key of a table.
struct Key<T> {
    name: &'static str,
    when: When,
    /// Takes over what the new configuration says; whether that is something new.
    take: fn(&mut T, &T) -> bool,
}

/// A key and the field that it is.
macro_rules! key {
    ($when:ident, $name:literal, $($field:ident).+) => {
        Key { name: $name, when: When::$when, take: |old, new| replace(&mut old.$($field).+, &new.$($field).+) }
    };
}

/// A key of the tables of a list, which is taken over as a whole by the last of them.
macro_rules! member {
    ($name:literal, $list:ident.$field:ident) => {
        Key {
            name: $name,
            when: When::Now,
            take: |old, new| {
                old.$list.iter().map(|own| &own.$field).ne(new.$list.iter().map(|own| &own.$field))
            },
        }
    };
}

macro_rules! last_member {
    ($name:literal, $list:ident.$field:ident) => {
        Key {
            name: $name,
            when: When::Now,
            take: |old, new| {
                let is_new =
                    old.$list.iter().map(|own| &own.$field).ne(new.$list.iter().map(|own| &own.$field));
                old.$list.clone_from(&new.$list);
                is_new
            },
        }
    };
}

/// A key of `server.tls`, which as a whole may be there or not.
macro_rules! tls_file {
    ($name:literal, $file:expr) => {
        Key {
            name: $name,
            when: When::Restart,
            take: |old, new| {
                let file: fn(&config::Tls) -> Option<&Path> = $file;
                old.server.tls.as_ref().and_then(file) != new.server.tls.as_ref().and_then(file)
            },
        }
    };
}

/// A key of an account's credentials, which are taken over as a whole.
macro_rules! credential {
    ($name:literal) => {
        Key {
            name: $name,
            when: When::Now,
            take: |old, new| said($name, &old.credentials) != said($name, &new.credentials),
        }
    };
}

const HOUSE: [Key<Config>; 31] = [
    key!(Now, "offline", offline),
    key!(Restart, "server.listen", server.listen),
    key!(Restart, "server.admin_listen", server.admin_listen),
    key!(Now, "server.drain_timeout", server.drain_timeout),
    key!(Now, "server.max_connections", server.max_connections),
    tls_file!("server.tls.cert", |tls| Some(&tls.cert)),
    tls_file!("server.tls.key", |tls| Some(&tls.key)),
    tls_file!("server.tls.client_ca", |tls| tls.client_ca.as_deref()),
    key!(Now, "admin.token_file", admin.token_file),
    key!(Restart, "cache.dir", cache.dir),
    key!(Now, "cache.max_size", cache.max_size),
    key!(Now, "cache.min_free", cache.min_free),
    key!(Now, "cache.scrub_every", cache.scrub_every),
    key!(Now, "cache.scrub_rate", cache.scrub_rate),
    key!(Now, "schedule.max_wait", schedule.max_wait),
    key!(Now, "schedule.reserve", schedule.reserve),
    key!(Now, "schedule.bandwidth", schedule.bandwidth),
    key!(Now, "log.format", log.format),
    key!(Now, "log.level", log.level),
    key!(Now, "log.audit", log.audit),
    key!(Restart, "trace.endpoint", trace.endpoint),
    key!(Restart, "trace.share", trace.share),
    member!("warm.name", warm.name),
    member!("warm.images", warm.images),
    member!("warm.newest", warm.newest),
    member!("warm.platforms", warm.platforms),
    member!("warm.referrers", warm.referrers),
    member!("warm.pin", warm.pin),
    member!("warm.every", warm.every),
    member!("warm.hours", warm.hours),
    last_member!("warm.bandwidth", warm.bandwidth),
];

/// Of `[freshness]`, and of each upstream.
const FRESHNESS: [Key<Freshness>; 5] = [
    key!(Now, "tag_ttl", tag_ttl),
    key!(Now, "stale_while_revalidate", stale_while_revalidate),
    key!(Now, "stale_if_error", stale_if_error),
    key!(Now, "negative_ttl", negative_ttl),
    key!(Now, "immutable_tags", immutable_tags),
];

const UPSTREAM: [Key<Upstream>; 22] = [
    // Upstreams are told apart by it: of one and the same it never changes.
    key!(Restart, "registry", registry),
    key!(WithItsList, "default", default),
    key!(Restart, "endpoints", endpoints),
    key!(WithItsList, "hosts", hosts),
    key!(Now, "allow", allow),
    key!(Now, "deny", deny),
    key!(Now, "max_connections", max_connections),
    key!(Now, "requests_per_second", requests_per_second),
    key!(Now, "bandwidth", bandwidth),
    key!(Now, "connect_timeout", connect_timeout),
    key!(Now, "response_timeout", response_timeout),
    key!(Now, "idle_timeout", idle_timeout),
    key!(Now, "read_ahead", read_ahead),
    key!(Now, "parallel_ranges", parallel_ranges),
    key!(Now, "ca", ca),
    key!(Now, "insecure", insecure),
    key!(Now, "proxy", proxy),
    key!(Now, "token_hosts", token_hosts),
    key!(Restart, "anonymous", anonymous),
    key!(Now, "probe", probe),
    member!("hold.tags", holds.tags),
    last_member!("hold.at", holds.at),
];

const ACCOUNT: [Key<Account>; 8] = [
    // As with an upstream's registry.
    key!(Restart, "name", name),
    key!(WithItsList, "repositories", repositories),
    credential!("username"),
    credential!("password_file"),
    credential!("password_env"),
    credential!("docker_config"),
    credential!("credential_helper"),
    credential!("credential_ttl"),
];

/// How many connections the upstreams may have together before the next start, where they had `count` at this one. Each
/// blob that is fetched has a thread; these are counted out at the start, and this many more can be spared.
pub(super) fn most_connections(config: &Config) -> usize {
    const SPARE: usize = 256;
    connections(config).saturating_add(SPARE)
}

impl Plan {
    /// What `new` changes of `running`, whose upstreams may have `most_connections` in all.
    pub(super) fn of(running: &Config, new: &Config, most_connections: usize) -> Plan {
        let mut plan = Plan {
            config: running.clone(),
            places: running.upstreams.iter().map(|upstream| place(new, upstream)).collect(),
            changed: Vec::new(),
            waiting: Vec::new(),
        };
        let mut config = running.clone();
        plan.take(&HOUSE, "", true, &mut config, new);
        plan.take(&FRESHNESS, "freshness.", true, &mut config.freshness, &new.freshness);
        plan.upstreams(&mut config, running, new);
        plan.keep_within(most_connections, &mut config, running);
        plan.config = config;
        plan
    }

    fn upstreams(&mut self, config: &mut Config, running: &Config, new: &Config) {
        let is_same_list = self.members(running, new);
        for (i, now) in config.upstreams.iter_mut().enumerate() {
            let Some(place) = self.places[i] else { continue };
            let (next, path) = (&new.upstreams[place], format!("upstream[{place}]."));
            self.take(&UPSTREAM, &path, is_same_list, now, next);
            for key in &FRESHNESS {
                // Where it says nothing of its own, before and after, `[freshness]` has been named.
                let is_inherited = !key.differs(&now.freshness, &running.freshness)
                    && !key.differs(&next.freshness, &new.freshness);
                if (key.take)(&mut now.freshness, &next.freshness) && !is_inherited {
                    self.changed.push(format!("{path}{}", key.name));
                }
            }
            self.accounts(now, next, &path);
        }
    }

    /// Upstreams that came or went. True when there are none; in which order they stand makes no difference.
    fn members(&mut self, running: &Config, new: &Config) -> bool {
        let before = self.waiting.len();
        for (j, upstream) in new.upstreams.iter().enumerate() {
            if place(running, upstream).is_none() {
                self.waiting.push(format!("upstream[{j}] ({} is new)", upstream.registry));
            }
        }
        for (upstream, place) in running.upstreams.iter().zip(&self.places) {
            if place.is_none() {
                self.waiting.push(format!("upstream ({} is gone)", upstream.registry));
            }
        }
        self.waiting.len() == before
    }

    fn accounts(&mut self, now: &mut Upstream, next: &Upstream, path: &str) {
        let names = |upstream: &Upstream| -> Vec<String> {
            upstream.accounts.iter().map(|account| account.name.clone()).collect()
        };
        // Of accounts with as much left the first one pays.
        let is_same_list = names(now) == names(next);
        if !is_same_list {
            self.waiting.push(format!("{path}account"));
        }
        for now in &mut now.accounts {
            let Some(place) = next.accounts.iter().position(|next| next.name == now.name) else { continue };
            let next = &next.accounts[place];
            self.take(&ACCOUNT, &format!("{path}account[{place}]."), is_same_list, now, next);
            now.credentials.clone_from(&next.credentials);
        }
    }

    /// Where there would be too many connections, those that asked for more wait for the next start.
    fn keep_within(&mut self, most: usize, config: &mut Config, running: &Config) {
        if connections(config) <= most {
            return;
        }
        for ((now, before), place) in config.upstreams.iter_mut().zip(&running.upstreams).zip(&self.places) {
            if let Some(place) = place.filter(|_| now.max_connections > before.max_connections) {
                now.max_connections = before.max_connections;
                let key = format!("upstream[{place}].max_connections");
                self.changed.retain(|changed| *changed != key);
                self.waiting.push(key);
            }
        }
    }

    fn take<T: Clone>(&mut self, keys: &[Key<T>], path: &str, is_same_list: bool, now: &mut T, next: &T) {
        for key in keys {
            let takes_effect = match key.when {
                When::Now => true,
                When::Restart => false,
                When::WithItsList => is_same_list,
            };
            let name = || format!("{path}{}", key.name);
            if !takes_effect {
                self.waiting.extend(key.differs(now, next).then(name));
            } else if (key.take)(now, next) {
                self.changed.push(name());
            }
        }
    }
}

impl<T: Clone> Key<T> {
    fn differs(&self, one: &T, other: &T) -> bool {
        (self.take)(&mut one.clone(), other)
    }
}

fn replace<T: Clone + PartialEq>(old: &mut T, new: &T) -> bool {
    let is_new = old != new;
    old.clone_from(new);
    is_new
}

fn place(config: &Config, upstream: &Upstream) -> Option<usize> {
    config.upstreams.iter().position(|other| other.registry == upstream.registry)
}

fn connections(config: &Config) -> usize {
    config.upstreams.iter().fold(0, |sum, upstream| sum.saturating_add(upstream.max_connections))
}

/// What credentials say at a key.
fn said(key: &str, credentials: &Credentials) -> Option<String> {
    let path = |path: &Path| Some(path.display().to_string());
    match (key, credentials) {
        (
            "username",
            Credentials::PasswordFile { username, .. } | Credentials::PasswordEnv { username, .. },
        ) => Some(username.clone()),
        ("password_file", Credentials::PasswordFile { file, .. }) => path(file),
        ("password_env", Credentials::PasswordEnv { variable, .. }) => Some(variable.clone()),
        ("docker_config", Credentials::DockerConfig { file }) => path(file),
        ("credential_helper", Credentials::Helper { program, .. }) => path(program),
        ("credential_ttl", Credentials::Helper { ttl, .. }) => Some(print_duration(*ttl)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
