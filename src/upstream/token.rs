//! Trades credentials for tokens at a token service, and keeps the tokens.
//!
//! A token is fetched once for all who wait for it: the fetch is a task of the house, so it goes on when
//! whoever began it goes away.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use serde::Deserialize;
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::answer::refusal;
use super::credentials::{Account, Login};
use super::metrics::Purpose;
use super::trust::host_of;
use super::wire::{Hop, Reach, Wire};
use super::{Error, body};
use crate::lifecycle::{self, Lifecycle};
use crate::secret::Secret;

/// The tokens of one upstream, and how to get more.
pub(super) struct Tokens {
    wire: Arc<Wire>,
    accounts: Arc<[Account]>,
    cache: Cache<Key, Token>,
    life: Lifecycle,
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) account: Option<usize>,
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scope: String,
}

/// Where a token is to be had, already judged by [`super::login`] to be a place that may be asked.
#[derive(Debug, Clone)]
pub(super) struct Errand {
    pub(super) key: Key,
    pub(super) reach: Reach,
    /// The registry that the token is for; errors are about it.
    pub(super) endpoint: String,
}

/// A token and how long it is good for.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) secret: Secret,
    pub(super) life: Duration,
}

/// The reply of a token service. Some give one name, some the other, some both.
#[derive(Deserialize)]
struct Reply {
    token: Option<String>,
    access_token: Option<String>,
    // A number by the specification; a text in the wild.
    expires_in: Option<Value>,
}

/// Lets the cache drop tokens when they are due.
struct Expiry;

/// One token per account and repository in use; a token is a few KiB.
const MOST_TOKENS: u64 = 1000;
/// For a token that says nothing about its life (the token specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// No token is used for longer than this, whatever it says.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Tokens of some registries list hundreds of rights; more than this is an attack.
const MOST_BYTES: usize = 1 << 20;
/// What this mirror calls itself to token services.
const CLIENT_ID: &str = "tidelock";

impl Tokens {
    pub(super) fn new(wire: Arc<Wire>, accounts: Arc<[Account]>, life: Lifecycle) -> Tokens {
        let cache = Cache::builder()
            .max_capacity(MOST_TOKENS)
            // The default policy turns newcomers away while old entries are in use.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(Expiry)
            .build();
        Tokens { wire, accounts, cache, life }
    }

    /// The token for an errand, and whether it was at hand already. Cancel-safe: the fetch goes on.
    pub(super) async fn token(self: &Arc<Self>, errand: Errand) -> Result<(Token, bool), Error> {
        if let Some(token) = self.cache.get(&errand.key).await {
            return Ok((token, true));
        }
        let (tokens, endpoint) = (Arc::clone(self), errand.endpoint.clone());
        let task = self.life.spawn("token", async move {
            let key = errand.key.clone();
            tokens.cache.try_get_with(key, tokens.fetch(&errand)).await
        });
        match task.await {
            Ok(outcome) => outcome.map(|token| (token, false)).map_err(|error| Error::clone(&error)),
            Err(_) => Err(Error::Login { endpoint, reason: "the login was interrupted".to_owned() }),
        }
    }

    /// Forgets a token that was refused, unless another has taken its place.
    pub(super) async fn forget(&self, key: &Key, refused: &Secret) {
        if self.cache.get(key).await.is_some_and(|token| token.secret == *refused) {
            self.cache.invalidate(key).await;
        }
    }

    async fn fetch(&self, errand: &Errand) -> Result<Token, Error> {
        let Some(account) = errand.key.account.and_then(|index| self.accounts.get(index)) else {
            return self.get(errand, None).await;
        };
        let had = account.login().await.map_err(|cause| login_error(errand, &cause.to_string()))?;
        match self.trade(errand, &had.login).await {
            // A helper's answer may have become void before its time was over.
            Err(Error::Login { .. }) if had.kept => {
                account.forget().await;
                let had = account.login().await.map_err(|cause| login_error(errand, &cause.to_string()))?;
                self.trade(errand, &had.login).await
            }
            outcome => outcome,
        }
    }

    async fn trade(&self, errand: &Errand, login: &Login) -> Result<Token, Error> {
        if let Login::Identity { token, .. } = login {
            let answer = self.post(errand, token).await?;
            // Services without the OAuth2 endpoint say so in one of these ways; some of them take the identity
            // token as a password.
            if !matches!(answer.status().as_u16(), 400 | 401 | 404 | 405) {
                return self.read(errand, answer).await;
            }
            body::scrap(answer).await;
        }
        self.get(errand, Some(login.basic())).await
    }

