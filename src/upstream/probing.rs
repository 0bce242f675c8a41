//! Asks spent accounts by free HEADs whether they have recovered, so that nobody's pull has to find out.

use std::sync::Arc;

use super::Client;
use super::client::about_manifest;
use crate::lifecycle::Lifecycle;
use crate::scheduler::Probe;

impl Client {
    /// Probes as long as the house lives. When an account is due is the scheduler's to say, and what the answer
    /// means too: it has heard it by the time that it is here.
    pub async fn probe_spent(self: Arc<Self>, life: Lifecycle) {
        loop {
            let Probe { lease, repository, reference } = tokio::select! {
                probe = self.scheduler.probe(self.id()) => probe,
                () = life.stopping() => return,
            };
            let outcome = self.found(&lease, &about_manifest(&repository, &reference)).await;
            tracing::debug!(registry = %self.registry(), %repository, ?outcome, "asked for a spent account");
        }
    }
}
