//! What a fake registry answers: the pull side of the distribution specification.
//!
//! Pure: a call, the state and the behaviour in, an [`Answer`] out. Faults come later, in
//! [`super::site`].

use std::sync::{Arc, Mutex, MutexGuard};

use http::Method;
use serde_json::json;

use super::behaviour::{AbuseLimit, Behaviour, Redirect, Target};
use super::door::{Admitted, admit};
use super::images::{Blob, OCI_INDEX};
use super::site::{Answer, Call};
use super::store::{Repository, Store};
use super::token_server::Issuer;

/// What the answers are made from.
pub(super) struct State {
    pub(super) store: Arc<Store>,
    behaviour: Mutex<Behaviour>,
    issuer: Mutex<Arc<Issuer>>,
}

/// What a path under `/v2/` asks for.
pub(super) enum Wanted<'a> {
    Ping,
    Manifest { name: &'a str, reference: &'a str },
    Blob { name: &'a str, digest: &'a str },
    Tags { name: &'a str },
    Referrers { name: &'a str, digest: &'a str },
    Unknown,
}

impl State {
    pub(super) fn new(issuer: Arc<Issuer>) -> Self {
        Self { store: Arc::default(), behaviour: Mutex::default(), issuer: Mutex::new(issuer) }
    }

    pub(super) fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().expect("unpoisoned")
    }

    pub(super) fn issuer(&self) -> MutexGuard<'_, Arc<Issuer>> {
        self.issuer.lock().expect("unpoisoned")
    }

    /// Answers a request.
    pub(super) fn answer(&self, call: &Call) -> Answer {
        if let Some(Err(refusal)) = self.behaviour().abuse.as_mut().map(AbuseLimit::admit) {
            return refusal;
        }
        let behaviour = self.behaviour().clone();
        let wanted = Wanted::parse(&call.path);
        if behaviour.quirks.html && !matches!(wanted, Wanted::Ping) {
            return Answer::html();
        }
        if !matches!(call.method, Method::GET | Method::HEAD) {
            return Answer::error(405, "UNSUPPORTED", "this registry is read only");
        }
        let issuer = Arc::clone(&self.issuer());
        let repository = wanted.name().and_then(|name| self.store.repository(&call.host, name));
        let admitted = match admit(call, &wanted, repository.is_some(), &behaviour, &issuer) {
            Ok(admitted) => admitted,
            Err(refusal) => return refusal,
        };
        let mut answer = self.admitted(call, &wanted, repository, &behaviour, &admitted);
        answer.account = admitted.account;
        answer
    }

    fn admitted(
        &self,
        call: &Call,
        wanted: &Wanted<'_>,
        repository: Option<Repository>,
        behaviour: &Behaviour,
        admitted: &Admitted,
    ) -> Answer {
        let repository = match (wanted, repository) {
            (Wanted::Ping, _) => return Answer::new(200).with("content-type", "application/json").body("{}"),
            (Wanted::Unknown, _) => return bare_not_found(),
            (Wanted::Referrers { .. }, _) if !behaviour.referrers => return bare_not_found(),
            (_, Some(repository)) => repository,
            (Wanted::Referrers { .. }, None) => Repository::default(),
            (_, None) => return Answer::error(404, "NAME_UNKNOWN", "repository name not known to registry"),
        };
        match wanted {
            Wanted::Manifest { reference, .. } => {
                self.manifest(call, wanted, repository.manifest(reference), behaviour, admitted)
            }
            Wanted::Blob { digest, .. } => blob(call, wanted, repository.blobs.get(*digest), behaviour),
            Wanted::Tags { name } => tags(call, name, &repository, behaviour.tags_page),
            Wanted::Referrers { digest, .. } => referrers(call, digest, &repository),
            Wanted::Ping | Wanted::Unknown => bare_not_found(),
        }
    }

    fn manifest(
        &self,
        call: &Call,
        wanted: &Wanted<'_>,
        manifest: Option<&Blob>,
        behaviour: &Behaviour,
        admitted: &Admitted,
    ) -> Answer {
        if behaviour.quirks.no_head && call.method == Method::HEAD {
            return Answer::error(405, "UNSUPPORTED", "HEAD is not supported");
        }
        if let Some(redirect) = behaviour.redirect.as_ref().filter(|redirect| redirect.manifests) {
            // A CDN knows digests alone.
            let named = manifest.zip(wanted.name()).filter(|_| matches!(redirect.to, Target::Cdn(_)));
            let resolved = named.map(|(blob, name)| Wanted::Manifest { name, reference: &blob.digest });
            return redirected(call, resolved.as_ref().unwrap_or(wanted), redirect);
        }
        let Some(manifest) = manifest else {
            return Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        if behaviour.quirks.require_accept && !accepts(call.header("accept"), &manifest.media_type) {
            let message = "OCI index found, but Accept header does not support OCI indexes";
            return Answer::error(404, "MANIFEST_UNKNOWN", message);
        }
        self.metered(call, admitted, || object(call, manifest, &manifest.media_type, behaviour))
    }

    /// Charges a manifest GET to the quota of whoever asks, and announces what is left.
    fn metered(&self, call: &Call, admitted: &Admitted, answer: impl FnOnce() -> Answer) -> Answer {
        let mut behaviour = self.behaviour();
        let own = admitted.account.as_ref().filter(|account| behaviour.account_limits.contains_key(*account));
        let limit = match own {
            Some(account) => behaviour.account_limits.get_mut(account),
            None => behaviour.rate_limit.as_mut(),
        };
        let Some(limit) = limit else { return answer() };
        let mut answer = if call.method == Method::GET && !limit.take() {
            let message = "You have reached your pull rate limit. https://www.docker.com/increase-rate-limit";
            Answer::error(429, "TOOMANYREQUESTS", message)
        } else {
            answer()
        };
        answer.set("ratelimit-limit", &format!("{};w={}", limit.limit, limit.window));
        answer.set("ratelimit-remaining", &format!("{};w={}", limit.left(), limit.window));
        answer.set("docker-ratelimit-source", admitted.account.as_deref().unwrap_or(&limit.source));
        answer
    }
}

