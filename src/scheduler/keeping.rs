//! What the ledgers know survives a restart.
//!
//! One note for each upstream, in the store. It is written before a granted pull is sent: a crash at any moment
//! leaves at least what was spent, never less. All else is written a moment later, many changes at once. A
//! note tells how long until each pull comes back, not when: the clock may be set while the process is away.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::lane::{Lane, State};
use super::ledger::{Ledger, Quota};
use crate::lifecycle::Lifecycle;
use crate::oci::{Reference, RepositoryName};
use crate::store::Store;

/// Writes the notes.
#[derive(Debug)]
pub(super) struct Keeper {
    store: Store,
}

/// A note: the ledgers of one upstream of which anything is known.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    ledgers: Vec<Kept>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    endpoint: String,
    account: String,
    limit: u64,
    window_ms: u64,
    /// Milliseconds until so many pulls come back.
    owed: Vec<(u64, u64)>,
    rest_ms: Option<u64>,
    /// What was last pulled: repository and reference.
    subject: Option<(String, String)>,
}

/// Changes that come within this time are written together.
const GATHER: Duration = Duration::from_secs(1);
/// A disk that takes longer is in trouble of its own.
const PATIENCE: Duration = Duration::from_secs(2);

impl Keeper {
    /// Gives the lanes what was kept of them, and writes down what changes from now on.
    pub(super) fn open(store: Store, lanes: &[Arc<Lane>], life: &Lifecycle) -> Keeper {
        for lane in lanes {
            if let Some(note) = store.note(&name(lane)) {
                restore(lane, &note);
            }
            let (store, lane, own) = (store.clone(), Arc::clone(lane), life.clone());
            life.spawn("keep budgets", async move { keep_loop(&store, &lane, &own).await });
        }
        Keeper { store }
    }

    /// Writes down what is known of `lane`. That it cannot be written, or not now, is no reason not to pull.
    pub(super) async fn keep(&self, lane: &Lane) {
        if tokio::time::timeout(PATIENCE, keep(&self.store, lane)).await.is_err() {
            tracing::warn!(
                registry = lane.registry,
                "what is left of the pull quota takes too long to be written down"
            );
        }
    }
}

async fn keep_loop(store: &Store, lane: &Lane, life: &Lifecycle) {
    loop {
        tokio::select! {
            () = lane.unsaved.notified() => {}
            () = life.stopping() => return keep(store, lane).await,
        }
        tokio::select! {
            () = tokio::time::sleep(GATHER) => {}
            () = life.stopping() => {}
        }
        keep(store, lane).await;
    }
}

async fn keep(store: &Store, lane: &Lane) {
    let _alone = lane.keeping.lock().await;
    let note = Note::of(&lane.state(), Instant::now());
    if note.ledgers.is_empty() {
        return;
    }
    let bytes = serde_json::to_vec(&note).expect("numbers and texts are JSON");
    if let Err(error) = store.set_note(&name(lane), bytes).await {
        tracing::debug!(registry = lane.registry, %error, "what is left of the pull quota could not be written down");
    }
}

fn name(lane: &Lane) -> String {
    format!("budget/{}", lane.registry)
}

/// What cannot be read, or is about accounts that are gone, is learned again.
fn restore(lane: &Lane, note: &[u8]) {
    let Ok(note) = serde_json::from_slice::<Note>(note) else {
        tracing::warn!(registry = lane.registry, "what was written down of the pull quota cannot be read");
        return;
    };
    let (mut state, now) = (lane.state(), Instant::now());
    for kept in note.ledgers {
        let budget = &mut state.budget;
        let door = budget.doors.iter().position(|door| door.host == kept.endpoint);
        let purse = budget.purses.iter().position(|purse| purse.name == kept.account);
        if let (Some(door), Some(purse)) = (door, purse) {
            budget.doors[door].ledgers[purse] = kept.ledger(now);
            state.subjects[purse] = kept.subject();
        }
    }
}

#[cfg(fuzzing)]
impl super::Scheduler {
    /// Takes in a note as if the store had kept it for the first upstream; gives back what would be kept now.
    pub fn renote(&self, note: &[u8]) -> Vec<u8> {
        let lane = &self.lanes[0];
        restore(lane, note);
        serde_json::to_vec(&Note::of(&lane.state(), Instant::now())).expect("numbers and texts are JSON")
    }
}

impl Note {
    fn of(state: &State, now: Instant) -> Note {
        let mut ledgers = Vec::new();
        for door in &state.budget.doors {
            for (purse, ledger) in door.ledgers.iter().enumerate() {
                let subject = state.subjects[purse].as_ref();
                ledgers.extend(Kept::of(&door.host, &state.budget.purses[purse].name, ledger, subject, now));
            }
        }
        Note { ledgers }
    }
}

impl Kept {
    fn of(
        endpoint: &str,
        account: &str,
        ledger: &Ledger,
        subject: Option<&(RepositoryName, Reference)>,
        now: Instant,
    ) -> Option<Kept> {
        let rest = ledger.resting(now);
        let (limit, window) = match ledger.quota() {
            Quota::Limited { limit, window } => (limit, window),
            Quota::Unknown | Quota::Unlimited if rest.is_some() => (0, Duration::ZERO),
            Quota::Unknown | Quota::Unlimited => return None,
        };
        Some(Kept {
            endpoint: endpoint.to_owned(),
            account: account.to_owned(),
            limit,
            window_ms: millis(window),
            owed: ledger.owed(now).iter().map(|(left, pulls)| (millis(*left), *pulls)).collect(),
            rest_ms: rest.map(millis),
            subject: subject.map(|(repository, reference)| (repository.to_string(), reference.to_string())),
        })
    }

    fn ledger(&self, now: Instant) -> Ledger {
        let quota = match self.limit {
            0 => Quota::Unknown,
            limit => Quota::Limited { limit, window: Duration::from_millis(self.window_ms) },
        };
        let owed: Vec<(Duration, u64)> =
            self.owed.iter().map(|(left, pulls)| (Duration::from_millis(*left), *pulls)).collect();
        Ledger::restore(quota, &owed, self.rest_ms.map(Duration::from_millis), now)
    }

    fn subject(&self) -> Option<(RepositoryName, Reference)> {
        let (repository, reference) = self.subject.as_ref()?;
        Some((repository.parse().ok()?, reference.parse().ok()?))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
