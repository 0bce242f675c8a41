//! A fake token server: hands out tokens for scopes, and remembers them.
//!
//! Every fake registry has one at its own `/token`; [`TokenServer::start`] makes one with a port of
//! its own. It grants what it is asked for, foreign scopes included: what a token opens is judged
//! by the registry. Slow, dead or failing is said with faults, as for every fake.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::Method;
use serde_json::json;

use super::door::basic_credentials;
use super::log::Record;
use super::serving::Front;
use super::site::{Answer, Call, Site};

/// A token server. Clones are the same one; it derefs to [`Site`], which has its log and its faults.
#[derive(Clone)]
pub struct TokenServer(Arc<Inner>);

struct Inner {
    issuer: Arc<Issuer>,
    site: Arc<Site>,
    /// None when it lives at a registry's `/token`.
    front: Option<Front>,
}

/// How a token server behaves. The default is Docker Hub's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBehaviour {
    /// Seconds in the reply; none leaves the field out.
    pub expires_in: Option<u64>,
    /// How long a token is really good; none is what the reply says, and 60 s if it says nothing.
    pub lifetime: Option<Duration>,
    /// Tokens look like JWTs and carry their expiry in `exp`, as at Quay.
    pub jwt: bool,
    /// Which fields carry the token.
    pub fields: TokenFields,
    /// The status that POST is refused with; none means POST works.
    pub refuse_post: Option<u16>,
    /// Anonymous clients get 401.
    pub require_account: bool,
    /// User name and password get 401: only a refresh token will do.
    pub require_identity_token: bool,
    /// Scopes that name these repositories are refused to anonymous clients, as GHCR does.
    pub refuse_repositories: Vec<String>,
    /// The status they are refused with.
    pub refuse_status: u16,
    /// Spaces added to the reply.
    pub padding: usize,
}

/// Which fields of the reply carry the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFields {
    /// `token` and `access_token`.
    Both,
    /// Only `token`.
    Token,
    /// Only `access_token`.
    AccessToken,
}

/// What a good token stands for.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) account: Option<String>,
    scopes: Vec<String>,
}

/// Issues tokens and knows which are good.
#[derive(Default)]
pub(super) struct Issuer(Mutex<Book>);

#[derive(Default)]
struct Book {
    behaviour: TokenBehaviour,
    accounts: BTreeMap<String, String>,
    /// Refresh token to account.
    identities: HashMap<String, String>,
    issued: HashMap<String, (Grant, Instant)>,
    count: u64,
    /// How far the clock was turned on.
    ahead: Duration,
}

/// What a token request says, whichever way it came.
struct Asked {
    account: Option<String>,
    scopes: Vec<String>,
    offline: bool,
}

impl TokenServer {
    /// A token server with a port of its own.
    pub async fn start() -> Self {
        let (issuer, site) = parts();
        let front = Front::start(Arc::clone(&site), None).await;
        Self(Arc::new(Inner { issuer, site, front: Some(front) }))
    }

    /// One without a port: a registry routes `/token` to it.
    pub(super) fn homeless() -> Self {
        let (issuer, site) = parts();
        Self(Arc::new(Inner { issuer, site, front: None }))
    }

    /// Where tokens are had: the realm of a challenge.
    ///
    /// # Panics
    /// When it has no port of its own; the realm is then the registry's URL and `/token`.
    pub fn realm(&self) -> String {
        format!("{}/token", self.front().url())
    }

    /// Changes how it behaves.
    pub fn set(&self, change: impl FnOnce(&mut TokenBehaviour)) {
        change(&mut self.0.issuer.book().behaviour);
    }

    /// Adds an account.
    pub fn add_account(&self, user: &str, password: &str) {
        self.0.issuer.book().accounts.insert(user.to_owned(), password.to_owned());
    }

    /// Forgets an account: its password is wrong from now on; its tokens stay good.
    pub fn remove_account(&self, user: &str) {
        self.0.issuer.book().accounts.remove(user);
    }

    /// Adds a refresh token (an identity token) for an account.
    pub fn add_identity_token(&self, token: &str, user: &str) {
        self.0.issuer.book().identities.insert(token.to_owned(), user.to_owned());
    }

    /// Makes every token issued so far invalid at once.
    pub fn expire_all_tokens(&self) {
        self.0.issuer.book().issued.clear();
    }

    /// Turns the clock that tokens expire by.
    pub fn advance(&self, by: Duration) {
        self.0.issuer.book().ahead += by;
    }

    /// How many tokens were issued.
    pub fn issued(&self) -> u64 {
        self.0.issuer.book().count
    }

    /// Every request to it.
    pub fn token_requests(&self) -> Vec<Record> {
        self.0.site.requests()
    }

    /// Refuses connections from now on and kills those there are.
    pub async fn stop(&self) {
        self.front().stop().await;
    }

    /// Accepts again, on the same port.
    pub fn resume(&self) {
        self.front().resume();
    }

    pub(super) fn issuer(&self) -> Arc<Issuer> {
        Arc::clone(&self.0.issuer)
    }

    pub(super) fn site(&self) -> Arc<Site> {
        Arc::clone(&self.0.site)
    }

    fn front(&self) -> &Front {
        self.0.front.as_ref().expect("this token server has no port of its own: use TokenServer::start")
    }
}

impl std::ops::Deref for TokenServer {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.0.site
    }
}

impl Default for TokenBehaviour {
    fn default() -> Self {
        Self {
            expires_in: Some(300),
            lifetime: None,
            jwt: false,
            fields: TokenFields::Both,
            refuse_post: None,
            require_account: false,
            require_identity_token: false,
            refuse_repositories: Vec::new(),
            refuse_status: 403,
            padding: 0,
        }
    }
}

