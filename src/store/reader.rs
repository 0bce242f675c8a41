use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};
use rustix::io::{Errno, ReadWriteFlags};

use super::Inner;
use crate::oci::{ByteRange, Digest, Hasher};

/// A finished blob that is being read. It is not evicted as long as this lives.
///
/// Disks rot, and hands slip. So a blob is hashed while it goes out whole for the first time since the start, or since
/// its file changed; after that it is enough that the file is the same one still. Either way its last [`HOLD_BACK`]
/// bytes wait for the verdict, and what is wrong is completed by nobody and goes into quarantine (I1).
#[derive(Debug, Clone)]
pub struct Blob {
    pub(super) inner: Arc<Inner>,
    pub(super) digest: Digest,
    pub(super) file: Arc<File>,
    pub(super) seen: Seen,
    pub(super) _reading: Arc<Reading>,
}

/// So many bytes at the end of a body stay back until it is known to be right: nobody completes a corrupt download
/// (I1). A blob no longer than this is proven before its first byte goes out, so that its client can still be given
/// a clean answer.
pub const HOLD_BACK: u64 = 64 << 10;

/// By what a file is known again: whoever changes it changes this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) length: u64,
    inode: u64,
    modified: (i64, i64),
}

/// The way through a blob.
struct Walk {
    blob: Blob,
    at: u64,
    end: u64,
    /// Where the hash decides; elsewhere the file must be as it was at the end.
    hasher: Option<Hasher>,
}

/// Which blobs are being read, and by how many.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<HashMap<Digest, usize>>);

/// One reader, until dropped.
#[derive(Debug)]
pub(super) struct Reading {
    readers: Arc<Readers>,
    digest: Digest,
}

/// So much is read at once: large enough to be cheap for a byte, small enough for many slow clients.
pub const READ_SIZE: usize = 64 << 10;

/// Whether this machine's file system answers reads that must not wait. Some do not (overlayfs, tmpfs), and
/// then each would be tried in vain.
static MAY_ASK: AtomicBool = AtomicBool::new(true);

impl Blob {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.seen.length
    }

    /// The bytes of `range`. The stream errs where the disk does, and before the last piece where the blob is not what
    /// it should be.
    pub fn read(self, range: ByteRange) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let is_whole = range == ByteRange::whole(self.size());
        let hasher = (is_whole && !self.is_proven()).then(|| self.digest.algorithm().hasher());
        let walk = Walk { blob: self, at: range.start, end: range.end, hasher };
        stream::try_unfold(walk, |mut walk| async move {
            let bytes = walk.next().await?;
            Ok(bytes.map(|bytes| (bytes, walk)))
        })
    }

    /// All of it, where it is right.
    pub(super) async fn read_whole(self) -> io::Result<Bytes> {
        let mut bytes = BytesMut::with_capacity(usize::try_from(self.size()).unwrap_or(0));
        let mut walk = pin!(self.clone().read(ByteRange::whole(self.size())));
        while let Some(piece) = walk.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes.freeze())
    }

    /// Whether it was hashed since the start, and its file is the same still.
    pub(super) fn is_proven(&self) -> bool {
        self.inner.proven.get(&self.digest) == Some(self.seen)
    }

    /// Whether it is to be hashed before anything of it goes out: a small one that was not yet, so that its client can
    /// still be given a clean answer, and one whose file is another one than when it was.
    pub(super) fn is_suspect(&self) -> bool {
        let proven = self.inner.proven.get(&self.digest);
        proven != Some(self.seen) && (proven.is_some() || self.size() <= HOLD_BACK)
    }

    /// Hashes it. What is wrong is taken out.
    pub(super) async fn is_right(&self) -> bool {
        let mut walk = pin!(self.clone().read(ByteRange::whole(self.size())));
        while let Some(piece) = walk.next().await {
            if piece.is_err() {
                return false;
            }
        }
        true
    }
}

impl Seen {
    pub(super) fn of(data: &Metadata) -> Seen {
        let modified = (data.mtime(), data.mtime_nsec());
        Seen { length: data.len(), inode: data.ino(), modified }
    }

    /// What is at `path` now.
    pub(super) fn at(path: &Path) -> Option<Seen> {
        fs::metadata(path).ok().as_ref().map(Seen::of)
    }
}

