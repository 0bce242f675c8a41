//! The running mirror at a glance, as the API tells it.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::UpstreamBudget;
use crate::mirror::Progress;
use crate::store::{Fullness, Kept};
use crate::telemetry::{self, Reading};

/// `/api/v1/status`: the running mirror at a glance. Sums are since its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// `starting`, `ready`, `draining` or `stopped`.
    pub phase: String,
    /// No upstream is contacted.
    pub offline: bool,
    /// Since the start.
    pub uptime_seconds: u64,
    /// What clients asked for, and got.
    pub traffic: Traffic,
    /// How full the cache is.
    pub cache: CacheState,
    /// Blobs that are being fetched, the oldest fetch first.
    pub fetches: Vec<Fetch>,
    /// How each upstream stands.
    pub upstreams: Vec<UpstreamBudget>,
    /// The tags that were asked for most often.
    pub popular: Vec<Popular>,
    /// Requests that did not get what they wanted, the latest first.
    pub troubles: Vec<Trouble>,
}

/// What clients asked for, and got.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests by outcome.
    pub requests: BTreeMap<String, u64>,
    /// Of those that got content, the share that waited for no content from an upstream, 0 to 1; none before the first.
    pub hit_ratio: Option<f64>,
    /// Bytes of content sent to clients.
    pub sent_bytes: u64,
    /// Bytes fetched from upstreams.
    pub fetched_bytes: u64,
    /// Bytes that upstreams did not have to send.
    pub saved_bytes: u64,
}

/// How full the cache is, in bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CacheState {
    /// All that is there, unfinished downloads included.
    pub bytes: u64,
    /// The most that may be.
    pub limit: u64,
    /// What is not evicted.
    pub pinned: u64,
    /// Unfinished downloads.
    pub partial: u64,
    /// How many blobs and manifests there are.
    pub blobs: u64,
    /// Why nothing can be kept at the moment.
    pub failing: Vec<String>,
}

/// A blob that is being fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetch {
    /// The repository that it is fetched through.
    pub repository: String,
    /// What is fetched.
    pub digest: String,
    /// Bytes that are here.
    pub received: u64,
    /// Of how many; none before the upstream has told.
    pub total: Option<u64>,
    /// How long it has been under way.
    pub seconds: u64,
}

/// A tag and how often it was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Popular {
    /// The whole reference.
    pub image: String,
    /// How often.
    pub pulls: u64,
}

/// A request that did not get what it wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trouble {
    /// When it last happened, in seconds since 1970.
    pub at: u64,
    /// The client's address.
    pub client: Option<String>,
    /// Method and path.
    pub what: String,
    /// The answer's status.
    pub status: u16,
    /// In a word, as logs have it.
    pub reason: String,
    /// What happened, and what may be done about it.
    pub message: String,
    /// How often in a row.
    pub times: u64,
}

/// `/api/v1/eviction`: what goes first when room is needed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Eviction {
    /// In this order, were they not read or written at that moment.
    pub next: Vec<Victim>,
}

/// A blob or manifest that may be evicted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Victim {
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last used, in seconds since 1970.
    pub last_use: u64,
    /// The repositories that are known to contain it.
    pub repositories: Vec<String>,
}

/// `/api/v1/history`: sums since the start as they were at each moment, the oldest first. All lists are of one length.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct History {
    /// The moments, in seconds since 1970.
    pub at: Vec<u64>,
    /// Requests by outcome.
    pub requests: BTreeMap<String, Vec<u64>>,
    /// Bytes of content sent to clients.
    pub sent_bytes: Vec<u64>,
    /// Bytes fetched from upstreams.
    pub fetched_bytes: Vec<u64>,
    /// Bytes in the cache at that moment.
    pub cache_bytes: Vec<u64>,
}

impl Traffic {
    /// As the metrics have it.
    pub(crate) fn of(read: &Reading) -> Traffic {
        let by_outcome = read.by("requests_total", "outcome").into_iter();
        let requests: BTreeMap<String, u64> =
            by_outcome.map(|(outcome, count)| (outcome, count as u64)).collect();
        let of = |outcome: &str| requests.get(outcome).copied().unwrap_or_default();
        let hits: u64 = ["hit", "stale", "revalidated", "joined"].map(of).iter().sum();
        let served = hits + of("miss");
        let sent_bytes = read.sum("sent_bytes_total", &[]) as u64;
        let fetched_bytes = read.sum("fetched_bytes_total", &[]) as u64;
        Traffic {
            hit_ratio: (served > 0).then(|| hits as f64 / served as f64),
            sent_bytes,
            fetched_bytes,
            saved_bytes: sent_bytes.saturating_sub(fetched_bytes),
            requests,
        }
    }
}

impl CacheState {
    pub(crate) fn new(fullness: Fullness, read: &Reading) -> CacheState {
        let failing = read.by("cache_failing", "reason").into_iter();
        CacheState {
            bytes: read.sum("cache_bytes", &[]) as u64,
            limit: fullness.limit,
            pinned: fullness.pinned,
            partial: read.sum("cache_partial_bytes", &[]) as u64,
            blobs: fullness.blobs,
            failing: failing.filter(|(_, value)| *value > 0.0).map(|(reason, _)| reason).collect(),
        }
    }
}

impl From<Progress> for Fetch {
    fn from(progress: Progress) -> Self {
        Fetch {
            repository: progress.repository.to_string(),
            digest: progress.digest.to_string(),
            received: progress.received,
            total: progress.total,
            seconds: progress.age.as_secs(),
        }
    }
}

impl From<telemetry::Trouble> for Trouble {
    fn from(trouble: telemetry::Trouble) -> Self {
        Trouble {
            at: trouble.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            client: trouble.client.map(|client| client.to_string()),
            what: trouble.what,
            status: trouble.status,
            reason: trouble.reason.to_owned(),
            message: trouble.message,
            times: trouble.times,
        }
    }
}

impl Victim {
    pub(crate) fn new(digest: String, kept: Kept, repositories: Vec<String>) -> Victim {
        let last_use = kept.last_use.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Victim { digest, size: kept.size, last_use, repositories }
    }
}
