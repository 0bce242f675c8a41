//! Leave to send requests, and what came of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::budget::Choice;
use super::lane::{Lane, State};
use super::ledger::{Ledger, Quota, Sight};
use super::metrics::Reason;
use super::{ClientAddr, Priority, Refused, Terms, Told, Urgency, Want};
use crate::config::UpstreamId;
use crate::oci::{Reference, RepositoryName};
use crate::telemetry::Trace;

/// Leave to send requests to one upstream, on one account, over one connection at a time.
///
/// Given back when dropped, so it lives as long as the transfer that it was taken for. Whoever holds it says
/// what came of each request: that is all that the ledgers know.
#[derive(Debug)]
#[must_use = "a lease is given back when it is dropped"]
pub struct Lease {
    pub(super) lane: Arc<Lane>,
    pub(super) want: Want,
    pub(super) choice: Choice,
    /// When it began to find out whether its endpoint answers again, where it was given for that.
    pub(super) trial: Option<Instant>,
    account: Option<usize>,
    client: ClientAddr,
    /// Of the request for whose sake it was given.
    pub(super) trace: Trace,
    /// Of that request too.
    pub(super) urgency: Urgency,
    /// On which it goes as long as nobody waits for it.
    pub(super) terms: Option<Arc<Terms>>,
    bill: Mutex<Bill>,
}

