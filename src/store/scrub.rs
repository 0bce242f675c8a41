//! Hashes anew what is kept, at a set pace, so that what has rotted is found before somebody asks for it.
//!
//! ```text
//! Idle ── due, or asked for ──▶ Running ── all of it was looked at ──▶ Idle
//!                                 └── a stop: the place is noted, and the next start goes on from there
//! ```
//!
//! What is wrong goes into quarantine and is fetched anew at the next pull. What the page cache holds is taken from
//! there, as it would be for a client; what has to be read from the disk does not stay in the page cache.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::Advice;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::index::{Change, Index, millis};
use super::reader::Seen;
use super::{Inner, Store, health};
use crate::config::{ByteSize, Cache};
use crate::lifecycle::{self, Lifecycle};
use crate::oci::Digest;
use crate::section::{READ_SIZE, read_cached};

/// How far a scrub is, or how the last one went. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// Whether one is under way.
    pub running: bool,
    /// When it began; `None` before the first one.
    pub started: Option<u64>,
    /// When the last one came to its end.
    pub finished: Option<u64>,
    /// Blobs and manifests looked at.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were not what they should be.
    pub damaged: u64,
    /// From when on the next one is due without being asked for; the mirror's first start counts like an end.
    since: u64,
    /// The last one that was looked at.
    after: Option<String>,
}

/// The state that the task and whoever asks share.
#[derive(Debug)]
pub(super) struct Scrubber {
    state: Mutex<Scrub>,
    /// Blobs that are to be looked at before anything else.
    suspects: Mutex<HashSet<Digest>>,
    wanted: Notify,
    /// Bytes a second, as configured, and for this one run where somebody asked for another pace.
    rate: AtomicU64,
    own_rate: AtomicU64,
    /// Milliseconds between an end and the next beginning; 0 for never.
    every: AtomicU64,
}

/// The store's note that holds a [`Scrub`].
const NOTE: &str = "scrub";
/// Entries taken from the index at once.
const PAGE: usize = 256;
/// How often the place is noted.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// The longest between two pieces, however slow the pace.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How much of what was late is made up for.
const LATENESS: Duration = Duration::from_millis(100);
/// How often it is looked whether a scrub is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Store {
    /// Has everything that is kept hashed anew from now on, unless that is under way; at another pace than the
    /// configured one where `rate`, in bytes a second, is given. False when it was under way.
    pub fn scrub(&self, rate: Option<ByteSize>) -> bool {
        let scrubber = &self.0.scrubber;
        scrubber.own_rate.store(rate.map_or(0, |rate| rate.0), Ordering::Release);
        let is_new = scrubber.begin();
        scrubber.wanted.notify_one();
        is_new
    }

    /// How far it is, and how much there is in all: blobs and bytes.
    pub fn scrub_progress(&self) -> (Scrub, u64, u64) {
        let totals = self.0.index.totals().sums();
        (self.0.scrubber.state().clone(), totals.count, totals.bytes)
    }
}

impl Scrub {
    /// One more was looked at.
    fn pass(&mut self, digest: &Digest, is_right: bool) {
        self.blobs += 1;
        self.damaged += u64::from(!is_right);
        self.after = Some(digest.to_string());
    }
}

impl Scrubber {
    /// Goes on with what an earlier process noted.
    pub(super) fn new(config: &Cache, index: &Index) -> Scrubber {
        let noted = index.note(NOTE).and_then(|note| serde_json::from_slice(&note).ok());
        let state = noted.unwrap_or_else(|| Scrub { since: millis(lifecycle::now()), ..Scrub::default() });
        let scrubber = Scrubber {
            state: Mutex::new(state),
            suspects: Mutex::default(),
            wanted: Notify::new(),
            rate: AtomicU64::default(),
            own_rate: AtomicU64::default(),
            every: AtomicU64::default(),
        };
        scrubber.configure(config);
        scrubber
    }

    pub(super) fn configure(&self, config: &Cache) {
        self.rate.store(config.scrub_rate.0, Ordering::Release);
        let every = u64::try_from(config.scrub_every.as_millis()).unwrap_or(u64::MAX);
        self.every.store(every, Ordering::Release);
        self.wanted.notify_one();
    }

    /// Something is wrong with the file of this one: it is hashed anew at once.
    pub(super) fn suspect(&self, digest: Digest) {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        self.wanted.notify_one();
    }

    fn next_suspect(&self) -> Option<Digest> {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        let next = suspects.iter().next().copied()?;
        suspects.take(&next)
    }

    fn state(&self) -> MutexGuard<'_, Scrub> {
        // Plain values, each right by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes a second.
    fn pace(&self) -> u64 {
        match self.own_rate.load(Ordering::Acquire) {
            0 => self.rate.load(Ordering::Acquire).max(1),
            own => own,
        }
    }

    fn is_due(&self) -> bool {
        let (every, state) = (self.every.load(Ordering::Acquire), self.state());
        every > 0 && millis(lifecycle::now()) >= state.since.saturating_add(every)
    }

    /// From the first one on. False when one is under way.
    fn begin(&self) -> bool {
        let mut state = self.state();
        if state.running {
            return false;
        }
        let (finished, since) = (state.finished, state.since);
        let started = Some(millis(lifecycle::now()));
        *state = Scrub { running: true, started, finished, since, ..Scrub::default() };
        true
    }
}

