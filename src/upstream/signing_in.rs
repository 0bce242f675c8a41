//! Tries an endpoint out for the operator: is it there, does an account get in, how much has it left?
//!
//! Nothing here costs a pull (I2): what is sent is a GET of `/v2/`, what it takes to get a token, and a HEAD. Where
//! credentials go is decided where it is for every pull, in [`super::login`] (I6); a redirect of `/v2/` is not followed.

use std::time::Duration;

use http::{Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::answer::{is_html, refusal};
use super::asking::{Ask, challenge, no_way_in, note, tell};
use super::challenge::Challenge;
use super::client::about_manifest;
use super::endpoint::Endpoint;
use super::redirect::is_redirect;
use super::{Client, Error, body};
use crate::config::Probe;
use crate::oci::{Reference, RepositoryName};
use crate::scheduler::{ClientAddr, Errand, Lease, Refused, Told, Want};

/// How an endpoint received an account, or nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedIn {
    /// From the first question to the headers of its answer, connecting included.
    pub latency: Duration,
    /// What it made of the account.
    pub welcome: Welcome,
}

/// What an endpoint makes of an account, or of nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Welcome {
    /// It asked for the account's credentials and took them.
    LoggedIn,
    /// It asked for nothing; of nobody, for nothing that an account is needed for.
    Open,
    /// It has nothing for nobody: it wants a user name and password.
    Closed,
}

/// Whoever tries everything out at once waits for connections and pace longer than a client would.
const PATIENCE: Duration = Duration::from_secs(60);

impl Client {
    /// Reaches an endpoint and logs an account in there (`None`: goes there as nobody), as `docker login` does: with a
    /// token that is for no repository. For nobody no token is asked for, as some registries refuse such a one.
    ///
    /// # Errors
    /// What is in the way: [`Error::Login`] where it is the login.
    pub async fn sign_in(&self, endpoint: usize, account: Option<usize>) -> Result<SignedIn, Error> {
        // A lease is for a repository. Where nothing is left to be chosen, it does not matter which.
        let any: RepositoryName = "login".parse().expect("a word is a repository");
        let lease = self.lease_for(&any, endpoint, account).await?;
        let endpoint = self.endpoint(&lease);
        let attempt = lease.attempt(endpoint.place);
        let outcome = self.enter(endpoint, &lease).await;
        note(attempt, endpoint, outcome.as_ref().map(|_| StatusCode::OK));
        match &outcome {
            Ok(SignedIn { welcome: Welcome::LoggedIn, .. }) => lease.let_in(endpoint.place),
            Ok(_) => {}
            Err(error) => tell(&lease, endpoint, error),
        }
        outcome
    }

    /// What an endpoint says of the pulls that an account (`None`: nobody) has left, by a free HEAD; `None` where it
    /// names no limit. The account goes along also where it is meant for other repositories.
    ///
    /// # Errors
    /// Why it cannot be known; [`Error::Login`] where it is the login.
    pub async fn budget(
        &self,
        endpoint: usize,
        account: Option<usize>,
        probe: &Probe,
    ) -> Result<Option<Told>, Error> {
        let lease = self.lease_for(&probe.repository, endpoint, account).await?;
        let ask = about_manifest(&probe.repository, &Reference::Tag(probe.tag.clone()));
        self.found_and_told(&lease, &ask).await.map(|(_, told)| told)
    }

    async fn lease_for(
        &self,
        repository: &RepositoryName,
        endpoint: usize,
        account: Option<usize>,
    ) -> Result<Lease, Refused> {
        // Whether it answers is what the operator wants to know.
        let want = Want::question(repository).only(endpoint, account).insistent();
        // An endpoint that wants to be left alone is left alone: that is what there is to be told.
        let errand = Errand::of(ClientAddr::NOBODY).or_else().held_for(PATIENCE);
        self.scheduler.lease(self.id(), want, &errand).await
    }

    async fn enter(&self, endpoint: &Endpoint, lease: &Lease) -> Result<SignedIn, Error> {
        let (begun, account) = (Instant::now(), lease.account());
        let response = self.knock(endpoint, account).await?;
        let latency = begun.elapsed();
        let welcome = match (account, asked_for(endpoint, response).await?) {
            (_, None) | (None, Some(Challenge::Bearer { .. })) => Welcome::Open,
            (None, Some(Challenge::Basic)) => Welcome::Closed,
            (Some(account), Some(challenge)) => self.log_in(endpoint, lease, account, challenge).await?,
        };
        Ok(SignedIn { latency, welcome })
    }

    /// Shows the account's credentials to whom the challenge names, and what it gets for them to the endpoint.
    async fn log_in(
        &self,
        endpoint: &Endpoint,
        lease: &Lease,
        account: usize,
        challenge: Challenge,
    ) -> Result<Welcome, Error> {
        // Only so is the first token one for no repository: GHCR's challenge names one that need not exist.
        endpoint.remember(challenge);
        let ask = Ask::entry(Some(account));
        let entered = match self.be_let_in(endpoint, lease, &ask, &endpoint.url(&ask.path)).await {
            Ok((response, _)) => found_registry(endpoint, response).await,
            Err(error) => Err(error),
        };
        entered.map(|()| Welcome::LoggedIn).map_err(|error| match error {
            Error::Hidden { endpoint } => Error::Login {
                endpoint,
                reason:
                    "it keeps the account out although its credentials were taken; check that the account is \
                         still active and what it may do"
                        .to_owned(),
            },
            error => error,
        })
    }
}

/// What the answer to a question without a login asks for, if it is a registry's.
async fn asked_for(endpoint: &Endpoint, response: Response<Incoming>) -> Result<Option<Challenge>, Error> {
    if response.status() == StatusCode::UNAUTHORIZED {
        let challenge = challenge(response.headers());
        body::scrap(response).await;
        return challenge.map(Some).ok_or_else(|| no_way_in(endpoint));
    }
    found_registry(endpoint, response).await.map(|()| None).map_err(|error| match error {
        // 403 to nobody in particular: it is about this machine's address.
        Error::Hidden { endpoint } => Error::Status { endpoint, status: 403 },
        error => error,
    })
}

/// Whether the answer is one that a registry gives to whom it lets in. It may send us on for everything there is.
async fn found_registry(endpoint: &Endpoint, response: Response<Incoming>) -> Result<(), Error> {
    let bad = |reason: &str| Error::BadAnswer { endpoint: endpoint.host.clone(), reason: reason.to_owned() };
    let (status, headers) = (response.status(), response.headers());
    if status.is_success() && is_html(headers) && !headers.contains_key("docker-distribution-api-version") {
        return Err(bad("a web page in place of /v2/; check that the endpoint is a registry's"));
    }
    if status.is_success() || is_redirect(status) {
        body::scrap(response).await;
        return Ok(());
    }
    Err(match refusal(response, endpoint.host.clone()).await {
        Error::NotFound { .. } => bad("it has no /v2/; check that the endpoint is a registry's"),
        error => error,
    })
}
