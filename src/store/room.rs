//! Making room: what goes when something new comes.

use std::fs;

use super::index::Change;
use super::metrics::Reason;
use super::partial::Claim;
use super::space::Reservation;
use super::{Error, Inner};
use crate::oci::Digest;

impl Inner {
    /// Takes room for `bytes`, evicting what was used least recently where there is none.
    pub(super) async fn make_room(&self, bytes: u64) -> Result<Reservation, Error> {
        loop {
            match self.space.take(bytes) {
                Ok(room) => return Ok(room),
                Err(missing) => self.evict(missing, bytes).await?,
            }
        }
    }

    /// The same for a reservation that must grow.
    pub(super) async fn grow(&self, room: &mut Reservation, more: u64) -> Result<(), Error> {
        loop {
            match room.grow(more) {
                Ok(()) => return Ok(()),
                Err(missing) => self.evict(missing, more).await?,
            }
        }
    }

    /// Takes out at least one blob or leftover, and as many as free `missing` bytes, for something that wants
    /// `wanted`. The index forgets them first: a crash in between leaves files that the next start finds.
    async fn evict(&self, missing: u64, wanted: u64) -> Result<(), Error> {
        let limit = self.space.limit();
        let no_room = Error::NoRoom { wanted, limit };
        if wanted > limit {
            return Err(no_room);
        }
        let _one_at_a_time = self.evicting.lock().await;
        self.flush_used().await;
        // Claimed until their files are gone: nobody takes a file that is about to go for one that was lost.
        let (victims, _claims) = self.victims(missing);
        let oldest = victims.first().and_then(|(digest, _)| self.index.entry(digest));
        if self.drop_leftovers(oldest.map_or(u64::MAX, |entry| entry.last_use)) {
            return Ok(());
        }
        if victims.is_empty() {
            return Err(no_room);
        }
        let digests = victims.iter().map(|(digest, _)| *digest).collect();
        self.index.change(Change::Removed(digests)).await?;
        for (digest, size) in victims {
            self.documents.invalidate(&digest).await;
            self.unlink(&digest, size);
        }
        self.show_count();
        Ok(())
    }

    fn unlink(&self, digest: &Digest, size: u64) {
        if let Err(error) = fs::remove_file(self.tree.blob(digest)) {
            tracing::warn!(%digest, %error, "an evicted blob could not be removed");
        }
        self.space.gone(size);
        self.metrics.evicted(Reason::Size, size);
        tracing::debug!(%digest, size, "evicted");
    }

    /// What is read is never cut off, and what is being written again is about to be used.
    fn victims(&self, missing: u64) -> (Vec<(Digest, u64)>, Vec<Claim>) {
        let mut claims = Vec::new();
        let victims = self.index.oldest(missing, |digest| {
            let claim = if self.readers.is_read(digest) { None } else { self.claims.try_claim(*digest) };
            let may_go = claim.is_some();
            claims.extend(claim);
            may_go
        });
        (victims, claims)
    }

    /// Partial downloads that nobody took up since `before` go like blobs of that age.
    pub(super) fn drop_leftovers(&self, before: u64) -> bool {
        let mut dropped = false;
        for digest in self.leftovers.older(before) {
            // Nobody takes the file up while it goes, and its room is free when it is gone.
            let Some(_claim) = self.claims.try_claim(digest) else { continue };
            let Some(_leftover) = self.leftovers.take(&digest) else { continue };
            let _ = fs::remove_file(self.tree.partial(&digest));
            dropped = true;
        }
        dropped
    }
}
