//! Which endpoint is asked on which account: plain judgement over ledgers, pauses and logins.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::Breakers;
use super::ledger::{Ledger, Quota};
use super::{Kind, Priority, Want};
use crate::backoff::Backoff;
use crate::config::{self, Glob, Share};
use crate::oci::RepositoryName;

/// What an upstream may be sent, as far as limits of its own are concerned.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) doors: Vec<Door>,
    pub(super) purses: Vec<Purse>,
    reserve: Share,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) host: String,
    /// Everything rests until then: the abuse limit of the endpoint.
    pub(super) paused_until: Option<Instant>,
    /// Whether it answers at all.
    pub(super) breakers: Breakers,
    /// How long, where it does not say.
    backoff: Backoff,
    /// The least, where it says to come back at once.
    brief: Backoff,
    /// Repositories whose manifests come without a quota although others' come with one, or may: their publishers
    /// pay at Docker Hub.
    unmetered: HashSet<RepositoryName>,
    /// One for each purse.
    pub(super) ledgers: Vec<Ledger>,
    /// One for each purse.
    pub(super) logins: Vec<Login>,
}

/// How an account gets on with an endpoint's login.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) aside: Option<Aside>,
    backoff: Backoff,
}

/// An account, or nobody's: the last one of the list, where that is allowed.
#[derive(Debug)]
pub(super) struct Purse {
    pub(super) name: String,
    /// Its place in the configuration; `None` for nobody's.
    pub(super) account: Option<usize>,
    repositories: Vec<Glob>,
}

/// Why and how long an account is not used.
#[derive(Debug, Clone)]
pub(super) struct Aside {
    pub(super) until: Instant,
    pub(super) reason: String,
}

/// Where a request would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) door: usize,
    pub(super) purse: usize,
    /// It costs a pull of the ledger.
    pub(super) metered: bool,
}

/// Why a request can go nowhere now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocked {
    pub(super) by: Obstacle,
    /// When that may be over; `None` where only an answer can tell.
    pub(super) until: Option<Instant>,
    /// When an account that is set aside may try again, or an endpoint that is down, which may be of help.
    aside: Option<Instant>,
}

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The account whose budget comes back first has nothing left.
    Spent {
        /// At this endpoint.
        door: usize,
        /// Its purse.
        purse: usize,
    },
    /// The first answer, which tells the limit, is awaited.
    Learning,
    /// The upstream wants to be left alone.
    Paused,
    /// This endpoint does not answer.
    Down {
        /// Its place.
        door: usize,
    },
    /// No account can log in.
    Aside {
        /// At this endpoint.
        door: usize,
        /// The first of them.
        purse: usize,
    },
    /// No account is for this repository.
    Nobody,
}

/// The `account` of requests without one, here and in metrics.
pub const ANONYMOUS: &str = "anonymous";

/// Levels that budgets are compared by: in steps of a twentieth the requests of one pull stay on one account.
const LEVELS: u64 = 20;
const UNLIMITED: u64 = LEVELS + 1;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_BRIEF: Duration = Duration::from_secs(60);
const FIRST_ASIDE: Duration = Duration::from_secs(10);
const LONGEST_ASIDE: Duration = Duration::from_secs(10 * 60);
/// Repositories that are remembered; forgotten all together beyond that, and learned again.
const MOST_REMEMBERED: usize = 1000;

