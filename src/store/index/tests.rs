use std::path::PathBuf;

use super::*;

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn entry(size: u64, last_use: u64) -> Entry {
    Entry::new(size, last_use)
}

fn oldest(index: &Index, bytes: u64, may_go: impl Fn(&Digest) -> bool) -> Vec<(Digest, u64)> {
    let mut found = Vec::new();
    index.oldest(bytes, usize::MAX, |digest, entry| {
        let takes = may_go(digest);
        found.extend(takes.then_some((*digest, entry.size)));
        takes
    });
    found
}

fn totals(index: &Index) -> (u64, u64) {
    (index.totals().sums().bytes, index.totals().sums().count)
}

fn reopened(folder: &tempfile::TempDir) -> Index {
    Index::open(&folder.path().join("index"), |_| None).unwrap()
}

async fn opened() -> (Index, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let index = reopened(&folder);
    for (text, size, at) in [("a", 10, 3), ("b", 20, 1), ("c", 30, 2)] {
        index.change(Change::Added(digest(text), entry(size, at))).await.unwrap();
    }
    (index, folder)
}

#[tokio::test]
async fn the_oldest_go_first_and_totals_follow() {
    let (index, _folder) = opened().await;
    assert_eq!(totals(&index), (60, 3));
    assert_eq!(oldest(&index, 21, |_| true), [(digest("b"), 20), (digest("c"), 30)]);
    index.change(Change::Used(vec![(digest("b"), 9)])).await.unwrap();
    assert_eq!(oldest(&index, 1, |_| true), [(digest("c"), 30)]);
    assert_eq!(oldest(&index, 1, |it| *it != digest("c")), [(digest("a"), 10)]);
    index.change(Change::Removed(vec![digest("c"), digest("not there")])).await.unwrap();
    index.change(Change::Added(digest("a"), entry(10, 12))).await.unwrap();
    assert_eq!(totals(&index), (30, 2));
    assert_eq!(index.entry(&digest("c")), None);
    assert_eq!(index.entry(&digest("b")), Some(entry(20, 9)));
}

/// Somebody pins what has been chosen for eviction already.
#[tokio::test]
async fn what_is_pinned_meanwhile_is_not_evicted() {
    let (index, _folder) = opened().await;
    let (repository, reference): (Repository, Reference) =
        ("docker.io/library/x".parse().unwrap(), "v1".parse().unwrap());
    index.change(Change::Pinned(repository.clone(), reference.clone(), vec![digest("a")])).await.unwrap();
    index.change(Change::Evicted(vec![digest("a"), digest("b"), digest("not there")])).await.unwrap();
    assert!(index.entry(&digest("a")).is_some_and(|entry| entry.is_pinned));
    assert_eq!(index.entry(&digest("b")), None);
    assert_eq!(totals(&index), (40, 2));
    index.change(Change::Unpinned(repository, reference)).await.unwrap();
    index.change(Change::Evicted(vec![digest("a")])).await.unwrap();
    assert_eq!(totals(&index), (30, 1));
}

#[tokio::test]
async fn links_fall_with_their_blob() {
    let (index, _folder) = opened().await;
    let repository: Repository = "docker.io/library/x".parse().unwrap();
    let link = Link { size: 10, is_manifest: true, media_type: "m".to_owned() };
    for text in ["a", "b"] {
        index.change(Change::Linked(repository.clone(), digest(text), link.clone())).await.unwrap();
    }
    assert_eq!(index.link(&repository, &digest("a")), Some(link.clone()));
    assert_eq!(index.link(&"docker.io/library/y".parse().unwrap(), &digest("a")), None);
    index.change(Change::Removed(vec![digest("a")])).await.unwrap();
    assert_eq!(index.link(&repository, &digest("a")), None);
    assert_eq!(index.link(&repository, &digest("b")), Some(link));
}

#[tokio::test]
async fn names_survive_and_a_kill_is_noticed() {
    let (index, folder) = opened().await;
    let stamp = Stamp {
        digest: digest("a"),
        size: 10,
        media_type: "m".to_owned(),
        since: time(5),
        confirmed: time(6),
    };
    for name in ["docker.io/a", "docker.io/a/b", "ghcr.io/c"] {
        let repository: Repository = name.parse().unwrap();
        for tag in ["x", "y"] {
            let name = Name::Tag(tag.parse().unwrap());
            index.change(Change::Named(repository.clone(), name, stamp.clone())).await.unwrap();
        }
    }
    assert_eq!(index.repositories(), ["docker.io/a", "docker.io/a/b", "ghcr.io/c"]);
    drop(index);
    let index = reopened(&folder);
    let (repository, name) = ("ghcr.io/c".parse().unwrap(), Name::Tag("x".parse().unwrap()));
    assert_eq!(index.name(&repository, &name), Some(stamp));
    index.change(Change::Unnamed(repository.clone(), name.clone())).await.unwrap();
    assert_eq!(index.name(&repository, &name), None);
}

