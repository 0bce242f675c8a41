use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::RegistryHost;

/// Finds out over how many connections an upstream is fetched from best. All flights from it together are looked at,
/// since the line is one.
///
/// ```text
///  one connection each ── what is left takes a second or more ──▶ twice as many, on trial
///     ▲                                                              │
///     └── ten minutes ── no faster: the line is what limits ◀────────┴──▶ faster: each connection is limited;
///                                                                         that many it is, and twice as many on trial
/// ```
#[derive(Debug)]
pub(super) struct Spread {
    // A std lock: held for a look, never over an await.
    judge: Mutex<Judge>,
    registry: String,
}

/// A flight that may be fetched over more connections than one.
#[derive(Debug)]
pub(super) struct Member {
    spread: Arc<Spread>,
    most: usize,
    own: Arc<()>,
}

/// One more connection of a flight.
#[derive(Debug)]
pub(super) struct Extra {
    spread: Arc<Spread>,
    flows: bool,
    _own: Arc<()>,
}

/// Plain judgement: what time it is, it is told.
#[derive(Debug)]
struct Judge {
    flights: usize,
    /// Connections beside the first ones that have begun, and those of them that bytes come over.
    begun: usize,
    flowing: usize,
    /// So many of them are known to pay.
    paying: usize,
    trial: Option<Trial>,
    /// More are of no use.
    is_enough: bool,
    /// How long that is believed.
    until: Instant,
    window: Window,
    /// Bytes a second, when last measured.
    rate: f64,
    /// Over one connection.
    share: f64,
}

/// More connections than are known to pay.
#[derive(Debug)]
struct Trial {
    wanted: usize,
    /// As fast as this it has to be.
    goal: f64,
    windows: u32,
    /// It was in the last window.
    was_met: bool,
}

/// What came while nothing else changed.
#[derive(Debug)]
struct Window {
    since: Instant,
    bytes: u64,
    /// The first one after a change is left alone: connections have to get going.
    is_first: bool,
}

/// So much faster than what is there already does each new connection have to be, at least, to be kept.
const GAIN: f64 = 0.3;
/// What grows faster than this from one window to the next is about to get going, and cannot be compared with yet.
const STEADY: f64 = 1.1;
/// How long is measured at a time.
const WINDOW: Duration = Duration::from_millis(250);
/// Within so many windows new connections show what they can do: over a long line it takes them a second or so.
const TRIAL_WINDOWS: u32 = 6;
/// Whatever is left takes this long over one connection, or it is not worth another one.
const WORTH_IT: f64 = 1.0;
/// How long what was learned is believed.
const LEARNED: Duration = Duration::from_secs(600);
/// How long it stays as it is after a connection failed.
const FAILED: Duration = Duration::from_secs(60);
/// For one upstream.
const MOST: usize = 7;

impl Spread {
    /// Nothing is known of `registry` yet.
    pub(super) fn new(registry: &RegistryHost) -> Spread {
        Spread { judge: Mutex::new(Judge::new(Instant::now())), registry: registry.to_string() }
    }

    /// A flight begins that may have a share of `most` more connections.
    pub(super) fn join(self: &Arc<Self>, most: usize) -> Member {
        self.judge().join(Instant::now());
        Member { spread: Arc::clone(self), most: most.min(MOST), own: Arc::default() }
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        // Every change is whole before the lock is let go.
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// So many bytes came, and so many nobody fetches yet: one more connection where that pays.
    pub(super) fn came(&self, count: usize, left: u64) -> Option<Extra> {
        let mut judge = self.spread.judge();
        let before = judge.paying;
        judge.came(count, left, self.most, Instant::now());
        let own = Arc::strong_count(&self.own) - 1;
        let begins = judge.begins(own, left, self.most);
        let (after, share) = (judge.paying, judge.share);
        drop(judge);
        if after > before && before == 0 {
            tracing::info!(
                registry = self.spread.registry,
                connections = after + 1,
                bytes_per_second = share,
                "the upstream limits each connection: large blobs are fetched over several"
            );
        }
        begins.then(|| Extra { spread: Arc::clone(&self.spread), flows: false, _own: Arc::clone(&self.own) })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.spread.judge().leave(Instant::now());
    }
}

impl Extra {
    /// Bytes come.
    pub(super) fn flows(&mut self) {
        if !std::mem::replace(&mut self.flows, true) {
            self.spread.judge().flows(Instant::now());
        }
    }

