//! Decides which upstream request goes next, on which account, and when.
//!
//! Nothing is sent upstream without a [`Lease`] (I2): the calls of `upstream` take one, and only
//! [`Scheduler::lease`] makes them. A lease is one of an upstream's `max_connections` and is paced to
//! `requests_per_second`; it is given back when dropped, so it lives as long as the transfer it was taken
//! for. Every wait ends by `schedule.max_wait` (I8). A quarter of the connections is kept from blobs, so that a
//! tag check never waits for somebody's gigabytes.
//!
//! Waiters are served in the order of arrival. Pull quotas of accounts are not judged here yet: the first
//! account of an upstream pays for everything.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::metrics::SchedulerMetrics;
use crate::config::{Config, UpstreamId};
use crate::telemetry::Metrics;

/// Hands out leave to send upstream requests.
#[derive(Debug)]
pub struct Scheduler {
    lanes: Vec<Lane>,
    max_wait: Duration,
    metrics: SchedulerMetrics,
}

/// What a lease is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// A manifest, a list, or a mere HEAD: over in a moment.
    Question,
    /// A blob, which may take its time.
    Transfer,
}

/// Leave to send requests to one upstream, on one account, over one connection at a time.
#[derive(Debug)]
#[must_use = "a lease is given back when it is dropped"]
pub struct Lease {
    upstream: UpstreamId,
    account: Option<usize>,
    _connection: OwnedSemaphorePermit,
    _transfer: Option<OwnedSemaphorePermit>,
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// `schedule.max_wait` passed while all connections were busy or the pace was full.
    #[error("waited {waited:?} for one of the upstream's {connections} connections")]
    Busy {
        /// How long it was waited.
        waited: Duration,
        /// The upstream's `max_connections`.
        connections: usize,
    },
}

/// What one upstream may be sent.
#[derive(Debug)]
struct Lane {
    registry: String,
    connections: Arc<Semaphore>,
    // How many of them may carry blobs.
    transfers: Arc<Semaphore>,
    max_connections: usize,
    pace: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Moment>>,
    account: Option<usize>,
}

/// The runtime's clock, which tests can pause.
#[derive(Debug, Clone)]
struct TokioClock {
    start: Instant,
}

/// Time since the scheduler began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(Nanos);

impl Scheduler {
    /// A scheduler for the upstreams of `config`.
    pub fn new(config: &Config, metrics: &Metrics) -> Scheduler {
        let lanes: Vec<Lane> = config.upstreams.iter().map(Lane::new).collect();
        let registries = lanes.iter().map(|lane| lane.registry.as_str());
        let metrics = SchedulerMetrics::new(metrics, registries);
        Scheduler { lanes, max_wait: config.schedule.max_wait, metrics }
    }

    /// Waits for leave to go to `upstream` on `errand`, at most `schedule.max_wait`. Cancel-safe: who goes away leaves
    /// the queue.
    ///
    /// # Errors
    /// [`Refused::Busy`] when the wait is over.
    pub async fn lease(&self, upstream: UpstreamId, errand: Errand) -> Result<Lease, Refused> {
        let lane = &self.lanes[upstream.index()];
        let begun = Instant::now();
        let waiting = self.metrics.waiting(&lane.registry);
        let lease = tokio::time::timeout(self.max_wait, lane.admit(upstream, errand)).await;
        drop(waiting);
        let waited = begun.elapsed();
        self.metrics.waited(&lane.registry, waited);
        lease.map_err(|_| {
            self.metrics.refused(&lane.registry);
            Refused::Busy { waited, connections: lane.max_connections }
        })
    }
}

impl Lease {
    /// Whom this lease lets speak to.
    pub fn upstream(&self) -> UpstreamId {
        self.upstream
    }

    /// Which of the upstream's accounts pays; `None` for nobody (anonymous).
    pub fn account(&self) -> Option<usize> {
        self.account
    }
}

