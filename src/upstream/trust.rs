//! To whom an upstream's credentials may go (I6). Plain judgement, no I/O.

use url::{Host, Url};

use crate::oci::RegistryHost;

/// Whether a token service at `realm` may be given the credentials for `endpoint`: the same host on whatever
/// port, the same registrable domain, or a host that the operator listed.
pub(super) fn may_have_credentials(endpoint: &Url, realm: &Url, token_hosts: &[RegistryHost]) -> bool {
    endpoint.host() == realm.host()
        || is_same_domain(endpoint, realm)
        || token_hosts.iter().any(|listed| is_listed(listed, realm))
}

/// Whether `to` is the same scheme, host and port: the only place that an `Authorization` follows a redirect
/// to.
pub(super) fn is_same_origin(from: &Url, to: &Url) -> bool {
    from.scheme() == to.scheme()
        && from.host() == to.host()
        && from.port_or_known_default() == to.port_or_known_default()
}

/// Host, and port where it is not the scheme's own: all that an error or a log line shows of a URL.
pub fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// By the public suffix list, so that two customers of one cloud are strangers. Addresses have no domain.
fn is_same_domain(one: &Url, other: &Url) -> bool {
    let domain = |url: &Url| match url.host() {
        Some(Host::Domain(name)) => psl::domain_str(name.trim_end_matches('.')).map(str::to_owned),
        Some(Host::Ipv4(_) | Host::Ipv6(_)) | None => None,
    };
    domain(one).is_some_and(|name| Some(name) == domain(other))
}

/// A listed host without a port means every port.
fn is_listed(listed: &RegistryHost, realm: &Url) -> bool {
    let host = realm.host_str().unwrap_or_default();
    let with_port = || realm.port_or_known_default().map(|port| format!("{host}:{port}"));
    listed.as_str() == host || with_port().as_deref() == Some(listed.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(endpoint: &str, realm: &str, listed: &[&str]) -> bool {
        let listed: Vec<RegistryHost> = listed.iter().map(|host| host.parse().unwrap()).collect();
        may_have_credentials(&endpoint.parse().unwrap(), &realm.parse().unwrap(), &listed)
    }

    #[test]
    fn realms_that_may_have_credentials() {
        for (endpoint, realm) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token"),
            ("https://ghcr.io", "https://ghcr.io/token"),
            ("https://quay.io", "https://quay.io/v2/auth"),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"),
            ("http://localhost:5000", "http://localhost:5001/token"),
            ("https://registry.example:5000", "https://REGISTRY.example/token"),
        ] {
            assert!(trusted(endpoint, realm, &[]), "{endpoint} {realm}");
        }
    }

    #[test]
    fn realms_that_may_not() {
        for (endpoint, realm) in [
            ("https://registry-1.docker.io", "https://auth.docker.com/token"),
            ("https://registry-1.docker.io", "https://auth-docker.io/token"),
            ("https://one.github.io", "https://other.github.io/token"),
            ("https://a.co.uk", "https://b.co.uk/token"),
            ("https://registry.internal", "https://auth.internal/token"),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5000/token"),
            ("http://10.0.0.1", "http://20.0.0.1/token"),
            ("http://[::1]:5000", "http://127.0.0.1:5000/token"),
            ("http://localhost:5000", "http://127.0.0.1:5000/token"),
        ] {
            assert!(!trusted(endpoint, realm, &[]), "{endpoint} {realm}");
        }
    }

    #[test]
    fn listed_hosts() {
        let endpoint = "https://registry.example";
        assert!(trusted(endpoint, "https://login.other/token", &["login.other"]));
        assert!(trusted(endpoint, "https://login.other:8443/token", &["login.other"]));
        assert!(trusted(endpoint, "https://login.other/token", &["login.other:443"]));
        assert!(!trusted(endpoint, "https://login.other:8443/token", &["login.other:443"]));
        assert!(!trusted(endpoint, "https://x.login.other/token", &["login.other"]));
    }

    #[test]
    fn origins() {
        let same = |one: &str, other: &str| is_same_origin(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(same("https://a/x", "https://A:443/y"));
        assert!(!same("https://a", "http://a") && !same("https://a", "https://a:444"));
        assert!(!same("https://a", "https://b.a"));
    }
}
