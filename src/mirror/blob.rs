//! The story of a blob: proof, store, flight, and what happens when there is no room.

use std::sync::Arc;

use super::passage::Passage;
use super::{BlobAnswer, Content, Error, Inner, Mirror, Served, Subject};
use crate::flight::{self, Follower, HOLD_BACK, Order, Role};
use crate::oci::{Digest, Reference, Repository};
use crate::routing::Target;
use crate::scheduler::Errand;
use crate::{store, upstream};

/// What came of joining a flight.
enum Boarded {
    /// The blob is coming.
    Coming(BlobAnswer),
    /// There is no room to keep it.
    NoRoom,
    /// It was fetched through another repository, or with a size that somebody had made up: whatever came of
    /// that says nothing about this request.
    Elsewhere,
    /// It was refused to somebody else, who may have been held less, or for longer by now.
    Refused(Error),
}

const NOT_KEPT: &str = "a blob cannot be kept; it passes through uncached";

/// How often a flight through another repository may fail before this request goes its own way.
const MOST_TRIES: usize = 3;

impl Mirror {
    /// A blob for GET. Returns as soon as its length is known; a small one once it is proven.
    ///
    /// # Errors
    /// [`Error`]; nothing was promised to the client by then.
    pub async fn blob(&self, target: &Target, digest: &Digest, errand: &Errand) -> Result<BlobAnswer, Error> {
        let answer = self.0.blob(target, digest, errand).await;
        let answer = answer.inspect_err(|error| {
            // Whoever got the manifest pulled in vain.
            for manifest in self.0.store.pulls_of(digest) {
                if self.0.proof(target, &manifest).is_some() {
                    self.0.missing.note(target, &Reference::Digest(manifest), error);
                }
            }
        })?;
        self.0.store.pull_goes_on(digest);
        Ok(answer)
    }

    /// A blob for HEAD: what is cached or known, else by a HEAD upstream.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn head_blob(
        &self,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<BlobAnswer, Error> {
        let proof = self.0.proof(target, digest);
        if let (Some(_), Some(size)) = (&proof, self.0.store.size(digest).await) {
            return Ok(BlobAnswer { size, content: None, served: Served::Hit });
        }
        let link = self.0.prove(target, digest, false, errand).await?;
        if link.size == 0 && !digest.is_of_nothing() {
            // The upstream's HEAD left out the length, which clients need: only the blob tells.
            return self
                .blob(target, digest, errand)
                .await
                .map(|answer| BlobAnswer { content: None, ..answer });
        }
        Ok(BlobAnswer { size: link.size, content: None, served: Served::Miss })
    }
}

