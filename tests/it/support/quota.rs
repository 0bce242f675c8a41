//! The two limits of Docker Hub: pulls over a rolling window, and requests of any kind over a minute.
//!
//! They go by the runtime's clock. With that paused (see [`super::time`]) a test sees six hours in a moment.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::site::Answer;

/// A pull quota as Docker Hub announces it. Each manifest GET takes one, which comes back a window later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Pulls per window.
    pub limit: i64,
    /// Seconds of the window.
    pub window: u64,
    /// Whether nothing left means 429.
    pub enforced: bool,
    /// The `docker-ratelimit-source` header.
    pub source: String,
    /// When and how many.
    spent: VecDeque<(Instant, i64)>,
}

/// The abuse limit, over HEAD and blobs too. What it refuses does not count against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbuseLimit {
    /// Requests in any minute.
    pub per_minute: usize,
    /// The `Retry-After` of a refusal.
    pub retry_after_seconds: u64,
    answered: VecDeque<Instant>,
}

/// What "per minute" means.
const MINUTE: Duration = Duration::from_secs(60);

impl RateLimit {
    /// A full quota over Docker Hub's six hours, enforced.
    pub fn new(limit: i64) -> Self {
        Self { limit, window: 21_600, enforced: true, source: "192.0.2.1".to_owned(), spent: VecDeque::new() }
    }

    /// With only so much left; the rest comes back a window from now. Less than nothing is how Docker Hub
    /// announces an account whose last pulls came all at once.
    pub fn remaining(mut self, remaining: i64) -> Self {
        self.spent = [(Instant::now(), self.limit - remaining)].into();
        self
    }

    /// With a window of so many seconds.
    pub fn window(mut self, seconds: u64) -> Self {
        self.window = seconds;
        self
    }

    /// Announced, but never 429: what is left falls below nothing.
    pub fn unenforced(mut self) -> Self {
        self.enforced = false;
        self
    }

    /// What is left now.
    pub fn left(&self) -> i64 {
        let spent = self.spent.iter().filter(|(at, _)| self.holds(*at));
        self.limit - spent.map(|(_, count)| count).sum::<i64>()
    }

    /// Takes one, unless there is none and that is enforced.
    pub(super) fn take(&mut self) -> bool {
        let left = self.left();
        let may_take = !self.enforced || left > 0;
        if may_take {
            self.spent.push_back((Instant::now(), 1));
        }
        may_take
    }

    /// Whether what was spent then has not come back yet.
    fn holds(&self, at: Instant) -> bool {
        at.elapsed() < Duration::from_secs(self.window)
    }
}

impl AbuseLimit {
    /// So many requests in any minute; refusals ask for that many seconds of quiet.
    pub fn new(per_minute: usize, retry_after_seconds: u64) -> Self {
        Self { per_minute, retry_after_seconds, answered: VecDeque::new() }
    }

    /// Counts a request, or refuses it in words that no JSON parser takes.
    pub(super) fn admit(&mut self) -> Result<(), Answer> {
        while self.answered.front().is_some_and(|at| at.elapsed() >= MINUTE) {
            self.answered.pop_front();
        }
        if self.answered.len() < self.per_minute {
            self.answered.push_back(Instant::now());
            return Ok(());
        }
        let refusal = Answer::new(429)
            .with("content-type", "text/plain")
            .with("retry-after", &self.retry_after_seconds.to_string())
            .with("connection", "close");
        Err(refusal.body("Too Many Requests (HAP429).\n"))
    }
}
