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

mod error;
mod index;
mod metrics;
mod partial;
mod reader;
mod recovery;
mod room;
mod space;
mod tree;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

pub use error::{Error, OpenError};
pub use partial::Partial;
pub use reader::{Blob, READ_SIZE, read_at};

use self::index::{Change, Entry, Index, millis};
use self::metrics::{Reason, StoreMetrics};
use self::partial::{Claims, Leftovers};
use self::reader::Readers;
use self::space::Space;
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

/// How often use times go to the index.
const FLUSH: Duration = Duration::from_secs(10);

impl Store {
    /// Opens the directory of `config` and starts the store's own tasks in `life`. After a kill, blobs that
    /// the index does not know are found in the background, and before that as soon as they are asked for.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the directory and what to do.
    pub fn open(config: &Cache, life: &Lifecycle, metrics: &Metrics) -> Result<Store, OpenError> {
        let (tree, lock) = Tree::open(&config.dir)?;
        let (index, was_clean) = recovery::open_index(&tree)?;
        let metrics = StoreMetrics::new(metrics);
        let space = Arc::new(Space::new(config, index.totals().bytes, metrics.clone()));
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
            leftovers: Leftovers::default(),
            used: Mutex::default(),
            evicting: tokio::sync::Mutex::default(),
            documents: documents.build(),
            metrics,
            _lock: lock,
        });
        inner.show_count();
        recovery::take_up_partials(&inner);
        if !was_clean {
            life.spawn("find blobs after a kill", recovery::adopt_all(Arc::clone(&inner), life.clone()));
        }
        life.spawn("flush use times", flush_loop(Arc::clone(&inner), life.clone()));
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
    /// again.
    pub async fn open_blob(&self, digest: &Digest) -> Option<Blob> {
        let reading = self.0.readers.enter(*digest);
        let entry = match self.0.index.entry(digest) {
            Some(entry) => entry,
            None => self.0.adopt(digest).await?,
        };
        let opened = File::open(self.0.tree.blob(digest)).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((length, file)) if length == entry.size => {
                self.mark_used(digest);
                Some(Blob { file: Arc::new(file), size: length, _reading: Arc::new(reading) })
            }
            Ok(_) => self.0.give_up(digest, entry, "its size is wrong").await,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.0.give_up(digest, entry, "its file is gone").await
            }
            Err(error) => {
                // Too many open files, say: the blob itself may be fine.
                tracing::warn!(%digest, %error, "a cached blob cannot be opened");
                None
            }
        }
    }

    /// The bytes of a document; `None` also for what is too large to be one. Marks it as used.
    pub async fn document(&self, digest: &Digest) -> Option<Bytes> {
        if let Some(bytes) = self.0.documents.get(digest).await {
            self.mark_used(digest);
            return Some(bytes);
        }
        let blob = self.open_blob(digest).await.filter(|blob| blob.size() <= LARGEST_DOCUMENT)?;
        let (digest, size) = (*digest, blob.size());
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        while (bytes.len() as u64) < size {
            let chunk = read_at(blob.file(), bytes.len() as u64, size - bytes.len() as u64).await;
            let chunk =
                chunk.inspect_err(|error| tracing::warn!(%digest, %error, "a document cannot be read"));
            bytes.extend_from_slice(&chunk.ok()?);
        }
        let bytes = Bytes::from(bytes);
        self.0.documents.insert(digest, bytes.clone()).await;
        Some(bytes)
    }

    /// Keeps a small document that is whole in memory.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when `bytes` do not hash to `digest`; the disk's.
    pub async fn put_document(&self, digest: Digest, bytes: Bytes) -> Result<(), Error> {
        let _claim = self.0.claims.claim(digest).await;
        let size = bytes.len() as u64;
        let room = self.0.make_room(size).await?;
        let (tree, content) = (self.0.tree.clone(), bytes.clone());
        let written = tokio::task::spawn_blocking(move || write_document(&tree, &digest, &content));
        written.await.map_err(std::io::Error::other).map_err(Error::io("writing a document"))??;
        self.0.admit(digest, size, room).await?;
        self.0.documents.insert(digest, bytes).await;
        Ok(())
    }

    /// Starts, or goes on, writing a blob whose length is `total` where that is known. Waits while somebody
    /// else writes it.
    ///
    /// # Errors
    /// [`Error::NoRoom`], or the disk's.
    pub async fn partial(&self, digest: Digest, total: Option<u64>) -> Result<Partial, Error> {
        let opened = Partial::open(&self.0, digest, total).await;
        opened.inspect_err(|_| self.0.metrics.failures.inc())
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

    /// Writes use times down and, when nobody is in the midst of changing anything, marks the index as closed in
    /// order. To be called last; what is changed afterwards is kept, but the next start looks through the tree
    /// as after a kill.
    pub async fn close(&self) {
        self.0.flush_used().await;
        if !self.0.claims.is_empty() {
            return;
        }
        if let Err(error) = self.0.index.change(Change::Closed).await {
            tracing::warn!(%error, "the cache could not be closed in order; the next start checks it");
        }
    }

    fn mark_used(&self, digest: &Digest) {
        let now = millis(lifecycle::now());
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest, now);
    }
}

