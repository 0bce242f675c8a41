use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

use super::Error;
use super::metrics::StoreMetrics;

/// Whether the disk takes what it is given.
///
/// ```text
/// Well ── a write fails: one line, a gauge ──▶ Failing ── every few seconds a probe ──▶ Well again
///                                                 └── meanwhile everything passes through uncached
/// ```
#[derive(Debug)]
pub(super) struct Health {
    state: Mutex<State>,
    metrics: StoreMetrics,
}

#[derive(Debug, Default)]
struct State {
    failing: Option<Failing>,
    /// What the log was last told, and when.
    told: Option<(Cause, Instant)>,
}

#[derive(Debug)]
struct Failing {
    cause: Cause,
    since: Instant,
    is_told: bool,
}

/// What comes and goes every few seconds is not told each time.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Why nothing can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The file system is full, or would be left with less than `cache.min_free`.
    Full,
    /// It takes no writes.
    ReadOnly,
    /// The process has too many open files.
    Descriptors,
    /// Anything else that the disk says.
    Disk,
}

impl Health {
    pub(super) fn new(metrics: StoreMetrics) -> Health {
        Health { state: Mutex::default(), metrics }
    }

    /// Whether it is worth trying to keep something.
    ///
    /// # Errors
    /// [`Error::Failing`].
    pub(super) fn may_try(&self) -> Result<(), Error> {
        match &self.lock().failing {
            Some(failing) => Err(Error::Failing(failing.cause.advice())),
            None => Ok(()),
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        self.lock().failing.is_some()
    }

    /// Takes note of why something could not be kept, where that is the disk's doing.
    pub(super) fn note<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &outcome
            && let Some(cause) = Cause::of(error)
        {
            self.failed(cause, error);
        }
        outcome
    }

    fn failed(&self, cause: Cause, error: &Error) {
        self.metrics.failures.inc();
        let mut state = self.lock();
        let known = state.failing.take();
        let since = known.as_ref().map_or_else(Instant::now, |known| known.since);
        let mut is_told = known.is_some_and(|known| known.cause == cause && known.is_told);
        if !is_told && state.told.is_none_or(|(told, at)| told != cause || at.elapsed() >= TOLD_EVERY) {
            tracing::error!(%error, "{}; pulls go on uncached until that is over", cause.advice());
            (is_told, state.told) = (true, Some((cause, Instant::now())));
        }
        self.metrics.failing(Some(cause));
        state.failing = Some(Failing { cause, since, is_told });
    }

    /// Something was kept.
    pub(super) fn worked(&self) {
        let mut state = self.lock();
        let Some(failing) = state.failing.take() else { return };
        self.metrics.failing(None);
        if failing.is_told {
            tracing::info!(after = ?failing.since.elapsed(), "the cache takes what is pulled again");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Put in and taken out whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this is for want of open files, and tells nothing of the disk.
pub(super) fn wants_descriptors(error: &io::Error) -> bool {
    Cause::of_io(error) == Cause::Descriptors
}

impl Cause {
    /// Every value, for metrics that start at 0.
    pub(super) const ALL: [Cause; 4] = [Cause::Full, Cause::ReadOnly, Cause::Descriptors, Cause::Disk];

    /// `None` for what is not the disk's doing: a blob that is larger than the cache, or wrong.
    fn of(error: &Error) -> Option<Cause> {
        match error {
            Error::Io { source, .. } => Some(Cause::of_io(source)),
            Error::Index(_) => Some(Cause::Disk),
            // One that is too large says nothing about others.
            Error::Full { wanted: 0, .. } => Some(Cause::Full),
            Error::Full { .. } | Error::NoRoom { .. } | Error::Mismatch | Error::Failing(_) => None,
        }
    }

    fn of_io(error: &io::Error) -> Cause {
        match Errno::from_io_error(error) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Cause::Full,
            Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => Cause::ReadOnly,
            Some(Errno::MFILE | Errno::NFILE) => Cause::Descriptors,
            _ => Cause::Disk,
        }
    }

    /// The label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Cause::Full => "full",
            Cause::ReadOnly => "read_only",
            Cause::Descriptors => "descriptors",
            Cause::Disk => "disk",
        }
    }

    /// What is wrong and what to do about it.
    fn advice(self) -> &'static str {
        match self {
            Cause::Full => "the cache's file system is full; free some space on it, or lower cache.min_free",
            Cause::ReadOnly => {
                "the cache's file system takes no writes; remount it, or give this user the right to write"
            }
            Cause::Descriptors => {
                "the process has too many open files; raise its limit (ulimit -n, LimitNOFILE=)"
            }
            Cause::Disk => "the cache's disk fails; the system's log says more",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    fn fail(health: &Health, errno: Errno) {
        let _ = health.note(Err::<(), _>(Error::io("writing")(errno.into())));
    }

    fn last_told(health: &Health) -> Option<(Cause, Instant)> {
        health.lock().told
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_and_goes_is_told_once_a_minute() {
        let health = Health::new(StoreMetrics::new(&Metrics::default()));
        fail(&health, Errno::NOSPC);
        let first = last_told(&health);
        assert!(first.is_some_and(|(cause, _)| cause == Cause::Full) && health.is_failing());
        for _ in 0..11 {
            tokio::time::advance(Duration::from_secs(5)).await;
            health.worked();
            assert!(!health.is_failing());
            fail(&health, Errno::NOSPC);
            assert_eq!(last_told(&health), first);
        }
        fail(&health, Errno::ROFS);
        assert!(
            last_told(&health).is_some_and(|(cause, _)| cause == Cause::ReadOnly),
            "that is something else"
        );
        fail(&health, Errno::NOSPC);
        health.worked();
        fail(&health, Errno::NOSPC);
        let second = last_told(&health);
        tokio::time::advance(TOLD_EVERY).await;
        assert_eq!(last_told(&health), second);
        fail(&health, Errno::NOSPC);
        assert_ne!(last_told(&health), second, "what lasts is told in the end");
    }
}
