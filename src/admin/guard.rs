//! Keeps a web page in the operator's own browser away from a door on loopback, and everybody else from changing
//! anything.
//!
//! Such a page may point a name of its own at 127.0.0.1 (DNS rebinding) and then read our answers as its own.
//! It cannot help that the browser sends that name as `Host`. Programs and people use the address or
//! `localhost`.
//!
//! What changes something needs the operator's token where there is one. Without one it is taken on a loopback address
//! only, and from this machine. Never from a page of another site: browsers say in `Origin` or `Sec-Fetch-Site` who sends.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use http::uri::Authority;
use http::{Request, Response, StatusCode};

use super::answer;
use super::token::{self, BadToken};
use crate::secret::Secret;
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

    /// The refusal, if the request is to be refused. `token` is what whatever changes something must bring along.
    pub(super) fn check<B>(
        self,
        request: &Request<B>,
        token: impl FnOnce() -> Result<Option<Secret>, BadToken>,
    ) -> Option<Response<Body>> {
        let refuse = |code, message: &str| Some(answer::error(StatusCode::FORBIDDEN, code, message));
        if self.loopback && !is_ours(request) {
            return refuse("foreign_host", FOREIGN_HOST);
        }
        if request.method().is_safe() {
            return None;
        }
        if is_cross_site(request) {
            return refuse("foreign_site", FOREIGN_SITE);
        }
        match token() {
            Ok(Some(token)) => match token::brings(request.headers(), &token) {
                Some(true) => None,
                Some(false) => Some(answer::unauthorized("token_wrong", TOKEN_WRONG)),
                None => Some(answer::unauthorized("token_missing", TOKEN_MISSING)),
            },
            Ok(None) if self.loopback && is_from_here(request) => None,
            Ok(None) => refuse("token_needed", TOKEN_NEEDED),
            // Nobody is let in where it is not known whom to let in.
            Err(error) => refuse("token_unreadable", &error.to_string()),
        }
    }
}

const FOREIGN_HOST: &str = "This address is asked by its number or as localhost, not by another name.";
const FOREIGN_SITE: &str = "What changes something is not taken from a page of another site.";
const TOKEN_WRONG: &str = "This is not the token in admin.token_file.";
const TOKEN_MISSING: &str =
    "What changes something needs the token in admin.token_file: Authorization: Bearer TOKEN.";
const TOKEN_NEEDED: &str = "On an address that other machines reach nothing can be changed without a token: set \
                            admin.token_file in the mirror's configuration.";

fn is_from_here<B>(request: &Request<B>) -> bool {
    request.extensions().get::<Peer>().is_some_and(|peer| peer.addr.ip().is_loopback())
}

fn is_cross_site<B>(request: &Request<B>) -> bool {
    let text = |name| request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    // A proxy in front may speak TLS.
    let host =
        |origin: &str| origin.strip_prefix("http://").or(origin.strip_prefix("https://")).map(str::to_owned);
    let has_other_origin = text(ORIGIN).is_some_and(|origin| host(origin).as_deref() != text(HOST));
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
        guard.check(&request.body(()).unwrap(), || Ok(None)).map(|refusal| refusal.status())
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

    /// What becomes of a request from `peer` that changes something, with these headers, where the token is `token`.
    fn write(
        listening_on: &str,
        peer: Option<&str>,
        headers: &[(&str, &str)],
        token: impl FnOnce() -> Result<Option<Secret>, BadToken>,
    ) -> Option<StatusCode> {
        let mut request = Request::post("/").header(HOST, listening_on);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).unwrap();
        peer.map(|peer| request.extensions_mut().insert(Peer { addr: peer.parse().unwrap(), tls: false }));
        let guard = Guard::new(listening_on.parse().unwrap());
        guard.check(&request, token).map(|refusal| refusal.status())
    }

    const DOOR: &str = "127.0.0.1:5001";
    const EVERYWHERE: &str = "0.0.0.0:5001";
    const HERE: Option<&str> = Some("127.0.0.1:9");
    const THERE: Option<&str> = Some("10.0.0.1:9");

    #[test]
    fn what_changes_something_comes_from_here_and_from_no_other_site() {
        let none = || Ok(None);
        for headers in [
            &[][..],
            &[("origin", "http://127.0.0.1:5001")],
            &[("origin", "https://127.0.0.1:5001")],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
        ] {
            assert_eq!(write(DOOR, HERE, headers, none), None, "{headers:?}");
        }
        for header in [
            ("origin", "http://evil.example"),
            ("origin", "http://127.0.0.1:8080"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(write(DOOR, HERE, &[header], none), Some(StatusCode::FORBIDDEN), "{header:?}");
        }
        for peer in [None, THERE, Some("[2001:db8::1]:9")] {
            assert_eq!(write(DOOR, peer, &[], none), Some(StatusCode::FORBIDDEN), "{peer:?}");
        }
        assert_eq!(write("[::1]:5001", Some("[::1]:9"), &[], none), None);
        // Others reach that address, by whatever way.
        assert_eq!(write(EVERYWHERE, HERE, &[], none), Some(StatusCode::FORBIDDEN));
    }

    #[test]
    fn where_there_is_a_token_it_is_needed_and_is_enough() {
        let token = || Ok(Some(Secret::new("0123456789abcdef")));
        let (right, wrong) = (("authorization", "Bearer 0123456789abcdef"), ("authorization", "Bearer x"));
        for (listening_on, peer) in [(DOOR, HERE), (EVERYWHERE, HERE), (EVERYWHERE, THERE)] {
            assert_eq!(write(listening_on, peer, &[right], token), None);
            assert_eq!(write(listening_on, peer, &[wrong], token), Some(StatusCode::UNAUTHORIZED));
            assert_eq!(write(listening_on, peer, &[], token), Some(StatusCode::UNAUTHORIZED));
        }
        let foreign = [right, ("origin", "http://evil.example")];
        assert_eq!(write(EVERYWHERE, THERE, &foreign, token), Some(StatusCode::FORBIDDEN));
        let bad = || Err(BadToken::Weak { path: "x".to_owned() });
        assert_eq!(write(DOOR, HERE, &[right], bad), Some(StatusCode::FORBIDDEN));
    }

    #[test]
    fn other_addresses_are_the_networks_affair() {
        assert_eq!(status("0.0.0.0:5001", "/", Some("mirror.example")), None);
    }
}
