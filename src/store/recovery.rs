//! What happens at a start: the index is opened or made anew, partial files are counted, and after a kill the
//! tree is looked through for blobs that the index does not know.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::index::{Index, millis};
use super::tree::Tree;
use super::{Inner, OpenError};
use crate::lifecycle::{self, Lifecycle};
use crate::oci::{Algorithm, Digest};

/// A partial download that nobody took up for so long is dropped at a start.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// So many found blobs are indexed at once. One by one a million of them would take hours.
const TOGETHER: usize = 256;

/// Opens the index. One that cannot be read is put aside and made anew: blobs are found in the tree, names
/// and links are learned again, and only the order of use is lost.
pub(super) fn open_index(tree: &Tree) -> Result<(Index, bool), OpenError> {
    let path = tree.index();
    let failed =
        |error: super::Error| OpenError::Index { path: tree.root().to_owned(), reason: error.to_string() };
    // Without an index there may still be blobs: a directory that lost it is looked through as after a kill.
    let existed = path.exists();
    match Index::open(&path) {
        Ok((index, was_clean)) => Ok((index, was_clean && (existed || is_empty(tree)))),
        Err(error) => {
            let aside = path.with_extension("damaged");
            tracing::error!(%error, kept_as = %aside.display(), "the cache's index is damaged; it is rebuilt from the blobs");
            let _ = fs::rename(&path, aside);
            Index::open(&path).map(|(index, _)| (index, false)).map_err(failed)
        }
    }
}

fn is_empty(tree: &Tree) -> bool {
    let holds_files = |folder: &Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    !Algorithm::ALL.iter().any(|algorithm| {
        let folders = fs::read_dir(tree.algorithm(*algorithm)).into_iter().flatten().flatten();
        folders.map(|folder| folder.path()).any(|folder| holds_files(&folder))
    })
}

/// Counts the partial downloads of the last process, and removes what is old or nameless.
pub(super) fn take_up_partials(inner: &Arc<Inner>) {
    let oldest = millis(lifecycle::now() - LEFTOVER_AGE);
    for file in fs::read_dir(inner.tree.ingest()).into_iter().flatten().flatten() {
        let digest = file.file_name().to_str().and_then(Tree::parse_partial);
        let metadata = file.metadata().ok();
        let since = metadata.as_ref().and_then(|data| data.modified().ok()).map_or(0, millis);
        let length = metadata.map_or(0, |data| data.len());
        let room = (since >= oldest && length > 0).then(|| inner.space.take(length).ok()).flatten();
        match (digest, room) {
            (Some(digest), Some(room)) => inner.leftovers.keep_since(digest, room, since),
            _ => {
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

/// Finds blobs that the index does not know, one folder after the other, while the mirror is serving. A blob
/// that is asked for before this comes to it is found then.
pub(super) async fn adopt_all(inner: Arc<Inner>, life: Lifecycle) {
    let mut found = 0u64;
    for algorithm in Algorithm::ALL {
        for byte in 0..=255u8 {
            if life.is_stopping() {
                return;
            }
            let folder = inner.tree.algorithm(algorithm).join(format!("{byte:02x}"));
            let unknown = {
                let inner = Arc::clone(&inner);
                tokio::task::spawn_blocking(move || unknown_in(&inner, algorithm, &folder)).await
            };
            // Together, so that many share one sync of the index.
            let unknown = stream::iter(unknown.unwrap_or_default());
            let mut adopted = unknown.map(|digest| adopt(&inner, digest)).buffer_unordered(TOGETHER);
            while let Some(is_new) = adopted.next().await {
                found += u64::from(is_new);
            }
        }
    }
    if found > 0 {
        tracing::info!(found, "blobs were found that the index had lost");
    }
}

async fn adopt(inner: &Inner, digest: Digest) -> bool {
    inner.adopt(&digest).await.is_some()
}

fn unknown_in(inner: &Inner, algorithm: Algorithm, folder: &Path) -> Vec<Digest> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    names
        .filter_map(|file| Digest::from_hex(algorithm, file.file_name().to_str()?).ok())
        .filter(|digest| inner.index.entry(digest).is_none())
        .collect()
}
