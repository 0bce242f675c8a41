//! What the tests stand on: fake registries, images, a small client.
//!
//! | file | what |
//! |---|---|
//! | `images` | images of a chosen shape |
//! | `registry` | [`FakeRegistry`]: push, knobs, stop and resume, counting |
//! | `behaviour` | its knobs; `quota` its limits; `faults` what goes wrong on the wire; `gate` who waits for whom |
//! | `token_server`, `cdn` | the other hosts of an upstream |
//! | `client` | a small OCI client that checks digests itself; `wire` its connections |
//! | `collector` | takes spans over OTLP |
//! | `house` | the real program in this process; `program` as a process of its own; `port` for one that is told its port |
//! | `day` | a day of builds |
//! | `eventually` | waiting for a condition; `time` moving a paused clock |
//! | `serving`, `socket`, `tls`, `site`, `log`, `store`, `answers`, `door` | how the fakes are made |
#![allow(dead_code, unused_imports)] // a tool box: no single test file uses everything
#![allow(clippy::result_large_err)] // a refusal is a whole answer, and nothing here is in a hurry
#![allow(unreachable_pub)] // `pub` here means "for the tests", which are all one crate

mod answers;
pub mod behaviour;
pub mod cdn;
pub mod client;
pub mod collector;
pub mod day;
mod door;
pub mod eventually;
pub mod faults;
pub mod gate;
pub mod house;
pub mod images;
pub mod log;
pub mod port;
pub mod program;
pub mod pull;
mod quota;
pub mod registry;
mod serving;
pub mod site;
mod socket;
mod store;
pub mod time;
pub mod tls;
pub mod token_server;
pub mod wire;
