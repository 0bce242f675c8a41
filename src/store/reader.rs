use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use rustix::io::{Errno, ReadWriteFlags};

use crate::oci::Digest;

/// A finished blob that is being read. It is not evicted as long as this lives.
#[derive(Debug, Clone)]
pub struct Blob {
    pub(super) file: Arc<File>,
    pub(super) size: u64,
    pub(super) _reading: Arc<Reading>,
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
pub const READ_SIZE: usize = 128 << 10;

/// Whether this machine's file system answers reads that must not wait. Some do not (overlayfs, tmpfs), and
/// then each would be tried in vain.
static MAY_ASK: AtomicBool = AtomicBool::new(true);

impl Blob {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
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
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
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
