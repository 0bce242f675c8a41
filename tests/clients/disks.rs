//! What becomes of pulls when the cache's disk is full, read-only or failing, on real file systems of a few MB. Pulls
//! go on uncached, one line and a metric say why, and the cache comes back by itself.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::fakes::eventually::{eventually, eventually_eq};
use crate::fakes::faults::{Fault, Gate, Match, Times};
use crate::fakes::images::{Blob, Image};
use crate::fakes::program::{Running, configured, ended, start};
use crate::fakes::registry::FakeRegistry;
use crate::support::{run, stdout};

const MIB: usize = 1 << 20;
/// Over the hold-back, and worth setting room aside for.
const LAYERS: [usize; 3] = [MIB + 500_000, 300_000, 1_000];
const FULL: &str = "tidelock_cache_failing{reason=\"full\"}";
const READ_ONLY: &str = "tidelock_cache_failing{reason=\"read_only\"}";

/// No client of another test lives longer.
const LONGEST_CLIENT: Duration = Duration::from_secs(240);

/// A file system of its own, gone when dropped.
struct Disk {
    at: PathBuf,
    device: Option<String>,
    folder: TempDir,
}

/// A mirror whose cache is on a disk of its own.
struct Scene {
    fake: FakeRegistry,
    images: Vec<Image>,
    disk: Disk,
    config: String,
}

impl Disk {
    /// So large, and in memory.
    fn in_memory(bytes: usize) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        let at = mount_point(&folder);
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tidelock-test"])
            .arg(&at));
        Disk { at, device: None, folder }
    }

    /// An ext4 that turns read-only at its first error, as most are set up.
    fn ext4(bytes: usize) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        let (at, image) = (mount_point(&folder), folder.path().join("image"));
        File::create(&image).unwrap().set_len(bytes as u64).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let device = stdout(Command::new("losetup").args(["--find", "--show"]).arg(&image));
        let disk = Disk { at, device: Some(device), folder };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount")
            .args(["-o", "errors=remount-ro"])
            .arg(self.device.as_ref().unwrap())
            .arg(&self.at));
    }

    /// The kernel comes upon damage in it.
    fn has_an_error(&self) {
        let name = self.device.as_ref().unwrap().trim_start_matches("/dev/");
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").unwrap();
    }

    /// It is unmounted, checked and mounted again.
    async fn is_repaired(&self) {
        run(Command::new("umount").arg(&self.at));
        let device = self.device.as_ref().unwrap();
        // Clients of other tests have mount namespaces of their own: what was mounted when one of them began is mounted
        // there until it ends.
        let begun = Instant::now();
        let checked = loop {
            let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(device).output().unwrap();
            let is_in_use = String::from_utf8_lossy(&checked.stdout).contains("is in use");
            if !is_in_use || begun.elapsed() > LONGEST_CLIENT {
                break checked;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        // 1: there was something to repair.
        assert!(checked.status.code().is_some_and(|code| code <= 1), "{checked:?}");
        self.mount();
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.at).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Somebody else's file, as long as the disk takes, or less.
    fn fill(&self, most: usize) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.at.join("other")).unwrap();
        let mut left = most;
        while left > 0 {
            match file.write(&[7; 4096][..left.min(4096)]) {
                Ok(written) => left -= written,
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn is_free_again(&self) {
        fs::remove_file(self.at.join("other")).unwrap();
    }
}

fn mount_point(folder: &TempDir) -> PathBuf {
    let at = folder.path().join("disk");
    fs::create_dir(&at).unwrap();
    at
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is left of a failed test may have it open still.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").args(["--detach", device]).output();
        }
    }
}

impl Scene {
    async fn on(disk: Disk, min_free: &str) -> Scene {
        let fake = FakeRegistry::start().await;
        let images: Vec<Image> = (0..10).map(|seed| Image::layers(seed, &LAYERS)).collect();
        for (n, image) in images.iter().enumerate() {
            fake.push("library/app", &format!("v{n}"), image);
        }
        let config = configured(disk.folder.path(), &fake.url(), "");
        let text = fs::read_to_string(&config).unwrap().replace("\"0B\"", &format!("\"{min_free}\""));
        let (before, now) = (disk.folder.path().join("cache"), disk.at.join("cache"));
        fs::write(&config, text.replace(before.to_str().unwrap(), now.to_str().unwrap())).unwrap();
        Scene { fake, images, disk, config }
    }

