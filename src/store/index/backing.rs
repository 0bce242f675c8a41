use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;

use crate::store::disk;

/// The file beneath the database.
///
/// One that takes no writes, since the disk is full, failing or read-only, is still worth reading: *frozen*, what
/// redb writes to get going goes to memory and no further. That is little, for nothing is changed meanwhile.
#[derive(Debug)]
pub(super) struct Backing {
    file: Arc<File>,
    frozen: Option<Mutex<Overlay>>,
}

/// What a frozen file would hold had it been written.
#[derive(Debug)]
struct Overlay {
    length: u64,
    /// Offset to bytes; as redb writes whole pages, those of one offset replace each other.
    pieces: BTreeMap<u64, Vec<u8>>,
}

/// redb's pages are no longer than this in a frozen file: it only writes headers and bookkeeping there.
const LONGEST_PIECE: u64 = 16 << 20;

impl Backing {
    pub(super) fn writing(file: &Arc<File>) -> Backing {
        Backing { file: Arc::clone(file), frozen: None }
    }

    /// # Errors
    /// When the file's length cannot be read.
    pub(super) fn frozen(file: &Arc<File>) -> io::Result<Backing> {
        let overlay = Overlay { length: file.metadata()?.len(), pieces: BTreeMap::new() };
        Ok(Backing { file: Arc::clone(file), frozen: Some(Mutex::new(overlay)) })
    }
}

impl StorageBackend for Backing {
    fn len(&self) -> io::Result<u64> {
        match &self.frozen {
            Some(overlay) => Ok(lock(overlay).length),
            None => Ok(self.file.metadata()?.len()),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let Some(overlay) = &self.frozen else { return self.file.read_exact_at(out, offset) };
        let overlay = lock(overlay);
        // Beyond the end of the real file there are only zeros and what was written since.
        let real = self.file.metadata()?.len().saturating_sub(offset);
        let real = usize::try_from(real).unwrap_or(usize::MAX).min(out.len());
        self.file.read_exact_at(&mut out[..real], offset)?;
        out[real..].fill(0);
        overlay.lay_over(offset, out);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        match &self.frozen {
            Some(overlay) => lock(overlay).length = length,
            None => self.file.set_len(length)?,
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        match &self.frozen {
            Some(_) => Ok(()),
            None => {
                disk::commit(&self.file)?;
                self.file.sync_data()
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &self.frozen {
            Some(overlay) => {
                lock(overlay).pieces.insert(offset, data.to_vec());
                Ok(())
            }
            None => self.file.write_all_at(data, offset),
        }
    }
}

impl Overlay {
    /// Puts what was written over what was read at `offset`.
    fn lay_over(&self, offset: u64, out: &mut [u8]) {
        let end = offset + out.len() as u64;
        for (at, piece) in self.pieces.range(offset.saturating_sub(LONGEST_PIECE)..end) {
            let (from, to) = ((*at).max(offset), (at + piece.len() as u64).min(end));
            if from < to {
                // Both are within a slice's length.
                let (from_out, from_piece) = ((from - offset) as usize, (from - at) as usize);
                let length = (to - from) as usize;
                out[from_out..from_out + length].copy_from_slice(&piece[from_piece..from_piece + length]);
            }
        }
    }
}

fn lock(overlay: &Mutex<Overlay>) -> std::sync::MutexGuard<'_, Overlay> {
    // Pieces are put in whole.
    overlay.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_file_takes_writes_and_stays_as_it_is() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), b"0123456789").unwrap();
        let file = Arc::new(path.reopen().unwrap());
        let backing = Backing::frozen(&file).unwrap();
        backing.set_len(14).unwrap();
        backing.write(2, b"ab").unwrap();
        backing.write(3, b"BC").unwrap();
        backing.write(9, b"xyz").unwrap();
        let mut read = [0; 14];
        backing.read(0, &mut read).unwrap();
        assert_eq!(&read, b"01aBC5678xyz\0\0");
        let mut part = [0; 3];
        backing.read(10, &mut part).unwrap();
        assert_eq!(&part, b"yz\0");
        assert_eq!(
            (backing.len().unwrap(), std::fs::read(path.path()).unwrap()),
            (14, b"0123456789".to_vec())
        );
    }
}
