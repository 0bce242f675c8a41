use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::space::Reservation;
use super::{Error, Inner};
use crate::lifecycle;
use crate::oci::{Digest, Hasher};

/// A blob being written: bytes not yet proven.
///
/// Writing and hashing happen on one thread of the blocking pool, fed through a short queue, so that the
/// fetch waits for the disk and for nothing else. [`Partial::prove`] tells whether the bytes are what they
/// should be, [`Partial::promote`] gives them their name. Dropped before that, the bytes stay in `ingest/`
/// and the next partial of this digest goes on behind them, also after a restart; a crash comes to the same.
#[derive(Debug)]
pub struct Partial {
    inner: Arc<Inner>,
    digest: Digest,
    file: Arc<File>,
    kept: u64,
    accepted: u64,
    room: Option<Reservation>,
    chunks: Option<mpsc::Sender<Bytes>>,
    writer: JoinHandle<io::Result<Written>>,
    committed: watch::Receiver<u64>,
    // Held here once the writer has ended: until the file has its name or none.
    claim: Option<Claim>,
    fate: Fate,
}

/// What the writing thread hands back, with the claim on the digest: nobody else may write it until then.
#[derive(Debug)]
struct Written {
    digest: Digest,
    length: u64,
    claim: Claim,
}

/// What becomes of the bytes when a partial is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// They stay for the next try.
    Keep,
    /// They are wrong.
    Discard,
    /// They are a blob now.
    Promoted,
}

/// Which digests are being written, found, or taken out: whatever changes both a file and its entry in the
/// index, or the count of its bytes, does so under a claim.
#[derive(Debug, Default)]
pub(super) struct Claims {
    taken: Mutex<HashMap<Digest, ()>>,
    freed: Notify,
}

/// The only one who changes what there is of a digest, until dropped.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Arc<Claims>,
    digest: Digest,
}

/// Pieces of an upstream's body that may wait for the disk; each is at most a few hundred KiB (I7).
const QUEUE: usize = 16;

/// So much is written before readers are told, at most; below that they are told when the queue runs dry.
const PUBLISH: u64 = 256 << 10;

/// The tail of a kept file that is fetched again. It is the part a power cut may have torn, and it saves the
/// special case of a file that is complete but unnamed.
const DISTRUSTED_TAIL: u64 = 64 << 10;

/// While the length is unknown, room is taken in steps of this.
const GROWTH: u64 = 1 << 20;

impl Partial {
    /// Opens the file, taking up what an earlier try left.
    pub(super) async fn open(
        inner: &Arc<Inner>,
        digest: Digest,
        total: Option<u64>,
    ) -> Result<Partial, Error> {
        let claim = inner.claims.claim(digest).await;
        let leftover = inner.leftovers.take(&digest);
        let (file, on_disk) = open_file(inner, &digest).map_err(Error::io("opening a partial file"))?;
        let kept = match total {
            Some(total) if on_disk > total => 0,
            _ => on_disk.saturating_sub(DISTRUSTED_TAIL),
        };
        file.set_len(kept).map_err(Error::io("cutting a partial file"))?;
        drop(leftover);
        let room = inner.make_room(total.unwrap_or(kept.max(GROWTH))).await.inspect_err(|_| {
            // Nobody counts the file from here on, so it must not stay.
            let _ = fs::remove_file(inner.tree.partial(&digest));
        })?;
        room.written().fetch_add(kept, Ordering::AcqRel);
        let file = Arc::new(file);
        let (chunks, inbox) = mpsc::channel(QUEUE);
        let (committed, watcher) = watch::channel(0);
        let pen = Pen {
            file: Arc::clone(&file),
            hasher: digest.algorithm().hasher(),
            committed,
            written: room.written(),
        };
        let writer = tokio::task::spawn_blocking(move || pen.run(kept, inbox, claim));
        Ok(Partial {
            inner: Arc::clone(inner),
            digest,
            file,
            kept,
            accepted: kept,
            room: Some(room),
            chunks: Some(chunks),
            writer,
            committed: watcher,
            claim: None,
            fate: Fate::Keep,
        })
    }

