//! An index that was lost is made anew from the tree, while the store serves.

use super::*;

/// Some dozens in each folder of the tree.
const MANY: u64 = 10_000;
const LENGTH: u64 = 20;

fn small(number: u64) -> (Digest, Bytes) {
    let bytes = Bytes::from(format!("{number:020}"));
    (Digest::of(Algorithm::Sha256, &bytes), bytes)
}

/// A tree of so many blobs, and no index.
fn populated(count: u64, limit: u64) -> House {
    let house = House::new(limit);
    let (tree, _lock) = Tree::open(house.folder.path()).unwrap();
    for number in 0..count {
        let (digest, bytes) = small(number);
        fs::write(tree.blob(&digest), bytes).unwrap();
    }
    house
}

/// One that lies in the last folders, to which a walk comes late.
fn last(count: u64) -> (Digest, Bytes) {
    (0..count).map(small).max_by_key(|(digest, _)| digest.hex().to_owned()).unwrap()
}

async fn has_all(store: &Store) {
    while !store.0.index.totals().sums().is_whole {
        tokio::task::yield_now().await;
    }
}

fn counted(store: &Store) -> (u64, u64) {
    (store.0.index.totals().sums().count, store.0.index.totals().sums().bytes)
}

#[tokio::test]
async fn hits_and_inserts_are_served_before_the_tree_is_looked_through() {
    let house = populated(MANY, u64::MAX);
    let (store, life) = house.start();
    let (digest, bytes) = last(MANY);
    assert!(read(&store.open_blob(&digest).await.unwrap()).await == bytes);
    let (new, bytes) = small(MANY);
    store.put_document(new, bytes.clone()).await.unwrap();
    assert_eq!(store.document(&new).await, Some(bytes));
    let (count, _) = counted(&store);
    assert!(!store.0.index.totals().sums().is_whole && count < MANY, "{count}");
    has_all(&store).await;
    assert_eq!(counted(&store), (MANY + 1, (MANY + 1) * LENGTH), "each is counted once");
    end(store, life).await;
}

#[tokio::test]
async fn a_rebuild_that_was_broken_off_goes_on_at_the_next_start() {
    let house = populated(MANY, u64::MAX);
    let mut before = 0;
    // Each time it is stopped after the first blobs that it finds.
    for turn in 0..3 {
        let (store, life) = house.start();
        assert_eq!(counted(&store), (before, before * LENGTH), "what was found stays");
        while counted(&store).0 == before {
            tokio::task::yield_now().await;
        }
        end(store, life).await;
        let (store, life) = house.start();
        life.stop();
        life.wait().await;
        let (count, _) = counted(&store);
        assert!(count > before && count < MANY, "turn {turn}: {count}");
        assert!(!store.0.index.totals().sums().is_whole, "turn {turn}");
        before = count;
        drop(store);
    }
    let (store, life) = house.start();
    has_all(&store).await;
    assert_eq!(counted(&store), (MANY, MANY * LENGTH));
    end(store, life).await;
    let (store, life) = house.start();
    assert!(store.0.index.totals().sums().is_whole, "once is enough");
    end(store, life).await;
}

/// The cache was twice as large as it may be now when its index was lost.
#[tokio::test]
async fn the_limit_holds_during_a_rebuild_and_after() {
    let limit = MANY / 2 * LENGTH;
    let house = populated(MANY, limit);
    let (store, life) = house.start();
    let (digest, bytes) = small(MANY);
    while !store.0.index.totals().sums().is_whole {
        // What there is has not been counted: nothing comes, and what is known does not go for it.
        let put = store.put_document(digest, bytes.clone()).await;
        assert!(matches!(put, Err(Error::NoRoom { .. })) || store.0.index.totals().sums().is_whole);
        tokio::task::yield_now().await;
    }
    store.close().await;
    let (count, size) = counted(&store);
    assert!(size <= limit, "{size}");
    assert_eq!(size, count * LENGTH);
    assert_eq!(house.files("blobs") as u64, count);
    store.put_document(digest, bytes).await.unwrap();
    assert!(counted(&store).1 <= limit);
    end(store, life).await;
}

#[tokio::test]
async fn what_is_not_counted_yet_evicts_nothing() {
    let house = populated(MANY, MANY * LENGTH);
    let (store, life) = house.start();
    has_all(&store).await;
    store.close().await;
    assert_eq!((counted(&store).0, house.files("blobs") as u64), (MANY, MANY));
    end(store, life).await;
}

/// Far more than goes at once.
#[tokio::test]
async fn a_limit_lowered_by_much_is_kept_in_turns() {
    let house = populated(MANY, u64::MAX);
    let (store, life) = house.start();
    has_all(&store).await;
    let (hot, bytes) = small(0);
    let reading = store.open_blob(&hot).await.unwrap();
    let limit = MANY / 10 * LENGTH;
    store.configure(&Cache { max_size: SizeLimit::Bytes(ByteSize(limit)), ..house.config() });
    while counted(&store).1 > limit {
        store.close().await;
    }
    let (count, size) = counted(&store);
    assert_eq!((size, house.files("blobs") as u64), (limit, count));
    assert!(read(&reading).await == bytes, "what is read stays");
    end(store, life).await;
}
