//! Keeps bytes under their digest and tags under their names, and survives being killed.
//!
//! Three things are kept. *Blobs* (manifests too): proven bytes in a file named by their digest, see
//! `tree.rs` for the folders. *Links*: which repository contains a digest, so that nothing is served through
//! a repository that may not see it (I5). *Names*: what a tag, or a list, meant when the upstream last said.
//! The last two, sizes and use times are in the index.
//!
//! A blob comes in through [`Partial`]: room is taken, bytes are written and hashed, proven, synced, renamed,
//! and indexed, in this order. It goes out by [`Store::open_blob`]. It leaves, least recently used first,
//! when room is needed; the index forgets it before the file goes. What is being read, and what a pull under way
//! has yet to ask for, is never taken out. While a file comes or goes the index has it in mind, so that after a
//! crash only such files are looked at.
//!
//! Leaves out what a digest *means*: manifests are bytes here.

mod admission;
mod claims;
mod disk;
mod documents;
mod error;
mod health;
mod index;
mod inventory;
mod leftovers;
mod metrics;
mod names;
mod partial;
mod pulls;
mod reader;
mod room;
mod scrub;
mod space;
#[cfg(test)]
mod tests;
mod tree;
mod upkeep;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

pub use error::{Error, OpenError};
pub use inventory::{Fullness, Kept, Past, Pin};
pub use partial::Partial;
pub use reader::{Blob, HOLD_BACK, SECTION};
pub use scrub::Scrub;

use self::claims::Claims;
use self::documents::Documents;
use self::health::Health;
use self::index::{Change, Index, millis};
use self::leftovers::Leftovers;
use self::metrics::StoreMetrics;
use self::names::Names;
use self::pulls::Pulls;
use self::reader::{Readers, Seen};
use self::scrub::Scrubber;
use self::space::{Reservation, Space};
use self::tree::Tree;
use crate::config::Cache;
use crate::lifecycle::{self, Lifecycle};
use crate::oci::{Digest, Repository, Tag};
use crate::telemetry::Metrics;

/// The cache on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

/// The proof that a repository contains a digest: the upstream itself showed it. What a manifest merely
/// mentions is no proof, since anybody can write one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Size in bytes; 0 where the upstream did not tell.
    pub size: u64,
    /// A manifest or index rather than a blob.
    pub is_manifest: bool,
    /// The type that the upstream served it with; empty for a blob.
    pub media_type: String,
}

/// Something in a repository whose meaning may change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// A tag; it means a manifest.
    Tag(Tag),
    /// The list of all tags; it means the document last put together from the upstream's pages.
    Tags,
    /// What refers to this digest; likewise.
    Referrers(Digest),
}

/// What a name meant when the upstream last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its type, as the upstream gave it.
    pub media_type: String,
    /// Since when it means this.
    pub since: SystemTime,
    /// When the upstream last confirmed it.
    pub confirmed: SystemTime,
}

#[derive(Debug)]
struct Inner {
    tree: Tree,
    index: Index,
    space: Arc<Space>,
    readers: Arc<Readers>,
    claims: Arc<Claims>,
    pulls: Pulls,
    leftovers: Leftovers,
    quarantine: Leftovers,
    // Documents that came to nothing, and that the disk would not even let go.
    drafts: Leftovers,
    health: Health,
    // Blobs whose content was found right since the start, and by what their files are known.
    proven: moka::sync::Cache<Digest, Seen>,
    // Removed, and not yet from the disk's own point of view.
    removed: Mutex<Vec<Digest>>,
    // A change of these failed, and may have been made all the same: their room stays taken until that is known.
    doubtful: Mutex<HashMap<Digest, Reservation>>,
    scrubber: Scrubber,
    // Used since the last flush, with the time; lost at a kill, which costs nothing but their place in the
    // order of eviction.
    used: Mutex<HashMap<Digest, u64>>,
    // One at a time looks for victims, so that two do not each evict for the other's need.
    evicting: tokio::sync::Mutex<()>,
    // Documents in memory: manifests are small, hot and asked for by everyone.
    documents: Documents,
    names: Arc<Names>,
    metrics: StoreMetrics,
}

