//! What clients asked for in vain because nobody could be asked: what to bring next.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Error, Mirror};
use crate::lifecycle::{Lifecycle, now};
use crate::oci::{ImageReference, Reference};
use crate::routing::Target;
use crate::scheduler::Refused;
use crate::store::Store;
use crate::upstream;

/// An image that was asked for in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// By what it was asked for.
    pub image: ImageReference,
    /// How often.
    pub times: u64,
    /// When it last was.
    pub last: SystemTime,
}

/// All of them, remembered over restarts.
#[derive(Debug, Default)]
pub(super) struct Missing {
    known: Mutex<HashMap<String, Row>>,
    /// So that a hit need not look.
    count: AtomicUsize,
    has_changed: AtomicBool,
}

/// As it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    times: u64,
    /// In seconds since 1970.
    last: u64,
}

/// Names that are remembered; clients that ask for nonsense cannot make it more (I7).
const MOST: usize = 1_000;
/// A kill loses what was asked for in this time.
const EVERY: Duration = Duration::from_secs(5);
/// The note in the store.
const NOTE: &str = "missing";

impl Mirror {
    /// What was asked for in vain, what was asked for most first.
    pub fn missing(&self) -> Vec<Miss> {
        let known = self.0.missing.known().clone();
        listed(&known)
    }

    /// Forgets all of that, and says what it was.
    pub fn forget_missing(&self) -> Vec<Miss> {
        listed(&self.0.missing.change(std::mem::take))
    }
}

fn listed(known: &HashMap<String, Row>) -> Vec<Miss> {
    let mut missing: Vec<Miss> = known.iter().filter_map(|(image, row)| row.read(image)).collect();
    missing.sort_by(|one, other| {
        let name = |miss: &Miss| miss.image.to_string();
        other.times.cmp(&one.times).then_with(|| name(one).cmp(&name(other)))
    });
    missing
}

impl Missing {
    /// What was noted before, and noted again now and then until the house stops.
    pub(super) fn open(store: &Store, life: &Lifecycle) -> Arc<Missing> {
        let missing = Arc::new(Missing::default());
        let noted = store.note(NOTE).and_then(|note| serde_json::from_slice(&note).ok());
        missing.change(|known| *known = noted.unwrap_or_default());
        missing.has_changed.store(false, Ordering::Release);
        let (own, store, end) = (Arc::clone(&missing), store.clone(), life.clone());
        life.spawn("remember what is missing", async move {
            while !end.is_stopping() {
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    () = end.stopping() => {}
                }
                own.save(&store).await;
            }
        });
        missing
    }

    async fn save(&self, store: &Store) {
        if !self.has_changed.swap(false, Ordering::AcqRel) {
            return;
        }
        let note = serde_json::to_vec(&*self.known()).unwrap_or_default();
        if let Err(error) = store.set_note(NOTE, note).await {
            self.has_changed.store(true, Ordering::Release);
            tracing::debug!(%error, "what is missing could not be written down");
        }
    }

    /// It was asked for and not had, for this reason.
    pub(super) fn note(&self, target: &Target, reference: &Reference, error: &Error) {
        if is_out_of_reach(error) {
            self.lacks(target, reference);
        }
    }

    /// Whether it was asked for in vain before.
    pub(super) fn knows(&self, target: &Target, reference: &Reference) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.known().contains_key(&name(target, reference))
    }

    /// It is here now.
    pub(super) fn found(&self, target: &Target, reference: &Reference) {
        if self.knows(target, reference) {
            self.change(|known| known.remove(&name(target, reference)));
        }
    }

    fn lacks(&self, target: &Target, reference: &Reference) {
        let last = now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = name(target, reference);
        self.change(|known| {
            if known.len() >= MOST && !known.contains_key(&name) {
                // What is asked for least, and was so long ago, gives way.
                let least = known.iter().min_by_key(|(_, row)| (row.times, row.last));
                let least = least.map(|(name, _)| name.clone());
                least.map(|least| known.remove(&least));
            }
            let row = known.entry(name).or_insert(Row { times: 0, last });
            *row = Row { times: row.times + 1, last };
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<String, Row>) -> T) -> T {
        let mut known = self.known();
        let changed = change(&mut known);
        self.count.store(known.len(), Ordering::Release);
        self.has_changed.store(true, Ordering::Release);
        changed
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Row>> {
        // Each is put in whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn read(self, image: &str) -> Option<Miss> {
        let last = UNIX_EPOCH + Duration::from_secs(self.last);
        Some(Miss { image: image.parse().ok()?, times: self.times, last })
    }
}

fn name(target: &Target, reference: &Reference) -> String {
    let (registry, repository) = (target.repository.registry.clone(), target.repository.name.clone());
    ImageReference { registry, repository, reference: reference.clone() }.to_string()
}

/// Whether nobody could be asked, so that it is not known that there is no such thing.
fn is_out_of_reach(error: &Error) -> bool {
    matches!(
        error,
        Error::Offline
            | Error::Upstream(
                upstream::Error::Unreachable { .. }
                    | upstream::Error::TimedOut { .. }
                    | upstream::Error::Refused(Refused::Down(_))
            )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamId;

    #[test]
    fn no_more_than_so_many_and_what_is_asked_for_stays() {
        let missing = Missing::default();
        let target =
            Target { upstream: UpstreamId::new(0), repository: "docker.io/library/a".parse().unwrap() };
        let tag = |n: usize| format!("v{n}").parse::<Reference>().unwrap();
        let ask = |n| missing.note(&target, &tag(n), &Error::Offline);
        ask(0);
        for n in 0..2 * MOST {
            ask(n);
        }
        assert_eq!(missing.known().len(), MOST);
        assert_eq!(missing.known()["docker.io/library/a:v0"].times, 2);
        missing.found(&target, &tag(0));
        assert!(!missing.known().contains_key("docker.io/library/a:v0"));
        missing.note(&target, &tag(1), &Error::NotKept);
        assert_eq!(missing.known().len(), MOST - 1, "that says nothing");
    }
}
