//! Which endpoint has sent wrong bytes of which blob. Only the digest tells, and that is when the last byte is in and
//! others have gone out: so the next try goes elsewhere. Otherwise a mirror with one rotten blob would stand in front
//! of a healthy origin for ever.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;

/// The suspects of one upstream.
#[derive(Debug, Default)]
// A std lock: held for a look, never over an await.
pub(super) struct Suspects(Mutex<HashMap<(Digest, usize), Instant>>);

/// By then a mirror may have been mended.
const LONGEST: Duration = Duration::from_secs(600);
/// Forgotten all together beyond that, and learned again.
const MOST: usize = 1000;

impl Suspects {
    /// What came of `digest` from the endpoint at this place was wrong.
    pub(super) fn add(&self, digest: Digest, place: usize) {
        let mut suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.len() >= MOST {
            suspects.clear();
        }
        suspects.insert((digest, place), Instant::now());
    }

    /// Whether that was a short while ago.
    pub(super) fn has(&self, digest: &Digest, place: usize) -> bool {
        let suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.get(&(*digest, place)).is_some_and(|since| since.elapsed() < LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[tokio::test(start_paused = true)]
    async fn for_a_while_and_for_one_blob() {
        let (suspects, [one, other]) =
            (Suspects::default(), [b"1", b"2"].map(|bytes| Digest::of(Algorithm::Sha256, bytes)));
        suspects.add(one, 0);
        assert!(suspects.has(&one, 0) && !suspects.has(&one, 1) && !suspects.has(&other, 0));
        tokio::time::advance(LONGEST).await;
        assert!(!suspects.has(&one, 0));
    }
}