/// Scrubs when it is due or asked for, until told to stop.
pub(super) async fn scrub_when_due(inner: Arc<Inner>, life: Lifecycle) {
    // From the first start on it is known when the first one is due.
    inner.note_scrub().await;
    loop {
        inner.look_at_suspects(&life).await;
        if inner.scrubber.is_due() {
            inner.scrubber.begin();
        }
        let is_running = inner.scrubber.state().running;
        if is_running {
            inner.scrub(&life).await;
        }
        if life.is_stopping() {
            return;
        }
        tokio::select! {
            () = inner.scrubber.wanted.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = life.stopping() => {}
        }
    }
}

impl Inner {
    /// From where it is to the end, or to a stop.
    async fn scrub(self: &Arc<Self>, life: &Lifecycle) {
        tracing::info!(rate = %ByteSize(self.scrubber.pace()), "hashing anew what is kept");
        let mut noted = Instant::now();
        loop {
            let after = self.scrubber.state().after.as_deref().and_then(|digest| digest.parse().ok());
            // Where the index cannot be read, or is another one by now, that is not the end.
            let Some(page) = self.index.after(after.as_ref(), PAGE) else { return };
            if page.is_empty() {
                break;
            }
            for digest in page {
                self.look_at_suspects(life).await;
                match self.look_at(&digest, life).await {
                    Some(is_right) => self.scrubber.state().pass(&digest, is_right),
                    // A stop in the midst: this one is looked at once more.
                    None => return self.note_scrub().await,
                }
                if noted.elapsed() >= NOTE_EVERY {
                    self.note_scrub().await;
                    noted = Instant::now();
                }
            }
        }
        self.end_scrub().await;
    }

    async fn look_at_suspects(&self, life: &Lifecycle) {
        while let Some(digest) = self.scrubber.next_suspect() {
            self.look_at(&digest, life).await;
        }
    }

    async fn end_scrub(&self) {
        self.scrubber.own_rate.store(0, Ordering::Release);
        let now = millis(lifecycle::now());
        let Scrub { blobs, bytes, damaged, .. } = {
            let mut state = self.scrubber.state();
            (state.running, state.finished, state.since, state.after) = (false, Some(now), now, None);
            state.clone()
        };
        self.metrics.scrubbed_at.set(i64::try_from(now / 1000).unwrap_or(i64::MAX));
        tracing::info!(blobs, bytes = %ByteSize(bytes), damaged, "everything that is kept was hashed anew");
        self.note_scrub().await;
    }

    /// Where it cannot be noted, the next start begins anew.
    async fn note_scrub(&self) {
        let state = self.scrubber.state().clone();
        let note = serde_json::to_vec(&state).expect("numbers and texts are JSON");
        let _ = self.index.change(Change::Noted(NOTE.to_owned(), note)).await;
    }

    /// Hashes one blob, and takes out what is not what it should be. Whether it is; `None` when a stop came in between.
    async fn look_at(&self, digest: &Digest, life: &Lifecycle) -> Option<bool> {
        let path = self.tree.blob(digest);
        let (seen, is_right) =
            match File::open(&path).and_then(|file| Ok((Seen::of(&file.metadata()?), file))) {
                Ok((seen, file)) => match self.hash(digest, Arc::new(file), life).await {
                    Ok(actual) => (Some(seen), actual? == *digest),
                    Err(_) => (Some(seen), false),
                },
                // That tells nothing of the blob.
                Err(error) if health::wants_descriptors(&error) => return Some(true),
                Err(_) => (Seen::at(&path), false),
            };
        if is_right {
            // Not so when it was evicted and fetched anew meanwhile.
            let same = seen.filter(|seen| Seen::at(&path) == Some(*seen));
            same.inspect(|seen| self.proven.insert(*digest, *seen));
            return Some(true);
        }
        if Seen::at(&path) != seen || self.index.entry(digest).is_none() {
            return Some(true);
        }
        self.expel(digest, seen, "hashed anew, it is not what it should be").await;
        Some(false)
    }

    /// What it hashes to; `None` when a stop came in between.
    async fn hash(&self, digest: &Digest, file: Arc<File>, life: &Lifecycle) -> io::Result<Option<Digest>> {
        let mut hasher = digest.algorithm().hasher();
        let (mut offset, mut due) = (0, Instant::now());
        loop {
            let Some(piece) = read(&file, offset).await? else { return Ok(Some(hasher.finish())) };
            hasher.update(&piece);
            let length = piece.len() as u64;
            offset += length;
            self.scrubber.state().bytes += length;
            self.metrics.scrubbed.inc_by(length);
            // What was late is made up for; another pace holds from the next piece on, within a second.
            due = due.max(Instant::now() - LATENESS);
            due += Duration::from_secs_f64(length as f64 / self.scrubber.pace() as f64).min(LONGEST_WAIT);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = life.stopping() => return Ok(None),
            }
        }
    }
}

/// The next bytes; `None` at the end.
async fn read(file: &Arc<File>, offset: u64) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; READ_SIZE];
    match read_cached(file, &mut buffer, offset) {
        Ok(Some(count)) => {
            buffer.truncate(count);
            return Ok(Some(buffer));
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Ok(None) => {}
        Err(error) => return Err(error),
    }
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let count = std::os::unix::fs::FileExt::read_at(&*file, &mut buffer, offset)?;
        buffer.truncate(count);
        // Of no consequence where the system does not take the advice.
        let _ =
            rustix::fs::fadvise(&*file, offset, std::num::NonZeroU64::new(count as u64), Advice::DontNeed);
        Ok((count > 0).then_some(buffer))
    });
    read.await.map_err(io::Error::other)?
}
