//! Keeps bytes under their digest and tags under their names, and survives being killed.
//!
//! Three things are kept. *Blobs* (manifests too): proven bytes in a file named by their digest, see
//! `tree.rs` for the folders. *Links*: which repository contains a digest, so that nothing is served through
//! a repository that may not see it (I5). *Names*: what a tag, or a list, meant when the upstream last said.
//! The last two, sizes and use times are in the index.
//!
//! A blob comes in through [`Partial`]: room is taken, bytes are written and hashed, proven, synced, renamed,
//! and indexed, in this order. It goes out by [`Store::open_blob`]. It leaves, least recently used first,
//! when room is needed; the index forgets it before the file goes. What is being read is never taken out.
//!
//! Leaves out what a digest *means*: manifests are bytes here.

mod claims;
mod disk;
mod error;
mod health;
mod index;
mod leftovers;
mod metrics;
mod partial;
mod reader;
mod room;
mod space;
#[cfg(test)]
mod tests;
mod tree;
mod upkeep;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

pub use error::{Error, OpenError};
pub use partial::Partial;
pub use reader::{Blob, HOLD_BACK, READ_SIZE, read_at};

use self::claims::Claims;
use self::health::Health;
use self::index::{Change, Entry, Index, millis};
use self::leftovers::Leftovers;
use self::metrics::{Reason, StoreMetrics};
use self::reader::{Readers, Seen};
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
    doubtful: Mutex<Vec<(Digest, Reservation)>>,
    // Used since the last flush, with the time; lost at a kill, which costs nothing but their place in the
    // order of eviction.
    used: Mutex<HashMap<Digest, u64>>,
    // One at a time looks for victims, so that two do not each evict for the other's need.
    evicting: tokio::sync::Mutex<()>,
    // Documents in memory: manifests are small, hot and asked for by everyone.
    documents: moka::future::Cache<Digest, Bytes>,
    metrics: StoreMetrics,
    _lock: File,
}

