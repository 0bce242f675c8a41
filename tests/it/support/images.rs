//! Images of a chosen shape, the same bytes for the same seed on every machine.
//!
//! Nothing here knows a registry: an [`Image`] is a list of blobs and a list of manifests, and a
//! fake registry is what it is pushed to. Layers are random bytes, not tar files: no mirror looks inside.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an OCI layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Media type of the empty config of an artifact.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Media type of a Docker v2 schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of a Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Media type of a Docker layer.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Bytes under the digest that names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…` or `sha512:…`.
    pub digest: String,
    /// The content.
    pub bytes: Bytes,
    /// What a descriptor says it is; a manifest is served with it as its Content-Type.
    pub media_type: String,
}

/// A whole image: every manifest and every blob that a pull of its top needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Children first, the top last.
    pub manifests: Vec<Blob>,
    /// Configs and layers, each once.
    pub blobs: Vec<Blob>,
    /// What a tag points at.
    pub top: Blob,
}

/// The hash that names an image's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// What everybody uses.
    Sha256,
    /// What the specification allows too.
    Sha512,
}

/// The media types of one family of images.
struct Family {
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
}

const OCI: Family = Family { manifest: OCI_MANIFEST, config: OCI_CONFIG, layer: OCI_LAYER };
const ZSTD: Family = Family { layer: OCI_ZSTD_LAYER, ..OCI };
const DOCKER: Family = Family { manifest: DOCKER_MANIFEST, config: DOCKER_CONFIG, layer: DOCKER_LAYER };

/// Platforms given to the children of an index, in order.
const PLATFORMS: [(&str, &str); 6] = [
    ("linux", "amd64"),
    ("linux", "arm64"),
    ("linux", "arm"),
    ("linux", "s390x"),
    ("linux", "ppc64le"),
    ("windows", "amd64"),
];

impl Blob {
    /// Names `bytes` by their sha256.
    pub fn new(bytes: impl Into<Bytes>, media_type: &str) -> Self {
        Self::named(Algorithm::Sha256, bytes, media_type)
    }

    /// Names `bytes` by the given hash.
    pub fn named(algorithm: Algorithm, bytes: impl Into<Bytes>, media_type: &str) -> Self {
        let bytes = bytes.into();
        Self { digest: algorithm.digest(&bytes), bytes, media_type: media_type.to_owned() }
    }

    /// A layer of `len` random bytes.
    pub fn random(seed: u64, len: usize) -> Self {
        Self::new(random_bytes(seed, len), OCI_LAYER)
    }

