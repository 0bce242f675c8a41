//! Leave to send requests, and what came of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::budget::Choice;
use super::lane::{Lane, State};
use super::ledger::{Ledger, Sight};
use super::metrics::Reason;
use super::{ClientAddr, Told, Want};
use crate::config::UpstreamId;
use crate::oci::Reference;

/// Leave to send requests to one upstream, on one account, over one connection at a time.
///
/// Given back when dropped, so it lives as long as the transfer that it was taken for. Whoever holds it says
/// what came of each request: that is all that the ledgers know.
#[derive(Debug)]
#[must_use = "a lease is given back when it is dropped"]
pub struct Lease {
    lane: Arc<Lane>,
    want: Want,
    choice: Choice,
    account: Option<usize>,
    client: ClientAddr,
    bill: Mutex<Bill>,
}

/// Leave to send one counted request: a pull (I2). Only [`Scheduler::pull`](super::Scheduler::pull) makes it.
#[derive(Debug)]
#[must_use = "a pull is given back when it is dropped"]
pub struct Pull(Lease);

/// How far the pull that a lease may cost has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bill {
    /// Nothing was sent yet, or nothing of it costs a pull.
    Free,
    /// It is on the way, and may have been counted.
    Sent,
    /// What it cost is written down.
    Settled,
}

/// What was known when a request was sent; goes with what is said of its answer.
#[derive(Debug, Clone, Copy)]
pub struct Sent(Sight);

impl Lease {
    pub(super) fn new(
        lane: Arc<Lane>,
        want: Want,
        choice: Choice,
        account: Option<usize>,
        client: ClientAddr,
    ) -> Lease {
        Lease { lane, want, choice, account, client, bill: Mutex::new(Bill::Free) }
    }

    /// Whom this lease lets speak to.
    pub fn upstream(&self) -> UpstreamId {
        self.lane.upstream
    }

    /// Which of the upstream's endpoints, by its place in the configuration.
    pub fn endpoint(&self) -> usize {
        self.choice.door
    }

    /// Which of the upstream's accounts pays; `None` for nobody (anonymous).
    pub fn account(&self) -> Option<usize> {
        self.account
    }

    /// Whether it goes without an account although one is meant for the repository: what cannot be seen like this
    /// might be seen by the account.
    pub fn is_makeshift(&self) -> bool {
        self.account.is_none() && self.lane.state().budget.has_account_for(&self.want.repository)
    }

    /// A request about `repository` goes out now.
    pub fn send(&self) -> Sent {
        let state = self.lane.state();
        Sent(self.ledger(&state).sight(false, Instant::now()))
    }

    /// The answer to a free question about a manifest: what it told of the quota, if anything.
    pub fn answered(&self, sent: Sent, told: Option<&Told>) {
        self.update(|state, _, now| self.hear(state, told, sent, now));
    }

    /// 429 for a spent pull quota: this account rests, others go on.
    pub fn refused(&self, told: Option<&Told>, retry_after: Option<Duration>) {
        self.lane.metrics.throttled(Reason::Quota, self.name().as_deref());
        self.update(|state, bill, now| {
            self.settle(state, bill, false, now);
            self.ledger_mut(state).refuse(told, retry_after, now);
        });
        self.lane.unsaved.notify_one();
        tracing::info!(
            registry = self.lane.registry,
            account = self.name(),
            retry_after = retry_after.map(|wait| wait.as_secs()),
            "the upstream says that the pull quota is spent"
        );
    }

    /// 429 for too many requests in all, from `endpoint`: everything to it pauses.
    pub fn paused(&self, endpoint: usize, retry_after: Option<Duration>) {
        self.lane.metrics.throttled(Reason::Abuse, self.name().as_deref());
        let mut wait = Duration::ZERO;
        self.update(|state, bill, now| {
            self.settle(state, bill, false, now);
            wait = state.budget.doors[endpoint].pause(retry_after, now);
        });
        tracing::warn!(
            registry = self.lane.registry,
            seconds = wait.as_secs_f64(),
            "the upstream limits requests from this address; everything to it pauses"
        );
    }

    /// How long an endpoint is still to be left alone.
    pub fn pause_left(&self, endpoint: usize) -> Option<Duration> {
        let (state, now) = (self.lane.state(), Instant::now());
        state.budget.doors[endpoint].paused_until.filter(|until| *until > now).map(|until| until - now)
    }

