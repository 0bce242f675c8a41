//! `tidelock check --online`: is each endpoint there, does each account get in, and what has it left?
//!
//! Everybody is asked at the same time and nothing costs a pull, so it can be run beside a mirror at work. No store is
//! opened, nothing is remembered. How it is told is in `shown`.

mod shown;

use anyhow::Context;
use futures_util::future::join_all;

pub(super) use self::shown::{json, lines};
use crate::app;
use crate::config::{Config, Probe, Upstream, UpstreamId};
use crate::lifecycle::Lifecycle;
use crate::scheduler::{Scheduler, Told};
use crate::telemetry::Metrics;
use crate::upstream::{BadSetup, Client, Error, SignedIn, UpstreamMetrics, Welcome, host_of};

/// What came of one account at one endpoint.
#[derive(Debug)]
pub(super) struct Finding {
    upstream: String,
    endpoint: String,
    /// `None` for nobody.
    account: Option<String>,
    outcome: Result<Stand, String>,
}

/// How an account stands that is of use.
#[derive(Debug)]
struct Stand {
    signed_in: SignedIn,
    budget: Budget,
}

/// What is known of an account's pulls.
#[derive(Debug)]
enum Budget {
    /// The upstream has no `probe`, or nobody gets in without an account.
    Unasked,
    /// It answered without a word of a limit.
    Unlimited,
    /// What it told.
    Limited(Told),
    /// Why it told nothing.
    Unknown(String),
}

/// An account (`None`: nobody) at an endpoint, both by their place in the configuration.
type Seat = (usize, Option<usize>);

/// Tries out every account at every endpoint, by the time limits of each upstream.
pub(super) fn ask(config: &Config) -> anyhow::Result<Vec<Finding>> {
    app::choose_tls_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the network")?;
    let findings = runtime.block_on(ask_all(config));
    // A file that cannot be read to its end must not hold the process.
    runtime.shutdown_background();
    Ok(findings)
}

async fn ask_all(config: &Config) -> Vec<Finding> {
    let (life, metrics) = (Lifecycle::default(), Metrics::default());
    let scheduler = Scheduler::new(config, None, &life, &metrics);
    let counts = UpstreamMetrics::new(&metrics, config);
    let asked = config.upstreams.iter().enumerate().map(|(index, upstream)| {
        let client = Client::new(UpstreamId::new(index), upstream, &scheduler, counts.clone(), &life);
        ask_upstream(upstream, client)
    });
    let findings = join_all(asked).await;
    life.stop();
    findings.into_iter().flatten().collect()
}

async fn ask_upstream(upstream: &Upstream, client: Result<Client, BadSetup>) -> Vec<Finding> {
    let accounts = (0..upstream.accounts.len()).map(Some).chain(upstream.may_go_anonymous().then_some(None));
    let seats = (0..upstream.endpoints.len())
        .flat_map(|endpoint| accounts.clone().map(move |account| (endpoint, account)));
    join_all(seats.map(|seat| ask_at(upstream, &client, seat))).await
}

async fn ask_at(upstream: &Upstream, client: &Result<Client, BadSetup>, seat: Seat) -> Finding {
    let outcome = match client {
        Ok(client) => stand(upstream, client, seat).await.map_err(|error| advised(&error)),
        Err(bad) => Err(bad.to_string()),
    };
    let (endpoint, account) = seat;
    Finding {
        upstream: upstream.registry.to_string(),
        endpoint: host_of(&upstream.endpoints[endpoint]),
        account: account.map(|account| upstream.accounts[account].name.clone()),
        outcome,
    }
}

async fn stand(upstream: &Upstream, client: &Client, (endpoint, account): Seat) -> Result<Stand, Error> {
    let signed_in = client.sign_in(endpoint, account).await?;
    let is_closed = signed_in.welcome == Welcome::Closed;
    if is_closed && upstream.accounts.is_empty() {
        let reason = "it wants a user name and password; give this upstream an account".to_owned();
        return Err(Error::Login { endpoint: host_of(&upstream.endpoints[endpoint]), reason });
    }
    let budget = match upstream.probe.as_ref().filter(|_| !is_closed) {
        Some(probe) => Budget::of(client.budget(endpoint, account, probe).await, probe)?,
        None => Budget::Unasked,
    };
    Ok(Stand { signed_in, budget })
}

impl Budget {
    /// That an account cannot log in is a failure; that its budget cannot be known is none, since pulls go on.
    fn of(told: Result<Option<Told>, Error>, probe: &Probe) -> Result<Budget, Error> {
        match told {
            Ok(Some(told)) => Ok(Budget::Limited(told)),
            Ok(None) => Ok(Budget::Unlimited),
            Err(error @ Error::Login { .. }) => Err(error),
            Err(Error::NotFound { .. } | Error::Hidden { .. }) => {
                Ok(Budget::Unknown(format!("it shows no {probe}; set another `probe`")))
            }
            Err(error) => Ok(Budget::Unknown(advised(&error))),
        }
    }
}

impl Finding {
    pub(super) fn is_failure(&self) -> bool {
        self.outcome.is_err()
    }
}

/// An error, with what to do about it where it does not say so itself.
fn advised(error: &Error) -> String {
    let advice = match error {
        Error::Unreachable { .. } => "; check its address, the network and the upstream's `proxy`",
        Error::TimedOut { .. } => "; check the network, or raise the upstream's `response_timeout`",
        Error::Status { .. } => "; try again later, or ask whoever runs it",
        Error::Refused(_) | Error::Throttled { .. } | Error::BrokenOff { .. } => "; try again later",
        Error::NotFound { .. }
        | Error::Hidden { .. }
        | Error::Login { .. }
        | Error::BadAnswer { .. }
        | Error::NoParts { .. } => "",
    };
    format!("{error}{advice}")
}
