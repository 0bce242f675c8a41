//! Pulling whole images, with every digest checked by the client's own hand.

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use serde_json::Value;

use super::client::{Client, Reply};
use super::images::{Blob, Image, is_digest_of, sha256};
use super::wire::WireError;

/// How many blobs are fetched at once, as most clients do.
const AT_ONCE: usize = 3;

/// What a pull brought home; every byte of it fits its digest.
#[derive(Clone, Debug)]
pub struct PulledImage {
    /// What the tag stood for.
    pub digest: String,
    /// The top first, then its children.
    pub manifests: Vec<Blob>,
    /// Configs and layers, each once.
    pub blobs: Vec<Blob>,
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The answer was not 200.
    #[error("{path}: status {}: {}", reply.status, reply.text())]
    Status {
        /// What was asked for.
        path: String,
        /// The whole answer.
        reply: Box<Reply>,
    },
    /// The body ended early. A client knows this and can try again.
    #[error("{path}: cut short after {got} bytes")]
    Truncated {
        /// What was asked for.
        path: String,
        /// How many bytes came.
        got: usize,
    },
    /// A body that claimed to be whole does not fit its digest: the mirror lied.
    #[error("{path}: a complete answer of {got} bytes has the wrong digest")]
    WrongDigest {
        /// What was asked for.
        path: String,
        /// How many bytes came.
        got: usize,
    },
    /// No answer.
    #[error("{path}: {error}")]
    Wire {
        /// What was asked for.
        path: String,
        /// What went wrong.
        error: WireError,
    },
}

impl PullError {
    /// The status, if one came that was not 200.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { reply, .. } => Some(reply.status),
            _ => None,
        }
    }
}

impl PulledImage {
    /// Whether it is exactly this image.
    pub fn is(&self, image: &Image) -> bool {
        let sorted = |blobs: &[Blob]| {
            let mut digests: Vec<String> = blobs.iter().map(|blob| blob.digest.clone()).collect();
            digests.sort();
            digests
        };
        self.digest == image.top.digest
            && sorted(&self.manifests) == sorted(&image.manifests)
            && sorted(&self.blobs) == sorted(&image.blobs)
    }
}

impl Client {
    /// Pulls a whole image as podman does: GET by tag, children by digest, blobs three at once.
    pub async fn pull(&self, repository: &str, reference: &str) -> Result<PulledImage, PullError> {
        let top = self.manifest(repository, reference).await?;
        self.pull_under(repository, top).await
    }

    /// Pulls a whole image as Docker and containerd do: HEAD by tag, then GET by digest.
    pub async fn pull_like_docker(&self, repository: &str, tag: &str) -> Result<PulledImage, PullError> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let head = self.fetch(Method::HEAD, &path).await?;
        let top = self.manifest(repository, head.header("docker-content-digest")).await?;
        self.pull_under(repository, top).await
    }

    /// One manifest, checked.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<Blob, PullError> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let reply = self.fetch(Method::GET, &path).await?;
        let told = reply.header("docker-content-digest");
        let digest = match (reference.contains(':'), told.is_empty()) {
            (true, _) => reference.to_owned(),
            (false, false) => told.to_owned(),
            (false, true) => sha256(&reply.body),
        };
        let media_type = reply.header("content-type").to_owned();
        checked(&path, &digest, reply.body, &media_type)
    }

    /// One blob, checked.
    pub async fn blob(&self, repository: &str, digest: &str) -> Result<Bytes, PullError> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let reply = self.fetch(Method::GET, &path).await?;
        Ok(checked(&path, digest, reply.body, "")?.bytes)
    }

    async fn pull_under(&self, repository: &str, top: Blob) -> Result<PulledImage, PullError> {
        let digest = top.digest.clone();
        let mut manifests = vec![top];
        let mut wanted: Vec<Blob> = Vec::new();
        let mut next = 0;
        while next < manifests.len() {
            let document: Value = serde_json::from_slice(&manifests[next].bytes).unwrap_or_default();
            let children = document["manifests"].as_array().into_iter().flatten();
            for child in children.take(self.platforms) {
                manifests.push(self.manifest(repository, descriptor(child).digest.as_str()).await?);
            }
            let layers = document["layers"].as_array().into_iter().flatten();
            for blob in layers.chain(document.get("config")).map(descriptor) {
                if wanted.iter().all(|other| other.digest != blob.digest) {
                    wanted.push(blob);
                }
            }
            next += 1;
        }
        let fetches = wanted.into_iter().map(|blob| async move {
            let bytes = self.blob(repository, &blob.digest).await?;
            Ok(Blob { bytes, ..blob })
        });
        let blobs = stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(PulledImage { digest, manifests, blobs })
    }

    async fn fetch(&self, method: Method, path: &str) -> Result<Reply, PullError> {
        let reply = self.try_request(method, path, &[], Bytes::new()).await;
        let path = path.to_owned();
        match reply {
            Err(error) => Err(PullError::Wire { path, error }),
            Ok(reply) if reply.status != 200 => Err(PullError::Status { path, reply: Box::new(reply) }),
            Ok(reply) if reply.truncated => Err(PullError::Truncated { path, got: reply.body.len() }),
            Ok(reply) => Ok(reply),
        }
    }
}

/// A blob yet to be fetched.
fn descriptor(entry: &Value) -> Blob {
    let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    Blob { digest: text("digest"), bytes: Bytes::new(), media_type: text("mediaType") }
}

fn checked(path: &str, digest: &str, bytes: Bytes, media_type: &str) -> Result<Blob, PullError> {
    if is_digest_of(digest, &bytes) {
        return Ok(Blob { digest: digest.to_owned(), bytes, media_type: media_type.to_owned() });
    }
    Err(PullError::WrongDigest { path: path.to_owned(), got: bytes.len() })
}
