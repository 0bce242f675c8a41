//! What a fake registry holds: repositories of tags, manifests and blobs, in memory.
//!
//! A repository may be named with a host in front (`ghcr.io/org/app`): it is then there only for
//! requests to that host, which is what tests with several upstreams behind one fake need.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use super::images::{Blob, Image};

/// One repository.
#[derive(Clone, Default)]
pub(super) struct Repository {
    pub(super) tags: BTreeMap<String, String>,
    pub(super) manifests: BTreeMap<String, Blob>,
    pub(super) blobs: BTreeMap<String, Blob>,
}

/// Every repository of a fake registry.
#[derive(Default)]
pub(super) struct Store(Mutex<BTreeMap<String, Repository>>);

impl Repository {
    /// A manifest by tag or digest.
    pub(super) fn manifest(&self, reference: &str) -> Option<&Blob> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        self.manifests.get(digest)
    }
}

impl Store {
    /// The repository as it is seen at `host`. Cheap: blobs share their bytes.
    pub(super) fn repository(&self, host: &str, name: &str) -> Option<Repository> {
        let repositories = self.held();
        repositories.get(&format!("{host}/{name}")).or_else(|| repositories.get(name)).cloned()
    }

    /// A blob or manifest wherever it lies: a CDN knows no repositories.
    pub(super) fn anywhere(&self, digest: &str) -> Option<Blob> {
        let repositories = self.held();
        repositories.values().find_map(|r| r.blobs.get(digest).or_else(|| r.manifests.get(digest)).cloned())
    }

    pub(super) fn push(&self, name: &str, tag: &str, image: &Image) {
        self.change(name, |repository| {
            for blob in &image.blobs {
                repository.blobs.insert(blob.digest.clone(), blob.clone());
            }
            for manifest in &image.manifests {
                repository.manifests.insert(manifest.digest.clone(), manifest.clone());
            }
            repository.tags.insert(tag.to_owned(), image.top.digest.clone());
        });
    }

    /// Changes a repository, which comes to be if it is not there.
    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut Repository)) {
        change(self.held().entry(name.to_owned()).or_default());
    }

    pub(super) fn remove(&self, name: &str) {
        self.held().remove(name);
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Repository>> {
        self.0.lock().expect("unpoisoned")
    }
}
