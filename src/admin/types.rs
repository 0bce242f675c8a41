//! What the operator's API says, as `tidelock` itself reads it too.

mod bundle;
mod images;
mod missing;
mod rounds;
mod status;
mod warm;

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use bundle::{Adopted, Adoption, Lacking, Sought, TakenIn};
pub use images::{
    BlobPart, Content, Image, Images, ManifestPart, Matching, Pinned, Refreshed, Removed, RolledBack, Shown,
    TagEpisode, TagHistory,
};

pub use missing::{Missing, MissingImage};
pub use rounds::{Changed, Failed, RoundEnded, RoundReport, Rounds};
pub use status::{CacheState, Eviction, Fetch, History, Popular, Status, Traffic, Trouble, Victim};
pub use warm::{WarmPart, WarmRoot, Warmed, Warming};

use crate::freshness::Verdict;
use crate::mirror::Explanation;
use crate::routing::Target;
use crate::scheduler::{AccountOutlook, DownOutlook, Outlook, Payer, Priority, Refused, Spent};
use crate::store::Scrub;

/// `/api/v1/budgets`: what is left of each account, who waits and who pulls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Budgets {
    /// In the order of the configuration.
    pub upstreams: Vec<UpstreamBudget>,
}

/// `/api/v1/scrub`: how far hashing anew what is kept is, or how it went. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbing {
    /// Whether it is under way.
    pub running: bool,
    /// When it began.
    pub started: Option<u64>,
    /// When the last one that came to its end did.
    pub finished: Option<u64>,
    /// Blobs and manifests looked at.
    pub blobs: u64,
    /// Of how many.
    pub all_blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of how many.
    pub all_bytes: u64,
    /// Those that were not what they should be, and are in quarantine now.
    pub damaged: u64,
}

impl Scrubbing {
    pub(super) fn new(scrub: &Scrub, all_blobs: u64, all_bytes: u64) -> Scrubbing {
        let seconds = |millis: Option<u64>| millis.map(|millis| millis / 1000);
        Scrubbing {
            running: scrub.running,
            started: seconds(scrub.started),
            finished: seconds(scrub.finished),
            blobs: scrub.blobs,
            all_blobs,
            bytes: scrub.bytes,
            all_bytes,
            damaged: scrub.damaged,
        }
    }
}

/// One upstream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamBudget {
    /// Its name.
    pub registry: String,
    /// Connections to it that are in use.
    pub connections: usize,
    /// The most that may be.
    pub max_connections: usize,
    /// Requests that wait for leave to go there.
    pub waiting: Waiting,
    /// Endpoints that asked to be left alone.
    pub paused: Vec<Pause>,
    /// What does not answer there and is left alone.
    pub down: Vec<Down>,
    /// Its accounts, at each of its endpoints.
    pub accounts: Vec<Account>,
    /// Counted requests of the last hour by client, most first.
    pub top_clients: Vec<Spender>,
    /// The same by repository.
    pub top_repositories: Vec<Spender>,
}

/// Requests that wait, by how urgent they are.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Waiting {
    /// A client waits.
    pub foreground: usize,
    /// A tag is checked behind a client's back.
    pub revalidation: usize,
    /// Nobody waits.
    pub background: usize,
}

/// An endpoint that is left alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pause {
    /// Its host.
    pub endpoint: String,
    /// For so long.
    pub seconds: u64,
}

/// An endpoint, or one repository there, that does not answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Down {
    /// Its host.
    pub endpoint: String,
    /// Where it is about this repository alone.
    pub repository: Option<String>,
    /// Since it first failed to answer.
    pub since_seconds: u64,
    /// Until it is tried again.
    pub retry_seconds: u64,
    /// What happened last.
    pub reason: String,
}

/// One account at one endpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Account {
    /// Its name; `anonymous` for none.
    pub account: String,
    /// The endpoint's host.
    pub endpoint: String,
    /// `unknown`, `unlimited`, `limited`, `spent` or `aside`.
    pub standing: String,
    /// Pulls in a window.
    pub limit: Option<u64>,
    /// The window.
    pub window_seconds: Option<u64>,
    /// Pulls left.
    pub remaining: Option<u64>,
    /// Pulls in an hour, as in the last one.
    pub burn_per_hour: f64,
    /// Until nothing is left, if that goes on; none where it can go on.
    pub exhaustion_seconds: Option<u64>,
    /// Until more is left than now.
    pub recovery_seconds: Option<u64>,
    /// Since the upstream last spoke of the quota.
    pub heard_seconds_ago: Option<u64>,
    /// Why it cannot log in.
    pub fault: Option<String>,
}

/// Who pulls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spender {
    /// A client's address, or a repository.
    pub name: String,
    /// Counted requests.
    pub pulls: u64,
}

