//! What a request shows to be let in, and what to do when it is not.
//!
//! ```text
//! 401 ─ challenge ─┬ Bearer: is the token service one that may be asked (I6)? ─▶ token ─▶ once more
//!                  └ Basic: the account's name and password, to the endpoint itself ─▶ once more
//! ```
//!
//! What was kept from before gets a second try with something fresh; what was fresh and is refused is final.

use std::sync::Arc;

use http::HeaderValue;
use url::Url;

use super::Error;
use super::challenge::Challenge;
use super::credentials::Account;
use super::endpoint::Endpoint;
use super::token::{Errand, Key, Tokens};
use super::trust::{host_of, is_same_origin, may_have_credentials};
use super::wire::{Reach, Wire};
use crate::lifecycle::Lifecycle;
use crate::oci::RegistryHost;
use crate::secret::Secret;

/// Lets requests of one upstream in.
pub(super) struct Logins {
    wire: Arc<Wire>,
    accounts: Arc<[Account]>,
    tokens: Arc<Tokens>,
    token_hosts: Vec<RegistryHost>,
}

/// What a request shows.
#[derive(Debug, Clone)]
pub(super) enum Grant {
    /// A token.
    Token {
        key: Key,
        secret: Secret,
        /// From before: it may be out of date.
        kept: bool,
    },
    /// An account's name and password.
    Basic {
        header: HeaderValue,
        /// From before: it may be out of date.
        kept: bool,
    },
}

/// Who asks for what, where.
#[derive(Clone, Copy)]
pub(super) struct Visit<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) account: Option<usize>,
    /// `repository:<name>:pull`.
    pub(super) scope: &'a str,
}

impl Logins {
    pub(super) fn new(
        wire: Arc<Wire>,
        accounts: Vec<Account>,
        token_hosts: &[RegistryHost],
        life: &Lifecycle,
    ) -> Logins {
        let accounts: Arc<[Account]> = accounts.into();
        let tokens = Arc::new(Tokens::new(Arc::clone(&wire), Arc::clone(&accounts), life.clone()));
        Logins { wire, accounts, tokens, token_hosts: token_hosts.to_vec() }
    }

    /// What to show right away, by what the endpoint asked for before. Where that is no longer to be had, the
    /// endpoint is asked anew the next time: its token service may have moved.
    pub(super) async fn at_hand(&self, visit: Visit<'_>) -> Result<Option<Grant>, Error> {
        let Some(challenge) = visit.endpoint.challenge() else { return Ok(None) };
        let grant = match challenge {
            Challenge::Bearer { realm, service, .. } => {
                self.bearer(visit, &realm, service, visit.scope.to_owned()).await.map(Some)
            }
            Challenge::Basic if visit.account.is_some() => self.basic(visit).await.map(Some),
            Challenge::Basic => Ok(None),
        };
        grant.inspect_err(|error| {
            if is_no_way(error) {
                visit.endpoint.forget();
            }
        })
    }

    /// What to show after a 401 to what was `shown`; `None` when there is nothing better to show. A challenge
    /// is remembered once it has led to something: one that cannot be met would stand in the way for ever.
    pub(super) async fn after_401(
        &self,
        visit: Visit<'_>,
        shown: Option<Grant>,
        challenge: Challenge,
    ) -> Result<Option<Grant>, Error> {
        let met = challenge.clone();
        let grant = match challenge {
            Challenge::Bearer { realm, service, scope } => {
                let scope = scope.unwrap_or_else(|| visit.scope.to_owned());
                self.after_bearer(visit, shown, (&realm, service, scope)).await
            }
            Challenge::Basic => self.after_basic(visit, shown).await.map(Some),
        };
        if !grant.as_ref().is_err_and(is_no_way) {
            visit.endpoint.remember(met);
        }
        grant
    }

    /// An anonymous token for a host that a redirect led to, when its token service is on that very host.
    pub(super) async fn abroad(
        &self,
        url: &Url,
        reach: Reach,
        challenge: Challenge,
    ) -> Result<Option<HeaderValue>, Error> {
        let Challenge::Bearer { realm, service, scope } = challenge else { return Ok(None) };
        let Some(realm) = realm.parse().ok().filter(|realm| is_same_origin(url, realm)) else {
            return Ok(None);
        };
        let key = Key { account: None, realm, service, scope: scope.unwrap_or_default() };
        let (token, _) = self.tokens.token(Errand { key, reach, endpoint: host_of(url) }).await?;
        Ok(Some(bearer(&token.secret)))
    }

