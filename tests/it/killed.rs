//! The real program, killed by SIGKILL at random instants under load, and started again on what it left.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime};

use futures_util::future::{join, join_all, pending};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::client::{Client, PullError};
use crate::support::faults::{Fault, Match, Times};
use crate::support::images::{Blob, Image, is_digest_of};
use crate::support::port::free_port;
use crate::support::program::{Running, begin, configured, start};
use crate::support::registry::FakeRegistry;

/// Mirrors that are killed side by side, and how often each.
const MIRRORS: u64 = 3;
const ROUNDS: usize = 70;
/// As much as a third of what there is, so that something is evicted all the time.
const LIMIT: u64 = 3_000_000;
const CLIENTS: usize = 6;
/// The longest that the load runs before the kill.
const LONGEST: Duration = Duration::from_millis(160);

/// A mirror over an upstream of its own, and what is known of its cache.
struct Scene {
    fake: FakeRegistry,
    images: Vec<Image>,
    /// So large, and so slow to come, that it is rarely whole when the kill comes.
    slow: Blob,
    _folder: TempDir,
    cache: PathBuf,
    config: String,
    ports: [String; 2],
    /// Files whose content is known to be right.
    right: Mutex<HashMap<PathBuf, (u64, SystemTime)>>,
}

/// What lies in the cache while nobody runs.
struct Left {
    blobs: Vec<(PathBuf, u64)>,
    bytes: u64,
}

/// Images that share their parts, as they do.
fn images() -> Vec<Image> {
    let parts: Vec<Image> =
        (0..8).map(|n| Image::layers(n, &[400_000 + n as usize, 150_000, 60_000, 700, 0])).collect();
    (0..8).map(|n| Image::index(vec![parts[n].clone(), parts[(n + 1) % 8].clone()])).collect()
}

