//! A stretch of a file, and how it goes out without keeping a worker waiting that serves others.
//!
//! What is in the page cache is taken from there at once; for the rest a thread of the blocking pool waits on the disk.
//! Whether it is there, the kernel tells by answering a read that must not wait (`RWF_NOWAIT`). Where a file system
//! knows no such reads (overlayfs, tmpfs), nothing is taken to be there.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use rustix::io::{Errno, ReadWriteFlags};

/// Bytes of a file that may go out: as long as this lives they do not change, whatever becomes of the rest of the file.
#[derive(Clone)]
pub struct Section {
    file: Arc<File>,
    start: u64,
    end: u64,
    fault: Option<Fault>,
}

/// What a body is made of.
#[derive(Debug, Clone)]
pub enum Piece {
    /// In memory.
    Bytes(Bytes),
    /// In a file.
    Section(Section),
}

/// A buffer that is used again when what was read into it has gone out. A new one would be zeroed each time.
#[derive(Debug, Default)]
pub struct Spare(Arc<Mutex<Option<Vec<u8>>>>);

/// The buffer while it is away.
struct Lent {
    buffer: Vec<u8>,
    home: Arc<Mutex<Option<Vec<u8>>>>,
}

/// Is told why a section could not be read. May be called several times, from any thread, and must not wait.
pub type Fault = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// So much is read at once: large enough to be cheap for a byte, small enough for many slow clients.
pub const READ_SIZE: usize = 64 << 10;

/// So far apart the pages are that are asked for to find out whether a section is in memory. The kernel reads ahead in
/// such steps, so what is missing is seldom less.
const PROBE_STEP: u64 = 128 << 10;

/// Whether this machine's file system answers reads that must not wait. Where it does not, each would be tried in vain.
static MAY_ASK: AtomicBool = AtomicBool::new(true);

impl Section {
    /// The bytes of `file` in `range`, which are all there.
    pub fn new(file: Arc<File>, range: Range<u64>) -> Section {
        Section { file, start: range.start, end: range.end.max(range.start), fault: None }
    }

    /// The same, and `fault` is told where it cannot be read.
    pub fn or_else(self, fault: Fault) -> Section {
        Section { fault: Some(fault), ..self }
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether nothing is left of it.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Leaves out the first `count` bytes, which have gone out.
    pub fn advance(&mut self, count: u64) {
        self.start = (self.start + count).min(self.end);
    }

    /// Its first bytes, at most [`READ_SIZE`], where they are in memory; `None` where the disk would have to be waited
    /// for.
    ///
    /// # Errors
    /// The disk's; `UnexpectedEof` when the file is shorter than it should be.
    pub fn read_now(&self, spare: &Spare) -> io::Result<Option<Bytes>> {
        let read = |buffer: &mut [u8]| {
            read_cached(&self.file, buffer, self.start).inspect_err(|error| self.failed(error))
        };
        let most = size(self.len());
        if most < READ_SIZE {
            // A thousand small parts may wait for a client at once.
            let mut buffer = BytesMut::zeroed(most);
            return Ok(read(&mut buffer)?.map(|count| buffer.split_to(count).freeze()));
        }
        let mut lent = spare.lend();
        Ok(read(&mut lent.buffer)?.map(|count| Bytes::from_owner(lent).slice(..count)))
    }

    /// Its first bytes, at most [`READ_SIZE`], waiting for the disk if need be.
    ///
    /// # Errors
    /// As [`Section::read_now`].
    pub async fn read(self) -> io::Result<Bytes> {
        read_at(&self.file, self.start, self.len()).await.inspect_err(|error| self.failed(error))
    }

    /// Whether it seems to be in memory, so that sending it keeps nobody waiting.
    ///
    /// # Errors
    /// As [`Section::read_now`].
    pub fn is_resident(&self) -> io::Result<bool> {
        let mut byte = [0];
        let last = self.end.saturating_sub(1).max(self.start);
        for offset in (self.start..last).step_by(PROBE_STEP as usize).chain([last]) {
            let read = read_cached(&self.file, &mut byte, offset).inspect_err(|error| self.failed(error))?;
            if read.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Brings it into memory.
    ///
    /// # Errors
    /// As [`Section::read_now`].
    pub async fn warm(self) -> io::Result<()> {
        let (file, range) = (Arc::clone(&self.file), self.start..self.end);
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; READ_SIZE];
            let mut at = range.start;
            while at < range.end {
                let most = size(range.end - at);
                at += read_waiting(&file, &mut buffer[..most], at)? as u64;
            }
            Ok(())
        });
        read.await.map_err(io::Error::other).flatten().inspect_err(|error| self.failed(error))
    }

    /// Has the kernel send its first bytes through `socket`, at most `most`, and gives their number.
    ///
    /// # Errors
    /// The socket's, and the disk's, of which whoever should know is told; `UnexpectedEof` when the file is shorter than
    /// it should be.
    pub fn send(&self, socket: impl AsFd, most: usize) -> io::Result<usize> {
        let most = usize::try_from(self.len()).unwrap_or(usize::MAX).min(most);
        let sent = match rustix::fs::sendfile(socket, &*self.file, Some(&mut self.start.clone()), most) {
            Ok(0) if most > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            sent => sent.map_err(io::Error::from),
        };
        sent.inspect_err(|error| {
            if is_of_the_file(error) {
                self.failed(error);
            }
        })
    }

