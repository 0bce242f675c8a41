//! Making room: what goes when something new comes.

use std::sync::Arc;

use super::claims::Claim;
use super::index::{Change, Entry};
use super::metrics::Reason;
use super::space::Reservation;
use super::{Error, Inner, disk};
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

    /// Takes out leftovers, or as many blobs as make room for `wanted` bytes, unless there is room by now. Where
    /// they would not make enough, nothing goes.
    async fn evict(&self, wanted: u64) -> Result<(), Error> {
        let limit = self.space.limit();
        if wanted > limit {
            return Err(Error::NoRoom { wanted, limit });
        }
        let _one_at_a_time = self.evicting.lock().await;
        // Counted anew: who had the lock before may have made room for us too.
        let Some(missing) = self.space.missing(wanted) else { return Ok(()) };
        // What is damaged is of no use to anybody.
        if self.quarantine.drop_older(u64::MAX, self) {
            return Ok(());
        }
        self.flush_used().await;
        let mut victims = Vec::new();
        self.index.oldest(missing.bytes, |digest, entry| match self.may_go(digest) {
            Some(claim) => {
                victims.push((*digest, entry, claim));
                true
            }
            None => false,
        });
        // A partial download goes like a blob of its age, and before the wish is refused.
        let is_enough = victims.iter().map(|(_, entry, _)| entry.size).sum::<u64>() >= missing.bytes;
        let oldest = victims.first().map_or(u64::MAX, |(_, entry, _)| entry.last_use);
        if self.leftovers.drop_older(if is_enough { oldest } else { u64::MAX }, self) {
            return Ok(());
        }
        if is_enough {
            return self.take_out(victims).await;
        }
        // All that may go would go in vain.
        Err(match missing.is_full {
            true => Error::Full { wanted, min_free: self.space.min_free() },
            false => Error::NoRoom { wanted, limit },
        })
    }

    /// The index forgets them first: a crash in between leaves files that the next start counts again. Their claims
    /// are held until the files are gone, so that nobody finds or writes one of them in between.
    async fn take_out(&self, victims: Vec<(Digest, Entry, Claim)>) -> Result<(), Error> {
        let digests: Vec<Digest> = victims.iter().map(|(digest, ..)| *digest).collect();
        let (space, sum) = (Arc::clone(&self.space), victims.iter().map(|(_, entry, _)| entry.size).sum());
        let removed = self.index.change_and(Change::Removed(digests), move || space.reserve(sum)).await;
        if let Err(error) = removed {
            let rooms =
                victims.iter().map(|(digest, entry, _)| (*digest, self.space.take_anyway(entry.size)));
            self.doubtful().extend(rooms);
            return Err(error);
        }
        for (digest, entry, _claim) in victims {
            let room = self.space.reserved(entry.size);
            self.documents.invalidate(&digest).await;
            self.proven.invalidate(&digest);
            if !self.unlink(digest).await {
                // It takes room on, and comes back into the index.
                self.doubtful().push((digest, room));
            }
            self.metrics.evicted(Reason::Size, entry.size);
            tracing::debug!(%digest, size = entry.size, "evicted");
        }
        self.space.show();
        Ok(())
    }

    /// On a thread of its own: freeing the blocks of a large file takes its time.
    async fn unlink(&self, digest: Digest) -> bool {
        let path = self.tree.blob(&digest);
        let is_gone = tokio::task::spawn_blocking(move || disk::rid(&path)).await.unwrap_or(false);
        if is_gone {
            self.settle_later(digest);
        } else {
            tracing::debug!(%digest, "an evicted blob could not be removed");
        }
        is_gone
    }

    /// What is read is never cut off, what is being written again is about to be used, and so is what a pull under way
    /// has yet to ask for.
    fn may_go(&self, digest: &Digest) -> Option<Claim> {
        if self.readers.is_read(digest) || self.pulls.expect(digest, |blob| self.is_busy(blob)) {
            return None;
        }
        self.claims.try_claim(*digest)
    }

    /// Whether a blob goes out or comes in.
    pub(super) fn is_busy(&self, digest: &Digest) -> bool {
        self.readers.is_read(digest) || self.claims.is_taken(digest)
    }
}