impl Walk {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.at >= self.end {
            if self.hasher.is_some() {
                // An empty one too.
                self.verdict().await?;
            }
            return Ok(None);
        }
        let free = self.end.saturating_sub(HOLD_BACK);
        if self.at < free {
            return self.piece(free).await.map(Some);
        }
        let mut tail = self.piece(self.end).await?;
        while self.at < self.end {
            tail = [tail, self.piece(self.end).await?].concat().into();
        }
        self.verdict().await?;
        Ok(Some(tail))
    }

    async fn piece(&mut self, end: u64) -> io::Result<Bytes> {
        let read = read_at(&self.blob.file, self.at, end - self.at).await;
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.expel("it cannot be read").await;
                return Err(error);
            }
        };
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    /// Whether the last piece may go out.
    async fn verdict(&mut self) -> io::Result<()> {
        let Blob { inner, digest, file, seen, .. } = &self.blob;
        let hashed = self.hasher.take().map(Hasher::finish);
        if hashed.is_some_and(|actual| actual != *digest) {
            self.expel("its content does not match its digest").await;
            return Err(io::Error::other(
                "the cached blob is damaged; it is fetched again when it is asked for",
            ));
        }
        // The file itself and not its name, which eviction may have taken just before this reader came. In quarantine it
        // is where somebody else has found it damaged meanwhile.
        let is_condemned = || Seen::at(&inner.tree.quarantined(digest)) == Some(*seen);
        if Seen::of(&file.metadata()?) != *seen || is_condemned() {
            inner.scrubber.suspect(*digest);
            return Err(io::Error::other("the cached blob was changed while it was read"));
        }
        if hashed.is_some() {
            inner.proven.insert(*digest, *seen);
        }
        Ok(())
    }

    async fn expel(&self, why: &'static str) {
        self.blob.inner.expel(&self.blob.digest, Some(self.blob.seen), why).await;
    }
}

impl Readers {
    pub(super) fn enter(self: &Arc<Self>, digest: Digest) -> Reading {
        *self.lock().entry(digest).or_default() += 1;
        Reading { readers: Arc::clone(self), digest }
    }

    pub(super) fn is_read(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    /// What is being read now.
    pub(super) fn all(&self) -> Vec<Digest> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readers = self.readers.lock();
        if let Some(count) = readers.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.digest);
            }
        }
    }
}

/// Reads at most [`READ_SIZE`] bytes at `offset`, and at most `most`; at least one, or an error.
///
/// What is in the page cache is copied at once; for the rest a thread of the blocking pool waits on the disk,
/// never a worker that serves others.
///
/// # Errors
/// `UnexpectedEof` when the file ends at `offset`: it is shorter than it should be.
pub async fn read_at(file: &Arc<File>, offset: u64, most: u64) -> io::Result<Bytes> {
    let length = usize::try_from(most).unwrap_or(READ_SIZE).min(READ_SIZE);
    let mut buffer = BytesMut::zeroed(length);
    if let Some(count) = read_cached(file, &mut buffer, offset)? {
        buffer.truncate(count);
        return Ok(buffer.freeze());
    }
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let count = file.read_at(&mut buffer, offset)?;
        buffer.truncate(count);
        if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(buffer.freeze()) }
    });
    read.await.map_err(io::Error::other)?
}

/// `None` when the disk would have to be waited for.
pub(super) fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
    if !MAY_ASK.load(Ordering::Relaxed) {
        return Ok(None);
    }
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            MAY_ASK.store(false, Ordering::Relaxed);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_what_is_there_and_tells_the_end() {
        let mut path = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut path, b"0123456789").unwrap();
        let file = Arc::new(path.reopen().unwrap());
        assert_eq!(read_at(&file, 3, 4).await.unwrap(), &b"3456"[..]);
        assert_eq!(read_at(&file, 8, 100).await.unwrap(), &b"89"[..]);
        assert_eq!(read_at(&file, 10, 1).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn readers_are_counted() {
        let readers = Arc::new(Readers::default());
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        let (first, second) = (readers.enter(digest), readers.enter(digest));
        drop(first);
        assert!(readers.is_read(&digest));
        drop(second);
        assert!(!readers.is_read(&digest));
    }
}
