//! A gate: the tool for tests that need two things to happen in a known order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::eventually::patience;

/// Holds everyone who comes to it until a test opens it. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    open: watch::Sender<bool>,
    held: watch::Sender<usize>,
}

/// One visitor at the gate; leaves also when its request is given up.
struct Visit<'a>(&'a Inner);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Arc::new(Inner { open: watch::Sender::new(false), held: watch::Sender::new(0) }))
    }

    /// Lets everyone pass, now and later.
    pub fn open(&self) {
        self.0.open.send_replace(true);
    }

    /// Holds those who come from now on.
    pub fn close(&self) {
        self.0.open.send_replace(false);
    }

    /// How many are held now.
    pub fn held(&self) -> usize {
        *self.0.held.borrow()
    }

    /// Waits until at least `count` are held at the same time.
    ///
    /// # Panics
    /// When that does not happen within twenty seconds.
    pub async fn waiting(&self, count: usize) {
        let mut held = self.0.held.subscribe();
        let limit = patience(Duration::from_secs(20));
        if timeout(limit, held.wait_for(|held| *held >= count)).await.is_err() {
            panic!("only {} of {count} came to the gate", self.held());
        }
    }

    /// Waits at the gate until it is open.
    pub async fn pass(&self) {
        let mut open = self.0.open.subscribe();
        if *open.borrow_and_update() {
            return;
        }
        self.0.held.send_modify(|held| *held += 1);
        let visit = Visit(&self.0);
        // The sender lives as long as this borrow: the wait can't fail.
        open.wait_for(|open| *open).await.expect("the gate outlives its visitors");
        drop(visit);
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.held.send_modify(|held| *held -= 1);
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({} held)", self.held())
    }
}
