//! The database itself, and what becomes of it when its file fails.
//!
//! ```text
//! Writing ── a write fails ──▶ Frozen: reads go on, changes are refused ── a write works again ──▶ Writing
//!    │                            │
//!    └── it contradicts itself ───┴──▶ put aside, a new one takes its place, and the tree is looked through
//! ```
//!
//! redb itself gives up for good after any failure of its file, reads included; so it is opened anew, on the same
//! file, which may since have become one that cannot be opened a second time.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};
use tokio::sync::Notify;

use super::backing::Backing;
use super::tables::Tables;
use super::{Entry, Sums, Totals};
use crate::oci::Digest;
use crate::store::{Error, disk};

/// Pages that redb keeps in memory. The index of a million blobs is about 320 MB on disk; its upper levels
/// and what is hot fit in here. In tests next to none, so that what is read comes from the file.
const PAGE_CACHE: usize = if cfg!(test) { 64 << 10 } else { 32 << 20 };

pub(super) struct Shelf {
    path: PathBuf,
    open: RwLock<Open>,
    totals: Arc<Totals>,
    /// A new index took the place of a damaged one.
    pub(super) replaced: Notify,
}

struct Open {
    file: Arc<File>,
    /// `None` only where nothing at all can be opened.
    db: Option<Database>,
    mode: Mode,
    /// It is frozen.
    why: Error,
    /// Counts the openings: what fails on an earlier one is no news.
    turn: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Writing,
    Frozen,
}

/// What is wrong with a database.
#[derive(Debug)]
enum Trouble {
    /// The disk's.
    Disk(io::Error),
    /// Its own.
    Damage(String),
}

impl Shelf {
    /// Opens the index, or makes an empty one where there is none, or where it is damaged.
    /// What came or went when the last process ended is settled: `find` tells what there is of a digest in the tree.
    pub(super) fn open(path: &Path, find: impl Fn(&Digest) -> Option<Entry>) -> Result<Shelf, Error> {
        let file = Arc::new(disk::open(path).map_err(Error::index)?);
        let mut why = Error::Index("it is being opened".to_owned());
        let opened = match begin(&file, |tables| tables.settle_all(find)) {
            Ok(db) => Ok((file, db, Mode::Writing)),
            Err(trouble @ Trouble::Disk(_)) => {
                why = trouble.error();
                tracing::error!(error = %why, "the cache's index cannot be written; what it knows is served");
                frozen(&file).map(|db| (file, db, Mode::Frozen))
            }
            Err(Trouble::Damage(damage)) => {
                replace(path, &damage).map(|(file, db)| (file, db, Mode::Writing))
            }
        };
        let (file, db, mode) = opened.map_err(|trouble| trouble.error())?;
        let totals = Arc::new(Totals::default());
        // What cannot be read is read again.
        *totals.hold() = guarded(|| Sums::read(&db.begin_read()?)).unwrap_or_default();
        let open = RwLock::new(Open { file, db: Some(db), mode, why, turn: 0 });
        Ok(Shelf { path: path.to_owned(), open, totals, replaced: Notify::new() })
    }

    pub(super) fn totals(&self) -> &Arc<Totals> {
        &self.totals
    }

    /// What `read` finds. Where the file fails it is opened anew and read once more; what cannot be read at all counts
    /// as not known: at worst it is fetched again.
    pub(super) fn read<T>(
        &self,
        mut read: impl FnMut(&ReadTransaction) -> Result<Option<T>, redb::Error>,
    ) -> Option<T> {
        for _ in 0..2 {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            let db = open.db.as_ref()?;
            let outcome = guarded(|| read(&db.begin_read()?));
            let turn = open.turn;
            drop(open);
            match outcome {
                Ok(found) => return found,
                Err(trouble) => self.failed(turn, trouble),
            }
        }
        None
    }

