use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::oci::{Repository, Tag};

/// What happened lately, in memory, for the operator's eyes: metrics tell how much, this tells what. Lost at a restart.
/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Journal(Arc<Mutex<Kept>>);

/// A request that did not get what it wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// When it last happened.
    pub at: SystemTime,
    /// To whom.
    pub client: Option<IpAddr>,
    /// What was asked for: method and path.
    pub what: String,
    /// The answer's status.
    pub status: u16,
    /// In a word.
    pub reason: &'static str,
    /// What happened, and what may be done about it.
    pub message: String,
    /// How often in a row.
    pub times: u64,
}

#[derive(Debug, Default)]
struct Kept {
    troubles: VecDeque<Trouble>,
    asked: HashMap<(Repository, Tag), u64>,
}

/// Of troubles the last so many are kept.
const MOST_TROUBLES: usize = 100;
/// Tags that are counted at once; beyond that what is asked for seldom is forgotten.
const MOST_TAGS: usize = 1_000;

impl Journal {
    /// Something went wrong. The same as the last one is counted with it.
    pub fn trouble(&self, trouble: Trouble) {
        let mut kept = self.kept();
        let is_same = |last: &&mut Trouble| {
            (&last.what, last.status, last.reason) == (&trouble.what, trouble.status, trouble.reason)
        };
        if let Some(last) = kept.troubles.back_mut().filter(is_same) {
            *last = Trouble { times: last.times + trouble.times, ..trouble };
            return;
        }
        if kept.troubles.len() == MOST_TROUBLES {
            kept.troubles.pop_front();
        }
        kept.troubles.push_back(trouble);
    }

    /// A client asked for a tag and got it.
    pub fn pulled(&self, repository: &Repository, tag: &Tag) {
        let mut kept = self.kept();
        if let Some(count) = kept.asked.get_mut(&(repository.clone(), tag.clone())) {
            *count += 1;
            return;
        }
        if kept.asked.len() >= MOST_TAGS {
            kept.asked.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
        }
        // All of them are asked for often: this one is not, yet.
        if kept.asked.len() < MOST_TAGS {
            kept.asked.insert((repository.clone(), tag.clone()), 1);
        }
    }

    /// The last troubles, the latest first.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.kept().troubles.iter().rev().cloned().collect()
    }

    /// The `most` tags that were asked for most often since the start, with how often. Where there are more tags than can
    /// be counted, what was long ago counts less.
    pub fn popular(&self, most: usize) -> Vec<(Repository, Tag, u64)> {
        let kept = self.kept();
        let mut all: Vec<_> = kept.asked.iter().map(|((name, tag), count)| (name, tag, *count)).collect();
        all.sort_unstable_by(|one, other| {
            other.2.cmp(&one.2).then_with(|| (one.0, one.1).cmp(&(other.0, other.1)))
        });
        all.into_iter().take(most).map(|(name, tag, count)| (name.clone(), tag.clone(), count)).collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each is put in whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(what: &str) -> Trouble {
        let (at, what) = (SystemTime::UNIX_EPOCH, what.to_owned());
        Trouble { at, client: None, what, status: 502, reason: "down", message: String::new(), times: 1 }
    }

    #[test]
    fn the_latest_first_and_the_same_once() {
        let journal = Journal::default();
        for what in ["a", "a", "b", "a"] {
            journal.trouble(trouble(what));
        }
        let told: Vec<_> = journal.troubles().into_iter().map(|it| (it.what, it.times)).collect();
        assert_eq!(told, [("a".to_owned(), 1), ("b".to_owned(), 1), ("a".to_owned(), 2)]);
        for n in 0..2 * MOST_TROUBLES {
            journal.trouble(trouble(&n.to_string()));
        }
        assert_eq!(journal.troubles().len(), MOST_TROUBLES);
        assert_eq!(journal.troubles()[0].what, (2 * MOST_TROUBLES - 1).to_string());
    }

    #[test]
    fn what_is_asked_for_often_is_kept_in_mind() {
        let (journal, name) = (Journal::default(), "docker.io/library/a".parse::<Repository>().unwrap());
        let tag = |n: usize| format!("v{n}").parse::<Tag>().unwrap();
        for _ in 0..10 {
            journal.pulled(&name, &tag(0));
        }
        for n in 1..5 * MOST_TAGS {
            journal.pulled(&name, &tag(n));
            assert!(journal.kept().asked.len() <= MOST_TAGS);
        }
        journal.pulled(&name, &tag(0));
        let popular = journal.popular(2);
        assert_eq!((popular.len(), popular[0].1.as_str()), (2, "v0"));
    }
}
