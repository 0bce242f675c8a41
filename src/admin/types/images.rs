//! Images, as the API speaks of them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::lifecycle::now;
use crate::mirror::{self, CachedContent, Episode, Meaning, Part};
use crate::oci::{Digest, ImageReference, Platform};
use crate::store::{Kept, Stamp};

/// What is here of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Content {
    /// The manifest itself.
    pub manifest_cached: bool,
    /// Of the manifests that an index names, so many are here.
    pub manifests_cached: usize,
    /// And so many there are.
    pub manifests: usize,
    /// Of the blobs that are named by what is here, so many are here.
    pub blobs_cached: usize,
    /// And so many there are.
    pub blobs: usize,
    /// What all of that takes that is here; what other images share is counted with each.
    pub bytes: u64,
    /// For which platforms the manifests are that are here: `linux/amd64`.
    pub platforms: Vec<String>,
}

/// `/api/v1/images`: what tags are remembered, in the order of their names, a page at a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Images {
    /// Those of this page.
    pub images: Vec<Image>,
    /// With it as `after` the next page is asked for; none at the end.
    pub next: Option<String>,
}

/// One tag, and what is here of what it means.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// The whole reference.
    pub image: String,
    /// What it is served as.
    pub digest: String,
    /// It is held at that, whatever the upstream says.
    pub held: bool,
    /// The type of that.
    pub media_type: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// How long ago the upstream confirmed it; none where it is held.
    pub age_seconds: Option<u64>,
    /// When its manifest was last used, in seconds since 1970; none where that is not here.
    pub last_use: Option<u64>,
    /// It is not evicted.
    pub pinned: bool,
    /// What is here of it.
    pub content: Content,
}

/// `/api/v1/image`: what an image consists of, and what of that is here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shown {
    /// The image, as it was understood.
    pub image: String,
    /// What it is served as.
    pub digest: String,
    /// It is a tag that is held at that, whatever the upstream says.
    pub held: bool,
    /// Since when a tag means that, in seconds since 1970.
    pub since: Option<u64>,
    /// How long ago the upstream confirmed that; none where it is held.
    pub age_seconds: Option<u64>,
    /// It is not evicted.
    pub pinned: bool,
    /// What is here, in sum.
    pub content: Content,
    /// The manifest itself first, then those that it names.
    pub manifests: Vec<ManifestPart>,
    /// Configs and layers.
    pub blobs: Vec<BlobPart>,
}

/// A manifest that an image consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ManifestPart {
    /// For which platform it is, where that is known.
    pub platform: Option<String>,
    /// It, as any part.
    #[serde(flatten)]
    pub part: BlobPart,
}

/// A blob, or what a manifest has in common with one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BlobPart {
    /// Its digest.
    pub digest: String,
    /// Its type, as the document says that names it.
    pub media_type: String,
    /// Its size in bytes; 0 where nobody says.
    pub size: u64,
    /// It is here.
    pub cached: bool,
    /// When it was last used, in seconds since 1970.
    pub last_use: Option<u64>,
    /// It is not evicted.
    pub pinned: bool,
}

/// `/api/v1/refresh`: what a tag means, asked of the upstream at this moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refreshed {
    /// The image, as it was understood.
    pub image: String,
    /// What it means.
    pub digest: String,
    /// What it was remembered to mean; none where it was not known here.
    pub before: Option<String>,
}

/// `/api/v1/pin` and `/api/v1/unpin`: whether an image may be evicted from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pinned {
    /// The image, as it was understood.
    pub image: String,
    /// It is not evicted.
    pub pinned: bool,
    /// What is here of it.
    pub content: Option<Content>,
}

/// `/api/v1/remove`: what was taken out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Removed {
    /// The image, as it was understood.
    pub image: String,
    /// What it meant.
    pub digest: String,
    /// How many bytes went; what other images need is still here.
    pub bytes: u64,
}

/// `/api/v1/matching`: the tags that a pattern matches, the newest version first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Matching {
    /// The whole reference of each.
    pub images: Vec<String>,
}

/// `/api/v1/tag-history`: what a tag meant, as far as is known here, the latest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TagHistory {
    /// The image, as it was understood.
    pub image: String,
    /// One after the other.
    pub episodes: Vec<TagEpisode>,
}

