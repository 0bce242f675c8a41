use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use crate::scheduler::Told;

/// A registry that counts pulls truly and serves no more than its limit.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) terms: Terms,
    begun: Instant,
    /// When each pull was counted, those of others too.
    counted: Vec<Instant>,
}

/// How it counts.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) limit: u64,
    pub(super) window: Duration,
    /// In windows that follow one another, with `reset`; else the window rolls, as Docker Hub's does.
    pub(super) is_fixed: bool,
    /// So many seconds after the beginning others pulled on the same account, all within one window; only then,
    /// since nobody can know of what others do from now on.
    pub(super) others: Vec<u64>,
}

impl Upstream {
    pub(super) fn new(terms: Terms) -> Upstream {
        let begun = Instant::now();
        let counted = terms.others.iter().map(|after| begun + Duration::from_secs(*after)).collect();
        Upstream { terms, begun, counted }
    }

    /// Pulls that count against the limit.
    pub(super) fn counts(&self, now: Instant) -> u64 {
        let Terms { window, is_fixed, .. } = self.terms;
        let number = |moment: Instant| (moment - self.begun).as_nanos() / window.as_nanos();
        let is_counted = |moment: &&Instant| match is_fixed {
            true => number(**moment) == number(now),
            false => **moment + window > now,
        };
        self.counted.iter().filter(is_counted).count() as u64
    }

    pub(super) fn tells(&self, now: Instant) -> Told {
        let Terms { limit, window, is_fixed, .. } = self.terms;
        let into = (now - self.begun).as_nanos() % window.as_nanos();
        Told {
            limit: Some(limit),
            window: Some(window),
            remaining: Some(limit as i64 - self.counts(now) as i64),
            reset: is_fixed.then(|| window - Duration::from_nanos(into as u64)),
        }
    }

    /// Counts a pull, and tells what is left then; an error when there was nothing left.
    pub(super) fn pull(&mut self, now: Instant) -> Result<Told, Told> {
        if self.counts(now) >= self.terms.limit {
            return Err(self.tells(now));
        }
        self.counted.push(now);
        Ok(self.tells(now))
    }
}

/// Small limits are reached more often.
pub(super) fn terms() -> impl Strategy<Value = Terms> {
    let limit = prop_oneof![2 => 1..=3_u64, 1 => 1..=20_u64];
    (limit, 10..=90_u64, any::<bool>()).prop_flat_map(|(limit, window, is_fixed)| {
        let others = proptest::collection::vec(0..window, 0..=limit as usize);
        others.prop_map(move |others| Terms { limit, window: Duration::from_secs(window), is_fixed, others })
    })
}
