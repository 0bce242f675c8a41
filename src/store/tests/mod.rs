//! The store from outside: through its own verbs, on a real directory.

mod crash;
pub(super) mod faults;
mod pins;
mod rebuild;
mod scrub;

use std::fs;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::*;
use crate::config::{ByteSize, SizeLimit};
use crate::oci::Algorithm;

struct House {
    folder: tempfile::TempDir,
    limit: u64,
}

impl House {
    fn new(limit: u64) -> House {
        House { folder: tempfile::tempdir().unwrap(), limit }
    }

    /// A start of the process on this directory. Without `close`, what follows is a start after a kill.
    fn start(&self) -> (Store, Lifecycle) {
        let life = Lifecycle::default();
        (open(&self.config(), &life), life)
    }

    fn config(&self) -> Cache {
        Cache {
            dir: self.folder.path().to_owned(),
            max_size: SizeLimit::Bytes(ByteSize(self.limit)),
            min_free: ByteSize(0),
            ..Cache::default()
        }
    }

    fn files(&self, folder: &str) -> usize {
        fn count(path: &std::path::Path) -> usize {
            let entries = fs::read_dir(path).unwrap().flatten();
            entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
        }
        count(&self.folder.path().join(folder))
    }
}

/// Opens a directory that may have been in use a moment ago: another test may be about to become a child of this
/// process, and has all its files open until it is one.
pub(crate) fn open(config: &Cache, life: &Lifecycle) -> Store {
    let begun = std::time::Instant::now();
    loop {
        match Store::open(config, life, &Metrics::default()) {
            Err(OpenError::InUse(_)) if begun.elapsed().as_secs() < 10 => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// What it still writes, a start waits for.
async fn end(store: Store, life: Lifecycle) {
    life.stop();
    life.wait().await;
    drop(store);
}

fn blob(seed: u8, length: usize) -> (Digest, Bytes) {
    let bytes: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    (Digest::of(Algorithm::Sha256, &bytes), Bytes::from(bytes))
}

async fn keep(store: &Store, seed: u8, length: usize) -> Digest {
    let (digest, bytes) = blob(seed, length);
    let mut partial = store.partial(digest, Some(length as u64)).await.unwrap();
    let kept = usize::try_from(partial.kept()).unwrap();
    for from in (kept..length).step_by(70_000) {
        partial.write(from as u64, bytes.slice(from..(from + 70_000).min(length))).await.unwrap();
    }
    let length = partial.prove().await.unwrap();
    partial.promote(length).await.unwrap();
    digest
}

async fn read(blob: &Blob) -> Bytes {
    blob.clone().read_whole().await.unwrap()
}

#[tokio::test]
async fn what_comes_in_goes_out_also_after_a_restart() {
    let house = House::new(10 << 20);
    let (store, life) = house.start();
    let digest = keep(&store, 1, 1_000_000).await;
    let opened = store.open_blob(&digest).await.unwrap();
    assert!(read(&opened).await == blob(1, 1_000_000).1);
    drop(opened);
    store.close().await;
    end(store, life).await;
    let (store, life) = house.start();
    assert_eq!(store.size(&digest).await, Some(1_000_000));
    assert_eq!(store.0.metrics.bytes.get(), 1_000_000);
    assert_eq!(house.files("ingest"), 0);
    end(store, life).await;
}

#[tokio::test]
async fn wrong_bytes_get_no_name() {
    let house = House::new(1 << 20);
    let (store, life) = house.start();
    let (digest, _) = blob(1, 100);
    let mut partial = store.partial(digest, Some(100)).await.unwrap();
    partial.write(0, blob(2, 100).1).await.unwrap();
    assert!(matches!(partial.prove().await, Err(Error::Mismatch)));
    drop(partial);
    assert!(store.open_blob(&digest).await.is_none());
    assert!(matches!(store.put_document(digest, blob(2, 9).1).await, Err(Error::Mismatch)));
    assert_eq!((house.files("ingest"), house.files("blobs")), (0, 0));
    assert_eq!(store.0.metrics.bytes.get(), 0);
    end(store, life).await;
}

#[tokio::test]
async fn a_partial_goes_on_after_a_restart() {
    let house = House::new(10 << 20);
    let (store, life) = house.start();
    let (digest, bytes) = blob(3, 300_000);
    let mut partial = store.partial(digest, Some(300_000)).await.unwrap();
    partial.write(0, bytes.slice(..200_000)).await.unwrap();
    let mut committed = partial.committed();
    committed.wait_for(|count| *count == 200_000).await.unwrap();
    drop(partial);
    assert_eq!(store.0.metrics.bytes.get(), 200_000, "what is left over counts");
    end(store, life).await;
    let (store, life) = house.start();
    assert_eq!(store.0.metrics.bytes.get(), 200_000);
    let partial = store.partial(digest, Some(300_000)).await.unwrap();
    assert_eq!(partial.kept(), 200_000 - 65_536);
    drop(partial);
    let digest = keep(&store, 3, 300_000).await;
    assert!(read(&store.open_blob(&digest).await.unwrap()).await == bytes);
    assert_eq!(store.0.metrics.bytes.get(), 300_000);
    end(store, life).await;
}

#[tokio::test]
async fn pieces_come_in_any_order() {
    const LENGTH: usize = 3_000_000;
    let house = House::new(10 << 20);
    let (store, life) = house.start();
    let (digest, bytes) = blob(7, LENGTH);
    let mut partial = store.partial(digest, Some(LENGTH as u64)).await.unwrap();
    assert!(partial.takes_gaps(), "where tests are run it is known what is a gap");
    let mut committed = partial.committed();
    for from in [2_000_000, 0, 500_000, 2_500_000, 1_500_000, 1_000_000_usize] {
        let before = *committed.borrow();
        partial.write(from as u64, bytes.slice(from..from + 500_000)).await.unwrap();
        match from {
            0 | 500_000 => drop(committed.wait_for(|count| *count == from as u64 + 500_000).await.unwrap()),
            1_000_000 => drop(committed.wait_for(|count| *count == LENGTH as u64).await.unwrap()),
            _ => assert_eq!(*committed.borrow(), before, "nobody reads beyond a gap"),
        }
    }
    let length = partial.prove().await.unwrap();
    partial.promote(length).await.unwrap();
    assert!(read(&store.open_blob(&digest).await.unwrap()).await == bytes);
    assert_eq!(store.0.metrics.bytes.get(), LENGTH as i64);
    end(store, life).await;
}

#[tokio::test]
async fn what_lies_behind_a_gap_is_not_kept() {
    for is_killed in [false, true] {
        let house = House::new(10 << 20);
        let (store, life) = house.start();
        let (digest, bytes) = blob(8, 3_000_000);
        let mut partial = store.partial(digest, Some(3_000_000)).await.unwrap();
        partial.write(0, bytes.slice(..400_000)).await.unwrap();
        partial.write(2_000_000, bytes.slice(2_000_000..2_500_000)).await.unwrap();
        partial.committed().wait_for(|count| *count == 400_000).await.unwrap();
        drop(partial);
        end(store, life).await;
        if is_killed {
            // As it was before the writer came to its end, which a start waits for.
            let (store, life) = house.start();
            end(store, life).await;
            let path = house.folder.path().join("ingest").join(format!("sha256-{}", digest.hex()));
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&bytes[2_000_000..2_500_000], 2_000_000).unwrap();
        }
        let (store, life) = house.start();
        assert_eq!(store.0.metrics.bytes.get(), if is_killed { 2_500_000 } else { 400_000 });
        let partial = store.partial(digest, Some(3_000_000)).await.unwrap();
        let kept = partial.kept();
        assert!((400_000 - 65_536..400_000 - 61_000).contains(&kept), "{kept}: a tail that is not trusted");
        drop(partial);
        keep(&store, 8, 3_000_000).await;
        assert!(read(&store.open_blob(&digest).await.unwrap()).await == bytes);
        assert_eq!(store.0.metrics.bytes.get(), 3_000_000);
        end(store, life).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_takes_up_is_dropped() {
    let house = House::new(10 << 20);
    let (store, life) = house.start();
    let (digest, bytes) = blob(3, 300_000);
    let mut partial = store.partial(digest, Some(300_000)).await.unwrap();
    partial.write(0, bytes.slice(..200_000)).await.unwrap();
    partial.committed().wait_for(|count| *count == 200_000).await.unwrap();
    drop(partial);
    while store.0.claims.is_taken(&digest) {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(std::time::Duration::from_secs(23 * 3600)).await;
    store.0.tidy().await;
    assert_eq!((house.files("ingest"), store.0.metrics.bytes.get()), (1, 200_000));
    tokio::time::advance(std::time::Duration::from_secs(2 * 3600)).await;
    store.0.tidy().await;
    assert_eq!((house.files("ingest"), store.0.metrics.bytes.get()), (0, 0));
    end(store, life).await;
}

#[tokio::test]
async fn the_least_recently_used_goes_and_readers_are_not_cut() {
    let house = House::new(3000);
    let (store, life) = house.start();
    let first = keep(&store, 1, 1000).await;
    let second = keep(&store, 2, 1000).await;
    let third = keep(&store, 3, 1000).await;
    // Use times are in milliseconds; the order must not hang on the machine's speed.
    store.0.used.lock().unwrap().extend([
        (second, u64::MAX - 3),
        (first, u64::MAX - 2),
        (third, u64::MAX - 1),
    ]);
    let reading = store.open_blob(&second).await.unwrap();
    store.0.used.lock().unwrap().remove(&second);
    let fourth = keep(&store, 4, 1000).await;
    assert!(store.size(&second).await.is_some(), "it is being read");
    assert!(store.size(&first).await.is_none(), "it was the oldest of the others");
    assert_eq!(store.0.metrics.bytes.get(), 3000);
    assert!(read(&reading).await == blob(2, 1000).1);
    drop(reading);
    for digest in [third, fourth] {
        assert!(store.size(&digest).await.is_some());
    }
    end(store, life).await;
}

#[tokio::test]
async fn to_be_looked_at_is_no_use() {
    let house = House::new(3000);
    let (store, life) = house.start();
    let digest = keep(&store, 1, 1000).await;
    store.0.used.lock().unwrap().clear();
    assert!(store.peek(&digest).await.unwrap() == blob(1, 1000).1);
    assert!(store.0.used.lock().unwrap().is_empty());
    drop(store.open_blob(&digest).await.unwrap());
    assert!(store.0.used.lock().unwrap().contains_key(&digest));
    end(store, life).await;
}

/// Eviction had chosen the blob before the reader came, and takes its name before the reader is at the end.
#[tokio::test]
async fn a_reader_that_comes_while_it_is_evicted_is_not_cut() {
    let house = House::new(1 << 20);
    let (store, life) = house.start();
    for (seed, length) in [(1, 300_000), (2, 1_000)] {
        let digest = keep(&store, seed, length).await;
        let reader = store.open_blob(&digest).await.unwrap();
        fs::remove_file(store.0.tree.blob(&digest)).unwrap();
        assert_eq!(read(&reader).await, blob(seed, length).1);
    }
    end(store, life).await;
}

#[tokio::test]
async fn what_can_never_fit_is_refused_and_evicts_nothing() {
    let house = House::new(3000);
    let (store, life) = house.start();
    let digest = keep(&store, 1, 1000).await;
    assert!(matches!(store.partial(blob(9, 1).0, Some(3001)).await, Err(Error::NoRoom { .. })));
    assert!(store.size(&digest).await.is_some());
    end(store, life).await;
}

/// What cannot be removed does not take the others' entries, and what is known of them, along.
#[tokio::test]
async fn a_blob_that_cannot_be_removed_stops_the_eviction() {
    let house = House::new(3000);
    let (store, life) = house.start();
    let stuck = keep(&store, 1, 1000).await;
    let others = [keep(&store, 2, 1000).await, keep(&store, 3, 1000).await];
    let path = store.0.tree.blob(&stuck);
    fs::remove_file(&path).unwrap();
    fs::create_dir_all(path.join("in the way")).unwrap();
    store.0.used.lock().unwrap().extend([(stuck, 1), (others[0], u64::MAX - 2), (others[1], u64::MAX - 1)]);
    let refused = store.partial(blob(9, 1).0, Some(1000)).await;
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    assert!(store.0.health.is_failing());
    for digest in others {
        assert!(store.size(&digest).await.is_some());
    }
    fs::remove_dir_all(&path).unwrap();
    store.0.tidy().await;
    assert_eq!((store.0.health.is_failing(), store.0.metrics.bytes.get()), (false, 2000));
    keep(&store, 4, 1000).await;
    end(store, life).await;
}

#[tokio::test]
async fn nothing_goes_in_vain() {
    let house = House::new(3000);
    let (store, life) = house.start();
    let (idle, read) = (keep(&store, 1, 1000).await, keep(&store, 2, 1000).await);
    let reading = store.open_blob(&read).await.unwrap();
    assert!(matches!(store.partial(blob(9, 1).0, Some(2500)).await, Err(Error::NoRoom { .. })));
    assert!(store.size(&idle).await.is_some(), "it would not have been enough");
    drop(reading);
    end(store, life).await;
}

#[tokio::test]
async fn what_the_index_does_not_know_is_found() {
    let house = House::new(1 << 20);
    let (store, life) = house.start();
    let (digest, bytes) = blob(5, 500);
    fs::write(store.0.tree.blob(&digest), &bytes).unwrap();
    assert_eq!(store.size(&digest).await, Some(500), "found when it is asked for");
    let (other, bytes) = blob(6, 600);
    fs::write(store.0.tree.blob(&other), &bytes).unwrap();
    let index = store.0.tree.index();
    end(store, life).await;
    fs::remove_file(index).unwrap();
    let (store, life) = house.start();
    assert!(
        matches!(store.partial(blob(9, 1).0, Some(1)).await, Err(Error::NoRoom { .. })),
        "nobody has counted"
    );
    while !store.0.index.totals().sums().is_whole {
        tokio::task::yield_now().await;
    }
    assert!(store.0.index.entry(&other).is_some() && store.0.index.entry(&digest).is_some());
    assert_eq!(store.0.metrics.bytes.get(), 1100);
    end(store, life).await;
}

#[tokio::test]
async fn damaged_blobs_and_a_damaged_index_heal() {
    let house = House::new(1 << 20);
    let (store, life) = house.start();
    let digest = keep(&store, 7, 700).await;
    fs::write(store.0.tree.blob(&digest), b"short").unwrap();
    assert!(store.open_blob(&digest).await.is_none());
    assert_eq!((house.files("blobs"), house.files("quarantine")), (0, 1));
    assert_eq!(store.0.metrics.bytes.get(), 5, "what is in quarantine counts");
    let digest = keep(&store, 7, 700).await;
    fs::remove_file(store.0.tree.blob(&digest)).unwrap();
    assert!(store.open_blob(&digest).await.is_none());
    let digest = keep(&store, 7, 700).await;
    let index = store.0.tree.index();
    end(store, life).await;
    fs::write(index, b"not a database").unwrap();
    let (store, life) = house.start();
    assert_eq!(store.size(&digest).await, Some(700));
    end(store, life).await;
}

#[tokio::test]
async fn documents_come_from_memory_and_from_disk() {
    let house = House::new(1 << 20);
    let (store, life) = house.start();
    let (digest, bytes) = blob(8, 2000);
    store.put_document(digest, bytes.clone()).await.unwrap();
    assert_eq!(store.document(&digest).await, Some(bytes.clone()));
    end(store, life).await;
    let (store, life) = house.start();
    assert_eq!(store.document(&digest).await, Some(bytes));
    end(store, life).await;
}

/// I5, also for what is held in memory.
#[tokio::test]
async fn a_manifest_is_had_through_repositories_that_contain_it_and_no_other() {
    let house = House::new(3000);
    let (store, life) = house.start();
    let (digest, bytes) = blob(8, 2000);
    let [own, other] = ["docker.io/library/own", "docker.io/library/other"].map(|name| name.parse().unwrap());
    let link = |media_type: &str| Link { size: 2000, is_manifest: true, media_type: media_type.to_owned() };
    store.put_document(digest, bytes.clone()).await.unwrap();
    store.add_link(&own, digest, link("a")).await.unwrap();
    for _ in 0..3 {
        assert_eq!(store.manifest(&own, &digest).await, Some((link("a"), bytes.clone())));
        assert_eq!(store.manifest(&other, &digest).await, None);
    }
    store.add_link(&own, digest, link("b")).await.unwrap();
    assert_eq!(store.manifest(&own, &digest).await, Some((link("b"), bytes.clone())));
    // Evicted, and back through another repository.
    drop(store.partial(blob(9, 3000).0, Some(3000)).await.unwrap());
    assert_eq!(store.manifest(&own, &digest).await, None);
    store.put_document(digest, bytes.clone()).await.unwrap();
    store.add_link(&other, digest, link("c")).await.unwrap();
    assert_eq!(store.manifest(&own, &digest).await, None);
    assert_eq!(store.manifest(&other, &digest).await, Some((link("c"), bytes)));
    // A layer is none.
    store.add_link(&own, digest, Link { is_manifest: false, ..link("") }).await.unwrap();
    assert_eq!(store.manifest(&own, &digest).await, None);
    end(store, life).await;
}

#[tokio::test]
async fn many_who_need_a_little_evict_a_little() {
    let house = House::new(3000);
    let (store, life) = house.start();
    for seed in 1..=3 {
        keep(&store, seed, 1000).await;
    }
    let starts = (10..20).map(|seed| store.partial(blob(seed, 100).0, Some(100)));
    let partials = futures_util::future::join_all(starts).await;
    assert!(partials.iter().all(Result::is_ok));
    assert_eq!((house.files("blobs"), store.0.metrics.bytes.get()), (2, 3000));
    drop(partials);
    end(store, life).await;
}

#[tokio::test]
async fn a_loss_that_many_come_upon_is_counted_once() {
    let house = House::new(1 << 20);
    let (store, life) = house.start();
    let lost = keep(&store, 1, 1000).await;
    keep(&store, 2, 1000).await;
    fs::remove_file(store.0.tree.blob(&lost)).unwrap();
    let opened = futures_util::future::join_all((0..10).map(|_| store.open_blob(&lost))).await;
    assert!(opened.iter().all(Option::is_none));
    assert_eq!(store.0.metrics.bytes.get(), 1000);
    end(store, life).await;
}

#[tokio::test]
async fn what_is_asked_for_while_it_is_evicted_is_counted_right() {
    let house = House::new(3000);
    let (store, life) = house.start();
    for round in 0..20 {
        let victim = keep(&store, round, 1000).await;
        let asking = async {
            while store.size(&victim).await.is_some() {
                tokio::task::yield_now().await;
            }
        };
        let evicting = async { drop(store.partial(blob(99, 1).0, Some(3000)).await.unwrap()) };
        // Both take turns on this one thread, at each step of the eviction.
        tokio::join!(asking, evicting);
        assert_eq!((house.files("blobs"), store.0.metrics.bytes.get()), (0, 0), "round {round}");
    }
    end(store, life).await;
}

/// A disk that fails is seen by a write, or by the proof, and whoever asks again after that is told so.
#[tokio::test]
async fn what_has_ended_is_not_proven_again() {
    let house = House::new(10_000);
    let (store, life) = house.start();
    let mut partial = store.partial(blob(1, 100).0, Some(100)).await.unwrap();
    partial.write(0, blob(2, 100).1).await.unwrap();
    assert!(matches!(partial.prove().await, Err(Error::Mismatch)));
    assert!(matches!(partial.prove().await, Err(Error::Io { .. })));
    drop(partial);
    end(store, life).await;
}
