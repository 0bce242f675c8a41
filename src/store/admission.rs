//! How content gets its name and its entry in the index, and how what is damaged loses them. Each under a claim on
//! the digest, so that nobody comes in between.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::index::{Change, Entry, millis};
use super::metrics::Reason;
use super::reader::Seen;
use super::space::Reservation;
use super::{Error, Inner, disk};
use crate::lifecycle;
use crate::oci::Digest;

impl Inner {
    pub(super) async fn put_document(&self, digest: Digest, bytes: Bytes) -> Result<(), Error> {
        let _claim = self.claims.claim(digest).await;
        let size = bytes.len() as u64;
        if Digest::of(digest.algorithm(), &bytes) != digest {
            return Err(Error::Mismatch);
        }
        let is_here = self.index.entry(&digest).is_some();
        let seen = self.proven.get(&digest).filter(|_| is_here);
        if seen.is_some() && seen == Seen::at(&self.tree.blob(&digest)) {
            return Ok(());
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
                self.doubt(digest, room);
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
    pub(super) async fn name(
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
    pub(super) async fn adopt(&self, digest: &Digest) -> Option<Entry> {
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
        self.space.show();
        Some(entry)
    }

    /// A blob has its name: the index counts it from now on, and its room is given back.
    pub(super) async fn admit(&self, digest: Digest, size: u64, mut room: Reservation) -> Result<(), Error> {
        room.all_written();
        let entry = Entry::new(size, millis(lifecycle::now()));
        let (space, bytes) = (Arc::clone(&self.space), room.bytes());
        let added = self.index.change_and(Change::Added(digest, entry), move || space.release(bytes)).await;
        match &added {
            Ok(()) => room.released(),
            Err(_) => self.doubt(digest, room),
        }
        self.space.show();
        added
    }

    /// Takes out a blob whose file is not what it should be: `seen` is what it was known by, `None` where it was not
    /// there. Once, however many come upon it, and not when it was evicted or fetched anew meanwhile; whether it was
    /// taken out now.
    pub(super) async fn expel(&self, digest: &Digest, seen: Option<Seen>, why: &'static str) -> bool {
        let _claim = self.claims.claim(*digest).await;
        let path = self.tree.blob(digest);
        let Some(entry) = self.index.entry(digest).filter(|_| Seen::at(&path) == seen) else { return false };
        tracing::warn!(%digest, why, "a cached blob is damaged; it is fetched again when it is asked for");
        self.documents.invalidate(digest).await;
        self.proven.invalidate(digest);
        let (space, length) = (Arc::clone(&self.space), seen.map_or(0, |seen| seen.length));
        let removed =
            self.index.change_and(Change::Removed(vec![*digest]), move || space.reserve(length)).await;
        if let Err(error) = removed {
            tracing::warn!(%digest, %error, "a damaged blob cannot be taken out of the index");
            self.doubt(*digest, self.space.take_anyway(length));
            return false;
        }
        let room = self.space.reserved(length);
        self.metrics.evicted(Reason::Damaged, entry.size);
        if seen.is_some() {
            self.metrics.quarantined.inc();
            let aside = self.tree.quarantined(digest);
            let moved = disk::rename(&path, &aside);
            if moved.is_ok() || aside.exists() {
                self.quarantine.keep(*digest, room);
            } else if !disk::rid(&path) {
                self.doubt(*digest, room);
            }
        }
        self.settle_later(*digest);
        self.space.show();
        true
    }
}
