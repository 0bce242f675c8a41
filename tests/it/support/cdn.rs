//! A fake CDN: where a registry redirects blobs to, behind signed URLs.
//!
//! Like S3 it refuses a request that carries Authorization, and a signed URL can be made to expire.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::answers::ranged;
use super::serving::Front;
use super::site::{Answer, Call, Site};
use super::store::Store;

/// A second host that serves a registry's blobs. Clones are the same CDN; it derefs to [`Site`],
/// which has its log and its faults.
#[derive(Clone)]
pub struct FakeCdn(Arc<Inner>);

struct Inner {
    front: Front,
    site: Arc<Site>,
    signer: Arc<Signer>,
    public_url: Mutex<Option<String>>,
}

/// Numbers the signed URLs, so that those up to a number can be expired.
#[derive(Default)]
struct Signer {
    issued: AtomicU64,
    expired: AtomicU64,
}

impl FakeCdn {
    /// A CDN over what the store holds.
    pub(super) async fn over(store: Arc<Store>) -> Self {
        let signer = Arc::new(Signer::default());
        let judge = Arc::clone(&signer);
        let site = Site::new(move |call| {
            let (store, judge) = (Arc::clone(&store), Arc::clone(&judge));
            async move { answer(&call, &store, &judge) }
        });
        let front = Front::start(Arc::clone(&site), None).await;
        Self(Arc::new(Inner { front, site, signer, public_url: Mutex::new(None) }))
    }

    /// `http://127.0.0.1:PORT`, or what it was told to be called.
    pub fn url(&self) -> String {
        let public = self.0.public_url.lock().expect("unpoisoned").clone();
        public.unwrap_or_else(|| self.0.front.url())
    }

    /// Redirects name this URL in place of the real one; see `FakeRegistry::serve_host`.
    pub fn set_public_url(&self, url: &str) {
        *self.0.public_url.lock().expect("unpoisoned") = Some(url.to_owned());
    }

    /// Every URL signed so far answers 403 from now on.
    pub fn expire_urls(&self) {
        let issued = self.0.signer.issued.load(Ordering::SeqCst);
        self.0.signer.expired.store(issued, Ordering::SeqCst);
    }

    /// Refuses connections from now on and kills those there are.
    pub async fn stop(&self) {
        self.0.front.stop().await;
    }

    /// Accepts again, on the same port.
    pub fn resume(&self) {
        self.0.front.resume();
    }

    /// Kills every connection; new ones are accepted.
    pub async fn kill_connections(&self) {
        self.0.front.kill_connections().await;
    }

    /// A signed URL for an object.
    pub(super) fn sign(&self, path: &str) -> String {
        let number = self.0.signer.issued.fetch_add(1, Ordering::SeqCst) + 1;
        format!("{}/{path}?X-Amz-Expires=600&X-Amz-Signature={number}", self.url())
    }

    pub(super) fn site(&self) -> Arc<Site> {
        Arc::clone(&self.0.site)
    }
}

impl std::ops::Deref for FakeCdn {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.0.site
    }
}

fn answer(call: &Call, store: &Store, signer: &Signer) -> Answer {
    if call.headers.contains_key("authorization") {
        return xml(400, "InvalidArgument", "Only one auth mechanism allowed");
    }
    let signature = call.params("X-Amz-Signature").first().and_then(|text| text.parse::<u64>().ok());
    if signature.is_none_or(|number| number <= signer.expired.load(Ordering::SeqCst)) {
        return xml(403, "AccessDenied", "Request has expired");
    }
    let digest = call.path.rsplit('/').next().unwrap_or_default();
    let Some(object) = store.anywhere(digest) else {
        return xml(404, "NoSuchKey", "The specified key does not exist.");
    };
    // Manifests keep their type, as a storage host is told it when they are uploaded.
    let is_manifest = call.path.contains("/manifests/");
    let content_type = if is_manifest { object.media_type.as_str() } else { "application/octet-stream" };
    let whole = Answer::new(200)
        .with("content-type", content_type)
        .with("etag", &format!("\"{}\"", &digest[digest.len().saturating_sub(32)..]))
        .with("accept-ranges", "bytes")
        .body(object.bytes);
    ranged(call, whole)
}

fn xml(status: u16, code: &str, message: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    Answer::new(status).with("content-type", "application/xml").body(body)
}
