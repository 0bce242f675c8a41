//! What the operator sees of what is kept, and says of it.

use std::collections::HashSet;
use std::ops::Bound;
use std::time::SystemTime;

use bytes::Bytes;

use super::index::{Change, time};
use super::metrics::Reason;
use super::{Error, LARGEST_DOCUMENT, Name, Stamp, Store};
use crate::oci::{Digest, Reference, Repository, Tag};

/// A blob or manifest that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its size in bytes.
    pub size: u64,
    /// When it was last used; not counting the last few seconds.
    pub last_use: SystemTime,
    /// A pin keeps it from eviction.
    pub is_pinned: bool,
}

/// A promise that what a reference means is not evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// In this repository.
    pub repository: Repository,
    /// This.
    pub reference: Reference,
    /// What is kept for it, once it is here.
    pub digests: Vec<Digest>,
}

/// What a tag meant before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// The manifest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its type, as the upstream gave it.
    pub media_type: String,
    /// Since when it meant this.
    pub since: SystemTime,
    /// Until when.
    pub until: SystemTime,
}

/// How full the cache is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fullness {
    /// All blobs and manifests.
    pub bytes: u64,
    /// How many there are.
    pub blobs: u64,
    /// The bytes of those that are pinned.
    pub pinned: u64,
    /// The most that there may be.
    pub limit: u64,
}

impl Store {
    /// The next `most` tags that are remembered behind that of `after`, in the order of repositories and tags; fewer only
    /// at the end.
    pub fn tags(&self, after: Option<(&Repository, &Tag)>, most: usize) -> Vec<(Repository, Tag, Stamp)> {
        let after =
            after.map(|(repository, tag)| (repository.to_string(), Name::Tag(tag.clone()).to_string()));
        let after = after.as_ref().map(|(repository, name)| (repository.as_str(), name.as_str()));
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        read(self.0.index.tags(from, None, most))
    }

    /// All tags of `repository` that are remembered, in order.
    pub fn tags_of(&self, repository: &Repository) -> Vec<(Tag, Stamp)> {
        let repository = repository.to_string();
        let from = Bound::Included((repository.as_str(), ""));
        let found = read(self.0.index.tags(from, Some(&repository), usize::MAX));
        found.into_iter().map(|(_, tag, stamp)| (tag, stamp)).collect()
    }

    /// What `tag` meant before what it means, the latest first; a hundred changes are remembered.
    pub fn history(&self, repository: &Repository, tag: &Tag) -> Vec<Past> {
        self.0.index.history(repository, &Name::Tag(tag.clone()))
    }

    /// The same for whoever only looks: it is not marked as used, and takes no hot one's place in memory.
    pub async fn peek(&self, digest: &Digest) -> Option<Bytes> {
        if let Some(bytes) = self.0.documents.get(digest).await {
            return Some(bytes);
        }
        let blob = self.open_unused(digest).await.filter(|blob| blob.size() <= LARGEST_DOCUMENT)?;
        blob.read_whole().await.ok()
    }

    /// What is known of `digest` when it is here.
    pub fn kept(&self, digest: &Digest) -> Option<Kept> {
        let entry = self.0.index.entry(digest)?;
        Some(Kept { size: entry.size, last_use: time(entry.last_use), is_pinned: entry.is_pinned })
    }

    /// It is as if this had been asked for now.
    pub fn touch(&self, digest: &Digest) {
        self.0.mark_used(digest);
    }

    /// How full it is.
    pub fn fullness(&self) -> Fullness {
        let sums = self.0.index.totals().sums();
        let limit = self.0.space.limit();
        Fullness { bytes: sums.bytes, blobs: sums.count, pinned: sums.pinned_bytes, limit }
    }

