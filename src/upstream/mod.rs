//! Speaks to other people's registries: connect, log in, redirect, resume.
//!
//! ```text
//! Client ── endpoints in order ──▶ asking ── login ──▶ token, credentials (docker_config, helper)
//!   │                                │  └── redirect
//!   ├ manifests, lists               ▼
//!   └ Transfer (resumes)            wire ── connect ── proxy, tls
//! ```
//!
//! Every request goes out under a [`Lease`](crate::scheduler::Lease) of the scheduler (I2), which is told what came of it. Credentials go where `trust` lets them, and
//! requests where `endpoint` lets them reach (I6); both are plain judgement with tables of cases beside it.
//! Every wait is within a time limit (I8): connecting, the headers of an answer, the pause between two pieces
//! of a body, a helper program. Bodies are handed on as they come; nothing here checks a digest, keeps an
//! answer or decides when to ask again.

mod address;
mod answer;
mod asking;
mod body;
mod challenge;
mod client;
mod connect;
mod credentials;
mod docker_config;
mod endpoint;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod helper;
mod lists;
mod login;
mod metrics;
mod placing;
mod probing;
mod proxy;
mod quota;
mod redirect;
mod signing_in;
mod suspects;
mod tls;
mod token;
mod transfer;
mod tries;
mod trust;
mod wire;

use bytes::Bytes;

pub use client::{BadSetup, Boarding, Client};
use error::Next;
pub use error::{Error, Sent};
pub use metrics::UpstreamMetrics;
pub use signing_in::{SignedIn, Welcome};
pub use transfer::Transfer;
pub use trust::host_of;

use crate::oci::Digest;

/// What a HEAD tells of a manifest or blob.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// `Docker-Content-Digest`, where the upstream sends one (some do not).
    pub digest: Option<Digest>,
    /// `Content-Type`, where sent.
    pub media_type: Option<String>,
    /// `Content-Length`, where sent.
    pub size: Option<u64>,
}

/// A manifest as it came.
#[derive(Debug, Clone)]
pub struct Document {
    /// The bytes, not yet checked against any digest.
    pub bytes: Bytes,
    /// `Content-Type`, where sent.
    pub media_type: Option<String>,
    /// `Docker-Content-Digest`, where sent: a claim.
    pub digest: Option<Digest>,
}
