//! Making room: what goes when something new comes.

use std::collections::HashSet;
use std::sync::Arc;

use super::claims::Claim;
use super::index::{Change, Entry};
use super::metrics::Reason;
use super::space::Reservation;
use super::{Error, Inner, disk};
use crate::oci::Digest;

/// Blobs that go together: enough to share the index's syncs, few enough for the memory, and for others to get a turn.
const MOST_AT_ONCE: usize = 1_000;

/// Turns of evicting for one wish: where so much must go that it takes longer, since the limit was lowered, say, the
/// pull goes on uncached, and upkeep evicts the rest.
const MOST_TURNS: usize = 32;

/// Removed files whose folders are not synced yet: a start after a kill looks for each of them.
const MOST_UNSETTLED: usize = 16_000;

/// What goes, and the leave to take it out.
pub(super) type Victim = (Digest, Entry, Claim);

impl Inner {
    /// Takes room for `bytes`, evicting what was used least recently where there is none.
    pub(super) async fn make_room(&self, bytes: u64) -> Result<Reservation, Error> {
        for _ in 0..MOST_TURNS {
            match self.space.take(bytes) {
                Ok(room) => return Ok(room),
                Err(_) => self.evict(bytes).await?,
            }
        }
        Err(Error::NoRoom { wanted: bytes, limit: self.space.limit() })
    }

    /// The same for a reservation that must grow.
    pub(super) async fn grow(&self, room: &mut Reservation, more: u64) -> Result<(), Error> {
        for _ in 0..MOST_TURNS {
            match room.grow(more) {
                Ok(()) => return Ok(()),
                Err(_) => self.evict(more).await?,
            }
        }
        Err(Error::NoRoom { wanted: more, limit: self.space.limit() })
    }

    /// Takes out leftovers, or as many blobs as make room for `wanted` bytes, a thousand at most: whoever needs more
    /// asks again. Where all that may go would not make enough, nothing goes.
    async fn evict(&self, wanted: u64) -> Result<(), Error> {
        let limit = self.space.limit();
        if wanted > limit {
            return Err(Error::NoRoom { wanted, limit });
        }
        let _one_at_a_time = self.evicting.lock().await;
        // Counted anew: who had the lock before may have made room for us too.
        let Some(missing) = self.space.missing(wanted) else { return Ok(()) };
        if missing.bytes == 0 {
            return Err(Error::NoRoom { wanted, limit });
        }
        // What is damaged is of no use to anybody.
        if self.quarantine.drop_older(u64::MAX, self) {
            return Ok(());
        }
        self.flush_used().await;
        let victims = self.victims(missing.bytes);
        // A partial download goes like a blob of its age, and before the wish is refused.
        let oldest = victims.first().map_or(u64::MAX, |(_, entry, _)| entry.last_use);
        if self.leftovers.drop_older(oldest, self) {
            return Ok(());
        }
        if !victims.is_empty() {
            self.take_out(victims, Reason::Size).await?;
            // Some file systems free blocks long after a file is gone. To take out more for that would empty the cache.
            let left = self.space.missing(wanted).map_or(0, |left| left.bytes);
            if !missing.is_full || left < missing.bytes {
                return Ok(());
            }
        }
        // All that may go would go in vain.
        Err(match missing.is_full {
            true => Error::Full { wanted, min_free: self.space.min_free() },
            false => Error::NoRoom { wanted, limit },
        })
    }

    /// The first to go where so many bytes must; none where all that may go are not enough.
    fn victims(&self, bytes: u64) -> Vec<Victim> {
        let mut victims = Vec::new();
        if bytes > self.may_go_in_all() {
            return victims;
        }
        self.index.oldest(bytes, MOST_AT_ONCE, |digest, entry| match self.may_go(digest) {
            Some(claim) => {
                victims.push((*digest, entry, claim));
                true
            }
            None => false,
        });
        let sum: u64 = victims.iter().map(|(_, entry, _)| entry.size).sum();
        if sum >= bytes || victims.len() == MOST_AT_ONCE { victims } else { Vec::new() }
    }

    /// The bytes of all blobs but those that are pinned, and those that are read, written, found or taken out at this
    /// moment. The latter are few, and the others may be a million.
    fn may_go_in_all(&self) -> u64 {
        let busy: HashSet<Digest> = self.readers.all().into_iter().chain(self.claims.all()).collect();
        let busy = busy.iter().filter_map(|digest| self.index.entry(digest));
        let busy: u64 = busy.filter(|entry| !entry.is_pinned).map(|entry| entry.size).sum();
        let sums = self.index.totals().sums();
        sums.bytes.saturating_sub(sums.pinned_bytes).saturating_sub(busy)
    }

    /// The index forgets them first: a crash in between leaves files that the next start counts again. Their claims
    /// are held until the files are gone, so that nobody finds or writes one of them in between. What has been pinned
    /// meanwhile stays. How many bytes went.
    pub(super) async fn take_out(&self, victims: Vec<Victim>, reason: Reason) -> Result<u64, Error> {
        let digests: Vec<Digest> = victims.iter().map(|(digest, ..)| *digest).collect();
        let (space, sum) = (Arc::clone(&self.space), victims.iter().map(|(_, entry, _)| entry.size).sum());
        let removed = self.index.change_and(Change::Evicted(digests), move || space.reserve(sum)).await;
        if let Err(error) = removed {
            for (digest, entry, _claim) in victims {
                self.doubt(digest, self.space.take_anyway(entry.size));
            }
            return Err(error);
        }
        // They are claimed: nobody has put one back.
        let (pinned, victims): (Vec<Victim>, Vec<Victim>) =
            victims.into_iter().partition(|(digest, ..)| self.index.entry(digest).is_some());
        for (_, entry, _claim) in pinned {
            drop(self.space.reserved(entry.size));
        }
        let paths: Vec<_> = victims.iter().map(|(digest, ..)| self.tree.blob(digest)).collect();
        let rid = move || paths.iter().map(|path| disk::rid(path)).collect();
        let (mut stay, mut bytes) = (0, 0);
        // On a thread of its own: freeing the blocks of a large file takes its time.
        let gone: Vec<bool> = tokio::task::spawn_blocking(rid).await.unwrap_or_default();
        let gone = gone.into_iter().chain(std::iter::repeat(false));
        for ((digest, entry, _claim), is_gone) in victims.into_iter().zip(gone) {
            let room = self.space.reserved(entry.size);
            self.documents.invalidate(&digest).await;
            self.proven.invalidate(&digest);
            if is_gone {
                self.settle_later(digest);
            } else {
                stay += 1;
                // It takes room on, and comes back into the index.
                self.doubt(digest, room);
            }
            bytes += entry.size;
            self.metrics.evicted(reason, entry.size);
            tracing::debug!(%digest, size = entry.size, "evicted");
        }
        self.space.show();
        if self.removed().len() >= MOST_UNSETTLED {
            self.settle().await;
        }
        match stay {
            0 => Ok(bytes),
            // The next ones would stay too, and all of them lose what is known of them.
            _ => Err(Error::io("removing evicted blobs")(std::io::Error::other(format!(
                "{stay} of them stay"
            )))),
        }
    }

    /// What is read is never cut off, what is being written again is about to be used, and so is what a pull under way
    /// has yet to ask for.
    pub(super) fn may_go(&self, digest: &Digest) -> Option<Claim> {
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