impl Inner {
    /// A file that the index does not know: the process was killed between naming and indexing it, or it is
    /// about to be indexed.
    async fn adopt(&self, digest: &Digest) -> Option<Entry> {
        let path = self.tree.blob(digest);
        fs::metadata(&path).ok()?;
        // Counted once, whoever comes upon it, and not while its writer is still at it.
        let _claim = self.claims.claim(*digest).await;
        if let Some(entry) = self.index.entry(digest) {
            return Some(entry);
        }
        let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let entry = Entry { size: metadata.len(), last_use: millis(lifecycle::now()) };
        match self.index.change(Change::Added(*digest, entry)).await {
            Ok(()) => self.space.found(entry.size),
            // It is found again when it is asked for again, so it must not be counted each time.
            Err(error) => tracing::warn!(%digest, %error, "a blob was found but cannot be indexed"),
        }
        self.show_count();
        Some(entry)
    }

    /// A blob has its name: it counts from now on. Where that cannot be written down, the file goes again: one
    /// that nobody counts could never be evicted.
    async fn admit(&self, digest: Digest, size: u64, room: space::Reservation) -> Result<(), Error> {
        let is_new = self.index.entry(&digest).is_none();
        let entry = Entry { size, last_use: millis(lifecycle::now()) };
        let added = self.index.change(Change::Added(digest, entry)).await;
        added.inspect_err(|_| drop(fs::remove_file(self.tree.blob(&digest))))?;
        if is_new {
            room.become_blob();
        }
        self.show_count();
        Ok(())
    }

    /// Takes out a blob whose file is not what the index says. Once, however many come upon it, and not when it
    /// was evicted just now: it would be counted as gone twice.
    async fn give_up<T>(&self, digest: &Digest, entry: Entry, why: &'static str) -> Option<T> {
        let _claim = self.claims.claim(*digest).await;
        let path = self.tree.blob(digest);
        let is_whole = fs::metadata(&path).is_ok_and(|data| data.len() == entry.size);
        if is_whole || self.index.entry(digest).is_none() {
            return None;
        }
        tracing::warn!(%digest, why, "a cached blob is damaged; it is fetched again when it is asked for");
        let removed = self.index.change(Change::Removed(vec![*digest])).await;
        let _ = fs::remove_file(path);
        if removed.is_ok() {
            self.space.gone(entry.size);
            self.metrics.evicted(Reason::Damaged, entry.size);
        }
        self.show_count();
        None
    }

    async fn flush_used(&self) {
        let used: Vec<(Digest, u64)> =
            self.used.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
        if !used.is_empty()
            && let Err(error) = self.index.change(Change::Used(used)).await
        {
            tracing::warn!(%error, "use times could not be written");
        }
    }

    fn show_count(&self) {
        self.metrics.blobs.set(space::gauge(self.index.totals().count));
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

async fn flush_loop(inner: Arc<Inner>, life: Lifecycle) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(FLUSH) => inner.flush_used().await,
            () = life.stopping() => return,
        }
    }
}

fn write_document(tree: &Tree, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
    if Digest::of(digest.algorithm(), bytes) != *digest {
        return Err(Error::Mismatch);
    }
    let path = tree.document(digest);
    let written = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let written = written.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_data()
    });
    let named = written.and_then(|()| tree.promote(&path, digest));
    named.map_err(|error| {
        let _ = fs::remove_file(&path);
        Error::io("writing a document")(error)
    })
}
