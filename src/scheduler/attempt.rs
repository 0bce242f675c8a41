//! One question on its way to an endpoint, and what it tells of whether that endpoint answers.

use std::time::Duration;

use tokio::time::Instant;

use super::Refused;
use super::breaker::{Access, News, Trouble};
use super::lane::State;
use super::lease::Lease;

/// A question that is under way. Dropped unheard of, as when nobody waits any more, it says nothing.
#[derive(Debug)]
#[must_use = "what came of it is said by `answered` or `failed`"]
pub struct Attempt<'a> {
    lease: &'a Lease,
    endpoint: usize,
    sent: Instant,
}

impl Lease {
    /// A question goes to `endpoint` now.
    pub fn attempt(&self, endpoint: usize) -> Attempt<'_> {
        Attempt { lease: self, endpoint, sent: Instant::now() }
    }

    /// Whether `endpoint` may be asked, as far as its answers go: a transfer under way goes on where it can.
    pub fn access(&self, endpoint: usize) -> Access {
        let state = self.lane.state();
        state.budget.doors[endpoint].breakers.access(&self.want.repository, Instant::now())
    }

    /// Why `endpoint` may not be asked, where that is since it does not answer.
    pub fn down(&self, endpoint: usize) -> Option<Refused> {
        let (state, repository, now) = (self.lane.state(), &self.want.repository, Instant::now());
        state.budget.doors[endpoint].breakers.shut(repository, now)?;
        Some(state.budget.down(&self.lane.registry, endpoint, repository, now))
    }

    /// Takes it upon itself to find out whether `endpoint` answers again; false where that is not to be done now.
    pub fn try_out(&self, endpoint: usize) -> bool {
        let mut state = self.lane.state();
        let is_trial = state.budget.doors[endpoint].breakers.enter(&self.want.repository, Instant::now());
        if is_trial {
            state.budget_changed();
        }
        is_trial
    }

    /// The trial that this lease was given for goes to another one, unless something was heard of it.
    pub(super) fn give_trial_back(&self, state: &mut State, now: Instant) {
        let Some(begun) = self.trial else { return };
        let breakers = &mut state.budget.doors[self.choice.door].breakers;
        if breakers.give_back(&self.want.repository, begun, now) {
            state.budget_changed();
        }
    }
}

impl Attempt<'_> {
    /// It was answered, whatever the answer says.
    pub fn answered(self) {
        let mut state = self.lease.lane.state();
        let news = state.budget.doors[self.endpoint].breakers.answered(&self.lease.want.repository);
        self.tell(state, news, "");
    }

    /// It was not, or with no more than the word that something is broken there.
    pub fn failed(self, trouble: &Trouble) {
        let mut state = self.lease.lane.state();
        let breakers = &mut state.budget.doors[self.endpoint].breakers;
        let news = breakers.failed(&self.lease.want.repository, trouble, self.sent, Instant::now());
        self.tell(state, news, &trouble.reason);
    }

    fn tell(&self, mut state: std::sync::MutexGuard<'_, State>, news: Option<News>, reason: &str) {
        let Some(News { repository, opened }) = news else { return };
        state.budget_changed();
        let endpoint = state.budget.doors[self.endpoint].host.clone();
        drop(state);
        self.lease.lane.stir();
        let registry = &self.lease.lane.registry;
        let repository = repository.map(|name| name.to_string());
        match opened.as_ref().map(Duration::as_secs_f64) {
            Some(seconds) => tracing::warn!(
                registry,
                endpoint,
                repository,
                reason,
                seconds,
                "an endpoint does not answer; it is left alone, and tried again by one request at a time"
            ),
            None => tracing::info!(registry, endpoint, repository, "an endpoint answers again"),
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut state = self.lease.lane.state();
        let breakers = &mut state.budget.doors[self.endpoint].breakers;
        if breakers.give_back(&self.lease.want.repository, self.sent, Instant::now()) {
            state.budget_changed();
            drop(state);
            self.lease.lane.stir();
        }
    }
}
