use std::io;
use std::path::PathBuf;

/// Why a bundle cannot be written or read. Each says which file it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk's.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no bundle, or not a whole one.
    #[error("{path}: {reason}")]
    Broken {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A key, or what it says of a bundle.
    #[error("{0}")]
    Signature(String),
}

impl Error {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    pub(super) fn broken(path: impl Into<PathBuf>, reason: impl Into<String>) -> Error {
        Error::Broken { path: path.into(), reason: reason.into() }
    }
}