    /// Makes changes, all or none: a crash in the midst leaves the index as it was before. What is to happen `along`
    /// with them does so while the sums are held.
    pub(super) fn write(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
        along: impl FnOnce(),
    ) -> Result<(), Error> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let (db, turn) = (open.db.as_ref(), open.turn);
        let Some(db) = db.filter(|_| open.mode == Mode::Writing) else { return Err(open.why.clone()) };
        let outcome = guarded(|| {
            commit(db, change)?;
            Sums::read(&db.begin_read()?)
        });
        let outcome = outcome.map(|sums| {
            let mut held = self.totals.hold();
            *held = sums;
            along();
        });
        drop(open);
        outcome.map_err(|trouble| {
            let error = trouble.error();
            self.failed(turn, trouble);
            error
        })
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.open.read().unwrap_or_else(PoisonError::into_inner).mode == Mode::Frozen
    }

    /// Tries whether the file takes writes again.
    pub(super) fn thaw(&self) -> bool {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.mode == Mode::Writing {
            return true;
        }
        open.turn += 1;
        match open.db.take() {
            Some(frozen) => {
                close(frozen);
                match begin(&open.file, |_| Ok(())) {
                    Ok(db) => (open.db, open.mode) = (Some(db), Mode::Writing),
                    Err(trouble) => self.settle_for_less(&mut open, trouble),
                }
            }
            None => self.settle_for_less(&mut open, Trouble::Damage("it cannot be read".to_owned())),
        }
        self.refresh(&open);
        open.mode == Mode::Writing
    }

    /// A commit that failed may have been done all the same: what counts is what is there.
    fn refresh(&self, open: &Open) {
        if let Some(Ok(sums)) = open.db.as_ref().map(|db| guarded(|| Sums::read(&db.begin_read()?))) {
            *self.totals.hold() = sums;
        }
    }

    #[cfg(test)]
    pub(super) fn fail_writes(&self, whether: bool) {
        let open = self.open.read().unwrap();
        crate::store::tests::faults::fail_commits(&open.file, whether);
    }

    /// The opening of that turn failed: what comes next is opened, unless it has been already.
    fn failed(&self, turn: u64, trouble: Trouble) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.turn != turn {
            return;
        }
        open.turn += 1;
        // One file has one database at a time.
        if let Some(db) = open.db.take() {
            close(db);
        }
        let trouble = match (trouble, open.mode) {
            // What cannot even be read is of no use any more.
            (Trouble::Disk(error), Mode::Frozen) => Trouble::Damage(error.to_string()),
            (trouble, _) => trouble,
        };
        self.settle_for_less(&mut open, trouble);
        self.refresh(&open);
    }

    fn settle_for_less(&self, open: &mut Open, trouble: Trouble) {
        tracing::debug!(error = trouble.text(), "the index cannot be written");
        open.mode = Mode::Frozen;
        open.why = trouble.error();
        let damage = match trouble {
            Trouble::Disk(_) => match frozen(&open.file) {
                Ok(db) => {
                    open.db = Some(db);
                    return;
                }
                Err(trouble) => trouble.text(),
            },
            Trouble::Damage(damage) => damage,
        };
        match replace(&self.path, &damage) {
            Ok((file, db)) => {
                (open.file, open.db, open.mode) = (file, Some(db), Mode::Writing);
                self.replaced.notify_one();
            }
            // Nothing is known until the disk takes a new one.
            Err(trouble) => {
                tracing::error!(error = trouble.text(), "the cache's index can be neither read nor made anew")
            }
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = open.db.take() {
            close(db);
        }
    }
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Trouble {
    fn of(error: redb::Error) -> Trouble {
        match error {
            // Not a database, or one that ends too early.
            redb::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Trouble::Damage(error.to_string())
            }
            redb::Error::Io(error) => Trouble::Disk(error),
            redb::Error::PreviousIo => Trouble::Disk(io::Error::other("an earlier failure of the disk")),
            error => Trouble::Damage(error.to_string()),
        }
    }

    fn text(&self) -> String {
        match self {
            Trouble::Disk(error) => error.to_string(),
            Trouble::Damage(damage) => damage.clone(),
        }
    }

    fn error(&self) -> Error {
        match self {
            Trouble::Disk(error) => {
                let source = error
                    .raw_os_error()
                    .map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
                Error::io("writing the index")(source)
            }
            Trouble::Damage(damage) => Error::Index(damage.clone()),
        }
    }
}

/// redb checks much, and asserts the rest: on a damaged file that is a panic.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Trouble> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(Trouble::of),
        Err(_) => Err(Trouble::Damage("it contradicts itself".to_owned())),
    }
}

/// A database that goes writes once more, and may panic over what it finds.
fn close(db: Database) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
}

fn database(backing: Backing) -> Result<Database, redb::Error> {
    Ok(Database::builder().set_cache_size(PAGE_CACHE).create_with_backend(backing)?)
}

/// Opens for writing, and writes: tables that are missing, and `change`.
fn begin(
    file: &Arc<File>,
    change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
) -> Result<Database, Trouble> {
    guarded(|| {
        let db = database(Backing::writing(file))?;
        commit(&db, change)?;
        Ok(db)
    })
}

fn frozen(file: &Arc<File>) -> Result<Database, Trouble> {
    let backing = Backing::frozen(file).map_err(Trouble::Disk)?;
    guarded(|| database(backing))
}

/// Puts a damaged index aside and makes a new one: blobs are found in the tree, names and links are learned again,
/// and only the order of use is lost.
fn replace(path: &Path, damage: &str) -> Result<(Arc<File>, Database), Trouble> {
    let aside = path.with_extension("damaged");
    tracing::error!(damage, kept_as = %aside.display(), "the cache's index is damaged; it is rebuilt from the blobs");
    if path.exists() {
        disk::rename(path, &aside).map_err(Trouble::Disk)?;
    }
    let file = Arc::new(disk::open(path).map_err(Trouble::Disk)?);
    let db = begin(&file, |_| Ok(()))?;
    Ok((file, db))
}

fn commit(
    db: &Database,
    change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut transaction: WriteTransaction = db.begin_write()?;
    // Costs a little at each commit and makes opening after a kill a matter of milliseconds.
    transaction.set_quick_repair(true);
    change(&mut Tables::open(&transaction)?)?;
    transaction.commit()?;
    Ok(())
}