    /// Whether it is still wanted.
    pub(super) fn goes_on(&self) -> bool {
        let judge = self.spread.judge();
        judge.begun <= judge.wanted()
    }

    /// How many connections bytes come over, this one included.
    pub(super) fn connections(&self) -> usize {
        let judge = self.spread.judge();
        (judge.begun / judge.flights.max(1)) + 1
    }

    /// It brought nothing more; an upstream that sends no parts never will.
    pub(super) fn failed(&self, never: bool) {
        self.spread.judge().failed(never, Instant::now());
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        self.spread.judge().ends(self.flows, Instant::now());
    }
}

impl Judge {
    fn new(now: Instant) -> Judge {
        Judge {
            flights: 0,
            begun: 0,
            flowing: 0,
            paying: 0,
            trial: None,
            is_enough: false,
            until: now,
            window: Window::new(now),
            rate: 0.0,
            share: f64::INFINITY,
        }
    }

    fn join(&mut self, now: Instant) {
        self.flights += 1;
        self.others_changed(now);
    }

    fn leave(&mut self, now: Instant) {
        self.flights -= 1;
        self.others_changed(now);
    }

    /// What is measured from now on says nothing of what was measured before.
    fn others_changed(&mut self, now: Instant) {
        self.trial = None;
        self.window = Window::new(now);
    }

    fn flows(&mut self, now: Instant) {
        self.flowing += 1;
        self.window = Window::new(now);
    }

    fn ends(&mut self, was_flowing: bool, now: Instant) {
        self.begun -= 1;
        if was_flowing {
            self.flowing -= 1;
            self.window = Window::new(now);
        }
    }

    fn failed(&mut self, never: bool, now: Instant) {
        self.trial = None;
        self.paying = if never { 0 } else { self.paying.min(self.flowing.saturating_sub(1)) };
        self.is_enough = true;
        self.until = now + if never { LEARNED } else { FAILED };
    }

    fn came(&mut self, count: usize, left: u64, most: usize, now: Instant) {
        self.window.bytes += count as u64;
        let Some((rate, is_first)) = self.window.end(now) else { return };
        if is_first {
            return;
        }
        if now >= self.until {
            (self.paying, self.is_enough) = (0, false);
        }
        let is_steady = rate <= self.rate * STEADY;
        self.rate = rate;
        self.share = rate / (self.flights + self.flowing).max(1) as f64;
        let Some(trial) = &mut self.trial else {
            if is_steady && !self.is_enough && self.is_worth_it(left) {
                self.try_more(rate, most);
            }
            return;
        };
        let Some(outcome) = trial.window(rate, self.flowing) else { return };
        match outcome {
            Outcome::Faster => (self.paying, self.until) = (trial.wanted, now + LEARNED),
            Outcome::NoFaster => (self.is_enough, self.until) = (true, now + LEARNED),
            Outcome::Void => {}
        }
        self.trial = None;
    }

    /// Twice as many, or as many as there may be.
    fn try_more(&mut self, rate: f64, most: usize) {
        if self.flowing < self.paying.min(most) {
            return;
        }
        let connections = self.flights + self.flowing;
        let wanted = (self.flowing + connections).min(most);
        if wanted > self.flowing {
            let added = (wanted - self.flowing) as f64 / connections.max(1) as f64;
            self.trial =
                Some(Trial { wanted, goal: rate * (1.0 + GAIN * added), windows: 0, was_met: false });
        }
    }

    /// Whether a flight with `own` of them begins one more.
    fn begins(&mut self, own: usize, left: u64, most: usize) -> bool {
        let wanted = self.wanted().min(most);
        let begins =
            self.begun < wanted && own < wanted.div_ceil(self.flights.max(1)) && self.is_worth_it(left);
        self.begun += usize::from(begins);
        begins
    }

