//! What one account may still pull at one endpoint. Plain judgement: `now` is an argument.
//!
//! ```text
//!  limit ├───────── used ──────────┤── available ──┤
//!        │ open │ debts, each with │
//!        │      │ the moment it    │
//!        │      │ comes back       │
//! ```
//!
//! Docker Hub's window rolls and names no reset: a pull comes back one window after it was made. That is also
//! the latest under every other scheme (fixed windows, refill by the second), so a pull that is held to be
//! gone for a whole window is never believed to be back too early. What others spent on the same account is
//! learned from answers and held to have been spent just then. An answer corrects both ways, within what it
//! can know: requests that were under way beside it may be counted in it or not.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Told;
use super::hour::Hour;
use super::rest::{Refusal, Rest};
use crate::backoff::Backoff;

/// The ledger of one account at one endpoint.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    quota: Quota,
    /// Leases out: they count as spent until it is known how they ended.
    open: u64,
    /// Of these, those that were sent: only they can be counted in an answer.
    sent: u64,
    /// What was spent, in the order in which it comes back.
    debts: VecDeque<Debt>,
    /// Leases ever given.
    granted: u64,
    rest: Option<Rest>,
    /// When an answer last said something of the quota.
    heard: Option<Instant>,
    /// When the newest request was sent of which an answer was heard: older ones may come after it, and know less.
    newest: Option<Instant>,
    probing: Option<Probing>,
    /// Pulls of the last hour, those of others too where answers showed them.
    burnt: Hour<u64>,
}

/// What is known of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quota {
    /// Nothing yet: one request at a time, until an answer tells.
    Unknown,
    /// Answers come without any: there is none.
    Unlimited,
    /// So many pulls in a window.
    Limited {
        /// Pulls.
        limit: u64,
        /// Of this length.
        window: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Debt {
    due: Instant,
    pulls: u64,
}

/// When a spent account is asked the next time, by a free HEAD.
#[derive(Debug, Clone)]
struct Probing {
    at: Instant,
    backoff: Backoff,
}

/// What was known when a request was sent: which other requests its answer may or may not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sight {
    at: Instant,
    open: u64,
    granted: u64,
}

/// Where an upstream tells a limit and no window: Docker Hub's, the longest in use.
const PRESUMED_WINDOW: Duration = Duration::from_secs(6 * 3600);
/// A request that was given up may be on its way for this long, and be counted in the end.
pub(super) const AFLOAT: Duration = Duration::from_secs(120);
const FIRST_PROBE: Duration = Duration::from_secs(30);
const LONGEST_PROBE: Duration = Duration::from_secs(15 * 60);
/// More than this are joined in pairs: a limit of a million costs no more memory.
const MOST_DEBTS: usize = 512;

impl Ledger {
    /// Nothing is known.
    pub(super) fn new(now: Instant) -> Ledger {
        Ledger {
            quota: Quota::Unknown,
            open: 0,
            sent: 0,
            debts: VecDeque::new(),
            granted: 0,
            rest: None,
            heard: None,
            newest: None,
            probing: None,
            burnt: Hour::new(now),
        }
    }

    /// As it was kept: what is owed, by the time that is left until each part comes back. How long the process
    /// was away is not credited, since the clock may have been set meanwhile; the first answer corrects it.
    pub(super) fn restore(
        quota: Quota,
        owed: &[(Duration, u64)],
        rest: Option<Duration>,
        now: Instant,
    ) -> Ledger {
        let mut ledger = Ledger { quota, ..Ledger::new(now) };
        let longest = ledger.window();
        for (left, pulls) in owed {
            ledger.owe(now + (*left).min(longest + AFLOAT), *pulls);
        }
        ledger.rest = rest.map(|left| Rest::restored(left.min(longest), now));
        ledger.watch(now);
        // It may have had hours to recover.
        ledger.probing.iter_mut().for_each(|probing| probing.at = now);
        ledger
    }

    /// What is owed and for how long, open leases as if they were given up now.
    pub(super) fn owed(&self, now: Instant) -> Vec<(Duration, u64)> {
        let longest = self.window() + AFLOAT;
        let open = (self.open > 0).then_some((longest, self.open));
        let debts = self.debts.iter().filter(|debt| debt.due > now);
        debts.map(|debt| (debt.due - now, debt.pulls)).chain(open).collect()
    }

