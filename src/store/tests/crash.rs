//! The process is killed just before each step that changes the disk, in turn; each step fails, in turn. Then the next
//! start is looked at: what has a digest's name is right, what was kept is there, what is counted is what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::faults::{BESIDE, PLAN, tell};
use super::*;
use crate::oci::Repository;

const LIMIT: u64 = 510_000;
const DIR: &str = "TIDELOCK_TEST_DIR";

/// Seeds and lengths of the blobs of the story.
const SMALL: (u8, usize) = (1, 2_000);
const MIDDLE: (u8, usize) = (2, 150_000);
const RESUMED: (u8, usize) = (3, 200_000);
const LARGE: (u8, usize) = (5, 300_000);

#[test]
fn killed_at_every_step() {
    let steps = each_step(1, |step| {
        let [place, copy] = [place(), place()];
        let has_ended = run(place.path(), &format!("kill:{step}"));
        let journal = Journal::read(place.path());
        copy_tree(&place.path().join("cache"), &copy.path().join("cache"));
        check(&copy.path().join("cache"), &journal, &format!("killed before step {step}"));
        journal.lose_what_was_not_synced(place.path());
        check(&place.path().join("cache"), &journal, &format!("power cut before step {step}"));
        has_ended
    });
    assert!(steps > 60, "{steps}");
}

#[test]
fn failing_at_every_step() {
    for (count, error, stride) in [(1, rustix::io::Errno::IO, 1), (4, rustix::io::Errno::NOSPC, 3)] {
        let steps = each_step(stride, |step| {
            let place = place();
            let case = format!("{count} failures ({error}) from step {step}");
            assert!(run(place.path(), &format!("fail:{step}:{count}:{}", error.raw_os_error())), "{case}");
            let journal = Journal::read(place.path());
            check(&place.path().join("cache"), &journal, &case);
            !journal.has("failed")
        });
        assert!(steps > 60, "{steps}");
    }
}

