//! Asks spent accounts by free HEADs whether they have recovered, so that nobody's pull has to find out.

use std::sync::Arc;

use super::Client;
use super::client::about_manifest;
use crate::scheduler::Probe;

impl Client {
    /// Probes the next account that is due. When that is is the scheduler's to say, and what the answer means too: it
    /// has heard it by the time that it is here. The client that asks is the `current` one of that time.
    pub async fn probe_spent(&self, current: impl Fn() -> Arc<Client>) {
        let Probe { lease, repository, reference } = self.scheduler.probe(self.id()).await;
        let outcome = current().found(&lease, &about_manifest(&repository, &reference)).await;
        tracing::debug!(registry = %self.registry(), %repository, ?outcome, "asked for a spent account");
    }
}
