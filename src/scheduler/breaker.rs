//! Keeps an endpoint that does not answer from costing each request a time limit.
//!
//! ```text
//!  Closed ── MOST_FAILURES in a row ──▶ Open ── its time is up ──▶ Trial: one request goes, the others do not
//!    ▲                                    ▲ │                        │ │
//!    │                                    └─┼──── it failed ─────────┘ │
//!    └────────────── any answer ────────────┴──────────────────────────┘
//! ```
//!
//! A host that cannot be connected to is down for everybody. Silence and a gateway's 503 may be about what was asked for, so
//! that they count for the repository, and for the endpoint only when another repository meets them too with no
//! answer in between. Plain judgement: `now` is an argument.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::oci::RepositoryName;

/// What kept an endpoint from answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// In words, with the host, without anything secret.
    pub reason: String,
    /// A time limit passed.
    pub is_slow: bool,
    /// Nothing else can be had there either: there was no connection.
    pub is_about_host: bool,
}

/// The breakers of one endpoint.
#[derive(Debug)]
pub(super) struct Breakers {
    /// Of all of it.
    whole: Breaker,
    /// The first repository that met with silence or a gateway's 503 since the last answer.
    witness: Option<RepositoryName>,
    /// So did another one.
    has_several: bool,
    /// Of the repositories that did.
    each: HashMap<RepositoryName, Breaker>,
}

/// The breaker of one endpoint, or of one repository there.
#[derive(Debug)]
pub(super) struct Breaker {
    phase: Phase,
    /// In a row.
    failures: u32,
    /// The last one, and when the first one was.
    last: Option<(Instant, Trouble)>,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    /// Nobody goes, until then.
    Open {
        until: Instant,
    },
    /// One request is under way.
    Trial {
        begun: Instant,
    },
}

/// Whether an endpoint may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As ever.
    Open,
    /// By one request, which finds out whether it answers again.
    Trial,
    /// Not for so long.
    Shut(Duration),
}

/// What a breaker has just done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    /// It is about this repository alone.
    pub(super) repository: Option<RepositoryName>,
    /// It opened, for so long at first; `None`: it closed.
    pub(super) opened: Option<Duration>,
}

/// In a row, before an endpoint is left alone.
pub(super) const MOST_FAILURES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(4);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A trial that nothing was heard of for so long does not keep others from trying.
const LONGEST_TRIAL: Duration = Duration::from_secs(60);
/// When it is worth asking what came of a trial that is under way.
const MOMENT: Duration = Duration::from_secs(1);
/// Repositories in trouble that are remembered; forgotten all together beyond that, and learned again.
const MOST_REMEMBERED: usize = 1000;

impl Breakers {
    pub(super) fn new() -> Breakers {
        Breakers { whole: Breaker::new(), witness: None, has_several: false, each: HashMap::new() }
    }

    /// The breaker that keeps requests about `repository` back, and until when at the longest.
    pub(super) fn shut(&self, repository: &RepositoryName, now: Instant) -> Option<(Instant, &Breaker)> {
        let both = [Some(&self.whole), self.each.get(repository)];
        both.into_iter().flatten().find_map(|breaker| Some((breaker.shut(now)?, breaker)))
    }

    pub(super) fn access(&self, repository: &RepositoryName, now: Instant) -> Access {
        let is_closed =
            self.whole.is_closed() && self.each.get(repository).is_none_or(|breaker| breaker.is_closed());
        match self.shut(repository, now) {
            Some((_, breaker)) => Access::Shut(breaker.next_try(now)),
            None if is_closed => Access::Open,
            None => Access::Trial,
        }
    }

    /// A request goes. Whether it is a trial.
    pub(super) fn enter(&mut self, repository: &RepositoryName, now: Instant) -> bool {
        if self.shut(repository, now).is_some() {
            return false;
        }
        let each = self.each.get_mut(repository).is_some_and(|breaker| breaker.enter(now));
        self.whole.enter(now) || each
    }

