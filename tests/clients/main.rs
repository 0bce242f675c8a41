//! Pulls with the clients that people really use, through the real program, from a real registry; and, beside
//! another mirror that people really use, what a day of pulls costs. And what becomes of pulls on disks that fail.
//!
//! Needs root and Debian's packages (`.ci/run` installs them), hence the cargo feature `clients`.
//! A missing client fails its test: a skipped test would look like a passed one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod air_gap;
mod containerd;
mod dashboards;
mod deploy;
mod disks;
mod docker;
#[path = "../it/support/mod.rs"]
#[expect(clippy::disallowed_methods, reason = "the fakes spawn their own servers")]
mod fakes;
mod page;
mod peer;
mod podman;
mod skopeo;
mod support;
mod together;
