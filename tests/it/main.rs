//! Whole-house tests: the real program over sockets, against fake registries that count every request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)] // the fakes spawn their own servers

mod access;
mod admin;
mod budgets;
mod breaker;
mod cli;
mod client_faults;
mod chaos;
mod check_online;
mod ci_day;
mod coalescing;
mod docs;
mod eviction;
mod explain;
mod fault_matrix;
mod flights;
mod floors;
mod freshness;
mod headers;
mod killed;
mod lists;
mod metrics;
mod open_files;
mod parallel;
mod patience;
mod proofs;
mod pull_blob;
mod pull_manifest;
mod ranges;
mod recovery;
mod redirects;
mod reload;
mod rot;
mod routing;
mod serve;
mod server;
mod stopping;
mod support;
mod support_works;
mod throttled;
mod upstream_auth;
mod upstream_quirks;
mod upstream_rig;
mod upstream_transfers;
mod verification;
