use super::{Digest, Platform};

/// What one document says of another: its digest, size and type (image-spec descriptor.md).
///
/// Only the fields that a mirror needs; the others live on in the original bytes, which are never rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type, as written; empty where a lax producer left it out.
    pub media_type: String,
    /// The digest.
    pub digest: Digest,
    /// The size in bytes.
    pub size: u64,
    /// For which platform a manifest is, where an index says so.
    pub platform: Option<Platform>,
}
