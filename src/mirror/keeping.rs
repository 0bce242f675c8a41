//! What the operator has kept, and taken out.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::inventory::Part;
use super::{Inner, Mirror, Upstream};
use crate::config::UpstreamId;
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
    /// A tag that is held is to be taken out.
    #[error("it is held at {0}; release it first, by hand or in [[upstream.hold]]")]
    Held(Digest),
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
        let _by_hand = inner.by_hand.lock().await;
        let _one_at_a_time = inner.pinning.lock().await;
        let digest = inner.meant_by(target, reference)?;
        let parts = inner.parts(target, &digest).await;
        let fullness = inner.store.fullness();
        let is_new = |part: &&Part| part.kept.is_none_or(|kept| !kept.is_pinned);
        let more =
            parts.iter().filter(is_new).map(|part| part.kept.map_or(part.descriptor.size, |kept| kept.size));
        let wanted = more.fold(fullness.pinned, u64::saturating_add);
        if wanted > fullness.limit {
            return Err(NotDone::TooLarge { wanted, limit: fullness.limit });
        }
        let before = inner.store.pin_of(&target.repository, reference);
        inner.store.pin(inner.pin_of(target, reference, &parts, before.as_ref())).await?;
        Ok(digest)
    }

    /// Whether it is kept from eviction.
    pub fn is_pinned(&self, target: &Target, reference: &Reference) -> bool {
        self.0.store.is_pinned(&target.repository, reference)
    }

    /// Lets it be evicted when its turn comes.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn unpin(&self, repository: &Repository, reference: &Reference) -> Result<(), NotDone> {
        let _by_hand = self.0.by_hand.lock().await;
        let _one_at_a_time = self.0.pinning.lock().await;
        if !self.0.store.is_pinned(repository, reference) {
            return Err(NotDone::NotPinned);
        }
        Ok(self.0.store.unpin(repository, reference).await?)
    }

    /// Forgets what `reference` means, and takes out what no other tag of its repository needs, and no other repository
    /// contains. The next pull asks the upstream.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn remove(&self, target: &Target, reference: &Reference) -> Result<Removed, NotDone> {
        let inner = &self.0;
        let _by_hand = inner.by_hand.lock().await;
        let digest = inner.meant_by(target, reference)?;
        if inner.store.is_pinned(&target.repository, reference) {
            return Err(NotDone::Pinned);
        }
        let held = inner.held_in(target);
        if let Some((_, digest)) = held.iter().find(|(tag, _)| *reference == Reference::Tag(tag.clone())) {
            return Err(NotDone::Held(*digest));
        }
        let mut doomed: HashSet<Digest> =
            inner.parts(target, &digest).await.iter().map(|part| part.descriptor.digest).collect();
        let stamped = inner.store.tags_of(&target.repository).into_iter();
        for (tag, digest) in stamped.map(|(tag, stamp)| (tag, stamp.digest)).chain(held) {
            if *reference == Reference::Tag(tag.clone()) {
                continue;
            }
            if *reference == Reference::Digest(digest) {
                return Err(NotDone::Named(tag.to_string()));
            }
            for part in inner.parts(target, &digest).await {
                doomed.remove(&part.descriptor.digest);
            }
        }
        for pin in inner.store.pins(&target.repository) {
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
    /// What a reference means to those who pull it, as far as that is known here.
    fn meant_by(&self, target: &Target, reference: &Reference) -> Result<Digest, NotDone> {
        let digest = match reference {
            Reference::Tag(tag) => {
                self.meaning(target, tag).ok().flatten().map(|meaning| meaning.stamp.digest)
            }
            Reference::Digest(digest) => self.proof(target, digest).map(|_| *digest),
        };
        digest.ok_or(NotDone::Unknown)
    }

    /// Of the parts, and of the lists that say what refers to them: without its list nobody finds a signature. The image's own
    /// manifest is the first of its parts, and of the pin. As long as that is the same no part is let go: a manifest that is
    /// damaged, and is not here for a while, does not say any more what it named.
    fn pin_of(&self, target: &Target, reference: &Reference, parts: &[Part], before: Option<&Pin>) -> Pin {
        let own = parts.iter().map(|part| part.descriptor.digest);
        let manifests = parts.iter().filter(|part| part.is_manifest).map(|part| part.descriptor.digest);
        let list = |digest| self.store.name(&target.repository, &Name::Referrers(digest));
        let mut digests: Vec<Digest> =
            own.chain(manifests.filter_map(list).map(|stamp| stamp.digest)).collect();
        if let Some(before) = before.filter(|before| before.digests.first() == digests.first()) {
            let known: HashSet<Digest> = digests.iter().copied().collect();
            // A list has no proof, and the one of before is of no use.
            let is_part = |digest: &&Digest| self.proof(target, digest).is_some();
            digests.extend(before.digests.iter().filter(|digest| !known.contains(digest)).filter(is_part));
        }
        Pin { repository: target.repository.clone(), reference: reference.clone(), digests }
    }

    /// What tags are served as may have changed with the configuration, and anything before a start: their pins follow.
    pub(super) async fn follow_all_pins(&self) {
        for repository in self.store.pinned_repositories() {
            let is_its =
                |upstream: &Arc<ArcSwap<Upstream>>| upstream.load().config.registry == repository.registry;
            let Some(upstream) = self.upstreams.iter().position(is_its) else { continue };
            let target = Target { upstream: UpstreamId::new(upstream), repository: repository.clone() };
            self.follow_pins(&target, |_| true).await;
        }
    }

    /// A tag of the target's repository means something else, or a manifest is here that says what an image consists of: the
    /// pins that `concerns` picks hold what there is now.
    pub(super) async fn follow_pins(&self, target: &Target, concerns: impl Fn(&Pin) -> bool) {
        // Whoever pins at this moment may have looked before: what it pins is to be seen here.
        drop(self.pinning.lock().await);
        let pins = self.store.pins(&target.repository).into_iter().filter(concerns);
        for reference in pins.map(|pin| pin.reference) {
            // For each anew: clients wait for this, and there may be many.
            let _one_at_a_time = self.pinning.lock().await;
            // The next start goes on with it.
            if self.life.is_stopping() {
                return;
            }
            let Some(old) = self.store.pin_of(&target.repository, &reference) else { continue };
            let Ok(digest) = self.meant_by(target, &old.reference) else { continue };
            let parts = self.parts(target, &digest).await;
            let new = self.pin_of(target, &old.reference, &parts, Some(&old));
            if new == old {
                continue;
            }
            if let Err(error) = self.store.pin(new).await {
                tracing::warn!(repository = %target.repository, reference = %old.reference, %error, "a pin could not follow its image");
            }
        }
    }
}
