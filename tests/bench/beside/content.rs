//! What is pulled: blobs of no pattern that can be made up anywhere, and images of them.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use tidelock::oci::{Algorithm, Digest};

/// A blob: one block of noise, over and over.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) length: u64,
    pub(crate) digest: String,
    block: Arc<Vec<u8>>,
}

/// A manifest with its layers and its configuration, in a repository of its own.
#[derive(Clone)]
pub(crate) struct Image {
    /// What it is made of: the seed, how many layers, and how long each is.
    pub(crate) recipe: (u64, u64, u64),
    pub(crate) manifest: Vec<u8>,
    pub(crate) digest: String,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

const BLOCK: usize = 1 << 20;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Blob {
    /// Each `seed` makes another one.
    pub(crate) fn new(seed: u64, length: u64) -> Blob {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        let block: Vec<u8> = noise.take(BLOCK / 8).flatten().collect();
        let mut blob = Blob { length, digest: String::new(), block: Arc::new(block) };
        let mut hasher = Algorithm::Sha256.hasher();
        blob.pieces(0, length, 1 << 20, |piece| {
            hasher.update(piece);
            true
        });
        blob.digest = hasher.finish().to_string();
        blob
    }

    /// Hands over its bytes from `start` to `end` in pieces of at most `most`, as long as `take` wants more.
    pub(crate) fn pieces(&self, start: u64, end: u64, most: u64, mut take: impl FnMut(&[u8]) -> bool) {
        let mut at = start;
        while at < end {
            let within = usize::try_from(at % BLOCK as u64).unwrap();
            let most = usize::try_from((end - at).min(most)).unwrap().min(BLOCK - within);
            if !take(&self.block[within..within + most]) {
                return;
            }
            at += most as u64;
        }
    }

    /// Writes it to a file, and to the disk.
    pub(crate) fn write(&self, path: &Path) {
        let mut file = File::create(path).unwrap();
        self.pieces(0, self.length, 1 << 20, |piece| file.write_all(piece).is_ok());
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().len(), self.length);
    }
}

impl Image {
    /// An image of so many layers of this length; each `seed` makes another one.
    pub(crate) fn new(seed: u64, layers: u64, length: u64) -> Image {
        let recipe = (seed, layers, length);
        let layers: Vec<Blob> = (0..layers).map(|layer| Blob::new(seed * 1000 + layer, length)).collect();
        let config = Blob::new(seed * 1000 + 999, 1500);
        let describe = |blob: &Blob, kind: &str| {
            let media_type = format!("application/vnd.oci.image.{kind}");
            serde_json::json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.length })
        };
        let list = layers.iter().map(|layer| describe(layer, "layer.v1.tar"));
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(&config, "config.v1+json"),
            "layers": list.collect::<Vec<_>>(),
        });
        let manifest = serde_json::to_vec_pretty(&manifest).unwrap();
        let digest = Digest::of(Algorithm::Sha256, &manifest).to_string();
        Image { recipe, manifest, digest, config, layers }
    }

    pub(crate) fn repository(&self) -> String {
        format!("library/bench-{}", self.recipe.0)
    }

    /// Where its manifest is had.
    pub(crate) fn path(&self) -> String {
        format!("/v2/{}/manifests/{}", self.repository(), self.digest)
    }

    /// The same by its tag.
    pub(crate) fn tag_path(&self) -> String {
        format!("/v2/{}/manifests/latest", self.repository())
    }

    /// Where one of its blobs is had.
    pub(crate) fn path_of(&self, blob: &Blob) -> String {
        format!("/v2/{}/blobs/{}", self.repository(), blob.digest)
    }

    /// Everything that a pull fetches beside the manifest.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers.iter().chain([&self.config])
    }
}