impl Lane {
    fn new(upstream: &crate::config::Upstream) -> Lane {
        let rate =
            std::num::NonZeroU32::new(upstream.requests_per_second).unwrap_or(std::num::NonZeroU32::MIN);
        let clock = TokioClock { start: Instant::now() };
        Lane {
            registry: upstream.registry.to_string(),
            connections: Arc::new(Semaphore::new(upstream.max_connections)),
            transfers: Arc::new(Semaphore::new(upstream.max_connections - upstream.max_connections / 4)),
            max_connections: upstream.max_connections,
            pace: RateLimiter::direct_with_clock(Quota::per_second(rate), clock),
            account: (!upstream.accounts.is_empty()).then_some(0),
        }
    }

    async fn admit(&self, upstream: UpstreamId, errand: Errand) -> Lease {
        let transfer = match errand {
            Errand::Transfer => Some(permit(&self.transfers).await),
            Errand::Question => None,
        };
        let connection = permit(&self.connections).await;
        while let Err(early) = self.pace.check() {
            tokio::time::sleep(early.wait_time_from(self.pace.clock().now())).await;
        }
        Lease { upstream, account: self.account, _connection: connection, _transfer: transfer }
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_owned().await.expect("the semaphore is never closed")
}

impl Clock for TokioClock {
    type Instant = Moment;

    fn now(&self) -> Moment {
        Moment(self.start.elapsed().into())
    }
}

impl Reference for Moment {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0)
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Moment(self.0.saturating_sub(duration))
    }
}

impl std::ops::Add<Nanos> for Moment {
    type Output = Moment;

    fn add(self, other: Nanos) -> Moment {
        Moment(self.0 + other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn scheduler(adjust: impl Fn(&mut Config)) -> Scheduler {
        let mut config = Config::default();
        adjust(&mut config);
        Scheduler::new(&config, &Metrics::default())
    }

    const HUB: UpstreamId = UpstreamId::new(0);

    #[tokio::test(start_paused = true)]
    async fn never_more_than_max_connections_and_the_wait_ends() {
        let scheduler = scheduler(|config| config.upstreams[0].max_connections = 2);
        let (first, second) = (
            scheduler.lease(HUB, Errand::Question).await.unwrap(),
            scheduler.lease(HUB, Errand::Question).await.unwrap(),
        );
        let begun = Instant::now();
        assert!(matches!(
            scheduler.lease(HUB, Errand::Question).await,
            Err(Refused::Busy { connections: 2, .. })
        ));
        assert_eq!(begun.elapsed(), Duration::from_secs(15));
        drop(first);
        assert!(scheduler.lease(HUB, Errand::Question).await.is_ok());
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn blobs_leave_room_for_questions() {
        let scheduler = scheduler(|config| config.upstreams[0].max_connections = 4);
        let mut transfers = Vec::new();
        for _ in 0..3 {
            transfers.push(scheduler.lease(HUB, Errand::Transfer).await.unwrap());
        }
        assert!(scheduler.lease(HUB, Errand::Transfer).await.is_err());
        let question = scheduler.lease(HUB, Errand::Question).await.unwrap();
        assert!(scheduler.lease(HUB, Errand::Question).await.is_err(), "four connections are four");
        drop((transfers, question));
        assert!(scheduler.lease(HUB, Errand::Transfer).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_paced() {
        let scheduler = scheduler(|config| config.upstreams[0].requests_per_second = 10);
        let begun = Instant::now();
        for _ in 0..30 {
            drop(scheduler.lease(HUB, Errand::Question).await.unwrap());
        }
        // Ten at once, the other twenty a tenth of a second apart.
        let taken = begun.elapsed();
        assert!(taken >= Duration::from_millis(1990) && taken < Duration::from_millis(2300), "{taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_leaves_the_queue() {
        let scheduler = scheduler(|config| config.upstreams[0].max_connections = 1);
        let held = scheduler.lease(HUB, Errand::Question).await.unwrap();
        let gone = tokio::time::timeout(Duration::from_secs(1), scheduler.lease(HUB, Errand::Question)).await;
        assert!(gone.is_err());
        drop(held);
        assert!(scheduler.lease(HUB, Errand::Question).await.is_ok());
    }
}
