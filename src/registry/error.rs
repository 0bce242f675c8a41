use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::access::Denied;
use crate::lifecycle;
use crate::mirror;
use crate::oci::{BadRequest, ErrorCode, Kind};
use crate::routing::NoRoute;
use crate::scheduler::{ANONYMOUS, Down, Refused};
use crate::upstream;

/// Why a request gets no content. The only place that knows both HTTP status and OCI code.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The path or query is wrong.
    #[error(transparent)]
    Bad(#[from] BadRequest),
    /// A write.
    #[error("{0} is not supported: this is a read-only mirror; push to the registry itself")]
    Method(http::Method),
    /// No upstream is meant.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// The operator does not allow it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No part of the body lies within the ranges asked for.
    #[error("none of the ranges asked for lies within the {0} bytes of the blob")]
    Range(u64),
    /// More ranges than are served at once.
    #[error("too many ranges, or more than twice the blob in all; ask for fewer")]
    Ranges,
    /// The mirror's own; the kind tells which spec code says "not found".
    #[error("{what}: {source}")]
    Mirror {
        /// What was asked for, as a client may read it: `docker.io/library/nginx:latest`.
        what: String,
        /// What kind of thing that is.
        kind: Kind,
        /// Why it cannot be had.
        source: mirror::Error,
    },
}

/// What the client is told.
pub(super) struct Told {
    pub(super) status: StatusCode,
    pub(super) code: ErrorCode,
    /// Says what happened and what to do, without hosts, paths on disk or anything an upstream sent.
    pub(super) text: String,
    /// The cause, for the log.
    pub(super) reason: &'static str,
    pub(super) retry_after: Option<Duration>,
}

/// What is advised where an upstream that throttles does not say.
const THROTTLE_PAUSE: Duration = Duration::from_secs(60);

impl Error {
    pub(super) fn told(&self) -> Told {
        let told =
            |status, code, reason| Told { status, code, text: self.to_string(), reason, retry_after: None };
        match self {
            Error::Bad(bad) => match bad {
                BadRequest::NoEndpoint => told(StatusCode::NOT_FOUND, ErrorCode::Unsupported, "no_endpoint"),
                BadRequest::Name(_) => told(StatusCode::BAD_REQUEST, ErrorCode::NameInvalid, "name_invalid"),
                BadRequest::Digest(_) => {
                    told(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, "digest_invalid")
                }
                BadRequest::Tag(_) => told(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, "tag_invalid"),
                BadRequest::Namespace(_) => {
                    told(StatusCode::BAD_REQUEST, ErrorCode::NameInvalid, "ns_invalid")
                }
                BadRequest::PageSize => {
                    told(StatusCode::BAD_REQUEST, ErrorCode::PaginationNumberInvalid, "page_invalid")
                }
            },
            Error::Method(_) => told(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, "method"),
            Error::NoRoute(_) => told(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, "no_route"),
            Error::Denied(_) => told(StatusCode::FORBIDDEN, ErrorCode::Denied, "denied"),
            Error::Range(_) => told(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeInvalid, "range"),
            // Clients of lazily pulled images halve their list of ranges on a 400, and only on that.
            Error::Ranges => told(StatusCode::BAD_REQUEST, ErrorCode::RangeInvalid, "ranges"),
            Error::Mirror { what, kind, source } => {
                let told = mirror_told(*kind, source);
                Told { text: format!("{what}: {}", told.text), ..told }
            }
        }
    }
}

fn mirror_told(kind: Kind, error: &mirror::Error) -> Told {
    let told = |status, code, text: String, reason| Told { status, code, text, reason, retry_after: None };
    match error {
        mirror::Error::Upstream(error) => upstream_told(kind, error),
        mirror::Error::Negative(error) => Told { reason: "negative", ..upstream_told(kind, error) },
        mirror::Error::Offline => told(
            StatusCode::NOT_FOUND,
            unknown(kind),
            "it is not in the cache and this mirror is offline; bring it by `tidelock export` where it can be pulled and \
             `tidelock import` here (`tidelock missing` lists all that was asked for in vain)"
                .to_owned(),
            "offline",
        ),
        mirror::Error::NotThen { .. } => {
            told(StatusCode::NOT_FOUND, unknown(kind), error.to_string(), "not_then")
        }
        mirror::Error::Mismatch { .. } => {
            let text = "the upstream sent bytes that do not match the digest; nothing was kept, try again";
            told(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, text.to_owned(), "mismatch")
        }
        mirror::Error::NotAccepted { .. } => {
            told(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, error.to_string(), "not_accepted")
        }
        // Only ever said to whoever has an image fetched ahead.
        mirror::Error::NotKept | mirror::Error::NoPlatform { .. } | mirror::Error::Internal(_) => {
            let text = "the mirror failed to answer; its log says why".to_owned();
            told(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, text, "internal")
        }
    }
}

