//! Thirty images of every shape that a registry may hold, for where it matters that none is lost on the way.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::image::{
    DOCKER, Image, Images, MediaTypes, NATIVE, OCI, Platform, hex, index, platform, put, single,
};
use super::layer::{self, GZIP, Layer, Packing};
use crate::fakes::images::{Algorithm, Blob, DOCKER_LIST, OCI_INDEX};
use crate::fakes::registry::FakeRegistry;

const ZSTD: MediaTypes = MediaTypes { layer: "application/vnd.oci.image.layer.v1.tar+zstd", ..OCI };
const CHART: MediaTypes = MediaTypes {
    config: "application/vnd.cncf.helm.config.v1+json",
    layer: "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
    ..OCI
};
const SIGNATURE: MediaTypes = MediaTypes {
    config: "application/vnd.oci.empty.v1+json",
    layer: "application/vnd.dev.cosign.simplesigning.v1+json",
    ..OCI
};

const ZSTD_PACKING: Packing =
    Packing { compressor: &["/usr/bin/zstd", "--quiet", "--stdout"], algorithm: Algorithm::Sha256 };
const SHA512: Packing = Packing { algorithm: Algorithm::Sha512, ..GZIP };

/// The images, and what is no image of its own.
#[derive(Serialize, Deserialize)]
pub(crate) struct Shapes {
    pub(crate) images: Vec<Image>,
    /// Of an image of these, in its repository; without a tag.
    pub(crate) signature: Image,
}

/// Writes all parts into `out`.
pub(super) fn build(out: &Path) -> Shapes {
    let images: Vec<Image> = (0..30).map(|number| shape(out, number)).collect();
    let signature = signature(out, &images[1]);
    Shapes { images, signature }
}

/// One of ten shapes, over and over.
fn shape(out: &Path, number: u64) -> Image {
    let repository = format!("library/shape{number}");
    let of = |types: &MediaTypes, architecture: &str, packing: &Packing, seeds: &[u64]| {
        one_platform(out, types, architecture, packing, seeds)
    };
    let seed = 1000 + 10 * number;
    let native = |types, packing, seeds: &[u64]| of(types, &NATIVE, packing, seeds);
    // Not this machine's.
    let foreign = |types, seed| of(types, "s390x", &GZIP, &[seed]);
    match number % 10 {
        0 => single(&repository, native(&OCI, &GZIP, &[EMPTY, seed, EMPTY])),
        1 => index(out, OCI_INDEX, &repository, vec![native(&OCI, &GZIP, &[seed]), foreign(&OCI, seed + 1)]),
        2 => single(&repository, native(&DOCKER, &GZIP, &[seed, seed + 1])),
        3 => not_for(
            // They hash by sha256 what another hash names.
            &["skopeo", "podman", "containerd"],
            single(&repository, native(&OCI, &SHA512, &[seed, seed + 1])),
        ),
        4 => index(
            out,
            DOCKER_LIST,
            &repository,
            vec![foreign(&DOCKER, seed), native(&DOCKER, &GZIP, &[seed + 1])],
        ),
        // Docker came to zstd after the version of Debian 12.
        5 => not_for(&["docker"], single(&repository, native(&ZSTD, &ZSTD_PACKING, &[seed, seed + 1]))),
        6 => {
            index(out, OCI_INDEX, &repository, vec![foreign(&DOCKER, seed), native(&OCI, &GZIP, &[seed + 1])])
        }
        7 => not_for(&["podman", "docker"], single(&repository, of(&CHART, "unknown", &GZIP, &[seed]))),
        // Layers that three images share.
        8 => single(&repository, native(&OCI, &GZIP, &[1, 2, 3][..1 + number as usize / 10])),
        _ => single(&repository, native(&DOCKER, &GZIP, &[seed, EMPTY])),
    }
}

fn not_for(clients: &[&str], image: Image) -> Image {
    Image { not_for: clients.iter().map(|client| (*client).to_owned()).collect(), ..image }
}

/// For a layer with nothing in it.
const EMPTY: u64 = 0;

/// A layer for each seed; the last that is not empty has the witness.
fn one_platform(
    out: &Path,
    types: &MediaTypes,
    architecture: &str,
    packing: &Packing,
    seeds: &[u64],
) -> Platform {
    let file = |seed: u64| (format!("data/{seed}"), layer::noise(seed, 3_000 + seed as usize % 7 * 5_000));
    let layers: Vec<Layer> = seeds
        .iter()
        .map(|seed| match *seed {
            EMPTY => layer::of_files(out, packing, &[]),
            seed => layer::of_files(out, packing, &[file(seed)]),
        })
        .collect();
    let (path, bytes) = file(*seeds.iter().rfind(|seed| **seed != EMPTY).unwrap());
    platform(out, types, architecture, layers, layer::witness(&path, &bytes))
}

/// A referrer: what a mirror finds only by asking who refers to an image.
fn signature(out: &Path, subject: &Image) -> Image {
    let mut platform = one_platform(out, &SIGNATURE, "unknown", &GZIP, &[9]);
    let plain = fs::read(out.join(hex(&platform.manifest))).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&plain).unwrap();
    fs::remove_file(out.join(hex(&platform.manifest))).unwrap();
    let size = fs::metadata(out.join(hex(&subject.digest))).unwrap().len();
    manifest["artifactType"] = json!(SIGNATURE.layer);
    manifest["subject"] = json!({ "mediaType": OCI_INDEX, "digest": subject.digest, "size": size });
    (platform.manifest, platform.manifest_size) = put(out, Algorithm::Sha256, &manifest);
    single(&subject.repository, platform)
}

impl Images {
    /// Has `registry` hold all shapes.
    pub(crate) fn push_shapes(&self, registry: &FakeRegistry) {
        let read = |digest: &str, media_type: &str| {
            let bytes = fs::read(self.parts.join(hex(digest))).unwrap();
            Blob { digest: digest.to_owned(), bytes: bytes.into(), media_type: media_type.to_owned() }
        };
        for image in self.shapes.images.iter().chain([&self.shapes.signature]) {
            for blob in image.platforms.iter().flat_map(Platform::blobs) {
                registry.put_blob(&image.repository, &read(blob, "application/octet-stream"));
            }
            for digest in image.manifests() {
                let plain = read(digest, "");
                let said: serde_json::Value = serde_json::from_slice(&plain.bytes).unwrap();
                let media_type = said["mediaType"].as_str().unwrap().to_owned();
                registry.put_manifest(&image.repository, &Blob { media_type, ..plain });
            }
        }
        for image in &self.shapes.images {
            registry.tag(&image.repository, "1", &image.digest);
        }
    }
}
