//! Carries images as files: what a bundle looks like, how it is written and read.
//!
//! A bundle is an OCI image layout (image-spec, image-layout.md), as a tar or in a folder, so that skopeo, podman and
//! containerd read it too:
//!
//! ```text
//! oci-layout, index.json    as the specification has them; index.json names each image in full
//! INVENTORY                 all that the images consist of, a digest a line, also what a delta leaves out
//! CHECKSUMS                 of each file, as `cksum --check` reads it
//! CHECKSUMS.minisig         its signature, where it is signed, as `minisign -V` reads it
//! blobs/sha256/…            the content, each blob once
//! ```
//!
//! The names of blobs are their hashes, so all that comes before them is known before the first one is read: a bundle is
//! written and checked in one go, however large it is (I7).
//!
//! Read are other layouts too, and what `docker save` wrote before it wrote them (`docker_save.rs`).
//!
//! Leaves out where the images come from and go to.

mod docker_save;
mod error;
mod input;
mod output;
mod plan;
mod reading;
mod signature;

pub use error::Error;
pub use output::Output;
pub use plan::{Carried, Plan};
pub use reading::{Bundle, read_inventory};
pub use signature::{Signer, Verifier};

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const INVENTORY: &str = "INVENTORY";
const CHECKSUMS: &str = "CHECKSUMS";
const SIGNATURE: &str = "CHECKSUMS.minisig";

/// Where clients of containerd look for an image's name, and ours.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Where those of the image-spec do.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The file of a blob.
fn blob(digest: &crate::oci::Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}
