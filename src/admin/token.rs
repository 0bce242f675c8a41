//! The token by which an operator is known from elsewhere.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use crate::config;
use crate::oci::{Algorithm, Digest};
use crate::secret::Secret;

/// Fewer characters can be guessed.
const SHORTEST: usize = 16;
/// Far more than any token.
const MOST_BYTES: u64 = 4096;

/// Why the configured token cannot be had, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BadToken {
    /// The file cannot be read.
    #[error("admin.token_file {path} cannot be read ({source}); create it, or correct the key")]
    Unreadable {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It holds none.
    #[error(
        "the first line of admin.token_file {path} must be a token of at least {SHORTEST} characters without spaces; make one with: openssl rand -hex 32"
    )]
    Weak {
        /// Where.
        path: String,
    },
}

/// The token as the configuration has it at this moment; none where it has none.
///
/// # Errors
/// [`BadToken`]: nobody may be let in then.
pub fn read_token(config: &config::Admin) -> Result<Option<Secret>, BadToken> {
    config.token_file.as_deref().map(read).transpose()
}

fn read(file: &Path) -> Result<Secret, BadToken> {
    let path = || file.display().to_string();
    let mut text = String::new();
    let read = File::open(file).and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
    let text = Secret::new(text);
    read.map_err(|source| BadToken::Unreadable { path: path(), source })?;
    let line = text.reveal().lines().next().unwrap_or_default().trim_end();
    let is_token = line.len() >= SHORTEST && line.bytes().all(|byte| byte.is_ascii_graphic());
    if is_token { Ok(Secret::new(line)) } else { Err(BadToken::Weak { path: path() }) }
}

/// Whether a request brings `token` along (RFC 6750 §2.1); `None` where it brings none at all.
pub(super) fn brings(headers: &HeaderMap, token: &Secret) -> Option<bool> {
    let given = headers.get(AUTHORIZATION).and_then(bearer)?;
    // How long it takes to compare hashes tells nothing about what was hashed.
    let hash = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    Some(hash(given) == hash(token.reveal()))
}

fn bearer(header: &HeaderValue) -> Option<&str> {
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_it_is_written_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let config = config::Admin { token_file: Some(file.clone()) };
        assert!(matches!(read_token(&config), Err(BadToken::Unreadable { .. })));
        assert_eq!(read_token(&config::Admin::default()).unwrap(), None);
        for (text, token) in [
            ("0123456789abcdef", Some("0123456789abcdef")),
            ("0123456789abcdef \r\nnext", Some("0123456789abcdef")),
            ("0123456789abcde", None),
            ("0123456789 abcdef", None),
            ("", None),
        ] {
            std::fs::write(&file, text).unwrap();
            let read = read_token(&config).ok().flatten();
            assert_eq!(read.as_ref().map(Secret::reveal), token, "{text:?}");
        }
    }

    #[test]
    fn as_a_request_brings_it() {
        let token = Secret::new("0123456789abcdef");
        let brings = |header: Option<&str>| {
            let mut headers = HeaderMap::new();
            header.map(|header| headers.insert(AUTHORIZATION, header.parse().unwrap()));
            super::brings(&headers, &token)
        };
        for none in [None, Some("Basic x"), Some("0123456789abcdef"), Some("")] {
            assert_eq!(brings(none), None, "{none:?}");
        }
        assert_eq!(brings(Some("bearer 0123456789abcdef")), Some(true));
        for wrong in ["Bearer ", "Bearer 0123456789abcdeF", "Bearer 0123456789abcdef0"] {
            assert_eq!(brings(Some(wrong)), Some(false), "{wrong}");
        }
    }
}