    fn failed(&self, error: &io::Error) {
        if let Some(fault) = &self.fault {
            fault(error);
        }
    }
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Section({}..{})", self.start, self.end)
    }
}

impl Spare {
    fn lend(&self) -> Lent {
        let buffer = lock(&self.0).take();
        Lent { buffer: buffer.unwrap_or_else(|| vec![0; READ_SIZE]), home: Arc::clone(&self.0) }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *lock(&self.home) = Some(std::mem::take(&mut self.buffer));
    }
}

impl Piece {
    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Section(section) => section.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Piece {
        Piece::Bytes(bytes)
    }
}

impl From<Section> for Piece {
    fn from(section: Section) -> Piece {
        Piece::Section(section)
    }
}

/// Reads at most [`READ_SIZE`] bytes at `offset`, and at most `most`; at least one, or an error.
///
/// # Errors
/// The disk's; `UnexpectedEof` when the file ends at `offset`: it is shorter than it should be.
pub async fn read_at(file: &Arc<File>, offset: u64, most: u64) -> io::Result<Bytes> {
    let mut buffer = BytesMut::zeroed(size(most));
    if let Some(count) = read_cached(file, &mut buffer, offset)? {
        buffer.truncate(count);
        return Ok(buffer.freeze());
    }
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let count = read_waiting(&file, &mut buffer, offset)?;
        buffer.truncate(count);
        Ok(buffer.freeze())
    });
    read.await.map_err(io::Error::other)?
}

/// Reads what is in memory; `None` when the disk would have to be waited for.
///
/// # Errors
/// As [`read_at`].
pub fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
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

fn read_waiting(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    match file.read_at(buffer, offset)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there is whole or not there.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of `most` bytes, how many are read at once.
fn size(most: u64) -> usize {
    usize::try_from(most).unwrap_or(READ_SIZE).min(READ_SIZE)
}

/// Whether sending failed for the file and not for the client, who may go at any time.
fn is_of_the_file(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        None | Some(Errno::IO | Errno::OVERFLOW | Errno::NODATA | Errno::STALE | Errno::INVAL)
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(bytes: &[u8]) -> Arc<File> {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        named.write_all(bytes).unwrap();
        Arc::new(named.reopen().unwrap())
    }

    #[tokio::test]
    async fn reads_what_is_there_and_tells_the_end() {
        let file = file_of(b"0123456789");
        assert_eq!(read_at(&file, 3, 4).await.unwrap(), &b"3456"[..]);
        assert_eq!(read_at(&file, 8, 100).await.unwrap(), &b"89"[..]);
        assert_eq!(read_at(&file, 10, 1).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_section_is_read_from_its_start_to_its_end() {
        let mut section = Section::new(file_of(b"0123456789"), 2..7);
        assert_eq!(section.clone().read().await.unwrap(), "23456");
        section.advance(3);
        assert_eq!((section.len(), section.clone().read().await.unwrap()), (2, "56".into()));
        section.advance(9);
        assert!(section.is_empty());
        assert!(Section::new(file_of(b""), 7..7).is_empty());
    }

    /// Every way in which a section goes out tells who should know that its file is too short.
    #[tokio::test]
    async fn a_file_that_is_too_short_is_a_fault() {
        let told = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&told);
        let fault: Fault = Arc::new(move |error: &io::Error| {
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            *counter.lock().unwrap() += 1;
        });
        let mut section = Section::new(file_of(&[7; 100]), 0..200).or_else(fault);
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(section.send(&socket, 1000).unwrap(), 100);
        assert_eq!(section.clone().read().await.unwrap().len(), 100);
        assert_eq!(*told.lock().unwrap(), 0);
        section.advance(100);
        assert!(section.send(&socket, 1000).is_err());
        assert!(section.clone().read().await.is_err());
        assert!(section.clone().warm().await.is_err());
        assert_eq!(*told.lock().unwrap(), 3);
    }

    #[test]
    fn a_buffer_is_used_again_when_it_is_free() {
        let bytes = [b'a', b'b'].map(|byte| vec![byte; READ_SIZE]).concat();
        let (mut section, spare) = (Section::new(file_of(&bytes), 0..bytes.len() as u64), Spare::default());
        // Where the file system cannot tell what is in memory, nothing is read like this.
        let Some(first) = section.read_now(&spare).unwrap() else { return };
        let second = section.read_now(&spare).unwrap().unwrap();
        assert!(first == bytes[..READ_SIZE] && second == first);
        let place = first.as_ptr();
        assert_ne!(place, second.as_ptr());
        drop((second, first));
        section.advance(READ_SIZE as u64);
        let third = section.read_now(&spare).unwrap().unwrap();
        assert!(third == bytes[READ_SIZE..] && third.as_ptr() == place);
        // A short one does not take it.
        section.advance(READ_SIZE as u64 - 1);
        let last = section.read_now(&spare).unwrap().unwrap();
        assert!(last == "b" && last.as_ptr() != place);
    }

    #[test]
    fn a_client_that_left_is_no_fault() {
        let fault: Fault = Arc::new(|error: &io::Error| panic!("{error}"));
        let section = Section::new(file_of(&[7; 100]), 0..100).or_else(fault);
        let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(other);
        assert_eq!(section.send(&socket, 1000).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
