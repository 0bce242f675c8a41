//! Decides which upstream request goes next, on which account, and when.
//!
//! ```text
//!  upstream ── Want ──▶ Lane ── connection, pace, budget ──▶ Lease, Pull ── what came of it ──▶ Ledger
//!                        └ Queue: by priority, fairly between clients
//! ```
//!
//! Nothing is sent upstream without a [`Lease`], and nothing that a registry counts without a [`Pull`] (I2): the
//! calls of `upstream` take one, and only [`Scheduler`] makes them. Every upstream has a [`lane`] of its own;
//! each of its endpoints has a [`ledger`] for each account, and [`budget`] chooses among them. Every wait for
//! leave ends by `schedule.max_wait` (I8); how fast bytes then come is for the [`line`]s. What the ledgers know is kept in the store, a granted pull before it is sent.
//!
//! Two kinds of "no" are kept apart. A spent *pull quota* makes its account rest while others go on and free
//! questions still go; the account is asked by a free HEAD whether it has recovered, so that nobody's pull has
//! to find out. An *abuse limit* is about the address, so everything to that endpoint pauses.
//!
//! An endpoint that does not answer at all is left alone too, by its [`breaker`]: nobody waits for it, and one request
//! at a time finds out whether it is back.
//!
//! Leaves out how an answer is read (`upstream`) and what is served in the meantime (`mirror`).

mod attempt;
mod breaker;
mod budget;
mod errand;
mod hour;
#[cfg(test)]
mod interleavings;
mod keeping;
mod lane;
mod lease;
mod ledger;
mod line;
mod metrics;
mod outlook;
mod pace;
mod queue;
mod refused;
mod rest;
mod spenders;
mod terms;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use attempt::Attempt;
pub use breaker::{Access, Trouble};
pub use budget::ANONYMOUS;
pub use errand::{ClientAddr, Errand, Priority, Urgency};
pub use lease::{Lease, Pull, Sent};
pub use outlook::{AccountOutlook, DownOutlook, Outlook, Payer, Standing};
pub use refused::{Down, Refused};
pub use spenders::Spent;
pub use terms::Terms;

use self::keeping::Keeper;
use self::lane::Lane;
use self::line::Line;
use self::metrics::{LaneMetrics, OutlookCollector, SchedulerMetrics};
use crate::config::{Config, UpstreamId};
use crate::lifecycle::Lifecycle;
use crate::oci::{Reference, RepositoryName};
use crate::store::Store;
use crate::telemetry::Metrics;

/// Hands out leave to send upstream requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scheduler {
    lanes: Arc<[Arc<Lane>]>,
    // A std lock: held for a copy, never over an await.
    max_wait: Arc<Mutex<Duration>>,
    keeper: Option<Arc<Keeper>>,
}

/// A request that somebody wants to send.
#[derive(Debug, Clone)]
pub struct Want {
    repository: RepositoryName,
    kind: Kind,
    from: usize,
    only: Option<Only>,
    /// Not without an account.
    only_accounts: bool,
    /// Not on these accounts.
    without: Vec<usize>,
    /// Though the endpoint has not answered others.
    is_insistent: bool,
}

/// What an answer says of a quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Requests in a window.
    pub limit: Option<u64>,
    /// The window.
    pub window: Option<Duration>,
    /// What is left; may be below 0.
    pub remaining: Option<i64>,
    /// Until it is whole again.
    pub reset: Option<Duration>,
}

impl Told {
    /// Whether anything can be made of it: where nothing is left of a limit that nobody knows, nothing is known.
    pub fn is_usable(&self) -> bool {
        self.limit.is_some() || self.remaining.is_some_and(|left| left > 0)
    }
}

/// A spent account that is due to be asked, and about what.
#[derive(Debug)]
pub struct Probe {
    /// The lease to ask with.
    pub lease: Lease,
    /// What was last pulled on the account.
    pub repository: RepositoryName,
    /// By this reference.
    pub reference: Reference,
}

/// What a request is, as far as leave to send it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A list, or a mere HEAD: over in a moment, and free.
    Question,
    /// A blob, which may take its time.
    Transfer,
    /// A manifest: counted.
    Pull,
}

/// An account (`None`: nobody's) at an endpoint, and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Only {
    door: usize,
    account: Option<usize>,
}

impl Scheduler {
    /// A scheduler for the upstreams of `config`, which begins with what `store` kept of their budgets.
    pub fn new(config: &Config, store: Option<&Store>, life: &Lifecycle, metrics: &Metrics) -> Scheduler {
        let counts = SchedulerMetrics::new(metrics);
        let all = Arc::new(Line::new(&config.schedule.bandwidth));
        let lanes: Vec<Arc<Lane>> = config
            .upstreams
            .iter()
            .enumerate()
            .map(|(index, upstream)| {
                let counts = LaneMetrics::new(&counts, upstream);
                Arc::new(Lane::new(UpstreamId::new(index), upstream, &config.schedule, &all, counts, life))
            })
            .collect();
        let lanes: Arc<[Arc<Lane>]> = lanes.into();
        metrics.register(Box::new(OutlookCollector::new(&lanes)));
        let keeper = store.map(|store| Arc::new(Keeper::open(store.clone(), &lanes, life)));
        let max_wait = Arc::new(Mutex::new(config.schedule.max_wait));
        Scheduler { lanes, max_wait, keeper }
    }

