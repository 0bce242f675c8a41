use std::future::Future;
use std::net::IpAddr;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::upstream::{Terms, Upstream};
use super::{Asker, Step};
use crate::config::{ByteSize, Cache, Config, SizeLimit, UpstreamId};
use crate::lifecycle::Lifecycle;
use crate::scheduler::ledger::{AFLOAT, Ledger, Quota};
use crate::scheduler::{
    ClientAddr, Errand, Kind, Lease, Priority, Pull, Refused, Scheduler, Sent, Told, Want,
};
use crate::store::Store;
use crate::telemetry::Metrics;

/// An upstream, a scheduler, and all that is under way between them.
pub(super) struct World {
    upstream: Upstream,
    config: Config,
    scheduler: Scheduler,
    life: Lifecycle,
    shelf: Option<Shelf>,
    waiting: Vec<Waiter>,
    flights: Vec<Flight>,
    /// Until when pulls that were given up may reach the upstream.
    adrift: Vec<Adrift>,
    /// Those whose wait ended since the last check.
    gone: Vec<Waiter>,
    refused: Vec<Waiter>,
    asked: usize,
    done: (mpsc::UnboundedSender<Outcome>, mpsc::UnboundedReceiver<Outcome>),
}

/// A store, where one keeps what is known over a restart.
struct Shelf {
    store: Store,
    life: Lifecycle,
    _folder: tempfile::TempDir,
}

struct Waiter {
    number: usize,
    asker: Asker,
    errand: Errand,
    deadline: Instant,
    /// Those that have to go before it.
    behind: Vec<usize>,
    /// Whether it waited already when time went on last.
    is_settled: bool,
    task: JoinHandle<()>,
}

struct Outcome {
    number: usize,
    leave: Result<Pull, Refused>,
}

/// A request that has leave to go.
struct Flight {
    cargo: Cargo,
    stage: Stage,
    /// Let go when nobody knew of a limit.
    is_blind: bool,
}

struct Adrift {
    until: Instant,
    is_blind: bool,
}

enum Cargo {
    Pull(Pull),
    Question(Lease),
}

#[derive(Clone, Copy)]
enum Stage {
    Granted,
    /// It logs in.
    Begun(Sent),
    Sent(Sent),
    Processed(Sent, Result<Told, Told>),
}

const HUB: UpstreamId = UpstreamId::new(0);
const NOTE: &str = "budget/docker.io";
const TICK: Duration = Duration::from_secs(1);

impl World {
    pub(super) async fn new(terms: Terms, max_wait: u64, is_stored: bool) -> World {
        let mut config = Config::default();
        config.upstreams.truncate(1);
        config.upstreams[0].requests_per_second = 1_000_000;
        config.upstreams[0].max_connections = 1_000;
        config.schedule.max_wait = Duration::from_secs(max_wait);
        let upstream = Upstream::new(terms);
        // What others pulled they have pulled by now.
        tokio::time::advance(upstream.terms.window).await;
        let shelf = is_stored.then(Shelf::new);
        let life = Lifecycle::default();
        let store = shelf.as_ref().map(|shelf| &shelf.store);
        let scheduler = Scheduler::new(&config, store, &life, &Metrics::default());
        World {
            upstream,
            config,
            scheduler,
            life,
            shelf,
            waiting: Vec::new(),
            flights: Vec::new(),
            adrift: Vec::new(),
            gone: Vec::new(),
            refused: Vec::new(),
            asked: 0,
            done: mpsc::unbounded_channel(),
        }
    }

    pub(super) async fn take(&mut self, step: &Step) {
        match step {
            Step::Ask(askers) => self.ask(askers).await,
            Step::Raise(which) => self.raise(*which),
            Step::Question => self.question().await,
            Step::Send(which) => {
                self.on_one(*which, |stage| matches!(stage, Stage::Granted | Stage::Begun(_)), Self::send);
            }
            Step::Process(which) => {
                self.on_one(*which, |stage| matches!(stage, Stage::Sent(_)), Self::process)
            }
            Step::Answer(which) => {
                self.on_one(*which, |stage| matches!(stage, Stage::Processed(..)), Self::answer);
            }
            Step::Lose(which, reached) => self.on_one(
                *which,
                |_| true,
                |world, which| {
                    if *reached {
                        world.process(which);
                    }
                    world.give_up(which);
                    world.flights.remove(which);
                },
            ),
            Step::Drift(which) => self.drift(*which),
            Step::Pass(seconds) => {
                for _ in 0..*seconds {
                    self.jump(TICK).await;
                }
            }
            Step::Jump(seconds) => self.jump(Duration::from_secs(*seconds)).await,
            Step::Restart { is_killed, reached } => self.restart(*is_killed, *reached).await,
        }
        self.settle().await;
    }

