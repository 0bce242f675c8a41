//! What the store does by itself: at a start, every few seconds, and when the index turns out to be damaged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use super::index::{Change, Entry, millis};
use super::tree::Tree;
use super::{Error, Inner, disk};
use crate::lifecycle::{self, Lifecycle};
use crate::oci::{Algorithm, Digest};

/// A partial download that nobody took up for so long is dropped, and so is what is in quarantine.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// How often use times go to the index, a failing disk is tried again, and the rest is looked after.
const EVERY: Duration = Duration::from_secs(5);

/// Blobs of the tree that are put into the index together: one by one a million of them would take hours, and while
/// too many are on their way whoever has something else to put there waits.
const FOUND_AT_ONCE: usize = 1_000;

/// Use times that are written together.
const USED_AT_ONCE: usize = 2_000;

/// What a disk that failed must take before it is trusted again.
const PROBE: usize = 64 << 10;

/// Looks after the store until it is told to stop.
pub(super) async fn look_after(inner: Arc<Inner>, life: Lifecycle) {
    loop {
        let before = inner.index.totals().sums().count;
        inner.tidy().await;
        // A limit that was lowered by much takes many turns; a stop may come in between.
        let goes_on = inner.index.totals().sums().count < before && inner.space.missing(0).is_some();
        tokio::select! {
            () = tokio::time::sleep(if goes_on { Duration::ZERO } else { EVERY }) => {}
            () = life.stopping() => return,
        }
    }
}

/// Looks through the tree where not all of it is known, now and whenever a new index takes the place of a damaged
/// one, while the mirror is serving. A blob that is asked for before this comes to it is found then.
pub(super) async fn find_blobs(inner: Arc<Inner>, life: Lifecycle) {
    loop {
        let is_whole = inner.index.totals().sums().is_whole || inner.look_through(&life).await;
        tokio::select! {
            () = inner.index.replaced() => {}
            // The disk failed meanwhile.
            () = tokio::time::sleep(EVERY), if !is_whole => {}
            () = life.stopping() => return,
        }
    }
}

impl Inner {
    /// Whatever must not wait for long.
    pub(super) async fn tidy(&self) {
        self.flush_used().await;
        self.settle().await;
        let oldest = millis(lifecycle::now() - LEFTOVER_AGE);
        self.leftovers.drop_older(oldest, self);
        self.quarantine.drop_older(oldest, self);
        self.drafts.drop_older(u64::MAX, self);
        self.pulls.tidy(|blob| self.is_busy(blob));
        let probed = if self.health.is_failing() { self.probe().await } else { Ok(()) };
        if probed.is_ok() {
            self.reconcile().await;
        }
        // The limit may be another one now, and others fill the disk too.
        let trimmed = match probed {
            Ok(()) => self.make_room(0).await.map(drop),
            failed => failed,
        };
        match self.health.note(trimmed) {
            Ok(()) | Err(Error::NoRoom { .. }) => self.health.worked(),
            Err(_) => {}
        }
    }

    /// Has the index agree with the tree again, where a change failed.
    async fn reconcile(&self) {
        let doubtful = std::mem::take(&mut *self.doubtful());
        for (digest, room) in doubtful {
            let _claim = self.claims.claim(digest).await;
            let change = match (self.index.entry(&digest), self.tree.find(&digest)) {
                (None, Some(entry)) => Change::Added(digest, entry),
                (Some(_), None) => Change::Removed(vec![digest]),
                (Some(_), Some(_)) | (None, None) => continue,
            };
            if self.index.change(change).await.is_err() {
                self.doubt(digest, room);
            }
        }
        self.space.show();
    }

    /// Whether the disk takes a file and the index a change.
    async fn probe(&self) -> Result<(), Error> {
        let path = self.tree.ingest().join("probe");
        let written = tokio::task::spawn_blocking(move || {
            let file = disk::open(&path)?;
            let written = disk::write(&file, &[0; PROBE], 0).and_then(|()| disk::sync(&file));
            disk::remove(&path)?;
            written
        });
        let written = written.await.map_err(io::Error::other).and_then(|written| written);
        written.map_err(Error::io("trying whether the disk takes anything"))?;
        self.index.change(Change::Settled(Vec::new())).await
    }

    /// In parts, so that nobody else who changes the index waits for all of them.
    pub(super) async fn flush_used(&self) {
        let used: Vec<(Digest, u64)> = self.used().drain().collect();
        for some in used.chunks(USED_AT_ONCE) {
            if let Err(error) = self.index.change(Change::Used(some.to_vec())).await {
                return tracing::debug!(%error, "use times could not be written");
            }
        }
    }