/// By this a tag is told from other names, as they are printed.
const TAG: &str = "tag:";

/// What is larger is a blob, and is never read into memory as a whole (I7).
const LARGEST_DOCUMENT: u64 = 32 << 20;

/// Blobs that are remembered as proven at once; a hundred bytes each. The others are hashed when they are next read.
const MOST_PROVEN: u64 = 100_000;

impl Store {
    /// Opens the directory of `config` and starts the store's own tasks in `life`. What a kill left half done is
    /// settled here; the tree is looked through only where the index was lost, in the background.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the directory and what to do.
    pub fn open(config: &Cache, life: &Lifecycle, metrics: &Metrics) -> Result<Store, OpenError> {
        let (tree, lock) = Tree::open(&config.dir)?;
        let failed = |error: Error| OpenError::Index { path: config.dir.clone(), reason: error.to_string() };
        let index = Index::open(&tree.index(), |digest| tree.find(digest)).map_err(failed)?;
        if !index.totals().sums().is_whole && tree.is_empty() {
            // Of no consequence where it cannot be written: then nothing else can.
            let _ = index.declare_whole();
        }
        let metrics = StoreMetrics::new(metrics);
        let space = Arc::new(Space::new(config, index.totals(), metrics.clone()));
        let inner = Arc::new(Inner {
            scrubber: Scrubber::new(config, &index),
            tree,
            index,
            space,
            readers: Arc::default(),
            claims: Claims::new(lock),
            pulls: Pulls::default(),
            leftovers: Leftovers::new(Tree::partial),
            quarantine: Leftovers::new(Tree::quarantined),
            drafts: Leftovers::new(Tree::document),
            health: Health::new(metrics.clone()),
            proven: moka::sync::Cache::new(MOST_PROVEN),
            removed: Mutex::default(),
            doubtful: Mutex::default(),
            used: Mutex::default(),
            evicting: tokio::sync::Mutex::default(),
            documents: Documents::default(),
            names: Arc::default(),
            metrics,
        });
        inner.leftovers.take_up(&inner.tree.ingest(), &inner.space);
        inner.quarantine.take_up(&inner.tree.quarantine(), &inner.space);
        life.spawn("find blobs", upkeep::find_blobs(Arc::clone(&inner), life.clone()));
        life.spawn("scrub", scrub::scrub_when_due(Arc::clone(&inner), life.clone()));
        life.spawn("look after the store", upkeep::look_after(Arc::clone(&inner), life.clone()));
        Ok(Store(inner))
    }

    /// The size of `digest` when it is here.
    pub async fn size(&self, digest: &Digest) -> Option<u64> {
        match self.0.index.entry(digest) {
            Some(entry) => Some(entry.size),
            None => self.0.adopt(digest).await.map(|entry| entry.size),
        }
    }

    /// Opens a blob for reading, and marks it as used. It is not evicted as long as the [`Blob`] lives.
    ///
    /// A file that is missing or has the wrong size is taken out and counts as "not here": it is fetched
    /// again. So is a small one whose content is wrong, and one that was changed.
    pub async fn open_blob(&self, digest: &Digest) -> Option<Blob> {
        let blob = self.open_unused(digest).await?;
        self.0.mark_used(digest);
        Some(blob)
    }

