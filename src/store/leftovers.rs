use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::index::millis;
use super::space::{Reservation, Space};
use super::tree::Tree;
use super::{Inner, disk};
use crate::lifecycle;
use crate::oci::Digest;

/// Files that are no blobs and lie around all the same, with the room they take: partial downloads that nobody is
/// writing, and what is in quarantine.
#[derive(Debug)]
pub(super) struct Leftovers {
    path: fn(&Tree, &Digest) -> PathBuf,
    held: Mutex<HashMap<Digest, Leftover>>,
}

#[derive(Debug)]
pub(super) struct Leftover {
    since: u64,
    pub(super) room: Reservation,
}

impl Leftovers {
    /// None yet; they will be where `path` says.
    pub(super) fn new(path: fn(&Tree, &Digest) -> PathBuf) -> Leftovers {
        Leftovers { path, held: Mutex::default() }
    }

    pub(super) fn keep(&self, digest: Digest, room: Reservation) {
        self.keep_since(digest, room, millis(lifecycle::now()));
    }

    fn keep_since(&self, digest: Digest, mut room: Reservation, since: u64) {
        room.written().store(room.bytes(), Ordering::Release);
        room.settle();
        self.lock().insert(digest, Leftover { since, room });
    }

    /// Counts those in `folder` from earlier processes; what has no name of ours, or nothing in it, goes.
    pub(super) fn take_up(&self, folder: &Path, space: &Arc<Space>) {
        for file in fs::read_dir(folder).into_iter().flatten().flatten() {
            let digest = file.file_name().to_str().and_then(Tree::parse_partial);
            let metadata = file.metadata().ok();
            let since = metadata.as_ref().and_then(|data| data.modified().ok()).map_or(0, millis);
            match (digest, metadata.map_or(0, |data| data.len())) {
                (Some(digest), length @ 1..) => self.keep_since(digest, space.take_anyway(length), since),
                _ => drop(disk::remove(&file.path())),
            }
        }
    }

    /// Removes what one was, or would be, with the room that it takes; where the disk refuses even that, it stays and
    /// is counted.
    pub(super) fn remove(&self, digest: Digest, mut room: Reservation, inner: &Inner) {
        let path = (self.path)(&inner.tree, &digest);
        if !disk::rid(&path) {
            room.shrink_to(fs::metadata(path).map_or(0, |data| data.len()));
            self.keep(digest, room);
        }
    }

    /// Takes one out; its room is given back when the result is dropped.
    pub(super) fn take(&self, digest: &Digest) -> Option<Leftover> {
        self.lock().remove(digest)
    }

    /// Removes those from before `time` (milliseconds since 1970). Whether there were any.
    pub(super) fn drop_older(&self, time: u64, inner: &Inner) -> bool {
        let older: Vec<Digest> =
            self.lock().iter().filter(|(_, it)| it.since < time).map(|(digest, _)| *digest).collect();
        let mut dropped = false;
        for digest in older {
            let Some(_claim) = inner.claims.try_claim(digest) else { continue };
            let Some(leftover) = self.take(&digest) else { continue };
            if disk::rid(&(self.path)(&inner.tree, &digest)) {
                dropped = true;
            } else {
                self.lock().insert(digest, leftover);
            }
        }
        dropped
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Leftover>> {
        // Entries are put in and taken out whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
