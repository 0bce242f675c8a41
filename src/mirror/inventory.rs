//! What is here of an image.

use std::collections::{HashSet, VecDeque};

use super::{Inner, Mirror};
use crate::oci::{Descriptor, Digest, Manifest, Platform};
use crate::routing::Target;
use crate::store::Kept;

/// What is here of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The manifest itself is here, and this repository is known to contain it.
    pub is_cached: bool,
    /// Manifests that it names, as an index does: how many of them are here, and how many there are.
    pub manifests: (usize, usize),
    /// Blobs that it, or the manifests here, name: likewise.
    pub blobs: (usize, usize),
    /// How many bytes all of that takes that is here; what other images share is counted with each.
    pub bytes: u64,
    /// For which platforms its manifests are that are here.
    pub platforms: Vec<Platform>,
}

/// A manifest or blob that an image consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What is said of it.
    pub descriptor: Descriptor,
    /// A manifest or index rather than a blob.
    pub is_manifest: bool,
    /// It is here, and this repository is known to contain it.
    pub kept: Option<Kept>,
}

/// Parts of an image that are looked at: who names more has something else in mind.
const MOST_PARTS: usize = 10_000;
/// A config is small; what is larger is not read for the sake of two words in it.
const LARGEST_CONFIG: u64 = 1 << 20;

impl Mirror {
    /// What is here of the manifest `digest` of the target's repository, and of what it names.
    pub async fn content(&self, target: &Target, digest: &Digest) -> Content {
        self.0.content(target, digest).await
    }

    /// All that the manifest `digest` of the target's repository consists of, as far as that is known here: the manifest
    /// itself first, then what it names, and so on.
    pub async fn parts(&self, target: &Target, digest: &Digest) -> Vec<Part> {
        self.0.parts(target, digest).await
    }
}

impl Content {
    /// Of what an image consists of, its own manifest first.
    pub fn of(parts: &[Part]) -> Content {
        let here = |part: &&Part| part.kept.is_some();
        let (manifests, blobs): (Vec<&Part>, Vec<&Part>) =
            parts.iter().skip(1).partition(|part| part.is_manifest);
        Content {
            is_cached: parts.first().is_some_and(|top| top.kept.is_some()),
            manifests: (manifests.iter().copied().filter(here).count(), manifests.len()),
            blobs: (blobs.iter().copied().filter(here).count(), blobs.len()),
            bytes: parts.iter().filter_map(|part| part.kept).map(|kept| kept.size).sum(),
            platforms: parts
                .iter()
                .filter(here)
                .filter_map(|part| part.descriptor.platform.clone())
                .collect(),
        }
    }
}

impl Inner {
    pub(super) async fn content(&self, target: &Target, digest: &Digest) -> Content {
        Content::of(&self.parts(target, digest).await)
    }

    pub(super) async fn parts(&self, target: &Target, digest: &Digest) -> Vec<Part> {
        let link = self.proof(target, digest).filter(|link| link.is_manifest);
        let (media_type, size) = link.map(|link| (link.media_type, link.size)).unwrap_or_default();
        let top = Descriptor { media_type, digest: *digest, size, platform: None };
        let (mut parts, mut seen) = (Vec::new(), HashSet::from([*digest]));
        let mut manifests = VecDeque::from([top]);
        while let Some(mut descriptor) = manifests.pop_front() {
            let kept = self.kept(target, &descriptor.digest, true);
            let named = match kept {
                Some(_) => self.named_by(&descriptor.digest).await,
                None => Manifest::default(),
            };
            if descriptor.platform.is_none() && named.manifests.is_empty() {
                descriptor.platform = self.platform(target, &named).await;
            }
            parts.push(Part { descriptor, is_manifest: true, kept });
            let room = MOST_PARTS.saturating_sub(parts.len() + manifests.len());
            let mut is_new = |descriptor: &Descriptor| seen.insert(descriptor.digest);
            manifests.extend(named.manifests.into_iter().filter(&mut is_new).take(room));
            let blobs = named.blobs.into_iter().filter(is_new).take(room).map(|descriptor| {
                let kept = self.kept(target, &descriptor.digest, false);
                Part { descriptor, is_manifest: false, kept }
            });
            parts.extend(blobs);
        }
        parts
    }

    pub(super) fn kept(&self, target: &Target, digest: &Digest, is_manifest: bool) -> Option<Kept> {
        self.proof(target, digest).filter(|link| link.is_manifest || !is_manifest)?;
        self.store.kept(digest)
    }

    async fn named_by(&self, digest: &Digest) -> Manifest {
        let document = self.store.peek(digest).await;
        document.and_then(|document| Manifest::parse(&document).ok()).unwrap_or_default()
    }

    /// Where no index says for whom a manifest is, its config does.
    async fn platform(&self, target: &Target, manifest: &Manifest) -> Option<Platform> {
        let config = manifest.blobs.first().filter(|config| config.media_type.ends_with("json"))?;
        self.kept(target, &config.digest, false).filter(|kept| kept.size <= LARGEST_CONFIG)?;
        Platform::of_config(&self.store.peek(&config.digest).await?)
    }
}
