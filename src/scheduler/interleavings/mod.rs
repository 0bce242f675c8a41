//! Random interleavings of clients, answers, losses, jumps of the clock and restarts, against an upstream that
//! counts truly.
//!
//! Held at every moment: what is counted and what is on the way are together no more than the limit, so the
//! upstream never has to refuse; every wait ends by its deadline, and none in vain; whoever comes first goes
//! first; and in the end nothing of the quota is lost.
//!
//! Two things are taken for granted. A request that is given up reaches the upstream within [`AFLOAT`] or never
//! does. And before the first answer nobody knows of a limit: what is let go then may be one too many, and
//! is forgotten by a restart. The wall clock has no part in this, since the scheduler
//! reads the runtime's clock alone.
//!
//! [`AFLOAT`]: super::ledger::AFLOAT

mod upstream;
mod world;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::Config as Cases;

use self::upstream::{Terms, terms};
use self::world::World;
use super::Priority;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    /// Pulls are wanted, all at once.
    Ask(Vec<Asker>),
    /// One of those who wait becomes as urgent as can be.
    Raise(usize),
    /// A free HEAD gets its lease.
    Question,
    /// One of the granted requests goes a step further: it logs in, then it goes out.
    Send(usize),
    /// One of those that are out reaches the upstream.
    Process(usize),
    /// One of those that have reached it is answered.
    Answer(usize),
    /// A request is given up, at whatever stage; the upstream may have got it.
    Lose(usize, bool),
    /// One of those that were given up reaches the upstream after all.
    Drift(usize),
    /// So many seconds pass.
    Pass(u64),
    /// So many seconds have passed at once, as for a machine that was suspended.
    Jump(u64),
    /// The process ends in order, or is killed. What was on the way reaches the upstream where its bit is set.
    Restart { is_killed: bool, reached: u16 },
}

/// Who wants a pull.
#[derive(Debug, Clone, Copy)]
struct Asker {
    client: u8,
    priority: Priority,
    may_wait: bool,
}

impl Asker {
    /// A client's requests of one class go one after the other.
    fn is_in_line_with(&self, other: &Asker) -> bool {
        (self.client, self.priority) == (other.client, other.priority)
    }
}

fn asker() -> impl Strategy<Value = Asker> {
    let priority = prop_oneof![
        3 => Just(Priority::Foreground),
        1 => Just(Priority::Revalidation),
        1 => Just(Priority::Background),
    ];
    (0..3_u8, priority, proptest::bool::weighted(0.8)).prop_map(|(client, priority, may_wait)| Asker {
        client,
        priority,
        may_wait,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let seconds = || prop_oneof![4 => 1..=9_u64, 1 => 1..=180_u64];
    prop_oneof![
        8 => proptest::collection::vec(asker(), 1..=4).prop_map(Step::Ask),
        1 => (0..8_usize).prop_map(Step::Raise),
        3 => Just(Step::Question),
        12 => (0..8_usize).prop_map(Step::Send),
        8 => (0..8_usize).prop_map(Step::Process),
        8 => (0..8_usize).prop_map(Step::Answer),
        3 => (0..8_usize, any::<bool>()).prop_map(|(which, reached)| Step::Lose(which, reached)),
        2 => (0..8_usize).prop_map(Step::Drift),
        6 => seconds().prop_map(Step::Pass),
        1 => seconds().prop_map(Step::Jump),
        1 => (any::<bool>(), any::<u16>())
            .prop_map(|(is_killed, reached)| Step::Restart { is_killed, reached }),
    ]
}

fn run(terms: &Terms, max_wait: u64, steps: &[Step], is_stored: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let mut world = World::new(terms.clone(), max_wait, is_stored).await;
        for step in steps {
            world.take(step).await;
        }
        world.end().await;
    });
}

/// Nothing of it had been written down but before it was sent.
#[test]
fn a_pull_under_way_at_a_kill_is_not_forgotten() {
    let asker = Asker { client: 1, priority: Priority::Foreground, may_wait: true };
    let terms = Terms { limit: 1, window: Duration::from_secs(60), is_fixed: false, others: Vec::new() };
    let send = [Step::Send(0), Step::Send(0)];
    let learn = [Step::Process(0), Step::Answer(0), Step::Pass(2)];
    let (question, ask) = ([Step::Question], [Step::Ask(vec![asker])]);
    let kill = [Step::Restart { is_killed: true, reached: 1 }];
    let steps = [&question[..], &send, &learn, &ask, &send, &kill, &ask, &send, &[Step::Process(0)]].concat();
    for is_stored in [false, true] {
        run(&terms, 5, &steps, is_stored);
    }
}

fn cases(cases: u32) -> Cases {
    Cases { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Cases::default() }
}

proptest! {
    #![proptest_config(cases(1024))]
    #[test]
    fn never_above_the_limit_and_nobody_waits_for_nothing(
        terms in terms(),
        max_wait in 1..=40_u64,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        run(&terms, max_wait, &steps, false);
    }
}

proptest! {
    #![proptest_config(cases(24))]
    #[test]
    fn nor_with_what_the_store_kept(
        terms in terms(),
        max_wait in 1..=40_u64,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        run(&terms, max_wait, &steps, true);
    }
}