    /// Lets everything come to its end: then nothing of the quota may be missing.
    pub(super) async fn end(&mut self) {
        while !self.flights.is_empty() || !self.waiting.is_empty() {
            for which in (0..self.flights.len()).rev() {
                self.conclude(which);
            }
            self.settle().await;
            self.jump(TICK).await;
        }
        self.jump(self.upstream.terms.window + AFLOAT).await;
        self.question().await;
        let which = self.flights.len() - 1;
        self.conclude(which);
        assert_eq!(self.ledger(|ledger| ledger.available(Instant::now())), self.upstream.terms.limit);
        self.life.stop();
        if let Some(shelf) = &self.shelf {
            shelf.life.stop();
        }
    }

    /// Takes a request to its end.
    fn conclude(&mut self, which: usize) {
        self.send(which);
        self.send(which);
        self.process(which);
        self.answer(which);
    }

    async fn ask(&mut self, askers: &[Asker]) {
        let first = self.asked;
        for asker in askers {
            let errand =
                Errand::of(ClientAddr::of(IpAddr::from([10, 0, 0, asker.client]))).at(asker.priority);
            let errand = if asker.may_wait { errand } else { errand.or_else() };
            let (scheduler, done, number) = (self.scheduler.clone(), self.done.0.clone(), self.asked);
            let (deadline, own) = (Instant::now() + self.config.schedule.max_wait, errand.clone());
            let task = self.life.spawn("a waiter", async move {
                let leave = scheduler.pull(HUB, want(), &"v1".parse().unwrap(), &own).await;
                // The world may have ended.
                let _ = done.send(Outcome { number, leave });
            });
            let (behind, is_settled) = (Vec::new(), false);
            self.waiting.push(Waiter { number, asker: *asker, errand, deadline, behind, is_settled, task });
            self.asked += 1;
        }
        self.settle().await;
        self.line_up(first);
    }

    /// Among those who came together, a client's only request goes before another client's second one.
    fn line_up(&mut self, first: usize) {
        let all: Vec<(usize, Asker)> = self.waiting.iter().map(|one| (one.number, one.asker)).collect();
        let newcomers = || all.iter().filter(|(number, _)| *number >= first);
        let is_alone = |one: &Asker| all.iter().filter(|(_, other)| one.is_in_line_with(other)).count() == 1;
        for one in &mut self.waiting {
            let is_before =
                |(number, other): &(usize, Asker)| *number < one.number && one.asker.is_in_line_with(other);
            if newcomers().any(is_before) {
                let class = newcomers().filter(|(_, other)| other.priority == one.asker.priority);
                one.behind = class.filter(|(_, other)| is_alone(other)).map(|(number, _)| *number).collect();
            }
        }
    }

    fn raise(&mut self, which: usize) {
        if !self.waiting.is_empty() {
            let which = which % self.waiting.len();
            let waiter = &mut self.waiting[which];
            waiter.errand.urgency().raise(Priority::Foreground);
            waiter.asker.priority = Priority::Foreground;
            // It has joined the end of another line.
            waiter.behind.clear();
        }
    }

    async fn question(&mut self) {
        let errand = Errand::of(ClientAddr::NOBODY);
        let lease = busily(self.scheduler.lease(HUB, want(), &errand)).await;
        let cargo = Cargo::Question(lease.expect("questions are free"));
        self.flights.push(Flight { cargo, stage: Stage::Granted, is_blind: false });
    }

    fn on_one(&mut self, which: usize, fits: impl Fn(Stage) -> bool, act: impl Fn(&mut World, usize)) {
        let fitting: Vec<usize> =
            (0..self.flights.len()).filter(|flight| fits(self.flights[*flight].stage)).collect();
        if !fitting.is_empty() {
            act(self, fitting[which % fitting.len()]);
        }
    }

