use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};

use super::passage::Passage;
use crate::flight::Follower;
use crate::oci::{ByteRange, Digest};
use crate::section::Piece;
use crate::store::Blob;

/// How an answer came about. Header, log line and metric are read from this one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Served {
    /// From the cache, without any upstream call for this request.
    Hit,
    /// Fetched for this request.
    Miss,
    /// From a fetch that another request had begun.
    Joined,
    /// From the cache, after the upstream confirmed it.
    Revalidated,
    /// From the cache, though the upstream could not be asked.
    Stale,
}

/// A manifest, or what is known of one.
#[derive(Debug, Clone)]
pub struct ManifestAnswer {
    /// Its digest.
    pub digest: Digest,
    /// The type that the upstream served it with.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes, where they were asked for.
    pub bytes: Option<Bytes>,
    /// How it came about.
    pub served: Served,
    /// How long ago the upstream confirmed the tag; `None` for a digest, which needs no confirmation.
    pub age: Option<Duration>,
}

/// A list that the mirror put together from the upstream's pages.
#[derive(Debug, Clone)]
pub struct ListAnswer {
    /// The whole list as JSON: a tag list or an OCI index.
    pub document: Bytes,
    /// How it came about.
    pub served: Served,
    /// How long ago the upstream confirmed it.
    pub age: Duration,
}

/// A blob, ready to be read.
#[derive(Debug)]
pub struct BlobAnswer {
    /// Its size in bytes.
    pub size: u64,
    /// Where its bytes are; `None` for a HEAD.
    pub content: Option<Content>,
    /// How it came about.
    pub served: Served,
}

/// Where a blob's bytes are.
#[derive(Debug)]
pub enum Content {
    /// In a file whose bytes are proven.
    Cached(Blob),
    /// In a file that grows.
    Growing(Follower),
    /// Nowhere: they pass through, since there is no room to keep them.
    Passing(Box<Passage>),
}

impl Content {
    /// Whether parts of it can be read in any order and more than once.
    pub fn is_seekable(&self) -> bool {
        !matches!(self, Content::Passing(_))
    }

    /// The bytes of `range`, of a blob that is `size` bytes long. What passes through can only be read whole.
    pub fn read(&self, range: ByteRange, size: u64) -> Option<BoxStream<'static, io::Result<Piece>>> {
        match self {
            Content::Cached(blob) => Some(blob.clone().read(range).map_ok(Piece::from).boxed()),
            Content::Growing(follower) => {
                Some(follower.clone().read(range, size).map_ok(Piece::from).boxed())
            }
            Content::Passing(_) => None,
        }
    }

    /// All bytes, in order.
    pub fn read_all(self, size: u64) -> BoxStream<'static, io::Result<Piece>> {
        let whole = ByteRange::whole(size);
        match self {
            Content::Cached(blob) => blob.read(whole).map_ok(Piece::from).boxed(),
            Content::Growing(follower) => follower.read(whole, size).map_ok(Piece::from).boxed(),
            Content::Passing(passage) => passage.read().map_ok(Piece::from).boxed(),
        }
    }
}

impl Served {
    /// Every value, for metrics that start at 0.
    pub const ALL: [Served; 5] =
        [Served::Hit, Served::Miss, Served::Joined, Served::Revalidated, Served::Stale];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Served::Hit => "hit",
            Served::Miss => "miss",
            Served::Joined => "joined",
            Served::Revalidated => "revalidated",
            Served::Stale => "stale",
        }
    }

    /// As `Cache-Status` says it (RFC 9211).
    pub fn cache_status(self) -> &'static str {
        match self {
            Served::Hit => "tidelock; hit",
            Served::Miss => "tidelock; fwd=miss; stored",
            Served::Joined => "tidelock; fwd=miss; collapsed",
            Served::Revalidated => "tidelock; hit; detail=revalidated",
            Served::Stale => "tidelock; hit; detail=stale",
        }
    }
}