    /// A request that was sent at `sent` was not answered.
    pub(super) fn failed(
        &mut self,
        repository: &RepositoryName,
        trouble: &Trouble,
        sent: Instant,
        now: Instant,
    ) -> Option<News> {
        let mut news = None;
        if self.whole.is_closed() && !trouble.is_about_host {
            if self.each.len() >= MOST_REMEMBERED {
                self.each.clear();
            }
            let one = self.each.entry(repository.clone()).or_insert_with(Breaker::new);
            let is_known = !one.is_closed();
            let opened = one.failed(trouble, (sent, now), true);
            news = opened.map(|wait| News { repository: Some(repository.clone()), opened: Some(wait) });
            if is_known {
                return news;
            }
            self.has_several |= self.witness.get_or_insert_with(|| repository.clone()) != repository;
        }
        let may_open = trouble.is_about_host || self.has_several;
        let opened = self.whole.failed(trouble, (sent, now), may_open);
        opened.map(|wait| News { repository: None, opened: Some(wait) }).or(news)
    }

    /// It answered, whatever it said.
    pub(super) fn answered(&mut self, repository: &RepositoryName) -> Option<News> {
        (self.witness, self.has_several) = (None, false);
        let one = self.each.remove(repository).is_some_and(|breaker| !breaker.is_closed());
        let was_down = !self.whole.is_closed();
        if was_down {
            // What had struck them was most likely the same.
            self.each.clear();
        }
        self.whole = Breaker::new();
        let repository = (!was_down).then(|| repository.clone());
        (was_down || one).then_some(News { repository, opened: None })
    }

    /// Nothing will be heard of a request sent at `sent`: where it was a trial, another one may be. Whether it was.
    pub(super) fn give_back(&mut self, repository: &RepositoryName, sent: Instant, now: Instant) -> bool {
        let each = self.each.get_mut(repository).is_some_and(|breaker| breaker.give_back(sent, now));
        self.whole.give_back(sent, now) || each
    }

    /// Those that are not closed, and whom they are about.
    pub(super) fn down(&self) -> impl Iterator<Item = (Option<&RepositoryName>, &Breaker)> {
        let each = self.each.iter().map(|(repository, breaker)| (Some(repository), breaker));
        [(None, &self.whole)].into_iter().chain(each).filter(|(_, breaker)| !breaker.is_closed())
    }
}

impl Breaker {
    fn new() -> Breaker {
        let backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        Breaker { phase: Phase::Closed, failures: 0, last: None, backoff }
    }

    fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Until when nobody else may go.
    fn shut(&self, now: Instant) -> Option<Instant> {
        let until = match self.phase {
            Phase::Closed => return None,
            Phase::Open { until } => until,
            Phase::Trial { begun } => begun + LONGEST_TRIAL,
        };
        Some(until).filter(|until| *until > now)
    }

    /// When it is worth coming again.
    pub(super) fn next_try(&self, now: Instant) -> Duration {
        match self.phase {
            Phase::Closed => Duration::ZERO,
            Phase::Open { until } => until.saturating_duration_since(now),
            Phase::Trial { .. } => MOMENT,
        }
    }

    /// What happened last, and for how long that has been going on.
    pub(super) fn trouble(&self, now: Instant) -> Option<(Duration, &Trouble)> {
        self.last.as_ref().map(|(first, trouble)| (now.saturating_duration_since(*first), trouble))
    }

    fn enter(&mut self, now: Instant) -> bool {
        let is_trial = !self.is_closed();
        if is_trial {
            self.phase = Phase::Trial { begun: now };
        }
        is_trial
    }

    /// How long it is open for where that is news. What was sent before it opened, or before the trial began, tells
    /// nothing new: a burst that fails together makes the wait grow once.
    fn failed(
        &mut self,
        trouble: &Trouble,
        (sent, now): (Instant, Instant),
        may_open: bool,
    ) -> Option<Duration> {
        let is_due = match self.phase {
            Phase::Open { .. } => return None,
            Phase::Trial { begun } if sent < begun => return None,
            Phase::Trial { .. } => true,
            Phase::Closed => {
                self.failures = self.failures.saturating_add(1);
                may_open && self.failures >= MOST_FAILURES
            }
        };
        let first = self.last.as_ref().map_or(now, |(first, _)| *first);
        self.last = Some((first, trouble.clone()));
        let was_closed = self.is_closed();
        if !is_due {
            return None;
        }
        let wait = self.backoff.wait();
        self.phase = Phase::Open { until: now + wait };
        was_closed.then_some(wait)
    }