    /// The token specification's GET.
    async fn get(&self, errand: &Errand, login: Option<HeaderValue>) -> Result<Token, Error> {
        let mut url = errand.key.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(errand.key.service.as_deref().map(|service| ("service", service)));
            let scopes = errand.key.scope.split(' ').filter(|scope| !scope.is_empty());
            query.extend_pairs(scopes.map(|scope| ("scope", scope)));
        }
        let mut headers = HeaderMap::new();
        headers.extend(login.map(|login| (AUTHORIZATION, login)));
        let answer = self.send(errand, Method::GET, &url, headers, Bytes::new()).await?;
        self.read(errand, answer).await
    }

    /// OAuth2's POST with a refresh token.
    async fn post(&self, errand: &Errand, identity: &Secret) -> Result<Response<Incoming>, Error> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", errand.key.service.as_deref().unwrap_or_default())
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", &errand.key.scope)
            .append_pair("refresh_token", identity.reveal())
            .finish();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind)]);
        self.send(errand, Method::POST, &errand.key.realm, headers, Bytes::from(form)).await
    }

    async fn send(
        &self,
        errand: &Errand,
        method: Method,
        url: &Url,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Error> {
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let (purpose, account, reach) = (Purpose::Token, errand.key.account, errand.reach);
        self.wire.send(Hop { purpose, account, reach, apart: false, method, url, headers, body }).await
    }

    async fn read(&self, errand: &Errand, answer: Response<Incoming>) -> Result<Token, Error> {
        let service = host_of(&errand.key.realm);
        match answer.status() {
            status if status.is_success() => {
                let reply = body::whole(answer, &service, MOST_BYTES, self.wire.idle_timeout).await?;
                Token::parse(&reply, lifecycle::now())
                    .map_err(|reason| Error::BadAnswer { endpoint: service, reason: reason.to_owned() })
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                body::scrap(answer).await;
                Err(self.refused(errand, status))
            }
            _ => Err(match refusal(answer, service).await {
                // It is the token service that is not there, not the image.
                Error::NotFound { endpoint } => Error::Status { endpoint, status: 404 },
                error => error,
            }),
        }
    }

    /// A wrong password; or without any, a repository that nobody may see: so GHCR hides what is private.
    fn refused(&self, errand: &Errand, status: StatusCode) -> Error {
        let Some(account) = errand.key.account.and_then(|index| self.accounts.get(index)) else {
            return Error::Hidden { endpoint: errand.endpoint.clone() };
        };
        let (service, name) = (host_of(&errand.key.realm), &account.name);
        login_error(
            errand,
            &format!(
                "the token service {service} refused account `{name}` ({}); check its user name and password",
                status.as_u16()
            ),
        )
    }
}

impl Token {
    pub(super) fn parse(reply: &[u8], now: SystemTime) -> Result<Token, &'static str> {
        let reply: Reply = serde_json::from_slice(reply).map_err(|_| "a token that is not in JSON")?;
        let given = |token: Option<String>| token.filter(|token| !token.is_empty());
        let token = given(reply.token).or(given(reply.access_token)).ok_or("a reply without a token")?;
        if HeaderValue::from_str(&token).is_err() {
            return Err("a token that cannot stand in a header");
        }
        let life = reply.expires_in.as_ref().and_then(seconds).or_else(|| jwt_life(&token, now));
        let life = life.unwrap_or(DEFAULT_LIFE).min(LONGEST_LIFE);
        Ok(Token { secret: Secret::new(token), life })
    }

    /// Renewed while it is still good, so that nobody's pull meets its end.
    pub(super) fn renew_after(&self) -> Duration {
        self.life.mul_f64(0.75)
    }
}

impl moka::Expiry<Key, Token> for Expiry {
    fn expire_after_create(&self, _: &Key, token: &Token, _: Instant) -> Option<Duration> {
        Some(token.renew_after())
    }
}

fn login_error(errand: &Errand, reason: &str) -> Error {
    Error::Login { endpoint: errand.endpoint.clone(), reason: reason.to_owned() }
}

fn seconds(value: &Value) -> Option<Duration> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(number).ok()
}

/// What is left of a JSON web token's life, by its own claim; nobody checks the signature here.
fn jwt_life(token: &str, now: SystemTime) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let claims = token.split('.').nth(1)?.trim_end_matches('=');
    let claims: Claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(claims.exp).ok()?)?;
    // A token that is already over here means that one of the clocks is wrong: not for this to judge.
    end.duration_since(now).ok().filter(|life| !life.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn parse(reply: &str) -> Result<(String, u64), &'static str> {
        let token = Token::parse(reply.as_bytes(), SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))?;
        Ok((token.secret.reveal().to_owned(), token.life.as_secs()))
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn replies_as_they_come() {
        let ok = |token: &str, life| Ok((token.to_owned(), life));
        for (reply, expected) in [
            (r#"{"token":"a","expires_in":300}"#, ok("a", 300)),
            (r#"{"access_token":"b","expires_in":3600.5}"#, ok("b", 3600)),
            (r#"{"token":"a","access_token":"b","expires_in":"120"}"#, ok("a", 120)),
            (r#"{"token":"","access_token":"b"}"#, ok("b", 60)),
            (r#"{"token":"a","expires_in":null}"#, ok("a", 60)),
            (r#"{"token":"a","expires_in":-1}"#, ok("a", 60)),
            (r#"{"token":"a","expires_in":1}"#, ok("a", 1)),
            (r#"{"token":"a","expires_in":1e12}"#, ok("a", 86_400)),
            ("{}", Err("a reply without a token")),
            ("<html>", Err("a token that is not in JSON")),
            (r#"{"token":"a\nb"}"#, Err("a token that cannot stand in a header")),
        ] {
            assert_eq!(parse(reply), expected, "{reply}");
        }
    }

    #[test]
    fn a_life_from_within_the_token() {
        for (claims, expected) in [
            (format!("{{\"exp\":{}}}", NOW + 3600), 3600),
            (format!("{{\"exp\":{}}}", NOW - 1), 60),
            ("{\"exp\":1e300}".to_owned(), 60),
            ("{}".to_owned(), 60),
            ("nonsense".to_owned(), 60),
        ] {
            let token = jwt(&claims);
            assert_eq!(parse(&format!("{{\"token\":\"{token}\"}}")), Ok((token, expected)), "{claims}");
        }
        let both =
            format!("{{\"token\":\"{}\",\"expires_in\":10}}", jwt(&format!("{{\"exp\":{}}}", NOW + 99)));
        assert_eq!(parse(&both).unwrap().1, 10);
    }

    #[test]
    fn renewed_before_its_end() {
        let token = Token { secret: Secret::new("t"), life: Duration::from_secs(300) };
        assert_eq!(token.renew_after(), Duration::from_secs(225));
        assert!(!format!("{token:?}").contains("\"t\""));
    }
}
