//! Answers a pull: from the store, else through one flight.
//!
//! `blob.rs` and `manifest.rs` read as the story of a pull, `check.rs` as the life of a tag, `lists.rs` does
//! the same for lists of tags and referrers. What they share is here: who may see what ([`Mirror::prove`]),
//! and what was absent a moment ago.
//!
//! **Who may see what (I5).** A digest is served through a repository only when the upstream itself showed
//! that the repository contains it: it was fetched through it, or a HEAD said so; or the operator did, by an import. That proof is a link in
//! the store. A manifest that merely mentions a digest proves nothing, since anybody can write one.

mod blob;
mod check;
mod document;
mod error;
mod explain;
mod history;
mod intake;
mod inventory;
mod keeping;
mod lists;
mod manifest;
mod missing;
mod passage;
mod rounds;
mod served;
mod warm;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use moka::future::Cache;
use tokio::sync::watch;

pub use crate::flight::Progress;
pub use check::Refreshed;
pub use error::Error;
pub use explain::{Explanation, Prospect, TagFacts};
pub use history::{Episode, Meaning, NotHeld};
pub use intake::{Adopted, NotAdopted, NotTaken};
pub use inventory::{Content as CachedContent, Part};
pub use keeping::{NotDone, Removed};
pub use manifest::Asked;
pub use missing::Miss;
pub use passage::Passage;
pub use rounds::{Round, RoundReport, Rounds, UnderWay};
pub use served::{BlobAnswer, Content, ListAnswer, ManifestAnswer, Served};
pub use warm::{Root, Wanted, Warmed, Warming};

use self::check::{Checked, Trouble};
use self::history::Holds;
use self::manifest::Fetched;
use self::missing::Missing;
use crate::config::{self, Config, UpstreamId};
use crate::flight::{Calls, Flights};
use crate::lifecycle::Lifecycle;
use crate::oci::{Digest, Kind, Reference, Repository};
use crate::routing::Target;
use crate::scheduler::{Errand, Outlook, Scheduler};
use crate::store::{Link, Name, Store};
use crate::telemetry::Metrics;
use crate::upstream::{self, Client, UpstreamMetrics};

/// The mirror. Cheap to clone.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

struct Inner {
    is_offline: watch::Sender<bool>,
    upstreams: Vec<Arc<ArcSwap<Upstream>>>,
    store: Store,
    scheduler: Scheduler,
    flights: Flights,
    manifests: Calls<(Digest, Option<Repository>), Fetched>,
    checks: Calls<(Repository, Name), Checked>,
    proofs: Calls<(Repository, Subject), Result<Link, Error>>,
    absent: Cache<(Repository, Subject), Absent>,
    troubles: moka::sync::Cache<(Repository, Name), Trouble>,
    // What manifests say of their blobs' sizes: a hint that makes room early and catches a wrong length.
    sizes: moka::sync::Cache<(Repository, Digest), u64>,
    // One thing after the other that the operator does: what was looked at stands until it is done. Clients never wait for
    // that. Taken before `pinning`.
    by_hand: tokio::sync::Mutex<()>,
    // One at a time says what is pinned, so that the last word is the latest.
    pinning: tokio::sync::Mutex<()>,
    missing: Arc<Missing>,
    holds: Holds,
    life: Lifecycle,
}

struct Upstream {
    config: config::Upstream,
    client: Arc<Client>,
}

/// What a mirror is to work by from now on, ready to be put in place.
pub struct Prepared {
    config: Config,
    upstreams: Vec<Arc<Upstream>>,
}

/// Something that the upstream said is not there, and for how long that is believed.
#[derive(Debug, Clone)]
struct Absent {
    error: upstream::Error,
    ttl: Duration,
}

/// What may be absent. By the same digest there may be a manifest and no blob, or the other way round.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    Manifest(Digest),
    Blob(Digest),
    Name(Name),
}

/// Lets each entry live for its upstream's `negative_ttl`.
struct NegativeTtl;

/// Absences that are remembered at once; clients that ask for nonsense cannot make it more (I7).
const MOST_ABSENT: u64 = 10_000;
/// Sizes of blobs that are remembered at once: those of a few thousand images.
const MOST_SIZES: u64 = 50_000;
/// Blobs follow their manifest within moments. A wrong size, which anybody can write, does no harm for longer.
const SIZES_LIVE: Duration = Duration::from_secs(300);

