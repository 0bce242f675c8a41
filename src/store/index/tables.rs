use std::ops::Bound;

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::{Change, Entry, key, millis};
use crate::lifecycle;
use crate::oci::Digest;
use crate::store::{Link, Name, Stamp};

pub(super) type BlobRow = (u64, u64, u8);
type LinkKey = (&'static [u8], &'static str);
type LinkRow = (u64, bool, &'static str);
type NameKey = (&'static str, &'static str);
type PastKey = (&'static str, &'static str, u64);
type PastRow = (&'static [u8], u64, &'static str, u64);
type NameRow = (&'static [u8], u64, &'static str, u64, u64);

/// Digest to size, last use (milliseconds since 1970) and flags.
pub(super) const BLOBS: TableDefinition<&[u8], BlobRow> = TableDefinition::new("blobs");
/// Last use and digest to size: the order of eviction. What is pinned has no place in it.
pub(super) const LRU: TableDefinition<(u64, &[u8]), u64> = TableDefinition::new("lru");
/// Digest and repository to size, "is a manifest" and media type: a proof that the one contains the other.
/// Digest first, so that what falls with a blob lies together.
pub(super) const LINKS: TableDefinition<LinkKey, LinkRow> = TableDefinition::new("links");
/// Repository and name to digest, size, media type, since when and last confirmed.
pub(super) const NAMES: TableDefinition<NameKey, NameRow> = TableDefinition::new("names");
/// Repository, name and since when to what a tag meant before: digest, size, media type and until when.
pub(super) const HISTORY: TableDefinition<PastKey, PastRow> = TableDefinition::new("history");
/// Small notes of other rooms, by name.
pub(super) const NOTES: TableDefinition<&str, &[u8]> = TableDefinition::new("notes");
/// Repository and reference to the keys of all that is not to be evicted for that, one after the other.
pub(super) const PINS: TableDefinition<NameKey, &[u8]> = TableDefinition::new("pins");
/// Digest to how many pins hold it.
pub(super) const PINNED: TableDefinition<&[u8], u64> = TableDefinition::new("pinned");
/// Digests whose file comes or goes at this moment: after a crash they are looked at, and nothing else need be.
pub(super) const PENDING: TableDefinition<&[u8], ()> = TableDefinition::new("pending");
/// Totals, and whether every blob of the tree is known.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

pub(super) const BYTES: &str = "bytes";
pub(super) const COUNT: &str = "count";
pub(super) const WHOLE: &str = "whole";
pub(super) const PINNED_BYTES: &str = "pinned_bytes";

/// The flag of a blob that a pin holds.
const IS_PINNED: u8 = 1;

/// So many meanings of a tag are remembered.
const LONGEST_HISTORY: usize = 100;

/// What a name meant until now.
struct Old {
    digest: Vec<u8>,
    size: u64,
    media_type: String,
    since: u64,
}

impl Old {
    fn of((digest, size, media_type, since, _): (&[u8], u64, &str, u64, u64)) -> Old {
        Old { digest: digest.to_vec(), size, media_type: media_type.to_owned(), since }
    }
}

/// The tables of one write transaction.
pub(super) struct Tables<'t> {
    blobs: Table<'t, &'static [u8], BlobRow>,
    lru: Table<'t, (u64, &'static [u8]), u64>,
    links: Table<'t, LinkKey, LinkRow>,
    names: Table<'t, NameKey, NameRow>,
    history: Table<'t, PastKey, PastRow>,
    notes: Table<'t, &'static str, &'static [u8]>,
    pins: Table<'t, NameKey, &'static [u8]>,
    pinned: Table<'t, &'static [u8], u64>,
    pending: Table<'t, &'static [u8], ()>,
    meta: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    /// Makes those that are missing.
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Tables<'t>, redb::Error> {
        Ok(Tables {
            blobs: transaction.open_table(BLOBS)?,
            lru: transaction.open_table(LRU)?,
            links: transaction.open_table(LINKS)?,
            names: transaction.open_table(NAMES)?,
            history: transaction.open_table(HISTORY)?,
            notes: transaction.open_table(NOTES)?,
            pins: transaction.open_table(PINS)?,
            pinned: transaction.open_table(PINNED)?,
            pending: transaction.open_table(PENDING)?,
            meta: transaction.open_table(META)?,
        })
    }

    pub(super) fn apply(&mut self, change: &Change) -> Result<(), redb::Error> {
        match change {
            Change::Coming(digest) => self.pend(digest),
            Change::Added(digest, entry) => self.add(digest, *entry),
            Change::Found(found) => found.iter().try_for_each(|(digest, entry)| self.add(digest, *entry)),
            Change::Removed(digests) => digests.iter().try_for_each(|digest| self.remove(digest)),
            Change::Evicted(digests) => {
                for digest in digests {
                    if self.pinned.get(key(digest).as_slice())?.is_none() {
                        self.remove(digest)?;
                    }
                }
                Ok(())
            }
            Change::Settled(digests) => digests.iter().try_for_each(|digest| self.settle(digest)),
            Change::Used(uses) => uses.iter().try_for_each(|(digest, at)| self.touch(digest, *at)),
            Change::Linked(repository, digest, link) => {
                self.link(&key(digest), &repository.to_string(), link)
            }
            Change::Named(repository, name, stamp) => self.name(&repository.to_string(), name, stamp),
            Change::Unnamed(repository, name) => self.unname(&repository.to_string(), name),
            Change::Unlinked(repository, digests) => {
                let repository = repository.to_string();
                for digest in digests {
                    self.links.remove((key(digest).as_slice(), repository.as_str()))?;
                }
                Ok(())
            }
            Change::Pinned(repository, reference, digests) => {
                self.pin(&repository.to_string(), &reference.to_string(), digests)
            }
            Change::Unpinned(repository, reference) => {
                self.unpin(&repository.to_string(), &reference.to_string())
            }
            Change::Noted(name, note) => {
                self.notes.insert(name.as_str(), note.as_slice())?;
                Ok(())
            }
            Change::Whole => {
                self.meta.insert(WHOLE, 1)?;
                Ok(())
            }
        }
    }

    /// What came or went when the last process ended. `find` tells what there is of a digest in the tree. Content has
    /// its name only after it is proven: a file that is there is a blob, and counts from now on.
    pub(super) fn settle_all(&mut self, find: impl Fn(&Digest) -> Option<Entry>) -> Result<(), redb::Error> {
        let mut pending = Vec::new();
        for row in self.pending.iter()? {
            pending.extend(super::parse_key(row?.0.value()));
        }
        for digest in pending {
            let is_known = self.blobs.get(key(&digest).as_slice())?.is_some();
            match find(&digest).filter(|_| !is_known) {
                Some(entry) => self.add(&digest, entry)?,
                None => self.settle(&digest)?,
            }
        }
        Ok(())
    }

    fn pend(&mut self, digest: &Digest) -> Result<(), redb::Error> {
        self.pending.insert(key(digest).as_slice(), ())?;
        Ok(())
    }

    fn settle(&mut self, digest: &Digest) -> Result<(), redb::Error> {
        self.pending.remove(key(digest).as_slice())?;
        Ok(())
    }

    fn add(&mut self, digest: &Digest, entry: Entry) -> Result<(), redb::Error> {
        let key = key(digest);
        self.take_out(&key)?;
        let is_pinned = self.pinned.get(key.as_slice())?.is_some();
        self.put_in(&key, (entry.size, entry.last_use, if is_pinned { IS_PINNED } else { 0 }))?;
        self.settle(digest)
    }

    fn remove(&mut self, digest: &Digest) -> Result<(), redb::Error> {
        self.pend(digest)?;
        let key = key(digest);
        self.take_out(&key)?;
        let mut next = key.clone();
        next.push(0);
        let range = (Bound::Included((key.as_slice(), "")), Bound::Excluded((next.as_slice(), "")));
        self.links.retain_in::<(&[u8], &str), _>(range, |_, _| false)?;
        Ok(())
    }

    fn touch(&mut self, digest: &Digest, at: u64) -> Result<(), redb::Error> {
        let key = key(digest);
        let row = self.blobs.get(key.as_slice())?.map(|row| row.value());
        let Some((size, _, flags)) = row.filter(|(_, last_use, _)| at > *last_use) else { return Ok(()) };
        self.take_out(&key)?;
        self.put_in(&key, (size, at, flags))
    }

    /// A blob is here: it counts, and has its place in the order of eviction.
    fn put_in(&mut self, key: &[u8], row: BlobRow) -> Result<(), redb::Error> {
        let (size, last_use, flags) = row;
        self.blobs.insert(key, row)?;
        self.sum(BYTES, i128::from(size))?;
        self.sum(COUNT, 1)?;
        if flags & IS_PINNED != 0 {
            return self.sum(PINNED_BYTES, i128::from(size));
        }
        self.lru.insert((last_use, key), size)?;
        Ok(())
    }

    /// It is not, if it was.
    fn take_out(&mut self, key: &[u8]) -> Result<(), redb::Error> {
        let old = self.blobs.remove(key)?.map(|row| row.value());
        let Some((size, last_use, flags)) = old else { return Ok(()) };
        self.sum(BYTES, -i128::from(size))?;
        self.sum(COUNT, -1)?;
        if flags & IS_PINNED != 0 {
            return self.sum(PINNED_BYTES, -i128::from(size));
        }
        self.lru.remove((last_use, key))?;
        Ok(())
    }

    /// What an earlier pin of this held, and this one does not, is let go.
    fn pin(&mut self, repository: &str, reference: &str, digests: &[Digest]) -> Result<(), redb::Error> {
        let keys: Vec<Vec<u8>> = digests.iter().map(key).collect();
        for key in &keys {
            self.hold(key, 1)?;
        }
        self.unpin(repository, reference)?;
        self.pins.insert((repository, reference), keys.concat().as_slice())?;
        Ok(())
    }

    fn unpin(&mut self, repository: &str, reference: &str) -> Result<(), redb::Error> {
        let old = self.pins.remove((repository, reference))?.map(|row| row.value().to_vec());
        for digest in parse_keys(&old.unwrap_or_default()) {
            self.hold(&key(&digest), -1)?;
        }
        Ok(())
    }

    /// So many more pins hold this.
    fn hold(&mut self, key: &[u8], more: i64) -> Result<(), redb::Error> {
        let pins = self.pinned.get(key)?.map_or(0, |row| row.value()).saturating_add_signed(more);
        if pins > 0 {
            self.pinned.insert(key, pins)?;
        } else {
            self.pinned.remove(key)?;
        }
        let row = self.blobs.get(key)?.map(|row| row.value());
        let Some((size, last_use, flags)) = row else { return Ok(()) };
        let now = if pins > 0 { flags | IS_PINNED } else { flags & !IS_PINNED };
        if now != flags {
            self.take_out(key)?;
            self.put_in(key, (size, last_use, now))?;
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

    fn name(&mut self, repository: &str, name: &Name, stamp: &Stamp) -> Result<(), redb::Error> {
        let (digest, since, confirmed) = (key(&stamp.digest), millis(stamp.since), millis(stamp.confirmed));
        let row = (digest.as_slice(), stamp.size, stamp.media_type.as_str(), since, confirmed);
        let old = self.names.insert((repository, name.to_string().as_str()), row)?;
        let old = old.map(|row| Old::of(row.value())).filter(|old| old.digest != digest);
        match old.filter(|_| matches!(name, Name::Tag(_))) {
            Some(old) => self.outlive(repository, name, &old, since),
            None => Ok(()),
        }
    }

    fn unname(&mut self, repository: &str, name: &Name) -> Result<(), redb::Error> {
        let old = self.names.remove((repository, name.to_string().as_str()))?;
        match old.map(|row| Old::of(row.value())).filter(|_| matches!(name, Name::Tag(_))) {
            Some(old) => self.outlive(repository, name, &old, millis(lifecycle::now())),
            None => Ok(()),
        }
    }

    /// What a tag meant is part of its history, of which the oldest is forgotten.
    fn outlive(&mut self, repository: &str, name: &Name, old: &Old, until: u64) -> Result<(), redb::Error> {
        let name = name.to_string();
        let row = (old.digest.as_slice(), old.size, old.media_type.as_str(), until);
        self.history.insert((repository, name.as_str(), old.since), row)?;
        let all = (repository, name.as_str(), 0)..=(repository, name.as_str(), u64::MAX);
        let mut known = Vec::new();
        for row in self.history.range::<(&str, &str, u64)>(all)? {
            known.push(row?.0.value().2);
        }
        for since in known.iter().take(known.len().saturating_sub(LONGEST_HISTORY)) {
            self.history.remove((repository, name.as_str(), *since))?;
        }
        Ok(())
    }

    fn sum(&mut self, name: &str, more: i128) -> Result<(), redb::Error> {
        let old = self.meta.get(name)?.map_or(0, |row| row.value());
        self.meta.insert(name, u64::try_from(i128::from(old) + more).unwrap_or(0))?;
        Ok(())
    }
}

/// The keys of digests, one after the other.
pub(super) fn parse_keys(mut keys: &[u8]) -> Vec<Digest> {
    let mut digests = Vec::new();
    while let Some((own, rest)) =
        keys.first().and_then(|first| keys.split_at_checked(if *first == 1 { 33 } else { 65 }))
    {
        digests.extend(super::parse_key(own));
        keys = rest;
    }
    digests
}

pub(super) fn is_pinned(row: BlobRow) -> bool {
    row.2 & IS_PINNED != 0
}
