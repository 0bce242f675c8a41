use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::spans::Spans;

/// Who fetches what of a blob: the first connection, which goes on from where it is to the end, and others beside it,
/// each of which is handed the lowest part that nobody has. What they do not bring is handed out again.
#[derive(Debug)]
pub(super) struct Parts {
    // A std lock: held for a look, never over an await.
    division: Mutex<Division>,
    returned: Notify,
    recalled: Notify,
}

/// One that is being fetched. What has not come of it when this is dropped is handed out again.
#[derive(Debug)]
pub(super) struct Part {
    parts: Arc<Parts>,
    left: Range<u64>,
}

#[derive(Debug)]
struct Division {
    total: u64,
    /// The first connection's own.
    own: Range<u64>,
    /// Nobody's yet.
    free: Spans,
    /// So many are being fetched by others.
    out: usize,
}

/// Parts are no smaller: each costs a request, and the time until its first byte.
pub(super) const SMALLEST: u64 = 8 << 20;
/// Nor larger: what has come of one is lost at a stop, as long as something in front of it is missing.
const LARGEST: u64 = 64 << 20;
/// Parts for each connection that a blob is divided into, so that the last ones end together.
const FOR_EACH: u64 = 4;
/// Where a part begins. File systems see gaps as long as their blocks.
const ALIGNMENT: u64 = 1 << 20;

impl Parts {
    /// All of a blob of `total` bytes for the first connection, from byte `from` on. An end that is not known is beyond
    /// everything.
    pub(super) fn new(from: u64, total: Option<u64>) -> Parts {
        let total = total.unwrap_or(u64::MAX);
        let division = Division { total, own: from..total, free: Spans::default(), out: 0 };
        Parts { division: Mutex::new(division), returned: Notify::new(), recalled: Notify::new() }
    }

    /// Where the first connection's own part ends now.
    pub(super) fn end(&self) -> u64 {
        self.division().own.end
    }

    /// How many bytes nobody fetches yet, but for the first connection, which is at them.
    pub(super) fn left(&self) -> u64 {
        self.division().left()
    }

    /// The first connection has brought `count` bytes from `offset` on. How many of them are its own to bring.
    pub(super) fn came(&self, offset: u64, count: usize) -> usize {
        let mut division = self.division();
        let end = division.own.end.min(offset + count as u64).max(offset);
        division.own.start = end;
        // Lossless: it is at most `count`.
        (end - offset) as usize
    }

    /// The next part for the first connection, when it is at the end of its own: as much as there is, where nobody else
    /// fetches any. Waits for what others may give back, and recalls it after each `patience`; `None` when they have
    /// brought everything. Cancel-safe.
    pub(super) async fn next(&self, patience: Duration) -> Option<Range<u64>> {
        loop {
            {
                let mut division = self.division();
                let part = division.go_on();
                if part.is_some() || division.out == 0 {
                    return part;
                }
            }
            if timeout(patience, self.returned.notified()).await.is_err() {
                self.recalled.notify_waiters();
            }
        }
    }

    /// A part for one of `connections`, of how many bytes in all; `None` where what is left is not worth one.
    pub(super) fn hand_out(self: &Arc<Self>, connections: usize) -> Option<(Part, u64)> {
        let mut division = self.division();
        let left = division.hand_out(connections)?;
        let total = division.total;
        drop(division);
        Some((Part { parts: Arc::clone(self), left }, total))
    }

    fn division(&self) -> MutexGuard<'_, Division> {
        // Every change is whole before the lock is let go.
        self.division.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// What has yet to come.
    pub(super) fn left(&self) -> &Range<u64> {
        &self.left
    }

    /// Waits until the first connection wants it back.
    pub(super) async fn recalled(&self) {
        self.parts.recalled.notified().await;
    }

    /// So many bytes came.
    pub(super) fn came(&mut self, count: usize) {
        self.left.start = (self.left.start + count as u64).min(self.left.end);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut division = self.parts.division();
        division.free.add(self.left.clone());
        division.out -= 1;
        drop(division);
        self.parts.returned.notify_one();
    }
}

impl Division {
    fn left(&self) -> u64 {
        self.free.sum() + (self.own.end - self.own.start)
    }

    fn hand_out(&mut self, connections: usize) -> Option<Range<u64>> {
        let size = self.size(connections);
        if self.free.first().is_none() {
            let cut = (self.own.start + size).next_multiple_of(ALIGNMENT);
            if cut + SMALLEST > self.own.end {
                return None;
            }
            self.free.add(cut..self.own.end);
            self.own.end = cut;
        }
        let part = self.take_free(size)?;
        self.out += 1;
        Some(part)
    }