    /// What is left of a refusal; nothing where an answer is all that is waited for.
    pub(super) fn resting(&self, now: Instant) -> Option<Duration> {
        self.rest.as_ref()?.left(now)
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    /// What of it is worth keeping, in brief: when this changes, the note is out of date. With when the last pull
    /// comes back, since a reset brings that forward and changes nothing else.
    pub(super) fn sum(&self, now: Instant) -> (Quota, u64, Option<Instant>, bool) {
        let last = self.debts.back().map(|debt| debt.due);
        (self.quota, self.used(now), last, self.rest.is_some())
    }

    pub(super) fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Pulls that may be begun now; `u64::MAX` where there is no limit.
    pub(super) fn available(&self, now: Instant) -> u64 {
        if self.resting(now).is_some() {
            return 0;
        }
        match self.quota {
            Quota::Unknown => u64::from(self.open == 0),
            Quota::Unlimited => u64::MAX,
            Quota::Limited { limit, .. } => limit.saturating_sub(self.used(now)),
        }
    }

    /// Pulls that count against the limit.
    pub(super) fn used(&self, now: Instant) -> u64 {
        let owed = self.debts.iter().filter(|debt| debt.due > now);
        owed.fold(self.open, |sum, debt| sum.saturating_add(debt.pulls))
    }

    /// The earliest moment at which more than `beyond` will be available by itself; `None` where only an answer can
    /// tell.
    pub(super) fn back_at(&self, beyond: u64, now: Instant) -> Option<Instant> {
        self.back_after(self.rested_at(now), beyond, now)
    }

    /// When something will be available as far as can be expected: a rest is ended by the first answer that allows it,
    /// and it is asked for one.
    pub(super) fn expected_at(&self, now: Instant) -> Option<Instant> {
        let rested = self.resting(now).map_or(now, |left| now + left.max(FIRST_PROBE * 2));
        self.back_after(rested.min(self.rested_at(now)), 0, now)
    }

    /// When its rest is over by itself.
    pub(super) fn rested_at(&self, now: Instant) -> Instant {
        self.rest.as_ref().map_or(now, |rest| rest.at_latest().max(now))
    }

    fn back_after(&self, rested: Instant, beyond: u64, now: Instant) -> Option<Instant> {
        let Quota::Limited { limit, .. } = self.quota else {
            return (rested > now).then_some(rested);
        };
        let mut used = self.used(now);
        let mut owed = self.debts.iter().filter(|debt| debt.due > now);
        let mut at = now;
        while limit.saturating_sub(used) <= beyond {
            let debt = owed.next()?;
            used = used.saturating_sub(debt.pulls);
            at = debt.due;
        }
        Some(at.max(rested))
    }

    /// Takes one pull; only where one is available.
    pub(super) fn grant(&mut self, now: Instant) {
        self.forget_paid(now);
        self.open += 1;
        self.granted += 1;
    }

    /// A lease that is out goes on its way.
    pub(super) fn send(&mut self) {
        self.sent = (self.sent + 1).min(self.open);
    }

    /// It was turned away before anybody counted it.
    pub(super) fn take_back(&mut self) {
        self.sent = self.sent.saturating_sub(1);
    }

    /// There is no limit.
    pub(super) fn set_unlimited(&mut self) {
        if self.quota == Quota::Unknown {
            self.quota = Quota::Unlimited;
        }
    }

    /// What a request sees that is sent now; `own` when it is itself a lease that is out.
    pub(super) fn sight(&self, own: bool, now: Instant) -> Sight {
        let open = self.open.saturating_sub(u64::from(own)) + self.afloat(now);
        Sight { at: now, open, granted: self.granted }
    }

    /// A lease is over, which was on its way or not; `spent` unless it is certain that the upstream counted nothing.
    pub(super) fn settle(&mut self, was_sent: bool, spent: bool, now: Instant) {
        self.open = self.open.saturating_sub(1);
        self.sent = self.sent.saturating_sub(u64::from(was_sent)).min(self.open);
        if spent {
            // The upstream counted it at some moment before its answer, so by then it is back there too.
            self.owe(now + self.window(), 1);
            *self.burnt.slot(now) += 1;
        }
        self.watch(now);
    }

    /// A request that was on its way was given up: it may yet reach the upstream and be counted there.
    pub(super) fn lose(&mut self, now: Instant) {
        self.settle(true, false, now);
        self.owe(now + self.window() + AFLOAT, 1);
        *self.burnt.slot(now) += 1;
        self.watch(now);
    }

    /// An answer came: with what it said of the quota, or without a word. The lease that it was the answer to
    /// has been settled before.
    pub(super) fn hear(&mut self, told: Option<&Told>, sight: Sight, now: Instant) {
        if let Some(told) = told {
            self.correct(told, sight, now);
            self.heard = Some(now);
        }
        // Without a word an answer of a limited account is about an image whose publisher pays.
        if told.is_some() || !matches!(self.quota, Quota::Limited { .. }) {
            self.rest = self.rest.take().filter(|rest| !rest.ends_by(told, sight.at, now));
        }
        self.watch(now);
    }

    /// The upstream says that the quota is spent.
    pub(super) fn refuse(&mut self, told: Option<&Told>, retry_after: Option<Duration>, now: Instant) {
        let left = told.and_then(|told| told.remaining);
        if let Some(told) = told.filter(|_| left.is_some_and(|left| left <= 0)) {
            self.correct(told, self.sight(false, now), now);
            self.heard = Some(now);
        }
        let is_known = left.is_some_and(|left| left <= 0) && self.available(now) == 0;
        if !is_known || retry_after.is_some() {
            let contradicted = left.is_some_and(|left| left > 0);
            let refusal = Refusal { retry_after, contradicted, window: self.window() };
            self.rest = Some(Rest::after(self.rest.take(), refusal, now));
        }
        self.watch(now);
    }

    /// When it is to be asked by a free HEAD; `None` while it has something left.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.probing.as_ref().map(|probing| probing.at)
    }