impl Budget {
    pub(super) fn new(upstream: &config::Upstream, reserve: Share, now: Instant) -> Budget {
        let accounts = upstream.accounts.iter().enumerate();
        let mut purses: Vec<Purse> = accounts
            .map(|(index, account)| Purse::new(&account.name, Some(index), account.repositories.clone()))
            .collect();
        if upstream.may_go_anonymous() {
            purses.push(Purse::new(ANONYMOUS, None, Vec::new()));
        }
        let doors = upstream.endpoints.iter().map(|url| Door {
            host: host(url),
            paused_until: None,
            breakers: Breakers::new(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            brief: Backoff::new(SHORTEST_PAUSE, LONGEST_BRIEF),
            unmetered: HashSet::new(),
            ledgers: purses.iter().map(|_| Ledger::new(now)).collect(),
            logins: purses.iter().map(|_| Login::new()).collect(),
        });
        let mut doors: Vec<Door> = doors.collect();
        // A mirror in front of the origin has as a rule no limit, and shall not wait for its first answer.
        let mirrors = doors.len().saturating_sub(1);
        doors[..mirrors].iter_mut().flat_map(|door| &mut door.ledgers).for_each(Ledger::set_unlimited);
        Budget { doors, purses, reserve }
    }

    /// Takes what may change of the upstream and its accounts. One that was set aside tries again: its password may be
    /// another one now.
    pub(super) fn configure(&mut self, upstream: &config::Upstream, reserve: Share) {
        self.reserve = reserve;
        for purse in &mut self.purses {
            if let Some(account) = purse.account.and_then(|index| upstream.accounts.get(index)) {
                purse.repositories.clone_from(&account.repositories);
            }
        }
        for login in self.doors.iter_mut().flat_map(|door| &mut door.logins) {
            login.take_back();
        }
    }

    /// Where the request goes: the first endpoint that can be asked, on the account with most left.
    pub(super) fn choose(&self, want: &Want, priority: Priority, now: Instant) -> Result<Choice, Blocked> {
        let mut blocked: Option<Blocked> = None;
        for door in want.doors(self.doors.len()) {
            match self.choose_at(door, want, priority, now) {
                Ok(choice) => return Ok(choice),
                // What ends first counts.
                Err(other) => blocked = blocked.into_iter().chain([other]).reduce(Blocked::or),
            }
        }
        Err(blocked.unwrap_or(Blocked::by(Obstacle::Nobody)))
    }

    fn choose_at(
        &self,
        door: usize,
        want: &Want,
        priority: Priority,
        now: Instant,
    ) -> Result<Choice, Blocked> {
        if let Some(until) = self.doors[door].paused_until.filter(|until| *until > now) {
            return Err(Blocked::until(Obstacle::Paused, until));
        }
        let shut = self.doors[door].breakers.shut(&want.repository, now).filter(|_| !want.is_insistent);
        if let Some((until, _)) = shut {
            return Err(Blocked::until(Obstacle::Down { door }, until));
        }
        if let Some(only) = want.only {
            let purse = self.purses.iter().position(|purse| purse.account == only.account);
            let choice = purse.map(|purse| Choice { door, purse, metered: false });
            return choice.ok_or(Blocked::by(Obstacle::Nobody));
        }
        let candidates = self.candidates(door, want, now);
        if candidates.is_empty() {
            return Err(self.nobody(door, want, now));
        }
        let paying = self.paying(door, &candidates, priority, now);
        let is_free = want.kind != Kind::Pull || self.doors[door].unmetered.contains(&want.repository);
        // Free or not: an account that was refused is not pulled on.
        let ledgers = &self.doors[door].ledgers;
        let may_ask = |purse: &usize| want.kind != Kind::Pull || ledgers[*purse].resting(now).is_none();
        if let Some(purse) = paying {
            return Ok(Choice { door, purse, metered: !is_free });
        }
        match candidates.iter().copied().find(may_ask).filter(|_| is_free) {
            Some(purse) => Ok(Choice { door, purse, metered: false }),
            None => {
                let blocked = candidates.iter().map(|purse| self.spent(door, *purse, is_free, priority, now));
                let blocked = blocked.reduce(Blocked::or).expect("there is a candidate");
                Err(Blocked { aside: self.aside(door, want, now).map(|(until, _)| until), ..blocked })
            }
        }
    }

    /// The purses that may be used for a repository at all; nobody's comes last.
    fn candidates(&self, door: usize, want: &Want, now: Instant) -> Vec<usize> {
        let purses = self.purses.iter().zip(&self.doors[door].logins).enumerate();
        let usable = purses.filter(|(_, (purse, login))| purse.is_for(want) && !login.is_aside(now));
        usable.map(|(index, _)| index).collect()
    }

    /// The account with most left, nobody's only where no account has anything.
    fn paying(&self, door: usize, candidates: &[usize], priority: Priority, now: Instant) -> Option<usize> {
        let level = |purse: usize| self.level(door, purse, priority, now);
        let named = candidates.iter().copied().filter(|purse| self.purses[*purse].account.is_some());
        // Of equals the first, as configured.
        let best = named.max_by_key(|purse| (level(*purse), std::cmp::Reverse(*purse)));
        let best = best.filter(|purse| level(*purse) > 0);
        best.or_else(|| candidates.last().copied().filter(|purse| level(*purse) > 0))
    }

    fn level(&self, door: usize, purse: usize, priority: Priority, now: Instant) -> u64 {
        let ledger = &self.doors[door].ledgers[purse];
        let available = ledger.available(now);
        match ledger.quota() {
            _ if available == 0 => 0,
            Quota::Unlimited => UNLIMITED,
            Quota::Unknown => LEVELS,
            Quota::Limited { limit, .. } => {
                let left = available.saturating_sub(self.reserved(limit, priority));
                left.saturating_mul(LEVELS).div_ceil(limit.max(1))
            }
        }
    }

    /// What background work may not touch.
    fn reserved(&self, limit: u64, priority: Priority) -> u64 {
        match priority {
            Priority::Foreground | Priority::Revalidation => 0,
            Priority::Background => (u128::from(limit) * u128::from(self.reserve.0) / 100) as u64,
        }
    }

    /// When an account has something again; for what is free, when it may be asked.
    fn spent(&self, door: usize, purse: usize, is_free: bool, priority: Priority, now: Instant) -> Blocked {
        let ledger = &self.doors[door].ledgers[purse];
        let beyond = match ledger.quota() {
            Quota::Limited { limit, .. } => self.reserved(limit, priority),
            Quota::Unknown | Quota::Unlimited => 0,
        };
        let is_learning = ledger.quota() == Quota::Unknown && ledger.resting(now).is_none();
        let by = if is_learning { Obstacle::Learning } else { Obstacle::Spent { door, purse } };
        let until = if is_free { Some(ledger.rested_at(now)) } else { ledger.back_at(beyond, now) };
        Blocked { by, until, aside: None }
    }

    fn nobody(&self, door: usize, want: &Want, now: Instant) -> Blocked {
        self.aside(door, want, now).map_or(Blocked::by(Obstacle::Nobody), |(until, purse)| {
            Blocked::until(Obstacle::Aside { door, purse }, until)
        })
    }

    /// The first account for it that is set aside and may try again, and when.
    fn aside(&self, door: usize, want: &Want, now: Instant) -> Option<(Instant, usize)> {
        let logins = self.purses.iter().zip(&self.doors[door].logins).enumerate();
        let asides = logins.filter(|(_, (purse, login))| purse.is_for(want) && login.is_aside(now));
        asides.filter_map(|(index, (_, login))| Some((login.aside.as_ref()?.until, index))).min()
    }

    /// Whether any account is meant for `repository`.
    pub(super) fn has_account_for(&self, repository: &RepositoryName) -> bool {
        self.purses.iter().any(|purse| purse.account.is_some() && purse.is_meant_for(repository))
    }
}

impl Door {
    /// The endpoint's abuse limit struck: nothing goes there for a while. What was sent together is refused together,
    /// and makes the wait grow once.
    pub(super) fn pause(&mut self, retry_after: Option<Duration>, now: Instant) -> Duration {
        let is_paused = self.paused_until.is_some_and(|until| until > now);
        let wait = match retry_after {
            // A little longer, and never together with all others who were told the same.
            Some(told) if is_paused => told.min(LONGEST_PAUSE).mul_f64(jitter()),
            Some(told) => told.min(LONGEST_PAUSE).mul_f64(jitter()).max(self.brief.wait()),
            None if is_paused => Duration::ZERO,
            None => self.backoff.wait(),
        };
        self.paused_until = self.paused_until.max(Some(now + wait));
        wait
    }

