//! One question to one endpoint: log in where asked to, follow where sent.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use url::Url;

use super::answer::refusal;
use super::challenge::Challenge;
use super::endpoint::Endpoint;
use super::login::{Grant, Visit};
use super::metrics::Purpose;
use super::redirect::{Trail, is_redirect};
use super::trust::host_of;
use super::wire::{Hop, Reach};
use super::{Client, Error, Sent, body};
use crate::oci::{Kind, RepositoryName};
use crate::scheduler::{Attempt, Lease};
use crate::telemetry::Trace;

/// A question, the same for every endpoint.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) purpose: Purpose,
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    pub(super) accept: &'static str,
    /// `Range`.
    pub(super) range: Option<String>,
    /// Over a connection that carries nothing else meanwhile.
    pub(super) apart: bool,
    /// Of the lease under which it is asked.
    pub(super) account: Option<usize>,
    pub(super) scope: String,
    /// By these the endpoint takes up the trace. Whom it sends us to does not get them.
    pub(super) trace: HeaderMap,
}

/// An answer that is neither a redirect nor a request to log in.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    /// Who gave it: the endpoint, or where it sent us.
    pub(super) host: String,
    redirected: bool,
}

/// One with what a challenge says, one with what is kept, one with something fresh: a fourth is of no use.
const MOST_LOGINS: usize = 3;

impl Ask {
    /// About something within a repository; `rest` is what follows its name in the path.
    pub(super) fn about(kind: Kind, method: Method, repository: &RepositoryName, rest: &str) -> Ask {
        Ask {
            purpose: Purpose::Content(kind),
            method,
            path: format!("/v2/{repository}/{rest}"),
            accept: "*/*",
            range: None,
            apart: false,
            account: None,
            scope: format!("repository:{repository}:pull"),
            trace: HeaderMap::new(),
        }
    }

    /// About nothing but to be let in: `/v2/`, with a token that is good for nothing else.
    pub(super) fn entry(account: Option<usize>) -> Ask {
        Ask {
            purpose: Purpose::Token,
            method: Method::GET,
            path: "/v2/".to_owned(),
            accept: "*/*",
            range: None,
            apart: false,
            account,
            scope: String::new(),
            trace: HeaderMap::new(),
        }
    }

    pub(super) fn accepting(self, accept: &'static str) -> Ask {
        Ask { accept, ..self }
    }
}

impl Answer {
    /// This answer if it is a plain success, else the error that it stands for.
    pub(super) async fn success(self) -> Result<Answer, Error> {
        if self.response.status() == StatusCode::OK { Ok(self) } else { Err(self.refusal().await) }
    }

    pub(super) async fn refusal(self) -> Error {
        refusal(self.response, self.host).await
    }

    pub(super) fn bad(&self, reason: &str) -> Error {
        Error::BadAnswer { endpoint: self.host.clone(), reason: reason.to_owned() }
    }

    /// Whether it came from where the endpoint sent us.
    pub(super) fn is_redirected(&self) -> bool {
        self.redirected
    }

    /// Whether it says that it has been asked too often; where the endpoint sent us is part of it.
    fn is_throttled(&self) -> bool {
        self.response.status() == StatusCode::TOO_MANY_REQUESTS
    }

    /// Whether where we were sent takes exception to HEAD: many signatures are for one method.
    pub(super) fn refuses_head(&self) -> bool {
        self.redirected && matches!(self.response.status().as_u16(), 400 | 401 | 403 | 405 | 501)
    }

    /// A signed URL is over sooner than one thinks, and its host says so in one of these ways.
    fn is_over(&self) -> bool {
        self.redirected && matches!(self.response.status().as_u16(), 400 | 401 | 403)
    }
}

impl Client {
    /// The answer of the lease's endpoint, or that of where it sends us. A signed URL that is refused is asked for
    /// afresh, once.
    pub(super) async fn ask(&self, lease: &Lease, ask: &Ask) -> Result<Answer, Error> {
        self.ask_at(self.endpoint(lease), lease, ask).await
    }

    /// The same at another endpoint than the lease was given for: a transfer goes on where it can.
    pub(super) async fn ask_at(
        &self,
        endpoint: &Endpoint,
        lease: &Lease,
        ask: &Ask,
    ) -> Result<Answer, Error> {
        let answer = self.ask_once_at(endpoint, lease, ask).await?;
        if !answer.is_over() {
            return Ok(answer);
        }
        body::scrap(answer.response).await;
        self.ask_once_at(endpoint, lease, ask).await
    }

