use crate::{store, upstream};

/// Why a fetch failed. Cheap to clone: it reaches all who wait (I3).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The upstream's doing.
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    /// It could not be kept. The pull can go on uncached.
    #[error("could not keep it in the cache: {0}")]
    Store(#[from] store::Error),
    /// The bytes are not what they should be.
    #[error("{registry} sent bytes that do not match the digest")]
    Mismatch {
        /// Who sent them.
        registry: String,
    },
    /// It is in the store by now; whether this repository contains it is another question (I5).
    #[error("it is cached by now")]
    Here,
    /// The task that did it ended without a word.
    #[error("the fetch was given up inside the mirror")]
    Abandoned,
}
