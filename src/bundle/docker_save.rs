//! What `docker save` wrote before it wrote OCI layouts too, and what podman and skopeo call a docker-archive.
//!
//! ```text
//! manifest.json             for each image its config, its names, and its layers from the first one up
//! <hex>.json                a config, which names each layer by the hash of its tar
//! <hex>/layer.tar, <hex>.tar   the layers, not compressed; one that is there already may be a link to it
//! ```
//!
//! There is no manifest of the kind that registries have: one is made, as a push would, of the very files.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;

use super::input::Input;
use super::reading::LARGEST_MANIFEST;
use super::{Carried, Error};
use crate::oci::{Algorithm, DOCKER_MANIFEST, Digest, ImageReference};

/// The file that says what is in there.
pub(super) const MANIFEST: &str = "manifest.json";

const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Not compressed.
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// The images, and where their content is.
#[derive(Default)]
pub(super) struct Archive {
    pub(super) images: Vec<Carried>,
    pub(super) unnamed: Vec<Digest>,
    pub(super) contents: HashMap<Digest, Content>,
}

/// Where a blob is that has no file of its own name.
pub(super) enum Content {
    /// It was made here.
    Made(Vec<u8>),
    /// In the file of this name.
    File(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// Reads what there is, but for the layers. An image without a name gets `name`, where it is the only one.
pub(super) fn read(input: &Input, list: &[u8], name: Option<&ImageReference>) -> Result<Archive, Error> {
    let broken = |reason: String| Error::broken(input.path(), reason);
    let rows: Vec<Row> = serde_json::from_slice(list)
        .map_err(|error| broken(format!("{MANIFEST} cannot be read: {error}")))?;
    let mut archive = Archive::default();
    let is_only = rows.len() == 1;
    for row in rows {
        let (digest, size) = archive.make(input, &row)?;
        let tags = row.repo_tags.unwrap_or_default();
        let given = name.filter(|_| is_only && tags.is_empty()).cloned();
        let names =
            tags.iter().map(|tag| tag.parse().map_err(|fault| broken(format!("{MANIFEST}: {fault}"))));
        let names: Vec<ImageReference> = names.collect::<Result<_, _>>()?;
        let before = archive.images.len();
        archive.images.extend(names.into_iter().chain(given).map(|image| Carried {
            image,
            digest,
            media_type: DOCKER_MANIFEST.to_owned(),
            size,
        }));
        if archive.images.len() == before {
            archive.unnamed.push(digest);
        }
    }
    Ok(archive)
}

impl Archive {
    /// Makes the manifest of an image; its digest and its size.
    fn make(&mut self, input: &Input, row: &Row) -> Result<(Digest, u64), Error> {
        let broken = |reason: String| Error::broken(input.path(), reason);
        let missing =
            |name: &str| broken(format!("{name} is missing; the archive is not whole, copy it again"));
        let bytes = input.whole(&row.config, LARGEST_MANIFEST)?.ok_or_else(|| missing(&row.config))?;
        let config: Config = serde_json::from_slice(&bytes)
            .map_err(|error| broken(format!("{} is no config of an image: {error}", row.config)))?;
        let (layers, ids) =
            (row.layers.as_deref().unwrap_or_default(), config.rootfs.diff_ids.unwrap_or_default());
        if layers.len() != ids.len() {
            let (layers, ids) = (layers.len(), ids.len());
            return Err(broken(format!("{MANIFEST} has {layers} layers and {} has {ids}", row.config)));
        }
        let mut described = Vec::new();
        for (name, id) in layers.iter().zip(ids) {
            let digest: Digest = id.parse().map_err(|fault| broken(format!("{}: {fault}", row.config)))?;
            let size = input.size(name)?.ok_or_else(|| missing(name))?;
            described.push(json!({ "mediaType": LAYER, "size": size, "digest": digest.to_string() }));
            self.contents.insert(digest, Content::File(name.clone()));
        }
        let config = Digest::of(Algorithm::Sha256, &bytes);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": { "mediaType": CONFIG, "size": bytes.len(), "digest": config.to_string() },
            "layers": described,
        });
        let manifest = serde_json::to_vec(&manifest).expect("texts and numbers are JSON");
        let (digest, size) = (Digest::of(Algorithm::Sha256, &manifest), manifest.len() as u64);
        self.contents.insert(config, Content::File(row.config.clone()));
        self.contents.insert(digest, Content::Made(manifest));
        Ok((digest, size))
    }
}
