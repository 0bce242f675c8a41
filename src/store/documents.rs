use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use moka::future::Cache;

use super::Link;
use crate::oci::{Digest, Repository};

/// Small documents that are hot, in memory, each with repositories that are known to contain it: a manifest that a
/// hundred jobs ask for costs no look into the index.
///
/// What is taken out of the store is taken out of here after the index has forgotten it, and its links with it.
#[derive(Debug)]
pub(super) struct Documents(Cache<Digest, Held>);

#[derive(Debug, Clone)]
struct Held {
    bytes: Bytes,
    links: Arc<Mutex<Vec<(Repository, Link)>>>,
}

/// Bytes that are held.
const MOST_BYTES: u64 = 16 << 20;

/// Repositories that are held for each; the others are looked up.
const MOST_LINKS: usize = 16;

impl Default for Documents {
    fn default() -> Documents {
        let cache = Cache::builder()
            .max_capacity(MOST_BYTES)
            .weigher(|_, held: &Held| u32::try_from(held.bytes.len()).unwrap_or(u32::MAX))
            // The default policy refuses every newcomer while old entries are warm.
            .eviction_policy(moka::policy::EvictionPolicy::lru());
        Documents(cache.build())
    }
}

impl Documents {
    pub(super) async fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.0.get(digest).await.map(|held| held.bytes)
    }

    pub(super) async fn insert(&self, digest: Digest, bytes: Bytes) {
        self.0.insert(digest, Held { bytes, links: Arc::default() }).await;
    }

    pub(super) async fn invalidate(&self, digest: &Digest) {
        self.0.invalidate(digest).await;
    }

    /// The document, and the proof that `repository` contains it, where both are held.
    pub(super) async fn linked(&self, repository: &Repository, digest: &Digest) -> Option<(Link, Bytes)> {
        let held = self.0.get(digest).await?;
        let link = held.links().iter().find(|(own, _)| own == repository).map(|(_, link)| link.clone())?;
        Some((link, held.bytes))
    }

    /// The index has this proof.
    pub(super) async fn link(&self, repository: &Repository, digest: &Digest, link: &Link) {
        let Some(held) = self.0.get(digest).await else { return };
        let mut links = held.links();
        if links.len() < MOST_LINKS && !links.iter().any(|(own, _)| own == repository) {
            links.push((repository.clone(), link.clone()));
        }
    }
}

impl Held {
    fn links(&self) -> MutexGuard<'_, Vec<(Repository, Link)>> {
        // Each is put in whole.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