#[tokio::test]
async fn what_came_or_went_at_the_end_is_settled_at_the_next_start() {
    let (index, folder) = opened().await;
    index.change(Change::Removed(vec![digest("a"), digest("b")])).await.unwrap();
    for text in ["d", "e"] {
        index.change(Change::Coming(digest(text))).await.unwrap();
    }
    drop(index);
    // The files of one that went and of one that came are there.
    let files = [(digest("a"), entry(10, 1)), (digest("d"), entry(40, 2))];
    let find = |wanted: &Digest| files.iter().find(|(it, _)| it == wanted).map(|(_, found)| *found);
    let path = folder.path().join("index");
    let index = Index::open(&path, find).unwrap();
    assert_eq!(totals(&index), (30 + 10 + 40, 3));
    assert!(index.entry(&digest("b")).is_none() && index.entry(&digest("e")).is_none());
    drop(index);
    let index = Index::open(&path, |_| panic!("nothing is left to be settled")).unwrap();
    assert!(index.entry(&digest("d")).is_some());
}

/// A disk that takes no writes: what is known is served on, and changes are taken again when it does.
#[tokio::test]
async fn a_disk_that_takes_no_writes_is_read() {
    let (index, _folder) = opened().await;
    index.shelf.fail_writes(true);
    let change = || Change::Added(digest("d"), entry(40, 4));
    assert!(matches!(index.change(change()).await, Err(Error::Io { .. })));
    for _ in 0..3 {
        assert!(index.change(change()).await.is_err());
        assert_eq!(index.entry(&digest("a")), Some(entry(10, 3)));
        assert_eq!((index.entry(&digest("d")), totals(&index).1), (None, 3));
    }
    index.shelf.fail_writes(false);
    while index.change(change()).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!((index.entry(&digest("d")), totals(&index).1), (Some(entry(40, 4)), 4));
}

/// More than fits into a page, several times over.
const LINKS: u64 = 500;

#[tokio::test]
async fn a_damaged_index_is_made_anew_also_in_the_midst() {
    for length in [0, 3, 5_000, 40_000] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("index"), vec![7; length]).unwrap();
        let index = reopened(&folder);
        assert!(!index.totals().sums().is_whole, "{length}");
        index.change(Change::Added(digest("a"), entry(1, 1))).await.unwrap();
        index.change(Change::Whole).await.unwrap();
        assert!(index.totals().sums().is_whole);
    }
    let folder = tempfile::tempdir().unwrap();
    let index = reopened(&folder);
    let name = |n: u64| format!("docker.io/library/{n}").parse::<Repository>().unwrap();
    let linked = (0..LINKS).map(|n| {
        let link = Link { size: n, is_manifest: false, media_type: "m".repeat(1_000) };
        index.change(Change::Linked(name(n), digest(&n.to_string()), link))
    });
    futures_util::future::join_all(linked).await;
    drop(index);
    let path = folder.path().join("index");
    let length = std::fs::metadata(&path).unwrap().len();
    let index = reopened(&folder);
    // All but what is needed to open it.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xAA; length as usize - 8192], 8192).unwrap();
    let known = (0..LINKS).filter(|n| index.link(&name(*n), &digest(&n.to_string())).is_some());
    assert!((known.count() as u64) < LINKS);
    index.replaced().await;
    assert!(!index.totals().sums().is_whole);
    index.change(Change::Added(digest("a"), entry(1, 1))).await.unwrap();
    assert_eq!(index.entry(&digest("a")), Some(entry(1, 1)));
}

/// An index that was closed, with `text` in it made into what is no text: redb panics over that.
async fn damaged(text: &str, changes: Vec<Change>) -> (PathBuf, tempfile::TempDir) {
    let (index, folder) = opened().await;
    for change in changes {
        index.change(change).await.unwrap();
    }
    drop(index);
    let path = folder.path().join("index");
    let mut file = std::fs::read(&path).unwrap();
    let places: Vec<_> =
        (0..file.len() - text.len()).filter(|&at| file[at..].starts_with(text.as_bytes())).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|&at| file[at] = 0xff);
    std::fs::write(&path, file).unwrap();
    (path, folder)
}

#[tokio::test]
async fn redb_panics_at_the_opening_and_the_index_is_made_anew() {
    let (path, folder) = damaged("names", Vec::new()).await;
    let index = reopened(&folder);
    assert_eq!(totals(&index), (0, 0));
    assert!(!index.totals().sums().is_whole && path.with_extension("damaged").exists());
}

#[tokio::test]
async fn redb_panics_later_and_a_new_index_takes_its_place() {
    let repository: Repository = "docker.io/library/x".parse().unwrap();
    let link = Link { size: 10, is_manifest: true, media_type: "text/damaged".to_owned() };
    let linked = || Change::Linked(repository.clone(), digest("a"), link.clone());
    for reads in [true, false] {
        let (path, folder) = damaged("text/damaged", vec![linked()]).await;
        let index = reopened(&folder);
        if reads {
            assert_eq!(index.link(&repository, &digest("a")), None, "a read is no more than in vain");
        } else {
            assert!(matches!(index.change(linked()).await, Err(Error::Index(_))));
        }
        index.replaced().await;
        assert!(path.with_extension("damaged").exists());
        index.change(linked()).await.unwrap();
        assert_eq!(index.link(&repository, &digest("a")), Some(link.clone()));
    }
}
