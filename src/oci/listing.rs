use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Digest, OCI_INDEX};

/// The tags of a repository (distribution-spec, "Listing Tags").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagList {
    /// The repository, as the answer names it.
    #[serde(default)]
    pub name: String,
    /// The tags. Some registries write `null` for none.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub tags: Vec<String>,
}

/// The descriptors of an OCI index that lists what refers to a digest (distribution-spec, "Listing
/// Referrers"). Descriptors are kept as the text that came, since clients want annotations and artifact types,
/// and since JSON taken apart is ten times as large (I7).
#[derive(Debug, Clone, Default)]
pub struct Referrers {
    manifests: Vec<Box<RawValue>>,
}

impl TagList {
    /// Reads one page.
    ///
    /// # Errors
    /// When it is not the JSON of the spec.
    pub fn parse(bytes: &[u8]) -> Result<TagList, serde_json::Error> {
        object(bytes)
    }
}

impl Referrers {
    /// Reads an index, as the referrers API or a fallback tag gives it.
    ///
    /// # Errors
    /// When it is not a JSON object with a list of manifests.
    pub fn parse(bytes: &[u8]) -> Result<Referrers, serde_json::Error> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default, deserialize_with = "null_is_empty")]
            manifests: Vec<Box<RawValue>>,
        }
        let index: Index = object(bytes)?;
        Ok(Referrers { manifests: index.manifests })
    }

    /// Takes in the next page.
    pub fn extend(&mut self, page: Referrers) {
        self.manifests.extend(page.manifests);
    }

    /// Keeps only descriptors of one artifact type.
    pub fn filter(&mut self, artifact_type: &str) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Typed<'a> {
            #[serde(borrow)]
            artifact_type: Option<Cow<'a, str>>,
        }
        self.manifests.retain(|manifest| {
            let typed = serde_json::from_str::<Typed<'_>>(manifest.get());
            typed.is_ok_and(|typed| typed.artifact_type.as_deref() == Some(artifact_type))
        });
    }

    /// The digests of what refers; those of an unknown algorithm are left out.
    pub fn digests(&self) -> Vec<Digest> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            digest: Cow<'a, str>,
        }
        let digest = |manifest: &RawValue| {
            let named = serde_json::from_str::<Named<'_>>(manifest.get()).ok()?;
            named.digest.parse().ok()
        };
        self.manifests.iter().filter_map(|manifest| digest(manifest)).collect()
    }

    /// How many descriptors.
    pub fn len(&self) -> usize {
        self.manifests.len()
    }

    /// Whether nothing refers to the digest.
    pub fn is_empty(&self) -> bool {
        self.manifests.is_empty()
    }

    /// The index to answer with.
    pub fn to_json(&self) -> String {
        let manifests: Vec<&str> = self.manifests.iter().map(|manifest| manifest.get()).collect();
        let manifests = manifests.join(",");
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{manifests}]}}"#)
    }
}

/// Reads a JSON object. serde would take an array for one too, its fields in order: `[]` for an empty list.
pub(super) fn object<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, serde_json::Error> {
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(serde::de::Error::custom("an array in place of an object"));
    }
    serde_json::from_slice(bytes)
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<Vec<T>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_lists_with_and_without_tags() {
        let list = TagList::parse(br#"{"name":"a","tags":["x"]}"#).expect("a list");
        assert_eq!(list.tags, ["x"]);
        assert!(TagList::parse(br#"{"name":"a","tags":null}"#).expect("a list").tags.is_empty());
        assert!(TagList::parse(b"<html>").is_err());
    }

    #[test]
    fn referrers_filter_and_keep_whole_descriptors() {
        let text = br#"{"manifests":[{"digest":"d","artifactType":"sig","annotations":{"k":"v"}},
                                     {"digest":"e","artifactType":"sbom"}]}"#;
        let mut referrers = Referrers::parse(text).expect("an index");
        referrers.filter("sig");
        assert_eq!(referrers.len(), 1);
        assert!(referrers.to_json().contains(r#""annotations":{"k":"v"}"#));
        referrers.filter("other");
        let empty =
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        assert_eq!(referrers.to_json(), empty);
    }
}