    /// The next `most` to be evicted, least recently used first.
    pub fn next_to_go(&self, most: usize) -> Vec<(Digest, Kept)> {
        let mut next = Vec::new();
        self.0.index.oldest(u64::MAX, most, |digest, entry| {
            let kept = Kept { size: entry.size, last_use: time(entry.last_use), is_pinned: false };
            next.push((*digest, kept));
            true
        });
        next
    }

    /// Up to `most` digests of what is here, in order, behind `after`.
    pub fn digests(&self, after: Option<&Digest>, most: usize) -> Vec<Digest> {
        self.0.index.after(after, most).unwrap_or_default()
    }

    /// The repositories that are known to contain `digest`.
    pub fn repositories_of(&self, digest: &Digest) -> Vec<Repository> {
        self.0.index.linked(digest).iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// The pins in `repository`, in order.
    pub fn pins(&self, repository: &Repository) -> Vec<Pin> {
        let pins = self.0.index.pins(repository).into_iter().filter_map(|(reference, digests)| {
            Some(Pin { repository: repository.clone(), reference: reference.parse().ok()?, digests })
        });
        pins.collect()
    }

    /// The pin of `reference`, where there is one.
    pub fn pin_of(&self, repository: &Repository, reference: &Reference) -> Option<Pin> {
        let digests = self.0.index.pin(repository, reference)?;
        Some(Pin { repository: repository.clone(), reference: reference.clone(), digests })
    }

    /// The repositories in which something is pinned, in order.
    pub fn pinned_repositories(&self) -> Vec<Repository> {
        self.0.index.pinned_repositories().into_iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Whether there is a pin of `reference`.
    pub fn is_pinned(&self, repository: &Repository, reference: &Reference) -> bool {
        self.0.index.pin(repository, reference).is_some()
    }

    /// Keeps what `pin` names from eviction, in place of what an earlier pin of the same reference named. What is not
    /// here is kept when it comes. Survives everything but the loss of the whole index.
    ///
    /// # Errors
    /// The index's.
    pub async fn pin(&self, pin: Pin) -> Result<(), Error> {
        let pinned = self.0.change(Change::Pinned(pin.repository, pin.reference, pin.digests)).await;
        self.0.space.show();
        pinned
    }

    /// Takes a pin back. What no other one holds may be evicted when its turn comes.
    ///
    /// # Errors
    /// The index's.
    pub async fn unpin(&self, repository: &Repository, reference: &Reference) -> Result<(), Error> {
        let unpinned = self.0.change(Change::Unpinned(repository.clone(), reference.clone())).await;
        self.0.space.show();
        unpinned
    }

    /// Forgets that `repository` contains `digests`, and takes out those that no repository is known to contain any
    /// more; what is read, written or pinned stays until it is evicted. How many bytes went.
    ///
    /// # Errors
    /// The index's, or the disk's.
    pub async fn forget(&self, repository: &Repository, digests: HashSet<Digest>) -> Result<u64, Error> {
        let unlinked = digests.iter().copied().collect();
        self.0.change(Change::Unlinked(repository.clone(), unlinked)).await?;
        let mut victims = Vec::new();
        for digest in digests {
            // It may be held with the proof that has just gone.
            self.0.documents.invalidate(&digest).await;
            let Some(entry) = self.0.index.entry(&digest).filter(|entry| !entry.is_pinned) else { continue };
            let Some(claim) = self.0.may_go(&digest) else { continue };
            // By now somebody may have found it in another repository.
            if self.0.index.linked(&digest).is_empty() {
                victims.push((digest, entry, claim));
            }
        }
        if victims.is_empty() {
            return Ok(0);
        }
        let taken = self.0.take_out(victims, Reason::Removed).await;
        self.0.health.note(taken)
    }
}

/// What cannot be read is none of ours.
fn read(found: Vec<(String, String, Stamp)>) -> Vec<(Repository, Tag, Stamp)> {
    let read = found
        .into_iter()
        .filter_map(|(repository, tag, stamp)| Some((repository.parse().ok()?, tag.parse().ok()?, stamp)));
    read.collect()
}
