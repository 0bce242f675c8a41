use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use serde::Deserialize;

use super::docker_save::{self, Archive, Content};
use super::input::Input;
use super::{
    CHECKSUMS, Carried, Error, IMAGE_NAME, INDEX, INVENTORY, LAYOUT, REF_NAME, SIGNATURE, Verifier, blob,
};
use crate::oci::{Algorithm, Digest, ImageReference, Manifest};

/// A bundle, any other OCI layout, or an archive of `docker save`, that is read.
pub struct Bundle {
    input: Input,
    images: Vec<Carried>,
    unnamed: Vec<Digest>,
    inventory: Option<HashSet<Digest>>,
    /// Where content is that is not in a file of its name.
    contents: HashMap<Digest, Content>,
}

/// As it stands in `index.json`.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// More than any list is long.
const LARGEST_LIST: u64 = 256 << 20;
/// And any manifest.
pub(super) const LARGEST_MANIFEST: u64 = 32 << 20;

impl Bundle {
    /// Reads what there is, but for the content of blobs. With a `verifier` it must be signed with that key. An image
    /// without a name gets `name`, where it is the only one.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn open(
        path: &Path,
        verifier: Option<&Verifier>,
        name: Option<&ImageReference>,
    ) -> Result<Bundle, Error> {
        let input = Input::open(path)?;
        let checksums = input.whole(CHECKSUMS, LARGEST_LIST)?;
        if let Some(verifier) = verifier {
            let signature = input.whole(SIGNATURE, 1 << 16)?;
            let (Some(checksums), Some(signature)) = (&checksums, signature) else {
                return Err(Error::Signature(format!(
                    "{} is not signed, and a key was given",
                    path.display()
                )));
            };
            verifier.verify(checksums, &String::from_utf8_lossy(&signature))?;
        }
        let broken = |reason: String| Error::broken(path, reason);
        let missing = |what: &str| {
            broken(format!("has no {what}: it is no OCI layout and no archive of `docker save`, or cut off"))
        };
        let layout = input.whole(LAYOUT, 1 << 16)?;
        if layout.is_none() {
            if verifier.is_some() {
                return Err(Error::Signature(format!(
                    "{} is no OCI layout, and nothing else can be signed; a key was given",
                    path.display()
                )));
            }
            let list = input.whole(docker_save::MANIFEST, LARGEST_LIST)?.ok_or_else(|| missing(LAYOUT))?;
            let Archive { images, unnamed, contents } = docker_save::read(&input, &list, name)?;
            return Ok(Bundle { input, images, unnamed, inventory: None, contents });
        }
        let index = input.whole(INDEX, LARGEST_LIST)?.ok_or_else(|| missing(INDEX))?;
        let inventory = input.whole(INVENTORY, LARGEST_LIST)?;
        if let Some(checksums) = &checksums {
            let known = [(LAYOUT, layout.as_ref()), (INDEX, Some(&index)), (INVENTORY, inventory.as_ref())];
            check_lists(&input, checksums, &known)?;
        }
        let inventory = inventory.map(|text| digests(path, &text)).transpose()?;
        let index: Index = serde_json::from_slice(&index)
            .map_err(|error| broken(format!("{INDEX} cannot be read: {error}")))?;
        let (mut images, mut unnamed) = (Vec::new(), Vec::new());
        let is_only = index.manifests.len() == 1;
        for entry in index.manifests {
            let digest: Digest = entry.digest.parse().map_err(|fault| broken(format!("{INDEX}: {fault}")))?;
            match entry.name().or_else(|| name.filter(|_| is_only).cloned()) {
                Some(image) => {
                    images.push(Carried { image, digest, media_type: entry.media_type, size: entry.size });
                }
                None => unnamed.push(digest),
            }
        }
        Ok(Bundle { input, images, unnamed, inventory, contents: HashMap::new() })
    }

    /// The images that it names.
    pub fn images(&self) -> &[Carried] {
        &self.images
    }

    /// Manifests that it lists without the name of an image.
    pub fn unnamed(&self) -> &[Digest] {
        &self.unnamed
    }

    /// All that its images consist of, in it or left out. `None` where it was made by others.
    pub fn inventory(&self) -> Option<&HashSet<Digest>> {
        self.inventory.as_ref()
    }

    /// The size of a blob that is in it.
    ///
    /// # Errors
    /// The disk's; a link in place of a file.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        match self.contents.get(digest) {
            Some(Content::Made(bytes)) => Ok(Some(bytes.len() as u64)),
            Some(Content::File(name)) => self.input.size(name),
            None => self.input.size(&blob(digest)),
        }
    }

    /// The content of a blob, not yet known to be right.
    ///
    /// # Errors
    /// The disk's; it is not in there.
    pub fn read(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, Error> {
        Ok(match self.contents.get(digest) {
            Some(Content::Made(bytes)) => Box::new(Cursor::new(bytes.clone())),
            Some(Content::File(name)) => Box::new(self.input.read(name)?),
            None => Box::new(self.input.read(&blob(digest))?),
        })
    }

    fn manifest(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        match self.contents.get(digest) {
            Some(Content::Made(bytes)) => Ok(Some(bytes.clone())),
            Some(Content::File(_)) => Ok(None),
            None => self.input.whole(&blob(digest), LARGEST_MANIFEST),
        }
    }

    /// All that must be there for an image, its own manifest first. What an index names for other platforms, and what is
    /// neither in this bundle nor was left out of it, is not.
    ///
    /// # Errors
    /// A manifest that is missing, damaged, or none.
    pub fn needs(&self, carried: &Carried) -> Result<Vec<Digest>, Error> {
        let broken =
            |reason: String| Error::broken(self.input.path(), format!("{}: {reason}", carried.image));
        let (mut needs, mut seen) = (Vec::new(), BTreeSet::from([carried.digest]));
        let mut next = VecDeque::from([carried.digest]);
        while let Some(digest) = next.pop_front() {
            let Some(bytes) = self.manifest(&digest)? else {
                let is_left_out = self.inventory.as_ref().is_some_and(|all| all.contains(&digest));
                if needs.is_empty() || is_left_out {
                    return Err(broken(format!("the manifest {digest} is missing; the bundle is not whole")));
                }
                continue;
            };
            if Digest::of(digest.algorithm(), &bytes) != digest {
                return Err(broken(format!("the manifest {digest} is damaged; copy the bundle again")));
            }
            let manifest = Manifest::parse(&bytes)
                .map_err(|error| broken(format!("{digest} is no manifest: {error}")))?;
            needs.push(digest);
            next.extend(
                manifest.manifests.iter().map(|child| child.digest).filter(|child| seen.insert(*child)),
            );
            needs.extend(manifest.blobs.iter().map(|blob| blob.digest).filter(|blob| seen.insert(*blob)));
        }
        Ok(needs)
    }
}