    /// It answered as it should.
    pub(super) fn forgive(&mut self) {
        self.backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        self.brief = Backoff::new(SHORTEST_PAUSE, LONGEST_BRIEF);
    }

    /// A manifest of `repository` came on `purse` without a word of a quota. Where the first ones of two repositories
    /// do, there is none; a single one may be a publisher's who pays. Whether that is news.
    pub(super) fn note_unmetered(&mut self, purse: usize, repository: &RepositoryName) -> bool {
        if self.unmetered.len() >= MOST_REMEMBERED {
            self.unmetered.clear();
        }
        let is_news = self.unmetered.insert(repository.clone());
        if self.unmetered.len() > 1 {
            self.ledgers[purse].set_unlimited();
        }
        is_news
    }

    /// A pull of `repository` counts. Whether that is news.
    pub(super) fn note_metered(&mut self, repository: &RepositoryName) -> bool {
        self.unmetered.remove(repository)
    }
}

impl Purse {
    fn new(name: &str, account: Option<usize>, repositories: Vec<Glob>) -> Purse {
        Purse { name: name.to_owned(), account, repositories }
    }

    fn is_for(&self, want: &Want) -> bool {
        match self.account {
            Some(account) => !want.without.contains(&account) && self.is_meant_for(&want.repository),
            None => !want.only_accounts,
        }
    }

