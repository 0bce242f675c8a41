use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::claims::Claim;
use super::reader::HOLD_BACK;
use super::space::Reservation;
use super::{Error, Inner, disk};
use crate::oci::{Digest, Hasher};
use crate::spans::Spans;

/// A blob being written: bytes not yet proven.
///
/// Writing and hashing happen on one thread of the blocking pool, fed through a short queue, so that the
/// fetch waits for the disk and for nothing else. Bytes may come in any order: what lies behind a gap is written, and
/// hashed from the file once the gap is closed. [`Partial::prove`] tells whether the bytes are what they
/// should be, [`Partial::promote`] gives them their name. Dropped before that, the bytes up to the first gap stay in
/// `ingest/` and the next partial of this digest goes on behind them, also after a restart; a crash comes to the same.
#[derive(Debug)]
pub struct Partial {
    inner: Arc<Inner>,
    digest: Digest,
    file: Arc<File>,
    kept: u64,
    accepted: Spans,
    room: Option<Reservation>,
    // All of it, and on disk too, where the file system can.
    is_expected: bool,
    chunks: Option<mpsc::Sender<(u64, Bytes)>>,
    // None once it has ended and that was seen: a write that failed is how one learns of it, too.
    writer: Option<JoinHandle<io::Result<Written>>>,
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

/// Pieces of an upstream's body that may wait for the disk; each is at most a few hundred KiB (I7).
const QUEUE: usize = 16;

/// So much is written before readers are told, at most; below that they are told when the queue runs dry.
const PUBLISH: u64 = 256 << 10;

/// The tail of a kept file that is fetched again. It is the part a power cut may have torn, and it saves the
/// special case of a file that is complete but unnamed. Before a gap it is a block at least: the file system sees gaps
/// as long as blocks, and what is in one besides may be nothing.
const DISTRUSTED_TAIL: u64 = 64 << 10;

/// So much is hashed from the file between two pieces that come.
const STRETCH: usize = 256 << 10;

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
        let file = disk::open(&inner.tree.partial(&digest)).map_err(Error::io("opening a partial file"))?;
        let data = file.metadata().map_err(Error::io("looking at a partial file"))?;
        let on_disk = data.len();
        let kept = match total {
            Some(total) if on_disk > total => 0,
            _ => disk::first_gap(&file).map_err(Error::io("looking at a partial file"))?,
        };
        let kept = kept.saturating_sub(DISTRUSTED_TAIL.max(data.blksize()));
        // What an earlier try left stays counted all the while.
        let leftover = inner.leftovers.take(&digest).map(|leftover| leftover.room);
        let mut room = leftover.unwrap_or_else(|| inner.space.take_anyway(on_disk));
        if let Err(error) = get_ready(inner, &file, &mut room, kept, total).await {
            inner.leftovers.remove(digest, room, inner);
            return Err(error);
        }
        let file = Arc::new(file);
        let (chunks, inbox) = mpsc::channel(QUEUE);
        let (committed, watcher) = watch::channel(0);
        let pen = Pen {
            file: Arc::clone(&file),
            there: Spans::of(0..kept),
            hasher: digest.algorithm().hasher(),
            hashed: 0,
            committed,
            written: room.written(),
        };
        let writer = tokio::task::spawn_blocking(move || pen.run(inbox, claim));
        Ok(Partial {
            inner: Arc::clone(inner),
            digest,
            file,
            kept,
            accepted: Spans::of(0..kept),
            room: Some(room),
            is_expected: total.is_some(),
            chunks: Some(chunks),
            writer: Some(writer),
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
    /// [`Error::NoRoom`], or the disk's.
    pub async fn expect(&mut self, total: u64) -> Result<(), Error> {
        let made = self.make_room(total).await;
        self.inner.health.note(made)
    }

    async fn make_room(&mut self, total: u64) -> Result<(), Error> {
        let Some(room) = &mut self.room else { return Ok(()) };
        if total > room.bytes() {
            self.inner.grow(room, total - room.bytes()).await?;
        }
        if !self.is_expected {
            let aside = set_aside(&self.file, Some(total)).map_err(Error::io("setting room aside"))?;
            room.written().fetch_add(aside, Ordering::AcqRel);
            self.is_expected = true;
        }
        Ok(())
    }

    /// Whether bytes may come before those that belong in front of them: room for all of them has to be taken, and a
    /// start after a crash must be able to tell what is a gap.
    pub fn takes_gaps(&self) -> bool {
        self.is_expected && self.inner.tree.shows_gaps()
    }

    /// Takes the bytes that belong at `offset`, where none are yet; waits while the disk is behind.
    ///
    /// # Errors
    /// When there is no room or the disk fails.
    pub async fn write(&mut self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        debug_assert!(
            offset == self.accepted.reach() || self.takes_gaps(),
            "nobody may take a gap for bytes"
        );
        let taken = self.take_in(offset, bytes).await;
        self.inner.health.note(taken)
    }

    async fn take_in(&mut self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        let after = offset + bytes.len() as u64;
        if let Some(room) = &mut self.room {
            // Else the file system and the sums would both count what is on disk by now.
            room.settle();
            if after > room.bytes() {
                let more = (after - room.bytes()).max(GROWTH);
                self.inner.grow(room, more).await?;
            }
        }
        self.accepted.add(offset..after);
        let sent = match &self.chunks {
            Some(chunks) => chunks.send((offset, bytes)).await.is_ok(),
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
        let written = self.end_of_writing().await.map_err(Error::io("writing a partial file"));
        let written = self.inner.health.note(written)?;
        self.claim = Some(written.claim);
        if written.digest == self.digest {
            return Ok(written.length);
        }
        self.fate = Fate::Discard;
        Err(Error::Mismatch)
    }

    /// Has nothing of it stay for the next try.
    pub fn discard(&mut self) {
        self.fate = Fate::Discard;
    }

    /// Gives proven bytes their name: sync, rename, index, in this order. A crash before the rename leaves a
    /// partial file, one after it a blob that the next start counts.
    ///
    /// # Errors
    /// The disk's; the bytes stay as a partial then.
    pub async fn promote(mut self, length: u64) -> Result<(), Error> {
        let (file, from) = (Arc::clone(&self.file), self.inner.tree.partial(&self.digest));
        let named = self.inner.name(move || Ok(file), from, self.digest).await;
        let is_named = named.is_ok() || self.inner.tree.find(&self.digest).is_some();
        let room = if is_named { self.room.take() } else { None };
        let Some(mut room) = room else { return self.inner.health.note(named) };
        self.fate = Fate::Promoted;
        room.shrink_to(length);
        if named.is_err() {
            self.inner.doubt(self.digest, room);
            return self.inner.health.note(named);
        }
        let admitted = self.inner.admit(self.digest, length, room).await;
        self.inner.health.note(admitted)
    }

    /// Why the writer stopped taking bytes.
    async fn failure(&mut self) -> Error {
        self.chunks = None;
        let error = self.end_of_writing().await.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
        Error::io("writing a partial file")(error)
    }

    /// What the writer leaves. Where it failed, less is on disk than was handed in.
    async fn end_of_writing(&mut self) -> io::Result<Written> {
        let Some(writer) = &mut self.writer else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let written = writer.await.map_err(io::Error::other).and_then(|written| written);
        self.writer = None;
        written.inspect_err(|_| {
            if let Ok(data) = self.file.metadata() {
                self.accepted = Spans::of(0..data.len());
            }
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let Some(mut room) = self.room.take() else { return };
        match self.fate {
            Fate::Promoted => {}
            Fate::Keep if self.accepted.reach() > 0 => {
                room.shrink_to(self.accepted.reach());
                self.inner.leftovers.keep(self.digest, room);
            }
            // Whoever follows the file still has it open; only the name goes.
            Fate::Keep | Fate::Discard => self.inner.leftovers.remove(self.digest, room, &self.inner),
        }
    }
}

/// The writing thread's tools.
struct Pen {
    file: Arc<File>,
    /// What is written.
    there: Spans,
    hasher: Hasher,
    /// So much from the beginning on.
    hashed: u64,
    committed: watch::Sender<u64>,
    written: Arc<AtomicU64>,
}

impl Pen {
    fn run(mut self, mut inbox: mpsc::Receiver<(u64, Bytes)>, claim: Claim) -> io::Result<Written> {
        let mut buffer = Vec::new();
        loop {
            let is_behind = self.hashed < self.there.reach();
            // What is behind a closed gap, or kept from before, is hashed between what comes: neither waits for the other.
            let piece = if is_behind { inbox.try_recv().ok() } else { inbox.blocking_recv() };
            match piece {
                Some((offset, bytes)) => self.write(offset, &bytes)?,
                None if !is_behind => break,
                None => {}
            }
            if self.hashed < self.there.reach() {
                self.catch_up(&mut buffer)?;
            }
            if inbox.is_empty() || self.hashed >= *self.committed.borrow() + PUBLISH {
                self.committed.send_replace(self.hashed);
            }
        }
        // What was set aside beyond it is given back when this is not all, and what lies behind a gap.
        disk::cut(&self.file, self.hashed)?;
        Ok(Written { digest: self.hasher.finish(), length: self.hashed, claim })
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        disk::write(&self.file, bytes, offset)?;
        self.written.fetch_add(bytes.len() as u64, Ordering::AcqRel);
        let after = offset + bytes.len() as u64;
        self.there.add(offset..after);
        if offset == self.hashed {
            self.hasher.update(bytes);
            self.hashed = after;
        }
        Ok(())
    }

    /// Hashes some of what is there and was not at hand when its turn came.
    fn catch_up(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.resize(STRETCH, 0);
        let left = self.there.reach() - self.hashed;
        let most = usize::try_from(left).unwrap_or(STRETCH).min(STRETCH);
        match self.file.read_at(&mut buffer[..most], self.hashed)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.hasher.update(&buffer[..count]);
                self.hashed += count as u64;
                Ok(())
            }
        }
    }
}

/// Of how much blocks were set aside. What is no longer than the hold-back needs none: no byte of it has gone out when a
/// disk that is full is noticed, and it still can pass through uncached.
fn set_aside(file: &File, total: Option<u64>) -> io::Result<u64> {
    match total {
        Some(total) if total > HOLD_BACK && disk::set_aside(file, total)? => Ok(total),
        _ => Ok(0),
    }
}

/// Cuts off what is not trusted, and takes room for the rest of the blob.
async fn get_ready(
    inner: &Inner,
    file: &File,
    room: &mut Reservation,
    kept: u64,
    total: Option<u64>,
) -> Result<(), Error> {
    disk::cut(file, kept).map_err(Error::io("cutting a partial file"))?;
    room.shrink_to(kept);
    inner.grow(room, total.unwrap_or(kept.max(GROWTH)).saturating_sub(kept)).await?;
    let aside = set_aside(file, total).map_err(Error::io("setting room aside"))?;
    // The file system shows it as used from now on: counted twice, others would not fit.
    room.written().fetch_add(aside, Ordering::AcqRel);
    Ok(())
}
