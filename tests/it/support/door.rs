//! Who may come in: the auth of a fake registry.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::answers::Wanted;
use super::behaviour::{Absent, Auth, Bearer, Behaviour};
use super::site::{Answer, Call};
use super::token_server::Issuer;

/// A request that was let in.
pub(super) struct Admitted {
    /// The account whose credentials were good.
    pub(super) account: Option<String>,
}

/// Lets a request in, or says with what answer it is refused.
pub(super) fn admit(
    call: &Call,
    wanted: &Wanted<'_>,
    is_there: bool,
    behaviour: &Behaviour,
    issuer: &Issuer,
) -> Result<Admitted, Answer> {
    match &behaviour.auth {
        Auth::None => Ok(Admitted { account: None }),
        Auth::Basic { user, password } => match basic_credentials(call.header("authorization")) {
            Some((name, word)) if name == *user && word == *password => Ok(Admitted { account: Some(name) }),
            _ => Err(unauthorized("Basic realm=\"fake\"")),
        },
        Auth::Bearer(bearer) => admit_bearer(call, wanted, is_there, behaviour, bearer, issuer),
    }
}

/// The user name and password of a Basic Authorization header.
pub(super) fn basic_credentials(authorization: &str) -> Option<(String, String)> {
    let encoded = authorization.strip_prefix("Basic ")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn admit_bearer(
    call: &Call,
    wanted: &Wanted<'_>,
    is_there: bool,
    behaviour: &Behaviour,
    bearer: &Bearer,
    issuer: &Issuer,
) -> Result<Admitted, Answer> {
    let refuse = |error: &str| Err(unauthorized(&challenge(call, wanted, bearer, error)));
    if bearer.open_ping && matches!(wanted, Wanted::Ping) {
        return Ok(Admitted { account: None });
    }
    let Some(token) = call.header("authorization").strip_prefix("Bearer ") else { return refuse("") };
    let Some(grant) = issuer.grant(token) else { return refuse("invalid_token") };
    let Some(name) = wanted.name() else { return Ok(Admitted { account: grant.account }) };
    if !grant.covers_pull(name) {
        return refuse("insufficient_scope");
    }
    let needs_account = bearer.require_account || behaviour.private.iter().any(|private| private == name);
    if is_there && (grant.account.is_some() || !needs_account) {
        return Ok(Admitted { account: grant.account });
    }
    match behaviour.absent {
        Absent::Unauthorized => refuse("insufficient_scope"),
        Absent::NotFound => Err(Answer::error(404, "NAME_UNKNOWN", "repository name not known to registry")),
        Absent::Forbidden => Err(Answer::error(403, "DENIED", "requested access to the resource is denied")),
    }
}

fn challenge(call: &Call, wanted: &Wanted<'_>, bearer: &Bearer, error: &str) -> String {
    if let Some(verbatim) = &bearer.challenge {
        return verbatim.clone();
    }
    if bearer.challenge_at_ping_only && !matches!(wanted, Wanted::Ping) {
        return String::new();
    }
    let scheme = if call.tls { "https" } else { "http" };
    let realm = bearer.realm.clone().unwrap_or_else(|| format!("{scheme}://{}/token", call.host));
    let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{}\"", bearer.service);
    if let Some(name) = wanted.name() {
        challenge.push_str(&format!(",scope=\"repository:{name}:pull\""));
    }
    if !error.is_empty() {
        challenge.push_str(&format!(",error=\"{error}\""));
    }
    challenge
}

fn unauthorized(challenge: &str) -> Answer {
    let answer = Answer::error(401, "UNAUTHORIZED", "authentication required")
        .with("docker-distribution-api-version", "registry/2.0");
    if challenge.is_empty() { answer } else { answer.with("www-authenticate", challenge) }
}