    async fn start(&self) -> Running {
        start(&["serve", "--config", &self.config]).await
    }

    fn cache(&self) -> PathBuf {
        self.disk.at.join("cache")
    }

    async fn pull(&self, running: &Running, n: usize) {
        let pulled = running.client().pull("library/app", &format!("v{n}")).await.unwrap();
        assert!(pulled.is(&self.images[n]), "v{n}");
    }

    async fn many_pulls(&self, running: &Running) {
        for _ in 0..5 {
            join_all((0..self.images.len()).map(|n| self.pull(running, n))).await;
        }
    }

    /// Fewer at once than the cache has room for.
    async fn pulls_by_threes(&self, running: &Running) {
        for first in 0..30 {
            join_all((0..3).map(|next| self.pull(running, (first * 3 + next) % self.images.len()))).await;
        }
    }

    /// What was pulled before comes without the upstream.
    async fn serves(&self, running: &Running, n: usize) {
        self.fake.clear();
        self.pull(running, n).await;
        assert_eq!(self.fake.count("GET", "/blobs/"), 0, "{:?}", self.fake.log().summary());
    }

    /// As soon as the disk is well again, or a few seconds later, what is pulled is kept.
    async fn comes_back(&self, running: &Running, n: usize) {
        for reason in ["full", "read_only", "descriptors", "disk"] {
            let series = format!("tidelock_cache_failing{{reason=\"{reason}\"}}");
            eventually_eq(0.0, || running.metric(&series)).await;
        }
        running.log.has("takes what is pulled again").await;
        assert_eq!(
            running.log.with("takes what is pulled again").len(),
            1,
            "{:#?}",
            running.log.with(" INFO ")
        );
        self.pull(running, n).await;
        eventually_eq(0.0, || running.metric("tidelock_flights")).await;
        self.serves(running, n).await;
    }
}