    /// A probe goes out: the next one later.
    pub(super) fn probed(&mut self, now: Instant) {
        if let Some(probing) = &mut self.probing {
            probing.at = now + probing.backoff.wait();
        }
    }

    /// Pulls in a second over the last hour.
    pub(super) fn burn_rate(&self, now: Instant) -> f64 {
        self.burnt.recent(now).sum::<u64>() as f64 / self.burnt.span(now).as_secs_f64()
    }

    /// How long until nothing is left, if pulls go on at the burn rate; `None` when what comes back suffices.
    pub(super) fn exhaustion(&self, now: Instant) -> Option<Duration> {
        let Quota::Limited { limit, window } = self.quota else { return None };
        if self.available(now) == 0 {
            return Some(Duration::ZERO);
        }
        let rate = self.burn_rate(now);
        let mut left = limit as f64 - self.used(now) as f64;
        let mut at = now;
        for debt in self.debts.iter().filter(|debt| debt.due > now) {
            let need = rate * (debt.due - at).as_secs_f64();
            if need >= left {
                break;
            }
            left += debt.pulls as f64 - need;
            at = debt.due;
        }
        let seconds = (at - now).as_secs_f64() + left / rate;
        (rate > 0.0 && seconds <= window.as_secs_f64()).then(|| Duration::from_secs_f64(seconds))
    }

    fn window(&self) -> Duration {
        match self.quota {
            Quota::Limited { window, .. } => window,
            Quota::Unknown | Quota::Unlimited => PRESUMED_WINDOW,
        }
    }

    /// What was given up and may be counted later than now: it comes back more than a window from now.
    fn afloat(&self, now: Instant) -> u64 {
        let settled = now + self.window();
        let later = self.debts.iter().rev().take_while(|debt| debt.due > settled);
        // What was owed by a longer window is back even later.
        later.filter(|debt| debt.due <= settled + AFLOAT).map(|debt| debt.pulls).sum()
    }

