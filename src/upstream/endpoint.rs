//! One endpoint of an upstream, and what is remembered of it.

use std::sync::Mutex;

use http::HeaderMap;
use tokio::sync::OnceCell;
use url::Url;

use super::address::{is_private, is_private_host};
use super::challenge::Challenge;
use super::quota::{self, Reading};
use super::trust::host_of;
use super::wire::{Reach, Wire};
use crate::lifecycle;
use crate::oci::RegistryHost;
use crate::scheduler::Told;

/// A base URL that requests go to.
#[derive(Debug)]
pub(super) struct Endpoint {
    base: Url,
    /// Host and port, for errors.
    pub(super) host: String,
    /// Its place in the configuration.
    pub(super) place: usize,
    /// The last one, whose word is final.
    pub(super) is_origin: bool,
    /// The registry, for whoever stands in for it: a mirror has several.
    ns: Option<String>,
    // A std lock: held for a clone, never over an await.
    challenge: Mutex<Option<Challenge>>,
    is_public: OnceCell<bool>,
    /// What was odd about its quota headers, so that it is logged once.
    odd: Mutex<Option<&'static str>>,
}

impl Endpoint {
    /// The last of the endpoints is the origin.
    pub(super) fn new(registry: &RegistryHost, base: &Url, place: usize, is_origin: bool) -> Endpoint {
        Endpoint {
            base: base.clone(),
            host: host_of(base),
            place,
            is_origin,
            ns: (!is_itself(registry, base)).then(|| registry.to_string()),
            challenge: Mutex::new(None),
            is_public: OnceCell::new(),
            odd: Mutex::new(None),
        }
    }

    /// What the headers of its answer say of a quota. What is absurd in them is left out, and logged once.
    pub(super) fn told(&self, headers: &HeaderMap) -> Option<Told> {
        let Reading { told, odd } = quota::read(headers, lifecycle::now());
        if let Some(odd) = odd.filter(|odd| self.is_news(odd)) {
            tracing::warn!(endpoint = self.host, odd, "the upstream tells a pull quota that cannot be right");
        }
        // There is a quota then, though nothing is known of it: that is not the same as none.
        told.or_else(|| odd.map(|_| Told::default()))
    }

    fn is_news(&self, odd: &'static str) -> bool {
        self.odd.lock().expect("nothing panics while holding this lock").replace(odd) != Some(odd)
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// The URL of a path with its query; a mirror is told which registry is meant, as containerd tells it
    /// (distribution-spec, "Registry Proxying"). A path is never read as a reference, which could name another host
    /// (`//host/…`): some come out of the upstream's own links.
    pub(super) fn url(&self, path: &str) -> Url {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut url = self.base.clone();
        url.set_path(path);
        url.set_query(query);
        let has_ns = url.query_pairs().any(|(key, _)| key == "ns");
        if let Some(ns) = self.ns.as_deref().filter(|_| !has_ns) {
            url.query_pairs_mut().append_pair("ns", ns);
        }
        url
    }

    /// What the endpoint asked for the last time that it asked for something.
    pub(super) fn challenge(&self) -> Option<Challenge> {
        self.challenge.lock().expect("nothing panics while holding this lock").clone()
    }

    /// Remembers what the endpoint asks for, so that the next request carries it at once.
    pub(super) fn remember(&self, challenge: Challenge) {
        *self.challenge.lock().expect("nothing panics while holding this lock") = Some(challenge);
    }

    /// Forgets it: the next request asks as if it were the first.
    pub(super) fn forget(&self) {
        *self.challenge.lock().expect("nothing panics while holding this lock") = None;
    }

    /// How far a request to `target` may reach, when this endpoint is who named it (I6).
    pub(super) async fn reach(&self, target: &Url, wire: &Wire) -> Reach {
        if target.host() == self.base.host() || !self.is_public(wire).await {
            Reach::Anywhere
        } else {
            Reach::PublicOnly
        }
    }

    /// Whether the endpoint is anywhere but on a network of one's own. Where a proxy resolves names, or none
    /// resolves now, a name counts as public; only a resolved answer is remembered.
    async fn is_public(&self, wire: &Wire) -> bool {
        if is_private_host(&self.base) {
            return false;
        }
        if wire.is_proxied(&self.base) {
            return true;
        }
        let resolved = self.is_public.get_or_try_init(|| async {
            let host = self.base.host_str().unwrap_or_default();
            let port = self.base.port_or_known_default().unwrap_or_default();
            let looking = tokio::net::lookup_host((host, port));
            let mut addresses = wire.in_time(looking).await.and_then(Result::ok).ok_or(())?;
            Ok::<bool, ()>(addresses.any(|address| !is_private(address.ip())))
        });
        resolved.await.copied().unwrap_or(true)
    }
}

/// Whether it is the registry's own server: by its name, or one below it as `registry-1.docker.io` is.
fn is_itself(registry: &RegistryHost, base: &Url) -> bool {
    let host = host_of(base);
    let above = host.strip_suffix(registry.as_str());
    above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(name: &str) -> RegistryHost {
        name.parse().unwrap()
    }

    #[test]
    fn a_mirror_is_told_which_registry_is_meant() {
        let url = |name: &str, base: &str, path: &str| {
            Endpoint::new(&registry(name), &base.parse().unwrap(), 0, true).url(path).to_string()
        };
        for (name, base) in [
            ("docker.io", "https://registry-1.docker.io"),
            ("ghcr.io", "https://ghcr.io"),
            ("r.example:5000", "http://r.example:5000"),
        ] {
            assert!(!url(name, base, "/v2/a/tags/list").contains("ns="), "{name} {base}");
        }
        let mirror = "http://region.example:5000";
        assert_eq!(url("ghcr.io", mirror, "/v2/a/tags/list"), format!("{mirror}/v2/a/tags/list?ns=ghcr.io"));
        // As its own link to the next page has it.
        let page = "/v2/a/tags/list?n=2&ns=ghcr.io&last=b";
        assert_eq!(url("ghcr.io", mirror, page), format!("{mirror}{page}"));
        assert!(url("docker.io", "https://notdocker.io", "/v2/a/tags/list").contains("ns=docker.io"));
        let port = url("r.example:5000", mirror, "/v2/a/tags/list?n=1");
        assert!(port.ends_with("?n=1&ns=r.example%3A5000"), "{port}");
    }

    #[test]
    fn what_is_odd_is_news_once() {
        let endpoint = Endpoint::new(&registry("r.example"), &"https://r.example".parse().unwrap(), 0, true);
        let news =
            ["a limit of 0", "a limit of 0", "not a number", "not a number"].map(|odd| endpoint.is_news(odd));
        assert_eq!(news, [true, false, true, false]);
    }

    #[test]
    fn urls_never_leave_the_endpoint() {
        let endpoint =
            Endpoint::new(&registry("r.example:5000"), &"https://r.example:5000".parse().unwrap(), 0, true);
        for (path, url) in [
            ("/v2/a/tags/list?n=1000", "https://r.example:5000/v2/a/tags/list?n=1000"),
            ("//evil.example/v2/", "https://r.example:5000//evil.example/v2/"),
            ("/\\evil.example?a=b?c", "https://r.example:5000//evil.example?a=b?c"),
            ("https://evil.example/", "https://r.example:5000/https://evil.example/"),
            ("/v2/%2e%2e/x%3Fy?last=%26", "https://r.example:5000/x%3Fy?last=%26"),
        ] {
            assert_eq!(endpoint.url(path).as_str(), url, "{path}");
        }
    }
}
