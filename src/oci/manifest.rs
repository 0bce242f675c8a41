use serde::Deserialize;

use super::listing::object;
use super::{Descriptor, Digest, Platform, media_type};

/// Just enough of a manifest or index to know what it points to.
///
/// The document itself is only ever kept and sent as the bytes that came (I10); this is a reading of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The media type that the document states of itself, where it does.
    pub media_type: Option<String>,
    /// Child manifests of an index.
    pub manifests: Vec<Descriptor>,
    /// Image config and layers, or an artifact's blobs.
    pub blobs: Vec<Descriptor>,
    /// What this document refers to (signatures, SBOMs, attestations).
    pub subject: Option<Descriptor>,
}

/// As it stands on the wire. Unknown fields are somebody else's business; `null` stands for an empty list in
/// documents that Go programs wrote.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    manifests: Option<Vec<WireDescriptor>>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    blobs: Option<Vec<WireDescriptor>>,
    fs_layers: Option<Vec<SchemaOneLayer>>,
    subject: Option<WireDescriptor>,
}

/// A descriptor whose digest may be of an algorithm that is not known here; such a child is left out, since
/// it could never be asked for through this mirror either.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: serde_json::Value,
}

/// A layer of Docker's schema 1, which states no size.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemaOneLayer {
    blob_sum: String,
}

impl Manifest {
    /// Reads a manifest of any known kind.
    ///
    /// # Errors
    /// When `bytes` are not a JSON object of that shape.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, serde_json::Error> {
        let document: Document = object(bytes)?;
        let known = |list: Option<Vec<WireDescriptor>>| {
            list.unwrap_or_default().into_iter().filter_map(WireDescriptor::known)
        };
        let schema_one = document.fs_layers.unwrap_or_default().into_iter().filter_map(|layer| {
            let (media_type, platform) = (String::new(), serde_json::Value::Null);
            WireDescriptor { media_type, digest: layer.blob_sum, size: 0, platform }.known()
        });
        let config = document.config.and_then(WireDescriptor::known);
        let layers = known(document.layers).chain(known(document.blobs));
        Ok(Manifest {
            media_type: document.media_type,
            manifests: known(document.manifests).collect(),
            blobs: config.into_iter().chain(layers).chain(schema_one).collect(),
            subject: document.subject.and_then(WireDescriptor::known),
        })
    }

    /// The media type to answer with when the upstream named none.
    pub fn stated_type(&self) -> &str {
        match &self.media_type {
            Some(stated) => stated,
            None if !self.manifests.is_empty() => media_type::OCI_INDEX,
            None => "application/vnd.oci.image.manifest.v1+json",
        }
    }
}

impl WireDescriptor {
    fn known(self) -> Option<Descriptor> {
        let digest = self.digest.parse::<Digest>().ok()?;
        let platform = Platform::of(&self.platform);
        Some(Descriptor { media_type: self.media_type, digest, size: self.size, platform })
    }
}

/// The tag under which clients keep referrers of `subject` where the referrers API is missing
/// (distribution-spec, "Referrers Tag Schema"): algorithm cut to 32, digest to 64 characters.
pub fn fallback_tag(subject: &Digest) -> String {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm().as_str(), &hex[..hex.len().min(64)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    fn digest(seed: char) -> String {
        format!("sha256:{}", seed.to_string().repeat(64))
    }

    #[test]
    fn an_image_and_an_index() {
        let image = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{}","size":2}},
               "layers":[{{"mediaType":"l","digest":"{}","size":7,"urls":["x"]}}],
               "subject":{{"mediaType":"m","digest":"{}","size":1}}}}"#,
            digest('a'),
            digest('b'),
            digest('c')
        );
        let image = Manifest::parse(image.as_bytes()).expect("a manifest");
        assert_eq!(image.blobs.iter().map(|blob| blob.size).collect::<Vec<_>>(), [2, 7]);
        assert!(image.subject.is_some() && image.manifests.is_empty());
        let index = format!(r#"{{"manifests":[{{"mediaType":"m","digest":"{}","size":5}}]}}"#, digest('d'));
        let index = Manifest::parse(index.as_bytes()).expect("an index");
        assert_eq!((index.manifests.len(), index.blobs.len()), (1, 0));
        assert_eq!(index.stated_type(), media_type::OCI_INDEX);
    }

    #[test]
    fn nulls_and_foreign_algorithms_are_left_out() {
        let text = r#"{"layers":null,"manifests":[{"digest":"blake3:00","size":1}],"config":null}"#;
        let manifest = Manifest::parse(text.as_bytes()).expect("a manifest");
        assert_eq!(manifest, Manifest::default());
    }

    #[test]
    fn an_array_in_place_of_the_object_is_refused() {
        assert!(Manifest::parse(b" [null,null,null,null,null,null,null]").is_err());
        assert!(Manifest::parse(b" {}").is_ok());
    }

    #[test]
    fn schema_one_layers_are_seen() {
        let text = format!(r#"{{"schemaVersion":1,"fsLayers":[{{"blobSum":"{}"}}]}}"#, digest('e'));
        assert_eq!(Manifest::parse(text.as_bytes()).expect("schema 1").blobs.len(), 1);
    }

    #[test]
    fn fallback_tags_cut_long_digests() {
        let wide: Digest = format!("sha512:{}", "f".repeat(128)).parse().expect("a digest");
        assert_eq!(fallback_tag(&wide), format!("sha512-{}", "f".repeat(64)));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in any::<Vec<u8>>()) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