    fn send(&mut self, which: usize) {
        let Flight { cargo, stage, .. } = &mut self.flights[which];
        *stage = match (*stage, &*cargo) {
            (Stage::Granted, Cargo::Pull(pull)) => Stage::Begun(pull.send()),
            (Stage::Granted, Cargo::Question(lease)) => Stage::Begun(lease.send()),
            (Stage::Begun(sent), cargo) => {
                cargo.lease().on_its_way();
                Stage::Sent(sent)
            }
            (stage, _) => stage,
        };
    }

    fn process(&mut self, which: usize) {
        let Flight { cargo, stage, is_blind } = &mut self.flights[which];
        let Stage::Sent(sent) = *stage else { return };
        let now = Instant::now();
        let told = match cargo {
            Cargo::Pull(_) => self.upstream.pull(now),
            Cargo::Question(_) => Ok(self.upstream.tells(now)),
        };
        assert!(told.is_ok() || *is_blind, "the upstream had to refuse");
        *stage = Stage::Processed(sent, told);
    }

    fn answer(&mut self, which: usize) {
        let Flight { cargo, stage, .. } = self.flights.remove(which);
        let Stage::Processed(sent, told) = stage else { panic!("it has not been processed") };
        match (&cargo, told) {
            (Cargo::Pull(pull), Ok(told)) => pull.answered(sent, Some(&told)),
            (Cargo::Pull(pull), Err(told)) => pull.as_ref().refused(Some(&told), None),
            (Cargo::Question(lease), Ok(told) | Err(told)) => lease.answered(sent, Some(&told)),
        }
    }

    /// A pull that has been sent may be counted later on.
    fn give_up(&mut self, which: usize) {
        let Flight { cargo, stage, is_blind } = &self.flights[which];
        if let (Cargo::Pull(_), Stage::Sent(_)) = (cargo, stage) {
            self.adrift.push(Adrift { until: Instant::now() + AFLOAT, is_blind: *is_blind });
        }
    }

    fn drift(&mut self, which: usize) {
        if !self.adrift.is_empty() {
            let Adrift { is_blind, .. } = self.adrift.remove(which % self.adrift.len());
            assert!(self.upstream.pull(Instant::now()).is_ok() || is_blind, "the upstream had to refuse");
        }
    }

    async fn jump(&mut self, time: Duration) {
        self.waiting.iter_mut().for_each(|waiter| waiter.is_settled = true);
        tokio::time::advance(time).await;
        self.adrift.retain(|one| one.until > Instant::now());
        self.settle().await;
    }

    /// The process ends and begins again at once, which leaves the least time for anything to come back.
    async fn restart(&mut self, is_killed: bool, reached: u16) {
        for which in 0..self.flights.len() {
            if reached >> (which % 16) & 1 == 1 {
                self.process(which);
            }
            self.give_up(which);
        }
        self.waiting.drain(..).for_each(|waiter| waiter.task.abort());
        let note = match &self.shelf {
            Some(shelf) => shelf.note().await,
            None => None,
        };
        let killed = self.ledger(kept);
        self.flights.clear();
        let ledger = if is_killed { killed } else { self.ledger(kept) };
        self.finish().await;
        if let Some(Shelf { store, .. }) = self.shelf.as_ref().filter(|_| is_killed) {
            // What the end in order has written down a kill had not; an empty note cannot be read.
            busily(store.set_note(NOTE, note.unwrap_or_default())).await.unwrap();
        }
        self.life = Lifecycle::default();
        let store = self.shelf.as_ref().map(|shelf| &shelf.store);
        self.scheduler = Scheduler::new(&self.config, store, &self.life, &Metrics::default());
        if store.is_none() {
            self.scheduler.lane(HUB).state().budget.doors[0].ledgers[0] = ledger;
        }
        if self.is_blind() {
            self.adrift.clear();
        }
    }

    /// Ends the scheduler in order.
    async fn finish(&mut self) {
        busily(tokio::task::yield_now()).await;
        self.life.stop();
        while self.life.running() > 0 {
            self.scheduler.lane(HUB).stir();
            tokio::task::yield_now().await;
        }
    }

