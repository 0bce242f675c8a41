//! How fast bytes may come: bytes a second, by time of day.
//!
//! Who has received bytes pays for them before it reads on, so that the first ones of all come at once and what is not
//! read yet is held back by the upstream's own flow control. Turns go as in [`queue`](super::queue): the more urgent
//! first, then fairly between clients.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::queue::{Queue, WaiterId};
use super::{ClientAddr, Urgency};
use crate::config::Bandwidth;
use crate::lifecycle::time_of_day;

/// A limit, and who waits for it.
#[derive(Debug)]
pub(super) struct Line {
    limit: ArcSwap<Bandwidth>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When all that came is paid for.
    free_at: Instant,
    queue: Queue<Arc<Notify>>,
    /// The limit now, and when it was found.
    rate: Option<u64>,
    looked: Instant,
}

/// Leaves the queue when dropped.
struct Place<'a> {
    line: &'a Line,
    id: WaiterId,
}

/// So much that was not used is made up for: timers go off late.
const CREDIT: Duration = Duration::from_millis(100);
/// The limit may be another one by then.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Line {
    pub(super) fn new(limit: &Bandwidth) -> Line {
        let now = Instant::now();
        let state = State { free_at: now, queue: Queue::new(), rate: limit.at(time_of_day()), looked: now };
        Line { limit: ArcSwap::from_pointee(limit.clone()), state: Mutex::new(state) }
    }

    /// The operator allows something else from now on.
    pub(super) fn configure(&self, limit: &Bandwidth) {
        if **self.limit.load() == *limit {
            return;
        }
        self.limit.store(Arc::new(limit.clone()));
        let mut state = self.state();
        // What came under another limit is paid for by it.
        let now = Instant::now();
        (state.free_at, state.rate, state.looked) = (now, limit.at(time_of_day()), now);
        state.wake_first();
    }

    /// Whether there is a limit now.
    pub(super) fn is_limited(&self) -> bool {
        !self.limit.load().is_unlimited() && self.limit.load().at(time_of_day()).is_some()
    }

    /// Counts bytes without waiting: a small body that was read whole.
    pub(super) fn note(&self, bytes: u64) {
        if !self.limit.load().is_unlimited() {
            let now = Instant::now();
            let mut state = self.state();
            let rate = self.rate(&mut state, now);
            state.spend(bytes, rate, now);
        }
    }

    /// Waits until so many bytes are paid for. Cancel-safe: who goes away has not paid.
    pub(super) async fn pay(&self, bytes: u64, client: ClientAddr, urgency: &Urgency) {
        if self.limit.load().is_unlimited() {
            return;
        }
        let mut priority = urgency.get();
        let woken = Arc::new(Notify::new());
        let place = {
            let mut state = self.state();
            if state.queue.is_empty() && self.goes(&mut state, bytes) {
                return;
            }
            let id = state.queue.push(priority, client, Arc::clone(&woken));
            Place { line: self, id }
        };
        loop {
            let turn = {
                let mut state = self.state();
                if state.queue.first() != Some(place.id) {
                    None
                } else if self.goes(&mut state, bytes) {
                    state.queue.remove(place.id, true);
                    return;
                } else {
                    Some(state.free_at)
                }
            };
            // One that is not the first is woken when it is; the limit may have changed by the time of day.
            let look_at = Instant::now() + LOOK_EVERY;
            tokio::select! {
                () = tokio::time::sleep_until(turn.map_or(look_at, |turn| turn.min(look_at))) => {}
                () = woken.notified() => {}
                raised = urgency.rises_above(priority) => {
                    priority = raised;
                    self.state().queue.raise(place.id, raised);
                }
            }
        }
    }

    /// Whether the line is free; then it is used.
    fn goes(&self, state: &mut State, bytes: u64) -> bool {
        let now = Instant::now();
        let rate = self.rate(state, now);
        if rate.is_some() && state.free_at > now {
            return false;
        }
        state.spend(bytes, rate, now);
        true
    }

    fn rate(&self, state: &mut State, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(state.looked) >= LOOK_EVERY {
            (state.rate, state.looked) = (self.limit.load().at(time_of_day()), now);
        }
        state.rate
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before the lock is let go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn spend(&mut self, bytes: u64, rate: Option<u64>, now: Instant) {
        let Some(rate) = rate else { return };
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let took = Duration::try_from_secs_f64(bytes as f64 / rate as f64).unwrap_or_default();
        self.free_at = self.free_at.max(earliest) + took;
    }

    fn wake_first(&self) {
        if let Some((_, woken)) = self.queue.first().and_then(|id| self.queue.get(id)) {
            woken.notify_one();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state();
        state.queue.remove(self.id, false);
        state.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::super::Priority;
    use super::*;
    use crate::lifecycle::Lifecycle;

    fn line(limit: &str) -> Arc<Line> {
        Arc::new(Line::new(&Bandwidth(vec![limit.parse().unwrap()])))
    }

    async fn bring(line: Arc<Line>, pieces: usize, priority: Priority) -> Instant {
        let urgency = Urgency::new(priority);
        for _ in 0..pieces {
            line.pay(10_000, ClientAddr::NOBODY, &urgency).await;
        }
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn many_together_are_as_fast_as_the_limit() {
        let (line, begun) = (line("1MB"), Instant::now());
        let mut all = JoinSet::new();
        for _ in 0..5 {
            all.spawn(bring(Arc::clone(&line), 100, Priority::Foreground));
        }
        all.join_all().await;
        let took = begun.elapsed().as_secs_f64();
        assert!((4.8..5.2).contains(&took), "5 MB at 1 MB/s took {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_comes_last() {
        let (line, begun) = (line("1MB"), Instant::now());
        let background =
            Lifecycle::default().spawn("a transfer", bring(Arc::clone(&line), 100, Priority::Background));
        let foreground =
            Lifecycle::default().spawn("a transfer", bring(Arc::clone(&line), 100, Priority::Foreground));
        let (background, foreground) = (background.await.unwrap(), foreground.await.unwrap());
        let took = |end: Instant| end.duration_since(begun).as_secs_f64();
        assert!(took(foreground) < 1.2, "alone it takes 1 s, and it took {}", took(foreground));
        assert!(took(background) > 1.8, "{}", took(background));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_somebody_joins_goes_on_at_once() {
        let (line, begun) = (line("1MB"), Instant::now());
        let other =
            Lifecycle::default().spawn("a transfer", bring(Arc::clone(&line), 300, Priority::Foreground));
        let urgency = Urgency::new(Priority::Background);
        line.pay(10_000, ClientAddr::NOBODY, &urgency).await;
        let raised = urgency.clone();
        Lifecycle::default().spawn("a transfer", async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            raised.raise(Priority::Foreground);
        });
        line.pay(10_000, ClientAddr::NOBODY, &urgency).await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        other.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_limit_holds_at_once_and_whoever_went_away_is_not_waited_for() {
        let line = line("1KB");
        let begun = Instant::now();
        let urgency = Urgency::new(Priority::Foreground);
        line.pay(1_000_000, ClientAddr::NOBODY, &urgency).await;
        let gone =
            Lifecycle::default().spawn("a transfer", bring(Arc::clone(&line), 1, Priority::Foreground));
        tokio::task::yield_now().await;
        let waits =
            Lifecycle::default().spawn("a transfer", bring(Arc::clone(&line), 1, Priority::Background));
        tokio::task::yield_now().await;
        gone.abort();
        line.configure(&Bandwidth::default());
        waits.await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
