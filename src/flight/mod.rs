//! One fetch per digest however many ask; followers read the file as it grows.
//!
//! ```text
//!               headers in          digest proven        named, indexed, linked
//!  Boarding ──▶ Growing ──────────▶ Proven ────────────▶ (gone: the store has it)
//!      └────────────┴──▶ Failed: every follower hears why
//! ```
//!
//! A flight is a task of its own; the client that made it start is merely its first follower (I3). It speaks
//! to the upstream, writes a [`Partial`](crate::store::Partial) and proves it. A follower reads what is
//! written, but never the last [`HOLD_BACK`] bytes of a whole body before the proof (I1).
//!
//! For small things that are whole in memory, [`Calls`] does the same with a value in place of a file.
//!
//! Leaves out who may join: that is `mirror`'s to know (I5).

mod calls;
mod crew;
mod error;
mod follower;
mod lead;
mod metrics;
mod parts;
mod spread;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub use calls::{Calls, Early};
pub use error::Error;
pub use follower::Follower;

pub use crate::store::HOLD_BACK;

use self::metrics::{Counted, FlightMetrics};
use self::spread::Spread;
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::oci::{Digest, RegistryHost, Repository};
use crate::scheduler::{Errand, Urgency};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::upstream::Client;

/// All blob fetches under way. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Flights(Arc<Inner>);

/// What is to be fetched, and whence.
#[derive(Clone)]
pub struct Order {
    /// On whose behalf, how urgently.
    pub errand: Errand,
    /// Who speaks to the upstream.
    pub client: Arc<Client>,
    /// The repository that it is asked for in.
    pub repository: Repository,
    /// The blob.
    pub digest: Digest,
    /// Its size, where a manifest told.
    pub size: Option<u64>,
    /// Over how many connections beside one it may be fetched, all blobs of its upstream together.
    pub most_extra: usize,
}

/// Whether an asker began the work or found it under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Began it.
    Lead,
    /// Joined it.
    Follow,
}

#[derive(Debug)]
struct Inner {
    table: Mutex<HashMap<Digest, Flight>>,
    spreads: Mutex<HashMap<RegistryHost, Arc<Spread>>>,
    store: Store,
    life: Lifecycle,
    metrics: FlightMetrics,
}

#[derive(Debug)]
struct Flight {
    repository: Repository,
    state: watch::Receiver<State>,
    urgency: Urgency,
    begun: Instant,
}

/// How far a fetch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The repository that it is fetched through.
    pub repository: Repository,
    /// What is fetched.
    pub digest: Digest,
    /// Bytes that are here, without a gap.
    pub received: u64,
    /// Its size in bytes, once the upstream has told.
    pub total: Option<u64>,
    /// How long it has been under way.
    pub age: Duration,
}

/// Where a flight is.
#[derive(Debug, Clone)]
enum State {
    /// No headers yet.
    Boarding,
    /// Bytes are coming in.
    Growing { file: Arc<File>, total: Option<u64>, committed: watch::Receiver<u64> },
    /// All of it is there and is what it should be.
    Proven { file: Arc<File>, total: u64 },
    /// It came to nothing.
    Failed(Error),
}

/// The leader's place: publishes the state, and takes the flight off the table when dropped.
struct Seat {
    inner: Arc<Inner>,
    digest: Digest,
    state: watch::Sender<State>,
    _counted: Counted,
}

impl Flights {
    /// No flights yet. They leave their blobs in `store`.
    pub fn new(config: &Config, store: &Store, life: &Lifecycle, metrics: &Metrics) -> Flights {
        Flights(Arc::new(Inner {
            table: Mutex::default(),
            spreads: Mutex::default(),
            store: store.clone(),
            life: life.clone(),
            metrics: FlightMetrics::new(metrics, config),
        }))
    }

    /// The repository through which `digest` is being fetched, if it is.
    pub fn source(&self, digest: &Digest) -> Option<Repository> {
        self.0.table().get(digest).map(|flight| flight.repository.clone())
    }

    /// Follows the flight of `order.digest`, beginning it where there is none. The repository given back is
    /// the one it is fetched through: where that is another, its failure says nothing about this one. A flight
    /// that is joined becomes as urgent as whoever joins it.
    pub fn join(&self, order: Order) -> (Follower, Repository, Role) {
        let mut table = self.0.table();
        if let Some(flight) = table.get(&order.digest) {
            flight.urgency.raise(order.errand.urgency().get());
            let follower = Follower::new(flight.state.clone(), self.0.metrics.follower());
            return (follower, flight.repository.clone(), Role::Follow);
        }
        let (sender, state) = watch::channel(State::Boarding);
        let repository = order.repository.clone();
        let follower = Follower::new(state.clone(), self.0.metrics.follower());
        let urgency = order.errand.urgency().clone();
        table.insert(
            order.digest,
            Flight { repository: repository.clone(), state, urgency, begun: Instant::now() },
        );
        drop(table);
        let counted = self.0.metrics.flight();
        let seat =
            Seat { inner: Arc::clone(&self.0), digest: order.digest, state: sender, _counted: counted };
        self.0.life.spawn("fetch a blob", seat.lead(order));
        (follower, repository, Role::Lead)
    }

    /// What is being fetched, the oldest first.
    pub fn under_way(&self) -> Vec<Progress> {
        let table = self.0.table();
        let mut under_way: Vec<Progress> =
            table.iter().map(|(digest, flight)| flight.progress(digest)).collect();
        under_way.sort_by_key(|progress| std::cmp::Reverse(progress.age));
        under_way
    }

    /// How many blobs are being fetched.
    pub fn count(&self) -> usize {
        self.0.table().len()
    }

    /// Something that `registry` sent, and that was fetched apart from a flight, did not match its digest.
    pub fn verify_failed(&self, registry: &str) {
        self.0.metrics.verify_failed(registry);
    }
}

impl Inner {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Flight>> {
        // Entries are put in and taken out whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the line to an upstream.
    fn spread(&self, registry: &RegistryHost) -> Arc<Spread> {
        let mut spreads = self.spreads.lock().unwrap_or_else(PoisonError::into_inner);
        let spread = spreads.entry(registry.clone()).or_insert_with(|| Arc::new(Spread::new(registry)));
        Arc::clone(spread)
    }
}

impl Flight {
    fn progress(&self, digest: &Digest) -> Progress {
        let (received, total) = match &*self.state.borrow() {
            State::Growing { total, committed, .. } => (*committed.borrow(), *total),
            State::Proven { total, .. } => (*total, Some(*total)),
            State::Boarding | State::Failed(_) => (0, None),
        };
        Progress {
            repository: self.repository.clone(),
            digest: *digest,
            received,
            total,
            age: self.begun.elapsed(),
        }
    }
}

impl Seat {
    /// Takes the flight off the table, unless the next one of this digest is there already.
    fn leave(&self) {
        let mut table = self.inner.table();
        let own = self.state.subscribe();
        if table.get(&self.digest).is_some_and(|flight| flight.state.same_channel(&own)) {
            table.remove(&self.digest);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
        let is_open = matches!(*self.state.borrow(), State::Boarding | State::Growing { .. });
        if is_open {
            // The task panicked or its runtime is gone: nobody may wait for it for ever.
            self.state.send_replace(State::Failed(Error::Abandoned));
        }
    }
}