    /// Lets all tasks do what they can without any time passing. The runtime never idles meanwhile: it would
    /// move its paused clock on.
    async fn settle(&mut self) {
        loop {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            while let Ok(outcome) = self.done.1.try_recv() {
                self.receive(outcome);
            }
            // A granted pull may still be waiting for the store.
            if self.scheduler.lane(HUB).state().connections == self.flights.len() {
                return self.check();
            }
        }
    }

    fn receive(&mut self, outcome: Outcome) {
        let place = self.waiting.iter().position(|waiter| waiter.number == outcome.number);
        let waiter = self.waiting.remove(place.expect("it waits"));
        let Ok(pull) = outcome.leave else { return self.refused.push(waiter) };
        let is_blind = self.is_blind();
        self.gone.push(waiter);
        self.flights.push(Flight { cargo: Cargo::Pull(pull), stage: Stage::Granted, is_blind });
        let is_under_way = |flight: &&Flight| {
            matches!(flight.cargo, Cargo::Pull(_)) && !matches!(flight.stage, Stage::Processed(..))
        };
        let under_way = (self.flights.iter().filter(is_under_way).count() + self.adrift.len()) as u64;
        let counted = self.upstream.counts(Instant::now());
        assert!(is_blind || counted + under_way <= self.upstream.terms.limit, "{counted} + {under_way}");
    }

    fn check(&mut self) {
        let now = Instant::now();
        for Waiter { asker, number, .. } in self.refused.drain(..) {
            let pull = Want { kind: Kind::Pull, ..want() };
            let choice = self.scheduler.lane(HUB).state().budget.choose(&pull, asker.priority, now);
            assert!(choice.is_err(), "{number} {asker:?} was refused for nothing");
        }
        for Waiter { number, asker, deadline, .. } in &self.waiting {
            assert!(asker.may_wait, "{number} {asker:?} is held");
            assert!(*deadline > now, "{number} {asker:?} waits for too long");
        }
        for one in self.gone.drain(..) {
            let asker = one.asker;
            for other in &self.waiting {
                let is_behind = one.behind.contains(&other.number);
                assert!(!is_behind, "{} went before {} {asker:?}", one.number, other.number);
                let is_urgent = other.is_settled && other.asker.priority < asker.priority;
                assert!(
                    !is_urgent,
                    "{} {asker:?} went before {} {:?}",
                    one.number, other.number, other.asker
                );
            }
        }
    }

    /// Whether nothing is known of a limit.
    fn is_blind(&self) -> bool {
        self.ledger(|ledger| !matches!(ledger.quota(), Quota::Limited { .. }))
    }

    fn ledger<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.scheduler.lane(HUB).state().budget.doors[0].ledgers[0])
    }
}

impl Cargo {
    fn lease(&self) -> &Lease {
        match self {
            Cargo::Pull(pull) => pull.as_ref(),
            Cargo::Question(lease) => lease,
        }
    }
}

impl Shelf {
    fn new() -> Shelf {
        let (folder, life) = (tempfile::tempdir().unwrap(), Lifecycle::default());
        let config = Cache {
            dir: folder.path().to_owned(),
            max_size: SizeLimit::Bytes(ByteSize(1 << 20)),
            min_free: ByteSize(0),
            ..Cache::default()
        };
        let store = Store::open(&config, &life, &Metrics::default()).unwrap();
        Shelf { store, life, _folder: folder }
    }

    /// What is written down of the budget. What is being written is waited for: the store's thread has a clock
    /// of its own.
    async fn note(&self) -> Option<Vec<u8>> {
        busily(self.store.set_note("fence", Vec::new())).await.unwrap();
        self.store.note(NOTE)
    }
}

fn want() -> Want {
    Want::question(&"library/app".parse().unwrap())
}

fn kept(ledger: &Ledger) -> Ledger {
    let now = Instant::now();
    Ledger::restore(ledger.quota(), &ledger.owed(now), ledger.resting(now), now)
}

/// Waits without ever letting the runtime idle, so that no time passes.
async fn busily<F: Future>(future: F) -> F::Output {
    tokio::pin!(future);
    loop {
        if let Poll::Ready(output) = futures_util::poll!(&mut future) {
            return output;
        }
        tokio::task::yield_now().await;
    }
}