    /// Files that were removed are gone for good once their folders are on disk; until then the index keeps them in
    /// mind, so that none that comes back at a power cut goes uncounted.
    pub(super) async fn settle(&self) {
        // What is coming again meanwhile is noted once more, and must stay so.
        let removed = std::mem::take(&mut *self.removed());
        let claimed = removed.into_iter().map(|digest| (digest, self.claims.try_claim(digest)));
        let (free, busy): (Vec<_>, Vec<_>) = claimed.partition(|(_, claim)| claim.is_some());
        self.removed().extend(busy.iter().map(|(digest, _)| *digest));
        let removed: Vec<Digest> = free.iter().map(|(digest, _)| *digest).collect();
        if removed.is_empty() {
            return;
        }
        let (tree, digests) = (self.tree.clone(), removed.clone());
        let synced = tokio::task::spawn_blocking(move || {
            let mut folders: Vec<_> = digests.iter().map(|digest| tree.folder(digest)).collect();
            folders.sort_unstable();
            folders.dedup();
            folders.iter().try_for_each(|folder| disk::sync_folder(folder))
        });
        let is_synced = synced.await.is_ok_and(|synced| synced.is_ok());
        if !is_synced || self.index.change(Change::Settled(removed.clone())).await.is_err() {
            self.removed().extend(removed);
        }
    }

    /// Whether it came to the end.
    pub(super) async fn look_through(self: &Arc<Self>, life: &Lifecycle) -> bool {
        let begun = tokio::time::Instant::now();
        let mut found = 0;
        for (algorithm, byte) in
            Algorithm::ALL.into_iter().flat_map(|it| (0..=255u8).map(move |byte| (it, byte)))
        {
            if life.is_stopping() {
                return false;
            }
            let folder = self.tree.algorithm(algorithm).join(format!("{byte:02x}"));
            match self.look_through_folder(algorithm, folder, life).await {
                Ok(count) => found += count,
                Err(error) => {
                    tracing::debug!(%error, "the cache could not be looked through");
                    return false;
                }
            }
        }
        if life.is_stopping() || self.index.change(Change::Whole).await.is_err() {
            return false;
        }
        if found > 0 {
            tracing::info!(found, after = ?begun.elapsed(), "blobs were found that the index did not know");
        }
        true
    }

    async fn look_through_folder(
        self: &Arc<Self>,
        algorithm: Algorithm,
        folder: PathBuf,
        life: &Lifecycle,
    ) -> Result<usize, Error> {
        let (inner, life) = (Arc::clone(self), life.clone());
        let unknown = tokio::task::spawn_blocking(move || inner.unknown_in(algorithm, &folder, &life)).await;
        let unknown = unknown.map_err(io::Error::other).and_then(|unknown| unknown);
        let unknown = unknown.map_err(Error::io("looking through the cache"))?;
        let mut found = 0;
        for some in unknown.chunks(FOUND_AT_ONCE) {
            found += self.take_in(some).await?;
        }
        Ok(found)
    }

    /// Counts files that the index did not know a moment ago.
    async fn take_in(&self, unknown: &[(Digest, Entry)]) -> Result<usize, Error> {
        // Whoever has a claim on one of the others writes, finds or removes it at this moment, and counts it.
        let claimed = unknown.iter().filter_map(|(digest, entry)| {
            let claim = self.claims.try_claim(*digest)?;
            self.index.entry(digest).is_none().then_some((*digest, *entry, claim))
        });
        let claimed: Vec<_> = claimed.collect();
        if claimed.is_empty() {
            return Ok(0);
        }
        let found = claimed.iter().map(|(digest, entry, _)| (*digest, *entry)).collect();
        self.index.change(Change::Found(found)).await?;
        self.space.show();
        Ok(claimed.len())
    }

    /// All of them, unless the process is to stop.
    fn unknown_in(
        &self,
        algorithm: Algorithm,
        folder: &Path,
        life: &Lifecycle,
    ) -> io::Result<Vec<(Digest, Entry)>> {
        let mut unknown = Vec::new();
        for file in fs::read_dir(folder)? {
            let file = file?;
            if life.is_stopping() {
                break;
            }
            let digest = file.file_name().to_str().and_then(|name| Digest::from_hex(algorithm, name).ok());
            let Some(digest) = digest.filter(|digest| self.index.entry(digest).is_none()) else { continue };
            // One that is gone by now is none.
            unknown.extend(file.metadata().ok().and_then(|data| Some((digest, Tree::entry(&data)?))));
        }
        Ok(unknown)
    }
}
