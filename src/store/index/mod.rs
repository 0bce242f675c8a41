//! What is here, how big, when last used, who may see it, and what names mean.
//!
//! Reads run where they are called, a few microseconds each. Changes go to one thread that commits what has
//! gathered, so that a burst of them costs one sync; each is answered once it is on disk. Files are the
//! truth about content and this is the truth about everything else: losing it costs names and use times,
//! never a blob.
//!
//! `tables.rs` is what it holds, `shelf.rs` what becomes of it when the disk fails, `backing.rs` its file.

mod backing;
mod shelf;
mod tables;
#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use self::shelf::Shelf;
use self::tables::{BLOBS, BYTES, COUNT, HISTORY, LINKS, LRU, META, NAMES, NOTES, PINNED_BYTES, PINS, WHOLE};
use super::{Error, Link, Name, Past, Stamp, TAG};
use crate::oci::{Algorithm, Digest, Reference, Repository};

/// Changes committed together at most; one sync to disk pays for all of them.
const BATCH: usize = 512;

/// How often a disk that takes no writes is tried again.
const THAW: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 1000 });

/// The index of the store.
#[derive(Debug)]
pub(super) struct Index {
    shelf: Arc<Shelf>,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

/// One entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) size: u64,
    pub(super) last_use: u64,
    /// A pin keeps it from eviction.
    pub(super) is_pinned: bool,
}

/// Sums over all blobs as of the last commit, for whoever needs them often.
#[derive(Debug, Default)]
pub(super) struct Totals(Mutex<Sums>);

/// Taken together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) bytes: u64,
    pub(super) count: u64,
    /// Of the bytes, those that a pin keeps from eviction.
    pub(super) pinned_bytes: u64,
    /// Every blob of the tree is known. Where not, the tree has to be looked through.
    pub(super) is_whole: bool,
}

/// One change to the index.
#[derive(Debug)]
pub(super) enum Change {
    /// A file is about to get its final name.
    Coming(Digest),
    /// It has it, also after a power cut.
    Added(Digest, Entry),
    /// These were found in the tree.
    Found(Vec<(Digest, Entry)>),
    /// Files are about to lose theirs. Links fall with them, names stay: a tag still means its digest.
    Removed(Vec<Digest>),
    /// The same, but what has been pinned meanwhile stays.
    Evicted(Vec<Digest>),
    /// They have, also after a power cut.
    Settled(Vec<Digest>),
    /// These were used.
    Used(Vec<(Digest, u64)>),
    /// A repository contains this.
    Linked(Repository, Digest, Link),
    /// It is not to be seen through a repository any more.
    Unlinked(Repository, Vec<Digest>),
    /// These are not evicted, for the sake of this reference, in place of those of before.
    Pinned(Repository, Reference, Vec<Digest>),
    /// They may be.
    Unpinned(Repository, Reference),
    /// A name means this from now on.
    Named(Repository, Name, Stamp),
    /// A name means nothing any more.
    Unnamed(Repository, Name),
    /// Another room has something to remember.
    Noted(String, Vec<u8>),
    /// Every blob of the tree is known.
    Whole,
}

