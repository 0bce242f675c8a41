//! Pulls with the clients that people really use, through the real program, from a real registry.
//!
//! Needs root and Debian's packages (`.ci/run` installs them), hence the cargo feature `clients`.
//! A missing client fails its test: a skipped test would look like a passed one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod containerd;
mod docker;
mod podman;
mod skopeo;
mod support;
mod together;