/// Leave to send one counted request: a pull (I2). Only [`Scheduler::pull`](super::Scheduler::pull) makes it.
#[derive(Debug)]
#[must_use = "a pull is given back when it is dropped"]
pub struct Pull {
    lease: Lease,
    reference: Reference,
}

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
        (choice, trial): (Choice, Option<Instant>),
        account: Option<usize>,
        client: ClientAddr,
    ) -> Lease {
        let (trace, bill) = (Trace::default(), Mutex::new(Bill::Free));
        let urgency = Urgency::new(Priority::Foreground);
        Lease { lane, want, choice, trial, account, client, trace, urgency, terms: None, bill }
    }

    /// The span that what is asked under it is part of.
    pub fn trace(&self) -> &Trace {
        &self.trace
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

    /// Waits until so many bytes, which came, are within the bandwidth that the operator allows. Cancel-safe: where it is
    /// given up, they are not paid for.
    ///
    /// # Errors
    /// [`Refused::Closed`] where the hours of its terms are over.
    pub async fn pay(&self, bytes: u64) -> Result<(), Refused> {
        if let Some(terms) = &self.terms {
            terms.pay(bytes, &self.urgency).await?;
        }
        for line in &self.lane.lines {
            line.pay(bytes, self.client, &self.urgency).await;
        }
        Ok(())
    }

    /// Counts the bytes of a small body, which need not wait.
    pub fn note(&self, bytes: u64) {
        self.lane.lines.iter().for_each(|line| line.note(bytes));
    }

    /// Whether the operator limits how fast bytes may come now.
    pub fn is_limited(&self) -> bool {
        self.lane.lines.iter().any(|line| line.is_limited())
            || self.terms.as_ref().is_some_and(|terms| terms.is_limited())
    }

    /// Whether it costs a pull of a ledger.
    pub(super) fn is_metered(&self) -> bool {
        self.choice.metered
    }

    /// A free question goes out now.
    pub fn send(&self) -> Sent {
        let state = self.lane.state();
        Sent(self.ledger(&state).sight(false, Instant::now()))
    }

    /// The answer to a free question about a manifest: what it told of the quota, if anything.
    pub fn answered(&self, sent: Sent, told: Option<&Told>) {
        self.update(|state, _, now| self.hear(state, told, sent, now));
        self.lane.stir();
    }

    /// A request of the pull, if this is one, is on its way: from here on it is held to be spent.
    pub fn on_its_way(&self) {
        self.update(|state, bill, _| {
            if self.choice.metered && *bill == Bill::Free {
                *bill = Bill::Sent;
                self.ledger_mut(state).send();
            }
        });
    }

    /// It was turned away for want of a login, so nobody counted it.
    pub fn turned_away(&self) {
        self.update(|state, bill, _| {
            if *bill == Bill::Sent {
                *bill = Bill::Free;
                self.ledger_mut(state).take_back();
            }
        });
    }

    /// 429 for a spent pull quota: this account rests, others go on.
    pub fn refused(&self, told: Option<&Told>, retry_after: Option<Duration>) {
        self.lane.metrics.throttled(Reason::Quota, self.name().as_deref());
        self.update(|state, bill, now| {
            self.settle(state, bill, false, now);
            state.budget.doors[self.choice.door].note_metered(&self.want.repository);
            self.ledger_mut(state).refuse(told, retry_after, now);
            state.budget_changed();
        });
        self.lane.unsaved.notify_one();
        self.lane.stir();
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
            state.budget_changed();
        });
        self.lane.stir();
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
            state.budget_changed();
        });
        self.lane.stir();
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
            door.forgive();
            is_news = door.logins[self.choice.purse].take_back();
            if is_news {
                state.budget_changed();
            }
        });
        if is_news {
            self.lane.stir();
            tracing::info!(registry = self.lane.registry, account = self.name(), "an account logs in again");
        }
    }

    fn hear(&self, state: &mut State, told: Option<&Told>, sent: Sent, now: Instant) {
        let before = self.ledger(state).sum(now);
        let door = &mut state.budget.doors[self.choice.door];
        let is_news = match (told, door.ledgers[self.choice.purse].quota()) {
            (Some(told), _) if told.is_usable() => door.note_metered(&self.want.repository),
            (_, Quota::Unknown) | (None, Quota::Limited { .. }) => {
                door.note_unmetered(self.choice.purse, &self.want.repository)
            }
            (_, Quota::Unlimited) | (Some(_), Quota::Limited { .. }) => false,
        };
        self.ledger_mut(state).hear(told, sent.0, now);
        if is_news || self.ledger(state).sum(now) != before {
            state.budget_changed();
            self.lane.unsaved.notify_one();
        }
    }

    /// Writes down what the pull cost, once.
    fn settle(&self, state: &mut State, bill: &mut Bill, spent: bool, now: Instant) {
        let before = std::mem::replace(bill, Bill::Settled);
        if before != Bill::Settled && self.choice.metered {
            self.ledger_mut(state).settle(before == Bill::Sent, spent, now);
            state.budget_changed();
            self.lane.unsaved.notify_one();
        }
    }

    /// A pull was sent and nothing is known of its answer.
    fn lose(&self, state: &mut State, bill: &mut Bill, now: Instant) {
        *bill = Bill::Settled;
        self.ledger_mut(state).lose(now);
        state.budget_changed();
        self.lane.unsaved.notify_one();
    }

    fn update(&self, change: impl FnOnce(&mut State, &mut Bill, Instant)) {
        let mut bill = self.bill.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut self.lane.state(), &mut bill, Instant::now());
    }

    /// The account's name, as logs have it.
    pub(super) fn name(&self) -> Option<String> {
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
    pub(super) fn new(lease: Lease, reference: Reference) -> Pull {
        Pull { lease, reference }
    }

    /// The counted request is about to go out; [`Lease::on_its_way`] says when it does.
    pub fn send(&self) -> Sent {
        let Pull { lease, .. } = self;
        let mut state = lease.lane.state();
        // Better than nothing to ask about, until something is known to be there.
        state.subjects[lease.choice.purse].get_or_insert_with(|| self.subject());
        Sent(lease.ledger(&state).sight(lease.choice.metered, Instant::now()))
    }

    /// The answer to the counted request: a manifest, with what it told of the quota. Without a word it cost
    /// nothing: so do images whose publisher pays, and accounts without a limit.
    pub fn answered(&self, sent: Sent, told: Option<&Told>) {
        let Pull { lease, .. } = self;
        lease.update(|state, bill, now| {
            lease.settle(state, bill, told.is_some(), now);
            lease.hear(state, told, sent, now);
            // Images whose publisher pays tell nothing of the quota, so a probe has to ask about another one.
            if told.is_some() {
                state.subjects[lease.choice.purse] = Some(self.subject());
            }
            state.spenders.count(lease.client, &lease.want.repository, now);
        });
        lease.lane.stir();
    }

    /// Nobody counted it: it did not get there, or there was no manifest to be had.
    pub fn in_vain(&self) {
        self.lease.update(|state, bill, now| self.lease.settle(state, bill, false, now));
        self.lease.lane.stir();
    }

    fn subject(&self) -> (RepositoryName, Reference) {
        (self.lease.want.repository.clone(), self.reference.clone())
    }
}

impl AsRef<Lease> for Pull {
    fn as_ref(&self) -> &Lease {
        &self.lease
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let kind = self.want.kind;
        self.update(|state, bill, now| {
            match *bill {
                Bill::Sent => self.lose(state, bill, now),
                Bill::Free | Bill::Settled => self.settle(state, bill, false, now),
            }
            state.give_back(kind);
            self.give_trial_back(state, now);
        });
        self.lane.stir();
    }
}
