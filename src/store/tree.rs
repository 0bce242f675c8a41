use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::index::{Entry, millis};
use super::{OpenError, disk};
use crate::oci::{Algorithm, Digest};

/// The store on disk:
///
/// ```text
/// <cache.dir>/
///   VERSION                     the format, one number and a newline
///   lock                        held by the one process that uses the directory
///   index.redb                  sizes, use times, links and names; rebuilt from blobs/ when lost
///   blobs/sha256/ab/<hex>       proven content, written once, never changed in place
///   blobs/sha512/ab/<hex>
///   ingest/sha256-<hex>         a partial download, resumed after a restart
///   ingest/sha256-<hex>.new     a document on its way to its name
///   quarantine/sha256-<hex>     what was found to be damaged, until room is needed
/// ```
///
/// A file comes into `blobs/` only by rename, after its bytes are proven and synced (I1). Without the sync a
/// power cut can leave an empty file under the final name; without syncing the folder it can lose the name of
/// what the index says is there.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    root: PathBuf,
    shows_gaps: bool,
}

/// The format written here. A directory of a newer format is refused, so that going back to an older program
/// cannot destroy it.
const FORMAT: u32 = 1;

impl Tree {
    /// Opens the directory, making what is missing, and locks it for this process as long as the returned
    /// file is open.
    pub(super) fn open(root: &Path) -> Result<(Tree, File), OpenError> {
        let mut tree = Tree { root: root.to_owned(), shows_gaps: false };
        let made = tree.make_folders();
        made.map_err(|source| OpenError::Folder { path: root.to_owned(), source })?;
        let lock = tree.lock()?;
        tree.check_version()?;
        // Where it cannot be tried, it is not relied upon.
        tree.shows_gaps = shows_gaps(&tree.ingest().join("probe")).unwrap_or_default();
        Ok((tree, lock))
    }

    /// Whether the file system tells the gaps in a file from zeros.
    pub(super) fn shows_gaps(&self) -> bool {
        self.shows_gaps
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    pub(super) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder(digest).join(digest.hex())
    }

    /// The folder that holds a blob.
    pub(super) fn folder(&self, digest: &Digest) -> PathBuf {
        self.algorithm(digest.algorithm()).join(&digest.hex()[..2])
    }

    pub(super) fn algorithm(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.as_str())
    }

    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.ingest().join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
    }

    pub(super) fn document(&self, digest: &Digest) -> PathBuf {
        self.partial(digest).with_extension("new")
    }

    /// Whose partial download a file name in `ingest/` is.
    pub(super) fn parse_partial(name: &str) -> Option<Digest> {
        let (algorithm, hex) = name.split_once('-')?;
        format!("{algorithm}:{hex}").parse().ok()
    }

    /// Where a damaged blob lies.
    pub(super) fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine().join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// What there is of a blob. When it was last used nobody knows here; when it was written is the next best.
    pub(super) fn find(&self, digest: &Digest) -> Option<Entry> {
        fs::metadata(self.blob(digest)).ok().as_ref().and_then(Tree::entry)
    }

    /// The same of a file that is at hand.
    pub(super) fn entry(data: &fs::Metadata) -> Option<Entry> {
        let last_use = data.modified().map_or(0, millis);
        data.is_file().then_some(Entry::new(data.len(), last_use))
    }

    /// Whether no blob has its name here.
    pub(super) fn is_empty(&self) -> bool {
        let holds_files =
            |folder: PathBuf| fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some());
        !Algorithm::ALL.iter().any(|algorithm| {
            let folders = fs::read_dir(self.algorithm(*algorithm)).into_iter().flatten().flatten();
            folders.map(|folder| folder.path()).any(holds_files)
        })
    }

    /// The 256 folders of each algorithm exist from the start, so that no blob waits for one.
    fn make_folders(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        // What is cached may come from private repositories.
        builder.recursive(true).mode(0o700);
        builder.create(self.ingest())?;
        builder.create(self.quarantine())?;
        for algorithm in Algorithm::ALL {
            let folder = self.algorithm(algorithm);
            if !folder.join("ff").is_dir() {
                (0..=255u8).try_for_each(|byte| builder.create(folder.join(format!("{byte:02x}"))))?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<File, OpenError> {
        let path = self.root.join("lock");
        let failed = |source| OpenError::Folder { path: path.clone(), source };
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(self.root.clone())),
            Err(fs::TryLockError::Error(source)) => Err(OpenError::Folder { path, source }),
        }
    }

    fn check_version(&self) -> Result<(), OpenError> {
        let path = self.root.join("VERSION");
        let failed = |source| OpenError::Folder { path: path.clone(), source };
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().parse() == Ok(FORMAT) => Ok(()),
            Ok(text) => Err(OpenError::Format {
                path: self.root.clone(),
                found: text.trim().chars().take(20).collect(),
                known: FORMAT,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Whole or not at all: half of it would be taken for another format.
                let fresh = path.with_extension("new");
                let written = File::create(&fresh).and_then(|mut file| {
                    writeln!(file, "{FORMAT}")?;
                    file.sync_all()
                });
                written.and_then(|()| disk::rename(&fresh, &path)).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// Tries it with a file of this name, which goes again; where a crash comes first, the next start removes it.
fn shows_gaps(path: &Path) -> io::Result<bool> {
    const GAP: u64 = 8 << 20;
    let file = disk::open(path)?;
    // Without its name first: a kill in between leaves no more than an empty file.
    disk::remove(path)?;
    disk::write(&file, b"behind it", GAP)?;
    Ok(disk::first_gap(&file)? < GAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_used_by_one_process_and_one_format() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, lock) = Tree::open(folder.path()).unwrap();
        assert!(matches!(Tree::open(folder.path()), Err(OpenError::InUse(_))));
        drop(lock);
        assert!(Tree::open(folder.path()).is_ok());
        fs::write(tree.root.join("VERSION"), "2\n").unwrap();
        assert!(matches!(Tree::open(folder.path()), Err(OpenError::Format { .. })));
    }

    #[test]
    fn partials_are_known_by_their_names() {
        let digest = Digest::of(Algorithm::Sha512, b"x");
        let tree = Tree { root: PathBuf::from("/c"), shows_gaps: false };
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(Tree::parse_partial(&name(tree.partial(&digest))), Some(digest));
        assert_eq!(Tree::parse_partial(&name(tree.document(&digest))), None);
        assert_eq!(Tree::parse_partial("lost+found"), None);
    }
}
