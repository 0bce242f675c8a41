//! The one way to spawn a task, be told to stop, and be waited for.
//!
//! ```text
//! Starting ──▶ Ready ──▶ Draining ──▶ Stopped
//! ```
//!
//! Every task belongs to a [`Lifecycle`]; `tokio::spawn` is banned elsewhere. A stop is asked for once and is
//! heard by all clones. Leaves out deadlines: whoever stops the house decides how long it waits.

use std::future::Future;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant, SystemTime};

use jiff::tz::TimeZone;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// How far the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Opening the store and binding sockets.
    Starting,
    /// Serving.
    Ready,
    /// Told to stop: no new connections, running transfers go on.
    Draining,
    /// Everything has ended.
    Stopped,
}

/// The shared life of all tasks of one house. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    stop: CancellationToken,
    tasks: TaskTracker,
    phase: watch::Sender<Phase>,
}

impl Phase {
    /// The name in logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
            Phase::Stopped => "stopped",
        }
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Lifecycle {
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            phase: watch::Sender::new(Phase::Starting),
        }
    }
}

impl Lifecycle {
    /// Runs `task` on the current runtime under `name`, and has [`Lifecycle::wait`] wait for it. The task is
    /// not cancelled by a stop: it listens to [`Lifecycle::stopping`] where it can end early.
    #[allow(clippy::disallowed_methods)] // this is the one place
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.tasks.track_future(task.instrument(tracing::debug_span!("task", name))))
    }

    /// Resolves once a stop was asked for. Cancel-safe.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stop.clone().cancelled_owned()
    }

    /// Whether a stop was asked for.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Asks everything to stop.
    pub fn stop(&self) {
        self.enter(Phase::Draining);
        self.stop.cancel();
    }

    /// Waits until every task has ended; only sensible after [`Lifecycle::stop`].
    pub async fn wait(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// How many tasks are running.
    pub fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Where the house stands.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to `phase`; never back.
    pub fn enter(&self, phase: Phase) {
        let advanced = self.phase.send_if_modified(|now| std::mem::replace(now, phase.max(*now)) < phase);
        if advanced {
            tracing::debug!(phase = phase.as_str(), "phase");
        }
    }
}

/// The wall clock. Judgements take the time as an argument; this is where the argument comes from.
///
/// It goes with the runtime's clock, so that a test that pauses that one and moves it by six hours has six
/// hours pass everywhere: for timers and for what is dated. Outside of such tests both are the same clock.
#[allow(clippy::disallowed_methods)] // this is the one place
pub fn now() -> SystemTime {
    let before = Instant::now();
    let here = tokio::time::Instant::now().into_std();
    carried(SystemTime::now(), before..=Instant::now(), here)
}

/// The time since midnight by the local clock: as the variable `TZ` or `/etc/localtime` has it, else UTC.
pub fn time_of_day() -> Duration {
    let here = jiff::Timestamp::try_from(now()).unwrap_or_default().to_zoned(TimeZone::system()).time();
    let seconds = i32::from(here.hour()) * 3600 + i32::from(here.minute()) * 60 + i32::from(here.second());
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// `wall` as the runtime has it, whose clock showed `here` within `real`: by as much later or earlier as `here`
/// is outside of it.
fn carried(wall: SystemTime, real: RangeInclusive<Instant>, here: Instant) -> SystemTime {
    let ahead = here.saturating_duration_since(*real.end());
    let behind = real.start().saturating_duration_since(here);
    wall.checked_add(ahead).and_then(|wall| wall.checked_sub(behind)).unwrap_or(wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const QUARTER: Duration = Duration::from_secs(6 * 3600);

    #[tokio::test]
    async fn a_stop_is_heard_and_waited_for() {
        let life = Lifecycle::default();
        let other = life.clone();
        let task = life.spawn("listener", async move { other.stopping().await });
        assert_eq!(life.running(), 1);
        life.enter(Phase::Ready);
        life.stop();
        life.wait().await;
        assert!(task.await.is_ok() && life.is_stopping());
        life.enter(Phase::Ready);
        assert_eq!(life.phase(), Phase::Draining, "phases only go forward");
    }

    #[test]
    fn the_wall_clock_is_carried_along() {
        let wall = SystemTime::UNIX_EPOCH + 2 * QUARTER;
        let begun = Instant::now() + QUARTER;
        let real = begun..=begun + SECOND;
        for (here, expected) in [
            (begun, wall),
            (begun + SECOND / 2, wall),
            (begun + SECOND, wall),
            (begun + SECOND + QUARTER, wall + QUARTER),
            (begun - SECOND, wall - SECOND),
        ] {
            assert_eq!(carried(wall, real.clone(), here), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wall_clock_goes_with_the_runtimes() {
        let before = now();
        tokio::time::advance(QUARTER).await;
        let passed = now().duration_since(before).unwrap();
        assert!(passed > QUARTER - SECOND && passed < QUARTER + SECOND, "{passed:?}");
    }
}
