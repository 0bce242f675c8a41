//! What was asked for in vain, as the API speaks of it.

use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::mirror::Miss;

/// `/api/v1/missing`: what clients asked for while nobody could be asked for it, what was asked for most first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Missing {
    /// Those.
    pub images: Vec<MissingImage>,
}

/// An image that was asked for in vain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MissingImage {
    /// The whole reference.
    pub image: String,
    /// How often it was asked for.
    pub times: u64,
    /// When it last was, in seconds since 1970.
    pub last: u64,
}

impl Missing {
    pub(crate) fn new(missing: Vec<Miss>) -> Missing {
        let image = |Miss { image, times, last }: Miss| MissingImage {
            image: image.to_string(),
            times,
            last: last.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        Missing { images: missing.into_iter().map(image).collect() }
    }
}
