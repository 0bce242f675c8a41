//! One upstream: its connections, its pace, its budget, and who waits for them.
//!
//! ```text
//!  lease ── free at once? ──▶ Lease
//!    │ no
//!    ▼            every change, every due moment
//!  Queue ◀──────────────── tend ── in order: what can go, goes ──▶ Lease
//! ```
//!
//! One task tends the queue as long as anybody waits in it, so that a change wakes one task and not a thousand
//! waiters. A lease comes to its waiter through a channel: where the waiter has gone in the meantime, the lease
//! falls back by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::budget::{Blocked, Budget, Choice, Obstacle};
use super::lease::Lease;
use super::line::Line;
use super::metrics::{LaneMetrics, Reason};
use super::pace::Pace;
use super::queue::{Queue, WaiterId};
use super::spenders::Spenders;
use super::{ClientAddr, Errand, Kind, Priority, Refused, Want};
use crate::config::{self, Schedule, UpstreamId};
use crate::lifecycle::Lifecycle;
use crate::oci::{Reference, RepositoryName};

/// What one upstream may be sent, and who waits for it.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) upstream: UpstreamId,
    pub(super) registry: String,
    state: Mutex<State>,
    /// Something changed for those who wait.
    changed: Notify,
    /// Something changed for whoever probes.
    pub(super) stirred: Notify,
    /// Something changed that has to survive a restart.
    pub(super) unsaved: Notify,
    /// One note at a time, so that a later one is not overtaken by an earlier one.
    pub(super) keeping: tokio::sync::Mutex<()>,
    pub(super) metrics: LaneMetrics,
    life: Lifecycle,
    /// How fast bytes may come from here, and from all upstreams together.
    pub(super) lines: [Arc<Line>; 2],
}

#[derive(Debug)]
pub(super) struct State {
    /// In use.
    pub(super) connections: usize,
    transfers: usize,
    pub(super) most: Most,
    pace: Pace,
    pub(super) budget: Budget,
    /// Counts the changes of the budget: who was blocked by this very one need not be looked at again before its time,
    /// however many wait.
    version: u64,
    /// The one that was last looked at for all who wait.
    swept: u64,
    pub(super) queue: Queue<Waiter>,
    /// A task tends the queue.
    tended: bool,
    pub(super) spenders: Spenders,
    /// What was last pulled on each purse: an account is probed by asking about it once more.
    pub(super) subjects: Vec<Option<(RepositoryName, Reference)>>,
}

/// What may be in use at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    pub(super) connections: usize,
    /// How many of them may carry blobs: a quarter is kept for what is over in a moment.
    transfers: usize,
}

#[derive(Debug)]
pub(super) struct Waiter {
    want: Want,
    client: ClientAddr,
    may_wait: bool,
    /// What was in its way when the budget was last looked at for it, and which budget that was.
    blocked: Option<(u64, Blocked)>,
    reply: oneshot::Sender<Answer>,
}

/// What comes of waiting. Where nothing is in the way and it was refused all the same, too many wait.
type Answer = Result<Lease, Option<Wait>>;

/// Leaves the queue when dropped.
struct Place<'a> {
    lane: &'a Lane,
    id: WaiterId,
}

/// Why nothing can go right now.
#[derive(Debug)]
pub(super) enum Wait {
    /// Until a connection is free, or the pace allows.
    Connection,
    /// Until there is budget.
    Budget(Blocked),
}

/// More waiters than this are refused: their clients come again, and memory has a bound.
const MOST_WAITING: usize = 10_000;
/// The longest that the tending task sleeps without looking.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

impl Lane {
    pub(super) fn new(
        upstream: UpstreamId,
        config: &config::Upstream,
        schedule: &Schedule,
        all: &Arc<Line>,
        metrics: LaneMetrics,
        life: &Lifecycle,
    ) -> Lane {
        let now = Instant::now();
        let budget = Budget::new(config, schedule.reserve, now);
        let subjects = vec![None; budget.purses.len()];
        Lane {
            upstream,
            registry: config.registry.to_string(),
            state: Mutex::new(State {
                connections: 0,
                transfers: 0,
                most: Most::of(config),
                pace: Pace::new(config.requests_per_second),
                budget,
                version: 0,
                swept: 0,
                queue: Queue::new(),
                tended: false,
                spenders: Spenders::new(now),
                subjects,
            }),
            changed: Notify::new(),
            stirred: Notify::new(),
            unsaved: Notify::new(),
            keeping: tokio::sync::Mutex::new(()),
            metrics,
            life: life.clone(),
            lines: [Arc::new(Line::new(&config.bandwidth)), Arc::clone(all)],
        }
    }