    /// The same for whoever only looks: that is no use of it.
    async fn open_unused(&self, digest: &Digest) -> Option<Blob> {
        let reading = self.0.readers.enter(*digest);
        let entry = match self.0.index.entry(digest) {
            Some(entry) => entry,
            None => self.0.adopt(digest).await?,
        };
        let opened = File::open(self.0.tree.blob(digest)).and_then(|file| Ok((file.metadata()?, file)));
        let (seen, file) = match opened {
            Ok((data, file)) => (Seen::of(&data), Arc::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.0.expel(digest, None, "its file is gone").await;
                return None;
            }
            Err(error) if health::wants_descriptors(&error) => {
                // The blob itself may be fine.
                let _ = self.0.health.note(Err::<(), _>(Error::io("opening a cached blob")(error)));
                return None;
            }
            Err(_) => {
                let seen = Seen::at(&self.0.tree.blob(digest));
                self.0.expel(digest, seen, "it cannot be opened").await;
                return None;
            }
        };
        if seen.length != entry.size {
            self.0.expel(digest, Some(seen), "its size is wrong").await;
            return None;
        }
        let blob =
            Blob { inner: Arc::clone(&self.0), digest: *digest, file, seen, _reading: Arc::new(reading) };
        (!blob.is_suspect() || blob.is_right().await).then_some(blob)
    }

    /// The bytes of a document; `None` also for what is too large to be one. Marks it as used.
    pub async fn document(&self, digest: &Digest) -> Option<Bytes> {
        if let Some(bytes) = self.0.documents.get(digest).await {
            self.0.mark_used(digest);
            return Some(bytes);
        }
        let blob = self.open_blob(digest).await.filter(|blob| blob.size() <= LARGEST_DOCUMENT)?;
        let bytes = blob.read_whole().await.ok()?;
        self.0.documents.insert(*digest, bytes.clone()).await;
        Some(bytes)
    }

    /// The bytes of a manifest, and the proof that `repository` contains it as such; `None` where one of them is not
    /// here. Marks it as used.
    pub async fn manifest(&self, repository: &Repository, digest: &Digest) -> Option<(Link, Bytes)> {
        if let Some(held) = self.0.documents.linked(repository, digest).await {
            self.0.mark_used(digest);
            return Some(held);
        }
        let link = self.link(repository, digest).filter(|link| link.is_manifest)?;
        let bytes = self.document(digest).await?;
        self.0.documents.link(repository, digest, &link).await;
        Some((link, bytes))
    }

    /// Keeps a small document that is whole in memory.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when `bytes` do not hash to `digest`; the disk's.
    pub async fn put_document(&self, digest: Digest, bytes: Bytes) -> Result<(), Error> {
        self.0.health.may_try()?;
        let put = self.0.put_document(digest, bytes.clone()).await;
        self.0.health.note(put)?;
        self.0.documents.insert(digest, bytes).await;
        Ok(())
    }

    /// Starts, or goes on, writing a blob whose length is `total` where that is known. Waits while somebody
    /// else writes it.
    ///
    /// # Errors
    /// [`Error::NoRoom`], or the disk's.
    pub async fn partial(&self, digest: Digest, total: Option<u64>) -> Result<Partial, Error> {
        self.0.health.may_try()?;
        let opened = Partial::open(&self.0, digest, total).await;
        self.0.health.note(opened)
    }

    /// A client was given a manifest and will ask for its `blobs`: until it has, none of them is evicted. Whether
    /// that begins a pull.
    pub fn pull_begins(&self, manifest: &Digest, blobs: impl FnOnce() -> Vec<Digest>) -> bool {
        self.0.pulls.begin(manifest, blobs)
    }

    /// The manifests of pulls under way that this blob belongs to.
    pub fn pulls_of(&self, blob: &Digest) -> Vec<Digest> {
        self.0.pulls.of(blob)
    }

    /// A client was given a blob.
    pub fn pull_goes_on(&self, blob: &Digest) {
        self.0.pulls.go_on(blob);
    }

    /// The proof that `repository` contains `digest`, where there is one.
    pub fn link(&self, repository: &Repository, digest: &Digest) -> Option<Link> {
        self.0.index.link(repository, digest)
    }

