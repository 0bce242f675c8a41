use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::index::{Sums, Totals};
use super::metrics::StoreMetrics;
use crate::config::{Cache, SizeLimit};

/// How many bytes there are, and how many there may be.
///
/// Blobs are counted by the index. Whatever else is on disk, or may soon be, has a [`Reservation`]: taken *before* bytes
/// are written, and before a blob leaves the index; given back after its entry is in the index, or the file is gone. So
/// the limit holds at every moment, whatever happens in between.
#[derive(Debug)]
pub(super) struct Space {
    root: PathBuf,
    blobs: Arc<Totals>,
    limits: Mutex<Limits>,
    taken: Mutex<Taken>,
    metrics: StoreMetrics,
}

/// What the operator allows.
#[derive(Debug, Clone, Copy)]
struct Limits {
    bytes: u64,
    min_free: u64,
}

/// What stands in the way of more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortfall {
    /// So many bytes must go first; 0 where it is not known yet what there is, and for that reason alone nothing may come.
    pub(super) bytes: u64,
    /// It is the file system that has too little, and not the limit that is reached.
    pub(super) is_full: bool,
}

#[derive(Debug, Default)]
struct Taken {
    /// For what is no blob, or not yet, or not any more.
    reserved: u64,
    /// The part of that which is not on disk yet, so that the file system does not show it as used.
    unwritten: u64,
}

/// Room for one file, given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
    // How many of them are on disk; shared with the thread that writes.
    written: Arc<AtomicU64>,
    // How many of those the sums know of.
    settled: u64,
}

impl Space {
    pub(super) fn new(config: &Cache, blobs: &Arc<Totals>, metrics: StoreMetrics) -> Space {
        let limits = Mutex::new(Limits::new(config));
        metrics.limit.set(gauge(Limits::new(config).bytes));
        let blobs = Arc::clone(blobs);
        let space = Space { root: config.dir.clone(), blobs, limits, taken: Mutex::default(), metrics };
        space.show();
        space
    }

    /// The operator allows something else.
    pub(super) fn set_limits(&self, config: &Cache) {
        let limits = Limits::new(config);
        self.metrics.limit.set(gauge(limits.bytes));
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    pub(super) fn limit(&self) -> u64 {
        self.limits().bytes
    }

    pub(super) fn min_free(&self) -> u64 {
        self.limits().min_free
    }

    fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What must go before `wanted` more bytes may come; `None` when there is room.
    pub(super) fn missing(&self, wanted: u64) -> Option<Shortfall> {
        let blobs = self.blobs.hold();
        self.shortfall(&blobs, &self.lock(), wanted)
    }

    fn shortfall(&self, blobs: &Sums, taken: &Taken, wanted: u64) -> Option<Shortfall> {
        let Limits { bytes: limit, min_free } = self.limits();
        let file_system = file_system(&self.root);
        // What nobody has counted is on the file system: it cannot be more than all that is there. But what is there
        // may be anybody's, so nothing is evicted for it.
        let uncounted = file_system.filter(|_| !blobs.is_whole).map_or(0, |it| it.used);
        let held = blobs.bytes.saturating_add(taken.reserved);
        let over_limit = held.saturating_add(wanted).saturating_sub(limit);
        let needed = min_free.saturating_add(taken.unwritten).saturating_add(wanted);
        let over_free = file_system.map_or(0, |it| needed.saturating_sub(it.free));
        let bytes = over_limit.max(over_free);
        let may_be_over = uncounted.saturating_add(wanted) > limit;
        (bytes > 0 || may_be_over).then_some(Shortfall { bytes, is_full: over_free > over_limit })
    }

    /// Takes room for `wanted` bytes.
    ///
    /// # Errors
    /// What must go first.
    pub(super) fn take(self: &Arc<Self>, wanted: u64) -> Result<Reservation, Shortfall> {
        self.add(wanted)?;
        Ok(Reservation { space: Arc::clone(self), bytes: wanted, written: Arc::default(), settled: 0 })
    }

    /// The same for what is on disk already: it counts, whatever the limit.
    pub(super) fn take_anyway(self: &Arc<Self>, bytes: u64) -> Reservation {
        self.reserve(bytes);
        self.show();
        self.reserved(bytes)
    }

    /// Counts bytes that leave the index at this moment; [`Space::reserved`] makes reservations of them.
    pub(super) fn reserve(&self, bytes: u64) {
        self.lock().reserved += bytes;
    }

    /// For bytes on disk that are counted as reserved already.
    pub(super) fn reserved(self: &Arc<Self>, bytes: u64) -> Reservation {
        let written = Arc::new(AtomicU64::new(bytes));
        Reservation { space: Arc::clone(self), bytes, written, settled: bytes }
    }

    /// Bytes that the index counts from this moment on.
    pub(super) fn release(&self, bytes: u64) {
        let mut taken = self.lock();
        taken.reserved = taken.reserved.saturating_sub(bytes);
    }

    fn add(&self, wanted: u64) -> Result<(), Shortfall> {
        let blobs = self.blobs.hold();
        let mut taken = self.lock();
        if let Some(shortfall) = self.shortfall(&blobs, &taken, wanted) {
            return Err(shortfall);
        }
        taken.reserved += wanted;
        taken.unwritten += wanted;
        self.show_sums(&blobs, &taken);
        Ok(())
    }

    /// Something changed. The sums are held before what is taken, here and everywhere.
    pub(super) fn show(&self) {
        let blobs = self.blobs.hold();
        self.show_sums(&blobs, &self.lock());
    }

    /// Under both locks, so that the last word is the latest.
    fn show_sums(&self, blobs: &Sums, taken: &Taken) {
        self.metrics.blobs.set(gauge(blobs.count));
        self.metrics.bytes.set(gauge(blobs.bytes.saturating_add(taken.reserved)));
        self.metrics.pinned_bytes.set(gauge(blobs.pinned_bytes));
        self.metrics.partial_bytes.set(gauge(taken.reserved));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        // Plain sums: a panic elsewhere cannot leave them half done.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limits {
    fn new(config: &Cache) -> Limits {
        let bytes = match config.max_size {
            SizeLimit::Bytes(size) => size.0,
            SizeLimit::Share(share) => {
                let whole = file_system(&config.dir).map_or(u64::MAX, |it| it.size);
                whole / 100 * u64::from(share.0)
            }
        };
        Limits { bytes, min_free: config.min_free.0 }
    }
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the writer counts what is on disk.
    pub(super) fn written(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.written)
    }

    /// Takes room for `more` bytes in addition.
    ///
    /// # Errors
    /// What must go first.
    pub(super) fn grow(&mut self, more: u64) -> Result<(), Shortfall> {
        self.settle();
        self.space.add(more)?;
        self.bytes += more;
        Ok(())
    }

    /// Gives back what exceeds `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        self.settle();
        let surplus = self.bytes.saturating_sub(bytes);
        let written_surplus = self.settled.saturating_sub(bytes.min(self.bytes));
        let mut taken = self.space.lock();
        taken.reserved = taken.reserved.saturating_sub(surplus);
        taken.unwritten = taken.unwritten.saturating_sub(surplus - written_surplus);
        drop(taken);
        self.space.show();
        self.bytes -= surplus;
        self.settled -= written_surplus;
    }