    /// The account could not log in at `endpoint`: it is set aside there for a while.
    pub fn login_refused(&self, endpoint: usize, reason: &str) {
        if self.account.is_none() {
            return;
        }
        self.lane.metrics.throttled(Reason::Login, self.name().as_deref());
        let mut is_news = false;
        self.update(|state, bill, now| {
            self.settle(state, bill, false, now);
            is_news = state.budget.doors[endpoint].logins[self.choice.purse].set_aside(reason, now);
        });
        if is_news {
            tracing::warn!(
                registry = self.lane.registry,
                account = self.name(),
                reason,
                "an account cannot log in; it is set aside and tried again later"
            );
        }
    }

    /// `endpoint` answered: the account is let in and the endpoint is well.
    pub fn let_in(&self, endpoint: usize) {
        let mut is_news = false;
        self.update(|state, _, _| {
            let door = &mut state.budget.doors[endpoint];
            door.is_well();
            is_news = door.logins[self.choice.purse].take_back();
        });
        if is_news {
            tracing::info!(registry = self.lane.registry, account = self.name(), "an account logs in again");
        }
    }

    fn hear(&self, state: &mut State, told: Option<&Told>, sent: Sent, now: Instant) {
        let before = self.ledger(state).sum(now);
        let has_limit = matches!(self.ledger(state).quota(), super::ledger::Quota::Limited { .. });
        if has_limit || told.is_some() {
            state.budget.is_unmetered(&self.want.repository, told.is_none());
        }
        self.ledger_mut(state).hear(told, sent.0, now);
        if self.ledger(state).sum(now) != before {
            self.lane.unsaved.notify_one();
        }
    }

    /// Writes down what the pull cost, once.
    fn settle(&self, state: &mut State, bill: &mut Bill, spent: bool, now: Instant) {
        if *bill != Bill::Settled {
            *bill = Bill::Settled;
            if self.choice.metered {
                self.ledger_mut(state).settle(spent, now);
                self.lane.unsaved.notify_one();
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut State, &mut Bill, Instant)) {
        let mut bill = self.bill.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut self.lane.state(), &mut bill, Instant::now());
        drop(bill);
        self.lane.stir();
    }

    fn name(&self) -> Option<String> {
        Some(self.lane.state().budget.purses[self.choice.purse].name.clone())
    }

    fn ledger<'s>(&self, state: &'s State) -> &'s Ledger {
        &state.budget.doors[self.choice.door].ledgers[self.choice.purse]
    }

    fn ledger_mut<'s>(&self, state: &'s mut State) -> &'s mut Ledger {
        &mut state.budget.doors[self.choice.door].ledgers[self.choice.purse]
    }
}

impl Pull {
    pub(super) fn new(lease: Lease) -> Pull {
        Pull(lease)
    }

    /// The counted request for `reference` goes out now. From here on it is held to be spent, until its answer
    /// shows that it was not.
    pub fn send(&self, reference: &Reference) -> Sent {
        let mut sight = None;
        self.0.update(|state, bill, now| {
            *bill = Bill::Sent;
            state.subjects[self.0.choice.purse] = Some((self.0.want.repository.clone(), reference.clone()));
            sight = Some(self.0.ledger(state).sight(self.0.choice.metered, now));
        });
        Sent(sight.expect("the update ran"))
    }

    /// The answer to the counted request: a manifest, with what it told of the quota. Without a word it cost
    /// nothing: so do images whose publisher pays, and accounts without a limit.
    pub fn answered(&self, sent: Sent, told: Option<&Told>) {
        self.0.update(|state, bill, now| {
            self.0.settle(state, bill, told.is_some(), now);
            self.0.hear(state, told, sent, now);
            state.spenders.count(self.0.client, &self.0.want.repository, now);
        });
    }

    /// There was no manifest to be had, so none was counted (404, 401).
    pub fn in_vain(&self) {
        self.0.update(|state, bill, now| self.0.settle(state, bill, false, now));
    }
}

impl AsRef<Lease> for Lease {
    fn as_ref(&self) -> &Lease {
        self
    }
}

impl AsRef<Lease> for Pull {
    fn as_ref(&self) -> &Lease {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let kind = self.want.kind;
        self.update(|state, bill, now| {
            // A request that was sent and of whose answer nothing is known may have been counted.
            let is_spent = *bill == Bill::Sent;
            self.settle(state, bill, is_spent, now);
            state.give_back(kind);
        });
    }
}
