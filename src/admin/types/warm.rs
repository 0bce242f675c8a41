//! Images that are fetched ahead, as the API speaks of them.

use serde::{Deserialize, Serialize};

use crate::mirror::{self, Part, Root};
use crate::oci::ImageReference;

/// A line of the answer to `/api/v1/warm`: how far it is, until it is done or has failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Warming {
    /// It is being fetched.
    Fetching {
        /// Manifests and blobs that are known of; more may follow.
        parts: usize,
        /// Those of them that are here.
        here: usize,
        /// The bytes of all.
        bytes: u64,
        /// And of those that are here.
        bytes_here: u64,
        /// Why nothing goes on at the moment, where a budget is waited for.
        waits: Option<String>,
    },
    /// All of it is here.
    Done(Warmed),
    /// Some of it cannot be had; what came stays.
    Failed {
        /// Why.
        message: String,
    },
}

/// An image that is here, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Warmed {
    /// The image, as it was understood.
    pub image: String,
    /// What it means.
    pub digest: String,
    /// What its tag was remembered to mean; none where it was not known here.
    pub before: Option<String>,
    /// Bytes of blobs that came for it.
    pub fetched: u64,
    /// Why it is not known whether more refers to it; none where that is known.
    pub doubt: Option<String>,
    /// It is not evicted.
    pub pinned: bool,
    /// The image, then what refers to it.
    pub roots: Vec<WarmRoot>,
    /// All that these consist of, each once.
    pub parts: Vec<WarmPart>,
}

/// The image itself, or something that refers to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WarmRoot {
    /// The whole reference.
    pub image: String,
    /// What it means.
    pub digest: String,
}

/// A manifest or blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WarmPart {
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// A manifest or index rather than a blob.
    pub manifest: bool,
    /// Its type, as the document says that names it.
    pub media_type: String,
}

impl Warmed {
    pub(crate) fn new(image: &ImageReference, warmed: mirror::Warmed, pinned: bool) -> Warmed {
        let root = |Root { reference, digest }: Root| WarmRoot {
            image: ImageReference { reference, ..image.clone() }.to_string(),
            digest: digest.to_string(),
        };
        let mirror::Warmed { before, roots, parts, fetched, doubt } = warmed;
        let roots: Vec<WarmRoot> = roots.into_iter().map(root).collect();
        Warmed {
            image: image.to_string(),
            digest: roots.first().map(|root| root.digest.clone()).unwrap_or_default(),
            before: before.map(|digest| digest.to_string()),
            fetched,
            doubt,
            pinned,
            roots,
            parts: parts.into_iter().map(WarmPart::from).collect(),
        }
    }
}

impl From<Part> for WarmPart {
    fn from(Part { descriptor, is_manifest, kept }: Part) -> Self {
        WarmPart {
            digest: descriptor.digest.to_string(),
            size: kept.map_or(descriptor.size, |kept| kept.size),
            manifest: is_manifest,
            media_type: descriptor.media_type,
        }
    }
}

impl From<mirror::Warming> for Warming {
    fn from(warming: mirror::Warming) -> Self {
        let mirror::Warming { parts, here, bytes, bytes_here, waits } = warming;
        Warming::Fetching { parts, here, bytes, bytes_here, waits }
    }
}