    /// Takes what may change while it runs: `[schedule]`, and of each upstream its connections, its pace, its bandwidth, and
    /// what its accounts are for. Whoever waits already waits as long as was said then. `config` has the upstreams, endpoints and
    /// accounts that this scheduler was made with.
    pub fn configure(&self, config: &Config) {
        *self.max_wait.lock().unwrap_or_else(PoisonError::into_inner) = config.schedule.max_wait;
        for (lane, upstream) in self.lanes.iter().zip(&config.upstreams) {
            lane.configure(upstream, &config.schedule);
        }
    }

    fn max_wait(&self) -> Duration {
        *self.max_wait.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for leave to send what costs nothing, at most `schedule.max_wait` after the errand began. Cancel-safe.
    ///
    /// # Errors
    /// [`Refused`] says what is in the way and until when.
    pub async fn lease(&self, upstream: UpstreamId, want: Want, errand: &Errand) -> Result<Lease, Refused> {
        if let Some(terms) = &errand.terms {
            terms.check(&errand.urgency)?;
        }
        let deadline = errand.deadline(self.max_wait());
        let mut lease = self.lane(upstream).lease(want, errand, deadline).await?;
        errand.goes_by(lease.name());
        (lease.trace, lease.urgency) = (errand.trace.clone(), errand.urgency.clone());
        lease.terms.clone_from(&errand.terms);
        Ok(lease)
    }

    /// Waits for leave to send one counted request, for the manifest that `reference` means, as long. Cancel-safe.
    ///
    /// # Errors
    /// [`Refused`] says which account is spent and until when.
    pub async fn pull(
        &self,
        upstream: UpstreamId,
        want: Want,
        reference: &Reference,
        errand: &Errand,
    ) -> Result<Pull, Refused> {
        // Which account pays is never the caller's to say.
        let want = Want { kind: Kind::Pull, only: None, ..want };
        let lease = self.lease(upstream, want, errand).await?;
        // Were it sent before it is written down, a crash in between would make it be spent twice.
        if let Some(keeper) = self.keeper.as_ref().filter(|_| lease.is_metered()) {
            keeper.keep(self.lane(upstream)).await;
        }
        Ok(Pull::new(lease, reference.clone()))
    }

    /// Waits until a spent account is due to be asked by a free HEAD. Cancel-safe.
    pub async fn probe(&self, upstream: UpstreamId) -> Probe {
        let lane = self.lane(upstream);
        loop {
            let (due, wait) = lane.next_probe(Instant::now());
            if let Some((only, repository, reference)) = due {
                let want = Want { only: Some(only), ..Want::question(&repository) };
                match self.lease(upstream, want, &Errand::background()).await {
                    Ok(lease) => return Probe { lease, repository, reference },
                    Err(Refused::Stopping) => std::future::pending().await,
                    Err(_) => continue,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = lane.stirred.notified() => {}
            }
        }
    }

    fn lane(&self, upstream: UpstreamId) -> &Arc<Lane> {
        &self.lanes[upstream.index()]
    }
}

impl Want {
    /// A HEAD or a list.
    pub fn question(repository: &RepositoryName) -> Want {
        Want {
            repository: repository.clone(),
            kind: Kind::Question,
            from: 0,
            only: None,
            only_accounts: false,
            without: Vec::new(),
            is_insistent: false,
        }
    }

    /// A blob.
    pub fn transfer(repository: &RepositoryName) -> Want {
        Want { kind: Kind::Transfer, ..Want::question(repository) }
    }

    /// The same, of this endpoint on this account (`None`: on nobody's) and no other, whatever it is meant for, has
    /// left or could not do before.
    #[must_use]
    pub fn only(&self, endpoint: usize, account: Option<usize>) -> Want {
        Want { only: Some(Only { door: endpoint, account }), ..self.clone() }
    }

    /// The same, and it is asked although it has not answered others: that is what is to be found out.
    #[must_use]
    pub fn insistent(self) -> Want {
        Want { is_insistent: true, ..self }
    }

    /// The same, of the endpoints behind the first `from` only. What an account could not do before it may there.
    #[must_use]
    pub fn from(&self, from: usize) -> Want {
        Want { from, only_accounts: false, without: Vec::new(), ..self.clone() }
    }

    /// The same, but not without an account.
    #[must_use]
    pub fn only_accounts(&self) -> Want {
        Want { only_accounts: true, ..self.clone() }
    }

    /// The same, on other accounts than this one, and not without any.
    #[must_use]
    pub fn without(mut self, account: usize) -> Want {
        self.without.push(account);
        Want { only_accounts: true, ..self }
    }

    /// Which of `count` endpoints may be asked.
    fn doors(&self, count: usize) -> std::ops::Range<usize> {
        match self.only {
            Some(Only { door, .. }) => door..door + 1,
            None => self.from..count,
        }
    }
}
