use bytes::Bytes;

use crate::oci::Manifest;
use crate::store::Link;

/// A manifest whose digest is proven, and the type to serve it with.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) bytes: Bytes,
    pub(super) media_type: String,
}

impl Document {
    /// Takes the upstream's word for the type, without parameters; where it sent none, the document's own.
    pub(super) fn of(bytes: Bytes, sent: Option<&str>) -> Document {
        let media_type = match sent.map(bare_type) {
            Some(sent) if !sent.is_empty() => sent.to_owned(),
            _ => Manifest::parse(&bytes).unwrap_or_default().stated_type().to_owned(),
        };
        Document { bytes, media_type }
    }

    /// The proof that a repository contains it.
    pub(super) fn link(&self) -> Link {
        Link { size: self.size(), is_manifest: true, media_type: self.media_type.clone() }
    }

    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A media type without its parameters.
pub(super) fn bare_type(sent: &str) -> &str {
    sent.split(';').next().unwrap_or_default().trim()
}
