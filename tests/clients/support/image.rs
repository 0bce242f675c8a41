//! The images that are pulled, built as skopeo's `dir:` layouts and pushed into a registry's storage.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files::sha256_of;
use super::layer::{self, GZIP, Layer, Witness};
use super::process::{client, run};
use super::servers::Upstream;
use super::shapes::{self, Shapes};
use crate::fakes::images::{Algorithm, OCI_INDEX};

/// What a test knows about an image that it pulls.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Image {
    /// As at the registry: `library/one`. The tag is always `1`.
    pub(crate) repository: String,
    /// Of what the tag points at: a manifest or an index.
    pub(crate) digest: String,
    pub(crate) platforms: Vec<Platform>,
    /// Clients that take it from no registry, by the names of their modules here.
    pub(crate) not_for: Vec<String>,
}

/// One image manifest and what it names.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) manifest: String,
    pub(crate) manifest_size: usize,
    pub(crate) config: String,
    /// What Docker and podman call it: the sha256 of the configuration, whatever names that.
    pub(crate) id: String,
    pub(crate) layers: Vec<Layer>,
    pub(crate) witness: Witness,
}

impl Image {
    /// As a user writes it.
    pub(crate) fn reference(&self) -> String {
        format!("docker.io/{}:1", self.repository)
    }

    /// The same for whoever wants these very bytes.
    pub(crate) fn exact_reference(&self) -> String {
        format!("docker.io/{}@{}", self.repository, self.digest)
    }

    /// The hash that names it.
    pub(crate) fn algorithm(&self) -> Algorithm {
        algorithm_of(&self.digest)
    }

    /// Whether `client`, the name of its module here, takes such an image at all.
    pub(crate) fn is_for(&self, client: &str) -> bool {
        !self.not_for.iter().any(|other| other == client)
    }

    /// The platform that a client on this machine picks.
    pub(crate) fn native(&self) -> &Platform {
        self.find_native().unwrap()
    }

    /// Whether there is one: an artifact has none.
    pub(crate) fn is_native(&self) -> bool {
        self.find_native().is_some()
    }

