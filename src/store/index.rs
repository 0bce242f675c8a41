use std::ops::Bound;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;

use super::{Error, Link, Name, Stamp};
use crate::oci::{Algorithm, Digest, Repository};

type BlobRow = (u64, u64, u8);
type LinkKey = (&'static [u8], &'static str);
type LinkRow = (u64, bool, &'static str);
type NameKey = (&'static str, &'static str);
type NameRow = (&'static [u8], u64, &'static str, u64, u64);

/// Digest to size, last use (milliseconds since 1970) and flags.
const BLOBS: TableDefinition<&[u8], BlobRow> = TableDefinition::new("blobs");
/// Last use and digest to size: the order of eviction.
const LRU: TableDefinition<(u64, &[u8]), u64> = TableDefinition::new("lru");
/// Digest and repository to size, "is a manifest" and media type: a proof that the one contains the other.
/// Digest first, so that what falls with a blob lies together.
const LINKS: TableDefinition<LinkKey, LinkRow> = TableDefinition::new("links");
/// Repository and name to digest, size, media type, since when and last confirmed.
const NAMES: TableDefinition<NameKey, NameRow> = TableDefinition::new("names");
/// Small notes of other rooms, by name.
const NOTES: TableDefinition<&str, &[u8]> = TableDefinition::new("notes");
/// Totals, and whether the last process closed the index.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

const BYTES: &str = "bytes";
const COUNT: &str = "count";
const CLEAN: &str = "clean";

/// Pages that redb keeps in memory. The index of a million blobs is about 250 MB on disk; its upper levels
/// and what is hot fit in here.
const PAGE_CACHE: usize = 32 << 20;

/// Changes committed together at most; one sync to disk pays for all of them.
const BATCH: usize = 512;

/// What is here, how big, when last used, who may see it, and what names mean.
///
/// Reads run where they are called, a few microseconds each. Changes go to one thread that commits what has
/// gathered, so that a burst of them costs one sync; each is answered once it is on disk. Files are the
/// truth about content and this is the truth about everything else: losing it costs names and use times,
/// never a blob.
#[derive(Debug)]
pub(super) struct Index {
    db: std::sync::Arc<Database>,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

/// One entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) size: u64,
    pub(super) last_use: u64,
}

/// Sums over all blobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) bytes: u64,
    pub(super) count: u64,
}

/// One change to the index.
#[derive(Debug)]
pub(super) enum Change {
    /// A file has its final name.
    Added(Digest, Entry),
    /// Files are about to lose theirs. Links fall with them, names stay: a tag still means its digest.
    Removed(Vec<Digest>),
    /// These were used.
    Used(Vec<(Digest, u64)>),
    /// A repository contains this.
    Linked(Repository, Digest, Link),
    /// A name means this from now on.
    Named(Repository, Name, Stamp),
    /// A name means nothing any more.
    Unnamed(Repository, Name),
    /// Another room has something to remember.
    Noted(String, Vec<u8>),
    /// The process ends in order.
    Closed,
}

struct Job {
    change: Change,
    done: oneshot::Sender<Result<(), Error>>,
}

/// The tables of one write transaction.
struct Tables<'t> {
    blobs: Table<'t, &'static [u8], BlobRow>,
    lru: Table<'t, (u64, &'static [u8]), u64>,
    links: Table<'t, LinkKey, LinkRow>,
    names: Table<'t, NameKey, NameRow>,
    notes: Table<'t, &'static str, &'static [u8]>,
    meta: Table<'t, &'static str, u64>,
}

impl Index {
    /// Opens the index, or makes an empty one. The second value tells whether the last process closed it.
    pub(super) fn open(path: &Path) -> Result<(Index, bool), Error> {
        let db = Database::builder().set_cache_size(PAGE_CACHE).create(path).map_err(Error::index)?;
        let was_clean = begin(&db).map_err(Error::index)?;
        let db = std::sync::Arc::new(db);
        let (jobs, inbox) = mpsc::channel();
        let own = std::sync::Arc::clone(&db);
        let writer =
            std::thread::Builder::new().name("index".to_owned()).spawn(move || write_loop(&own, &inbox));
        let writer = writer.map_err(|error| Error::Index(format!("cannot start its thread: {error}")))?;
        Ok((Index { db, jobs: Some(jobs), writer: Some(writer) }, was_clean))
    }