impl Scene {
    async fn set_up() -> Scene {
        let (fake, images, slow) = (FakeRegistry::start().await, images(), Blob::random(99, 1_500_000));
        for (n, image) in images.iter().enumerate() {
            fake.push("library/app", &format!("v{n}"), image);
        }
        fake.put_blob("library/app", &slow);
        let every = Duration::from_millis(4);
        fake.fault(Match::blob(&slow.digest), Times::Always, Fault::Slow { chunk: 40_000, every });
        let folder = tempfile::tempdir().unwrap();
        let config = configured(folder.path(), &fake.url(), "");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("\"1GiB\"", &format!("\"{LIMIT}B\""))).unwrap();
        let ports = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let (cache, right) = (folder.path().join("cache"), Mutex::default());
        Scene { fake, images, slow, _folder: folder, cache, config, ports, right }
    }

    fn arguments(&self) -> [&str; 7] {
        let [listen, admin] = &self.ports;
        ["serve", "--config", &self.config, "--listen", listen, "--admin-listen", admin]
    }

    async fn start(&self) -> Running {
        start(&self.arguments()).await
    }

    /// A client that pulls one thing after the other. The only trouble it may meet is the kill.
    async fn load(&self, client: Client, mut random: StdRng, is_killed: &AtomicBool) {
        loop {
            let done = match random.random_range(0..10) {
                0 => self.pull_slow(&client).await,
                1..5 => self.pull_blob(&client, &mut random).await,
                _ => self.pull(&client, &mut random).await,
            };
            match done {
                Ok(()) => {}
                Err(PullError::Truncated { .. } | PullError::Wire { .. }) if is_killed.load(SeqCst) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn pull(&self, client: &Client, random: &mut StdRng) -> Result<(), PullError> {
        let n = random.random_range(0..self.images.len());
        let pulled = client.pull("library/app", &format!("v{n}")).await?;
        assert!(pulled.is(&self.images[n]), "v{n}");
        Ok(())
    }

    async fn pull_blob(&self, client: &Client, random: &mut StdRng) -> Result<(), PullError> {
        let image = self.images.choose(random).unwrap();
        let blob = image.blobs.choose(random).unwrap();
        assert_eq!(client.blob("library/app", &blob.digest).await?, blob.bytes);
        Ok(())
    }

    async fn pull_slow(&self, client: &Client) -> Result<(), PullError> {
        assert_eq!(client.blob("library/app", &self.slow.digest).await?, self.slow.bytes);
        Ok(())
    }

    /// What the killed process left: nothing wrong, not too much, and nothing that has no name.
    fn look(&self) -> Left {
        let [blobs, ingest, quarantine] =
            ["blobs", "ingest", "quarantine"].map(|folder| files(&self.cache.join(folder)));
        for (path, data) in &blobs {
            self.is_what_it_is_called(path, (data.ino(), data.modified().unwrap()));
        }
        for (path, _) in &ingest {
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_partial = name.strip_prefix("sha256-").is_some_and(|hex| hex.len() == 64);
            assert!(is_partial || name.ends_with(".new") || name == "probe", "{path:?}");
        }
        let bytes = [&blobs, &ingest, &quarantine].into_iter().flatten().map(|(_, data)| data.len()).sum();
        assert!(bytes <= LIMIT, "{bytes}");
        let blobs = blobs.into_iter().map(|(path, data)| (path, data.len())).collect();
        Left { blobs, bytes }
    }

    /// I1. What was right, and was not touched since, is right.
    fn is_what_it_is_called(&self, path: &Path, seen: (u64, SystemTime)) {
        let mut right = self.right.lock().unwrap();
        if right.get(path) == Some(&seen) {
            return;
        }
        assert!(is_digest_of(&digest_of(path), &std::fs::read(path).unwrap()), "{path:?}");
        right.insert(path.to_owned(), seen);
    }

    /// A start counts what is there, knows it without a look through the tree, and serves it by itself.
    async fn takes_up(&self, running: &Running, left: &Left, random: &mut StdRng) {
        let counted = running.metric("tidelock_cache_bytes").await;
        let there: u64 = self.look().bytes;
        assert_eq!(counted, there as f64);
        assert!(there <= left.bytes && running.metric("tidelock_cache_limit_bytes").await == LIMIT as f64);
        assert_eq!(running.metric("tidelock_cache_blobs").await, left.blobs.len() as f64);
        self.fake.clear();
        let known: Vec<&Blob> = self.images.iter().flat_map(|image| &image.blobs).collect();
        for (path, _) in left.blobs.sample(random, 4) {
            // Manifests are not asked for as blobs.
            let Some(blob) = known.iter().find(|blob| blob.digest == digest_of(path)) else { continue };
            assert_eq!(running.client().blob("library/app", &blob.digest).await.unwrap(), blob.bytes);
            assert_eq!(self.fake.blob_gets(&blob.digest), 0, "{path:?} was finished");
        }
        for trouble in [" WARN ", " ERROR ", "blobs were found", "damaged"] {
            let lines = running.log.with(trouble);
            assert!(lines.is_empty(), "{lines:#?}");
        }
    }

    /// Runs under load until the kill; now and then the kill comes before it is ready. How many bytes were evicted.
    async fn live_and_die(&self, random: &mut StdRng) -> f64 {
        let left = self.look();
        if random.random_ratio(1, 8) {
            let mut child = begin(&self.arguments());
            let _ = timeout(LONGEST.mul_f64(random.random()), pending::<()>()).await;
            child.kill().await.unwrap();
            return 0.0;
        }
        let mut running = self.start().await;
        self.takes_up(&running, &left, random).await;
        let is_killed = AtomicBool::new(false);
        let clients = (0..CLIENTS)
            .map(|_| self.load(running.client(), StdRng::seed_from_u64(random.random()), &is_killed));
        let clients = join_all(clients);
        let (before, instant) = (running.metric(EVICTED).await, LONGEST.mul_f64(random.random()));
        let kill = async {
            let _ = timeout(instant, pending::<()>()).await;
            let evicted = running.metric(EVICTED).await - before;
            is_killed.store(true, SeqCst);
            running.signal(Signal::KILL);
            assert_eq!(running.exit_code().await, None);
            evicted
        };
        join(kill, clients).await.0
    }

    /// It lives on, and has everything.
    async fn all_is_well(&self) {
        let left = self.look();
        let running = self.start().await;
        self.takes_up(&running, &left, &mut StdRng::seed_from_u64(0)).await;
        for (n, image) in self.images.iter().enumerate() {
            assert!(running.client().pull("library/app", &format!("v{n}")).await.unwrap().is(image));
        }
        self.pull_slow(&running.client()).await.unwrap();
        running.stop().await;
        self.look();
    }
}

const EVICTED: &str = "tidelock_evicted_bytes_total{reason=\"size\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_any_instant_and_nothing_is_wrong_lost_or_too_much() {
    let mirrors = (0..MIRRORS).map(|_| tokio::spawn(killed_again_and_again(rand::random())));
    for mirror in join_all(mirrors).await {
        mirror.unwrap();
    }
}

async fn killed_again_and_again(seed: u64) {
    let (scene, mut random) = (Scene::set_up().await, StdRng::seed_from_u64(seed));
    let (mut evicted, mut resumed, mut round) = (0.0, 0, 0);
    // A busy machine gets little done before each kill.
    while round < ROUNDS || (round < 5 * ROUNDS && (evicted == 0.0 || resumed == 0)) {
        eprintln!("seed {seed}, round {round}");
        evicted += scene.live_and_die(&mut random).await;
        resumed += scene.fake.log().matching(|record| !record.header("range").is_empty()).len();
        round += 1;
    }
    scene.all_is_well().await;
    assert!(evicted > 0.0 && resumed > 0, "{evicted} {resumed}");
}

fn digest_of(path: &Path) -> String {
    format!("sha256:{}", path.file_name().unwrap().to_str().unwrap())
}

fn files(folder: &Path) -> Vec<(PathBuf, std::fs::Metadata)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata().unwrap() {
            data if data.is_dir() => found.extend(files(&entry.path())),
            data => found.push((entry.path(), data)),
        }
    }
    found
}