    /// How many bytes an earlier try left: the fetch goes on from there.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// The file, for readers that follow it while it grows.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// How many bytes are written and may be read. Kept bytes count from when they have been hashed again.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.committed.clone()
    }

    /// Takes room for all `total` bytes, now that the length is known, so that a blob that cannot fit is told
    /// before it is half written.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub async fn expect(&mut self, total: u64) -> Result<(), Error> {
        match self.room.as_mut() {
            Some(room) if total > room.bytes() => self.inner.grow(room, total - room.bytes()).await,
            _ => Ok(()),
        }
    }

    /// Takes the next bytes; waits while the disk is behind.
    ///
    /// # Errors
    /// When there is no room or the disk fails.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        let after = self.accepted + bytes.len() as u64;
        if let Some(room) = &mut self.room {
            // Else the file system and the sums would both count what is on disk by now.
            room.settle();
            if after > room.bytes() {
                let more = (after - room.bytes()).max(GROWTH);
                self.inner.grow(room, more).await?;
            }
        }
        self.accepted = after;
        let sent = match &self.chunks {
            Some(chunks) => chunks.send(bytes).await.is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { Err(self.failure().await) }
    }

    /// Waits until everything is written and tells whether it hashes to the digest. If not, the bytes are
    /// discarded.
    ///
    /// # Errors
    /// [`Error::Mismatch`], or the disk's.
    pub async fn prove(&mut self) -> Result<u64, Error> {
        self.chunks = None;
        let written = (&mut self.writer).await.map_err(io::Error::other).and_then(|written| written);
        let written = written.map_err(Error::io("writing a partial file"))?;
        self.claim = Some(written.claim);
        if written.digest == self.digest {
            return Ok(written.length);
        }
        self.fate = Fate::Discard;
        Err(Error::Mismatch)
    }

    /// Gives proven bytes their name: sync, rename, index, in this order. A crash before the rename leaves a
    /// partial file, one after it a blob that the next start finds.
    ///
    /// # Errors
    /// The disk's; the bytes stay as a partial then.
    pub async fn promote(mut self, length: u64) -> Result<(), Error> {
        let (file, tree, digest) = (Arc::clone(&self.file), self.inner.tree.clone(), self.digest);
        let named = tokio::task::spawn_blocking(move || {
            file.sync_data()?;
            tree.promote(&tree.partial(&digest), &digest)
        });
        named.await.map_err(io::Error::other).and_then(|named| named).map_err(Error::io("naming a blob"))?;
        self.fate = Fate::Promoted;
        let mut room = self.room.take().expect("a partial holds its room until it is promoted");
        room.shrink_to(length);
        self.inner.admit(digest, length, room).await
    }

    /// Why the writer stopped taking bytes.
    async fn failure(&mut self) -> Error {
        self.chunks = None;
        let outcome = (&mut self.writer).await.map_err(io::Error::other).and_then(|written| written);
        let error = outcome.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
        Error::io("writing a partial file")(error)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        match self.fate {
            Fate::Promoted => {}
            Fate::Keep if self.accepted > 0 => {
                if let Some(mut room) = self.room.take() {
                    room.shrink_to(self.accepted);
                    self.inner.leftovers.keep(self.digest, room);
                }
            }
            // Whoever follows the file still has it open; only the name goes.
            Fate::Keep | Fate::Discard => {
                let _ = fs::remove_file(self.inner.tree.partial(&self.digest));
            }
        }
    }
}

/// The writing thread's tools.
struct Pen {
    file: Arc<File>,
    hasher: Hasher,
    committed: watch::Sender<u64>,
    written: Arc<AtomicU64>,
}

impl Pen {
    fn run(mut self, kept: u64, mut inbox: mpsc::Receiver<Bytes>, claim: Claim) -> io::Result<Written> {
        self.rehash(kept)?;
        let (mut offset, mut unpublished) = (kept, 0);
        while let Some(bytes) = inbox.blocking_recv() {
            self.file.write_all_at(&bytes, offset)?;
            self.hasher.update(&bytes);
            self.written.fetch_add(bytes.len() as u64, Ordering::AcqRel);
            offset += bytes.len() as u64;
            unpublished += bytes.len() as u64;
            if inbox.is_empty() || unpublished >= PUBLISH {
                self.committed.send_replace(offset);
                unpublished = 0;
            }
        }
        self.committed.send_replace(offset);
        Ok(Written { digest: self.hasher.finish(), length: offset, claim })
    }

    /// Hashes what an earlier try left. Readers may follow as it goes.
    fn rehash(&mut self, kept: u64) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < kept {
            let most = usize::try_from(kept - offset).unwrap_or(buffer.len()).min(buffer.len());
            let count = self.file.read_at(&mut buffer[..most], offset)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.hasher.update(&buffer[..count]);
            offset += count as u64;
            self.committed.send_replace(offset);
        }
        Ok(())
    }
}

impl Claims {
    /// Waits until nobody else writes `digest`.
    pub(super) async fn claim(self: &Arc<Self>, digest: Digest) -> Claim {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(claim) = self.try_claim(digest) {
                return claim;
            }
            freed.await;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The claim on `digest`, unless somebody has it.
    pub(super) fn try_claim(self: &Arc<Self>, digest: Digest) -> Option<Claim> {
        let is_free = self.lock().insert(digest, ()).is_none();
        is_free.then(|| Claim { claims: Arc::clone(self), digest })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, ()>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.lock().remove(&self.digest);
        self.claims.freed.notify_waiters();
    }
}

/// Partial files that nobody is writing, with the room they take.
#[derive(Debug, Default)]
pub(super) struct Leftovers(Mutex<HashMap<Digest, Leftover>>);

#[derive(Debug)]
pub(super) struct Leftover {
    since: u64,
    _room: Reservation,
}

impl Leftovers {
    pub(super) fn keep(&self, digest: Digest, room: Reservation) {
        let since = super::index::millis(lifecycle::now());
        self.keep_since(digest, room, since);
    }

    pub(super) fn keep_since(&self, digest: Digest, mut room: Reservation, since: u64) {
        room.written().store(room.bytes(), Ordering::Release);
        room.settle();
        self.lock().insert(digest, Leftover { since, _room: room });
    }

    /// Takes one out; its room is given back when the result is dropped.
    pub(super) fn take(&self, digest: &Digest) -> Option<Leftover> {
        self.lock().remove(digest)
    }

    /// Those from before `time` (milliseconds since 1970).
    pub(super) fn older(&self, time: u64) -> Vec<Digest> {
        self.lock().iter().filter(|(_, it)| it.since < time).map(|(digest, _)| *digest).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Leftover>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_file(inner: &Inner, digest: &Digest) -> io::Result<(File, u64)> {
    let path = inner.tree.partial(digest);
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}