impl Entry {
    /// A name that is a whole reference; a tag alone does not say of what.
    fn name(&self) -> Option<ImageReference> {
        let annotations = self.annotations.as_ref()?;
        let names = [IMAGE_NAME, REF_NAME].into_iter().filter_map(|key| annotations.get(key));
        names.filter(|name| name.contains(['/', '@'])).find_map(|name| name.parse().ok())
    }
}

/// Every file of the list is there, and these stand in it and are what it says: a signature is of the list, and of nothing
/// else. What blobs are their names say, which are proven as they come in: the list must say the same.
fn check_lists(input: &Input, checksums: &[u8], known: &[(&str, Option<&Vec<u8>>)]) -> Result<(), Error> {
    let broken = |reason: String| Error::broken(input.path(), reason);
    let mut unlisted: HashSet<&str> =
        known.iter().filter(|(_, bytes)| bytes.is_some()).map(|(name, _)| *name).collect();
    for line in String::from_utf8_lossy(checksums).lines() {
        let parsed = line.split_once(" (").and_then(|(algorithm, rest)| {
            let (name, hex) = rest.rsplit_once(") = ")?;
            Some((algorithm, name, hex))
        });
        let (algorithm, name, hex) = parsed
            .ok_or_else(|| broken(format!("{CHECKSUMS} has a line that is no checksum: {line:.100}")))?;
        let bytes = known.iter().find(|(known, _)| *known == name).and_then(|(_, bytes)| *bytes);
        unlisted.remove(name);
        match bytes {
            Some(bytes) if algorithm == "SHA256" && Digest::of(Algorithm::Sha256, bytes).hex() == hex => {}
            Some(_) => return Err(broken(format!("{name} is damaged; copy the bundle again"))),
            None if !names_itself(algorithm, name, hex) => {
                return Err(broken(format!("{CHECKSUMS} is damaged at {name:.200}; copy the bundle again")));
            }
            None if input.size(name)?.is_none() => {
                return Err(broken(format!("{name} is missing; the bundle is not whole, copy it again")));
            }
            None => {}
        }
    }
    match unlisted.into_iter().min() {
        Some(name) => Err(broken(format!("{name} does not stand in {CHECKSUMS}; copy the bundle again"))),
        None => Ok(()),
    }
}

/// Whether a blob's line says of it what its name says.
fn names_itself(algorithm: &str, name: &str, hex: &str) -> bool {
    let digest = format!("{}:{hex}", algorithm.to_ascii_lowercase()).parse::<Digest>();
    digest.is_ok_and(|digest| blob(&digest) == name)
}

/// What a site has: an inventory that `tidelock inventory` wrote, or the bundle that was carried there last.
///
/// # Errors
/// What is wrong, and where.
pub fn read_inventory(path: &Path) -> Result<HashSet<Digest>, Error> {
    let text = fs::read(path).map_err(Error::io(path))?;
    digests(path, &text)
}

fn digests(path: &Path, text: &[u8]) -> Result<HashSet<Digest>, Error> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let digests = lines
        .map(|line| line.parse().map_err(|fault| Error::broken(path, format!("is no inventory: {fault}"))));
    digests.collect()
}
