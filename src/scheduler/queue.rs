//! Who goes next: by priority, then fairly between clients, then by arrival. Plain judgement, no clock.
//!
//! Start-time fair queueing: each request of a client stands one place behind that client's last one, or at the
//! head of the line where it has none waiting. A farm that asks for a thousand things at once stands in places
//! 1 to 1000, and whoever comes next stands in place 1.

use std::collections::{BTreeMap, HashMap};

use super::{ClientAddr, Priority};

/// Waiters in the order in which they may go.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: BTreeMap<Rank, Waiter<T>>,
    ranks: HashMap<WaiterId, Rank>,
    /// How far each class has come, and each client in it.
    classes: [Class; Priority::ALL.len()],
    arrivals: u64,
}

/// A waiter, for as long as it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WaiterId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: Priority,
    place: u64,
    arrival: u64,
}

#[derive(Debug)]
struct Waiter<T> {
    client: ClientAddr,
    content: T,
}

#[derive(Debug, Default)]
struct Class {
    /// The place of whoever went last.
    served: u64,
    /// Each waiting client's last place, and how many it has.
    clients: HashMap<ClientAddr, (u64, usize)>,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Queue { waiting: BTreeMap::new(), ranks: HashMap::new(), classes: Default::default(), arrivals: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Puts a waiter in its place.
    pub(super) fn push(&mut self, priority: Priority, client: ClientAddr, content: T) -> WaiterId {
        self.arrivals += 1;
        let id = WaiterId(self.arrivals);
        self.insert(id, priority, Waiter { client, content });
        id
    }

    /// Takes a waiter out, whether it goes or goes away.
    pub(super) fn remove(&mut self, id: WaiterId, goes: bool) -> Option<T> {
        let (rank, waiter) = self.take(id, goes)?;
        if goes {
            let class = &mut self.classes[rank.priority as usize];
            class.served = class.served.max(rank.place);
        }
        Some(waiter.content)
    }

    /// Gives a waiter a higher priority, at the end of its client's line there; among equals it has come first.
    pub(super) fn raise(&mut self, id: WaiterId, to: Priority) {
        if self.ranks.get(&id).is_none_or(|rank| rank.priority <= to) {
            return;
        }
        if let Some((_, waiter)) = self.take(id, false) {
            self.insert(id, to, waiter);
        }
    }

    /// Takes out whoever would go last of all.
    pub(super) fn pop_last(&mut self) -> Option<T> {
        let id = self.waiting.last_key_value().map(|(rank, _)| WaiterId(rank.arrival))?;
        self.remove(id, false)
    }

    /// A waiter and how urgent it is.
    pub(super) fn get(&self, id: WaiterId) -> Option<(Priority, &T)> {
        let rank = self.ranks.get(&id)?;
        Some((rank.priority, &self.waiting.get(rank)?.content))
    }

    /// Changes what is kept of a waiter.
    pub(super) fn change(&mut self, id: WaiterId, change: impl FnOnce(&mut T)) {
        if let Some(waiter) = self.ranks.get(&id).and_then(|rank| self.waiting.get_mut(rank)) {
            change(&mut waiter.content);
        }
    }

    /// Whoever goes next.
    pub(super) fn first(&self) -> Option<WaiterId> {
        self.waiting.first_key_value().map(|(rank, _)| WaiterId(rank.arrival))
    }

    /// All waiters in order.
    pub(super) fn ids(&self) -> Vec<WaiterId> {
        self.waiting.keys().map(|rank| WaiterId(rank.arrival)).collect()
    }

    /// What is kept of them, in order.
    pub(super) fn contents(&self) -> impl Iterator<Item = &T> {
        self.waiting.values().map(|waiter| &waiter.content)
    }

    /// How urgent they are, in order.
    pub(super) fn priorities(&self) -> impl Iterator<Item = Priority> {
        self.waiting.keys().map(|rank| rank.priority)
    }

    fn insert(&mut self, id: WaiterId, priority: Priority, waiter: Waiter<T>) {
        let class = &mut self.classes[priority as usize];
        let (last, count) = class.clients.entry(waiter.client).or_insert((class.served, 0));
        *last = class.served.max(*last) + 1;
        *count += 1;
        let rank = Rank { priority, place: *last, arrival: id.0 };
        self.ranks.insert(id, rank);
        self.waiting.insert(rank, waiter);
    }

    fn take(&mut self, id: WaiterId, goes: bool) -> Option<(Rank, Waiter<T>)> {
        let rank = self.ranks.remove(&id)?;
        let waiter = self.waiting.remove(&rank)?;
        let clients = &mut self.classes[rank.priority as usize].clients;
        if let Some((last, count)) = clients.get_mut(&waiter.client) {
            *count -= 1;
            if !goes && rank.place == *last {
                // Whoever goes away at the end of a line makes it no longer for its client's next request.
                *last -= 1;
            }
            if *count == 0 {
                // Its next request begins at the head of the line again.
                clients.remove(&waiter.client);
            }
        }
        Some((rank, waiter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> ClientAddr {
        ClientAddr::of(std::net::IpAddr::from([10, 0, 0, number]))
    }

    fn served(queue: &mut Queue<&'static str>) -> Vec<&'static str> {
        let mut order = Vec::new();
        loop {
            let Some(id) = queue.ids().first().copied() else { return order };
            order.extend(queue.remove(id, true));
        }
    }

    #[test]
    fn by_priority_then_in_turn_then_by_arrival() {
        let mut queue = Queue::new();
        queue.push(Priority::Background, client(1), "warm");
        for content in ["farm 1", "farm 2", "farm 3"] {
            queue.push(Priority::Foreground, client(1), content);
        }
        queue.push(Priority::Revalidation, client(2), "check");
        queue.push(Priority::Foreground, client(2), "laptop 1");
        queue.push(Priority::Foreground, client(2), "laptop 2");
        assert_eq!(
            served(&mut queue),
            ["farm 1", "laptop 1", "farm 2", "laptop 2", "farm 3", "check", "warm"]
        );
    }

    #[test]
    fn who_comes_late_does_not_wait_behind_a_whole_farm() {
        let mut queue = Queue::new();
        let farm: Vec<WaiterId> =
            (0..100).map(|_| queue.push(Priority::Foreground, client(1), "farm")).collect();
        for id in &farm[..50] {
            queue.remove(*id, true);
        }
        queue.push(Priority::Foreground, client(2), "laptop");
        let order = served(&mut queue);
        assert!(order.iter().position(|content| *content == "laptop").unwrap() <= 1, "{order:?}");
    }

    #[test]
    fn who_goes_away_does_not_hold_back_its_client() {
        let mut queue = Queue::new();
        queue.push(Priority::Foreground, client(1), "stays");
        for _ in 0..100 {
            let gone = queue.push(Priority::Foreground, client(1), "goes away");
            queue.remove(gone, false);
        }
        for content in ["farm 1", "farm 2", "farm 3"] {
            queue.push(Priority::Foreground, client(2), content);
        }
        queue.push(Priority::Foreground, client(1), "comes again");
        assert_eq!(served(&mut queue), ["stays", "farm 1", "farm 2", "comes again", "farm 3"]);
    }

    #[test]
    fn a_raised_waiter_goes_with_its_new_class() {
        let mut queue = Queue::new();
        let ahead = queue.push(Priority::Background, client(1), "read ahead");
        queue.push(Priority::Foreground, client(2), "pull");
        queue.push(Priority::Revalidation, client(2), "check");
        queue.raise(ahead, Priority::Foreground);
        queue.raise(ahead, Priority::Background);
        assert_eq!(served(&mut queue), ["read ahead", "pull", "check"]);
        assert!(queue.is_empty() && queue.remove(ahead, false).is_none());
    }
}