    fn give_back(&mut self, sent: Instant, now: Instant) -> bool {
        let is_trial = matches!(self.phase, Phase::Trial { begun } if begun <= sent);
        if is_trial {
            self.phase = Phase::Open { until: now };
        }
        is_trial
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn name(repository: &str) -> RepositoryName {
        repository.parse().unwrap()
    }

    /// No connection; a time limit.
    fn refused() -> Trouble {
        Trouble { reason: "refused".to_owned(), is_slow: false, is_about_host: true }
    }

    fn silence() -> Trouble {
        Trouble { reason: "silence".to_owned(), is_slow: true, is_about_host: false }
    }

    /// What happens, in letters: `x` no connection, `a` to `c` silence about that repository, `A` to `C` an answer
    /// about it. Then: who may be asked for.
    #[test]
    fn what_opens_it_and_for_whom() {
        for (story, open_for) in [
            ("xxxx", ""),
            ("xxxxx", "abc"),
            ("xxxxAx", ""),
            ("xxxxxA", ""),
            ("aaaa", ""),
            ("aaaaa", "a"),
            ("aaaaaaaaaaaaaa", "a"),
            ("aaaaaB", "a"),
            ("aaaaaA", ""),
            ("aaaab", "abc"),
            ("aaaaab", "abc"),
            ("aaaaBb", ""),
            ("aaaaaBbbbbb", "ab"),
            ("aaaaaBbb", "a"),
            ("aBaBaBaBa", "a"),
            ("aBcAaBcAaBcA", ""),
            ("ababa", "abc"),
            ("xxaab", "abc"),
            ("xxxxa", ""),
            ("aaaaabC", ""),
        ] {
            let (mut breakers, now) = (Breakers::new(), Instant::now());
            for letter in story.chars() {
                let repository = name(&letter.to_lowercase().to_string());
                match letter {
                    'x' => drop(breakers.failed(&repository, &refused(), now, now)),
                    'a'..='c' => drop(breakers.failed(&repository, &silence(), now, now)),
                    _ => drop(breakers.answered(&repository)),
                }
            }
            let shut =
                ["a", "b", "c"].map(name).into_iter().filter(|name| breakers.shut(name, now).is_some());
            let shut: String = shut.map(|name| name.to_string()).collect();
            assert_eq!(shut, open_for, "{story}");
        }
    }

    /// Each step: when, what, and how long it then stays shut.
    #[test]
    fn one_trial_at_a_time_and_growing_waits() {
        let (start, any) = (Instant::now(), name("a"));
        let mut breakers = Breakers::new();
        for _ in 0..30 {
            breakers.failed(&any, &refused(), start, start);
        }
        let mut now = start;
        for (least, most) in [(2, 4), (4, 8), (8, 16), (16, 32), (30, 60), (30, 60)] {
            let Access::Shut(wait) = breakers.access(&any, now) else { panic!("{least}") };
            assert!((least * 1000..=most * 1000).contains(&(wait.as_millis() as u64)), "{wait:?}");
            assert!(!breakers.enter(&any, now), "shut is shut");
            now += wait;
            assert_eq!(breakers.access(&any, now), Access::Trial);
            assert!(breakers.enter(&any, now));
            assert!(matches!(breakers.access(&any, now), Access::Shut(_)), "one is enough");
            assert_eq!(breakers.failed(&any, &refused(), start, now), None);
            assert!(matches!(breakers.access(&any, now), Access::Shut(MOMENT)), "an old failure is no news");
            breakers.failed(&any, &refused(), now, now);
        }
        let down: Vec<_> = breakers.down().collect();
        assert_eq!(down[0].1.trouble(now), Some((now - start, &refused())));
        assert_eq!(breakers.answered(&any), Some(News { repository: None, opened: None }));
        assert_eq!(breakers.access(&any, now), Access::Open);
        assert_eq!(breakers.down().count(), 0);
    }

    #[test]
    fn a_trial_that_comes_to_nothing_is_another_ones() {
        let (start, any) = (Instant::now(), name("a"));
        let mut breakers = Breakers::new();
        (0..5).for_each(|_| drop(breakers.failed(&any, &silence(), start, start)));
        let due = start + FIRST_WAIT;
        assert!(breakers.enter(&any, due));
        assert!(!breakers.give_back(&any, start, due), "an older request is no trial");
        assert!(breakers.give_back(&any, due, due));
        assert!(breakers.enter(&any, due));
        assert_eq!(breakers.access(&any, due + LONGEST_TRIAL), Access::Trial, "nothing was heard of it");
    }

    /// What the only failing repository does is never anybody else's trouble.
    #[test]
    fn a_repository_in_trouble_is_left_alone_by_itself() {
        let (start, bad, good) = (Instant::now(), name("bad"), name("good"));
        let (mut breakers, mut now) = (Breakers::new(), start);
        for _ in 0..200 {
            now = at(now, 700);
            if breakers.shut(&bad, now).is_none() {
                breakers.enter(&bad, now);
                breakers.failed(&bad, &silence(), now, now);
            }
            assert_eq!(breakers.access(&good, now), Access::Open);
        }
        assert!(breakers.shut(&bad, now).is_some());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(u8),
        Fail(usize, bool),
        Answer(usize),
        Lose(usize),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3_u8).prop_map(Step::Ask),
            6 => (0..6_usize, any::<bool>()).prop_map(|(which, is_host)| Step::Fail(which, is_host)),
            1 => (0..6_usize).prop_map(Step::Answer),
            1 => (0..6_usize).prop_map(Step::Lose),
            3 => (0..30_000_u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// At no time are two trials under way, nobody is shut out for longer than the longest wait, an answer lets
        /// everybody in that it can speak for, and without a failure in a row of them nobody is shut out.
        #[test]
        fn never_two_trials_and_never_for_ever(steps in proptest::collection::vec(step(), 1..120)) {
            let names = ["a", "b", "c"].map(name);
            let (mut breakers, mut now) = (Breakers::new(), Instant::now());
            // Under way: about what, since when, and whether as a trial.
            let mut flights: Vec<(usize, Instant, bool)> = Vec::new();
            let mut row = 0;
            for step in steps {
                match step {
                    Step::Ask(which) => {
                        let which = usize::from(which);
                        if breakers.shut(&names[which], now).is_none() {
                            let is_trial = breakers.enter(&names[which], now);
                            let is_rival = |other: &&(usize, Instant, bool)| {
                                other.0 == which && other.2 && now - other.1 < LONGEST_TRIAL
                            };
                            prop_assert!(!is_trial || flights.iter().find(is_rival).is_none());
                            flights.push((which, now, is_trial));
                        }
                    }
                    Step::Fail(at, is_host) if at < flights.len() => {
                        let (which, sent, _) = flights.remove(at);
                        let trouble = if is_host { refused() } else { silence() };
                        breakers.failed(&names[which], &trouble, sent, now);
                        row += 1;
                    }
                    Step::Answer(at) if at < flights.len() => {
                        let (which, _, _) = flights.remove(at);
                        breakers.answered(&names[which]);
                        row = 0;
                        prop_assert_eq!(breakers.access(&names[which], now), Access::Open);
                        // What was a trial is none any more.
                        flights.iter_mut().for_each(|flight| flight.2 = false);
                    }
                    Step::Lose(at) if at < flights.len() => {
                        let (which, sent, _) = flights.remove(at);
                        breakers.give_back(&names[which], sent, now);
                    }
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                    _ => {}
                }
                for name in &names {
                    if let Some((until, _)) = breakers.shut(name, now) {
                        prop_assert!(until - now <= LONGEST_WAIT.max(LONGEST_TRIAL));
                    }
                }
                if row < MOST_FAILURES {
                    prop_assert!(breakers.whole.is_closed());
                }
            }
        }
    }
}
