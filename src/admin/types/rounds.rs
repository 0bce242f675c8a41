//! What the rounds of `[[warm]]` came to, as the API speaks of it.

use serde::{Deserialize, Serialize};

use super::images::seconds;
use crate::mirror::{self, Round, UnderWay};

/// `/api/v1/warm`: each `[[warm]]` of the configuration, in its order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rounds {
    /// Those.
    pub warm: Vec<RoundReport>,
}

/// How things stand with one of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoundReport {
    /// Its name.
    pub name: String,
    /// When the next round is due, in seconds since 1970; 0: at once; hours of the day may put it off.
    pub next: u64,
    /// The image that is being fetched now.
    pub image: Option<String>,
    /// Why nothing of it comes at the moment, where there is no leave to ask.
    pub waits: Option<String>,
    /// What the last round came to.
    pub last: Option<RoundEnded>,
}

/// A round that has ended; times in seconds since 1970.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoundEnded {
    /// When it began.
    pub begun: u64,
    /// When it ended.
    pub ended: u64,
    /// Images that are here, whole.
    pub images: u64,
    /// Bytes of blobs that came.
    pub fetched: u64,
    /// Images that are new, or whose tag has moved.
    pub changed: Vec<Changed>,
    /// Images that could not be had.
    pub failed: Vec<Failed>,
}

/// A tag that means something else than before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Changed {
    /// The whole reference.
    pub image: String,
    /// What was remembered of it.
    pub before: Option<String>,
    /// What it means.
    pub digest: String,
}

/// An image that could not be had.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    /// The image, or the pattern.
    pub image: String,
    /// Why.
    pub message: String,
}

impl Rounds {
    pub(crate) fn new(reports: Vec<mirror::RoundReport>) -> Rounds {
        Rounds { warm: reports.into_iter().map(RoundReport::from).collect() }
    }
}

impl From<mirror::RoundReport> for RoundReport {
    fn from(report: mirror::RoundReport) -> RoundReport {
        let mirror::RoundReport { name, next, under_way, last } = report;
        let (image, waits) = match under_way {
            Some(UnderWay { image, progress }) => (Some(image), progress.waits),
            None => (None, None),
        };
        RoundReport { name, next: seconds(next), image, waits, last: last.map(RoundEnded::from) }
    }
}

impl From<Round> for RoundEnded {
    fn from(round: Round) -> RoundEnded {
        let changed = |(image, before, digest)| Changed { image, before, digest };
        let failed = |(image, message)| Failed { image, message };
        RoundEnded {
            begun: round.begun,
            ended: round.ended,
            images: round.images,
            fetched: round.fetched,
            changed: round.changed.into_iter().map(changed).collect(),
            failed: round.failed.into_iter().map(failed).collect(),
        }
    }
}
