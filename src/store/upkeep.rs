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

/// What a disk that failed must take before it is trusted again.
const PROBE: usize = 64 << 10;

/// Looks after the store until it is told to stop.
pub(super) async fn look_after(inner: Arc<Inner>, life: Lifecycle) {
    loop {
        inner.tidy().await;
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
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
        let trimmed = self.make_room(0).await.map(drop);
        match self.health.note(probed.and(trimmed)) {
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
                self.doubtful().push((digest, room));
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

    pub(super) async fn flush_used(&self) {
        let used: Vec<(Digest, u64)> = self.used().drain().collect();
        if !used.is_empty()
            && let Err(error) = self.index.change(Change::Used(used)).await
        {
            tracing::debug!(%error, "use times could not be written");
        }
    }

    /// Files that were removed are gone for good once their folders are on disk; until then the index keeps them in
    /// mind, so that none that comes back at a power cut goes uncounted.
    async fn settle(&self) {
        let removed = std::mem::take(&mut *self.removed());
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
            match self.look_through_folder(algorithm, folder).await {
                Ok(count) => found += count,
                Err(error) => {
                    tracing::debug!(%error, "the cache could not be looked through");
                    return false;
                }
            }
        }
        if self.index.change(Change::Whole).await.is_err() {
            return false;
        }
        if found > 0 {
            tracing::info!(found, after = ?begun.elapsed(), "blobs were found that the index did not know");
        }
        true
    }

    /// Together, so that all blobs of a folder share one sync of the index: one by one a million of them would take
    /// hours.
    async fn look_through_folder(
        self: &Arc<Self>,
        algorithm: Algorithm,
        folder: PathBuf,
    ) -> Result<usize, Error> {
        let inner = Arc::clone(self);
        let unknown = tokio::task::spawn_blocking(move || inner.unknown_in(algorithm, &folder)).await;
        // Whoever has a claim on one of the others writes, finds or removes it at this moment, and counts it.
        let claimed = unknown.unwrap_or_default().into_iter().filter_map(|(digest, entry)| {
            let claim = self.claims.try_claim(digest)?;
            self.index.entry(&digest).is_none().then_some((digest, entry, claim))
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

    fn unknown_in(&self, algorithm: Algorithm, folder: &Path) -> Vec<(Digest, Entry)> {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let unknown = files.filter_map(|file| {
            let digest = Digest::from_hex(algorithm, file.file_name().to_str()?).ok()?;
            let is_unknown = self.index.entry(&digest).is_none();
            let data = is_unknown.then(|| file.metadata().ok())??;
            Some((digest, Tree::entry(&data)?))
        });
        unknown.collect()
    }
}