/// One line says so, and no other line of trouble is there.
fn said_once(running: &Running, words: &str) {
    let trouble: Vec<String> =
        [" ERROR ", " WARN "].iter().flat_map(|level| running.log.with(level)).collect();
    assert!(
        matches!(&trouble[..], [line] if line.contains(words) && line.contains(" ERROR ")),
        "{trouble:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk() {
    let scene = Scene::on(Disk::in_memory(24 * MIB), "0B").await;
    let running = scene.start().await;
    scene.pull(&running, 0).await;
    eventually_eq(0.0, || running.metric("tidelock_flights")).await;
    scene.disk.fill(usize::MAX);
    scene.serves(&running, 0).await;
    let layer = &scene.images[1].layer_blobs()[1];
    assert_eq!(running.client().blob("library/app", &layer.digest).await.unwrap(), layer.bytes);
    let mut pulls = Box::pin(scene.many_pulls(&running));
    // Whatever the cache gives up for the sake of what comes, the other file takes.
    while timeout(Duration::from_millis(2), &mut pulls).await.is_err() {
        scene.disk.fill(usize::MAX);
    }
    drop(pulls);
    assert_eq!(running.metric(FULL).await, 1.0);
    said_once(&running, "file system is full");
    scene.disk.is_free_again();
    scene.comes_back(&running, 1).await;
    running.stop().await;
}

/// Room for a download is set aside as soon as its length is known: who follows it is not cut when others fill the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_in_the_midst_of_a_download() {
    let scene = Scene::on(Disk::in_memory(40 * MIB), "0B").await;
    let (large, gate) = (Blob::random(99, 20 * MIB), Gate::new());
    scene.fake.put_blob("library/app", &large);
    scene.fake.fault(Match::blob(&large.digest), Times::Once, Fault::hold_after(&gate, 5 * MIB));
    let running = scene.start().await;
    let clients = join_all((0..3).map(|_| async {
        running.client().blob("library/app", &large.digest).await.unwrap() == large.bytes
    }));
    let fill = async {
        gate.waiting(1).await;
        eventually_eq(3.0, || running.metric("tidelock_flight_followers")).await;
        scene.disk.fill(usize::MAX);
        gate.open();
    };
    let (are_right, ()) = join(clients, fill).await;
    assert!(are_right.into_iter().all(|is_right| is_right));
    assert_eq!(scene.fake.blob_gets(&large.digest), 1);
    assert!(running.child.id().is_some());
    scene.disk.is_free_again();
    eventually_eq(0.0, || running.metric(FULL)).await;
    scene.pull(&running, 0).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reserve_for_others() {
    const MIN_FREE: u64 = 8 << 20;
    let scene = Scene::on(Disk::in_memory(40 * MIB), "8MiB").await;
    let running = scene.start().await;
    for others in [10 * MIB, 9 * MIB] {
        scene.disk.fill(others);
        // Others may take what they want: the cache gives way, in a few seconds.
        eventually(|| async { scene.disk.free() >= MIN_FREE }).await;
        let mut pulls = Box::pin(scene.pulls_by_threes(&running));
        while timeout(Duration::from_millis(1), &mut pulls).await.is_err() {
            let free = scene.disk.free();
            assert!(free >= MIN_FREE, "{free}");
        }
        assert_eq!(running.metric(FULL).await, 0.0, "{:?}", running.log.with(" ERROR "));
        assert!(running.metric("tidelock_cache_blobs").await > 0.0);
    }
    assert!(running.metric("tidelock_evicted_bytes_total{reason=\"size\"}").await > 0.0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_at_the_start() {
    let scene = Scene::on(Disk::in_memory(24 * MIB), "0B").await;
    let running = scene.start().await;
    scene.pull(&running, 0).await;
    eventually_eq(0.0, || running.metric("tidelock_flights")).await;
    running.stop().await;
    scene.disk.fill(usize::MAX);
    let running = scene.start().await;
    scene.serves(&running, 0).await;
    let mut pulls = Box::pin(scene.many_pulls(&running));
    while timeout(Duration::from_millis(2), &mut pulls).await.is_err() {
        scene.disk.fill(usize::MAX);
    }
    drop(pulls);
    assert_eq!(running.metric(FULL).await, 1.0);
    scene.disk.is_free_again();
    scene.comes_back(&running, 1).await;
    running.stop().await;
}

/// The first start of all, where not even an index fits: there is nothing to go on with, and the operator is told.
#[tokio::test]
async fn a_new_cache_on_a_full_disk() {
    let scene = Scene::on(Disk::in_memory(4 * MIB), "0B").await;
    scene.disk.fill(usize::MAX);
    let ended = ended(&["serve", "--config", &scene.config]).await;
    assert_eq!(
        (ended.code, ended.out.as_str(), ended.err.lines().count()),
        (Some(1), "", 1),
        "{}",
        ended.err
    );
    assert!(ended.err.contains("No space left on device"), "{}", ended.err);
    scene.disk.is_free_again();
    let running = scene.start().await;
    scene.pull(&running, 9).await;
    running.stop().await;
}

/// New files are refused, and none may go; what is open can still be written, or this could not be undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_made_read_only() {
    let scene = Scene::on(Disk::in_memory(24 * MIB), "0B").await;
    let running = scene.start().await;
    scene.pull(&running, 0).await;
    eventually_eq(0.0, || running.metric("tidelock_flights")).await;
    let cache = scene.cache();
    run(Command::new("mount").arg("--bind").arg(&cache).arg(&cache));
    run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&cache));
    scene.many_pulls(&running).await;
    assert_eq!(running.metric(READ_ONLY).await, 1.0);
    said_once(&running, "takes no writes");
    scene.serves(&running, 0).await;
    run(Command::new("umount").arg(&cache));
    scene.comes_back(&running, 1).await;
    running.stop().await;
}

/// What the kernel does to a damaged file system. Until that is repaired and mounted anew the mirror serves what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_system() {
    let scene = Scene::on(Disk::ext4(64 * MIB), "0B").await;
    let running = scene.start().await;
    scene.pull(&running, 0).await;
    eventually_eq(0.0, || running.metric("tidelock_flights")).await;
    scene.disk.has_an_error();
    scene.many_pulls(&running).await;
    assert_eq!(running.metric(READ_ONLY).await, 1.0);
    said_once(&running, "takes no writes");
    scene.serves(&running, 0).await;
    running.stop().await;
    let ended = ended(&["serve", "--config", &scene.config]).await;
    assert_eq!(
        (ended.code, ended.out.as_str(), ended.err.lines().count()),
        (Some(1), "", 1),
        "{}",
        ended.err
    );
    for words in ["Read-only file system", "cache.dir"] {
        assert!(ended.err.contains(words), "{}", ended.err);
    }
    scene.disk.is_repaired().await;
    let running = scene.start().await;
    scene.serves(&running, 0).await;
    running.stop().await;
}