    /// A token where there was none, or a fresh one for one from before. The same token once more is no use.
    async fn after_bearer(
        &self,
        visit: Visit<'_>,
        shown: Option<Grant>,
        (realm, service, scope): (&str, Option<String>, String),
    ) -> Result<Option<Grant>, Error> {
        if let Some(Grant::Token { key, secret, kept }) = shown {
            let same = key.scope == scope && key.service == service;
            if same && !kept {
                return Ok(None);
            }
            self.tokens.forget(&key, &secret).await;
        }
        self.bearer(visit, realm, service, scope).await.map(Some)
    }

    async fn after_basic(&self, visit: Visit<'_>, shown: Option<Grant>) -> Result<Grant, Error> {
        let failed = |reason: String| Error::Login { endpoint: visit.endpoint.host.clone(), reason };
        let Some(account) = self.account(visit) else {
            let reason = "it wants a user name and password, and no account is configured for this upstream";
            return Err(failed(reason.to_owned()));
        };
        match shown {
            Some(Grant::Basic { kept: false, .. }) => {
                let name = &account.name;
                return Err(failed(format!("it refused account `{name}`; check its user name and password")));
            }
            Some(Grant::Basic { kept: true, .. }) => account.forget().await,
            Some(Grant::Token { .. }) | None => {}
        }
        self.basic(visit).await
    }

    async fn bearer(
        &self,
        visit: Visit<'_>,
        realm: &str,
        service: Option<String>,
        scope: String,
    ) -> Result<Grant, Error> {
        let realm = self.judge(visit, realm)?;
        let reach = visit.endpoint.reach(&realm, &self.wire).await;
        let key = Key { account: visit.account, realm, service, scope };
        let errand = Errand { key: key.clone(), reach, endpoint: visit.endpoint.host.clone() };
        let (token, kept) = self.tokens.token(errand).await?;
        Ok(Grant::Token { key, secret: token.secret, kept })
    }

    async fn basic(&self, visit: Visit<'_>) -> Result<Grant, Error> {
        let failed = |reason: String| Error::Login { endpoint: visit.endpoint.host.clone(), reason };
        let account = self.account(visit).ok_or_else(|| failed("no account is configured".to_owned()))?;
        let had = account.login().await.map_err(|cause| failed(cause.to_string()))?;
        Ok(Grant::Basic { header: had.login.basic(), kept: had.kept })
    }

    /// Whether the token service may be asked at all (I6).
    fn judge(&self, visit: Visit<'_>, realm: &str) -> Result<Url, Error> {
        let bad = |reason: String| Error::BadAnswer { endpoint: visit.endpoint.host.clone(), reason };
        let base = visit.endpoint.base();
        let realm: Url = realm.parse().map_err(|_| bad("a token service that is no URL".to_owned()))?;
        match (base.scheme(), realm.scheme()) {
            (_, "https") | ("http", "http") => {}
            _ => return Err(bad("a token service without https".to_owned())),
        }
        if !realm.username().is_empty() || realm.password().is_some() {
            return Err(bad("a token service with a user name in its URL".to_owned()));
        }
        if visit.account.is_some() && !may_have_credentials(base, &realm, &self.token_hosts) {
            let host = host_of(&realm);
            return Err(bad(format!(
                "it wants the account's credentials sent to {host}, which is not its own domain; if that is \
                 right, add \"{host}\" to this upstream's token_hosts"
            )));
        }
        Ok(realm)
    }

    fn account(&self, visit: Visit<'_>) -> Option<&Account> {
        visit.account.and_then(|index| self.accounts.get(index))
    }
}

impl Grant {
    /// `Authorization`, marked so that it is never printed.
    pub(super) fn header(&self) -> HeaderValue {
        match self {
            Grant::Basic { header, .. } => header.clone(),
            Grant::Token { secret, .. } => bearer(secret),
        }
    }
}

/// Whether a challenge that ended so leads nowhere. A token service that hides one repository, or asks for
/// patience, is the right one all the same.
fn is_no_way(error: &Error) -> bool {
    !matches!(error, Error::Hidden { .. } | Error::Throttled { .. })
}

fn bearer(token: &Secret) -> HeaderValue {
    let mut header = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
        .expect("a token was checked to be fit for a header when it came");
    header.set_sensitive(true);
    header
}
