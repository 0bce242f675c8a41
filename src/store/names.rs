use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use super::{Name, Stamp};
use crate::oci::Repository;

/// What hot names mean, in memory: a look into the index was a fifth of the work for a tag.
///
/// Whoever changes a name in the index has it forgotten here once that is on disk. What somebody read before, and is about
/// to have held, is not held then.
#[derive(Debug, Default)]
pub(super) struct Names(RwLock<Held>);

#[derive(Debug, Default)]
struct Held {
    stamps: HashMap<Repository, HashMap<Name, Stamp>>,
    count: usize,
    /// How often something was forgotten.
    changes: u64,
}

/// Names that are held; beyond that all are forgotten, and learned again (I7).
const MOST_NAMES: usize = 10_000;

impl Names {
    /// What it means, as `index` says where that is not held. The index is asked without a lock: its writer forgets names
    /// here while it holds its own.
    pub(super) fn get(
        &self,
        repository: &Repository,
        name: &Name,
        index: impl FnOnce() -> Option<Stamp>,
    ) -> Option<Stamp> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(stamp) = held.stamps.get(repository).and_then(|names| names.get(name)) {
            return Some(stamp.clone());
        }
        let changes = held.changes;
        drop(held);
        let stamp = index()?;
        let mut held = self.write();
        if held.changes == changes {
            held.hold(repository, name, stamp.clone());
        }
        Some(stamp)
    }

    /// It may mean something else from now on.
    pub(super) fn forget(&self, repository: &Repository, name: &Name) {
        let mut held = self.write();
        held.changes += 1;
        let Some(names) = held.stamps.get_mut(repository) else { return };
        let was_held = names.remove(name).is_some();
        let is_empty = names.is_empty();
        held.count -= usize::from(was_held);
        if is_empty {
            held.stamps.remove(repository);
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        // Each is put in whole.
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn hold(&mut self, repository: &Repository, name: &Name, stamp: Stamp) {
        if self.count >= MOST_NAMES {
            (self.stamps, self.count) = (HashMap::new(), 0);
        }
        let names = self.stamps.entry(repository.clone()).or_default();
        self.count += usize::from(names.insert(name.clone(), stamp).is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    fn stamp(text: &str) -> Stamp {
        let (now, digest) = (crate::lifecycle::now(), Digest::of(Algorithm::Sha256, text.as_bytes()));
        Stamp { digest, size: 1, media_type: String::new(), since: now, confirmed: now }
    }

    #[test]
    fn as_the_index_says_until_that_changes() {
        let (names, repository) = (Names::default(), "docker.io/library/x".parse::<Repository>().unwrap());
        let tag = |text: &str| Name::Tag(text.parse().unwrap());
        let held = |name| names.get(&repository, &tag(name), || None);
        let (one, two) = (stamp("1"), stamp("2"));
        assert_eq!(held("a"), None);
        assert_eq!(names.get(&repository, &tag("a"), || Some(one.clone())), Some(one.clone()));
        assert_eq!((held("a"), held("b")), (Some(one.clone()), None));
        names.forget(&repository, &tag("b"));
        names.forget(&repository, &tag("a"));
        assert_eq!(held("a"), None);
        assert!(names.write().stamps.is_empty());
        assert_eq!(names.write().count, 0);
        // Changed while somebody reads.
        let read = names.get(&repository, &tag("a"), || {
            names.forget(&repository, &tag("a"));
            Some(one.clone())
        });
        assert_eq!((read, held("a")), (Some(one), None));
        assert_eq!(names.get(&repository, &tag("a"), || Some(two.clone())), Some(two));
    }

    #[test]
    fn no_more_than_so_many() {
        let (names, repository) = (Names::default(), "docker.io/library/x".parse::<Repository>().unwrap());
        let one = stamp("1");
        for number in 0..=MOST_NAMES {
            let name = Name::Tag(number.to_string().parse().unwrap());
            names.get(&repository, &name, || Some(one.clone()));
        }
        assert_eq!(names.write().count, 1);
    }
}
