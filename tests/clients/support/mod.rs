//! What the tests stand on: processes, images, the upstream registry, the mirror, and the one scenario.

mod files;
mod image;
mod layer;
mod process;
mod scenario;
mod servers;
mod shapes;

pub(crate) use files::{sha256, sha256_of, verify_blobs};
pub(crate) use image::{IMAGES, Image};
pub(crate) use process::{Daemon, client, daemon, run, stdout};
pub(crate) use scenario::{
    ALWAYS_ASK, AS_SHIPPED, Pull, Visit, cold, cold_then_cached, from_a_mirror, offline,
};
pub(crate) use servers::{DockerProxy, Mirror, Tidelock};