impl<'a> Wanted<'a> {
    fn parse(path: &'a str) -> Self {
        if path == "/v2/" || path == "/v2" {
            return Self::Ping;
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return Self::Unknown };
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Self::Tags { name };
        }
        let Some((front, last)) = rest.rsplit_once('/') else { return Self::Unknown };
        match front.rsplit_once('/') {
            Some((name, "manifests")) => Self::Manifest { name, reference: last },
            Some((name, "blobs")) => Self::Blob { name, digest: last },
            Some((name, "referrers")) => Self::Referrers { name, digest: last },
            _ => Self::Unknown,
        }
    }

    /// The repository.
    pub(super) fn name(&self) -> Option<&'a str> {
        match self {
            Self::Manifest { name, .. } | Self::Blob { name, .. } => Some(name),
            Self::Tags { name } | Self::Referrers { name, .. } => Some(name),
            Self::Ping | Self::Unknown => None,
        }
    }
}

/// Serves the part of `whole` that the Range header asks for; several parts are not supported.
pub(super) fn ranged(call: &Call, whole: Answer) -> Answer {
    let etag = whole.headers.get("etag").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_other_version = call.headers.contains_key("if-range") && call.header("if-range") != etag;
    let Some(range) = call.header("range").strip_prefix("bytes=") else { return whole };
    if call.method == Method::HEAD || is_other_version || range.contains(',') {
        return whole;
    }
    let len = whole.body.len();
    let Some((first, last)) = range.split_once('-') else { return whole };
    let bounds = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => Some((first, last.min(len.saturating_sub(1)))),
        (Ok(first), Err(_)) => Some((first, len.saturating_sub(1))),
        (Err(_), Ok(suffix)) if suffix > 0 && len > 0 => Some((len.saturating_sub(suffix), len - 1)),
        _ => None,
    };
    match bounds.filter(|(first, last)| first <= last && *first < len) {
        Some((first, last)) => {
            let body = whole.body.slice(first..=last);
            let content_range = format!("bytes {first}-{last}/{len}");
            Answer { status: 206, ..whole }.with("content-range", &content_range).body(body)
        }
        None => Answer::error(416, "RANGE_INVALID", "invalid range")
            .with("content-range", &format!("bytes */{len}")),
    }
}

