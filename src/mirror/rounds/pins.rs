//! What is pinned for the sake of a `[[warm]]`, and when that is let go.

use std::collections::BTreeSet;

use super::{Inner, MOST_TOLD, Root, Round, image_name, wishes};
use crate::config::{Warm, Wish};
use crate::mirror::warm::is_companion;
use crate::mirror::{NotDone, Warmed};
use crate::oci::{ImageReference, Reference};
use crate::routing::Target;

impl Inner {
    /// All of an image that is here.
    pub(super) async fn pin(
        &self,
        warm: &Warm,
        target: &Target,
        image: &ImageReference,
        warmed: &Warmed,
        round: &mut Round,
    ) -> Result<(), NotDone> {
        let _one_at_a_time = self.pinning.lock().await;
        for root in &warmed.roots {
            let name = (image_name(image), root.reference.to_string());
            // What was pinned by hand stays so.
            let is_ours = self.is_by_rounds(&name) || !self.mirror.is_pinned(target, &root.reference);
            let is_news =
                is_ours && self.noted().pinned.entry(warm.name.clone()).or_default().insert(name.clone());
            if is_news {
                self.save().await;
            }
            round.roots.insert(name.clone());
            if let Err(error) = self.mirror.pin(target, &root.reference).await {
                // Whoever pins it by hand one day is not to find it let go of.
                let is_not_pinned = is_news && !self.mirror.is_pinned(target, &root.reference);
                if is_not_pinned && let Some(roots) = self.noted().pinned.get_mut(&warm.name) {
                    roots.remove(&name);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether it was pinned for the sake of some [[warm]].
    fn is_by_rounds(&self, root: &Root) -> bool {
        self.noted().pinned.values().any(|roots| roots.contains(root))
    }

    /// What was pinned for the sake of a [[warm]] that is no more. One that got another name has its round first, and all of
    /// it.
    pub(super) async fn tidy(&self) {
        let warms = self.warms();
        if !warms.iter().all(|warm| self.is_here(warm)) {
            return;
        }
        let orphans: BTreeSet<String> = {
            let noted = self.noted();
            let is_gone = |name: &&String| !warms.iter().any(|warm| warm.name == **name);
            noted.rounds.keys().chain(noted.pinned.keys()).filter(is_gone).cloned().collect()
        };
        if orphans.is_empty() {
            return;
        }
        for name in orphans {
            self.let_go(&name, &BTreeSet::new()).await;
            let mut noted = self.noted();
            noted.rounds.remove(&name);
            noted.pinned.retain(|other, roots| *other != name || !roots.is_empty());
        }
        self.save().await;
    }

    /// What was pinned for the sake of an earlier round, and is not wished for any more by this [[warm]] or another one.
    pub(super) async fn let_go(&self, name: &str, wished: &BTreeSet<Root>) {
        let _one_at_a_time = self.pinning.lock().await;
        let others: Vec<Warm> = self.warms().into_iter().filter(|warm| warm.name != name).collect();
        let pinned = self.noted().pinned.get(name).cloned().unwrap_or_default();
        let is_for_another = |root: &Root| {
            let noted = self.noted();
            noted.pinned.iter().any(|(other, roots)| other != name && roots.contains(root))
        };
        // One that has not had it since it wishes for it has not noted it yet.
        let may_be_for_another = |root: &Root| {
            others.iter().any(|warm| self.not_here(warm).iter().any(|wish| may_mean(warm, wish, root)))
        };
        let mut still_pinned = BTreeSet::new();
        for root in pinned.difference(wished).filter(|root| !is_for_another(root)) {
            if may_be_for_another(root) {
                still_pinned.insert(root.clone());
                continue;
            }
            let (Ok(repository), Ok(reference)) = (root.0.parse(), root.1.parse::<Reference>()) else {
                continue;
            };
            // Also what is not routed any more.
            match self.mirror.unpin(&repository, &reference).await {
                Ok(()) | Err(NotDone::NotPinned) => {}
                Err(error) => {
                    tracing::warn!(%repository, %reference, %error, "what is not wished for any more is still pinned");
                    still_pinned.insert(root.clone());
                }
            }
        }
        still_pinned.extend(pinned.intersection(wished).cloned());
        self.noted().pinned.insert(name.to_owned(), still_pinned);
    }

    /// Whether the last round brought all that is wished for now.
    fn is_here(&self, warm: &Warm) -> bool {
        self.not_here(warm).is_empty()
    }

    /// What the last round did not bring of what is wished for now.
    fn not_here(&self, warm: &Warm) -> Vec<Wish> {
        let last = self.last(&warm.name).filter(|last| last.wishes == wishes(warm));
        let is_told = |last: &Round| last.failed.len() < MOST_TOLD;
        match last.filter(is_told) {
            Some(last) => last.failed.iter().filter_map(|(image, _)| image.parse().ok()).collect(),
            None => warm.images.clone(),
        }
    }
}

/// Whether a round of `warm` may come to pin this for the sake of `wish`: an image, or something that refers to one.
fn may_mean(warm: &Warm, wish: &Wish, (repository, reference): &Root) -> bool {
    let is_meant = match &wish.tags {
        Some(tags) => tags.matches(reference),
        None => wish.image.reference.to_string() == *reference,
    };
    let is_referrer = reference.contains(':') || is_companion(reference);
    warm.pin && image_name(&wish.image) == *repository && (is_meant || warm.referrers && is_referrer)
}
