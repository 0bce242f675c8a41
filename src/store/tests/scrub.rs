//! What has rotted is found: by whoever reads it, and by the scrub.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;

/// Flips a bit on the disk, as it happens: the time of the last change stays.
fn rot(store: &Store, digest: &Digest, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(store.0.tree.blob(digest)).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(modified).unwrap();
}

async fn scrubbed(store: &Store) -> Scrub {
    // A paused clock goes on only where somebody waits for it.
    while store.scrub_progress().0.running {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    store.scrub_progress().0
}

#[tokio::test]
async fn a_scrub_finds_what_has_rotted_and_what_is_lost() {
    let house = House::new(10 << 20);
    let (store, life) = house.start();
    let mut digests = Vec::new();
    for seed in 1..=5 {
        digests.push(keep(&store, seed, 300_000).await);
    }
    rot(&store, &digests[1], 299_999);
    fs::remove_file(store.0.tree.blob(&digests[3])).unwrap();
    assert!(store.scrub(Some(ByteSize(1 << 30))));
    let scrub = scrubbed(&store).await;
    assert_eq!((scrub.blobs, scrub.bytes, scrub.damaged), (5, 4 * 300_000, 2));
    assert!(scrub.finished >= scrub.started && scrub.started.is_some());
    for (n, digest) in digests.iter().enumerate() {
        assert_eq!(store.size(digest).await.is_some(), ![1, 3].contains(&n), "{n}");
    }
    assert_eq!((store.0.metrics.quarantined.get(), house.files("quarantine")), (1, 1));
    assert_eq!(store.0.metrics.bytes.get(), 4 * 300_000, "what is in quarantine counts");
    keep(&store, 2, 300_000).await;
    assert!(store.scrub(None), "the next one");
    assert_eq!(scrubbed(&store).await.damaged, 0);
    end(store, life).await;
}

#[tokio::test(start_paused = true)]
async fn it_keeps_its_pace_and_goes_on_after_a_restart() {
    let house = House::new(10 << 20);
    let (store, life) = house.start();
    for seed in 1..=4 {
        keep(&store, seed, 1 << 20).await;
    }
    let begun = tokio::time::Instant::now();
    store.scrub(Some(ByteSize(1 << 20)));
    while store.scrub_progress().0.blobs < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    assert!((1.9..2.5).contains(&took), "2 MiB at 1 MiB a second took {took} s");
    end(store, life).await;
    let (store, life) = house.start();
    let scrub = scrubbed(&store).await;
    assert!(scrub.blobs == 4 && scrub.finished.is_some(), "{scrub:?}");
    assert!(scrub.bytes < 5 << 20, "at most one was begun anew: {scrub:?}");
    end(store, life).await;
}

#[tokio::test(start_paused = true)]
async fn it_comes_by_itself_when_it_is_due() {
    const EVERY: Duration = Duration::from_secs(600);
    let house = House::new(10 << 20);
    let begun = millis(lifecycle::now());
    let (store, life) = house.start();
    store.configure(&Cache { scrub_every: EVERY, ..house.config() });
    keep(&store, 1, 1000).await;
    while store.scrub_progress().0.finished.is_none() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let started = store.scrub_progress().0.started.unwrap();
    let waited = Duration::from_millis(started - begun);
    assert!(waited >= EVERY, "{waited:?}");
    store.configure(&Cache { scrub_every: Duration::ZERO, ..house.config() });
    let before = store.scrub_progress().0;
    tokio::time::sleep(3 * EVERY).await;
    assert_eq!(store.scrub_progress().0, before);
    end(store, life).await;
}

#[tokio::test]
async fn nobody_completes_what_has_rotted() {
    let house = House::new(10 << 20);
    let (store, life) = house.start();
    let digest = keep(&store, 1, 1 << 20).await;
    end(store, life).await;
    let (store, life) = house.start();
    rot(&store, &digest, 5);
    let opened = store.open_blob(&digest).await.unwrap();
    let (mut bytes, mut failed) = (0, false);
    let mut stream = std::pin::pin!(opened.read(crate::oci::ByteRange::whole(1 << 20)));
    while let Some(piece) = futures_util::StreamExt::next(&mut stream).await {
        match piece {
            Ok(piece) => bytes += piece.len(),
            Err(_) => failed = true,
        }
    }
    assert!(failed && bytes <= (1 << 20) - HOLD_BACK, "{bytes}");
    assert!(store.size(&digest).await.is_none(), "it is fetched anew");
    assert_eq!(house.files("quarantine"), 1);
    end(store, life).await;
}

#[tokio::test]
async fn what_was_changed_by_hand_is_noticed_before_and_in_the_midst() {
    let house = House::new(10 << 20);
    let (store, life) = house.start();
    let digest = keep(&store, 1, 1 << 20).await;
    let opened = store.open_blob(&digest).await.unwrap();
    assert!(opened.is_proven());
    let path = store.0.tree.blob(&digest);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"no", 1_000_000).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert!(opened.clone().read_whole().await.is_err(), "in the midst");
    while store.size(&digest).await.is_some() {
        tokio::task::yield_now().await;
    }
    drop(opened);
    let digest = keep(&store, 1, 1 << 20).await;
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    assert!(store.open_blob(&digest).await.is_none(), "before");
    // The same content under another time is no damage.
    let digest = keep(&store, 1, 1 << 20).await;
    fs::write(&path, blob(1, 1 << 20).1).unwrap();
    assert!(store.open_blob(&digest).await.unwrap().is_proven());
    end(store, life).await;
}

/// A file that was emptied before the index knew of it.
#[tokio::test]
async fn an_empty_file_is_no_blob_but_the_empty_one() {
    let house = House::new(1 << 20);
    let (store, life) = house.start();
    let (digest, empty) = (blob(1, 100).0, Digest::of(Algorithm::Sha256, b""));
    for digest in [&digest, &empty] {
        fs::write(store.0.tree.blob(digest), b"").unwrap();
    }
    assert!(store.document(&digest).await.is_none() && store.open_blob(&digest).await.is_none());
    assert_eq!(store.document(&empty).await, Some(Bytes::new()));
    end(store, life).await;
}