impl Mirror {
    /// A mirror of the upstreams of `config`, keeping what it fetches in `store`.
    ///
    /// # Errors
    /// When an upstream's configuration cannot be used: its CA file is unreadable, say.
    pub fn new(
        config: &Config,
        store: &Store,
        life: &Lifecycle,
        metrics: &Metrics,
    ) -> Result<Mirror, upstream::BadSetup> {
        let scheduler = Scheduler::new(config, Some(store), life, metrics);
        let counts = UpstreamMetrics::new(metrics, config);
        let is_offline = watch::Sender::new(config.offline);
        let upstreams = config.upstreams.iter().enumerate().map(|(index, upstream)| {
            let client = Client::new(UpstreamId::new(index), upstream, &scheduler, counts.clone(), life)?;
            let upstream = Upstream { config: upstream.clone(), client: Arc::new(client) };
            let upstream = Arc::new(ArcSwap::from_pointee(upstream));
            let probing = probe_spent(Arc::clone(&upstream), is_offline.subscribe(), life.clone());
            life.spawn("ask for spent accounts", probing);
            Ok(upstream)
        });
        let upstreams = upstreams.collect::<Result<_, _>>()?;
        let absent = Cache::builder().max_capacity(MOST_ABSENT).expire_after(NegativeTtl);
        let mirror = Mirror(Arc::new(Inner {
            is_offline,
            upstreams,
            store: store.clone(),
            flights: Flights::new(config, store, life, metrics),
            scheduler,
            manifests: Calls::new("fetch a manifest", life),
            checks: Calls::new("check a name", life),
            proofs: Calls::new("prove a link", life),
            absent: absent.build(),
            troubles: moka::sync::Cache::new(MOST_ABSENT),
            sizes: moka::sync::Cache::builder().max_capacity(MOST_SIZES).time_to_live(SIZES_LIVE).build(),
            by_hand: tokio::sync::Mutex::default(),
            pinning: tokio::sync::Mutex::default(),
            missing: Missing::open(store, life),
            holds: Holds::open(store),
            life: life.clone(),
        }));
        // A kill may have come between what arrived and the pins that follow it.
        mirror.pins_follow();
        Ok(mirror)
    }

    /// Gets ready to work by `config`, which has the upstreams, endpoints and accounts that this mirror was made with.
    /// `places` says where each upstream stands in its file; one that is not there is left as it is. Nothing changes
    /// before [`Mirror::configure`].
    ///
    /// # Errors
    /// As [`Mirror::new`].
    pub fn prepare(&self, config: &Config, places: &[Option<usize>]) -> Result<Prepared, upstream::BadSetup> {
        let upstreams = self.0.upstreams.iter().zip(&config.upstreams).zip(places);
        let upstreams = upstreams.map(|((now, config), place)| match place {
            Some(place) => {
                let client = Arc::new(now.load().client.anew(config, *place)?);
                Ok(Arc::new(Upstream { config: config.clone(), client }))
            }
            None => Ok(now.load_full()),
        });
        let upstreams = upstreams.collect::<Result<_, _>>()?;
        Ok(Prepared { config: config.clone(), upstreams })
    }

    /// Works by what was prepared from the next request on. What was absent or in trouble may not be with the logins of
    /// now, so it is asked about again.
    pub fn configure(&self, prepared: Prepared) {
        let Prepared { config, upstreams } = prepared;
        for (now, next) in self.0.upstreams.iter().zip(upstreams) {
            now.store(next);
        }
        // It lets accounts try again, which is better done by the logins of now.
        self.0.scheduler.configure(&config);
        self.0.is_offline.send_replace(config.offline);
        self.0.absent.invalidate_all();
        self.0.troubles.invalidate_all();
        self.pins_follow();
    }

    /// By themselves.
    fn pins_follow(&self) {
        let inner = Arc::clone(&self.0);
        drop(self.0.life.spawn("follow pins", async move { inner.follow_all_pins().await }));
    }

    /// What is left of the budgets of all upstreams, and who waits for them.
    pub fn outlook(&self) -> Vec<Outlook> {
        self.0.scheduler.outlook()
    }

    /// What a client is told who was kept waiting for `patience` and will not wait longer: for budget, where it is a
    /// manifest and a pull waits for that. What it asked for goes on being fetched.
    pub fn out_of_patience(&self, target: &Target, kind: Kind, patience: Duration) -> Error {
        let wants_manifest = kind == Kind::Manifest;
        let held = || self.0.scheduler.held_up(target.upstream, &target.repository.name);
        let refused = wants_manifest.then(held).flatten();
        let endpoint = target.repository.registry.to_string();
        let timed_out = upstream::Error::TimedOut { endpoint, after: patience };
        Error::Upstream(refused.map_or(timed_out, upstream::Error::Refused))
    }

    /// The blobs that are being fetched, the oldest fetch first.
    pub fn fetches(&self) -> Vec<Progress> {
        self.0.flights.under_way()
    }

    /// Whether no upstream may be contacted now.
    pub fn is_offline(&self) -> bool {
        self.0.is_offline()
    }

    /// Where it keeps what it fetched.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Every repository of which something is remembered.
    pub fn repositories(&self) -> Vec<Repository> {
        self.0.store.repositories()
    }
}

impl Inner {
    /// As it is configured now. Whoever begins something with it goes on with it.
    fn upstream(&self, target: &Target) -> Arc<Upstream> {
        self.upstreams[target.upstream.index()].load_full()
    }

    /// Whether no upstream may be contacted now.
    fn is_offline(&self) -> bool {
        *self.is_offline.borrow()
    }

