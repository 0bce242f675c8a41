//! Images that are carried in and out, as the API speaks of them.

use serde::{Deserialize, Serialize};

/// What is asked of `/api/v1/lacking`: which of these are not here.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sought {
    /// Digests.
    pub digests: Vec<String>,
}

/// `/api/v1/lacking`: what is not here, and how much room there is for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lacking {
    /// Those that were asked about and are not here.
    pub lacking: Vec<String>,
    /// The most that the cache may hold, in bytes.
    pub limit: u64,
    /// How much of that is pinned, in bytes.
    pub pinned: u64,
    /// How much of what was asked about is here and not pinned, in bytes.
    #[serde(default)]
    pub evictable: u64,
}

/// `/api/v1/blob`: content that was taken in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TakenIn {
    /// Its digest, which it was found to have.
    pub digest: String,
    /// It was not here before.
    pub new: bool,
}

/// What is asked of `/api/v1/adopt`: that an image be served.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adoption {
    /// The whole reference.
    pub image: String,
    /// What it means from now on.
    pub digest: String,
    /// All that must be here for that.
    pub needs: Vec<String>,
}

/// `/api/v1/adopt`: the image is served from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Adopted {
    /// The image, as it was understood.
    pub image: String,
    /// What it means.
    pub digest: String,
    /// What its tag was remembered to mean; none where it was not known here.
    pub before: Option<String>,
}
