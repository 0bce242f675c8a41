//! Whole-house tests: the real program over sockets, against fake registries that count every request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)] // the fakes spawn their own servers

mod admin;
mod coalescing;
mod cli;
mod docs;
mod floors;
mod headers;
mod lists;
mod metrics;
mod ranges;
mod routing;
mod server;
mod support;
mod support_works;

mod patience;
mod redirects;
mod upstream_auth;
mod upstream_quirks;
mod upstream_rig;
mod upstream_transfers;