    /// Without a second try.
    pub(super) async fn ask_once(&self, lease: &Lease, ask: &Ask) -> Result<Answer, Error> {
        self.ask_once_at(self.endpoint(lease), lease, ask).await
    }

    /// Asks, and tells the scheduler what an endpoint has against us: the login, or that there is too much of us.
    async fn ask_once_at(&self, endpoint: &Endpoint, lease: &Lease, ask: &Ask) -> Result<Answer, Error> {
        let span = lease.trace().asks("upstream");
        let ask = Ask { account: lease.account(), trace: span.headers(), ..ask.clone() };
        let answer = self.ask_and_follow(endpoint, lease, &ask).await;
        describe(&span, endpoint, &ask, &answer);
        match answer {
            Ok(answer) if answer.is_throttled() => {
                let told = if answer.redirected { None } else { endpoint.told(answer.response.headers()) };
                let error = answer.refusal().await;
                match &error {
                    Error::Throttled { retry_after, quota: true, .. } if is_pull(&ask) => {
                        lease.refused(told.as_ref(), *retry_after);
                    }
                    error => tell(lease, endpoint, error),
                }
                Err(error)
            }
            Ok(answer) => {
                lease.let_in(endpoint.place);
                Ok(answer)
            }
            Err(error) => {
                tell(lease, endpoint, &error);
                Err(error)
            }
        }
    }

    async fn ask_and_follow(&self, endpoint: &Endpoint, lease: &Lease, ask: &Ask) -> Result<Answer, Error> {
        let url = endpoint.url(&ask.path);
        let attempt = lease.attempt(endpoint.place);
        let entered = self.be_let_in(endpoint, lease, ask, &url).await;
        note(attempt, endpoint, entered.as_ref().map(|(response, _)| response.status()));
        let (mut response, grant) = entered?;
        let mut trail = Trail::new(&url);
        let mut redirected = false;
        while is_redirect(response.status()) {
            redirected = true;
            let abroad = &Ask { trace: HeaderMap::new(), ..ask.clone() };
            self.go_on(&mut trail, response).await?;
            let shown = grant.as_ref().filter(|_| trail.is_at_home()).map(Grant::header);
            let reach = endpoint.reach(trail.here(), &self.wire).await;
            response = self.send(abroad, trail.here(), reach, shown).await?;
            if response.status() == StatusCode::UNAUTHORIZED && !trail.is_at_home() {
                response = self.be_let_in_abroad(abroad, trail.here(), reach, response).await?;
            }
        }
        Ok(Answer { response, host: host_of(trail.here()), redirected })
    }

    /// Follows the `Location` of a redirect, which is never kept.
    async fn go_on(&self, trail: &mut Trail, response: Response<Incoming>) -> Result<(), Error> {
        let location = response.headers().get(LOCATION).map(|value| value.as_bytes().to_vec());
        body::scrap(response).await;
        let location = location.ok_or("a redirect to nowhere");
        let gone = location.and_then(|location| trail.go(&String::from_utf8_lossy(&location)));
        gone.map_err(|reason| Error::BadAnswer { endpoint: host_of(trail.here()), reason: reason.to_owned() })
    }

