use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use url::Url;

use crate::config::Config;

/// The mirror's address as a client writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    https: bool,
    /// Host, and port where there is one.
    authority: String,
}

impl Mirror {
    /// The first address that `config` listens on; `None` when its port is not known yet.
    pub(super) fn of(config: &Config) -> Option<Mirror> {
        let address = *config.server.listen.first()?;
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let authority = SocketAddr::new(ip, address.port()).to_string();
        (address.port() != 0).then_some(Mirror { https: config.server.tls.is_some(), authority })
    }

    /// `http` or `https`.
    pub(super) fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// Whether it speaks TLS.
    pub(super) fn is_https(&self) -> bool {
        self.https
    }

    /// Host and port.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }
}

impl FromStr for Mirror {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ALLOWED: &str = "must be http://HOST:PORT or https://HOST:PORT, without a path";
        let url: Url = text.parse().map_err(|_| ALLOWED)?;
        let https = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(ALLOWED),
        };
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let anonymous = url.username().is_empty() && url.password().is_none();
        let host = url.host_str().filter(|_| bare && anonymous).ok_or(ALLOWED)?;
        // Clients take a single word without a port for a part of an image's name, not for a host.
        let is_word = !host.contains(['.', ':']) && host != "localhost";
        let port = url.port().or_else(|| is_word.then(|| url.port_or_known_default()).flatten());
        let authority = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Mirror { https, authority })
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_the_table() {
        for (text, expected) in [
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("https://mirror.example/", "https://mirror.example"),
            ("https://mirror", "https://mirror:443"),
            ("http://mirror", "http://mirror:80"),
            ("http://[::1]:5000", "http://[::1]:5000"),
        ] {
            assert_eq!(text.parse::<Mirror>().map(|mirror| mirror.to_string()), Ok(expected.to_owned()));
        }
        for text in ["", "mirror:5000", "ftp://m", "http://m/x", "http://u@m", "http://m?x"] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }

    #[test]
    fn from_what_is_listened_on() {
        let mut config = Config::default();
        for (listen, expected) in [
            ("127.0.0.1:5000", Some("http://127.0.0.1:5000")),
            ("0.0.0.0:80", Some("http://127.0.0.1:80")),
            ("[::]:5000", Some("http://[::1]:5000")),
            ("10.0.0.1:0", None),
        ] {
            config.server.listen = vec![listen.parse().expect("an address")];
            assert_eq!(Mirror::of(&config).map(|mirror| mirror.to_string()).as_deref(), expected);
        }
    }
}
