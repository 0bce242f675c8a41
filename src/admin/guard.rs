//! Keeps a web page in the operator's own browser away from a door on loopback, and everybody else from changing
//! anything.
//!
//! Such a page may point a name of its own at 127.0.0.1 (DNS rebinding) and then read our answers as its own.
//! It cannot help that the browser sends that name as `Host`. Programs and people use the address or
//! `localhost`.
//!
//! What changes something is taken from this machine only, whatever address the door is on, and not from a page of
//! another site: browsers say in `Origin` or `Sec-Fetch-Site` who sends.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use http::uri::Authority;
use http::{Request, Response, StatusCode};

use super::answer;
use crate::server::{Body, Peer};

/// Judges requests by the name they were sent to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard {
    loopback: bool,
}

impl Guard {
    pub(super) fn new(listening_on: SocketAddr) -> Guard {
        Guard { loopback: listening_on.ip().to_canonical().is_loopback() }
    }

    /// The refusal, if the request is to be refused.
    pub(super) fn check<B>(self, request: &Request<B>) -> Option<Response<Body>> {
        let refuse = |code, message| Some(answer::error(StatusCode::FORBIDDEN, code, message));
        if (self.loopback || !request.method().is_safe()) && !is_ours(request) {
            return refuse(
                "foreign_host",
                "This address is asked by its number or as localhost, not by another name.",
            );
        }
        if request.method().is_safe() {
            return None;
        }
        if !is_from_here(request) {
            return refuse(
                "foreign_client",
                "What changes something is taken from the mirror's own machine only.",
            );
        }
        if is_cross_site(request) {
            return refuse(
                "foreign_site",
                "What changes something is not taken from a page of another site.",
            );
        }
        None
    }
}

fn is_from_here<B>(request: &Request<B>) -> bool {
    request.extensions().get::<Peer>().is_some_and(|peer| peer.addr.ip().is_loopback())
}

fn is_cross_site<B>(request: &Request<B>) -> bool {
    let text = |name| request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    let own = text(HOST).map(|host| format!("http://{host}"));
    let has_other_origin = text(ORIGIN).is_some_and(|origin| Some(origin) != own.as_deref());
    let site = text(HeaderName::from_static("sec-fetch-site"));
    has_other_origin || site.is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

/// A request without any `Host` is no browser's.
fn is_ours<B>(request: &Request<B>) -> bool {
    let in_target = request.uri().authority().is_none_or(is_local);
    let named = request.headers().get_all(HOST).iter();
    in_target
        && named
            .map(|host| host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()))
            .all(|host| host.as_ref().is_some_and(is_local))
}

fn is_local(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(listening_on: &str, target: &str, host: Option<&str>) -> Option<StatusCode> {
        let mut request = Request::get(target);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        let guard = Guard::new(listening_on.parse().unwrap());
        guard.check(&request.body(()).unwrap()).map(|refusal| refusal.status())
    }

    #[test]
    fn loopback_answers_to_numbers_and_localhost() {
        for host in ["127.0.0.1:5001", "127.0.0.1", "[::1]:5001", "localhost:5001", "LOCALHOST", "10.0.0.1"] {
            assert_eq!(status("127.0.0.1:5001", "/", Some(host)), None, "{host}");
        }
        assert_eq!(status("[::1]:5001", "/", None), None);
        for host in [
            "evil.example",
            "evil.example:5001",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "a b",
        ] {
            assert_eq!(status("127.0.0.1:5001", "/", Some(host)), Some(StatusCode::FORBIDDEN), "{host}");
        }
    }

    #[test]
    fn the_name_in_the_target_counts_too() {
        assert_eq!(status("127.0.0.1:5001", "http://evil.example/", None), Some(StatusCode::FORBIDDEN));
        assert_eq!(status("127.0.0.1:5001", "http://localhost:5001/", None), None);
    }

    #[test]
    fn what_changes_something_comes_from_here_and_from_no_other_site() {
        let door = Guard::new("127.0.0.1:5001".parse().unwrap());
        let check = |peer: Option<&str>, header: Option<(&str, &str)>| {
            let mut request = Request::post("/").header(HOST, "127.0.0.1:5001");
            if let Some((name, value)) = header {
                request = request.header(name, value);
            }
            let mut request = request.body(()).unwrap();
            peer.map(|peer| {
                request.extensions_mut().insert(Peer { addr: peer.parse().unwrap(), tls: false })
            });
            door.check(&request).map(|refusal| refusal.status())
        };
        let here = Some("127.0.0.1:9");
        for header in [
            None,
            Some(("origin", "http://127.0.0.1:5001")),
            Some(("sec-fetch-site", "same-origin")),
            Some(("sec-fetch-site", "none")),
        ] {
            assert_eq!(check(here, header), None, "{header:?}");
        }
        for header in [
            ("origin", "http://evil.example"),
            ("origin", "http://127.0.0.1:8080"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(check(here, Some(header)), Some(StatusCode::FORBIDDEN), "{header:?}");
        }
        // A name that points here may be a page's own.
        let everywhere = Guard::new("0.0.0.0:5001".parse().unwrap());
        let mut rebound = Request::post("/").header(HOST, "evil.example:5001").body(()).unwrap();
        rebound.extensions_mut().insert(Peer { addr: "127.0.0.1:9".parse().unwrap(), tls: false });
        assert!(everywhere.check(&rebound).is_some());
        for peer in [None, Some("10.0.0.1:9"), Some("[2001:db8::1]:9")] {
            assert_eq!(check(peer, None), Some(StatusCode::FORBIDDEN), "{peer:?}");
        }
        assert_eq!(check(Some("[::1]:9"), None), None);
    }

    #[test]
    fn other_addresses_are_the_networks_affair() {
        assert_eq!(status("0.0.0.0:5001", "/", Some("mirror.example")), None);
    }
}
