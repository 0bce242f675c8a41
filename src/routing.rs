//! Which upstream and which repository a request means.
//!
//! In this order: `?ns=`; a `Host` listed under an upstream's `hosts`; a first path component that is the
//! registry of an upstream; the default upstream. Only configured upstreams can come out (I6): nothing of a
//! request is ever used as an address.

use crate::config::{Config, UpstreamId};
use crate::oci::{RegistryHost, Repository, RepositoryName};

/// What the configured upstreams are called.
#[derive(Debug)]
pub struct Router {
    upstreams: Vec<Names>,
    default: Option<UpstreamId>,
}

/// The result of routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whom to ask.
    pub upstream: UpstreamId,
    /// The repository, with the registry's name as configured.
    pub repository: Repository,
}

/// Why a request means no upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The request names a registry that is not configured.
    #[error("this mirror has no upstream for {0}; its configured upstreams are {1}")]
    UnknownRegistry(String, String),
    /// The request names no registry and no upstream is the default.
    #[error(
        "the request names no registry and this mirror has no default upstream; use ?ns= or a path such as /v2/docker.io/library/nginx/…"
    )]
    NoDefault,
}

#[derive(Debug)]
struct Names {
    registry: RegistryHost,
    /// Other names that `ns` may use for it: what its endpoints are called.
    aliases: Vec<String>,
    hosts: Vec<RegistryHost>,
}

/// Docker Hub, whose official images live in `library/` and whose namespaces hold no dots.
const HUB: &str = "docker.io";

impl Router {
    /// A router for the upstreams of `config`.
    pub fn new(config: &Config) -> Router {
        let upstreams = config.upstreams.iter().map(|upstream| {
            let endpoints = upstream.endpoints.iter().filter_map(|url| url.host_str()).map(str::to_owned);
            let hub = (upstream.registry.as_str() == HUB).then(|| "index.docker.io".to_owned());
            Names {
                registry: upstream.registry.clone(),
                aliases: endpoints.chain(hub).collect(),
                hosts: upstream.hosts.clone(),
            }
        });
        Router {
            upstreams: upstreams.collect(),
            default: config.upstreams.iter().position(|upstream| upstream.default).map(UpstreamId::new),
        }
    }

    /// Routes a request for `name`, given its `?ns=` and its `Host` header.
    ///
    /// # Errors
    /// [`NoRoute`] when only an upstream that is not configured could answer.
    pub fn route(
        &self,
        ns: Option<&RegistryHost>,
        host: Option<&str>,
        name: &RepositoryName,
    ) -> Result<Target, NoRoute> {
        if let Some(ns) = ns {
            // By its own name first: an endpoint of one upstream may be another upstream's registry.
            let upstream = self.find(|names| names.registry == *ns);
            let upstream = upstream.or_else(|| self.find(|names| names.has_alias(ns.as_str())));
            return upstream.map(|id| self.target(id, name.clone())).ok_or_else(|| self.unknown(ns.as_str()));
        }
        if let Some(id) = host.and_then(|host| self.by_host(host)) {
            return Ok(self.target(id, name.clone()));
        }
        let mut upstreams = self.upstreams.iter().enumerate();
        let within = upstreams.find_map(|(id, names)| Some((id, name.within(names.registry.as_str())?)));
        if let Some((id, rest)) = within {
            return Ok(self.target(UpstreamId::new(id), rest));
        }
        let id = self.default.ok_or(NoRoute::NoDefault)?;
        let first = name.components().next().unwrap_or_default();
        if self.upstreams[id.index()].registry.as_str() == HUB && first.contains('.') {
            // No namespace of Docker Hub holds a dot: this is a registry that was meant to be mirrored.
            return Err(self.unknown(first));
        }
        Ok(self.target(id, name.clone()))
    }

    /// The path under which clients reach `repository` here without `ns` and `Host`, as short as it can be;
    /// `None` where there is none: its registry is no upstream any more, or no path can name it.
    pub fn public_name(&self, repository: &Repository) -> Option<String> {
        let names = [repository.name.to_string(), repository.to_string()];
        names.into_iter().find(|name| {
            let target = name.parse().ok().and_then(|name| self.route(None, None, &name).ok());
            target.is_some_and(|target| target.repository == *repository)
        })
    }

    fn target(&self, upstream: UpstreamId, name: RepositoryName) -> Target {
        let registry = self.upstreams[upstream.index()].registry.clone();
        let name = if registry.as_str() == HUB { name.in_library() } else { name };
        Target { upstream, repository: Repository { registry, name } }
    }