    fn is_meant_for(&self, repository: &RepositoryName) -> bool {
        self.repositories.iter().any(|glob| glob.matches(repository.as_str()))
    }
}

impl Login {
    fn new() -> Login {
        Login { aside: None, backoff: Backoff::new(FIRST_ASIDE, LONGEST_ASIDE) }
    }

    /// The login failed: it is tried again later. False when that was known.
    pub(super) fn set_aside(&mut self, reason: &str, now: Instant) -> bool {
        let is_news = self.aside.as_ref().is_none_or(|aside| aside.reason != reason);
        if !self.is_aside(now) {
            self.aside = Some(Aside { until: now + self.backoff.wait(), reason: reason.to_owned() });
        }
        is_news
    }

    /// The login worked. True when it had not.
    pub(super) fn take_back(&mut self) -> bool {
        self.backoff = Backoff::new(FIRST_ASIDE, LONGEST_ASIDE);
        self.aside.take().is_some()
    }

    fn is_aside(&self, now: Instant) -> bool {
        self.aside.as_ref().is_some_and(|aside| aside.until > now)
    }
}

impl Blocked {
    fn by(by: Obstacle) -> Blocked {
        Blocked { by, until: None, aside: None }
    }

    fn until(by: Obstacle, until: Instant) -> Blocked {
        Blocked { until: Some(until), ..Blocked::by(by) }
    }

    /// Of two ways that are blocked the one that may be free sooner. One that may be waited for comes before one whose
    /// endpoint does not answer, though that may do so first.
    fn or(self, other: Blocked) -> Blocked {
        let is_sooner = match (self.until, other.until) {
            _ if self.is_down() != other.is_down() => self.is_down(),
            (Some(one), Some(two)) => two < one,
            (one, two) => one.is_none() && two.is_some(),
        };
        let (first, second) = if is_sooner { (other, self) } else { (self, other) };
        let up = second.until.filter(|_| second.is_down());
        let aside = first.aside.into_iter().chain(second.aside).chain(up).min();
        Blocked { aside, ..first }
    }

    fn is_down(&self) -> bool {
        matches!(self.by, Obstacle::Down { .. })
    }

    /// When it is worth another look without any answer.
    pub(super) fn over_at(&self) -> Option<Instant> {
        self.until.into_iter().chain(self.aside).min()
    }
}

fn jitter() -> f64 {
    use rand::RngExt;
    rand::rng().random_range(1.0..=1.1)
}

fn host(url: &url::Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}
