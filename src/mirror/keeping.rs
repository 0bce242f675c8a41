//! What the operator has kept, and taken out.

use std::collections::HashSet;
use std::sync::Arc;

use super::inventory::Part;
use super::{Inner, Mirror};
use crate::oci::{Digest, Reference, Repository};
use crate::routing::Target;
use crate::store::{self, Name, Pin};

/// Why an image is neither kept nor taken out.
#[derive(Debug, thiserror::Error)]
pub enum NotDone {
    /// Nothing is known of it.
    #[error("it is not known here; pull it through this mirror first")]
    Unknown,
    /// More would be pinned than the cache may hold.
    #[error(
        "{wanted} bytes would be pinned and the cache may hold {limit}; raise cache.max_size or unpin something"
    )]
    TooLarge {
        /// What would be pinned in all, in bytes.
        wanted: u64,
        /// The most that the cache may hold, in bytes.
        limit: u64,
    },
    /// It is pinned, and is to be taken out.
    #[error("it is pinned; unpin it first")]
    Pinned,
    /// It is not pinned, and is to be unpinned.
    #[error("it is not pinned")]
    NotPinned,
    /// A digest that a tag means is to be taken out.
    #[error("the tag {0} means it; remove that")]
    Named(String),
    /// The store's.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// What the name meant.
    pub digest: Digest,
    /// Bytes that went. What other repositories contain stays, and so do layers of other tags.
    pub bytes: u64,
}

impl Mirror {
    /// Keeps from eviction what `reference` means, also when a tag moves later and when more of it comes. What was pinned.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn pin(&self, target: &Target, reference: &Reference) -> Result<Digest, NotDone> {
        let inner = &self.0;
        let digest = inner.meaning(target, reference)?;
        let _one_at_a_time = inner.pinning.lock().await;
        let parts = inner.parts(target, &digest).await;
        let fullness = inner.store.fullness();
        let is_new = |part: &&Part| part.kept.is_none_or(|kept| !kept.is_pinned);
        let more =
            parts.iter().filter(is_new).map(|part| part.kept.map_or(part.descriptor.size, |kept| kept.size));
        let wanted = more.fold(fullness.pinned, u64::saturating_add);
        if wanted > fullness.limit {
            return Err(NotDone::TooLarge { wanted, limit: fullness.limit });
        }
        inner.store.pin(pin(&target.repository, reference, &parts)).await?;
        Ok(digest)
    }

    /// Lets it be evicted when its turn comes.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn unpin(&self, target: &Target, reference: &Reference) -> Result<(), NotDone> {
        let _one_at_a_time = self.0.pinning.lock().await;
        if !self.0.store.is_pinned(&target.repository, reference) {
            return Err(NotDone::NotPinned);
        }
        Ok(self.0.store.unpin(&target.repository, reference).await?)
    }

    /// Forgets what `reference` means, and takes out what no other tag of its repository needs, and no other repository
    /// contains. The next pull asks the upstream.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn remove(&self, target: &Target, reference: &Reference) -> Result<Removed, NotDone> {
        let inner = &self.0;
        let digest = inner.meaning(target, reference)?;
        if inner.store.is_pinned(&target.repository, reference) {
            return Err(NotDone::Pinned);
        }
        let mut doomed: HashSet<Digest> =
            inner.parts(target, &digest).await.iter().map(|part| part.descriptor.digest).collect();
        for (tag, stamp) in inner.store.tags_of(&target.repository) {
            if *reference == Reference::Tag(tag.clone()) {
                continue;
            }
            if *reference == Reference::Digest(stamp.digest) {
                return Err(NotDone::Named(tag.to_string()));
            }
            for part in inner.parts(target, &stamp.digest).await {
                doomed.remove(&part.descriptor.digest);
            }
        }
        for pin in inner.store.pins(Some(&target.repository)) {
            doomed.retain(|digest| !pin.digests.contains(digest));
        }
        // The name first: what a kill leaves without one is evicted some day.
        if let Reference::Tag(tag) = reference {
            inner.store.remove_name(&target.repository, &Name::Tag(tag.clone())).await?;
        }
        let bytes = inner.store.forget(&target.repository, doomed).await?;
        tracing::info!(repository = %target.repository, %reference, bytes, "removed by hand");
        Ok(Removed { digest, bytes })
    }
}

impl Inner {
    /// What a reference means, as far as that is known here.
    fn meaning(&self, target: &Target, reference: &Reference) -> Result<Digest, NotDone> {
        let digest = match reference {
            Reference::Tag(tag) => {
                self.store.name(&target.repository, &Name::Tag(tag.clone())).map(|stamp| stamp.digest)
            }
            Reference::Digest(digest) => self.proof(target, digest).map(|_| *digest),
        };
        digest.ok_or(NotDone::Unknown)
    }

    /// A name of the target's repository may mean something else, or a manifest has come that says what an image consists
    /// of: pins that `concerns` are pins of what there is now.
    pub(super) async fn follow_pins(self: &Arc<Self>, target: &Target, concerns: impl Fn(&Pin) -> bool) {
        for old in self.store.pins(Some(&target.repository)).into_iter().filter(concerns) {
            let _one_at_a_time = self.pinning.lock().await;
            let Ok(digest) = self.meaning(target, &old.reference) else { continue };
            let new = pin(&target.repository, &old.reference, &self.parts(target, &digest).await);
            let is_held = self.store.is_pinned(&target.repository, &old.reference);
            if !is_held || new == old {
                continue;
            }
            if let Err(error) = self.store.pin(new).await {
                tracing::warn!(repository = %target.repository, reference = %old.reference, %error, "a pin could not follow its image");
            }
        }
    }
}

fn pin(repository: &Repository, reference: &Reference, parts: &[Part]) -> Pin {
    let digests = parts.iter().map(|part| part.descriptor.digest).collect();
    Pin { repository: repository.clone(), reference: reference.clone(), digests }
}