    /// The descriptor that a manifest holds for it.
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Image {
    /// An OCI image with one layer of each size; a size of 0 makes the empty layer.
    pub fn layers(seed: u64, sizes: &[usize]) -> Self {
        Self::build(Algorithm::Sha256, &OCI, seed, sizes)
    }

    /// The same with Docker's v2 schema 2 media types.
    pub fn docker(seed: u64, sizes: &[usize]) -> Self {
        Self::build(Algorithm::Sha256, &DOCKER, seed, sizes)
    }

    /// An OCI image whose layers say that they are compressed by zstd. A mirror takes their word for it.
    pub fn zstd(seed: u64, sizes: &[usize]) -> Self {
        Self::build(Algorithm::Sha256, &ZSTD, seed, sizes)
    }

    /// An OCI image in which sha512 names the manifest, the config and the layers.
    pub fn layers_sha512(seed: u64, sizes: &[usize]) -> Self {
        Self::build(Algorithm::Sha512, &OCI, seed, sizes)
    }

    /// An OCI index over images, the first for linux/amd64, the second for linux/arm64 and so on.
    pub fn index(children: Vec<Image>) -> Self {
        Self::gather(OCI_INDEX, children)
    }

    /// A Docker manifest list over images.
    pub fn docker_list(children: Vec<Image>) -> Self {
        Self::gather(DOCKER_LIST, children)
    }

    /// An index of two platforms with one layer of each size, the shape of most public images.
    pub fn multi_platform(seed: u64, sizes: &[usize]) -> Self {
        Self::index(vec![Self::layers(seed, sizes), Self::layers(seed ^ 0xA4A4, sizes)])
    }

    /// An artifact that refers to `subject`: a signature, an SBOM.
    pub fn artifact(subject: &Blob, artifact_type: &str) -> Self {
        let config = Blob::new("{}", OCI_EMPTY);
        let payload = Blob::new(format!("{artifact_type} of {}", subject.digest), artifact_type);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": config.descriptor(),
            "layers": [payload.descriptor()],
            "subject": subject.descriptor(),
            "annotations": { "org.opencontainers.image.created": "2026-01-01T00:00:00Z" },
        });
        Self::topped(Blob::new(encode(&manifest), OCI_MANIFEST), vec![], vec![config, payload])
    }

    /// An image whose manifest is padded to `len` bytes by an annotation.
    pub fn huge_manifest(seed: u64, len: usize) -> Self {
        let image = Self::layers(seed, &[100]);
        let mut manifest: Value = serde_json::from_slice(&image.top.bytes).expect("a manifest is JSON");
        manifest["annotations"] = json!({ "padding": "" });
        let bare = encode(&manifest).len();
        manifest["annotations"]["padding"] = Value::String("x".repeat(len.saturating_sub(bare)));
        Self::topped(Blob::new(encode(&manifest), OCI_MANIFEST), vec![], image.blobs)
    }

    /// The layers in order, that is the blobs without the config; of an index, those of every child.
    pub fn layer_blobs(&self) -> Vec<Blob> {
        let configs = [OCI_CONFIG, DOCKER_CONFIG, OCI_EMPTY];
        self.blobs.iter().filter(|blob| !configs.contains(&blob.media_type.as_str())).cloned().collect()
    }

    /// The digest of the top manifest.
    pub fn digest(&self) -> &str {
        &self.top.digest
    }

    fn build(algorithm: Algorithm, family: &Family, seed: u64, sizes: &[usize]) -> Self {
        let layers: Vec<Blob> = sizes
            .iter()
            .enumerate()
            .map(|(n, &len)| {
                let bytes = random_bytes(seed.wrapping_mul(1000).wrapping_add(n as u64), len);
                Blob::named(algorithm, bytes, family.layer)
            })
            .collect();
        let image_config = json!({
            "architecture": "amd64",
            "os": "linux",
            "author": format!("seed {seed}"),
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| &l.digest).collect::<Vec<_>>() },
        });
        let config = Blob::named(algorithm, encode(&image_config), family.config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": family.manifest,
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let top = Blob::named(algorithm, encode(&manifest), family.manifest);
        Self::topped(top, vec![], std::iter::once(config).chain(layers).collect())
    }

    fn gather(media_type: &str, children: Vec<Image>) -> Self {
        let mut entries = Vec::new();
        let mut manifests = Vec::new();
        let mut blobs = Vec::new();
        for (n, child) in children.into_iter().enumerate() {
            let (os, architecture) = PLATFORMS[n % PLATFORMS.len()];
            let mut entry = child.top.descriptor();
            entry["platform"] = json!({ "os": os, "architecture": architecture });
            entries.push(entry);
            manifests.extend(child.manifests);
            blobs.extend(child.blobs);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
        Self::topped(Blob::new(encode(&index), media_type), manifests, blobs)
    }

    fn topped(top: Blob, mut manifests: Vec<Blob>, blobs: Vec<Blob>) -> Self {
        manifests.push(top.clone());
        Self { manifests: distinct(manifests), blobs: distinct(blobs), top }
    }
}

impl Algorithm {
    /// The digest of `bytes`, prefix included.
    pub fn digest(self, bytes: &[u8]) -> String {
        match self {
            Self::Sha256 => format!("sha256:{}", hex(&Sha256::digest(bytes))),
            Self::Sha512 => format!("sha512:{}", hex(&Sha512::digest(bytes))),
        }
    }
}

/// `sha256:…` of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    Algorithm::Sha256.digest(bytes)
}

/// `sha512:…` of `bytes`.
pub fn sha512(bytes: &[u8]) -> String {
    Algorithm::Sha512.digest(bytes)
}

/// Whether `bytes` are what `digest` names.
pub fn is_digest_of(digest: &str, bytes: &[u8]) -> bool {
    if digest.starts_with("sha512:") { sha512(bytes) == digest } else { sha256(bytes) == digest }
}

/// `len` bytes that no compressor shrinks, always the same for a seed (splitmix64).
pub fn random_bytes(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

fn encode(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).expect("a JSON value can be written")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Children may share layers: a registry holds them once.
fn distinct(blobs: Vec<Blob>) -> Vec<Blob> {
    let mut seen = std::collections::HashSet::new();
    blobs.into_iter().filter(|blob| seen.insert(blob.digest.clone())).collect()
}
