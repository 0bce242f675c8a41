//! Tidelock: a pull-through caching mirror for container images.
//!
//! The modules stand in floor order: each may use only what stands above it in this list (floor 0 first).
//! `tests/it/floors.rs` fails on an arrow that points the other way; `src/README.md` draws the picture.

pub mod oci;

pub mod secret;
pub mod backoff;
pub mod section;
pub mod spans;
pub mod lifecycle;
pub mod config;
pub mod telemetry;

pub mod routing;
pub mod freshness;
pub mod access;

pub mod store;
pub mod scheduler;
pub mod upstream;

pub mod flight;
pub mod mirror;
pub mod bundle;

pub mod server;
pub mod registry;
pub mod admin;

pub mod app;
pub mod cli;
