//! Which way leads to a URL: straight, or through an HTTP proxy by CONNECT, for http and https alike.

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use url::Url;

use super::address::is_loopback_host;
use crate::config::Proxy;

/// The proxies of one upstream.
pub(super) struct Proxies(Rule);

/// The way to a URL that is not reached straight.
pub(super) struct Detour {
    /// The proxy's own URL.
    pub(super) proxy: Uri,
    /// `Proxy-Authorization`.
    pub(super) login: Option<HeaderValue>,
    /// Where the tunnel shall end; has a port.
    pub(super) to: Uri,
}

/// The proxy cannot be used. Its user name and password are not in the text.
#[derive(Debug, thiserror::Error)]
#[error("a proxy must be written http://[user:password@]host:port; other kinds cannot be used")]
pub(super) struct BadProxy;

enum Rule {
    Never,
    Always(Box<Matcher>),
    Environment(Box<Matcher>),
}

impl Proxies {
    /// Reads the setting, and the environment where it says so.
    pub(super) fn new(setting: &Proxy) -> Result<Proxies, BadProxy> {
        let rule = match setting {
            Proxy::None => Rule::Never,
            Proxy::Environment => Rule::Environment(Box::new(Matcher::from_env())),
            Proxy::Through(url) => {
                let matcher = Matcher::builder().all(url.reveal().to_owned()).build();
                let probe = Uri::from_static("https://registry.invalid/");
                check(&matcher.intercept(&probe).ok_or(BadProxy)?)?;
                Rule::Always(Box::new(matcher))
            }
        };
        Ok(Proxies(rule))
    }

    /// The way to `to`; `None` for straight.
    pub(super) fn detour(&self, to: &Uri) -> Result<Option<Detour>, BadProxy> {
        let Some(intercept) = self.intercept(to) else { return Ok(None) };
        check(&intercept)?;
        let login = intercept.basic_auth().cloned();
        Ok(Some(Detour { proxy: intercept.uri().clone(), login, to: with_port(to)? }))
    }

    /// Whether a proxy resolves the name of `to`, rather than this machine.
    pub(super) fn is_proxied(&self, to: &Url) -> bool {
        to.as_str().parse().is_ok_and(|to| self.intercept(&to).is_some())
    }

    fn intercept(&self, to: &Uri) -> Option<Intercept> {
        match &self.0 {
            Rule::Never => None,
            Rule::Always(matcher) => matcher.intercept(to),
            // As Go and so Docker has it: nobody means their proxy's own loopback.
            Rule::Environment(matcher) => {
                let local = to.to_string().parse().is_ok_and(|to| is_loopback_host(&to));
                if local { None } else { matcher.intercept(to) }
            }
        }
    }
}

/// CONNECT is spoken in the clear to `http` proxies only.
fn check(intercept: &Intercept) -> Result<(), BadProxy> {
    if intercept.uri().scheme() == Some(&http::uri::Scheme::HTTP) { Ok(()) } else { Err(BadProxy) }
}

/// The tunnel would take 443 for a URL without a port.
fn with_port(to: &Uri) -> Result<Uri, BadProxy> {
    let port = match (to.port_u16(), to.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("http")) => 80,
        (None, _) => 443,
    };
    let authority = format!("{}:{port}", to.host().unwrap_or_default());
    let scheme = to.scheme_str().unwrap_or("https");
    Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build().map_err(|_| BadProxy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn through(url: &str) -> Result<Proxies, BadProxy> {
        Proxies::new(&Proxy::Through(Secret::new(url)))
    }

    #[test]
    fn through_a_proxy_with_a_login() {
        let proxies = through("http://user:p%40ss@proxy.example:3128").unwrap();
        for (to, end) in [("https://a.example/x?y=1", "a.example:443"), ("http://a.example", "a.example:80")]
        {
            let Detour { proxy, login, to } = proxies.detour(&to.parse().unwrap()).unwrap().unwrap();
            assert_eq!(proxy.to_string(), "http://proxy.example:3128/");
            assert_eq!(login.unwrap(), "Basic dXNlcjpwQHNz");
            assert_eq!(to.authority().unwrap().as_str(), end);
        }
    }

    #[test]
    fn without_one() {
        let proxies = Proxies::new(&Proxy::None).unwrap();
        assert!(proxies.detour(&Uri::from_static("https://a.example")).unwrap().is_none());
        assert!(!proxies.is_proxied(&"https://a.example".parse().unwrap()));
    }

    #[test]
    fn proxies_that_cannot_be_used() {
        for url in ["https://proxy.example", "socks5://proxy.example", "", "http://"] {
            let refused = through(url);
            assert!(refused.is_err_and(|error| !error.to_string().contains("example")), "{url}");
        }
    }
}
