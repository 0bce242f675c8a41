//! Who pulls: counted requests of the last hour by client and by repository.

use std::collections::HashMap;
use std::fmt::Display;

use tokio::time::Instant;

use super::hour::Hour;

/// Pulls of the last hour, most first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spent {
    /// By client address.
    pub clients: Vec<(String, u64)>,
    /// By repository.
    pub repositories: Vec<(String, u64)>,
}

#[derive(Debug)]
pub(super) struct Spenders {
    clients: Hour<HashMap<String, u64>>,
    repositories: Hour<HashMap<String, u64>>,
}

/// Names that are told apart in five minutes; what comes on top counts as others'.
const MOST_NAMES: usize = 500;
const OTHERS: &str = "(others)";
/// Names that are shown.
const TOP: usize = 10;

impl Spenders {
    pub(super) fn new(now: Instant) -> Spenders {
        Spenders { clients: Hour::new(now), repositories: Hour::new(now) }
    }

    /// One counted request.
    pub(super) fn count(&mut self, client: impl Display, repository: impl Display, now: Instant) {
        add(self.clients.slot(now), client.to_string());
        add(self.repositories.slot(now), repository.to_string());
    }

    pub(super) fn top(&self, now: Instant) -> Spent {
        Spent { clients: top(&self.clients, now), repositories: top(&self.repositories, now) }
    }
}

fn add(counts: &mut HashMap<String, u64>, name: String) {
    let is_known = counts.len() < MOST_NAMES || counts.contains_key(&name);
    *counts.entry(if is_known { name } else { OTHERS.to_owned() }).or_default() += 1;
}

fn top(hour: &Hour<HashMap<String, u64>>, now: Instant) -> Vec<(String, u64)> {
    let mut sums: HashMap<&str, u64> = HashMap::new();
    for (name, count) in hour.recent(now).flatten() {
        *sums.entry(name).or_default() += count;
    }
    let mut sums: Vec<(String, u64)> =
        sums.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    sums.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    sums.truncate(TOP);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_first_and_a_bound_on_names() {
        let now = Instant::now();
        let mut spenders = Spenders::new(now);
        for client in 0..MOST_NAMES + 50 {
            spenders.count(format!("10.0.{}.{}", client / 250, client % 250), "library/app", now);
        }
        spenders.count("10.0.0.7", "library/base", now);
        let Spent { clients, repositories } = spenders.top(now);
        assert_eq!(clients[..2], [(OTHERS.to_owned(), 50), ("10.0.0.7".to_owned(), 2)]);
        assert_eq!((clients.len(), repositories.len()), (TOP, 2));
        assert_eq!(repositories[1], ("library/base".to_owned(), 1));
    }
}
