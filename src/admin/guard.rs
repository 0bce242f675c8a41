//! Keeps a web page in the operator's own browser away from a door on loopback.
//!
//! Such a page may point a name of its own at 127.0.0.1 (DNS rebinding) and then read our answers as its own.
//! It cannot help that the browser sends that name as `Host`. Programs and people use the address or
//! `localhost`.

use std::net::{IpAddr, SocketAddr};

use http::header::HOST;
use http::uri::Authority;
use http::{Request, Response, StatusCode};

use super::answer;
use crate::server::Body;

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
        if !self.loopback || is_ours(request) {
            return None;
        }
        let message = "This address is asked by its number or as localhost, not by another name.";
        Some(answer::error(StatusCode::FORBIDDEN, "foreign_host", message))
    }
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
    fn other_addresses_are_the_networks_affair() {
        assert_eq!(status("0.0.0.0:5001", "/", Some("mirror.example")), None);
    }
}