/// `/api/v1/explain`: what would come of a pull now, and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explained {
    /// The image, as it was understood.
    pub image: String,
    /// The upstream that is meant.
    pub upstream: String,
    /// The repository there.
    pub repository: String,
    /// The tag or digest.
    pub reference: String,
    /// `hit`, `hit_then_check`, `check`, `stale`, `miss`, `held`, `down`, `negative` or `offline`.
    pub prospect: String,
    /// What is remembered of the tag.
    pub tag: Option<Tag>,
    /// What is here.
    pub content: Option<Content>,
    /// Who would pay for what is not here.
    pub payer: Option<Payment>,
    /// Why nobody can.
    pub refused: Option<String>,
    /// Why the last check of the tag failed.
    pub trouble: Option<String>,
    /// How the upstream stands.
    pub budget: Option<UpstreamBudget>,
}

/// What is remembered of a tag.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tag {
    /// What it means.
    pub digest: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// How long ago the upstream confirmed that.
    pub age_seconds: u64,
    /// `serve`, `serve_and_check`, `check` or `absent`; `held` where it was rolled back to this.
    pub verdict: String,
}

/// Who would pay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payment {
    /// The endpoint that would be asked.
    pub endpoint: String,
    /// The account.
    pub account: String,
    /// Whether it costs a pull of a limit.
    pub metered: bool,
}

impl From<Vec<Outlook>> for Budgets {
    fn from(outlooks: Vec<Outlook>) -> Self {
        Budgets { upstreams: outlooks.into_iter().map(UpstreamBudget::from).collect() }
    }
}

impl From<Outlook> for UpstreamBudget {
    fn from(outlook: Outlook) -> Self {
        let Outlook { registry, connections, waiting, paused, down, accounts, spent } = outlook;
        let Spent { clients, repositories } = spent;
        let spenders = |list: Vec<(String, u64)>| {
            list.into_iter().map(|(name, pulls)| Spender { name, pulls }).collect()
        };
        UpstreamBudget {
            registry,
            connections: connections.0,
            max_connections: connections.1,
            waiting: Waiting {
                foreground: waiting[Priority::Foreground as usize],
                revalidation: waiting[Priority::Revalidation as usize],
                background: waiting[Priority::Background as usize],
            },
            paused: paused
                .into_iter()
                .map(|(endpoint, left)| Pause { endpoint, seconds: up(left) })
                .collect(),
            down: down.into_iter().map(Down::from).collect(),
            accounts: accounts.into_iter().map(Account::from).collect(),
            top_clients: spenders(clients),
            top_repositories: spenders(repositories),
        }
    }
}

impl From<DownOutlook> for Down {
    fn from(down: DownOutlook) -> Self {
        Down {
            endpoint: down.endpoint,
            repository: down.repository,
            since_seconds: down.since.as_secs(),
            retry_seconds: up(down.until),
            reason: down.reason,
        }
    }
}

impl From<AccountOutlook> for Account {
    fn from(account: AccountOutlook) -> Self {
        Account {
            account: account.account,
            endpoint: account.endpoint,
            standing: account.standing.as_str().to_owned(),
            limit: account.limit,
            window_seconds: account.window.map(|window| window.as_secs()),
            remaining: account.remaining,
            burn_per_hour: account.burn_per_hour,
            exhaustion_seconds: account.exhaustion.map(up),
            recovery_seconds: account.recovery.map(up),
            heard_seconds_ago: account.heard.map(|ago| ago.as_secs()),
            fault: account.fault,
        }
    }
}

impl Explained {
    pub(super) fn new(
        target: &Target,
        image: String,
        reference: String,
        explanation: Explanation,
        outlook: Option<Outlook>,
    ) -> Explained {
        let Explanation { prospect, tag, content, payer, trouble } = explanation;
        let tag = tag.map(|tag| Tag {
            digest: tag.digest.to_string(),
            since: tag.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            age_seconds: tag.age.as_secs(),
            verdict: if tag.is_held { "held" } else { verdict(tag.verdict) }.to_owned(),
        });
        let content = content.map(Content::from);
        let refused = payer.as_ref().err().map(Refused::to_string);
        Explained {
            image,
            upstream: target.repository.registry.to_string(),
            repository: target.repository.name.to_string(),
            reference,
            prospect: prospect.as_str().to_owned(),
            tag,
            content,
            payer: payer.ok().map(Payment::from),
            refused,
            trouble,
            budget: outlook.map(UpstreamBudget::from),
        }
    }
}

impl From<Payer> for Payment {
    fn from(payer: Payer) -> Self {
        Payment { endpoint: payer.endpoint, account: payer.account, metered: payer.is_metered }
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Serve => "serve",
        Verdict::ServeAndCheck => "serve_and_check",
        Verdict::Check => "check",
        Verdict::Absent => "absent",
    }
}

/// Whole seconds, never fewer than it takes.
fn up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
