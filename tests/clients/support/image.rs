//! The images that are pulled, built as skopeo's `dir:` layouts and pushed into a registry's storage.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files::sha256_of;
use super::layer::{self, Layer, Witness};
use super::process::{client, run};
use super::servers::Upstream;

/// What a test knows about an image that it pulls.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Image {
    /// As at the registry: `library/one`. The tag is always `1`.
    pub(crate) repository: String,
    /// Of what the tag points at: a manifest or an index.
    pub(crate) digest: String,
    pub(crate) platforms: Vec<Platform>,
}

/// One image manifest and what it names.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Platform {
    architecture: String,
    pub(crate) manifest: String,
    manifest_size: usize,
    pub(crate) config: String,
    pub(crate) layers: Vec<Layer>,
    pub(crate) witness: Witness,
}

impl Image {
    /// As a user writes it.
    pub(crate) fn reference(&self) -> String {
        format!("docker.io/{}:1", self.repository)
    }

    /// The platform that a client on this machine picks.
    pub(crate) fn native(&self) -> &Platform {
        self.platforms.iter().find(|platform| platform.architecture == *NATIVE).unwrap()
    }

    /// Every manifest, the index included.
    pub(crate) fn manifests(&self) -> Vec<&str> {
        let mut all: Vec<_> = self.platforms.iter().map(|platform| platform.manifest.as_str()).collect();
        if !all.contains(&self.digest.as_str()) {
            all.push(&self.digest);
        }
        all
    }
}

impl Platform {
    /// Everything that is fetched as a blob: the configuration and the layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.config).chain(self.layers.iter().map(|layer| &layer.digest)).map(String::as_str)
    }

    /// The hashes of the unpacked layers, lowest first.
    pub(crate) fn diff_ids(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.diff_id.clone()).collect()
    }
}

/// Go's name for this machine.
static NATIVE: LazyLock<String> = LazyLock::new(|| {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
});

/// The images, and the storage of a registry that holds them.
pub(crate) struct Images {
    pub(crate) all: Vec<Image>,
    pub(crate) storage: PathBuf,
}

/// Built once and kept below the target directory: packing 100 MB takes longer than pulling it.
pub(crate) static IMAGES: LazyLock<Images> = LazyLock::new(|| {
    let sources = [include_str!("image.rs"), include_str!("layer.rs")].concat();
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kept = parent.join(format!("clients-{}", &sha256_of(sources.as_bytes())[7..23]));
    if !kept.exists() {
        fs::create_dir_all(parent).unwrap();
        let fresh = tempfile::tempdir_in(parent).unwrap();
        build(fresh.path());
        // Complete or absent: when two runs build at once, the first to rename wins.
        if fs::rename(fresh.path(), &kept).is_ok() {
            let _ = fresh.keep();
        }
    }
    let all = serde_json::from_slice(&fs::read(kept.join("images.json")).unwrap()).unwrap();
    Images { all, storage: kept.join("storage") }
});

