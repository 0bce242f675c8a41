//! Waiting for a condition instead of sleeping for a time.
//!
//! A condition is polled every few milliseconds and a test fails, at the line that waited, once
//! patience runs out. `TIDELOCK_TEST_PATIENCE=4` makes a slow machine four times as patient.

use std::fmt::Debug;
use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to leave the other tasks the processor, short enough not to be felt.
const POLL: Duration = Duration::from_millis(5);

/// `base` stretched by the factor in `TIDELOCK_TEST_PATIENCE`.
pub fn patience(base: Duration) -> Duration {
    let factor = std::env::var("TIDELOCK_TEST_PATIENCE").ok().and_then(|text| text.parse::<f64>().ok());
    base.mul_f64(factor.filter(|f| *f > 0.0).unwrap_or(1.0))
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within ten seconds.
#[track_caller]
pub fn eventually<F, Fut>(mut condition: F) -> impl Future<Output = ()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + patience(PATIENCE);
        while !condition().await {
            assert!(Instant::now() < deadline, "{caller}: the condition did not come true in time");
            sleep(POLL).await;
        }
    }
}

/// Waits until `value` yields `expected`.
///
/// # Panics
/// When it does not within ten seconds; the message shows the last value seen.
#[track_caller]
pub fn eventually_eq<T, F, Fut>(expected: T, mut value: F) -> impl Future<Output = ()>
where
    T: PartialEq + Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = T>,
{
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + patience(PATIENCE);
        loop {
            let seen = value().await;
            if seen == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{caller}: waited for {expected:?}, last saw {seen:?}");
            sleep(POLL).await;
        }
    }
}

/// Awaits `future` for at most twenty seconds, so that a bug fails a test instead of hanging it.
///
/// # Panics
/// When the time is up; `what` says what was awaited.
#[track_caller]
pub fn within<Fut: Future>(what: &str, future: Fut) -> impl Future<Output = Fut::Output> {
    let caller = Location::caller();
    async move {
        match timeout(patience(Duration::from_secs(20)), future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: {what} did not finish in time"),
        }
    }
}
