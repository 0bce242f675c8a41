//! Who changed what: a line in `log.audit` for each request that changes something, or was to.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use http::{Request, StatusCode};
use serde::Serialize;

use crate::lifecycle::now;
use crate::server::Peer;

/// What was asked, kept until it is known what came of it.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    /// In seconds since 1970, as everywhere in the API.
    at: u64,
    client: Option<SocketAddr>,
    /// It brought a token along, right or wrong.
    with_token: bool,
    action: String,
    query: Option<String>,
    status: u16,
}

/// Of a query from outside, so many bytes.
const LONGEST: usize = 1000;

impl Entry {
    /// `None` for what only looks.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Entry> {
        if request.method().is_safe() {
            return None;
        }
        let cut = |text: &str| text[..text.floor_char_boundary(LONGEST)].to_owned();
        Some(Entry {
            at: now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            client: request.extensions().get::<Peer>().map(|peer| peer.addr),
            with_token: request.headers().contains_key(http::header::AUTHORIZATION),
            action: cut(&format!("{} {}", request.method(), request.uri().path())),
            query: request.uri().query().map(cut),
            status: 0,
        })
    }

    /// Writes it down. What cannot be written is logged, and what was asked is done all the same.
    pub(super) fn end(mut self, status: StatusCode, file: Option<&Path>) {
        let Some(file) = file else { return };
        self.status = status.as_u16();
        if let Err(error) = self.append(file) {
            let entry = serde_json::to_string(&self).unwrap_or_default();
            tracing::error!(file = %file.display(), %error, entry, "the audit log cannot be written");
        }
    }

    fn append(&self, file: &Path) -> io::Result<()> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        // In one write, so that lines of several processes do not mix.
        OpenOptions::new().append(true).create(true).mode(0o600).open(file)?.write_all(line.as_bytes())
    }
}
