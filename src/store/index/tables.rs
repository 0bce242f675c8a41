use std::ops::Bound;

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::{Change, Entry, key, millis};
use crate::oci::Digest;
use crate::store::{Link, Name, Stamp};

type BlobRow = (u64, u64, u8);
type LinkKey = (&'static [u8], &'static str);
type LinkRow = (u64, bool, &'static str);
type NameKey = (&'static str, &'static str);
type NameRow = (&'static [u8], u64, &'static str, u64, u64);

/// Digest to size, last use (milliseconds since 1970) and flags.
pub(super) const BLOBS: TableDefinition<&[u8], BlobRow> = TableDefinition::new("blobs");
/// Last use and digest to size: the order of eviction.
pub(super) const LRU: TableDefinition<(u64, &[u8]), u64> = TableDefinition::new("lru");
/// Digest and repository to size, "is a manifest" and media type: a proof that the one contains the other.
/// Digest first, so that what falls with a blob lies together.
pub(super) const LINKS: TableDefinition<LinkKey, LinkRow> = TableDefinition::new("links");
/// Repository and name to digest, size, media type, since when and last confirmed.
pub(super) const NAMES: TableDefinition<NameKey, NameRow> = TableDefinition::new("names");
/// Small notes of other rooms, by name.
pub(super) const NOTES: TableDefinition<&str, &[u8]> = TableDefinition::new("notes");
/// Digests whose file comes or goes at this moment: after a crash they are looked at, and nothing else need be.
pub(super) const PENDING: TableDefinition<&[u8], ()> = TableDefinition::new("pending");
/// Totals, and whether every blob of the tree is known.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

pub(super) const BYTES: &str = "bytes";
pub(super) const COUNT: &str = "count";
pub(super) const WHOLE: &str = "whole";

/// The tables of one write transaction.
pub(super) struct Tables<'t> {
    blobs: Table<'t, &'static [u8], BlobRow>,
    lru: Table<'t, (u64, &'static [u8]), u64>,
    links: Table<'t, LinkKey, LinkRow>,
    names: Table<'t, NameKey, NameRow>,
    notes: Table<'t, &'static str, &'static [u8]>,
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
            notes: transaction.open_table(NOTES)?,
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
            Change::Settled(digests) => digests.iter().try_for_each(|digest| self.settle(digest)),
            Change::Used(uses) => uses.iter().try_for_each(|(digest, at)| self.touch(digest, *at)),
            Change::Linked(repository, digest, link) => {
                self.link(&key(digest), &repository.to_string(), link)
            }
            Change::Named(repository, name, stamp) => self.name(&repository.to_string(), name, stamp),
            Change::Unnamed(repository, name) => {
                self.names.remove((repository.to_string().as_str(), name.to_string().as_str()))?;
                Ok(())
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
        let old = self.blobs.insert(key.as_slice(), (entry.size, entry.last_use, 0))?.map(|row| row.value());
        if let Some((size, last_use, _)) = old {
            self.lru.remove((last_use, key.as_slice()))?;
            self.sum(-i128::from(size), -1)?;
        }
        self.lru.insert((entry.last_use, key.as_slice()), entry.size)?;
        self.sum(i128::from(entry.size), 1)?;
        self.settle(digest)
    }

    fn remove(&mut self, digest: &Digest) -> Result<(), redb::Error> {
        self.pend(digest)?;
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

    fn name(&mut self, repository: &str, name: &Name, stamp: &Stamp) -> Result<(), redb::Error> {
        let (digest, since, confirmed) = (key(&stamp.digest), millis(stamp.since), millis(stamp.confirmed));
        let row = (digest.as_slice(), stamp.size, stamp.media_type.as_str(), since, confirmed);
        self.names.insert((repository, name.to_string().as_str()), row)?;
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
