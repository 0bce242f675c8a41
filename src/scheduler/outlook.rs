//! How things stand, for the operator: the same values for metrics, the admin API and `tidelock explain`.

use std::time::Duration;

use tokio::time::Instant;

use super::budget::{Budget, Door, Login};
use super::lane::Lane;
use super::ledger::{Ledger, Quota};
use super::{Kind, Only, Priority, Refused, Scheduler, Spent, Want};
use crate::config::UpstreamId;
use crate::oci::{Reference, RepositoryName};

/// How one upstream stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    /// Its name.
    pub registry: String,
    /// Connections in use, and how many there may be.
    pub connections: (usize, usize),
    /// Requests that wait, by [`Priority`].
    pub waiting: [usize; Priority::ALL.len()],
    /// Endpoints that are left alone, and for how long.
    pub paused: Vec<(String, Duration)>,
    /// What does not answer.
    pub down: Vec<DownOutlook>,
    /// Its accounts at each of its endpoints.
    pub accounts: Vec<AccountOutlook>,
    /// Who pulled in the last hour.
    pub spent: Spent,
}

/// An endpoint, or one repository there, that does not answer and is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownOutlook {
    /// The endpoint's host.
    pub endpoint: String,
    /// Where it is about this one alone.
    pub repository: Option<String>,
    /// How long ago it first failed to answer.
    pub since: Duration,
    /// Until it is tried again; 0 where that is due.
    pub until: Duration,
    /// What happened last.
    pub reason: String,
}

/// How one account stands at one endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountOutlook {
    /// Its name; `anonymous` for none.
    pub account: String,
    /// The endpoint's host.
    pub endpoint: String,
    /// In a word.
    pub standing: Standing,
    /// Pulls in a window; `None` where no limit is known.
    pub limit: Option<u64>,
    /// The window.
    pub window: Option<Duration>,
    /// Pulls left now, as far as is known.
    pub remaining: Option<u64>,
    /// Pulls in an hour, as in the last one.
    pub burn_per_hour: f64,
    /// Until nothing is left, if that goes on; `None` where it can go on.
    pub exhaustion: Option<Duration>,
    /// Until the next pull comes back.
    pub recovery: Option<Duration>,
    /// Since the upstream last spoke of the quota.
    pub heard: Option<Duration>,
    /// Why it cannot log in.
    pub fault: Option<String>,
}

/// How an account stands, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No answer has told yet.
    Unknown,
    /// There is no limit.
    Unlimited,
    /// There is a limit, and something left.
    Limited,
    /// Nothing is left.
    Spent,
    /// It cannot log in.
    Aside,
}

/// Who would pay for a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payer {
    /// The endpoint that would be asked.
    pub endpoint: String,
    /// The account; `anonymous` for none.
    pub account: String,
    /// Whether it costs a pull of a known limit.
    pub is_metered: bool,
}

impl Standing {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Unknown => "unknown",
            Standing::Unlimited => "unlimited",
            Standing::Limited => "limited",
            Standing::Spent => "spent",
            Standing::Aside => "aside",
        }
    }
}

impl Scheduler {
    /// How every upstream stands now.
    pub fn outlook(&self) -> Vec<Outlook> {
        self.lanes.iter().map(|lane| lane.outlook(Instant::now())).collect()
    }

    /// Who would pay for a pull of `repository` by a waiting client. Spends nothing.
    ///
    /// # Errors
    /// What is in the way.
    pub fn payer(&self, upstream: UpstreamId, repository: &RepositoryName) -> Result<Payer, Refused> {
        let lane = self.lane(upstream);
        let (state, now) = (lane.state(), Instant::now());
        let want = Want { kind: Kind::Pull, ..Want::question(repository) };
        let budget = &state.budget;
        match budget.choose(&want, Priority::Foreground, now) {
            Ok(choice) => Ok(Payer {
                endpoint: budget.doors[choice.door].host.clone(),
                account: budget.purses[choice.purse].name.clone(),
                is_metered: choice.metered,
            }),
            Err(blocked) => Err(budget.refusal(&lane.registry, repository, &blocked, now).0),
        }
    }

    /// What pulls of `repository` that clients wait for are held up by; `None` where none is.
    pub fn held_up(&self, upstream: UpstreamId, repository: &RepositoryName) -> Option<Refused> {
        self.lane(upstream).held_up(repository)
    }
}

