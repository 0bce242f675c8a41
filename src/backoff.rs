//! How long to wait before trying again: growing, bounded, jittered.

use std::time::Duration;

use rand::RngExt;

/// Waits that double from `first` to `longest`.
///
/// Each is drawn from the upper half of its span, so that many who fail together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Starts at `first`; never longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { next: first.min(longest), longest }
    }

    /// How long to wait this time.
    pub fn wait(&mut self) -> Duration {
        let span = self.next;
        self.next = (span * 2).min(self.longest);
        span.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_stays_bounded() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for (least, most) in [(50, 100), (100, 200), (150, 300), (150, 300)] {
            let wait = backoff.wait();
            assert!(wait >= Duration::from_millis(least) && wait <= Duration::from_millis(most), "{wait:?}");
        }
    }
}