/// Bytes of documents held in memory.
const DOCUMENTS: u64 = 16 << 20;

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
        if !index.totals().is_whole() && tree.is_empty() {
            // Of no consequence where it cannot be written: then nothing else can.
            let _ = index.declare_whole();
        }
        let metrics = StoreMetrics::new(metrics);
        let space = Arc::new(Space::new(config, index.totals(), metrics.clone()));
        let documents = moka::future::Cache::builder()
            .max_capacity(DOCUMENTS)
            .weigher(|_, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
            // The default policy refuses every newcomer while old entries are warm.
            .eviction_policy(moka::policy::EvictionPolicy::lru());
        let inner = Arc::new(Inner {
            tree,
            index,
            space,
            readers: Arc::default(),
            claims: Arc::default(),
            leftovers: Leftovers::new(Tree::partial),
            quarantine: Leftovers::new(Tree::quarantined),
            drafts: Leftovers::new(Tree::document),
            health: Health::new(metrics.clone()),
            proven: moka::sync::Cache::new(MOST_PROVEN),
            removed: Mutex::default(),
            doubtful: Mutex::default(),
            used: Mutex::default(),
            evicting: tokio::sync::Mutex::default(),
            documents: documents.build(),
            metrics,
            _lock: lock,
        });
        inner.leftovers.take_up(&inner.tree.ingest(), &inner.space);
        inner.quarantine.take_up(&inner.tree.quarantine(), &inner.space);
        life.spawn("find blobs", upkeep::find_blobs(Arc::clone(&inner), life.clone()));
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
    /// again. So is a small one whose content is wrong.
    pub async fn open_blob(&self, digest: &Digest) -> Option<Blob> {
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
            Err(error) => {
                // Too many open files, say: the blob itself may be fine.
                let _ = self.0.health.note(Err::<(), _>(Error::io("opening a cached blob")(error)));
                return None;
            }
        };
        if seen.length != entry.size {
            self.0.expel(digest, Some(seen), "its size is wrong").await;
            return None;
        }
        self.0.mark_used(digest);
        let blob =
            Blob { inner: Arc::clone(&self.0), digest: *digest, file, seen, _reading: Arc::new(reading) };
        if seen.length <= HOLD_BACK && !blob.is_proven() {
            blob.clone().read_whole().await.ok()?;
        }
        Some(blob)
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

    /// The proof that `repository` contains `digest`, where there is one.
    pub fn link(&self, repository: &Repository, digest: &Digest) -> Option<Link> {
        self.0.index.link(repository, digest)
    }

    /// Remembers that `repository` contains `digest`, until its content is evicted.
    ///
    /// # Errors
    /// The index's.
    pub async fn add_link(&self, repository: &Repository, digest: Digest, link: Link) -> Result<(), Error> {
        self.0.index.change(Change::Linked(repository.clone(), digest, link)).await
    }

    /// What `name` means in `repository`, however long ago that was confirmed.
    pub fn name(&self, repository: &Repository, name: &Name) -> Option<Stamp> {
        self.0.index.name(repository, name)
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
        self.0.index.change(Change::Named(repository.clone(), name.clone(), stamp.clone())).await?;
        Ok(stamp)
    }

    /// Forgets a name that the upstream says is gone.
    ///
    /// # Errors
    /// The index's.
    pub async fn remove_name(&self, repository: &Repository, name: &Name) -> Result<(), Error> {
        self.0.index.change(Change::Unnamed(repository.clone(), name.clone())).await
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
        self.0.index.change(Change::Noted(name.to_owned(), note)).await
    }

    /// Every repository in which a name is remembered, in order.
    pub fn repositories(&self) -> Vec<Repository> {
        self.0.index.repositories().iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// The operator allows another size from now on: what is too much goes within seconds.
    pub fn set_limits(&self, config: &Cache) {
        self.0.space.set_limits(config);
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

    fn doubtful(&self) -> MutexGuard<'_, Vec<(Digest, Reservation)>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of this one is gone; the index is told so once that survives a power cut.
    fn settle_later(&self, digest: Digest) {
        self.removed().push(digest);
    }

    async fn put_document(&self, digest: Digest, bytes: Bytes) -> Result<(), Error> {
        let _claim = self.claims.claim(digest).await;
        let size = bytes.len() as u64;
        if Digest::of(digest.algorithm(), &bytes) != digest {
            return Err(Error::Mismatch);
        }
        let room = self.make_room(size).await?;
        let path = self.tree.document(&digest);
        let file = path.clone();
        let write = move || {
            let file = disk::open(&file)?;
            disk::cut(&file, 0)?;
            disk::write(&file, &bytes, 0)?;
            Ok(Arc::new(file))
        };
        if let Err(error) = self.name(write, path.clone(), digest).await {
            if self.tree.find(&digest).is_some() {
                self.doubtful().push((digest, room));
            } else {
                self.drafts.remove(digest, room, self);
            }
            return Err(error);
        }
        self.admit(digest, size, room).await
    }

    /// Gives the proven content of the file that `written` brings, and that is called `from`, its final name. The
    /// index hears of it before, and the disk has the bytes before: a crash leaves the file under one of its names, and
    /// the next start knows where to look. So does a failure, which may come after the deed.
    async fn name(
        &self,
        written: impl FnOnce() -> io::Result<Arc<File>> + Send + 'static,
        from: PathBuf,
        digest: Digest,
    ) -> Result<(), Error> {
        let synced = tokio::task::spawn_blocking(move || disk::sync(&*written()?));
        let (coming, synced) = tokio::join!(self.index.change(Change::Coming(digest)), synced);
        let flat = |outcome: Result<io::Result<_>, tokio::task::JoinError>| {
            outcome.map_err(io::Error::other).and_then(|outcome| outcome)
        };
        flat(synced).map_err(Error::io("writing a blob"))?;
        coming?;
        let to = self.tree.blob(&digest);
        let named = tokio::task::spawn_blocking(move || {
            disk::rename(&from, &to)?;
            Ok(Seen::at(&to))
        });
        let seen = named.await.map_err(io::Error::other).and_then(|named| named);
        if let Some(seen) = seen.map_err(Error::io("naming a blob"))? {
            self.proven.insert(digest, seen);
        }
        Ok(())
    }

    /// A file that the index does not know: it was lost, or the file is about to be indexed.
    async fn adopt(&self, digest: &Digest) -> Option<Entry> {
        self.tree.find(digest)?;
        // Counted once, whoever comes upon it, and not while its writer is still at it.
        let _claim = self.claims.claim(*digest).await;
        if let Some(entry) = self.index.entry(digest) {
            return Some(entry);
        }
        let entry = Entry { last_use: millis(lifecycle::now()), ..self.tree.find(digest)? };
        if let Err(error) = self.index.change(Change::Added(*digest, entry)).await {
            // It is found again when it is asked for again.
            tracing::debug!(%digest, %error, "a blob was found but cannot be indexed");
        }
        self.space.show_blobs();
        Some(entry)
    }

    /// A blob has its name: the index counts it from now on, and its room is given back.
    async fn admit(&self, digest: Digest, size: u64, room: Reservation) -> Result<(), Error> {
        let entry = Entry { size, last_use: millis(lifecycle::now()) };
        let added = self.index.change(Change::Added(digest, entry)).await;
        match &added {
            Ok(()) => drop(room),
            Err(_) => self.doubtful().push((digest, room)),
        }
        self.space.show_blobs();
        added
    }

    /// Takes out a blob whose file is not what it should be: `seen` is what it was known by, `None` where it was not
    /// there. Once, however many come upon it, and not when it was evicted or fetched anew meanwhile.
    async fn expel(&self, digest: &Digest, seen: Option<Seen>, why: &'static str) {
        let _claim = self.claims.claim(*digest).await;
        let path = self.tree.blob(digest);
        let Some(entry) = self.index.entry(digest).filter(|_| Seen::at(&path) == seen) else { return };
        tracing::warn!(%digest, why, "a cached blob is damaged; it is fetched again when it is asked for");
        self.documents.invalidate(digest).await;
        self.proven.invalidate(digest);
        let room = self.space.take_anyway(seen.map_or(0, |seen| seen.length));
        if let Err(error) = self.index.change(Change::Removed(vec![*digest])).await {
            tracing::warn!(%digest, %error, "a damaged blob cannot be taken out of the index");
            return self.doubtful().push((*digest, room));
        }
        self.metrics.evicted(Reason::Damaged, entry.size);
        if seen.is_some() {
            self.metrics.quarantined.inc();
            let aside = self.tree.quarantined(digest);
            let moved = disk::rename(&path, &aside);
            if moved.is_ok() || aside.exists() {
                self.quarantine.keep(*digest, room);
            } else if !disk::rid(&path) {
                self.doubtful().push((*digest, room));
            }
        }
        self.settle_later(*digest);
        self.space.show_blobs();
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Tag(tag) => write!(f, "tag:{tag}"),
            Name::Tags => f.write_str("tags"),
            Name::Referrers(digest) => write!(f, "referrers:{digest}"),
        }
    }
}
