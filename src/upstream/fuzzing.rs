//! What `tests/fuzz` reaches of the parsers in here, as plain values.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use url::Url;

use super::challenge::Challenge;
use super::credentials::Login;
use super::docker_config::{self, Entry};
use super::redirect::Trail;
use super::token::Token;
use super::{Error, Found, answer, helper, placing, quota, trust};
use crate::oci::RegistryHost;
use crate::scheduler::Told;

/// Realm, service and scope of a Bearer challenge.
pub type Bearer = (String, Option<String>, Option<String>);

/// The challenge chosen from all `WWW-Authenticate` headers; within it nothing for Basic.
pub fn challenge(headers: &[&str]) -> Option<Option<Bearer>> {
    Some(match Challenge::choose(headers.iter().copied())? {
        Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
        Challenge::Basic => None,
    })
}

/// The token in a token service's reply, how long it lives and when it is renewed.
pub fn token(reply: &[u8], now: SystemTime) -> Option<(String, Duration, Duration)> {
    let token = Token::parse(reply, now).ok()?;
    Some((token.secret.reveal().to_owned(), token.life, token.renew_after()))
}

/// What headers say of a quota.
pub fn quota(headers: &HeaderMap, now: SystemTime) -> Option<Told> {
    quota::read(headers, now).told
}

/// The error that a 429 stands for.
pub fn throttled(headers: &HeaderMap, body: &[u8], now: SystemTime) -> Error {
    answer::throttled("registry".to_owned(), headers, body, now)
}

/// What the headers of a HEAD's answer tell.
pub fn found(headers: &HeaderMap) -> Found {
    Found::of(headers)
}

/// How many bytes of an answer come before the one asked for, and the whole length.
pub fn placed(
    status: StatusCode,
    headers: &HeaderMap,
    from: u64,
    expected: Option<u64>,
) -> Option<(u64, Option<u64>)> {
    let placed = placing::place(status, headers, from, expected).ok()?;
    Some((placed.skip, placed.total))
}

/// Where one redirect after the other leads, each with whether the login may come along.
pub fn redirects(start: &Url, locations: &[&str]) -> Vec<(Url, bool)> {
    let mut trail = Trail::new(start);
    let gone = locations.iter().map_while(|location| {
        trail.go(location).ok()?;
        Some((trail.here().clone(), trail.is_at_home()))
    });
    gone.collect()
}

/// Whether a token service may be given the credentials for `endpoint`.
pub fn may_have_credentials(endpoint: &Url, realm: &Url, token_hosts: &[RegistryHost]) -> bool {
    trust::may_have_credentials(endpoint, realm, token_hosts)
}

/// The helper program that Docker's `config.json` names for a registry; within it nothing for a login that is in
/// the file itself.
pub fn docker_config(json: &[u8], registry: &str) -> Option<Option<String>> {
    match docker_config::find(json, docker_config::server(registry)).ok()?? {
        Entry::Helper(program) => Some(Some(program)),
        Entry::Login(login) => {
            login.basic();
            Some(None)
        }
    }
}

/// What a credential helper wrote, read and made into the header of a request.
pub fn helper(output: &str) -> Option<http::HeaderValue> {
    helper::parse(output).ok().as_ref().map(Login::basic)
}