    /// The proof that the target's repository contains `digest`, where there is one.
    fn proof(&self, target: &Target, digest: &Digest) -> Option<Link> {
        self.store.link(&target.repository, digest)
    }

    /// Asks the upstream by a free HEAD whether the repository contains `digest`; one HEAD for all who ask.
    async fn prove(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        is_manifest: bool,
        errand: &Errand,
    ) -> Result<Link, Error> {
        let subject = if is_manifest { Subject::Manifest(*digest) } else { Subject::Blob(*digest) };
        self.may_ask(target, &subject).await?;
        let key = (target.repository.clone(), subject.clone());
        let work = || {
            let (inner, target, digest, errand) = (Arc::clone(self), target.clone(), *digest, errand.clone());
            let subject = subject.clone();
            async move {
                // That a repository has a blob of this digest does not make it a manifest there.
                let known = inner.proof(&target, &digest);
                if let Some(link) = known.filter(|link| link.is_manifest || !is_manifest) {
                    return Ok(link);
                }
                let outcome = inner.ask_for_proof(&target, &digest, is_manifest, &errand).await;
                inner.note_absence(&target, subject, outcome).await
            }
        };
        let is_refused = |outcome: &Result<Link, Error>| outcome.as_ref().is_err_and(Error::is_refusal);
        let outcome = self.proofs.insist(key, errand, work, is_refused).await;
        outcome.unwrap_or_else(|| Err(given_up()))
    }

    async fn ask_for_proof(
        &self,
        target: &Target,
        digest: &Digest,
        is_manifest: bool,
        errand: &Errand,
    ) -> Result<Link, Error> {
        let client = Arc::clone(&self.upstream(target).client);
        let name = &target.repository.name;
        let found = if is_manifest {
            client.head_manifest(errand, name, &Reference::Digest(*digest)).await?
        } else {
            client.head_blob(errand, name, digest).await?
        };
        let mentioned = || self.sizes.get(&(target.repository.clone(), *digest));
        let media_type = found.media_type.as_deref().filter(|_| is_manifest).map(document::bare_type);
        let media_type = media_type.unwrap_or_default().to_owned();
        let link = Link { size: found.size.or_else(mentioned).unwrap_or(0), is_manifest, media_type };
        self.remember_link(target, digest, link.clone()).await;
        if is_manifest {
            // It may be here already, for another repository's sake.
            self.follow_pins(target, |pin| pin.digests.contains(digest)).await;
        }
        Ok(link)
    }

    /// A link that cannot be written costs another HEAD later, and the client nothing.
    async fn remember_link(&self, target: &Target, digest: &Digest, link: Link) {
        let outcome = self.store.add_link(&target.repository, *digest, link).await;
        if let Err(error) = outcome {
            tracing::debug!(%digest, repository = %target.repository, %error, "a proof could not be kept");
        }
    }

    /// Whether the upstream may be asked for `subject`: not offline, and it did not just say no.
    async fn may_ask(&self, target: &Target, subject: &Subject) -> Result<(), Error> {
        if self.is_offline() {
            return Err(Error::Offline);
        }
        match self.absent.get(&(target.repository.clone(), subject.clone())).await {
            Some(absent) => Err(Error::Negative(absent.error)),
            None => Ok(()),
        }
    }

    /// Passes `outcome` on, remembering an absence for `negative_ttl`.
    async fn note_absence<T>(
        &self,
        target: &Target,
        subject: Subject,
        outcome: Result<T, Error>,
    ) -> Result<T, Error> {
        let ttl = self.upstream(target).config.freshness.negative_ttl;
        if let Err(Error::Upstream(error)) = &outcome
            && outcome.as_ref().is_err_and(Error::is_absence)
            && !ttl.is_zero()
        {
            let key = (target.repository.clone(), subject);
            self.absent.insert(key, Absent { error: error.clone(), ttl }).await;
        }
        outcome
    }
}

impl<K> moka::Expiry<K, Absent> for NegativeTtl {
    fn expire_after_create(&self, _: &K, value: &Absent, _: Instant) -> Option<Duration> {
        Some(value.ttl)
    }
}

/// Asks for the spent accounts of an upstream as long as the house lives, but not while it is offline.
async fn probe_spent(
    upstream: Arc<ArcSwap<Upstream>>,
    mut is_offline: watch::Receiver<bool>,
    life: Lifecycle,
) {
    let current = || Arc::clone(&upstream.load().client);
    let probing = async {
        // An error means that the mirror is gone.
        while is_offline.wait_for(|is_offline| !is_offline).await.is_ok() {
            let client = current();
            tokio::select! {
                () = client.probe_spent(current) => {}
                _ = is_offline.wait_for(|is_offline| *is_offline) => {}
            }
        }
    };
    tokio::select! {
        () = probing => {}
        () = life.stopping() => {}
    }
}

/// A task of ours ended without a word.
fn given_up() -> Error {
    Error::Internal("the request was given up inside the mirror; its log says why".to_owned())
}