fn upstream_told(kind: Kind, error: &upstream::Error) -> Told {
    let told = |status, code, text: &str| Told {
        status,
        code,
        text: text.to_owned(),
        reason: error.reason(),
        retry_after: None,
    };
    let unavailable = |status, text: &str| told(status, ErrorCode::Unavailable, text);
    match error {
        upstream::Error::Refused(refused) => refused_told(refused),
        upstream::Error::NotFound { .. } => {
            told(StatusCode::NOT_FOUND, unknown(kind), "the upstream says that it does not exist")
        }
        // Never a 401: clients would begin to log in here, and some send Docker Hub's credentials.
        upstream::Error::Hidden { .. } => told(
            StatusCode::NOT_FOUND,
            unknown(kind),
            "the upstream gives no access to it: check the name, or give this mirror an account that may pull it",
        ),
        upstream::Error::Login { .. } => unavailable(
            StatusCode::BAD_GATEWAY,
            "this mirror could not log in to the upstream; its log says why (`tidelock check --online` tests the \
             accounts)",
        ),
        upstream::Error::Throttled { retry_after, quota, .. } => Told {
            retry_after: Some(retry_after.unwrap_or(THROTTLE_PAUSE)),
            ..told(
                StatusCode::TOO_MANY_REQUESTS,
                ErrorCode::TooManyRequests,
                if *quota {
                    "the upstream's pull quota is spent; try again later, or give this mirror an account with more"
                } else {
                    "the upstream refuses requests from this mirror for now; try again later"
                },
            )
        },
        upstream::Error::Unreachable { .. } => {
            unavailable(StatusCode::BAD_GATEWAY, "the upstream cannot be reached and it is not in the cache")
        }
        upstream::Error::TimedOut { .. } => unavailable(
            StatusCode::GATEWAY_TIMEOUT,
            "the upstream did not answer in time and it is not in the cache",
        ),
        // Only ever said to whoever fetches several parts at once, who has another way.
        upstream::Error::NoParts { .. } => {
            unavailable(StatusCode::BAD_GATEWAY, "the upstream does not send parts of a blob")
        }
        upstream::Error::Status { status, .. } => unavailable(
            StatusCode::BAD_GATEWAY,
            &format!("the upstream answered with status {status} and it is not in the cache"),
        ),
        upstream::Error::BadAnswer { .. } => unavailable(
            StatusCode::BAD_GATEWAY,
            "the upstream sent an answer that cannot be used; the mirror's log says why",
        ),
        upstream::Error::BrokenOff { .. } => {
            unavailable(StatusCode::BAD_GATEWAY, "the transfer from the upstream broke off; try again")
        }
    }
}

/// No request was sent. 429 where waiting helps and a budget is what is missing; 503 for what is over in a moment,
/// since containerd repeats a 429 at once; 502 where the operator has to do something, and where nobody answers 502 or 504
/// as for whoever found that out.
fn refused_told(refused: &Refused) -> Told {
    use ErrorCode::{TooManyRequests, Unavailable};
    let (status, code, text, reason) = match refused {
        Refused::Busy { .. } => {
            let text = format!("{refused}; try again, or raise `max_connections` or `requests_per_second`");
            (StatusCode::SERVICE_UNAVAILABLE, Unavailable, text, "busy")
        }
        Refused::Learning { .. } | Refused::Crowded { .. } | Refused::Stopping => {
            (StatusCode::SERVICE_UNAVAILABLE, Unavailable, format!("{refused}; try again"), "busy")
        }
        Refused::Spent { registry, account, until } => {
            let text = format!(
                "the pull limit of {registry} is spent and this is not in the cache; {} has pulls again at about {} \
                 UTC. Try again then, or give this mirror an account with more",
                whose(account),
                clock_time(lifecycle::now() + *until)
            );
            (StatusCode::TOO_MANY_REQUESTS, TooManyRequests, text, "spent")
        }
        Refused::Paused { .. } | Refused::Closed { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, TooManyRequests, format!("{refused}; try again later"), "paused")
        }
        Refused::Down(down) => {
            let Down { registry, since, is_slow, until, .. } = &**down;
            let status = if *is_slow { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
            let text = format!(
                "{registry} has not answered since {} s ago and this is not in the cache; it is asked again in {} s. Try \
                 again then (the mirror's log and `tidelock explain` say what is wrong)",
                since.as_secs(),
                until.as_secs() + 1
            );
            (status, Unavailable, text, "down")
        }
        Refused::Aside { account, registry, .. } => {
            let text = format!(
                "this mirror could not log in to {registry} as `{account}`; its log says why (`tidelock check --online` \
                 tests the accounts)"
            );
            (StatusCode::BAD_GATEWAY, Unavailable, text, "login")
        }
        Refused::Nobody { .. } => {
            let text = format!("{refused}, and `anonymous = \"never\"` stands in the configuration");
            (StatusCode::BAD_GATEWAY, Unavailable, text, "login")
        }
    };
    Told { status, code, text, reason, retry_after: refused.retry_after() }
}

fn whose(account: &str) -> String {
    if account == ANONYMOUS { "anonymous access".to_owned() } else { format!("account `{account}`") }
}

/// `Wed, 25 Nov 2026 14:05:00`.
fn clock_time(time: SystemTime) -> String {
    let date = httpdate::HttpDate::from(time).to_string();
    date.trim_end_matches(" GMT").to_owned()
}

fn unknown(kind: Kind) -> ErrorCode {
    match kind {
        Kind::Manifest | Kind::Referrers => ErrorCode::ManifestUnknown,
        Kind::Blob => ErrorCode::BlobUnknown,
        Kind::Tags => ErrorCode::NameUnknown,
    }
}