/// Tries each step, or every third, a few at once, until one of them is beyond the last. How many there are.
fn each_step(stride: usize, beyond: impl Fn(usize) -> bool + Sync) -> usize {
    let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while next.load(Ordering::SeqCst) < end.load(Ordering::SeqCst) {
                    let step = next.fetch_add(stride, Ordering::SeqCst);
                    if beyond(step) {
                        end.fetch_min(step, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    end.into_inner()
}

/// In memory where there is such a place: hundreds of starts need not wait for a real disk.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Whether the child came to its end.
fn run(place: &Path, plan: &str) -> bool {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::crash::in_a_process_of_its_own", "--ignored", "--nocapture"])
        .envs([(PLAN, plan.as_ref()), (BESIDE, place.as_os_str())])
        .env(DIR, place.join("cache"))
        .output()
        .unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&child.status) == Some(9);
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        killed || output.contains("1 passed"),
        "{plan}: {output}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    !killed
}

#[tokio::test]
#[ignore = "dies on the way; the tests above run it in children"]
async fn in_a_process_of_its_own() {
    let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_test_writer().try_init();
    let dir = std::env::var_os(DIR).unwrap();
    let Some((store, life)) = open_at_last(Path::new(&dir)).await else { return };
    let repository: Repository = "docker.io/library/x".parse().unwrap();
    let link = Link { size: 1, is_manifest: false, media_type: String::new() };
    let (small, bytes) = blob(SMALL.0, SMALL.1);
    if store.put_document(small, bytes).await.is_ok() {
        tell(&format!("kept\t{small}"));
    }
    let _ = store.add_link(&repository, small, link).await;
    let _ = try_to_keep(&store, MIDDLE).await;
    half_of(&store, RESUMED).await;
    let _ = try_to_keep(&store, RESUMED).await;
    if let Ok(mut wrong) = store.partial(blob(4, 100).0, Some(100)).await {
        let _ = wrong.write(0, blob(9, 100).1).await;
        assert!(wrong.prove().await.is_err());
    }
    let middle = blob(MIDDLE.0, MIDDLE.1).0;
    tell(&format!("lost\t{middle}"));
    let _ = fs::write(store.0.tree.blob(&middle), vec![0; MIDDLE.1]);
    if let Some(blob) = store.open_blob(&middle).await {
        assert!(blob.read_whole().await.is_err(), "nobody completes what is wrong");
    }
    let _ = try_to_keep(&store, MIDDLE).await;
    tell("evicting");
    let _ = try_to_keep(&store, LARGE).await;
    heal(&store).await;
    tell("evicting");
    for which in [LARGE, RESUMED, MIDDLE] {
        // The disk may fail just now.
        for _ in 0..10 {
            if store.size(&blob(which.0, which.1).0).await.is_none() {
                let _ = try_to_keep(&store, which).await;
            }
        }
        assert!(store.size(&blob(which.0, which.1).0).await.is_some(), "the disk is well again");
        tell("evicting");
    }
    heal(&store).await;
    adds_up(&store, Path::new(&dir), "at the end");
    end(store, life).await;
}

/// A start may fail too, and is tried again.
async fn open_at_last(dir: &Path) -> Option<(Store, Lifecycle)> {
    for _ in 0..10 {
        let life = Lifecycle::default();
        if let Ok(store) = Store::open(&config(dir), &life, &Metrics::default()) {
            return Some((store, life));
        }
    }
    panic!("the store does not open");
}

fn config(dir: &Path) -> Cache {
    let (max_size, min_free) = (SizeLimit::Bytes(ByteSize(LIMIT)), ByteSize(0));
    Cache { dir: dir.to_owned(), max_size, min_free, ..Cache::default() }
}

/// Until the disk is trusted again.
async fn heal(store: &Store) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(20) {
        store.0.tidy().await;
        let is_whole =
            store.0.index.totals().sums().is_whole || store.0.look_through(&Lifecycle::default()).await;
        if is_whole
            && !store.0.health.is_failing()
            && store.0.index.change(Change::Settled(Vec::new())).await.is_ok()
        {
            return;
        }
        tokio::task::spawn_blocking(std::thread::yield_now).await.unwrap();
    }
    panic!("the store does not heal");
}

async fn try_to_keep(store: &Store, (seed, length): (u8, usize)) -> Result<(), Error> {
    let (digest, bytes) = blob(seed, length);
    let kept = async {
        let mut partial = store.partial(digest, Some(length as u64)).await?;
        write_crosswise(&mut partial, &bytes).await?;
        let length = partial.prove().await?;
        partial.promote(length).await
    };
    let kept: Result<(), Error> = kept.await;
    match &kept {
        Ok(()) => tell(&format!("kept\t{digest}")),
        Err(_) => heal(store).await,
    }
    kept
}

async fn half_of(store: &Store, (seed, length): (u8, usize)) {
    let (digest, bytes) = blob(seed, length);
    if let Ok(mut partial) = store.partial(digest, Some(length as u64)).await {
        let _ = partial.write(0, bytes.slice(..120_000)).await;
        if partial.takes_gaps() {
            let _ = partial.write(180_000, bytes.slice(180_000..190_000)).await;
        }
        let _ = partial.write(120_000, bytes.slice(120_000..130_000)).await;
    }
}

/// What is missing: of each two pieces the second one first, unless the disk failed when that was tried.
async fn write_crosswise(partial: &mut Partial, bytes: &Bytes) -> Result<(), Error> {
    let kept = usize::try_from(partial.kept()).unwrap();
    let mut pieces: Vec<usize> = (kept..bytes.len()).step_by(35_000).collect();
    if partial.takes_gaps() {
        pieces.chunks_mut(2).for_each(<[usize]>::reverse);
    }
    for from in pieces {
        partial.write(from as u64, bytes.slice(from..(from + 35_000).min(bytes.len()))).await?;
    }
    Ok(())
}

/// What the next start makes of it.
fn check(dir: &Path, journal: &Journal, case: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let life = Lifecycle::default();
        let store = open(&config(dir), &life);
        adds_up(&store, dir, case);
        // File systems may lose what was removed before what was written later: until now nobody knew of it.
        store.0.tidy().await;
        assert!(store.0.space.missing(0).is_none(), "{case}: too much");
        for (digest, must_be_there) in journal.kept() {
            let bytes = match store.open_blob(&digest).await {
                Some(blob) => blob.read_whole().await.ok(),
                None => None,
            };
            let expected = [SMALL, MIDDLE, RESUMED, LARGE].map(|(seed, length)| blob(seed, length));
            let expected = &expected.iter().find(|(it, _)| *it == digest).unwrap().1;
            assert!(bytes.is_none_or(|bytes| bytes == *expected), "{case}: {digest} is wrong");
            let is_there = store.size(&digest).await.is_some();
            assert!(is_there || !must_be_there, "{case}: {digest} is lost");
        }
        for (seed, length) in [LARGE, RESUMED, MIDDLE] {
            if store.size(&blob(seed, length).0).await.is_none() {
                keep(&store, seed, length).await;
            }
        }
        store.0.tidy().await;
        adds_up(&store, dir, case);
        life.stop();
        life.wait().await;
    });
}