/// What a tag meant for a while.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TagEpisode {
    /// What it meant.
    pub digest: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Until when; none for what the upstream said last.
    pub until: Option<u64>,
    /// Its manifest is here.
    pub cached: bool,
    /// It was rolled back to this.
    pub held: bool,
}

/// `/api/v1/rollback` and `/api/v1/release`: what a tag is served as from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RolledBack {
    /// The image, as it was understood.
    pub image: String,
    /// What it is held at; none where it is as the upstream has it.
    pub held: Option<String>,
}

impl TagHistory {
    pub(crate) fn new(image: &ImageReference, episodes: Vec<Episode>) -> TagHistory {
        let episodes = episodes.into_iter().map(|episode| TagEpisode {
            digest: episode.digest.to_string(),
            since: seconds(episode.since),
            until: episode.until.map(seconds),
            cached: episode.kept.is_some(),
            held: episode.is_held,
        });
        TagHistory { image: image.to_string(), episodes: episodes.collect() }
    }
}

impl Shown {
    pub(crate) fn new(
        image: &ImageReference,
        digest: &Digest,
        meaning: Option<Meaning>,
        pinned: bool,
        parts: Vec<Part>,
    ) -> Shown {
        let content = CachedContent::of(&parts).into();
        let (manifests, blobs): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(|part| part.is_manifest);
        let is_held = meaning.as_ref().is_some_and(|meaning| meaning.is_held);
        let stamp = meaning.map(|meaning| meaning.stamp);
        Shown {
            image: image.to_string(),
            digest: digest.to_string(),
            held: is_held,
            since: stamp.as_ref().map(|stamp| seconds(stamp.since)),
            age_seconds: stamp.as_ref().filter(|_| !is_held).map(age),
            pinned,
            content,
            manifests: manifests.into_iter().map(ManifestPart::from).collect(),
            blobs: blobs.into_iter().map(BlobPart::from).collect(),
        }
    }
}

impl From<Part> for ManifestPart {
    fn from(part: Part) -> Self {
        let platform = part.descriptor.platform.as_ref().map(Platform::to_string);
        ManifestPart { platform, part: part.into() }
    }
}

impl From<Part> for BlobPart {
    fn from(Part { descriptor, kept, .. }: Part) -> Self {
        BlobPart {
            digest: descriptor.digest.to_string(),
            media_type: descriptor.media_type,
            size: kept.map_or(descriptor.size, |kept| kept.size),
            cached: kept.is_some(),
            last_use: kept.map(|kept| seconds(kept.last_use)),
            pinned: kept.is_some_and(|kept| kept.is_pinned),
        }
    }
}

impl Refreshed {
    pub(crate) fn new(image: &ImageReference, refreshed: mirror::Refreshed) -> Refreshed {
        Refreshed {
            image: image.to_string(),
            digest: refreshed.now.to_string(),
            before: refreshed.before.map(|digest| digest.to_string()),
        }
    }
}

impl Image {
    pub(crate) fn new(
        image: &ImageReference,
        Meaning { stamp, is_held }: Meaning,
        kept: Option<Kept>,
        pinned: bool,
        content: CachedContent,
    ) -> Image {
        Image {
            image: image.to_string(),
            digest: stamp.digest.to_string(),
            held: is_held,
            since: seconds(stamp.since),
            age_seconds: (!is_held).then(|| age(&stamp)),
            media_type: stamp.media_type,
            last_use: kept.map(|kept| seconds(kept.last_use)),
            pinned,
            content: content.into(),
        }
    }
}

impl From<CachedContent> for Content {
    fn from(content: CachedContent) -> Self {
        Content {
            manifest_cached: content.is_cached,
            manifests_cached: content.manifests.0,
            manifests: content.manifests.1,
            blobs_cached: content.blobs.0,
            blobs: content.blobs.1,
            bytes: content.bytes,
            platforms: content.platforms.iter().map(Platform::to_string).collect(),
        }
    }
}

/// In seconds; of a clock that was set back nothing can be said.
fn age(stamp: &Stamp) -> u64 {
    now().duration_since(stamp.confirmed).unwrap_or_default().as_secs()
}

/// Since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
