use std::time::Duration;

use tokio::time::Instant;

use super::budget::{Blocked, Budget, Obstacle, Purse};
use super::metrics::Reason;

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
    /// The upstream limits requests from this address.
    #[error("{registry} limits requests from this mirror's address for another {}", about(*until))]
    Paused {
        /// The upstream.
        registry: String,
        /// How long it is left alone.
        until: Duration,
    },
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

/// What is advised where it is not known when a budget comes back.
const PERHAPS: Duration = Duration::from_secs(60);

impl Refused {
    /// When it is worth trying again; `None` where only the operator can help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Refused::Busy { .. } | Refused::Learning { .. } | Refused::Crowded { .. } => {
                Some(Duration::from_secs(5))
            }
            Refused::Spent { until, .. } | Refused::Paused { until, .. } => Some(*until),
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
    pub(super) fn refusal(&self, registry: &str, blocked: &Blocked, now: Instant) -> (Refused, Reason) {
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
            Obstacle::Aside { door, purse } => {
                let (Purse { name, .. }, login) = (&self.purses[purse], &self.doors[door].logins[purse]);
                let reason = login.aside.as_ref().map(|aside| aside.reason.clone()).unwrap_or_default();
                (Refused::Aside { registry, account: name.clone(), reason }, Reason::Login)
            }
            Obstacle::Nobody => (Refused::Nobody { registry }, Reason::Login),
        }
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
