use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why the store did not keep something. Cheap to clone, since it goes to all who wait. None of these is a
/// client's problem: the pull goes on uncached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It does not fit, even after everything that may go has gone.
    #[error("{wanted} bytes do not fit into the cache, whose limit is {limit} bytes (`cache.max_size`)")]
    NoRoom {
        /// What was asked for.
        wanted: u64,
        /// The cache's limit.
        limit: u64,
    },
    /// The file system would be left with too little.
    #[error(
        "{wanted} bytes would leave less than {min_free} bytes free on the file system (`cache.min_free`)"
    )]
    Full {
        /// What was asked for.
        wanted: u64,
        /// What is to stay free.
        min_free: u64,
    },
    /// The disk failed a moment ago and is not tried yet.
    #[error("{0}")]
    Failing(&'static str),
    /// The bytes do not hash to the digest they were to be kept under.
    #[error("the content does not match its digest")]
    Mismatch,
    /// The disk.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The index.
    #[error("the cache's index: {0}")]
    Index(String),
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder or file in it cannot be made or read.
    #[error(
        "the cache directory cannot be used: {path}: {source}; set `cache.dir` to a directory that this user may write"
    )]
    Folder {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the cache directory {0} is in use by another tidelock; stop it or set another `cache.dir`")]
    InUse(PathBuf),
    /// Written by a newer program.
    #[error(
        "the cache directory {path} has format `{found}`, this program knows {known}; \
         use the newer program or another `cache.dir`"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// What its VERSION file says.
        found: String,
        /// What is known here.
        known: u32,
    },
    /// The index could be neither opened nor made anew.
    #[error("the cache's index cannot be made in {path}: {reason}")]
    Index {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Error {
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { what, source: Arc::new(source) }
    }

    pub(super) fn index(error: impl std::fmt::Display) -> Error {
        Error::Index(error.to_string())
    }
}
