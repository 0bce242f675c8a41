use std::collections::BTreeSet;
use std::future::Future;

use super::crew::Crew;
use super::{Error, Order, Seat, State};
use crate::store::{Link, Partial};
use crate::upstream::{self, Transfer};

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
        if self.inner.store.size(&order.digest).await.is_some() {
            return Err(Error::Here);
        }
        let boarding = order.client.board(&order.errand, &order.repository.name).await?;
        let opening = self.inner.store.partial(order.digest, order.size);
        let mut partial = self.unless_stopping(order, opening).await??;
        // Whoever brought it in by hand meanwhile may have finished it.
        if self.inner.store.size(&order.digest).await.is_some() {
            partial.discard();
            return Err(Error::Here);
        }
        let (name, from) = (&order.repository.name, partial.kept());
        let beginning = order.client.blob(boarding, name, &order.digest, from, order.size);
        let begun = self.unless_stopping(order, beginning).await?;
        if order.size.is_none() && matches!(begun, Err(upstream::Error::BadAnswer { .. })) {
            // What is kept may be of another body, longer than the blob: the next try begins anew.
            partial.discard();
        }
        let transfer = begun?;
        if let Some(total) = transfer.total() {
            partial.expect(total).await?;
        }
        self.state.send_replace(State::Growing {
            file: std::sync::Arc::clone(partial.file()),
            total: transfer.total(),
            committed: partial.committed(),
        });
        let total = self.receive(order, transfer, &mut partial).await?;
        self.state.send_replace(State::Proven { file: std::sync::Arc::clone(partial.file()), total });
        self.keep(order, partial, total).await;
        Ok(())
    }

    /// Takes in all bytes, until they are proven. On an error of the upstream what came stays as a partial.
    async fn receive(&self, order: &Order, transfer: Transfer, partial: &mut Partial) -> Result<u64, Error> {
        // More connections are not faster where the operator says how fast it may be.
        let may_spread = partial.takes_gaps() && !transfer.is_limited();
        let spread = may_spread.then(|| self.inner.spread(&order.repository.registry));
        let mut crew = Crew::new(order, transfer, spread.as_ref(), &self.inner.metrics);
        let mut sources = BTreeSet::new();
        while let Some(piece) = self.unless_stopping(order, crew.next()).await?? {
            sources.insert(piece.source);
            partial.write(piece.offset, piece.bytes).await?;
        }
        // The connections serve others while the disk syncs.
        drop(crew);
        partial.prove().await.map_err(|error| match error {
            crate::store::Error::Mismatch => {
                order.client.distrust(order.digest, sources);
                let registry = order.repository.registry.to_string();
                self.inner.metrics.verify_failed(&registry);
                tracing::warn!(digest = %order.digest, repository = %order.repository, "the upstream sent wrong bytes");
                Error::Mismatch { registry }
            }
            other => Error::Store(other),
        })
    }

    /// Does `step`; where nobody waits for the blob, it ends with the house, and what came stays.
    async fn unless_stopping<T>(&self, order: &Order, step: impl Future<Output = T>) -> Result<T, Error> {
        let done = order.errand.unless_stopping(&self.inner.life, step).await;
        done.map_err(|refused| upstream::Error::Refused(refused).into())
    }

    /// A proven blob that cannot be kept has still been served. Its link is handed in first, so that it is in the
    /// index no later than the blob: one without the other would have to be proven once more.
    async fn keep(&self, order: &Order, partial: Partial, total: u64) {
        let link = Link { size: total, is_manifest: false, media_type: String::new() };
        let linked = self.inner.store.add_link(&order.repository, order.digest, link);
        let (linked, promoted) = tokio::join!(biased; linked, partial.promote(total));
        let kept = linked.and(promoted);
        if let Err(error) = kept {
            // The store has said so, once.
            tracing::debug!(digest = %order.digest, %error, "a fetched blob could not be kept");
        }
    }
}
