//! What a name, tag, digest, range, manifest, descriptor, request and error code *are*: parse and print.
//!
//! Everything here is a value that cannot exist in an invalid state. No I/O, no clock, no await. The grammar
//! is that of the OCI distribution spec (main, compatible with 1.1) and the OCI image spec; where wire
//! practice differs, the item says so.

mod descriptor;
mod digest;
mod error_code;
mod link;
mod listing;
mod manifest;
mod media_type;
mod name;
mod platform;
mod range;
mod reference;
mod request;
mod version;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher};
pub use error_code::{ErrorCode, error_body};
pub use link::{Page, next_link, next_page};
pub use listing::{Referrers, TagList};
pub use manifest::{Manifest, fallback_tag};
pub use media_type::{Accept, DOCKER_MANIFEST, MANIFEST_ACCEPT, OCI_INDEX, is_index, is_manifest};
pub use name::{RegistryHost, Repository, RepositoryName};
pub use platform::Platform;
pub use range::{ByteRange, RangeSpec, Ranges, Selection};
pub use reference::{ImageReference, Reference, Tag};
pub use request::{BadRequest, Kind, OciRequest};

/// A text that is not what the grammar asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not {expected}")]
pub struct Malformed {
    given: String,
    expected: &'static str,
}

impl Malformed {
    /// `given` was read where `expected` (a noun phrase with the rule in it) should stand. What is shown of
    /// `given` is cut to 120 characters, since it may be anything that a client sent.
    fn new(given: &str, expected: &'static str) -> Self {
        let given = given.chars().take(120).flat_map(char::escape_debug).collect();
        Malformed { given, expected }
    }
}