fn blob(call: &Call, wanted: &Wanted<'_>, blob: Option<&Blob>, behaviour: &Behaviour) -> Answer {
    let Some(blob) = blob else {
        return Answer::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    if let Some(redirect) = behaviour.redirect.as_ref().filter(|redirect| redirect.blobs) {
        return redirected(call, wanted, redirect);
    }
    object(call, blob, "application/octet-stream", behaviour)
}

/// A manifest or blob with its headers, whole, in part or not modified.
fn object(call: &Call, blob: &Blob, content_type: &str, behaviour: &Behaviour) -> Answer {
    let quirks = &behaviour.quirks;
    let etag = format!("\"{}\"", blob.digest);
    let mut answer = Answer::new(200)
        .with("content-type", quirks.content_type.as_deref().unwrap_or(content_type))
        .with("docker-distribution-api-version", "registry/2.0")
        .with("docker-content-digest", quirks.wrong_digest.as_deref().unwrap_or(&blob.digest))
        .with("etag", &etag)
        .with("accept-ranges", "bytes")
        .body(blob.bytes.clone());
    let absent = [
        (quirks.no_digest, "docker-content-digest"),
        (quirks.no_etag, "etag"),
        (quirks.no_accept_ranges, "accept-ranges"),
    ];
    for (_, name) in absent.into_iter().filter(|(is_absent, _)| *is_absent) {
        answer.headers.remove(name);
    }
    answer.chunked = quirks.no_length;
    if !quirks.no_etag && call.header("if-none-match").split(',').any(|tag| tag.trim() == etag) {
        return Answer { status: 304, body: bytes::Bytes::new(), ..answer };
    }
    if quirks.ignore_range { answer } else { ranged(call, answer) }
}

fn redirected(call: &Call, wanted: &Wanted<'_>, redirect: &Redirect) -> Answer {
    let (name, kind, reference) = match wanted {
        Wanted::Manifest { name, reference } => (name, "manifests", reference),
        Wanted::Blob { name, digest } => (name, "blobs", digest),
        _ => return bare_not_found(),
    };
    let path = format!("{}{name}/{kind}/{reference}", redirect.prefix);
    let location = match &redirect.to {
        Target::Cdn(cdn) => cdn.sign(&path),
        Target::Registry(url) => format!("{url}/v2/{path}"),
        Target::Url(url) => url.clone(),
        Target::Loop => format!("{}?{}", call.path, call.query),
    };
    Answer::new(redirect.status)
        .with("location", &location)
        .with("content-type", "text/html")
        .body("Redirecting.")
}

fn tags(call: &Call, name: &str, repository: &Repository, longest: Option<usize>) -> Answer {
    let asked = call.params("n").first().and_then(|n| n.parse::<usize>().ok());
    let page = asked.unwrap_or(usize::MAX).min(longest.unwrap_or(usize::MAX));
    let last = call.params("last").first().cloned().unwrap_or_default();
    let rest: Vec<&String> = repository.tags.keys().filter(|tag| **tag > last).collect();
    let shown = &rest[..page.min(rest.len())];
    let body = json!({ "name": name, "tags": shown });
    let answer = Answer::new(200).with("content-type", "application/json").body(body.to_string());
    match shown.last().filter(|_| shown.len() < rest.len()) {
        Some(last) => {
            answer.with("link", &format!("</v2/{name}/tags/list?last={last}&n={page}>; rel=\"next\""))
        }
        None => answer,
    }
}

fn referrers(call: &Call, digest: &str, repository: &Repository) -> Answer {
    let wanted_type = call.params("artifactType").first().cloned();
    let mut entries = Vec::new();
    for manifest in repository.manifests.values() {
        let Ok(document) = serde_json::from_slice::<serde_json::Value>(&manifest.bytes) else { continue };
        if document["subject"]["digest"] != digest {
            continue;
        }
        let config_type = document["config"]["mediaType"].as_str();
        let artifact_type = document["artifactType"].as_str().or(config_type).unwrap_or_default();
        if wanted_type.as_deref().is_none_or(|wanted| wanted == artifact_type) {
            let mut entry = manifest.descriptor();
            entry["artifactType"] = json!(artifact_type);
            entry["annotations"] = document["annotations"].clone();
            entries.push(entry);
        }
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    let answer = Answer::new(200).with("content-type", OCI_INDEX).body(index.to_string());
    if wanted_type.is_some() { answer.with("oci-filters-applied", "artifactType") } else { answer }
}

/// Accept as Docker Hub reads it: the very type must be named, or everything.
fn accepts(accept: &str, media_type: &str) -> bool {
    !media_type.contains("oci") || accept.contains(media_type) || accept.contains("*/*")
}

/// What a server that has never heard of the path says.
fn bare_not_found() -> Answer {
    Answer::new(404).with("content-type", "text/plain").body("404 page not found\n")
}