    /// The operator allows something else from now on. What is under way, or has been granted, is left alone.
    pub(super) fn configure(&self, config: &config::Upstream, schedule: &Schedule) {
        let mut state = self.state();
        state.most = Most::of(config);
        state.pace.configure(config.requests_per_second);
        state.budget.configure(config, schedule.reserve);
        state.budget_changed();
        drop(state);
        let [own, all] = &self.lines;
        own.configure(&config.bandwidth);
        all.configure(&schedule.bandwidth);
        self.stir();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before the lock is let go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may go now that could not before.
    pub(super) fn stir(&self) {
        self.changed.notify_one();
        self.stirred.notify_one();
    }

    /// Waits for a lease until `deadline`. Cancel-safe: who goes away leaves the queue.
    pub(super) async fn lease(
        self: &Arc<Self>,
        want: Want,
        errand: &Errand,
        deadline: Instant,
    ) -> Result<Lease, Refused> {
        let (begun, repository) = (Instant::now(), want.repository.clone());
        let waiting = self.wait(&want, errand, deadline);
        let outcome = errand.unless_stopping(&self.life, waiting).await?;
        self.metrics.waited(errand.urgency.get(), begun.elapsed());
        outcome.map_err(|wait| self.refusal(&repository, wait, begun.elapsed()))
    }

    async fn wait(self: &Arc<Self>, want: &Want, errand: &Errand, deadline: Instant) -> Answer {
        let mut priority = errand.urgency.get();
        let (mut reply, place) = match self.enter(want, errand, priority) {
            Entered::Goes(lease) => return Ok(lease),
            Entered::Refused(wait) => return Err(wait),
            Entered::Waits(reply, id) => (reply, Place { lane: self, id }),
        };
        loop {
            tokio::select! {
                biased;
                answer = &mut reply => return answer.unwrap_or_else(|_| Err(None)),
                () = tokio::time::sleep_until(deadline) => break,
                raised = errand.urgency.rises_above(priority) => {
                    priority = raised;
                    self.state().raise(place.id, raised);
                    self.changed.notify_one();
                }
            }
        }
        let look = self.state().look(want, priority, Instant::now());
        if look.is_ok() {
            // What comes back at this very moment may be for it.
            self.dispatch();
        }
        if let Ok(answer) = reply.try_recv() {
            return answer;
        }
        Err(Some(look.err().unwrap_or(Wait::Connection)))
    }

    /// Goes at once where nobody is before it, else takes its place in the queue.
    fn enter(self: &Arc<Self>, want: &Want, errand: &Errand, priority: Priority) -> Entered {
        let now = Instant::now();
        let mut state = self.state();
        let look = state.look(want, priority, now);
        match look {
            Ok(choice) if state.queue.is_empty() && state.pace.step().is_ok() => {
                return Entered::Goes(state.grant(self, want, choice, errand.client, now));
            }
            // No use in waiting for a login that fails or an endpoint that is down, and no need to wait where there is
            // something else.
            Err(Wait::Budget(blocked)) if !errand.may_wait || blocked.is_hopeless() => {
                return Entered::Refused(Some(Wait::Budget(blocked)));
            }
            _ => {}
        }
        let is_news = !matches!(&look, Err(Wait::Budget(blocked)) if blocked.outlasts(now + LONGEST_SLEEP));
        let (reply, answer) = oneshot::channel();
        let waiter = Waiter {
            want: want.clone(),
            client: errand.client,
            may_wait: errand.may_wait,
            blocked: None,
            reply,
        };
        let id = state.queue.push(priority, errand.client, waiter);
        // Whoever is last of all has to come again: a client that asks for thousands of things, not the next one.
        let last = if state.queue.len() > MOST_WAITING { state.queue.pop_last() } else { None };
        let is_tended = std::mem::replace(&mut state.tended, true);
        drop(state);
        drop(last);
        if !is_tended {
            self.life.spawn("tend a queue", Arc::clone(self).tend());
        } else if is_news {
            self.changed.notify_one();
        }
        Entered::Waits(answer, id)
    }

    /// Lets waiters go as they can, until nobody waits any more.
    async fn tend(self: Arc<Self>) {
        loop {
            let sleep = self.dispatch();
            if self.is_deserted() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Whether nobody waits any more: whoever comes next has the queue tended anew.
    fn is_deserted(&self) -> bool {
        let mut state = self.state();
        state.tended = !state.queue.is_empty();
        !state.tended
    }

    /// Lets go whoever can, in order, and sends away whoever need not wait. How long until something may have
    /// changed by itself.
    fn dispatch(self: &Arc<Self>) -> Duration {
        let now = Instant::now();
        let (mut sleep, mut unclaimed) = (LONGEST_SLEEP, Vec::new());
        let mut state = self.state();
        let sweeps = state.is_to_be_swept();
        let is_full = |state: &State| state.connections >= state.most.connections && !sweeps;
        let waiters = if is_full(&state) { Vec::new() } else { state.queue.ids() };
        for id in waiters {
            if is_full(&state) {
                break;
            }
            match state.turn(id, now) {
                Turn::Over(answer) => {
                    let Some(waiter) = state.queue.remove(id, answer.is_ok()) else { continue };
                    let answer = match answer {
                        Ok(choice) => Ok(state.grant(self, &waiter.want, choice, waiter.client, now)),
                        Err(wait) => Err(Some(wait)),
                    };
                    // Where its waiter has gone a lease falls back, when the lock is free again.
                    unclaimed.extend(waiter.reply.send(answer).err());
                }
                Turn::Later(until) => sleep = until.saturating_duration_since(now).min(sleep),
                Turn::Paced(early) => {
                    sleep = early.min(sleep);
                    break;
                }
            }
        }
        drop(state);
        drop(unclaimed);
        sleep
    }

    /// What pulls of `repository` wait for; `None` where none waits for budget.
    pub(super) fn held_up(&self, repository: &RepositoryName) -> Option<Refused> {
        let (state, now) = (self.state(), Instant::now());
        let is_held =
            |waiter: &&Waiter| waiter.want.kind == Kind::Pull && waiter.want.repository == *repository;
        let waiter = state.queue.contents().find(is_held)?;
        let blocked = state.budget.choose(&waiter.want, Priority::Foreground, now).err()?;
        Some(state.budget.refusal(&self.registry, repository, &blocked, now).0)
    }

    /// Why a request was not let go, in words for whoever asked.
    fn refusal(&self, want: &RepositoryName, wait: Option<Wait>, waited: Duration) -> Refused {
        let now = Instant::now();
        let (refused, reason) = match wait {
            None => (Refused::Crowded { registry: self.registry.clone() }, Reason::Crowded),
            Some(Wait::Budget(blocked)) => self.state().budget.refusal(&self.registry, want, &blocked, now),
            Some(Wait::Connection) => {
                (Refused::Busy { waited, connections: self.state().most.connections }, Reason::Busy)
            }
        };
        self.metrics.throttled(reason, refused.account());
        refused
    }
}

/// What becomes of a waiter.
enum Turn {
    /// It goes, or is sent away.
    Over(Result<Choice, Wait>),
    /// It waits on, until then at least.
    Later(Instant),
    /// So do all: the pace is full for so long.
    Paced(Duration),
}

enum Entered {
    Goes(Lease),
    Waits(oneshot::Receiver<Answer>, WaiterId),
    /// Without waiting.
    Refused(Option<Wait>),
}

impl State {
    /// Whether a request could go now, but for the pace.
    fn look(&self, want: &Want, priority: Priority, now: Instant) -> Result<Choice, Wait> {
        let is_full = want.kind == Kind::Transfer && self.transfers >= self.most.transfers(priority);
        // Budget first: that is the reason that is worth being told.
        let choice = self.budget.choose(want, priority, now).map_err(Wait::Budget)?;
        if is_full || self.connections >= self.most.connections {
            return Err(Wait::Connection);
        }
        Ok(choice)
    }

    /// What becomes of a waiter now.
    fn turn(&mut self, id: WaiterId, now: Instant) -> Turn {
        let later = |blocked: &Blocked| Turn::Later(blocked.over_at().unwrap_or(now + LONGEST_SLEEP));
        let Some((priority, waiter)) = self.queue.get(id) else { return Turn::Later(now + LONGEST_SLEEP) };
        if let Some((version, blocked)) = &waiter.blocked
            && *version == self.version
            && blocked.outlasts(now)
        {
            return later(blocked);
        }
        match self.look(&waiter.want, priority, now) {
            Ok(choice) => self.pace.step().map_or_else(Turn::Paced, |()| Turn::Over(Ok(choice))),
            Err(Wait::Connection) => Turn::Later(now + LONGEST_SLEEP),
            Err(wait) if !waiter.may_wait || wait.is_for_the_dead() => Turn::Over(Err(wait)),
            Err(Wait::Budget(blocked)) => {
                let turn = later(&blocked);
                self.queue.change(id, |waiter| waiter.blocked = Some((self.version, blocked)));
                turn
            }
        }
    }

    /// Whether those who wait are to be looked at although none can go: an endpoint has gone down, and they need not wait
    /// for a connection to it.
    fn is_to_be_swept(&mut self) -> bool {
        let is_news = std::mem::replace(&mut self.swept, self.version) != self.version;
        is_news && self.budget.doors.iter().any(|door| door.breakers.down().next().is_some())
    }

    /// A waiter is more urgent now: what was in its way may not be any more.
    fn raise(&mut self, id: WaiterId, to: Priority) {
        self.queue.change(id, |waiter| waiter.blocked = None);
        self.queue.raise(id, to);
    }

    /// The budget is another one now, and may allow what it did not before.
    pub(super) fn budget_changed(&mut self) {
        self.version += 1;
    }

    fn grant(
        &mut self,
        lane: &Arc<Lane>,
        want: &Want,
        choice: Choice,
        client: ClientAddr,
        now: Instant,
    ) -> Lease {
        self.connections += 1;
        self.transfers += usize::from(want.kind == Kind::Transfer);
        if choice.metered {
            self.budget.doors[choice.door].ledgers[choice.purse].grant(now);
        }
        let is_trial = self.budget.doors[choice.door].breakers.enter(&want.repository, now);
        if is_trial {
            self.budget_changed();
        }
        let account = self.budget.purses[choice.purse].account;
        Lease::new(Arc::clone(lane), want.clone(), (choice, is_trial.then_some(now)), account, client)
    }

    /// A lease is given back.
    pub(super) fn give_back(&mut self, kind: Kind) {
        self.connections -= 1;
        self.transfers -= usize::from(kind == Kind::Transfer);
    }
}

impl Most {
    /// Nobody waits for what is fetched ahead: half of it is left for those who do.
    fn transfers(self, priority: Priority) -> usize {
        match priority {
            Priority::Foreground | Priority::Revalidation => self.transfers,
            Priority::Background => (self.transfers / 2).max(1),
        }
    }

    fn of(config: &config::Upstream) -> Most {
        let connections = config.max_connections;
        Most { connections, transfers: connections - connections / 4 }
    }
}

impl Wait {
    /// Nobody there answers: whoever waited for something else need not wait for that too.
    fn is_for_the_dead(&self) -> bool {
        matches!(self, Wait::Budget(Blocked { by: Obstacle::Down { .. }, .. }))
    }
}

impl Blocked {
    /// No use in being held for it: nobody's answer can change it while a client waits, or nobody there answers.
    fn is_hopeless(&self) -> bool {
        matches!(self.by, Obstacle::Aside { .. } | Obstacle::Nobody | Obstacle::Down { .. })
    }

    /// Whether it is not over by itself before `then`.
    fn outlasts(&self, then: Instant) -> bool {
        self.over_at().is_none_or(|until| until > then)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.lane.state().queue.remove(self.id, false);
        // The last one to go ends the task that tends the queue, which a stop of the house waits for.
        self.lane.changed.notify_one();
    }
}
