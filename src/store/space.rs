use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::metrics::StoreMetrics;
use crate::config::{Cache, SizeLimit};

/// How many bytes there are, and how many there may be.
///
/// Room is taken *before* bytes are written and given back after they are gone, so that the limit holds at
/// every moment, whatever happens in between.
#[derive(Debug)]
pub(super) struct Space {
    root: PathBuf,
    limit: u64,
    min_free: u64,
    taken: Mutex<Taken>,
    metrics: StoreMetrics,
}

#[derive(Debug, Default)]
struct Taken {
    /// Finished blobs and reservations.
    bytes: u64,
    /// The part of it that is reserved.
    reserved: u64,
    /// The part of that which is not on disk yet, so that the file system does not show it as used.
    unwritten: u64,
}

/// Room for one file that is being written. What is not turned into a finished blob is given back on drop.
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
    pub(super) fn new(config: &Cache, held: u64, metrics: StoreMetrics) -> Space {
        let whole = file_system(&config.dir).map_or(u64::MAX, |(size, _)| size);
        let limit = match config.max_size {
            SizeLimit::Bytes(size) => size.0,
            SizeLimit::Share(share) => whole / 100 * u64::from(share.0),
        };
        metrics.limit.set(gauge(limit));
        metrics.bytes.set(gauge(held));
        let taken = Mutex::new(Taken { bytes: held, ..Taken::default() });
        Space { root: config.dir.clone(), limit, min_free: config.min_free.0, taken, metrics }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// How many bytes must go before `wanted` more may come; 0 when there is room.
    pub(super) fn missing(&self, wanted: u64) -> u64 {
        self.shortfall(&self.lock(), wanted)
    }

    fn shortfall(&self, taken: &Taken, wanted: u64) -> u64 {
        let over_limit = taken.bytes.saturating_add(wanted).saturating_sub(self.limit);
        let free = file_system(&self.root).map_or(u64::MAX, |(_, free)| free);
        let needed = self.min_free.saturating_add(taken.unwritten).saturating_add(wanted);
        over_limit.max(needed.saturating_sub(free))
    }

    /// Takes room for `wanted` bytes.
    ///
    /// # Errors
    /// How many bytes must go first.
    pub(super) fn take(self: &Arc<Self>, wanted: u64) -> Result<Reservation, u64> {
        self.add(wanted)?;
        Ok(Reservation { space: Arc::clone(self), bytes: wanted, written: Arc::default(), settled: 0 })
    }

    fn add(&self, wanted: u64) -> Result<(), u64> {
        let mut taken = self.lock();
        match self.shortfall(&taken, wanted) {
            0 => {
                taken.bytes += wanted;
                taken.reserved += wanted;
                taken.unwritten += wanted;
                self.show(&taken);
                Ok(())
            }
            missing => Err(missing),
        }
    }

    /// A file of so many bytes that was not counted so far is there.
    pub(super) fn found(&self, bytes: u64) {
        let mut taken = self.lock();
        taken.bytes = taken.bytes.saturating_add(bytes);
        self.show(&taken);
    }

    /// A finished blob of so many bytes is gone.
    pub(super) fn gone(&self, bytes: u64) {
        let mut taken = self.lock();
        taken.bytes = taken.bytes.saturating_sub(bytes);
        self.show(&taken);
    }

    fn show(&self, taken: &Taken) {
        self.metrics.bytes.set(gauge(taken.bytes));
        self.metrics.partial_bytes.set(gauge(taken.reserved));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        // Plain sums: a panic elsewhere cannot leave them half done.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// How many bytes must go first.
    pub(super) fn grow(&mut self, more: u64) -> Result<(), u64> {
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
        taken.bytes = taken.bytes.saturating_sub(surplus);
        taken.reserved = taken.reserved.saturating_sub(surplus);
        taken.unwritten = taken.unwritten.saturating_sub(surplus - written_surplus);
        self.space.show(&taken);
        drop(taken);
        self.bytes -= surplus;
        self.settled -= written_surplus;
    }

    /// The reserved bytes are a finished blob now and count as such.
    pub(super) fn become_blob(mut self) {
        self.written.store(self.bytes, Ordering::Release);
        self.settle();
        let mut taken = self.space.lock();
        taken.reserved = taken.reserved.saturating_sub(self.bytes);
        self.space.show(&taken);
        drop(taken);
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

/// Size of the file system and what an ordinary user may still write, in bytes.
fn file_system(root: &std::path::Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(root).ok()?;
    Some((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
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

    fn space(limit: u64, folder: &tempfile::TempDir) -> Arc<Space> {
        let config = Cache {
            dir: folder.path().to_owned(),
            max_size: SizeLimit::Bytes(ByteSize(limit)),
            min_free: ByteSize(0),
        };
        Arc::new(Space::new(&config, 40, StoreMetrics::new(&Metrics::default())))
    }

    fn sums(space: &Space) -> (u64, u64, u64) {
        let taken = space.lock();
        (taken.bytes, taken.reserved, taken.unwritten)
    }

    #[test]
    fn the_limit_holds_at_every_step() {
        let folder = tempfile::tempdir().unwrap();
        let space = space(100, &folder);
        let mut first = space.take(50).unwrap();
        assert_eq!(space.take(11).unwrap_err(), 1, "one byte is missing");
        first.shrink_to(20);
        let second = space.take(40).unwrap();
        assert_eq!(first.grow(1).unwrap_err(), 1);
        drop(second);
        first.grow(40).unwrap();
        first.become_blob();
        assert_eq!(space.take(1).unwrap_err(), 1);
        space.gone(60);
        assert_eq!(space.take(60).unwrap().bytes(), 60);
        assert_eq!(sums(&space), (40, 0, 0));
    }

    #[test]
    fn what_is_on_disk_is_not_counted_as_still_to_come() {
        let folder = tempfile::tempdir().unwrap();
        let space = space(100, &folder);
        let mut room = space.take(50).unwrap();
        room.written().store(30, Ordering::Release);
        room.grow(1).unwrap();
        assert_eq!(sums(&space), (91, 51, 21));
        room.shrink_to(30);
        assert_eq!(sums(&space), (70, 30, 0));
        room.shrink_to(10);
        assert_eq!(sums(&space), (50, 10, 0));
    }

    #[test]
    fn the_file_system_keeps_its_reserve() {
        let folder = tempfile::tempdir().unwrap();
        let (_, free) = file_system(folder.path()).unwrap();
        let config = Cache {
            dir: folder.path().to_owned(),
            max_size: SizeLimit::Bytes(ByteSize(u64::MAX)),
            min_free: ByteSize(free.saturating_add(1 << 40)),
        };
        let space = Arc::new(Space::new(&config, 0, StoreMetrics::new(&Metrics::default())));
        assert!(space.take(1).is_err());
    }
}