struct Job {
    change: Change,
    /// What happens at the very moment at which the sums change.
    along: Option<Box<dyn FnOnce() + Send>>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Index {
    /// Opens the index, or makes an empty one where there is none or a damaged one. What came or went when the last
    /// process ended is settled: `find` tells what there is of a digest in the tree.
    pub(super) fn open(path: &Path, find: impl Fn(&Digest) -> Option<Entry>) -> Result<Index, Error> {
        let shelf = Arc::new(Shelf::open(path, find)?);
        let (jobs, inbox) = mpsc::channel();
        let own = Arc::clone(&shelf);
        let writer =
            std::thread::Builder::new().name("index".to_owned()).spawn(move || write_loop(&own, &inbox));
        let writer = writer.map_err(|error| Error::Index(format!("cannot start its thread: {error}")))?;
        Ok(Index { shelf, jobs: Some(jobs), writer: Some(writer) })
    }

    /// Sums over all blobs. They change with each commit.
    pub(super) fn totals(&self) -> &Arc<Totals> {
        self.shelf.totals()
    }

    /// Resolves when a new index has taken the place of one that turned out to be damaged. Cancel-safe.
    pub(super) async fn replaced(&self) {
        self.shelf.replaced.notified().await;
    }

    /// The entry of `digest`.
    pub(super) fn entry(&self, digest: &Digest) -> Option<Entry> {
        self.shelf.read(|read| {
            let found = read.open_table(BLOBS)?.get(key(digest).as_slice())?;
            Ok(found.map(|row| Entry::of(row.value())))
        })
    }

    /// The proof that `repository` contains `digest`.
    pub(super) fn link(&self, repository: &Repository, digest: &Digest) -> Option<Link> {
        self.shelf.read(|read| {
            let found =
                read.open_table(LINKS)?.get((key(digest).as_slice(), repository.to_string().as_str()))?;
            Ok(found.map(|row| {
                let (size, is_manifest, media_type) = row.value();
                Link { size, is_manifest, media_type: media_type.to_owned() }
            }))
        })
    }

    /// What `name` means in `repository`.
    pub(super) fn name(&self, repository: &Repository, name: &Name) -> Option<Stamp> {
        self.shelf.read(|read| {
            let key = (repository.to_string(), name.to_string());
            let found = read.open_table(NAMES)?.get((key.0.as_str(), key.1.as_str()))?;
            Ok(found.and_then(|row| stamp(row.value())))
        })
    }

    /// What a tag meant before, the latest first.
    pub(super) fn history(&self, repository: &Repository, name: &Name) -> Vec<Past> {
        let (repository, name) = (repository.to_string(), name.to_string());
        let found = self.shelf.read(|read| {
            let history = read.open_table(HISTORY)?;
            let all =
                (repository.as_str(), name.as_str(), 0)..=(repository.as_str(), name.as_str(), u64::MAX);
            let mut found = Vec::new();
            for row in history.range::<(&str, &str, u64)>(all)?.rev() {
                let (at, row) = row?;
                let (key, size, media_type, until) = row.value();
                let (since, until, media_type) = (time(at.value().2), time(until), media_type.to_owned());
                found.extend(parse_key(key).map(|digest| Past { digest, size, media_type, since, until }));
            }
            Ok(Some(found))
        });
        found.unwrap_or_default()
    }

    /// The repositories that are known to contain `digest`, in order.
    pub(super) fn linked(&self, digest: &Digest) -> Vec<String> {
        let found = self.shelf.read(|read| {
            let (links, key) = (read.open_table(LINKS)?, key(digest));
            let mut found = Vec::new();
            for row in links.range::<(&[u8], &str)>((key.as_slice(), "")..)? {
                let row = row?;
                let (own, repository) = row.0.value();
                if own != key.as_slice() {
                    break;
                }
                found.push(repository.to_owned());
            }
            Ok(Some(found))
        });
        found.unwrap_or_default()
    }

    /// What the pin of this holds, where there is one.
    pub(super) fn pin(&self, repository: &Repository, reference: &Reference) -> Option<Vec<Digest>> {
        let (repository, reference) = (repository.to_string(), reference.to_string());
        self.shelf.read(|read| {
            let row = read.open_table(PINS)?.get((repository.as_str(), reference.as_str()))?;
            Ok(row.map(|row| tables::parse_keys(row.value())))
        })
    }

    /// Every pin in `repository`: the reference, and what it holds.
    pub(super) fn pins(&self, repository: &Repository) -> Vec<(String, Vec<Digest>)> {
        let repository = repository.to_string();
        let found = self.shelf.read(|read| {
            let pins = read.open_table(PINS)?;
            let mut found = Vec::new();
            for row in pins.range::<(&str, &str)>((repository.as_str(), "")..)? {
                let (at, keys) = row?;
                let (own, reference) = at.value();
                if own != repository {
                    break;
                }
                found.push((reference.to_owned(), tables::parse_keys(keys.value())));
            }
            Ok(Some(found))
        });
        found.unwrap_or_default()
    }

    /// Every repository in which there is a pin.
    pub(super) fn pinned_repositories(&self) -> Vec<String> {
        let found = self.shelf.read(|read| {
            let mut found: Vec<String> = Vec::new();
            for row in read.open_table(PINS)?.range::<(&str, &str)>(..)? {
                let (at, _) = row?;
                let (repository, _) = at.value();
                if found.last().is_none_or(|last| last != repository) {
                    found.push(repository.to_owned());
                }
            }
            Ok(Some(found))
        });
        found.unwrap_or_default()
    }

    /// The note called `name`.
    pub(super) fn note(&self, name: &str) -> Option<Vec<u8>> {
        self.shelf.read(|read| Ok(read.open_table(NOTES)?.get(name)?.map(|row| row.value().to_vec())))
    }

    /// Every repository that has a name in it, in order.
    pub(super) fn repositories(&self) -> Vec<String> {
        let found = self.shelf.read(|read| {
            let names = read.open_table(NAMES)?;
            let mut found: Vec<String> = Vec::new();
            let mut from = String::new();
            // One seek a repository, past all its names.
            while let Some(row) = names.range::<(&str, &str)>((from.as_str(), "")..)?.next() {
                let repository = row?.0.value().0.to_owned();
                from = format!("{repository}\u{0}");
                found.push(repository);
            }
            Ok(Some(found))
        });
        found.unwrap_or_default()
    }

    /// The next `most` tags from `from` on, in the order of repositories and tags; only of `within`, where that is given.
    pub(super) fn tags(
        &self,
        from: Bound<(&str, &str)>,
        within: Option<&str>,
        most: usize,
    ) -> Vec<(String, String, Stamp)> {
        let found = self.shelf.read(|read| {
            let names = read.open_table(NAMES)?;
            let mut found = Vec::new();
            for row in names.range::<(&str, &str)>((from, Bound::Unbounded))? {
                let (at, row) = row?;
                let (repository, name) = at.value();
                if within.is_some_and(|within| within != repository) {
                    break;
                }
                let tag = name.strip_prefix(TAG);
                let tag =
                    tag.and_then(|tag| Some((repository.to_owned(), tag.to_owned(), stamp(row.value())?)));
                found.extend(tag);
                if found.len() >= most {
                    break;
                }
            }
            Ok(Some(found))
        });
        found.unwrap_or_default()
    }

    /// The next `most` blobs behind `digest`, in the order of their names; from the first one on where there is none.
    /// `None` where it cannot be read.
    pub(super) fn after(&self, digest: Option<&Digest>, most: usize) -> Option<Vec<Digest>> {
        let from = digest.map(key);
        self.shelf.read(|read| {
            let blobs = read.open_table(BLOBS)?;
            let from = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let rows = blobs.range::<&[u8]>((from, Bound::Unbounded))?.take(most);
            let mut found = Vec::new();
            for row in rows {
                found.extend(parse_key(row?.0.value()));
            }
            Ok(Some(found))
        })
    }

    /// Shows the least recently used blobs to `take`, until those that it takes sum up to `bytes`, or are so many.
    pub(super) fn oldest(&self, bytes: u64, most: usize, mut take: impl FnMut(&Digest, Entry) -> bool) {
        self.shelf.read(|read| {
            let (mut sum, mut count) = (0u64, 0);
            for row in read.open_table(LRU)?.range::<(u64, &[u8])>(..)? {
                let (at, size) = row?;
                let (last_use, key) = at.value();
                let entry = Entry { size: size.value(), last_use, is_pinned: false };
                if parse_key(key).is_some_and(|digest| take(&digest, entry)) {
                    sum = sum.saturating_add(entry.size);
                    count += 1;
                }
                if sum >= bytes || count >= most {
                    break;
                }
            }
            Ok(Some(()))
        });
    }

    /// Takes note that every blob of the tree is known, before anybody else changes anything.
    pub(super) fn declare_whole(&self) -> Result<(), Error> {
        self.shelf.write(|tables| tables.apply(&Change::Whole), || {})
    }

    /// Makes a change and waits until it is on disk. Once begun it happens, even if the caller goes away.
    pub(super) async fn change(&self, change: Change) -> Result<(), Error> {
        self.hand_in(change, None).await
    }

    /// The same, and once it is on disk does `along`: whoever looks at the sums sees both or neither. It must not ask
    /// for the sums itself.
    pub(super) async fn change_and(
        &self,
        change: Change,
        along: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        self.hand_in(change, Some(Box::new(along))).await
    }

    async fn hand_in(&self, change: Change, along: Option<Box<dyn FnOnce() + Send>>) -> Result<(), Error> {
        let closed = || Error::Index("it is closed".to_owned());
        let (done, answer) = oneshot::channel();
        self.jobs.as_ref().ok_or_else(closed)?.send(Job { change, along, done }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

impl Entry {
    /// Of a blob that comes in. Whether it is pinned is known to the index alone.
    pub(super) fn new(size: u64, last_use: u64) -> Entry {
        Entry { size, last_use, is_pinned: false }
    }

    fn of(row: tables::BlobRow) -> Entry {
        Entry { size: row.0, last_use: row.1, is_pinned: tables::is_pinned(row) }
    }
}

impl Totals {
    /// The sums, held still as long as the guard lives.
    pub(super) fn hold(&self) -> MutexGuard<'_, Sums> {
        // Put in whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums at this moment.
    pub(super) fn sums(&self) -> Sums {
        *self.hold()
    }

    #[cfg(test)]
    pub(super) fn of(sums: Sums) -> Totals {
        Totals(Mutex::new(sums))
    }
}

impl Sums {
    fn read(read: &redb::ReadTransaction) -> Result<Sums, redb::Error> {
        let meta = read.open_table(META)?;
        let sum = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |row| row.value()));
        Ok(Sums {
            bytes: sum(BYTES)?,
            count: sum(COUNT)?,
            pinned_bytes: sum(PINNED_BYTES)?,
            is_whole: sum(WHOLE)? == 1,
        })
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // The writer ends when no sender is left; what was handed in before is committed first.
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write_loop(shelf: &Shelf, inbox: &mpsc::Receiver<Job>) {
    let mut tried = Instant::now();
    loop {
        let first = match shelf.is_frozen() {
            false => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            true => inbox.recv_timeout(THAW.saturating_sub(tried.elapsed())),
        };
        if shelf.is_frozen() && tried.elapsed() >= THAW {
            shelf.thaw();
            tried = Instant::now();
        }
        match first {
            Ok(first) => write_batch(shelf, inbox, first),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn write_batch(shelf: &Shelf, inbox: &mpsc::Receiver<Job>, first: Job) {
    let mut jobs = vec![first];
    jobs.extend(inbox.try_iter().take(BATCH - 1));
    let mut alongs: Vec<_> = jobs.iter_mut().filter_map(|job| job.along.take()).collect();
    let outcome = shelf.write(
        |tables| jobs.iter().try_for_each(|job| tables.apply(&job.change)),
        || alongs.drain(..).for_each(|along| along()),
    );
    for job in jobs {
        // Nobody waits any more: the change stands all the same.
        let _ = job.done.send(outcome.clone());
    }
}

/// One byte for the algorithm, then the raw digest.
fn key(digest: &Digest) -> Vec<u8> {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    let mut key = Vec::with_capacity(65);
    key.push(algorithm);
    key.extend_from_slice(digest.bytes());
    key
}

fn parse_key(key: &[u8]) -> Option<Digest> {
    match key.split_first()? {
        (1, raw) => Digest::from_bytes(Algorithm::Sha256, raw),
        (2, raw) => Digest::from_bytes(Algorithm::Sha512, raw),
        _ => None,
    }
}

fn stamp((digest, size, media_type, since, confirmed): (&[u8], u64, &str, u64, u64)) -> Option<Stamp> {
    let (digest, media_type) = (parse_key(digest)?, media_type.to_owned());
    Some(Stamp { digest, size, media_type, since: time(since), confirmed: time(confirmed) })
}

/// Milliseconds since 1970; a clock before that counts as 1970.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The other way round.
pub(super) fn time(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}
