//! Virtual time, for tests that live through a day.
//!
//! With the runtime's clock paused, tokio moves it to the next timer whenever nothing is to be done, also
//! while an answer is on its way through the kernel: time limits would run out for no reason. [`Frozen`]
//! stops that. All of the work then takes no time, and the clock moves when the test says so.
//!
//! ```text
//!  #[tokio::test(start_paused = true)]
//!  let clock = Frozen::new();          // first, so that it is dropped last
//!  clock.advance(HOUR).await;
//! ```
//!
//! [`super::eventually`] waits by the clock and so for ever: use [`rest`].

use std::sync::mpsc;
use std::time::Duration;

use tokio::time::{self, Instant};

use super::eventually::patience;

/// Keeps a paused clock where it is, until dropped.
pub struct Frozen {
    begun: Instant,
    _held: mpsc::Sender<()>,
}

/// A look at what goes on around: long enough for a packet to go through the kernel, or a page to a disk's
/// cache.
const MOMENT: Duration = Duration::from_millis(1);
/// So many looks without a change are rest.
const CALM: usize = 5;
/// By the real clock.
const LONGEST_UNREST: Duration = Duration::from_secs(60);

impl Frozen {
    /// From now on. The clock must be paused.
    pub fn new() -> Self {
        let (held, released) = mpsc::channel::<()>();
        // As long as a blocking task runs, tokio lets a paused clock be.
        tokio::task::spawn_blocking(move || released.recv());
        Self { begun: Instant::now(), _held: held }
    }

    /// How much time has passed.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Moves the clock. Timers in between fire all at once.
    pub async fn advance(&self, by: Duration) {
        time::advance(by).await;
    }

    /// Moves the clock to so long after the beginning; never back.
    pub async fn advance_to(&self, at: Duration) {
        self.advance(at.saturating_sub(self.elapsed())).await;
    }
}

/// Lets everything else go on until `sign` stops changing: whoever still waits then waits for the clock.
///
/// # Panics
/// When it goes on changing for a minute.
pub async fn rest<T: PartialEq>(mut sign: impl FnMut() -> T) {
    let begun = std::time::Instant::now();
    let mut seen = sign();
    let mut calm = 0;
    while calm < CALM {
        assert!(begun.elapsed() < patience(LONGEST_UNREST), "it does not come to rest");
        // The real clock, on a thread of its own.
        tokio::task::spawn_blocking(|| std::thread::park_timeout(MOMENT)).await.expect("a pause");
        let now = sign();
        calm = if now == seen { calm + 1 } else { 0 };
        seen = now;
    }
}
