use super::{Error, Order, Seat, State};
use crate::scheduler::Errand;
use crate::store::{Link, Partial};
use crate::upstream::Transfer;

impl Seat {
    /// The whole life of a flight. What it fetched stays in the store; why it failed goes to its followers.
    pub(super) async fn lead(self, order: Order) {
        if let Err(error) = self.fetch(&order).await {
            tracing::debug!(digest = %order.digest, repository = %order.repository, %error, "a fetch failed");
            // First off the table: whoever hears of it and tries again must not board this one.
            self.leave();
            self.state.send_replace(State::Failed(error));
        }
    }

    async fn fetch(&self, order: &Order) -> Result<(), Error> {
        // Whoever began this flight looked before an earlier one had left its blob.
        if let Some(blob) = self.inner.store.open_blob(&order.digest).await {
            self.may_see(order, blob.size()).await?;
            let (file, total) = (std::sync::Arc::clone(blob.file()), blob.size());
            self.state.send_replace(State::Proven { file, total });
            return Ok(());
        }
        let lease = self.inner.scheduler.lease(order.upstream, Errand::Transfer).await?;
        let mut partial = self.inner.store.partial(order.digest, order.size).await?;
        let (name, from) = (&order.repository.name, partial.kept());
        let mut transfer = order.client.blob(lease, name, &order.digest, from, order.size).await?;
        if let Some(total) = transfer.total() {
            partial.expect(total).await?;
        }
        self.state.send_replace(State::Growing {
            file: std::sync::Arc::clone(partial.file()),
            total: transfer.total(),
            committed: partial.committed(),
        });
        let total = self.receive(order, &mut transfer, &mut partial).await?;
        // The connection serves others while the disk syncs.
        drop(transfer);
        self.state.send_replace(State::Proven { file: std::sync::Arc::clone(partial.file()), total });
        self.keep(order, partial, total).await;
        Ok(())
    }

    /// The earlier flight may have been another repository's: then ours must contain the blob too (I5).
    async fn may_see(&self, order: &Order, size: u64) -> Result<(), Error> {
        let store = &self.inner.store;
        if store.link(&order.repository, &order.digest).is_some() {
            return Ok(());
        }
        let lease = self.inner.scheduler.lease(order.upstream, Errand::Question).await?;
        order.client.head_blob(&lease, &order.repository.name, &order.digest).await?;
        let link = Link { size, is_manifest: false, media_type: String::new() };
        if let Err(error) = store.add_link(&order.repository, order.digest, link).await {
            tracing::warn!(digest = %order.digest, %error, "a proof could not be kept");
        }
        Ok(())
    }

    /// Takes in all bytes, until they are proven. On an error of the upstream what came stays as a partial.
    async fn receive(
        &self,
        order: &Order,
        transfer: &mut Transfer,
        partial: &mut Partial,
    ) -> Result<u64, Error> {
        while let Some(bytes) = transfer.next().await? {
            partial.write(bytes).await?;
        }
        partial.prove().await.map_err(|error| match error {
            crate::store::Error::Mismatch => {
                let registry = order.repository.registry.to_string();
                self.inner.metrics.verify_failed(&registry);
                tracing::warn!(digest = %order.digest, repository = %order.repository, "the upstream sent wrong bytes");
                Error::Mismatch { registry }
            }
            other => Error::Store(other),
        })
    }

    /// A proven blob that cannot be kept has still been served.
    async fn keep(&self, order: &Order, partial: Partial, total: u64) {
        let link = Link { size: total, is_manifest: false, media_type: String::new() };
        let kept = match partial.promote(total).await {
            Ok(()) => self.inner.store.add_link(&order.repository, order.digest, link).await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(digest = %order.digest, %error, "a fetched blob could not be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Config, UpstreamId};
    use crate::flight::{Flights, Role};
    use crate::lifecycle::Lifecycle;
    use crate::oci::{Algorithm, Digest};
    use crate::scheduler::Scheduler;
    use crate::store::Store;
    use crate::telemetry::Metrics;
    use crate::upstream::{Client, UpstreamMetrics};

    #[tokio::test]
    async fn what_another_repository_left_is_not_at_hand() {
        let (folder, life, metrics) =
            (tempfile::tempdir().unwrap(), Lifecycle::default(), Metrics::default());
        let mut config = Config::default();
        config.cache.dir = folder.path().to_owned();
        // Nobody listens there.
        config.upstreams[0].endpoints = vec!["http://127.0.0.1:1".parse().unwrap()];
        let store = Store::open(&config.cache, &life, &metrics).unwrap();
        let scheduler = Arc::new(Scheduler::new(&config, &metrics));
        let flights = Flights::new(&config, &store, &scheduler, &life, &metrics);
        let (upstream, counts) = (UpstreamId::new(0), UpstreamMetrics::new(&metrics, &config));
        let client = Arc::new(Client::new(upstream, &config.upstreams[0], counts, &life).unwrap());
        let digest = Digest::of(Algorithm::Sha256, b"private");
        store.put_document(digest, "private".into()).await.unwrap();
        let link = Link { size: 7, is_manifest: false, media_type: String::new() };
        store.add_link(&"docker.io/own/app".parse().unwrap(), digest, link).await.unwrap();
        for (repository, comes) in [("docker.io/own/app", true), ("docker.io/other/app", false)] {
            let (client, repository) = (Arc::clone(&client), repository.parse().unwrap());
            let order = Order { upstream, client, repository, digest, size: None };
            let (mut follower, _, role) = flights.join(order);
            assert_eq!((role, follower.proven().await.is_ok()), (Role::Lead, comes));
            landed(&flights).await;
        }
        life.stop();
        life.wait().await;
    }

    async fn landed(flights: &Flights) {
        while flights.count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
