//! After a refusal for a spent quota: how long an account is left alone. Plain judgement.

use std::time::Duration;

use tokio::time::Instant;

use super::Told;

/// The upstream said no. Nothing is spent until it is over.
#[derive(Debug, Clone)]
pub(super) struct Rest {
    since: Instant,
    until: Instant,
    /// From `until` on a free answer ends it, so that nobody's pull has to find out; from here on it ends by itself,
    /// for there may be nothing to ask about. Where the upstream said how long (`Retry-After`), that is `until`.
    at_latest: Instant,
    /// It said no while its headers said yes: they are not believed until then.
    contradicted: bool,
}

/// What a refusal says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    /// `Retry-After`.
    pub(super) retry_after: Option<Duration>,
    /// Its headers speak of pulls that are left.
    pub(super) contradicted: bool,
    /// By then everything is back, whatever was said.
    pub(super) window: Duration,
}

/// The longest rest that nobody named.
const LONGEST: Duration = Duration::from_secs(3600);
/// After a refusal without any word on how long.
const FIRST: Duration = Duration::from_secs(60);
/// After one that told to come back at once.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long probes may take to find out that it is over.
const PATIENCE_WITH_PROBES: Duration = Duration::from_secs(600);

impl Rest {
    /// For as long as it was told; where it was not told, or to come back at once, longer each time that it is still no.
    /// What was sent together is refused together, and counts once.
    pub(super) fn after(before: Option<Rest>, refusal: Refusal, now: Instant) -> Rest {
        let Refusal { retry_after, contradicted, window } = refusal;
        let under_way = before.as_ref().filter(|rest| rest.until > now);
        let grown = match (under_way, &before) {
            (Some(rest), _) => rest.until - rest.since,
            (None, Some(rest)) => (rest.until - rest.since) * 2,
            (None, None) => retry_after.map_or(FIRST, |_| SHORTEST),
        };
        let wait = match retry_after {
            Some(told) if under_way.is_some() => told,
            Some(told) => told.max(grown.min(FIRST)),
            None => grown.min(LONGEST),
        };
        let wait = wait.min(window);
        let since = under_way.map_or(now, |rest| rest.since);
        // A word counts from when it is said, and no rest becomes shorter by being told again.
        let until = if retry_after.is_some() { now + wait } else { since + wait };
        let until = before.map_or(until, |rest| rest.until.max(until));
        let at_latest = if retry_after.is_some() { until } else { until + wait.max(PATIENCE_WITH_PROBES) };
        Rest { since, until, at_latest, contradicted }
    }

    /// One of which so much was left when it was kept.
    pub(super) fn restored(left: Duration, now: Instant) -> Rest {
        Rest { since: now, until: now + left, at_latest: now + left, contradicted: false }
    }

    /// What is left of it: nothing where an answer is all that is waited for; `None` once it is over.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        (self.at_latest > now).then(|| self.until.saturating_duration_since(now))
    }

    /// When it is over in any case.
    pub(super) fn at_latest(&self) -> Instant {
        self.at_latest
    }

    /// Whether the answer to a question that was sent at `sent` ends it.
    pub(super) fn ends_by(&self, told: Option<&Told>, sent: Instant, now: Instant) -> bool {
        let allows = told.is_none_or(|told| told.remaining.is_none_or(|left| left > 0));
        let speaks = told.is_some_and(Told::is_usable) && !self.contradicted;
        sent >= self.since && allows && (speaks || now >= self.until)
    }
}
