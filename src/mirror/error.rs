use std::time::{Duration, SystemTime};

use crate::{flight, scheduler, upstream};

/// Why a pull cannot be answered. Cheap to clone: one check's error goes to all its waiters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The upstream's answer or its absence.
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    /// The upstream said a moment ago that there is no such thing, and is not asked again yet.
    #[error("{0} (remembered; asked again soon)")]
    Negative(upstream::Error),
    /// It is not cached and nobody may be asked.
    #[error("it is not in the cache, and this mirror is offline")]
    Offline,
    /// The bytes that came are not what was asked for.
    #[error("{registry} sent bytes that do not match the digest; nothing was kept")]
    Mismatch {
        /// Who sent them.
        registry: String,
    },
    /// All of it was to be kept, and cannot be.
    #[error(
        "the cache cannot hold all of it: raise cache.max_size, unpin or remove something, or look at its disk"
    )]
    NotKept,
    /// It is for other platforms only.
    #[error("it has nothing for {wanted}; it is for {offered}")]
    NoPlatform {
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// The operator has it served as it stood at a date, and what it meant then is not known here.
    #[error(
        "it is held as it stood at {} ([[upstream.hold]]), and {}; choose a later date, or see what it meant by `tidelock show \
         IMAGE --history`",
        httpdate::fmt_http_date(*at),
        known(*since)
    )]
    NotThen {
        /// The date.
        at: SystemTime,
        /// Since when anything is known of it.
        since: Option<SystemTime>,
    },
    /// The client takes other types only.
    #[error("it is of type {media_type}, which the request's Accept header does not allow")]
    NotAccepted {
        /// The type that there is.
        media_type: String,
    },
    /// Something went wrong in here.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// The upstream said that there is no such thing, or hides it.
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Error::Negative(_)
                | Error::Upstream(upstream::Error::NotFound { .. } | upstream::Error::Hidden { .. })
        )
    }

    /// There was no leave to ask.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Error::Upstream(upstream::Error::Refused(_)))
    }

    /// There was no leave to ask because too much is asked at once, which is the next one's luck.
    pub(super) fn is_crowding(&self) -> bool {
        use scheduler::Refused;
        let Error::Upstream(upstream::Error::Refused(refused)) = self else { return false };
        matches!(refused, Refused::Busy { .. } | Refused::Crowded { .. } | Refused::Learning { .. })
    }

    /// There was no leave to ask, and there may be for something more urgent.
    pub(super) fn is_holding_back(&self) -> bool {
        use scheduler::Refused;
        let Error::Upstream(upstream::Error::Refused(refused)) = self else { return false };
        !matches!(refused, Refused::Down(_) | Refused::Aside { .. } | Refused::Nobody { .. })
    }

    /// Where there was no leave to ask: when there may be.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Upstream(upstream::Error::Refused(refused)) => refused.retry_after(),
            _ => None,
        }
    }

    /// The upstream takes exception to HEAD, which says nothing about what was asked for.
    pub(super) fn refuses_head(&self) -> bool {
        matches!(self, Error::Upstream(error) if error.refuses_head())
    }

    /// A definite "no such thing", which no cached copy may override.
    pub(super) fn is_definite(&self) -> bool {
        matches!(self, Error::Upstream(error) | Error::Negative(error) if error.is_definite())
    }
}

fn known(since: Option<SystemTime>) -> String {
    match since {
        Some(since) => format!("this mirror has known it only since {}", httpdate::fmt_http_date(since)),
        None => "this mirror has never seen it".to_owned(),
    }
}

impl From<flight::Error> for Error {
    fn from(error: flight::Error) -> Self {
        match error {
            flight::Error::Upstream(error) => Error::Upstream(error),
            flight::Error::Mismatch { registry } => Error::Mismatch { registry },
            flight::Error::Store(_) | flight::Error::Here | flight::Error::Abandoned => {
                Error::Internal(error.to_string())
            }
        }
    }
}