/// Writes `storage` and `images.json` into `dir`.
fn build(dir: &Path) {
    let work = tempfile::tempdir_in(dir).unwrap();
    let storage = dir.join("storage");
    let registry = Upstream::start(work.path(), &storage, false);
    let all: Vec<Image> = [one, many_platforms, many_layers, root_fs]
        .into_iter()
        .map(|make| {
            let layout = tempfile::tempdir_in(work.path()).unwrap();
            let image = make(layout.path());
            fs::write(layout.path().join("version"), "Directory Transport Version: 1.1\n").unwrap();
            run(client("/usr/bin/skopeo", work.path())
                .args(["--insecure-policy", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false"])
                .arg(format!("dir:{}", layout.path().display()))
                .arg(format!("docker://127.0.0.1:{}/{}:1", registry.port, image.repository)));
            image
        })
        .collect();
    registry.stop();
    fs::write(dir.join("images.json"), serde_json::to_vec_pretty(&all).unwrap()).unwrap();
}

/// One layer, Docker's media types.
fn one(out: &Path) -> Image {
    let bytes = layer::noise(1, 300_000);
    let witness = layer::witness("data/one", &bytes);
    let layer = layer::of_files(out, &[("data/one".to_owned(), bytes)]);
    let platform = platform(out, &DOCKER, &NATIVE, vec![layer], witness);
    single(out, "library/one", platform)
}

/// An OCI index over three platforms, each with its own layer beside one that all share.
fn many_platforms(out: &Path) -> Image {
    let shared = layer::of_files(out, &[("shared".to_owned(), layer::noise(2, 100_000))]);
    let platforms: Vec<_> = ["amd64", "arm64", "s390x"]
        .into_iter()
        .zip(3..)
        .map(|(architecture, seed)| {
            let bytes = layer::noise(seed, 50_000);
            let witness = layer::witness("own", &bytes);
            let own = layer::of_files(out, &[("own".to_owned(), bytes)]);
            platform(out, &OCI, architecture, vec![shared.clone(), own], witness)
        })
        .collect();
    for platform in &platforms {
        let hex = &platform.manifest["sha256:".len()..];
        fs::rename(out.join(hex), out.join(format!("{hex}.manifest.json"))).unwrap();
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": platforms.iter().map(|platform| json!({
            "mediaType": OCI.manifest,
            "digest": platform.manifest,
            "size": platform.manifest_size,
            "platform": { "os": "linux", "architecture": platform.architecture },
        })).collect::<Vec<_>>(),
    });
    let bytes = serde_json::to_vec(&index).unwrap();
    fs::write(out.join("manifest.json"), &bytes).unwrap();
    Image { repository: "library/platforms".to_owned(), digest: sha256_of(&bytes), platforms }
}

/// Twenty OCI layers; each overwrites one file of the layer below, so their order shows.
fn many_layers(out: &Path) -> Image {
    let mut top = Vec::new();
    let layers = (100..120)
        .map(|seed| {
            top = layer::noise(seed, 20_000);
            let files =
                [("top".to_owned(), top.clone()), (format!("layers/{seed}"), layer::noise(seed * 7, 80_000))];
            layer::of_files(out, &files)
        })
        .collect();
    let witness = layer::witness("top", &top);
    let platform = platform(out, &OCI, &NATIVE, layers, witness);
    single(out, "library/layers", platform)
}

/// A real root file system in one layer of more than 100 MB, Docker's media types.
fn root_fs(out: &Path) -> Image {
    let (layer, witness) = layer::of_root_fs(out);
    let platform = platform(out, &DOCKER, &NATIVE, vec![layer], witness);
    single(out, "library/rootfs", platform)
}

/// The media types of one image manifest.
struct MediaTypes {
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
}

const DOCKER: MediaTypes = MediaTypes {
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};

const OCI: MediaTypes = MediaTypes {
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};

/// Writes configuration and manifest under their digests.
fn platform(
    out: &Path,
    types: &MediaTypes,
    architecture: &str,
    layers: Vec<Layer>,
    witness: Witness,
) -> Platform {
    let created = "2026-01-01T00:00:00Z";
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": { "Cmd": ["/none"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>() },
        "history": layers.iter().map(|_| json!({ "created": created })).collect::<Vec<_>>(),
    });
    let (config, config_size) = put(out, &config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": types.manifest,
        "config": { "mediaType": types.config, "digest": config, "size": config_size },
        "layers": layers.iter()
            .map(|l| json!({ "mediaType": types.layer, "digest": l.digest, "size": l.size }))
            .collect::<Vec<_>>(),
    });
    let (manifest, manifest_size) = put(out, &manifest);
    Platform { architecture: architecture.to_owned(), manifest, manifest_size, config, layers, witness }
}

/// An image without an index: the layout's manifest is the platform's.
fn single(out: &Path, repository: &str, platform: Platform) -> Image {
    fs::rename(out.join(&platform.manifest["sha256:".len()..]), out.join("manifest.json")).unwrap();
    Image { repository: repository.to_owned(), digest: platform.manifest.clone(), platforms: vec![platform] }
}

fn put(out: &Path, document: &Value) -> (String, usize) {
    let bytes = serde_json::to_vec(document).unwrap();
    let digest = sha256_of(&bytes);
    fs::write(out.join(&digest["sha256:".len()..]), &bytes).unwrap();
    (digest, bytes.len())
}