    fn by_host(&self, host: &str) -> Option<UpstreamId> {
        let without_port = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let is_it = |own: &RegistryHost| {
            own.as_str().eq_ignore_ascii_case(host) || own.as_str().eq_ignore_ascii_case(without_port)
        };
        self.find(|names| names.hosts.iter().any(is_it))
    }

    fn find(&self, is_it: impl Fn(&Names) -> bool) -> Option<UpstreamId> {
        self.upstreams.iter().position(is_it).map(UpstreamId::new)
    }

    fn unknown(&self, registry: &str) -> NoRoute {
        let known: Vec<&str> = self.upstreams.iter().map(|names| names.registry.as_str()).collect();
        NoRoute::UnknownRegistry(registry.to_owned(), known.join(", "))
    }
}

impl Names {
    fn has_alias(&self, name: &str) -> bool {
        self.aliases.iter().any(|alias| alias == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(ns: Option<&str>, host: Option<&str>, name: &str) -> Result<String, NoRoute> {
        let mut config = Config::default();
        config.upstreams[1].hosts = vec!["ghcr.mirror.test".parse().expect("a host")];
        let ns = ns.map(|ns| ns.parse().expect("a host"));
        let name = name.parse().expect("a name");
        Router::new(&config).route(ns.as_ref(), host, &name).map(|target| target.repository.to_string())
    }

    #[test]
    fn by_the_table() {
        let table = [
            (None, None, "nginx", "docker.io/library/nginx"),
            (None, None, "org/app", "docker.io/org/app"),
            (None, None, "ghcr.io/org/app", "ghcr.io/org/app"),
            (None, None, "docker.io/nginx", "docker.io/library/nginx"),
            (Some("quay.io"), None, "org/app", "quay.io/org/app"),
            (Some("docker.io"), None, "nginx", "docker.io/library/nginx"),
            (Some("registry-1.docker.io"), None, "nginx", "docker.io/library/nginx"),
            (Some("index.docker.io"), None, "nginx", "docker.io/library/nginx"),
            // `ns` wins over the host, the host over the path.
            (Some("quay.io"), Some("ghcr.mirror.test"), "ghcr.io/a", "quay.io/ghcr.io/a"),
            (None, Some("GHCR.mirror.test:5000"), "docker.io/a", "ghcr.io/docker.io/a"),
            (None, Some("127.0.0.1:5000"), "nginx", "docker.io/library/nginx"),
        ];
        for (ns, host, name, expected) in table {
            assert_eq!(route(ns, host, name).as_deref(), Ok(expected), "{ns:?} {host:?} {name}");
        }
    }

    #[test]
    fn a_public_name_leads_back() {
        let router = Router::new(&Config::default());
        let name = |repository: &str| router.public_name(&repository.parse().expect("a repository"));
        assert_eq!(name("docker.io/library/nginx").as_deref(), Some("library/nginx"));
        assert_eq!(name("ghcr.io/org/app").as_deref(), Some("ghcr.io/org/app"));
        assert_eq!(name("docker.io/ghcr.io/app").as_deref(), Some("docker.io/ghcr.io/app"));
        assert_eq!(name("docker.io/dotted.name/app").as_deref(), Some("docker.io/dotted.name/app"));
        assert_eq!(name("unknown.example/app"), None);
        assert_eq!(name("unknown.example:5000/app"), None);
    }

    #[test]
    fn a_registry_that_is_also_an_endpoint_of_another() {
        let mut config = Config::default();
        config.upstreams[0].endpoints.insert(0, "https://ghcr.io".parse().expect("a URL"));
        let ns = "ghcr.io".parse().expect("a host");
        let target = Router::new(&config).route(Some(&ns), None, &"org/app".parse().expect("a name"));
        assert_eq!(target.expect("a route").repository.to_string(), "ghcr.io/org/app");
    }

    #[test]
    fn only_configured_upstreams() {
        assert!(matches!(route(Some("evil.test"), None, "a"), Err(NoRoute::UnknownRegistry(..))));
        assert!(matches!(route(None, None, "evil.test/a"), Err(NoRoute::UnknownRegistry(..))));
        let mut config = Config::default();
        config.upstreams[0].default = false;
        let name = "nginx".parse().expect("a name");
        assert_eq!(Router::new(&config).route(None, None, &name), Err(NoRoute::NoDefault));
    }
}