    fn go_on(&mut self) -> Option<Range<u64>> {
        let size = if self.out == 0 { u64::MAX } else { self.size(self.out + 1) };
        let part = self.take_free(size)?;
        self.own = part.clone();
        Some(part)
    }

    fn size(&self, connections: usize) -> u64 {
        (self.left() / (FOR_EACH * connections.max(1) as u64)).clamp(SMALLEST, LARGEST)
    }

    /// The lowest part that nobody has, of about this size.
    fn take_free(&mut self, size: u64) -> Option<Range<u64>> {
        let first = self.free.first()?;
        let end = first.start.saturating_add(size).checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        // A crumb is not worth a request.
        let most = if first.end < end.saturating_add(SMALLEST / 2) { u64::MAX } else { end - first.start };
        self.free.take_first(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn the_lowest_first_and_none_too_small() {
        let parts = Arc::new(Parts::new(0, Some(256 * MIB)));
        let [one, two, three] = [2, 2, 2].map(|connections| parts.hand_out(connections).unwrap().0);
        assert_eq!(*one.left(), 32 * MIB..64 * MIB);
        assert_eq!((two.left().start, three.left().start), (64 * MIB, two.left().end));
        assert_eq!(parts.end(), 32 * MIB);
        for (length, is_worth_it) in [(0, false), (15 * MIB, false), (16 * MIB, true)] {
            assert_eq!(Arc::new(Parts::new(0, Some(length))).hand_out(2).is_some(), is_worth_it, "{length}");
        }
        assert!(Arc::new(Parts::new(250 * MIB, Some(256 * MIB))).hand_out(8).is_none());
    }

    #[tokio::test]
    async fn what_others_do_not_bring_comes_back() {
        let parts = Arc::new(Parts::new(0, Some(64 * MIB)));
        let [mut one, two] = [4, 4].map(|connections| parts.hand_out(connections).unwrap().0);
        let (start, end) = (one.left().start, two.left().end);
        one.came(3 << 20);
        assert_eq!(parts.came(0, 60 << 20), 8 << 20, "the rest is for others to bring");
        drop(one);
        assert_eq!(parts.next(PATIENCE).await, Some(start + 3 * MIB..start + 8 * MIB));
        assert_eq!(parts.next(PATIENCE).await, Some(end..end + 8 * MIB), "others are at work");
        while parts.division().free.first().is_some() {
            parts.next(PATIENCE).await.unwrap();
        }
        let mut waiting = std::pin::pin!(parts.next(PATIENCE));
        assert!(futures_util::poll!(&mut waiting).is_pending(), "the second one may come back");
        drop(two);
        assert_eq!(waiting.await, Some(end - 8 * MIB..end), "nobody else is");
        assert_eq!(parts.next(PATIENCE).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_is_asked_for_it_back() {
        let parts = Arc::new(Parts::new(0, Some(16 * MIB)));
        let (part, _) = parts.hand_out(4).unwrap();
        let slow = async {
            part.recalled().await;
            drop(part);
        };
        let (next, ()) = tokio::join!(parts.next(PATIENCE), slow);
        assert_eq!(next, Some(8 * MIB..16 * MIB));
    }

    proptest! {
        /// Whoever fetches how much of what, and whatever fails: each byte is brought once.
        #[test]
        fn each_byte_once(length in 0..200 * MIB, steps in prop::collection::vec((0..3u8, 0..20u64, 1..9usize), 0..80)) {
            let parts = Arc::new(Parts::new(0, Some(length)));
            let (mut brought, mut out) = (Spans::default(), Vec::new());
            let mut bring = |range: Range<u64>, before: u64| {
                brought.add(range.clone());
                assert_eq!(brought.sum(), before + (range.end - range.start), "{range:?} came twice");
                brought.sum()
            };
            let (mut sum, mut own) = (0, 0..length);
            for (what, amount, connections) in steps {
                match what {
                    0 => out.extend(parts.hand_out(connections).map(|(part, _)| part)),
                    1 => {
                        let count = parts.came(own.start, usize::try_from(amount * MIB).unwrap()) as u64;
                        sum = bring(own.start..own.start + count, sum);
                        own.start += count;
                    }
                    _ if out.is_empty() => {}
                    _ => {
                        let mut part: Part = out.swap_remove(usize::try_from(amount).unwrap() % out.len());
                        let count = (amount * MIB).min(part.left().end - part.left().start);
                        sum = bring(part.left().start..part.left().start + count, sum);
                        part.came(usize::try_from(count).unwrap());
                    }
                }
            }
            drop(out);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            sum = bring(own.start..parts.end(), sum);
            while let Some(part) = runtime.block_on(parts.next(PATIENCE)) {
                sum = bring(part, sum);
            }
            prop_assert_eq!(sum, length);
        }
    }
}
