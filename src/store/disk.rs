//! Every step by which something on disk changes, in one place.
//!
//! So it can be said of each what a crash leaves that comes just before it, and a test stops the process at every
//! one, or has the disk refuse it (`tests/crash.rs`). Outside of tests [`reach`] is nothing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

#[cfg(test)]
use super::tests::faults::reach;

/// What is about to happen.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code))] // only tests look at what it is about
pub(super) enum Step<'a> {
    /// A file is opened for writing, and made if need be.
    Open(&'a Path),
    /// A file is cut to a length, or blocks are set aside for it.
    Resize(&'a File),
    /// Bytes are written.
    Write(&'a File),
    /// Bytes reach the disk.
    Sync(&'a File),
    /// A file gets another name.
    Rename(&'a Path, &'a Path),
    /// The names in a folder reach the disk.
    SyncFolder(&'a Path),
    /// A name goes.
    Remove(&'a Path),
    /// Changes of the index reach the disk, all or none.
    Commit(&'a File),
}

#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps)] // in tests it fails
fn reach(_: Step<'_>) -> io::Result<()> {
    Ok(())
}

/// The index is about to commit.
pub(super) fn commit(file: &File) -> io::Result<()> {
    reach(Step::Commit(file))
}

/// Opens a file for reading and writing; what is in it stays.
pub(super) fn open(path: &Path) -> io::Result<File> {
    reach(Step::Open(path))?;
    // What is cached may come from private repositories.
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Cuts a file to `length`; what was set aside beyond it is free again.
pub(super) fn cut(file: &File, length: u64) -> io::Result<()> {
    reach(Step::Resize(file))?;
    file.set_len(length)
}

/// Sets blocks aside for `length` bytes, so that a disk that fills up meanwhile does not break a download in the
/// midst. False where the file system cannot.
pub(super) fn set_aside(file: &File, length: u64) -> io::Result<bool> {
    reach(Step::Resize(file))?;
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, length) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Where the first gap in a file is: bytes that nobody wrote, though there are others behind them. Its length where there
/// is none, or where the file system cannot tell.
pub(super) fn first_gap(file: &File) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Hole(0)) {
        Ok(gap) => Ok(gap),
        // It is empty.
        Err(Errno::NXIO) => Ok(0),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => file.metadata().map(|data| data.len()),
        Err(error) => Err(error.into()),
    }
}

/// Writes all of `bytes` at `offset`.
pub(super) fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    reach(Step::Write(file))?;
    file.write_all_at(bytes, offset)
}

/// Has everything written reach the disk.
pub(super) fn sync(file: &File) -> io::Result<()> {
    reach(Step::Sync(file))?;
    file.sync_data()
}

/// Gives a file another name. When this returns the new one survives a power cut.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    reach(Step::Rename(from, to))?;
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), sync_folder)
}

/// Has the names in `folder` reach the disk.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    reach(Step::SyncFolder(folder))?;
    File::open(folder)?.sync_all()
}

/// Takes a name away. After a power cut it may be there again, until its folder is synced.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    reach(Step::Remove(path))?;
    fs::remove_file(path)
}

/// Takes a name away that may not be there. Whether it is not there any more.
pub(super) fn rid(path: &Path) -> bool {
    remove(path).is_ok() || matches!(path.try_exists(), Ok(false))
}