impl Lane {
    pub(super) fn outlook(&self, now: Instant) -> Outlook {
        let state = self.state();
        let mut waiting = [0; Priority::ALL.len()];
        for priority in state.queue.priorities() {
            waiting[priority as usize] += 1;
        }
        let paused = state.budget.doors.iter().filter_map(|door| {
            let left = door.paused_until.filter(|until| *until > now)? - now;
            Some((door.host.clone(), left))
        });
        Outlook {
            registry: self.registry.clone(),
            connections: (state.connections, state.most.connections),
            waiting,
            paused: paused.collect(),
            down: state.budget.silent(now),
            accounts: state.budget.outlook(now),
            spent: state.spenders.top(now),
        }
    }

    /// The account that is due to be probed now, and else how long until one is.
    pub(super) fn next_probe(&self, now: Instant) -> (Option<(Only, RepositoryName, Reference)>, Duration) {
        const LONGEST: Duration = Duration::from_secs(3600);
        let mut state = self.state();
        let mut wait = LONGEST;
        let subjects = state.subjects.clone();
        let Budget { doors, purses, .. } = &mut state.budget;
        for (door, each) in doors.iter_mut().enumerate() {
            for (purse, ledger) in each.ledgers.iter_mut().enumerate() {
                let (Some(at), Some((repository, reference))) = (ledger.probe_at(), &subjects[purse]) else {
                    continue;
                };
                if at <= now {
                    ledger.probed(now);
                    let only = Only { door, account: purses[purse].account };
                    return (Some((only, repository.clone(), reference.clone())), LONGEST);
                }
                wait = wait.min(at - now);
            }
        }
        (None, wait)
    }
}

impl Budget {
    /// Whole endpoints before single repositories.
    fn silent(&self, now: Instant) -> Vec<DownOutlook> {
        let all = self.doors.iter().flat_map(|door| {
            door.breakers.down().filter_map(move |(repository, breaker)| {
                let (since, trouble) = breaker.trouble(now)?;
                Some(DownOutlook {
                    endpoint: door.host.clone(),
                    repository: repository.map(ToString::to_string),
                    since,
                    until: breaker.next_try(now),
                    reason: trouble.reason.clone(),
                })
            })
        });
        let mut all: Vec<_> = all.collect();
        all.sort_by(|one, other| one.repository.cmp(&other.repository));
        all
    }

    /// Of each endpoint, whether it does not answer.
    pub(super) fn are_down(&self) -> Vec<bool> {
        let is_down = |door: &Door| door.breakers.down().any(|(repository, _)| repository.is_none());
        self.doors.iter().map(is_down).collect()
    }

    fn outlook(&self, now: Instant) -> Vec<AccountOutlook> {
        let doors = self.doors.iter().flat_map(|door| {
            let seats = self.purses.iter().zip(door.ledgers.iter().zip(&door.logins));
            seats.map(|(purse, (ledger, login))| {
                AccountOutlook::of(&door.host, &purse.name, ledger, login, now)
            })
        });
        doors.collect()
    }
}

impl AccountOutlook {
    fn of(endpoint: &str, account: &str, ledger: &Ledger, login: &Login, now: Instant) -> AccountOutlook {
        let (limit, window) = match ledger.quota() {
            Quota::Limited { limit, window } => (Some(limit), Some(window)),
            Quota::Unknown | Quota::Unlimited => (None, None),
        };
        let remaining = ledger.available(now);
        let aside = login.aside.as_ref();
        AccountOutlook {
            account: account.to_owned(),
            endpoint: endpoint.to_owned(),
            standing: match ledger.quota() {
                _ if aside.is_some() => Standing::Aside,
                _ if ledger.resting(now).is_some() => Standing::Spent,
                Quota::Unknown => Standing::Unknown,
                Quota::Unlimited => Standing::Unlimited,
                Quota::Limited { .. } if remaining == 0 => Standing::Spent,
                Quota::Limited { .. } => Standing::Limited,
            },
            limit,
            window,
            remaining: limit.map(|_| remaining),
            burn_per_hour: ledger.burn_rate(now) * 3600.0,
            exhaustion: ledger.exhaustion(now),
            recovery: ledger.back_at(remaining, now).map(|at| at - now),
            heard: ledger.heard().map(|at| now - at),
            fault: aside.map(|aside| aside.reason.clone()),
        }
    }
}
