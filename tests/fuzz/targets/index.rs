//! The store over an index file that was damaged: what is read may be anything, but the mirror starts, answers and
//! can be started again.
//!
//! The input is how the file is damaged: whether it was closed in order, how much of it is left, then which byte
//! (counted among those that are not 0) becomes what.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use tidelock::config::{ByteSize, Cache, SizeLimit};
use tidelock::lifecycle::Lifecycle;
use tidelock::oci::{Algorithm, Digest, Repository};
use tidelock::store::{Link, Name, Stamp, Store};
use tidelock::telemetry::Metrics;
use tidelock_fuzz::now;
use tokio::runtime::Runtime;

/// A file as a mirror left it, and where in it something is written.
struct Sound {
    file: Vec<u8>,
    written: Vec<usize>,
}

struct Workshop {
    runtime: Runtime,
    folder: TempDir,
    closed: Sound,
    killed: Sound,
}

static WORKSHOP: LazyLock<Workshop> = LazyLock::new(Workshop::build);

fuzz_target!(
    init: {
        // redb may panic over a damaged file, and the store catches that. Any other panic is a crash.
        std::panic::set_hook(Box::new(|panic| {
            eprintln!("{panic}");
            if !panic.location().is_some_and(|place| place.file().contains("/redb-")) {
                std::process::abort();
            }
        }));
    },
    |data: &[u8]| {
        let Some((head, patches)) = data.split_first_chunk::<3>() else { return };
        let sound = if head[0] % 2 == 0 { &WORKSHOP.closed } else { &WORKSHOP.killed };
        let index = WORKSHOP.folder.path().join("index.redb");
        std::fs::write(&index, sound.damaged([head[1], head[2]], patches)).expect("a file");
        WORKSHOP.runtime.block_on(live(false));
        WORKSHOP.runtime.block_on(live(true));
    }
);

impl Sound {
    fn damaged(&self, cut: [u8; 2], patches: &[u8]) -> Vec<u8> {
        let mut file = self.file.clone();
        for patch in patches.chunks_exact(3) {
            let at = usize::from(u16::from_be_bytes([patch[0], patch[1]])) % self.written.len();
            file[self.written[at]] = patch[2];
        }
        // Mostly whole: 0 takes nothing off.
        let off = usize::from(u16::from_be_bytes(cut)) * file.len() / usize::from(u16::MAX);
        file.truncate(file.len() - off);
        file
    }
}

impl Workshop {
    fn build() -> Workshop {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let index = folder.path().join("index.redb");
        let (killed, closed) = runtime.block_on(async {
            let life = Lifecycle::default();
            let store = open(folder.path(), &life);
            use_it(&store, true).await;
            let killed = Sound::of(&index);
            store.close().await;
            end(store, &life).await;
            (killed, Sound::of(&index))
        });
        Workshop { runtime, folder, closed, killed }
    }
}

impl Sound {
    fn of(path: &Path) -> Sound {
        let file = std::fs::read(path).expect("a file");
        let written = file.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
        Sound { file, written }
    }
}

/// One life of a mirror's store.
async fn live(closes: bool) {
    let life = Lifecycle::default();
    let store = open(WORKSHOP.folder.path(), &life);
    use_it(&store, false).await;
    if closes {
        store.close().await;
    }
    end(store, &life).await;
}

fn open(dir: &Path, life: &Lifecycle) -> Store {
    // So small that room has to be made.
    let (max_size, min_free) = (SizeLimit::Bytes(ByteSize(150)), ByteSize(0));
    let cache = Cache { dir: dir.to_owned(), max_size, min_free, ..Cache::default() };
    Store::open(&cache, life, &Metrics::default()).expect("a damaged index is made anew")
}

async fn end(store: Store, life: &Lifecycle) {
    life.stop();
    life.wait().await;
    drop(store);
}

/// Reads and changes everything there is, and expects it to go well where the file is `sound`.
async fn use_it(store: &Store, sound: bool) {
    let mut outcomes = Vec::new();
    for (text, repository) in [("a", "docker.io/library/a"), ("b", "ghcr.io/b/c"), ("d", "quay.io/d")] {
        let bytes = Bytes::from(text.repeat(60));
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let repository: Repository = repository.parse().expect("a repository");
        let document = store.document(&digest).await;
        assert!(document.is_none_or(|document| document == bytes));
        store.link(&repository, &digest);
        let name = Name::Tag(text.parse().expect("a tag"));
        store.name(&repository, &name);
        store.note(text);
        let (size, media_type) = (bytes.len() as u64, "text/plain".to_owned());
        outcomes.push(store.put_document(digest, bytes).await.err());
        let link = Link { size, is_manifest: true, media_type: media_type.clone() };
        outcomes.push(store.add_link(&repository, digest, link).await.err());
        let stamp = Stamp { digest, size, media_type, since: now(), confirmed: now() };
        outcomes.push(store.set_name(&repository, &name, stamp).await.err());
        outcomes.push(store.remove_name(&repository, &Name::Tags).await.err());
        outcomes.push(store.set_note(text, vec![1, 2, 3]).await.err());
    }
    store.repositories();
    assert!(!sound || outcomes.iter().all(Option::is_none), "{outcomes:?}");
}