    /// Brings the ledger to what an answer allows: at least what it counts, at most that and all that it may
    /// have missed.
    fn correct(&mut self, told: &Told, sight: Sight, now: Instant) {
        self.forget_paid(now);
        let is_first = !matches!(self.quota, Quota::Limited { .. });
        let Some((limit, window)) = self.learn(told, now) else { return };
        let Some(remaining) = told.remaining else { return };
        let used = self.used(now);
        let counted = u64::try_from(i128::from(limit) - i128::from(remaining)).unwrap_or(0);
        let missed = sight.open + (self.granted - sight.granted);
        // What was not sent yet is certainly not counted; and what the first answer counts may all be others'.
        let uncounted = if is_first { missed } else { self.open - self.sent };
        let at_least = counted.saturating_add(uncounted);
        let is_newest = self.newest.is_none_or(|newest| sight.at >= newest);
        if used < at_least {
            // Before the first answer nobody knows since when.
            *self.burnt.slot(now) += if self.heard.is_some() { at_least - used } else { 0 };
            self.owe(now + window, at_least - used);
        } else if is_newest {
            self.write_off(used.saturating_sub(counted.saturating_add(missed)));
        }
        self.newest = self.newest.max(Some(sight.at));
        // What was pulled beside the question may be of the time after the reset. And one of 0 is a clock that
        // goes wrong, since what is whole again is not counted.
        if let Some(reset) = told.reset.filter(|reset| missed == 0 && !reset.is_zero()) {
            self.debts.iter_mut().for_each(|debt| debt.due = debt.due.min(now + reset));
        }
    }

    /// Takes over the limit and the window that an answer tells; `None` where nobody knows of a limit still.
    fn learn(&mut self, told: &Told, now: Instant) -> Option<(u64, Duration)> {
        let (limit, window) = match self.quota {
            // Without what remains nothing would correct what is too good, so what is stricter is believed.
            Quota::Limited { limit, window } if told.remaining.is_none() => {
                (told.limit.unwrap_or(limit).min(limit), told.window.unwrap_or(window).max(window))
            }
            Quota::Limited { limit, window } => (told.limit.unwrap_or(limit), told.window.unwrap_or(window)),
            Quota::Unknown | Quota::Unlimited => {
                // Nothing left of nobody knows what is no ground to stop: so some write "unlimited".
                let left = told.remaining.filter(|left| *left > 0);
                let limit = told.limit.or_else(|| Some(left?.unsigned_abs() + self.used(now)))?;
                let window = told.window.unwrap_or(PRESUMED_WINDOW);
                self.redate(window, now);
                (limit, window)
            }
        };
        self.quota = Quota::Limited { limit, window };
        Some((limit, window))
    }

    /// What is owed so far was dated by a window that nobody had named.
    fn redate(&mut self, window: Duration, now: Instant) {
        for debt in &mut self.debts {
            let made = debt.due.checked_sub(PRESUMED_WINDOW).unwrap_or(now);
            debt.due = made + window;
        }
    }

    /// Less was spent than was thought: the part that would have come back first came back before.
    fn write_off(&mut self, mut pulls: u64) {
        while pulls > 0 {
            let Some(debt) = self.debts.front_mut() else { return };
            let part = debt.pulls.min(pulls);
            debt.pulls -= part;
            pulls -= part;
            if debt.pulls == 0 {
                self.debts.pop_front();
            }
        }
    }

    fn owe(&mut self, due: Instant, pulls: u64) {
        // As a rule at the end; earlier where the window was shortened.
        let place = self.debts.partition_point(|debt| debt.due <= due);
        self.debts.insert(place, Debt { due, pulls });
        if self.debts.len() > MOST_DEBTS {
            self.join_debts();
        }
    }

    /// Two neighbours become one, due with the later of them.
    fn join_debts(&mut self) {
        let debts: Vec<Debt> = self.debts.drain(..).collect();
        let joined = debts.chunks(2).map(|pair| Debt {
            due: pair[pair.len() - 1].due,
            pulls: pair.iter().map(|debt| debt.pulls).sum(),
        });
        self.debts.extend(joined);
    }

    fn forget_paid(&mut self, now: Instant) {
        while self.debts.front().is_some_and(|debt| debt.due <= now) {
            self.debts.pop_front();
        }
    }

    /// Begins or ends the probing of a spent account.
    fn watch(&mut self, now: Instant) {
        let is_spent =
            self.available(now) == 0 && self.quota != Quota::Unknown || self.resting(now).is_some();
        if !is_spent {
            self.probing = None;
        } else if self.probing.is_none() {
            let mut backoff = Backoff::new(FIRST_PROBE, LONGEST_PROBE);
            self.probing = Some(Probing { at: now + backoff.wait(), backoff });
        }
    }
}

#[cfg(test)]
mod tests;