    /// Remembers that `repository` contains `digest`, until its content is evicted.
    ///
    /// # Errors
    /// The index's.
    pub async fn add_link(&self, repository: &Repository, digest: Digest, link: Link) -> Result<(), Error> {
        let changed = self.0.change(Change::Linked(repository.clone(), digest, link)).await;
        // It may be held with what an earlier proof said.
        self.0.documents.invalidate(&digest).await;
        changed
    }

    /// What `name` means in `repository`, however long ago that was confirmed.
    pub fn name(&self, repository: &Repository, name: &Name) -> Option<Stamp> {
        self.0.names.get(repository, name, || self.0.index.name(repository, name))
    }

    /// Remembers what `name` means. `since` of an earlier stamp stays while the digest is the same.
    ///
    /// # Errors
    /// The index's.
    pub async fn set_name(
        &self,
        repository: &Repository,
        name: &Name,
        mut stamp: Stamp,
    ) -> Result<Stamp, Error> {
        if let Some(old) = self.name(repository, name).filter(|old| old.digest == stamp.digest) {
            stamp.since = old.since;
        }
        let change = Change::Named(repository.clone(), name.clone(), stamp.clone());
        self.0.change_name(repository, name, change).await?;
        Ok(stamp)
    }

    /// Forgets a name that the upstream says is gone.
    ///
    /// # Errors
    /// The index's.
    pub async fn remove_name(&self, repository: &Repository, name: &Name) -> Result<(), Error> {
        self.0.change_name(repository, name, Change::Unnamed(repository.clone(), name.clone())).await
    }

    /// What another room noted under `name`.
    pub fn note(&self, name: &str) -> Option<Vec<u8>> {
        self.0.index.note(name)
    }

    /// Remembers a small note of another room. When this returns it survives a power cut; only the loss of the
    /// whole index takes it along.
    ///
    /// # Errors
    /// The index's.
    pub async fn set_note(&self, name: &str, note: Vec<u8>) -> Result<(), Error> {
        self.0.change(Change::Noted(name.to_owned(), note)).await
    }

    /// Every repository in which a name is remembered, in order.
    pub fn repositories(&self) -> Vec<Repository> {
        self.0.index.repositories().iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// The operator wants another size, or another scrub, from now on: what is too much goes within seconds. The
    /// directory stays.
    pub fn configure(&self, config: &Cache) {
        self.0.space.set_limits(config);
        self.0.scrubber.configure(config);
    }

    /// Writes down what is only in memory. To be called last.
    pub async fn close(&self) {
        self.0.tidy().await;
    }
}

impl Inner {
    fn mark_used(&self, digest: &Digest) {
        let now = millis(lifecycle::now());
        self.used().insert(*digest, now);
    }

    fn used(&self) -> MutexGuard<'_, HashMap<Digest, u64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn removed(&self) -> MutexGuard<'_, Vec<Digest>> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once for each, however often its change fails.
    fn doubt(&self, digest: Digest, room: Reservation) {
        self.doubtful().entry(digest).or_insert(room);
    }

    fn doubtful(&self) -> MutexGuard<'_, HashMap<Digest, Reservation>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of this one is gone; the index is told so once that survives a power cut.
    fn settle_later(&self, digest: Digest) {
        self.removed().push(digest);
    }

    /// Changes what only the index holds.
    async fn change(&self, change: Change) -> Result<(), Error> {
        let changed = self.index.change(change).await;
        self.health.note(changed)
    }

    /// Happens even if the caller goes away, and so does the forgetting.
    async fn change_name(&self, repository: &Repository, name: &Name, change: Change) -> Result<(), Error> {
        let (names, own) = (Arc::clone(&self.names), (repository.clone(), name.clone()));
        let changed = self.index.change_and(change, move || names.forget(&own.0, &own.1)).await;
        self.health.note(changed)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Tag(tag) => write!(f, "{TAG}{tag}"),
            Name::Tags => f.write_str("tags"),
            Name::Referrers(digest) => write!(f, "referrers:{digest}"),
        }
    }
}