    fn find_native(&self) -> Option<&Platform> {
        self.platforms.iter().find(|platform| platform.architecture == *NATIVE)
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
pub(crate) static NATIVE: LazyLock<String> = LazyLock::new(|| {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
});

/// The images, and the storage of a registry that holds them; and others that no such registry would take.
pub(crate) struct Images {
    pub(crate) all: Vec<Image>,
    pub(crate) storage: PathBuf,
    pub(crate) shapes: Shapes,
    /// The parts of those, by their digests.
    pub(crate) parts: PathBuf,
}

/// Built once and kept below the target directory: packing 100 MB takes longer than pulling it.
pub(crate) static IMAGES: LazyLock<Images> = LazyLock::new(|| {
    let sources = [include_str!("image.rs"), include_str!("layer.rs"), include_str!("shapes.rs")].concat();
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
    let (all, shapes) = serde_json::from_slice(&fs::read(kept.join("images.json")).unwrap()).unwrap();
    Images { all, storage: kept.join("storage"), shapes, parts: kept.join("parts") }
});

/// Writes `storage`, `parts` and `images.json` into `dir`.
fn build(dir: &Path) {
    let work = tempfile::tempdir_in(dir).unwrap();
    let storage = dir.join("storage");
    let registry = Upstream::start(work.path(), &storage, false);
    let all: Vec<Image> = [one, many_platforms, many_layers, root_fs]
        .into_iter()
        .map(|make| {
            let layout = tempfile::tempdir_in(work.path()).unwrap();
            let image = make(layout.path());
            lay_out(layout.path(), &image);
            fs::write(layout.path().join("version"), "Directory Transport Version: 1.1\n").unwrap();
            run(client("/usr/bin/skopeo", work.path())
                .args(["--insecure-policy", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false"])
                .arg(format!("dir:{}", layout.path().display()))
                .arg(format!("docker://127.0.0.1:{}/{}:1", registry.port, image.repository)));
            image
        })
        .collect();
    registry.stop();
    let parts = dir.join("parts");
    fs::create_dir(&parts).unwrap();
    let shapes = shapes::build(&parts);
    fs::write(dir.join("images.json"), serde_json::to_vec_pretty(&(all, shapes)).unwrap()).unwrap();
}

/// Gives manifests the names that a `dir:` layout has for them.
fn lay_out(dir: &Path, image: &Image) {
    for digest in image.manifests() {
        let hex = hex(digest);
        let name =
            if digest == image.digest { "manifest.json".to_owned() } else { format!("{hex}.manifest.json") };
        fs::rename(dir.join(hex), dir.join(name)).unwrap();
    }
}

/// One layer, Docker's media types.
fn one(out: &Path) -> Image {
    let bytes = layer::noise(1, 300_000);
    let witness = layer::witness("data/one", &bytes);
    let layer = layer::of_files(out, &GZIP, &[("data/one".to_owned(), bytes)]);
    let platform = platform(out, &DOCKER, &NATIVE, vec![layer], witness);
    single("library/one", platform)
}

/// An OCI index over three platforms, each with its own layer beside one that all share.
fn many_platforms(out: &Path) -> Image {
    let shared = layer::of_files(out, &GZIP, &[("shared".to_owned(), layer::noise(2, 100_000))]);
    let platforms: Vec<_> = ["amd64", "arm64", "s390x"]
        .into_iter()
        .zip(3..)
        .map(|(architecture, seed)| {
            let bytes = layer::noise(seed, 50_000);
            let witness = layer::witness("own", &bytes);
            let own = layer::of_files(out, &GZIP, &[("own".to_owned(), bytes)]);
            platform(out, &OCI, architecture, vec![shared.clone(), own], witness)
        })
        .collect();
    index(out, OCI_INDEX, "library/platforms", platforms)
}

/// Twenty OCI layers; each overwrites one file of the layer below, so their order shows.
fn many_layers(out: &Path) -> Image {
    let mut top = Vec::new();
    let layers = (100..120)
        .map(|seed| {
            top = layer::noise(seed, 20_000);
            let files =
                [("top".to_owned(), top.clone()), (format!("layers/{seed}"), layer::noise(seed * 7, 80_000))];
            layer::of_files(out, &GZIP, &files)
        })
        .collect();
    let witness = layer::witness("top", &top);
    let platform = platform(out, &OCI, &NATIVE, layers, witness);
    single("library/layers", platform)
}

/// A real root file system in one layer of more than 100 MB, Docker's media types.
fn root_fs(out: &Path) -> Image {
    let (layer, witness) = layer::of_root_fs(out);
    let platform = platform(out, &DOCKER, &NATIVE, vec![layer], witness);
    single("library/rootfs", platform)
}

/// The media types of one image manifest.
pub(crate) struct MediaTypes {
    pub(crate) manifest: &'static str,
    pub(crate) config: &'static str,
    pub(crate) layer: &'static str,
}

pub(crate) const DOCKER: MediaTypes = MediaTypes {
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};

pub(crate) const OCI: MediaTypes = MediaTypes {
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};

/// Writes configuration and manifest under their digests, by the algorithm of the layers'.
pub(crate) fn platform(
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
    let algorithm = layers.last().map_or(Algorithm::Sha256, |layer| algorithm_of(&layer.digest));
    let id = Algorithm::Sha256.digest(&serde_json::to_vec(&config).unwrap());
    let (config, config_size) = put(out, algorithm, &config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": types.manifest,
        "config": { "mediaType": types.config, "digest": config, "size": config_size },
        "layers": layers.iter()
            .map(|l| json!({ "mediaType": types.layer, "digest": l.digest, "size": l.size }))
            .collect::<Vec<_>>(),
    });
    let (manifest, manifest_size) = put(out, algorithm, &manifest);
    Platform { architecture: architecture.to_owned(), manifest, manifest_size, config, id, layers, witness }
}

/// An image without an index.
pub(crate) fn single(repository: &str, platform: Platform) -> Image {
    let digest = platform.manifest.clone();
    Image { repository: repository.to_owned(), digest, platforms: vec![platform], not_for: vec![] }
}

/// An image of many, under an index or a list of this type.
pub(crate) fn index(out: &Path, media_type: &str, repository: &str, platforms: Vec<Platform>) -> Image {
    let entries: Vec<Value> = platforms
        .iter()
        .map(|platform| {
            let manifest = fs::read(out.join(hex(&platform.manifest))).unwrap();
            let manifest: Value = serde_json::from_slice(&manifest).unwrap();
            json!({
                "mediaType": manifest["mediaType"],
                "digest": platform.manifest,
                "size": platform.manifest_size,
                "platform": { "os": "linux", "architecture": platform.architecture },
            })
        })
        .collect();
    let (digest, _) = put(
        out,
        Algorithm::Sha256,
        &json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries }),
    );
    Image { repository: repository.to_owned(), digest, platforms, not_for: vec![] }
}

/// Writes a document under the hash that names it; gives its digest and size.
pub(crate) fn put(out: &Path, algorithm: Algorithm, document: &Value) -> (String, usize) {
    let bytes = serde_json::to_vec(document).unwrap();
    let digest = algorithm.digest(&bytes);
    fs::write(out.join(hex(&digest)), &bytes).unwrap();
    (digest, bytes.len())
}

fn algorithm_of(digest: &str) -> Algorithm {
    if digest.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
}

/// A digest without its algorithm: the name of a file here.
pub(crate) fn hex(digest: &str) -> &str {
    digest.split_once(':').unwrap().1
}
