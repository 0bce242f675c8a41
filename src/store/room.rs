//! Making room: what goes when something new comes.

use std::fs;

use super::index::{Change, Entry};
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
                Err(_) => self.evict(bytes).await?,
            }
        }
    }

    /// The same for a reservation that must grow.
    pub(super) async fn grow(&self, room: &mut Reservation, more: u64) -> Result<(), Error> {
        loop {
            match room.grow(more) {
                Ok(()) => return Ok(()),
                Err(_) => self.evict(more).await?,
            }
        }
    }

    /// Takes out a leftover, or as many blobs as make room for `wanted` bytes, unless there is room by now. Where
    /// they would not make enough, nothing goes.
    async fn evict(&self, wanted: u64) -> Result<(), Error> {
        let limit = self.space.limit();
        let no_room = Error::NoRoom { wanted, limit };
        if wanted > limit {
            return Err(no_room);
        }
        let _one_at_a_time = self.evicting.lock().await;
        // Counted anew: who had the lock before may have made room for us too.
        let missing = self.space.missing(wanted);
        if missing == 0 {
            return Ok(());
        }
        self.flush_used().await;
        let mut victims = Vec::new();
        self.index.oldest(missing, |digest, entry| match self.may_go(digest) {
            Some(claim) => {
                victims.push((*digest, entry, claim));
                true
            }
            None => false,
        });
        let oldest = victims.first().map_or(u64::MAX, |(_, entry, _)| entry.last_use);
        if self.drop_leftovers(oldest) {
            return Ok(());
        }
        if victims.iter().map(|(_, entry, _)| entry.size).sum::<u64>() < missing {
            // All that may go would go in vain.
            return Err(no_room);
        }
        self.take_out(victims).await
    }

    /// The index forgets them first: a crash in between leaves files that the next start finds. Their claims
    /// are held until the files are gone, so that nobody finds or writes one of them in between.
    async fn take_out(&self, victims: Vec<(Digest, Entry, Claim)>) -> Result<(), Error> {
        let digests = victims.iter().map(|(digest, ..)| *digest).collect();
        self.index.change(Change::Removed(digests)).await?;
        for (digest, entry, _claim) in victims {
            self.documents.invalidate(&digest).await;
            self.unlink(digest).await;
            self.space.gone(entry.size);
            self.metrics.evicted(Reason::Size, entry.size);
            tracing::debug!(%digest, size = entry.size, "evicted");
        }
        self.show_count();
        Ok(())
    }

    /// On a thread of its own: freeing the blocks of a large file takes its time.
    async fn unlink(&self, digest: Digest) {
        let path = self.tree.blob(&digest);
        let removed = tokio::task::spawn_blocking(move || fs::remove_file(path)).await;
        if let Err(error) = removed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            tracing::warn!(%digest, %error, "an evicted blob could not be removed");
        }
    }

    /// What is read is never cut off, and what is being written again is about to be used.
    fn may_go(&self, digest: &Digest) -> Option<Claim> {
        if self.readers.is_read(digest) { None } else { self.claims.try_claim(*digest) }
    }

    /// Partial downloads that nobody took up since `before` go like blobs of that age.
    fn drop_leftovers(&self, before: u64) -> bool {
        let mut dropped = false;
        for digest in self.leftovers.older(before) {
            let Some(_claim) = self.claims.try_claim(digest) else { continue };
            let leftover = self.leftovers.take(&digest);
            let _ = fs::remove_file(self.tree.partial(&digest));
            dropped |= leftover.is_some();
        }
        dropped
    }
}