    /// Asks the endpoint itself until it lets us in or there is nothing more to show.
    pub(super) async fn be_let_in(
        &self,
        endpoint: &Endpoint,
        lease: &Lease,
        ask: &Ask,
        url: &Url,
    ) -> Result<(Response<Incoming>, Option<Grant>), Error> {
        let visit = Visit { endpoint, account: ask.account, scope: &ask.scope };
        let mut grant = self.logins.at_hand(visit).await?;
        for _ in 0..MOST_LOGINS {
            lease.on_its_way();
            let response = self.send(ask, url, Reach::Anywhere, grant.as_ref().map(Grant::header)).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok((response, grant));
            }
            lease.turned_away();
            let challenge = challenge(response.headers());
            body::scrap(response).await;
            let challenge = match challenge.or_else(|| endpoint.challenge()) {
                Some(challenge) => challenge,
                None => self.ask_for_challenge(endpoint, ask.account).await?,
            };
            grant = self.logins.after_401(visit, grant, challenge).await?;
            if grant.is_none() {
                break;
            }
        }
        Err(Error::Hidden { endpoint: endpoint.host.clone() })
    }

    /// Some registries (GCR once) challenge at `/v2/` only.
    async fn ask_for_challenge(
        &self,
        endpoint: &Endpoint,
        account: Option<usize>,
    ) -> Result<Challenge, Error> {
        let response = self.knock(endpoint, account).await?;
        let challenge = challenge(response.headers());
        body::scrap(response).await;
        challenge.ok_or_else(|| no_way_in(endpoint))
    }

    /// Asks for `/v2/` without a login.
    pub(super) async fn knock(
        &self,
        endpoint: &Endpoint,
        account: Option<usize>,
    ) -> Result<Response<Incoming>, Error> {
        let ask = Ask::entry(account);
        self.send(&ask, &endpoint.url(&ask.path), Reach::Anywhere, None).await
    }

    /// Where we were sent to may want a token of its own: an anonymous one, from its very host, or none.
    async fn be_let_in_abroad(
        &self,
        ask: &Ask,
        url: &Url,
        reach: Reach,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, Error> {
        let Some(challenge) = challenge(response.headers()) else { return Ok(response) };
        let Some(token) = self.logins.abroad(url, reach, challenge).await? else { return Ok(response) };
        body::scrap(response).await;
        self.send(ask, url, reach, Some(token)).await
    }

    async fn send(
        &self,
        ask: &Ask,
        url: &Url,
        reach: Reach,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, Error> {
        let mut headers = ask.trace.clone();
        headers.insert(ACCEPT, HeaderValue::from_static(ask.accept));
        headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
        if let Some(range) = ask.range.as_deref() {
            headers.insert(RANGE, HeaderValue::from_str(range).expect("a range is digits and signs"));
        }
        let Ask { purpose, account, apart, ref method, .. } = *ask;
        let (method, body) = (method.clone(), Bytes::new());
        self.wire.send(Hop { purpose, account, reach, apart, method, url, headers, body }).await
    }
}

/// Ends the span of a question: what was asked of whom, and what came of it, to the headers of the answer.
fn describe(span: &Trace, endpoint: &Endpoint, ask: &Ask, answer: &Result<Answer, Error>) {
    span.rename(|| format!("{} {}", ask.method, ask.purpose.as_str()));
    span.note("http.request.method", || Some(ask.method.to_string()));
    span.note("server.address", || Some(endpoint.host.clone()));
    span.note("url.path", || Some(ask.path.clone()));
    let status = answer.as_ref().ok().map(|answer| answer.response.status());
    span.note("http.response.status_code", || status.map(|status| i64::from(status.as_u16())));
    let error = match answer {
        Err(error) => Some(error.to_string()),
        Ok(answer) => {
            answer.response.status().is_server_error().then(|| answer.response.status().to_string())
        }
    };
    span.end(error.as_deref());
}

/// Whether a registry counts it.
fn is_pull(ask: &Ask) -> bool {
    ask.purpose == Purpose::Content(Kind::Manifest) && ask.method == Method::GET
}

/// Tells the scheduler what an endpoint, or its token service, has against us.
pub(super) fn tell(lease: &Lease, endpoint: &Endpoint, error: &Error) {
    match error {
        Error::Login { reason, .. } => lease.login_refused(endpoint.place, reason),
        // The token service is the registry's, and so is its patience.
        Error::Throttled { retry_after, .. } => lease.paused(endpoint.place, *retry_after),
        _ => {}
    }
}

/// Tells the scheduler whether an endpoint, its token service included, answered at all. Where it sends us is not it:
/// while a storage host is down, manifests can be had.
pub(super) fn note(attempt: Attempt<'_>, endpoint: &Endpoint, outcome: Result<StatusCode, &Error>) {
    let trouble = match outcome {
        Ok(status) => {
            Error::Status { endpoint: endpoint.host.clone(), status: status.as_u16() }.trouble(endpoint)
        }
        // A connection that was kept for too long says nothing of the next one.
        Err(Error::Unreachable { sent: Sent::OnAStaleConnection, .. }) => return,
        Err(error) => error.trouble(endpoint),
    };
    match trouble {
        Some(trouble) => attempt.failed(&trouble),
        None => attempt.answered(),
    }
}

pub(super) fn no_way_in(endpoint: &Endpoint) -> Error {
    Error::Login {
        endpoint: endpoint.host.clone(),
        reason: "it answered 401 without a way to log in that this mirror knows (Bearer, Basic)".to_owned(),
    }
}

pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let lines = headers.get_all(WWW_AUTHENTICATE).iter();
    Challenge::choose(lines.filter_map(|line| std::str::from_utf8(line.as_bytes()).ok()))
}