/// What is counted is what is there, not too much, and under its own name; nothing else lies around.
fn adds_up(store: &Store, dir: &Path, case: &str) {
    let sum = |folder: &str| sizes(&dir.join(folder)).values().sum::<u64>();
    let counted = u64::try_from(store.0.metrics.bytes.get()).unwrap();
    let there = sum("blobs") + sum("ingest") + sum("quarantine");
    assert_eq!(counted, there, "{case}: {:?} {:?}", sizes(&dir.join("ingest")), sizes(&dir.join("blobs")));
    assert!(there <= LIMIT || case.starts_with("power cut"), "{case}: {there}");
    assert_eq!(store.0.index.totals().sums().bytes, sum("blobs"), "{case}");
    for name in sizes(&dir.join("ingest")).keys() {
        assert!(Tree::parse_partial(name).is_some(), "{case}: {name} lies around");
    }
}

fn sizes(folder: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let data = entry.metadata().unwrap();
        if data.is_dir() {
            found.extend(sizes(&entry.path()));
        } else {
            found.insert(entry.file_name().to_str().unwrap().to_owned(), data.len());
        }
    }
    found
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            copy_with_gaps(&fs::File::open(entry.path()).unwrap(), &fs::File::create(target).unwrap());
        }
    }
}

/// Copied as usual a gap would be zeros, which a kill does not make of it.
fn copy_with_gaps(from: &fs::File, to: &fs::File) {
    to.set_len(from.metadata().unwrap().len()).unwrap();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start)).unwrap();
        let mut stretch = vec![0; usize::try_from(at - start).unwrap()];
        from.read_exact_at(&mut stretch, start).unwrap();
        to.write_all_at(&stretch, start).unwrap();
    }
}

/// What the child did, in order; its last step was not done any more.
struct Journal(Vec<Vec<String>>);

impl Journal {
    fn read(place: &Path) -> Journal {
        let text = fs::read_to_string(place.join("journal")).unwrap_or_default();
        Journal(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
    }

    fn has(&self, word: &str) -> bool {
        self.0.iter().any(|line| line[0] == word)
    }

    /// What the child was told is kept, and whether nothing has happened to it since.
    fn kept(&self) -> BTreeMap<Digest, bool> {
        let mut kept: BTreeMap<String, bool> = BTreeMap::new();
        for line in &self.0 {
            match line[0].as_str() {
                "kept" => drop(kept.insert(line[1].clone(), true)),
                "lost" => drop(kept.insert(line[1].clone(), false)),
                "evicting" => kept.values_mut().for_each(|must| *must = false),
                _ => {}
            }
        }
        kept.into_iter().map(|(digest, must)| (digest.parse().unwrap(), must)).collect()
    }

    /// Makes of the folder what a power cut may leave: bytes that were not synced are not there, and names are as
    /// they were when their folder last was.
    fn lose_what_was_not_synced(&self, place: &Path) {
        let mut unsynced = BTreeSet::new();
        let mut names: Vec<(&str, [&str; 2])> = Vec::new();
        for line in self.0.iter().filter(|line| line.len() > 1) {
            let at = |index: usize| line.get(index).map_or("", String::as_str);
            match at(1) {
                "open" | "write" => drop(unsynced.insert(at(2))),
                "sync" => drop(unsynced.remove(at(2))),
                "rename" => {
                    unsynced.remove(at(2));
                    names.push(("rename", [at(2), at(3)]));
                }
                "remove" => names.push(("remove", [at(0), at(2)])),
                "sync_folder" => {
                    names.retain(|(_, [_, path])| Path::new(path).parent() != Some(Path::new(at(2))))
                }
                _ => {}
            }
        }
        for (what, [before, path]) in names.into_iter().rev().filter(|(_, [_, path])| !is_index(path)) {
            let from = if what == "rename" {
                Path::new(path).to_owned()
            } else {
                place.join("removed").join(before)
            };
            let to = Path::new(if what == "rename" { before } else { path });
            if from.exists() && !to.exists() {
                fs::rename(from, to).unwrap();
            }
        }
        for path in unsynced.into_iter().filter(|path| !is_index(path)) {
            if let Ok(file) = fs::OpenOptions::new().write(true).open(path) {
                file.set_len(0).unwrap();
            }
        }
    }
}

/// Its own library sees to it, and has its own tests.
fn is_index(path: &str) -> bool {
    path.contains("index.")
}
