//! What holds where the operator wrote nothing. `config.example.toml` shows the same, and a test compares.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{
    Account, Admin, Anonymous, Bandwidth, ByteSize, Cache, Config, Credentials, Freshness, Glob, Log,
    LogFormat, Probe, Proxy, Schedule, Server, Share, SizeLimit, Trace, Upstream,
};
use crate::oci::RegistryHost;

/// The public registries that are mirrored unless the file names others, with their endpoints.
const REGISTRIES: [(&str, &str); 7] = [
    ("docker.io", "https://registry-1.docker.io"),
    ("ghcr.io", "https://ghcr.io"),
    ("quay.io", "https://quay.io"),
    ("registry.k8s.io", "https://registry.k8s.io"),
    ("gcr.io", "https://gcr.io"),
    ("mcr.microsoft.com", "https://mcr.microsoft.com"),
    ("public.ecr.aws", "https://public.ecr.aws"),
];

impl Default for Config {
    fn default() -> Self {
        let upstreams = REGISTRIES.map(|(registry, endpoint)| {
            let hub = registry == "docker.io";
            Upstream {
                default: hub,
                probe: hub.then(hub_probe),
                ..Upstream::at(host(registry), vec![url(endpoint)])
            }
        });
        Config {
            offline: false,
            server: Server::default(),
            admin: Admin::default(),
            cache: Cache::default(),
            freshness: Freshness::default(),
            schedule: Schedule::default(),
            log: Log::default(),
            trace: Trace::default(),
            upstreams: upstreams.into(),
            warm: Vec::new(),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server {
            listen: vec![loopback(5000)],
            admin_listen: loopback(5001),
            drain_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            tls: None,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Cache {
            dir: default_dir(),
            max_size: SizeLimit::Bytes(ByteSize(50 << 30)),
            min_free: ByteSize(2 << 30),
            scrub_every: Duration::from_secs(30 * 24 * 3600),
            scrub_rate: ByteSize(20 << 20),
        }
    }
}

impl Default for Freshness {
    fn default() -> Self {
        Freshness {
            tag_ttl: Duration::from_secs(5 * 60),
            stale_while_revalidate: Duration::from_secs(3600),
            stale_if_error: Duration::from_secs(7 * 86_400),
            negative_ttl: Duration::from_secs(10),
            immutable_tags: Vec::new(),
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { max_wait: Duration::from_secs(15), reserve: Share(20), bandwidth: Bandwidth::default() }
    }
}

impl Default for Trace {
    fn default() -> Self {
        Trace { endpoint: None, share: Share(100) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { format: LogFormat::Text, level: "info".to_owned(), audit: None }
    }
}

impl Upstream {
    /// An upstream with nothing but its name and endpoints set.
    pub fn at(registry: RegistryHost, endpoints: Vec<url::Url>) -> Upstream {
        Upstream {
            registry,
            default: false,
            endpoints,
            hosts: Vec::new(),
            allow: everything(),
            deny: Vec::new(),
            max_connections: 32,
            requests_per_second: 50,
            bandwidth: Bandwidth::default(),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(20),
            read_ahead: true,
            parallel_ranges: true,
            ca: None,
            insecure: false,
            proxy: Proxy::Environment,
            token_hosts: Vec::new(),
            freshness: Freshness::default(),
            accounts: Vec::new(),
            anonymous: Anonymous::Last,
            probe: None,
            holds: Vec::new(),
        }
    }
}

impl Account {
    /// An account with nothing but its name and credentials set.
    pub fn new(name: impl Into<String>, credentials: Credentials) -> Account {
        Account { name: name.into(), credentials, repositories: everything() }
    }
}

/// `$XDG_CACHE_HOME/tidelock`, or `~/.cache/tidelock`; `/var/cache/tidelock` for root, whose home is seldom
/// the place for 50 GiB.
fn default_dir() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(cache) = absolute("XDG_CACHE_HOME") {
        return cache.join("tidelock");
    }
    match absolute("HOME") {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".cache/tidelock"),
        _ => PathBuf::from("/var/cache/tidelock"),
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn host(text: &str) -> RegistryHost {
    text.parse().expect("the table above holds registry hosts")
}

fn url(text: &str) -> url::Url {
    text.parse().expect("the table above holds URLs")
}

/// The image that Docker made to ask about.
fn hub_probe() -> Probe {
    "ratelimitpreview/test:latest".parse().expect("a repository and a tag")
}

fn everything() -> Vec<Glob> {
    vec!["**".parse().expect("`**` is a pattern")]
}