    /// The entry of `digest`.
    pub(super) fn entry(&self, digest: &Digest) -> Option<Entry> {
        self.read(|read| {
            let found = read.open_table(BLOBS)?.get(key(digest).as_slice())?;
            Ok(found.map(|row| Entry { size: row.value().0, last_use: row.value().1 }))
        })
    }

    /// The proof that `repository` contains `digest`.
    pub(super) fn link(&self, repository: &Repository, digest: &Digest) -> Option<Link> {
        self.read(|read| {
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
        self.read(|read| {
            let key = (repository.to_string(), name.to_string());
            let found = read.open_table(NAMES)?.get((key.0.as_str(), key.1.as_str()))?;
            Ok(found.and_then(|row| {
                let (digest, size, media_type, since, confirmed) = row.value();
                let digest = parse_key(digest)?;
                let media_type = media_type.to_owned();
                Some(Stamp { digest, size, media_type, since: time(since), confirmed: time(confirmed) })
            }))
        })
    }

    /// The note called `name`.
    pub(super) fn note(&self, name: &str) -> Option<Vec<u8>> {
        self.read(|read| Ok(read.open_table(NOTES)?.get(name)?.map(|row| row.value().to_vec())))
    }

    /// Every repository that has a name in it, in order.
    pub(super) fn repositories(&self) -> Vec<String> {
        let found = self.read(|read| {
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

    /// Shows the least recently used blobs to `take`, until those that it takes sum up to `bytes`.
    pub(super) fn oldest(&self, bytes: u64, mut take: impl FnMut(&Digest, Entry) -> bool) {
        self.read(|read| {
            let mut sum = 0u64;
            for row in read.open_table(LRU)?.range::<(u64, &[u8])>(..)? {
                let (at, size) = row?;
                let (last_use, key) = at.value();
                let entry = Entry { size: size.value(), last_use };
                if parse_key(key).is_some_and(|digest| take(&digest, entry)) {
                    sum = sum.saturating_add(entry.size);
                }
                if sum >= bytes {
                    break;
                }
            }
            Ok(Some(()))
        });
    }

    /// The sums as of the last commit.
    pub(super) fn totals(&self) -> Totals {
        self.read(|read| {
            let meta = read.open_table(META)?;
            let sum = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |row| row.value()));
            Ok(Some(Totals { bytes: sum(BYTES)?, count: sum(COUNT)? }))
        })
        .unwrap_or_default()
    }

    /// Makes a change and waits until it is on disk. Once begun it happens, even if the caller goes away.
    pub(super) async fn change(&self, change: Change) -> Result<(), Error> {
        let closed = || Error::Index("it is closed".to_owned());
        let (done, answer) = oneshot::channel();
        self.jobs.as_ref().ok_or_else(closed)?.send(Job { change, done }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// A failing read is told and counts as "nothing known": the blob is fetched again at worst.
    fn read<T>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<Option<T>, redb::Error>,
    ) -> Option<T> {
        let outcome =
            self.db.begin_read().map_err(redb::Error::from).and_then(|transaction| read(&transaction));
        outcome.unwrap_or_else(|error| {
            tracing::error!(%error, "the index cannot be read");
            None
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

/// Makes the tables, and marks the index as in use.
fn begin(db: &Database) -> Result<bool, redb::Error> {
    let transaction = db.begin_write()?;
    let was_clean = {
        let mut tables = Tables::open(&transaction)?;
        let was_clean = tables.meta.get(CLEAN)?.is_none_or(|row| row.value() == 1);
        tables.meta.insert(CLEAN, 0)?;
        was_clean
    };
    transaction.commit()?;
    Ok(was_clean)
}

fn write_loop(db: &Database, inbox: &mpsc::Receiver<Job>) {
    while let Ok(first) = inbox.recv() {
        let mut jobs = vec![first];
        jobs.extend(inbox.try_iter().take(BATCH - 1));
        let outcome = commit(db, jobs.iter().map(|job| &job.change)).map_err(Error::index);
        if let Err(error) = &outcome {
            tracing::error!(%error, changes = jobs.len(), "the index cannot be written");
        }
        for job in jobs {
            // Nobody waits any more: the change stands all the same.
            let _ = job.done.send(outcome.clone());
        }
    }
}

/// All changes or none: a crash in the midst leaves the index as it was before.
fn commit<'a>(db: &Database, changes: impl Iterator<Item = &'a Change>) -> Result<(), redb::Error> {
    let mut transaction = db.begin_write()?;
    // Costs a little at each commit and makes opening after a kill a matter of milliseconds.
    transaction.set_quick_repair(true);
    {
        let mut tables = Tables::open(&transaction)?;
        for change in changes {
            // Whatever comes after the end in order takes it back.
            tables.meta.insert(CLEAN, u64::from(matches!(change, Change::Closed)))?;
            tables.apply(change)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Tables<'t>, redb::Error> {
        Ok(Tables {
            blobs: transaction.open_table(BLOBS)?,
            lru: transaction.open_table(LRU)?,
            links: transaction.open_table(LINKS)?,
            names: transaction.open_table(NAMES)?,
            notes: transaction.open_table(NOTES)?,
            meta: transaction.open_table(META)?,
        })
    }

    fn apply(&mut self, change: &Change) -> Result<(), redb::Error> {
        match change {
            Change::Added(digest, entry) => self.add(digest, *entry),
            Change::Removed(digests) => digests.iter().try_for_each(|digest| self.remove(digest)),
            Change::Used(uses) => uses.iter().try_for_each(|(digest, at)| self.touch(digest, *at)),
            Change::Linked(repository, digest, link) => {
                self.link(&key(digest), &repository.to_string(), link)
            }
            Change::Named(repository, name, stamp) => {
                let row = (
                    key(&stamp.digest),
                    stamp.size,
                    stamp.media_type.as_str(),
                    millis(stamp.since),
                    millis(stamp.confirmed),
                );
                let row = (row.0.as_slice(), row.1, row.2, row.3, row.4);
                self.names.insert((repository.to_string().as_str(), name.to_string().as_str()), row)?;
                Ok(())
            }
            Change::Unnamed(repository, name) => {
                self.names.remove((repository.to_string().as_str(), name.to_string().as_str()))?;
                Ok(())
            }
            Change::Noted(name, note) => {
                self.notes.insert(name.as_str(), note.as_slice())?;
                Ok(())
            }
            Change::Closed => Ok(()),
        }
    }

    fn add(&mut self, digest: &Digest, entry: Entry) -> Result<(), redb::Error> {
        let key = key(digest);
        let old = self.blobs.insert(key.as_slice(), (entry.size, entry.last_use, 0))?.map(|row| row.value());
        if let Some((size, last_use, _)) = old {
            self.lru.remove((last_use, key.as_slice()))?;
            self.sum(-i128::from(size), -1)?;
        }
        self.lru.insert((entry.last_use, key.as_slice()), entry.size)?;
        self.sum(i128::from(entry.size), 1)
    }

    fn remove(&mut self, digest: &Digest) -> Result<(), redb::Error> {
        let key = key(digest);
        let old = self.blobs.remove(key.as_slice())?.map(|row| row.value());
        if let Some((size, last_use, _)) = old {
            self.lru.remove((last_use, key.as_slice()))?;
            self.sum(-i128::from(size), -1)?;
        }
        let mut next = key.clone();
        next.push(0);
        let range = (Bound::Included((key.as_slice(), "")), Bound::Excluded((next.as_slice(), "")));
        self.links.retain_in::<(&[u8], &str), _>(range, |_, _| false)?;
        Ok(())
    }

    fn touch(&mut self, digest: &Digest, at: u64) -> Result<(), redb::Error> {
        let key = key(digest);
        let Some((size, last_use, flags)) = self.blobs.get(key.as_slice())?.map(|row| row.value()) else {
            return Ok(());
        };
        if at > last_use {
            self.lru.remove((last_use, key.as_slice()))?;
            self.lru.insert((at, key.as_slice()), size)?;
            self.blobs.insert(key.as_slice(), (size, at, flags))?;
        }
        Ok(())
    }

    /// A manifest may be asked for as a blob too: what is known of it as a manifest stays.
    fn link(&mut self, key: &[u8], repository: &str, link: &Link) -> Result<(), redb::Error> {
        let is_known = self.links.get((key, repository))?.is_some_and(|row| row.value().1);
        if link.is_manifest || !is_known {
            let row = (link.size, link.is_manifest, link.media_type.as_str());
            self.links.insert((key, repository), row)?;
        }
        Ok(())
    }

    fn sum(&mut self, bytes: i128, count: i64) -> Result<(), redb::Error> {
        let old = |row: Option<redb::AccessGuard<'_, u64>>| row.map_or(0, |row| row.value());
        let sum = old(self.meta.get(BYTES)?);
        let sum = u64::try_from(i128::from(sum) + bytes).unwrap_or(0);
        self.meta.insert(BYTES, sum)?;
        let number = old(self.meta.get(COUNT)?).saturating_add_signed(count);
        self.meta.insert(COUNT, number)?;
        Ok(())
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

/// Milliseconds since 1970; a clock before that counts as 1970.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn time(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn entry(size: u64, last_use: u64) -> Entry {
        Entry { size, last_use }
    }

    fn oldest(index: &Index, bytes: u64, may_go: impl Fn(&Digest) -> bool) -> Vec<(Digest, u64)> {
        let mut found = Vec::new();
        index.oldest(bytes, |digest, entry| {
            let takes = may_go(digest);
            found.extend(takes.then_some((*digest, entry.size)));
            takes
        });
        found
    }

    async fn opened() -> (Index, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let (index, was_clean) = Index::open(&folder.path().join("index")).unwrap();
        assert!(was_clean, "a new index needs no recovery");
        for (text, size, at) in [("a", 10, 3), ("b", 20, 1), ("c", 30, 2)] {
            index.change(Change::Added(digest(text), entry(size, at))).await.unwrap();
        }
        (index, folder)
    }

    #[tokio::test]
    async fn the_oldest_go_first_and_totals_follow() {
        let (index, _folder) = opened().await;
        assert_eq!(index.totals(), Totals { bytes: 60, count: 3 });
        assert_eq!(oldest(&index, 21, |_| true), [(digest("b"), 20), (digest("c"), 30)]);
        index.change(Change::Used(vec![(digest("b"), 9)])).await.unwrap();
        assert_eq!(oldest(&index, 1, |_| true), [(digest("c"), 30)]);
        assert_eq!(oldest(&index, 1, |it| *it != digest("c")), [(digest("a"), 10)]);
        index.change(Change::Removed(vec![digest("c"), digest("not there")])).await.unwrap();
        index.change(Change::Added(digest("a"), entry(10, 12))).await.unwrap();
        assert_eq!(index.totals(), Totals { bytes: 30, count: 2 });
        assert_eq!(index.entry(&digest("c")), None);
        assert_eq!(index.entry(&digest("b")), Some(entry(20, 9)));
    }

    #[tokio::test]
    async fn links_fall_with_their_blob() {
        let (index, _folder) = opened().await;
        let repository: Repository = "docker.io/library/x".parse().unwrap();
        let link = Link { size: 10, is_manifest: true, media_type: "m".to_owned() };
        for text in ["a", "b"] {
            index.change(Change::Linked(repository.clone(), digest(text), link.clone())).await.unwrap();
        }
        assert_eq!(index.link(&repository, &digest("a")), Some(link.clone()));
        assert_eq!(index.link(&"docker.io/library/y".parse().unwrap(), &digest("a")), None);
        index.change(Change::Removed(vec![digest("a")])).await.unwrap();
        assert_eq!(index.link(&repository, &digest("a")), None);
        assert_eq!(index.link(&repository, &digest("b")), Some(link));
    }

    #[tokio::test]
    async fn names_survive_and_a_kill_is_noticed() {
        let (index, folder) = opened().await;
        let stamp = Stamp {
            digest: digest("a"),
            size: 10,
            media_type: "m".to_owned(),
            since: time(5),
            confirmed: time(6),
        };
        for name in ["docker.io/a", "docker.io/a/b", "ghcr.io/c"] {
            let repository: Repository = name.parse().unwrap();
            for tag in ["x", "y"] {
                let name = Name::Tag(tag.parse().unwrap());
                index.change(Change::Named(repository.clone(), name, stamp.clone())).await.unwrap();
            }
        }
        assert_eq!(index.repositories(), ["docker.io/a", "docker.io/a/b", "ghcr.io/c"]);
        drop(index);
        let (index, was_clean) = Index::open(&folder.path().join("index")).unwrap();
        assert!(!was_clean, "nobody said that it was closed");
        let (repository, name) = ("ghcr.io/c".parse().unwrap(), Name::Tag("x".parse().unwrap()));
        assert_eq!(index.name(&repository, &name), Some(stamp));
        index.change(Change::Unnamed(repository.clone(), name.clone())).await.unwrap();
        assert_eq!(index.name(&repository, &name), None);
        index.change(Change::Closed).await.unwrap();
        drop(index);
        assert!(Index::open(&folder.path().join("index")).unwrap().1);
    }
}
