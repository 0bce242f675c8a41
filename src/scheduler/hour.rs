//! The last hour, in slots of five minutes that are forgotten one by one.

use std::time::Duration;

use tokio::time::Instant;

/// A value for each slot of the last hour.
#[derive(Debug, Clone)]
pub(super) struct Hour<T> {
    begun: Instant,
    /// The newest last; `current` is its number since `begun`.
    slots: [T; SLOTS],
    current: u64,
}

const SLOTS: usize = 12;
const SLOT: Duration = Duration::from_secs(300);

impl<T: Default> Hour<T> {
    /// Nothing yet.
    pub(super) fn new(now: Instant) -> Self {
        Hour { begun: now, slots: std::array::from_fn(|_| T::default()), current: 0 }
    }

    /// The slot of now.
    pub(super) fn slot(&mut self, now: Instant) -> &mut T {
        let number = self.number(now);
        for _ in self.current..number.min(self.current + SLOTS as u64) {
            self.slots.rotate_left(1);
            self.slots[SLOTS - 1] = T::default();
        }
        self.current = self.current.max(number);
        &mut self.slots[SLOTS - 1]
    }

    /// The slots that are still within the hour.
    pub(super) fn recent(&self, now: Instant) -> impl Iterator<Item = &T> {
        let gone = self.number(now).saturating_sub(self.current).min(SLOTS as u64);
        self.slots.iter().skip(usize::try_from(gone).unwrap_or(SLOTS))
    }

    /// How much time the slots speak of: an hour, or less soon after the beginning.
    pub(super) fn span(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begun).clamp(SLOT, SLOT * SLOTS as u32)
    }

    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs() / SLOT.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_slot_by_slot() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut hour: Hour<u64> = Hour::new(start);
        let sum = |hour: &Hour<u64>, now| hour.recent(now).sum::<u64>();
        *hour.slot(at(0)) += 1;
        *hour.slot(at(4)) += 1;
        *hour.slot(at(30)) += 5;
        assert_eq!([sum(&hour, at(30)), sum(&hour, at(59)), sum(&hour, at(60))], [7, 7, 5]);
        assert_eq!([sum(&hour, at(89)), sum(&hour, at(90)), sum(&hour, at(100_000))], [5, 0, 0]);
        *hour.slot(at(95)) += 2;
        assert_eq!(sum(&hour, at(96)), 2);
        assert_eq!([hour.span(at(0)), hour.span(at(20)), hour.span(at(500))], [SLOT, SLOT * 4, SLOT * 12]);
    }
}
