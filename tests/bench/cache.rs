//! The store by its public verbs, each with the time that it took.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use tidelock::config::{self, ByteSize, SizeLimit};
use tidelock::lifecycle::Lifecycle;
use tidelock::oci::{Algorithm, ByteRange, Digest, Repository};
use tidelock::store::{Link, Store};
use tidelock::telemetry::Metrics;
use tokio::io::{AsyncBufReadExt, BufReader};

/// The folder of a cache into which this process, a child, inserts until it is killed.
pub(crate) const CHILD: &str = "TIDELOCK_BENCH_CHILD";

/// The bytes of each blob.
pub(crate) const LENGTH: u64 = 20;

/// The repository that contains them all.
pub(crate) const REPOSITORY: &str = "docker.io/library/bench";

/// Numbers from here on are new blobs.
const NEW: u64 = 1 << 40;

/// So many are on their way at once, where many are.
const AT_ONCE: usize = 64;

/// A store that is open.
pub(crate) struct Cache {
    store: Store,
    life: Lifecycle,
    metrics: Metrics,
    limits: config::Cache,
    next: AtomicU64,
}

/// The blob of that number.
pub(crate) fn blob(number: u64) -> (Digest, Bytes) {
    let bytes = Bytes::from(format!("{number:020}"));
    (Digest::of(Algorithm::Sha256, &bytes), bytes)
}

/// Numbers below `count` without end, the same ones each time, in no order.
pub(crate) fn numbers(count: u64) -> impl Iterator<Item = u64> {
    // Knuth's constants for a linear congruential generator; its upper bits are the better ones.
    let next = |state: &u64| {
        Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    };
    std::iter::successors(Some(1), next).map(move |state| (state >> 33) % count)
}

/// The one in the middle; they are sorted afterwards.
pub(crate) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let begun = Instant::now();
    work.await;
    begun.elapsed()
}

impl Cache {
    pub(crate) fn open(folder: &Path) -> Cache {
        let (life, metrics) = (Lifecycle::default(), Metrics::default());
        let max_size = SizeLimit::Bytes(ByteSize(u64::MAX));
        let limits = config::Cache {
            dir: folder.to_owned(),
            max_size,
            min_free: ByteSize(0),
            ..config::Cache::default()
        };
        let store = Store::open(&limits, &life, &metrics).unwrap();
        // Children insert too, into the same folder.
        let next = AtomicU64::new(NEW + (u64::from(std::process::id()) << 32) + u64::from(seed()));
        Cache { store, life, metrics, limits, next }
    }

    /// An orderly end.
    pub(crate) async fn close(&self) {
        self.life.stop();
        self.life.wait().await;
        self.store.close().await;
    }

    /// Blobs that the index knows.
    pub(crate) fn blobs(&self) -> u64 {
        self.gauge("tidelock_cache_blobs ")
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.gauge("tidelock_cache_bytes ")
    }

    fn gauge(&self, name: &str) -> u64 {
        let text = self.metrics.render();
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    }

    /// Lets it hold so many bytes from now on.
    pub(crate) fn allow(&self, bytes: u64) {
        let max_size = SizeLimit::Bytes(ByteSize(bytes));
        self.store.configure(&config::Cache { max_size, ..self.limits.clone() });
    }

    /// What is in memory only is written down, and what is too much goes.
    pub(crate) async fn tidy(&self) -> Duration {
        timed(self.store.close()).await
    }

    /// Lets it hold no more than `bytes`, and waits until it does, while this one goes on.
    pub(crate) fn shrink_to(self: &Arc<Self>, bytes: u64) -> tokio::task::JoinHandle<Duration> {
        self.allow(bytes);
        let cache = Arc::clone(self);
        tokio::spawn(async move {
            timed(async {
                while cache.bytes() > bytes {
                    cache.store.close().await;
                }
            })
            .await
        })
    }

    /// Opens a blob that is there, and reads it.
    pub(crate) async fn hit(&self, number: u64) -> Duration {
        let (digest, bytes) = blob(number);
        timed(async {
            let blob = self.store.open_blob(&digest).await.expect("it is there");
            let mut body = std::pin::pin!(blob.read(ByteRange::whole(LENGTH)));
            let section = body.next().await.unwrap().unwrap();
            assert_eq!(section.read().await.unwrap(), bytes);
        })
        .await
    }

    pub(crate) async fn size(&self, number: u64) -> Duration {
        let (digest, _) = blob(number);
        timed(async { assert_eq!(self.store.size(&digest).await, Some(LENGTH)) }).await
    }

    fn new_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A document comes in that was not there.
    pub(crate) async fn put_new(&self) -> Duration {
        let (digest, bytes) = blob(self.new_number());
        timed(async { self.store.put_document(digest, bytes).await.unwrap() }).await
    }

    /// One that is about to be asked for often.
    pub(crate) async fn put_hot(&self) -> u64 {
        let number = self.new_number();
        let (digest, bytes) = blob(number);
        self.store.put_document(digest, bytes).await.unwrap();
        number
    }

    /// A blob comes in that was not there.
    pub(crate) async fn pull_new(&self) -> Duration {
        let (digest, bytes) = blob(self.new_number());
        timed(async {
            let mut partial = self.store.partial(digest, Some(LENGTH)).await.unwrap();
            partial.write(0, bytes).await.unwrap();
            let length = partial.prove().await.unwrap();
            partial.promote(length).await.unwrap();
        })
        .await
    }

    /// Many come in at once.
    pub(crate) async fn pull_many(&self, count: usize) -> Duration {
        let pulls = futures_util::stream::iter(0..count).for_each_concurrent(AT_ONCE, |_| async {
            self.pull_new().await;
        });
        timed(pulls).await
    }

    /// Notes of each blob that the repository contains it.
    pub(crate) async fn link_all(&self, count: u64) {
        let repository: Repository = REPOSITORY.parse().unwrap();
        let link = Link { size: LENGTH, is_manifest: false, media_type: String::new() };
        let links = futures_util::stream::iter(0..count).for_each_concurrent(4_096, |number| {
            let (store, repository, link) = (&self.store, &repository, link.clone());
            async move { store.add_link(repository, blob(number).0, link).await.unwrap() }
        });
        links.await;
    }

    /// Measures the highest memory of this process from here on.
    pub(crate) fn forget_peak(&self) {
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
    }

    pub(crate) fn peak(&self) -> u64 {
        crate::program::memory(std::process::id(), "VmHWM:")
    }
}

/// Different for each opening in one process.
fn seed() -> u32 {
    static OPENED: AtomicU64 = AtomicU64::new(0);
    (OPENED.fetch_add(1, Ordering::Relaxed) as u32) << 24
}

/// What a child does.
pub(crate) async fn insert_until_killed(folder: PathBuf) -> ExitCode {
    let cache = Cache::open(&folder);
    loop {
        cache.pull_many(200).await;
        println!("on it");
    }
}

/// Kills a process that is in the midst of inserting blobs.
pub(crate) async fn insert_and_kill(folder: &Path) {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.env(CHILD, folder).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        lines.next_line().await.unwrap().expect("the child inserts");
    }
    child.kill().await.unwrap();
}
