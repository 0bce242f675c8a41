use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;

use serde_json::{Value, json};

use super::{CHECKSUMS, IMAGE_NAME, INDEX, INVENTORY, LAYOUT, REF_NAME, SIGNATURE, Signer, blob};
use super::{Error, Output};
use crate::oci::{Algorithm, Digest, ImageReference, OCI_INDEX, Reference};

/// An image in a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// By what it is pulled.
    pub image: ImageReference,
    /// What that means.
    pub digest: Digest,
    /// The type of that manifest.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What goes into a bundle.
#[derive(Debug, Default)]
pub struct Plan {
    images: Vec<Carried>,
    /// All that the images consist of, and the size of each.
    parts: BTreeMap<Digest, u64>,
    /// What of that is left out.
    left_out: BTreeSet<Digest>,
}

impl Plan {
    /// Carries an image too, unless it is there already.
    pub fn image(&mut self, carried: Carried) {
        if !self.images.contains(&carried) {
            self.images.push(carried);
        }
    }

    /// Some image consists of this. A blob that the other side has, going by `have`, is left out; a manifest never is,
    /// since it says what else belongs to an image.
    pub fn part(&mut self, digest: Digest, size: u64, is_manifest: bool, have: &HashSet<Digest>) {
        self.parts.insert(digest, size);
        if is_manifest {
            self.left_out.remove(&digest);
        } else if have.contains(&digest) {
            self.left_out.insert(digest);
        }
    }

    /// The images, in the order in which they came.
    pub fn images(&self) -> &[Carried] {
        &self.images
    }

    /// What is carried, and its size.
    pub fn carried(&self) -> impl Iterator<Item = (Digest, u64)> + '_ {
        let parts = self.parts.iter().filter(|(digest, _)| !self.left_out.contains(digest));
        parts.map(|(digest, size)| (*digest, *size))
    }

    /// How many parts are left out, and how many bytes that saves.
    pub fn left_out(&self) -> (usize, u64) {
        (self.left_out.len(), self.left_out.iter().map(|digest| self.parts[digest]).sum())
    }

    /// Writes all that comes before the blobs.
    ///
    /// # Errors
    /// The disk's; a key that cannot sign.
    pub fn begin(&self, output: &mut Output, signer: Option<&Signer>) -> Result<(), Error> {
        let layout = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
        let index = self.index();
        let inventory = self.parts.keys().fold(String::new(), |mut text, digest| {
            writeln!(text, "{digest}").expect("a String takes every text");
            text
        });
        let files = [(LAYOUT, layout), (INDEX, index), (INVENTORY, inventory)];
        let checksums = self.checksums(&files);
        for (name, text) in &files {
            output.text(name, text)?;
        }
        output.text(CHECKSUMS, &checksums)?;
        match signer {
            Some(signer) => output.text(SIGNATURE, &signer.sign(&checksums)?),
            None => Ok(()),
        }
    }

    fn index(&self) -> String {
        let manifests: Vec<Value> = self.images.iter().map(descriptor).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        format!("{index:#}\n")
    }

    /// In the form that names the algorithm.
    fn checksums(&self, files: &[(&str, String)]) -> String {
        let line = |digest: &Digest, name: &str| {
            let algorithm = digest.algorithm().as_str().to_uppercase();
            format!("{algorithm} ({name}) = {}\n", digest.hex())
        };
        let own =
            files.iter().map(|(name, text)| line(&Digest::of(Algorithm::Sha256, text.as_bytes()), name));
        let blobs = self.carried().map(|(digest, _)| line(&digest, &blob(&digest)));
        own.chain(blobs).collect()
    }
}

fn descriptor(carried: &Carried) -> Value {
    let Carried { image, digest, media_type, size } = carried;
    let mut annotations = json!({ IMAGE_NAME: image.to_string() });
    // What has no tag is found by its digest; under a name others would take it for an image to run.
    if matches!(image.reference, Reference::Tag(_)) {
        annotations[REF_NAME] = json!(image.to_string());
    }
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size, "annotations": annotations })
}
