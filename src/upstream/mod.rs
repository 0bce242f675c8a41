//! Speaks to other people's registries: connect, log in, redirect, resume.

mod error;

use bytes::Bytes;

pub use error::{Error, Next};

use crate::oci::Digest;

/// What a HEAD tells of a manifest or blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `Docker-Content-Digest`, where the upstream sends one (some do not).
    pub digest: Option<Digest>,
    /// `Content-Type`, where sent.
    pub media_type: Option<String>,
    /// `Content-Length`, where sent.
    pub size: Option<u64>,
}

/// A manifest as it came.
#[derive(Debug, Clone)]
pub struct Document {
    /// The bytes, not yet checked against any digest.
    pub bytes: Bytes,
    /// `Content-Type`, where sent.
    pub media_type: Option<String>,
    /// `Docker-Content-Digest`, where sent: a claim.
    pub digest: Option<Digest>,
}
