//! Pins, and what is removed by hand.

use std::collections::HashSet;

use super::*;
use crate::oci::Reference;
use crate::store::Pin;

fn repository() -> Repository {
    "docker.io/library/app".parse().unwrap()
}

fn pin(reference: &str, digests: &[Digest]) -> Pin {
    Pin { repository: repository(), reference: reference.parse().unwrap(), digests: digests.to_vec() }
}

fn pinned(store: &Store) -> i64 {
    store.0.metrics.pinned_bytes.get()
}

#[tokio::test]
async fn what_is_pinned_stays_also_after_a_restart() {
    let house = House::new(3000);
    let (store, life) = house.start();
    let first = keep(&store, 1, 1000).await;
    // One that is not here yet, and one twice.
    let later = blob(2, 1000).0;
    store.pin(pin("v1", &[first, later, first])).await.unwrap();
    keep(&store, 2, 1000).await;
    assert_eq!(pinned(&store), 2000);
    store.close().await;
    end(store, life).await;
    let (store, life) = house.start();
    assert_eq!(pinned(&store), 2000);
    for seed in 3..9 {
        keep(&store, seed, 900).await;
    }
    assert!(store.kept(&first).unwrap().is_pinned && store.kept(&later).unwrap().is_pinned);
    assert_eq!(store.next_to_go(9).len(), 1);
    // To be used is no reason to be evicted.
    drop(store.open_blob(&first).await.unwrap());
    store.0.flush_used().await;
    assert!(matches!(store.partial(blob(9, 1).0, Some(1001)).await, Err(Error::NoRoom { .. })));
    assert_eq!(store.pins(&repository()), [pin("v1", &[first, later, first])]);
    assert!(store.pins(&"docker.io/library/ap".parse().unwrap()).is_empty());
    end(store, life).await;
}

#[tokio::test]
async fn who_is_let_go_may_be_evicted_and_who_is_held_twice_not_yet() {
    let house = House::new(10_000);
    let (store, life) = house.start();
    let [one, two] = [keep(&store, 1, 1000).await, keep(&store, 2, 500).await];
    store.pin(pin("v1", &[one, two])).await.unwrap();
    store.pin(pin("v2", &[one])).await.unwrap();
    assert_eq!(pinned(&store), 1500);
    // The tag moved.
    store.pin(pin("v1", &[one])).await.unwrap();
    assert_eq!(pinned(&store), 1000);
    let v1: Reference = "v1".parse().unwrap();
    for _ in 0..2 {
        store.unpin(&repository(), &v1).await.unwrap();
        assert_eq!(pinned(&store), 1000);
    }
    store.unpin(&repository(), &"v2".parse().unwrap()).await.unwrap();
    assert_eq!((pinned(&store), store.fullness().bytes), (0, 1500));
    assert_eq!(store.next_to_go(9).len(), 2);
    end(store, life).await;
}

/// A damaged blob that is pinned goes, and is pinned again when it comes back.
#[tokio::test]
async fn a_pinned_blob_may_be_lost_and_come_back() {
    let house = House::new(10_000);
    let (store, life) = house.start();
    let digest = keep(&store, 1, 1000).await;
    store.pin(pin("v1", &[digest])).await.unwrap();
    fs::remove_file(store.0.tree.blob(&digest)).unwrap();
    assert!(store.open_blob(&digest).await.is_none());
    assert_eq!(pinned(&store), 0);
    keep(&store, 1, 1000).await;
    assert_eq!(pinned(&store), 1000);
    end(store, life).await;
}

#[tokio::test]
async fn what_is_forgotten_goes_unless_another_repository_has_it() {
    let house = House::new(10_000);
    let (store, life) = house.start();
    let other: Repository = "docker.io/library/other".parse().unwrap();
    let link = Link { size: 1000, is_manifest: false, media_type: String::new() };
    let [own, shared, held, read] = [
        keep(&store, 1, 1000).await,
        keep(&store, 2, 1000).await,
        keep(&store, 3, 1000).await,
        keep(&store, 4, 1000).await,
    ];
    for digest in [own, shared, held, read] {
        store.add_link(&repository(), digest, link.clone()).await.unwrap();
    }
    store.add_link(&other, shared, link.clone()).await.unwrap();
    store.pin(pin("v1", &[held])).await.unwrap();
    let reading = store.open_blob(&read).await.unwrap();
    let gone = store.forget(&repository(), HashSet::from([own, shared, held, read])).await.unwrap();
    assert_eq!((gone, store.fullness().bytes), (1000, 3000));
    assert!(store.kept(&own).is_none() && !store.0.tree.blob(&own).exists());
    for digest in [own, shared, held, read] {
        assert!(store.link(&repository(), &digest).is_none());
    }
    assert!(store.link(&other, &shared).is_some());
    drop(reading);
    end(store, life).await;
}