    /// All of it is on disk.
    pub(super) fn all_written(&mut self) {
        self.written.store(self.bytes, Ordering::Release);
        self.settle();
    }

    /// It was given back by [`Space::release`].
    pub(super) fn released(mut self) {
        (self.bytes, self.settled) = (0, 0);
    }

    /// Moves what was written meanwhile from "reserved" to "on disk".
    pub(super) fn settle(&mut self) {
        let written = self.written.load(Ordering::Acquire).min(self.bytes);
        let fresh = written.saturating_sub(self.settled);
        let mut taken = self.space.lock();
        taken.unwritten = taken.unwritten.saturating_sub(fresh);
        self.settled += fresh;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.shrink_to(0);
        }
    }
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy)]
struct FileSystem {
    size: u64,
    used: u64,
    /// What an ordinary user may still write.
    free: u64,
}

fn file_system(root: &std::path::Path) -> Option<FileSystem> {
    let stat = rustix::fs::statvfs(root).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    Some(FileSystem { size: bytes(stat.f_blocks), used: bytes(used), free: bytes(stat.f_bavail) })
}

/// Metrics count in `i64`.
pub(super) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;
    use crate::telemetry::Metrics;

    const BYTE: Shortfall = Shortfall { bytes: 1, is_full: false };

    fn space(limit: u64, min_free: u64, folder: &tempfile::TempDir) -> Arc<Space> {
        let config = Cache {
            dir: folder.path().to_owned(),
            max_size: SizeLimit::Bytes(ByteSize(limit)),
            min_free: ByteSize(min_free),
            ..Cache::default()
        };
        let blobs = Arc::new(Totals::of(Sums { bytes: 40, count: 1, pinned_bytes: 0, is_whole: true }));
        Arc::new(Space::new(&config, &blobs, StoreMetrics::new(&Metrics::default())))
    }

    fn sums(space: &Space) -> (u64, u64) {
        let taken = space.lock();
        (taken.reserved, taken.unwritten)
    }

    #[test]
    fn the_limit_holds_at_every_step() {
        let folder = tempfile::tempdir().unwrap();
        let space = space(100, 0, &folder);
        let mut first = space.take(50).unwrap();
        assert_eq!(space.take(11).unwrap_err(), BYTE, "one byte is missing");
        first.shrink_to(20);
        let second = space.take(40).unwrap();
        assert_eq!(first.grow(1).unwrap_err(), BYTE);
        drop(second);
        first.grow(40).unwrap();
        assert_eq!(space.take(1).unwrap_err(), BYTE);
        let more = space.take_anyway(30);
        assert_eq!(space.missing(0), Some(Shortfall { bytes: 30, is_full: false }));
        drop((first, more));
        assert_eq!(space.take(60).unwrap().bytes(), 60);
        assert_eq!(sums(&space), (0, 0));
    }

    #[test]
    fn what_is_on_disk_is_not_counted_as_still_to_come() {
        let folder = tempfile::tempdir().unwrap();
        let space = space(100, 0, &folder);
        let mut room = space.take(50).unwrap();
        room.written().store(30, Ordering::Release);
        room.grow(1).unwrap();
        assert_eq!(sums(&space), (51, 21));
        room.shrink_to(30);
        assert_eq!(sums(&space), (30, 0));
        room.shrink_to(10);
        assert_eq!(sums(&space), (10, 0));
    }

    #[test]
    fn the_file_system_keeps_its_reserve() {
        let folder = tempfile::tempdir().unwrap();
        let free = file_system(folder.path()).unwrap().free;
        let space = space(u64::MAX, free.saturating_add(1 << 40), &folder);
        assert!(space.take(1).unwrap_err().is_full);
    }
}
