use std::time::Duration;

use super::endpoint::Endpoint;
use crate::scheduler::{Refused, Trouble};

/// Why an upstream request brought nothing. Cheap to clone, since one fetch's error goes to all its waiters
/// (I3). No variant holds a URL's query, a header or a body of the upstream: those may carry credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was sent: no leave to.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A definite answer: there is no such thing.
    #[error("{endpoint} says that it does not exist")]
    NotFound {
        /// The endpoint's host.
        endpoint: String,
    },
    /// 401 or 403 although the login (or the anonymous token) was accepted: private, or not there at all.
    /// Docker Hub does not tell the two apart.
    #[error(
        "{endpoint} gives no access to it: it does not exist there, or this mirror's account may not pull it"
    )]
    Hidden {
        /// The endpoint's host.
        endpoint: String,
    },
    /// The login itself failed: wrong or missing credentials, or the token service refused.
    #[error("could not log in to {endpoint}: {reason}")]
    Login {
        /// The endpoint's host.
        endpoint: String,
        /// What went wrong, without anything secret.
        reason: String,
    },
    /// 429.
    #[error("{endpoint} refuses requests for now (429){}", pull_quota_text(*.quota))]
    Throttled {
        /// The endpoint's host.
        endpoint: String,
        /// How long the upstream asks to wait, where it says so.
        retry_after: Option<Duration>,
        /// A spent pull quota (JSON `TOOMANYREQUESTS`) rather than an abuse limit.
        quota: bool,
    },
    /// Nobody there: DNS, connect, TLS, or the connection broke before an answer.
    #[error("could not reach {endpoint}: {reason}")]
    Unreachable {
        /// The endpoint's host.
        endpoint: String,
        /// The failing step.
        reason: String,
        /// Whether the request may have got there.
        sent: Sent,
    },
    /// No headers within `response_timeout`, or no byte within `idle_timeout`.
    #[error("{endpoint} did not answer within {after:?}")]
    TimedOut {
        /// The endpoint's host.
        endpoint: String,
        /// The time limit that passed.
        after: Duration,
    },
    /// A status that is none of the above, 5xx above all.
    #[error("{endpoint} answered with status {status}")]
    Status {
        /// The endpoint's host.
        endpoint: String,
        /// The status code.
        status: u16,
    },
    /// An answer that breaks the protocol or a rule of this mirror: too large, a redirect loop, a challenge
    /// that would send credentials elsewhere, HTML, wrong length.
    #[error("{endpoint} sent an answer that cannot be used: {reason}")]
    BadAnswer {
        /// The endpoint's host.
        endpoint: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// It sends the whole of a blob where a part was asked for, or another part.
    #[error("{endpoint} does not send parts of a blob")]
    NoParts {
        /// The endpoint's host.
        endpoint: String,
    },
    /// A body broke off and could not be resumed anywhere.
    #[error("the transfer from {endpoint} broke off after {received} bytes: {reason}")]
    BrokenOff {
        /// The endpoint's host.
        endpoint: String,
        /// Bytes received so far.
        received: u64,
        /// What happened last.
        reason: String,
    },
}

/// Whether a request that was not answered may have got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// There was no connection.
    No,
    /// There was one.
    Perhaps,
    /// There was one from before, which may have been gone already: a fresh one may do.
    OnAStaleConnection,
}

/// What a failure allows next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A definite no: it would be the same again.
    GiveUp,
    /// Another endpoint of the same upstream may do better.
    OtherEndpoint,
    /// Another account may do better, or this one after a pause or on a fresh connection: the scheduler knows which
    /// and when.
    OtherAccount,
}

impl Error {
    /// The cause as a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Refused(_) => "refused",
            Error::NotFound { .. } => "not_found",
            Error::Hidden { .. } => "hidden",
            Error::Login { .. } => "login",
            Error::Throttled { .. } => "throttled",
            Error::Unreachable { .. } => "unreachable",
            Error::TimedOut { .. } => "timed_out",
            Error::Status { .. } => "status",
            Error::BadAnswer { .. } => "bad_answer",
            Error::NoParts { .. } => "no_parts",
            Error::BrokenOff { .. } => "broken_off",
        }
    }

    /// Who is worth asking next. A limit and a refused login are about the account. Every other failure is worth
    /// the next endpoint, even a 404, as long as it came from a mirror: only the last endpoint is the origin, and
    /// only its word is final.
    pub(super) fn next(&self, is_origin: bool, has_account: bool) -> Next {
        match self {
            Error::Throttled { .. } | Error::Unreachable { sent: Sent::OnAStaleConnection, .. } => {
                Next::OtherAccount
            }
            Error::Login { .. } if has_account => Next::OtherAccount,
            _ if is_origin => Next::GiveUp,
            _ => Next::OtherEndpoint,
        }
    }

    /// Whether it says of `endpoint`, or its token service, that nobody there answers as somebody should.
    pub(super) fn trouble(&self, endpoint: &Endpoint) -> Option<Trouble> {
        let trouble =
            |is_slow, is_about_host| Some(Trouble { reason: self.to_string(), is_slow, is_about_host });
        match self {
            Error::Unreachable { sent, endpoint: host, .. } => {
                trouble(false, *sent == Sent::No && *host == endpoint.host)
            }
            Error::TimedOut { .. } => trouble(true, false),
            // A gateway that has nobody behind it. 500 is an answer: somebody is there, and has trouble with this.
            Error::Status { status: 502..=504 | 520..=530, .. } => trouble(false, false),
            Error::Refused(_)
            | Error::NotFound { .. }
            | Error::Hidden { .. }
            | Error::Login { .. }
            | Error::Throttled { .. }
            | Error::Status { .. }
            | Error::BadAnswer { .. }
            | Error::NoParts { .. }
            | Error::BrokenOff { .. } => None,
        }
    }

    /// Whether no registry would count the request as a pull: it did not get there, or no manifest came of it.
    pub(super) fn was_not_counted(&self) -> bool {
        matches!(
            self,
            Error::NotFound { .. }
                | Error::Hidden { .. }
                | Error::Login { .. }
                | Error::Throttled { .. }
                | Error::Status { .. }
                | Error::Unreachable { sent: Sent::No, .. }
        )
    }

    /// Whether the upstream has nothing against the question, only against asking it by HEAD.
    pub fn refuses_head(&self) -> bool {
        matches!(self, Error::Status { status: 405 | 501, .. })
    }

    /// Whether the upstream was there and said no, rather than being in trouble: a cached copy must not
    /// override a 404, and may stand in for everything else (design: stale-if-error).
    pub fn is_definite(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }
}

fn pull_quota_text(quota: bool) -> &'static str {
    if quota { ": the pull quota is spent" } else { "" }
}