impl Inner {
    pub(super) async fn blob(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<BlobAnswer, Error> {
        let mut refused = None;
        for _ in 0..MOST_TRIES {
            if let Some(answer) = self.cached_blob(target, digest, errand).await? {
                return Ok(answer);
            }
            self.may_ask(target, &Subject::Blob(*digest)).await?;
            self.may_board(target, digest, errand).await?;
            match self.board(target, digest, errand).await? {
                Boarded::Coming(answer) => return Ok(answer),
                Boarded::NoRoom => return self.pass_through(target, digest, errand).await,
                Boarded::Elsewhere => refused = None,
                Boarded::Refused(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
        // Others come before us again and again, and in vain: what they found says nothing about us.
        self.pass_through(target, digest, errand).await
    }

    /// From the store, if the repository may see it: a proof is enough (I4), else one HEAD brings it (I5).
    async fn cached_blob(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<Option<BlobAnswer>, Error> {
        let served = match self.proof(target, digest) {
            Some(_) => Served::Hit,
            // Named a moment ago and about to be linked: its flight is the proof.
            None if self.is_flying(target, digest) => return Ok(None),
            None if self.store.size(digest).await.is_some() => {
                self.prove(target, digest, false, errand).await?;
                Served::Revalidated
            }
            None => return Ok(None),
        };
        let blob = self.store.open_blob(digest).await;
        Ok(blob.map(|blob| BlobAnswer { size: blob.size(), content: Some(Content::Cached(blob)), served }))
    }

    /// Whether it is being fetched through this very repository.
    fn is_flying(&self, target: &Target, digest: &Digest) -> bool {
        self.flights.source(digest).is_some_and(|source| source == target.repository)
    }

    /// A flight through another repository may only be joined with a proof (I5).
    async fn may_board(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<(), Error> {
        let source = self.flights.source(digest);
        if source.is_some_and(|source| source != target.repository) && self.proof(target, digest).is_none() {
            self.prove(target, digest, false, errand).await?;
        }
        Ok(())
    }

    async fn board(&self, target: &Target, digest: &Digest, errand: &Errand) -> Result<Boarded, Error> {
        let (mut follower, source, role) = self.flights.join(self.order(target, digest, errand));
        if source != target.repository && self.proof(target, digest).is_none() {
            // The flight began after `may_board` looked.
            return Ok(Boarded::Elsewhere);
        }
        match coming(&mut follower).await {
            Ok(size) => {
                let served = if role == Role::Lead { Served::Miss } else { Served::Joined };
                Ok(Boarded::Coming(BlobAnswer { size, content: Some(Content::Growing(follower)), served }))
            }
            Err(flight::Error::Store(error)) => {
                match error {
                    store::Error::NoRoom { .. } => tracing::warn!(%digest, %error, "{NOT_KEPT}"),
                    // The store has said so, once.
                    _ => tracing::debug!(%digest, %error, "{NOT_KEPT}"),
                }
                Ok(Boarded::NoRoom)
            }
            // An earlier flight left it just now: the next look into the store finds it (I5).
            Err(flight::Error::Here) => Ok(Boarded::Elsewhere),
            Err(flight::Error::Upstream(error @ upstream::Error::Refused(_))) if role == Role::Follow => {
                Ok(Boarded::Refused(Error::Upstream(error)))
            }
            Err(error) => self.failed(target, digest, &source, error).await,
        }
    }

    async fn failed(
        &self,
        target: &Target,
        digest: &Digest,
        source: &Repository,
        error: flight::Error,
    ) -> Result<Boarded, Error> {
        let is_odd = matches!(error, flight::Error::Upstream(upstream::Error::BadAnswer { .. }));
        let is_misled = is_odd && self.sizes.remove(&(target.repository.clone(), *digest)).is_some();
        if is_misled || *source != target.repository {
            return Ok(Boarded::Elsewhere);
        }
        self.note_absence(target, Subject::Blob(*digest), Err(error.into())).await
    }

    /// Straight from the upstream to this one client.
    async fn pass_through(
        &self,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<BlobAnswer, Error> {
        let order = self.order(target, digest, errand);
        let boarding = order.client.board(errand, &target.repository.name).await?;
        let transfer = order.client.blob(boarding, &target.repository.name, digest, 0, order.size).await?;
        let size = transfer.total().ok_or_else(|| {
            let endpoint = target.repository.registry.to_string();
            let reason = "a blob that cannot be kept, without its length".to_owned();
            Error::Upstream(upstream::Error::BadAnswer { endpoint, reason })
        })?;
        let passage = Box::new(Passage::new(transfer, *digest));
        Ok(BlobAnswer { size, content: Some(Content::Passing(passage)), served: Served::Miss })
    }

    pub(super) fn order(&self, target: &Target, digest: &Digest, errand: &Errand) -> Order {
        let upstream = self.upstream(target);
        let config = &upstream.config;
        Order {
            errand: errand.clone(),
            client: Arc::clone(&upstream.client),
            // The other half is for whoever comes meanwhile.
            most_extra: if config.parallel_ranges { config.max_connections / 2 } else { 0 },
            repository: target.repository.clone(),
            digest: *digest,
            size: self.sizes.get(&(target.repository.clone(), *digest)),
        }
    }
}

/// The length, once it is known; for a small blob, once it is proven, so that a wrong one is a clean error.
async fn coming(follower: &mut Follower) -> Result<u64, flight::Error> {
    let size = follower.total().await?;
    if size <= HOLD_BACK { follower.proven().await } else { Ok(size) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, UpstreamId};
    use crate::lifecycle::Lifecycle;
    use crate::oci::Algorithm;
    use crate::store::{Link, Store};
    use crate::telemetry::Metrics;

    /// Between the look into the store and the flight, another repository's flight came and went.
    #[tokio::test]
    async fn what_another_repository_left_sends_us_back_to_the_store() {
        let (folder, life, metrics) =
            (tempfile::tempdir().unwrap(), Lifecycle::default(), Metrics::default());
        let mut config = Config::default();
        config.cache.dir = folder.path().to_owned();
        config.cache.min_free = crate::config::ByteSize(0);
        // Nobody listens there.
        config.upstreams[0].endpoints = vec!["http://127.0.0.1:1".parse().unwrap()];
        let store = Store::open(&config.cache, &life, &metrics).unwrap();
        let mirror = Mirror::new(&config, &store, &life, &metrics).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"private");
        store.put_document(digest, "private".into()).await.unwrap();
        let target =
            Target { upstream: UpstreamId::new(0), repository: "docker.io/other/app".parse().unwrap() };
        let errand = Errand::background();
        assert!(matches!(mirror.0.board(&target, &digest, &errand).await, Ok(Boarded::Elsewhere)));
        let refused = mirror.blob(&target, &digest, &errand).await.unwrap_err();
        assert!(matches!(refused, Error::Upstream(upstream::Error::Unreachable { .. })), "{refused}");
        let link = Link { size: 7, is_manifest: false, media_type: String::new() };
        store.add_link(&target.repository, digest, link).await.unwrap();
        assert!(matches!(mirror.0.board(&target, &digest, &errand).await, Ok(Boarded::Elsewhere)));
        let answer = mirror.blob(&target, &digest, &errand).await.unwrap();
        assert_eq!((answer.served, answer.size), (Served::Hit, 7));
        life.stop();
        life.wait().await;
    }
}