    fn wanted(&self) -> usize {
        self.trial.as_ref().map_or(self.paying, |trial| trial.wanted)
    }

    fn is_worth_it(&self, left: u64) -> bool {
        left as f64 > self.share * WORTH_IT
    }
}

/// What came of a trial.
enum Outcome {
    Faster,
    NoFaster,
    /// It never came to it.
    Void,
}

impl Trial {
    /// What another window shows; one that is faster may be chance.
    fn window(&mut self, rate: f64, flowing: usize) -> Option<Outcome> {
        self.windows += 1;
        let all_flow = flowing >= self.wanted;
        let is_met = all_flow && rate >= self.goal;
        if is_met && self.was_met {
            return Some(Outcome::Faster);
        }
        self.was_met = is_met;
        let is_over = self.windows >= TRIAL_WINDOWS && !is_met;
        is_over.then_some(if all_flow { Outcome::NoFaster } else { Outcome::Void })
    }
}

impl Window {
    fn new(now: Instant) -> Window {
        Window { since: now, bytes: 0, is_first: true }
    }

    /// Bytes a second, when it is over, and whether it was the first one; another one begins.
    fn end(&mut self, now: Instant) -> Option<(f64, bool)> {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < WINDOW {
            return None;
        }
        let ended = std::mem::replace(self, Window { since: now, bytes: 0, is_first: false });
        Some((ended.bytes as f64 / elapsed.as_secs_f64(), ended.is_first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: f64 = 1024.0 * 1024.0;
    const STEP: Duration = Duration::from_millis(10);

    /// A line, and flights that are fetched over it.
    struct Line {
        judge: Judge,
        now: Instant,
        /// MiB a second: of each connection, once it has got going, and of all together.
        each: f64,
        all: f64,
        gets_going: Duration,
        most: usize,
        connections: Vec<Instant>,
    }

    impl Line {
        fn new(each: f64, all: f64) -> Line {
            let now = Instant::now();
            let (judge, connections) = (Judge::new(now), Vec::new());
            Line { judge, now, each, all, gets_going: Duration::ZERO, most: MOST, connections }
        }

        fn join(&mut self, flights: usize) {
            for _ in 0..flights {
                self.judge.join(self.now);
                self.connections.push(self.now);
            }
        }

        /// So much time goes by; how many connections there are beside the first ones at the end.
        fn run(&mut self, seconds: f64) -> usize {
            for _ in 0..(seconds / STEP.as_secs_f64()) as usize {
                self.now += STEP;
                let speeds = self.connections.iter().map(|since| {
                    let going = (self.now - *since).as_secs_f64() / self.gets_going.as_secs_f64().max(1e-9);
                    self.each * going.min(1.0)
                });
                let sum: f64 = speeds.clone().sum();
                let scale = (self.all / sum).min(1.0) * MIB * STEP.as_secs_f64();
                let came: Vec<usize> = speeds.map(|speed| (speed * scale) as usize).collect();
                for count in came {
                    self.judge.came(count, u64::MAX, self.most, self.now);
                    if self.judge.begins(0, u64::MAX, self.most) {
                        self.judge.flows(self.now);
                        self.connections.push(self.now);
                    }
                }
                while self.judge.begun > self.judge.wanted() {
                    self.judge.ends(true, self.now);
                    self.connections.pop();
                }
            }
            self.judge.flowing
        }
    }

    #[test]
    fn as_many_as_pay() {
        for (each, all, flights, most, expected) in [
            (10.0, 10.0, 1, MOST, 0),
            (10.0, 12.0, 1, MOST, 0),
            (10.0, 20.0, 1, MOST, 1),
            (10.0, 35.0, 1, MOST, 3),
            (10.0, 1000.0, 1, MOST, MOST),
            (10.0, 1000.0, 1, 2, 2),
            (10.0, 1000.0, 1, 0, 0),
            (10.0, 1000.0, 4, MOST, MOST),
            (0.1, 10.0, 1, MOST, MOST),
            (10.0, 40.0, 4, MOST, 0),
            (10.0, 60.0, 4, MOST, 4),
        ] {
            for gets_going in [0, 200, 1000] {
                let mut line = Line::new(each, all);
                (line.gets_going, line.most) = (Duration::from_millis(gets_going), most);
                line.join(flights);
                let extra = line.run(20.0);
                assert_eq!(extra, expected, "{each} of {all}, {flights} flights, within {gets_going} ms");
            }
        }
    }

    #[test]
    fn what_was_learned_is_believed_for_a_while() {
        let mut line = Line::new(10.0, 35.0);
        line.join(1);
        assert_eq!(line.run(10.0), 3);
        // Another one begins at once with its share.
        line.join(1);
        assert_eq!((line.judge.wanted(), line.run(1.0)), (3, 3));
        // By now the line is another one.
        (line.each, line.all) = (10.0, 20.0);
        line.run(LEARNED.as_secs_f64() + 10.0);
        assert_eq!((line.judge.paying, line.judge.flowing), (0, 0));
    }

    #[test]
    fn one_that_fails_is_not_replaced_at_once() {
        let mut line = Line::new(10.0, 1000.0);
        line.join(1);
        line.run(10.0);
        line.judge.failed(false, line.now);
        assert_eq!(line.run(30.0), MOST - 1);
        assert_eq!(line.run(60.0), MOST);
        line.judge.failed(true, line.now);
        assert_eq!(line.run(LEARNED.as_secs_f64() - 10.0), 0);
        assert_eq!(line.run(30.0), MOST);
    }

    #[test]
    fn not_for_what_is_over_in_a_moment() {
        let mut judge = Judge::new(Instant::now());
        judge.join(judge.until);
        let (mut now, left) = (judge.until, 9 << 20);
        for _ in 0..1000 {
            now += STEP;
            judge.came((10.0 * MIB * STEP.as_secs_f64()) as usize, left, MOST, now);
            assert!(!judge.begins(0, left, MOST));
        }
        assert!(judge.trial.is_none());
    }

    #[test]
    fn flights_get_equal_shares() {
        let mut judge = Judge::new(Instant::now());
        (judge.flights, judge.paying, judge.share) = (3, 7, MIB);
        for (own, begins) in [(0, true), (2, true), (3, false), (7, false)] {
            assert_eq!(judge.begins(own, u64::MAX, MOST), begins, "{own}");
        }
    }

    proptest! {
        /// Whatever happens in whatever order: never more than there may be, and the counts come out even.
        #[test]
        fn it_keeps_count(events in prop::collection::vec((0..7u8, 0..50u64, 0..9usize), 0..300)) {
            let mut judge = Judge::new(Instant::now());
            let (mut now, mut waiting, mut flowing) = (judge.until, 0, 0);
            for (event, amount, most) in events {
                now += Duration::from_millis(amount * 20);
                let most = most.min(MOST);
                match event {
                    0 => judge.join(now),
                    1 if judge.flights > 0 => judge.leave(now),
                    2 if waiting > 0 => {
                        judge.flows(now);
                        (waiting, flowing) = (waiting - 1, flowing + 1);
                    }
                    3 if flowing > 0 => {
                        judge.ends(true, now);
                        flowing -= 1;
                    }
                    4 if waiting > 0 => {
                        judge.failed(amount % 2 == 0, now);
                        judge.ends(false, now);
                        waiting -= 1;
                    }
                    _ => {
                        judge.came(usize::try_from(amount).unwrap() << 20, amount << 24, most, now);
                        let begun = judge.begun;
                        if judge.begins(0, amount << 24, most) {
                            prop_assert!(begun < most);
                            waiting += 1;
                        }
                    }
                }
                prop_assert_eq!((judge.begun, judge.flowing), (waiting + flowing, flowing));
                prop_assert!(judge.wanted() <= MOST);
            }
        }
    }
}
