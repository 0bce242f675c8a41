use std::time::Duration;

use tokio::time::Instant;

use super::budget::{Blocked, Budget, Door, Obstacle, Purse};
use super::metrics::Reason;
use crate::oci::RepositoryName;

/// Why there is no leave to send a request. Cheap to clone: it reaches all who wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// All connections were busy or the pace full for as long as it may be waited.
    #[error("waited {} for one of the upstream's {connections} connections, or for its pace", about(*waited))]
    Busy {
        /// How long it was waited.
        waited: Duration,
        /// The upstream's `max_connections`.
        connections: usize,
    },
    /// Until the first pull is answered nobody knows how many are left, and it was not in time.
    #[error("the first answer of {registry}, which tells how many pulls are left, is still awaited")]
    Learning {
        /// The upstream.
        registry: String,
    },
    /// More requests wait for this upstream than can be held.
    #[error("too many requests wait for {registry} already")]
    Crowded {
        /// The upstream.
        registry: String,
    },
    /// No account has any pulls left.
    #[error("no pulls are left at {registry}: {account} is the first to have some again, in {}", about(*until))]
    Spent {
        /// The upstream.
        registry: String,
        /// The account whose budget comes back first; `anonymous` for none.
        account: String,
        /// How long until then, as far as is known.
        until: Duration,
    },
    /// It is for other hours of the day, and nobody waits for it.
    #[error("it goes on at {hours} of the day only, in {}", about(*until))]
    Closed {
        /// The hours, by the local clock.
        hours: String,
        /// How long until they begin.
        until: Duration,
    },
    /// Nobody waits for it, and the mirror is being stopped.
    #[error("this mirror is being stopped; what came stays")]
    Stopping,
    /// The upstream limits requests from this address.
    #[error("{registry} limits requests from this mirror's address for another {}", about(*until))]
    Paused {
        /// The upstream.
        registry: String,
        /// How long it is left alone.
        until: Duration,
    },
    /// Nobody answers there, and it is left alone for a while.
    #[error("{0}")]
    Down(Box<Down>),
    /// The account that would be used cannot log in.
    #[error("could not log in to {registry} as `{account}`: {reason}")]
    Aside {
        /// The upstream.
        registry: String,
        /// The account.
        account: String,
        /// What went wrong, without anything secret.
        reason: String,
    },
    /// No account is meant for the repository, and going without one is not allowed.
    #[error("no account of {registry} is meant for this repository")]
    Nobody {
        /// The upstream.
        registry: String,
    },
}

/// An endpoint that does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{endpoint} ({registry}) has not answered since {} ago, and is tried again in {}; at last: {reason}",
    about(*since),
    about(*until)
)]
pub struct Down {
    /// The upstream.
    pub registry: String,
    /// The host of the one of its endpoints that is tried again first.
    pub endpoint: String,
    /// How long ago it first failed to answer.
    pub since: Duration,
    /// What happened last.
    pub reason: String,
    /// That was a time limit.
    pub is_slow: bool,
    /// How long it is left alone.
    pub until: Duration,
}

/// What is advised where it is not known when a budget comes back.
const PERHAPS: Duration = Duration::from_secs(60);

impl Refused {
    /// When it is worth trying again; `None` where only the operator can help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Refused::Busy { .. } | Refused::Learning { .. } | Refused::Crowded { .. } | Refused::Stopping => {
                Some(Duration::from_secs(5))
            }
            Refused::Spent { until, .. } | Refused::Paused { until, .. } | Refused::Closed { until, .. } => {
                Some(*until)
            }
            Refused::Down(down) => Some(down.until),
            Refused::Aside { .. } | Refused::Nobody { .. } => None,
        }
    }

    /// The account that it is about.
    pub(super) fn account(&self) -> Option<&str> {
        match self {
            Refused::Spent { account, .. } | Refused::Aside { account, .. } => Some(account),
            _ => None,
        }
    }
}

impl Budget {
    /// What whoever asked is told, and the label of the metric.
    pub(super) fn refusal(
        &self,
        registry: &str,
        want: &RepositoryName,
        blocked: &Blocked,
        now: Instant,
    ) -> (Refused, Reason) {
        let registry = registry.to_owned();
        let left = |until: Option<Instant>| until.map(|until| until.saturating_duration_since(now));
        match blocked.by {
            Obstacle::Spent { door, purse } => {
                let ledger = &self.doors[door].ledgers[purse];
                let known = blocked.until.into_iter().chain(ledger.expected_at(now)).min();
                let until = left(known.or(ledger.probe_at())).unwrap_or(PERHAPS);
                let account = self.purses[purse].name.clone();
                (Refused::Spent { registry, account, until }, Reason::Spent)
            }
            Obstacle::Learning => (Refused::Learning { registry }, Reason::Busy),
            Obstacle::Paused => {
                let until = left(blocked.until).unwrap_or(PERHAPS);
                (Refused::Paused { registry, until }, Reason::Paused)
            }
            Obstacle::Down { door } => (self.down(&registry, door, want, now), Reason::Down),
            Obstacle::Aside { door, purse } => {
                let (Purse { name, .. }, login) = (&self.purses[purse], &self.doors[door].logins[purse]);
                let reason = login.aside.as_ref().map(|aside| aside.reason.clone()).unwrap_or_default();
                (Refused::Aside { registry, account: name.clone(), reason }, Reason::Login)
            }
            Obstacle::Nobody => (Refused::Nobody { registry }, Reason::Login),
        }
    }

    /// What whoever asks about `want` is told of an endpoint that does not answer.
    pub(super) fn down(&self, registry: &str, door: usize, want: &RepositoryName, now: Instant) -> Refused {
        let Door { host, breakers, .. } = &self.doors[door];
        let breaker = breakers.shut(want, now).map(|(_, breaker)| breaker);
        let (since, reason, is_slow) = breaker
            .and_then(|breaker| breaker.trouble(now))
            .map(|(since, trouble)| (since, trouble.reason.clone(), trouble.is_slow))
            // It has answered just now.
            .unwrap_or_default();
        Refused::Down(Box::new(Down {
            registry: registry.to_owned(),
            endpoint: host.clone(),
            since,
            reason,
            is_slow,
            until: breaker.map(|breaker| breaker.next_try(now)).unwrap_or_default(),
        }))
    }
}

/// A duration as one says it.
fn about(duration: Duration) -> String {
    let seconds = duration.as_secs().max(1);
    match (seconds / 3600, seconds / 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {} min", minutes % 60),
    }
}
