//! Requests begun in a second, evenly.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// The pace of one upstream.
#[derive(Debug)]
pub(super) struct Pace {
    limiter: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Moment>>,
    requests_per_second: u32,
}

/// The runtime's clock, which tests can pause.
#[derive(Debug, Clone)]
struct TokioClock {
    start: Instant,
}

/// Time since the scheduler began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(Nanos);

impl Pace {
    /// So many a second, as many at once.
    pub(super) fn new(requests_per_second: u32) -> Pace {
        let rate = NonZeroU32::new(requests_per_second).unwrap_or(NonZeroU32::MIN);
        let clock = TokioClock { start: Instant::now() };
        Pace { limiter: RateLimiter::direct_with_clock(Quota::per_second(rate), clock), requests_per_second }
    }

    /// So many from now on. Where that is nothing new, what was begun within the last second goes on to count.
    pub(super) fn configure(&mut self, requests_per_second: u32) {
        if requests_per_second != self.requests_per_second {
            *self = Pace::new(requests_per_second);
        }
    }

    /// Takes the next place.
    ///
    /// # Errors
    /// How long until there is one.
    pub(super) fn step(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|early| early.wait_time_from(self.limiter.clock().now()))
    }
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
