use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};

use super::Inner;
use crate::oci::{ByteRange, Digest, Hasher};
use crate::section::{Section, read_at};

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

/// So much goes out as one: it is known what became of it when the next is asked for.
pub const SECTION: u64 = 1 << 20;

impl Blob {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.seen.length
    }

    /// The bytes of `range`, in sections of at most [`SECTION`]. The stream errs where the disk does, and before the last
    /// section where the blob is not what it should be.
    pub fn read(self, range: ByteRange) -> impl Stream<Item = io::Result<Section>> + Send + 'static {
        stream::try_unfold(self.walk(range), |mut walk| async move {
            let section = walk.next().await?;
            Ok(section.map(|section| (section, walk)))
        })
    }

    fn walk(self, range: ByteRange) -> Walk {
        let is_whole = range == ByteRange::whole(self.size());
        let hasher = (is_whole && !self.is_proven()).then(|| self.digest.algorithm().hasher());
        Walk { blob: self, at: range.start, end: range.end, hasher }
    }

    /// What cannot be read when it goes out is looked at again, and taken out.
    fn section(&self, range: Range<u64>) -> Section {
        let (inner, digest) = (Arc::clone(&self.inner), self.digest);
        let fault = move |_: &io::Error| inner.scrubber.suspect(digest);
        Section::new(Arc::clone(&self.file), range).or_else(Arc::new(fault))
    }

    /// All of it, where it is right.
    pub(super) async fn read_whole(self) -> io::Result<Bytes> {
        let size = self.size();
        let mut bytes = BytesMut::with_capacity(usize::try_from(size).unwrap_or(0));
        let mut walk = self.walk(ByteRange::whole(size));
        while walk.at < size {
            bytes.extend_from_slice(&walk.piece(size).await?);
        }
        walk.verdict().await?;
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
        let mut walk = self.clone().walk(ByteRange::whole(self.size()));
        while walk.at < walk.end {
            if walk.piece(walk.end).await.is_err() {
                return false;
            }
        }
        walk.verdict().await.is_ok()
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
    async fn next(&mut self) -> io::Result<Option<Section>> {
        if self.at >= self.end {
            if self.hasher.is_some() {
                // An empty one too.
                self.verdict().await?;
            }
            return Ok(None);
        }
        let free = self.end.saturating_sub(HOLD_BACK);
        if self.at < free {
            return self.section(free).await.map(Some);
        }
        let start = self.at;
        while self.at < self.end {
            self.section(self.end).await?;
        }
        self.verdict().await?;
        Ok(Some(self.blob.section(start..self.end)))
    }

    /// The next bytes before `end`, hashed where that is to be. They are read once more on their way out, by then from
    /// memory: a client that is slow to take them holds none.
    async fn section(&mut self, end: u64) -> io::Result<Section> {
        let start = self.at;
        if self.hasher.is_some() {
            self.piece(end).await?;
        } else {
            self.at = end.min(start + SECTION);
        }
        Ok(self.blob.section(start..self.at))
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

#[cfg(test)]
mod tests {
    use super::*;

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
