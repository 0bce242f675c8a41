use std::collections::HashSet;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::oci::Digest;

/// Which digests are being written, found, or taken out: whatever changes both a file and its entry in the
/// index, or the count of its bytes, does so under a claim.
#[derive(Debug)]
pub(super) struct Claims {
    taken: Mutex<HashSet<Digest>>,
    freed: Notify,
    /// Of the directory: as long as a thread of this process writes there, no other process may.
    _lock: File,
}

/// The only one who changes what there is of a digest, until dropped.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Arc<Claims>,
    digest: Digest,
}

impl Claims {
    /// In the directory that `lock` locks.
    pub(super) fn new(lock: File) -> Arc<Claims> {
        Arc::new(Claims { taken: Mutex::default(), freed: Notify::new(), _lock: lock })
    }

    /// Waits until nobody else writes `digest`.
    pub(super) async fn claim(self: &Arc<Self>, digest: Digest) -> Claim {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(claim) = self.try_claim(digest) {
                return claim;
            }
            freed.await;
        }
    }

    pub(super) fn is_taken(&self, digest: &Digest) -> bool {
        self.lock().contains(digest)
    }

    /// The claim on `digest`, unless somebody has it.
    pub(super) fn try_claim(self: &Arc<Self>, digest: Digest) -> Option<Claim> {
        let is_free = self.lock().insert(digest);
        is_free.then(|| Claim { claims: Arc::clone(self), digest })
    }

    /// What is claimed now.
    pub(super) fn all(&self) -> Vec<Digest> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.lock().remove(&self.digest);
        self.claims.freed.notify_waiters();
    }
}