impl Grant {
    /// Whether some scope allows to pull from this repository.
    pub(super) fn covers_pull(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| {
            // The name may hold a host with a port: the type ends at the first colon, the name at the last.
            let Some((kind, rest)) = scope.split_once(':') else { return false };
            let Some((scoped, actions)) = rest.rsplit_once(':') else { return false };
            kind == "repository" && scoped == name && actions.split(',').any(|a| a == "pull" || a == "*")
        })
    }
}

impl Issuer {
    /// What a token stands for, if it is good now.
    pub(super) fn grant(&self, token: &str) -> Option<Grant> {
        let book = self.book();
        let (grant, expires) = book.issued.get(token)?;
        (Instant::now() + book.ahead < *expires).then(|| grant.clone())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("unpoisoned")
    }

    fn answer(&self, call: &Call) -> Answer {
        let mut book = self.book();
        let asked = match call.method {
            Method::POST => book.asked_by_post(call),
            _ => book.asked_by_get(call),
        };
        let asked = match asked {
            Ok(asked) => asked,
            Err(refusal) => return refusal,
        };
        if asked.account.is_none() && book.behaviour.require_account {
            return Answer::error(401, "UNAUTHORIZED", "authentication required");
        }
        let names =
            |scope: &String| book.behaviour.refuse_repositories.iter().any(|name| scope.contains(name));
        if asked.account.is_none() && asked.scopes.iter().any(names) {
            return Answer::error(book.behaviour.refuse_status, "DENIED", "requested access is denied");
        }
        book.issue(asked)
    }
}

impl Book {
    fn asked_by_get(&self, call: &Call) -> Result<Asked, Answer> {
        let account = match call.headers.get("authorization") {
            None => None,
            Some(_) => match basic_credentials(call.header("authorization")) {
                Some((user, password)) => Some(self.check_password(&user, &password)?),
                None => return Err(wrong_credentials()),
            },
        };
        let scopes = call.params("scope").iter().flat_map(|s| s.split(' ')).map(str::to_owned).collect();
        Ok(Asked { account, scopes, offline: !call.params("offline_token").is_empty() })
    }

    fn asked_by_post(&self, call: &Call) -> Result<Asked, Answer> {
        if let Some(status) = self.behaviour.refuse_post {
            return Err(Answer::error(status, "UNSUPPORTED", "POST is not supported"));
        }
        let form: HashMap<String, String> = url::form_urlencoded::parse(&call.body).into_owned().collect();
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if field("service").is_empty() || field("client_id").is_empty() {
            return Err(Answer::error(400, "INVALID", "service and client_id are required"));
        }
        let account = match field("grant_type") {
            "password" => self.check_password(field("username"), field("password"))?,
            "refresh_token" => {
                self.identities.get(field("refresh_token")).cloned().ok_or_else(wrong_credentials)?
            }
            _ => return Err(Answer::error(400, "UNSUPPORTED", "unknown grant_type")),
        };
        let scopes = field("scope").split(' ').map(str::to_owned).collect();
        Ok(Asked { account: Some(account), scopes, offline: field("access_type") == "offline" })
    }

    fn check_password(&self, user: &str, password: &str) -> Result<String, Answer> {
        let is_right = self.accounts.get(user).is_some_and(|right| right == password);
        if is_right && !self.behaviour.require_identity_token {
            Ok(user.to_owned())
        } else {
            Err(wrong_credentials())
        }
    }

    fn issue(&mut self, asked: Asked) -> Answer {
        let behaviour = self.behaviour.clone();
        self.count += 1;
        let lifetime = behaviour.lifetime.unwrap_or(Duration::from_secs(behaviour.expires_in.unwrap_or(60)));
        let token = if behaviour.jwt { jwt(self.count, lifetime) } else { format!("token-{}", self.count) };
        let mut reply = json!({ "scope": asked.scopes.join(" ") });
        if behaviour.fields != TokenFields::AccessToken {
            reply["token"] = json!(token);
        }
        if behaviour.fields != TokenFields::Token {
            reply["access_token"] = json!(token);
        }
        if let Some(seconds) = behaviour.expires_in {
            reply["expires_in"] = json!(seconds);
        }
        if asked.offline {
            let identity = format!("identity-{}", self.count);
            reply["refresh_token"] = json!(identity);
            self.identities.insert(identity, asked.account.clone().unwrap_or_default());
        }
        let account = asked.account.clone();
        let grant = Grant { account: asked.account, scopes: asked.scopes };
        self.issued.insert(token, (grant, Instant::now() + self.ahead + lifetime));
        let body = format!("{reply}{}", " ".repeat(behaviour.padding));
        let answer = Answer::new(200).with("content-type", "application/json").body(body);
        Answer { account, ..answer }
    }
}

fn parts() -> (Arc<Issuer>, Arc<Site>) {
    let issuer = Arc::new(Issuer::default());
    let asked = Arc::clone(&issuer);
    let site = Site::new(move |call| {
        let issuer = Arc::clone(&asked);
        async move { issuer.answer(&call) }
    });
    (issuer, site)
}

fn wrong_credentials() -> Answer {
    Answer::error(401, "UNAUTHORIZED", "incorrect username or password")
}

/// A token of the form of a JWT; the signature is nobody's to check.
fn jwt(number: u64, lifetime: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let claims =
        json!({ "jti": number.to_string(), "iat": now.as_secs(), "exp": (now + lifetime).as_secs() });
    let part = |text: String| BASE64_URL_SAFE_NO_PAD.encode(text);
    let header = json!({ "alg": "RS256", "typ": "JWT" });
    format!(
        "{}.{}.{}",
        part(header.to_string()),
        part(claims.to_string()),
        part(format!("signature-{number}"))
    )
}
