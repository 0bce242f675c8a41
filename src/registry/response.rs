use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{
    ACCEPT_RANGES, AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, HeaderValue,
    LINK, RETRY_AFTER, WARNING,
};
use http::{HeaderMap, StatusCode};

use super::error::Told;
use crate::mirror::{ListAnswer, ManifestAnswer, Served};
use crate::oci::{Digest, ErrorCode, RegistryHost, error_body};
use crate::section::Piece;

/// A response that is not on its way yet.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload,
}

/// Its body.
pub(super) enum Payload {
    /// None. `Content-Length` may still speak of the body that a GET would have.
    Empty,
    /// Whole in memory.
    Bytes(Bytes),
    /// As it is there, with its exact length.
    Stream(BoxStream<'static, std::io::Result<Piece>>, u64),
}

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Those of a manifest by tag: a map that grows on the way is hashed anew each time.
const MOST_HEADERS: usize = 12;

/// By digest: it will never be anything else (RFC 8246).
const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");
/// By tag, and lists: ask this mirror each time.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");
const NEVER: HeaderValue = HeaderValue::from_static("no-store");

impl Answer {
    pub(super) fn new(status: StatusCode) -> Answer {
        let mut headers = HeaderMap::with_capacity(MOST_HEADERS);
        // Old clients take a registry without it for one of the first version.
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        Answer { status, headers, payload: Payload::Empty }
    }

    pub(super) fn with<V>(mut self, name: HeaderName, value: V) -> Answer
    where
        HeaderValue: TryFrom<V>,
    {
        // What stands here is made of checked grammar; anything else is left out rather than sent broken.
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(super) fn without(mut self, name: &HeaderName) -> Answer {
        self.headers.remove(name);
        self
    }

    fn caching(mut self, value: HeaderValue) -> Answer {
        self.headers.insert(CACHE_CONTROL, value);
        self
    }

    pub(super) fn body(mut self, bytes: impl Into<Bytes>) -> Answer {
        let bytes = bytes.into();
        self.headers.insert(CONTENT_LENGTH, bytes.len().into());
        self.payload = Payload::Bytes(bytes);
        self
    }

    pub(super) fn stream(
        mut self,
        stream: BoxStream<'static, std::io::Result<Piece>>,
        length: u64,
    ) -> Answer {
        self.headers.insert(CONTENT_LENGTH, length.into());
        self.payload = Payload::Stream(stream, length);
        self
    }

    /// A HEAD's answer: the headers of the GET, `Content-Length` too.
    pub(super) fn without_body(mut self) -> Answer {
        self.payload = Payload::Empty;
        self
    }

    /// Whose content it is.
    fn of(self, digest: &Digest) -> Answer {
        let text = digest.with_text(HeaderValue::from_str).expect("digits and letters");
        self.with(CONTENT_DIGEST, text).with(ETAG, etag(digest))
    }

    pub(super) fn namespace(self, ns: Option<&RegistryHost>) -> Answer {
        match ns {
            Some(ns) => self.with(NAMESPACE, ns.as_str()),
            None => self,
        }
    }

    pub(super) fn served(self, served: Served) -> Answer {
        let mut answer = self;
        answer.headers.insert(CACHE_STATUS, HeaderValue::from_static(served.cache_status()));
        answer
    }

    /// The client has it already (RFC 9110 §15.4.5).
    pub(super) fn not_modified(mut self) -> Answer {
        self.status = StatusCode::NOT_MODIFIED;
        self.headers.remove(CONTENT_LENGTH);
        self.headers.remove(CONTENT_TYPE);
        self.without_body()
    }
}

/// `/v2/`: yes, a registry.
pub(super) fn ping() -> Answer {
    Answer::new(StatusCode::OK).with(CONTENT_TYPE, "application/json").body("{}")
}

pub(super) fn manifest(answer: ManifestAnswer, by_tag: bool) -> Answer {
    let response = Answer::new(StatusCode::OK)
        .with(CONTENT_TYPE, answer.media_type)
        .of(&answer.digest)
        .served(answer.served)
        .caching(if by_tag { ASK_AGAIN } else { FOREVER });
    let response = match answer.age {
        Some(age) => response.with(AGE, age.as_secs()),
        None => response,
    };
    let response = warn_if_stale(response, answer.served);
    match answer.bytes {
        Some(bytes) => response.body(bytes),
        None => response.with(CONTENT_LENGTH, answer.size),
    }
}

/// The headers that all answers about a blob have in common.
pub(super) fn blob(digest: &Digest, size: u64, served: Served) -> Answer {
    Answer::new(StatusCode::OK)
        .with(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
        .with(CONTENT_LENGTH, size)
        .of(digest)
        .with(ACCEPT_RANGES, HeaderValue::from_static("bytes"))
        .served(served)
        .caching(FOREVER)
}

/// A list as JSON, which may be cut or filtered: `document` is what the client gets of it.
pub(super) fn list(answer: &ListAnswer, media_type: &str, document: Bytes) -> Answer {
    let response = Answer::new(StatusCode::OK)
        .with(CONTENT_TYPE, media_type)
        .with(AGE, answer.age.as_secs())
        .served(answer.served)
        .caching(ASK_AGAIN);
    warn_if_stale(response, answer.served).body(document)
}

/// The repositories of which something is cached.
pub(super) fn catalog(document: Vec<u8>) -> Answer {
    Answer::new(StatusCode::OK).with(CONTENT_TYPE, "application/json").caching(NEVER).body(document)
}

pub(super) fn next_page(answer: Answer, link: Option<String>) -> Answer {
    match link {
        Some(link) => answer.with(LINK, link),
        None => answer,
    }
}

pub(super) fn filtered(answer: Answer) -> Answer {
    answer.with(FILTERS_APPLIED, "artifactType")
}

pub(super) fn error(told: &Told) -> Answer {
    let answer = Answer::new(told.status)
        .with(CONTENT_TYPE, "application/json")
        .with(CACHE_STATUS, format!("tidelock; detail={}", told.reason))
        .caching(NEVER)
        .body(error_body(told.code, &told.text));
    let answer = match told.retry_after {
        // Up, so that whoever obeys does not come a moment too early.
        Some(pause) => answer.with(RETRY_AFTER, pause.as_secs() + 1),
        None => answer,
    };
    match told.code {
        ErrorCode::Unsupported if told.status == StatusCode::METHOD_NOT_ALLOWED => {
            answer.with(ALLOW, "GET, HEAD")
        }
        _ => answer,
    }
}

/// A strong validator: the digest itself, quoted.
pub(super) fn etag(digest: &Digest) -> String {
    digest.with_text(|text| {
        // As long as it gets: a header takes it over as it is.
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.extend(["\"", text, "\""]);
        quoted
    })
}

fn warn_if_stale(answer: Answer, served: Served) -> Answer {
    match served {
        // The form that the distribution spec allows ("Warnings").
        Served::Stale => {
            answer.with(WARNING, "299 - \"served from the cache: the upstream could not be asked\"")
        }
        _ => answer,
    }
}
